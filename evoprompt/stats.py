"""Agreement statistics: rank and linear correlation, bootstrap intervals, pair agreement, circular triads.

numpy and scipy only. Letters in shapes: N images, P pairs, R resamples.

A bootstrap resample is kept as the number of times each image was drawn, not as a list of images. Correlations are then
functions of integer weights, equal to the correlation of the repeated images, ties included, and thousands of resamples
cost a few array operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta

from evoprompt.errors import counted

Floats = NDArray[np.float64]
Statistic = Callable[[ArrayLike, ArrayLike], float]
Weighted = Callable[[Floats, Floats, Floats], Floats]
"""From x (N,), y (N,) and how often each image was drawn (R, N) to the statistic of every resample (R,)."""

_CHUNK = 4_000_000  # array elements worked on at a time, about 32 MB
_MAX_UNDEFINED = 0.05  # share of resamples without a value above which no interval is given
LEAST = 5
"""Images below which nothing is measured, and clusters of images drawn together below which no interval is given."""


class Interval(NamedTuple):
    """A value with confidence bounds; ``reason`` says why any of them is NaN, and is empty if none is."""

    value: float
    low: float
    high: float
    reason: str = ""


class Difference(NamedTuple):
    """Interval of a difference, and the two-sided bootstrap p of no difference."""

    interval: Interval
    p_value: float


class Reading(NamedTuple):
    """A statistic on the images, on every resample of them (R,), and why it has no value, or no bounds, if so."""

    value: float
    draws: Floats
    reason: str = ""

    def interval(self, level: float = 0.95) -> Interval:
        """The value with percentile bounds; bounds are NaN if over 5 % of the resamples have no value."""
        if self.reason:
            return Interval(self.value, math.nan, math.nan, self.reason)
        return percentile_interval(self.value, self.draws, level)

    def minus(self, other: Reading, level: float = 0.95) -> Difference:
        """Difference to a reading on the same resamples, see ``paired_difference``."""
        if reason := self.reason or other.reason:
            return Difference(Interval(self.value - other.value, math.nan, math.nan, reason), math.nan)
        draws = self.draws - other.draws
        interval = percentile_interval(self.value - other.value, draws, level)
        tail = int(min(np.count_nonzero(draws <= 0), np.count_nonzero(draws >= 0)))
        p = min(1.0, 2 * (tail + 1) / (int(np.isfinite(draws).sum()) + 1))
        return Difference(interval, math.nan if interval.reason else p)


@dataclass(frozen=True)
class Vectorised:
    """A statistic that knows how to read thousands of resamples at once; call it for its value on the images.

    Attributes:
        plain: The statistic of two (N,) vectors.
        weighted: The same of every resample.
    """

    plain: Statistic
    weighted: Weighted

    def __call__(self, x: ArrayLike, y: ArrayLike) -> float:
        """The statistic of two (N,) vectors."""
        return self.plain(x, y)


class Summary(NamedTuple):
    """Of one number over seeds or splits: how many, median, mean, and standard deviation (n - 1; NaN for one)."""

    n: int
    median: float
    mean: float
    sd: float


class Triads(NamedTuple):
    """Circular triads of a tournament: how many, how many there could be, and zeta = 1 - circular / maximum."""

    circular: float
    maximum: float
    zeta: float


def srcc(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman rank correlation of two (N,) vectors, mid-ranks for ties, in [-1, 1]; NaN where ``undefined`` says why.

    Raises:
        ValueError: if x and y are not finite vectors of one length; so do ``plcc`` and ``krcc``.
    """
    return _single(_srcc, x, y)


