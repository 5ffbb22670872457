"""``ldeval probes``: check, show, import, export, sample; ``build`` stands apart."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from ldeval.bundled import bundled_probes
from ldeval.commands import add_command, keep_sources, whole_number
from ldeval.commands.build import add_build_command
from ldeval.commands.output import say
from ldeval.errors import ProbeError
from ldeval.files import write_whole
from ldeval.printable import visible_json


def add_probes_commands(commands: Any) -> None:
    """Add ``probes`` and its sub-commands."""
    group = commands.add_parser(
        "probes", help="build, check, show, import, export, sample probes"
    )
    sub = group.add_subparsers(required=True, metavar="COMMAND")
    add_build_command(sub)
    command = add_command(
        sub, "check", _check, "validate a probe file and look for confounds"
    )
    command.add_argument(
        "file",
        type=Path,
        nargs="?",
        help="probe file, dataset folder, or a file in the paper authors' format",
    )
    command.add_argument(
        "--html", type=Path, metavar="FILE", help="draw it as one page"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    command.add_argument(
        "--tokenizer", metavar="DIR", help="count its tokens, not words"
    )
    command.add_argument(
        "--strict", action="store_true", help="exit 1 where there are warnings"
    )
    command = add_command(sub, "show", _show, "print probes")
    command.add_argument("file", type=Path, nargs="?")
    command.add_argument("--id", help="only this probe")
    command.add_argument(
        "-n", type=whole_number(), default=1, help="how many (default 1)"
    )
    command = add_command(sub, "import", _import, "convert a probe file of others")
    command.add_argument("file", type=Path)
    command.add_argument("--format", choices=["reference"], required=True)
    command.add_argument("-o", "--output", type=Path, required=True)
    command.add_argument(
        "--heldout", action="store_true", help="its prompts are not trained on"
    )
    command = add_command(
        sub, "export", _export, "write a probe set as a Hugging Face dataset folder"
    )
    command.add_argument("file", type=Path, nargs="?")
    command.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    command = add_command(sub, "initial", _initial, "sample 'initial' responses anew")
    command.add_argument("file", type=Path, nargs="?")
    command.add_argument("--model", required=True, help="the model before training")
    command.add_argument("-o", "--output", type=Path, required=True)
    command.add_argument("--seed", type=int, default=0)


def check(
    path: Path | None,
    *,
    html: Path | None = None,
    numbers: Path | None = None,
    tokenizer: str | None = None,
    strict: bool = False,
) -> int:
    """Look a probe set over and print what was found."""
    from ldeval.probes.quality import check_probes
    from ldeval.report.probe_page import quality_html
    from ldeval.report.probe_tables import quality_json, quality_text

    report = check_probes(path or bundled_probes(), tokenizer=tokenizer)
    say(quality_text(report))
    for target, render in ((html, quality_html), (numbers, quality_json)):
        if target is not None:
            write_whole(target, render(report))
            say(f"wrote {target}")
    return 1 if strict and report.findings else 0


def _check(options: argparse.Namespace) -> int:
    return check(
        options.file,
        html=options.html,
        numbers=options.json,
        tokenizer=options.tokenizer,
        strict=options.strict,
    )


def _show(options: argparse.Namespace) -> int:
    from ldeval.probes import probe_to_record, read_probes

    probes = read_probes(options.file or bundled_probes())
    wanted = [p for p in probes if options.id in (None, p.probe_id)]
    if not wanted:
        raise ProbeError(
            f"no probe {options.id!r}.",
            path=probes.path,
            remedy=f"The first is {probes.probes[0].probe_id!r}.",
        )
    for probe in wanted[: options.n]:
        text = json.dumps(probe_to_record(probe), indent=2, ensure_ascii=False)
        say(visible_json(text))
    return 0


def _import(options: argparse.Namespace) -> int:
    from ldeval.probes import import_reference, write_probes

    keep_sources(options.output, options.file)
    probes, report = import_reference(options.file, trained=not options.heldout)
    write_probes(options.output, probes)
    say(f"{options.output}: {report.probes} probes")
    for title, items in (
        ("empty responses left out", report.empty),
        ("leading whitespace made that of chosen", report.respaced),
        ("permutations equal to chosen, kept", report.same_as_chosen),
    ):
        say(f"{title}: {len(items)}")
        for probe_id, kind in items[:10]:
            say(f"  {probe_id} {kind}")
        if len(items) > 10:
            say(f"  … and {len(items) - 10} more")
    say(f"fields not scored (chosen_selfr): {report.skipped_fields}")
    listed = options.output.with_name(options.output.name + ".repairs.json")
    write_whole(listed, json.dumps(dataclasses.asdict(report), indent=1))
    say(f"every repair: {listed}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from ldeval.probes import iter_probes
    from ldeval.report.probe_card import write_probe_dataset

    source = options.file or bundled_probes()
    count = write_probe_dataset(options.output, iter_probes(source))
    say(f"{options.output}: {count} probes")
    return 0


def _initial(options: argparse.Namespace) -> int:
    from ldeval.probes import read_probes, write_probes
    from ldeval.scoring.generate import sample_initial

    probes = read_probes(options.file or bundled_probes())
    sampled = sample_initial(probes, options.model, seed=options.seed)
    write_probes(options.output, sampled)
    missing = [p.probe_id for p in sampled if "initial" not in p.responses]
    say(f"{options.output}: {len(sampled) - len(missing)} sampled responses")
    if missing:
        say(f"only empty samples for: {', '.join(missing)}")
    return 0
