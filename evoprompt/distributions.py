"""Distances between what the judge says of an image and what people say: distributions over five levels.

All are 0 when both agree, and larger the less they do. Letters in shapes: N images, L levels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def level_distances(human: Floats, predicted: Floats) -> Mapping[str, Floats]:
    """Distances between discrete distributions, image by image.

    Args:
        human: (N, L) shares of the levels, at least 0; rows are divided by their sums.
        predicted: (N, L) probabilities of the levels, the same.

    Returns:
        ``js``: Jensen-Shannon divergence in nats, at most log 2. ``kl``: Kullback-Leibler divergence of the prediction
        from people, KL(human || predicted), infinite where the prediction rules out a level that people chose.
        ``wasserstein``: distance of order 1 in levels. Each (N,).
    """
    p, q = (np.asarray(x, dtype=np.float64) for x in (human, predicted))
    p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
    middle = (p + q) / 2
    return {
        "js": (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2,
        "kl": _relative_entropy(p, q),
        "wasserstein": np.abs(np.cumsum(p - q, axis=1))[:, :-1].sum(axis=1),
    }


def normal_distances(mean: Floats, std: Floats, predicted: Floats) -> Mapping[str, Floats]:
    """The same between normal curves with the moments of both sides, as DeQA-Score reports them (arXiv 2501.11561).

    Args:
        mean: (N,) MOS on the scale 1 to 5.
        std: (N,) standard deviation of the ratings on that scale, above 0.
        predicted: (N, 5) probabilities of the levels 1 to 5.

    Returns:
        ``js_normal`` (the curve in the middle has the mean of the means and of the variances), ``kl_normal``
        KL(human || predicted), and ``wasserstein_normal`` of order 2. Each (N,).
    """
    levels = np.arange(1.0, predicted.shape[1] + 1)
    shares = predicted / predicted.sum(axis=1, keepdims=True)
    other = shares @ levels
    spread = np.sqrt(((levels - other[:, None]) ** 2 * shares).sum(axis=1))
    middle, wide = (mean + other) / 2, np.sqrt((std**2 + spread**2) / 2)
    return {
        "js_normal": (_normal_entropy(mean, std, middle, wide) + _normal_entropy(other, spread, middle, wide)) / 2,
        "kl_normal": _normal_entropy(mean, std, other, spread),
        "wasserstein_normal": np.hypot(mean - other, std - spread),
    }


def _relative_entropy(p: Floats, q: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * (np.log(p) - np.log(q)), 0)
    return np.asarray(terms.sum(axis=1))


def _normal_entropy(mean: Floats, std: Floats, other: Floats, spread: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(spread / std) + (std**2 + (mean - other) ** 2) / (2 * spread**2) - 0.5)
