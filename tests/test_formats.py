"""JSON of others: one reader of it, which no text trips and no name slows down."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ldeval.checkpoints import find_checkpoints
from ldeval.commands.training import _ids
from ldeval.dynamics.journal import Journal
from ldeval.errors import CheckpointError, StoreError, TrainedRecordError
from ldeval.files import lenient_json
from ldeval.files.formats import _each_name_once
from ldeval.integrations.order import OrderSettings, recompute_examples
from ldeval.integrations.recorder import _lines
from ldeval.integrations.reference import ImportOptions
from ldeval.integrations.trl_log import import_trl_log
from ldeval.lease import LEASE, _holder, _token
from ldeval.plan.shapes import shape_of_config
from ldeval.report import read_pieces
from ldeval.scoring.vllm_engine import lora_rank
from ldeval.watch import _is_last

PACKAGE = Path(__file__).resolve().parent.parent / "ldeval"


class CountedName(str):
    """A name that counts how often one is compared with another."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        CountedName.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_a_name_that_stands_twice_is_found_without_comparing_all_with_all() -> None:
    pairs = [(CountedName(f"n{number}"), 0) for number in range(2000)]
    pairs.append((CountedName("n1999"), 0))
    CountedName.compared = 0
    with pytest.raises(ValueError, match="'n1999' stands twice"):
        _each_name_once(pairs)  # type: ignore[arg-type]  # names are texts
    assert CountedName.compared < 2 * len(pairs)


def test_lenient_json_takes_what_others_write_and_refuses_what_trips_python() -> None:
    assert math.isnan(lenient_json('{"a": NaN}')["a"])
    assert lenient_json(b'{"a": 1, "a": 2}') == {"a": 2}
    assert lenient_json('"\\ud800"') == "\ud800"
    for text in ("[" * 100_000, '{"a":' * 100_000):
        with pytest.raises(ValueError, match="nested too deeply"):
            lenient_json(text)
    for broken in ("", "{", b"\xff", "9" * 5000):
        with pytest.raises(ValueError):
            lenient_json(broken)


OWN_TEXT = {
    "files/formats.py": "the readers themselves",
    "dynamics/journal.py": "settings that were written by the same line",
    "harness.py": "an answer that this process made",
    "probes/corpus.py": "a database that this process made",
    "scoring/encode.py": "what a tokenizer in memory says of itself",
    "scoring/request.py": "settings that were written by the same function",
}
"""Modules that may call ``json`` on text that no other process wrote, and which."""


def _reads_json(path: Path) -> bool:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "json":
            return True
        if (
            isinstance(node, ast.Attribute)
            and node.attr in ("load", "loads")
            and isinstance(node.value, ast.Name)
            and node.value.id == "json"
        ):
            return True
    return False


def test_json_of_others_is_read_by_one_module_alone() -> None:
    readers = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if _reads_json(path)
    }
    assert readers == set(OWN_TEXT)


# --------------------------------------------------------- the readers of small records

DEEP = "[" * 100_000
DEEP_OBJECT = '{"a":' * 100_000


