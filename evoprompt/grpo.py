"""Rewards in place of a differentiable loss: GRPO on the level answers of a batch, without a second model.

Letters in shapes: B images, P pairs, L levels (5; the readout in four words has 4), G answers drawn for an image,
K answers that are rewarded: all L, or the G drawn ones.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from evoprompt.config import GrpoConfig
from evoprompt.thurstone import fidelity_loss, level_moments, prefer_z

Advantage = Literal["centred", "standardised", "leave-one-out"]
# Added to the deviation of a group's rewards before dividing by it, as TRL and VisualQuality-R1 do.
STD_FLOOR = 1e-4
# A deviation below this is rounding: all answers of the image have the same reward.
NO_SPREAD = 1e-6


def grpo_loss(
    logits: Tensor,
    bare: Tensor,
    values: Tensor,
    pairs: Tensor,
    targets: Tensor,
    config: GrpoConfig,
    gamma: float,
    generator: torch.Generator | None = None,
    answers: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Policy-gradient loss of a batch: answers are rewarded for agreeing with the pseudo-labels of their image's pairs.

    With p the distribution over an image's level answers and A their advantages (constants for the gradient), the
    gradient is that of -sum_a p_a A_a. Estimator ``exact`` sums all answers: nothing is drawn, so there is no sampling
    noise (all-action policy gradient, Petit et al. 2019, arXiv 1910.09093). ``sampled`` averages over G answers drawn
    from p (Shao et al. 2024, arXiv 2402.03300; with one step a batch the ratio is 1 and clipping never acts), with
    their sample mean and variance in the rewards, as EvoQuality does (arXiv 2509.25787); it tends to ``exact`` as G
    grows. Both add ``beta`` times the distance to the bare judge q.

    ``kl: k3`` is u - log u - 1 with u = q_k / p_k for drawn answers k (Schulman 2020), times the ratio: its value and
    its gradient are on average those of KL(p || q). TRL does the same; the published form lacks the ratio, so that its
    gradient is on average that of KL(q || p), which agrees to second order around p = q.

    Args:
        logits: (B, L) level logits of the prompted judge, any finite real; their softmax is p.
        bare: (B, L) those of the bare judge for the same pixels, taken as constants; their softmax is q.
        values: (L,) the levels' scores, 1 to 5.
        pairs: (P, 2) int64, rows of the batch; an image without a pair is only held near the bare judge.
        targets: (P,) probability that the first is better, in [0, 1].
        config: estimator, number of answers, advantage, distance and its weight.
        gamma: variance of a comparison, above 0, in squared score units.
        generator: CPU generator of the draws; estimator sampled only.
        answers: (B, G) int64 level indices to use instead of drawing; estimator sampled only.

    Returns:
        Scalar loss, a mean over images. Its value is close to beta times the distance, because advantages cancel.
        Numbers to watch: ``reward`` in [0, 1], the mean over images with a pair (nan without any);
        ``reward_zero_spread``, the share of them whose answers all have one reward, so that they teach nothing; ``kl``.

    Raises:
        ValueError: if a target is outside [0, 1], gamma is not above 0, or estimator exact is to do what only drawn
            answers can.
    """
    if config.estimator == "exact" and (config.advantage == "leave-one-out" or config.kl == "k3"):
        raise ValueError("leave-one-out and k3 are of drawn answers; estimator exact draws none")
    log_p = torch.log_softmax(logits, dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))
    log_q = torch.log_softmax(bare.detach().to(log_p), dim=1)
    values = values.to(log_p)
    if config.estimator == "exact":
        answers = torch.arange(len(values), device=logits.device).expand_as(logits)
        weight = log_p.detach().exp()
        mean, variance = level_moments(logits.detach(), values)
    else:
        answers = draw_answers(logits, config.answers, generator) if answers is None else answers.to(logits.device)
        weight = torch.full_like(answers, 1 / answers.shape[1], dtype=log_p.dtype)
        mean, variance = answer_moments(values[answers])
    rewards = answer_rewards(values[answers], mean, variance, pairs, targets, gamma)
    advantage = advantages(rewards, config.advantage, weight if config.estimator == "exact" else None)
    answer_log_p = log_p.gather(1, answers)
    # The ratio of new to old policy: 1 in value, the gradient of log p.
    ratio = (answer_log_p - answer_log_p.detach()).exp()
    policy = -(weight * advantage * ratio).sum(dim=1).mean()
    if config.kl == "exact":
        distance = (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()
    else:
        log_u = log_q.gather(1, answers) - answer_log_p
        distance = (weight * ratio * (log_u.exp() - log_u - 1)).sum(dim=1).mean()
    return policy + config.beta * distance, _to_watch(rewards, weight, pairs, distance)


def draw_answers(logits: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """Draw n answers an image from softmax(logits): (B, n) int64 level indices.

    They are drawn on the CPU, so that a seed gives the same answers wherever the judge runs.
    """
    probability = torch.softmax(logits.detach().cpu().double(), dim=1)
    return torch.multinomial(probability, n, replacement=True, generator=generator).to(logits.device)


def answer_moments(answers: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B,) and unbiased variance (B,) of drawn answers (B, G), as in VisualQuality-R1 (arXiv 2505.14460)."""
    variance, mean = torch.var_mean(answers, dim=1)
    return mean, variance


def answer_rewards(
    answers: Tensor, means: Tensor, variances: Tensor, pairs: Tensor, targets: Tensor, gamma: float
) -> Tensor:
    """Fidelity reward of each answer: how well it, against the partners' mean ratings, agrees with the pseudo-labels.

    Answer k of image i beats its partner j with probability q = Phi((answer_k - mean_j) / sqrt(var_i + var_j + gamma));
    its reward is sqrt(t q) + sqrt((1 - t)(1 - q)), t the pseudo-label in favour of i, averaged over i's partners
    (VisualQuality-R1, arXiv 2505.14460; with voted t EvoQuality, arXiv 2509.25787).

    Args:
        answers: (B, K) scores that the answers stand for; drawn ones, or every level's.
        means: (B,) mean rating of each image.
        variances: (B,) variance of each rating, at least 0.
        pairs: (P, 2) int64, rows of the batch.
        targets: (P,) probability that the first is better, in [0, 1].
        gamma: variance of a comparison, above 0, in squared score units.

    Returns:
        (B, K) rewards in [0, 1], constants for the gradient; all 0 for an image without a pair.

    Raises:
        ValueError: if a target is outside [0, 1] or gamma is not above 0.
    """
    answers, means, variances = answers.detach(), means.detach(), variances.detach()
    # Both sides of every pair: the second image has the first as its partner and the mirrored label.
    image, partner = torch.cat([pairs, pairs.flip(1)]).unbind(1)
    label = torch.cat([targets, 1 - targets]).to(means)
    z = prefer_z(answers[image], means[partner, None], variances[image, None], variances[partner, None], gamma)
    fidelity = 1 - fidelity_loss(z.flatten(), label.repeat_interleave(z.shape[1])).view_as(z)
    total = torch.zeros_like(answers, dtype=fidelity.dtype).index_add(0, image, fidelity)
    return total / torch.bincount(image, minlength=len(answers)).clamp(min=1)[:, None]


def advantages(rewards: Tensor, kind: Advantage, weight: Tensor | None = None) -> Tensor:
    """What each answer's reward is above its image's baseline; 0 on average, whatever the kind.

    ``centred``: minus the mean reward (Liu et al. 2025, arXiv 2503.20783). ``standardised``: that, divided by the
    rewards' standard deviation (Shao et al. 2024, arXiv 2402.03300). ``leave-one-out``: minus the mean of the other
    answers' rewards, which is G / (G - 1) times centred and the only unbiased one (Ahmadian et al. 2024, arXiv
    2402.14740).

    Args:
        rewards: (B, K).
        kind: Baseline and scale.
        weight: (B, K) probabilities of the answers, when all are given instead of drawn ones.

    Returns:
        (B, K) advantages.
    """
    if weight is None:
        centred = rewards - rewards.mean(dim=1, keepdim=True)
        spread = rewards.std(dim=1, keepdim=True)
    else:
        centred = rewards - (weight * rewards).sum(dim=1, keepdim=True)
        spread = (weight * centred.square()).sum(dim=1, keepdim=True).sqrt()
    if kind == "standardised":
        return centred / (spread + STD_FLOOR)
    n = rewards.shape[1]
    return centred * n / (n - 1) if kind == "leave-one-out" else centred


def _to_watch(rewards: Tensor, weight: Tensor, pairs: Tensor, distance: Tensor) -> dict[str, float]:
    """Reward, share of images whose answers all have one reward, and distance to the bare judge."""
    paired = torch.bincount(pairs.flatten(), minlength=len(rewards)) > 0
    rewards, weight = rewards[paired], weight[paired]
    mean = (weight * rewards).sum(dim=1, keepdim=True)
    spread = (weight * (rewards - mean).square()).sum(dim=1).sqrt()
    return {
        "reward": float(mean.mean()),
        "reward_zero_spread": float((spread < NO_SPREAD).float().mean()),
        "kl": float(distance.detach()),
    }
