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
from ldeval.errors import CheckpointError, ScoringError, UnsupportedBackendError
from ldeval.probes import ProbeSet, import_reference, read_probes
from ldeval.records import KIND_NAMES, Checkpoint
from ldeval.scoring.known_answers import compare_known, plain_logprob_sums
from ldeval.scoring.models import VllmEngine
from ldeval.scoring.score import (
    Scored,
    encode_probes,
    score_probes,
    score_requests,
)
from ldeval.store import load_run
from ldeval.sweep import SweepSettings, sweep
from tests.scoring.conftest import open_hf, plain_logprobs
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

    def counted(self: VllmEngine, checkpoint: Checkpoint, **options: Any) -> Any:
        starts.append(checkpoint.path)
        return start(self, checkpoint, **options)

    monkeypatch.setattr(VllmEngine, "_start", counted)
    monkeypatch.setattr(VllmEngine, "close", lambda self: None)
    monkeypatch.setattr("ldeval.sweep.model_source", lambda *_, **__: source)
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
            moved.path, [(list(r.ids), r.start, r.stop) for r in requests]
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


def test_an_adapter_is_refused_with_the_other_way(source: VllmEngine) -> None:
    with pytest.raises(CheckpointError, match="--model hf, or merge"):
        source.open(Checkpoint("somewhere", 1, "adapter"))


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
