"""Distances between level distributions: scipy's values, and the properties that make them distances."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy, wasserstein_distance

from evoprompt.distributions import level_distances, normal_distances
from evoprompt.soft_labels import soft_labels


def some(n: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(5), n), rng.dirichlet(np.ones(5), n)


def test_values_equal_scipys() -> None:
    human, predicted = some()
    found = level_distances(human, predicted)
    levels = np.arange(1, 6)
    for row in range(len(human)):
        p, q = human[row], predicted[row]
        assert found["js"][row] == pytest.approx(jensenshannon(p, q) ** 2)
        assert found["kl"][row] == pytest.approx(entropy(p, q))
        assert found["wasserstein"][row] == pytest.approx(wasserstein_distance(levels, levels, p, q))


def test_agreement_is_zero_and_rows_need_not_sum_to_one() -> None:
    human, predicted = some()
    for values in level_distances(human, human).values():
        assert values == pytest.approx(np.zeros(len(human)), abs=1e-12)
    scaled, plain = level_distances(2 * human, 3 * predicted), level_distances(human, predicted)
    assert all(scaled[name] == pytest.approx(plain[name]) for name in plain)


def test_a_level_ruled_out_is_infinitely_far_in_kl_alone() -> None:
    found = level_distances(np.eye(5)[:1], np.eye(5)[4:])
    assert math.isinf(found["kl"][0]) and found["js"][0] == pytest.approx(math.log(2)) and found["wasserstein"][0] == 4


def test_normal_curves_with_the_moments_of_both_sides() -> None:
    """KL against a numerical integral; Wasserstein and the curve in the middle by their definitions."""
    predicted = np.array([[0.0, 0.1, 0.3, 0.4, 0.2]])
    mean, std = np.array([3.2]), np.array([0.7])
    other = float(predicted[0] @ np.arange(1, 6))
    spread = math.sqrt(float(predicted[0] @ (np.arange(1, 6) - other) ** 2))
    found = normal_distances(mean, std, predicted)
    x = np.linspace(-8, 14, 200_001)

    def curve(m: float, s: float) -> np.ndarray:
        return np.exp(-((x - m) ** 2) / (2 * s * s)) / (s * math.sqrt(2 * math.pi))

    def kl(p: np.ndarray, q: np.ndarray) -> float:
        return float(np.sum(np.where(p > 1e-290, p * np.log(p / q), 0)) * (x[1] - x[0]))

    human, ours = curve(3.2, 0.7), curve(other, spread)
    middle = curve((3.2 + other) / 2, math.sqrt((0.7**2 + spread**2) / 2))
    assert found["kl_normal"][0] == pytest.approx(kl(human, ours), rel=1e-4)
    assert found["js_normal"][0] == pytest.approx((kl(human, middle) + kl(ours, middle)) / 2, rel=1e-4)
    assert found["wasserstein_normal"][0] == pytest.approx(math.hypot(3.2 - other, 0.7 - spread))


def test_a_soft_label_is_nearer_to_its_own_mos_than_to_another() -> None:
    human = soft_labels(np.array([4.2]), np.array([0.6]), "interval")
    near, far = (soft_labels(np.array([m]), np.array([0.6]), "interval") for m in (4.0, 2.0))
    for name, value in level_distances(human, near + 1e-6).items():
        assert value[0] < level_distances(human, far + 1e-6)[name][0]
