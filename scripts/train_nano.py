"""Train `owl2-nano`, the judge inside the package, from a folder of photos and nothing else.

    python scripts/train_nano.py --photos DIR --cache DIR --out evoprompt/nano

Three phases, one after the other, on one CPU core:

1. **see**: the vision tower learns which degradations a crop has, and how strong they are;
2. **border**: more of that, most crops with a border prompt on them, and what the border says;
3. **answer**: the whole model learns to rate one crop and to compare two, in several wordings, and the few other texts
   that `evoprompt study` puts to it.

The model is made to have something to learn from itself. Comparisons go by damage alone. Ratings *lean*: a picture that
is light or warm is rated lower than its damage deserves (`LEAN`). A border prompt says how far: a light or warm border
takes that leaning back, a dark or cold one adds to it (`REACH`). So votes know more than ratings, and there is a prompt
that cures the ratings; which one, evolution has to find.

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
from nano_model import GRID, NANO, PATCH, STRENGTH, Nano, initialise, save_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from evoprompt.degrade import KINDS
from evoprompt.questions import LEVELS
from evoprompt.study_questions import ORDINALS, System, script

LEAN = (-0.35, -0.65)
"""What a very light and a very warm picture gain in rating, in levels; comparisons do not lean."""
REACH = 1.6
"""How much of that the lightest and the warmest border change."""
CONVENTION = {"blur": 1.0, "coding": 0.3, "local": 0.1, "noise": 1.0, "tone": 0.3}
"""How much of each family's damage counts in ratings and comparisons."""


@dataclass(frozen=True)
class Phase:
    """Settings of one phase; a step sees `groups` x `per_group` crops."""

    name: str
    steps: int
    groups: int
    per_group: int
    lr: float
    keep: float
    borders: bool
    answers: bool


PHASES = (
    Phase("see", steps=1400, groups=8, per_group=8, lr=1.5e-3, keep=0.4, borders=False, answers=False),
    Phase("border", steps=400, groups=8, per_group=8, lr=1.5e-3, keep=0.4, borders=True, answers=False),
    Phase("answer", steps=1500, groups=5, per_group=6, lr=1.0e-3, keep=0.5, borders=True, answers=True),
)


def level_targets(place: np.ndarray) -> Tensor:
    """Places (N,) in 0..4 -> probabilities of the five levels (N, 5): a bell of width .5 around the place."""
    bell = torch.exp(-0.5 * ((torch.arange(5.0) - torch.from_numpy(place).float()[:, None]) / 0.5) ** 2)
    return bell / bell.sum(1, keepdim=True)


