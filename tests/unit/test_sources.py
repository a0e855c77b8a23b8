"""Where images may lie: tar files, Parquet, data sets, lists; and the index that keeps memory small."""

from __future__ import annotations

import gc
import io
import json
import os
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from evoprompt import images
from evoprompt.catalogue import Catalogue, ImageRecord, Known, index_file, unfinished, write_catalogue
from evoprompt.containers import absolute, content, exists, stamp
from evoprompt.errors import DataError
from evoprompt.images import find_images, read_image, scan_images


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (number % 256, number // 256, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def shard(path: Path, numbers: range) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number in numbers:
            for name, body in ((f"{number:06d}.png", picture(number)), (f"{number:06d}.json", b"{}")):
                member = tarfile.TarInfo(f"./{name}")
                member.size = len(body)
                archive.addfile(member, io.BytesIO(body))
    return path


def colours(found: images.ImageSet) -> list[int]:
    return [read_image(record.path).getpixel((0, 0))[0] for record in found.records]  # type: ignore[index]


def test_shards_are_read_in_place(tmp_path: Path) -> None:
    for k in range(3):
        shard(tmp_path / f"set-{k:03d}.tar", range(4 * k, 4 * k + 4))
    found = scan_images([tmp_path / "set-{000..002}.tar"])
    assert colours(found) == list(range(12))
    assert found.records[5].name == "set-001.tar/./000005.png"
    assert found.records[5].path.name == "000005.png" and exists(found.records[5].path)
    assert content(found.records[5].path) == picture(5)
    again = scan_images([tmp_path / "set-000.tar", *find_images([tmp_path / "set-{001..002}.tar"])])
    assert again.fingerprint() == found.fingerprint()


def test_a_list_of_shards_and_folders_in_a_text_file(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", range(2))
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "x.png").write_bytes(picture(9))
    (tmp_path / "list.txt").write_text("a.tar\n\nmore\n")
    assert colours(scan_images([tmp_path / "list.txt"])) == [0, 1, 9]


def test_how_many_images_there_are_is_not_counted_again(tmp_path: Path) -> None:
    for k in range(3):
        shard(tmp_path / f"set-{k}.tar", range(4 * k, 4 * k + 4))
    found = images.Listing([tmp_path / "set-{0..2}.tar"])
    queries: list[str] = []
    found._table.set_trace_callback(queries.append)
    assert [len(found) for _ in found] == [12] * 12
    assert len([query for query in queries if query.startswith("SELECT")]) == 1, queries


@pytest.mark.parametrize("damage", ["cut", "gz", "text"])
def test_a_tar_file_that_cannot_be_read_at_random_is_refused(damage: str, tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", range(3))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:3000])
    elif damage == "gz":
        path = path.rename(tmp_path / "a.tar.gz")
        with tarfile.open(path, "w:gz"):
            pass
    else:
        path.write_text("no tar file" * 100)
    with pytest.raises(DataError, match="cannot be read as a tar file .*without compression"):
        scan_images([path])


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    shard(tmp_path / "set-0.tar", range(2))
    with pytest.raises(DataError, match=r"no such folder, image or table: .*set-1\.tar"):
        scan_images([tmp_path / "set-{0..1}.tar"])


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet"])
def test_tables_of_names_are_lists_of_images(kind: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    rows = [{"file_name": f"{k} ü.png", "other": k} for k in (3, 1, 2)]
    for row in rows:
        (tmp_path / "images" / str(row["file_name"])).write_bytes(picture(int(row["other"])))  # type: ignore[call-overload]
    path = tmp_path / f"list.{kind}"
    if kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif kind == "csv":
        path.write_text("file_name,other\n" + "".join(f"{row['file_name']},{row['other']}\n" for row in rows))
    else:
        path.write_text(json.dumps(rows) if kind == "json" else "\n".join(json.dumps(row) for row in rows))
    assert colours(scan_images([path])) == [3, 1, 2]


def test_images_inside_a_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    cells = [{"bytes": picture(k), "path": None} for k in range(5)]
    parquet.write_table(pyarrow.table({"label": list(range(5)), "image": cells}), path, row_group_size=2)
    found = scan_images([path])
    assert colours(found) == [0, 1, 2, 3, 4] and found.records[3].name == "image/3"
    assert content(path / "image" / "4") == picture(4)


@pytest.mark.parametrize("name", ["SET.TAR", "train.PARQUET"])
def test_containers_may_be_called_in_capitals(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "SET.TAR":
        shard(tmp_path / "set.tar", range(2)).rename(path)
    else:
        cells = [{"bytes": picture(k), "path": None} for k in range(2)]
        parquet.write_table(pyarrow.table({"image": cells}), path)
    assert colours(scan_images([path])) == [0, 1]


def test_a_saved_data_set_is_read_by_split_and_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features({"picture": datasets.Image(), "thumb": datasets.Image(), "n": datasets.Value("int64")})
    features["about"] = {"text": datasets.Value("string")}
    rows = {"picture": [{"bytes": picture(k), "path": None} for k in range(3)], "n": list(range(3))}
    rows |= {"thumb": rows["picture"], "about": [{"text": "a"}] * 3}
    parts = datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features=features)})
    parts.save_to_disk(tmp_path / "set")
    found = scan_images([Path(f"hf:{tmp_path / 'set'}:train:picture")])
    assert colours(found) == [0, 1, 2] and found.records[2].name == "00000002"
    assert absolute(found.records[2].path) == found.records[2].path and exists(found.records[2].path)
    with pytest.raises(DataError, match=r"2 image columns, and none was named; there are: picture; thumb"):
        scan_images([Path(f"hf:{tmp_path / 'set'}")])
    with pytest.raises(DataError, match=r"no split 'test'; there are: train"):
        scan_images([Path(f"hf:{tmp_path / 'set'}:test")])
    with pytest.raises(DataError, match=r"no image column 'photo'"):
        scan_images([Path(f"hf:{tmp_path / 'set'}:train:photo")])
    with pytest.raises(DataError, match=r"^column 'n' of data set .* holds no images; .* are: picture; thumb\. Write"):
        scan_images([Path(f"hf:{tmp_path / 'set'}:train:n")])
    with pytest.raises(DataError, match=r"00000000 \(missing\)"):
        scan_images([Path(f"hf:{tmp_path / 'set'}:train:about")])


def test_a_folder_of_a_data_set_is_read_as_the_hub_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    cells = [{"bytes": picture(k), "path": None} for k in range(3)]
    datasets.Dataset.from_dict({"image": cells}, features=datasets.Features({"image": datasets.Image()})).to_parquet(
        tmp_path / "set" / "train-00000.parquet"
    )
    assert colours(scan_images([Path(f"hf:{tmp_path / 'set'}")])) == [0, 1, 2]


def test_a_data_set_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be opened: .*ID_OR_FOLDER:SPLIT:COLUMN"):
        scan_images([Path(f"hf:{tmp_path / 'nothing'}")])


# --- the index ---


def folder_of(tmp_path: Path, count: int) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:03d}.png").write_bytes(picture(number))
    return folder


