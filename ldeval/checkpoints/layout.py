"""What lies in a checkpoint's folder, and which of its files transformers would load.

Only safetensors are ever read: a pickled checkpoint runs code when it is loaded.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import Any

from ldeval.checkpoints.foreign import conversion
from ldeval.errors import CheckpointError
from ldeval.files import strict_json
from ldeval.printable import quoted
from ldeval.records import Checkpoint

log = logging.getLogger(__name__)

ADAPTER = "adapter_config.json"
_PICKLED = ("pytorch_model*.bin", "adapter_model*.bin", "*.pt", "*.pth", "*.ckpt")
_LONGEST_NAME = 250
"""Characters of a file name, which no file system takes many more of."""


def describe_checkpoint(path: str | Path, step: int) -> Checkpoint:
    """A checkpoint record: full weights, or an adapter with its base.

    A damaged adapter configuration is not an error yet: :func:`check_weights` names it.
    """
    folder = Path(path)
    if not (folder / ADAPTER).is_file():
        return Checkpoint(str(folder), step)
    try:
        base = read_json(folder / ADAPTER).get("base_model_name_or_path")
    except CheckpointError:
        base = None
    return Checkpoint(
        str(folder), step, "adapter", base if isinstance(base, str) and base else None
    )


def base_of(adapter: Checkpoint, base: str | None) -> str:
    """The model that an adapter stands upon: the one that it names; where it names
    none, or one that is not on this disk, as after a move, ``base``.

    Raises:
        CheckpointError: when neither is known.
    """
    named = adapter.base
    if named is None and base is None:
        raise CheckpointError(
            f"{adapter.path}: an adapter that does not say upon which base. Give it "
            "with --base."
        )
    if named is None or base is None:
        return str(named or base)
    # a stage's base may itself be an adapter, upon which none stands
    if Path(named).is_dir() or describe_checkpoint(base, 0).layout == "adapter":
        return named
    _tell_instead(named, base)
    return base


@lru_cache(maxsize=64)
def _tell_instead(named: str, base: str) -> None:
    """Once, though a base is asked for at every checkpoint."""
    log.warning(
        "adapters name %s as their base, which is no folder here: they are taken to "
        "stand upon %s (--base)",
        quoted(named, 200),
        base,
    )


def weight_files(folder: str | Path) -> list[Path]:
    """The weight files that transformers would load from a folder: an adapter, what
    ``transformers_weights`` of the configuration names, one file, or the shards that
    the index names. Others beside them do not count."""
    folder = Path(folder)
    if (folder / ADAPTER).is_file():
        # full weights beside it are not what is loaded, and must not vouch for a pickle
        adapter = folder / "adapter_model.safetensors"
        return [adapter] if adapter.is_file() else []
    named = _named_weights(folder / "config.json")
    if named is not None:
        path = folder / named
        if named.endswith(".safetensors.index.json"):
            return [folder / name for name in _shard_names(path)]
        # transformers would open a pickle under such a name: it is none of ours
        return [path] if named.endswith(".safetensors") else []
    whole = folder / "model.safetensors"
    if whole.is_file():
        # an index beside it is left over from an earlier save in shards
        return [whole]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return [folder / name for name in _shard_names(index)]
    return []


def _named_weights(config: Path) -> str | None:
    """The file that a configuration names for transformers to load, if it does."""
    if not config.is_file():
        return None
    name = read_json(config).get("transformers_weights")
    return None if name is None else _own_file(config, str(name))


def _shard_names(index: Path) -> list[str]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(
            f"{index}: has no weight_map of tensors to files. Save or copy it again."
        )
    return sorted({_own_file(index, str(name)) for name in names.values()})


def _own_file(source: Path, name: str) -> str:
    """A name that a file gives for another one beside it.

    Raises:
        CheckpointError: it is none.
    """
    plain = PureWindowsPath(name).name == name and "\0" not in name
    if not plain or name in ("", "..") or len(name) > _LONGEST_NAME:
        raise CheckpointError(
            f"{source}: names {name[:80]!r}, empty or outside its folder, which no "
            "saver writes. Do not use this checkpoint unless you know why."
        )
    return name


def has_weights(folder: Path) -> bool:
    """Also where a damaged configuration or index hides them: that is named when they
    are read, and costs no other checkpoint."""
    try:
        return bool(weight_files(folder))
    except CheckpointError:
        return True


def no_weights(folder: Path) -> CheckpointError:
    foreign = conversion(folder)
    if foreign is not None:
        return CheckpointError(f"{folder} holds {foreign}")
    pickled = sorted(path.name for glob in _PICKLED for path in folder.glob(glob))
    if pickled:
        return CheckpointError(
            f"{folder}: only pickled weights ({', '.join(pickled[:3])}), which run "
            "code when they are loaded. Save as safetensors (save_pretrained) and try "
            "again."
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    found = f"; found {', '.join(others[:3])}" if others else ""
    return CheckpointError(
        f"{folder}: no *.safetensors in it under a name that transformers loads "
        f"(model.safetensors, its index, adapter_model.safetensors){found}."
    )


def has_tokenizer(folder: str | Path) -> bool:
    """Whether a tokenizer was saved beside the weights."""
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.json")
    return any((Path(folder) / name).is_file() for name in names)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: naming the file.
    """
    try:
        record = strict_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as JSON ({error}). Save or copy it again."
        ) from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: holds {type(record).__name__}, not an object.")
    return record
