"""The facts for bug reports: complete even where the machine is broken, exact about weights, silent about secrets."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import socket
import sys
from pathlib import Path

import pytest

from evoprompt import __version__, doctor
from evoprompt.doctor import PACKAGES, WEIGHTS, examine


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def _snapshot(cache: Path, name: str) -> Path:
    folder = cache / f"models--{name.replace('/', '--')}" / "snapshots" / "0123456789abcdef0123"
    folder.mkdir(parents=True)
    return folder


def test_every_fact_is_short_text_whose_name_fits_the_column_it_is_printed_in() -> None:
    found = examine()
    assert found["evoprompt"] == __version__
    assert set(PACKAGES) <= set(found)
    assert all(isinstance(value, str) and value and "\n" not in value for value in found.values())
    assert max(map(len, found)) < 22


def test_a_broken_installation_is_described_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("disk on fire\nand more")

    monkeypatch.setattr(shutil, "disk_usage", broken)
    monkeypatch.setattr(importlib.metadata, "version", broken)
    monkeypatch.setitem(sys.modules, "torch", None)
    found = examine()
    assert found["disk"] == "unknown (RuntimeError: disk on fire)"
    assert found["numpy"].startswith("unknown (RuntimeError")
    assert found["torch"].startswith("unknown (ModuleNotFoundError")


def test_a_missing_package_comes_with_the_command_and_an_optional_one_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    found = examine()
    assert found["trl"] == "missing; pip install trl"
    assert found["bitsandbytes"] == "not installed; it is optional"


def test_weights_that_are_not_cached_come_with_the_download_command(cache: Path) -> None:
    found = examine()
    for name in WEIGHTS:
        assert found[name.split("/")[1]] == f"not cached; hf download {name}"


def test_weights_count_as_cached_only_when_every_shard_of_the_index_is_there(cache: Path) -> None:
    name = "q-future/one-align"
    folder = _snapshot(cache, name)
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (folder / "model-1.safetensors").write_bytes(bytes(2 << 20))
    assert examine()["one-align"] == f"incomplete, 1 of 2 weight files; hf download {name}"
    (folder / "model-2.safetensors").write_bytes(bytes(1 << 20))
    assert examine()["one-align"] == f"{name} cached, 3.0 MiB, revision 0123456789ab"


def test_a_snapshot_that_holds_only_a_configuration_is_incomplete(cache: Path) -> None:
    name = "zhiyuanyou/DeQA-Score-Mix3"
    (_snapshot(cache, name) / "config.json").write_text("{}")
    assert examine()["DeQA-Score-Mix3"] == f"incomplete, 0 of ? weight files; hf download {name}"


def test_a_shard_whose_download_was_torn_is_a_dangling_link_and_missing(cache: Path) -> None:
    folder = _snapshot(cache, "q-future/Compare2Score")
    (folder / "pytorch_model.bin").symlink_to(cache / "blobs" / "gone")
    assert examine()["Compare2Score"].startswith("incomplete")


@pytest.mark.parametrize(("weights", "said"), [(True, "present, 2.0 MiB"), (False, "missing; install evoprompt again")])
def test_the_embedded_judge_is_present_when_its_weights_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: bool, said: str
) -> None:
    (tmp_path / "nano").mkdir()
    (tmp_path / "nano" / "config.json").write_text("{}")
    if weights:
        (tmp_path / "nano" / "model.safetensors").write_bytes(bytes(2 << 20))
    monkeypatch.setattr(doctor, "__file__", str(tmp_path / "doctor.py"))
    assert examine()["owl2-nano"] == said


def test_no_secret_is_read_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "hf_verysecret")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:verysecret@mirror.example:8443/hub?token=verysecret")
    found = examine()
    assert found["HF_ENDPOINT"] == "https://mirror.example:8443/hub"
    assert "verysecret" not in json.dumps(found)


def test_nothing_is_fetched(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: tried.append(address))
    examine()
    assert not tried
