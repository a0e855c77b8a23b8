"""What a study found: scores of the images from a system's answers, agreement with human scores, table, plot, files."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evoprompt.charts import STYLE, interval_chart
from evoprompt.labels import Labels
from evoprompt.logistic import logistic4
from evoprompt.runs import write_json, write_text
from evoprompt.score_files import target_of
from evoprompt.stats import LEAST, Interval, bootstrap, pair_accuracy, plcc, srcc, undefined
from evoprompt.study import Answer, Plan
from evoprompt.study_questions import System
from evoprompt.study_sets import StudySet
from evoprompt.thurstone import scale_from_pairs

Pair = tuple[int, int]
N_BOOT = 2000
NOTE = (
    "SRCC with 95 % bootstrap interval (images, or whole references and text prompts where they are known, drawn "
    "together). Full-reference systems (-fr) compare within a reference: the mean over references. A missing answer is "
    "counted and left out."
)


@dataclass(frozen=True)
class Found:
    """What a system found out about a set.

    Attributes:
        scores: (N,) of all rows, NaN where there is none: means of ratings from 1 to 5, or Thurstone scale values.
        pairs: (P, 2) rows that were compared, each pair once a stimulus; empty for a single-stimulus system.
        shares: (P,) how far the first of a pair won, in [0, 1], both orders and all views together.
        swaps: of every pair and view that was answered in both orders, whether the winner stayed.
        asked: answers asked for.
        missing: how many of them are missing.
    """

    scores: NDArray[np.float64]
    pairs: NDArray[np.int64]
    shares: NDArray[np.float64]
    swaps: NDArray[np.bool_]
    asked: int
    missing: int


def find(plan: Plan, system: System, answers: Sequence[Answer]) -> Found:
    """Scores of the images from the answers of one system.

    Ratings are averaged over the views. Of pairs, the log-odds of the two orders are averaged, which removes additive
    position bias, then the probabilities over the views. Of rankings, every ordered pair within one is a won or lost
    comparison, averaged over orders and views. Comparisons become scores by Thurstone's case V, maximum a posteriori
    (``thurstone.scale_from_pairs``); an image that was never compared has none.
    """
    mine = [a for a in answers if a.system == system.name and a.data == plan.data.name]
    good = [a for a in mine if not a.missing]
    n, lost = len(plan.data.mos), len(mine) - len(good)
    scores = np.full(n, np.nan)
    if system.procedure == "single":
        rated: dict[int, list[float]] = {}
        for answer in good:
            rated.setdefault(answer.images[0], []).append(_value(answer))
        for row, values in rated.items():
            scores[row] = np.mean(values)
        none = np.empty((0, 2), np.int64), np.empty(0), np.empty(0, bool)
        return Found(scores, *none, len(mine), lost)
    won: dict[tuple[int, Pair], dict[int, dict[str, float]]] = {}
    for answer in good:
        for pair, odds in _comparisons(answer):
            won.setdefault((answer.stimulus, pair), {}).setdefault(answer.view, {})[answer.order] = odds
    soft = system.procedure == "double"
    pairs = np.array([pair for _, pair in won], dtype=np.int64).reshape(-1, 2)
    shares = np.array([np.mean([_share(orders, soft) for orders in views.values()]) for views in won.values()])
    both = [orders for views in won.values() for orders in views.values() if len(orders) == 2]
    swaps = np.array([(o["given"] > 0) == (o["reversed"] > 0) for o in both], dtype=bool)
    met = np.unique(pairs)
    if len(met):
        scale = scale_from_pairs(pairs, shares, n)
        scores[met] = scale[met]
    return Found(scores, pairs, shares, swaps, len(mine), lost)


def _comparisons(answer: Answer) -> list[tuple[Pair, float]]:
    """Pairs (lower row first) with the log-odds that the first is better; of a ranking only their sign counts."""
    if answer.ranking is not None:
        place = {row: k for k, row in enumerate(answer.ranking)}
        return [((a, b), 1.0 if place[a] < place[b] else -1.0) for a, b in combinations(sorted(answer.ranking), 2)]
    chance = min(max(_value(answer), 1e-9), 1 - 1e-9)
    odds = math.log(chance / (1 - chance))
    first, second = answer.images
    return [((first, second), odds) if first < second else ((second, first), -odds)]


def _value(answer: Answer) -> float:
    return math.nan if answer.value is None else answer.value


def _share(orders: Mapping[str, float], soft: bool) -> float:
    if soft:
        return 1 / (1 + math.exp(-np.mean(list(orders.values()))))
    return float(np.mean([odds > 0 for odds in orders.values()]))


@dataclass(frozen=True)
class Row:
    """A cell of the table, system x set, in full.

    Attributes:
        system: its name.
        data: name of the set.
        images: how many have a score; ``unscored`` of those asked about have none.
        references: how many references ``srcc`` and both ``plcc`` are means over; 0 when they are over all images.
        asked: answers asked for; ``missing`` of them are missing.
        srcc: rank correlation with the human scores.
        plcc: linear correlation; ``plcc4`` after a four-parameter logistic fit.
        pairs: compared pairs whose human scores differ, ``right`` the share of them answered in that order (ties half).
        swap: share of comparisons whose winner stays when the order is reversed; NaN where there is no order.
    """

    system: str
    data: str
    images: int
    unscored: int
    references: int
    asked: int
    missing: int
    srcc: Interval
    plcc: float
    plcc4: float
    pairs: int
    right: float
    swap: float

    def to_dict(self) -> dict[str, Any]:
        """The row as a JSON object; what is not defined is null."""
        body = {**asdict(self), "srcc": self.srcc._asdict()}
        return {key: _plain(value) for key, value in body.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def row_of(plan: Plan, system: System, found: Found, seed: int = 0) -> Row:
    """Agreement of a system's scores with the human ones."""
    kept = plan.images[np.isfinite(found.scores[plan.images])]
    scores, mos = found.scores[kept], plan.data.mos[kept]
    groups = None if plan.data.groups is None else np.array(plan.data.groups)[kept]
    references = 0
    if system.full_reference and groups is not None:
        parts = [groups == name for name in np.unique(groups)]
        values = np.array([srcc(scores[part], mos[part]) for part in parts])
        references = int(np.isfinite(values).sum())
        agreement = mean_interval(values, seed)
        linear = [_mean([f(scores[part], mos[part]) for part in parts]) for f in (plcc, _plcc4)]
    else:
        agreement = bootstrap(srcc, scores, mos, n_boot=N_BOOT, seed=seed, clusters=groups)
        linear = [plcc(scores, mos), _plcc4(scores, mos)]
    order = plan.data.mos[found.pairs[:, 0]] - plan.data.mos[found.pairs[:, 1]]
    right = pair_accuracy(found.shares, 1 - found.shares, order) if len(order) else math.nan
    return Row(
        system=system.name,
        data=plan.data.name,
        images=len(kept),
        unscored=len(plan.images) - len(kept),
        references=references,
        asked=found.asked,
        missing=found.missing,
        srcc=agreement,
        plcc=linear[0],
        plcc4=linear[1],
        pairs=int(np.count_nonzero(order)),
        right=right,
        swap=float(found.swaps.mean()) if len(found.swaps) else math.nan,
    )


