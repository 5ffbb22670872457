"""A real vLLM engine: parity with a plain forward pass, swaps, and the stock command.

One engine serves the whole module: it takes most of a minute to start.
"""

from __future__ import annotations

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
from ldeval.errors import ScoringError, UnsupportedBackendError
from ldeval.probes import ProbeSet, import_reference, read_probes
from ldeval.records import KIND_NAMES, Checkpoint
from ldeval.scoring import hf, vllm
from ldeval.scoring.batch import ScoreRequest
from ldeval.scoring.known_answers import compare_known, plain_logprob_sums
from ldeval.scoring.score import (
    Scored,
    encode_probes,
    score_probes,
    score_requests,
)
from ldeval.scoring.vllm_engine import VllmEngine
from ldeval.store import load_run
from ldeval.sweep import SweepSettings, sweep
from tests.scoring.conftest import open_hf, plain_logprobs
from tests.scoring.greedy_check import check_greedy
from tests.tiny import perturb

pytestmark = pytest.mark.vllm

TOLERANCE = 2e-4
"""Nats per token, float32."""
OPTIONS: dict[str, Any] = {
    "span": "trl",
    "apply_chat_template": False,
    "system_instruction": None,
}
ENGINE = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 1024,
    "max_num_seqs": 32,
}


@pytest.fixture(scope="module", autouse=True)
def _environment() -> None:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


@pytest.fixture(scope="module")
def source(demo_model: Path) -> Iterator[VllmEngine]:
    engine = VllmEngine(ENGINE, base=str(demo_model))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def base(demo_model: Path) -> Checkpoint:
    return Checkpoint(str(demo_model), 0)


