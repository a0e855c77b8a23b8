"""A study's sets: scores of a proxy belong to one image each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evoprompt.errors import DataError
from evoprompt.study_sets import StudySet, read_proxy

NAMES = ("a/1.png", "b/1.png", "b/2.png")
DATA = StudySet(name="x", names=NAMES, paths=tuple(map(Path, NAMES)), sha256=NAMES, mos=np.arange(3.0))


def test_a_proxy_is_read_by_name_and_by_file_names_that_are_unique(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("image,score\nelsewhere/2.png,3\nb/1.png,2\na/1.png,1\n")
    assert read_proxy(tmp_path / "p.csv", DATA).tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1.png,3.5\nb/2.png,1\n", "file names that several images share: a/1.png; b/1.png"),
        ("a/1.png,3\na/1.png,4\nb/1.png,1\nb/2.png,1\n", "several rows of 1 image: a/1.png. Keep one each"),
        (
            "a/1.png,3\nb/1.png,bad\n",
            r"no usable score for 2 of the 3 images of x: b/1.png \('bad'\); b/2.png",
        ),
    ],
)
def test_a_proxy_that_leaves_doubt_is_refused(tmp_path: Path, rows: str, message: str) -> None:
    (tmp_path / "p.csv").write_text(f"image,score\n{rows}")
    with pytest.raises(DataError, match=message):
        read_proxy(tmp_path / "p.csv", DATA)
