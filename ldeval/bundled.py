"""Where the task files and the bundled probes are: in a wheel, or in a checkout.

Apart from the harness, so that finding a file needs no import of lm_eval.
"""

from __future__ import annotations

from pathlib import Path

from ldeval.errors import StoreError


def tasks_folder() -> Path:
    """The folder of the ``ldyn_*`` YAML files, for ``--include_path``.

    Raises:
        StoreError: when the installation lacks it.
    """
    package = Path(__file__).parent
    for folder in (package / "tasks", package.parent / "tasks"):
        if (folder / "ldyn_probes.yaml").is_file():
            return folder
    raise StoreError(
        f"no task files beside {package}: this installation of ldeval is incomplete. "
        "Reinstall it with pip."
    )


def bundled_probes() -> Path:
    """The probe set that ships with ldeval."""
    return tasks_folder() / "probes.jsonl"
