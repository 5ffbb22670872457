"""The rates of a plan, measured on the model at hand.

Measuring opens the model as a sweep opens it and scores the first probes with it. What
starts only once (libraries, an engine) and the first probe, which settles the layout,
are not timed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldeval.checkpoints import base_of, weight_files, weights_hash
from ldeval.errors import UnsupportedBackendError
from ldeval.plan.fleet import spread
from ldeval.plan.rates import Counted, layout_of, of_a_device, rates_of
from ldeval.plan.shapes import flops_of
from ldeval.plan.tables import table_rates
from ldeval.plan.work import work_of
from ldeval.probes import ProbeSet
from ldeval.records import (
    Checkpoint,
    ModelShape,
    PlanLayout,
    PlanRates,
    Probe,
    Rate,
    ScoreTable,
)
from ldeval.scoring.encode import EncodedProbe, TextCodec, tokenizer_codec
from ldeval.scoring.models import open_config, open_tokenizer, trusts_code
from ldeval.scoring.score import (
    ResponseScore,
    Scored,
    encode_probes,
    score_probes,
    score_requests,
    without_foreign_initial,
)
from ldeval.scoring.sources import model_source
from ldeval.scoring.tables import as_reference, build_table

if TYPE_CHECKING:  # heavy to import: only for the types
    from ldeval.sweep import SweepSettings

SECONDS = 10.0
"""What the timed scoring is meant to take."""


@dataclass(frozen=True)
class Calibration:
    """Everything that a plan takes from the machine."""

    rates: PlanRates
    counted: Counted
    layout: PlanLayout
    device: str
    """``cpu`` or an accelerator's type."""
    timed: ModelShape | None
    """The model that the rate of scoring is of; None where that is given."""


# ----------------------------------------------------------------------------- tokens


def count_probes(
    probes: ProbeSet,
    codec: TextCodec,
    settings: SweepSettings,
    origin: str | None,
    lm: Any = None,
) -> Counted:
    """Encode probes as scoring does, and take the time.

    Args:
        origin: weight hash of the model that ``initial`` responses must come from.
        lm: the open model, where there is one.
    """
    fitting, foreign = without_foreign_initial(
        probes.probes, codec.tokenizer_hash, origin
    )
    started = time.process_time()
    encoded = encode_probes(lm, fitting, codec=codec, **_encoding(settings))
    seconds = (time.process_time() - started) / max(1, len(fitting))
    where = f"{len(fitting)} probes"
    return Counted(encoded, len(foreign), Rate(seconds, "measured", where))


def _encoding(settings: SweepSettings) -> dict[str, Any]:
    return {
        "span": settings.span,
        "apply_chat_template": settings.apply_chat_template,
        "system_instruction": settings.system_instruction,
    }


def codec_of_folder(folder: str | Path, settings: SweepSettings) -> TextCodec:
    """The tokenizer and the length limit of a model that is not opened, as the
    harness's models would take them from its folder and ``--model_args``.

    Raises:
        CheckpointError: when transformers cannot load either.
    """
    from lm_eval.models.utils import has_bos_prefix, resolve_max_length

    arguments = settings.model_args
    trusted = trusts_code(arguments)
    name = str(arguments.get("tokenizer", folder))
    tokenizer = open_tokenizer(name, trust_remote_code=trusted)
    limit = arguments.get("max_length") or arguments.get("max_model_len")
    if limit is None:
        config = open_config(folder, trust_remote_code=trusted)
        limit = resolve_max_length(config, tokenizer, default=2048)
    bos = arguments.get("add_bos_token")

    def encode(text: str) -> list[int]:
        options = {} if bos is None else {"add_special_tokens": bool(bos)}
        if has_bos_prefix(text, tokenizer.bos_token or tokenizer.eos_token):
            options["add_special_tokens"] = False
        return [int(token) for token in tokenizer.encode(text, **options)]

    options = arguments.get("chat_template_args") or {}
    return tokenizer_codec(
        tokenizer, encode=encode, max_length=int(limit), template_options=options
    )


# --------------------------------------------------------------------------- measured


