"""Whole computations, as the commands ask for them: open, plan, compute, describe.

Apart from the pieces, each of which works on a model that is at hand.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ldeval.dynamics.causal_lm import CausalLM, open_causal_lm
from ldeval.dynamics.data import TrainingData, read_training
from ldeval.dynamics.held import step_parts
from ldeval.dynamics.influence import BUDGET, Parts, cheaper, exact_influence
from ldeval.dynamics.journal import Journal
from ldeval.dynamics.kernel import kernel_norms
from ldeval.dynamics.optimizer_state import (
    Family,
    OptimizerState,
    fresh_state,
    read_state,
)
from ldeval.dynamics.predict import (
    between,
    directional,
    measured_changes,
    prediction,
)
from ldeval.dynamics.projection import projected_influence
from ldeval.dynamics.risk import pair_risks, ranked
from ldeval.dynamics.sequences import encode, scored
from ldeval.dynamics.training import Objective, TrainingExample, training_batch
from ldeval.dynamics.update import Direction, Step, plan_step, replay
from ldeval.errors import TheoryError
from ldeval.probes import ProbeSet
from ldeval.records import (
    Excluded,
    FloatArray,
    InfluenceTable,
    Prediction,
    Probe,
    ProbeResponse,
    RiskReport,
)
from ldeval.scoring.batch import ScoreRequest

_TRAINED = ("chosen", "rejected")
_BEGINNING = 600
"""Characters of an example's texts that are kept beside its influence."""


@dataclass(frozen=True)
class Opening:
    """A model, and what counts of it."""

    model: str
    base: str | None = None
    dtype: str = "float32"
    parameters: str | None = None
    apply_chat_template: bool = False

    def open(self) -> CausalLM:
        """Load it."""
        return open_causal_lm(
            self.model, base=self.base, dtype=self.dtype, parameters=self.parameters
        )


@dataclass(frozen=True)
class StepSettings:
    """The optimizer step in question."""

    data: str
    """Training examples."""
    objective: Objective
    batch: int = 4
    """Examples of the step."""
    first: int = 0
    """Examples of the data that come before it."""
    replayed: int = 0
    """Steps that are really taken first, on the batches after ``first``."""
    optimizer: Family = "sgd"
    lr: float | None = None
    weight_decay: float = 0.0
    state: str | None = None
    """An ``optimizer.pt``, or the checkpoint that holds it."""
    max_norm: float | None = 1.0
    reference: str | None = None
    """Folder of the loss's reference model; None: the model before this step."""
    options: Mapping[str, float] = field(default_factory=dict)
    """More of the optimizer's settings, by torch's names as in ``GroupSettings``."""

    def __post_init__(self) -> None:
        """Raises:
        TheoryError: a number is not one that a step can have.
        """
        least = {"batch": 1, "first": 0, "replayed": 0}
        for name, smallest in least.items():
            if (value := getattr(self, name)) < smallest:
                raise TheoryError(f"{name} {value}: give at least {smallest}.")
        if self.lr is not None and not 0 <= self.lr < math.inf:
            raise TheoryError(f"learning rate {self.lr}: give a number of 0 or more.")


@dataclass(frozen=True)
class Planned:
    """A step on a model that is where the step begins."""

    lm: CausalLM
    batch: list[TrainingExample]
    step: Step
    left_out: list[Excluded]
    texts: Mapping[str, Mapping[str, str]]
    """Beginnings of the batch's texts, by example id."""


def plan(lm: CausalLM, opening: Opening, wanted: StepSettings) -> Planned:
    """Read the data, bring the optimizer to the step, and plan it.

    Raises:
        TheoryError: when a setting is missing or the data are too few.
    """
    data = read_training(
        wanted.data, limit=wanted.first + wanted.batch * (wanted.replayed + 1)
    )
    examples = data.examples[wanted.first :]
    if len(examples) <= wanted.batch * wanted.replayed:
        raise TheoryError(
            f"{wanted.data}: {len(data.examples)} examples are too few for "
            f"{wanted.replayed} steps of {wanted.batch} before the one in question, "
            f"after the first {wanted.first}."
        )
    reference = _reference(opening, wanted)
    batches, left_out = [], []
    for start in range(0, len(examples), wanted.batch):
        batch, excluded = training_batch(
            lm,
            examples[start : start + wanted.batch],
            wanted.objective,
            reference=reference,
            apply_chat_template=opening.apply_chat_template,
        )
        batches.append(batch)
        left_out += excluded
    del reference
    loss = wanted.objective.loss
    state = _state(lm, wanted)
    if wanted.replayed:
        state = replay(lm, batches[:-1], loss, state, max_norm=wanted.max_norm)
    step = plan_step(lm, batches[-1], loss, state, max_norm=wanted.max_norm)
    named = {example.example_id for example in batches[-1]}
    texts = {p.probe_id: _beginnings(p) for p in examples if p.probe_id in named}
    return Planned(lm, batches[-1], step, left_out, texts)


