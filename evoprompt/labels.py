"""Human scores: read a table of images and MOS, with every image checked; find images that two sets share.

Evolution never imports this module's labels: what it may know of them is a function that returns numbers.
"""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evoprompt.catalogue import ImageRecord, index_file
from evoprompt.containers import exists, locate
from evoprompt.errors import DataError, counted, listed
from evoprompt.images import check_images, unreadable
from evoprompt.naming import KNOWN, reference_of, scale_of
from evoprompt.readers import Reading, pick, understand
from evoprompt.splits import Split, read_split, split_file, torn
from evoprompt.tracking import Console

_REFERENCES = ("", "images", "reference_images", "src_imgs", "refimgs", "../Train_Ref", "Train_Ref")


@dataclass(frozen=True, kw_only=True, eq=False)
class Labels:
    """Images with human scores, row by row of a table.

    Attributes:
        records: The images, each decoded once.
        mos: (N,) float64, finite, any scale, always higher = better (negated when the file is lower = better).
        std: (N,) float64, >= 0, standard deviation of the ratings on the scale of `mos`, or None.
        path: The table.
        column: Header of the score column that was read.
        lower_better: Whether the file's scores were negated.
        dataset: Name of the set: one of `naming.KNOWN`, or the file's stem.
        range: Ends of the scale of `mos` where the set is known, or None.
        groups: What each image was made from, its reference image or its text prompt, or None when unknown.
        grouping: "reference", "text prompt", or "" without groups.
        references: Path of each row's reference image where it is on disk, or None without references.
        distortion: Type of distortion of each row, or None.
        level: Strength of the distortion of each row, or None.
        split: "train", "val" or "test" of each row (None where the file does not say), or None.
        how: How the split was made: "official", "its own" (of a table that is not of a known set), the name of the
            column that was asked for, "by reference", "by text prompt", "by content", or "" without one.
        part: The part of the split that these rows are, or "" for all.
        leaky: A sentence when this part shares reference images with other parts; "" when it does not.
        notes: What people should know about how the file was understood.
    """

    records: tuple[ImageRecord, ...]
    mos: NDArray[np.float64]
    std: NDArray[np.float64] | None
    path: Path
    column: str
    lower_better: bool = False
    dataset: str = ""
    range: tuple[float, float] | None = None
    groups: tuple[str, ...] | None = None
    grouping: str = ""
    references: tuple[Path | None, ...] | None = None
    distortion: tuple[str, ...] | None = None
    level: tuple[float, ...] | None = None
    split: tuple[str | None, ...] | None = None
    how: str = ""
    part: str = ""
    leaky: str = ""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    @property
    def names(self) -> tuple[str, ...]:
        """What the table calls the images."""
        return tuple(record.name for record in self.records)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Where the images lie."""
        return tuple(record.path for record in self.records)

    @property
    def sha256(self) -> tuple[str, ...]:
        """Content hashes of the images."""
        return tuple(record.sha256 for record in self.records)

    @property
    def keys(self) -> tuple[str, ...]:
        """What a prompt that is trained on these images remembers: their contents and reference images."""
        return tuple(sorted({key for record in self.records for key in record.keys}))

    def overlap(self, seen: Iterable[str]) -> list[int]:
        """Rows whose content, or whose reference image, a prompt has seen.

        Args:
            seen: What the prompt remembers, see `keys`; it is gone through once and may be long.

        Returns:
            Rows, ascending.
        """
        rows: dict[str, list[int]] = defaultdict(list)
        for row, record in enumerate(self.records):
            for key in record.keys:
                rows[key].append(row)
        return sorted({row for key in seen if key in rows for row in rows[key]})

    def take(self, rows: Sequence[int]) -> Labels:
        """Some of the rows, counted from 0, in the order given."""
        columns = ("records", "groups", "references", "distortion", "level", "split")
        kept: dict[str, Any] = {key: pick(getattr(self, key), rows) for key in columns}
        std = None if self.std is None else self.std[list(rows)]
        return replace(self, **kept, mos=self.mos[list(rows)], std=std)

    def without(self, rows: Collection[int]) -> Labels:
        """The labels less some rows, counted from 0; for example those that `overlap` found."""
        left_out = set(rows)
        return self.take([row for row in range(len(self)) if row not in left_out])

    def of_part(self, part: str) -> Labels:
        """The rows of one part of the split; `leaky` then says whether that part is a fair test.

        Raises:
            DataError: There is no split, or no row in this part.
        """
        rows = [row for row, where in enumerate(self.split or ()) if where == part]
        if not rows:
            there = sorted({where for where in self.split or () if where})
            found = f"has the parts {', '.join(there)}" if there else "has no split"
            raise DataError(
                f"{self.path} {found}, not '{part}'. Name a part that is there, or make a split with "
                f"'evoprompt data split {self.path}'."
            )
        leaky = torn(self.groups, self.grouping, self.split or (), part)
        return replace(self.take(rows), part=part, leaky=leaky)

    def describe(self) -> str:
        """One line for the head of a table: set, part and how it was split, number, direction and range, leaks."""
        part = f", {self.part} part ({self.how} split)" if self.part else ""
        ends = "" if self.range is None else f" from {self.range[0]:g} to {self.range[1]:g}"
        turned = ", negated" if self.lower_better else ""
        leaky = f"; {self.leaky}" if self.leaky else ""
        return f"{self.dataset}{part}: {len(self)} images, scores{ends}{turned}, higher is better{leaky}"


def read_labels(
    path: Path,
    *,
    images: Path | None = None,
    lower_better: bool = False,
    column: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Labels:
    """Reads human scores and checks every image they name.

    The direction of the scale is never guessed from a header: "dmos" is higher = better in some sets, lower in others.
    It is known of sets that are recognised, see `naming.KNOWN`.

    Args:
        path: A table, or the folder of a set as distributed; see `readers`. ``PATH#PART`` is one part of its split
            (``koniq.csv#test``): that of the split file beside it, else that of the table itself.
            ``PATH#PART@WHERE`` takes the split from another column or from another split file.
        images: Folder of the images; without it they are looked for where the set has them, else beside the table and
            in ``images/`` there.
        lower_better: The scores are better when lower; they are negated.
        column: Header of the score, instead of the one that is usually meant.
        progress: Called with (images checked, images in all) after each.

    Raises:
        DataError: A column is missing; cells are not finite numbers; an image is named twice; images are missing or
            cannot be read; the set is known to be higher = better and `lower_better` is given. All problems of a kind
            at once, with line numbers.
    """
    file, part, where = _selected(path)
    is_column = bool(where) and not Path(where).is_file()
    reading = understand(file, column=column, split_column=where if is_column else None)
    records, notes = _records(reading, images, progress)
    labels = _labels(reading, records, notes, lower_better)
    if is_column:
        labels = replace(labels, how=where)
    chosen = split_file(reading.path) if not where else Path(where)
    if part and not is_column and (where or chosen.is_file()):
        labels = with_split(labels, read_split(chosen, labels.sha256))
    return labels.of_part(part) if part else labels


def open_labels(path: Path, console: Console, **how: Any) -> Labels:
    """`read_labels` for a command: with progress, and with a line for everything people should know of the file.

    Args:
        path: As for `read_labels`.
        console: Where it is said.
        how: `images`, `lower_better` and `column` of `read_labels`.

    Raises:
        DataError: As `read_labels`.
    """
    with console.counted("labels") as progress:
        labels = read_labels(path, progress=progress, **how)
    for note in labels.notes:
        console.say(f"note     {labels.path}: {note}")
    return labels


def with_split(labels: Labels, split: Split) -> Labels:
    """The labels under another split."""
    return replace(labels, split=tuple(split.parts[sha] for sha in labels.sha256), how=split.how)


def _selected(path: Path) -> tuple[Path, str, str]:
    """File, part and where its split is, of ``PATH#PART@WHERE``; a file that is really called so is taken as it is."""
    if path.exists() or "#" not in str(path):
        return path, "", ""
    file, _, rest = str(path).rpartition("#")
    part, _, where = rest.partition("@")
    return Path(file), part, where


def _labels(reading: Reading, records: tuple[ImageRecord, ...], notes: tuple[str, ...], lower_better: bool) -> Labels:
    if lower_better and reading.lower_better is False:
        raise DataError(
            f"{reading.path} is {reading.dataset}, whose scores are better when higher. Leave --lower-better out, or "
            "give the file another form if its scores were turned round."
        )
    negated = lower_better or bool(reading.lower_better)
    scale = scale_of(reading.mos, KNOWN[reading.dataset].ranges) if reading.dataset in KNOWN else None
    return Labels(
        records=records,
        mos=-reading.mos if negated else reading.mos,
        std=reading.std,
        path=reading.path,
        column=reading.column,
        lower_better=negated,
        dataset=reading.dataset,
        range=(-scale[1], -scale[0]) if scale and negated else scale,
        groups=reading.groups,
        grouping=reading.grouping,
        references=_references(reading),
        distortion=reading.distortion,
        level=reading.level,
        split=reading.split,
        how="" if reading.split is None else "official" if reading.dataset in KNOWN else "its own",
        notes=(*reading.notes, *notes),
    )


def _references(reading: Reading) -> tuple[Path | None, ...] | None:
    """Paths of the reference images that are on disk, or None when the set has no references."""
    if reading.grouping != "reference" or reading.groups is None:
        return None
    beside = reading.path if reading.path.is_dir() else reading.path.parent
    folders = [beside / folder for folder in _REFERENCES]

    def find(name: str) -> Path | None:
        # What file names tell of references is in lower case; the files themselves may be in upper case.
        names = [case + end for case in (name, name.upper()) for end in ("", ".png", ".bmp", ".BMP", ".jpg")]
        return next((file for folder in folders for n in names if (file := folder / n).is_file()), None)

    found = {name: find(name) for name in set(reading.groups)}
    return tuple(found[name] for name in reading.groups)


def repeated(named: Sequence[tuple[str, Path]]) -> list[tuple[int, int]]:
    """(first row, later row) of images that are named more than once, also as ``a.png`` and ``./a.png``.

    Args:
        named: (name, path) of every image.
    """
    first: dict[str, int] = {}
    rows = [(first.setdefault(os.path.normpath(path), row), row) for row, (_, path) in enumerate(named)]
    return [(one, other) for one, other in rows if one != other]


def _refuse_repeats(reading: Reading, named: Sequence[tuple[str, Path]]) -> None:
    places = [place.split() for place in reading.places]
    repeats = [
        f"{reading.names[other]} ({places[other][0]}s {places[one][-1]} and {places[other][-1]})"
        for one, other in repeated(named)
    ]
    if repeats:
        raise DataError(
            f"{reading.path} has {counted(len(repeats), 'row')} for images it already named: {listed(repeats)}. "
            "Keep one row per image, its mean score."
        )


def _records(
    reading: Reading, images: Path | None, progress: Callable[[int, int], None] | None
) -> tuple[tuple[ImageRecord, ...], tuple[str, ...]]:
    """The images, checked, and what to say about where they were found."""
    named, missing, folders, notes = find_named(reading, images)
    _refuse_repeats(reading, named)
    if missing:
        looked = " and ".join(str(folder) for folder in folders)
        raise DataError(
            f"{reading.path} names {len(missing)} of {len(named)} images that are not there: {listed(missing)}; "
            f"looked in {looked}. Put them there, or remove their rows."
        )
    records, problems = check_images(named, progress, index_file([reading.path]))
    if problems:
        raise unreadable(problems, len(named), f"Replace them, or remove their rows from {reading.path}.")
    if reading.grouping == "reference" and reading.groups is not None:
        told = zip(records, reading.groups, strict=True)
        records = [replace(record, reference=reference_of(record.name, group)) for record, group in told]
    return tuple(records), notes


def find_named(
    reading: Reading, images: Path | None
) -> tuple[list[tuple[str, Path]], list[str], tuple[Path, ...], tuple[str, ...]]:
    """Where the images of a table lie.

    Returns:
        (name, path) of every image; the names of those that are not there; the folders that were searched; notes.
    """
    folders = (images,) if images is not None else reading.folders
    named = [(name, locate(name, folders)) for name in reading.names]
    missing = [name for name, path in named if not exists(path)]
    if not missing:
        return named, [], folders, ()
    again = _written_otherwise(missing, folders)
    named = [(name, again.get(name, path)) for name, path in named]
    note = f"{counted(len(again), 'image')} found under names in another case, or with accents written another way"
    return named, [name for name in missing if name not in again], folders, (note,) if again else ()


def _written_otherwise(names: Sequence[str], folders: Sequence[Path]) -> dict[str, Path]:
    """Images whose names differ from those of their files in upper and lower case, or in how Unicode writes an accent.

    Some sets name files in another case than they have; archives made on a Mac write an accent after its letter. A name
    that two files of one folder could have stays missing.
    """
    alike: dict[Path, dict[str, list[Path]]] = {}

    def inside(folder: Path, part: str) -> list[Path]:
        if folder not in alike:
            alike[folder] = defaultdict(list)
            for file in folder.iterdir() if folder.is_dir() else ():
                alike[folder][_folded(file.name)].append(file)
        return alike[folder].get(_folded(part), [])

    def below(folder: Path, name: str) -> list[Path]:
        places = [folder]
        for part in PurePosixPath(name).parts:
            places = [file for place in places for file in inside(place, part)]
        return [place for place in places if place.is_file()]

    first = {name: next(filter(None, (below(folder, name) for folder in folders)), []) for name in names}
    return {name: files[0] for name, files in first.items() if len(files) == 1}


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


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


def without_seen(labels: Labels, seen: Iterable[str], what: str) -> tuple[Labels, int]:
    """Labels to measure on, given what a prompt has seen.

    Args:
        labels: the evaluation set.
        seen: content hashes of the images seen, and keys of the reference images whose copies were seen.
        what: ``stop`` (overlap is an error), ``exclude`` (drop it) or ``keep`` (measure on it all the same).

    Returns:
        The labels, and how many of their images overlap with what was seen.

    Raises:
        DataError: when images overlap and ``what`` is ``stop``, or all of them do and it is ``exclude``.
    """
    both = labels.overlap(seen)
    if both and what == "stop":
        raise DataError(
            f"{len(both)} of the {len(labels)} evaluation images were also used to evolve (same content, or copies of "
            "the same reference image). Results on them would not be a test. Use --seen exclude to drop them, or "
            "--seen keep to measure on them."
        )
    if what == "exclude" and len(both) == len(labels):
        raise DataError(
            f"all {len(labels)} evaluation images of {labels.path} were also used to evolve, so --seen exclude leaves "
            "none. Give other images, or --seen keep to measure on these all the same."
        )
    return (labels.without(both) if what == "exclude" else labels), len(both)
