"""Scores on disk: one row an image and prompt, human scores beside; every number can be made again without a model.

Letters in shapes: N images.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evoprompt.errors import DataError, counted, listed
from evoprompt.labels import Labels
from evoprompt.questions import LEVELS
from evoprompt.runs import write_text
from evoprompt.tables import Table, match_images, read_table

Floats = NDArray[np.float64]
KINDS = ("bare", "votes", "label-free", "mixed", "supervised", "control", "other")
"""What scores come from: the judge alone, its votes without training, prompts by what trained them, something else."""

ASKED = ("judge", "question", "precision")
"""What the scores of a bare judge share with those of the prompts that are held against it."""

FACTORS = ("distortion", "level")
NEGATED = "lower was better, negated"
"""Direction of human scores that were turned round, so that higher is better here."""

GROUPINGS = ("reference", "text prompt", "group")
PREDICTED = tuple(f"p_{level}" for level in LEVELS)


@dataclass(frozen=True, eq=False, kw_only=True)
class Target:
    """What scores are held against.

    Attributes:
        images: Names of the images.
        mos: (N,) human scores, higher is better, any scale.
        std: (N,) standard deviation of the ratings, on the same scale, or None.
        groups: Reference or text prompt of every image, for bootstraps that draw them together; or None.
        factors: Other things known of the images, such as distortion and level.
        ends: Ends of the MOS scale; None when not known.
        split: What part of the set this is and how it was made, in words.
        grouping: What ``groups`` are: reference or text prompt.
        direction: Of the human scores as they were given, in words.
    """

    images: tuple[str, ...]
    mos: Floats
    std: Floats | None = None
    groups: tuple[str, ...] | None = None
    factors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ends: tuple[float, float] | None = None
    split: str = "none, all images as given"
    grouping: str = "group"
    direction: str = "higher is better"

    def only(self, rows: Sequence[int]) -> Target:
        """The target less all rows but these."""

        def pick(values: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(values[row] for row in rows)

        index = np.asarray(rows, dtype=np.int64)
        return replace(
            self,
            images=pick(self.images),
            mos=self.mos[index],
            std=None if self.std is None else self.std[index],
            groups=None if self.groups is None else pick(self.groups),
            factors={name: pick(values) for name, values in self.factors.items()},
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Column:
    """Scores of all images by one prompt.

    Attributes:
        name: Of the prompt, different for every column.
        scores: (N,) any scale, higher is better; NaN where there is none.
        kind: One of ``KINDS``.
        method: What it is one seed of; the name unless several prompts were given one name.
        judge: Id and revision of the judge that gave them; empty when that is not known.
        question: Name of the question it rated with, and how images were prepared if not its own way; empty likewise.
        precision: What its weights were, such as "bfloat16, 8bit"; empty when that is not known.
        levels: (N, 5) predicted level distribution, or None.
        seen: (N,) whether the prompt was trained on the image; None when that is not known.
    """

    name: str
    scores: Floats
    kind: str = "other"
    method: str = ""
    judge: str = ""
    question: str = ""
    precision: str = ""
    levels: Floats | None = None
    seen: NDArray[np.bool_] | None = None

    @property
    def asked(self) -> tuple[str, str, str]:
        """Judge, question and precision, see ``ASKED``."""
        return self.judge, self.question, self.precision

    def only(self, rows: Sequence[int]) -> Column:
        """The column less all rows but these."""
        index = np.asarray(rows, dtype=np.int64)
        levels = None if self.levels is None else self.levels[index]
        seen = None if self.seen is None else self.seen[index]
        return replace(self, scores=self.scores[index], levels=levels, seen=seen)


@dataclass(frozen=True, eq=False)
class ScoreFile:
    """A scores file: its images, their columns, and the human scores if it has them."""

    path: Path
    images: tuple[str, ...]
    columns: tuple[Column, ...]
    target: Target | None

    def on(self, names: Sequence[str], paths: Sequence[Path]) -> list[Column]:
        """The columns in the order of other images.

        Images are matched by name, then by path, then by file name where that is unique on both sides.

        Args:
            names: What the images are called there.
            paths: Where they lie; as many.

        Raises:
            DataError: when images have no row, or it is not clear which.
        """
        found = match_images(self.path, self.images, names, paths)
        lost = [name for name, row in zip(names, found, strict=True) if row is None]
        if lost:
            raise DataError(
                f"{self.path} has no row for {len(lost)} of {len(names)} images with human scores: {listed(lost)}. "
                "Score them, too, or remove them from the labels."
            )
        return [column.only([row for row in found if row is not None]) for column in self.columns]


def target_of(labels: Labels) -> Target:
    """Labels as what scores are held against."""
    factors: dict[str, tuple[str, ...]] = {}
    if labels.distortion is not None:
        factors["distortion"] = labels.distortion
    if labels.level is not None:
        factors["level"] = tuple(f"{level:g}" for level in labels.level)
    split = f"{labels.part} ({labels.how or 'as the file has it'})" if labels.part else "none, all images as given"
    return Target(
        images=labels.names,
        mos=labels.mos,
        std=labels.std,
        groups=labels.groups,
        factors=factors,
        ends=labels.range,
        split=f"{split}; LEAKY: {labels.leaky.removeprefix('leaky: ').rstrip('.')}" if labels.leaky else split,
        grouping=labels.grouping or "group",
        direction=NEGATED if labels.lower_better else "higher is better",
    )


def write_scores(path: Path, target: Target, columns: Sequence[Column]) -> None:
    """Write a scores file; ``read_scores`` reads it again with the same numbers."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    fixed: dict[str, Sequence[str]] = {"image": target.images, "mos": _shown(target.mos)}
    if target.std is not None:
        fixed["std"] = _shown(target.std)
    if target.ends is not None:
        fixed["mos_range"] = ["{!r}..{!r}".format(*map(float, target.ends))] * len(target.images)
    if target.groups is not None:
        fixed[target.grouping] = target.groups
    fixed |= target.factors
    fixed |= {name: [getattr(target, name)] * len(target.images) for name in ("split", "direction")}
    writer.writerow([*fixed, "prompt", "kind", "method", "judge", "question", "precision", "seen", "score", *PREDICTED])
    for column in columns:
        n = len(target.images)
        seen = [""] * n if column.seen is None else [str(int(value)) for value in column.seen]
        levels = [[""] * 5] * n if column.levels is None else [_shown(row) for row in column.levels]
        own = (column.name, column.kind, column.method or column.name, *column.asked)
        for row, score in enumerate(_shown(column.scores)):
            writer.writerow([*(values[row] for values in fixed.values()), *own, seen[row], score, *levels[row]])
    write_text(path, text.getvalue())


