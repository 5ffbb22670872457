"""Does first order foretell what a step does to a real language model?

    python scripts/campaign_predict.py --model DIR [--json FILE] [--only NAME …]

Each case takes one optimizer step on four examples of a probe set's trained half and
predicts the change of every response of other probes, from the gradient alone; then
the step is really taken, at five sizes, and the responses are scored again. Printed for
each size: R² of the prediction as it stands (no line is fitted), its slope, how often
the sign is right, and the error. The whole must be the sum of its parts: each example's
share, the optimizer's history, weight decay.

Cases: ``sft`` and ``dpo`` with SGD in float32, ``adamw`` (DPO, a step after three real
ones, clipped and with weight decay) and ``double`` (the three in float64, where the
error must fall with the square of the size). Sizes are multiples of the step: 0.25 to
64.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from probe_files import first_words

from ldeval.bundled import bundled_probes
from ldeval.dynamics.causal_lm import CausalLM, open_causal_lm
from ldeval.dynamics.influence import cheaper, exact_influence
from ldeval.dynamics.optimizer_state import fresh_state
from ldeval.dynamics.predict import directional, measured_changes, prediction
from ldeval.dynamics.sequences import encode, scored
from ldeval.dynamics.training import Objective, objective, training_batch
from ldeval.dynamics.update import Step, plan_step, replay
from ldeval.probes import read_probes
from ldeval.records import Prediction, Probe, ProbeResponse

BATCH = 4
FACTORS = (0.25, 1.0, 4.0, 16.0, 64.0)
CASES = ("sft", "dpo", "double", "adamw")


def responses_of(
    lm: CausalLM, probes: list[Probe], count: int
) -> tuple[list[Any], list[ProbeResponse]]:
    """The probes with the fewest tokens, whole, up to ``count`` responses."""
    requests, _ = encode(lm, probes)
    size: dict[str, int] = {}
    for request in requests:
        size[request.probe_id] = size.get(request.probe_id, 0) + len(request.ids)
    requests = sorted(requests, key=lambda r: (size[r.probe_id], r.probe_id))[:count]
    splits = {p.probe_id: p.split for p in probes}
    before = scored(lm, requests)
    described = [
        ProbeResponse(r.probe_id, r.kind, splits[r.probe_id], r.n_tokens, float(s))
        for r, s in zip(requests, before, strict=True)
    ]
    return requests, described


def case(
    lm: CausalLM,
    probes: list[Probe],
    count: int,
    loss: str,
    *,
    lr: float,
    family: Any = "sgd",
    replayed: int = 0,
    max_norm: float | None = None,
    taken_apart: bool = False,
    **options: float,
) -> tuple[Prediction, dict[str, Any]]:
    """One case: predict, take the step at five sizes, measure."""
    started, computed = time.monotonic(), time.process_time()
    trained = [p for p in probes if p.trained and "rejected" in p.responses]
    others = [p for p in probes if not p.trained]
    wanted = objective(loss)
    step, notes = planned(
        lm, trained, wanted, family, lr, replayed, max_norm, **options
    )
    requests, described = responses_of(lm, others, count)
    if taken_apart:
        batch = training_batch(lm, trained[replayed * BATCH :][:BATCH], wanted)[0]
        plan = cheaper(lm, requests, batch, step)
        parts = exact_influence(
            lm, requests, batch, wanted.loss, step, plan, progress=True
        )
        columns = {
            "gradient": parts.influence.sum(axis=1),
            "history": parts.history,
            "decay": parts.decay,
        }
        notes |= {"gap": parts.gap, "route": plan.route, "held": plan.held}
    else:
        total = directional(lm, requests, step.total(), progress=True)
        columns = {"gradient": total}
    before = np.asarray([response.logprob for response in described])
    measured = measured_changes(lm, requests, step.total(), FACTORS, before)
    shown = prediction({}, described, columns, FACTORS, measured)
    notes["seconds"] = time.monotonic() - started
    notes["cpu_seconds"] = time.process_time() - computed
    notes["tokens"] = sum(r.n_tokens for r in requests)
    notes["share"] = {
        name: float(abs(column).sum() / sum(abs(c).sum() for c in columns.values()))
        for name, column in columns.items()
    }
    return shown, notes


def planned(
    lm: CausalLM,
    trained: list[Probe],
    wanted: Objective,
    family: Any,
    lr: float,
    replayed: int,
    max_norm: float | None,
    **options: float,
) -> tuple[Step, dict[str, Any]]:
    """The step on four examples, after ``replayed`` real ones on those before."""
    state = fresh_state(lm, family, lr, **options)
    batches = [
        training_batch(lm, trained[i * BATCH : (i + 1) * BATCH], wanted)[0]
        for i in range(replayed + 1)
    ]
    state = replay(lm, batches[:-1], wanted.loss, state, max_norm=max_norm)
    step = plan_step(lm, batches[-1], wanted.loss, state, max_norm=max_norm)
    return step, {"norm": step.norm, "clip": step.clip, "lr": lr}


def show(name: str, shown: Prediction, notes: dict[str, Any]) -> None:
    """Print a case's table."""
    print(f"\n{name}: {len(shown.responses)} responses, {notes}", flush=True)
    print("  size    R²         slope    sign    rms error   rms change")
    for row in shown.agreements:
        if row.kind is None:
            print(
                f"  {row.factor:<6g}  {row.r2:<9.5f}  {row.slope:<7.4f}  "
                f"{row.sign:<6.3f}  {row.rms_error:<10.3g}  {row.rms_measured:.3g}"
            )
    print(f"  log-log slope of the error: {shown.error_slope:.3f}")
    print(
        "  by kind, at size 1: "
        + ", ".join(
            f"{a.kind} {a.r2:.4f}" for a in shown.agreements if a.kind and a.factor == 1
        ),
        flush=True,
    )


