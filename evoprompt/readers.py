"""Human scores as the authors of data sets distribute them, recognised by their own files, headers and file names.

All readers say the same of a set: names, scores, deviations on the scale of the scores, direction, references or text
prompts, distortions and levels, and the split. Only tables are opened here, never images.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evoprompt.errors import DataError, counted, listed
from evoprompt.naming import KNOWN, known_by_word, parse_names, scale_of, slipped
from evoprompt.tables import IMAGE_COLUMNS, REFERENCE_COLUMNS, Table, image_folders, read_table

SCORE_COLUMNS = ("mos", "gt_score", "dmos", "mos_quality")
"""Accepted headers of the human score, in order of precedence; upper and lower case are the same."""

STD_COLUMNS = ("std", "sd", "mos_std", "std_quality", "dmos_std")
"""Accepted headers of the ratings' standard deviation. Not "var": in some sets it holds variances, in KADID-10k not."""

TEXT_COLUMNS = ("prompt", "text_prompt")
"""Accepted headers of the text that an image was generated from."""

DISTORTION_COLUMNS = ("distortion", "dist_type", "dis_type", "dst_type", "distortion_type")
LEVEL_COLUMNS = ("level", "dist_level", "dst_lev", "distortion_level")
SPLIT_COLUMNS = ("split", "set", "official_split")

PARTS = {
    **{name: "train" for name in ("train", "training", "0")},
    **{name: "val" for name in ("val", "valid", "validation", "1")},
    **{name: "test" for name in ("test", "testing", "2")},
}
"""What the parts of a split are called in files, and here."""

# Where a set's scores lie in its folder, and how its images' folders are called, as distributed.
_FILES = (
    *("koniq10k_distributions_sets.csv", "koniq10k_scores_and_distributions.csv", "dmos.csv", "data.csv"),
    *("Annotations/MOS and Image attribute scores.xlsx", "MOS and Image attribute scores.xlsx"),
    *("Data/AllMOS_release.mat", "AllMOS_release.mat", "dmos_realigned.mat", "mos_with_names.txt"),
    *("csiq.DMOS.xlsx", "csiq.beta.xlsx", "csiq_label.txt", "Train_Label", "labels_image.csv"),
    *("metadata.csv", "metadata.jsonl", "metadata.parquet", "mos.csv", "labels.csv"),
)
_FOLDERS = {
    "KonIQ-10k": ("1024x768", "512x384", "images"),
    "KADID-10k": ("images",),
    "AGIQA-3K": ("AGIQA-3K", "agiqa3k", "images", "Images"),
    "SPAQ": ("../TestImage", "TestImage"),
    "LIVE-C": ("../Images", "../Images/trainingImages", "Images", "Images/trainingImages"),
    "TID2013": ("distorted_images",),
    "CSIQ": ("dst_imgs", "dst_imgs_all"),
    "PIPAL": ("../Train_Dist", "../Dist_Imgs", *(f"../Distortion_{part}" for part in (1, 2, 3, 4)), "Dist_Imgs"),
    "FLIVE": ("database", "FLIVE"),
}
_USUAL: tuple[tuple[float, float], ...] = ((0, 1), (1, 5), (0, 5), (0, 10), (0, 100))
_NEGATED = "its scores are differences (DMOS), better when lower: they are negated"
_CSIQ = {"noise": "AWGN", "blur": "BLUR", "jpeg": "JPEG", "jpeg 2000": "jpeg2000"}
_LIVE = (("jp2k", 227), ("jpeg", 233), ("wn", 174), ("gblur", 174), ("fastfading", 174))


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """What a table of human scores says, as it says it.

    Attributes:
        path: The file.
        names: What it calls the images.
        places: Where each row is, for messages ("line 7").
        mos: (N,) float64, the scores as the file has them.
        std: (N,) float64, deviations of the ratings on the scale of `mos`, or None.
        column: Where the scores come from.
        dataset: Name of the set: one of `naming.KNOWN`, or the file's stem.
        lower_better: Whether scores are better when lower; None when neither the file nor the set says so.
        folders: Where the images are looked for.
        groups: Reference image or text prompt of every row, or None.
        grouping: "reference", "text prompt", or "" without groups.
        distortion: Type of distortion of every row, or None.
        level: Strength of the distortion of every row, or None.
        split: "train", "val" or "test" of every row (None where the file says nothing), or None.
        notes: What people should know about how the file was understood.
    """

    path: Path
    names: tuple[str, ...]
    places: tuple[str, ...]
    mos: NDArray[np.float64]
    std: NDArray[np.float64] | None
    column: str
    dataset: str
    lower_better: bool | None
    folders: tuple[Path, ...]
    groups: tuple[str, ...] | None = None
    grouping: str = ""
    distortion: tuple[str, ...] | None = None
    level: tuple[float, ...] | None = None
    split: tuple[str | None, ...] | None = None
    notes: tuple[str, ...] = ()

    def take(self, rows: Sequence[int], note: str) -> Reading:
        """Some of the rows, and why."""
        columns = ("names", "places", "groups", "distortion", "level", "split")
        kept: dict[str, Any] = {key: pick(getattr(self, key), rows) for key in columns}
        std = None if self.std is None else self.std[list(rows)]
        return replace(self, **kept, mos=self.mos[list(rows)], std=std, notes=(*self.notes, note))


