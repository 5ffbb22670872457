"""Kill ldeval at every bad moment: is anything lost, wrong, or unclear afterwards?

    python scripts/campaign_faults.py [--kills 200] [--events 60] [--seed 0]
        [--commands build dataset sweep diff report] [--part I/N] [--output DIR]

Each command runs once undisturbed, for what must come out. Then it is killed with
SIGKILL: at times drawn uniformly over that run (--kills, over all commands), and at its
events (one kill at every write, fsync, rename and deletion; --events a command at most,
evenly over them), where a kill at a write comes when half of it has reached the file.
It starts from nothing and with an older result in place. --part 2/3 does every third
kill from the second on: three such processes do the campaign. After each kill:

lost     what stood there complete is gone or changed
wrong    a file under its final name is neither the old one nor the new one; a reader
         tells something that does not follow from what is there; or the same command,
         run again, does not end with what the undisturbed run ended with
unclear  a reader ends neither well nor with one clear message and status 2

Exits 1 where there is any.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.fault_commands import COMMANDS, Command, Finding, last
from scripts.fault_injection import EVENTS, Ended, Faults, Running, ended


def main() -> int:
    """Run the campaign and print its table; 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--events", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--commands", nargs="+", choices=list(COMMANDS), default=list(COMMANDS)
    )
    parser.add_argument(
        "--part", type=Part.read, default=WHOLE, metavar="I/N", help="of the kills"
    )
    parser.add_argument("--output", type=Path, help="kept; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ldeval-faults-") as temporary:
        place = options.output or Path(temporary)
        draw = random.Random(f"{options.seed} {options.part}")
        share = -(-options.kills // len(options.commands))
        print(HEAD, flush=True)
        tallies = []
        for name in options.commands:
            command = COMMANDS[name](place)
            tallies.append(campaign(command, share, options.events, draw, options.part))
            print(tallies[-1].row(name), flush=True)
    for tally in tallies:
        for finding in tally.findings:
            print(finding)
    return 1 if any(tally.findings for tally in tallies) else 0


HEAD = (
    f"{'command':8} {'s':>5} {'uniform':>7} {'write':>5} {'fsync':>5} {'rename':>6} "
    f"{'remove':>6} {'inside':>6} {'kills':>5} {'lost':>4} {'wrong':>5} {'unclear':>7} "
    f"{'seconds':>7}"
)


@dataclass(frozen=True)
class Part:
    """Every ``of``-th kill from the ``number``-th on, counted from 1."""

    number: int
    of: int

    @classmethod
    def read(cls, text: str) -> Part:
        """Of an option's ``I/N``."""
        number, _, of = text.partition("/")
        if not (number + of).isdigit() or not 1 <= int(number) <= int(of):
            raise argparse.ArgumentTypeError(f"{text!r} is not like 2/3")
        return cls(int(number), int(of))

    def among(self, kills: Sequence[int]) -> Sequence[int]:
        """Those of this part."""
        return kills[self.number - 1 :: self.of]


WHOLE = Part(1, 1)


@dataclass
class Tally:
    """What was done to a command, and what was found."""

    undisturbed: float = 0.0
    """Seconds of the run that nothing disturbed."""
    kills: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0

    def row(self, name: str) -> str:
        """A line of the table. A kill at a write is one inside it."""
        kinds = Counter(finding.kind for finding in self.findings)
        at = [self.kills[kind] for kind in EVENTS]
        return (
            f"{name:8} {self.undisturbed:5.1f} {self.kills['uniform']:7} {at[0]:5} "
            f"{at[1]:5} {at[2]:6} {at[3]:6} {at[0]:6} {sum(self.kills.values()):5} "
            f"{kinds['lost']:4} {kinds['wrong']:5} {kinds['unclear']:7} "
            f"{self.seconds:7.0f}"
        )


def campaign(
    command: Command,
    uniform: int,
    at_events: int,
    draw: random.Random,
    part: Part = WHOLE,
) -> Tally:
    """Kill one command at times and at events."""
    started = time.monotonic()
    command.learn()
    tally = Tally(command.undisturbed)
    moments = [
        (older, at, kind)
        for older, kinds in command.events.items()
        for at, kind in enumerate(kinds)
    ]
    uniform = len(part.among(range(uniform)))
    for number in part.among(evenly([kind for _, _, kind in moments], at_events)):
        older, at, kind = moments[number]
        moment = f"{command.name}, {kind} {at}{' over an older result' * older}"
        command.start(older=older)
        found = ended(
            command.arguments(), command.log, Faults((command.out,), kill_at=at)
        )
        tally.kills[kind] += found.killed
        tally.findings += looked_over(command, found, moment)
    while tally.kills["uniform"] < uniform:
        seconds = draw.uniform(0, command.undisturbed)
        command.start(older=tally.kills["uniform"] % 2 == 1)
        running = Running(command.arguments(), command.log)
        found = running.wait(seconds) or running.kill()
        tally.kills["uniform"] += found.killed
        moment = f"{command.name}, after {seconds:.3f} s"
        tally.findings += looked_over(command, found, moment)
    tally.seconds = time.monotonic() - started
    return tally


def evenly(kinds: Sequence[str], most: int) -> list[int]:
    """At most so many events; as many of each kind as can be, evenly over the run."""
    if len(kinds) <= most:
        return list(range(len(kinds)))
    chosen: list[int] = []
    groups = [[n for n, k in enumerate(kinds) if k == kind] for kind in EVENTS]
    groups = sorted((group for group in groups if group), key=len)
    for left, group in zip(range(len(groups), 0, -1), groups, strict=True):
        share = min(len(group), (most - len(chosen)) // left)
        chosen += [group[n * len(group) // share] for n in range(share)]
    return sorted(chosen)


def looked_over(command: Command, found: Ended, moment: str) -> list[Finding]:
    """What must not be, after a kill and after the same command once more."""
    findings = []
    if not found.killed and found.status != 0:
        findings.append(Finding("wrong", f"ended by itself: {last(found)}"))
    findings += command.damage()
    findings += command.readers()
    again = ended(command.arguments(), command.log)
    if again.status != 0:
        findings.append(Finding("wrong", f"cannot go on: {last(again)}"))
    else:
        findings += command.differences()
    return [Finding(item.kind, item.text, moment) for item in findings]


if __name__ == "__main__":
    sys.exit(main())
