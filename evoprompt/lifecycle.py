"""Start a run, or continue one to the same bytes."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from pyarrow import parquet

from evoprompt import __version__
from evoprompt.answers import answers_of
from evoprompt.catalogue import Catalogue, ImageRecord, write_catalogue
from evoprompt.config import Recipe, describe_keys, shown
from evoprompt.containers import absolute, content, exists
from evoprompt.errors import DataError, EvopromptError, RecipeError, RunError, StartError, listed, short
from evoprompt.evolution import Evolution, Measure, now
from evoprompt.health import split_images
from evoprompt.images import ImageSet
from evoprompt.judge import Judge
from evoprompt.mos import MosSet, check_mixture, images_of, keys_of, said_of, trainable
from evoprompt.processes import from_first, world
from evoprompt.prompts import PixelPrompt, PromptConfig
from evoprompt.questions import LEVELS
from evoprompt.recipe_files import load_recipe
from evoprompt.runs import Run, read_record, write_text
from evoprompt.scoring import fits, same_geometry
from evoprompt.tracking import Console, Mirror
from evoprompt.voting import check_vote, sources_of

MIN_IMAGES = 8


def evolve(
    recipe: Recipe,
    images: ImageSet,
    out: Path,
    judge: Judge,
    *,
    sets: Sequence[MosSet] = (),
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
        sets: human scores to mix in, see ``mos.read_sets``.
        init_prompt: warm start, of the recipe's geometry; None = zeros, the bare judge.
        measure: see ``Evolution``.
        force: go on with a judge whose votes are at chance.
        console: for people.
        mirror: takes the metrics of each round.
        provenance: what else ``run.json`` should remember.

    Returns:
        The run directory.

    Raises:
        DataError: with fewer than 8 images.
        RecipeError: when it asks for what the judge does not have, or for what does not go with human scores.
        JudgeError: when the judge's votes are at chance.
        RunError: when ``out`` is in use or training fails.
    """
    made = {"kind": "evolve", **(provenance or {})}
    with _begin(recipe, images, out, judge, sets, init_prompt, made) as run:
        told = console or Console(quiet=True)
        evolution = Evolution(recipe, images, judge, run, told, measure=measure, force=force, sets=sets)
        _go(evolution, mirror)
    return out


