"""The run directory: everything about a run, on disk, published whole or not at all."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evoprompt.errors import StartError

SCHEMA = 1
# Stages of a round. A draw is named by (seed, round, stage, index): no generator state is saved, so none can be lost.
SPLIT, LADDER, PAIRS, VOTES, TRAIN, CONTROL, MOS = range(7)
_ROUND = "{:03d}"


def stream(*coordinates: int) -> np.random.Generator:
    """The random stream at these coordinates; the same numbers on every machine and in every order of asking."""
    return np.random.default_rng(np.random.SeedSequence([int(c) for c in coordinates]))


def write_json(path: Path, body: Any) -> None:
    """Write JSON so that the file is either the old one or the new one, never half of it."""
    write_text(path, as_json(body, indent=2) + "\n")


def as_json(body: Any, indent: int | None = None) -> str:
    """JSON as its standard has it: a number that is not finite is null, for NaN and Infinity few programs can read."""
    return json.dumps(_finite(body), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def write_text(path: Path, text: str) -> None:
    """Write text so that the file is either the old one or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


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
            StartError: when the folder is in use.
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
            StartError: when there is none, its schema is newer, or another process holds it.
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
        # What a kill leaves undone from here on is done by settle when the run is resumed.
        append_lines(self.path / "metrics.jsonl", _metric_lines(self.round_path(number), record))
        if record["accepted"]:
            self._settle_prompt(number)
            self.save(accepted_round=number)

    def settle(self) -> None:
        """Bring what is derived from the rounds (run.json, prompt/, metrics.jsonl) in line with all of them."""
        if not self.writes:
            return
        rounds = self.rounds()
        accepted = max((r["round"] for r in rounds if r["accepted"]), default=0)
        self._settle_prompt(accepted)
        lines = [line for record in rounds for line in _metric_lines(self.round_path(record["round"]), record)]
        write_lines(self.path / "metrics.jsonl", lines)
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
                _give_way(lock)


def _give_way(lock: Path) -> None:
    """Remove a lock left over from a kill; stop at one that may be held.

    Raises:
        StartError: when its process lives, is on another machine, or is not known.
    """
    try:
        text = lock.read_text(encoding="utf-8")
        held = json.loads(text)
        pid, host, since = int(held["pid"]), str(held["host"]), str(held["since"])
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError) as error:
        # Also while another process is just writing it.
        raise StartError(
            f"{lock} does not say which process holds {lock.parent}. Remove it if no process writes there."
        ) from error
    # Locks of dead processes on this machine are left over from a kill; of other machines we cannot know.
    if host != socket.gethostname() or _alive(pid):
        raise StartError(
            f"{lock.parent} is in use by process {pid} on host {host} since {since}. "
            f"Wait for it, or remove {lock} if that process is gone."
        )
    aside = lock.with_name(f".lock.{os.getpid()}")
    try:
        os.replace(lock, aside)
    except FileNotFoundError:
        return
    if aside.read_text(encoding="utf-8") == text:
        aside.unlink()
    else:
        os.replace(aside, lock)  # another process was faster, and this lock is its own


def check_new(path: Path) -> None:
    """Check that a run can be made at this path: it does not exist, or is an empty folder, and can be written to.

    Raises:
        StartError: with what is there.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        check_place(path)
        return
    if (path / "run.json").is_file():
        raise StartError(
            f"{path} already holds a run. Continue it with 'evoprompt resume {path}', or choose a new --out."
        )
    raise StartError(f"{path} is not an empty folder. Choose a new one with --out.")


def check_place(folder: Path) -> None:
    """Check that files can be written in a folder, or in what is there of its parents.

    Raises:
        StartError: with the reason.
    """
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise StartError(
            f"nothing can be written in {folder} ({there}: {error.strerror}). Choose another place with --out."
        ) from error


def read_record(path: Path) -> dict[str, Any]:
    """The content of ``run.json``.

    Raises:
        StartError: when the folder is not a run, is damaged or was written by a newer version.
    """
    if not (path / "run.json").is_file():
        raise StartError(
            f"{path} is not a run: it has no run.json. Give the folder that was --out of 'evoprompt evolve'."
        )
    record = _read_record(path / "run.json", ("schema", "version"))
    if record["schema"] > SCHEMA:
        raise StartError(
            f"{path} was written by a newer evoprompt ({record['version']}). Install that version or a later one."
        )
    return record


def read_rounds(path: Path) -> list[dict[str, Any]]:
    """The records of the published rounds of a run, in order; a metric that is not defined is NaN.

    Raises:
        StartError: naming a record that is damaged.
    """
    found = [p for p in (path / "rounds").iterdir() if p.name.isdigit()] if (path / "rounds").is_dir() else []
    records = [
        _read_record(p / "round.json", ("round", "accepted", "metrics"))
        for p in sorted(found, key=lambda p: int(p.name))
    ]
    for record in records:
        record["metrics"] = {key: math.nan if value is None else value for key, value in record["metrics"].items()}
    return records


def _read_record(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """A JSON object that has these keys."""
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for key in keys:
            record[key]
    except (ValueError, KeyError, TypeError) as error:
        raise StartError(f"{path} is damaged ({error}). Put back a copy of it, or start a new run.") from error
    return record


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append JSON lines and force them to disk."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(as_json(row) + "\n" for row in rows)
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
    write_text(path, "".join(as_json(row) + "\n" for row in rows))


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
