"""The nine prompting systems as texts: how many images are shown at a time, and how the judge is led to its answer.

Three procedures (one image rated, two compared, four ranked) times three strategies (the answer at once, after an
answered example, after a description in the judge's own words), each with or without an undamaged reference. The
systems are those of Wu et al., ECCV 2024 (arXiv 2403.10854); the wordings are our own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from evoprompt.errors import DataError
from evoprompt.questions import FAMILIES, IMAGE, LEVEL_VALUES, LEVELS

Procedure = Literal["single", "double", "multiple"]
Strategy = Literal["standard", "context", "thought"]
SHOWN: dict[Procedure, int] = {"single": 1, "double": 2, "multiple": 4}
"""Images shown at a time, the reference not counted."""

ORDINALS = ("first", "second", "third", "fourth")
EXAMPLE_RANKS = (2, 0, 3, 1)
"""Places of the four example images from best to worst; they are shown in the order that this makes true."""


@dataclass(frozen=True)
class System:
    """One prompting system.

    Attributes:
        procedure: ``single``, ``double`` or ``multiple`` stimulus.
        strategy: ``standard``, in-``context`` or chain of ``thought``.
        full_reference: whether an undamaged image is shown first.
    """

    procedure: Procedure
    strategy: Strategy
    full_reference: bool = False

    @property
    def name(self) -> str:
        """Such as ``double-context`` or ``single-thought-fr``."""
        return f"{self.procedure}-{self.strategy}{'-fr' if self.full_reference else ''}"


NO_REFERENCE = tuple(
    System(procedure, strategy) for procedure in SHOWN for strategy in ("standard", "context", "thought")
)
FULL_REFERENCE = tuple(System(system.procedure, system.strategy, True) for system in NO_REFERENCE)


def choose_systems(patterns: Sequence[str], references: bool) -> list[System]:
    """The systems that patterns such as ``double-*`` name, in the order of the table; no pattern = all there are.

    Args:
        patterns: names, or shell patterns of names.
        references: whether there are reference images, so that full-reference systems can be asked.

    Raises:
        DataError: when a pattern names no system.
    """
    systems = [*NO_REFERENCE, *(FULL_REFERENCE if references else ())]
    lost = [pattern for pattern in patterns if not any(fnmatchcase(system.name, pattern) for system in systems)]
    if lost:
        listed = ", ".join(system.name for system in NO_REFERENCE)
        more = f"; {'each of them also as' if references else 'with reference images also'} NAME-fr"
        raise DataError(f"no prompting system is called {' or '.join(lost)}. There are: {listed}{more}.")
    return [s for s in systems if not patterns or any(fnmatchcase(s.name, pattern) for pattern in patterns)]


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How a procedure is put to a kind of judge.

    Attributes:
        ask: question for the answer at once, with an image mark for every image.
        think: question for a description first, likewise.
        lead: what stands right before the answer.
        answers: words of one token each; of a ranking, the words for the first to the fourth image.
        values: the score an answer stands for (single), or its probability that the second image is better (double).
        temperature: the logits of the answers are divided by this.
    """

    ask: str
    think: str
    lead: str
    answers: tuple[str, ...]
    values: tuple[float, ...] = ()
    temperature: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How a kind of judge is talked to, around the wordings.

    Attributes:
        opening: before the first question.
        reference: shows the reference.
        turn: between an answered example and the next question.
        gap: between a description and the lead to the answer.
        separator: between the words of a ranking.
        description: tokens that a description may have.
        ranking: tokens that a ranking may have.
    """

    opening: str
    reference: str
    turn: str
    gap: str
    separator: str
    description: int
    ranking: int


@dataclass(frozen=True)
class Script:
    """What is said to the judge for one system.

    Attributes:
        system: the system.
        text: up to the answer or, of a chain of thought, up to the description.
        then: of a chain of thought, what follows the description, up to the answer; empty otherwise.
        wording: answers and what they mean.
        manner: limits and separators.
    """

    system: System
    text: str
    then: str
    wording: Wording
    manner: Manner


def script(family: str, system: System) -> Script:
    """The text of a system for a family of judges.

    An in-context example is a rating of the middle level, a pair whose first image is the better one, or four images
    ranked as in ``EXAMPLE_RANKS``; its images come before those that are asked about.
    """
    manner = MANNERS.get(family, MANNERS["owl2"])
    wording = WORDINGS.get(family, WORDINGS["owl2"])[system.procedure]
    reference = manner.reference if system.full_reference else ""
    asked = f"{reference}{wording.ask} {wording.lead}"
    if system.strategy == "thought":
        then = f"{manner.gap}{wording.lead}"
        return Script(system, f"{manner.opening}{reference}{wording.think}", then, wording, manner)
    example = ""
    if system.strategy == "context":
        example = f"{asked} {_example_answer(system.procedure, wording, manner)}{manner.turn}"
    return Script(system, f"{manner.opening}{example}{asked}", "", wording, manner)


def _example_answer(procedure: Procedure, wording: Wording, manner: Manner) -> str:
    if procedure == "multiple":
        return manner.separator.join(wording.answers[place] for place in EXAMPLE_RANKS)
    if procedure == "single":
        return wording.answers[len(wording.answers) // 2]
    # The answer that says most clearly that the first image is better.
    return wording.answers[wording.values.index(min(wording.values))]


def read_description(text: str) -> str:
    """The description in what a judge wrote: its first line, without blanks around it; empty when there is none."""
    return text.strip().partition("\n")[0].strip()


def read_ranking(text: str, answers: Sequence[str]) -> tuple[int, ...] | None:
    """The ranking in what a judge wrote, strictly: all the words once, with blanks or commas between, in one line.

    Args:
        text: what the judge wrote; only its first line counts.
        answers: words for the first to the fourth image.

    Returns:
        Places of the images from best to worst, or None when the line is anything else.
    """
    line = read_description(text).lower().removesuffix(".")
    words = re.split(r", ?| ", line)
    if sorted(words) != sorted(answers):
        return None
    return tuple(answers.index(word) for word in words)


_LINES = "".join(f"{word.capitalize()} image: {IMAGE}\n" for word in ORDINALS)
_PAIR = "".join(f"{word.capitalize()} image: {IMAGE}\n" for word in ORDINALS[:2])
_ASPECTS = "sharpness, noise, colours, brightness, contrast, textures and shapes, and any other damage"

_OWL2: dict[Procedure, Wording] = {
    "single": Wording(
        ask=f"{IMAGE}How would you rate the quality of this image? ASSISTANT:",
        think=f"{IMAGE}Describe this image in one or two sentences: its {_ASPECTS}. Then rate its quality. "
        "ASSISTANT: Description:",
        lead="The quality of the image is",
        answers=LEVELS,
        values=LEVEL_VALUES,
    ),
    "double": Wording(
        ask=f"{_PAIR}Which image has the better quality? ASSISTANT:",
        think=f"{_PAIR}Describe in one or two sentences how the images differ: their {_ASPECTS}. Then say which image "
        "has the better quality. ASSISTANT: Description:",
        lead="The image with the better quality is the",
        answers=("first", "second"),
        values=(0.0, 1.0),
    ),
    "multiple": Wording(
        ask=f"{_LINES}Rank the four images by quality, the best one first. Answer with nothing but the words first, "
        "second, third and fourth, separated by commas. ASSISTANT:",
        think=f"{_LINES}Describe in one or two sentences how the images differ: their {_ASPECTS}. Then rank them by "
        "quality, the best one first, with nothing but the words first, second, third and fourth, separated by commas. "
        "ASSISTANT: Description:",
        lead="From best to worst:",
        answers=ORDINALS,
    ),
}
_C2S = FAMILIES["compare2score"].compare[0]

WORDINGS: dict[str, dict[Procedure, Wording]] = {
    "owl2": _OWL2,
    # The question before the image and a line break after it, as these checkpoints were trained.
    "qalign": {
        **_OWL2,
        "single": Wording(
            ask=f"How would you rate the quality of this image?\n{IMAGE}\nASSISTANT:",
            think=_OWL2["single"].think,
            lead="The quality of the image is",
            answers=LEVELS,
            values=LEVEL_VALUES,
        ),
    },
    "compare2score": {
        **_OWL2,
        "double": Wording(
            ask=f"{IMAGE} {IMAGE} Compared with the first image, what is your quality rating for second image? \n"
            "ASSISTANT:",
            think=f"{_PAIR}Describe in one or two sentences how the images differ: their {_ASPECTS}. Then say how the "
            "quality of the second image compares with that of the first. ASSISTANT: Description:",
            lead="The quality of the second image is",
            answers=_C2S.answers,
            values=_C2S.values,
            temperature=_C2S.temperature,
        ),
    },
    # Its description is a list of the flaws it sees, image by image.
    "nano": {
        "single": Wording(
            ask=IMAGE,
            think=f"{IMAGE} which flaws ?",
            lead="rate the quality :",
            answers=LEVELS,
            values=LEVEL_VALUES,
        ),
        "double": Wording(
            ask=f"{IMAGE} {IMAGE}",
            think=f"{IMAGE} {IMAGE} which flaws ?",
            lead="which is better ?",
            answers=("first", "second"),
            values=(0.0, 1.0),
        ),
        "multiple": Wording(
            ask=" ".join([IMAGE] * 4),
            think=f"{' '.join([IMAGE] * 4)} which flaws ?",
            lead="best to worst :",
            answers=ORDINALS,
        ),
    },
}
MANNERS = {
    "owl2": Manner(
        opening="USER: ",
        reference=f"Undamaged reference, to compare with: {IMAGE}\n",
        turn=".</s>USER: ",
        gap="\n",
        separator=", ",
        description=96,
        ranking=16,
    ),
    "nano": Manner(
        opening="", reference=f"reference {IMAGE} ", turn=" ", gap=" ", separator=" ", description=24, ranking=6
    ),
}
