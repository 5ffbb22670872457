"""One model on one probe set, without a store."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldeval.checkpoints import (
    check_weights,
    describe_checkpoint,
    stored_dtype,
    weights_hash,
)
from ldeval.probes import ProbeSet
from ldeval.records import ScoreTable
from ldeval.scoring.models import RestartedModels
from ldeval.scoring.score import score_probes
from ldeval.scoring.tables import as_reference, build_table


def score_model(
    model: str,
    probes: ProbeSet,
    *,
    backend: str,
    model_args: Mapping[str, Any],
    apply_chat_template: bool = False,
) -> ScoreTable:
    """Score one model without a store.

    Raises:
        CheckpointError: when it cannot be loaded.
        ScoringError: when its scores cannot be trusted.
    """
    checkpoint = describe_checkpoint(model, 0)
    check_weights(checkpoint)
    source = RestartedModels(backend, model_args, base=None)
    try:
        started = time.monotonic()
        scored = score_probes(
            source.open(checkpoint),
            probes.probes,
            apply_chat_template=apply_chat_template,
        )
    finally:
        source.close()
    table = build_table(
        probes.probes,
        scored,
        run=Path(model).name,
        step=0,
        checkpoint=model,
        weights_hash=weights_hash(model),
        probe_set_hash=probes.content_hash,
        stored_dtype=stored_dtype(model),
        seconds=time.monotonic() - started,
    )
    return as_reference(table)
