"""Results as Markdown and LaTeX tables, made of the JSON that ``evaluate`` and ``compare`` write and of nothing else.

A caption says everything that two numbers must share before they may stand in one column: images, split, direction,
mapping, interval, and whether the images were seen in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NUMBERS = (
    ("SRCC", "srcc"),
    ("PLCC raw", "plcc"),
    ("PLCC log-4", "plcc_logistic4"),
    ("PLCC log-5", "plcc_logistic5"),
    ("KRCC", "krcc"),
    ("RMSE log-4", "rmse_logistic4"),
    ("pairs", "pair_accuracy"),
)
"""Column heads and keys of the main table."""

DISTANCES = ("js", "kl", "wasserstein", "js_normal", "kl_normal", "wasserstein_normal")


def caption(body: Mapping[str, Any]) -> str:
    """What a results table must say about itself, as one paragraph."""
    how, left_out = body["protocol"], body["left_out"]
    without = f" ({left_out} left out for want of a score)" if left_out else ""
    return (
        f"{body['labels']}: n = {body['n']} images{without}; split: {body['split']}; MOS: {body['direction']}. "
        "PLCC raw, and after 4- and 5-parameter logistic curves fitted on these images; RMSE, in MOS units, after the "
        f"former; KRCC is tau-b; pairs: accuracy on pairs whose MOS differ by {how['min_gap']:.3g} or more. Brackets: "
        f"95 % percentile bootstrap over {how['clusters']}, {how['n_boot']} resamples; p: of no difference in SRCC to "
        "the bare judge, by the same bootstrap and by Williams' t. Seen: images that the prompt was trained on. "
        f"Judge: {body['judge']}."
    )


def main_table(body: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the main table, as text."""
    rows = body["rows"]
    numbers = [(head, key) for head, key in NUMBERS if any(key in row for row in rows)]
    gained = any("gain" in row for row in rows)
    heads = ["prompt", "seen", *(f"{head} [95 %]" for head, _ in numbers)]
    heads += ["SRCC gain [95 %]", "p", "p Williams"] if gained else []
    lines = []
    for row in rows:
        line = [_name(row), "not known" if row["seen"] is None else f"{row['seen']} of {row['n']}"]
        line += [shown(row.get(key)) for _, key in numbers]
        if gained:
            williams = row.get("tests", {}).get("williams_srcc", {})
            line += [shown(row.get("gain"), "+"), _p(row.get("p_value")), _p(williams.get("p_value"))]
        lines.append(line)
    return heads, lines


