"""``report.html``: the verdict on a run and the evidence for it, one self-contained page written from the run's files.

No model is loaded and torch is not imported, so a report can be written wherever the run directory is.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from evoprompt.charts import STYLE, WIDE, Line, bar_legend, histogram, line_chart, line_legend
from evoprompt.config import Recipe
from evoprompt.errors import DataError
from evoprompt.findings import MEASURES, RunFiles, health, interval, srcc_by_round, verdict, worries
from evoprompt.pictures import Shown, img, judged_view, on_grey, read_prompt, thumbnail, with_prompt
from evoprompt.questions import FAMILIES
from evoprompt.runs import read_lines, write_text

__all__ = ["verdict", "write_report"]

_SHOWN, _PAIRS, _THUMB = 3, 3, 146
_STAGES = ("look", "vote", "train", "gate", "measure")
_GONE = "files of this run's images are gone or changed"


def write_report(run: Path) -> Path:
    """Write ``report.html`` of a run; sections whose data are absent are left out.

    Args:
        run: Run directory, finished or not.

    Returns:
        Path of the page.

    Raises:
        RunError: When it is not a run directory, or of a newer version.
    """
    files = RunFiles(run)
    name = escape(run.resolve().name)
    sections = [_head(files, name)]
    if files.rounds:
        sections += [_rounds_charts(files), _rounds_table(files), _prompt(files), _pairs(files), _health(files)]
    sections += [_training(files), _recipe(files), _time(files), _provenance(files), _use(files)]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{name} - evoprompt</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body></html>\n"
    )
    write_text(run / "report.html", page)
    return run / "report.html"


# -- page parts ------------------------------------------------------------------------------------------------------


def _head(files: RunFiles, name: str) -> str:
    record = files.record
    judge = f"{record['judge']['id']}@{str(record['judge']['revision'])[:12]}"
    learnt = f" and {record['train_mos']}" if record.get("train_mos") else ""
    given = f"{record['images']} " + ("images with human scores" if files.supervised else f"unlabelled images{learnt}")
    what = f"{given}, judge {judge}, started {record['started']}"
    first, *rest = (escape(line) for line in verdict(files.path))
    lines = f"<p>{first}</p>" + "".join(f"<p><b>{line[:9].strip()}</b><span>{line[9:]}</span></p>" for line in rest)
    kind = "good" if files.rounds and files.now["round"] and "but not by" not in first else "plain"
    return f'<h1>{name}</h1><p class="soft">{escape(what)}</p><div class="verdict {kind}">{lines}</div>'


def _rounds_charts(files: RunFiles) -> str:
    """How the label-free evidence, and SRCC when it was measured, went over the rounds."""
    x = [float(r["round"]) for r in files.rounds]
    rejected = [not r["accepted"] for r in files.rounds]

    def line(name: str, key: str) -> Line:
        return Line(name, x, [r["metrics"].get(f"health/{key}", math.nan) for r in files.rounds], rejected=rejected)

    pairs, steps = len(_labels(files, 0)), int(files.rounds[0]["metrics"]["health/ladder_steps"])
    on = f"{files.heldout} held-out images"
    agree = [line("comparing votes", "agree_compare"), line("rating votes", "agree_rate")]
    ladder = [line("ratings", "ladder_rate_accuracy"), line("votes", "ladder_vote_accuracy")]
    figures = [
        _figure(
            "Ratings agree with votes", line_chart(agree, "round", "share of pairs", span=0.1), line_legend(agree),
            f"{pairs} pairs of {on}, the votes taken with the prompt of the round. The gate goes by "
            f"{'human scores' if files.supervised else 'the votes at the start'} instead, see gain.",
        ),
        _figure(
            "Ladder accuracy", line_chart(ladder, "round", "share of steps right", span=0.1), line_legend(ladder),
            f"{steps} steps between held-out images and stronger and stronger known degradations; a coin gets 0.5.",
        ),
    ]  # fmt: skip
    spread = [line("scores, 1 to 5", "score_std")]
    drawing = line_chart(spread, "round", "standard deviation", span=0.2)
    figures.append(_figure("Score spread", drawing, line_legend(spread), f"{on}. A fall toward 0 is collapse."))
    if srcc := srcc_by_round(files):
        values, low, high = ([number[key] for number in srcc] for key in ("value", "low", "high"))
        human = [Line("SRCC, 95 % interval", x, values, low, high, rejected)]
        drawing = line_chart(human, "round", "SRCC", span=0.1)
        note = f"{files.evaluation(0)['n']} images, measured only: training never sees these scores."
        figures.append(_figure("Agreement with human scores", drawing, line_legend(human), note))
    return f'<h2>Round by round</h2><div class="grid">{"".join(figures)}</div>'


def _rounds_table(files: RunFiles) -> str:
    srcc = srcc_by_round(files)
    head = ["round", "verdict", "gain", "at least", "pairs kept", "agree", "ladder", "spread", "saturated"]
    head += ["SRCC"] if srcc else []
    rows = []
    for index, record in enumerate(files.rounds):
        m, number = record["metrics"], record["round"]
        said = ("accepted" if record["accepted"] else "rejected") if number else "start"
        why = escape(record["reason"])
        row = [str(number), f'<span class="{said}">{said}</span><br><span class="soft">{why}</span>']
        row += [_n(m, "gate/gain", "+.3f"), _n(m, "gate/gain_low", "+.3f"), _n(m, "votes/kept_fraction", ".0%")]
        row += [_n(m, f"health/{name}") for name in ("agree_compare", "ladder_rate_accuracy", "score_std")]
        rows.append([*row, _n(m, "prompt/saturated_fraction", ".0%"), *([interval(srcc[index], 2)] if srcc else [])])
    gain = "how many more of the held-out pairs the ratings order as the votes at the start did"
    if files.supervised:
        gain = "rise of the SRCC with the human scores of held-out images"
    note = (
        "A round is built upon only when it is accepted; the next one starts again from the last accepted prompt. "
        f"Gain: {gain}, against the prompt accepted before; at least: with {files.recipe.gate.confidence:.0%} "
        "confidence. Agree: with the comparing votes. Saturated: values of the prompt at their limit."
    )
    return _table(head, rows, numbers=range(2, len(head))) + f'<p class="soft">{note}</p>'


def _training(files: RunFiles) -> str:
    """The loss of every step, round after round."""
    losses: list[float] = []
    smooth: list[float] = []
    marks = []
    for record in files.rounds[1:]:
        steps = [row["train/loss"] for row in read_lines(files.folder(record["round"]) / "steps.jsonl")]
        marks.append((float(len(losses)), f"round {record['round']}{'' if record['accepted'] else ', rejected'}"))
        losses += steps
        smooth += _running_mean(steps, 9)
    if not losses:
        return ""
    x = [float(step) for step in range(len(losses))]
    lines = [Line("mean of 9 steps", x, smooth), Line("one step", x, losses, faint=True)]
    if len(marks) > 8:
        marks = [(place, text.split()[1].rstrip(",")) for place, text in marks]
    name, *others = files.objectives.values()
    label = "loss" if others else f"{name} loss{', 0 to 1' * (name == 'fidelity')}"
    drawing = line_chart(lines, "optimiser step", label, span=0.02, whole=False, dots=False, marks=marks, width=WIDE)
    learnt = " or ".join(f"{what} ({objective})" for what, objective in files.objectives.items())
    note = f"Each step is one group of images, so single steps differ. On {learnt}, not held out."
    return "<h2>Training</h2>" + _figure("Loss", drawing, line_legend(lines, dots=False), note, wide=True)


def _prompt(files: RunFiles) -> str:
    """The accepted prompt, what it does to three images, and the candidates of all rounds."""
    prompt = read_prompt(files.folder(files.now["round"]) / "prompt")
    parts = ["<h2>The prompt</h2>"]
    if prompt.largest:
        side, gain = prompt.delta.shape[0], 0.5 / prompt.largest
        plain = img(on_grey(prompt), "the prompt", 240, css="sharp")
        strong = img(on_grey(prompt, gain), "the prompt, amplified", 240, css="sharp")
        most = f"no value changes by more than {prompt.largest:.2f} of the range"
        text = f"as it is, over mid-grey: {side} x {side} px, {most}"
        more = f"amplified {gain:.2g} times: the largest change fills the range"
        parts.append(f'<div class="row">{_picture(plain, text)}{_picture(strong, more)}</div>')
        parts.append(_examples(files, prompt))
    else:
        parts.append("<p>The accepted prompt is all zeros, which is exactly the bare judge.</p>")
    parts.append(_candidates(files))
    return "".join(parts)


def _examples(files: RunFiles, prompt: Shown) -> str:
    """Three of the user's images as the judge sees them, without and with the prompt."""
    family = FAMILIES[files.record["judge"]["family"]]
    rows = [row for row in files.images if row["role"] == "heldout"]
    chosen = [rows[k] for k in np.linspace(0, len(rows) - 1, min(_SHOWN, len(rows))).round().astype(int)]
    try:
        views = [judged_view(row, family.fit, prompt.delta.shape[0]) for row in chosen]
    except DataError:
        return f"<p>Images with and without the prompt are not shown: {_GONE}.</p>"
    figures = []
    for row, view in zip(chosen, views, strict=True):
        bare = img(view, f"{row['name']} without the prompt", _THUMB, most=256)
        prompted = img(with_prompt(view, prompt), f"{row['name']} with the prompt", _THUMB, most=256)
        figures.append(_picture(f'<div class="pair">{bare}{prompted}</div>', row["name"]))
    kind = "; of the four tiles around its centre the judge sees, one is shown" if family.fit == "tiles" else ""
    note = f"<h3>Held-out images as the judge sees them</h3><p class='soft'>Without and with the prompt{kind}.</p>"
    return f'{note}<div class="row">{"".join(figures)}</div>'


