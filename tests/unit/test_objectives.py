import math

import numpy as np
import pytest
import torch
from scipy.special import rel_entr
from scipy.stats import norm

from evoprompt.config import MosConfig, TrainConfig
from evoprompt.objectives import mos_loss, mos_preferences, rating_fidelity
from evoprompt.soft_labels import soft_labels
from evoprompt.thurstone import fidelity_loss, level_moments, prefer_z

VALUES = torch.arange(1.0, 6.0)
PAIRS = torch.tensor([[0, 1], [1, 2], [3, 0], [2, 3]])
TARGETS = torch.tensor([1.0, 0.0, 0.3, 0.5])
MOS, STD = torch.tensor([1.4, 3.0, 4.2, 2.6]), torch.tensor([0.3, 0.7, 0.5, 0.9])
OBJECTIVES = ("mse", "soft-kl", "fidelity", "soft-kl+fidelity")
VARIANCES = ("predicted-detached", "predicted", "fixed")


def some_logits(n: int = 4, seed: int = 0, scale: float = 1.5) -> torch.Tensor:
    return scale * torch.randn(n, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def logits_of_mean(mean: torch.Tensor) -> torch.Tensor:
    """Logits of the binomial distribution over the levels that has these means: (N, 5) float64."""
    p = (mean.double()[:, None] - 1) / 4
    k = torch.arange(5, dtype=torch.float64)
    ways = torch.tensor([1.0, 4, 6, 4, 1], dtype=torch.float64)
    return ways.log() + k * p.log() + (4 - k) * (1 - p).log()


def by_definition(logits: np.ndarray, pairs, targets, variance: str, gamma: float) -> float:
    """Mean of 1 - sqrt(t q) - sqrt((1 - t)(1 - q)), written out with scipy."""
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    mean = p @ np.arange(1, 6)
    spread = np.ones(len(p)) if variance == "fixed" else p @ np.arange(1, 6) ** 2 - mean**2
    losses = []
    for (a, b), t in zip(pairs, targets, strict=True):
        q = norm.cdf((mean[a] - mean[b]) / math.sqrt(spread[a] + spread[b] + gamma))
        losses.append(1 - math.sqrt(t * q) - math.sqrt((1 - t) * (1 - q)))
    return float(np.mean(losses))


@pytest.mark.parametrize("variance", VARIANCES)
def test_rating_fidelity_follows_its_definition(variance):
    logits = some_logits()
    loss = rating_fidelity(logits, VALUES, PAIRS, TARGETS.double(), TrainConfig(variance=variance, gamma=0.2))
    wanted = by_definition(logits.numpy(), PAIRS.tolist(), TARGETS.double().tolist(), variance, 0.2)
    assert loss.item() == pytest.approx(wanted, abs=1e-12)


def test_swapping_a_pair_negates_z_and_with_its_target_leaves_the_loss():
    mean, variance = level_moments(some_logits(), VALUES)
    a, b = PAIRS.unbind(1)
    z = prefer_z(mean[a], mean[b], variance[a], variance[b], 0.1)
    assert torch.equal(z, -prefer_z(mean[b], mean[a], variance[b], variance[a], 0.1))
    config = TrainConfig()
    loss = rating_fidelity(some_logits(), VALUES, PAIRS, TARGETS, config)
    assert rating_fidelity(some_logits(), VALUES, PAIRS.flip(1), 1 - TARGETS, config).item() == pytest.approx(
        loss.item(), abs=1e-7
    )


def test_rating_fidelity_is_zero_only_when_every_preference_is_the_target():
    logits, config = some_logits(), TrainConfig()
    mean, variance = level_moments(logits, VALUES)
    a, b = PAIRS.unbind(1)
    met = torch.special.ndtr(prefer_z(mean[a], mean[b], variance[a], variance[b], config.gamma))
    assert rating_fidelity(logits, VALUES, PAIRS, met, config).item() == pytest.approx(0, abs=1e-15)
    for k in range(len(PAIRS)):
        missed = met.clone()
        missed[k] = (missed[k] + 0.5) % 1
        assert rating_fidelity(logits, VALUES, PAIRS, missed, config) > 0.01


@pytest.mark.parametrize("target", [0.0, 1.0])
@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0, 1e4])
@pytest.mark.parametrize("gamma", [1e-6, 0.1])
def test_value_and_gradient_are_finite_in_float32_for_any_confidence(target, scale, gamma):
    logits = torch.tensor([[-1.0, 0, 0, 0, 1], [1.0, 0, 0, 0, -1]]).mul(scale).requires_grad_()
    for variance in VARIANCES:
        config = TrainConfig(variance=variance, gamma=gamma)
        loss = rating_fidelity(logits, VALUES, torch.tensor([[0, 1]]), torch.tensor([target]), config)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert 0 <= loss.item() <= 1 and gradient.isfinite().all()


