"""What one training step minimises: functions of the level logits of a batch of images."""

from __future__ import annotations

import torch
from torch import Tensor

from evoprompt.config import TrainConfig
from evoprompt.thurstone import fidelity_loss, level_moments, prefer_z


def rating_fidelity(logits: Tensor, values: Tensor, pairs: Tensor, targets: Tensor, config: TrainConfig) -> Tensor:
    """Thurstone fidelity loss between the ratings of a batch and the pseudo-labels of its pairs.

    Each rating is a distribution over five levels with mean m and variance v; the chance that image a is the better one
    is Phi((m_a - m_b) / sqrt(v_a + v_b + gamma)) (Thurstone 1927, case III), held against the pseudo-label by fidelity
    (Tsai et al. 2007).

    Args:
        logits: (B, 5) level logits, any real.
        values: (5,) the levels' scores, 1 to 5.
        pairs: (P, 2) int64, rows of the batch.
        targets: (P,) probability that the first is better, in [0, 1].
        config: ``variance`` and ``gamma`` (in squared score units).

    Returns:
        Scalar mean loss in [0, 1].
    """
    mean, variance = level_moments(logits, values)
    if config.variance == "fixed":
        variance = torch.ones_like(variance)
    elif config.variance == "predicted-detached":
        # With its gradient, the loss is most easily satisfied by making the judge overconfident.
        variance = variance.detach()
    a, b = pairs[:, 0], pairs[:, 1]
    z = prefer_z(mean[a], mean[b], variance[a], variance[b], config.gamma)
    return fidelity_loss(z, targets).mean()
