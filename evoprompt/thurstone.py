"""Thurstone's law of comparative judgement: from level logits to preferences, their loss, and back to scale values.

Pure functions. Letters in shapes: B images, P pairs, L levels (5), N images to be placed on a scale.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import log_ndtr
from torch import Tensor


def level_moments(logits: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the level distribution softmax(logits), at least in float32.

    Args:
        logits: (B, L) level logits, any finite real.
        values: (L,) the score each level stands for, for example 1 to 5.

    Returns:
        Mean (B,), within the range of ``values``, and variance (B,), never negative; both differentiable in ``logits``.

    Raises:
        ValueError: if the shapes do not fit.
    """
    if logits.ndim != 2 or values.shape != logits.shape[1:]:
        raise ValueError(f"logits {tuple(logits.shape)} and values {tuple(values.shape)} must be (B, L) and (L,)")
    logits = _precise(logits)
    values = values.to(logits)
    probability = torch.softmax(logits, dim=1)
    mean = probability @ values
    # Not E[v^2] - mean^2: that difference loses its digits, and its sign, for a confident judge.
    variance = (probability * (values - mean[:, None]).square()).sum(dim=1)
    return mean, variance


def prefer_z(mean_a: Tensor, mean_b: Tensor, var_a: Tensor, var_b: Tensor, gamma: float) -> Tensor:
    """Standardised score difference z = (mean_a - mean_b) / sqrt(var_a + var_b + gamma) (Thurstone 1927, case III).

    Args:
        mean_a: Scores of the first images; usually (P,), any shapes that broadcast.
        mean_b: Scores of the second images.
        var_a: Variances of the first scores, at least 0.
        var_b: Variances of the second scores, at least 0.
        gamma: Variance of the comparison itself, above 0, in squared score units; keeps z finite for sure answers.

    Returns:
        z, of the broadcast shape; swapping a and b negates it exactly.

    Raises:
        ValueError: if gamma is not above 0.
    """
    if not gamma > 0:
        raise ValueError(f"gamma is {gamma}; it must be above 0")
    return (mean_a - mean_b) / torch.sqrt(var_a + var_b + gamma)


def fidelity_loss(z: Tensor, target: Tensor) -> Tensor:
    """One minus the fidelity between predicted and target preference, one value a pair (Tsai et al. 2007).

    The loss is 1 - sqrt(t q) - sqrt((1 - t)(1 - q)) with q = Phi(z). The roots come from log Phi, so value and gradient
    are finite at targets 0 and 1 and for any z; an epsilon inside the root would make the loss negative, a clamped q
    would make the gradient NaN or zero where a wrong and confident pair needs it. Computed at least in float32.

    Args:
        z: (P,) standardised score differences, see ``prefer_z``; any finite real.
        target: (P,) probability that the first image is preferred, in [0, 1]; taken as a constant.

    Returns:
        (P,) losses in [0, 1]; 0 when the prediction equals the target.

    Raises:
        ValueError: if the shapes differ or a target lies outside [0, 1].
    """
    if z.ndim != 1 or z.shape != target.shape:
        raise ValueError(f"z {tuple(z.shape)} and target {tuple(target.shape)} must both be (P,)")
    z = _precise(z)
    # In float64, so that 1 - target is as exact near 1 as target is near 0; on the CPU, as not every device has that.
    target = target.detach().cpu().double()
    if not bool(((target >= 0) & (target <= 1)).all()):
        raise ValueError("targets must lie in [0, 1]")
    # Beyond, both roots are 0 or 1 and flat, in float64, too; further out log Phi overflows, and 0 times that is NaN.
    z = z.clamp(-60, 60)
    root_q = torch.exp(torch.special.log_ndtr(z) / 2)
    root_not_q = torch.exp(torch.special.log_ndtr(-z) / 2)
    # Both distributions sum to one, so the loss is half the squared distance of their roots: no cancellation near 0.
    root_t, root_not_t = target.sqrt().to(z), (1 - target).sqrt().to(z)
    return ((root_t - root_q).square() + (root_not_t - root_not_q).square()) / 2


def scale_from_pairs(pairs: ArrayLike, wins: ArrayLike, n_images: int) -> NDArray[np.float64]:
    """Scale values that explain a set of comparisons (Thurstone case V, maximum a posteriori).

    Maximises sum over pairs of w log Phi(s_a - s_b) + (1 - w) log Phi(s_b - s_a), minus sum s^2 / 2: a standard normal
    prior, which keeps images that always win finite and makes the solution unique.

    Args:
        pairs: (P, 2) int image indices in [0, n_images); a pair may come more than once.
        wins: (P,) share of the comparison that the first image won, in [0, 1].
        n_images: Number of images N; one without a comparison gets 0.

    Returns:
        (N,) float64 scale values with mean 0; one unit is the standard deviation of a comparison.

    Raises:
        ValueError: if shapes, indices or shares are not as described.
    """
    index, won = np.asarray(pairs, dtype=np.int64).reshape(-1, 2), np.asarray(wins, dtype=np.float64)
    if won.shape != (len(index),):
        raise ValueError(f"{len(index)} pairs need as many wins; got shape {won.shape}")
    if len(index) and not (index.min() >= 0 and index.max() < n_images):
        raise ValueError(f"image indices must be in [0, {n_images}); got {index.min()} to {index.max()}")
    if not ((won >= 0) & (won <= 1)).all():
        raise ValueError("wins must lie in [0, 1]")
    first, second = index.T

    def objective(s: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z = s[first] - s[second]
        log_q, log_not_q = log_ndtr(z), log_ndtr(-z)
        log_density = -(z**2 + np.log(2 * np.pi)) / 2
        slope = won * np.exp(log_density - log_q) - (1 - won) * np.exp(log_density - log_not_q)
        gradient = s - np.bincount(first, slope, n_images) + np.bincount(second, slope, n_images)
        return float(s @ s / 2 - won @ log_q - (1 - won) @ log_not_q), gradient

    fit = minimize(objective, np.zeros(n_images), jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-9})
    scale: NDArray[np.float64] = fit.x - fit.x.mean()
    return scale


def _precise(x: Tensor) -> Tensor:
    """float64 stays; everything shorter becomes float32 (log_ndtr has no half-precision kernel on the CPU)."""
    return x if x.dtype == torch.float64 else x.float()
