"""Degraded crops for `train_nano.py`, with labels that cost nothing.

From every photo a few 160-px crops are taken at random scales. Each crop becomes a group of `VARIANTS` pictures:

| variants | what |
|---|---|
| 1 | the crop itself |
| 6 | three kinds of degradation, each at two strengths |
| 3 | two or three kinds on top of each other |
| 2 | a camera: noise, denoising, sharpening, exposure, JPEG |
| 1 | the camera and one more kind |

The labels are the strengths that were applied, summed up per family of flaws, and how far the picture is from the crop
it came from (`distance`, a full-reference measure). `damage_of` makes one number per family out of both. No human score
is read anywhere.
"""

from __future__ import annotations

import io
import multiprocessing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from evoprompt.degrade import FAMILY, KINDS, degrade

SIZE = 160
MARGIN = 16
VARIANTS = 13
FAMILIES = tuple(sorted(set(FAMILY.values())))
DISTANCES = ("edges", "edges, half scale", "colour", "brightness")
HELD_OUT = 12
"""Every twelfth photo is kept for validation."""


@dataclass(frozen=True)
class Crops:
    """Degraded crops and their labels, N rows each.

    Attributes:
        pixels: (N, 3, 160, 160) uint8, memory-mapped.
        group: (N,) int64, crops of the same group come from the same undegraded crop.
        families: (N, F) float32, accumulated strength per family of flaws, 1 = strongest single degradation.
        kinds: (N, K) float32, strength per kind in [0, 1], 0 where the kind was not applied.
        distance: (N, 4) float32, full-reference distances to the undegraded crop, see `DISTANCES`.
        scale: (N,) float32, how far the photo was shrunk before cropping; large ones are softer to begin with.
    """

    pixels: np.ndarray
    group: np.ndarray
    families: np.ndarray
    kinds: np.ndarray
    distance: np.ndarray
    scale: np.ndarray


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def camera(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, float]]:
    """A crude camera: sensor noise, denoising, sharpening, exposure and JPEG, each mild or absent.

    Args:
        image: (H, W, 3) uint8.
        rng: source of the settings.

    Returns:
        The picture, (H, W, 3) uint8, and the strength in [0, 1] of each family's part.
    """
    noise, softness, coding, tone = rng.beta(1.2, 2.0, 4)
    x = image.astype(np.float32)
    x = 255 * (x / 255) ** (1 + tone * rng.choice([-0.55, 1.2]))
    grain = ndimage.gaussian_filter(rng.normal(0, 1, x.shape), (0.6 * rng.random(), 0.6 * rng.random(), 0))
    x = x + grain / grain.std() * noise * 30 * (0.5 + (1 - x / 255))
    if rng.random() < 0.5:
        x = ndimage.median_filter(np.clip(x, 0, 255), (3, 3, 1)) * softness + x * (1 - softness)
    x = ndimage.gaussian_filter(x, (0.25 + 1.6 * softness, 0.25 + 1.6 * softness, 0))
    x = x + rng.random() * 1.2 * (x - ndimage.gaussian_filter(x, (1.0, 1.0, 0)))
    out = _jpeg(np.clip(x + 0.5, 0, 255).astype(np.uint8), round(95 - 70 * coding))
    return out, {
        "noise": float(noise) * 0.6,
        "blur": float(softness) * 0.6,
        "coding": float(coding) * 0.5,
        "tone": float(tone) * 0.5,
    }


