"""What a killed process leaves: files and folders under temporary names.

A temporary name says which machine and process it is of, so that a later process there
can tell what nobody writes any more. Those of other machines are left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_MARK = re.compile(rf"{_MACHINE}-(\d+)")


def temporary_name(name: str) -> str:
    """What this process calls a file or folder until it is whole."""
    return f"{name}.{_MACHINE}-{os.getpid()}.partial"


@contextlib.contextmanager
def temporary_folder(near: Path | None, prefix: str) -> Iterator[Path]:
    """A folder that goes when the block ends.

    Args:
        near: the folder it is made in; None: where the system keeps temporary ones.
        prefix: of its name; what killed processes left under it goes first.
    """
    if near is not None:
        clear_litter(near, prefix)
    mine = f"{prefix}{_MACHINE}-{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=mine, dir=near) as folder:
        yield Path(folder)


def clear_litter(folder: Path, prefix: str) -> None:
    """Remove what begins so, and is of a process of this machine that is no more.

    Args:
        folder: on a disk.
        prefix: up to the process's mark.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            rest = entry.name.removeprefix(prefix)
            mark = _MARK.match(rest) if rest != entry.name else None
            if mark is None or _runs(int(mark[1])):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink(missing_ok=True)


def _runs(process: int) -> bool:
    """Whether a process is there, perhaps another's with the same number."""
    if os.name != "posix":
        return True  # there, asking would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
