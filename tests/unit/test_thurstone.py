import math
import time

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_ndtr
from scipy.stats import norm, spearmanr

from evoprompt.thurstone import fidelity_loss, level_moments, prefer_z, scale_from_pairs

VALUES = torch.arange(1.0, 6.0)


def exact_fidelity(z, target):
    """The loss of the definition, 1 - sqrt(t q) - sqrt((1 - t)(1 - q)), from scipy's log Phi in float64."""
    return 1 - np.sqrt(target) * np.exp(log_ndtr(z) / 2) - np.sqrt(1 - target) * np.exp(log_ndtr(-z) / 2)


def test_moments_are_those_of_the_softmax_distribution():
    logits = torch.tensor([[0.0, 0, 0, 0, 0], [math.log(3), 0, -math.inf, -math.inf, -math.inf]])
    mean, variance = level_moments(logits, VALUES)
    assert mean.tolist() == pytest.approx([3.0, 1.25])
    assert variance.tolist() == pytest.approx([2.0, 0.1875])


def test_variance_of_a_confident_judge_keeps_its_digits():
    _, variance = level_moments(torch.tensor([[0.0, 0, 0, 0, 16]]), VALUES)
    tail = math.exp(-16)
    assert variance.item() == pytest.approx(tail * (1 + 4 + 9 + 16), rel=1e-3) and variance.item() > 0


def test_moments_of_half_precision_logits_are_float32():
    mean, variance = level_moments(torch.zeros(2, 5, dtype=torch.bfloat16), VALUES)
    assert mean.dtype == variance.dtype == torch.float32


def test_moments_refuse_values_that_do_not_fit_the_logits():
    with pytest.raises(ValueError, match="must be"):
        level_moments(torch.zeros(2, 5), torch.arange(4.0))


def test_z_is_the_difference_of_means_over_the_deviation_of_their_difference():
    a, b, va, vb = (torch.tensor(x) for x in ([3.0, 2.0], [2.5, 4.0], [0.4, 0.0], [0.2, 0.0]))
    z = np.array([0.5 / math.sqrt(0.7), -2 / math.sqrt(0.1)])
    assert prefer_z(a, b, va, vb, 0.1).tolist() == pytest.approx(z, rel=1e-6)