def measure(
    settings: SweepSettings,
    checkpoint: Checkpoint,
    shape: ModelShape,
    threads: int | None = None,
) -> Calibration:
    """Open a model and score the first probes with it, for some seconds.

    Args:
        shape: the model's.
        threads: that an engine will have on a CPU; None: all that there are.

    Raises:
        UnsupportedBackendError: a model that takes text only, whose tokens cannot be
            counted.
        CheckpointError, ScoringError: as a sweep would.
    """
    if settings.model != "vllm":
        with computing_with(threads):
            return _measured(settings, checkpoint, shape)
    # an engine is a process of its own, that takes all threads
    found = _measured(settings, checkpoint, shape)
    if threads is None:
        return found
    scoring = of_some_threads(found.rates.scoring, threads)
    return replace(found, rates=replace(found.rates, scoring=scoring))


@contextlib.contextmanager
def computing_with(threads: int | None) -> Iterator[None]:
    """Compute with so many threads, or as many as there are, if these are fewer."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(min(before, threads or before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def of_some_threads(scoring: Rate, threads: int) -> Rate:
    """The FLOP/s of so many threads, where they were measured with all of this
    machine's."""
    import torch

    there = torch.get_num_threads()
    if threads >= there:
        return scoring
    where = f"{scoring.where}, scaled from {there} threads to {threads}"
    return replace(scoring, value=scoring.value * threads / there, where=where)


def _measured(
    settings: SweepSettings, checkpoint: Checkpoint, shape: ModelShape
) -> Calibration:
    from ldeval.scoring.backends import backend_of

    source = model_source(
        settings.model,
        settings.model_args,
        base=settings.base,
        checkpoints=[checkpoint],
        serve=settings.serve,
    )
    try:
        source.open(checkpoint)  # starts what stays: libraries, an engine
        started = time.perf_counter()
        weights_hash(checkpoint.folder)
        lm = source.open(checkpoint)
        seconds = time.perf_counter() - started
        size = weight_bytes(checkpoint, settings)
        loading = Rate(size / seconds, "measured", checkpoint.path)
        backend = backend_of(lm)
        if backend.codec is None:
            raise UnsupportedBackendError(
                f"--model {settings.model} takes text only, so that its tokens cannot "
                "be counted. Plan with the model type hf or vllm."
            )
        origin = origin_hash(settings)
        counted = count_probes(settings.probes, backend.codec, settings, origin, lm)
        timed = _Timed(lm, settings, counted, shape, origin)
        layout, scoring, table = timed.run()
    finally:
        source.close()
    tables = table_rates(table, "measured", f"{len(table.tokens):,} tokens of it")
    devices = spread(settings.model_args) or 1
    rates = rates_of(of_a_device(scoring, devices), counted, loading, tables)
    return Calibration(rates, counted, layout, _device_type(lm), shape)


def origin_hash(settings: SweepSettings) -> str | None:
    """Weight hash of the model before training, where some probe needs it."""
    folder = settings.initial_model or settings.base
    asks = any(
        "initial" in probe.responses and probe.meta.get("initial_model")
        for probe in settings.probes.probes
    )
    return weights_hash(folder) if folder is not None and asks else None


def weight_bytes(checkpoint: Checkpoint, settings: SweepSettings) -> float:
    """Bytes that loading it reads; of an adapter, its base's too, which only vLLM's
    engine keeps from one adapter to the next."""
    folders = [checkpoint.folder]
    if checkpoint.layout == "adapter" and settings.model != "vllm":
        folders.append(base_of(checkpoint, settings.base))
    files = [path for folder in folders for path in weight_files(folder)]
    return float(sum(path.stat().st_size for path in files))


def _device_type(lm: Any) -> str:
    device = getattr(lm, "device", None)
    found = getattr(device, "type", None) or str(device or "")
    return found.split(":")[0] or accelerator()


def accelerator() -> str:
    """The type of this machine's accelerator; ``cpu`` where it has none."""
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if found is None else found.type


