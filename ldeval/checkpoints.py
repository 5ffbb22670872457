"""Find the checkpoints of a run, order them by step, and look at their weight files.

One layout is read, which transformers' trainer writes and with it TRL, axolotl and
LLaMA-Factory::

    <run>/
        checkpoint-120/      full weights, in one file or shards with an index,
        checkpoint-240/      or an adapter
        model.safetensors    what training ended with; trainer_state.json beside it
                             says at which step

Only safetensors are ever read: a pickled checkpoint runs code when it is loaded. A
checkpoint that cannot be used is reported with its reason, never passed over; what
other layouts need is in :mod:`foreign_layouts`.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO

from ldeval.errors import CheckpointError, MissingExtraError
from ldeval.files import strict_json
from ldeval.foreign_layouts import conversion, foreign_steps
from ldeval.records import Checkpoint

log = logging.getLogger(__name__)

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_PICKLED = ("pytorch_model*.bin", "adapter_model*.bin", "*.pt", "*.pth", "*.ckpt")
_ADAPTER = "adapter_config.json"
_LONGEST_NAME = 250
"""Characters of a file name, which no file system takes many more of."""


@dataclass(frozen=True)
class BrokenCheckpoint:
    """A checkpoint folder that cannot be scored, and why."""

    path: str
    step: int
    reason: str


def find_checkpoints(run: str | Path) -> list[Checkpoint]:
    """The ``checkpoint-N`` folders of a run, by step; last what training ended with, if
    it was saved in the run's own folder at a later step.

    Folders are not opened: whether the weights can be read shows when they are. Only
    where the run's own may be those of its best checkpoint
    (``load_best_model_at_end``), the two are compared, and the run's own left out where
    they are the same.

    Raises:
        CheckpointError: when the folder is missing or holds no checkpoints; where they
            are of another layout, it names the command that converts them.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder. Give the run's output_dir.")
    found = sorted(
        (int(match.group(1)), path)
        for path in folder.iterdir()
        if path.is_dir() and (match := _CHECKPOINT.fullmatch(path.name))
    )
    end = _end_of_training(folder)
    later = end is not None and (not found or end > found[-1][0])
    if end is not None and later and not _holds_the_best(folder, end):
        found.append((end, folder))
    if not found:
        raise _no_checkpoints(folder)
    return [describe_checkpoint(path, step) for step, path in found]


def _end_of_training(folder: Path) -> int | None:
    """The step of the weights in a run's own folder; None where it is not told."""
    state = folder / "trainer_state.json"
    if not state.is_file() or not _has_weights(folder):
        return None
    step = _read_json(state).get("global_step")
    return step if isinstance(step, int) and step > 0 else None


def _holds_the_best(run: Path, end: int) -> bool:
    """Whether the weights in a run's own folder are those of its best checkpoint, which
    the trainer went back to after the last step. Where that checkpoint is gone they are
    taken for the last step's, with a warning."""
    step = _best_step(_read_json(run / "trainer_state.json"))
    if step is None or step >= end:
        return False
    return _same_as_best(run, run / f"checkpoint-{step}", end, _stamps(run))


def _best_step(state: dict[str, Any]) -> int | None:
    # the folder first: that is what the trainer loads, and older ones name no step
    best = state.get("best_model_checkpoint")
    if isinstance(best, str):
        match = _CHECKPOINT.fullmatch(PureWindowsPath(best).name)
        if match:
            return int(match.group(1))
    step = state.get("best_global_step")
    return step if isinstance(step, int) and step > 0 else None


def _stamps(run: Path) -> tuple[tuple[int, int], ...]:
    """Size and time of the weight files: others once they are written anew."""
    try:
        found = [path.stat() for path in weight_files(run) if path.is_file()]
    except CheckpointError:
        return ()  # which is named where they are compared
    return tuple((stat.st_size, stat.st_mtime_ns) for stat in found)


@lru_cache(maxsize=64)
def _same_as_best(
    run: Path, best: Path, end: int, stamps: tuple[tuple[int, int], ...]
) -> bool:
    """Compared and told once, though a run is looked through many times."""
    del stamps
    doubt = (
        f"{run}: its weights are taken for those of step {end}, and may be those of "
        f"{best.name} (load_best_model_at_end), which"
    )
    if not best.is_dir():
        log.warning("%s is gone", doubt)
        return False
    try:
        same = weights_hash(run) == weights_hash(best)
    except CheckpointError as error:
        log.warning("%s cannot be compared: %s", doubt, error)
        return False
    if same:
        log.warning(
            "%s: left out, since its weights are those of %s, the best checkpoint, and "
            "not of step %d (load_best_model_at_end)",
            run,
            best.name,
            end,
        )
    return same


