"""The nano model while it is trained: the shipped network, heads that only training uses, and random borders."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nano_data import FAMILIES, SIZE
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from evoprompt.degrade import KINDS
from evoprompt.owl2 import Owl2Config, Owl2ForConditionalGeneration
from evoprompt.questions import FAMILIES as JUDGE_FAMILIES
from evoprompt.questions import IMAGE, Question, vocabulary

NANO = JUDGE_FAMILIES["nano"]
PATCH = 16
GRID = SIZE // PATCH
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
STRENGTH = 0.6
"""Largest change of a pixel by a border prompt, as in the default recipe."""


def config_json(words: int) -> dict[str, Any]:
    """The model's config.json, in the released layout."""
    vision = {
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": PATCH,
        "num_channels": 3,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-6,
        "initializer_range": 0.04,
        "attention_dropout": 0.0,
        "use_cls_token": True,
        "use_post_layernorm": True,
        "model_type": "mplug_owl_vision_model",
    }
    abstractor = {
        "hidden_size": 192,
        "encoder_hidden_size": 192,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_learnable_queries": 8,
        "grid_size": GRID,
        "layer_norm_eps": 1e-6,
        "initializer_range": 0.04,
        "attention_probs_dropout_prob": 0.0,
        "add_v2t_pos_emb": False,
        "use_cls_token": True,
        "model_type": "mplug_owl_visual_abstract",
    }
    return {
        "architectures": ["MPLUGOwl2LlamaForCausalLM"],
        "model_type": "mplug_owl2",
        "evoprompt_family": "nano",
        "vocab_size": words,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.04,
        "tie_word_embeddings": False,
        "use_cache": True,
        "pretraining_tp": 1,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
        "visual_config": {"visual_model": vision, "visual_abstractor": abstractor},
    }


def make_tokenizer() -> Tokenizer:
    """One token per word of the nano questions; text is split at spaces and starts with <s>."""
    specials = ["<unk>", "<s>", "</s>"]
    words = {word: index for index, word in enumerate([*specials, *vocabulary(NANO)])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in specials])
    return tokenizer