def plcc(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson correlation without any mapping, in [-1, 1]; NaN where ``undefined`` says why."""
    return _single(_correlation, x, y)


def krcc(x: ArrayLike, y: ArrayLike) -> float:
    """Kendall rank correlation tau-b, in [-1, 1]; NaN where ``undefined`` says why."""
    return _single(_krcc, x, y)


def undefined(x: ArrayLike, y: ArrayLike) -> str:
    """Why a correlation of x and y has no value (too few values, or a constant side); empty if it has one."""
    a, b = _vectors(x, y)
    if len(a) < 2:
        return f"n = {len(a)}; at least 2 values are needed"
    return " and ".join(f"{name} is constant ({v[0]:g})" for name, v in (("x", a), ("y", b)) if np.all(v == v[0]))


def bootstrap(
    statistic: Statistic,
    x: ArrayLike,
    y: ArrayLike,
    n_boot: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    clusters: ArrayLike | None = None,
) -> Interval:
    """Percentile bootstrap interval of a statistic of paired values.

    Args:
        statistic: ``srcc``, ``plcc``, ``krcc``, a ``Vectorised``, or any function of (x, y) (called once a resample).
        x: (N,) scores.
        y: (N,) MOS.
        n_boot: Number of resamples R.
        seed: Of the resamples; the same seed and N draw the same ones whatever the statistic.
        level: Confidence of the interval, in (0, 1).
        clusters: (N,) labels; images of one label (reference, prompt) are drawn together. None draws single images.

    Returns:
        Interval; bounds are NaN, with the reason, for fewer than five clusters, and if over 5 % of the resamples have
        no value.
    """
    return read(statistic, x, y, n_boot, seed, clusters).interval(level)


def paired_difference(
    statistic: Statistic,
    a: ArrayLike,
    b: ArrayLike,
    y: ArrayLike,
    n_boot: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    clusters: ArrayLike | None = None,
) -> Difference:
    """Difference statistic(a, y) - statistic(b, y) of two raters' scores (N,), both read on the same resamples.

    The other arguments are those of ``bootstrap``.

    Returns:
        Interval, and p = 2 min(share of resamples <= 0, share >= 0), never below 2 / (R + 1); NaN without bounds.
    """
    first, second = (read(statistic, v, y, n_boot, seed, clusters) for v in (a, b))
    return first.minus(second, level)


def read(
    statistic: Statistic,
    x: ArrayLike,
    y: ArrayLike,
    n_boot: int = 2000,
    seed: int = 0,
    clusters: ArrayLike | None = None,
) -> Reading:
    """A statistic of (N,) vectors with its resamples, to be compared with that of other scores of the same images.

    The arguments are those of ``bootstrap``.
    """
    a, b = _vectors(x, y)
    if reason := undefined(a, b):
        return Reading(math.nan, np.empty(0), reason)
    if reason := too_few(clusters):
        return Reading(statistic(a, b), np.full(n_boot, math.nan), reason)
    blocks = _resamples(len(a), n_boot, seed, clusters)
    return Reading(statistic(a, b), np.concatenate([_resampled(statistic, a, b, counts) for counts in blocks]))


def bootstrap_mean(
    values: ArrayLike, n_boot: int = 2000, seed: int = 0, level: float = 0.95, clusters: ArrayLike | None = None
) -> Interval:
    """Mean of (N,) values, one an image, with a percentile bootstrap interval; the arguments are ``bootstrap``'s."""
    v, _ = _vectors(values, values)
    if not len(v):
        return missing("n = 0; at least 1 value is needed")
    if reason := too_few(clusters):
        return Interval(float(v.mean()), math.nan, math.nan, reason)
    draws = [counts @ v / counts.sum(axis=1) for counts in _resamples(len(v), n_boot, seed, clusters)]
    return percentile_interval(float(v.mean()), np.concatenate(draws), level)


def too_few(clusters: ArrayLike | None) -> str:
    """Why resamples of clusters (N,) say too little for an interval; empty if they do not, or if there are none.

    Resamples of one cluster are all alike, those of two or three take a handful of values.
    """
    units = LEAST if clusters is None else len(np.unique(np.asarray(clusters)))
    what = f"{counted(units, 'cluster')} of images drawn together"
    return f"{what}; at least {LEAST} are needed for an interval" if units < LEAST else ""


def percentile_interval(value: float, draws: Floats, level: float = 0.95) -> Interval:
    """A value with percentile bounds from its resamples; without bounds when over 5 % of them have no value."""
    known = draws[np.isfinite(draws)]
    lost = len(draws) - len(known)
    if lost > _MAX_UNDEFINED * len(draws):
        return Interval(float(value), math.nan, math.nan, f"{lost} of {len(draws)} resamples have no value")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high))


def missing(reason: str) -> Interval:
    """No value, and why."""
    return Interval(math.nan, math.nan, math.nan, reason)


def summarise(values: ArrayLike) -> Summary:
    """Median, mean and standard deviation over seeds or splits; values that are not finite are left out."""
    v = np.asarray(values, dtype=np.float64)
    v = v[np.isfinite(v)]
    if not len(v):
        return Summary(0, math.nan, math.nan, math.nan)
    return Summary(len(v), float(np.median(v)), float(v.mean()), float(v.std(ddof=1)) if len(v) > 1 else math.nan)


