"""The command line on real files and real tiny checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ldeval.bundled import bundled_probes, tasks_folder
from ldeval.cli import main
from ldeval.probes import read_probes
from ldeval.store import step_folder
from tests.tiny import save_run


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one run of three checkpoints."""
    folder = save_run(tmp_path_factory.mktemp("trained"), [10, 20])
    status = main(
        [
            *("-q", "sweep", str(folder / "run"), "--store", str(folder / "store")),
            *("--base", str(folder / "base"), "--limit", "6", "3"),
            *("--model_args", "dtype=float32,device=cpu", "--apply_chat_template"),
        ]
    )
    assert status == 0
    return folder / "store"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--ray-workers 4", "--ray-workers without --ray"),
        ("--ray-cpus 1 --ray-retries 3", "--ray-cpus, --ray-retries without --ray"),
        ("--idle 5", "--idle says when --watch ends"),
        ("--idle 5 --ray-gpus 1 --plan", "--idle says when --watch ends"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, said: str
) -> None:
    command = ["sweep", str(tmp_path / "run"), "--store", str(tmp_path / "store")]
    assert main([*command, *options.split()]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_a_gpu_and_a_half_is_refused_with_what_ray_can_give(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["sweep", "run", "--store", "store", "--ray", "--ray-gpus", "1.5"])
    assert "give 1 or 2, or less than 1" in capsys.readouterr().err


def test_the_bundled_probes_pass_their_check(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["probes", "check"]) == 0
    out = capsys.readouterr().out
    assert "96 probes" in out
    assert "not every probe has" not in out
    assert main(["validate", str(bundled_probes())]) == 0


def test_a_faulty_file_gives_status_2_and_the_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"probe_id": "a"}\n')
    assert main(["probes", "check", str(path)]) == 2
    assert f"{path}:1: field 'trained'" in capsys.readouterr().err


