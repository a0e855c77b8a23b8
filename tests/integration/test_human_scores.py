"""Runs with human scores and controls: they learn, they resume, they are marked, and they hide nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ScriptedJudge, Stop, StoppingConsole, write_toy_images

from evoprompt.config import GateConfig, GrpoConfig, MosConfig, Recipe
from evoprompt.errors import DataError, RecipeError
from evoprompt.evaluation import measure_on
from evoprompt.images import ImageSet, scan_images
from evoprompt.judge import NANO, load_judge
from evoprompt.labels import read_labels
from evoprompt.lifecycle import evolve, new_prompt, resume, train
from evoprompt.mos import MosSet, read_sets
from evoprompt.prompts import Origin, PixelPrompt
from evoprompt.report import verdict, write_report
from evoprompt.runs import read_lines, read_record, read_rounds
from evoprompt.scoring import Scorer
from evoprompt.session import seen_by
from evoprompt.stats import srcc
from evoprompt.tracking import Console
from evoprompt.training import PromptedRating


def _labelled(folder: Path, seed: int, n: int = 60, std: str = "") -> tuple[MosSet, ...]:
    truth = write_toy_images(folder, n=n, seed=seed)
    rows = [f"toy{k:02d}.png,{value:.5f}{std}" for k, value in enumerate(truth)]
    (folder / "labels.csv").write_text("\n".join(["image,mos" + (",std" if std else ""), *rows]) + "\n")
    return read_sets([folder / "labels.csv"], MosConfig())


@pytest.fixture
def sets(tmp_path: Path) -> tuple[MosSet, ...]:
    """60 toy images other than those of ``toys``, with their true quality."""
    return _labelled(tmp_path / "labelled", 4)


def test_a_warm_start_keeps_the_labels_and_the_control_of_its_start(
    toys: ImageSet, sets: tuple[MosSet, ...], quick: Recipe, tmp_path: Path
) -> None:
    def origin(run: str, **how: Any) -> Origin:
        evolve(replace(quick, **how), toys, tmp_path / run, ScriptedJudge(), init_prompt=taught)
        return PixelPrompt.load(tmp_path / run / "prompt").origin

    quick = replace(quick, rounds=1)
    taught = PixelPrompt.load(train(quick, sets, tmp_path / "taught", ScriptedJudge()) / "prompt")
    assert origin("warm").labels == f"votes and {taught.origin.labels}" and taught.origin.labels.startswith("MOS of 60")
    taught = PixelPrompt.load(tmp_path / "warm" / "prompt")
    tossed = origin("tossed", control="random-labels")
    taught = PixelPrompt.load(tmp_path / "tossed" / "prompt")
    assert origin("again") == replace(tossed, recipe=quick.fingerprint()) and tossed.control == "random-labels"


def _srcc(run: Path | None, folder: Path) -> float:
    truth = write_toy_images(folder, n=60, seed=9)
    prompt = None if run is None else PixelPrompt.load(run / "prompt")
    found = Scorer(ScriptedJudge(), prompt)(sorted(folder.glob("*.png")))
    return srcc(np.array([s.score for s in found]), truth)


class _Listening(Console):
    """Keeps what was said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []

    def say(self, text: str = "") -> None:
        self.said.append(text)


def test_supervised_training_helps_on_unseen_images_though_votes_are_useless(
    sets: tuple[MosSet, ...], quick: Recipe, tmp_path: Path
) -> None:
    console = _Listening()
    run = train(quick, sets, tmp_path / "run", ScriptedJudge(blind=True), console=console)
    rounds = read_rounds(run)
    assert rounds[1]["accepted"] and rounds[1]["metrics"]["gate/gain"] > 0
    assert "held-out SRCC with human scores" in rounds[1]["reason"]
    assert rounds[1]["metrics"]["votes/pairs"] == 0
    assert _srcc(run, tmp_path / "new") > _srcc(None, tmp_path / "new") + 0.1
    assert not any("warning" in line for line in console.said)


def test_a_supervised_run_says_what_it_was_trained_on_and_reports_like_any_other(
    sets: tuple[MosSet, ...], quick: Recipe, tmp_path: Path
) -> None:
    run = train(replace(quick, rounds=1), sets, tmp_path / "run", ScriptedJudge())
    record, origin = read_record(run), PixelPrompt.load(run / "prompt").origin
    assert (record["kind"], record["control"], record["status"]) == ("train", "none", "finished")
    assert origin.labels == record["train_mos"] and origin.labels.startswith("MOS of 60 images (")
    hashes = {r.sha256 for r in sets[0].records}
    assert set(origin.seen) == hashes and set(seen_by(run)) == hashes
    assert "SRCC with the human scores of 24 held-out images is" in verdict(run)[0]
    assert "rise of the SRCC" in write_report(run).read_text()
    files = {p.name for p in run.iterdir()}
    made = {"images.parquet", "mos.parquet", "metrics.jsonl", "report.html"}
    assert files == {"start", "rounds", "prompt", "recipe.yaml", "run.json", *made}


