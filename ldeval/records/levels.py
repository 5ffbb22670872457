"""Mean log-probabilities by checkpoint, as other tools write them down.

Apart from ``scores``: there are no tokens, and often no prompts, behind them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from ldeval.records.kinds import Split

LEVELS_VERSION = 1
Role = Literal["kind", "derived", "context"]


@dataclass(frozen=True)
class LevelColumn:
    """One column of an import."""

    name: str
    """A response kind; ``argmax:<kind>``; or, for a context column, ``logged:…``."""
    role: Role
    """``kind``: a response's own tokens. ``derived``: the argmax along a kind.
    ``context``: something that is shown and never judged."""
    source: str
    """What the file calls it."""
    values: tuple[float, ...]
    """[T] mean over prompts of Σ ln p, nats/response (or as logged); NaN is absent."""
    note: str | None = None
    """What a reader must know, such as that the file's name for it is wrong."""


@dataclass(frozen=True)
class LevelRun:
    """An imported run: means by evaluation, and single prompts where they are known."""

    run: str
    origin: Literal["reference", "trl"]
    file: str
    """Name of the file it came from."""
    split: Split
    steps: tuple[int, ...]
    """[T] evaluations, in ``step_unit``."""
    step_unit: Literal["evaluations", "examples", "steps"]
    columns: tuple[LevelColumn, ...]
    objective: str | None = None
    """As declared; None: not declared."""
    notes: tuple[str, ...] = ()
    prompts: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    """[T, P] Σ ln p of every prompt by column name, nats; empty: means only."""

    def __post_init__(self) -> None:
        for column in self.columns:
            if len(column.values) != len(self.steps):
                raise ValueError(
                    f"LevelColumn '{column.name}' holds {len(column.values)} values "
                    f"for {len(self.steps)} steps"
                )

    def column(self, name: str) -> LevelColumn | None:
        """The column of this name, if there is one."""
        return next((c for c in self.columns if c.name == name), None)
