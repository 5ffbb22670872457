"""What a sweep is going to take: work, rates, time, memory and bytes, and what lacks.

Apart from the records of scores since a plan is made before there are any. Counts of a
given probe set are exact; where a size is hypothetical they are extrapolated, and are
then no whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PlanLayout = Literal["packed", "shared", "whole", "cached"]
"""How sequences go through the model, as far as it changes what is computed: a prompt
and its responses at once; the prompt's cache lent to its responses; every response with
its prompt; vLLM's prefix cache, by whole blocks."""

RateSource = Literal["measured", "stored", "given", "assumed"]
"""Measured now on this machine; from the manifests and tables of a stored run; said by
the user; none of these: a figure measured elsewhere (``docs/plan.md``)."""

PartName = Literal["encoding", "loading", "scoring", "writing", "joining", "comparing"]
_ENGINES: tuple[PartName, ...] = ("encoding", "loading", "scoring", "writing")


@dataclass(frozen=True)
class ModelShape:
    """What decides the cost of a causal language model's forward pass."""

    name: str
    """Where it comes from: a folder, a file, or how it was made up."""
    origin: Literal["tensors", "config", "proportions"]
    """Counted from stored tensors' shapes; from those of the model that a configuration
    is of; made up for a number of parameters."""
    parameters: float
    """All of them; what memory and disk must hold."""
    matrix_parameters: float
    """Those that every token is multiplied with, the embedding and the output layer
    left out; of a mixture of experts, the experts that a token goes through."""
    layers: int
    hidden: int
    """H, width of the hidden states."""
    heads_width: float
    """Heads times the width of one; 0 where no layer attends."""
    intermediate: int
    """Width inside the feed-forward layer, of all experts that a token goes through."""
    vocabulary: int
    """V, width of the logits."""
    stored_bytes: float
    """Bytes of a parameter on disk."""
    memory_bytes: float
    """Bytes of a parameter where it is computed with."""


@dataclass(frozen=True)
class ScoringWork:
    """What scoring one checkpoint on the probes means, in tokens."""

    probes: float
    responses: float
    """Those that can be scored."""
    excluded: float
    """Responses that cannot: too long, sampled from another model."""
    prompt: float
    """Tokens of the prompts, each prompt once."""
    asked: float
    """Tokens of the responses: those that get a score, and a row in the store."""
    computed: float
    """Tokens that go through the model's layers in this layout."""
    separate: float
    """Tokens of every response with its prompt: what the harness computes."""
    pairs: float
    """Pairs of a query and a key that attention computes, in each layer and head,
    those that a mask then takes out included."""
    layout: PlanLayout

    def scaled(self, factor: float) -> ScoringWork:
        """The same for so many times as many probes of the same kind."""
        return ScoringWork(
            probes=self.probes * factor,
            responses=self.responses * factor,
            excluded=self.excluded * factor,
            prompt=self.prompt * factor,
            asked=self.asked * factor,
            computed=self.computed * factor,
            separate=self.separate * factor,
            pairs=self.pairs * factor,
            layout=self.layout,
        )


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of scoring one checkpoint: two a multiply-add."""

    matrices: float
    """2 · matrix parameters · computed tokens."""
    attention: float
    """4 · layers · heads · width of a head · pairs."""
    output: float
    """2 · H · V · rows of logits."""

    @property
    def total(self) -> float:
        """All three."""
        return self.matrices + self.attention + self.output


@dataclass(frozen=True)
class Rate:
    """How fast something goes, and how that is known."""

    value: float
    source: RateSource
    where: str = ""
    """What it was measured on."""


@dataclass(frozen=True)
class PlanRates:
    """The rates that a plan is calibrated by."""

    scoring: Rate
    """FLOP/s that one device sustains."""
    encoding: Rate
    """Seconds of a processor for a probe's text, once a checkpoint."""
    loading: Rate
    """Bytes of weights a second, hashed and loaded."""
    stored: Rate
    """Bytes in the store for a scored token."""
    writing: Rate
    """Seconds for a scored token's row."""
    joining: Rate
    """Seconds for a row of the shards' tables: checked, read and written again."""
    comparing: Rate
    """Seconds for a scored token, from one checkpoint to the next."""
    comparing_start: Rate
    """Seconds for a pair of checkpoints, however many tokens."""


@dataclass(frozen=True)
class PlanPart:
    """One thing that takes time."""

    name: PartName
    seconds: float
    """By the clock, all engines at work."""
    worker_seconds: float
    """Summed over the devices or processes that are busy with it."""
    after_sweep: bool = False
    """Whether it is done by ``ldeval diff`` when the sweep is over."""


