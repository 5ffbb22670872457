"""Arrays in an ``.npz`` of others: what each claims, before any is unpacked."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np

_ENCRYPTED = 1
"""The flag of an entry that asks for a password."""


def claimed_shape(archive: zipfile.ZipFile, name: str, most: int) -> tuple[int, ...]:
    """The shape of one array, which is not too large and no larger than its file.

    numpy would ask for the memory that a header claims before it reads on, and unpack
    what a deflated file of a thousandth holds.

    Args:
        name: of its file, with ``.npy``.
        most: bytes that it may unpack to.

    Raises:
        KeyError: there is no such file.
        ValueError: it is too large, claims more than it holds, is encrypted, or holds
            objects.
    """
    entry = archive.getinfo(name)
    if entry.flag_bits & _ENCRYPTED:
        raise ValueError(f"{name} is encrypted")
    size = entry.file_size
    if size > most:
        raise ValueError(f"{name} unpacks to {size} bytes; at most {most}")
    readers: Mapping[tuple[int, int], Callable[[IO[bytes]], Any]] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    with archive.open(name) as stream:
        version = tuple(np.lib.format.read_magic(stream))  # type: ignore[no-untyped-call]
        if version not in readers:
            raise ValueError(f"{name} is of version {version}; not 1.0 or 2.0")
        shape, _, dtype = readers[version](stream)
    if dtype.hasobject:
        raise ValueError(f"{name} holds objects, which are never unpickled")
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > size:
        raise ValueError(f"{name} claims {claimed} bytes and holds {size}")
    return tuple(shape)
