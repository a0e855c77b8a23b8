"""Plan large runs of mPLUG-Owl2 7B with the function behind `evolve --dry-run`, and print the tables of docs/scale.md.

    python scripts/plan_scale.py

Nothing is run and no weights are needed: operations follow from the architecture and the recipe label-free.
"""

from __future__ import annotations

from evoprompt.costs import Costs
from evoprompt.owl2 import Owl2Config
from evoprompt.planning import Plan, Texts, clock, memory_bytes, operations, plan_run
from evoprompt.recipe_files import load_recipe

# Tokens of the questions of the family owl2 beside the images, about: the released tokenizer is not in the package.
TEXTS = Texts(rate=28, compare=(4, 1, 30))
COSTS = Costs(Owl2Config(), 2)
HELD_OUT = 300
A_ROUND = 20_000
TFLOPS = 300.0
# Recipe, an override of it, images, and the views that the judge's family rates.
SHARED = (
    ("label-free", "pairs.heldout=0.03", 10_000, 1),
    ("nano", "", 64, 4),
    ("label-free", "pairs.per_round=20000", 500, 1),
)


def every_image_once(images: int) -> list[str]:
    """Overrides of label-free with which every image is voted on and trained on once, 20,000 a round at most."""
    learning = images - HELD_OUT
    rounds = max(1, round(learning / A_ROUND))
    groups = learning // (rounds * 12)
    keys = {"rounds": rounds, "pairs.per_round": 66 * groups, "train.steps": groups, "pairs.heldout": HELD_OUT / images}
    return [f"{key}={value}" for key, value in keys.items()]


def row(images: int, overrides: list[str]) -> str:
    """One line of the table."""
    recipe = load_recipe("label-free", overrides)
    plan: Plan = plan_run(recipe, images, views=1)
    whole = plan.whole
    parts = [operations(part, COSTS, TEXTS) / 1e15 for part in (plan.panel, plan.votes, plan.training)]
    memory = memory_bytes(recipe, plan, COSTS, TEXTS, 448, 1)
    hours = clock(sum(parts) * 1000 / TFLOPS)
    return (
        f"| {images:,} | {recipe.rounds:,} | {recipe.pairs.per_round:,} | {whole.encoded:,.0f} | "
        f"{whole.shared + whole.compared:,.0f} | {whole.trained:,.0f} | {sum(parts):,.3g} | {hours} | "
        + " / ".join(f"{part / sum(parts):.0%}" for part in parts)
        + f" | {memory['training'] / 2**30:.1f} |"
    )


def table() -> str:
    """The table: the recipe as it stands but for the images held out, then every image once."""
    lines = [
        "| images | rounds | pairs a round | views seen | comparisons | images trained through | PFLOP | "
        f"one GPU at {TFLOPS:.0f} TFLOP/s | panel / votes / training | GiB of a step |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|---|--:|",
    ]
    sizes = (10**4, 10**6, 10**8)
    lines += [row(n, [f"pairs.heldout={HELD_OUT / n}"]) for n in sizes]
    lines += [row(n, every_image_once(n)) for n in sizes]
    return "\n".join(lines)


def sharing() -> str:
    """The views that the process with most to do encodes: what a second round adds to a first."""
    processes = (1, 2, 4, 8, 32)
    lines = [
        f"| recipe | images | | 1 process | {' | '.join(map(str, processes[1:]))} |",
        "|---|--:|---|" + "--:|" * len(processes),
    ]
    for name, key, images, views in SHARED:
        title = f"{name}, `{key}` | {images:,}" if key else f"{name} | {images:,}"
        for part, what in (("panel", "a look at the panel"), ("votes", "votes of a round")):
            cells = []
            for n in processes:
                rounds = (load_recipe(name, [*([key] if key else []), f"rounds={r}"]) for r in (1, 2))
                first, both = (getattr(plan_run(r, images, views, processes=n), part).encoded for r in rounds)
                cells.append(f"{both - first:,.0f}")
            lines.append(f"| {title} | {what} | {' | '.join(cells)} |")
            title = "|"
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(), sharing(), sep="\n\n")
