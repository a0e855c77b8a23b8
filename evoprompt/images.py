"""Images: find them, check that every one can be decoded, hash them, read them, and fit them to the judge's input.

`read_image` is the only reader of the package, so an image looks the same wherever it is used; `fit_image` is the only
resizer. Nothing here needs torch, and nothing here knows about human scores.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import sqlite3
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import compress, count, islice, tee
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from evoprompt import containers
from evoprompt.catalogue import Catalogue, Contents, ImageRecord, Known, write_catalogue
from evoprompt.containers import SUFFIXES, UNDECODED
from evoprompt.errors import DataError, listed
from evoprompt.naming import reference_of
from evoprompt.tables import TABLES, embedded_column, image_folders, image_rows, reference_cells

FITS = ("pad", "squash", "crop", "tiles")
"""Ways to make a square input of an image; see `fit_image`."""

MAX_EDGE = 16_384
"""Longest edge of an image in pixels: `pad` and `squash` make a square of it, which then takes 1 GiB for a moment."""

MAX_ASPECT = 32
"""Longer edge by shorter edge at most: `crop` and `tiles` enlarge the shorter one, and a line would need gigabytes."""

PAD_COLOUR = (122, 116, 104)
"""What `pad` fills with: the CLIP mean colour in 8 bits, as the released checkpoints were trained."""

BACKDROP = (128, 128, 128, 255)
"""What lies under transparent pixels: mid-grey favours neither a dark nor a light drawing."""

# Naming the decoders keeps a disguised file from reaching one that runs another program (EPS starts Ghostscript).
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, RuntimeError, EOFError, struct.error)
_BICUBIC = Image.Resampling.BICUBIC
# Large images are accepted on purpose up to MAX_EDGE; beyond twice what Pillow warns of, it refuses, and so do we.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
_WORKERS = 4
_WINDOW = 256  # files that are being read or wait for it
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _Unreadable(DataError):
    """A file is no usable image; the text is only the reason, in a few words."""


def read_image(path: Path) -> Image.Image:
    """Reads one image file as 8-bit RGB, upright.

    The EXIF orientation is applied; transparency is composited over mid-grey; grey and palettes are expanded; 16-bit
    grey v becomes round(v / 257), so that the whole range is kept; CMYK is converted. Of an animation or a file with
    several pages the first frame is read. Colour profiles are ignored, as the judges' own preprocessing does.

    Args:
        path: A file of any kind in `SUFFIXES`; the content decides, not the name.

    Returns:
        A loaded image of mode RGB that holds no open file.

    Raises:
        DataError: The file is missing, empty, truncated, damaged, too large or too long, or no image at all.
    """
    try:
        return _decode(_content(path), path.suffix)
    except _Unreadable as reason:
        raise DataError(f"image {path} cannot be read ({reason}). Replace or remove it.") from reason


def _content(path: Path) -> bytes:
    try:
        return containers.content(path)
    except FileNotFoundError as error:
        raise _Unreadable("missing") from error
    except OSError as error:
        raise _Unreadable((error.strerror or "unreadable").lower()) from error


def _decode(content: bytes, suffix: str) -> Image.Image:
    if not content:
        raise _Unreadable("0 bytes")
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            _check_shape(image)
            return as_rgb(image)
    except _Unreadable:
        raise
    except UnidentifiedImageError as error:
        raise _Unreadable("no decoder" if suffix.lower() in UNDECODED else "not recognised as an image") from error
    except Image.DecompressionBombError as error:
        raise _Unreadable("more pixels than Pillow's safety limit") from error
    except _DECODE_ERRORS as error:
        raise _Unreadable("truncated" if "truncat" in str(error).lower() else "damaged") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """Converts an open image as `read_image` does: upright, transparency over mid-grey, 8-bit RGB.

    Raises:
        DataError: A colour mode whose meaning is not known (32-bit grey, LAB).
        OSError: From Pillow, when an image that was opened but not loaded is damaged.
    """
    image.load()  # first: Pillow turns TIFF files upright by itself while loading
    turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.mode not in _MODES:
        raise _Unreadable(f"colour mode {image.mode} is not supported")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, BACKDROP), image)
    rgb = image.convert("RGB")
    return rgb if turn is None else rgb.transpose(turn)


def _check_shape(image: Image.Image) -> None:
    shorter, longer = sorted(image.size)
    if longer > MAX_EDGE:
        raise _Unreadable(f"{image.width} x {image.height} pixels, edges may have {MAX_EDGE}")
    if longer > MAX_ASPECT * shorter:
        raise _Unreadable(f"{image.width} x {image.height} pixels, longer than {MAX_ASPECT} to 1")


def _eight_bits(image: Image.Image) -> Image.Image:
    # Some versions of Pillow call 16-bit PNG and PGM files "I" (32-bit) too; elsewhere "I" and "F" have no known white.
    if not image.mode.startswith("I;16") and not (image.mode == "I" and image.format in ("PNG", "PPM")):
        raise _Unreadable("32-bit grey values have no known range")
    values = np.asarray(image).astype(np.int64)
    grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is None:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))))


def fit_image(image: Image.Image, fit: str, size: int, views: int = 1) -> NDArray[np.uint8]:
    """Makes the judge's square inputs of an image; deterministic, 8 bits throughout.

    - `pad`: centred on a square of the CLIP mean colour, then bicubic to `size`. All of the image, true proportions.
    - `squash`: stretched to a square of its longer edge, then bicubic to `size`: two steps, as mPLUG-Owl2 does it.
    - `crop`: shorter edge bicubic to `size`, then the centre as torchvision cuts it. Loses the ends of long images.
    - `tiles`: pieces of `size` pixels from the centre at native scale, so that resizing hides no artefact. Only an
      image whose shorter edge is below 2 * `size` is scaled, up to that. Pieces form a block whose longer side follows
      the image's, 2 x 2 for four; they touch, or overlap evenly where the image is too short for the block.

    `pad` and `squash` equal the CLIP image processor (Pillow backend) of the released checkpoints bit for bit.

    Args:
        image: Mode RGB, any size.
        fit: One of `FITS`.
        size: Edge of the result in pixels, at least 1.
        views: How many inputs; `tiles` takes any number, the others 1 or 2 (the second is mirrored left to right).

    Returns:
        Array (views, 3, size, size), uint8 in [0, 255], red green blue.

    Raises:
        DataError: An unknown fit, a bad size or number of views, or an image of another mode or beyond the limits.
    """
    _check_fit(fit, size, views)
    if image.mode != "RGB":
        raise DataError(f"an image of mode {image.mode} cannot be fitted; accepted is RGB. Read it with read_image.")
    _check_shape(image)
    if fit == "tiles":
        return _tiles(image, size, views)
    square = {"pad": _pad, "squash": _squash, "crop": _crop}[fit](image, size)
    plain = np.asarray(square).transpose(2, 0, 1)
    return np.ascontiguousarray(np.stack([plain, plain[:, :, ::-1]][:views]))


def _check_fit(fit: str, size: int, views: int) -> None:
    if fit not in FITS:
        raise DataError(f"fit '{fit}' is unknown; accepted are {', '.join(FITS)}. Choose one of them.")
    if size < 1 or views < 1:
        raise DataError(f"size {size} and views {views}: both must be at least 1. Correct them.")
    if fit != "tiles" and views > 2:
        raise DataError(f"views {views}: fit '{fit}' has 2, the image and its mirror image. Use fewer, or fit 'tiles'.")


def _pad(image: Image.Image, size: int) -> Image.Image:
    longer = max(image.size)
    square = Image.new("RGB", (longer, longer), PAD_COLOUR)
    square.paste(image, ((longer - image.width) // 2, (longer - image.height) // 2))
    return square.resize((size, size), _BICUBIC)


def _squash(image: Image.Image, size: int) -> Image.Image:
    longer = max(image.size)
    return image.resize((longer, longer), _BICUBIC).resize((size, size), _BICUBIC)


def _crop(image: Image.Image, size: int) -> Image.Image:
    shorter = min(image.size)
    width, height = size * image.width // shorter, size * image.height // shorter
    left, top = (round((edge - size) / 2) for edge in (width, height))
    return image.resize((width, height), _BICUBIC).crop((left, top, left + size, top + size))


def _tiles(image: Image.Image, size: int, views: int) -> NDArray[np.uint8]:
    shorter = min(image.size)
    if shorter < 2 * size:
        image = image.resize((2 * size * image.width // shorter, 2 * size * image.height // shorter), _BICUBIC)
    few = max(count for count in range(1, math.isqrt(views) + 1) if views % count == 0)
    rows, columns = (few, views // few) if image.width >= image.height else (views // few, few)
    corners = [(x, y) for y in _starts(image.height, size, rows) for x in _starts(image.width, size, columns)]
    pieces = [np.asarray(image.crop((x, y, x + size, y + size))) for x, y in corners]
    return np.ascontiguousarray(np.stack(pieces).transpose(0, 3, 1, 2))


def _starts(length: int, size: int, count: int) -> list[int]:
    """Where `count` pieces begin on an edge: side by side around the middle, or spread when they do not fit."""
    if count * size > length:
        return [index * (length - size) // (count - 1) for index in range(count)]
    first = length // 2 - count * size // 2
    return [first + index * size for index in range(count)]


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Checked images without labels, each content once.

    Attributes:
        records: In the order of the sources, sorted by name within a folder; in memory, or on disk when `scan_images`
            was given an index.
        sources: What the user named.
        duplicates: How many files were left out because an earlier one has the same bytes.
        skipped: (name, reason) of every file that cannot be read; empty unless skipping was asked for.
    """

    records: Sequence[ImageRecord]
    sources: tuple[str, ...]
    duplicates: int = 0
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def fingerprint(self) -> str:
        """12 hex digits of the content: the same for the same images under other names, paths or in another order."""
        return Contents(record.sha256 for record in self.records).fingerprint()


