"""Human scores from CSV files: accepted headers, the direction of the scale, and every way a table can be wrong."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evoprompt import images
from evoprompt.data_check import check_scores
from evoprompt.errors import DataError
from evoprompt.images import scan_images
from evoprompt.labels import Labels, overlap, read_labels, without_seen


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with images a.png, b.png and c.png of different content."""
    for value, name in enumerate("abc"):
        Image.new("RGB", (4 + value, 4), (value, 0, 0)).save(tmp_path / f"{name}.png")
    return tmp_path


def table(folder: Path, text: str, name: str = "mos.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_labels(path)
    return str(caught.value)


def test_rows_are_kept_in_order_with_hash_size_and_score(folder: Path) -> None:
    path = table(folder, "image,mos,std\nb.png,2.5,0.5\na.png,-1e1,0\n")
    labels = read_labels(path)
    assert labels.names == ("b.png", "a.png")
    assert labels.paths == (folder / "b.png", folder / "a.png")
    assert labels.sha256 == tuple(hashlib.sha256(image.read_bytes()).hexdigest() for image in labels.paths)
    assert [record.width for record in labels.records] == [5, 4]
    assert labels.mos.tolist() == [2.5, -10.0] and labels.mos.dtype == np.float64
    assert labels.std is not None and labels.std.tolist() == [0.5, 0.0]
    assert (labels.path, labels.column, labels.lower_better, len(labels)) == (path, "mos", False, 2)


@pytest.mark.parametrize("image", ["image", "file_name", "name", "file", "image_name", "filename", "Image"])
@pytest.mark.parametrize("score", ["mos", "MOS", "gt_score", "dmos", "mos_quality"])
def test_the_usual_headers_are_known(folder: Path, image: str, score: str) -> None:
    labels = read_labels(table(folder, f"set,{score},{image}\ntrain,3,a.png\n"))
    assert (labels.names, labels.mos.tolist(), labels.column) == (("a.png",), [3.0], score)
    assert labels.std is None


def test_the_direction_is_never_guessed_from_a_header(folder: Path) -> None:
    path = table(folder, "image,dmos,std\na.png,20,3\nb.png,70,4\n")
    assert read_labels(path).mos.tolist() == [20.0, 70.0]
    turned = read_labels(path, lower_better=True)
    assert turned.mos.tolist() == [-20.0, -70.0]
    assert turned.std is not None and turned.std.tolist() == [3.0, 4.0]
    assert turned.lower_better


def test_a_variance_is_not_taken_for_a_deviation(folder: Path) -> None:
    assert read_labels(table(folder, "image,mos,var\na.png,3,0.25\n")).std is None


def test_images_are_found_beside_the_table_then_in_its_images_folder(folder: Path) -> None:
    (folder / "sets" / "images" / "deep").mkdir(parents=True)
    (folder / "sets" / "images" / "deep" / "a.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "sets" / "b.png").write_bytes((folder / "b.png").read_bytes())
    labels = read_labels(table(folder / "sets", "image,mos\ndeep/a.png,1\nb.png,2\n"))
    assert labels.paths == (folder / "sets" / "images" / "deep" / "a.png", folder / "sets" / "b.png")


def test_a_named_image_folder_is_the_only_one_searched(folder: Path) -> None:
    (folder / "other").mkdir()
    (folder / "other" / "a.png").write_bytes((folder / "c.png").read_bytes())
    path = table(folder, "image,mos\na.png,1\n")
    assert read_labels(path, images=folder / "other").paths == (folder / "other" / "a.png",)
    with pytest.raises(DataError, match=r"that are not there: b\.png; looked in .*other\. Put them there"):
        read_labels(table(folder, "image,mos\nb.png,1\n"), images=folder / "other")


def test_a_byte_order_mark_blank_lines_and_blanks_do_not_matter(folder: Path) -> None:
    path = folder / "mos.csv"
    path.write_bytes(b"\xef\xbb\xbfimage , mos\r\n\r\n a.png , 1.5 \r\n,\r\nb.png,2\r\n")
    labels = read_labels(path)
    assert labels.names == ("a.png", "b.png") and labels.mos.tolist() == [1.5, 2.0]


@pytest.mark.parametrize(("mark", "called"), [(";", "semicolons"), ("\t", "tabs")])
def test_another_separator_than_commas_is_named(folder: Path, mark: str, called: str) -> None:
    path = table(folder, f"image{mark}mos\na.png{mark}1,5\nb.png{mark}2\n")
    assert refusal(path) == (
        f"{path} has {called} between its columns; accepted are commas. Save it as comma-separated text."
    )


def test_a_missing_score_column_is_answered_with_those_found(folder: Path) -> None:
    path = table(folder, "name,MOS_zscore,SD\na.png,1,1\n")
    assert refusal(path) == (
        f"{path} has no column 'mos' (or 'gt_score', 'dmos', 'mos_quality'); found: name, MOS_zscore, SD. "
        "Rename the column that holds the human score."
    )


def test_a_missing_image_column_is_answered_with_those_found(folder: Path) -> None:
    message = refusal(table(folder, "photo,mos\na.png,1\n"))
    assert "has no column 'image' (or 'file_name', 'name'" in message and "found: photo, mos." in message


def test_all_unusable_scores_are_listed_with_their_lines(folder: Path) -> None:
    path = table(folder, 'image,mos\na.png,good\n\nb.png,nan\nc.png,"3,5"\nd.png,\ne.png,inf\nf.png,--\ng.png,1_0x\n')
    assert refusal(path) == (
        f"{path} column 'mos' has 7 unusable values: line 2 'good'; line 4 'nan'; line 5 '3,5'; line 6 ''; line 7 'inf'"
        " and 2 more; accepted are finite numbers. Correct or remove these rows."
    )


def test_a_negative_deviation_is_refused(folder: Path) -> None:
    message = refusal(table(folder, "image,mos,std\na.png,3,-0.1\n"))
    assert "column 'std' has 1 unusable value: line 2 '-0.1'; accepted are finite numbers of at least 0" in message


def test_an_image_named_twice_is_refused_with_both_lines(folder: Path) -> None:
    message = refusal(table(folder, "image,mos\na.png,1\nb.png,2\na.png,3\n"))
    assert "1 row for images it already named: a.png (lines 2 and 4)" in message


@pytest.mark.parametrize("other", ["./a.png", "images/../a.png"])
def test_an_image_named_twice_in_other_words_is_refused(other: str, folder: Path) -> None:
    path = table(folder, f"image,mos\na.png,1\nb.png,2\n{other},3\n")
    assert f"1 row for images it already named: {other} (lines 2 and 4)" in refusal(path)
    assert check_scores(path).facts["repeated_names"] == ["a.png (2 rows)"]


@pytest.mark.parametrize("header", ["image,mos,mos", "image,MOS,mos", "image,mos,std,std", "image,image,mos"])
def test_two_columns_of_one_header_are_refused(header: str, folder: Path) -> None:
    names = header.lower().split(",")
    twice = next(name for name in names if names.count(name) > 1)
    message = refusal(table(folder, f"{header}\na.png{',1' * (len(names) - 1)}\n"))
    assert message == f"{folder / 'mos.csv'} has 2 columns '{twice}'. Keep one, or rename the others."


def test_two_columns_of_a_header_that_is_not_read_do_no_harm(folder: Path) -> None:
    assert len(read_labels(table(folder, "image,mos,remark,remark\na.png,1,x,y\n"))) == 1


def test_images_of_a_set_are_decoded_once_and_again_when_they_change(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, decode = [], images._decode
    monkeypatch.setattr(images, "_decode", lambda content, suffix: decoded.append(suffix) or decode(content, suffix))
    path = table(folder, "image,mos\na.png,1\nb.png,2\nc.png,3\n")
    first, counted = read_labels(path), []
    assert len(decoded) == 3
    again = read_labels(path, progress=lambda done, total: counted.append((done, total)))
    assert again.records == first.records and len(decoded) == 3 and counted == [(1, 3), (2, 3), (3, 3)]
    Image.new("RGB", (9, 9)).save(folder / "b.png")
    assert read_labels(path).records[1].width == 9 and len(decoded) == 4
    (folder / "b.png").write_bytes(b"")
    assert "1 of 3 images cannot be read: b.png (0 bytes)" in refusal(path)


def test_all_missing_images_are_named_with_where_they_were_looked_for(folder: Path) -> None:
    message = refusal(table(folder, "image,mos\na.png,1\nx.png,2\ny.png,3\n"))
    assert "names 2 of 3 images that are not there: x.png; y.png; " in message
    assert f"looked in {folder} and {folder / 'images'}." in message


def test_a_name_too_long_for_a_file_is_missing(folder: Path) -> None:
    path = table(folder, f"image,mos\na.png,1\n{'x' * 300}.png,2\n")
    assert f"names 1 of 2 images that are not there: {'x' * 300}.png; looked in" in refusal(path)
    with pytest.raises(DataError, match=r"x\.png \(file name too long\)"):
        scan_images([path])


def test_all_unreadable_images_are_named(folder: Path) -> None:
    (folder / "a.png").write_bytes(b"")
    (folder / "b.png").write_text("no image")
    message = refusal(table(folder, "image,mos\na.png,1\nb.png,2\nc.png,3\n"))
    assert "2 of 3 images cannot be read: a.png (0 bytes); b.png (not recognised as an image)." in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; a header and one row per image are expected"),
        ("image,mos\n", "has a header but no rows"),
        ("image,mos\na.png\nb.png,1,2\n", "2 rows without the header's 2 cells: line 2 has 1; line 3 has 3"),
        ("image,mos\n,1\n", "1 row without the name of an image: line 2"),
    ],
)
def test_a_malformed_table_is_refused(folder: Path, text: str, message: str) -> None:
    assert message in refusal(table(folder, text))


def test_a_file_that_is_no_text_is_refused(folder: Path) -> None:
    assert "is not a UTF-8 CSV file" in refusal(folder / "a.png")


def test_a_missing_table_is_refused(folder: Path) -> None:
    assert "none.csv cannot be read (No such file or directory)" in refusal(folder / "none.csv")


def test_overlap_finds_the_same_content_under_another_name(folder: Path) -> None:
    (folder / "train").mkdir()
    (folder / "train" / "renamed.png").write_bytes((folder / "b.png").read_bytes())
    labels = read_labels(table(folder, "image,mos\na.png,1\nb.png,2\nc.png,3\n"))
    seen = [record.sha256 for record in scan_images([folder / "train"]).records]
    assert overlap(labels.sha256, seen) == [1]
    assert overlap(labels.sha256, []) == []
    assert overlap(seen, labels.sha256) == [0]


def test_leaving_rows_out_keeps_everything_aligned(folder: Path) -> None:
    labels = read_labels(table(folder, "image,mos,std\na.png,1,0.1\nb.png,2,0.2\nc.png,3,0.3\n"))
    fewer = labels.without([1])
    assert isinstance(fewer, Labels)
    assert fewer.names == ("a.png", "c.png") and fewer.mos.tolist() == [1.0, 3.0]
    assert fewer.std is not None and fewer.std.tolist() == [0.1, 0.3]
    assert (fewer.column, fewer.path) == (labels.column, labels.path)
    assert len(labels) == 3


def test_seen_images_stop_are_dropped_or_are_kept_and_counted(folder: Path) -> None:
    labels = read_labels(table(folder, "image,mos\na.png,1\nb.png,2\nc.png,3\n"))
    seen = labels.sha256[1:]
    with pytest.raises(DataError, match="2 of the 3 evaluation images were also used to evolve"):
        without_seen(labels, seen, "stop")
    dropped, count = without_seen(labels, seen, "exclude")
    assert (dropped.names, count) == (("a.png",), 2)
    kept, count = without_seen(labels, seen, "keep")
    assert (kept.names, count) == (("a.png", "b.png", "c.png"), 2)
    with pytest.raises(DataError, match=r"all 3 evaluation images .* so --seen exclude leaves none. Give other images"):
        without_seen(labels, labels.sha256, "exclude")
    assert without_seen(labels, [], "stop")[1] == 0
