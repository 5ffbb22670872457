"""Probes while a model trains: a callback for any Trainer of transformers or TRL.

    from ldeval import ProbeCallback

    probing = ProbeCallback("probes.jsonl", "store", every=10)
    trainer = DPOTrainer(..., callbacks=[probing])

Every N steps the probes are scored with the model in memory, and stored as a sweep
would store them. Training is not disturbed: with and without the callback its
trajectory is the same to the last bit on a CPU.
"""

from __future__ import annotations

import inspect
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from transformers import Trainer, TrainerCallback

from ldeval.bundled import bundled_probes
from ldeval.errors import MismatchError
from ldeval.files import place
from ldeval.integrations.budget import Overhead
from ldeval.integrations.live_run import LiveRun, LiveSettings
from ldeval.integrations.recorder import forget_lost
from ldeval.probes import ProbeSet, read_probes
from ldeval.records import OBJECTIVES, VERDICT_NAMES, Comparison, Span, Truth
from ldeval.scoring.live import check_live, unwrapped

log = logging.getLogger(__name__)

Action = Literal["warn", "stop"]
PREFIX = "probes"
_MIXED = ("bfloat16", "float16")
"""Types in which torch computes beside weights of another."""
_STATES: Mapping[Truth, float] = {"holds": 1.0, "undecided": 0.0, "does_not_hold": -1.0}
"""Verdicts as the numbers that reporters can draw."""


