"""Scores of images: paths, pictures or tensors in, numbers from 1 (bad) to 5 (excellent) out."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from evoprompt.ahead import ahead
from evoprompt.anchors import AnchorRater, Anchors, find_anchors
from evoprompt.config import FEWER_BITS, PixelConfig, shown
from evoprompt.errors import DataError, RecipeError, listed
from evoprompt.images import as_rgb, fit_image, read_image
from evoprompt.judge import NANO, Judge, OwlJudge, load_judge, to_pixels
from evoprompt.labels import Labels
from evoprompt.processes import in_turns, rank, world
from evoprompt.prompts import PixelPrompt, PromptConfig
from evoprompt.questions import LEVELS, OTHER, Preprocess, Question
from evoprompt.small_cards import Quantization
from evoprompt.tracking import Update

PROMPT_FILES = ["config.json", "model.safetensors", "seen.txt"]
Picture = str | Path | Image.Image | Tensor


@dataclass(frozen=True)
class Score:
    """The score of one image.

    ``score`` in [1, 5], higher is better; ``probabilities`` of the ``answers``: bad, poor, fair, good, excellent unless
    the judge rates with another readout, None when it compared with anchors. An image that cannot be read has neither,
    and ``error`` says why.
    """

    image: str
    score: float | None
    probabilities: tuple[float, ...] | None
    error: str = ""
    answers: tuple[str, ...] = LEVELS

    def row(self) -> dict[str, str | float]:
        """The score as a row of a table; missing values are empty."""
        names = [f"p_{answer}" for answer in _named(self.answers)]
        values = self.probabilities or ("",) * len(names)
        score = "" if self.score is None else round(self.score, 6)
        rounded = (v if isinstance(v, str) else round(v, 6) for v in values)
        return {"image": self.image, "score": score, **dict(zip(names, rounded, strict=True)), "error": self.error}


def columns(question: Question) -> tuple[str, ...]:
    """The header of a file of scores that were read from this question's answers."""
    return ("image", "score", *(f"p_{answer}" for answer in _named(question.answers)), "error")


def _named(answers: Sequence[str]) -> list[str]:
    """Answers as parts of a column's name."""
    return ["other" if answer == OTHER else answer for answer in answers]


def level_probabilities(logits: Tensor) -> Tensor:
    """Answer probabilities of images from the logits of their views: (B, V, A) -> (B, A), averaged over the views."""
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
        seen = judge.encode(to_pixels(judge, views))
        logits = judge.rate(seen, question).view(*views.shape[:2], -1)
    probabilities = level_probabilities(logits).cpu().double().numpy()
    return probabilities @ np.array(question.values), probabilities


