"""GRPO through TRL: our gradient on the same answers, prompt-only checkpoints, exact continuation, two processes."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import BORDER, SIDE, ScriptedJudge, base_picture
from owl2_tiny import tiny_writer
from safetensors.torch import load_file

from evoprompt.answers import answers_of
from evoprompt.config import GrpoConfig, Recipe, TrainConfig
from evoprompt.errors import JudgeError, RecipeError, RunError
from evoprompt.grpo import answer_moments, answer_rewards, grpo_loss
from evoprompt.images import ImageSet
from evoprompt.judge import NANO, Judge, load_judge
from evoprompt.lifecycle import evolve
from evoprompt.prompts import PixelPrompt, PromptConfig
from evoprompt.runs import read_lines, read_rounds
from evoprompt.steps import Batch
from evoprompt.trl_engine import grpo_trainer, train_prompt_trl

SEED = (3, 1)
GRPO = GrpoConfig(estimator="sampled", engine="trl", kl="k3", advantage="centred", answers=8, beta=0.3)
TRAIN = TrainConfig(objective="grpo", steps=4, lr=0.05, save_every=2)
PLAIN = replace(TRAIN, steps=2, optimizer="sgd", lr=1.0, schedule="constant")


def batch(n: int, seed: int, lonely: int = 0, side: int = SIDE) -> Batch:
    """n toy images of one view, all pairs among them but those of the last ``lonely`` images."""
    rng = np.random.default_rng(seed)
    noise = rng.uniform(0.01, 0.2, n)
    picture = np.resize(base_picture(), (side, side, 3))
    pictures = [picture + rng.normal(0, s, picture.shape) + rng.uniform(-0.1, 0.1) for s in noise]
    views = (np.stack(pictures).clip(0, 1) * 255).round().astype(np.uint8).transpose(0, 3, 1, 2)[:, None]
    pairs = np.array([(a, b) for a in range(n - lonely) for b in range(a + 1, n - lonely)])
    targets = np.array([float(noise[a] < noise[b]) for a, b in pairs], dtype=np.float32)
    return Batch(lambda rows: views[rows], pairs, targets, n)


BATCHES = (batch(6, 0), batch(5, 1, lonely=1))


def new_prompt(judge: Judge, fill: float = 0.0) -> PixelPrompt:
    prompt = PixelPrompt(PromptConfig(image_size=judge.image_size, size=BORDER, blocks=BORDER, strength=0.5))
    torch.nn.init.normal_(prompt.theta, 0, fill, generator=torch.Generator().manual_seed(5))
    return prompt


def train(
    folder: Path, judge: Judge | None = None, on_step: Callable[..., None] = lambda *_: None, **grpo: Any
) -> tuple[PixelPrompt, list[dict[str, float]]]:
    judge = judge or ScriptedJudge()
    prompt = new_prompt(judge, 0.3)
    return prompt, train_prompt_trl(judge, prompt, BATCHES, TRAIN, replace(GRPO, **grpo), SEED, folder, on_step)


def our_step(trainer: Any, number: int, judge: Judge, theta: torch.Tensor, grpo: GrpoConfig) -> torch.Tensor:
    """Where plain gradient descent on ``grpo_loss`` takes theta, with the answers that TRL gets in that step."""
    policy, question = trainer.model, judge.family.rate[0]
    with torch.no_grad():
        policy.prompt.theta.copy_(theta)
    rows = torch.arange(policy.width) + number * policy.width
    item, _ = policy.batch(rows)
    n = len(item["pixels"])
    drawn = torch.tensor(policy.draw(rows, grpo.answers)).view(policy.width, -1)[:n]
    judge.attach(None)
    bare = judge.rate(judge.encode(item["pixels"]), question)
    judge.attach(policy.prompt)
    logits = judge.rate(judge.encode(item["pixels"]), question)
    values = torch.tensor(question.values)
    loss, _ = grpo_loss(logits, bare, values, item["pairs"], item["targets"], grpo, PLAIN.gamma, answers=drawn)
    (gradient,) = torch.autograd.grad(loss, policy.prompt.theta)
    assert gradient.abs().max() > 1e-4
    return theta - PLAIN.lr * gradient


@pytest.mark.parametrize("advantage", ["centred", "standardised", "leave-one-out"])
def test_on_the_same_answers_our_gradient_is_that_of_trl(tmp_path: Path, advantage: Any) -> None:
    judge, grpo = ScriptedJudge(), replace(GRPO, advantage=advantage)
    prompt = new_prompt(judge, 0.3)
    start = prompt.theta.detach().clone()
    trainer = grpo_trainer(judge, prompt, BATCHES, PLAIN, grpo, SEED, tmp_path)
    assert sorted(batch.size for batch in BATCHES) == [5, 6]  # so one of the two steps has a row without an image
    ours = our_step(trainer, 1, judge, our_step(trainer, 0, judge, start, grpo), grpo)
    with torch.no_grad():
        prompt.theta.copy_(start)
    trainer.train()
    torch.testing.assert_close(prompt.theta.detach(), ours, rtol=0, atol=1e-6)


def test_the_same_holds_for_a_real_judge_which_stays_frozen(tmp_path: Path) -> None:
    judge = load_judge(NANO, None, "auto", "float32", "cpu")
    before = {name: p.clone() for name, p in judge.model.state_dict().items()}
    batches, grpo = [batch(3, 2, side=judge.image_size)], replace(GRPO, answers=4)
    prompt = new_prompt(judge, 0.3)
    start, config = prompt.theta.detach().clone(), replace(PLAIN, steps=1)
    trainer = grpo_trainer(judge, prompt, batches, config, grpo, SEED, tmp_path)
    assert [name for name, _ in trainer.model.named_parameters()] == ["prompt.theta"]
    ours = our_step(trainer, 0, judge, start, grpo)
    with torch.no_grad():
        prompt.theta.copy_(start)
    trainer.train()
    torch.testing.assert_close(prompt.theta.detach(), ours, rtol=0, atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in judge.model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in judge.model.parameters())


def test_written_answers_train_reason_and_level_by_the_reward_of_the_level(tmp_path: Path) -> None:
    judge, grpo, config = tiny_writer(), replace(GRPO, rationale=5, answers=4), replace(PLAIN, steps=1)
    question, prompt = judge.family.rate[0], new_prompt(judge, 0.3)
    trainer = grpo_trainer(judge, prompt, [batch(3, 2, side=judge.image_size)], config, grpo, SEED, tmp_path)
    start, rows = prompt.theta.detach().clone(), torch.arange(3)
    item, _ = trainer.model.batch(rows)
    drawn = [torch.tensor(answer) for answer in trainer.model.draw(rows, 4)]
    lengths = torch.tensor([len(answer) for answer in drawn])
    assert len(set(lengths.tolist())) > 1
    ids = torch.nn.utils.rnn.pad_sequence(drawn, batch_first=True)
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    scores = torch.tensor(question.values)[torch.stack([answer[-1] for answer in drawn])].view(3, 4)
    rewards = answer_rewards(scores, *answer_moments(scores), item["pairs"], item["targets"], PLAIN.gamma)
    advantage = (rewards - rewards.mean(1, keepdim=True)).flatten()[:, None]
    say, image = answers_of(judge, grpo).log_probabilities, torch.arange(3).repeat_interleave(4)
    log_p = say(item["pixels"], image, ids, mask)[0]
    judge.attach(None)
    log_u = say(item["pixels"], image, ids, mask)[0].detach() - log_p
    judge.attach(prompt)
    loss = (log_p - log_p.detach()).exp() * (grpo.beta * (log_u.exp() - log_u - 1) - advantage)
    (gradient,) = torch.autograd.grad((loss * mask).sum() / mask.sum(), prompt.theta)
    assert gradient.abs().max() > 1e-4
    trainer.train()
    torch.testing.assert_close(prompt.theta.detach(), start - gradient, rtol=0, atol=1e-6)


def test_a_step_checkpoint_holds_the_prompt_its_optimiser_and_the_step(tmp_path: Path) -> None:
    prompt, steps = train(tmp_path)
    (folder,) = tmp_path.iterdir()
    names = {path.name for path in folder.iterdir()}
    assert names == {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    saved = load_file(folder / "model.safetensors")
    assert list(saved) == ["prompt.theta"] and torch.equal(saved["prompt.theta"], prompt.theta.detach())
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2**16
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    numbers = {"loss", "lr", "grad_norm", "reward", "reward_zero_spread", "kl"}
    assert all(set(step) == {"step", *(f"train/{name}" for name in numbers)} for step in steps)
    assert all(0 < step["train/reward"] <= 1 and step["train/kl"] > 0 for step in steps)


def test_a_run_that_was_killed_continues_to_the_same_bits(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(step: int, *_: Any) -> None:
        if step == 3:
            raise Killed

    whole, steps = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "killed", on_step=kill)
    told: list[int] = []
    resumed, again = train(tmp_path / "killed", on_step=lambda step, *_: told.append(step))
    assert told == [3, 4]
    assert torch.equal(resumed.theta, whole.theta) and again == steps


def test_the_bare_judge_is_the_same_judge_without_the_prompt(tmp_path: Path) -> None:
    judge = ScriptedJudge()
    prompt = new_prompt(judge)
    steps = train_prompt_trl(judge, prompt, BATCHES, TRAIN, GRPO, SEED, tmp_path, lambda *_: None)
    assert steps[0]["train/kl"] == 0.0 and steps[-1]["train/kl"] > 0
    assert judge.prompt is prompt and prompt.theta.any()
    free = train_prompt_trl(
        judge, new_prompt(judge), BATCHES, TRAIN, replace(GRPO, beta=0.0), SEED, tmp_path / "free", lambda *_: None
    )
    assert "train/kl" not in free[0]


class _BreakingJudge(ScriptedJudge):
    """Its ratings become NaN once it is trained through."""

    def rate(self, seen: torch.Tensor, question: Any) -> torch.Tensor:
        logits = super().rate(seen, question)
        return logits * float("nan") if torch.is_grad_enabled() else logits


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the loss became nan at step 1 .*smaller train.lr"):
        train(tmp_path, _BreakingJudge())


@pytest.mark.parametrize(
    ("grpo", "problem"),
    [
        (GrpoConfig(engine="trl"), "grpo.estimator"),
        (GrpoConfig(engine="trl", estimator="sampled"), "grpo.kl: exact; TRL has k3 alone"),
        (GrpoConfig(rationale=20), "grpo.rationale: 20; only TRL trains on written reasons"),
    ],
)
def test_a_recipe_that_trl_cannot_follow_is_refused(grpo: GrpoConfig, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        Recipe(train=TRAIN, grpo=grpo)
    with pytest.raises(RecipeError, match="grpo.engine: trl; needs train.objective grpo, not fidelity"):
        Recipe(grpo=GRPO)


def one_of_two(rank: int, port: int, folder: Path) -> None:
    """A process of two, as torchrun starts it."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    os.environ.update(MASTER_PORT=str(port), ACCELERATE_USE_CPU="true")
    torch.set_num_threads(1)
    prompt, steps = train(folder)
    torch.save((prompt.theta.detach(), steps), folder / f"rank{rank}.pt")