class Nano(nn.Module):
    """The model, its questions as token ids, and heads that only training uses."""

    border: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = make_tokenizer()
        self.config = config_json(self.tokenizer.get_vocab_size())
        # Plain attention: on a CPU its backward is quicker than that of the fused kernel.
        self.owl = Owl2ForConditionalGeneration._from_config(
            Owl2Config(**self.config), attn_implementation="eager", dtype=torch.float32
        )
        width = self.config["hidden_size"]
        self.heads = nn.Linear(width, len(KINDS) + len(FAMILIES) + 1)
        queries = self.config["visual_config"]["visual_abstractor"]["num_learnable_queries"]
        self.border_head, self.token_head = _zeros(2 * width, 2), _zeros((queries + 1) * width, 2)
        border = torch.ones(GRID, GRID)
        border[1:-1, 1:-1] = 0
        self.register_buffer("border", border, persistent=False)

    def ids(self, question: Question) -> tuple[list[Tensor], Tensor]:
        """Token ids of the text around the images, and of the answers."""
        chunks = question.text.split(IMAGE)
        ids = [self.tokenizer.encode(text, add_special_tokens=index == 0).ids for index, text in enumerate(chunks)]
        answers = [self.tokenizer.token_to_id(word) for word in question.answers]
        return [torch.tensor(chunk, dtype=torch.long) for chunk in ids], torch.tensor(answers)

    def bordered(self, pixels: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        """Add random border prompts, one colour for the whole ring of patches and a little of another for each patch.

        Args:
            pixels: (B, 3, S, S) in [0, 1].
            strength: (B,) in [0, 1]; 0 = no border.

        Returns:
            The pixels, in [0, 1], and what their borders say, (B, 2) in [-1, 1]: how much brighter and how much
            warmer (red over blue) the ring has become, 1 = by all that a prompt can.
        """
        count = len(pixels)
        light, warm = (2 * torch.rand(2, count) - 1) * strength
        ring = torch.stack([light + warm, light, light - warm], dim=1)[:, :, None, None]
        patches = 0.3 * strength[:, None, None, None] * torch.randn(count, 3, GRID, GRID)
        colour = (ring + patches).clamp(-1, 1) * self.border
        mean = colour.sum((2, 3)) / self.border.sum()
        said = torch.stack([mean.mean(1), (mean[:, 0] - mean[:, 2]) / 2], dim=1)
        return (pixels + functional.interpolate(STRENGTH * colour, scale_factor=PATCH)).clamp(0, 1), said

    def read_border(self, states: Tensor, keep: Tensor | None) -> Tensor:
        """States (B, 1 + K, D) of the patches that were kept -> what the border says (B, 2), from ring and inside."""
        ring = self.border.flatten().bool()
        ring = ring if keep is None else ring[keep]
        patches = states[:, 1:]
        read: Tensor = self.border_head(torch.cat([patches[:, ring].mean(1), patches[:, ~ring].mean(1)], dim=1))
        return read.float()

    def states(self, pixels: Tensor, keep: Tensor | None) -> Tensor:
        """Vision tower: pixels (B, 3, S, S) in [0, 1], patches to keep (K,) -> states (B, 1 + K, D)."""
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        tower = self.owl.model.vision_model
        states: Tensor = tower.post_layernorm(tower.encoder(tower.embeddings((pixels - mean) / std)[:, _rows(keep)]))
        return states

    def tokens(self, states: Tensor, keep: Tensor | None) -> Tensor:
        """Abstractor: states (B, 1 + K, D) of the patches that were kept -> visual tokens (B, T, D)."""
        abstractor = self.owl.model.visual_abstractor
        tables = [(name, table) for name, table in abstractor.named_buffers() if name.endswith("k_pos_embed")]
        seen: Tensor = functional_call(abstractor, {name: table[_rows(keep)] for name, table in tables}, (states,))
        return seen

    def rate(self, seen: Tensor, question: Question) -> Tensor:
        """Visual tokens (B, T, D) -> level logits (B, 5)."""
        (before, after), answers = self.ids(question)
        logits: Tensor = self.owl.answer_logits([before, seen, after], answers)
        return logits

    def compare(self, first: Tensor, second: Tensor, question: Question) -> Tensor:
        """Visual tokens 2 x (P, T, D) -> logits of (first, second) (P, 2)."""
        (before, between, after), answers = self.ids(question)
        logits: Tensor = self.owl.answer_logits([before, first, between, second, after], answers)
        return logits

    def word_loss(self, text: str, seen: list[Tensor], words: list[str]) -> Tensor:
        """Mean loss of the word after a text (B words) among all words; its images are visual tokens (B, T, D) each."""
        chunks = text.split(IMAGE)
        ids = [self.tokenizer.encode(chunk, add_special_tokens=index == 0).ids for index, chunk in enumerate(chunks)]
        segments: list[Tensor] = []
        for index, chunk in enumerate(ids):
            segments += [torch.tensor(chunk, dtype=torch.long)] if chunk else []
            segments += [seen[index]] if index < len(seen) else []
        logits = self.owl.answer_logits(segments, torch.arange(self.tokenizer.get_vocab_size()))
        return functional.cross_entropy(logits, torch.tensor([self.tokenizer.token_to_id(word) for word in words]))

    def next_words(self, text: str, seen: list[Tensor], words: list[str], rng: np.random.Generator) -> Tensor:
        """Loss of one of the `words` of an answer, the same for the whole batch, given those before it."""
        known = int(rng.integers(len(words)))
        return self.word_loss(" ".join([text, *words[:known]]), seen, [words[known]] * len(seen[0]))


def _rows(keep: Tensor | None) -> Tensor | slice:
    """The class token and the patches that are kept, among all of them."""
    return slice(None) if keep is None else torch.cat([torch.zeros(1, dtype=keep.dtype), keep + 1])


def _zeros(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer of zeros, made without drawing random numbers."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def initialise(model: Nano, pixels: Tensor) -> None:
    """Start the patch embedding from cosine waves of unit response on real crops.

    Three quarters of the channels are luma waves, low to high, the rest chroma. The released layout has no bias there
    and a layer norm behind it, so a random constant goes into the position embeddings: without it the norm would hide
    how strong a patch's waves are.
    """
    embeddings = model.owl.model.vision_model.embeddings
    weight = embeddings.patch_embed.weight.data
    width = len(weight)
    n = torch.arange(PATCH) + 0.5
    waves = torch.stack([torch.cos(math.pi * k * n / PATCH) for k in range(PATCH)])
    order = sorted((i + j, i, j) for i in range(PATCH) for j in range(PATCH))
    luma, red, blue = (
        torch.tensor([0.299, 0.587, 0.114]),
        torch.tensor([1.0, -1.0, 0.0]),
        torch.tensor([1.0, 1.0, -2.0]),
    )
    n_luma = width * 3 // 4
    for row in range(width):
        _, i, j = order[int(row * len(order) / n_luma)] if row < n_luma else order[(row - n_luma) // 2]
        colour = luma if row < n_luma else (red, blue)[row % 2]
        weight[row] = colour[:, None, None] * torch.outer(waves[i], waves[j])
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        response = functional.conv2d((pixels - mean) / std, weight, stride=PATCH).transpose(0, 1).flatten(1)
        centre = response.mean(1)
        size = (response - centre[:, None]).abs().mean(1) * 1.5 + 1e-4
        weight /= size[:, None, None, None]
        embeddings.position_embedding.data += torch.randn(width) * 0.7 - centre / size
        model.owl.model.visual_abstractor.query_embeds.data.normal_(0, 0.1)


def save_model(model: Nano, out: Path, record: dict[str, Any]) -> None:
    """Write the model folder in the released layout, bfloat16; files are replaced one by one, each at once."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().to(torch.bfloat16).contiguous() for name, value in model.owl.state_dict().items()}
    texts = {
        "config.json": model.config,
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "crop_size": SIZE,
            "size": SIZE,
            "resample": 3,
            "do_resize": True,
            "do_center_crop": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_convert_rgb": True,
            "rescale_factor": 1 / 255,
            "image_mean": MEAN,
            "image_std": STD,
        },
        "training.json": record,
    }
    save_file(weights, out / "model.safetensors.new", metadata={"format": "pt"})
    model.tokenizer.save(str(out / "tokenizer.json.new"))
    for name, body in texts.items():
        (out / f"{name}.new").write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    for path in out.glob("*.new"):
        path.chmod(0o644)
        os.replace(path, path.with_suffix(""))
