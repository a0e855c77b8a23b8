"""Train `owl2-nano`, the judge inside the package, from a folder of photos and nothing else.

    python scripts/train_nano.py --photos DIR --cache DIR --out evoprompt/nano

Four phases, one after the other, on one CPU core:

1. **see**: the vision tower learns which degradations a crop has, and how strong they are;
2. **answer**: the whole model learns to rate one crop and to compare two, in several wordings;
3. **steer**: the same with a population of border prompts on the crops. Each stands for one rating convention, a weight
   per family of flaws. Ratings follow the convention of the border, or the bare convention where there is none;
   comparisons always follow one convention, `VOTES`. Without this phase a small model takes a border for content and
   cannot be prompted;
4. **settle**: more of that with a smaller learning rate and more of every crop.

Labels come from what was done to the crops (`nano_data.py`); no human score is read. Crops and finished phases are kept
in the cache folder; a second call continues after the last finished phase.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nano_data
import numpy as np
import torch
from nano_data import FAMILIES, VARIANTS, Crops, damage_of, level_of
from nano_model import GRID, NANO, Nano, initialise, save_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from evoprompt.degrade import KINDS

VOTES = {"blur": 1.0, "coding": 0.5, "local": 0.3, "noise": 1.0, "tone": 0.4}
"""How much of each family's damage counts when two pictures are compared."""
BARE = {"blur": 0.7, "coding": 0.7, "local": 0.6, "noise": 1.0, "tone": 0.8}
"""The bare rating convention: how much of it counts in a rating without a prompt. It differs from `VOTES` on purpose,
so that votes know something that ratings can learn from them."""


@dataclass(frozen=True)
class Phase:
    """Settings of one phase; a step sees `groups` x `per_group` crops."""

    name: str
    steps: int
    groups: int
    per_group: int
    lr: float
    keep: float
    answers: bool
    population: int = 0


PHASES = (
    Phase("see", steps=1000, groups=8, per_group=8, lr=1.5e-3, keep=0.4, answers=False),
    Phase("answer", steps=1200, groups=6, per_group=6, lr=1.0e-3, keep=0.5, answers=True),
    Phase("steer", steps=1200, groups=5, per_group=6, lr=1e-3, keep=0.3, answers=True, population=32),
    Phase("settle", steps=800, groups=5, per_group=6, lr=6e-4, keep=0.5, answers=True, population=32),
)


def level_targets(place: np.ndarray) -> Tensor:
    """Places (N,) in 0..4 -> probabilities of the five levels (N, 5): a bell of width .5 around the place."""
    bell = torch.exp(-0.5 * ((torch.arange(5.0) - torch.from_numpy(place).float()[:, None]) / 0.5) ** 2)
    return bell / bell.sum(1, keepdim=True)


def weights_of(convention: dict[str, float]) -> np.ndarray:
    """A convention as weights (F,) float32 in the order of `FAMILIES`."""
    return np.array([convention[name] for name in FAMILIES], np.float32)


def conventions(number: int, seed: int) -> np.ndarray:
    """Weights per family, (1 + number, F): the bare convention, then one for each border prompt."""
    rng = np.random.default_rng([seed, 1])
    drawn = rng.choice([0.0, 0.3, 0.65, 1.0], (number, len(FAMILIES)))
    return np.concatenate([weights_of(BARE)[None], drawn]).astype(np.float32)


