"""Results of first order beside a run: which fit, what is kept, what is written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from ldeval.cli import main
from ldeval.dynamics.results import PREDICTION, RISK, read_results
from ldeval.errors import MismatchError, StoreError
from ldeval.records import (
    Agreement,
    DynamicsResults,
    InfluenceTable,
    Prediction,
    ProbeResponse,
)
from ldeval.report import Beside, Joined, join_results
from ldeval.report.dynamics_json import (
    EXAMPLES,
    MOVED,
    POINTS,
    results_json,
    results_rows,
)
from ldeval.report.dynamics_tables import PULLED_KINDS, breaking_sentence
from tests.report.first_order_world import DATA, HELDOUT, TRAINED, FirstOrder
from tests.report.page_world import stored
from tests.report.test_page import Elements


def beside(first_order: FirstOrder, **changed: str) -> Beside:
    """The run, its manifests changed."""
    comparison = first_order.run.comparison
    manifests = tuple(
        dataclasses.replace(m, **changed)  # type: ignore[arg-type]
        for m in comparison.manifests
    )
    comparison = dataclasses.replace(comparison, manifests=manifests)
    return Beside(comparison, first_order.run.probes)


def test_results_on_a_part_of_the_run_s_probes_fit_it(first_order: FirstOrder) -> None:
    (joined,) = first_order.joined
    assert joined.step == 20
    assert "starts from the weights of step 20" in joined.checked
    assert "prediction: on a part of the run's probes" in joined.checked
    whole = [read_results(first_order.folder)]
    with pytest.raises(MismatchError, match="no known part"):
        join_results(whole, [Beside(first_order.run.comparison)])


def test_results_of_other_probes_or_another_tokenizer_are_refused(
    first_order: FirstOrder,
) -> None:
    found = [read_results(first_order.folder)]
    other = dataclasses.replace(
        beside(first_order, probe_set_hash="ab" * 32),
        probes=first_order.run.probes[1:],
    )
    with pytest.raises(MismatchError, match=r"results/prediction\.json.*abababababab"):
        join_results(found, [other])
    settings = found[0].prediction.settings  # type: ignore[union-attr]
    with pytest.raises(MismatchError, match=f"{settings['tokenizer']}.*cdcdcd"):
        join_results(found, [beside(first_order, tokenizer_hash="cdcdcd")])
    (served,) = join_results(found, [beside(first_order, tokenizer_hash="unknown")])
    assert any("tokenizer is the run's is not known" in c for c in served[0].checked)


def test_results_go_to_the_run_whose_weights_they_start_from(
    first_order: FirstOrder,
) -> None:
    found = [read_results(first_order.folder)] * 2
    own = beside(first_order)
    other = beside(first_order, weights_hash="00")
    mine, theirs = join_results(found, [own, own])
    assert [item.name for item in mine] == ["results", "results (2)"]
    assert len(theirs) == 2
    away, here = join_results(
        found, [other, Beside(first_order.run.comparison, first_order.run.probes)]
    )
    assert not away
    assert len(here) == 2
    (both,) = join_results(found, [other])
    assert both[0].step is None
    assert "none of this run's checkpoints" in both[0].checked[0]


def test_every_response_keeps_its_parts_and_they_add_up(
    first_order: FirstOrder,
) -> None:
    found = first_order.joined[0].results.influence
    assert found is not None
    record = results_json(first_order.joined[0])["influence"]
    assert len(record["responses"]) == record["count"] == 12 * (TRAINED + HELDOUT)
    for row in record["responses"]:
        pushes = [item["influence"] for item in row["up"] + row["down"]]
        parts = [*pushes, row["rest"], row["history"], row["decay"]]
        assert sum(parts) == pytest.approx(row["total"], abs=2e-4 * row["size"])
        assert row["size"] == pytest.approx(sum(abs(p) for p in parts))
        assert [p > 0 for p in pushes] == sorted((p > 0 for p in pushes), reverse=True)
    rising = [r["kind"] in PULLED_KINDS and r["total"] > 0 for r in record["responses"]]
    assert rising == sorted(rising, reverse=True)
    assert any(rising)
    assert set(record["texts"]) == set(found.examples)
    assert all(set(t) == {"prompt", "chosen", "rejected"}
               for t in record["texts"].values())  # fmt: skip


def _responses(size: int) -> tuple[ProbeResponse, ...]:
    kinds = ("chosen", "irrelevant_train")
    return tuple(
        ProbeResponse(f"p{i}", kinds[i % 2], "trained", 5, -9.0) for i in range(size)
    )


def test_what_is_embedded_is_bounded_and_says_how_much_there_was() -> None:
    rng = np.random.default_rng(0)
    size, examples = MOVED + 11, EXAMPLES + 40
    influence = rng.standard_normal((size, examples))
    nothing = np.zeros(size)
    table = InfluenceTable(
        {}, _responses(size), tuple(map(str, range(examples))), influence,
        nothing, nothing, influence.sum(axis=1), 0.0, True, {},
    )  # fmt: skip
    count = POINTS + 500
    measured = rng.standard_normal((1, count))
    measured[0, 17] = 400.0
    prediction = Prediction(
        {}, _responses(count), {"gradient": np.zeros(count)}, (1.0,), measured,
        (Agreement(1.0, None, count, 0.1, 1.0, 0.5, 1.0, 1.0),), float("nan"),
    )  # fmt: skip
    record = results_json(
        Joined("x", DynamicsResults("x", prediction, table), None, ())
    )
    moved = record["influence"]
    assert (len(moved["responses"]), moved["count"]) == (MOVED, size)
    for row in moved["responses"]:
        assert max(len(row["up"]), len(row["down"])) <= EXAMPLES
        assert row["rest_count"] == examples - len(row["up"]) - len(row["down"])
        best = max(item["influence"] for item in row["up"])
        assert best == influence[int(row["probe_id"][1:])].max()
    points = record["prediction"]
    assert len(points["responses"]) <= POINTS < points["count"] == count
    assert "p17" in {row["probe_id"] for row in points["responses"]}
    assert points["error_slope"] is None


def test_a_prediction_that_is_no_number_is_an_empty_cell() -> None:
    unknown = Prediction(
        {}, _responses(1), {"change": np.array([np.nan])}, (2.0,),
        np.array([[np.nan]]), (Agreement(2.0, None, 1, *[float("nan")] * 5),),
        float("nan"),
    )  # fmt: skip
    record = results_json(Joined("x", DynamicsResults("x", unknown), None, ()))
    (row,) = results_rows([record])["predictions"]
    assert row["predicted"] is None
    assert row["measured"] is None


@pytest.mark.parametrize(
    ("r2", "expected"),
    [
        ((0.999, 0.95, 0.92), "at every size that was measured, up to 4× the step"),
        (
            (0.999, 0.95, 0.2),
            "up to 1× the step, and no longer at 4× the step (R² 0.200)",
        ),
        ((0.5, 0.95, 0.99), "from the smallest size: 0.5× the step"),
        ((0.99, float("nan"), 0.99), "no longer at 1× the step (R² –)"),
    ],
)
def test_where_first_order_breaks_is_said(
    r2: tuple[float, ...], expected: str, first_order: FirstOrder
) -> None:
    found = first_order.joined[0].results.prediction
    assert found is not None
    agreements = tuple(
        Agreement(factor, None, 5, value, 1.0, 1.0, 0.1, 1.0)
        for factor, value in zip((0.5, 1.0, 4.0), r2, strict=True)
    )
    text = breaking_sentence(dataclasses.replace(found, agreements=agreements))
    assert expected in text


def test_the_command_joins_them_in_every_file(
    first_order: FirstOrder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stored(first_order.run, tmp_path / "store")
    probes = ["--probes", str(first_order.folder.parent / "probes.jsonl")]
    out = tmp_path / "report"
    command = ["report", str(run), *probes, "-o", str(out)]
    assert main([*command, "--dynamics", str(first_order.folder)]) == 0
    record = json.loads((out / "report.json").read_text())["runs"][0]
    (joined,) = record["dynamics"]
    elements = Elements((out / "report.html").read_text("utf-8"))
    assert json.loads(elements.unpacked("dynamics-0-0")) == joined
    assert joined["prediction"]["factors"] == [0.5, 1.0, 64.0]
    text = (out / "report.md").read_text()
    assert "## First order" in text
    assert "Which examples moved which kind" in text
    assert "Risk before training" in text
    assert "<img" not in text
    page = (out / "report.html").read_text()
    assert DATA not in page
    assert "<img" not in page
    rows = (out / "predictions.csv").read_text().splitlines()
    assert len(rows) == 1 + 3 * 12 * (TRAINED + HELDOUT)
    for name in ("agreements", "moved", "example_influence", "risk"):
        assert (out / f"{name}.csv").is_file(), name
    alone = str(first_order.folder / PREDICTION)
    risky = str(first_order.folder / RISK)
    assert main([*command, "--dynamics", alone, risky]) == 0
    parts = json.loads((out / "report.json").read_text())["runs"][0]["dynamics"]
    assert [part["influence"] for part in parts] == [None, None]
    capsys.readouterr()
    assert main([*command, "--dynamics", str(tmp_path)]) == 2
    assert "holds none of prediction.json" in capsys.readouterr().err


def test_a_report_without_results_has_no_word_of_them(
    first_order: FirstOrder, tmp_path: Path
) -> None:
    run = stored(first_order.run, tmp_path / "store")
    assert main(["report", str(run), "-o", str(tmp_path / "report")]) == 0
    record = json.loads((tmp_path / "report" / "report.json").read_text())
    assert "dynamics" not in record["runs"][0]
    assert "First order" not in (tmp_path / "report" / "report.md").read_text()
    with pytest.raises(StoreError, match="no such file"):
        read_results(tmp_path / PREDICTION)
