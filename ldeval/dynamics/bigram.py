"""The 2-gram example: where probability goes among responses of two words.

Ten words, responses (y1, y2), π(y1, y2) = π(y1) π(y2 | y1): small enough to draw every
response at once, with two predictions to make, so that the formula for sequences can
be watched. The paper's poster shows such a map; its setup is not published, so this is
this package's own. Words 0–5 make sentences, 6–9 do not; a valid response is two of
the words 0–2, an invalid one is grammatical but says something else, and the rest is
ungrammatical.

The model is linear in features φ of the context (the start, or y1), z = Uφ, so the
empirical NTK is K = ⟨φ_o, φ_u⟩ I, exactly and throughout training. One step of
gradient descent on the positions l of a response moves every context's logits by

    z(o) ← z(o) − η Σ_l ⟨φ_o, φ_l⟩ G_l

Contexts of one class share most of their features, so a step on one is felt by others,
as it is in a language model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ldeval.dynamics.first_order import log_softmax, through_softmax
from ldeval.errors import TheoryError
from ldeval.records import BigramOutcome, BigramStudy, FloatArray

WORDS = 10
START = WORDS
"""The context before the first word; 0–9 are the contexts after each word."""
VALID, GRAMMATICAL = 3, 6
"""Words below these numbers make valid, and grammatical, responses."""
REGIONS = ("valid", "invalid", "ungrammatical")

POSITIVE = (2, 1)
"""y⁺: valid, and not yet likely."""
ON_POLICY = (0, 0)
"""y⁻ that the model says more often than anything else."""
OFF_POLICY = (3, 7)
"""y⁻ that the model would hardly say: a sentence that breaks off."""


def region(first: int, second: int) -> str:
    """Of the response (first, second)."""
    worst = max(first, second)
    if worst < VALID:
        return "valid"
    return "invalid" if worst < GRAMMATICAL else "ungrammatical"


@dataclass(frozen=True)
class Bigram:
    """A model of two words, as its logits in every context."""

    logits: FloatArray
    """[11, 10], a row a context: after each word, and at the start."""
    gram: FloatArray
    """[11, 11] ⟨φ_o, φ_u⟩."""

    def conditionals(self) -> FloatArray:
        """[11, 10] ln π(·|context)."""
        return log_softmax(self.logits)

    def log_p(self) -> FloatArray:
        """[10, 10] ln π(y1, y2)."""
        log_p = self.conditionals()
        result: FloatArray = log_p[START][:, None] + log_p[:WORDS]
        return result

    def shift(self, response: tuple[int, int], pull: float, rate: float) -> FloatArray:
        """[11, 10] change of every logit: a step on −pull·ln π(response)."""
        p = np.exp(self.conditionals())
        change = np.zeros_like(self.logits)
        for context, label in ((START, response[0]), (response[0], response[1])):
            residual = pull * (p[context] - np.eye(WORDS)[label])
            change -= rate * self.gram[:, context, None] * residual
        return change

    def predicted(self, shift: FloatArray) -> FloatArray:
        """[10, 10] Δ ln π(y1, y2) to first order: A Δz, summed over both positions."""
        change = through_softmax(self.conditionals(), shift)
        result: FloatArray = change[START][:, None] + change[:WORDS]
        return result


def pretrained(seed: int = 0) -> Bigram:
    """A model that prefers valid responses, says others at times, errs seldom."""
    rng = np.random.default_rng(seed)
    word = np.arange(WORDS)
    liking = np.where(word < VALID, 2.5, np.where(word < GRAMMATICAL, 1.0, -1.5))
    liking = liking - 0.35 * (word % VALID)  # within a class some are liked better
    logits = np.tile(liking, (WORDS + 1, 1))
    # after a word that belongs to no sentence, anything may come
    logits[GRAMMATICAL:WORDS] *= 0.3
    return Bigram(logits + 0.2 * rng.standard_normal(logits.shape), _gram())


def _gram() -> FloatArray:
    """Contexts of one class share 0.6 of their features, of two classes 0.15."""
    kind = np.array([0] * VALID + [1] * (GRAMMATICAL - VALID) + [2] * 4 + [3])
    gram = np.where(kind[:, None] == kind[None, :], 0.6, 0.15)
    np.fill_diagonal(gram, 1.0)
    return gram


def train(
    model: Bigram,
    pressures: tuple[tuple[tuple[int, int], float], ...],
    *,
    steps: int,
    rate: float,
) -> tuple[Bigram, FloatArray]:
    """Gradient descent on a few responses at once.

    Args:
        model: Left as it is.
        pressures: Responses with their pulls g: 1 pulls up, −1 pushes down.
        steps: Number of steps.
        rate: η.

    Returns:
        The trained model, and [10, 10] the first-order change of ln π, summed over
        the steps.

    Raises:
        TheoryError: a word is not in the vocabulary.
    """
    for response, _ in pressures:
        if not all(0 <= word < WORDS for word in response):
            raise TheoryError(f"response {response}: words are 0 to {WORDS - 1}.")
    total = np.zeros((WORDS, WORDS))
    for _ in range(steps):
        shift = np.zeros_like(model.logits)
        for response, pull in pressures:
            shift += model.shift(response, pull, rate)
        total += model.predicted(shift)
        model = Bigram(model.logits + shift, model.gram)
    return model, total


def study(*, steps: int = 8, rate: float = 0.3, seed: int = 0) -> BigramStudy:
    """Positive, negative and both, with y⁻ on-policy and off-policy.

    Raises:
        TheoryError: there is no step, or no rate.
    """
    if steps < 1 or not 0 < rate < math.inf:
        raise TheoryError(
            f"{steps} steps at rate {rate:g}: at least one step, at a rate above 0."
        )
    model = pretrained(seed)
    outcomes = [_outcome(model, "positive alone", POSITIVE, None, steps, rate)]
    for pushed, policy in ((ON_POLICY, "on-policy"), (OFF_POLICY, "off-policy")):
        name = f"negative, {policy}"
        outcomes.append(_outcome(model, name, None, pushed, steps, rate))
        outcomes.append(
            _outcome(model, f"both, {policy}", POSITIVE, pushed, steps, rate)
        )
    return BigramStudy(
        log_p=model.log_p(),
        region=tuple(
            tuple(region(first, second) for second in range(WORDS))
            for first in range(WORDS)
        ),
        steps=steps,
        rate=rate,
        outcomes=tuple(outcomes),
    )


def _outcome(
    model: Bigram,
    name: str,
    pulled: tuple[int, int] | None,
    pushed: tuple[int, int] | None,
    steps: int,
    rate: float,
) -> BigramOutcome:
    pressures = []
    if pulled is not None:
        pressures.append((pulled, 1.0))
    if pushed is not None:
        pressures.append((pushed, -1.0))
    trained, predicted = train(model, tuple(pressures), steps=steps, rate=rate)
    before, after = np.exp(model.log_p()), np.exp(trained.log_p())
    names = np.array([[region(i, j) for j in range(WORDS)] for i in range(WORDS)])
    inside = {kind: names == kind for kind in REGIONS}
    rest = before.copy()
    if pushed is not None:
        rest[pushed] = -1
    top = _cell(rest.argmax())
    return BigramOutcome(
        name=name,
        pulled=pulled,
        pushed=pushed,
        log_p=trained.log_p(),
        predicted=predicted,
        regions={
            kind: (float(before[cells].sum()), float(after[cells].sum()))
            for kind, cells in inside.items()
        },
        gainer=_cell((after - before).argmax()),
        entropy=(_entropy(model.log_p()), _entropy(trained.log_p())),
        top=(float(before[top]), float(after[top])),
    )


def _entropy(log_p: FloatArray) -> float:
    """Nats; a response whose probability rounds to zero adds none."""
    return float(-(np.exp(log_p) * log_p).sum())


def _cell(index: np.intp) -> tuple[int, int]:
    """The response at a place of a flattened map."""
    first, second = divmod(int(index), WORDS)
    return first, second
