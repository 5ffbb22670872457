"""The examples of a build on disk, and which probe gets whose text.

A source of any size passes through here once; what must be fetched from elsewhere in it
(the chosen response of another prompt) is found through an index in the same file, so
that memory stays flat. SQLite does the sorting, on disk too: a cyclic shift in a seeded
random order is a derangement, each text used once and never the probe's own.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ldeval.probes.examples import Example
from ldeval.probes.lengths import LengthBand
from ldeval.probes.prompts import conversation_key
from ldeval.probes.sources import BadRow
from ldeval.probes.tokens import TokenCounter
from ldeval.records import Message

CACHE_KIB = 8 * 1024
"""Memory that SQLite may use for pages; the rest of the file stays on disk."""
BATCH = 500
LISTED = 20
"""Excluded rows that are listed by name, for each reason; all are counted."""
MATCH_BLOCK = 8
"""Neighbours in length among which texts change places, where lengths are matched."""
MATCH_ROUNDS = 32
"""How often a held-out text may be used, at most, where lengths are matched."""

_SCHEMA = f"""
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA temp_store = FILE;
PRAGMA cache_size = -{CACHE_KIB};
CREATE TABLE example (
    id INTEGER PRIMARY KEY, key INTEGER UNIQUE, place TEXT, prompt TEXT, chosen TEXT,
    rejected TEXT, missing TEXT, trained INTEGER, probe INTEGER, chosen_key INTEGER,
    tokens INTEGER, draw INTEGER);
CREATE TABLE owner (example INTEGER PRIMARY KEY, trained INTEGER, probe INTEGER,
    tokens INTEGER, draw INTEGER);
CREATE TABLE deal (kind TEXT, example INTEGER, source INTEGER,
    PRIMARY KEY (kind, example)) WITHOUT ROWID;
CREATE TABLE taken (key INTEGER PRIMARY KEY);
"""


@dataclass(frozen=True)
class Donor:
    """Another prompt's chosen response."""

    name: str
    """Its probe id; its file and line where it is no probe itself."""
    text: str


@dataclass(frozen=True)
class Entry:
    """One future probe as it stands in the corpus."""

    key: int
    """Hash of its prompt, from which everything random about it follows."""
    example: Example
    trained: bool
    irrelevant_train: Donor | None
    irrelevant_test: Donor | None

    @property
    def probe_id(self) -> str:
        """Follows from the prompt alone, so that it survives another limit or order."""
        return probe_id(self.key)


@dataclass
class Intake:
    """What became of the rows that were read."""

    read: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Rows that gave no example, by reason."""
    listed: dict[str, list[str]] = field(default_factory=dict)
    """For each reason, the first places."""
    prompts_shared: int = 0
    """Prompts that were taken from the shared beginning of the responses."""

    def leave_out(self, place: str, reason: str) -> None:
        """Count a row that is not used."""
        self.reasons[reason] += 1
        places = self.listed.setdefault(reason, [])
        if len(places) < LISTED:
            places.append(place)


def probe_id(key: int) -> str:
    """The id of the probe whose prompt has this key."""
    return f"p{key:016x}"


def text_key(text: str) -> int:
    """63 bits of SHA-256: fits SQLite's integer."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def prompt_text(prompt: str | tuple[Message, ...]) -> str:
    """A prompt as JSON: text and messages never look alike."""
    value = prompt if isinstance(prompt, str) else [dict(m) for m in prompt]
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def seeded_fraction(seed: int, text: str) -> float:
    """A number in [0, 1) that follows from the seed and the text alone."""
    return text_key(f"{seed}/{text}") / 2**63


