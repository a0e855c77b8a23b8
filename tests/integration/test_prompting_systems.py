"""All prompting systems end to end on the embedded judge, and the command from labels to tables."""

from __future__ import annotations

import csv
import importlib.resources
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import ScriptedJudge
from PIL import Image
from safetensors.torch import load_file, save_file

from evoprompt.cli import main
from evoprompt.degrade import degrade
from evoprompt.judge import OwlJudge, load_judge
from evoprompt.labels import read_labels
from evoprompt.questions import FAMILIES, vocabulary
from evoprompt.study import plan_study, run_study
from evoprompt.study_questions import FULL_REFERENCE, NO_REFERENCE
from evoprompt.study_results import find, row_of, write_study
from evoprompt.study_sets import hardest, study_sets

ALL = [*NO_REFERENCE, *FULL_REFERENCE]


@pytest.fixture(scope="module")
def wordy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded judge with every word of the study; those its file lacks get random weights."""
    folder = tmp_path_factory.mktemp("judge") / "nano"
    shutil.copytree(Path(str(importlib.resources.files("evoprompt") / "nano")), folder)
    tokens = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    known = tokens["model"]["vocab"]
    new = [word for word in vocabulary(FAMILIES["nano"]) if word not in known]
    known.update({word: len(known) + k for k, word in enumerate(new)})
    (folder / "tokenizer.json").write_text(json.dumps(tokens), encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["vocab_size"] += len(new)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = load_file(folder / "model.safetensors")
    draw = torch.Generator().manual_seed(0)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = torch.randn(len(new), weights[name].shape[1], generator=draw) * weights[name].float().std()
        weights[name] = torch.cat([weights[name], rows.to(weights[name].dtype)])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def distorted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three references, each noisier six times, with labels that name the reference."""
    folder = tmp_path_factory.mktemp("set")
    (folder / "originals").mkdir()
    y, x = np.mgrid[:96, :128] / 20
    rows = [("image", "mos", "reference")]
    for r in range(3):
        planes = [127 + 90 * np.sin(x * (1 + c) + r) * np.cos(y - c + r) for c in range(3)]
        original = np.stack(planes, -1).astype(np.uint8)
        Image.fromarray(original).save(folder / "originals" / f"R{r}.png")
        for k in range(6):
            noisy = degrade(original, "white_noise", 0.5 + 0.8 * k, np.random.default_rng([r, k]))
            Image.fromarray(noisy).save(folder / f"r{r}_{k}.png")
            rows.append((f"r{r}_{k}.png", str(6 - k), f"r{r}.png"))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def test_all_systems_run_on_the_embedded_judge(wordy: Path, distorted: Path, tmp_path: Path) -> None:
    loaded = load_judge(str(wordy), None, "auto", "float32", "cpu")
    judge = OwlJudge(loaded.model, loaded.processor, "nano", "0", replace(loaded.family, views=1))
    data = study_sets([read_labels(distorted / "labels.csv")], distorted / "originals")[0]
    plan = plan_study(data, partners=4, seed=0)
    identity = {"judge": "nano@0", "prompt": "none"}
    answers = run_study(judge, [plan], ALL, identity, tmp_path / "s", 16, lambda n=1, **_: None)
    found = {(system.name, data.name): find(plan, system, answers) for system in ALL}
    rows = [row_of(plan, system, found[system.name, data.name]) for system in ALL]
    assert len(rows) == 18 and all(row.asked > 0 for row in rows)
    for row, system in zip(rows, ALL, strict=True):
        reads_text = system.procedure == "multiple" or system.strategy == "thought"
        assert reads_text or (row.missing, row.unscored) == (0, 0), row
        assert row.images + row.unscored == 12
    standard = next(row for row in rows if row.system == "single-standard")
    assert standard.srcc.value > 0.5  # what it was trained to do
    missing = [a for a in answers if a.missing]
    assert all(a.value is None and a.ranking is None for a in missing)
    write_study(tmp_path / "s", identity, {}, [plan], answers, rows, found)
    assert len(json.loads((tmp_path / "s" / "study.json").read_text())["rows"]) == 18


