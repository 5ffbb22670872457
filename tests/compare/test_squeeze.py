"""The decision table on runs whose cause is known."""

from __future__ import annotations

import dataclasses
from itertools import product

import numpy as np
import pytest

from ldeval.compare import Bootstrap, Thresholds, decide, digests
from ldeval.compare.evidence import SplitEvidence
from ldeval.compare.imported import compare_levels
from ldeval.compare.logic import all_hold, is_above, is_below, opposite
from ldeval.compare.series import spread, widened
from ldeval.compare.squeeze import OTHERS, Question
from ldeval.records import KIND_NAMES, Estimate, LevelColumn, LevelRun

from .conftest import (
    lift,
    make_world,
    reordered,
    squeeze_step,
    squeezed,
    without,
)

TOP = ("top_ids", "top_logprobs", "ref_ids", "ref_logprobs")
NAMES = [
    "squeezing",
    "squeezing_chosen_held",
    "likelihood_displacement",
    "learning",
    "hallucination_pull",
    "ungrammatical_leakage",
    "repetition",
]


def evidence_of(tables, split="trained"):
    return SplitEvidence(digests(tables), split, Bootstrap(0, 499), Thresholds())


def judge(*tables, split="trained", **more):
    """Verdicts by name."""
    question = Question(evidence_of(tables, split), 0.01, 0.001, **more)
    return {verdict.name: verdict for verdict in decide(question)}


def run_of(change, *, trained=24, heldout=0, seed=0, **more):
    world = make_world(trained, heldout, seed=seed, **more)
    return world.table(0), world.changed(change).table(10, world)


def part(verdict, name):
    return next(conjunct for conjunct in verdict.conjuncts if conjunct.name == name)


def by_kind(amounts, default=0.0, noise=0.02, seed=3):
    """Lift each kind's labels by its own amount, with a little noise a response."""
    rng = np.random.default_rng(seed)

    def change(probe, kind, z, y):
        return lift(z, y, amounts.get(kind, default) + noise * rng.standard_normal())

    return change


@pytest.fixture(scope="module")
def squeezed_pair():
    return run_of(squeezed())


def test_a_squeeze_step_on_rejected_with_the_rest_falling_is_squeezing(squeezed_pair):
    found = judge(*squeezed_pair)
    assert list(found) == NAMES
    assert found["squeezing"].state == "holds"
    assert [c.name for c in found["squeezing"].conjuncts] == [
        "S1",
        "S2",
        "S3",
        "C down",
    ]
    assert all(c.truth == "holds" for c in found["squeezing"].conjuncts)
    assert found["squeezing_chosen_held"].state == "does_not_hold"
    assert found["learning"].state == "does_not_hold"


def test_verdict_evidence_stands_at_the_99_percent_level(squeezed_pair):
    for verdict in judge(*squeezed_pair).values():
        for conjunct in verdict.conjuncts:
            for estimate in conjunct.evidence.values():
                assert estimate.level == 0.99


def test_squeezing_may_be_likelihood_displacement_too(squeezed_pair):
    verdict = judge(*squeezed_pair)["likelihood_displacement"]
    assert verdict.state == "holds"
    assert verdict.details["destination"] in ("argmax", "top-k", "tail")


def test_a_squeeze_that_spares_chosen_is_squeezing_chosen_held():
    found = judge(*run_of(squeezed(chosen=0.3)))
    assert found["squeezing_chosen_held"].state == "holds"
    assert found["squeezing"].state == "does_not_hold"
    assert found["learning"].state == "does_not_hold"


