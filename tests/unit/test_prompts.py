"""The pixel prompt: geometry, the zero prompt, and what is on disk."""

from __future__ import annotations

import copy
import gc
import json
import tracemalloc
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from evoprompt.catalogue import Contents
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
    assert list(loaded.origin.seen) == list(loaded.origin.seen) == ["ab", "cd"]
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == ["config.json", "model.safetensors", "seen.txt"]


def test_a_prompt_may_be_saved_where_it_was_read(tmp_path: Path) -> None:
    _saved(tmp_path / "p")
    copy.deepcopy(PixelPrompt.load(tmp_path / "p")).save(tmp_path / "p")
    assert (tmp_path / "p" / "seen.txt").read_text() == "ab\ncd\n"


def test_what_was_seen_is_never_held_in_memory(tmp_path: Path) -> None:
    """A run over many images remembers them, its prompt is saved, read, held against other images, saved again."""

    def keys(count: int) -> Iterator[str]:
        yield from (f"{k * 7919 % count:064x}" for k in range(count))

    def peak(count: int) -> int:
        gc.collect()
        tracemalloc.start()
        prompt = PixelPrompt(PromptConfig(image_size=16, size=4), Origin(seen=Contents(chain(keys(count), keys(9)))))
        prompt.save(tmp_path / "first")
        read = PixelPrompt.load(tmp_path / "first")
        assert sum(key == f"{8:064x}" for key in read.origin.seen) == 1
        read.save(tmp_path / "second")
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (tmp_path / "second" / "seen.txt").read_text().split() == [f"{k:064x}" for k in range(count)]
        return top

    peak(100)  # what is imported and cached on first use
    small, large = peak(1_000), peak(21_000)
    # As texts in a tuple they took some 120 bytes each, and as much again as a set.
    assert (large - small) / 20_000 < 5, (small, large)


@pytest.mark.parametrize("damage", ["gone", "no text"])
def test_a_memory_that_cannot_be_read_is_no_empty_memory(damage: str, tmp_path: Path) -> None:
    _saved(tmp_path / "p")
    prompt, file = PixelPrompt.load(tmp_path / "p"), tmp_path / "p" / "seen.txt"
    if damage == "gone":
        file.unlink()
        with pytest.raises(DataError, match=r"not a prompt folder: seen\.txt is missing"):
            PixelPrompt.load(tmp_path / "p")
    else:
        file.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"seen\.txt cannot be read"):
        list(prompt.origin.seen)


def test_a_prompt_of_another_make_is_refused(tmp_path: Path) -> None:
    _saved(tmp_path / "p")
    body = json.loads((tmp_path / "p" / "config.json").read_text())
    body["prompt"]["combine"] = "multiply"
    (tmp_path / "p" / "config.json").write_text(json.dumps(body))
    with pytest.raises(DataError, match="cannot be read as a prompt .*'combine'"):
        PixelPrompt.load(tmp_path / "p")


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


def test_a_config_without_a_hash_or_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    _saved(tmp_path)
    body = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({key: body[key] for key in body if key != "sha"}))
    with pytest.raises(DataError, match="cannot be read as a prompt .'sha'"):
        PixelPrompt.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**body, "schema": 99}))
    with pytest.raises(DataError, match="written by a newer evoprompt"):
        PixelPrompt.load(tmp_path)


def test_all_files_of_a_prompt_may_be_read_by_the_same_people(tmp_path: Path) -> None:
    _saved(tmp_path)
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


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
