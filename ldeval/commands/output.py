"""What the commands print and log: it acts on no terminal and holds no secret.

Apart from the commands since each of them prints text of others: run names and probe
ids out of files, answers of servers, messages of libraries.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Iterable
from types import TracebackType
from typing import NoReturn

from ldeval.errors import StoreError
from ldeval.printable import visible_lines
from ldeval.redact import environment_secrets, redact_text


def clean(text: object, also: Iterable[str] = ()) -> str:
    """Text to show on a terminal: no control characters, no secrets.

    Args:
        also: environment variables that hold a secret whatever they are called.
    """
    return visible_lines(redact_text(str(text), environment_secrets(os.environ, also)))


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


class CleanFormatter(logging.Formatter):
    """Formats log records, tracebacks in them too, and cleans what comes out.

    A formatter rather than a filter: only here message, arguments and traceback are one
    text, and records of other libraries come here as well.
    """

    def __init__(self, format_: str, also: Iterable[str] = ()) -> None:
        super().__init__(format_)
        self._also = tuple(also)

    def format(self, record: logging.LogRecord) -> str:
        """The record as one text."""
        return clean(super().format(record), self._also)


def start_logging(also: Iterable[str] = ()) -> None:
    """Warnings to standard error, cleaned; does nothing where logging was set up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(CleanFormatter("%(levelname)s %(message)s", also))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


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