def test_of_imported_means_chosen_is_held_where_it_lost_less_than_their_own_m():
    rng, ends = np.random.default_rng(0), {"chosen": -0.5, "rejected": -60.0}
    columns = [
        LevelColumn(
            name,
            "kind" if name in KIND_NAMES else "derived",
            name,
            tuple(np.linspace(-120, -120 + end, 40) + rng.normal(0, 0.03, 40)),
        )
        for name, end in (
            *((kind, ends.get(kind, -20.0)) for kind in KIND_NAMES),
            ("argmax:permuted", 15.0),
        )
    ]
    steps = tuple(range(40))
    levels = LevelRun("r", "reference", "f", "trained", steps, "steps", tuple(columns))
    verdict = {v.name: v for v in compare_levels(levels).verdicts}
    held = part(verdict["squeezing_chosen_held"], "S4")
    assert held.evidence["chosen"].high < -0.01
    assert part(verdict["squeezing"], "C down").truth == "does_not_hold"
    assert held.truth == "holds"
    assert verdict["squeezing_chosen_held"].state == "holds"


def test_sharpening_the_temperature_is_not_squeezing():
    found = judge(*run_of(lambda p, k, z, y: 1.3 * z))
    assert found["squeezing"].state != "holds"
    assert found["squeezing_chosen_held"].state != "holds"
    # the argmax rises there too: it is the contrast with rephrases that refuses
    assert part(found["squeezing"], "S3").truth == "holds"
    assert part(found["squeezing"], "S1").truth != "holds"


def test_supervised_fine_tuning_reads_as_learning():
    found = judge(*run_of(by_kind({"chosen": 1.0, "rejected": 0.3})))
    assert found["learning"].state == "holds"
    assert found["squeezing"].state == "does_not_hold"


def test_identical_tables_let_no_verdict_hold():
    table = make_world(24).table(0)
    again = dataclasses.replace(
        table, manifest=dataclasses.replace(table.manifest, step=10)
    )
    for verdict in judge(table, again).values():
        assert verdict.state == "undecided"
        assert "1 distinct evaluation;" in verdict.reason
        for conjunct in verdict.conjuncts:
            if conjunct.name in ("S1", "S2", "S3", "C up", "C down"):
                assert conjunct.truth == "does_not_hold"


def test_ten_probes_leave_every_verdict_undecided_saying_how_many():
    for verdict in judge(*run_of(squeezed(), trained=10)).values():
        assert verdict.state == "undecided"
        assert verdict.reason.startswith("10 clusters of trained")


@pytest.mark.parametrize(
    ("verdict", "condition", "kinds"),
    [
        ("squeezing", "S1", ("rejected",)),
        ("hallucination_pull", "irrelevant_train up", ("irrelevant_train",)),
    ],
)
def test_a_kind_that_few_prompts_have_settles_no_verdict(verdict, condition, kinds):
    rising = by_kind({"chosen": 0.5, "irrelevant_train": 1.0, "irrelevant_test": -0.2})
    change = squeezed() if verdict == "squeezing" else rising
    whole = run_of(change, trained=40)
    assert judge(*whole)[verdict].state == "holds"
    few = [
        reordered(
            table,
            [
                row
                for (probe, kind), row in table.index().items()
                if kind not in kinds or int(probe[1:]) < 4
            ],
        )
        for table in whole
    ]
    found = judge(*few)[verdict]
    assert found.state == "undecided"
    assert part(found, condition).truth == "undecided"
    assert "at least 20 are needed" in part(found, condition).reason
    assert f"{kinds[0]}: 4" in found.reason


def test_clusters_count_not_prompts_when_texts_repeat():
    world = make_world(24)
    texts = {
        row: f"{row[1]} {int(row[0][1:]) // 2}" if row[1] == "chosen" else text
        for row, text in world.texts.items()
    }
    world = dataclasses.replace(world, texts=texts)
    after = world.changed(squeezed()).table(10, world)
    for verdict in judge(world.table(0), after).values():
        assert verdict.reason.startswith("12 clusters of trained")


def test_held_out_probes_are_judged_apart_from_trained_ones():
    def trained_only(probe, kind, z, y):
        return squeezed()(probe, kind, z, y) if int(probe[1:]) < 24 else z

    tables = run_of(trained_only, trained=24, heldout=24)
    assert judge(*tables)["squeezing"].state == "holds"
    assert judge(*tables, split="heldout")["squeezing"].state == "does_not_hold"


