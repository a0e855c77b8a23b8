"""Agreement of scores with human scores: correlations with intervals, the bare judge always beside. No model is needed.

Letters in shapes: N images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evoprompt.dependent import Test, steiger, williams
from evoprompt.distributions import level_distances, normal_distances
from evoprompt.errors import DataError
from evoprompt.labels import Labels
from evoprompt.logistic import logistic4, logistic5, plcc4, plcc5, rmse4
from evoprompt.runs import write_json
from evoprompt.score_files import NEGATED, Column, Target
from evoprompt.soft_labels import soft_labels
from evoprompt.stats import (
    LEAST,
    Difference,
    Interval,
    Reading,
    Statistic,
    bootstrap,
    bootstrap_mean,
    krcc,
    missing,
    pairs_above,
    plcc,
    read,
    srcc,
    undefined,
)

if TYPE_CHECKING:
    from evoprompt.judge import Judge
    from evoprompt.prompts import PixelPrompt

STATISTICS: Mapping[str, Statistic] = {"srcc": srcc, "plcc": plcc, "krcc": krcc}
MAPPED: Mapping[str, Statistic] = {"plcc_logistic4": plcc4, "plcc_logistic5": plcc5, "rmse_logistic4": rmse4}
COMPARED = (*STATISTICS, "plcc_logistic4")


@dataclass(frozen=True)
class Evaluation:
    """How one set of scores agrees with human scores.

    Attributes:
        name: Of the scores.
        n: Number of images.
        srcc: Spearman's rank correlation.
        plcc: Pearson's correlation of the scores as they are.
        krcc: Kendall's tau-b.
        gain: Difference in SRCC to the bare judge on the same images; None for the bare judge itself.
        p_value: Two-sided bootstrap p of that difference.
        more: Other numbers by name: PLCC after the 4- and the 5-parameter logistic, RMSE after the former, accuracy on
            pairs whose MOS lie apart, distances to the raters' level distribution.
        differences: Differences to the bare judge in all correlations.
        tests: Williams' t and Steiger's z of these differences, for SRCC and PLCC.
        kind: What the scores come from, one of ``score_files.KINDS``.
        method: What the scores are one seed of.
        seen: How many of the images were trained on; None when that is not known.
        parts: The same within each value of a factor: SRCC and n by factor and value.
    """

    name: str
    n: int
    srcc: Interval
    plcc: Interval
    krcc: Interval
    gain: Interval | None = None
    p_value: float | None = None
    more: Mapping[str, Interval] = field(default_factory=dict)
    differences: Mapping[str, Difference] = field(default_factory=dict)
    tests: Mapping[str, Test] = field(default_factory=dict)
    kind: str = "other"
    method: str = ""
    seen: int | None = None
    parts: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The evaluation as a JSON object; what has no value is null, with a reason beside it."""
        body: dict[str, Any] = {"name": self.name, "kind": self.kind, "method": self.method or self.name, "n": self.n}
        body["seen"] = self.seen
        body |= {key: plain(value) for key in ("srcc", "plcc", "krcc") if (value := getattr(self, key))}
        body |= {key: plain(value) for key, value in self.more.items()}
        if self.gain is not None:
            body["gain"], body["p_value"] = plain(self.gain), _number(self.p_value)
        if self.differences:
            body["differences"] = {
                key: {**plain(d.interval), "p_value": _number(d.p_value)} for key, d in self.differences.items()
            }
        if self.tests:
            body["tests"] = {key: plain(test) for key, test in self.tests.items()}
        return {**body, "parts": self.parts} if self.parts else body


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How agreement is measured.

    Attributes:
        n_boot: Bootstrap resamples.
        seed: Of the bootstrap.
        min_gap: Least difference in MOS of the pairs whose order is counted, at least 0; None = one standard deviation
            of the MOS.
        ends: Ends of the MOS scale as the human scores were given, for distances between distributions; None = as
            ``scale`` finds them.
    """

    n_boot: int = 2000
    seed: int = 0
    min_gap: float | None = None
    ends: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.min_gap is not None and not self.min_gap >= 0:
            raise DataError(f"--min-gap {self.min_gap:g} is no difference in MOS; give a number of at least 0.")

    def gap(self, mos: np.ndarray) -> float:
        """The least difference in MOS units."""
        return float(mos.std()) if self.min_gap is None else self.min_gap

    def scale(self, target: Target) -> tuple[float, float]:
        """The ends in units of ``target.mos``: those given, those known of the set, or the smallest and largest MOS."""
        if self.ends and target.direction == NEGATED:
            return -self.ends[1], -self.ends[0]
        return self.ends or target.ends or (float(target.mos.min()), float(target.mos.max()))


def evaluate(
    scores: Mapping[str, np.ndarray],
    mos: np.ndarray,
    *,
    bare: str = "none",
    n_boot: int = 2000,
    seed: int = 0,
    clusters: Sequence[str] | None = None,
    min_gap: float | None = None,
) -> list[Evaluation]:
    """Evaluate columns of scores against human scores.

    Args:
        scores: (N,) scores by name; the bare judge's under ``bare`` when it is among them.
        mos: (N,) human scores, higher is better, any scale.
        bare: which column the others are compared with.
        n_boot: bootstrap resamples of the images.
        seed: of the bootstrap.
        clusters: (N,) reference or text prompt of every image; images of one are drawn together.
        min_gap: see ``Protocol``.

    Returns:
        One evaluation a column, in order.

    Raises:
        DataError: with fewer than 5 images, or when all human scores are equal.
    """
    _check_mos(mos)
    gap = Protocol(min_gap=min_gap).gap(mos)
    asked: dict[str, Statistic] = {**STATISTICS, **MAPPED, "pair_accuracy": pairs_above(gap)}
    how: dict[str, Any] = {"n_boot": n_boot, "seed": seed, "clusters": clusters}
    readings = {
        name: {key: _read(statistic, column, mos, how) for key, statistic in asked.items()}
        for name, column in scores.items()
    }
    rows = []
    for name, column in scores.items():
        numbers = {key: reading.interval() for key, reading in readings[name].items()}
        more = {key: number for key, number in numbers.items() if key not in STATISTICS}
        row = Evaluation(name, len(mos), numbers["srcc"], numbers["plcc"], numbers["krcc"], more=more)
        if name != bare and bare in scores:
            both = {key: readings[name][key].minus(readings[bare][key]) for key in COMPARED}
            gain, p_value = both["srcc"]
            tests = _tests(column, scores[bare], mos)
            row = replace(row, gain=gain, p_value=p_value, differences=both, tests=tests)
        rows.append(row)
    return rows


def evaluate_columns(
    target: Target, columns: Sequence[Column], protocol: Protocol, *, detail: bool = True
) -> tuple[list[Evaluation], int]:
    """Evaluate columns on the images that all of them have a score for.

    Args:
        target: what to hold them against.
        columns: one of kind ``bare``, if any, is what the others are compared with.
        protocol: how.
        detail: also within each distortion and level, where they are known.

    Returns:
        One evaluation a column, and how many images were left out for want of a score.

    Raises:
        DataError: see ``check_target``; when too few images are left, or two columns have one name.
    """
    check_target(target, protocol)
    target, columns, left_out = complete(target, columns)
    names = [column.name for column in columns]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"two sets of scores are called {twice[0]}; give them different names, such as NAME=PROMPT.")
    bare = next((column.name for column in columns if column.kind == "bare"), "")
    rows = evaluate(
        {column.name: column.scores for column in columns},
        target.mos,
        bare=bare,
        n_boot=protocol.n_boot,
        seed=protocol.seed,
        clusters=target.groups,
        min_gap=protocol.min_gap,
    )
    parts = _parts(target, columns, protocol) if detail else [{} for _ in columns]
    return [
        replace(
            row,
            kind=column.kind,
            method=column.method,
            seen=None if column.seen is None else int(column.seen.sum()),
            more={**row.more, **_distances(target, column, protocol)},
            parts=part,
        )
        for row, column, part in zip(rows, columns, parts, strict=True)
    ], left_out


def complete(target: Target, columns: Sequence[Column]) -> tuple[Target, list[Column], int]:
    """Only the images that every column has a score for, and how many others there were."""
    whole = np.all([np.isfinite(column.scores) for column in columns], axis=0)
    rows = np.flatnonzero(whole).tolist()
    return target.only(rows), [column.only(rows) for column in columns], int((~whole).sum())


def measure_on(
    judge: Judge, labels: Labels, batch_size: int, say: Callable[[str], None] = lambda text: None
) -> Callable[[PixelPrompt, Path], dict[str, float]]:
    """All that evolution may know of labels: a function from a prompt to numbers, which also writes ``eval.json``.

    All processes of a job must call it, and share the scoring; the first alone has the numbers and writes. Before the
    first round it says so when the human scores seem to run the other way.
    """
    from evoprompt.processes import rank
    from evoprompt.scoring import score_labels

    how: dict[str, Any] = {"n_boot": 2000, "seed": 0, "clusters": labels.groups}

    def measure(prompt: PixelPrompt, folder: Path) -> dict[str, float]:
        scores, _ = score_labels(judge, [prompt], labels, batch_size, lambda n=1, **_: None)[0]
        if rank():
            return {}
        _check_mos(labels.mos)
        numbers = {key: bootstrap(statistic, scores, labels.mos, **how) for key, statistic in STATISTICS.items()}
        found = numbers["srcc"]
        if not prompt.origin.round and found.high < 0:
            say(
                f"warning  {labels.path}: the judge scores images lower at the start the higher their MOS (SRCC "
                f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]). If lower is better there, numbers on these "
                f"images have the wrong sign; 'evoprompt evaluate {folder.parent.parent} --eval-mos {labels.path} "
                "--lower-better' has the right one."
            )
        row = Evaluation("prompt", len(labels), numbers["srcc"], numbers["plcc"], numbers["krcc"])
        write_json(folder / "eval.json", {"labels": str(labels.path), **row.to_dict()})
        return {name: value.value for name, value in numbers.items()}

    return measure


def check_target(target: Target, protocol: Protocol) -> None:
    """Refuse human scores that nothing can be measured on, before anything is scored.

    Raises:
        DataError: with fewer than 5 images, when all human scores are equal, or when some lie outside their scale.
    """
    _check_mos(target.mos)
    (low, high), mos = protocol.scale(target), target.mos
    if outside := int(((mos < low) | (mos > high)).sum()):
        turned = target.direction == NEGATED
        (low, high), mos = ((-high, -low), -mos) if turned else ((low, high), mos)
        raise DataError(
            f"{outside} of {len(mos)} human scores lie outside the scale {low:g}..{high:g} (they go from {mos.min():g} "
            f"to {mos.max():g}{', lower being better' if turned else ''}). Give the scale's ends with --mos-range."
        )


def _check_mos(mos: np.ndarray) -> None:
    if len(mos) < LEAST:
        raise DataError(f"{len(mos)} labelled images are too few for a correlation; give at least {LEAST}.")
    if np.all(mos == mos[0]):
        raise DataError(f"all {len(mos)} human scores are {mos[0]:g}; nothing can agree with them. Check their column.")


def _read(statistic: Statistic, scores: np.ndarray, mos: np.ndarray, how: Mapping[str, Any]) -> Reading:
    reading = read(statistic, scores, mos, **how)
    if math.isnan(reading.value) and not undefined(scores, mos):
        fit = logistic4(scores, mos) if statistic in (plcc4, rmse4) else logistic5(scores, mos)
        return reading._replace(reason=fit.reason or "no two images lie so far apart in MOS")
    return reading


def _tests(scores: np.ndarray, bare: np.ndarray, mos: np.ndarray) -> dict[str, Test]:
    found: dict[str, Test] = {}
    for name, statistic in (("srcc", srcc), ("plcc", plcc)):
        numbers = statistic(scores, mos), statistic(bare, mos), statistic(scores, bare), len(mos)
        found |= {f"williams_{name}": williams(*numbers), f"steiger_{name}": steiger(*numbers)}
    return found


def _parts(target: Target, columns: Sequence[Column], protocol: Protocol) -> list[dict[str, dict[str, Any]]]:
    """For each column: by factor and value, n and SRCC with its interval."""
    parts: list[dict[str, dict[str, Any]]] = [{name: {} for name in target.factors} for _ in columns]
    for factor, values in target.factors.items():
        for value in sorted(set(values), key=lambda word: (len(word), word)):
            rows = [row for row, other in enumerate(values) if other == value]
            some = target.only(rows)
            how: dict[str, Any] = {"n_boot": protocol.n_boot, "seed": protocol.seed, "clusters": some.groups}
            for part, column in zip(parts, columns, strict=True):
                number = (
                    bootstrap(srcc, column.only(rows).scores, some.mos, **how)
                    if len(rows) >= LEAST
                    else missing(f"n = {len(rows)}; at least {LEAST} images are needed")
                )
                part[factor][value] = {"n": len(rows), "srcc": plain(number)}
    return parts


def _distances(target: Target, column: Column, protocol: Protocol) -> dict[str, Interval]:
    """Distances between predicted and human level distributions, where there are deviations to make the latter of."""
    if target.std is None or column.levels is None:
        return {}
    low, high = protocol.scale(target)
    mean, std = 1 + 4 * (target.mos - low) / (high - low), 4 * target.std / (high - low)
    found = dict(level_distances(soft_labels(mean, std, "interval"), column.levels))
    if (std > 0).all():
        found |= normal_distances(mean, std, column.levels)
    how: dict[str, Any] = {"n_boot": protocol.n_boot, "seed": protocol.seed, "clusters": target.groups}
    reason = "the prediction has probability 0 where people have not"
    return {
        name: bootstrap_mean(values, **how) if np.isfinite(values).all() else missing(reason)
        for name, values in found.items()
    }


def plain(value: Any) -> dict[str, Any]:
    """An interval or test as a JSON object: what is not finite is null, the reason is there when it says something."""
    body = {key: _number(v) if isinstance(v, float) else v for key, v in value._asdict().items()}
    return body if body.get("reason") else {key: v for key, v in body.items() if key != "reason"}


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
