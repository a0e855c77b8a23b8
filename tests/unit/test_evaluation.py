"""Evaluation: the right numbers beside the bare judge, from one read of every image."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as reference

from evoprompt.errors import DataError
from evoprompt.evaluation import evaluate, table


def _columns() -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)
    mos = rng.normal(size=200)
    return {"none": mos + 2.0 * rng.normal(size=200), "better": mos + 0.5 * rng.normal(size=200)}, mos


def test_values_equal_scipys() -> None:
    columns, mos = _columns()
    for row in evaluate(columns, mos, n_boot=200):
        x = columns[row.name]
        assert row.srcc.value == pytest.approx(reference.spearmanr(x, mos)[0])
        assert row.plcc.value == pytest.approx(reference.pearsonr(x, mos)[0])
        assert row.krcc.value == pytest.approx(reference.kendalltau(x, mos)[0])
        assert row.srcc.low < row.srcc.value < row.srcc.high


def test_the_gain_over_the_bare_judge_is_paired() -> None:
    columns, mos = _columns()
    bare, better = evaluate(columns, mos, n_boot=400)
    assert bare.gain is None
    assert better.gain is not None
    assert better.gain.value == pytest.approx(better.srcc.value - bare.srcc.value)
    assert better.gain.low > 0 and better.p_value is not None and better.p_value < 0.05
    assert "| better | 200 |" in table([bare, better])


def test_too_few_images_are_refused() -> None:
    with pytest.raises(DataError, match="4 labelled images are too few"):
        evaluate({"none": np.arange(4.0)}, np.arange(4.0))
