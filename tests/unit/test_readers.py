"""Sets of human scores as distributed: tiny copies of their own files, with every trap that is known of them."""

from __future__ import annotations

import json
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tiny_sets import CSIQ_NAMES, KONIQ, SETS, kadid, koniq, pictures, workbook, write

from evoprompt.errors import DataError
from evoprompt.labels import Labels, read_labels
from evoprompt.naming import parse_name, reference_of
from evoprompt.readers import understand


def made(name: str, folder: Path) -> Labels:
    SETS[name](folder)
    return read_labels(folder)


@pytest.mark.parametrize("name", SETS)
def test_the_folder_of_a_set_as_distributed_is_recognised(name: str, tmp_path: Path) -> None:
    labels = made(name, tmp_path)
    assert labels.dataset == name
    assert len(labels) == len(labels.mos) > 1
    assert labels.lower_better == (name in ("CSIQ", "LIVE"))
    assert labels.range is None or labels.range[0] <= labels.mos.min() <= labels.mos.max() <= labels.range[1]


def test_koniq_has_mean_and_deviation_on_one_scale(tmp_path: Path) -> None:
    labels = made("KonIQ-10k", tmp_path)
    assert labels.mos[0] == pytest.approx(3.8285714, abs=1e-6) and labels.range == (1, 5)
    assert labels.std is not None and labels.std[0] == pytest.approx(0.527277894494, abs=1e-9)
    assert labels.mos.tolist()[1:] == [2.5, 1.0] and labels.std.tolist()[2] == 0
    assert labels.split == ("train", "val", "test") and labels.how == "official"
    assert "MOS is on 1 to 100, its SD is not" in labels.notes[0]


def test_koniq_scores_can_be_asked_for_and_then_lose_the_deviation_of_the_other_scale(tmp_path: Path) -> None:
    koniq(tmp_path)
    labels = read_labels(tmp_path / "koniq10k_distributions_sets.csv", column="MOS")
    assert labels.mos[0] == pytest.approx(77.3836206897) and labels.std is None


def test_koniq_counts_of_ratings_do_as_well_as_shares(tmp_path: Path) -> None:
    path = write(tmp_path / "koniq10k_scores_and_distributions.csv", KONIQ + "a.jpg,0,0,25,73,7,105,3.83,0.53,test\n")
    pictures(tmp_path / "512x384", ["a.jpg"])
    assert read_labels(path).mos[0] == pytest.approx(3.8285714, abs=1e-6)


def test_kadid_var_is_a_standard_deviation_and_its_dmos_is_higher_better(tmp_path: Path) -> None:
    labels = made("KADID-10k", tmp_path)
    assert labels.std is not None and set(labels.std.tolist()) == {0.496}
    assert labels.mos[0] > labels.mos[2] and not labels.lower_better
    assert labels.groups is not None and set(labels.groups) == {"I01.png", "I02.png"}
    assert labels.distortion is not None and labels.level is not None
    assert (labels.distortion[:3], labels.level[:3]) == (("01", "01", "01"), (1.0, 2.0, 3.0))
    assert labels.references is not None and labels.references[0] == tmp_path / "images" / "I01.png"


def test_a_set_that_is_higher_better_cannot_be_turned_round(tmp_path: Path) -> None:
    kadid(tmp_path)
    with pytest.raises(DataError, match="is KADID-10k, whose scores are better when higher"):
        read_labels(tmp_path, lower_better=True)


def test_agiqa_quality_is_read_and_not_agreement_with_the_text(tmp_path: Path) -> None:
    labels = made("AGIQA-3K", tmp_path)
    assert labels.mos.tolist() == [0.9, 3.1, 2.2] and labels.column == "mos_quality"
    assert labels.std is not None and labels.std.tolist() == [0.2, 0.6, 0.5]
    assert labels.grouping == "text prompt" and labels.groups == ("statue of a man, at night", "sushi", "sushi")
    assert labels.references is None


def test_live_challenge_leaves_out_the_seven_practice_images(tmp_path: Path) -> None:
    labels = made("LIVE-C", tmp_path)
    assert labels.names == ("3.bmp", "4.bmp", "5.bmp")
    assert labels.mos[0] == pytest.approx(np.linspace(20, 80, 10)[7])
    assert labels.std is not None and len(labels.std) == 3
    assert any("7 images that raters practised on" in note for note in labels.notes)


