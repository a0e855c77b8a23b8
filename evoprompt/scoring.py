"""Scores of images: paths, pictures or tensors in, numbers from 1 (bad) to 5 (excellent) out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from evoprompt.errors import DataError
from evoprompt.images import as_rgb, fit_image, read_image
from evoprompt.judge import NANO, Judge, load_judge
from evoprompt.prompts import PixelPrompt
from evoprompt.questions import LEVELS

Picture = str | Path | Image.Image | Tensor


@dataclass(frozen=True)
class Score:
    """The score of one image.

    ``score`` in [1, 5], higher is better; ``probabilities`` of bad, poor, fair, good, excellent. An image that cannot
    be read has neither, and ``error`` says why.
    """

    image: str
    score: float | None
    probabilities: tuple[float, ...] | None
    error: str = ""

    def row(self) -> dict[str, str | float]:
        """The score as a row of a table; missing values are empty."""
        names = [f"p_{level}" for level in LEVELS]
        values = self.probabilities or ("",) * len(names)
        score = "" if self.score is None else round(self.score, 6)
        rounded = (v if isinstance(v, str) else round(v, 6) for v in values)
        return {"image": self.image, "score": score, **dict(zip(names, rounded, strict=True)), "error": self.error}


COLUMNS = ("image", "score", *(f"p_{level}" for level in LEVELS), "error")


def level_probabilities(logits: Tensor) -> Tensor:
    """Level probabilities of images from the logits of their views: (B, V, 5) -> (B, 5), averaged over the views."""
    return logits.float().softmax(-1).mean(1)


def score_views(judge: Judge, views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores of images already fitted.

    Args:
        judge: with the prompt to be used attached.
        views: (B, V, 3, S, S) uint8.

    Returns:
        Scores (B,) in [1, 5] and probabilities (B, 5), float64.
    """
    question = judge.family.rate[0]
    with torch.no_grad():
        seen = judge.encode(torch.from_numpy(views).flatten(0, 1).float() / 255)
        logits = judge.rate(seen, question).view(*views.shape[:2], -1)
    probabilities = level_probabilities(logits).cpu().double().numpy()
    return probabilities @ np.array(question.values), probabilities


class Scorer:
    """Scores images with a judge and, if given, a prompt.

    Example:
        >>> scorer = Scorer.load("runs/first")  # doctest: +SKIP
        >>> scorer(["a.jpg"])[0].score  # doctest: +SKIP
        3.91
    """

    score_range = (1.0, 5.0)
    higher_is_better = True

    def __init__(self, judge: Judge, prompt: PixelPrompt | None = None) -> None:
        self.judge, self.prompt = judge, prompt

    @classmethod
    def load(
        cls, prompt: str | Path | None = None, *, judge: str | None = None, device: str = "auto", dtype: str = "auto"
    ) -> Scorer:
        """Load a prompt and the judge it was evolved with.

        Args:
            prompt: run folder or prompt folder; None or ``none`` = the bare judge.
            judge: another judge than the prompt's; default for the bare judge: owl2-nano.
            device: ``auto`` or a torch device.
            dtype: of the judge, see ``judge.load_judge``.

        Raises:
            DataError: when the prompt cannot be read or does not fit the judge.
            JudgeError: when the judge cannot be loaded.
        """
        loaded = load_prompt(prompt)
        return cls(judge_for([loaded], judge, device, dtype), loaded)

    def __call__(self, images: Sequence[Picture], batch_size: int = 8) -> list[Score]:
        """Scores of images, in order; an image that cannot be read gets an ``error`` instead of a score.

        Args:
            images: paths, PIL images, or float tensors (3, H, W) or (B, 3, H, W) in [0, 1], RGB.
            batch_size: images at a time; does not change the scores.

        Raises:
            DataError: when a tensor has another shape, dtype or range.
        """
        return list(self.stream(images, batch_size))

    def stream(
        self, images: Sequence[Picture], batch_size: int = 8, done: Callable[[int], None] | None = None
    ) -> Iterator[Score]:
        """Scores one after the other; ``done`` is told how many more are finished."""
        flat = [(name, picture) for image in images for name, picture in _pictures(image)]
        self.judge.attach(self.prompt)
        for start in range(0, len(flat), batch_size):
            batch = flat[start : start + batch_size]
            fitted: list[np.ndarray] = []
            errors: list[str] = []
            for name, picture in batch:
                try:
                    opened = read_image(Path(name)) if picture is None else picture
                    fitted.append(
                        fit_image(opened, self.judge.family.fit, self.judge.image_size, self.judge.family.views)
                    )
                    errors.append("")
                except DataError as error:
                    errors.append(str(error))
            numbers = zip(*score_views(self.judge, np.stack(fitted)), strict=True) if fitted else iter(())
            for (name, _), reason in zip(batch, errors, strict=True):
                if reason:
                    yield Score(name, None, None, reason)
                else:
                    score, probabilities = next(numbers)
                    yield Score(name, float(score), tuple(probabilities.tolist()))
            if done is not None:
                done(len(batch))


