"""The embedded judge, bare and with the prompt in the package, beside measures that a user could take instead.

    pip install '.[baselines]'
    python scripts/zero_shot.py DATA --out docs/results

DATA is described in `human_sets.py`. Neither the judge nor that prompt, which the first command of README.md made of
rendered scenes, has seen any of these images, so all of them are measured on. On the same images: BRISQUE (package
`brisque`), NIQE (scikit-video, in the release that works with numpy 2) and sharpness, the first two negated, because
there lower is better. Writes zero_shot.md and .json.
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
from evoprompt.judge import NANO
from evoprompt.result_tables import caption, main_table, markdown, reasons, shown

Pixels = NDArray[np.uint8]
Measure = Callable[[Pixels], float]
PACKAGES = ("brisque", "absolutely-not-scikit-video")


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


def one_set(table: Path, by: Mapping[str, Measure]) -> dict[str, Any]:
    """Measure everything on one set."""
    baselines = table.parent / "baselines.csv"
    write_scores(table, by, baselines)
    return evaluate(f"with the prompt={NANO}", str(baselines), labels=str(table), out=table.parent / "all")


def overview(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table of SRCC of everything on every set, and of the prompt's gain."""
    rows = next(iter(results.values()))["rows"]
    heads = ["", *(f"{name}, n = {body['n']}" for name, body in results.items())]
    labels = [{"bare": "bare judge"}.get(row["kind"], row["name"]) for row in rows]
    table = [[label, *(shown(body["rows"][k]["srcc"]) for body in results.values())] for k, label in enumerate(labels)]
    gains = [next(row["gain"] for row in body["rows"] if row["kind"] == "label-free") for body in results.values()]
    return heads, [*table, ["gain by the prompt, paired", *(shown(gain, "+") for gain in gains)]]


def page(results: Mapping[str, Any], command: str, packages: Mapping[str, str]) -> str:
    """The results as a Markdown page."""
    first = next(iter(results.values()))
    judge = first["judge"].split(" for ")[0]  # the measures beside it state none
    blocks = [
        "# The judge bare and with the prompt in the package, and simple measures",
        f"Made by `{command}`; judge {judge} on CPU; all digits in zero_shot.json. BRISQUE is of "
        f"{packages[PACKAGES[0]]} with its model, NIQE of {packages[PACKAGES[1]]} with the original model of "
        "undistorted images (as its V-BLIINDS takes it), both negated; sharpness is the variance of the Laplacian of "
        "the luma. No method was trained on these sets; [../nano.md](../nano.md) says how they were looked at while "
        "the judge was made.",
    ]
    blocks += ["SRCC with MOS [95 %], all images; none has been seen in training:", markdown(overview(results))]
    for name, body in results.items():
        blocks += [f"## {name}", caption(body), markdown(main_table(body))]
        blocks += ["\n".join(f"- {line}" for line in reasons(body))] if reasons(body) else []
    return "\n\n".join(blocks) + "\n"


def main() -> None:
    """Measure on all sets and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
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
            results[name] = one_set(table, by)
    command = "python scripts/zero_shot.py DATA" + (f" --limit {chosen.limit}" if chosen.limit else "")
    chosen.out.mkdir(parents=True, exist_ok=True)
    body = {"command": command, "packages": packages, "sets": results}
    (chosen.out / "zero_shot.json").write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    (chosen.out / "zero_shot.md").write_text(page(results, command, packages), encoding="utf-8")


if __name__ == "__main__":
    main()
