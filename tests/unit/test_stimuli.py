"""What a study shows: examples, pairs, fours and difficult samples."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from evoprompt.errors import DataError
from evoprompt.stimuli import (
    choose_examples,
    difficult,
    difficult_references,
    hardness,
    plan_fours,
    plan_pairs,
    proxy_prediction,
    to_hundred,
)
from evoprompt.study_questions import EXAMPLE_RANKS


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_examples_are_what_their_answers_say() -> None:
    mos = rng().uniform(1, 5, 40)
    examples = choose_examples(mos, None)
    (middle,) = examples.shown["single"]
    assert abs(mos[middle] - (mos.min() + mos.max()) / 2) < 0.2
    better, worse = examples.shown["double"]
    assert mos[better] > np.quantile(mos, 0.85) and mos[worse] < np.quantile(mos, 0.15)
    four = examples.shown["multiple"]
    assert [four[place] for place in EXAMPLE_RANKS] == sorted(four, key=lambda k: -mos[k])
    assert examples.set_aside == {middle, better, worse, *four} and len(examples.set_aside) == 5


def test_examples_of_full_reference_systems_are_one_reference_that_is_set_aside_whole() -> None:
    groups = ["a"] * 6 + ["b"] * 9 + ["c"] * 9
    examples = choose_examples(rng().uniform(1, 5, 24), groups)
    assert examples.set_aside == set(range(6, 15))
    assert all(set(shown) <= examples.set_aside for shown in examples.shown.values())


@pytest.mark.parametrize(
    ("number", "groups", "message"),
    [
        (9, None, "9 labelled images are too few"),
        (12, ["a"] * 12, "there are 1"),
        (12, list("aaabbbcccddd"), "at most 3"),
    ],
)
def test_too_few_images_are_refused(number: int, groups: list[str] | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        choose_examples(np.arange(number, dtype=float), groups)


def test_every_image_meets_as_many_others_and_no_pair_comes_twice() -> None:
    images = np.arange(100, 160)
    pairs = plan_pairs(images, 6, rng())
    met = Counter(int(i) for pair in pairs for i in pair)
    assert set(met) == set(images.tolist()) and max(met.values()) == 6 and min(met.values()) >= 5
    assert len({frozenset(pair.tolist()) for pair in pairs}) == len(pairs)
    assert all(len(set(pair.tolist())) == 2 for pair in pairs)


def test_few_images_all_meet_each_other() -> None:
    assert len(plan_pairs([3, 5, 9, 11], 10, rng())) == 6
    assert plan_pairs([3], 10, rng()) == []


def test_every_image_is_in_as_many_fours_and_four_are_four() -> None:
    fours = plan_fours(np.arange(10), 2, rng())
    assert len(fours) == 6 and all(len(set(four.tolist())) == 4 for four in fours)
    counts = Counter(int(i) for four in fours for i in four)
    assert len(counts) == 10 and min(counts.values()) == 2
    assert plan_fours([1, 2, 3], 2, rng()) == []


def greedy(mos, std, predicted, features, number, c1, c2):  # type: ignore[no-untyped-def]
    """The published formula, word by word."""
    chosen: list[int] = []
    while len(chosen) < number:
        best, best_value = -1, -np.inf
        for x in range(len(mos)):
            if x in chosen:
                continue
            value = (predicted[x] - mos[x]) ** 2 / (std[x] ** 2 + c1)
            if chosen:
                mean = features[chosen].mean(axis=0)
                cos = features[x] @ mean / np.linalg.norm(features[x]) / np.linalg.norm(mean)
                value += c2 * (1 - cos)
            if value > best_value:
                best, best_value = x, value
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("c2", [0.01, 1.0, 100.0])
def test_difficult_samples_are_those_of_the_published_formula(c2: float) -> None:
    draw = rng(3)
    mos, std = draw.uniform(0, 100, 60), draw.uniform(5, 25, 60)
    predicted, features = mos + draw.normal(0, 15, 60), draw.normal(size=(60, 8)) + 1
    found = difficult(hardness(mos, std, predicted), features, 15, c2=c2)
    assert found.tolist() == greedy(mos, std, predicted, features, 15, 1.0, c2)


def test_uncertain_scores_and_small_errors_are_not_difficult_and_look_alikes_are_not_taken_twice() -> None:
    mos, predicted = np.full(4, 50.0), np.array([90.0, 90.0, 90.0, 51.0])
    hard = hardness(mos, np.array([1.0, 1.0, 30.0, 1.0]), predicted)
    features = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert difficult(hard, features, 2).tolist() == [0, 1]
    assert difficult(hard, features, 2, c2=1e4).tolist() == [0, 2]


def test_with_references_the_hardest_references_come_first_and_the_hardest_of_each() -> None:
    hard = np.array([0.0, 1, 2, 9, 8, 7, 3, 3, 4])
    features = np.ones((9, 2))
    found = difficult_references(hard, features, list("aaabbbccc"), 4, each=2)
    assert found.tolist() == [3, 4, 8, 6]


def test_a_proxy_is_fitted_whatever_its_scale_and_direction() -> None:
    mos = np.linspace(0, 100, 50)
    rising, falling = 1 / (1 + np.exp(-(mos - 50) / 20)), 7 - 3 * mos / 100
    predicted = proxy_prediction([rising, falling], mos)
    assert np.abs(predicted - mos).max() < 5
    with pytest.raises(DataError, match="proxy 2 cannot be fitted.*constant"):
        proxy_prediction([rising, np.ones(50)], mos)


def test_scores_and_deviations_share_a_scale() -> None:
    mos, std = to_hundred(np.array([1.0, 3.0, 5.0]), np.array([0.2, 0.4, 0.8]))
    assert mos.tolist() == [0, 50, 100] and std == pytest.approx([5, 10, 20])
    assert to_hundred(np.array([1.0, 3.0]), None)[1].tolist() == [0, 0]
