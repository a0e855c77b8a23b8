"""A judge on a small card: weights in 8 or 4 bits, activations computed twice, compiled layers."""

from __future__ import annotations

import importlib.util
from functools import partial
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from evoprompt.errors import JudgeError

Quantization = Literal["none", "8bit", "4bit"]
# What sees is 5 % of the weights and closest to the prompt; of the head only the rows of the answers are used.
KEPT_WHOLE = ("model.vision_model", "model.visual_abstractor", "lm_head")
# A run has 14 kinds of passes through a layer of the language model; torch gives up after 8, and only a log says so.
GRAPHS = 32


def quantized(kind: Quantization, dtype: torch.dtype, device: torch.device) -> BitsAndBytesConfig | None:
    """How to load the language model's weights; the vision tower, the abstractor and the head keep their dtype.

    Args:
        kind: ``8bit`` (LLM.int8) or ``4bit`` (NF4, its scales quantised, too); ``none`` = as they are.
        dtype: of what is not quantised, and of 4-bit products.
        device: where the judge goes.

    Returns:
        None for ``none``.

    Raises:
        JudgeError: without CUDA or bitsandbytes.
    """
    if kind == "none":
        return None
    missing = [] if device.type == "cuda" else [f"a CUDA device, this is {device.type}"]
    missing += [] if importlib.util.find_spec("bitsandbytes") else ["bitsandbytes (pip install bitsandbytes)"]
    if missing:
        raise JudgeError(
            f"judge.quantization {kind} needs {' and '.join(missing)}; or use whole weights, which take twice to four "
            "times the memory: -s judge.quantization=none, or --dtype bfloat16 where a prompt is scored."
        )
    return quantization_config(kind, dtype)


def quantization_config(kind: Literal["8bit", "4bit"], dtype: torch.dtype) -> BitsAndBytesConfig:
    """The transformers configuration of a kind, whatever the machine; see ``quantized``."""
    kept = list(KEPT_WHOLE)
    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=kept,
    )


def quantization_of(model: PreTrainedModel) -> Quantization:
    """How a loaded model's weights are quantised."""
    config = getattr(model.config, "quantization_config", None)
    return "none" if config is None else "8bit" if config.load_in_8bit else "4bit"


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of tower, abstractor and language model, in their order."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def checkpoint_layers(model: nn.Module) -> None:
    """Keep only the input of each layer for the gradient and compute the layer again on the way back.

    transformers' own switch does nothing in evaluation mode, in which a frozen judge stays. Values and gradients are
    the same; passes without gradient and passes that write a cache are left alone.

    Args:
        model: changed in place.
    """
    for layer in layers_of(model):
        layer.forward = partial(_checkpointed, layer.forward)


def _checkpointed(forward: Any, states: Tensor, *arguments: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled() or options.get("past_key_values") is not None:
        return forward(states, *arguments, **options)
    # Nothing is drawn in a layer, so there is no generator to put back.
    return checkpoint(forward, states, *arguments, use_reentrant=False, preserve_rng_state=False, **options)


def compile_layers(model: nn.Module, backend: str = "inductor") -> None:
    """Compile the layers with torch.compile, layer by layer.

    Equal layers share a graph for each kind of pass (with gradient or without, from the start of a text or from what
    was read before, ...), whatever their number. Passes that write a cache are left alone.

    Args:
        model: changed in place; the first pass of each kind then takes long.
        backend: of torch.compile.

    Raises:
        JudgeError: where torch cannot compile.
    """
    import torch._dynamo.config
    from torch._dynamo.eval_frame import is_dynamo_supported

    if not is_dynamo_supported():
        raise JudgeError("torch.compile does not work with this Python and torch; set -s judge.compile=false.")
    torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
    for layer in layers_of(model):
        # Below transformers' wrapper: that is the same for all kinds of layers, which would be compiled as one.
        forward = getattr(type(layer).forward, "__wrapped__", type(layer).forward)
        compiled = torch.compile(MethodType(forward, layer), dynamic=True, backend=backend)
        layer.forward = partial(_compiled, compiled, layer.forward)


def _compiled(compiled: Any, plain: Any, states: Tensor, *arguments: Any, **options: Any) -> Any:
    # A cache is asked by the number of the layer, which would make a graph for every layer.
    forward = plain if isinstance(options.get("past_key_values"), Cache) else compiled
    return forward(states, *arguments, **options)
