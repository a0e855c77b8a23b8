import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from evoprompt.config import GrpoConfig, Recipe, TrainConfig
from evoprompt.errors import RecipeError
from evoprompt.grpo import advantages, answer_moments, answer_rewards, draw_answers, grpo_loss

VALUES = torch.arange(1.0, 6.0, dtype=torch.float64)
PAIRS = torch.tensor([[0, 1], [1, 2], [3, 0], [2, 3], [0, 2]])
TARGETS = torch.tensor([1.0, 0.0, 0.3, 0.5, 1.0], dtype=torch.float64)
GAMMA = 0.1


def batch(n: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the prompted and of the bare judge, (n, 5) float64."""
    draw = torch.Generator().manual_seed(seed)
    bare = 1.2 * torch.randn(n, 5, generator=draw, dtype=torch.float64)
    return (bare + 0.5 * torch.randn(n, 5, generator=draw, dtype=torch.float64)).requires_grad_(), bare


def run(config: GrpoConfig, logits: torch.Tensor, bare: torch.Tensor, pairs=PAIRS, targets=TARGETS, **more):
    return grpo_loss(logits, bare, VALUES, pairs, targets, config, GAMMA, **more)


def gradient(config: GrpoConfig, logits: torch.Tensor, bare: torch.Tensor, **more) -> torch.Tensor:
    return torch.autograd.grad(run(config, logits, bare, **more)[0], logits)[0]


def exact_parts(logits: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and rewards of all answers, (B, 5) each, written out with scipy."""
    z = logits.detach().numpy()
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    v = np.arange(1.0, 6.0)
    mean = p @ v
    var = p @ v**2 - mean**2
    partners: dict[int, list[tuple[int, float]]] = {}
    for (a, b), t in zip(PAIRS.tolist(), TARGETS.tolist(), strict=True):
        partners.setdefault(a, []).append((b, t))
        partners.setdefault(b, []).append((a, 1 - t))
    reward = np.zeros_like(p)
    for i, known in partners.items():
        for j, t in known:
            q = norm.cdf((v - mean[j]) / math.sqrt(var[i] + var[j] + GAMMA))
            reward[i] += (np.sqrt(t * q) + np.sqrt((1 - t) * (1 - q))) / len(known)
    return p, reward


def test_rewards_follow_their_definition():
    logits, _ = batch()
    p, wanted = exact_parts(logits)
    mean = torch.tensor(p) @ VALUES
    variance = torch.tensor(p) @ VALUES**2 - mean**2
    mine = answer_rewards(VALUES.expand(4, 5), mean, variance, PAIRS, TARGETS, GAMMA)
    assert np.abs(mine.numpy() - wanted).max() < 1e-12


def test_swapping_a_pair_with_its_target_leaves_every_reward():
    mean, variance = torch.tensor([2.0, 3.0, 4.1, 1.5]), torch.tensor([0.5, 0.2, 0.9, 0.1])
    answers = VALUES.float().expand(4, 5)
    mine = answer_rewards(answers, mean, variance, PAIRS, TARGETS, GAMMA)
    swapped = answer_rewards(answers, mean, variance, PAIRS.flip(1), 1 - TARGETS, GAMMA)
    assert torch.allclose(mine, swapped, atol=1e-6)


def test_a_reward_is_one_only_when_the_answers_preference_is_the_target():
    pair, mean, variance = torch.tensor([[0, 1]]), torch.tensor([2.0, 3.5]), torch.tensor([0.4, 0.6])
    answers = torch.tensor([[4.0, 2.0], [3.0, 3.0]])
    target = torch.special.ndtr((answers[0, :1] - mean[1]) / math.sqrt(1.0 + GAMMA))
    mine = answer_rewards(answers, mean, variance, pair, target, GAMMA)
    assert mine[0, 0].item() == pytest.approx(1, abs=1e-6) and mine[0, 1] < 0.95


def test_the_better_images_answers_are_rewarded_for_being_high():
    pair, mean, variance = torch.tensor([[0, 1]]), torch.tensor([3.0, 3.0]), torch.tensor([0.5, 0.5])
    mine = answer_rewards(VALUES.float().expand(2, 5), mean, variance, pair, torch.tensor([1.0]), GAMMA)
    assert (mine[0].diff() > 0).all() and (mine[1].diff() < 0).all()
    assert mine[0].tolist() == pytest.approx(mine[1].flip(0).tolist())


def test_a_tie_rewards_the_answer_nearest_to_the_partner():
    pair, mean, variance = torch.tensor([[0, 1]]), torch.tensor([3.0, 4.0]), torch.tensor([0.5, 0.5])
    mine = answer_rewards(VALUES.float().expand(2, 5), mean, variance, pair, torch.tensor([0.5]), GAMMA)
    assert mine.argmax(1).tolist() == [3, 2] and mine.max(1).values.tolist() == pytest.approx([1.0, 1.0])


def test_moments_of_drawn_answers_are_the_sample_mean_and_the_unbiased_variance():
    mean, variance = answer_moments(torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 5.0, 5.0, 5.0]]))
    assert mean.tolist() == [2.5, 5.0] and variance.tolist() == pytest.approx([5 / 3, 0])


