"""evaluate, compare, aggregate and continual, as people type them: with a model, and from scores files without one."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import write_photos

from evoprompt.cli import main
from evoprompt.judge import NANO, load_judge
from evoprompt.prompts import Origin, PixelPrompt, PromptConfig

ORIGINS = {
    "free": {"labels": "none"},
    "free2": {"labels": "none"},
    "taught": {"labels": "MOS of 40 images (0123456789ab)"},
    "tossed": {"labels": "none", "control": "random-labels"},
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos with labels.csv, and prompts of three kinds whose values are noise."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "photos").mkdir()
    write_photos(folder / "photos")
    judge = load_judge(NANO, None, "auto", "auto", "cpu")
    for seed, (name, told) in enumerate(ORIGINS.items()):
        origin = Origin(judge=judge.id, revision=judge.revision, family=judge.family.name, **told)
        prompt = PixelPrompt(PromptConfig(image_size=judge.image_size, size=16, blocks=16), origin)
        with torch.no_grad():
            prompt.theta.copy_(torch.randn(prompt.theta.shape, generator=torch.Generator().manual_seed(seed)))
        prompt.save(folder / name)
    return folder


@pytest.fixture(scope="module")
def compared(place: Path) -> Path:
    """A comparison of all prompts, with two seeds of one of them."""
    result = run(
        "compare", f"ours={place / 'free'}", f"ours={place / 'free2'}", place / "taught", place / "tossed",
        "--eval-mos", place / "photos" / "labels.csv", "--device", "cpu", "--n-boot", 200, "-o", place / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (place / "out" / "stdout.md").write_text(result.stdout, encoding="utf-8")
    return place / "out"


def test_the_table_may_lie_elsewhere_and_have_several_columns_of_scores(place: Path, tmp_path: Path) -> None:
    rows = list(csv.DictReader((place / "photos" / "labels.csv").open(encoding="utf-8")))
    lines = [f"{row['image']},{number},{row['mos']}" for number, row in enumerate(rows)]
    table = tmp_path / "names and scores.csv"
    table.write_text("image,mos,overall\n" + "\n".join(lines), encoding="utf-8")
    (tmp_path / "nature.csv").write_text(
        "image,score\n" + "\n".join(f"{row['image']},{row['mos']}" for row in rows), encoding="utf-8"
    )
    items = ("evaluate", tmp_path / "nature.csv", "--eval-mos", table, "--images", place / "photos", "--json")
    by_number, asked = run(*items), run(*items, "--column", "overall", "--seed", 3)
    assert asked.exit_code == 0 and by_number.exit_code == 0, asked.output
    body = json.loads(asked.stdout)
    assert body["rows"][0]["srcc"]["value"] == 1 and body["protocol"]["seed"] == 3
    assert json.loads(by_number.stdout)["rows"][0]["srcc"]["value"] < 1
    assert "labels" in asked.stderr  # the images are counted while they are checked


def test_how_a_table_is_read_needs_a_table(compared: Path) -> None:
    result = run("evaluate", compared / "scores.csv", "--column", "mos")
    assert result.exit_code == 2 and "--column" in result.stderr and "there is none" in result.stderr


def test_a_comparison_has_the_bare_judge_its_votes_every_prompt_and_marked_controls(compared: Path) -> None:
    body = json.loads((compared / "comparison.json").read_text(encoding="utf-8"))
    kinds = [(row["method"], row["kind"]) for row in body["rows"]]
    taught, tossed = str(compared.parent / "taught"), str(compared.parent / "tossed")
    assert kinds[:4] == [("none", "bare"), ("votes", "votes"), ("ours", "label-free"), ("ours", "label-free")]
    assert kinds[4:] == [(taught, "supervised"), (tossed, "control")]
    assert body["rows"][1]["name"] == "votes on 120 pairs" and [r["name"] for r in body["rows"][2:4]] == [
        "ours 1",
        "ours 2",
    ]
    for row in body["rows"][1:]:
        assert row["gain"]["low"] <= row["gain"]["value"] <= row["gain"]["high"] and 0 < row["p_value"] <= 1
        assert 0 <= row["tests"]["williams_srcc"]["p_value"] <= 1
    (share,) = body["shares"]
    assert (share["label_free"], share["supervised"]) == ("ours", taught)
    assert [item["runs"] for item in body["summaries"]] == [1, 1, 2, 1, 1]
    said = (compared / "stdout.md").read_text(encoding="utf-8")
    assert f"| {tossed} (CONTROL) | 0 of 16 |" in said and "of the SRCC gain of" in said and "Over seeds:" in said
    files = ["comparison.html", "comparison.json", "scores.csv", "stdout.md", "table.md", "table.tex"]
    assert sorted(path.name for path in compared.iterdir()) == files


def test_a_scores_file_gives_the_same_numbers_again_without_torch(compared: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from evoprompt.cli import main\n"
        f"try: main(['compare', {str(compared / 'scores.csv')!r}, '--n-boot', '200', '-o', {str(tmp_path)!r}])\n"
        "except SystemExit as done: assert not done.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((f / "comparison.json").read_text(encoding="utf-8")) for f in (compared, tmp_path))
    for key in ("n", "rows", "shares", "summaries", "protocol", "split", "direction", "judge", "precision"):
        assert first[key] == second[key], key
    assert second["judge"].startswith("owl2-nano@") and second["precision"] == "float32"
    assert second["seen"] == "as the scores file has it"
    assert (tmp_path / "scores.csv").read_bytes() == (compared / "scores.csv").read_bytes()


def test_the_scores_file_holds_the_predicted_distribution_of_every_image(compared: Path) -> None:
    with (compared / "scores.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] != "votes"]
    assert len(rows) == 5 * 16
    for row in rows:
        shares = [float(row[f"p_{level}"]) for level in ("bad", "poor", "fair", "good", "excellent")]
        assert sum(shares) == pytest.approx(1, abs=1e-6)
        assert np.dot(shares, np.arange(1, 6)) == pytest.approx(float(row["score"]), abs=1e-6)


def test_other_scores_and_labels_join_by_image(compared: Path, place: Path, tmp_path: Path) -> None:
    """A metric's own file beside a scores file; two of its images have no score, and are left out of every row."""
    rows = [f"{place / 'photos' / f'p{k:02d}.png'},{'' if k in (3, 4) else 20 - k}" for k in range(16)]
    (tmp_path / "metric.csv").write_text("image,score\n" + "\n".join(rows) + "\n")
    result = run("compare", compared / "scores.csv", f"metric={tmp_path / 'metric.csv'}", "--n-boot", 100, "--json")
    assert result.exit_code == 3 and "2 images have no score by some prompt" in result.stderr
    body = json.loads(result.stdout)
    assert (body["n"], body["left_out"]) == (14, 2)
    row = body["rows"][-1]
    assert (row["name"], row["kind"], row["seen"], row["srcc"]["value"]) == ("metric", "other", None, 1.0)
    assert body["judge"].startswith("owl2-nano@") and body["judge"].endswith("; not stated for metric")
    labels = ("--eval-mos", place / "photos" / "labels.csv")
    alone = run("evaluate", tmp_path / "metric.csv", *labels, "--n-boot", 100)
    assert alone.exit_code == 3 and "no scores of the bare judge are among these" in alone.stderr


