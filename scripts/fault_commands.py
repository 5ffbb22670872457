"""The commands that the fault campaign kills, and what must hold after each kill.

Each says what it starts from, what an undisturbed run leaves, what may be there after a
kill, and what readers must make of that.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.fault_injection import Ended, Faults, ended, events

Files = dict[str, bytes]
_PARTIAL = re.compile(r"\.\w+-\d+\.partial(/|$)")
_PRIVATE = (".writer.lock", ".writer.json", ".ldeval-")
"""Names of what a run keeps for itself while it lasts."""


@dataclass(frozen=True)
class Finding:
    """Something that must not be."""

    kind: str
    """``lost``, ``wrong`` or ``unclear``."""
    text: str
    moment: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.moment}: {self.text}"


def last(found: Ended) -> str:
    """The end of what a process said."""
    return f"status {found.status}, {found.said.strip()[-300:]!r}"


class Command(ABC):
    """A command, what it starts from, and what must come out.

    Everything happens under one path, so that paths in results are equal.
    """

    name = ""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.trial = place / "trial"
        self.out = self.trial / "out"
        self.log = place / "log.txt"
        self.undisturbed = 0.0
        """Seconds of a run from nothing."""
        self.events: dict[bool, list[str]] = {}
        """In order; of a run with an older result there, and from nothing."""
        self.old: Files = {}
        self.new: Files = {}
        self.before: Files = {}

    @abstractmethod
    def arguments(self, *, older: bool = False) -> list[str]:
        """The command line, or that of the older result."""

    @abstractmethod
    def inputs(self) -> None:
        """Make what it reads, once."""

    def learn(self) -> None:
        """Run undisturbed, with and without an older result there."""
        self.place.mkdir(parents=True, exist_ok=True)
        self.inputs()
        trace = self.place / "trace.json"
        self.start(older=False)
        self._done(self.arguments(older=True))
        self.old = files_of(self.out)
        counted = Faults((self.out,), trace=trace)
        for older in (True, False):
            self.start(older=older)
            self.undisturbed = self._done(self.arguments(), counted).seconds
            self.events[older] = events(trace)
        self.new = files_of(self.out)
        if self.old == self.new:
            raise ValueError(f"{self.name}: the older result must differ")

    def _done(self, arguments: list[str], faults: Faults | None = None) -> Ended:
        found = ended(arguments, self.log, faults)
        if found.status:
            raise RuntimeError(f"ldeval {' '.join(arguments)}: {found.said}")
        return found

    def start(self, *, older: bool) -> None:
        """Leave nothing but the older result, if any."""
        shutil.rmtree(self.trial, ignore_errors=True)
        self.out.mkdir(parents=True)
        self.before = self.old if older else {}
        for name, content in self.before.items():
            (self.out / name).parent.mkdir(parents=True, exist_ok=True)
            (self.out / name).write_bytes(content)

    def there(self) -> Files:
        """The results that can be found after a kill."""
        return files_of(self.out)

    def damage(self) -> Iterator[Finding]:
        """What is lost or half there."""
        there = self.there()
        for name in self.before.keys() - there.keys():
            yield Finding("lost", name)
        for name, content in there.items():
            allowed = (self.before.get(name), self.new.get(name))
            if all(plain(content) != plain(one) for one in allowed):
                yield Finding("wrong", f"{name} is neither the old nor the new one")

    def readers(self) -> Iterator[Finding]:
        """What readers of the state make of it."""
        return iter(())

    def differences(self) -> Iterator[Finding]:
        """How the end differs from that of the undisturbed run."""
        there = files_of(self.out)
        for name in sorted(self.new.keys() | (there.keys() - self.before.keys())):
            if plain(there.get(name)) != plain(self.new.get(name)):
                yield Finding("wrong", f"{name} is not what an undisturbed run leaves")


def files_of(folder: Path) -> Files:
    """The files below a folder by their names, but for what is temporary."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        private = any(part.startswith(_PRIVATE) for part in Path(name).parts)
        if path.is_file() and not private and not _PARTIAL.search(name):
            found[name] = path.read_bytes()
    return found


_SECONDS = re.compile(rb'"seconds": [0-9.e-]+')


def plain(content: bytes | None) -> bytes | None:
    """A file without the only thing that differs between two runs: how long it took."""
    return None if content is None else _SECONDS.sub(b'"seconds": 0', content)


class Build(Command):
    """``probes build`` into a file."""

    name = "build"
    target = "probes.jsonl"

    def __init__(self, place: Path, prompts: int = 60) -> None:
        super().__init__(place)
        self._prompts = prompts

    def inputs(self) -> None:
        rows = [
            {
                "q": f"Question {n}?",
                "good": f"Bakers quickly mixed flour number{n} in several large bowls.",
                "bad": f"Nobody here remembers anything about question{n} any longer.",
            }
            for n in range(self._prompts)
        ]
        self.source = self.place / "pairs.jsonl"
        self.source.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def arguments(self, *, older: bool = False) -> list[str]:
        fields = ["--prompt-field", "q", "--chosen-field", "good"]
        return [
            *("-q", "probes", "build", str(self.source)),
            *("-o", str(self.out / self.target), *fields, "--rejected-field", "bad"),
            *("--heldout-fraction", "0.3", "--rule-format"),
            *("--seed", "9" if older else "3"),
        ]

    def readers(self) -> Iterator[Finding]:
        there = (self.out / self.target).exists()
        found = ended(["-q", "validate", str(self.out / self.target)], self.log)
        if there and found.status != 0:
            yield Finding("wrong", f"what is there cannot be read: {last(found)}")
        elif not there and not found.refused:
            yield Finding("unclear", last(found))


