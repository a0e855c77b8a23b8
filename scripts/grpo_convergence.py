"""Measure how fast the sampled GRPO gradient tends to the exact one as the number of drawn answers grows.

    python scripts/grpo_convergence.py

One batch of twelve example images, rated by the embedded judge under a small random prompt, labelled by its own votes.
The gradient with respect to the prompt is exact where all answers are summed; drawing G answers gives another one each
time. Writes docs/results/grpo_convergence.md; takes about a minute.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from evoprompt.config import GrpoConfig, PixelConfig, TrainConfig  # noqa: E402
from evoprompt.grpo import grpo_loss  # noqa: E402
from evoprompt.images import fit_image, read_image, scan_images  # noqa: E402
from evoprompt.judge import load_judge, preference_logits  # noqa: E402
from evoprompt.prompts import PixelPrompt, PromptConfig  # noqa: E402

IMAGES, DRAWS = 12, 300
GROUPS = (4, 8, 32, 256)
VALUES = torch.arange(1.0, 6.0, dtype=torch.float64)
GAMMA = TrainConfig().gamma


def rate_batch() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, str]:
    """Prompted logits (B, 5), bare logits (B, 5), their Jacobian (B * 5, prompt), pairs (P, 2), votes (P,), judge."""
    judge = load_judge("owl2-nano", None, "auto", "float32", "cpu")
    records = scan_images([ROOT / "examples"]).records
    chosen = [records[k * len(records) // IMAGES] for k in range(IMAGES)]
    views = np.concatenate([fit_image(read_image(r.path), judge.family.fit, judge.image_size, 1) for r in chosen])
    pixels = torch.from_numpy(views).float() / 255
    pairs = torch.combinations(torch.arange(IMAGES))
    question = judge.family.rate[0]
    with torch.no_grad():
        seen = judge.encode(pixels)
        bare = judge.rate(seen, question)
        ab, ba = preference_logits(judge, seen, pairs, judge.family.compare[0])
    shape = PixelConfig()
    prompt = PixelPrompt(
        PromptConfig(
            kind=shape.kind, size=shape.size, blocks=shape.blocks, strength=shape.strength, image_size=judge.image_size
        )
    )
    (theta,) = prompt.parameters()
    theta.data = 0.3 * torch.randn(theta.shape, generator=torch.Generator().manual_seed(0))
    judge.attach(prompt)
    logits = judge.rate(judge.encode(pixels), question)
    rows = [torch.autograd.grad(z, theta, retain_graph=True)[0].flatten() for z in logits.flatten()]
    name = f"{judge.id}@{judge.revision}"
    return logits.detach().double(), bare.double(), torch.stack(rows).double(), pairs, ((ab + ba) > 0).double(), name


class Step:
    """One batch, at a given sureness of its ratings: its gradients with respect to the prompt."""

    def __init__(
        self, logits: Tensor, bare: Tensor, jacobian: Tensor, pairs: Tensor, targets: Tensor, sureness: float
    ) -> None:
        self.logits, self.bare = (sureness * logits).requires_grad_(), sureness * bare
        self.jacobian, self.pairs, self.targets = sureness * jacobian, pairs, targets

    def gradient(self, config: GrpoConfig, draw: torch.Generator | None = None) -> tuple[Tensor, dict[str, float]]:
        """Gradient with respect to the prompt's values, and the numbers to watch."""
        loss, watched = grpo_loss(
            self.logits, self.bare, VALUES, self.pairs, self.targets, config, GAMMA, generator=draw
        )
        (slope,) = torch.autograd.grad(loss, self.logits)
        return slope.flatten() @ self.jacobian, watched

    def errors(self, config: GrpoConfig, exact: Tensor) -> tuple[float, float, float, float]:
        """Error of one draw, error of the mean of all, what of that is chance, share of groups without spread."""
        draw = torch.Generator().manual_seed(0)
        found = [self.gradient(config, draw) for _ in range(DRAWS)]
        drawn = torch.stack([gradient for gradient, _ in found])
        size, mean = exact.norm(), drawn.mean(dim=0)
        one = (drawn - exact).square().sum(dim=1).mean().sqrt() / size
        chance = (drawn.var(dim=0).sum() / DRAWS).sqrt() / size
        still = sum(watched["reward_zero_spread"] for _, watched in found) / DRAWS
        return float(one), float((mean - exact).norm() / size), float(chance), still


def reward_rows(step: Step, label: str) -> Iterator[str]:
    """Table rows of the reward, against the exact gradient with the same kind of advantages."""
    for kind in ("centred", "standardised", "leave-one-out"):
        exact, _ = step.gradient(GrpoConfig(advantage="centred" if kind == "leave-one-out" else kind, beta=0))
        for n in GROUPS:
            sampled = GrpoConfig(estimator="sampled", answers=n, advantage=kind, beta=0)
            one, mean, chance, still = step.errors(sampled, exact)
            yield f"| {label} | {kind} | {n} | {one:.3f} | {mean:.3f} | {chance:.3f} | {still:.3f} |"


def distance_rows(step: Step, label: str) -> Iterator[str]:
    """Table rows of the distance to the bare judge alone, k3 against exact."""
    silent = Step(step.logits.detach(), step.bare, step.jacobian, step.pairs[:0], step.targets[:0], 1.0)
    exact, _ = silent.gradient(GrpoConfig(beta=1.0))
    for n in GROUPS:
        one, mean, chance, _ = silent.errors(GrpoConfig(estimator="sampled", answers=n, kl="k3", beta=1.0), exact)
        yield f"| {label} | {n} | {one:.3f} | {mean:.3f} | {chance:.3f} |"


def main() -> None:
    """Write the page."""
    *parts, name = rate_batch()
    steps = {"as they are": Step(*parts, 1.0), "three times as sure": Step(*parts, 3.0)}
    lines = [
        "# Sampled GRPO tends to exact GRPO",
        "",
        "Made by `python scripts/grpo_convergence.py`, which says how.",
        f"Judge {name}, {IMAGES} example images, {len(parts[3])} pairs, one step, {DRAWS} draws a row. Errors are",
        "lengths of differences of gradients with respect to the prompt, as shares of the exact gradient's length.",
        "*one draw*: root mean square error of a step as it would be taken. *mean of draws*: error of the mean of all",
        "draws, the bias, of which *by chance* is what their number explains. *no spread*: share of images whose drawn",
        "answers all have the same reward, so that they teach nothing. *three times as sure*: logits times 3.",
        "",
        "## Reward",
        "",
        "Standardised advantages are held against the exact gradient with standardised advantages.",
        "",
        "| ratings | advantage | G | one draw | mean of draws | by chance | no spread |",
        "|---|---|--:|--:|--:|--:|--:|",
        *(row for label, step in steps.items() for row in reward_rows(step, label)),
        "",
        "## Distance to the bare judge, k3",
        "",
        "Without rewards, against the gradient of the exact divergence.",
        "",
        "| ratings | G | one draw | mean of draws | by chance |",
        "|---|--:|--:|--:|--:|",
        *(row for label, step in steps.items() for row in distance_rows(step, label)),
    ]
    (ROOT / "docs" / "results" / "grpo_convergence.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
