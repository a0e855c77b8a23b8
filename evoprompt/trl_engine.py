"""GRPO through TRL: drawn or written answers, in TRL's GRPOTrainer around a model that owns nothing but the prompt."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.trainer_callback import PrinterCallback

from evoprompt.answers import LevelAnswers, answers_of
from evoprompt.config import GrpoConfig, TrainConfig
from evoprompt.grpo import NO_SPREAD, answer_moments, answer_rewards
from evoprompt.judge import Judge
from evoprompt.prompts import PixelPrompt
from evoprompt.runs import stream
from evoprompt.steps import Batch, OnStep, Steps, Watch, at_judge, last_checkpoint, step_records, trainer_options

# TRL insists on a tokenizer and on ids that end and pad a text. Ours never ends one: answers are ids of our own.
_WORD, _IDS = "-", {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}


class PromptedJudge(PreTrainedModel):
    """What TRL takes for its model: images to log-probabilities of answers. It owns the prompt; the judge is only used.

    TRL hands back the ids it was given; the id of a "prompt" is the number of a row: step * width + place in the batch.

    Args:
        answers: who answers, and in which form.
        prompt: the only parameter.
        steps: the batch of every step.
        width: rows of a step, at least as many as its largest batch has images. Rows that a batch has no image for
            stand for its last one and are masked.
    """

    config_class = PreTrainedConfig

    def __init__(self, answers: LevelAnswers, prompt: PixelPrompt, steps: Steps, width: int) -> None:
        super().__init__(PreTrainedConfig(**_IDS))
        self.prompt, self.width = prompt, width
        self.generation_config = GenerationConfig(**_IDS)
        self.answers, self.steps = answers, steps
        self._read: tuple[int, dict[str, Tensor]] | None = None
        answers.judge.attach(prompt)

    def batch(self, rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The batch that rows (R,) belong to, and their places (R,) in it."""
        step = int(rows[0]) // self.width
        if self._read is None or self._read[0] != step:
            self._read = (step, self.steps[step])
        item = self._read[1]
        return item, (rows % self.width).clamp(max=len(item["pixels"]) - 1)

    def draw(self, rows: Tensor, n: int) -> list[list[int]]:
        """n answers to each of these rows (R,), drawn at coordinates: (step, image)."""
        item, places = self.batch(rows)
        seeds = [int(stream(int(item["draw"]), place).integers(2**62)) for place in places.tolist()]
        with torch.no_grad():
            return self.answers.draw(
                item["pixels"][places.cpu()], n, [torch.Generator().manual_seed(seed) for seed in seeds]
            )

    def forward(self, ids: Tensor, mask: Tensor, bare: bool = False) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies of answers.

        Args:
            ids: (R, 1 + C) int64: the number of the row, then an answer.
            mask: (R, 1 + C), 1 where there is something.
            bare: without the prompt: what the answers are held near to, by the same weights.

        Returns:
            Twice (R, C).
        """
        item, places = self.batch(ids[:, 0])
        asked, image = places.unique(return_inverse=True)
        if bare:
            self.answers.judge.attach(None)
        try:
            return self.answers.log_probabilities(item["pixels"][asked.cpu()], image, ids[:, 1:], mask[:, 1:])
        finally:
            self.answers.judge.attach(self.prompt)

    def rewards(self, levels: Tensor, rows: Tensor, gamma: float) -> tuple[Tensor, dict[str, float]]:
        """Rewards of the answers to a whole batch, and numbers to watch.

        Args:
            levels: (B, G) int64, the level of every answer to every image of the batch.
            rows: (R,) rows of the batch whose rewards are asked for.
            gamma: see ``grpo.answer_rewards``.

        Returns:
            (R, G) rewards, 0 for images without a pair; ``train/reward`` and ``train/reward_zero_spread`` over all
            images that have one.
        """
        item, places = self.batch(rows)
        pairs = item["pairs"].cpu()
        scores = torch.tensor(self.answers.question.values)[levels[: len(item["pixels"])]]
        rewards = answer_rewards(scores, *answer_moments(scores), pairs, item["targets"].cpu(), gamma)
        paired = rewards[pairs.unique()]
        numbers = {
            "train/reward": float(paired.mean()),
            "train/reward_zero_spread": float((paired.std(dim=1) < NO_SPREAD).float().mean()),
        }
        return rewards[places.cpu()], numbers


@cache
def _trainer() -> type:
    """TRL's GRPOTrainer with what a prompt needs otherwise; made on demand, because importing TRL takes seconds."""
    from accelerate.utils import gather_object
    from trl import GRPOTrainer

    class PromptGRPOTrainer(GRPOTrainer):
        """Drawing, rewards and likelihoods come from a ``PromptedJudge``; advantages, loss and the rest are TRL's."""

        def __init__(self, model: Any, beta: float, gamma: float, **kwargs: Any) -> None:
            self.gamma = gamma
            super().__init__(model, reward_funcs=self.pair_rewards, rollout_func=_roll_out, **kwargs)
            # Given at construction, beta would have TRL load a second model from the Hub.
            self.beta = beta
            self.ref_model = partial(model, bare=True) if beta else None

        def pair_rewards(
            self, prompts: list[int], completion_ids: list[list[int]], log_metric: Any, **_: Any
        ) -> list[float]:
            """Rewards of this process's answers; both images of a pair are seen, whichever process asked them."""
            model, n = self.accelerator.unwrap_model(self.model), self.num_generations
            # Every process calls this once a step and has its rows in order, so the gathered rows are a whole batch.
            levels = torch.tensor(gather_object([ids[-1] for ids in completion_ids])).view(-1, n)
            rewards, numbers = model.rewards(levels, torch.tensor(prompts[::n]), self.gamma)
            for name, value in numbers.items():
                log_metric(name, value)
            return [float(reward) for reward in rewards.flatten()]

        def _get_per_token_logps_and_entropies(
            self, model: Any, input_ids: Tensor, attention_mask: Tensor, *_: Any, **__: Any
        ) -> tuple[Tensor, Tensor, None]:
            return (*model(input_ids, attention_mask), None)

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            if self.args.should_save:
                folder = Path(output_dir or self.args.output_dir)
                folder.mkdir(parents=True, exist_ok=True)
                prompt = self.accelerator.unwrap_model(self.model).prompt
                save_file({"prompt.theta": prompt.theta.detach().cpu().contiguous()}, folder / "model.safetensors")

        def create_model_card(self, *_: Any, **__: Any) -> None:
            """None: a step checkpoint is not for others to read."""

        def _send_telemetry(self) -> None:
            """Nothing about a run leaves the machine."""

    return PromptGRPOTrainer