def scan_images(
    sources: Sequence[Path],
    *,
    skip_unreadable: bool = False,
    progress: Callable[[int, int], None] | None = None,
    index: Path | None = None,
) -> ImageSet:
    """Finds the images of all sources and decodes each once, so that nothing unreadable is met later.

    Args:
        sources: Folders (searched to any depth for `SUFFIXES`; names that begin with a dot are passed over); image
            files; tables with an image column (CSV, JSONL, JSON, Parquet), of whose other columns only the one that
            names reference images is looked at; Parquet files that hold the images themselves; uncompressed tar files
            such as WebDataset shards, also many as ``shard-{000..127}.tar``; text files with one source a line; Hugging
            Face data sets as ``hf:ID_OR_FOLDER:SPLIT:COLUMN``.
        skip_unreadable: Leave unreadable files out and record them, instead of failing.
        progress: Called with (files done, files in all) after each file.
        index: A Parquet file to keep the records in, so that any number of images needs little memory; files that it
            already lists and that have not changed since are not decoded again. None = keep the records in memory.

    Raises:
        DataError: A source does not exist, a source holds no images, or files cannot be read; all of a kind at once.
    """
    found, contents = Listing(sources), Contents()
    problems: list[tuple[str, str]] = []
    fresh = bytearray()  # one byte a record: whether its content is new

    def good() -> Iterator[tuple[ImageRecord, str]]:
        for name, result, stamp in _checked(found, Known(index), progress):
            if isinstance(result, ImageRecord):
                fresh.append(contents.add(result.sha256))
                yield result, stamp
            else:
                problems.append((name, result))

    kept: Sequence[ImageRecord]
    if index is None:
        kept = tuple(compress([record for record, _ in good()], fresh))
    else:
        records, stamps = tee(good())
        write_catalogue(index, (record for record, _ in records), {"stamp": (stamp for _, stamp in stamps)})
        kept = Catalogue(index, None if all(fresh) else np.flatnonzero(np.frombuffer(fresh, np.uint8)))
    if problems and not skip_unreadable:
        raise unreadable(problems, len(found), "Remove them or add --skip-unreadable.")
    if not kept:
        raise DataError(f"none of the {len(found)} images can be read: {_reasons(problems)}. Name other images.")
    names = tuple(map(str, sources))
    return ImageSet(records=kept, sources=names, duplicates=len(fresh) - len(kept), skipped=tuple(problems))


