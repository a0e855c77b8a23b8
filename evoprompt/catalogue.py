"""An index of images on disk: any number of records in the memory of a few thousand."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, overload
from uuid import uuid4

import numpy as np
import pyarrow
from numpy.typing import NDArray
from pyarrow import parquet

GROUP = 4096
"""Records that are read and written at a time."""

_SCHEMA = pyarrow.schema(
    [
        ("name", pyarrow.string()),
        ("sha256", pyarrow.string()),
        ("width", pyarrow.int64()),
        ("height", pyarrow.int64()),
        ("reference", pyarrow.string()),
        ("path", pyarrow.string()),
    ]
)


_FACTS = ("sha256", "width", "height")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRecord:
    """One image that was decoded once.

    Attributes:
        path: Where it lies; inside a tar file, a Parquet file or a data set, see `containers`.
        name: How tables call it: relative to the folder it was found in, or as its table writes it.
        sha256: Hash of the file's bytes, 64 hex digits.
        width: Pixels, after the EXIF orientation was applied.
        height: Pixels, likewise.
        reference: Key of the reference image that this is a distorted copy of, see `naming.reference_of`, or "".
    """

    path: Path
    name: str
    sha256: str
    width: int
    height: int
    reference: str = ""

    @property
    def keys(self) -> tuple[str, ...]:
        """What a prompt that has seen this image remembers: its content, and the reference image if there is one."""
        return (self.sha256, self.reference) if self.reference else (self.sha256,)


class Catalogue(Sequence[ImageRecord]):
    """Records in a Parquet file, read a few thousand at a time.

    Args:
        path: A file that `write_catalogue` wrote, or the ``images.parquet`` of a run.
        rows: Which rows of the file count, ascending; None = all.
    """

    def __init__(self, path: Path, rows: NDArray[np.int64] | None = None) -> None:
        self.path = path
        self._file = parquet.ParquetFile(path)
        self._columns = [name for name in _SCHEMA.names if name in self._file.schema_arrow.names]
        groups = self._file.metadata
        sizes = [groups.row_group(index).num_rows for index in range(groups.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self._rows = rows
        # Training asks in random order: a few groups are kept, whatever the number of images.
        self._group = lru_cache(maxsize=8)(self._read)

    def __len__(self) -> int:
        return int(self._starts[-1]) if self._rows is None else len(self._rows)

    @overload
    def __getitem__(self, place: int) -> ImageRecord: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[ImageRecord, ...]: ...
    def __getitem__(self, place: int | slice) -> ImageRecord | tuple[ImageRecord, ...]:
        if isinstance(place, slice):
            return tuple(self[index] for index in range(*place.indices(len(self))))
        if not -len(self) <= place < len(self):
            raise IndexError(f"image {place} of {len(self)}")
        place %= len(self)
        row = place if self._rows is None else int(self._rows[place])
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        return _record(self._group(group).slice(row - int(self._starts[group]), 1).to_pylist()[0])

    def __iter__(self) -> Iterator[ImageRecord]:
        for group, (start, end) in enumerate(pairwise(self._starts.tolist())):
            wanted = range(start, end)
            if self._rows is not None:
                first, last = np.searchsorted(self._rows, (start, end))
                wanted = self._rows[first:last].tolist()
            cells = self._read(group).to_pylist()
            for row in wanted:
                yield _record(cells[row - start])

    def _read(self, group: int) -> Any:
        return self._file.read_row_group(group, columns=self._columns)


def _record(cells: dict[str, Any]) -> ImageRecord:
    return ImageRecord(**{**cells, "path": Path(cells["path"])})


def write_catalogue(
    path: Path, records: Iterable[ImageRecord], extra: Mapping[str, Iterable[str]] | None = None
) -> None:
    """Writes records to a Parquet file, a few thousand at a time; the file appears whole or not at all.

    After an exception or Ctrl-C, `unfinished` is a readable file of what had been written until then. Of several
    processes that write the same file the last one counts.

    Args:
        path: The file.
        records: In order.
        extra: More columns by name, each with one text a record.
    """
    columns = {name: iter(values) for name, values in (extra or {}).items()}
    schema = pyarrow.schema([*_SCHEMA, *((name, pyarrow.string()) for name in columns)])
    own, becomes = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp"), unfinished(path)
    writer = parquet.ParquetWriter(own, schema)
    try:
        with writer:
            for group in _groups(records):
                cells: dict[str, list[Any]] = {key: [getattr(r, key) for r in group] for key in _SCHEMA.names[:-1]}
                cells["path"] = [str(record.path) for record in group]
                cells |= {name: [next(values) for _ in group] for name, values in columns.items()}
                writer.write_table(pyarrow.table(cells, schema=schema))
        becomes = path
    finally:
        os.replace(own, becomes)
    unfinished(path).unlink(missing_ok=True)


def unfinished(path: Path) -> Path:
    """What `write_catalogue` leaves of a file that it did not finish."""
    return path.with_name(f".{path.name}.tmp")


def _groups(records: Iterable[ImageRecord]) -> Iterator[list[ImageRecord]]:
    group: list[ImageRecord] = []
    for record in records:
        group.append(record)
        if len(group) == GROUP:
            yield group
            group = []
    if group:
        yield group


def cache_folder() -> Path:
    """Where files are kept that can be made again; it need not exist yet."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("EVOPROMPT_CACHE") or caches / "evoprompt")


