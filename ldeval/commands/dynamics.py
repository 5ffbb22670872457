"""The commands of first order: predict, influence, risk."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldeval.bundled import bundled_probes
from ldeval.commands import add_command
from ldeval.commands.output import say
from ldeval.errors import MismatchError, TheoryError
from ldeval.records import KIND_NAMES

if TYPE_CHECKING:  # heavy to import: only for the types
    from ldeval.dynamics.run import Opening, StepSettings
    from ldeval.dynamics.training import Objective

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:i?B)?", re.IGNORECASE)
_RANKINGS = (
    "change",
    "entanglement",
    "ches",
    "ches_normalised",
    "valley",
    "edit",
)


def add_dynamics_commands(commands: Any) -> None:
    """Add every command of this module to the command line."""
    _predict_command(commands)
    _influence_command(commands)
    _risk_command(commands)


# ----------------------------------------------------------------------------- options


def _add_model(command: Any) -> None:
    command.add_argument("--model", required=True, help="a checkpoint, or an adapter")
    command.add_argument("--base", help="model of an adapter that does not name it")
    command.add_argument(
        "--dtype", choices=["float32", "float64", "bfloat16"], default="float32"
    )
    command.add_argument(
        "--parameters", metavar="REGEX", help="only these parameters count"
    )
    command.add_argument("--apply_chat_template", action="store_true")


def _add_loss(group: Any) -> None:
    group.add_argument("--loss", default="dpo", help="sft, dpo, ipo, simpo, … (dpo)")
    group.add_argument("--beta", type=float, help="of the loss")
    group.add_argument(
        "--loss-setting",
        action="append",
        type=_setting,
        default=[],
        metavar="NAME=VALUE",
        help="another setting of the loss",
    )
    group.add_argument(
        "--reference",
        metavar="DIR",
        help="the loss's reference model, where it is not the model itself",
    )


def _add_step(command: Any) -> None:
    group = command.add_argument_group("the training step")
    group.add_argument("--data", help="preference data, or a probe set")
    group.add_argument("--batch", type=int, default=4, help="examples of the step (4)")
    group.add_argument("--first", type=int, default=0, help="examples to pass over")
    group.add_argument(
        "--replay",
        type=int,
        default=0,
        metavar="STEPS",
        help="really take so many steps first, on the batches before",
    )
    _add_loss(group)
    group.add_argument(
        "--optimizer", choices=["sgd", "rmsprop", "adam", "adamw"], default="sgd"
    )
    group.add_argument("--lr", type=float)
    group.add_argument("--weight-decay", type=float, default=0.0)
    group.add_argument("--momentum", type=float, help="of SGD")
    group.add_argument(
        "--optimizer-state",
        metavar="FILE",
        help="optimizer.pt of a trainer, or the checkpoint that holds it; names the "
        "optimizer and its learning rate too",
    )
    group.add_argument(
        "--max-grad-norm",
        type=float,
        default=1.0,
        help="the gradient is clipped to it, as trainers do (1.0); 0 for not at all",
    )


def _add_probes(command: Any) -> None:
    group = command.add_argument_group("the responses")
    group.add_argument("--probes", type=Path, help="default: the bundled set")
    group.add_argument("--kinds", nargs="+", choices=KIND_NAMES)
    group.add_argument(
        "--limit", type=int, nargs=2, metavar=("TRAINED", "HELDOUT"), default=None
    )


def _setting(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME=NUMBER, e.g. gamma=0.5"
        ) from None


def parse_bytes(text: str) -> int:
    """Bytes of a size such as ``4GiB`` or ``500M``."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size, e.g. 4GiB or 500M")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _opening(options: argparse.Namespace) -> Opening:
    from ldeval.dynamics.run import Opening

    return Opening(
        options.model,
        options.base,
        options.dtype,
        options.parameters,
        options.apply_chat_template,
    )


def _objective(options: argparse.Namespace) -> Objective:
    from ldeval.dynamics.training import objective

    settings = dict(options.loss_setting)
    if options.beta is not None:
        settings["beta"] = options.beta
    return objective(options.loss, **settings)


def _step(options: argparse.Namespace) -> StepSettings:
    from ldeval.dynamics.run import StepSettings

    if options.data is None:
        raise TheoryError("no training examples: give --data.")
    more = {} if options.momentum is None else {"momentum": options.momentum}
    return StepSettings(
        data=options.data,
        objective=_objective(options),
        batch=options.batch,
        first=options.first,
        replayed=options.replay,
        optimizer=options.optimizer,
        lr=options.lr,
        weight_decay=options.weight_decay,
        state=options.optimizer_state,
        max_norm=options.max_grad_norm or None,
        reference=options.reference,
        options=more,
    )


def _probes(options: argparse.Namespace) -> Any:
    from ldeval.probes import read_probes

    probes = read_probes(options.probes or bundled_probes())
    return probes if options.limit is None else probes.limited(*options.limit)


# ----------------------------------------------------------------------------- predict