@dataclass(frozen=True)
class PlanBytes:
    """What must be read, held and kept, in bytes."""

    checkpoint: float
    """Weights of one checkpoint on disk."""
    read: float
    """Weights read in all, by every engine."""
    weights: float
    """Weights in the memory of an engine."""
    activations: float
    """What a pack of tokens and a chunk of logits take beside them, an estimate."""
    held: float
    """Scores of one checkpoint in the main memory, all engines together, while they
    are put together."""
    comparing: float
    """Main memory of ``ldeval diff``."""
    stored: float
    """Tables that the sweep adds to the store."""
    temporary: float
    """What stands beside them and goes: a table that is being written; where shards are
    joined, those of the first step, until the sweep is over, and those of the step that
    is being joined. A step that waits to be joined stands as shards in its own place.
    """
    fetched: float
    """In the temporary folder of the machine that joins, or writes, where the store is
    at a URL: the shards' tables of one step and the joined one; without shards the
    table that is being written."""


@dataclass(frozen=True)
class Shortfall:
    """Something that does not fit."""

    what: Literal["device", "main memory", "comparing", "disk", "temporary folder"]
    needed: float
    """Bytes."""
    available: float
    """Bytes."""


@dataclass(frozen=True)
class SweepPlan:
    """What is left of a sweep, and what it takes."""

    run: str
    model: ModelShape
    calibrated_on: ModelShape | None
    """The model whose FLOP/s were measured; None where they are given or assumed."""
    device: str
    """What one device is: ``cpu``, or an accelerator's name."""
    checkpoints: int
    """Checkpoints left to score."""
    finished: int
    """Checkpoints that are in the store already."""
    devices_per_engine: float
    """Devices that hold one copy of the model; below 1 where several copies share
    one."""
    engines: int
    """Copies of the model at work, each on its share of the probes."""
    measured_probes: float
    """Probes whose tokens were counted; fewer than planned: extrapolated."""
    work: ScoringWork
    """For one checkpoint."""
    flops: Flops
    """For one checkpoint."""
    rates: PlanRates
    parts: tuple[PlanPart, ...]
    bytes: PlanBytes
    shortfalls: tuple[Shortfall, ...]
    notes: tuple[str, ...] = ()
    """What is not counted."""

    @property
    def bottleneck(self) -> PlanPart | None:
        """The part that takes most of the time, of those that nothing longer goes on
        beside; None where nothing is left."""
        joins = self.joining_seconds > self.engine_seconds
        hidden: tuple[PartName, ...] = _ENGINES if joins else ("joining",)
        open_ = [part for part in self.parts if part.name not in hidden]
        longest = max(open_, key=lambda part: part.seconds, default=None)
        return longest if longest is not None and longest.seconds > 0 else None

    @property
    def engine_seconds(self) -> float:
        """By the clock, of what every engine does one after the other."""
        return sum(part.seconds for part in self.parts if part.name in _ENGINES)

    @property
    def joining_seconds(self) -> float:
        """By the clock, of joining all steps, one after the other."""
        return sum(part.seconds for part in self.parts if part.name == "joining")

    @property
    def sweep_seconds(self) -> float:
        """The sweep's own time by the clock.

        A step is joined while the engines score the next ones. What nothing goes on
        beside: scoring the first step and joining it, since it is the reference of the
        others (where it is finished, cutting it into shards, which takes as long); then
        scoring one more step, or joining the last, whichever the rest waits less for.
        """
        if not self.joining_seconds:
            return self.engine_seconds
        step = self.engine_seconds / self.checkpoints
        join = self.joining_seconds / self.checkpoints
        first = join if self.finished else step + join
        rest = self.checkpoints - (not self.finished)
        if not rest:
            return first
        return first + max(rest * step + join, step + rest * join)

    @property
    def whole_seconds(self) -> float:
        """The sweep and what is done after it."""
        after = sum(part.seconds for part in self.parts if part.after_sweep)
        return self.sweep_seconds + after

    @property
    def devices(self) -> float:
        """Devices at work: those of all engines."""
        return self.engines * self.devices_per_engine

    @property
    def device_hours_held(self) -> float:
        """Hours that devices are held: all of them for as long as the sweep takes,
        through encoding, writing, joining and waits too."""
        return self.devices * self.sweep_seconds / 3600

    @property
    def device_hours_busy(self) -> float:
        """Hours of these in which a device scores, or loads weights."""
        names = ("scoring", "loading")
        return sum(p.worker_seconds for p in self.parts if p.name in names) / 3600
