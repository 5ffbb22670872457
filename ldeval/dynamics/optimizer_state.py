"""What an optimizer remembers, by parameter name: given, replayed, or read from a file.

``optimizer.pt`` of transformers' and TRL's trainers numbers its parameters through two
groups, those with weight decay first. The numbers become names again in the same way
that the trainer gave them. Files are loaded with ``weights_only=True``: a pickled
optimizer runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from torch import Tensor

from ldeval.dynamics.causal_lm import CausalLM
from ldeval.errors import CheckpointError, TheoryError
from ldeval.printable import quoted

Family = Literal["sgd", "rmsprop", "adam", "adamw"]
FAMILIES: tuple[Family, ...] = ("sgd", "rmsprop", "adam", "adamw")

_UNSUPPORTED = ("amsgrad", "nesterov", "centered", "maximize")
_MOMENTS = ("exp_avg", "exp_avg_sq", "square_avg", "momentum_buffer")


@dataclass(frozen=True)
class GroupSettings:
    """What one parameter group is trained with; torch's names and defaults."""

    lr: float
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    alpha: float = 0.99
    """RMSprop's decay of the squared gradient."""
    momentum: float = 0.0
    dampening: float = 0.0


@dataclass(frozen=True)
class OptimizerState:
    """An optimizer between two steps."""

    family: Family
    settings: Mapping[str, GroupSettings]
    """By parameter name."""
    steps: int = 0
    """Steps taken; AdamW's bias correction of the next one uses one more."""
    moments: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """By torch's name of the moment (``exp_avg``, ``exp_avg_sq``, ``square_avg``,
    ``momentum_buffer``), then by parameter name; none before the first step."""

    def moment(self, which: str, name: str, like: Tensor) -> Tensor:
        """A parameter's moment; zeros where there is none yet."""
        found = self.moments.get(which, {}).get(name)
        return torch.zeros_like(like) if found is None else found.to(like)


def decayed_names(model: Any) -> set[str]:
    """Parameters that transformers' trainer decays: no bias and no norm."""
    from transformers import Trainer

    # the method looks at the model alone, whatever trainer it is called on
    return set(Trainer.get_decay_parameter_names(None, model))


def fresh_state(
    lm: CausalLM,
    family: Family,
    lr: float,
    *,
    weight_decay: float = 0.0,
    **settings: float,
) -> OptimizerState:
    """An optimizer before its first step; norms and biases are not decayed.

    Raises:
        TheoryError: for an unknown optimizer, or momentum of another than SGD.
    """
    if family not in FAMILIES:
        valid = ", ".join(FAMILIES)
        raise TheoryError(f"optimizer {family!r} is not known. Valid: {valid}.")
    if family != "sgd" and settings.get("momentum"):
        raise TheoryError(
            f"{family} with momentum is not computed here. Leave it out, or take sgd."
        )
    decayed = decayed_names(lm.model) if weight_decay else set()
    by_name = {
        name: GroupSettings(lr, weight_decay if name in decayed else 0.0, **settings)
        for name in lm.trainable
    }
    return OptimizerState(family, by_name)


def read_state(path: str | Path, lm: CausalLM) -> OptimizerState:
    """An ``optimizer.pt``, its moments under the names of this model's parameters.

    The learning rate in it is that of the *next* step: trainers advance the schedule
    before they save.

    Raises:
        CheckpointError: when it cannot be read, or does not fit the model.
        TheoryError: for an optimizer whose step is not computed here.
    """
    place = Path(path)
    if place.is_dir():
        place = place / "optimizer.pt"
    try:
        record = torch.load(place, map_location="cpu", weights_only=True, mmap=True)
        groups, state = record["param_groups"], record["state"]
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{place}: no such file. Save it while training (save_only_model=False), "
            "or replay the steps before with --replay."
        ) from error
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, EOFError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"{place}: cannot be read as an optimizer's state ({reason[0][:200]})."
        ) from error
    except UnpicklingError as error:
        raise CheckpointError(
            f"{place}: holds more than tensors and numbers, and is not loaded: such a "
            "file can run code."
        ) from error
    return _named(groups, state, lm, str(place))


