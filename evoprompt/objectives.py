"""What one training step minimises: functions of the level logits of a batch of images.

Letters in shapes: B images, P pairs, L levels (5; the readout in four words has 4).
"""

from __future__ import annotations

import torch
from torch import Tensor

from evoprompt.config import MosConfig, TrainConfig
from evoprompt.soft_labels import LEVELS, soft_labels
from evoprompt.thurstone import fidelity_loss, level_moments, prefer_z


def rating_fidelity(logits: Tensor, values: Tensor, pairs: Tensor, targets: Tensor, config: TrainConfig) -> Tensor:
    """Thurstone fidelity loss between the ratings of a batch and the pseudo-labels of its pairs.

    Each rating is a distribution over the levels with mean m and variance v; the chance that image a is the better one
    is Phi((m_a - m_b) / sqrt(v_a + v_b + gamma)) (Thurstone 1927, case III), held against the pseudo-label by fidelity
    (Tsai et al. 2007).

    Args:
        logits: (B, L) level logits, any finite real.
        values: (L,) the levels' scores, 1 to 5.
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


def mos_loss(
    logits: Tensor, values: Tensor, mos: Tensor, std: Tensor | None, mos_config: MosConfig, train: TrainConfig
) -> Tensor:
    """Loss between the ratings of a batch and human scores of the same images, all of one set of scores.

    ``mse``: squared difference of score and MOS, both rescaled to 0 to 1 (arXiv 2509.03494). ``soft-kl``: divergence of
    the rating from the MOS as a level distribution, see `soft_labels`. ``fidelity``: as for pseudo-labels, over all
    pairs of the batch, with the order of the MOS as target, see `mos_preferences`. ``soft-kl+fidelity``: their sum, the
    second times ``fidelity_weight`` (DeQA-Score, arXiv 2501.11561).

    Args:
        logits: (B, L) level logits, any finite real.
        values: (L,) the levels' scores, 1 to 5.
        mos: (B,) human scores on the scale 1 to 5.
        std: (B,) standard deviations of the human scores on the same scale, or None when they are not known.
        mos_config: ``objective``, ``soft`` and ``fidelity_weight``.
        train: ``variance`` and ``gamma`` of the fidelity.

    Returns:
        Scalar mean loss, at least 0.

    Raises:
        ValueError: if fidelity is asked of a single image, or soft labels of levels that are not 1 to 5.
    """
    if mos_config.objective == "mse":
        mean, _ = level_moments(logits, values)
        return ((mean - mos.to(mean)) / 4).square().mean()
    if mos_config.objective == "fidelity":
        return _order_fidelity(logits, values, mos, std, train)
    if values.tolist() != LEVELS.tolist():
        raise ValueError(f"soft labels need levels of values {LEVELS.tolist()}; these have {values.tolist()}")
    labels = soft_labels(mos.cpu().numpy(), None if std is None else std.cpu().numpy(), mos_config.soft)
    loss = _soft_divergence(logits, torch.from_numpy(labels))
    if mos_config.objective == "soft-kl":
        return loss
    return loss + mos_config.fidelity_weight * _order_fidelity(logits, values, mos, std, train)


def mos_preferences(mos: Tensor, std: Tensor | None, pairs: Tensor) -> Tensor:
    """Probability that people would prefer the first image of each pair (DeQA-Score, arXiv 2501.11561).

    With deviations it is Phi((m_a - m_b) / sqrt(s_a^2 + s_b^2)). Without, or where both are 0, it is 1, 0.5 or 0.

    Args:
        mos: (B,) human scores, any scale.
        std: (B,) their standard deviations on the same scale, at least 0; None when they are not known.
        pairs: (P, 2) int64, rows of the batch.

    Returns:
        (P,) float64 probabilities on the CPU; what is missing to 1 is known as exactly as what is above 0.
    """
    mos, std = mos.cpu().double(), None if std is None else std.cpu().double()
    a, b = pairs[:, 0], pairs[:, 1]
    gap = mos[a] - mos[b]
    certain = (torch.sign(gap) + 1) / 2
    if std is None:
        return certain
    noise = torch.hypot(std[a], std[b])
    return torch.where(noise > 0, torch.special.ndtr(gap / noise), certain)


def _order_fidelity(logits: Tensor, values: Tensor, mos: Tensor, std: Tensor | None, train: TrainConfig) -> Tensor:
    """Fidelity between the ratings and the order of the MOS over all pairs of the batch."""
    if len(mos) < 2:
        raise ValueError("fidelity compares images, so a batch needs at least two")
    pairs = torch.combinations(torch.arange(len(mos)))
    targets = mos_preferences(mos, std, pairs)
    return rating_fidelity(logits, values, pairs.to(logits.device), targets, train)


def _soft_divergence(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence of the ratings from level masses (B, L), at least 0."""
    # A published label may sum to 1.04; normalised, it still pulls towards the same rating, and equal means 0.
    log_rating = torch.log_softmax(logits, dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))
    labels = (labels / labels.sum(dim=1, keepdim=True)).to(log_rating)
    return torch.nn.functional.kl_div(log_rating, labels, reduction="batchmean")