def test_swapping_a_pair_negates_z_exactly():
    a, b, va, vb = torch.rand(4, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(prefer_z(a, b, va, vb, 0.1), -prefer_z(b, a, vb, va, 0.1))


@pytest.mark.parametrize("gamma", [0.0, -1.0, math.nan])
def test_gamma_must_be_above_zero(gamma):
    with pytest.raises(ValueError, match="gamma"):
        prefer_z(*torch.zeros(4, 1), gamma)


@pytest.mark.parametrize("target", [0.0, 0.25, 0.5, 1.0])
def test_fidelity_equals_its_definition_at_moderate_z(target):
    z = np.linspace(-6, 6, 49)
    loss = fidelity_loss(torch.tensor(z, dtype=torch.float32), torch.full((49,), target))
    assert np.abs(loss.numpy() - exact_fidelity(z, target)).max() < 1e-7


@pytest.mark.parametrize(
    ("z", "target", "value"),
    [(0.0, 0.5, 0.0), (0.0, 1.0, 1 - math.sqrt(0.5)), (1.0, 0.0, 1 - math.sqrt(norm.cdf(-1))), (-40.0, 1.0, 1.0)],
)
def test_fidelity_has_its_known_values(z, target, value):
    assert fidelity_loss(torch.tensor([z]), torch.tensor([target])).item() == pytest.approx(value, abs=1e-7)


@pytest.mark.parametrize("target", [0.0, 1e-6, 0.3, 1.0])
@pytest.mark.parametrize("z", [-1e30, -1e19, -1000.0, -40.0, -12.0, 0.0, 12.0, 40.0, 1000.0, 1e19, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fidelity_and_its_gradient_are_finite_everywhere(dtype, z, target):
    point = torch.tensor([z], requires_grad=True, dtype=dtype)
    loss = fidelity_loss(point, torch.tensor([target]))
    (gradient,) = torch.autograd.grad(loss.sum(), point)
    assert 0 <= loss.item() <= 1 and math.isfinite(gradient.item())


def test_a_wrong_and_confident_pair_is_still_pushed_the_right_way():
    z = torch.tensor([-6.0, 6.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(fidelity_loss(z, torch.tensor([1.0, 0.0])).sum(), z)
    assert gradient[0] < 0 < gradient[1]


def test_fidelity_keeps_its_digits_near_zero():
    loss = fidelity_loss(torch.tensor([5.0]), torch.tensor([1.0])).item()
    assert loss == pytest.approx(norm.cdf(-5) / 2, rel=1e-4)


def test_fidelity_is_zero_where_prediction_equals_target_and_never_negative():
    z = torch.linspace(-5, 5, 1001)
    loss = fidelity_loss(z, torch.special.ndtr(z))
    assert loss.min() >= 0 and loss.max() < 1e-8


def test_fidelity_gradient_matches_finite_differences():
    z = torch.linspace(-4, 4, 9, dtype=torch.float64, requires_grad=True)
    for target in (0.0, 0.3, 1.0):
        assert torch.autograd.gradcheck(lambda x, t=target: fidelity_loss(x, torch.full_like(x, t)), (z,))


def test_targets_are_constants_so_that_hard_ones_cannot_spoil_a_gradient():
    z, target = torch.zeros(2, requires_grad=True), torch.tensor([0.0, 1.0], requires_grad=True)
    fidelity_loss(z, target).sum().backward()
    assert target.grad is None and z.grad is not None and z.grad.isfinite().all()


def test_fidelity_of_half_precision_is_computed_in_float32():
    assert fidelity_loss(torch.zeros(1, dtype=torch.bfloat16), torch.ones(1)).dtype == torch.float32


@pytest.mark.parametrize("target", [[1.5], [-0.1], [math.nan], [0.5, 0.5]])
def test_fidelity_refuses_bad_targets_and_shapes(target):
    with pytest.raises(ValueError, match=r"targets|must both be"):
        fidelity_loss(torch.zeros(1), torch.tensor(target))


def test_scale_values_of_one_pair_solve_the_stationarity_condition():
    """With one win, s = (d/2, -d/2) and the prior's slope d/2 equals that of log Phi, phi(d) / Phi(d)."""
    scale = scale_from_pairs([[0, 1]], [1.0], 2)
    difference = scale[0] - scale[1]
    assert difference / 2 == pytest.approx(norm.pdf(difference) / norm.cdf(difference), abs=1e-6)


def test_scale_values_recover_an_order_have_mean_zero_and_leave_unseen_images_at_it():
    truth = np.array([0.8, -1.2, 0.1, 1.5, -0.6])
    pairs = np.array([(i, j) for i in range(5) for j in range(i)])
    wins = norm.cdf(truth[pairs[:, 0]] - truth[pairs[:, 1]])
    scale = scale_from_pairs(np.tile(pairs, (50, 1)), np.tile(wins, 50), 6)
    assert scale.mean() == pytest.approx(0, abs=1e-12)
    assert scale[5] == pytest.approx(0, abs=1e-6)
    assert scale[:5] == pytest.approx(truth - truth.mean(), abs=0.05)


def test_scale_values_do_not_depend_on_which_image_comes_first():
    pairs, wins = np.array([[0, 1], [1, 2], [0, 2]]), np.array([0.9, 0.6, 0.3])
    assert scale_from_pairs(pairs, wins, 3) == pytest.approx(scale_from_pairs(pairs[:, ::-1], 1 - wins, 3), abs=1e-6)


def test_scale_values_equal_those_of_a_reference_solver_with_the_published_constraint():
    """Maximise sum C_ij log Phi(s_i - s_j) - |s|^2 / 2 with sum s = 0, by SLSQP from another start."""
    rng = np.random.default_rng(5)
    n, counts = 9, np.zeros((9, 9))
    pairs = rng.integers(0, n, (60, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    wins = rng.choice([0.0, 0.5, 1.0, 0.3], len(pairs))  # ties and undecided answers among them
    np.add.at(counts, (pairs[:, 0], pairs[:, 1]), wins)
    np.add.at(counts, (pairs[:, 1], pairs[:, 0]), 1 - wins)

    def lost(s):
        return -(counts * norm.logcdf(s[:, None] - s[None, :])).sum() + s @ s / 2

    zero_sum = {"type": "eq", "fun": np.sum}
    start = rng.normal(size=n)
    found = minimize(lost, start, method="SLSQP", constraints=zero_sum, options={"ftol": 1e-14, "maxiter": 500})
    assert found.success
    assert scale_from_pairs(pairs, wins, n) == pytest.approx(found.x, abs=1e-4)


def test_scale_values_of_a_thousand_images_take_no_time():
    rng = np.random.default_rng(0)
    truth, pairs = rng.normal(size=1000), rng.integers(0, 1000, (10_000, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    started = time.process_time()
    scale = scale_from_pairs(pairs, truth[pairs[:, 0]] > truth[pairs[:, 1]], 1000)
    assert time.process_time() - started < 3
    assert spearmanr(scale, truth).statistic > 0.95


@pytest.mark.parametrize(
    ("pairs", "wins", "reason"),
    [([[0, 1]], [1.2], "wins"), ([[0, 2]], [1.0], "indices"), ([[0, 1]], [1.0, 0.0], "as many")],
)
def test_scale_values_refuse_bad_input(pairs, wins, reason):
    with pytest.raises(ValueError, match=reason):
        scale_from_pairs(pairs, wins, 2)
