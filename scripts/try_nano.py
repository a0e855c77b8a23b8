"""Measure a nano judge against human scores: ratings, votes, and what border prompts can learn.

    python scripts/try_nano.py --labels MOS.csv [--judge owl2-nano] [--side 432] [--seeds 2] [--no-prompts]

Three tables. *Bare*: SRCC of the ratings and how they are spread. *Pairs*: accuracy of votes and of ratings on pairs of
images with different human scores. *Prompts*: on held-out images, the gain in SRCC by prompts learnt on the others from
human scores, from the votes of the bare judge, and from coin tosses; human scores teach only the first of the three.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from evoprompt import stats
from evoprompt.config import TrainConfig
from evoprompt.images import fit_image, read_image
from evoprompt.judge import OwlJudge, load_judge, preference_logits
from evoprompt.labels import read_labels
from evoprompt.objectives import rating_fidelity
from evoprompt.prompts import PixelPrompt, PromptConfig
from evoprompt.scoring import score_views

VIEWS = 4
CONFIDENCE = 0.6
GROUP = 16


def load_views(labels: Path, side: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tiles (N, 4, 3, size, size) uint8, human scores (N,) and content names (N,) of a labelled set.

    The content name is the column `source` where there is one; images of one content are never split.
    """
    table = read_labels(labels)
    views = []
    for record in table.records:
        image = read_image(record.path)
        if side:
            image = image.resize((side, side), Image.Resampling.BICUBIC)
        views.append(fit_image(image, "tiles", size, VIEWS))
    lines = [line.split(",") for line in labels.read_text(encoding="utf-8").splitlines()]
    column = lines[0].index("source") if "source" in lines[0] else 0
    return np.stack(views), table.mos, np.array([line[column] for line in lines[1:]])


