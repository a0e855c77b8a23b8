"""Measure whether every degradation gets worse with every step of strength, with full-reference measures.

    python scripts/check_degrade.py
    python scripts/check_degrade.py --images examples bsds500=FOLDER biq2021=FOLDER

Every photo is degraded by every kind at strengths 1 to 5, with the same random draw (as on the ladder), twice:

* ``as is``: the photo is the reference;
* ``spoiled``: the photo was first degraded by another kind at strength 0.5 to 2.5 and is then degraded again; the
  reference is still the clean photo. So it is with a ladder on real photos, where a second flaw may hide the first.

Writes docs/results/degrade.csv (one row per kind, folder and condition) and docs/results/degrade.md.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from evoprompt.degrade import FAMILY, KINDS, LADDER_KINDS, STRENGTHS, degrade  # noqa: E402

Bytes = NDArray[np.uint8]
Plane = NDArray[np.float32]

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
SIDE = 320
# The rungs of a ladder of three levels, as evoprompt.ladder builds it: the photo itself, then strengths 1, 3 and 5.
RUNGS = [0, 1, 3, 5]
# A kind belongs on the ladder when at least this share of its rungs is a step down, in the worst folder.
LADDER_SHARE = {"as is": 0.98, "spoiled": 0.95}


class Difference(NamedTuple):
    """How far an image is from its reference; 0 for equal images in all three.

    ``structure``: 1 - multi-scale SSIM of the luma, about 0..1. ``colour``: root mean square CIELAB distance after a
    blur, in Lab units. ``total``: both together, see `difference`.
    """

    structure: float
    colour: float
    total: float


def _scales(image: Bytes, count: int) -> Iterator[Plane]:
    luma = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    for _ in range(count):
        yield luma
        luma = ndimage.uniform_filter(luma, 2)[::2, ::2]


def structure_loss(reference: Bytes, image: Bytes) -> float:
    """Return 1 - the weighted mean of SSIM over three octaves of the luma (after Wang, Simoncelli and Bovik 2003).

    The octaves' SSIM are averaged, not multiplied: a product is undefined for the negative values strong noise gives.
    """
    similarity = 0.0
    for weight, first, second in zip((0.4, 0.35, 0.25), _scales(reference, 3), _scales(image, 3), strict=True):
        means, squares, product = [], [], _window(first * second)
        for plane in (first, second):
            means.append(_window(plane))
            squares.append(_window(plane * plane))
        shared = means[0] * means[1]
        energy = means[0] ** 2 + means[1] ** 2
        light = (2 * shared + 6.5) / (energy + 6.5)
        contrast = (2 * (product - shared) + 58.5) / (squares[0] + squares[1] - energy + 58.5)
        similarity += weight * float(np.mean(light * contrast))
    return 1.0 - similarity


def _window(plane: Plane) -> Plane:
    smooth: Plane = ndimage.gaussian_filter(plane, 1.5, truncate=3.5)
    return smooth


def _lab(image: Bytes) -> Plane:
    """CIELAB (D65) of sRGB bytes, after a blur of 1.5 px: colour is seen at a coarser scale than structure."""
    linear = (image.astype(np.float32) / 255.0) ** 2.2
    linear = ndimage.gaussian_filter(linear, (1.5, 1.5, 0), truncate=3.0)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], np.float32)
    ratios = linear @ matrix.T / np.array([0.9505, 1.0, 1.089], np.float32)
    curved = np.where(ratios > 0.008856, np.cbrt(ratios), 7.787 * ratios + 16 / 116)
    x, y, z = np.moveaxis(curved, 2, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1).astype(np.float32)


def colour_error(reference: Bytes, image: Bytes) -> float:
    """Return the root mean square CIELAB distance of the blurred images (formula of 1976; 0 for equal images)."""
    return float(np.sqrt(np.mean(np.sum((_lab(reference) - _lab(image)) ** 2, axis=-1))))


def difference(reference: Bytes, image: Bytes) -> Difference:
    """Compare two uint8 arrays (H, W, 3) of equal shape."""
    structure, colour = structure_loss(reference, image), colour_error(reference, image)
    # The scales make a step of either as large as one of the other over all kinds at middle strength; nothing is fitted
    # to human scores.
    return Difference(structure, colour, float(np.hypot(structure / 0.30, colour / 32.0)))


def nominal_quality(total: float) -> float:
    """Map a total difference to 1..5, 5 for equal images. It orders versions of one scene; it is no human score."""
    return 1.0 + 4.0 * float(np.exp(-0.9 * total))


def photos(folder: Path, limit: int) -> list[tuple[str, Bytes]]:
    """Return names and centre crops (at most 320 x 320) of up to ``limit`` photos, evenly spread over the folder."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        sys.exit(f"no images in {folder} - .jpg, .png, .bmp or .webp files are needed - name another folder")
    found = []
    for place in np.linspace(0, len(paths) - 1, min(limit, len(paths))).round().astype(int):
        image = np.asarray(Image.open(paths[place]).convert("RGB"))
        top, left = (max(0, (length - SIDE) // 2) for length in image.shape[:2])
        found.append((paths[place].name, np.ascontiguousarray(image[top : top + SIDE, left : left + SIDE])))
    return found


def steps(photo: Bytes, kind: str, condition: str, seed: tuple[int, ...]) -> NDArray[np.float64]:
    """Return structure, colour and total difference of the undegraded start and at the five strengths: (6, 3)."""
    rng = np.random.default_rng(seed)
    start = photo
    if condition == "spoiled":
        others = [other for other in KINDS if FAMILY[other] != FAMILY[kind]]
        start = degrade(photo, others[rng.integers(len(others))], float(rng.uniform(0.5, 2.5)), rng)
    draw = int(rng.integers(2**32))
    worse = [degrade(start, kind, strength, np.random.default_rng(draw)) for strength in STRENGTHS]
    return np.array([difference(photo, image) for image in (start, *worse)])


def measure(label: str, folder: Path, limit: int) -> Iterator[dict[str, str]]:
    """Yield one row of the table per kind and condition."""
    images = photos(folder, limit)
    for condition in LADDER_SHARE:
        for number, kind in enumerate(KINDS):
            curves = np.stack(
                [steps(image, kind, condition, (7, number, place)) for place, (_, image) in enumerate(images)]
            )
            rises, rungs = np.diff(curves[:, 1:], axis=1) > 0, np.diff(curves[:, RUNGS], axis=1) > 0
            row = {"folder": label, "condition": condition, "kind": kind, "family": FAMILY[kind]}
            row |= {"ladder": str(int(kind in LADDER_KINDS)), "images": str(len(images))}
            for index, name in enumerate(Difference._fields):
                row[f"rising_{name}"] = f"{rises[:, :, index].mean():.3f}"
            row["rising_rungs"] = f"{rungs[:, :, 2].mean():.3f}"
            row["images_monotone"] = f"{rises[:, :, 2].all(axis=1).mean():.3f}"
            for index, strength in enumerate(STRENGTHS):
                row[f"quality_{strength}"] = f"{np.mean([nominal_quality(t) for t in curves[:, index + 1, 2]]):.2f}"
            yield row


def write_csv(rows: list[dict[str, str]], path: Path) -> None:
    """Write the rows with the columns of the first."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


PAGE = """# Does every degradation get worse with every step?

Command: `{command}` (writes this page and `degrade.csv`). Centre crops of at most {side} x {side}; photos:
{sizes}.

Each cell has two shares over all photos, both of the total difference from the reference. The first: how many
of the steps 1-2, 2-3, 3-4 and 4-5 raise it. The second: how many of the rungs of a ladder of three levels do,
0-1, 1-3 and 3-5, where 0 is the photo before the degradation. All strengths of a photo share one random draw,
as on the ladder. *as is*: the photo is the reference. *spoiled*: the photo was degraded by a kind of another
family at strength 0.5 to 2.5 before, and the clean photo is the reference.

The total difference joins a multi-scale SSIM of the luma with a CIELAB distance; it is fitted to nobody's
scores. The nominal qualities are means over the photos of {first}, as is, on 1..5: they say how far the
strengths of a kind are apart, not what people would answer.

A kind is on the ladder when a viewer would not doubt that more of it is worse and, in every folder, at least
{as_is:.0%} of its rungs as is are steps down. Darker, brighter, calmer, more vivid or differently tinted may please,
so those kinds are left out whatever they measure; so is occlusion, which hides a picture rather than spoils it.
JPEG 2000 would qualify and is not used: the results in this folder were measured without it. On spoiled photos the
aim is {spoiled:.0%} of the rungs; several kinds of blur, coding and sharpening miss it, probably because a little of
them takes away noise, or blur, that was there before. So on photos with flaws no judge can be expected to order every
rung, and ladder accuracies are to be compared, not held against 1.

"""


def describe(rows: list[dict[str, str]], command: str) -> str:
    """Return the page with one line per kind: shares of rising steps by column, mean nominal qualities."""
    columns = list(dict.fromkeys((row["folder"], row["condition"]) for row in rows))
    cells = {(row["folder"], row["condition"], row["kind"]): row for row in rows}
    counts = {row["folder"]: row["images"] for row in rows}
    page = PAGE.format(
        command=command,
        side=SIDE,
        sizes=", ".join(f"{folder} {count}" for folder, count in counts.items()),
        first=columns[0][0],
        as_is=LADDER_SHARE["as is"],
        spoiled=LADDER_SHARE["spoiled"],
    )
    heads = " | ".join(" ".join(column) for column in columns)
    lines = [f"| kind | family | ladder | {heads} | nominal quality at 1..5 |"]
    lines.append("|---|---|---|" + "---:|" * len(columns) + "---|")
    for kind in KINDS:
        first = cells[(*columns[0], kind)]
        shares = " | ".join("{rising_total} / {rising_rungs}".format_map(cells[(*column, kind)]) for column in columns)
        quality = " ".join(first[f"quality_{strength}"] for strength in STRENGTHS)
        ladder = "yes" if kind in LADDER_KINDS else ""
        lines.append(f"| {kind} | {FAMILY[kind]} | {ladder} | {shares} | {quality} |")
    return page + "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write the two files and say which kinds contradict LADDER_KINDS."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", default=[f"examples={ROOT / 'examples'}"], metavar="[NAME=]FOLDER")
    parser.add_argument("--limit", type=int, default=40, help="photos per folder (default 40)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results", help="folder of degrade.csv and .md")
    options = parser.parse_args()
    folders = [tuple(text.split("=", 1)) if "=" in text else (Path(text).name, text) for text in options.images]
    rows = [row for name, folder in folders for row in measure(name, Path(folder), options.limit)]
    default = options.images == parser.get_default("images")
    arguments = "" if default else " --images " + " ".join(f"{name}=FOLDER" for name, _ in folders)
    command = f"python scripts/check_degrade.py{arguments} --limit {options.limit}"
    options.out.mkdir(parents=True, exist_ok=True)
    write_csv(rows, options.out / "degrade.csv")
    (options.out / "degrade.md").write_text(describe(rows, command))
    for row in rows:
        if row["ladder"] == "1" and float(row["rising_rungs"]) < LADDER_SHARE[row["condition"]]:
            print(
                f"{row['kind']} is on the ladder, but only {row['rising_rungs']} of its rungs on {row['folder']} "
                f"({row['condition']}) are steps down"
            )


if __name__ == "__main__":
    main()
