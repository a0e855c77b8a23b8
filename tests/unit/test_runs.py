"""The run directory: created whole, locked, published by one rename, derived files follow."""

from __future__ import annotations

import json
import math
import os
import socket
from pathlib import Path

import numpy as np
import pytest

from evoprompt import runs
from evoprompt.errors import RunError, StartError
from evoprompt.runs import (
    Run,
    append_lines,
    check_new,
    read_lines,
    read_record,
    read_rounds,
    stream,
    write_json,
    write_lines,
)

RECORD = {"version": "0.1.0"}


def _publish(run: Run, number: int, accepted: bool) -> None:
    folder = run.begin(number)
    (folder / "prompt").mkdir()
    (folder / "prompt" / "config.json").write_text(f'{{"round": {number}}}')
    run.publish(number, {"round": number, "accepted": accepted, "finished": "now", "metrics": {"x": float(number)}})


def test_streams_depend_on_their_coordinates_only() -> None:
    assert np.array_equal(stream(1, 2, 3).random(4), stream(1, 2, 3).random(4))
    assert not np.array_equal(stream(1, 2, 3).random(4), stream(1, 3, 2).random(4))


def test_a_used_folder_is_refused(tmp_path: Path) -> None:
    Run.create(tmp_path / "run", RECORD, "rounds: 1\n").close()
    with pytest.raises(RunError, match="already holds a run. Continue it with 'evoprompt resume"):
        Run.create(tmp_path / "run", RECORD, "rounds: 1\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep me")
    with pytest.raises(RunError, match="not an empty folder"):
        Run.create(tmp_path / "mine", RECORD, "rounds: 1\n")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "keep me"


