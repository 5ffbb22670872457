"""Sweeps over LoRA adapters, whose weights are not all that is computed with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ldeval.checkpoints import weights_hash
from ldeval.errors import MismatchError
from ldeval.store import load_run
from ldeval.sweep import sweep
from tests.sweeping import ARGS, sweep_settings
from tests.tiny import save_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/ and run/checkpoint-30."""
    return save_run(tmp_path_factory.mktemp("trained"), [30])


def test_adapters_that_were_moved_away_from_their_base_stand_upon_the_one_given(
    trained: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = trained / "base"
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    adapter = tmp_path / "run" / "checkpoint-5"
    get_peft_model(model, config).save_pretrained(adapter)
    sweep(tmp_path / "run", sweep_settings(trained, tmp_path / "there"))
    path = adapter / "adapter_config.json"
    path.write_text(path.read_text().replace(str(base), "/elsewhere/base"))
    result = sweep(tmp_path / "run", sweep_settings(trained, tmp_path / "here"))
    assert (result.scored, result.broken) == ((0, 5), ())
    there, here = (load_run(tmp_path / name / "run") for name in ("there", "here"))
    np.testing.assert_array_equal(there[1].logprob_sums, here[1].logprob_sums)
    assert here[1].manifest.stored_dtype == there[1].manifest.stored_dtype == "F32"


def test_one_adapter_upon_two_bases_has_scores_of_its_own_upon_each(
    trained: Path, tmp_path: Path
) -> None:
    """Its own weights are the same, and so are their hashes."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    bases = {"one": trained / "base", "two": trained / "run" / "checkpoint-30"}
    model = AutoModelForCausalLM.from_pretrained(bases["one"])
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    network = get_peft_model(model, config)
    args = {**ARGS, "tokenizer": str(trained / "base")}
    asked = sweep_settings(trained, tmp_path / "store", base=None, model_args=args)
    for name, base in bases.items():
        adapter = tmp_path / name / "checkpoint-5"
        network.peft_config["default"].base_model_name_or_path = str(base)
        network.save_pretrained(adapter)
        asked = replace(asked, run=name)
        assert sweep(tmp_path / name, asked).scored == (5,)
        assert sweep(tmp_path / name, asked).kept == (5,)
    one, two = (load_run(tmp_path / "store" / name)[0] for name in bases)
    assert one.manifest.weights_hash == two.manifest.weights_hash
    assert two.manifest.settings["base"] == weights_hash(bases["two"])
    assert not np.allclose(one.logprob_sums, two.logprob_sums)
    # and a run whose base was another one before is not taken for finished
    network.peft_config["default"].base_model_name_or_path = str(bases["one"])
    network.save_pretrained(adapter)
    with pytest.raises(MismatchError, match="holds scores with settings base="):
        sweep(tmp_path / "two", asked)
    with_base = replace(asked, run="with", base=str(bases["one"]))
    sweep(tmp_path / "two", with_base)
    assert "base" not in load_run(tmp_path / "store" / "with")[1].manifest.settings
