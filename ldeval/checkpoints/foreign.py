"""Checkpoints as they are saved for going on with training, and how to convert them.

Apart from :mod:`layout`, which reads folders that transformers loads. Some
trainers save in shards that only the processes which wrote them can use, or weights
without a configuration: accelerate's ``save_state`` (open-instruct's ``step_N`` and
``epoch_N``), FSDP's distributed checkpoints, DeepSpeed's ZeRO partitions. Such a folder
is not read here, half of it pickled as it is; it is recognised, and the command that
converts it is named.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

_OTHER_NAMES = re.compile(r"(?:step|epoch|checkpoint|global_step)_?-?(\d+)")
"""Folders of one step by other names than ``checkpoint-N``."""
_DEEPSPEED = "deepspeed.utils.zero_to_fp32"
"""DeepSpeed's converter, a copy of which it leaves in each folder."""


def conversion(folder: str | Path, target: str | Path | None = None) -> str | None:
    """What a folder of another layout holds, and the command that converts it.

    Args:
        target: where the converted checkpoint should stand; None for beside it.

    Returns:
        None where no such layout is recognised.
    """
    folder = Path(folder)
    out = (
        Path(target) if target is not None else folder.with_name(f"{folder.name}-full")
    )
    for found in (_deepspeed(folder, out), _fsdp(folder, out), _bare(folder, out)):
        if found is not None:
            return found
    return None


def _deepspeed(folder: Path, out: Path) -> str | None:
    # under accelerate's save_state the partitions stand in pytorch_model/, otherwise in
    # global_stepN/; each process has its own
    shards = sorted(folder.glob("*/*zero_pp_rank_*_optim_states.pt"))
    if not shards:
        shards = sorted(folder.glob("*/*mp_rank_*_model_states.pt"))
    if not shards:
        return None
    # not the zero_to_fp32.py in the folder, which is code of whoever sent it
    command = _command("python", "-m", _DEEPSPEED, folder, out, "--safe_serialization")
    return (
        f"DeepSpeed ZeRO partitions ({shards[0].parent.name}/{shards[0].name} …). "
        "They are pickled, and DeepSpeed unpickles them: only if you trust who made "
        f"them, convert them with\n    {command}\nand {_complete(out)}"
    )


def _fsdp(folder: Path, out: Path) -> str | None:
    shards = [path.parent for path in sorted(folder.glob("*/*.distcp"))]
    shards += [folder] if list(folder.glob("*.distcp")) else []
    models = [path for path in shards if not path.name.startswith("optimizer")]
    if not models:
        return None
    return (
        f"FSDP shards ({models[0].name}/*.distcp). Convert them with\n    "
        f"{_command('accelerate', 'merge-weights', models[0], out)}\n"
        f"and {_complete(out)}"
    )


def _bare(folder: Path, out: Path) -> str | None:
    """Accelerate's ``save_state`` of an unsharded model: weights without a config."""
    weights = [*folder.glob("model*.safetensors"), *folder.glob("pytorch_model*.bin")]
    states = [*folder.glob("random_states_*.pkl"), *folder.glob("sampler*.bin")]
    if not weights or not states or (folder / "config.json").is_file():
        return None
    if not list(folder.glob("model*.safetensors")):
        return (
            "a state that accelerate saved pickled. Save it with safe_serialization="
            "True (accelerator.save_state), which is accelerate's default"
        )
    copy = _command("cp", *sorted(folder.glob("model*.safetensors*")), out)
    return (
        "a state that accelerate saved: weights without a configuration. Convert it "
        f"with\n    {_command('mkdir', '-p', out)} && {copy}\nand {_complete(out)}"
    )


def _complete(out: Path) -> str:
    return (
        f"copy the base model's config.json and tokenizer files into {out}: a run's "
        "folder holds checkpoint-N folders, N being the optimizer step."
    )


def _command(*parts: str | Path) -> str:
    return shlex.join(str(part) for part in parts)


def foreign_steps(run: str | Path) -> Iterator[tuple[int, Path]]:
    """Folders of single steps, by other names than ``checkpoint-N``, that hold
    something to convert."""
    for place in (Path(run), Path(run) / "checkpoints"):
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            match = _OTHER_NAMES.fullmatch(path.name)
            if path.is_dir() and match and conversion(path) is not None:
                yield int(match.group(1)), path
