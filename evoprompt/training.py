"""Train one prompt on given targets, in a transformers Trainer whose model owns nothing but the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from evoprompt.config import Recipe
from evoprompt.errors import RunError
from evoprompt.grpo import grpo_loss
from evoprompt.judge import Judge
from evoprompt.objectives import mos_loss, rating_fidelity
from evoprompt.prompts import PixelPrompt
from evoprompt.steps import Batch, MosBatch, OnStep, Steps, Watch, last_checkpoint, step_records, trainer_options
from evoprompt.trl_engine import train_prompt_trl


class PromptedRating(nn.Module):
    """Images to rating loss. It owns the prompt; the judge is only used, so nothing else can train or be saved.

    ``numbers`` holds what the last step had to say besides its loss.
    """

    def __init__(self, judge: Judge, prompt: PixelPrompt, recipe: Recipe) -> None:
        super().__init__()
        self.prompt, self.recipe = prompt, recipe
        self.numbers: dict[str, float] = {}
        self._judge = [judge]
        judge.attach(prompt)

    def forward(
        self,
        pixels: Tensor,
        pairs: Tensor | None = None,
        targets: Tensor | None = None,
        draw: Tensor | None = None,
        mos: Tensor | None = None,
        std: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Loss of a batch, either of pseudo-labels (pairs, targets, draw) or of human scores (mos, std, weight).

        Args:
            pixels: (B, 3, S, S) in [0, 1].
            pairs: (P, 2) int64, rows of the batch.
            targets: (P,) probability that the first is better, in [0, 1].
            draw: int64 scalar, the seed of whatever is drawn.
            mos: (B,) human scores on the scale 1 to 5.
            std: (B,) their deviations on that scale, None when they are not known.
            weight: scalar, factor of the loss against human scores.
        """
        judge = self._judge[0]
        question = judge.family.rate[0]
        logits = judge.rate(judge.encode(pixels), question)
        values = torch.tensor(question.values, device=logits.device)
        if mos is not None and weight is not None:
            self.numbers = {}
            std = None if std is None else std.to(logits.device)
            loss = mos_loss(logits, values, mos.to(logits.device), std, self.recipe.mos, self.recipe.train)
            return {"loss": weight.to(logits.device) * loss}
        assert pairs is not None and targets is not None and draw is not None
        return {"loss": self._voted(pixels, logits, values, pairs, targets, int(draw))}

    def _voted(
        self, pixels: Tensor, logits: Tensor, values: Tensor, pairs: Tensor, targets: Tensor, draw: int
    ) -> Tensor:
        pairs, targets = pairs.to(logits.device), targets.to(logits.device)
        if self.recipe.train.objective == "fidelity":
            return rating_fidelity(logits, values, pairs, targets, self.recipe.train)
        generator = torch.Generator().manual_seed(draw)
        bare, grpo, gamma = self._bare(pixels), self.recipe.grpo, self.recipe.train.gamma
        loss, self.numbers = grpo_loss(logits, bare, values, pairs, targets, grpo, gamma, generator)
        return loss

    def _bare(self, pixels: Tensor) -> Tensor:
        """Logits of the same pixels without the prompt: the reference costs a forward pass, not a second model."""
        judge = self._judge[0]
        judge.attach(None)
        with torch.no_grad():
            logits = judge.rate(judge.encode(pixels), judge.family.rate[0])
        judge.attach(self.prompt)
        return logits


class _PromptTrainer(Trainer):
    """Logs what the objective has to say beside its loss, so that it survives a kill with the rest of the log."""

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        numbers = self.model.numbers if "loss" in logs else {}
        super().log({**logs, **{f"train/{key}": value for key, value in numbers.items()}}, *arguments, **options)


def train_prompt(
    judge: Judge,
    prompt: PixelPrompt,
    batches: Sequence[Batch],
    recipe: Recipe,
    seed: Sequence[int],
    folder: Path,
    on_step: OnStep,
    mos: Sequence[MosBatch] = (),
    fraction: float = 0.0,
) -> list[dict[str, float]]:
    """Train the prompt in place; continue from the step checkpoints in ``folder`` when there are any.

    Args:
        judge: frozen; the prompt is attached to it and left attached.
        prompt: the only thing that changes.
        batches: comparisons to agree with.
        recipe: its sections ``train``, ``grpo`` and ``mos``.
        seed: coordinates of the round, (seed, round).
        folder: for step checkpoints (prompt, optimiser, schedule, step; a few KB to MB).
        on_step: called with (step, steps, numbers) after each step.
        mos: human scores to agree with, see ``steps.Steps``.
        fraction: share of the steps that get them.

    Returns:
        One record a step: ``step``, ``train/loss``, ``train/lr``, ``train/grad_norm``; with grpo also
        ``train/reward``, ``train/reward_zero_spread``, ``train/kl``.

    Raises:
        RunError: when the loss is not finite, or no pair was kept.
    """
    config = recipe.train
    if not batches and fraction < 1:
        raise RunError(
            "no pair passed vote.min_confidence, so there is nothing to train on. Lower it, or ask for more pairs."
        )
    if config.objective == "grpo" and recipe.grpo.engine == "trl":
        return train_prompt_trl(judge, prompt, batches, config, recipe.grpo, seed, folder, on_step)
    trainer = _PromptTrainer(
        model=PromptedRating(judge, prompt, recipe),
        args=TrainingArguments(**trainer_options(config, seed, folder, judge.device)),
        train_dataset=Steps(batches, config.steps, seed, mos, fraction),
        data_collator=lambda items: items[0],
        callbacks=[Watch(on_step, config.steps)],
    )
    # The Trainer prints its logs itself; ours go through on_step.
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    return step_records(trainer.state.log_history)
