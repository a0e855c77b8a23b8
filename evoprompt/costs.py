"""What a mPLUG-Owl2 costs: floating-point operations and bytes, from its configuration alone.

One multiply-add is two operations. Norms, activations and the softmax are left out: they are below one percent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Costs:
    """Costs of single passes through a judge.

    Args:
        config: an ``Owl2Config``.
        item: bytes of a number of the activations, 2 or 4.
    """

    config: Any
    item: int

    @property
    def image_tokens(self) -> int:
        """Visual tokens an image."""
        return int(self.config.num_image_tokens)

    def encode(self) -> float:
        """Operations for one view of an image, from pixels to visual tokens."""
        vision, abstractor = self.config.vision_config, self.config.abstractor_config
        patches = (vision.image_size // vision.patch_size) ** 2
        n, d, m = patches + 1, vision.hidden_size, vision.intermediate_size
        tower = n * (8 * d * d + 4 * d * m) + 4 * n * n * d
        q, a, h = abstractor.num_learnable_queries, abstractor.hidden_size, abstractor.intermediate_size
        gather = q * (4 * a * a + 6 * a * h) + (q + n) * (4 * a * a + 4 * q * a)
        begin, end = 6 * vision.patch_size**2 * d * patches, 2 * q * a * self.config.hidden_size
        return float(begin + vision.num_hidden_layers * tower + abstractor.num_hidden_layers * gather + end)

    def read(self, tokens: int, context: int = 0) -> float:
        """Operations for some tokens of one row in the language model, after others that were read already.

        Only the last position is read off, so of the others the last layer computes keys and values alone.
        """
        config = self.config
        width, inner = config.hidden_size, config.intermediate_size
        shared = config.num_key_value_heads * config.head_dim
        key_value, rest, attention = 4 * width * shared, 4 * width * width + 6 * width * inner, 4 * width
        layers, seen = config.num_hidden_layers - 1, tokens + context
        whole = layers * tokens * (key_value + rest + attention * seen)
        return float(whole + tokens * key_value + rest + attention * seen)

    def rate(self, text: int) -> float:
        """Operations for one rating of an encoded image, in a text of so many tokens beside it."""
        return self.read(text + self.image_tokens)

    def compare(self, chunks: tuple[int, int, int], firsts: int, rows: int) -> float:
        """Operations for comparisons of encoded images.

        Args:
            chunks: tokens of the text before, between and after the two images.
            firsts: how many images shown first are read once for several rows; 0 = every row is read whole.
            rows: presentations asked.
        """
        head, middle, tail = chunks
        image = self.image_tokens
        if not firsts:
            return rows * self.read(head + middle + tail + 2 * image)
        begun = self.read(image + middle, head)
        return float(firsts * begun + rows * self.read(image + tail, head + image + middle))

    def train(self, text: int) -> float:
        """Operations for one image in a training step: forward, and backward to its pixels.

        Backward costs once the linear maps (their weights get no gradient) and twice the products of attention.
        """
        vision, config = self.config.vision_config, self.config
        n = (vision.image_size // vision.patch_size) ** 2 + 1
        length = text + self.image_tokens
        products = 4 * n * n * vision.hidden_size * vision.num_hidden_layers
        products += 4 * length**2 * config.hidden_size * (config.num_hidden_layers - 1)
        return float(2 * (self.encode() + self.rate(text)) + products)

    def kept(self, text: int, checkpointing: bool, again: bool = True) -> float:
        """Bytes that one image's forward pass keeps for the gradient, with fused attention.

        Args:
            text: tokens beside the image.
            checkpointing: keep the layers' inputs alone.
            again: and, while a layer is computed again, what that one keeps.
        """
        vision, abstractor, config = self.config.vision_config, self.config.abstractor_config, self.config
        n = (vision.image_size // vision.patch_size) ** 2 + 1
        length, q = text + self.image_tokens, abstractor.num_learnable_queries
        widths = (vision.hidden_size, abstractor.hidden_size, config.hidden_size)
        gather = (q + n) * 4 * widths[1] + q * (6 * widths[1] + 4 * abstractor.intermediate_size)
        one = (self._seeing(), float(gather), self._reading(length))
        layers = (vision.num_hidden_layers, abstractor.num_hidden_layers, config.num_hidden_layers)
        if not checkpointing:
            return float(self.item * sum(number * states for number, states in zip(layers, one, strict=True)))
        inputs = (n * widths[0], q * widths[1], length * widths[2])
        kept = sum(number * states for number, states in zip(layers, inputs, strict=True)) + n * widths[1]
        return float(self.item * (kept + (max(one) if again else 0)))

    def passing(self, views: int, rows: int, text: int) -> float:
        """Bytes of the states of one layer in a pass without gradient: so many views, or rows of a comparison."""
        return float(self.item * max(views * self._seeing(), rows * self._reading(text + 2 * self.image_tokens)))

    def _seeing(self) -> float:
        """Numbers that a layer of the tower makes of one view: norms' inputs, query, key, value, attention's, MLP's."""
        vision = self.config.vision_config
        n = (vision.image_size // vision.patch_size) ** 2 + 1
        return float(n * (6 * vision.hidden_size + 2 * vision.intermediate_size))

    def _reading(self, length: int) -> float:
        """The same for a layer of the language model; its norms take their input to float32, rotation makes copies."""
        width, inner = self.config.hidden_size, self.config.intermediate_size
        return float(length * (7 * width + 3 * inner + 8 * width / self.item))
