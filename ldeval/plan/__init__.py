"""What a sweep is going to take, before it scores anything.

::

    plan/
    ├── shapes.py        a model's shape, and floating-point operations from it
    ├── work.py          probes in tokens, asked for and computed
    ├── tables.py        how fast tables are written and compared
    ├── calibration.py   rates, measured on the model at hand
    ├── fleet.py         devices, and how many of them an engine takes
    ├── rates.py         rates of a stored run, given or stated
    ├── build.py         all of it put together: arithmetic alone
    └── sweep_plan.py    the plan of one sweep, sizes made up where asked

Apart from the sweep, which must not depend on estimates. Nothing is written into the
store.
"""

from __future__ import annotations

from ldeval.plan.fleet import RayAsked
from ldeval.plan.sweep_plan import Hypothetical, plan_sweep

__all__ = ["Hypothetical", "RayAsked", "plan_sweep"]
