"""The ladder: the user's own images at rising strength of known degradations, whose order nobody has to tell us."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image, ImageOps

from evoprompt.degrade import KINDS, LADDER_KINDS, MIN_SIDE, degrade
from evoprompt.images import PAD_COLOUR, ImageSet, fit_image, read_image
from evoprompt.runs import LADDER, stream

# Degrading a 40-megapixel photo takes seconds a step and is scaled down afterwards anyway.
MAX_EDGE = 1024
# Pictures kept to be degraded again, of at most 3 MiB each.
_PICTURES = 64


def strengths(levels: int) -> list[float]:
    """Strengths of a chain, evenly spaced from 1 to 5; a single one is 3."""
    evenly: list[float] = np.linspace(1, 5, levels).tolist()
    return evenly if levels > 1 else [3.0]


@dataclass(frozen=True)
class Chain:
    """One image under one kind of degradation: keys from best to worst."""

    image: int
    kind: str
    keys: tuple[int, ...]

    def steps(self) -> np.ndarray:
        """Neighbouring keys, the better one first, (K - 1, 2)."""
        return np.array(list(zip(self.keys[:-1], self.keys[1:], strict=True)))

    def pairs(self) -> np.ndarray:
        """All pairs of the chain, the better one first, (K (K - 1) / 2, 2)."""
        better, worse = np.triu_indices(len(self.keys), 1)
        keys = np.array(self.keys)
        return np.stack([keys[better], keys[worse]], axis=1)


class Pool:
    """All images of a run by key, ready for the judge: the user's (0 to N - 1) and degraded ones (from N on).

    Args:
        images: the user's images.
        fit: how an image becomes squares, see ``images.fit_image``.
        size: side of a square, px.
        views: squares an image.
        seed: of the degradations.
        max_bytes: fitted images kept in memory at most.
    """

    def __init__(self, images: ImageSet, fit: str, size: int, views: int, seed: int, max_bytes: int = 1 << 30) -> None:
        self.images, self.fit, self.size, self.views, self.seed = images, fit, size, views, seed
        self._degraded: list[tuple[int, str, float]] = []
        self._keys: dict[tuple[int, str, float], int] = {}
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self._room = max(1, max_bytes // (3 * size * size * views))
        self._ladder: set[int] = set()
        self._pictures: OrderedDict[int, Image.Image] = OrderedDict()
        self._keeping, self._reading = Lock(), Lock()  # several threads may ask for images

    def degraded(self, image: int, kind: str, strength: float) -> int:
        """Key of an image at one strength of one kind."""
        what = (image, kind, strength)
        if what not in self._keys:
            self._keys[what] = len(self.images) + len(self._degraded)
            self._degraded.append(what)
            self._ladder.add(image)
        return self._keys[what]

    def chain(self, image: int, kind: str, levels: int) -> Chain:
        """An image and ``levels`` strengths of it, evenly spaced from 1 to 5; the image itself is not degraded."""
        steps = [0.0, *strengths(levels)]
        return Chain(image, kind, tuple(self.degraded(image, kind if s else "none", s) for s in steps))

    def name(self, key: int) -> str:
        """What to call an image in tables: its name, and what was done to it."""
        if key < len(self.images):
            return self.images.records[key].name
        image, kind, strength = self._degraded[key - len(self.images)]
        return f"{self.images.records[image].name}#{kind}:{strength:g}"

    def __call__(self, key: int) -> np.ndarray:
        """Views of an image, (V, 3, S, S) uint8 RGB."""
        with self._keeping:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        views = fit_image(self._picture(key), self.fit, self.size, self.views)
        with self._keeping:
            self._kept[key] = views
            if len(self._kept) > self._room:
                self._kept.popitem(last=False)
        return views

    def _picture(self, key: int) -> Image.Image:
        if key < len(self.images):
            if key not in self._ladder:
                return read_image(self._path(key))
            with self._reading:
                return self._read(key)
        image, kind, strength = self._degraded[key - len(self.images)]
        with self._reading:
            if image not in self._pictures:
                self._read(image)
            picture = self._pictures[image]
        if min(picture.size) < MIN_SIDE:
            picture = ImageOps.expand(picture, MIN_SIDE, PAD_COLOUR)
        if not strength:
            return picture
        # One stream a chain, so that a stronger step is the same noise or the same blocks, only stronger.
        rng = stream(self.seed, 0, LADDER, image, KINDS.index(kind))
        return Image.fromarray(degrade(np.asarray(picture), kind, strength, rng))

    def _path(self, image: int) -> Path:
        with self._keeping:  # the records may be read from a file
            return self.images.records[image].path

    def _read(self, image: int) -> Image.Image:
        """Decode an image of the ladder; a small copy of it stays, so that no strength decodes it again."""
        picture = read_image(self._path(image))
        small = picture.copy()
        small.thumbnail((MAX_EDGE, MAX_EDGE), Image.Resampling.LANCZOS)
        self._pictures[image] = small
        if len(self._pictures) > _PICTURES:
            self._pictures.popitem(last=False)
        return picture


def plan_chains(
    pool: Pool, images: Sequence[int], n_images: int, n_kinds: int, levels: int, rng: np.random.Generator
) -> list[Chain]:
    """Chains over some images, each under some kinds of degradation.

    Args:
        pool: where the degraded images will come from.
        images: keys to choose from.
        n_images: at most this many are used.
        n_kinds: kinds an image, different ones for each, all kinds equally often.
        levels: strengths a chain.
        rng: random stream.

    Returns:
        The chains, image by image.
    """
    chosen = rng.permutation(np.asarray(images))[:n_images]
    deck = [
        kind for _ in range(-(-len(chosen) * n_kinds // len(LADDER_KINDS))) for kind in rng.permutation(LADDER_KINDS)
    ]
    return [
        pool.chain(int(image), str(kind), levels)
        for k, image in enumerate(chosen)
        for kind in deck[k * n_kinds : (k + 1) * n_kinds]
    ]


@dataclass(frozen=True)
class Rung:
    """How surely one strength of one degradation is told from the strength before it; strength 0 is the image itself.

    Attributes:
        kind: of degradation.
        strength: the stronger of the two, above 0 and at most 5.
        images: how many images were compared with themselves so.
        votes: share of them whose votes prefer the weaker strength; a tie counts half.
        ratings: share of them that are rated higher at the weaker strength; a tie counts half.
    """

    kind: str
    strength: float
    images: int
    votes: float
    ratings: float


def rungs(chains: Sequence[Chain], voted: np.ndarray, rated: np.ndarray) -> tuple[Rung, ...]:
    """The steps of all chains gathered by kind and strength.

    Args:
        chains: the chains.
        voted: (S,) of each of their steps, in order: 1 where the votes are right, 0 where not, 0.5 for a tie.
        rated: (S,) the same of the ratings.
    """
    names = [(chain.kind, strength) for chain in chains for strength in strengths(len(chain.keys) - 1)]
    places: dict[tuple[str, float], list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    return tuple(
        Rung(kind, strength, len(at), float(voted[at].mean()), float(rated[at].mean()))
        for (kind, strength), at in sorted(places.items())
    )


def ladder_lines(ladder: Sequence[Rung]) -> list[str]:
    """The ladder as lines of text: one kind a line, votes and ratings at each strength."""
    levels = sorted({rung.strength for rung in ladder})
    cells = {(rung.kind, rung.strength): f"{rung.votes:.2f}/{rung.ratings:.2f}" for rung in ladder}
    images = {rung.kind: rung.images for rung in ladder}
    head = f"{'ladder, strength':<20}{'images':>7}" + "".join(f"{level:>12g}" for level in levels)
    lines = [
        f"{kind:<20}{number:>7}" + "".join(f"{cells.get((kind, level), ''):>12}" for level in levels)
        for kind, number in images.items()
    ]
    note = "share of images told from the strength before by votes/ratings; worry when a kind stays near 0.50 or below"
    return [head, *lines, note]
