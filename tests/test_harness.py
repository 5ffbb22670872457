"""The tasks in a real evaluation by the harness."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from ldeval.bundled import bundled_probes, tasks_folder
from ldeval.errors import ProbeError, StoreError
from ldeval.harness import (
    METRICS,
    ProbeTask,
    _latest_samples,
    metrics_of,
    read_output,
)
from ldeval.probes import parse_probe, probe_to_record, read_probes, write_probes
from ldeval.records import KIND_GROUPS, KIND_NAMES
from ldeval.scoring.single import score_model
from tests.scoring.conftest import open_hf
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def evaluate(lm: Any, tasks: list[str], **options: Any) -> dict[str, Any]:
    metadata = options.pop("metadata", None)
    manager = TaskManager(
        include_path=str(tasks_folder()), include_defaults=False, metadata=metadata
    )
    result = simple_evaluate(
        lm,
        tasks=tasks,
        task_manager=manager,
        bootstrap_iters=10,
        log_samples=True,
        **options,
    )
    assert result is not None
    return result


def lm_eval(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lm_eval", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_yaml_parses_and_names_an_existing_kind() -> None:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: str(node.value))
    kinds = []
    groups = {}
    for path in sorted(tasks_folder().glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        config = yaml.load(text, Loader=Loader)  # noqa: S506  # a SafeLoader
        if "group" in config:
            groups[config["group"]] = config["task"]
        else:
            assert config["task"] == f"ldyn_{config['kind']}" == path.stem
            assert config["class"] == "ldeval.harness.ProbeTask"
            kinds.append(config["kind"])
    assert sorted(kinds) == sorted(KIND_NAMES)
    for group, members in KIND_GROUPS.items():
        assert groups[group] == [f"ldyn_{kind}" for kind in members]
    inside = {
        task
        for name, tasks in groups.items()
        if name != "ldyn_probes"
        for task in tasks
    }
    reached = inside | {
        t for t in groups["ldyn_probes"] if not t.startswith(tuple(groups))
    }
    assert {f"ldyn_{kind}" for kind in KIND_NAMES} <= reached


def test_the_harness_gives_the_sweeps_numbers(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = lm_eval(
        *("run", "--model", "hf"),
        *("--model_args", f"pretrained={tiny},dtype=float32", "--device", "cpu"),
        *("--tasks", "ldyn_probes", "--limit", "3", "--apply_chat_template"),
        *("--output_path", out, "--log_samples"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for kind in KIND_NAMES:
        # sampled from another model, so it has no row
        assert (f"ldyn_{kind}" in done.stdout) == (kind != "initial"), kind
    table = read_output(out, run="r", step=0)
    probes = read_probes(tasks_folder() / "probes.jsonl").limited(3, 0)
    direct = score_model(
        str(tiny),
        probes,
        backend="hf",
        model_args={"dtype": "float32", "device": "cpu"},
        apply_chat_template=True,
    )
    assert table.manifest.checkpoint == str(tiny)
    for name in ("probe_set_hash", "tokenizer_hash", "template_hash", "span", "dtype"):
        assert getattr(table.manifest, name) == getattr(direct.manifest, name), name
    assert table.index().keys() == direct.index().keys()
    rows = [direct.index()[key] for key in table.index()]
    np.testing.assert_allclose(table.logprob_sums, direct.logprob_sums[rows], atol=1e-3)
    reasons = {item.kind for item in table.manifest.excluded}
    assert reasons == {"initial"}
    assert table.tokens.top_ids is not None


def test_metrics_are_means_over_responses(tiny: Path) -> None:
    result = evaluate(open_hf(tiny), ["ldyn_chosen", "ldyn_permuted"], limit=4)
    for task in ("ldyn_chosen", "ldyn_permuted"):
        samples = result["samples"][task]
        assert len(samples) == 4
        for metric in METRICS:
            mean = float(np.mean([sample[metric] for sample in samples]))
            assert result["results"][task][f"{metric},none"] == pytest.approx(mean)
            assert result["results"][task][f"{metric}_stderr,none"] != "N/A"


def test_metrics_follow_from_the_token_scores() -> None:
    record = {
        "logprob_sum": -6.0,
        "token_ids": [1, 2, 3],
        "argmax_ids": [1, 5, 3],
        "argmax_logprobs": [-1.0, -0.5, -1.5],
    }
    assert metrics_of(record) == {
        "logprob_sum": -6.0,
        "logprob_per_token": -2.0,
        "argmax_logprob_per_token": -1.0,
        "argmax_match": 2 / 3,
        "n_tokens": 3.0,
    }
    assert metrics_of({"absent": True}) == {}
    assert metrics_of({"logprob_sum": -1.0, "token_ids": None}) == {"logprob_sum": -1.0}


def test_an_absent_kind_is_omitted_and_the_rest_runs(
    tiny: Path, tmp_path: Path
) -> None:
    probes = read_probes(tasks_folder() / "probes.jsonl").limited(3, 0).probes
    records = []
    for number, probe in enumerate(probes):
        kinds = ["chosen", "rejected"] if number == 1 else ["chosen"]
        responses = {k: probe.responses[k].text for k in kinds}
        records.append(
            parse_probe(
                {
                    "probe_id": probe.probe_id,
                    "prompt": probe.prompt,
                    "trained": True,
                    "responses": responses,
                }
            )
        )
    write_probes(tmp_path / "p.jsonl", records)
    result = evaluate(
        open_hf(tiny), ["ldyn_probes"], metadata={"probes": str(tmp_path / "p.jsonl")}
    )
    assert "logprob_sum,none" in result["results"]["ldyn_chosen"]
    assert "logprob_sum,none" in result["results"]["ldyn_rejected"]
    assert "logprob_sum,none" not in result["results"]["ldyn_permuted"]
    rejected = result["samples"]["ldyn_rejected"]
    assert ["logprob_sum" in sample for sample in rejected] == [False, True, False]


def test_the_variable_names_the_probe_file(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LDEVAL_PROBES", str(tmp_path / "none.jsonl"))
    config = {"task": "ldyn_chosen", "kind": "chosen", "metadata": {}}
    with pytest.raises(ProbeError, match=r"none.jsonl: cannot be opened"):
        ProbeTask(config)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", 0),
        ("top_k", "few"),
        ("top_k", 2.5),
        ("span", "lm_eval"),
        ("span", None),
    ],
)
def test_a_setting_that_no_task_takes_is_refused_before_any_work(
    name: str, value: object
) -> None:
    with pytest.raises(ProbeError, match=rf"'metadata.{name}': is {value!r}"):
        ProbeTask({"task": "x", "kind": "chosen", "metadata": {name: value}})


def test_few_shot_examples_are_refused(tiny: Path) -> None:
    with pytest.raises(ProbeError, match="takes no few-shot examples, 2 were"):
        evaluate(open_hf(tiny), ["ldyn_chosen"], limit=1, num_fewshot=2)


def test_cache_requests_is_ignored_with_a_word(
    tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluate(open_hf(tiny), ["ldyn_chosen"], limit=1, cache_requests=True)
    assert any("ignores --cache_requests" in r.message for r in caplog.records)


def test_the_response_cache_never_answers_for_another_model(
    tiny: Path, tmp_path: Path
) -> None:
    other = save_tiny(tmp_path / "other", seed=5)
    sums = []
    for folder in (tiny, other):
        result = evaluate(
            open_hf(folder),
            ["ldyn_chosen"],
            limit=2,
            use_cache=str(tmp_path / "cache"),
        )
        sums.append(result["results"]["ldyn_chosen"]["logprob_sum,none"])
    assert abs(sums[0] - sums[1]) > 0.1


def test_the_harness_lists_and_validates_the_tasks() -> None:
    listed = lm_eval("ls", "tasks")
    assert "ldyn_probes" in listed.stdout
    assert "ldyn_random_words" in listed.stdout
    names = ["ldyn_probes", *KIND_GROUPS, *(f"ldyn_{kind}" for kind in KIND_NAMES)]
    checked = lm_eval("validate", "--tasks", ",".join(names))
    assert checked.returncode == 0, checked.stdout
    assert "All tasks found and valid" in checked.stdout


def test_a_folder_without_probe_samples_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="--tasks ldyn_probes --log_samples"):
        read_output(tmp_path, run="r", step=0)


def test_each_kind_is_read_from_its_own_file_of_the_latest_run(
    tmp_path: Path,
) -> None:
    stamps = ("2026-01-02T03-04-05.678901", "2026-01-02T03-04-06.000001")
    for stamp in stamps:
        for kind in KIND_NAMES:
            (tmp_path / f"samples_ldyn_{kind}_{stamp}.jsonl").write_text("")
    (tmp_path / f"samples_hellaswag_{stamps[1]}.jsonl").write_text("")
    found = _latest_samples(tmp_path)
    assert {kind: path.name for kind, path in found.items()} == {
        kind: f"samples_ldyn_{kind}_{stamps[1]}.jsonl" for kind in KIND_NAMES
    }


def test_runs_with_different_contexts_are_not_compared(
    tiny: Path, tmp_path: Path
) -> None:
    from ldeval.compare import compare_run
    from ldeval.errors import MismatchError

    tables = []
    for step, instruction in enumerate((None, "Be brief.")):
        result = evaluate(
            open_hf(tiny),
            ["ldyn_chosen", "ldyn_rejected"],
            limit=3,
            apply_chat_template=True,
            system_instruction=instruction,
        )
        folder = tmp_path / str(step)
        folder.mkdir()
        for task, samples in result["samples"].items():
            path = folder / f"samples_{task}_2026-01-01T00-00-00.jsonl"
            path.write_text("".join(json.dumps(s, default=str) + "\n" for s in samples))
        tables.append(read_output(folder, run="r", step=step))
    assert tables[0].manifest.context_hash
    with pytest.raises(MismatchError, match="context_hash"):
        compare_run(tables, run="r")


def test_a_damaged_sample_is_named_by_line(tmp_path: Path) -> None:
    good = {
        "doc": probe_to_record(read_probes(bundled_probes()).probes[0]),
        "resps": [[json.dumps({"absent": True})]],
    }
    path = tmp_path / "samples_ldyn_chosen_2026-01-01T00-00-00.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps(good)[:30] + "\n")
    with pytest.raises(StoreError, match=r"00.jsonl:2: .*not a sample"):
        read_output(tmp_path, run="r", step=0)
