import math
import time
from itertools import combinations

import numpy as np
import pytest
import scipy.stats

from evoprompt.stats import (
    agreement_gain,
    binomial_above_chance,
    bootstrap,
    bootstrap_mean,
    circular_triads,
    krcc,
    pair_accuracy,
    paired_difference,
    pairs_above,
    plcc,
    read,
    srcc,
    summarise,
    undefined,
)

SCIPY = {srcc: scipy.stats.spearmanr, plcc: scipy.stats.pearsonr, krcc: scipy.stats.kendalltau}


def sample(n, seed=0, ties=True):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, n // 3, n).astype(float) if ties else rng.normal(size=n)
    return x, np.round(x + 3 * rng.normal(size=n)) if ties else x + rng.normal(size=n)


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("statistic", [srcc, plcc, krcc])
def test_correlations_equal_scipy_with_and_without_ties(statistic, ties):
    x, y = sample(40, ties=ties)
    assert statistic(x, y) == pytest.approx(SCIPY[statistic](x, y)[0], abs=1e-12)


@pytest.mark.parametrize("statistic", [srcc, plcc, krcc])
def test_weighted_resamples_equal_the_correlation_of_the_repeated_images(statistic):
    x, y = sample(30)
    ours = bootstrap(statistic, x, y, n_boot=200)
    plain = bootstrap(lambda a, b: float(SCIPY[statistic](a, b)[0]), x, y, n_boot=200)
    assert ours[:3] == pytest.approx(plain[:3], abs=1e-12)


@pytest.mark.parametrize("statistic", [srcc, plcc, krcc])
def test_a_constant_side_is_nan_with_a_reason_not_a_number(statistic):
    constant, y = [0.1] * 5, [1, 2, 3, 4, 5]
    assert math.isnan(statistic(constant, y)) and math.isnan(statistic([], []))
    interval = bootstrap(statistic, constant, y)
    assert math.isnan(interval.value) and interval.reason == "x is constant (0.1)"
    assert undefined(y, constant) == "y is constant (0.1)"
    assert undefined([1], [1]) == "n = 1; at least 2 values are needed"
    assert undefined(y, y) == ""


@pytest.mark.parametrize(("x", "y"), [([1, 2], [1, 2, 3]), ([1, math.nan], [1, 2]), ([[1, 2]], [[1, 2]])])
def test_vectors_that_cannot_be_correlated_are_refused(x, y):
    with pytest.raises(ValueError, match=r"vectors|finite"):
        srcc(x, y)


def test_bootstrap_interval_covers_the_true_correlation_at_its_level():
    rng, truth, hits = np.random.default_rng(1), 0.6, 0
    for _ in range(200):
        x = rng.normal(size=80)
        y = truth * x + math.sqrt(1 - truth**2) * rng.normal(size=80)
        interval = bootstrap(plcc, x, y, n_boot=300, level=0.9, seed=int(rng.integers(1 << 30)))
        hits += interval.low <= truth <= interval.high
    assert 0.82 <= hits / 200 <= 0.96


def test_bootstrap_is_a_function_of_its_seed():
    x, y = sample(50)
    assert bootstrap(srcc, x, y, seed=3) == bootstrap(srcc, x, y, seed=3) != bootstrap(srcc, x, y, seed=4)


def test_bootstrap_does_not_depend_on_how_it_is_cut_into_blocks(monkeypatch):
    x, y = sample(50)
    whole = bootstrap(krcc, x, y, n_boot=100)
    monkeypatch.setattr("evoprompt.stats._CHUNK", 700)
    assert bootstrap(krcc, x, y, n_boot=100)[:3] == pytest.approx(whole[:3], abs=1e-12)


def test_clusters_are_drawn_together_and_widen_the_interval():
    """Twenty copies of each of ten images hold ten images' worth of evidence."""
    x, y = sample(10, ties=False)
    labels = np.repeat([f"ref{i}" for i in range(10)], 20)
    wide = bootstrap(plcc, np.repeat(x, 20), np.repeat(y, 20), clusters=labels)
    assert wide[:3] == pytest.approx(bootstrap(plcc, x, y)[:3], abs=1e-9)
    narrow = bootstrap(plcc, np.repeat(x, 20), np.repeat(y, 20))
    assert narrow.high - narrow.low < (wide.high - wide.low) / 2


