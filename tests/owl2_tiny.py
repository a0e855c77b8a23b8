"""A mPLUG-Owl2 of a few thousand weights for tests: every kind of layer, random weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from evoprompt.answers import REASON
from evoprompt.judge import OwlJudge
from evoprompt.owl2 import Owl2Config, Owl2ForConditionalGeneration, Owl2ImageProcessor, Owl2Processor, Owl2Tokenizer
from evoprompt.questions import FAMILIES, Family

SIDE, QUERIES, VOCABULARY = 32, 3, 48
WORDS = ["<unk>", "<s>", "</s>", "USER:", "ASSISTANT:", "rate", "this", "good", "poor", "is"]


def tiny_config(layers: int = 3, **fields: object) -> Owl2Config:
    vision = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE)
    abstractor = dict(hidden_size=16, encoder_hidden_size=16, intermediate_size=20, num_hidden_layers=2)
    return Owl2Config(
        vocab_size=VOCABULARY, hidden_size=24, intermediate_size=40, num_hidden_layers=layers, num_attention_heads=4,
        vision_config=vision | {"patch_size": 8},
        abstractor_config=abstractor | {"num_attention_heads": 2, "num_learnable_queries": QUERIES, "grid_size": 4},
        **fields,
    )  # fmt: skip


def tiny_model(attention: str = "sdpa", spread: float = 0.2, **fields: Any) -> Owl2ForConditionalGeneration:
    """Frozen, in evaluation mode; weights large enough that every input matters."""
    torch.manual_seed(0)
    model = Owl2ForConditionalGeneration._from_config(tiny_config(**fields), attn_implementation=attention)
    for parameter in model.parameters():
        parameter.data += spread * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


def pixels(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def ids(model: Owl2ForConditionalGeneration, *parts: int | str) -> Tensor:
    """(1, N) ids; "image" becomes the tokens of one image."""
    row = [i for part in parts for i in ([model.config.image_token_id] * (QUERIES + 1) if part == "image" else [part])]
    return torch.tensor([row])


def save_checkpoint(folder: Path, model: Owl2ForConditionalGeneration | None = None) -> Path:
    """A folder like that of the nano judge: weights, config, preprocessor constants, a vocabulary of words."""
    (model or tiny_model()).save_pretrained(folder)
    constants = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "size": SIDE, "crop_size": SIDE}
    (folder / "preprocessor_config.json").write_text(
        json.dumps(constants | {"image_processor_type": "CLIPImageProcessor"})
    )
    words = WORDS + [f"w{index}" for index in range(VOCABULARY - len(WORDS))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in WORDS[:3]])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def writing_family() -> Family:
    """Short questions of the released kind: the assistant begins the answer, the judge says the level."""
    owl2 = FAMILIES["owl2"]
    rate = replace(owl2.rate[0], text="USER: <|image|> rate this ASSISTANT: this is")
    compare = replace(owl2.compare[0], text="USER: <|image|> <|image|> rate this ASSISTANT: this is")
    return replace(owl2, rate=(rate,), compare=(compare,))


def tiny_writer(**fields: Any) -> OwlJudge:
    """A judge around the tiny model that can write: random words, some of which end a sentence."""
    spoken = [*REASON.split(), "bad", "fair", "excellent", "first", "second", "soft.", "clear.", "dark."]
    words = [*WORDS, *spoken]
    words += [f"w{index}" for index in range(VOCABULARY - 1 - len(words))]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = Owl2Tokenizer(tokenizer_object=backend, **special)
    constants = Owl2ImageProcessor(image_mean=[0.5] * 3, image_std=[0.25] * 3)
    processor = Owl2Processor(constants, tokenizer, num_image_tokens=QUERIES + 1)
    model = tiny_model(**fields)
    model.config.image_token_index = processor.image_token_id
    return OwlJudge(model, processor, "tiny", "0", writing_family())
