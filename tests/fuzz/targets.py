"""The readers under fuzzing, by name.

For each, files that the real writers make, and a function that gives bytes to the
reader and holds what comes to the rules of :mod:`tests.fuzz.oracle`.
"""

from __future__ import annotations

from collections.abc import Mapping

from tests.fuzz import foreign, stored
from tests.fuzz.driving import Target

TARGETS: Mapping[str, Target] = {
    target.name: target for target in (*stored.TARGETS, *foreign.TARGETS)
}