@pytest.mark.parametrize("units", [1, 2, 4])
def test_fewer_than_five_clusters_have_a_value_but_no_interval_and_no_p(units):
    x, y = sample(40)
    labels = [f"r{k % units}" for k in range(40)]
    found = bootstrap(srcc, x, y, clusters=labels)
    assert found.value == srcc(x, y) and math.isnan(found.low) and math.isnan(found.high)
    assert found.reason.startswith(f"{units} cluster") and found.reason.endswith(
        "at least 5 are needed for an interval"
    )
    gain, p = paired_difference(srcc, x, -x, y, clusters=labels)
    assert gain.value == pytest.approx(2 * srcc(x, y)) and math.isnan(gain.low) and math.isnan(p)
    mean = bootstrap_mean(x, clusters=labels)
    assert mean.value == pytest.approx(x.mean()) and math.isnan(mean.high) and mean.reason == found.reason
    assert math.isfinite(bootstrap(srcc, x, y, clusters=[f"r{k % 5}" for k in range(40)]).low)


def test_clusters_of_one_image_each_are_none_whatever_they_are_called():
    x, y = sample(30)
    assert bootstrap(srcc, x, y, clusters=[f"{k * 7 % 30:02d}" for k in range(30)]) == bootstrap(srcc, x, y)


def test_no_interval_is_given_when_many_resamples_have_no_value():
    interval = bootstrap(srcc, [0, 0, 1], [1, 2, 3])
    assert interval.value == pytest.approx(scipy.stats.spearmanr([0, 0, 1], [1, 2, 3])[0])
    assert math.isnan(interval.low) and "resamples have no value" in interval.reason


def test_srcc_bootstrap_of_600_images_takes_well_under_a_second():
    x, y = sample(600)
    start = time.process_time()
    bootstrap(srcc, x, y, n_boot=2000)
    assert time.process_time() - start < 2  # ten times what an unloaded laptop needs


def test_paired_difference_reads_both_raters_on_the_same_resamples():
    x, y = sample(80, ties=False)
    same = paired_difference(srcc, x, 2 * x + 1, y)
    assert same.interval[:3] == (0, 0, 0) and same.p_value == 1
    better = paired_difference(srcc, y + 0.1 * x, x, y)
    assert better.interval.low > 0 and better.p_value == pytest.approx(2 / 2001)
    mirrored = paired_difference(srcc, x, y + 0.1 * x, y)
    assert mirrored.interval.low == pytest.approx(-better.interval.high) and mirrored.p_value == better.p_value


def test_paired_difference_of_a_constant_rater_is_nan_with_a_reason():
    gain = paired_difference(srcc, [1, 1, 1], [1, 2, 3], [1, 2, 3])
    assert math.isnan(gain.interval.value) and math.isnan(gain.p_value) and "constant" in gain.interval.reason


def test_pair_accuracy_counts_ties_of_the_scores_half_and_leaves_small_gaps_out():
    first, second, order = [2, 1, 1, 5], [1, 2, 1, 1], [1.0, 1.0, 1.0, -0.1]
    assert pair_accuracy(first, second, order) == pytest.approx((1 + 0 + 0.5 + 0) / 4)
    assert pair_accuracy(first, second, order, min_gap=0.5) == pytest.approx(1.5 / 3)
    assert math.isnan(pair_accuracy([1], [2], [0]))


def test_pairs_above_a_gap_equal_a_count_over_all_pairs():
    x, y = sample(30)
    for gap in (0.0, 2.0):
        first, second = np.triu_indices(30, 1)
        plain = pair_accuracy(x[first], x[second], y[first] - y[second], min_gap=gap)
        assert pairs_above(gap)(x, y) == pytest.approx(plain)
    assert math.isnan(pairs_above(1e9)(x, y))


def test_pairs_above_a_gap_in_resamples_equal_those_of_the_repeated_images():
    x, y = sample(20)
    ours = bootstrap(pairs_above(2.0), x, y, n_boot=50)
    plain = bootstrap(lambda a, b: pairs_above(2.0)(a, b), x, y, n_boot=50)
    assert ours[:3] == pytest.approx(plain[:3], abs=1e-12)


def test_readings_of_two_raters_belong_to_the_same_resamples():
    x, y = sample(50)
    one, two = (read(srcc, v, y, n_boot=300, seed=2) for v in (x, y))
    interval = paired_difference(srcc, x, y, y, n_boot=300, seed=2).interval
    assert one.minus(two).interval == interval
    assert np.quantile(one.draws - two.draws, [0.025, 0.975]) == pytest.approx(interval[1:3], abs=1e-12)


