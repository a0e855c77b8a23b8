"""The command that scores images."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import click

from evoprompt.options import OUT_FILE, PATH, PROMPT_HELP, SOME_UNUSABLE, fail, with_machine


@click.command()
@click.argument("images", nargs=-1, required=True, type=PATH)
@click.option("-p", "--prompt", default="none", help=PROMPT_HELP)
@click.option("-o", "--out", type=OUT_FILE, help="CSV file to write; default: stdout.")
@click.option(
    "--anchors",
    help="Compare with the first five images of this source instead of rating; none = rate.  "
    "[default: the published ones for a bare Compare2Score judge, else none]",
)
@click.option("--batch-size", default=8, type=click.IntRange(min=1), help="Images at a time.")
@with_machine
def score(
    images: tuple[Path, ...],
    prompt: str,
    out: Path | None,
    anchors: str | None,
    batch_size: int,
    judge: str | None,
    device: str,
    dtype: str,
) -> None:
    """Score images and folders: 1 (bad) to 5 (excellent), as CSV."""
    from evoprompt.images import Listing
    from evoprompt.scoring import Scorer, columns
    from evoprompt.tracking import Console

    console = Console()
    found = Listing(images)
    scorer = Scorer.load(prompt, judge=judge, device=device, dtype=dtype, anchors=anchors)
    console.say(f"judge    {scorer.judge.id}@{scorer.judge.revision}; {scorer.judge.precision}")
    if scorer.anchors:
        console.say(f"anchors  {len(scorer.anchors.paths)} images of {scorer.anchors.source}, compared with, not rated")
    failed = 0
    file = out.open("w", encoding="utf-8", newline="") if out else sys.stdout
    writer = csv.DictWriter(file, columns(scorer.judge.family.rate[0]), lineterminator="\n")
    writer.writeheader()
    with console.progress("score", len(found)) as advance:
        for result in scorer.stream(found.paths(), batch_size, advance):
            failed += result.score is None
            writer.writerow(result.row())
    if out:
        file.close()
        console.say(f"{len(found) - failed} of {len(found)} images scored, in {out}")
    if failed:
        fail(f"{failed} of {len(found)} images could not be read; see the column 'error'.", SOME_UNUSABLE)
