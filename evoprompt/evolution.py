"""Evolution: rounds of voting, training and a gate, from unlabelled images to a pixel prompt.

One round, as in the method section:

1. *pairs*    groups of unlabelled images are drawn; all pairs within a group will be compared.
2. *votes*    the judge, with the prompt accepted so far, compares each pair in both orders, wordings and views.
3. *labels*   the votes are counted into pseudo-labels; pairs without a clear majority are dropped.
4. *train*    the prompt alone is trained until the judge's ratings of single images agree with the pseudo-labels.
5. *gate*     the candidate is accepted or rejected on label-free evidence from images it never saw.
6. *commit*   the round is published by one rename; an accepted prompt becomes the start of the next round.
"""

from __future__ import annotations

import copy
import csv
import io
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evoprompt import __version__
from evoprompt.config import Recipe
from evoprompt.errors import JudgeError
from evoprompt.health import (
    Decision,
    Panel,
    Reading,
    above_chance,
    decide,
    plan_panel,
    read_panel,
    split_images,
    work,
)
from evoprompt.images import ImageSet
from evoprompt.judge import Judge
from evoprompt.ladder import Chain, Pool, plan_chains
from evoprompt.prompts import Origin, PixelPrompt, PromptConfig
from evoprompt.runs import LADDER, PAIRS, VOTES, Run, append_lines, read_lines, stream, write_lines, write_text
from evoprompt.tracking import Console, Mirror
from evoprompt.training import Batch, train_prompt
from evoprompt.voting import PseudoLabel, Seen, Vote, chunks, collect_votes, count_votes, plan_groups, sources_of

Measure = Callable[[PixelPrompt, Path], dict[str, float]]


