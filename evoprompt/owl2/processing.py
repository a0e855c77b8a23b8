"""Images and texts in the form the model takes: image processor, processor, loading a checkpoint whole."""

from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from tokenizers import AddedToken
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BatchFeature,
    ProcessorMixin,
)
from transformers.image_utils import SizeDict
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.processing_utils import ImagesKwargs
from transformers.utils.hub import resolve_revision

from evoprompt.owl2.configuration import Owl2Config
from evoprompt.owl2.modeling import Owl2ForConditionalGeneration, Owl2Model
from evoprompt.owl2.tokenization import Owl2Tokenizer

IMAGE_TOKEN = "<|image|>"
ASPECTS = ("pad", "squash", "crop")
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class Owl2ImagesKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """Options of ``Owl2ImageProcessor`` beside those of CLIP's."""

    aspect: str | None


class Owl2ImageProcessor(CLIPImageProcessorPil):
    """CLIP preprocessing after the image was made square, or cut square, as the checkpoint was trained.

    Always with PIL: transformers would take another resizer where torchvision is installed.

    Args:
        aspect: ``pad`` to a square in the mean colour (Q-Align, DeQA-Score, Compare2Score), ``squash`` to a square
            (mPLUG-Owl2's demo and evaluation scripts), or ``crop`` the centre (CLIP alone).
        **kwargs: as of CLIP's image processor.

    Raises:
        ValueError: for another aspect.
    """

    valid_kwargs = Owl2ImagesKwargs
    size = {"shortest_edge": 448}
    crop_size = {"height": 448, "width": 448}
    aspect = "squash"

    def _validate_preprocess_kwargs(self, aspect: str | None = None, **kwargs: Any) -> None:
        if aspect not in ASPECTS:
            raise ValueError(f"image aspect {aspect!r} is not known; use one of {', '.join(ASPECTS)}")
        super()._validate_preprocess_kwargs(**kwargs)

    def _preprocess(
        self, images: list[np.ndarray], aspect: str, resample: int, image_mean: Any, **kwargs: Any
    ) -> BatchFeature:
        if aspect == "pad":
            images = [pad_to_square(image, image_mean) for image in images]
        elif aspect == "squash":
            images = [self._squash(image, resample) for image in images]
        return super()._preprocess(images, resample=resample, image_mean=image_mean, **kwargs)

    def _squash(self, image: np.ndarray, resample: int) -> np.ndarray:
        edge = max(image.shape[1:])
        squashed: np.ndarray = self.resize(image, SizeDict(height=edge, width=edge), resample)
        return squashed


def pad_to_square(image: np.ndarray, mean: tuple[float, ...]) -> np.ndarray:
    """Put an image into the middle of a square of the mean colour.

    Args:
        image: (C, H, W) uint8.
        mean: of every channel, in [0, 1].

    Returns:
        (C, S, S) uint8 with S = max(H, W); the image starts at ``(S - side) // 2``.
    """
    channels, height, width = image.shape
    edge = max(height, width)
    colour = np.array([int(value * 255) for value in mean], dtype=image.dtype)
    square = np.empty((channels, edge, edge), dtype=image.dtype)
    square[:] = colour[:, None, None]
    top, left = (edge - height) // 2, (edge - width) // 2
    square[:, top : top + height, left : left + width] = image
    return square