def test_tid_names_differ_in_case_from_its_files(tmp_path: Path) -> None:
    labels = made("TID2013", tmp_path)
    assert labels.mos.tolist() == [5.5, 4.5, 3.5] and labels.std is not None and labels.std[1] == 0.16
    assert labels.groups == ("i01", "i01", "i02") and labels.level == (1, 2, 1)
    assert any("names in another case" in note for note in labels.notes)


@pytest.mark.parametrize("name", ["CSIQ", "LIVE"])
def test_difference_scores_are_negated(name: str, tmp_path: Path) -> None:
    labels = made(name, tmp_path)
    assert labels.mos[1] > labels.mos[2] and labels.mos.max() <= 0
    assert labels.range == ((-1, 0) if name == "CSIQ" else (-100, 0))
    assert read_labels(tmp_path, lower_better=True).mos.tolist() == labels.mos.tolist()  # said twice is not undone


def test_csiq_files_are_named_after_image_type_and_level(tmp_path: Path) -> None:
    labels = made("CSIQ", tmp_path)
    assert labels.names[0] == "awgn/1600.AWGN.1.png" and labels.names[3] == "jpeg2000/1600.jpeg2000.1.png"
    assert labels.groups is not None and set(labels.groups) == {"1600", "elk"}
    assert labels.references is not None and labels.references[0] == tmp_path / "src_imgs" / "1600.png"


@pytest.mark.parametrize("folder", ["AWGN", "awgn", "Awgn"])
def test_csiq_folders_may_be_in_another_case_and_its_workbook_have_its_older_name(folder: str, tmp_path: Path) -> None:
    SETS["CSIQ"](tmp_path)
    (tmp_path / "csiq.DMOS.xlsx").rename(tmp_path / "csiq.beta.xlsx")
    (tmp_path / "dst_imgs" / "awgn").rename(tmp_path / "dst_imgs" / folder)
    labels = read_labels(tmp_path)
    assert labels.dataset == "CSIQ" and len(labels) == 12 and labels.paths[0].parent.name == folder
    assert any("in another case" in note for note in labels.notes) == (folder != "awgn")


def test_live_leaves_out_the_undistorted_images(tmp_path: Path) -> None:
    labels = made("LIVE", tmp_path)
    assert labels.names[0] == "jp2k/img2.bmp" and len(labels) == 982 - 197
    assert labels.distortion is not None and labels.distortion[0] == "jp2k"


def test_pipal_numbers_are_no_levels(tmp_path: Path) -> None:
    labels = made("PIPAL", tmp_path)
    assert labels.groups is not None and labels.groups[0] == "a0001" and labels.range is None
    assert labels.mos.tolist()[:3] == [1400, 1409, 1418] and labels.distortion is not None
    assert labels.references is not None and labels.references[0] == tmp_path / "Train_Label/../Train_Ref/A0001.bmp"


def test_flive_has_its_official_split(tmp_path: Path) -> None:
    assert made("FLIVE", tmp_path).split == ("train", "val", "test")


@pytest.mark.parametrize(("image", "stem"), [("image", "test_koniq"), ("img_path", "livec")])
def test_lists_of_q_align_are_read(image: str, stem: str, tmp_path: Path) -> None:
    names = [f"t{k}.bmp" for k in range(1, 8)] + ["3.bmp", "4.bmp"]
    items = [
        {"id": f"{n}->{k}", image: f"set/{n}", "gt_score": 10.0 + k, "conversations": []} for k, n in enumerate(names)
    ]
    pictures(tmp_path / "set", names)
    for item in items if stem == "livec" else ():
        del item["id"], item["conversations"]  # as in that list
    labels = read_labels(write(tmp_path / "jsons" / f"{stem}.json", json.dumps(items)))
    assert labels.dataset == {"test_koniq": "KonIQ-10k", "livec": "LIVE-C"}[stem]
    assert len(labels) == (2 if stem == "livec" else 9) and labels.mos[-1] == 18.0
    assert any("rows; " in note for note in labels.notes)  # 1162 images, or 10073 with 2015 for testing, are usual


@pytest.mark.parametrize(("count", "noted"), [(2015, False), (2010, True)])
def test_another_test_part_of_koniq_than_the_official_one_is_noted(count: int, noted: bool, tmp_path: Path) -> None:
    items = [{"id": f"{k}.jpg->{k % 100}", "image": f"koniq/{k}.jpg"} for k in range(count)]
    notes = understand(write(tmp_path / "test_koniq.json", json.dumps(items))).notes
    said = f"{count} rows; KonIQ-10k has 10073 as distributed and 2015 in its official test part"
    assert notes == ((said,) if noted else ())


