"""Tables of what the numbers rest on: what was left out, notes, and the manifests.

Everything here shows text of others (probe ids, folders, reasons) and counts; nothing
is judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ldeval.records import Comparison, Excluded, Manifest
from ldeval.report.rounding import count, number
from ldeval.report.tables import Column, Table

LISTED = 10
"""Responses named for each reason; the others are counted."""

_ID_LIMIT = 60
_HASH_SHOWN = 12


def excluded_table(comparison: Comparison) -> Table:
    """Responses that are in no statistic, counted by reason and listed."""
    found: dict[str, list[str]] = {}
    for item in _left_out(comparison):
        name = f"{_clip(item.probe_id)} ({item.kind})"
        names = found.setdefault(item.reason, [])
        if name not in names:
            names.append(name)
    rows = tuple(
        (reason, f"{len(names):,}", _listed(names))
        for reason, names in sorted(found.items(), key=lambda pair: -len(pair[1]))
    )
    return Table(
        "Responses left out",
        (Column("reason", "left"), Column("count"), Column("responses", "left")),
        rows,
        "Left out of every statistic; probe id and kind.",
    )


def _left_out(comparison: Comparison) -> Iterable[Excluded]:
    yield from comparison.excluded
    if comparison.greedy is not None:
        yield from comparison.greedy.excluded
    pair = comparison.overall
    for missing, there, absent in (
        (pair.only_before, pair.before, pair.after),
        (pair.only_after, pair.after, pair.before),
    ):
        reason = f"scored at step {there} but not at step {absent}"
        for probe_id, kind in missing:
            yield Excluded(probe_id, kind, reason)


def _clip(text: str) -> str:
    return text if len(text) <= _ID_LIMIT else text[: _ID_LIMIT - 1] + "…"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:LISTED])
    more = len(names) - LISTED
    return f"{shown} and {more:,} more" if more > 0 else shown


def notes_table(comparison: Comparison) -> Table:
    """Everything that a reader should know, from the comparison and the manifests."""
    rows = [("comparison", note) for note in comparison.notes]
    by_note: dict[str, list[int]] = {}
    for manifest in comparison.manifests:
        for note in manifest.notes:
            by_note.setdefault(note, []).append(manifest.step)
        if found := len(manifest.split_exceptions):
            note = f"tokens merged across the prompt's end in {count(found, 'probe')}"
            by_note.setdefault(note, []).append(manifest.step)
    rows += [(_steps(steps, comparison.steps), n) for n, steps in by_note.items()]
    return Table(
        "Notes", (Column("about", "left"), Column("note", "left")), tuple(rows)
    )


def _steps(steps: Sequence[int], every: Sequence[int]) -> str:
    if len(every) > 1 and set(steps) == set(every):
        return "every step"
    return ("step " if len(steps) == 1 else "steps ") + ", ".join(map(str, steps))


# ------------------------------------------------------------------------ manifests


def common_table(comparison: Comparison) -> Table:
    """Settings, one row each; where checkpoints differ, every value with its steps."""
    facts = [(m.step, dict(_facts(m))) for m in comparison.manifests]
    names = list(dict.fromkeys(name for _, values in facts for name in values))
    rows = []
    for name in names:
        steps: dict[str, list[int]] = {}
        for step, values in facts:
            steps.setdefault(values.get(name, "–"), []).append(step)
        text = "; ".join(
            value if len(steps) == 1 else f"{value} ({_steps(at, comparison.steps)})"
            for value, at in steps.items()
        )
        rows.append((name, text))
    return Table(
        "How the scores were had",
        (Column("setting", "left"), Column("value", "left")),
        tuple(rows),
    )


def _facts(manifest: Manifest) -> Iterable[tuple[str, str]]:
    yield "backend", f"{manifest.backend} ({_TIERS[manifest.tier]})"
    yield "dtype", manifest.dtype
    yield "stored dtype", manifest.stored_dtype or "unknown"
    yield "span", f"{manifest.span}: {_SPANS[manifest.span]}"
    used = manifest.template_hash
    yield "chat template", f"used ({_hash(used)})" if used else "not used (plain text)"
    yield "tokenizer", _hash(manifest.tokenizer_hash)
    yield "probe set", _hash(manifest.probe_set_hash)
    size = manifest.vocab_size
    yield "vocabulary", f"{size:,}" if size is not None else "unknown"
    reference = manifest.reference_step
    yield "reference step", "none" if reference is None else str(reference)
    for name, version in sorted(manifest.versions.items()):
        yield f"version of {name}", version


_TIERS = {
    "native": "scores of every token",
    "tokens": "scores of a response, on ldeval's token ids",
    "text": "scores of a response, by the harness's loglikelihood",
}
_SPANS = {
    "trl": "every response token and the end token, as TRL trains them",
    "no_end": "every response token without the end token",
    "lm_eval": "the harness's own continuation",
}


def _hash(text: str) -> str:
    return text[:_HASH_SHOWN]


def checkpoint_table(comparison: Comparison) -> Table:
    """The checkpoints: which weights, how much was scored, how long it took."""
    rows = tuple(
        (
            str(m.step),
            m.checkpoint,
            _hash(m.weights_hash),
            f"{m.n_probes:,}",
            f"{m.n_responses:,}",
            f"{m.n_tokens:,}",
            f"{len(m.excluded):,}",
            number(m.seconds, 1, signed=False),
        )
        for m in comparison.manifests
    )
    counts = ("probes", "responses", "tokens", "left out", "seconds")
    return Table(
        "Checkpoints",
        (
            Column("step"),
            Column("checkpoint", "left"),
            Column("weights", "left"),
            *(Column(name) for name in counts),
        ),
        rows,
        "weights: the first characters of their SHA-256; whole hashes are in the JSON.",
    )
