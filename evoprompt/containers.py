"""Where images lie: folders, tar files, Parquet files and Hugging Face data sets; list them, and read one.

An image inside something has a path, too, so that the rest of the package need not care:

=================================  =====================================================================
``shard-07.tar/51200-48211/a.jpg``  bytes 51200 to 51200 + 48211 of a tar file, where its member a.jpg lies
``train.parquet/image/17``          row 17 of a column of a Parquet file
``hf:beans:train:image/17``         row 17 of a column of a Hugging Face data set
=================================  =====================================================================
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from evoprompt.errors import DataError, listed

SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".jp2"),
    *(".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"),
)
"""Kinds of files that are images when they lie in a folder or a tar file."""

UNDECODED = (".heic", ".heif", ".jxl")
"""Kinds that are images too, but that Pillow cannot decode: they are reported, not passed over."""

HUB = "hf:"
"""How the name of a Hugging Face data set begins."""

_READING = Lock()  # a Parquet file has one reader, which threads must not share at the same time
_HOW = f"Write it as {HUB}ID_OR_FOLDER, or with more words as {HUB}ID_OR_FOLDER:SPLIT:COLUMN:CONFIGURATION"


def expanded(source: Path) -> Iterator[Path]:
    """A source, or those that it stands for: ``shard-{000..127}.tar``, or the lines of a text file."""
    if source.suffix.lower() == ".txt" and source.is_file():
        for line in map(str.strip, source.read_text(encoding="utf-8-sig").splitlines()):
            if line:
                yield from _numbered(Path(line) if line.startswith(HUB) else source.parent / line)
    else:
        yield from _numbered(source)


def _numbered(source: Path) -> Iterator[Path]:
    numbers = re.search(r"\{(\d+)\.\.(\d+)\}", str(source))
    if numbers is None or source.exists():
        yield source
        return
    first, last = numbers.groups()
    for number in range(int(first), int(last) + 1):
        yield Path(str(source).replace(numbers[0], f"{number:0{len(first)}d}", 1))


def folder_images(folder: Path) -> Iterator[tuple[str, Path]]:
    """Images in a folder, to any depth, in no particular order; nothing is held in memory but the folders visited.

    Links to folders are followed, each folder once. Names that begin with a dot are passed over: they are thumbnails
    and caches.

    Yields:
        The path below the folder, with slashes, and the path.

    Raises:
        DataError: A folder cannot be listed.
    """
    kinds = (*SUFFIXES, *UNDECODED)
    waiting, visited = [str(folder)], set()
    while waiting:
        parent = waiting.pop()
        real = os.path.realpath(parent)
        if real in visited:
            continue
        visited.add(real)
        try:
            with os.scandir(parent) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        waiting.append(entry.path)
                    elif entry.name.lower().endswith(kinds):
                        path = Path(entry.path)
                        yield path.relative_to(folder).as_posix(), path
        except OSError as error:
            raise DataError(
                f"folder {parent} cannot be listed ({error.strerror}). Grant access or name another."
            ) from error


def tar_images(path: Path) -> Iterator[tuple[str, Path]]:
    """Images in an uncompressed tar file, such as a WebDataset shard, in its order; it is read once and not unpacked.

    Yields:
        The member's name after that of the file, and its path.

    Raises:
        DataError: The file is missing, compressed, cut short or no tar file.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                hidden = Path(member.name).name.startswith(".")
                if member.isreg() and not hidden and member.name.lower().endswith((*SUFFIXES, *UNDECODED)):
                    place = f"{member.offset_data}-{member.size}"
                    yield f"{path.name}/{member.name}", path / place / Path(member.name).name
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps all it has seen
    except (OSError, tarfile.TarError) as error:
        raise DataError(
            f"{path} cannot be read as a tar file ({error}); accepted are uncompressed tar files, in which an image "
            "can be found without reading what lies before it. Pack it again, without compression."
        ) from error


def parquet_images(path: Path, column: str) -> Iterator[tuple[str, Path]]:
    """Rows of a Parquet file that hold the images themselves, by row number."""
    from pyarrow import parquet

    for row in range(parquet.ParquetFile(path).metadata.num_rows):
        yield f"{column}/{row}", path / column / str(row)


def hub_images(source: str) -> Iterator[tuple[str, Path]]:
    """Rows of a Hugging Face data set, by row number; images are not decoded.

    Args:
        source: ``hf:ID_OR_FOLDER[:SPLIT[:COLUMN[:CONFIGURATION]]]``. Split and column may be left out when there is
            only one.

    Raises:
        DataError: The data set cannot be opened, or the split or column is not there or has to be chosen.
    """
    full, rows = _opened(source)
    for row in range(len(rows)):
        yield f"{row:08d}", Path(f"{full}/{row}")


