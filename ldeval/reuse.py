"""Scores that a sweep need not compute: finished steps, and equal weights elsewhere.

Apart from the sweep, which asks here before it opens a model; nothing here scores.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ldeval.errors import IncompleteError, MismatchError, StoreError
from ldeval.printable import quoted
from ldeval.records import Checkpoint, Manifest
from ldeval.store import (
    StoredStep,
    StoredTable,
    list_runs,
    open_table,
    read_manifest,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """What scores are scores of: two with the same question have the same answer."""

    weights_hash: str
    probe_set_hash: str
    settings: Mapping[str, Any]

    def differs(self, manifest: Manifest) -> tuple[str, str, str] | None:
        """The first field in which stored scores answer another question, what they
        have and what is asked; of settings those that differ."""
        for name in ("weights_hash", "probe_set_hash"):
            there, asked = getattr(manifest, name), getattr(self, name)
            if there != asked:
                return name, there, asked
        held, wanted = manifest.settings, self.settings
        if held == wanted:
            return None
        return "settings", _differing(held, wanted), _differing(wanted, held)


def is_finished(folder: Path, question: Question) -> bool:
    """Whether a step is stored already.

    Raises:
        MismatchError: when other scores lie there.
    """
    try:
        manifest = read_manifest(folder)
    except IncompleteError:
        return False
    found = question.differs(manifest)
    if found is not None:
        name, there, asked = found
        raise MismatchError(
            f"{folder} holds scores with {name} {there}, this sweep has {asked}. Ask "
            "for the same, use another --run or --store, or delete that folder."
        )
    return True


def _differing(own: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The settings that another has not, or has otherwise, as one text."""
    flat, others = _flat(own), _flat(other)
    names = [name for name in {**flat, **others} if flat.get(name) != others.get(name)]
    return ", ".join(f"{name}={quoted(flat.get(name))}" for name in names)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, with arguments of the model beside the others."""
    arguments = settings.get("model_args")
    if not isinstance(arguments, Mapping):  # in a manifest of somebody else
        return dict(settings)
    return {
        **{name: value for name, value in settings.items() if name != "model_args"},
        **{f"model_args.{name}": value for name, value in arguments.items()},
    }


def from_another_run(
    store: Path,
    run: str,
    question: Question,
    checkpoint: Checkpoint,
    objective: str | None,
) -> StoredTable | None:
    """The same weights scored on the same probes under another run's name, as where
    DPO starts from a checkpoint of SFT; to be read part by part.

    Args:
        run: the run that they are wanted for.
        objective: of that run.
    """
    for name, item in _other_steps(store, run):
        try:
            if question.differs(read_manifest(item.folder)) is not None:
                continue
            table = open_table(item.folder)
        except StoreError as error:
            log.warning("not looked into: %s", error)
            continue
        log.info("%s: same weights as %s", checkpoint.path, item.folder)
        note = f"the same weights were scored as {name} step {item.step}"
        renamed = replace(
            table.manifest,
            run=run,
            objective=objective,
            step=checkpoint.step,
            checkpoint=checkpoint.path,
            notes=(*table.manifest.notes, note),
        )
        return replace(table, manifest=renamed)
    return None


def _other_steps(store: Path, run: str) -> Iterator[tuple[str, StoredStep]]:
    """(run, step) of every complete step of the other runs in a store."""
    try:
        runs = list_runs(store)
    except StoreError:
        return  # no store yet, or nothing in it
    for name, steps in runs.items():
        if name != run:
            yield from ((name, item) for item in steps if item.complete)
