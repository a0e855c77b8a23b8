"""The gate: what a candidate must show, one condition at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evoprompt.config import GateConfig
from evoprompt.health import Decision, Health, Reading, decide
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


def _reading(right: bool, **changes: float) -> Reading:
    """Scores that order all pairs as voted, or that know nothing, with these measures."""
    scores = {k: float(-k if right else (k * 5) % N) for k in range(N)}
    return Reading(replace(GOOD, **changes), scores, LABELS, [])


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
        (_reading(True, ladder_rate_accuracy=0.7), "ladder accuracy of the ratings fell by 0.100"),
        (_reading(True, swap_consistency=0.7), "votes became less consistent, swaps or triads down by 0.25"),
        (_reading(True, triad_consistency=0.6), "votes became less consistent, swaps or triads down by 0.30"),
        (_reading(True, score_std=0.1), "scores collapsed to 20% of their spread"),
    ],
)
def test_each_failing_condition_rejects_and_is_named(after: Reading, reason: str) -> None:
    decision = _decide(after)
    assert not decision.accepted
    assert reason in decision.reason


def test_measures_that_are_not_defined_do_not_reject() -> None:
    assert _decide(_reading(True, triad_consistency=float("nan"))).accepted


def test_without_a_held_out_pair_nothing_is_accepted() -> None:
    start = replace(_reading(False), labels=[replace(label, kept=False) for label in LABELS])
    assert "no held-out pair passes" in decide(start, start, _reading(True), GateConfig(), (0, 1)).reason
