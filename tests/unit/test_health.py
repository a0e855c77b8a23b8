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
from evoprompt.degrade import LADDER_KINDS
from evoprompt.findings import MEASURES, health_lines, teachable, teaching, worries
from evoprompt.health import Health, Panel, Reading, Rung, check_judge, ladder_lines, read_panel
from evoprompt.images import scan_images
from evoprompt.ladder import CROSS_PAIRS, Chain, plan_cross
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
NONE = np.empty((0, 2), dtype=int)


def grey(brightness: Sequence[float]) -> dict[int, np.ndarray]:
    """One-view images of these brightnesses by key."""
    return {k: np.full((1, 3, 8, 8), round(b * 255), np.uint8) for k, b in enumerate(brightness)}


def read(judge: Lamp, brightness: Sequence[float], chains: Sequence[Chain] = ()) -> Reading:
    """Read a panel whose images are the first five greys, voted among each other."""
    images = grey(brightness)
    chains = chains or [Chain(0, "white_noise", (0, 1))]
    panel = Panel(np.arange(N), [np.arange(N)], list(chains), NONE)
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
    panel = Panel(np.arange(N), [np.arange(N)], [Chain(0, "white_noise", (0, 1))], NONE)
    vote = replace(EXACT, min_confidence=needed)
    reading = read_panel(Lamp(), grey(RISING).__getitem__, panel, vote, 4, (0, 0), lambda n=1, **_: None)  # type: ignore[arg-type]
    assert reading.health.kept_fraction == kept


def test_circular_triads_of_a_perfect_order_and_of_a_regular_circle() -> None:
    # Brightness k / 5: each image beats the two after it around the circle, which is as circular as five can be.
    circle = [k / N for k in range(N)]
    assert read(Lamp(), circle).health.triad_consistency == 1
    assert read(Lamp(votes=0), circle).health.triad_consistency == pytest.approx(0)
    assert "triad_consistency" in worries(*[read(Lamp(votes=0), circle).health.to_dict()] * 2)


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


class Connoisseur(Lamp):
    """A judge that sees the quality of an image, its red, and what it shows, its green.

    Args:
        accuracy: share of the pairs in which it votes for the better one.
        bias: rating points that green adds; red gives 2 from none to all.
    """

    def __init__(self, accuracy: float = 1, bias: float = 0) -> None:
        super().__init__()
        self.accuracy, self.bias = accuracy, bias

    def encode(self, pixels: Tensor) -> Tensor:
        return pixels.mean((2, 3))[:, None]

    def rate(self, seen: Tensor, question: Question) -> Tensor:
        score = 2 + 2 * seen[:, 0, 0] + self.bias * (seen[:, 0, 1] - 0.5)
        return (1 - (torch.arange(1.0, 6.0) - score[:, None]).abs()).clamp_min(1e-9).log()

    def compare(self, first: Tensor, second: Tensor, question: Question) -> Tensor:
        a, b = first[:, 0, 0], second[:, 0, 0]
        # Which pairs it gets wrong follows from the pair, not from its order.
        draw = (torch.minimum(a, b) * 7919 + torch.maximum(a, b) * 104729) % 1
        logit = 2 * torch.sign(a - b) * torch.where(draw < self.accuracy, 1.0, -1.0)
        return torch.stack([logit / 2, -logit / 2], dim=-1)


def gallery(n: int, kinds: int, again: int = 1) -> tuple[dict[int, np.ndarray], Panel]:
    """``n`` pictures under ``kinds`` degradations, and their panel; every degradation is there ``again`` times.

    The red of an image is .6 to .8, that of a degraded one .3 less; green is anything, and no degradation changes it.
    """
    rng = np.random.default_rng(4)
    red, green = rng.uniform(0.6, 0.8, n), rng.uniform(0, 1, n)
    lost = 0.3 + rng.uniform(-0.05, 0.05, (n, kinds))
    colours, chains = [(red[k], green[k]) for k in range(n)], []
    for _ in range(again):
        for k in range(n):
            for kind in range(kinds):
                chains.append(Chain(k, f"kind {kind}", (k, len(colours))))
                colours.append((red[k] - lost[k, kind], green[k]))
    images = {
        key: np.broadcast_to(np.array([r, g, 0])[None, :, None, None] * 255, (1, 3, 8, 8)).round().astype(np.uint8)
        for key, (r, g) in enumerate(colours)
    }
    pairs = [(int(a), chain.keys[-1]) for chain in chains for a in range(n) if a != chain.image]
    return images, Panel(np.arange(n), [np.arange(n)], chains, np.array(pairs))


def visit(judge: Connoisseur, n: int = 12, kinds: int = 3, again: int = 1) -> Health:
    images, panel = gallery(n, kinds, again)
    return read_panel(judge, images.__getitem__, panel, EXACT, 8, (0, 0), lambda n=1, **_: None).health  # type: ignore[arg-type]