@pytest.mark.parametrize("variance", ["predicted", "fixed"])
def test_gradient_of_rating_fidelity_matches_finite_differences(variance):
    config = TrainConfig(variance=variance)
    logits = some_logits().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rating_fidelity(x, VALUES, PAIRS, TARGETS, config), (logits,))


def test_a_detached_variance_is_a_constant_of_the_gradient():
    """The gradient equals finite differences of the loss with the variance held at its value."""
    logits = some_logits().requires_grad_()
    (mine,) = torch.autograd.grad(rating_fidelity(logits, VALUES, PAIRS, TARGETS, TrainConfig()), logits)
    _, variance = level_moments(logits.detach(), VALUES)
    a, b = PAIRS.unbind(1)

    def held(x: torch.Tensor) -> float:
        mean, _ = level_moments(x, VALUES)
        q = torch.special.ndtr(prefer_z(mean[a], mean[b], variance[a], variance[b], 0.1))
        return float((1 - (TARGETS * q).sqrt() - ((1 - TARGETS) * (1 - q)).sqrt()).mean())

    for i in range(4):
        for level in range(5):
            step = torch.zeros(4, 5, dtype=torch.float64)
            step[i, level] = 1e-5
            slope = (held(logits.detach() + step) - held(logits.detach() - step)) / 2e-5
            assert mine[i, level].item() == pytest.approx(slope, abs=1e-8)


def test_only_a_predicted_variance_rewards_overconfidence():
    """Two images in the right order: with the variance in the gradient, sharper ratings are called better."""
    p = torch.tensor([[0.1, 0.2, 0.4, 0.2, 0.1], [0.05, 0.1, 0.3, 0.35, 0.2]], dtype=torch.float64)
    sharper = torch.tensor([[-1.0, 0.5, 1, 0.5, -1]] * 2, dtype=torch.float64)
    slopes = {}
    for variance in VARIANCES:
        logits = p.log().requires_grad_()
        config = TrainConfig(variance=variance)
        loss = rating_fidelity(logits, VALUES, torch.tensor([[1, 0]]), torch.tensor([1.0]), config)
        (gradient,) = torch.autograd.grad(loss, logits)
        slopes[variance] = float((gradient * sharper).sum())
    assert slopes["predicted"] < slopes["predicted-detached"]


def test_mse_is_on_scores_rescaled_to_0_to_1():
    mean = torch.tensor([1.5, 3.0, 4.0])
    mos = torch.tensor([1.5, 2.0, 5.0])
    loss = mos_loss(logits_of_mean(mean), VALUES, mos, None, MosConfig(objective="mse"), TrainConfig())
    assert loss.item() == pytest.approx((0 + 1 / 16 + 1 / 16) / 3, abs=1e-12)


def test_mse_of_the_readout_in_four_words_is_that_of_its_share():
    """Words valued (1, 1, 5, 5) score 1 + 4 q, so the loss is that of the published prompts: (q - MOS / range)^2."""
    logits = torch.tensor([[0.3, -0.2, 0.9, 1.1]], dtype=torch.float64)
    share = logits.exp()[0, 2:].sum() / logits.exp().sum()
    mos, values = torch.tensor([1 + 4 * 0.37]), torch.tensor([1.0, 1, 5, 5])
    loss = mos_loss(logits, values, mos, None, MosConfig(objective="mse"), TrainConfig())
    assert loss.item() == pytest.approx(float((share - 0.37) ** 2), abs=1e-7)


def test_soft_kl_is_the_divergence_from_the_normalised_labels():
    logits = some_logits()
    for form in ("interval", "density"):
        config = MosConfig(objective="soft-kl", soft=form)
        labels = soft_labels(MOS, STD, form)
        assert labels.sum(1).max() > 1.001  # otherwise normalising would not be tested
        labels /= labels.sum(1, keepdims=True)
        rating = torch.softmax(logits, 1).numpy()
        wanted = rel_entr(labels, rating).sum(1).mean()
        assert mos_loss(logits, VALUES, MOS, STD, config, TrainConfig()).item() == pytest.approx(wanted, abs=1e-6)


def test_without_deviations_soft_kl_pulls_to_two_neighbouring_levels():
    logits = torch.zeros(1, 5, requires_grad=True)
    mos_loss(logits, VALUES, torch.tensor([3.25]), None, MosConfig(objective="soft-kl"), TrainConfig()).backward()
    assert (-logits.grad).flatten().tolist() == pytest.approx([-0.2, -0.2, 0.55, 0.05, -0.2])


