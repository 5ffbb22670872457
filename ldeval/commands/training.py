"""The command on what a finished run trained on: trained."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ldeval.commands import add_command
from ldeval.commands.output import say
from ldeval.errors import TrainedRecordError
from ldeval.files import lenient_json


def add_training_commands(commands: Any) -> None:
    """Add the command of this module to the command line."""
    command = add_command(
        commands,
        "trained",
        _trained,
        "compute again which examples each step of a finished run trained on",
    )
    command.add_argument("run_dir", type=Path, help="folder of checkpoint-N folders")
    command.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="FILE",
        help="the training data as JSON Lines, as the trainer kept it",
    )
    command.add_argument(
        "--id-field", default="probe_id", help="its field of ids (default: probe_id)"
    )
    command.add_argument(
        "--batch", type=int, help="examples in a batch (default: the run's own record)"
    )
    command.add_argument(
        "--accumulation", type=int, default=1, help="batches in a step (default: 1)"
    )
    command.add_argument(
        "--seed",
        type=int,
        default=42,
        help="data_seed where it was set, otherwise seed (default: 42, the trainer's)",
    )
    command.add_argument(
        "--sequential", action="store_true", help="the data were not shuffled"
    )
    command.add_argument(
        "--drop-last", action="store_true", help="an epoch's last batch was dropped"
    )


def _trained(options: argparse.Namespace) -> int:
    from ldeval.integrations.order import (
        OrderSettings,
        recompute_examples,
        recorded_batch,
    )

    settings = OrderSettings(
        batch=options.batch or recorded_batch(options.run_dir),
        accumulation=options.accumulation,
        seed=options.seed,
        shuffled=not options.sequential,
        drop_last=options.drop_last,
    )
    ids = _ids(options.data, options.id_field)
    target = options.run_dir / "trained.jsonl"
    if target.exists():
        raise TrainedRecordError(
            f"{target} is there already, recorded or computed before. Delete it to "
            "compute it anew."
        )
    steps = recompute_examples(options.run_dir, ids, settings)
    say(
        f"{target}: {len(steps)} steps over {len(ids)} examples, taken "
        f"{'in order' if options.sequential else f'by seed {options.seed}'}. Taken as "
        "given, since the run's files do not tell: one process, no row packed, dropped "
        "by the trainer or grouped by length, no dataloader_in_order=False and no "
        "ignore_data_skip"
    )
    return 0


def _ids(path: Path, field: str) -> list[str]:
    """One a row.

    Raises:
        TrainedRecordError: naming the line.
    """
    found = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TrainedRecordError(f"{path}: cannot be read ({error})") from error
    for number, line in enumerate(lines, 1):
        try:
            found.append(str(lenient_json(line)[field]))
        except (ValueError, KeyError, TypeError) as error:
            raise TrainedRecordError(
                f"{path}:{number}: no field {field!r} ({error}). Name the field of ids "
                "with --id-field."
            ) from error
    return found