def _mixed(recipe: Recipe, images: ImageSet, sets: Any, out: Path, **more: Any) -> Path:
    return evolve(recipe, images, out, ScriptedJudge(accuracy=0.8), sets=sets, **more)


def _supervised(recipe: Recipe, images: ImageSet, sets: Any, out: Path, **more: Any) -> Path:
    return train(recipe, sets, out, ScriptedJudge(accuracy=0.8), **more)


GRPO = GrpoConfig(estimator="sampled", kl="k3", advantage="standardised")


@pytest.mark.parametrize(
    ("make", "objective", "stage", "after"),
    [
        (_supervised, "fidelity", "1/2  train", 9),
        (_mixed, "fidelity", "2/2  vote", 3),
        (_mixed, "grpo", "1/2  train", 15),
    ],
)
def test_runs_with_human_scores_killed_anywhere_resume_to_the_same_bytes(
    make: Callable[..., Path],
    objective: Any,
    stage: str,
    after: int,
    toys: ImageSet,
    sets: tuple[MosSet, ...],
    quick: Recipe,
    tmp_path: Path,
) -> None:
    recipe = replace(quick, train=replace(quick.train, objective=objective), grpo=GRPO)
    whole = make(recipe, toys, sets, tmp_path / "whole")
    with pytest.raises(Stop):
        make(recipe, toys, sets, tmp_path / "run", console=StoppingConsole(stage, after))
    sets[0].records[0].path.with_name("labels.csv").unlink()  # everything is in the run
    resume(tmp_path / "run", lambda recipe: ScriptedJudge(accuracy=0.8))
    for number in (1, 2):
        for name in ("prompt/model.safetensors", "steps.jsonl", "pseudo_labels.csv"):
            file = f"rounds/{number:03d}/{name}"
            assert (tmp_path / "run" / file).read_bytes() == (whole / file).read_bytes(), file


def test_a_resumed_run_keeps_two_parts_of_one_table_apart(quick: Recipe, tmp_path: Path) -> None:
    truth = write_toy_images(tmp_path / "both", n=60, seed=4)
    rows = [f"toy{k:02d}.png,{value:.5f},{'train' if k % 3 else 'val'}" for k, value in enumerate(truth)]
    table = tmp_path / "both" / "parts.csv"
    table.write_text("\n".join(["image,mos,split", *rows]) + "\n")
    sets = read_sets([Path(f"{table}#train"), Path(f"{table}#val")], MosConfig())
    whole = train(quick, sets, tmp_path / "whole", ScriptedJudge())
    train(replace(quick, rounds=1), sets, tmp_path / "run", ScriptedJudge())
    resume(tmp_path / "run", lambda recipe: ScriptedJudge(), rounds=2)
    for number in (1, 2):
        for name in ("prompt/model.safetensors", "steps.jsonl"):
            file = f"rounds/{number:03d}/{name}"
            assert (tmp_path / "run" / file).read_bytes() == (whole / file).read_bytes(), file


def test_a_mixed_run_has_its_share_of_human_steps_and_stays_under_the_label_free_gate(
    toys: ImageSet, sets: tuple[MosSet, ...], quick: Recipe, tmp_path: Path
) -> None:
    recipe = replace(quick, rounds=1, mos=MosConfig(fraction=0.25, weight=1e-9))
    run = _mixed(recipe, toys, sets, tmp_path / "run")
    losses = [step["train/loss"] for step in read_lines(run / "rounds/001/steps.jsonl")]
    # A weight of hardly anything shows in which steps the human scores are.
    assert [k for k, loss in enumerate(losses) if loss < 1e-8] == [3, 7, 11, 15, 19, 23]
    metrics = read_rounds(run)[1]["metrics"]
    assert metrics["train/mos_loss_last"] < 1e-8 < metrics["train/loss_last"]
    assert "held-out agreement" in read_rounds(run)[1]["reason"]
    origin = PixelPrompt.load(run / "rounds/001/prompt").origin
    assert origin.labels.startswith("votes and MOS of 60 images (")
    assert set(origin.seen) == {r.sha256 for r in (*toys.records, *sets[0].records)}


