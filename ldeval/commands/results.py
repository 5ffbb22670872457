"""The commands on stored scores: diff, report, compare, import."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldeval.commands import add_command, local_path, store_place, whole_number
from ldeval.commands.output import complain, say
from ldeval.errors import CheckpointError, MismatchError
from ldeval.files import write_whole
from ldeval.records import OBJECTIVES, VERDICT_NAMES

if TYPE_CHECKING:
    from ldeval.records import ScoreTable, Split


def add_results_commands(commands: Any) -> None:
    """Add every command of this module to the command line."""
    _diff_command(commands)
    _report_command(commands)
    _compare_command(commands)
    _import_commands(commands)


# ----------------------------------------------------------------------- diff, report


def _diff_command(commands: Any) -> None:
    command = add_command(commands, "diff", _diff, "what changed between checkpoints")
    command.add_argument(
        "run",
        type=store_place,
        nargs="+",
        help="STORE/RUN; or two --output_path folders of plain lm_eval runs",
    )
    command.add_argument(
        "--json", type=local_path, metavar="FILE", help="write everything"
    )
    command.add_argument(
        "--report", type=local_path, metavar="DIR", help="write a report"
    )
    command.add_argument(
        "--allow-mixed", action="store_true", help="backends or dtypes may differ"
    )
    command.add_argument(
        "--fail-on",
        action="append",
        choices=VERDICT_NAMES,
        default=[],
        help="exit 1 where this verdict holds on trained probes",
    )


def _diff(options: argparse.Namespace) -> int:
    from ldeval.report import PageRun, dumps, print_summary, write_report

    comparison = _comparison(options.run, options.allow_mixed)
    say(print_summary(comparison))
    if options.json is not None:
        write_whole(options.json, dumps(comparison))
    if options.report is not None:
        alone = len(options.run) == 1
        page = _page(options.run[0], comparison) if alone else PageRun(comparison)
        path = write_report(
            [comparison], options.report, title=comparison.run, pages=[page]
        )
        say(f"report: {path}")
    held = [
        verdict.name
        for verdict in comparison.verdicts
        if verdict.state == "holds"
        and verdict.split == "trained"
        and verdict.name in options.fail_on
    ]
    if held:
        complain(f"ldeval: --fail-on: {', '.join(held)} holds")
    return 1 if held else 0


def _comparison(paths: Sequence[Path], allow_mixed: bool) -> Any:
    """Compare a stored run, or two folders of plain harness runs."""
    import ldeval
    from ldeval.compare import compare_run
    from ldeval.harness import read_output
    from ldeval.scoring.tables import as_reference, attach_reference, reference_ids

    if len(paths) == 1:
        return ldeval.diff(paths[0], allow_mixed=allow_mixed)
    if len(paths) != 2:
        raise MismatchError(
            f"{len(paths)} folders were given. Give one STORE/RUN, or the two "
            "--output_path folders of two lm_eval runs."
        )
    name = f"{paths[0].name} to {paths[1].name}"
    before = as_reference(read_output(paths[0], run=name, step=0))
    after = read_output(paths[1], run=name, step=1)
    after = attach_reference(after, reference_ids(before), 0)
    return compare_run([before, after], run=name, allow_mixed=allow_mixed)


def _report_command(commands: Any) -> None:
    command = add_command(
        commands, "report", _report, "write a report of one or more runs"
    )
    command.add_argument("runs", type=store_place, nargs="+", metavar="STORE/RUN")
    command.add_argument(
        "-o",
        "--output",
        type=local_path,
        metavar="DIR",
        help="the page and all other files",
    )
    command.add_argument(
        "--html",
        type=local_path,
        metavar="FILE",
        help="the page: one file, opens offline",
    )
    command.add_argument(
        "--probes",
        type=local_path,
        metavar="FILE",
        help="the probes that were scored, to show their texts (default: those that "
        "the sweep kept, or the bundled ones)",
    )
    command.add_argument(
        "--tokenizer",
        type=local_path,
        metavar="PATH",
        help="a tokenizer.json or its folder, to spell tokens (default: the one that "
        "the sweep kept, or the checkpoints')",
    )
    command.add_argument(
        "--dynamics",
        type=local_path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders that 'ldeval predict', 'influence' and 'risk --json' wrote: "
        "first order beside what happened",
    )
    command.add_argument("--title", default="What training did")
    command.add_argument("--allow-mixed", action="store_true")


def _report(options: argparse.Namespace) -> int:
    import ldeval
    from ldeval.report import print_summary, write_page, write_report

    if options.output is None and options.html is None:
        raise MismatchError(
            "nothing to write: name a folder with -o DIR, or a file with --html FILE"
        )
    comparisons = [
        ldeval.diff(run, allow_mixed=options.allow_mixed) for run in options.runs
    ]
    pages = [
        _page(run, comparison, options.probes, options.tokenizer)
        for run, comparison in zip(options.runs, comparisons, strict=True)
    ]
    pages = _joined(pages, options.dynamics)
    for comparison in comparisons:
        say(print_summary(comparison))
    if options.html is not None:
        write_page(pages, options.html, title=options.title)
        say(f"page: {options.html}")
    if options.output is not None:
        path = write_report(
            comparisons, options.output, title=options.title, pages=pages
        )
        say(f"page: {path.with_suffix('.html')}\nreport: {path}")
    return 0


def _page(
    run: Path,
    comparison: Any,
    probes: Path | None = None,
    tokenizer: Path | None = None,
) -> Any:
    """What a page shows of a run: its single prompts too, where it was scored."""
    from dataclasses import replace

    from ldeval.imported import is_imported
    from ldeval.report import PageRun
    from ldeval.report.page.scores import COLUMNS
    from ldeval.store import open_run
    from ldeval.texts import find_texts

    if is_imported(run):
        return PageRun(comparison)
    tables = open_run(run)
    texts = find_texts(run, tables, probes=probes, tokenizer=tokenizer)
    return PageRun(
        comparison,
        [replace(table, columns=COLUMNS) for table in tables],
        None if texts.probes is None else texts.probes.probes,
        _pieces(texts.tokenizer, named=tokenizer is not None),
        pieces_named=tokenizer is not None,
    )


def _pieces(place: Path | None, *, named: bool) -> Any:
    """What tokens spell; None where no tokenizer tells.

    Raises:
        CheckpointError: one that was named cannot be read; a store's own costs no page.
    """
    from ldeval.report import read_pieces

    try:
        return None if place is None else read_pieces(place)
    except CheckpointError as error:
        if named:
            raise
        complain(str(error))
        return None


def _joined(pages: Sequence[Any], places: Sequence[Path]) -> list[Any]:
    """The pages with the results of first order that fit each.

    Raises:
        MismatchError: results fit none.
        StoreError: a folder holds none, or they are damaged.
    """
    from dataclasses import replace

    from ldeval.dynamics.results import read_results
    from ldeval.report import Beside, join_results

    found = [read_results(place) for place in places]
    beside = [Beside(page.comparison, page.probes) for page in pages]
    return [
        replace(page, dynamics=joined)
        for page, joined in zip(pages, join_results(found, beside), strict=True)
    ]


# ---------------------------------------------------------------------------- compare


def _compare_command(commands: Any) -> None:
    command = add_command(commands, "compare", _compare, "set one run against another")
    command.add_argument("run_a", type=store_place, metavar="STORE/RUN_A")
    command.add_argument("run_b", type=store_place, metavar="STORE/RUN_B")
    command.add_argument(
        "--at",
        choices=["steps", "examples", "tokens", "margin"],
        default="steps",
        help="set the runs side by side at equal optimizer steps, at equal examples "
        "or tokens trained on (where a record of them is in the store), or at equal "
        "margin gained (default: steps)",
    )
    command.add_argument(
        "--seeds-a",
        type=store_place,
        nargs="+",
        default=[],
        metavar="STORE/RUN",
        help="the same as RUN_A with other seeds: then runs are the unit",
    )
    command.add_argument(
        "--seeds-b", type=store_place, nargs="+", default=[], metavar="STORE/RUN"
    )
    command.add_argument(
        "--json", type=local_path, metavar="FILE", help="write everything"
    )
    command.add_argument(
        "--figure",
        type=local_path,
        metavar="FILE",
        help="the stitched figure, PNG or SVG",
    )
    command.add_argument(
        "--after",
        type=store_place,
        nargs=2,
        metavar=("RUN_A", "RUN_B"),
        help="with --figure: the stages that came before (SFT before DPO)",
    )
    command.add_argument("--allow-mixed", action="store_true")


def _opened(run: Path) -> Any:
    from ldeval.compare.versus import RunInput
    from ldeval.imported import is_imported
    from ldeval.store import open_run, read_trained_counts, read_trained_tokens

    if is_imported(run):
        raise MismatchError(
            f"{run}: is an import of means, whose prompts cannot be paired. Compare "
            "runs that were scored; 'ldeval diff' reads each import by itself."
        )
    return RunInput(
        run.name, open_run(run), read_trained_counts(run), read_trained_tokens(run)
    )


def _compare(options: argparse.Namespace) -> int:
    from ldeval.compare.versus import compare_runs
    from ldeval.report import dumps_versus, print_versus, write_stitched

    figure = options.figure
    if figure is not None and figure.suffix not in (".png", ".svg"):
        raise MismatchError(f"{figure}: figures are .png or .svg; name one.")
    sides = [
        [_opened(path) for path in (first, *more)]
        for first, more in (
            (options.run_a, options.seeds_a),
            (options.run_b, options.seeds_b),
        )
    ]
    found = compare_runs(*sides, at=options.at, allow_mixed=options.allow_mixed)
    say(print_versus(found))
    if options.json is not None:
        write_whole(options.json, dumps_versus(found))
    if options.figure is not None:
        import ldeval

        after = options.after or (None, None)
        stages = [
            [
                ldeval.diff(path, allow_mixed=options.allow_mixed)
                for path in (before, run)
                if path is not None
            ]
            for before, run in zip(after, (options.run_a, options.run_b), strict=True)
        ]
        write_stitched(stages, options.figure)
        say(f"figure: {options.figure}")
    return 0


# ----------------------------------------------------------------------------- import


def _import_commands(commands: Any) -> None:
    group = commands.add_parser("import", help="bring scores that other tools wrote")
    sub = group.add_subparsers(required=True, metavar="FORMAT")
    for name, handler, summary in (
        (
            "reference",
            _import_reference,
            "the paper authors' prob_train_metrics.json or logp_npy_all_*.npy",
        ),
        ("lm_eval", _import_lm_eval, "an --output_path folder of plain lm_eval"),
        ("trl", _import_trl, "a trainer_state.json, as context curves"),
    ):
        command = add_command(sub, name, handler, summary)
        command.add_argument("file", type=local_path)
        command.add_argument("--run", required=True, help="name in the store")
        command.add_argument("--store", type=store_place, required=True)
        if name == "lm_eval":
            command.add_argument(
                "--step",
                type=whole_number(),
                required=True,
                help="optimizer step of the model",
            )
        command.add_argument("--objective", choices=sorted(OBJECTIVES), default=None)
        if name == "reference":
            command.add_argument(
                "--every",
                type=whole_number(1),
                metavar="EXAMPLES",
                help="examples trained on between evaluations",
            )
            command.add_argument(
                "--heldout", action="store_true", help="its prompts are not trained on"
            )


def _import_reference(options: argparse.Namespace) -> int:
    from ldeval.integrations.reference import ImportOptions, import_reference_results

    split: Split | None = "heldout" if options.heldout else None
    named = ImportOptions(options.run, split, options.objective, options.every)
    return _write_import(import_reference_results(options.file, named), options.store)


def _import_trl(options: argparse.Namespace) -> int:
    from ldeval.integrations.reference import ImportOptions
    from ldeval.integrations.trl_log import import_trl_log

    named = ImportOptions(options.run, None, options.objective)
    return _write_import(import_trl_log(options.file, named), options.store)


def _write_import(levels: Any, store: Path) -> int:
    from ldeval.imported import write_levels
    from ldeval.lease import writing
    from ldeval.store import run_folder

    with writing(run_folder(store, levels.run)):
        folder = write_levels(store, levels)
    say(
        f"{folder}: {len(levels.steps)} {levels.step_unit}, "
        f"{sum(c.role == 'kind' for c in levels.columns)} kinds, {levels.split} probes"
    )
    for column in levels.columns:
        say(f"  {column.source} -> {column.name}")
    for note in levels.notes:
        say(f"note: {note}")
    say(f"next: ldeval diff {folder}")
    return 0


def _import_lm_eval(options: argparse.Namespace) -> int:
    import dataclasses

    from ldeval.harness import read_output
    from ldeval.lease import writing
    from ldeval.scoring.tables import as_reference, attach_reference, reference_ids
    from ldeval.store import list_steps, read_table, step_folder, write_table

    table = read_output(options.file, run=options.run, step=options.step)
    manifest = dataclasses.replace(table.manifest, objective=options.objective)
    table = dataclasses.replace(table, manifest=manifest)
    folder = step_folder(options.store, options.run, options.step)
    earlier = [s for s in list_steps(folder.parent) if s.complete]
    if earlier and earlier[0].step < options.step:
        first: ScoreTable = read_table(earlier[0].folder)
        table = attach_reference(table, reference_ids(first), first.manifest.step)
    else:
        table = as_reference(table)
    with writing(folder.parent):
        written = write_table(folder, table)
    say(
        f"{folder}: {written.n_responses} responses, {written.n_tokens} tokens, "
        f"{len(written.excluded)} left out"
    )
    return 0
