"""Which stored results of first order belong to which run of a report.

Apart from reading and from drawing, because it is a judgement: numbers of other prompts
or of another tokenizer would stand beside a run as if they spoke of it. What is stored
is compared; what is not is said to be unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ldeval.errors import MismatchError
from ldeval.probes import ProbeSet
from ldeval.records import Comparison, DynamicsResults, Probe, ProbeResponse
from ldeval.report.escape import visible

_UNKNOWN = "unknown"
"""What a table says of a server's tokenizer."""


@dataclass(frozen=True)
class Joined:
    """Results beside a run that they fit."""

    name: str
    """Of the results; no two beside one run have the same."""
    results: DynamicsResults
    step: int | None
    """The run's checkpoint with the weights that they start from; None where none."""
    checked: tuple[str, ...]
    """What was found equal, and what could not be compared."""


@dataclass(frozen=True)
class Beside:
    """A run, as far as it tells what fits it."""

    comparison: Comparison
    probes: Sequence[Probe] | None = None
    """Texts that were scored, where they are known."""


def join_results(
    found: Sequence[DynamicsResults], runs: Sequence[Beside]
) -> list[tuple[Joined, ...]]:
    """The results of each run.

    Results go to the runs that scored the weights they start from, and where none did
    to every run that they fit.

    Raises:
        MismatchError: results fit no run, with both values.
    """
    beside: list[list[Joined]] = [[] for _ in runs]
    for results in found:
        faults = [_misfit(results, run) for run in runs]
        fitting = [i for i, fault in enumerate(faults) if fault is None]
        if not fitting:
            raise MismatchError(str(faults[0]))
        own = [i for i in fitting if _step(results, runs[i]) is not None]
        for i in own or fitting:
            names = {item.name for item in beside[i]}
            beside[i].append(
                Joined(
                    _unused(results.name, names),
                    results,
                    _step(results, runs[i]),
                    tuple(_checked(results, runs[i])),
                )
            )
    return [tuple(items) for items in beside]


def _unused(name: str, names: set[str]) -> str:
    number, found = 2, name
    while found in names:
        found, number = f"{name} ({number})", number + 1
    return found


_Part = tuple[str, Mapping[str, Any], Sequence[ProbeResponse]]


def _parts(results: DynamicsResults) -> Iterator[_Part]:
    if results.prediction is not None:
        yield "prediction", results.prediction.settings, results.prediction.responses
    if results.influence is not None:
        yield "influence", results.influence.settings, results.influence.responses
    if results.risk is not None:
        yield "risk", results.risk.settings, ()


def _misfit(results: DynamicsResults, run: Beside) -> str | None:
    """What speaks against the results being of the run."""
    if not run.comparison.manifests:
        return None
    manifest = run.comparison.manifests[0]
    name = visible(run.comparison.run, 60)
    for part, settings, responses in _parts(results):
        where = f"{visible(results.name, 60)}/{part}.json"
        own = settings.get("tokenizer")
        if _differ(own, manifest.tokenizer_hash):
            return (
                f"{where}: was computed with tokenizer {own}, but run {name!r} was "
                f"scored with {manifest.tokenizer_hash}. Compute it with a checkpoint "
                "of this run, or leave it out of --dynamics."
            )
        probes = settings.get("probes")
        if probes is None or probes == manifest.probe_set_hash:
            continue
        if not _is_part(str(probes), settings, responses, run.probes):
            return (
                f"{where}: was computed on probe set {str(probes)[:12]}, but run "
                f"{name!r} was scored on {manifest.probe_set_hash[:12]}, and it is no "
                "known part of that. Compute it with --probes STORE/RUN/probes.jsonl, "
                "or leave it out of --dynamics."
            )
    return None


def _differ(own: object, other: str) -> bool:
    return own is not None and _UNKNOWN not in (own, other) and own != other


def _is_part(
    wanted: str,
    settings: Mapping[str, Any],
    responses: Sequence[ProbeResponse],
    probes: Sequence[Probe] | None,
) -> bool:
    """Whether the named ones among the run's probes hash to what was computed on, as
    with ``--limit``."""
    left_out = settings.get("responses_left_out") or ()
    named = {r.probe_id for r in responses} | {item["probe_id"] for item in left_out}
    some = tuple(p for p in probes or () if p.probe_id in named)
    return bool(some) and ProbeSet(some).content_hash == wanted


def _step(results: DynamicsResults, run: Beside) -> int | None:
    """The checkpoint that has the weights of the results."""
    steps = {m.weights_hash: m.step for m in run.comparison.manifests}
    for _, settings, _ in _parts(results):
        if settings.get("weights") in steps:
            return steps[settings["weights"]]
    return None


def _checked(results: DynamicsResults, run: Beside) -> Iterator[str]:
    if not run.comparison.manifests:
        yield "the run holds means only: whether they are of its prompts is not known"
        return
    manifest = run.comparison.manifests[0]
    step = _step(results, run)
    yield (
        f"starts from the weights of step {step:,}"
        if step is not None
        else "starts from weights that are none of this run's checkpoints"
    )
    for part, settings, _ in _parts(results):
        own = settings.get("tokenizer")
        if own is None or _UNKNOWN in (own, manifest.tokenizer_hash):
            yield f"{part}: whether the tokenizer is the run's is not known"
        probes = settings.get("probes")
        if probes is not None and probes != manifest.probe_set_hash:
            yield f"{part}: on a part of the run's probes"
