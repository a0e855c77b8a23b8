"""Start a run, or continue one to the same bytes."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from pyarrow import parquet

from evoprompt import __version__
from evoprompt.config import Recipe
from evoprompt.errors import DataError, EvopromptError, RunError, listed
from evoprompt.evolution import Evolution, Measure, new_prompt, now
from evoprompt.images import ImageRecord, ImageSet
from evoprompt.judge import Judge
from evoprompt.prompts import PixelPrompt
from evoprompt.recipe_files import load_recipe
from evoprompt.runs import Run, write_text
from evoprompt.scoring import fits
from evoprompt.tracking import Console, Mirror
from evoprompt.voting import check_vote

MIN_IMAGES = 8


def evolve(
    recipe: Recipe,
    images: ImageSet,
    out: Path,
    judge: Judge,
    *,
    init_prompt: PixelPrompt | None = None,
    measure: Measure | None = None,
    force: bool = False,
    console: Console | None = None,
    mirror: Mirror | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Evolve a prompt from unlabelled images, in a new run directory.

    Args:
        recipe: what to do.
        images: at least 8 unlabelled images.
        out: the run directory; new or empty.
        judge: the frozen judge, as ``recipe.judge`` names it.
        init_prompt: warm start; None = zeros, the bare judge.
        measure: see ``Evolution``.
        force: go on with a judge whose votes are at chance.
        console: for people.
        mirror: takes the metrics of each round.
        provenance: what else ``run.json`` should remember.

    Returns:
        The run directory.

    Raises:
        DataError: with fewer than 8 images.
        RecipeError: when it asks for wordings or views that the judge does not have.
        JudgeError: when the judge's votes are at chance.
        RunError: when ``out`` is in use or training fails.
    """
    if len(images) < MIN_IMAGES:
        raise DataError(
            f"{len(images)} distinct images are too few to hold some out and vote on the rest; "
            f"give at least {MIN_IMAGES}."
        )
    check_vote(recipe.vote, judge)
    if init_prompt is not None:
        fits(init_prompt, judge)
    start = init_prompt or new_prompt(recipe, judge)
    record = {
        "version": __version__,
        "fingerprint": recipe.fingerprint(),
        "data": images.fingerprint(),
        "images": len(images),
        "judge": {"id": judge.id, "revision": judge.revision, "family": judge.family.name},
        "seed": recipe.seed,
        "rounds": recipe.rounds,
        "init_prompt": None if init_prompt is None else init_prompt.sha(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "device": str(judge.device),
        "started": now(),
        **(provenance or {}),
    }
    with Run.create(out, record, recipe.to_yaml()) as run:
        start.save(run.path / "start")
        evolution = Evolution(recipe, images, judge, run, console or Console(quiet=True), measure=measure, force=force)
        _save_images(run.path / "images.parquet", images, evolution.train_images)
        _go(evolution, start, mirror)
    return out


def resume(
    path: Path,
    load: Callable[[Recipe], Judge],
    *,
    rounds: int | None = None,
    measure: Callable[[Recipe, Judge], Measure | None] | None = None,
    force: bool = False,
    console: Console | None = None,
    mirror: Mirror | None = None,
) -> Path:
    """Continue a run to the same bytes it would have had, or extend it to more rounds.

    Args:
        path: the run directory.
        load: loads the judge that a recipe names.
        rounds: new number of rounds; None = as planned.
        measure: makes the ``measure`` of ``Evolution``.
        force: go on with a judge whose votes are at chance.
        console: for people.
        mirror: takes the metrics of each round.

    Raises:
        RunError: when images, judge or version are not those of the run, or it is in use.
    """
    with Run.open(path) as run:
        recipe = load_recipe(path / "recipe.yaml")
        done = len(run.rounds()) - 1
        if rounds is not None and rounds < done:
            raise RunError(f"{path} already has {done} rounds; --rounds {rounds} is fewer. Rounds can only be added.")
        if rounds is not None:
            recipe = replace(recipe, rounds=rounds)
            write_text(path / "recipe.yaml", recipe.to_yaml())
            run.save(rounds=rounds)
        images = _load_images(path / "images.parquet")
        judge = load(recipe)
        _same_identity(run, judge)
        run.settle()
        told = measure(recipe, judge) if measure else None
        evolution = Evolution(recipe, images, judge, run, console or Console(quiet=True), measure=told, force=force)
        _go(evolution, PixelPrompt.load(path / "start"), mirror)
    return path


def _go(evolution: Evolution, start: PixelPrompt, mirror: Mirror | None) -> None:
    if mirror is not None:
        evolution.mirror = mirror
    run = evolution.run
    run.save(status="running")
    try:
        evolution.go(start)
    except KeyboardInterrupt:
        run.save(status="interrupted")
        raise
    except EvopromptError as error:
        run.save(status="failed", error=str(error))
        raise


def _same_identity(run: Run, judge: Judge) -> None:
    was = run.record["judge"]
    if (judge.id, judge.revision) != (was["id"], was["revision"]):
        raise RunError(
            f"{run.path} was made with judge {was['id']}@{was['revision']}, this one is {judge.id}@{judge.revision}. "
            f"Start a new run from its prompt with --init-prompt {run.path}."
        )
    if run.record["version"].split(".")[0] != __version__.split(".")[0]:
        raise RunError(
            f"{run.path} was made with evoprompt {run.record['version']}, this is {__version__}. "
            f"Start a new run from its prompt with --init-prompt {run.path}."
        )


def _save_images(path: Path, images: ImageSet, train: np.ndarray) -> None:
    roles = np.where(np.isin(np.arange(len(images)), train), "train", "heldout")
    columns: dict[str, list[Any]] = {
        key: [getattr(r, key) for r in images.records] for key in ("name", "sha256", "width", "height")
    }
    columns["path"] = [str(record.path.resolve()) for record in images.records]
    columns["role"] = roles.tolist()
    parquet.write_table(pyarrow.table(columns), path)


def _load_images(path: Path) -> ImageSet:
    """The images of a run, each still there and unchanged.

    Raises:
        RunError: listing the first differences.
    """
    rows = parquet.read_table(path).to_pylist()
    records = tuple(
        ImageRecord(path=Path(r["path"]), name=r["name"], sha256=r["sha256"], width=r["width"], height=r["height"])
        for r in rows
    )
    wrong = [
        f"{record.path} ({'changed' if record.path.is_file() else 'missing'})"
        for record in records
        if not record.path.is_file() or hashlib.sha256(record.path.read_bytes()).hexdigest() != record.sha256
    ]
    if wrong:
        raise RunError(
            f"{len(wrong)} of {len(records)} images of this run are not as they were: {listed(wrong)}. "
            "Put them back, or start a new run with --init-prompt."
        )
    return ImageSet(records=records, sources=())
