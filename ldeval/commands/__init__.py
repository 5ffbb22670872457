"""The commands that have a module of their own, and how a command is added.

Each module adds its commands to the parser and runs them: parse, call, print, as in
:mod:`ldeval.cli`, which holds the rest.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldeval.errors import LdevalError
from ldeval.files import place
from ldeval.redact import redact_url

Handler = Callable[[argparse.Namespace], int]


def add_command(
    commands: Any, name: str, handler: Handler, summary: str
) -> argparse.ArgumentParser:
    """A command under a parser's sub-commands; ``handler`` runs it."""
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + "."
    )
    command.set_defaults(handler=handler)
    return command


def local_name(text: str) -> str:
    """The value of an option that names something on this machine's disk; of a URL a
    folder ``s3:`` would be made of, or looked for."""
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{redact_url(text)!r} is a URL, and only a store may be at one. Give a "
            "place on this machine's disk: of checkpoints a copy, or a mounted bucket."
        )
    return text


def local_path(text: str) -> Path:
    """As :func:`local_name`, as a path."""
    return Path(local_name(text))


def store_place(text: str) -> Path:
    """The value of an option that takes a folder of a store, or its URL."""
    try:
        return place(text)
    except LdevalError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