def _named(
    groups: Sequence[Mapping[str, Any]],
    state: Mapping[int, Mapping[str, Any]],
    lm: CausalLM,
    place: str,
) -> OptimizerState:
    names = _group_names(groups, lm, place)
    settings: dict[str, GroupSettings] = {}
    moments: dict[str, dict[str, Tensor]] = {}
    steps: set[int] = set()
    family = _family(groups[0], place)
    for group, members in zip(groups, names, strict=True):
        for number, name in zip(group["params"], members, strict=True):
            settings[name] = _settings(group, place)
            for which, value in state.get(number, {}).items():
                if which == "step":
                    steps.add(int(value))
                elif isinstance(value, Tensor):
                    if which not in _MOMENTS:
                        raise TheoryError(
                            f"{place}: remembers {quoted(which)}, which no optimizer "
                            f"that is computed here does. Valid: {', '.join(FAMILIES)}."
                        )
                    _check_shape(value, lm.trainable[name], name, place)
                    moments.setdefault(which, {})[name] = value
    if len(steps) > 1:
        raise CheckpointError(
            f"{place}: its parameters have taken {min(steps)} to {max(steps)} steps; "
            "one count was expected."
        )
    return OptimizerState(family, settings, max(steps, default=0), moments)


def _group_names(
    groups: Sequence[Mapping[str, Any]], lm: CausalLM, place: str
) -> list[list[str]]:
    """The names in each group, in the order of its numbers."""
    decayed = decayed_names(lm.model)
    ordered = [
        [name for name in lm.trainable if name in decayed],
        [name for name in lm.trainable if name not in decayed],
    ]
    sizes = [len(group["params"]) for group in groups]
    if sizes == [len(lm.trainable)]:  # an optimizer that was not made by a trainer
        return [list(lm.trainable)]
    if sizes != [len(names) for names in ordered]:
        raise CheckpointError(
            f"{place}: has groups of {sizes} parameters; the model has "
            f"{len(ordered[0])} that a trainer decays and {len(ordered[1])} that it "
            "does not. Is it of this checkpoint?"
        )
    return ordered


def _family(group: Mapping[str, Any], place: str) -> Family:
    asked = [name for name in _UNSUPPORTED if group.get(name)]
    if asked:
        raise TheoryError(f"{place}: {asked[0]} is not computed here.")
    # NAdam, RAdam, Adamax and Lion have betas too, and no amsgrad to turn on
    if "betas" in group and "amsgrad" in group:
        return "adamw" if group.get("decoupled_weight_decay", True) else "adam"
    if "alpha" in group:
        return "rmsprop"
    if "dampening" in group:
        return "sgd"
    raise TheoryError(
        f"{place}: an optimizer with the settings {', '.join(map(str, group))} is not "
        f"known. Valid: {', '.join(FAMILIES)}."
    )


def _settings(group: Mapping[str, Any], place: str) -> GroupSettings:
    if group.get("alpha") is not None and group.get("momentum"):
        raise TheoryError(f"{place}: RMSprop with momentum is not computed here.")
    beta1, beta2 = group.get("betas", (0.9, 0.999))
    return GroupSettings(
        lr=float(group["lr"]),
        weight_decay=float(group.get("weight_decay", 0.0)),
        beta1=float(beta1),
        beta2=float(beta2),
        eps=float(group.get("eps", 1e-8)),
        alpha=float(group.get("alpha", 0.99)),
        momentum=float(group.get("momentum", 0.0)),
        dampening=float(group.get("dampening", 0.0)),
    )


def _check_shape(value: Tensor, parameter: Tensor, name: str, place: str) -> None:
    if value.shape != parameter.shape:
        raise CheckpointError(
            f"{place}: has a moment of shape {tuple(value.shape)} where {name} has "
            f"{tuple(parameter.shape)}. Is it of this checkpoint?"
        )
