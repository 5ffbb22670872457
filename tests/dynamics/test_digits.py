"""A, K and G of the digits network: exact, first order, and accounted for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from ldeval.dynamics.digits import (
    DigitsSettings,
    Network,
    kernel,
    predict_step,
    rate_errors,
    residual,
    study,
    take_step,
)
from ldeval.dynamics.images import Digits, scikit_digits
from ldeval.errors import TheoryError
from ldeval.records import DigitsStudy


@pytest.fixture(scope="module")
def digits() -> Digits:
    return scikit_digits()


@pytest.fixture(scope="module")
def network(digits: Digits) -> Network:
    return Network(digits, 0)


@pytest.fixture(scope="module")
def short(digits: Digits) -> DigitsStudy:
    return study(digits, DigitsSettings(epochs=6))


def images_of(digits: Digits, count: int, start: int = 0) -> torch.Tensor:
    return torch.from_numpy(digits.images[start : start + count])


def test_the_kernel_is_the_product_of_jacobians_that_autograd_finds(
    digits: Digits, network: Network
) -> None:
    theta = network.start()
    one, other = images_of(digits, 2), images_of(digits, 3, 10)

    def rows(image: torch.Tensor) -> torch.Tensor:
        point = theta.clone().requires_grad_()
        z = network.logits(point, image.unsqueeze(0))[0]
        return torch.stack(
            [torch.autograd.grad(z[v], point, retain_graph=True)[0] for v in range(10)]
        )

    found = kernel(network, theta, one, other)
    assert found.shape == (2, 3, 10, 10)
    for o in range(2):
        for u in range(3):
            wanted = (rows(one[o]) @ rows(other[u]).T).numpy()
            assert np.allclose(found[o, u], wanted, rtol=1e-10, atol=1e-12)


def test_the_kernel_of_an_image_with_itself_is_positive_semidefinite(
    digits: Digits, network: Network
) -> None:
    images = images_of(digits, 20)
    blocks = kernel(network, network.start(), images, images)
    whole = blocks.transpose(0, 2, 1, 3).reshape(200, 200)
    assert np.allclose(whole, whole.T)
    assert np.linalg.eigvalsh(whole).min() > -1e-9 * np.linalg.norm(whole)


def test_the_residual_is_the_gradient_at_the_logits(
    digits: Digits, network: Network
) -> None:
    theta = network.start()
    for i in range(10):
        image, label = images_of(digits, 1, i)[0], int(digits.labels[i])
        z = network.logits(theta, image.unsqueeze(0)).requires_grad_()
        cross_entropy(z, torch.tensor([label])).backward()
        assert z.grad is not None
        found = residual(network, theta, image, label)
        assert np.allclose(found, z.grad[0].numpy(), atol=1e-12)


def test_the_remainder_is_of_second_order_whatever_is_learned(
    digits: Digits, network: Network
) -> None:
    theta = network.start()
    observed = images_of(digits, 30)
    for i in range(100, 110):
        image, label = images_of(digits, 1, i)[0], int(digits.labels[i])
        predicted = predict_step(network, theta, observed, image, label)

        def step(
            rate: float, image: torch.Tensor = image, label: int = label
        ) -> np.ndarray:
            return take_step(network, theta, observed, image, label, rate)

        errors, slope = rate_errors(predicted, step)
        assert slope == pytest.approx(2, abs=0.1)
        assert errors[0].error < 1e-3 * errors[0].change


def test_the_study_finds_slope_two_half_way_through_training(
    short: DigitsStudy,
) -> None:
    assert short.error_slope == pytest.approx(2, abs=0.1)
    step = short.step
    assert np.corrcoef(step.predicted.ravel(), step.actual.ravel())[0, 1] > 0.99


def test_first_order_summed_over_training_is_what_happened(short: DigitsStudy) -> None:
    assert np.corrcoef(short.accumulated.ravel(), short.moved.ravel())[0, 1] > 0.99
    slope = np.polyfit(short.accumulated.ravel(), short.moved.ravel(), 1)[0]
    assert slope == pytest.approx(1, abs=0.05)


def test_a_class_pulls_itself_more_than_others_and_likeness_helps(
    short: DigitsStudy,
) -> None:
    same = np.eye(10, dtype=bool)
    assert short.influence[same].mean() > 1.5 * short.influence[~same].mean()
    assert short.pull_on_likeness > 0.2


def test_ranks_of_the_kernel_are_stable(short: DigitsStudy) -> None:
    stable = short.rank_stability
    assert np.allclose(np.diag(stable), 1)
    assert stable[0, -1] > 0.5
    assert stable[-2, -1] > stable[0, -1]


def test_it_learns(short: DigitsStudy) -> None:
    before, after = short.accuracy
    assert after > 0.6 > before
    assert np.allclose(short.mean_prediction.sum(1), 1)


def test_a_study_is_the_same_again(digits: Digits) -> None:
    settings = DigitsSettings(epochs=1, train=200, observed=1)
    one, two = (study(digits, settings) for _ in range(2))
    assert np.array_equal(one.influence, two.influence)
    other = study(digits, dataclasses.replace(settings, seed=1))
    assert not np.array_equal(one.influence, other.influence)


def test_images_of_another_size_work() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(10).repeat(12)
    images = np.clip(
        rng.uniform(size=(10, 12, 14))[labels]
        + 0.1 * rng.standard_normal((120, 12, 14)),
        0,
        1,
    )
    found = study(
        Digits(images, labels, "noise"), DigitsSettings(epochs=1, train=80, observed=1)
    )
    assert found.images.shape == (10, 12, 14)
    assert found.error_slope == pytest.approx(2, abs=0.1)


def test_too_few_images_are_refused_with_the_class(digits: Digits) -> None:
    with pytest.raises(TheoryError, match=r"0 held-out .* of the digit 0"):
        study(digits, DigitsSettings(train=len(digits.labels)))
    with pytest.raises(TheoryError, match="at least 1"):
        study(digits, DigitsSettings(epochs=0))