@pytest.fixture(scope="module")
def moved(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The demo model with every weight moved a little, saved without a tokenizer."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(demo_model), dtype=torch.float32)
    perturb(model, 0.003, 1)
    folder = tmp_path_factory.mktemp("moved")
    model.save_pretrained(folder)
    return Checkpoint(str(folder), 10)


@pytest.fixture(scope="module")
def bundled() -> ProbeSet:
    return read_probes(bundled_probes()).limited(2, 0)


def plain(folder: str, lm: Any, probes: ProbeSet, template: bool) -> dict[Any, Any]:
    """By response: ln p over the vocabulary at its positions, and its tokens."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    options = {**OPTIONS, "apply_chat_template": template}
    encoded = encode_probes(lm, probes.probes, **options)
    found = {}
    for request in score_requests(encoded, None, {}):
        logprobs = plain_logprobs(model, list(request.ids), request.start, request.stop)
        labels = torch.tensor(request.ids[request.start : request.stop])
        found[(request.probe_id, request.kind)] = (logprobs, labels)
    return found


def assert_parity(scored: Scored, expected: dict[Any, Any]) -> None:
    assert scored.scores.keys() == expected.keys()
    for key, (logprobs, labels) in expected.items():
        score = scored.scores[key]
        assert score.token_ids == tuple(labels.tolist()), key
        label = logprobs.gather(1, labels[:, None])[:, 0]
        gap = abs(score.logprob_sum - float(label.double().sum())) / len(labels)
        assert gap < TOLERANCE, (key, gap)
        assert score.tokens is not None
        # the first token is where an engine's cached prompt would show
        assert abs(float(score.tokens.logprobs[0]) - float(label[0])) < 5e-4, key
        assert score.tokens.top_logprobs is not None
        np.testing.assert_allclose(
            score.tokens.top_logprobs, logprobs.topk(20).values.numpy(), atol=2e-3
        )


def test_swapped_checkpoints_agree_with_a_plain_forward_pass(
    source: VllmEngine, base: Checkpoint, moved: Checkpoint, bundled: ProbeSet
) -> None:
    lm = source.open(base)
    for checkpoint in (base, moved, base):
        lm = source.open(checkpoint)
        scored = score_probes(
            lm, bundled.probes, apply_chat_template=True, progress=False
        )
        assert_parity(scored, plain(checkpoint.path, lm, bundled, True))


def test_greedy_decodes_are_those_of_a_plain_forward_pass(
    source: VllmEngine, base: Checkpoint, moved: Checkpoint, bundled: ProbeSet
) -> None:
    first = check_greedy(source.open(base), base.path, bundled.probes)
    check_greedy(source.open(moved), moved.path, bundled.probes, first)


def test_hf_and_vllm_agree_on_the_papers_probes(
    source: VllmEngine, base: Checkpoint, hh_probes: Path
) -> None:
    """Eight of the shortest; scripts/campaign_parity.py takes more, of any length."""
    every, _ = import_reference(hh_probes)
    short = sorted(every, key=lambda p: sum(len(r.text) for r in p.responses.values()))
    full = [p for p in short if len(p.responses) == len(KIND_NAMES)]
    probes = ProbeSet(tuple(full[:8]))
    vllm = source.open(base)
    hf = open_hf(Path(base.path))
    expected = plain(base.path, hf, probes, False)
    for lm in (hf, vllm):
        assert_parity(score_probes(lm, probes.probes, progress=False), expected)


def test_a_sweep_serves_every_checkpoint_from_one_engine(
    source: VllmEngine,
    base: Checkpoint,
    moved: Checkpoint,
    bundled: ProbeSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(moved.path, run / "checkpoint-10")
    shutil.copytree(moved.path, run / "checkpoint-20")
    path = run / "checkpoint-20" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-64])
    starts: list[str] = []
    start = VllmEngine._start

    def counted(self: VllmEngine, checkpoint: Checkpoint, extra: Any) -> Any:
        starts.append(checkpoint.path)
        return start(self, checkpoint, extra)

    monkeypatch.setattr(VllmEngine, "_start", counted)
    monkeypatch.setattr(VllmEngine, "close", lambda self: None)
    monkeypatch.setattr("ldeval.sweep.staged.model_source", lambda *_, **__: source)
    settings = SweepSettings(
        probes=bundled.limited(1, 0),
        store=tmp_path / "store",
        run="run",
        model="vllm",
        base=base.path,
        apply_chat_template=True,
        progress=False,
    )
    result = sweep(run, settings)
    assert starts == []
    assert result.scored == (0, 10)
    assert [broken.step for broken in result.broken] == [20]
    for table in load_run(tmp_path / "store" / "run"):
        assert any("known-answer check: " in note for note in table.manifest.notes)
        assert not any("anew" in note for note in table.manifest.notes)
        assert table.tokens.ref_ids is not None
    again = sweep(run, settings)
    assert again.scored == ()
    assert again.kept == (0, 10)


def test_results_do_not_depend_on_request_order(
    source: VllmEngine, base: Checkpoint, bundled: ProbeSet
) -> None:
    lm = source.open(base)
    first = score_probes(lm, bundled.probes, progress=False).scores
    second = score_probes(lm, bundled.probes[::-1], progress=False).scores
    for key, score in first.items():
        gap = abs(score.logprob_sum - second[key].logprob_sum)
        assert gap / len(score.token_ids or ()) < 1e-4


def test_the_known_answer_check_catches_a_wrong_output_layer(
    source: VllmEngine, base: Checkpoint, moved: Checkpoint, bundled: ProbeSet
) -> None:
    lm = source.open(base)
    # what the engine's own in-place reload does to tied embeddings: the body is the new
    # checkpoint's, the output layer stays
    lm.model.collective_rpc("ldeval_swap", args=(moved.path, False))
    try:
        encoded = encode_probes(
            lm, bundled.probes[:1], **{**OPTIONS, "apply_chat_template": True}
        )
        requests = list(score_requests(encoded, None, {}))[:2]
        known = plain_logprob_sums(
            moved, [(list(r.ids), r.start, r.stop) for r in requests]
        )
        scored = score_probes(
            lm, bundled.probes[:1], apply_chat_template=True, progress=False
        ).scores
        sums = [scored[(r.probe_id, r.kind)].logprob_sum for r in requests]
        with pytest.raises(ScoringError, match="known-answer check"):
            compare_known(known, sums, [r.n_tokens for r in requests], "float32")
    finally:
        source.open(base)


def test_a_response_over_the_engines_length_is_excluded_by_name(
    source: VllmEngine, base: Checkpoint, bundled: ProbeSet
) -> None:
    from dataclasses import replace

    lm = source.open(base)
    probe = bundled.probes[0]
    long = replace(probe.responses["rejected"], text="word " * 1200)
    probe = replace(
        probe, responses={"chosen": probe.responses["chosen"], "rejected": long}
    )
    scored = score_probes(lm, [probe], progress=False)
    (excluded,) = scored.excluded
    assert (excluded.kind, excluded.reason[:10]) == ("rejected", "truncated:")
    assert list(scored.scores) == [(probe.probe_id, "chosen")]


def test_too_many_top_tokens_name_the_argument(
    source: VllmEngine, base: Checkpoint, bundled: ProbeSet
) -> None:
    lm = source.open(base)
    with pytest.raises(UnsupportedBackendError, match="max_logprobs=50"):
        score_probes(lm, bundled.probes, top_k=50, progress=False)


def hostile_requests(block: int) -> list[ScoreRequest]:
    """Prompts that share long beginnings or fill their blocks exactly; responses that
    share beginnings over a whole block, or are one token long; any order."""
    rng = np.random.default_rng(0)
    shared = rng.integers(100, 40_000, 3 * block).tolist()
    requests = []
    for number, length in enumerate(
        [2 * block, 2 * block + 1, 2 * block - 1, 3 * block + 5, 5, 1]
    ):
        context = [*shared, *rng.integers(100, 40_000, 8).tolist()][-length:]
        if number % 2:
            context = [*shared, *context][:length]
        opening = rng.integers(100, 40_000, block + 7).tolist()
        for response in range(5):
            tail = rng.integers(100, 40_000, 1 + 3 * response).tolist()
            own = (opening if response % 2 else []) + tail
            ids = (*context, *own)
            requests.append(
                ScoreRequest(f"p{number}", f"r{response}", ids, len(context), len(ids))
            )
    return [requests[i] for i in rng.permutation(len(requests))]


def test_the_prefix_cache_never_gives_a_response_token(
    source: VllmEngine, base: Checkpoint
) -> None:
    lm = source.open(base)
    block = lm.model.llm_engine.vllm_config.cache_config.block_size
    requests = hostile_requests(block)
    hf_lm = open_hf(Path(base.path))
    expected = dict(hf.score(hf_lm, requests, top_k=5, layout="plain"))
    for order in (1, -1):  # the second time, every response lies in the cache
        found, note = vllm.score_checked(lm, requests[::order], top_k=5)
        assert "read from it" in note
        assert "scored again without it" in note
        for index, scores in found.items():
            place = index if order == 1 else len(requests) - 1 - index
            gap = np.abs(scores.logprobs - expected[place].logprobs)
            assert gap.mean() < TOLERANCE
            assert gap[0] < 5e-4


def test_prompts_are_read_from_the_cache(
    source: VllmEngine, base: Checkpoint, bundled: ProbeSet
) -> None:
    lm = source.open(base)
    lm.model.reset_prefix_cache()
    scored = score_probes(lm, bundled.probes, apply_chat_template=True, progress=False)
    (note,) = [n for n in scored.notes if n.startswith("prefix cache: ")]
    read, total = (int(word) for word in note.split() if word.isdigit())
    assert 0.2 * total < read < total


def test_an_engine_without_a_prefix_cache_is_exact_too(
    source: VllmEngine,
    base: Checkpoint,
    bundled: ProbeSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm = source.open(base)
    with_cache = score_probes(lm, bundled.probes, progress=False)
    config = lm.model.llm_engine.vllm_config.cache_config
    monkeypatch.setattr(config, "enable_prefix_caching", False)
    without = score_probes(lm, bundled.probes, progress=False)
    assert "prefix cache: off" in str(without.notes)
    for key, score in with_cache.scores.items():
        gap = abs(score.logprob_sum - without.scores[key].logprob_sum)
        assert gap / len(score.token_ids or ()) < 1e-4


def save_adapter(base: Path, folder: Path, seed: int) -> Checkpoint:
    """A LoRA adapter that moves every attention layer."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    adapted = get_peft_model(
        model, LoraConfig(r=4 * seed, target_modules=["q_proj", "v_proj", "down_proj"])
    )
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    adapted.save_pretrained(str(folder))
    return Checkpoint(str(folder), seed, "adapter", str(base))