def main() -> None:
    """Run the cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--probes", type=Path, default=bundled_probes())
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--responses", type=int, default=204)
    parser.add_argument("--double-responses", type=int, default=40)
    parser.add_argument(
        "--words", type=int, help="cut every response to its first words (slow CPUs)"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    probes = [first_words(p, options.words) for p in read_probes(options.probes)]
    found: dict[str, Any] = {}

    def note(name: str, result: tuple[Prediction, dict[str, Any]]) -> None:
        show(name, *result)
        rows = [asdict(row) for row in result[0].agreements]
        found[name] = {**result[1], "agreements": rows}
        found[name]["error_slope"] = result[0].error_slope
        if options.json is not None:
            options.json.write_text(json.dumps(found, indent=1), "utf-8")

    count = options.responses
    if "sft" in options.only:
        lm = open_causal_lm(options.model)
        note("SGD, SFT, float32", case(lm, probes, count, "sft", lr=1e-4))
    if "dpo" in options.only:
        lm = open_causal_lm(options.model)
        note("SGD, DPO, float32", case(lm, probes, count, "dpo", lr=1e-4))
    if "adamw" in options.only:
        lm = open_causal_lm(options.model)
        settings = {"family": "adamw", "replayed": 3, "max_norm": 1.0}
        decay = {"weight_decay": 0.1, "taken_apart": True}
        result = case(lm, probes, count, "dpo", lr=1e-6, **settings, **decay)
        note("AdamW, DPO, float32, step 4", result)
    if "double" in options.only:
        few = options.double_responses
        for loss, lr in (("sft", 1e-5), ("dpo", 1e-5)):
            lm = open_causal_lm(options.model, dtype="float64")
            note(f"SGD, {loss}, float64", case(lm, probes, few, loss, lr=lr))
        lm = open_causal_lm(options.model, dtype="float64")
        settings = {"family": "adamw", "replayed": 3, "max_norm": 1.0}
        result = case(lm, probes, few, "dpo", lr=1e-7, **settings, weight_decay=0.1)
        note("AdamW, dpo, float64, step 4", result)


if __name__ == "__main__":
    main()
