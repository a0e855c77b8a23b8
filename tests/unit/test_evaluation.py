"""Evaluation: the right numbers beside the bare judge, on the images that every prompt has a score for."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as reference

from evoprompt.dependent import williams
from evoprompt.errors import DataError
from evoprompt.evaluation import Protocol, evaluate, evaluate_columns
from evoprompt.logistic import logistic4
from evoprompt.score_files import Column, Target
from evoprompt.stats import srcc


def _columns() -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)
    mos = rng.normal(size=200)
    return {"none": mos + 2.0 * rng.normal(size=200), "better": mos + 0.5 * rng.normal(size=200)}, mos


def _target(n: int = 60) -> tuple[Target, list[Column]]:
    rng = np.random.default_rng(1)
    mos = rng.uniform(1, 5, n)
    target = Target(images=tuple(f"{k}.png" for k in range(n)), mos=mos, std=np.full(n, 0.6), ends=(1.0, 5.0))
    levels = rng.dirichlet(np.ones(5), n)
    bare = Column(name="none", kind="bare", scores=mos + rng.normal(size=n), levels=levels, seen=np.zeros(n, bool))
    return target, [bare, Column(name="p", kind="label-free", scores=mos + 0.3 * rng.normal(size=n))]


def test_values_equal_scipys() -> None:
    columns, mos = _columns()
    for row in evaluate(columns, mos, n_boot=200):
        x = columns[row.name]
        assert row.srcc.value == pytest.approx(reference.spearmanr(x, mos)[0])
        assert row.plcc.value == pytest.approx(reference.pearsonr(x, mos)[0])
        assert row.krcc.value == pytest.approx(reference.kendalltau(x, mos)[0])
        assert row.more["rmse_logistic4"].value == pytest.approx(logistic4(x, mos).rmse)
        for number in (row.srcc, row.plcc, row.krcc, *row.more.values()):
            assert number.low < number.value < number.high


def test_the_gain_over_the_bare_judge_is_paired() -> None:
    columns, mos = _columns()
    bare, better = evaluate(columns, mos, n_boot=400)
    assert bare.gain is None and not bare.differences
    assert better.gain is not None
    assert better.gain.value == pytest.approx(better.srcc.value - bare.srcc.value)
    assert better.gain.low > 0 and better.p_value is not None and better.p_value < 0.05
    assert set(better.differences) == {"srcc", "plcc", "krcc", "plcc_logistic4"}
    between = srcc(columns["none"], columns["better"])
    assert better.tests["williams_srcc"] == williams(better.srcc.value, bare.srcc.value, between, 200)
    assert better.tests["steiger_plcc"].p_value < 0.001


def test_too_few_images_and_equal_scores_are_refused() -> None:
    with pytest.raises(DataError, match="4 labelled images are too few"):
        evaluate({"none": np.arange(4.0)}, np.arange(4.0))
    with pytest.raises(DataError, match="all 6 human scores are 3; nothing can agree with them"):
        evaluate({"none": np.arange(6.0)}, np.full(6, 3.0))


def test_a_constant_column_has_no_number_and_a_reason() -> None:
    row = evaluate({"none": np.ones(20)}, np.arange(20.0), n_boot=100)[0]
    body = json.loads(json.dumps(row.to_dict()))
    assert body["srcc"] == {"value": None, "low": None, "high": None, "reason": "x is constant (1)"}
    assert body["plcc_logistic4"]["reason"] == "x is constant (1)"


def test_pairs_are_those_a_standard_deviation_apart_unless_said_otherwise() -> None:
    mos = np.arange(10.0)
    swapped = np.array([1, 0, 3, 2, 5, 4, 7, 6, 9, 8], dtype=float)
    assert evaluate({"none": swapped}, mos, n_boot=100)[0].more["pair_accuracy"].value == 1
    wide = evaluate({"none": swapped}, mos, n_boot=100, min_gap=1.0)[0].more["pair_accuracy"]
    assert wide.value == pytest.approx(40 / 45)
    assert "apart" in evaluate({"none": swapped}, mos, n_boot=100, min_gap=99.0)[0].more["pair_accuracy"].reason


def test_images_without_a_score_are_left_out_of_all_rows_and_counted() -> None:
    target, columns = _target()
    holes = columns[1].scores.copy()
    holes[[3, 7]] = np.nan
    rows, left_out = evaluate_columns(target, [columns[0], replace(columns[1], scores=holes)], Protocol(n_boot=100))
    kept = np.isfinite(holes)
    assert left_out == 2 and [row.n for row in rows] == [58, 58]
    assert rows[0].srcc.value == pytest.approx(reference.spearmanr(columns[0].scores[kept], target.mos[kept])[0])
    assert (rows[0].kind, rows[0].seen, rows[1].kind, rows[1].seen) == ("bare", 0, "label-free", None)


def test_distances_need_deviations_and_a_predicted_distribution() -> None:
    target, columns = _target()
    bare, other = evaluate_columns(target, columns, Protocol(n_boot=100))[0]
    names = {"js", "kl", "wasserstein", "js_normal", "kl_normal", "wasserstein_normal"}
    assert names <= set(bare.more) and not names & set(other.more)
    assert 0 < bare.more["js"].low < bare.more["js"].value < bare.more["js"].high < np.log(2)
    without = replace(target, std=None)
    assert not names & set(evaluate_columns(without, columns, Protocol(n_boot=100))[0][0].more)


def test_a_scale_that_human_scores_leave_is_refused() -> None:
    target, columns = _target()
    with pytest.raises(DataError, match=r"human scores lie outside the scale 2..4 \(they go from .* --mos-range"):
        evaluate_columns(target, columns, Protocol(n_boot=100, ends=(2.0, 4.0)))


def test_images_of_one_reference_are_drawn_together() -> None:
    target, columns = _target()
    repeated = target.only(np.repeat(np.arange(60), 5).tolist())
    groups = tuple(np.repeat(np.arange(60), 5).astype(str))
    many = [column.only(np.repeat(np.arange(60), 5).tolist()) for column in columns]
    plain = evaluate_columns(target, columns, Protocol(n_boot=500))[0][0].srcc
    together = evaluate_columns(replace(repeated, groups=groups), many, Protocol(n_boot=500))[0][0].srcc
    alone = evaluate_columns(repeated, many, Protocol(n_boot=500))[0][0].srcc
    assert together.high - together.low == pytest.approx(plain.high - plain.low, rel=0.15)
    assert alone.high - alone.low < (plain.high - plain.low) / 1.8


def test_images_of_one_reference_only_have_numbers_without_bounds() -> None:
    target, columns = _target()
    alone = replace(target, groups=("r1",) * 60, factors={"distortion": ("blur",) * 60})
    for row in (told.to_dict() for told in evaluate_columns(alone, columns, Protocol(n_boot=100))[0]):
        numbers = [row[key] for key in ("srcc", "plcc_logistic4", "rmse_logistic4", "pair_accuracy")]
        numbers += [row["parts"]["distortion"]["blur"]["srcc"], *row.get("differences", {}).values()]
        for number in numbers:
            assert number["value"] is not None and number["low"] is number["high"] is None
            assert number.get("p_value") is None and "1 cluster of images drawn together" in number["reason"]
    wide = replace(alone, std=None)
    assert evaluate_columns(wide, columns, Protocol(n_boot=100, min_gap=99))[0][0].more["pair_accuracy"].reason == (
        "no two images lie so far apart in MOS"
    )


def test_within_a_distortion_only_its_images_count() -> None:
    target, columns = _target()
    kinds = tuple("blur" if k < 40 else "noise" if k < 57 else "rare" for k in range(60))
    row = evaluate_columns(replace(target, factors={"distortion": kinds}), columns, Protocol(n_boot=100))[0][1]
    part = row.parts["distortion"]
    assert [part[name]["n"] for name in ("blur", "noise", "rare")] == [40, 17, 3]
    expected = reference.spearmanr(columns[1].scores[:40], target.mos[:40])[0]
    assert part["blur"]["srcc"]["value"] == pytest.approx(expected)
    assert part["rare"]["srcc"]["reason"] == "n = 3; at least 5 images are needed"


def test_two_columns_of_one_name_are_refused() -> None:
    target, columns = _target()
    with pytest.raises(DataError, match="two sets of scores are called none"):
        evaluate_columns(target, [columns[0], columns[0]], Protocol(n_boot=100))
