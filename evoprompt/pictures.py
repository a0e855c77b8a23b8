"""Pictures for the report: a prompt read without torch, what it does to an image, and thumbnails as inline PNG."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

from evoprompt.containers import content, exists
from evoprompt.errors import DataError
from evoprompt.images import fit_image, read_image

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Shown:
    """A prompt as pixels.

    Attributes:
        delta: (S, S, 3) float32, change of an image whose range is [0, 1].
        sha: Its content hash, from ``config.json``.
    """

    delta: NDArray[np.float32]
    sha: str

    @property
    def largest(self) -> float:
        """Largest change of any value, 0 for the bare judge."""
        return float(np.abs(self.delta).max())


def read_prompt(folder: Path) -> Shown:
    """Read a prompt folder, as ``PixelPrompt.save`` wrote it."""
    body = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape: dict[str, Any] = body["prompt"]
    theta = load_file(folder / "model.safetensors")["theta"].astype(np.float32)
    values = np.concatenate([np.zeros((3, 1), np.float32), shape["strength"] * np.tanh(theta)], axis=1)
    delta: NDArray[np.float32] = np.moveaxis(values[:, _cells(shape)], 0, -1).astype(np.float32)
    return Shown(delta, body["sha"])


def _cells(shape: Mapping[str, Any]) -> NDArray[np.int64]:
    """Which value each pixel takes, (S, S): 0 outside the prompt, as ``PromptConfig.cells`` numbers them."""
    side, size = np.arange(shape["image_size"]), shape["size"]
    if shape["kind"] == "border":
        edge = (side < size) | (side >= len(side) - size)
        covered = edge[:, None] | edge[None, :]
    elif shape["kind"] == "patch":
        start = (len(side) - size) // 2 if shape["place"] == "centre" else 0
        inside = (side >= start) & (side < start + size)
        covered = inside[:, None] & inside[None, :]
    else:
        covered = np.ones((len(side), len(side)), bool)
    block = side // shape["blocks"] if shape["blocks"] else side
    name = block[:, None] * len(side) + block[None, :]
    cells = np.zeros_like(name)
    cells[covered] = np.unique(name[covered], return_inverse=True)[1] + 1
    return cells


def on_grey(prompt: Shown, gain: float = 1.0) -> Pixels:
    """The prompt over mid-grey, its changes multiplied; (S, S, 3) uint8."""
    return _bytes(0.5 + gain * prompt.delta)


def with_prompt(view: Pixels, prompt: Shown) -> Pixels:
    """An image (S, S, 3) uint8 as the judge sees it with the prompt."""
    return _bytes(view.astype(np.float32) / 255 + prompt.delta)


def own_image(row: Mapping[str, Any]) -> Image.Image:
    """An image of the run, when it still is what it was.

    Args:
        row: Its row of ``images.parquet``.

    Raises:
        DataError: When the file is gone, changed or unreadable.
    """
    path = Path(row["path"])
    if not exists(path) or hashlib.sha256(content(path)).hexdigest() != row["sha256"]:
        raise DataError(f"image {path} is gone or changed. Put it back to see it in the report.")
    return read_image(path)


def judged_view(row: Mapping[str, Any], fit: str, size: int) -> Pixels:
    """The first view of an image that the judge is given, (S, S, 3) uint8.

    Raises:
        DataError: When the file is gone, changed or unreadable.
    """
    return np.moveaxis(fit_image(own_image(row), fit, size)[0], 0, -1)


def thumbnail(row: Mapping[str, Any], edge: int) -> Pixels:
    """A small copy of an image in its own proportions, (H, W, 3) uint8.

    Raises:
        DataError: When the file is gone, changed or unreadable.
    """
    small = own_image(row)
    small.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    return np.asarray(small)


def img(pixels: Pixels, alt: str, width: int, *, css: str = "", most: int = 0) -> str:
    """Pixels (H, W, 3) uint8 as an ``<img>`` that holds its own data.

    Args:
        pixels: What to show.
        alt: For those who cannot see it.
        width: Shown at, CSS px.
        css: Class.
        most: Scale larger pictures down to this edge, px; 0 keeps all pixels.
    """
    image = Image.fromarray(pixels)
    if most:
        image.thumbnail((most, most), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    kind = f' class="{css}"' if css else ""
    return f'<img{kind} width="{width}" alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def _bytes(values: NDArray[np.floating[Any]]) -> Pixels:
    pixels: Pixels = (values.clip(0, 1) * 255).round().astype(np.uint8)
    return pixels
