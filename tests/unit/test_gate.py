"""The gate: what a candidate must show, one condition at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from evoprompt.config import GateConfig
from evoprompt.health import Decision, Health, Reading, decide
from evoprompt.ladder import Chain
from evoprompt.voting import PseudoLabel

GOOD = Health(
    ladder_vote_accuracy=0.8, ladder_rate_accuracy=0.8, ladder_compare_accuracy=0.8, ladder_steps=200,
    vote_share=0.8, swap_consistency=0.95, position_bias=0.0, triad_consistency=0.9, kept_fraction=1.0,
    agree_compare=0.6, agree_rate=0.6, score_mean=3.0, score_std=0.5, ends_fraction=0.0,
)  # fmt: skip
N = 12
LABELS = [
    PseudoLabel(k, a, b, 0.9, 1.0, 1.0, 4, True)
    for k, (a, b) in enumerate((a, b) for a in range(N) for b in range(a + 1, N))
]


def _reading(right: bool, wrong_steps: Sequence[int] = (0, 0, 0, 0), **changes: float) -> Reading:
    """Scores that order all pairs as voted, or that know nothing, with these measures.

    Four images are on the ladder, with 10 steps each, of which so many are rated wrongly.
    """
    scores = {k: float(-k if right else (k * 5) % N) for k in range(N)}
    chains = []
    for image, wrong in enumerate(wrong_steps):
        keys = tuple(range(N + 11 * image, N + 11 * image + 11))
        scores |= {key: float(step if step <= wrong else -step) for step, key in enumerate(keys)}
        chains.append(Chain(image, "blur", keys))
    return Reading(replace(GOOD, **changes), scores, LABELS, [], chains=chains)


def _decide(after: Reading) -> Decision:
    start = _reading(False)
    return decide(start, start, after, GateConfig(), (0, 1))


def test_a_candidate_that_agrees_more_and_keeps_its_health_is_accepted() -> None:
    decision = _decide(_reading(True))
    assert decision.accepted and decision.gain_low > 0


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (_reading(False), "is no clear gain"),
        (_reading(True, ladder_vote_accuracy=0.52), "votes order the ladder not clearly better than a coin"),
        (_reading(True, (2, 3, 3, 2)), "ladder accuracy of the ratings fell by 0.250 (at least 0.203)"),
        (_reading(True, swap_consistency=0.7), "votes became less consistent, swaps or triads down by 0.25"),
        (_reading(True, triad_consistency=0.6), "votes became less consistent, swaps or triads down by 0.30"),
        (_reading(True, score_std=0.1), "scores collapsed to 20% of their spread"),
    ],
)
def test_each_failing_condition_rejects_and_is_named(after: Reading, reason: str) -> None:
    decision = _decide(after)
    assert not decision.accepted
    assert reason in decision.reason


def test_a_fall_on_the_ladder_counts_only_where_images_bear_it_out() -> None:
    assert _reading(True, (0, 3, 10, 1)).ladder_by_image().tolist() == [1.0, 0.7, 0.0, 0.9]
    assert _decide(_reading(True, (0, 5, 0, 0))).accepted
    assert not _decide(_reading(True, (1, 2, 1, 1))).accepted
    start = _reading(False, (3,))
    assert decide(start, start, _reading(True, (3,)), GateConfig(), (0, 1)).accepted
    assert "fell by 0.100" in decide(start, start, _reading(True, (4,)), GateConfig(), (0, 1)).reason


def test_measures_that_are_not_defined_do_not_reject() -> None:
    assert _decide(_reading(True, triad_consistency=float("nan"))).accepted


def test_without_a_held_out_pair_nothing_is_accepted() -> None:
    start = replace(_reading(False), labels=[replace(label, kept=False) for label in LABELS])
    assert "no held-out pair passes" in decide(start, start, _reading(True), GateConfig(), (0, 1)).reason
