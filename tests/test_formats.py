"""JSON of others: one reader of it, which no text trips and no name slows down."""

from __future__ import annotations

import pytest

from ldeval.files.formats import _each_name_once


class CountedName(str):
    """A name that counts how often one is compared with another."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        CountedName.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_a_name_that_stands_twice_is_found_without_comparing_all_with_all() -> None:
    pairs = [(CountedName(f"n{number}"), 0) for number in range(2000)]
    pairs.append((CountedName("n1999"), 0))
    CountedName.compared = 0
    with pytest.raises(ValueError, match="'n1999' stands twice"):
        _each_name_once(pairs)  # type: ignore[arg-type]  # names are texts
    assert CountedName.compared < 2 * len(pairs)
