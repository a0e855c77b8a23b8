"""Token ids equal sentencepiece, as the released checkpoints were trained."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer

from evoprompt.owl2 import Owl2Config, Owl2Processor, Owl2Tokenizer
from evoprompt.owl2.tokenization import convert_sentencepiece, merges_of

LLAMA = Path(__file__).parents[2].parent / "shared" / "tokenizer"
PARTS = [
    "quality", "image", " the", " ", "  ", "\n", "Na\u00efve", "ASSISTANT:", "\U0001f989", "</", "x" * 7,
    "tokenisation",
    "\t", "1234", "\u65e5\u672c", " good", "\u2581", "<0x0A>", ". ",
]  # fmt: skip


def texts(count: int) -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choices(PARTS, k=rng.randrange(9))) for _ in range(count)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer.model with LLaMA's settings."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    lines = [f"USER: How would you rate the quality of this image? It is {word}  \tand {word}." for word in PARTS * 20]
    (folder / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "tokenizer"), model_type="bpe", vocab_size=420,
        byte_fallback=True, add_dummy_prefix=True, remove_extra_whitespaces=False, normalization_rule_name="identity",
        character_coverage=0.98, hard_vocab_limit=False, allow_whitespace_only_pieces=True, minloglevel=2,
    )  # fmt: skip
    (folder / "text.txt").unlink()
    return folder


def as_checkpoint(folder: Path, model: Path) -> Path:
    """The files beside the weights of a released checkpoint, with the tokenizer class that they name."""
    Owl2Config().save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(model.read_bytes())
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None}
    options = {"add_bos_token": True, "add_eos_token": False, "legacy": False, "padding_side": "right"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | options | {"tokenizer_class": "LlamaTokenizer"}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 448, "crop_size": 448}))
    return folder


def test_ids_equal_sentencepiece_for_any_text(trained: Path) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(trained / "tokenizer.model"))
    tokenizer = Owl2Tokenizer.from_pretrained(trained)
    for text in texts(300):
        expected = pieces.encode(text)
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected, text
        assert tokenizer(text)["input_ids"] == [1, *expected], text


def test_text_around_images_is_tokenised_on_its_own(trained: Path, tmp_path: Path) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(trained / "tokenizer.model"))
    processor = Owl2Processor.from_pretrained(as_checkpoint(tmp_path, trained / "tokenizer.model"))
    chunks = ["USER: ", " ", " ASSISTANT:  the image", "is"]
    expected = [pieces.encode(chunk) for chunk in chunks]
    expected[0].insert(0, 1)
    assert processor.encode_text("<|image|>".join(chunks)) == expected
    image = [processor.image_token_id] * processor.num_image_tokens
    whole = processor.tokenizer(("<|image|>" * 65).join(chunks))["input_ids"]
    assert whole == [*expected[0], *image, *expected[1], *image, *expected[2], *image, *expected[3]]


def test_saved_tokenizer_gives_the_same_ids(trained: Path, tmp_path: Path) -> None:
    processor = Owl2Processor.from_pretrained(as_checkpoint(tmp_path, trained / "tokenizer.model"))
    again = tmp_path / "again"
    processor.save_pretrained(again)
    Owl2Config().save_pretrained(again)
    loaded = Owl2Processor.from_pretrained(again)
    for text in texts(50):
        assert loaded.encode_text(text) == processor.encode_text(text)
    assert loaded.image_token_id == processor.image_token_id


def test_decoding_gives_the_text_back(trained: Path) -> None:
    tokenizer = Owl2Tokenizer.from_pretrained(trained)
    text = "The quality of this image?  It is Na\u00efve \U0001f989."
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_sentencepiece_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n".join(f"the quality of image {index}" for index in range(99)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "tokenizer"), model_type="bpe", vocab_size=60,
        remove_extra_whitespaces=True, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    with pytest.raises(ValueError, match="in another way than LLaMA's"):
        convert_sentencepiece(tmp_path / "tokenizer.model")


def test_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(OSError, match="is not a sentencepiece model"):
        convert_sentencepiece(tmp_path / "tokenizer.model")


def test_merges_follow_the_scores_not_the_ids() -> None:
    vocabulary = {"a": 0, "b": 1, "ab": 2, "aba": 3, "ba": 4}
    assert merges_of(vocabulary, [0, 0, -3, -2, -1]) == [("b", "a"), ("a", "ba"), ("ab", "a"), ("a", "b")]


needs_llama = pytest.mark.skipif(
    not LLAMA.is_dir(), reason="LLaMA's tokenizer is not part of this project; put it in ../shared"
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Owl2Processor:
    folder = as_checkpoint(tmp_path_factory.mktemp("llama"), LLAMA / "tokenizer.model")
    return Owl2Processor.from_pretrained(folder)


@needs_llama
def test_scorer_prompt_has_the_recorded_ids(llama: Owl2Processor) -> None:
    text = "USER: How would you rate the quality of this image?\n<|image|>\nASSISTANT: The quality of the image is"
    before, after = llama.encode_text(text)
    recorded = [
        1, 3148, 1001, 29901, 1128, 723, 366, 6554, 278, 11029, 310, 445, 1967, 29973, 13, -200,
        29871, 13, 22933, 9047, 13566, 29901, 450, 11029, 310, 278, 1967, 338,
    ]  # fmt: skip
    assert [*before, -200, *after] == recorded
    assert llama.image_token_id == 32000 and llama.num_image_tokens == 65


@needs_llama
@pytest.mark.parametrize(
    ("text", "placed", "spliced"),
    [
        (
            "USER: How would you rate the aesthetics of this image?\n<|image|>\n"
            "ASSISTANT: The aesthetics of the image is",
            34,
            98,
        ),
        (
            "USER: How would you rate the quality of this video?\n<|image|>\nASSISTANT: The quality of the video is",
            28,
            92,
        ),
        (
            "USER: How would you rate the quality of this image?\n<|image|> ASSISTANT: The quality of the image is",
            28,
            92,
        ),
        (
            "USER: <|image|> <|image|> Compared with the first image, what is your quality rating for second image? "
            "\nASSISTANT: The quality of the second image is",
            38,
            166,
        ),
        ("USER: <|image|>Rate the technical quality of the image. ASSISTANT:", 20, 84),
    ],
)
def test_published_prompts_have_the_recorded_lengths(
    llama: Owl2Processor, text: str, placed: int, spliced: int
) -> None:
    chunks = llama.encode_text(text)
    images = len(chunks) - 1
    assert sum(map(len, chunks)) + images == placed
    assert len(llama.tokenizer(text.replace("<|image|>", "<|image|>" * 65))["input_ids"]) == spliced


@needs_llama
def test_chunks_that_start_with_spaces_keep_them(llama: Owl2Processor) -> None:
    chunks = llama.encode_text("USER: <|image|> <|image|> ASSISTANT: The")
    assert chunks == [[1, 3148, 1001, 29901, 29871], [259], [29871, 319, 1799, 9047, 13566, 29901, 450]]
    assert llama.answer_ids(" good") == [29871, 1781]


@needs_llama
def test_answer_words_have_the_recorded_single_ids(llama: Owl2Processor) -> None:
    recorded = {
        "excellent": 15129, "good": 1781, "fair": 6534, "poor": 6460, "bad": 4319,
        "inferior": 20773, "worse": 15029, "similar": 2788, "better": 2253, "superior": 11558,
    }  # fmt: skip
    assert {word: llama.answer_ids(word) for word in recorded} == {word: [index] for word, index in recorded.items()}
    assert [llama.tokenizer.decode([index]).strip() for index in recorded.values()] == list(recorded)


@needs_llama
def test_llama_ids_equal_sentencepiece_and_transformers_4_for_any_text(llama: Owl2Processor) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(LLAMA / "tokenizer.model"))
    four = Tokenizer.from_file(str(LLAMA / "tokenizer.4x.json"))
    for text in texts(1500):
        ids = llama.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == pieces.encode(text) == four.encode(text, add_special_tokens=False).ids, text