def pairs_above(gap: float) -> Vectorised:
    """Share of image pairs that scores put in the order of MOS, among pairs whose MOS differ by ``gap`` or more.

    Pairs of equal MOS never count, equal scores count one half.

    Args:
        gap: In MOS units, at least 0.
    """

    def weighted(x: Floats, y: Floats, counts: Floats) -> Floats:
        right, total = np.zeros(len(counts)), np.zeros(len(counts))
        block = max(1, _CHUNK // max(1, len(x)))
        for start in range(0, len(x), block):
            part = slice(start, start + block)
            order = y[:, None] - y[part]
            used = ((np.abs(order) >= gap) & (order != 0)).astype(np.float64)
            ordered = used * (1 + np.sign((x[:, None] - x[part]) * order)) / 2
            right += ((counts @ ordered) * counts[:, part]).sum(axis=1)
            total += ((counts @ used) * counts[:, part]).sum(axis=1)
        with np.errstate(invalid="ignore"):  # a resample may hold no such pair
            return right / total

    return Vectorised(lambda x, y: _single(weighted, x, y), weighted)


def pair_accuracy(score_a: ArrayLike, score_b: ArrayLike, order: ArrayLike, min_gap: float = 0.0) -> float:
    """Share of pairs that scores put in the true order; equal scores count one half.

    Args:
        score_a: (P,) scores of the first images.
        score_b: (P,) scores of the second images.
        order: (P,) true quality of the first minus that of the second; pairs with order 0 are left out.
        min_gap: Pairs with a smaller |order| are left out too.

    Returns:
        Share in [0, 1]; NaN if no pair is left.
    """
    first, second = _vectors(score_a, score_b)
    truth, _ = _vectors(order, first)
    used = (np.abs(truth) >= min_gap) & (truth != 0)
    return float(np.mean((1 + np.sign((first - second) * truth)[used]) / 2)) if used.any() else math.nan


def agreement_gain(
    new: ArrayLike, old: ArrayLike, pairs: ArrayLike, confidence: float = 0.9, seed: int = 0, n_boot: int = 2000
) -> tuple[float, float]:
    """How much better one rater agrees with the pseudo-labels than another, with a one-sided lower bound.

    Pairs share images, so they are not independent: the bootstrap draws images, and a pair weighs the product of the
    counts of its two images.

    Args:
        new: (P,) agreement of the one rater with each pair's pseudo-label, in [0, 1]; a tie is 0.5.
        old: (P,) agreement of the other.
        pairs: (P, 2) int image indices, P at least 1.
        confidence: Of the lower bound, in (0, 1).
        seed: Of the resamples.
        n_boot: Number of resamples.

    Returns:
        Mean gain and its lower bound.

    Raises:
        ValueError: without pairs, or if the shapes do not fit.
    """
    (one, two), index = _vectors(new, old), np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    if not len(index) == len(one) > 0:
        raise ValueError(f"{len(index)} pairs and {len(one)} agreements; one agreement a pair, and a pair, are needed")
    gain, (images, place) = one - two, np.unique(index, return_inverse=True)
    first, second = place.reshape(-1, 2).T
    draws = []
    for counts in _resamples(len(images), n_boot, seed, None, width=len(gain)):
        weight = counts[:, first] * counts[:, second]
        with np.errstate(invalid="ignore"):  # a resample may hold no pair at all
            draws.append(weight @ gain / weight.sum(axis=1))
    return float(gain.mean()), float(np.nanquantile(np.concatenate(draws), 1 - confidence))


def circular_triads(wins: ArrayLike) -> Triads:
    """Circular triads of a complete tournament (Kendall and Babington Smith 1940): a beats b beats c beats a.

    Args:
        wins: (n, n) 1 where the row's image was preferred to the column's, 0 where not, 0.5 = a tie; diagonal ignored.

    Returns:
        Counts and zeta: 1 = a perfect order, 0 = as circular as can be, NaN below three images; a tie is half a win.

    Raises:
        ValueError: if the matrix is not square, or a pair's two entries do not sum to 1.
    """
    matrix = np.array(wins, dtype=np.float64)
    n = len(matrix)
    if matrix.shape != (n, n):
        raise ValueError(f"wins must be a square matrix; got shape {matrix.shape}")
    np.fill_diagonal(matrix, 0.5)
    if not (np.isin(matrix, (0.0, 0.5, 1.0)).all() and np.all(matrix + matrix.T == 1)):
        raise ValueError("wins must hold 0, 0.5 or 1, and wins[i, j] + wins[j, i] must be 1")
    won = matrix.sum(axis=1) - 0.5
    circular = n * (n - 1) * (2 * n - 1) / 12 - float(won @ won) / 2
    maximum = (n**3 - (n if n % 2 else 4 * n)) / 24
    return Triads(circular, maximum, 1 - circular / maximum if maximum > 0 else math.nan)


def binomial_above_chance(correct: float, n: int, confidence: float = 0.95) -> float:
    """Exact one-sided lower bound of a success rate (Clopper and Pearson 1934), in [0, 1); compare it with chance.

    ``correct`` of ``n`` trials succeeded; halves, from ties, are allowed. Without a success the bound is 0.
    """
    if not 0 <= correct <= n:
        raise ValueError(f"{correct} correct of {n}; it must be between 0 and {n}")
    return float(beta.ppf(1 - confidence, correct, n - correct + 1)) if correct else 0.0


def _vectors(x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"two vectors of one length are needed; got shapes {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("values must be finite; leave images without a score out")
    return a, b


def _single(weighted: Weighted, x: ArrayLike, y: ArrayLike) -> float:
    a, b = _vectors(x, y)
    return math.nan if undefined(a, b) else float(weighted(a, b, np.ones((1, len(a))))[0])


def _resamples(n: int, n_boot: int, seed: int, clusters: ArrayLike | None, width: int = 0) -> Iterator[Floats]:
    """Blocks (r, n) of how often each image was drawn; ``width`` is that of the caller's widest array, if wider."""
    _, member = np.unique(np.arange(n) if clusters is None else np.asarray(clusters), return_inverse=True)
    if len(member) != n:
        raise ValueError(f"{len(member)} cluster labels for {n} images")
    rng, units = np.random.default_rng(seed), int(member.max()) + 1
    if units == n:  # clusters of one image each are none, whatever they are called
        member = np.arange(n)
    rows = max(1, _CHUNK // max(n, width))
    for start in range(0, n_boot, rows):
        r = min(rows, n_boot - start)
        drawn = rng.integers(units, size=(r, units)) + units * np.arange(r)[:, None]
        yield np.bincount(drawn.ravel(), minlength=r * units).reshape(r, units)[:, member].astype(np.float64)


def _resampled(statistic: Statistic, x: Floats, y: Floats, counts: Floats) -> Floats:
    weighted = statistic.weighted if isinstance(statistic, Vectorised) else _WEIGHTED.get(statistic)
    if weighted is not None:
        return weighted(x, y, counts)
    repeats = counts.astype(np.int64)
    return np.array([statistic(np.repeat(x, row), np.repeat(y, row)) for row in repeats])


def _correlation(x: Floats, y: Floats, counts: Floats) -> Floats:
    """Pearson correlation of each row; x and y are (N,) or (R, N), counts (R, N). NaN where a row is constant."""
    n = counts.sum(axis=1, keepdims=True)
    mean_x, mean_y = (counts * x).sum(axis=1, keepdims=True) / n, (counts * y).sum(axis=1, keepdims=True) / n
    dx, dy = x - mean_x, y - mean_y
    weighted = counts * dx
    sxx, syy, sxy = (weighted * dx).sum(axis=1), (counts * dy * dy).sum(axis=1), (weighted * dy).sum(axis=1)
    # The mean of equal numbers may be off by rounding; what is left then is no variance.
    still = (sxx <= n[:, 0] * (1e-13 * mean_x[:, 0]) ** 2) | (syy <= n[:, 0] * (1e-13 * mean_y[:, 0]) ** 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = sxy / np.sqrt(sxx) / np.sqrt(syy)
    return np.where(still, np.nan, np.clip(value, -1, 1))


def _group_counts(x: Floats, counts: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """How often each distinct value of x was drawn (R, U), in rising order, and which value each image has (N,)."""
    _, group = np.unique(x, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    return np.add.reduceat(counts[:, order], starts, axis=1), group


def _mid_ranks(x: Floats, counts: Floats) -> Floats:
    """Mid-rank of each image among the drawn ones, (R, N)."""
    size, group = _group_counts(x, counts)
    return (np.cumsum(size, axis=1) - (size - 1) / 2)[:, group]


def _srcc(x: Floats, y: Floats, counts: Floats) -> Floats:
    return _correlation(_mid_ranks(x, counts), _mid_ranks(y, counts), counts)


def _krcc(x: Floats, y: Floats, counts: Floats) -> Floats:
    balance = np.zeros(len(counts))
    block = max(1, _CHUNK // len(x))
    for start in range(0, len(x), block):
        part = slice(start, start + block)
        concordant = np.sign(x[:, None] - x[part]) * np.sign(y[:, None] - y[part])
        balance += ((counts @ concordant) * counts[:, part]).sum(axis=1)
    n = counts.sum(axis=1)
    pairs = n * (n - 1) / 2
    untied = [pairs - (size * (size - 1) / 2).sum(axis=1) for size in (_group_counts(v, counts)[0] for v in (x, y))]
    with np.errstate(invalid="ignore", divide="ignore"):
        value = balance / 2 / np.sqrt(untied[0]) / np.sqrt(untied[1])
    return np.where((untied[0] == 0) | (untied[1] == 0), np.nan, value)


_WEIGHTED: dict[Statistic, Weighted] = {srcc: _srcc, plcc: _correlation, krcc: _krcc}
