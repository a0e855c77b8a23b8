"""Human scores to train on: sets of them on one scale, and the training batches they make."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evoprompt.catalogue import ImageRecord
from evoprompt.config import MosConfig, Recipe, parts, scale_ends
from evoprompt.errors import DataError, RecipeError, listed
from evoprompt.images import ImageSet
from evoprompt.judge import Judge
from evoprompt.labels import Labels, open_labels
from evoprompt.ladder import Pool
from evoprompt.scoring import score_views
from evoprompt.stats import Interval, bootstrap, paired_difference, srcc
from evoprompt.steps import MosBatch, mos_steps
from evoprompt.tracking import Console
from evoprompt.voting import dealt, plan_groups

LOW, HIGH = 1.0, 5.0
# Enough images to see which way a scale runs, few enough to be looked at before a run starts.
DIRECTION_IMAGES = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class MosSet:
    """Images with human scores of one set, higher is better.

    Attributes:
        name: the file it was read from, FILE#PART where it is a part of its split.
        records: the images.
        mos: (N,) float64 in [1, 5].
        std: (N,) float64, at least 0, their deviations on that scale, or None when they are not known.
    """

    name: str
    records: tuple[ImageRecord, ...]
    mos: NDArray[np.float64]
    std: NDArray[np.float64] | None

    def __len__(self) -> int:
        return len(self.records)

    @property
    def images(self) -> ImageSet:
        """The images without their scores, row by row."""
        return ImageSet(records=self.records, sources=(self.name,))


def read_sets(files: Sequence[Path], config: MosConfig, console: Console | None = None) -> tuple[MosSet, ...]:
    """Read label files, each on its own scale.

    Args:
        files: CSV files, see ``labels.read_labels``.
        config: ``range`` and ``better``, each for all files or one for each.
        console: for progress.

    Returns:
        One set a file.

    Raises:
        RecipeError: when ``range`` or ``better`` has as many values as there are files in no way.
        DataError: when a file cannot be used, see ``read_labels`` and ``on_one_scale``; of all files at once. When rows
            of a file would be in two sets.
    """
    ranges, ways = (_for_each(files, key, getattr(config, key)) for key in ("range", "better"))
    sets, problems = [], []
    taken: dict[tuple[Path, str], Path] = {}
    for path, ends, way in zip(files, ranges, ways, strict=True):
        try:
            labels = open_labels(path, console or Console(quiet=True), lower_better=way == "lower")
            sets.append(on_one_scale(labels, scale_ends(ends)))
            _refuse_again(path, labels, taken)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError(" ".join(problems))
    return tuple(sets)


def _refuse_again(path: Path, labels: Labels, taken: dict[tuple[Path, str], Path]) -> None:
    """Refuse rows of a file that an earlier set has already; ``taken`` remembers which set has which."""
    rows = [(labels.path.resolve(), name) for name in labels.names]
    again = [row for row in rows if row in taken]
    if again:
        raise DataError(
            f"{len(again)} rows of {path} are already in {taken[again[0]]}, so they would count twice. Give each file, "
            "or each part of it, once."
        )
    taken.update(dict.fromkeys(rows, path))


def _for_each(files: Sequence[Path], key: str, text: str) -> list[str]:
    values = parts(text)
    if len(values) not in (1, len(files)):
        raise RecipeError(
            f"mos.{key} has {len(values)} values for {len(files)} label files; give one for all, or one for each."
        )
    return values if len(values) == len(files) else values * len(files)


def on_one_scale(labels: Labels, ends: tuple[float, float] | None = None) -> MosSet:
    """Bring human scores to 1 to 5: 1 + 4 (MOS - low) / (high - low); their deviations by the same factor.

    Args:
        labels: at least two images whose scores differ.
        ends: low and high end of the file's scale; None = its smallest and largest score.

    Raises:
        DataError: when scores lie outside, are all equal, or there is one image only.
    """
    path, given = labels.path, -labels.mos if labels.lower_better else labels.mos
    if len(labels) < 2:
        raise DataError(f"{path} names {len(labels)} image; to learn from human scores takes at least two. Add images.")
    if given.min() == given.max():
        raise DataError(
            f"all {len(labels)} human scores in {path} are {given[0]:g}, so there is nothing to learn from them. "
            f"Check the column '{labels.column}'."
        )
    low, high = ends or (float(given.min()), float(given.max()))
    outside = [f"{name} ({mos:g})" for name, mos in zip(labels.names, given, strict=True) if not low <= mos <= high]
    if outside:
        raise DataError(
            f"{path} has {len(outside)} human scores outside mos.range {low:g}..{high:g}: {listed(outside)}. "
            "Correct these rows or set -s mos.range=LOW..HIGH to the ends of the scale."
        )
    factor = (HIGH - LOW) / (high - low)
    way = high - given if labels.lower_better else given - low
    std = None if labels.std is None else labels.std * factor
    name = f"{path}#{labels.part}" if labels.part else str(path)
    return MosSet(name=name, records=labels.records, mos=np.clip(LOW + factor * way, LOW, HIGH), std=std)


def check_mixture(recipe: Recipe) -> None:
    """Check that a run on votes and human scores learns from both.

    Raises:
        RecipeError: when it would not, or when its trainer takes votes only.
    """
    mos, steps = recipe.mos, recipe.train.steps
    if recipe.train.objective == "grpo" and recipe.grpo.engine == "trl":
        raise RecipeError("grpo.engine trl takes votes only, no human scores; set -s grpo.engine=native.")
    for key, value in (("fraction", mos.fraction), ("weight", mos.weight)):
        if value == 0:
            raise RecipeError(f"mos.{key} is 0, so no human score would be used; set it above 0 or give none.")
    if mos_steps(steps, mos.fraction) == 0:
        raise RecipeError(
            f"mos.fraction {mos.fraction:g} of {steps} steps is less than one step, so no human score would be used; "
            "set it or train.steps higher."
        )
    if mos_steps(steps, mos.fraction) == steps:
        raise RecipeError(
            f"mos.fraction {mos.fraction:g} leaves no step for votes; set it lower, or train on human scores alone "
            "with 'evoprompt train'."
        )


def images_of(sets: Sequence[MosSet]) -> ImageSet:
    """The images of all sets, each content once."""
    distinct = {record.sha256: record for chosen in reversed(sets) for record in reversed(chosen.records)}
    kept = tuple(distinct[digest] for digest in dict.fromkeys(r.sha256 for chosen in sets for r in chosen.records))
    return ImageSet(records=kept, sources=tuple(chosen.name for chosen in sets))


def said_of(sets: Sequence[MosSet]) -> str:
    """Which human scores these are, for the origin of a prompt: how many, and 12 hex digits of their content."""
    lines = sorted(f"{r.sha256} {mos:.6f}" for s in sets for r, mos in zip(s.records, s.mos, strict=True))
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
    return f"MOS of {len(lines)} images ({digest})"


def keys_of(images: ImageSet, rows: NDArray[np.int64]) -> set[str]:
    """What some images share with copies of themselves: contents and reference images."""
    return {key for row in rows for key in images.records[int(row)].keys}


def trainable(chosen: MosSet, heldout: AbstractSet[str]) -> NDArray[np.int64]:
    """Rows of a set that may be trained on.

    Args:
        chosen: the set.
        heldout: contents and reference images of what is held out for the gate, see ``ImageRecord.keys``.

    Raises:
        DataError: when fewer than two are left.
    """
    rows = np.array([k for k, record in enumerate(chosen.records) if heldout.isdisjoint(record.keys)], dtype=np.int64)
    if len(rows) < 2:
        raise DataError(
            f"{len(rows)} of the {len(chosen)} images in {chosen.name} are left to train on: the others, or copies of "
            "the same reference images, are held out for the gate. Give more, or lower pairs.heldout."
        )
    return rows


class MosImages:
    """The images of a set as training takes them.

    Args:
        chosen: the set.
        pool: its images, in its order, ready for the judge.
        rows: which of them to train on.
        control: ``none``, or what a control run does to the scores of these images: ``random-labels`` tosses them,
            ``shuffled-labels`` deals them to other images.
        rng: of the control.
    """

    def __init__(
        self, chosen: MosSet, pool: Pool, rows: NDArray[np.int64], control: str, rng: np.random.Generator
    ) -> None:
        self.set, self.pool, self.rows = chosen, pool, rows
        self._mos, self._std = chosen.mos.copy(), chosen.std
        if control == "random-labels":
            self._mos = rng.uniform(LOW, HIGH, len(chosen))
        elif control == "shuffled-labels":
            giver = dealt(self.rows, rng)
            self._mos[self.rows] = chosen.mos[giver]
            if chosen.std is not None:
                self._std = chosen.std.copy()
                self._std[self.rows] = chosen.std[giver]

    def batch(self, rows: NDArray[np.int64], weight: float) -> MosBatch:
        """The batch of some rows of the set."""
        std = None if self._std is None else self._std[rows]
        return MosBatch(lambda k: np.stack([self.pool(int(row)) for row in rows[k]]), self._mos[rows], std, weight)

    def direction(self, judge: Judge, batch_size: int) -> Interval:
        """SRCC of the judge's scores with the human ones, 95 % interval; over the first images, as it is now."""
        rows = self.rows[:DIRECTION_IMAGES]
        views = judge.family.views
        scores = [
            score_views(judge, np.stack([self.pool(int(row))[:views] for row in rows[start : start + batch_size]]))[0]
            for start in range(0, len(rows), batch_size)
        ]
        return bootstrap(srcc, np.concatenate(scores), self.set.mos[rows], n_boot=1000)