def test_the_prompt_is_that_of_the_last_accepted_round(tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", RECORD, "rounds: 1\n") as run:
        for number, accepted in enumerate([True, True, False]):
            _publish(run, number, accepted)
    assert json.loads((tmp_path / "run/prompt/config.json").read_text()) == {"round": 1}
    assert read_record(tmp_path / "run")["accepted_round"] == 1
    assert [line["round"] for line in read_lines(tmp_path / "run/metrics.jsonl")] == [0, 1, 2]


def test_rounds_are_in_the_order_of_their_numbers_and_not_read_again_for_every_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    plain = runs.read_rounds
    monkeypatch.setattr(runs, "read_rounds", lambda path: read.append(path) or plain(path))
    numbers = [2, 998, 999, 1000, 1001]
    with Run.create(tmp_path / "run", RECORD, "rounds: 1\n") as run:
        for number in numbers:
            _publish(run, number, accepted=number < 1001)
        assert not read
        assert [record["round"] for record in run.rounds()] == numbers
        lines = (tmp_path / "run/metrics.jsonl").read_bytes()
        run.settle()
        assert (tmp_path / "run/metrics.jsonl").read_bytes() == lines
    assert read_record(tmp_path / "run")["accepted_round"] == 1000
    assert json.loads((tmp_path / "run/prompt/config.json").read_text()) == {"round": 1000}


def test_a_kill_between_rename_and_the_derived_files_is_mended(tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", RECORD, "rounds: 1\n") as run:
        _publish(run, 0, True)
        folder = run.begin(1)
        (folder / "prompt").mkdir()
        (folder / "prompt" / "config.json").write_text('{"round": 1}')
        write_json(folder / "round.json", {"round": 1, "accepted": True, "finished": "now", "metrics": {}})
        os.replace(folder, run.round_path(1))
    with Run.open(tmp_path / "run") as run:
        run.settle()
    assert read_record(tmp_path / "run")["accepted_round"] == 1
    assert json.loads((tmp_path / "run/prompt/config.json").read_text()) == {"round": 1}


def test_a_lock_of_a_living_process_holds_and_of_a_dead_one_does_not(tmp_path: Path) -> None:
    Run.create(tmp_path / "run", RECORD, "rounds: 1\n").close()
    lock = tmp_path / "run" / ".lock"
    lock.write_text(json.dumps({"pid": os.getppid(), "host": socket.gethostname(), "since": "10:42"}))
    with pytest.raises(RunError, match=f"in use by process {os.getppid()} on host .* since 10:42"):
        Run.open(tmp_path / "run")
    lock.write_text(json.dumps({"pid": 2**22 + 1, "host": socket.gethostname(), "since": "10:42"}))
    Run.open(tmp_path / "run").close()
    assert not lock.exists()
    lock.write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": "10:42"}))
    with pytest.raises(RunError, match="on host elsewhere"):
        Run.open(tmp_path / "run")


@pytest.mark.parametrize("text", ["", '{"pid": 12', "[]"])
def test_a_lock_that_names_no_process_may_be_held_and_is_not_removed(tmp_path: Path, text: str) -> None:
    Run.create(tmp_path / "run", RECORD, "rounds: 1\n").close()
    (tmp_path / "run" / ".lock").write_text(text)
    with pytest.raises(StartError, match=r"\.lock does not say which process holds .*run. Remove it if no process"):
        Run.open(tmp_path / "run")
    assert (tmp_path / "run" / ".lock").read_text() == text


def test_of_two_processes_that_find_a_dead_lock_one_takes_it_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Run.create(tmp_path / "run", RECORD, "rounds: 1\n").close()
    lock = tmp_path / "run" / ".lock"
    lock.write_text(json.dumps({"pid": 2**22 + 1, "host": socket.gethostname(), "since": "10:42"}))
    other = json.dumps({"pid": os.getppid(), "host": socket.gethostname(), "since": "10:43"})

    def faster(pid: int) -> bool:
        monkeypatch.undo()
        lock.write_text(other)  # the other process has looked, too, and is through
        return False

    monkeypatch.setattr(runs, "_alive", faster)
    with pytest.raises(StartError, match="since 10:43"):
        Run.open(tmp_path / "run")
    assert lock.read_text() == other


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_damaged_record_is_named_in_one_sentence(tmp_path: Path, text: str) -> None:
    with Run.create(tmp_path / "run", RECORD, "rounds: 1\n") as run:
        _publish(run, 0, True)
    (tmp_path / "run/rounds/000/round.json").write_text(text)
    with pytest.raises(StartError, match=r"round\.json is damaged"):
        read_rounds(tmp_path / "run")
    (tmp_path / "run/run.json").write_text(text)
    with pytest.raises(StartError, match=r"run\.json is damaged"):
        read_record(tmp_path / "run")


def test_what_is_not_finite_is_null_on_disk_and_nan_in_a_record(tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", RECORD, "rounds: 1\n") as run:
        folder = run.begin(0)
        write_lines(folder / "steps.jsonl", [{"train/grad_norm": math.inf}])
        metrics = {"x": math.nan, "y": -math.inf, "z": 0.5}
        run.publish(0, {"round": 0, "accepted": False, "finished": "now", "metrics": metrics})
        run.settle()
    for file in ("rounds/000/round.json", "rounds/000/steps.jsonl", "metrics.jsonl"):
        text = (tmp_path / "run" / file).read_text()
        assert "null" in text and "NaN" not in text and "Infinity" not in text
    found = read_rounds(tmp_path / "run")[0]["metrics"]
    assert math.isnan(found["x"]) and math.isnan(found["y"]) and found["z"] == 0.5


def test_a_place_where_nothing_can_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "run", Path("/proc/evoprompt/run")):
        with pytest.raises(StartError, match="nothing can be written in"):
            check_new(place)


def test_a_torn_last_line_is_not_read(tmp_path: Path) -> None:
    append_lines(tmp_path / "x.jsonl", [{"a": 1}, {"a": 2}])
    with (tmp_path / "x.jsonl").open("a") as file:
        file.write('{"a": 3')
    assert read_lines(tmp_path / "x.jsonl") == [{"a": 1}, {"a": 2}]
    assert read_lines(tmp_path / "absent.jsonl") == []


def test_folders_that_are_no_runs_or_newer_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run: it has no run.json"):
        read_record(tmp_path)
    write_json(tmp_path / "run.json", {"schema": 99, "version": "9.0"})
    with pytest.raises(RunError, match=r"newer evoprompt \(9.0\)"):
        read_record(tmp_path)
