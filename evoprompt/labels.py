"""Human scores: read a CSV of images and MOS, with every image checked; find images that two sets share.

Evolution never imports this module's labels: what it may know of them is a function that returns numbers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evoprompt.errors import DataError, listed
from evoprompt.images import ImageRecord, check_images, unreadable
from evoprompt.tables import Table, image_folders, locate, read_table

SCORE_COLUMNS = ("mos", "gt_score", "dmos", "mos_quality")
"""Accepted headers of the human score, in order of precedence; upper and lower case are the same."""

STD_COLUMNS = ("std", "sd", "mos_std", "std_quality")
"""Accepted headers of the ratings' standard deviation. Not "var": in some sets it holds variances, in KADID-10k not."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Labels:
    """Images with human scores, row by row of a CSV.

    Attributes:
        records: The images, each decoded once.
        mos: (N,) float64, finite, any scale, always higher = better (negated when the file is lower = better).
        std: (N,) float64, >= 0, standard deviation of the ratings as the file has it, or None. Its scale is the file's
            and not always that of the scores (KonIQ: scores 1-100, deviations on 1-5).
        path: The CSV.
        column: Header of the score column that was read.
        lower_better: Whether the file's scores were negated.
    """

    records: tuple[ImageRecord, ...]
    mos: NDArray[np.float64]
    std: NDArray[np.float64] | None
    path: Path
    column: str
    lower_better: bool = False

    def __len__(self) -> int:
        return len(self.records)

    @property
    def names(self) -> tuple[str, ...]:
        """What the CSV calls the images."""
        return tuple(record.name for record in self.records)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Where the images lie."""
        return tuple(record.path for record in self.records)

    @property
    def sha256(self) -> tuple[str, ...]:
        """Content hashes of the images."""
        return tuple(record.sha256 for record in self.records)

    def without(self, rows: Collection[int]) -> Labels:
        """The labels less some rows, counted from 0; for example those that `overlap` found."""
        kept = [row for row in range(len(self)) if row not in set(rows)]
        std = None if self.std is None else self.std[kept]
        return replace(self, records=tuple(self.records[row] for row in kept), mos=self.mos[kept], std=std)


def read_labels(path: Path, *, images: Path | None = None, lower_better: bool = False) -> Labels:
    """Reads human scores and checks every image they name.

    The direction of the scale is never guessed from a header: "dmos" is higher = better in some sets, lower in others.

    Args:
        path: CSV with a header, an image column (`tables.IMAGE_COLUMNS`), a score column (`SCORE_COLUMNS`) and
            optionally a deviation column (`STD_COLUMNS`); other columns are not looked at.
        images: Folder of the images; without it they are looked for beside the CSV and in `images/` there.
        lower_better: The scores are better when lower; they are negated.

    Raises:
        DataError: A column is missing; cells are not finite numbers; an image is named twice; images are missing or
            cannot be read. All problems of a kind at once, with line numbers.
    """
    table = read_table(path)
    names = table.image_names()
    _refuse_repeats(table, names)
    column = table.require(SCORE_COLUMNS, "the human score")
    mos, std = _numbers(table, column), None
    if (std_column := table.find(STD_COLUMNS)) is not None:
        std = _numbers(table, std_column, at_least=0.0)
    folders = image_folders(path, images)
    records = _check(path, [(name, locate(name, folders)) for name in names], folders)
    return Labels(
        records=records,
        mos=-mos if lower_better else mos,
        std=std,
        path=path,
        column=table.columns[column],
        lower_better=lower_better,
    )


def _refuse_repeats(table: Table, names: Sequence[str]) -> None:
    first: dict[str, int] = {}
    repeats = []
    for name, line in zip(names, table.lines, strict=True):
        if first.setdefault(name, line) != line:
            repeats.append(f"{name} (lines {first[name]} and {line})")
    if repeats:
        raise DataError(
            f"{table.path} has {len(repeats)} rows for images it already named: {listed(repeats)}. "
            "Keep one row per image, its mean score."
        )


def _numbers(table: Table, column: int, at_least: float = -math.inf) -> NDArray[np.float64]:
    values, problems = [], []
    for row, line in zip(table.rows, table.lines, strict=True):
        try:
            value = float(row[column])
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < at_least:
            problems.append(f"line {line} '{row[column]}'")
        values.append(value)
    if problems:
        accepted = "finite numbers" if at_least == -math.inf else f"finite numbers of at least {at_least:g}"
        raise DataError(
            f"{table.path} column '{table.columns[column]}' has {len(problems)} unusable values: {listed(problems)}; "
            f"accepted are {accepted}. Correct or remove these rows."
        )
    return np.array(values, dtype=np.float64)


def _check(path: Path, named: Sequence[tuple[str, Path]], folders: Sequence[Path]) -> tuple[ImageRecord, ...]:
    missing = [name for name, image in named if not image.is_file()]
    if missing:
        looked = " and ".join(str(folder) for folder in folders)
        raise DataError(
            f"{path} names {len(missing)} of {len(named)} images that are not there: {listed(missing)}; "
            f"looked in {looked}. Put them there, or remove their rows."
        )
    records, problems = check_images(named)
    if problems:
        raise unreadable(problems, len(named), f"Replace them, or remove their rows from {path}.")
    return tuple(records)


def overlap(of: Sequence[str], among: Collection[str]) -> list[int]:
    """Which images of one set are also in another, by content.

    Args:
        of: Content hashes of the set asked about, in order.
        among: Content hashes of the other set.

    Returns:
        Positions in `of`, ascending.
    """
    known = set(among)
    return [position for position, digest in enumerate(of) if digest in known]


def without_seen(labels: Labels, seen: Collection[str], what: str) -> tuple[Labels, int]:
    """Labels to measure on, given the images that a prompt was evolved on.

    Args:
        labels: the evaluation set.
        seen: hashes of the images seen while evolving.
        what: ``stop`` (overlap is an error), ``exclude`` (drop it) or ``keep`` (measure on it all the same).

    Returns:
        The labels, and how many of their images were seen.

    Raises:
        DataError: when images overlap and ``what`` is ``stop``.
    """
    both = overlap(labels.sha256, seen)
    if both and what == "stop":
        raise DataError(
            f"{len(both)} of the {len(labels)} evaluation images were also used to evolve (same content). Results on "
            "them would not be a test. Use --seen exclude to drop them, or --seen keep to measure on them."
        )
    return (labels.without(both) if what == "exclude" else labels), len(both)
