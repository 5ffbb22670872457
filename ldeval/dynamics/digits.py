"""The digits experiment: A, K and G of a small network, exactly, while it learns.

What the paper shows on MNIST (arXiv 2407.10490, section 3.1 and appendix C), on images
that are there without a download. The network is LeNet's shape in float64, smooth
throughout (tanh, mean pooling), so that the remainder of first order is of second
order and can be seen to be. Training is plain gradient descent, to which proposition 1
applies as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.functional import cross_entropy

from ldeval.dynamics.first_order import first_order, log_softmax, through_softmax
from ldeval.dynamics.images import CLASSES, Digits
from ldeval.errors import TheoryError
from ldeval.records import (
    DigitsStudy,
    FloatArray,
    IntArray,
    KernelSnapshot,
    RateError,
    StepPrediction,
)

VISIBLE = 0.3
"""Size of the largest predicted change in the step that is drawn, nats."""
ERROR_CHANGES = tuple(float(x) for x in np.geomspace(1e-4, 3e-2, 8))
"""Largest predicted changes, nats, at which the remainder is measured."""


@dataclass(frozen=True)
class DigitsSettings:
    """How the network is trained and watched."""

    epochs: int = 40
    batch: int = 64
    rate: float = 0.1
    """η."""
    train: int = 1200
    """Images trained on."""
    held: int = 2000
    """Most images held out, of those that are left."""
    observed: int = 5
    """Held-out images of each class that are watched at every step."""
    snapshots: int = 9
    """Moments at which the kernel is kept, epochs growing in steps of two."""
    learned: int = 4
    """The class of the image that one step learns, half-way through training."""
    seed: int = 0


class Network:
    """Two convolutions and a linear layer, as a function of a vector of parameters."""

    def __init__(self, digits: Digits, seed: int) -> None:
        torch.manual_seed(seed)
        height, width = digits.images.shape[1:]
        # without centring, all images share one large direction and K is one number
        self._centre = float(digits.images.mean(dtype=np.float64))
        self._scale = float(digits.images.std(dtype=np.float64))
        inner = 16 * (height // 4) * (width // 4)
        self.module = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(inner, CLASSES),
        ).double()
        for name, parameter in self.module.named_parameters():
            # the default is so small that learning starts with a long pause
            if name.endswith("weight"):
                nn.init.kaiming_normal_(parameter)
            else:
                nn.init.zeros_(parameter)
        self._shapes = {n: p.shape for n, p in self.module.named_parameters()}
        self.size = sum(p.numel() for p in self.module.parameters())

    def start(self) -> Tensor:
        """[P] the parameters that it was made with."""
        return torch.cat([p.detach().flatten() for p in self.module.parameters()])

    def logits(self, theta: Tensor, images: Tensor) -> Tensor:
        """[N, 10] of [N, H, W] images."""
        sizes = [shape.numel() for shape in self._shapes.values()]
        parts = torch.split(theta, sizes)
        named = {
            name: part.view(shape)
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }
        pixels = ((images - self._centre) / self._scale).unsqueeze(1)
        result: Tensor = functional_call(self.module, named, (pixels,))
        return result

    def jacobian(self, theta: Tensor, images: Tensor) -> Tensor:
        """[N, 10, P] ∂z/∂θ of every image."""

        def one(theta: Tensor, image: Tensor) -> Tensor:
            return self.logits(theta, image.unsqueeze(0))[0]

        result: Tensor = vmap(jacrev(one), (None, 0))(theta, images)
        return result

    def gradients(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """[N, P] ∂ℓ/∂θ of every example's cross-entropy."""

        def one(theta: Tensor, image: Tensor, label: Tensor) -> Tensor:
            z = self.logits(theta, image.unsqueeze(0))
            return cross_entropy(z, label.unsqueeze(0))

        result: Tensor = vmap(grad(one), (None, 0, 0))(theta, images, labels)
        return result

    def log_p(self, theta: Tensor, images: Tensor) -> FloatArray:
        """[N, 10] ln π."""
        with torch.no_grad():
            return log_softmax(self.logits(theta, images).numpy())


# ------------------------------------------------------------------------- first order


def kernel(network: Network, theta: Tensor, one: Tensor, other: Tensor) -> FloatArray:
    """[O, U, 10, 10] K(x_o, x_u) = (∂z_o/∂θ)(∂z_u/∂θ)ᵀ, exact.

    Args:
        network: The network.
        theta: [P] parameters.
        one: [O, H, W] observed images.
        other: [U, H, W] learned images.
    """
    left, right = network.jacobian(theta, one), network.jacobian(theta, other)
    result: FloatArray = torch.einsum("ovp,uwp->ouvw", left, right).numpy()
    return result


def residual(network: Network, theta: Tensor, image: Tensor, label: int) -> FloatArray:
    """[10] G = π − e_y of one example."""
    result: FloatArray = np.exp(network.log_p(theta, image.unsqueeze(0))[0])
    result[label] -= 1
    return result


