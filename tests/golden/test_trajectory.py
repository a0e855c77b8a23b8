"""A recorded run through the command line: the same losses, votes and prompt, step by step.

A change that moves these numbers moves everybody's results: explain it in the commit that records them again with

    python tests/golden/test_trajectory.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner

from evoprompt.cli import main
from evoprompt.prompts import PixelPrompt
from evoprompt.runs import read_lines, read_rounds

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import write_photos

REFERENCE = Path(__file__).with_name("trajectory.json")
SETTINGS = {
    "pairs.per_round": 60, "pairs.group": 6, "vote.wordings": 2, "vote.views": 2, "vote.min_confidence": 0.5,
    "train.steps": 10, "ladder.images": 3, "ladder.kinds": 4, "ladder.levels": 2, "pairs.ladder": 0.3,
}  # fmt: skip


def trajectory(folder: Path) -> dict[str, list[float]]:
    """Run two rounds with the embedded judge and collect what happened."""
    (folder / "photos").mkdir()
    write_photos(folder / "photos")
    settings = [word for key, value in SETTINGS.items() for word in ("-s", f"{key}={value}")]
    command = ["evolve", "--unlabeled", str(folder / "photos"), "-o", str(folder / "run"), "--rounds", "2", "--force"]
    result = CliRunner().invoke(main, [*command, "-r", "nano", "--device", "cpu", *settings])
    assert result.exit_code == 0, result.output
    rounds = [folder / "run" / "rounds" / f"{n:03d}" for n in range(3)]
    last = PixelPrompt.load(rounds[2] / "prompt").theta.detach()
    return {
        "loss": [step["train/loss"] for path in rounds[1:] for step in read_lines(path / "steps.jsonl")],
        "logit": [vote["logit"] for vote in read_lines(rounds[1] / "votes.jsonl")][::16],
        "ladder": [r["metrics"]["health/ladder_rate_accuracy"] for r in read_rounds(folder / "run")],
        "theta": last.flatten().tolist(),
    }


def test_two_rounds_through_the_command_line_repeat_the_recorded_ones(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    found, expected = trajectory(tmp_path), json.loads(REFERENCE.read_text())
    assert {k: len(v) for k, v in found.items()} == {k: len(v) for k, v in expected.items()}
    for name, values in expected.items():
        gap = np.abs(np.array(found[name]) - np.array(values))
        # The mean is the sharper test: rounding differs from machine to machine, but not to one side.
        assert gap.max() < 2e-2 and gap.mean() < 2e-3, (name, gap.max(), gap.mean())


if __name__ == "__main__":
    import tempfile

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        recorded = trajectory(Path(place))
    rounded = {name: [round(v, 5) for v in values] for name, values in recorded.items()}
    REFERENCE.write_text(json.dumps(rounded) + "\n")
