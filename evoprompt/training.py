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
from evoprompt.processes import whole, world
from evoprompt.prompts import PixelPrompt
from evoprompt.steps import (
    Batch,
    MosBatch,
    OnStep,
    Steps,
    Watch,
    at_judge,
    fitting,
    last_checkpoint,
    only,
    step_records,
    trainer_options,
)
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
        self._answers = len(judge.family.rate[0].answers)
        self._references: dict[tuple[int, int, int], Tensor] = {}
        judge.attach(prompt)

    def forward(
        self,
        pixels: Tensor,
        rows: Tensor,
        views: Tensor,
        size: Tensor,
        pairs: Tensor | None = None,
        targets: Tensor | None = None,
        batch: Tensor | None = None,
        draw: Tensor | None = None,
        mos: Tensor | None = None,
        std: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Loss of a batch, either of pseudo-labels (pairs, targets, batch, draw) or of human scores (mos, std, weight).

        Args:
            pixels: (R, 3, S, S) in [0, 1], the images that fall to this process; R = B where there is only one.
            rows: (R,) int64, their rows in the batch.
            views: (R,) int64, which of their views these are.
            size: int64 scalar, images in the batch, B.
            pairs: (P, 2) int64, rows of the batch.
            targets: (P,) probability that the first is better, in [0, 1].
            batch: int64 scalar, the number of the batch among those of the round.
            draw: int64 scalar, the seed of whatever is drawn.
            mos: (B,) human scores on the scale 1 to 5.
            std: (B,) their deviations on that scale, None when they are not known.
            weight: scalar, factor of the loss against human scores.
        """
        judge = self._judge[0]
        question = judge.family.rate[0]
        logits = whole(judge.rate(judge.encode(pixels), question), rows, int(size))
        values = torch.tensor(question.values, device=logits.device)
        if mos is not None and weight is not None:
            self.numbers = {}
            std = None if std is None else std.to(logits.device)
            loss = mos_loss(logits, values, mos.to(logits.device), std, self.recipe.mos, self.recipe.train)
            return {"loss": weight.to(logits.device) * loss}
        assert pairs is not None and targets is not None and batch is not None and draw is not None
        pairs, targets = pairs.to(logits.device), targets.to(logits.device)
        if self.recipe.train.objective == "fidelity":
            return {"loss": rating_fidelity(logits, values, pairs, targets, self.recipe.train)}
        keys = [(int(batch), row, view) for row, view in zip(rows.tolist(), views.tolist(), strict=False)]
        bare = whole(self._bare(pixels, keys), rows, int(size))
        return {"loss": self._rewarded(logits, bare, values, pairs, targets, int(draw))}

    def _rewarded(
        self, logits: Tensor, bare: Tensor, values: Tensor, pairs: Tensor, targets: Tensor, draw: int
    ) -> Tensor:
        generator = torch.Generator().manual_seed(draw)
        grpo, gamma = self.recipe.grpo, self.recipe.train.gamma
        loss, self.numbers = grpo_loss(logits, bare, values, pairs, targets, grpo, gamma, generator)
        return loss

    def _bare(self, pixels: Tensor, keys: Sequence[tuple[int, int, int]]) -> Tensor:
        """Logits of the same pixels without the prompt: the reference costs no second model, only one pass a view.

        They are kept. Each image is asked alone, so that its logits do not depend on which others were new with it.
        """
        judge = self._judge[0]
        judge.attach(None)
        for image, key in zip(pixels, keys, strict=False):
            if key not in self._references:
                with torch.no_grad():
                    self._references[key] = judge.rate(judge.encode(image[None]), judge.family.rate[0])
        judge.attach(self.prompt)
        none = torch.empty(0, self._answers, device=judge.device)  # of a process without an image
        return torch.cat([none, *(self._references[key] for key in keys)])


class _PromptTrainer(Trainer):
    """Logs what the objective has to say beside its loss, so that it survives a kill with the rest of the log.

    A step checkpoint holds no states of global generators: nothing is drawn from them, and one process alone writes.
    """

    def _save_rng_state(self, output_dir: str) -> None: ...

    def _load_rng_state(self, checkpoint: str | None) -> None: ...

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

    Several processes share the images of every batch; each puts the ratings of all together and has the loss of the
    whole batch, so the prompt is that of one process up to the order of sums.

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
        RunError: when the loss is not finite, no pair was kept, or a step does not fit the device.
    """
    config = recipe.train
    if not batches and fraction < 1:
        raise RunError(
            "no pair passed vote.min_confidence, so there is nothing to train on. Lower it, or ask for more pairs."
        )
    if config.objective == "grpo" and recipe.grpo.engine == "trl":
        with fitting(recipe, judge.device):
            return train_prompt_trl(judge, prompt, batches, config, recipe.grpo, seed, folder, on_step)
    trainer = _PromptTrainer(
        model=PromptedRating(judge, prompt, recipe),
        args=at_judge(TrainingArguments(**trainer_options(config, seed, folder, judge.device)), judge.device),
        train_dataset=Steps(batches, config.steps, seed, mos, fraction, world()),
        data_collator=only,
        callbacks=[Watch(on_step, config.steps)],
    )
    # The Trainer prints its logs itself; ours go through on_step.
    trainer.remove_callback(PrinterCallback)
    with fitting(recipe, judge.device):
        trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    return step_records(trainer.state.log_history)
