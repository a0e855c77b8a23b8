"""Continual evaluation: a prompt that is evolved on one domain after the other, measured on all of them after each.

Letters in shapes: T domains, and as many stages of training, one on each in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from evoprompt.errors import DataError
from evoprompt.result_tables import markdown, shown


class Continual(NamedTuple):
    """What a sequence of domains did to a prompt; R[i, j] is the agreement on domain j after stage i.

    Attributes:
        acc: Mean over j of R[T, j]: the agreement in the end.
        bwt: Mean over j < T of R[T, j] - R[j, j]: backward transfer, below 0 when earlier domains were forgotten.
        fwt: Mean over j > 1 of R[j - 1, j] - b[j]: forward transfer, what a domain gained before it was trained on.
        forgetting: Mean over j < T of max over stages l < T of R[l, j], minus R[T, j].
        forgotten: The same domain by domain, T - 1 values.
    """

    acc: float
    bwt: float
    fwt: float
    forgetting: float
    forgotten: tuple[float, ...]


def continual(matrix: ArrayLike, before: ArrayLike) -> Continual:
    """ACC, BWT and FWT (Lopez-Paz and Ranzato 2017) and forgetting (Chaudhry et al. 2018); docs/evaluation.md.

    Args:
        matrix: (T, T) agreement, such as SRCC; row i after stage i, column j on domain j.
        before: (T,) agreement of the bare judge on each domain, b.

    Returns:
        The numbers; all but ``acc`` are NaN for a single domain.

    Raises:
        DataError: when the matrix is not square, or its numbers are not finite.
    """
    r, b = np.asarray(matrix, dtype=np.float64), np.asarray(before, dtype=np.float64)
    if r.ndim != 2 or r.shape[0] != r.shape[1] or b.shape != r.shape[:1]:
        raise DataError(
            f"{r.shape[0]} stages and {r.shape[1] if r.ndim == 2 else len(b)} domains; give one prompt for each "
            "domain, in the order in which they were trained on."
        )
    if not (np.isfinite(r).all() and np.isfinite(b).all()):
        raise DataError("an agreement is not defined on some domain; evaluate says why. Leave that domain out.")
    last = len(r) - 1
    if last == 0:
        return Continual(float(r[0, 0]), math.nan, math.nan, math.nan, ())
    earlier = np.arange(last)
    forgotten = r[:last, :last].max(axis=0) - r[last, :last]
    return Continual(
        acc=float(r[last].mean()),
        bwt=float((r[last, earlier] - r[earlier, earlier]).mean()),
        fwt=float((r[earlier, earlier + 1] - b[1:]).mean()),
        forgetting=float(forgotten.mean()),
        forgotten=tuple(map(float, forgotten)),
    )


def continual_body(evaluations: Sequence[Mapping[str, Any]], statistic: str = "srcc") -> dict[str, Any]:
    """The matrix and its summary from one evaluation a domain, each with a row for the bare judge and each stage.

    Args:
        evaluations: contents of ``evaluation.json``, in the order of training; their rows in that order, too.
        statistic: which number, a key of their rows.

    Raises:
        DataError: when an evaluation lacks the bare judge, a stage, or the number.
    """
    matrix: list[list[float]] = []
    before: list[float] = []
    names: list[str] = []
    for body in evaluations:
        bare = [row for row in body["rows"] if row["kind"] == "bare"]
        stages = [row for row in body["rows"] if row["kind"] not in ("bare", "votes")]
        if not bare or len(stages) != len(evaluations):
            raise DataError(
                f"{body['labels']} was evaluated for {len(bare)} bare judges and {len(stages)} prompts; the bare judge "
                f"and {len(evaluations)} prompts are needed, one for each domain. Evaluate all of them on every domain."
            )
        if names and names != [row["name"] for row in stages]:
            raise DataError(
                f"{body['labels']} was evaluated for {', '.join(row['name'] for row in stages)}, the domain before for "
                f"{', '.join(names)}. Evaluate the same prompts in the same order on every domain."
            )
        if any(statistic not in row for row in (*bare, *stages)):
            raise DataError(f"{body['labels']} has no {statistic}; use one of srcc, plcc, krcc, plcc_logistic4.")
        names = [row["name"] for row in stages]
        before.append(_value(bare[0][statistic]))
        matrix.append([_value(row[statistic]) for row in stages])
    numbers = continual(np.array(matrix).T, before)
    return {
        "statistic": statistic,
        "stages": names,
        "domains": [body["labels"] for body in evaluations],
        "bare": before,
        "matrix": np.array(matrix).T.tolist(),
        **{key: None if value != value else value for key, value in numbers._asdict().items()},
    }


def continual_table(body: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]]) -> str:
    """The matrix and its summary in Markdown."""
    heads = ["after stage", *(f"{name} (n = {e['n']})" for name, e in zip(body["domains"], evaluations, strict=True))]
    named = [{row["name"]: row for row in e["rows"]} for e in evaluations]
    bare = [next(row for row in e["rows"] if row["kind"] == "bare") for e in evaluations]
    rows = [["0: bare judge", *(shown(row[body["statistic"]]) for row in bare)]]
    for number, name in enumerate(body["stages"], 1):
        rows.append([f"{number}: {name}", *(shown(by_name[name][body["statistic"]]) for by_name in named)])
    said = [f"{key} {'–' if body[key.lower()] is None else format(body[key.lower()], '+.3f')}" for key in
            ("ACC", "BWT", "FWT", "forgetting")]  # fmt: skip
    splits = "; ".join(f"{e['labels']}: {e['split']}, MOS {e['direction']}" for e in evaluations)
    judges = ", ".join(dict.fromkeys(str(e["judge"]) for e in evaluations))
    head = (
        f"{body['statistic'].upper()} on each domain after each stage. Brackets: 95 % percentile bootstrap. Splits: "
        f"{splits}. Judge: {judges}."
    )
    return "\n\n".join([head, markdown((heads, rows)), ", ".join(said)])


def _value(number: Mapping[str, Any]) -> float:
    return math.nan if number["value"] is None else float(number["value"])
