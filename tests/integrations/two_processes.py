"""Run by torchrun in two processes: DPO with probes and without; not a test itself."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch

from ldeval import ProbeCallback, record_examples
from ldeval.integrations.live_run import LiveRun
from tests.training import IDS, examples, losses, short_probes, trainer

SETTINGS: dict[str, Any] = {"max_steps": 4, "save_steps": 2, "ddp_backend": "gloo"}


def callback(store: Path, **changes: Any) -> ProbeCallback:
    """A few probes, every two steps."""
    return ProbeCallback(
        short_probes(),
        store,
        every=2,
        limit=(3, 1),
        apply_chat_template=True,
        **changes,
    )


def holding(self: LiveRun) -> Any:
    """As if squeezing held."""
    found = COMPARE(self)
    if found is None:
        return None
    verdicts = tuple(dataclasses.replace(v, state="holds") for v in found.verdicts)
    return dataclasses.replace(found, verdicts=verdicts)


COMPARE = LiveRun.compare


def main() -> None:
    """Train three times; the main process writes what was found."""
    model, folder = Path(sys.argv[1]), Path(sys.argv[2])
    data = examples(short_probes(), "dpo")
    found: dict[str, Any] = {}
    plain = trainer(model, folder / "without", data, **SETTINGS)
    plain.train()
    found["without"] = losses(plain)
    probing = callback(folder / "store")
    probed = trainer(model, folder / "with", data, callbacks=[probing], **SETTINGS)
    record_examples(probed, IDS)
    probed.train()
    found["with"] = losses(probed)
    found["scored"] = probing.scored
    LiveRun.compare = holding  # type: ignore[method-assign]
    stopping = callback(folder / "store", on_verdict={"squeezing": "stop"})
    stopped = trainer(model, folder / "stopped", data, callbacks=[stopping], **SETTINGS)
    stopped.train()
    steps: list[Any] = [None, None]
    torch.distributed.all_gather_object(steps, stopped.state.global_step)
    found["stopped_at"] = steps
    if plain.args.process_index == 0:
        (folder / "found.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
