"""Tests of dependent correlations: published examples, and their size in a simulation without a difference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from evoprompt.dependent import steiger, williams
from evoprompt.stats import plcc


def test_steigers_own_example() -> None:
    """Steiger 1980: masculinity and femininity against verbal ability, .5 and .4, with .1 between them, n = 103."""
    assert steiger(0.5, 0.4, 0.1, 103).statistic == pytest.approx(0.89, abs=0.005)
    assert williams(0.5, 0.4, 0.1, 103).statistic == pytest.approx(0.89, abs=0.005)
    assert williams(0.5, 0.4, 0.1, 103).p_value == pytest.approx(0.37, abs=0.01)


def test_williams_equals_the_published_formula_written_out() -> None:
    r, s, between, n = 0.59, 0.31, 0.71, 30
    matrix = np.array([[1, r, s], [r, 1, between], [s, between, 1]])
    spread = 2 * (n - 1) / (n - 3) * np.linalg.det(matrix) + ((r + s) / 2) ** 2 * (1 - between) ** 3
    t = (r - s) * math.sqrt((n - 1) * (1 + between) / spread)
    found = williams(r, s, between, n)
    assert found.statistic == pytest.approx(t)
    assert found.p_value == pytest.approx(2 * scipy_stats.t.sf(t, n - 3))


def test_swapping_the_raters_turns_the_sign_and_nothing_else() -> None:
    for test in (williams, steiger):
        one, other = test(0.7, 0.6, 0.5, 80), test(0.6, 0.7, 0.5, 80)
        assert one.statistic == pytest.approx(-other.statistic) and one.p_value == pytest.approx(other.p_value)
        assert test(0.6, 0.6, 0.5, 80).p_value == pytest.approx(1)


@pytest.mark.parametrize("test", [williams, steiger])
def test_without_a_difference_one_in_twenty_is_significant(test) -> None:  # type: ignore[no-untyped-def]
    rng, called, trials = np.random.default_rng(0), 0, 2000
    for _ in range(trials):
        y = rng.normal(size=60)
        shared = rng.normal(size=60)
        a, b = (y + 0.5 * shared + 0.8 * rng.normal(size=60) for _ in range(2))
        called += test(plcc(a, y), plcc(b, y), plcc(a, b), 60).p_value < 0.05
    assert 0.035 < called / trials < 0.065


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ((0.5, 0.4, 0.1, 3), "at least 4 images"),
        ((math.nan, 0.4, 0.1, 30), "not defined"),
        ((0.5, 0.5, 1.0, 30), "no spread"),
        ((1.0, 0.5, 0.5, 30), "no spread"),
    ],
)
def test_what_cannot_be_tested_says_why(numbers: tuple[float, float, float, int], reason: str) -> None:
    for test in (williams, steiger):
        found = test(*numbers)
        assert math.isnan(found.p_value) and reason in found.reason
