"""A real ``vllm serve``: the numbers of a plain forward pass, by every way to it.

One server goes through full checkpoints for the whole module; a second one, started by
the command line, takes adapters.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldeval.bundled import bundled_probes
from ldeval.checkpoints import find_checkpoints
from ldeval.errors import CheckpointError, ScoringError, UnsupportedBackendError
from ldeval.harness import read_output
from ldeval.probes import ProbeSet, read_probes
from ldeval.records import Checkpoint, ScoreTable
from ldeval.scoring.known_answers import compare_known
from ldeval.scoring.score import encode_probes, score_probes, score_requests
from ldeval.scoring.server import (
    NAME,
    ServedVllm,
    VllmServer,
    server_arguments,
    server_environment,
)
from ldeval.scoring.sources import model_source
from ldeval.store import load_run
from ldeval.sweep import SweepSettings, sweep
from tests.scoring.conftest import open_hf, plain_logprobs
from tests.scoring.greedy_check import check_greedy
from tests.tiny import perturb

pytestmark = pytest.mark.vllm

TOLERANCE = 2e-4
"""Nats per token, float32."""
ENGINE = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 1024,
    "max_num_seqs": 32,
}
TEMPLATED: dict[str, Any] = {
    "span": "trl",
    "apply_chat_template": True,
    "system_instruction": None,
}


@pytest.fixture(scope="module", autouse=True)
def _environment() -> None:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")


@pytest.fixture(scope="module")
def penalised(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with generation settings that a server would go by."""
    folder = tmp_path_factory.mktemp("penalised") / "base"
    shutil.copytree(demo_model, folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    settings |= {"repetition_penalty": 1.8, "do_sample": True, "temperature": 0.7}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def source(penalised: Path) -> Iterator[ServedVllm]:
    served = ServedVllm(ENGINE, base=str(penalised))
    yield served
    served.close()


@pytest.fixture(scope="module")
def base(penalised: Path) -> Checkpoint:
    return Checkpoint(str(penalised), 0)


@pytest.fixture(scope="module")
def run(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two full checkpoints with moved weights, the second without a tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("served") / "run"
    model = AutoModelForCausalLM.from_pretrained(str(demo_model), dtype=torch.float32)
    for step in (10, 20):
        perturb(model, 0.003, step)
        model.save_pretrained(folder / f"checkpoint-{step}")
    tokenizer = AutoTokenizer.from_pretrained(str(demo_model))
    tokenizer.save_pretrained(folder / "checkpoint-10")
    return folder


@pytest.fixture(scope="module")
def adapters(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two LoRA adapters of different rank that change the model at random."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapted") / "adapters"
    for step, rank in ((10, 4), (20, 12)):
        model = AutoModelForCausalLM.from_pretrained(
            str(demo_model), dtype=torch.float32
        )
        torch.manual_seed(step)
        config = LoraConfig(
            r=rank, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"]
        )
        adapted = get_peft_model(model, config)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.02)
        adapted.save_pretrained(str(folder / f"checkpoint-{step}"))
    return folder


@pytest.fixture(scope="module")
def probes() -> ProbeSet:
    return read_probes(bundled_probes()).limited(1, 0)


def plain(model: Any, lm: Any, probes: ProbeSet) -> dict[Any, Any]:
    """By response: ln p over the vocabulary at its positions, and its tokens."""
    encoded = encode_probes(lm, probes.probes, **TEMPLATED)
    return {
        (r.probe_id, r.kind): (
            plain_logprobs(model.eval(), list(r.ids), r.start, r.stop),
            torch.tensor(r.ids[r.start : r.stop]),
        )
        for r in score_requests(encoded, None, {})
    }


def full_model(folder: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def adapted_model(base: str, folder: str) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(full_model(base), folder)


def worst_gap(table: ScoreTable, expected: dict[Any, Any]) -> float:
    """The largest difference of sums in nats per token; ids and top-k are compared."""
    assert set(table.index()) == set(expected)
    worst = 0.0
    for key, row in table.index().items():
        logprobs, labels = expected[key]
        label = logprobs.gather(1, labels[:, None])[:, 0]
        tokens = table.tokens.slice(*map(int, table.offsets[row : row + 2]))
        assert tokens.token_ids.tolist() == labels.tolist()
        assert tokens.top_logprobs is not None
        np.testing.assert_allclose(
            tokens.top_logprobs, logprobs.topk(20).values, atol=2e-3
        )
        gap = abs(float(table.logprob_sums[row]) - float(label.double().sum()))
        worst = max(worst, gap / len(labels))
    return worst


def test_swapped_checkpoints_agree_with_a_plain_forward_pass(
    source: ServedVllm, base: Checkpoint, run: Path, probes: ProbeSet
) -> None:
    moved = Checkpoint(str(run / "checkpoint-10"), 10)
    for checkpoint in (base, moved, base):
        lm = source.open(checkpoint)
        assert source.swapped
        scored = score_probes(
            lm, probes.probes, apply_chat_template=True, progress=False
        )
        assert scored.backend.name == "served"
        assert (scored.backend.dtype, scored.backend.vocab_size) == ("float32", 49152)
        assert {"vllm", "torch"} <= scored.backend.versions.keys()
        expected = plain(full_model(checkpoint.path), lm, probes)
        assert scored.scores.keys() == expected.keys()
        for key, (logprobs, labels) in expected.items():
            label = logprobs.gather(1, labels[:, None])[:, 0]
            score = scored.scores[key]
            assert score.token_ids == tuple(labels.tolist())
            gap = abs(score.logprob_sum - float(label.double().sum())) / len(labels)
            assert gap < TOLERANCE, (key, gap)


def test_greedy_decodes_are_those_of_a_plain_forward_pass(
    source: ServedVllm, base: Checkpoint, run: Path, probes: ProbeSet
) -> None:
    later = find_checkpoints(run)[0]
    first = check_greedy(source.open(base), base.path, probes.probes[:2])
    check_greedy(source.open(later), later.path, probes.probes[:2], first)


def test_ids_and_hashes_are_those_of_the_other_backends(
    source: ServedVllm, base: Checkpoint, probes: ProbeSet
) -> None:
    served, hf = source.open(base), open_hf(Path(base.path))
    for template in (False, True):
        options = {**TEMPLATED, "apply_chat_template": template}
        assert encode_probes(served, probes.probes, **options) == encode_probes(
            hf, probes.probes, **options
        )


def test_a_sweep_serves_full_checkpoints_from_one_server(
    source: ServedVllm,
    base: Checkpoint,
    run: Path,
    probes: ProbeSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source.open(base)
    server = source._server
    monkeypatch.setattr("ldeval.sweep.staged.model_source", lambda *_, **__: source)
    monkeypatch.setattr(ServedVllm, "close", lambda _: None)
    shutil.copytree(run, tmp_path / "run")
    broken = tmp_path / "run" / "checkpoint-30"
    shutil.copytree(run / "checkpoint-20", broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])
    settings = SweepSettings(
        probes=probes,
        store=tmp_path / "store",
        run="run",
        model="vllm",
        serve=True,
        base=base.path,
        apply_chat_template=True,
        progress=False,
    )
    result = sweep(tmp_path / "run", settings)
    assert (result.scored, [b.step for b in result.broken]) == ((0, 10, 20), [30])
    assert source._server is server
    folders = [base.path, *(str(run / f"checkpoint-{n}") for n in (10, 20))]
    lm = open_hf(Path(base.path))
    for table, folder in zip(load_run(tmp_path / "store/run"), folders, strict=True):
        assert table.manifest.backend == "served"
        assert any("known-answer check: " in n for n in table.manifest.notes)
        assert not any("anew" in n for n in table.manifest.notes)
        assert table.tokens.ref_ids is not None
        assert worst_gap(table, plain(full_model(folder), lm, probes)) < TOLERANCE
    assert sweep(tmp_path / "run", settings).kept == (0, 10, 20)


def test_the_known_answer_check_catches_a_wrong_output_layer(
    source: ServedVllm, base: Checkpoint, run: Path, probes: ProbeSet
) -> None:
    lm = source.open(base)
    moved = str(run / "checkpoint-10")
    source._rpc("ldeval_swap", moved, False)  # the output layer stays
    try:
        expected = plain(full_model(moved), lm, probes)
        scored = score_probes(
            lm, probes.probes, apply_chat_template=True, progress=False
        ).scores
        known, sums, lengths = [], [], []
        for key, (logprobs, labels) in expected.items():
            label = logprobs.gather(1, labels[:, None])
            known.append(float(label.double().sum()))
            sums.append(scored[key].logprob_sum)
            lengths.append(len(labels))
        with pytest.raises(ScoringError, match="known-answer check"):
            compare_known(known, sums, lengths, "float32")
    finally:
        source.open(base)


def test_the_stock_command_scores_through_the_server(
    source: ServedVllm, base: Checkpoint, probes: ProbeSet, tmp_path: Path
) -> None:
    lm = source.open(base)
    assert source._server is not None
    arguments = {
        "base_url": lm.base_url,
        "model": lm.model,
        "tokenizer_backend": "huggingface",
        "tokenizer": base.path,
        "max_length": 1024,
        "num_concurrent": 8,
    }
    command = [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "local-completions"),
        *("--model_args", ",".join(f"{k}={v}" for k, v in arguments.items())),
        *("--tasks", "ldyn_probes", "--limit", "1", "--apply_chat_template"),
        *("--output_path", str(tmp_path), "--log_samples"),
    ]
    key = source._server.header["Authorization"].removeprefix("Bearer ")
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OPENAI_API_KEY": key},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert key not in done.stdout + done.stderr
    table = read_output(tmp_path, run="stock", step=0)
    assert table.manifest.backend == "served"
    assert worst_gap(table, plain(full_model(base.path), lm, probes)) < TOLERANCE


def test_an_error_of_the_server_reaches_the_user(
    source: ServedVllm, base: Checkpoint, probes: ProbeSet
) -> None:
    lm = source.open(base)
    with pytest.raises(UnsupportedBackendError, match=r"max allowed: 20.*--max-logp"):
        score_probes(lm, probes.probes, top_k=50, progress=False)
    lm.max_length = 5000
    long = ProbeSet((_lengthened(probes.probes[0]),))
    with pytest.raises(ScoringError, match=r"1024.*Is max_length"):
        score_probes(lm, long.probes, progress=False)


def _lengthened(probe: Any) -> Any:
    from dataclasses import replace

    long = replace(probe.responses["chosen"], text="word " * 1200)
    return replace(probe, responses={"chosen": long})


def test_a_server_that_died_is_named(
    source: ServedVllm, base: Checkpoint, probes: ProbeSet
) -> None:
    lm = source.open(base)
    assert source._server is not None
    source._server.stop()
    with pytest.raises(ScoringError, match="connection failed"):
        score_probes(lm, probes.probes, progress=False)
    assert not source._server.alive


def test_adapters_are_swept_from_the_command_line(
    adapters: Path, demo_model: Path, probes: ProbeSet, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    arguments = ",".join(f"{name}={value}" for name, value in ENGINE.items())
    command = [
        *(sys.executable, "-m", "ldeval.cli", "sweep", str(adapters), "--serve"),
        *("--model_args", arguments, "--base", str(demo_model), "--store", str(store)),
        *("--apply_chat_template", "--limit", "1", "0"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("server started in") == 1
    assert not _left_behind(str(demo_model))
    lm = open_hf(demo_model)
    models = [
        full_model(str(demo_model)),
        *(
            adapted_model(str(demo_model), str(adapters / f"checkpoint-{step}"))
            for step in (10, 20)
        ),
    ]
    tables = load_run(store / "adapters")
    for table, model in zip(tables, models, strict=True):
        assert worst_gap(table, plain(model, lm, probes)) < TOLERANCE
    moved = np.abs(tables[1].logprob_sums - tables[2].logprob_sums)
    assert moved.max() > 1e-2


def _left_behind(text: str) -> list[str]:
    """Command lines of a model's servers that a sweep started and that still run."""
    own = f"serve {text} --host 127.0.0.1"
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if own in line and f"--served-model-name {NAME} " in line:
            found.append(line)
    return found


def test_a_server_that_cannot_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(CheckpointError, match=r"(?s)ended with status .*nonsense"):
        VllmServer(Checkpoint(str(tmp_path), 0), ENGINE)


def test_a_server_that_is_stuck_is_ended(demo_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(demo_model, copy)
    with pytest.raises(CheckpointError, match="not ready after 0 seconds"):
        VllmServer(Checkpoint(str(copy), 0), ENGINE, limit=0.2)
    assert not _left_behind(str(copy))


def test_model_arguments_become_flags() -> None:
    flags = server_arguments(
        {
            "dtype": "float32",
            "enforce_eager": True,
            "enable_prefix_caching": False,
            "max_length": 512,
            "hf_overrides": {"tie_word_embeddings": False},
            "tokenizer": None,
            "add_bos_token": True,
            "num_concurrent": 4,
            "batch_size": "auto",
        }
    )
    assert flags == [
        ["--dtype=float32"],
        ["--enforce-eager"],
        ["--no-enable-prefix-caching"],
        ["--max-model-len=512"],
        ["--hf-overrides", '{"tie_word_embeddings": false}'],
    ]
    with pytest.raises(UnsupportedBackendError, match="data_parallel_size=2"):
        server_arguments({"data_parallel_size": 2})


def test_no_secret_stands_on_the_command_line_of_the_server() -> None:
    given = {"dtype": "float32", "api_key": "mine", "hf_token": "hf_mine"}
    assert server_arguments(given) == [["--dtype=float32"]]
    environment = server_environment(given, "made-for-the-run")
    assert environment["HF_TOKEN"] == "hf_mine"
    assert environment["VLLM_API_KEY"] == "made-for-the-run"
    assert server_arguments({"api_key": 12345}) == []  # of digits, it came as a number
    # whether to use a token, not which
    assert server_arguments({"hf_token": True}) == [["--hf-token"]]
    assert "HF_TOKEN" not in server_environment({"hf_token": True}, "k")


def test_only_vllm_can_be_served() -> None:
    with pytest.raises(UnsupportedBackendError, match="--model is hf"):
        model_source("hf", {}, base=None, serve=True)
