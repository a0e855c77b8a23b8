"""A measured row for every shipped recipe, with the embedded judge, written into recipes/README.md.

    python scripts/measure_recipes.py DATA WORK

DATA is described in `human_sets.py`; avt_h265 is used, because it has deviations of the human scores. Every recipe runs
as it is but for the judge, the judge's question (the embedded judge knows other words), one round, and a gate that
accepts it. Finished runs in WORK are not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from human_sets import SETS, Parts, cut

from evoprompt.cli import main as evoprompt
from evoprompt.recipe_files import load_recipe, recipe_dir, shipped_recipes
from evoprompt.result_tables import shown

SET = "avt_h265"
TRAINED = ("supervised", "supervised-vp", "deqa", "nano-supervised")
MIXED = ("semi-supervised", "nano-mixed")
START, END = "## Measured\n", "## Keys\n"


def measure(recipe: str, parts: Parts, work: Path) -> str:
    """Run one recipe, measure its prompt, and return its row."""
    out = work / recipe
    given = [] if recipe in TRAINED else ["--unlabeled", str(parts.unlabeled)]
    given += ["--train-mos", str(parts.train)] if recipe in TRAINED + MIXED else []
    keys = ["rounds=1", "gate.accept=always", "judge.id=owl2-nano", "judge.family=auto", "judge.dtype=float32"]
    four_words = load_recipe(recipe).judge.question == "good-fine"
    keys += ["judge.preprocess=own", f"judge.question={'good-excellent' if four_words else 'auto'}"]
    command = ["train" if recipe in TRAINED else "evolve", *given, "-r", recipe, "--device", "cpu", "-o", str(out)]
    if not (out / "minutes.json").is_file():
        started = time.monotonic()
        run(*command, *(text for key in keys for text in ("-s", key)))
        (out / "minutes.json").write_text(json.dumps((time.monotonic() - started) / 60))
    if not (out / "measured" / "evaluation.json").is_file():
        run("evaluate", str(out), "--eval-mos", str(parts.test), "--device", "cpu", "-o", str(out / "measured"))
    body = json.loads((out / "measured" / "evaluation.json").read_text())
    bare, row = body["rows"][0], body["rows"][-1]
    minutes = json.loads((out / "minutes.json").read_text())
    peak = json.loads((out / "rounds" / "001" / "round.json").read_text())["peak_memory_mib"]
    return (
        f"| {recipe} | {shown(bare['srcc'])} | {shown(row['srcc'])} | {shown(row['gain'], '+')} | {minutes:.1f} | "
        f"{peak:.0f} |"
    )


def run(*command: str) -> None:
    """Run evoprompt in this process.

    Raises:
        SystemExit: when it failed; it has said why.
    """
    print("$ evoprompt", *command, file=sys.stderr, flush=True)
    if code := evoprompt(list(command), standalone_mode=False):
        raise SystemExit(code)


def main() -> None:
    """Measure all recipes and replace the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts = cut(args.data, SETS[SET], args.work)
    rows = [measure(recipe, parts, args.work) for recipe in shipped_recipes()]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    lines = [
        START, "Made by `python scripts/measure_recipes.py DATA WORK` at commit "
        f"{commit.stdout.strip()}: every recipe with the embedded judge",
        f"on {SET} (at 432 px, split by source; SRCC with MOS on test images that no prompt has seen, 95 % bootstrap",
        "over sources), one seed, one round, accepted whatever the gate says. One run each and no controls:",
        "[three seeds and controls](../docs/results/compare_nano.md) say what such gains are worth. Memory is the peak",
        "of the process so far. Minutes are of one CPU core that other jobs shared. What the recipes do with a 7B",
        "judge has not been measured.", "",
        "supervised-vp ran with the embedded judge's own preparation of images and its own four words",
        "(`judge.preprocess: own`, `judge.question: good-excellent`), not with those of its recipe; the bare judge of",
        "its row is read by these four words, too, and so has another SRCC than in the other rows.", "",
        "| recipe | bare SRCC | SRCC | gain | minutes | peak MiB |", "|---|---|---|---|--:|--:|", *rows, "",
    ]  # fmt: skip
    page = recipe_dir() / "README.md"
    text = page.read_text(encoding="utf-8")
    start = text.index(START) if START in text else text.index(END)
    page.write_text(text[:start] + "\n".join(lines) + "\n" + text[text.index(END) :], encoding="utf-8")


if __name__ == "__main__":
    main()
