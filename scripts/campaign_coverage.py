"""Do the intervals cover, and do the verdicts hold their word?

    python scripts/campaign_coverage.py [--repetitions 2000] [--real STORE/RUN]
        [--part intervals|null|power] [--jobs 2]

Part ``intervals``: coverage of 95% intervals of a mean (Δtok, a ratio of sums), a slope
and a flow share, at 24, 64 and 200 prompts, for changes that are normal, Student's t
with 3 degrees of freedom, and resampled from a real run. Part ``null``: how often any
verdict holds in a run of 8 checkpoints in which nothing is learnt. Part ``power``: how
often an injected squeeze is found, and a pure sharpening taken for one.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ldeval.compare import Bootstrap, Thresholds, decide, digests
from ldeval.compare.evidence import SplitEvidence
from ldeval.compare.fieller import fieller_estimate
from ldeval.compare.squeeze import Question
from ldeval.compare.stats import ratio_estimate, slope_estimate
from ldeval.records import (
    KIND_NAMES,
    Estimate,
    Manifest,
    ScoreTable,
    TokenScores,
)

Float = npt.NDArray[np.float64]
SIZES = (24, 64, 200)
SHAPES = ("normal", "t3", "real")
STATISTICS = ("mean", "slope", "share")
LOW, HIGH = 0.92, 0.97
"""Coverage that a 95% interval must have here."""


def main() -> int:
    """Run the parts asked for and print one table each; 1 where a bound is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--real", type=Path, help="a scored run to resample from")
    parser.add_argument(
        "--part", choices=["intervals", "null", "power"], action="append", default=[]
    )
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    parts = options.part or ["intervals", "null", "power"]
    broken = 0
    if "intervals" in parts:
        population = real_changes(options.real) if options.real else None
        broken += intervals(options.repetitions, population, options.jobs)
    if "null" in parts:
        broken += null_runs(options.repetitions, options.jobs)
    if "power" in parts:
        broken += power(max(options.repetitions // 10, 20), options.jobs)
    return 1 if broken else 0


# -------------------------------------------------------------------------- intervals


@dataclass(frozen=True)
class Population:
    """Paired changes of many prompts, to draw from."""

    change: Float
    """[N] Δsum of one kind, nats."""
    other: Float
    """[N] Δsum of another kind of the same prompt, nats."""
    tokens: Float
    """[N] tokens of the first."""
    lost: Float
    """[N] probability that the label lost."""
    gained: Float
    """[N] of which the argmax got."""


def real_changes(run: Path) -> Population:
    """Per-prompt changes along rejected and chosen, first to last step of a run."""
    from ldeval.compare.flow import masses_of
    from ldeval.store import open_run

    first, last = digests([*(s := open_run(run))[:1], s[-1]])
    pairs = first.index(), last.index()
    rows = {"rejected": [], "chosen": []}
    for probe, kind in pairs[0]:
        both = all((probe, k) in p for k in rows for p in pairs)
        if kind == "rejected" and both:
            for name, found in rows.items():
                found.append([pairs[0][probe, name], pairs[1][probe, name]])
    mine, other = (np.array(rows[name]).T for name in ("rejected", "chosen"))
    delta = [last.logprob_sums[r[1]] - first.logprob_sums[r[0]] for r in (mine, other)]
    before, after = (
        masses_of(table, index, "all")
        for table, index in ((first, mine[0]), (last, mine[1]))
    )
    if before is None or after is None:
        raise SystemExit(f"{run}: holds no top tokens, so there are no flow shares")
    flow = after.low - before.low
    return Population(
        delta[0],
        delta[1],
        first.n_tokens[mine[0]].astype(float),
        -flow[:, 0],
        flow[:, 1],
    )


def made_population(shape: str, size: int = 200_000) -> Population:
    """A large population whose changes have the given shape."""
    rng = np.random.default_rng(0)

    def noise() -> Float:
        if shape == "normal":
            return rng.standard_normal(size)
        return rng.standard_t(3, size) / np.sqrt(3.0)

    tokens = np.round(np.exp(rng.normal(3.7, 0.4, size)))
    common = noise()
    return Population(
        change=tokens * (-0.2 + 0.3 * common),
        other=tokens * (-0.05 + 0.2 * (0.5 * common + noise())),
        tokens=tokens,
        lost=tokens * (0.02 + 0.02 * common),
        gained=tokens * (0.012 + 0.012 * common + 0.01 * noise()),
    )


def truth_of(population: Population, statistic: str) -> float:
    """The value that the intervals should cover."""
    p = population
    if statistic == "mean":
        return float(p.change.sum() / p.tokens.sum())
    if statistic == "share":
        return float(p.gained.sum() / p.lost.sum())
    x, y = p.change / p.tokens, p.other / p.tokens
    return float(np.polyfit(x, y, 1)[0])


def estimate_of(
    population: Population, rows: npt.NDArray[np.intp], statistic: str, boot: Bootstrap
) -> Estimate:
    """The estimate from a sample of prompts."""
    p, n, one = population, len(rows), np.ones(1)
    if statistic == "mean":
        return ratio_estimate(
            p.change[rows, None],
            p.tokens[rows, None],
            one,
            unit="",
            n=n,
            bootstrap=boot,
        )
    if statistic == "share":
        return fieller_estimate(p.gained[rows], p.lost[rows], unit="", n=n)
    x, y = p.change[rows] / p.tokens[rows], p.other[rows] / p.tokens[rows]
    return slope_estimate(x, y, np.arange(n), bootstrap=boot)


def coverage(
    population: Population,
    size: int,
    statistic: str,
    repetitions: int,
    *,
    seed: int = 1,
    replicates: int = 999,
) -> float:
    """Share of samples whose 95% interval holds the population's value."""
    truth, boot = truth_of(population, statistic), Bootstrap(0, replicates)
    rng = np.random.default_rng([seed, size])
    hits = used = 0
    for _ in range(repetitions):
        rows = rng.integers(0, len(population.change), size)
        found = estimate_of(population, rows, statistic, boot)
        if np.isnan(found.value):
            continue  # no clear loss, no share: it is left undefined
        hits += found.low <= truth <= found.high
        used += 1
    return hits / used


def intervals(repetitions: int, real: Population | None, jobs: int) -> int:
    """Print the table of coverage; returns how many cells lie outside the bounds."""
    shapes = [s for s in SHAPES if s != "real" or real is not None]
    print(f"coverage of 95% intervals, {repetitions} repetitions")
    print(f"{'changes':<8} {'statistic':<10}" + "".join(f"{n:>8}" for n in SIZES))
    broken = 0
    for shape in shapes:
        made = real if shape == "real" else made_population(shape)
        assert made is not None
        for statistic in STATISTICS:
            work = partial(_cell, made, statistic, repetitions)
            found = list(_each(work, SIZES, jobs))
            broken += sum(not LOW <= value <= HIGH for value in found)
            shown = "".join(f"{value:>8.3f}" for value in found)
            print(f"{shape:<8} {statistic:<10}{shown}", flush=True)
    if real is None:
        print("no real run was given: --real STORE/RUN")
    print(f"{broken} cells outside {LOW} to {HIGH}")
    return broken


def _cell(made: Population, statistic: str, repetitions: int, size: int) -> float:
    return coverage(made, size, statistic, repetitions)


def _each(work: Callable[[Any], Any], items: Sequence[Any], jobs: int) -> Iterator[Any]:
    if jobs < 2:
        yield from map(work, items)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(work, items)


# --------------------------------------------------------------------------- verdicts

VOCABULARY, LENGTH, TOP = 24, 8, 12


def logits_of(seed: int, probes: int) -> tuple[Float, npt.NDArray[np.int32]]:
    """Logits [probes, kinds, LENGTH, VOCABULARY] and labels of an imaginary model."""
    rng = np.random.default_rng(seed)
    shape = (probes, len(KIND_NAMES), LENGTH, VOCABULARY)
    z = 2.0 * rng.standard_normal(shape)
    gumbel = -np.log(-np.log(rng.random(shape)))
    return z, np.argmax(0.5 * z + gumbel, axis=-1).astype(np.int32)


def table_of(
    z: Float, first: Float, labels: npt.NDArray[np.int32], step: int
) -> ScoreTable:
    """All scores of one checkpoint."""
    logp = _log_softmax(z).reshape(-1, VOCABULARY)
    of_first = _log_softmax(first).reshape(-1, VOCABULARY)
    label, here = labels.reshape(-1), np.arange(labels.size)
    top = np.argsort(-logp, axis=1, kind="stable")[:, :TOP].astype(np.int32)
    of_ref = np.argsort(-of_first, axis=1, kind="stable")[:, :TOP].astype(np.int32)
    p = np.exp(logp)
    probes, kinds = z.shape[:2]
    names = np.repeat([f"p{i:04d}" for i in range(probes)], kinds)
    own = np.tile(np.array(KIND_NAMES), probes)
    rows = probes * kinds
    tokens = TokenScores(
        token_ids=label,
        logprobs=logp[here, label],
        argmax_ids=top[:, 0],
        argmax_logprobs=logp.max(axis=1),
        sq_norms=(p**2).sum(axis=1),
        entropies=-(p * logp).sum(axis=1),
        mean_logprobs=logp.mean(axis=1),
        top_ids=top,
        top_logprobs=np.take_along_axis(logp, top, axis=1),
        ref_ids=of_ref,
        ref_logprobs=np.take_along_axis(logp, of_ref, axis=1),
    )
    manifest = Manifest(
        *("run", step, "checkpoint", "weights", "probes", "tokenizer", None, "trl"),
        *("hf", "native", "float64", VOCABULARY, {}, probes, rows, len(label)),
        reference_step=0,
    )
    return ScoreTable(
        manifest=manifest,
        probe_ids=names,
        kinds=own,
        trained=np.ones(rows, bool),
        text_hashes=np.char.add(np.char.add(own, "/"), names),
        offsets=np.arange(rows + 1, dtype=np.int64) * LENGTH,
        tokens=tokens,
        logprob_sums=tokens.logprobs.reshape(rows, LENGTH).sum(axis=1),
    )


def _log_softmax(z: Float) -> Float:
    shifted = z - z.max(axis=-1, keepdims=True)
    return np.asarray(
        shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)), np.float64
    )


