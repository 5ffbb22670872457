"""Where the task files go when ldeval is built.

lm_eval has no entry points for tasks: it scans its own ``tasks`` folder. Placing ours
there makes the plain ``lm_eval --tasks ldyn_probes`` work, and ``pip uninstall ldeval``
takes them away again. Beside an *editable* lm_eval this would shadow the real package,
so ``LDEVAL_HARNESS_FILES=0`` leaves the harness's folder alone; the files ship inside
ldeval too, for ``--include_path "$(ldeval tasks)"``.
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class TaskFiles(BuildHookInterface):
    """Adds ``tasks/`` to the wheel, once for ldeval and once for the harness."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Choose the targets; an editable ldeval reads its own from the checkout."""
        tasks = Path(self.root) / "tasks"
        editable = version == "editable"
        key = "force_include_editable" if editable else "force_include"
        self._copy: str | None = None
        if os.environ.get("LDEVAL_HARNESS_FILES", "1") != "0":
            # a copy: one source can be included in one place only
            self._copy = tempfile.mkdtemp()
            copy = Path(self._copy) / "tasks"
            shutil.copytree(tasks, copy)
            build_data[key][str(copy)] = "lm_eval/tasks/ldyn_probes"
        if not editable:
            build_data[key][str(tasks)] = "ldeval/tasks"

    def finalize(
        self, version: str, build_data: dict[str, Any], artifact_path: str
    ) -> None:
        """Remove the copy."""
        if self._copy is not None:
            shutil.rmtree(self._copy)
