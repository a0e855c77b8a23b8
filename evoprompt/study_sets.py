"""The labelled sets of a study: names, references, and the choice of difficult samples from them."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evoprompt.errors import DataError, counted, listed
from evoprompt.images import fit_image, read_image
from evoprompt.judge import Judge
from evoprompt.labels import Labels
from evoprompt.stimuli import EACH, EXAMPLES, difficult, difficult_references, hardness, proxy_prediction, to_hundred
from evoprompt.tables import match_images, read_table
from evoprompt.tracking import Update

PROXY_COLUMNS = ("score", "prediction", "proxy")
"""Accepted headers of a proxy's scores."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StudySet:
    """A labelled set as a study sees it.

    Attributes:
        name: in tables; unique within a study.
        names: (N,) what the set calls its images.
        paths: (N,) where they lie.
        sha256: (N,) content hashes.
        mos: (N,) human scores, higher is better.
        std: (N,) their deviations, or None.
        groups: (N,) the reference or text prompt behind every image, or None when it is not known.
        references: (N,) the undamaged image of every image, or None when there is none to show.
    """

    name: str
    names: tuple[str, ...]
    paths: tuple[Path, ...]
    sha256: tuple[str, ...]
    mos: NDArray[np.float64]
    std: NDArray[np.float64] | None = None
    groups: tuple[str, ...] | None = None
    references: tuple[Path, ...] | None = None

    @cached_property
    def reference_keys(self) -> dict[Path, int]:
        """Keys of the distinct references: the numbers after the images."""
        return {path: len(self.paths) + k for k, path in enumerate(dict.fromkeys(self.references or ()))}

    def take(self, rows: Sequence[int]) -> StudySet:
        """Some rows of the set, in the order given."""

        def some(column: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(column[row] for row in rows)

        return StudySet(
            name=self.name,
            names=some(self.names),
            paths=some(self.paths),
            sha256=some(self.sha256),
            mos=self.mos[list(rows)],
            std=None if self.std is None else self.std[list(rows)],
            groups=None if self.groups is None else some(self.groups),
            references=None if self.references is None else some(self.references),
        )

    def fingerprint(self) -> str:
        """12 hex digits over images, scores and references."""
        body = [self.sha256, self.mos.tolist(), self.groups, self.references is not None]
        return hashlib.sha256(repr(body).encode()).hexdigest()[:12]


def study_sets(labels: Sequence[Labels], references: Path | None) -> list[StudySet]:
    """Labels as the sets of a study.

    Args:
        labels: one a set.
        references: folder of the undamaged images that the labels' references are called after; None = where the
            labels found them. Only when every set has all of its own, the sets get any.

    Raises:
        DataError: when a folder is given, but references are not named by the labels or not there; all sets at once.
    """
    names = _set_names([one.path for one in labels])
    found, problems = [], []
    for name, one in zip(names, labels, strict=True):
        shown = _complete(one.references)
        if references is not None:
            try:
                shown = find_references(references, one.groups, name)
            except DataError as error:
                problems.append(str(error).rstrip("."))
        found.append(
            StudySet(
                name=name,
                names=one.names,
                paths=one.paths,
                sha256=one.sha256,
                mos=one.mos,
                std=one.std,
                groups=one.groups,
                references=shown,
            )
        )
    if problems:
        raise DataError(f"{'; '.join(problems)}. Give the folder of undamaged images, or leave --references out.")
    if any(data.references is None for data in found):
        found = [replace(data, references=None) for data in found]
    return found


def _complete(references: Sequence[Path | None] | None) -> tuple[Path, ...] | None:
    """The references when each is on disk."""
    known = [path for path in references or () if path is not None]
    return tuple(known) if references and len(known) == len(references) else None


def _set_names(paths: Sequence[Path]) -> list[str]:
    """The files' names without suffix; with their folder where two are called the same."""
    stems = Counter(path.stem for path in paths)
    return [path.stem if stems[path.stem] == 1 else f"{path.resolve().parent.name}/{path.stem}" for path in paths]


def find_references(folder: Path, groups: Sequence[str] | None, name: str) -> tuple[Path, ...]:
    """The undamaged image of every image: the file in the folder called as its reference, suffix and case aside.

    Raises:
        DataError: when there is no such folder, the set names no references, or files are missing.
    """
    if groups is None:
        raise DataError(f"{name} does not say which image was distorted; a column 'reference' is needed.")
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder.")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        files.setdefault(path.stem.lower(), path)
    wanted = {group: files.get(Path(group).stem.lower()) or files.get(group.lower()) for group in groups}
    missing = [group for group, path in wanted.items() if path is None]
    if missing:
        raise DataError(f"{name} names {len(missing)} references that {folder} lacks: {listed(missing)}.")
    return tuple(path for path in (wanted[group] for group in groups) if path is not None)


def read_proxy(path: Path, data: StudySet) -> NDArray[np.float64]:
    """The scores (N,) that a file, such as one written by ``evoprompt score``, gives the images of a set.

    Rows are matched as those of any scores file, see ``tables.match_images``.

    Raises:
        DataError: when an image has two rows, or it is not clear which; when images of the set have no score, or cells
            are not finite numbers; all at once.
    """
    table = read_table(path)
    column = table.require(PROXY_COLUMNS, "the proxy's score")
    names = table.image_names()
    if twice := [name for name, rows in Counter(names).items() if rows > 1]:
        raise DataError(f"{path} has several rows of {counted(len(twice), 'image')}: {listed(twice)}. Keep one each.")
    cells, values, problems = table.cells(column), [], []
    for name, row in zip(data.names, match_images(path, names, data.names, data.paths), strict=True):
        cell = "" if row is None else cells[row]
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            problems.append(f"{name} ('{cell}')" if cell else f"{name} (no row)")
        values.append(value)
    if problems:
        raise DataError(
            f"{path} has no usable score for {len(problems)} of the {len(values)} images of {data.name}: "
            f"{listed(problems)}. Score them, for example with 'evoprompt score'."
        )
    return np.array(values)


def proxy_hardness(data: StudySet, proxies: Sequence[Path]) -> NDArray[np.float64]:
    """How hard the images of a set are (N,) by files of scores, see ``stimuli.hardness``.

    Scores are put on a scale from 0 to 100 first, because the published constants are meant for that.

    Raises:
        DataError: when a proxy lacks images or cannot be fitted to the human scores.
    """
    mos, std = to_hundred(data.mos, data.std)
    return hardness(mos, std, proxy_prediction([read_proxy(path, data) for path in proxies], mos))


def hardest(
    data: StudySet, hard: NDArray[np.float64], judge: Judge, number: int, batch_size: int, advance: Update
) -> StudySet:
    """The difficult samples of a set, see ``stimuli.difficult``; with references, whole references first.

    Args:
        data: the set.
        hard: (N,) see ``proxy_hardness``.
        judge: its vision tower's features say which images are alike.
        number: how many to ask about; those that become examples come on top.
        batch_size: images at a time.
        advance: told how many images are done.
    """
    features = image_features(judge, data.paths, batch_size, advance)
    if data.references is not None and data.groups is not None:
        return data.take(difficult_references(hard, features, data.groups, number + EACH).tolist())
    return data.take(difficult(hard, features, number + EXAMPLES).tolist())


def image_features(judge: Judge, paths: Sequence[Path], batch_size: int, advance: Update) -> NDArray[np.float64]:
    """What the judge's vision tower makes of images, mean over its patches and the views: (N, D)."""
    rows = []
    for start in range(0, len(paths), batch_size):
        part = [
            fit_image(read_image(path), judge.family.fit, judge.image_size, judge.family.views)
            for path in paths[start : start + batch_size]
        ]
        views = torch.from_numpy(np.stack(part))
        with torch.no_grad():
            features = judge.features(views.flatten(0, 1).float() / 255).view(*views.shape[:2], -1).mean(1)
        rows.append(features.cpu().double().numpy())
        advance(len(part))
    return np.concatenate(rows)
