"""A sweep's plan in tables and sentences: how sizes and durations read, what is told.

Every rate stands beside what it is known from, since a plan is no better than its
rates.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from ldeval.records import (
    PlanPart,
    Rate,
    Shortfall,
    SweepPlan,
)
from ldeval.report.columns import Footnotes, assemble, number_column, text_column
from ldeval.report.escape import for_ascii, visible
from ldeval.report.json_report import plain
from ldeval.report.rounding import UNDEFINED, count, percent
from ldeval.report.tables import Style, Table, to_terminal, wrap

PLAN_VERSION = 2
"""Version of the JSON plan; it grows when a key changes its meaning or goes."""

_SOURCES = {
    "measured": "measured here",
    "stored": "from a stored run",
    "given": "given, not measured",
    "assumed": "assumed",
}
_PARTS = {
    "encoding": "encoding probes",
    "loading": "loading weights",
    "scoring": "scoring",
    "writing": "writing tables",
    "joining": "joining tables",
    "comparing": "comparing afterwards",
}
_LAYOUTS = {
    "packed": "prompts packed with their responses",
    "shared": "a prompt's cache lent to its responses",
    "whole": "every response with its prompt",
    "cached": "responses that read the engine's prefix cache",
}
_ORIGINS = {
    "tensors": "counted from its tensors",
    "config": "counted from its configuration",
    "proportions": "made up in the proportions of Llama 3 70B",
}
_LACKS = {
    "device": "the weights and activations of an engine do not fit a device",
    "main memory": "the scores of a checkpoint, and on a CPU the models, do not fit "
    "this machine's main memory",
    "comparing": "comparing afterwards does not fit this machine's main memory",
    "disk": "the tables do not fit the disk of the store",
    "temporary folder": "a step does not fit this machine's temporary folder",
}

_DURATIONS = (
    ("s", 1.0, 120),
    ("min", 60.0, 120),
    ("h", 3600.0, 72),
    ("days", 86400.0, 1000),
)
"""Units of time: name, seconds, and from how many of it on the next one is taken."""


# ----------------------------------------------------------------------- how it reads


def amount(value: float, unit: str) -> str:
    """Three digits with a decimal prefix before the unit: ``12.3 PFLOP``."""
    return _prefixed(value, unit, ("", "k", "M", "G", "T", "P", "E", "Z", "Y"))


def many(value: float) -> str:
    """A count: exact below a million, then as the field writes it, ``70 B``."""
    if value < 1e6:
        return f"{value:,.0f}"
    return _prefixed(value, "", ("", "k", "M", "B", "T", "P"))


def _prefixed(value: float, unit: str, prefixes: Sequence[str]) -> str:
    if not math.isfinite(value):
        return UNDEFINED
    for prefix in prefixes:
        if value < 999.5 or prefix == prefixes[-1]:
            break
        value /= 1000
    return f"{_three(value)} {prefix}{unit}".rstrip()


def _three(value: float) -> str:
    """Three digits, more before the decimal point."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def size(value: float) -> str:
    """Bytes with a binary prefix."""
    if not math.isfinite(value):
        return UNDEFINED
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1023.5 or unit == "PiB":
            break
        value /= 1024
    return f"{_three(value)} {unit}"


def duration(seconds: float) -> str:
    """Seconds, minutes, hours, days or years, whichever reads well."""
    if not math.isfinite(seconds):
        return UNDEFINED
    unit, length = "years", 365.25 * 86400
    for shorter, its_length, enough in _DURATIONS:
        if seconds < its_length * enough:
            unit, length = shorter, its_length
            break
    value = seconds / length
    return f"{_three(value)} {unit}"


def _source(rate: Rate) -> str:
    told = _SOURCES[rate.source]
    return f"{told}: {rate.where}" if rate.where else told


# ----------------------------------------------------------------------------- tables


def work_table(plan: SweepPlan) -> Table:
    """Tokens and operations, of one checkpoint and of all that are left."""
    work, flops, left = plan.work, plan.flops, plan.checkpoints
    rows = [
        ("probes", many(work.probes), UNDEFINED),
        ("responses", many(work.responses), many(left * work.responses)),
        *(
            (name, many(value), many(left * value))
            for name, value in (
                ("prompt tokens, each once", work.prompt),
                ("response tokens, asked for", work.asked),
                ("tokens computed", work.computed),
                ("tokens if every response were sent alone", work.separate),
            )
        ),
        *(
            (name, amount(value, "FLOP"), amount(left * value, "FLOP"))
            for name, value in (
                ("matrices of the layers", flops.matrices),
                ("attention", flops.attention),
                ("output layer, response tokens only", flops.output),
                ("all operations", flops.total),
            )
        ),
    ]
    columns = [
        text_column("work", [row[0] for row in rows]),
        number_column("a checkpoint", [row[1] for row in rows]),
        number_column(f"all {left:,} left", [row[2] for row in rows]),
    ]
    left_out = (
        f" {many(work.excluded)} responses are left out (too long, or sampled from "
        "another model)."
        if work.excluded
        else ""
    )
    return assemble(
        "Work",
        columns,
        f"{_counted(plan)} Computed as {_LAYOUTS[work.layout]}.{left_out}",
        Footnotes(),
    )


