"""The texts put to the judge and their answer words, as data, one family per kind of checkpoint.

The first wording of a task is the family's own (what its released weights were trained with, where they were); the
others say the same thing differently, because votes are informative only when their presentations differ.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

IMAGE = "<|image|>"
OTHER = "*"
"""Stands among the answers of an open question for every other token the judge could say."""
LEVELS = ("bad", "poor", "fair", "good", "excellent")
LEVEL_VALUES = (1.0, 2.0, 3.0, 4.0, 5.0)
Task = Literal["rate", "compare"]
Fit = Literal["pad", "squash", "crop", "tiles"]
Preprocess = Literal["own", "imagenet-crop"]


@dataclass(frozen=True, kw_only=True)
class Question:
    """One text with its answers.

    Args:
        name: Short name, unique within a family; votes are stored under it.
        task: ``rate`` (one image) or ``compare`` (two).
        text: The whole text up to the answer, one ``<|image|>`` where each image goes.
        answers: Answer words; the judge's logits are read in this order. With ``OTHER`` among them the question is
            open: probabilities are shares of the whole vocabulary instead of the answer words.
        values: The score an answer stands for (rate), or its probability that the second image is better (compare).
        temperature: The logits are divided by this.

    Raises:
        ValueError: if the images in the text, the answers and the values do not fit the task.
    """

    name: str
    task: Task
    text: str
    answers: tuple[str, ...]
    values: tuple[float, ...]
    temperature: float = 1.0

    def __post_init__(self) -> None:
        wanted, found = {"rate": 1, "compare": 2}[self.task], self.text.count(IMAGE)
        if found != wanted:
            raise ValueError(f"question {self.name!r} holds {found} x {IMAGE}; to {self.task} needs {wanted}")
        if not 2 <= len(self.answers) == len(set(self.answers)) == len(self.values):
            raise ValueError(f"question {self.name!r} needs at least two different answers, each with one value")
        if list(self.values) != sorted(self.values) or self.temperature <= 0:
            raise ValueError(f"question {self.name!r} needs rising values and a temperature above 0")
        if self.task == "compare" and (self.values[0] < 0 or self.values[-1] > 1):
            raise ValueError(f"question {self.name!r} compares, so its values are probabilities in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a kind of checkpoint is asked.

    Args:
        name: Its key in ``FAMILIES``.
        fit: How an image is made square for it, see ``evoprompt.images``.
        rate: Wordings that rate one image, the default first; all with the same answers and values.
        compare: Wordings that compare two images, the default first.
        views: Views of an image whose scores are averaged.
        readouts: Other questions that rate, with answers of their own; one is used when it is chosen by name.
        preprocess: ``own`` (as the checkpoint was trained), or ``imagenet-crop``: shorter edge scaled, centre cut out,
            ImageNet's mean and deviation, as the published pixel prompts were trained (arXiv 2509.03494).
        words: What only its study texts use, see ``evoprompt.study_questions``; matters to a vocabulary of words.

    Raises:
        ValueError: if a task has no wording, a wording of another task, or a name comes twice.
    """

    name: str
    fit: Fit
    rate: tuple[Question, ...]
    compare: tuple[Question, ...]
    views: int = 1
    readouts: tuple[Question, ...] = ()
    preprocess: Preprocess = "own"
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [question.name for question in (*self.rate, *self.readouts, *self.compare)]
        if not self.rate or not self.compare or len(set(names)) != len(names):
            raise ValueError(f"family {self.name!r} needs both tasks and different question names; got {names}")
        if any(q.task != "rate" for q in (*self.rate, *self.readouts)) or any(
            q.task != "compare" for q in self.compare
        ):
            raise ValueError(f"family {self.name!r} holds a question under the wrong task")


def _rate(name: str, text: str) -> Question:
    return Question(name=name, task="rate", text=text, answers=LEVELS, values=LEVEL_VALUES)


def _compare(name: str, text: str) -> Question:
    return Question(name=name, task="compare", text=text, answers=("first", "second"), values=(0.0, 1.0))


def _readouts(closed: Question, levels: Question) -> tuple[Question, ...]:
    """A readout in four words, closed and open, and the open form of the five levels.

    Closed, its score is 1 + 4 q, with q the share of the two good words among the four. Open, shares are of the whole
    vocabulary and what is said besides counts as the middle of the scale: 3 + 2 (good words - bad words).
    """
    low, high = closed.answers[:2], closed.answers[2:]
    open_values, open_levels = (1.0, 1.0, 3.0, 5.0, 5.0), (*LEVELS[:3], OTHER, *LEVELS[3:])
    return (
        closed,
        replace(closed, name=f"{closed.name}-open", answers=(*low, OTHER, *high), values=open_values),
        replace(levels, name=f"{levels.name}-open", answers=open_levels, values=(1.0, 2.0, 3.0, 3.0, 4.0, 5.0)),
    )


def _four(name: str, text: str, answers: tuple[str, ...]) -> Question:
    return Question(name=name, task="rate", text=text, answers=answers, values=(1.0, 1.0, 5.0, 5.0))


