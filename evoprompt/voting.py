"""Votes: plan pairs, ask the judge, count its answers into pseudo-labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evoprompt.config import VoteConfig
from evoprompt.errors import RecipeError
from evoprompt.judge import Judge, preference_logits
from evoprompt.questions import Question
from evoprompt.runs import stream
from evoprompt.thurstone import level_moments, prefer_z

Pixels = Callable[[int], np.ndarray]
SOURCES = ("compare", "rate")
# A rating's variance is that of five discrete levels; this keeps a confident rating from becoming a step function.
RATE_GAMMA = 0.1


@dataclass(frozen=True)
class Vote:
    """One presentation of one pair, and the answer.

    ``logit`` is the log-odds that image ``a`` is better, whichever was shown first. In sampled mode ``draws`` answers
    were drawn from this presentation and ``wins`` of them were for ``a``; in exact mode both are 0.
    """

    pair: int
    a: int
    b: int
    source: str
    question: str
    view: int
    order: str
    logit: float
    draws: int = 0
    wins: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The vote as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class PseudoLabel:
    """What counting makes of the votes on a pair.

    ``share`` in [0, 1] is the share of the votes for ``a`` (exact mode: their mean probability, each with position bias
    removed); ``target`` is what training is told; ``kept`` says whether it is told at all.
    """

    pair: int
    a: int
    b: int
    share: float
    target: float
    agreement: float
    n_votes: int
    kept: bool

    @property
    def confidence(self) -> float:
        """Share of the votes for the winner, in [0.5, 1]."""
        return max(self.share, 1 - self.share)


def check_vote(vote: VoteConfig, judge: Judge) -> None:
    """Check that a judge has the wordings and views that a recipe asks for.

    Raises:
        RecipeError: with what there is and what to set.
    """
    family = judge.family
    wordings = min(len({"compare": family.compare, "rate": family.rate}[source]) for source in sources_of(vote))
    if vote.wordings > wordings:
        raise RecipeError(
            f"vote.wordings is {vote.wordings}, but judges of the family {family.name} have {wordings}; "
            f"set -s vote.wordings={wordings}."
        )
    if family.fit != "tiles" and vote.views > 2:
        raise RecipeError(
            f"vote.views is {vote.views}, but an image has 2 views (itself and its mirror) for judges of the family "
            f"{family.name}; set -s vote.views=2."
        )


def sources_of(vote: VoteConfig) -> tuple[str, ...]:
    """Which votes a recipe counts."""
    return SOURCES if vote.source == "both" else (vote.source,)


def plan_groups(images: np.ndarray, n_pairs: int, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Groups of images that are voted among each other, so that a training batch is dense in comparisons.

    Args:
        images: (N,) int indices to draw from.
        n_pairs: how many pairs are wanted; the groups hold at least as many.
        size: images in a group; a smaller pool makes one smaller group.
        rng: random stream.

    Returns:
        Groups (G,) of distinct indices. Every image is used once before any is used again.
    """
    size = min(size, len(images))
    needed = math.ceil(n_pairs / (size * (size - 1) / 2))
    groups: list[np.ndarray] = []
    deck: list[int] = []
    for _ in range(needed):
        group: list[int] = []
        while len(group) < size:
            if not deck:
                deck = [int(i) for i in rng.permutation(images)]
            # The image left over from the last deal may already be in this group: take the next one that is not.
            place = next((k for k in range(len(deck) - 1, -1, -1) if deck[k] not in group), None)
            if place is None:
                deck = [int(i) for i in rng.permutation(images)] + deck
                continue
            group.append(deck.pop(place))
        groups.append(np.array(group))
    return groups


def pairs_of(group: np.ndarray) -> np.ndarray:
    """All pairs within a group, (P, 2) image indices."""
    first, second = np.triu_indices(len(group), 1)
    return np.stack([group[first], group[second]], axis=1)


