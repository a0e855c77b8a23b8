"""A whole run on a judge whose knowledge is known: it learns, it refuses, it resumes, it does not look at labels."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ScriptedJudge, Stop, StoppingConsole, write_toy_images

from evoprompt.config import Recipe
from evoprompt.errors import DataError, JudgeError, RecipeError, RunError, StartError
from evoprompt.evolution import Evolution
from evoprompt.images import ImageSet, scan_images
from evoprompt.lifecycle import evolve, new_prompt, resume
from evoprompt.prompts import Origin, PixelPrompt
from evoprompt.recipe_files import load_recipe
from evoprompt.runs import read_record, read_rounds
from evoprompt.scoring import Scorer
from evoprompt.session import seen_by
from evoprompt.stats import srcc


def _scores(judge: ScriptedJudge, folder: Path, prompt: PixelPrompt | None) -> np.ndarray:
    found = Scorer(judge, prompt)(sorted(folder.glob("*.png")))
    return np.array([s.score for s in found])


def test_srcc_on_unseen_images_rises_with_a_judge_that_votes_right_in_four_of_five_pairs(
    toys: ImageSet, quick: Recipe, tmp_path: Path
) -> None:
    judge = ScriptedJudge(accuracy=0.8)
    run = evolve(quick, toys, tmp_path / "run", judge)
    truth = write_toy_images(tmp_path / "new", n=60, seed=9)
    bare = srcc(_scores(judge, tmp_path / "new", None), truth)
    evolved = srcc(_scores(judge, tmp_path / "new", PixelPrompt.load(run / "prompt")), truth)
    assert read_record(run)["accepted_round"] > 0
    assert evolved > bare + 0.1


def test_a_judge_that_flips_coins_is_refused_before_the_first_round(
    toys: ImageSet, quick: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(JudgeError, match="not clearly better than a coin"):
        evolve(quick, toys, tmp_path / "run", ScriptedJudge(blind=True))
    with pytest.raises(JudgeError, match=f"go on with 'evoprompt resume {tmp_path / 'run'} --force'"):
        resume(tmp_path / "run", lambda recipe: ScriptedJudge(blind=True))
    resume(tmp_path / "run", lambda recipe: ScriptedJudge(blind=True), force=True)
    assert len(read_rounds(tmp_path / "run")) == 3


def test_a_forced_coin_flipping_judge_has_every_round_rejected(toys: ImageSet, quick: Recipe, tmp_path: Path) -> None:
    run = evolve(quick, toys, tmp_path / "run", ScriptedJudge(blind=True), force=True)
    rounds = read_rounds(run)
    assert len(rounds) == 3
    assert not any(r["accepted"] for r in rounds[1:])
    assert not PixelPrompt.load(run / "prompt").theta.any()


@pytest.fixture
def whole(toys: ImageSet, quick: Recipe, tmp_path: Path) -> Path:
    return evolve(quick, toys, tmp_path / "whole", ScriptedJudge(accuracy=0.8))


@pytest.mark.parametrize(
    ("stage", "after"),
    [
        ("start", 0),
        ("start", 2),
        ("1/2  vote", 1),
        ("1/2  train", 2),
        ("1/2  train", 15),
        ("1/2  look", 1),
        ("2/2  vote", 3),
        ("2/2  train", 9),
    ],
)
def test_a_run_killed_at_any_stage_resumes_to_the_same_bytes(
    whole: Path, toys: ImageSet, quick: Recipe, tmp_path: Path, stage: str, after: int
) -> None:
    with pytest.raises(Stop):
        evolve(quick, toys, tmp_path / "run", ScriptedJudge(accuracy=0.8), console=StoppingConsole(stage, after))
    assert read_record(tmp_path / "run")["status"] == "interrupted"
    resume(tmp_path / "run", lambda recipe: ScriptedJudge(accuracy=0.8))
    for number in (0, 1, 2):
        for name in ("prompt/model.safetensors", "votes.jsonl", "pseudo_labels.csv"):
            file = f"rounds/{number:03d}/{name}"
            assert (tmp_path / "run" / file).read_bytes() == (whole / file).read_bytes(), file
    assert (tmp_path / "run/prompt/model.safetensors").read_bytes() == (whole / "prompt/model.safetensors").read_bytes()


def test_a_torn_line_of_votes_is_asked_again(whole: Path, toys: ImageSet, quick: Recipe, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        evolve(quick, toys, tmp_path / "run", ScriptedJudge(accuracy=0.8), console=StoppingConsole("1/2  vote", 2))
    votes = tmp_path / "run/rounds/.001.tmp/votes.jsonl"
    votes.write_bytes(votes.read_bytes()[:-25])
    resume(tmp_path / "run", lambda recipe: ScriptedJudge(accuracy=0.8))
    assert (tmp_path / "run/rounds/001/votes.jsonl").read_bytes() == (whole / "rounds/001/votes.jsonl").read_bytes()


def test_a_run_extended_by_a_round_equals_one_planned_that_long(
    whole: Path, toys: ImageSet, quick: Recipe, tmp_path: Path
) -> None:
    short = evolve(replace(quick, rounds=1), toys, tmp_path / "short", ScriptedJudge(accuracy=0.8))
    resume(short, lambda recipe: ScriptedJudge(accuracy=0.8), rounds=2)
    assert (short / "rounds/002/prompt/model.safetensors").read_bytes() == (
        whole / "rounds/002/prompt/model.safetensors"
    ).read_bytes()
    with pytest.raises(RunError, match="Rounds can only be added"):
        resume(short, lambda recipe: ScriptedJudge(accuracy=0.8), rounds=1)


def test_measuring_on_labels_does_not_change_the_prompt(
    whole: Path, toys: ImageSet, quick: Recipe, tmp_path: Path
) -> None:
    asked = []

    def measure(prompt: PixelPrompt, folder: Path) -> dict[str, float]:
        asked.append(prompt.sha())
        return {"srcc": 0.5}

    run = evolve(quick, toys, tmp_path / "run", ScriptedJudge(accuracy=0.8), measure=measure)
    assert len(asked) == 3
    assert (run / "prompt/model.safetensors").read_bytes() == (whole / "prompt/model.safetensors").read_bytes()
    assert read_rounds(run)[1]["metrics"]["label/srcc"] == 0.5


def test_a_run_leaves_exactly_these_files(whole: Path) -> None:
    found = {str(p.relative_to(whole)) for p in whole.rglob("*") if p.is_file()}
    prompt = {"config.json", "model.safetensors", "seen.txt"}
    expected = {"recipe.yaml", "run.json", "images.parquet", "metrics.jsonl"}
    expected |= {
        f"{folder}/{name}"
        for folder in ("start", "prompt", *(f"rounds/{n:03d}/prompt" for n in range(3)))
        for name in prompt
    }
    expected |= {
        f"rounds/{n:03d}/{name}" for n in range(3) for name in ("round.json", "votes.jsonl", "pseudo_labels.csv")
    }
    expected |= {f"rounds/{n:03d}/steps.jsonl" for n in (1, 2)}
    assert found == expected


def test_held_out_images_are_never_voted_on_for_training(whole: Path) -> None:
    def images(number: int) -> set[int]:
        lines = (whole / f"rounds/{number:03d}/votes.jsonl").read_text().splitlines()
        return {json.loads(line)[side] for line in lines for side in "ab"}

    assert not images(0) & (images(1) | images(2))


def test_changed_or_missing_images_stop_a_resume(
    toys: ImageSet, quick: Recipe, toy_folder: Path, tmp_path: Path
) -> None:
    run = evolve(quick, toys, tmp_path / "run", ScriptedJudge(accuracy=0.8))
    (toy_folder / "toy00.png").unlink()
    shutil.copy(toy_folder / "toy02.png", toy_folder / "toy01.png")
    with pytest.raises(RunError, match=r"2 of 60 images .*toy00.png \(missing\); .*toy01.png \(changed\)"):
        resume(run, lambda recipe: ScriptedJudge(accuracy=0.8), rounds=3)


def test_another_judge_stops_a_resume(whole: Path) -> None:
    other = ScriptedJudge()
    other.revision = "1"
    with pytest.raises(RunError, match="made with judge scripted@0"):
        resume(whole, lambda recipe: other, rounds=3)


def test_another_recipe_stops_a_resume_and_is_named_key_by_key(whole: Path) -> None:
    changed = replace(load_recipe(whole / "recipe.yaml"), seed=3)
    (whole / "recipe.yaml").write_text(replace(changed, train=replace(changed.train, lr=9.0)).to_yaml())
    with pytest.raises(StartError, match=r"another recipe: seed: 0 -> 3; train.lr: 0.06 -> 9.0. Set that back"):
        resume(whole, lambda recipe: ScriptedJudge(accuracy=0.8), rounds=3)
    assert len(read_rounds(whole)) == 3


def test_keys_that_do_not_define_a_run_may_change_in_a_resume(whole: Path) -> None:
    with pytest.raises(StartError, match="train.lr: 0.06 -> 0.1"):
        resume(whole, lambda recipe: ScriptedJudge(), settings=["train.lr=0.1"])
    with pytest.raises(RecipeError, match="unknown key"):
        resume(whole, lambda recipe: ScriptedJudge(), settings=["train.lrr=0.1"])
    asked = []

    def load(recipe: Recipe) -> ScriptedJudge:
        asked.append((recipe.eval.batch_size, recipe.judge.checkpointing, recipe.rounds))
        return ScriptedJudge(accuracy=0.8)

    resume(whole, load, rounds=3, settings=["eval.batch_size=4", "judge.checkpointing=true"])
    resume(whole, load, rounds=4)
    assert asked == [(4, True, 3), (4, True, 4)] and len(read_rounds(whole)) == 5


def test_a_key_that_came_into_being_after_the_start_had_its_default(whole: Path) -> None:
    record = read_record(whole)
    del record["recipe"]["gate.confidence"]
    (whole / "run.json").write_text(json.dumps({**record, "fingerprint": "that of older keys"}))
    resume(whole, lambda recipe: ScriptedJudge(accuracy=0.8))
    with pytest.raises(StartError, match="gate.confidence: 0.9 -> 0.8"):
        resume(whole, lambda recipe: ScriptedJudge(), settings=["gate.confidence=0.8"])


def test_a_run_that_ends_by_an_error_says_failed_and_goes_on(
    toys: ImageSet, quick: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self, *arguments):  # type: ignore[no-untyped-def]
        raise MemoryError("too much")

    monkeypatch.setattr(Evolution, "_train", broken)
    with pytest.raises(MemoryError):
        evolve(replace(quick, rounds=1), toys, tmp_path / "run", ScriptedJudge(accuracy=0.8))
    record = read_record(tmp_path / "run")
    assert (record["status"], record["error"]) == ("failed", "MemoryError: too much")
    monkeypatch.undo()
    resume(tmp_path / "run", lambda recipe: ScriptedJudge(accuracy=0.8))
    assert read_record(tmp_path / "run")["status"] == "finished"


def test_a_warm_start_begins_at_the_given_prompt(whole: Path, quick: Recipe, tmp_path: Path) -> None:
    write_toy_images(tmp_path / "more", seed=3)
    start = PixelPrompt.load(whole / "prompt")
    run = evolve(quick, scan_images([tmp_path / "more"]), tmp_path / "run", ScriptedJudge(), init_prompt=start)
    assert read_rounds(run)[0]["prompt"] == PixelPrompt.load(whole / "prompt").sha()


def test_a_warm_start_of_another_geometry_than_the_recipe_is_refused(
    toys: ImageSet, quick: Recipe, tmp_path: Path
) -> None:
    start = new_prompt(quick, ScriptedJudge())
    start.origin = Origin(judge="scripted", revision="0")
    recipe = replace(quick, prompt=replace(quick.prompt, kind="patch", size=40))
    with pytest.raises(RecipeError, match="prompt.kind patch, not border; prompt.size 40, not 8. Leave these keys out"):
        evolve(recipe, toys, tmp_path / "run", ScriptedJudge(), init_prompt=start)
    assert not (tmp_path / "run").exists()


def test_a_warm_start_has_seen_the_images_of_both_runs(whole: Path, quick: Recipe, tmp_path: Path) -> None:
    write_toy_images(tmp_path / "more", seed=3)
    more, start = scan_images([tmp_path / "more"]), PixelPrompt.load(whole / "prompt")
    with pytest.raises(Stop):
        evolve(
            quick, more, tmp_path / "run", ScriptedJudge(), init_prompt=start, console=StoppingConsole("1/2  vote", 1)
        )
    resume(tmp_path / "run", lambda recipe: ScriptedJudge())
    both = {*PixelPrompt.load(whole / "prompt").origin.seen, *(record.sha256 for record in more.records)}
    for folder in ("prompt", "rounds/000/prompt", "rounds/002/prompt"):
        assert set(PixelPrompt.load(tmp_path / "run" / folder).origin.seen) == both
    assert set(seen_by(tmp_path / "run")) == both


def test_ladder_pairs_teach_a_judge_without_useful_votes(toys: ImageSet, quick: Recipe, tmp_path: Path) -> None:
    recipe = replace(quick, rounds=1, pairs=replace(quick.pairs, ladder=1.0))
    run = evolve(recipe, toys, tmp_path / "run", ScriptedJudge(accuracy=0.8))
    metrics = read_rounds(run)[1]["metrics"]
    assert metrics["train/ladder_pairs"] > 0
    assert metrics["votes/pairs"] == 0


def test_too_few_images_are_refused_in_one_sentence(quick: Recipe, tmp_path: Path) -> None:
    write_toy_images(tmp_path / "few", n=5)
    with pytest.raises(DataError, match="5 distinct images are too few"):
        evolve(quick, scan_images([tmp_path / "few"]), tmp_path / "run", ScriptedJudge())
    assert not (tmp_path / "run").exists()
