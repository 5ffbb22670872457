"""Intervals for everything that is compared; nothing here knows what a probe is.

Each estimate is a smooth function of sums over independent clusters, unchanged when
all sums are multiplied by one number: a ratio of sums, a linear combination of such
ratios, a slope. It is linearised by its gradient::

    θ = f(Σ_g F_g)        e_g = G ∇f·F_g        SE = sd(e) / √G        (sd: ddof 1)

and its interval is the bootstrap-t (Efron & Tibshirani 1993, ch. 12): clusters are
drawn with replacement, every draw gives t* = (θ* − θ) / SE* with SE* linearised in the
same way, and the interval is [θ − q(1−α/2) SE, θ − q(α/2) SE] with q the quantiles of
t*. Percentile and BCa intervals under-cover at the few dozen prompts that are usual
here.

Unlike the harness's ``stderr``, a standard error over fewer than two clusters is
undefined, not 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import scipy.special as special

from ldeval.records import Estimate, State

Float = npt.NDArray[np.float64]
Order = npt.NDArray[np.intp]
Replicate = Callable[[Float], tuple[Float, Float]]
"""From weights [b, G] to the replicates' values [b] and squared SEs [b]; NaN or a zero
squared SE where a replicate cannot be studentised."""

DISPLAY_LEVEL = 0.95
"""Confidence level of the intervals that tables and curves show."""
VERDICT_LEVEL = 0.99
"""Confidence level of the intervals that verdicts rest on."""
REPLICATES = 4999
"""Bootstrap replicates: (REPLICATES + 1)·α/2 is whole for 95% and 99%."""
FEW_CLUSTERS = 10
"""Fewer than these get Student's t interval instead of the bootstrap-t."""

_BLOCK_ELEMENTS = 2_000_000
_PRODUCT_ELEMENTS = 400_000
_ROWS_AT_LEAST = 8
_CACHE_BYTES = 64_000_000
_NO_SPREAD = 1e-12


