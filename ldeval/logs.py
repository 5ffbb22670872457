"""Log lines, cleaned: they act on no terminal and hold no secret.

Apart from the commands, which print the rest, since workers of a cluster log too.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable

from ldeval.printable import visible_lines
from ldeval.redact import environment_secrets, redact_text


def clean(text: object, also: Iterable[str] = ()) -> str:
    """Text to show on a terminal: no control characters, no secrets.

    Args:
        also: environment variables that hold a secret whatever they are called.
    """
    return visible_lines(redact_text(str(text), environment_secrets(os.environ, also)))


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
