"""Evolution: rounds of voting, training and a gate, from unlabelled images to a pixel prompt.

One round, as in the method section:

1. *pairs*    groups of unlabelled images are drawn; all pairs within a group will be compared.
2. *votes*    the judge, with the prompt accepted so far, compares each pair in both orders, wordings and views.
3. *labels*   the votes are counted into pseudo-labels; pairs without a clear majority are dropped.
4. *train*    the prompt alone is trained until the judge's ratings of single images agree with the pseudo-labels.
5. *gate*     the candidate is accepted or rejected on label-free evidence from images it never saw.
6. *commit*   the round is published by one rename; an accepted prompt becomes the start of the next round.

With human scores, a share of the training batches hold them instead of pseudo-labels. When all do, the run is
supervised: nothing is voted for training, and the gate asks for agreement with human scores of held-out images.
"""

from __future__ import annotations

import copy
import csv
import io
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np

from evoprompt import __version__
from evoprompt.batches import ladder_batch, vote_batches
from evoprompt.catalogue import Contents
from evoprompt.config import Recipe
from evoprompt.errors import JudgeError
from evoprompt.health import Decision, Panel, Reading, above_chance, decide, plan_panel, read_panel, split_images, work
from evoprompt.images import ImageSet
from evoprompt.judge import Judge
from evoprompt.ladder import Pool, plan_chains
from evoprompt.mos import MosImages, MosSet, heldout_srcc, keys_of, plan_batches, said_of, trainable
from evoprompt.processes import from_first, in_turns, own, peak_memory_mib
from evoprompt.prompts import Origin, PixelPrompt
from evoprompt.runs import (
    CONTROL,
    LADDER,
    MOS,
    PAIRS,
    SPLIT,
    VOTES,
    Run,
    append_lines,
    read_lines,
    stream,
    write_lines,
    write_text,
)
from evoprompt.steps import Batch, MosBatch, mos_steps
from evoprompt.tracking import Console, Mirror
from evoprompt.training import train_prompt
from evoprompt.voting import (
    PseudoLabel,
    Seen,
    Vote,
    chunks,
    collect_votes,
    control_labels,
    count_votes,
    plan_groups,
    sources_of,
)

Measure = Callable[[PixelPrompt, Path], dict[str, float]]