def test_a_split_without_probes_is_undecided():
    for verdict in judge(*run_of(squeezed()), split="heldout").values():
        assert verdict.state == "undecided"
        assert verdict.reason.startswith("0 clusters of held-out")


@pytest.mark.parametrize(
    ("declared", "truth"), [(None, "holds"), (True, "holds"), (False, "does_not_hold")]
)
def test_only_a_declared_absence_of_a_negative_term_refutes_s1(
    squeezed_pair, declared, truth
):
    found = judge(*squeezed_pair, objective_has_negative=declared)["squeezing"]
    assert part(found, "S1").truth == truth
    assert found.state == truth


def test_rejected_falling_no_faster_than_its_rephrases_is_no_negative_pressure():
    found = judge(*run_of(by_kind({}, default=-0.4, noise=0.0)))["squeezing"]
    assert part(found, "S1").truth != "holds"


def test_without_rephrases_s1_is_undecided_saying_so(squeezed_pair):
    kept = [
        reordered(t, np.flatnonzero(t.kinds != "rejected_format"))
        for t in squeezed_pair
    ]
    conjunct = part(judge(*kept)["squeezing"], "S1")
    assert conjunct.truth == "undecided"
    assert "rejected_format was not scored" in conjunct.reason


def test_too_few_other_kinds_leave_s2_undecided(squeezed_pair):
    names = ["chosen", "rejected", "rejected_semantic", "rejected_format", "permuted"]
    kept = [
        reordered(t, np.flatnonzero(np.isin(t.kinds, names))) for t in squeezed_pair
    ]
    conjunct = part(judge(*kept)["squeezing"], "S2")
    assert conjunct.truth == "undecided"
    assert conjunct.reason.startswith("3 other kinds from 2 regions")


def test_two_rising_kinds_of_ten_refute_s2():
    rising = {"irrelevant_train": 0.3, "initial": 0.3}
    found = judge(*run_of(by_kind(rising, default=-0.3)))["squeezing"]
    assert part(found, "S2").truth == "does_not_hold"
    assert set(OTHERS) < set(part(found, "S2").evidence)


def test_one_rising_kind_of_ten_does_not_refute_s2():
    found = judge(*run_of(by_kind({"initial": 0.3}, default=-0.3)))["squeezing"]
    assert part(found, "S2").truth == "holds"


def test_the_destination_of_displaced_mass_is_the_bin_that_gained_most():
    def to_the_argmax(probe, kind, z, y):
        if kind != "chosen":
            return lift(z, y, -0.8 if kind == "rejected" else -0.3)
        return lift(lift(z, np.argmax(z, axis=1), 1.0), y, -0.5)

    def to_the_tail(probe, kind, z, y):
        if kind != "chosen":
            return lift(z, y, -2.0 if kind == "rejected" else -0.3)
        return lift(lift(z, np.argmin(z, axis=1), 9.0), y, -0.5)

    for change, bin_name in ((to_the_argmax, "argmax"), (to_the_tail, "tail")):
        verdict = judge(*run_of(change))["likelihood_displacement"]
        assert verdict.details["destination"] == bin_name


def test_without_top_tokens_the_destination_is_unknown(squeezed_pair):
    bare = [without(table, *TOP) for table in squeezed_pair]
    verdict = judge(*bare)["likelihood_displacement"]
    assert verdict.details["destination"] == "unknown"


def test_without_flows_s3_rests_on_the_argmax_along_a_falling_kind(squeezed_pair):
    bare = [without(table, *TOP) for table in squeezed_pair]
    conjunct = part(judge(*bare)["squeezing"], "S3")
    assert conjunct.truth == "holds"
    assert "along rejected" in conjunct.reason


def test_without_flows_the_argmax_along_rising_kinds_counts_for_nothing():
    change = by_kind({"chosen": 2.0, "rejected": 2.0}, default=-0.3)
    bare = [without(table, *TOP) for table in run_of(change)]
    assert part(judge(*bare)["squeezing"], "S3").truth == "does_not_hold"


