"""From what is typed to rows of a results table: prompts are scored, scores files are read, and both are held to MOS.

A model is loaded, and torch imported, only when a prompt or the bare judge has to be scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evoprompt import __version__
from evoprompt.errors import DataError, counted, listed
from evoprompt.evaluation import Protocol, check_target, complete, evaluate_columns
from evoprompt.labels import Labels, open_labels, without_seen
from evoprompt.questions import LEVELS
from evoprompt.score_files import Column, ScoreFile, Target, read_scores, target_of
from evoprompt.tracking import Console

if TYPE_CHECKING:
    from evoprompt.judge import Judge
    from evoprompt.prompts import PixelPrompt

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure, as typed.

    Attributes:
        items: Run or prompt folders, Hub ids, ``none``, scores files; each may be given a name, NAME=ITEM.
        eval_mos: Images and human scores; None takes the human scores of the scores files.
        lower_better: The human scores are better when lower.
        images: Folder of the images that the table names; None looks for them as ``read_labels`` does.
        column: Header of the human scores; None takes the one usually meant.
        seen: What to do with images that prompts were trained on, see ``labels.without_seen``.
        batch_size: Images scored at a time.
        judge: Another judge than the prompts'; None for theirs, or the embedded one.
        device: See ``judge.load_judge``.
        dtype: See ``scoring.judge_for``.
        vote_pairs: Pairs that the bare judge votes on for the row without training; 0 for no such row.
        protocol: How agreement is measured.
    """

    items: tuple[str, ...]
    eval_mos: Path | None
    lower_better: bool = False
    images: Path | None = None
    column: str | None = None
    seen: str = "stop"
    batch_size: int = 8
    judge: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    vote_pairs: int = 0
    protocol: Protocol = Protocol()


@dataclass(frozen=True, eq=False)
class Measured:
    """Scores of all images, what they were held against, and the JSON of what came of it."""

    target: Target
    columns: list[Column]
    body: dict[str, Any]


def measure(request: Request, console: Console) -> Measured:
    """Score what has to be scored, read the rest, and evaluate all of it on the same images.

    Raises:
        DataError: when an item is neither a prompt nor a scores file, images do not match, or were trained on.
        JudgeError: when the judge cannot be loaded.
    """
    return measure_all(request, [request.eval_mos], console)[0]


def measure_all(request: Request, sets: Sequence[Path | None], console: Console) -> list[Measured]:
    """The same items on several sets of human scores; all sets are checked before the first is scored.

    Args:
        request: its ``eval_mos`` is not used.
        sets: images and human scores; None takes the human scores of the scores files.
        console: for progress and warnings.

    Returns:
        What came of each set.
    """
    items = _open(request)
    checked = [_check(replace(request, eval_mos=path), items, console) for path in sets]
    return [_measure(items, one, console) for one in checked]


@dataclass(frozen=True, eq=False)
class _Items:
    """The items of a request, opened; the judge is loaded when it is first needed, and once."""

    request: Request
    files: list[tuple[str, ScoreFile]]
    prompts: list[tuple[str, PixelPrompt | None]]

    @property
    def scored(self) -> bool:
        """Whether anything has to be scored by a model."""
        return bool(self.prompts)

    @cached_property
    def judge(self) -> Judge:
        """The judge that the prompts belong to."""
        from evoprompt.scoring import judge_for

        request = self.request
        return judge_for([prompt for _, prompt in self.prompts], request.judge, request.device, request.dtype)


def _open(request: Request) -> _Items:
    named = [_named(item) for item in request.items]
    files = [(method, read_scores(Path(item))) for method, item in named if _is_file(item)]
    others = [(method, item) for method, item in named if not _is_file(item)]
    if files and not others:
        return _Items(request, files, [])
    from evoprompt.scoring import load_prompt

    prompts = [(method, load_prompt(item)) for method, item in others if item != "none"]
    return _Items(request, files, [("none", None), *prompts])


@dataclass(frozen=True, eq=False)
class _Checked:
    """A set of human scores that can be measured on, and the columns of scores files on its images."""

    request: Request
    labels: Labels | None
    target: Target
    columns: list[Column]