@pytest.mark.parametrize("kind", ["centred", "standardised", "leave-one-out"])
def test_advantages_of_drawn_answers(kind):
    rewards = torch.tensor([[0.2, 0.4, 0.9, 0.5], [0.7, 0.7, 0.7, 0.7]], dtype=torch.float64)
    row = rewards[0].tolist()
    wanted = {
        "centred": [r - 0.5 for r in row],
        "standardised": [(r - 0.5) / (float(np.std(row, ddof=1)) + 1e-4) for r in row],
        "leave-one-out": [r - (sum(row) - r) / 3 for r in row],
    }[kind]
    mine = advantages(rewards, kind)
    assert mine[0].tolist() == pytest.approx(wanted) and mine[1].tolist() == pytest.approx([0] * 4, abs=1e-10)


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["centred", "standardised"])
def test_exact_gradient_equals_the_closed_form(kind, beta):
    """dJ/dz_a = p_a (r_a - sum p r), over the rewards' deviation if standardised; dKL/dz_a = p_a (log p_a/q_a - KL)."""
    logits, bare = batch()
    p, reward = exact_parts(logits)
    advantage = reward - (p * reward).sum(1, keepdims=True)
    if kind == "standardised":
        advantage /= np.sqrt((p * advantage**2).sum(1, keepdims=True)) + 1e-4
    q = torch.softmax(bare, 1).numpy()
    ratio = np.log(p / q)
    distance = (p * ratio).sum(1, keepdims=True)
    wanted = (-p * advantage + beta * p * (ratio - distance)) / len(p)
    mine = gradient(GrpoConfig(advantage=kind, beta=beta), logits, bare)
    assert np.abs(mine.numpy() - wanted).max() < 1e-12


def test_exact_gradient_matches_finite_differences_of_the_expected_reward():
    """The rewards, which depend on the logits too, are held: the judge is paid for its answers, not for its moments."""
    logits, bare = batch()
    mine = gradient(GrpoConfig(advantage="centred", beta=0.2), logits, bare)
    _, reward = exact_parts(logits)

    def held(z: np.ndarray) -> float:
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        distance = (p * np.log(p / torch.softmax(bare, 1).numpy())).sum(1)
        return float((-(p * reward).sum(1) + 0.2 * distance).mean())

    start = logits.detach().numpy()
    for i in range(4):
        for level in range(5):
            step = np.zeros_like(start)
            step[i, level] = 1e-5
            slope = (held(start + step) - held(start - step)) / 2e-5
            assert mine[i, level].item() == pytest.approx(slope, abs=1e-9)


def test_a_step_against_the_gradient_raises_the_reward():
    logits, bare = batch()
    config = GrpoConfig(beta=0)
    before = run(config, logits, bare)[1]["reward"]
    after = run(config, (logits - 0.1 * gradient(config, logits, bare)).detach(), bare)[1]["reward"]
    assert after > before


