"""A step taken apart by training example: the parts are right and sum to the whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from ldeval.dynamics.causal_lm import CausalLM
from ldeval.dynamics.held import inner
from ldeval.dynamics.influence import Parts, Plan, cheaper, exact_influence
from ldeval.dynamics.journal import Journal
from ldeval.dynamics.kernel import kernel_norms
from ldeval.dynamics.optimizer_state import OptimizerState, fresh_state
from ldeval.dynamics.predict import directional, measured_changes
from ldeval.dynamics.projection import projected_influence
from ldeval.dynamics.sequences import log_probs, logits, scored, sequences
from ldeval.dynamics.training import (
    Objective,
    TrainingExample,
    objective,
    training_batch,
)
from ldeval.dynamics.update import plan_step, replay
from ldeval.errors import StoreError, TheoryError
from tests.dynamics.tiny_lm import probe_requests, some_probes, tiny_lm
from tests.tiny import tiny_model, tiny_tokenizer

LOSSES = ("sft", "dpo", "cdpo", "ipo", "slic", "simpo", "sppo", "kto", "orpo", "npo")
KINDS = ("chosen", "rejected", "irrelevant_test")


class Case:
    """A batch, a step on it and the responses that it moves."""

    def __init__(
        self,
        lm: CausalLM,
        *,
        loss: str = "dpo",
        family: Any = "adamw",
        replayed: int = 1,
        examples: int = 4,
        max_norm: float | None = 0.05,
    ) -> None:
        wanted = objective(loss)
        self.lm, self.loss = lm, wanted.loss
        earlier = training_batch(lm, some_probes(2, skip=10), wanted)[0]
        decay = 0.1 if family == "adamw" else 0.0
        state = fresh_state(lm, family, 1e-3, weight_decay=decay)
        state = replay(lm, [earlier] * replayed, wanted.loss, state, max_norm=max_norm)
        self.batch = training_batch(lm, some_probes(examples), wanted)[0]
        self.step = plan_step(lm, self.batch, wanted.loss, state, max_norm=max_norm)
        self.requests = probe_requests(lm, 2, KINDS)

    def parts(self, plan: Plan, journal: Journal | None = None) -> Parts:
        """The table by a plan."""
        return exact_influence(
            self.lm,
            self.requests,
            self.batch,
            self.loss,
            self.step,
            plan,
            journal=journal,
        )

    def plan(self, route: Any, held: int = 100) -> Plan:
        """A plan of our own choosing."""
        return Plan(route, held, 0, 0)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("family", ["sgd", "rmsprop", "adamw"])
def test_the_parts_sum_to_the_whole_step(architecture: str, family: str) -> None:
    case = Case(tiny_lm(architecture), family=family)
    parts = case.parts(case.plan("responses"))
    assert parts.gap < 1e-9
    assert case.step.clip < 1
    assert (np.abs(parts.history).max() > 0) == (family == "adamw")


def test_a_padding_token_that_ends_every_turn_counts_like_any_other() -> None:
    """torch leaves it out of the embedding's gradient, as a real step does; but a tied
    output layer moves it all the same, and every response with it."""
    lm = tiny_lm("llama_tied")
    (embedding,) = (m for m in lm.model.modules() if isinstance(m, torch.nn.Embedding))
    requests = probe_requests(lm, 2, KINDS)
    padding = min(set.intersection(*(set(r.ids[: r.stop - 1]) for r in requests)))
    embedding.padding_idx = padding
    case = Case(lm, family="sgd", max_norm=None)
    assert case.parts(case.plan("responses")).gap < 1e-9
    assert embedding.padding_idx == padding
    step = case.step.total()
    before = scored(lm, case.requests).numpy()
    up, down = measured_changes(lm, case.requests, step, (1e-3, -1e-3), before)
    parts = case.parts(case.plan("examples"))
    assert np.allclose((up - down) / 2e-3, parts.influence.sum(1), rtol=1e-4)


@pytest.mark.parametrize("held", [1, 2, 100])
def test_both_routes_and_every_memory_budget_give_one_table(held: int) -> None:
    case = Case(tiny_lm())
    by_examples = case.parts(case.plan("examples"))
    by_responses = case.parts(case.plan("responses", held))
    for name in ("influence", "history", "decay", "total"):
        one, other = getattr(by_examples, name), getattr(by_responses, name)
        assert np.allclose(one, other, rtol=1e-8, atol=1e-14), name


def test_a_naive_double_loop_over_autograd_gives_the_same_table() -> None:
    case = Case(tiny_lm(), family="sgd")
    parameters = list(case.lm.trainable.values())

    def naive(request: Any) -> list[torch.Tensor]:
        (one,) = sequences(case.lm, [request])
        return list(torch.autograd.grad(log_probs(case.lm, one).sum(), parameters))

    table = case.parts(case.plan("responses")).influence
    for i, example in enumerate(case.batch):
        chosen, rejected = (naive(request) for request in example.requests)
        # at the reference σ(0) = ½, so that both pulls are β/2
        pull = 0.1 / 2
        for r, request in enumerate(case.requests):
            moved = naive(request)
            product = sum(
                float((g * (up - down)).sum())
                for g, up, down in zip(moved, chosen, rejected, strict=True)
            )
            expected = 1e-3 * case.step.clip * pull * product / len(case.batch)
            assert table[r, i] == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_taken_apart_and_foretells_its_own_step(loss: str) -> None:
    case = Case(tiny_lm(), loss=loss, family="sgd", replayed=0, max_norm=1e-3)
    parts = case.parts(case.plan("responses"))
    assert parts.gap < 1e-8
    before = scored(case.lm, case.requests).numpy()
    measured = measured_changes(
        case.lm, case.requests, case.step.total(), [1.0], before
    )[0]
    assert np.allclose(measured, parts.total, rtol=0.02, atol=1e-9)


def test_a_model_that_takes_no_packs_is_taken_apart_too() -> None:
    case = Case(tiny_lm("mistral_window"), examples=2)
    parts = case.parts(case.plan("responses"))
    assert parts.gap < 1e-9
    assert len(list(sequences(case.lm, case.batch[0].requests))) == 2


def test_only_what_is_trained_alone_would_move_alone() -> None:
    """With SGD the share of an example is the step on a batch of it alone."""
    lm = tiny_lm()
    case = Case(lm, family="sgd", replayed=0, max_norm=None)
    table = case.parts(case.plan("responses")).influence
    state = fresh_state(lm, "sgd", 1e-3)
    alone = plan_step(lm, [case.batch[1]], case.loss, state)
    found = directional(lm, case.requests, alone.total())
    assert np.allclose(table[:, 1], found, rtol=1e-9)


def test_an_adapter_is_taken_apart_on_its_own_parameters() -> None:
    model = tiny_model("llama", len(tiny_tokenizer()))
    torch.manual_seed(0)
    adapted = get_peft_model(
        model,
        LoraConfig(
            r=2,
            target_modules=["q_proj", "v_proj"],
            init_lora_weights=False,
            lora_dropout=0.5,
        ),
    )
    lm = tiny_lm(model=adapted)
    assert all("lora" in name for name in lm.trainable)
    case = Case(lm)
    parts = case.parts(case.plan("responses"))
    assert parts.gap < 1e-9
    before = scored(lm, case.requests).numpy()
    measured = measured_changes(lm, case.requests, case.step.total(), [1e-3], before)
    assert np.allclose(measured[0], 1e-3 * parts.total, rtol=0.02, atol=1e-9)


def test_subsets_of_parameters_add_up_to_the_whole_table() -> None:
    tables = []
    for pattern in (None, "mlp", "^(?!.*mlp)"):
        # the step before is taken on every parameter, whatever is looked at
        case = Case(tiny_lm().narrowed(pattern))
        tables.append(case.parts(case.plan("responses")).influence)
    assert np.allclose(tables[0], tables[1] + tables[2], rtol=1e-8, atol=1e-14)


# ------------------------------------------------------------------- budget and routes


def test_a_larger_budget_never_costs_more_tokens_and_holds_no_more_than_it_may() -> (
    None
):
    case = Case(tiny_lm(), examples=6)
    bytes_each = case.lm.size * 8
    costs = []
    for count in (1, 2, 4, 8):
        plan = cheaper(
            case.lm, case.requests, case.batch, case.step, budget=count * bytes_each
        )
        assert plan.held <= max(1, count)
        costs.append(min(plan.tokens_by_responses, plan.tokens_by_examples))
    assert costs == sorted(costs, reverse=True)


def test_one_prompt_and_little_memory_take_the_route_of_examples() -> None:
    lm = tiny_lm()
    case = Case(lm, examples=2)
    case.requests = probe_requests(lm, 1)
    plan = cheaper(lm, case.requests, case.batch, case.step, budget=1)
    assert plan.tokens_by_examples < plan.tokens_by_responses
    assert plan.route == "examples"


def test_blocks_of_float32_products_keep_the_digits_of_a_long_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn((2, 3_000_000), generator=generator)
    column = torch.randn(3_000_000, generator=generator)
    exact = rows.double() @ column.double()
    assert torch.allclose(inner(rows, column), exact, rtol=0, atol=1e-2)


# ------------------------------------------------------------------------- resumption


class Killed(Exception):
    """What stops a computation in these tests."""


class KilledAfter(Journal):
    """A journal whose process dies after some blocks, in the middle of a line."""

    left = 5

    def put(self, name: str, values: Any) -> None:
        super().put(name, values)
        self.left -= 1
        if not self.left:
            self._handle.write(b'{"block": "row 99", "val')
            raise Killed


@pytest.mark.parametrize("route", ["responses", "examples"])
def test_a_killed_table_goes_on_where_it_stopped(tmp_path: Path, route: str) -> None:
    case = Case(tiny_lm())
    whole = case.parts(case.plan(route, 2))
    path = tmp_path / "rows.jsonl"
    with pytest.raises(Killed), KilledAfter(path, {"seed": 1}) as journal:
        case.parts(case.plan(route, 2), journal)
    with Journal(path, {"seed": 1}) as journal:
        assert len(journal) == 5
        resumed = case.parts(case.plan(route, 2), journal)
    assert np.array_equal(resumed.influence, whole.influence)
    with Journal(path, {"seed": 1}) as journal:
        # nothing is left to compute: a broken model does not show
        with torch.no_grad():
            next(iter(case.lm.trainable.values()))[:] = float("nan")
        again = case.parts(case.plan(route, 2), journal)
    assert np.array_equal(again.influence, whole.influence)


def test_a_journal_of_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with Journal(path, {"weights": "aa", "loss": "dpo"}) as journal:
        journal.put("a", [1.0])
    with (
        pytest.raises(StoreError, match="loss = dpo, not loss = sft"),
        Journal(path, {"weights": "aa", "loss": "sft"}),
    ):
        pass


def test_a_damaged_journal_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"settings": {}}\nnot json\n')
    with pytest.raises(StoreError, match=r"rows\.jsonl:2"), Journal(path, {}):
        pass


# ------------------------------------------------------------------------- projection


def test_a_projection_is_unbiased_and_its_error_is_what_it_says() -> None:
    case = Case(tiny_lm(), family="adamw")
    exact = case.parts(case.plan("responses")).influence
    estimates = [
        projected_influence(
            case.lm,
            case.requests,
            case.batch,
            case.loss,
            case.step,
            width=256,
            checked=4,
            seed=seed,
        )
        for seed in range(6)
    ]
    measured = np.mean([e.error["rms_error"] for e in estimates])
    expected = np.mean([e.error["expected"] for e in estimates])
    assert measured == pytest.approx(expected, rel=0.3)
    mean = np.mean([e.influence for e in estimates], axis=0)
    off = float(np.sqrt(np.mean((mean - exact) ** 2)))
    assert off < 0.7 * measured


def test_a_wider_projection_is_nearer() -> None:
    case = Case(tiny_lm(), family="sgd")
    errors = [
        np.mean(
            [
                projected_influence(
                    case.lm,
                    case.requests,
                    case.batch,
                    case.loss,
                    case.step,
                    width=width,
                    seed=seed,
                ).error["rms_error"]
                for seed in range(2)
            ]
        )
        for width in (64, 4096)
    ]
    assert errors[1] < errors[0] / 3


# ------------------------------------------------------------------------------ kernel


def test_the_kernels_norm_is_estimated_without_writing_it_down() -> None:
    lm = tiny_lm().narrowed("layers.1.mlp")
    requests = probe_requests(lm, 1, ("chosen", "permuted"))
    trained = replace(requests[0], stop=requests[0].start + 2)
    parameters = {n: lm.trainable[n].detach() for n in lm.selected}

    def jacobian(request: Any) -> torch.Tensor:
        (one,) = sequences(lm, [request])
        found = torch.func.jacrev(lambda q: logits(lm, one, q))(parameters)
        return torch.cat([j.flatten(2).flatten(0, 1) for j in found.values()], dim=1)

    short = [replace(r, stop=r.start + 2) for r in requests]
    own = jacobian(trained).detach()
    exact = [float((jacobian(r).detach() @ own.T).norm()) for r in short]
    estimate = kernel_norms(lm, short, trained, draws=24)
    assert np.allclose(estimate.norm, exact, rtol=0.4)
    assert np.all(np.abs(estimate.norm - exact) < 4 * estimate.se)


def test_no_draws_are_refused() -> None:
    lm = tiny_lm()
    requests = probe_requests(lm, 1, ("chosen",))
    with pytest.raises(TheoryError, match="at least one"):
        kernel_norms(lm, requests, requests[0], draws=0)


# ------------------------------------------------------------------------ the batch


def test_tokens_weigh_an_sft_batch_and_examples_a_preference_batch() -> None:
    lm = tiny_lm()
    sft, _ = training_batch(lm, some_probes(3), objective("sft"))
    total = sum(r.n_tokens for e in sft for r in e.requests)
    assert all(example.weight == pytest.approx(1 / total) for example in sft)
    dpo, _ = training_batch(lm, some_probes(3), objective("dpo"))
    assert all(example.weight == pytest.approx(1 / 3) for example in dpo)


def test_examples_that_cannot_be_trained_on_are_named_and_weigh_nothing() -> None:
    lm = tiny_lm()
    probes = some_probes(3)
    odd = replace(probes[1], responses={"chosen": probes[1].responses["chosen"]})
    batch, left_out = training_batch(lm, [probes[0], odd], objective("dpo"))
    assert [e.example_id for e in batch] == [probes[0].probe_id]
    assert batch[0].weight == 1.0
    assert [(e.probe_id, e.reason) for e in left_out] == [
        (odd.probe_id, "no rejected response")
    ]
    with pytest.raises(TheoryError, match="no training example is left"):
        training_batch(lm, [odd], objective("dpo"))


def test_a_reference_model_of_another_checkpoint_changes_the_pulls() -> None:
    lm, other = tiny_lm(), tiny_lm(seed=1)
    wanted: Objective = objective("dpo", beta=0.5)
    own = training_batch(lm, some_probes(1), wanted)[0]
    apart = training_batch(lm, some_probes(1), wanted, reference=other)[0]

    def pull(batch: list[TrainingExample]) -> float:
        state = OptimizerState("sgd", fresh_state(lm, "sgd", 1.0).settings)
        return plan_step(lm, batch, wanted.loss, state).losses[0].pulls["chosen"]

    assert pull(own) == pytest.approx(0.25)
    requests = own[0].requests
    now, then = scored(lm, requests), scored(other, requests)
    margin = float((now - then)[0] - (now - then)[1])
    assert pull(apart) == pytest.approx(0.5 / (1 + np.exp(0.5 * margin)))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [("dpoo", {}, "not known"), ("dpo", {"gamma": 1.0}, "no such setting")],
)
def test_an_unknown_loss_or_setting_is_refused(
    name: str, settings: dict[str, float], message: str
) -> None:
    with pytest.raises(TheoryError, match=message):
        objective(name, **settings)
