"""scripts/start.sh, the first command: begins what is not there and continues what is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

START = Path(__file__).parents[2] / "scripts" / "start.sh"


def script(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/usr/bin/env bash", *lines, ""]))
    path.chmod(0o755)


def test_a_run_that_is_there_is_continued(tmp_path: Path) -> None:
    shutil.copy(START, tmp_path)
    script(tmp_path / "scripts" / "setup.sh")
    shutil.move(tmp_path / "start.sh", tmp_path / "scripts" / "start.sh")
    script(tmp_path / ".venv" / "bin" / "evoprompt", 'echo "$@"')

    def asked() -> list[str]:
        return subprocess.check_output([tmp_path / "scripts" / "start.sh", "r"], text=True).splitlines()

    new = "evolve --unlabeled examples --recipe nano --device cpu --out"
    assert asked() == [f"{new} r", f"{new} r-control --control random-labels"]
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "run.json").touch()
    assert asked() == ["resume r", f"{new} r-control --control random-labels"]
    (tmp_path / "r-control").mkdir()
    (tmp_path / "r-control" / "run.json").touch()
    assert asked() == ["resume r", "resume r-control"]