def pick(values: Sequence[Any] | None, rows: Sequence[int]) -> tuple[Any, ...] | None:
    """Some of the values of a column that may be missing."""
    return None if values is None else tuple(values[row] for row in rows)


def understand(path: Path, *, column: str | None = None, split_column: str | None = None) -> Reading:
    """Reads a table of human scores, in whatever form it is distributed.

    Args:
        path: The table, or the folder of a set, in which the set's own file is looked for.
        column: Header of the score, instead of the one that is usually meant.
        split_column: Header of the split, likewise.

    Raises:
        DataError: No known file in the folder; a column is missing; cells are not usable. All problems of a kind at
            once.
    """
    if path.is_dir():
        file = find_table(path)
        if file is None:
            raise DataError(f"{path} holds no known table of human scores. Name the table itself.")
        path = file
    if path.is_dir():
        reading = _pipal(path)
    elif path.name in ("AllMOS_release.mat", "dmos_realigned.mat"):
        reading = _live_challenge(path) if path.name.startswith("All") else _live(path)
    elif path.name in ("mos_with_names.txt", "csiq_label.txt"):
        reading = _two_columns(path)
    else:
        reading = _table(read_table(path), column, split_column)
    return _checked(reading)


def find_table(folder: Path) -> Path | None:
    """The table of human scores in the folder of a set, by the names that sets as distributed give it."""
    is_pipal = any(folder.glob("A[0-9][0-9][0-9][0-9].txt"))
    return folder if is_pipal else next((folder / name for name in _FILES if (folder / name).exists()), None)


def _table(table: Table, column: str | None, split_column: str | None) -> Reading:
    """A table by its headers: that of a known set, or a plain one."""
    if table.has("c1", "c5", "c_total") and (table.has("image_name") or table.has("img_name")):
        plain = _plain(table, column, split_column, dataset="KonIQ-10k") if column else _koniq(table, split_column)
        return _told_of_splits(table, split_column, plain)
    if table.has("dist_img", "ref_img", "dmos"):
        note = "its column 'var' holds standard deviations and is read so; its dmos is better when higher"
        return _plain(table, column, split_column, dataset="KADID-10k", std=("var",), notes=(note,))
    if table.has("mos_quality", "mos_align"):
        note = "of its two scores, mos_quality is read, not mos_align (agreement with the text)"
        return _plain(table, column, split_column, dataset="AGIQA-3K", score=("mos_quality",), notes=(note,))
    if table.has("image name", "mos"):
        return _plain(table, column, split_column, dataset="SPAQ", image=("image name",))
    if table.has("image", "dst_type", "dst_lev", "dmos"):
        return _csiq(table, column, split_column)
    if table.has("name_image", "mos_image"):
        return _flive(_plain(table, column, None, dataset="FLIVE", image=("name_image",), score=("mos_image",)))
    if table.path.name == "labels_image.csv":
        return _flive(_plain(table, column, None, dataset="FLIVE"))
    is_list = table.path.suffix == ".json" and (table.has("id") or table.has("img_path"))
    if is_list or table.has("id", "conversations"):
        return _conversations(table, column, split_column)
    if made := re.fullmatch(r"meta_info_(\w+)Dataset", table.path.stem):
        return _meta_info(table, column, split_column, known_by_word(made[1]))
    return _plain(table, column, split_column)


