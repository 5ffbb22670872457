"""The command line: parse, call, print. Nothing is decided here.

Exit status: 0 done; 1 done, but something is wrong that was listed (a broken
checkpoint, a verdict asked for with --fail-on); 2 could not be done; 141 the reader of
its output went away before it was done.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ldeval.bundled import bundled_probes, tasks_folder
from ldeval.commands import add_command as _add
from ldeval.commands import local_name, local_path, store_place, whole_number
from ldeval.commands.distributed import add_ray_options, ray_asked, sweep_with_ray
from ldeval.commands.dynamics import add_dynamics_commands
from ldeval.commands.output import (
    CleanParser,
    complain,
    flush_output,
    print_traceback,
    say,
)
from ldeval.commands.plan import add_plan_options, plan_asked, print_sweep_plan
from ldeval.commands.probes import add_probes_commands, check
from ldeval.commands.results import add_results_commands
from ldeval.commands.theory import add_theory_commands
from ldeval.commands.training import add_training_commands
from ldeval.errors import LdevalError, MismatchError
from ldeval.logs import start_logging
from ldeval.records import OBJECTIVES


def run(program: Callable[[], int] | None = None) -> NoReturn:
    """The program: :func:`main`, or a script that prints as it does, and out.

    Once vLLM has been loaded, threads of its libraries can abort the interpreter while
    it shuts down ("terminate called without an active exception"), which would turn a
    finished sweep into a failed one. Everything is on disk by then, so the process
    ends at once.
    """
    sys.excepthook = print_traceback
    try:
        status = (program or main)()
        try:
            flush_output()
        except LdevalError as error:
            complain(f"ldeval: error: {error}")
            status = 2
    except BrokenPipeError:
        # the reader, `head` say, went away; nothing is left to flush into its pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    sys.stderr.flush()
    if "vllm" in sys.modules:
        os._exit(status)
    sys.exit(status)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command."""
    options = parser().parse_args(arguments)
    keys = [getattr(options, "rephraser_key", "OPENAI_API_KEY")]
    start_logging(keys)
    if not options.quiet:
        logging.getLogger("ldeval").setLevel(logging.INFO)
    try:
        return int(options.handler(options))
    except LdevalError as error:
        complain(f"ldeval: error: {error}", keys)
        return 2
    except KeyboardInterrupt:
        complain("ldeval: interrupted; finished work is kept")
        return 130


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    root = CleanParser(
        prog="ldeval", description="See what fine-tuning does to a model's beliefs."
    )
    root.add_argument("-q", "--quiet", action="store_true", help="warnings only")
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    add_probes_commands(commands)
    _sweep_command(commands)
    add_results_commands(commands)
    add_dynamics_commands(commands)
    add_theory_commands(commands)
    add_training_commands(commands)
    command = _add(commands, "ls", _ls, "list the runs of a store and their steps")
    command.add_argument("store", type=store_place)
    command = _add(commands, "validate", _validate, "check a probe file or a store")
    command.add_argument("path", type=store_place)
    _add(commands, "tasks", _tasks, "print the tasks folder, for --include_path")
    _add(commands, "doctor", _doctor, "check the installation and name the cures")
    return root


# ------------------------------------------------------------------------------ sweep


def _sweep_command(commands: Any) -> None:
    command = _add(commands, "sweep", _sweep, "score every checkpoint of a run")
    command.add_argument(
        "run_dir", type=local_path, help="folder of checkpoint-N folders"
    )
    command.add_argument(
        "--then",
        type=local_path,
        action="append",
        default=[],
        metavar="RUN_DIR",
        help="a stage that started from what the one before ended with",
    )
    command.add_argument("--store", type=store_place, required=True)
    command.add_argument("--run", help="name in the store (default: the folder's)")
    command.add_argument("--probes", type=Path, help="default: the bundled set")
    command.add_argument(
        "--base", type=local_name, help="model before training, scored as step 0"
    )
    command.add_argument(
        "--initial-model",
        type=local_name,
        help="the model that 'initial' responses must come from, where the run's base "
        "is itself fine-tuned (default: --base)",
    )
    command.add_argument("--model", help="harness model type (default: hf)")
    command.add_argument(
        "--serve",
        action="store_true",
        help="start vLLM's server for this run and score through it (--model vllm)",
    )
    command.add_argument("--model_args", default="", help="as in lm_eval")
    command.add_argument("--apply_chat_template", action="store_true")
    command.add_argument("--system_instruction")
    command.add_argument("--span", choices=["trl", "no_end"], default="trl")
    command.add_argument(
        "--limit",
        type=whole_number(),
        nargs=2,
        metavar=("TRAINED", "HELDOUT"),
        default=None,
    )
    command.add_argument(
        "--greedy",
        type=whole_number(1),
        default=0,
        metavar="TOKENS",
        help="let every checkpoint continue each prompt greedily, for at most so many "
        "tokens, and score what the first checkpoint said (does it reach generation?)",
    )
    command.add_argument(
        "--objective",
        action="append",
        default=[],
        choices=sorted(OBJECTIVES),
        help="what the run was trained with; once for each stage",
    )
    command.add_argument(
        "--watch", action="store_true", help="score checkpoints as they appear"
    )
    add_ray_options(command)
    command.add_argument(
        "--idle",
        type=float,
        metavar="MINUTES",
        help="with --watch: end when no checkpoint has come for so long",
    )
    add_plan_options(command)


