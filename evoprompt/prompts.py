"""The pixel prompt: the only thing that is ever trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from evoprompt.errors import DataError

KINDS = ("border", "patch", "overlay")
PLACES = ("centre", "top-left")
PREPROCESSES = ("own", "imagenet-crop")
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """Geometry of a pixel prompt.

    Args:
        kind: ``border`` (a frame of ``size`` px), ``patch`` (a square of ``size`` px) or ``overlay`` (the whole image).
        image_size: side S of the square the judge sees, px.
        size: width of the frame or side of the patch, px; not used by ``overlay``.
        blocks: side of a block of equal colour, px, aligned to the image's top left corner; 0 = every pixel is free.
        strength: largest change of a pixel, in (0, 1] of the range [0, 1].
        place: where a patch sits, ``centre`` or ``top-left``.
        preprocess: how images are prepared for it, ``own`` (the judge's way) or ``imagenet-crop`` (that of the
            published pixel prompts), see ``questions.Family``.

    Raises:
        DataError: when a value is out of range.
    """

    kind: str = "border"
    image_size: int = 448
    size: int = 30
    blocks: int = 0
    strength: float = 1.0
    place: str = "centre"
    preprocess: str = "own"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(f"prompt kind {self.kind!r} is not known; use one of {', '.join(KINDS)}.")
        if self.place not in PLACES:
            raise DataError(f"prompt place {self.place!r} is not known; use one of {', '.join(PLACES)}.")
        if self.preprocess not in PREPROCESSES:
            raise DataError(f"preprocessing {self.preprocess!r} is not known; use one of {', '.join(PREPROCESSES)}.")
        if self.image_size < 1 or self.blocks < 0 or not 0 < self.strength <= 1:
            raise DataError(
                f"prompt with image size {self.image_size}, blocks {self.blocks}, strength {self.strength}: the image "
                "size must be at least 1, blocks at least 0 and the strength in (0, 1]."
            )
        largest = self.image_size // 2 if self.kind == "border" else self.image_size
        if self.kind != "overlay" and not 1 <= self.size <= largest:
            raise DataError(
                f"prompt.size {self.size} does not fit a {self.kind} on {self.image_size} px images; "
                f"use 1 to {largest}."
            )

    def cells(self) -> Tensor:
        """Which trained value each pixel takes.

        Returns:
            (S, S) int64: 0 where the prompt leaves the pixel alone, otherwise 1 + the number of the pixel's cell.
        """
        side = torch.arange(self.image_size)
        if self.kind == "border":
            edge = (side < self.size) | (side >= self.image_size - self.size)
            covered = edge[:, None] | edge[None, :]
        elif self.kind == "patch":
            start = (self.image_size - self.size) // 2 if self.place == "centre" else 0
            inside = (side >= start) & (side < start + self.size)
            covered = inside[:, None] & inside[None, :]
        else:
            covered = torch.ones(self.image_size, self.image_size, dtype=torch.bool)
        block = side // self.blocks if self.blocks else side
        name = block[:, None] * self.image_size + block[None, :]
        cells = torch.zeros_like(name)
        cells[covered] = torch.unique(name[covered], return_inverse=True)[1] + 1
        return cells


@dataclass(frozen=True)
class Origin:
    """Where a prompt comes from: stored beside it, printed with its scores.

    ``labels`` says which human scores it was trained with, ``none`` for label-free; ``control`` which control run it
    is the result of, ``none`` for a prompt that is meant; ``quantization`` the bits of the judge it was trained on, see
    ``small_cards.quantized``; ``seen`` what it has learnt from: content hashes of images, and keys of the reference
    images whose distorted copies they are (``naming.reference_of``). There may be millions, so they are gone through
    and never gathered.
    """

    judge: str = ""
    revision: str = ""
    family: str = ""
    question: str = ""
    recipe: str = ""
    data: str = ""
    round: int = 0
    version: str = ""
    labels: str = "none"
    control: str = "none"
    quantization: str = "none"
    score_range: tuple[float, float] = (1.0, 5.0)
    seen: Iterable[str] = field(default=(), repr=False, compare=False)

    def facts(self) -> dict[str, Any]:
        """All of it but ``seen``."""
        facts = asdict(replace(self, seen=()))
        del facts["seen"]
        return facts

    def __deepcopy__(self, memo: object) -> Origin:
        return self  # it never changes, and what was seen may lie on disk


@dataclass(frozen=True)
class SeenFile:
    """A ``seen.txt``, one hash or key a line, read from the disk each time it is gone through.

    Raises:
        DataError: while it is gone through, when the file cannot be read.
    """

    path: Path

    def __iter__(self) -> Iterator[str]:
        try:
            with self.path.open(encoding="utf-8") as lines:
                yield from (line.strip() for line in lines)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self.path} cannot be read ({error}). Export or download the prompt again.") from error


class PixelPrompt(nn.Module):
    """An additive, bounded change of the image: ``clamp(image + strength * tanh(theta), 0, 1)``.

    ``theta`` (3, n) float32 holds one value per colour and cell, zero at the start, and zero is exactly the bare image.
    """

    _cells: Tensor

    def __init__(self, config: PromptConfig, origin: Origin | None = None) -> None:
        super().__init__()
        self.config = config
        self.origin = origin or Origin()
        cells = config.cells()
        self.register_buffer("_cells", cells.flatten(), persistent=False)
        self.theta = nn.Parameter(torch.zeros(3, int(cells.max())))

    def delta(self) -> Tensor:
        """The change of the pixels: (3, S, S) float32 in [-strength, strength]."""
        bounded = self.config.strength * torch.tanh(self.theta)
        bounded = torch.cat([bounded.new_zeros(3, 1), bounded], dim=1)
        side = self.config.image_size
        return bounded.index_select(1, self._cells).view(3, side, side)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [0, 1] with the prompt added, same shape and range."""
        return (images + self.delta().to(images.dtype)).clamp(0, 1)

    @property
    def n_values(self) -> int:
        """How many numbers are trained."""
        return self.theta.numel()

    def sha(self) -> str:
        """Content hash of geometry and values, 12 hex digits."""
        geometry = asdict(self.config)
        if self.config.preprocess == "own":
            del geometry["preprocess"]  # prompts were hashed before there was another way
        digest = hashlib.sha256(json.dumps(geometry, sort_keys=True).encode())
        digest.update(self.theta.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:12]

    def saturated_fraction(self) -> float:
        """Share of values beyond 95 % of the strength, where tanh no longer learns; in [0, 1]."""
        return float((torch.tanh(self.theta.detach()).abs() > 0.95).float().mean())

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors``, and ``seen.txt`` with the hashes of the images used."""
        folder.mkdir(parents=True, exist_ok=True)
        # Not save_file, which leaves a file that nobody else may read.
        (folder / "model.safetensors").write_bytes(save({"theta": self.theta.detach().cpu().contiguous()}))
        body = {"schema": SCHEMA, "prompt": asdict(self.config), "sha": self.sha(), "origin": self.origin.facts()}
        (folder / "config.json").write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
        fresh = folder / ".seen.txt.tmp"  # what is written may be read from seen.txt itself
        with fresh.open("w", encoding="utf-8") as lines:
            lines.writelines(f"{key}\n" for key in self.origin.seen)
        fresh.replace(folder / "seen.txt")

    @classmethod
    def load(cls, folder: Path) -> PixelPrompt:
        """Read what ``save`` wrote.

        Raises:
            DataError: when files are missing, broken, of a newer version or do not belong together.
        """
        for name in ("config.json", "model.safetensors", "seen.txt"):
            if not (folder / name).is_file():
                raise DataError(f"{folder} is not a prompt folder: {name} is missing. Give a run or a prompt folder.")
        try:
            body = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            if body["schema"] > SCHEMA:
                raise DataError(f"{folder} was written by a newer evoprompt. Install that version or a later one.")
            sha = body["sha"]
            config = PromptConfig(**body["prompt"])
            origin = dict(body["origin"], score_range=tuple(body["origin"]["score_range"]))
            prompt = cls(config, Origin(**origin, seen=SeenFile(folder / "seen.txt")))
            theta = load_file(folder / "model.safetensors")["theta"]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, SafetensorError) as error:
            raise DataError(f"{folder} cannot be read as a prompt ({error}). Export or download it again.") from error
        if theta.shape != prompt.theta.shape:
            raise DataError(
                f"{folder}/model.safetensors holds values of shape {tuple(theta.shape)}, its config.json asks for "
                f"{tuple(prompt.theta.shape)}. The two files do not belong together."
            )
        with torch.no_grad():
            prompt.theta.copy_(theta)
        if prompt.sha() != sha:
            raise DataError(f"{folder}: the values do not match the hash in config.json. The folder was changed.")
        return prompt
