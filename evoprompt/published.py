"""Pixel prompts as others released them (arXiv 2509.03494): state dictionaries without a word about themselves."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch
from torch import Tensor

from evoprompt import __version__
from evoprompt.errors import DataError, listed
from evoprompt.prompts import PUBLISHED, Origin, PixelPrompt, PromptConfig


def read_published(path: Path, config: PromptConfig, judge: str, family: str, question: str) -> PixelPrompt:
    """Read a released ``visual_prompt.pth``.

    It holds the values before tanh, nothing else: for a border ``pad_up`` and ``pad_down`` (1, 3, size, S) and
    ``pad_left`` and ``pad_right`` (1, 3, S - 2 size, size), for a patch ``patch`` (1, 3, size, size), for an overlay
    ``prompt`` (1, 3, S, S), with S the image size. Added were tanh of them, without blocks and with strength 1.

    The same code could also multiply the image by tanh of them, which blackens all that the prompt does not cover. Such
    files look alike; only the experiment's name, which the folder has, ends in ``_mul``.

    Args:
        path: the file; it is read without running anything in it.
        config: geometry, with free pixels (``blocks`` 0).
        judge: id of the judge it was trained with.
        family: its family.
        question: name of the question it was trained on.

    Returns:
        The prompt, its origin saying what is known of it.

    Raises:
        DataError: when the file is no such dictionary, does not fit the geometry, or is of a multiplied prompt.
    """
    if multiplied := [part for part in path.resolve().parts if re.search(r"[_-]mul(tiply|tiplicative)?$", part)]:
        raise DataError(
            f"{path} is of experiment {multiplied[-1]}, by its name a prompt that images are multiplied by; only "
            "prompts that are added can be used. If it was added, put the file into another folder."
        )
    values = _load(path)
    expected = _shapes(config)
    wrong = [
        *(f"{name} is missing" for name in expected if name not in values),
        *(f"{name} is not expected" for name in values if name not in expected),
        *(
            f"{name} is {tuple(values[name].shape)}, not {shape}"
            for name, shape in expected.items()
            if name in values and tuple(values[name].shape) != shape
        ),
        *(f"{name} holds values that are not finite" for name, x in values.items() if not bool(x.isfinite().all())),
    ]
    if wrong:
        raise DataError(
            f"{path} does not fit a {config.kind} of {config.size} px on {config.image_size} px images: "
            f"{listed(wrong)}. Give --kind and --size as it was trained."
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    origin = Origin(
        judge=judge,
        family=family,
        question=question,
        version=__version__,
        labels=f"{PUBLISHED} ({path.name} {digest})",
    )
    prompt = PixelPrompt(config, origin)
    with torch.no_grad():
        prompt.theta.copy_(_canvas(values, config)[:, config.cells() > 0])
    return prompt


def _load(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Give a visual_prompt.pth.") from error
    except (
        Exception
    ) as error:  # of any kind where the bytes are no such file; torch's text says how to run what is in it
        begins = path.open("rb").read(24)
        known = f"; it begins with {begins.decode()!r}" if begins.isascii() and begins.strip() else ""
        raise DataError(
            f"{path} is not a file of plain tensors ({path.stat().st_size:,} bytes{known}). Give a visual_prompt.pth, "
            "or download it again."
        ) from error
    if not isinstance(found, dict) or not all(isinstance(x, Tensor) for x in found.values()):
        raise DataError(f"{path} holds something else than tensors by name. Give a visual_prompt.pth.")
    return {str(name): x.float() for name, x in found.items()}


def _shapes(config: PromptConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a geometry."""
    side, size = config.image_size, config.size
    if config.kind == "border":
        long, short = (1, 3, size, side), (1, 3, side - 2 * size, size)
        return {"pad_up": long, "pad_down": long, "pad_left": short, "pad_right": short}
    return {"patch": (1, 3, size, size)} if config.kind == "patch" else {"prompt": (1, 3, side, side)}


def _canvas(values: dict[str, Tensor], config: PromptConfig) -> Tensor:
    """The values where they belong on the image, (3, S, S)."""
    side, size = config.image_size, config.size
    canvas = torch.zeros(3, side, side)
    if config.kind == "border":
        canvas[:, :size], canvas[:, side - size :] = values["pad_up"][0], values["pad_down"][0]
        canvas[:, size : side - size, :size] = values["pad_left"][0]
        canvas[:, size : side - size, side - size :] = values["pad_right"][0]
    elif config.kind == "patch":
        start = (side - size) // 2 if config.place == "centre" else 0
        canvas[:, start : start + size, start : start + size] = values["patch"][0]
    else:
        canvas = values["prompt"][0]
    return canvas
