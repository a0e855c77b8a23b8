"""Visual tokens and fitted images kept within stated sizes: on the judge's device, in host memory, on disk."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from evoprompt.catalogue import cache_folder
from evoprompt.errors import RunError

# Bytes of a safetensors file besides the numbers, at most.
_HEADER = 256


class TensorCache:
    """Tensors by key. What a full tier has used least moves down to the next; what falls out of the last is forgotten.

    Args:
        device: the judge's; tensors are returned there, wherever they are kept.
        device_mib: size of the first tier, MiB; on a CPU there is no such tier.
        host_mib: of the second, pinned where there is a GPU.
        disk_mib: of the third: safetensors files in a folder of the cache, removed with this object.
        disk_key: of the recipe, where ``disk_mib`` comes from.

    Attributes:
        forgotten: how many tensors have fallen out of the last tier.
    """

    def __init__(
        self,
        device: torch.device,
        device_mib: int,
        host_mib: int,
        disk_mib: int,
        disk_key: str = "eval.disk_cache_mib",
    ) -> None:
        self.device, self.forgotten = device, 0
        on_device = [] if device.type == "cpu" else [_Memory(device_mib << 20, device, pinned=False)]
        on_host = _Memory(host_mib << 20, torch.device("cpu"), pinned=device.type == "cuda")
        self._tiers: list[_Tier] = [*on_device, on_host, _Disk(disk_mib << 20, disk_key)]

    def get(self, key: Hashable) -> Tensor | None:
        """The tensor of a key; None when it is not kept."""
        for tier in self._tiers:
            if key in tier.sizes:
                tier.sizes.move_to_end(key)
                return tier.read(key).to(self.device, non_blocking=True)
        return None

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Keep a tensor; one that is kept already stays where it is."""
        if any(key in tier.sizes for tier in self._tiers):
            return
        leaving = [(key, tensor)]
        for tier in self._tiers:
            leaving = [fallen for item in leaving for fallen in tier.add(*item)]
        self.forgotten += len(leaving)

    def used(self) -> list[int]:
        """Bytes kept in each tier, the topmost first."""
        return [tier.used for tier in self._tiers]


class _Tier:
    """One place to keep tensors."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self.sizes: OrderedDict[Hashable, int] = OrderedDict()  # the least used first

    def add(self, key: Hashable, tensor: Tensor) -> Iterator[tuple[Hashable, Tensor]]:
        """Keep a tensor; gives back what has to leave for it, or itself when it is larger than the whole tier."""
        size = self.size_of(tensor)
        if size > self.limit:
            yield key, tensor
            return
        while self.used + size > self.limit:
            oldest, freed = self.sizes.popitem(last=False)
            left = self.read(oldest)
            self.drop(oldest)
            self.used -= freed
            yield oldest, left
        self.write(key, tensor)
        self.sizes[key] = size
        self.used += size

    def size_of(self, tensor: Tensor) -> int:
        return tensor.numel() * tensor.element_size()

    def read(self, key: Hashable) -> Tensor:
        raise NotImplementedError

    def write(self, key: Hashable, tensor: Tensor) -> None:
        raise NotImplementedError

    def drop(self, key: Hashable) -> None:
        raise NotImplementedError


class _Memory(_Tier):
    def __init__(self, limit: int, device: torch.device, pinned: bool) -> None:
        super().__init__(limit)
        self._device, self._pinned = device, pinned
        self._kept: dict[Hashable, Tensor] = {}

    def size_of(self, tensor: Tensor) -> int:
        size = super().size_of(tensor)
        # The allocator of pinned memory hands out powers of two.
        return 1 << (size - 1).bit_length() if self._pinned else size

    def read(self, key: Hashable) -> Tensor:
        return self._kept[key]

    def write(self, key: Hashable, tensor: Tensor) -> None:
        # A copy: a tensor cut out of a batch would keep the whole batch in memory.
        own = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device, pin_memory=self._pinned)
        self._kept[key] = own.copy_(tensor)

    def drop(self, key: Hashable) -> None:
        del self._kept[key]


class _Disk(_Tier):
    _folder: Path | None = None

    def __init__(self, limit: int, key: str) -> None:
        super().__init__(limit)
        self._key = key

    def size_of(self, tensor: Tensor) -> int:
        return super().size_of(tensor) + _HEADER

    def read(self, key: Hashable) -> Tensor:
        return load_file(self._file(key))["kept"]

    def write(self, key: Hashable, tensor: Tensor) -> None:
        try:
            save_file({"kept": tensor.cpu().contiguous()}, self._file(key))
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"visual tokens or images cannot be kept in {cache_folder()} ({error}). Lower {self._key}, or name "
                "another folder in EVOPROMPT_CACHE."
            ) from error

    def drop(self, key: Hashable) -> None:
        self._file(key).unlink()

    def _file(self, key: Hashable) -> Path:
        if self._folder is None:
            self._folder = _new_folder()
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()}.safetensors"


def _new_folder() -> Path:
    """A folder of this process; those that killed processes of this machine left are removed."""
    home = cache_folder()
    home.mkdir(parents=True, exist_ok=True)
    mine = f"kept-{socket.gethostname()}-"
    for left in home.glob(f"{mine}*"):
        process = left.name.removeprefix(mine).split("-")[0]
        if process.isdigit() and not _alive(int(process)):
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{mine}{os.getpid()}-", dir=home))


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
