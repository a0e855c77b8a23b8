"""Tables that name images: CSV, JSONL, JSON, Parquet and Excel, all as text, with the place of every row."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

from evoprompt.errors import DataError, counted, listed
from evoprompt.spreadsheets import read_sheet

IMAGE_COLUMNS = (
    *("image", "file_name", "name", "file", "image_name", "filename"),
    *("img_name", "dist_name", "dist_img", "img_path", "image_path", "dis_img_path", "img_name/patch_name"),
)
"""Accepted headers of the column that names an image, in order of precedence; upper and lower case are the same."""

REFERENCE_COLUMNS = ("reference", "ref_name", "ref_img", "ref_img_path", "hq_name", "ref", "source")
"""Accepted headers of the undistorted image that an image was made from."""

TABLES = (".csv", ".jsonl", ".json", ".parquet", ".xlsx")
"""Kinds of files that are tables."""

_PICKLES = (".pkl", ".pickle", ".npy", ".npz", ".pt", ".pth", ".bin")

_Rows = Iterator[tuple[int, list[str]]]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table as text.

    Attributes:
        path: The file.
        columns: The header cells, without surrounding blanks.
        rows: The cells of every row that is not empty, as many as there are columns.
        lines: Where each row is, counted from 1: what an editor shows.
        place: What `lines` counts: "line" of a text file, "row" of a sheet, "item" of a list.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]
    place: str = "line"

    def find(self, accepted: Sequence[str]) -> int | None:
        """Position of the column whose header comes first in `accepted`, or None when there is none.

        Raises:
            DataError: Two columns have that header.
        """
        return _find(self.path, self.columns, accepted)

    def require(self, accepted: Sequence[str], what: str) -> int:
        """Like `find`, for a column that must be there.

        Args:
            accepted: Lower-case headers in order of precedence.
            what: What the column holds, for the message ("the human score").

        Raises:
            DataError: No column has an accepted header, or two have the first that is there.
        """
        return _require(self.path, self.columns, accepted, what)

    def has(self, *headers: str) -> bool:
        """Whether all these lower-case headers are there."""
        return set(headers) <= {column.lower() for column in self.columns}

    def cells(self, position: int) -> tuple[str, ...]:
        """One column, row by row."""
        return tuple(row[position] for row in self.rows)

    def where(self, row: int) -> str:
        """Where a row, counted from 0, is in the file: "line 7"."""
        return f"{self.place} {self.lines[row]}"

    def image_names(self) -> list[str]:
        """The image column, row by row.

        Raises:
            DataError: No image column, no rows, or rows without a name.
        """
        position = self.require(IMAGE_COLUMNS, "the image's file name")
        names = list(self.cells(position))
        _complain_unnamed(self.path, len(names), [self.where(row) for row, name in enumerate(names) if not name])
        return names


def read_table(path: Path) -> Table:
    """Reads a table as text.

    - CSV: comma-separated, with a header, UTF-8 with or without a byte order mark; any other suffix is read so, too.
    - JSONL: one object a line. JSON: a list of objects, or an object of objects by image name. The columns are all
      keys that occur; what is not there is an empty text, what is nested stays JSON.
    - Parquet: images in it are given by their place, see `containers`.
    - Excel (.xlsx): the first visible sheet; empty columns and rows before the header are passed over.

    Raises:
        DataError: The file is missing, not what its suffix says, empty, has rows with another number of cells than the
            header, or is a pickle, which may run code when opened.
    """
    columns, rows, place = _open(path)
    numbered = [(line, cells) for line, cells in rows if any(cells)]
    ragged = [f"{place} {line} has {len(cells)}" for line, cells in numbered if len(cells) != len(columns)]
    _complain_ragged(path, columns, ragged)
    texts, lines = tuple(tuple(cells) for _, cells in numbered), tuple(line for line, _ in numbered)
    return Table(path=path, columns=columns, rows=texts, lines=lines, place=place)


def image_rows(path: Path) -> Iterator[tuple[str, str]]:
    """Image and reference image of a table, row by row, without holding the table in memory (CSV, JSONL, Parquet).

    Yields:
        The image's name and the cell of the first of `REFERENCE_COLUMNS`, empty where there is none.

    Raises:
        DataError: As `read_table` and `Table.image_names`; problems of rows come at the end, all at once.
    """
    columns, rows, place = _open(path)
    position = _require(path, columns, IMAGE_COLUMNS, "the image's file name")
    reference = _find(path, columns, REFERENCE_COLUMNS)
    ragged, unnamed, count = [], [], 0
    for line, cells in rows:
        if len(cells) != len(columns):
            ragged += [f"{place} {line} has {len(cells)}"] if any(cells) else []
        elif any(cells):
            count += 1
            if cells[position]:
                yield cells[position], "" if reference is None else cells[reference]
            else:
                unnamed.append(f"{place} {line}")
    _complain_ragged(path, columns, ragged)
    _complain_unnamed(path, count, unnamed)


def match_images(table: Path, rows: Sequence[str], names: Sequence[str], paths: Sequence[Path]) -> list[int | None]:
    """Which row of a table each image has: by name, then by path, then by file name where that is unique on both sides.

    Args:
        table: The file, for messages.
        rows: What its rows call images, each once.
        names: What the images are called elsewhere.
        paths: Where they lie; as many.

    Raises:
        DataError: Several of the images share a file name, and only by that a row could be theirs.
    """
    exact = {name: row for row, name in enumerate(rows)}
    places = {str(Path(name).resolve()): row for row, name in enumerate(rows)}
    once, shared = Counter(Path(name).name for name in rows), Counter(path.name for path in paths)
    last = {Path(name).name: row for row, name in enumerate(rows) if once[Path(name).name] == 1}
    found: list[int | None] = []
    unclear = []
    for name, path in zip(names, paths, strict=True):
        row = exact.get(name, places.get(str(path.resolve())))
        if row is None and path.name in last:
            unclear += [name] if shared[path.name] > 1 else []
            row = last[path.name]
        found.append(row)
    if unclear:
        raise DataError(
            f"{table} has rows for images by file names that several images share: {listed(unclear)}. Call them there "
            "as the labels do, folder included."
        )
    return found


def image_folders(table: Path, images: Path | None = None) -> tuple[Path, ...]:
    """Where the images of a table are looked for: in `images` when given, else beside the table and in `images/` there.

    A Parquet file may hold them itself.
    """
    if images is not None:
        return (images,)
    own = (table,) if table.suffix.lower() == ".parquet" else ()
    return (table.parent, table.parent / "images", *own)


def embedded_column(path: Path) -> str | None:
    """Name of the column of a Parquet file that holds the images themselves, as Hugging Face writes them, if any."""
    import pyarrow
    from pyarrow import parquet

    for field in parquet.read_schema(path):
        struct = pyarrow.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
        if struct or pyarrow.types.is_binary(field.type) or pyarrow.types.is_large_binary(field.type):
            return str(field.name)
    return None


def headers(path: Path) -> tuple[str, ...]:
    """The header cells of a table, without its rows.

    Raises:
        DataError: As `read_table`, of the header.
    """
    return _open(path)[0]


def reference_cells(path: Path) -> Iterator[str]:
    """Reference images of a Parquet file that holds images, row by row: empty texts where no column tells."""
    from pyarrow import parquet

    file = parquet.ParquetFile(path)
    names = file.schema_arrow.names
    position = _find(path, names, REFERENCE_COLUMNS)
    if position is None:
        yield from repeat("", file.metadata.num_rows)
        return
    for batch in file.iter_batches(columns=[names[position]]):
        yield from map(_as_text, batch[0].to_pylist())


def _open(path: Path) -> tuple[tuple[str, ...], _Rows, str]:
    """Columns, rows to come, and what counts them."""
    kind = path.suffix.lower()
    if kind in _PICKLES:
        raise DataError(
            f"{path} is a {kind} file, which may run code when it is opened, and is not read. Use a table instead "
            "(for splits of pyiqa: the columns official_split and ratio802_... of its meta_info CSV)."
        )
    if kind == ".xls":
        raise DataError(f"{path} is an old Excel workbook; accepted is .xlsx. Save it as .xlsx or as CSV.")
    try:
        columns, rows = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet, ".xlsx": _xlsx}.get(kind, _csv)(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Name a table of images, such as a CSV.") from error
    if not columns:
        raise DataError(f"{path} is empty; a header and one row per image are expected. Fill it or name another file.")
    return columns, rows, {".xlsx": "row", ".json": "item", ".parquet": "row"}.get(kind, "line")


def _csv(path: Path) -> tuple[tuple[str, ...], _Rows]:
    def rows() -> _Rows:
        try:
            with path.open(encoding="utf-8-sig", newline="") as handle:
                reader = csv.reader(handle)
                for cells in reader:
                    yield reader.line_num, [cell.strip() for cell in cells]
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(
                f"{path} is not a UTF-8 CSV file ({error}). Save it as comma-separated UTF-8 text."
            ) from error

    numbered = rows()
    return next((tuple(cells) for _, cells in numbered if any(cells)), ()), numbered


def _jsonl(path: Path) -> tuple[tuple[str, ...], _Rows]:
    def objects() -> Iterator[tuple[int, dict[str, Any]]]:
        with path.open(encoding="utf-8-sig") as handle:
            for number, line in enumerate(handle, start=1):
                if line.strip():
                    yield number, _object(path, f"line {number}", _parsed(path, line, f"line {number}"))

    return _keyed(objects)


def _json(path: Path) -> tuple[tuple[str, ...], _Rows]:
    body = _parsed(path, path.read_text(encoding="utf-8-sig", errors="replace"), "the file")
    if isinstance(body, dict):
        named = [{"image": name, **_object(path, f"item {name}", item)} for name, item in body.items()]
    elif isinstance(body, list):
        named = [_object(path, f"item {number}", item) for number, item in enumerate(body, start=1)]
    else:
        raise DataError(f"{path} is no list of objects, one per image. Name another file.")
    return _keyed(lambda: iter(enumerate(named, start=1)))


def _parsed(path: Path, text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {where}: {error}. Correct it, or name another file.") from error


def _object(path: Path, where: str, item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise DataError(f"{path} {where} is no object with the keys of an image. Correct it, or name another file.")
    return item


def _keyed(objects: Callable[[], Iterator[tuple[int, dict[str, Any]]]]) -> tuple[tuple[str, ...], _Rows]:
    """Columns and rows of objects, which are gone through twice: once for their keys."""
    columns = tuple(dict.fromkeys(key for _, item in objects() for key in item))
    return columns, ((line, [_as_text(item.get(column)) for column in columns]) for line, item in objects())


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return value.strip() if isinstance(value, str) else json.dumps(value)


def _parquet(path: Path) -> tuple[tuple[str, ...], _Rows]:
    import pyarrow
    from pyarrow import parquet

    try:
        file, inside = parquet.ParquetFile(path), embedded_column(path)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path} is no Parquet file ({error}). Name another file.") from error
    columns = tuple(str(name) for name in file.schema_arrow.names)
    others = [name for name in columns if name != inside]

    def rows() -> _Rows:
        line = 0
        for batch in file.iter_batches(columns=others) if others else ():
            for item in batch.to_pylist():
                line += 1
                yield line, [f"{inside}/{line - 1}" if key == inside else _as_text(item[key]) for key in columns]

    return columns, rows()


def _xlsx(path: Path) -> tuple[tuple[str, ...], _Rows]:
    try:
        numbered = [(row, [cell.strip() for cell in cells]) for row, cells in read_sheet(path) if any(cells)]
    except ValueError as error:
        raise DataError(f"{path} cannot be read as Excel: {error}. Save it as CSV.") from error
    header = numbered[0][1] if numbered else []
    used = [position for position, cell in enumerate(header) if cell]
    widest = max(used, default=-1) + 1
    body = ((row, [*cells, *[""] * widest]) for row, cells in numbered[1:])
    return tuple(header[k] for k in used), ((row, [cells[k] for k in used]) for row, cells in body)


def _find(path: Path, columns: Sequence[str], accepted: Sequence[str]) -> int | None:
    there = [column.lower() for column in columns]
    name = next((name for name in accepted if name in there), None)
    if name is None:
        return None
    if there.count(name) > 1:
        raise DataError(f"{path} has {there.count(name)} columns '{name}'. Keep one, or rename the others.")
    return there.index(name)


def _require(path: Path, columns: Sequence[str], accepted: Sequence[str], what: str) -> int:
    position = _find(path, columns, accepted)
    if position is None:
        others = ", ".join(f"'{name}'" for name in accepted[1:])
        also = f" (or {others})" if others else ""
        raise DataError(
            f"{path} has no column '{accepted[0]}'{also}; found: {', '.join(columns)}. "
            f"Rename the column that holds {what}."
        )
    return position


def _complain_ragged(path: Path, columns: Sequence[str], ragged: Sequence[str]) -> None:
    if ragged:
        raise DataError(
            f"{path} has {counted(len(ragged), 'row')} without the header's {len(columns)} cells: {listed(ragged)}. "
            "Quote cells that hold commas."
        )


def _complain_unnamed(path: Path, count: int, unnamed: Sequence[str]) -> None:
    if not count:
        raise DataError(f"{path} has a header but no rows; one row per image is expected. Add the images.")
    if unnamed:
        rows = counted(len(unnamed), "row")
        raise DataError(f"{path} has {rows} without the name of an image: {listed(unnamed)}. Remove them.")