def _no_checkpoints(folder: Path) -> CheckpointError:
    foreign = list(foreign_steps(folder))
    if foreign:
        step, path = foreign[0]
        more = f" (and {len(foreign) - 1} more like it)" if len(foreign) > 1 else ""
        target = folder / f"checkpoint-{step}"
        return CheckpointError(f"{path}{more} holds {conversion(path, target)}")
    found = conversion(folder)
    if found is not None:
        return CheckpointError(f"{folder} holds {found}")
    return CheckpointError(
        f"{folder}: no checkpoint-N folders in it. Give the run's output_dir, and "
        "save checkpoints while training (save_strategy='steps')."
    )


def describe_checkpoint(path: str | Path, step: int) -> Checkpoint:
    """A checkpoint record: full weights, or an adapter with its base.

    A damaged adapter configuration is not an error yet: :func:`check_weights` names it.
    """
    folder = Path(path)
    if not (folder / _ADAPTER).is_file():
        return Checkpoint(str(folder), step)
    try:
        base = _read_json(folder / _ADAPTER).get("base_model_name_or_path")
    except CheckpointError:
        base = None
    return Checkpoint(
        str(folder), step, "adapter", base if isinstance(base, str) and base else None
    )


def is_saved(checkpoint: Checkpoint) -> bool:
    """Whether the trainer has finished writing it: the trainer state comes last."""
    folder = Path(checkpoint.path)
    return (folder / "trainer_state.json").is_file() and _has_weights(folder)


def _has_weights(folder: Path) -> bool:
    """Also where a damaged configuration or index hides them: that is named when they
    are read, and costs no other checkpoint."""
    try:
        return bool(weight_files(folder))
    except CheckpointError:
        return True


def _read_json(path: Path) -> dict[str, Any]:
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


def weight_files(folder: str | Path) -> list[Path]:
    """The weight files that transformers would load from a folder: an adapter, what
    ``transformers_weights`` of the configuration names, one file, or the shards that
    the index names. Others beside them do not count."""
    folder = Path(folder)
    if (folder / _ADAPTER).is_file():
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
    name = _read_json(config).get("transformers_weights")
    return None if name is None else _own_file(config, str(name))


def _shard_names(index: Path) -> list[str]:
    names = _read_json(index).get("weight_map")
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


def check_weights(checkpoint: Checkpoint) -> None:
    """Open every weight file, an adapter's base too, and check that it is whole.

    Raises:
        CheckpointError: naming the file, what is wrong and what to do.
    """
    for item in _with_bases(checkpoint):
        files = weight_files(item.folder)
        if not files:
            raise _no_weights(Path(item.folder))
        for path in files:
            _check_whole(path)


def _with_bases(checkpoint: Checkpoint) -> Iterator[Checkpoint]:
    """A checkpoint and what an adapter stands upon, as far as it is on this disk."""
    passed: set[Path] = set()
    while True:
        folder = Path(checkpoint.folder)
        if not folder.is_dir():
            raise CheckpointError(
                f"{folder}: no such folder. Give a local folder; a model of a hub must "
                "be downloaded first."
            )
        passed.add(folder.resolve())
        if checkpoint.layout == "adapter":
            _read_json(folder / _ADAPTER)
        yield checkpoint
        base = checkpoint.base
        if checkpoint.layout != "adapter" or base is None or not Path(base).is_dir():
            return
        if Path(base).resolve() in passed:
            raise CheckpointError(
                f"{folder}: an adapter upon itself: {_ADAPTER} names {base} as the "
                "base. Name the model that it was trained upon."
            )
        checkpoint = describe_checkpoint(base, 0)


def _no_weights(folder: Path) -> CheckpointError:
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


def _check_whole(path: Path) -> None:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingExtraError("safetensors", "hf") from error
    try:
        with safe_open(str(path), framework="np") as handle:
            names = len(handle.keys())
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: is gone. Was the checkpoint deleted while it was read, or is a "
            "shard that the index names missing?"
        ) from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as safetensors ({error}); it has "
            f"{path.stat().st_size} bytes. "
            "Was it cut short while being written or copied? Save or copy it again."
        ) from error
    if not names:
        raise CheckpointError(f"{path}: holds no tensors.")