def predict_step(
    network: Network, theta: Tensor, observed: Tensor, image: Tensor, label: int
) -> FloatArray:
    """[O, 10] −A K G: the first-order change of ln π for η = 1, nats."""
    block = kernel(network, theta, observed, image.unsqueeze(0))[:, 0]
    pressure = residual(network, theta, image, label)
    return first_order(
        network.log_p(theta, observed),
        block,
        np.broadcast_to(pressure, (len(observed), CLASSES)),
        1.0,
    )


def take_step(
    network: Network,
    theta: Tensor,
    observed: Tensor,
    image: Tensor,
    label: int,
    rate: float,
) -> FloatArray:
    """[O, 10] what one step of gradient descent on the example changes, nats."""
    gradient = network.gradients(theta, image.unsqueeze(0), torch.tensor([label]))[0]
    after = network.log_p(theta - rate * gradient, observed)
    return after - network.log_p(theta, observed)


def rate_errors(
    predicted: FloatArray, step: Callable[[float], FloatArray]
) -> tuple[tuple[RateError, ...], float]:
    """The remainder at learning rates 300-fold apart, and its slope in log–log.

    Args:
        predicted: [O, V] for η = 1.
        step: The actual change for an η.
    """
    largest = float(np.abs(predicted).max())
    found = []
    for change in ERROR_CHANGES:
        rate = change / largest
        actual = step(rate)
        error = float(np.linalg.norm(actual - rate * predicted))
        found.append(RateError(rate, error, float(np.linalg.norm(actual))))
    slope = np.polyfit(
        np.log([item.rate for item in found]), np.log([item.error for item in found]), 1
    )[0]
    return tuple(found), float(slope)


# --------------------------------------------------------------------------- the study


def study(
    digits: Digits,
    settings: DigitsSettings | None = None,
    *,
    progress: Callable[[Iterator[int]], Iterator[int]] = lambda epochs: epochs,
) -> DigitsStudy:
    """Train, watch every step, and account for what moved.

    Args:
        digits: At least a few images of every class.
        settings: The defaults without.
        progress: Wraps the iterator over epochs.

    Raises:
        TheoryError: there are too few images.
    """
    settings = settings or DigitsSettings()
    parts = _Parts.of(digits, settings)
    network = Network(digits, settings.seed)
    watch = _Watch(network, parts, settings)
    start = theta = network.start()
    before_accuracy = watch.accuracy(theta)
    moments = _moments(settings)
    kernels = [watch.snapshot(theta, 0)]
    middle = theta
    for epoch in progress(iter(range(1, settings.epochs + 1))):
        theta = watch.epoch(theta, epoch)
        if epoch == (settings.epochs + 1) // 2:
            middle = theta
        if epoch in moments:
            kernels.append(watch.snapshot(theta, watch.steps))
    observed = parts.observed
    image, label = watch.undecided(middle, settings.learned), settings.learned
    predicted = predict_step(network, middle, observed, image, label)

    def step(rate: float) -> FloatArray:
        return take_step(network, middle, observed, image, label, rate)

    errors, slope = rate_errors(predicted, step)
    visible = VISIBLE / float(np.abs(predicted).max())
    final = network.log_p(theta, observed)
    likeness, different = _likeness(digits), ~np.eye(CLASSES, dtype=bool)
    return DigitsStudy(
        source=digits.source,
        parameters=network.size,
        images=observed.numpy(),
        labels=tuple(int(y) for y in parts.observed_labels),
        accuracy=(before_accuracy, watch.accuracy(theta)),
        step=StepPrediction(visible, visible * predicted, step(visible)),
        learned_image=image.numpy(),
        learned_label=label,
        rate_errors=errors,
        error_slope=slope,
        influence=watch.influence,
        accumulated=watch.accumulated,
        moved=final - network.log_p(start, observed),
        mean_prediction=watch.mean_prediction(theta),
        likeness=likeness,
        pull_on_likeness=float(
            spearmanr(watch.influence[different], likeness[different]).statistic
        ),
        kernels=tuple(kernels),
        rank_stability=_rank_stability(kernels),
    )


@dataclass(frozen=True)
class _Parts:
    """The images, dealt out."""

    train: Tensor
    train_labels: Tensor
    held: Tensor
    held_labels: Tensor
    observed: Tensor
    observed_labels: Tensor

    @classmethod
    def of(cls, digits: Digits, settings: DigitsSettings) -> _Parts:
        if min(settings.epochs, settings.batch, settings.observed) < 1:
            raise TheoryError("epochs, batch and observed images must be at least 1.")
        if settings.seed < 0:
            raise TheoryError(f"seed {settings.seed}: give 0 or more.")
        order = np.random.default_rng(settings.seed).permutation(len(digits.labels))
        train, held = order[: settings.train], order[settings.train :][: settings.held]
        watched = []
        for digit in range(CLASSES):
            here = held[digits.labels[held] == digit][: settings.observed]
            seen = int((digits.labels[train] == digit).sum())
            if len(here) < settings.observed or not seen:
                raise TheoryError(
                    f"{digits.source}: {len(here)} held-out and {seen} trained images "
                    f"of the digit {digit}; {settings.observed} and 1 are needed. "
                    f"Train on fewer than {settings.train}, or watch fewer."
                )
            watched.append(here)
        chosen = np.concatenate(watched)

        def pick(index: IntArray) -> tuple[Tensor, Tensor]:
            return (
                torch.from_numpy(digits.images[index]).double(),
                torch.from_numpy(digits.labels[index]),
            )

        return cls(*pick(train), *pick(held), *pick(chosen))