def distance_table(body: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the distances between predicted and human level distributions; no rows where none is known."""
    rows = [row for row in body["rows"] if "js" in row]
    keys = [key for key in DISTANCES if any(key in row for row in rows)]
    return ["prompt", *(f"{key} [95 %]" for key in keys)], [[_name(r), *(shown(r.get(k)) for k in keys)] for r in rows]


def part_table(body: Mapping[str, Any], factor: str) -> tuple[list[str], list[list[str]]]:
    """SRCC within each value of a factor, such as distortion or level: one row a value, one column a prompt."""
    rows = [row for row in body["rows"] if factor in row.get("parts", {})]
    values = list(rows[0]["parts"][factor]) if rows else []
    heads = [factor, "n", *(f"{_name(row)} SRCC [95 %]" for row in rows)]
    return heads, [
        [
            value,
            str(rows[0]["parts"][factor][value]["n"]),
            *(shown(row["parts"][factor][value]["srcc"]) for row in rows),
        ]
        for value in values
    ]


def summary_table(summaries: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Several seeds or splits of one method: median, mean and standard deviation of every number."""
    keys = [(head, key) for head, key in NUMBERS if any(key in item["numbers"] for item in summaries)]
    keys += [("SRCC gain", "gain")] if any("gain" in item["numbers"] for item in summaries) else []
    heads = ["method", "runs", *(f"{head}: median, mean (sd)" for head, _ in keys)]
    return heads, [
        [
            _name({**item, "name": item["method"]}),
            str(item["runs"]),
            *(_summary(item["numbers"].get(key)) for _, key in keys),
        ]
        for item in summaries
    ]


def share_lines(body: Mapping[str, Any]) -> list[str]:
    """How much of the supervised gain each label-free method reaches, in sentences."""
    lines = []
    for item in body.get("shares", []):
        share, reason = item["share"], item["share"].get("reason", "")
        reached = "no defined share" if share["value"] is None else f"{share['value']:.2f}"
        if share["low"] is not None:
            reached += f" [{share['low']:.2f}, {share['high']:.2f}]"
        told = f": {reason}." if reason else "."
        lines.append(f"{item['label_free']} reaches {reached} of the SRCC gain of {item['supervised']}{told}")
    return lines


def reasons(body: Mapping[str, Any]) -> list[str]:
    """Why numbers are missing, or may mislead, one line each."""
    falling = [
        f"{row['name']}: SRCC is below 0, so the curves fall; PLCC after them says nothing about the direction."
        for row in body["rows"]
        if (row["srcc"]["value"] or 0) < 0 and row.get("plcc_logistic4")
    ]
    same: dict[tuple[str, str], list[str]] = {}
    for row in body["rows"]:
        for key, value in row.items():
            if isinstance(value, Mapping) and value.get("reason"):
                same.setdefault((row["name"], value["reason"]), []).append(key)
    return falling + [f"{name}, {', '.join(keys)}: {reason}" for (name, reason), keys in same.items()]


def markdown(table: tuple[Sequence[str], Sequence[Sequence[str]]]) -> str:
    """A Markdown table."""
    heads, rows = table
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def document(body: Mapping[str, Any]) -> str:
    """All tables of an evaluation or comparison as one Markdown page."""
    blocks = [caption(body), markdown(main_table(body))]
    blocks += [f"- {line}" for line in (*share_lines(body), *reasons(body))]
    if (summaries := body.get("summaries")) is not None and len(summaries) < len(body["rows"]):
        blocks += ["Over seeds:", markdown(summary_table(summaries))]
    if (distances := distance_table(body))[1]:
        low, high = body["protocol"]["mos_scale"]
        blocks += [
            f"Distances between predicted and human level distributions, the MOS scale being {low:g} to {high:g}:",
            markdown(distances),
        ]
    for factor in sorted({name for row in body["rows"] for name in row.get("parts", {})}):
        blocks += [f"By {factor}:", markdown(part_table(body, factor))]
    return "\n\n".join(blocks) + "\n"


def latex(body: Mapping[str, Any]) -> str:
    """The main table in LaTeX, for the booktabs package, with the caption of the Markdown one."""
    heads, rows = main_table(body)
    lines = [
        r"\begin{table}",
        rf"\caption{{{_escaped(caption(body))}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
        r"\toprule",
        " & ".join(map(_escaped, heads)) + r" \\",
        r"\midrule",
        *(" & ".join(map(_escaped, row)) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def shown(number: Mapping[str, Any] | None, sign: str = "") -> str:
    """A value with its bounds, such as ``0.713 [0.601, 0.802]``; a dash where there is none."""
    if number is None or number["value"] is None:
        return "–"
    wide = ".3f" if abs(number["value"]) < 10 else ".4g"
    text = f"{number['value']:{sign}{wide}}"
    return text if number["low"] is None else f"{text} [{number['low']:{sign}{wide}}, {number['high']:{sign}{wide}}]"


def _name(row: Mapping[str, Any]) -> str:
    told = {"control": "CONTROL", "votes": "no training", "bare": "bare judge"}
    kind = told.get(row["kind"], "" if row["kind"] == "other" else row["kind"])
    return f"{row['name']} ({kind})" if kind and kind != row["name"] else str(row["name"])


def _summary(number: Mapping[str, Any] | None) -> str:
    if number is None or not number["n"]:
        return "–"
    spread = "–" if number["sd"] is None else f"{number['sd']:.3f}"
    return f"{number['median']:.3f}, {number['mean']:.3f} ({spread})"


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "<.001" if value < 0.001 else f"{value:.3f}"


def _escaped(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "<": "$<$"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)