def plan_batches(
    sets: Sequence[MosImages], n_batches: int, size: int, weight: float, rng: np.random.Generator
) -> list[MosBatch]:
    """Batches of human scores for a round, the sets in turn, so that small sets count as much as large ones.

    Args:
        sets: what may be trained on.
        n_batches: how many.
        size: images a batch; a smaller set makes smaller ones.
        weight: factor of the loss.
        rng: random stream.

    Returns:
        The batches, each of one set. Within a set every image is used once before any is used again.
    """
    each = -(-n_batches // len(sets))
    planned = []
    for chosen in sets:
        n = min(size, len(chosen.rows))
        groups = plan_groups(chosen.rows, each * n * (n - 1) // 2, n, rng)
        planned.append([chosen.batch(group, weight) for group in groups])
    return [batch for turn in zip(*planned, strict=True) for batch in turn][:n_batches]


def heldout_srcc(
    sets: Sequence[MosSet], now: Mapping[str, float], before: Mapping[str, float], confidence: float, seed: int
) -> tuple[float, float, float]:
    """SRCC with the human scores of held-out images, averaged over the sets.

    Args:
        sets: all of them.
        now: scores of the held-out images by content hash.
        before: the same under the prompt accepted so far.
        confidence: of the lower bound, one-sided.
        seed: of its bootstrap over images.

    Returns:
        The SRCC, its gain over ``before``, and the lower bound of the gain in the set where it is lowest; NaN when that
        of any set is not defined. All NaN when no set has held-out images enough for a correlation.
    """
    found = []
    for chosen in sets:
        rows = [row for row, record in enumerate(chosen.records) if record.sha256 in now]
        new, old = (np.array([scores[chosen.records[row].sha256] for row in rows]) for scores in (now, before))
        gain = paired_difference(srcc, new, old, chosen.mos[rows], n_boot=1000, seed=seed, level=2 * confidence - 1)
        if not math.isnan(gain.interval.value):
            found.append((srcc(new, chosen.mos[rows]), gain.interval.value, gain.interval.low))
    if not found:
        return math.nan, math.nan, math.nan
    values, gains, lows = zip(*found, strict=True)
    return float(np.mean(values)), float(np.mean(gains)), float(np.min(lows))
