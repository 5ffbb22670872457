"""Keep freed memory while a model computes on a CPU.

A forward pass frees and asks for the same large blocks a thousand times over. glibc
gives such blocks back to the system at once, and the system clears every page of them
again: a sixth of the time of packed scoring, measured on two cores. Here
glibc is told to keep them for as long as scoring lasts; elsewhere nothing is done.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
from collections.abc import Iterator

# names and numbers of glibc's mallopt(3)
_TRIM_THRESHOLD = -1
_TOP_PAD = -2
_MMAP_THRESHOLD = -3

_KEEPING = {
    _MMAP_THRESHOLD: 2**31 - 1,
    _TRIM_THRESHOLD: 2**31 - 1,
    _TOP_PAD: 256 * 2**20,
}
_BEFORE = {
    _MMAP_THRESHOLD: 32 * 2**20,
    _TRIM_THRESHOLD: 64 * 2**20,
    _TOP_PAD: 128 * 2**10,
}
"""Where glibc's own thresholds end up once large blocks have been freed."""


@contextlib.contextmanager
def kept_memory(device_type: str) -> Iterator[None]:
    """Keep freed blocks inside; give them back at the end. For the CPU on glibc."""
    if device_type != "cpu" or platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    _set(libc, _KEEPING)
    try:
        yield
    finally:
        _set(libc, _BEFORE)
        libc.malloc_trim(0)


def _set(libc: ctypes.CDLL, values: dict[int, int]) -> None:
    for name, value in values.items():
        libc.mallopt(name, value)
