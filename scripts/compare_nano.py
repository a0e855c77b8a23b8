"""Label-free, supervised, mixed and control prompts for the embedded judge, side by side on sets with human scores.

    python scripts/compare_nano.py DATA WORK --out docs/results

DATA is described in `human_sets.py`. On every set, with every seed, every method trains a prompt on the same images,
for the same number of steps and rounds, each round accepted and no judge refused, so that the methods differ in nothing
but their labels; then `evoprompt compare` measures all of them on images that none has seen. Everything goes through
the command line of evoprompt. Runs stay in WORK; those that are finished are not run again, nor is a comparison of the
same; runs of other settings are refused. Writes compare_nano.md and .json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from human_sets import SETS, Parts, cut

from evoprompt.cli import main as evoprompt
from evoprompt.recipe_files import load_recipe
from evoprompt.result_tables import share_lines, shown
from evoprompt.score_files import read_scores
from evoprompt.stats import Reading, percentile_interval, read, srcc

EVOLVE, TRAIN, RANDOM = "evolve", "train", "random labels"
SETTINGS = (
    *("rounds=1", "vote.views=1", "pairs.per_round=400", "pairs.heldout=0.1"),
    *("ladder.images=8", "ladder.kinds=6", "ladder.levels=2"),
)
"""What all recipes are changed by, so that a prompt takes about a minute: one round, fewer pairs, a smaller panel."""
COST = (("minutes", 1), ("peak MiB", 0))
Methods = Mapping[str, tuple[str, str, tuple[str, ...]]]
METHODS: Methods = {
    "label-free fidelity": (EVOLVE, "nano", ()),
    "label-free GRPO exact": (EVOLVE, "nano-grpo", ()),
    "label-free GRPO sampled": (EVOLVE, "nano-grpo-sampled", ()),
    "supervised": (TRAIN, "nano-supervised", ()),
    "mixed": (EVOLVE, "nano-mixed", ()),
    RANDOM: (EVOLVE, "nano", ("control=random-labels",)),
}
"""Command, recipe and further settings of each method."""


def run(*command: str) -> None:
    """Run evoprompt in this process; its words go to stderr.

    Raises:
        SystemExit: when it failed; it has said why.
    """
    print("$ evoprompt", *command, file=sys.stderr, flush=True)
    if code := evoprompt(list(command), standalone_mode=False):
        raise SystemExit(code)


def one_prompt(
    chosen: tuple[str, str, tuple[str, ...]], parts: Parts, out: Path, seed: int, settings: Sequence[str]
) -> dict[str, float]:
    """Make one prompt by a method unless it is there; returns minutes and peak memory.

    Raises:
        SystemExit: when the one that is there was made with other settings.
    """
    command, recipe, more = chosen
    keys = [f"seed={seed}", "gate.accept=always", *more, *settings]
    record = out / "run.json"
    if not record.is_file() or json.loads(record.read_text())["status"] != "finished":
        shutil.rmtree(out, ignore_errors=True)
        given = ["--unlabeled", str(parts.unlabeled), "--force"] if command == EVOLVE else []
        given += ["--train-mos", str(parts.train)] if command == TRAIN or recipe == "nano-mixed" else []
        flags = [text for key in keys for text in ("-s", key)]
        started = time.monotonic()
        run(command, *given, "-r", recipe, "--device", "cpu", "-o", str(out), *flags)
        (out / "minutes.json").write_text(json.dumps((time.monotonic() - started) / 60))
    elif changes := load_recipe(out / "recipe.yaml").differences(load_recipe(recipe, keys)):
        raise SystemExit(f"{out} was made with other settings ({', '.join(changes)}). Give another WORK or remove it.")
    last = json.loads(sorted((out / "rounds").glob("[0-9]*/round.json"))[-1].read_text())
    return {"minutes": json.loads((out / "minutes.json").read_text()), "peak MiB": last["peak_memory_mib"]}


def one_set(
    parts: Parts, work: Path, seeds: int, settings: Sequence[str], methods: Methods = METHODS
) -> dict[str, Any]:
    """All prompts of one set, then one comparison of all of them unless that is there."""
    cost: dict[str, list[dict[str, float]]] = {method: [] for method in methods}
    named = []
    for seed in range(seeds):
        for method, chosen in methods.items():
            out = work / f"{method.replace(' ', '-')}-{seed}"
            cost[method].append(one_prompt(chosen, parts, out, seed, settings))
            named.append(f"{method}={out}")
    folder = work / "comparison"
    asked, known = {"compared": named, "settings": list(settings)}, folder / "asked.json"
    if not known.is_file() or json.loads(known.read_text()) != asked:
        known.unlink(missing_ok=True)
        run("compare", *named, "--eval-mos", str(parts.test), "--device", "cpu", "-o", str(folder))
        known.write_text(json.dumps(asked))
    body = json.loads((folder / "comparison.json").read_text())
    return {"cost": cost, "methods": numbers_of([folder]), **body}


def main() -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--sets", nargs="+", default=["biq2021", "avt_h265"], choices=list(SETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("-s", "--set", dest="settings", action="append", metavar="KEY=VALUE")
    parser.add_argument("--no-page", action="store_true", help="only run; for several processes, one per set")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.settings = args.settings or list(SETTINGS)
    results = {}
    for name in args.sets:
        results[name] = one_set(cut(args.data, SETS[name], args.work), args.work / name, args.seeds, args.settings)
    if args.no_page:
        return
    text = json.dumps(results, indent=1).replace(str(args.work), "WORK")
    (args.out / "compare_nano.json").write_text(text + "\n", encoding="utf-8")
    (args.out / "compare_nano.md").write_text(page(json.loads(text), args.seeds, args.settings), encoding="utf-8")


def columns_of(folders: Sequence[Path]) -> dict[str, list[Reading]]:
    """SRCC of every column of some comparisons on the same images, by method; all resample the images alike."""
    readings: dict[str, list[Reading]] = {}
    for folder in folders:
        file = read_scores(folder / "scores.csv")
        target = file.target
        assert target is not None  # compare writes the human scores too
        for column in file.columns:
            method = "none" if column.kind == "bare" else column.method or column.name
            readings.setdefault(method, []).append(read(srcc, column.scores, target.mos, 2000, 0, target.groups))
    return readings


def numbers_of(folders: Sequence[Path], others: Sequence[str] = (RANDOM,)) -> dict[str, dict[str, Any]]:
    """Every method's mean SRCC over its seeds, its gain over the bare judge, and that gain less that of the `others`.

    The intervals are 95 % percentile bootstraps over images (over sources where the set has them); in a resample all
    columns see the same images, so differences are paired. They do not hold what another seed would change: the seeds'
    standard deviation and the least and largest gain of a single run are beside.

    Args:
        folders: comparisons on the same images, one for each judge.
        others: methods to be held against, controls mostly; the key of a difference is "over" and their name.
    """
    readings = columns_of(folders)
    values = {name: np.array([one.value for one in found]) for name, found in readings.items()}
    means = {name: float(found.mean()) for name, found in values.items()}
    draws = {name: np.mean([one.draws for one in found], axis=0) for name, found in readings.items()}
    single = {name: found.reshape(len(folders), -1) - values["none"][:, None] for name, found in values.items()}

    def against(name: str, other: str) -> dict[str, Any]:
        return percentile_interval(means[name] - means[other], draws[name] - draws[other])._asdict()

    return {
        name: {
            "srcc": percentile_interval(means[name], draws[name])._asdict(),
            "sd": float(found.std(ddof=1)) if len(found) > 1 else None,
            "gain": None if name == "none" else against(name, "none"),
            "single": None if len(found) == len(folders) else [float(single[name].min()), float(single[name].max())],
            **{f"over {other}": None if name in ("none", *others) else against(name, other) for other in others},
        }
        for name, found in values.items()
    }


def page(results: dict[str, Any], seeds: int, settings: list[str]) -> str:
    """The page, from what the comparisons wrote."""
    changed = f" Every recipe with {', '.join(settings)}."
    judge = next(iter(results.values()))["judge"]
    lines = [
        "# Label-free, supervised, mixed and control prompts side by side", "",
        f"Made by `python scripts/compare_nano.py DATA WORK`; judge {judge} on CPU, {seeds} seeds, all digits in",
        f"compare_nano.json.{changed}",
        "The same training images, steps and rounds for every method, every round accepted;",
        "measured on images that none has seen (a fixed split by content hash, avt_h265 by source). SRCC with MOS,",
        "mean over seeds, 95 % paired bootstrap over test images (sources). That holds for these seeds: sd is over",
        "them, and *single runs* are the least and largest gain of one. *Over random* is the gain less that of prompts",
        "trained on coin tosses: only what is above 0 there comes from the labels. Minutes are of one core that other",
        "jobs shared; memory is the peak of the process so far. kadis100 is left out by default: 35 test images cannot",
        "tell such differences apart. The judge's ratings lean by construction, its votes do not: see docs/nano.md",
        "before the gains.", "",
    ]  # fmt: skip
    for name, result in results.items():
        lines += [f"## {name}: {result['n']} test images", ""]
        lines += ["| method | SRCC [95 %] | sd | gain [95 %] | single runs | over random [95 %] | minutes | peak MiB |"]
        lines += ["|---|---|--:|---|---|---|--:|--:|"]
        for method, row in result["methods"].items():
            cost = result["cost"].get(method, [])
            spent = [f"{np.mean([c[key] for c in cost]):.{d}f}" if cost else "" for key, d in COST]
            sd = "" if row["sd"] is None else f"{row['sd']:.3f}"
            label = f"{method} (CONTROL)" if "labels" in method else method
            cells = [shown(row["srcc"], ""), sd, shown(row["gain"], "+"), ends(row["single"])]
            lines.append(f"| {' | '.join([label, *cells, shown(row[f'over {RANDOM}'], '+'), *spent])} |")
        lines += ["", conclusion(result["methods"]), "", *(f"- {line}" for line in share_lines(result)), ""]
    return "\n".join(lines)


def ends(single: Sequence[float] | None) -> str:
    """The least and largest gain of a single run, as a cell."""
    return f"{single[0]:+.3f} to {single[1]:+.3f}" if single else ""


def conclusion(methods: dict[str, dict[str, Any]]) -> str:
    """Which methods help and which do not, by the intervals."""
    trained = {name: row for name, row in methods.items() if name in METHODS and name != RANDOM}
    clear = [name for name, row in trained.items() if row["gain"]["low"] > 0 and row[f"over {RANDOM}"]["low"] > 0]
    harmful = [name for name, row in trained.items() if row["gain"]["high"] < 0]
    helps, harms = ("help" if len(clear) > 1 else "helps"), ("harm" if len(harmful) > 1 else "harms")
    parts = [f"**{', '.join(clear) or 'Nothing'} clearly {helps}** (gain and gain over random both above 0)."]
    parts += [f"{', '.join(harmful) or 'Nothing'} clearly {harms}."]
    random = methods[RANDOM]["gain"]
    moved = "moves" if random["low"] > 0 or random["high"] < 0 else "does not clearly move"
    return " ".join([*parts, f"Training on coin tosses {moved} SRCC."])


if __name__ == "__main__":
    main()
