"""Sets of images that are known by name: facts about them, and what their file names say.

Counts, scales and directions are those of the sets' own papers and files, as distributed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Facts(NamedTuple):
    """What is known of a set beside its files.

    Attributes:
        ranges: Ends of the scales on which its scores are distributed, the most usual first.
        lower_better: Whether its scores are better when lower (difference scores).
        images: How many it has, as papers count them.
        test: How many its official test part has; 0 without one.
        word: What names of files and folders of this set contain.
    """

    ranges: tuple[tuple[float, float], ...]
    lower_better: bool
    images: int
    test: int
    word: str


KNOWN = {
    "KonIQ-10k": Facts(((1, 5), (0, 100)), False, 10073, 2015, "koniq"),
    "KADID-10k": Facts(((1, 5),), False, 10125, 0, "kadid"),
    "AGIQA-3K": Facts(((0, 5),), False, 2982, 0, "(^|[^a-z])agi(qa|[^a-z]|$)"),
    "SPAQ": Facts(((0, 100),), False, 11125, 0, "spaq"),
    "LIVE-C": Facts(((0, 100),), False, 1162, 0, "live(c|w|challenge|_challenge)|clive|challengedb"),
    "TID2013": Facts(((0, 9),), False, 3000, 0, "tid2013"),
    "CSIQ": Facts(((0, 1),), True, 866, 0, "csiq"),
    "LIVE": Facts(((0, 100),), True, 779, 0, "liveiqa|live_?r2|live2005|live/(jp2k|jpeg|wn|gblur|fastfading)/"),
    "PIPAL": Facts((), False, 23200, 0, "pipal"),
    "FLIVE": Facts(((0, 100),), False, 39810, 0, "flive|paq-?2-?piq"),
}
"""Sets that are recognised. PIPAL's scores are Elo ratings, which have no ends."""


def known_by_word(text: str) -> str:
    """The set that a file or folder name speaks of, or an empty text."""
    return next((name for name, facts in KNOWN.items() if re.search(facts.word, text, re.IGNORECASE)), "")


def scale_of(mos: NDArray[np.float64], ranges: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """The first of some scales that holds all scores."""
    return next(((a, b) for a, b in ranges if a <= mos.min() and mos.max() <= b), None)


class Named(NamedTuple):
    """What one file name says.

    Attributes:
        dataset: The set that names files so, for example ``KADID-10k``.
        reference: Lower-case name of the undistorted image, without its suffix.
        distortion: Type of the distortion, as the set writes it.
        level: Strength of the distortion, 1 = weakest.
    """

    dataset: str
    reference: str
    distortion: str
    level: float


# TID2008 names its files as TID2013 does, with 17 types and 4 levels of the same 25 reference images: one pattern.
_PATTERNS = {
    "KADID-10k": re.compile(r"(?P<reference>I\d\d)_(?P<distortion>\d\d)_(?P<level>0\d)\.\w+", re.IGNORECASE),
    "TID2013": re.compile(r"(?P<reference>I\d\d)_(?P<distortion>\d\d)_(?P<level>\d)\.\w+", re.IGNORECASE),
    "CSIQ": re.compile(
        r"(?P<reference>\w+)\.(?P<distortion>AWGN|BLUR|contrast|fnoise|JPEG(2000)?)\.(?P<level>\d)\.\w+",
        re.IGNORECASE,
    ),
    "PIPAL": re.compile(r"(?P<reference>A\d{4})_(?P<distortion>\d\d)_(?P<level>\d\d)\.\w+", re.IGNORECASE),
    # The reference is a photo of Pixabay by words and number; a year there would be the date of somebody's own photo.
    "KADIS-700k": re.compile(
        r"(?P<reference>[a-z][a-z\d-]*-(?!(19|20)\d\d_)\d{4,7})_(?P<distortion>0[1-9]|1\d|2[0-5])_(?P<level>0[1-5])\.\w+"
    ),
}


def parse_name(name: str) -> Named | None:
    """What a file name says, or None when it is not named as in KADID-10k, TID2013, CSIQ, PIPAL or KADIS-700k.

    PIPAL numbers the outputs of a kind; that is no strength, so its level is always 0.

    Args:
        name: File name, with or without folders before it.
    """
    for dataset, pattern in _PATTERNS.items():
        if match := pattern.fullmatch(PurePosixPath(name).name):
            level = 0.0 if dataset == "PIPAL" else float(match["level"])
            return Named(dataset, match["reference"].lower(), match["distortion"], level)
    return None


def parse_names(names: Sequence[str]) -> list[Named] | None:
    """What all names say, or None unless every one of them is named as in one and the same known set."""
    parsed = [found for found in map(parse_name, names) if found is not None]
    same = len(parsed) == len(names) > 0 and len({found.dataset for found in parsed}) == 1
    return parsed if same else None


def slipped(told: Sequence[str], said: Sequence[str]) -> list[int]:
    """Rows in which a column says another reference image than it says elsewhere where file names tell the same.

    Args:
        told: Reference image of every row by its file name.
        said: The same by a column, which may call it otherwise.
    """
    pairs = Counter(zip(told, said, strict=True))
    usual = {reference: column for (reference, column), _ in reversed(pairs.most_common())}
    return [row for row, (reference, column) in enumerate(zip(told, said, strict=True)) if usual[reference] != column]


def reference_of(name: str, column: str = "") -> str:
    """How a prompt remembers a reference image that it has seen distorted: one word, beside the content hashes.

    File names of known sets tell the set, too: I01 of KADID-10k is not I01 of TID2013. What a column says stands alone,
    because tables of one set have many names: its train and test list must speak of the same reference image.

    Args:
        name: File name of the distorted copy.
        column: Its reference image by the column of a table, which counts where the file name tells nothing.

    Returns:
        The key, or an empty text when neither tells.
    """
    found = parse_name(name)
    told = f"{found.dataset}:{found.reference}" if found else PurePosixPath(column).stem
    return re.sub(r"\s+", "_", f"reference:{told}".lower()) if told else ""
