"""What people see while a command works."""

from __future__ import annotations

import pytest

from evoprompt import tracking


@pytest.mark.parametrize(
    ("seconds", "line"),
    [
        (6.0, "images  200000/200000  33,333/s  0 s left"),
        (80_000.0, "images  200000/200000  2.5/s  0 s left"),
    ],
)
def test_rates_are_written_out(
    seconds: float, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 0.0, seconds])
    monkeypatch.setattr(tracking.time, "monotonic", lambda: next(clock))
    with tracking.Console().progress("images", 200_000) as advance:
        advance(200_000)
    assert capsys.readouterr().err == line + "\n"