@pytest.mark.parametrize("kind", ["centred", "standardised", "leave-one-out"])
def test_the_sampled_gradient_tends_to_the_exact_one_as_answers_grow(kind):
    """Root mean square error over 60 draws: it falls with every step of G."""
    logits, bare = batch()
    limit = "centred" if kind == "leave-one-out" else kind
    exact = gradient(GrpoConfig(advantage=limit), logits, bare)
    draw, errors = torch.Generator().manual_seed(1), []
    for n in (4, 8, 32, 256):
        config = GrpoConfig(estimator="sampled", answers=n, advantage=kind)
        squares = [(gradient(config, logits, bare, generator=draw) - exact).square().sum() for _ in range(60)]
        errors.append(float((sum(squares) / 60).sqrt() / exact.norm()))
    assert all(late < 0.9 * early for early, late in zip(errors, errors[1:], strict=False)), errors
    assert errors[-1] < 0.2 * errors[0]


def test_leaving_one_out_removes_the_shrinkage_of_the_centred_advantages():
    """With given rewards, the centred gradient is on average 1 - 1/G of the truth, leave-one-out the truth."""
    p = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15], dtype=torch.float64)
    reward = torch.tensor([0.2, 0.9, 0.4, 0.6, 0.1], dtype=torch.float64)
    truth = p * (reward - (p * reward).sum())
    draws = torch.cartesian_prod(torch.arange(5), torch.arange(5))  # every possible group of two answers
    chance = p[draws].prod(1)
    score = torch.nn.functional.one_hot(draws, 5) - p
    for kind, share in (("centred", 0.5), ("leave-one-out", 1.0)):
        mean = torch.einsum("n,nk,nkl->l", chance, advantages(reward[draws], kind), score) / 2
        assert torch.allclose(mean, share * truth, atol=1e-12)


def test_k3_of_many_answers_has_the_value_and_the_gradient_of_the_divergence():
    """Not those of the divergence the other way round, whose gradient k3 has when it lacks the ratio."""
    logits, bare = batch()
    more = {"pairs": PAIRS[:0], "targets": TARGETS[:0]}
    config = GrpoConfig(estimator="sampled", answers=200_000, kl="k3", beta=1.0)
    loss, watched = run(config, logits, bare, generator=torch.Generator().manual_seed(0), **more)
    exact = run(GrpoConfig(beta=1.0), logits, bare, **more)[0]
    assert loss.item() == watched["kl"] == pytest.approx(exact.item(), rel=0.02)
    mine, truth = (torch.autograd.grad(x, logits)[0] for x in (loss, exact))
    assert (mine - truth).norm() < 0.03 * truth.norm()
    other_way = (torch.softmax(logits, 1) - torch.softmax(bare, 1)).detach() / len(bare)
    assert (mine - other_way).norm() > 0.1 * truth.norm()