def _predict_command(commands: Any) -> None:
    command = add_command(
        commands,
        "predict",
        _predict,
        "what first order says that a step does, beside what it does",
    )
    _add_model(command)
    command.add_argument(
        "--to", metavar="DIR", help="a later checkpoint, in place of a training step"
    )
    _add_step(command)
    _add_probes(command)
    command.add_argument(
        "--sizes",
        type=float,
        nargs="+",
        default=[1.0],
        help="multiples of the step that are measured (1)",
    )
    command.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")


def _predict(options: argparse.Namespace) -> int:
    from ldeval.dynamics.results import write_prediction
    from ldeval.dynamics.run import run_prediction
    from ldeval.report.dynamics_report import prediction_text, write_prediction_report

    if options.to is not None and options.data is not None:
        raise MismatchError(
            "--to names the change and --data asks for a step. Give one of them."
        )
    found = run_prediction(
        _opening(options),
        _probes(options),
        options.to or _step(options),
        sizes=options.sizes,
        kinds=options.kinds,
        progress=not options.quiet,
    )
    write_prediction(options.output, found)
    say(prediction_text(found))
    say(f"report: {write_prediction_report(found, options.output)}")
    return 0


# --------------------------------------------------------------------------- influence


def _influence_command(commands: Any) -> None:
    command = add_command(
        commands,
        "influence",
        _influence,
        "which training example of a step moved which response",
    )
    _add_model(command)
    _add_step(command)
    _add_probes(command)
    command.add_argument(
        "--memory",
        type=parse_bytes,
        default=4 * 2**30,
        metavar="SIZE",
        help="gradients to hold at a time (4GiB); more is faster",
    )
    command.add_argument(
        "--project",
        type=int,
        nargs="?",
        const=2**18,
        metavar="WIDTH",
        help="estimate from gradients projected to so many numbers (262144), and "
        "measure the error",
    )
    command.add_argument(
        "--kernel",
        type=int,
        default=0,
        metavar="DRAWS",
        help="estimate the tangent kernel's norm too, from so many random probes",
    )
    command.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")


def _influence(options: argparse.Namespace) -> int:
    from ldeval.dynamics.results import ROWS, write_influence
    from ldeval.dynamics.run import run_influence
    from ldeval.report.dynamics_report import influence_text, write_influence_report

    found, journal = run_influence(
        _opening(options),
        _probes(options),
        _step(options),
        rows=options.output / ROWS,
        kinds=options.kinds,
        budget=options.memory,
        width=options.project,
        kernel_draws=options.kernel,
        progress=not options.quiet,
    )
    write_influence(options.output, found)
    journal.delete()
    say(influence_text(found))
    say(f"report: {write_influence_report(found, options.output)}")
    return 0


# -------------------------------------------------------------------------------- risk


def _risk_command(commands: Any) -> None:
    command = add_command(
        commands, "risk", _risk, "rank preference pairs by what training them risks"
    )
    command.add_argument("data", metavar="DATA", help="preference data, or a probe set")
    _add_model(command)
    _add_loss(command)
    command.add_argument(
        "--by",
        choices=_RANKINGS,
        help="default: change, or ches_normalised with --no-gradients",
    )
    command.add_argument(
        "--no-gradients",
        action="store_true",
        help="one forward pass a pair; no entanglement",
    )
    command.add_argument("--limit", type=int, help="only the first pairs")
    command.add_argument("--json", type=Path, metavar="FILE", help="write everything")
    command.add_argument(
        "--filtered", type=Path, metavar="FILE", help="write the rows worth keeping"
    )
    command.add_argument(
        "--keep",
        type=float,
        default=0.9,
        metavar="SHARE",
        help="of the pairs, least at risk first, in --filtered (0.9)",
    )


def _risk(options: argparse.Namespace) -> int:
    from ldeval.dynamics.data import write_rows
    from ldeval.dynamics.results import write_risk
    from ldeval.dynamics.risk import GRADIENT_RANKINGS
    from ldeval.dynamics.run import run_risk
    from ldeval.report.dynamics_report import risk_text

    by = options.by or ("ches_normalised" if options.no_gradients else "change")
    if options.no_gradients and by in GRADIENT_RANKINGS:
        raise MismatchError(f"--by {by} needs gradients. Leave --no-gradients out.")
    if not 0 < options.keep <= 1:
        raise MismatchError(f"--keep {options.keep} is no share. Give 0 to 1.")
    found, data = run_risk(
        _opening(options),
        options.data,
        _objective(options),
        by=by,
        gradients=not options.no_gradients,
        limit=options.limit,
        reference=options.reference,
        progress=not options.quiet,
    )
    say(risk_text(found))
    for place, reason in found.skipped[:10]:
        say(f"  skipped {place}: {reason}")
    if len(found.skipped) > 10:
        say(f"  … and {len(found.skipped) - 10} more, all in --json")
    if options.json is not None:
        say(f"numbers: {write_risk(options.json, found)}")
    if options.filtered is not None:
        dropped = len(found.pairs) - round(options.keep * len(found.pairs))
        kept = [pair.example_id for pair in found.pairs[dropped:]]
        write_rows(options.filtered, data, kept)
        say(f"{options.filtered}: {len(kept)} rows kept, {dropped} left out")
    return 0
