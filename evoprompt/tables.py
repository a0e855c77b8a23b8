"""CSV files that name images: rows with line numbers, columns by accepted headers, and where the images lie."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evoprompt.errors import DataError, listed

IMAGE_COLUMNS = ("image", "file_name", "name", "file", "image_name", "filename")
"""Accepted headers of the column that names an image, in order of precedence; upper and lower case are the same."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A CSV file as text.

    Attributes:
        path: The file.
        columns: The header cells, without surrounding blanks.
        rows: The cells of every row that is not empty, as many as there are columns.
        lines: The line of the file on which each row ends, counted from 1: what an editor shows.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]

    def find(self, accepted: Sequence[str]) -> int | None:
        """Position of the column whose header comes first in `accepted`, or None when there is none."""
        headers = [column.lower() for column in self.columns]
        return next((headers.index(name) for name in accepted if name in headers), None)

    def require(self, accepted: Sequence[str], what: str) -> int:
        """Like `find`, for a column that must be there.

        Args:
            accepted: Lower-case headers in order of precedence.
            what: What the column holds, for the message ("the human score").

        Raises:
            DataError: No column has an accepted header.
        """
        position = self.find(accepted)
        if position is None:
            others = ", ".join(f"'{name}'" for name in accepted[1:])
            raise DataError(
                f"{self.path} has no column '{accepted[0]}' (or {others}); found: {', '.join(self.columns)}. "
                f"Rename the column that holds {what}."
            )
        return position

    def image_names(self) -> list[str]:
        """The image column, row by row.

        Raises:
            DataError: No image column, no rows, or rows without a name.
        """
        position = self.require(IMAGE_COLUMNS, "the image's file name")
        if not self.rows:
            raise DataError(f"{self.path} has a header but no rows; one row per image is expected. Add the images.")
        names = [row[position] for row in self.rows]
        unnamed = [f"line {line}" for name, line in zip(names, self.lines, strict=True) if not name]
        if unnamed:
            raise DataError(f"{self.path} has {len(unnamed)} rows that name no image: {listed(unnamed)}. Remove them.")
        return names


def read_table(path: Path) -> Table:
    """Reads a comma-separated file with a header, UTF-8 with or without a byte order mark.

    Raises:
        DataError: The file is missing, not text, empty, or has rows with another number of cells than the header.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.reader(handle)
            numbered = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Name a CSV file with a header.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a UTF-8 CSV file ({error}). Save it as comma-separated UTF-8 text.") from error
    numbered = [(line, cells) for line, cells in numbered if any(cells)]
    if not numbered:
        raise DataError(f"{path} is empty; a header and one row per image are expected. Fill it or name another file.")
    header, body = numbered[0][1], numbered[1:]
    ragged = [f"line {line} has {len(cells)}" for line, cells in body if len(cells) != len(header)]
    if ragged:
        raise DataError(
            f"{path} has {len(ragged)} rows without the header's {len(header)} cells: {listed(ragged)}. "
            "Quote cells that hold commas."
        )
    rows, lines = tuple(tuple(cells) for _, cells in body), tuple(line for line, _ in body)
    return Table(path=path, columns=tuple(header), rows=rows, lines=lines)


def image_folders(table: Path, images: Path | None = None) -> tuple[Path, ...]:
    """Where the images of a CSV are looked for: in `images` when given, else beside the CSV and in `images/` there."""
    return (images,) if images is not None else (table.parent, table.parent / "images")


def locate(name: str, folders: Sequence[Path]) -> Path:
    """Path of the image `name` in the first folder that has it; in the first folder when none has."""
    return next((folder / name for folder in folders if (folder / name).is_file()), folders[0] / name)
