"""What every way to train a prompt shares: the batch of each step, the Trainer's options, its log, its checkpoints."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from evoprompt.config import TrainConfig
from evoprompt.errors import RunError
from evoprompt.processes import from_first
from evoprompt.runs import MOS, TRAIN, stream

OnStep = Callable[[int, int, dict[str, float]], None]
Views = Callable[[np.ndarray], np.ndarray]
_OPTIMIZERS = {"adam": "adamw_torch", "sgd": "sgd"}
# Checkpoints less than a second apart are no fault of the file system, and their numbers tell them apart.
logging.getLogger("transformers.trainer_utils").addFilter(lambda record: "mtime may not be" not in str(record.msg))


@dataclass(frozen=True)
class Batch:
    """One training batch: images by key, and the comparisons among them.

    ``views`` reads the views (R, V, 3, S, S) uint8 of R rows of the batch, only when they are used; ``pairs`` (P, 2)
    are rows of the batch; ``targets`` (P,) are probabilities that the first is better.
    """

    views: Views
    pairs: np.ndarray
    targets: np.ndarray
    size: int


@dataclass(frozen=True)
class MosBatch:
    """One training batch of images with human scores, all of one set, so that only scores of one scale meet.

    ``views`` as in ``Batch``; ``mos`` (B,) on the scale 1 to 5; ``std`` (B,) their deviations on that scale, or None;
    the loss is multiplied by ``weight``.
    """

    views: Views
    mos: np.ndarray
    std: np.ndarray | None
    weight: float


def mos_steps(steps: int, fraction: float) -> int:
    """How many of the first ``steps`` steps get human scores: as even a share as whole steps can be."""
    return math.floor(steps * fraction + 1e-9)


class Steps(Dataset[dict[str, Tensor]]):
    """The batch of every step, decided by coordinates alone: order and view do not depend on where a run stopped.

    Args:
        batches: of pseudo-labels, gone through in a new order each time; may be empty when ``fraction`` is 1.
        steps: length.
        seed: coordinates of the round, (seed, round).
        mos: of human scores, used one after the other; at least ``mos_steps(steps, fraction)``.
        fraction: share of the steps that get human scores.
        parts: processes that share the images of a batch. Every step then has so many items, one for each of them.
    """

    def __init__(
        self,
        batches: Sequence[Batch],
        steps: int,
        seed: Sequence[int],
        mos: Sequence[MosBatch] = (),
        fraction: float = 0.0,
        parts: int = 1,
    ) -> None:
        self.batches, self.steps, self.seed = batches, steps, tuple(seed)
        self.mos, self.fraction, self.parts = mos, fraction, parts

    def __len__(self) -> int:
        return self.steps * self.parts

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        step, part = divmod(item, self.parts)
        human = mos_steps(step, self.fraction)
        if mos_steps(step + 1, self.fraction) > human:
            return self._human(human, part)
        epoch, place = divmod(step - human, len(self.batches))
        order = stream(*self.seed, TRAIN, epoch).permutation(len(self.batches))
        number = int(order[place])
        batch = self.batches[number]
        rng = stream(*self.seed, TRAIN, epoch, place)
        return {
            **self._pixels(batch.views, batch.size, part, rng),
            "pairs": torch.from_numpy(batch.pairs),
            "targets": torch.from_numpy(batch.targets).float(),
            "batch": torch.tensor(number),
            "draw": torch.tensor(int(rng.integers(2**62))),  # seeds whatever the step itself draws
        }

    def _human(self, place: int, part: int) -> dict[str, Tensor]:
        batch = self.mos[place]
        item = {
            **self._pixels(batch.views, len(batch.mos), part, stream(*self.seed, MOS, 1, place)),
            "mos": torch.from_numpy(batch.mos).float(),
            "weight": torch.tensor(batch.weight),
        }
        return item if batch.std is None else {**item, "std": torch.from_numpy(batch.std).float()}

    def _pixels(self, views: Views, size: int, part: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """One view of each image that falls to a part, drawn: float32 (R, 3, S, S) in [0, 1]; their rows and views.

        A part without an image gets the first one all the same, but no row of it.
        """
        rows = np.arange(part, size, self.parts)
        read = views(rows if len(rows) else np.zeros(1, dtype=np.int64))
        chosen = rng.integers(read.shape[1], size=size)[rows if len(rows) else [0]]
        pixels = torch.from_numpy(read[np.arange(len(read)), chosen]).float() / 255
        return {
            "pixels": pixels,
            "rows": torch.from_numpy(rows),
            "views": torch.from_numpy(chosen),
            "size": torch.tensor(size),
        }


class Watch(TrainerCallback):
    """Reports steps and stops at a loss that is not a number."""

    def __init__(self, on_step: OnStep, steps: int) -> None:
        self.on_step, self.steps = on_step, steps

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Called by the Trainer after each step."""
        if "loss" not in logs:
            return
        if not (math.isfinite(logs["loss"]) and math.isfinite(logs.get("grad_norm", 0.0))):
            raise RunError(
                f"the loss became {logs['loss']} at step {state.global_step} (lr {logs['learning_rate']:g}). The last "
                "good round is kept; start a new run with a smaller train.lr or judge.dtype=float32."
            )
        self.on_step(state.global_step, self.steps, {"loss": logs["loss"]})


def trainer_options(config: TrainConfig, seed: Sequence[int], folder: Path, device: torch.device) -> dict[str, Any]:
    """Options of a transformers Trainer of any kind that trains a prompt for one round.

    Args:
        config: steps, optimiser, schedule.
        seed: coordinates of the round, (seed, round).
        folder: for step checkpoints.
        device: where the judge is.

    Returns:
        Keyword arguments of ``TrainingArguments`` and its relatives.
    """
    return {
        "output_dir": str(folder),
        "max_steps": config.steps,
        "per_device_train_batch_size": 1,
        "learning_rate": config.lr,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": config.warmup,
        "optim": _OPTIMIZERS[config.optimizer],
        "weight_decay": 0.0,
        "max_grad_norm": config.grad_clip,
        "save_strategy": "steps",
        "save_steps": config.save_every,
        "save_total_limit": 1,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "ddp_find_unused_parameters": False,
        "ddp_broadcast_buffers": False,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "train_sampling_strategy": "sequential",
        "use_cpu": device.type == "cpu",
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "seed": int(stream(*seed, TRAIN).integers(2**31)),
        "bf16": False,
    }


def step_records(log: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """One record a step of a Trainer's log: ``step``, ``train/loss``, ``train/lr``, ``train/grad_norm``, and whatever
    else was logged under ``train/``.
    """
    return [
        {
            "step": row["step"],
            "train/loss": row["loss"],
            "train/lr": row["learning_rate"],
            "train/grad_norm": row.get("grad_norm", math.nan),
            # Sorted, because a log that was read back from a checkpoint is.
            **{key: row[key] for key in sorted(row) if key.startswith("train/")},
        }
        for row in log
        if "loss" in row
    ]


def last_checkpoint(folder: Path) -> str | None:
    """The newest step checkpoint that was written to its end, as the first process finds it; a torn one is removed."""
    return from_first(lambda: _last_checkpoint(folder))


def _last_checkpoint(folder: Path) -> str | None:
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    while found:
        path = found.pop()
        # trainer_state.json is what the Trainer writes last.
        if (path / "trainer_state.json").is_file():
            return str(path)
        shutil.rmtree(path)
    return None
