"""The whole report as GitHub Markdown: verdicts, sentences, figures, tables, sources.

It only arranges: tables come from their builders, sentences from ``words``, and every
text passes through ``escape`` on its way into the page.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence

from ldeval.records import SPLIT_NAMES, Comparison
from ldeval.report.change_tables import (
    change_table,
    distribution_table,
    flow_table,
    influence_table,
    margin_table,
    pairs_table,
    share_table,
)
from ldeval.report.dynamics_match import Joined
from ldeval.report.dynamics_tables import (
    breaking_sentence,
    influence_tables,
    prediction_tables,
    risk_table,
)
from ldeval.report.escape import for_markdown, visible
from ldeval.report.figure_plan import plan
from ldeval.report.greedy_tables import (
    greedy_sentence,
    greedy_table,
    moves_table,
)
from ldeval.report.measure_tables import (
    claim_table,
    law_table,
    leak_table,
    location_table,
    path_sentence,
    pull_table,
    richer_table,
    similarity_table,
    spill_table,
    threshold_table,
    trajectory_table,
)
from ldeval.report.provenance import (
    checkpoint_table,
    common_table,
    excluded_table,
    notes_table,
)
from ldeval.report.rounding import count
from ldeval.report.tables import Table, to_markdown
from ldeval.report.verdict_tables import (
    conjunct_table,
    verdict_sentences,
    verdict_table,
)
from ldeval.report.words import (
    SPLITS,
    split_sentences,
    standing_sentences,
)

HOW_TO_READ: tuple[tuple[str, str], ...] = (
    (
        "Change",
        "Δ is always after − before, in nats (natural logarithm, temperature 1). Δsum "
        "is the change of a response's summed log-probability, Δtok the sum of all "
        "Δsum over the sum of all tokens. Sums of kinds of different length cannot be "
        "compared; Δtok can. An undefined number reads – and its reason is listed.",
    ),
    (
        "Intervals",
        "They are taken over prompts (texts that repeat across prompts count once) and "
        "speak of this run. A direction is named only where the whole interval lies "
        "beyond the noise floor. A claim about a method needs several seeds.",
    ),
    (
        "Kinds",
        "chosen and rejected are the trained preference pair; _semantic and _format "
        "are rephrases that keep the meaning or the form; initial is a sample of the "
        "model before training; irrelevant_train and irrelevant_test answer another "
        "trained or an unseen prompt; random_sentence is unconnected; permuted and "
        "random_words are shuffled words.",
    ),
    (
        "Trained and held-out",
        "Trained probes are prompts that the run trains on, held-out probes are not. "
        "They are never pooled: on trained probes a change may be memorised text.",
    ),
    (
        "First, body, end",
        "The first token, the last one, and those between are shown apart, since a "
        "change can live in the first or the end token alone.",
    ),
    (
        "Argmax",
        "argmax:chosen is the model's most probable token at each position along "
        "chosen. The token may differ from one checkpoint to the next, and along a "
        "response that rises it rises with it, so it is shown and is never evidence. "
        "frozen:chosen follows the first checkpoint's argmax instead; it is biased "
        "down, since what was picked as the highest tends to come back.",
    ),
    (
        "Flow",
        "At the positions where the first checkpoint's argmax is not the response's "
        "own token (off-label), probability is kept in four bins fixed by that "
        "checkpoint: the label, its argmax, the rest of its top-k, and the tail. The "
        "changes of the four add up to zero. Net shares say, of what the label lost "
        "over all positions, how much each other bin got; where it gained, how much "
        "each paid.",
    ),
    (
        "Squeezing",
        "Pushing a response down that is already improbable takes probability from "
        "nearly everything and gives it to what is already most probable (Ren & "
        "Sutherland, ICLR 2025).",
    ),
    (
        "Verdicts",
        "Each is a conjunction of conditions, tested with 99% intervals. One false "
        "condition: it does not hold. All true: it holds. Otherwise it is undecided, "
        "and the report says why.",
    ),
)
"""One paragraph for every notion that the report uses."""


def render_markdown(
    comparisons: Comparison | Sequence[Comparison],
    figures: Mapping[str, str],
    *,
    title: str = "What training changed",
    remark: str | None = None,
    dynamics: Sequence[Sequence[Joined]] = (),
) -> str:
    """The report of one run, or of several stages in their order.

    Args:
        comparisons: One comparison, or several (SFT, then DPO).
        figures: Link of each figure by its key, as ``figure_plan.plan`` names them;
            an absent one is left out.
        title: The heading.
        remark: One sentence below the heading, such as what could not be drawn.
        dynamics: for each comparison, results of first order that fit it.
    """
    stages = [comparisons] if isinstance(comparisons, Comparison) else list(comparisons)
    parts = [f"# {for_markdown(title)}", *(_introduction(c) for c in stages)]
    if remark:
        parts.append(for_markdown(remark, starts_block=True))
    parts += _section("Verdicts", stages, _verdicts)
    parts += _section("What changed", stages, _sentences)
    parts += _figures(figures, stages)
    parts += _section("Tables", stages, _tables)
    parts += _first_order(stages, dynamics)
    parts += ["## How to read this", *_paragraphs(HOW_TO_READ)]
    parts += _section("What was left out", stages, _left_out)
    parts += _section("Where the numbers come from", stages, _sources)
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _introduction(comparison: Comparison) -> str:
    sizes = dict.fromkeys(SPLITS, 0)
    for change in comparison.overall.changes:
        sizes[change.split] = max(sizes[change.split], change.n)
    probes = " and ".join(f"{sizes[s]:,} {SPLIT_NAMES[s]}" for s in SPLITS)
    steps = comparison.steps
    return (
        f"**{for_markdown(comparison.run)}**: "
        f"{count(len(steps), 'checkpoint')} from step {steps[0]} to step {steps[-1]}, "
        f"{probes} prompts, {count(len(comparison.kinds), 'kind')} of response. "
        + for_markdown(" ".join(standing_sentences(comparison)))
    )


_Body = Callable[[Comparison, int], Iterable[str]]
"""Builds a section of one stage; the number is the level of its headings."""


def _section(heading: str, stages: Sequence[Comparison], body: _Body) -> list[str]:
    """One heading over all stages; each stage gets its own where there are several."""
    parts = [f"## {heading}"]
    for stage in stages:
        if len(stages) > 1:
            parts.append(f"### {for_markdown(stage.run)}")
        parts += body(stage, 4 if len(stages) > 1 else 3)
    return parts


def _verdicts(comparison: Comparison, heading: int) -> Iterable[str]:
    if not comparison.verdicts:
        yield "No verdict was asked for."
        return
    table = verdict_table(comparison)
    yield _body_of(to_markdown(table))
    yield _folded("In words", _bullets(verdict_sentences(comparison.verdicts)))
    yield from _filled([claim_table(comparison)], heading)


def _body_of(markdown: str) -> str:
    """The table without its own heading, where the section has the same."""
    return markdown.split("\n", 1)[1]


def _sentences(comparison: Comparison, heading: int) -> Iterable[str]:
    pair, floor = comparison.overall, comparison.noise_floor
    if not comparison.manifests:
        yield _bullets(map(path_sentence, comparison.trajectories))
        return
    for split in SPLITS:
        name = SPLIT_NAMES[split].capitalize()
        yield f"**{name} probes, step {pair.before} to step {pair.after}**"
        yield _bullets(split_sentences(pair, split, floor, comparison.flow_floor))


def _figures(figures: Mapping[str, str], stages: Sequence[Comparison]) -> list[str]:
    shown = [item for item in plan(stages) if item.key in figures]
    parts = ["## Figures"] if shown else []
    for item in shown:
        text = for_markdown(item.caption)
        drawn = f"![{text}]({figures[item.key]})\n\n*{text}*"
        parts.append(_folded(item.caption, drawn) if item.folded else drawn)
    return parts


def _tables(comparison: Comparison, heading: int) -> Iterable[str]:
    pair, floor = comparison.overall, comparison.noise_floor
    paths = [trajectory_table(comparison, split) for split in SPLITS]
    if not comparison.manifests:
        # an import of sums: its change table would be columns of dashes
        yield from _filled([*paths, margin_table(pair)], heading)
        evidence = [conjunct_table(comparison, split) for split in SPLITS]
        yield _folded(
            "Evidence of every verdict", "\n\n".join(_filled(evidence, heading))
        )
        return
    tables = [change_table(pair, split, floor) for split in SPLITS]
    yield from _filled([*tables, margin_table(pair), flow_table(pair)], heading)
    path = comparison.greedy
    if path is not None:
        said = [text for s in SPLITS if (text := greedy_sentence(path, s))]
        yield _bullets([*said, *path.notes])
        yield from _filled([*(greedy_table(path, s) for s in SPLITS)], heading)
        yield _folded(
            "Greedy decodes that fell most",
            "\n\n".join(_filled([moves_table(path)], heading)),
        )
    laws = [law_table, threshold_table, richer_table]
    crossed = [location_table, pull_table, spill_table, similarity_table]
    folded = {
        "Net shares of the label's mass": [share_table(pair)],
        "Paths through the run": paths,
        "Spread over prompts": [distribution_table(pair, s) for s in SPLITS],
        "Squeeze or temperature, rich and poor": [make(comparison) for make in laws],
        "Pull, location, spill-over, likeness": [
            *(make(cross) for cross in comparison.cross for make in crossed),
            leak_table(comparison),
        ],
        "How kinds moved together": [influence_table(pair, s) for s in SPLITS],
        "Successive checkpoints": [pairs_table(comparison, s) for s in SPLITS],
        "Evidence of every verdict": [conjunct_table(comparison, s) for s in SPLITS],
    }
    for summary, group in folded.items():
        if text := "\n\n".join(_filled(group, heading)):
            yield _folded(summary, text)


def _first_order(
    stages: Sequence[Comparison], dynamics: Sequence[Sequence[Joined]]
) -> list[str]:
    """Results of first order, stage by stage; nothing where there are none."""
    parts: list[str] = []
    for stage, found in zip(stages, dynamics or [()] * len(stages), strict=True):
        if found and len(stages) > 1:
            parts.append(f"### {for_markdown(stage.run)}")
        for joined in found:
            checked = "; ".join(joined.checked)
            parts.append(f"**{for_markdown(joined.name)}**: {for_markdown(checked)}.")
            parts += _results(joined, 4 if len(stages) > 1 else 3)
    return ["## First order", *parts] if parts else []


def _results(joined: Joined, heading: int) -> Iterable[str]:
    found = joined.results
    if found.prediction is not None:
        yield for_markdown(breaking_sentence(found.prediction))
        yield from _filled(prediction_tables(found.prediction), heading)
    if found.influence is not None:
        yield from _filled(influence_tables(found.influence), heading)
    if found.risk is not None:
        yield from _filled([risk_table(found.risk)], heading)


def _filled(tables: Iterable[Table], heading: int) -> Iterable[str]:
    return (to_markdown(t, heading=heading).strip() for t in tables if t.rows)


def _left_out(comparison: Comparison, heading: int) -> Iterable[str]:
    excluded = excluded_table(comparison)
    if excluded.rows:
        yield _body_of(to_markdown(excluded))
    else:
        yield "No response was left out."
    yield from _filled([notes_table(comparison)], heading)


def _sources(comparison: Comparison, heading: int) -> Iterable[str]:
    tables = [common_table(comparison), checkpoint_table(comparison)]
    yield from _filled(tables, heading)


def _paragraphs(entries: Iterable[tuple[str, str]]) -> list[str]:
    return [f"**{name}.** {for_markdown(text)}" for name, text in entries]


def _bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {for_markdown(s, starts_block=True)}" for s in sentences)


def _folded(summary: str, text: str) -> str:
    # inside an HTML line Markdown's backslashes would be shown: entities only
    shown = html.escape(visible(summary))
    return f"<details>\n<summary>{shown}</summary>\n\n{text}\n\n</details>"