def _plain(
    table: Table,
    column: str | None,
    split_column: str | None,
    *,
    dataset: str = "",
    image: Sequence[str] = IMAGE_COLUMNS,
    score: Sequence[str] = SCORE_COLUMNS,
    std: Sequence[str] = STD_COLUMNS,
    names: Sequence[str] | None = None,
    notes: tuple[str, ...] = (),
) -> Reading:
    """A table with one row an image, by headers."""
    if names is None:
        at = table.require(image, "the image's file name")
        names = table.image_names() if image is IMAGE_COLUMNS else table.cells(at)
    at = table.require((column.lower(),) if column else score, "the human score")
    deviations = None if column else table.find(std)
    parsed = parse_names(names)
    groups, grouping = _cells(table, REFERENCE_COLUMNS), "reference"
    if groups is None and parsed:
        groups = tuple(found.reference for found in parsed)
    elif groups and parsed:
        _refuse_slipped(table, slipped([found.reference for found in parsed], groups), names, groups)
    if groups is None:
        groups, grouping = _cells(table, TEXT_COLUMNS), "text prompt"
    distortion, level = _cells(table, DISTORTION_COLUMNS), _cells(table, LEVEL_COLUMNS)
    split = _cells(table, (split_column.lower(),) if split_column else SPLIT_COLUMNS, must=bool(split_column))
    known = KNOWN.get(dataset)
    beside = table.path.parent
    return Reading(
        path=table.path,
        names=tuple(names),
        places=tuple(table.where(row) for row in range(len(names))),
        mos=_numbers(table, at),
        std=None if deviations is None else _numbers(table, deviations, at_least=0.0),
        column=table.columns[at],
        dataset=dataset or (parsed[0].dataset if parsed else _called(table.path)),
        lower_better=None if known is None else known.lower_better,
        folders=(*(beside / folder for folder in _FOLDERS.get(dataset, ())), *image_folders(table.path)),
        groups=groups,
        grouping=grouping if groups else "",
        distortion=distortion or (tuple(found.distortion for found in parsed) if parsed else None),
        level=_levels(level) or (tuple(found.level for found in parsed) if parsed else None),
        split=None if split is None else tuple(PARTS.get(cell.lower(), cell or None) for cell in split),
        notes=notes,
    )


def _refuse_slipped(table: Table, rows: Sequence[int], names: Sequence[str], others: Sequence[str]) -> None:
    if rows:
        told = listed([f"{table.where(row)} '{names[row]}' beside '{others[row]}'" for row in rows])
        raise DataError(
            f"{table.path} names two images in {counted(len(rows), 'row')}: {told}. Cells seem to have slipped into "
            "other rows, so scores may have, too. Download it again."
        )


def _called(path: Path) -> str:
    """Name of a set that is not known: the file's, or its folder's when the file has a name that any set could have."""
    return path.resolve().parent.name if path.stem in ("mos", "labels", "metadata", "data", "scores") else path.stem


def _cells(table: Table, accepted: Sequence[str], must: bool = False) -> tuple[str, ...] | None:
    position = table.require(accepted, "the split") if must else table.find(accepted)
    return None if position is None else table.cells(position)


def _levels(cells: Sequence[str] | None) -> tuple[float, ...] | None:
    """Levels as numbers; None when some are words, which have no order that we know."""
    try:
        return None if cells is None else tuple(float(cell) for cell in cells)
    except ValueError:
        return None