def test_the_direction_of_a_list_of_live_is_asked_for(tmp_path: Path) -> None:
    names = ["live/fastfading/img1.bmp", "live/jp2k/img2.bmp"]
    pictures(tmp_path, names)
    items = [{"id": f"{n}->{s}", "image": n, "gt_score": s} for n, s in zip(names, (60.2, 0.0), strict=True)]
    path = write(tmp_path / "test_split_1.json", json.dumps(items))
    labels = read_labels(path)
    assert labels.dataset == "LIVE" and labels.mos.tolist() == [60.2, 0.0]
    assert any("if these were not turned round, add --lower-better" in note for note in labels.notes)
    assert read_labels(path, lower_better=True).mos.tolist() == [-60.2, 0.0]


SLIPS = [f"I{r:02d}_01_{level:02d}.png" for r in (1, 2, 3) for level in (1, 2, 3)]


def beside(folder: Path, references: list[str]) -> Path:
    rows = "".join(f"{name},{reference},3,0.5\n" for name, reference in zip(SLIPS, references, strict=True))
    return write(folder / "dmos.csv", "dist_img,ref_img,dmos,var\n" + rows)


def test_a_reference_column_that_has_slipped_is_refused(tmp_path: Path) -> None:
    whole = [f"{name[:3]}.png" for name in SLIPS]
    with pytest.raises(DataError, match="two images in 2 rows: line 5 'I02_01_01.png' beside 'I01.png'; line 8"):
        understand(beside(tmp_path, [whole[0], *whole[:-1]]))
    for other_words in (whole, [f"scene {name[2]}" for name in SLIPS]):
        assert understand(beside(tmp_path, other_words)).groups == tuple(other_words)


def test_a_list_whose_ids_have_slipped_is_refused(tmp_path: Path) -> None:
    names = ["a.jpg", "b.jpg", "c.jpg"]
    items = [{"id": f"{i}->3", "image": f"koniq/{n}"} for n, i in zip(names, ["a.jpg", "a.jpg", "b.jpg"], strict=True)]
    with pytest.raises(DataError, match="names two images in 2 rows: item 2 'koniq/b.jpg' beside 'a.jpg'; item 3"):
        understand(write(tmp_path / "test_koniq.json", json.dumps(items)))


def test_a_list_without_scores_has_them_in_its_ids(tmp_path: Path) -> None:
    names = ["I01_01_01.png", "I01_01_02.png", "I81_25_05.png"]
    items = [
        {"id": f"{n}->{s}", "image": f"kadid10k/images/{n}"} for n, s in zip(names, (4.57, 4.33, 1.2), strict=True)
    ]
    pictures(tmp_path / "kadid10k" / "images", names)
    labels = read_labels(write(tmp_path / "test_kadid.json", json.dumps(items)))
    assert labels.dataset == "KADID-10k" and labels.mos.tolist() == [4.57, 4.33, 1.2]
    assert labels.groups == ("i01", "i01", "i81")


def test_deviations_of_kadid_in_deqa_lists_are_square_roots(tmp_path: Path) -> None:
    item = {"id": "I01_01_01.png->4.57", "image": "kadid/I01_01_01.png", "gt_score": 4.57, "std": 0.7042726744663603}
    other = {"id": "I01_01_02.png->4.33", "image": "kadid/I01_01_02.png", "gt_score": 4.33, "std": 0.9322016949137134}
    pictures(tmp_path / "kadid", ["I01_01_01.png", "I01_01_02.png"])
    labels = read_labels(write(tmp_path / "test_kadid_2k.json", json.dumps([item, other])))
    assert labels.std is not None and labels.std[0] == pytest.approx(0.496, abs=1e-9)
    assert any("squared" in note for note in labels.notes)


def test_names_of_kadis_tell_of_their_references(tmp_path: Path) -> None:
    names = ["apple-423588_06_03.bmp", "apple-423588_25_01.bmp", "pilatus-pc-12-795205_14_04.bmp"]
    pictures(tmp_path, names)
    rows = "".join(f"{name},{score}\n" for name, score in zip(names, (4, 3, 2), strict=True))
    labels = read_labels(write(tmp_path / "own.csv", "image,mos\n" + rows))
    assert labels.groups == ("apple-423588", "apple-423588", "pilatus-pc-12-795205") and labels.level == (3, 1, 4)
    assert labels.records[1].keys[1] == reference_of("apple-423588_01_02.png") == "reference:kadis-700k:apple-423588"
    for own in ("trip-2024_05_03.jpg", "scan-1_02_03.jpg", "IMG-20240511_12_05.jpg", "apple-423588_26_01.bmp"):
        assert parse_name(own) is None


