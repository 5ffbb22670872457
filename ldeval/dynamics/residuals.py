"""Residuals: the exact gradient of a loss with respect to the logits.

Every loss here looks at a response through its summed log-probability s = Σ_l ln π_l
alone, so its gradient at the logits of position l, where the label is y_l, is

    G_l = ∂ℓ/∂z_l = g (π_l − e_{y_l}),        g = −∂ℓ/∂s

with one number g a response, here called its *pull*: positive pulls the response up,
negative pushes it down. A loss is therefore a rule that turns scores into pulls, and
:func:`residual` does the rest for all of them. With r = s − s_ref, h = r⁺ − r⁻, n
tokens, σ the logistic function (arXiv 2407.10490, section 3 and appendix B; exact
forms derived anew, since three of the paper's are approximations)::

    SFT      g⁺ = 1, or 1/N tokens
    DPO      g⁺ = βσ(−βh)                              g⁻ = −g⁺
    cDPO     g⁺ = β(σ(−βh) − ε)                        g⁻ = −g⁺
    IPO      g⁺ = 2(1/(2β) − h)                        g⁻ = −g⁺
      paper  g⁺ = β(1 − h + 1/(2β))                    g⁻ = −g⁺
    hinge    g⁺ = β·1[βh < 1]                          g⁻ = −g⁺
    SLiC     g⁺ = a = 1[s⁺ − s⁻ < δ]                   g⁻ = −a      g_ref = β
      paper  g⁺ = aβσ(−βh)                             g⁻ = −g⁺     g_ref = β
    SimPO    g⁺ = (β/n⁺)σ(−u)                          g⁻ = −(β/n⁻)σ(−u)
    SPPO     g⁺ = 2(η/2 − r⁺)                          g⁻ = −2(r⁻ + η/2)
      paper  the same with both signs turned
    KTO      g⁺ = λ_D βσ(v)σ(−v),                      g⁻ = −λ_U βσ(v)σ(−v),
               v = β(r⁺ − z0)                            v = β(z0 − r⁻)
    ORPO     g⁺ = 1/n⁺ + λσ(−o)/(n⁺(1 − p̄⁺))           g⁻ = −λσ(−o)/(n⁻(1 − p̄⁻))
    NPO                                                g⁻ = −2σ(βr⁻)

TRL 1.16 differs in this: its ``ipo`` uses means over tokens (``IPO(mean=True)``), its
``hinge`` is :class:`Hinge` and not SLiC's, its ORPO lets the likelihood term cover the
prompt as well, and it has neither cDPO (``sigmoid`` ignores the smoothing) nor NPO.
TRL then averages over the batch; pulls here are of one example, and an average is the
caller's to take.

Apart from the toys, because language models need it too.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid

from ldeval.errors import TheoryError

IGNORED = -100
"""The label of a position that is not predicted: prompt or padding."""


# ---------------------------------------------------------------------------- scores


def score(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Summed log-probabilities and token counts.

    Args:
        logits: [B, L, V]; row l predicts ``labels[:, l]`` (shift before calling).
        labels: [B, L] ids, ``IGNORED`` where nothing is predicted.

    Returns:
        [B] Σ ln π(label), float64, nats; [B] tokens, float64.
    """
    kept = labels != IGNORED
    ids = labels.masked_fill(~kept, 0).unsqueeze(-1)
    log_p = log_softmax(logits, dim=-1).gather(-1, ids).squeeze(-1).double()
    return torch.where(kept, log_p, 0.0).sum(-1), kept.sum(-1).double()


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a loss may look at, for B examples. Every field is [B]; nats or tokens."""

    chosen: Tensor | None = None
    """s⁺, summed ln π(y⁺|x)."""
    rejected: Tensor | None = None
    """s⁻."""
    ref_chosen: Tensor | None = None
    """s⁺ under the reference model."""
    ref_rejected: Tensor | None = None
    """s⁻ under the reference model."""
    n_chosen: Tensor | None = None
    """Tokens of the chosen response; only losses that take means need them."""
    n_rejected: Tensor | None = None
    """Tokens of the rejected response."""
    regulariser: Tensor | None = None
    """Summed ln π(y_ref|x) of the response that SLiC regularises with."""

    def of(self, field: str, loss: Loss) -> Tensor:
        """A field that ``loss`` cannot do without.

        Raises:
            TheoryError: it was not given.
        """
        value: Tensor | None = getattr(self, field)
        if value is None:
            raise TheoryError(
                f"{type(loss).__name__} needs Scores.{field}, which was not given."
            )
        return value

    def ratios(self, loss: Loss) -> tuple[Tensor, Tensor]:
        """r⁺ and r⁻, the log-ratios to the reference; [B] each."""
        return (
            self.of("chosen", loss) - self.of("ref_chosen", loss),
            self.of("rejected", loss) - self.of("ref_rejected", loss),
        )

    def margin(self, loss: Loss) -> Tensor:
        """h = r⁺ − r⁻, [B]."""
        chosen, rejected = self.ratios(loss)
        return chosen - rejected

    def means(self, loss: Loss) -> tuple[Tensor, Tensor]:
        """s⁺/n⁺ and s⁻/n⁻, [B] each."""
        return (
            self.of("chosen", loss) / self.of("n_chosen", loss),
            self.of("rejected", loss) / self.of("n_rejected", loss),
        )


@dataclass(frozen=True)
class Pulls:
    """g = −∂ℓ/∂s of each response, [B]; None where the loss does not look at it."""

    chosen: Tensor | None = None
    rejected: Tensor | None = None
    regulariser: Tensor | None = None


# ---------------------------------------------------------------------------- losses


class Loss(ABC):
    """A loss of summed log-probabilities."""

    def value(self, scores: Scores) -> Tensor:
        """[B] the loss of each example, nats; differentiable in the scores.

        Raises:
            TheoryError: a score that it needs is missing, or it has no value (the
                paper's approximations are residuals of no stated loss).
        """
        raise TheoryError(
            f"{type(self).__name__} is the paper's approximation of a residual; it "
            "is not the gradient of a loss. Use the exact form for a value."
        )

    @abstractmethod
    def pulls(self, scores: Scores) -> Pulls:
        """g of each response: −∂value/∂s.

        Raises:
            TheoryError: a score that it needs is missing.
        """


@dataclass(frozen=True)
class SFT(Loss):
    """Cross-entropy on the chosen response."""

    tokens: float = 1.0
    """N that the sum is divided by: 1 for sums, the batch's tokens for TRL's mean."""

    def value(self, scores: Scores) -> Tensor:
        return -scores.of("chosen", self) / self.tokens

    def pulls(self, scores: Scores) -> Pulls:
        chosen = scores.of("chosen", self)
        return Pulls(torch.full_like(chosen, 1 / self.tokens))


@dataclass(frozen=True)
class CDPO(Loss):
    """DPO with labels that are wrong with probability ε (Mitchell, 2023)."""

    beta: float = 0.1
    epsilon: float = 0.1
    """Label smoothing, in [0, ½)."""

    def value(self, scores: Scores) -> Tensor:
        margin = self.beta * scores.margin(self)
        right, wrong = logsigmoid(margin), logsigmoid(-margin)
        return -(1 - self.epsilon) * right - self.epsilon * wrong

    def pulls(self, scores: Scores) -> Pulls:
        doubt = torch.sigmoid(-self.beta * scores.margin(self))
        return _opposite(self.beta * (doubt - self.epsilon))


@dataclass(frozen=True)
class DPO(Loss):
    """Direct preference optimisation (arXiv 2305.18290)."""

    beta: float = 0.1

    def value(self, scores: Scores) -> Tensor:
        return -logsigmoid(self.beta * scores.margin(self))

    def pulls(self, scores: Scores) -> Pulls:
        return _opposite(self.beta * torch.sigmoid(-self.beta * scores.margin(self)))


@dataclass(frozen=True)
class IPO(Loss):
    """(h − 1/(2β))² (arXiv 2310.12036); with ``mean``, TRL's form on token means."""

    beta: float = 0.1
    mean: bool = False
    """h̄ = r⁺/n⁺ − r⁻/n⁻ in place of h."""

    def _margin(self, scores: Scores) -> tuple[Tensor, Tensor | float, Tensor | float]:
        chosen, rejected = scores.ratios(self)
        if not self.mean:
            return chosen - rejected, 1.0, 1.0
        counts = scores.of("n_chosen", self), scores.of("n_rejected", self)
        return chosen / counts[0] - rejected / counts[1], *counts

    def value(self, scores: Scores) -> Tensor:
        return (self._margin(scores)[0] - 1 / (2 * self.beta)) ** 2

    def pulls(self, scores: Scores) -> Pulls:
        margin, chosen, rejected = self._margin(scores)
        missing = 2 * (1 / (2 * self.beta) - margin)
        return Pulls(missing / chosen, -missing / rejected)


@dataclass(frozen=True)
class PaperIPO(Loss):
    """The paper's form: DPO's residual β(1 − a) with a = h − 1/(2β).

    Against the exact one it is flatter in h by β/2, and it goes on pulling chosen up
    for one nat of h after the exact loss has turned round, at h = 1/(2β).
    """

    beta: float = 0.1

    def pulls(self, scores: Scores) -> Pulls:
        share = scores.margin(self) - 1 / (2 * self.beta)
        return _opposite(self.beta * (1 - share))


@dataclass(frozen=True)
class Hinge(Loss):
    """max(0, 1 − βh), what TRL calls ``hinge``."""

    beta: float = 0.1

    def value(self, scores: Scores) -> Tensor:
        return torch.relu(1 - self.beta * scores.margin(self))

    def pulls(self, scores: Scores) -> Pulls:
        short = self.beta * scores.margin(self) < 1
        return _opposite(self.beta * short.to(scores.of("chosen", self).dtype))


@dataclass(frozen=True)
class SLiC(Loss):
    """max(0, δ − (s⁺ − s⁻)) − β s_ref (arXiv 2305.10425); no reference model."""

    delta: float = 1.0
    """The margin asked for, nats."""
    beta: float = 0.1
    """Weight of the likelihood term on the regularising response."""

    def _gap(self, scores: Scores) -> Tensor:
        return scores.of("chosen", self) - scores.of("rejected", self)

    def value(self, scores: Scores) -> Tensor:
        hinge = torch.relu(self.delta - self._gap(scores))
        return hinge - self.beta * scores.of("regulariser", self)

    def pulls(self, scores: Scores) -> Pulls:
        gap = self._gap(scores)
        short = (gap < self.delta).to(gap.dtype)
        return Pulls(short, -short, torch.full_like(gap, self.beta))


@dataclass(frozen=True)
class PaperSLiC(Loss):
    """The paper's form: a hinge in front of DPO's residual, a factor βσ(−βh) off."""

    delta: float = 1.0
    beta: float = 0.1

    def pulls(self, scores: Scores) -> Pulls:
        gap = scores.of("chosen", self) - scores.of("rejected", self)
        doubt = torch.sigmoid(-self.beta * scores.margin(self))
        pull = torch.where(gap < self.delta, self.beta * doubt, 0.0)
        return Pulls(pull, -pull, torch.full_like(pull, self.beta))


@dataclass(frozen=True)
class SimPO(Loss):
    """−ln σ(u), u = β(s⁺/n⁺ − s⁻/n⁻) − γ (arXiv 2405.14734); no reference model."""

    beta: float = 2.0
    gamma: float = 0.5

    def _margin(self, scores: Scores) -> Tensor:
        chosen, rejected = scores.means(self)
        return self.beta * (chosen - rejected) - self.gamma

    def value(self, scores: Scores) -> Tensor:
        return -logsigmoid(self._margin(scores))

    def pulls(self, scores: Scores) -> Pulls:
        pull = self.beta * torch.sigmoid(-self._margin(scores))
        return Pulls(
            pull / scores.of("n_chosen", self), -pull / scores.of("n_rejected", self)
        )


@dataclass(frozen=True)
class SPPO(Loss):
    """(r⁺ − η/2)² + (r⁻ + η/2)² (arXiv 2405.00675, hard labels)."""

    eta: float = 10.0
    """TRL's 1/β."""

    def value(self, scores: Scores) -> Tensor:
        chosen, rejected = scores.ratios(self)
        return (chosen - self.eta / 2) ** 2 + (rejected + self.eta / 2) ** 2

    def pulls(self, scores: Scores) -> Pulls:
        chosen, rejected = scores.ratios(self)
        return Pulls(2 * (self.eta / 2 - chosen), -2 * (rejected + self.eta / 2))


@dataclass(frozen=True)
class PaperSPPO(Loss):
    """The paper's form, whose signs are turned: at r = 0 it lifts rejected."""

    eta: float = 10.0

    def pulls(self, scores: Scores) -> Pulls:
        chosen, rejected = scores.ratios(self)
        return Pulls(2 * (chosen - self.eta / 2), 2 * (rejected + self.eta / 2))


@dataclass(frozen=True)
class KTO(Loss):
    """λ_D(1 − σ(β(r⁺ − z0))) + λ_U(1 − σ(β(z0 − r⁻))) (arXiv 2402.01306).

    One desirable and one undesirable response an example; leave either out by leaving
    out its scores.
    """

    beta: float = 0.1
    z0: float = 0.0
    """The estimate of KL(π‖π_ref), a constant in the gradient; negative counts as 0."""
    desirable: float = 1.0
    """λ_D."""
    undesirable: float = 1.0
    """λ_U."""

    def _advantages(self, scores: Scores) -> tuple[Tensor | None, Tensor | None]:
        z0 = max(self.z0, 0.0)
        chosen = rejected = None
        if scores.chosen is not None:
            ratio = scores.chosen - scores.of("ref_chosen", self)
            chosen = self.beta * (ratio - z0)
        if scores.rejected is not None:
            ratio = scores.rejected - scores.of("ref_rejected", self)
            rejected = self.beta * (z0 - ratio)
        if chosen is None and rejected is None:
            raise TheoryError("KTO needs Scores.chosen or Scores.rejected, or both.")
        return chosen, rejected

    def value(self, scores: Scores) -> Tensor:
        chosen, rejected = self._advantages(scores)
        terms = []
        if chosen is not None:
            terms.append(self.desirable * torch.sigmoid(-chosen))
        if rejected is not None:
            terms.append(self.undesirable * torch.sigmoid(-rejected))
        return torch.stack(terms).sum(0)

    def pulls(self, scores: Scores) -> Pulls:
        chosen, rejected = self._advantages(scores)
        up = down = None
        if chosen is not None:
            up = self.desirable * self.beta * _bell(chosen)
        if rejected is not None:
            down = -self.undesirable * self.beta * _bell(rejected)
        return Pulls(up, down)


@dataclass(frozen=True)
class ORPO(Loss):
    """−s⁺/n⁺ − λ ln σ(o), o the difference of log-odds (arXiv 2403.07691)."""

    weight: float = 0.1
    """λ, TRL's ``beta``."""

    def _log_odds(self, scores: Scores) -> Tensor:
        chosen, rejected = scores.means(self)
        return _log_odds(chosen) - _log_odds(rejected)

    def value(self, scores: Scores) -> Tensor:
        odds = logsigmoid(self._log_odds(scores))
        return -scores.means(self)[0] - self.weight * odds

    def pulls(self, scores: Scores) -> Pulls:
        doubt = self.weight * torch.sigmoid(-self._log_odds(scores))
        chosen, rejected = scores.means(self)
        # 1 − e^x as −expm1(x): near-certain responses would lose every digit
        up = (1 - doubt / torch.expm1(chosen)) / scores.of("n_chosen", self)
        down = doubt / torch.expm1(rejected) / scores.of("n_rejected", self)
        return Pulls(up, down)


@dataclass(frozen=True)
class NPO(Loss):
    """−(2/β) ln σ(−βr⁻), for unlearning (arXiv 2404.05868)."""

    beta: float = 0.1

    def _ratio(self, scores: Scores) -> Tensor:
        return scores.of("rejected", self) - scores.of("ref_rejected", self)

    def value(self, scores: Scores) -> Tensor:
        return -2 / self.beta * logsigmoid(-self.beta * self._ratio(scores))

    def pulls(self, scores: Scores) -> Pulls:
        return Pulls(None, -2 * torch.sigmoid(self.beta * self._ratio(scores)))


LOSSES: Mapping[str, type[Loss]] = MappingProxyType(
    {
        "sft": SFT,
        "dpo": DPO,
        "cdpo": CDPO,
        "ipo": IPO,
        "ipo_paper": PaperIPO,
        "hinge": Hinge,
        "slic": SLiC,
        "slic_paper": PaperSLiC,
        "simpo": SimPO,
        "sppo": SPPO,
        "sppo_paper": PaperSPPO,
        "kto": KTO,
        "orpo": ORPO,
        "npo": NPO,
    }
)
"""Every loss by the name that options and tables use."""


def _opposite(pull: Tensor) -> Pulls:
    return Pulls(pull, -pull)


def _bell(value: Tensor) -> Tensor:
    """σ(v)σ(−v)."""
    return torch.sigmoid(value) * torch.sigmoid(-value)


def _log_odds(log_p: Tensor) -> Tensor:
    """ln p − ln(1 − p) of ln p < 0, whichever of 1 − p and p is small."""
    near = -math.log(2)
    high = torch.log(-torch.expm1(torch.clamp(log_p, min=near)))
    low = torch.log1p(-torch.exp(torch.clamp(log_p, max=near)))
    return log_p - torch.where(log_p > near, high, low)


# -------------------------------------------------------------------------- residuals


def residual(logits: Tensor, labels: Tensor, pull: Tensor) -> Tensor:
    """G = g (π − e_y) at every predicted position, 0 elsewhere.

    Args:
        logits: [B, L, V]; row l predicts ``labels[:, l]``.
        labels: [B, L] ids, ``IGNORED`` where nothing is predicted.
        pull: [B], g of each response.

    Returns:
        [B, L, V] ∂ℓ/∂z, in the dtype of the logits, detached.
    """
    kept = labels != IGNORED
    with torch.no_grad():
        away = torch.softmax(logits, dim=-1)
        away[(*kept.nonzero(as_tuple=True), labels[kept])] -= 1
        weight = torch.where(kept, pull.to(logits.dtype).unsqueeze(-1), 0.0)
        return away.mul_(weight.unsqueeze(-1))


@dataclass(frozen=True)
class Labelled:
    """A batch of one kind of response: what the model says, and what was said."""

    logits: Tensor
    """[B, L, V]; row l predicts label l."""
    labels: Tensor
    """[B, L] ids, ``IGNORED`` where nothing is predicted."""


@dataclass(frozen=True)
class Residuals:
    """G of each response, [B, L, V]; None where the loss does not look at it."""

    chosen: Tensor | None = None
    rejected: Tensor | None = None
    regulariser: Tensor | None = None


def residuals(
    loss: Loss,
    *,
    chosen: Labelled | None = None,
    rejected: Labelled | None = None,
    regulariser: Labelled | None = None,
    ref_chosen: Tensor | None = None,
    ref_rejected: Tensor | None = None,
) -> Residuals:
    """The exact ∂ℓ/∂z of a batch, of each example's loss (not of the batch's mean).

    Args:
        loss: With its hyper-parameters.
        chosen, rejected, regulariser: The responses; those the loss needs.
        ref_chosen, ref_rejected: [B] summed log-probabilities under the reference.

    Raises:
        TheoryError: a response or a reference score that the loss needs is missing.
    """
    sums: dict[str, Tensor | None] = {}
    given = {"chosen": chosen, "rejected": rejected, "regulariser": regulariser}
    for name, part in given.items():
        if part is not None:
            total, tokens = score(part.logits.detach(), part.labels)
            sums[name] = total
            if name != "regulariser":
                sums[f"n_{name}"] = tokens
    scores = Scores(**sums, ref_chosen=ref_chosen, ref_rejected=ref_rejected)
    pulls = loss.pulls(scores)
    found: dict[str, Tensor] = {}
    for name, part in given.items():
        pull: Tensor | None = getattr(pulls, name)
        if part is not None and pull is not None:
            found[name] = residual(part.logits, part.labels, pull)
    return Residuals(**found)