def test_a_labelled_image_that_is_held_out_is_not_trained_on(quick: Recipe, tmp_path: Path) -> None:
    from evoprompt.evolution import Evolution
    from evoprompt.runs import Run

    sets = _labelled(tmp_path / "both", 0)
    images = scan_images([tmp_path / "both"])
    with Run.create(tmp_path / "run", {}, "") as run:
        evolution = Evolution(quick, images, ScriptedJudge(), run, Console(quiet=True), sets=sets)
    trained = {sets[0].records[row].sha256 for row in evolution.human[0].rows}
    heldout = {images.records[int(k)].sha256 for k in evolution.panel.images}
    assert len(trained) == 36 and len(heldout) == 24 and not trained & heldout


@pytest.fixture
def honest(toys: ImageSet, quick: Recipe, tmp_path: Path) -> Path:
    return evolve(quick, toys, tmp_path / "honest", ScriptedJudge())


@pytest.mark.parametrize("control", ["random-labels", "shuffled-labels"])
def test_a_control_run_is_told_nothing_true_accepts_all_and_is_marked(
    honest: Path, toys: ImageSet, quick: Recipe, tmp_path: Path, control: Any
) -> None:
    run = evolve(replace(quick, control=control), toys, tmp_path / "run", ScriptedJudge())
    first = "rounds/001"
    assert (run / first / "votes.jsonl").read_bytes() == (honest / first / "votes.jsonl").read_bytes()
    told, truth = (_targets(r / first / "pseudo_labels.csv") for r in (run, honest))
    assert told.keys() == truth.keys()
    right = np.mean([told[pair] == truth[pair] for pair in truth])
    assert 0.4 < right < 0.6
    rounds = read_rounds(run)
    assert all(r["accepted"] for r in rounds) and read_record(run)["accepted_round"] == 2
    assert all(r["reason"].startswith("control run; evidence: ") for r in rounds[1:])
    assert PixelPrompt.load(run / "prompt").origin.control == read_record(run)["control"] == control
    assert "a control run" in verdict(run)[0] and "not learning" in verdict(run)[0]


def _targets(path: Path) -> dict[str, str]:
    lines = [line.split(",") for line in path.read_text().splitlines()[1:]]
    return {line[0]: line[6] for line in lines}


def test_a_control_run_killed_while_training_resumes_to_the_same_bytes(
    toys: ImageSet, quick: Recipe, tmp_path: Path
) -> None:
    recipe = replace(quick, rounds=1, control="shuffled-labels")
    whole = evolve(recipe, toys, tmp_path / "whole", ScriptedJudge())
    with pytest.raises(Stop):
        evolve(recipe, toys, tmp_path / "run", ScriptedJudge(), console=StoppingConsole("1/1  train", 15))
    resume(tmp_path / "run", lambda recipe: ScriptedJudge())
    for name in ("pseudo_labels.csv", "prompt/model.safetensors"):
        assert (tmp_path / "run/rounds/001" / name).read_bytes() == (whole / "rounds/001" / name).read_bytes()


def test_every_round_is_accepted_when_the_recipe_says_so_and_the_evidence_stays_on_record(
    toys: ImageSet, quick: Recipe, tmp_path: Path
) -> None:
    recipe = replace(quick, gate=GateConfig(accept="always"))
    run = evolve(recipe, toys, tmp_path / "run", ScriptedJudge(blind=True), force=True)
    rounds = read_rounds(run)
    assert all(r["accepted"] for r in rounds)
    assert [r["metrics"]["gate/evidence"] for r in rounds[1:]] == [0, 0]
    assert verdict(run)[0].startswith("2 rounds, each accepted as gate.accept asks; on evidence 0 would have been")


def test_a_scale_that_runs_the_other_way_is_reported_and_left_alone(quick: Recipe, tmp_path: Path) -> None:
    folder, console = tmp_path / "labelled", _Listening()
    _labelled(folder, 4)
    sets = read_sets([folder / "labels.csv"], MosConfig(better="lower"))
    steps = replace(quick, rounds=1, train=replace(quick.train, steps=2, save_every=2))
    train(steps, sets, tmp_path / "run", ScriptedJudge(), console=console)
    (warning,) = [line for line in console.said if line.startswith("warning")]
    assert "labels.csv: the bare judge scores images lower the higher their MOS (SRCC -0." in warning
    assert "-s mos.better=lower" in warning


