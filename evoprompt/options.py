"""Options that several commands share, and how options become a recipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

from evoprompt.config import FEWER_BITS, Recipe
from evoprompt.errors import StartError
from evoprompt.recipe_files import load_recipe

if TYPE_CHECKING:
    from evoprompt.prompts import PromptConfig


class _Out(click.Path):
    """A path to write to. That it can be written to is checked before anything is computed for it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(str(super().convert(value, param, ctx)))
        from evoprompt.runs import check_place

        if not self.dir_okay and not path.parent.is_dir():
            raise StartError(f"there is no folder {path.parent} for {path.name}. Make it, or choose another --out.")
        if self.dir_okay or not path.exists():  # a file that is there may be a device in a folder of the system's
            check_place(path if self.dir_okay else path.parent)
        return path


PATH = click.Path(path_type=Path)
OUT_FILE = _Out(path_type=Path, dir_okay=False)
OUT_FOLDER = _Out(path_type=Path, file_okay=False)
SOME_UNUSABLE = 3
PROMPT_HELP = "Run folder, prompt folder, Hub id, owl2-nano (in the package), or none for the bare judge."


def fail(text: str, code: int) -> NoReturn:
    """Say it to people and exit."""
    click.echo(text, err=True)
    raise click.exceptions.Exit(code)


def combine(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several click options as one decorator."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


with_recipe = combine(
    click.option(
        "-r",
        "--recipe",
        help="Shipped recipe (see 'evoprompt recipes') or YAML file; default: nano, or label-free if there is a GPU.",
    ),
    click.option(
        "-s", "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key of the recipe; repeatable."
    ),
)
with_judge = combine(
    click.option("--judge", help="owl2-nano, a folder with an mPLUG-Owl2 checkpoint, or a Hub id."),
    click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps."),
)
with_machine = combine(
    with_judge,
    click.option(
        "--dtype",
        default="auto",
        type=click.Choice(["auto", "float32", "bfloat16", "float16", *FEWER_BITS]),
        help="Of the judge; auto is bfloat16 on a GPU, in as many bits as a prompt was trained with.",
    ),
)
with_eval_mos = click.option(
    "--eval-mos",
    type=PATH,
    help="Table or folder of images with human scores (docs/data.md), to measure on; never used to evolve or train.",
)
with_seen = click.option(
    "--seen",
    default="stop",
    type=click.Choice(["stop", "exclude", "keep"]),
    help="What to do with evaluation images that were also used to evolve or train.",
)
with_skip = click.option("--skip-unreadable", is_flag=True, help="Leave out images that cannot be read.")


def recipe_of(ctx: click.Context, judge: str | None = None) -> Recipe:
    """The recipe: shipped defaults < file < named flags that were typed < -s.

    Args:
        ctx: of the command.
        judge: what judges when the options do not say so.
    """
    typed = {k: ctx.params[k] for k in ctx.params if ctx.get_parameter_source(k) == ParameterSource.COMMANDLINE}
    keys = {"rounds": "rounds", "seed": "seed", "control": "control", "judge": "judge.id", "dtype": "judge.dtype"}
    if typed.get("dtype") in FEWER_BITS:
        keys["dtype"] = "judge.quantization"
    named = [f"{keys[k]}={v}" for k, v in typed.items() if k in keys]
    name = ctx.params["recipe"]
    if name is None:
        judge = judge_named(ctx) or judge
        name = default_recipe(judge, ctx.params.get("device", "auto"))
        name = {"nano": "nano-supervised", "label-free": "supervised"}[name] if ctx.info_name == "train" else name
        # The family in a recipe is that of the judge in it.
        named = named if judge is None else ["judge.family=auto", *named]
    return load_recipe(name, [*named, *ctx.params["overrides"]])


def started_from(recipe: Recipe, start: PromptConfig, overrides: Sequence[str]) -> Recipe:
    """A recipe with the geometry of the prompt that the run starts from, but for keys that ``-s`` gives."""
    typed = {override.partition("=")[0].strip() for override in overrides}
    keys = [key for key in asdict(recipe.prompt) if f"prompt.{key}" not in typed]
    return replace(recipe, prompt=replace(recipe.prompt, **{key: getattr(start, key) for key in keys}))


def judge_named(ctx: click.Context) -> str | None:
    """The judge that the options ask for, ``-s judge.id`` before ``--judge``; None when neither is there."""
    given = [text.partition("=") for text in ctx.params["overrides"]]
    ids = [value.strip() for key, _, value in given if key.strip() == "judge.id"]
    return ids[-1] if ids else ctx.params.get("judge")


def default_recipe(judge: str | None, device: str) -> str:
    """Without a word from the user: the embedded judge on a CPU, the 7B model on a GPU."""
    if judge is not None:
        return "nano" if judge == "owl2-nano" or _says_nano(Path(judge) / "config.json") else "label-free"
    if device == "cpu":
        return "nano"
    import torch

    return "label-free" if torch.cuda.is_available() else "nano"


def _says_nano(config: Path) -> bool:
    """Whether a checkpoint's config names the family of the embedded judge."""
    try:
        return bool(json.loads(config.read_text(encoding="utf-8"))["evoprompt_family"] == "nano")
    except (OSError, ValueError, KeyError, TypeError):
        return False  # loading it will say what is wrong with it
