"""The seam to lm_eval: the probe task, the tasks folder, the harness's output files.

Everything that knows the shape of lm_eval's tasks and results is here (how its *models*
are driven is in ``scoring``), so that a new release of the harness touches one file.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task
from lm_eval.config.task import TaskConfig

from ldeval.bundled import bundled_probes
from ldeval.errors import ProbeError, StoreError
from ldeval.files import strict_json, understood
from ldeval.probes import ProbeSet, parse_probe, probe_to_record, read_probes
from ldeval.probes.dataset import dataset_files, is_dataset
from ldeval.records import KIND_NAMES, TOP_K, Excluded, Probe, ScoreTable, Span
from ldeval.records.checked import check_types
from ldeval.scoring import request
from ldeval.scoring.backends import Backend, Tier
from ldeval.scoring.score import Scored, scoring_notes
from ldeval.scoring.tables import build_table

log = logging.getLogger(__name__)

PROBES_VARIABLE = "LDEVAL_PROBES"
"""Environment variable that names the probe file, where ``--metadata`` names none."""

METRICS = (
    "logprob_sum",
    "logprob_per_token",
    "argmax_logprob_per_token",
    "argmax_match",
    "n_tokens",
)
"""Metrics of a probe task, each a mean over responses with its standard error."""


@lru_cache(maxsize=4)
def _read(path: str, modified: int) -> ProbeSet:
    return read_probes(path)


def probe_file(metadata: Mapping[str, Any]) -> Path:
    """The probe file of a harness run: ``--metadata '{"probes": …}'``, else
    ``LDEVAL_PROBES``, else the bundled set."""
    named = metadata.get("probes") or os.environ.get(PROBES_VARIABLE)
    return Path(str(named)) if named else bundled_probes()


class ProbeTask(Task):  # type: ignore[misc]  # lm_eval is untyped
    """One response kind of a probe set, as a harness task.

    Every task has one document per probe, in file order, so that document ids agree
    between kinds; a probe without the kind asks nothing of the model and yields no
    metrics.
    """

    VERSION = 1
    OUTPUT_TYPE = request.REQUEST_TYPE  # multi-rank padding is counted under it

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Args:
        config: the task's YAML: ``task``, ``kind``, ``metadata``.

        Raises:
            ProbeError: when the probe file is malformed, or a setting is unknown.
        """
        request.install()
        settings = dict(config)
        settings.pop("class", None)
        self.kind = str(settings.pop("kind"))
        if self.kind not in KIND_NAMES:
            raise ProbeError(
                f"{self.kind!r} is not a response kind.",
                field="kind",
                remedy=f"Valid kinds: {', '.join(KIND_NAMES)}.",
            )
        metadata = dict(settings.get("metadata") or {})
        self.span = metadata.get("span", "trl")
        top_k = metadata.get("top_k", TOP_K)
        if self.span not in ("trl", "no_end"):
            raise ProbeError(
                f"is {self.span!r}.",
                field="metadata.span",
                remedy="Valid: 'trl', 'no_end'.",
            )
        if not str(top_k).isdecimal() or int(top_k) < 1:
            raise ProbeError(
                f"is {top_k!r}.",
                field="metadata.top_k",
                remedy=f"Give a whole number above 0, e.g. {TOP_K}.",
            )
        self.top_k = int(top_k)
        path = probe_file(metadata)
        files = dataset_files(path) if is_dataset(path) else [path]
        stamp = max(f.stat().st_mtime_ns if f.exists() else 0 for f in files)
        self._docs = [probe_to_record(p) for p in _read(str(path), stamp)]
        super().__init__()
        self._config = TaskConfig(
            **{**settings, "metadata": metadata, "output_type": request.REQUEST_TYPE}
        )

    def download(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to fetch: the probes are a local file."""

    def has_training_docs(self) -> bool:
        """False: probes are not few-shot examples."""
        return False

    def has_validation_docs(self) -> bool:
        """False: all probes are in one split."""
        return False

    def has_test_docs(self) -> bool:
        """True: the probes."""
        return True

    def test_docs(self) -> list[dict[str, Any]]:
        """One document a probe, in file order."""
        return self._docs

    def build_all_requests(self, **kwargs: Any) -> None:
        """Build the requests anew: the harness's request cache is not keyed by probe
        file, so ``--cache_requests`` is ignored."""
        if kwargs.pop("cache_requests", False):
            log.warning(
                "%s ignores --cache_requests: the cache is not keyed by probe file",
                self.config.task,
            )
        kwargs.pop("rewrite_requests_cache", None)
        self._system_instruction = kwargs.get("system_instruction")
        super().build_all_requests(**kwargs)

    def doc_to_text(self, doc: Mapping[str, Any]) -> str:
        """The prompt, messages as JSON."""
        prompt = doc["prompt"]
        return prompt if isinstance(prompt, str) else json.dumps(prompt)

    def doc_to_target(self, doc: Mapping[str, Any]) -> str:
        """The response of this task's kind; empty where the probe has none."""
        return str(doc["responses"].get(self.kind, ""))

    def fewshot_context(self, doc: Any, num_fewshot: int = 0, **kwargs: Any) -> str:
        """The prompt; the template is applied when it is tokenized.

        Raises:
            ProbeError: when few-shot examples were asked for.
        """
        if num_fewshot:
            raise ProbeError(
                f"{self.config.task} takes no few-shot examples, {num_fewshot} were "
                "asked for.",
                remedy="Leave --num_fewshot out: a probe is scored in its own context.",
            )
        return self.doc_to_text(doc)

    def construct_requests(self, doc: Any, ctx: str, **kwargs: Any) -> Instance:
        """One request: (context, response, settings)."""
        absent = self.kind not in doc["responses"]
        settings = {
            "kind": self.kind,
            "absent": absent,
            "span": self.span,
            "top_k": self.top_k,
            "apply_chat_template": bool(kwargs.get("apply_chat_template")),
            "system_instruction": self._system_instruction,
        }
        return Instance(
            request_type=request.REQUEST_TYPE,
            doc=doc,
            arguments=("" if absent else ctx, self.doc_to_target(doc), settings),
            idx=0,
            metadata=kwargs["metadata"],
        )

    def process_results(self, doc: Any, results: list[str]) -> dict[str, float]:
        """The metrics of one response; none for one that was not scored."""
        return metrics_of(json.loads(results[0]))

    def aggregation(self) -> dict[str, Callable[..., float]]:
        """Plain means: the harness knows their standard error."""
        return dict.fromkeys(METRICS, mean)

    def higher_is_better(self) -> dict[str, bool | None]:
        """Undefined: neither direction of a belief is the better one."""
        return dict.fromkeys(METRICS, None)


def metrics_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of one parsed answer; what the backend did not give is left out."""
    if "logprob_sum" not in record:
        return {}
    metrics = {"logprob_sum": float(record["logprob_sum"])}
    ids = record.get("token_ids")
    if not ids:
        return metrics
    metrics["logprob_per_token"] = record["logprob_sum"] / len(ids)
    metrics["n_tokens"] = float(len(ids))
    if "argmax_ids" in record:
        matches = sum(a == b for a, b in zip(record["argmax_ids"], ids, strict=True))
        metrics["argmax_match"] = matches / len(ids)
        total = sum(record["argmax_logprobs"])
        metrics["argmax_logprob_per_token"] = total / len(ids)
    return metrics


# ------------------------------------------------------------------ reading its output


def read_output(folder: str | Path, *, run: str, step: int) -> ScoreTable:
    """The scores in an ``--output_path`` folder of a plain ``lm_eval`` run.

    The latest results in the folder (or the one model folder below it) are read.

    Args:
        folder: what was given as ``--output_path``, with ``--log_samples``.
        run, step: how to name the table; the harness knows neither.

    Raises:
        StoreError: when there are no probe samples in it, or they are damaged.
        ProbeError: when a document in them is no probe.
    """
    files = _latest_samples(Path(folder))
    probes: dict[str, Probe] = {}
    answers: dict[tuple[str, str], _Answer] = {}
    excluded: list[Excluded] = []
    for kind, path in files.items():
        for probe, answer, reason in _samples(path, kind):
            probes.setdefault(probe.probe_id, probe)
            if answer is not None:
                answers[(probe.probe_id, kind)] = answer
            elif reason is not None:
                excluded.append(Excluded(probe.probe_id, kind, reason))
    if not answers:
        raise StoreError(f"{folder}: no response was scored in this run")
    first = next(iter(answers.values())).head
    backend = Backend(
        name=first.backend,
        tier=first.tier,
        dtype=first.dtype,
        vocab_size=first.vocab_size,
        versions=first.versions,
        tokenizer_hash=first.tokenizer_hash,
        template_hash=first.template_hash,
    )
    scored = Scored(
        backend=backend,
        span=first.span,
        template_used=first.template_used,
        scores={key: answer.score for key, answer in answers.items()},
        excluded=(),
        split_exceptions=tuple(sorted({k[0] for k, a in answers.items() if a.merged})),
        contexts={k[0]: a.context for k, a in answers.items() if a.context},
        notes=scoring_notes(backend, list(probes.values()), first.template_used),
    )
    return build_table(
        list(probes.values()),
        scored,
        run=run,
        step=step,
        checkpoint=_checkpoint_name(next(iter(files.values()))),
        weights_hash="unknown",
        probe_set_hash=ProbeSet(tuple(probes.values())).content_hash,
        excluded=excluded,
    )


_SAMPLES = re.compile(r"samples_ldyn_(?P<kind>[a-z_]+)_(?P<stamp>\d{4}-[^_]*)\.jsonl")
"""Names of the harness's sample files: the stamp is an ISO time with dashes."""


def _latest_samples(folder: Path) -> dict[str, Path]:
    """By kind, the samples file of the latest run below ``folder``."""
    dated: dict[tuple[str, str], dict[str, Path]] = {}
    for path in folder.rglob("samples_ldyn_*.jsonl"):
        name = _SAMPLES.fullmatch(path.name)
        if name is not None and name["kind"] in KIND_NAMES:
            key = (name["stamp"], str(path.parent))
            dated.setdefault(key, {})[name["kind"]] = path
    if not dated:
        raise StoreError(
            f"{folder}: no samples_ldyn_*.jsonl below it. Run lm_eval with "
            "--tasks ldyn_probes --log_samples --output_path, and give that folder."
        )
    parents = {path.parent for files in dated.values() for path in files.values()}
    if len(parents) > 1:
        names = ", ".join(sorted(str(parent) for parent in parents))
        raise StoreError(
            f"{folder}: it holds runs of several models ({names}). Give one of them."
        )
    return dated[max(dated)]


@dataclass(frozen=True)
class _Head:
    """What each answer says of the model and the request."""

    backend: str
    tier: Tier
    dtype: str
    vocab_size: int | None
    versions: Mapping[str, str]
    tokenizer_hash: str
    template_hash: str | None
    span: Span
    template_used: bool


@dataclass(frozen=True)
class _Answer:
    """One response that was scored."""

    head: _Head
    merged: bool
    context: str | None
    logprob_sum: float
    all_argmax: bool | None
    score: Any


_Sample = tuple[Probe, _Answer | None, str | None]
"""A probe, its answer where it has one, and else the reason where one is given."""


def _samples(path: Path, kind: str) -> Iterator[_Sample]:
    with path.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            with understood(
                path.with_name(f"{path.name}:{number}"),
                "It is not a sample of a probe task, or the file was cut short: run "
                "lm_eval again.",
            ):
                yield _sample(line, f"{path}", number)


def _sample(line: bytes, path: str, number: int) -> _Sample:
    sample = strict_json(line, undefined=True)
    answer = strict_json(sample["resps"][0][0], undefined=True)
    probe = parse_probe(sample["doc"], path=path, line=number)
    if "logprob_sum" not in answer:
        reason = answer.get("excluded")
        return probe, None, None if reason is None else str(reason)
    names = (field.name for field in dataclasses.fields(_Head))
    found = _Answer(
        _Head(**{name: answer[name] for name in names}),
        answer["merged"],
        answer["context"],
        answer["logprob_sum"],
        answer["all_argmax"],
        request.load_score(answer),
    )
    check_types(found)
    return probe, found, None


def _checkpoint_name(samples: Path) -> str:
    """The model of a run, from the results file beside its samples."""
    stamp = samples.stem.rsplit("_", 1)[1]
    results = samples.parent / f"results_{stamp}.json"
    if not results.exists():
        return samples.parent.name
    with understood(results, "Run lm_eval again, or delete it to go without."):
        text = results.read_bytes()
        config = strict_json(text, undefined=True).get("config", {})
        arguments = config.get("model_args") or {}
        if isinstance(arguments, str):
            pairs = (item.split("=", 1) for item in arguments.split(",") if "=" in item)
            arguments = dict(pairs)
        return str(arguments.get("pretrained", samples.parent.name))
