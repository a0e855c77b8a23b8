"""The judge: a frozen multimodal LLM that rates one image or compares two."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.logging import disable_progress_bar

from evoprompt.asking import MEMORY_MIB, Asked, Asker, woven
from evoprompt.errors import JudgeError, short
from evoprompt.owl2 import load_owl2
from evoprompt.prompts import PixelPrompt
from evoprompt.questions import FAMILIES, OTHER, Family, Preprocess, Question, choose
from evoprompt.small_cards import Quantization, checkpoint_layers, compile_layers, quantization_of, quantized

NANO = "owl2-nano"
# What images are normalised with when they are prepared as for the published pixel prompts.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Judge(Protocol):
    """What evolution needs of a judge. Pixels are looked at once, in ``encode``; questions are put to what was seen."""

    id: str
    revision: str
    family: Family
    image_size: int
    device: torch.device

    @property
    def precision(self) -> str:
        """What its weights are: a dtype, and the bits of those in fewer, such as ``bfloat16, 4bit``."""

    @property
    def prompt_sha(self) -> str:
        """Hash of the prompt attached, ``none`` for the bare judge; it changes with the prompt's values."""

    def attach(self, prompt: PixelPrompt | None) -> None:
        """Add this prompt to every image from now on; None = the bare judge."""

    def encode(self, pixels: Tensor) -> Tensor:
        """Images (B, 3, S, S) float32 in [0, 1] -> what the judge keeps of them (B, T, D), differentiable in pixels."""

    def rate(self, seen: Tensor, question: Question) -> Tensor:
        """Encoded images (B, T, D) -> logits of the question's answers, worst to best (B, A) float32."""

    def compare(self, first: Tensor, second: Tensor, question: Question) -> Tensor:
        """Encoded pairs 2 x (P, T, D) -> logits of (first is better, second is better) (P, 2) float32."""

    def compare_among(self, seen: Tensor, pairs: Tensor, question: Question) -> Tensor:
        """The same for pairs (P, 2) of encoded images (N, T, D), the one shown first in front; without gradients."""

    def ask(self, seen: Sequence[Tensor], text: str, answers: Sequence[str]) -> Tensor:
        """Encoded images of a text, one (P, T, D) a place -> logits of one-token answers after it (P, A) float32."""

    def tell(self, seen: Sequence[Tensor], text: str, limit: int) -> list[str]:
        """The same -> what the judge writes after the text, greedily, at most ``limit`` tokens, P texts."""

    def features(self, pixels: Tensor) -> Tensor:
        """Images (B, 3, S, S) float32 in [0, 1] -> what the vision tower makes of them (B, D) float32."""


def preference_logits(judge: Judge, seen: Tensor, pairs: Tensor, question: Question) -> tuple[Tensor, Tensor]:
    """Preference for ``a`` over ``b`` when ``a`` is shown first, and when it is shown second.

    Their mean is free of additive position bias: a bias toward the first image enters them with opposite sign. Both
    orders are asked at once, because then the images shown first recur most.

    Args:
        judge: the judge asked.
        seen: (N, T, D) encoded images.
        pairs: (P, 2) int64 rows of ``seen``, a and b.
        question: a comparison.

    Returns:
        Two (P,) float32 log-odds that ``a`` is the better one.
    """
    logits = judge.compare_among(seen, torch.cat([pairs, pairs.flip(1)]), question)
    ab, ba = logits[: len(pairs)], logits[len(pairs) :]
    return ab[:, 0] - ab[:, 1], ba[:, 1] - ba[:, 0]


def to_pixels(judge: Judge, views: np.ndarray) -> Tensor:
    """Views (..., 3, S, S) uint8 -> (B, 3, S, S) float32 in [0, 1] on the judge's device.

    They cross to a GPU as bytes, from pinned memory, while it computes.
    """
    bytes_ = torch.from_numpy(views).flatten(0, -4)
    if judge.device.type == "cuda":
        bytes_ = bytes_.pin_memory().to(judge.device, non_blocking=True)
    return bytes_.float() / 255