@pytest.mark.parametrize("objective", ["mse", "soft-kl"])
def test_a_loss_against_scores_is_zero_only_when_ratings_equal_them(objective):
    config = MosConfig(objective=objective)
    met = {"mse": logits_of_mean(MOS), "soft-kl": torch.tensor(soft_labels(MOS, STD)).clamp(min=1e-30).log()}[objective]
    loss = mos_loss(met, VALUES, MOS, STD, config, TrainConfig())
    assert loss.item() == pytest.approx(0, abs=1e-6)
    for k in range(len(MOS)):
        missed = met.clone()
        missed[k] = met[k].flip(0) if k != 1 else torch.tensor([0.0, 0, 0, 0, 5])
        assert mos_loss(missed, VALUES, MOS, STD, config, TrainConfig()) > 0.01


def test_fidelity_against_mos_is_that_of_all_pairs_in_the_order_of_the_mos():
    logits, config = some_logits(), TrainConfig(variance="fixed")
    pairs = torch.tensor([[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]])
    sure = torch.tensor([0.0, 0, 0, 0, 1, 1])
    loss = mos_loss(logits, VALUES, MOS, None, MosConfig(objective="fidelity"), config)
    assert loss.item() == pytest.approx(rating_fidelity(logits, VALUES, pairs, sure, config).item())
    noisy = torch.tensor(norm.cdf(((MOS[pairs[:, 0]] - MOS[pairs[:, 1]]) / torch.hypot(*STD[pairs].T)).numpy()))
    loss = mos_loss(logits, VALUES, MOS, STD, MosConfig(objective="fidelity"), config)
    assert loss.item() == pytest.approx(rating_fidelity(logits, VALUES, pairs, noisy, config).item(), abs=1e-6)


def test_preferences_of_people_know_ties_and_sure_scores():
    mos, pairs = torch.tensor([2.0, 2.0, 4.0]), torch.tensor([[0, 1], [2, 0], [0, 2]])
    assert mos_preferences(mos, None, pairs).tolist() == [0.5, 1.0, 0.0]
    assert mos_preferences(mos, torch.zeros(3), pairs).tolist() == [0.5, 1.0, 0.0]
    wanted = [0.5, norm.cdf(2 / math.hypot(0.6, 0.8)), norm.cdf(-2 / math.hypot(0.6, 0.8))]
    assert mos_preferences(mos, torch.tensor([0.6, 0.6, 0.8]), pairs).tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("gap", [1.0, 5.0, 7.0])
def test_sure_preferences_count_alike_in_either_order(gap):
    mos, std = torch.tensor([1.0, 1.0 + gap]), torch.tensor([0.6, 0.8], dtype=torch.float64)
    up, down = (mos_preferences(mos, std, torch.tensor([pair])) for pair in ((1, 0), (0, 1)))
    assert 1 - up.item() == pytest.approx(norm.sf(gap), abs=1e-15)
    z = torch.tensor([2.0])
    assert fidelity_loss(z, up).item() == pytest.approx(fidelity_loss(-z, down).item(), rel=1e-6)
    assert fidelity_loss(torch.tensor([gap]), up).item() == pytest.approx(0, abs=1e-14)


def test_preferences_of_people_do_not_depend_on_the_scale():
    pairs = torch.tensor([[0, 1], [2, 3]])
    wanted = mos_preferences(MOS, STD, pairs)
    assert mos_preferences(MOS * 25 - 20, STD * 25, pairs).tolist() == pytest.approx(wanted.tolist(), rel=1e-5)


def test_the_weight_counts_the_fidelity_of_the_sum():
    def loss(objective: str, weight: float = 1.0) -> float:
        config = MosConfig(objective=objective, fidelity_weight=weight)
        return mos_loss(some_logits(), VALUES, MOS, STD, config, TrainConfig()).item()

    assert loss("soft-kl+fidelity", 10) == pytest.approx(loss("soft-kl") + 10 * loss("fidelity"), abs=1e-6)


@pytest.mark.parametrize("std", [STD, None], ids=["deviations", "none"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradients_against_human_scores_match_finite_differences(objective, std):
    config, train = MosConfig(objective=objective), TrainConfig(variance="predicted")
    logits = some_logits().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: mos_loss(x, VALUES, MOS, std, config, train), (logits,))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_losses_against_human_scores_are_finite_in_float32(objective, scale):
    logits = some_logits(scale=scale).float().requires_grad_()
    for mos, std in ((MOS, STD), (MOS, None), (torch.tensor([1.0, 5, 3, 3]), torch.zeros(4))):
        loss = mos_loss(logits, VALUES, mos, std, MosConfig(objective=objective), TrainConfig())
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.dtype == torch.float32 and loss.isfinite() and loss >= 0 and gradient.isfinite().all()


def test_what_a_loss_cannot_be_asked_of_is_refused():
    with pytest.raises(ValueError, match="at least two"):
        mos_loss(some_logits(1), VALUES, MOS[:1], None, MosConfig(objective="fidelity"), TrainConfig())
    with pytest.raises(ValueError, match="soft labels need levels"):
        four = torch.tensor([1.0, 1, 5, 5])
        mos_loss(some_logits()[:, :4], four, MOS, None, MosConfig(objective="soft-kl"), TrainConfig())
