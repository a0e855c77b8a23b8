"""The ladder: the user's own images at rising strength of known degradations, whose order nobody has to tell us."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from PIL import Image, ImageOps

from evoprompt.config import EvalConfig
from evoprompt.degrade import KINDS, LADDER_KINDS, MIN_SIDE, degrade
from evoprompt.images import PAD_COLOUR, ImageSet, fit_image, read_image
from evoprompt.runs import LADDER, stream
from evoprompt.tensor_cache import TensorCache

# Degrading a 40-megapixel photo takes seconds a step and is scaled down afterwards anyway.
MAX_EDGE = 1024
LIMITS = EvalConfig()


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

    Fitted images are kept within stated sizes, and so are pictures to be degraded, scaled down to at most 3 MiB each.
    What is kept is not decoded again.

    Args:
        images: the user's images.
        fit: how an image becomes squares, see ``images.fit_image``.
        size: side of a square, px.
        views: squares an image.
        seed: of the degradations.
        limits: its ``host_images_mib`` and ``disk_images_mib``.
    """

    def __init__(
        self, images: ImageSet, fit: str, size: int, views: int, seed: int, limits: EvalConfig = LIMITS
    ) -> None:
        self.images, self.fit, self.size, self.views, self.seed = images, fit, size, views, seed
        self._degraded: list[tuple[int, str, float]] = []
        self._keys: dict[tuple[int, str, float], int] = {}
        sizes = (limits.host_images_mib, limits.disk_images_mib)
        self._kept = TensorCache(torch.device("cpu"), 0, *sizes, "eval.disk_images_mib")
        self._ladder: set[int] = set()
        self._said = False
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
        """Views of an image, (V, 3, S, S) uint8 RGB; not to be written to."""
        views = self._find(key)
        if views is not None:
            return views
        if key >= len(self.images):
            return self._keep(key, fit_image(self._degrade(key), self.fit, self.size, self.views))
        if key not in self._ladder:
            return self._read(key)[1]
        with self._reading:  # it may be decoded just now, to be degraded
            views = self._find(key)
            return self._read(key)[1] if views is None else views

    def notice(self) -> str:
        """What is to be said, once, when not all images could be kept; otherwise empty."""
        if self._said or not self._kept.forgotten:
            return ""
        self._said = True
        return (
            "warning  the fitted images exceed eval.host_images_mib and eval.disk_images_mib; those that are not kept "
            "are decoded again each time. Raise one of them."
        )

    def _degrade(self, key: int) -> Image.Image:
        image, kind, strength = self._degraded[key - len(self.images)]
        with self._reading:
            kept = self._find(_picture(image))
            picture = self._read(image)[0] if kept is None else Image.fromarray(kept)
        if min(picture.size) < MIN_SIDE:
            picture = ImageOps.expand(picture, MIN_SIDE, PAD_COLOUR)
        if not strength:
            return picture
        # One stream a chain, so that a stronger step is the same noise or the same blocks, only stronger.
        rng = stream(self.seed, 0, LADDER, image, KINDS.index(kind))
        return Image.fromarray(degrade(np.asarray(picture), kind, strength, rng))

    def _read(self, image: int) -> tuple[Image.Image, np.ndarray]:
        """Decode a file once for all it is needed for: a small copy, if it will be degraded, and its views."""
        with self._keeping:  # the records may be read from a file
            path = self.images.records[image].path
        picture = read_image(path)
        views = self._keep(image, fit_image(picture, self.fit, self.size, self.views))
        if image in self._ladder:
            picture = picture.copy()
            picture.thumbnail((MAX_EDGE, MAX_EDGE), Image.Resampling.LANCZOS)
            self._keep(_picture(image), np.array(picture))
        return picture, views

    def _find(self, key: Hashable) -> np.ndarray | None:
        with self._keeping:
            kept = self._kept.get(key)
        return None if kept is None else kept.numpy()

    def _keep(self, key: Hashable, pixels: np.ndarray) -> np.ndarray:
        with self._keeping:
            self._kept.put(key, torch.from_numpy(pixels))
        return pixels


def _picture(image: int) -> Hashable:
    return "picture", image


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
