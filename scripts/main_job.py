"""The main job on sets with human scores: bare judge against label-free prompts, with and without ladder pairs.

    python scripts/main_job.py DATA --out docs/results

DATA and its split are described in `human_sets.py`; the scores of the images to evolve on are never read. Only the
command line of evoprompt is used. Writes main_job.md and .json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from human_sets import SETS, cut

RECIPES = {"votes": "nano", "votes + ladder": "nano-ladder"}


def run(*command: str) -> str:
    """Run evoprompt and return what it prints on stdout; its words go through."""
    print("$ evoprompt", *command, file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, "-m", "evoprompt", *command], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def one_set(data: Path, name: str, work: Path, seed: int) -> dict[str, Any]:
    """Evolve with every recipe on one set and measure all prompts together on its test part."""
    parts = cut(data, SETS[name], work)
    unlabeled, labels = parts.unlabeled, parts.test
    health = json.loads(run("judge", str(unlabeled), "--device", "cpu", "--json"))
    folders = {}
    for label, recipe in RECIPES.items():
        folders[label] = work / name / recipe
        run("evolve", "--unlabeled", str(unlabeled), "-r", recipe, "--device", "cpu", "-s", f"seed={seed}", "--force",
            "-o", str(folders[label]))  # fmt: skip
    # The last candidate is measured too, accepted or not: it shows what the gate turned away.
    candidates = {f"{label}, last candidate": sorted((f / "rounds").glob("[0-9]*"))[-1] for label, f in folders.items()}
    paths = {**folders, **candidates}
    table = json.loads(
        run("evaluate", *map(str, paths.values()), "--eval-mos", str(labels), "--device", "cpu", "--json")
    )
    rounds = {
        label: [json.loads((p / "round.json").read_text()) for p in sorted((folder / "rounds").glob("[0-9]*"))]
        for label, folder in folders.items()
    }
    rows = {row["name"]: row for row in table["rows"]}
    return {
        "n_evolve": len(list(unlabeled.iterdir())),
        "n_test": table["n"],
        "judge": table["judge"],
        "health": health,
        "rows": {"bare judge": rows["none"], **{label: rows[str(path)] for label, path in paths.items()}},
        "rounds": rounds,
    }


def page(results: dict[str, Any], command: str) -> str:
    """The results as a Markdown page."""
    judge = next(iter(results.values()))["judge"]
    lines = [
        "# The main job on human scores", "",
        f"Made by `{command}`; judge {judge} on CPU; numbers with all digits in main_job.json. One seed, one split.",
        "SRCC with MOS on images never seen, 95 % percentile bootstrap over images; gain paired with the bare judge.",
        "*votes* trains on the judge's own votes alone. *votes + ladder* replaces half of the training groups by",
        "degraded copies whose order is known by construction: a different claim. *last candidate* is the last round's",
        "prompt whether or not the gate accepted it. There is no random-label control on this page, so a gain here is",
        "not yet evidence that the votes caused it: docs/results/compare_nano.md has one. Seconds and memory are of a",
        "machine of two cores that other jobs were using; docs/results/first_run.md has a quieter run.", "",
    ]  # fmt: skip
    for name, result in results.items():
        lines += [f"## {name}: {result['n_evolve']} images to evolve on, {result['n_test']} to test on", ""]
        lines += ["| prompt | SRCC [95 %] | PLCC | KRCC | gain [95 %] | p |", "|---|---|---|---|---|--:|"]
        for label, row in result["rows"].items():
            gain = row.get("gain")
            shown = "" if gain is None else f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"
            s = row["srcc"]
            lines.append(
                f"| {label} | {s['value']:.3f} [{s['low']:.3f}, {s['high']:.3f}] | {row['plcc']['value']:.3f} | "
                f"{row['krcc']['value']:.3f} | {shown} | {'' if gain is None else format(row['p_value'], '.3f')} |"
            )
        lines += [
            "",
            "| recipe | round | verdict | vote s | train s | gate s | peak MiB |",
            "|---|--:|---|--:|--:|--:|--:|",
        ]
        for label, rounds in result["rounds"].items():
            for r in rounds:
                seconds = [
                    format(r["seconds"][k], ".0f") if k in r["seconds"] else "" for k in ("vote", "train", "gate")
                ]
                verdict = f"{'accepted' if r['accepted'] else 'rejected'}: {r['reason']}" if r["round"] else r["reason"]
                lines.append(
                    f"| {label} | {r['round']} | {verdict} | {' | '.join(seconds)} | {r['peak_memory_mib']:.0f} |"
                )
        teaches = "can teach" if result["health"]["usable"] else "is refused as a teacher (the runs above were forced)"
        lines += ["", f"On the images to evolve on, the bare judge {teaches}; its health (`evoprompt judge`):", ""]
        lines += ["| measure | value |", "|---|--:|"]
        lines += [f"| {k} | {v:.3f} |" for k, v in result["health"].items() if isinstance(v, float)] + [""]
    return "\n".join(lines)


def main() -> None:
    """Run all sets and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = {name: one_set(chosen.data, name, Path(folder), chosen.seed) for name in chosen.sets}
    chosen.out.mkdir(parents=True, exist_ok=True)
    command = "python scripts/main_job.py DATA" + (f" --seed {chosen.seed}" if chosen.seed else "")
    text = json.dumps(results, indent=1).replace(str(Path(folder)), "WORK")
    (chosen.out / "main_job.json").write_text(text + "\n", encoding="utf-8")
    (chosen.out / "main_job.md").write_text(page(results, command) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
