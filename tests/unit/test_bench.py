"""The benchmark script: every part that needs no files runs on a very small judge of random weights."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPTS = str(Path(__file__).parents[2] / "scripts")


@pytest.fixture(scope="module")
def found() -> dict[str, object]:
    """What the parts votes, step and hardware say, as a GPU run of the 7B architecture would."""
    sys.path.insert(0, SCRIPTS)
    import bench
    import bench_plain

    torch.manual_seed(0)
    judge = bench_plain.random_judge("tiny", torch.float32, torch.device("cpu"))
    measured = bench.Bench(judge, pairs=1, group=6)
    return {"judge": judge.id, "dtype": "float32", "device": "CPU", "torch": torch.__version__} | {
        part: getattr(measured, part)() for part in ("votes", "step", "hardware")
    }


def test_every_way_to_train_has_the_same_gradient(found: dict[str, dict[str, dict[str, float]]]) -> None:
    for way in ("pairs", "accumulated", "batch"):
        assert found["step"][way]["gradient_differs_by"] < 1e-4


def test_the_straightforward_ways_are_slower_and_larger(found: dict[str, dict[str, dict[str, float]]]) -> None:
    assert all(found["votes"][way]["ours_is_faster"] > 2 for way in ("generate", "forward", "forward, encoded once"))
    assert found["step"]["pairs"]["ours_is_faster"] > 1.5 and found["step"]["pairs"]["ours_takes"] < 0.5


def test_use_of_the_hardware_is_a_share(found: dict[str, dict[str, dict[str, float]]]) -> None:
    for work in ("vote", "step", "step, checkpointing"):
        numbers = found["hardware"][work]
        assert 0 < numbers["utilisation"] < 1.5 and numbers["peak_mib"] > 0
    assert found["hardware"]["step, checkpointing"]["tflop"] > found["hardware"]["step"]["tflop"]


def test_the_report_shows_what_was_measured(found: dict[str, object]) -> None:
    from bench_report import report

    text = report(found)
    assert "## Votes" in text and "## Training step" in text and "## Use of the hardware" in text
    assert "## Scaling" not in text


def test_agreement_expected_by_chance() -> None:
    from bench import exponent, majority_chance

    assert majority_chance(np.array([0.999, 0.5]), 32) == pytest.approx([1.0, 0.57], abs=0.03)
    assert exponent({10: 1.0, 20: 2.0, 40: 4.0}) == pytest.approx(1.0)
