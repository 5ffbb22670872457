"""The paper authors' result files: layouts, the argmax bug, reruns, NaN, verdicts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldeval.compare.imported import compare_levels
from ldeval.errors import StoreError
from ldeval.imported import read_levels, write_levels
from ldeval.integrations.reference import (
    FIELDS,
    ImportOptions,
    import_reference_results,
)
from ldeval.integrations.reruns import separate_reruns
from ldeval.records import REFERENCE_FIELDS, LevelRun
from ldeval.report.words import standing_sentences

NAMED = ImportOptions("imported")


@pytest.fixture
def shared() -> Path:
    from tests.conftest import SHARED

    if not SHARED.is_dir():
        pytest.skip("shared data absent")
    return SHARED


def key(field: str) -> str:
    return f"logps_eval_prob_train/{field}"


def metrics(rows: int = 10, *, repaired: bool = False, seed: int = 0) -> list[dict]:
    """A made-up run: rejected falls, chosen rises, the others fall a little."""
    rng = np.random.default_rng(seed)
    found = []
    for t in range(rows):
        row: dict[str, Any] = {}
        for i, field in enumerate(FIELDS):
            slope = {"chosen": 0.5, "rejected": -6.0}.get(field, -2.0)
            value = -100.0 - 5 * i + slope * t + 0.05 * rng.normal() * (t > 0)
            if repaired:
                row[f"{field}_A_o"] = 230.0 + t
            row[key(field)] = value
            if field == "chosen":
                row["argmax_prob_logits"] = -60.0 + 1.5 * t
                row["except_argmax_prob_logits"] = math.nan
                row["p_e"], row["energy"] = 0.9, 0.9
        found.append(row)
    return found


def written(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def load(path: Path, rows: list[dict], **more: Any) -> LevelRun:
    file = written(path / "prob_train_metrics.json", rows)
    return import_reference_results(file, ImportOptions("r", **more))


def states(levels: LevelRun) -> dict[str, str]:
    return {v.name: v.state for v in compare_levels(levels).verdicts}


# ---------------------------------------------------------------- the published files


def test_the_410m_dpo_run_reads_squeezing_chosen_held_and_its_argmax_is_flagged(
    shared: Path,
) -> None:
    levels = import_reference_results(
        shared / "reference_metrics_prob_pythia410m_dpo.jsonl", NAMED
    )
    assert len(levels.steps) == 50
    found = compare_levels(levels)
    verdicts = {v.name: v for v in found.verdicts}
    held = verdicts["squeezing_chosen_held"]
    assert held.state == "holds"
    assert verdicts["squeezing"].state == "does_not_hold"
    assert verdicts["learning"].state == "does_not_hold"
    third = next(c for c in held.conjuncts if c.name == "S3")
    assert third.reason == "along random_words"
    column = levels.column("argmax:random_words")
    assert column is not None
    assert column.source == "argmax_prob_logits"
    assert "describes random_words, not chosen" in str(column.note)
    assert levels.column("argmax:chosen") is None
    others = next(c for c in held.conjuncts if c.name == "S2").evidence
    assert (
        sum(e.value < 0 for name, e in others.items() if name != "mean of others") == 10
    )


def test_the_sft_extend_run_reads_learning_and_hallucination_and_no_squeezing(
    shared: Path,
) -> None:
    levels = import_reference_results(
        shared / "reference_metrics_extend_sft_qwen18_observe.jsonl", NAMED
    )
    found = states(levels)
    assert found["learning"] == "holds"
    assert found["hallucination_pull"] == "holds"
    assert found["squeezing"] == "does_not_hold"
    assert found["squeezing_chosen_held"] == "does_not_hold"
    column = levels.column("argmax:random_words")
    assert "below chosen's own log-probability" in str(column and column.note)
    claims = {c.name: c.state for c in compare_levels(levels).claims}
    assert claims["S3"] == claims["S4"] == "holds"


def test_pinned_numbers_of_the_published_files_come_through(shared: Path) -> None:
    levels = import_reference_results(
        shared / "reference_metrics_prob_pythia410m_dpo.jsonl", NAMED
    )
    chosen = levels.column("chosen")
    assert chosen is not None
    assert chosen.values[0] == pytest.approx(-151.98, abs=0.01)
    assert max(chosen.values) == pytest.approx(-140.2, abs=0.1)
    assert chosen.values.index(max(chosen.values)) == 25


# --------------------------------------------------------------------- synthetic files


def test_an_argmax_before_the_repair_is_named_after_the_last_kind(
    tmp_path: Path,
) -> None:
    levels = load(tmp_path, metrics())
    assert levels.column("argmax:random_words") is not None
    assert levels.column("argmax:chosen") is None


def test_a_repaired_file_s_argmax_is_chosen_s(tmp_path: Path) -> None:
    levels = load(tmp_path, metrics(repaired=True))
    column = levels.column("argmax:chosen")
    assert column is not None
    assert column.note is None


def test_an_argmax_below_chosen_cannot_be_chosen_s_whatever_the_keys_say(
    tmp_path: Path,
) -> None:
    rows = metrics(repaired=True)
    rows[3]["argmax_prob_logits"] = -400.0
    levels = load(tmp_path, rows)
    assert levels.column("argmax:chosen") is None


def test_nan_tokens_stay_absent_and_never_become_zero(tmp_path: Path) -> None:
    rows = metrics()
    rows[4][key("permuted".replace("permuted", "random_permute"))] = math.nan
    levels = load(tmp_path, rows)
    permuted = levels.column("permuted")
    assert permuted is not None
    assert math.isnan(permuted.values[4])
    assert sum(map(math.isnan, permuted.values)) == 1


def test_a_declared_objective_without_a_negative_term_rules_squeezing_out(
    tmp_path: Path,
) -> None:
    found = states(load(tmp_path, metrics(), objective="sft"))
    assert found["squeezing"] == "does_not_hold"
    assert found["squeezing_chosen_held"] == "does_not_hold"


def test_means_only_estimates_are_marked_and_have_no_prompts(tmp_path: Path) -> None:
    found = compare_levels(load(tmp_path, metrics()))
    assert any("no prompt interval" in note for note in found.notes)
    for path in found.trajectories:
        assert "no prompt interval" in str(path.end.reason)
        assert path.end.low <= path.end.value <= path.end.high
    for change in found.overall.changes:
        assert math.isnan(change.delta_sum.low)
        assert math.isnan(change.p_value)


def test_a_reader_is_told_by_which_m_imported_means_are_judged(tmp_path: Path) -> None:
    rows = metrics()
    for row in rows:
        row[key("chosen")] = -100.0 - 0.7 * (row is not rows[0])
    found = compare_levels(load(tmp_path, rows))
    path = next(t for t in found.trajectories if t.kind == "chosen")
    assert path.end.high < 0
    assert path.state == "flat"
    text = " ".join(standing_sentences(found))
    assert "changes within 1% of a kind's first value are not called changes" in text


def test_a_file_of_the_test_probes_is_held_out(tmp_path: Path) -> None:
    rows = [
        {k.replace("prob_train", "prob_test"): v for k, v in row.items()}
        for row in metrics()
    ]
    assert load(tmp_path, rows).split == "heldout"


def test_examples_between_evaluations_number_the_steps(tmp_path: Path) -> None:
    levels = load(tmp_path, metrics(4), every=1000)
    assert levels.steps == (0, 1000, 2000, 3000)
    assert levels.step_unit == "examples"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "0 evaluations; at least two"),
        ("[1]\n", "1: holds list"),
        ('{"a": 1}\n{"a": 2}\n', "no key 'logps_eval"),
        ('{"a": 1}\n{"a"', "2: not JSON"),
    ],
)
def test_a_foreign_file_is_refused_naming_the_place(
    tmp_path: Path, text: str, match: str
) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(StoreError, match=match):
        import_reference_results(path, NAMED)


# ------------------------------------------------------------------------------ reruns


def run_of(rows: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    steps = np.cumsum(rng.normal(-1.0, 0.3, (rows, 5)), axis=0)
    return np.concatenate([np.full((1, 5), -100.0), -100.0 + steps])[:rows]


def test_a_single_run_is_left_alone() -> None:
    kept, remarks = separate_reruns(run_of(30))
    assert kept == list(range(30))
    assert remarks == []


def test_a_rerun_that_starts_late_and_interleaves_is_taken_out() -> None:
    first = run_of(40)
    rows, places = list(first[:32]), list(range(32))
    for i in range(5):  # the rerun's rows stand before each of the first run's
        rows.append(first[i] * (1 + 1e-6))
        places.append(-1)
        rows.append(first[32 + i])
        places.append(32 + i)
    kept, remarks = separate_reruns(np.array(rows))
    assert kept == [i for i, place in enumerate(places) if place >= 0]
    assert "5 rows of the others are left out (lines 33, 35, 37, 39, 41)" in remarks[0]


def test_paired_rows_at_the_start_are_two_runs() -> None:
    first = run_of(12)
    rows = [row for row in first[:6] for _ in range(2)] + list(first[6:])
    kept, remarks = separate_reruns(np.array(rows))
    assert len(kept) == 12
    assert np.allclose(np.array(rows)[kept], first)
    assert "2 runs" in remarks[0]


def test_a_run_begun_anew_after_two_rows_is_kept_whole() -> None:
    first = run_of(20)
    rows = np.concatenate([first[:2], first])
    kept, remarks = separate_reruns(rows)
    assert len(kept) == 20
    assert "2 rows of the others" in remarks[0]


# ------------------------------------------------------------------------------ arrays


def array(layout: str, prompts: int = 40, steps: int = 8) -> np.ndarray:
    rng = np.random.default_rng(0)
    others = FIELDS[1:]
    head = ["chosen", "argmax", "except", "A_o", "p_e", "energy"]
    fixed = ["chosen_A_o", "chosen", "argmax", "except", "p_e", "energy"]
    names = {
        "17": [*head, *others],
        "28": [*head, *(n for f in others for n in (f, f"{f}_A_o"))],
        "17r": [*fixed, *(f"{f}_A_o" for f in others)],
        "28r": [*fixed, *(n for f in others for n in (f"{f}_A_o", f))],
    }[layout]
    values = np.empty((steps, len(names), prompts))
    for row, name in enumerate(names):
        if name.endswith("A_o"):
            values[:, row] = 230 + rng.random((steps, prompts))
        elif name in FIELDS:
            level = -100.0 - 3 * FIELDS.index(name)
            drift = {"chosen": 0.2, "rejected": -5.0}.get(name, -2.0)
            moved = (
                drift * np.arange(steps)[:, None] * (1 + 0.2 * rng.normal(size=prompts))
            )
            values[:, row] = level + rng.normal(0, 20, prompts) + moved
        else:
            values[:, row] = -60 + np.arange(steps)[:, None] + rng.normal(size=prompts)
    return values


@pytest.mark.parametrize(
    ("layout", "kinds", "argmax"),
    [
        ("17", 12, "argmax:random_words"),
        ("28", 12, "argmax:random_words"),
        ("17r", 1, "argmax:chosen"),
        ("28r", 12, "argmax:chosen"),
    ],
)
def test_every_layout_of_the_arrays_is_told_by_its_rows_and_signs(
    tmp_path: Path, layout: str, kinds: int, argmax: str
) -> None:
    values = array(layout)
    np.save(tmp_path / "logp_npy_all_chosen.npy", values)
    levels = import_reference_results(tmp_path / "logp_npy_all_chosen.npy", NAMED)
    named = [c for c in levels.columns if c.role == "kind"]
    assert len(named) == kinds
    assert levels.column(argmax) is not None
    row = 1 if layout.endswith("r") else 0
    assert np.array_equal(levels.prompts["chosen"], values[:, row])
    if kinds == 12:
        where = {"17": 9, "28": 12, "28r": 13}[layout]
        assert REFERENCE_FIELDS["rejected"] == "rejected"
        assert np.array_equal(levels.prompts["rejected"], values[:, where])


def test_arrays_of_prompts_have_prompt_intervals_and_p_values(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array("17"))
    found = compare_levels(import_reference_results(tmp_path / "a.npy", NAMED))
    change = next(c for c in found.overall.changes if c.kind == "rejected")
    assert change.delta_sum.low < change.delta_sum.value < change.delta_sum.high < 0
    assert change.n == 40
    assert change.p_adjusted < 0.01
    assert {v.name: v.state for v in found.verdicts}["squeezing_chosen_held"] == "holds"


def test_too_few_prompts_leave_every_verdict_undecided(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array("17", prompts=12))
    found = compare_levels(import_reference_results(tmp_path / "a.npy", NAMED))
    assert {v.state for v in found.verdicts} == {"undecided"}


def test_arrays_of_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "argmax_token.npy", np.array([{}, 1], object), allow_pickle=True)
    with pytest.raises(StoreError, match="never unpickled"):
        import_reference_results(tmp_path / "argmax_token.npy", NAMED)


# ------------------------------------------------------------------------------- store


def test_an_import_is_stored_and_read_back_alike(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array("28"))
    levels = import_reference_results(tmp_path / "a.npy", NAMED)
    folder = write_levels(tmp_path / "store", levels)
    again = read_levels(folder)
    assert again.columns == levels.columns
    assert again.steps == levels.steps
    for name, values in levels.prompts.items():
        assert np.array_equal(again.prompts[name], values)
    (folder / "prompts.npz").write_bytes(b"x")
    with pytest.raises(StoreError, match="was changed or cut short"):
        read_levels(folder)


def test_nan_survives_the_store(tmp_path: Path) -> None:
    rows = metrics()
    rows[2][key("irr_test")] = math.nan
    folder = write_levels(tmp_path / "store", load(tmp_path, rows))
    found = read_levels(folder).column("irrelevant_test")
    assert found is not None
    assert math.isnan(found.values[2])


def test_a_name_that_leaves_the_store_or_holds_tables_is_refused(
    tmp_path: Path,
) -> None:
    levels = load(tmp_path, metrics())
    import dataclasses

    with pytest.raises(StoreError, match="not a plain folder name"):
        write_levels(tmp_path, dataclasses.replace(levels, run="../x"))
    (tmp_path / "s" / "r" / "step_000000").mkdir(parents=True)
    with pytest.raises(StoreError, match="holds scored tables"):
        write_levels(tmp_path / "s", levels)
