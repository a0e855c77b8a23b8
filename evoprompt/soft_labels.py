"""Human scores as level distributions: the soft labels of DeQA-Score (arXiv 2501.11561).

Letters in shapes: N images.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

LEVELS = np.arange(1.0, 6.0)
# Below this deviation a normal curve misses the levels between which it stands (DeQA-Score's own bound).
LEAST_STD = 0.2
# A label whose mean is further than this from the MOS is not used (DeQA-Score's own bound).
LARGEST_SHIFT = 0.1


def soft_labels(
    mean: ArrayLike, std: ArrayLike | None, form: Literal["interval", "density"] = "interval"
) -> NDArray[np.float64]:
    """Level masses of images whose human scores have these means and standard deviations.

    A normal curve gives each level l a raw mass r(l): its density at l (``density``, which DeQA-Score uses for KonIQ
    and KADID), or its area between l - .5 and l + .5 (``interval``, for SPAQ, whose deviations are small). The masses
    are post-adjusted to p = alpha r + beta, alpha = (mean - 3) / sum_l r(l) (l - 3), so that they sum to 1 and have the
    MOS as their mean; negative ones become 0, without renormalisation, as in the published files. Where the deviation
    is below 0.2, or the mean of p is further than 0.1 from the MOS, the label is two-hot: the MOS interpolated between
    its neighbouring levels.

    Args:
        mean: (N,) MOS on the scale 1 to 5.
        std: (N,) standard deviation of the human scores on the same scale, at least 0; None makes every label two-hot.
        form: How a level's raw mass is read from the normal curve.

    Returns:
        (N, 5) masses of the levels 1 to 5, at least 0; they sum to 1, or to a little more where a negative mass became
        0.

    Raises:
        ValueError: if a mean is not in 1 to 5, a deviation is negative or not finite, or the shapes differ.
    """
    mos = np.asarray(mean, dtype=np.float64)
    if mos.ndim != 1 or not ((mos >= 1) & (mos <= 5)).all():
        raise ValueError(f"means must be (N,) in 1 to 5; got shape {mos.shape}, {_ends(mos)}")
    two_hot: NDArray[np.float64] = np.maximum(1 - np.abs(mos[:, None] - LEVELS), 0)
    if std is None:
        return two_hot
    deviation = np.asarray(std, dtype=np.float64)
    if deviation.shape != mos.shape or not (np.isfinite(deviation) & (deviation >= 0)).all():
        raise ValueError(
            f"deviations must be {mos.shape}, finite, at least 0; got shape {deviation.shape}, {_ends(deviation)}"
        )
    spread = np.maximum(deviation, LEAST_STD)
    raw = _raw_masses(mos, spread, form)
    # At a mean of 3, alpha is 0 / 0. It is an even function around 3, so a step aside leaves eight digits of its limit.
    aside = np.where(np.abs(mos - 3) < 1e-4, 3 + 1e-4, mos)
    # A curve so broad that all levels have the same mass ends in NaN, which the comparison with the MOS turns away.
    with np.errstate(divide="ignore", invalid="ignore"):
        alpha = (aside - 3) / (_raw_masses(aside, spread, form) @ (LEVELS - 3))
        beta = (1 - alpha * raw.sum(axis=1)) / 5
        label = np.maximum(alpha[:, None] * raw + beta[:, None], 0)
        usable = (deviation >= LEAST_STD) & (np.abs(label @ LEVELS - mos) <= LARGEST_SHIFT)
    chosen: NDArray[np.float64] = np.where(usable[:, None], label, two_hot)
    return chosen


def _raw_masses(mean: NDArray[np.float64], std: NDArray[np.float64], form: str) -> NDArray[np.float64]:
    """(N, 5) densities or interval areas of the normal curves at the levels."""
    gap, std = LEVELS - mean[:, None], std[:, None]
    if form == "density":
        density: NDArray[np.float64] = np.exp(-((gap / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))
        return density
    area: NDArray[np.float64] = ndtr((gap + 0.5) / std) - ndtr((gap - 0.5) / std)
    return area


def _ends(x: NDArray[np.float64]) -> str:
    """Smallest and largest value, in words."""
    return f"{x.min():g} to {x.max():g}" if x.size else "none"
