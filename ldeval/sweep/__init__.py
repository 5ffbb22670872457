"""Score every checkpoint of a run into the store: resumable, past broken ones.

The first checkpoint that can be scored is the run's reference: its most probable tokens
are the bins in which later checkpoints' mass is followed. What is finished is never
scored again; what cannot be scored is listed with its reason.
"""

from ldeval.sweep.run import Sweep
from ldeval.sweep.settings import SIZING_ARGUMENTS, SweepResult, SweepSettings
from ldeval.sweep.staged import all_checkpoints, jobs, stages, sweep, sweep_stages

__all__ = [
    "SIZING_ARGUMENTS",
    "Sweep",
    "SweepResult",
    "SweepSettings",
    "all_checkpoints",
    "jobs",
    "stages",
    "sweep",
    "sweep_stages",
]
