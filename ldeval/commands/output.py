"""What the commands print: it acts on no terminal and holds no secret.

Apart from the commands since each of them prints text of others: run names and probe
ids out of files, answers of servers, messages of libraries.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Iterable
from types import TracebackType
from typing import NoReturn

from ldeval.errors import StoreError
from ldeval.logs import clean


def say(text: object) -> None:
    """Print a line of results, whatever is in it.

    Raises:
        StoreError: standard output is a file on a full disk, say.
    """
    try:
        print(clean(text))
    except BrokenPipeError:
        raise  # the reader has seen enough
    except OSError as error:
        raise _unwritable(error) from error


def flush_output() -> None:
    """Bring out what :func:`say` printed.

    Raises:
        StoreError: as :func:`say`; what could not be written is dropped then.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # else the interpreter would try again while it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise _unwritable(error) from error


def _unwritable(error: OSError) -> StoreError:
    return StoreError(
        f"standard output: cannot be written ({error.strerror}). Free space, or send "
        "it elsewhere; files that were named on the command line are written."
    )


def complain(text: object, also: Iterable[str] = ()) -> None:
    """Print a line about what went wrong to standard error."""
    print(clean(text, also), file=sys.stderr)


def print_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """``sys.excepthook`` of the program: what nobody foresaw may quote a secret too."""
    complain("".join(traceback.format_exception(kind, error, trace)).rstrip())


class CleanParser(argparse.ArgumentParser):
    """A parser whose complaints do not repeat a secret of the command line."""

    def error(self, message: str) -> NoReturn:
        """Print usage and the complaint, and exit with 2."""
        super().error(clean(message))
