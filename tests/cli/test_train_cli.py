"""train, mixed and control runs as people type them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conftest import write_photos

from evoprompt.cli import main
from evoprompt.evolution import Evolution
from evoprompt.prompts import Origin, PixelPrompt, PromptConfig
from evoprompt.scoring import load_prompt

TINY = [
    "--device", "cpu",
    "-s", "pairs.per_round=40", "-s", "pairs.group=6", "-s", "vote.wordings=1", "-s", "vote.views=1",
    "-s", "train.steps=4", "-s", "train.save_every=2",
    "-s", "ladder.images=4", "-s", "ladder.kinds=4", "-s", "ladder.levels=2",
]  # fmt: skip


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder)
    return folder


def _commands() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [("evolve",), ("train",)]
    return [*found, *(("prompt", name) for name in main.commands["prompt"].commands)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("words", _commands(), ids=" ".join)
def test_every_command_has_help_and_at_most_sixteen_options(words: tuple[str, ...]) -> None:
    command = main
    for word in words:
        command = command.commands[word]  # type: ignore[attr-defined]
    assert run(*words, "--help").exit_code == 0
    assert len([p for p in command.params if p.param_type_name == "option"]) <= 16


def test_a_prompt_trained_on_human_scores_is_no_test_on_its_own_images(photos: Path, tmp_path: Path) -> None:
    labels, out = photos / "labels.csv", tmp_path / "r"
    result = run("train", "--train-mos", labels, "-o", out, "--rounds", 1, "-s", "gate.accept=always", *TINY)
    assert result.exit_code == 0, result.output
    assert result.stdout == "" and result.stderr.count("labels  16/16  ") == 1
    assert "labels   MOS of 16 images (" in result.stderr and "in all steps, objective fidelity" in result.stderr
    assert "1 round, each accepted as gate.accept asks" in result.stderr
    record = json.loads((out / "run.json").read_text())
    assert (record["kind"], record["status"], record["accepted_round"]) == ("train", "finished", 1)
    result = run("evaluate", out, "--eval-mos", labels, "--device", "cpu")
    assert result.exit_code == 2 and "16 of the 16 evaluation images" in result.stderr
    result = run("train", "--train-mos", labels, "--eval-mos", labels, "-o", tmp_path / "other", *TINY)
    assert result.exit_code == 2 and not (tmp_path / "other").exists()
    assert result.stderr.count("labels  16/16  ") == 2 and "/s  0 s left" in result.stderr


def test_an_interrupted_training_says_how_to_go_on_and_does(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Evolution._train

    def interrupted(self, *arguments):  # type: ignore[no-untyped-def]
        raise KeyboardInterrupt

    monkeypatch.setattr(Evolution, "_train", interrupted)
    out = tmp_path / "r"
    result = run("train", "--train-mos", photos / "labels.csv", "-o", out, "--rounds", 1, *TINY)
    assert result.exit_code == 130 and f"evoprompt resume {out}" in result.stderr
    monkeypatch.setattr(Evolution, "_train", plain)
    assert run("resume", out).exit_code == 0
    assert json.loads((out / "run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--train-mos", "LABELS"], "plan     2 rounds x (4 steps of 6 images); 4 of 16 images held out"),
        (["train", "--train-mos", "LABELS", "-r", "nano"], "objective fidelity"),
        (
            ["evolve", "--unlabeled", "PHOTOS", "--train-mos", "LABELS", "-r", "nano-mixed"],
            "in 50% of the steps, objective fidelity",
        ),
        (
            ["evolve", "--unlabeled", "PHOTOS", "--control", "shuffled-labels"],
            "control  shuffled-labels: every round is accepted, and no gain is learning",
        ),
    ],
)
def test_a_dry_run_says_what_will_be_trained_on(arguments: list[str], said: str, photos: Path, tmp_path: Path) -> None:
    places = {"PHOTOS": str(photos), "LABELS": str(photos / "labels.csv")}
    result = run(*(places.get(a, a) for a in arguments), "-o", tmp_path / "r", "--dry-run", *TINY)
    assert result.exit_code == 0, result.output
    assert said in result.stderr
    assert not (tmp_path / "r").exists()


def test_a_run_has_the_geometry_of_the_prompt_it_starts_from(photos: Path, tmp_path: Path) -> None:
    nano = load_prompt("owl2-nano")
    assert nano is not None
    patch = PixelPrompt(PromptConfig(kind="patch", image_size=160, size=40, strength=0.5), nano.origin)
    patch.save(tmp_path / "patch")
    base = ["evolve", "--unlabeled", photos, "-o", tmp_path / "r", "--dry-run", *TINY]
    result = run(*base, "--init-prompt", tmp_path / "patch")
    assert result.exit_code == 0 and "prompt   patch 40 px: 4,800 values trained" in result.stderr
    assert run(*base, "--init-prompt", tmp_path / "patch", "-s", "prompt.size=40").exit_code == 0
    result = run(*base, "--init-prompt", "owl2-nano", "-s", "prompt.kind=patch", "-s", "prompt.size=40")
    assert result.exit_code == 2 and "the prompt to start from: prompt.kind patch, not border" in result.stderr


def test_a_dry_run_refuses_a_prompt_of_another_judge(photos: Path, tmp_path: Path) -> None:
    PixelPrompt(PromptConfig(), Origin(judge="MAGAer13/mplug-owl2-llama2-7b")).save(tmp_path / "large")
    for command in (["evolve", "--unlabeled", photos], ["train", "--train-mos", photos / "labels.csv"]):
        result = run(*command, "-o", tmp_path / "r", "--init-prompt", tmp_path / "large", "--dry-run", *TINY)
        assert result.exit_code == 2 and "evolved with judge MAGAer13/mplug-owl2-llama2-7b" in result.stderr


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ("image,quality\np00.png,1\n", [], "has no column 'mos'"),
        ("mos\n1\n", [], "has no column 'image'"),
        ("image,mos\np00.png,nan\np01.png,2\n", [], "line 2 'nan'"),
        ("image,mos\np00.png,7\np01.png,2\n", ["-s", "mos.range=1..5"], "outside mos.range 1..5: p00.png (7)"),
        ("image,mos\np00.png,2\np01.png,2\n", [], "human scores in"),
        ("image,mos\np00.png,2\n", [], "names 1 image"),
        ("image,mos\np00.png,1\np01.png,2\n", [], "2 distinct images with human scores are too few"),
        ("image,mos\np00.png,1\np01.png,2\n", ["-s", "mos.range=1-5"], "mos.range: 1-5; must be auto, or two rising"),
        ("image,mos\np00.png,1\np01.png,2\n", ["-s", "mos.better=up"], "mos.better: up; must be higher or lower"),
        ("image,mos\np00.png,1\np01.png,2\n", ["-s", "judge.question=good-fine"], "'good-fine' is none of rate"),
    ],
)
def test_human_scores_that_cannot_be_used_get_one_sentence(
    content: str, settings: list[str], message: str, photos: Path, tmp_path: Path
) -> None:
    (photos / "bad.csv").write_text(content)
    result = run("train", "--train-mos", photos / "bad.csv", "-o", tmp_path / "r", *TINY, *settings)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output and result.stderr.count("Error") <= 1
    assert not (tmp_path / "r").exists()


def test_a_prompt_trained_as_the_published_ones_is_shown_and_scores_so(photos: Path, tmp_path: Path) -> None:
    published = ["prompt.blocks=0", "judge.question=good-excellent", "judge.preprocess=imagenet-crop"]
    published += ["mos.objective=mse", "train.optimizer=sgd", "train.lr=60", "train.schedule=constant"]
    arguments = ["--rounds", 1, *TINY, *(word for key in published for word in ("-s", key))]
    assert run("train", "--train-mos", photos / "labels.csv", "-o", tmp_path / "r", *arguments).exit_code == 0
    shown = json.loads(run("prompt", "show", tmp_path / "r", "--json").stdout)
    assert shown["origin question"] == "good-excellent" and shown["preprocess"] == "imagenet-crop"
    assert shown["seen images"] == 16 and shown["values"] == 3 * (160**2 - 128**2)
    result = run("score", photos / "p00.png", "-p", tmp_path / "r", "--device", "cpu")
    assert result.stdout.startswith("image,score,p_bad,p_poor,p_good,p_excellent,error\n")