def find_images(sources: Sequence[Path]) -> list[Path]:
    """Paths of the images of all sources, as `scan_images` finds them, without opening any.

    Raises:
        DataError: A source does not exist or holds no images.
    """
    return list(Listing(sources).paths())


class Listing:
    """Name, path and reference key of every image of all sources, in order, on disk when many; nothing is opened.

    Args:
        sources: As for `scan_images`.

    Raises:
        DataError: A source does not exist or holds no images.
    """

    def __init__(self, sources: Sequence[Path]) -> None:
        sources = [single for source in sources for single in containers.expanded(source)]
        absent = [str(s) for s in sources if not (containers.is_hub(s) or s.exists() or containers.exists(s))]
        if absent or not sources:
            problem = f"no such folder, image or table: {listed(absent)}" if absent else "no image source was named"
            raise DataError(f"{problem}. Name folders, images, tables with an image column, or tar files.")
        self._table = sqlite3.connect("")
        # Folders are listed in any order and sorted here; lists keep theirs.
        self._table.execute("CREATE TABLE found (source INT, place INT, name BLOB, path BLOB, reference TEXT)")
        for number, source in enumerate(sources):
            before, is_folder = len(self), source.is_dir()
            rows = (
                (number, 0 if is_folder else place, os.fsencode(name), os.fsencode(path), reference_of(name, cell))
                for place, (name, path, cell) in enumerate(_entries(source))
            )
            self._table.executemany("INSERT INTO found VALUES (?, ?, ?, ?, ?)", rows)
            if len(self) == before:
                raise DataError(f"{source} holds no images; known kinds are {' '.join(SUFFIXES)}. Name another folder.")
        self._sources = sources

    def __len__(self) -> int:
        return self._table.total_changes  # rows are only added; counting them would read all of them every time

    def paths(self) -> Iterator[Path]:
        """The paths alone."""
        return (path for _, path, _ in self)

    def __iter__(self) -> Iterator[tuple[str, Path, str]]:
        # Two folders may each hold a.jpg: then the source tells them apart.
        self._table.execute("CREATE INDEX IF NOT EXISTS by_name ON found (name)")
        shared = "SELECT name FROM (SELECT DISTINCT name, path FROM found) GROUP BY name HAVING COUNT(*) > 1"
        query = f"SELECT source, name, path, reference, name IN ({shared}) FROM found ORDER BY source, place, name"
        for source, name, path, reference, is_shared in self._table.execute(query):
            text = os.fsdecode(name)
            full = (self._sources[source] / text).as_posix() if is_shared else text
            yield full, Path(os.fsdecode(path)), reference


