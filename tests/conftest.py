"""A scripted judge whose knowledge is known, and images it knows about."""

from __future__ import annotations

import csv
import hashlib
import os
import tempfile
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["EVOPROMPT_CACHE"] = tempfile.mkdtemp(prefix="evoprompt-cache-")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from evoprompt.config import LadderConfig, PairsConfig, PixelConfig, Recipe, TrainConfig, VoteConfig
from evoprompt.degrade import degrade
from evoprompt.images import ImageSet, scan_images
from evoprompt.prompts import PixelPrompt
from evoprompt.questions import FAMILIES, Question
from evoprompt.tracking import Console

SIDE, BORDER = 48, 8
torch.set_num_threads(1)


def base_picture() -> np.ndarray:
    """The picture that every toy image is a disturbed copy of: (48, 48, 3) float in [0, 1]."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    planes = [
        0.5 + 0.2 * np.sin(9 * x + k) * np.cos(7 * y - k) + 0.06 * np.sign(np.sin(40 * x * y + k)) for k in range(3)
    ]
    return np.clip(np.stack(planes, axis=-1), 0, 1)


class ScriptedJudge:
    """A judge that knows the undisturbed picture.

    It compares by the distance to that picture, right in a known share of the pairs. Its rating mixes that distance
    with a nuisance, the brightness of the image, and only the blue of the border says how much: a prompt can learn to
    ignore it.
    """

    id, revision, family, image_size = "scripted", "0", FAMILIES["owl2"], SIDE
    device, precision = torch.device("cpu"), "float32"

    def __init__(
        self, accuracy: float = 1.0, order_bias: float = 0.0, blind: bool = False, silent: float = 0.0
    ) -> None:
        self.accuracy, self.order_bias, self.blind, self.silent = accuracy, order_bias, blind, silent
        self.prompt: PixelPrompt | None = None
        self.base = torch.from_numpy(base_picture()).permute(2, 0, 1).float()

    def attach(self, prompt: PixelPrompt | None) -> None:
        self.prompt = prompt

    def encode(self, pixels: Tensor) -> Tensor:
        x = pixels if self.prompt is None else self.prompt(pixels)
        inside = slice(BORDER, SIDE - BORDER)
        centre, base = x[:, :, inside, inside], self.base[:, inside, inside]
        gap = (centre - centre.mean((2, 3), keepdim=True)) - (base - base.mean((1, 2), keepdim=True))
        distance = gap.square().mean((1, 2, 3)).sqrt()
        brightness = centre.mean((1, 2, 3)) - base.mean()
        blue = (x[:, 2].mean((1, 2)) - centre[:, 2].mean((1, 2))) - (self.base[2].mean() - base[2].mean())
        return torch.stack([distance, brightness, blue], dim=-1)[:, None]

    def rate(self, seen: Tensor, question: Question) -> Tensor:
        distance, brightness, blue = seen[:, 0].unbind(-1)
        score = 4.2 - 14 * distance + 12 * (1 - 8 * blue) * brightness
        levels = torch.arange(1.0, 6.0)
        return -(levels - score[:, None].clamp(0.6, 5.4)).square() / 0.5

    def compare(self, first: Tensor, second: Tensor, question: Question) -> Tensor:
        a, b = first[:, 0, 0], second[:, 0, 0]
        logit = torch.sign(b - a) * 2.0
        flips = torch.tensor([self._wrong(float(x), float(y)) for x, y in zip(a, b, strict=True)])
        logit = logit * flips + self.order_bias
        return torch.stack([logit / 2, -logit / 2], dim=-1)

    def compare_among(self, seen: Tensor, pairs: Tensor, question: Question) -> Tensor:
        return self.compare(seen[pairs[:, 0]], seen[pairs[:, 1]], question)

    @property
    def prompt_sha(self) -> str:
        return "none" if self.prompt is None else self.prompt.sha()

    def ask(self, seen: Sequence[Tensor], text: str, answers: Sequence[str]) -> Tensor:
        """Answers about the last images of a text, as `rate` and `compare` do."""
        if tuple(answers) == ("first", "second"):
            return self.compare(seen[-2], seen[-1], self.family.compare[0])
        return self.rate(seen[-1], self.family.rate[0])

    def tell(self, seen: Sequence[Tensor], text: str, limit: int) -> list[str]:
        """A description where one is asked for; else a ranking of the last four images, wrong ones the wrong way round.

        A share `silent` of the rankings is no ranking.
        """
        if text.endswith("Description:"):
            return [f"distance {float(image):.2f}" for image in seen[-1][:, 0, 0]]
        told = []
        for distances in zip(*(image[:, 0, 0].tolist() for image in seen[-4:]), strict=True):
            order = sorted(range(4), key=lambda k: self._wrong(*sorted(distances)[::3]) * distances[k])
            draw = int.from_bytes(hashlib.sha256(repr(distances).encode()).digest()[:4], "big") / 2**32
            words = [("first", "second", "third", "fourth")[k] for k in order]
            told.append("hard to tell" if draw < self.silent else ", ".join(words))
        return told

    def features(self, pixels: Tensor) -> Tensor:
        return self.encode(pixels)[:, 0]

    def _wrong(self, a: float, b: float) -> float:
        """-1 for the pairs this judge gets wrong; a pair and its swap are the same pair."""
        key = f"{min(a, b):.5f} {max(a, b):.5f}".encode()
        draw = int.from_bytes(hashlib.sha256(key).digest()[:4], "big") / 2**32
        return -1.0 if draw > (0.5 if self.blind else self.accuracy) else 1.0


def write_toy_images(folder: Path, n: int = 60, seed: int = 0) -> np.ndarray:
    """Disturbed copies of the base picture as PNG; returns their true quality (n,), higher is better."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    amount = rng.uniform(0.01, 0.16, n)
    for k in range(n):
        picture = base_picture() + rng.normal(0, amount[k], (SIDE, SIDE, 3)) + rng.uniform(-0.12, 0.12)
        Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8)).save(folder / f"toy{k:02d}.png")
    return -amount


