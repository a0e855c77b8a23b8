"""The seeing half of mPLUG-Owl2: image tower and abstractor.

Ported from X-PLUG/mPLUG-Owl (MIT), mPLUG-Owl2 at 0f3068f; modules are named as in the released checkpoints.
transformers reads the `config` annotations of the classes, so they must not become strings (no postponed annotations).
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, initialization
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import can_return_tuple

from evoprompt.owl2.configuration import Owl2AbstractorConfig, Owl2Config, Owl2VisionConfig


def eager_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention in plain operations; on a CPU its backward is quicker than that of the fused kernel for small heads.

    Args:
        module: the asking module; only its ``training`` and ``num_key_value_groups`` are read.
        query: (B, H, N, d).
        key: (B, H / groups, M, d).
        value: (B, H / groups, M, d).
        attention_mask: added to the scores, broadcastable to (B, H, N, M); None = every position is seen.
        scaling: factor of the scores.
        dropout: share of dropped weights.

    Returns:
        (B, N, H, d) and the weights (B, H, N, M).
    """
    if module.num_key_value_groups != 1:
        key = key.repeat_interleave(module.num_key_value_groups, dim=1)
        value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = (query * scaling) @ key.transpose(2, 3)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


def sincos_1d(width: int, positions: Tensor) -> Tensor:
    """Sine-cosine table, one row ``[sin(p * w_i) | cos(p * w_i)]`` per position with ``w_i = 10000 ** (-2 i / width)``.

    Args:
        width: length of a row, even.
        positions: (N,) any dtype.

    Returns:
        (N, width) float64.
    """
    frequencies = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64, device="cpu") * 2 / width)
    angles = positions.double()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def query_positions(config: Owl2AbstractorConfig) -> Tensor:
    """Positions of the learned queries, (Q, D) float32."""
    numbers = torch.arange(config.num_learnable_queries, device="cpu")
    return sincos_1d(config.hidden_size, numbers).float()


def patch_positions(config: Owl2AbstractorConfig) -> Tensor:
    """Positions of the tower's tokens, (1 + G * G, D) float32: zeros for the class token, then the patches row by row.

    The first half of the channels encodes the column, the second half the row.
    """
    numbers = torch.arange(config.grid_size**2, device="cpu")
    column, row = numbers % config.grid_size, numbers // config.grid_size
    half = config.hidden_size // 2
    table = torch.cat([sincos_1d(half, column), sincos_1d(half, row)], dim=1)
    return torch.cat([torch.zeros(1, config.hidden_size, dtype=torch.float64, device="cpu"), table]).float()