def _shown(values: Floats) -> list[str]:
    return ["" if math.isnan(value) else repr(float(value)) for value in values]


def read_scores(path: Path) -> ScoreFile:
    """Read a scores file of ``evaluate`` or ``compare``, the CSV of ``score``, or any CSV with image and score.

    Columns besides ``image`` and ``score``, all optional: ``prompt`` (several may be in one file), ``kind``,
    ``method``, ``judge``, ``question``, ``precision``, ``seen``, ``p_bad`` to ``p_excellent``; ``mos`` (higher is
    better), ``std``, ``mos_range``, ``reference``, ``text prompt`` or ``group``, ``distortion``, ``level``, ``split``,
    ``direction`` (of the human scores before they were put here). An empty score is a missing value.

    Raises:
        DataError: columns are missing, cells are not numbers, an image comes twice, or prompts have different images or
            different human scores of them.
    """
    table = read_table(path)
    names = table.image_names()
    table.require(("score",), "the score")
    prompts = _texts(table, "prompt") or [path.stem if path.stem != "scores" else str(path)] * len(names)
    blocks: dict[str, dict[str, int]] = {}
    for row, (prompt, name) in enumerate(zip(prompts, names, strict=True)):
        if blocks.setdefault(prompt, {}).setdefault(name, row) != row:
            raise DataError(
                f"{path} has two scores of image {name} by prompt {prompt} (the second in line {table.lines[row]}). "
                "Keep one row per image and prompt."
            )
    first, images = next(iter(blocks.items()))
    uneven = [prompt for prompt, rows in blocks.items() if rows.keys() != images.keys()]
    if uneven:
        raise DataError(
            f"{path}: {listed(uneven)} and {first} have scores of different images. Score all prompts on the same ones."
        )
    columns = tuple(_column(table, prompt, [rows[name] for name in images]) for prompt, rows in blocks.items())
    if table.find(("mos",)) is None:
        return ScoreFile(path, tuple(images), columns, None)
    target = _target(table, list(images.values()))
    for prompt, rows in blocks.items():
        mos = _numbers(table, "mos", [rows[name] for name in images])
        if wrong := [name for name, one, other in zip(images, target.mos, mos, strict=True) if one != other]:
            raise DataError(
                f"{path}: {first} and {prompt} have different human scores of {counted(len(wrong), 'image')}: "
                f"{listed(wrong)}. Give every image one, the same in all its rows."
            )
    return ScoreFile(path, tuple(images), columns, target)


