"""The command line. It reads options, calls one function and prints: data on stdout, words for people on stderr."""

from __future__ import annotations

import csv
import json
import os
import shlex
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

from evoprompt import __version__
from evoprompt.config import Recipe, load_recipe, shipped_recipes
from evoprompt.errors import EvopromptError

if TYPE_CHECKING:
    from evoprompt.judge import Judge
    from evoprompt.prompts import PixelPrompt

PATH = click.Path(path_type=Path)
SOME_UNUSABLE = 3
INTERRUPTED = 130
ISSUES = "This is a bug in evoprompt. Run 'evoprompt doctor' and open an issue with its output and the lines above."


class _Commands(click.Group):
    """A group that turns our errors into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EvopromptError as error:
            _fail(f"Error: {error}", error.exit_code)
        except KeyboardInterrupt:
            _fail("Interrupted.", INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception:
            click.echo(ISSUES, err=True)
            raise


def _fail(text: str, code: int) -> NoReturn:
    click.echo(text, err=True)
    raise click.exceptions.Exit(code)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="evoprompt")
def main() -> None:
    """Evolve a pixel prompt for image quality assessment from unlabelled images, and score images with it."""
    # The tokenizer's own threads would be forked away from by data loaders, and it says so at length.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that spin while they wait make a busy machine many times slower; torch is not loaded yet, so this works.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_recipe = _options(
    click.option(
        "-r",
        "--recipe",
        help="Shipped recipe (see 'evoprompt recipes') or YAML file; default: nano, or label-free if there is a GPU.",
    ),
    click.option(
        "-s", "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key of the recipe; repeatable."
    ),
)
_machine = _options(
    click.option("--judge", help="owl2-nano, a folder with an mPLUG-Owl2 checkpoint, or a Hub id."),
    click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps."),
    click.option(
        "--dtype",
        default="auto",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        help="Of the judge; auto is bfloat16 on a GPU.",
    ),
)
_eval_mos = click.option(
    "--eval-mos", type=PATH, help="CSV of images and human scores, to measure on; never used to evolve."
)
_seen = click.option(
    "--seen",
    default="stop",
    type=click.Choice(["stop", "exclude", "keep"]),
    help="What to do with evaluation images that were also used to evolve.",
)
_skip = click.option("--skip-unreadable", is_flag=True, help="Leave out images that cannot be read.")


@main.command()
@click.option(
    "--unlabeled",
    "sources",
    multiple=True,
    required=True,
    type=PATH,
    help="Folder (searched to its bottom), image, or CSV of images; repeatable.",
)
@_recipe
@click.option("-o", "--out", type=PATH, help="Run directory, new or empty; default: runs/NAME of the first folder.")
@click.option("--rounds", type=click.IntRange(min=1), help="Rounds of evolution.  [default: as in the recipe]")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of everything random.  [default: as in the recipe]")
@click.option("--init-prompt", type=PATH, help="Run or prompt folder to start from.")
@_eval_mos
@_seen
@_skip
@_machine
@click.option("--track", default="none", type=click.Choice(["none", "wandb"]), help="Mirror the metrics.")
@click.option("--force", is_flag=True, help="Go on with a judge whose votes are at chance.")
@click.option("--dry-run", is_flag=True, help="Check everything, print the plan, and stop.")
@click.pass_context
def evolve(ctx: click.Context, /, sources: tuple[Path, ...], out: Path | None, **options: Any) -> None:
    """Evolve a pixel prompt from unlabelled images."""
    recipe = _load(ctx)
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


@main.command()
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


@main.command()
@click.argument("images", nargs=-1, required=True, type=PATH)
@click.option("-p", "--prompt", help="Run folder, prompt folder, or none for the bare judge.", default="none")
@click.option("-o", "--out", type=PATH, help="CSV file to write; default: stdout.")
@click.option("--batch-size", default=8, type=click.IntRange(min=1), help="Images at a time.")
@_machine
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
        _fail(f"{failed} of {len(paths)} images could not be read; see the column 'error'.", SOME_UNUSABLE)


@main.command()
@click.argument("prompts", nargs=-1)
@click.option("--eval-mos", required=True, type=PATH, help="CSV of images and human scores.")
@click.option("-o", "--out", type=PATH, help="Folder for evaluation.json, scores.csv and table.md.")
@click.option("--lower-better", is_flag=True, help="The human scores are better when lower (DMOS).")
@_seen
@click.option("--batch-size", default=8, type=click.IntRange(min=1), help="Images at a time.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
@_machine
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


@main.command()
@click.argument("folder", type=PATH)
@click.option("-p", "--prompt", help="Run folder, prompt folder, or none for the bare judge.", default="none")
@_recipe
@click.option("--seed", type=click.IntRange(min=0), help="Seed of the panel.  [default: as in the recipe]")
@_skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
@_machine
@click.pass_context
def judge(
    ctx: click.Context, /, folder: Path, prompt: str, skip_unreadable: bool, as_json: bool, **options: Any
) -> None:
    """Health of a judge on a folder of images, without any human score."""
    recipe = _load(ctx)
    from evoprompt.health import above_chance, check_judge
    from evoprompt.scoring import load_prompt
    from evoprompt.session import open_images, open_judge
    from evoprompt.tracking import Console

    console = Console()

    loaded = load_prompt(prompt)
    images = open_images([folder], skip_unreadable, console)
    chosen = open_judge(recipe, options["device"], console)
    chosen.attach(loaded)
    with ExitStack() as stack:
        health = check_judge(
            chosen, images, recipe, lambda total: stack.enter_context(console.progress("judge", total))
        )
    fine, low = above_chance(health)
    if as_json:
        click.echo(
            json.dumps({"judge": f"{chosen.id}@{chosen.revision}", "usable": fine, **health.to_dict()}, indent=2)
        )
        return
    for name, value in health.to_dict().items():
        click.echo(f"{name:<26}{value:.4g}")
    verdict = "can teach" if fine else "is not clearly better than a coin"
    console.say(f"as a source of votes this judge {verdict} (ladder accuracy at least {low:.2f}).")


@main.command()
@click.argument("run", type=PATH)
def report(run: Path) -> None:
    """Write report.html again from the files of a run; loads no model."""
    from evoprompt.report import write_report

    click.echo(write_report(run))


@main.command()
@click.argument("name", required=False)
@click.option("--check", type=PATH, help="Check a recipe file and stop.")
def recipes(name: str | None, check: Path | None) -> None:
    """List the shipped recipes, or print one with all its keys."""
    if check:
        load_recipe(str(check))
        click.echo(f"{check}: fine")
    elif name:
        click.echo(load_recipe(name).to_yaml(), nl=False)
    else:
        for key, line in shipped_recipes().items():
            click.echo(f"{key:<16}{line}")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Versions, devices and cached weights, for bug reports."""
    from evoprompt.doctor import examine

    facts = examine()
    click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(f"{k:<22}{v}" for k, v in facts.items()))


# -- what the commands share ------------------------------------------------------------------------------------------


def _load(ctx: click.Context) -> Recipe:
    """The recipe: shipped defaults < file < named flags that were typed < -s."""
    typed = {k: ctx.params[k] for k in ctx.params if ctx.get_parameter_source(k) == ParameterSource.COMMANDLINE}
    keys = {"rounds": "rounds", "seed": "seed", "judge": "judge.id", "dtype": "judge.dtype"}
    named = [f"{keys[k]}={v}" for k, v in typed.items() if k in keys]
    name = ctx.params["recipe"]
    if name is None:
        name = _default_recipe(ctx.params.get("judge"), ctx.params.get("device", "auto"))
    return load_recipe(name, [*named, *ctx.params["overrides"]])


def _default_recipe(judge: str | None, device: str) -> str:
    """Without a word from the user: the embedded judge on a CPU, the 7B model on a GPU."""
    if judge is not None:
        return "nano" if judge == "owl2-nano" else "label-free"
    if device == "cpu":
        return "nano"
    import torch

    return "label-free" if torch.cuda.is_available() else "nano"
