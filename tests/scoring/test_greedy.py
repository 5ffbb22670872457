"""Greedy decodes against a plain loop over forward passes, and in a real sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from ldeval.bundled import bundled_probes
from ldeval.checkpoints import weights_hash
from ldeval.cli import main
from ldeval.decodes import run_decodes
from ldeval.errors import MismatchError, UnsupportedBackendError
from ldeval.probes import read_probes
from ldeval.records import GreedyDecodes
from ldeval.scoring.encode import encode_prompt, tokenizer_codec
from ldeval.scoring.greedy import greedy_decodes
from ldeval.sweep import SweepSettings, sweep
from tests.sweeping import sweep_settings
from tests.tiny import save_run

PROBES = read_probes(bundled_probes()).limited(4, 3)
LENGTH = 12
ARGS = {"dtype": "float32", "device": "cpu"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/ and run/checkpoint-{10,20}."""
    return save_run(tmp_path_factory.mktemp("greedy"), [10, 20])


def decoded(folder: Path, **options: Any) -> GreedyDecodes:
    lm = HFLM(pretrained=str(folder), dtype="float32", device="cpu")
    given = {
        "step": 0,
        "weights_hash": "w",
        "probe_set_hash": PROBES.content_hash,
        "max_tokens": LENGTH,
        "apply_chat_template": True,
        "progress": False,
        **options,
    }
    return greedy_decodes(lm, PROBES.probes, **given)


def contexts(folder: Path) -> dict[str, list[int]]:
    codec = tokenizer_codec(AutoTokenizer.from_pretrained(folder))
    return {
        p.probe_id: encode_prompt(p.prompt, codec, apply_chat_template=True)
        for p in PROBES
    }


