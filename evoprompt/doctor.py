"""Facts about this machine and installation for a bug report: what is there, what is missing, how to get it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

from evoprompt import __version__

PACKAGES = (
    *("transformers", "trl", "datasets", "accelerate", "safetensors", "huggingface_hub"),
    *("numpy", "scipy", "pillow", "pyarrow", "click", "wandb"),
)
OPTIONAL = ("bitsandbytes",)
WEIGHTS = (
    "MAGAer13/mplug-owl2-llama2-7b",
    "q-future/one-align",
    "zhiyuanyou/DeQA-Score-Mix3",
    "q-future/Compare2Score",
)
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WHOLE = ("model.safetensors", "pytorch_model.bin")


def examine() -> dict[str, str]:
    """Look at the installation; nothing is downloaded and no secret is read out.

    Returns:
        Facts by name, in the order to print them. A fact that cannot be found out says why.
    """
    checks: list[tuple[str, Callable[[], str]]] = [
        ("evoprompt", lambda: __version__),
        ("python", platform.python_version),
        ("platform", platform.platform),
        ("cpu", _cpus),
        ("memory", _memory),
        ("disk", _disk),
        ("torch", _torch),
        ("cuda", _cuda),
        ("mps", _mps),
        *((name, _version_of(name, f"missing; pip install {name}")) for name in PACKAGES),
        *((name, _version_of(name, "not installed; it is optional")) for name in OPTIONAL),
        ("image decoders", _decoders),
        ("owl2-nano", _embedded),
        ("hub cache", lambda: _size_note(_cache())),
        *((name.partition("/")[2], _weights(name)) for name in WEIGHTS),
        ("HF_HUB_OFFLINE", lambda: _setting("HF_HUB_OFFLINE")),
        ("HF_ENDPOINT", _endpoint),
    ]
    return {name: _told(check) for name, check in checks}


def _told(check: Callable[[], str]) -> str:
    try:
        return check()
    except Exception as error:  # a broken installation is what this command is for: report it and go on
        return f"unknown ({type(error).__name__}: {str(error).partition(chr(10))[0]})"


# -- machine ----------------------------------------------------------------------------------------------------------


def _cpus() -> str:
    total = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    return f"{usable} usable of {total}" if usable != total else str(total)


def _memory() -> str:
    page = os.sysconf("SC_PAGE_SIZE")
    text = _size(page * os.sysconf("SC_PHYS_PAGES"))
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (value := limit.read_text(encoding="ascii").strip()).isdigit():
        text += f", of which this container may use {_size(int(value))}"
    return text


def _disk() -> str:
    return f"{_size(shutil.disk_usage(Path.cwd()).free)} free in the working folder"


def _torch() -> str:
    import torch

    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    return f"{torch.__version__}, {built}"


def _cuda() -> str:
    import torch

    if not torch.cuda.is_available():
        return "no device"
    devices = []
    for k in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(k)
        free, total = torch.cuda.mem_get_info(k)
        devices.append(f"cuda:{k} {properties.name}, {_size(free)} of {_size(total)} free")
    return "; ".join(devices)


def _mps() -> str:
    import torch

    return "available" if torch.backends.mps.is_available() else "no device"


# -- packages ---------------------------------------------------------------------------------------------------------


def _version_of(name: str, otherwise: str) -> Callable[[], str]:
    def version() -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return otherwise

    return version


def _decoders() -> str:
    from PIL import Image, features

    Image.init()
    there = {
        "JPEG": features.check("jpg"),
        "PNG": features.check("zlib"),
        "WebP": features.check("webp"),
        "JPEG 2000": features.check("jpg_2000"),
        "AVIF": "AVIF" in Image.OPEN,
        # Pillow has no HEIC decoder of its own and the reader takes no plug-in: convert such files first.
        "HEIC": False,
    }
    yes, no = (", ".join(name for name, found in there.items() if bool(found) is wanted) for wanted in (True, False))
    return f"{yes}; not: {no}" if no else yes


# -- weights ----------------------------------------------------------------------------------------------------------


def _embedded() -> str:
    folder = Path(__file__).parent / "nano"
    files = [p for p in folder.rglob("*") if p.is_file()] if folder.is_dir() else []
    weights = [p for p in files if p.suffix == ".safetensors"]
    if not weights:
        return "missing; install evoprompt again"
    return f"present, {_size(sum(p.stat().st_size for p in files))}"


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _size_note(cache: Path) -> str:
    return str(cache) if cache.is_dir() else f"{cache} (not there yet)"


def _weights(name: str) -> Callable[[], str]:
    def look() -> str:
        folder = _cache() / f"models--{name.replace('/', '--')}" / "snapshots"
        revisions = [p for p in folder.glob("*") if p.is_dir()] if folder.is_dir() else []
        if not revisions:
            return f"not cached; hf download {name}"
        newest = max(revisions, key=lambda p: p.stat().st_mtime)
        wanted = _weight_files(newest)
        there = [file for file in wanted if file.is_file()]
        if not wanted or len(there) < len(wanted):
            return f"incomplete, {len(there)} of {len(wanted) or '?'} weight files; hf download {name}"
        return f"{name} cached, {_size(sum(file.stat().st_size for file in there))}, revision {newest.name[:12]}"

    return look


def _weight_files(snapshot: Path) -> list[Path]:
    """The weight files that a snapshot should hold, there or not; the first kind that is there counts."""
    for index in _INDEXES:
        if (snapshot / index).is_file():
            shards: Iterable[str] = json.loads((snapshot / index).read_text(encoding="utf-8"))["weight_map"].values()
            return [snapshot / shard for shard in sorted(set(shards))]
    return [snapshot / whole for whole in _WHOLE if (snapshot / whole).is_file()][:1]


# -- settings ---------------------------------------------------------------------------------------------------------


def _setting(name: str) -> str:
    return os.environ.get(name) or "not set"


def _endpoint() -> str:
    """The mirror without a user name, password or query that its address may carry."""
    value = os.environ.get("HF_ENDPOINT")
    if not value:
        return "not set"
    parts = urlsplit(value if "://" in value else f"//{value}")
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme or 'https'}://{parts.hostname or '?'}{port}{parts.path}"


def _size(n: float) -> str:
    """Bytes for people: GiB from one GiB on, MiB below."""
    return f"{n / 2**30:,.1f} GiB" if n >= 2**30 else f"{n / 2**20:,.1f} MiB"
