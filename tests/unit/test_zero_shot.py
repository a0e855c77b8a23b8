"""The measuring scripts for the judge without training: baselines, tables of whole sets, pages, made images."""

from __future__ import annotations

import csv
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image, ImageFilter

from evoprompt.score_files import read_scores

SCRIPTS = Path(__file__).parents[2] / "scripts"
PACKAGES = {"brisque": "brisque 0.2.0", "absolutely-not-scikit-video": "absolutely-not-scikit-video 1.1.12"}


@pytest.fixture
def zero_shot(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("zero_shot")


@pytest.fixture
def study_nano(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("study_nano")


def write_set(data: Path, name: str, n: int = 16) -> None:
    """Images that get brighter, and so do their scores."""
    (data / name / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = [["file", "mos"]]
    for k in range(n):
        pixels = np.clip(rng.integers(0, 60, (48, 48, 3)) + 12 * k, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(data / name / "images" / f"{k}.png")
        rows.append([f"{k}.png", str(k)])
    with (data / name / "mos.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_whole_set_names_every_image_once_with_its_part(zero_shot: ModuleType, tmp_path: Path) -> None:
    write_set(tmp_path / "data", "biq2021")
    parts = zero_shot.cut(tmp_path / "data", zero_shot.SETS["biq2021"], tmp_path / "work")
    table = zero_shot.whole(parts, tmp_path / "work" / "biq2021" / "biq2021.csv")
    rows = rows_of(table)
    assert sorted(float(row["mos"]) for row in rows) == list(range(16))
    assert all((table.parent / row["image"]).is_file() for row in rows)
    assert {row["split"] for row in rows} == {"train", "test"}
    assert all(row["image"].startswith(f"{row['split']}/images/") for row in rows)
    some = rows_of(zero_shot.whole(parts, tmp_path / "work" / "biq2021" / "some.csv", limit=5))
    assert some == rows[:5]


def test_sharpness_is_that_of_the_luma(zero_shot: ModuleType) -> None:
    y, x = np.mgrid[:32, :32]
    checks = np.repeat((255 * ((x + y) % 2)).astype(np.uint8)[:, :, None], 3, axis=2)
    assert zero_shot.sharpness(np.full_like(checks, 90)) == 0
    # Inside, the Laplacian is -1020 or 1020, alike often; the mirrored border only lowers its size.
    assert 0.8 * 1020**2 < zero_shot.sharpness(checks) < 1020**2
    blurred = np.asarray(Image.fromarray(checks).filter(ImageFilter.GaussianBlur(1)))
    assert zero_shot.sharpness(blurred) < 0.1 * zero_shot.sharpness(checks)


def test_missing_packages_are_told_with_what_installs_them(
    zero_shot: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "brisque", None)
    with pytest.raises(SystemExit, match=r"pip install '\.\[baselines\]'"):
        zero_shot.measures()


def test_baselines_fall_with_blur_and_noise(zero_shot: ModuleType) -> None:
    pytest.importorskip("brisque")
    pytest.importorskip("skvideo")
    by = zero_shot.measures()
    image = Image.open(SCRIPTS.parent / "examples" / "mountain-lake-a.jpg").convert("RGB").resize((384, 384))
    noise = np.random.default_rng(0).normal(0, 40, (384, 384, 3))
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(3)))
    noisy = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
    for name in ("BRISQUE", "NIQE"):
        assert by[name](np.asarray(image)) > max(by[name](blurred), by[name](noisy)), name


def test_the_page_holds_the_judge_beside_other_measures(
    zero_shot: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(tmp_path / "data", "biq2021")
    by = {"brightness": lambda image: float(image.mean()), "darkness": lambda image: -float(image.mean())}
    monkeypatch.setattr(zero_shot, "measures", lambda: by)
    monkeypatch.setattr(zero_shot, "version", lambda name: PACKAGES[name].split()[1])
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["zero_shot.py", str(tmp_path / "data"), "--sets", "biq2021", "--out", str(out)])
    zero_shot.main()
    body = json.loads((out / "zero_shot.json").read_text())
    rows = {row["name"]: row for row in body["sets"]["biq2021"]["rows"]}
    assert body["command"] == "python scripts/zero_shot.py DATA"
    assert list(rows) == ["none", "with the prompt", "brightness", "darkness"]
    assert rows["brightness"]["srcc"]["value"] == 1 and rows["darkness"]["srcc"]["value"] == -1
    assert rows["none"]["kind"] == "bare" and rows["none"]["n"] == 16
    assert rows["with the prompt"]["gain"] is not None
    page = (out / "zero_shot.md").read_text()
    assert "|  | biq2021, n = 16 |" in page and "| brightness | 1.000 [1.000, 1.000] |" in page
    assert "brisque 0.2.0" in page and "falls" not in page and "darkness: SRCC is below 0" in page
    assert str(tmp_path) not in page and "/tmp" not in json.dumps(body)


def test_scores_of_measures_are_read_as_columns_that_saw_nothing(zero_shot: ModuleType, tmp_path: Path) -> None:
    write_set(tmp_path, "some", n=3)
    labels = tmp_path / "some" / "images" / "labels.csv"
    labels.write_text("image,mos\n0.png,0\n1.png,1\n2.png,2\n")
    zero_shot.write_scores(
        labels, {"a": lambda image: 1 / 3, "b": lambda image: float(image[0, 0, 0])}, tmp_path / "s.csv"
    )
    file = read_scores(tmp_path / "s.csv")
    assert [column.name for column in file.columns] == ["a", "b"] and file.images == ("0.png", "1.png", "2.png")
    assert file.columns[0].scores.tolist() == [1 / 3] * 3
    assert not any(column.seen.any() for column in file.columns if column.seen is not None)


def test_made_images_are_the_undamaged_examples_at_every_strength(study_nano: ModuleType, tmp_path: Path) -> None:
    table, references = study_nano.make(tmp_path / "made")
    rows = rows_of(table)
    names = {row["reference"] for row in rows}
    assert len(rows) == len(names) * len(study_nano.KINDS) * 5 and names == {path.name for path in references.iterdir()}
    assert sorted({int(row["mos"]) for row in rows}) == [0, 1, 2, 3, 4]
    for kind in study_nano.KINDS:
        one = [row for row in rows if row["reference"] == rows[0]["reference"] and kind in row["image"]]
        clean = np.asarray(Image.open(references / rows[0]["reference"]).convert("RGB"), np.float64)
        errors = [np.square(np.asarray(Image.open(table.parent / row["image"])) - clean).mean() for row in one]
        assert errors == sorted(errors) and [int(row["mos"]) for row in one] == [4, 3, 2, 1, 0]


def test_the_study_page_says_what_is_not_a_human_score(study_nano: ModuleType) -> None:
    bodies = {"human": {"judge": "j@1", "prompt": "none"}, "made": {}}
    page = study_nano.page(bodies, {"human": "| a |\n", "made": "| b |\n"}, "python x", 7)
    assert "`python x`" in page and "at most 7 images" in page and page.index("| a |") < page.index("No human scores")
    assert page.index("No human scores") < page.index("| b |")