def load_prompt(path: str | Path | None) -> PixelPrompt | None:
    """A prompt from a run folder, a round, or a prompt folder; None or ``none`` = no prompt.

    Raises:
        DataError: when the folder holds no prompt.
    """
    if path is None or str(path) == "none":
        return None
    folder = Path(path)
    if not folder.exists():
        raise DataError(
            f"prompt {folder} does not exist. Give a run folder, a prompt folder, or none for the bare judge."
        )
    if (folder / "run.json").is_file() and not (folder / "prompt").is_dir():
        raise DataError(
            f"run {folder} has no prompt yet: it stopped before its first round. "
            f"Continue it with 'evoprompt resume {folder}'."
        )
    return PixelPrompt.load(folder / "prompt" if (folder / "prompt").is_dir() else folder)


def judge_for(prompts: Sequence[PixelPrompt | None], name: str | None, device: str, dtype: str) -> Judge:
    """The judge that these prompts belong to.

    Raises:
        DataError: when they belong to different judges, or to another one than was asked for.
        JudgeError: when it cannot be loaded.
    """
    given = [p for p in prompts if p is not None]
    origins = {(p.origin.judge, p.origin.revision, p.origin.family) for p in given}
    if len(origins) > 1:
        listed = " and ".join(f"{judge}@{revision}" for judge, revision, _ in sorted(origins))
        raise DataError(f"the prompts were evolved with different judges ({listed}). Measure them one judge at a time.")
    wanted, revision, family = next(iter(origins), (name or NANO, None, "auto"))
    loaded = load_judge(name or wanted, _hub_revision(name or wanted, revision), family, dtype, device)
    for prompt in given:
        fits(prompt, loaded)
    return loaded


def fits(prompt: PixelPrompt, judge: Judge) -> None:
    """Check that a prompt was evolved with this judge.

    Raises:
        DataError: when it was evolved with another one.
    """
    origin = prompt.origin
    if (origin.judge, origin.revision) != (judge.id, judge.revision):
        raise DataError(
            f"the prompt was evolved with judge {origin.judge}@{origin.revision}; this judge is "
            f"{judge.id}@{judge.revision}. Load that one with --judge {origin.judge}, or evolve a prompt for this one."
        )


def _hub_revision(name: str, revision: str | None) -> str | None:
    """A revision to ask the Hub for; folders and the embedded judge have only a fingerprint."""
    return None if name == NANO or Path(name).exists() else revision


def _pictures(image: Picture) -> list[tuple[str, Image.Image | None]]:
    if isinstance(image, str | Path):
        return [(str(image), None)]
    if isinstance(image, Image.Image):
        return [(getattr(image, "filename", "") or "image", as_rgb(image))]
    shape = tuple(image.shape)
    if image.ndim not in (3, 4) or shape[-3] != 3 or not image.is_floating_point():
        raise DataError(
            f"a tensor of shape {shape} and dtype {image.dtype} is not an image; give floats (3, H, W) or (B, 3, H, W)."
        )
    low, high = float(image.min()), float(image.max())
    if not 0 <= low <= high <= 1:
        raise DataError(
            f"tensor values lie between {low:g} and {high:g}; they must be RGB in [0, 1]. Divide 8-bit values by 255."
        )
    batch = image if image.ndim == 4 else image[None]
    arrays = (batch * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [(f"tensor {k}", Image.fromarray(array)) for k, array in enumerate(arrays)]
