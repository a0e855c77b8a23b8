"""Commands that make or continue a run."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evoprompt.config import Recipe
from evoprompt.options import (
    PATH,
    combine,
    recipe_of,
    started_from,
    with_eval_mos,
    with_judge,
    with_recipe,
    with_seen,
    with_skip,
)
from evoprompt.recipe_files import load_recipe

if TYPE_CHECKING:
    from evoprompt.judge import Judge


with_run = combine(
    click.option("-o", "--out", type=PATH, help="Run directory, new or empty; default: runs/NAME of the first source."),
    click.option("--rounds", type=click.IntRange(min=1), help="Rounds of the run.  [default: as in the recipe]"),
    click.option("--init-prompt", type=PATH, help="Run or prompt folder to start from."),
)
with_track = combine(
    click.option("--track", default="none", type=click.Choice(["none", "wandb"]), help="Mirror the metrics."),
    click.option("--dry-run", is_flag=True, help="Check everything, print the plan, and stop."),
)


@click.command()
@click.option(
    "--unlabeled",
    "sources",
    multiple=True,
    required=True,
    type=PATH,
    help="Folder (searched to its bottom), image, table of images, tar file, hf:DATASET (docs/data.md); repeatable.",
)
@click.option(
    "--train-mos",
    multiple=True,
    type=PATH,
    help="Table or folder of images with human scores (docs/data.md) to mix in; repeatable.",
)
@click.option(
    "--control",
    default="none",
    type=click.Choice(["none", "random-labels", "shuffled-labels"]),
    help="Make it a control run: pseudo-labels tossed, or dealt to other pairs.",
)
@with_recipe
@with_run
@with_eval_mos
@with_seen
@with_skip
@with_judge
@with_track
@click.option("--force", is_flag=True, help="Go on with a judge whose votes are at chance.")
@click.pass_context
def evolve(ctx: click.Context, /, sources: tuple[Path, ...], **options: Any) -> None:
    """Evolve a pixel prompt from unlabelled images."""
    _run(ctx, sources, options["train_mos"], options)


@click.command()
@click.option(
    "--train-mos",
    required=True,
    multiple=True,
    type=PATH,
    help="Table or folder of images with human scores (docs/data.md); repeatable.",
)
@with_recipe
@with_run
@with_eval_mos
@with_seen
@with_judge
@with_track
@click.pass_context
def train(ctx: click.Context, /, train_mos: tuple[Path, ...], **options: Any) -> None:
    """Train a pixel prompt on human scores: the supervised counterpart of evolve."""
    _run(ctx, (), train_mos, {"skip_unreadable": False, "force": False, **options})


def _run(
    ctx: click.Context, sources: tuple[Path, ...], train_mos: tuple[Path, ...], options: Mapping[str, Any]
) -> None:
    """Make a run, alone or as one of several processes of a job."""
    recipe = recipe_of(ctx)
    first = (*sources, *train_mos)[0].resolve()
    out = options["out"] or Path("runs") / (first.stem if first.is_file() else first.name)
    from evoprompt.runs import check_new

    check_new(out)
    from evoprompt.processes import joined

    with _ended_politely(), joined(options["device"]) as device:
        _run_on(device, recipe, out, sources, train_mos, options)


@contextmanager
def _ended_politely() -> Iterator[None]:
    """Being asked to end (SIGTERM: a launcher, a scheduler) is an interruption like Ctrl-C: the run says so on disk."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


