"""Comparison: the share of the supervised gain, seeds, controls, votes without training, and the tables that say so."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ScriptedJudge, write_toy_images

from evoprompt.comparison import (
    comparison_page,
    gain_shares,
    plan_votes,
    summarise_methods,
    votes_without_training,
    write_results,
)
from evoprompt.evaluation import Protocol, evaluate_columns
from evoprompt.labels import read_labels
from evoprompt.result_tables import document, latex, markdown, shown
from evoprompt.score_files import Column, Target
from evoprompt.stats import srcc

FAST = Protocol(n_boot=300)


def made(n: int = 150, supervised: float = 0.5, free: float = 0.9) -> tuple[Target, list[Column]]:
    """Columns whose noise says how good they are; the bare judge has 1.6."""
    rng = np.random.default_rng(0)
    mos = rng.normal(size=n)
    target = Target(images=tuple(f"{k}.png" for k in range(n)), mos=mos)
    kinds = {"none": ("bare", 1.6), "free": ("label-free", free), "taught": ("supervised", supervised)}
    kinds["tossed"] = ("control", 1.7)
    return target, [
        Column(name=name, kind=kind, scores=mos + noise * rng.normal(size=n), seen=np.zeros(n, bool))
        for name, (kind, noise) in kinds.items()
    ]


def body(target: Target, columns: list[Column]) -> dict[str, Any]:
    rows, left_out = evaluate_columns(target, columns, FAST)
    told = [row.to_dict() for row in rows]
    return {
        "labels": "my_set.csv",
        "n": len(target.images),
        "left_out": left_out,
        "split": target.split,
        "direction": target.direction,
        "judge": "scripted@0",
        "protocol": {"clusters": "images", "n_boot": 300, "seed": 0, "min_gap": 1.0, "mos_scale": [1.0, 5.0]},
        "rows": told,
        "shares": gain_shares(target, columns, FAST),
        "summaries": summarise_methods(told),
    }


def test_the_share_of_the_supervised_gain_and_its_interval() -> None:
    target, columns = made()
    (found,) = gain_shares(target, columns, FAST)
    bare, free, taught = (srcc(column.scores, target.mos) for column in columns[:3])
    assert (found["label_free"], found["supervised"]) == ("free", "taught")
    assert found["share"]["value"] == pytest.approx((free - bare) / (taught - bare))
    assert found["share"]["low"] < found["share"]["value"] < found["share"]["high"] and "reason" not in found["share"]


def test_the_share_is_that_of_the_mean_over_seeds() -> None:
    target, columns = made()
    rng = np.random.default_rng(5)
    seeds = [
        Column(name=f"free {k}", method="free", kind="label-free", scores=target.mos + noise * rng.normal(size=150))
        for k, noise in enumerate((0.7, 1.2))
    ]
    (found,) = gain_shares(target, [columns[0], columns[2], *seeds], FAST)
    bare, taught = srcc(columns[0].scores, target.mos), srcc(columns[2].scores, target.mos)
    gain = np.mean([srcc(seed.scores, target.mos) for seed in seeds]) - bare
    assert found["share"]["value"] == pytest.approx(gain / (taught - bare))


def test_without_a_supervised_gain_the_share_is_not_defined() -> None:
    target, columns = made(supervised=3.0)
    (found,) = gain_shares(target, columns, FAST)
    assert found["share"]["value"] is None
    assert found["share"]["reason"].startswith("the supervised gain is not positive (-")
    assert "free reaches no defined share of the SRCC gain of taught: the supervised gain" in document(
        body(*made(supervised=3.0))
    )


def test_an_uncertain_supervised_gain_leaves_the_share_without_an_interval() -> None:
    target, columns = made(n=40, supervised=1.45)
    (found,) = gain_shares(target, columns, FAST)
    assert found["share"]["value"] is not None and found["share"]["low"] is None
    assert "is not positive in" in found["share"]["reason"]


def test_seeds_are_summarised_by_method() -> None:
    rows = [
        {"method": "a", "kind": "label-free", "srcc": {"value": value}, "plcc": {"value": None}}
        for value in (0.5, 0.6, 0.9)
    ]
    (summary,) = summarise_methods([*rows])
    assert summary["runs"] == 3 and set(summary["numbers"]) == {"srcc"}
    assert summary["numbers"]["srcc"]["median"] == 0.6
    assert summary["numbers"]["srcc"]["mean"] == pytest.approx(2 / 3)
    assert summary["numbers"]["srcc"]["sd"] == pytest.approx(np.std([0.5, 0.6, 0.9], ddof=1))


def test_the_tables_state_their_protocol_and_mark_controls() -> None:
    text = document(body(*made()))
    for said in (
        "n = 150 images",
        "split: none, all images as given",
        "MOS: higher is better",
        "PLCC raw, and after 4- and 5-parameter logistic curves",
        "95 % percentile bootstrap over images, 300 resamples",
        "PLCC log-4 [95 %]",
        "| tossed (CONTROL) | 0 of 150 |",
        "| none (bare judge) |",
        "free reaches 0.",
    ):
        assert said in text, said
    widths = {line.count("|") for line in text.splitlines() if line.startswith("| ")}
    assert len(widths) == 1


def test_distances_and_parts_have_tables_of_their_own() -> None:
    target, columns = made()
    rng = np.random.default_rng(2)
    kinds = {"distortion": ("blur", "noise") * 75, "level": tuple(str(1 + k % 3) for k in range(150))}
    target = replace(target, std=np.full(150, 0.5), ends=(-5.0, 5.0), factors=kinds)
    columns[0] = replace(columns[0], levels=rng.dirichlet(np.ones(5), 150))
    text = document(body(target, columns))
    assert "Distances between predicted and human level distributions" in text and "| prompt | js [95 %] | kl" in text
    assert "By distortion:" in text and "By level:" in text
    assert "| distortion | n | none (bare judge) SRCC [95 %] | free (label-free) SRCC" in text
    assert "| blur | 75 | 0." in text and "| 3 | 50 | 0." in text


def test_the_documentation_names_every_key() -> None:
    told = body(*made())
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    keys = {*told, *told["protocol"], *(key for row in told["rows"] for key in row)}
    assert [key for key in sorted(keys) if f"`{key}`" not in page] == []


def test_scores_without_spread_have_no_share_and_break_nothing() -> None:
    target, columns = made()
    flat = replace(columns[1], scores=np.ones(150))
    assert gain_shares(target, [columns[0], flat, columns[2]], FAST) == []
    text = document(body(target, [columns[0], flat, columns[2]]))
    assert "- free, srcc, plcc, " in text and text.count("x is constant (1)") == 1


def test_few_references_leave_values_without_bounds_and_the_tables_say_so_once_a_row(tmp_path: Path) -> None:
    target, columns = made()
    target = replace(target, groups=("r1",) * 149 + ("r2",), grouping="reference")
    found = body(target, columns)
    assert "NaN" not in json.dumps(found) and found["shares"][0]["share"]["low"] is None
    assert "2 clusters of images drawn together; at least 5" in found["shares"][0]["share"]["reason"]
    write_results(tmp_path, "comparison", found, target, columns)
    text = (tmp_path / "table.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| free "))
    assert "[" not in row and " – | <.001 |" in row
    assert text.count("2 clusters of images drawn together") == len(columns) + 1  # and the share
    assert "svg" in comparison_page(found)


def test_latex_is_escaped_and_complete() -> None:
    text = latex(body(*made()))
    assert r"my\_set.csv" in text and r"95 \%" in text and "tossed (CONTROL)" in text
    assert text.count(r"\\") == 5 and text.count("&") % 5 == 0
    assert not re.search(r"(?<!\\)[%_#]", text.replace(r"\begin{tabular}", ""))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_latex_compiles(tmp_path: Path) -> None:
    head = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n"
    (tmp_path / "t.tex").write_text(head + latex(body(*made())) + "\\end{document}\n", encoding="utf-8")
    subprocess.run(["pdflatex", "-halt-on-error", "t.tex"], cwd=tmp_path, check=True, capture_output=True)


def test_numbers_are_shown_with_bounds_and_missing_ones_as_a_dash() -> None:
    assert shown({"value": 0.71349, "low": 0.6, "high": 0.8}) == "0.713 [0.600, 0.800]"
    assert shown({"value": 12.3456, "low": 11.0, "high": 13.0}) == "12.35 [11, 13]"
    assert shown({"value": 0.1, "low": None, "high": None}, "+") == "+0.100"
    assert shown({"value": None, "low": None, "high": None}) == shown(None) == "–"
    assert markdown((["a|b"], [["c"]])) == "| a\\|b |\n| --- |\n| c |"


def test_the_page_has_charts_and_nothing_to_fetch() -> None:
    page = comparison_page(body(*made()))
    assert page.count("<svg class=") == 2 and "tossed (CONTROL)" in page and "gain over the bare judge" in page
    assert "http" not in page and "<script" not in page


def test_exactly_these_files_are_written(tmp_path: Path) -> None:
    target, columns = made()
    write_results(tmp_path / "out", "comparison", body(target, columns), target, columns)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "comparison.json",
        "scores.csv",
        "table.md",
        "table.tex",
    }


def test_all_pairs_are_voted_on_when_there_are_few_and_every_image_equally_often_when_not() -> None:
    assert len(plan_votes(10, 45, 0)) == 45
    pairs = plan_votes(60, 400, 0)
    assert 400 <= len(pairs) < 500
    counts = np.bincount(pairs.ravel(), minlength=60)
    assert counts.min() >= 11 and counts.max() - counts.min() <= 11
    assert np.array_equal(pairs, plan_votes(60, 400, 0)) and not np.array_equal(pairs, plan_votes(60, 400, 1))


@pytest.mark.parametrize(("pairs", "accuracy", "least", "most"), [(780, 1.0, 0.995, 1.0), (300, 0.8, 0.75, 0.99)])
def test_votes_add_up_to_the_order_they_know(
    tmp_path: Path, pairs: int, accuracy: float, least: float, most: float
) -> None:
    """A judge that is always right orders the images; one that is right in four of five pairs nearly does."""
    quality = write_toy_images(tmp_path, n=40)
    lines = "".join(f"toy{k:02d}.png,{value}\n" for k, value in enumerate(quality))
    (tmp_path / "mos.csv").write_text(f"image,mos\n{lines}")
    labels = read_labels(tmp_path / "mos.csv")
    told: list[int] = []
    judge = ScriptedJudge(accuracy=accuracy, order_bias=1.0)
    planned = plan_votes(40, pairs, 0)
    scores = votes_without_training(judge, labels, planned, 8, lambda n=1, **_: told.append(n))
    assert sum(told) == len(planned) and scores.mean() == pytest.approx(0, abs=1e-9)
    assert least <= srcc(scores, labels.mos) <= most