def test_a_bias_for_content_hides_within_images_and_shows_across_them() -> None:
    health, (images, panel) = visit(Connoisseur(bias=1.9)), gallery(12, 3)
    assert (health.ladder_vote_accuracy, health.ladder_rate_accuracy) == (1, 1)
    score = {key: 2 * int(x[0, 0, 0, 0]) + 1.9 * int(x[0, 1, 0, 0]) for key, x in images.items()}
    right = np.mean([score[a] > score[b] for a, b in panel.cross.tolist()])
    assert health.cross_vote_accuracy == 1 and health.cross_rate_accuracy == pytest.approx(right) and right < 0.8
    assert health.cross_pairs == 12 * 11 * 3
    assert 0.05 < health.cross_lead_low < 1 - right < health.cross_lead_high
    numbers = health.to_dict()
    assert teachable(numbers) and teaching(numbers).endswith("there is something to teach")
    assert f"right in 1.000 against {right:.3f} of 396 pairs" in teaching(numbers)
    assert not {name for name in worries(numbers, numbers) if name.startswith("cross_")}


def test_votes_that_know_as_much_as_ratings_have_nothing_to_teach() -> None:
    same, wrong = visit(Connoisseur()), 1 - visit(Connoisseur(bias=1.9)).cross_rate_accuracy
    assert (same.cross_lead_low, same.cross_lead_high) == (0, 0) and same.cross_rate_accuracy == 1
    alike = visit(Connoisseur(accuracy=1 - wrong, bias=1.9))
    assert alike.cross_vote_accuracy == pytest.approx(alike.cross_rate_accuracy, abs=0.05)
    assert alike.cross_lead_low < 0 < alike.cross_lead_high
    for health in (same, alike):
        numbers = health.to_dict()
        assert teachable(numbers) is False and teaching(numbers).endswith("evolution may teach little here")
        assert "cross_lead_low" in worries(numbers, numbers)
    worse = visit(Connoisseur(accuracy=0.5)).to_dict()
    assert {"cross_lead_low", "cross_lead_high"} <= set(worries(worse, worse)) and not teachable(worse)


def test_the_interval_of_the_lead_resamples_images_not_pairs() -> None:
    once, often = visit(Connoisseur(bias=1.9)), visit(Connoisseur(bias=1.9), again=4)
    assert often.cross_pairs == 4 * once.cross_pairs
    assert (often.cross_lead_low, often.cross_lead_high) == pytest.approx((once.cross_lead_low, once.cross_lead_high))
    wider, narrower = visit(Connoisseur(bias=1.9), n=6), visit(Connoisseur(bias=1.9), n=48)
    for few, many in ((wider, once), (once, narrower)):
        assert few.cross_lead_high - few.cross_lead_low > many.cross_lead_high - many.cross_lead_low


def test_pairs_of_different_images_are_whole_against_degraded_bounded_and_drawn_by_seed() -> None:
    def plan(images: int, kinds: int, seed: int = 0) -> tuple[list[Chain], np.ndarray]:
        chains = [Chain(k, "haze", (k, 1000 + k * kinds + j)) for k in range(images) for j in range(kinds)]
        return chains, plan_cross(chains, np.random.default_rng(seed))

    chains, pairs = plan(12, 6)  # as in the default recipe
    assert len({tuple(pair) for pair in pairs.tolist()}) == len(pairs) == 12 * 6 * 5 <= CROSS_PAIRS
    source = {key: chain.image for chain in chains for key in chain.keys}
    assert all(a < 12 and source[a] != source[b] for a, b in pairs.tolist())
    assert (np.bincount(pairs[:, 1])[1000:] == 5).all() and set(pairs[:, 0].tolist()) == set(range(12))
    assert (plan(12, 6)[1] == pairs).all() and (plan(12, 6, seed=1)[1] != pairs).any()
    assert len(plan(30, 24)[1]) == CROSS_PAIRS and len(plan(2, 1)[1]) == 2 and len(plan(1, 6)[1]) == 0


def test_without_pairs_of_different_images_nothing_is_said_of_them() -> None:
    numbers = read(Lamp(), RISING).health.to_dict()
    assert numbers["cross_pairs"] == 0 and teachable(numbers) is None and teaching(numbers) == ""
    assert not {name for name in worries(numbers, numbers) if name.startswith("cross_")}


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
    assert len(LADDER_KINDS) >= 20 and body["ladder_steps"] == 5 * len(LADDER_KINDS)
    assert set(body["worries"]) <= set(MEASURES)
    plain = CliRunner().invoke(main, [*command, "-s", "ladder.kinds=2"]).stdout.splitlines()
    assert [line.split()[0] for line in plain[: len(MEASURES)]] == list(MEASURES)
    assert plain[len(MEASURES) + 1].startswith("ladder, strength") and len(plain) == len(MEASURES) + 5


def test_lines_name_every_measure_its_value_and_its_worry() -> None:
    numbers = read(Lamp(order_bias=5), RISING).health.to_dict()
    lines = health_lines(numbers)
    assert [line.split()[0] for line in lines] == list(MEASURES)
    assert set(MEASURES) - set(numbers) == {name for name in MEASURES if name.startswith("cross_")} - {"cross_pairs"}
    assert all("worry when" in line for line in lines)
    swap = next(line for line in lines if line.startswith("swap_consistency"))
    assert swap.split()[1:3] == ["0", "!"] and swap.endswith("worry when below 0.7")
