"""The run directory: everything about a run, on disk, published whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from evoprompt.errors import RunError

SCHEMA = 1
# Stages of a round. A draw is named by (seed, round, stage, index): no generator state is saved, so none can be lost.
SPLIT, LADDER, PAIRS, VOTES, TRAIN, CONTROL, MOS = range(7)
_ROUND = "{:03d}"


def stream(*coordinates: int) -> np.random.Generator:
    """The random stream at these coordinates; the same numbers on every machine and in every order of asking."""
    return np.random.default_rng(np.random.SeedSequence([int(c) for c in coordinates]))


def write_json(path: Path, body: Any) -> None:
    """Write JSON so that the file is either the old one or the new one, never half of it."""
    write_text(path, json.dumps(body, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text so that the file is either the old one or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def open_folder(out: Path) -> None:
    """Make a folder for results, before anything is worked out that could then not be written.

    Raises:
        RunError: when it cannot be made or written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=out).close()
    except OSError as error:
        raise RunError(f"results cannot go into {out} ({error.strerror}). Name another folder with -o.") from error


class Run:
    """A run directory that this process may write to.

    Use ``Run.create`` or ``Run.open``; both take the lock, ``close`` gives it back. Of several processes of a job one
    does so; the others have a Run that does not write, of which ``save``, ``begin``, ``publish`` and ``settle`` leave
    the disk alone.
    """

    def __init__(self, path: Path, record: dict[str, Any], writes: bool = True) -> None:
        self.path = path
        self.record = record
        self.writes = writes

    @classmethod
    def create(cls, path: Path, record: Mapping[str, Any], recipe: str) -> Run:
        """Make a new run directory.

        Args:
            path: must not exist, or be an empty folder.
            record: identity and provenance, the content of ``run.json``.
            recipe: the resolved recipe as YAML.

        Raises:
            RunError: when the folder is in use.
        """
        check_new(path)
        path.mkdir(parents=True, exist_ok=True)
        run = cls(path, {"schema": SCHEMA, "status": "running", "accepted_round": 0, **record})
        run._lock()
        (path / "rounds").mkdir()
        write_text(path / "recipe.yaml", recipe)
        run.save()
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """Take an existing run directory to continue it.

        Raises:
            RunError: when there is none, its schema is newer, or another process holds it.
        """
        run = cls(path, read_record(path))
        run._lock()
        for left in path.glob("**/.*.tmp"):
            if left.is_file():
                left.unlink()
        return run

    def save(self, **changes: Any) -> None:
        """Update ``run.json``."""
        self.record.update(changes)
        if self.writes:
            write_json(self.path / "run.json", self.record)

    def close(self) -> None:
        """Give the lock back."""
        if self.writes:
            (self.path / ".lock").unlink(missing_ok=True)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def rounds(self) -> list[dict[str, Any]]:
        """The records of the published rounds, in order."""
        return read_rounds(self.path)

    def round_path(self, number: int) -> Path:
        """Folder of a published round."""
        return self.path / "rounds" / _ROUND.format(number)

    def begin(self, number: int) -> Path:
        """Folder of the round in progress; what an interrupted process left there is still in it."""
        path = self.path / "rounds" / f".{_ROUND.format(number)}.tmp"
        if self.writes:
            path.mkdir(exist_ok=True)
        return path

    def publish(self, number: int, record: Mapping[str, Any]) -> None:
        """Finish a round: write its record, drop its step checkpoints, and make it visible by one rename."""
        if not self.writes:
            return
        folder = self.begin(number)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        write_json(folder / "round.json", record)
        os.replace(folder, self.round_path(number))
        self.settle()

    def settle(self) -> None:
        """Bring what is derived from the rounds (run.json, prompt/, metrics.jsonl) in line with them."""
        if not self.writes:
            return
        rounds = self.rounds()
        accepted = max((r["round"] for r in rounds if r["accepted"]), default=0)
        self._settle_prompt(accepted)
        lines = [
            json.dumps(line) for record in rounds for line in _metric_lines(self.round_path(record["round"]), record)
        ]
        write_text(self.path / "metrics.jsonl", "".join(f"{line}\n" for line in lines))
        self.save(accepted_round=accepted)

    def _settle_prompt(self, accepted: int) -> None:
        source, target = self.round_path(accepted) / "prompt", self.path / "prompt"
        if not source.is_dir():
            return
        fresh = self.path / ".prompt.new"
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(source, fresh)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(fresh, target)

    def _lock(self) -> None:
        lock = self.path / ".lock"
        mine = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%H:%M")}
        while True:
            try:
                with lock.open("x", encoding="utf-8") as file:
                    file.write(json.dumps(mine))
                return
            except FileExistsError:
                held = json.loads(lock.read_text(encoding="utf-8") or "{}")
                # Locks of dead processes on this machine are left over from a kill; of other machines we cannot know.
                if held and (held["host"] != mine["host"] or _alive(int(held["pid"]))):
                    raise RunError(
                        f"{self.path} is in use by process {held['pid']} on host {held['host']} since {held['since']}. "
                        f"Wait for it, or remove {lock} if that process is gone."
                    ) from None
                lock.unlink(missing_ok=True)


def check_new(path: Path) -> None:
    """Check that a run can be made at this path: it does not exist, or is an empty folder.

    Raises:
        RunError: with what is there.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if (path / "run.json").is_file():
        raise RunError(
            f"{path} already holds a run. Continue it with 'evoprompt resume {path}', or choose a new --out."
        )
    raise RunError(f"{path} is not an empty folder. Choose a new one with --out.")


def read_record(path: Path) -> dict[str, Any]:
    """The content of ``run.json``.

    Raises:
        RunError: when the folder is not a run or was written by a newer version.
    """
    if not (path / "run.json").is_file():
        raise RunError(
            f"{path} is not a run: it has no run.json. Give the folder that was --out of 'evoprompt evolve'."
        )
    record: dict[str, Any] = json.loads((path / "run.json").read_text(encoding="utf-8"))
    if record["schema"] > SCHEMA:
        raise RunError(
            f"{path} was written by a newer evoprompt ({record['version']}). Install that version or a later one."
        )
    return record


def read_rounds(path: Path) -> list[dict[str, Any]]:
    """The records of the published rounds of a run, in order."""
    found = sorted(p for p in (path / "rounds").glob("[0-9][0-9][0-9]*") if p.is_dir())
    return [json.loads((p / "round.json").read_text(encoding="utf-8")) for p in found]


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append JSON lines and force them to disk."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Complete JSON lines of a file; a last line torn by a kill is left out. A missing file has none."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write JSON lines in place of a file."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _metric_lines(folder: Path, record: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    for step in read_lines(folder / "steps.jsonl"):
        yield {"round": record["round"], **step}
    yield {"round": record["round"], "time": record["finished"], "accepted": record["accepted"], **record["metrics"]}


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