def _counted(plan: SweepPlan) -> str:
    if plan.measured_probes == plan.work.probes:
        return "Tokens are counted, not estimated."
    return (
        f"Tokens are extrapolated from {count(int(plan.measured_probes), 'probe')}, "
        "each planned probe as one of these."
    )


def time_table(plan: SweepPlan) -> Table:
    """Where the time goes, and how each rate is known."""
    parts = [part for part in plan.parts if part.name != "joining" or part.seconds]
    total = plan.whole_seconds
    shares = [part.seconds / total if total else math.nan for part in parts]
    columns = [
        text_column("part", [_PARTS[part.name] for part in parts]),
        number_column("by the clock", [duration(part.seconds) for part in parts]),
        number_column("share", [percent(share) for share in shares]),
        number_column("hours at work", [_hours(part.worker_seconds) for part in parts]),
        number_column("rate", [_rate(plan, part) for part in parts]),
        text_column("the rate is", [_source(_rate_of(plan, part)) for part in parts]),
    ]
    engines = count(plan.engines, "engine")
    each = devices(plan.devices_per_engine)
    return assemble(
        "Time",
        columns,
        f"{engines} of {each} ({plan.device}), each on its share of the probes under "
        "every checkpoint: each loads all of them, at the same time as the others and "
        f"no slower.{_beside(plan)} Hours at work: of devices for loading and scoring, "
        "of processes for the rest.",
        Footnotes(),
    )


def _beside(plan: SweepPlan) -> str:
    if not plan.joining_seconds:
        return ""
    return (
        " A step is joined while the engines score the next ones, so that shares may "
        "add up to more than 100 %."
    )


def devices(number: float) -> str:
    """So many devices, or a share of one."""
    if number == int(number):
        return count(int(number), "device")
    return f"{number:g} devices"


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    if 0 < hours < 0.01:
        return "<0.01"
    return _three(hours)


def _rate_of(plan: SweepPlan, part: PlanPart) -> Rate:
    rates = plan.rates
    return {
        "encoding": rates.encoding,
        "loading": rates.loading,
        "scoring": rates.scoring,
        "writing": rates.writing,
        "joining": rates.joining,
        "comparing": rates.comparing,
    }[part.name]


def _rate(plan: SweepPlan, part: PlanPart) -> str:
    value = _rate_of(plan, part).value
    if part.name == "loading":
        return f"{size(value)}/s"
    if part.name == "scoring":
        return amount(value, "FLOP/s")
    if part.name == "encoding":
        return f"{1e3 * value:.2g} ms/probe"
    return f"{1e6 * value:.2g} µs/token"


def bytes_table(plan: SweepPlan) -> Table:
    """What must be read, held and kept."""
    found = plan.bytes
    stored = plan.rates.stored
    rows = [
        ("weights read", found.read, f"{size(found.checkpoint)} a checkpoint"),
        ("weights in an engine's memory", found.weights, ""),
        ("activations and logits beside them", found.activations, "an estimate"),
        ("scores of a checkpoint in main memory", found.held, "all engines together"),
        ("main memory of comparing", found.comparing, "all checkpoints"),
        (
            "added to the store",
            found.stored,
            f"{stored.value:.0f} B a response token, {_source(stored)}",
        ),
        ("beside them for a while", found.temporary, _temporary(plan)),
    ]
    if found.fetched:
        rows.append(
            ("in this machine's temporary folder", found.fetched, _fetched(plan))
        )
    columns = [
        text_column("bytes", [row[0] for row in rows]),
        number_column("size", [size(row[1]) for row in rows]),
        text_column("", [row[2] for row in rows]),
    ]
    return assemble("Memory and disk", columns, "", Footnotes())


def _temporary(plan: SweepPlan) -> str:
    if plan.joining_seconds:
        return "shards of the first step, and of the one being joined"
    return "a table being written"


def _fetched(plan: SweepPlan) -> str:
    if plan.joining_seconds:
        return "a step's shards, and the joined table"
    return "a table being written"


# -------------------------------------------------------------------------- sentences


