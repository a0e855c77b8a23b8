"""A run whose images are never files of their own: they stay in a tar file, through training, resume and report."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from conftest import ScriptedJudge
from pyarrow import parquet

from evoprompt.catalogue import Catalogue
from evoprompt.config import Recipe
from evoprompt.errors import RunError
from evoprompt.images import scan_images
from evoprompt.lifecycle import evolve, resume
from evoprompt.pictures import own_image


def test_images_in_a_tar_file_are_evolved_on_resumed_and_shown(toy_folder: Path, quick: Recipe, tmp_path: Path) -> None:
    shard = tmp_path / "toys.tar"
    with tarfile.open(shard, "w") as archive:
        for file in sorted(toy_folder.iterdir()):
            archive.add(file, arcname=file.name)
    images = scan_images([shard], index=tmp_path / "index.parquet")
    assert isinstance(images.records, Catalogue)
    assert images.fingerprint() == scan_images([toy_folder]).fingerprint()
    run = evolve(quick, images, tmp_path / "run", ScriptedJudge())
    rows = parquet.read_table(run / "images.parquet").to_pylist()
    assert len(rows) == 60 and {row["role"] for row in rows} == {"train", "heldout"}
    assert own_image(rows[3]).size == (48, 48)
    assert resume(run, lambda recipe: ScriptedJudge(), rounds=quick.rounds) == run
    shard.write_bytes(shard.read_bytes()[:-40_000] + bytes(40_000))
    with pytest.raises(RunError, match="images of this run are not as they were: .*toys.tar.* .changed."):
        resume(run, lambda recipe: ScriptedJudge(), rounds=quick.rounds + 1)
