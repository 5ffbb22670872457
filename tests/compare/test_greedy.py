"""What greedy decodes say of a run: known answers, and what is left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ldeval.compare.greedy import greedy_path, repeats
from ldeval.compare.stats import Bootstrap
from ldeval.records import GreedyDecode, GreedyDecodes, GreedyPath

N = 60
M = 0.02


def world(
    step: int, own: float, reference: float, *, spread: float = 0.05, new: float = 0.5
) -> GreedyDecodes:
    """Each token's ln p is −0.5 at step 0; ``own`` and ``reference`` are added, with
    noise by prompt; a share ``new`` of the decodes are another text."""
    rng = np.random.default_rng(7)
    noise = np.random.default_rng(step + 1)
    decodes = []
    for number in range(N):
        n = int(rng.integers(6, 20))
        ids = rng.integers(0, 99, n).astype(np.int32)
        first = np.full(n, -0.5, np.float32)
        mine = ids if number >= new * N or not step else ids[::-1].copy()
        shift = noise.normal(0.0, spread) if step else 0.0
        decodes.append(
            GreedyDecode(
                probe_id=f"p{number}",
                trained=number % 2 == 0,
                ids=mine,
                logprobs=first + np.float32(own + shift),
                text=f"text {number} {step}",
                ended=True,
                reference_logprobs=first + np.float32(reference + shift),
            )
        )
    return GreedyDecodes(
        step=step,
        weights_hash=f"w{step}",
        probe_set_hash="p",
        reference_step=0,
        max_tokens=20,
        backend="hf",
        dtype="float32",
        decodes=tuple(decodes),
    )


def followed(*later: GreedyDecodes) -> GreedyPath:
    every = (world(0, 0.0, 0.0), *later)
    weights = {item.step: f"w{item.step}" for item in every}
    found = greedy_path(every, weights, M, Bootstrap(0, 499))
    assert found is not None
    return found


def test_known_moves_are_found_within_their_intervals() -> None:
    path = followed(world(10, 0.1, -0.2), world(20, 0.3, -0.6))
    assert [(s.step, s.split) for s in path.steps] == [
        (10, "trained"), (10, "heldout"), (20, "trained"), (20, "heldout")
    ]  # fmt: skip
    for step in path.steps:
        own, reference = (0.1, -0.2) if step.step == 10 else (0.3, -0.6)
        assert step.own_tok.low < own < step.own_tok.high
        assert step.reference_tok.low < reference < step.reference_tok.high
        assert step.n == N // 2
        assert step.same == N // 4
        assert step.length.value == 0.0
    assert path.surer == {"trained": "holds", "heldout": "holds"}
    assert path.left == {"trained": "holds", "heldout": "holds"}


def test_nothing_moved_reads_as_nothing() -> None:
    path = followed(world(10, 0.0, 0.0, spread=0.0, new=0.0))
    assert set(path.surer.values()) == {"does_not_hold"}
    assert set(path.left.values()) == {"does_not_hold"}
    assert all(step.shared == 1.0 for step in path.steps)
    assert {move.delta_sum for move in path.moves} == {0.0}


def test_a_move_that_prompts_do_not_agree_on_is_undecided() -> None:
    path = followed(world(10, 0.02, -0.02, spread=0.3))
    assert set(path.surer.values()) == {"undecided"}
    assert set(path.left.values()) == {"undecided"}


def test_moves_add_up_to_the_mean_and_fall_most_first() -> None:
    path = followed(world(10, 0.1, -0.2))
    deltas = [move.delta_sum for move in path.moves]
    assert deltas == sorted(deltas)
    for step in path.steps:
        own = [m.delta_sum for m in path.moves if m.split == step.split]
        assert np.mean(own) == pytest.approx(step.reference_sum.value, abs=1e-9)


def test_decodes_of_other_weights_are_left_out_and_told() -> None:
    later = world(10, 0.1, -0.2)
    every = (world(0, 0.0, 0.0), later, replace(world(20, 0.0, 0.0), weights_hash="x"))
    weights = {0: "w0", 10: "w10", 20: "w20", 30: "w30"}
    path = greedy_path(every, weights, M, Bootstrap(0, 99))
    assert path is not None
    assert {step.step for step in path.steps} == {10}
    notes = " ".join(path.notes)
    assert "step 20 are of other weights" in notes
    assert "no greedy decodes at step 30" in notes


def test_decodes_that_follow_another_checkpoint_are_left_out_and_told() -> None:
    stray = replace(world(20, 0.0, 0.0), reference_step=10)
    path = followed(world(10, 0.1, -0.2), stray)
    assert {step.step for step in path.steps} == {10}
    assert "step 20 do not follow those of step 0" in " ".join(path.notes)


def test_without_two_checkpoints_there_is_nothing_to_say() -> None:
    one = world(0, 0.0, 0.0)
    assert greedy_path([one], {0: "w0"}, M, Bootstrap(0, 99)) is None
    assert greedy_path([], {0: "w0"}, M, Bootstrap(0, 99)) is None


@pytest.mark.parametrize("first", [None, replace(world(0, 0.0, 0.0), weights_hash="x")])
def test_without_those_that_are_followed_no_later_decodes_are_compared(
    first: GreedyDecodes | None,
) -> None:
    later = world(10, 0.1, -0.2), world(20, 0.3, -0.6)
    every = later if first is None else (first, *later)
    weights = {0: "w0", 10: "w10", 20: "w20"}
    assert greedy_path(every, weights, M, Bootstrap(0, 99)) is None


def test_where_all_later_decodes_follow_another_checkpoint_nothing_is_compared() -> (
    None
):
    every = world(0, 0.0, 0.0), replace(world(10, 0.1, -0.2), reference_step=5)
    assert greedy_path(every, {0: "w0", 10: "w10"}, M, Bootstrap(0, 99)) is None


def test_repeats_counts_what_stands_there_already() -> None:
    assert repeats(np.arange(20)) == 0.0
    assert repeats(np.array([1, 2, 3])) == 0.0
    assert repeats(np.zeros(13, int)) == pytest.approx(0.9)
    assert repeats(np.tile([1, 2, 3, 4], 5)) == pytest.approx(13 / 17)
