"""What changed from one checkpoint to another.

    python scripts/checkpoint_diff.py A B

A and B are step folders of a store (STORE/RUN/step_000010), or --output_path folders of
two plain `lm_eval --tasks ldyn_probes --log_samples` runs.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from ldeval.cli import main as ldeval_main
from ldeval.compare import compare_run
from ldeval.errors import LdevalError
from ldeval.report import print_summary
from ldeval.store import MANIFEST, read_table


def main() -> int:
    """Compare two step folders here; hand harness folders to ``ldeval diff``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    options = parser.parse_args()
    if not (options.before / MANIFEST).is_file():
        return ldeval_main(["-q", "diff", str(options.before), str(options.after)])
    try:
        before, after = read_table(options.before), read_table(options.after)
        if before.manifest.step == after.manifest.step:
            # two runs at one step: number them in the order given
            step = before.manifest.step + 1
            after = replace(after, manifest=replace(after.manifest, step=step))
        names = f"{options.before.name} to {options.after.name}"
        print(print_summary(compare_run([before, after], run=names)))
    except LdevalError as error:
        print(f"checkpoint_diff: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
