"""Which prompt is better, by how much, and with what certainty: seeds, controls, and the share of the supervised gain.

Letters in shapes: N images, P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evoprompt.charts import STYLE, interval_chart
from evoprompt.config import VoteConfig
from evoprompt.evaluation import Protocol, complete, plain
from evoprompt.images import fit_image, read_image
from evoprompt.labels import Labels
from evoprompt.result_tables import NUMBERS, caption, document, latex, main_table, reasons, share_lines
from evoprompt.runs import PAIRS, stream, write_json, write_text
from evoprompt.score_files import Column, Target, write_scores
from evoprompt.stats import Interval, Reading, missing, percentile_interval, read, srcc, summarise, undefined
from evoprompt.tracking import Update

if TYPE_CHECKING:
    from evoprompt.judge import Judge

GROUP = 12
"""Images voted among each other when there are too many for all pairs."""


def plan_votes(n_images: int, n_pairs: int, seed: int) -> np.ndarray:
    """Pairs to vote on: all of them when there are at most ``n_pairs``, else groups that use every image equally often.

    Returns:
        (P, 2) image indices, P at least ``n_pairs`` unless that is all.
    """
    from evoprompt.voting import pairs_of, plan_groups

    everything = np.arange(n_images)
    if n_images * (n_images - 1) // 2 <= n_pairs:
        return pairs_of(everything)
    groups = plan_groups(everything, n_pairs, GROUP, stream(seed, 0, PAIRS))
    return np.concatenate([pairs_of(group) for group in groups])


def votes_without_training(judge: Judge, labels: Labels, pairs: np.ndarray, block: int, advance: Update) -> np.ndarray:
    """Scores that the bare judge's own votes on the evaluation images add up to, without any training.

    The votes on each pair (both orders, up to two wordings and two views, as in evolution) are counted into the share
    that the first image won; the scale values that explain all shares best are the scores (Thurstone case V, maximum a
    posteriori, ``thurstone.scale_from_pairs``). They are of use only relative to each other.

    Args:
        judge: any prompt attached is taken off.
        labels: the images.
        pairs: (P, 2) image indices.
        block: images encoded at a time.
        advance: told how many more pairs are voted on.

    Returns:
        (N,) float64, mean 0.
    """
    from evoprompt.thurstone import scale_from_pairs
    from evoprompt.voting import Seen, collect_votes, count_votes

    judge.attach(None)
    family, vote = judge.family, VoteConfig(wordings=min(2, len(judge.family.compare)), source="compare")
    views = max(vote.views, family.views)

    def pixels(index: int) -> np.ndarray:
        return fit_image(read_image(labels.paths[index]), family.fit, judge.image_size, views)

    seen = Seen(judge, [pairs.flatten()], pixels, max(1, block // views))
    shares: list[float] = []
    for start in range(0, len(pairs), 64):
        part = pairs[start : start + 64]
        votes = collect_votes(seen, part, vote, ("compare",), (0,), start)
        shares += [counted.share for counted in count_votes(votes, vote)]
        advance(len(part))
    return scale_from_pairs(pairs, shares, len(labels))


def gain_shares(target: Target, columns: Sequence[Column], protocol: Protocol) -> list[dict[str, Any]]:
    """What share of the supervised gain in SRCC over the bare judge each label-free method reaches.

    share = (SRCC of label-free - SRCC of bare) / (SRCC of supervised - SRCC of bare), each the mean over the seeds of
    the method. Its interval comes from resamples of the images that all columns read together.

    Returns:
        For each label-free and each supervised method ``label_free``, ``supervised`` and ``share`` (value, low, high,
        reason). Without a supervised gain above 0 the share is not defined, and the reason says so.
    """
    target, columns, _ = complete(target, columns)
    columns = [column for column in columns if not undefined(column.scores, target.mos)]
    bare = next((column for column in columns if column.kind == "bare"), None)
    if bare is None:
        return []

    def reading(column: Column) -> Reading:
        return read(srcc, column.scores, target.mos, protocol.n_boot, protocol.seed, target.groups)

    start = reading(bare)
    gains: dict[str, dict[str, tuple[float, np.ndarray]]] = {"label-free": {}, "supervised": {}}
    for kind, found in gains.items():
        for method in dict.fromkeys(c.method or c.name for c in columns if c.kind == kind):
            seeds = [reading(c) for c in columns if c.kind == kind and (c.method or c.name) == method]
            found[method] = (
                float(np.mean([seed.value for seed in seeds])) - start.value,
                np.mean([seed.draws for seed in seeds], axis=0) - start.draws,
            )
    return [
        {"label_free": method, "supervised": other, "share": plain(_share(gain, supervised, start.reason))}
        for method, gain in gains["label-free"].items()
        for other, supervised in gains["supervised"].items()
    ]


def _share(gain: tuple[float, np.ndarray], supervised: tuple[float, np.ndarray], unbounded: str) -> Interval:
    """The share; without bounds where ``unbounded`` says why there are none."""
    (value, draws), (whole, whole_draws) = gain, supervised
    if not whole > 0:
        return missing(f"the supervised gain is not positive ({whole:+.3f})")
    if unbounded:
        return Interval(value / whole, math.nan, math.nan, unbounded)
    positive = whole_draws > 0
    ratio = np.where(positive, draws / np.where(positive, whole_draws, 1), np.nan)
    interval = percentile_interval(value / whole, ratio)
    if interval.reason:
        lost = int((~positive).sum())
        reason = f"the supervised gain is not positive in {lost} of {len(ratio)} resamples"
        return Interval(interval.value, math.nan, math.nan, reason)
    return interval


def summarise_methods(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of one method, which are its seeds or splits, as median, mean and standard deviation.

    Args:
        rows: rows of one or several ``evaluation.json`` or ``comparison.json``.

    Returns:
        One object a method and kind: ``method``, ``kind``, ``runs`` and ``numbers``, a ``stats.Summary`` by name.
    """
    methods: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        methods.setdefault((row["method"], row["kind"]), []).append(row)
    keys = [*(key for _, key in NUMBERS), "gain"]
    found = []
    for (method, kind), same in methods.items():
        numbers = {}
        for key in keys:
            values = [row[key]["value"] for row in same if key in row and row[key]["value"] is not None]
            if values:
                summary = summarise(values)._asdict()
                numbers[key] = {name: None if value != value else value for name, value in summary.items()}
        found.append({"method": method, "kind": kind, "runs": len(same), "numbers": numbers})
    return found