def _with(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def _trainers_state(folder: Path, content: str) -> Path:
    """A run of one checkpoint with such a ``trainer_state.json``."""
    save_file(
        {"a": np.zeros(1)}, _with(folder, "run/checkpoint-1/model.safetensors", "")
    )
    _with(folder, "run/checkpoint-1/config.json", "{}")
    _with(folder, "run/checkpoint-1/trainer_state.json", content)
    return folder / "run"


@pytest.mark.parametrize(
    "content",
    [
        DEEP,
        DEEP_OBJECT,
        '{"model": {"vocab": {"a": Infinity}}}',
        '{"model": {"vocab": [[]]}}',
        '{"model": {"vocab": {}}, "added_tokens": [{"id": 1e999, "content": "a"}]}',
    ],
)
def test_a_tokenizer_that_trips_a_reader_is_refused_by_name(
    tmp_path: Path, content: str
) -> None:
    _with(tmp_path, "tokenizer.json", content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer"):
        read_pieces(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        DEEP,
        DEEP_OBJECT,
        '{"log_history": [{"step": 1, "loss": 1' + "0" * 400 + "}]}",
    ],
)
def test_a_trainers_log_that_trips_a_reader_is_refused_by_name(
    tmp_path: Path, content: str
) -> None:
    path = _with(tmp_path, "trainer_state.json", content)
    with pytest.raises(StoreError, match=r"not a trainer_state\.json"):
        import_trl_log(path, ImportOptions("r"))


@pytest.mark.parametrize(
    "content",
    [DEEP, DEEP_OBJECT, '{"hidden_size": 1' + "0" * 400 + "}"],
)
def test_a_configuration_that_trips_a_reader_is_refused_by_name(
    tmp_path: Path, content: str
) -> None:
    path = _with(tmp_path, "config.json", content)
    with pytest.raises(CheckpointError, match=r"config\.json: "):
        shape_of_config(path)


@pytest.mark.parametrize(
    "content",
    [
        DEEP,
        '{"r": Infinity}',
        '{"r": 1, "rank_pattern": {"a": 1e999}}',
    ],
)
def test_an_adapters_rank_that_trips_a_reader_is_refused_by_name(
    tmp_path: Path, content: str
) -> None:
    _with(tmp_path, "adapter_config.json", content)
    with pytest.raises(CheckpointError, match="no LoRA rank can be read"):
        lora_rank(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        DEEP,
        DEEP_OBJECT,
        '{"settings": []}',
        '{"settings": {}}\n{"block": "a", "values": 3}',
    ],
)
def test_a_journal_that_trips_a_reader_is_refused_by_its_line(
    tmp_path: Path, line: str
) -> None:
    path = _with(tmp_path, "rows.jsonl", line + "\n")
    with pytest.raises(StoreError, match=r"rows\.jsonl:\d"), Journal(path, {}):
        pass


@pytest.mark.parametrize(
    "content", [DEEP, DEEP_OBJECT, "[]", "3", '{"max_steps": null}']
)
def test_a_state_that_is_none_ends_no_watch(tmp_path: Path, content: str) -> None:
    (found,) = find_checkpoints(_trainers_state(tmp_path, content))
    assert not _is_last(found)


def test_a_state_at_its_last_step_ends_a_watch(tmp_path: Path) -> None:
    state = '{"global_step": 1, "max_steps": 1, "best_metric": NaN}'
    (found,) = find_checkpoints(_trainers_state(tmp_path, state))
    assert _is_last(found)


@pytest.mark.parametrize(
    "content",
    [
        DEEP,
        DEEP_OBJECT,
        '{"global_step": 1, "log_history": [3]}',
        '{"global_step": 1, "log_history": null}',
        '{"global_step": 1, "epoch": 1, "log_history": [{"step": 1e999, "epoch": 1}]}',
    ],
)
def test_a_state_that_trips_a_reader_is_refused_before_an_order_is_told(
    tmp_path: Path, content: str
) -> None:
    run = _trainers_state(tmp_path, content)
    with pytest.raises(TrainedRecordError, match=r"trainer_state\.json"):
        recompute_examples(run, ["a", "b"], OrderSettings(batch=1))


@pytest.mark.parametrize("content", [DEEP, DEEP_OBJECT, "[]", "3"])
def test_the_sign_of_a_writer_that_trips_a_reader_names_nobody(
    tmp_path: Path, content: str
) -> None:
    path = _with(tmp_path, LEASE, content)
    assert _holder(path) == "another process"
    assert _token(path) is None


@pytest.mark.parametrize("content", [DEEP, DEEP_OBJECT, "3"])
def test_a_row_that_trips_a_reader_of_ids_is_refused_by_its_line(
    tmp_path: Path, content: str
) -> None:
    path = _with(tmp_path, "rows.jsonl", f'{{"id": "a"}}\n{content}\n')
    with pytest.raises(TrainedRecordError, match=r"rows\.jsonl:2: no field 'id'"):
        _ids(path, "id")
    path.write_bytes(b"\xff")
    with pytest.raises(TrainedRecordError, match=r"rows\.jsonl: cannot be read"):
        _ids(path, "id")


@pytest.mark.parametrize(
    "content",
    [DEEP, DEEP_OBJECT, '{"step": 1e999, "examples": [], "world": 1}'],
)
def test_a_record_of_examples_that_trips_a_reader_is_refused_by_its_line(
    tmp_path: Path, content: str
) -> None:
    path = _with(tmp_path, "rank_0.jsonl", content + "\n")
    with pytest.raises(TrainedRecordError, match=r"rank_0\.jsonl:1: not a record"):
        _lines(path)