def test_adapters_are_loaded_beside_one_base_engine(
    source: VllmEngine,
    base: Checkpoint,
    bundled: ProbeSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Own engine: it is started with room for adapters, once."""
    source.close()
    run = tmp_path / "run"
    for seed in (1, 3):
        save_adapter(Path(base.path), run / f"checkpoint-{seed}", seed)
    broken = run / "checkpoint-4"
    shutil.copytree(run / "checkpoint-3", broken)
    config = broken / "adapter_config.json"
    config.write_text(
        config.read_text().replace('"use_dora": false', '"use_dora": true')
    )
    starts: list[str] = []
    start = VllmEngine._start

    def counted(self: VllmEngine, checkpoint: Checkpoint, extra: Any) -> Any:
        starts.append(checkpoint.path)
        return start(self, checkpoint, extra)

    monkeypatch.setattr(VllmEngine, "_start", counted)
    settings = SweepSettings(
        probes=bundled,
        store=tmp_path / "store",
        run="run",
        model="vllm",
        model_args=ENGINE,
        base=base.path,
        apply_chat_template=True,
        progress=False,
    )
    result = sweep(run, settings)
    assert len(starts) == 1
    assert result.scored == (0, 1, 3)
    (refused,) = result.broken
    assert "vLLM does not take this adapter" in refused.reason
    tables = load_run(tmp_path / "store" / "run")
    for table in tables:
        path = table.manifest.checkpoint
        peft = {} if table.manifest.step == 0 else {"peft": path}
        plain_lm = open_hf(Path(base.path), **peft)
        expected = score_probes(
            plain_lm, bundled.probes, apply_chat_template=True, progress=False
        ).scores
        for row, key in enumerate(table.index()):
            gap = abs(table.logprob_sums[row] - expected[key].logprob_sum)
            assert gap / table.n_tokens[row] < TOLERANCE, (path, key)
    assert any("known-answer check: " in note for note in tables[1].manifest.notes)
    moved = np.abs(tables[1].logprob_sums - tables[2].logprob_sums)
    assert moved.max() > 0.1


def test_the_stock_command_scores_the_probes(demo_model: Path, tmp_path: Path) -> None:
    arguments = ",".join(
        [f"pretrained={demo_model}", *(f"{k}={v}" for k, v in ENGINE.items())]
    )
    command = [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "vllm"),
        *("--model_args", arguments, "--tasks", "ldyn_probes", "--limit", "1"),
        *("--apply_chat_template", "--output_path", str(tmp_path), "--log_samples"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for kind in KIND_NAMES:
        assert f"ldyn_{kind} " in done.stdout.replace("|", " "), kind
