"""Commands that look: at a judge, at recipes, at the installation."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from evoprompt.options import (
    PATH,
    recipe_of,
    with_machine,
    with_recipe,
    with_skip,
)
from evoprompt.recipe_files import load_recipe, shipped_recipes


@click.command()
@click.argument("folder", type=PATH)
@click.option("-p", "--prompt", help="Run folder, prompt folder, or none for the bare judge.", default="none")
@with_recipe
@click.option("--seed", type=click.IntRange(min=0), help="Seed of the panel.  [default: as in the recipe]")
@with_skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
@with_machine
@click.pass_context
def judge(
    ctx: click.Context, /, folder: Path, prompt: str, skip_unreadable: bool, as_json: bool, **options: Any
) -> None:
    """Health of a judge on a folder of images, without any human score."""
    recipe = recipe_of(ctx)
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
        for key, line in shipped_recipes().items():
            click.echo(f"{key:<16}{line}")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Versions, devices and cached weights, for bug reports."""
    from evoprompt.doctor import examine

    facts = examine()
    click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(f"{k:<22}{v}" for k, v in facts.items()))
