"""Rewards teach: a scripted judge whose ratings a prompt can mend, trained on pairs of known order."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BORDER, SIDE, ScriptedJudge, write_toy_images
from PIL import Image

from evoprompt.config import GrpoConfig, Recipe, TrainConfig
from evoprompt.prompts import PixelPrompt, PromptConfig
from evoprompt.stats import srcc
from evoprompt.steps import Batch
from evoprompt.training import train_prompt

GROUP = 8


def scores(judge: ScriptedJudge, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        logits = judge.rate(judge.encode(torch.from_numpy(images).float() / 255), judge.family.rate[0])
    return (torch.softmax(logits, 1) @ torch.arange(1.0, 6.0)).numpy()


@pytest.mark.parametrize(
    "grpo",
    [
        GrpoConfig(),
        GrpoConfig(advantage="centred", beta=0.005),
        GrpoConfig(estimator="sampled"),
        GrpoConfig(estimator="sampled", advantage="leave-one-out", kl="k3", beta=0.005),
    ],
    ids=["exact", "exact-centred", "sampled", "sampled-rloo"],
)
def test_rewards_teach_the_prompt_the_order_of_the_pairs(grpo: GrpoConfig, tmp_path: Path) -> None:
    quality = write_toy_images(tmp_path / "toys", 24)
    files = sorted((tmp_path / "toys").glob("*.png"))
    images = np.stack([np.asarray(Image.open(path)).transpose(2, 0, 1) for path in files])
    first, second = np.triu_indices(GROUP, 1)
    batches = [
        Batch(
            views=lambda rows, k=k: images[k + rows, None],
            pairs=np.stack([first, second], axis=1),
            targets=(quality[k + first] > quality[k + second]).astype(float),
            size=GROUP,
        )
        for k in range(0, len(images), GROUP)
    ]
    judge = ScriptedJudge()
    prompt = PixelPrompt(PromptConfig(kind="border", size=BORDER, blocks=BORDER, strength=0.6, image_size=SIDE))
    before = srcc(scores(judge, images), quality)
    recipe = Recipe(train=TrainConfig(objective="grpo", steps=24, lr=0.06, save_every=24), grpo=grpo)
    log = train_prompt(judge, prompt, batches, recipe, (0, 1), tmp_path / "steps", lambda *_: None)
    assert srcc(scores(judge, images), quality) > max(before + 0.1, 0.9)
    assert log[-1]["train/reward"] > log[0]["train/reward"] + 0.03
    assert log[0]["train/kl"] == pytest.approx(0, abs=1e-6) and log[-1]["train/kl"] > 0.01
