"""Which positions of a batch hold text and which hold images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

TEXT, IMAGE = 0, 1


@dataclass(frozen=True)
class Ways:
    """Which of its two weights a layer takes at which position. Made once per forward, so that no layer computes both.

    Rows that place text and image alike are cut into slices, ``sizes`` positions each; other batches are gathered.

    Args:
        ways: TEXT or IMAGE for every part.
        sizes: positions of every part; None = the rows differ.
        is_image: (N, 1) or (B, N, 1) bool; None = text only.
        parts: flat positions of every part, when the rows differ.
        back: (B * N,) the order that puts gathered parts back, when the rows differ.
    """

    ways: tuple[int, ...]
    sizes: tuple[int, ...] | None = None
    is_image: Tensor | None = None
    parts: tuple[Tensor, ...] = ()
    back: Tensor | None = None

    @classmethod
    def of_runs(cls, runs: Sequence[tuple[int, int]], device: torch.device) -> "Ways":
        """The layout of rows that all consist of these (way, length) runs."""
        ways, sizes = zip(*runs, strict=True)
        if IMAGE not in ways:
            return cls((TEXT,))
        flags = torch.tensor(ways, dtype=torch.bool).repeat_interleave(torch.tensor(sizes))
        return cls(ways, sizes, flags[:, None].to(device))

    @classmethod
    def of_mask(cls, is_image: Tensor) -> "Ways":
        """The layout of a batch, (B, N) bool, True at image tokens. Waits for the device once."""
        rows = is_image.cpu()
        if bool((rows == rows[:1]).all()):
            runs = [(int(way), len(list(run))) for way, run in groupby(rows[0].tolist())]
            return cls.of_runs(runs, is_image.device)
        flat = rows.flatten()
        parts = (torch.nonzero(~flat)[:, 0], torch.nonzero(flat)[:, 0])
        back = torch.cat(parts).argsort().to(is_image.device)
        return cls((TEXT, IMAGE), None, is_image[..., None], tuple(part.to(is_image.device) for part in parts), back)

    def to(self, device: Any, non_blocking: bool = False) -> "Ways":
        """The same layout on another device; accelerate calls this where a model is spread over several."""
        if self.is_image is None:
            return self
        return replace(
            self,
            is_image=self.is_image.to(device, non_blocking=non_blocking),
            parts=tuple(part.to(device, non_blocking=non_blocking) for part in self.parts),
            back=None if self.back is None else self.back.to(device, non_blocking=non_blocking),
        )

    def split(self, states: Tensor) -> Sequence[Tensor]:
        """(B, N, D) -> one tensor per part."""
        if self.is_image is None:
            return (states,)
        if self.sizes is not None:
            parts: Sequence[Tensor] = states.split(self.sizes, dim=1)
            return parts
        flat = states.flatten(0, 1)
        return tuple(flat[part] for part in self.parts)

    def join(self, parts: Sequence[Tensor], batch: int) -> Tensor:
        """What ``split`` took apart, put together again: (B, N, D)."""
        if len(parts) == 1:
            return parts[0]
        if self.back is None:
            return torch.cat(tuple(parts), dim=1)
        return torch.cat(tuple(parts))[self.back].unflatten(0, (batch, -1))