def test_scores_to_measure_on_that_run_the_other_way_are_reported_once(
    toys: ImageSet, quick: Recipe, tmp_path: Path
) -> None:
    steps = replace(quick, rounds=1, train=replace(quick.train, steps=2, save_every=2))
    warnings = []
    for name, sign in (("dmos", -1), ("mos", 1)):
        truth, console, judge = write_toy_images(tmp_path / name, n=60, seed=4), _Listening(), ScriptedJudge()
        rows = [f"toy{k:02d}.png,{sign * value:.5f}" for k, value in enumerate(truth)]
        (tmp_path / name / "labels.csv").write_text("\n".join(["image,mos", *rows]) + "\n")
        measure = measure_on(judge, read_labels(tmp_path / name / "labels.csv"), 16, console.say)
        evolve(steps, toys, tmp_path / "run" / name, judge, measure=measure, console=console)
        warnings += [line for line in console.said if line.startswith("warning")]
    (warning,) = warnings
    assert "dmos/labels.csv: the judge scores images lower at the start the higher their MOS (SRCC -0." in warning
    assert f"'evoprompt evaluate {tmp_path / 'run' / 'dmos'} --eval-mos " in warning and "--lower-better'" in warning


def test_too_few_or_unusable_combinations_are_refused_before_anything_is_written(
    toys: ImageSet, sets: tuple[MosSet, ...], quick: Recipe, tmp_path: Path
) -> None:
    few = _labelled(tmp_path / "few", 0, n=5)
    with pytest.raises(DataError, match="5 distinct images with human scores are too few"):
        train(quick, few, tmp_path / "run", ScriptedJudge())
    for share in (0.0, 1.0):
        with pytest.raises(RecipeError, match="mos.fraction"):
            _mixed(replace(quick, mos=MosConfig(fraction=share)), toys, sets, tmp_path / "run")
    trl = replace(quick, train=replace(quick.train, objective="grpo"), grpo=replace(GRPO, engine="trl"))
    with pytest.raises(RecipeError, match="grpo.engine trl takes votes only"):
        _mixed(trl, toys, sets, tmp_path / "run")
    for engine in ("native", "trl"):
        with pytest.raises(RecipeError, match="a run on human scores alone takes none; .* with mos.objective"):
            train(replace(trl, grpo=replace(trl.grpo, engine=engine)), sets, tmp_path / "run", ScriptedJudge())
    judge = load_judge(NANO, None, "auto", "float32", "cpu", "good-excellent")
    with pytest.raises(RecipeError, match="mos.objective soft-kl needs the five levels"):
        train(replace(quick, mos=MosConfig(objective="soft-kl")), sets, tmp_path / "run", judge)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("objective", "question"),
    [
        ("soft-kl+fidelity", "auto"),
        ("mse", "good-excellent"),
        ("fidelity", "good-excellent-open"),
        ("mse", "rate-open"),
    ],
)
def test_every_objective_reaches_the_prompt_through_every_readout_and_nothing_else(
    objective: Any, question: str, quick: Recipe
) -> None:
    judge = load_judge(NANO, None, "auto", "float32", "cpu", question)
    recipe = replace(quick, mos=MosConfig(objective=objective))
    model = PromptedRating(judge, new_prompt(recipe, judge), recipe)
    pixels = torch.rand(4, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    mos, std = torch.tensor([1.0, 2.2, 3.0, 4.9]), torch.full((4,), 0.5)
    rows, size = torch.arange(4), torch.tensor(4)
    one = model(pixels, rows, rows * 0, size, mos=mos, std=std, weight=torch.tensor(1.0))["loss"]
    half = model(pixels, rows, rows * 0, size, mos=mos, std=std, weight=torch.tensor(0.5))["loss"]
    one.backward()
    assert half.item() == pytest.approx(one.item() / 2)
    assert model.prompt.theta.grad is not None and float(model.prompt.theta.grad.abs().max()) > 0
    assert all(p.grad is None for p in judge.model.parameters())


@pytest.mark.parametrize("estimator", ["exact", "sampled"])
def test_the_reward_objective_holds_the_prompt_to_the_bare_judge_and_logs_it(
    estimator: Any, toys: ImageSet, quick: Recipe, tmp_path: Path
) -> None:
    grpo = GrpoConfig(estimator=estimator, beta=0.05)
    recipe = replace(quick, rounds=1, train=replace(quick.train, objective="grpo"), grpo=grpo)
    run = evolve(recipe, toys, tmp_path / "run", ScriptedJudge())
    steps = read_lines(run / "rounds/001/steps.jsonl")
    assert steps[0]["train/kl"] == pytest.approx(0, abs=1e-6) and steps[-1]["train/kl"] > 1e-4
    assert all(0 < step["train/reward"] <= 1 for step in steps)
    assert _srcc(run, tmp_path / "new") > _srcc(None, tmp_path / "new") + 0.1
    assert {"train/reward_first", "train/reward_last", "train/kl_last"} < set(read_rounds(run)[1]["metrics"])
