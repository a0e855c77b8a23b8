import math

import numpy as np
import pytest
from scipy.stats import norm

from evoprompt.soft_labels import soft_labels

LEVELS = np.arange(1.0, 6.0)


def by_definition(mean: float, std: float, form: str) -> list[float]:
    """The published steps for one image, with scipy and without guards."""
    if form == "density":
        raw = [norm.pdf(c, mean, std) for c in range(1, 6)]
    else:
        raw = [norm.cdf(c + 0.5, mean, std) - norm.cdf(c - 0.5, mean, std) for c in range(1, 6)]
    total, moment = sum(raw), sum(r * c for r, c in zip(raw, range(1, 6), strict=True))
    alpha = (mean - 3) / (moment - 3 * total)
    return [max(alpha * r + (1 - alpha * total) / 5, 0) for r in raw]


@pytest.mark.parametrize(
    ("mean", "std", "label"),
    [
        # KADID-10k I01_01_01 and KonIQ-10k 10004473376, as in the label files that DeQA-Score was trained with.
        (4.6336, 0.7168, [0, 0, 0.0310, 0.4357, 0.5707]),
        (4.4008, 0.6563, [0, 0, 0.0590, 0.5336, 0.4222]),
    ],
)
def test_published_labels_are_reproduced(mean, std, label):
    mine = soft_labels([mean], [std], "density")[0]
    assert mine.tolist() == pytest.approx(label, abs=5e-5)


@pytest.mark.parametrize("form", ["density", "interval"])
@pytest.mark.parametrize(("mean", "std"), [(2.0, 0.7), (2.9, 0.9), (3.4, 0.6), (4.1, 1.1)])
def test_labels_follow_their_definition(form, mean, std):
    mine = soft_labels([mean], [std], form)[0]
    assert mine.tolist() == pytest.approx(by_definition(mean, std, form), abs=1e-6)


@pytest.mark.parametrize("form", ["density", "interval"])
def test_masses_without_clipping_sum_to_one_and_have_the_mos_as_mean(form):
    mean, std = np.linspace(2.6, 3.4, 33), np.full(33, 1.2)
    label = soft_labels(mean, std, form)
    assert label.min() > 0
    assert label.sum(1).tolist() == pytest.approx([1.0] * 33, abs=1e-6)
    assert (label @ LEVELS).tolist() == pytest.approx(mean.tolist(), abs=1e-5)


@pytest.mark.parametrize("form", ["density", "interval"])
@pytest.mark.parametrize("std", [0.2, 0.5, 0.7, 1.0, 2.0, 50.0])
def test_labels_do_not_jump_at_a_mean_of_three(form, std):
    mean = np.array([3 - 1e-3, 3 - 1e-5, 3 - 1e-9, 3.0, 3 + 1e-9, 3 + 1e-5, 3 + 1e-3])
    label = soft_labels(mean, np.full(7, std), form)
    assert np.isfinite(label).all() and np.abs(label - label[3]).max() < 2e-3
    # The mirrored score has the mirrored label.
    assert np.allclose(label[::-1, ::-1], label, atol=1e-6)


def test_at_a_mean_of_three_a_broad_label_is_not_uniform():
    """What the formula as published, with 1e-9 in its denominator, would make of it."""
    label = soft_labels([3.0], [0.7], "interval")[0]
    assert label[2] > 0.5 > 0.25 > label[1] == pytest.approx(label[3])


@pytest.mark.parametrize("form", ["density", "interval"])
def test_sure_scores_are_interpolated_between_their_neighbours(form):
    mean = [1.0, 1.25, 3.0, 4.9, 5.0]
    wanted = [[1, 0, 0, 0, 0], [0.75, 0.25, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0.1, 0.9], [0, 0, 0, 0, 1]]
    for std in ([0.199] * 5, [0] * 5, None):
        assert soft_labels(mean, std, form).flatten().tolist() == pytest.approx(sum(wanted, []), abs=1e-6)


def test_a_label_whose_mean_was_clipped_away_is_interpolated():
    raw = by_definition(4.2, 0.35, "density")
    assert sum(c * p for c, p in zip(range(1, 6), raw, strict=True)) == pytest.approx(4.33, abs=0.01)
    label = soft_labels([4.2], [0.35], "density")[0]
    assert label.tolist() == pytest.approx([0, 0, 0, 0.8, 0.2])


@pytest.mark.parametrize("form", ["density", "interval"])
def test_labels_of_absurd_deviations_are_finite(form):
    mean, std = [1.0, 3.0, 4.2], [1e6, 1e12, 1e30]
    label = soft_labels(mean, std, form)
    assert np.isfinite(label).all() and np.abs(label @ LEVELS - mean).max() <= 0.1 + 1e-6


def test_every_label_is_close_to_its_mos():
    mean, std = (axis.ravel() for axis in np.meshgrid(np.linspace(1, 5, 81), np.linspace(0, 2.5, 51)))
    for form in ("density", "interval"):
        label = soft_labels(mean, std, form)
        assert label.min() >= 0 and np.abs(label @ LEVELS - mean).max() <= 0.1 + 1e-6
        assert label.sum(1).min() >= 1 - 1e-6 and label.sum(1).max() < 1.2


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.9], [0.5], "in 1 to 5"),
        ([5.01], None, "in 1 to 5"),
        ([[3.0]], None, "shape"),
        ([math.nan], [0.5], "in 1 to 5"),
        ([3.0], [-0.1], "at least 0"),
        ([3.0], [math.nan], "at least 0"),
        ([3.0], [0.5, 0.5], r"\(2,\)"),
    ],
)
def test_scores_off_the_scale_are_refused(mean, std, message):
    with pytest.raises(ValueError, match=message):
        soft_labels(mean, std, "interval")