def write_results(folder: Path, name: str, body: Mapping[str, Any], target: Target, columns: Sequence[Column]) -> None:
    """Write everything known of an evaluation or comparison.

    Args:
        folder: made if it is not there.
        name: of the JSON file, without its ending.
        body: its content.
        target: goes into ``scores.csv`` with the columns.
        columns: of all prompts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", body)
    write_scores(folder / "scores.csv", target, columns)
    write_text(folder / "table.md", document(body))
    write_text(folder / "table.tex", latex(body))


def comparison_page(body: Mapping[str, Any]) -> str:
    """A page with the gains over the bare judge as a chart, and the table; one file, nothing fetched."""
    rows = body["rows"]
    gained = [row for row in rows if "gain" in row]
    names = [row["name"] + (" (CONTROL)" if row["kind"] == "control" else "") for row in rows]
    charts = [interval_chart(names, [("SRCC", [_bounds(row["srcc"]) for row in rows])], "SRCC, 95 % interval")]
    if gained:
        marked = [row["name"] + (" (CONTROL)" if row["kind"] == "control" else "") for row in gained]
        panel = ("gain over the bare judge", [_bounds(row["gain"]) for row in gained])
        charts.insert(0, interval_chart(marked, [panel], "difference in SRCC, 95 % interval of the paired difference"))
    heads, lines = main_table(body)
    cells = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heads)
    notes = "".join(f"<p>{escape(line)}</p>" for line in (*share_lines(body), *reasons(body)))
    title = f"Comparison on {Path(body['labels']).name}"
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1><p class='soft'>{escape(caption(body))}</p>"
        + "".join(f'<figure class="wide">{chart}</figure>' for chart in charts)
        + f"{notes}<div class='scroll'><table><tr>{head}</tr>{cells}</table></div></body></html>\n"
    )


def _bounds(number: Mapping[str, Any]) -> tuple[float, float, float]:
    value, low, high = (math.nan if number[key] is None else number[key] for key in ("value", "low", "high"))
    return value, low, high