class Seen:
    """What the judge keeps of each image, computed once per image while the prompt is fixed.

    Images are encoded in blocks of fixed membership, so that a run continued after a kill computes the very same
    numbers as one that was never interrupted.

    Args:
        judge: the judge, with the prompt of this round attached.
        images: indices that will be asked for.
        pixels: index -> (V, 3, S, S) uint8.
        block: images encoded at a time.
    """

    def __init__(self, judge: Judge, images: Iterable[int], pixels: Pixels, block: int) -> None:
        self.judge, self.pixels = judge, pixels
        self._order = sorted(set(int(i) for i in images))
        self._place = {image: k for k, image in enumerate(self._order)}
        self._block = max(1, block)
        self._tokens: dict[int, Tensor] = {}
        self._ratings: dict[tuple[str, int], Tensor] = {}

    def tokens(self, images: Iterable[int], view: int) -> Tensor:
        """Encoded view of images, (B, T, D)."""
        return torch.stack([self._image(int(i))[view] for i in images])

    def ratings(self, images: Sequence[int] | np.ndarray, question: Question) -> Tensor:
        """Level logits of every view of images, (B, V, 5) float32."""
        for image in images:
            if (question.name, int(image)) not in self._ratings:
                self._rate_block(self._place[int(image)] // self._block, question)
        return torch.stack([self._ratings[question.name, int(i)] for i in images])

    def _image(self, image: int) -> Tensor:
        if image not in self._tokens:
            start = self._place[image] // self._block * self._block
            members = self._order[start : start + self._block]
            views = torch.from_numpy(np.stack([self.pixels(i) for i in members]))
            n, v = views.shape[:2]
            with torch.no_grad():
                tokens = self.judge.encode(views.flatten(0, 1).float() / 255)
            self._tokens.update(zip(members, tokens.view(n, v, *tokens.shape[1:]), strict=True))
        return self._tokens[image]

    def _rate_block(self, block: int, question: Question) -> None:
        members = self._order[block * self._block : (block + 1) * self._block]
        tokens = torch.stack([self._image(i) for i in members])
        with torch.no_grad():
            logits = self.judge.rate(tokens.flatten(0, 1), question).view(*tokens.shape[:2], -1).cpu()
        for image, row in zip(members, logits, strict=True):
            self._ratings[question.name, image] = row


def collect_votes(
    seen: Seen,
    pairs: np.ndarray,
    config: VoteConfig,
    sources: Sequence[str],
    seed: Sequence[int],
    first_pair: int = 0,
) -> list[Vote]:
    """Put every pair to the judge: both orders, every wording and view.

    Args:
        seen: the images as the judge sees them.
        pairs: (P, 2) image indices, asked as one batch.
        config: wordings, views, mode.
        sources: of ``compare`` (the judge compares) and ``rate`` (its ratings are compared).
        seed: coordinates of the random stream; used in sampled mode only.
        first_pair: number of the first pair.

    Returns:
        Votes in a fixed order: question, view, order, pair.
    """
    family = seen.judge.family
    rows: list[tuple[str, str, int, str, list[float]]] = []
    for view in range(config.views):
        if "compare" in sources:
            a, b = seen.tokens(pairs[:, 0], view), seen.tokens(pairs[:, 1], view)
            for question in family.compare[: config.wordings]:
                with torch.no_grad():
                    ab, ba = preference_logits(seen.judge, a, b, question)
                rows.append(("compare", question.name, view, "ab", ab.tolist()))
                rows.append(("compare", question.name, view, "ba", ba.tolist()))
        if "rate" in sources:
            for question in family.rate[: config.wordings]:
                logits = _rating_preference(seen, pairs, question, view)
                rows.append(("rate", question.name, view, "-", logits))
    votes = [
        Vote(first_pair + p, int(pairs[p, 0]), int(pairs[p, 1]), source, name, view, order, logits[p])
        for source, name, view, order, logits in rows
        for p in range(len(pairs))
    ]
    return _draw(votes, config.draws, seed) if config.mode == "sampled" else votes


def _rating_preference(seen: Seen, pairs: np.ndarray, question: Question, view: int) -> list[float]:
    """Log-odds that ``a`` is better when the two are rated one at a time (Thurstone)."""
    values = torch.tensor(question.values)
    mean, variance = zip(
        *(level_moments(seen.ratings(pairs[:, k], question)[:, view], values) for k in (0, 1)), strict=True
    )
    z = prefer_z(mean[0], mean[1], variance[0], variance[1], RATE_GAMMA)
    logits: list[float] = (torch.special.log_ndtr(z) - torch.special.log_ndtr(-z)).tolist()
    return logits


def _draw(votes: list[Vote], draws: int, seed: Sequence[int]) -> list[Vote]:
    """Draw ``draws`` answers a pair, each from a presentation taken at random, as EvoQuality does."""
    by_pair: dict[int, list[Vote]] = {}
    for vote in votes:
        by_pair.setdefault(vote.pair, []).append(vote)
    drawn: list[Vote] = []
    for pair, asked in by_pair.items():
        rng = stream(*seed, pair)
        counts = np.bincount(rng.integers(len(asked), size=draws), minlength=len(asked))
        for vote, n in zip(asked, counts, strict=True):
            chance = 1 / (1 + math.exp(-vote.logit)) if vote.logit > -700 else 0.0
            drawn.append(Vote(**{**asdict(vote), "draws": int(n), "wins": int(rng.binomial(n, chance))}))
    return drawn


def count_votes(votes: Iterable[Vote], config: VoteConfig, sources: Sequence[str] = SOURCES) -> list[PseudoLabel]:
    """Count votes into pseudo-labels.

    Exact mode: the two orders of a wording and view are averaged as log-odds, which removes additive position bias
    exactly, then the probabilities are averaged. Sampled mode: every draw counts one, the majority wins, as published.

    Args:
        votes: votes of any number of pairs, in any order.
        config: confidence threshold and kind of target.
        sources: which votes count.

    Returns:
        One pseudo-label a pair, in the order in which pairs first appear.
    """
    by_pair: dict[int, list[Vote]] = {}
    for vote in votes:
        if vote.source in sources:
            by_pair.setdefault(vote.pair, []).append(vote)
    return [_count(pair, asked, config) for pair, asked in by_pair.items()]


def _count(pair: int, votes: list[Vote], config: VoteConfig) -> PseudoLabel:
    if config.mode == "sampled":
        n = sum(v.draws for v in votes)
        share = sum(v.wins for v in votes) / n
        picks = [v.wins / v.draws for v in votes if v.draws]
    else:
        both: dict[tuple[str, str, int], list[float]] = {}
        for v in votes:
            both.setdefault((v.source, v.question, v.view), []).append(v.logit)
        n = len(votes)
        picks = [1 / (1 + math.exp(-min(max(math.fsum(x) / len(x), -700), 700))) for x in both.values()]
        share = math.fsum(picks) / len(picks)
    tie = abs(share - 0.5) < 1e-9
    winner = 0.5 if tie else float(share > 0.5)
    agreement = sum((p > 0.5) == (share > 0.5) for p in picks) / len(picks)
    kept = max(share, 1 - share) >= config.min_confidence and (not tie or config.min_confidence <= 0.5)
    target = share if config.targets == "soft" else winner
    return PseudoLabel(pair, votes[0].a, votes[0].b, share, target, agreement, n, kept)


def dealt(places: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Whose label each of these places gets in a control run: they stand in a random ring, so that none keeps its own.

    Args:
        places: (N,) int.
        rng: random stream.

    Returns:
        (N,) the same places in another order.
    """
    order = rng.permutation(len(places))
    giver = np.empty_like(order)
    giver[order] = np.roll(order, 1)
    return np.asarray(places[giver])


def control_labels(labels: Sequence[PseudoLabel], control: str, rng: np.random.Generator) -> list[PseudoLabel]:
    """What a control run is told instead of its pseudo-labels, on the same pairs and with the same confidences.

    Args:
        labels: of a round.
        control: ``none``; ``random-labels``: a coin decides which image of each pair is called the better one;
            ``shuffled-labels``: the labels kept are dealt to other kept pairs.
        rng: random stream.
    """
    if control == "random-labels":
        heads = rng.random(len(labels)) < 0.5
        return [
            replace(label, share=1 - label.share, target=1 - label.target) if head else label
            for label, head in zip(labels, heads, strict=True)
        ]
    told = list(labels)
    if control == "shuffled-labels":
        kept = np.array([k for k, label in enumerate(labels) if label.kept], dtype=np.int64)
        for place, giver in zip(kept, dealt(kept, rng), strict=True):
            told[place] = replace(labels[giver], pair=labels[place].pair, a=labels[place].a, b=labels[place].b)
    return told


def position_bias(votes: Iterable[Vote]) -> tuple[float, float]:
    """How much the order of the two images decides.

    Returns:
        Mean log-odds in favour of the image shown first (0 = none), and the share of presentations whose winner stays
        the same when the order is swapped (swap consistency, 1 = always).
    """
    both: dict[tuple[int, str, int], dict[str, float]] = {}
    for v in votes:
        if v.source == "compare":
            both.setdefault((v.pair, v.question, v.view), {})[v.order] = v.logit
    if not both:
        return math.nan, math.nan
    bias = math.fsum((x["ab"] - x["ba"]) / 2 for x in both.values()) / len(both)
    same = sum((x["ab"] > 0) == (x["ba"] > 0) for x in both.values()) / len(both)
    return bias, same


def chunks(groups: Sequence[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """The pairs of each group with the number of the first one."""
    first = 0
    for group in groups:
        pairs = pairs_of(group)
        yield first, pairs
        first += len(pairs)