class Dataset(Build):
    """``probes build`` into a dataset folder."""

    name = "dataset"
    target = "probes"

    def there(self) -> Files:
        found = files_of(self.out)
        # the older one stands aside until the new one is in its place
        beside = f".{self.target}.ldeval-replaced/"
        aside = {n: found.pop(n) for n in list(found) if n.startswith(beside)}
        if not (self.out / self.target).exists():
            for name, content in aside.items():
                found[f"{self.target}/{name.removeprefix(beside)}"] = content
        return found


class Sweep(Command):
    """``sweep``: three checkpoints, two of them scored before."""

    name = "sweep"

    def inputs(self) -> None:
        # in a process of its own: what forks later must have computed nothing
        import subprocess

        self.run = self.place / "trained"
        if not self.run.is_dir():
            code = "import sys, pathlib; from tests.tiny import save_run; "
            code += "save_run(pathlib.Path(sys.argv[1]), [10, 20])"
            subprocess.run(
                [sys.executable, "-c", code, str(self.run)],
                check=True,
                cwd=Path(__file__).resolve().parent.parent,
            )

    def arguments(self, *, older: bool = False) -> list[str]:
        # the older result is of a time when the last checkpoint was not there yet
        there, away = self.run / "run" / "checkpoint-20", self.run / "checkpoint-20"
        if there.exists() == older:
            there, away = (there, away) if older else (away, there)
            there.rename(away)
        return [
            *("-q", "sweep", str(self.run / "run"), "--base", str(self.run / "base")),
            *("--store", str(self.out), "--limit", "3", "2", "--greedy", "4"),
            *("--apply_chat_template", "--model_args", "dtype=float32,device=cpu"),
        ]

    def readers(self) -> Iterator[Finding]:
        steps = sorted(
            path.parent.name for path in self.out.glob("run/*/manifest.json")
        )
        found = ended(["-q", "validate", str(self.out)], self.log)
        faults = found.said.splitlines()[:-1]
        if found.status == 1 and any("never finished" not in line for line in faults):
            yield Finding("wrong", f"what is there cannot be read: {last(found)}")
        elif found.status not in (0, 1) and (steps or not found.refused):
            yield Finding("unclear", last(found))
        told = self.trial / "diff.json"
        found = ended(
            ["-q", "diff", str(self.out / "run"), "--json", str(told)], self.log
        )
        if found.status == 0 and not steps:
            yield Finding("wrong", "a comparison of nothing")
        elif found.status == 0:
            if plain(told.read_bytes()) != self._expected():
                yield Finding("wrong", f"a comparison that {steps} do not give")
        elif not found.refused:
            yield Finding("unclear", last(found))

    def _expected(self) -> bytes | None:
        """What a comparison gives of those files that are there, undamaged."""
        names = tuple(sorted(files_of(self.out).keys() & self.new.keys()))
        if names not in self._told:
            store = self.place / "expected"
            shutil.rmtree(store, ignore_errors=True)
            for name in names:
                (store / name).parent.mkdir(parents=True, exist_ok=True)
                (store / name).write_bytes(self.new[name])
            told = self.place / "expected.json"
            self._done(["-q", "diff", str(store / "run"), "--json", str(told)])
            self._told[names] = plain(told.read_bytes())
        return self._told[names]

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self._told: dict[tuple[str, ...], bytes | None] = {}


class Report(Sweep):
    """``report`` of a finished sweep."""

    name = "report"
    whole = "report/report.md"
    """Written last."""

    def inputs(self) -> None:
        super().inputs()
        self.store = self.place / "store"
        shutil.rmtree(self.store, ignore_errors=True)
        for older, name in ((True, "older"), (False, "newer")):
            swept = Sweep.arguments(self, older=older)
            swept[swept.index("--store") + 1] = str(self.store / name)
            self._done(swept)
        self.kept = files_of(self.store)

    def arguments(self, *, older: bool = False) -> list[str]:
        run = self.store / ("older" if older else "newer") / "run"
        return ["-q", "report", str(run), "-o", str(self.out / "report")]

    def readers(self) -> Iterator[Finding]:
        if files_of(self.store) != self.kept:
            yield Finding("lost", "the store was changed")
        there = files_of(self.out)
        for one in (self.old, self.new):
            linked = [name for name in one if name.startswith("report/")]
            if there.get(self.whole) == one[self.whole] and any(
                there.get(name) != one[name] for name in linked
            ):
                yield Finding("wrong", f"{self.whole} is not of what it links to")

    def damage(self) -> Iterator[Finding]:
        """An older ``report.md`` goes before the first of the files that it links to is
        replaced; nothing else may be gone."""
        gone = Finding("lost", self.whole)
        return (finding for finding in super().damage() if finding != gone)


class Diff(Report):
    """``diff`` of a finished sweep, into JSON and a report."""

    name = "diff"

    def arguments(self, *, older: bool = False) -> list[str]:
        run = self.store / ("older" if older else "newer") / "run"
        return [
            *("-q", "diff", str(run), "--json", str(self.out / "diff.json")),
            *("--report", str(self.out / "report")),
        ]


COMMANDS: dict[str, type[Command]] = {
    one.name: one for one in (Build, Dataset, Sweep, Diff, Report)
}
