"""PLCC and RMSE after a logistic mapping of scores to MOS, as the quality assessment literature reports them.

Both curves are linear in all but two of their parameters, a centre and a scale. For a given centre and scale the best
fit is a linear regression whose correlation has a closed form. So the least squares optimum is a search over two
numbers, and thousands of resamples are refitted by matrix products: over a grid of both, finer around the optimum of
all images.

Centres up to one range of the scores beyond either end and scales from a fiftieth to twenty standard deviations are
searched: beyond them a curve is a step or a straight line. A few scores far from all others would make that too coarse
for the rest, so where they make the standard deviation, the same is searched around the middle half of the scores, too.
A fit may end at a bound, and is then the best of the curves between step and line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import expit

from evoprompt.stats import Floats, Vectorised, Weighted, plcc, undefined

_CENTRES, _SCALES, _FINE = 19, 10, 13
_WORK = 2_000_000  # correlations of resamples with curves worked on at a time


class LogisticFit(NamedTuple):
    """PLCC after a mapping, the mapping's parameters and the RMSE in MOS units, or NaN, none, and the ``reason``."""

    plcc: float
    parameters: tuple[float, ...]
    reason: str = ""
    rmse: float = math.nan


def logistic4(x: ArrayLike, y: ArrayLike) -> LogisticFit:
    """Least squares fit of scores x (N,) to MOS y (N,) by y = (b1 - b2) / (1 + exp(-(x - b3) / |b4|)) + b2 (VQEG 2000).

    The curve may fall, so the PLCC after mapping is never negative: SRCC or the raw PLCC says the direction.

    Returns:
        NaN with a reason when a side is constant, there are fewer than five values, or the search did not converge.
    """

    def parameters(centre: float, scale: float, weights: Floats) -> tuple[float, ...]:
        base, height = weights
        return (base + height, base, centre, scale)

    return _fit(x, y, straight=False, parameters=parameters)


def logistic5(x: ArrayLike, y: ArrayLike) -> LogisticFit:
    """Least squares fit by y = b1 (1/2 - 1 / (1 + exp(b2 (x - b3)))) + b4 x + b5 (Sheikh, Sabir and Bovik 2006).

    Returns:
        NaN with a reason when a side is constant, there are fewer than six values, or the search did not converge.
    """

    def parameters(centre: float, scale: float, weights: Floats) -> tuple[float, ...]:
        base, height, slope = weights
        return (height, 1 / scale, centre, slope, base + height / 2)

    return _fit(x, y, straight=True, parameters=parameters)


def _fit(
    x: ArrayLike, y: ArrayLike, *, straight: bool, parameters: Callable[[float, float, Floats], tuple[float, ...]]
) -> LogisticFit:
    """Fit a sigmoid of x, and x itself if ``straight``, to y."""
    reason, n, least = undefined(x, y), np.size(x), 6 if straight else 5
    if not reason and n < least:
        reason = f"n = {n}; at least {least} values are needed"
    if reason:
        return LogisticFit(math.nan, (), reason)
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    found = _search(a, b, straight)
    if not found.success:
        return LogisticFit(math.nan, (), f"the logistic fit did not converge ({found.message})")
    columns = [np.ones(n), _sigmoid(a, *found.x), *([a] if straight else [])]
    design = np.stack(columns, axis=1)
    weights: Floats = np.linalg.lstsq(design, b, rcond=None)[0].astype(np.float64)
    mapped = design @ weights
    value, rmse = plcc(mapped, b), float(np.sqrt(np.mean((mapped - b) ** 2)))
    if not math.isfinite(value):
        return LogisticFit(math.nan, (), "the fitted curve is flat")
    centre, scale = float(found.x[0]), math.exp(found.x[1])
    return LogisticFit(value, tuple(map(float, parameters(centre, scale, weights))), "", rmse)


def _sigmoid(x: Floats, centre: float, log_scale: float) -> Floats:
    return np.asarray(expit((x - centre) / math.exp(log_scale)))


def _boxes(x: Floats) -> list[Floats]:
    """Ends (2, 2) of centres and log scales to search: by all scores and, where outliers rule, by the middle half."""
    ends, (first, third) = [(float(x.min()), float(x.max()), float(x.std()))], np.quantile(x, (0.25, 0.75))
    if 0 < third - first < x.std() / 2:  # it is 1.35 standard deviations of normal scores
        middle = float(third - first)
        ends.append((float(first) - middle, float(third) + middle, middle))
    return [
        np.array([(2 * low - high, 2 * high - low), (math.log(spread / 50), math.log(spread * 20))])
        for low, high, spread in ends
    ]


