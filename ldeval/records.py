"""Every type that is stored or crosses rooms, and the one table of response kinds.

They stand apart from the code that makes and reads them so that scoring and analysis
meet only here and on disk. Everything is frozen; log-probabilities are natural
(nats, temperature 1); a change Δ is always *after − before*. What a backend could not
give is ``None`` (absent), never zero; what is undefined is NaN with a reason.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Region = Literal["valid", "off-topic", "ungrammatical"]
Span = Literal["trl", "no_end", "lm_eval"]
Split = Literal["trained", "heldout"]
Message = Mapping[str, str]
FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]

SCHEMA_VERSION = 1
"""Version of the stored tables and of the manifest; readers refuse any other."""

TOP_K = 20
"""How many of the most probable tokens are stored at each response position."""


@dataclass(frozen=True)
class KindInfo:
    """One response kind: its name, its place in the paper, and how it is made."""

    name: str
    """ldeval's spelling, used in every file, task name and table."""
    symbol: str
    """The symbol of the paper (arXiv 2407.10490, section 4)."""
    reference_field: str
    """The field in the paper authors' probe files."""
    region: Region
    """The paper's three-part picture of the response space."""
    summary: str
    """What the response is, in a few words."""
    rephrase_of: str | None = None
    """The kind that this one rephrases, for the four rephrases."""


KINDS: tuple[KindInfo, ...] = (
    KindInfo("chosen", "y+", "chosen", "valid", "the preferred response"),
    KindInfo(
        "chosen_semantic",
        "y_gpts+",
        "chosen_gptsemantic",
        "valid",
        "chosen in other words",
        "chosen",
    ),
    KindInfo(
        "chosen_format",
        "y_gptf+",
        "chosen_gptformat",
        "valid",
        "chosen's form, another meaning",
        "chosen",
    ),
    KindInfo(
        "initial",
        "y_init",
        "chosen_initial",
        "valid",
        "a sample of the model before training",
    ),
    KindInfo("rejected", "y-", "rejected", "valid", "the dispreferred response"),
    KindInfo(
        "rejected_semantic",
        "y_gpts-",
        "reject_gptsemantic",
        "valid",
        "rejected in other words",
        "rejected",
    ),
    KindInfo(
        "rejected_format",
        "y_gptf-",
        "reject_gptformat",
        "valid",
        "rejected's form, another meaning",
        "rejected",
    ),
    KindInfo(
        "irrelevant_train",
        "y_j≠u+",
        "irr_train",
        "off-topic",
        "chosen of another trained prompt",
    ),
    KindInfo(
        "irrelevant_test",
        "y_test+",
        "irr_test",
        "off-topic",
        "chosen of an unseen prompt",
    ),
    KindInfo(
        "random_sentence", "y_hum", "irr_hum", "off-topic", "an unconnected sentence"
    ),
    KindInfo(
        "permuted",
        "y_urnd+",
        "random_permute",
        "ungrammatical",
        "the words of chosen, shuffled",
    ),
    KindInfo(
        "random_words",
        "y_rnd",
        "random_nonhum",
        "ungrammatical",
        "the words of irrelevant_test, shuffled",
    ),
)
"""The twelve stored kinds, in the order in which every table lists them."""

KIND_NAMES: tuple[str, ...] = tuple(kind.name for kind in KINDS)
KIND_BY_NAME: Mapping[str, KindInfo] = {kind.name: kind for kind in KINDS}
REFERENCE_FIELDS: Mapping[str, str] = {k.reference_field: k.name for k in KINDS}
REGIONS: tuple[Region, ...] = ("valid", "off-topic", "ungrammatical")

KIND_GROUPS: Mapping[str, tuple[str, ...]] = {
    "ldyn_rephrased": tuple(k.name for k in KINDS if k.rephrase_of is not None),
    "ldyn_irrelevant": ("irrelevant_train", "irrelevant_test", "random_sentence"),
    "ldyn_random": ("permuted", "random_words"),
}
"""The harness groups below ``ldyn_probes``, and the kinds in each."""


def task_name(kind: str) -> str:
    """The lm_eval task of a kind."""
    return f"ldyn_{kind}"


def split_name(trained: bool) -> Split:
    """The split a probe belongs to."""
    return "trained" if trained else "heldout"


