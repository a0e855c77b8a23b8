"""Commands that look at data and split it; no judge is loaded."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from evoprompt.options import OUT_FILE, PATH, SOME_UNUSABLE


@click.group()
def data() -> None:
    """Look at images and human scores, and split them, before anything is run."""


@data.command()
@click.argument("path", type=PATH)
@click.option("--unlabeled", is_flag=True, help="Look at the images only, though there may be scores.")
@click.option("--images", type=PATH, help="Folder of the images that the table names.")
@click.option("--column", help="Header of the score.  [default: the usual ones]")
@click.option("--lower-better", is_flag=True, help="The scores are better when lower (DMOS).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(
    path: Path, unlabeled: bool, images: Path | None, column: str | None, lower_better: bool, as_json: bool
) -> None:
    """Say what is understood of PATH: counts, scale and direction, split, duplicates, files that cannot be used.

    PATH is a table of human scores, the folder of a set as distributed, or a source of images without scores. The exit
    code is 3 when some images cannot be used.
    """
    from evoprompt.catalogue import index_file
    from evoprompt.data_check import check_scores, check_unlabeled, has_scores
    from evoprompt.tracking import Console

    with Console().counted("images") as progress:
        said = images or column or lower_better  # then there are scores, and what is wrong with them is told
        if unlabeled or not (said or has_scores(path)):
            checked = check_unlabeled([path], index_file([path]), progress)
        else:
            checked = check_scores(path, images=images, lower_better=lower_better, column=column, progress=progress)
    if as_json:
        click.echo(json.dumps(checked.facts, indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(f"{word:<12}{sentence}" for word, sentence in checked.lines))
    if checked.problems:
        raise click.exceptions.Exit(SOME_UNUSABLE)


@data.command()
@click.argument("path", type=PATH)
@click.option("-o", "--out", type=OUT_FILE, help="Split file.  [default: beside the table, used by PATH#test]")
@click.option("--seed", default=0, type=click.IntRange(min=0), help="Another seed, another split.")
@click.option("--val", default=0.1, type=click.FloatRange(0, 1), help="Share for validation; 0 = no such part.")
@click.option("--test", default=0.2, type=click.FloatRange(0, 1, min_open=True), help="Share for testing.")
@click.option("--images", type=PATH, help="Folder of the images that the table names.")
@click.option("--own", is_flag=True, help="Draw a split although the table has an official one.")
def split(path: Path, out: Path | None, seed: int, val: float, test: float, images: Path | None, own: bool) -> None:
    """Split PATH into train, val and test: by reference image, by text prompt, or by content; the file is used again.

    A table with an official split keeps it, unless you say --own.
    """
    from collections import Counter

    from evoprompt.errors import DataError, counted
    from evoprompt.labels import open_labels, with_split
    from evoprompt.splits import make_split, read_split, split_file, write_split
    from evoprompt.tracking import Console

    if val + test >= 1:
        raise DataError(
            f"--val {val:g} and --test {test:g} leave nothing to train on. Give shares that sum to below 1."
        )
    labels = open_labels(path, Console(), images=images)
    target = out or split_file(labels.path)
    shares = {
        part: share for part, share in (("train", round(1 - val - test, 9)), ("val", val), ("test", test)) if share
    }
    if target.exists():
        found = read_split(target, labels.sha256)
        if (found.seed, found.shares) != (seed, shares):
            of = ", ".join(f"{part} {share:g}" for part, share in (found.shares or {}).items()) or "not recorded"
            raise DataError(
                f"{target} is there with seed {found.seed} and shares {of}. Ask for these, name another file with -o, "
                "or remove it."
            )
        labels, word = with_split(labels, found), "used again"
    elif labels.split and not own:
        word, target = "from the table; nothing is written", labels.path
    else:
        made = make_split(labels.sha256, labels.groups, labels.grouping, seed=seed, shares=shares)
        write_split(target, made)
        labels, word = with_split(labels, made), "written"
    click.echo(f"{'split':<12}{labels.how}, {word}: {target}")
    for part, count in sorted(Counter(where for where in labels.split or () if where).items()):
        chosen = labels.of_part(part)
        units = f", {counted(len(set(chosen.groups)), labels.grouping)}" if chosen.groups else ""
        click.echo(f"{part:<12}{counted(count, 'image')}{units}{'; ' + chosen.leaky if chosen.leaky else ''}")
    where = "" if target in (labels.path, split_file(labels.path)) else f"@{target}"
    click.echo(f"{'next':<12}evoprompt evaluate PROMPT --eval-mos {shlex.quote(f'{labels.path}#test{where}')}")
