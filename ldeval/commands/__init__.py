"""The commands that have a module of their own, and how a command is added.

Each module adds its commands to the parser and runs them: parse, call, print, as in
:mod:`ldeval.cli`, which holds the rest.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldeval.errors import LdevalError, MismatchError
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


class Noted(argparse.Action):
    """Stores a value, and in ``given`` that the option was given; of a flag, which has
    ``nargs=0``, its ``const``."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        """Called by argparse for each time that the option is given."""
        setattr(namespace, self.dest, self.const if self.nargs == 0 else values)
        before = getattr(namespace, "given", ())
        namespace.given = (*before, self.option_strings[0])


def whole_number(least: int = 0) -> Callable[[str], int]:
    """What reads the value of an option that counts something, of which there are
    ``least`` at least."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"{text!r} is no whole number of {least} or more"
            )
        return int(text)

    return read


def keep_sources(output: Path, *sources: str | Path | None) -> None:
    """Refuse an output that would replace what it is made of.

    Raises:
        MismatchError: the output is one of the sources.
    """
    for source in sources:
        if source is None or not output.exists() or not Path(source).exists():
            continue
        if output.samefile(source):
            raise MismatchError(
                f"{output}: would be replaced by what is made of it. Give another "
                "output with -o."
            )


def store_place(text: str) -> Path:
    """The value of an option that takes a folder of a store, or its URL."""
    try:
        return place(text)
    except LdevalError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
