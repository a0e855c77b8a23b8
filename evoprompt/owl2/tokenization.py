"""The LLaMA tokenizer exactly as the released checkpoints were trained with.

The tokenizer that transformers 5 builds from ``tokenizer.model`` differs from sentencepiece where a text starts with a
space, and mPLUG-Owl2 tokenises the text around every image on its own. Here the file is converted in the way
transformers 4 did, which agrees with sentencepiece, and the agreement is checked at load.
"""

import os
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

SPACE = "\u2581"  # sentencepiece writes a space as this
PROBES = (" ASSISTANT: a", "two  spaces ", " ", "\nnew line", "na\u00efve \U0001f989")


class Owl2Tokenizer(PreTrainedTokenizerFast):
    """A tokenizer from ``tokenizer.model`` (LLaMA, exact) or else from ``tokenizer.json`` (as it is)."""

    vocab_files_names = {"vocab_file": "tokenizer.model", "tokenizer_file": "tokenizer.json"}
    model_input_names = ["input_ids", "attention_mask"]

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Build the backend from the files found; called by ``from_pretrained``.

        Raises:
            OSError: when the folder holds neither file.
            ValueError: when ``tokenizer.model`` is not a LLaMA tokenizer.
        """
        model, file = kwargs.get("vocab_file"), kwargs.pop("tokenizer_file", None)
        if model is not None and os.path.isfile(model):
            backend = convert_sentencepiece(model)
        elif file is not None and os.path.isfile(file):
            backend = Tokenizer.from_file(file)
        else:
            raise OSError("the checkpoint has no tokenizer; put tokenizer.model or tokenizer.json beside config.json")
        for name, token in (("unk_token", "<unk>"), ("bos_token", "<s>"), ("eos_token", "</s>")):
            if backend.token_to_id(token) is not None and kwargs.get(name) is None:
                kwargs[name] = token
        return {**kwargs, "tokenizer_object": backend}


def convert_sentencepiece(path: str | os.PathLike[str]) -> Tokenizer:
    """Turn a LLaMA ``tokenizer.model`` into a ``tokenizers`` backend with the same ids.

    Args:
        path: the sentencepiece file.

    Returns:
        The backend; it puts the begin-of-text token first.

    Raises:
        OSError: when the file cannot be read.
        ValueError: when the two disagree, since the file is of another kind.
    """
    try:
        pieces = SentencePieceProcessor(model_file=os.fspath(path))
    except RuntimeError as error:
        raise OSError(f"{path} is not a sentencepiece model: {error}") from error
    vocabulary = {pieces.id_to_piece(index): index for index in range(pieces.get_piece_size())}
    scores = [pieces.get_score(index) for index in range(len(vocabulary))]
    special = [pieces.id_to_piece(index) for index in (pieces.unk_id(), pieces.bos_id(), pieces.eos_id())]
    backend = Tokenizer(
        models.BPE(vocabulary, merges_of(vocabulary, scores), unk_token=special[0], fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    for probe in PROBES:
        if backend.encode(probe, add_special_tokens=False).ids != pieces.encode(probe):
            raise ValueError(f"{path} tokenises {probe!r} in another way than LLaMA's tokenizer.model; use that one")
    backend.post_processor = processors.TemplateProcessing(
        single=f"{special[1]} $A", special_tokens=[(special[1], pieces.bos_id())]
    )
    return backend


def merges_of(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """The merge rules behind a sentencepiece byte-pair vocabulary.

    Args:
        vocabulary: piece -> id.
        scores: of every id; the piece that is merged first scores highest. Ids are not in that order.

    Returns:
        (left, right), the earliest first.
    """
    merges = []
    for whole, index in vocabulary.items():
        for cut in range(1, len(whole)):
            left, right = vocabulary.get(whole[:cut]), vocabulary.get(whole[cut:])
            if left is not None and right is not None:
                merges.append((-scores[index], left, right, whole[:cut], whole[cut:]))
    return [(left, right) for *_, left, right in sorted(merges)]
