"""The known-answer check: after weights were swapped in a live engine, do its scores
agree with an independent computation of the checkpoint?

The independent computation is a plain transformers forward pass in float32 on the CPU,
one unpadded sequence at a time, from the checkpoint's own files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ldeval.checkpoints import base_of, tensor_shapes
from ldeval.errors import CheckpointError, KnownAnswerError
from ldeval.records import Checkpoint, Probe, Response, Span
from ldeval.scoring.backends import backend_of
from ldeval.scoring.batch import ScoreRequest
from ldeval.scoring.score import (
    encode_probes,
    score_probes,
    score_requests,
    without_foreign_initial,
)

RESPONSES = 3
"""Responses that are compared."""

TOLERANCES = {"float32": 1e-3}
"""Nats per token that a dtype may differ by; a lower precision, ``LOW_PRECISION``."""
LOW_PRECISION = 5e-2


class KnownAnswerCheck:
    """Compares the shortest responses of a probe set, checkpoint after checkpoint."""

    def __init__(
        self,
        probes: Sequence[Probe],
        *,
        span: Span,
        apply_chat_template: bool,
        system_instruction: str | None,
        origin_weights: str | None,
        base: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self._probes = probes
        self._base = base
        self._trusted = trust_remote_code
        self._origin = origin_weights
        self._encoding: dict[str, Any] = {
            "span": span,
            "apply_chat_template": apply_chat_template,
            "system_instruction": system_instruction,
        }
        self._before: tuple[str, list[float]] | None = None

    def passed(self, lm: Any, checkpoint: Checkpoint, digest: str) -> str:
        """Check one checkpoint.

        Args:
            lm: the model that should compute with its weights.
            digest: its weight hash.

        Returns:
            A note on what was found.

        Raises:
            KnownAnswerError: when the scores differ by more than the dtype explains, or
                are those of the checkpoint before.
        """
        sample = self._sample(lm)
        if not sample:
            return "no known-answer check: no response fits the model's length"
        lacking = lacking_memory(checkpoint, self._base)
        if lacking is not None:
            return f"no known-answer check: {lacking}"
        known = plain_logprob_sums(
            checkpoint,
            [(list(r.ids), r.start, r.stop) for r in sample],
            self._base,
            trust_remote_code=self._trusted,
        )
        keys = [(request.probe_id, request.kind) for request in sample]
        asked = {request.probe_id for request in sample}
        scored = score_probes(
            lm,
            [probe for probe in self._probes if probe.probe_id in asked],
            origin_weights=self._origin,
            wanted=keys,
            progress=False,
            **self._encoding,
        )
        sums = [scored.scores[key].logprob_sum for key in keys]
        before, self._before = self._before, (digest, sums)
        if before is not None and before[0] != digest and before[1] == sums:
            # a low precision allows differences as large as a few steps of training
            raise KnownAnswerError(
                "known-answer check: scores are those of the checkpoint before, to the "
                "last digit, though the weights differ"
            )
        lengths = [request.n_tokens for request in sample]
        worst = compare_known(known, sums, lengths, scored.backend.dtype)
        return (
            f"known-answer check: {worst:.2g} nats per token at worst over "
            f"{len(sample)} responses"
        )

    def _sample(self, lm: Any) -> list[ScoreRequest]:
        """The shortest responses that will be scored."""
        tokenizer = backend_of(lm).tokenizer_hash
        probes, _ = without_foreign_initial(self._probes, tokenizer, self._origin)
        shortest = sorted(probes, key=lambda p: sum(map(_length, p.responses.values())))
        encoded = encode_probes(lm, shortest[: 4 * RESPONSES], **self._encoding)
        requests = sorted(score_requests(encoded, None, {}), key=lambda r: len(r.ids))
        return requests[:RESPONSES]


def _length(response: Response) -> int:
    return len(response.text)


def lacking_memory(checkpoint: Checkpoint, base: str | None) -> str | None:
    """Why a float32 copy of a checkpoint cannot be held in memory; None if it can."""
    import psutil

    adapter = checkpoint.layout == "adapter"
    folder = base_of(checkpoint, base) if adapter else checkpoint.folder
    wanted = 4 * sum(math.prod(shape) for shape in tensor_shapes(folder).values())
    available = psutil.virtual_memory().available
    if wanted < available:
        return None
    return (
        f"a float32 copy of the model takes {wanted / 2**30:.1f} GiB, "
        f"{available / 2**30:.1f} are free"
    )


def plain_logprob_sums(
    checkpoint: Checkpoint,
    sequences: list[tuple[list[int], int, int]],
    base: str | None = None,
    *,
    trust_remote_code: bool = False,
) -> list[float]:
    """Σ ln p of spans by one plain transformers forward pass each, in float32 on CPU.

    The independent computation behind the known-answer check.

    Args:
        checkpoint: full weights, or a PEFT adapter.
        sequences: (token ids, first scored, one past the last).
        base: of an adapter that does not name its own.

    Returns:
        One sum a sequence, nats.

    Raises:
        CheckpointError: when transformers or PEFT cannot load it.
    """
    import torch

    model = _plain_model(checkpoint, base, trust_remote_code)
    model.eval()
    sums = []
    for ids, start, stop in sequences:
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0].float()
        logprobs = torch.log_softmax(logits[start - 1 : stop - 1], dim=-1)
        labels = torch.tensor(ids[start:stop])
        sums.append(float(logprobs.gather(1, labels[:, None]).double().sum()))
    return sums


def _plain_model(checkpoint: Checkpoint, base: str | None, trusted: bool) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    adapter = checkpoint.layout == "adapter"
    folder = base_of(checkpoint, base) if adapter else checkpoint.folder
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=trusted,
        )
        if not adapter:
            return model
        from peft import PeftModel

        return PeftModel.from_pretrained(model, checkpoint.folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{checkpoint.path}: cannot be loaded ({error})"
        ) from error


def compare_known(
    known: list[float], scored: list[float], tokens: list[int], dtype: str
) -> float:
    """The worst difference of two sets of sums, in nats per token.

    Raises:
        KnownAnswerError: when it exceeds what the dtype explains.
    """
    worst = max(abs(a - b) / n for a, b, n in zip(known, scored, tokens, strict=True))
    allowed = TOLERANCES.get(dtype, LOW_PRECISION)
    if not worst <= allowed:
        raise KnownAnswerError(
            f"known-answer check: {worst:.2g} nats per token from an independent "
            f"computation, {allowed:g} are allowed in {dtype}"
        )
    return worst
