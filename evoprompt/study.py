"""The study of prompting systems: every system asks the judge about every labelled set, answer by answer on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evoprompt.errors import JudgeError, StartError, listed
from evoprompt.images import fit_image, read_image
from evoprompt.judge import Judge
from evoprompt.runs import append_lines, read_lines, stream, write_json, write_lines
from evoprompt.stimuli import Examples, Groups, choose_examples, plan_fours, plan_pairs, plan_single
from evoprompt.study_questions import Procedure, Script, System, read_description, read_ranking, script
from evoprompt.study_sets import StudySet
from evoprompt.tracking import Update
from evoprompt.voting import Seen

PLAN, ANSWERS = "plan.json", "answers.jsonl"
FOURS = 2
"""Groups of four that every image is in, as published."""


@dataclass(frozen=True)
class Plan:
    """What is asked about one set: the same images by every system, the same stimuli by every strategy.

    Attributes:
        data: the set.
        examples: its in-context examples.
        images: rows that are asked about.
        stimuli: by procedure and whether they are compared within a reference only.
    """

    data: StudySet
    examples: Examples
    images: NDArray[np.int64]
    stimuli: dict[tuple[Procedure, bool], Groups]


@dataclass(frozen=True)
class Answer:
    """One answer of the judge.

    Attributes:
        system: name of the system.
        data: name of the set.
        stimulus: number within the plan.
        order: ``given`` or ``reversed``.
        view: number of the view of the images.
        images: rows in the order shown.
        value: score from 1 to 5 (single), or probability that the image shown first is better (double); else None.
        ranking: rows from best to worst (multiple); else None.
        text: what the judge wrote, if it wrote: its description, or its ranking when that is not usable.
        missing: why there is neither value nor ranking; empty otherwise.
    """

    system: str
    data: str
    stimulus: int
    order: str
    view: int
    images: tuple[int, ...]
    value: float | None = None
    ranking: tuple[int, ...] | None = None
    text: str = ""
    missing: str = ""

    @property
    def key(self) -> tuple[str, str, int, str, int]:
        """What tells an answer from all others of a study."""
        return (self.system, self.data, self.stimulus, self.order, self.view)

    @classmethod
    def of(cls, row: dict[str, Any]) -> Answer:
        """An answer from its JSON object."""
        ranking = None if row["ranking"] is None else tuple(row["ranking"])
        return cls(**{**row, "images": tuple(row["images"]), "ranking": ranking})


def plan_study(data: StudySet, partners: int, seed: int, fours: int = FOURS) -> Plan:
    """Choose examples and stimuli of a set.

    Args:
        data: the set; with ``references``, its examples come from one reference and full-reference stimuli are planned.
        partners: images that every image is paired with.
        seed: of the random choices.
        fours: groups of four that every image is in.

    Raises:
        DataError: when the set is too small.
    """
    groups = data.groups if data.references is not None else None
    examples = choose_examples(data.mos, groups)
    images = np.array([row for row in range(len(data.mos)) if row not in examples.set_aside])
    stimuli: dict[tuple[Procedure, bool], Groups] = {}
    for within in (False, True) if groups is not None else (False,):
        rng = stream(seed, int(within))
        pools = [images]
        if within and groups is not None:
            pools = [np.array([i for i in images if groups[i] == name]) for name in sorted({groups[i] for i in images})]
        stimuli["single", within] = [s for pool in pools for s in plan_single(pool)]
        stimuli["double", within] = [s for pool in pools for s in plan_pairs(pool, partners, rng)]
        stimuli["multiple", within] = [s for pool in pools for s in plan_fours(pool, fours, rng)]
    return Plan(data, examples, images, stimuli)


def presentations(plan: Plan, system: System, views: int) -> list[Answer]:
    """Everything a system asks about a set, as answers still without content; one image has no second order."""
    orders = ("given",) if system.procedure == "single" else ("given", "reversed")
    stimuli = plan.stimuli[system.procedure, system.full_reference]
    return [
        Answer(system.name, plan.data.name, k, order, view, tuple(int(i) for i in (s if order == "given" else s[::-1])))
        for view in range(views)
        for order in orders
        for k, s in enumerate(stimuli)
    ]


def work(plans: Sequence[Plan], systems: Sequence[System], views: int) -> int:
    """How many answers a study needs."""
    return sum(len(presentations(plan, system, views)) for plan in plans for system in systems)


def run_study(
    judge: Judge,
    plans: Sequence[Plan],
    systems: Sequence[System],
    identity: dict[str, Any],
    out: Path,
    batch_size: int,
    advance: Update,
) -> list[Answer]:
    """Ask what has not been asked yet, and append every answer to ``answers.jsonl`` as it comes.

    Args:
        judge: with the prompt to be used attached.
        plans: one a set.
        systems: to be asked.
        identity: what makes two studies the same; a study in ``out`` with another identity is refused.
        out: folder of the study.
        batch_size: presentations at a time.
        advance: told how many answers are there.

    Returns:
        The answers of these systems on these sets.

    Raises:
        StartError: when ``out`` holds another study.
        JudgeError: when the judge cannot be asked one of the questions.
    """
    check_systems(judge, plans[0], systems)
    continue_study(out, identity)
    kept = read_lines(out / ANSWERS)
    write_lines(out / ANSWERS, kept)  # a line torn by a kill would spoil the next one
    answers = {answer.key: answer for answer in map(Answer.of, kept)}
    views = judge.family.views
    wanted: list[Answer] = []
    for plan in plans:
        seen = _seen(judge, plan, batch_size)
        for system in systems:
            asked = presentations(plan, system, views)
            wanted += asked
            for start in range(0, len(asked), batch_size):
                batch = asked[start : start + batch_size]
                new = [blank.key for blank in batch if blank.key not in answers]
                # A batch that a kill tore is asked whole again, so that its numbers are those of an untorn one.
                given = _ask(judge, seen, plan, script(judge.family.name, system), batch) if new else []
                fresh = [answer for answer in given if answer.key in set(new)]
                append_lines(out / ANSWERS, [asdict(answer) for answer in fresh])
                answers.update({answer.key: answer for answer in fresh})
                advance(len(batch))
    return [answers[blank.key] for blank in wanted]


def check_systems(judge: Judge, plan: Plan, systems: Sequence[System]) -> None:
    """Put the last question of every system to the judge once, so that what it cannot be asked shows at the start.

    Raises:
        JudgeError: when its tokenizer lacks words of a question; all such systems at once.
    """
    seen = _seen(judge, plan, 1)
    problems = []
    for system in systems:
        said, first = script(judge.family.name, system), presentations(plan, system, 1)[:1]
        if not first:
            problems.append(f"{system.name} (there are too few images for it)")
            continue
        try:
            with torch.no_grad():
                _final(judge, _tokens(seen, plan, system, first), said.text + said.then, said, first)
        except JudgeError as error:
            problems.append(f"{system.name} ({str(error).rstrip('.')})")
    if problems:
        raise JudgeError(f"judge {judge.id} cannot be asked {listed(problems)}. Name other --systems.")


def study_folder(out: Path) -> None:
    """Make the folder of a study, or take one that holds a study already.

    Raises:
        StartError: when it holds something else.
    """
    if not (out / PLAN).is_file() and out.is_dir() and any(out.iterdir()):
        raise StartError(f"{out} is not empty and holds no study. Name a new folder with -o.")
    out.mkdir(parents=True, exist_ok=True)


def continue_study(out: Path, identity: dict[str, Any]) -> None:
    """Begin a study in a folder, or check that the one begun there is the same.

    Raises:
        StartError: when it is another one; says in what.
    """
    if not (out / PLAN).is_file():
        study_folder(out)
        write_json(out / PLAN, identity)
        return
    begun = read_plan(out)
    other = [f"{key} (then {begun.get(key)}, now {now})" for key, now in identity.items() if begun.get(key) != now]
    if other:
        raise StartError(f"{out} holds another study; it differs in {listed(other)}. Name a new folder with -o.")


def read_plan(out: Path) -> dict[str, Any]:
    """The identity of the study in a folder."""
    body: dict[str, Any] = json.loads((out / PLAN).read_text(encoding="utf-8"))
    return body


def _seen(judge: Judge, plan: Plan, block: int) -> Seen:
    """The images of a set, rows first, references after them, each encoded when it is first asked about."""
    paths = [*plan.data.paths, *plan.data.reference_keys]

    def pixels(key: int) -> np.ndarray:
        return fit_image(read_image(paths[key]), judge.family.fit, judge.image_size, judge.family.views)

    return Seen(judge, [range(len(paths))], pixels, block)


def _ask(judge: Judge, seen: Seen, plan: Plan, said: Script, batch: Sequence[Answer]) -> list[Answer]:
    """Answers to a batch of presentations, which may be of several views."""
    with torch.no_grad():
        tokens = _tokens(seen, plan, said.system, batch)
        if said.system.strategy != "thought":
            return _final(judge, tokens, said.text, said, batch)
        told = [read_description(text) for text in judge.tell(tokens, said.text, said.manner.description)]
        found: dict[int, Answer] = {}
        for text in dict.fromkeys(told):
            members = [k for k, other in enumerate(told) if other == text]
            part = [batch[k] for k in members]
            if text:
                asked = f"{said.text} {text}{said.then}"
                answers = _final(judge, [t[members] for t in tokens], asked, said, part)
            else:
                answers = [replace(blank, missing="no description") for blank in part]
            found.update((k, a if a.missing else replace(a, text=text)) for k, a in zip(members, answers, strict=True))
    return [found[k] for k in range(len(batch))]


def _tokens(seen: Seen, plan: Plan, system: System, batch: Sequence[Answer]) -> list[Tensor]:
    """Encoded images of a batch, one (P, T, D) a mark of the text."""
    rows = [_shown(plan, system, blank) for blank in batch]
    return [
        torch.cat([seen.tokens([key], blank.view) for key, blank in zip(column, batch, strict=True)])
        for column in zip(*rows, strict=True)
    ]


def _shown(plan: Plan, system: System, blank: Answer) -> list[int]:
    """Keys of all images of a presentation in the order of their marks: example first, references before images."""

    def with_reference(images: Sequence[int]) -> list[int]:
        if not system.full_reference or plan.data.references is None:
            return list(images)
        return [plan.data.reference_keys[plan.data.references[images[0]]], *images]

    example = with_reference(plan.examples.shown[system.procedure]) if system.strategy == "context" else []
    return [*example, *with_reference(blank.images)]


def _final(judge: Judge, tokens: Sequence[Tensor], text: str, said: Script, batch: Sequence[Answer]) -> list[Answer]:
    """The last step of a system: one token read from probabilities, or a ranking read from text."""
    wording = said.wording
    if said.system.procedure == "multiple":
        return [
            _ranked(blank, written, wording.answers)
            for blank, written in zip(batch, judge.tell(tokens, text, said.manner.ranking), strict=True)
        ]
    logits = judge.ask(tokens, text, wording.answers).float() / wording.temperature
    values = logits.softmax(-1).cpu().double() @ torch.tensor(wording.values, dtype=torch.float64)
    if said.system.procedure == "double":
        values = 1 - values
    return [replace(blank, value=value) for blank, value in zip(batch, values.tolist(), strict=True)]


def _ranked(blank: Answer, written: str, words: Sequence[str]) -> Answer:
    places = read_ranking(written, words)
    if places is None:
        return replace(blank, text=written, missing="not a ranking")
    return replace(blank, ranking=tuple(blank.images[place] for place in places))