def _sweep(options: argparse.Namespace) -> int:
    from lm_eval.utils import simple_parse_args_string

    from ldeval.probes import read_probes
    from ldeval.sweep import SweepSettings, sweep_stages
    from ldeval.watch import watch

    probes = read_probes(options.probes or bundled_probes())
    if options.limit is not None:
        probes = probes.limited(*options.limit)
    settings = SweepSettings(
        probes=probes,
        store=options.store,
        run=options.run or options.run_dir.resolve().name,
        model=options.model or ("vllm" if options.serve else "hf"),
        serve=options.serve,
        model_args=simple_parse_args_string(options.model_args),
        span=options.span,
        apply_chat_template=options.apply_chat_template,
        system_instruction=options.system_instruction,
        initial_model=options.initial_model,
        base=options.base,
        greedy=options.greedy,
        progress=not options.quiet,
        objectives=tuple(options.objective),
    )
    on_ray = ray_asked(options)
    if options.idle is not None and not options.watch:
        raise MismatchError(
            "--idle says when --watch ends, and there is none. Add --watch, or leave "
            "--idle out."
        )
    if plan_asked(options):
        return print_sweep_plan([options.run_dir, *options.then], settings, options)
    if options.watch and on_ray:
        raise MismatchError(
            "--watch scores checkpoints as they come, and --ray a run that is there. "
            "Leave one out."
        )
    if options.watch and options.then:
        raise MismatchError(
            "--watch follows one run, and --then names another. Watch each by itself."
        )
    if options.watch:
        idle = None if options.idle is None else 60 * options.idle
        results = {settings.run: watch(options.run_dir, settings, idle=idle)}
    elif on_ray:
        results = sweep_with_ray([options.run_dir, *options.then], settings, options)
    else:
        results = sweep_stages([options.run_dir, *options.then], settings)
    for name, result in results.items():
        say(
            f"{options.store / name}: scored {len(result.scored)} checkpoints, kept "
            f"{len(result.kept)} finished ones, {len(result.broken)} broken"
        )
        for broken in result.broken:
            say(f"  step {broken.step}: {broken.reason}")
    return 1 if any(result.broken for result in results.values()) else 0


def _ls(options: argparse.Namespace) -> int:
    from ldeval.errors import StoreError
    from ldeval.store import list_runs, read_manifest

    runs = list_runs(options.store)
    for name, steps in runs.items():
        say(name)
        for item in steps:
            if not item.complete:
                say(f"  step {item.step:>6}  incomplete: the same sweep goes on here")
                continue
            try:
                manifest = read_manifest(item.folder)
            except StoreError as error:
                say(f"  step {item.step:>6}  unreadable: {error}")
                continue
            say(
                f"  step {item.step:>6}  {manifest.n_responses} responses, "
                f"{manifest.n_tokens} tokens, {manifest.backend} {manifest.dtype}, "
                f"excluded {len(manifest.excluded)}, {manifest.checkpoint}"
            )
    return 0


def _validate(options: argparse.Namespace) -> int:
    from ldeval.decodes import decode_files, read_decodes
    from ldeval.errors import StoreError
    from ldeval.store import list_runs, read_table

    if options.path.is_file() or list(options.path.glob("data/probes-*.parquet")):
        return check(options.path)
    faults = checked = 0
    for name, steps in list_runs(options.path).items():
        for item in steps:
            checked += 1
            try:
                read_table(item.folder)
            except StoreError as error:
                faults += 1
                say(f"{name} step {item.step}: {error}")
        for path in decode_files(steps[0].folder.parent):
            checked += 1
            try:
                read_decodes(path)
            except StoreError as error:
                faults += 1
                say(f"{name}, greedy decodes: {error}")
    say(f"{options.path}: {checked} tables checked, {faults} with faults")
    return 1 if faults else 0


# ----------------------------------------------------------------------- installation


def _tasks(options: argparse.Namespace) -> int:
    say(tasks_folder())
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from ldeval.doctor import findings

    faults = 0
    for finding in findings():
        faults += not finding.good
        say(f"{'ok  ' if finding.good else 'FIX '} {finding.text}")
    return 1 if faults else 0


if __name__ == "__main__":
    run()