def index_file(sources: Sequence[Path]) -> Path | None:
    """Where the index of these sources is kept between commands.

    It lies in the folder that ``EVOPROMPT_CACHE`` names, else in ``evoprompt`` below ``XDG_CACHE_HOME`` or
    ``~/.cache``. It may be deleted at any time: then all images are decoded once more.

    Returns:
        The file, which need not exist yet; None when nothing can be written there.
    """
    folder = cache_folder()
    names = "\n".join(os.path.abspath(source) for source in sources)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    name = hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()[:16]
    return folder / f"images-{name}.parquet" if os.access(folder, os.W_OK) else None


class Known:
    """What an earlier index says of files that have not changed since, looked up on disk.

    Args:
        index: The index; it may be missing, then nothing is known. What an interrupted indexing left counts, too.
    """

    def __init__(self, index: Path | None) -> None:
        # An unnamed database spills to a temporary file that vanishes with it.
        self._table = sqlite3.connect("")
        self._table.execute("CREATE TABLE known (path TEXT PRIMARY KEY, stamp, sha256, width, height)")
        for file in [] if index is None else [index, unfinished(index)]:
            self._learn(file)

    def _learn(self, file: Path) -> None:
        try:
            batches = parquet.ParquetFile(file).iter_batches(GROUP)
        except (OSError, pyarrow.ArrowInvalid):
            return  # not there yet, or killed before its end was written
        for batch in batches:
            rows = zip(*(batch[key].to_pylist() for key in ("path", "stamp", *_FACTS)), strict=True)
            self._table.executemany("INSERT OR REPLACE INTO known VALUES (?, ?, ?, ?, ?)", rows)

    def __call__(self, name: str, path: Path, reference: str, stamp: str) -> ImageRecord | None:
        """The record of a file, unless it is new or its stamp (size and time of change) is another one."""
        query = f"SELECT {', '.join(_FACTS)} FROM known WHERE path = ? AND stamp = ?"
        row = self._table.execute(query, (str(path), stamp)).fetchone()
        if row is None:
            return None
        facts = dict(zip(_FACTS, row, strict=True))
        return ImageRecord(path=path, name=name, reference=reference, **facts)


class Contents:
    """A set of content hashes, or of other texts, that lives on disk when it is large; gone through in order.

    Args:
        texts: What to begin with.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._table = sqlite3.connect("")
        self._table.execute("CREATE TABLE contents (sha256 TEXT PRIMARY KEY) WITHOUT ROWID")
        self._table.executemany("INSERT OR IGNORE INTO contents VALUES (?)", ((text,) for text in texts))

    def __iter__(self) -> Iterator[str]:
        return (text for (text,) in self._table.execute("SELECT sha256 FROM contents ORDER BY sha256"))

    def add(self, sha256: str) -> bool:
        """Adds a hash; whether it is new."""
        return self._table.execute("INSERT OR IGNORE INTO contents VALUES (?)", (sha256,)).rowcount == 1

    def fingerprint(self) -> str:
        """12 hex digits of the set, whatever the order in which it was filled."""
        digest, first = hashlib.sha256(), True
        for text in self:
            digest.update(("" if first else "\n").encode() + text.encode())
            first = False
        return digest.hexdigest()[:12]