# --------------------------------------------------------------------------- probes


@dataclass(frozen=True)
class Response:
    """One response of a probe."""

    kind: str
    """One of ``KIND_NAMES``."""
    text: str
    """The response as text; never empty."""
    source: str | None = None
    """Where the text came from: the id of the probe whose text it is or is made of,
    or a free description (``written``, ``sampled``)."""


@dataclass(frozen=True)
class Probe:
    """One prompt with its chosen response and controlled variations of it."""

    probe_id: str
    """Unique in its set."""
    prompt: str | tuple[Message, ...]
    """Text, or chat messages (``role``, ``content``)."""
    responses: Mapping[str, Response]
    """By kind, in the order of ``KINDS``; ``chosen`` is always there."""
    trained: bool
    """Whether the model is trained on this prompt in the run that is probed."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Anything else the user keeps; ``sources`` and ``initial_model`` are read."""

    @property
    def split(self) -> Split:
        """``trained`` or ``heldout``."""
        return split_name(self.trained)


# ---------------------------------------------------------------------- checkpoints


@dataclass(frozen=True)
class Checkpoint:
    """One saved state of a model in a training run."""

    path: str
    """Folder of the weights, or of the adapter."""
    step: int
    """Optimizer step; 0 is the model before training."""
    layout: Literal["full", "adapter"] = "full"
    """Full weights, or a LoRA adapter upon ``base``."""
    base: str | None = None
    """Folder of the base weights, for an adapter."""


# ---------------------------------------------------------------------------- scores


@dataclass(frozen=True)
class TokenScores:
    """Scores of consecutive response tokens, each given everything before it.

    For one response ``n`` is its token count; in a :class:`ScoreTable` the responses
    stand one after the other. ``k`` is ``TOP_K`` or the vocabulary if smaller.
    """

    token_ids: IntArray
    """[n] int32, the response's tokens."""
    logprobs: FloatArray
    """[n] float32, ln p of each token, nats."""
    argmax_ids: IntArray | None = None
    """[n] int32, the most probable token; the lowest id on a tie."""
    argmax_logprobs: FloatArray | None = None
    """[n] float32, its ln p, nats."""
    ranks: IntArray | None = None
    """[n] int32, 1 + how many tokens are more probable than this one."""
    sq_norms: FloatArray | None = None
    """[n] float32, ‖π‖₂² over the vocabulary."""
    entropies: FloatArray | None = None
    """[n] float32, −Σ p ln p, nats."""
    mean_logprobs: FloatArray | None = None
    """[n] float32, the mean of ln p over the vocabulary, nats."""
    top_ids: IntArray | None = None
    """[n, k] int32, the k most probable tokens, most probable first."""
    top_logprobs: FloatArray | None = None
    """[n, k] float32, their ln p, nats."""
    ref_ids: IntArray | None = None
    """[n, k] int32, ``top_ids`` of the run's first checkpoint at this position."""
    ref_logprobs: FloatArray | None = None
    """[n, k] float32, ln p of ``ref_ids`` here, nats; NaN where the backend could
    not give it."""

    def __post_init__(self) -> None:
        n = len(self.token_ids)
        for item in dataclasses.fields(self):
            column = getattr(self, item.name)
            if column is not None and len(column) != n:
                raise ValueError(
                    f"TokenScores.{item.name} holds {len(column)} rows for {n} tokens"
                )

    def __len__(self) -> int:
        return len(self.token_ids)

    @classmethod
    def concatenate(cls, parts: Sequence[TokenScores]) -> TokenScores:
        """Join in order. A column that any non-empty part lacks is absent from the
        whole, since half a column would be read as a whole one."""
        filled = [part for part in parts if len(part)]
        if not filled:
            return cls(np.zeros(0, np.int32), np.zeros(0, np.float32))
        columns: dict[str, Any] = {}
        for item in dataclasses.fields(cls):
            values = [getattr(part, item.name) for part in filled]
            columns[item.name] = (
                None if any(v is None for v in values) else np.concatenate(values)
            )
        return cls(**columns)

    def slice(self, start: int, stop: int) -> TokenScores:
        """Tokens ``start`` to ``stop`` (exclusive), as views."""
        columns: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            column = getattr(self, item.name)
            columns[item.name] = None if column is None else column[start:stop]
        return TokenScores(**columns)


