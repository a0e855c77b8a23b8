"""`data check` and `data split`, as people type them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from pyarrow import parquet
from tiny_sets import agiqa, csiq, kadid, koniq, pictures, write

from evoprompt.cli import main
from evoprompt.errors import JudgeError


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["data", *(str(a) for a in arguments)])


def lines(result: Result) -> dict[str, str]:
    return {line[:12].strip(): line[12:] for line in result.stdout.splitlines()}


@pytest.mark.parametrize("command", ["check", "split"])
def test_every_command_has_help_and_at_most_sixteen_options(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0 and result.stdout.count("  -") <= 16


def test_check_says_what_is_understood_of_a_set(tmp_path: Path) -> None:
    koniq(tmp_path)
    result = run("check", tmp_path)
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("images  3/3  ")
    said = lines(result)
    assert said["set"].startswith("KonIQ-10k (recognised), from ")
    assert said["scores"] == (
        "3 from column c1..c5: 1 to 3.82857 on a scale from 1 to 5; higher is better (known of this set); "
        "deviations 0 to 0.707107"
    )
    assert said["split"].startswith("that of the table: test 1, train 1, val 1; use one as ")
    assert said["images"] == "3 named, 3 readable, 0 with the content of another"
    assert said["pixels"] == "6 to 6 wide, 5 to 5 high"


def test_check_names_groups_and_a_leaky_split(tmp_path: Path) -> None:
    kadid(tmp_path)
    assert lines(run("check", tmp_path))["groups"] == "2 references; 2 types of distortion, levels 1 to 3"
    agiqa(tmp_path / "generated")
    assert lines(run("check", tmp_path / "generated"))["groups"] == "2 text prompts"
    names = [f"I01_01_0{k}.png" for k in (1, 2, 3)]
    pictures(tmp_path / "own", names)
    rows = "".join(
        f"{name},{4 - k},{part}\n" for k, (name, part) in enumerate(zip(names, ("train", "val", "test"), strict=True))
    )
    said = lines(run("check", write(tmp_path / "own" / "x.csv", "image,mos,split\n" + rows)))
    assert "leaky: 1 of its 1 reference images are in other parts, too" in said["split"]


def test_check_lists_everything_that_cannot_be_used_and_exits_with_three(tmp_path: Path) -> None:
    pictures(tmp_path, ["a b.png", "ü.png"])
    (tmp_path / "copy.png").write_bytes((tmp_path / "ü.png").read_bytes())
    (tmp_path / "empty.png").touch()
    (tmp_path / "half.png").write_bytes((tmp_path / "ü.png").read_bytes()[:50])
    text = "image,dmos\n" + "".join(
        f"{name},{k}\n"
        for k, name in enumerate(["a b.png", "ü.png", "copy.png", "empty.png", "half.png", "gone.png", "ü.png"])
    )
    result = run("check", write(tmp_path / "x.csv", text))
    assert result.exit_code == 3
    said = lines(result)
    assert said["images"] == "7 named, 4 readable, 2 with the content of another"
    assert said["missing"].startswith("1: gone.png; looked in ")
    assert said["unreadable"] == "2: empty.png (0 bytes); half.png (truncated)"
    assert said["repeated"] == "1: ü.png (2 rows)"
    assert "higher is better is assumed (add --lower-better if not)" in said["scores"]
    assert said["next"] == "put right what is missing, unreadable or repeated, and check again"


def test_check_of_images_without_scores(tmp_path: Path) -> None:
    pictures(tmp_path, ["a.png", "deep/b.png"])
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes())
    (tmp_path / "bad.jpg").write_text("no image")
    result = run("check", tmp_path)
    assert result.exit_code == 3
    assert lines(result)["images"] == "4 found, 2 distinct, 1 duplicate (same content)"
    assert lines(result)["next"] == f"evoprompt evolve --unlabeled {tmp_path} --skip-unreadable"
    assert lines(result)["unreadable"] == "1: bad.jpg (not recognised as an image)"
    facts = json.loads(run("check", tmp_path, "--json").stdout)
    assert (facts["distinct"], facts["duplicates"]) == (2, 1) and len(facts["fingerprint"]) == 12


def test_a_table_may_be_looked_at_without_its_scores(tmp_path: Path) -> None:
    csiq(tmp_path)
    assert lines(run("check", tmp_path, "--unlabeled"))["images"].startswith("14 found")
    facts = json.loads(run("check", tmp_path, "--json").stdout)
    assert (facts["dataset"], facts["better"], facts["direction_from"]) == ("CSIQ", "lower", "the set")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet"])
def test_a_list_without_scores_is_looked_at_as_one(kind: str, tmp_path: Path) -> None:
    pictures(tmp_path, ["a b.png", "c.png"])
    rows = [{"image": name, "zscore": 1} for name in ("a b.png", "c.png")]
    path = tmp_path / f"my list.{kind}"
    if kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        head = "image,zscore\n" + "".join(f"{row['image']},1\n" for row in rows)
        write(path, {"csv": head, "json": json.dumps(rows)}.get(kind, "\n".join(map(json.dumps, rows))))
    result = run("check", path)
    assert result.exit_code == 0, result.output
    said = lines(result)
    assert said["images"].startswith("2 found, 2 distinct")
    assert said["scores"].startswith(
        f"none: {path} has no column 'mos', 'gt_score', 'dmos', 'mos_quality'; found: image,"
    )
    assert said["next"] == f"evoprompt evolve --unlabeled '{path}'"
    assert lines(run("check", path, "--column", "zscore"))["next"] == f"evoprompt evaluate PROMPT --eval-mos '{path}'"
    assert "has no column 'grade'" in run("check", path, "--column", "grade").stderr


def test_photos_beside_a_table_of_something_else_are_images_without_scores(tmp_path: Path) -> None:
    pictures(tmp_path, ["a.png", "b.png"])
    write(tmp_path / "data.csv", "day,rain\n1,20\n")
    said = lines(run("check", tmp_path))
    assert said["images"].startswith("2 found") and "found: day, rain. If one holds scores, add --col" in said["scores"]


def test_wrong_columns_and_foreign_files_are_one_sentence(tmp_path: Path) -> None:
    result = run("check", write(tmp_path / "x.csv", "photo,score\na.png,1\n"))
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("Error: ") and "has no column 'image'" in result.stderr
    (tmp_path / "x.pkl").touch()
    assert run("check", tmp_path / "x.pkl").exit_code == 2
    assert run("check", tmp_path / "gone").exit_code == 2


def test_split_writes_a_file_and_uses_it_again(tmp_path: Path) -> None:
    kadid(tmp_path)
    first = run("split", tmp_path, "--val", 0, "--test", 0.5)
    assert first.exit_code == 0, first.output
    assert first.stderr.startswith("labels  12/12  ")
    said = lines(first)
    assert said["split"] == f"by reference, written: {tmp_path / 'dmos.csv.split.json'}"
    assert (said["train"], said["test"]) == ("6 images, 1 reference", "6 images, 1 reference")
    before = (tmp_path / "dmos.csv.split.json").read_bytes()
    again = run("split", tmp_path, "--val", 0, "--test", 0.5)
    assert lines(again)["split"].startswith("by reference, used again") and again.exit_code == 0
    assert (tmp_path / "dmos.csv.split.json").read_bytes() == before
    for other in (("--seed", 1, "--val", 0, "--test", 0.5), ("--val", 0), ("--val", 0.3, "--test", 0.5), ()):
        result = run("split", tmp_path, *other)
        assert result.exit_code == 2 and result.stdout == ""
        assert "is there with seed 0 and shares train 0.5, test 0.5. Ask for these, name another" in result.stderr
    assert (tmp_path / "dmos.csv.split.json").read_bytes() == before
    assert lines(run("check", tmp_path))["split"].startswith("by reference, seed 0, in ")


def test_an_official_split_is_kept_unless_another_is_wanted(tmp_path: Path) -> None:
    koniq(tmp_path)
    assert lines(run("split", tmp_path))["split"].startswith("official, from the table; nothing is written")
    own = run("split", tmp_path, "--own", "-o", tmp_path / "mine.json", "--val", 0, "--test", 0.4)
    assert lines(own)["split"] == f"by content, written: {tmp_path / 'mine.json'}"
    assert f"#test@{tmp_path / 'mine.json'}" in lines(own)["next"]


def test_shares_that_leave_nothing_to_train_on_are_refused(tmp_path: Path) -> None:
    koniq(tmp_path)
    result = run("split", tmp_path, "--val", 0.5, "--test", 0.5)
    assert result.exit_code == 2 and "leave nothing to train on" in result.stderr


def test_a_part_is_named_wherever_scores_are(tmp_path: Path) -> None:
    koniq(tmp_path)
    result = CliRunner().invoke(
        main, ["evaluate", "--eval-mos", f"{tmp_path}/koniq10k_distributions_sets.csv#val", "--device", "cpu"]
    )
    assert result.exit_code == 2 and "1 labelled image" in result.stderr


def test_a_very_large_and_a_tiny_image_are_told(tmp_path: Path) -> None:
    Image.new("1", (20_000, 700)).save(tmp_path / "wide.png")
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    result = run("check", tmp_path)
    assert lines(result)["unreadable"] == "1: wide.png (20000 x 700 pixels, edges may have 16384)"
    assert lines(result)["pixels"] == "1 to 1 wide, 1 to 1 high"


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "none", "--eval-mos", "TABLE"),
        ("compare", "none", "--eval-mos", "TABLE"),
        ("continual", "owl2-nano", "--eval-mos", "TABLE"),
        ("study", "--eval-mos", "TABLE", "-o", "OUT"),
        ("train", "--train-mos", "TABLE", "-o", "OUT"),
        ("evolve", "--unlabeled", "OTHER", "--train-mos", "TABLE", "-o", "OUT"),
        ("evolve", "--unlabeled", "OTHER", "--eval-mos", "TABLE", "-o", "OUT"),
        ("data", "split", "TABLE"),
    ],
)
def test_how_scores_were_understood_is_told_once_before_a_judge_is_loaded(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_here(*arguments: object) -> None:
        raise JudgeError("no judge is loaded here")

    monkeypatch.setattr("evoprompt.scoring.judge_for", none_here)
    monkeypatch.setattr("evoprompt.session.load_judge", none_here)
    names = [f"{k}.png" for k in range(8)]
    pictures(tmp_path / "set", names)
    pictures(tmp_path / "other", ["a.jpg", "b.jpg", "c.jpg"])
    rows = "".join(f"{name},{1 + k / 2},{20 + k},{k % 4}\n" for k, name in enumerate(names))
    table = write(tmp_path / "set" / "list.csv", "image,mos,std,level\n" + rows)
    places = {"TABLE": table, "OTHER": tmp_path / "other", "OUT": tmp_path / "run"}
    result = CliRunner().invoke(main, [str(places.get(word, word)) for word in words])
    assert result.exit_code == (0 if words[0] == "data" else 2), result.output
    assert result.stderr.count(f"note     {table}: its deviations are on another scale than its scores") == 1
    assert result.stderr.count(f"note     {table}: its scores rise with the level of distortion") == 1
