"""Splits: nothing that belongs together is torn apart, and what is written is used again."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet
from tiny_sets import kadid, koniq, pictures, write

from evoprompt.errors import DataError
from evoprompt.images import scan_images
from evoprompt.labels import read_labels, with_split, without_seen
from evoprompt.splits import make_split, read_split, split_file, torn, write_split

HASHES = [f"{k:064x}" for k in range(200)]
GROUPS = [f"ref{k // 10}" for k in range(200)]


def test_copies_of_a_reference_stay_together_and_shares_are_those_asked_for() -> None:
    split = make_split(HASHES, GROUPS, "reference", seed=1)
    places = {
        group: {split.parts[sha] for sha, g in zip(HASHES, GROUPS, strict=True) if g == group} for group in GROUPS
    }
    assert all(len(parts) == 1 for parts in places.values())
    counts = [sum(parts == {part} for parts in places.values()) for part in ("train", "val", "test")]
    assert counts == [14, 2, 4] and split.how == "by reference"
    parts = [split.parts[sha] for sha in HASHES]
    assert [torn(GROUPS, "reference", parts, part) for part in ("train", "val", "test")] == ["", "", ""]


def test_a_split_depends_on_seed_and_names_but_not_on_the_order_of_rows() -> None:
    first = make_split(HASHES, GROUPS, "reference", seed=1)
    assert make_split(HASHES[::-1], GROUPS[::-1], "reference", seed=1).parts == first.parts
    assert make_split(HASHES, GROUPS, "reference", seed=2).parts != first.parts


def test_without_groups_equal_contents_stay_together() -> None:
    split = make_split([*HASHES, *HASHES[:50]], seed=3)
    assert split.how == "by content" and len(split.parts) == 200
    assert sorted({part: list(split.parts.values()).count(part) for part in ("train", "val", "test")}.values()) == [
        20,
        40,
        140,
    ]


def test_no_part_is_empty_and_too_few_units_are_refused() -> None:
    assert set(make_split(HASHES[:3]).parts.values()) == {"train", "val", "test"}
    with pytest.raises(DataError, match="2 references cannot be split into 3 parts"):
        make_split(HASHES[:20], GROUPS[:20], "reference")


def test_a_split_by_image_of_a_synthetic_set_is_called_leaky() -> None:
    parts = ["test" if k % 10 == 0 else "train" for k in range(200)]
    assert torn(GROUPS, "reference", parts, "test") == ("leaky: 20 of its 20 reference images are in other parts, too")
    assert torn(GROUPS, "text prompt", parts, "test") == torn(None, "", parts, "test") == ""


def test_a_leaky_split_column_is_named_in_the_description(tmp_path: Path) -> None:
    names = [f"I{r:02d}_01_{level:02d}.png" for r in (1, 2) for level in (1, 2)]
    pictures(tmp_path, names)
    rows = [f"{name},{4 - int(name[8])},{'test' if name[8] == '1' else 'train'}" for name in names]
    path = write(tmp_path / "x.csv", "image,mos,split\n" + "\n".join(rows))
    part = read_labels(Path(f"{path}#test"))
    assert part.names == ("I01_01_01.png", "I02_01_01.png")
    assert part.describe().endswith("higher is better; leaky: 2 of its 2 reference images are in other parts, too")


def test_a_written_split_is_used_by_its_table_and_only_with_the_same_images(tmp_path: Path) -> None:
    kadid(tmp_path)
    labels = read_labels(tmp_path)
    split = make_split(labels.sha256, labels.groups, labels.grouping, shares={"train": 0.5, "test": 0.5})
    write_split(split_file(labels.path), split)
    assert read_split(split_file(labels.path), labels.sha256) == split
    test = read_labels(Path(f"{labels.path}#test"))
    assert (test.how, test.part, test.leaky) == ("by reference", "test", "") and len(test) == 6
    assert test.groups is not None and len(set(test.groups)) == 1
    assert with_split(labels, split).of_part("train").names + test.names != ()
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / "I01_01_01.png")
    with pytest.raises(DataError, match="does not say where 1 of 12 images belong"):
        read_labels(Path(f"{labels.path}#test"))


def test_an_official_part_is_read_by_name_and_a_missing_one_is_refused(tmp_path: Path) -> None:
    koniq(tmp_path)
    part = read_labels(Path(f"{tmp_path}/koniq10k_distributions_sets.csv#val"))
    assert part.names == ("2.jpg",) and part.how == "official"
    with pytest.raises(DataError, match=r"has the parts test, train, val, not 'dev'.*evoprompt data split"):
        read_labels(Path(f"{tmp_path}/koniq10k_distributions_sets.csv#dev"))
    pictures(tmp_path, ["a.png"])
    with pytest.raises(DataError, match="has no split, not 'test'"):
        read_labels(Path(str(write(tmp_path / "x.csv", "image,mos\na.png,1\n")) + "#test"))


def test_a_file_that_is_no_split_is_refused(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"parts": {}}'):
        with pytest.raises(DataError, match="is no split file"):
            read_split(write(tmp_path / "s.json", text), HASHES)


def test_other_copies_of_a_reference_that_was_seen_are_an_overlap(tmp_path: Path) -> None:
    kadid(tmp_path / "set")
    labels = read_labels(tmp_path / "set")
    # A prompt was evolved, without labels, on another distortion of the first reference image.
    Image.new("RGB", (7, 7), (200, 10, 10)).save(tmp_path / "I01_25_05.png")
    seen = [key for record in scan_images([tmp_path / "I01_25_05.png"]).records for key in record.keys]
    assert seen[1] == "reference:kadid-10k:i01" and seen[0] not in labels.sha256
    left, count = without_seen(labels, seen, "exclude")
    assert count == 6 and {name[:3] for name in left.names} == {"I02"}
    with pytest.raises(DataError, match="copies of the same reference image"):
        without_seen(labels, seen, "stop")


def test_what_a_supervised_prompt_remembers_has_the_references_of_columns(tmp_path: Path) -> None:
    pictures(tmp_path, ["a.png", "b.png"])
    labels = read_labels(write(tmp_path / "films.csv", "image,mos,source\na.png,1,Big Film\nb.png,2,other\n"))
    assert [record.reference for record in labels.records] == ["reference:big_film", "reference:other"]
    assert set(labels.keys) == {*labels.sha256, *(record.reference for record in labels.records)}
    assert labels.overlap(["reference:other"]) == [1]


def two_lists(folder: Path) -> tuple[Path, Path]:
    """Train and test list of one set, with other copies of the same reference image."""
    pictures(folder, ["a.png", "b.png", "c.png"])
    train = write(folder / "train.csv", "image,mos,reference\na.png,1,Big Film\n")
    return train, write(folder / "test.csv", "image,mos,reference\nb.png,2,Big Film\nc.png,3,other\n")


def test_copies_of_one_reference_in_two_tables_are_an_overlap(tmp_path: Path) -> None:
    train, test = map(read_labels, two_lists(tmp_path))
    assert test.overlap(train.keys) == [0]
    with pytest.raises(DataError, match="1 of the 2 evaluation images were also used"):
        without_seen(test, train.keys, "stop")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_images_without_scores_have_the_references_of_their_table(kind: str, tmp_path: Path) -> None:
    train, test = two_lists(tmp_path)
    if kind == "parquet":  # which holds the images, one of them of no reference
        train = tmp_path / "train.parquet"
        cells = [{"bytes": (tmp_path / name).read_bytes(), "path": None} for name in ("a.png", "c.png")]
        parquet.write_table(pyarrow.table({"image": cells, "reference": ["Big Film", None]}), train)
    for index in (None, tmp_path / "index.parquet", tmp_path / "index.parquet"):  # the last time nothing is decoded
        records = scan_images([train], index=index).records
        assert [record.reference for record in records] == ["reference:big_film", ""][: len(records)]
    assert 0 in read_labels(test).overlap(key for record in records for key in record.keys)


def test_references_of_known_sets_are_told_apart_by_their_set(tmp_path: Path) -> None:
    pictures(tmp_path, ["I01_01_01.png", "I01_01_1.bmp"])
    kadid10k = write(tmp_path / "a.csv", "image,mos,reference\nI01_01_01.png,1,I01.png\n")
    tid2013 = write(tmp_path / "b.csv", "image,mos,reference\nI01_01_1.bmp,1,I01.BMP\n")
    assert read_labels(tid2013).overlap(read_labels(kadid10k).keys) == []
    assert scan_images([kadid10k]).records[0].reference == "reference:kadid-10k:i01"
