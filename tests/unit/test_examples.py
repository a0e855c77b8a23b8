"""The example images: complete, described, and what the script in the repository makes."""

from __future__ import annotations

import csv
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evoprompt.degrade import KINDS

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def known() -> list[dict[str, str]]:
    with (EXAMPLES / "known.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _paint(scene: str, folder: Path) -> dict[str, Path]:
    script = ROOT / "scripts" / "make_examples.py"
    subprocess.run([sys.executable, str(script), "--only", scene, "--out", str(folder)], check=True, timeout=120)
    return {path.name: path for path in sorted(folder.iterdir())}


def test_known_csv_lists_every_image_once(known: list[dict[str, str]]) -> None:
    assert list(known[0]) == ["image", "mos", "severity", "kinds"]
    assert sorted(row["image"] for row in known) == sorted(path.name for path in EXAMPLES.glob("*.jpg"))
    assert len(known) == 64


def test_images_are_small_different_and_of_one_size() -> None:
    paths = sorted(EXAMPLES.glob("*.jpg"))
    contents = [path.read_bytes() for path in paths]
    assert sum(map(len, contents)) <= 5_000_000
    assert len({hashlib.sha256(content).digest() for content in contents}) == len(paths)
    for path in paths:
        with Image.open(path) as image:
            assert image.size == (512, 384)
            assert image.mode == "RGB"


def test_nominal_quality_spans_its_scale_and_names_do_not_tell_it(known: list[dict[str, str]]) -> None:
    quality = np.array([float(row["mos"]) for row in known])
    assert quality.min() < 2.0
    assert quality.max() > 4.7
    letters = np.array([row["image"][-5] for row in known])
    means = [quality[letters == letter].mean() for letter in "abcd"]
    assert max(means) - min(means) < 1.0


def test_nominal_quality_is_highest_where_nothing_was_done(known: list[dict[str, str]]) -> None:
    clean = [float(row["mos"]) for row in known if not row["kinds"]]
    heavy = [float(row["mos"]) for row in known if float(row["severity"]) > 2.5]
    assert len(clean) >= 4
    assert min(clean) > max(heavy)


def test_every_kind_is_shown(known: list[dict[str, str]]) -> None:
    shown = {flaw.split()[0] for row in known for flaw in row["kinds"].split(" + ") if flaw}
    assert shown == set(KINDS)


def test_readme_says_that_the_scores_are_not_human() -> None:
    text = (EXAMPLES / "README.md").read_text()
    assert "nominal quality, not a human score" in text
    assert "Apache-2.0" in text


def test_painting_a_scene_again_gives_the_same_bytes_and_the_committed_pictures(tmp_path: Path) -> None:
    first, second = _paint("cloth", tmp_path / "first"), _paint("cloth", tmp_path / "second")
    assert len(first) == 4
    assert list(first) == list(second)
    for name, path in first.items():
        assert path.read_bytes() == second[name].read_bytes()
        # Another Pillow may code the same picture in other bytes; the picture itself must be the committed one.
        now = np.asarray(Image.open(path)).astype(float)
        then = np.asarray(Image.open(EXAMPLES / name)).astype(float)
        assert abs(now - then).mean() < 1.0, name
