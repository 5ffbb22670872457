"""The drawn panels show what their captions say."""

from __future__ import annotations

import numpy as np
import pytest

from ldeval.dynamics.panels import (
    CHOSEN,
    OFF_POLICY,
    ON_POLICY,
    PEAKS,
    prediction,
    residual_panels,
    squeeze_panels,
)
from ldeval.dynamics.squeezing import first_order_threshold
from ldeval.records import SqueezePanel


def panel(name: str) -> SqueezePanel:
    return next(p for p in squeeze_panels() if p.name == name)


def test_a_positive_gradient_lifts_its_class_and_lowers_the_largest() -> None:
    found = panel("A")
    change = found.after - found.before
    assert change[found.pulled] > 0 > change[found.before.argmax()]


def test_from_a_flat_prediction_all_but_the_pushed_class_rise() -> None:
    found = panel("B")
    falls = np.flatnonzero(found.after <= found.before)
    assert falls.tolist() == [found.pushed]


def test_a_push_on_a_peak_spreads_and_in_a_valley_squeezes() -> None:
    on, off = panel("C"), panel("D0")
    assert on.pushed in PEAKS
    assert on.before[on.pushed] > 0.05
    assert off.pushed not in PEAKS
    tau = first_order_threshold(np.log(off.before), off.pushed)
    assert off.before[off.pushed] < tau  # the valley test
    rises = [int((p.after > p.before).sum()) for p in (on, off)]
    assert rises[0] > 3 * rises[1]
    assert off.after.max() > off.before.max()


def test_equal_gradients_on_one_input_cancel_but_for_their_classes() -> None:
    found = panel("D")
    ratio = np.log(found.after / found.before)
    rest = np.delete(ratio, [found.pulled, found.pushed])
    assert np.ptp(rest) < 1e-9
    assert ratio[found.pulled] > rest[0] > ratio[found.pushed]


def test_with_a_thousand_classes_a_strong_push_leaves_one() -> None:
    found = panel("E")
    assert len(found.before) == 1000
    assert found.after.max() > 3 * found.before.max()
    assert (found.after > found.before).sum() < 10


def test_pushed_panels_rise_exactly_above_their_threshold() -> None:
    for name in ("B", "C", "D0", "E"):
        found = panel(name)
        others = np.arange(len(found.before)) != found.pushed
        above = found.before > found.threshold
        assert ((found.after > found.before) == above)[others].all()


def test_every_seed_gives_predictions() -> None:
    for seed in range(20):
        for found in squeeze_panels(seed):
            assert found.before.sum() == pytest.approx(1)
            assert found.after.sum() == pytest.approx(1)


def test_rejected_tokens_lie_on_a_peak_and_in_a_valley() -> None:
    p = np.exp(prediction())
    assert p.argmax() == ON_POLICY
    assert p[OFF_POLICY] < p[CHOSEN] < p[ON_POLICY]
    assert first_order_threshold(np.log(p), OFF_POLICY) > 0
    assert first_order_threshold(np.log(p), ON_POLICY) < 0


def test_residual_panels_push_as_their_loss_says() -> None:
    found = {p.name: p for p in residual_panels()}
    for name, item in found.items():
        for push in (item.chosen, item.rejected):
            assert push is None or push.sum() == pytest.approx(0, abs=1e-9), name
        if item.chosen is not None and name != "SPPO, the paper's":
            assert item.chosen.argmax() == CHOSEN
            assert item.chosen[CHOSEN] > 0
        if item.rejected is not None and name != "SPPO, the paper's":
            assert item.rejected.argmin() == item.rejected_id
    assert found["SFT"].rejected is None
    assert found["NPO"].chosen is None
    turned = found["SPPO, the paper's"]
    assert turned.rejected is not None
    assert turned.rejected[turned.rejected_id] > 0


def test_a_margin_won_weakens_dpo_and_turns_ipo_round() -> None:
    start, later = (
        {p.name: p for p in residual_panels(0.1, margin)} for margin in (0.0, 12.0)
    )

    def pull(panels: object, name: str) -> float:
        return float(panels[name].chosen[CHOSEN])  # type: ignore[index]

    assert 0 < pull(later, "DPO, off-policy") < pull(start, "DPO, off-policy")
    assert pull(later, "IPO") < 0 < pull(start, "IPO")