class Corpus:
    """Examples on disk, by split; a context manager that closes its file."""

    def __init__(self, path: Path, *, seed: int, counter: TokenCounter | None) -> None:
        """Args:
        path: a new file.
        seed: of the split and of every draw.
        counter: where lengths are to be matched.
        """
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript(_SCHEMA)
        self._seed = seed
        self._counter = counter
        self.counts = Counter[tuple[bool, bool]]()
        """Examples by (trained, probe)."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._db.close()

    # ------------------------------------------------------------------ filling

    def fill(
        self,
        examples: Iterable[Example | BadRow],
        intake: Intake,
        *,
        heldout_share: float,
        limits: dict[bool, int | None],
        spare: int,
    ) -> None:
        """Take examples in; stop reading where nothing more is needed.

        Args:
            heldout_share: of the conversations, drawn by seed; 0 takes all as trained,
                1 all as held out.
            limits: how many probes of each split (by ``trained``); None: all.
            spare: held-out examples wanted beyond the probes, to draw texts from.
        """
        self._db.execute("BEGIN")
        for item in examples:
            intake.read += 1
            if isinstance(item, BadRow):
                intake.leave_out(item.place, item.reason)
                continue
            key = conversation_key(item.prompt)
            trained = seeded_fraction(self._seed, key) >= heldout_share
            room = limits[trained]
            probe = room is None or self.counts[trained, True] < room
            if probe or (not trained and self.counts[False, False] < spare):
                self._insert(item, trained, probe, intake)
            else:
                intake.leave_out(item.place, "beyond the limit")
            if self._full(heldout_share, limits, spare):
                break
        self._db.execute("COMMIT")

    def _full(
        self, heldout_share: float, limits: dict[bool, int | None], spare: int
    ) -> bool:
        for trained in (True, False):
            if heldout_share == (1.0 if trained else 0.0):
                continue  # this source has none of that split
            room = limits[trained]
            if room is None or self.counts[trained, True] < room:
                return False
        return heldout_share == 0.0 or self.counts[False, False] >= spare

    def _insert(
        self, example: Example, trained: bool, probe: bool, intake: Intake
    ) -> None:
        prompt = prompt_text(example.prompt)
        key = text_key(prompt)
        tokens = 0 if self._counter is None else self._counter.count(example.chosen)
        done = self._db.execute(
            "INSERT OR IGNORE INTO example VALUES (NULL,?,?,?,?,?,?,?,?,?,?,?)",
            (
                key,
                example.place,
                prompt,
                example.chosen,
                example.rejected,
                json.dumps(dict(example.missing)) if example.missing else None,
                trained,
                probe,
                text_key(example.chosen.strip()),
                tokens,
                text_key(f"{self._seed}/draw/{key}"),
            ),
        )
        if done.rowcount != 1:
            intake.leave_out(example.place, "its prompt repeats an earlier one")
            return
        intake.prompts_shared += example.prompt_shared
        self.counts[trained, probe] += 1

    def sample(self, limits: dict[bool, int | None], intake: Intake) -> None:
        """Keep a seeded random choice of each split's examples as probes; the trained
        rest goes, the held-out rest stays to draw from."""
        for trained, room in limits.items():
            if room is None:
                continue
            ranked = (
                "SELECT id FROM example WHERE trained = ? ORDER BY draw LIMIT -1 "
                "OFFSET ?"
            )
            change = (
                f"DELETE FROM example WHERE id IN ({ranked})"
                if trained
                else f"UPDATE example SET probe = 0 WHERE id IN ({ranked})"
            )
            done = self._db.execute(change, (trained, room))
            count = done.rowcount
            intake.reasons["not drawn (--sample)"] += count
            self.counts[trained, True] -= count
            if not trained:
                self.counts[trained, False] += count

    # ------------------------------------------------------------------ dealing

    def deal(self, band: LengthBand | None = None) -> None:
        """Decide which probe gets whose chosen response.

        Within a split by a cyclic shift of a seeded order, so that each text is used
        once and none is the probe's own; across splits in rounds of a seeded order, so
        that each text is used equally often. Texts that repeat count once; held-out
        texts that are also some trained prompt's chosen are nobody's.

        Args:
            band: match lengths: change places among neighbours in length.
        """
        self._db.executescript(
            """
            BEGIN;
            CREATE INDEX by_chosen ON example (chosen_key, trained);
            INSERT INTO owner SELECT id, trained, probe, tokens, draw FROM example
            WHERE id IN (
                SELECT min(id) FROM example WHERE trained AND probe GROUP BY chosen_key)
            OR id IN (
                SELECT min(id) FROM example AS held WHERE NOT trained AND NOT EXISTS (
                    SELECT 1 FROM example WHERE chosen_key = held.chosen_key AND trained
                ) GROUP BY chosen_key);
            """
        )
        for kind, trained in (("irrelevant_train", True), ("irrelevant_test", False)):
            self._shift(kind, trained, matched=band is not None)
            if band is None:
                self._rounds(kind, to=not trained)
            else:
                self._nearest(kind, to=not trained, band=band)
        self._db.execute("COMMIT")

    def _shift(self, kind: str, trained: bool, *, matched: bool) -> None:
        """A derangement within a split: each gets the next one's text."""
        order = "tokens, draw" if matched else "draw"
        # the last block takes what is left over: a block of one has no derangement
        block = (
            f"min((row_number() OVER (ORDER BY {order}) - 1) / {MATCH_BLOCK}, "
            f"max(count(*) OVER () / {MATCH_BLOCK} - 1, 0))"
            if matched
            else "0"
        )
        self._db.execute(
            f"""
            INSERT INTO deal
            SELECT :kind, example, source FROM (
                SELECT example, probe, coalesce(
                    lead(example) OVER (PARTITION BY block ORDER BY draw),
                    first_value(example) OVER (PARTITION BY block ORDER BY draw)
                ) AS source
                FROM (SELECT *, {block} AS block FROM owner WHERE trained = :trained))
            WHERE probe AND source != example
            """,
            {"kind": kind, "trained": trained},
        )

    def _rounds(self, kind: str, *, to: bool) -> None:
        """Deal one split's texts out to the other split's probes."""
        self._db.execute("DROP TABLE IF EXISTS deck")
        self._db.execute(
            "CREATE TEMP TABLE deck AS SELECT example FROM owner "
            "WHERE trained = ? ORDER BY draw",
            (not to,),
        )
        size = self._db.execute("SELECT count(*) FROM deck").fetchone()[0]
        if size:
            self._db.execute(
                """
                INSERT INTO deal
                SELECT :kind, taker.id, deck.example
                FROM (SELECT id, chosen_key, row_number() OVER (ORDER BY draw DESC) AS n
                      FROM example WHERE trained = :to AND probe) AS taker
                JOIN deck ON deck.rowid = taker.n % :size + 1
                JOIN example AS source ON source.id = deck.example
                WHERE source.chosen_key != taker.chosen_key
                """,
                {"kind": kind, "to": to, "size": size},
            )

    def _nearest(self, kind: str, *, to: bool, band: LengthBand) -> None:
        """The same by length: each probe, from short to long, gets the shortest text
        left that is long enough (a longer one is trimmed); then another round."""
        takers = f"""
            SELECT id, tokens FROM example WHERE trained = {int(to)} AND probe
            AND id NOT IN (SELECT example FROM deal WHERE kind = '{kind}')
            ORDER BY tokens, draw"""
        texts = f"""
            SELECT example, tokens FROM owner WHERE trained = {int(not to)}
            ORDER BY tokens, draw"""
        for _ in range(MATCH_ROUNDS):
            self._db.execute("DROP TABLE IF EXISTS taker")
            self._db.execute(f"CREATE TEMP TABLE taker AS {takers}")
            with (
                closing(self._db.execute("SELECT id, tokens FROM taker")) as waiting,
                closing(self._db.execute(texts)) as left,
            ):
                if not self._one_round(kind, waiting, left, band):
                    break

    def _one_round(
        self,
        kind: str,
        takers: Iterable[tuple[int, int]],
        texts: Iterator[tuple[int, int]],
        band: LengthBand,
    ) -> bool:
        """Deal while texts last; whether any was dealt. Both sides from short to
        long."""
        dealt = False
        for taker, tokens in takers:
            text = next((t for t, n in texts if n >= band.low(tokens)), None)
            if text is None:
                break
            dealt = True
            self._db.execute("INSERT INTO deal VALUES (?, ?, ?)", (kind, taker, text))
        return dealt

    def is_trained_chosen(self, text: str) -> bool:
        """Whether a text is the chosen response of a trained prompt."""
        found = self._db.execute(
            "SELECT 1 FROM example WHERE chosen_key = ? AND trained LIMIT 1",
            (text_key(text.strip()),),
        )
        return found.fetchone() is not None

    def claim(self, text: str) -> bool:
        """Take a text for one probe; False where another has it already."""
        done = self._db.execute(
            "INSERT OR IGNORE INTO taken VALUES (?)", (text_key(text.strip()),)
        )
        return done.rowcount == 1

    # ------------------------------------------------------------------ reading

    def entries(self) -> Iterator[Entry]:
        """The future probes, trained and held out, in the order of reading."""
        rows = self._db.execute(
            """
            SELECT e.key, e.place, e.prompt, e.chosen, e.rejected, e.missing, e.trained,
                   a.key, a.place, a.chosen, a.probe, b.key, b.place, b.chosen, b.probe
            FROM example AS e
            LEFT JOIN deal AS x ON x.kind = 'irrelevant_train' AND x.example = e.id
            LEFT JOIN example AS a ON a.id = x.source
            LEFT JOIN deal AS y ON y.kind = 'irrelevant_test' AND y.example = e.id
            LEFT JOIN example AS b ON b.id = y.source
            WHERE e.probe ORDER BY e.id
            """
        )
        for key, place, prompt, chosen, rejected, missing, trained, *donors in rows:
            value = json.loads(prompt)
            example = Example(
                place,
                value if isinstance(value, str) else tuple(value),
                chosen,
                rejected,
                {} if missing is None else json.loads(missing),
            )
            yield Entry(
                key, example, bool(trained), _donor(*donors[:4]), _donor(*donors[4:])
            )


def _donor(*row: Any) -> Donor | None:
    key, place, text, probe = row
    if key is None:
        return None
    return Donor(probe_id(key) if probe else place, text)
