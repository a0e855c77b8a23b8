"""The speaking half of mPLUG-Owl2: a LLaMA that treats text and image tokens differently, and the whole model.

Ported from X-PLUG/mPLUG-Owl (MIT), mPLUG-Owl2 at 0f3068f; modules are named as in the released checkpoints.
transformers reads the `config` annotations of the classes, so they must not become strings (no postponed annotations).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, slice_logits_to_keep
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from evoprompt.owl2.configuration import Owl2Config
from evoprompt.owl2.sharing import Passage
from evoprompt.owl2.vision import Owl2PreTrainedModel, Owl2VisionModel, Owl2VisualAbstractor, eager_attention
from evoprompt.owl2.ways import IMAGE, TEXT, Ways


class Owl2MultiwayNorm(nn.Module):
    """RMS norm with one weight for text and one for image tokens; the norm itself is computed once."""

    def __init__(self, config: Owl2Config) -> None:
        super().__init__()
        self.multiway = nn.ModuleList(LlamaRMSNorm(config.hidden_size, config.rms_norm_eps) for _ in (TEXT, IMAGE))
        self.eps = config.rms_norm_eps

    def forward(self, states: Tensor, ways: Ways) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        norms: Any = self.multiway
        weight = norms[ways.ways[0]].weight
        if ways.is_image is not None:
            weight = torch.where(ways.is_image, norms[IMAGE].weight, norms[TEXT].weight)
        normed = nn.functional.rms_norm(states.float(), states.shape[-1:], eps=self.eps)
        return weight * normed.to(states.dtype)


class Owl2MultiwayLinear(nn.Module):
    """A linear map with one weight for text and one for image tokens; called with the parts of ``Ways.split``."""

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.multiway = nn.ModuleList(nn.Linear(inputs, outputs, bias=bias) for _ in (TEXT, IMAGE))

    def forward(self, parts: Sequence[Tensor], ways: Ways) -> list[Tensor]:
        """One tensor per part -> one tensor per part."""
        return [self.multiway[way](part) for way, part in zip(ways.ways, parts, strict=True)]


class Owl2Attention(nn.Module):
    """LLaMA attention whose keys and values depend on the kind of token."""

    is_causal = True

    def __init__(self, config: Owl2Config, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx, self.head_dim = config, layer_idx, config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        width, bias = config.hidden_size, config.attention_bias
        inner, shared = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(width, inner, bias=bias)
        self.k_proj = Owl2MultiwayLinear(width, shared, bias)
        self.v_proj = Owl2MultiwayLinear(width, shared, bias)
        self.o_proj = nn.Linear(inner, width, bias=bias)

    def forward(
        self,
        states: Tensor,
        ways: Ways,
        rotary: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: Cache | Passage | None,
        last_only: bool,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, N, D) -> (B, N, D), or (B, 1, D) with ``last_only``, and the weights where the attention gives them."""
        batch = states.shape[0]
        parts = ways.split(states)
        asking = states[:, -1:] if last_only else states
        keys, values = (ways.join(linear(parts, ways), batch) for linear in (self.k_proj, self.v_proj))
        query, key, value = (
            x.view(batch, x.shape[1], -1, self.head_dim).transpose(1, 2) for x in (self.q_proj(asking), keys, values)
        )
        cos, sin = rotary
        if last_only:
            query, _ = apply_rotary_pos_emb(query, query, cos[:, -1:], sin[:, -1:])
            _, key = apply_rotary_pos_emb(key, key, cos, sin)
            attention_mask = None  # the last position sees every other one
        else:
            query, key = apply_rotary_pos_emb(query, key, cos, sin)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        if isinstance(past_key_values, Passage) and past_key_values.before is not None:
            seen = past_key_values.look_back(query, key, value, attention_mask, self.scaling, self.layer_idx)
            return self.o_proj(seen.reshape(batch, query.shape[2], -1)), None
        dropout = self.config.attention_dropout if self.training else 0.0
        # Called by this name in this file: set_attn_implementation() looks for it in the source.
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        seen, weights = attend(self, query, key, value, attention_mask, scaling=self.scaling, dropout=dropout, **kwargs)
        return self.o_proj(seen.reshape(batch, query.shape[2], -1)), weights


class Owl2DecoderLayer(GradientCheckpointingLayer):
    """LLaMA block with two norms per place."""

    def __init__(self, config: Owl2Config, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = Owl2Attention(config, layer_idx)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = Owl2MultiwayNorm(config)
        self.post_attention_layernorm = Owl2MultiwayNorm(config)

    def forward(
        self,
        hidden_states: Tensor,
        ways: Ways,
        rotary: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | Passage | None = None,
        last_only: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        """(B, N, D) -> (B, N, D); with ``last_only`` (B, 1, D)."""
        normed = self.input_layernorm(hidden_states, ways)
        seen, _ = self.self_attn(normed, ways, rotary, attention_mask, past_key_values, last_only, **kwargs)
        if last_only:
            hidden_states, ways = hidden_states[:, -1:], Ways((ways.ways[-1],))
        hidden_states = hidden_states + seen
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states, ways))


