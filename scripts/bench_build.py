"""Rows against seconds and peak memory of an offline build.

    python scripts/bench_build.py [--rows 10000 100000 1000000] [--check]

Writes a synthetic preference file of each size, builds a probe set from it in a process
of its own, and prints a table: linear in time, flat in memory. With --check the set is
looked over too, in another process. µs/row are processor time, which other load on the
machine hardly changes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = 20_000


def write_source(path: Path, rows: int) -> None:
    """Prompts of about 15 words, responses of 10 to 80."""
    rng = random.Random(rows)
    words = [f"w{rng.randrange(36**5):x}" for _ in range(WORDS)]

    def text(count: int) -> str:
        return " ".join(rng.choices(words, k=count))

    with path.open("w", encoding="utf-8") as handle:
        for row in range(rows):
            record = {
                "prompt": f"Question {row}: {text(13)}?",
                "chosen": text(rng.randint(10, 80)),
                "rejected": text(rng.randint(10, 80)),
            }
            handle.write(json.dumps(record) + "\n")


def measured(*arguments: str) -> tuple[float, float, float]:
    """Seconds, processor seconds and peak memory (MiB) of one ldeval command."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "ldeval.cli", "-q", *arguments],
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    if status:
        raise SystemExit(f"ldeval {' '.join(arguments)} failed")
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / scale


def main() -> None:
    """Measure each size, print a row each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000]
    )
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--folder", help="where the files go for the while")
    options = parser.parse_args()
    commands = ["build", "check"] if options.check else ["build"]
    print("command       rows  source MiB  seconds  CPU seconds  µs/row  peak MiB")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        for rows in options.rows:
            source, output = Path(name) / "source.jsonl", Path(name) / "probes.jsonl"
            write_source(source, rows)
            size = source.stat().st_size / 2**20
            for command in commands:
                files = [str(source), "-o", str(output)]
                if command == "check":
                    files = [str(output)]
                seconds, busy, memory = measured("probes", command, *files)
                print(
                    f"{command:<7} {rows:>10,} {size:>11.1f} {seconds:>8.1f} "
                    f"{busy:>12.1f} {1e6 * busy / rows:>7.0f} {memory:>9.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