def _check(request: Request, items: _Items, console: Console) -> _Checked:
    """All of a set that can be refused is refused here, before a judge is loaded."""
    labels = _labels(request, items, console)
    target = target_of(labels) if labels else _common_target(items.files)
    check_target(target, request.protocol)
    return _Checked(request, labels, target, _from_files(items.files, target, labels, items.scored))


def _labels(request: Request, items: _Items, console: Console) -> Labels | None:
    """Human scores of a set, less the images that must not be measured on."""
    path = request.eval_mos
    if path is None:
        if items.scored:
            raise DataError("there are no human scores to hold these prompts against. Give them with --eval-mos.")
        if request.images or request.column or request.lower_better:
            raise DataError(
                "--images, --column and --lower-better say how the table of --eval-mos is read, and there is none. "
                "Give --eval-mos, or leave them out."
            )
        return None
    labels = open_labels(path, console, images=request.images, lower_better=request.lower_better, column=request.column)
    trained_on = chain.from_iterable(prompt.origin.seen for _, prompt in items.prompts if prompt)
    left, n_seen = without_seen(labels, trained_on, request.seen)
    if n_seen and request.seen == "keep":
        console.say(f"warning  {n_seen} of the {len(labels)} evaluation images were seen; this is not a test.")
    return left


def _measure(items: _Items, checked: _Checked, console: Console) -> Measured:
    request, labels, target = checked.request, checked.labels, checked.target
    columns = _score(request, items, labels, console) if labels and items.scored else []
    columns = _unlike(columns + checked.columns)
    if not any(column.kind == "bare" for column in columns):
        console.say("note     no scores of the bare judge are among these, so there are no differences to it.")
    rows, left_out = evaluate_columns(target, columns, request.protocol)
    kept = complete(target, columns)[0]
    bare = next((row.srcc.value for row in rows if row.kind == "bare"), 0.0)
    if bare < -0.2:
        console.say(
            f"warning  these human scores look inverted: the bare judge has SRCC {bare:.2f}. If lower is better, add "
            "--lower-better."
        )
    body = {
        "schema": SCHEMA,
        "version": __version__,
        "labels": str(request.eval_mos or items.files[0][1].path),
        "n": len(kept.images),
        "left_out": left_out,
        "split": target.split,
        "direction": target.direction,
        "seen": request.seen if labels else "as the scores file has it",
        "judge": _of_columns(columns, "judge") or "not stated in the scores file",
        "precision": _of_columns(columns, "precision"),
        "protocol": _protocol(request.protocol, kept),
        "rows": [row.to_dict() for row in rows],
    }
    return Measured(target, columns, body)


def _of_columns(columns: Sequence[Column], key: str) -> str:
    """The judge or precision of all columns; where they differ, which columns have which; empty when none states it."""
    found: dict[str, list[str]] = {}
    for column in columns:
        found.setdefault(getattr(column, key), []).append(column.name)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{value or 'not stated'} for {', '.join(names)}" for value, names in found.items())


def _protocol(protocol: Protocol, target: Target) -> dict[str, Any]:
    units = set(target.groups or ())
    single = len(units) in (0, len(target.mos))
    clusters = "images" if single else f"{counted(len(units), target.grouping)}, the images of one together"
    return {
        "clusters": clusters,
        "n_boot": protocol.n_boot,
        "seed": protocol.seed,
        "min_gap": protocol.gap(target.mos),
        "mos_scale": list(protocol.scale(target)),
    }


def _named(item: str) -> tuple[str, str]:
    """Name and place of an item: ``fidelity=runs/f0`` has a name of its own."""
    name, equals, place = item.partition("=")
    own = equals and name and place and "/" not in name and not Path(item).exists()
    return (name, place) if own else (item, item)


def _is_file(item: str) -> bool:
    return Path(item).suffix.lower() == ".csv"


def _common_target(files: Sequence[tuple[str, ScoreFile]]) -> Target:
    """The human scores in scores files, which must not contradict each other."""
    found = [file for _, file in files if file.target is not None]
    if not found:
        raise DataError(
            f"{listed([str(file.path) for _, file in files])}: no column 'mos'. Give the human scores with --eval-mos, "
            "or the scores.csv of an evaluation."
        )
    first = found[0].target
    assert first is not None
    known = dict(zip(first.images, first.mos, strict=True))
    for file in found[1:]:
        other = file.target
        assert other is not None
        wrong = [name for name, mos in zip(other.images, other.mos, strict=True) if known.get(name, mos) != mos]
        if wrong:
            raise DataError(
                f"{found[0].path} and {file.path} have different human scores of {len(wrong)} images: {listed(wrong)}. "
                "Compare scores of one set."
            )
    return first


