"""Work dealt to a pretended world of several processes: the same answers, little encoded twice, and as planned."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ScriptedJudge
from torch import Tensor

from evoprompt import processes
from evoprompt.config import EvalConfig, LadderConfig, PairsConfig, Recipe, VoteConfig
from evoprompt.health import plan_panel, read_panel
from evoprompt.images import ImageSet
from evoprompt.ladder import Pool
from evoprompt.planning import plan_run
from evoprompt.processes import in_turns, own
from evoprompt.runs import stream
from evoprompt.steps import Batch, Steps
from evoprompt.voting import Seen, Vote, blocks_of, chunks, collect_votes, plan_groups

World = Callable[[int, Callable[[], Any]], list[Any]]
VOTE = VoteConfig(wordings=1, views=2)
RECIPE = Recipe(
    rounds=1,
    vote=VOTE,
    pairs=PairsConfig(per_round=60, group=6, heldout=0.5),
    ladder=LadderConfig(images=6, kinds=3, levels=2),
    eval=EvalConfig(batch_size=8),
)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> World:
    """Does some work in as many threads as a job has processes; gives back what each of them has."""
    here = threading.local()

    def together(size: int, work: Callable[[], Any]) -> list[Any]:
        barrier, held, results = threading.Barrier(size, timeout=60), [None] * size, [None] * size

        def gathered(mine: Any) -> list[Any]:
            held[here.rank] = mine
            barrier.wait()
            every = list(held)
            barrier.wait()
            return every

        def process(rank: int) -> None:
            here.rank = rank
            try:
                results[rank] = work()
            except BaseException:
                barrier.abort()
                raise

        for name, pretence in (("world", lambda: size), ("rank", lambda: here.rank), ("gathered", gathered)):
            monkeypatch.setattr(processes, name, pretence)
        threads = [threading.Thread(target=process, args=(rank,)) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not barrier.broken
        return results

    return together


class Counting(ScriptedJudge):
    """Counts what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()

    def encode(self, pixels: Tensor) -> Tensor:
        self.asked["encoded"] += len(pixels)
        return super().encode(pixels)

    def rate(self, seen: Tensor, question: Any) -> Tensor:
        self.asked["rated"] += len(seen)
        return super().rate(seen, question)

    def compare_among(self, seen: Tensor, pairs: Tensor, question: Any) -> Tensor:
        self.asked["compared"] += len(pairs)
        return super().compare_among(seen, pairs, question)


def look(images: ImageSet, recipe: Recipe) -> tuple[Any, Counter[str]]:
    """What a process reads off the panel, and what it asked its judge for that."""
    judge = Counting()
    pool = Pool(images, judge.family.fit, judge.image_size, 2, recipe.seed)
    heldout = np.arange(round(recipe.pairs.heldout * len(images)))
    panel = plan_panel(pool, heldout, recipe.pairs, recipe.ladder, recipe.seed)
    block = recipe.eval.batch_size // 2
    reading = read_panel(judge, pool, panel, recipe.vote, block, (0, 0), lambda *_, **__: None, recipe.eval)
    return reading, judge.asked


@pytest.mark.parametrize(
    "pairs",
    [
        PairsConfig(per_round=60, group=6, heldout=0.5),  # four groups of six of 30 images
        PairsConfig(per_round=300, group=6, heldout=0.25),  # one group of all 15
        PairsConfig(per_round=200, group=6, heldout=0.5),  # 14 groups of six: images recur
    ],
)
def test_the_panel_is_the_same_for_any_number_of_processes_and_dealt_as_planned(
    toys: ImageSet, pretended: World, pairs: PairsConfig
) -> None:
    recipe = replace(RECIPE, pairs=pairs)
    alone, _ = look(toys, recipe)
    for size in (1, 2, 3, 8):
        found = pretended(size, lambda: look(toys, recipe))
        for reading, _ in found:
            assert reading.votes == alone.votes and reading.scores == alone.scores and reading.health == alone.health
        panel = plan_run(recipe, len(toys), 1, processes=size).panel
        planned = {"encoded": panel.encoded, "rated": panel.rated, "compared": panel.shared + panel.compared}
        for kind, number in planned.items():
            most = max(asked[kind] for _, asked in found)
            # Two looks are planned. Which images recur where is drawn, so it is met nearly; kinds peak together or not.
            assert most == pytest.approx(number / 2, rel=0.15), (size, kind)


def test_the_most_loaded_process_of_the_panel_encodes_little_more_than_its_share(
    toys: ImageSet, pretended: World
) -> None:
    views = 2 * (30 + 6 * 7)
    for size, most in ((2, 0.6), (3, 0.45), (6, 0.3)):
        found = pretended(size, lambda: look(toys, RECIPE))
        encoded = [asked["encoded"] for _, asked in found]
        assert sum(encoded) == views  # no image is needed by two
        assert max(encoded) <= most * views


