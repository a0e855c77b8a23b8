"""Configuration of mPLUG-Owl2, read from and written in the form of the released ``config.json`` files."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig, PreTrainedConfig


@strict
class Owl2VisionConfig(PreTrainedConfig):
    """The image tower: a ViT whose every token, the class token included, goes on to the abstractor."""

    model_type = "mplug_owl_vision_model"
    base_config_key = "vision_config"

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 448
    patch_size: int = 14
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-6
    attention_dropout: int | float = 0.0
    initializer_range: float = 0.02
    projection_dim: int = 768
    use_cls_token: bool = True
    use_post_layernorm: bool = True
    use_flash_attn: bool = False

    def validate_architecture(self) -> None:
        """Refuse what the tower cannot be built from.

        Raises:
            ValueError: for heads that do not divide the width, or the Owl2.1 variants without class token or last norm.
        """
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"vision hidden_size {self.hidden_size} is not a multiple of its {self.num_attention_heads} heads"
            )
        if not (self.use_cls_token and self.use_post_layernorm):
            raise ValueError("vision use_cls_token and use_post_layernorm must be true; mPLUG-Owl2.1 is not supported")


@strict
class Owl2AbstractorConfig(PreTrainedConfig):
    """The abstractor: learned queries that gather what the tower saw into a fixed number of tokens."""

    model_type = "mplug_owl_visual_abstract"
    base_config_key = "abstractor_config"

    num_learnable_queries: int = 64
    hidden_size: int = 1024
    encoder_hidden_size: int = 1024
    intermediate_size: int = 2816
    num_hidden_layers: int = 6
    num_attention_heads: int = 16
    grid_size: int = 32
    attention_probs_dropout_prob: int | float = 0.0
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    add_v2t_pos_emb: bool = False
    use_cls_token: bool = True

    def validate_architecture(self) -> None:
        """Refuse what the abstractor cannot be built from.

        Raises:
            ValueError: for a width that heads or position tables do not divide, or that is not the tower's.
        """
        if self.hidden_size != self.encoder_hidden_size:
            raise ValueError(
                f"abstractor hidden_size {self.hidden_size} must equal encoder_hidden_size {self.encoder_hidden_size}"
            )
        if self.hidden_size % self.num_attention_heads or self.hidden_size % 4:
            raise ValueError(
                f"abstractor hidden_size {self.hidden_size} is not a multiple of 4 and {self.num_attention_heads} heads"
            )


@strict
class Owl2Config(LlamaConfig):
    """A LLaMA configuration with an image tower and an abstractor.

    The released files keep both in one dict, ``visual_config = {"visual_model": ..., "visual_abstractor": ...}``, and
    so do the files written from here. In memory they are ``vision_config`` and ``abstractor_config``. Fields of
    fine-tunes that the model does not use (``image_aspect_ratio``, ``level_prefix`` ...) are kept as attributes.

    Args:
        vision_config: the image tower; a dict or None (the released 7B values) is accepted.
        abstractor_config: the abstractor; a dict or None is accepted.
        image_token_index: id that stands for one visual token in ``input_ids``; it is never embedded. None =
            vocab_size, the first id that no text has.

    Raises:
        ValueError: when the three parts do not fit each other.
    """

    model_type = "mplug_owl2"
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "vision_config": Owl2VisionConfig,
        "abstractor_config": Owl2AbstractorConfig,
    }
    # TRL and generate() ask for `image_token_id`. It is stored under another name, as LLaVA does, because transformers
    # warns about every stored `*_token_id` that is not a row of the embedding.
    attribute_map = {"image_token_id": "image_token_index"}

    vision_config: Any = None
    abstractor_config: Any = None
    image_token_index: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        visual = kwargs.pop("visual_config", None) or {}
        if self.vision_config is None:
            self.vision_config = visual.get("visual_model")
        if self.abstractor_config is None:
            self.abstractor_config = visual.get("visual_abstractor")
        if self.image_token_index is None:
            self.image_token_index = self.vocab_size
        super().__post_init__(**kwargs)

    @property
    def num_image_tokens(self) -> int:
        """How many tokens of the language model one image becomes: the queries and the closing one."""
        return int(self.abstractor_config.num_learnable_queries) + 1

    @property
    def visual_config(self) -> dict[str, Any]:
        """Tower and abstractor in the released form."""
        return {"visual_model": self.vision_config.to_dict(), "visual_abstractor": self.abstractor_config.to_dict()}

    def to_dict(self) -> dict[str, Any]:
        """All fields, in the form of the released ``config.json``."""
        fields: dict[str, Any] = super().to_dict()
        fields["visual_config"] = {
            "visual_model": fields.pop("vision_config"),
            "visual_abstractor": fields.pop("abstractor_config"),
        }
        return fields

    def validate_architecture(self) -> None:
        """Refuse parts that do not fit each other.

        Raises:
            ValueError: naming the two numbers that disagree.
        """
        super().validate_architecture()
        vision, abstractor = self.vision_config, self.abstractor_config
        if vision.hidden_size != abstractor.encoder_hidden_size:
            raise ValueError(
                f"abstractor encoder_hidden_size {abstractor.encoder_hidden_size} must equal vision hidden_size "
                f"{vision.hidden_size}"
            )
        if abstractor.grid_size != vision.image_size // vision.patch_size:
            raise ValueError(
                f"abstractor grid_size {abstractor.grid_size} must equal image_size // patch_size = "
                f"{vision.image_size // vision.patch_size}"
            )
