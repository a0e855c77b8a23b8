"""The README says what is there: its tree is the disk's, its commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from evoprompt.cli import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line for kind, body in BLOCKS if kind == "bash" for line in body.splitlines() if line.strip()]


def test_the_tree_is_that_of_the_disk_and_names_every_module() -> None:
    tree = next(body for kind, body in BLOCKS if not kind and "evolution.py" in body)
    names = [line.split()[0] for line in tree.splitlines()]
    top = [name for name, line in zip(names, tree.splitlines(), strict=True) if not line.startswith(" ")]
    inner = [name for name, line in zip(names, tree.splitlines(), strict=True) if line.startswith(" ")]
    assert [name for name in top if not (ROOT / name).is_dir()] == []
    assert [name for name in inner if not (ROOT / "evoprompt" / name).exists()] == []
    modules = {path.name for path in (ROOT / "evoprompt").glob("*.py")} - {"__init__.py", "__main__.py"}
    assert modules == {name for name in inner if name.endswith(".py")}


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_exists_with_its_options(line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "evoprompt":
        command = main.commands[words[1]]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known
    else:
        assert (ROOT / words[0]).is_file() and (ROOT / words[0]).stat().st_mode & 0o100
