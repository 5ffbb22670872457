"""Where the task files go when ldeval is built.

lm_eval has no entry points for tasks: it scans its own ``tasks`` folder. Placing ours
there makes the plain ``lm_eval --tasks ldyn_probes`` work, and ``pip uninstall ldeval``
takes them away again. Beside an *editable* lm_eval this would shadow the real package,
so ``LDEVAL_HARNESS_FILES=0`` leaves the harness's folder alone; the files ship inside
ldeval too, for ``--include_path "$(ldeval tasks)"``.
"""

import os
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class TaskFiles(BuildHookInterface):
    """Adds ``tasks/`` to the wheel, once for ldeval and once for the harness."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Choose the targets; an editable ldeval reads its own from the checkout."""
        harness = os.environ.get("LDEVAL_HARNESS_FILES", "1") != "0"
        targets = {"tasks": "lm_eval/tasks/ldyn_probes"} if harness else {}
        if version == "editable":
            build_data["force_include_editable"].update(targets)
            return
        build_data["force_include"].update(targets)
        build_data["force_include"]["tasks/."] = "ldeval/tasks"