def _run_on(
    device: str,
    recipe: Recipe,
    out: Path,
    sources: tuple[Path, ...],
    train_mos: tuple[Path, ...],
    options: Mapping[str, Any],
) -> None:
    """Make a run, label-free, mixed or, without unlabelled images, supervised."""
    supervised = not sources
    from evoprompt import lifecycle
    from evoprompt.evaluation import measure_on
    from evoprompt.labels import open_labels
    from evoprompt.mos import images_of, read_sets
    from evoprompt.planning import dry_run
    from evoprompt.processes import first_of_machine, rank
    from evoprompt.scoring import load_prompt
    from evoprompt.session import finish, open_images, open_judge, open_mirror, unseen
    from evoprompt.tracking import Console

    console = Console(quiet=rank() > 0)
    init = load_prompt(options["init_prompt"])
    if init is not None:
        recipe = started_from(recipe, init.config, options["overrides"])
    labels = open_labels(options["eval_mos"], console) if options["eval_mos"] else None
    sets = read_sets(train_mos, recipe.mos, console)
    with first_of_machine():
        images = images_of(sets) if supervised else open_images(sources, options["skip_unreadable"], console)
    if labels is not None:
        before = () if init is None else init.origin.seen
        used = (key for chosen in (images, images_of(sets)) for record in chosen.records for key in record.keys)
        labels = unseen(labels, chain(before, used), options["seen"], console)
    with first_of_machine():
        judge = open_judge(recipe, device, console)
    lifecycle.check_plan(recipe, images, judge, sets, supervised, init)
    for line in lifecycle.plan_lines(recipe, judge, images, out, sets, supervised):
        console.say(line)
    if options["dry_run"]:
        for line in dry_run(recipe, images, judge, bool(sets), supervised):
            console.say(line)
        console.say("dry run: nothing was written.")
        return
    shared: dict[str, Any] = {
        "init_prompt": init,
        "measure": None if labels is None else measure_on(judge, labels, recipe.eval.batch_size, console.say),
        "console": console,
        "mirror": open_mirror("none" if rank() else options["track"], out, recipe, console),
        "provenance": {
            "command": shlex.join(["evoprompt", *sys.argv[1:]]),
            "options": {key: options[key] for key in ("device", "track", "force")},
            "eval": None if labels is None else {"path": str(options["eval_mos"].resolve()), "seen": options["seen"]},
            "skipped": [list(pair) for pair in images.skipped],
        },
    }
    if supervised:
        finish(out, console, lambda: lifecycle.train(recipe, sets, out, judge, **shared))
    else:
        force = options["force"]
        finish(out, console, lambda: lifecycle.evolve(recipe, images, out, judge, sets=sets, force=force, **shared))


@click.command()
@click.argument("run", type=PATH)
@click.option("--rounds", type=click.IntRange(min=1), help="Extend the run to this many rounds.")
@click.option(
    "-s",
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a key that does not define the run, such as eval.batch_size; repeatable.",
)
@click.option("--force", is_flag=True, help="Go on with a judge whose votes are at chance.")
def resume(run: Path, rounds: int | None, settings: tuple[str, ...], force: bool) -> None:
    """Continue an interrupted run, or extend a finished one."""
    from evoprompt.lifecycle import check_recipe
    from evoprompt.runs import read_record
    from evoprompt.tracking import Console

    record = read_record(run)
    settings = settings if rounds is None else (*settings, f"rounds={rounds}")
    recipe = load_recipe(run / "recipe.yaml", settings)
    check_recipe(run, record, recipe)
    if record["status"] == "finished" and recipe.rounds == record["rounds"]:
        Console().say(f"{run} is finished: {record['rounds']} rounds. Extend it with --rounds.")
        return
    # A run that was made from Python has no options of a command.
    made = {"device": record["device"], "track": "none", "force": False, **record.get("options", {})}
    made["force"] |= force
    from evoprompt.processes import joined

    with _ended_politely(), joined(made["device"]) as device:
        _resume_on(device, run, recipe, settings, made, record.get("eval"))


def _resume_on(
    device: str,
    run: Path,
    recipe: Recipe,
    settings: tuple[str, ...],
    options: Mapping[str, Any],
    evaluated: Mapping[str, Any] | None,
) -> None:
    """Continue a run, alone or as one of several processes of a job."""
    from evoprompt.evaluation import measure_on
    from evoprompt.labels import open_labels
    from evoprompt.lifecycle import resume as carry_on
    from evoprompt.processes import first_of_machine, rank
    from evoprompt.session import finish, open_judge, open_mirror, seen_by, unseen
    from evoprompt.tracking import Console

    console = Console(quiet=rank() > 0)

    def measure(recipe: Recipe, judge: Judge) -> Any:
        if not evaluated:
            return None
        labels = open_labels(Path(evaluated["path"]), console)
        labels = unseen(labels, seen_by(run), evaluated["seen"], console)
        return measure_on(judge, labels, recipe.eval.batch_size, console.say)

    def load(recipe: Recipe) -> Judge:
        with first_of_machine():
            return open_judge(recipe, device, console)

    mirror = open_mirror("none" if rank() else options["track"], run, recipe, console)
    finish(
        run,
        console,
        lambda: carry_on(
            run, load, settings=settings, measure=measure, force=options["force"], console=console, mirror=mirror
        ),
    )


@click.command()
@click.argument("run", type=PATH)
def report(run: Path) -> None:
    """Write report.html again from the files of a run; loads no model."""
    from evoprompt.report import write_report

    click.echo(write_report(run))
