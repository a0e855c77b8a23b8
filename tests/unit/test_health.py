"""Every health measure of judges whose true value is known."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import ScriptedJudge, write_photos, write_toy_images
from torch import Tensor

from evoprompt.cli import main
from evoprompt.config import LadderConfig, PairsConfig, Recipe, VoteConfig
from evoprompt.degrade import KINDS, LADDER_KINDS
from evoprompt.findings import MEASURES, health_lines, worries
from evoprompt.health import Health, Panel, Reading, check_judge, read_panel
from evoprompt.images import scan_images
from evoprompt.ladder import Chain, Rung, ladder_lines
from evoprompt.questions import FAMILIES, Question

EXACT = VoteConfig(wordings=1, views=1, source="compare")
SIGMOID_2 = 1 / (1 + math.exp(-2))


class Lamp:
    """A judge that sees how bright an image is and nothing else; every answer follows from its parameters.

    Args:
        likes: 1 = rates bright images high, -1 = low.
        votes: 1 = votes for the brighter, -1 = for the darker, 0 = in a circle (each brightness over the next ones).
        order_bias: log-odds added for the image shown first; its own log-odds are 2.
        strength: rating points between black and white.
    """

    id, revision, family, image_size, prompt_sha = "lamp", "0", FAMILIES["owl2"], 8, "none"
    device = torch.device("cpu")

    def __init__(self, likes: float = 1, votes: float = 1, order_bias: float = 0, strength: float = 2.5) -> None:
        self.likes, self.votes, self.order_bias, self.strength = likes, votes, order_bias, strength

    def attach(self, prompt: object) -> None:
        pass

    def encode(self, pixels: Tensor) -> Tensor:
        return pixels.mean((1, 2, 3))[:, None, None]

    def rate(self, seen: Tensor, question: Question) -> Tensor:
        """All but certain of the two levels around the score, so that the mean is the score."""
        score = 3 + self.likes * self.strength * (seen[:, 0, 0] - 0.5)
        near = (1 - (torch.arange(1.0, 6.0) - score[:, None]).abs()).clamp_min(1e-9)
        return near.log()

    def compare(self, first: Tensor, second: Tensor, question: Question) -> Tensor:
        gap = first[:, 0, 0] - second[:, 0, 0]
        if self.votes == 0:
            place = (gap * N).round() % N
            logit = torch.where(place <= N // 2, 2.0, -2.0)
        else:
            logit = 2 * self.votes * torch.sign(gap)
        logit = logit + self.order_bias
        return torch.stack([logit / 2, -logit / 2], dim=-1)

    def compare_among(self, seen: Tensor, pairs: Tensor, question: Question) -> Tensor:
        return self.compare(seen[pairs[:, 0]], seen[pairs[:, 1]], question)


N = 5


def grey(brightness: Sequence[float]) -> dict[int, np.ndarray]:
    """One-view images of these brightnesses by key."""
    return {k: np.full((1, 3, 8, 8), round(b * 255), np.uint8) for k, b in enumerate(brightness)}


def read(judge: Lamp, brightness: Sequence[float], chains: Sequence[Chain] = ()) -> Reading:
    """Read a panel whose images are the first five greys, voted among each other."""
    images = grey(brightness)
    chains = chains or [Chain(0, "white_noise", (0, 1))]
    panel = Panel(np.arange(N), [np.arange(N)], list(chains))
    return read_panel(judge, images.__getitem__, panel, EXACT, 4, (0, 0), lambda n=1, **_: None)  # type: ignore[arg-type]


RISING = [0.1, 0.3, 0.5, 0.7, 0.9]


def test_swap_consistency_and_position_bias_are_those_of_the_judge() -> None:
    fair, biased, weak = (read(Lamp(order_bias=b), RISING).health for b in (0, 5, -1))
    assert (fair.swap_consistency, fair.position_bias) == (1, pytest.approx(0))
    assert (biased.swap_consistency, biased.position_bias) == (0, pytest.approx(5))
    assert (weak.swap_consistency, weak.position_bias) == (1, pytest.approx(-1))


def test_position_bias_that_decides_is_a_worry() -> None:
    assert "position_bias" in worries(*[read(Lamp(order_bias=5), RISING).health.to_dict()] * 2)
    assert "position_bias" not in worries(*[read(Lamp(order_bias=1), RISING).health.to_dict()] * 2)


def test_vote_margin_is_how_sure_the_judge_is_without_its_position_bias() -> None:
    for bias in (0, 5):
        health = read(Lamp(order_bias=bias), RISING).health
        assert health.vote_share == pytest.approx(SIGMOID_2)


@pytest.mark.parametrize(("needed", "kept"), [(0.85, 1), (0.9, 0)])
def test_kept_fraction_is_the_share_of_pairs_as_sure_as_the_recipe_asks(needed: float, kept: float) -> None:
    panel = Panel(np.arange(N), [np.arange(N)], [Chain(0, "white_noise", (0, 1))])
    vote = replace(EXACT, min_confidence=needed)
    reading = read_panel(Lamp(), grey(RISING).__getitem__, panel, vote, 4, (0, 0), lambda n=1, **_: None)  # type: ignore[arg-type]
    assert reading.health.kept_fraction == kept


def test_circular_triads_of_a_perfect_order_and_of_a_regular_circle() -> None:
    # Brightness k / 5: each image beats the two after it around the circle, which is as circular as five can be.
    circle = [k / N for k in range(N)]
    assert read(Lamp(), circle).health.triad_consistency == 1
    assert read(Lamp(votes=0), circle).health.triad_consistency == pytest.approx(0)
    assert "triad_consistency" in worries(*[read(Lamp(votes=0), circle).health.to_dict()] * 2)


def test_a_tie_is_half_a_win_in_circular_triads() -> None:
    # One brightness for all: nothing but ties, as little of an order as the regular circle.
    assert read(Lamp(), [0.5] * N).health.triad_consistency == pytest.approx(0)


@pytest.mark.parametrize(("likes", "votes", "agree"), [(1, 1, 1), (1, -1, 0), (-1, -1, 1), (-1, 1, 0)])
def test_agreement_of_rating_order_and_vote_order(likes: float, votes: float, agree: float) -> None:
    assert read(Lamp(likes=likes, votes=votes), RISING).health.agree_compare == agree


def test_agreement_counts_tied_ratings_half() -> None:
    assert read(Lamp(likes=0), RISING).health.agree_compare == 0.5


def test_ratings_agree_with_votes_made_of_them() -> None:
    assert read(Lamp(likes=-1), RISING).health.agree_rate == 1


def test_score_spread_is_that_of_the_scores_given() -> None:
    for strength in (2.5, 0.5):
        health = read(Lamp(strength=strength), RISING).health
        seen = np.round(np.array(RISING) * 255) / 255
        assert health.score_std == pytest.approx(strength * np.std(seen), abs=1e-4)
        assert health.score_mean == pytest.approx(3 + strength * (seen.mean() - 0.5), abs=1e-4)
    assert "score_std" in worries(*[read(Lamp(strength=0.1), RISING).health.to_dict()] * 2)
    assert read(Lamp(strength=5), [0, 0, 0.5, 1, 1]).health.ends_fraction == 0.8


def test_the_ladder_tells_right_steps_by_kind_and_strength() -> None:
    # The judge prefers the brighter image, so a step is right where brightness falls. Keys from 5 on are degraded.
    brightness = [*RISING, 0.8, 0.6, 0.7, 0.8, 0.5, 0.3]
    chains = [
        Chain(4, "haze", (4, 5, 6)),  # .9 .8 .6: both steps right
        Chain(3, "haze", (3, 7, 8)),  # .7 .7 .8: a tie, then wrong
        Chain(3, "jpeg", (3, 9, 10)),  # .7 .5 .3
    ]
    reading = read(Lamp(), brightness, chains)
    assert reading.ladder == (
        Rung("haze", 1.0, 2, 0.75, 0.75),
        Rung("haze", 5.0, 2, 0.5, 0.5),
        Rung("jpeg", 1.0, 1, 1.0, 1.0),
        Rung("jpeg", 5.0, 1, 1.0, 1.0),
    )
    steps = [0.75, 0.5, 1, 1]
    accuracy = np.average(steps, weights=[2, 2, 1, 1])
    health = reading.health
    found = (health.ladder_vote_accuracy, health.ladder_rate_accuracy, health.ladder_compare_accuracy)
    assert found == pytest.approx((accuracy,) * 3) and health.ladder_steps == 6
    against = read(Lamp(likes=-1), brightness, chains)
    assert [(rung.votes, rung.ratings) for rung in against.ladder][2:] == [(1.0, 0.0), (1.0, 0.0)]
    lines = ladder_lines(reading.ladder)
    assert lines[1].split() == ["haze", "2", "0.75/0.75", "0.50/0.50"]


def test_the_ladder_of_a_judge_that_is_right_in_a_known_share(tmp_path: Path) -> None:
    write_toy_images(tmp_path, 12)
    recipe = Recipe(
        pairs=PairsConfig(per_round=60, group=6),
        vote=VoteConfig(wordings=1, views=1, source="compare"),
        ladder=LadderConfig(images=12, kinds=2, levels=5),
    )

    def look(judge: ScriptedJudge) -> Health:
        return check_judge(judge, scan_images([tmp_path]), recipe, lambda total: lambda n=1, **_: None).health

    knows, doubts = look(ScriptedJudge()), look(ScriptedJudge(accuracy=0.7))
    # What it gets wrong is drawn independently of the images: 0.7 x right + 0.3 x wrong.
    p = knows.ladder_compare_accuracy
    expected, steps = 0.7 * p + 0.3 * (1 - p), doubts.ladder_steps
    assert steps == 120
    assert doubts.ladder_compare_accuracy == pytest.approx(expected, abs=3 * math.sqrt(0.25 / steps))
    assert knows.swap_consistency == doubts.swap_consistency == 1


def test_the_command_prints_measures_worries_and_the_ladder_of_every_kind(tmp_path: Path) -> None:
    write_photos(tmp_path)
    command = [
        "judge", str(tmp_path), "-r", "nano", "--device", "cpu", "-s", "ladder.images=1", "-s", "pairs.per_round=10",
        "-s", "pairs.group=4", "-s", "vote.wordings=1", "-s", "vote.views=1",
    ]  # fmt: skip
    body = json.loads(CliRunner().invoke(main, [*command, "--all-kinds", "--json"]).stdout)
    assert {(rung["kind"], rung["strength"]) for rung in body["ladder"]} == {
        (kind, float(strength)) for kind in LADDER_KINDS for strength in range(1, 6)
    }
    assert body["ladder_steps"] == 5 * len(LADDER_KINDS)
    told = Path(__file__).parents[2] / "docs" / "health.md"
    assert f"made of {len(LADDER_KINDS)} of the {len(KINDS)}" in told.read_text(encoding="utf-8")
    assert f"all its {len(LADDER_KINDS)} kinds" in CliRunner().invoke(main, ["judge", "--help"]).stdout
    assert set(body["worries"]) <= set(MEASURES)
    plain = CliRunner().invoke(main, [*command, "-s", "ladder.kinds=2"]).stdout.splitlines()
    assert [line.split()[0] for line in plain[: len(MEASURES)]] == list(MEASURES)
    assert plain[len(MEASURES) + 1].startswith("ladder, strength") and len(plain) == len(MEASURES) + 5


def test_sampled_votes_of_a_single_draw_are_a_panel(tmp_path: Path) -> None:
    write_toy_images(tmp_path, 12)
    recipe = Recipe(
        pairs=PairsConfig(per_round=60, group=6),
        vote=VoteConfig(mode="sampled", draws=1, wordings=1, views=1, min_confidence=0.5),
        ladder=LadderConfig(images=6, kinds=2),
    )
    reading = check_judge(ScriptedJudge(), scan_images([tmp_path]), recipe, lambda total: lambda n=1, **_: None)
    assert all(label.n_votes == 1 and label.share in (0, 1) for label in reading.labels)


def test_lines_name_every_measure_its_value_and_its_worry() -> None:
    numbers = read(Lamp(order_bias=5), RISING).health.to_dict()
    lines = health_lines(numbers)
    assert [line.split()[0] for line in lines] == list(MEASURES)
    assert all("worry when" in line for line in lines)
    swap = next(line for line in lines if line.startswith("swap_consistency"))
    assert swap.split()[1:3] == ["0", "!"] and swap.endswith("worry when below 0.7")