def test_the_same_scores_given_twice_are_one_row(compared: Path) -> None:
    once, twice = (
        json.loads(run("evaluate", *files, "--n-boot", 100, "--json").stdout)["rows"]
        for files in ([compared / "scores.csv"], [compared / "scores.csv"] * 2)
    )
    assert once == twice


def test_inverted_scores_are_said_not_guessed(compared: Path, place: Path, tmp_path: Path) -> None:
    with (place / "photos" / "labels.csv").open(newline="") as file:
        rows = [(row["image"], -float(row["mos"])) for row in csv.DictReader(file)]
    (place / "photos" / "dmos.csv").write_text("image,dmos\n" + "".join(f"{name},{v}\n" for name, v in rows))
    arguments = ("evaluate", compared / "scores.csv", "--eval-mos", place / "photos" / "dmos.csv", "--n-boot", 100)
    plain = run(*arguments, "--json")
    assert (
        plain.exit_code == 0 and "these human scores look inverted" in plain.stderr and "--lower-better" in plain.stderr
    )
    assert json.loads(plain.stdout)["rows"][0]["srcc"]["value"] < 0
    turned = run(*arguments, "--json", "--lower-better", "-o", tmp_path / "turned")
    again = json.loads(run("evaluate", tmp_path / "turned" / "scores.csv", "--n-boot", 100, "--json").stdout)
    assert again["direction"] == json.loads(turned.stdout)["direction"] == "lower was better, negated"
    body = json.loads(turned.stdout)
    assert body["rows"][0]["srcc"]["value"] > 0 and body["direction"] == "lower was better, negated"
    assert "inverted" not in turned.stderr