def _candidates(files: RunFiles) -> str:
    prompts = [(record, read_prompt(files.folder(record["round"]) / "prompt")) for record in files.rounds[1:]]
    largest = max((prompt.largest for _, prompt in prompts), default=0.0)
    if not largest:
        return ""
    figures = []
    for record, prompt in prompts:
        said = "accepted" if record["accepted"] else "rejected"
        text = f"round {record['round']}: <span class='{said}'>{said}</span><br><code>{prompt.sha}</code>"
        alt = f"candidate of round {record['round']}"
        picture = img(on_grey(prompt, 0.5 / largest), alt, 112, css="sharp", most=224)
        figures.append(f"<figure>{picture}<figcaption>{text}</figcaption></figure>")
    note = f"<p class='soft'>All amplified {0.5 / largest:.2g} times.</p>"
    return f'<h3>Candidates of all rounds</h3>{note}<div class="row">{"".join(figures)}</div>'


def _labels(files: RunFiles, number: int) -> list[dict[str, str]]:
    file = files.folder(number) / "pseudo_labels.csv"
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def _pairs(files: RunFiles) -> str:
    """The votes of the last round that voted: how clear they are, and the clearest and closest pairs."""
    tables = ((record["round"], _labels(files, record["round"])) for record in reversed(files.rounds))
    number, rows = next(((n, found) for n, found in tables if found), (0, []))
    if not rows:
        return ""
    share = np.array([float(row["share"]) for row in rows])
    clear = np.maximum(share, 1 - share)
    kept = np.array([row["kept"] == "True" for row in rows])
    edges = np.linspace(0.5, 1, 11)
    stacks = [("left out", _bins(clear[~kept], edges)), ("kept", _bins(clear[kept], edges))]
    chart = histogram(stacks, edges.tolist(), "share of the votes for the winner", "pairs")
    least = files.recipe.vote.min_confidence
    note = f"{len(rows)} pairs, {kept.mean():.0%} of them with at least {least:g} for the winner (vote.min_confidence)."
    where = f"round {number}" if number else "the start, on held-out images"
    order = np.argsort(-clear, kind="stable")
    pairs = [("Clearest pairs", order[:_PAIRS]), ("Closest pairs", order[::-1][:_PAIRS])]
    try:
        drawn = [(title, "".join(_pair(files, rows[k]) for k in few)) for title, few in pairs]
        cards = [f'<h3>{title}</h3><div class="row">{row}</div>' for title, row in drawn]
    except DataError:
        cards = [f"<p>Pairs are not shown: {_GONE}.</p>"]
    figure = _figure("How clear the votes are", chart, bar_legend([name for name, _ in stacks]), note)
    return f'<h2>Votes of {where}</h2><div class="grid">{figure}</div>{"".join(cards)}'


