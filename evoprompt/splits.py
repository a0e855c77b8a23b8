"""Splits into train, val and test that keep together what belongs together, in a file that is used again.

What must not be torn apart is a unit: all distorted copies of a reference image, all images made from one text, or all
files of one content. Where a unit goes depends on its name and the seed alone, so a split is the same on every machine
and in any order of the rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from evoprompt.errors import DataError, counted

PARTS = {"train": 0.7, "val": 0.1, "test": 0.2}
"""Parts and their shares of the units, as most papers with three parts have them."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which part every image is in.

    Attributes:
        how: "official", "by reference", "by text prompt" or "by content".
        seed: Of the draw; None for an official split.
        parts: Part ("train", "val", "test") by content hash.
        shares: Shares of the units that were asked for, by part; None for an official split.
    """

    how: str
    seed: int | None
    parts: Mapping[str, str]
    shares: Mapping[str, float] | None = None


def make_split(
    sha256: Sequence[str],
    groups: Sequence[str] | None = None,
    grouping: str = "",
    *,
    seed: int = 0,
    shares: Mapping[str, float] = PARTS,
) -> Split:
    """Draws a split by unit.

    Units are put into the order of the SHA-256 of seed and name and dealt to the parts by their shares, rounded. Images
    of equal content go together with the group that the first of them is in.

    Args:
        sha256: Content hash of every image.
        groups: Reference image or text of every image; None = each content is its own unit.
        grouping: What the groups are, "reference" or "text prompt".
        seed: Other seeds give other splits.
        shares: Share of the units by part; they sum to 1.

    Raises:
        DataError: There are fewer units than parts.
    """
    units = dict(zip(reversed(sha256), reversed(groups or sha256), strict=True))
    order = sorted(set(units.values()), key=lambda name: hashlib.sha256(f"{seed}\n{name}".encode()).digest())
    if len(order) < len(shares):
        what = counted(len(order), grouping if groups else "different image")
        raise DataError(f"{what} cannot be split into {len(shares)} parts. Name a larger set.")
    place: dict[str, str] = {}
    left = len(order)
    for after, (part, share) in enumerate(reversed(list(shares.items()))):
        # The last parts are cut off first: none is empty, and what rounding leaves over goes to the first.
        count = (
            left if after == len(shares) - 1 else min(max(1, round(share * len(order))), left - len(shares) + after + 1)
        )
        place |= dict.fromkeys(order[left - count : left], part)
        left -= count
    how = f"by {grouping}" if groups else "by content"
    parts = {sha: place[unit] for sha, unit in units.items()}
    return Split(how=how, seed=seed, parts=parts, shares=dict(shares))


def torn(groups: Sequence[str] | None, grouping: str, parts: Sequence[str | None], part: str) -> str:
    """A sentence when a part shares reference images with others, so that testing on it is no test; else empty.

    Args:
        groups: Reference image of every row of the whole set, or None.
        grouping: What the groups are; only references count, because copies of one picture resemble each other.
        parts: The part of every row.
        part: The one that is asked about.
    """
    if groups is None or grouping != "reference":
        return ""
    rows = list(zip(groups, parts, strict=True))
    own = {group for group, where in rows if where == part}
    shared = own & {group for group, where in rows if where not in (part, None)}
    return f"leaky: {len(shared)} of its {len(own)} reference images are in other parts, too" if shared else ""


def write_split(path: Path, split: Split) -> None:
    """Writes a split as JSON, with the content hash of every image."""
    body = asdict(split)
    path.write_text(json.dumps({**body, "parts": dict(sorted(split.parts.items()))}, indent=1) + "\n", encoding="utf-8")


def read_split(path: Path, sha256: Sequence[str]) -> Split:
    """Reads a split that fits these images.

    Raises:
        DataError: The file is no split, or does not say where some of the images belong.
    """
    try:
        split = Split(**json.loads(path.read_text(encoding="utf-8")))
        unknown = [sha for sha in sha256 if sha not in split.parts]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is no split file. Make one with 'evoprompt data split'.") from error
    if unknown:
        raise DataError(
            f"{path} does not say where {len(unknown)} of {len(sha256)} images belong: they are new or have changed. "
            "Make another split with 'evoprompt data split'."
        )
    return split


def split_file(labels: Path) -> Path:
    """Where the split of a table of human scores is kept: beside it."""
    return labels.with_name(f"{labels.name}.split.json")
