"""The benchmark script: every part that needs no files runs on a very small judge of random weights."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from evoprompt.config import Recipe
from evoprompt.training import PromptedRating

SCRIPTS = str(Path(__file__).parents[2] / "scripts")


@pytest.fixture(scope="module")
def tiny() -> Any:
    """The bench with a very small judge of random weights and groups of twelve images."""
    sys.path.insert(0, SCRIPTS)
    import bench
    import bench_plain

    torch.manual_seed(0)
    return bench.Bench(bench_plain.random_judge("tiny", torch.float32, torch.device("cpu")), pairs=1)


@pytest.fixture(scope="module")
def found(tiny: Any) -> dict[str, Any]:
    """What the parts that need no files say, as a GPU run of the 7B architecture would."""
    parts = {part: getattr(tiny, part)() for part in ("votes", "step", "hardware", "memory", "profile")}
    return {"judge": tiny.judge.id, "dtype": "float32", "device": "CPU", "torch": "2", **parts}


def operations(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def test_every_way_to_train_has_the_same_gradient(found: dict[str, Any]) -> None:
    for way in ("pairs", "accumulated", "batch"):
        assert found["step"][way]["gradient_differs_by"] < 1e-4


def test_the_straightforward_ways_compute_more_and_take_more_memory(tiny: Any, found: dict[str, Any]) -> None:
    import bench_plain as plain

    judge, question = tiny.judge, tiny.judge.family.compare[0]
    item, pixels, pairs, targets = tiny._batch(tiny.group)
    judge.attach(None)
    with torch.no_grad():
        seen = judge.encode(pixels)
    a_pair = operations(lambda: tiny._ours(1)) / len(pairs)
    ways = (
        lambda: plain.generated_share(judge, question, *pixels[:2]),
        lambda: plain.repeated_share(judge, question, *pixels[:2], encoded=False),
        lambda: plain.repeated_share(judge, question, *seen[:2], encoded=True),
    )
    assert all(operations(way) > 8 * a_pair for way in ways)

    prompt = tiny._prompt()
    model = PromptedRating(judge, prompt, Recipe())
    ours = operations(lambda: model(**item)["loss"].backward())
    assert operations(lambda: plain.plain_step(judge, prompt, pixels, pairs, targets, "pairs")) > 4 * ours
    assert found["step"]["pairs"]["ours_takes"] < 0.5


def test_memory_is_about_what_was_planned(found: dict[str, Any]) -> None:
    whole = found["memory"]["weights"]["none"]
    assert whole["weights_gib"] == pytest.approx(whole["weights_gib_planned"], rel=0.01)
    assert 0.5 < whole["step"]["planned_mib"] / whole["step"]["peak_mib"] < 1.1
    assert whole["step, checkpointing"]["peak_mib"] < 0.9 * whole["step"]["peak_mib"]


def test_a_profile_says_what_takes_most(found: dict[str, Any]) -> None:
    for row in found["profile"].values():
        shares = list(row["shares"].values())
        assert shares == sorted(shares, reverse=True) and 0.3 < sum(shares) <= 1 and row["ms_a_pair"] > 0
    assert found["profile"]["votes after: a group"]["shares"].keys() & {"aten::mm", "aten::addmm", "aten::bmm"}


def test_use_of_the_hardware_is_a_share(found: dict[str, Any]) -> None:
    for work in ("vote", "step", "step, checkpointing"):
        numbers = found["hardware"][work]
        assert 0 < numbers["utilisation"] < 1.5 and numbers["peak_mib"] > 0
    assert found["hardware"]["step, checkpointing"]["tflop"] > found["hardware"]["step"]["tflop"]


def test_the_report_shows_what_was_measured(found: dict[str, Any]) -> None:
    from bench_report import report

    text = report(found)
    assert "## Votes" in text and "## Training step" in text and "## Use of the hardware" in text
    assert "## Memory" in text and "## Profile" in text and "Not measured, because it needs a GPU" in text
    assert "## Scaling" not in text


def test_parts_measured_before_stay_when_machine_and_judge_are_the_same(tmp_path: Path, found: dict[str, Any]) -> None:
    import bench

    identity = {key: found[key] for key in ("judge", "dtype", "device", "torch")}
    for parts in (("votes",), ("step", "profile")):
        bench.write({**identity, **{part: found[part] for part in parts}}, tmp_path / "p")
    text = (tmp_path / "p.md").read_text(encoding="utf-8")
    assert "## Votes" in text and "## Training step" in text and "## Profile" in text
    bench.write({**identity, "device": "another", "step": found["step"]}, tmp_path / "p")
    assert "## Votes" not in (tmp_path / "p.md").read_text(encoding="utf-8")


def test_agreement_expected_by_chance() -> None:
    from bench import exponent, majority_chance

    assert majority_chance(np.array([0.999, 0.5]), 32) == pytest.approx([1.0, 0.57], abs=0.03)
    assert exponent({10: 1.0, 20: 2.0, 40: 4.0}) == pytest.approx(1.0)
