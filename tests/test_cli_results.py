"""The commands that read scores: compare, import, and diff of what was imported."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from ldeval.cli import main
from ldeval.store import step_folder, write_table
from tests.compare.conftest import make_world, squeezed
from tests.integrations.test_reference_results import metrics, written
from tests.integrations.test_trl_log import state


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of three checkpoints on the same 24 probes."""
    folder = tmp_path_factory.mktemp("store")
    world = make_world(24, 4, kinds=("chosen", "rejected", "initial"))
    for number, run in enumerate(("sft", "dpo")):
        worlds = [world, world.changed(squeezed(number))]
        worlds.append(worlds[-1].changed(squeezed(number + 5)))
        for i, item in enumerate(worlds):
            table = item.table(10 * i, world, run=run, objective=run)
            write_table(step_folder(folder, run, 10 * i), table)
    return folder


def test_two_runs_are_compared_in_text_json_and_a_figure(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, figure = tmp_path / "v.json", tmp_path / "v.png"
    status = main(
        [
            *("compare", str(store / "sft"), str(store / "dpo"), "--at", "margin"),
            *("--json", str(target), "--figure", str(figure)),
            *("--after", str(store / "dpo"), str(store / "sft")),
        ]
    )
    assert status == 0
    out = capsys.readouterr().out
    assert "A: sft, B: dpo" in out
    record = json.loads(target.read_text())
    assert {d["kind"] for d in record["decays"]} >= {"chosen", "rejected", "initial"}
    assert {c["name"] for c in record["claims"]} == {"D3", "D5", "E1"}
    assert figure.read_bytes()[:4] == b"\x89PNG"


def test_a_figure_of_another_format_is_refused_before_anything_is_computed(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, target = (str(store / "sft"), str(store / "dpo")), tmp_path / "v.json"
    figure = ("--json", str(target), "--figure", str(tmp_path / "v.pdf"))
    assert main(["compare", *runs, *figure]) == 2
    assert "v.pdf: figures are .png or .svg" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("every", ["0", "-5", "x"])
def test_steps_of_an_import_are_whole_numbers_that_grow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], every: str
) -> None:
    file = written(tmp_path / "m.json", metrics())
    command = ["import", "reference", str(file), "--run", "m", "--store", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--every", every])
    assert ended.value.code == 2
    assert f"{every!r} is no whole number of 1 or more" in capsys.readouterr().err


def test_a_harness_folder_is_no_step_below_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["import", "lm_eval", str(tmp_path), "--run", "x", "--store", "s"]
    with pytest.raises(SystemExit):
        main([*command, "--step", "-1"])
    assert "'-1' is no whole number of 0 or more" in capsys.readouterr().err


def test_an_imported_run_is_diffed_reported_and_can_fail_a_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "prob_train_metrics.json", metrics())
    target = tmp_path / "store"
    status = main(
        ["import", "reference", str(file), "--run", "theirs", "--store", str(target)]
    )
    assert status == 0
    out = capsys.readouterr().out
    assert "argmax_prob_logits -> argmax:random_words" in out
    assert "describes random_words, not chosen" in out
    record = tmp_path / "d.json"
    status = main(
        [
            *("diff", str(target / "theirs"), "--json", str(record)),
            *("--report", str(tmp_path / "report")),
            *("--fail-on", "squeezing_chosen_held"),
        ]
    )
    assert status == 1
    verdicts = json.loads(record.read_text())["verdicts"]
    assert set(verdicts[0]) >= {"name", "state", "split", "evidence"}
    page = (tmp_path / "report" / "report.md").read_text("utf-8")
    assert "no prompt interval" in page
    assert "describes random" in page.replace("\\", "")


def test_an_import_of_means_is_not_set_against_a_run(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "m.json", metrics())
    main(["import", "reference", str(file), "--run", "m", "--store", str(tmp_path)])
    assert main(["compare", str(tmp_path / "m"), str(store / "sft")]) == 2
    assert "is an import of means" in capsys.readouterr().err


def test_a_trainer_s_log_is_imported_with_its_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = state(tmp_path)
    target = str(tmp_path / "s")
    assert main(["import", "trl", str(file), "--run", "log", "--store", target]) == 0
    assert "context, not evidence" in capsys.readouterr().out
    assert main(["diff", f"{target}/log"]) == 0


def test_a_harness_folder_without_probe_samples_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["import", "lm_eval", str(tmp_path), "--run", "x", "--step", "0"]
    assert main([*command, "--store", str(tmp_path / "s")]) == 2
    assert "samples_ldyn" in capsys.readouterr().err


def test_a_stored_run_compares_as_its_tables_in_memory(store: Path) -> None:
    import ldeval

    stored = ldeval.diff(store / "dpo")
    loaded = ldeval.diff(ldeval.load_run(store / "dpo"))
    assert dataclasses.replace(stored, manifests=()) == dataclasses.replace(
        loaded, manifests=()
    )