def train_prompt_trl(
    judge: Judge,
    prompt: PixelPrompt,
    batches: Sequence[Batch],
    config: TrainConfig,
    grpo: GrpoConfig,
    seed: Sequence[int],
    folder: Path,
    on_step: OnStep,
) -> list[dict[str, float]]:
    """Train the prompt in place with TRL's GRPOTrainer; continue from the step checkpoints in ``folder``, if any.

    A step is one batch: ``grpo.answers`` answers to each of its images are drawn from the prompted judge, rewarded by
    ``grpo.answer_rewards`` and compared within their image. The distance to the bare judge is TRL's (k3), with the same
    weights and the prompt taken off. Under torchrun the images of a batch are divided among the processes.

    Args:
        judge: frozen; the prompt is attached to it and left attached.
        prompt: the only thing that changes.
        batches: comparisons to agree with, at least one batch.
        config: steps, optimiser, gamma.
        grpo: number of answers, advantage, distance, rationale.
        seed: coordinates of the round, (seed, round).
        folder: for step checkpoints (prompt, optimiser, schedule, step; a few KB to MB).
        on_step: called with (step, steps, numbers) after each step.

    Returns:
        One record a step: ``step``, ``train/loss``, ``train/lr``, ``train/grad_norm``, ``train/reward``,
        ``train/reward_zero_spread``, and ``train/kl`` where ``grpo.beta`` is above 0.

    Raises:
        JudgeError: when a rationale is asked of a judge that cannot write one.
        RunError: when the loss is not finite.
    """
    with warnings.catch_warnings():
        # The first is experimental, the second will have another name: both are for us to follow, not for users.
        warnings.filterwarnings("ignore", message=".*(rollout_func|gradient_checkpointing)")
        trainer = grpo_trainer(judge, prompt, batches, config, grpo, seed, folder)
        trainer.add_callback(Watch(on_step, config.steps))
        # The Trainer prints its logs itself; ours go through on_step.
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    log = [{**row, "train/kl": row["kl"]} if "kl" in row else row for row in trainer.state.log_history]
    return step_records(log)


def grpo_trainer(
    judge: Judge,
    prompt: PixelPrompt,
    batches: Sequence[Batch],
    config: TrainConfig,
    grpo: GrpoConfig,
    seed: Sequence[int],
    folder: Path,
) -> Any:
    """The GRPOTrainer of ``train_prompt_trl``, before its first step; arguments and errors as there."""
    from accelerate import PartialState
    from datasets import Dataset
    from trl import GRPOConfig

    answers = answers_of(judge, grpo)
    world = PartialState(cpu=judge.device.type == "cpu").num_processes
    width = -(-max(batch.size for batch in batches) // world) * world
    # Leave-one-out is centred times G / (G - 1); TRL knows centred and standardised.
    scale = grpo.answers / (grpo.answers - 1) if grpo.advantage == "leave-one-out" else 1.0
    options = trainer_options(config, seed, folder, judge.device) | {
        "per_device_train_batch_size": width // world * grpo.answers,
        "num_generations": grpo.answers,
        "max_completion_length": grpo.rationale + 1,
        "shuffle_dataset": False,
        "temperature": 1.0,
        "beta": 0.0,
        "use_bias_correction_kl": True,  # k3 times the ratio, as in grpo.grpo_loss: its gradient is that of KL
        "scale_rewards": "group" if grpo.advantage == "standardised" else "none",
        "reward_weights": [scale],
        "loss_type": "dapo",  # a mean over what is not masked, across processes
        "num_iterations": 1,
        "disable_dropout": False,
        "gradient_checkpointing": False,
        "ddp_find_unused_parameters": False,
        "log_completions": False,
    }
    rows = Dataset.from_dict({"prompt": list(range(config.steps * width))})
    model = PromptedJudge(answers, prompt, Steps(batches, config.steps, seed), width)
    arguments = at_judge(GRPOConfig(**options), judge.device)
    return _trainer()(model, grpo.beta, config.gamma, args=arguments, train_dataset=rows, processing_class=_tokenizer())


def _roll_out(prompts: list[int], trainer: Any) -> dict[str, Any]:
    """TRL asks for answers here, to rows that are repeated once for every answer."""
    n, model = trainer.num_generations, trainer.accelerator.unwrap_model(trainer.model)
    rows = torch.tensor(prompts[::n])
    answers = model.draw(rows, n)
    real = (rows % model.width < len(model.batch(rows)[0]["pixels"])).repeat_interleave(n).tolist()
    return {
        "prompt_ids": [[row] for row in prompts],
        "completion_ids": answers,
        "logprobs": None,
        "env_mask": [[int(counts)] * len(answer) for counts, answer in zip(real, answers, strict=True)],
    }


def _tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({_WORD: 0}, unk_token=_WORD))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=_WORD, pad_token=_WORD, unk_token=_WORD)
