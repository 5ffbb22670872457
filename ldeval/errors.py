"""Every error that ldeval raises on purpose.

One rooted tree, so that a caller can catch ``LdevalError`` and be sure of the rest.
Each child is also the standard error it resembles, so code that knows nothing of
ldeval still handles it sensibly::

    LdevalError
    ├── ProbeError (ValueError)            a probe file or a probe is malformed
    ├── CheckpointError (ValueError)       a checkpoint cannot be read or trusted
    ├── StoreError (OSError)               a stored table is missing or damaged
    │   └── IncompleteError                no manifest: scoring never finished
    ├── MismatchError (ValueError)         two tables that must not be compared
    ├── ScoringError (RuntimeError)        a backend could not give a trustworthy score
    │   ├── KnownAnswerError               scores differ from an independent computation
    │   └── UnsupportedBackendError        a setting or model not scored exactly
    ├── ClusterError (RuntimeError)        a Ray cluster lacks what a sweep needs
    ├── TrainedRecordError (ValueError)    it cannot be told what was trained when
    ├── EndpointError (ConnectionError)    a rephrasing endpoint cannot be used
    ├── TheoryError (ValueError)           a loss, a step or a toy lacks what it needs
    └── MissingExtraError (ImportError)    an optional package is not installed

Messages name what came, what is valid and what to do next.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


class LdevalError(Exception):
    """Root of every error that ldeval raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors travel between processes whatever their constructors take."""
        return _restored, (type(self), self.args, dict(self.__dict__))


def _restored(
    kind: type[LdevalError], arguments: tuple[Any, ...], state: dict[str, Any]
) -> LdevalError:
    error = kind.__new__(kind, *arguments)
    error.args = arguments
    error.__dict__.update(state)
    return error


class ProbeError(LdevalError, ValueError):
    """A probe file, or one probe in it, is malformed."""

    def __init__(
        self,
        message: str,
        *,
        path: str | Path | None = None,
        line: int | None = None,
        field: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.path = None if path is None else str(path)
        """File that holds the fault, when there is one."""
        self.line = line
        """Line of the fault, counted from 1."""
        self.field = field
        """Field of the record, dotted (``responses.chosen``)."""
        self.remedy = remedy
        """What the user can do about it."""
        place = "" if self.path is None else self.path
        if line is not None:
            place += f":{line}" if place else f"line {line}"
        text = f"{place}: " if place else ""
        if field is not None:
            text += f"field '{field}': "
        text += message
        if remedy is not None:
            text += f" {remedy}"
        super().__init__(text)


class CheckpointError(LdevalError, ValueError):
    """A checkpoint cannot be read, is of a foreign layout, or must not be trusted."""


class StoreError(LdevalError, OSError):
    """A stored table is missing, damaged or written by another schema."""


class IncompleteError(StoreError):
    """The folder has no manifest: scoring into it never finished."""


class MismatchError(LdevalError, ValueError):
    """Two tables that must not be compared; the message names both values."""


class ScoringError(LdevalError, RuntimeError):
    """A backend could not give a score that can be trusted."""


class KnownAnswerError(ScoringError):
    """Scores differ from an independent computation by more than the dtype explains."""


class UnsupportedBackendError(ScoringError):
    """A model type or a setting for which exact per-token scores cannot be had."""


class ClusterError(LdevalError, RuntimeError):
    """A Ray cluster cannot be joined, has no room, or loses workers again and again; no
    fault of a checkpoint."""


class TrainedRecordError(LdevalError, ValueError):
    """Which examples a step trained on cannot be recorded, or not be told afterwards;
    the message says why."""


class EndpointError(LdevalError, ConnectionError):
    """An OpenAI-compatible endpoint cannot be reached, or gives nothing usable."""


class TheoryError(LdevalError, ValueError):
    """A loss, a step or a toy experiment lacks what it needs, or is given nonsense."""


class MissingExtraError(LdevalError, ImportError):
    """An optional package is not installed; the message names the extra."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs the package '{package}', which is not installed. Install it "
            f"with the extra '{extra}': from a checkout, pip install '.[{extra}]'"
        )