@dataclass
class Evolution:
    """A run in memory: everything a round needs. Labels are not among it.

    Args:
        recipe: what to do.
        images: the unlabelled images.
        judge: frozen.
        run: the directory, locked.
        console: for people.
        mirror: takes the metrics of each round.
        measure: takes a prompt and the round's folder and returns numbers to record; evolution never sees its labels.
        force: go on with a judge whose votes are at chance.
    """

    recipe: Recipe
    images: ImageSet
    judge: Judge
    run: Run
    console: Console
    mirror: Mirror = lambda metrics: None
    measure: Measure | None = None
    force: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    seen_before: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        recipe, family = self.recipe, self.judge.family
        views = max(recipe.vote.views, family.views)
        self.pool = Pool(self.images, family.fit, self.judge.image_size, views, recipe.seed)
        self.train_images, heldout = split_images(len(self.images), recipe.pairs.heldout, recipe.seed)
        self.panel: Panel = plan_panel(self.pool, heldout, recipe.pairs, recipe.ladder, recipe.seed)
        self.block = max(1, recipe.eval.batch_size // views)

    # -- the rounds -------------------------------------------------------------------------------------------------

    def go(self, start: PixelPrompt) -> None:
        """Run, or continue, until the recipe's number of rounds is reached.

        Args:
            start: prompt of round 0: all zeros, or a warm start.

        Raises:
            JudgeError: when the judge's votes are no better than a coin, unless forced.
        """
        self.seen_before = start.origin.seen  # a warm start has learnt from images that are not in this run
        done = self.run.rounds()
        prompt = start if not done else PixelPrompt.load(self.run.path / "prompt")
        with self._timed("look"):
            first = self._look(start, 0)
        if not done:
            self._begin(start, first)
        before = (
            first if not self.run.record["accepted_round"] else self._look(prompt, self.run.record["accepted_round"])
        )
        for number in range(max(1, len(done)), self.recipe.rounds + 1):
            prompt, before = self._round(number, prompt, first, before)
        self.run.save(status="finished", finished=now())

    def _begin(self, start: PixelPrompt, reading: Reading) -> None:
        """Round 0: measure the judge, refuse one that cannot be a teacher."""
        fine, low = above_chance(reading.health)
        accuracy = reading.health.ladder_vote_accuracy
        if not fine and not self.force:
            raise JudgeError(
                f"judge {self.judge.id} is not clearly better than a coin at ordering known degradations of these "
                f"images (votes right in {accuracy:.0%} of {reading.health.ladder_steps} steps, at least {low:.0%} "
                "with 99 % confidence), so its votes cannot teach. Use another judge, another vote.source or a "
                "longer ladder, or --force to go on all the same."
            )
        self._commit(0, start, start, reading, Decision(True, "where the run starts", 0.0, 0.0), {})

    def _round(
        self, number: int, accepted: PixelPrompt, first: Reading, before: Reading
    ) -> tuple[PixelPrompt, Reading]:
        """One round, from pairs to commit; returns the prompt accepted now and its reading."""
        self.seconds = {}
        folder = self.run.begin(number)
        groups, taught = self._plan(number)
        with self._timed("vote"):
            labels, votes = self._vote(number, accepted, groups, folder)
        candidate = copy.deepcopy(accepted)
        batches = [*_batches(groups, labels, self.pool), *taught]
        with self._timed("train"):
            steps = self._train(number, candidate, batches, folder)
        with self._timed("gate"):
            after = self._look(candidate, number)
            decision = decide(first, before, after, self.recipe.gate, (self.recipe.seed, number))
        numbers = {
            **_vote_numbers(labels, len(votes)),
            "train/ladder_pairs": float(sum(len(batch.pairs) for batch in taught)),
            "train/loss_first": steps[0]["train/loss"],
            "train/loss_last": steps[-1]["train/loss"],
            "gate/gain": decision.gain,
            "gate/gain_low": decision.gain_low,
            "prompt/saturated_fraction": candidate.saturated_fraction(),
        }
        self._write_labels(folder, labels)
        write_lines(folder / "steps.jsonl", steps)
        self._commit(number, accepted, candidate, after, decision, numbers)
        return (candidate, after) if decision.accepted else (accepted, before)

    # -- the stages -------------------------------------------------------------------------------------------------

    def _plan(self, number: int) -> tuple[list[np.ndarray], list[Batch]]:
        """Groups to be voted, and batches of ladder chains whose order is known by construction."""
        pairs, ladder = self.recipe.pairs, self.recipe.ladder
        seed = self.recipe.seed
        groups = plan_groups(self.train_images, pairs.per_round, pairs.group, stream(seed, number, PAIRS))
        n_taught = round(pairs.ladder * len(groups))
        if not n_taught:
            return groups, []
        per_batch = max(1, pairs.group // (ladder.levels + 1))
        images = [int(i) for i in self.train_images]
        n_images = min(len(images), n_taught * per_batch)
        kinds = -(-n_taught * per_batch // n_images)
        chains = plan_chains(self.pool, images, n_images, kinds, ladder.levels, stream(seed, number, LADDER))
        taught = [chains[k * per_batch : (k + 1) * per_batch] for k in range(n_taught)]
        return groups[: len(groups) - n_taught], [_ladder_batch(group, self.pool) for group in taught if group]

    def _vote(
        self, number: int, prompt: PixelPrompt, groups: list[np.ndarray], folder: Path
    ) -> tuple[list[PseudoLabel], list[Vote]]:
        """Votes on all pairs of the groups; those that an interrupted process took are read, not asked again."""
        vote = self.recipe.vote
        sources = sources_of(vote)
        self.judge.attach(prompt if vote.prompted else None)
        seen = Seen(self.judge, (i for group in groups for i in group), self.pool, self.block)
        asked = vote.views * vote.wordings * (2 * ("compare" in sources) + ("rate" in sources))
        path = folder / "votes.jsonl"
        votes = [Vote(**row) for row in read_lines(path)]
        write_lines(path, [v.to_dict() for v in votes])  # without a line that a kill tore
        kept, total = 0, sum(len(pairs) for _, pairs in chunks(groups))
        with self.console.progress(f"round {number}/{self.recipe.rounds}  vote", total) as advance:
            for first, pairs in chunks(groups):
                if len(votes) >= kept + asked * len(pairs):
                    advance(len(pairs))
                else:
                    if len(votes) > kept:
                        # A group is the unit: what a kill left of this one is asked again, the same way.
                        del votes[kept:]
                        write_lines(path, [v.to_dict() for v in votes])
                    fresh = collect_votes(seen, pairs, vote, sources, (self.recipe.seed, number, VOTES), first)
                    append_lines(path, [v.to_dict() for v in fresh])
                    votes += fresh
                    advance(len(pairs))
                kept += asked * len(pairs)
        return count_votes(votes, vote, sources), votes

    def _train(
        self, number: int, candidate: PixelPrompt, batches: Sequence[Batch], folder: Path
    ) -> list[dict[str, float]]:
        seed = (self.recipe.seed, number)
        with self.console.progress(f"round {number}/{self.recipe.rounds}  train", self.recipe.train.steps) as advance:
            done = [0]

            def on_step(step: int, _steps: int, numbers: dict[str, float]) -> None:
                advance(step - done[0], **numbers)
                done[0] = step

            return train_prompt(
                self.judge, candidate, batches, self.recipe.train, seed, folder / "checkpoints", on_step
            )

    def _look(self, prompt: PixelPrompt, number: int) -> Reading:
        self.judge.attach(prompt)
        label = f"round {number}/{self.recipe.rounds}  look" if number else "judge at the start"
        with self.console.progress(label, work(self.panel)) as advance:
            seed = (self.recipe.seed, number)
            return read_panel(self.judge, self.pool, self.panel, self.recipe.vote, self.block, seed, advance)

    def _commit(
        self,
        number: int,
        parent: PixelPrompt,
        prompt: PixelPrompt,
        reading: Reading,
        decision: Decision,
        numbers: dict[str, float],
    ) -> None:
        folder = self.run.begin(number)
        prompt.origin = self._origin(number)
        prompt.save(folder / "prompt")
        if not number:
            write_lines(folder / "votes.jsonl", [vote.to_dict() for vote in reading.votes])
            self._write_labels(folder, reading.labels)
        metrics = {**numbers, **{f"health/{k}": v for k, v in reading.health.to_dict().items()}}
        if self.measure is not None:
            with self._timed("measure"):
                metrics.update({f"label/{k}": v for k, v in self.measure(prompt, folder).items()})
        record = {
            "round": number,
            "parent": parent.sha(),
            "prompt": prompt.sha(),
            "accepted": decision.accepted,
            "reason": decision.reason,
            "metrics": metrics,
            "seconds": {k: round(v, 2) for k, v in self.seconds.items()},
            "peak_memory_mib": peak_memory_mib(),
            "finished": now(),
        }
        self.run.publish(number, record)
        self.mirror({"round": number, **metrics})
        self.console.say(_table_row(record))

    def _origin(self, number: int) -> Origin:
        return Origin(
            judge=self.judge.id,
            revision=self.judge.revision,
            family=self.judge.family.name,
            question=self.judge.family.rate[0].name,
            recipe=self.recipe.fingerprint(),
            data=self.images.fingerprint(),
            round=number,
            version=__version__,
            seen=tuple(sorted({*self.seen_before, *(record.sha256 for record in self.images.records)})),
        )

    def _write_labels(self, folder: Path, labels: Sequence[PseudoLabel]) -> None:
        text = io.StringIO()
        names = ["pair", "a", "b", "image_a", "image_b", "share", "target", "agreement", "n_votes", "kept"]
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        for label in labels:
            writer.writerow({**asdict(label), "image_a": self.pool.name(label.a), "image_b": self.pool.name(label.b)})
        write_text(folder / "pseudo_labels.csv", text.getvalue())

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[stage] = time.monotonic() - started


TABLE_HEAD = "round  ladder  swaps  spread  agree  gain   verdict"


def _table_row(record: dict[str, Any]) -> str:
    m = record["metrics"]
    verdict = (
        "start" if not record["round"] else f"{'accepted' if record['accepted'] else 'rejected'}: {record['reason']}"
    )
    return (
        f"{record['round']:>5}  {m['health/ladder_rate_accuracy']:6.3f}  {m['health/swap_consistency']:5.2f}  "
        f"{m['health/score_std']:6.3f}  {m['health/agree_compare']:5.3f}  {m.get('gate/gain', 0.0):+.3f}  {verdict}"
    )


def plan_lines(recipe: Recipe, judge: Judge, images: ImageSet, out: Path) -> list[str]:
    """What a run is going to do, for people to read before it starts."""
    prompt, vote = new_prompt(recipe, judge), recipe.vote
    asked = vote.views * vote.wordings * sum({"compare": 2, "rate": 1}[source] for source in sources_of(vote))
    shape = "" if recipe.prompt.kind == "overlay" else f" {recipe.prompt.size} px"
    blocks = f" in blocks of {recipe.prompt.blocks} px" if recipe.prompt.blocks else ""
    _, heldout = split_images(len(images), recipe.pairs.heldout, recipe.seed)
    return [
        f"prompt   {recipe.prompt.kind}{shape}{blocks}: {prompt.n_values:,} values trained",
        f"plan     {recipe.rounds} rounds x ({recipe.pairs.per_round:,} pairs x {asked} votes, {recipe.train.steps} "
        f"steps of {recipe.pairs.group} images); {len(heldout)} of {len(images)} images held out; writes {out}",
    ]


def new_prompt(recipe: Recipe, judge: Judge) -> PixelPrompt:
    """The prompt a run starts from: all zeros, which is exactly the bare judge."""
    prompt = recipe.prompt
    return PixelPrompt(
        PromptConfig(
            kind=prompt.kind,
            image_size=judge.image_size,
            size=prompt.size,
            blocks=prompt.blocks,
            strength=prompt.strength,
            place=prompt.place,
        )
    )


def peak_memory_mib() -> float:
    """Peak memory of this process so far, MiB: of the GPU when one is used, otherwise resident."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def _vote_numbers(labels: Sequence[PseudoLabel], n_votes: int) -> dict[str, float]:
    numbers = {"votes/pairs": float(len(labels)), "votes/count": float(n_votes)}
    if labels:
        numbers["votes/kept_fraction"] = float(np.mean([label.kept for label in labels]))
        numbers["votes/share"] = float(np.mean([label.confidence for label in labels]))
        numbers["votes/agreement"] = float(np.mean([label.agreement for label in labels]))
    return numbers


def _batches(groups: Sequence[np.ndarray], labels: Sequence[PseudoLabel], pool: Pool) -> list[Batch]:
    """One batch a group: its images and the pseudo-labels kept among them. Groups with none are left out."""
    by_pair = {label.pair: label for label in labels}
    batches = []
    for group, (first, pairs) in zip(groups, chunks(groups), strict=True):
        row = {int(image): k for k, image in enumerate(group)}
        kept = [by_pair[p] for p in range(first, first + len(pairs)) if by_pair[p].kept]
        if kept:
            rows = np.array([(row[label.a], row[label.b]) for label in kept])
            batches.append(_batch(list(row), rows, [label.target for label in kept], pool))
    return batches


def _ladder_batch(chains: Sequence[Chain], pool: Pool) -> Batch:
    """A batch whose order is known by construction: the first of each pair is the less degraded one."""
    row = {key: k for k, key in enumerate(dict.fromkeys(key for chain in chains for key in chain.keys))}
    rows = np.array([(row[int(a)], row[int(b)]) for chain in chains for a, b in chain.pairs()])
    return _batch(list(row), rows, [1.0] * len(rows), pool)


def _batch(keys: Sequence[int], rows: np.ndarray, targets: Sequence[float], pool: Pool) -> Batch:
    return Batch(lambda: np.stack([pool(key) for key in keys]), rows, np.array(targets, dtype=np.float32))


def now() -> str:
    """Local time, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