class Owl2Processor(ProcessorMixin):
    """Texts with ``<|image|>`` in them and images -> ids, mask and pixels for the model.

    Every ``<|image|>`` becomes as many image tokens as the model makes of one image, and the text on either side of it
    is tokenised on its own, as in training.

    Args:
        image_processor: an ``Owl2ImageProcessor``.
        tokenizer: an ``Owl2Tokenizer``; gets ``<|image|>`` as a token, pads on the left.
        chat_template: see transformers.
        num_image_tokens: tokens of one image, ``config.num_image_tokens``.
    """

    image_token = IMAGE_TOKEN

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, num_image_tokens: int = 65
    ) -> None:
        tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, normalized=False, special=True)], special_tokens=True)
        tokenizer.padding_side = "left"  # generation continues at the right end
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.unk_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.num_image_tokens = num_image_tokens
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def replace_image_token(self, image_inputs: Any, image_idx: int, **_kwargs: Any) -> str:
        """What one ``<|image|>`` becomes before tokenisation."""
        return IMAGE_TOKEN * self.num_image_tokens

    def encode_text(self, text: str) -> list[list[int]]:
        """Token ids of the text around the images.

        Args:
            text: with ``<|image|>`` where an image goes.

        Returns:
            One list more than there are images; the begin-of-text id is at the head of the first one only.

        Raises:
            ValueError: when the text holds a word that a small vocabulary lacks.
        """
        return [self._ids(chunk, first=index == 0) for index, chunk in enumerate(text.split(IMAGE_TOKEN))]

    def answer_ids(self, word: str) -> list[int]:
        """Token ids of an answer that stands for itself, without begin-of-text.

        Raises:
            ValueError: when a small vocabulary lacks the word.
        """
        return self._ids(word, first=False)

    def _ids(self, text: str, first: bool) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=first)["input_ids"]
        if self.tokenizer.unk_token_id in ids:
            raise ValueError(f"{text!r} holds words that the vocabulary lacks; use those the model was trained with")
        return ids

    @classmethod
    def _get_arguments_from_pretrained(cls, source: str, processor_dict: Any = None, **kwargs: Any) -> list[Any]:
        """Read the parts of a released or saved checkpoint; transformers calls this from ``from_pretrained``.

        Not through the Auto classes: released files name LlamaTokenizer and CLIPImageProcessor, of which transformers 5
        makes other ids and, where torchvision is installed, other pixels. How Q-Align's trainer made images square
        (``image_aspect_ratio``) is in config.json.
        """
        options = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
        config = Owl2Config.from_pretrained(source, **options)
        fields, _ = Owl2ImageProcessor.get_image_processor_dict(source, **options)
        stated = "pad" if getattr(config, "image_aspect_ratio", None) == "pad" else Owl2ImageProcessor.aspect
        images = Owl2ImageProcessor.from_dict({"aspect": stated, **fields})
        tokenizer = Owl2Tokenizer.from_pretrained(source, **options)
        return [images, tokenizer, (processor_dict or {}).get("chat_template"), config.num_image_tokens]


def register() -> None:
    """Make transformers' Auto classes know the model, so that no checkpoint needs its remote code. Repeatable."""
    AutoConfig.register("mplug_owl2", Owl2Config, exist_ok=True)
    AutoModel.register(Owl2Config, Owl2Model, exist_ok=True)
    AutoModelForImageTextToText.register(Owl2Config, Owl2ForConditionalGeneration, exist_ok=True)
    AutoImageProcessor.register(Owl2Config, image_processor_classes={"pil": Owl2ImageProcessor}, exist_ok=True)
    AutoTokenizer.register(Owl2Config, tokenizer_class=Owl2Tokenizer, exist_ok=True)
    AutoProcessor.register(Owl2Config, Owl2Processor, exist_ok=True)


def load_owl2(
    path_or_id: str,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    quantization: Any = None,
) -> tuple[Owl2ForConditionalGeneration, Owl2Processor]:
    """Load a checkpoint to be used frozen.

    Args:
        path_or_id: a folder or a Hub id, of a released checkpoint or one saved from here.
        revision: branch, tag or commit on the Hub; its commit is kept as ``model.config._commit_hash``.
        dtype: of the weights; the patch convolution stays float32.
        device: where the model goes.
        quantization: configuration of transformers for weights in fewer bits; None = as they are.

    Returns:
        The model, in evaluation mode and with no parameter that requires a gradient, and its processor.

    Raises:
        OSError: when files are missing or cannot be fetched.
        ValueError: when they are not of this model: wrong type, missing or damaged weights, a larger tokenizer.
        torch.OutOfMemoryError: when the device has not enough memory for them.
    """
    pinned = resolve_revision(path_or_id, revision)
    options = {} if pinned is None else {"revision": pinned}
    config = AutoConfig.from_pretrained(path_or_id, trust_remote_code=False, **options)
    if not isinstance(config, Owl2Config):
        raise ValueError(f"{path_or_id} is a {config.model_type} checkpoint; give an mPLUG-Owl2 one (mplug_owl2)")
    processor = Owl2Processor.from_pretrained(path_or_id, **options)
    if processor.tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{path_or_id}: its tokenizer has {processor.tokenizer.vocab_size} tokens, its model {config.vocab_size}; "
            "put the tokenizer of this checkpoint beside it"
        )
    config.image_token_index = processor.image_token_id
    # Weights in fewer bits are made where they will be used, and cannot be moved.
    fewer_bits = {} if quantization is None else {"quantization_config": quantization, "device_map": {"": device}}
    try:
        model, report = Owl2ForConditionalGeneration.from_pretrained(
            path_or_id, config=config, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True,
            **options, **fewer_bits,
        )  # fmt: skip
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, SafetensorError, UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{path_or_id}: a weight file cannot be read: {reason}; fetch the checkpoint again") from error
    unusable = sorted(report["missing_keys"] | {name for name, *_ in report["mismatched_keys"]})
    if unusable:
        raise ValueError(
            f"{path_or_id}: {len(unusable)} weights are missing or not of the shape that config.json says "
            f"({unusable[0]} ...); fetch the checkpoint again"
        )
    config._commit_hash = getattr(pinned, "resolved", None)
    model = model if fewer_bits else model.to(device)
    return model.eval().requires_grad_(False), processor