def _search(x: Floats, y: Floats, straight: bool) -> Any:
    """Centre and log scale that explain most of y, as scipy's ``OptimizeResult``."""
    once, boxes = np.ones((1, len(x))), _boxes(x)
    grids = [_grid(box, _CENTRES, _SCALES) for box in boxes]
    starts = [grid[int(np.argmax(_explained(x, y, once, _sigmoids(x, grid), straight)[0]))] for grid in grids]
    bounds = np.stack([np.min(boxes, axis=0)[:, 0], np.max(boxes, axis=0)[:, 1]], axis=1)
    if straight:
        starts.append(_search(x, y, False).x)  # so that the line beside it never makes the curve worse

    def lost(place: Floats) -> float:
        return 1 - float(_explained(x, y, once, _sigmoids(x, [place]), straight)[0, 0])

    options = {"xatol": 1e-5, "fatol": 1e-9, "maxfev": 2000}
    found = [minimize(lost, start, method="Nelder-Mead", bounds=bounds, options=options) for start in starts]
    return min(found, key=lambda result: float(result.fun))


def _grid(ends: Floats, n_centres: int, n_scales: int) -> Floats:
    """Centres and log scales (G, 2) evenly between two ends (2, 2) of each."""
    (first, last), (finest, widest) = ends.tolist()
    centres, scales = np.linspace(first, last, n_centres), np.linspace(finest, widest, n_scales)
    return np.array([(centre, scale) for centre in centres for scale in scales])


def _sigmoids(x: Floats, places: Iterable[Floats]) -> Floats:
    return np.stack([_sigmoid(x, *place) for place in places])


def _explained(x: Floats, y: Floats, counts: Floats, curves: Floats, straight: bool) -> Floats:
    """Share of the variance of y that curves (G, N) explain, with x beside them if ``straight``: (R, G), 0 where none.

    With two regressors it is (r1^2 + r2^2 - 2 r1 r2 r12) / (1 - r12^2).
    """
    n = counts.sum(axis=1, keepdims=True)
    line, mos = ((v - v.mean()) / v.std() for v in (x, y))
    centred = curves - curves.mean(axis=1, keepdims=True)
    spread = centred.std(axis=1, keepdims=True)
    curve = np.where(spread > 1e-6, centred / np.maximum(spread, 1e-6), 0)  # far from all scores a sigmoid is flat

    def covariance(u: Floats, v: Floats) -> Floats:
        u, v = np.atleast_2d(u), np.atleast_2d(v)
        return np.asarray(counts @ (u * v).T / n - (counts @ u.T / n) * (counts @ v.T / n))

    def correlation(u: Floats, v: Floats) -> Floats:
        product = np.maximum(covariance(u, u), 0) * np.maximum(covariance(v, v), 0)
        return np.where(product > 1e-24, covariance(u, v) / np.sqrt(np.maximum(product, 1e-24)), 0)

    r_curve = correlation(curve, mos)
    if not straight:
        return np.minimum(r_curve**2, 1)
    r_line, r_both = correlation(line, mos), correlation(curve, line)
    left = 1 - r_both**2
    joint = (r_curve**2 + r_line**2 - 2 * r_curve * r_line * r_both) / np.maximum(left, 1e-6)
    # What is all but a straight line explains what the line does.
    return np.clip(np.where(left > 1e-6, joint, r_line**2), 0, 1)


def _refitted(straight: bool) -> Weighted:
    """Share of the variance explained in each resample by the best curve of the grids."""

    def weighted(x: Floats, y: Floats, counts: Floats) -> Floats:
        boxes, (centre, scale) = _boxes(x), _search(x, y, straight).x
        half = math.exp(boxes[-1][1, 0]) * 25  # half the spread that the finest box is made of
        near = np.array([(centre - half, centre + half), (scale - 0.8, scale + 0.8)])
        places = [place for box in boxes for place in _grid(box, _CENTRES, _SCALES)]
        curves = _sigmoids(x, [*places, *_grid(near, _FINE, _FINE)])
        parts = np.array_split(counts, math.ceil(len(counts) * len(curves) / _WORK))
        return np.concatenate([_explained(x, y, part, curves, straight).max(axis=1) for part in parts])

    return weighted


def _root(straight: bool) -> Weighted:
    refitted = _refitted(straight)
    return lambda x, y, counts: np.asarray(np.sqrt(refitted(x, y, counts)))


def _rmse(x: Floats, y: Floats, counts: Floats) -> Floats:
    n, centred = counts.sum(axis=1), y - y.mean()
    variance = np.maximum(counts @ centred**2 / n - (counts @ centred / n) ** 2, 0)
    return np.asarray(np.sqrt(variance * (1 - _refitted(False)(x, y, counts))))


plcc4 = Vectorised(lambda x, y: logistic4(x, y).plcc, _root(False))
"""PLCC after the 4-parameter curve, fitted anew in every resample."""

plcc5 = Vectorised(lambda x, y: logistic5(x, y).plcc, _root(True))
"""PLCC after the 5-parameter curve, fitted anew in every resample."""

rmse4 = Vectorised(lambda x, y: logistic4(x, y).rmse, _rmse)
"""RMSE in MOS units after the 4-parameter curve, fitted anew in every resample."""