def _beginnings(probe: Probe) -> dict[str, str]:
    """What an example asks and answers, as far as a reader needs to know it again."""
    prompt = probe.prompt
    asked = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
    answers = {kind: found.text for kind, found in probe.responses.items()}
    texts = {"prompt": asked, **{k: answers[k] for k in _TRAINED if k in answers}}
    return {name: text[:_BEGINNING] for name, text in texts.items()}


def _reference(opening: Opening, wanted: StepSettings) -> CausalLM | None:
    """The reference model; after real steps it is the one before them."""
    if wanted.objective.kinds() == ("chosen",):
        return None
    if wanted.reference is not None:
        return replace(opening, model=wanted.reference, parameters=None).open()
    return replace(opening, parameters=None).open() if wanted.replayed else None


def _state(lm: CausalLM, wanted: StepSettings) -> OptimizerState:
    if wanted.state is not None:
        state = read_state(wanted.state, lm)
        if wanted.lr is None:
            return state
        given = wanted.lr
        groups = {n: replace(g, lr=given) for n, g in state.settings.items()}
        return replace(state, settings=groups)
    if wanted.lr is None:
        raise TheoryError(
            "no learning rate: give --lr, or --optimizer-state of a checkpoint."
        )
    return fresh_state(
        lm,
        wanted.optimizer,
        wanted.lr,
        weight_decay=wanted.weight_decay,
        **wanted.options,
    )


def responses(
    lm: CausalLM,
    probes: ProbeSet,
    opening: Opening,
    kinds: Sequence[str] | None,
) -> tuple[list[ScoreRequest], list[ProbeResponse], list[Excluded]]:
    """The responses in question, where they stand, and those that do not fit."""
    requests, excluded = encode(
        lm,
        probes.probes,
        kinds=kinds,
        apply_chat_template=opening.apply_chat_template,
    )
    if not requests:
        raise TheoryError("the probe set has no response of these kinds.")
    splits = {probe.probe_id: probe.split for probe in probes}
    described = [
        ProbeResponse(r.probe_id, r.kind, splits[r.probe_id], r.n_tokens, float(s))
        for r, s in zip(requests, scored(lm, requests), strict=True)
    ]
    return requests, described, excluded


# ------------------------------------------------------------------------- predictions


def run_prediction(
    opening: Opening,
    probes: ProbeSet,
    change: StepSettings | str,
    *,
    sizes: Sequence[float] = (1.0,),
    kinds: Sequence[str] | None = None,
    progress: bool = False,
) -> Prediction:
    """Predict and measure.

    Args:
        change: a step, or the folder of a later checkpoint.
        sizes: multiples of the change that are measured.

    Raises:
        TheoryError: a size is not above 0.
    """
    for size in sizes:
        if not 0 < size < math.inf:
            raise TheoryError(f"size {size} of the step: give a number above 0.")
    lm = opening.open()
    left_out: list[Excluded] = []
    direction: Direction
    if isinstance(change, str):
        direction = between(lm, replace(opening, model=change).open())
        requests, described, excluded = responses(lm, probes, opening, kinds)
        parts = {"change": directional(lm, requests, direction, progress=progress)}
        about: dict[str, Any] = {"to": change}
    else:
        planned = plan(lm, opening, change)
        left_out, direction = planned.left_out, planned.step.total()
        requests, described, excluded = responses(lm, probes, opening, kinds)
        parts = step_parts(lm, requests, planned.step, progress=progress)
        about = _about(change, planned)
    before = np.asarray([response.logprob for response in described])
    measured = measured_changes(lm, requests, direction, sizes, before)
    settings = {**_opened(opening, lm, probes), **about, **_listed(left_out, excluded)}
    return prediction(settings, described, parts, sizes, measured)


def _opened(opening: Opening, lm: CausalLM, probes: ProbeSet) -> dict[str, Any]:
    return {
        **dataclasses.asdict(opening),
        "weights": lm.weights_hash(),
        "tokenizer": lm.codec.tokenizer_hash,
        "template": lm.codec.template_hash,
        "probes": probes.content_hash,
        "numbers": lm.size,
    }


def _about(wanted: StepSettings, planned: Planned) -> dict[str, Any]:
    loss = wanted.objective.loss
    return {
        "data": wanted.data,
        "examples": [example.example_id for example in planned.batch],
        "loss": {"name": type(loss).__name__, **dataclasses.asdict(loss)},  # type: ignore[call-overload]
        "reduction": wanted.objective.reduction,
        "optimizer": wanted.state or wanted.optimizer,
        "lr": wanted.lr,
        "weight_decay": wanted.weight_decay,
        "replayed": wanted.replayed,
        "max_norm": wanted.max_norm,
        "reference": wanted.reference,
        "options": dict(wanted.options),
        "gradient_norm": planned.step.norm,
        "clip": planned.step.clip,
    }