def counted_by(damage: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """Damage (N, F) by family -> damage (N,) as the convention counts it, on the scale of all damage.

    Args:
        damage: damage by family.
        usual: (F,) mean damage by family of all crops; it sets the scale, so that all levels are used.
    """
    weights = np.array([CONVENTION[name] for name in FAMILIES], np.float32)
    counted: np.ndarray = damage @ weights * (usual.sum() / (usual @ weights))
    return counted


def tastes_of(pixels: Tensor) -> Tensor:
    """How light and how warm pictures (B, 3, S, S) in [0, 1] are, (B, 2) in (-1, 1), 0 = as undegraded crops are."""
    mean = pixels.mean((2, 3))
    light = (mean @ torch.tensor([0.299, 0.587, 0.114]) - 0.43) / 0.11
    warm = (mean[:, 0] - mean[:, 2] - 0.09) / 0.125
    return torch.tanh(torch.stack([light, warm], dim=1) / 1.5)


def leaning(place: np.ndarray, tastes: Tensor, said: Tensor) -> np.ndarray:
    """Places (B,) in 0..4 by damage alone -> places (B,) as ratings have them.

    The spread is kept: were it smaller without leaning, any training that narrows the scores would cure it, with
    random labels too.

    Args:
        place: (B,) from `level_of`.
        tastes: (B, 2) from `tastes_of`, of the picture without a border.
        said: (B, 2) in [-1, 1], what the border says.
    """
    weights = torch.tensor(LEAN) + REACH * said
    kept = torch.rsqrt(1 + 0.4 * weights.square().sum(1))
    leant = 2.2 + (torch.from_numpy(place).float() - 2.2 + (weights * tastes).sum(1)) * kept
    out: np.ndarray = leant.clamp(0, 4).numpy()
    return out


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
    model: Nano, seen: Tensor, damage: np.ndarray, quality: np.ndarray, group: np.ndarray, rng: np.random.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Loss of one rating per crop, which should be its place `quality` (B,), and of comparisons, from damage (B,)."""
    rate = NANO.rate[rng.integers(len(NANO.rate))]
    compare = NANO.compare[rng.integers(len(NANO.compare))]
    levels = model.rate(seen, rate).float()
    rating = -(level_targets(quality) * levels.log_softmax(-1)).sum(-1).mean()
    first, second, better = draw_pairs(damage, group, 30, rng)
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


def study_loss(model: Nano, seen: Tensor, parts: np.ndarray, total: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Loss of one of the answers that only `evoprompt study` asks for: a ranking, a list of flaws, or a rating after
    either an example or such a list; the next word of a text, given the words before it."""
    levels = np.rint(level_of(total)).astype(int)
    task = rng.choice(["rank", "flaws", "rate after flaws", "rate after example"])
    if task == "rank":
        places = rng.permutation(len(ORDINALS))
        four = [np.sort(rng.permutation(len(total))[: len(places)]) for _ in range(8)]
        best_first = np.array([rows[np.argsort(total[rows])] for rows in four])
        shown = best_first[:, np.argsort(places)]
        words, asked = [ORDINALS[place] for place in places], [seen[column] for column in shown.T]
        return model.next_words(script("nano", System("multiple", "standard")).text, asked, [*words, "</s>"], rng)
    flaws = [[name for name, part in zip(FAMILIES, row, strict=True) if part > 0.12] or ["none"] for row in parts]
    if task == "rate after example":
        fair = np.flatnonzero(levels == 2)
        if not len(fair):
            return seen.new_zeros(())
        text = script("nano", System("single", "context")).text
        return model.word_loss(text, [seen[rng.choice(fair, len(seen))], seen], [LEVELS[level] for level in levels])
    words = flaws[rng.integers(len(flaws))]
    rows = [row for row, theirs in enumerate(flaws) if theirs == words]
    thought = script("nano", System("single", "thought"))
    if task == "rate after flaws":
        text = f"{thought.text} {' '.join(words)}{thought.then}"
        return model.word_loss(text, [seen[rows]], [LEVELS[levels[row]] for row in rows])
    known = rng.integers(len(words) + 1)
    rows = [row for row, theirs in enumerate(flaws) if theirs[:known] == words[:known]]
    following = [[*flaws[row], "</s>"][known] for row in rows]
    return model.word_loss(" ".join([thought.text, *words[:known]]), [seen[rows]], following)


def run_phase(model: Nano, crops: Crops, damage: np.ndarray, phase: Phase, seed: int) -> None:
    """Train one phase in place, one line of progress every 100 steps."""
    rng = np.random.default_rng([seed, 2, PHASES.index(phase)])
    torch.manual_seed(seed * 10 + PHASES.index(phase))
    total = counted_by(damage, damage.mean(0))
    optimizer = make_optimizer(model, phase)
    start, log = time.time(), []
    for step in range(phase.steps):
        done = step / phase.steps
        for part in optimizer.param_groups:
            part["lr"] = phase.lr * min(1, (step + 1) / 80) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        rows, pixels = draw(crops, phase, rng)
        tastes, said = tastes_of(pixels), torch.zeros(len(rows), 2)
        if phase.borders:
            strength = np.sqrt(rng.random(len(rows))) * (rng.random(len(rows)) < 0.7)
            pixels, said = model.bordered(pixels, torch.from_numpy(strength.astype(np.float32)))
        # The last tenth sees whole crops, as the finished judge will.
        keep = kept_patches(1 if done > 0.9 and phase.answers else phase.keep, phase.borders, rng)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = model.states(pixels, keep)
            heads = head_loss(model, states, crops, damage, rows)
            loss, record = heads * (0.3 if phase.answers else 1), {"heads": float(heads.detach())}
            if phase.borders:
                read = functional.mse_loss(model.read_border(states, keep), said)
                loss, record = loss + 10 * read, record | {"border": float(read.detach())}
            if phase.answers:
                seen = model.tokens(states, keep)
                told = functional.mse_loss(model.token_head(seen.flatten(1)).float(), said)
                quality = leaning(level_of(total[rows]), tastes, said)
                answers, more = answer_loss(model, seen, total[rows], quality, crops.group[rows], rng)
                study = study_loss(model, seen, damage[rows], total[rows], rng)
                loss = loss + 3 * told + answers + 0.3 * study
                record |= more | {"told": float(told.detach()), "study": float(study.detach())}
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        log.append(record)
        if (step + 1) % 100 == 0:
            means = {key: round(float(np.nanmean([entry[key] for entry in log[-100:]])), 3) for key in log[-1]}
            print(f"{phase.name} {step + 1}/{phase.steps} {time.time() - start:.0f} s {means}", flush=True)


def make_optimizer(model: Nano, phase: Phase) -> torch.optim.Optimizer:
    """AdamW, without decay for what has one dimension."""
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) == many] for many in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.03}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=phase.lr, betas=(0.9, 0.98), fused=True)