def test_without_any_argmax_s3_is_undecided_with_the_reason(squeezed_pair):
    bare = [
        without(table, *TOP, "argmax_ids", "argmax_logprobs") for table in squeezed_pair
    ]
    conjunct = part(judge(*bare)["squeezing"], "S3")
    assert conjunct.truth == "undecided"
    assert "argmax log-probabilities not stored" in conjunct.reason


PULL = by_kind({"chosen": 1.0, "irrelevant_train": 0.4})


def test_irrelevant_train_rising_above_irrelevant_test_is_hallucination_pull():
    tables = run_of(PULL)
    log = {5: frozenset(tables[0].probe_ids.tolist())}
    verdict = judge(*tables, trained_log=log)["hallucination_pull"]
    assert verdict.state == "holds"
    assert "24 of 24 source texts trained" in verdict.conjuncts[2].reason


def test_without_a_log_hallucination_pull_passes_and_says_so():
    verdict = judge(*run_of(PULL))["hallucination_pull"]
    assert verdict.state == "holds"
    assert verdict.conjuncts[2].reason.startswith("not known")


@pytest.mark.parametrize(
    "log",
    [
        {},  # nothing was trained
        {0: frozenset(f"p{i:03d}" for i in range(24))},  # before the first checkpoint
        {11: frozenset(f"p{i:03d}" for i in range(24))},  # after the last one
        {5: frozenset(f"p{i:03d}" for i in range(12))},  # half of the sources
    ],
)
def test_sources_known_not_to_be_trained_leave_hallucination_pull_undecided(log):
    verdict = judge(*run_of(PULL), trained_log=log)["hallucination_pull"]
    assert verdict.state == "undecided"
    assert "does not separate" in verdict.reason


def test_trained_sources_of_the_control_leave_hallucination_pull_undecided():
    world = make_world(24)
    texts = dict(world.texts)
    for probe in world.probes:
        texts[probe, "irrelevant_test"] = texts[probe, "chosen"]
    world = dataclasses.replace(world, texts=texts)
    after = world.changed(PULL).table(10, world)
    log = {5: frozenset(world.probes)}
    verdict = judge(world.table(0), after, trained_log=log)["hallucination_pull"]
    assert verdict.state == "undecided"


def test_shuffled_words_rising_beyond_their_order_is_ungrammatical_leakage():
    up = {"permuted": 0.4, "random_words": 0.4}
    assert judge(*run_of(by_kind(up)))["ungrammatical_leakage"].state == "holds"
    all_up = up | {"irrelevant_test": 0.4}
    found = judge(*run_of(by_kind(all_up)))["ungrammatical_leakage"]
    assert found.state != "holds"


def collapse(probe, kind, z, y):
    """Every position comes to prefer one token."""
    raised = z.copy()
    raised[:, 7] += 12.0
    return raised


def test_one_token_everywhere_is_repetition():
    verdict = judge(*run_of(collapse))["repetition"]
    assert verdict.state == "holds"
    assert verdict.details["calibration"] == "uncalibrated"


@pytest.mark.parametrize("column", ["entropies", "argmax_ids"])
def test_repetition_names_the_column_that_is_missing(column):
    before, after = run_of(collapse)
    verdict = judge(before, without(after, column))["repetition"]
    assert verdict.state == "undecided"
    assert f"the column {column} is missing at step 10" in verdict.reason


def test_growing_entropy_refutes_repetition():
    found = judge(*run_of(lambda p, k, z, y: 0.5 * z))["repetition"]
    assert found.state == "does_not_hold"


def many_checkpoints(ends):
    """Nine checkpoints; chosen and rejected lifted by ``ends[t]`` in all."""
    world = make_world(24)
    rng = np.random.default_rng(0)
    noise = {probe: 0.02 * rng.standard_normal() for probe in world.probes}
    return [
        world.changed(
            lambda p, k, z, y, amount=amount, t=t: (
                lift(z, y, amount + noise[p]) if t else z
            )
        ).table(t, world)
        for t, amount in enumerate(ends)
    ]


