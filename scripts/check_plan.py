"""Hold what `evolve --dry-run` says against a run of the embedded judge: operations, memory and time.

    python scripts/check_plan.py examples

Prints a Markdown table; docs/scale.md holds one. Two short runs: one is timed, in the other torch counts operations.
Time is that of the processor, because on a shared machine the clock on the wall says more about the others.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from evoprompt.costs import Costs
from evoprompt.images import scan_images
from evoprompt.judge import NANO, load_judge
from evoprompt.lifecycle import evolve
from evoprompt.planning import Texts, calibrate, expected_bytes, memory_bytes, operations, plan_run, resident_bytes
from evoprompt.processes import resident_peak
from evoprompt.recipe_files import load_recipe

SETTINGS = {"rounds": 2, "pairs.per_round": 264, "train.steps": 20, "ladder.images": 6}


def main() -> None:
    """Plan, run, count, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    recipe = load_recipe("nano", [f"{key}={value}" for key, value in SETTINGS.items()])
    images = scan_images([arguments.images])
    judge = load_judge(NANO, None, "auto", "float32", "cpu")
    plan = plan_run(recipe, len(images), judge.family.views)
    costs, texts = Costs(judge.model.config, 4), Texts.of(judge)
    memory = memory_bytes(recipe, plan, costs, texts, judge.image_size, judge.family.views)
    peak = expected_bytes(resident_bytes(judge), memory, "cpu")
    seconds = calibrate(recipe, images, judge, time.process_time)

    with tempfile.TemporaryDirectory() as place:
        started = time.process_time()
        evolve(recipe, images, Path(place) / "timed", judge, force=True)
        took = time.process_time() - started
        used = resident_peak()
        short = replace(recipe, rounds=1, train=replace(recipe.train, steps=4))
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # fused attention is not counted
            evolve(short, images, Path(place) / "counted", judge, force=True)
    planned = operations(plan_run(short, len(images), judge.family.views).whole, costs, texts)
    rows = [
        ("operations, TFLOP", planned / 1e12, counter.get_total_flops() / 1e12),
        ("peak memory, MiB", peak / 2**20, used / 2**20),
        ("processor time, s", seconds.whole(plan.whole), took),
    ]
    print("| | planned | measured | planned / measured |\n|---|---|---|---|")
    for name, expected, found in rows:
        print(f"| {name} | {expected:.3g} | {found:.3g} | {expected / found:.2f} |")


if __name__ == "__main__":
    main()
