"""Texts and images to model inputs, and loading a checkpoint whole."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from owl2_tiny import QUERIES, SIDE, VOCABULARY, save_checkpoint, tiny_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

from evoprompt.owl2 import Owl2ForConditionalGeneration, Owl2ImageProcessor, Owl2Processor, Owl2Tokenizer, load_owl2

ROWS = ["USER: <|image|> rate this <|image|> ASSISTANT: this is", "USER: rate <|image|> is"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("tiny"))


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(count)]


def edit_config(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def test_text_is_split_at_images_and_begins_once(folder: Path) -> None:
    processor = Owl2Processor.from_pretrained(folder)
    assert processor.encode_text(ROWS[0]) == [[1, 3], [5, 6], [4, 6, 9]]
    assert processor.encode_text("<|image|><|image|>") == [[1], [], []]
    assert processor.answer_ids("good") == [7]


def test_word_outside_a_small_vocabulary_is_refused(folder: Path) -> None:
    processor = Owl2Processor.from_pretrained(folder)
    for ask in (processor.encode_text, processor.answer_ids):
        with pytest.raises(ValueError, match="'zebra' holds words that the vocabulary lacks"):
            ask("zebra")


def test_each_image_becomes_its_tokens_and_rows_are_padded_left(folder: Path) -> None:
    model, processor = load_owl2(str(folder))
    batch = processor(text=ROWS, images=pictures(3), padding=True, return_tensors="pt")
    tokens = [VOCABULARY] * (QUERIES + 1)
    first = [1, 3, *tokens, 5, 6, *tokens, 4, 6, 9]
    second = [1, 3, 5, *tokens, 9]
    missing = len(first) - len(second)
    assert batch["input_ids"].tolist() == [first, [0] * missing + second]
    assert batch["attention_mask"].tolist() == [[1] * len(first), [0] * missing + [1] * len(second)]
    assert batch["pixel_values"].shape == (3, 3, SIDE, SIDE)
    logits = model(**batch).logits[:, -1]
    alone = processor(text=ROWS[1:], images=pictures(3)[2:], return_tensors="pt")
    torch.testing.assert_close(logits[1:], model(**alone).logits[:, -1], atol=1e-5, rtol=0)
    before, after = (torch.tensor(ids) for ids in processor.encode_text(ROWS[1]))
    segments = [before, model.get_visual_tokens(batch["pixel_values"][2:]), after]
    torch.testing.assert_close(model.answer_logits(segments, torch.arange(VOCABULARY)), logits[1:], atol=1e-5, rtol=0)
    assert model.generate(**batch, max_new_tokens=2, do_sample=False).shape[0] == 2


def test_number_of_images_must_fit_the_text(folder: Path) -> None:
    processor = Owl2Processor.from_pretrained(folder)
    with pytest.raises(ValueError, match="3 .* tokens and 2 images"):
        processor(text=ROWS, images=pictures(2))


def test_pixels_are_normalised_by_the_constants_of_the_checkpoint(folder: Path) -> None:
    processor = Owl2Processor.from_pretrained(folder)
    white = processor.image_processor(Image.new("RGB", (SIDE, SIDE), "white"), return_tensors="pt").pixel_values
    assert white[0, :, 0, 0].tolist() == pytest.approx([(1 - 0.5) / 0.2, (1 - 0.4) / 0.3, (1 - 0.3) / 0.4])


@pytest.mark.parametrize(("ratio", "aspect"), [("pad", "pad"), (None, "squash")])
def test_how_images_are_made_square_is_read_from_a_released_config(
    folder: Path, tmp_path: Path, ratio: str | None, aspect: str
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    edit_config(tmp_path, **({} if ratio is None else {"image_aspect_ratio": ratio}))
    processor = Owl2Processor.from_pretrained(tmp_path)
    assert processor.image_processor.aspect == aspect
    constants = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(constants | {"aspect": "crop"}))
    assert Owl2Processor.from_pretrained(tmp_path).image_processor.aspect == "crop"


def test_auto_classes_know_a_released_folder_and_a_saved_one(folder: Path, tmp_path: Path) -> None:
    released = AutoProcessor.from_pretrained(folder)
    assert type(released) is Owl2Processor
    load_owl2(str(folder))[0].config.save_pretrained(tmp_path)
    released.image_processor.aspect = "crop"
    released.save_pretrained(tmp_path)
    saved = AutoProcessor.from_pretrained(tmp_path)
    parts = (saved, saved.tokenizer, saved.image_processor)
    assert tuple(map(type, parts)) == (Owl2Processor, Owl2Tokenizer, Owl2ImageProcessor)
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is Owl2Tokenizer
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is Owl2ImageProcessor
    for row in ROWS:
        assert saved.encode_text(row) == released.encode_text(row)
    assert (saved.image_token_id, saved.num_image_tokens) == (VOCABULARY, QUERIES + 1)
    assert saved.image_processor.to_dict() == released.image_processor.to_dict()


def test_loaded_model_is_frozen_and_in_evaluation_mode(folder: Path) -> None:
    model, processor = load_owl2(str(folder))
    assert isinstance(model, Owl2ForConditionalGeneration) and isinstance(processor, Owl2Processor)
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config._attn_implementation == "sdpa"
    assert processor.image_token_id == model.config.image_token_id


def test_an_image_token_of_the_vocabulary_is_used(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    text = (tmp_path / "tokenizer.json").read_text().replace('"w37"', '"<|image|>"')
    (tmp_path / "tokenizer.json").write_text(text)
    model, processor = load_owl2(str(tmp_path))
    assert processor.image_token_id == model.config.image_token_id == VOCABULARY - 1


def lose_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def cut_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:1000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose_a_weight, r"1 weights are missing or not of the shape that config.json says \(model.norm.weight"),
        (lambda folder: edit_config(folder, intermediate_size=44), "9 weights are missing or not of the shape"),
        (cut_weights, "a weight file cannot be read"),
        (lambda folder: edit_config(folder, model_type="llama"), "is a llama checkpoint; give an mPLUG-Owl2 one"),
        (lambda folder: edit_config(folder, vocab_size=40), "its tokenizer has 48 tokens, its model 40"),
        (
            lambda folder: (folder / "tokenizer.json").unlink(),
            "has no tokenizer; put tokenizer.model or tokenizer.json",
        ),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "Can't load image processor"),
        (lambda folder: (folder / "config.json").unlink(), "model_type"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    ],
)
def test_damaged_checkpoint_is_refused(
    folder: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    damage(tmp_path)
    with pytest.raises((OSError, ValueError), match=message):
        load_owl2(str(tmp_path))


def test_unknown_remote_code_is_neither_run_nor_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    edit_config(tmp_path, model_type="something_else", auto_map={"AutoConfig": "code.Config"})
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked the user"))
    with pytest.raises((OSError, ValueError)):
        load_owl2(str(tmp_path))
    assert not (tmp_path / "ran").exists()


class Trap:
    """Unpickled without restrictions, this makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_code_inside_a_weight_file_never_runs(folder: Path, tmp_path: Path, writer: str) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    weights = {"model.norm.weight": Trap(tmp_path / "trapped")}
    if writer == "torch":
        torch.save(weights, tmp_path / "pytorch_model.bin")
    else:
        (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(weights))
    with pytest.raises(ValueError, match="a weight file cannot be read"):
        load_owl2(str(tmp_path))
    assert not (tmp_path / "trapped").exists()
    if writer == "torch":  # the trap works where it is let
        torch.load(tmp_path / "pytorch_model.bin", weights_only=False)
        assert (tmp_path / "trapped").exists()


def test_tiny_checkpoint_gives_the_logits_it_was_saved_with(folder: Path) -> None:
    model, _ = load_owl2(str(folder))
    before = tiny_model().state_dict()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
