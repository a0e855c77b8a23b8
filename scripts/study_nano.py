"""Every prompting system with the embedded judge: on sets with human scores, and on images damaged by a known amount.

    python scripts/study_nano.py DATA --out docs/results

DATA is described in `human_sets.py`; of every set the images with the smallest hashes of their names are asked about.
These sets come without their undamaged images. So that the full-reference systems run, too, the undamaged example
images are degraded at strengths 1 to 5; what stands for a score there is 5 less the strength, known, not given by
people. Everything goes through `evoprompt study`. Writes study.md, study.json, study.html and study_made.html.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from human_sets import SETS, cut, whole
from PIL import Image

from evoprompt.cli import main as evoprompt
from evoprompt.degrade import STRENGTHS, degrade

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SHOWN = ("prompt", "images", "partners", "systems")
KINDS = ("gaussian_blur", "jpeg")
"""Two kinds the ladder has, of different families; every strength of both for every reference."""


def make(work: Path) -> tuple[Path, Path]:
    """Degrade the undamaged examples; returns the table of the copies and the folder of what they were made of."""
    references = work / "references"
    references.mkdir(parents=True)
    with (EXAMPLES / "known.csv").open(newline="", encoding="utf-8") as file:
        undamaged = [row["image"] for row in csv.DictReader(file) if float(row["severity"]) == 0]
    table = work / "made.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "mos", "reference"])
        for name in undamaged:
            (references / name).write_bytes((EXAMPLES / name).read_bytes())
            pixels = np.asarray(Image.open(EXAMPLES / name).convert("RGB"))
            for kind in KINDS:
                for strength in STRENGTHS:
                    copy = work / f"{Path(name).stem}_{kind}_{strength}.png"
                    Image.fromarray(degrade(pixels, kind, strength, np.random.default_rng(0))).save(copy)
                    writer.writerow([copy.name, STRENGTHS[-1] - strength, name])
    return table, references


def study(out: Path, *options: str) -> dict[str, Any]:
    """Run `evoprompt study` in this process; returns its study.json."""
    command = ["study", *options, "--device", "cpu", "-o", str(out)]
    print("$ evoprompt", *command, file=sys.stderr, flush=True)
    if code := evoprompt(command, standalone_mode=False):
        raise SystemExit(code)
    body: dict[str, Any] = json.loads((out / "study.json").read_text(encoding="utf-8"))
    return body


def page(bodies: dict[str, dict[str, Any]], tables: dict[str, str], command: str, images: int) -> str:
    """The results as a Markdown page."""
    human = bodies["human"]
    blocks = [
        "# Prompting systems with the embedded judge",
        f"Made by `{command}`; judge {human['judge']} on CPU, prompt {human['prompt'][:12]}; all digits in study.json, "
        "plots in study.html and study_made.html; what the systems are is in [../study.md](../study.md).",
        f"## Sets with human scores: at most {images} images each",
        tables["human"].strip(),
        "## Examples damaged by a known amount, with and without the reference",
        f"No human scores: {' and '.join(KINDS)} at strengths 1 to 5; what stands for a score is 5 less the strength.",
        tables["made"].strip(),
    ]
    return "\n\n".join(blocks) + "\n"


def main() -> None:
    """Run both studies and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument(
        "--prompt", type=Path, help="run or prompt folder, asked on the test parts; default: the bare judge"
    )
    parser.add_argument("--images", type=int, default=100, help="of a set")
    parser.add_argument("--partners", type=int, default=10, help="images each image is paired with")
    parser.add_argument("--systems", default="", help="names or patterns with commas between; default: all")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    chosen = parser.parse_args()
    shared = ["--partners", str(chosen.partners), "--systems", chosen.systems]
    shared += ["--prompt", str(chosen.prompt)] if chosen.prompt else []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        sets = []
        for name in SETS:
            table = whole(cut(chosen.data, SETS[name], work), work / name / f"{name}.csv", chosen.images)
            sets += ["--eval-mos", f"{table}#test" if chosen.prompt else str(table)]
        table, references = make(work / "copies")
        made = ["--eval-mos", str(table), "--references", str(references)]
        bodies = {key: study(work / key, *given, *shared) for key, given in (("human", sets), ("made", made))}
        tables = {key: (work / key / "table.md").read_text(encoding="utf-8") for key in bodies}
        plots = {key: (work / key / "study.html").read_bytes() for key in bodies}
    typed = {**vars(chosen), "prompt": "RUN" if chosen.prompt else None}
    options = [f" --{key} {value}" for key, value in typed.items() if key in SHOWN and value != parser.get_default(key)]
    command = "python scripts/study_nano.py DATA" + "".join(options)
    out: Path = chosen.out
    out.mkdir(parents=True, exist_ok=True)
    (out / "study.html").write_bytes(plots["human"])
    (out / "study_made.html").write_bytes(plots["made"])
    (out / "study.json").write_text(json.dumps({"command": command, **bodies}, indent=1) + "\n", encoding="utf-8")
    (out / "study.md").write_text(page(bodies, tables, command, chosen.images), encoding="utf-8")


if __name__ == "__main__":
    main()
