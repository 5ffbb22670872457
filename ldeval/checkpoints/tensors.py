"""The tensors of a checkpoint: their headers, and a hash over their contents.

Apart from a library that opens them: headers alone tell shapes and types of a model
that no machine here could hold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ldeval.checkpoints.layout import (
    base_of,
    describe_checkpoint,
    no_weights,
    read_json,
    weight_files,
)
from ldeval.errors import CheckpointError
from ldeval.files import strict_json
from ldeval.printable import quoted

TIED_UNSAID = (
    "bloom",
    "cohere",
    "cohere2",
    "ernie4_5",
    "ernie4_5_moe",
    "falcon",
    "falcon_mamba",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "gemma3n",
    "gemma3n_text",
    "gpt2",
    "gpt_bigcode",
    "gpt_neo",
    "lfm2",
    "mamba",
    "mpt",
    "openai-gpt",
    "opt",
    "recurrent_gemma",
    "smollm3",
    "starcoder2",
    "xglm",
    "zamba",
    "zamba2",
)
"""Model types that tie by default, which transformers 4 did not write down; 5 does."""


def weights_hash(folder: str | Path) -> str:
    """SHA-256 over the name, type, shape and content of every tensor, by name.

    The same weights have the same hash however they are split into files, and whatever
    release saved them.

    Raises:
        CheckpointError: when there are none.
    """
    entries = sorted(tensor_headers(folder), key=lambda item: item[0])
    if not entries:
        raise no_weights(Path(folder))
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
            for chunk in _read(handle, stop - start):
                digest.update(chunk)
    finally:
        for handle in handles.values():
            handle.close()
    return digest.hexdigest()


def same_weights(one: str | Path, other: str | Path) -> bool:
    """Whether two folders' hashes are equal, read up to the first difference alone.

    Raises:
        CheckpointError: when the weights of either cannot be read.
    """
    first, second = (
        sorted(tensor_headers(folder), key=lambda item: item[0])
        for folder in (one, other)
    )
    if [_described(*item) for item in first] != [_described(*item) for item in second]:
        return False
    return all(
        left == right
        for a, b in zip(first, second, strict=True)
        for left, right in zip(_chunks(*a), _chunks(*b), strict=True)
    )


def _described(name: str, entry: dict[str, Any], *_: object) -> tuple[bytes, int]:
    start, stop = entry["data_offsets"]
    return tensor_header(name, entry["dtype"], entry["shape"]), stop - start


def tensor_header(name: str, dtype: str, shape: Sequence[int]) -> bytes:
    """What stands before a tensor's content where weights are hashed.

    Args:
        dtype: as safetensors calls it, e.g. ``F32``.
    """
    return f"{name} {dtype} {','.join(map(str, shape))}\n".encode()


def _chunks(
    _name: str, entry: dict[str, Any], path: Path, data_start: int
) -> Iterator[bytes]:
    """The content of one tensor."""
    start, stop = entry["data_offsets"]
    with path.open("rb") as handle:
        handle.seek(data_start + start)
        yield from _read(handle, stop - start)


def _read(handle: BinaryIO, length: int) -> Iterator[bytes]:
    while length > 0:
        chunk = handle.read(min(length, 1 << 22))
        if not chunk:
            raise CheckpointError(f"{handle.name}: ends before its last tensor.")
        yield chunk
        length -= len(chunk)


def stored_dtype(folder: str | Path, base: str | None = None) -> str | None:
    """The floating-point type that most stored bytes have, e.g. ``F32``; of an adapter
    that of the model it stands upon, whose weights decide how exact its scores are.

    Saving in a low precision rounds small updates away, so both sides of a diff should
    be stored alike.

    Args:
        base: as of :func:`base_of`.

    Returns:
        None where it is not known: no tensors, or a base that is not on this disk.
    """
    checkpoint = describe_checkpoint(folder, 0)
    if checkpoint.layout == "adapter":
        known = checkpoint.base is not None or base is not None
        return stored_dtype(base_of(checkpoint, base)) if known else None
    counts: dict[str, int] = {}
    for _, entry, _, _ in tensor_headers(folder):
        start, stop = entry["data_offsets"]
        counts[entry["dtype"]] = counts.get(entry["dtype"], 0) + stop - start
    return max(counts, key=lambda name: counts[name]) if counts else None


def tensor_shapes(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor, by name. An output layer stored beside an embedding that
    the configuration ties is left out: some savers write it and some do not."""
    shapes = {name: tuple(entry["shape"]) for name, entry, *_ in tensor_headers(folder)}
    if _ties_embeddings(Path(folder)):
        shapes.pop("lm_head.weight", None)
    return shapes


def _ties_embeddings(folder: Path) -> bool:
    """Whether ``config.json`` says so, or says nothing and its model type does so."""
    path = folder / "config.json"
    if not path.is_file():
        return False
    config = read_json(path)
    text = config.get("text_config")
    text = text if isinstance(text, dict) else {}
    said = [item.get("tie_word_embeddings") for item in (config, text)]
    if said == [None, None]:
        return (text.get("model_type") or config.get("model_type")) in TIED_UNSAID
    return any(said)


def tensor_headers(
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
        raise ValueError(f"tensor {quoted(name, 200)} is {type(entry).__name__}")
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list):
        raise ValueError(f"tensor {quoted(name, 200)} has no shape and data_offsets")
    whole = all(type(n) is int and 0 <= n < 1 << 63 for n in (*shape, *offsets))
    if not whole or len(offsets) != 2 or not isinstance(entry.get("dtype"), str):
        raise ValueError(
            f"tensor {quoted(name, 200)} has no dtype, shape and data_offsets"
        )
