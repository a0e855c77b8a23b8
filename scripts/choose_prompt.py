"""Which border prompt suits the embedded judge: several, compared on validation parts of sets with human scores.

    python scripts/choose_prompt.py DATA WORK --out docs/results

DATA is described in `human_sets.py`. Test images are left out; the others are cut into images to train on and images to
validate on. Prompts are trained on human scores, on the judge's votes and on coin tosses. A good choice gains by the
first two and not by the third. Finished runs in WORK are not run again. Writes nano_prompt.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from compare_nano import EVOLVE, RANDOM, SETTINGS, TRAIN, Methods, numbers_of, one_set
from human_sets import SETS, cut

from evoprompt.result_tables import shown

METHODS: Methods = {
    "supervised": (TRAIN, "nano-supervised", ()),
    "label-free": (EVOLVE, "nano", ()),
    RANDOM: (EVOLVE, "nano", ("control=random-labels",)),
}
PROMPTS = {
    "one colour": ("prompt.blocks=160",),
    "four corners": ("prompt.blocks=80",),
    "36 blocks": ("prompt.blocks=16",),
    "36 blocks, SGD": ("prompt.blocks=16", "train.optimizer=sgd", "train.lr=10"),
}
"""How the border is parametrised and trained; its numbers are three for every block."""


def page(results: Mapping[str, Mapping[str, Mapping[str, Any]]], seeds: int) -> str:
    """The results, by set and prompt, as a Markdown page."""
    lines = [
        "# The border prompt of the nano recipes, chosen on validation parts", "",
        f"Made by `python scripts/choose_prompt.py DATA WORK`: judge owl2-nano on CPU, {seeds} seeds, every round",
        f"accepted, recipes with {', '.join(SETTINGS)}. Gain in SRCC with MOS over the bare",
        "judge, mean over seeds, 95 % paired bootstrap over validation images (sources). No test image of the other",
        "pages is used here.", "",
    ]  # fmt: skip
    for name, prompts in results.items():
        bare = next(iter(prompts.values()))["none"]["srcc"]
        lines += [f"## {name}", "", f"Bare judge: {shown(bare)}.", ""]
        lines += [f"| prompt | {' | '.join(METHODS)} (CONTROL) | label-free over coin tosses |"]
        lines += ["|---|---|---|---|---|"]
        for prompt, found in prompts.items():
            gains = [shown(found[method]["gain"], "+") for method in METHODS]
            lines.append(f"| {' | '.join([prompt, *gains, shown(found['label-free'][f'over {RANDOM}'], '+')])} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--sets", nargs="+", default=["biq2021", "avt_h265"], choices=list(SETS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--no-page", action="store_true", help="only run; for several processes, one per set")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, dict[str, Any]] = {}
    for name in args.sets:
        parts = cut(args.data, SETS[name], args.work, validation=True)
        for prompt, keys in PROMPTS.items():
            work = args.work / name / prompt.replace(" ", "-")
            one_set(parts, work, args.seeds, [*SETTINGS, *keys], METHODS)
            results.setdefault(name, {})[prompt] = numbers_of([work / "comparison"])
    if not args.no_page:
        (args.out / "nano_prompt.md").write_text(page(results, args.seeds), encoding="utf-8")


if __name__ == "__main__":
    main()