@dataclass(frozen=True)
class Excluded:
    """A response that was not scored, and why: counted and listed, never dropped."""

    probe_id: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """What a stored table is: enough to tell whether two may be compared."""

    run: str
    """Name of the run in the store."""
    step: int
    """Optimizer step of the checkpoint."""
    checkpoint: str
    """The checkpoint as it was given: a folder or a model name."""
    weights_hash: str
    """SHA-256 over the names and contents of the weight files."""
    probe_set_hash: str
    """Content hash of the probe set."""
    tokenizer_hash: str
    """Hash of the tokenizer's vocabulary and rules."""
    template_hash: str | None
    """Hash of the chat template, or None where prompts were scored as plain text."""
    span: Span
    """Which tokens count as the response: ``trl``, ``no_end`` or ``lm_eval``."""
    backend: str
    """``hf``, ``vllm`` or the class name of another harness model."""
    tier: Literal["native", "tokens", "text"]
    """How the scores were had: per token, per response on our token ids, or by the
    harness's plain loglikelihood."""
    dtype: str
    """Floating-point type of the computation."""
    vocab_size: int | None
    """Width of the logits."""
    versions: Mapping[str, str]
    """Versions of the packages that computed the scores."""
    n_probes: int
    n_responses: int
    n_tokens: int
    excluded: tuple[Excluded, ...] = ()
    """Responses that were not scored."""
    split_exceptions: tuple[str, ...] = ()
    """Probes in which some response merged tokens across the prompt's end, so that the
    common context is shorter than the prompt."""
    reference_step: int | None = None
    """The step whose top tokens fill ``ref_ids``: the run's first checkpoint."""
    stored_dtype: str | None = None
    """Floating-point type in which the checkpoint's weights are stored."""
    seconds: float = math.nan
    """Wall time of scoring."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """How the scoring was asked for: model type, span, template, origin of ``initial``.
    A sweep goes on only where it asks for the same."""
    notes: tuple[str, ...] = ()
    """What a reader of the numbers should know (template unused, engine restarted)."""
    schema_version: int = SCHEMA_VERSION
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Size and SHA-256 of each file beside the manifest."""


@dataclass(frozen=True)
class ScoreTable:
    """All scores of one checkpoint on one probe set, in probe order."""

    manifest: Manifest
    probe_ids: npt.NDArray[np.str_]
    """[R] the probe of each response."""
    kinds: npt.NDArray[np.str_]
    """[R] its kind."""
    trained: npt.NDArray[np.bool_]
    """[R] whether its probe is trained on."""
    text_hashes: npt.NDArray[np.str_]
    """[R] hash of the response text: equal texts share a cluster in the statistics."""
    offsets: IntArray
    """[R + 1] int64, response ``i`` owns tokens ``offsets[i]`` to ``offsets[i+1]``."""
    tokens: TokenScores
    """[T] every response token, responses one after the other."""
    logprob_sums: FloatArray
    """[R] float64, Σ ln p over the response, nats."""

    def __post_init__(self) -> None:
        rows = len(self.probe_ids)
        for name in ("kinds", "trained", "text_hashes", "logprob_sums"):
            if len(getattr(self, name)) != rows:
                raise ValueError(
                    f"ScoreTable.{name} holds {len(getattr(self, name))} rows, "
                    f"probe_ids holds {rows}"
                )
        if len(self.offsets) != rows + 1 or self.offsets[-1] != len(self.tokens):
            raise ValueError(
                f"ScoreTable.offsets has {len(self.offsets)} entries and ends at "
                f"{self.offsets[-1]}; there are {rows} responses and "
                f"{len(self.tokens)} tokens"
            )

    def __len__(self) -> int:
        return len(self.probe_ids)

    @property
    def n_tokens(self) -> IntArray:
        """[R] int64, tokens in each response."""
        return np.diff(self.offsets)

    def sums(self, column: FloatArray) -> FloatArray:
        """Sum a token column over each response.

        Args:
            column: [T] one value a token.

        Returns:
            [R] float64; NaN for a response of which a token is NaN.
        """
        # differences of a running sum, not reduceat, which mishandles responses
        # without tokens
        total = np.concatenate([[0.0], np.cumsum(column, dtype=np.float64)])
        sums: FloatArray = total[self.offsets[1:]] - total[self.offsets[:-1]]
        if not np.isfinite(total[-1]):
            ends = zip(self.offsets[:-1], self.offsets[1:], strict=True)
            sums = np.array([np.sum(column[a:b], dtype=np.float64) for a, b in ends])
        return sums

    def row(self, index: int) -> TokenScores:
        """The token scores of response ``index``."""
        return self.tokens.slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def to_pandas(self) -> Any:
        """One row a response: probe_id, kind, trained, n_tokens, logprob_sum (nats)."""
        import pandas as pd

        return pd.DataFrame(
            {
                "probe_id": self.probe_ids,
                "kind": self.kinds,
                "trained": self.trained,
                "n_tokens": self.n_tokens,
                "logprob_sum": self.logprob_sums,
            }
        )

    def index(self) -> dict[tuple[str, str], int]:
        """Row of each (probe_id, kind)."""
        pairs = zip(self.probe_ids.tolist(), self.kinds.tolist(), strict=True)
        return {pair: i for i, pair in enumerate(pairs)}