def holding(tables: Sequence[ScoreTable], replicates: int = 4999) -> list[str]:
    """Names of the verdicts that hold."""
    evidence = SplitEvidence(
        digests(tables), "trained", Bootstrap(0, replicates), Thresholds()
    )
    found = decide(Question(evidence, 0.01, 0.001))
    return [verdict.name for verdict in found if verdict.state == "holds"]


def null_run(seed: int, probes: int = 64, checkpoints: int = 8) -> list[str]:
    """Verdicts of a run that wanders: each checkpoint shifts each kind, each response
    and each logit by chance, and none of it lasts."""
    first, labels = logits_of(seed, probes)
    rng = np.random.default_rng([seed, 1])
    tables = [table_of(first, first, labels, 0)]
    for step in range(1, checkpoints):
        z = first + 0.2 * rng.standard_normal(first.shape)
        shift = 0.03 * rng.standard_normal((1, len(KIND_NAMES), 1))
        shift = shift + 0.1 * rng.standard_normal((probes, len(KIND_NAMES), 1))
        tables.append(table_of(_lifted(z, labels, shift), first, labels, step))
    return holding(tables)


def _lifted(z: Float, labels: npt.NDArray[np.int32], amount: Float) -> Float:
    lifted = z.copy()
    chosen = np.take_along_axis(lifted, labels[..., None], axis=-1)
    np.put_along_axis(lifted, labels[..., None], chosen + amount[..., None], axis=-1)
    return lifted


