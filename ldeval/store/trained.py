"""Which examples each optimizer step of a stored run trained on.

A trainer writes ``trained.jsonl`` (:mod:`ldeval.integrations.recorder`); here it is
read.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from pathlib import Path

from ldeval.files import (
    local_copy,
    place,
    strict_json,
    understood,
)
from ldeval.printable import quoted
from ldeval.store.layout import (
    TRAINED,
)

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
        steps[step] = steps.get(step, frozenset()) | examples
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
    missing = [] if found is None else missing_steps(found, first, last)
    if missing:
        log.warning(
            "%s: tells nothing of %d of the steps after %d (the first is %d), so what "
            "was trained on when counts as not known. Record a run from its first step "
            "to its last (ldeval.record_examples)",
            place(run) / TRAINED,
            len(missing),
            first,
            missing[0],
        )
        return None
    return found


def missing_steps(record: Collection[int], first: int, last: int) -> list[int]:
    """Steps after ``first`` and up to ``last`` that a record does not tell of."""
    return [step for step in range(first + 1, last + 1) if step not in record]


def read_trained_tokens(run: str | Path) -> dict[int, int] | None:
    """How many tokens the loss of each optimizer step counted; None where one step
    does not tell, or nothing was recorded.

    Raises:
        StoreError: when the record is damaged, naming the line.
    """
    path = place(run) / TRAINED
    if not path.is_file():
        return None
    steps: dict[int, int] = {}
    for step, _, tokens in _trained_lines(path):
        if tokens is None:
            return None
        steps[step] = steps.get(step, 0) + tokens
    return steps


def _trained_lines(path: Path) -> Iterator[tuple[int, frozenset[str], int | None]]:
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
                examples = frozenset(_example_id(item) for item in ids)
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