@pytest.mark.slow
def test_two_processes_see_the_rewards_and_end_with_the_prompt_of_one(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    two = [context.Process(target=one_of_two, args=(rank, port, tmp_path / "two")) for rank in range(2)]
    for process in two:
        process.start()
    prompt, steps = train(tmp_path / "one")
    for process in two:
        process.join()
    assert [process.exitcode for process in two] == [0, 0]
    for rank in range(2):
        theta, rows = torch.load(tmp_path / "two" / f"rank{rank}.pt", weights_only=True)
        torch.testing.assert_close(theta, prompt.theta.detach(), rtol=0, atol=1e-5)
        if rank == 0:  # the others keep no log
            for name in ("train/reward", "train/reward_zero_spread", "train/kl", "train/grad_norm"):
                assert [row[name] for row in rows] == pytest.approx([step[name] for step in steps], abs=1e-6)


def test_a_recipe_is_enough_to_evolve_through_trl(toys: ImageSet, quick: Recipe, tmp_path: Path) -> None:
    recipe = replace(quick, rounds=1, train=replace(quick.train, objective="grpo"), grpo=replace(GRPO, beta=0.0))
    run = evolve(recipe, toys, tmp_path / "run", ScriptedJudge())
    steps = read_lines(run / "rounds/001/steps.jsonl")
    rewards = [float(step["train/reward"]) for step in steps]
    assert len(rewards) == recipe.train.steps and np.mean(rewards[-8:]) > np.mean(rewards[:8])
    (_, after) = read_rounds(run)
    assert after["accepted"] and after["metrics"]["gate/gain"] > 0.02


def test_a_judge_that_cannot_write_is_refused_before_anything_runs(
    toys: ImageSet, quick: Recipe, tmp_path: Path
) -> None:
    recipe = replace(quick, train=replace(quick.train, objective="grpo"), grpo=replace(GRPO, rationale=20))
    with pytest.raises(JudgeError, match="scripted cannot give a reason"):
        evolve(recipe, toys, tmp_path / "run", ScriptedJudge())
    assert not (tmp_path / "run").exists()