def test_a_probe_is_shown_by_id(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probes", "show", "--id", "train-003"]) == 0
    assert json.loads(capsys.readouterr().out)["probe_id"] == "train-003"
    assert main(["probes", "show", "--id", "nobody"]) == 2
    assert "no probe 'nobody'" in capsys.readouterr().err


def test_the_authors_file_imports_with_every_repair_listed(
    hh_probes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "hh.jsonl"
    status = main(
        ["probes", "import", "--format", "reference", str(hh_probes), "-o", str(target)]
    )
    assert status == 0
    assert "empty responses left out: 22" in capsys.readouterr().out
    assert len(read_probes(target)) == 500


def test_initial_is_sampled_anew_from_a_given_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ldeval.probes import write_probes

    folder = save_run(tmp_path, [1])
    few = tmp_path / "few.jsonl"
    write_probes(few, read_probes(bundled_probes()).limited(2, 0))
    for target in ("one.jsonl", "two.jsonl"):
        status = main(
            [
                *("probes", "initial", str(few), "--model", str(folder / "base")),
                *("-o", str(tmp_path / target)),
            ]
        )
        assert status == 0
    first = (tmp_path / "one.jsonl").read_bytes()
    assert first == (tmp_path / "two.jsonl").read_bytes()
    old, new = read_probes(few), read_probes(tmp_path / "one.jsonl")
    for before, after in zip(old, new, strict=True):
        assert before.responses["initial"] != after.responses["initial"]
        assert before.meta["initial_model"] != after.meta["initial_model"]


def test_ls_shows_runs_steps_and_their_state(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ls", str(store)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("run\n")
    assert [line.split()[1] for line in out.splitlines()[1:]] == ["0", "10", "20"]
    assert "99 responses" in out
    assert main(["ls", str(store / "none")]) == 2
    assert main(["ls", str(store / "run")]) == 0
    assert "step     20" in capsys.readouterr().out


def test_diff_prints_and_writes_json_and_a_report(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, report = tmp_path / "d.json", tmp_path / "report"
    status = main(
        [
            *("diff", str(store / "run"), "--json", str(target)),
            *("--report", str(report), "--fail-on", "squeezing"),
        ]
    )
    assert status == 0
    out = capsys.readouterr().out
    assert "chosen" in out
    assert "undecided" in out
    record = json.loads(target.read_text())
    names = {verdict["name"] for verdict in record["verdicts"]}
    assert {"squeezing", "squeezing_chosen_held", "learning"} <= names
    assert {v["state"] for v in record["verdicts"]} == {"undecided"}
    assert (report / "report.md").is_file()
    assert (report / "curves_trained.png").read_bytes()[:4] == b"\x89PNG"


def test_report_joins_runs(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(store / "run")
    assert main(["report", run, run, "-o", str(tmp_path)]) == 0
    assert str(tmp_path / "report.md") in capsys.readouterr().out


def test_mismatched_tables_are_refused_naming_both_values(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    manifest = step_folder(copy, "run", 20) / "manifest.json"
    record = json.loads(manifest.read_text())
    first = record["tokenizer_hash"]
    record["tokenizer_hash"] = "another"
    manifest.write_text(json.dumps(record))
    assert main(["diff", str(copy / "run")]) == 2
    err = capsys.readouterr().err
    assert first in err
    assert "another" in err


def test_validate_finds_a_damaged_table(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    assert main(["validate", str(copy)]) == 0
    assert main(["validate", str(copy / "run")]) == 0
    assert "3 tables checked" in capsys.readouterr().out
    assert main(["validate", str(tmp_path)]) == 2
    tokens = step_folder(copy, "run", 10) / "tokens.parquet"
    tokens.write_bytes(tokens.read_bytes()[:-1])
    assert main(["validate", str(copy)]) == 1
    assert "run step 10" in capsys.readouterr().out


def test_checkpoint_diff_keeps_the_order_it_is_given(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    from tests.conftest import ROOT

    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import checkpoint_diff

    fell = {}
    for first, second in ((0, 20), (20, 0)):
        folders = [str(step_folder(store, "run", step)) for step in (first, second)]
        monkeypatch.setattr(sys, "argv", ["checkpoint_diff.py", *folders])
        assert checkpoint_diff.main() == 0
        lines = capsys.readouterr().out.splitlines()
        row = next(line for line in lines if line.startswith("chosen "))
        fell[first] = int(row.split()[-1].rstrip("%"))
    assert fell[0] + fell[20] == 100
    monkeypatch.setattr(sys, "argv", ["x", str(store / "run" / "step_9"), "b"])
    assert checkpoint_diff.main() == 2
    assert "never finished" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["x", str(store / "step_\x1b[31m"), "b"])
    assert checkpoint_diff.main() == 2
    assert "\x1b" not in capsys.readouterr().err


def test_a_base_install_lists_validates_compares_and_reports(
    store: Path, tmp_path: Path
) -> None:
    """Without torch, transformers, vLLM and matplotlib."""

    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'vllm', 'matplotlib', 'safetensors'):\n"
        "    sys.modules[name] = None\n"
        "from ldeval.cli import main\n"
        f"run, out = {str(store / 'run')!r}, {str(tmp_path)!r}\n"
        f"assert main(['ls', {str(store)!r}]) == 0\n"
        f"assert main(['validate', {str(store)!r}]) == 0\n"
        "assert main(['diff', run]) == 0\n"
        "assert main(['report', run, '-o', out]) == 0\n"
        "assert main(['probes', 'check']) == 0\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "plot" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_tasks_prints_the_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks"]) == 0
    assert Path(capsys.readouterr().out.strip()) == tasks_folder()


def test_doctor_finds_this_environment_in_order(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor"]) == 0
    assert "FIX" not in capsys.readouterr().out


def test_the_python_interface_gives_the_same_comparison(store: Path) -> None:
    import ldeval

    tables = ldeval.load_run(store / "run")
    assert ldeval.diff(tables).overall == ldeval.diff(store / "run").overall
    frame = tables[0].to_pandas()
    assert len(frame) == len(tables[0])
    changes = ldeval.diff(tables).to_pandas()
    assert {"kind", "split", "delta_sum", "delta_tok"} <= set(changes.columns)


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    command = [sys.executable, "-m", "ldeval.cli", "probes", "show", "-n", "96"]
    shown = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert shown.stdout is not None
    assert shown.stderr is not None
    shown.stdout.readline()
    shown.stdout.close()
    said = shown.stderr.read()
    assert shown.wait() == 141
    assert b"Traceback" not in said
    assert b"BrokenPipe" not in said


def test_nor_is_one_of_the_checkpoint_diff(store: Path) -> None:
    folders = [str(step_folder(store, "run", step)) for step in (0, 20)]
    command = [sys.executable, "scripts/checkpoint_diff.py", *folders]
    shown = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert shown.stdout is not None
    assert shown.stderr is not None
    shown.stdout.close()
    said = shown.stderr.read()
    assert shown.wait() == 141
    assert b"BrokenPipe" not in said
