"""Scores of tokens and responses, and the manifest that describes a table of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

Span = Literal["trl", "no_end", "lm_eval"]
FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]

SCHEMA_VERSION = 1
"""Version of the stored tables and of the manifest; readers refuse any other."""

TOP_K = 20
"""How many of the most probable tokens are stored at each response position."""

CHUNK_TOKENS = 65_536
"""Tokens in a part of a table: what is worked on at once."""


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

    def without(self, *names: str) -> TokenScores:
        """The same without some columns."""
        columns: dict[str, Any] = dict.fromkeys(names)
        return dataclasses.replace(self, **columns)

    def take(self, positions: IntArray) -> TokenScores:
        """The tokens at ``positions`` [n], as copies."""
        columns: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            column = getattr(self, item.name)
            columns[item.name] = None if column is None else column[positions]
        return TokenScores(**columns)

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
class NoiseFloor:
    """How far two scorings of one checkpoint lay apart, in another order and other
    batches: no change inside it is a change."""

    backend: str
    dtype: str
    responses: int
    """How many were scored twice."""
    per_response: float
    """99th percentile over them of |Δ|, nats/token."""
    kind_means: float
    """The largest |Δ| of a kind's mean, nats/token."""
    probability: float | None = None
    """The largest |Δ| of a kind's mean token probability; None without token scores."""
    float32: float | None = None
    """|Δ| of the mean from a plain float32 forward pass, nats/token, in low precision;
    None where it was not measured."""

    @property
    def nats_per_token(self) -> float:
        """The floor under a kind's mean. In low precision two scorings can agree by
        chance, so that the distance from float32 counts as well."""
        return max(self.kind_means, self.float32 or 0.0)


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
    context_hash: str | None = None
    """Hash over the token ids that responses were scored after; None where the tier
    takes text."""
    objective: str | None = None
    """The training objective as declared (``sft``, ``dpo`` …); None: not declared."""
    noise_floor: NoiseFloor | None = None
    """Measured on one checkpoint of a run, for each backend and dtype in it."""
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

    def part(self, start: int, stop: int) -> ScoreTable:
        """Responses ``start`` to ``stop`` (exclusive), as views."""
        first, last = int(self.offsets[start]), int(self.offsets[stop])
        return ScoreTable(
            manifest=self.manifest,
            probe_ids=self.probe_ids[start:stop],
            kinds=self.kinds[start:stop],
            trained=self.trained[start:stop],
            text_hashes=self.text_hashes[start:stop],
            offsets=self.offsets[start : stop + 1] - first,
            tokens=self.tokens.slice(first, last),
            logprob_sums=self.logprob_sums[start:stop],
        )

    def chunks(self) -> Iterator[ScoreTable]:
        """The table in parts of about ``CHUNK_TOKENS`` tokens, whole responses each."""
        start = 0
        while start < len(self):
            limit = self.offsets[start] + CHUNK_TOKENS
            stop = int(np.searchsorted(self.offsets, limit, side="right")) - 1
            stop = max(stop, start + 1)
            yield self.part(start, stop)
            start = stop

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


class ScoreSource(Protocol):
    """All scores of one checkpoint, in parts: a table in memory, or one on disk."""

    @property
    def manifest(self) -> Manifest:
        """What the scores are."""
        ...

    def chunks(self) -> Iterator[ScoreTable]:
        """Parts of whole responses, in probe order."""
        ...