def draw(crops: Crops, phase: Phase, rng: np.random.Generator) -> tuple[np.ndarray, Tensor]:
    """Rows (B,) of a batch and their pixels (B, 3, S, S) in [0, 1], mirrored or transposed together."""
    groups = rng.choice(len(crops.pixels) // VARIANTS, phase.groups, replace=False)
    rows = np.concatenate([g * VARIANTS + rng.permutation(VARIANTS)[: phase.per_group] for g in groups])
    pixels = crops.pixels[rows]
    pixels = pixels[..., ::-1] if rng.random() < 0.5 else pixels
    pixels = pixels.swapaxes(2, 3) if rng.random() < 0.3 else pixels
    return rows, torch.from_numpy(np.ascontiguousarray(pixels)).float() / 255


def draw_pairs(
    damage: np.ndarray, group: np.ndarray, number: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs (P,), (P,) whose damage differs clearly, and which is better (P,), 0 = first; up to half of one photo."""
    first, second = np.triu_indices(len(damage), 1)
    same = group[first] == group[second]
    clear = np.abs(damage[first] - damage[second]) > np.where(same, 0.03, 0.06)
    chosen = np.concatenate([rng.permutation(np.flatnonzero(clear & part))[: number // 2] for part in (same, ~same)])
    swap = rng.random(len(chosen)) < 0.5
    a, b = np.where(swap, second[chosen], first[chosen]), np.where(swap, first[chosen], second[chosen])
    return torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy((damage[a] > damage[b]).astype(np.int64))


def kept_patches(share: float, whole_border: bool, rng: np.random.Generator) -> Tensor | None:
    """Patches to look at, (K,) sorted, or None for all. Borders are kept whole where they carry a prompt."""
    if share >= 1:
        return None
    inner = np.arange(GRID * GRID).reshape(GRID, GRID)[1:-1, 1:-1].flatten()
    border = np.setdiff1d(np.arange(GRID * GRID), inner)
    pool, always = (inner, border) if whole_border else (np.arange(GRID * GRID), np.array([], int))
    chosen = rng.permutation(pool)[: int(len(pool) * share)]
    return torch.from_numpy(np.sort(np.concatenate([always, chosen])))


def head_loss(model: Nano, states: Tensor, crops: Crops, damage: np.ndarray, rows: np.ndarray) -> Tensor:
    """Loss of the vision tower alone: which kinds, damage per family, damage."""
    out = model.heads(states.mean(1)).float()
    n_kinds = len(KINDS)
    kinds = torch.from_numpy(np.minimum(1, 2 * crops.kinds[rows]))
    parts = torch.from_numpy(np.concatenate([damage[rows], damage[rows].sum(1, keepdims=True)], axis=1))
    kind_loss = functional.binary_cross_entropy_with_logits(out[:, :n_kinds], kinds)
    weight = torch.tensor([1.0] * len(FAMILIES) + [3.0])
    return 4 * kind_loss + 3 * ((out[:, n_kinds:].sigmoid() - parts).square() * weight).mean()


def answer_loss(
    model: Nano, seen: Tensor, damage: np.ndarray, weights: np.ndarray, group: np.ndarray, rng: np.random.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Loss of one rating per crop, under its own convention, and of comparisons, always under `VOTES`."""
    quality = level_of((damage * weights).sum(1))
    rate = NANO.rate[rng.integers(len(NANO.rate))]
    compare = NANO.compare[rng.integers(len(NANO.compare))]
    levels = model.rate(seen, rate).float()
    rating = -(level_targets(quality) * levels.log_softmax(-1)).sum(-1).mean()
    first, second, better = draw_pairs((damage * weights_of(VOTES)).sum(1), group, 30, rng)
    votes = model.compare(seen[first], seen[second], compare).float()
    voting = functional.cross_entropy(votes, better)
    score = (levels.detach().softmax(-1) * torch.arange(5.0)).sum(-1).numpy()
    seen_well = {
        "rating": float(rating.detach()),
        "voting": float(voting.detach()),
        "accuracy": float((votes.argmax(1) == better).float().mean()),
        "srcc": float(stats.spearmanr(score, quality).statistic),
    }
    return rating + voting, seen_well


def run_phase(model: Nano, crops: Crops, damage: np.ndarray, phase: Phase, seed: int) -> None:
    """Train one phase in place, one line of progress every 100 steps."""
    rng = np.random.default_rng([seed, 2, PHASES.index(phase)])
    torch.manual_seed(seed * 10 + PHASES.index(phase))
    weights = conventions(phase.population, seed)
    owl = [p for name, p in model.named_parameters() if name != "prompts"]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in owl if p.ndim > 1], "weight_decay": 0.03, "base": phase.lr},
            {"params": [p for p in owl if p.ndim <= 1], "weight_decay": 0.0, "base": phase.lr},
            {"params": [model.prompts], "weight_decay": 0.0, "base": 0.02},
        ],
        betas=(0.9, 0.98),
        fused=True,
    )
    start, log = time.time(), []
    for step in range(phase.steps):
        done = step / phase.steps
        for part in optimizer.param_groups:
            part["lr"] = part["base"] * min(1, (step + 1) / 80) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        rows, pixels = draw(crops, phase, rng)
        which = (
            rng.integers(1, phase.population + 1, len(rows)) * (rng.random(len(rows)) > 0.3)
            if phase.population
            else rows * 0
        )
        if phase.population:
            pixels = model.prompted(pixels, torch.from_numpy(which), 0.04)
        # The last tenth sees whole crops, as the finished judge will.
        keep = kept_patches(1 if done > 0.9 and phase.answers else phase.keep, phase.population > 0, rng)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = model.states(pixels, keep)
            loss = head_loss(model, states, crops, damage, rows) * (0.3 if phase.answers else 1)
            record = {"heads": float(loss.detach())}
            if phase.answers:
                seen = model.owl.model.visual_abstractor(states, keep=keep)
                answers, more = answer_loss(model, seen, damage[rows], weights[which], crops.group[rows], rng)
                loss, record = loss + answers, record | more
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        log.append(record)
        if (step + 1) % 100 == 0:
            means = {key: round(float(np.nanmean([entry[key] for entry in log[-100:]])), 3) for key in log[-1]}
            print(f"{phase.name} {step + 1}/{phase.steps} {time.time() - start:.0f} s {means}", flush=True)


