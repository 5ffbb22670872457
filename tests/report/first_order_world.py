"""What predict, influence and risk really write, beside the run of the page's tests.

A tiny model with the run's own prompts: the results carry the hash of those probes, and
the run is given the hashes of that model's tokenizer and weights.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from ldeval.cli import main
from ldeval.dynamics.results import read_prediction, read_results
from ldeval.probes import ProbeSet, write_probes
from ldeval.records import Manifest
from ldeval.report import Beside, Joined, PageRun, join_results
from tests.report.page_world import HOSTILE, ScoredRun
from tests.tiny import save_run

DATA = "<img src=x onerror=alert(1)> \u202e.jsonl"
"""Examples are known by their file and line: names of files are text of others too."""
TRAINED, HELDOUT = 4, 3


@dataclass(frozen=True)
class FirstOrder:
    """A run, and a folder of results that fit it."""

    run: ScoredRun
    folder: Path
    """Holds all three results."""

    @property
    def joined(self) -> tuple[Joined, ...]:
        found = [read_results(self.folder)]
        (joined,) = join_results(found, [Beside(self.run.comparison, self.run.probes)])
        return joined

    @property
    def page_run(self) -> PageRun:
        return dataclasses.replace(self.run.page_run, dynamics=self.joined)


def first_order_of(run: ScoredRun, place: Path) -> FirstOrder:
    """Compute all three on the first prompts of the run."""
    save_run(place, [1])
    write_probes(place / "probes.jsonl", ProbeSet(run.probes))
    rows = [
        {
            "prompt": f"Question {n}? {text}",
            "chosen": f"The answer to {n} is long enough, I think. {text}",
            "rejected": f"Nobody knows the answer to {n}, or ever will. {text}",
        }
        for n, text in enumerate(HOSTILE)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (place / DATA).write_text(lines)
    folder = place / "results"
    model = ["--model", str(place / "base")]
    limit = ["--limit", str(TRAINED), str(HELDOUT)]
    step = [
        *model,
        "--data",
        str(place / DATA),
        "--probes",
        str(place / "probes.jsonl"),
    ]
    step += [*limit, "--batch", "5", "-o", str(folder)]
    adamw = ["--optimizer", "adamw", "--weight-decay", "0.1", "--lr", "1e-4"]
    sgd = ["--lr", "1e-3", "--sizes", "0.5", "1", "64"]
    assert main(["-q", "predict", *step, *sgd]) == 0
    assert main(["-q", "influence", *step, *adamw]) == 0
    numbers = ["--json", str(folder / "risk.json")]
    assert main(["-q", "risk", str(place / DATA), *model, *numbers]) == 0
    settings = read_prediction(folder).settings
    tokenizer, weights = settings["tokenizer"], settings["weights"]

    def hashed(manifest: Manifest) -> Manifest:
        own = weights if manifest.step == 20 else manifest.weights_hash
        return dataclasses.replace(manifest, tokenizer_hash=tokenizer, weights_hash=own)

    tables = [dataclasses.replace(t, manifest=hashed(t.manifest)) for t in run.tables]
    manifests = tuple(hashed(m) for m in run.comparison.manifests)
    comparison = dataclasses.replace(run.comparison, manifests=manifests)
    return FirstOrder(
        dataclasses.replace(run, tables=tuple(tables), comparison=comparison), folder
    )
