"""A synthetic run with the shape of real ones: per-prompt numbers drawn, then counted.

The levels and slopes follow the published DPO curves of a small model. Estimates are
means over the drawn prompts with normal intervals: enough to print and draw.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest

from ldeval.records import (
    KIND_NAMES,
    QUANTILES,
    Comparison,
    Conjunct,
    CurvePoint,
    Estimate,
    Excluded,
    Flow,
    InfluenceCell,
    KindChange,
    Manifest,
    Margin,
    PairComparison,
    Split,
    Stratum,
    Verdict,
)
from tests.report.browser import BROWSER, DRIVEN
from tests.report.first_order_world import FirstOrder, first_order_of
from tests.report.page_world import ScoredRun, scored_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# not collected rather than skipped: scripts/setup installs a browser where it can, and
# a machine that has none runs everything else
collect_ignore = (
    []
    if DRIVEN
    else ["test_page_browser.py", "test_page_states.py", "test_page_dynamics.py"]
)

Floats = npt.NDArray[np.float64]
Factory = Callable[..., Comparison]

HOSTILE_IDS = (
    "<script>alert(1)</script>",
    "a|b`c`",
    "line\nbreak",
    "\u202egnp.exe",
    "[x](javascript:1)",
    "=cmd()",
    "\x1b[31mred",
    "$\\frac{1}{0}$",
)
HOSTILE_RUN = "dpo <b>|`$x$\u202e\n=1"

LEVELS = {  # nats/token at the start, tokens, Δtok by SFT, Δtok by DPO
    "chosen": (-2.05, 62, 0.42, 0.04),
    "chosen_semantic": (-2.35, 58, 0.16, -0.28),
    "chosen_format": (-2.62, 55, 0.10, -0.33),
    "initial": (-1.32, 66, 0.02, -0.42),
    "rejected": (-1.92, 60, 0.27, -0.98),
    "rejected_semantic": (-2.22, 57, 0.11, -0.62),
    "rejected_format": (-2.48, 54, 0.08, -0.56),
    "irrelevant_train": (-3.15, 61, 0.31, -0.38),
    "irrelevant_test": (-3.05, 59, 0.07, -0.46),
    "random_sentence": (-4.05, 44, -0.12, -0.60),
    "permuted": (-6.10, 64, -0.16, -0.95),
    "random_words": (-6.55, 60, -0.22, -1.12),
    "argmax:chosen": (-1.02, 62, 0.16, 0.14),
    "argmax:rejected": (-0.98, 60, 0.12, 0.33),
}
SIZES: dict[Split, int] = {"trained": 64, "heldout": 40}


def estimate(values: Floats, unit: str, sizes: Floats | None = None) -> Estimate:
    """Mean over prompts, or the ratio of sums to ``sizes``, with a normal interval."""
    n = len(values)
    sizes = np.ones(n) if sizes is None else sizes
    ratio = float(values.sum() / sizes.sum())
    se = float(((values - ratio * sizes) / sizes.mean()).std() / math.sqrt(n))
    return Estimate(ratio, ratio - 2 * se, ratio + 2 * se, se, 0.95, n, n, unit)


class Draws:
    """Per-prompt log-probabilities of one run: [step, prompt] per kind and split."""

    def __init__(self, stage: str, steps: tuple[int, ...], seed: int) -> None:
        rng = np.random.default_rng(seed)
        time = np.arange(len(steps)) / max(len(steps) - 1, 1)
        self.steps = steps
        self.tokens: dict[tuple[str, Split], Floats] = {}
        self.sums: dict[tuple[str, Split], Floats] = {}
        for split, n in SIZES.items():
            gain = 1.0 if split == "trained" else 0.55
            common = rng.normal(0, 0.22, n)
            length = rng.normal(0, 0.3, n)
            for kind, row in LEVELS.items():
                tokens = np.round(row[1] * np.exp(length + rng.normal(0, 0.1, n)))
                base = row[0] + rng.normal(0, 0.35, n)
                by_sft = row[2] * gain * (1 + common + rng.normal(0, 0.2, n))
                by_dpo = row[3] * gain * (1 + common + rng.normal(0, 0.2, n))
                if stage == "dpo":
                    base, each, shape = base + by_sft, by_dpo, time**1.3
                else:
                    each, shape = by_sft, np.sqrt(time)
                noise = rng.normal(0, 0.05, (len(steps), n)) * (time > 0)[:, None]
                self.tokens[kind, split] = tokens
                self.sums[kind, split] = (base + shape[:, None] * each + noise) * tokens


def change(draws: Draws, kind: str, split: Split, i: int, j: int) -> KindChange:
    """One kind between two steps."""
    tokens, sums = draws.tokens[kind, split], draws.sums[kind, split]
    delta = sums[j] - sums[i]
    per_token = estimate(delta, "nats/token", tokens)
    body = per_token
    if kind == "random_sentence" and split == "heldout":
        body = Estimate.undefined(
            "fewer than 3 tokens <in a response>", unit="nats/token", level=0.95
        )
    return KindChange(
        kind=kind,
        split=split,
        n=len(delta),
        mean_tokens=float(tokens.mean()),
        before_sum=float(sums[i].mean()),
        after_sum=float(sums[j].mean()),
        delta_sum=estimate(delta, "nats/response"),
        delta_tok=per_token,
        share_fell=float((delta < 0).mean()),
        first=estimate(delta / tokens * 1.4 + 0.02, "nats/token"),
        body=body,
        end=estimate(delta / tokens * 0.2, "nats/token"),
        matched=estimate(delta / tokens * 1.1, "nats/token"),
        quantiles=tuple(np.quantile(delta / tokens, QUANTILES)),
        p_value=math.nan if ":" in kind else 0.004,
        p_adjusted=math.nan if ":" in kind else 0.048,
    )


def flow(
    draws: Draws, kind: str, split: Split, i: int, j: int, stratum: Stratum = "off"
) -> Flow:
    """Bins that add up to zero, the label losing along rejected."""
    rng = np.random.default_rng(i * 100 + j + len(kind))
    lost = 0.045 if kind == "rejected" else -0.01
    lost *= 1.0 if split == "trained" else 0.6
    n = SIZES[split]
    argmax = rng.normal(0.7 * lost, 0.02, n)
    top = rng.normal(0.2 * lost, 0.012, n)
    tail = rng.normal(0.1 * lost, 0.01, n)
    unit = "probability/token"
    label = estimate(-(argmax + top + tail), unit)
    exact = 0.82 if kind == "chosen" else 1.0
    bins = (estimate(argmax, unit), estimate(top, unit), estimate(tail, unit))
    clear = label.high < 0
    shares = [
        dataclasses.replace(b, value=b.value / -label.value, unit="share")
        if clear
        else Estimate.undefined("not clear", unit="share", level=0.95)
        for b in bins
    ]
    risen = estimate(0.1 * tail, unit)
    return Flow(
        kind, split, stratum, 22 * n, label, *bins, *shares, exact, 0.031, risen
    )


def influence(draws: Draws, split: Split, i: int, j: int) -> list[InfluenceCell]:
    """Least-squares slopes over prompts."""
    cells = []
    for source in KIND_NAMES:
        x = draws.sums[source, split][j] - draws.sums[source, split][i]
        x = x / draws.tokens[source, split]
        for target in KIND_NAMES:
            if source == target:
                continue
            y = draws.sums[target, split][j] - draws.sums[target, split][i]
            y = y / draws.tokens[target, split]
            slope = float(np.cov(x, y)[0, 1] / x.var(ddof=1))
            se = float(np.std(y - slope * x) / (x.std() * math.sqrt(len(x))))
            ends = (slope - 1.96 * se, slope + 1.96 * se)
            value = Estimate(slope, *ends, se, 0.95, len(x), len(x), "")
            rho = float(np.corrcoef(x, y)[0, 1])
            rank = Estimate(rho, rho - 0.1, rho + 0.1, 0.05, 0.95, len(x), len(x), "")
            cells.append(InfluenceCell(source, target, split, value, rho, rank, value))
    return cells


def pair(draws: Draws, i: int, j: int) -> PairComparison:
    """One pair of checkpoints, in full."""
    splits: tuple[Split, ...] = ("trained", "heldout")
    margins = []
    for split in splits:
        margin = draws.sums["chosen", split] - draws.sums["rejected", split]
        delta = margin[j] - margin[i]
        margins.append(
            Margin(
                split,
                float(margin[i].mean()),
                float(margin[j].mean()),
                estimate(delta, "nats/response"),
                estimate(delta / 61, "nats/token"),
            )
        )
    return PairComparison(
        before=draws.steps[i],
        after=draws.steps[j],
        changes=tuple(
            change(draws, kind, split, i, j) for split in splits for kind in LEVELS
        ),
        margins=tuple(margins),
        flows=tuple(
            flow(draws, k, s, i, j, stratum)
            for k in ("chosen", "rejected")
            for s in splits
            for stratum in ("all", "off", "on")
        ),
        influence=tuple(c for s in splits for c in influence(draws, s, i, j)),
        only_before=((HOSTILE_IDS[0], "initial"),),
        only_after=(),
    )


def curves(draws: Draws) -> tuple[CurvePoint, ...]:
    """The level of every kind at every step; one point undefined."""
    points = []
    for (kind, split), sums in draws.sums.items():
        for i, step in enumerate(draws.steps):
            total = estimate(sums[i], "nats/response")
            per_token = estimate(sums[i], "nats/token", draws.tokens[kind, split])
            if (kind, split, i) == ("initial", "heldout", 1):
                total = Estimate.undefined(
                    "no initial at this step", unit="nats/response", level=0.95
                )
            points.append(CurvePoint(step, kind, split, total, per_token, per_token))
    return tuple(points)


def verdicts(overall: PairComparison) -> tuple[Verdict, ...]:
    """One of each state, over both splits."""
    found = []
    for split in ("trained", "heldout"):
        by_kind = {c.kind: c for c in overall.changes if c.split == split}
        s1 = Conjunct(
            "S1",
            "rejected is down, and below the mean of its two rephrases",
            "holds",
            {
                "rejected": by_kind["rejected"].delta_tok,
                "contrast": by_kind["rejected"].delta_tok,
            },
        )
        s2 = Conjunct(
            "S2", "the other kinds fall", "holds", {"O": by_kind["permuted"].delta_tok}
        )
        nan = Estimate.undefined("no top-k", unit="probability/token", level=0.99)
        s3 = Conjunct(
            "S3", "mass flows to the top", "undecided", {"A": nan}, "no top-k"
        )
        s4 = Conjunct(
            "S4", "chosen is held", "holds", {"C": by_kind["chosen"].delta_tok}
        )
        down = Conjunct(
            "C down",
            "chosen is down",
            "does_not_hold",
            {"C": by_kind["chosen"].delta_tok},
        )
        up = Conjunct(
            "M up", "the margin is up", "holds", {"M": overall.margins[0].delta_tok}
        )
        state = "holds" if split == "trained" else "undecided"
        third = Conjunct("S3", s3.statement, "holds", {}) if state == "holds" else s3
        found += [
            Verdict("squeezing", "does_not_hold", split, (s1, s2, third, down)),
            Verdict("squeezing_chosen_held", state, split, (s1, s2, third, s4)),
            Verdict(
                "likelihood_displacement",
                "does_not_hold",
                split,
                (down, up),
                details={"destination": "argmax"},
            ),
            Verdict(
                "repetition", "undecided", split, (), "no argmax ids | <i>stored</i>"
            ),
        ]
    return tuple(found)


def manifest(run: str, step: int, excluded: tuple[Excluded, ...]) -> Manifest:
    """A manifest with a template hash and a hostile folder name."""
    return Manifest(
        run=run,
        step=step,
        checkpoint=f"runs/{run}/checkpoint-{step}|`x`",
        weights_hash=f"{step:064x}",
        probe_set_hash="ab" * 32,
        tokenizer_hash="cd" * 32,
        template_hash=None if step == 0 else "ef" * 32,
        span="trl",
        backend="hf",
        tier="native",
        dtype="float32",
        vocab_size=49152,
        versions={"torch": "2.9.0", "transformers": "4.57.1"},
        n_probes=104,
        n_responses=1240,
        n_tokens=71234,
        excluded=excluded,
        reference_step=0,
        stored_dtype="bfloat16",
        seconds=math.nan if step == 0 else 12.34,
        notes=("the chat template was not used",),
    )


def build(
    stage: str = "dpo",
    *,
    run: str | None = None,
    steps: tuple[int, ...] = (0, 100, 200, 300, 400),
    seed: int = 0,
) -> Comparison:
    """A whole comparison of one stage."""
    draws = Draws(stage, steps, seed)
    last = len(steps) - 1
    overall = pair(draws, 0, last)
    excluded = tuple(
        Excluded(probe_id, "rejected", "longer than the model's context")
        for probe_id in (*HOSTILE_IDS, *(f"probe-{i}" for i in range(6)))
    )
    excluded += (Excluded("probe-1", "initial", "empty | response"),)
    return Comparison(
        run=run or stage,
        steps=steps,
        kinds=KIND_NAMES,
        curves=curves(draws),
        pairs=tuple(pair(draws, i, i + 1) for i in range(last)),
        overall=overall,
        trajectories=(),
        richer=(),
        laws=(),
        cross=(),
        claims=(),
        verdicts=verdicts(overall),
        noise_floor=0.01,
        flow_floor=0.001,
        persistence_assessed=last >= 7,
        excluded=excluded,
        notes=("a note with <b>markup</b> and a | pipe",),
        manifests=tuple(manifest(run or stage, step, excluded) for step in steps),
    )


@pytest.fixture(scope="session")
def make_comparison() -> Factory:
    """The factory itself, for tests that vary it."""
    return build


@pytest.fixture(scope="session")
def comparison() -> Comparison:
    """A DPO stage, plainly named."""
    return build("dpo")


@pytest.fixture(scope="session")
def stages() -> tuple[Comparison, Comparison]:
    """SFT, then DPO under a hostile name."""
    sft = build("sft", steps=(0, 50, 100, 150, 200))
    return sft, build("dpo", run=HOSTILE_RUN)


@pytest.fixture(scope="session")
def hostile() -> tuple[str, ...]:
    """Probe ids that try to act on whoever shows them."""
    return HOSTILE_IDS


# ---------------------------------------------------------------- the page in a browser


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """The system's Chromium, driven."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        found = driver.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"]
        )
        yield found
        found.close()


@pytest.fixture(scope="session")
def dpo_run() -> ScoredRun:
    """A scored run with hostile prompts."""
    return scored_run()


@pytest.fixture(scope="session")
def first_order(
    dpo_run: ScoredRun, tmp_path_factory: pytest.TempPathFactory
) -> FirstOrder:
    """The same run with what predict, influence and risk say on a tiny model."""
    return first_order_of(dpo_run, tmp_path_factory.mktemp("first_order"))