def test_scores_by_name_are_read(tmp_path: Path) -> None:
    pictures(tmp_path, ["a.png", "b.png"])
    body = {"a.png": {"mos": 3, "std": 0.5}, "b.png": {"mos": 2, "std": 0.4}}
    labels = read_labels(write(tmp_path / "mos.json", json.dumps(body)))
    assert labels.names == ("a.png", "b.png") and labels.mos.tolist() == [3, 2]


@pytest.mark.parametrize("turned", [False, True])
def test_a_csiq_list_is_turned_by_what_its_levels_tell(turned: bool, tmp_path: Path) -> None:
    pictures(tmp_path, CSIQ_NAMES)
    scores = [0.2 * int(name.split(".")[2]) for name in CSIQ_NAMES]
    items = [
        {"id": str(k), "image": name, "gt_score": 1 - score if turned else score}
        for k, (name, score) in enumerate(zip(CSIQ_NAMES, scores, strict=True))
    ]
    labels = read_labels(write(tmp_path / "csiq.json", json.dumps(items)))
    assert labels.lower_better == (not turned)
    assert labels.mos[0] > labels.mos[2]
    assert any(note.startswith("12 rows; CSIQ has 866") for note in labels.notes)  # 750 in a known list


def test_meta_info_of_pyiqa_knows_direction_and_splits(tmp_path: Path) -> None:
    pictures(tmp_path, CSIQ_NAMES)
    rows = [
        f"{n.split('.')[0]}.png,{n},{0.2 * int(n.split('.')[2])},{'train' if n.startswith('elk') else 'test'}"
        for n in CSIQ_NAMES
    ]
    text = "ref_name,dist_name,dmos,ratio802_seed123_split_01\n" + "\n".join(rows)
    path = write(tmp_path / "meta_info_CSIQDataset.csv", text)
    labels = read_labels(path)
    assert labels.dataset == "CSIQ" and labels.lower_better and labels.grouping == "reference" and labels.split is None
    assert "ratio802_seed123_split_01" in labels.notes[0]
    part = read_labels(Path(f"{path}#test@ratio802_seed123_split_01"))
    assert len(part) == 6 and part.part == "test" and part.leaky == ""
    assert (
        part.describe()
        == "CSIQ, test part (ratio802_seed123_split_01 split): 6 images, scores from -1 to 0, negated, higher is better"
    )


def test_pyiqa_numbers_of_parts_are_understood(tmp_path: Path) -> None:
    pictures(tmp_path, ["a.jpg", "b.jpg", "c.jpg"])
    text = "img_name,mos,std,official_split\na.jpg,50,10,0\nb.jpg,60,11,1\nc.jpg,70,9,2\n"
    labels = read_labels(write(tmp_path / "meta_info_KonIQ10kDataset.csv", text))
    assert labels.split == ("train", "val", "test") and labels.range == (0, 100)


def test_koniq_of_pyiqa_has_mean_and_deviation_of_its_ratings(tmp_path: Path) -> None:
    pictures(tmp_path, ["10004473376.jpg"])
    rows = "img_name,mos,std,split,c1,c2,c3,c4,c5,c_total,ratio802_seed123_split_01\n10004473376.jpg,77.3836206897,"
    rows += "0.527277894494,training,0.0,0.0,0.238095238095,0.695238095238,0.0666666666667,105,train\n"
    path = write(tmp_path / "meta_info_KonIQ10kDataset.csv", rows)
    labels = read_labels(path)
    assert labels.mos[0] == pytest.approx(3.8285714, abs=1e-6) and labels.range == (1, 5)
    assert labels.std is not None and labels.std[0] == pytest.approx(0.527277894494, abs=1e-9)
    assert "MOS is on 1 to 100, its SD is not" in labels.notes[0] and labels.split == ("train",)
    assert any("choose one as meta_info_KonIQ10kDataset.csv#test@ratio802_seed123" in note for note in labels.notes)


