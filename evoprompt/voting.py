"""Votes: plan pairs, ask the judge, count its answers into pseudo-labels."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evoprompt.ahead import Ahead
from evoprompt.config import EvalConfig, VoteConfig
from evoprompt.errors import RecipeError, RunError
from evoprompt.judge import Judge, preference_logits, to_pixels
from evoprompt.questions import Question
from evoprompt.runs import stream
from evoprompt.tensor_cache import TensorCache
from evoprompt.thurstone import level_moments, prefer_z

Pixels = Callable[[int], np.ndarray]
SOURCES = ("compare", "rate")
# A rating's variance is that of five discrete levels; this keeps a confident rating from becoming a step function.
RATE_GAMMA = 0.1
LIMITS = EvalConfig()


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


def blocks_of(parts: Iterable[Iterable[int]], size: int) -> list[list[int]]:
    """Distinct indices in blocks of at most ``size``, each where it first occurs; none holds indices of two parts."""
    blocks: list[list[int]] = []
    placed: set[int] = set()
    for part in parts:
        fresh = [i for i in dict.fromkeys(map(int, part)) if i not in placed]
        placed.update(fresh)
        blocks += [fresh[start : start + size] for start in range(0, len(fresh), size)]
    return blocks


def encoded_by(parts: Sequence[Iterable[int]], size: int, processes: int) -> list[set[int]]:
    """What ``Seen`` encodes in each of some processes that ask for these parts in turns: their blocks, as a whole."""
    parts = [[int(i) for i in part] for part in parts]
    block_of = {image: block for block in map(tuple, blocks_of(parts, size)) for image in block}
    return [{i for part in parts[r::processes] for one in part for i in block_of[one]} for r in range(processes)]


class Seen:
    """What the judge keeps of each image, computed once per image while the prompt is fixed.

    Images are encoded in blocks of fixed membership, in the order in which they will be asked for, so that a run
    continued after a kill, or shared among processes, computes the very same numbers as one that was not. No block
    reaches into the next part, so that a process encodes what its parts need and no more. While a block is encoded the
    next one that this process will need is read and fitted.

    Args:
        judge: the judge, with the prompt of this round attached.
        parts: indices that will be asked for together by one process, part by part, in about that order.
        pixels: index -> (V, 3, S, S) uint8; several threads call it.
        block: images encoded at a time, at most.
        views: how many of the V views are encoded; None = all.
        limits: what may be kept, see ``tensor_cache.TensorCache``; what is no longer kept is encoded again.
    """

    def __init__(
        self,
        judge: Judge,
        parts: Iterable[Iterable[int]],
        pixels: Pixels,
        block: int,
        views: int | None = None,
        limits: EvalConfig = LIMITS,
    ) -> None:
        self.judge = judge
        self._blocks = blocks_of(parts, max(1, block))
        self._block_of = {image: number for number, members in enumerate(self._blocks) for image in members}
        self._coming = deque(range(len(self._blocks)))
        self._read_ahead: Ahead[int, np.ndarray] = Ahead(lambda image: pixels(image)[:views], block)
        self._begun: set[int] = set()
        self._cache = TensorCache(judge.device, limits.device_cache_mib, limits.host_cache_mib, limits.disk_cache_mib)
        self._views = 0
        self._ratings: dict[tuple[str, str, int], Tensor] = {}

    def expect(self, parts: Iterable[Iterable[int]]) -> None:
        """Say which of the parts this process will ask for, in what order; unsaid, it is all of them."""
        self._coming = deque(dict.fromkeys(self._block_of[int(i)] for part in parts for i in part))

    def tokens(self, images: Iterable[int], view: int) -> Tensor:
        """Encoded view of images, (B, T, D)."""
        wanted = [int(i) for i in images]
        prompt = self.judge.prompt_sha
        found: dict[int, Tensor] = {}
        for image in wanted:
            if image not in found:
                kept = self._cache.get(self._key(prompt, image, view))
                if kept is None:
                    found |= {i: seen[view] for i, seen in self._encode(self._block_of[image], prompt).items()}
                else:
                    found[image] = kept
        return torch.stack([found[image] for image in wanted])

    def ratings(self, images: Sequence[int] | np.ndarray, question: Question) -> Tensor:
        """Level logits of every view of images, (B, V, 5) float32."""
        prompt = self.judge.prompt_sha
        for image in images:
            if (prompt, question.name, int(image)) not in self._ratings:
                self._rate(self._block_of[int(image)], question, prompt)
        return torch.stack([self._ratings[prompt, question.name, int(i)] for i in images])

    def _key(self, prompt: str, image: int, view: int) -> tuple[str, str, str, int, int]:
        """A prompt that has changed since finds nothing of what was seen before."""
        return prompt, self.judge.id, self.judge.revision, image, view

    def _encode(self, number: int, prompt: str) -> dict[int, Tensor]:
        """Encode a block: (V, T, D) of each of its images."""
        members = self._blocks[number]
        views = np.stack(self._read_ahead.take(members))
        self._begun.add(number)
        while self._coming and self._coming[0] in self._begun:
            self._coming.popleft()
        if self._coming:
            self._read_ahead.start(self._blocks[self._coming[0]])
        self._views = views.shape[1]
        with torch.no_grad():
            seen = self.judge.encode(to_pixels(self.judge, views))
        tokens = seen.view(*views.shape[:2], *seen.shape[1:])
        for image, each in zip(members, tokens, strict=True):
            for view, one in enumerate(each):
                self._cache.put(self._key(prompt, image, view), one)
        return dict(zip(members, tokens, strict=True))

    def _rate(self, number: int, question: Question, prompt: str) -> None:
        seen = self._kept(number, prompt) or self._encode(number, prompt)
        tokens = torch.stack(list(seen.values()))
        with torch.no_grad():
            logits = self.judge.rate(tokens.flatten(0, 1), question).view(*tokens.shape[:2], -1).cpu()
        self._ratings.update(((prompt, question.name, image), row) for image, row in zip(seen, logits, strict=True))

    def _kept(self, number: int, prompt: str) -> dict[int, Tensor] | None:
        """A block as ``_encode`` gives it, if all of it is still kept."""
        members: dict[int, Tensor] = {}
        for image in self._blocks[number]:
            views = [self._cache.get(self._key(prompt, image, view)) for view in range(self._views)]
            if not views or any(view is None for view in views):
                return None
            members[image] = torch.stack([view for view in views if view is not None])
        return members


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
    images, places = np.unique(pairs, return_inverse=True)
    among = torch.from_numpy(places.reshape(pairs.shape))
    for view in range(config.views):
        if "compare" in sources:
            tokens = seen.tokens(images, view)
            for question in family.compare[: config.wordings]:
                ab, ba = preference_logits(seen.judge, tokens, among, question)
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
    """Draw ``draws`` answers a pair and source, each from a presentation taken at random, as EvoQuality does.

    A source has draws of its own, so that what is counted of one does not depend on which others were asked.
    """
    presented: dict[tuple[int, str], list[Vote]] = {}
    for vote in votes:
        presented.setdefault((vote.pair, vote.source), []).append(vote)
    drawn: list[Vote] = []
    for (pair, source), asked in presented.items():
        rng = stream(*seed, pair, SOURCES.index(source))
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

    Raises:
        RunError: when labels are to be dealt and one pair alone was kept.
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
        if len(kept) == 1:
            raise RunError(
                "one pair alone passed vote.min_confidence, so its label can be dealt to no other pair. Lower it, or "
                "ask for more pairs."
            )
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