def test_an_index_has_the_same_records_in_the_same_order(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 30)
    (folder / "again.png").write_bytes(picture(4))
    plain, kept = scan_images([folder]), scan_images([folder], index=tmp_path / "index.parquet")
    assert isinstance(kept.records, Catalogue)
    assert tuple(kept.records) == plain.records == kept.records[:]
    assert [kept.records[k] for k in (-1, 7, 0)] == [plain.records[k] for k in (-1, 7, 0)]
    assert (kept.duplicates, kept.fingerprint()) == (plain.duplicates, plain.fingerprint()) == (1, plain.fingerprint())
    with pytest.raises(IndexError):
        kept.records[30]


def test_an_index_is_used_again_and_only_changed_files_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, index, decoded = folder_of(tmp_path, 20), tmp_path / "index.parquet", []
    decode = images._decode
    monkeypatch.setattr(images, "_decode", lambda content, suffix: decoded.append(content) or decode(content, suffix))
    first = scan_images([folder], index=index)
    assert len(decoded) == 20
    assert tuple(scan_images([folder], index=index).records) == tuple(first.records)
    assert len(decoded) == 20
    (folder / "003.png").write_bytes(picture(300))
    (folder / "new.png").write_bytes(picture(301))
    (folder / "004.png").unlink()
    again = scan_images([folder], index=index)
    assert len(decoded) == 22 and len(again) == 20
    assert tuple(again.records) == scan_images([folder]).records