class ProbeCallback(TrainerCallback):  # type: ignore[misc]  # untyped
    """Scores probes every so many optimizer steps, before the first and at the last.

    Logged through the trainer, to whatever it reports to, are
    ``probes/<split>/<kind>`` (change since the first scoring, nats per token),
    ``probes/<split>/margin`` (change of chosen − rejected, nats), on trained probes
    ``probes/verdict/<name>`` (1 holds, 0 undecided, −1 does not), ``probes/seconds`` of
    this scoring and ``probes/overhead``, the share of training time so far.

    A first scoring that fails ends training before it began; a later one is logged,
    counted in :attr:`failures`, and training goes on.
    """

    def __init__(
        self,
        probes: str | Path | ProbeSet | None = None,
        store: str | Path = "store",
        *,
        run: str | None = None,
        every: int = 10,
        limit: tuple[int | None, int | None] | None = None,
        span: Span = "trl",
        apply_chat_template: bool = False,
        system_instruction: str | None = None,
        initial_model: str | Path | None = None,
        mixed_precision_dtype: str | None = None,
        objective: str | None = None,
        on_verdict: Mapping[str, Action] | None = None,
        max_overhead: float | None = None,
        verdicts: bool = True,
    ) -> None:
        """Args:
            probes: a probe file or set; None for the bundled set.
            store: where tables go, as in ``ldeval sweep --store``.
            run: name in the store; None for the name of the trainer's output folder.
            every: optimizer steps between scorings.
            limit: so many trained and held-out probes at most.
            span, apply_chat_template, system_instruction: as in a sweep.
            initial_model: the folder that ``initial`` responses must come from; None
                for the one that training starts from.
            mixed_precision_dtype: compute in it (``bfloat16`` or ``float16``), as in
                ``--model_args``; None for the precision of the weights.
            objective: what is trained (``sft``, ``dpo`` …), as in ``--objective``.
            on_verdict: what to do once a verdict holds on trained probes: ``warn``, or
                ``stop`` training, with a checkpoint.
            max_overhead: bound of probing seconds over training seconds. Scorings that
                would pass it are left out; None: none is.
            verdicts: compare what is stored after each scoring. Without, only seconds
                and overhead are logged.

        Raises:
            ProbeError: the probes are malformed.
            MismatchError: an unknown verdict, action, objective or type.
        """
        if isinstance(probes, ProbeSet):
            self._probes = probes
        else:
            self._probes = read_probes(bundled_probes() if probes is None else probes)
        if limit is not None:
            self._probes = self._probes.limited(*limit)
        if every < 1:
            raise MismatchError(f"every={every}; give at least 1 step.")
        _check_names(on_verdict or {}, objective, mixed_precision_dtype)
        self._store, self._name, self._every = place(store), run, every
        self._asked: dict[str, Any] = {
            "span": span,
            "apply_chat_template": apply_chat_template,
            "system_instruction": system_instruction,
            "initial_model": None if initial_model is None else str(initial_model),
            "mixed_precision_dtype": mixed_precision_dtype,
            "objective": objective,
        }
        self._on_verdict = dict(on_verdict or {})
        self._verdicts = verdicts or bool(on_verdict)
        self._limit = max_overhead
        self.overhead = Overhead(max_overhead)
        """What probing has cost in this call of ``train``."""
        self.scored: list[int] = []
        """Steps that were scored."""
        self.left_out: list[int] = []
        """Steps that were due and not scored, to keep within ``max_overhead``."""
        self.failures: dict[int, str] = {}
        """By step, why a scoring failed."""
        self.comparison: Comparison | None = None
        """The last one."""
        self._run: LiveRun | None = None
        self._trainer: Any = None
        self._started = 0.0
        self._considered = -1
        self._told: set[str] = set()

    # -------------------------------------------------------------------------- events

    def on_train_begin(
        self, args: Any, state: Any, control: Any, **objects: Any
    ) -> None:
        """Score what training starts from.

        Raises:
            LdevalError: when it cannot be scored, or the store holds something else.
        """
        model = unwrapped(objects["model"])
        check_live(model)
        self._trainer = _calling_trainer(state)
        self.overhead = Overhead(self._limit)
        self.scored, self.left_out, self.failures = [], [], {}
        self._told = set()
        self._considered = state.global_step
        if state.is_world_process_zero:
            name = self._name or Path(args.output_dir).resolve().name
            settings = LiveSettings(
                probes=self._probes, store=self._store, run=name, **self._asked
            )
            if self._run is not None:
                self._run.end()  # a training that raised
            self._run = LiveRun(settings)
            try:
                self._run.begin(model, state.global_step)
                forget_lost(Path(args.output_dir), state.global_step)
                self._score(args, state, control, objects)
            except BaseException:
                self._run.end()  # others may write it: there is no training
                raise
        self._started = time.monotonic() - self.overhead.spent

    def on_step_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Score where it is due, and act on verdicts."""
        last = state.global_step >= state.max_steps or control.should_training_stop
        if state.global_step % self._every and not last:
            return
        stop = self._due(args, state, control, objects, last=last)
        if "stop" in self._on_verdict.values():
            stop = _agreed(stop, args)
        if stop:
            control.should_training_stop = True
            control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Score what training ends with, where an evaluation between steps ended it."""
        if control.should_training_stop:
            self._at_the_end(args, state, control, objects)

    def on_save(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Likewise where an evaluation after an epoch did: what is saved with it may
        make way for the best checkpoint afterwards."""
        if control.should_training_stop:
            self._at_the_end(args, state, control, objects)

    def on_train_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Likewise where nothing was saved; and say what it cost."""
        best = args.load_best_model_at_end and state.best_model_checkpoint is not None
        if not best:
            self._at_the_end(args, state, control, objects)
        if self._run is None:
            return
        try:
            self._run.keep_record(Path(args.output_dir))
        except Exception as error:  # noqa: BLE001  # training is worth more
            self._failed(state.global_step, "not given its record of examples", error)
        self._run.end()
        share = self.overhead.share(self._trained_seconds())
        log.info(
            "probes: scored %d times in %.1f s, %.1f%% of training's own time; %d left "
            "out to stay within max_overhead, %d failed",
            len(self.scored),
            self.overhead.spent,
            100 * share,
            len(self.left_out),
            len(self.failures),
        )

    # --------------------------------------------------------------------------- parts

    def _trained_seconds(self) -> float:
        return time.monotonic() - self._started - self.overhead.spent

    def _at_the_end(
        self, args: Any, state: Any, control: Any, objects: Mapping[str, Any]
    ) -> None:
        """Score the last step, where that it is the last was decided after it, as early
        stopping decides when it evaluates."""
        if self._considered != state.global_step:
            self._due(args, state, control, objects, last=True)

    def _due(
        self,
        args: Any,
        state: Any,
        control: Any,
        objects: Mapping[str, Any],
        *,
        last: bool,
    ) -> bool:
        """Score this step if that may be paid for; whether a verdict asks to stop."""
        self._considered = state.global_step
        if self._run is None:
            return False
        done = 1.0 if last else state.global_step / max(state.max_steps, 1)
        if self.overhead.allows(self._trained_seconds(), done):
            return self._scored_or_counted(args, state, control, objects)
        self.left_out.append(state.global_step)
        return False

    def _scored_or_counted(
        self, args: Any, state: Any, control: Any, objects: Mapping[str, Any]
    ) -> bool:
        try:
            return self._score(args, state, control, objects)
        except Exception as error:  # noqa: BLE001  # training is worth more
            self._failed(state.global_step, "not scored", error)
            return False

    def _failed(self, step: int, what: str, error: Exception) -> None:
        log.error("probes: step %d was %s: %s", step, what, error)
        self.failures[step] = str(error) or type(error).__name__

    def _score(
        self, args: Any, state: Any, control: Any, objects: Mapping[str, Any]
    ) -> bool:
        """Score, compare, log; whether a verdict asks to stop."""
        assert self._run is not None
        model = unwrapped(objects["model"])
        _drained(model)
        started = time.monotonic()
        step = state.global_step
        checkpoint = str(Path(args.output_dir) / f"checkpoint-{step}")
        stored_before: float | None = None
        try:
            tokenizer = objects["processing_class"]
            stored_before = self._run.score(model, tokenizer, step, checkpoint)
            if stored_before is None:
                self.scored.append(step)
            self._run.keep_record(Path(args.output_dir))
            self.comparison = self._compared(step)
        finally:
            seconds = time.monotonic() - started
            if stored_before is None:
                self.overhead.add(seconds)
            else:
                self.overhead.add_kept(seconds, stored_before)
        values = {} if self.comparison is None else curves(self.comparison)
        values[f"{PREFIX}/seconds"] = seconds
        trained = self._trained_seconds() if self._started else 0.0
        if trained > 0:
            values[f"{PREFIX}/overhead"] = self.overhead.share(trained)
        self._report(state, control, values)
        return self._acted_on_verdicts(step)

    def _compared(self, step: int) -> Comparison | None:
        """What is stored, compared. The scores are worth keeping without that, and the
        training worth going on."""
        assert self._run is not None
        if not self._verdicts:
            return None
        try:
            return self._run.compare()
        except Exception as error:  # noqa: BLE001  # training is worth more
            self._failed(step, "scored, but not compared", error)
            return None

    def _report(self, state: Any, control: Any, values: dict[str, float]) -> None:
        """Through the trainer's own log, so that every reporter gets it."""
        if self._trainer is None:
            state.log_history.append({**values, "step": state.global_step})
            return
        # handing on a log clears this flag, which the loss of this step may wait for
        waiting = control.should_log
        # not the trainer's own method: TRL's adds and then forgets what it has gathered
        # for the loss's line
        Trainer.log(self._trainer, values)
        control.should_log = waiting

    def _acted_on_verdicts(self, step: int) -> bool:
        if self.comparison is None:
            return False
        stop = False
        for verdict in self.comparison.verdicts:
            action = self._on_verdict.get(verdict.name)
            if action is None or (verdict.split, verdict.state) != ("trained", "holds"):
                continue
            if verdict.name not in self._told:
                self._told.add(verdict.name)
                log.warning("probes: %s holds at step %d", verdict.name, step)
            stop = stop or action == "stop"
        return stop


def curves(comparison: Comparison) -> dict[str, float]:
    """What a comparison says, as numbers to draw; undefined ones are left out."""
    found = {}
    for change in comparison.overall.changes:
        name = f"{PREFIX}/{change.split}/{change.kind.replace(':', '_')}"
        found[name] = change.delta_tok.value
    for margin in comparison.overall.margins:
        found[f"{PREFIX}/{margin.split}/margin"] = margin.delta_sum.value
    for verdict in comparison.verdicts:
        if verdict.split == "trained":
            found[f"{PREFIX}/verdict/{verdict.name}"] = _STATES[verdict.state]
    return {name: float(v) for name, v in found.items() if math.isfinite(v)}


def _check_names(
    on_verdict: Mapping[str, str], objective: str | None, mixed: str | None
) -> None:
    for name, action in on_verdict.items():
        if name not in VERDICT_NAMES:
            raise MismatchError(
                f"on_verdict names {name!r}. Verdicts: {', '.join(VERDICT_NAMES)}."
            )
        if action not in get_args(Action):
            raise MismatchError(
                f"on_verdict[{name!r}] is {action!r}. Actions: warn, stop."
            )
    if objective is not None and objective not in OBJECTIVES:
        raise MismatchError(
            f"objective {objective!r}. Valid: {', '.join(sorted(OBJECTIVES))}."
        )
    if mixed is not None and mixed not in _MIXED:
        raise MismatchError(
            f"mixed_precision_dtype {mixed!r}. Valid: {', '.join(_MIXED)}; None for "
            "the precision of the weights."
        )


def _calling_trainer(state: Any) -> Any:
    """The trainer that is calling; None where this was called by hand.

    A callback is told of the model, the optimizer and the data, but not of the trainer,
    without which nothing can be logged to the reporters that stand before it.
    """
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, Trainer) and caller.state is state:
            return caller
        frame = frame.f_back
    log.warning("probes: no Trainer is calling; logged to the trainer state alone")
    return None


def _drained(model: Any) -> None:
    """Let training's own work finish, so that its time is not counted as probing's."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _agreed(stop: bool, args: Any) -> bool:
    """The main process's decision, in every process: all must stop at one step."""
    if args.world_size < 2:
        return stop
    flag = torch.tensor([int(stop)], device=args.device)
    torch.distributed.broadcast(flag, src=0)
    return bool(flag.item())
