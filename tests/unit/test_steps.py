"""What all ways of training share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import trainer_utils

import evoprompt.steps  # noqa: F401 - it quiets transformers


@pytest.fixture
def said() -> Iterator[list[str]]:
    texts: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            texts.append(record.getMessage())

    handler = Kept()
    trainer_utils.logger.addHandler(handler)
    yield texts
    trainer_utils.logger.removeHandler(handler)


def test_checkpoints_of_one_second_are_no_fault_of_the_file_system(said: list[str], tmp_path: Path) -> None:
    paths = [tmp_path / f"checkpoint-{step}" for step in (9, 10)]
    for path in paths:
        path.mkdir()
    trainer_utils.logger.warning_once.cache_clear()
    assert trainer_utils.sort_checkpoints(str(tmp_path), use_mtime=True) == list(map(str, paths))
    trainer_utils.logger.warning("something else")
    assert said == ["something else"]