def test_the_bootstrap_of_a_mean_is_that_of_the_textbook():
    values = np.random.default_rng(0).normal(size=400)
    interval = bootstrap_mean(values, n_boot=4000)
    assert interval.value == pytest.approx(values.mean())
    assert (interval.high - interval.low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.08)
    wide = bootstrap_mean(np.repeat(values[:20], 20), clusters=np.repeat(np.arange(20), 20))
    assert wide[:3] == pytest.approx(bootstrap_mean(values[:20])[:3], abs=1e-9)
    assert bootstrap_mean([]).reason == "n = 0; at least 1 value is needed"


def test_a_summary_over_seeds_leaves_undefined_runs_out():
    assert summarise([1.0, 2.0, math.nan, 6.0]) == (3, 2.0, 3.0, pytest.approx(np.std([1, 2, 6], ddof=1)))
    assert math.isnan(summarise([4.0]).sd) and summarise([4.0]).mean == 4
    assert summarise([]).n == 0 and math.isnan(summarise([]).median)


def groups(n_groups, size=8):
    return np.array([(g * size + i, g * size + j) for g in range(n_groups) for i, j in combinations(range(size), 2)])


def test_agreement_gain_of_a_clearly_better_rater_has_a_positive_bound():
    pairs, rng = groups(12), np.random.default_rng(0)
    gain, low = agreement_gain(rng.random(len(pairs)) < 0.8, rng.random(len(pairs)) < 0.6, pairs)
    assert 0 < low < gain < 0.35


def test_agreement_gain_of_equal_raters_is_rarely_called_a_gain():
    """Raters that err by image, not by pair: a bootstrap over pairs would take their luck for evidence."""
    rng, pairs, calls = np.random.default_rng(0), groups(6), 0
    for seed in range(200):
        skill = rng.normal(size=(2, 48))
        new, old = ((s[pairs].sum(axis=1) > 0).astype(float) for s in skill)
        calls += agreement_gain(new, old, pairs, confidence=0.9, seed=seed, n_boot=200)[1] > 0
    assert calls / 200 < 0.2


def test_agreement_gain_bound_is_below_that_of_independent_pairs():
    rng, pairs = np.random.default_rng(1), groups(6)
    skill = rng.normal(size=48)
    new, old = (skill[pairs].sum(axis=1) > 0).astype(float), np.full(len(pairs), 0.5)
    gain, low = agreement_gain(new, old, pairs)
    independent = gain - 1.2816 * (new - old).std() / math.sqrt(len(pairs))
    assert low < independent < gain


def test_agreement_gain_needs_a_pair_for_each_agreement():
    with pytest.raises(ValueError, match="agreements"):
        agreement_gain([1.0], [0.0], [[0, 1], [1, 2]])
    with pytest.raises(ValueError, match="pair"):
        agreement_gain([], [], [])


def count_circular(wins):
    """Circular triads by looking at every triple."""
    return sum(
        {wins[i, j] + wins[i, k], wins[j, i] + wins[j, k], wins[k, i] + wins[k, j]} == {1.0}
        for i, j, k in combinations(range(len(wins)), 3)
    )


@pytest.mark.parametrize("n", [3, 6, 9])
def test_circular_triads_equal_a_count_over_all_triples(n):
    upper = np.triu(np.random.default_rng(n).integers(0, 2, (n, n)), 1)
    wins = (upper + np.tril(1 - upper.T, -1)).astype(float)
    assert circular_triads(wins).circular == count_circular(wins)


def test_a_perfect_order_has_no_circular_triads_and_a_cycle_has_all():
    order = np.triu(np.ones((7, 7)), 1)
    assert circular_triads(order) == (0, 14, 1)
    cycle = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]])
    assert circular_triads(cycle) == (1, 1, 0)
    assert circular_triads(np.triu(np.ones((4, 4)), 1)).maximum == 2
    assert math.isnan(circular_triads([[0, 1], [0, 0]]).zeta)


@pytest.mark.parametrize("wins", [[[0, 1, 1]], [[0, 1], [1, 0]], [[0, 0.7], [0.3, 0]]])
def test_a_matrix_that_is_no_tournament_is_refused(wins):
    with pytest.raises(ValueError, match="wins"):
        circular_triads(wins)


def test_binomial_bound_equals_the_exact_test_and_stays_below_the_rate():
    for correct, n in ((60, 100), (1, 3), (100, 100)):
        exact = scipy.stats.binomtest(correct, n, alternative="greater").proportion_ci(0.95, method="exact").low
        assert binomial_above_chance(correct, n, 0.95) == pytest.approx(exact)
        assert binomial_above_chance(correct, n) < correct / n
    assert binomial_above_chance(0, 10) == binomial_above_chance(0, 0) == 0


def test_binomial_bound_refuses_more_successes_than_trials():
    with pytest.raises(ValueError, match="11 correct of 10"):
        binomial_above_chance(11, 10)