class OwlJudge:
    """mPLUG-Owl2 and its relatives as a judge; no parameter requires grad, gradients reach the pixels.

    Args:
        model: the loaded model, see ``evoprompt.owl2``.
        processor: its processor (tokenizer and image constants).
        name: id shown and stored.
        revision: revision or weight fingerprint.
        family: how images are fitted and questions put.
        memory_mib: what the activations of a forward pass without gradients may take.

    Raises:
        JudgeError: when an answer of one of the family's questions is not a single token for this tokenizer.
    """

    def __init__(
        self, model: Any, processor: Any, name: str, revision: str, family: Family, memory_mib: int = MEMORY_MIB
    ) -> None:
        self.model = model.requires_grad_(False).eval()
        self.processor = processor
        self.id, self.revision, self.family = name, revision, family
        self.image_size = int(model.config.vision_config.image_size)
        self.device = next(model.parameters()).device
        own = (processor.image_processor.image_mean, processor.image_processor.image_std)
        mean, std = own if family.preprocess == "own" else IMAGENET
        self._mean = torch.tensor(mean, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=self.device).view(1, 3, 1, 1)
        self._prompt: PixelPrompt | None = None
        self._asked: dict[Question, Asked] = {}
        self.asker = Asker(model, memory_mib)
        # At the image tower, because every road to an answer (forward, generate, TRL) passes there and nowhere else.
        model.model.vision_model.register_forward_pre_hook(self._add_prompt, with_kwargs=True)
        self._check_answers()

    def attach(self, prompt: PixelPrompt | None) -> None:
        """Add this prompt to every image from now on; None = the bare judge.

        Raises:
            JudgeError: when the prompt was made for images of another size, or prepared in another way.
        """
        if prompt is not None and prompt.config.image_size != self.image_size:
            raise JudgeError(
                f"the prompt was made for {prompt.config.image_size} px images, judge {self.id} sees "
                f"{self.image_size} px images. Load the judge it was evolved with "
                f"({prompt.origin.judge or 'not recorded'})."
            )
        if prompt is not None and prompt.config.preprocess != self.family.preprocess:
            raise JudgeError(
                f"the prompt was made for images prepared the way {prompt.config.preprocess!r}, judge {self.id} was "
                f"loaded with {self.family.preprocess!r}. Load it with judge.preprocess={prompt.config.preprocess}."
            )
        self._prompt = None if prompt is None else prompt.to(self.device)

    def encode(self, pixels: Tensor) -> Tensor:
        """Images (B, 3, S, S) float32 in [0, 1] -> visual tokens (B, T, D), differentiable in pixels."""

        def encode(rows: slice) -> Tensor:
            part = pixels[rows].to(self.device, torch.float32)
            seen: Tensor = self.model.get_visual_tokens((part - self._mean) / self._std)
            return seen

        if torch.is_grad_enabled():
            return encode(slice(None))
        return self.asker.room.in_batches("images", len(pixels), self.image_bytes(), encode)

    def rate(self, seen: Tensor, question: Question) -> Tensor:
        """Visual tokens (B, T, D) -> logits of the question's answers, worst to best (B, A) float32."""
        asked = self._ask(question)
        if OTHER not in question.answers:
            return self.asker.answers(asked, [seen]) / question.temperature
        vocabulary = torch.arange(self.model.lm_head.weight.shape[0], device=self.device)
        logits = self.asker.answers(Asked(asked.chunks, vocabulary), [seen]) / question.temperature
        rest = logits.index_fill(1, asked.answers, -torch.inf).logsumexp(1, keepdim=True)
        named, place = logits[:, asked.answers], question.answers.index(OTHER)
        return torch.cat([named[:, :place], rest, named[:, place:]], dim=1)

    def compare(self, first: Tensor, second: Tensor, question: Question) -> Tensor:
        """Visual tokens 2 x (P, T, D) -> logits of (first is better, second is better) (P, 2) float32."""
        return self._odds(self.asker.answers(self._ask(question), [first, second]), question)

    def compare_among(self, seen: Tensor, pairs: Tensor, question: Question) -> Tensor:
        """The same for pairs (P, 2) int64 of the visual tokens (N, T, D), the image shown first in front.

        The text before an image is read once for all, and an image shown first, with the text around it, once for all
        pairs that begin with it. Equal to ``compare`` up to rounding; no gradient passes.
        """
        with torch.no_grad():
            return self._odds(self.asker.answers_among(self._ask(question), seen, pairs.to(self.device)), question)

    @staticmethod
    def _odds(logits: Tensor, question: Question) -> Tensor:
        """Logits of a comparison's answers (P, A) -> logits of (first is better, second is better) (P, 2)."""
        logits = logits / question.temperature
        if question.answers == ("first", "second"):
            return logits
        # Graded words (inferior ... superior): their values are the probability that the second image is better.
        chances = torch.stack([torch.tensor([1 - v, v], device=logits.device) for v in question.values])
        return torch.logsumexp(logits[:, :, None] + chances.clamp_min(1e-6).log(), dim=1)

    def ask(self, seen: Sequence[Tensor], text: str, answers: Sequence[str]) -> Tensor:
        """Put any question to the judge.

        Args:
            seen: what ``encode`` gave, one (P, T, D) for each image of the text, in its order.
            text: up to the answer, one ``<|image|>`` an image; the same for all P.
            answers: words of one token.

        Returns:
            (P, A) float32 logits of the answers.

        Raises:
            JudgeError: when the tokenizer lacks a word, or an answer is not a single token.
        """
        return self.asker.answers(self._tokens(text, text, answers), seen)

    def tell(self, seen: Sequence[Tensor], text: str, limit: int) -> list[str]:
        """Let the judge write on after a text with images, greedily, until it ends or has ``limit`` tokens.

        Args:
            seen: as in ``ask``.
            text: as in ``ask``.
            limit: tokens at most, at least 1.

        Returns:
            P texts, without special tokens and without blanks around them.

        Raises:
            JudgeError: when the tokenizer lacks a word of the text.
        """
        places = torch.full((seen[0].shape[1],), self.processor.image_token_id, device=self.device)
        ids = torch.cat(woven(self._tokens(text, text, ()).chunks, [places] * len(seen))).expand(len(seen[0]), -1)
        images = BaseModelOutputWithPooling(pooler_output=list(torch.stack(list(seen), dim=1).flatten(0, 1)))
        with torch.no_grad():
            written = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pad_token_id=self.processor.tokenizer.pad_token_id,
                mm_encoder_outputs={"image": images},
                max_new_tokens=limit,
                do_sample=False,
            )
        texts = self.processor.tokenizer.batch_decode(written[:, ids.shape[1] :], skip_special_tokens=True)
        return [str(text).strip() for text in texts]

    def features(self, pixels: Tensor) -> Tensor:
        """Images (B, 3, S, S) float32 in [0, 1] -> mean state of the vision tower's patches (B, D) float32."""
        pixels = pixels.to(self.device, torch.float32)
        states: Tensor = self.model.model.vision_model((pixels - self._mean) / self._std).last_hidden_state
        return states[:, 1:].mean(dim=1).float()

    @property
    def precision(self) -> str:
        """What its weights are: a dtype, and the bits of those in fewer, such as ``bfloat16, 4bit``."""
        dtype, bits = str(self.model.dtype).removeprefix("torch."), quantization_of(self.model)
        return dtype if bits == "none" else f"{dtype}, {bits}"

    @property
    def prompt_sha(self) -> str:
        """Hash of the prompt attached, ``none`` for the bare judge."""
        return "none" if self._prompt is None else self._prompt.sha()

    def image_bytes(self) -> int:
        """What encoding one image takes, about: its pixels, a few times over, and the widest states of a layer."""
        vision = self.model.config.vision_config
        tokens = (vision.image_size // vision.patch_size) ** 2 + 1
        states = tokens * (8 * vision.hidden_size + 2 * vision.intermediate_size) * self.asker.item
        return int(states + 4 * 4 * 3 * vision.image_size**2)

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

    def _ask(self, question: Question) -> Asked:
        if question not in self._asked:
            words = [word for word in question.answers if word != OTHER]
            self._asked[question] = self._tokens(question.name, question.text, words)
        return self._asked[question]

    def _tokens(self, name: str, text: str, answers: Sequence[str]) -> Asked:
        try:
            chunks = self.processor.encode_text(text)
        except ValueError as error:
            raise JudgeError(f"question {name!r} cannot be put to judge {self.id}: {error}.") from error
        return Asked(
            tuple(torch.tensor(ids, dtype=torch.long, device=self.device) for ids in chunks),
            torch.tensor([self._answer_id(name, word) for word in answers], device=self.device),
        )

    def _answer_id(self, name: str, word: str) -> int:
        try:
            ids = self.processor.answer_ids(word)
        except ValueError:
            ids = []
        if len(ids) != 1:
            tokens = f"{len(ids)} tokens" if ids else "not in the vocabulary"
            raise JudgeError(
                f"question {name!r}: answer {word!r} is {tokens} for judge {self.id}, one token is needed. "
                "Ask a question whose answers are single tokens."
            )
        return int(ids[0])

    def _check_answers(self) -> None:
        for question in (*self.family.rate, *self.family.compare):
            self._ask(question)


def load_judge(
    name: str,
    revision: str | None,
    family: str,
    dtype: str,
    device: str,
    question: str = "auto",
    preprocess: Preprocess = "own",
    quantization: Quantization = "none",
    checkpointing: bool = False,
    compiled: bool = False,
    memory_mib: int = MEMORY_MIB,
) -> OwlJudge:
    """Load a frozen judge.

    Args:
        name: ``owl2-nano`` (in the package), a folder, or a Hub id of an mPLUG-Owl2 checkpoint.
        revision: Hub revision; None = the default branch, or, for a folder, whatever it holds.
        family: one of ``questions.FAMILIES`` or ``auto`` (read from the checkpoint).
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``; ``auto`` = bfloat16 on CUDA, float32 elsewhere.
        device: ``auto`` or a torch device.
        question: what it rates with, see ``questions.choose``.
        preprocess: how images are prepared for it, see ``questions.Family``.
        quantization: bits of the language model's weights, see ``small_cards.quantized``.
        checkpointing: trade time for memory in training, see ``small_cards.checkpoint_layers``.
        compiled: compile its layers, see ``small_cards.compile_layers``.
        memory_mib: what the states of a forward pass without gradients may take, see ``asking.Room``.

    Returns:
        The judge, on the device, frozen.

    Raises:
        JudgeError: when it cannot be loaded, with what to do.
    """
    target = resolve_device(device)
    if target.type == "cuda" and target.index is not None:
        torch.cuda.set_device(target)  # what asks for no card in particular shall not wake another one
    kind = DTYPES[dtype] if dtype != "auto" else torch.bfloat16 if target.type == "cuda" else torch.float32
    with importlib.resources.as_file(importlib.resources.files("evoprompt") / "nano") as nano:
        source = str(nano) if name == NANO else name
    if name == NANO:
        disable_progress_bar()  # it loads in a blink
    fewer_bits = quantized(quantization, kind, target)
    try:
        model, processor = load_owl2(source, revision=revision, dtype=kind, device=target, quantization=fewer_bits)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise JudgeError(
            f"judge {name!r} cannot be loaded: {reason}. Give {NANO}, a folder with an mPLUG-Owl2 checkpoint, or a Hub "
            f"id that is in the local cache or can be downloaded (`hf download {name}`)."
        ) from error
    except torch.OutOfMemoryError as error:
        raise JudgeError(
            f"judge {name!r} does not fit the memory of {target} ({short(error)}). In fewer bits it needs less: "
            "-s judge.quantization=8bit or 4bit (--dtype 8bit or 4bit where a prompt is scored); or try another device."
        ) from error
    stamp = getattr(model.config, "_commit_hash", None) or revision or weights_fingerprint(Path(source))
    chosen = _family_of(name, model.config) if family == "auto" else family
    if chosen not in FAMILIES:
        raise JudgeError(f"judge family {family!r} is not known; use auto or one of {', '.join(FAMILIES)}.")
    try:
        asked = choose(FAMILIES[chosen], question, preprocess)
    except ValueError as error:
        raise JudgeError(
            f"judge.question {error}, which judges of the family {chosen} can rate with; set one of these or auto."
        ) from error
    if compiled:
        compile_layers(model)
    if checkpointing:
        checkpoint_layers(model)
    return OwlJudge(model, processor, name, stamp, asked, memory_mib)


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
