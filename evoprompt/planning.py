"""What a run is going to cost: passes through the judge, operations, memory, and, after a short calibration, time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from evoprompt.config import GrpoConfig, Recipe
from evoprompt.costs import Costs
from evoprompt.health import PIECE, Panel
from evoprompt.images import ImageSet
from evoprompt.judge import OwlJudge, to_pixels
from evoprompt.ladder import Chain, Pool
from evoprompt.lifecycle import new_prompt
from evoprompt.processes import resident_peak, world
from evoprompt.questions import Question
from evoprompt.runs import stream
from evoprompt.steps import fitting, mos_steps
from evoprompt.training import PromptedRating
from evoprompt.voting import Seen, collect_votes, encoded_by, pairs_of, plan_groups, sources_of

Clock = Callable[[], float]
CALIBRATION_IMAGES = 24


@dataclass(frozen=True)
class Passes:
    """How often the judge is asked, and how.

    Attributes:
        read: images decoded and fitted.
        degraded: images decoded, degraded and fitted.
        encoded: views through the vision tower, without gradient.
        rated: ratings of encoded views, without gradient.
        firsts: images shown first in comparisons, read once for all comparisons of a batch that begin with them.
        shared: comparisons that go on from one of those.
        compared: comparisons that are read whole.
        trained: images forward and backward.
    """

    read: float = 0
    degraded: float = 0
    encoded: float = 0
    rated: float = 0
    firsts: float = 0
    shared: float = 0
    compared: float = 0
    trained: float = 0

    def __add__(self, other: Passes) -> Passes:
        return Passes(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __mul__(self, times: float) -> Passes:
        return Passes(*(times * a for a in vars(self).values()))

    def most(self, other: Passes) -> Passes:
        """Of each kind the larger number."""
        return Passes(*map(max, vars(self).values(), vars(other).values()))

    @property
    def forwards(self) -> float:
        """Passes of an image or a text through a part of the judge."""
        return self.encoded + self.rated + self.shared + self.compared + 2 * self.trained


def _distinct(draws: float, views: int) -> float:
    """How many of an image's views were drawn at least once, on average."""
    few, part = divmod(draws, 1)
    after = [views * (1 - (1 - 1 / views) ** n) for n in (few, few + 1)]
    return float(after[0] + part * (after[1] - after[0]))


@dataclass(frozen=True)
class Plan:
    """Passes of a whole run by stage: looks at the panel, votes, training."""

    panel: Passes
    votes: Passes
    training: Passes

    @property
    def whole(self) -> Passes:
        """All of them."""
        return self.panel + self.votes + self.training


def comparisons(pairs: np.ndarray, piece: int, askings: int) -> Passes:
    """Passes of comparing pairs (P, 2) in both orders, ``piece`` of them at a time, ``askings`` times over."""
    total = Passes()
    for start in range(0, len(pairs), piece):
        part = pairs[start : start + piece]
        counts = np.bincount(np.concatenate([part, part[:, ::-1]])[:, 0])
        recurring = counts[counts > 1]
        total += Passes(firsts=len(recurring), shared=recurring.sum(), compared=(counts == 1).sum())
    return total * askings


def plan_run(
    recipe: Recipe, n_images: int, views: int, mixed: bool = False, supervised: bool = False, processes: int = 1
) -> Plan:
    """Count the passes of a run from its recipe and the number of its images.

    Args:
        recipe: what to do.
        n_images: distinct images.
        views: views of an image that the judge's family rates.
        mixed: a share of the steps gets human scores.
        supervised: all steps do, and nothing is voted for training.
        processes: that share the work; each pass is counted as often as the process makes it that makes it most.

    Returns:
        Passes of the whole run. Where images are fewer than pairs ask for, where human scores stand in small sets, and
        where references keep copies together, they are a little fewer.
    """
    heldout = min(max(2, round(recipe.pairs.heldout * n_images)), n_images - 2)
    learning = n_images - heldout
    panel = _plan_panel(recipe, heldout, views, processes)
    votes, groups, voted_images = _plan_votes(recipe, learning, views, processes)
    used = Passes(read=min(learning, recipe.rounds * voted_images))
    votes = Passes() if supervised else votes * recipe.rounds + used

    train, group = recipe.train, min(recipe.pairs.group, learning)
    # TRL draws its answers in a pass of their own and asks the bare judge at every step.
    trl = train.objective == "grpo" and recipe.grpo.engine == "trl"
    mine = math.ceil(group / processes)
    fraction = 1.0 if supervised else recipe.mos.fraction if mixed else 0.0
    trained, bare = train.steps * mine, 0.0
    if train.objective == "grpo":
        visits = (train.steps - mos_steps(train.steps, fraction)) / max(1, groups)
        bare = groups * mine * (2 * visits if trl else _distinct(visits, max(recipe.vote.views, views)))
    training = Passes(encoded=bare, rated=bare, trained=trained) * recipe.rounds
    if supervised or mixed:
        training += Passes(read=min(learning, recipe.rounds * trained))
    elif processes > 1:  # a process trains on images that others have voted on
        fresh = recipe.rounds * min(train.steps, groups) * mine * (1 - 1 / processes)
        training += Passes(read=min(learning - used.read, fresh))
    return Plan(panel, votes, training)


