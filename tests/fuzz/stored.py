"""The files of ldeval's own: probe sets, tables, decodes, and the harness's samples.

Hashes that guard a file are made to fit, so that the decoding behind them is reached.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
from typing import Any

import numpy as np

from ldeval.decodes import decodes_place, read_decodes, write_decodes
from ldeval.probes.dataset import write_dataset
from ldeval.probes.probe_set import (
    parse_probe,
    probe_to_record,
    read_probes,
    write_probes,
)
from ldeval.records import GreedyDecodes, Manifest, ScoreTable
from ldeval.store import (
    RESPONSES,
    TOKENS,
    manifest_to_json,
    read_manifest,
    read_table,
    read_trained,
    read_trained_tokens,
    write_table,
)
from tests.fuzz.driving import Target, file_of, given, joined, json_lines, parted
from tests.fuzz.oracle import BrokenRule, alike, valid
from tests.test_decodes import made
from tests.test_store import table

# ------------------------------------------------------------------------- probe files

RECORDS: list[dict[str, Any]] = [
    {
        "probe_id": "rice",
        "prompt": "How do I cook rice?",
        "trained": True,
        "responses": {"chosen": "Rinse it …", "rejected": "Boil\tit", "initial": "é"},
        "meta": {"sources": {"chosen": "written"}, "n": [1, 2.5, None, True]},
    },
    {
        "probe_id": "tax",
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Tax?"},
        ],
        "trained": False,
        "responses": {"chosen": "Yes."},
    },
]


def _probe_seeds() -> list[bytes]:
    path = file_of("probe_seed/written.jsonl")
    write_probes(path, [parse_probe(record) for record in RECORDS])
    return [path.read_bytes(), json_lines(RECORDS), b"\n\n" + json_lines(RECORDS[:1])]


def _probes(data: bytes) -> bool:
    path = file_of("probes/probes.jsonl")
    path.write_bytes(data)
    found = given(path, lambda: read_probes(path))
    if found is None:
        return False
    valid(found.probes, tuple[type(found.probes[0]), ...])
    again = path.with_name("again.jsonl")
    write_probes(again, found.probes)
    alike(found.probes, read_probes(again).probes)
    return True


def _dataset_seeds() -> list[bytes]:
    folder = file_of("dataset_seed/folder")
    shutil.rmtree(folder, ignore_errors=True)
    write_dataset(folder, RECORDS, lambda: "card")
    return [path.read_bytes() for path in sorted(folder.glob("data/*.parquet"))]


def _dataset(data: bytes) -> bool:
    path = file_of("dataset/probes.parquet")
    path.write_bytes(data)
    found = given(path, lambda: read_probes(path))
    if found is None:
        return False
    valid(found.probes, tuple[type(found.probes[0]), ...])
    again = path.with_name("again")
    shutil.rmtree(again, ignore_errors=True)
    write_dataset(again, map(probe_to_record, found.probes), lambda: "card")
    alike(found.probes, read_probes(again).probes)
    return True


# --------------------------------------------------------------------------- the store


def _manifest_seeds() -> list[bytes]:
    bare = table(3).manifest
    folder = file_of("manifest_seed/step_000003")
    write_table(folder, table(3))
    return [
        json.dumps(manifest_to_json(bare)).encode(),
        (folder / "manifest.json").read_bytes(),
    ]


def _manifest(data: bytes) -> bool:
    path = file_of("manifest/manifest.json")
    path.write_bytes(data)
    found = given(path, lambda: read_manifest(path.parent))
    if found is None:
        return False
    valid(found, Manifest)
    path.write_text(json.dumps(manifest_to_json(found)), encoding="utf-8")
    alike(found, read_manifest(path.parent))
    return True


def _table_seeds() -> list[bytes]:
    seeds = []
    for full in (True, False):
        folder = file_of("table_seed/step_000000")
        write_table(folder, table(0, full=full))
        seeds.append(
            joined((folder / RESPONSES).read_bytes(), (folder / TOKENS).read_bytes())
        )
    return seeds


@functools.cache
def _table_manifest() -> dict[str, Any]:
    return manifest_to_json(table(0).manifest)


def _table(data: bytes) -> bool:
    path = file_of("table/step_000000/manifest.json")
    files = {}
    for name, content in zip((RESPONSES, TOKENS), parted(data), strict=True):
        (path.parent / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        files[name] = {"bytes": len(content), "sha256": digest}
    path.write_text(json.dumps(_table_manifest() | {"files": files}))
    found = given(path.parent, lambda: read_table(path.parent))
    if found is None:
        return False
    valid(found, ScoreTable)
    if (np.diff(found.offsets) < 0).any() or found.offsets[0] != 0:
        raise BrokenRule(f"offsets {found.offsets}")
    again = file_of("table/again/step_000000")
    write_table(again, found)
    back = read_table(again)
    alike(found, dataclasses.replace(back, manifest=found.manifest))
    return True


def _trained_seeds() -> list[bytes]:
    return [
        json_lines(
            [
                {"step": 1, "examples": ["rice", "tax"], "tokens": 431},
                {"step": 2, "examples": [], "tokens": 0},
                {"step": 2, "examples": ["é"], "tokens": 12},
            ]
        ),
        json_lines([{"step": 1, "examples": ["rice"]}]),
    ]


def _trained(data: bytes) -> bool:
    path = file_of("trained/trained.jsonl")
    path.write_bytes(data)
    found = given(path, lambda: read_trained(path.parent))
    tokens = given(path, lambda: read_trained_tokens(path.parent))
    if found is None:
        return False
    for step, examples in found.items():
        valid(step, int)
        valid(tuple(examples), tuple[str, ...])
    if tokens is not None:
        valid(tokens, dict[int, int])
    again = file_of("trained/again/trained.jsonl")
    kept = tokens or {}
    again.write_bytes(
        json_lines(
            [
                {"step": step, "examples": sorted(examples), "tokens": kept.get(step)}
                for step, examples in found.items()
            ]
        )
    )
    alike(found, read_trained(again.parent))
    return True


def _decodes_seeds() -> list[bytes]:
    small = dataclasses.replace(made(), decodes=made().decodes[:4])
    run = file_of("decodes_seed/run")
    return [write_decodes(run, small).read_bytes()]


def _decodes(data: bytes) -> bool:
    path = decodes_place(file_of("decodes/run"), 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    found = given(path, lambda: read_decodes(path))
    if found is None:
        return False
    valid(found, GreedyDecodes)
    again = file_of("decodes/again")
    # the step names the file: any that fits
    back = read_decodes(write_decodes(again, dataclasses.replace(found, step=1)))
    alike(found, dataclasses.replace(back, step=found.step))
    return True


# ------------------------------------------------------------------ the harness's files

_STAMP = "2026-01-01T00-00-00"


def _harness_seeds() -> list[bytes]:
    """Samples as lm_eval logs them: documents as given, answers as text."""
    answers = [
        {
            "backend": "hf",
            "tier": "native",
            "dtype": "float32",
            "vocab_size": 9,
            "versions": {"torch": "2"},
            "tokenizer_hash": "t",
            "template_hash": None,
            "span": "trl",
            "template_used": False,
            "merged": True,
            "context": "c0ffee",
            "logprob_sum": -3.5,
            "all_argmax": False,
            "token_ids": [1, 2],
            "logprobs": [-1.5, -2.0],
            "argmax_ids": [1, 3],
            "argmax_logprobs": [-1.5, -0.5],
            "ranks": [1, 4],
            "entropies": [0.5, float("nan")],
            "top_ids": [[1, 2], [3, 2]],
            "top_logprobs": [[-1.5, -2.0], [-0.5, -2.0]],
        },
        {"excluded": "no room"},
    ]
    samples = [
        {"doc_id": i, "doc": record, "resps": [[json.dumps(answer)]]}
        for i, (record, answer) in enumerate(zip(RECORDS, answers, strict=True))
    ]
    plain = {
        key: value
        for key, value in answers[0].items()
        if key not in ("entropies", "top_ids", "top_logprobs")
    }
    other = {"doc": RECORDS[0], "resps": [[json.dumps(plain)]]}
    absent = {"doc": RECORDS[1], "resps": [[json.dumps({"absent": True})]]}
    return [json_lines(samples), json_lines([other, absent])]


def _harness(data: bytes) -> bool:
    from ldeval.harness import read_output

    path = file_of(f"harness/samples_ldyn_chosen_{_STAMP}.jsonl")
    path.write_bytes(data)
    # where no file alone is at fault, the folder is named
    nothing = f"{path.parent}: no response"
    found = given(path, lambda: read_output(path.parent, run="r", step=0), nothing)
    if found is None:
        return False
    valid(found, ScoreTable)
    again = file_of("harness_again/step_000000")
    written = write_table(again, found)
    back = read_table(again)
    alike(dataclasses.replace(found, manifest=written), back)
    return True


def _results_seeds() -> list[bytes]:
    return [
        json.dumps({"config": {"model": "hf", "model_args": arguments}}).encode()
        for arguments in ("pretrained=gpt2,dtype=float32", {"pretrained": "gpt2"}, None)
    ]


def _results(data: bytes) -> bool:
    from ldeval.harness import read_output

    samples = file_of(f"results/samples_ldyn_chosen_{_STAMP}.jsonl")
    if not samples.exists():
        samples.write_bytes(_harness_seeds()[0])
    path = samples.with_name(f"results_{_STAMP}.json")
    path.write_bytes(data)
    found = given(path, lambda: read_output(path.parent, run="r", step=0))
    if found is not None:
        valid(found, ScoreTable)
    return found is not None


TARGETS = (
    Target("probes", "lines", _probe_seeds, _probes),
    Target("dataset", "parquet", _dataset_seeds, _dataset),
    Target("manifest", "json", _manifest_seeds, _manifest),
    Target("table", "two parquet", _table_seeds, _table),
    Target("trained", "lines", _trained_seeds, _trained),
    Target("decodes", "parquet", _decodes_seeds, _decodes),
    Target("harness", "lines", _harness_seeds, _harness),
    Target("results", "json", _results_seeds, _results),
)