def _pair(files: RunFiles, row: dict[str, str]) -> str:
    """Two thumbnails, the winner outlined. Degraded images of the ladder are only named."""
    share = float(row["share"])
    parts = []
    for side, won in (("a", share > 0.5), ("b", share < 0.5)):
        key, name = int(row[side]), row[f"image_{side}"]
        if key < len(files.images):
            parts.append(img(thumbnail(files.images[key], _THUMB), name, _THUMB, css="won" if won else ""))
        else:
            parts.append(f"<span>{escape(name)}</span>")
    winner = row["image_a" if share > 0.5 else "image_b"]
    text = "a tie" if share == 0.5 else f"{max(share, 1 - share):.2f} for {winner}"
    return _picture(f'<div class="pair">{"".join(parts)}</div>', text)


def _health(files: RunFiles) -> str:
    """All health measures at the start and with the accepted prompt, with what they mean."""
    start, now = health(files.rounds[0]), health(files.now)
    accepted = files.now["round"] > 0
    columns = [(start, worries(start, start)), *([(now, worries(now, start))] if accepted else [])]
    head = ["measure", "start", *([f"round {files.now['round']}"] if accepted else []), "what it is", "worry when"]
    rows = []
    for name, measure in MEASURES.items():
        form = ".0f" if name == "ladder_steps" else ".3f"
        cells = [
            f'<span class="worry">{_n(values, name, form)} (worry)</span>' if name in named else _n(values, name, form)
            for values, named in columns
        ]
        rows.append([f"<code>{name}</code>", *cells, escape(measure.means), escape(measure.worry)])
    note = "All of it on held-out images and without human scores."
    return f'<h2>Health</h2><p class="soft">{note}</p>' + _table(head, rows, numbers=range(1, 1 + len(columns)))


