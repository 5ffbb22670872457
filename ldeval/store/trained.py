"""Which examples each optimizer step of a stored run trained on.

A trainer writes ``trained.jsonl`` (:mod:`ldeval.integrations.recorder`); here it is
read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from ldeval.files import (
    local_copy,
    place,
    strict_json,
    understood,
)
from ldeval.printable import quoted
from ldeval.store.layout import TRAINED

log = logging.getLogger(__name__)


def read_trained(run: str | Path) -> dict[int, frozenset[str]] | None:
    """Which examples each optimizer step trained on; None where it is not known.

    Raises:
        StoreError: when the record is damaged, naming the line.
    """
    path = place(run) / TRAINED
    if not path.is_file():
        return None
    steps: dict[int, frozenset[str]] = {}
    for step, examples, _ in _trained_lines(path):
        steps[step] = steps.get(step, frozenset()).union(examples)
    return steps


def read_trained_between(
    run: str | Path, first: int, last: int
) -> dict[int, frozenset[str]] | None:
    """What :func:`read_trained` finds, where it tells of every step after ``first`` and
    up to ``last``. None where one is missing: training that was recorded in part only
    would read as if the rest of it had trained on nothing.

    Raises:
        StoreError: when the record is damaged, naming the line.
    """
    found = read_trained(run)
    count, earliest = (0, 0) if found is None else missing_steps(found, first, last)
    if count:
        log.warning(
            "%s: tells nothing of %d of the steps after %d (the first is %d), so what "
            "was trained on when counts as not known. Record a run from its first step "
            "to its last (ldeval.record_examples)",
            place(run) / TRAINED,
            count,
            first,
            earliest,
        )
        return None
    return found


def missing_steps(record: Collection[int], first: int, last: int) -> tuple[int, int]:
    """How many of the steps after ``first`` and up to ``last`` a record does not tell
    of, and the earliest of them; (0, last + 1) where it tells of all."""
    known = {step for step in record if first < step <= last}
    earliest = first + 1
    while earliest in known:
        earliest += 1
    return last - first - len(known), earliest


def read_trained_counts(run: str | Path) -> dict[int, int] | None:
    """How many examples each optimizer step trained on; None where it is not known. One
    that comes twice, as a prompt does whose two responses are trained on, counts twice.

    Raises:
        StoreError: when the record is damaged, naming the line.
    """
    return _totals(run, lambda examples, _: len(examples))


def read_trained_tokens(run: str | Path) -> dict[int, int] | None:
    """How many tokens the loss of each optimizer step counted; None where one step
    does not tell, or nothing was recorded.

    Raises:
        StoreError: when the record is damaged, naming the line.
    """
    return _totals(run, lambda _, tokens: tokens)


def _totals(
    run: str | Path, of: Callable[[list[str], int | None], int | None]
) -> dict[int, int] | None:
    """The sum over each step's lines of what ``of`` says of a line's examples and
    tokens; None where it says nothing of one, or nothing was recorded."""
    path = place(run) / TRAINED
    if not path.is_file():
        return None
    steps: dict[int, int] = {}
    for step, examples, tokens in _trained_lines(path):
        value = of(examples, tokens)
        if value is None:
            return None
        steps[step] = steps.get(step, 0) + value
    return steps


def _trained_lines(path: Path) -> Iterator[tuple[int, list[str], int | None]]:
    """Step, examples and tokens (if told) of each line."""
    with local_copy(path).open("rb") as handle:
        for number, line in enumerate(handle, 1):
            with understood(
                path.with_name(f"{path.name}:{number}"),
                'Delete the line, or the file to go without it; a line is {"step": 1, '
                '"examples": ["a", "b"]}.',
            ):
                record = strict_json(line)
                ids, tokens = record["examples"], record.get("tokens")
                if not isinstance(ids, list):
                    raise TypeError(f"examples is {type(ids).__name__}, not a list")
                examples = [_example_id(item) for item in ids]
                step = _count("step", record["step"])
                tokens = None if tokens is None else _count("tokens", tokens)
            yield step, examples, tokens


def _example_id(value: object) -> str:
    """An id; a number, as some data number their rows, is its digits."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError(f"an example is {type(value).__name__}, not an id")
    return str(value)


def _count(name: str, value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise TypeError(f"{name} is {quoted(value)}, not a count")
    return value
