"""Transfer and forgetting over domains, with numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from evoprompt.continual import continual, continual_body, continual_table
from evoprompt.errors import DataError

MATRIX = [[0.8, 0.5, 0.4], [0.7, 0.9, 0.5], [0.6, 0.95, 0.8]]
BARE = [0.3, 0.4, 0.35]


def test_known_numbers() -> None:
    found = continual(MATRIX, BARE)
    assert found.acc == pytest.approx((0.6 + 0.95 + 0.8) / 3)
    assert found.bwt == pytest.approx(((0.6 - 0.8) + (0.95 - 0.9)) / 2)
    assert found.fwt == pytest.approx(((0.5 - 0.4) + (0.5 - 0.35)) / 2)
    assert found.forgotten == pytest.approx((0.8 - 0.6, 0.9 - 0.95))
    assert found.forgetting == pytest.approx((0.2 - 0.05) / 2)


def test_a_prompt_that_changes_nothing_neither_transfers_nor_forgets() -> None:
    found = continual([BARE] * 3, BARE)
    assert found[:4] == pytest.approx((np.mean(BARE), 0, 0, 0))


def test_one_domain_has_an_end_and_nothing_to_forget() -> None:
    found = continual([[0.7]], [0.5])
    assert found.acc == 0.7 and math.isnan(found.bwt) and found.forgotten == ()


@pytest.mark.parametrize("matrix", [[[0.5, 0.5]], [[0.5], [0.5]]])
def test_as_many_stages_as_domains_are_needed(matrix: list[list[float]]) -> None:
    with pytest.raises(DataError, match="give one prompt for each domain"):
        continual(matrix, [0.1] * len(matrix))


def test_numbers_that_are_not_defined_are_refused() -> None:
    with pytest.raises(DataError, match="not defined on some domain"):
        continual([[math.nan]], [0.1])


def body(domain: int, stages: int = 3) -> dict[str, Any]:
    def number(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.1, "high": value + 0.1}

    rows = [{"name": "none", "kind": "bare", "srcc": number(BARE[domain])}]
    rows += [{"name": f"s{i}", "kind": "label-free", "srcc": number(MATRIX[i][domain])} for i in range(stages)]
    told = {"labels": f"d{domain}.csv", "n": 40, "split": "none", "direction": "higher is better", "judge": "owl@1"}
    return {**told, "rows": rows}


def test_the_matrix_is_put_together_from_evaluations() -> None:
    bodies = [body(domain) for domain in range(3)]
    found = continual_body(bodies)
    assert found["matrix"] == MATRIX and found["bare"] == BARE and found["stages"] == ["s0", "s1", "s2"]
    assert found["bwt"] == pytest.approx(-0.075)
    text = continual_table(found, bodies)
    assert (
        "| 2: s1 | 0.700 [0.600, 0.800] | 0.900 [0.800, 1.000] | 0.500 [" in text
        and "Judge: owl@1." in text
        and "BWT -0.075" in text
        and "d0.csv (n = 40)" in text
    )


def test_evaluations_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(DataError, match=r"d0.csv was evaluated for 1 bare judges and 2 prompts; .* 3 prompts"):
        continual_body([body(domain, 2) for domain in range(3)])
    bodies = [body(domain) for domain in range(3)]
    bodies[1]["rows"][1]["name"] = "other"
    with pytest.raises(DataError, match="d1.csv was evaluated for other, s1, s2, the domain before for s0, s1, s2"):
        continual_body(bodies)
    with pytest.raises(DataError, match="has no recall; use one of srcc"):
        continual_body([body(domain) for domain in range(3)], "recall")
