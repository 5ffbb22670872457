"""``ldeval theory``: the toys that show what the formula says, drawn and in numbers."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldeval.commands import add_command
from ldeval.commands.output import say
from ldeval.errors import TheoryError
from ldeval.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ldeval.report.tables import Table


def add_theory_commands(commands: Any) -> None:
    """Add ``theory`` and what is under it."""
    theory = commands.add_parser(
        "theory",
        help="draw the theory: residuals, squeezing, bigram, digits",
        description="Small worlds in which Δ ln π = −η A K G can be watched.",
    )
    parts = theory.add_subparsers(required=True, metavar="TOY")
    residuals = _toy(parts, "residuals", _residuals, "what each loss asks of logits")
    residuals.add_argument("--beta", type=float, default=0.1)
    residuals.add_argument(
        "--margin",
        type=float,
        default=0.0,
        metavar="NATS",
        help="how far training has parted chosen from rejected (default 0)",
    )
    squeezing = _toy(
        parts, "squeezing", _squeezing, "one step of logistic regression, panels A to E"
    )
    squeezing.add_argument("--seed", type=int, help="of the draws")
    bigram = _toy(
        parts, "bigram", _bigram, "ten words, responses of two: where probability goes"
    )
    bigram.add_argument("--steps", type=int, default=8)
    bigram.add_argument("--rate", type=float, default=0.3, help="η (default 0.3)")
    digits = _toy(
        parts, "digits", _digits, "A, K and G of a network that learns digits, exactly"
    )
    digits.add_argument(
        "--mnist",
        type=Path,
        metavar="PATH",
        help="mnist.npz, or a folder with MNIST's idx files (default: scikit-learn's "
        "digits)",
    )
    digits.add_argument("--epochs", type=int, default=40)
    digits.add_argument("--seed", type=int, default=0)


def _toy(parts: Any, name: str, handler: Any, summary: str) -> argparse.ArgumentParser:
    command = add_command(parts, name, handler, summary)
    several = name == "digits"
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR" if several else "FILE",
        help="folder for the figures" if several else "the figure, PNG or SVG",
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="write everything")
    return command


def _residuals(options: argparse.Namespace) -> int:
    from ldeval.dynamics.panels import prediction, residual_panels
    from ldeval.report.theory_plots import residuals_figure
    from ldeval.report.theory_tables import residuals_table

    if not 0 < options.beta < math.inf:
        raise TheoryError(f"--beta {options.beta:g}: it must be above 0.")
    if not math.isfinite(options.margin):
        raise TheoryError(f"--margin {options.margin:g}: it must be finite.")
    panels = residual_panels(options.beta, options.margin)
    return _finish(
        options,
        residuals_table(panels),
        {"panels": panels},
        lambda: residuals_figure(panels, prediction()),
    )


def _squeezing(options: argparse.Namespace) -> int:
    from ldeval.dynamics.panels import SEED, squeeze_panels
    from ldeval.report.theory_plots import squeeze_figure
    from ldeval.report.theory_tables import squeeze_table

    panels = squeeze_panels(SEED if options.seed is None else options.seed)
    return _finish(
        options,
        squeeze_table(panels),
        {"panels": panels},
        lambda: squeeze_figure(panels),
    )


def _bigram(options: argparse.Namespace) -> int:
    from ldeval.dynamics.bigram import study
    from ldeval.report.theory_plots import bigram_figure
    from ldeval.report.theory_tables import bigram_table

    found = study(steps=options.steps, rate=options.rate)
    return _finish(
        options, bigram_table(found), {"study": found}, lambda: bigram_figure(found)
    )


def _digits(options: argparse.Namespace) -> int:
    from ldeval.dynamics.digits import DigitsSettings, study
    from ldeval.dynamics.images import read_mnist, scikit_digits
    from ldeval.report.canvas import image
    from ldeval.report.digits_plots import figures
    from ldeval.report.theory_tables import digits_table

    images = scikit_digits() if options.mnist is None else read_mnist(options.mnist)
    settings = DigitsSettings(epochs=options.epochs, seed=options.seed)
    found = study(images, settings, progress=_progress(options))
    _report(options, digits_table(found), {"study": found})
    if options.output is not None:
        for name, figure in figures(found).items():
            path = options.output / f"{name}.png"
            write_whole(path, image(figure, "png"))
            say(f"figure: {path}")
    return 0


def _progress(
    options: argparse.Namespace,
) -> Callable[[Iterator[int]], Iterator[int]]:
    from tqdm import tqdm

    def shown(epochs: Iterator[int]) -> Iterator[int]:
        bar: Iterator[int] = tqdm(
            epochs, total=options.epochs, desc="epochs", disable=options.quiet
        )
        return bar

    return shown


def _finish(
    options: argparse.Namespace,
    table: Table,
    document: Mapping[str, Any],
    draw: Callable[[], Figure],
) -> int:
    from ldeval.report.canvas import image

    if options.output is not None and options.output.suffix not in (".png", ".svg"):
        raise TheoryError(f"{options.output}: figures are .png or .svg; name one.")
    _report(options, table, document)
    if options.output is not None:
        content = image(draw(), "svg" if options.output.suffix == ".svg" else "png")
        write_whole(options.output, content)
        say(f"figure: {options.output}")
    return 0


def _report(
    options: argparse.Namespace, table: Table, document: Mapping[str, Any]
) -> None:
    from ldeval.report.json_report import dumps, plain
    from ldeval.report.tables import to_terminal

    say(to_terminal(table).rstrip("\n"))
    if options.json is not None:
        write_whole(options.json, dumps(plain(document)))
        say(f"numbers: {options.json}")
