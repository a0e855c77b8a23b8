"""Asking: how many rows go through a forward pass at a time, and what they have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evoprompt.errors import JudgeError
from evoprompt.owl2 import Beginning, Owl2ForConditionalGeneration

MEMORY_MIB = 1024

# Larger batches no longer fit the caches of a core: with the nano judge a row takes 1.09 ms in batches of 16 to 64,
# 1.19 ms in batches of 132, 1.33 ms in batches of 264.
CPU_ROWS = 64


class Room:
    """Batch sizes by kind of forward pass. They change speed and memory; answers stay the same up to rounding.

    The first size is what the memory given holds by the estimate of a row's bytes. Where a GPU has less left, the size
    is halved until a batch fits, and stays so.

    Args:
        mib: memory given.
        device: where the rows are computed.
    """

    def __init__(self, mib: int, device: torch.device) -> None:
        self.bytes, self.device = mib << 20, device
        self._halved: dict[str, int] = {}

    def rows(self, kind: str, row_bytes: int) -> int:
        """Rows of a kind that fit, at least 1."""
        fit = max(1, self.bytes // max(1, row_bytes))
        fit = min(fit, CPU_ROWS) if self.device.type == "cpu" else fit
        return min(fit, self._halved.get(kind, fit))

    def in_batches(
        self, kind: str, rows: int, row_bytes: int, forward: Callable[[slice], Tensor], together: int = 1
    ) -> Tensor:
        """Compute all rows, some at a time.

        Args:
            kind: name under which a size found is remembered.
            rows: how many there are.
            row_bytes: what one takes, about.
            forward: computes a slice of the rows, one row of its result each.
            together: rows in a run that are cheaper together; batches are cut between runs where they can be.

        Returns:
            The results behind each other.

        Raises:
            JudgeError: when the device has no memory for a single row.
        """
        done: list[Tensor] = []
        start = 0
        while start < rows or not done:
            size = self.rows(kind, row_bytes)
            size = size // together * together or size
            part = _tried(forward, slice(start, min(start + size, rows)))
            if part is not None:
                done.append(part)
                start += size
            elif size == 1:
                raise JudgeError(
                    f"device {self.device} has not enough memory for one row ({kind}, about {row_bytes >> 20} MiB). "
                    "Use a smaller dtype, or another device."
                )
            else:
                self._halved[kind] = size // 2
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
        return done[0] if len(done) == 1 else torch.cat(done)


def _tried(forward: Callable[[slice], Tensor], rows: slice) -> Tensor | None:
    """The result, or None when the device ran out of memory; by then what the attempt held is free again."""
    try:
        return forward(rows)
    except torch.OutOfMemoryError:
        return None


# From this share of a row on, a beginning that all rows have in common is read apart. Measured on one core with the
# nano judge and with a language model 512 wide: a share of 1/14 is a draw, 1/8 1.1 times as fast, 1/2 1.8 times.
SHARED_SHARE = 1 / 12


@dataclass(frozen=True)
class Asked:
    """A question as token ids: text chunks around the images, and the ids of the answer words."""

    chunks: tuple[Tensor, ...]
    answers: Tensor


class Asker:
    """Puts texts with images to a language model: rows in batches, what rows have in common read once.

    Batches hold rows of one length, so nothing is ever padded. With gradients all rows are one batch, read whole.

    Args:
        model: an mPLUG-Owl2.
        memory_mib: what the activations of a forward pass without gradients may take.
    """

    def __init__(self, model: Owl2ForConditionalGeneration, memory_mib: int = MEMORY_MIB) -> None:
        weight = model.model.norm.weight
        self.model, self.item = model, weight.element_size()
        self.room = Room(memory_mib, weight.device)
        self._heads: dict[tuple[int, ...], Beginning] = {}

    def answers(self, asked: Asked, seen: Sequence[Tensor]) -> Tensor:
        """Logits of the answers (P, A) float32 after a text with images, one (P, T, D) for each of its places."""
        if torch.is_grad_enabled() or not seen:
            return self.model.answer_logits(woven(asked.chunks, seen), asked.answers)
        length, head = _length(asked, seen), asked.chunks[0]
        apart = len(seen[0]) > 1 and len(head) >= SHARED_SHARE * length

        def answer(rows: slice) -> Tensor:
            segments = woven(asked.chunks, [images[rows] for images in seen])
            if apart:
                return self.model.answer_logits(segments[1:], asked.answers, self._head(head))
            return self.model.answer_logits(segments, asked.answers)

        return self.room.in_batches("texts", len(seen[0]), self.text_bytes(length), answer)

    def answers_among(self, asked: Asked, seen: Tensor, pairs: Tensor) -> Tensor:
        """The same for pairs (P, 2) of the images (N, T, D), the one shown first in front.

        The text before an image is read once for all rows; an image shown first, with the text around it, once for all
        pairs of a batch that begin with it.
        """
        order = pairs[:, 0].argsort(stable=True)
        partners = int(pairs[:, 0].bincount().max()) if len(pairs) else 1
        row_bytes = self.text_bytes(_length(asked, [seen, seen]))

        def answer(rows: slice) -> Tensor:
            return self._sorted_answers(asked, seen, pairs[order[rows]])

        logits = self.room.in_batches("pairs", len(pairs), row_bytes, answer, partners)
        return torch.empty_like(logits).index_copy_(0, order, logits)

    def _sorted_answers(self, asked: Asked, seen: Tensor, pairs: Tensor) -> Tensor:
        """Answers about pairs that are sorted by the image shown first."""
        head, middle, tail = asked.chunks
        firsts, counts = torch.unique(pairs[:, 0], return_counts=True)
        starts = counts.cumsum(0) - counts
        logits = torch.empty(len(pairs), len(asked.answers), device=pairs.device)
        for count in counts.unique().tolist():
            chosen = counts == count
            # Rows of the pairs that begin with one of F images, those of an image behind each other: (F * count,).
            rows = (starts[chosen][:, None] + torch.arange(count, device=pairs.device)).flatten()
            first, second = seen[firsts[chosen]], seen[pairs[rows, 1]]
            if count == 1:
                logits[rows] = self.model.answer_logits([head, first, middle, second, tail], asked.answers)
            else:
                begun = self.model.read([first, middle], self._head(head))
                logits[rows] = self.model.answer_logits([second, tail], asked.answers, begun)
        return logits

    def _head(self, head: Tensor) -> Beginning:
        """What is kept of the text before the first image; read once, since no image and no prompt changes it."""
        key = tuple(head.tolist())
        if key not in self._heads:
            self._heads[key] = self.model.read([head])
        return self._heads[key]

    def text_bytes(self, length: int) -> int:
        """What reading a text of so many tokens takes, about: the widest states of a layer, and attention's scores."""
        config = self.model.config
        states = length * (8 * config.hidden_size + 3 * config.intermediate_size) * self.item
        return int(states + 3 * 4 * config.num_attention_heads * length**2)


def woven(chunks: Sequence[Tensor], images: Sequence[Tensor]) -> list[Tensor]:
    """The parts of a text with its images between them; one part more than images.

    Raises:
        ValueError: when there are more or fewer images than places for them.
    """
    rest = [part for pair in zip(images, chunks[1:], strict=True) for part in pair]
    return [chunks[0], *rest]


def _length(asked: Asked, seen: Sequence[Tensor]) -> int:
    """Tokens of a row."""
    return sum(len(chunk) for chunk in asked.chunks) + sum(images.shape[1] for images in seen)