class Owl2PreTrainedModel(PreTrainedModel):
    """What tower, abstractor and language model share: loading, initial weights, features of transformers."""

    config: Owl2Config
    base_model_prefix = "model"
    input_modalities: tuple[str, ...] = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["Owl2VisionLayer", "Owl2AbstractorLayer", "Owl2DecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    # A pixel prompt of a fraction of a grey level is lost in the rounding of a 16-bit convolution's input.
    _keep_in_fp32_modules_strict = ["patch_embed"]
    # Old saves hold one copy of the rotary frequencies per layer; they are computed here. The base release lacks the
    # fixed position tables of the abstractor; `_init_weights` computes them.
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq$"]
    _keys_to_ignore_on_load_missing = [r"crossattention\.attention\.[qk]_pos_embed$"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Owl2VisionEmbeddings):
            initialization.normal_(module.cls_token, std=self.config.initializer_range)
            initialization.normal_(module.position_embedding, std=self.config.initializer_range)
        elif isinstance(module, Owl2VisualAbstractor):
            initialization.normal_(module.query_embeds, std=self.config.initializer_range)
            initialization.normal_(module.vit_eos, std=self.config.initializer_range)
        elif isinstance(module, Owl2AbstractorAttention):
            # from_pretrained leaves a buffer that the checkpoint lacks as unset memory, unless it is filled here.
            initialization.copy_(module.q_pos_embed, query_positions(module.config))
            initialization.copy_(module.k_pos_embed, patch_positions(module.config))


class Owl2VisionEmbeddings(nn.Module):
    """Patches, class token and learned positions."""

    def __init__(self, config: Owl2VisionConfig) -> None:
        super().__init__()
        self.image_size = config.image_size
        width, size = config.hidden_size, config.patch_size
        patches = (config.image_size // size) ** 2
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.patch_embed = nn.Conv2d(config.num_channels, width, kernel_size=size, stride=size, bias=False)
        self.position_embedding = nn.Parameter(torch.empty(1, patches + 1, width))
        self.pre_layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Normalised images (B, 3, S, S) -> (B, 1 + patches, D)."""
        if pixel_values.ndim != 4 or pixel_values.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"pixel_values have shape {tuple(pixel_values.shape)}; the tower takes (images, 3, {self.image_size}, "
                f"{self.image_size}). Prepare images with the checkpoint's processor."
            )
        with torch.autocast(pixel_values.device.type, enabled=False):  # it would undo the float32 of the convolution
            patches = self.patch_embed(pixel_values.to(self.patch_embed.weight.dtype)).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1).to(patches.dtype), patches], dim=1)
        # The sum is still float32 where the convolution is; only then it takes the dtype of the rest.
        tokens = (tokens + self.position_embedding).to(self.pre_layernorm.weight.dtype)
        states: Tensor = self.pre_layernorm(tokens)
        return states


class Owl2VisionAttention(nn.Module):
    """Self-attention with one fused projection whose rows are ordered (head, query/key/value, channel)."""

    is_causal = False
    num_key_value_groups = 1

    def __init__(self, config: Owl2VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.heads = config.num_attention_heads
        self.scaling = (config.hidden_size // self.heads) ** -0.5
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, N, D) -> (B, N, D) and, from eager attention, the weights."""
        batch, length, _ = hidden_states.shape
        fused = self.query_key_value(hidden_states).view(batch, length, self.heads, 3, -1)
        query, key, value = fused.permute(3, 0, 2, 1, 4).unbind(0)
        dropout = self.config.attention_dropout if self.training else 0.0
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        seen, weights = attend(self, query, key, value, None, scaling=self.scaling, dropout=dropout)
        return self.dense(seen.reshape(batch, length, -1)), weights


class Owl2VisionMLP(nn.Module):
    """Two linear maps with the configured activation between them."""

    def __init__(self, config: Owl2VisionConfig) -> None:
        super().__init__()
        self.activation = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        states: Tensor = self.fc2(self.activation(self.fc1(hidden_states)))
        return states


class Owl2VisionLayer(GradientCheckpointingLayer):
    """Pre-norm transformer block."""

    def __init__(self, config: Owl2VisionConfig) -> None:
        super().__init__()
        self.self_attn = Owl2VisionAttention(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Owl2VisionMLP(config)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        hidden_states = hidden_states + self.self_attn(self.input_layernorm(hidden_states))[0]
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class Owl2VisionEncoder(nn.Module):
    """The blocks of the tower; a module of its own for the sake of the released parameter names."""

    def __init__(self, config: Owl2VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Owl2VisionLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return hidden_states


class Owl2VisionModel(Owl2PreTrainedModel):
    """The image tower: normalised pixels to the states of all patches. A pixel prompt is attached here, by a hook."""

    config: Owl2VisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: Owl2VisionConfig) -> None:
        super().__init__(config)
        self.embeddings = Owl2VisionEmbeddings(config)
        self.encoder = Owl2VisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The patch embedding."""
        return self.embeddings.patch_embed

    @can_return_tuple
    def forward(self, pixel_values: Tensor, **_kwargs: Any) -> BaseModelOutput:
        """See a batch of images.

        Args:
            pixel_values: (B, 3, S, S) float, normalised by the constants of the checkpoint's processor.

        Returns:
            ``last_hidden_state`` (B, 1 + patches, D), the class token first.

        Raises:
            ValueError: when the images have another size than the tower.
        """
        states = self.encoder(self.embeddings(pixel_values))
        return BaseModelOutput(last_hidden_state=self.post_layernorm(states))


class Owl2AbstractorAttention(nn.Module):
    """The queries look at themselves and at the tower's states; positions enter query and key, not the value."""

    is_causal = False
    num_key_value_groups = 1

    def __init__(self, config: Owl2AbstractorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.scaling = (width // self.heads) ** -0.5
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        # Buffers: they load and save with the weights and can never be trained.
        self.q_pos_embed = nn.Buffer(query_positions(config))
        self.k_pos_embed = nn.Buffer(patch_positions(config))

    def forward(self, queries: Tensor, states: Tensor) -> Tensor:
        """Queries (B, Q, D) and states (B, M, D), both normalised -> (B, Q, D)."""
        batch, width = queries.shape[0], queries.shape[2]
        q_positions, k_positions = self.q_pos_embed.to(queries.dtype), self.k_pos_embed.to(queries.dtype)
        memory = torch.cat([queries, states], dim=1)
        key = self.key(memory + torch.cat([q_positions, k_positions]))
        query, value = self.query(queries + q_positions), self.value(memory)
        shape = (batch, -1, self.heads, width // self.heads)
        query, key, value = (x.view(shape).transpose(1, 2) for x in (query, key, value))
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        seen, _ = attend(self, query, key, value, None, scaling=self.scaling, dropout=dropout)
        return seen.reshape(batch, -1, width)


class Owl2AbstractorMLP(nn.Module):
    """Gated feed-forward with a norm before its last map."""

    def __init__(self, config: Owl2AbstractorConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.ffn_ln = nn.LayerNorm(config.intermediate_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, Q, D) -> (B, Q, D)."""
        states: Tensor = self.w2(self.ffn_ln(nn.functional.silu(self.w1(hidden_states)) * self.w3(hidden_states)))
        return states


class Owl2AbstractorOutput(nn.Module):
    """What follows the attention; its residual is the normalised query state."""

    def __init__(self, config: Owl2AbstractorConfig) -> None:
        super().__init__()
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm2 = nn.LayerNorm(config.hidden_size)
        self.mlp = Owl2AbstractorMLP(config)

    def forward(self, seen: Tensor, normalised: Tensor) -> Tensor:
        """(B, Q, D) twice -> (B, Q, D)."""
        states = normalised + self.out_proj(seen)
        return states + self.mlp(self.norm2(states))


class Owl2CrossAttention(nn.Module):
    """Attention and feed-forward of one abstractor layer. Its norms have torch's epsilon, whatever the config says."""

    def __init__(self, config: Owl2AbstractorConfig) -> None:
        super().__init__()
        self.attention = Owl2AbstractorAttention(config)
        self.output = Owl2AbstractorOutput(config)
        self.norm1 = nn.LayerNorm(config.hidden_size)
        self.normk = nn.LayerNorm(config.hidden_size)

    def forward(self, queries: Tensor, states: Tensor) -> Tensor:
        """Queries (B, Q, D), the tower's states (B, M, D) -> (B, Q, D)."""
        normalised = self.norm1(queries)
        result: Tensor = self.output(self.attention(normalised, self.normk(states)), normalised)
        return result


class Owl2AbstractorLayer(GradientCheckpointingLayer):
    """One layer of the abstractor."""

    def __init__(self, config: Owl2AbstractorConfig) -> None:
        super().__init__()
        self.crossattention = Owl2CrossAttention(config)

    def forward(self, queries: Tensor, states: Tensor) -> Tensor:
        """Queries (B, Q, D), the tower's states (B, M, D) -> (B, Q, D)."""
        result: Tensor = self.crossattention(queries, states)
        return result


class Owl2AbstractorEncoder(nn.Module):
    """The layers of the abstractor; a module of its own for the sake of the released parameter names."""

    def __init__(self, config: Owl2AbstractorConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Owl2AbstractorLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, queries: Tensor, states: Tensor) -> Tensor:
        """Queries (B, Q, D), the tower's states (B, M, D) -> (B, Q, D)."""
        for layer in self.layers:
            queries = layer(queries, states)
        return queries


class Owl2VisualAbstractor(Owl2PreTrainedModel):
    """Gathers the states of an image into Q tokens of the language model and closes them with one more."""

    config: Owl2AbstractorConfig
    main_input_name = "states"
    input_modalities = ("image",)

    def __init__(self, config: Owl2AbstractorConfig, language_width: int) -> None:
        super().__init__(config)
        self.encoder = Owl2AbstractorEncoder(config)
        self.visual_fc = nn.Linear(config.hidden_size, language_width)
        self.query_embeds = nn.Parameter(torch.empty(1, config.num_learnable_queries, config.hidden_size))
        self.vit_eos = nn.Parameter(torch.empty(1, 1, language_width))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The abstractor embeds no ids; its last map stands in, since transformers asks every model."""
        return self.visual_fc

    def forward(self, states: Tensor) -> Tensor:
        """Turn states into tokens.

        Args:
            states: (B, 1 + patches, D), the tower's ``last_hidden_state``.

        Returns:
            (B, Q + 1, width of the language model).
        """
        batch = states.shape[0]
        queries = self.encoder(self.query_embeds.expand(batch, -1, -1), states)
        return torch.cat([self.visual_fc(queries), self.vit_eos.expand(batch, -1, -1)], dim=1)
