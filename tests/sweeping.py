"""Sweeps of the tiny runs that ``save_run`` makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ldeval.bundled import bundled_probes
from ldeval.probes import read_probes
from ldeval.sweep import SweepSettings

ARGS = {"dtype": "float32", "device": "cpu"}


def sweep_settings(trained: Path, store: Path, **changes: Any) -> SweepSettings:
    """Five probes, every checkpoint, as ``run``; but for what is changed."""
    return replace(
        SweepSettings(
            probes=read_probes(bundled_probes()).limited(3, 2),
            store=store,
            run="run",
            model_args=ARGS,
            base=str(trained / "base"),
            apply_chat_template=True,
            progress=False,
        ),
        **changes,
    )
