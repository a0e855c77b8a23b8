"""Commands for prompts as files: look at one, read one that others released."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from evoprompt.errors import DataError
from evoprompt.options import OUT_FOLDER, PATH
from evoprompt.questions import FAMILIES, choose


@click.group()
def prompt() -> None:
    """Look at a prompt, or import one that others released."""


@prompt.command()
@click.argument("folder")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(folder: str, as_json: bool) -> None:
    """What a prompt is and where it comes from; loads no model."""
    from evoprompt.scoring import load_prompt

    loaded = load_prompt(folder)
    if loaded is None:
        raise click.BadParameter("none is the bare judge, not a prompt")
    facts = {
        "sha": loaded.sha(),
        **asdict(loaded.config),
        "values": loaded.n_values,
        "saturated": loaded.saturated_fraction(),
        "seen images": sum(1 for _ in loaded.origin.seen),
        **{f"origin {key}": value for key, value in loaded.origin.facts().items()},
    }
    click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(f"{k:<20}{v}" for k, v in facts.items()))


@prompt.command("import")
@click.argument("file", type=PATH)
@click.option("--kind", required=True, type=click.Choice(["border", "patch", "overlay"]), help="Its shape.")
@click.option("--size", default=30, type=click.IntRange(min=1), help="Width of the border or side of the patch, px.")
@click.option("--place", default="centre", type=click.Choice(["centre", "top-left"]), help="Where a patch sits.")
@click.option("--image-size", default=448, type=click.IntRange(min=1), help="Side of the judge's images, px.")
@click.option("--judge", default="MAGAer13/mplug-owl2-llama2-7b", help="The judge it was trained with.")
@click.option("--family", default="owl2", type=click.Choice(list(FAMILIES)), help="How that judge is asked.")
@click.option("--question", default="good-fine", help="The question it was trained on.")
@click.option("-o", "--out", required=True, type=OUT_FOLDER, help="Prompt folder to write, new or empty.")
def import_prompt(
    file: Path, kind: str, size: int, place: str, image_size: int, judge: str, family: str, question: str, out: Path
) -> None:
    """Make a prompt folder of a released visual_prompt.pth (arXiv 2509.03494).

    Its images are cropped and normalised with ImageNet's constants, and scored by the good/fine readout, as the
    original did. Which images it was trained on is not in the file, so nothing can stop an evaluation on them; nor is
    whether it is to be added to the image or multiplied: it is added.
    """
    from evoprompt.prompts import PromptConfig
    from evoprompt.published import read_published

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not an empty folder. Choose a new one with --out.")
    try:
        choose(FAMILIES[family], question)
    except ValueError as error:
        raise DataError(f"--family {family} with --question {question} cannot be used: {error}.") from error
    config = PromptConfig(
        kind=kind, image_size=image_size, size=size, strength=1.0, place=place, preprocess="imagenet-crop"
    )
    loaded = read_published(file, config, judge, family, question)
    loaded.save(out)
    known = "taken as added to the image; the images it was trained on are not known"
    click.echo(f"{loaded.n_values:,} values in {out}, {known}.", err=True)
    click.echo(f"next     evoprompt score IMAGES -p {out}", err=True)
