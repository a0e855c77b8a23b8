"""The cache of visual tokens: bounded in every tier, true to the bit, and never stale."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BORDER, SIDE, ScriptedJudge, base_picture

from evoprompt import tensor_cache
from evoprompt.config import EvalConfig, Recipe
from evoprompt.errors import RunError
from evoprompt.images import ImageSet, read_image
from evoprompt.ladder import Pool
from evoprompt.lifecycle import evolve
from evoprompt.prompts import PixelPrompt, PromptConfig
from evoprompt.tensor_cache import TensorCache
from evoprompt.tracking import Console
from evoprompt.voting import Seen

MIB = 1 << 20
CPU = torch.device("cpu")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVOPROMPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def quarter(k: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor of a quarter of a MiB, or of an eighth in 16 bit."""
    return torch.full((256, 256), float(k), dtype=dtype)


def test_no_tier_ever_holds_more_than_stated(home: Path) -> None:
    cache = TensorCache(CPU, 0, 1, 2)
    for k in range(30):
        cache.put(k, quarter(k))
        host, disk = cache.used()
        files = [file.stat().st_size for file in home.rglob("*.safetensors")]
        assert host <= MIB and disk <= 2 * MIB and sum(files) <= 2 * MIB
    kept = [k for k in range(30) if cache.get(k) is not None]
    assert kept == list(range(30 - 4 - 7, 30))  # four in memory, seven and their headers on disk
    assert all(torch.equal(cache.get(k), quarter(k)) for k in kept)  # type: ignore[arg-type]


def test_what_is_used_stays_and_what_is_not_moves_down(home: Path) -> None:
    cache = TensorCache(CPU, 0, 1, 1)
    for k in range(4):
        cache.put(k, quarter(k))
    cache.get(0)
    cache.put(4, quarter(4))
    assert [key for key in range(5) if key in cache._tiers[1].sizes] == [1]


def test_sixteen_bit_tensors_survive_the_disk_to_the_bit(home: Path) -> None:
    cache = TensorCache(CPU, 0, 0, 1)
    tokens = torch.randn(3, 5).to(torch.bfloat16)
    cache.put(("a", 1), tokens)
    assert torch.equal(cache.get(("a", 1)), tokens)  # type: ignore[arg-type]


def test_a_device_has_a_tier_of_its_own_above_the_host(home: Path) -> None:
    cache = TensorCache(torch.device("meta"), 1, 1, 0)
    for k in range(4):
        cache.put(k, torch.empty(256, 256, device="meta"))
    assert cache.used() == [MIB, 0, 0]
    assert cache.get(2).device.type == "meta"  # type: ignore[union-attr]


def test_a_view_of_a_batch_does_not_keep_the_batch() -> None:
    cache, batch = TensorCache(CPU, 0, 1, 0), torch.zeros(64, 256, 256)
    cache.put(0, batch[0])
    assert cache.get(0).untyped_storage().nbytes() == MIB // 4  # type: ignore[union-attr]


def test_what_is_larger_than_every_tier_is_not_kept(home: Path) -> None:
    cache = TensorCache(CPU, 0, 0, 0)
    cache.put(0, quarter(0))
    assert cache.get(0) is None and not list(home.rglob("*.safetensors"))


