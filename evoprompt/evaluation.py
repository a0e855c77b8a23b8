"""Agreement of scores with human scores: correlations with intervals, the bare judge always beside."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from evoprompt.errors import DataError
from evoprompt.images import fit_image, read_image
from evoprompt.judge import Judge
from evoprompt.labels import Labels
from evoprompt.prompts import PixelPrompt
from evoprompt.runs import write_json, write_text
from evoprompt.scoring import score_views
from evoprompt.stats import Interval, Statistic, bootstrap, krcc, paired_difference, plcc, srcc
from evoprompt.tracking import Update

STATISTICS: Mapping[str, Statistic] = {"srcc": srcc, "plcc": plcc, "krcc": krcc}


@dataclass(frozen=True)
class Evaluation:
    """How one set of scores agrees with human scores.

    ``gain`` is the paired difference in SRCC to the bare judge with its interval and two-sided p, None for the bare
    judge itself.
    """

    name: str
    n: int
    srcc: Interval
    plcc: Interval
    krcc: Interval
    gain: Interval | None = None
    p_value: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The evaluation as a JSON object."""
        body: dict[str, Any] = {"name": self.name, "n": self.n}
        for key in ("srcc", "plcc", "krcc", "gain"):
            interval = getattr(self, key)
            if interval is not None:
                body[key] = interval._asdict()
        return body if self.p_value is None else {**body, "p_value": self.p_value}


def score_labels(
    judge: Judge, prompts: Sequence[PixelPrompt | None], labels: Labels, batch_size: int, advance: Update
) -> list[np.ndarray]:
    """Scores of all labelled images under each prompt; every image is read once.

    Returns:
        One (N,) float64 array a prompt.
    """
    columns: list[list[float]] = [[] for _ in prompts]
    for start in range(0, len(labels.paths), batch_size):
        paths = labels.paths[start : start + batch_size]
        fitted = [fit_image(read_image(p), judge.family.fit, judge.image_size, judge.family.views) for p in paths]
        views = np.stack(fitted)
        for column, prompt in zip(columns, prompts, strict=True):
            judge.attach(prompt)
            column += score_views(judge, views)[0].tolist()
        advance(len(paths))
    return [np.array(column) for column in columns]


def evaluate(
    scores: Mapping[str, np.ndarray], mos: np.ndarray, *, bare: str = "none", n_boot: int = 2000, seed: int = 0
) -> list[Evaluation]:
    """Evaluate columns of scores against human scores.

    Args:
        scores: (N,) scores by name; the bare judge's under ``bare`` when it is among them.
        mos: (N,) human scores, higher is better, any scale.
        bare: which column the others are compared with.
        n_boot: bootstrap resamples of the images.
        seed: of the bootstrap.

    Returns:
        One evaluation a column, in order.

    Raises:
        DataError: with fewer than 5 images.
    """
    if len(mos) < 5:
        raise DataError(f"{len(mos)} labelled images are too few for a correlation; give at least 5.")
    rows = []
    for name, column in scores.items():
        numbers = {key: bootstrap(f, column, mos, n_boot=n_boot, seed=seed) for key, f in STATISTICS.items()}
        row = Evaluation(name, len(mos), numbers["srcc"], numbers["plcc"], numbers["krcc"])
        if name != bare and bare in scores:
            gain = paired_difference(srcc, column, scores[bare], mos, n_boot=n_boot, seed=seed)
            row = replace(row, gain=gain.interval, p_value=gain.p_value)
        rows.append(row)
    return rows


def measure_on(judge: Judge, labels: Labels, batch_size: int) -> Callable[[PixelPrompt, Path], dict[str, float]]:
    """All that evolution may know of labels: a function from a prompt to numbers, which also writes ``eval.json``."""

    def measure(prompt: PixelPrompt, folder: Path) -> dict[str, float]:
        scores = score_labels(judge, [prompt], labels, batch_size, lambda n=1, **_: None)[0]
        row = evaluate({"prompt": scores}, labels.mos)[0]
        write_json(folder / "eval.json", {"labels": str(labels.path), **row.to_dict()})
        return {name: getattr(row, name).value for name in STATISTICS}

    return measure


def write_evaluation(
    folder: Path, body: Mapping[str, Any], rows: Sequence[Evaluation], labels: Labels, columns: Mapping[str, np.ndarray]
) -> None:
    """Write ``evaluation.json``, ``table.md`` and the scores of every image, ``scores.csv``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "evaluation.json", body)
    write_text(folder / "table.md", table(rows) + "\n")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "mos", *columns])
    writer.writerows(zip(labels.names, labels.mos, *columns.values(), strict=True))
    write_text(folder / "scores.csv", text.getvalue())


def table(rows: Sequence[Evaluation]) -> str:
    """Evaluations as a Markdown table with 95 % intervals."""
    lines = [
        "| prompt | n | SRCC [95 %] | PLCC [95 %] | KRCC [95 %] | SRCC gain [95 %] | p |",
        "|---|--:|---|---|---|---|--:|",
    ]
    for row in rows:
        gain = "" if row.gain is None else _interval(row.gain, "+")
        p = "" if row.p_value is None else f"{row.p_value:.3f}"
        numbers = " | ".join(_interval(x) for x in (row.srcc, row.plcc, row.krcc))
        lines.append(f"| {row.name} | {row.n} | {numbers} | {gain} | {p} |")
    return "\n".join(lines)


def _interval(x: Interval, sign: str = "") -> str:
    return f"{x.value:{sign}.3f} [{x.low:{sign}.3f}, {x.high:{sign}.3f}]"
