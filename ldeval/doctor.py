"""Look at the installation and name what keeps it from working, with the cure."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ldeval.bundled import bundled_probes, tasks_folder
from ldeval.errors import StoreError


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    good: bool
    text: str
    """What was found; for a fault, the cure too."""


def findings() -> Iterator[Finding]:
    """Look at everything a user may stumble on."""
    yield from _task_files()
    yield _harness()
    for package, extra in (
        ("torch", "hf"),
        ("transformers", "hf"),
        ("matplotlib", "plot"),
        ("trl", "train"),
    ):
        yield _package(package, extra)
    yield from _vllm()


def _task_files() -> Iterator[Finding]:
    try:
        folder = tasks_folder()
    except StoreError as error:
        yield Finding(False, str(error))
        return
    yield Finding(True, f"task files: {folder}; probes: {bundled_probes()}")


def harness_paths() -> list[str]:
    """The folders that make up the package ``lm_eval``; more than one, or none with
    code in it, means that a stray folder hides the real one."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None:
        return []
    return [str(path) for path in spec.submodule_search_locations or []]


def _harness() -> Finding:
    paths = harness_paths()
    if not paths:
        return Finding(False, "lm_eval is not installed: pip install ldeval")
    real = [path for path in paths if (Path(path) / "__init__.py").is_file()]
    if not real:
        stray = ", ".join(paths)
        return Finding(
            False,
            f"lm_eval is shadowed by {stray}, which holds no code: lm_eval itself is "
            "an editable install, and a folder of its name stands before it. Cure: "
            f"pip uninstall ldeval, delete {stray}, install ldeval again with "
            "LDEVAL_HARNESS_FILES=0 set, and pass --include_path "
            '"$(ldeval tasks)" to lm_eval.',
        )
    inside = Path(real[0]) / "tasks" / "ldyn_probes" / "ldyn_probes.yaml"
    version = metadata.version("lm_eval")
    if inside.is_file():
        return Finding(
            True, f"lm_eval {version} finds the tasks: lm_eval --tasks ldyn_probes"
        )
    return Finding(
        True,
        f"lm_eval {version} holds no probe tasks (it is editable, or ldeval was built "
        'with LDEVAL_HARNESS_FILES=0): pass --include_path "$(ldeval tasks)"',
    )


def _package(name: str, extra: str) -> Finding:
    try:
        return Finding(True, f"{name} {metadata.version(name)}")
    except metadata.PackageNotFoundError:
        return Finding(True, f"{name} is not installed (optional: the extra '{extra}')")


def _vllm() -> Iterator[Finding]:
    if importlib.util.find_spec("vllm") is None:
        yield Finding(
            True,
            "vllm is not installed (optional: the extra 'vllm' for CUDA, "
            "scripts/setup --vllm-cpu for CPU)",
        )
        return
    try:
        yield Finding(True, f"vllm {metadata.version('vllm')}")
    except metadata.PackageNotFoundError:
        yield Finding(
            False,
            "vllm is importable but has no metadata of that name (vllm-cpu), on which "
            "lm_eval --model vllm fails. Cure: scripts/setup --vllm-cpu",
        )
    for name in ("torchvision", "torchaudio", "torchcodec"):
        if importlib.util.find_spec(name) is not None and "+cpu" in _version("torch"):
            yield Finding(
                False,
                f"{name} {_version(name)} beside a CPU build of torch may not load, "
                f"which stops vllm. Cure: pip uninstall {name}",
            )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"
