"""The transformers backend against a plain forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldeval.errors import ScoringError, UnsupportedBackendError
from ldeval.probes import ProbeSet
from ldeval.scoring.backends import backend_of
from ldeval.scoring.score import (
    encode_probes,
    score_probes,
    score_requests,
)
from tests.scoring.conftest import open_hf, plain_logprobs
from tests.tiny import ARCHITECTURES, save_tiny

OPTIONS: dict[str, Any] = {
    "span": "trl",
    "apply_chat_template": False,
    "system_instruction": None,
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_statistic_agrees_with_a_plain_forward_pass(
    architecture: str, few_probes: ProbeSet, tmp_path: Path
) -> None:
    lm = open_hf(save_tiny(tmp_path, architecture=architecture))
    scored = score_probes(lm, few_probes.probes, progress=False)
    encoded = encode_probes(lm, few_probes.probes, **OPTIONS)
    checked = 0
    for request in score_requests(encoded, set(scored.scores), {}):
        tokens = scored.scores[(request.probe_id, request.kind)].tokens
        assert tokens is not None
        expected = plain_logprobs(
            lm.model, list(request.ids), request.start, request.stop
        ).double()
        labels = torch.tensor(request.ids[request.start : request.stop])
        label = expected.gather(1, labels[:, None])
        probs = expected.exp()
        top = expected.topk(20)
        for name, value in {
            "logprobs": label[:, 0],
            "argmax_logprobs": expected.max(-1).values,
            "sq_norms": probs.square().sum(-1),
            "entropies": -(probs * expected).sum(-1),
            "mean_logprobs": expected.mean(-1),
            "top_logprobs": top.values,
        }.items():
            np.testing.assert_allclose(
                getattr(tokens, name), value.numpy(), atol=2e-4, err_msg=name
            )
        # exact but for ties closer than float32 can tell
        assert tokens.argmax_ids is not None
        best = expected.gather(1, torch.tensor(tokens.argmax_ids[:, None]).long())
        np.testing.assert_allclose(best[:, 0], expected.max(-1).values, atol=4e-4)
        above = (expected > label + 4e-4).sum(-1).numpy() + 1
        near = (expected > label - 4e-4).sum(-1).numpy() + 1
        assert tokens.ranks is not None
        assert (above <= tokens.ranks).all()
        assert (tokens.ranks <= near).all()
        checked += len(labels)
    assert checked == sum(len(s.token_ids or ()) for s in scored.scores.values())


def test_results_do_not_depend_on_order(tiny: Path, few_probes: ProbeSet) -> None:
    lm = open_hf(tiny)
    whole = score_probes(lm, few_probes.probes, progress=False).scores
    turned = score_probes(lm, few_probes.probes[::-1], progress=False).scores
    assert list(turned) != list(whole)
    for key, score in whole.items():
        other = turned[key]
        assert score.tokens is not None
        assert other.tokens is not None
        np.testing.assert_allclose(
            score.tokens.logprobs, other.tokens.logprobs, atol=1e-4
        )


def test_reference_ids_are_scored_exactly(tiny: Path, few_probes: ProbeSet) -> None:
    lm = open_hf(tiny)
    first = score_probes(lm, few_probes.probes, progress=False)
    rng = np.random.default_rng(0)
    reference = {
        key: rng.integers(0, 512, (len(score.tokens), 7))
        for key, score in first.scores.items()
        if score.tokens is not None
    }
    scored = score_probes(
        lm, few_probes.probes, reference=reference, top_k=5, progress=False
    )
    encoded = encode_probes(lm, few_probes.probes, **OPTIONS)
    for request in score_requests(encoded, set(scored.scores), {}):
        key = (request.probe_id, request.kind)
        tokens = scored.scores[key].tokens
        assert tokens is not None
        assert tokens.top_ids is not None
        assert tokens.top_ids.shape[1] == 5
        expected = plain_logprobs(
            lm.model, list(request.ids), request.start, request.stop
        )
        wanted = expected.gather(1, torch.tensor(reference[key]))
        np.testing.assert_allclose(tokens.ref_logprobs, wanted.numpy(), atol=2e-4)
        np.testing.assert_array_equal(tokens.ref_ids, reference[key])


def test_a_reference_of_another_length_is_refused(
    tiny: Path, few_probes: ProbeSet
) -> None:
    key = (few_probes.probes[0].probe_id, "chosen")
    with pytest.raises(ScoringError, match="Do both use one tokenizer"):
        score_probes(
            open_hf(tiny),
            few_probes.probes,
            reference={key: np.zeros((2, 3), int)},
            progress=False,
        )


def test_nan_logits_are_an_error_that_names_the_response(
    tiny: Path, few_probes: ProbeSet
) -> None:
    lm = open_hf(tiny)
    with torch.no_grad():
        lm.model.lm_head.weight[3, 0] = torch.nan
    with pytest.raises(ScoringError, match=r"probe 'train-00.', response .* nan"):
        score_probes(lm, few_probes.probes, progress=False)


def test_the_model_is_left_in_its_mode(tiny: Path, few_probes: ProbeSet) -> None:
    lm = open_hf(tiny)
    for training in (True, False):
        lm.model.train(training)
        score_probes(lm, few_probes.probes[:1], progress=False)
        assert lm.model.training is training


def test_a_shorter_max_length_excludes_by_name(
    tiny: Path, few_probes: ProbeSet
) -> None:
    scored = score_probes(
        open_hf(tiny, max_length=60), few_probes.probes, progress=False
    )
    assert scored.excluded
    keys = {(item.probe_id, item.kind) for item in scored.excluded}
    assert keys.isdisjoint(scored.scores)
    everything = {(p.probe_id, k) for p in few_probes for k in p.responses}
    assert keys | set(scored.scores) == everything


def test_settings_that_change_the_meaning_are_refused_by_name(tiny: Path) -> None:
    lm = open_hf(tiny, softmax_dtype="bfloat16")
    with pytest.raises(UnsupportedBackendError, match=r"softmax_dtype=torch\.bfloat16"):
        backend_of(lm)
    lm = open_hf(tiny, enable_thinking=True, think_end_token="</think>")
    with pytest.raises(UnsupportedBackendError, match="enable_thinking=True"):
        backend_of(lm)


def test_mixed_precision_is_honoured(tiny: Path, few_probes: ProbeSet) -> None:
    exact = score_probes(open_hf(tiny), few_probes.probes[:1], progress=False).scores
    mixed = score_probes(
        open_hf(tiny, mixed_precision_dtype="bfloat16"),
        few_probes.probes[:1],
        progress=False,
    ).scores
    assert backend_of(open_hf(tiny, mixed_precision_dtype="bfloat16")).dtype == (
        "bfloat16"
    )
    gaps = [abs(exact[k].logprob_sum - mixed[k].logprob_sum) for k in exact]
    assert max(gaps) > 0


def test_a_lora_adapter_is_scored_with_its_base(
    tiny: Path, few_probes: ProbeSet, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(str(tiny))
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    adapted.save_pretrained(str(tmp_path))
    lm = open_hf(tiny, peft=str(tmp_path))
    assert backend_of(lm).tier == "native"
    scored = score_probes(lm, few_probes.probes[:1], progress=False)
    merged = adapted.merge_and_unload().eval()
    for request in score_requests(
        encode_probes(lm, few_probes.probes[:1], **OPTIONS), set(scored.scores), {}
    ):
        expected = plain_logprobs(
            merged, list(request.ids), request.start, request.stop
        )
        labels = torch.tensor(request.ids[request.start : request.stop])
        total = float(expected.gather(1, labels[:, None]).sum())
        score = scored.scores[(request.probe_id, request.kind)]
        assert abs(score.logprob_sum - total) / len(labels) < 2e-4
