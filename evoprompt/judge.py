"""The judge: a frozen multimodal LLM that rates one image or compares two."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.utils.logging import disable_progress_bar

from evoprompt.errors import JudgeError
from evoprompt.owl2 import load_owl2
from evoprompt.prompts import PixelPrompt
from evoprompt.questions import FAMILIES, Family, Question

NANO = "owl2-nano"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Judge(Protocol):
    """What evolution needs of a judge. Pixels are looked at once, in ``encode``; questions are put to what was seen."""

    id: str
    revision: str
    family: Family
    image_size: int
    device: torch.device

    def attach(self, prompt: PixelPrompt | None) -> None:
        """Add this prompt to every image from now on; None = the bare judge."""

    def encode(self, pixels: Tensor) -> Tensor:
        """Images (B, 3, S, S) float32 in [0, 1] -> what the judge keeps of them (B, T, D), differentiable in pixels."""

    def rate(self, seen: Tensor, question: Question) -> Tensor:
        """Encoded images (B, T, D) -> logits of the five levels, bad to excellent (B, 5) float32."""

    def compare(self, first: Tensor, second: Tensor, question: Question) -> Tensor:
        """Encoded pairs 2 x (P, T, D) -> logits of (first is better, second is better) (P, 2) float32."""


def preference_logits(judge: Judge, a: Tensor, b: Tensor, question: Question) -> tuple[Tensor, Tensor]:
    """Preference for ``a`` over ``b`` when ``a`` is shown first, and when it is shown second.

    Their mean is free of additive position bias: a bias toward the first image enters them with opposite sign.

    Args:
        judge: the judge asked.
        a: (P, T, D) encoded images.
        b: (P, T, D) encoded images.
        question: a comparison.

    Returns:
        Two (P,) float32 log-odds that ``a`` is the better one.
    """
    ab = judge.compare(a, b, question)
    ba = judge.compare(b, a, question)
    return ab[:, 0] - ab[:, 1], ba[:, 1] - ba[:, 0]


@dataclass(frozen=True)
class _Asked:
    """A question as token ids: text chunks around the images, and the ids of the answer words."""

    chunks: tuple[Tensor, ...]
    answers: Tensor


class OwlJudge:
    """mPLUG-Owl2 and its relatives as a judge; no parameter requires grad, gradients reach the pixels.

    Args:
        model: the loaded model, see ``evoprompt.owl2``.
        processor: its processor (tokenizer and image constants).
        name: id shown and stored.
        revision: revision or weight fingerprint.
        family: how images are fitted and questions put.
        source: folder or hub id that ``load_judge`` takes to load it again.

    Raises:
        JudgeError: when an answer of one of the family's questions is not a single token for this tokenizer.
    """

    def __init__(self, model: Any, processor: Any, name: str, revision: str, family: Family) -> None:
        self.model = model.requires_grad_(False).eval()
        self.processor = processor
        self.id, self.revision, self.family = name, revision, family
        self.image_size = int(model.config.vision_config.image_size)
        self.device = next(model.parameters()).device
        constants = processor.image_processor
        self._mean = torch.tensor(constants.image_mean, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(constants.image_std, device=self.device).view(1, 3, 1, 1)
        self._prompt: PixelPrompt | None = None
        self._asked: dict[Question, _Asked] = {}
        # At the image tower, because every road to an answer (forward, generate, TRL) passes there and nowhere else.
        model.model.vision_model.register_forward_pre_hook(self._add_prompt, with_kwargs=True)
        self._check_answers()

    def attach(self, prompt: PixelPrompt | None) -> None:
        """Add this prompt to every image from now on; None = the bare judge.

        Raises:
            JudgeError: when the prompt was made for another image size.
        """
        if prompt is not None and prompt.config.image_size != self.image_size:
            raise JudgeError(
                f"the prompt was made for {prompt.config.image_size} px images, judge {self.id} sees "
                f"{self.image_size} px images. Load the judge it was evolved with "
                f"({prompt.origin.judge or 'not recorded'})."
            )
        self._prompt = None if prompt is None else prompt.to(self.device)

    def encode(self, pixels: Tensor) -> Tensor:
        """Images (B, 3, S, S) float32 in [0, 1] -> visual tokens (B, T, D), differentiable in pixels."""
        pixels = pixels.to(self.device, torch.float32)
        seen: Tensor = self.model.get_visual_tokens((pixels - self._mean) / self._std)
        return seen

    def rate(self, seen: Tensor, question: Question) -> Tensor:
        """Visual tokens (B, T, D) -> logits of the five levels, bad to excellent (B, 5) float32."""
        asked = self._ask(question)
        return self._answer([asked.chunks[0], seen, asked.chunks[1]], asked, question)

    def compare(self, first: Tensor, second: Tensor, question: Question) -> Tensor:
        """Visual tokens 2 x (P, T, D) -> logits of (first is better, second is better) (P, 2) float32."""
        asked = self._ask(question)
        segments = [asked.chunks[0], first, asked.chunks[1], second, asked.chunks[2]]
        logits = self._answer(segments, asked, question)
        if question.answers == ("first", "second"):
            return logits
        # Graded words (inferior ... superior): their values are the probability that the second image is better.
        chances = torch.stack([torch.tensor([1 - v, v], device=logits.device) for v in question.values])
        return torch.logsumexp(logits[:, :, None] + chances.clamp_min(1e-6).log(), dim=1)

    def _answer(self, segments: list[Tensor], asked: _Asked, question: Question) -> Tensor:
        logits: Tensor = self.model.answer_logits(segments, asked.answers)
        return logits / question.temperature

    def _add_prompt(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._prompt is None:
            return None
        pixels = args[0] if args else kwargs["pixel_values"]
        x = pixels.float()
        shift = self._prompt.delta() / self._std
        # clamp(image + delta, 0, 1) in normalised units. Bounds give way to what is already there, so that a prompt of
        # zeros leaves every bit of the image as it was whatever rounding the normalisation did.
        low = torch.minimum((0 - self._mean) / self._std, x)
        high = torch.maximum((1 - self._mean) / self._std, x)
        x = torch.clamp(x + shift, low, high)
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "pixel_values": x})

    def _ask(self, question: Question) -> _Asked:
        if question not in self._asked:
            try:
                chunks = self.processor.encode_text(question.text)
            except ValueError as error:
                raise JudgeError(f"question {question.name!r} cannot be put to judge {self.id}: {error}.") from error
            self._asked[question] = _Asked(
                tuple(torch.tensor(ids, dtype=torch.long, device=self.device) for ids in chunks),
                torch.tensor([self._answer_id(question, word) for word in question.answers], device=self.device),
            )
        return self._asked[question]

    def _answer_id(self, question: Question, word: str) -> int:
        try:
            ids = self.processor.answer_ids(word)
        except ValueError:
            ids = []
        if len(ids) != 1:
            tokens = f"{len(ids)} tokens" if ids else "not in the vocabulary"
            raise JudgeError(
                f"question {question.name!r}: answer {word!r} is {tokens} for judge {self.id}, one token is needed. "
                "Ask a question whose answers are single tokens."
            )
        return int(ids[0])

    def _check_answers(self) -> None:
        for question in (*self.family.rate, *self.family.compare):
            self._ask(question)


def load_judge(name: str, revision: str | None, family: str, dtype: str, device: str) -> OwlJudge:
    """Load a frozen judge.

    Args:
        name: ``owl2-nano`` (in the package), a folder, or a Hub id of an mPLUG-Owl2 checkpoint.
        revision: Hub revision; None = the default branch, or, for a folder, whatever it holds.
        family: one of ``questions.FAMILIES`` or ``auto`` (read from the checkpoint).
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``; ``auto`` = bfloat16 on CUDA, float32 elsewhere.
        device: ``auto`` or a torch device.

    Returns:
        The judge, on the device, frozen.

    Raises:
        JudgeError: when it cannot be loaded, with what to do.
    """
    target = resolve_device(device)
    kind = DTYPES[dtype] if dtype != "auto" else torch.bfloat16 if target.type == "cuda" else torch.float32
    with importlib.resources.as_file(importlib.resources.files("evoprompt") / "nano") as nano:
        source = str(nano) if name == NANO else name
    if name == NANO:
        disable_progress_bar()  # it loads in a blink
    try:
        model, processor = load_owl2(source, revision=revision, dtype=kind, device=target)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise JudgeError(
            f"judge {name!r} cannot be loaded: {reason}. Give {NANO}, a folder with an mPLUG-Owl2 checkpoint, or a Hub "
            f"id that is in the local cache or can be downloaded (`hf download {name}`)."
        ) from error
    stamp = getattr(model.config, "_commit_hash", None) or revision or weights_fingerprint(Path(source))
    chosen = _family_of(name, model.config) if family == "auto" else family
    if chosen not in FAMILIES:
        raise JudgeError(f"judge family {family!r} is not known; use auto or one of {', '.join(FAMILIES)}.")
    return OwlJudge(model, processor, name, stamp, FAMILIES[chosen])


def resolve_device(device: str) -> torch.device:
    """The torch device of a name; ``auto`` = CUDA, then MPS, then CPU.

    Raises:
        JudgeError: when the name is not a device or the device is absent.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise JudgeError(f"device {device!r} cannot be used here ({reason}); use auto, cpu, cuda or mps.") from error
    return target


def weights_fingerprint(folder: Path) -> str:
    """12 hex digits over the config and, of every weight file, name, size, first and last mebibyte."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.name == "config.json":
            digest.update(json.dumps(json.loads(path.read_text(encoding="utf-8")), sort_keys=True).encode())
        elif path.suffix in (".safetensors", ".bin"):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}".encode())
            with path.open("rb") as file:
                digest.update(file.read(1 << 20))
                file.seek(max(0, size - (1 << 20)))
                digest.update(file.read())
    return digest.hexdigest()[:12]


def _family_of(name: str, config: Any) -> str:
    """Which family a checkpoint belongs to; the facts that tell them apart are in its config or its name."""
    stated = getattr(config, "evoprompt_family", None)
    if stated:
        return str(stated)
    if "compare2score" in name.lower():
        return "compare2score"
    # Q-Align, OneAlign and DeQA-Score save the trainer's aspect ratio; the base release has none.
    return "qalign" if getattr(config, "image_aspect_ratio", None) == "pad" else "owl2"