class _Watch:
    """Training, with an account of what every step did to the observed images."""

    def __init__(
        self, network: Network, parts: _Parts, settings: DigitsSettings
    ) -> None:
        self.network, self.parts, self.settings = network, parts, settings
        self.steps = 0
        self.influence: FloatArray = np.zeros((CLASSES, CLASSES))
        self.accumulated: FloatArray = np.zeros((len(parts.observed), CLASSES))

    def epoch(self, theta: Tensor, number: int) -> Tensor:
        """The parameters after one pass over the training images."""
        generator = torch.Generator().manual_seed(1000 * self.settings.seed + number)
        order = torch.randperm(len(self.parts.train), generator=generator)
        for index in torch.split(order, self.settings.batch):
            theta = self._step(theta, index)
        return theta

    def _step(self, theta: Tensor, index: Tensor) -> Tensor:
        labels = self.parts.train_labels[index]
        gradients = self.network.gradients(theta, self.parts.train[index], labels)
        by_class = torch.zeros(CLASSES, self.network.size, dtype=torch.float64)
        by_class.index_add_(0, labels, gradients)
        moves = -self.settings.rate / len(index) * by_class
        self._account(theta, moves)
        self.steps += 1
        return theta + moves.sum(0)

    def _account(self, theta: Tensor, moves: Tensor) -> None:
        """Add A (∂z/∂θ) Δθ of each class of examples; it is −η Σ A K G."""
        jacobian = self.network.jacobian(theta, self.parts.observed)
        shift = torch.einsum("ovp,cp->ocv", jacobian, moves).numpy()
        log_p = self.network.log_p(theta, self.parts.observed)
        change = through_softmax(log_p[:, None, :], shift)
        self.accumulated += change.sum(axis=1)
        # in probability: ln π(u) of a settled image swings by nats that mean nothing
        own = np.exp(log_p) * np.einsum("occ->oc", change)
        self.influence += own.reshape(CLASSES, -1, CLASSES).mean(axis=1)

    def snapshot(self, theta: Tensor, step: int) -> KernelSnapshot:
        """‖K‖_F between all observed images."""
        jacobian = self.network.jacobian(theta, self.parts.observed)
        blocks = torch.einsum("ovp,uwp->ouvw", jacobian, jacobian)
        norms = blocks.flatten(2).norm(dim=-1).numpy()
        rows, columns = np.triu_indices(len(norms), 1)
        group = np.asarray(self.parts.observed_labels)
        different = ~np.eye(len(norms), dtype=bool)
        means = np.full((CLASSES, CLASSES), np.nan)
        for one in range(CLASSES):
            for other in range(CLASSES):
                cells = different & np.outer(group == one, group == other)
                if cells.any():
                    means[one, other] = norms[cells].mean()
        return KernelSnapshot(step, means, norms[rows, columns])

    def undecided(self, theta: Tensor, digit: int) -> Tensor:
        """[H, W] the trained image of a class whose π(y) is nearest ½."""
        images = self.parts.train[self.parts.train_labels == digit]
        p = np.exp(self.network.log_p(theta, images)[:, digit])
        return images[int(np.abs(p - 0.5).argmin())]

    def accuracy(self, theta: Tensor) -> float:
        """Of all held-out images."""
        guess = self.network.log_p(theta, self.parts.held).argmax(-1)
        return float((guess == self.parts.held_labels.numpy()).mean())

    def mean_prediction(self, theta: Tensor) -> FloatArray:
        """[10, 10] mean π of the held-out images of each class."""
        p = np.exp(self.network.log_p(theta, self.parts.held))
        labels = self.parts.held_labels.numpy()
        return np.stack([p[labels == digit].mean(axis=0) for digit in range(CLASSES)])


def _moments(settings: DigitsSettings) -> set[int]:
    """Epochs at which the kernel is kept: 1, 2, 4, …, and the last."""
    powers = [2**i for i in range(settings.snapshots)]
    return {e for e in powers if e < settings.epochs} | {settings.epochs}


def _rank_stability(kernels: list[KernelSnapshot]) -> FloatArray:
    """[S, S] Spearman's correlation of the pairs' ‖K‖_F between two moments."""
    ranks = [item.pairs for item in kernels]
    return np.array([[spearmanr(a, b).statistic for b in ranks] for a in ranks])


def _likeness(digits: Digits) -> FloatArray:
    """[10, 10] cosine between mean images, each less the mean of all."""
    flat = digits.images.reshape(len(digits.images), -1)
    groups = [flat[digits.labels == digit] for digit in range(CLASSES)]
    means = np.stack([group.mean(axis=0, dtype=np.float64) for group in groups])
    means -= flat.mean(axis=0, dtype=np.float64)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    result: FloatArray = means @ means.T
    return result