# ------------------------------------------------------------------------ comparison

State = Literal["up", "down", "flat", "unclear"]
Truth = Literal["holds", "does_not_hold", "undecided"]


@dataclass(frozen=True)
class Estimate:
    """A number with its uncertainty; NaN, with the reason, where it is undefined."""

    value: float
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    se: float
    """Standard error over clusters."""
    level: float
    """Confidence level of the interval, e.g. 0.95."""
    n: int
    """Responses (or positions, where the unit is per token of a subset) used."""
    clusters: int
    """Independent units behind the standard error."""
    unit: str
    reason: str | None = None
    """Why the value or the interval is undefined, when it is."""

    @property
    def half_width(self) -> float:
        """The wider half of the interval: conservative for an asymmetric one."""
        return max(self.high - self.value, self.value - self.low)

    @classmethod
    def undefined(
        cls, reason: str, *, unit: str, level: float, n: int = 0, clusters: int = 0
    ) -> Estimate:
        """NaN throughout, with the reason."""
        nan = math.nan
        return cls(nan, nan, nan, nan, level, n, clusters, unit, reason)


@dataclass(frozen=True)
class KindChange:
    """How one kind changed between two checkpoints, in one split."""

    kind: str
    """One of ``KIND_NAMES``, or ``argmax:chosen`` / ``argmax:rejected``: the most
    probable token at each position along that kind, which may change identity."""
    split: Split
    n: int
    """Responses compared."""
    mean_tokens: float
    """Mean tokens in a response."""
    before_sum: float
    """Mean Σ ln p of a response before, nats."""
    after_sum: float
    """Mean Σ ln p of a response after, nats."""
    delta_sum: Estimate
    """Mean Δsum, nats/response."""
    delta_tok: Estimate
    """Δtok = Σ Δsum / Σ n, nats/token."""
    share_fell: float
    """Share of prompts whose Δsum is negative."""
    first: Estimate
    """Mean δ of the first response token, nats/token."""
    body: Estimate
    """Δtok without the first and the end token, nats/token."""
    end: Estimate
    """Mean δ of the last response token, nats/token."""


@dataclass(frozen=True)
class Margin:
    """Chosen − rejected, paired by prompt, in one split."""

    split: Split
    before_sum: float
    """Mean s(chosen) − s(rejected) before, nats."""
    after_sum: float
    delta_sum: Estimate
    """Mean change of the summed margin, nats/response."""
    delta_tok: Estimate
    """Δtok(chosen) − Δtok(rejected), nats/token."""


@dataclass(frozen=True)
class Flow:
    """Where probability mass went at the off-label positions along one kind.

    Off-label: positions where the reference checkpoint's argmax is not the label.
    Bins are fixed by the reference checkpoint: the label, its argmax, the rest of its
    top-k, and the tail. They sum to zero.
    """

    kind: str
    split: Split
    positions: int
    """Off-label positions used."""
    label: Estimate
    """Mean Δp of the label, probability/token."""
    argmax: Estimate
    """Mean Δp of the reference argmax."""
    top: Estimate
    """Mean Δp of the rest of the reference top-k."""
    tail: Estimate
    """Mean Δp of everything else."""
    exact_share: float
    """Share of positions at which every bin is known exactly; elsewhere unknown ids
    were bounded, and the bounds are inside the intervals."""
    risen_share: float
    """Share of positions whose later argmax lies outside the bins."""