def weights_hash(folder: str | Path) -> str:
    """SHA-256 over the name, type, shape and content of every tensor, by name.

    The same weights have the same hash however they are split into files, and whatever
    release saved them.

    Raises:
        CheckpointError: when there are none.
    """
    entries = sorted(_tensor_headers(folder), key=lambda item: item[0])
    if not entries:
        raise _no_weights(Path(folder))
    digest = hashlib.sha256()
    handles: dict[Path, BinaryIO] = {}
    try:
        for name, entry, path, data_start in entries:
            if path not in handles:
                handles[path] = path.open("rb")
            handle = handles[path]
            digest.update(tensor_header(name, entry["dtype"], entry["shape"]))
            start, stop = entry["data_offsets"]
            handle.seek(data_start + start)
            _update(digest, handle, stop - start)
    finally:
        for handle in handles.values():
            handle.close()
    return digest.hexdigest()


def tensor_header(name: str, dtype: str, shape: Sequence[int]) -> bytes:
    """What stands before a tensor's content where weights are hashed.

    Args:
        dtype: as safetensors calls it, e.g. ``F32``.
    """
    return f"{name} {dtype} {','.join(map(str, shape))}\n".encode()


def _update(digest: Any, handle: BinaryIO, length: int) -> None:
    while length > 0:
        chunk = handle.read(min(length, 1 << 22))
        if not chunk:
            raise CheckpointError(f"{handle.name}: ends before its last tensor.")
        digest.update(chunk)
        length -= len(chunk)


def _tensor_headers(
    folder: str | Path,
) -> Iterator[tuple[str, dict[str, Any], Path, int]]:
    """(name, header entry, file, where its data begin) of each tensor, from the files'
    headers alone."""
    for path in weight_files(folder):
        header, start = _header(path)
        for name, entry in header.items():
            if name != "__metadata__":
                yield name, entry, path, start


def _header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """The header of a safetensors file, and where its data begin.

    Raises:
        CheckpointError: it is none.
    """
    try:
        with path.open("rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            if size > path.stat().st_size:
                raise ValueError(f"a header of {size} bytes in a shorter file")
            header = strict_json(handle.read(size))
        for name, entry in header.items():
            if name != "__metadata__":
                _check_entry(name, entry)
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as safetensors ({error}). Was it copied whole? "
            "Save or copy it again."
        ) from error
    return header, 8 + size


def _check_entry(name: str, entry: Any) -> None:
    """A tensor's line in a header: dtype, shape, and where it begins and ends."""
    if not isinstance(entry, dict):
        raise ValueError(f"tensor {name!r} is {type(entry).__name__}")
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list):
        raise ValueError(f"tensor {name!r} has no shape and data_offsets")
    whole = all(type(n) is int and 0 <= n < 1 << 63 for n in (*shape, *offsets))
    if not whole or len(offsets) != 2 or not isinstance(entry.get("dtype"), str):
        raise ValueError(f"tensor {name!r} has no dtype, shape and data_offsets")


def stored_dtype(folder: str | Path, base: str | None = None) -> str | None:
    """The floating-point type that most stored bytes have, e.g. ``F32``; of an adapter
    that of the model it stands upon, whose weights decide how exact its scores are.

    Saving in a low precision rounds small updates away, so both sides of a diff should
    be stored alike.

    Args:
        base: of an adapter that does not say upon which.

    Returns:
        None where it is not known: no tensors, or a base that is not on this disk.
    """
    checkpoint = describe_checkpoint(folder, 0)
    if checkpoint.layout == "adapter":
        below = checkpoint.base or base
        return None if below is None else stored_dtype(below)
    counts: dict[str, int] = {}
    for _, entry, _, _ in _tensor_headers(folder):
        start, stop = entry["data_offsets"]
        counts[entry["dtype"]] = counts.get(entry["dtype"], 0) + stop - start
    return max(counts, key=lambda name: counts[name]) if counts else None


def tensor_shapes(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor, by name. An output layer stored beside an embedding that
    the configuration ties is left out: some savers write it and some do not."""
    shapes = {
        name: tuple(entry["shape"]) for name, entry, *_ in _tensor_headers(folder)
    }
    if _ties_embeddings(Path(folder)):
        shapes.pop("lm_head.weight", None)
    return shapes


def _ties_embeddings(folder: Path) -> bool:
    """Whether ``config.json`` says so outright."""
    path = folder / "config.json"
    if not path.is_file():
        return False
    config = _read_json(path)
    text = config.get("text_config") or {}
    return bool(config.get("tie_word_embeddings") or text.get("tie_word_embeddings"))


def has_tokenizer(folder: str | Path) -> bool:
    """Whether a tokenizer was saved beside the weights."""
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.json")
    return any((Path(folder) / name).is_file() for name in names)
