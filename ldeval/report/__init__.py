"""From a ``Comparison`` to what people read: the only room that rounds or words.

::

    report/
    ├── rounding.py        how numbers read
    ├── escape.py          text of others made safe to show
    ├── tables.py          tables as values; terminal and Markdown
    ├── words.py           sentences that follow from the numbers
    ├── columns.py         filled columns, from which tables are put together
    ├── change_tables.py   what changed, as tables
    ├── measure_tables.py  paths, laws, influence and claims, as tables
    ├── verdict_tables.py  verdicts and their evidence, in tables and words
    ├── provenance.py      what was left out, notes, manifests
    ├── summary.py         the short account for a terminal
    ├── palette.py         how each kind looks
    ├── canvas.py          the one door to matplotlib
    ├── curve_plot.py      log-probability against step
    ├── plots.py           changes, flow, influence
    ├── measure_plots.py   rich and poor, likeness to chosen
    ├── figure_plan.py     which figures a report has
    ├── dynamics_match.py  which results of first order are of which run
    ├── dynamics_json.py   the same results in JSON and CSV, bounded
    ├── dynamics_tables.py first order in tables, and in words where it breaks
    ├── dynamics_plots.py  predicted against measured; who moved what
    ├── dynamics_report.py first order as files of its own
    ├── theory_plots.py    residuals, squeeze panels, the 2-gram example
    ├── digits_plots.py    the digits experiment
    ├── theory_tables.py   the toys in numbers
    ├── plan_tables.py     what a sweep will take
    ├── markdown.py        the whole report as Markdown
    ├── page/              the whole report as one HTML file
    ├── templates/         shells, style sheets and scripts of the HTML files
    ├── versus_report.py   one run against another
    ├── json_report.py     JSON and CSV, unrounded
    └── writing.py         files, each whole or not at all

It takes comparisons, never paths of stores, and needs neither torch nor, without
figures, matplotlib.
"""

from __future__ import annotations

from ldeval.report.dynamics_match import Beside, Joined, join_results
from ldeval.report.json_report import dumps, report_json, to_csv, to_json
from ldeval.report.markdown import render_markdown
from ldeval.report.page import PageRun, read_pieces, render_page
from ldeval.report.summary import print_summary
from ldeval.report.versus_report import dumps_versus, print_versus, write_stitched
from ldeval.report.writing import write_page, write_report

__all__ = [
    "Beside",
    "Joined",
    "PageRun",
    "dumps",
    "dumps_versus",
    "join_results",
    "print_summary",
    "print_versus",
    "read_pieces",
    "render_markdown",
    "render_page",
    "report_json",
    "to_csv",
    "to_json",
    "write_page",
    "write_report",
    "write_stitched",
]