def vote(groups: list[np.ndarray], done: int = 0) -> tuple[list[Vote], Counter[int], int, int]:
    """Votes of all groups but the first ``done``, reads by image, views encoded, and reads that nobody came for."""
    judge, reads = Counting(), Counter[int]()
    noise = np.random.default_rng(0).integers(0, 256, (64, 2, 3, 48, 48), dtype=np.uint8)

    def pixels(image: int) -> np.ndarray:
        reads[image] += 1
        return noise[image % 64]

    seen = Seen(judge, groups, pixels, 4)
    left = list(chunks(groups))[done:]
    seen.expect(pairs.flatten() for _, pairs in own(left))
    votes: list[Vote] = []
    for fresh in in_turns(left, lambda part: collect_votes(seen, part[1], VOTE, ("compare",), (0, 1), part[0])):
        votes += fresh
    return votes, reads, judge.asked["encoded"], len(seen._read_ahead._waiting)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_images_are_read_ahead_by_the_process_that_needs_them_and_by_no_other(pretended: World, size: int) -> None:
    groups = plan_groups(np.arange(300), 24 * 15, 6, stream(0))
    alone = vote(groups)
    found = pretended(size, lambda: vote(groups))
    assert all(votes == alone[0] for votes, *_ in found)
    assert sum((reads for _, reads, *_ in found), Counter()) == alone[1]
    assert sum(encoded for *_, encoded, _ in found) == alone[2] == 24 * 6 * 2
    assert max(encoded for *_, encoded, _ in found) == 24 // size * 6 * 2
    assert [waiting for *_, waiting in found] == [0] * size


def test_a_continued_round_reads_ahead_what_is_left(pretended: World) -> None:
    groups = plan_groups(np.arange(300), 24 * 15, 6, stream(0))
    whole, found = vote(groups), pretended(2, lambda: vote(groups, 5))
    assert all(votes == whole[0][5 * 15 * 4 :] for votes, *_ in found)
    assert [sum(reads.values()) for _, reads, *_ in found] == [60, 54]
    assert [waiting for *_, waiting in found] == [0, 0]


def test_the_next_block_of_this_process_is_read_while_one_is_encoded() -> None:
    begun: dict[int, threading.Event] = {image: threading.Event() for image in range(12)}

    def pixels(image: int) -> np.ndarray:
        begun[image].set()
        return np.zeros((1, 3, 48, 48), np.uint8)

    parts = np.arange(12).reshape(4, 3)
    seen = Seen(ScriptedJudge(), parts, pixels, 3)
    seen.expect(parts[::2])
    for part in parts[::2]:
        assert not begun[3].is_set() and not begun[9].is_set()
        seen.tokens(part, 0)
        assert begun[6].wait(5)
    assert not begun[9].is_set() and not seen._read_ahead._waiting


@pytest.mark.parametrize("size", [1, 2, 8])
def test_votes_of_recurring_images_are_planned_as_the_most_loaded_process_makes_them(
    pretended: World, size: int
) -> None:
    pairs = PairsConfig(per_round=40 * 15, group=6, heldout=0.1)
    recipe = replace(RECIPE, pairs=pairs)
    groups = plan_groups(np.arange(72), pairs.per_round, 6, stream(0, 1))
    found = pretended(size, lambda: vote(groups))
    planned = plan_run(recipe, 80, 1, processes=size).votes
    assert max(encoded for *_, encoded, _ in found) == pytest.approx(planned.encoded, rel=0.1)
    assert planned.encoded <= 2 * 72


def test_no_block_holds_images_of_two_parts() -> None:
    assert blocks_of([[3, 1, 3, 2], [1, 5], [2], [7, 8]], 2) == [[3, 1], [2], [5], [7, 8]]


def test_ratings_of_a_step_are_planned_as_they_are_shared() -> None:
    one, four, many = (plan_run(RECIPE, 200, 1, processes=n).training for n in (1, 4, 50))
    assert (one.trained, four.trained, many.trained) == (60 * 6, 60 * 2, 60)
    assert one.read == 0 < four.read


@pytest.mark.parametrize("parts", [1, 2])
def test_the_images_of_the_next_step_are_read_during_this_one(parts: int) -> None:
    asked: list[list[int]] = []
    second = threading.Event()

    def views(rows: np.ndarray) -> np.ndarray:
        asked.append(rows.tolist())
        if len(asked) == 2:
            second.set()
        return np.zeros((len(rows), 1, 3, 2, 2), np.uint8)

    batch = Batch(views, np.array([[0, 1]]), np.array([1.0]), 4)
    steps = Steps([batch], 3, (0, 1), parts=parts)
    for step in range(3):
        assert torch.equal(steps[step * parts]["rows"], torch.arange(0, 4, parts))
        assert second.wait(5)  # though only the first one was asked for
    assert asked == [list(range(0, 4, parts))] * 3  # those of this process alone, each once