@dataclass(frozen=True)
class InfluenceCell:
    """Slope of one kind's Δtok on another's over prompts: how they move together."""

    source: str
    """The explaining kind (x)."""
    target: str
    """The kind explained (y)."""
    split: Split
    slope: Estimate
    """d Δtok(target) / d Δtok(source), dimensionless."""
    correlation: float
    """Spearman rank correlation."""


@dataclass(frozen=True)
class PairComparison:
    """One pair of checkpoints: what changed from ``before`` to ``after``."""

    before: int
    """Step of the earlier checkpoint."""
    after: int
    """Step of the later one."""
    changes: tuple[KindChange, ...]
    """One a kind and split, kinds in the order of ``KINDS``, argmax rows last."""
    margins: tuple[Margin, ...]
    """One a split in which chosen and rejected were both scored."""
    flows: tuple[Flow, ...]
    """Along chosen and rejected, one a split, where the top-k was stored."""
    influence: tuple[InfluenceCell, ...]
    """Kind × kind, trained and held-out apart."""
    only_before: tuple[tuple[str, str], ...]
    """(probe_id, kind) scored before but not after; excluded from every statistic."""
    only_after: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class CurvePoint:
    """The level of one kind at one checkpoint.

    The intervals are those of the change since the first checkpoint, paired by prompt
    and laid around the level, so they have no width at the first.
    """

    step: int
    kind: str
    split: Split
    mean_sum: Estimate
    """Mean Σ ln p of a response, nats."""
    per_token: Estimate
    """Σ ln p / Σ n, nats/token."""


@dataclass(frozen=True)
class Conjunct:
    """One condition of a verdict, with what it rests on."""

    name: str
    """As in the decision table: ``S1``, ``S2`` …"""
    statement: str
    """What it asks."""
    truth: Truth
    evidence: Mapping[str, Estimate]
    """The estimates behind it, by name, at the 99% level."""
    reason: str | None = None
    """Why it is undecided, or false for a reason that no number shows."""


@dataclass(frozen=True)
class Verdict:
    """A named reading of a run, for one split."""

    name: str
    state: Truth
    split: Split
    conjuncts: tuple[Conjunct, ...]
    reason: str | None = None
    """Why it is undecided, in words, when it is."""
    details: Mapping[str, str] = field(default_factory=dict)
    """Further findings, e.g. ``destination`` of likelihood displacement."""


@dataclass(frozen=True)
class Comparison:
    """The typed account of a run; no text, no rounding."""

    run: str
    steps: tuple[int, ...]
    kinds: tuple[str, ...]
    """Kinds scored at every step, in the order of ``KINDS``."""
    curves: tuple[CurvePoint, ...]
    pairs: tuple[PairComparison, ...]
    """Successive checkpoints."""
    overall: PairComparison
    """First to last."""
    verdicts: tuple[Verdict, ...]
    noise_floor: float
    """m: changes per token inside ±m are not called changes, nats/token."""
    persistence_assessed: bool
    """Whether there were at least 8 checkpoints, so that the end value is a mean of
    the last few and its spread enters the intervals."""
    excluded: tuple[Excluded, ...]
    """Responses excluded at any step."""
    notes: tuple[str, ...]
    manifests: tuple[Manifest, ...]
    """One a step."""

    def to_pandas(self) -> Any:
        """The change per kind of every pair and of first → last, one row each; an
        estimate's ends are in the columns ``…_low`` and ``…_high``."""
        import pandas as pd

        rows = []
        for pair in (*self.pairs, self.overall):
            for change in pair.changes:
                row: dict[str, Any] = {"before": pair.before, "after": pair.after}
                for item in dataclasses.fields(change):
                    value = getattr(change, item.name)
                    if isinstance(value, Estimate):
                        row[item.name] = value.value
                        row[f"{item.name}_low"] = value.low
                        row[f"{item.name}_high"] = value.high
                    else:
                        row[item.name] = value
                rows.append(row)
        return pd.DataFrame(rows)
