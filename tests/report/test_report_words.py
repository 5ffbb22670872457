"""Sentences say what the numbers carry, and flip when the numbers flip."""

from __future__ import annotations

import dataclasses
import math

from hypothesis import given
from hypothesis import strategies as st

from ldeval.records import (
    Comparison,
    Conjunct,
    Estimate,
    Excluded,
    Flow,
    KindChange,
    Margin,
    Verdict,
)
from ldeval.report import print_summary, render_markdown
from ldeval.report.rounding import interval, number, percent, places, quote
from ldeval.report.verdict_tables import (
    reason_of,
    verdict_sentence,
    verdict_sentences,
    verdict_table,
)
from ldeval.report.words import (
    change_sentence,
    direction,
    flow_sentence,
    margin_sentence,
    net_shares,
    overview_sentences,
    share_sentence,
    split_sentences,
    standing_sentences,
)

FLOOR = 0.01
NUMBERS = st.floats(-10, 10, allow_nan=False)
UNDEFINED = Estimate.undefined("too few prompts", unit="nats/token", level=0.95)


def make(value: float, low: float, high: float, unit: str = "nats/token") -> Estimate:
    """An estimate at the 95% level."""
    return Estimate(value, low, high, (high - low) / 4, 0.95, 64, 64, unit)


@st.composite
def estimates(draw: st.DrawFn) -> Estimate:
    """Any interval, of any width, around any value."""
    low, value, high = sorted(draw(st.tuples(NUMBERS, NUMBERS, NUMBERS)))
    return make(value, low, high)


def change(per_token: Estimate, kind: str = "chosen") -> KindChange:
    """A change of which only the numbers of a direction matter."""
    per_response = dataclasses.replace(per_token, unit="nats/response")
    rest = (per_response, per_token, 0.5, per_token, per_token, per_token)
    more = (per_token, (0.0,) * 5, 0.5, 1.0)
    return KindChange(kind, "trained", 64, 50.0, -100.0, -90.0, *rest, *more)


@given(estimates())
def test_a_direction_is_named_only_where_the_interval_lies_beyond_the_floor(
    estimate: Estimate,
) -> None:
    text = change_sentence(change(estimate), FLOOR).split(":")[0]
    assert ("rose" in text) == (estimate.low > FLOOR)
    assert ("fell" in text) == (estimate.high < -FLOOR)
    if estimate.low <= 0 <= estimate.high and estimate.high - estimate.low > 0.05:
        assert "the direction is not clear" in text


@given(estimates())
def test_a_sentence_flips_when_its_numbers_flip(estimate: Estimate) -> None:
    mirror = make(-estimate.value, -estimate.high, -estimate.low)
    swap = {"rose": "fell", "fell": "rose"}
    here, there = direction(estimate, FLOOR), direction(mirror, FLOOR)
    assert there == swap.get(here, here)


@given(st.lists(estimates(), min_size=1, max_size=12))
def test_the_overview_puts_every_kind_in_exactly_one_group(
    found: list[Estimate],
) -> None:
    changes = [change(e, f"kind{i:02d}") for i, e in enumerate(found)]
    sentences = overview_sentences(changes, FLOOR)
    for item in changes:
        holding = [s for s in sentences if item.kind in s]
        assert len(holding) == 1
        lead = holding[0].split(":")[0]
        word = direction(item.delta_tok, FLOOR)
        expected = {"rose": "Rose", "fell": "Fell", "unclear": "Not clear"}
        assert lead == expected.get(word, "No change beyond the noise floor")


@given(estimates())
def test_the_margin_follows_its_own_interval(estimate: Estimate) -> None:
    margin = Margin("trained", 1.0, 2.0, estimate, estimate)
    lead = margin_sentence(margin, FLOOR).split(":")[0]
    assert ("rose" in lead) == (estimate.low > FLOOR)
    assert ("fell" in lead) == (estimate.high < -FLOOR)


def test_a_margin_that_rises_in_sum_alone_is_said_to() -> None:
    up, down = make(5.0, 4.0, 6.0, "nats/response"), make(-0.1, -0.2, -0.05)
    text = margin_sentence(Margin("trained", 1.0, 6.0, up, down), FLOOR)
    assert "rose" in text
    assert "per token it does not clearly go the same way" in text


def test_a_ratio_has_neither_sign_nor_unit() -> None:
    assert quote(make(0.5, 0.4, 0.6, "ratio")) == "0.50 (95% interval 0.40 to 0.60)"


def make_flow(
    label: Estimate, argmax: Estimate, rest: Estimate, share: Estimate
) -> Flow:
    return Flow(
        *("rejected", "trained", "off", 10, label, argmax, rest, rest),
        *(share, share, share, 1.0, 0.0, UNDEFINED),
    )


