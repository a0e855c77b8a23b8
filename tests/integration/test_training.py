"""Training: nothing but the prompt changes, and a loss that is not a number stops the run without losing a round."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import BORDER, ScriptedJudge

from evoprompt.config import JudgeConfig, LadderConfig, PairsConfig, PixelConfig, Recipe, TrainConfig, VoteConfig
from evoprompt.errors import DataError, RunError
from evoprompt.images import ImageSet
from evoprompt.judge import NANO, load_judge
from evoprompt.lifecycle import evolve, new_prompt
from evoprompt.prompts import Origin, PixelPrompt, PromptConfig
from evoprompt.runs import read_record, read_rounds
from evoprompt.scoring import fits
from evoprompt.training import PromptedRating


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