def test_a_file_of_equal_size_that_changed_is_read_again(tmp_path: Path) -> None:
    folder, index = folder_of(tmp_path, 2), tmp_path / "index.parquet"
    before = scan_images([folder], index=index).records[0]
    size = (folder / "000.png").stat().st_size
    (folder / "000.png").write_bytes(picture(77))
    assert (folder / "000.png").stat().st_size == size
    assert scan_images([folder], index=index).records[0].sha256 != before.sha256


def test_what_an_interrupted_indexing_has_done_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, index = folder_of(tmp_path, 12), tmp_path / "index.parquet"
    monkeypatch.setattr("evoprompt.catalogue.GROUP", 4)

    def stop(done: int, total: int) -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan_images([folder], index=index, progress=stop)
    assert not index.exists() and len(Catalogue(unfinished(index))) == 8
    known = Known(index)
    record = known("000.png", folder / "000.png", "", stamp(folder / "000.png"))
    assert record is not None and record.width == 8


def test_several_commands_may_index_the_same_images_at_once(tmp_path: Path) -> None:
    index = tmp_path / "index.parquet"

    def meanwhile(count: int) -> Iterator[ImageRecord]:
        for record in records(count):
            write_catalogue(index, records(1))
            yield record

    write_catalogue(index, meanwhile(3))
    assert len(Catalogue(index)) == 3 and [file.name for file in tmp_path.iterdir()] == ["index.parquet"]


def records(count: int) -> Iterator[ImageRecord]:
    for k in range(count):
        yield ImageRecord(path=Path(f"/photos/{k:07d}.jpg"), name=f"{k:07d}.jpg", sha256=f"{k:064x}", width=9, height=9)


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """List, check against the index, deduplicate, write the index, ask at random; the files are not there."""
    monkeypatch.setattr("evoprompt.containers.stamp", lambda path: "1")
    monkeypatch.setattr("evoprompt.catalogue.GROUP", 128)

    def peak(count: int) -> int:
        index = tmp_path / f"{count}.parquet"
        write_catalogue(index, records(count), {"stamp": ("1" for _ in range(count))})
        monkeypatch.setattr(images, "_entries", lambda source: ((r.name, r.path, "") for r in records(count)))
        gc.collect()
        tracemalloc.start()
        found = scan_images([tmp_path], index=index)
        assert len(found) == count and found.records[count // 2].sha256 == f"{count // 2:064x}"
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(100)  # what is imported and cached on first use
    small, large = peak(1_000), peak(7_000)
    # A record in memory takes some 500 bytes; here one byte an image is kept, and what Parquet says of its groups.
    assert (large - small) / 6_000 < 50, (small, large)


def test_only_a_window_of_files_is_read_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, ahead = folder_of(tmp_path, 40), []
    monkeypatch.setattr(images, "_WINDOW", 8)
    check, started = images._check, []
    monkeypatch.setattr(images, "_check", lambda entry: started.append(entry) or check(entry))
    scan_images([folder], progress=lambda done, total: ahead.append(len(started) - done))
    assert max(ahead) <= 8


def test_the_index_lies_in_the_cache_and_is_another_one_for_other_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOPROMPT_CACHE", str(tmp_path / "cache"))
    one, two = index_file([tmp_path / "a"]), index_file([tmp_path / "b"])
    assert one is not None and one.parent == tmp_path / "cache" and one != two
    monkeypatch.chdir(tmp_path)
    assert index_file([Path("a")]) == one
    (tmp_path / "file").touch()
    monkeypatch.setenv("EVOPROMPT_CACHE", str(tmp_path / "file"))
    assert index_file([tmp_path / "a"]) is None


@pytest.mark.skipif(os.name == "nt", reason="names are always Unicode there")
def test_a_name_that_is_no_text_is_reported(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 1)
    (Path(os.fsdecode(os.fsencode(folder) + b"/bad\xff.png"))).write_bytes(picture(5))
    found = scan_images([folder], skip_unreadable=True, index=tmp_path / "index.parquet")
    assert len(found) == 1 and found.skipped[0][1] == "its name is not UTF-8"