def _numbers(table: Table, column: int, at_least: float = -math.inf) -> NDArray[np.float64]:
    values, problems = [], []
    for row, cell in enumerate(table.cells(column)):
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < at_least:
            problems.append(f"{table.where(row)} '{cell}'")
        values.append(value)
    if problems:
        accepted = "finite numbers" if at_least == -math.inf else f"finite numbers of at least {at_least:g}"
        raise DataError(
            f"{table.path} column '{table.columns[column]}' has {counted(len(problems), 'unusable value')}: "
            f"{listed(problems)}; accepted are {accepted}. Correct or remove these rows."
        )
    return np.array(values, dtype=np.float64)


def _koniq(table: Table, split_column: str | None) -> Reading:
    """KonIQ-10k: its MOS runs to 100 but its SD to 2, so both are taken from the ratings' histogram, 1 to 5."""
    votes = np.stack([_numbers(table, table.require((f"c{k}",), "a share of ratings"), 0.0) for k in range(1, 6)], 1)
    shares = votes / votes.sum(axis=1, keepdims=True)
    mean = shares @ np.arange(1.0, 6.0)
    variance = shares @ np.arange(1.0, 6.0) ** 2 - mean**2
    count = _numbers(table, table.require(("c_total",), "the number of ratings"), 1.0)
    # Of the sample, as the file's own SD is: that differs from this by less than 1e-11 in all rows.
    std = np.sqrt(np.maximum(variance, 0.0) * count / np.maximum(count - 1, 1))
    plain = _plain(table, "c1", split_column, dataset="KonIQ-10k")
    note = "mean and deviation are those of the ratings c1 to c5 (1 to 5): its column MOS is on 1 to 100, its SD is not"
    return replace(plain, mos=mean, std=std, column="c1..c5", notes=(note,))


def _csiq(table: Table, column: str | None, split_column: str | None) -> Reading:
    """CSIQ's workbook names image, type and level; files are called after all three, folders after the type."""
    image, kind, level = (table.cells(table.require((key,), key)) for key in ("image", "dst_type", "dst_lev"))
    types = [_CSIQ.get(name, name) for name in kind]
    names = [f"{t.lower()}/{i}.{t}.{int(float(n))}.png" for i, t, n in zip(image, types, level, strict=True)]
    return _plain(table, column, split_column, dataset="CSIQ", names=names, notes=(_NEGATED,))


def _flive(reading: Reading) -> Reading:
    """FLIVE with its official split: the larger images are for testing, `is_valid` marks those for validation."""
    parts: dict[str, str] = {}
    for file, part in (("labels<=640_padded.csv", ""), ("labels>640.csv", "test")):
        path = reading.path.with_name(file)
        if path.is_file():
            table = read_table(path)
            names = table.cells(table.require(("name_image",), "the image's file name"))
            valid = _cells(table, ("is_valid",)) or ("",) * len(names)
            for name, flag in zip(names, valid, strict=True):
                parts[name] = part or ("val" if flag.lower() == "true" else "train")
    split = tuple(parts.get(name) for name in reading.names)
    return replace(reading, split=split) if parts else reading