class _Timed:
    """Scores the first probe, then as many of the next as fill the time."""

    def __init__(
        self,
        lm: Any,
        settings: SweepSettings,
        counted: Counted,
        shape: ModelShape,
        origin: str | None,
    ) -> None:
        self._lm = lm
        self._settings = settings
        self._encoded = [probe for probe in counted.encoded if probe.responses]
        self._encoding = counted.encoding.value
        self._shape = shape
        self._options = {**_encoding(settings), "origin_weights": origin}
        self._device = _device_type(lm)
        if not self._encoded:
            raise UnsupportedBackendError(
                "no response of the probes fits the model's length, so that nothing "
                "can be timed. Give other probes, or a larger max_length."
            )

    def run(self) -> tuple[PlanLayout, Rate, ScoreTable]:
        """The layout, FLOP/s, and a table of what was scored."""
        warm, _ = self._score(self._encoded[:1])
        layout = layout_of(warm.backend.name, warm.backend.tier, warm.notes)
        rest = self._encoded[1:] or self._encoded
        first, seconds = self._again(rest[:1], layout, warm)
        some = self._enough(rest, layout, seconds)
        scored, seconds = (
            (first, seconds) if len(some) == 1 else self._again(some, layout, warm)
        )
        rate = self._flops(some, layout) / seconds
        where = f"{len(some)} probes in {seconds:.2g} s on {device_name(self._device)}"
        return layout, Rate(rate, "measured", where), self._table(some, scored)

    def _flops(self, encoded: Sequence[EncodedProbe], layout: PlanLayout) -> float:
        work = work_of(encoded, layout, device=self._device)
        return flops_of(self._shape, work).total

    def _enough(
        self, encoded: Sequence[EncodedProbe], layout: PlanLayout, seconds: float
    ) -> Sequence[EncodedProbe]:
        """The first probes that take the time, given that of the first alone."""
        rate = self._flops(encoded[:1], layout) / seconds
        wanted, some = SECONDS * rate, 0.0
        for count, probe in enumerate(encoded, 1):
            some += self._flops([probe], layout)
            if some >= wanted:
                return encoded[:count]
        return encoded

    def _probes(self, encoded: Sequence[EncodedProbe]) -> list[Probe]:
        names = {probe.probe_id for probe in encoded}
        return [p for p in self._settings.probes.probes if p.probe_id in names]

    def _score(self, encoded: Sequence[EncodedProbe]) -> tuple[Scored, float]:
        started = time.perf_counter()
        scored = score_probes(
            self._lm,
            self._probes(encoded),
            top_k=self._settings.top_k,
            progress=False,
            **self._options,
        )
        seconds = time.perf_counter() - started - self._encoding * len(encoded)
        return scored, max(seconds, 1e-9)

    def _again(
        self, encoded: Sequence[EncodedProbe], layout: PlanLayout, warm: Scored
    ) -> tuple[Scored, float]:
        """Score without the comparison with plain sequences, which in a whole sweep is
        of one probe in 500 and here would be most of the work."""
        word = _HF_LAYOUTS.get(layout)
        if warm.backend.name != "hf" or word is None:
            return self._score(encoded)
        from ldeval.scoring import hf
        from ldeval.scoring.allocator import kept_memory

        requests = list(score_requests(encoded, None, {}))
        top_k = self._settings.top_k
        started = time.perf_counter()
        with kept_memory(self._device):
            found = dict(hf.score(self._lm, requests, top_k=top_k, layout=word))
        seconds = time.perf_counter() - started
        scores = {
            (request.probe_id, request.kind): ResponseScore(
                float(found[index].logprobs.sum(dtype="float64")),
                found[index],
                request.ids[request.start : request.stop],
            )
            for index, request in enumerate(requests)
        }
        return replace(warm, scores=scores, excluded=(), contexts={}), seconds

    def _table(self, encoded: Sequence[EncodedProbe], scored: Scored) -> ScoreTable:
        table = build_table(
            self._probes(encoded),
            scored,
            run=self._settings.run,
            step=0,
            checkpoint=self._shape.name,
            weights_hash="",
            probe_set_hash=self._settings.probes.content_hash,
        )
        return as_reference(table)


_HF_LAYOUTS: dict[PlanLayout, Any] = {
    "packed": "packed",
    "shared": "shared",
    "whole": "padded",
}


def device_name(kind: str, threads: int | None = None) -> str:
    """An accelerator by its own name; a CPU with its number of threads."""
    import torch

    if kind == "cuda":
        return str(torch.cuda.get_device_name())
    if kind != "cpu":
        return kind
    number = threads or torch.get_num_threads()
    return f"cpu, {number} thread" + ("s" if number > 1 else "")