def null_runs(repetitions: int, jobs: int) -> int:
    """Print how often each verdict holds without a cause; 1 where more than 5%."""
    found = list(_each(null_run, range(repetitions), jobs))
    anything = sum(bool(names) for names in found) / repetitions
    print(f"null runs of 8 checkpoints, 64 prompts: {repetitions} repetitions")
    for name, count in Counter(n for names in found for n in names).most_common():
        print(f"  {name:<26}{count / repetitions:.4f}")
    print(f"any verdict holds in {anything:.2%} (at most 5%)", flush=True)
    return int(anything > 0.05)


def squeezed_run(seed: int, probes: int = 64) -> list[str]:
    """Verdicts after a squeeze: rejected pushed down by its gradient, the rest falling
    a little, chosen spared."""
    first, labels = logits_of(seed, probes)
    rng = np.random.default_rng([seed, 2])
    z = first + 0.1 * rng.standard_normal(first.shape)
    drift = np.full(len(KIND_NAMES), -0.2)
    drift[KIND_NAMES.index("chosen")] = 0.2
    drift[KIND_NAMES.index("rejected")] = 0.0
    noise = 0.2 * rng.standard_normal((probes, len(KIND_NAMES), 1))
    z = _lifted(z, labels, drift[None, :, None] + noise)
    row = KIND_NAMES.index("rejected")
    pushed = z[:, row] + 1.5 * np.exp(_log_softmax(z[:, row]))
    own = np.take_along_axis(pushed, labels[:, row, :, None], axis=-1) - 1.5
    np.put_along_axis(pushed, labels[:, row, :, None], own, axis=-1)
    z[:, row] = pushed
    return holding([table_of(first, first, labels, 0), table_of(z, first, labels, 10)])


def sharpened_run(seed: int, probes: int = 64) -> list[str]:
    """Verdicts after a pure sharpening: every logit over a temperature of 0.8."""
    first, labels = logits_of(seed, probes)
    tables = [
        table_of(first, first, labels, 0),
        table_of(first / 0.8, first, labels, 10),
    ]
    return holding(tables)


def power(repetitions: int, jobs: int) -> int:
    """Print how often the injected causes are read; 1 where sharpening is squeezing."""
    squeezed = list(_each(squeezed_run, range(repetitions), jobs))
    sharpened = list(_each(sharpened_run, range(repetitions), jobs))
    name = "squeezing_chosen_held"
    found = sum(name in names for names in squeezed) / repetitions
    wrong = (
        sum(bool({"squeezing", name} & set(names)) for names in sharpened) / repetitions
    )
    print(f"injected squeeze read as {name}: {found:.1%} of {repetitions}")
    print(f"pure sharpening read as squeezing: {wrong:.1%} of {repetitions}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