class Bootstrap:
    """Resampling weights, the same for every estimate over the same number of clusters.

    The weights depend on the seed and on the number of clusters only, so results do
    not depend on the order in which estimates are made. They come in blocks of
    replicates, so that memory stays bounded: about 16 MB a block at any size.

    Args:
        seed: non-negative.
        replicates: how many times the clusters are drawn; with 0 every interval is
            Student's t.
    """

    def __init__(self, seed: int = 0, replicates: int = REPLICATES) -> None:
        self.seed = seed
        self.replicates = replicates
        self._drawn: dict[tuple[int, int], npt.NDArray[np.uint8]] = {}
        self._bytes = 0

    def weights(self, clusters: int) -> Iterator[Float]:
        """Multinomial counts, block after block.

        Yields:
            [b, G] how often each cluster was drawn; rows sum to G, and the blocks
            together hold ``replicates`` rows.
        """
        size = max(1, min(self.replicates, _BLOCK_ELEMENTS // clusters))
        for block, start in enumerate(range(0, self.replicates, size)):
            rows = min(size, self.replicates - start)
            yield self._block(clusters, block, rows).astype(np.float64)

    def _block(self, clusters: int, block: int, rows: int) -> npt.NDArray[np.uint8]:
        kept = self._drawn.get((clusters, block))
        if kept is not None:
            return kept
        generator = np.random.default_rng([self.seed, clusters, block])
        drawn = generator.integers(0, clusters, size=(rows, clusters))
        drawn += clusters * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * clusters)
        # counts are Poisson(1)-like: past 255 has a probability below 1e-500
        weights = counts.astype(np.uint8).reshape(rows, clusters)
        if self._bytes + weights.nbytes <= _CACHE_BYTES:
            self._drawn[clusters, block] = weights
            self._bytes += weights.nbytes
        return weights

    def interval(
        self,
        value: float,
        se: float,
        clusters: int,
        level: float,
        replicate: Replicate,
    ) -> tuple[float, float]:
        """Bootstrap-t interval of ``value``.

        Below ``FEW_CLUSTERS`` it is Student's t interval with G − 1 degrees of freedom:
        so few clusters have too few distinct resamples, some of them nearly without
        spread, and t* then has no usable tails.

        A replicate without spread (the same cluster drawn throughout) cannot be
        studentised and is dropped. Where more than one tail of them is dropped, which
        happens with very few clusters or when few of them carry the change, what is
        left understates the spread, and the interval is widened to cover Student's t
        interval with G − 1 degrees of freedom as well.
        """
        if clusters < FEW_CLUSTERS or not self.replicates:
            reach = float(special.stdtrit(clusters - 1, 0.5 + level / 2.0)) * se
            return value - reach, value + reach
        parts = []
        for weights in self.weights(clusters):
            values, squares = replicate(weights)
            usable = squares > (1e-6 * se) ** 2  # False for NaN
            parts.append((values[usable] - value) / np.sqrt(squares[usable]))
        studentized = np.concatenate(parts)
        tail = (1.0 - level) / 2.0
        low, high = math.inf, -math.inf
        if len(studentized):
            lower, upper = np.quantile(
                studentized, [tail, 1.0 - tail], method="weibull"
            )
            low, high = value - float(upper) * se, value - float(lower) * se
        if len(studentized) < (1.0 - tail) * self.replicates:
            reach = float(special.stdtrit(clusters - 1, 1.0 - tail)) * se
            low, high = min(low, value - reach), max(high, value + reach)
        return low, high


def studentized_estimate(
    value: float,
    influence: Float,
    size: Float,
    scale: float,
    replicate_in: Callable[[Order], Replicate],
    *,
    unit: str,
    n: int,
    bootstrap: Bootstrap,
    level: float = DISPLAY_LEVEL,
) -> Estimate:
    """The estimate and its interval, from its linearised values.

    Args:
        value: θ.
        influence: e, [G], summing to zero.
        size: [G] a second key for the order of the clusters, free of sign.
        scale: size of the terms in e; an influence 12 digits below is rounding.
        replicate_in: from an order of the clusters to the replicates in that order.
        unit: unit of the value.
        n: responses behind it.

    Returns:
        The value without an interval, with a reason, below two clusters; an interval
        of no width where the clusters agree exactly.
    """
    clusters = len(influence)
    if clusters < 2:
        reason = f"{clusters} cluster: no interval"
        nan = math.nan
        return Estimate(value, nan, nan, nan, level, n, clusters, unit, reason)
    if np.max(np.abs(influence)) <= _NO_SPREAD * scale:
        return Estimate(value, value, value, 0.0, level, n, clusters, unit)
    # Weights go by position, so clusters are put in an order that depends on their
    # contents only: the interval then ignores row order and prompt names, and it
    # mirrors exactly when before and after are swapped, the keys being free of sign.
    order = np.lexsort((size, np.abs(influence)))
    se = math.sqrt(float(np.sum(influence**2)) / (clusters * (clusters - 1)))
    low, high = bootstrap.interval(value, se, clusters, level, replicate_in(order))
    return Estimate(value, low, high, se, level, n, clusters, unit)


def ratio_estimate(
    numerators: Float,
    denominators: Float,
    coefficients: Float,
    *,
    unit: str,
    n: int,
    bootstrap: Bootstrap,
    level: float = DISPLAY_LEVEL,
    missing: str = "nothing to estimate from",
) -> Estimate:
    """A linear combination of ratios of cluster sums.

    θ = Σ_j c_j θ_j with θ_j = Σ_g D_gj / Σ_g N_gj, linearised as
    e_g = Σ_j c_j (D_gj − θ_j N_gj) / N̄_j. With J = 1 and N = 1 it is the mean over
    clusters and its usual standard error.

    Args:
        numerators: D, [G, J].
        denominators: N, [G, J], positive in sum; 0 where a cluster has no part in a
            term.
        coefficients: c, [J].
        missing: why there may be nothing, for the reason of an undefined estimate.

    Returns:
        NaN with a reason where a term has no denominator.
    """
    clusters = len(numerators)
    totals = denominators.sum(axis=0)
    if clusters == 0 or np.any(totals <= 0):
        return Estimate.undefined(missing, unit=unit, level=level, clusters=clusters)
    ratios = numerators.sum(axis=0) / totals
    value = float(coefficients @ ratios)
    slope = coefficients * clusters / totals
    residuals = numerators - ratios * denominators
    terms = (np.abs(numerators) + np.abs(ratios * denominators)) @ np.abs(slope)
    return studentized_estimate(
        value,
        residuals @ slope,
        np.abs(denominators).sum(axis=1),
        float(np.max(terms)),
        lambda order: _ratio_replicate(
            residuals[order], denominators[order], value, coefficients
        ),
        unit=unit,
        n=n,
        bootstrap=bootstrap,
        level=level,
    )


def slope_estimate(
    x: Float,
    y: Float,
    labels: npt.NDArray[np.integer],
    *,
    bootstrap: Bootstrap,
    level: float = DISPLAY_LEVEL,
    min_rows: int = 5,
) -> Estimate:
    """Least-squares slope of y on x, rows grouped in clusters; dimensionless.

    b = Σ (x − x̄)(y − ȳ) / Σ (x − x̄)², linearised as
    e_g = G Σ_{i∈g} (x_i − x̄) r_i / Σ (x − x̄)² with r the residuals: the
    cluster-robust (sandwich) standard error with the factor G/(G − 1). That is too
    small where few prompts have much leverage, so the interval is widened in the ratio
    of the jackknife's standard error to it.

    Args:
        x, y: [R].
        labels: [R] cluster of each row, 0 … G − 1.
        min_rows: fewer rows leave the slope undefined.
    """
    rows, unit = len(x), "dimensionless"
    if rows < min_rows:
        reason = f"{rows} shared prompts; at least {min_rows} are needed"
        return Estimate.undefined(reason, unit=unit, level=level, n=rows)
    clusters = int(labels.max()) + 1
    if np.ptp(x) <= _NO_SPREAD * np.max(np.abs(x)):
        reason = "the explaining kind changed alike on every prompt"
        return Estimate.undefined(
            reason, unit=unit, level=level, n=rows, clusters=clusters
        )
    spread, centred = x - x.mean(), y - y.mean()
    square = float(spread @ spread)
    value = float(spread @ centred) / square
    residuals = centred - value * spread
    columns = (spread * residuals, residuals, spread, np.ones(rows), spread**2)
    features = np.stack(
        [np.bincount(labels, weights=c, minlength=clusters) for c in columns], axis=1
    ).astype(np.float64)
    found = studentized_estimate(
        value,
        features[:, 0] * clusters / square,
        features[:, 3],
        float(np.max(np.abs(spread)) * np.max(np.abs(centred))) * clusters / square,
        lambda order: _slope_replicate(features[order], value),
        unit=unit,
        n=rows,
        bootstrap=bootstrap,
        level=level,
    )
    return _scaled(found, _jackknife_error(features))


def _jackknife_error(features: Float) -> float:
    """Standard error of a slope from the slopes without one cluster each; NaN where one
    of these is undefined.

    The linearised error trusts points of high leverage, which pull the line to them.
    """
    clusters = len(features)
    cross, of_y, of_x, count, of_square = (features.sum(axis=0) - features).T
    count = np.where(count > 0, count, np.nan)
    spread = of_square - of_x**2 / count
    total = float(features[:, 4].sum())
    spread = np.where(spread > 1e-9 * total, spread, np.nan)
    shifts = (cross - of_x * of_y / count) / spread
    squares = float(np.sum((shifts - shifts.mean()) ** 2))
    return math.sqrt((clusters - 1) / clusters * squares)


def _scaled(found: Estimate, error: float) -> Estimate:
    """The interval widened in the ratio of ``error``, if larger, to its own error."""
    if not (0 < found.se < error):
        return found
    ratio = error / found.se
    return replace(
        found,
        low=found.value - ratio * (found.value - found.low),
        high=found.value + ratio * (found.high - found.value),
        se=error,
    )


def sums_by(labels: npt.NDArray[np.integer], values: Float, groups: int) -> Float:
    """[groups] Σ of values [R] over the rows of each label; NaN where a row is."""
    return np.bincount(labels, weights=values, minlength=groups).astype(np.float64)


def bounded_estimate(lower: Estimate, upper: Estimate) -> Estimate:
    """One estimate from those of a lower and of an upper bound of each row.

    The value is the midpoint; the interval covers both intervals, so the bounds on
    the value lie well inside it.
    """
    if lower == upper:
        return lower
    return replace(
        lower,
        value=0.5 * (lower.value + upper.value),
        low=min(lower.low, upper.low),
        high=max(lower.high, upper.high),
        se=max(lower.se, upper.se),
    )


def state(estimate: Estimate, margin: float) -> State:
    """Up, down, flat or unclear by the half-width h of the interval.

    Up: e − h > m; down: e + h < −m; flat: |e| + h ≤ m. Anything else, an undefined
    estimate included, is unclear.

    Args:
        estimate: its interval should be the 99% one where verdicts rest on it.
        margin: m ≥ 0, in the estimate's unit.
    """
    value, half = estimate.value, estimate.half_width
    if value - half > margin:
        return "up"
    if value + half < -margin:
        return "down"
    if abs(value) + half <= margin:
        return "flat"
    return "unclear"


class _Moments:
    """Weighted sums of features and of their products, all in one matrix product.

    With e_g = F_g·v the squared standard error of a replicate is
    Σ_g w_g (F_g·v)² / (G (G − 1)), a quadratic form in v over Σ_g w_g F_g F_gᵀ; no
    [replicates, G] array is made beside the weights.
    """

    def __init__(self, features: Float) -> None:
        self.clusters, self.width = features.shape
        self._first, self._second = np.triu_indices(self.width)
        products = features[:, self._first] * features[:, self._second]
        products *= np.where(self._first == self._second, 1.0, 2.0)
        self._columns = np.concatenate([features, products], axis=1)

    def __call__(self, weights: Float) -> tuple[Float, Float]:
        """Sums [b, P] and sums of products [b, P (P + 1) / 2]."""
        sums = np.empty((len(weights), self._columns.shape[1]))
        # BLAS starts its threads for larger products, and waking them costs several
        # times what thin ones do: those are made small enough for one thread
        rows = _PRODUCT_ELEMENTS // self._columns.size
        rows = rows if rows >= _ROWS_AT_LEAST else len(weights)
        for start in range(0, len(weights), rows):
            part = slice(start, start + rows)
            np.matmul(weights[part], self._columns, out=sums[part])
        return sums[:, : self.width], sums[:, self.width :]

    def squared_error(self, products: Float, direction: Float) -> Float:
        """Squared standard errors [b] for directions v [b, P]."""
        pairs = direction[:, self._first] * direction[:, self._second]
        total = np.sum(products * pairs, axis=1)
        return np.asarray(total / (self.clusters * (self.clusters - 1)))


def _ratio_replicate(
    residuals: Float, denominators: Float, value: float, coefficients: Float
) -> Replicate:
    terms = residuals.shape[1]
    moments = _Moments(np.concatenate([residuals, denominators], axis=1))

    def replicate(weights: Float) -> tuple[Float, Float]:
        sums, products = moments(weights)
        totals = sums[:, terms:]
        # a term whose clusters were never drawn leaves the replicate undefined
        totals = np.where(totals > 0, totals, np.nan)
        shift = sums[:, :terms] / totals  # θ*_j − θ_j, free of cancellation
        slope = coefficients * moments.clusters / totals
        direction = np.concatenate([slope, -slope * shift], axis=1)
        return value + shift @ coefficients, moments.squared_error(products, direction)

    return replicate


def _slope_replicate(features: Float, value: float) -> Replicate:
    moments = _Moments(features)
    square = float(features[:, 4].sum())

    def replicate(weights: Float) -> tuple[Float, Float]:
        sums, products = moments(weights)
        cross, of_y, of_x, count, of_square = sums.T
        x, y = of_x / count, of_y / count
        denominator = of_square - count * x**2
        denominator = np.where(denominator > 1e-9 * square, denominator, np.nan)
        shift = (cross - count * x * y) / denominator  # residuals' slope: b* − b
        one = np.ones_like(x)
        parts = [one, -x, 2 * shift * x - y, x * y - shift * x**2, -shift]
        direction = np.stack(parts, axis=1) * (moments.clusters / denominator)[:, None]
        return value + shift, moments.squared_error(products, direction)

    return replicate