# Each text ends where the answer word follows: "... The quality of the image is" -> " good".
_ONE, _TWO = f"USER: {IMAGE}", f"USER: First image: {IMAGE}\nSecond image: {IMAGE}\nWhich image "
_RATE = (
    _rate("quality", f"{_ONE}How would you rate the quality of this image? ASSISTANT: The quality of the image is"),
    _rate("technical", f"{_ONE}Rate the technical quality of the image. ASSISTANT: The technical quality is"),
    _rate("look", f"{_ONE}How good does this picture look to you? ASSISTANT: The picture looks"),
)
_COMPARE = (
    _compare("better", f"{_TWO}has the better quality? ASSISTANT: The image with the better quality is the"),
    _compare("clearer", f"{_TWO}looks clearer and cleaner? ASSISTANT: The clearer and cleaner image is the"),
    _compare("fewer-flaws", f"{_TWO}has fewer visible flaws? ASSISTANT: The image with fewer visible flaws is the"),
)
# The published pixel prompts were trained on this question: no answer prefix, four words (arXiv 2509.03494).
_GOOD_FINE = _four(
    "good-fine", f"{_ONE}Rate the technical quality of the image. ASSISTANT:", ("bad", "poor", "fine", "good")
)
_ASK = "USER: How would you rate the quality of this image?\n"
_QALIGN = _rate("qalign", f"{_ASK}{IMAGE}\nASSISTANT: The quality of the image is")
_NANO = _rate("rate", f"{IMAGE} rate the quality :")

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(name="owl2", fit="squash", rate=_RATE, compare=_COMPARE, readouts=_readouts(_GOOD_FINE, _RATE[0])),
        # Q-Align, OneAlign and DeQA-Score: the package scorer's prompt, then the one of their evaluation scripts.
        # They were trained to rate only; whether they can compare is measured before a run starts.
        Family(
            name="qalign",
            fit="pad",
            rate=(
                _QALIGN,
                _rate("qalign-eval", f"{_ASK}{IMAGE} ASSISTANT: The quality of the image is"),
                *_RATE[:1],
            ),
            compare=_COMPARE,
            readouts=_readouts(_GOOD_FINE, _QALIGN),
        ),
        # Compare2Score was trained to compare only, in five words; its rating wordings are those of the base model.
        Family(
            name="compare2score",
            fit="pad",
            rate=_RATE,
            compare=(
                Question(
                    name="compare2score",
                    task="compare",
                    text=f"USER: {IMAGE} {IMAGE} Compared with the first image, what is your quality rating for "
                    "second image? \nASSISTANT: The quality of the second image is",
                    answers=("inferior", "worse", "similar", "better", "superior"),
                    values=(0.0, 0.25, 0.5, 0.75, 1.0),
                    temperature=100.0,
                ),
            ),
            readouts=_readouts(_GOOD_FINE, _RATE[0]),
        ),
        # A word-level tokenizer splits these at spaces, so every word and mark stands alone.
        Family(
            name="nano",
            fit="tiles",
            views=4,
            rate=(
                _NANO,
                _rate("look", f"{IMAGE} how good does it look ?"),
                _rate("clean", f"{IMAGE} is it clear and clean ?"),
            ),
            compare=(
                _compare("better", f"{IMAGE} {IMAGE} which is better ?"),
                _compare("clearer", f"{IMAGE} {IMAGE} which looks clearer ?"),
                _compare("fewer-flaws", f"{IMAGE} {IMAGE} which has fewer flaws ?"),
            ),
            readouts=_readouts(_four("good-excellent", _NANO.text, ("bad", "poor", "good", "excellent")), _NANO),
            words=(
                *("reference", "best", "to", "worst", "third", "fourth"),
                *("blur", "coding", "local", "noise", "tone", "none"),
            ),
        ),
    )
}


def choose(family: Family, question: str = "auto", preprocess: Preprocess = "own") -> Family:
    """A family that rates with a certain question first, on images prepared in a certain way.

    Args:
        family: as in ``FAMILIES``.
        question: name of a rating question or readout; ``auto`` is the family's first.
        preprocess: ``own`` or ``imagenet-crop``.

    Returns:
        The family with that question as ``rate[0]``; the other wordings stay behind it when they have its answers.

    Raises:
        ValueError: if the family has no question of that name.
    """
    if question != "auto":
        known = {q.name: q for q in (*family.rate, *family.readouts)}
        if question not in known:
            raise ValueError(f"{question!r} is none of {', '.join(known)}")
        chosen = known[question]
        others = tuple(q for q in family.rate if q.answers == chosen.answers and q != chosen)
        readouts = tuple(q for q in family.readouts if q != chosen)
        family = replace(family, rate=(chosen, *others), readouts=readouts)
    if preprocess == "own":
        return family
    return replace(family, fit="crop", views=1, preprocess=preprocess)


def vocabulary(family: Family) -> tuple[str, ...]:
    """Words of a family's questions and answers, split at spaces, in order of first use and without the image mark.

    Those that only its study uses come last.
    """
    words: dict[str, None] = {}
    for question in (*family.rate, *family.compare):
        words.update(dict.fromkeys(question.text.replace(IMAGE, " ").split()))
        words.update(dict.fromkeys(question.answers))
    words.update(dict.fromkeys(family.words))
    return tuple(words)
