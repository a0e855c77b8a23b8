"""Sets with human scores, each cut once into images to learn from and images to test on, for the measuring scripts.

The folder DATA that the scripts take holds biq2021/, avt_h265/ and kadis100/, each with images/ and mos.csv (columns
file, mos; avt_h265 also source and std).
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

TEST_SHARE = 0.4


@dataclass(frozen=True)
class HumanSet:
    """A set: images of one `group` (a column) are never split; `edge` is the side all images are scaled to, px."""

    name: str
    group: str = ""
    edge: int = 0


SETS = {s.name: s for s in (HumanSet("biq2021"), HumanSet("avt_h265", "source", 432), HumanSet("kadis100"))}


@dataclass(frozen=True)
class Parts:
    """Where the parts of a set lie: images without scores, the same with scores, and the test part."""

    unlabeled: Path
    train: Path
    test: Path


def is_test(key: bytes) -> bool:
    """Whether what this key stands for is tested on: a fixed share of all contents, decided by content alone."""
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") < TEST_SHARE * 2**64


def scaled(path: Path, edge: int) -> bytes:
    """An image as a PNG of `edge` x `edge` pixels."""
    content = io.BytesIO()
    Image.open(path).convert("RGB").resize((edge, edge), Image.Resampling.BICUBIC).save(content, "PNG")
    return content.getvalue()


def put(path: Path, content: bytes) -> None:
    """Write a file that nobody ever sees half written."""
    draft = path.parents[1] / f"{os.getpid()}-{path.name}"
    draft.write_bytes(content)
    draft.replace(path)


def cut(data: Path, chosen: HumanSet, work: Path, validation: bool = False) -> Parts:
    """Copy the images of a set into a training and a test folder, each with its scores beside.

    An image is a test image by the hash of its content or, where the set has sources, of its source's name. What is
    there already stays, and files appear whole, so that several processes can share the folder.

    Args:
        data: see the top of this file.
        chosen: the set.
        work: where the copies go, into a folder with the set's name.
        validation: leave the test images out and cut the others once more, to choose settings by. Another `work`!
    """
    with (data / chosen.name / "mos.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = [column for column in ("mos", "std", chosen.group) if column in rows[0]]
    header = ["image", *("reference" if column == chosen.group else column for column in columns)]
    kept: dict[str, list[list[str]]] = {"train": [], "test": []}
    for part in kept:
        (work / chosen.name / part / "images").mkdir(parents=True, exist_ok=True)
    for row in rows:
        source = data / chosen.name / "images" / row["file"]
        key = row[chosen.group].encode() if chosen.group else source.read_bytes()
        if validation and is_test(key):
            continue
        part = "test" if is_test(b"validation" * validation + key) else "train"
        flat = Path(row["file"].replace("/", "_"))
        flat = flat.with_suffix(".png") if chosen.edge else flat
        target = work / chosen.name / part / "images" / flat
        if not target.is_file():
            put(target, scaled(source, chosen.edge) if chosen.edge else source.read_bytes())
        kept[part].append([str(flat), *(row[column] for column in columns)])
    for part, lines in kept.items():
        text = io.StringIO(newline="")
        csv.writer(text).writerows([header, *lines])
        put(work / chosen.name / part / "mos.csv", text.getvalue().encode())
    folder = work / chosen.name
    return Parts(folder / "train" / "images", folder / "train" / "mos.csv", folder / "test" / "mos.csv")


def whole(parts: Parts, path: Path, limit: int = 0) -> Path:
    """Write one table of both parts of a set, with a column `split`; images are named from the table's folder on.

    With a limit, only so many images: those whose names have the smallest hashes.
    """
    lines: list[dict[str, str]] = []
    for split, labels in (("train", parts.train), ("test", parts.test)):
        with labels.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                image = labels.parent / "images" / row["image"]
                lines.append({**row, "image": image.relative_to(path.parent).as_posix(), "split": split})
    lines.sort(key=lambda row: hashlib.sha256(row["image"].encode()).digest())
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines[: limit or None])
    return path
