"""Logistic mappings: the least squares optimum, the same in resamples, and a word where there is none."""

from __future__ import annotations

import math
import time
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.optimize import curve_fit
from scipy.special import expit

from evoprompt.logistic import logistic4, logistic5, plcc4, plcc5, rmse4
from evoprompt.stats import bootstrap, plcc


def curve4(x, b1, b2, b3, b4):
    return (b1 - b2) / (1 + np.exp(-(x - b3) / abs(b4))) + b2


def curve5(x, b1, b2, b3, b4, b5):
    return b1 * (0.5 - 1 / (1 + np.exp(b2 * (x - b3)))) + b4 * x + b5


def sample(n=300, seed=0, noise=8.0):
    """Scores from 1 to 5 and MOS from 10 to 90 that saturate."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(1, 5, n)
    return x, 80 * expit((x - 3) / 0.4) + 10 + noise * rng.normal(size=n)


@pytest.mark.parametrize("seed", range(4))
def test_four_parameters_equal_scipys_curve_fit(seed):
    x, y = sample(seed=seed)
    found, _ = curve_fit(curve4, x, y, p0=(y.max(), y.min(), x.mean(), x.std() / 4), maxfev=10_000)
    fit = logistic4(x, y)
    assert fit.parameters == pytest.approx(found, rel=1e-3)
    assert fit.plcc == pytest.approx(plcc(curve4(x, *found), y), abs=1e-9)
    assert fit.rmse == pytest.approx(np.sqrt(np.mean((curve4(x, *found) - y) ** 2)), rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_five_parameters_equal_scipys_curve_fit_from_a_good_start(seed):
    x, y = sample(seed=seed)
    fit = logistic5(x, y)
    start = np.array(fit.parameters) * (1 + 0.02 * np.random.default_rng(seed).normal(size=5))
    found, _ = curve_fit(curve5, x, y, p0=start, maxfev=100_000)
    assert fit.plcc == pytest.approx(plcc(curve5(x, *found), y), abs=1e-6)
    assert plcc(curve5(x, *fit.parameters), y) == pytest.approx(fit.plcc, abs=1e-9)


@pytest.mark.filterwarnings("ignore")  # of the start, which is far off
def test_the_conventional_start_of_five_parameters_finds_nothing_better():
    x, y = sample()
    found, _ = curve_fit(curve5, x, y, p0=(10, 0.1, x.mean(), 0.1, 0.1), maxfev=100_000)
    assert logistic5(x, y).plcc >= plcc(curve5(x, *found), y) - 1e-6


def test_a_curve_without_noise_is_found_again():
    x = np.linspace(0, 10, 60)
    fit = logistic4(x, curve4(x, 90, 10, 4, 0.7))
    assert fit.parameters == pytest.approx((90, 10, 4, 0.7), rel=1e-3)
    assert fit.plcc == pytest.approx(1, abs=1e-9) and fit.rmse < 1e-3 and fit.reason == ""
    both = logistic5(x, curve5(x, 40, 1.5, 5, 2, 3))
    assert both.parameters == pytest.approx((40, 1.5, 5, 2, 3), rel=2e-2)


def test_a_mapping_never_lowers_the_correlation_and_five_parameters_not_that_of_four():
    for seed in range(5):
        x, y = sample(60, seed, noise=25)
        raw, four, five = plcc(x, y), logistic4(x, y).plcc, logistic5(x, y).plcc
        assert raw - 1e-3 < four <= five + 1e-6


def test_five_parameters_are_not_worse_than_four_where_four_are_a_step():
    rng = np.random.default_rng(3)
    x = rng.normal(size=100)
    y = (x > 0.9) + 0.4 * rng.normal(size=100)
    assert logistic5(x, y).plcc >= logistic4(x, y).plcc - 1e-6 > plcc(x, y)


@pytest.mark.parametrize(("n", "outlier", "times"), [(32, 1e4, 1), (32, 200, 3), (234, 1e4, 1), (1000, 50, 3)])
@pytest.mark.filterwarnings("ignore")  # of starts that are far off
def test_scores_far_from_all_others_do_not_hide_the_optimum(n, outlier, times):
    rng = np.random.default_rng(n)
    x = rng.normal(size=n)
    x[:times] = outlier
    y = np.where(x == outlier, 0, x) + 0.5 * rng.normal(size=n)
    found, _ = curve_fit(curve4, x, y, p0=(y.max(), y.min(), 0, 1), maxfev=10_000)
    best = plcc(curve4(x, *found), y)
    assert logistic4(x, y).plcc == pytest.approx(best, abs=1e-4) and logistic5(x, y).plcc >= best - 1e-4
    assert plcc4.weighted(x, y, np.ones((1, n)))[0] == pytest.approx(best, abs=3e-3)


@pytest.mark.filterwarnings("ignore")
def test_scores_with_a_heavy_tail_are_fitted_in_their_bulk():
    rng = np.random.default_rng(0)
    z = rng.normal(size=242)
    x, y = np.exp(3 * z), 3 * z + rng.normal(size=242)
    found, _ = curve_fit(curve4, x, y, p0=(y.max(), y.min(), np.median(x), np.median(x)), maxfev=20_000)
    assert logistic4(x, y).plcc >= plcc(curve4(x, *found), y) - 1e-3


def test_a_straight_relation_keeps_its_correlation():
    x = np.random.default_rng(0).normal(size=200)
    y = 3 * x + np.random.default_rng(1).normal(size=200)
    for fit in (logistic4(x, y), logistic5(x, y)):
        assert fit.reason == "" and plcc(x, y) - 1e-4 < fit.plcc < plcc(x, y) + 0.01


def test_falling_scores_are_mapped_by_a_falling_curve():
    x, y = sample()
    fit = logistic4(-x, y)
    assert fit.plcc == pytest.approx(logistic4(x, y).plcc, abs=1e-6) and fit.parameters[0] < fit.parameters[1]


@pytest.mark.parametrize("fit", [logistic4, logistic5])
def test_a_fit_that_cannot_be_made_says_why(fit):
    assert fit([1] * 6, [1, 2, 3, 4, 5, 6]).reason == "x is constant (1)"
    few = fit([1, 2, 3, 4], [1, 2, 3, 4])
    assert "n = 4; at least" in few.reason and math.isnan(few.plcc) and few.parameters == ()


def test_a_search_that_does_not_converge_is_reported(monkeypatch):
    lost = SimpleNamespace(success=False, message="too many evaluations", fun=1.0)
    monkeypatch.setattr("evoprompt.logistic.minimize", lambda *_, **__: lost)
    fit = logistic4([1, 2, 3, 4, 5], [2, 1, 4, 3, 5])
    assert math.isnan(fit.plcc) and math.isnan(fit.rmse)
    assert fit.reason == "the logistic fit did not converge (too many evaluations)"


@pytest.mark.parametrize(("statistic", "plain"), [(plcc4, logistic4), (plcc5, logistic5)])
def test_resamples_are_refitted_close_to_their_own_optimum(statistic, plain):
    x, y = sample(200)
    rng = np.random.default_rng(1)
    for _ in range(5):
        drawn = rng.integers(0, 200, 200)
        counts = np.bincount(drawn, minlength=200)[None].astype(float)
        grid = statistic.weighted(x, y, counts)[0]
        assert grid == pytest.approx(plain(x[drawn], y[drawn]).plcc, abs=3e-3)
    one = np.ones((1, 200))
    assert rmse4.weighted(x, y, one)[0] == pytest.approx(logistic4(x, y).rmse, rel=5e-3)


def test_the_interval_of_the_mapped_correlation_covers_its_value_and_takes_a_second_at_most():
    x, y = sample(300)
    started = time.process_time()
    interval = bootstrap(plcc4, x, y)
    assert interval.low < interval.value == logistic4(x, y).plcc < interval.high
    assert time.process_time() - started < 5