def test_the_standard_rating_is_the_score_of_the_judge(distorted: Path, tmp_path: Path) -> None:
    result = run("study", "--eval-mos", distorted / "labels.csv", "--systems", "single-standard", "-o", tmp_path / "s")
    assert result.exit_code == 0, result.output
    with (tmp_path / "s" / "scores.csv").open() as file:
        studied = {row["image"]: float(row["single-standard"]) for row in csv.DictReader(file)}
    scored = run("score", *(distorted / name for name in studied))
    plain = {Path(row["image"]).name: float(row["score"]) for row in csv.DictReader(scored.stdout.splitlines())}
    assert len(studied) == 13
    assert studied == pytest.approx(plain, abs=1e-4)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments), "--device", "cpu"])


def test_the_command_goes_from_labels_to_table_plot_and_answers_and_continues(
    wordy: Path, distorted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    command = ["study", "--eval-mos", distorted / "labels.csv", "--references", distorted / "originals", "-o", out]
    command += ["--judge", wordy]
    first = run(*command, "--partners", 2, "--systems", "double-standard,double-standard-fr")
    assert first.exit_code == 0, first.output
    assert "set      labels: 12 images are asked about, 6 are examples, with references" in first.stderr
    said = first.stdout.splitlines()
    assert said[0].startswith("labels: labels.csv, 18 images; split: none, all images as given; MOS: ")
    assert "Judge: " in said[0] and "prompt none" in said[0]
    assert said[2] == "| system | labels (n = 12) |" and said[4].startswith("| double-standard | ")
    assert "- labels, double-standard-fr: 2 references have a value; at least 5 are needed" in said
    lines = (out / "answers.jsonl").read_text().splitlines()
    again = run(*command, "--partners", 2, "--systems", "double-standard,single-standard", "--json")
    body = json.loads(again.stdout)
    assert [row["system"] for row in body] == ["single-standard", "double-standard"]
    more = (out / "answers.jsonl").read_text().splitlines()
    assert more[: len(lines)] == lines and len(more) == len(lines) + 12 * 4
    assert (out / "study.html").read_text().count("<svg") == 1
    other = run(*command, "--partners", 4, "--systems", "single-standard")
    assert other.exit_code == 2 and "differs in partners (then 2, now 4)" in other.stderr


def test_two_sets_stand_beside_each_other(distorted: Path, tmp_path: Path) -> None:
    shutil.copytree(distorted, tmp_path / "again")
    result = run(
        "study", "--eval-mos", distorted / "labels.csv", "--eval-mos", tmp_path / "again" / "labels.csv",
        "--systems", "single-standard", "-o", tmp_path / "s",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[2] == f"| system | {distorted.name}/labels (n = 13) | again/labels (n = 13) |"


def test_references_are_found_beside_the_labels_and_asked_for_when_every_set_has_them(
    distorted: Path, tmp_path: Path
) -> None:
    beside = tmp_path / "set"
    shutil.copytree(distorted, beside)
    for r in range(3):
        shutil.copy(beside / "originals" / f"R{r}.png", beside / f"r{r}.png")
    with_them, without = read_labels(beside / "labels.csv"), read_labels(distorted / "labels.csv")
    assert study_sets([with_them], None)[0].references == tuple(
        beside / f"r{r}.png" for r in range(3) for _ in range(6)
    )
    assert all(data.references is None for data in study_sets([with_them, without], None))


def test_so_many_difficult_images_are_asked_about_as_were_asked_for(distorted: Path) -> None:
    data = study_sets([read_labels(distorted / "labels.csv")], None)[0]
    judge = load_judge("owl2-nano", None, "auto", "float32", "cpu")
    many = replace(data.take([k % 18 for k in range(60)]), groups=None)
    chosen = hardest(many, np.arange(60.0), judge, 20, 8, lambda n=1, **_: None)
    assert len(plan_study(chosen, 2, 0).images) == 20
    many = replace(many, groups=tuple(f"r{k // 12}" for k in range(60)), references=many.paths)
    chosen = hardest(many, np.arange(60.0), judge, 20, 8, lambda n=1, **_: None)
    assert len(plan_study(chosen, 2, 0).images) == 20


@pytest.mark.parametrize(("out", "message"), [("full", "is not empty and holds no study"), ("file", "is a file")])
def test_a_folder_that_cannot_be_used_is_refused_before_a_judge_is_loaded(
    distorted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, message: str
) -> None:
    def none(*_: object) -> None:
        raise AssertionError("a judge was loaded")

    monkeypatch.setattr("evoprompt.scoring.judge_for", none)
    (tmp_path / "full").mkdir()
    for name in ("full/x", "file"):
        (tmp_path / name).write_text("mine")
    result = run("study", "--eval-mos", distorted / "labels.csv", "-o", tmp_path / out)
    assert result.exit_code == 2 and message in result.stderr


def test_difficult_images_are_chosen_by_a_file_of_scores_and_the_judges_own_features(
    distorted: Path, tmp_path: Path
) -> None:
    labels = read_labels(distorted / "labels.csv")
    rows = [("image", "score"), *((f"somewhere/{n}", 0.1 * m) for n, m in zip(labels.names, labels.mos, strict=True))]
    with (tmp_path / "proxy.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    command = ["study", "--eval-mos", distorted / "labels.csv", "--systems", "single-standard", "-o", tmp_path / "s"]
    result = run(*command, "--difficult", 20, "--proxy", tmp_path / "proxy.csv")
    assert result.exit_code == 0, result.output
    assert "warning  labels has no deviations" in result.stderr
    (tmp_path / "short.csv").write_text("image,score\nr0_0.png,1\nr0_1.png,high\n")
    short = run(*command, "--difficult", 20, "--proxy", tmp_path / "short.csv")
    assert short.exit_code == 2
    assert "has no usable score for 17 of the 18 images of labels: r0_1.png ('high'); r0_2.png (no row)" in short.stderr
    assert "go together" in run(*command, "--difficult", 20).stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--systems", "triple"], "no prompting system is called triple"),
        (["--references", "EMPTY"], "labels names 3 references that"),
        (["--eval-mos", "BARE", "--references", "EMPTY"], "bare does not say which image was distorted"),
    ],
)
def test_bad_input_is_one_sentence(distorted: Path, tmp_path: Path, options: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    bare = tmp_path / "bare.csv"
    bare.write_text("image,mos\n" + "".join(f"{distorted}/r0_{k}.png,{k}\n" for k in range(6)))
    places = {"EMPTY": str(tmp_path / "empty"), "BARE": str(bare)}
    result = run(
        "study", "--eval-mos", distorted / "labels.csv", "-o", tmp_path / "s", *(places.get(o, o) for o in options)
    )
    assert result.exit_code == 2, result.output
    assert message in result.stderr and not (tmp_path / "s").exists()


def test_generated_text_and_asked_tokens_agree(wordy: Path) -> None:
    """The first word written is the likeliest of all words asked for, and a rating is a question among others."""
    judge = load_judge(str(wordy), None, "auto", "float32", "cpu")
    pixels = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    seen = judge.encode(pixels)
    words = list(json.loads((wordy / "tokenizer.json").read_text())["model"]["vocab"])[3:]
    text = "<|image|> <|image|> which flaws ?"
    logits = judge.ask([seen, seen.flip(0)], text, words)
    written = judge.tell([seen, seen.flip(0)], text, 1)
    assert written == [words[int(k)] for k in logits.argmax(1)]
    question = judge.family.rate[0]
    assert torch.equal(judge.ask([seen], question.text, question.answers), judge.rate(seen, question))
    assert judge.features(pixels).shape == (2, 192)
    assert len(judge.tell([seen], "<|image|> rate the quality :", 3)[0].split()) <= 3


def test_the_scripted_judge_speaks_the_whole_protocol() -> None:
    assert all(callable(getattr(ScriptedJudge, name)) for name in ("ask", "tell", "features"))
