"""The texts of the prompting systems: enough images, known words, strict reading."""

from __future__ import annotations

import pytest

from evoprompt.errors import DataError
from evoprompt.questions import FAMILIES, IMAGE, LEVELS, vocabulary
from evoprompt.study_questions import (
    FULL_REFERENCE,
    NO_REFERENCE,
    ORDINALS,
    SHOWN,
    System,
    choose_systems,
    read_description,
    read_ranking,
    script,
)

ALL = (*NO_REFERENCE, *FULL_REFERENCE)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("system", ALL, ids=lambda s: s.name)
def test_a_text_has_a_mark_for_every_image_shown(family: str, system: System) -> None:
    images = SHOWN[system.procedure] + system.full_reference
    text = script(family, system).text
    assert text.count(IMAGE) == images * (2 if system.strategy == "context" else 1)
    assert not text.endswith(" ")
    assert bool(script(family, system).then) == (system.strategy == "thought")


def test_the_standard_rating_and_comparison_are_those_that_judges_are_always_asked() -> None:
    for name, family in FAMILIES.items():
        single, double = (script(name, System(procedure, "standard")) for procedure in ("single", "double"))  # type: ignore[arg-type]
        assert (single.text, single.wording.answers) == (family.rate[0].text, family.rate[0].answers), name
        assert (double.text, double.wording.answers) == (family.compare[0].text, family.compare[0].answers), name
        assert double.wording.temperature == family.compare[0].temperature


def test_an_example_is_answered_before_the_question() -> None:
    texts = {name: script("nano", System(name, "context")).text for name in SHOWN}
    assert texts["single"] == f"{IMAGE} rate the quality : fair {IMAGE} rate the quality :"
    assert texts["double"] == f"{IMAGE} {IMAGE} which is better ? first {IMAGE} {IMAGE} which is better ?"
    assert " : third first fourth second " in texts["multiple"]
    graded = script("compare2score", System("double", "context")).text
    assert "The quality of the second image is inferior.</s>USER:" in graded


def test_every_word_of_the_nano_systems_is_in_its_vocabulary() -> None:
    words = set(vocabulary(FAMILIES["nano"]))
    for system in ALL:
        said = script("nano", system)
        assert set((said.text + said.then).replace(IMAGE, " ").split()) <= words
        assert set(said.wording.answers) <= words
    assert len(words) < 60


def test_new_words_come_after_those_of_the_other_questions() -> None:
    family = FAMILIES["nano"]
    assert vocabulary(family)[-len(family.words) :] == family.words
    assert not set(family.words) & set(LEVELS)


@pytest.mark.parametrize(
    ("written", "ranking"),
    [
        ("third, first, fourth, second", (2, 0, 3, 1)),
        ("third first fourth second", (2, 0, 3, 1)),
        (" First, second,third, fourth.\nThe first image is sharp.", (0, 1, 2, 3)),
        ("first, second, third", None),
        ("first, second, third, third", None),
        ("first, second, third, fourth, fifth", None),
        ("The best is the first, second, third, fourth", None),
        ("1, 2, 3, 4", None),
        ("", None),
    ],
)
def test_a_ranking_is_all_four_words_once_or_none(written: str, ranking: tuple[int, ...] | None) -> None:
    assert read_ranking(written, ORDINALS) == ranking


def test_a_description_is_the_first_line() -> None:
    assert read_description("  Soft and noisy. \nThe quality is bad.") == "Soft and noisy."
    assert read_description(" \n ") == ""


def test_systems_are_chosen_by_name_or_pattern() -> None:
    assert choose_systems([], False) == list(NO_REFERENCE)
    assert choose_systems([], True) == list(ALL)
    assert [s.name for s in choose_systems(["multiple-context", "single-*"], False)] == [
        "single-standard", "single-context", "single-thought", "multiple-context",
    ]  # fmt: skip
    assert len(choose_systems(["*-fr"], True)) == 9
    with pytest.raises(
        DataError,
        match="called triple or single-standard-fr. There are: single-standard, .*; with reference images also NAME-fr",
    ):
        choose_systems(["triple", "single-standard-fr"], False)
