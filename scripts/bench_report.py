"""Time, size and memory of the report's page, and how it feels in a browser.

    python scripts/bench_report.py --store bench-report --probes 1000 --checkpoints 50

Writes a synthetic store of the asked size (what is there is kept), makes the page in a
process of its own, and opens it in Chromium. Only the first and last few checkpoints
are distinct on disk; all are read. ``--quick`` is 60 probes at 6 checkpoints.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from bench_compare import DISTINCT, RUN, link, synthetic

from ldeval.compare import compare_run
from ldeval.records import KIND_NAMES, Probe, Response
from ldeval.report.page import PageRun, Pieces, render_page
from ldeval.report.page.scores import COLUMNS
from ldeval.store import open_table, step_folder, write_table

LIMIT_MIB = 60
SYLLABLES = ("ba", "do", "ki", "lu", "me", "no", "ra", "si", "ta", "vu")


def main() -> int:
    """Parse, write what is missing, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--probes", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--checkpoints", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="60 probes, 6 checkpoints")
    parser.add_argument("--build", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.probes, options.checkpoints = 60, 6
    page = options.store / "report.html"
    if options.build:
        print(json.dumps(build(options, page)))
        return 0
    fill(options)
    command = [sys.executable, __file__, "--build"]
    command += ["--store", str(options.store)]
    for name in ("probes", "tokens", "checkpoints"):
        command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{options.probes} probes x {len(KIND_NAMES)} kinds x {options.tokens} tokens "
        f"x {options.checkpoints} checkpoints"
    )
    size = page.stat().st_size / 2**20
    print(f"{'compare':>28} {found['compare']:>9.1f} s")
    print(f"{'make the page':>28} {found['render']:>9.1f} s")
    print(f"{'peak memory':>28} {found['mib']:>9.0f} MiB, {found['before']:.0f} before")
    print(f"{'file':>28} {size:>9.1f} MiB, at most {LIMIT_MIB}")
    for name, seconds in browse(page).items():
        print(f"{name:>28} {1000 * seconds:>9.0f} ms")
    return int(size > LIMIT_MIB)


def fill(options: argparse.Namespace) -> None:
    """Write the checkpoints that are not there."""
    for step in range(options.checkpoints):
        folder = step_folder(options.store, RUN, step)
        if (folder / "manifest.json").is_file():
            continue
        if step < DISTINCT:
            write_table(folder, synthetic(step, options.probes, options.tokens))
        else:
            link(step_folder(options.store, RUN, 1 + step % (DISTINCT - 1)), folder)


def build(options: argparse.Namespace, page: Path) -> dict[str, float]:
    """Compare and make the page in this process."""
    tables = [
        open_table(step_folder(options.store, RUN, step))
        for step in range(options.checkpoints)
    ]
    start = time.perf_counter()
    comparison = compare_run(tables, run=RUN)
    compared = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    begun = time.perf_counter()
    narrow = [replace(table, columns=COLUMNS) for table in tables]
    run = PageRun(comparison, narrow, probes(options), Pieces(spelled(), "synthetic"))
    page.write_text(render_page([run], title="A synthetic run"), encoding="utf-8")
    return {
        "compare": compared - start,
        "render": time.perf_counter() - begun,
        "before": before,
        "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def spelled() -> dict[int, bytes]:
    """Words for the ids of the synthetic tables."""
    count = len(SYLLABLES)
    return {
        token: (" " + "".join(SYLLABLES[token // count**i % count] for i in range(3)))
        .encode()
        for token in range(640_000)
    }  # fmt: skip


def probes(options: argparse.Namespace) -> list[Probe]:
    """Prompts and responses of about the length that real ones have; their words are
    not those of the tables, which are drawn at random."""
    words = " ".join(SYLLABLES * (options.tokens // 3))
    return [
        Probe(
            f"probe-{i:05d}",
            f"Question {i}: {words}?",
            {kind: Response(kind, f"{i} {kind} {words}") for kind in KIND_NAMES},
            i % 2 == 0,
        )
        for i in range(options.probes)
    ]


def browse(path: Path) -> dict[str, float]:
    """Seconds until the page shows what was asked for, as a script in it sees them."""
    from playwright.sync_api import sync_playwright

    browser = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=browser, args=["--no-sandbox", "--disable-gpu"]
        )
        page = chromium.new_page(viewport={"width": 1400, "height": 1000})
        start = time.perf_counter()
        page.goto(path.resolve().as_uri())
        page.wait_for_selector("html[data-ready=true]")
        times = {"load until all is drawn": time.perf_counter() - start}
        for name, act, until in STEPS:
            code = _TIMED.replace("ACT", act).replace("UNTIL", until)
            times[name] = page.evaluate(code)
        size = page.evaluate("performance.memory?.usedJSHeapSize ?? 0")
        print(f"{'script memory':>28} {size / 2**20:>9.0f} MiB", file=sys.stderr)
        chromium.close()
    return times


_PAIR = "set('#changes select[data-control=pair]', '{}', 'change')"
_SEARCH = "set('input[type=search]', '{}', 'input')"
STEPS: tuple[tuple[str, str, str], ...] = (
    (
        "switch the measure",
        "document.querySelector('#curves [value=mean_sum]').click()",
        "title().includes('response')",
    ),
    ("switch the pair, first time", _PAIR.format(1), "rows() !== before"),
    ("switch the pair, again", _PAIR.format(2), "rows() !== before"),
    (
        "list the prompts",
        "document.querySelector('#prompts').scrollIntoView()",
        "document.querySelector('#prompts .token')",
    ),
    ("search, first time", _SEARCH.format("question 1"), "!all()"),
    ("search, again", _SEARCH.format(""), "all()"),
    ("sort", "set('#prompts [data-control=sort]', 'others', 'change')", "true"),
    ("open a prompt", "buttons[30].click()", "opened(30)"),
    ("open another", "buttons[31].click()", "opened(31)"),
)
"""What a person does: its name, how, and when it is done."""

_TIMED = """() => new Promise((resolve, reject) => {
  const buttons = document.querySelectorAll('button.prompt');
  const note = () => document.querySelector('.prompt-list .note').textContent;
  const all = () => note().split(' ')[0] === note().split(' ')[2];
  const opened = (i) => document.querySelector('.prompt-detail h3').textContent
    .includes(buttons[i].dataset.probe.padStart(5, '0'));
  const set = (selector, value, event) => {
    const x = document.querySelector(selector);
    x.value = value;
    x.dispatchEvent(new Event(event));
  };
  const title = () => document.querySelector('#curves .axis-title').textContent;
  const rows = () => document.querySelector('#changes tbody');
  const before = rows();
  const start = performance.now();
  ACT;
  const look = () => {
    if (UNTIL) {
      requestAnimationFrame(() => setTimeout(
        () => resolve((performance.now() - start) / 1000)));
    } else if (performance.now() - start > 60000) reject(new Error('never done'));
    else setTimeout(look, 1);
  };
  look();
})"""
"""Acts, waits until it is done and a frame was painted, and gives the seconds."""


if __name__ == "__main__":
    sys.exit(main())
