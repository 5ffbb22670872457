"""The demo model itself: first order foretells a step, and its parts are the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ldeval.dynamics.causal_lm import open_causal_lm
from ldeval.dynamics.influence import Plan, exact_influence
from ldeval.dynamics.optimizer_state import fresh_state
from ldeval.dynamics.predict import agreement, measured_changes
from ldeval.dynamics.sequences import encode, scored
from ldeval.dynamics.training import objective, training_batch
from ldeval.dynamics.update import plan_step
from tests.dynamics.tiny_lm import shortened, some_probes


@pytest.mark.model
def test_a_step_on_the_demo_model_is_foretold_and_is_the_sum_of_its_parts(
    demo_model: Path,
) -> None:
    lm = open_causal_lm(str(demo_model))
    wanted = objective("dpo")
    batch, _ = training_batch(lm, [shortened(p, 6) for p in some_probes(2)], wanted)
    state = fresh_state(lm, "sgd", 1e-3)
    step = plan_step(lm, batch, wanted.loss, state, max_norm=1.0)
    probes = [shortened(p, 6) for p in some_probes(1, skip=30)]
    requests, _ = encode(lm, probes)
    assert len(requests) == 12
    plan = Plan("responses", 2, 0, 0)
    parts = exact_influence(lm, requests, batch, wanted.loss, step, plan)
    assert parts.gap < 1e-3
    before = scored(lm, requests).numpy()
    measured = measured_changes(lm, requests, step.total(), [1.0], before)[0]
    found = agreement(parts.total, measured, 1.0, None)
    assert found.r2 > 0.98
    assert np.all(np.abs(measured) > 0)
