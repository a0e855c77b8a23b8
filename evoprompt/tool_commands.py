"""Commands that look: at a judge, at recipes, at the installation."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from evoprompt.errors import DataError, RecipeError
from evoprompt.options import (
    PATH,
    PROMPT_HELP,
    judge_named,
    recipe_of,
    with_machine,
    with_recipe,
    with_skip,
)
from evoprompt.recipe_files import load_recipe, shipped_recipes


@click.command()
@click.argument("folder", type=PATH)
@click.option("-p", "--prompt", default="none", help=PROMPT_HELP)
@with_recipe
@click.option("--seed", type=click.IntRange(min=0), help="Seed of the panel.  [default: as in the recipe]")
@click.option("--all-kinds", is_flag=True, help="Ladder of all its 20 kinds at five strengths; takes longer.")
@with_skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
@with_machine
@click.pass_context
def judge(
    ctx: click.Context,
    /,
    folder: Path,
    prompt: str,
    all_kinds: bool,
    skip_unreadable: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Health of a judge on a folder of images, without any human score; docs/health.md defines the measures.

    With a prompt the judge is the one it belongs to, loaded as it was trained, whatever the recipe's judge is.
    """
    from evoprompt.degrade import LADDER_KINDS
    from evoprompt.findings import health_lines, worries
    from evoprompt.health import above_chance, check_judge
    from evoprompt.ladder import ladder_lines
    from evoprompt.scoring import load_prompt
    from evoprompt.session import open_images, open_judge, open_judge_of
    from evoprompt.tracking import Console

    console, device = Console(), options["device"]
    loaded = load_prompt(prompt)
    recipe = recipe_of(ctx, None if loaded is None else loaded.origin.judge)
    ways = [key for key in options["overrides"] if key.startswith("judge.") and not key.startswith("judge.id=")]
    if loaded is not None and ways:
        raise RecipeError(f"-s {ways[0]} does not go with -p: a prompt says how its judge is asked. Leave one out.")
    images = open_images([folder], skip_unreadable, console)
    if len(images) < 2:
        raise DataError(f"{folder} has 1 distinct image, and a judge compares images; give at least 2.")
    if loaded is None:
        chosen = open_judge(recipe, device, console)
    else:
        chosen = open_judge_of(loaded, judge_named(ctx), recipe, device, options["dtype"], console)
    chosen.attach(loaded)
    if all_kinds:
        recipe = replace(recipe, ladder=replace(recipe.ladder, kinds=len(LADDER_KINDS), levels=5))
    with ExitStack() as stack:
        reading = check_judge(
            chosen, images, recipe, lambda total: stack.enter_context(console.progress("judge", total))
        )
    health = reading.health.to_dict()
    fine, low = above_chance(reading.health)
    if as_json:
        body = {"judge": f"{chosen.id}@{chosen.revision}", "usable": fine, **health, "worries": worries(health, health)}
        click.echo(json.dumps({**body, "ladder": [asdict(rung) for rung in reading.ladder]}, indent=2))
        return
    click.echo("\n".join([*health_lines(health), "", *ladder_lines(reading.ladder)]))
    verdict = "is" if fine else "is not clearly"
    console.say(f"as a source of votes this judge {verdict} better than a coin (ladder accuracy at least {low:.2f}).")


@click.command()
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
        found = shipped_recipes()
        for key, line in found.items():
            click.echo(f"{key:<{max(map(len, found)) + 2}}{line}")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Versions, devices and cached weights, for bug reports."""
    from evoprompt.doctor import examine

    facts = examine()
    click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(f"{k:<22}{v}" for k, v in facts.items()))
