"""An engine's greedy decodes against a plain forward pass of the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from ldeval.records import GreedyDecodes, Probe
from ldeval.scoring.encode import codec_of, encode_prompt
from ldeval.scoring.greedy import greedy_decodes

LENGTH = 10


def check_greedy(
    lm: Any,
    folder: str,
    probes: Sequence[Probe],
    reference: GreedyDecodes | None = None,
) -> GreedyDecodes:
    """Decode with an engine that holds the weights in ``folder``; every token is the
    most probable one (or tied) and has the score of a plain forward pass."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    codec = codec_of(lm)
    found = greedy_decodes(
        lm,
        probes,
        step=0 if reference is None else 10,
        weights_hash=folder,
        probe_set_hash="p",
        max_tokens=LENGTH,
        reference=reference,
        apply_chat_template=True,
        progress=False,
    )
    assert found.off_argmax == 0
    assert len(found.decodes) == len(probes)
    first = (reference or found).decodes
    for probe, decode, before in zip(probes, found.decodes, first, strict=True):
        context = encode_prompt(probe.prompt, codec, apply_chat_template=True)
        assert 0 < len(decode.ids) <= LENGTH
        assert decode.ended == (decode.ids[-1] == lm.tokenizer.eos_token_id)
        for ids, scores in (
            (decode.ids, decode.logprobs),
            (before.ids, decode.reference_logprobs),
        ):
            whole = torch.tensor([context + ids.tolist()])
            with torch.no_grad():
                rows = model(whole).logits[0, len(context) - 1 : -1].log_softmax(-1)
            plain = rows.gather(1, torch.tensor(ids.tolist())[:, None])[:, 0]
            np.testing.assert_allclose(scores, plain.numpy(), atol=2e-3)
            assert abs(float(scores.mean() - plain.mean())) < 2e-4
            if ids is decode.ids:
                assert float((rows.max(dim=1).values - plain).max()) < 1e-3
    return found