def plain_loop(folder: Path, context: list[int]) -> tuple[list[int], list[float]]:
    """One whole forward pass a token, no cache, no batch."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    end = AutoTokenizer.from_pretrained(folder).eos_token_id
    ids, taken, values = list(context), [], []
    for _ in range(LENGTH):
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        best = int(logprobs.argmax())
        ids.append(best)
        taken.append(best)
        values.append(float(logprobs[best]))
        if best == end:
            break
    return taken, values


def plain_scores(folder: Path, context: list[int], ids: list[int]) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor([context + ids])).logits[0].double()
    logprobs = logits.log_softmax(-1)[len(context) - 1 : -1]
    return logprobs[torch.arange(len(ids)), torch.tensor(ids)].numpy()


def test_decodes_and_scores_are_those_of_a_plain_loop(trained: Path) -> None:
    base, later = trained / "base", trained / "run" / "checkpoint-20"
    first = decoded(base)
    after = decoded(later, step=20, reference=first)
    assert first.off_argmax == after.off_argmax == 0
    assert [d.probe_id for d in after.decodes] == [p.probe_id for p in PROBES]
    begun = contexts(base)
    changed = 0
    for before, now in zip(first.decodes, after.decodes, strict=True):
        context = begun[now.probe_id]
        for folder, decode in ((base, before), (later, now)):
            ids, values = plain_loop(folder, context)
            assert decode.ids.tolist() == ids
            np.testing.assert_allclose(decode.logprobs, values, atol=2e-5)
        wanted = plain_scores(later, context, before.ids.tolist())
        np.testing.assert_allclose(now.reference_logprobs, wanted, atol=2e-5)
        np.testing.assert_array_equal(before.reference_logprobs, before.logprobs)
        changed += before.ids.tolist() != now.ids.tolist()
    assert changed > 0


def test_a_models_own_generation_settings_do_not_bend_the_choice(
    trained: Path,
) -> None:
    wanted = decoded(trained / "base").decodes
    lm = HFLM(pretrained=str(trained / "base"), dtype="float32", device="cpu")
    taken = sorted({int(token) for decode in wanted for token in decode.ids})
    settings = lm.model.generation_config
    settings.do_sample, settings.temperature, settings.top_k = True, 2.0, 5
    settings.repetition_penalty, settings.no_repeat_ngram_size = 5.0, 1
    settings.min_new_tokens, settings.suppress_tokens = 9, taken[:3]
    settings.bad_words_ids = [[token] for token in taken[3:6]]
    settings.forced_eos_token_id, settings.num_beams = taken[6], 3
    found = greedy_decodes(
        lm,
        PROBES.probes,
        step=0,
        weights_hash="w",
        probe_set_hash="p",
        max_tokens=LENGTH,
        apply_chat_template=True,
        progress=False,
    )
    assert found.off_argmax == 0
    for one, other in zip(found.decodes, wanted, strict=True):
        assert one.ids.tolist() == other.ids.tolist()
    assert lm.model.generation_config.repetition_penalty == 5.0  # as it was


def test_a_decode_ends_with_the_end_token_or_is_said_to_be_cut(trained: Path) -> None:
    lm = HFLM(pretrained=str(trained / "base"), dtype="float32", device="cpu")
    begun = contexts(trained / "base")
    first, _ = plain_loop(trained / "base", begun[PROBES.probes[0].probe_id])
    lm.tokenizer.eos_token_id = first[3]  # what comes fourth now ends it
    found = greedy_decodes(
        lm,
        PROBES.probes[:1],
        step=0,
        weights_hash="w",
        probe_set_hash="p",
        max_tokens=LENGTH,
        apply_chat_template=True,
        progress=False,
    )
    (decode,) = found.decodes
    assert decode.ended
    assert decode.ids.tolist() == first[: first.index(first[3]) + 1]
    cut = decoded(trained / "base", max_tokens=2).decodes
    assert {len(d.ids) for d in cut} == {2}
    assert not any(d.ended for d in cut)


def test_a_prompt_that_leaves_no_room_is_listed(trained: Path) -> None:
    found = decoded(trained / "base", max_tokens=100_000)
    assert found.decodes == ()
    assert len(found.excluded) == len(PROBES)
    assert "no room" in found.excluded[0].reason


def test_a_model_without_token_scores_is_refused() -> None:
    with pytest.raises(UnsupportedBackendError, match="--greedy"):
        greedy_decodes(
            get_model("dummy")(),
            PROBES.probes,
            step=0,
            weights_hash="w",
            probe_set_hash="p",
            max_tokens=4,
        )


def settings(trained: Path, store: Path, **changes: Any) -> SweepSettings:
    changes = {"probes": PROBES, **changes}
    return sweep_settings(trained, store, **changes)


def test_a_finished_run_gets_its_decodes_later_and_keeps_them(
    trained: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    sweep(trained / "run", settings(trained, store))
    assert run_decodes(store / "run") == ()
    asked = settings(trained, store, greedy=LENGTH)
    assert sweep(trained / "run", asked).kept == (0, 10, 20)
    found = run_decodes(store / "run")
    assert [d.step for d in found] == [0, 10, 20]
    assert {d.reference_step for d in found} == {0}
    assert found[1].weights_hash == weights_hash(trained / "run" / "checkpoint-10")
    files = sorted((store / "run" / "greedy").iterdir())
    times = [path.stat().st_mtime_ns for path in files]
    files[1].unlink()  # as where a sweep was killed before the second was written
    sweep(trained / "run", asked)
    assert files[1].is_file()
    assert [files[i].stat().st_mtime_ns for i in (0, 2)] == [times[0], times[2]]
    again = run_decodes(store / "run")[1]
    assert [d.text for d in again.decodes] == [d.text for d in found[1].decodes]
    with pytest.raises(MismatchError, match="max_tokens 12"):
        sweep(trained / "run", settings(trained, store, greedy=LENGTH + 1))


@pytest.mark.parametrize("text", ["-1", "0", "many"])
def test_a_length_that_is_none_is_refused(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["sweep", "run", "--store", str(tmp_path), "--greedy", text])
    assert "is no whole number of 1 or more" in capsys.readouterr().err


def test_the_commands_keep_and_tell_it(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path / "store")
    limit = ["--limit", "4", "3", "--model_args", "dtype=float32,device=cpu"]
    base = ["--base", str(trained / "base"), "--apply_chat_template"]
    run = [str(trained / "run"), "--store", store, *limit, *base]
    assert main(["-q", "sweep", *run, "--greedy", "8"]) == 0
    report = tmp_path / "report.json"
    assert main(["diff", f"{store}/run", "--json", str(report)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Greedy decodes of trained prompts at step 20: " in said
    assert '"greedy": {' in report.read_text()
    assert main(["validate", store]) == 0
    assert "6 tables checked, 0 with faults" in capsys.readouterr().out
    damaged = tmp_path / "store" / "run" / "greedy" / "step_000010.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    assert main(["validate", store]) == 1
    assert "step_000010.parquet" in capsys.readouterr().out
