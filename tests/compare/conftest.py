"""Synthetic runs with real softmax over a small vocabulary, so that flows are exact.

A :class:`World` holds the logits of every response; a checkpoint is a function that
changes them. Nothing here knows how ``ldeval.compare`` computes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from ldeval.records import KIND_NAMES, Manifest, ScoreTable, TokenScores

Logits = dict[tuple[str, str], np.ndarray]
Change = Callable[[str, str, np.ndarray, np.ndarray], np.ndarray]
"""From probe id, kind, logits [n, V] and labels [n] to new logits."""


@dataclass
class World:
    """Prompts, responses and logits of an imaginary model."""

    logits: Logits
    labels: dict[tuple[str, str], np.ndarray]
    texts: dict[tuple[str, str], str]
    trained: dict[str, bool]
    vocab: int

    @property
    def probes(self) -> list[str]:
        return list(self.trained)

    def changed(self, change: Change) -> World:
        """The world after a step of training."""
        logits = {
            (probe, kind): change(probe, kind, z, self.labels[probe, kind])
            for (probe, kind), z in self.logits.items()
        }
        return dataclasses.replace(self, logits=logits)

    def table(
        self,
        step: int,
        reference: World | None = None,
        top_k: int = 8,
        **manifest: Any,
    ) -> ScoreTable:
        """Score every response; ``reference`` names the first checkpoint's world."""
        reference = reference or self
        rows = list(self.logits)
        parts = [
            score(self.logits[row], self.labels[row], reference.logits[row], top_k)
            for row in rows
        ]
        tokens = TokenScores.concatenate(parts)
        lengths = [len(part) for part in parts]
        details = {"step": step, "reference_step": 0, "vocab_size": self.vocab}
        return ScoreTable(
            manifest=make_manifest(
                n_responses=len(rows), n_tokens=len(tokens), **(details | manifest)
            ),
            probe_ids=np.array([probe for probe, _ in rows]),
            kinds=np.array([kind for _, kind in rows]),
            trained=np.array([self.trained[probe] for probe, _ in rows]),
            text_hashes=np.array([self.texts[row] for row in rows]),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            tokens=tokens,
            logprob_sums=np.array([part.logprobs.sum() for part in parts]),
        )


def log_softmax(z: np.ndarray) -> np.ndarray:
    shifted = z - z.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def score(z: np.ndarray, labels: np.ndarray, ref: np.ndarray, k: int) -> TokenScores:
    logp, here = log_softmax(z), np.arange(len(labels))
    top = np.argsort(-logp, axis=1, kind="stable")[:, :k]
    of_ref = np.argsort(-log_softmax(ref), axis=1, kind="stable")[:, :k]
    p = np.exp(logp)
    return TokenScores(
        token_ids=labels.astype(np.int32),
        logprobs=logp[here, labels],
        argmax_ids=top[:, 0].astype(np.int32),
        argmax_logprobs=logp.max(axis=1),
        ranks=1 + (logp > logp[here, labels][:, None]).sum(axis=1),
        sq_norms=(p**2).sum(axis=1),
        entropies=-(p * logp).sum(axis=1),
        mean_logprobs=logp.mean(axis=1),
        top_ids=top.astype(np.int32),
        top_logprobs=np.take_along_axis(logp, top, axis=1),
        ref_ids=of_ref.astype(np.int32),
        ref_logprobs=np.take_along_axis(logp, of_ref, axis=1),
    )


def make_manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "run": "dpo",
        "step": 0,
        "checkpoint": "checkpoint",
        "weights_hash": "weights",
        "probe_set_hash": "probes",
        "tokenizer_hash": "tokenizer",
        "template_hash": None,
        "span": "trl",
        "backend": "hf",
        "tier": "native",
        "dtype": "float32",
        "vocab_size": 24,
        "versions": {},
        "n_probes": 0,
        "n_responses": 0,
        "n_tokens": 0,
    }
    return Manifest(**(fields | changes))


