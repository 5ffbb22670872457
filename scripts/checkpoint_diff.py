"""What changed from one checkpoint to another.

    python scripts/checkpoint_diff.py A B

A and B are step folders of a store (STORE/RUN/step_000010), or --output_path folders of
two plain `lm_eval --tasks ldyn_probes --log_samples` runs.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ldeval.cli import main as ldeval_main
from ldeval.cli import run
from ldeval.commands.output import complain, say
from ldeval.compare import compare_run
from ldeval.errors import LdevalError
from ldeval.report import print_summary
from ldeval.store import read_table


def main() -> int:
    """Compare two step folders here; hand harness folders to ``ldeval diff``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    options = parser.parse_args()
    if not options.before.name.startswith("step_"):
        return ldeval_main(["-q", "diff", str(options.before), str(options.after)])
    try:
        # numbered in the order given: it may go back in steps, or across runs
        tables = [
            replace(table, manifest=replace(table.manifest, step=number))
            for number, table in enumerate(map(read_table, vars(options).values()))
        ]
        names = f"{options.before} to {options.after}"
        say(print_summary(compare_run(tables, run=names)))
    except LdevalError as error:
        complain(f"checkpoint_diff: error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    run(main)