def test_seeds_and_splits_are_put_together(compared: Path, tmp_path: Path) -> None:
    result = run("aggregate", compared, compared / "comparison.json", "-o", tmp_path / "t.md", "--json")
    assert result.exit_code == 0, result.output
    ours = next(item for item in json.loads(result.stdout) if item["method"] == "ours")
    assert ours["runs"] == 4 and ours["numbers"]["srcc"]["n"] == 4 and ours["numbers"]["srcc"]["sd"] > 0
    assert "| ours (label-free) | 4 |" in (tmp_path / "t.md").read_text(encoding="utf-8")


def test_domains_in_sequence(place: Path, tmp_path: Path) -> None:
    with (place / "photos" / "labels.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    for name, part in (("a", rows[1:9]), ("b", rows[9:])):
        with (place / "photos" / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([rows[0], *part])
    domains = [f"--eval-mos={place / 'photos' / name}.csv" for name in "ab"]
    stages = (place / "free", place / "tossed")
    result = run("continual", *stages, *domains, "--device", "cpu", "--n-boot", 100, "-o", tmp_path / "c")
    assert result.exit_code == 0, result.output
    body = json.loads((tmp_path / "c" / "continual.json").read_text(encoding="utf-8"))
    r, bare = np.array(body["matrix"]), body["bare"]
    assert r.shape == (2, 2) and body["acc"] == pytest.approx(r[1].mean())
    assert body["bwt"] == pytest.approx(r[1, 0] - r[0, 0]) and body["fwt"] == pytest.approx(r[0, 1] - bare[1])
    assert body["forgetting"] == pytest.approx(r[0, 0] - r[1, 0])
    for k, evaluation in enumerate(body["evaluations"]):
        (tmp_path / f"{k}.json").write_text(json.dumps(evaluation))
    again = run("continual", tmp_path / "0.json", tmp_path / "1.json", "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["matrix"] == body["matrix"]


def test_a_prompt_may_be_on_the_hub(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        return str(place / "free")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    photo = place / "photos" / "p00.png"
    result = run("score", photo, "-p", "someone/their-prompt@v2", "--device", "cpu")
    assert result.exit_code == 0 and asked == [("someone/their-prompt", "v2")]
    assert result.stdout == run("score", photo, "-p", place / "free", "--device", "cpu").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["compare", "absent", "--eval-mos", "LABELS"],
            "prompt absent does not exist: it is neither a folder here nor",
        ),
        (["compare", "someone/absent", "--eval-mos", "LABELS"], "it is no folder here, and the Hub says"),
        (["compare", "absent.csv"], "absent.csv cannot be read"),
        (["compare", "none"], "there are no human scores to hold these prompts against. Give them with --eval-mos."),
        (["evaluate"], "there are no human scores"),
        (["evaluate", "METRIC"], "metric.csv: no column 'mos'. Give the human scores with --eval-mos"),
        (["evaluate", "METRIC", "--eval-mos", "LABELS"], "has no row for 15 of 16 images with human scores: p01.png"),
        (["evaluate", "SCORES", "OTHER"], "have different human scores of 16 images"),
        (["evaluate", "SCORES", "--mos-range", "5..1"], "--mos-range: '5..1' is not a scale"),
        (["evaluate", "SCORES", "--n-boot", "3"], "3 is not in the range x>=100"),
        (["aggregate", "absent"], "absent is not a result of 'evoprompt evaluate -o'"),
        (["aggregate", "LABELS"], "is not a result of"),
        (["continual", "none", "--eval-mos", "LABELS", "--eval-mos", "LABELS"], "1 prompts and 2 domains"),
        (["continual", "OUT"], "the bare judge and 1 prompts are needed, one for each domain"),
        (["continual", "OUT", "--statistic", "recall"], "'recall' is not one of 'srcc', 'plcc', 'krcc'"),
        (
            ["continual", "none", "x=none", "--eval-mos", "A", "--eval-mos", "B"],
            "the bare judge is no stage of training",
        ),
        (
            ["evaluate", "SCORES", "--min-gap", "-3"],
            "--min-gap -3 is no difference in MOS; give a number of at least 0",
        ),
    ],
)
def test_bad_input_gets_one_sentence(
    arguments: list[str], message: str, compared: Path, place: Path, tmp_path: Path
) -> None:
    (tmp_path / "metric.csv").write_text("image,score\np00.png,1\n")
    with (compared / "scores.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with (tmp_path / "other.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "mos": float(row["mos"]) + 1, "prompt": f"{row['prompt']}!"} for row in rows)
    places = {
        "LABELS": place / "photos" / "labels.csv",
        "METRIC": tmp_path / "metric.csv",
        "SCORES": compared / "scores.csv",
        "OTHER": tmp_path / "other.csv",
        "OUT": compared,
    }
    result = run(*(places.get(a, a) for a in arguments))
    assert result.exit_code == 2, result.output
    assert message in result.stderr and "Traceback" not in result.output


