"""Give broken files to every reader of ldeval's, and count what comes of it.

    python scripts/campaign_fuzz.py [--reader NAME …] [--executions 1000000]
        [--minutes 30] [--engine atheris|random] [--jobs 2] [--output fuzz_findings]

Each reader (tests/fuzz/targets.py) runs in a process of its own until it has had so
many inputs, or for so long. With atheris, coverage of ldeval's own modules guides the
inputs; half of them are mutated in the file's own form. Without it, ``--engine random``
mutates files of the real writers. A finding is an input at which a reader raised
anything but an error of ldeval's that names the file, gave a record that is not valid
or does not survive being written and read, or hung, crashed or took more than a
gigabyte. Each kind of finding is kept once, as a file, which ``--reader NAME
--replay FILE`` gives to the reader again: a machine that was halted looks like a hang.
Prints a table; exits 1 where there was a finding.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import re
import resource
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SECONDS_AN_INPUT = 120
"""Far above any input's; a machine that is halted for a while counts as well."""
MEGABYTES = 1024
"""Resident memory that one input may take."""
MEGABYTES_AT_ALL = 8192
"""Of the process, where the operating system refuses to give more."""
LONGEST = 1 << 16
"""Bytes of an input."""
INSTRUMENTED = (
    *("ldeval.probes", "ldeval.store", "ldeval.decodes", "ldeval.harness"),
    *("ldeval.files", "ldeval.records", "ldeval.imported", "ldeval.checkpoints"),
    *("ldeval.integrations", "ldeval.dynamics.results", "ldeval.scoring.request"),
    *("ldeval.scoring.tables", "jsonlines"),
)
_COUNTS = struct.Struct("<qqqqd")
"""Executions, accepted, refused, kinds of findings, seconds."""


# ----------------------------------------------------------------- one reader's process


class Counted:
    """A target with its counts, which stand in a file even if the process is killed."""

    def __init__(self, check: Callable[[bytes], bool], folder: Path) -> None:
        self._check, self._folder = check, folder
        self._kinds: set[str] = set()
        self._counts = [0, 0, 0]
        self._started = time.monotonic()
        path = folder / "counts"
        path.write_bytes(bytes(_COUNTS.size))
        self._map = _mapped(path)
        path = folder / "last"
        path.write_bytes(bytes(8 + LONGEST))
        self._last = _mapped(path)

    def __call__(self, data: bytes) -> None:
        """Give an input to the reader and count what comes."""
        self._counts[0] += 1
        self._last[: 8 + len(data)] = len(data).to_bytes(8, "little") + data
        before = _resident_megabytes("VmRSS")
        _forget_peak()
        try:
            accepted = self._check(data)
            taken = _resident_megabytes("VmHWM") - before
            if taken > MEGABYTES:
                raise MemoryError(f"{taken} MB resident, of {len(data)} bytes")
            self._counts[1 if accepted else 2] += 1
        # whatever a reader raises is what is looked for, and is kept
        except Exception as error:  # noqa: BLE001
            self._keep(data, error)
        seconds = time.monotonic() - self._started
        _COUNTS.pack_into(self._map, 0, *self._counts, len(self._kinds), seconds)

    def _keep(self, data: bytes, error: Exception) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if f"{os.sep}ldeval{os.sep}" in f.filename] or frames
        place = f"{Path(own[-1].filename).stem}-{own[-1].lineno}"
        # a broken rule is told apart by its field, not by the value in it
        about = ""
        if type(error).__name__ == "BrokenRule":
            about = re.sub(r"\d+|'.*'|\[.*?\]", "", str(error).split(" is ")[0])[:50]
        kind = re.sub(r"\W+", "-", f"{type(error).__name__}-{place}-{about}")
        if kind in self._kinds:
            return
        self._kinds.add(kind)
        (self._folder / f"{kind}.input").write_bytes(data)
        text = "".join(traceback.format_exception(error))
        (self._folder / f"{kind}.txt").write_text(text, "utf-8", "backslashreplace")


def _resident_megabytes(name: str) -> int:
    """Now (``VmRSS``) or at the highest since the last :func:`_forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{name}:")[2].split(None, 1)[0]) >> 10


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _limit_memory() -> None:
    limit = MEGABYTES_AT_ALL << 20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _mapped(path: Path) -> mmap.mmap:
    with path.open("r+b") as handle:
        return mmap.mmap(handle.fileno(), 0)


def fuzz_with_atheris(options: argparse.Namespace, name: str, folder: Path) -> None:
    """Coverage-guided, until libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        from tests.fuzz.targets import TARGETS
    from tests.fuzz.mutate import mutated

    target = TARGETS[name]
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    seeds = target.seeds()
    for number, content in enumerate(seeds):
        (corpus / f"seed{number}").write_bytes(content)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.5:
            return bytes(atheris.Mutate(data, min(most, len(data) + 256)))
        # what adds coverage is mostly refused: go back to whole files now and then
        base = rng.choice(seeds) if rng.random() < 0.5 else data
        return mutated(base, target.form, rng)[:most]

    _limit_memory()
    atheris.Setup(
        [
            sys.argv[0],
            f"-runs={options.executions}",
            f"-max_total_time={round(options.minutes * 60)}",
            f"-timeout={SECONDS_AN_INPUT}",
            "-rss_limit_mb=0",
            f"-max_len={LONGEST}",
            f"-artifact_prefix={folder}{os.sep}killed-by-libfuzzer-",
            f"-seed={options.seed + 1}",
            "-verbosity=0",
            str(corpus),
        ],
        Counted(target.check, folder),
        custom_mutator=mutate,
    )
    atheris.Fuzz()