def model_sentence(plan: SweepPlan) -> str:
    """Which model, and what is left of the sweep."""
    model = plan.model
    left = count(plan.checkpoints, "checkpoint")
    return (
        f"{left} to score, {plan.finished:,} finished. Model: {model.name}, "
        f"{many(model.parameters)} parameters in {model.layers} layers of width "
        f"{model.hidden:,}, {_ORIGINS[model.origin]}."
    )


def total_sentence(plan: SweepPlan) -> str:
    """How long the sweep takes, and for how long devices are held."""
    return (
        f"The sweep takes {duration(plan.sweep_seconds)} and holds "
        f"{devices(plan.devices)} all that time: {_three(plan.device_hours_held)} "
        f"{_device(plan)}-hours held, {_three(plan.device_hours_busy)} of them busy "
        "with scoring and loading."
    )


def _device(plan: SweepPlan) -> str:
    if plan.rates.scoring.source == "given":
        return "GPU"
    return "CPU" if plan.device.startswith("cpu") else "GPU"


def bottleneck_sentence(plan: SweepPlan) -> str:
    """Where the bottleneck lies, and what does not fit."""
    longest = plan.bottleneck
    if not plan.checkpoints or longest is None:
        return "Nothing is left to score."
    lacks = [_lack(plan, item) for item in plan.shortfalls]
    said = (
        f"The bottleneck is {_PARTS[longest.name]}: "
        f"{percent(longest.seconds / plan.whole_seconds)} of the time"
    )
    if not lacks:
        return f"{said}. Memory and disk suffice."
    return f"{said}. As planned it cannot be done: {'; '.join(lacks)}."


def _lack(plan: SweepPlan, item: Shortfall) -> str:
    told = (
        f"{_LACKS[item.what]} ({size(item.needed)} needed, "
        f"{size(item.available)} there)"
    )
    if item.what != "device":
        return told
    return (
        f"{told}: at least {devices(plan.devices_per_engine)} of "
        f"{size(item.available)} an engine, which the times above take for granted"
    )


def assumption_sentences(plan: SweepPlan) -> list[str]:
    """What the plan takes for granted, and in which direction that errs."""
    found = []
    timed = plan.calibrated_on
    if timed is not None and timed.parameters != plan.model.parameters:
        found.append(
            f"The rate of scoring is that of a model of {many(timed.parameters)} "
            f"parameters, taken to hold at {many(plan.model.parameters)}: larger "
            "products of matrices run nearer to a device's peak, so that time is "
            "rather overestimated; talk between the devices of an engine, which is "
            "not counted, goes the other way."
        )
    if plan.devices_per_engine > 1 and plan.work.layout in ("packed", "shared"):
        found.append(
            f"The {devices(plan.devices_per_engine)} of an engine are taken to compute "
            "at the same time, as vLLM's do (--model vllm). Transformers goes through "
            "layers one device after the other: scoring with it takes up to "
            f"{plan.devices_per_engine:g} times as long."
        )
    if plan.rates.scoring.source == "stored":
        found.append(
            "The seconds of a stored step include encoding and loading, which are "
            "listed once more: time is rather overestimated."
        )
    found.append(
        "Not counted: starting an engine, the noise floor (once a run), checks against "
        "a plain forward pass (one probe in 500; a few responses after a swap)."
    )
    return [*found, *plan.notes]


# ------------------------------------------------------------------------- renderings


def print_plan(plan: SweepPlan, *, width: int = 100, style: Style = "unicode") -> str:
    """The plan as text for a terminal; nothing is printed."""

    def lines(sentences: Sequence[str]) -> list[str]:
        shown = [visible(sentence) for sentence in sentences]
        plain_ = [for_ascii(text) if style == "ascii" else text for text in shown]
        return [line for text in plain_ for line in wrap(text, width)]

    tables = (work_table(plan), time_table(plan), bytes_table(plan))
    return "\n".join(
        [
            *lines([f"Plan of {plan.run}", model_sentence(plan)]),
            "",
            *(to_terminal(table, width=width, style=style) for table in tables),
            *lines([total_sentence(plan), bottleneck_sentence(plan)]),
            *lines(assumption_sentences(plan)),
        ]
    )


def plan_json(plan: SweepPlan) -> str:
    """Everything, unrounded; what is not finite is ``null``."""
    longest = plan.bottleneck
    record = {
        "plan_version": PLAN_VERSION,
        **plain(plan),
        "flops_total": plain(plan.checkpoints * plan.flops.total),
        "sweep_seconds": plain(plan.sweep_seconds),
        "device_hours_held": plain(plan.device_hours_held),
        "device_hours_busy": plain(plan.device_hours_busy),
        "bottleneck": None if longest is None else longest.name,
    }
    return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