def _conversations(table: Table, column: str | None, split_column: str | None) -> Reading:
    """Lists of Q-Align and DeQA-Score: a path, sometimes a score, and an id like ``a.png->4.57`` that has it, too."""
    names = table.image_names()
    dataset = known_by_word(table.path.stem) or known_by_word(names[0])
    ids = _cells(table, ("id",)) or ("",) * len(names)
    told = [cell.rpartition("->")[0] or name for cell, name in zip(ids, names, strict=True)]
    others = [row for row, name in enumerate(names) if PurePosixPath(name).stem != PurePosixPath(told[row]).stem]
    _refuse_slipped(table, others, names, told)
    if table.find(SCORE_COLUMNS) is None and not column and table.has("id"):
        rows = tuple((*row, cell.rpartition("->")[2]) for row, cell in zip(table.rows, ids, strict=True))
        table = replace(table, columns=(*table.columns, "mos"), rows=rows)
    reading = _plain(table, column, split_column, dataset=dataset)
    above = table.path.parent
    reading = replace(reading, folders=(*reading.folders, above.parent, above.parent.parent), lower_better=None)
    if dataset == "CSIQ" and _slope(reading) > 0.2:
        note = "its scores rise with the level of distortion (DMOS): they are negated"
        return replace(reading, lower_better=True, notes=(note,))
    if dataset in KNOWN and KNOWN[dataset].lower_better and _slope(reading) > -0.2:
        note = f"{dataset}'s own scores are better when lower: if these were not turned round, add --lower-better"
        return replace(reading, notes=(note,))
    if dataset == "KADID-10k" and reading.std is not None:
        note = "its deviations are square roots of KADID-10k's, whose column 'var' is no variance: they are squared"
        return replace(reading, std=reading.std**2, notes=(note,))
    return reading


def _meta_info(table: Table, column: str | None, split_column: str | None, dataset: str) -> Reading:
    """The meta_info files of pyiqa, with their split columns."""
    score = (*SCORE_COLUMNS, "elo_score", "scaled_elo_score")
    return _told_of_splits(table, split_column, _plain(table, column, split_column, dataset=dataset, score=score))


def _told_of_splits(table: Table, split_column: str | None, reading: Reading) -> Reading:
    """The same with a note where pyiqa's file has splits to choose from."""
    ready = [name for name in table.columns if re.fullmatch(r"ratio\d+_seed\d+_split_\d+", name)]
    if not ready or split_column:
        return reading
    note = f"it has {len(ready)} more splits, such as {ready[0]}: choose one as {table.path.name}#test@{ready[0]}"
    return replace(reading, notes=(*reading.notes, note))


def _pipal(folder: Path) -> Reading:
    """PIPAL's training part: one text file a reference image, with lines ``A0001_00_00.bmp,1421.4``."""
    files = sorted(folder.glob("A[0-9][0-9][0-9][0-9].txt"))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").split()]
    rows = tuple(line.partition(",")[::2] for line in lines)
    table = _entries(folder / "labels", ("image", "mos"), rows)
    return replace(_plain(table, None, None, dataset="PIPAL"), path=folder)


def _two_columns(path: Path) -> Reading:
    """TID2013's ``5.51429 I01_01_1.bmp`` with the deviations in a file beside, and CSIQ's ``1600.AWGN.1.png 0.062``."""
    words = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    pairs = [tuple(word) for word in words if len(word) == 2]
    if bad := len(words) - len(pairs):
        raise DataError(f"{path} has {counted(bad, 'line')} without a name and a score. Download it again.")
    is_tid = path.name == "mos_with_names.txt"
    table = _entries(path, ("mos", "image") if is_tid else ("image", "dmos"), tuple(pairs), "line")
    reading = _plain(table, None, None, dataset="TID2013" if is_tid else "CSIQ")
    deviations = path.with_name("mos_std.txt")
    if not is_tid or not deviations.is_file():
        return reading
    std = np.array(deviations.read_text(encoding="utf-8").split(), dtype=np.float64)
    if len(std) != len(pairs):
        raise DataError(f"{deviations} has {len(std)} lines, {path.name} has {len(pairs)}. Download both again.")
    return replace(reading, std=std)


def _live_challenge(path: Path) -> Reading:
    """LIVE-C: names, scores and deviations in three MATLAB files."""
    names = [str(cell[0][0]) for cell in _matlab(path.with_name("AllImages_release.mat"), "AllImages_release")]
    mos = _matlab(path, "AllMOS_release").ravel()
    std = _matlab(path.with_name("AllStdDev_release.mat"), "AllStdDev_release").ravel()
    rows = tuple((n, f"{m!r}", f"{s!r}") for n, m, s in zip(names, mos.tolist(), std.tolist(), strict=True))
    return _plain(_entries(path, ("image", "mos", "std"), rows), None, None, dataset="LIVE-C")