def write_photos(folder: Path) -> None:
    """Sixteen smooth pictures of 240 x 200 px, noisier and noisier, with their order in labels.csv."""
    y, x = np.mgrid[:200, :240] / 40
    rows = [("image", "mos")]
    for k in range(16):
        planes = [127 + 90 * np.sin(x * (1 + c) + k) * np.cos(y - c) for c in range(3)]
        noisy = degrade(np.stack(planes, -1).astype(np.uint8), "white_noise", 0.2 + 0.3 * k, np.random.default_rng(k))
        Image.fromarray(noisy).save(folder / f"p{k:02d}.png")
        rows.append((f"p{k:02d}.png", str(16 - k)))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


class Stop(KeyboardInterrupt):
    """A kill, on purpose."""


class StoppingConsole(Console):
    """Interrupts the run when a stage has reported so many times."""

    def __init__(self, stage: str, after: int) -> None:
        super().__init__(quiet=True)
        self.stage, self.left = stage, after

    def progress(self, label, total):  # type: ignore[no-untyped-def]
        @contextmanager
        def watch():  # type: ignore[no-untyped-def]
            def advance(n: int = 1, **_: float) -> None:
                if self.stage in label:
                    self.left -= 1
                    if self.left < 0:
                        raise Stop

            yield advance

        return watch()


@pytest.fixture
def toy_folder(tmp_path: Path) -> Path:
    """60 toy images."""
    write_toy_images(tmp_path / "toys")
    return tmp_path / "toys"


@pytest.fixture
def toys(toy_folder: Path) -> ImageSet:
    """The toy images, scanned."""
    return scan_images([toy_folder])


@pytest.fixture
def quick() -> Recipe:
    """A recipe of seconds for the scripted judge."""
    return Recipe(
        rounds=2,
        prompt=PixelConfig(size=BORDER, blocks=BORDER),
        pairs=PairsConfig(per_round=280, group=8, heldout=0.4),
        vote=VoteConfig(wordings=1, views=1),
        train=TrainConfig(steps=24, lr=0.06, save_every=6),
        ladder=LadderConfig(images=10, kinds=5),
    )