class Owl2Model(Owl2PreTrainedModel):
    """Tower, abstractor and language model, without the head."""

    _can_record_outputs = {"hidden_states": Owl2DecoderLayer, "attentions": Owl2Attention}

    def __init__(self, config: Owl2Config) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(Owl2DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.vision_model = Owl2VisionModel(config.vision_config)
        self.visual_abstractor = Owl2VisualAbstractor(config.abstractor_config, config.hidden_size)
        self.post_init()

    def get_image_features(self, pixel_values: Tensor | Sequence[Tensor], **_kwargs: Any) -> BaseModelOutputWithPooling:
        """Encode images; generate() and TRL call this by name.

        Args:
            pixel_values: (images, 3, S, S), or (B, frames, 3, S, S), or a list of (frames, 3, S, S); normalised.

        Returns:
            ``last_hidden_state`` of the tower and, as ``pooler_output``, a list with (Q + 1, D) tokens per image.
        """
        if not isinstance(pixel_values, Tensor):
            pixel_values = torch.cat(list(pixel_values))
        elif pixel_values.ndim == 5:
            pixel_values = pixel_values.flatten(0, 1)
        states = self.vision_model(pixel_values).last_hidden_state
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=list(self.visual_abstractor(states)))

    def splice(self, input_ids: Tensor, features: Sequence[Tensor] | None) -> tuple[Tensor, Ways]:
        """Embed ids and put the visual tokens where the image token stands, in order across the batch.

        Args:
            input_ids: (B, N) int64, ``config.image_token_id`` at every visual token.
            features: (T, D) tokens of each image, or None.

        Returns:
            (B, N, D) and the layout of text and image.

        Raises:
            ValueError: when there are more or fewer visual tokens than places for them.
        """
        is_image = input_ids == self.config.image_token_id
        embeds = self.embed_tokens(input_ids.masked_fill(is_image, 0))
        ways = Ways.of_mask(is_image)
        places = int(is_image.sum()) if ways.is_image is not None else 0
        visual = torch.cat(list(features)).to(embeds.device, embeds.dtype) if features else embeds.new_empty(0, 1)
        if places != visual.shape[0]:
            raise ValueError(
                f"input_ids hold {places} image tokens (id {self.config.image_token_id}) but the images make "
                f"{visual.shape[0]}; every image needs {self.config.num_image_tokens}, as Owl2Processor places them"
            )
        return (embeds.masked_scatter(is_image[..., None], visual) if places else embeds), ways

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | Sequence[Tensor] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the decoder over ids with images spliced in, or over text embeddings.

        Args:
            input_ids: (B, N) int64, or None when embeddings are given.
            pixel_values: normalised images, see ``get_image_features``.
            attention_mask: (B, N) with 0 at padding, on either side; a ready 4-D mask is taken as it is.
            position_ids: (B, N); default: counted from what the cache holds.
            past_key_values: cache to read and extend.
            inputs_embeds: (B, N, D), taken as text.
            use_cache: make a cache when none is given.
            mm_encoder_outputs: ``{"image": get_image_features(...)}``, instead of pixels.
            **kwargs: passed to the attention.

        Returns:
            ``last_hidden_state`` (B, N, D) after the last norm, and the cache.

        Raises:
            ValueError: when ids and embeddings, or pixels and encoded images, come together, or images do not fit.
        """
        image = (mm_encoder_outputs or {}).get("image")
        if pixel_values is not None:
            if image is not None or input_ids is None:
                raise ValueError("pixel_values need input_ids and no mm_encoder_outputs beside them")
            image = self.get_image_features(pixel_values)
        if input_ids is not None and inputs_embeds is None:
            states, ways = self.splice(input_ids, None if image is None else image.pooler_output)
        elif inputs_embeds is not None and input_ids is None:
            states, ways = inputs_embeds, Ways((TEXT,))
        else:
            raise ValueError("give either input_ids or inputs_embeds")
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(seen, seen + states.shape[1], device=states.device)[None]
        mask = create_causal_mask(self.config, states, attention_mask, past_key_values, position_ids)
        rotary = self.rotary_emb(states, position_ids=position_ids)
        for layer in self.layers:
            states = layer(states, ways, rotary, attention_mask=mask, past_key_values=past_key_values, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(states), past_key_values=past_key_values)

    def last_state(self, segments: Sequence[Tensor], passage: Passage | None = None) -> Tensor:
        """The state after the last of these segments, see ``Owl2ForConditionalGeneration.answer_logits``; (B, D).

        With a passage, they go on from ``passage.before``, and it keeps what is read if it is to.
        """
        batch = next((segment.shape[0] for segment in segments if segment.ndim == 3), 1)
        dtype, device = self.embed_tokens.weight.dtype, self.embed_tokens.weight.device
        runs = [(TEXT, segment.shape[0]) if segment.ndim == 1 else (IMAGE, segment.shape[1]) for segment in segments]
        pieces = [self.embed_tokens(part.to(device)) if part.ndim == 1 else part.to(device, dtype) for part in segments]
        states = torch.cat([piece.expand(batch, -1, -1) for piece in pieces], dim=1)
        ways = Ways.of_runs([run for run in runs if run[1]], device)
        before = None if passage is None else passage.before
        start, length = 0 if before is None else before.length, states.shape[1]
        rotary = self.rotary_emb(states, position_ids=torch.arange(start, start + length, device=device)[None])
        mask = None
        if before is not None or self.config._attn_implementation == "eager":  # the others see to causality themselves
            mask = torch.full((length, length), float("-inf"), dtype=dtype, device=device).triu(1)
        for layer in self.layers[:-1]:
            states = layer(states, ways, rotary, attention_mask=mask, past_key_values=passage)
        # Of the last layer only one position is asked for; keys and values are those of all.
        states = self.layers[-1](states, ways, rotary, past_key_values=passage, last_only=True)
        last: Tensor = self.norm(states)[:, 0]
        return last


class Owl2ForConditionalGeneration(Owl2PreTrainedModel, GenerationMixin):
    """mPLUG-Owl2, Q-Align/OneAlign, DeQA-Score, Compare2Score and nano: images and text in, next tokens out."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: Owl2Config) -> None:
        super().__init__(config)
        self.model = Owl2Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The language-model head."""
        return self.lm_head

    def get_image_features(self, pixel_values: Tensor | Sequence[Tensor], **kwargs: Any) -> BaseModelOutputWithPooling:
        """See ``Owl2Model.get_image_features``."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def get_visual_tokens(self, pixel_values: Tensor) -> Tensor:
        """Encode images once, for any number of questions.

        Args:
            pixel_values: (B, 3, S, S) float, normalised.

        Returns:
            (B, Q + 1, D) visual tokens, differentiable in the pixels.
        """
        tokens: Tensor = self.model.visual_abstractor(self.model.vision_model(pixel_values)[0])
        return tokens

    @torch.no_grad()
    def read(self, segments: Sequence[Tensor], before: Passage | None = None) -> Passage:
        """Read the beginning of a text once, for any number of rows that go on from it; no gradient passes it.

        Args:
            segments: as in ``answer_logits``, but they may end with visual tokens.
            before: what they go on from, at most as many rows as they have, see ``Passage``.

        Returns:
            What was read, ``before`` included.
        """
        passage = Passage(before)
        self.model.last_state(segments, passage)
        return passage

    def answer_logits(self, segments: Sequence[Tensor], answer_ids: Tensor, before: Passage | None = None) -> Tensor:
        """Logits of a few answers after a text with images: no mask, one position, only the asked rows of the head.

        Args:
            segments: in reading order; (n,) int64 ids of text that the whole batch shares, or (B, T, D) visual tokens.
            answer_ids: (A,) int64.
            before: what the segments go on from, see ``Passage``.

        Returns:
            (B, A) float32; the product with the head is computed in float32 whatever the dtype of the model.

        Raises:
            ValueError: when a segment is neither, or the last one is not text.
        """
        shapes = [tuple(segment.shape) for segment in segments]
        known = all(len(shape) in (1, 3) for shape in shapes)
        if not known or not shapes or len(shapes[-1]) != 1 or shapes[-1] == (0,):
            raise ValueError(f"segments are (n,) ids or (B, T, D) visual tokens and end with ids; got shapes {shapes}")
        state = self.model.last_state(segments, None if before is None else Passage(before, kept=False))
        rows = self.lm_head.weight[answer_ids.to(self.lm_head.weight.device)]
        with torch.autocast(state.device.type, enabled=False):
            return nn.functional.linear(state.float(), rows.float())

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | Sequence[Tensor] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Next-token logits; arguments as in ``Owl2Model.forward``.

        Args:
            labels: (B, N) int64 with -100 where nothing is to be learnt, image tokens included.
            logits_to_keep: how many last positions the head is applied to; 0 = all.

        Returns:
            ``logits`` (B, kept, vocabulary), ``loss`` when there are labels, the cache.
        """  # noqa: D417
        outputs = self.model(
            input_ids=input_ids, pixel_values=pixel_values, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, inputs_embeds=inputs_embeds, use_cache=use_cache,
            mm_encoder_outputs=mm_encoder_outputs, **kwargs,
        )  # fmt: skip
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states, attentions=outputs.attentions,
        )  # fmt: skip
