"""Scores on disk: what is written is read again, other people's files are read, and what cannot be used is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evoprompt.errors import DataError
from evoprompt.labels import read_labels
from evoprompt.score_files import Column, Target, read_scores, scale_ends, target_of, write_scores


def example(n: int = 6) -> tuple[Target, list[Column]]:
    rng = np.random.default_rng(0)
    target = Target(
        images=tuple(f"写真 {k}.png" for k in range(n)),
        mos=rng.normal(size=n),
        std=rng.random(n),
        groups=tuple(f"I{k // 2}" for k in range(n)),
        grouping="reference",
        factors={"distortion": ("blur", "noise") * (n // 2), "level": tuple("123456"[:n])},
        ends=(-3.0, 1 / 3),
        split="test (by reference)",
    )
    levels = rng.dirichlet(np.ones(5), n)
    none = np.zeros(n, bool)
    told = {"judge": "owl@1", "question": "good-fine", "precision": "bfloat16, 8bit"}
    bare = Column(name="none", kind="bare", scores=rng.normal(size=n), levels=levels, seen=none, **told)
    scores = rng.normal(size=n)
    scores[2] = np.nan
    seen = np.arange(n) < 2
    return target, [bare, Column(name="a, b", method="a", kind="control", scores=scores, seen=seen)]


def test_what_is_written_is_read_again_to_the_last_bit(tmp_path: Path) -> None:
    target, columns = example()
    write_scores(tmp_path / "s.csv", target, columns)
    file = read_scores(tmp_path / "s.csv")
    again = file.target
    assert again is not None and file.images == target.images == again.images
    assert np.array_equal(again.mos, target.mos)
    assert again.std is not None and target.std is not None and np.array_equal(again.std, target.std)
    assert (again.groups, again.grouping, again.factors) == (target.groups, target.grouping, target.factors)
    assert (again.ends, again.split, again.direction) == (target.ends, target.split, target.direction)
    assert [column.asked for column in file.columns] == [("owl@1", "good-fine", "bfloat16, 8bit"), ("", "", "")]
    for column, other in zip(file.columns, columns, strict=True):
        assert np.array_equal(column.scores, other.scores, equal_nan=True)
        assert (column.name, column.kind, column.method) == (other.name, other.kind, other.method or other.name)
        assert other.seen is not None and column.seen is not None and np.array_equal(column.seen, other.seen)
    assert columns[0].levels is not None and file.columns[0].levels is not None and file.columns[1].levels is None
    assert np.array_equal(file.columns[0].levels, columns[0].levels)


def test_what_labels_know_is_stated_with_the_scores(tmp_path: Path) -> None:
    for k in range(3):
        Image.new("RGB", (8 + k, 8)).save(tmp_path / f"{k}.png")
    (tmp_path / "mos.csv").write_text("image,mos\n0.png,1\n1.png,2\n2.png,3\n")
    plain = read_labels(tmp_path / "mos.csv", lower_better=True)
    target = target_of(plain)
    assert target.split == "none, all images as given" and target.direction == "lower was better, negated"
    assert target.groups is None and target.factors == {} and target.mos.tolist() == [-1, -2, -3]
    known = replace(plain, groups=("I1", "I1", "I2"), grouping="reference", level=(1.0, 2.5, 3.0), range=(-5.0, -1.0))
    target = target_of(replace(known, part="test", how="in the file", leaky="leaky: 2 references are on both sides."))
    assert target.split == "test (in the file); LEAKY: 2 references are on both sides"
    assert (target.grouping, target.groups, target.ends) == ("reference", ("I1", "I1", "I2"), (-5.0, -1.0))
    assert target.factors == {"level": ("1", "2.5", "3")}


def test_any_table_of_images_and_scores_will_do(tmp_path: Path) -> None:
    (tmp_path / "brisque.csv").write_text("file_name,score\na.png,31.5\nb.png,\n")
    file = read_scores(tmp_path / "brisque.csv")
    assert file.target is None and [column.name for column in file.columns] == ["brisque"]
    assert file.columns[0].kind == "other" and file.columns[0].seen is None
    assert file.columns[0].scores[0] == 31.5 and np.isnan(file.columns[0].scores[1])


def test_images_are_matched_by_name_then_path_then_file_name(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    paths = [tmp_path / "x" / name for name in ("a.png", "b.png", "c.png")]
    (tmp_path / "s.csv").write_text(f"image,score\n{paths[1]},2\nelsewhere/c.png,3\na.png,1\n")
    column = read_scores(tmp_path / "s.csv").on(["a.png", "b.png", "c.png"], paths)[0]
    assert column.scores.tolist() == [1, 2, 3]


def test_a_file_name_that_several_images_share_belongs_to_none_of_them(tmp_path: Path) -> None:
    names = ["a/0.png", "b/0.png", "a/1.png"]
    paths = [tmp_path / name for name in names]
    (tmp_path / "s.csv").write_text("image,score\n0.png,1\n1.png,2\n")
    with pytest.raises(DataError, match=r"file names that several images share: a/0.png; b/0.png. Call them there as"):
        read_scores(tmp_path / "s.csv").on(names, paths)
    (tmp_path / "s.csv").write_text("image,score\na/0.png,1\nb/0.png,2\nelsewhere/1.png,3\n")
    assert read_scores(tmp_path / "s.csv").on(names, paths)[0].scores.tolist() == [1, 2, 3]


def test_images_without_a_row_are_named(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("image,score\na.png,1\nx/b.png,2\ny/b.png,3\n")
    with pytest.raises(DataError, match=r"has no row for 1 of 2 images with human scores: b.png. Score them, too"):
        read_scores(tmp_path / "s.csv").on(["a.png", "b.png"], [Path("a.png"), Path("b.png")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,quality\na.png,1\n", "has no column 'score'"),
        ("image,score\na.png,good\nb.png,inf\n", "2 cells that are no finite numbers: line 2 'good'; line 3 'inf'"),
        (
            "image,score,mos\na.png,1,\n",
            "column 'mos' has 1 cells that are no finite numbers: line 2 ''. Correct them.",
        ),
        ("image,score\na.png,1\na.png,2\n", "two scores of image a.png by prompt s (the second in line 3)"),
        ("image,prompt,score\na.png,x,1\nb.png,y,2\n", "y and x have scores of different images"),
        ("image,score,kind\na.png,1,magic\n", "line 2: kind 'magic' is not known; use one of bare, votes"),
        ("image,score,mos,mos_range\na.png,1,2,5\n", "column 'mos_range': '5' is not a scale; write its ends as 1..5"),
        (
            "image,score,mos,std\na.png,1,2,0.1\nb.png,1,3,-0.1\n",
            "column 'std' has 1 cells that are no finite numbers of at least 0: line 3 '-0.1'. Correct them.",
        ),
        (
            "image,score,p_bad,p_poor,p_fair,p_good,p_excellent\na.png,1,-0.1,0.5,0.6,0,0\n",
            "column 'p_bad' has 1 cells that are no finite numbers of at least 0: line 2 '-0.1'. Correct them",
        ),
        (
            "image,score,p_bad,p_poor,p_fair,p_good,p_excellent\na.png,1,1,0,0,0,0\nb.png,1,0,0,0,0,0\n",
            "has 1 row whose level probabilities are all 0: line 3. Correct them, or leave p_bad to p_excellent empty",
        ),
        (
            "image,prompt,score,mos\na,p,1,1\nb,p,2,2\na,q,1,2\nb,q,2,1\n",
            "p and q have different human scores of 2 images: a; b. Give every image one",
        ),
        ("", "is empty"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_a_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        read_scores(tmp_path / "s.csv")
    assert message in str(caught.value)


def test_a_scale_is_two_rising_numbers() -> None:
    assert scale_ends("1..5", "--mos-range") == (1, 5) and scale_ends("-1.5..0", "x") == (-1.5, 0)
    for text in ("5..1", "1..1", "1-5", "a..b", "..", "nan..5", "0..inf"):
        with pytest.raises(DataError, match="--mos-range"):
            scale_ends(text, "--mos-range")