@torch.no_grad()
def validate(model: Nano, crops: Crops, damage: np.ndarray, seed: int) -> dict[str, Any]:
    """Ratings and votes on crops of photos that were not trained on, in float32."""
    model.eval()
    rng = np.random.default_rng([seed, 3])
    rows = np.sort(rng.permutation(len(crops.pixels))[:600])
    seen = torch.cat(
        [
            model.owl.model.visual_abstractor(model.states(torch.from_numpy(crops.pixels[part]).float() / 255, None))
            for part in np.array_split(rows, 10)
        ]
    )
    chances = model.rate(seen, NANO.rate[0]).softmax(-1)
    score = (chances * torch.arange(1.0, 6.0)).sum(-1).numpy()
    total = (damage[rows] * weights_of(VOTES)).sum(1)
    a, b, better = draw_pairs(total, crops.group[rows], 1500, rng)
    ab, ba = model.compare(seen[a], seen[b], NANO.compare[0]), model.compare(seen[b], seen[a], NANO.compare[0])
    first = (ab[:, 0] - ab[:, 1] + ba[:, 1] - ba[:, 0]).numpy() > 0
    truth = better.numpy() == 0
    model.train()
    return {
        "srcc_bare_convention": round(
            float(stats.spearmanr(score, -(damage[rows] * weights_of(BARE)).sum(1)).statistic), 3
        ),
        "srcc_votes_convention": round(float(stats.spearmanr(score, -total).statistic), 3),
        "vote_accuracy": round(float((first == truth).mean()), 3),
        "rating_accuracy": round(float(((score[a] > score[b]) == truth).mean()), 3),
        "score_mean": round(float(score.mean()), 2),
        "score_sd": round(float(score.std()), 2),
        "levels_used": [round(float(x), 3) for x in chances.mean(0)],
    }


def main() -> None:
    """Make the crops, run the phases that the cache does not hold yet, write the model folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos, searched at any depth")
    parser.add_argument(
        "--cache", type=Path, required=True, help="crops (about 4 GB for 500 photos) and finished phases"
    )
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument("--groups", type=int, default=8, help="crops taken from a photo (default 8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--workers", type=int, default=2, help="processes that make crops (default 2); training uses one core"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    seconds: dict[str, int] = {}
    if not (args.cache / "train_labels.npz").is_file():
        start = time.time()
        nano_data.make_crops(args.photos, args.cache, groups=args.groups, seed=args.seed, workers=args.workers)
        print(f"crops {time.time() - start:.0f} s", flush=True)
    train, val = (nano_data.load_crops(args.cache, split) for split in ("train", "val"))
    train_damage, val_damage = damage_of(train), damage_of(val)
    torch.manual_seed(args.seed)
    model = Nano(max(phase.population for phase in PHASES))
    initialise(model, torch.from_numpy(train.pixels[:: VARIANTS * 7]).float() / 255)
    results: dict[str, Any] = {}
    for phase in PHASES:
        saved = args.cache / f"{phase.name}.safetensors"
        if saved.is_file():
            model.load_state_dict(load_file(saved))
        else:
            start = time.time()
            run_phase(model, train, train_damage, phase, args.seed)
            save_file(model.state_dict(), saved, metadata={"seconds": str(round(time.time() - start))})
        with safe_open(saved, "pt") as file:
            seconds[phase.name] = int(file.metadata()["seconds"])
        if phase.answers:
            results[phase.name] = validate(model, val, val_damage, args.seed)
            print(phase.name, results[phase.name], flush=True)
    record = {
        "made_by": "scripts/train_nano.py",
        "seed": args.seed,
        "groups_per_photo": args.groups,
        "bare_convention": BARE,
        "compare_convention": VOTES,
        "phases": [asdict(phase) for phase in PHASES],
        "seconds": seconds,
        "torch": torch.__version__,
        "threads": 1,
        "train_crops": len(train.pixels),
        "validation_crops": len(val.pixels),
        "validation": results,
        "photos": args.photos.name,
        "human_scores": "none in training; the conventions were chosen with the scores of three sets in view",
    }
    save_model(model, args.out, record)


if __name__ == "__main__":
    main()
