"""The commands, as people type them: what comes out, where, with which exit code, and what they say to bad input."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from conftest import write_photos

import evoprompt
from evoprompt import __version__, judge, lifecycle, scoring
from evoprompt.cli import main
from evoprompt.config import Recipe
from evoprompt.evolution import Evolution
from evoprompt.images import scan_images
from evoprompt.judge import load_judge
from evoprompt.lifecycle import evolve
from evoprompt.options import recipe_of
from evoprompt.recipe_files import load_recipe
from evoprompt.training import PromptedRating

TINY = [
    "-r", "nano", "--device", "cpu",
    "-s", "pairs.per_round=40", "-s", "pairs.group=6", "-s", "vote.wordings=1", "-s", "vote.views=1",
    "-s", "train.steps=4", "-s", "train.save_every=2",
    "-s", "ladder.images=4", "-s", "ladder.kinds=4", "-s", "ladder.levels=2",
]  # fmt: skip


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen smooth pictures, noisier and noisier, with their order in labels.csv."""
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder)
    return folder


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    result = run("evolve", "--unlabeled", photos, "-o", out, "--rounds", 1, "--force", *TINY)
    assert result.exit_code == 0, result.output
    return out


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_has_help_and_at_most_sixteen_options(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert len([p for p in main.commands[command].params if p.param_type_name == "option"]) <= 16


def test_help_answers_at_once_without_torch() -> None:
    code = (
        "import sys; from evoprompt.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert time.monotonic() - started < 3


def test_a_run_ends_with_what_came_of_it_and_what_to_type_next(photos: Path, tmp_path: Path) -> None:
    result = run(
        "evolve",
        "--unlabeled",
        photos,
        "-r",
        "nano",
        "--device",
        "cpu",
        "-o",
        tmp_path / "r",
        "--rounds",
        1,
        "--force",
        *TINY,
    )
    assert result.exit_code == 0
    assert result.stdout == ""
    said = result.stderr
    assert "owl2-nano@" in said and "0 of 4.7 M parameters trained" in said
    assert "nothing helped" in said or "it helped" in said
    assert f"next     evoprompt score IMAGES -p {tmp_path / 'r'}" in said
    assert (tmp_path / "r" / "report.html").is_file()


def test_a_dry_run_prints_the_plan_and_writes_nothing(photos: Path, tmp_path: Path) -> None:
    result = run("evolve", "--unlabeled", photos, "-r", "nano", "-o", tmp_path / "r", "--dry-run")
    assert result.exit_code == 0
    assert (
        "plan     2 rounds x (1,000 pairs x 8 votes, 60 steps of 12 images); 4 of 16 images held out" in result.stderr
    )
    assert [line.split()[0] for line in result.stderr.splitlines()[-5:-1]] == ["forwards", "flops", "memory", "time"]
    assert not (tmp_path / "r").exists()


def _full(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.5 GiB of which 1 is free."
    )


HELP = "does not fit the memory of cpu (CUDA out of memory. Tried to allocate 2.00 GiB). What helps: "


@pytest.mark.parametrize("processes", [1, 2])
def test_a_step_that_does_not_fit_says_what_helps_and_the_run_goes_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    out = tmp_path / "r"
    with monkeypatch.context() as patched:
        patched.setattr(PromptedRating, "forward", _full)
        patched.setattr(lifecycle, "world", lambda: processes)
        result = run("evolve", "--unlabeled", photos, "-o", out, "--rounds", 1, "--force", *TINY)
    assert result.exit_code == 1
    assert f"Error: a training step of 6 images {HELP}-s judge.checkpointing=true" in result.stderr
    assert "a smaller pairs.group or judge.quantization=8bit or 4bit." in result.stderr
    assert json.loads((out / "run.json").read_text())["status"] == "failed"
    votes = (out / "rounds/.001.tmp/votes.jsonl").read_bytes()
    refused = run("resume", out, "-s", "pairs.group=3")
    assert refused.exit_code == 2 and "pairs.group: 6 -> 3" in refused.stderr
    result = run("resume", out, "-s", "judge.checkpointing=true")
    assert result.exit_code == 0, result.output
    assert json.loads((out / "run.json").read_text())["status"] == "finished"
    assert "  checkpointing: true" in (out / "recipe.yaml").read_text()
    assert votes and (out / "rounds/001/votes.jsonl").read_bytes() == votes


def test_a_dry_run_whose_step_does_not_fit_says_what_is_known_and_what_helps(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PromptedRating, "forward", _full)
    out, keys = tmp_path / "r", [*TINY, "-s", "judge.checkpointing=true"]
    result = run("evolve", "--unlabeled", photos, "-o", out, "--dry-run", *keys)
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert [line.split()[0] for line in lines[-4:]] == ["forwards", "flops", "memory", "Error:"]
    assert f"{HELP}more GPUs that share a step" in lines[-1] and not out.exists()


def test_a_judge_that_does_not_fit_says_what_helps(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "load_owl2", _full)
    result = run("score", photos, "--device", "cpu")
    assert result.exit_code == 2
    assert "'owl2-nano' does not fit the memory of cpu (CUDA out of memory. Tried" in result.stderr
    assert "--dtype 8bit or 4bit" in result.stderr


def test_what_processes_do_not_share_is_refused_under_a_launcher(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    result = run("score", photos)
    assert result.exit_code == 2 and result.stdout == ""
    assert "would do all of 'score'; several processes share the work of evolve, train, resume only" in result.stderr
    assert run("evolve", "--help").exit_code == 0


def test_score_prints_one_row_an_image_on_stdout(photos: Path, finished: Path) -> None:
    result = run("score", photos, photos / "p00.png", "-p", finished, "--device", "cpu")
    assert result.exit_code == 0
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert list(rows[0]) == ["image", "score", "p_bad", "p_poor", "p_fair", "p_good", "p_excellent", "error"]
    assert len(rows) == 17
    assert all(1 <= float(row["score"]) <= 5 and not row["error"] for row in rows)
    assert rows[0]["score"] == rows[16]["score"]


def test_score_writes_a_file_and_exits_3_when_an_image_is_broken(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes((photos / "p00.png").read_bytes())
    (tmp_path / "torn.png").write_bytes((photos / "p01.png").read_bytes()[:500])
    result = run("score", tmp_path / "good.png", tmp_path / "torn.png", "-o", tmp_path / "s.csv", "--device", "cpu")
    assert result.exit_code == 3
    rows = list(csv.DictReader((tmp_path / "s.csv").open()))
    assert rows[0]["score"] and not rows[1]["score"] and "torn.png" in rows[1]["error"]
    assert "1 of 2 images could not be read" in result.stderr


def test_evaluate_puts_the_bare_judge_beside_the_prompt(photos: Path, finished: Path, tmp_path: Path) -> None:
    arguments = ("evaluate", finished, "--eval-mos", photos / "labels.csv", "--seen", "keep", "--device", "cpu")
    result = run(*arguments, "-o", tmp_path / "e", "--json")
    assert result.exit_code == 0, result.output
    body = json.loads(result.stdout)
    assert [row["name"] for row in body["rows"]] == ["none", str(finished)]
    assert {"name", "kind", "n", "seen", "srcc", "plcc", "krcc", "gain", "p_value", "tests"} <= set(body["rows"][1])
    files = ["evaluation.json", "scores.csv", "table.md", "table.tex"]
    assert sorted(p.name for p in (tmp_path / "e").iterdir()) == files
    assert "16 of the 16 evaluation images were seen" in result.stderr
    assert f"| {finished} (label-free) | 16 of 16 |" in (tmp_path / "e" / "table.md").read_text(encoding="utf-8")


def test_a_prompt_is_scored_in_the_bits_it_was_trained_with(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(judge, "quantized", lambda kind, dtype, device: asked.append(kind))  # and loads whole weights
    out, eightbit = tmp_path / "r", ["-s", "judge.quantization=8bit"]
    sizes = ["--rounds", 1, "--force", *TINY, "-s", "train.steps=1"]
    assert run("evolve", "--unlabeled", photos, "-o", out, *sizes, *eightbit).exit_code == 0
    assert run("score", photos / "p00.png", "-p", out).exit_code == 0
    measured = ("--eval-mos", photos / "labels.csv", "--seen", "keep", "--n-boot", 100, "--json")
    result = run("evaluate", out, *measured)
    assert json.loads(result.stdout)["precision"] == "float32"
    assert run("evaluate", out, *measured, "--dtype", "float32").exit_code == 0
    assert asked == ["8bit", "8bit", "8bit", "none"]
    monkeypatch.undo()
    result = run("score", photos / "p00.png", "-p", out, "--device", "cpu")
    assert result.exit_code == 2 and "needs a CUDA device" in result.stderr and "--dtype bfloat16" in result.stderr


def test_images_seen_while_evolving_are_no_test(photos: Path, finished: Path, tmp_path: Path) -> None:
    result = run("evaluate", finished, "--eval-mos", photos / "labels.csv", "--device", "cpu")
    assert result.exit_code == 2
    assert "16 of the 16 evaluation images were also used to evolve (same content" in result.stderr
    result = run(
        "evolve", "--unlabeled", photos, "--eval-mos", photos / "labels.csv", "-o", tmp_path / "r", "-r", "nano"
    )
    assert result.exit_code == 2 and not (tmp_path / "r").exists()


def test_judge_prints_its_health(photos: Path) -> None:
    result = run("judge", photos, *TINY)
    assert result.exit_code == 0
    assert "ladder_vote_accuracy" in result.stdout and "swap_consistency" in result.stdout
    assert "as a source of votes this judge" in result.stderr
    body = json.loads(run("judge", photos, "--json", *TINY).stdout)
    assert body["ladder_steps"] == 32


def test_ctrl_c_says_how_to_go_on_and_resume_does(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Evolution._train

    def interrupted(self, *arguments):  # type: ignore[no-untyped-def]
        raise KeyboardInterrupt

    monkeypatch.setattr(Evolution, "_train", interrupted)
    out = tmp_path / "r"
    result = run("evolve", "--unlabeled", photos, "-o", out, "--rounds", 1, "--force", *TINY)
    assert result.exit_code == 130
    assert f"nothing is lost. Continue with: evoprompt resume {out}" in result.stderr
    monkeypatch.setattr(Evolution, "_train", plain)
    assert run("resume", out).exit_code == 0
    assert json.loads((out / "run.json").read_text())["status"] == "finished"
    assert "is finished: 1 rounds. Extend it with --rounds." in run("resume", out).stderr


def test_a_refused_judge_can_be_followed_with_force(photos: Path, tmp_path: Path) -> None:
    out, chance = tmp_path / "r", ["-s", "ladder.images=1", "-s", "ladder.kinds=1", "-s", "train.steps=1"]
    result = run("evolve", "--unlabeled", photos, "-o", out, "--rounds", 1, *TINY, *chance)
    assert result.exit_code == 2 and f"go on with 'evoprompt resume {out} --force'" in result.stderr
    assert run("resume", out).exit_code == 2
    assert run("resume", out, "--force", "-s", "eval.batch_size=4").exit_code == 0
    for more in (["--rounds", 2], []):
        result = run("resume", out, *more, "-s", "train.lr=9")
        assert result.exit_code == 2 and "another recipe: train.lr: 0.05 -> 9.0" in result.stderr


def test_a_run_made_from_python_is_resumed_by_the_command(photos: Path, tmp_path: Path) -> None:
    recipe = load_recipe("nano", ["rounds=1", "train.steps=1", *(key for key in TINY if "=" in key)])
    chosen = load_judge("owl2-nano", None, "auto", "auto", "cpu")
    evolve(recipe, scan_images([photos]), tmp_path / "r", chosen, force=True)
    result = run("resume", tmp_path / "r", "--rounds", 2)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "r" / "run.json").read_text())["status"] == "finished"


def test_a_full_disk_gets_one_sentence_and_no_traceback(photos: Path) -> None:
    assert run("score", photos / "p00.png", "-o", "/dev/null", "--device", "cpu").exit_code == 0
    result = run("score", photos / "p00.png", "-o", "/dev/full", "--device", "cpu")
    assert result.exit_code == 1 and "No space left on device. See that the place" in result.stderr
    assert "This is a bug" not in result.stderr


def test_a_run_is_called_as_its_folder_dots_and_all(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(photos, tmp_path / "set1.5")
    monkeypatch.chdir(tmp_path)
    for source, name in (("set1.5", "set1.5"), ("set1.5/labels.csv", "labels")):
        result = run("evolve", "--unlabeled", source, "--dry-run", *TINY)
        assert f"writes runs/{name}\n" in result.stderr, result.output


def test_without_a_recipe_the_judge_that_is_asked_for_says_which(photos: Path, tmp_path: Path) -> None:
    def chosen(*options: str) -> Recipe:
        context = main.commands["judge"].make_context("judge", [str(photos), "--device", "cpu", *options])
        return recipe_of(context)

    assert chosen() == load_recipe("nano")
    for options in (["--judge", "some/judge"], ["-s", "judge.id=some/judge"]):
        found = chosen(*options)
        assert (found.judge.id, found.judge.family) == ("some/judge", "auto")
        assert found.vote == load_recipe("label-free").vote
    shutil.copytree(Path(evoprompt.__file__).parent / "nano", tmp_path / "mine")
    found = chosen("--judge", str(tmp_path / "mine"))
    assert found.prompt == load_recipe("nano").prompt and found.judge.family == "auto"
    assert chosen("-s", "judge.id=some/judge", "-r", "label-free").judge.family == "owl2"


def test_judge_with_a_prompt_is_the_judge_of_that_prompt(
    photos: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished / "prompt", tmp_path / "p")
    config = tmp_path / "p" / "config.json"
    body = json.loads(config.read_text())
    body["origin"] |= {"question": "look", "quantization": "8bit"}
    config.write_text(json.dumps(body))
    asked, plain = [], scoring.load_judge

    def load(*given: object) -> judge.OwlJudge:
        asked.append(given[5:8])
        return plain(*given[:7])  # in whole weights

    monkeypatch.setattr(scoring, "load_judge", load)
    result = run("judge", photos, "-p", tmp_path / "p", *TINY)
    assert result.exit_code == 0, result.output
    assert asked == [("look", "own", "8bit")]
    result = run("judge", photos, "-p", tmp_path / "p", "--judge", "absent/judge", *TINY)
    assert result.exit_code == 2


def test_recipes_are_listed_printed_and_checked(tmp_path: Path) -> None:
    assert "nano" in run("recipes").stdout
    printed = run("recipes", "nano").stdout
    (tmp_path / "mine.yaml").write_text(printed)
    assert run("recipes", "--check", tmp_path / "mine.yaml").exit_code == 0
    (tmp_path / "bad.yaml").write_text("vote:\n  min_confidense: 0.7\n  views: 0\n")
    result = run("recipes", "--check", tmp_path / "bad.yaml")
    assert result.exit_code == 2
    assert "2 problems" in result.stderr and "did you mean 'vote.min_confidence'" in result.stderr


def test_doctor_and_version_answer() -> None:
    assert json.loads(run("doctor", "--json").stdout)["evoprompt"] == __version__
    assert __version__ in run("--version").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evolve", "--unlabeled", "absent"], "no such folder, image or table: absent"),
        (["evolve", "--unlabeled", "EMPTY"], "holds no images"),
        (["evolve", "--unlabeled", "PHOTOS", "-s", "train.lr=fast"], "train.lr"),
        (["evolve", "--unlabeled", "PHOTOS", "-s", "train.lrr=1"], "did you mean 'train.lr'"),
        (["evolve", "--unlabeled", "PHOTOS", "-r", "unheard-of"], "unheard-of"),
        (["evolve", "--unlabeled", "PHOTOS", "-o", "PHOTOS"], "is not an empty folder"),
        (["evolve", "--unlabeled", "PHOTOS", "--judge", "EMPTY"], "cannot be loaded"),
        (["evolve", "--unlabeled", "PHOTOS", "--init-prompt", "EMPTY"], "config.json is missing"),
        (["evolve", "--unlabeled", "TORN"], "1 of 1 images cannot be read: torn.png"),
        (["score", "absent.png"], "no such folder, image or table: absent.png"),
        (["score", "PHOTOS", "-p", "absent"], "prompt absent does not exist"),
        (["score", "PHOTOS", "--device", "abacus"], "device 'abacus' cannot be used"),
        (["evaluate", "--eval-mos", "absent.csv"], "absent.csv cannot be read"),
        (["evolve", "--unlabeled", "PHOTOS", "-o", "/proc/evoprompt/run"], "nothing can be written in /proc/evoprompt"),
        (["score", "PHOTOS", "-o", "EMPTY/nodir/x.csv"], "there is no folder"),
        (["score", "PHOTOS", "-o", "/proc/x.csv"], "nothing can be written in /proc"),
        (
            ["evaluate", "--eval-mos", "absent.csv", "-o", "/proc/evoprompt"],
            "nothing can be written in /proc/evoprompt",
        ),
        (["aggregate", "absent.json", "-o", "EMPTY/nodir/a.md"], "there is no folder"),
        (["data", "split", "PHOTOS", "-o", "EMPTY/nodir/s.json"], "there is no folder"),
        (["judge", "PHOTOS", "-p", "owl2-nano", "-s", "judge.question=rate"], "does not go with -p"),
        (["judge", "ONE"], "has 1 distinct image, and a judge compares images; give at least 2"),
        (["resume", "EMPTY"], "is not a run"),
        (["report", "EMPTY"], "is not a run"),
        (
            ["prompt", "import", "a.pth", "--kind", "border", "--family", "foo", "-o", "x"],
            "'foo' is not one of 'owl2', ",
        ),
    ],
)
def test_bad_input_gets_one_sentence_and_exit_code_2(
    arguments: list[str], message: str, photos: Path, tmp_path: Path
) -> None:
    for name in ("EMPTY", "TORN", "ONE"):
        (tmp_path / name).mkdir()
    for name in ("a.png", "same.png"):
        (tmp_path / "ONE" / name).write_bytes((photos / "p01.png").read_bytes())
    (tmp_path / "TORN" / "torn.png").write_bytes((photos / "p01.png").read_bytes()[:500])
    places = {"PHOTOS": photos, "EMPTY": tmp_path / "EMPTY", "TORN": tmp_path / "TORN", "ONE": tmp_path / "ONE"}
    given = [str(places.get(a, a)).replace("EMPTY/", f"{tmp_path / 'EMPTY'}/") for a in arguments]
    if arguments[0] == "evolve":
        given += ["--device", "cpu"]
        given += [] if "-o" in given else ["-o", str(tmp_path / "out")]
    result = run(*given)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output and result.stderr.count("Error") == 1
    assert not (tmp_path / "out").exists()


def test_unreadable_images_can_be_left_out_and_are_recorded(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for path in photos.glob("*.png"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "torn.png").write_bytes(b"")
    arguments = (
        "evolve",
        "--unlabeled",
        folder,
        "-r",
        "nano",
        "--device",
        "cpu",
        "-o",
        tmp_path / "r",
        "--rounds",
        1,
        "--force",
        *TINY,
    )
    result = run(*arguments)
    assert result.exit_code == 2 and "torn.png (0 bytes)" in result.stderr and "--skip-unreadable" in result.stderr
    result = run(*arguments, "--skip-unreadable")
    assert result.exit_code == 0 and "1 unreadable: torn.png (0 bytes)" in result.stderr
    assert json.loads((tmp_path / "r" / "run.json").read_text())["skipped"] == [["torn.png", "0 bytes"]]
