"""Texts that begin alike: what they share is read once, and the rows that go on from it look back at one copy."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Passage:
    """Keys and values of one layer, (B, heads of keys, N, width) each, of what the language model has read.

    In a forward pass it stands where a cache would: the layer leaves its keys and values here, and its rows look back
    at those before. With F rows before and F M rows now, row r goes on from row r // M; what was read before is not
    copied for each of the M rows. It does not know the number of its layer, so that equal layers compile to one graph.

    Args:
        before: keys and values of what this pass goes on from; None = it begins a text.
        kept: whether to keep what this pass reads, so that another can go on from it.
        read: keys and values of the whole text, once they are read and kept.
    """

    before: tuple[Tensor, Tensor] | None = None
    kept: bool = True
    read: tuple[Tensor, Tensor] | None = None

    def take(self, key: Tensor, value: Tensor) -> None:
        """Keep a row's own keys and values behind those before, if they are to be kept."""
        if self.kept:
            before, own = self.before, (key, value)
            self.read = own if before is None else (_joined(before[0], key), _joined(before[1], value))

    def look_back(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
        """Attention of rows to what they share and to themselves, one softmax over both.

        Queries of the M rows that share a beginning are laid side by side and meet its keys in one product; that is why
        nothing is copied, whichever attention the model is set to.

        Args:
            query: (F M, heads, S, width).
            key: (F M, heads / groups, S', width), of the rows' own tokens; S' = S, or S = 1 at the end of S'.
            value: like ``key``.
            mask: (S, S') added to the scores of a row's own tokens, or None.
            scaling: factor of the scores.

        Returns:
            (F M, S, heads, width).
        """
        assert self.before is not None
        far_key, far_value = self.before
        groups = query.shape[1] // key.shape[1]  # heads that share keys and values
        if groups != 1:
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
            far_key, far_value = (states.repeat_interleave(groups, dim=1) for states in self.before)
        rows = (len(far_key), len(query) // len(far_key))
        far = _apart(_beside(query, rows) @ far_key.mT, rows)
        near = query @ key.mT
        scores = torch.cat([far, near if mask is None else near + mask], dim=-1) * scaling
        far, near = scores.softmax(-1, dtype=torch.float32).to(value.dtype).split([far.shape[3], near.shape[3]], dim=-1)
        return (_apart(_beside(far, rows) @ far_value, rows) + near @ value).transpose(1, 2)


Beginning = Sequence[tuple[Tensor, Tensor]]
"""What has been read, to go on from: keys and values of every layer, (B, heads of keys, N, width) each."""


def _beside(states: Tensor, rows: tuple[int, int]) -> Tensor:
    """(F M, heads, S, X) -> (F, heads, M S, X)."""
    return states.unflatten(0, rows).transpose(1, 2).flatten(2, 3)


def _apart(states: Tensor, rows: tuple[int, int]) -> Tensor:
    """(F, heads, M S, X) -> (F M, heads, S, X)."""
    return states.unflatten(2, (rows[1], -1)).transpose(1, 2).flatten(0, 1)


def _joined(before: Tensor, own: Tensor) -> Tensor:
    """Keys or values of F rows and of the F M rows that go on from them, behind each other."""
    return torch.cat([before.repeat_interleave(len(own) // len(before), dim=0), own], dim=2)