def test_koniq_without_its_ratings_loses_deviations_of_the_other_scale(tmp_path: Path) -> None:
    pictures(tmp_path, ["a.jpg", "b.jpg"])
    path = write(tmp_path / "meta_info_KonIQ10kDataset.csv", "img_name,mos,std\na.jpg,77.38,0.53\nb.jpg,40,0.6\n")
    labels = read_labels(path)
    assert labels.std is None and any("on another scale" in note for note in labels.notes)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_metadata_of_an_image_folder_is_read(kind: str, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    pictures(tmp_path, ["train/a.png", "train/b.png"])
    rows = [{"file_name": "train/a.png", "mos": 1.5}, {"file_name": "train/b.png", "mos": 2}]
    path = tmp_path / f"metadata.{kind}"
    if kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        write(path, "\n".join(json.dumps(row) for row in rows))
    else:
        write(path, "file_name,mos\n" + "\n".join(f"{r['file_name']},{r['mos']}" for r in rows))
    labels = read_labels(tmp_path)
    assert labels.mos.tolist() == [1.5, 2] and labels.dataset == tmp_path.name


def test_deviations_of_another_scale_are_not_used(tmp_path: Path) -> None:
    # Lists are in use whose scores were brought to 1 to 5 and whose deviations were not.
    pictures(tmp_path, ["a.png", "b.png", "c.png"])
    path = write(tmp_path / "x.csv", "image,mos,std\na.png,1.5,18\nb.png,3,20\nc.png,4.9,9\n")
    labels = read_labels(path)
    assert labels.std is None and any("on another scale" in note for note in labels.notes)


def test_scores_that_rise_with_the_distortion_are_remarked_and_not_turned(tmp_path: Path) -> None:
    names = [f"I01_01_0{level}.png" for level in range(1, 6)]
    pictures(tmp_path, names)
    rows = "".join(f"{name},{level}\n" for level, name in enumerate(names))
    labels = read_labels(write(tmp_path / "x.csv", "image,dmos\n" + rows))
    assert labels.mos.tolist() == [0, 1, 2, 3, 4]
    assert any("if they are better when lower, add --lower-better" in note for note in labels.notes)


@pytest.mark.parametrize("kind", [".pkl", ".npy", ".pth"])
def test_pickles_are_not_opened(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"split{kind}"
    path.write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/never'\ntR.")
    with pytest.raises(DataError, match="may run code when it is opened"):
        understand(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"[1, 2]", "item 1 is no object"),
        ("a.json", b"{", "is not JSON"),
        ("a.json", b'"text"', "no list of objects"),
        ("a.jsonl", b'{"image": "a.png", "mos": 1}\nnot json\n', "line 2"),
        ("a.parquet", b"PAR1 nothing", "is no Parquet file"),
        ("a.xlsx", b"PK nothing", "cannot be read as Excel"),
        ("a.xls", b"\xd0\xcf", "old Excel workbook"),
        ("mos_with_names.txt", b"5.5 I01_01_1.bmp extra\n", "1 line without a name and a score"),
        ("AllMOS_release.mat", b"nothing", "cannot be read as MATLAB file"),
        ("labels_image.csv", b"photo,mos\na.png,1\n", "has no column 'image'"),
        ("a.csv", b"image,mos\na.png,1,2\n", "1 row without the header's 2 cells"),
    ],
)
def test_damaged_and_foreign_tables_are_refused_in_a_sentence(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        understand(tmp_path / name)


def test_a_workbook_with_entities_is_refused(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", [("image", "mos")])
    with zipfile.ZipFile(path, "a") as book:
        book.writestr("xl/sharedStrings.xml", '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><sst/>')
    with pytest.raises(DataError, match="declares entities"):
        understand(path)


def test_a_folder_without_a_known_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no known table of human scores"):
        read_labels(tmp_path)


def test_names_with_blanks_and_other_scripts_are_found(tmp_path: Path) -> None:
    names = ["a b/ç ü.png", "图像 01.png", "صورة.png"]
    pictures(tmp_path, names)
    labels = read_labels(
        write(tmp_path / "mos.csv", "image,mos\n" + "".join(f'"{n}",{k}\n' for k, n in enumerate(names)))
    )
    assert labels.names == tuple(names)


def test_accents_written_another_way_and_other_cases_of_folders_are_found(tmp_path: Path) -> None:
    on_disk = [unicodedata.normalize("NFD", "bü.png"), unicodedata.normalize("NFD", "Éa/c.PNG"), "D.png", "d.PNG"]
    pictures(tmp_path, on_disk)
    labels = read_labels(write(tmp_path / "mos.csv", "image,mos\nbü.png,1\néA/c.png,2\n"))
    assert labels.paths == (tmp_path / on_disk[0], tmp_path / on_disk[1]) and labels.names == ("bü.png", "éA/c.png")
    assert labels.notes == ("2 images found under names in another case, or with accents written another way",)
    with pytest.raises(DataError, match=r"1 of 1 images that are not there: d\.png"):  # it could be either
        read_labels(write(tmp_path / "mos.csv", "image,mos\nd.png,1\n"))