@dataclass
class Evolution:
    """A run in memory: everything a round needs. Labels to measure on are not among it.

    Args:
        recipe: what to do.
        images: the unlabelled images; of a supervised run those of the sets.
        judge: frozen.
        run: the directory, locked.
        console: for people.
        mirror: takes the metrics of each round.
        measure: takes a prompt and the round's folder and returns numbers to record; evolution never sees its labels.
        force: go on with a judge whose votes are at chance.
        sets: human scores to train on.
        supervised: train on them alone.
    """

    recipe: Recipe
    images: ImageSet
    judge: Judge
    run: Run
    console: Console
    mirror: Mirror = lambda metrics: None
    measure: Measure | None = None
    force: bool = False
    sets: Sequence[MosSet] = ()
    supervised: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    seen_before: Iterable[str] = ()

    def __post_init__(self) -> None:
        recipe, family = self.recipe, self.judge.family
        views = max(recipe.vote.views, family.views)
        self.fraction = 1.0 if self.supervised else recipe.mos.fraction if self.sets else 0.0

        def pool(images: ImageSet) -> Pool:
            return Pool(images, family.fit, self.judge.image_size, views, recipe.seed, recipe.eval)

        self.pool = pool(self.images)
        self.train_images, heldout = split_images(self.images, recipe.pairs.heldout, recipe.seed)
        self.panel: Panel = plan_panel(self.pool, heldout, recipe.pairs, recipe.ladder, recipe.seed)
        self.block = max(1, recipe.eval.batch_size // views)
        unseen = keys_of(self.images, heldout)
        self.human = [
            MosImages(
                chosen,
                pool(chosen.images),
                trainable(chosen, unseen),
                recipe.control,
                stream(recipe.seed, 0, CONTROL, k),
            )
            for k, chosen in enumerate(self.sets)
        ]

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
        if not done:
            self._check_direction()
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

    def _check_direction(self) -> None:
        """Say so when human scores seem to run the other way; which way they run is never guessed."""
        self.judge.attach(None)
        for human in self.human if self.run.writes else ():
            found = human.direction(self.judge, self.block)
            if found.high < 0:
                self.console.say(
                    f"warning  {human.set.name}: the bare judge scores images lower the higher their MOS (SRCC "
                    f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]). If lower is better there, start again "
                    "with -s mos.better=lower."
                )

    def _begin(self, start: PixelPrompt, reading: Reading) -> None:
        """Round 0: measure the judge, refuse one that cannot be a teacher."""
        fine, low = above_chance(reading.health)
        accuracy = reading.health.ladder_vote_accuracy
        if not fine and self.fraction < 1 and not self.force:
            raise JudgeError(
                f"judge {self.judge.id} is not clearly better than a coin at ordering known degradations of these "
                f"images (votes right in {accuracy:.0%} of {reading.health.ladder_steps} steps, at least {low:.0%} "
                "with 99 % confidence), so its votes cannot teach. Start a new run with another judge, another "
                f"vote.source or a longer ladder, or go on with 'evoprompt resume {self.run.path} --force'."
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
            labels = control_labels(labels, self.recipe.control, stream(self.recipe.seed, number, CONTROL))
        candidate = copy.deepcopy(accepted)
        batches = [*vote_batches(groups, labels, self.pool), *taught]
        with self._timed("train"):
            steps = self._train(number, candidate, batches, folder)
        with self._timed("gate"):
            after = self._look(candidate, number)
            decision, evidence = self._decide(number, first, before, after)
        numbers = {
            **_vote_numbers(labels, len(votes)),
            "train/ladder_pairs": float(sum(len(batch.pairs) for batch in taught)),
            **_loss_numbers(steps, self.fraction),
            **evidence,
            "prompt/saturated_fraction": candidate.saturated_fraction(),
        }
        if self.run.writes:
            self._write_labels(folder, labels)
            write_lines(folder / "steps.jsonl", steps)
        self._commit(number, accepted, candidate, after, decision, numbers)
        return (candidate, after) if decision.accepted else (accepted, before)

    # -- the stages -------------------------------------------------------------------------------------------------

    def _plan(self, number: int) -> tuple[list[np.ndarray], list[Batch]]:
        """Groups to be voted, and batches of ladder chains whose order is known by construction."""
        pairs, ladder = self.recipe.pairs, self.recipe.ladder
        seed = self.recipe.seed
        if self.fraction == 1:
            return [], []
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
        return groups[: len(groups) - n_taught], [ladder_batch(group, self.pool) for group in taught if group]

    def _vote(
        self, number: int, prompt: PixelPrompt, groups: list[np.ndarray], folder: Path
    ) -> tuple[list[PseudoLabel], list[Vote]]:
        """Votes on all pairs of the groups; those that an interrupted process took are read, not asked again."""
        vote = self.recipe.vote
        sources = sources_of(vote)
        self.judge.attach(prompt if vote.prompted else None)
        seen = Seen(self.judge, groups, self.pool, self.block, vote.views, self.recipe.eval)
        asked = vote.views * vote.wordings * (2 * ("compare" in sources) + ("rate" in sources))
        seed, path = (self.recipe.seed, number, VOTES), folder / "votes.jsonl"
        todo = list(chunks(groups))
        votes = from_first(lambda: _votes_kept(path, [asked * len(pairs) for _, pairs in todo]))
        done = votes[-1].pair + 1 if votes else 0
        left = [(first, pairs) for first, pairs in todo if first >= done]
        seen.expect(pairs.flatten() for _, pairs in own(left))
        total = sum(len(pairs) for _, pairs in todo)
        with self.console.progress(f"round {number}/{self.recipe.rounds}  vote", total) as advance:
            advance(done)
            for fresh in in_turns(left, lambda part: collect_votes(seen, part[1], vote, sources, seed, part[0])):
                if self.run.writes:
                    append_lines(path, [v.to_dict() for v in fresh])
                votes += fresh
                advance(len(fresh) // asked)
        return count_votes(votes, vote, sources), votes

    def _train(
        self, number: int, candidate: PixelPrompt, batches: Sequence[Batch], folder: Path
    ) -> list[dict[str, float]]:
        seed = (self.recipe.seed, number)
        mos = self._plan_mos(number)
        with self.console.progress(f"round {number}/{self.recipe.rounds}  train", self.recipe.train.steps) as advance:
            done = [0]

            def on_step(step: int, _steps: int, numbers: dict[str, float]) -> None:
                advance(step - done[0], **numbers)
                done[0] = step

            checkpoints = folder / "checkpoints"
            return train_prompt(
                self.judge, candidate, batches, self.recipe, seed, checkpoints, on_step, mos, self.fraction
            )

    def _plan_mos(self, number: int) -> list[MosBatch]:
        """Batches of human scores, as many as the round's steps will use."""
        recipe = self.recipe
        n = mos_steps(recipe.train.steps, self.fraction)
        weight = 1.0 if self.supervised else recipe.mos.weight
        rng = stream(recipe.seed, number, MOS)
        return plan_batches(self.human, n, recipe.pairs.group, weight, rng) if n else []

    def _decide(
        self, number: int, first: Reading, before: Reading, after: Reading
    ) -> tuple[Decision, dict[str, float]]:
        """The gate's verdict and its numbers. Where every round is accepted, the evidence stays on record."""
        recipe, seed = self.recipe, (self.recipe.seed, number)
        if self.supervised:
            now, was = self._heldout_scores(after), self._heldout_scores(before)
            draw = int(stream(*seed, SPLIT).integers(2**31))
            srcc, gain, low = heldout_srcc(self.sets, now, was, recipe.gate.confidence, draw)
            known = f"held-out SRCC with human scores {srcc:.3f}, {gain:+.3f}"
            reason = known if gain == gain else "too few held-out human scores for a correlation"
            decision, numbers = Decision(gain > 0, reason, gain, low), {"gate/srcc": srcc}
        else:
            decision, numbers = decide(first, before, after, recipe.gate, seed), {}
        numbers |= {"gate/gain": decision.gain, "gate/gain_low": decision.gain_low}
        numbers["gate/evidence"] = float(decision.accepted)
        if recipe.control != "none" or recipe.gate.accept == "always":
            why = "control run" if recipe.control != "none" else "gate.accept is always"
            decision = replace(decision, accepted=True, reason=f"{why}; evidence: {decision.reason}")
        return decision, numbers

    def _heldout_scores(self, reading: Reading) -> dict[str, float]:
        """Scores of the held-out images by content."""
        return {self.images.records[i].sha256: reading.scores[int(i)] for i in self.panel.images}

    def _look(self, prompt: PixelPrompt, number: int) -> Reading:
        self.judge.attach(prompt)
        label = f"round {number}/{self.recipe.rounds}  look" if number else "judge at the start"
        with self.console.progress(label, work(self.panel)) as advance:
            seed = (self.recipe.seed, number)
            vote, limits = self.recipe.vote, self.recipe.eval
            return read_panel(self.judge, self.pool, self.panel, vote, self.block, seed, advance, limits)

    def _commit(
        self,
        number: int,
        parent: PixelPrompt,
        prompt: PixelPrompt,
        reading: Reading,
        decision: Decision,
        numbers: dict[str, float],
    ) -> None:
        prompt.origin = self._origin(number)
        folder, labelled = self.run.begin(number), {}
        if self.measure is not None:
            with self._timed("measure"):
                labelled = {f"label/{k}": v for k, v in self.measure(prompt, folder).items()}
        if not self.run.writes:
            return
        prompt.save(folder / "prompt")
        if not number:
            write_lines(folder / "votes.jsonl", [vote.to_dict() for vote in reading.votes])
            self._write_labels(folder, reading.labels)
        metrics = {**numbers, **{f"health/{k}": v for k, v in reading.health.to_dict().items()}, **labelled}
        record = {
            "round": number,
            "parent": parent.sha(),
            "prompt": prompt.sha(),
            "accepted": decision.accepted,
            "reason": decision.reason,
            "metrics": metrics,
            "seconds": {k: round(v, 2) for k, v in self.seconds.items()},
            "peak_memory_mib": peak_memory_mib(self.judge.device),
            "finished": now(),
        }
        self.run.publish(number, record)
        self.mirror({"round": number, **metrics})
        self.console.say(_table_row(record))
        for notice in (pool.notice() for pool in (self.pool, *(human.pool for human in self.human))):
            if notice:
                self.console.say(notice)

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
            labels="none" if not self.sets else ("" if self.supervised else "votes and ") + said_of(self.sets),
            control=self.recipe.control,
            quantization=self.recipe.judge.quantization,
            seen=self._seen,
        )

    @cached_property
    def _seen(self) -> Contents:
        """What a prompt of this run has learnt from; kept on disk, for it grows with the images."""
        records = chain(self.images.records, *(chosen.records for chosen in self.sets))
        return Contents(chain(self.seen_before, (key for record in records for key in record.keys)))

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


def _votes_kept(path: Path, sizes: Sequence[int]) -> list[Vote]:
    """The votes that an interrupted process took, and a file without what a kill tore.

    A group is the unit: what there is of a group that is not whole is asked again, the same way.

    Args:
        path: ``votes.jsonl``.
        sizes: votes of each group, in the order in which they are taken.
    """
    votes = [Vote(**row) for row in read_lines(path)]
    kept = max((total for total in accumulate(sizes, initial=0) if total <= len(votes)), default=0)
    write_lines(path, [v.to_dict() for v in votes[:kept]])
    return votes[:kept]


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


def _loss_numbers(steps: Sequence[dict[str, float]], fraction: float) -> dict[str, float]:
    """First and last value of what the objective logged, apart for pseudo-labels and for human scores."""
    numbers: dict[str, float] = {}
    for k, step in enumerate(steps):
        human = mos_steps(k + 1, fraction) > mos_steps(k, fraction)
        for key, value in step.items():
            if key not in ("step", "train/lr", "train/grad_norm"):
                name = f"train/{'mos_' if human else ''}{key.removeprefix('train/')}"
                numbers.setdefault(f"{name}_first", value)
                numbers[f"{name}_last"] = value
    return numbers


def _vote_numbers(labels: Sequence[PseudoLabel], n_votes: int) -> dict[str, float]:
    numbers = {"votes/pairs": float(len(labels)), "votes/count": float(n_votes)}
    if labels:
        numbers["votes/kept_fraction"] = float(np.mean([label.kept for label in labels]))
        numbers["votes/share"] = float(np.mean([label.confidence for label in labels]))
        numbers["votes/agreement"] = float(np.mean([label.agreement for label in labels]))
    return numbers


def now() -> str:
    """Local time, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
