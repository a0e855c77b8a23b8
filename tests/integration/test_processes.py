"""Several processes of one job: the same votes bit for bit, the same prompt, one writer; a killed one loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BORDER, SIDE, ScriptedJudge, write_photos

from evoprompt.config import PixelConfig, Recipe, TrainConfig
from evoprompt.errors import JudgeError
from evoprompt.lifecycle import new_prompt
from evoprompt.processes import first_of_machine, from_first, in_turns, joined, peak_memory_mib, rank, whole, world
from evoprompt.prompts import PixelPrompt, PromptConfig
from evoprompt.runs import read_lines
from evoprompt.steps import Batch, Steps
from evoprompt.training import PromptedRating, train_prompt

SETTINGS = {
    "pairs.per_round": 30, "pairs.group": 5, "vote.wordings": 1, "vote.views": 1, "vote.min_confidence": 0.5,
    "train.steps": 6, "train.save_every": 2, "ladder.images": 2, "ladder.kinds": 2, "ladder.levels": 1,
    "pairs.ladder": 0.3,
}  # fmt: skip


def start(
    folder: Path, processes: int, *words: str, program: Sequence[str] = ("-m", "evoprompt")
) -> subprocess.Popen[str]:
    """``evoprompt``, or another program, with these words, alone or through torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), *program, *words]
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def evolving(out: str, **settings: object) -> list[str]:
    keys = [word for key, value in (SETTINGS | settings).items() for word in ("-s", f"{key}={value}")]
    return [
        "evolve",
        "--unlabeled",
        "photos",
        "-o",
        out,
        "--rounds",
        "1",
        "--force",
        "-r",
        "nano",
        "--device",
        "cpu",
        *keys,
    ]