def chunks(views: np.ndarray) -> list[np.ndarray]:
    """The views in parts of about 32 images, to bound memory."""
    return list(np.array_split(views, max(1, len(views) // 32)))


def encode(judge: OwlJudge, views: np.ndarray) -> Tensor:
    """Views (N, V, 3, S, S) uint8 -> visual tokens (N, V, T, D)."""
    with torch.no_grad():
        parts = [judge.encode(torch.from_numpy(part).flatten(0, 1).float() / 255) for part in chunks(views)]
    return torch.cat(parts).view(*views.shape[:2], *parts[0].shape[1:])


def scores(judge: OwlJudge, views: np.ndarray, prompt: PixelPrompt | None = None) -> np.ndarray:
    """Scores (N,) in [1, 5] under a prompt."""
    judge.attach(prompt)
    parts = [score_views(judge, part)[0] for part in chunks(views)]
    judge.attach(None)
    return np.concatenate(parts)


def votes(judge: OwlJudge, seen: Tensor, pairs: np.ndarray, wordings: int) -> np.ndarray:
    """Share of the votes for the first of each pair (P,), over views and wordings, order bias removed."""
    shares = []
    for view in range(seen.shape[1]):
        for question in judge.family.compare[:wordings]:
            ab, ba = preference_logits(judge, seen[:, view], torch.from_numpy(pairs), question)
            shares.append(torch.sigmoid((ab + ba) / 2))
    return torch.stack(shares).mean(0).numpy()


def learn(
    judge: OwlJudge, views: np.ndarray, mos: np.ndarray, seen: Tensor, source: str, seed: int, steps: int, lr: float
) -> PixelPrompt:
    """A border prompt learnt in `steps` steps of 16 images from targets of one source: human, votes or random."""
    rng = np.random.default_rng(seed)
    prompt = PixelPrompt(PromptConfig(kind="border", image_size=judge.image_size, size=16, blocks=16, strength=0.6))
    optimizer = torch.optim.Adam(prompt.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    values = torch.tensor(judge.family.rate[0].values)
    first, second = np.triu_indices(GROUP, 1)
    for _ in range(steps):
        chosen = rng.permutation(len(mos))[:GROUP]
        pairs = np.stack([first, second], axis=1)
        if source == "votes":
            share = votes(judge, seen[chosen], pairs, 2)
            pairs, share = pairs[abs(share - 0.5) > CONFIDENCE - 0.5], share[abs(share - 0.5) > CONFIDENCE - 0.5]
            target = (share > 0.5).astype(np.float32)
        elif source == "human":
            target = (mos[chosen[first]] > mos[chosen[second]]).astype(np.float32)
        else:
            target = rng.integers(0, 2, len(pairs)).astype(np.float32)
        pixels = torch.from_numpy(views[chosen, rng.integers(0, views.shape[1], GROUP)]).float() / 255
        logits = judge.rate(judge.encode(prompt(pixels)), judge.family.rate[0])
        loss = rating_fidelity(logits, values, torch.from_numpy(pairs), torch.from_numpy(target), TrainConfig())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return prompt


def main() -> None:
    """Print the three tables of one labelled set."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--labels", type=Path, required=True, help="CSV with an image and a score column, higher = better"
    )
    parser.add_argument("--judge", default="owl2-nano", help="judge id or folder")
    parser.add_argument("--side", type=int, default=0, help="resize every image to this square first; 0 = as it is")
    parser.add_argument("--pairs", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--no-prompts", action="store_true", help="only the first two tables")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.time()
    judge = load_judge(args.judge, None, "nano", "float32", "cpu")
    views, mos, content = load_views(args.labels, args.side, judge.image_size)
    bare = scores(judge, views)
    low, high = np.quantile(bare, [0.05, 0.95])
    print(f"judge {judge.id} {judge.revision}, {args.labels.parent.name}, {len(mos)} images")
    print(
        f"bare: SRCC {stats.srcc(bare, mos):.3f}, mean {bare.mean():.2f}, sd {bare.std():.2f}, "
        f"5-95 % {low:.2f}-{high:.2f}"
    )

    rng = np.random.default_rng(1)
    names = rng.permutation(np.unique(content))
    held = np.isin(content, names[: len(names) * 2 // 5])
    test, train = np.flatnonzero(held), np.flatnonzero(~held)
    pairs = rng.integers(0, len(test), (args.pairs, 2))
    gap = mos[test[pairs[:, 0]]] - mos[test[pairs[:, 1]]]
    pairs, gap = pairs[gap != 0], gap[gap != 0]
    seen_test, by_rating = encode(judge, views[test]), bare[test[pairs[:, 0]]] > bare[test[pairs[:, 1]]]
    line = [f"pairs ({len(pairs)}): ratings {np.mean(by_rating == (gap > 0)):.3f}"]
    for wordings in (1, len(judge.family.compare)):
        share = votes(judge, seen_test, pairs, wordings)
        line.append(f"votes with {wordings} wording(s) {np.mean((share > 0.5) == (gap > 0)):.3f}")
    sure = abs(share - 0.5) > CONFIDENCE - 0.5
    line.append(f"confident votes {np.mean((share > 0.5)[sure] == (gap > 0)[sure]):.3f} ({sure.mean():.0%} of pairs)")
    print(", ".join(line), flush=True)
    if args.no_prompts:
        return
    seen = encode(judge, views[train])
    zero = stats.srcc(bare[test], mos[test])
    print(f"prompts: {len(train)} images to learn from, {len(test)} held out, bare SRCC there {zero:.3f}")
    for source in ("human", "votes", "random"):
        gains, spread = [], []
        for seed in range(args.seeds):
            prompt = learn(judge, views[train], mos[train], seen, source, seed, args.steps, args.lr)
            after = scores(judge, views[test], prompt)
            gains.append(stats.srcc(after, mos[test]) - zero)
            spread.append(f"{after.mean():.2f}/{after.std():.2f}")
        print(
            f"  {source:6s} gain {' '.join(f'{gain:+.3f}' for gain in gains)}  mean/sd {' '.join(spread)}", flush=True
        )
    print(f"{time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