def make_world(
    trained: int = 24,
    heldout: int = 0,
    *,
    seed: int = 0,
    kinds: tuple[str, ...] = KIND_NAMES,
    vocab: int = 24,
    tokens: tuple[int, int] = (4, 9),
) -> World:
    """Random logits; labels are drawn from a flatter distribution than the model's, so
    that many positions are off-label."""
    rng = np.random.default_rng(seed)
    probes = {f"p{i:03d}": i < trained for i in range(trained + heldout)}
    logits, labels, texts = {}, {}, {}
    for probe in probes:
        for kind in kinds:
            n = int(rng.integers(*tokens))
            z = 2.0 * rng.standard_normal((n, vocab))
            flat = np.exp(log_softmax(0.5 * z))
            logits[probe, kind] = z
            labels[probe, kind] = np.array([rng.choice(vocab, p=p) for p in flat])
            texts[probe, kind] = f"{kind}/{probe}"
    world = World(logits, labels, texts, probes, vocab)
    return dataclasses.replace(world, texts=texts | irrelevant_texts(world))


def irrelevant_texts(world: World) -> dict[tuple[str, str], str]:
    """``irrelevant_train`` is the chosen text of the next trained probe."""
    trained = [probe for probe in world.probes if world.trained[probe]]
    ring = dict(zip(trained, trained[1:] + trained[:1], strict=True))
    return {
        (probe, kind): world.texts[ring[probe], "chosen"]
        for probe, kind in world.texts
        if kind == "irrelevant_train" and probe in ring
    }


def squeeze_step(z: np.ndarray, labels: np.ndarray, s: float) -> np.ndarray:
    """z + s(π − e_y): gradient ascent on the loss of each label."""
    pushed = z + s * np.exp(log_softmax(z))
    pushed[np.arange(len(labels)), labels] -= s
    return pushed


def lift(z: np.ndarray, labels: np.ndarray, amount: np.ndarray | float) -> np.ndarray:
    """Add to the labels' logits; a negative amount lowers them."""
    lifted = z.copy()
    lifted[np.arange(len(labels)), labels] += amount
    return lifted


def squeezed(seed: int = 1, strength: float = 2.0, chosen: float = -0.4) -> Change:
    """The squeezing effect: rejected pushed down by its gradient, the rest falling."""
    rng = np.random.default_rng(seed)

    def change(probe: str, kind: str, z: np.ndarray, y: np.ndarray) -> np.ndarray:
        noise = 0.05 * rng.standard_normal()
        if kind == "rejected":
            return squeeze_step(z, y, strength * (1 + noise))
        return lift(z, y, noise + (chosen if kind == "chosen" else -0.3))

    return change


def reordered(table: ScoreTable, order: np.ndarray) -> ScoreTable:
    """The same table with its rows in another order."""
    tokens = TokenScores.concatenate([table.row(int(i)) for i in order])
    return dataclasses.replace(
        table,
        probe_ids=table.probe_ids[order],
        kinds=table.kinds[order],
        trained=table.trained[order],
        text_hashes=table.text_hashes[order],
        offsets=np.concatenate([[0], np.cumsum(table.n_tokens[order])]),
        tokens=tokens,
        logprob_sums=table.logprob_sums[order],
    )


def without(table: ScoreTable, *columns: str) -> ScoreTable:
    """The same table without some token columns."""
    absent = dict.fromkeys(columns)
    tokens = dataclasses.replace(table.tokens, **absent)
    return dataclasses.replace(table, tokens=tokens)


def with_manifest(table: ScoreTable, **changes: Any) -> ScoreTable:
    manifest = dataclasses.replace(table.manifest, **changes)
    return dataclasses.replace(table, manifest=manifest)


@pytest.fixture(scope="session")
def small_pair() -> tuple[ScoreTable, ScoreTable]:
    """Two checkpoints of a squeezed run on 24 trained and 8 held-out probes."""
    before = make_world(24, 8)
    return before.table(0), before.changed(squeezed()).table(10, before)