def test_files_go_with_the_cache_and_those_of_killed_processes_with_the_next(home: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = home / f"kept-{socket.gethostname()}-{ended.pid}-x"
    alive, elsewhere = home / f"kept-{socket.gethostname()}-{os.getpid()}-x", home / f"kept-elsewhere-{ended.pid}-x"
    for folder in (left, alive, elsewhere):
        folder.mkdir(parents=True)
    cache = TensorCache(CPU, 0, 0, 1)
    cache.put(0, quarter(0))
    assert not left.exists() and alive.exists() and elsewhere.exists()
    assert len(list(home.rglob("*.safetensors"))) == 1
    del cache
    gc.collect()
    assert not list(home.rglob("*.safetensors"))


def test_a_full_disk_is_said_in_a_sentence(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(tensor_cache, "save_file", full)
    with pytest.raises(RunError, match=r"no space left on device\). Lower eval.disk_cache_mib"):
        TensorCache(CPU, 0, 0, 1).put(0, quarter(0))


def _pixels(key: int) -> np.ndarray:
    noise = np.random.default_rng(key).normal(0, 0.01 + 0.01 * key, (SIDE, SIDE, 3))
    picture = ((base_picture() + noise).clip(0, 1) * 255).round().astype(np.uint8).transpose(2, 0, 1)
    return np.stack([picture, picture[:, :, ::-1]])


def _border() -> PixelPrompt:
    return PixelPrompt(PromptConfig(kind="border", image_size=SIDE, size=BORDER, blocks=BORDER, strength=0.6))


def test_a_changed_prompt_is_never_served_what_another_one_saw() -> None:
    judge, prompt = ScriptedJudge(), _border()
    judge.attach(prompt)
    seen, question = Seen(judge, [range(4)], _pixels, 2), judge.family.rate[0]

    def read(seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        return seen.tokens(range(4), 1), seen.ratings(range(4), question)

    first = read(seen)
    with torch.no_grad():
        prompt.theta.fill_(0.3)  # trained in place, without being attached again
    changed = read(seen)
    assert all(torch.equal(*pair) for pair in zip(changed, read(Seen(judge, [range(4)], _pixels, 2)), strict=True))
    assert not any(torch.equal(*pair) for pair in zip(changed, first, strict=True))
    with torch.no_grad():
        prompt.theta.zero_()
    assert all(torch.equal(*pair) for pair in zip(read(seen), first, strict=True))
    judge.attach(None)
    judge.revision = "1"
    assert not torch.equal(seen.tokens([0], 1), changed[0][:1])


@pytest.mark.parametrize("limits", [EvalConfig(host_cache_mib=0), EvalConfig(host_cache_mib=0, disk_cache_mib=1)])
def test_tokens_and_ratings_do_not_depend_on_what_the_cache_holds(home: Path, limits: EvalConfig) -> None:
    judge = ScriptedJudge()
    order = [5, 1, 0, 4, 2, 5, 0]
    plain, bounded = (Seen(judge, [range(6)], _pixels, 4, limits=x) for x in (EvalConfig(), limits))
    for view in (0, 1):
        assert torch.equal(plain.tokens(order, view), bounded.tokens(order, view))
    question = judge.family.rate[0]
    assert torch.equal(plain.ratings(order, question), bounded.ratings(order, question))


def test_only_the_views_asked_for_are_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    judge, sizes = ScriptedJudge(), []
    plain = judge.encode
    monkeypatch.setattr(judge, "encode", lambda pixels: sizes.append(len(pixels)) or plain(pixels))
    seen = Seen(judge, [range(6)], _pixels, 3, views=1)
    seen.tokens(range(6), 0)
    seen.ratings(range(6), judge.family.rate[0])
    assert sizes == [3, 3]


def test_the_next_block_is_read_elsewhere_while_one_is_encoded() -> None:
    judge, readers = ScriptedJudge(), {}
    third = threading.Event()

    def pixels(key: int) -> np.ndarray:
        readers[key] = threading.current_thread()
        if key == 3:
            third.set()
        return _pixels(key)

    plain = judge.encode
    judge.encode = lambda x: plain(x) if third.wait(5) else x  # type: ignore[method-assign]
    seen = Seen(judge, [[4, 1, 3, 2, 0]], pixels, 2)
    seen.tokens([4], 0)  # waits in encode until 3, of the next block, is being read
    assert set(readers) <= {4, 1, 3, 2} and threading.main_thread() not in readers.values()


@pytest.mark.parametrize(("host", "disk"), [(1, 0), (0, 1)])
def test_images_are_read_at_most_once_in_a_run_of_a_round(
    toys: ImageSet, quick: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path, host: int, disk: int
) -> None:
    reads: Counter[Path] = Counter()

    def counted(path: Path):  # type: ignore[no-untyped-def]
        reads[path] += 1
        return read_image(path)

    monkeypatch.setattr("evoprompt.ladder.read_image", counted)
    toys = replace(toys, records=toys.records[:24])  # 24 images and 30 degraded ones of 6.75 KiB, 24 pictures as large
    limits = EvalConfig(host_images_mib=host, disk_images_mib=disk)
    ladder = replace(quick.ladder, images=2)
    pairs = replace(quick.pairs, ladder=0.3)
    few = replace(quick, rounds=1, train=replace(quick.train, steps=3), pairs=pairs, ladder=ladder, eval=limits)
    evolve(few, toys, tmp_path / "run", ScriptedJudge(0.9), console=Console(quiet=True), force=True)
    assert len(reads) == len(toys) and set(reads.values()) == {1}
    gc.collect()
    assert not list(home.rglob("*.safetensors"))


def test_images_are_the_same_wherever_they_are_kept_and_it_is_said_once_where_they_cannot_be(
    toys: ImageSet, home: Path
) -> None:
    def pool(host: int, disk: int) -> Pool:
        return Pool(toys, "squash", SIDE, 2, 0, EvalConfig(host_images_mib=host, disk_images_mib=disk))

    def keys(pool: Pool) -> list[int]:
        return [*range(12), *pool.chain(3, "jpeg", 3).keys, *range(12), *pool.chain(3, "lens_blur", 3).keys]

    plain = pool(1, 0)
    expected = [plain(key) for key in keys(plain)]
    assert plain.notice() == ""
    for limits in ((0, 1), (0, 0)):
        bounded = pool(*limits)
        assert all(np.array_equal(bounded(key), views) for key, views in zip(keys(bounded), expected, strict=True))
        said = [bounded.notice(), bounded.notice()]
        assert said[1] == "" and ("eval.disk_images_mib" in said[0]) == (limits == (0, 0))


def test_what_falls_out_of_the_last_tier_is_counted(home: Path) -> None:
    cache = TensorCache(CPU, 0, 1, 0)
    for k in range(6):
        cache.put(k, quarter(k))
    assert cache.forgotten == 2
