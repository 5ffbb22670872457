"""One output folder, one experiment: the settings that its results were made with.

What is there already is not made again. So that nothing goes on under other settings
than it began with, they stand in the folder, and a run that has others is refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from ldeval.checkpoints import weights_hash
from ldeval.files import strict_json, write_whole
from ldeval.probes import ProbeSet
from ldeval.scoring.encode import tokenizer_codec

SETTINGS = "settings.json"
RESULTS = ("runs", "store", "*_probes.jsonl")
"""What settings are written down for."""


def origin(model: str, probes: ProbeSet, named: str) -> dict[str, Any]:
    """What training starts from and on, by content: a folder that was moved, or other
    words for the same probes, change no result.

    Args:
        named: what the probes were taken from, for the reader.
    """
    codec = tokenizer_codec(
        AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    )
    return {
        "model": {"hash": weights_hash(model), "named": model},
        "tokenizer": codec.tokenizer_hash,
        "chat template": codec.template_hash,
        "probes": {"hash": probes.content_hash, "named": named},
    }


def hold_to(output: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings down where an output folder has no results yet; end the
    program where it has those of others, or of nobody knows which."""
    path = output / SETTINGS
    asked = json.loads(json.dumps(settings, default=str))
    results = [found.name for glob in RESULTS for found in output.glob(glob)]
    if not results:
        write_whole(path, json.dumps(asked, indent=1) + "\n")
        return
    remedy = f"Give another --output, or delete {output}."
    if not path.is_file():
        sys.exit(
            f"{output} holds {', '.join(sorted(results)[:3])} and no {SETTINGS} that "
            "says what they were made with, so that nothing can go on from them. "
            f"{remedy}"
        )
    try:
        held = dict(strict_json(path.read_bytes()))
    except (OSError, TypeError, ValueError) as error:
        sys.exit(f"{path}: cannot be read ({error}). {remedy}")
    others = [
        f"  {name}: {_said(held.get(name))} there, {_said(asked.get(name))} now"
        for name in {**held, **asked}
        if _value(held.get(name)) != _value(asked.get(name))
    ]
    if others:
        sys.exit(
            f"{output} holds results of other settings:\n"
            + "\n".join(others)
            + f"\n{remedy}"
        )


def _value(setting: Any) -> Any:
    """Of what is named too, the content; its name decides nothing."""
    return setting["hash"] if _is_named(setting) else setting


def _is_named(setting: Any) -> bool:
    return isinstance(setting, dict) and setting.keys() == {"hash", "named"}


def _said(setting: Any) -> str:
    if _is_named(setting):
        return f"{setting['named']} ({str(setting['hash'])[:12]}…)"
    return "none" if setting is None else json.dumps(setting)