def mean_interval(values: NDArray[np.float64], seed: int = 0, n_boot: int = N_BOOT) -> Interval:
    """Mean of the values (R,) of references with a 95 % bootstrap interval over five or more; NaN are left out."""
    known = values[np.isfinite(values)]
    if len(known) < LEAST:
        mean = float(known.mean()) if len(known) else math.nan
        has = "reference has" if len(known) == 1 else "references have"
        return Interval(mean, math.nan, math.nan, f"{len(known)} {has} a value; at least {LEAST} are needed")
    drawn = np.random.default_rng(seed).integers(len(known), size=(n_boot, len(known)))
    low, high = np.quantile(known[drawn].mean(axis=1), (0.025, 0.975))
    return Interval(float(known.mean()), float(low), float(high))


def _plcc4(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    return math.nan if undefined(x, y) else logistic4(x, y).plcc


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return float(np.mean(known)) if known else math.nan


def protocol_of(sets: Sequence[StudySet], labels: Sequence[Labels]) -> dict[str, dict[str, Any]]:
    """What must be known of every set to read a number of it, by its name: file, images, split and direction."""
    targets = [target_of(one) for one in labels]
    return {
        data.name: {"labels": one.path.name, "n": len(one), "split": target.split, "direction": target.direction}
        for data, one, target in zip(sets, labels, targets, strict=True)
    }


def caption(identity: Mapping[str, Any], protocol: Mapping[str, Mapping[str, Any]]) -> str:
    """What the table must say about itself, as one paragraph."""
    sets = "; ".join(
        f"{name}: {told['labels']}, {told['n']} images; split: {told['split']}; MOS: {told['direction']}"
        for name, told in protocol.items()
    )
    words = (f"{identity['judge']}", identity.get("precision", ""), f"prompt {identity['prompt'][:12]}")
    return f"{sets}. Judge: {', '.join(word for word in words if word)}. {NOTE}"


def stated(identity: Mapping[str, Any], protocol: Mapping[str, Mapping[str, Any]], rows: Sequence[Row]) -> str:
    """The table with what it must say about itself, and why intervals are missing, as Markdown."""
    lacking: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.srcc.reason:
            lacking.setdefault((row.data, row.srcc.reason), []).append(row.system)
    lines = [f"- {data}, {', '.join(systems)}: {reason}" for (data, reason), systems in lacking.items()]
    return "\n\n".join([caption(identity, protocol), summary(rows), *lines])


def summary(rows: Sequence[Row]) -> str:
    """The table, system x set, as Markdown; a set's header says how many images have scores."""
    systems, sets = list(dict.fromkeys(r.system for r in rows)), list(dict.fromkeys(r.data for r in rows))
    cells = {(r.system, r.data): r for r in rows}
    heads = [f"{name} (n = {max(r.images for r in rows if r.data == name)})" for name in sets]
    lines = [f"| system | {' | '.join(heads)} |", f"|---|{'---|' * len(sets)}"]
    lines += [f"| {name} | {' | '.join(_cell(cells.get((name, data))) for data in sets)} |" for name in systems]
    return "\n".join(lines)


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    x = row.srcc
    value = f"{x.value:.3f}" if math.isfinite(x.value) else "none"
    bounds = f" [{x.low:.3f}, {x.high:.3f}]" if math.isfinite(x.low) else ""
    lost = f", {row.missing / row.asked:.0%} of the answers missing" if row.missing else ""
    fewer = f", n = {row.images}" if row.unscored else ""
    return f"{value}{bounds}{lost}{fewer}"


def details(rows: Sequence[Row]) -> str:
    """Everything known of every cell, as Markdown."""
    lines = [
        "| set | system | images | references | asked | missing | SRCC | PLCC | PLCC (logistic-4) | "
        "pairs | right | swap |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        numbers = " | ".join(_number(v) for v in (r.srcc.value, r.plcc, r.plcc4))
        lines.append(
            f"| {r.data} | {r.system} | {r.images} | {r.references or ''} | {r.asked} | {r.missing} | {numbers} | "
            f"{r.pairs or ''} | {_number(r.right)} | {_number(r.swap)} |"
        )
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else ""


def write_study(
    out: Path,
    identity: Mapping[str, Any],
    protocol: Mapping[str, Mapping[str, Any]],
    plans: Sequence[Plan],
    answers: Sequence[Answer],
    rows: Sequence[Row],
    found: Mapping[tuple[str, str], Found],
) -> None:
    """Write ``study.json``, ``table.md``, ``answers.csv``, ``scores.csv`` and ``study.html``.

    Args:
        out: folder of the study.
        identity: what was asked with which settings.
        protocol: of every set, see ``protocol_of``.
        plans: one a set.
        answers: all answers the rows were made of.
        rows: one a system and set.
        found: by system and set.
    """
    body = {**identity, "protocol": protocol, "note": NOTE, "rows": [row.to_dict() for row in rows]}
    write_json(out / "study.json", body)
    write_text(out / "table.md", f"{stated(identity, protocol, rows)}\n\n{details(rows)}\n")
    names = {plan.data.name: plan.data.names for plan in plans}
    head = ("data", "system", "stimulus", "order", "view", "images", "value", "ranking", "missing", "text")
    lines = [
        (
            a.data, a.system, a.stimulus, a.order, a.view, _named(a.images, names[a.data]),
            "" if a.value is None else round(a.value, 6), _named(a.ranking or (), names[a.data]), a.missing, a.text,
        )
        for a in answers
    ]  # fmt: skip
    _write_csv(out / "answers.csv", head, lines)
    systems = list(dict.fromkeys(row.system for row in rows))
    table = []
    for plan in plans:
        columns = [found[name, plan.data.name].scores for name in systems]
        for k in plan.images:
            values = ["" if math.isnan(column[k]) else round(float(column[k]), 6) for column in columns]
            table.append((plan.data.name, plan.data.names[k], plan.data.mos[k], *values))
    _write_csv(out / "scores.csv", ("data", "image", "mos", *systems), table)
    write_text(out / "study.html", page(identity, protocol, rows))


def _named(rows: Sequence[int], names: Sequence[str]) -> str:
    return " > ".join(names[row] for row in rows)


def _write_csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    write_text(path, text.getvalue())


def page(identity: Mapping[str, Any], protocol: Mapping[str, Mapping[str, Any]], rows: Sequence[Row]) -> str:
    """One self-contained HTML page with the plot and the table."""
    systems, sets = list(dict.fromkeys(r.system for r in rows)), list(dict.fromkeys(r.data for r in rows))
    cells = {(r.system, r.data): r.srcc for r in rows}
    panels = [(name, [(x.value, x.low, x.high) for x in (cells[system, name] for system in systems)]) for name in sets]
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell.strip())}</td>' for cell in line.strip('|').split('|'))}</tr>"
        for line in details(rows).splitlines()
        if not line.startswith("|---")
    )
    judge = f"{identity['judge']}, prompt {identity['prompt']}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Prompting systems - evoprompt</title><style>{STYLE}</style></head>\n<body>\n<h1>Prompting systems</h1>"
        f'<p class="soft">{escape(judge)}</p><figure class="wide">{interval_chart(systems, panels, "SRCC")}'
        f"<figcaption>{escape(caption(identity, protocol))}</figcaption></figure>\n"
        f'<div class="scroll"><table>{body}</table></div>\n'
        "</body></html>\n"
    )
