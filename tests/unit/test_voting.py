"""Votes: planning, position bias, counting, drawing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import SIDE, ScriptedJudge, base_picture

from evoprompt.config import VoteConfig
from evoprompt.errors import RecipeError, RunError
from evoprompt.judge import preference_logits
from evoprompt.voting import (
    PseudoLabel,
    Seen,
    Vote,
    check_vote,
    collect_votes,
    control_labels,
    count_votes,
    pairs_of,
    plan_groups,
    position_bias,
)


def _pixels(key: int) -> np.ndarray:
    noise = np.random.default_rng(key).normal(0, 0.01 + 0.01 * key, (SIDE, SIDE, 3))
    picture = ((base_picture() + noise).clip(0, 1) * 255).round().astype(np.uint8).transpose(2, 0, 1)
    return np.stack([picture, picture[:, :, ::-1]])


def _vote(
    logit: float, order: str = "ab", source: str = "compare", question: str = "q", view: int = 0, **more: int
) -> Vote:
    return Vote(pair=0, a=0, b=1, source=source, question=question, view=view, order=order, logit=logit, **more)


EXACT = VoteConfig(mode="exact", wordings=2, views=2, min_confidence=0.6)


def test_every_image_is_used_once_before_any_is_used_again() -> None:
    groups = plan_groups(np.arange(30), 200, 8, np.random.default_rng(0))
    uses = np.bincount(np.concatenate(groups), minlength=30)
    assert uses.max() - uses.min() <= 1
    assert all(len(set(group)) == len(group) == 8 for group in groups)
    assert sum(len(pairs_of(group)) for group in groups) >= 200


def test_a_pool_smaller_than_a_group_makes_smaller_groups() -> None:
    groups = plan_groups(np.array([4, 7, 9]), 5, 12, np.random.default_rng(0))
    assert [sorted(group) for group in groups] == [[4, 7, 9]] * 2


def test_swapping_a_pair_negates_its_preference() -> None:
    judge = ScriptedJudge(order_bias=0.7)
    seen = Seen(judge, [range(4)], _pixels, 2)
    tokens, pairs = seen.tokens(range(4), 0), torch.tensor([[0, 2], [1, 3]])
    question = judge.family.compare[0]
    forth, back = (torch.stack(preference_logits(judge, tokens, x, question)).mean(0) for x in (pairs, pairs.flip(1)))
    assert torch.allclose(forth, -back, atol=1e-6)


@pytest.mark.parametrize("bias", [0.0, 1.5, -40.0])
def test_position_bias_of_any_size_is_removed_and_measured(bias: float) -> None:
    pairs = pairs_of(np.arange(6))

    def labels(order_bias: float) -> tuple[list[float], list[Vote]]:
        votes = collect_votes(
            Seen(ScriptedJudge(order_bias=order_bias), [range(6)], _pixels, 4), pairs, EXACT, ("compare",), (0, 1)
        )
        return [label.share for label in count_votes(votes, EXACT)], votes

    biased, votes = labels(bias)
    assert biased == pytest.approx(labels(0.0)[0], abs=1e-5)
    assert position_bias(votes)[0] == pytest.approx(bias, abs=1e-5)
    assert position_bias(votes)[1] == (1.0 if abs(bias) < 2 else 0.0)


def test_the_votes_of_a_pair_are_orders_times_wordings_times_views() -> None:
    votes = collect_votes(
        Seen(ScriptedJudge(), [range(3)], _pixels, 4), pairs_of(np.arange(3)), EXACT, ("compare", "rate"), (0, 1)
    )
    per_pair = [v for v in votes if v.pair == 1]
    assert len([v for v in per_pair if v.source == "compare"]) == 2 * 2 * 2
    assert len([v for v in per_pair if v.source == "rate"]) == 2 * 2
    assert len({(v.source, v.question, v.view, v.order) for v in per_pair}) == len(per_pair)


def test_images_are_encoded_once() -> None:
    judge, sizes = ScriptedJudge(), []
    plain = judge.encode

    def counting(pixels: torch.Tensor) -> torch.Tensor:
        sizes.append(len(pixels))
        return plain(pixels)

    judge.encode = counting  # type: ignore[method-assign]
    seen = Seen(judge, [range(6)], _pixels, 4)
    collect_votes(seen, pairs_of(np.arange(6)), EXACT, ("compare", "rate"), (0, 1))
    assert sum(sizes) == 6 * 2


def test_exact_counting_averages_orders_as_log_odds_then_probabilities() -> None:
    votes = [_vote(3.0, "ab"), _vote(-1.0, "ba"), _vote(0.5, "ab", view=1), _vote(0.1, "ba", view=1)]
    (label,) = count_votes(votes, EXACT)
    first, second = 1 / (1 + math.exp(-1.0)), 1 / (1 + math.exp(-0.3))
    assert label.share == pytest.approx((first + second) / 2)
    assert (label.target, label.kept, label.agreement, label.n_votes) == (1.0, True, 1.0, 4)


def test_pairs_below_the_threshold_and_ties_are_dropped() -> None:
    unsure, tie = [_vote(0.1), _vote(0.1, "ba")], [_vote(2.0), _vote(-2.0, "ba")]
    assert not count_votes(unsure, EXACT)[0].kept
    assert not count_votes(tie, EXACT)[0].kept
    published = VoteConfig(mode="exact", min_confidence=0.5)
    assert count_votes(unsure, published)[0].kept
    assert count_votes(tie, published)[0].kept and count_votes(tie, published)[0].target == 0.5


def test_soft_targets_are_the_share_of_votes() -> None:
    soft = VoteConfig(mode="exact", min_confidence=0.5, targets="soft")
    (label,) = count_votes([_vote(-0.4), _vote(-0.4, "ba")], soft)
    assert label.target == label.share == pytest.approx(1 / (1 + math.exp(0.4)))


def test_only_the_sources_asked_for_are_counted() -> None:
    votes = [_vote(2.0), _vote(2.0, "ba"), _vote(-5.0, "-", "rate")]
    assert count_votes(votes, EXACT, ("compare",))[0].target == 1.0
    assert count_votes(votes, EXACT, ("rate",))[0].target == 0.0


def test_sampled_votes_are_drawn_from_coordinates_and_counted_by_majority() -> None:
    config = VoteConfig(mode="sampled", draws=32, wordings=1, views=1, min_confidence=0.5)
    seen = Seen(ScriptedJudge(), [range(4)], _pixels, 4)
    pairs = pairs_of(np.arange(4))
    votes = collect_votes(seen, pairs, config, ("compare",), (5, 1))
    again = collect_votes(seen, pairs, config, ("compare",), (5, 1))
    other = collect_votes(seen, pairs, config, ("compare",), (6, 1))
    assert votes == again != other
    for label in count_votes(votes, config):
        drawn = [v for v in votes if v.pair == label.pair]
        assert label.n_votes == sum(v.draws for v in drawn) == 32
        assert label.share == sum(v.wins for v in drawn) / 32
        assert label.target in (0.0, 0.5, 1.0)


@pytest.mark.parametrize("draws", [1, 32])
def test_each_source_is_drawn_as_often_as_the_recipe_says_whatever_else_is_asked(draws: int) -> None:
    config = VoteConfig(mode="sampled", draws=draws, wordings=2, views=2, min_confidence=0.5)
    pairs = pairs_of(np.arange(4))

    def drawn(*sources: str) -> list[Vote]:
        return collect_votes(Seen(ScriptedJudge(), [range(4)], _pixels, 4), pairs, config, sources, (5, 1))

    both = drawn("compare", "rate")
    for source in ("compare", "rate"):
        labels = count_votes(both, config, (source,))
        assert [label.n_votes for label in labels] == [draws] * len(pairs)
        assert labels == count_votes(drawn(source), config, (source,))


def test_many_draws_approach_the_exact_share() -> None:
    config = VoteConfig(mode="sampled", draws=20_000, wordings=1, views=1, min_confidence=0.5)
    votes = collect_votes(
        Seen(ScriptedJudge(), [range(2)], _pixels, 4), pairs_of(np.arange(2)), config, ("compare",), (0, 1)
    )
    exact = np.mean([1 / (1 + math.exp(-v.logit)) for v in votes])
    assert count_votes(votes, config)[0].share == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize(
    ("vote", "message"),
    [
        (VoteConfig(wordings=4), "vote.wordings is 4, but judges of the family owl2 have 3; set -s vote.wordings=3"),
        (VoteConfig(views=3), "vote.views is 3, but an image has 2 views"),
    ],
)
def test_wordings_and_views_that_a_judge_lacks_are_refused(vote: VoteConfig, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_vote(vote, ScriptedJudge())


def test_dealt_labels_come_from_another_pair_and_one_alone_is_refused() -> None:
    labels = [PseudoLabel(k, k, k + 1, 0.9, k / 4, 0.9, 4, kept=k > 1) for k in range(4)]
    told = control_labels(labels, "shuffled-labels", np.random.default_rng(0))
    assert [label.target for label in told] == [0, 0.25, 0.75, 0.5] and [label.pair for label in told] == [0, 1, 2, 3]
    with pytest.raises(RunError, match="one pair alone passed vote.min_confidence, so its label can be dealt to no o"):
        control_labels(labels[:3], "shuffled-labels", np.random.default_rng(0))
    assert control_labels(labels[:2], "shuffled-labels", np.random.default_rng(0)) == labels[:2]