def files(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    write_photos(tmp_path / "photos")
    return tmp_path


@pytest.mark.slow
def test_two_processes_make_the_run_of_one(place: Path) -> None:
    measured = ("--eval-mos", "photos/labels.csv", "--seen", "keep")
    jobs = [start(place, n, *evolving(f"by{n}"), *measured) for n in (1, 2)]
    said = [job.communicate(timeout=120)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    one, two = place / "by1", place / "by2"
    assert files(one) == files(two)
    votes = [(run / "rounds/001/votes.jsonl").read_bytes() for run in (one, two)]
    assert votes[0] and votes[0] == votes[1]
    start_votes = [(run / "rounds/000/votes.jsonl").read_bytes() for run in (one, two)]
    assert start_votes[0] and start_votes[0] == start_votes[1]
    evaluations = [(run / "rounds/000/eval.json").read_bytes() for run in (one, two)]
    assert evaluations[0] == evaluations[1]
    thetas = [PixelPrompt.load(run / "rounds/001/prompt").theta.detach() for run in (one, two)]
    assert thetas[0].any()
    torch.testing.assert_close(thetas[1], thetas[0], rtol=0, atol=1e-5)
    losses = [[step["train/loss"] for step in read_lines(run / "rounds/001/steps.jsonl")] for run in (one, two)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5) and len(losses[0]) == 6
    # People are told once.
    assert said[1].count("report   ") == 1 and said[1].count("images   16 found") == 1
    assert "FutureWarning" not in said[1]


SCORING = """
import sys
from pathlib import Path
import numpy as np
from conftest import ScriptedJudge
from evoprompt.labels import read_labels
from evoprompt.processes import joined, rank
from evoprompt.prompts import PixelPrompt
from evoprompt.scoring import score_labels

class Counting(ScriptedJudge):
    encoded = 0
    def encode(self, pixels):
        self.encoded += len(pixels)
        return super().encode(pixels)

with joined("cpu"):
    judge, labels = Counting(), read_labels(Path("photos/labels.csv"))
    columns = score_labels(judge, [None, PixelPrompt.load(Path("prompt"))], labels, 3, lambda n=1, **_: None)
    scores, levels = map(np.stack, zip(*columns))
    np.savez(f"{sys.argv[1]}-{rank()}.npz", scores=scores, levels=levels, encoded=judge.encoded)
"""


@pytest.mark.slow
def test_processes_share_the_scoring_and_all_have_the_same_scores(place: Path) -> None:
    prompt = PixelPrompt(PromptConfig(image_size=SIDE, size=BORDER))
    prompt.theta.data += torch.randn(prompt.theta.shape, generator=torch.Generator().manual_seed(0))
    prompt.save(place / "prompt")
    (place / "scoring.py").write_text(SCORING)
    jobs = [start(place, n, f"by{n}", program=["scoring.py"]) for n in (1, 2)]
    said = [job.communicate(timeout=120)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    alone, first, second = (np.load(place / f"by{name}.npz") for name in ("1-0", "2-0", "2-1"))
    assert alone["scores"].shape == (2, 16) and np.ptp(alone["scores"]) > 0.1
    for key in ("scores", "levels"):
        assert np.array_equal(alone[key], first[key]) and np.array_equal(alone[key], second[key])
    # 16 images in batches of 3, under no prompt and under one.
    assert (alone["encoded"], first["encoded"], second["encoded"]) == (32, 18, 14)


def process_of_rank(launcher: int, wanted: int) -> int | None:
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for child in children:
        if f"RANK={wanted}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    return None


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the process through /proc")
def test_a_killed_process_ends_the_job_and_the_run_goes_on_from_there(place: Path) -> None:
    job, run = start(place, 2, *evolving("run", **{"train.steps": 400})), place / "run"
    checkpoints = run / "rounds/.001.tmp/checkpoints"
    try:
        for _ in range(1200):
            time.sleep(0.05)
            if job.poll() is not None or any(checkpoints.glob("checkpoint-*/trainer_state.json")):
                break
        victim = process_of_rank(job.pid, 1)
        assert victim is not None, job.communicate()
        os.kill(victim, signal.SIGKILL)
        _, said = job.communicate(timeout=60)
    finally:
        job.kill()
    assert job.returncode != 0
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted", said
    assert not (run / ".lock").exists()
    saved = max(int(path.name.split("-")[1]) for path in checkpoints.glob("checkpoint-*"))
    # What is left can be carried on by any number of processes; the rest of the 400 steps is not waited for here.
    votes = (run / "rounds/.001.tmp/votes.jsonl").read_bytes()
    assert votes.count(b"\n") > 0 and saved >= 2
    again = start(place, 1, "resume", "run")
    for _ in range(1200):
        time.sleep(0.05)
        newer = [int(path.name.split("-")[1]) for path in checkpoints.glob("checkpoint-*")]
        if again.poll() is not None or any(number > saved for number in newer):
            break
    again.send_signal(signal.SIGTERM)
    _, said = again.communicate(timeout=60)
    assert again.returncode == 130 and "nothing is lost" in said
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    assert (run / "rounds/.001.tmp/votes.jsonl").read_bytes() == votes


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="elsewhere the second best is told")
def test_the_peak_of_memory_is_not_that_of_the_program_that_started_this_one() -> None:
    told = "import resource as r, evoprompt.processes as p; print(p.resident_peak(), r.getrusage(0).ru_maxrss * 1024)"
    large = f"import os, sys; held = b'x' * 1_000_000_000; os.execv(sys.executable, [sys.executable, '-c', {told!r}])"
    words = [sys.executable, "-c", large]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    own, inherited = map(int, done.stdout.split())
    assert 50e6 < own < 950e6 < inherited


def test_the_peak_is_that_of_the_judges_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: 2**20 * (device.index or 0))
    assert peak_memory_mib(torch.device("cuda:3")) == 3.0
    assert peak_memory_mib(torch.device("cpu")) > 50


def test_several_processes_are_not_sent_to_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(JudgeError, match="cuda:1 would send all processes.*give --device cuda"), joined("cuda:1"):
        pass


def test_alone_everything_is_done_here() -> None:
    with joined("cpu") as device, first_of_machine():
        assert (device, world(), rank()) == ("cpu", 1, 0)
        assert list(in_turns([1, 2, 3], lambda x: x * x)) == [1, 4, 9]
        assert from_first(lambda: "read") == "read"
        rows = torch.rand(3, 5)
        assert whole(rows, torch.arange(3), 3) is rows


def test_the_parts_of_a_batch_are_the_batch() -> None:
    views = np.random.default_rng(0).integers(0, 256, (5, 3, 3, 8, 8), dtype=np.uint8)
    batch = Batch(lambda rows: views[rows], np.array([[0, 1], [3, 4]]), np.array([1.0, 0.0]), 5)
    one = Steps([batch], 1, (0, 1))[0]
    for processes in (2, 3, 7):
        parts = Steps([batch], 1, (0, 1), parts=processes)
        assert len(parts) == processes
        items = [parts[k] for k in range(processes)]
        rows = torch.cat([item["rows"] for item in items])
        pixels = torch.cat([item["pixels"][: len(item["rows"])] for item in items])
        assert torch.equal(pixels[rows.argsort()], one["pixels"])
        assert all(torch.equal(item[key], one[key]) for item in items for key in ("pairs", "targets", "draw", "size"))
        assert all(len(item["pixels"]) for item in items)  # one without an image still takes part in the sum


def test_the_bare_judge_is_asked_about_a_view_once(tmp_path: Path) -> None:
    class Counting(ScriptedJudge):
        bare = 0

        def encode(self, pixels: torch.Tensor) -> torch.Tensor:
            self.bare += len(pixels) if self.prompt is None else 0
            return super().encode(pixels)

    judge, folder = Counting(), tmp_path / "steps"
    recipe = Recipe(train=TrainConfig(objective="grpo", steps=8, save_every=8), prompt=PixelConfig(size=BORDER))
    views = np.random.default_rng(0).integers(0, 256, (4, 2, 3, SIDE, SIDE), dtype=np.uint8)
    batch = Batch(lambda rows: views[rows], np.array([[0, 1], [2, 3]]), np.array([1.0, 0.0]), 4)
    train_prompt(judge, new_prompt(recipe, judge), [batch], recipe, (0, 1), folder, lambda *_: None)
    assert judge.bare == 8
    model = PromptedRating(judge, new_prompt(recipe, judge), recipe)
    pixels = torch.rand(3, 3, SIDE, SIDE)
    kept = model._bare(pixels, [(0, 0, 0), (0, 1, 0), (0, 2, 1)])
    judge.attach(None)
    with torch.no_grad():
        asked = judge.rate(judge.encode(pixels), judge.family.rate[0])
    torch.testing.assert_close(kept, asked, rtol=0, atol=1e-5)
