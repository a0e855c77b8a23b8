"""The first visible sheet of an Excel workbook as text, with the standard library: no macro, no formula, no pickle."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_LINK = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"
# A part that unpacks to more than this is no table of human scores.
_MAX_BYTES = 1 << 28


def read_sheet(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Reads the first sheet that is not hidden.

    Args:
        path: A workbook in the Office Open XML format (``.xlsx``).

    Yields:
        The number of a row, counted from 1, and its cells as text from column A on; formulas give their last value,
        cells without one give an empty text.

    Raises:
        ValueError: The file is no such workbook, or is larger than any table of scores.
        OSError: The file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as book:
            shared = _shared_texts(book)
            sheet = _part(book, _first_sheet(book))
    except (zipfile.BadZipFile, KeyError, ElementTree.ParseError) as error:
        raise ValueError(f"not an Excel workbook in the .xlsx format: {error}") from error
    for position, row in enumerate(sheet.iter(f"{_MAIN}row"), start=1):
        cells: list[str] = []
        for cell in row.iter(f"{_MAIN}c"):
            column = _column(cell.get("r", ""), len(cells))
            cells += [""] * (column - len(cells)) + [_text(cell, shared)]
        yield int(row.get("r", position)), cells


def _part(book: zipfile.ZipFile, name: str) -> ElementTree.Element:
    if book.getinfo(name).file_size > _MAX_BYTES:
        raise ValueError(f"its part {name} unpacks to more than {_MAX_BYTES >> 20} MiB")
    content = book.read(name)
    if b"<!DOCTYPE" in content[:1024]:
        raise ValueError(f"its part {name} declares entities, which Excel never does")
    return ElementTree.fromstring(content)


def _first_sheet(book: zipfile.ZipFile) -> str:
    sheets = _part(book, "xl/workbook.xml").iter(f"{_MAIN}sheet")
    visible = next((sheet for sheet in sheets if sheet.get("state", "visible") == "visible"), None)
    if visible is None:
        raise ValueError("it has no visible sheet")
    for link in _part(book, "xl/_rels/workbook.xml.rels"):
        if link.get("Id") == visible.get(_LINK):
            target = link.get("Target", "")
            return target[1:] if target.startswith("/") else f"xl/{target}"
    raise ValueError("its first sheet has no part")


def _shared_texts(book: zipfile.ZipFile) -> list[str]:
    if "xl/sharedStrings.xml" not in book.namelist():
        return []
    return [_runs(item) for item in _part(book, "xl/sharedStrings.xml").iter(f"{_MAIN}si")]


def _runs(item: ElementTree.Element) -> str:
    """Text of an item: its own or that of its formatted runs, not the reading aid that Asian scripts may carry."""
    return "".join(text.text or "" for text in [*item.findall(f"{_MAIN}t"), *item.findall(f"{_MAIN}r/{_MAIN}t")])


def _column(reference: str, after: int) -> int:
    letters = re.match(r"[A-Z]+", reference)
    if letters is None:
        return after
    number = 0
    for letter in letters[0]:
        number = 26 * number + ord(letter) - ord("A") + 1
    return number - 1


def _text(cell: ElementTree.Element, shared: list[str]) -> str:
    inline = cell.find(f"{_MAIN}is")
    if inline is not None:
        return _runs(inline)
    value = cell.findtext(f"{_MAIN}v")
    if value is None:
        return ""
    return shared[int(value)] if cell.get("t") == "s" else value