def _recipe(files: RunFiles) -> str:
    changes = [line.partition(": ") for line in Recipe().differences(files.recipe)]
    rows = []
    for key, _, change in changes:
        default, _, value = change.partition(" -> ")
        rows.append([f"<code>{escape(key)}</code>", escape(default), escape(value)])
    body = _table(["key", "default", "this run"], rows) if rows else "<p>All keys have their default values.</p>"
    note = f"All keys are in recipe.yaml, fingerprint {files.recipe.fingerprint()}."
    return f'<h2>Recipe</h2>{body}<p class="soft">{note}</p>'


def _time(files: RunFiles) -> str:
    asked = {stage for record in files.rounds for stage in record["seconds"]}
    stages = [*(stage for stage in _STAGES if stage in asked), *sorted(asked - set(_STAGES))]
    if not stages:
        return ""
    rows = []
    for record in files.rounds:
        seconds = record["seconds"]
        cells = [_n(seconds, stage, ",.1f") for stage in stages]
        total = f"{sum(seconds.values()):,.1f}"
        rows.append([str(record["round"]), *cells, total, _n(record, "peak_memory_mib", ",.0f")])
    head = ["round", *(f"{stage}, s" for stage in stages), "sum, s", "peak memory so far, MiB"]
    return "<h2>Time and memory</h2>" + _table(head, rows, numbers=range(len(head)))


def _provenance(files: RunFiles) -> str:
    rows = [[f"<code>{escape(key)}</code>", escape(value)] for key, value in _flat(files.record)]
    if files.rounds:
        rows.append(["<code>prompt</code>", escape(files.now["prompt"])])
    return "<h2>Provenance</h2>" + _table(["", "from run.json"], rows)


def _use(files: RunFiles) -> str:
    if not files.rounds:
        return ""
    run = escape(str(files.path))
    return (
        f"<h2>Use it</h2><pre>evoprompt score IMAGES -p {run}\n"
        f"evoprompt evaluate {run} --eval-mos SCORES.csv</pre>"
        '<p class="soft">Scores go from 1 (bad) to 5 (excellent); evaluate compares with the bare judge.</p>'
    )


# -- building blocks -------------------------------------------------------------------------------------------------


def _figure(title: str, drawing: str, keys: str, note: str, *, wide: bool = False) -> str:
    start = '<figure class="wide">' if wide else "<figure>"
    return f"{start}<h3>{escape(title)}</h3>{keys}{drawing}<figcaption>{escape(note)}</figcaption></figure>"


def _picture(image: str, text: str) -> str:
    return f"<figure>{image}<figcaption>{escape(text)}</figcaption></figure>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """A table of cells that are HTML already; ``numbers`` are the columns set to the right."""
    right = set(numbers)

    def cells(tag: str, row: Sequence[str]) -> str:
        kinds = (" class='n'" if k in right else "" for k in range(len(row)))
        return "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, row, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{cells("th", head)}</tr></thead><tbody>{body}</tbody></table></div>'


def _n(numbers: Any, key: str, form: str = ".3f") -> str:
    """A number for a table, empty where there is none."""
    value = numbers.get(key, math.nan)
    return format(value, form) if math.isfinite(value) else ""


def _bins(values: Any, edges: Any) -> list[int]:
    return [int(n) for n in np.histogram(values, edges)[0]]


def _flat(body: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in body.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif value not in (None, [], ""):
            yield f"{prefix}{key}", str(value)


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean over ``width`` neighbours, fewer at the ends."""
    half = width // 2
    windows = [values[max(0, k - half) : k + half + 1] for k in range(len(values))]
    return [math.fsum(window) / len(window) for window in windows]