def _from_files(
    files: Sequence[tuple[str, ScoreFile]], target: Target, labels: Labels | None, scored: bool
) -> list[Column]:
    """Columns of scores files in the order of the target, each once; a bare judge beside a measured one is another."""
    paths = labels.paths if labels else tuple(map(Path, target.images))
    columns: list[Column] = []
    for method, file in files:
        own = method != str(file.path)
        for column in file.on(target.images, paths):
            if own:
                name = method if len(file.columns) == 1 else f"{method} {column.name}"
                column = replace(column, name=name, method=name)
            elif scored and column.kind == "bare":
                column = replace(column, name=f"{column.name} in {file.path}", method=f"{column.name} in {file.path}")
            column = replace(column, kind="other") if scored and column.kind == "bare" else column
            if not any(
                column.name == c.name and np.array_equal(column.scores, c.scores, equal_nan=True) for c in columns
            ):
                columns.append(column)
    return columns


def _unlike(columns: Sequence[Column]) -> list[Column]:
    """Columns with names of their own: several of one name are its seeds, and are numbered."""
    names = [column.name for column in columns]
    found = []
    for place, column in enumerate(columns):
        number = names[: place + 1].count(column.name)
        name = f"{column.name} {number}" if names.count(column.name) > 1 else column.name
        found.append(replace(column, name=name, method=column.method or column.name))
    return found


def _score(request: Request, items: _Items, labels: Labels, console: Console) -> list[Column]:
    """Score the labelled images by the bare judge, its votes if asked for, and every prompt."""
    from evoprompt.scoring import score_labels

    prompts = [prompt for _, prompt in items.prompts]
    with console.progress("score", len(labels)) as advance:
        scored = score_labels(items.judge, prompts, labels, request.batch_size, advance)
    columns = [
        Column(
            name=method,
            method=method,
            kind=_kind(prompt),
            scores=scores,
            levels=levels if levels.shape[1] == len(LEVELS) else None,
            seen=_seen(labels, prompt),
        )
        for (method, prompt), (scores, levels) in zip(items.prompts, scored, strict=True)
    ]
    if request.vote_pairs:
        columns.insert(1, _voted(request, items.judge, labels, console))
    judge, precision = f"{items.judge.id}@{items.judge.revision}", items.judge.precision
    return [replace(column, judge=judge, precision=precision) for column in columns]


def _voted(request: Request, judge: Judge, labels: Labels, console: Console) -> Column:
    from evoprompt.comparison import plan_votes, votes_without_training

    pairs = plan_votes(len(labels), request.vote_pairs, request.protocol.seed)
    with console.progress("vote", len(pairs)) as advance:
        scores = votes_without_training(judge, labels, pairs, request.batch_size, advance)
    name, unseen = f"votes on {len(pairs)} pairs", np.zeros(len(labels), dtype=bool)
    return Column(name=name, method="votes", kind="votes", scores=scores, seen=unseen)


def _kind(prompt: PixelPrompt | None) -> str:
    """What a prompt was trained with, by its origin."""
    if prompt is None:
        return "bare"
    if prompt.origin.control not in ("", "none"):
        return "control"
    words = {"none": "label-free", "votes and MOS": "mixed", "MOS": "supervised"}
    return next((kind for start, kind in words.items() if prompt.origin.labels.startswith(start)), "other")


def _seen(labels: Labels, prompt: PixelPrompt | None) -> np.ndarray:
    rows = np.zeros(len(labels), dtype=bool)
    rows[labels.overlap(prompt.origin.seen if prompt else ())] = True
    return rows


def said(body: Mapping[str, Any]) -> str:
    """One line for people about what was measured."""
    judge = ", ".join(word for word in (body["judge"], body["precision"]) if word)
    return f"{body['labels']}: {body['n']} images, MOS {body['direction']}, split: {body['split']}, judge {judge}"