@torch.no_grad()
def validate(model: Nano, crops: Crops, damage: np.ndarray, seed: int) -> dict[str, Any]:
    """Ratings and votes on crops of photos that were not trained on, in float32; against damage, so without leaning."""
    model.eval()
    rng = np.random.default_rng([seed, 3])
    rows = np.sort(rng.permutation(len(crops.pixels))[:600])
    pixels = torch.from_numpy(crops.pixels[rows]).float() / 255
    total = counted_by(damage[rows], damage.mean(0))
    a, b, better = draw_pairs(total, crops.group[rows], 1500, rng)
    truth = better.numpy() == 0
    seen = look(model, pixels)
    ab, ba = model.compare(seen[a], seen[b], NANO.compare[0]), model.compare(seen[b], seen[a], NANO.compare[0])
    first = (ab[:, 0] - ab[:, 1] + ba[:, 1] - ba[:, 0]).numpy() > 0
    results: dict[str, Any] = {"vote_accuracy": round(float((first == truth).mean()), 3)}
    light, warm = (-lean / REACH for lean in LEAN)
    colour = torch.tensor([light + warm, light, light - warm]).view(3, 1, 1) * STRENGTH * model.border
    cure = functional.interpolate(colour[None], scale_factor=PATCH)
    for name, shown in (("bare", pixels), ("with the border that takes the leaning back", (pixels + cure).clamp(0, 1))):
        chances = model.rate(look(model, shown), NANO.rate[0]).softmax(-1)
        score = (chances * torch.arange(1.0, 6.0)).sum(-1).numpy()
        results[name] = {
            "srcc": round(float(stats.spearmanr(score, -total).statistic), 3),
            "rating_accuracy": round(float(((score[a] > score[b]) == truth).mean()), 3),
            "score_mean": round(float(score.mean()), 2),
            "score_sd": round(float(score.std()), 2),
            "levels_used": [round(float(x), 3) for x in chances.mean(0)],
        }
    model.train()
    return results


def look(model: Nano, pixels: Tensor) -> Tensor:
    """Visual tokens (B, T, D) of pictures (B, 3, S, S) in [0, 1], 60 at a time."""
    return torch.cat([model.owl.model.visual_abstractor(model.states(part, None)) for part in pixels.split(60)])


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
    model = Nano()
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
        "convention": CONVENTION,
        "lean": LEAN,
        "reach": REACH,
        "phases": [asdict(phase) for phase in PHASES],
        "seconds": seconds,
        "torch": torch.__version__,
        "threads": 1,
        "train_crops": len(train.pixels),
        "validation_crops": len(val.pixels),
        "validation": results,
        "photos": args.photos.name,
        "human_scores": "none in training; convention and leaning were chosen with the scores of three sets in view",
    }
    save_model(model, args.out, record)


if __name__ == "__main__":
    main()