def fuzz_at_random(options: argparse.Namespace, name: str, folder: Path) -> None:
    """Mutations of the seeds and of what was accepted."""
    from tests.fuzz.mutate import mutated
    from tests.fuzz.targets import TARGETS

    _limit_memory()
    target, rng = TARGETS[name], random.Random(options.seed)
    corpus = target.seeds()
    counted = Counted(target.check, folder)
    stop = time.monotonic() + options.minutes * 60
    for _ in range(options.executions):
        if time.monotonic() > stop:
            break
        data = mutated(rng.choice(corpus), target.form, rng)[:LONGEST]
        counted(data)


# -------------------------------------------------------------------------- all of them


def run_reader(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """One reader in a process of its own; its counts and how it ended."""
    folder = options.output / name
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.input"), *folder.glob("*.txt"), *folder.glob("kill*")):
        old.unlink()
    command = [
        sys.executable,
        __file__,
        "--child",
        name,
        "--output",
        str(options.output),
    ]
    for key in ("executions", "minutes", "engine", "seed"):
        command += [f"--{key}", str(getattr(options, key))]
    with (folder / "log").open("wb") as log:
        ended = subprocess.run(
            command, stdout=log, stderr=log, cwd=ROOT, check=False
        ).returncode
    path = folder / "counts"
    counts = _COUNTS.unpack(path.read_bytes()) if path.is_file() else (0, 0, 0, 0, 0.0)
    if ended:
        # what libFuzzer keeps may be empty where native code did not return
        last = (folder / "last").read_bytes()
        size = int.from_bytes(last[:8], "little")
        (folder / "killed.input").write_bytes(last[8 : 8 + size])
    kinds = counts[3] + int(ended != 0)
    return {
        "reader": name,
        "executions": counts[0],
        "per_second": round(counts[0] / counts[4]) if counts[4] else 0,
        "accepted": counts[1],
        "refused": counts[2],
        "minutes": round(counts[4] / 60, 1),
        "findings": kinds,
        "exit": ended,
    }


def main() -> int:
    """Run the readers, a few at a time; print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--reader", nargs="+")
    parser.add_argument("--executions", type=int, default=1_000_000)
    parser.add_argument("--minutes", type=float, default=30.0, help="of each reader")
    parser.add_argument("--engine", choices=("atheris", "random"), default="atheris")
    parser.add_argument("--jobs", type=int, default=2, help="readers at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("fuzz_findings"))
    parser.add_argument("--replay", type=Path, help="give one reader this input again")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.output = options.output.resolve()
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if options.child:
        fuzz = fuzz_with_atheris if options.engine == "atheris" else fuzz_at_random
        fuzz(options, options.child, options.output / options.child)
        return 0
    if options.replay and options.reader:
        from tests.fuzz.targets import TARGETS

        accepted = TARGETS[options.reader[0]].check(options.replay.read_bytes())
        print("accepted" if accepted else "refused as it should be")
        return 0
    if options.engine == "atheris":
        try:
            import atheris  # noqa: F401  # asked before twelve processes fail alike
        except ImportError:
            print("atheris is not installed: pip install atheris, or --engine random")
            return 2
    from tests.fuzz.targets import TARGETS

    names = options.reader or list(TARGETS)
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        print(f"no reader {unknown[0]!r}. Valid: {', '.join(TARGETS)}")
        return 2
    with ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(lambda name: run_reader(options, name), names))
    (options.output / "campaign.json").write_text(json.dumps(rows, indent=1))
    print(f"engine {options.engine}, seed {options.seed}")
    print("reader      executions    /s   accepted    refused  minutes  findings  exit")
    for row in rows:
        print(
            f"{row['reader']:<10} {row['executions']:>11,} {row['per_second']:>5} "
            f"{row['accepted']:>10,} {row['refused']:>10,} {row['minutes']:>8} "
            f"{row['findings']:>9} {row['exit']:>5}"
        )
    found = sum(row["findings"] for row in rows)
    print(
        f"{sum(r['executions'] for r in rows):,} executions, {found} kinds of findings"
    )
    if found:
        print(f"inputs and tracebacks: {options.output}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
