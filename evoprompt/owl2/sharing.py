"""Texts that begin alike: what they share is read once, and the rows that go on from it look back at one copy."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Passage:
    """Keys and values of every layer, (B, heads, N, width) each, of what the language model has read.

    In a forward pass it stands where a cache would: the pass leaves its keys and values here, and its rows look back at
    ``before``. With F rows before and F M rows now, row r goes on from row r // M; what was read before is not copied
    for each of the M rows.

    Args:
        before: what this pass goes on from; None = it begins a text.
        kept: whether to keep what this pass reads, so that another can go on from it.
    """

    before: "Passage | None" = None
    kept: bool = True
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens of a row, those before included."""
        return self.keys[0].shape[2]

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Take keys and values of a layer, and give them back: a row's own tokens only."""
        if self.kept:
            self.keys.append(key if self.before is None else _joined(self.before.keys[layer], key))
            self.values.append(value if self.before is None else _joined(self.before.values[layer], value))
        return key, value

    def look_back(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, layer: int
    ) -> Tensor:
        """Attention of rows to what they share and to themselves, one softmax over both.

        Queries of the M rows that share a beginning are laid side by side and meet its keys in one product; that is why
        nothing is copied, whichever attention the model is set to.

        Args:
            query: (F M, heads, S, width).
            key: (F M, heads, S', width), of the rows' own tokens; S' = S, or S = 1 at the end of S'.
            value: like ``key``.
            mask: (S, S') added to the scores of a row's own tokens, or None.
            scaling: factor of the scores.
            layer: number of the layer.

        Returns:
            (F M, S, heads, width).
        """
        assert self.before is not None
        far_key, far_value = self.before.keys[layer], self.before.values[layer]
        rows = (len(far_key), len(query) // len(far_key))
        far = _apart(_beside(query, rows) @ far_key.mT, rows)
        near = query @ key.mT
        scores = torch.cat([far, near if mask is None else near + mask], dim=-1) * scaling
        far, near = scores.softmax(-1, dtype=torch.float32).to(value.dtype).split([far.shape[3], near.shape[3]], dim=-1)
        return (_apart(_beside(far, rows) @ far_value, rows) + near @ value).transpose(1, 2)


def _beside(states: Tensor, rows: tuple[int, int]) -> Tensor:
    """(F M, heads, S, X) -> (F, heads, M S, X)."""
    return states.unflatten(0, rows).transpose(1, 2).flatten(2, 3)


def _apart(states: Tensor, rows: tuple[int, int]) -> Tensor:
    """(F, heads, M S, X) -> (F M, heads, S, X)."""
    return states.unflatten(2, (rows[1], -1)).transpose(1, 2).flatten(0, 1)


def _joined(before: Tensor, own: Tensor) -> Tensor:
    """Keys or values of F rows and of the F M rows that go on from them, behind each other."""
    return torch.cat([before.repeat_interleave(len(own) // len(before), dim=0), own], dim=2)
