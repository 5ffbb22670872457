"""The rates of a plan that need no model: of a stored run, given, or stated.

And the pieces that measured ones (:mod:`calibration`) share with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ldeval.errors import StoreError
from ldeval.plan.fleet import spread
from ldeval.plan.shapes import flops_of
from ldeval.plan.tables import TableRates, table_rates
from ldeval.records import (
    Manifest,
    ModelShape,
    PlanLayout,
    PlanRates,
    Rate,
    ScoreTable,
    ScoringWork,
)
from ldeval.scoring.encode import EncodedProbe
from ldeval.store import list_steps, open_table, read_manifest

STATED = {
    "loading": 4e8,
    "stored": 275.0,
    "writing": 4e-6,
    "joining": 5.3e-6,
    "comparing": 8.5e-6,
    "comparing_start": 1.5,
}
"""What is assumed where nothing is measured: SmolLM2-135M-Instruct on two CPU cores
(``docs/plan.md``)."""


@dataclass(frozen=True)
class Counted:
    """The probes in tokens."""

    encoded: list[EncodedProbe]
    excluded: int
    """Responses left out before encoding."""
    encoding: Rate
    """Seconds a probe."""


def layout_of(backend: str, tier: str, notes: Sequence[str]) -> PlanLayout:
    """How scores were computed, by what their manifest or their scoring says."""
    if tier != "native":
        return "whole"
    if backend != "hf":
        return "cached"
    for note in notes:
        if note.startswith(("packed", "shared")):
            return "packed" if note.startswith("packed") else "shared"
        if note.startswith(("padded", "plain")):
            return "whole"
    return "packed"


@dataclass(frozen=True)
class StoredRun:
    """The finished steps of a run, as far as they tell how fast it went."""

    manifests: tuple[Manifest, ...]
    """Those that rates are taken from, the first left out where there are others: it
    measured the noise floor too."""
    table: ScoreTable
    """The beginning of the last one."""
    stored: float
    """Bytes a scored token."""

    @property
    def layout(self) -> PlanLayout:
        """How it was computed."""
        last = self.manifests[-1]
        return layout_of(last.backend, last.tier, last.notes)


def read_stored(run: Path) -> StoredRun | None:
    """A run's own record of how fast it was scored; None where no step is finished.

    Raises:
        StoreError: when a finished step is damaged.
    """
    folders = [item.folder for item in list_steps(run) if item.complete]
    pairs = [(folder, read_manifest(folder)) for folder in folders]
    timed = [(f, m) for f, m in pairs if math.isfinite(m.seconds) and m.n_tokens]
    if not timed:
        return None
    used = timed[1:] or timed
    size = sum(entry["bytes"] for _, m in used for entry in m.files.values())
    table = next(open_table(used[-1][0]).chunks())
    return StoredRun(
        tuple(manifest for _, manifest in used),
        table,
        size / sum(manifest.n_tokens for _, manifest in used),
    )


def stored_rates(
    stored: StoredRun,
    shape: ModelShape,
    work: ScoringWork,
    counted: Counted,
    name: str,
    arguments: Mapping[str, Any],
) -> PlanRates:
    """Rates of a stored run.

    Args:
        shape: of the model that it scored.
        work: of the probes at hand, in its layout: operations for a scored token are
            theirs.
        arguments: of the sweep that is planned: sweeps do not store what an engine is
            spread over, since it changes no score.

    Raises:
        StoreError: when it holds no timed token.
    """
    tokens = sum(manifest.n_tokens for manifest in stored.manifests)
    seconds = sum(manifest.seconds for manifest in stored.manifests)
    if not seconds or not work.asked:
        raise StoreError(f"{name}: no seconds or no tokens to take a rate from.")
    per_token = flops_of(shape, work).total / work.asked
    where = f"{len(stored.manifests)} steps of {name}, encoding and loading included"
    scoring = Rate(per_token * tokens / seconds, "stored", where)
    last = stored.manifests[-1]
    if last.backend != "hf":
        scoring = of_a_device(scoring, spread(arguments) or 1, "taken, as now, ")
    tables = table_rates(stored.table, "measured", f"a table of {name}")
    tables = replace(tables, stored=Rate(stored.stored, "stored", name))
    return rates_of(scoring, counted, stated("loading"), tables)


def of_a_device(scoring: Rate, devices: int, taken: str = "") -> Rate:
    """One device's share of the FLOP/s of an engine.

    Args:
        taken: said before "to be of so many devices", where that is not known.
    """
    if devices == 1 and not taken:
        return scoring
    number = f"{devices} device" if devices == 1 else f"{devices} devices"
    said = f"{taken}to be of {number}" if taken else f"of {number}, divided by these"
    where = f"{scoring.where}, {said}"
    return replace(scoring, value=scoring.value / devices, where=where)


def given_rates(flops: float, counted: Counted, known: PlanRates | None) -> PlanRates:
    """FLOP/s as the user gives them; the others as they are known, or as stated."""
    scoring = Rate(flops, "given")
    if known is not None:
        return replace(known, scoring=scoring)
    tables = TableRates(**{item.name: stated(item.name) for item in fields(TableRates)})
    return rates_of(scoring, counted, stated("loading"), tables)


def stated(name: str) -> Rate:
    """A rate measured elsewhere."""
    return Rate(STATED[name], "assumed", "SmolLM2-135M-Instruct on two CPU cores")


def rates_of(
    scoring: Rate, counted: Counted, loading: Rate, tables: TableRates
) -> PlanRates:
    """All rates of a plan."""
    return PlanRates(
        scoring=scoring,
        encoding=counted.encoding,
        loading=loading,
        stored=tables.stored,
        writing=tables.writing,
        joining=tables.joining,
        comparing=tables.comparing,
        comparing_start=tables.comparing_start,
    )
