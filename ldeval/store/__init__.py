"""Scores on disk: whole, hash-checked, resumable.

::

    <store>/<run>/
        trained.jsonl           which examples each optimizer step trained on, if known
        probes.jsonl            the probes that were scored
        tokenizer.json          how their tokens are spelled, where there is one
        greedy/                 greedy decodes by step, if kept (:mod:`decodes`)
        step_000120/
            responses.parquet   one row a response: probe_id, kind, n_tokens, sums
            tokens.parquet      one row a token, in the order of the responses
            manifest.json       written last; its presence means complete

Each file is written whole (:mod:`files`); the manifest holds the size and SHA-256 of
the others, so that what is half-written or damaged is never read as scores. A store may
be at a URL: only the manifest's presence is relied on there, since object stores cannot
rename.

One subject a module: :mod:`layout`, :mod:`manifest`, :mod:`writing`, :mod:`reading`,
:mod:`trained`.
"""

from __future__ import annotations

from ldeval.store.layout import (
    MANIFEST,
    RESPONSES,
    TOKENS,
    TRAINED,
    StoredStep,
    list_runs,
    list_steps,
    run_folder,
    set_aside,
    step_folder,
)
from ldeval.store.manifest import manifest_from_json, manifest_to_json, read_manifest
from ldeval.store.reading import StoredTable, load_run, open_run, open_table, read_table
from ldeval.store.trained import (
    missing_steps,
    read_trained,
    read_trained_between,
    read_trained_counts,
    read_trained_tokens,
)
from ldeval.store.writing import write_parts, write_table

__all__ = [
    "MANIFEST",
    "RESPONSES",
    "TOKENS",
    "TRAINED",
    "StoredStep",
    "StoredTable",
    "list_runs",
    "list_steps",
    "load_run",
    "manifest_from_json",
    "manifest_to_json",
    "missing_steps",
    "open_run",
    "open_table",
    "read_manifest",
    "read_table",
    "read_trained",
    "read_trained_between",
    "read_trained_counts",
    "read_trained_tokens",
    "run_folder",
    "set_aside",
    "step_folder",
    "write_parts",
    "write_table",
]
