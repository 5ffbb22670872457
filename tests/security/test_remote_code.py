"""Code that lies in a checkpoint runs for those alone who ask for it in --model_args;
transformers' question, which a pipe could answer, is not asked."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from ldeval.cli import main
from ldeval.errors import CheckpointError
from ldeval.records import Checkpoint
from ldeval.scoring.generate import InitialSampler
from ldeval.scoring.known_answers import plain_logprob_sums
from ldeval.scoring.models import open_config, open_tokenizer, trusts_code
from ldeval.scoring.vllm_engine import ties_embeddings
from tests.tiny import save_run

ROOT = Path(__file__).parents[2]
CODE = """
from pathlib import Path
from transformers import PretrainedConfig, PreTrainedTokenizerFast
Path({marker!r}).touch()
class Cfg(PretrainedConfig):
    model_type = "evil"
class Tok(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("sound"), [1])


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "ran"


@pytest.fixture
def _yes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``yes y |``; what transformers copies of the code stays in this test."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 99))
    copies = str(tmp_path / "copied")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", copies)
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(params=["config", "tokenizer"])
def evil(
    request: pytest.FixtureRequest, sound: Path, tmp_path: Path, marker: Path
) -> Path:
    """base/ and run/checkpoint-1 whose configuration, or tokenizer, names code."""
    for name in ("base", "run/checkpoint-1"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for path in (sound / name).iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        (folder / "evilmod.py").write_text(CODE.format(marker=str(marker)))
        if request.param == "config":
            changes: dict[str, Any] = {
                "model_type": "evil",
                "auto_map": {"AutoConfig": "evilmod.Cfg"},
            }
        else:
            changes = {
                "tokenizer_class": "Tok",
                "auto_map": {"AutoTokenizer": [None, "evilmod.Tok"]},
            }
        file = "config.json" if request.param == "config" else "tokenizer_config.json"
        told = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**told, **changes}))
    return tmp_path


@pytest.mark.usefixtures("_yes")
def test_the_code_of_these_tests_runs_where_it_is_asked_for(
    evil: Path, marker: Path
) -> None:
    open_config(evil / "base", trust_remote_code=True)
    open_tokenizer(evil / "base", trust_remote_code=True)
    assert marker.exists()


@pytest.mark.usefixtures("_yes")
@pytest.mark.parametrize("evil", ["config"], indirect=True)
def test_transformers_asks_where_nothing_is_said(evil: Path, marker: Path) -> None:
    transformers.AutoConfig.from_pretrained(str(evil / "base"))
    assert marker.exists()


COMMANDS: dict[str, list[str]] = {
    "plan": [
        *("sweep", "{run}", "--base", "{base}", "--store", "{store}"),
        *("--model", "vllm", "--plan", "--plan-flops", "1T"),
    ],
    "plan_measured": [
        *("sweep", "{run}", "--base", "{base}", "--store", "{store}"),
        *("--plan", "--model_args", "device=cpu"),
    ],
    "sweep": [
        *("sweep", "{run}", "--store", "{store}", "--limit", "1", "1"),
        *("--model_args", "device=cpu"),
    ],
    "initial": ["probes", "initial", "--model", "{base}", "-o", "{out}.jsonl"],
    "predict": ["predict", "--model", "{base}", "--to", "{last}", "-o", "{out}"],
    "influence": ["influence", "--model", "{base}", "--data", "{pairs}", "-o", "{out}"],
    "risk": ["risk", "{pairs}", "--model", "{base}"],
}


@pytest.mark.usefixtures("_yes")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("evil", ["config"], indirect=True)
def test_a_command_runs_no_code_of_a_checkpoint(
    command: str, evil: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = evil / "pairs.jsonl"
    pairs.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    places = {
        "run": evil / "run",
        "base": evil / "base",
        "last": evil / "run" / "checkpoint-1",
        "store": evil / "store",
        "out": evil / "out",
        "pairs": pairs,
    }
    given = [part.format(**places) for part in COMMANDS[command]]
    assert main(["-q", *given]) != 0
    told = "".join(capsys.readouterr())
    assert "cannot be loaded" in told
    assert "Do you wish to run" not in told
    assert not marker.exists()


OPENED: dict[str, Callable[[str], Any]] = {
    "generating": lambda folder: InitialSampler(folder),
    "harness": lambda folder: InitialSampler(folder, model_args={"device": "cpu"}),
    "tied": lambda folder: ties_embeddings(folder),
    "known": lambda folder: plain_logprob_sums(Checkpoint(folder, 0), [([1, 2], 1, 2)]),
    "tokenizer": lambda folder: open_tokenizer(folder),
}


@pytest.mark.usefixtures("_yes")
@pytest.mark.parametrize("way", OPENED)
def test_no_way_to_open_a_checkpoint_runs_its_code(
    way: str, evil: Path, marker: Path
) -> None:
    with contextlib.suppress(CheckpointError):  # a tokenizer may do without its class
        OPENED[way](str(evil / "base"))
    assert not marker.exists()


def test_what_the_user_asked_for_is_passed_on() -> None:
    assert trusts_code({"trust_remote_code": True})
    assert not trusts_code({"trust_remote_code": False})
    assert not trusts_code({})


@pytest.mark.parametrize("room", ["ldeval", "examples", "scripts"])
def test_every_call_that_loads_says_whether_code_may_run(room: str) -> None:
    unsaid = []
    for path in sorted((ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(
                node.func, ast.Attribute
            ):
                continue
            if node.func.attr not in ("from_pretrained", "from_config"):
                continue
            # PEFT runs none of an adapter's code, and takes no such argument
            if ast.unparse(node.func.value).startswith("Peft"):
                continue
            if not any(word.arg == "trust_remote_code" for word in node.keywords):
                unsaid.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not unsaid
