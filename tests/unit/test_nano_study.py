"""The measuring scripts that hold ways of training against each other: how sets are cut, what their pages conclude."""

from __future__ import annotations

import csv
import importlib
import json
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evoprompt.recipe_files import load_recipe

SCRIPTS = Path(__file__).parents[2] / "scripts"
N = 60


@pytest.fixture(autouse=True)
def scripts_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


@pytest.fixture
def study() -> ModuleType:
    return importlib.import_module("nano_study")


@pytest.fixture
def compare_nano() -> ModuleType:
    return importlib.import_module("compare_nano")


@pytest.fixture
def human_sets() -> ModuleType:
    return importlib.import_module("human_sets")


def write_set(folder: Path, sources: int, each: int) -> None:
    """Images of one colour, `each` of every source, with scores."""
    (folder / "images").mkdir(parents=True)
    rows = [["file", "mos", "source"]]
    for k in range(sources * each):
        Image.new("RGB", (24, 16), (k, 2 * k, 90)).save(folder / "images" / f"{k}.png")
        rows.append([f"{k}.png", str(k), f"source {k // each}"])
    with (folder / "mos.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def sources_in(labels: Path) -> set[str]:
    with labels.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert all((labels.parent / "images" / row["image"]).is_file() for row in rows)
    return {row["reference"] for row in rows}


def test_no_source_is_on_two_sides_and_validation_leaves_test_images_out(
    human_sets: ModuleType, tmp_path: Path
) -> None:
    write_set(tmp_path / "data" / "some", sources=30, each=2)
    chosen = human_sets.HumanSet("some", "source", 20)
    parts = human_sets.cut(tmp_path / "data", chosen, tmp_path / "work")
    train, test = sources_in(parts.train), sources_in(parts.test)
    assert len(train) > 9 and len(test) > 5 and not train & test and len(train | test) == 30
    assert Image.open(next(parts.unlabeled.iterdir())).size == (20, 20)
    inner = human_sets.cut(tmp_path / "data", chosen, tmp_path / "choose", validation=True)
    learnt, validated = sources_in(inner.train), sources_in(inner.test)
    assert validated and not learnt & validated and learnt | validated == train


def test_images_that_are_there_are_not_written_again(human_sets: ModuleType, tmp_path: Path) -> None:
    write_set(tmp_path / "data" / "some", sources=4, each=2)
    chosen = human_sets.HumanSet("some", "source", 20)
    parts = human_sets.cut(tmp_path / "data", chosen, tmp_path / "work")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.png")}
    assert human_sets.cut(tmp_path / "data", chosen, tmp_path / "work") == parts
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.png")} == kept


def comparison(folder: Path, noise: dict[str, float], seeds: int = 2) -> Path:
    """What `evoprompt compare` writes, of scores that are human scores with more or less noise; `none` is the bare."""
    rng = np.random.default_rng(ord(folder.name[0]))
    mos = np.arange(N, dtype=float)
    mistaken = rng.normal(0, 1, N)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "scores.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "mos", "split", "prompt", "kind", "method", "seen", "score"])
        for method, size in noise.items():
            for seed in range(1 if method == "none" else seeds):
                kind = "bare" if method == "none" else "control" if "labels" in method else "label-free"
                scores = mos + size * (mistaken + 0.1 * rng.normal(0, 1, N))
                writer.writerows(
                    [f"{k}.png", mos[k], "test", f"{method} {seed}", kind, method, 0, scores[k]] for k in range(N)
                )
    return folder


NOISE = {
    "none": 30.0,
    "votes": 8.0,
    "supervised": 10.0,
    "label-free": 14.0,
    "label-free with ladder": 20.0,
    "random labels": 31.0,
    "shuffled labels": 30.0,
}


def results_of(study: ModuleType, folders: list[Path]) -> dict[str, Any]:
    pairs = {"ratings": {"value": 0.6}, "votes, views 1, wordings 1": {"value": 0.7}}
    pairs["votes less ratings"] = {"value": 0.1, "low": 0.05, "high": 0.15, "reason": ""}
    one = {"revision": "abc", "n": N, "pairs": pairs, "near ends": 0.1, "levels": [0.1, 0.2, 0.4, 0.2, 0.1]}
    judges = {}
    for place, folder in enumerate(folders):
        methods = study.numbers_of([folder], study.CONTROLS)
        own = {**one, "methods": methods, "estimates": {name: 0.1 * place for name in study.KNOWN}}
        judges[folder.name] = {"biq2021": own}
    return {"seeds": 2, "judges": judges, "sets": {"biq2021": study.over_judges(folders)}}


def test_a_comparison_is_made_again_for_other_seeds_and_runs_of_other_settings_are_refused(
    compare_nano: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def run(command: str, *rest: str) -> None:
        asked.append(command)
        out = Path(rest[rest.index("-o") + 1])
        if command == "compare":
            seeds = sum("=" in item for item in rest) // 2
            comparison(out, {"none": 30.0, "label-free": 14.0, "random labels": 31.0}, seeds)
            (out / "comparison.json").write_text(json.dumps({"seeds": seeds}))
            return
        keys = [value for flag, value in pairwise(rest) if flag == "-s"]
        (out / "rounds" / "000").mkdir(parents=True)
        (out / "rounds" / "000" / "round.json").write_text(json.dumps({"peak_memory_mib": 1}))
        (out / "run.json").write_text(json.dumps({"status": "finished"}))
        (out / "recipe.yaml").write_text(load_recipe(rest[rest.index("-r") + 1], keys).to_yaml())

    monkeypatch.setattr(compare_nano, "run", run)
    methods = {"label-free": ("evolve", "nano", ()), "random labels": ("evolve", "nano", ("control=random-labels",))}

    def one_set(seeds: int, *settings: str) -> tuple[int, list[str]]:
        asked.clear()
        parts = importlib.import_module("human_sets").Parts(tmp_path, tmp_path, tmp_path)
        return compare_nano.one_set(parts, tmp_path / "work", seeds, settings, methods)["seeds"], list(asked)

    assert one_set(1, "rounds=1") == (1, ["evolve", "evolve", "compare"])
    assert one_set(1, "rounds=1") == (1, [])
    assert one_set(2, "rounds=1") == (2, ["evolve", "evolve", "compare"])
    assert one_set(1, "rounds=1") == (1, ["compare"])
    with pytest.raises(SystemExit, match=r"label-free-0 was made with other settings \(rounds: 1 -> 2\)"):
        one_set(1, "rounds=2")


def test_the_bar_says_what_is_met(study: ModuleType, tmp_path: Path) -> None:
    results = results_of(study, [comparison(tmp_path / name, NOISE) for name in "ab"])
    found = results["sets"]["biq2021"]
    gains = {name: row["gain"] for name, row in found["methods"].items() if row["gain"]}
    assert gains["label-free"]["low"] > 0 >= gains["random labels"]["low"]
    assert found["methods"]["label-free"]["over random labels"]["low"] > 0
    ratio = gains["label-free"]["value"] / gains["supervised"]["value"]
    assert found["share"]["value"] == pytest.approx(ratio) and found["share"]["low"] < ratio < found["share"]["high"]
    runs = found["runs"]["random labels"]
    assert (runs["above"], runs["of"]) == (4, 4) and 0 < runs["p"] < 0.05
    assert found["methods"]["label-free"]["single"][0] > 0 > found["methods"]["random labels"]["single"][0]
    bar = {(line, asked): verdict for line, asked, _, verdict in study.bar(results)}
    assert bar["4 random labels", "no clear gain"] == "met"
    assert bar["4 random labels", "label-free clearly above"] == "met"
    assert bar["3 label-free", "70 % of the supervised gain"] == ("met" if ratio >= 0.7 else "**not met**")
    assert bar["3 label-free", "clear gain on two sets"] == "**not met**"  # there is one set here
    assert bar["5 votes", "clearly better than ratings"] == "met"
    page = study.page(results)
    assert "random labels (CONTROL)" in page and "## biq2021: 60 test images" in page


def test_a_control_that_gains_is_told(study: ModuleType, tmp_path: Path) -> None:
    folders = [comparison(tmp_path / name, {**NOISE, "random labels": 9.0}) for name in "ab"]
    bar = {(line, asked): verdict for line, asked, _, verdict in study.bar(results_of(study, folders))}
    assert bar["4 random labels", "no clear gain"] == "**not met**"
    assert bar["4 random labels", "label-free clearly above"] == "**not met**"
    assert bar["4 shuffled labels", "no clear gain"] == "met"


def test_there_is_no_share_of_a_supervised_loss(study: ModuleType, tmp_path: Path) -> None:
    folders = [comparison(tmp_path / name, {**NOISE, "supervised": 60.0}) for name in "ab"]
    results = results_of(study, folders)
    assert results["sets"]["biq2021"]["share"] is None
    assert "none to reach" in study.page(results)