def train(
    recipe: Recipe,
    sets: Sequence[MosSet],
    out: Path,
    judge: Judge,
    *,
    init_prompt: PixelPrompt | None = None,
    measure: Measure | None = None,
    console: Console | None = None,
    mirror: Mirror | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Train a prompt on human scores alone, in a new run directory: the supervised counterpart of ``evolve``.

    Args:
        recipe: what to do; of its sections, ``vote`` only says how the panel is read.
        sets: human scores of at least 8 images in all, see ``mos.read_sets``.
        out: the run directory; new or empty.
        judge: the frozen judge, as ``recipe.judge`` names it.
        init_prompt: warm start, of the recipe's geometry; None = zeros, the bare judge.
        measure: see ``Evolution``.
        console: for people.
        mirror: takes the metrics of each round.
        provenance: what else ``run.json`` should remember.

    Returns:
        The run directory.

    Raises:
        DataError: with fewer than 8 images.
        RecipeError: when it asks for what the judge does not have.
        RunError: when ``out`` is in use or training fails.
    """
    images = images_of(sets)
    made = {"kind": "train", **(provenance or {})}
    with _begin(recipe, images, out, judge, sets, init_prompt, made) as run:
        told = console or Console(quiet=True)
        evolution = Evolution(recipe, images, judge, run, told, measure=measure, sets=sets, supervised=True)
        _go(evolution, mirror)
    return out


def check_plan(
    recipe: Recipe,
    images: ImageSet,
    judge: Judge,
    sets: Sequence[MosSet],
    supervised: bool,
    init_prompt: PixelPrompt | None = None,
) -> None:
    """Check what only recipe, images, judge, human scores and the prompt to start from together can tell.

    Raises:
        DataError: with too few images, or too few to train on when some are held out; with a prompt of another judge.
        RecipeError: with what is wrong and what to set.
    """
    if len(images) < MIN_IMAGES:
        what, use = (" with human scores", "train on") if supervised else ("", "vote on")
        raise DataError(
            f"{len(images)} distinct images{what} are too few to hold some out and {use} the rest; "
            f"give at least {MIN_IMAGES}."
        )
    check_vote(recipe.vote, judge)
    if init_prompt is not None:
        fits(init_prompt, judge)
        same_geometry(init_prompt.config, recipe.prompt)
    if recipe.grpo.rationale:
        answers_of(judge, recipe.grpo)
    if not sets:
        return
    heldout = keys_of(images, split_images(images, recipe.pairs.heldout, recipe.seed)[1])
    for chosen in sets:
        trainable(chosen, heldout)
    question = judge.family.rate[0]
    if "soft-kl" in recipe.mos.objective and question.answers != LEVELS:
        raise RecipeError(
            f"mos.objective {recipe.mos.objective} needs the five levels, but question {question.name} is answered "
            f"with {', '.join(question.answers)}; set -s judge.question=auto or -s mos.objective=mse."
        )
    if not supervised:
        check_mixture(recipe)
    elif recipe.train.objective == "grpo":
        raise RecipeError(
            "train.objective grpo rewards answers by votes, and a run on human scores alone takes none; leave it at "
            "fidelity and choose the loss against human scores with mos.objective."
        )


def _begin(
    recipe: Recipe,
    images: ImageSet,
    out: Path,
    judge: Judge,
    sets: Sequence[MosSet],
    init_prompt: PixelPrompt | None,
    made: Mapping[str, Any],
) -> Run:
    """A new run directory with everything a resumed run reads."""
    check_plan(recipe, images, judge, sets, made["kind"] == "train", init_prompt)
    record = {
        "version": __version__,
        "fingerprint": recipe.fingerprint(),
        "recipe": recipe.identity(),
        "data": images.fingerprint(),
        "images": len(images),
        "judge": {"id": judge.id, "revision": judge.revision, "family": judge.family.name},
        "seed": recipe.seed,
        "rounds": recipe.rounds,
        "init_prompt": None if init_prompt is None else init_prompt.sha(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "device": str(judge.device),
        "started": now(),
        "control": recipe.control,
        "train_mos": said_of(sets) if sets else None,
        **made,
    }

    def make() -> Run:
        run = Run.create(out, record, recipe.to_yaml())
        (init_prompt or new_prompt(recipe, judge)).save(run.path / "start")
        _save_images(run.path / "images.parquet", images, split_images(images, recipe.pairs.heldout, recipe.seed)[0])
        if sets:
            _save_sets(run.path / "mos.parquet", sets)
        return run

    return _held(make, out)


def _held(take: Callable[[], Run], path: Path) -> Run:
    """A run that the first process takes to write; the others read it when it is there."""
    taken: list[Run] = []
    from_first(lambda: taken.append(take()))
    return taken[0] if taken else Run(path, read_record(path), writes=False)


def resume(
    path: Path,
    load: Callable[[Recipe], Judge],
    *,
    rounds: int | None = None,
    settings: Sequence[str] = (),
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
        settings: ``key=value`` of other keys that may change in a continued run, see ``Recipe.identity``.
        measure: makes the ``measure`` of ``Evolution``.
        force: go on with a judge whose votes are at chance.
        console: for people.
        mirror: takes the metrics of each round.

    Raises:
        StartError: when recipe, images, judge or version are not those of the run, or it is in use.
        RunError: when training fails.
    """
    with _held(lambda: Run.open(path), path) as run:
        recipe = load_recipe(path / "recipe.yaml", settings)
        recipe = recipe if rounds is None else replace(recipe, rounds=rounds)
        check_recipe(path, run.record, recipe)
        done = len(run.rounds()) - 1
        if recipe.rounds < done:
            raise StartError(f"{path} already has {done} rounds; {recipe.rounds} is fewer. Rounds can only be added.")
        if run.writes:
            write_text(path / "recipe.yaml", recipe.to_yaml())
        run.save(rounds=recipe.rounds)
        images = _load_images(path / "images.parquet")
        sets = _load_sets(path / "mos.parquet") if (path / "mos.parquet").is_file() else ()
        judge = load(recipe)
        _same_identity(run, judge)
        run.settle()
        run.record.update(from_first(lambda: {"accepted_round": run.record["accepted_round"]}))
        told = measure(recipe, judge) if measure else None
        evolution = Evolution(
            recipe,
            images,
            judge,
            run,
            console or Console(quiet=True),
            measure=told,
            force=force,
            sets=sets,
            supervised=run.record.get("kind") == "train",
        )
        _go(evolution, mirror)
    return path


def plan_lines(
    recipe: Recipe, judge: Judge, images: ImageSet, out: Path, sets: Sequence[MosSet] = (), supervised: bool = False
) -> list[str]:
    """What a run is going to do, for people to read before it starts."""
    prompt, vote = new_prompt(recipe, judge), recipe.vote
    asked = vote.views * vote.wordings * sum({"compare": 2, "rate": 1}[source] for source in sources_of(vote))
    shape = "" if recipe.prompt.kind == "overlay" else f" {recipe.prompt.size} px"
    blocks = f" in blocks of {recipe.prompt.blocks} px" if recipe.prompt.blocks else ""
    _, heldout = split_images(images, recipe.pairs.heldout, recipe.seed)
    voted = "" if supervised else f"{recipe.pairs.per_round:,} pairs x {asked} votes, "
    lines = [
        f"prompt   {recipe.prompt.kind}{shape}{blocks}: {prompt.n_values:,} values trained",
        f"plan     {recipe.rounds} rounds x ({voted}{recipe.train.steps} steps of {recipe.pairs.group} images); "
        f"{len(heldout)} of {len(images)} images held out; writes {out}",
    ]
    if sets:
        share = "all" if supervised else f"{recipe.mos.fraction:.0%} of the"
        lines.append(f"labels   {said_of(sets)} in {share} steps, objective {recipe.mos.objective}")
    if recipe.control != "none":
        lines.append(f"control  {recipe.control}: every round is accepted, and no gain is learning")
    return lines


def new_prompt(recipe: Recipe, judge: Judge) -> PixelPrompt:
    """The prompt a run starts from: all zeros, which is exactly the bare judge."""
    prompt = recipe.prompt
    return PixelPrompt(
        PromptConfig(
            kind=prompt.kind,
            image_size=judge.image_size,
            size=prompt.size,
            blocks=prompt.blocks,
            strength=prompt.strength,
            place=prompt.place,
            preprocess=recipe.judge.preprocess,
        )
    )


def _go(evolution: Evolution, mirror: Mirror | None) -> None:
    if mirror is not None:
        evolution.mirror = mirror
    run = evolution.run
    run.save(status="running")
    try:
        evolution.go(PixelPrompt.load(run.path / "start"))
    except KeyboardInterrupt:
        run.save(status="interrupted")
        raise
    except EvopromptError as error:
        run.save(status="failed", error=str(error))
        raise
    except Exception as error:
        if world() == 1 or isinstance(error, torch.OutOfMemoryError) or not isinstance(error, RuntimeError):
            run.save(status="failed", error=f"{type(error).__name__}: {error}")
            raise
        # Whatever is sent to a process that is gone fails so.
        run.save(status="interrupted")
        raise RunError(
            f"the processes of this job can no longer work together ({short(error)}): one of them has failed, and says "
            f"why, or was ended. Nothing is lost: when its reason is gone, go on with 'evoprompt resume {run.path}'."
        ) from error


def check_recipe(path: Path, record: Mapping[str, Any], recipe: Recipe) -> None:
    """Check that a run is continued with the recipe it was started with, but for keys that do not define a run.

    Args:
        path: the run directory.
        record: its ``run.json``.
        recipe: to go on with.

    Raises:
        StartError: when other keys differ; it lists them.
    """
    if recipe.fingerprint() == record["fingerprint"]:
        return
    changed = ["recipe.yaml was changed"]
    if "recipe" in record:
        # A key that came into being since the run was started had its default.
        was = {**{key.name: key.default for key in describe_keys()}, **record["recipe"]}
        changed = [f"{k}: {shown(was[k])} -> {shown(v)}" for k, v in recipe.identity().items() if was[k] != v]
    if changed:
        raise StartError(
            f"{path} was started with another recipe: {listed(changed)}. Set that back, or start a new run from "
            f"its prompt with --init-prompt {path}."
        )


def _same_identity(run: Run, judge: Judge) -> None:
    was = run.record["judge"]
    if (judge.id, judge.revision) != (was["id"], was["revision"]):
        raise StartError(
            f"{run.path} was made with judge {was['id']}@{was['revision']}, this one is {judge.id}@{judge.revision}. "
            f"Start a new run from its prompt with --init-prompt {run.path}."
        )
    if run.record["version"].split(".")[0] != __version__.split(".")[0]:
        raise StartError(
            f"{run.path} was made with evoprompt {run.record['version']}, this is {__version__}. "
            f"Start a new run from its prompt with --init-prompt {run.path}."
        )


def _columns(records: Sequence[ImageRecord]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        key: [getattr(r, key) for r in records] for key in ("name", "sha256", "width", "height", "reference")
    }
    return {**columns, "path": [str(absolute(record.path)) for record in records]}


def _save_images(path: Path, images: ImageSet, train: np.ndarray) -> None:
    is_train = np.isin(np.arange(len(images)), train)
    records = (replace(record, path=absolute(record.path)) for record in images.records)
    write_catalogue(path, records, {"role": ("train" if role else "heldout" for role in is_train)})


def _save_sets(path: Path, sets: Sequence[MosSet]) -> None:
    """Human scores as training uses them, on the scale 1 to 5, so that a resumed run needs no label file."""
    tables = [
        pyarrow.table(
            {
                **_columns(chosen.records),
                "set": [chosen.name] * len(chosen),
                "number": [number] * len(chosen),
                "mos": chosen.mos,
                "std": np.full(len(chosen), np.nan) if chosen.std is None else chosen.std,
            }
        )
        for number, chosen in enumerate(sets)
    ]
    parquet.write_table(pyarrow.concat_tables(tables), path)


def _load_images(path: Path) -> ImageSet:
    """The images of a run, each still there and unchanged."""
    return ImageSet(records=_unchanged(Catalogue(path)), sources=())


def _load_sets(path: Path) -> tuple[MosSet, ...]:
    """The human scores of a run, their images still there and unchanged."""
    rows = parquet.read_table(path).to_pylist()
    records = _unchanged(Catalogue(path))
    sets = []
    # Runs of before sets had numbers tell them apart by name alone.
    kept = [(row.get("number"), row["set"]) for row in rows]
    for one in dict.fromkeys(kept):
        members = [k for k, other in enumerate(kept) if other == one]
        mos, std = (np.array([rows[k][key] for k in members]) for key in ("mos", "std"))
        known = None if np.isnan(std).all() else std
        sets.append(MosSet(name=one[1], records=tuple(records[k] for k in members), mos=mos, std=known))
    return tuple(sets)


def _unchanged(records: Catalogue) -> Catalogue:
    """The images of a run, after a look at each.

    Raises:
        StartError: listing the first that are not as they were.
    """
    wrong = [
        f"{record.path} ({'changed' if exists(record.path) else 'missing'})"
        for record in records
        if not exists(record.path) or hashlib.sha256(content(record.path)).hexdigest() != record.sha256
    ]
    if wrong:
        raise StartError(
            f"{len(wrong)} of {len(records)} images of this run are not as they were: {listed(wrong)}. "
            "Put them back, or start a new run with --init-prompt."
        )
    return records
