"""Train one prompt on given targets, in a transformers Trainer whose model owns nothing but the prompt."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from evoprompt.config import TrainConfig
from evoprompt.errors import RunError
from evoprompt.judge import Judge
from evoprompt.objectives import rating_fidelity
from evoprompt.prompts import PixelPrompt
from evoprompt.runs import TRAIN, stream

OnStep = Callable[[int, int, dict[str, float]], None]
_OPTIMIZERS = {"adam": "adamw_torch", "sgd": "sgd"}


@dataclass(frozen=True)
class Batch:
    """One training batch: images by key, and the comparisons among them.

    ``views`` (len(images), V, 3, S, S) uint8 is read only when the batch is used; ``pairs`` (P, 2) are rows of the
    batch; ``targets`` (P,) are probabilities that the first is better.
    """

    views: Callable[[], np.ndarray]
    pairs: np.ndarray
    targets: np.ndarray


class _Steps(Dataset[dict[str, Tensor]]):
    """The batch of every step, decided by coordinates alone: order and view do not depend on where a run stopped."""

    def __init__(self, batches: Sequence[Batch], steps: int, seed: Sequence[int]) -> None:
        self.batches, self.steps, self.seed = batches, steps, tuple(seed)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        epoch, place = divmod(step, len(self.batches))
        order = stream(*self.seed, TRAIN, epoch).permutation(len(self.batches))
        batch = self.batches[order[place]]
        views = batch.views()
        chosen = stream(*self.seed, TRAIN, epoch, place).integers(views.shape[1], size=len(views))
        return {
            "pixels": torch.from_numpy(views[np.arange(len(views)), chosen]).float() / 255,
            "pairs": torch.from_numpy(batch.pairs),
            "targets": torch.from_numpy(batch.targets).float(),
        }


class PromptedRating(nn.Module):
    """Images to rating loss. It owns the prompt; the judge is only used, so nothing else can train or be saved."""

    def __init__(self, judge: Judge, prompt: PixelPrompt, config: TrainConfig) -> None:
        super().__init__()
        self.prompt = prompt
        self._objective = config
        self._judge = [judge]
        judge.attach(prompt)

    def forward(self, pixels: Tensor, pairs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Loss of a batch: pixels (B, 3, S, S) in [0, 1], pairs (P, 2) int64, targets (P,) in [0, 1]."""
        judge = self._judge[0]
        question = judge.family.rate[0]
        logits = judge.rate(judge.encode(pixels), question)
        values = torch.tensor(question.values, device=logits.device)
        return {
            "loss": rating_fidelity(logits, values, pairs.to(logits.device), targets.to(logits.device), self._objective)
        }


class _Watch(TrainerCallback):
    """Reports steps and stops at a loss that is not a number."""

    def __init__(self, on_step: OnStep, steps: int) -> None:
        self.on_step, self.steps = on_step, steps

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        if "loss" not in logs:
            return
        if not (math.isfinite(logs["loss"]) and math.isfinite(logs.get("grad_norm", 0.0))):
            raise RunError(
                f"the loss became {logs['loss']} at step {state.global_step} (lr {logs['learning_rate']:g}). The last "
                "good round is kept; start a new run with a smaller train.lr or judge.dtype=float32."
            )
        self.on_step(state.global_step, self.steps, {"loss": logs["loss"]})


def train_prompt(
    judge: Judge,
    prompt: PixelPrompt,
    batches: Sequence[Batch],
    config: TrainConfig,
    seed: Sequence[int],
    folder: Path,
    on_step: OnStep,
) -> list[dict[str, float]]:
    """Train the prompt in place; continue from the step checkpoints in ``folder`` when there are any.

    Args:
        judge: frozen; the prompt is attached to it and left attached.
        prompt: the only thing that changes.
        batches: comparisons to agree with.
        config: steps, optimiser, loss.
        seed: coordinates of the round, (seed, round).
        folder: for step checkpoints (prompt, optimiser, schedule, step; a few KB to MB).
        on_step: called with (step, steps, numbers) after each step.

    Returns:
        One record a step: ``step``, ``train/loss``, ``train/lr``, ``train/grad_norm``.

    Raises:
        RunError: when the loss is not finite, or no pair was kept.
    """
    if not batches:
        raise RunError(
            "no pair passed vote.min_confidence, so there is nothing to train on. Lower it, or ask for more pairs."
        )
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=1,
        learning_rate=config.lr,
        lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup,
        optim=_OPTIMIZERS[config.optimizer],
        weight_decay=0.0,
        max_grad_norm=config.grad_clip,
        save_strategy="steps",
        save_steps=config.save_every,
        save_total_limit=1,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        use_cpu=judge.device.type == "cpu",
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        seed=int(stream(*seed, TRAIN).integers(2**31)),
        bf16=False,
    )
    trainer = Trainer(
        model=PromptedRating(judge, prompt, config),
        args=arguments,
        train_dataset=_Steps(batches, config.steps, seed),
        data_collator=lambda items: items[0],
        callbacks=[_Watch(on_step, config.steps)],
    )
    # The Trainer prints its logs itself; ours go through on_step.
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=_last_checkpoint(folder))
    return [
        {
            "step": row["step"],
            "train/loss": row["loss"],
            "train/lr": row["learning_rate"],
            "train/grad_norm": row.get("grad_norm", math.nan),
        }
        for row in trainer.state.log_history
        if "loss" in row
    ]


def _last_checkpoint(folder: Path) -> str | None:
    """The newest step checkpoint that was written to its end; a torn one is removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    while found:
        path = found.pop()
        # trainer_state.json is what the Trainer writes last.
        if (path / "trainer_state.json").is_file():
            return str(path)
        shutil.rmtree(path)
    return None