def _entries(source: Path) -> Iterator[tuple[str, Path, str]]:
    """Name, path and what a column says of the reference image."""
    kind = source.suffix.lower()
    if containers.is_hub(source):
        found = containers.hub_images(source.as_posix())
    elif source.is_dir():
        found = containers.folder_images(source)
    elif kind in (".tar", ".tgz", ".gz"):
        found = containers.tar_images(source)
    elif kind == ".parquet" and (column := embedded_column(source)) is not None:
        rows = zip(containers.parquet_images(source, column), reference_cells(source), strict=True)
        return ((*entry, cell) for entry, cell in rows)
    elif kind in TABLES:
        folders = image_folders(source)
        return ((name, containers.locate(name, folders), cell) for name, cell in image_rows(source))
    else:
        found = iter([(source.name, source)])
    return ((*entry, "") for entry in found)


def check_images(
    named: Sequence[tuple[str, Path]], progress: Callable[[int, int], None] | None = None, index: Path | None = None
) -> tuple[list[ImageRecord], list[tuple[str, str]]]:
    """Reads, hashes and decodes files once each, a few at a time.

    Args:
        named: (name, path) of every file.
        progress: Called with (files done, files in all) after each file.
        index: As for `scan_images`, though the records are in memory, too.

    Returns:
        The records of those that can be read, and (name, reason) of those that cannot; both in the order given.
    """
    told = [(name, path, reference_of(name)) for name, path in named]
    results = list(_checked(told, Known(index), progress))
    good = [(result, stamp) for _, result, stamp in results if isinstance(result, ImageRecord)]
    if index is not None:
        write_catalogue(index, (record for record, _ in good), {"stamp": (stamp for _, stamp in good)})
    return [record for record, _ in good], [(name, result) for name, result, _ in results if isinstance(result, str)]


def _checked(
    named: Listing | Sequence[tuple[str, Path, str]], known: Known, progress: Callable[[int, int], None] | None
) -> Iterator[tuple[str, ImageRecord | str, str]]:
    """(name, record or what is wrong, stamp) of every file, in order; never more than a window of them in memory."""
    waiting, done = iter(named), count(1)
    with ThreadPoolExecutor(max_workers=min(_WORKERS, os.cpu_count() or 1)) as pool:
        while window := [(*entry, containers.stamp(entry[1])) for entry in islice(waiting, _WINDOW)]:
            before = [known(*entry) if entry[3] else None for entry in window]
            fresh = pool.map(_check, [entry for entry, record in zip(window, before, strict=True) if record is None])
            for (name, _, _, stamp), record in zip(window, before, strict=True):
                yield name, record or next(fresh), stamp
                if progress is not None:
                    progress(next(done), len(named))


def _check(entry: tuple[str, Path, str, str]) -> ImageRecord | str:
    name, path, reference, _ = entry
    try:
        content = _content(path)
        image = _decode(content, path.suffix)
        str(path).encode()
    except _Unreadable as reason:
        return str(reason)
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    digest = hashlib.sha256(content).hexdigest()
    return ImageRecord(path=path, name=name, sha256=digest, width=image.width, height=image.height, reference=reference)


def unreadable(problems: Sequence[tuple[str, str]], total: int, remedy: str) -> DataError:
    """The error for files that `check_images` could not read, to be raised by the caller."""
    return DataError(f"{len(problems)} of {total} images cannot be read: {_reasons(problems)}. {remedy}")


def _reasons(problems: Sequence[tuple[str, str]]) -> str:
    return listed([f"{name} ({reason})" for name, reason in problems])
