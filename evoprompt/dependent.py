"""Tests of two correlations that share a variable: two raters of the same images, held against the same MOS.

They suppose independent images and, strictly, normal variables; with images in clusters only the bootstrap of
``stats.paired_difference`` is right. With rank correlations both are approximations.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from scipy.stats import norm
from scipy.stats import t as student


class Test(NamedTuple):
    """A test statistic with its two-sided p, or NaN and the ``reason``."""

    statistic: float
    p_value: float
    reason: str = ""


def williams(r_a: float, r_b: float, r_ab: float, n: int) -> Test:
    """Williams' t of the difference of two dependent correlations (Williams 1959; T2 in Steiger 1980).

    Args:
        r_a: Correlation of the one rater with MOS.
        r_b: Correlation of the other with MOS.
        r_ab: Correlation of the two raters.
        n: Number of images, at least 4.

    Returns:
        t with n - 3 degrees of freedom, above 0 when ``r_a`` is the larger.
    """
    if reason := _refused(r_a, r_b, r_ab, n):
        return Test(math.nan, math.nan, reason)
    determinant = max(0.0, 1 - r_a**2 - r_b**2 - r_ab**2 + 2 * r_a * r_b * r_ab)
    mean = (r_a + r_b) / 2
    spread = 2 * (n - 1) / (n - 3) * determinant + mean**2 * (1 - r_ab) ** 3
    value = (r_a - r_b) * math.sqrt((n - 1) * (1 + r_ab) / spread)
    return Test(value, 2 * float(student.sf(abs(value), n - 3)))


def steiger(r_a: float, r_b: float, r_ab: float, n: int) -> Test:
    """Steiger's z of the difference of two dependent correlations, Fisher-transformed and pooled (1980, Z1*).

    The arguments are those of ``williams``.

    Returns:
        z, standard normal without a difference.
    """
    if reason := _refused(r_a, r_b, r_ab, n):
        return Test(math.nan, math.nan, reason)
    square = ((r_a + r_b) / 2) ** 2
    shared = r_ab * (1 - 2 * square) - square * (1 - 2 * square - r_ab**2) / 2
    covariance = shared / (1 - square) ** 2
    value = (math.atanh(r_a) - math.atanh(r_b)) * math.sqrt((n - 3) / (2 - 2 * covariance))
    return Test(value, 2 * float(norm.sf(abs(value))))


def _refused(r_a: float, r_b: float, r_ab: float, n: int) -> str:
    if n < 4:
        return f"n = {n}; at least 4 images are needed"
    if not all(map(math.isfinite, (r_a, r_b, r_ab))):
        return "a correlation is not defined"
    if max(abs(r_a), abs(r_b)) >= 1 or abs(r_ab) > 1 - 1e-12:
        return "a correlation is 1, so there is no spread to test against"
    return ""
