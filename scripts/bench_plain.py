"""The straightforward ways that scripts/bench.py holds evoprompt against, and judges of random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from evoprompt.config import TrainConfig
from evoprompt.images import fit_image, read_image
from evoprompt.judge import OwlJudge
from evoprompt.objectives import rating_fidelity
from evoprompt.owl2 import Owl2Config, Owl2ForConditionalGeneration, Owl2ImageProcessor, Owl2Processor, Owl2Tokenizer
from evoprompt.prompts import PixelPrompt
from evoprompt.questions import FAMILIES, IMAGE, Family, Question

DRAWS, ANSWER_TOKENS = 32, 4
TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                      "image_size": 56, "patch_size": 14},
    "abstractor_config": {"hidden_size": 32, "encoder_hidden_size": 32, "intermediate_size": 64, "grid_size": 4,
                          "num_hidden_layers": 1, "num_attention_heads": 2, "num_learnable_queries": 64},
}  # fmt: skip


def random_judge(architecture: str, dtype: torch.dtype, device: torch.device) -> OwlJudge:
    """A judge of the released shape (``7b``) or a very small one (``tiny``), its weights drawn on the device.

    Its tokenizer knows the family's words whole, so texts have about two thirds of the tokens of the released one's.
    """
    family = FAMILIES["owl2"]
    config = Owl2Config(**({} if architecture == "7b" else {**TINY, "vocab_size": 256}))
    tokenizer = word_tokenizer(family, config.vocab_size)
    processor = Owl2Processor(
        Owl2ImageProcessor(image_mean=[0.5] * 3, image_std=[0.25] * 3), tokenizer, config.num_image_tokens
    )
    config.image_token_index = processor.image_token_id
    with device:
        model = Owl2ForConditionalGeneration._from_config(config, dtype=dtype)
    for name, module in model.named_modules():
        if name.endswith(".patch_embed"):
            module.float()  # as in every judge that is loaded
    return OwlJudge(model.to(device), processor, f"{architecture}, random weights", "random", family, memory_mib=8192)


def word_tokenizer(family: Family, size: int) -> Owl2Tokenizer:
    """A tokenizer that knows the words of a family's questions, and fillers up to the size of the vocabulary."""
    questions: Sequence[Question] = (*family.rate, *family.compare)
    words = [word for q in questions for word in (*q.text.replace(IMAGE, " ").split(), *q.answers)]
    known = list(dict.fromkeys(["<unk>", "<s>", "</s>", *words]))
    known += [f"w{index}" for index in range(len(known), size)]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(known)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.add_special_tokens([AddedToken(word, special=True) for word in known[:3]])
    return Owl2Tokenizer(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def inputs(judge: OwlJudge, question: Question, pixels: Tensor) -> dict[str, Tensor]:
    """What transformers' model takes: rows of ids (R, N) with their images (R x places, 3, S, S), normalised."""
    chunks = judge.processor.encode_text(question.text)
    places = [judge.processor.image_token_id] * judge.model.config.num_image_tokens
    ids = [*chunks[0], *(token for chunk in chunks[1:] for token in (*places, *chunk))]
    rows = len(pixels) // (len(chunks) - 1)
    normal = (pixels.to(judge.device) - judge._mean) / judge._std
    row = torch.tensor([ids], device=judge.device).expand(rows, -1)
    return {"input_ids": row, "attention_mask": torch.ones_like(row), "pixel_values": normal}


@torch.no_grad()
def generated_share(judge: OwlJudge, question: Question, a: Tensor, b: Tensor) -> tuple[float, int]:
    """Share of sampled, generated answers for a, half of them with b shown first, and how many were an answer.

    Images are (3, S, S) in [0, 1].
    """
    wins = said = 0
    tokenizer = judge.processor.tokenizer
    for pair, word in (([a, b], question.answers[0]), ([b, a], question.answers[1])):
        asked = inputs(judge, question, torch.stack(pair * (DRAWS // 2)))
        out = judge.model.generate(
            **asked, do_sample=True, max_new_tokens=ANSWER_TOKENS, pad_token_id=tokenizer.pad_token_id or 0
        )
        texts = tokenizer.batch_decode(out[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)
        words = [text.split()[0] for text in texts if text.split()]
        wins += sum(w == word for w in words)
        said += sum(w in question.answers for w in words)
    return (wins / said if said else 0.5), said


@torch.no_grad()
def repeated_share(judge: OwlJudge, question: Question, a: Tensor, b: Tensor, encoded: bool) -> tuple[float, int]:
    """The same of one-token samples, a row of a forward pass each; with ``encoded`` a and b are visual tokens."""
    ids, n = judge._ask(question).answers, DRAWS // 2
    wins = 0
    for pair, place in (([a, b], 0), ([b, a], 1)):
        if encoded:
            logits = judge.ask([x.expand(n, -1, -1) for x in pair], question.text, question.answers)
        else:
            asked = inputs(judge, question, torch.stack(pair * n))
            logits = judge.model(**asked, logits_to_keep=1).logits[:, -1, ids]
        wins += int((torch.multinomial(logits.float().softmax(-1), 1) == place).sum())
    return wins / DRAWS, DRAWS


def plain_step(
    judge: OwlJudge, prompt: PixelPrompt, pixels: Tensor, pairs: np.ndarray, targets: Tensor, ways: str
) -> float:
    """Gradient of the mean fidelity loss the straightforward way: eager attention, logits of all positions.

    Args:
        judge: set to eager attention by the caller.
        prompt: gets the gradient.
        pixels: (B, 3, S, S) in [0, 1].
        pairs: (P, 2) rows of the batch.
        targets: (P,).
        ways: ``pairs`` (one pair a forward, one backward for all), ``accumulated`` (a backward after every pair), or
            ``batch`` (all images in one forward).

    Returns:
        The loss.
    """
    judge.attach(prompt)
    question, config = judge.family.rate[0], TrainConfig()
    values = torch.tensor(question.values, device=judge.device)
    ids = judge._ask(question).answers

    def loss_of(images: Tensor, rows: Tensor, wanted: Tensor) -> Tensor:
        logits = judge.model(**inputs(judge, question, images)).logits[:, -1, ids].float()
        return rating_fidelity(logits, values, rows.to(judge.device), wanted.to(judge.device), config)

    if ways == "batch":
        loss = loss_of(pixels, torch.from_numpy(pairs), targets)
        loss.backward()
        return float(loss.detach())
    own, losses = torch.tensor([[0, 1]]), []
    for pair, target in zip(pairs, targets, strict=True):
        losses.append(loss_of(pixels[pair], own, target[None]) / len(pairs))
        if ways == "accumulated":
            losses[-1].backward()
            losses[-1] = losses[-1].detach()
    loss = torch.stack(losses).sum()
    if ways == "pairs":
        loss.backward()
    return float(loss.detach())


@torch.no_grad()
def plain_scores(judge: OwlJudge, paths: Sequence[Path]) -> list[float]:
    """Scores by a loop over files: read, fit, one forward with the logits of all positions."""
    question, family, found = judge.family.rate[0], judge.family, []
    ids = judge._ask(question).answers
    for path in paths:
        views = fit_image(read_image(path), family.fit, judge.image_size, family.views)
        logits = judge.model(**inputs(judge, question, torch.from_numpy(views).float() / 255)).logits[:, -1, ids]
        found.append(float(logits.float().softmax(-1).mean(0) @ torch.tensor(question.values, device=judge.device)))
    return found
