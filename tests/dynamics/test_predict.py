"""Prediction by one forward-mode pass, against what a real step of torch does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldeval.dynamics.causal_lm import CausalLM
from ldeval.dynamics.held import step_parts
from ldeval.dynamics.optimizer_state import fresh_state
from ldeval.dynamics.predict import (
    agreement,
    between,
    directional,
    error_slope,
    measured_changes,
    prediction,
)
from ldeval.dynamics.sequences import encode, scored, sequences
from ldeval.dynamics.training import objective, response_gradient, training_batch
from ldeval.dynamics.update import Step, moved, plan_step, replay, torch_optimizer
from ldeval.errors import MismatchError, TheoryError
from ldeval.probes import import_reference
from ldeval.records import ProbeResponse
from tests.dynamics.tiny_lm import probe_requests, some_probes, tiny_lm
from tests.tiny import PACKED

OPTIMIZERS = [
    ("sgd", {}),
    ("sgd", {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    ("rmsprop", {"weight_decay": 0.1}),
    ("adam", {"weight_decay": 0.1}),
    ("adamw", {"weight_decay": 0.1}),
]


def planned(
    lm: CausalLM,
    loss: str = "dpo",
    family: Any = "sgd",
    *,
    lr: float = 1e-2,
    replayed: int = 0,
    max_norm: float | None = None,
    **options: Any,
) -> Step:
    """The step after ``replayed`` real ones, on four examples."""
    wanted = objective(loss)
    batches = [
        training_batch(lm, some_probes(4, skip=4 * i), wanted)[0]
        for i in range(replayed + 1)
    ]
    state = fresh_state(lm, family, lr, **options)
    if replayed:
        earlier = batches[:replayed]
        state = replay(lm, earlier, wanted.loss, state, max_norm=max_norm)
    return plan_step(lm, batches[-1], wanted.loss, state, max_norm=max_norm)


# --------------------------------------------------------------------------- sequences


@pytest.mark.parametrize("architecture", PACKED)
def test_a_pack_gives_each_response_what_it_gets_alone(architecture: str) -> None:
    lm = tiny_lm(architecture)
    requests = probe_requests(lm, 2)
    together = scored(lm, requests)
    alone = torch.cat([scored(lm, [request]) for request in requests])
    assert len(list(sequences(lm, requests))) < len(requests)
    assert torch.allclose(together, alone, rtol=0, atol=1e-9)


def test_a_model_that_takes_no_packs_goes_one_response_at_a_time() -> None:
    lm = tiny_lm("mistral_window")
    requests = probe_requests(lm, 1)
    assert len(list(sequences(lm, requests))) == len(requests)


def test_real_responses_go_through_and_those_that_do_not_fit_are_listed(
    hh_probes: Path,
) -> None:
    probes, _ = import_reference(hh_probes)
    lm = tiny_lm("llama_tied")
    some = probes.probes[:12]
    requests, excluded = encode(lm, some)
    assert len(requests) + len(excluded) == sum(len(p.responses) for p in some)
    assert requests
    assert excluded
    assert all("the model takes 256" in item.reason for item in excluded)
    few = requests[:12]
    moved_by = directional(lm, few, planned(lm, lr=1e-5).total())
    before = scored(lm, few).numpy()
    change = measured_changes(lm, few, planned(lm, lr=1e-5).total(), [1.0], before)
    assert np.allclose(change[0], moved_by, rtol=0.05, atol=1e-9)


# -------------------------------------------------------------------------- first order


@pytest.mark.parametrize("architecture", ["llama", "llama_tied", "gpt2"])
def test_one_forward_mode_pass_is_the_inner_product_with_each_gradient(
    architecture: str,
) -> None:
    lm = tiny_lm(architecture)
    requests = probe_requests(lm, 1)
    direction = planned(lm).total()
    for request, found in zip(
        requests, directional(lm, requests, direction), strict=True
    ):
        parts: list[float] = []

        def add(name: str, gradient: Any, parts: list[float] = parts) -> None:
            parts.append(float((gradient * direction[name]).sum()))

        response_gradient(lm, request, add)
        assert found == pytest.approx(sum(parts), rel=1e-9)


@pytest.mark.parametrize("loss", ["sft", "dpo"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_what_first_order_misses_is_of_second_order(
    architecture: str, loss: str
) -> None:
    lm = tiny_lm(architecture)
    requests = probe_requests(lm, 3)
    step = planned(lm, loss, lr=1e-4)
    before = scored(lm, requests).numpy()
    factors = (1.0, 2.0, 4.0, 8.0)
    measured = measured_changes(lm, requests, step.total(), factors, before)
    shown = prediction(
        {}, described(lm), step_parts(lm, requests, step), factors, measured
    )
    assert shown.error_slope == pytest.approx(2.0, abs=0.1)
    assert shown.agreements[0].r2 > 0.999


def described(lm: CausalLM) -> list[ProbeResponse]:
    return [
        ProbeResponse(r.probe_id, r.kind, "heldout", r.n_tokens, -1.0)
        for r in probe_requests(lm, 3)
    ]


def test_two_checkpoints_are_predicted_along_their_difference() -> None:
    lm, other = tiny_lm(), tiny_lm()
    step = planned(other, lr=1e-4)
    with moved(other, step.total()):
        direction = between(lm, other)
        after = scored(other, probe_requests(lm)).numpy()
    requests = probe_requests(lm)
    change = after - scored(lm, requests).numpy()
    assert np.allclose(directional(lm, requests, direction), change, rtol=0.02)


def test_checkpoints_of_two_architectures_are_refused() -> None:
    with pytest.raises(MismatchError, match="different parameters"):
        between(tiny_lm("llama"), tiny_lm("gpt2"))


# ---------------------------------------------------------------------------- the step


@pytest.mark.parametrize(("family", "options"), OPTIMIZERS)
@pytest.mark.parametrize("replayed", [0, 2])
@pytest.mark.parametrize("max_norm", [None, 0.05])
def test_the_planned_step_is_the_one_that_torch_takes(
    family: str, options: dict[str, float], replayed: int, max_norm: float | None
) -> None:
    lm = tiny_lm()
    wanted = objective("dpo")
    state = fresh_state(lm, family, 1e-2, **options)  # type: ignore[arg-type]
    batches = [
        training_batch(lm, some_probes(2, skip=2 * i), wanted)[0]
        for i in range(replayed + 1)
    ]
    earlier = batches[:replayed]
    state = replay(lm, earlier, wanted.loss, state, max_norm=max_norm)
    step = plan_step(lm, batches[-1], wanted.loss, state, max_norm=max_norm)
    assert (step.clip < 1) == (max_norm is not None)
    before = {n: p.detach().clone() for n, p in lm.trainable.items()}
    replay(lm, batches[-1:], wanted.loss, state, max_norm=max_norm)
    for name, direction in step.total().items():
        real = lm.trainable[name].detach() - before[name]
        assert torch.allclose(direction, real, rtol=1e-9, atol=1e-14), name


def test_history_and_decay_are_parts_of_their_own() -> None:
    lm = tiny_lm()
    step = planned(lm, family="adamw", replayed=2, weight_decay=0.1)
    parts = step_parts(lm, probe_requests(lm), step)
    assert set(parts) == {"gradient", "history", "decay"}
    total = directional(lm, probe_requests(lm), step.total())
    assert np.allclose(sum(parts.values()), total, rtol=1e-9)
    assert all(np.abs(part).max() > 0 for part in parts.values())


def test_a_moved_model_comes_back_bit_by_bit() -> None:
    lm = tiny_lm(double=False)
    before = {n: p.detach().clone() for n, p in lm.trainable.items()}
    with moved(lm, planned(lm, lr=1.0).total(), 3.3):
        pass
    assert all(torch.equal(before[n], p.detach()) for n, p in lm.trainable.items())


def test_a_broken_gradient_is_named() -> None:
    lm = tiny_lm()
    with torch.no_grad():
        next(iter(lm.trainable.values()))[:] = float("nan")
    with pytest.raises(TheoryError, match="gradient has norm nan"):
        planned(lm)


def test_the_state_goes_through_torchs_optimizer_unchanged() -> None:
    lm = tiny_lm()
    state = fresh_state(lm, "adamw", 1e-3, weight_decay=0.1)
    batch, _ = training_batch(lm, some_probes(2), objective("sft"))
    after = replay(lm, [batch], objective("sft").loss, state)
    optimizer = torch_optimizer(lm, after)
    for name, parameter in lm.trainable.items():
        held = optimizer.state[parameter]
        assert torch.equal(held["exp_avg"], after.moments["exp_avg"][name])
        assert float(held["step"]) == 1


# ------------------------------------------------------------------------- subsets


def test_a_subset_is_a_part_of_the_step_clipped_as_a_whole() -> None:
    lm = tiny_lm()
    whole = planned(lm, max_norm=0.05)
    some = lm.narrowed(r"mlp")
    part = planned(some, max_norm=0.05)
    assert part.clip == pytest.approx(whole.clip)
    assert set(part.total()) == {n for n in lm.trainable if "mlp" in n}
    for name, tensor in part.total().items():
        assert torch.allclose(tensor, whole.total()[name])


def test_subsets_that_cover_the_model_add_up() -> None:
    lm = tiny_lm()
    requests = probe_requests(lm)
    whole = directional(lm, requests, planned(lm).total())
    parts = [
        directional(lm, requests, planned(lm.narrowed(pattern)).total())
        for pattern in (r"mlp", r"^(?!.*mlp)")
    ]
    assert np.allclose(parts[0] + parts[1], whole, rtol=1e-9)


@pytest.mark.parametrize("pattern", ["nothing_like_it", "("])
def test_a_pattern_that_selects_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(TheoryError, match="--parameters"):
        tiny_lm().narrowed(pattern)


# -------------------------------------------------------------------------- statistics


def test_a_perfect_prediction_agrees_and_a_doubled_one_has_slope_a_half() -> None:
    measured = np.asarray([1.0, -2.0, 0.5, 3.0])
    perfect = agreement(measured, measured, 1.0, None)
    assert (perfect.r2, perfect.slope, perfect.sign) == (1.0, 1.0, 1.0)
    doubled = agreement(2 * measured, measured, 1.0, None)
    assert doubled.slope == pytest.approx(0.5)
    assert doubled.r2 < 0


def test_an_error_that_grows_with_the_square_has_slope_two() -> None:
    sizes = (0.5, 1.0, 2.0, 4.0)
    assert error_slope(sizes, [3 * s**2 for s in sizes]) == pytest.approx(2.0)
    assert np.isnan(error_slope((1.0,), [1.0]))
