"""The noise floor: measured, stored, read back, used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ldeval
from ldeval.probes import ProbeSet
from ldeval.records import Checkpoint
from ldeval.scoring.noise import measure_noise
from ldeval.scoring.score import score_probes
from ldeval.store import load_run
from ldeval.sweep import SweepSettings, sweep
from tests.scoring.conftest import open_hf
from tests.tiny import save_run

OPTIONS: dict[str, Any] = {
    "span": "trl",
    "apply_chat_template": False,
    "system_instruction": None,
    "origin_weights": None,
}


def floor_of(folder: Path, probes: ProbeSet, **arguments: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=str(folder), device="cpu", **arguments)
    scored = score_probes(lm, probes.probes, progress=False, **OPTIONS)
    return measure_noise(lm, probes.probes, scored, Checkpoint(str(folder), 0), OPTIONS)


def test_float32_repeats_to_a_millionth(tiny: Path, few_probes: ProbeSet) -> None:
    floor = floor_of(tiny, few_probes, dtype="float32")
    assert 0 <= floor.kind_means < 1e-4
    assert 0 < floor.per_response < 1e-4
    assert floor.probability < 1e-4
    assert floor.float32 is None
    assert floor.nats_per_token == floor.kind_means
    twice = (few_probes.probes[0], few_probes.probes[-1])
    # another model's ``initial`` is not scored
    kinds = [kind for probe in twice for kind in probe.responses if kind != "initial"]
    assert floor.responses == len(kinds)


def test_low_precision_counts_its_distance_from_float32(
    tiny: Path, few_probes: ProbeSet
) -> None:
    floor = floor_of(tiny, few_probes, dtype="bfloat16")
    assert floor.dtype == "bfloat16"
    assert floor.float32 > 0
    assert floor.nats_per_token == max(floor.kind_means, floor.float32)
    exact = floor_of(tiny, few_probes, dtype="float32")
    assert floor.nats_per_token > 10 * exact.nats_per_token


def test_the_second_scoring_is_another_order_and_shape(
    tiny: Path, few_probes: ProbeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[list[str], Any]] = []

    def spied(lm: Any, probes: Any, **options: Any) -> Any:
        calls.append(([p.probe_id for p in probes], options["tokens"]))
        return score_probes(lm, probes, **options)

    monkeypatch.setattr("ldeval.scoring.noise.score_probes", spied)
    lm = open_hf(tiny)
    scored = score_probes(lm, few_probes.probes, progress=False, **OPTIONS)
    measure_noise(lm, few_probes.probes, scored, Checkpoint(str(tiny), 0), OPTIONS)
    ((order, tokens),) = calls
    first, last = few_probes.probes[0].probe_id, few_probes.probes[-1].probe_id
    assert order == [last, first]
    assert tokens == 512


def test_a_sweep_measures_it_once_and_diffs_use_it(
    few_probes: ProbeSet, tmp_path: Path
) -> None:
    save_run(tmp_path, [10, 20])
    settings = SweepSettings(
        probes=few_probes,
        store=tmp_path / "store",
        run="run",
        model_args={"dtype": "bfloat16", "device": "cpu"},
        base=str(tmp_path / "base"),
        progress=False,
    )
    sweep(tmp_path / "run", settings)
    tables = load_run(tmp_path / "store" / "run")
    floors = [table.manifest.noise_floor for table in tables]
    assert floors[0] is not None
    assert floors[1:] == [None, None]
    comparison = ldeval.diff(tmp_path / "store" / "run")
    assert comparison.noise_floor == max(floors[0].nats_per_token, 0.01)
    assert not any("no noise floor was measured" in n for n in comparison.notes)
    # a sweep that goes on does not measure it again
    manifest = tmp_path / "store" / "run" / "step_000020" / "manifest.json"
    manifest.unlink()
    assert sweep(tmp_path / "run", settings).scored == (20,)
    again = load_run(tmp_path / "store" / "run")
    assert [t.manifest.noise_floor for t in again] == floors
