"""Training: nothing but the prompt changes, and a loss that is not a number stops the run without losing a round."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BORDER, SIDE, ScriptedJudge, base_picture
from transformers import TrainingArguments

from evoprompt.config import (
    GrpoConfig,
    JudgeConfig,
    LadderConfig,
    PairsConfig,
    PixelConfig,
    Recipe,
    TrainConfig,
    VoteConfig,
)
from evoprompt.errors import DataError, RunError
from evoprompt.images import ImageSet
from evoprompt.judge import NANO, load_judge
from evoprompt.lifecycle import evolve, new_prompt
from evoprompt.prompts import Origin, PixelPrompt, PromptConfig
from evoprompt.runs import read_record, read_rounds
from evoprompt.scoring import fits
from evoprompt.steps import Batch, only
from evoprompt.training import PromptedRating, train_prompt


def test_a_run_changes_no_parameter_of_the_judge_and_gives_none_a_gradient(toys: ImageSet, tmp_path: Path) -> None:
    judge = load_judge(NANO, None, "auto", "float32", "cpu")
    before = {name: p.clone() for name, p in judge.model.state_dict().items()}
    recipe = Recipe(
        rounds=1,
        judge=JudgeConfig(id=NANO),
        pairs=PairsConfig(per_round=15, group=6),
        vote=VoteConfig(wordings=1, views=1, min_confidence=0.5),
        train=TrainConfig(steps=3),
        ladder=LadderConfig(images=2, kinds=2, levels=1),
    )
    run = evolve(recipe, toys, tmp_path / "run", judge, force=True)
    assert PixelPrompt.load(run / "rounds/001/prompt").theta.any()
    assert all(torch.equal(value, before[name]) for name, value in judge.model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in judge.model.parameters())


@pytest.mark.parametrize("kind", ["border", "patch", "overlay"])
def test_what_the_trainer_sees_is_the_prompt_alone(quick: Recipe, kind: str) -> None:
    recipe = replace(quick, prompt=PixelConfig(kind=kind, size=BORDER, blocks=0))  # type: ignore[arg-type]
    prompt = new_prompt(recipe, ScriptedJudge())
    model = PromptedRating(ScriptedJudge(), prompt, recipe)
    assert [name for name, _ in model.named_parameters()] == ["prompt.theta"]
    assert sum(p.numel() for p in model.parameters()) == prompt.n_values
    assert list(model.state_dict()) == ["prompt.theta"]


class _BreakingJudge(ScriptedJudge):
    """Its ratings become NaN once it is trained through."""

    def rate(self, seen, question):  # type: ignore[no-untyped-def]
        logits = super().rate(seen, question)
        return logits * float("nan") if torch.is_grad_enabled() else logits


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_last_round(
    toys: ImageSet, quick: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="the loss became nan at step 1 .*smaller train.lr"):
        evolve(quick, toys, tmp_path / "run", _BreakingJudge())
    assert read_record(tmp_path / "run")["status"] == "failed"
    assert [r["round"] for r in read_rounds(tmp_path / "run")] == [0]


def test_pairs_without_a_majority_are_nothing_to_train_on(toys: ImageSet, quick: Recipe, tmp_path: Path) -> None:
    recipe = replace(quick, vote=replace(quick.vote, min_confidence=0.95))
    with pytest.raises(RunError, match="no pair passed vote.min_confidence"):
        evolve(recipe, toys, tmp_path / "run", ScriptedJudge())


def test_a_prompt_of_another_judge_is_refused_with_the_judge_to_load(
    toys: ImageSet, quick: Recipe, tmp_path: Path
) -> None:
    prompt = PixelPrompt(
        PromptConfig(image_size=48, size=8), Origin(judge="MAGAer13/mplug-owl2-llama2-7b", revision="a1b2")
    )
    with pytest.raises(
        DataError, match="evolved with judge MAGAer13/mplug-owl2-llama2-7b@a1b2; this judge is scripted@0"
    ):
        fits(prompt, ScriptedJudge())
    with pytest.raises(DataError, match="Load that one with --judge MAGAer13"):
        evolve(quick, toys, tmp_path / "run", ScriptedJudge(), init_prompt=prompt)
    assert not (tmp_path / "run").exists()


SAMPLED = GrpoConfig(estimator="sampled", engine="trl", kl="k3", advantage="centred", answers=4)


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two GPUs, as transformers finds it: it takes the first, and both for every step."""
    found = TrainingArguments.__dict__["_setup_devices"].func

    def both(arguments: TrainingArguments) -> torch.device:
        found(arguments)
        arguments._n_gpu = 2
        arguments.distributed_state.device = torch.device("meta")
        return torch.device("meta")

    device = cached_property(both)
    device.__set_name__(TrainingArguments, "_setup_devices")
    monkeypatch.setattr(TrainingArguments, "_setup_devices", device)


@pytest.mark.parametrize("grpo", [GrpoConfig(), SAMPLED])
def test_one_process_trains_at_the_judge_and_uses_every_step_once(
    two_cards: None, quick: Recipe, tmp_path: Path, grpo: GrpoConfig
) -> None:
    judge = ScriptedJudge()
    objective = "fidelity" if grpo.engine == "native" else "grpo"
    train = TrainConfig(objective=objective, steps=6, save_every=6)  # type: ignore[arg-type]
    recipe = replace(quick, train=train, grpo=grpo, prompt=PixelConfig(size=BORDER))
    noise = np.random.default_rng(0).normal(0, 0.02, (3, 4, 1, 3, SIDE, SIDE))
    views = ((base_picture().transpose(2, 0, 1) + noise).clip(0, 1) * 255).astype(np.uint8)
    read: list[int] = []

    def batch(number: int) -> Batch:
        def reader(rows: np.ndarray) -> np.ndarray:
            read.append(number)
            return views[number][rows]

        return Batch(reader, np.array([[0, 1], [2, 3]]), np.array([1.0, 0.0]), 4)

    prompt = new_prompt(recipe, judge)
    steps = train_prompt(judge, prompt, [batch(k) for k in range(3)], recipe, (0, 1), tmp_path, lambda *_: None)
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5, 6]
    assert sorted(read) == [0, 0, 1, 1, 2, 2]  # six steps, twice through three batches
    assert prompt.theta.device == judge.device and prompt.theta.any()


def test_a_step_of_several_items_is_refused() -> None:
    item = {"pixels": torch.zeros(1, 3, 4, 4)}
    assert only([item]) is item
    with pytest.raises(ValueError, match="too many values"):
        only([item, item])
