"""Answers of an endpoint, kept on disk by what was asked.

Each answer is written as it arrives, so a build that is killed goes on without asking
again, and one that is repeated costs nothing. The key is the content of the request
alone (model, messages, sampling), not the address: a server that moves keeps its
answers.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ldeval.errors import StoreError
from ldeval.files import named


@dataclass(frozen=True)
class Answer:
    """What a model said."""

    text: str
    finished: bool
    """Whether it stopped by itself; False where the token limit cut it off."""
    prompt_tokens: int
    """As the endpoint counts; 0 where it does not say."""
    completion_tokens: int
    refused: bool = False
    """Whether the endpoint refused the request itself (too long, say): no text."""


def request_key(request: Mapping[str, Any]) -> str:
    """SHA-256 over a request as canonical JSON."""
    text = json.dumps(request, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class AnswerCache:
    """One SQLite file; safe to use from several threads. A context manager."""

    def __init__(self, path: str | Path) -> None:
        """Raises:
        StoreError: when the file is there and is no cache of answers, or cannot be
            made.
        """
        self._lock = threading.Lock()
        self.hits = 0
        """Answers that were found."""
        self._path = path = Path(path)
        with named(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(
                path, check_same_thread=False, isolation_level=None, timeout=60
            )
            # each answer is on disk when put() returns, also after kill -9
            self._db.executescript(
                """
                PRAGMA journal_mode = WAL;
                PRAGMA synchronous = NORMAL;
                CREATE TABLE IF NOT EXISTS answer (
                    key TEXT PRIMARY KEY, text TEXT, finished INTEGER,
                    prompt_tokens INTEGER, completion_tokens INTEGER,
                    refused INTEGER) WITHOUT ROWID;
                CREATE TABLE IF NOT EXISTS vector (
                    key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;
                """
            )
        except sqlite3.OperationalError as error:
            with named(path):
                raise error
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"{path}: not a cache of answers ({error}). Delete it, or name another "
                "with --cache."
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._db.close()

    def __len__(self) -> int:
        with self._lock:
            row = self._db.execute("SELECT count(*) FROM answer").fetchone()
        return int(row[0])

    def get(self, key: str) -> Answer | None:
        """The answer to a request, if it was ever given."""
        with self._lock:
            row = self._db.execute(
                "SELECT text, finished, prompt_tokens, completion_tokens, refused "
                "FROM answer WHERE key = ?",
                (key,),
            ).fetchone()
            self.hits += row is not None
        if row is None:
            return None
        return Answer(row[0], bool(row[1]), row[2], row[3], bool(row[4]))

    def put(self, key: str, answer: Answer) -> None:
        """Keep an answer; it takes the place of a refusal, and of nothing else.

        Raises:
            StoreError: the disk is full, say.
        """
        values = (
            key,
            answer.text.encode("utf-8", "replace").decode(),
            answer.finished,
            answer.prompt_tokens,
            answer.completion_tokens,
            answer.refused,
        )
        with self._lock, named(self._path):
            self._db.execute("DELETE FROM answer WHERE key = ? AND refused", (key,))
            self._db.execute(
                "INSERT OR IGNORE INTO answer VALUES (?,?,?,?,?,?)", values
            )

    def vector(self, key: str) -> Sequence[float] | None:
        """A stored embedding."""
        with self._lock:
            row = self._db.execute(
                "SELECT value FROM vector WHERE key = ?", (key,)
            ).fetchone()
        return None if row is None else array("d", row[0])

    def put_vector(self, key: str, vector: Sequence[float]) -> None:
        """Keep an embedding.

        Raises:
            StoreError: as :meth:`put`.
        """
        value = array("d", vector).tobytes()
        with self._lock, named(self._path):
            self._db.execute("INSERT OR IGNORE INTO vector VALUES (?,?)", (key, value))
