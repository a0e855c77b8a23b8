"""Paint the example images: 16 scenes that no camera saw, each in 4 versions, mostly degraded.

    python scripts/make_examples.py                 # all of examples/, about five minutes on one core
    python scripts/make_examples.py --only cloth --out look

The same script with the same numpy, scipy and Pillow writes the same bytes. known.csv and README.md are written only
when all scenes are.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import scene_surfaces  # noqa: E402
import scene_tables  # noqa: E402
import scene_terrain  # noqa: E402
from check_degrade import difference, nominal_quality  # noqa: E402
from scene_noise import Array, Rng, develop  # noqa: E402

from evoprompt.degrade import FAMILY, KINDS, degrade  # noqa: E402

Bytes = NDArray[np.uint8]
SEED = 2026
LETTERS = "abcd"


class Scene(NamedTuple):
    """How a scene is painted and developed."""

    paint: Callable[[Rng], Array]
    contrast: float = 0.55
    exposure: float = 1.0


SCENES: dict[str, Scene] = {
    "mountain-lake": Scene(scene_terrain.mountain_lake),
    "fruit-table": Scene(scene_tables.fruit_table, 0.4, 0.95),
    "meadow": Scene(scene_surfaces.meadow, 0.45),
    "dunes": Scene(scene_terrain.dunes),
    "pebbles": Scene(scene_surfaces.pebbles),
    "night-lights": Scene(scene_tables.night_lights, 0.2, 1.25),
    "green-hills": Scene(scene_terrain.green_hills, 0.7),
    "cloth": Scene(scene_surfaces.cloth, 0.45),
    "garden-wall": Scene(scene_tables.garden_wall, 0.4, 0.85),
    "island-sunset": Scene(scene_terrain.island_sunset),
    "leaves": Scene(scene_surfaces.leaves, 0.45, 0.9),
    "marbles": Scene(scene_tables.marbles, 0.4),
    "red-mesas": Scene(scene_terrain.red_mesas),
    "old-boards": Scene(scene_surfaces.old_boards, 0.45),
    "toy-blocks": Scene(scene_tables.toy_blocks, 0.3, 0.85),
    "autumn-floor": Scene(scene_surfaces.autumn_floor, 0.45),
}

Flaws = list[tuple[str, float]]

README = """# Example images

{count} pictures of {scenes} scenes, 512 x 384, painted by `python scripts/make_examples.py` from fractal noise, shaded
solids and layered shapes. No camera, no photograph and no generative model was involved, so they are free of anybody
else's rights: Apache-2.0, like the rest of this repository.

Every scene comes in four versions with shuffled letters: one (nearly) as painted, two with one degradation and one with
two, from `evoprompt.degrade`. They are JPEG files of quality 92, which itself is hardly visible.

`known.csv` has one row per image:

| column | meaning |
|---|---|
| `image` | file name |
| `mos` | **nominal quality, not a human score** (below) |
| `severity` | root of the summed squared strengths of the degradations, 0 for none |
| `kinds` | the degradations with their strengths, in the order of application |

The nominal quality runs from 1 to 5 and is computed from the full-reference difference to the scene as painted
(`scripts/check_degrade.py`); nobody was asked. The column is called `mos` so that the files work wherever human scores
do. A correlation with it says whether a judge sees these degradations. It says nothing about agreement with people, and
painted scenes are no test of a judge of photos.
"""


def plan() -> dict[str, list[Flaws]]:
    """Return the four lists of flaws of every scene; every kind is used at least twice."""
    rng = np.random.default_rng(SEED)
    pool = [kind for _ in range(3) for kind in rng.permutation(np.array(KINDS))]
    plans: dict[str, list[Flaws]] = {}
    for number, name in enumerate(SCENES):
        light, heavy = rng.uniform(0.8, 2.8), rng.uniform(2.6, 4.9)
        single: list[Flaws] = [[(pool.pop(), float(strength))] for strength in (light, heavy)]
        first = pool.pop()
        # Two flaws of one family could undo each other (darker, then brighter).
        second = next(kind for kind in pool[::-1] if FAMILY[kind] != FAMILY[first])
        pool.remove(second)
        both = [(first, float(rng.uniform(0.7, 3.0))), (second, float(rng.uniform(0.7, 3.0)))]
        clean: Flaws = [(pool.pop(), float(rng.uniform(0.2, 0.7)))] if number % 2 else []
        versions = [clean, *single, both]
        plans[name] = [versions[place] for place in rng.permutation(4)]
    return plans


def paint(name: str) -> Bytes:
    """Return a scene as painted: uint8 (384, 512, 3)."""
    scene = SCENES[name]
    rng = np.random.default_rng((SEED, list(SCENES).index(name)))
    return develop(scene.paint(rng), rng, scene.exposure, scene.contrast)


def version(name: str, place: int, pristine: Bytes, flaws: Flaws) -> bytes:
    """Return the JPEG file of one version of a scene."""
    rng = np.random.default_rng((SEED, list(SCENES).index(name), place))
    image = pristine
    for kind, strength in flaws:
        image = degrade(image, kind, strength, rng)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=92, optimize=True)
    return buffer.getvalue()


def write_scene(name: str, plans: list[Flaws], folder: Path) -> list[dict[str, str]]:
    """Write the four files of a scene and return their rows of known.csv."""
    pristine, rows = paint(name), []
    for place, flaws in enumerate(plans):
        content = version(name, place, pristine, flaws)
        path = folder / f"{name}-{LETTERS[place]}.jpg"
        path.write_bytes(content)
        seen = np.asarray(Image.open(io.BytesIO(content)))
        row = {"image": path.name, "mos": f"{nominal_quality(difference(pristine, seen).total):.3f}"}
        row["severity"] = f"{np.sqrt(sum(strength**2 for _, strength in flaws)):.3f}"
        row["kinds"] = " + ".join(f"{kind} {strength:.2f}" for kind, strength in flaws)
        rows.append(row)
    return rows


def main() -> None:
    """Write the examples, or those of the scenes asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "examples")
    parser.add_argument("--only", nargs="+", choices=list(SCENES), metavar="SCENE", help=", ".join(SCENES))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    plans = plan()
    rows = [row for name in options.only or SCENES for row in write_scene(name, plans[name], options.out)]
    if options.only:
        return
    with (options.out / "known.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (options.out / "README.md").write_text(README.format(count=len(rows), scenes=len(SCENES)))


if __name__ == "__main__":
    main()