def score_labels(
    judge: Judge, prompts: Sequence[PixelPrompt | None], labels: Labels, batch_size: int, advance: Update
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Scores of all labelled images under each prompt; every image is read once, of several processes by one.

    Returns:
        Scores (N,) and answer probabilities (N, A), float64, of each prompt.
    """
    paths = labels.paths
    blocks = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]

    def fitted(path: Path) -> np.ndarray:
        return fit_image(read_image(path), judge.family.fit, judge.image_size, judge.family.views)

    images = ahead(fitted, chain.from_iterable(blocks[rank() :: world()]), 2 * batch_size)

    def scored(block: Sequence[Path]) -> list[tuple[np.ndarray, np.ndarray]]:
        views, found = np.stack(list(islice(images, len(block)))), []
        for prompt in prompts:
            judge.attach(prompt)
            found.append(score_views(judge, views))
        return found

    rows = []
    for block, row in zip(blocks, in_turns(blocks, scored), strict=True):
        rows.append(row)
        advance(len(block))
    return [(np.concatenate([s for s, _ in c]), np.concatenate([p for _, p in c])) for c in zip(*rows, strict=True)]


class Scorer:
    """Scores images with a judge and, if given, a prompt.

    Example:
        >>> scorer = Scorer.load("runs/first")  # doctest: +SKIP
        >>> scorer(["a.jpg"])[0].score  # doctest: +SKIP
        3.91
    """

    score_range = (1.0, 5.0)
    higher_is_better = True

    def __init__(self, judge: Judge, prompt: PixelPrompt | None = None, anchors: Anchors | None = None) -> None:
        self.judge, self.prompt, self.anchors = judge, prompt, anchors

    @classmethod
    def load(
        cls,
        prompt: str | Path | None = None,
        *,
        judge: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        anchors: str | None = None,
    ) -> Scorer:
        """Load a prompt and the judge it was evolved with.

        Args:
            prompt: run folder or prompt folder; None or ``none`` = the bare judge.
            judge: another judge than the prompt's; default for the bare judge: owl2-nano.
            device: ``auto`` or a torch device.
            dtype: of the judge, see ``judge_for``.
            anchors: images to compare with instead of rating, see ``anchors.find_anchors``.

        Raises:
            DataError: when the prompt or the anchors cannot be read, or the prompt does not fit the judge.
            JudgeError: when the judge cannot be loaded.
        """
        loaded = load_prompt(prompt)
        chosen = judge_for([loaded], judge, device, dtype)
        return cls(chosen, loaded, find_anchors(anchors, chosen.family.name, prompted=loaded is not None))

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
        self, images: Iterable[Picture], batch_size: int = 8, done: Callable[[int], None] | None = None
    ) -> Iterator[Score]:
        """Scores one after the other; ``done`` is told how many more are finished."""
        flat = ((name, picture) for image in images for name, picture in _pictures(image))
        self.judge.attach(self.prompt)
        rater = None if self.anchors is None else AnchorRater(self.judge, self.anchors)
        answers = self.judge.family.rate[0].answers
        ready = ahead(self._fitted, flat, 2 * batch_size)
        while batch := list(islice(ready, batch_size)):
            fitted = [views for _, views in batch if not isinstance(views, str)]
            numbers = _numbers(self.judge, rater, np.stack(fitted)) if fitted else iter(())
            for name, views in batch:
                if isinstance(views, str):
                    yield Score(name, None, None, views, answers)
                else:
                    score, probabilities = next(numbers)
                    yield Score(name, score, probabilities, "", answers)
            if done is not None:
                done(len(batch))

    def _fitted(self, given: tuple[str, Image.Image | str | None]) -> tuple[str, np.ndarray | str]:
        """Name and views (V, 3, S, S) of an image, or what is wrong with it."""
        name, picture = given
        if isinstance(picture, str):
            return name, picture
        try:
            opened = read_image(Path(name)) if picture is None else picture
            return name, fit_image(opened, self.judge.family.fit, self.judge.image_size, self.judge.family.views)
        except DataError as error:
            return name, str(error)


def _numbers(
    judge: Judge, rater: AnchorRater | None, views: np.ndarray
) -> Iterator[tuple[float, tuple[float, ...] | None]]:
    """Score and answer probabilities of fitted images; comparisons with anchors give no probabilities of answers."""
    if rater is not None:
        return ((float(score), None) for score in rater(views))
    return ((float(score), tuple(row.tolist())) for score, row in zip(*score_views(judge, views), strict=True))


def load_prompt(path: str | Path | None) -> PixelPrompt | None:
    """A prompt from a run folder, a round, a prompt folder or a Hub id; None or ``none`` = no prompt.

    ``owl2-nano`` is the prompt in the package: what the first command of README.md makes of the embedded judge.

    Raises:
        DataError: when there is no prompt.
    """
    if path is None or str(path) == "none":
        return None
    if str(path) == NANO:
        with importlib.resources.as_file(importlib.resources.files("evoprompt") / "nano" / "prompt") as folder:
            return PixelPrompt.load(folder)
    folder = Path(path) if Path(path).exists() else _from_hub(str(path))
    if (folder / "run.json").is_file() and not (folder / "prompt").is_dir():
        raise DataError(
            f"run {folder} has no prompt yet: it stopped before its first round. "
            f"Continue it with 'evoprompt resume {folder}'."
        )
    return PixelPrompt.load(folder / "prompt" if (folder / "prompt").is_dir() else folder)


def _from_hub(name: str) -> Path:
    """Folder of a prompt on the Hub, ``OWNER/NAME`` or ``OWNER/NAME@REVISION``, from the local cache if it is there.

    Raises:
        DataError: when it is no such name, or cannot be had.
    """
    repository, _, revision = name.partition("@")
    problem = "it is neither a folder here nor a Hub id (OWNER/NAME)"
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", repository):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(repository, revision=revision or None, allow_patterns=PROMPT_FILES))
        except (OSError, ValueError) as error:
            problem = f"it is no folder here, and the Hub says: {str(error).strip().splitlines()[0].rstrip('.')}"
    raise DataError(
        f"prompt {name} does not exist: {problem}. Give a run folder, a prompt folder, a Hub id, {NANO} for the "
        "prompt in the package, or none for the bare judge."
    )


def judge_for(prompts: Sequence[PixelPrompt | None], name: str | None, device: str, dtype: str) -> OwlJudge:
    """The judge that these prompts belong to, loaded as it was when they were trained.

    Args:
        prompts: None among them is the bare judge, which belongs to all.
        name: another judge than the prompts'; None for theirs, or the embedded one.
        device: see ``load_judge``.
        dtype: see ``load_judge``; or ``8bit`` or ``4bit``. ``auto`` takes the bits the prompts were trained with, a
            dtype takes whole weights.

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
    readings = {(p.origin.question or "auto", p.config.preprocess) for p in given}
    if len(readings) > 1:
        named = " and ".join(f"question {question}, preprocessing {way}" for question, way in sorted(readings))
        raise DataError(f"the prompts make the judge rate in different ways ({named}). Measure them one way at a time.")
    question, way = next(iter(readings), ("auto", "own"))
    bits = {p.origin.quantization for p in given}
    if dtype == "auto" and len(bits) > 1:
        raise DataError(
            f"the prompts were trained on weights of different bits ({' and '.join(sorted(bits))}). Measure them one "
            "way at a time, or all one way with --dtype."
        )
    fewer = dtype if dtype in FEWER_BITS else next(iter(bits), "none") if dtype == "auto" else "none"
    loaded = load_judge(
        name or wanted, _hub_revision(name or wanted, revision), family, "auto" if dtype in FEWER_BITS else dtype,
        device, question, cast(Preprocess, way), cast(Quantization, fewer),
    )  # fmt: skip
    for prompt in given:
        fits(prompt, loaded)
    return loaded


def fits(prompt: PixelPrompt, judge: Judge) -> None:
    """Check that a prompt was evolved with this judge, asked in the same way.

    A prompt that was imported does not know the judge's revision: then its name is compared alone.

    Raises:
        DataError: when it was evolved with another one, or for another question.
    """
    origin, question = prompt.origin, judge.family.rate[0].name
    if origin.judge != judge.id or origin.revision not in ("", judge.revision):
        raise DataError(
            f"the prompt was evolved with judge {origin.judge}@{origin.revision}; this judge is "
            f"{judge.id}@{judge.revision}. Load that one with --judge {origin.judge}, or evolve a prompt for this one."
        )
    if origin.question not in ("", question) or prompt.config.preprocess != judge.family.preprocess:
        raise DataError(
            f"the prompt was evolved for question {origin.question} and preprocessing {prompt.config.preprocess}; this "
            f"judge rates with {question} and {judge.family.preprocess}. Set -s judge.question={origin.question} "
            f"-s judge.preprocess={prompt.config.preprocess}."
        )


def same_geometry(start: PromptConfig, wanted: PixelConfig) -> None:
    """Check that a recipe asks for the geometry of the prompt that a run starts from, because that is what is trained.

    Raises:
        RecipeError: with the keys that differ.
    """
    wrong = [
        f"prompt.{key} {shown(value)}, not {shown(has)}"
        for key, value in asdict(wanted).items()
        if value != (has := getattr(start, key))
    ]
    if wrong:
        raise RecipeError(
            f"the recipe differs from the prompt to start from: {listed(wrong)}. Leave these keys out, or start "
            "without --init-prompt."
        )


def _hub_revision(name: str, revision: str | None) -> str | None:
    """A revision to ask the Hub for; folders and the embedded judge have only a fingerprint."""
    return None if name == NANO or Path(name).exists() else revision


def _pictures(image: Picture) -> list[tuple[str, Image.Image | str | None]]:
    """Names and images, those of a path still to be read; text says what is wrong with one."""
    if isinstance(image, str | Path):
        return [(str(image), None)]
    if isinstance(image, Image.Image):
        name = getattr(image, "filename", "") or "image"
        try:
            return [(name, as_rgb(image))]
        except (OSError, SyntaxError, ValueError) as error:  # Pillow reads a file only when its pixels are asked for
            return [(name, f"image {name} cannot be read ({error}). Replace or remove it.")]
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