def test_drawn_answers_are_those_of_the_seed_and_follow_the_ratings():
    logits, _ = batch()
    first, again, other = (draw_answers(logits, 5000, torch.Generator().manual_seed(k)) for k in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    share = torch.nn.functional.one_hot(first, 5).double().mean(1)
    assert (share - torch.softmax(logits, 1)).abs().max() < 0.03


def test_given_answers_are_used_instead_of_drawn_ones():
    logits, bare = batch()
    config = GrpoConfig(estimator="sampled", answers=16)
    drawn = draw_answers(logits, 16, torch.Generator().manual_seed(5))
    given = gradient(config, logits, bare, answers=drawn)
    assert torch.equal(given, gradient(config, logits, bare, generator=torch.Generator().manual_seed(5)))


@pytest.mark.parametrize("estimator", ["exact", "sampled"])
def test_the_bare_judges_own_ratings_are_at_no_distance(estimator):
    _, bare = batch()
    for kl in ("exact", "k3"):
        if (estimator, kl) != ("exact", "k3"):
            config = GrpoConfig(estimator=estimator, kl=kl, beta=1.0)
            assert run(config, bare.clone(), bare, generator=torch.Generator())[1]["kl"] == pytest.approx(0, abs=1e-15)
    moved = bare.clone()
    moved[1, 2] += 1
    assert run(GrpoConfig(), moved, bare)[1]["kl"] > 0.001


def test_an_image_without_a_pair_is_only_held_near_the_bare_judge():
    logits, bare = batch(5)
    for config in (GrpoConfig(beta=0), GrpoConfig(estimator="sampled", advantage="standardised", beta=0)):
        mine = gradient(config, logits, bare, generator=torch.Generator().manual_seed(0))
        assert torch.equal(mine[4], torch.zeros(5, dtype=torch.float64)) and (mine[:4].norm(dim=1) > 0).all()
    assert gradient(GrpoConfig(beta=1), logits, bare)[4].norm() > 0


def test_numbers_to_watch():
    logits, bare = batch(5)
    p, reward = exact_parts(logits[:4])
    watched = run(GrpoConfig(), logits, bare)[1]
    assert watched["reward"] == pytest.approx((p * reward).sum(1).mean()) and watched["reward_zero_spread"] == 0
    same = torch.tensor([[2, 2, 2], [0, 1, 0], [4, 4, 4], [1, 1, 3], [0, 1, 2]])
    watched = run(GrpoConfig(estimator="sampled"), logits, bare, answers=same)[1]
    assert watched["reward_zero_spread"] == 0.5
    assert math.isnan(run(GrpoConfig(), logits, bare, pairs=PAIRS[:0], targets=TARGETS[:0])[1]["reward"])


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0, 1e4])
@pytest.mark.parametrize("estimator", ["exact", "sampled"])
def test_loss_and_gradient_are_finite_in_float32_for_any_confidence(estimator, scale):
    logits, bare = batch()
    for kind in ("centred", "standardised"):
        sure = (logits.detach().float() * scale).requires_grad_()
        config = GrpoConfig(estimator=estimator, advantage=kind)
        loss, watched = run(config, sure, bare, generator=torch.Generator().manual_seed(0))
        (slope,) = torch.autograd.grad(loss, sure)
        assert loss.dtype == torch.float32 and loss.isfinite() and slope.isfinite().all()
        assert 0 <= watched["reward"] <= 1 and math.isfinite(watched["kl"])


def test_the_readout_in_four_words_has_four_answers():
    logits, bare = (x.detach()[:, :4] for x in batch())
    values = torch.tensor([1.0, 1.0, 5.0, 5.0])
    loss, watched = grpo_loss(logits, bare, values, PAIRS, TARGETS, GrpoConfig(), GAMMA)
    assert loss.isfinite() and 0 < watched["reward"] < 1


def test_what_only_drawn_answers_have_is_refused_to_the_exact_estimator():
    logits, bare = batch()
    for config in (GrpoConfig(advantage="leave-one-out"), GrpoConfig(kl="k3")):
        with pytest.raises(ValueError, match="drawn answers"):
            run(config, logits, bare)
        with pytest.raises(RecipeError, match="drawn answers; set grpo.estimator to sampled"):
            Recipe(grpo=config)


def test_a_recipe_for_trl_needs_what_trl_has():
    fine = GrpoConfig(engine="trl", estimator="sampled", kl="k3")
    Recipe(train=TrainConfig(objective="grpo"), grpo=fine)
    with pytest.raises(RecipeError, match="needs train.objective grpo, not fidelity"):
        Recipe(grpo=fine)
    with pytest.raises(RecipeError, match="TRL has k3 alone"):
        Recipe(train=TrainConfig(objective="grpo"), grpo=GrpoConfig(engine="trl", estimator="sampled"))
    with pytest.raises(RecipeError, match="trl is for drawn answers"):
        Recipe(train=TrainConfig(objective="grpo"), grpo=GrpoConfig(engine="trl", beta=0))