def distance(reference: np.ndarray, image: np.ndarray) -> np.ndarray:
    """How far `image` is from `reference`, four ways, 0 = equal.

    Edges: 1 - mean and deviation of gradient similarity, half each (Xue et al., IEEE TIP 2014, take the deviation).
    Colour: similarity of two opponent channels (Nafchi et al., IEEE Access 2016).

    Args:
        reference: (H, W, 3) uint8.
        image: (H, W, 3) uint8.

    Returns:
        (4,) float32 in the order of `DISTANCES`.
    """
    pair = [picture.astype(np.float32) for picture in (reference, image)]
    luma = [picture @ np.array([0.299, 0.587, 0.114], np.float32) for picture in pair]
    out = []
    for scale in (1, 2):
        small = [ndimage.uniform_filter(plane, scale)[::scale, ::scale] for plane in luma]
        a, b = (np.hypot(ndimage.prewitt(plane, 0) / 3, ndimage.prewitt(plane, 1) / 3) for plane in small)
        similarity = (2 * a * b + 170) / (a * a + b * b + 170)
        out.append(0.5 * (1 - similarity).mean() + 0.5 * similarity.std())
    opponent = np.array([[0.30, 0.04, -0.35], [0.34, -0.60, 0.17]], np.float32).T
    c, d = (ndimage.uniform_filter(picture @ opponent, (3, 3, 1)) for picture in pair)
    out.append(1 - ((2 * (c * d).sum(-1) + 550) / ((c * c + d * d).sum(-1) + 550)).mean())
    low = [ndimage.uniform_filter(plane, 15) for plane in luma]
    out.append(np.abs(low[0] - low[1]).mean() / 255)
    return np.array(out, np.float32)


def _recipes(rng: np.random.Generator) -> list[tuple[bool, list[tuple[str, float]]]]:
    """(camera first?, [(kind, strength), ...]) of the variants of one group."""
    recipes: list[tuple[bool, list[tuple[str, float]]]] = [(False, [])]
    chosen = rng.permutation(len(KINDS))
    for index in chosen[:3]:
        weak, strong = np.sort(rng.uniform(0.25, 5.0, 2))
        recipes += [(False, [(KINDS[index], weak)]), (False, [(KINDS[index], max(strong, min(5.0, weak + 0.7)))])]
    for number in (2, 2, 3):
        mixed = rng.permutation(len(KINDS))[:number]
        recipes.append((False, [(KINDS[i], float(rng.uniform(0.25, 3.5))) for i in mixed]))
    recipes += [(True, []), (True, []), (True, [(KINDS[chosen[4]], float(rng.uniform(0.25, 3.0)))])]
    return recipes


