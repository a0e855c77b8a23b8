"""Commands that make or continue a run."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evoprompt.config import Recipe
from evoprompt.options import (
    PATH,
    recipe_of,
    with_eval_mos,
    with_machine,
    with_recipe,
    with_seen,
    with_skip,
)
from evoprompt.recipe_files import load_recipe

if TYPE_CHECKING:
    from evoprompt.judge import Judge


@click.command()
@click.option(
    "--unlabeled",
    "sources",
    multiple=True,
    required=True,
    type=PATH,
    help="Folder (searched to its bottom), image, or CSV of images; repeatable.",
)
@with_recipe
@click.option("-o", "--out", type=PATH, help="Run directory, new or empty; default: runs/NAME of the first folder.")
@click.option("--rounds", type=click.IntRange(min=1), help="Rounds of evolution.  [default: as in the recipe]")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of everything random.  [default: as in the recipe]")
@click.option("--init-prompt", type=PATH, help="Run or prompt folder to start from.")
@with_eval_mos
@with_seen
@with_skip
@with_machine
@click.option("--track", default="none", type=click.Choice(["none", "wandb"]), help="Mirror the metrics.")
@click.option("--force", is_flag=True, help="Go on with a judge whose votes are at chance.")
@click.option("--dry-run", is_flag=True, help="Check everything, print the plan, and stop.")
@click.pass_context
def evolve(ctx: click.Context, /, sources: tuple[Path, ...], out: Path | None, **options: Any) -> None:
    """Evolve a pixel prompt from unlabelled images."""
    recipe = recipe_of(ctx)
    out = out or Path("runs") / (sources[0].resolve().stem if sources[0].suffix else sources[0].resolve().name)
    from evoprompt.runs import check_new

    check_new(out)
    from evoprompt.evaluation import measure_on
    from evoprompt.evolution import plan_lines
    from evoprompt.labels import read_labels
    from evoprompt.lifecycle import evolve as start
    from evoprompt.scoring import load_prompt
    from evoprompt.session import finish, open_images, open_judge, open_mirror, unseen
    from evoprompt.tracking import Console

    console = Console()

    init = load_prompt(options["init_prompt"])
    labels = read_labels(options["eval_mos"]) if options["eval_mos"] else None
    images = open_images(sources, options["skip_unreadable"], console)
    if labels is not None:
        before = () if init is None else init.origin.seen
        labels = unseen(labels, [*before, *(r.sha256 for r in images.records)], options["seen"], console)
    judge = open_judge(recipe, options["device"], console)
    for line in plan_lines(recipe, judge, images, out):
        console.say(line)
    if options["dry_run"]:
        console.say("dry run: nothing was written.")
        return
    provenance = {
        "command": shlex.join(["evoprompt", *sys.argv[1:]]),
        "options": {"device": options["device"], "track": options["track"], "force": options["force"]},
        "eval": None if labels is None else {"path": str(labels.path.resolve()), "seen": options["seen"]},
        "skipped": [list(pair) for pair in images.skipped],
    }
    measure = None if labels is None else measure_on(judge, labels, recipe.eval.batch_size)
    mirror = open_mirror(options["track"], out, recipe, console)
    finish(
        out,
        console,
        lambda: start(
            recipe,
            images,
            out,
            judge,
            init_prompt=init,
            measure=measure,
            force=options["force"],
            console=console,
            mirror=mirror,
            provenance=provenance,
        ),
    )


@click.command()
@click.argument("run", type=PATH)
@click.option("--rounds", type=click.IntRange(min=1), help="Extend the run to this many rounds.")
def resume(run: Path, rounds: int | None) -> None:
    """Continue an interrupted run, or extend a finished one."""
    from evoprompt.runs import read_record
    from evoprompt.tracking import Console

    record = read_record(run)
    console = Console()
    if record["status"] == "finished" and (rounds is None or rounds == record["rounds"]):
        console.say(f"{run} is finished: {record['rounds']} rounds. Extend it with --rounds.")
        return
    from evoprompt.evaluation import measure_on
    from evoprompt.labels import read_labels
    from evoprompt.lifecycle import resume as carry_on
    from evoprompt.session import finish, open_judge, open_mirror, seen_by, unseen

    options = record["options"]

    def measure(recipe: Recipe, judge: Judge) -> Any:
        if not record["eval"]:
            return None
        labels = read_labels(Path(record["eval"]["path"]))
        seen = seen_by(run)
        return measure_on(judge, unseen(labels, seen, record["eval"]["seen"], console), recipe.eval.batch_size)

    def load(recipe: Recipe) -> Judge:
        return open_judge(recipe, options["device"], console)

    mirror = open_mirror(options["track"], run, load_recipe(str(run / "recipe.yaml")), console)
    finish(
        run,
        console,
        lambda: carry_on(
            run, load, rounds=rounds, measure=measure, force=options["force"], console=console, mirror=mirror
        ),
    )


@click.command()
@click.argument("run", type=PATH)
def report(run: Path) -> None:
    """Write report.html again from the files of a run; loads no model."""
    from evoprompt.report import write_report

    click.echo(write_report(run))