@given(estimates())
def test_the_flow_names_no_gain_that_its_interval_does_not_carry(
    estimate: Estimate,
) -> None:
    still = make(0.0, 0.0, 0.0)
    flow = make_flow(still, estimate, still, UNDEFINED)
    part = next(
        p for p in flow_sentence(flow, 0.001).split(";") if "reference argmax" in p
    )
    assert ("gained" in part) == (estimate.low > 0.001)
    assert ("lost" in part) == (estimate.high < -0.001)


def test_a_share_of_a_loss_that_is_not_clear_is_not_given() -> None:
    lost, unclear = make(-0.1, -0.2, -0.05), make(-0.1, -0.2, 0.05)
    gain, half = make(0.05, 0.04, 0.06), make(0.5, 0.4, 0.6)
    clear = make_flow(lost, gain, gain, half)
    assert net_shares(clear)["argmax"] == 0.5
    assert "50% net went to the reference argmax" in share_sentence(clear)
    odd = make_flow(unclear, gain, gain, UNDEFINED)
    assert net_shares(odd) == {}
    assert "did not clearly lose or gain" in share_sentence(odd)
    gained = make_flow(make(0.1, 0.05, 0.2), gain, gain, half)
    assert "50% net came from the reference argmax" in share_sentence(gained)
    assert "Net share of what the label lost: argmax 50%" in flow_sentence(clear, 0.001)
    assert "what the label gained, and who paid it: argmax 50%" in flow_sentence(
        gained, 0.001
    )


def test_a_flow_inside_the_noise_that_was_measured_is_not_called_one() -> None:
    gain, still = make(0.03, 0.02, 0.04), make(0.0, 0.0, 0.0)
    flow = make_flow(still, gain, still, UNDEFINED)
    assert "the reference argmax gained" in flow_sentence(flow, 0.001)
    said = "the reference argmax did not change by more than 0.05"
    assert said in flow_sentence(flow, 0.05)


def test_a_sum_that_goes_the_other_way_is_said() -> None:
    up = make(0.5, 0.4, 0.6)
    odd = dataclasses.replace(
        change(up), delta_sum=make(-1.0, -2.0, -0.5, "nats/response")
    )
    assert "does not clearly go the same way" in change_sentence(odd, FLOOR)
    assert "same way" not in change_sentence(change(up), FLOOR)


def test_an_interval_between_zero_and_the_floor_is_not_called_a_change() -> None:
    text = change_sentence(change(make(0.02, 0.005, 0.03)), FLOOR)
    assert "too near the noise floor to be called a change" in text


def test_an_undefined_estimate_is_said_with_its_reason() -> None:
    assert quote(UNDEFINED) == "undefined (too few prompts)"
    half = dataclasses.replace(UNDEFINED, value=0.5, reason="one prompt")
    assert quote(half) == "+0.500 nats/token (no interval: one prompt)"
    assert direction(half, FLOOR) == "undefined"


def test_the_one_wording_of_an_estimate() -> None:
    found = make(-3.1, -4.0, -2.2, "nats/response")
    assert quote(found) == "−3.1 nats/response (95% interval −4.0 to −2.2)"


@given(NUMBERS, st.integers(1, 6))
def test_a_number_keeps_its_sign_when_it_is_rounded(value: float, digits: int) -> None:
    shown = number(value, digits)
    assert shown.startswith({True: "−", False: "+"}[value < 0]) or value == 0
    assert "-" not in shown
    assert math.isclose(
        float(shown.replace("−", "-")), value, abs_tol=0.51 * 10**-digits
    )


def test_infinite_and_missing_ends_are_shown_as_such() -> None:
    assert interval(make(0.0, -math.inf, 1.0), 1) == "−∞ to +1.0"
    assert interval(UNDEFINED, 1) == "–"
    assert places([UNDEFINED]) == 1


def test_only_whole_shares_read_zero_or_all() -> None:
    shown = [percent(x) for x in (0.0, 0.004, 0.5, 0.996, 1.0, math.nan, -0.2)]
    assert shown == ["0%", "<1%", "50%", ">99%", "100%", "–", "−20%"]


def test_the_argmax_is_shown_and_never_evidence(comparison: Comparison) -> None:
    sentences = split_sentences(comparison.overall, "trained", FLOOR, 0.001)
    shown = [s for s in sentences if s.startswith("Shown, not used as evidence")]
    assert len(shown) == 2
    assert not any("argmax:" in s for s in sentences)
    assert not any("argmax along" in s for s in sentences if s not in shown)


def test_a_split_without_probes_says_so(comparison: Comparison) -> None:
    trained = tuple(c for c in comparison.overall.changes if c.split == "trained")
    pair = dataclasses.replace(comparison.overall, changes=trained)
    sentences = split_sentences(pair, "heldout", FLOOR, 0.001)
    assert sentences == ("No held-out probes were compared.",)