def _listed(
    left_out: Sequence[Excluded], excluded: Sequence[Excluded]
) -> dict[str, Any]:
    return {
        "examples_left_out": [dataclasses.asdict(item) for item in left_out],
        "responses_left_out": [dataclasses.asdict(item) for item in excluded],
    }


# --------------------------------------------------------------------------- influence


def run_influence(
    opening: Opening,
    probes: ProbeSet,
    wanted: StepSettings,
    *,
    rows: Path | None = None,
    kinds: Sequence[str] | None = None,
    budget: int = BUDGET,
    width: int | None = None,
    kernel_draws: int = 0,
    progress: bool = False,
) -> tuple[InfluenceTable, Journal]:
    """Take a step apart.

    Args:
        rows: file that keeps finished rows, so that the same call goes on with them.
        budget: bytes of gradients to hold.
        width: project gradients to so many numbers; None computes exactly.
        kernel_draws: random probes for ‖K‖_F; 0 leaves it out.

    Returns:
        The table, and the journal to delete once it is stored.
    """
    lm = opening.open()
    planned = plan(lm, opening, wanted)
    requests, described, excluded = responses(lm, probes, opening, kinds)
    settings = {
        **_opened(opening, lm, probes),
        **_about(wanted, planned),
        **_listed(planned.left_out, excluded),
        "kinds": None if kinds is None else list(kinds),
        "width": width,
    }
    batch, step, loss = planned.batch, planned.step, wanted.objective.loss
    route = cheaper(lm, requests, batch, step, budget=budget)
    # rows are of one division into columns; another memory budget begins anew
    keyed = {**settings, "route": route.route, "held": route.held}
    for name in ("gradient_norm", "clip"):
        keyed.pop(name)  # the same but for their last digits, which threads decide
    kernel = kernel_se = None
    with Journal(rows, keyed) as journal:
        error: Mapping[str, float] = {}
        if width is None:
            parts = exact_influence(
                lm,
                requests,
                batch,
                loss,
                step,
                route,
                journal=journal,
                progress=progress,
            )
        else:
            projected = projected_influence(
                lm,
                requests,
                batch,
                loss,
                step,
                width=width,
                journal=journal,
                progress=progress,
            )
            error = projected.error
            parts = Parts(
                projected.influence,
                directional(lm, requests, step.history),
                directional(lm, requests, step.decay),
                directional(lm, requests, step.total()),
            )
        if kernel_draws:
            kernel, kernel_se = _kernels(lm, requests, batch, kernel_draws, journal)
    table = InfluenceTable(
        settings={**settings, "route": route.route, "held": route.held},
        responses=tuple(described),
        examples=tuple(example.example_id for example in batch),
        influence=parts.influence,
        history=parts.history,
        decay=parts.decay,
        total=parts.total,
        gap=parts.gap,
        exact=width is None,
        projection=dict(error),
        kernel=kernel,
        kernel_se=kernel_se,
        texts=planned.texts,
    )
    return table, journal


def _kernels(
    lm: CausalLM,
    requests: Sequence[ScoreRequest],
    batch: Sequence[TrainingExample],
    draws: int,
    journal: Journal,
) -> tuple[FloatArray, FloatArray]:
    """‖K‖_F of every response with every example's first trained response."""
    norms, errors = [], []
    for number, example in enumerate(batch):
        name = f"kernel {number}, {draws} draws"
        done = journal.get(name)
        if done is None:
            found = kernel_norms(lm, requests, example.requests[0], draws=draws)
            done = [*found.norm.tolist(), *found.se.tolist()]
            journal.put(name, done)
        norms.append(done[: len(requests)])
        errors.append(done[len(requests) :])
    return np.asarray(norms).T, np.asarray(errors).T


# -------------------------------------------------------------------------------- risk


def run_risk(
    opening: Opening,
    source: str,
    wanted: Objective,
    *,
    by: str = "change",
    gradients: bool = True,
    limit: int | None = None,
    reference: str | None = None,
    progress: bool = False,
) -> tuple[RiskReport, TrainingData]:
    """Judge every pair of a data source."""
    data = read_training(source, limit=limit)
    lm = opening.open()
    under = None
    if reference is not None:
        under = replace(opening, model=reference, parameters=None).open()
    pairs, left_out = pair_risks(
        lm,
        data.examples,
        wanted,
        gradients=gradients,
        reference=under,
        apply_chat_template=opening.apply_chat_template,
        progress=progress,
    )
    settings = {
        **dataclasses.asdict(opening),
        "weights": lm.weights_hash(),
        "tokenizer": lm.codec.tokenizer_hash,
        "template": lm.codec.template_hash,
        "data": source,
        "loss": {"name": type(wanted.loss).__name__, **dataclasses.asdict(wanted.loss)},  # type: ignore[call-overload]
        "gradients": gradients,
        "reference": reference,
    }
    skipped = (*data.skipped, *((e.probe_id, e.reason) for e in left_out))
    return RiskReport(settings, by, tuple(ranked(pairs, by)), skipped), data
