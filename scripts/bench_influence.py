"""Influence of M examples on R responses: time, peak memory, and what they grow with.

    python scripts/bench_influence.py --model DIR [--examples 32] [--responses 200]
        [--memory 4GiB] [--widths 16384 262144] [--json FILE] [--rows FILE]

One SGD step of DPO on M pairs of the bundled set's trained half, and responses of the
others. In one process, one after the other: the naive way on 4 × 20 (a gradient by
``torch.autograd.grad`` for every pair of example and response, both taken whole, and
multiplied); the same 4 × 20 by :func:`exact_influence`, whose answers must agree; the
whole table exactly; and from projected gradients, with their errors against it.

CPU seconds are of this process and of all its threads, so that other work on the
machine shows less than it does in the elapsed time. The naive time of M × R is its time
a pair, times M·R.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import psutil
import torch
from probe_files import first_words

from ldeval.bundled import bundled_probes
from ldeval.commands.dynamics import parse_bytes
from ldeval.compare.ranks import rank_correlation
from ldeval.dynamics.causal_lm import CausalLM, open_causal_lm
from ldeval.dynamics.influence import Parts, cheaper, exact_influence
from ldeval.dynamics.journal import Journal
from ldeval.dynamics.optimizer_state import fresh_state
from ldeval.dynamics.projection import projected_influence
from ldeval.dynamics.residuals import Loss
from ldeval.dynamics.sequences import encode, log_probs, sequences
from ldeval.dynamics.training import TrainingExample, objective, training_batch
from ldeval.dynamics.update import Step, plan_step
from ldeval.probes import read_probes
from ldeval.scoring.batch import ScoreRequest

NAIVE = (4, 20)
GIB = 2**30


@dataclass
class Taken:
    """What a computation took."""

    seconds: float
    cpu_seconds: float
    peak_gib: float
    """Highest resident memory of the process so far."""
    load: float
    """Other processes' load on the machine when it began."""


def taken(work: Callable[[], Any]) -> tuple[Any, Taken]:
    """Run something and say what it took."""
    load = os.getloadavg()[0]
    started, computed = time.monotonic(), time.process_time()
    found = work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds, cpu = time.monotonic() - started, time.process_time() - computed
    return found, Taken(seconds, cpu, peak / GIB, load)


def naive(
    lm: CausalLM,
    requests: list[ScoreRequest],
    batch: list[TrainingExample],
    step: Step,
    loss: Loss,
) -> np.ndarray:
    """Two whole gradients for every entry."""
    parameters = list(lm.trainable.values())

    def whole(members: tuple[ScoreRequest, ...], signs: list[float]) -> list[Any]:
        length = sum(len(r.ids) for r in members)
        (one,) = sequences(lm, members, tokens=length)
        totals = log_probs(lm, one)
        weights = torch.tensor([signs[i] for i in one.requests], dtype=totals.dtype)
        return list(torch.autograd.grad((weights * totals).sum(), parameters))

    table = np.zeros((len(requests), len(batch)))
    for i, example in enumerate(batch):
        pulls = step.losses[i].pulls
        signs = [pulls[r.kind] for r in example.requests]
        for r, request in enumerate(requests):
            pushed = whole(example.requests, signs)
            moved = whole((request,), [1.0])
            product = sum(
                float((a * b).double().sum())
                for a, b in zip(pushed, moved, strict=True)
            )
            rate = -float(next(iter(step.scale.values())))
            table[r, i] = rate * step.clip * example.weight * product
    return table


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--probes", type=Path, default=bundled_probes())
    parser.add_argument("--examples", type=int, default=32)
    parser.add_argument("--responses", type=int, default=200)
    parser.add_argument("--memory", type=parse_bytes, default=4 * GIB)
    parser.add_argument("--widths", type=int, nargs="*", default=[2**14, 2**18])
    parser.add_argument("--words", type=int, help="cut responses to their first words")
    parser.add_argument("--rows", type=Path, help="keep finished rows of the table")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    lm = open_causal_lm(options.model)
    probes = [first_words(p, options.words) for p in read_probes(options.probes)]
    trained = [p for p in probes if p.trained and "rejected" in p.responses]
    wanted = objective("dpo")
    batch, _ = training_batch(lm, trained[: options.examples], wanted)
    requests, _ = encode(lm, [p for p in probes if not p.trained])
    requests = requests[: options.responses]
    state = fresh_state(lm, "sgd", 1e-4)
    step, planning = taken(lambda: plan_step(lm, batch, wanted.loss, state))
    results: dict[str, Any] = {
        "examples": len(batch),
        "responses": len(requests),
        "tokens_trained": sum(len(r.ids) for e in batch for r in e.requests),
        "tokens_of_responses": sum(len(r.ids) for r in requests),
        "memory": options.memory,
        "threads": torch.get_num_threads(),
        "cpu": psutil.cpu_count(),
    }
    print(results, flush=True)

    def note(name: str, cost: Taken, **more: Any) -> None:
        results[name] = {**cost.__dict__, **more}
        print(name, results[name], flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps(results, indent=1), "utf-8")

    note("gradient of the batch", planning)
    few_examples, few_responses = batch[: NAIVE[0]], requests[: NAIVE[1]]

    def exact(
        some: list[TrainingExample],
        rows: list[ScoreRequest],
        journal: Journal | None = None,
    ) -> Parts:
        plan = cheaper(lm, rows, some, step, budget=options.memory)
        return exact_influence(
            lm, rows, some, wanted.loss, step, plan, journal=journal, progress=True
        )

    small, cost = taken(lambda: exact(few_examples, few_responses))
    note("ours, 4 x 20", cost)
    slow, cost = taken(
        lambda: naive(lm, few_responses, few_examples, step, wanted.loss)
    )
    pairs = len(batch) * len(requests) / (NAIVE[0] * NAIVE[1])
    off = np.abs(small.influence - slow).max() / np.abs(slow).max()
    note(
        "naive, 4 x 20",
        cost,
        off_from_ours=float(off),
        extrapolated_cpu_seconds=cost.cpu_seconds * pairs,
        extrapolated_seconds=cost.seconds * pairs,
    )
    plan = cheaper(lm, requests, batch, step, budget=options.memory)
    with Journal(options.rows, {"examples": len(batch), "held": plan.held}) as journal:
        resumed = len(journal)
        parts, cost = taken(lambda: exact(batch, requests, journal))
    whole = parts.influence
    note(
        "ours, whole",
        cost,
        route=plan.route,
        held=plan.held,
        gap=parts.gap,
        rows_kept_from_before=resumed,
    )
    for width in options.widths:
        found, cost = taken(
            lambda width=width: projected_influence(
                lm, requests, batch, wanted.loss, step, width=width, progress=True
            )
        )
        error = float(np.sqrt(np.mean((found.influence - whole) ** 2)))
        note(
            f"projected to {width}",
            cost,
            relative_error=error / float(np.sqrt(np.mean(whole**2))),
            rank_correlation=rank_correlation(found.influence.ravel(), whole.ravel()),
            told=dict(found.error),
        )


if __name__ == "__main__":
    main()