def _column(table: Table, prompt: str, rows: Sequence[int]) -> Column:
    kind = (_texts(table, "kind") or ["other"] * len(table.rows))[rows[0]]
    if kind not in KINDS:
        line = table.lines[rows[0]]
        raise DataError(f"{table.path} line {line}: kind '{kind}' is not known; use one of {', '.join(KINDS)}.")
    method, seen = _texts(table, "method"), _texts(table, "seen")
    asked = {key: cells[rows[0]] for key in ASKED if (cells := _texts(table, key))}
    told = seen is not None and all(seen[row] in ("0", "1") for row in rows)
    levels = _matrix(table, PREDICTED, rows)
    return Column(
        name=prompt,
        kind=kind,
        method=method[rows[0]] if method else prompt,
        **asked,
        scores=_numbers(table, "score", rows, gaps=True),
        levels=None if levels is None or np.isnan(levels).any() else levels,
        seen=np.array([seen[row] == "1" for row in rows]) if seen is not None and told else None,
    )


def _target(table: Table, rows: Sequence[int]) -> Target:
    def words(name: str) -> tuple[str, ...] | None:
        values = _texts(table, name)
        return None if values is None else tuple(values[row] for row in rows)

    names, factors = table.image_names(), {name: words(name) for name in FACTORS}
    grouping = next((name for name in GROUPINGS if table.find((name,)) is not None), "group")
    split, ends, direction = words("split"), words("mos_range"), words("direction")
    return Target(
        images=tuple(names[row] for row in rows),
        mos=_numbers(table, "mos", rows),
        std=_numbers(table, "std", rows, at_least=0.0) if table.find(("std",)) is not None else None,
        groups=words(grouping),
        grouping=grouping,
        factors={name: values for name, values in factors.items() if values is not None},
        ends=scale_ends(ends[0], f"{table.path} column 'mos_range'") if ends else None,
        split=split[0] if split else "none, all images as given",
        direction=direction[0] if direction else "higher is better in the scores file",
    )


def scale_ends(text: str, where: str) -> tuple[float, float]:
    """The ends of a scale from words such as ``1..5``.

    Raises:
        DataError: when it is not two rising numbers.
    """
    low, _, high = text.partition("..")
    try:
        ends = float(low), float(high)
    except ValueError:
        ends = (math.nan, math.nan)
    if not -math.inf < ends[0] < ends[1] < math.inf:
        raise DataError(f"{where}: '{text}' is not a scale; write its ends as 1..5, the lower one first.")
    return ends


def _texts(table: Table, name: str) -> list[str] | None:
    position = table.find((name,))
    return None if position is None else [row[position] for row in table.rows]


def _matrix(table: Table, names: Sequence[str], rows: Sequence[int]) -> Floats | None:
    if any(table.find((name,)) is None for name in names):
        return None
    levels = np.stack([_numbers(table, name, rows, gaps=True, at_least=0.0) for name in names], axis=1)
    if empty := [f"line {table.lines[row]}" for row, sum_ in zip(rows, levels.sum(axis=1), strict=True) if sum_ == 0]:
        raise DataError(
            f"{table.path} has {counted(len(empty), 'row')} whose level probabilities are all 0: {listed(empty)}. "
            f"Correct them, or leave {names[0]} to {names[-1]} empty there."
        )
    return levels


def _numbers(table: Table, name: str, rows: Sequence[int], gaps: bool = False, at_least: float = -math.inf) -> Floats:
    """A column's numbers, none below ``at_least``; empty cells are NaN where ``gaps`` are allowed."""
    cells, values, problems = _texts(table, name) or [], [], []
    for row in rows:
        try:
            value = math.nan if gaps and not cells[row] else float(cells[row])
            good = (math.isfinite(value) and value >= at_least) or (gaps and not cells[row])
        except ValueError:
            value, good = math.nan, False
        values.append(value)
        problems += [] if good else [f"line {table.lines[row]} '{cells[row]}'"]
    if problems:
        low = "" if at_least == -math.inf else f" of at least {at_least:g}"
        raise DataError(
            f"{table.path} column '{name}' has {len(problems)} cells that are no finite numbers{low}: "
            f"{listed(problems)}. Correct them" + (", or leave them empty for images without a score." if gaps else ".")
        )
    return np.array(values, dtype=np.float64)
