"""The embedded judge without training, beside measures that a user could take instead, on sets with human scores.

    pip install '.[baselines]'
    python scripts/zero_shot.py DATA --out docs/results
    python scripts/zero_shot.py DATA --prompt RUN --out docs/results

DATA is described in `human_sets.py`. Without training nothing has been seen, so all images of a set are measured on; a
prompt is measured on the test part alone, and an image there that it was trained on is an error. On the same images:
BRISQUE (package `brisque`), NIQE (scikit-video, in the release that works with numpy 2) and sharpness, the first two
negated, because there lower is better. Writes zero_shot.md and .json.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from human_sets import SETS, cut, whole
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from evoprompt.cli import main as evoprompt
from evoprompt.result_tables import caption, main_table, markdown, reasons, shown

Pixels = NDArray[np.uint8]
Measure = Callable[[Pixels], float]
PACKAGES = ("brisque", "absolutely-not-scikit-video")
PARTS = {"all": "all images, nothing trained", "test": "the test part, which the prompt has not seen"}


def luma(image: Pixels) -> Pixels:
    """(H, W) luma of an (H, W, 3) RGB image, both 0 to 255."""
    return np.asarray(Image.fromarray(image).convert("L"))


def sharpness(image: Pixels) -> float:
    """Variance of the Laplacian of the luma."""
    return float(ndimage.laplace(luma(image).astype(np.float64)).var())


def measures() -> dict[str, Measure]:
    """What the judge is held against: scores of an (H, W, 3) RGB image by name, higher is better.

    Raises:
        SystemExit: when a package is missing.
    """
    try:
        from brisque import BRISQUE
        from skvideo.measure.videobliinds import compute_niqe_features
    except ImportError as error:
        raise SystemExit(f"BRISQUE and NIQE are not installed ({error}). Run: pip install '.[baselines]'") from error

    class Brisque(BRISQUE):  # type: ignore[misc, unused-ignore]
        """With numbers for features: the package makes arrays of one element, which numpy 2.4 does not convert."""

        def asymmetric_generalized_gaussian_fit(self, x: Any) -> tuple[float, ...]:
            """Shape, mean and both deviations of (N, M) coefficients."""
            return tuple(np.asarray(value).item() for value in super().asymmetric_generalized_gaussian_fit(x))

    def niqe(image: Pixels) -> float:
        # The original model of undistorted images; `skvideo.measure.niqe` has another. It is meant for videos and
        # leaves out five frames at either end.
        return float(compute_niqe_features(np.repeat(luma(image)[None, :, :, None], 11, axis=0))[-1])

    model = Brisque()
    return {
        "BRISQUE": lambda image: -float(model.score(image)),
        "NIQE": lambda image: -niqe(image),
        "sharpness": sharpness,
    }


def write_scores(labels: Path, by: Mapping[str, Measure], path: Path) -> None:
    """Score the images of a table by every measure, as a scores file that `evoprompt evaluate` reads."""
    with labels.open(newline="", encoding="utf-8") as file:
        names = [row["image"] for row in csv.DictReader(file)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "prompt", "score", "seen"])
        for place, name in enumerate(names):
            if place % 50 == 0:
                print(f"{', '.join(by)}: {labels.stem} {place}/{len(names)}", file=sys.stderr, flush=True)
            image = np.asarray(Image.open(labels.parent / name).convert("RGB"))
            writer.writerows([name, measure, repr(score(image)), 0] for measure, score in by.items())


def evaluate(*items: str, labels: str, out: Path) -> dict[str, Any]:
    """Run `evoprompt evaluate` in this process; returns what it wrote, without the folder's name in it."""
    command = ["evaluate", *items, "--eval-mos", labels, "--device", "cpu", "-o", str(out)]
    print("$ evoprompt", *command, file=sys.stderr, flush=True)
    if code := evoprompt(command, standalone_mode=False):
        raise SystemExit(code)
    body: dict[str, Any] = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    return {**body, "labels": Path(body["labels"]).name}


def one_set(table: Path, by: Mapping[str, Measure], prompt: Path | None) -> dict[str, Any]:
    """Measure on one set: without training on all images and, given a prompt, on the test part."""
    work = table.parent
    baselines = work / "baselines.csv"
    write_scores(table, by, baselines)
    results = {"all": evaluate("none", str(baselines), labels=str(table), out=work / "all")}
    if prompt is not None:
        items = (f"prompt={prompt}", str(baselines))
        results["test"] = evaluate(*items, labels=f"{table}#test", out=work / "test")
    return results


def overview(results: Mapping[str, Mapping[str, Any]], part: str) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table of one part: SRCC of every measure on every set."""
    bodies = {name: result[part] for name, result in results.items()}
    rows = next(iter(bodies.values()))["rows"]
    heads = ["", *(f"{name}, n = {body['n']}" for name, body in bodies.items())]
    labels = [{"bare": "bare judge"}.get(row["kind"], row["name"]) for row in rows]
    return heads, [
        [label, *(shown(body["rows"][place]["srcc"]) for body in bodies.values())] for place, label in enumerate(labels)
    ]


def page(results: Mapping[str, Mapping[str, Any]], command: str, packages: Mapping[str, str]) -> str:
    """The results as a Markdown page."""
    first = next(iter(results.values()))
    blocks = [
        "# The judge without training, and simple measures",
        f"Made by `{command}`; judge {first['all']['judge']} on CPU; all digits in zero_shot.json. BRISQUE is of "
        f"{packages[PACKAGES[0]]} with its model, NIQE of {packages[PACKAGES[1]]} with the original model of "
        "undistorted images (as its V-BLIINDS takes it), both negated; sharpness is the variance of the Laplacian of "
        "the luma. No method was trained on these sets; [../nano.md](../nano.md) says how they were looked at while "
        "the judge was made.",
    ]
    for part in first:
        blocks += [f"SRCC with MOS [95 %], {PARTS[part]}:", markdown(overview(results, part))]
    for name, result in results.items():
        for part, body in result.items():
            blocks += [f"## {name}: {PARTS[part]}", caption(body), markdown(main_table(body))]
            blocks += ["\n".join(f"- {line}" for line in reasons(body))] if reasons(body) else []
    return "\n\n".join(blocks) + "\n"


def main() -> None:
    """Measure on all sets and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--prompt", type=Path, help="run or prompt folder, measured on the test parts")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--limit", type=int, default=0, help="images of a set, for a try; 0 = all")
    chosen = parser.parse_args()
    by = measures()  # what is not installed is said before anything is scored
    packages = {name: f"{name} {version(name)}" for name in PACKAGES}
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.sets:
            table = Path(folder) / name / f"{name}.csv"
            whole(cut(chosen.data, SETS[name], Path(folder)), table, chosen.limit)
            results[name] = one_set(table, by, chosen.prompt)
    command = "python scripts/zero_shot.py DATA" + (" --prompt RUN" if chosen.prompt else "")
    command += f" --limit {chosen.limit}" if chosen.limit else ""
    chosen.out.mkdir(parents=True, exist_ok=True)
    body = {"command": command, "packages": packages, "sets": results}
    (chosen.out / "zero_shot.json").write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    (chosen.out / "zero_shot.md").write_text(page(results, command, packages), encoding="utf-8")


if __name__ == "__main__":
    main()