def _live(path: Path) -> Reading:
    """LIVE release 2: realigned difference scores in the order of its five folders; undistorted images are left out."""
    dmos, std, originals = (_matlab(path, key).ravel() for key in ("dmos_new", "dmos_std", "orgs"))
    references = [str(cell[0]) for cell in _matlab(path.with_name("refnames_all.mat"), "refnames_all").ravel()]
    names = [f"{folder}/img{number}.bmp" for folder, count in _LIVE for number in range(1, count + 1)]
    if not len(names) == len(dmos) == len(originals) == len(references):
        raise DataError(f"{path} has {len(dmos)} scores where LIVE has {len(names)}. Download it again.")
    cells = zip(names, dmos.tolist(), std.tolist(), references, (name.split("/")[0] for name in names), strict=True)
    rows = tuple((n, f"{m!r}", f"{s!r}", r, d) for (n, m, s, r, d), o in zip(cells, originals, strict=True) if not o)
    table = _entries(path, ("image", "dmos", "std", "reference", "distortion"), rows)
    return _plain(table, None, None, dataset="LIVE", notes=(_NEGATED,))


def _entries(path: Path, columns: tuple[str, ...], rows: tuple[tuple[str, ...], ...], place: str = "entry") -> Table:
    """A table of what is none on disk."""
    return Table(path=path, columns=columns, rows=rows, lines=tuple(range(1, len(rows) + 1)), place=place)


def _matlab(path: Path, key: str) -> NDArray[Any]:
    from scipy.io import loadmat

    try:
        return np.asarray(loadmat(path)[key])
    except (OSError, KeyError, ValueError, NotImplementedError, TypeError) as error:
        raise DataError(f"{path} cannot be read as MATLAB file with '{key}' ({error}). Download it again.") from error


def _checked(reading: Reading) -> Reading:
    """What holds for every set, however it was distributed."""
    if reading.dataset == "LIVE-C":
        practice = [bool(re.fullmatch(r"t[1-7]\.bmp", PurePosixPath(name).name)) for name in reading.names]
        if left := sum(practice):
            rows = [row for row, is_practice in enumerate(practice) if not is_practice]
            why = f"{left} images that raters practised on (t1 to t7) are left out, as in papers"
            reading = reading.take(rows, why)
    notes = list(reading.notes)
    known = KNOWN.get(reading.dataset)
    if known and len(reading.names) not in (known.images, known.test):
        official = f" and {known.test} in its official test part" if known.test else ""
        notes.append(f"{len(reading.names)} rows; {reading.dataset} has {known.images} as distributed{official}")
    low, high = scale_of(reading.mos, (known.ranges if known else ()) + _USUAL) or (0.0, math.inf)
    # On a scale from low to high no set of ratings deviates by more than half of it (Popoviciu's inequality). KonIQ-10k
    # is passed on with its MOS, up to 100, and its SD, which is that of ratings from 1 to 5: at most 2.
    std, is_mixed = reading.std, reading.dataset == "KonIQ-10k" and high == 100
    if std is not None and (np.median(std) > (high - low) / 2 or (is_mixed and std.max() <= 2)):
        notes.append("its deviations are on another scale than its scores, and are not used")
        reading = replace(reading, std=None)
    if not reading.lower_better and _slope(reading) > 0.2:
        notes.append("its scores rise with the level of distortion: if they are better when lower, add --lower-better")
    if reading.lower_better and _slope(reading) < -0.2:
        notes.append("its scores fall with the level of distortion: they were turned before, and are not negated")
        reading = replace(reading, lower_better=False)
    return replace(reading, notes=tuple(notes))


def _slope(reading: Reading) -> float:
    """Correlation of scores with levels of distortion; 0 where levels are not known."""
    level = np.array(reading.level or (), dtype=float)
    if len(level) < 3 or np.ptp(level) == 0 or np.ptp(reading.mos) == 0:
        return 0.0
    return float(np.corrcoef(level, reading.mos)[0, 1])