def test_the_end_value_is_the_mean_of_the_last_checkpoints():
    tables = many_checkpoints([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.3])
    evidence = evidence_of(tables)
    rows = tables[0].kinds == "chosen"
    change = [
        (t.logprob_sums - tables[0].logprob_sums)[rows].sum() for t in tables[-2:]
    ]
    expected = np.mean(change) / tables[0].n_tokens[rows].sum()
    assert evidence.window == 2
    assert evidence.kind("chosen").value == pytest.approx(expected)


def test_a_wandering_curve_widens_the_interval_of_its_end_value():
    calm = many_checkpoints([0.0] + [0.5] * 8)
    restless = many_checkpoints([0, 0.5, 0.1, 0.9, 0.1, 0.9, 0.1, 0.9, 0.1])
    widths = [evidence_of(t).kind("chosen").half_width for t in (calm, restless)]
    assert widths[1] > 5 * widths[0]


def test_fewer_than_eight_checkpoints_count_the_last_one_alone():
    tables = many_checkpoints([0, 0.5, 0.1, 0.9, 0.1, 0.9, 0.1])
    evidence = evidence_of(tables)
    alone = evidence_of([tables[0], tables[-1]])
    assert evidence.window == 1
    assert evidence.kind("chosen") == alone.kind("chosen")


@pytest.mark.parametrize(
    ("checkpoints", "window"), [(2, 1), (7, 1), (8, 2), (12, 3), (20, 5), (50, 5)]
)
def test_the_window_follows_the_number_of_checkpoints(checkpoints, window):
    assert Thresholds().window(checkpoints) == window


def test_the_spread_of_a_path_is_the_larger_of_its_two_measures():
    path = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 4.1, 4.0, 4.1])
    assert spread(path, 2, 1.48) == pytest.approx(1.48 * 1.0 / np.sqrt(2))
    late = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 3.0])
    assert spread(late, 2, 1.48) == pytest.approx(np.std([0.0, 3.0], ddof=1))


def test_widening_adds_in_squares_on_both_sides():
    one = Estimate(1.0, 0.7, 1.4, 0.1, 0.99, 30, 30, "nats/token")
    wide = widened(one, 0.2, 4, 2.58)
    extra = (2.58 * 0.2) ** 2 / 4
    assert 1.0 - wide.low == pytest.approx(np.sqrt(0.09 + extra))
    assert wide.high - 1.0 == pytest.approx(np.sqrt(0.16 + extra))


def test_a_larger_noise_floor_replaces_the_smallest_change():
    assert Thresholds().nats(None) == 0.01
    assert Thresholds().nats(0.03) == 0.03
    assert Thresholds().nats(0.001) == 0.01
    assert Thresholds().probability(None) == 0.001


@pytest.mark.parametrize("values", product([True, False, None], repeat=2))
def test_a_conjunction_is_false_with_any_false_and_true_with_all_true(values):
    found = all_hold(values)
    if False in values:
        assert found is False
    else:
        assert found is (None if None in values else True)


def test_three_valued_comparisons_leave_what_the_interval_spans_open():
    one = Estimate(0.5, 0.4, 0.6, 0.1, 0.99, 30, 30, "ratio")
    assert is_below(one, 0.7) is True
    assert is_below(one, 0.5) is None
    assert is_below(one, 0.4) is False
    assert is_above(one, 0.3) is True
    assert is_above(one, 0.5) is None
    assert is_above(one, 0.6) is False
    undefined = Estimate.undefined("absent", unit="ratio", level=0.99)
    assert is_below(undefined, 1.0) is None
    assert [opposite(v) for v in (True, False, None)] == [False, True, None]


def test_a_squeeze_step_alone_raises_the_argmax_along_rejected():
    tables = run_of(
        lambda p, k, z, y: squeeze_step(z, y, 1.0) if k == "rejected" else z
    )
    flow = evidence_of(tables).flow("rejected")
    assert flow["argmax"].low > 0
    assert sum(estimate.value for estimate in flow.values()) == pytest.approx(0)
