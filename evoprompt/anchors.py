"""Scores from comparisons with anchors, as Compare2Score makes them (Zhu et al., NeurIPS 2024, arXiv 2405.19298).

An image is compared with a few anchor images instead of being rated. The comparisons among the anchors and with the
image become scale values by Thurstone's case V, maximum a posteriori; the image's place between the lowest and the
highest of them is its score.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evoprompt.errors import DataError
from evoprompt.images import find_images, fit_image, read_image
from evoprompt.judge import Judge, to_pixels
from evoprompt.thurstone import scale_from_pairs

PUBLISHED = "hf:VQA-CityU/Anchor_images"
"""The anchors of the published scorer: five KonIQ-10k images, one a fifth of the MOS range, those rated most alike."""

NUMBER = 5


@dataclass(frozen=True)
class Anchors:
    """Images that others are compared with.

    Attributes:
        paths: of the images, at least two.
        source: where they come from, in words people gave.
    """

    paths: tuple[Path, ...]
    source: str


def find_anchors(source: str | None, family: str, prompted: bool = False) -> Anchors | None:
    """The anchors to score with.

    Args:
        source: anything that images come from: a folder, a CSV, ``hf:`` and a data set; at most its first five images
            are used. ``none`` for no anchors; None for the usual of the judge.
        family: of the judge; only ``compare2score`` has usual anchors, the published ones.
        prompted: whether a prompt is used; prompts are trained on ratings, so there are no usual anchors then.

    Returns:
        The anchors, or None when images are to be rated.

    Raises:
        DataError: when there are fewer than two images, or the source cannot be read.
    """
    if source == "none" or (source is None and (prompted or family != "compare2score")):
        return None
    chosen = source or PUBLISHED
    try:
        paths = tuple(find_images([Path(chosen)])[:NUMBER])
    except DataError as error:
        reason = str(error).rstrip(".")
        raise DataError(f"anchors {chosen}: {reason}; or give others with --anchors, or --anchors none.") from error
    if len(paths) < 2:
        raise DataError(f"anchors {chosen}: {len(paths)} image; give at least 2, of different quality.")
    return Anchors(paths, chosen)


class AnchorRater:
    """Scores images by comparing them with anchors.

    Args:
        judge: with the prompt to be used attached; it is asked its family's first comparison, the anchor shown first.
        anchors: encoded once, compared among each other in both orders.
    """

    def __init__(self, judge: Judge, anchors: Anchors) -> None:
        self.judge, family = judge, judge.family
        fitted = [fit_image(read_image(path), family.fit, judge.image_size, family.views) for path in anchors.paths]
        self._anchors = self._seen(np.stack(fitted))
        first, second = np.triu_indices(len(fitted), 1)
        forth, back = self._better(first, self._anchors, second), self._better(second, self._anchors, first)
        self._pairs, self._wins = np.stack([first, second], axis=1), (1 - forth + back) / 2

    def _seen(self, views: NDArray[np.uint8]) -> Tensor:
        """Fitted images (B, V, 3, S, S) encoded, (B, V, T, D)."""
        with torch.no_grad():
            seen = self.judge.encode(to_pixels(self.judge, views))
        return seen.view(*views.shape[:2], *seen.shape[1:])

    def _better(self, anchors: NDArray[np.int64], seen: Tensor, images: NDArray[np.int64]) -> NDArray[np.float64]:
        """Probability that images are better than anchors shown before them, mean over the views.

        Args:
            anchors: (P,) numbers of anchors.
            seen: (N, V, T, D) encoded images.
            images: (P,) rows of ``seen``.

        Returns:
            (P,) float64.
        """
        n, k = seen.shape[1], self._anchors.shape[:2].numel()
        view = np.arange(n)
        pairs = np.stack([anchors[:, None] * n + view, k + images[:, None] * n + view], axis=-1).reshape(-1, 2)
        every = torch.cat([self._anchors.flatten(0, 1), seen.flatten(0, 1)])
        logits = self.judge.compare_among(every, torch.from_numpy(pairs), self.judge.family.compare[0])
        chance = logits.float().softmax(-1)[:, 1].view(-1, n).mean(1)
        return np.asarray(chance.cpu().double().numpy())

    def __call__(self, views: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Scores (B,) in [1, 5] of fitted images (B, V, 3, S, S).

        1 + 4 (s - min) / (max - min), with s the scale value of the image and the extremes those of the anchors and it.
        """
        n, k = len(views), len(self._anchors)
        won = self._better(np.tile(np.arange(k), n), self._seen(views), np.arange(n).repeat(k)).reshape(n, k)
        return np.array([self._place(row) for row in won])

    def _place(self, won: NDArray[np.float64]) -> float:
        """Score of an image from the probabilities (K,) that it is better than each anchor."""
        k = len(won)
        pairs = np.concatenate([self._pairs, np.stack([np.full(k, k), np.arange(k)], axis=1)])
        scale = scale_from_pairs(pairs, np.concatenate([self._wins, won]), k + 1)
        low, high = float(scale.min()), float(scale.max())
        # A judge that cannot tell any of them apart puts the image in the middle.
        return 1 + 4 * (float(scale[k]) - low) / (high - low) if high > low else 3.0
