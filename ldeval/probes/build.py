"""Build a probe set from anyone's preference data, streaming.

Two passes: the source into a :class:`~ldeval.probes.corpus.Corpus` on disk, where it is
split and dealt; then probe by probe out of it. Everything random follows from the seed
and the prompt, so that the same source, seed and cache give the same bytes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ldeval.errors import ProbeError
from ldeval.files import named as written_to
from ldeval.files import temporary_folder
from ldeval.probes.assemble import Assembler, AssemblyTally, Extras
from ldeval.probes.corpus import Corpus, Entry, Intake
from ldeval.probes.examples import FieldMap, read_examples
from ldeval.probes.lengths import LengthBand
from ldeval.probes.perturb import SentencePool
from ldeval.probes.rephrase import Outcome, Rephraser, Tally
from ldeval.probes.sources import read_rows
from ldeval.probes.tokens import TokenCounter, token_counter
from ldeval.probes.written import read_sentences
from ldeval.records import KIND_NAMES, Probe, Response

INITIAL_CHUNK = 32
"""Probes whose ``initial`` is sampled in one call."""

Sampler = Callable[[Sequence[Probe]], Sequence[Probe]]
"""Adds ``initial`` to probes; lives in ``scoring``, since it needs a model."""


@dataclass(frozen=True)
class BuildSettings:
    """What decides the offline kinds, and which prompts there are."""

    source: str
    """File, folder, saved dataset or ``datasets`` name."""
    split: str = "train"
    heldout: str | None = None
    """Another source, whose prompts are held out; None draws them by seed."""
    heldout_split: str = "test"
    heldout_share: float = 0.1
    """Share of the conversations that are held out, without ``heldout``."""
    fields: FieldMap = field(default_factory=FieldMap)
    limits: tuple[int, int] | None = None
    """How many trained and held-out probes; None takes all."""
    sample: bool = False
    """Draw the limited probes over the whole source, instead of the first."""
    seed: int = 0
    max_chars: int = 20_000
    band: LengthBand | None = None
    tokenizer: str | None = None
    """Folder of the tokenizer that measures lengths; None counts words."""
    sentences: str | None = None
    """File of unconnected sentences, one a line, where no model writes them."""
    rule_format: bool = False


@dataclass
class BuildReport:
    """What a build did; whole when its probes have all been taken."""

    intake: Intake
    """Rows of the source."""
    heldout_intake: Intake
    """Rows of the held-out source."""
    assembly: AssemblyTally
    rephrased: Tally | None
    probes: dict[str, int] = field(default_factory=lambda: {"trained": 0, "heldout": 0})

    def to_record(self) -> dict[str, Any]:
        """Everything as JSON. What the cache saved is not in it: a rerun gives the
        same bytes."""
        record: dict[str, Any] = {
            "probes": self.probes,
            "source": _intake_record(self.intake),
            "heldout_source": _intake_record(self.heldout_intake),
            "kinds": {
                split: {k: self.assembly.kinds[split, k] for k in KIND_NAMES}
                for split in self.probes
            },
            "missing": _nested(self.assembly.missing.items()),
            "form_changed": _ordered(self.assembly.reformed),
            "trimmed": _ordered(self.assembly.trimmed),
        }
        if self.rephrased is not None:
            record["rephrased"] = {
                "answers": _ordered(self.rephrased.asked),
                "accepted": _ordered(self.rephrased.accepted),
                "rejected_answers": _nested(self.rephrased.rejected.items()),
                "left_out": _nested(self.rephrased.left_out.items()),
            }
        return record


def _intake_record(intake: Intake) -> dict[str, Any]:
    record = asdict(intake)
    record["reasons"] = dict(sorted(intake.reasons.items()))
    record["listed"] = dict(sorted(intake.listed.items()))
    return record


def _ordered(counts: dict[str, int]) -> dict[str, int]:
    return {kind: counts[kind] for kind in KIND_NAMES if counts.get(kind)}


def _nested(items: Iterable[tuple[tuple[str, str], int]]) -> dict[str, dict[str, int]]:
    """{kind: {reason: count}}, in the order of the kind table."""
    nested: dict[str, dict[str, int]] = {}
    for (kind, reason), count in sorted(
        items, key=lambda item: (KIND_NAMES.index(item[0][0]), item[0][1])
    ):
        nested.setdefault(kind, {})[reason] = count
    return nested


class Build:
    """One build: its probes, streamed, and its report."""

    def __init__(
        self,
        settings: BuildSettings,
        *,
        work: Path,
        rephraser: Rephraser | None = None,
        sampler: Sampler | None = None,
        status: Callable[[], str] | None = None,
        progress: bool = False,
    ) -> None:
        """Args:
        work: an existing folder for the corpus, which is about as large as the
            source; removed in the end.
        rephraser, sampler: where a model is to write some kinds.
        status: what the progress bar says beside its count.
        """
        self.settings = settings
        self._work = work
        self._rephraser = rephraser
        self._sampler = sampler
        self._status = status
        self._progress = progress
        self._counter = token_counter(settings.tokenizer)
        pool = None
        if settings.sentences is not None:
            sentences = read_sentences(Path(settings.sentences))
            pool = SentencePool(sentences, random.Random(f"{settings.seed}/sentences"))
        self._assembler = Assembler(
            settings.seed, self._counter, settings.band, pool, settings.rule_format
        )
        self.report = BuildReport(
            Intake(),
            Intake(),
            self._assembler.tally,
            None if rephraser is None else rephraser.tally,
        )

    def probes(self) -> Iterator[Probe]:
        """Every probe, in the order of the source; the held-out source comes last.

        Raises:
            ProbeError: when the source cannot be read or gives no trained prompt.
            EndpointError: when the rephrasing endpoint cannot be used.
            StoreError: when the corpus cannot be written.
        """
        counter: TokenCounter | None = None
        if self.settings.band is not None:
            counter = self._counter
        with (
            written_to(self._work),
            temporary_folder(self._work, ".ldeval-") as folder,
            Corpus(
                folder / "corpus.sqlite", seed=self.settings.seed, counter=counter
            ) as corpus,
        ):
            self._fill(corpus)
            corpus.deal(self.settings.band)
            for probe in self._assembled(corpus):
                self.report.probes[probe.split] += 1
                yield probe

    def _fill(self, corpus: Corpus) -> None:
        settings = self.settings
        trained, heldout = settings.limits or (None, None)
        limits: dict[bool, int | None] = {True: trained, False: heldout}
        while_reading = dict.fromkeys(limits) if settings.sample else limits
        spare = max((trained or 0) - (heldout or 0), 0)
        share = 0.0 if settings.heldout is not None else settings.heldout_share
        for source, split, part, intake in (
            (settings.source, settings.split, share, self.report.intake),
            (settings.heldout, settings.heldout_split, 1.0, self.report.heldout_intake),
        ):
            if source is None:
                continue
            rows = read_rows(source, split=split)
            named = f"Reading {Path(source).name}"
            corpus.fill(
                read_examples(
                    tqdm(rows, desc=named, disable=not self._progress, unit=" rows"),
                    fields=settings.fields,
                    max_chars=settings.max_chars,
                ),
                intake,
                heldout_share=part,
                limits=while_reading,
                spare=spare,
            )
        if settings.sample:
            corpus.sample(limits, self.report.intake)
        if not corpus.counts[True, True]:
            raise ProbeError(
                f"gives no trained prompt out of {self.report.intake.read} rows.",
                path=settings.source,
                remedy="Left out: "
                + (
                    ", ".join(
                        f"{count} because {reason}"
                        for reason, count in self.report.intake.reasons.items()
                    )
                    or "none; is it empty?"
                ),
            )

    def _assembled(self, corpus: Corpus) -> Iterator[Probe]:
        total = corpus.counts[True, True] + corpus.counts[False, True]
        stream = iter(self._rephrased(corpus))
        model = None
        if self._rephraser is not None:
            model = self._rephraser.endpoint.settings.model
        with tqdm(
            total=total, desc="Building", disable=not self._progress, unit=" probes"
        ) as bar:
            size = 1 if self._sampler is None else INITIAL_CHUNK
            while chunk := list(islice(stream, size)):
                initials = self._sampled([entry for entry, _ in chunk])
                for (entry, outcomes), initial in zip(chunk, initials, strict=True):
                    if self._status is not None:
                        bar.set_postfix_str(self._status(), refresh=False)
                    yield self._assembler.assemble(
                        entry, Extras(outcomes, model, initial), corpus
                    )
                    bar.update()

    def _rephrased(
        self, corpus: Corpus
    ) -> Iterator[tuple[Entry, dict[str, Outcome] | None]]:
        if self._rephraser is None:
            for entry in corpus.entries():
                yield entry, None
        else:
            yield from self._rephraser.stream(corpus.entries(), claim=corpus.claim)

    def _sampled(self, entries: Sequence[Entry]) -> Sequence[Probe | None]:
        if self._sampler is None:
            return [None] * len(entries)
        bare = [
            Probe(
                entry.probe_id,
                entry.example.prompt,
                {"chosen": Response("chosen", entry.example.chosen)},
                entry.trained,
            )
            for entry in entries
        ]
        return self._sampler(bare)