def _group(base: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All variants of one crop: pixels (V, 3, S, S), families (V, F), kinds (V, K), distance (V, 4)."""
    pixels, families, kinds, distances = [], [], [], []
    top, left = rng.integers(0, MARGIN + 1, 2)
    reference = base[top : top + SIZE, left : left + SIZE]
    for with_camera, steps in _recipes(rng):
        image, amount = base, dict.fromkeys(FAMILIES, 0.0)
        if with_camera:
            image, parts = camera(image, rng)
            amount.update({name: parts[name] for name in parts if name in amount})
        applied = np.zeros(len(KINDS), np.float32)
        for kind, strength in steps:
            image = degrade(image, kind, strength, rng)
            applied[KINDS.index(kind)] = strength / 5
            amount[FAMILY[kind]] += strength / 5
        image = image[top : top + SIZE, left : left + SIZE]
        pixels.append(image.transpose(2, 0, 1))
        families.append([amount[name] for name in FAMILIES])
        kinds.append(applied)
        distances.append(distance(reference, image))
    return np.stack(pixels), np.array(families, np.float32), np.stack(kinds), np.stack(distances)


def _photo(job: tuple[Path, int, int]) -> list[tuple[np.ndarray, ...]]:
    path, groups, seed = job
    rng = np.random.default_rng(seed)
    photo = Image.open(path).convert("RGB")
    full = SIZE + MARGIN
    out: list[tuple[np.ndarray, ...]] = []
    for _ in range(groups):
        scale = max(2 ** rng.uniform(-0.9, 0.3), full / min(photo.size))
        small = photo.resize([max(full, round(side * scale)) for side in photo.size], Image.Resampling.LANCZOS)
        x, y = (int(rng.integers(0, side - full + 1)) for side in small.size)
        made = _group(np.asarray(small.crop((x, y, x + full, y + full))), rng)
        out.append((*made, np.full(VARIANTS, scale, np.float32)))
    return out


def make_crops(photos: Path, cache: Path, *, groups: int, seed: int, workers: int) -> None:
    """Write the training and validation crops of all photos below `photos` into `cache`.

    Args:
        photos: folder searched for *.jpg, *.jpeg and *.png at any depth.
        cache: folder to write; about 1 MB per group.
        groups: groups per photo.
        seed: every photo has its own stream, so the result does not depend on `workers`.
        workers: processes.

    Raises:
        SystemExit: there is no photo.
    """
    paths = sorted(path for path in photos.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    if not paths:
        raise SystemExit(f"{photos} holds no *.jpg, *.jpeg or *.png - give a folder of photos, for instance BSDS500.")
    cache.mkdir(parents=True, exist_ok=True)
    jobs = [(path, groups, seed * 100_000 + index) for index, path in enumerate(paths)]
    splits = {"val": jobs[::HELD_OUT], "train": [job for index, job in enumerate(jobs) if index % HELD_OUT]}
    with multiprocessing.Pool(workers) as pool:
        for name, part in splits.items():
            rows = len(part) * groups * VARIANTS
            target = cache / f"{name}_pixels.npy"
            pixels = np.lib.format.open_memmap(target, "w+", np.uint8, (rows, 3, SIZE, SIZE))
            labels: list[tuple[np.ndarray, ...]] = []
            for made in pool.imap(_photo, part, chunksize=2):
                for images, *rest in made:
                    start = len(labels) * VARIANTS
                    pixels[start : start + VARIANTS] = images
                    labels.append(tuple(rest))
            pixels.flush()
            families, kinds, distances, scale = (np.concatenate(column) for column in zip(*labels, strict=True))
            np.savez(cache / f"{name}_labels.npz", families=families, kinds=kinds, distance=distances, scale=scale)


def load_crops(cache: Path, split: str) -> Crops:
    """Read what `make_crops` wrote.

    Args:
        cache: the folder.
        split: "train" or "val".
    """
    labels = np.load(cache / f"{split}_labels.npz")
    pixels = np.load(cache / f"{split}_pixels.npy", mmap_mode="r")
    group = np.arange(len(pixels)) // VARIANTS
    return Crops(pixels, group, labels["families"], labels["kinds"], labels["distance"], labels["scale"])


def _rank(values: np.ndarray) -> np.ndarray:
    """Share of the values that are smaller, (N,) in [0, 1)."""
    ranks: np.ndarray = np.searchsorted(np.sort(values), values, side="left") / len(values)
    return ranks


def damage_of(crops: Crops) -> np.ndarray:
    """How much of the damage of each crop each family did, (N, F) float32; a row sums to the crop's damage in [0, 1].

    Damage is the rank, among all crops, of the average of two ranks: what was applied (nominal strengths) and what it
    did (distance to the undegraded crop). A photo that was shrunk less is softer to begin with, which counts as a
    little blur. A family's share is its share of the nominal strengths.
    """
    soft = 0.25 * (np.log2(crops.scale) + 0.9) / 1.2
    applied = crops.families.copy()
    applied[:, FAMILIES.index("blur")] += soft
    ranks = np.stack([_rank(column) for column in crops.distance.T], axis=1)
    seen = _rank(ranks @ np.array([0.3, 0.4, 0.15, 0.15]))
    total = _rank(0.5 * seen + 0.5 * _rank(crops.families.sum(1)) + 0.5 * soft)
    share = applied / np.maximum(applied.sum(1, keepdims=True), 1e-6)
    parts: np.ndarray = (share * total[:, None]).astype(np.float32)
    return parts


def level_of(damage: np.ndarray) -> np.ndarray:
    """Damage in [0, 1] -> a place among the levels, 0 (bad) to 4 (excellent).

    The power makes small damage count: everyday photos, a little damaged as they are, lie in the middle.
    """
    place: np.ndarray = 4 - 4 * np.clip(damage, 0, 1) ** 0.7
    return place
