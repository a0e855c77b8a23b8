"""Commands that score images and hold the scores against human ones."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from evoprompt import __version__
from evoprompt.options import (
    PATH,
    SOME_UNUSABLE,
    fail,
    with_machine,
    with_seen,
)

if TYPE_CHECKING:
    from evoprompt.prompts import PixelPrompt


@click.command()
@click.argument("images", nargs=-1, required=True, type=PATH)
@click.option("-p", "--prompt", help="Run folder, prompt folder, or none for the bare judge.", default="none")
@click.option("-o", "--out", type=PATH, help="CSV file to write; default: stdout.")
@click.option("--batch-size", default=8, type=click.IntRange(min=1), help="Images at a time.")
@with_machine
def score(
    images: tuple[Path, ...], prompt: str, out: Path | None, batch_size: int, judge: str | None, device: str, dtype: str
) -> None:
    """Score images and folders: 1 (bad) to 5 (excellent), as CSV."""
    from evoprompt.images import find_images
    from evoprompt.scoring import COLUMNS, Scorer
    from evoprompt.tracking import Console

    console = Console()
    paths = find_images(images)
    scorer = Scorer.load(prompt, judge=judge, device=device, dtype=dtype)
    failed = 0
    file = out.open("w", encoding="utf-8", newline="") if out else sys.stdout
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    with console.progress("score", len(paths)) as advance:
        for result in scorer.stream(paths, batch_size, advance):
            failed += result.score is None
            writer.writerow(result.row())
    if out:
        file.close()
        console.say(f"{len(paths) - failed} of {len(paths)} images scored, in {out}")
    if failed:
        fail(f"{failed} of {len(paths)} images could not be read; see the column 'error'.", SOME_UNUSABLE)


@click.command()
@click.argument("prompts", nargs=-1)
@click.option("--eval-mos", required=True, type=PATH, help="CSV of images and human scores.")
@click.option("-o", "--out", type=PATH, help="Folder for evaluation.json, scores.csv and table.md.")
@click.option("--lower-better", is_flag=True, help="The human scores are better when lower (DMOS).")
@with_seen
@click.option("--batch-size", default=8, type=click.IntRange(min=1), help="Images at a time.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
@with_machine
def evaluate(
    prompts: tuple[str, ...],
    eval_mos: Path,
    out: Path | None,
    lower_better: bool,
    seen: str,
    batch_size: int,
    as_json: bool,
    judge: str | None,
    device: str,
    dtype: str,
) -> None:
    """Agreement with human scores: SRCC, PLCC, KRCC with intervals. The bare judge is always measured too."""
    from evoprompt.evaluation import evaluate as measure
    from evoprompt.evaluation import score_labels, table, write_evaluation
    from evoprompt.labels import read_labels
    from evoprompt.scoring import judge_for, load_prompt
    from evoprompt.session import unseen
    from evoprompt.tracking import Console

    console = Console()
    labels = read_labels(eval_mos, lower_better=lower_better)
    loaded: list[PixelPrompt | None] = [None, *(load_prompt(p) for p in prompts if p != "none")]
    names = ["none", *(p for p in prompts if p != "none")]
    labels = unseen(labels, sorted({digest for p in loaded if p for digest in p.origin.seen}), seen, console)
    chosen = judge_for(loaded, judge, device, dtype)
    with console.progress("score", len(labels.paths)) as advance:
        columns = score_labels(chosen, loaded, labels, batch_size, advance)
    named = dict(zip(names, columns, strict=True))
    rows = measure(named, labels.mos)
    if rows[0].srcc.value < -0.2:
        console.say(
            f"These labels look inverted: the bare judge has SRCC {rows[0].srcc.value:.2f}. "
            "If lower is better, add --lower-better."
        )
    body = {
        "version": __version__,
        "labels": str(eval_mos),
        "n": len(labels.mos),
        "lower_better": lower_better,
        "seen": seen,
        "judge": f"{chosen.id}@{chosen.revision}",
        "device": str(chosen.device),
        "protocol": "PLCC without mapping, KRCC tau-b, 95 % percentile bootstrap over images, 2000 resamples, seed 0",
        "rows": [row.to_dict() for row in rows],
    }
    if out:
        write_evaluation(out, body, rows, labels, named)
    console.say(f"{eval_mos}: {len(labels.mos)} images, higher is better, scores 1 to 5, judge {body['judge']}")
    click.echo(json.dumps(body, indent=2) if as_json else table(rows))
