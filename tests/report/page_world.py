"""Scored runs for tests of the page: real softmax over a vocabulary of real pieces.

The prompts and the responses hold what must stay text: elements, ends of elements,
bidirectional controls, lone bytes of a character.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ldeval.compare import compare_run
from ldeval.probes import ProbeSet
from ldeval.records import Comparison, Probe, Response, ScoreTable
from ldeval.report.page import PageRun, Pieces
from ldeval.store import step_folder, write_table
from tests.compare.conftest import (
    Change,
    World,
    lift,
    make_world,
    squeeze_step,
)

HOSTILE = (
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=document.title='owned'>",
    "\u202egnp.exe\u202c and \u2066isolated\u2069",
    "<!-- <script> ]]> --!> & &lt;b&gt; `${1}`",
    "=cmd|' /C calc'!A0",
    "line\nbreak\ttab\x00null\x1b[31mred",
)
PIECES: tuple[bytes, ...] = (
    b" the", b" rice", b" is", b" ready", b" when", b" water", b" has", b" gone",
    b" and", b" you", b" should", b" stir", b" it", b" gently", b".", b",",
    b" Do", b" not", b" lift", b"\n", b"<script>", b"</script>",
    "\u202e".encode(), "\U0001f35a".encode()[:2], "\U0001f35a".encode()[2:],
    b" lid", b" for", b" ten", b" minutes", b" more",
    " \u7c73\u996d".encode(), b"<|im_end|>",
)  # fmt: skip
"""One a token id; 23 and 24 are the two halves of one character."""


@dataclass(frozen=True)
class ScoredRun:
    """A run with everything that a page can show of it."""

    tables: tuple[ScoreTable, ...]
    probes: tuple[Probe, ...]
    comparison: Comparison

    @property
    def page_run(self) -> PageRun:
        pieces = Pieces(dict(enumerate(PIECES)), "tokenizer.json")
        return PageRun(self.comparison, self.tables, self.probes, pieces)


def scored_run(
    trained: int = 24,
    heldout: int = 20,
    steps: tuple[int, ...] = (0, 20, 40, 60),
    *,
    run: str = "dpo",
    replicates: int = 199,
    seed: int = 0,
    objective: str | None = "dpo",
) -> ScoredRun:
    """A run in which rejected is squeezed and most of the rest falls."""
    world = make_world(trained, heldout, vocab=len(PIECES), tokens=(14, 30), seed=seed)
    world = _readable(world, seed)
    worlds = [world]
    for number in range(1, len(steps)):
        worlds.append(worlds[-1].changed(_step(world, number, len(steps) - 1, seed)))
    tables = tuple(
        later.table(step, world, run=run, objective=objective)
        for step, later in zip(steps, worlds, strict=True)
    )
    probes = _probes(world)
    hashed = [_hashed(table, probes) for table in tables]
    comparison = compare_run(
        hashed,
        run=run,
        objective=objective,
        objective_has_negative=True,
        replicates=replicates,
    )
    return ScoredRun(tuple(hashed), probes, comparison)


def _readable(world: World, seed: int) -> World:
    """Labels that end in the end token and rarely hold markup."""
    rng = np.random.default_rng(seed + 1)
    usual = np.array([i for i in range(len(PIECES) - 1) if not 19 <= i <= 24])
    labels = {}
    for key, old in world.labels.items():
        found = rng.choice(usual, len(old))
        found[-1] = len(PIECES) - 1
        if rng.random() < 0.2:
            found[2:5] = (20, 21, 22)
        if rng.random() < 0.3:
            found[5:7] = (23, 24)
        labels[key] = found
    logits = {
        key: lift(z, labels[key], 1.5 + rng.standard_normal(len(z)))
        for key, z in world.logits.items()
    }
    return dataclasses.replace(world, labels=labels, logits=logits)


def _step(world: World, number: int, count: int, seed: int) -> Change:
    rng = np.random.default_rng(seed + 10 * number)
    size = 1.0 / count

    def move(probe: str, kind: str, z: np.ndarray, y: np.ndarray) -> np.ndarray:
        gain = 1.0 if world.trained[probe] else 0.5
        noise = rng.normal(0, 0.12)
        each = rng.normal(0, 0.25, len(y))
        if kind == "rejected":
            return squeeze_step(z, y, 2.4 * size * gain * (1 + noise))
        if kind.startswith("rejected"):
            return squeeze_step(z, y, 0.8 * size * gain * (1 + noise))
        drop = 0.06 if kind == "chosen" else -0.5 * gain
        return lift(z, y, size * (drop + 0.6 * noise + each))

    return move


def _probes(world: World) -> tuple[Probe, ...]:
    found = []
    for number, probe_id in enumerate(world.probes):
        question = f"How do I cook rice, take {number}?"
        if number < len(HOSTILE):
            question = f"{question} {HOSTILE[number]}"
        prompt = (
            question
            if number % 2
            else (
                {"role": "system", "content": "Answer briefly."},
                {"role": "user", "content": question},
            )
        )
        responses = {
            kind: Response(kind, _spelled(world.labels[probe_id, kind]))
            for probe, kind in world.labels
            if probe == probe_id
        }
        found.append(Probe(probe_id, prompt, responses, world.trained[probe_id]))
    return tuple(found)


def _spelled(labels: np.ndarray) -> str:
    return b"".join(PIECES[i] for i in labels[:-1]).decode("utf-8", "replace")


def _hashed(table: ScoreTable, probes: tuple[Probe, ...]) -> ScoreTable:
    manifest = dataclasses.replace(
        table.manifest, probe_set_hash=ProbeSet(probes).content_hash
    )
    return dataclasses.replace(table, manifest=manifest)


def stored(found: ScoredRun, store: Path) -> Path:
    """The run in a store."""
    for table in found.tables:
        write_table(step_folder(store, table.manifest.run, table.manifest.step), table)
    return store / found.tables[0].manifest.run