def test_a_file_of_another_kind_is_refused_under_python_o_too(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    code = "import sys; from evoprompt.compare_commands import Path, read_results; read_results(Path(sys.argv[1]))"
    command = [sys.executable, "-O", "-c", code, str(tmp_path / "other.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert "is not a result of 'evoprompt evaluate -o'" in done.stderr


def _no_judge(*_: object, **__: object) -> None:
    raise AssertionError("a judge was loaded")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--eval-mos", "FEW"], "4 labelled images are too few for a correlation; give at least 5"),
        (["--eval-mos", "CONST"], "all 16 human scores are 3; nothing can agree with them"),
        (["--eval-mos", "LABELS", "--mos-range", "2..2.1"], "human scores lie outside the scale 2..2.1"),
        (["METRIC", "--eval-mos", "LABELS"], "has no row for 15 of 16 images with human scores: p01.png"),
        (["--eval-mos", "LABELS", "-o", "FEW"], "few.csv' is a file."),
        (["--eval-mos", "LABELS", "-o", "FEW/x"], "Choose another place with --out."),
    ],
)
def test_what_is_wrong_is_said_before_a_judge_is_loaded(
    arguments: list[str], message: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evoprompt.scoring.judge_for", _no_judge)
    photos = place / "photos"
    names = [f"p{k:02d}.png" for k in range(16)]
    (photos / "few.csv").write_text("image,mos\n" + "".join(f"{name},{k}\n" for k, name in enumerate(names[:4])))
    (photos / "const.csv").write_text("image,mos\n" + "".join(f"{name},3\n" for name in names))
    (tmp_path / "metric.csv").write_text("image,score\np00.png,1\n")
    places = {name.upper(): str(photos / f"{name}.csv") for name in ("few", "const", "labels")}
    places["METRIC"] = str(tmp_path / "metric.csv")
    for command in ("evaluate", "compare"):
        told = [places.get(a, a.replace("FEW/", f"{places['FEW']}/")) for a in arguments]
        result = run(command, "none", *told, "--n-boot", 100)
        assert result.exit_code in (1, 2) and message in result.stderr, result.output