def test_without_flows_nothing_is_said_about_where_mass_went(
    comparison: Comparison,
) -> None:
    pair = dataclasses.replace(comparison.overall, flows=())
    sentences = split_sentences(pair, "trained", FLOOR, 0.001)
    assert any("is not known: the comparison holds no flow" in s for s in sentences)
    assert not any("gained" in s for s in sentences)


def test_persistence_is_spoken_of_only_when_it_is_not_assessed(
    comparison: Comparison,
) -> None:
    text = " ".join(standing_sentences(comparison))
    assert "Persistence is not assessed: with 5 checkpoints" in text
    assert "±0.010 nats/token" in text
    long = dataclasses.replace(comparison, persistence_assessed=True)
    assert "ersistence" not in " ".join(standing_sentences(long))


def test_an_undecided_verdict_is_worded_with_its_reason() -> None:
    part = Conjunct("S3", "mass to the top", "undecided", {"A": UNDEFINED}, "no top-k")
    whole = Verdict("squeezing", "undecided", "heldout", (part,), "S3: no top-k")
    text = verdict_sentence(whole)
    assert text.startswith("squeezing, held-out probes: undecided; S3: no top-k")
    few = dataclasses.replace(whole, reason="12 clusters; a verdict needs 20")
    assert "undefined" not in verdict_sentence(few)


def test_a_verdict_that_does_not_hold_names_the_false_condition() -> None:
    true = Conjunct("S1", "rejected down", "holds", {})
    false = Conjunct(
        "C down", "chosen down", "does_not_hold", {"chosen": make(1, 0.5, 2)}
    )
    found = Verdict("squeezing", "does_not_hold", "trained", (true, false))
    assert reason_of(found) == "C down is false (it asks: chosen down)"
    assert "chosen: +1.0 nats/token" in verdict_sentence(found)


def test_a_destination_is_told_only_of_a_displacement_that_holds() -> None:
    part = Conjunct("C down", "chosen down", "holds", {}, "not known for every text")
    held = Verdict(
        "likelihood_displacement",
        "holds",
        "trained",
        (part,),
        details={"destination": "tail", "calibration": "uncalibrated"},
    )
    assert "destination: tail" in verdict_sentence(held)
    assert "not known for every text" in verdict_sentence(held)
    not_held = dataclasses.replace(held, state="does_not_hold")
    assert "destination" not in verdict_sentence(not_held)
    assert "uncalibrated" in verdict_sentence(not_held)


def test_the_verdict_table_shows_both_splits(comparison: Comparison) -> None:
    rows = {row[0]: row for row in verdict_table(comparison).rows}
    assert rows["squeezing_chosen_held"][1:3] == ("holds", "undecided")
    assert len(verdict_sentences(comparison.verdicts)) == 8


def test_a_reason_that_all_verdicts_of_a_split_share_is_said_once(
    comparison: Comparison,
) -> None:
    few = "8 clusters of prompts; a verdict needs at least 20"
    verdicts = tuple(
        dataclasses.replace(v, state="undecided", reason=few)
        if v.split == "heldout"
        else v
        for v in comparison.verdicts
    )
    table = verdict_table(dataclasses.replace(comparison, verdicts=verdicts))
    assert table.notes == (f"All verdicts on held-out probes are undecided: {few}.",)
    assert not any(few in cell for row in table.rows for cell in row)
    assert sum(few in s for s in verdict_sentences(verdicts)) == 1


def test_no_text_claims_what_the_numbers_do_not_carry(
    stages: tuple[Comparison, ...],
) -> None:
    text = render_markdown(stages, {}) + "".join(map(print_summary, stages))
    for word in ("signific", "prove", "because of", "caused"):
        assert word not in text.lower()


def test_the_summary_has_the_changes_the_margin_and_every_verdict(
    comparison: Comparison,
) -> None:
    text = print_summary(comparison)
    for name in (*comparison.kinds, *(v.name for v in comparison.verdicts)):
        assert name in text
    assert "Margin (chosen − rejected)" in text
    assert max(map(len, text.splitlines())) <= 100
    assert print_summary(comparison, style="ascii").isascii()


def test_the_summary_says_what_was_left_out_and_what_to_know(
    comparison: Comparison,
) -> None:
    left_out = Excluded("long-probe", "chosen", "longer than the model's context")
    text = print_summary(
        dataclasses.replace(
            comparison, excluded=(left_out,), notes=("mixed dtype: bfloat16, float32",)
        )
    )
    assert "longer than the model's context" in text
    assert "long-probe (chosen)" in text
    assert "\n- mixed dtype: bfloat16, float32\n" in text
