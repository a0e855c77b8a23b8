"""The judge inside the package: complete, small, and able to tell a damaged picture from its original."""

from __future__ import annotations

import importlib.resources
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from evoprompt.degrade import degrade
from evoprompt.judge import NANO, OwlJudge, load_judge, preference_logits
from evoprompt.owl2 import Owl2Config, Owl2ForConditionalGeneration
from evoprompt.questions import FAMILIES, vocabulary

FOLDER = Path(str(importlib.resources.files("evoprompt") / "nano"))
SIDE = 160
DAMAGE = [("gaussian_blur", 4.0), ("white_noise", 4.0), ("jpeg", 5.0), ("low_resolution", 4.0), ("speckle_noise", 4.0)]


@pytest.fixture(scope="module")
def judge() -> OwlJudge:
    return load_judge(NANO, None, "auto", "float32", "cpu")


def scene(seed: int) -> np.ndarray:
    """A drawn picture with shading, edges, thin lines and texture: (160, 160, 3) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    picture = np.stack([0.45 + 0.25 * x + 0.15 * y, 0.5 - 0.2 * x + 0.2 * y, 0.4 + 0.3 * (1 - y)], axis=-1)
    for _ in range(14):
        cx, cy, radius = rng.random(), rng.random(), 0.05 + 0.12 * rng.random()
        inside = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
        shade = (0.7 + 0.6 * (x - cx) / radius / 2)[..., None] * rng.uniform(0.15, 0.85, 3)
        picture = np.where(inside[..., None], shade, picture)
    for _ in range(6):
        slope, start = rng.uniform(-1, 1), rng.random()
        picture[np.abs(y - start - slope * (x - 0.5)) < 0.006] = rng.uniform(0.05, 0.95, 3)
    texture = np.sin(90 * x + 20 * np.sin(9 * y)) * np.sin(70 * y) * (y > 0.6)
    pixels: np.ndarray = np.clip(picture + 0.08 * texture[..., None], 0, 1) * 255
    return pixels.astype(np.uint8)


def seen(judge: OwlJudge, *pictures: np.ndarray) -> torch.Tensor:
    stacked = np.stack([picture.transpose(2, 0, 1) for picture in pictures])
    with torch.no_grad():
        return judge.encode(torch.from_numpy(stacked).float() / 255)


def damaged(kind: str, strength: float, seed: int) -> np.ndarray:
    return degrade(scene(seed), kind, strength, np.random.default_rng(seed))


def test_every_weight_is_in_the_file_and_none_is_left_over() -> None:
    config = Owl2Config(**json.loads((FOLDER / "config.json").read_text(encoding="utf-8")))
    with torch.device("meta"):
        wanted = set(Owl2ForConditionalGeneration(config).state_dict())
    with safe_open(FOLDER / "model.safetensors", "pt") as file:
        assert set(file.keys()) == wanted


def test_package_part_stays_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 30e6


def test_tokenizer_knows_every_word_of_the_questions() -> None:
    words = set(json.loads((FOLDER / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"])
    assert set(vocabulary(FAMILIES["nano"])) <= words


def test_every_answer_is_one_known_token(judge: OwlJudge) -> None:
    for question in (*judge.family.rate, *judge.family.compare):
        ids = [judge.processor.answer_ids(word) for word in question.answers]
        assert all(len(one) == 1 for one in ids)
        assert len({one[0] for one in ids}) == len(question.answers)


def test_family_and_size_come_from_the_config(judge: OwlJudge) -> None:
    assert (judge.family.name, judge.image_size) == ("nano", SIDE)


@pytest.mark.parametrize(("kind", "strength"), DAMAGE)
def test_damage_lowers_the_rating(judge: OwlJudge, kind: str, strength: float) -> None:
    pictures = [picture for seed in range(3) for picture in (scene(seed), damaged(kind, strength, seed))]
    with torch.no_grad():
        chances = judge.rate(seen(judge, *pictures), judge.family.rate[0]).softmax(-1)
    score = (chances * torch.tensor(judge.family.rate[0].values)).sum(-1).view(3, 2).mean(0)
    assert score[0] > score[1]


@pytest.mark.parametrize("question", FAMILIES["nano"].compare, ids=lambda question: question.name)
def test_votes_prefer_the_original_in_both_orders(judge: OwlJudge, question: object) -> None:
    originals = seen(judge, *[scene(seed) for seed in range(3) for _ in DAMAGE[:3]])
    copies = seen(judge, *[damaged(kind, strength, seed) for seed in range(3) for kind, strength in DAMAGE[:3]])
    pairs = torch.arange(2 * len(originals)).view(2, -1).T
    shown_first, shown_second = preference_logits(judge, torch.cat([originals, copies]), pairs, question)  # type: ignore[arg-type]
    assert shown_first.mean() > 0
    assert shown_second.mean() > 0
