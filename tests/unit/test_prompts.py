"""The pixel prompt: geometry, the zero prompt, and what is on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from evoprompt.errors import DataError
from evoprompt.prompts import Origin, PixelPrompt, PromptConfig


@pytest.mark.parametrize(
    ("config", "values"),
    [
        # The published counts: border 6 S (896 - 2 S), patch 3 S^2, overlay 3 * 448^2.
        (PromptConfig(kind="border", size=30), 150_480),
        (PromptConfig(kind="border", size=10), 52_560),
        (PromptConfig(kind="patch", size=30), 2_700),
        (PromptConfig(kind="overlay"), 602_112),
        (PromptConfig(kind="border", image_size=160, size=16, blocks=16), 3 * 36),
        (PromptConfig(kind="overlay", image_size=160, blocks=16), 300),
    ],
)
def test_number_of_trained_values(config: PromptConfig, values: int) -> None:
    assert PixelPrompt(config).n_values == values


@pytest.mark.parametrize("kind", ["border", "patch", "overlay"])
def test_a_prompt_changes_exactly_the_pixels_of_its_kind(kind: str) -> None:
    prompt = PixelPrompt(PromptConfig(kind=kind, image_size=20, size=6, strength=0.5))
    with torch.no_grad():
        prompt.theta.fill_(9.0)
    changed = (prompt.delta() != 0).all(0)
    inner = torch.zeros(20, 20, dtype=torch.bool)
    if kind == "border":
        inner[6:14, 6:14] = True
        expected = ~inner
    elif kind == "patch":
        inner[7:13, 7:13] = True
        expected = inner
    else:
        expected = ~inner
    assert torch.equal(changed, expected)
    assert prompt.delta().abs().max() <= 0.5


def test_a_patch_can_sit_at_the_top_left() -> None:
    prompt = PixelPrompt(PromptConfig(kind="patch", image_size=20, size=6, place="top-left"))
    with torch.no_grad():
        prompt.theta.fill_(1.0)
    assert prompt.delta()[:, :6, :6].all() and not prompt.delta()[:, 6:].any()


def test_a_block_has_one_colour_and_stays_inside_the_border() -> None:
    prompt = PixelPrompt(PromptConfig(kind="border", image_size=32, size=8, blocks=8))
    with torch.no_grad():
        prompt.theta.normal_(generator=torch.Generator().manual_seed(0))
    blocks = prompt.delta().unfold(1, 8, 8).unfold(2, 8, 8)
    assert torch.equal(blocks.amax((-1, -2)), blocks.amin((-1, -2)))
    assert not prompt.delta()[:, 8:24, 8:24].any()


def test_the_zero_prompt_is_the_image_bit_for_bit_and_still_has_a_gradient() -> None:
    prompt = PixelPrompt(PromptConfig(kind="border", image_size=16, size=4))
    images = torch.rand(2, 3, 16, 16)
    out = prompt(images)
    assert torch.equal(out, images)
    out.sum().backward()
    assert prompt.theta.grad is not None and bool((prompt.theta.grad != 0).all())


def test_the_result_stays_in_range() -> None:
    prompt = PixelPrompt(PromptConfig(kind="overlay", image_size=8, strength=1.0))
    with torch.no_grad():
        prompt.theta.normal_(std=3)
    out = prompt(torch.rand(3, 3, 8, 8))
    assert out.min() >= 0 and out.max() <= 1


def _saved(folder: Path) -> PixelPrompt:
    prompt = PixelPrompt(
        PromptConfig(kind="border", image_size=16, size=4, blocks=4), Origin(judge="j", revision="r", seen=("ab", "cd"))
    )
    with torch.no_grad():
        prompt.theta.normal_()
    prompt.save(folder)
    return prompt


def test_save_and_load_give_back_values_origin_and_hash(tmp_path: Path) -> None:
    prompt = _saved(tmp_path / "p")
    loaded = PixelPrompt.load(tmp_path / "p")
    assert torch.equal(loaded.theta, prompt.theta)
    assert (loaded.config, loaded.origin, loaded.sha()) == (prompt.config, prompt.origin, prompt.sha())
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == ["config.json", "model.safetensors", "seen.txt"]


def test_the_hash_tells_prompts_apart() -> None:
    config = PromptConfig(image_size=16, size=4)
    one, two = PixelPrompt(config), PixelPrompt(config)
    assert one.sha() == two.sha()
    with torch.no_grad():
        two.theta[0, 0] = 1e-6
    assert one.sha() != two.sha()
    assert one.sha() != PixelPrompt(PromptConfig(image_size=16, size=4, strength=0.9)).sha()


def test_broken_folders_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="config.json is missing"):
        PixelPrompt.load(tmp_path)
    _saved(tmp_path / "p")
    save_file({"theta": torch.ones(3, 12)}, tmp_path / "p" / "model.safetensors")
    with pytest.raises(DataError, match="do not match the hash"):
        PixelPrompt.load(tmp_path / "p")
    save_file({"theta": torch.ones(3, 11)}, tmp_path / "p" / "model.safetensors")
    with pytest.raises(DataError, match="do not belong together"):
        PixelPrompt.load(tmp_path / "p")
    (tmp_path / "p" / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="cannot be read as a prompt"):
        PixelPrompt.load(tmp_path / "p")
    (tmp_path / "p" / "config.json").write_text(json.dumps({"schema": 1}))
    with pytest.raises(DataError, match="cannot be read as a prompt"):
        PixelPrompt.load(tmp_path / "p")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "ring"}, "kind 'ring' is not known"),
        ({"place": "left"}, "place 'left' is not known"),
        ({"size": 300}, "does not fit a border on 448 px images; use 1 to 224"),
        ({"strength": 0.0}, "strength in"),
        ({"blocks": -1}, "blocks at least 0"),
    ],
)
def test_impossible_geometry_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        PromptConfig(**wrong)  # type: ignore[arg-type]