@lru_cache(maxsize=4)
def _opened(source: str) -> tuple[str, Any]:
    """The full name of a data set, and its rows with images as they are stored."""
    from datasets import Dataset, DatasetDict, Image, load_dataset, load_from_disk
    from datasets.exceptions import DatasetsError

    name, split, column, configuration = (*source.removeprefix(HUB).split(":"), "", "", "", "")[:4]
    if not name:
        raise DataError(f"'{source}' names no data set. {_HOW}.")
    folder = Path(name)
    saved = any((folder / file).is_file() for file in ("state.json", "dataset_dict.json"))
    try:
        parts = load_from_disk(name) if saved else load_dataset(name, configuration or None)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"data set '{name}' cannot be opened: {reason}. {_HOW}.") from error
    parts = {"": parts} if isinstance(parts, Dataset) else dict(parts)
    assert isinstance(parts, dict | DatasetDict)
    split = _chosen(split, list(parts), f"data set '{name}'", "split")
    features = parts[split].features
    images = [key for key, feature in features.items() if isinstance(feature, Image)]
    column = _chosen(column, images if not column else list(features), f"data set '{name}'", "image column")
    try:
        rows = parts[split].select_columns([column]).cast_column(column, Image(decode=False))
    except (RuntimeError, TypeError, ValueError) as error:  # as pyarrow's own are
        others = f"columns of images are: {listed(images, 10) or 'none'}"
        raise DataError(f"column '{column}' of data set '{name}' holds no images; {others}. {_HOW}.") from error
    where = folder.resolve().as_posix() if folder.exists() else name
    full = HUB + ":".join([where, split, column, *([configuration] if configuration else [])])
    return full, rows


def _chosen(wanted: str, there: list[str], where: str, what: str) -> str:
    if wanted in there:
        return wanted
    if not wanted and len(there) == 1:
        return there[0]
    problem = f"no {what} '{wanted}'" if wanted else f"{len(there)} {what}s, and none was named"
    raise DataError(f"{where} has {problem}; there are: {listed(there, 10) or 'none'}. {_HOW}.")


def content(path: Path) -> bytes:
    """The bytes of an image, wherever it lies.

    Raises:
        OSError: It is not there or cannot be read.
    """
    if is_hub(path):
        source, row = path.as_posix().rsplit("/", 1)
        return _cell(_opened(source)[1][int(row)])
    container = _container(path)
    if container is None:
        return path.read_bytes()
    if container.suffix.lower() == ".tar":
        start, size = path.relative_to(container).parts[0].split("-")
        with container.open("rb") as file:
            file.seek(int(start))
            return file.read(int(size))
    column, row = path.relative_to(container).parts
    return _parquet_row(container, column, int(row))


def is_hub(path: Path) -> bool:
    """Whether a path is that of a Hugging Face data set, or of an image in one."""
    return str(path).startswith(HUB)


def exists(path: Path) -> bool:
    """Whether the file is there in which an image lies; of a data set, whether it can be opened."""
    if is_hub(path):
        return bool(_opened(path.as_posix().rsplit("/", 1)[0]))
    return os.path.isfile(_container(path) or path)  # unlike Path.is_file, no error where a name is too long


def locate(name: str, folders: Sequence[Path]) -> Path:
    """Path of the image `name` in the first folder that has it; in the first folder when none has."""
    return next((folder / name for folder in folders if exists(folder / name)), folders[0] / name)


def stamp(path: Path) -> str:
    """A text that changes with the file in which an image lies: its size and time of change; empty where not known."""
    if is_hub(path):
        return str(_opened(path.as_posix().rsplit("/", 1)[0])[1]._fingerprint)
    try:
        about = (_container(path) or path).stat()
    except OSError:
        return ""
    return f"{about.st_size}-{about.st_mtime_ns}" if str(path).isprintable() else ""


def absolute(path: Path) -> Path:
    """The path from the root of the file system; names of data sets stay as they are."""
    return path if is_hub(path) else Path(os.path.abspath(path))


def _container(path: Path) -> Path | None:
    """The tar or Parquet file that an image lies in, by the shape of its path."""
    for parent in list(path.parents)[:2]:
        if parent.suffix.lower() in (".tar", ".parquet") and os.path.isfile(parent):
            return parent
    return None


def _parquet_row(path: Path, column: str, row: int) -> bytes:
    file = _parquet_file(path)
    for group in range(file.metadata.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        if row < size:
            with _READING:
                return _cell({column: _parquet_group(path, column, group)[row].as_py()})
        row -= size
    raise FileNotFoundError(2, "No such row", str(path))


@lru_cache(maxsize=4)
def _parquet_file(path: Path) -> Any:
    from pyarrow import parquet

    return parquet.ParquetFile(path)


@lru_cache(maxsize=2)
def _parquet_group(path: Path, column: str, group: int) -> Any:
    return _parquet_file(path).read_row_group(group, columns=[column])[column]


def _cell(row: dict[str, Any]) -> bytes:
    """Bytes of an image as data sets store it: bytes, or a mapping with bytes or with a path."""
    (cell,) = row.values()
    if isinstance(cell, dict):
        if cell.get("bytes") is not None:
            return bytes(cell["bytes"])
        cell = Path(cell["path"]).read_bytes() if cell.get("path") else None
    if cell is None:
        raise FileNotFoundError(2, "No such file or directory")
    return bytes(cell)