def _plan_panel(recipe: Recipe, heldout: int, views: int, processes: int) -> Passes:
    """Passes of all looks at the panel, dealt as ``health.Panel`` deals them."""
    pairs, vote, ladder = recipe.pairs, recipe.vote, recipe.ladder
    every = max(vote.views, views)
    block = max(1, recipe.eval.batch_size // every)
    all_pairs = heldout * (heldout - 1) // 2
    size = heldout if all_pairs <= pairs.per_round else min(pairs.group, heldout)
    wanted = min(all_pairs, pairs.per_round)
    groups = _groups(heldout, wanted, size)
    grouped = max(int(group.max()) for group in groups) + 1
    # Of the images in no group every process gets so many blocks; what is left is dealt with the rest.
    evenly = (heldout - grouped) // (block * processes) * block
    images = heldout - evenly * processes
    steps = np.arange(ladder.kinds * ladder.levels).reshape(ladder.kinds, ladder.levels) + 1
    steps = np.concatenate([np.zeros((ladder.kinds, 1), dtype=int), steps], axis=1)
    chains = [
        Chain(k, "", tuple((images + k * (steps.max() + 1) + keys).tolist()))
        for k in range(min(ladder.images, heldout))
        for keys in steps
    ]
    parts = Panel(np.arange(images), groups, chains).parts(block)
    asked = [comparisons(part.pairs, PIECE, vote.wordings * vote.views) for part in parts]
    most = Passes()
    for number, found in enumerate(encoded_by([part.images for part in parts], block, processes)):
        read = sum(image < images for image in found)
        # Other wordings of the rating are asked of the images that are paired alone.
        again = (vote.wordings - 1) * sum(not grouped <= image < images for image in found)
        passes = Passes(read=read, degraded=len(found) - read, encoded=every * len(found))
        passes += Passes(rated=every * (len(found) + again))
        most = most.most(sum(asked[number::processes], passes))
    most += Passes(read=evenly, encoded=every * evenly, rated=every * evenly)
    looks = recipe.rounds + 1
    return replace(most * looks, read=most.read, degraded=most.degraded)


def _plan_votes(recipe: Recipe, learning: int, views: int, processes: int) -> tuple[Passes, int, int]:
    """Passes of the votes of a round, its groups, and the images of the process that encodes most."""
    pairs, vote = recipe.pairs, recipe.vote
    block = max(1, recipe.eval.batch_size // max(vote.views, views))
    groups = _groups(learning, pairs.per_round, min(pairs.group, learning))
    voted = groups[: len(groups) - round(pairs.ladder * len(groups))]
    asked, sources = vote.wordings * vote.views, sources_of(vote)
    most, images = Passes(), 0
    for number, found in enumerate(encoded_by(voted, block, processes)):
        passes = Passes(encoded=vote.views * len(found))
        if "rate" in sources:
            passes += Passes(rated=asked * len(found))
        if "compare" in sources and voted:
            group = pairs_of(np.arange(len(voted[0])))
            passes += comparisons(group, len(group), asked) * len(voted[number::processes])
        most, images = most.most(passes), max(images, len(found))
    return most, len(groups), images


def _groups(images: int, pairs: int, size: int) -> list[np.ndarray]:
    """Groups such as a run draws; of many images only as many as are drawn are numbered."""
    drawn = size * math.ceil(pairs / (size * (size - 1) / 2))
    return plan_groups(np.arange(min(images, drawn)), pairs, size, stream(0))


@dataclass(frozen=True)
class Texts:
    """Tokens of the texts that are put: beside a rated image, and before, between and after two compared ones."""

    rate: int
    compare: tuple[int, int, int]

    @classmethod
    def of(cls, judge: OwlJudge) -> Texts:
        """Those of a judge's first questions."""
        rate, compare = judge.family.rate[0], judge.family.compare[0]

        def lengths(question: Question) -> list[int]:
            return [len(ids) for ids in judge.processor.encode_text(question.text)]

        head, middle, tail = lengths(compare)
        return cls(sum(lengths(rate)), (head, middle, tail))


def operations(passes: Passes, costs: Costs, texts: Texts) -> float:
    """Floating-point operations of some passes."""
    compare = costs.compare(texts.compare, round(passes.firsts), round(passes.shared)) if passes.firsts else 0
    return (
        passes.encoded * costs.encode()
        + passes.rated * costs.rate(texts.rate)
        + compare
        + costs.compare(texts.compare, 0, round(passes.compared))
        + passes.trained * costs.train(texts.rate)
    )


def memory_bytes(recipe: Recipe, plan: Plan, costs: Costs, texts: Texts, side: int, views: int) -> dict[str, float]:
    """What a run keeps in memory besides the judge's weights and the program.

    Args:
        recipe: group size, limits of the caches.
        plan: of the whole run, or of the process that does most of it.
        costs: of the judge.
        texts: that it is asked.
        side: of its images, px.
        views: fitted views of an image.

    Returns:
        Bytes of ``images`` (fitted ones, in host memory), ``tokens`` (visual tokens of a round, host or device),
        ``training`` (one step) and ``asking`` (one forward pass without gradient).
    """
    whole, every = plan.whole, max(recipe.vote.views, views)
    fitted = (whole.read + whole.degraded) * every * 3 * side * side
    looks = recipe.rounds + 1
    tokens = max(plan.panel.encoded / looks, plan.votes.encoded / recipe.rounds)
    tokens *= costs.image_tokens * costs.config.hidden_size * costs.item
    limits = recipe.eval
    cached = 2**20 * (limits.device_cache_mib + limits.host_cache_mib)
    share = math.ceil(recipe.pairs.group / world())
    rows = recipe.pairs.group * (recipe.pairs.group - 1)
    asking = costs.passing(recipe.eval.batch_size, rows, sum(texts.compare))
    return {
        "images": min(fitted, 2**20 * limits.host_images_mib),
        "tokens": min(tokens, cached),
        "training": share * costs.kept(texts.rate, recipe.judge.checkpointing),
        "asking": min(asking, 2**20 * limits.memory_mib),
    }


def dry_run(recipe: Recipe, images: ImageSet, judge: OwlJudge, mixed: bool, supervised: bool) -> Iterator[str]:
    """What a run is going to cost here, in lines for people.

    Args:
        recipe: what to do.
        images: of the run.
        judge: loaded.
        mixed: a share of the steps gets human scores.
        supervised: all of them do.

    Yields:
        What is known by counting, and then what took a measurement.

    Raises:
        RunError: when a training step does not fit the device.
    """
    plan, busiest = (
        plan_run(recipe, len(images), judge.family.views, mixed, supervised, processes) for processes in (1, world())
    )
    costs, texts = Costs(judge.model.config, judge.model.dtype.itemsize), Texts.of(judge)
    now = resident_bytes(judge)
    memory = memory_bytes(recipe, busiest, costs, texts, judge.image_size, judge.family.views)
    whole = plan.whole
    flops = {name: operations(passes, costs, texts) for name, passes in vars(plan).items()}
    peak, mib = expected_bytes(now, memory, judge.device.type), {k: f"{v / 2**20:,.0f}" for k, v in memory.items()}
    yield (
        f"forwards {whole.forwards:,.0f}: {whole.encoded:,.0f} views seen, {whole.rated:,.0f} ratings, "
        f"{whole.shared + whole.compared:,.0f} comparisons; {whole.trained:,.0f} images seen, rated and backward"
    )
    yield f"flops    {sum(flops.values()) / 1e12:,.3g} TFLOP: {_shares(flops)}"
    yield (
        f"memory   {peak / 2**20:,.0f} MiB a process on {judge.device}: {now / 2**20:,.0f} now, a step "
        f"{mib['training']}, visual tokens {mib['tokens']}, images (host) {mib['images']}"
    )
    started = time.monotonic()
    spent = calibrate(recipe, images, judge)
    calibration = time.monotonic() - started
    seconds = {name: spent.whole(passes) for name, passes in vars(busiest).items()}
    yield (
        f"time     {clock(sum(seconds.values()))} with {world()} process{'es' if world() > 1 else ''}: "
        f"{_shares(seconds)}; {_busiest(busiest)}measured in {calibration:.0f} s, --eval-mos not counted"
    )


def _busiest(busiest: Plan) -> str:
    """How far the work is shared, when it is."""
    return f"the busiest sees {busiest.whole.encoded:,.0f} of the views; " if world() > 1 else ""


def expected_bytes(now: float, memory: dict[str, float], device: str) -> float:
    """Peak of a run: what is there, and what ``memory_bytes`` adds; fitted images are never on a GPU."""
    host = memory["images"] if device == "cpu" else 0.0
    return now + host + memory["tokens"] + max(memory["training"], memory["asking"])


def _shares(parts: dict[str, float]) -> str:
    total = sum(parts.values())
    return ", ".join(f"{name} {part / total:.0%}" for name, part in parts.items())


def clock(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s"


@dataclass(frozen=True)
class Seconds:
    """Time of single passes on this machine, in seconds; ``whole`` adds them up."""

    read: float
    degraded: float
    encoded: float
    rated: float
    grouped: float
    compared: float
    trained: float

    def whole(self, passes: Passes) -> float:
        """Time of some passes, one after the other."""
        return (
            passes.read * self.read
            + passes.degraded * self.degraded
            + passes.encoded * self.encoded
            + passes.rated * self.rated
            + passes.shared * self.grouped
            + passes.compared * self.compared
            + passes.trained * self.trained
        )


def calibrate(recipe: Recipe, images: ImageSet, judge: OwlJudge, now: Clock = time.perf_counter) -> Seconds:
    """Time every kind of pass on a few of the images, once to get warm and then for what counts.

    Args:
        recipe: as it will be run.
        images: the first of them are used.
        judge: as it will be used; afterwards no prompt is attached.
        now: tells the time.

    Raises:
        RunError: when a training step does not fit the device.
    """

    def timed(work: Callable[[], Any], times: int = 3) -> float:
        """Median seconds of some work; more than once, the first time does not count."""
        spent = []
        for _ in range(times + (times > 1)):
            started = now()
            work()
            if judge.device.type == "cuda":
                torch.cuda.synchronize()
            spent.append(now() - started)
        return statistics.median(spent[times > 1 :])

    views = max(recipe.vote.views, judge.family.views)
    pool = Pool(images, judge.family.fit, judge.image_size, views, recipe.seed, recipe.eval)
    n = min(len(images), CALIBRATION_IMAGES)
    block = max(1, recipe.eval.batch_size // views)
    read = timed(lambda: [pool(k) for k in range(n)], 1) / n
    chains = [pool.chain(k, kind, recipe.ladder.levels) for k, kind in enumerate(("jpeg", "white_noise", "lens_blur"))]
    keys = [key for chain in chains for key in chain.keys]
    degraded = timed(lambda: [pool(key) for key in keys], 1) / len(keys)

    judge.attach(new_prompt(recipe, judge))
    pixels = np.stack([pool(k) for k in range(min(n, block))])
    question = judge.family.rate[0]
    with torch.no_grad():
        encoded = timed(lambda: judge.encode(to_pixels(judge, pixels))) / (len(pixels) * views)
        tokens = judge.encode(to_pixels(judge, pixels))
        rated = timed(lambda: judge.rate(tokens, question)) / len(tokens)
    group = np.arange(min(n, recipe.pairs.group))
    apart = group[: len(group) // 2 * 2].reshape(-1, 2)
    asked = 2 * recipe.vote.views * recipe.vote.wordings
    grouped, compared = (
        timed(_voting(judge, pool, recipe, pairs)) / (asked * len(pairs)) for pairs in (pairs_of(group), apart)
    )
    with fitting(recipe, judge.device):
        trained = timed(_training(judge, pool, recipe, group)) / len(group)
    judge.attach(None)
    return Seconds(read, degraded, encoded, rated, grouped, compared, trained)


def _voting(judge: OwlJudge, pool: Pool, recipe: Recipe, pairs: np.ndarray) -> Callable[[], Any]:
    """Votes on these pairs; what the judge sees of the images is kept after the first time."""
    seen = Seen(judge, [pairs.flatten()], pool, len(pairs) * 2, limits=recipe.eval)
    return lambda: collect_votes(seen, pairs, replace(recipe.vote, mode="exact"), ("compare",), (0, 0, 0))


def _training(judge: OwlJudge, pool: Pool, recipe: Recipe, group: np.ndarray) -> Callable[[], Any]:
    """Forward and backward of a training step on these images."""
    recipe = replace(recipe, train=replace(recipe.train, objective="fidelity"), grpo=GrpoConfig())
    model = PromptedRating(judge, new_prompt(recipe, judge), recipe)
    pixels = to_pixels(judge, np.stack([pool(int(k))[:1] for k in group]))
    pairs = torch.from_numpy(pairs_of(np.arange(len(group))))
    rows, size, first = torch.arange(len(group)), torch.tensor(len(group)), torch.tensor(0)
    targets = torch.ones(len(pairs))
    return lambda: model(pixels, rows, rows * 0, size, pairs, targets, first, first)["loss"].backward()


def resident_bytes(judge: OwlJudge) -> float:
    """What the program takes now: of the GPU when the judge is on one, otherwise resident."""
    if judge.device.type == "cuda":
        return float(torch.cuda.memory_allocated(judge.device))
    return float(resident_peak())
