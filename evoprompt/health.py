"""The label-free health of a judge: what can be known about it, and about a prompt, without one human score."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from scipy import stats

from evoprompt.config import EvalConfig, GateConfig, LadderConfig, PairsConfig, Recipe, VoteConfig
from evoprompt.images import ImageSet
from evoprompt.judge import Judge
from evoprompt.ladder import Chain, Pool, Rung, plan_chains, rungs
from evoprompt.processes import in_turns, own
from evoprompt.runs import LADDER, PAIRS, SPLIT, VOTES, stream
from evoprompt.scoring import level_probabilities
from evoprompt.stats import agreement_gain, binomial_above_chance, circular_triads
from evoprompt.tracking import Update
from evoprompt.voting import (
    LIMITS,
    SOURCES,
    PseudoLabel,
    Seen,
    Vote,
    chunks,
    collect_votes,
    count_votes,
    plan_groups,
    position_bias,
    sources_of,
)

# A teacher whose winners depend on the order shown, or go in circles, a tenth more often than before is not followed.
CONSISTENCY_DROP = 0.1
PIECE = 256  # pairs of the panel that one process asks at a time; more would recur more, fewer spread better


@dataclass(frozen=True)
class Health:
    """Label-free measures of a judge with or without a prompt, all on images that training never sees.

    Attributes:
        ladder_vote_accuracy: share of neighbouring ladder steps whose votes prefer the less degraded image. Worry when
            near 0.5: the votes know nothing.
        ladder_rate_accuracy: the same for the ratings of the two images (ties count half).
        ladder_compare_accuracy: the same for the comparing votes alone.
        ladder_steps: how many steps these shares are of.
        vote_share: mean share of the votes for the winner, in [0.5, 1].
        swap_consistency: share of comparisons whose winner stays when the order is swapped. Worry when below 0.7.
        position_bias: mean log-odds for the image shown first; removed by asking both orders. Worry when its size is
            far above the log-odds between images.
        triad_consistency: Kendall and Babington Smith's zeta: 1 = no circular triads, 0 = as many as possible.
        kept_fraction: share of held-out pairs whose votes pass the confidence threshold.
        agree_compare: share of held-out pairs whose ratings agree with the comparing votes (ties half).
        agree_rate: the same for the rating votes.
        score_mean: mean score of the held-out images, 1 to 5.
        score_std: its standard deviation. Worry when it falls toward 0: the scores collapse.
        ends_fraction: share of scores within 0.25 of 1 or 5. Worry when above a quarter: the scale is used up.
    """

    ladder_vote_accuracy: float
    ladder_rate_accuracy: float
    ladder_compare_accuracy: float
    ladder_steps: int
    vote_share: float
    swap_consistency: float
    position_bias: float
    triad_consistency: float
    kept_fraction: float
    agree_compare: float
    agree_rate: float
    score_mean: float
    score_std: float
    ends_fraction: float

    def to_dict(self) -> dict[str, float]:
        """The measures by name, without those that are not defined."""
        return {name: value for name, value in asdict(self).items() if math.isfinite(value)}


@dataclass(frozen=True)
class Part:
    """What one process does of a panel at a time: images to be rated, and pairs (P, 2) of them to be asked about.

    ``first`` is the number of the first pair among those of its ``stage``, of the groups or of the ladder.
    """

    images: np.ndarray
    pairs: np.ndarray
    first: int
    stage: int


@dataclass(frozen=True)
class Panel:
    """The label-free test: held-out images, the groups voted among them, and the ladder over them."""

    images: np.ndarray
    groups: list[np.ndarray]
    chains: list[Chain]

    @property
    def keys(self) -> list[int]:
        """Every image that is looked at."""
        return sorted({int(i) for i in self.images} | {k for chain in self.chains for k in chain.keys})

    def parts(self, block: int) -> list[Part]:
        """All there is to do, cut where the parts share fewest images.

        Args:
            block: images of a part that is rated only.

        Returns:
            Pieces of the groups, images that are in no group, ladder steps image by image.
        """
        parts = [
            Part(np.unique(piece), piece, first + PIECE * k, VOTES)
            for first, pairs in chunks(self.groups)
            for k, piece in enumerate(_pieces(pairs, PIECE))
        ]
        alone = np.setdiff1d(self.images, np.concatenate(self.groups))
        parts += [Part(images, np.empty((0, 2), dtype=np.int64), 0, VOTES) for images in _pieces(alone, block)]
        first = 0
        for _, chains in groupby(self.chains, lambda chain: chain.image):
            steps = np.concatenate([chain.steps() for chain in chains])
            parts.append(Part(np.unique(steps), steps, first, LADDER))
            first += len(steps)
        return parts


@dataclass(frozen=True)
class Reading:
    """What one look through the panel gave: the measures, and what the gate needs of the single answers."""

    health: Health
    scores: dict[int, float]
    labels: list[PseudoLabel]
    votes: list[Vote]
    ladder: tuple[Rung, ...] = ()
    chains: Sequence[Chain] = ()

    def agreements(self, labels: Sequence[PseudoLabel]) -> np.ndarray:
        """Whether these scores order each pair as its pseudo-label does: 1, 0, or 0.5 for a tie, (P,)."""
        return _agreements(self.scores, labels)

    def ladder_by_image(self) -> np.ndarray:
        """Share of each degraded image's ladder steps that the ratings order rightly, (I,)."""
        right: dict[int, list[np.ndarray]] = {}
        for chain in self.chains:
            right.setdefault(chain.image, []).append(_rated_right(self.scores, chain.steps()))
        return np.array([np.concatenate(steps).mean() for steps in right.values()])


