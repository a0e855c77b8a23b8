"""Training batches of pseudo-labels and of ladder chains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evoprompt.ladder import Chain, Pool
from evoprompt.steps import Batch
from evoprompt.voting import PseudoLabel, chunks


def vote_batches(groups: Sequence[np.ndarray], labels: Sequence[PseudoLabel], pool: Pool) -> list[Batch]:
    """One batch a group: its images and the pseudo-labels kept among them. Groups with none are left out."""
    by_pair = {label.pair: label for label in labels}
    batches = []
    for group, (first, pairs) in zip(groups, chunks(groups), strict=True):
        row = {int(image): k for k, image in enumerate(group)}
        kept = [by_pair[p] for p in range(first, first + len(pairs)) if by_pair[p].kept]
        if kept:
            rows = np.array([(row[label.a], row[label.b]) for label in kept])
            batches.append(_batch(list(row), rows, [label.target for label in kept], pool))
    return batches


def ladder_batch(chains: Sequence[Chain], pool: Pool) -> Batch:
    """A batch whose order is known by construction: the first of each pair is the less degraded one."""
    row = {key: k for k, key in enumerate(dict.fromkeys(key for chain in chains for key in chain.keys))}
    rows = np.array([(row[int(a)], row[int(b)]) for chain in chains for a, b in chain.pairs()])
    return _batch(list(row), rows, [1.0] * len(rows), pool)


def _batch(keys: Sequence[int], rows: np.ndarray, targets: Sequence[float], pool: Pool) -> Batch:
    def views(places: np.ndarray) -> np.ndarray:
        return np.stack([pool(keys[place]) for place in places])

    return Batch(views, rows, np.array(targets, dtype=np.float32), len(keys))