def split_images(images: ImageSet, heldout: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which images train and which are held out for the gate.

    Distorted copies of one reference image stay together, so that what is held out shows nothing of what is trained on;
    where that leaves fewer than two on a side, they are split all the same.

    Args:
        images: at least four.
        heldout: share to hold out.
        seed: of the run.

    Returns:
        Sorted indices of either side, at least two each.
    """
    order = stream(seed, 0, SPLIT).permutation(len(images))
    wanted = min(max(2, round(heldout * len(images))), len(images) - 2)
    references = [record.reference for record in images.records]
    out = order[:wanted]
    if any(references):
        groups: dict[str, list[int]] = {}
        for index in order:
            groups.setdefault(references[index] or f"image {index}", []).append(int(index))
        together: list[int] = []
        for group in groups.values():
            if len(together) < wanted and len(together) + len(group) <= len(images) - 2:
                together += group
        out = np.array(together) if len(together) >= 2 else out
    return np.setdiff1d(order, out), np.sort(out)


def plan_panel(pool: Pool, heldout: np.ndarray, pairs: PairsConfig, ladder: LadderConfig, seed: int) -> Panel:
    """The panel of a run; the same for all its rounds.

    Args:
        pool: all images of the run.
        heldout: indices of the images held out.
        pairs: how many pairs a round has; the panel has as many, or all there are among the held-out images.
        ladder: size of the ladder.
        seed: of the run.
    """
    n_all = len(heldout) * (len(heldout) - 1) // 2
    size = len(heldout) if n_all <= pairs.per_round else pairs.group
    groups = plan_groups(heldout, min(n_all, pairs.per_round), size, stream(seed, 0, PAIRS))
    rng = stream(seed, 0, LADDER)
    chains = plan_chains(pool, [int(i) for i in heldout], ladder.images, ladder.kinds, ladder.levels, rng)
    return Panel(heldout, groups, chains)


def read_panel(
    judge: Judge,
    pool: Pool,
    panel: Panel,
    vote: VoteConfig,
    block: int,
    seed: tuple[int, int],
    advance: Update,
    limits: EvalConfig = LIMITS,
) -> Reading:
    """Look at the panel through the judge as it is now, its prompt included.

    Args:
        judge: with the prompt to be measured attached.
        pool: all images.
        panel: what to look at.
        vote: how votes are taken and counted.
        block: images encoded at a time.
        seed: (seed, round).
        advance: told how many steps of ``work(panel)`` are done.
        limits: what may be kept of the images, see ``voting.Seen``.
    """
    parts, question = panel.parts(block), judge.family.rate[0]
    seen = Seen(judge, (part.images for part in parts), pool, block, limits=limits)
    seen.expect(part.images for part in own(parts))

    def ask(part: Part) -> tuple[torch.Tensor, list[Vote]]:
        """Ratings of the images of a part, and votes on its pairs."""
        logits = seen.ratings(part.images, question)[:, : judge.family.views]
        drawn = (*seed, part.stage)
        return logits, collect_votes(seen, part.pairs, vote, SOURCES, drawn, part.first) if len(part.pairs) else []

    told: dict[int, torch.Tensor] = {}
    asked: dict[int, list[Vote]] = {VOTES: [], LADDER: []}
    for part, (logits, fresh) in zip(parts, in_turns(parts, ask), strict=True):
        before = len(told)
        told.update(zip(part.images.tolist(), logits, strict=True))
        asked[part.stage] += fresh
        advance(len(told) - before + len(part.pairs))
    keys = panel.keys
    scores = level_probabilities(torch.stack([told[key] for key in keys])).double().numpy() @ np.array(question.values)
    by_key = dict(zip(keys, scores.tolist(), strict=True))
    votes, ladder_votes = asked[VOTES], asked[LADDER]
    steps = np.concatenate([chain.steps() for chain in panel.chains])

    sources = sources_of(vote)
    labels = count_votes(votes, vote, sources)
    voted, rated = _voted_right(ladder_votes, vote, sources), _rated_right(by_key, steps)
    health = Health(
        ladder_vote_accuracy=float(voted.mean()),
        ladder_rate_accuracy=float(rated.mean()),
        ladder_compare_accuracy=float(_voted_right(ladder_votes, vote, ("compare",)).mean()),
        ladder_steps=len(steps),
        vote_share=float(np.mean([label.confidence for label in labels])),
        **dict(zip(("position_bias", "swap_consistency"), position_bias(votes), strict=True)),
        triad_consistency=_triads(panel.groups, labels),
        kept_fraction=float(np.mean([label.kept for label in labels])),
        agree_compare=float(_agreements(by_key, count_votes(votes, vote, ("compare",))).mean()),
        agree_rate=float(_agreements(by_key, count_votes(votes, vote, ("rate",))).mean()),
        **_spread(np.array([by_key[int(i)] for i in panel.images])),
    )
    return Reading(health, by_key, labels, votes, rungs(panel.chains, voted, rated), panel.chains)


def _pieces(whole: Any, size: int) -> list[Any]:
    """A sequence in pieces of at most ``size``."""
    return [whole[start : start + size] for start in range(0, len(whole), size)]


def check_judge(judge: Judge, images: ImageSet, recipe: Recipe, progress: Callable[[int], Update]) -> Reading:
    """Read a panel of which all images are held out: the health of a judge on a set of images.

    Args:
        judge: with the prompt to be measured attached, if any.
        images: at least two.
        recipe: sizes of the panel and of the ladder, how votes are taken, the seed.
        progress: told the total work, gives back the function to report it to.
    """
    views = max(recipe.vote.views, judge.family.views)
    pool = Pool(images, judge.family.fit, judge.image_size, views, recipe.seed, recipe.eval)
    panel = plan_panel(pool, np.arange(len(images)), recipe.pairs, recipe.ladder, recipe.seed)
    block = max(1, recipe.eval.batch_size // views)
    advance = progress(work(panel))
    return read_panel(judge, pool, panel, recipe.vote, block, (recipe.seed, 0), advance, recipe.eval)


def work(panel: Panel) -> int:
    """Steps of ``read_panel`` that progress counts."""
    steps = sum(len(chain.keys) - 1 for chain in panel.chains)
    return len(panel.keys) + sum(len(pairs) for _, pairs in chunks(panel.groups)) + steps


def above_chance(health: Health) -> tuple[bool, float]:
    """Whether the votes order the ladder better than a coin would, with 99 % confidence.

    Returns:
        The answer, and the lower confidence bound of the accuracy.
    """
    low = binomial_above_chance(round(health.ladder_vote_accuracy * health.ladder_steps), health.ladder_steps, 0.99)
    return low > 0.5, low


@dataclass(frozen=True)
class Decision:
    """Whether a round is built upon, and why."""

    accepted: bool
    reason: str
    gain: float
    gain_low: float


def decide(start: Reading, before: Reading, after: Reading, gate: GateConfig, seed: tuple[int, int]) -> Decision:
    """Accept or reject a candidate prompt on label-free evidence alone.

    Args:
        start: the panel as the run began; its votes are the teacher for the whole run, so that rounds are comparable.
        before: the panel with the prompt accepted so far.
        after: the panel with the candidate.
        gate: thresholds.
        seed: (seed, round) of the bootstrap.

    Returns:
        Accepted only when all hold: votes above chance on the ladder; ratings agree with held-out votes more than
        before, beyond what resampling images explains; ladder accuracy not clearly down; votes not less consistent
        (swaps, triads); scores not collapsed.
    """
    labels = [label for label in start.labels if label.kept]
    if labels:
        pairs = np.array([(label.a, label.b) for label in labels])
        new, old = after.agreements(labels), before.agreements(labels)
        draw = int(stream(*seed, SPLIT).integers(2**31))
        gain, low = agreement_gain(new, old, pairs, confidence=gate.confidence, seed=draw)
    else:
        gain, low = 0.0, -math.inf
    fine, bound = above_chance(after.health)
    fall, least = _fall(before.ladder_by_image(), after.ladder_by_image(), gate.confidence)
    spread = after.health.score_std / max(start.health.score_std, 1e-9)
    if not labels:
        reason = "no held-out pair passes vote.min_confidence"
    elif not fine:
        accuracy = after.health.ladder_vote_accuracy
        reason = f"votes order the ladder not clearly better than a coin ({accuracy:.2f}, at least {bound:.2f})"
    elif low <= 0:
        reason = f"held-out agreement {gain:+.3f} (at least {low:+.3f}) is no clear gain"
    elif least > gate.tolerance:
        reason = f"ladder accuracy of the ratings fell by {fall:.3f} (at least {least:.3f})"
    elif (lost := _lost_consistency(before.health, after.health)) > CONSISTENCY_DROP:
        reason = f"votes became less consistent, swaps or triads down by {lost:.2f}"
    elif spread < gate.min_spread:
        reason = f"scores collapsed to {spread:.0%} of their spread"
    else:
        return Decision(True, f"held-out agreement {gain:+.3f} (at least {low:+.3f})", gain, low)
    return Decision(False, reason, gain, low)


def _fall(before: np.ndarray, after: np.ndarray, confidence: float) -> tuple[float, float]:
    """Mean fall of accuracies (I,) by image, and its lower bound by Student's t; of a single image the fall itself.

    A bound, because a few dozen steps change sides under any prompt: the mean alone turned away candidates that human
    scores showed to be much better.
    """
    falls = before - after
    error = falls.std(ddof=1) / math.sqrt(len(falls)) if len(falls) > 1 else 0.0
    return float(falls.mean()), float(falls.mean() - stats.t.ppf(confidence, max(1, len(falls) - 1)) * error)


def _lost_consistency(before: Health, after: Health) -> float:
    """The larger fall of swap and triad consistency; a measure that is not defined does not count."""
    falls = (before.swap_consistency - after.swap_consistency, before.triad_consistency - after.triad_consistency)
    return max(0.0, *(fall for fall in falls if not math.isnan(fall)))


def _voted_right(votes: list[Vote], config: VoteConfig, sources: Sequence[str]) -> np.ndarray:
    """Whether the votes on each pair prefer the better image, which is its first: 1, 0, or 0.5 for a tie."""
    shares = [label.share for label in count_votes(votes, config, sources)]
    return np.asarray((np.sign(np.array(shares) - 0.5) + 1) / 2)


def _rated_right(scores: dict[int, float], pairs: np.ndarray) -> np.ndarray:
    gap = [scores[int(better)] - scores[int(worse)] for better, worse in pairs]
    return np.asarray((np.sign(gap) + 1) / 2)


def _agreements(scores: Mapping[int, float], labels: Sequence[PseudoLabel]) -> np.ndarray:
    gap = np.array([scores[label.a] - scores[label.b] for label in labels])
    sign = np.sign([label.share - 0.5 for label in labels])
    return np.asarray((np.sign(gap) * sign + 1) / 2)


def _triads(groups: list[np.ndarray], labels: list[PseudoLabel]) -> float:
    """Mean zeta over the groups, each a complete tournament, a tie half a win; groups of two have no triads."""
    zetas: list[float] = []
    shares = iter(labels)
    for group in groups:
        wins = np.zeros((len(group), len(group)))
        for i, j in zip(*np.triu_indices(len(group), 1), strict=True):
            wins[i, j] = (np.sign(next(shares).share - 0.5) + 1) / 2
            wins[j, i] = 1 - wins[i, j]
        if len(group) > 2:
            zetas.append(circular_triads(wins).zeta)
    return float(np.mean(zetas)) if zetas else math.nan


def _spread(scores: np.ndarray) -> dict[str, Any]:
    ends = (scores < 1.25) | (scores > 4.75)
    return {"score_mean": float(scores.mean()), "score_std": float(scores.std()), "ends_fraction": float(ends.mean())}
