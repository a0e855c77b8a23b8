import dataclasses

import pytest

from evoprompt.questions import FAMILIES, IMAGE, LEVELS, Family, Question, vocabulary

LEVEL_VALUES = (1.0, 2.0, 3.0, 4.0, 5.0)
RATE = Question(name="r", task="rate", text=f"{IMAGE} how good ?", answers=LEVELS, values=LEVEL_VALUES)
COMPARE = Question(name="c", task="compare", text=f"{IMAGE} {IMAGE} which ?", answers=("a", "b"), values=(0, 1))


def test_families_are_those_that_the_judge_knows_and_carry_their_key():
    assert {name: family.fit for name, family in FAMILIES.items()} == {
        "owl2": "squash", "qalign": "pad", "compare2score": "pad", "nano": "tiles",
    }  # fmt: skip
    assert all(family.name == name for name, family in FAMILIES.items())


def test_released_scorers_are_asked_the_very_text_they_were_tuned_with():
    """Texts and token counts (28 and 38) of the released scorers' own code."""
    assert FAMILIES["qalign"].rate[0].text == (
        "USER: How would you rate the quality of this image?\n<|image|>\nASSISTANT: The quality of the image is"
    )
    question = FAMILIES["compare2score"].compare[0]
    assert question.text == (
        "USER: <|image|> <|image|> Compared with the first image, what is your quality rating for second image? \n"
        "ASSISTANT: The quality of the second image is"
    )
    assert dict(zip(question.answers, question.values, strict=True)) == {
        "inferior": 0, "worse": 0.25, "similar": 0.5, "better": 0.75, "superior": 1,
    }  # fmt: skip
    assert question.temperature == 100


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_rating_has_the_five_levels_in_order_and_every_text_ends_before_its_answer(family):
    for question in family.rate:
        assert (question.answers, question.values) == (("bad", "poor", "fair", "good", "excellent"), LEVEL_VALUES)
    for question in (*family.rate, *family.compare):
        assert question.text == question.text.rstrip()  # a trailing space would be a token of its own


@pytest.mark.parametrize("name", ["owl2", "nano"])
def test_judges_without_a_question_of_their_own_have_three_wordings_of_each_task(name):
    assert len({q.text for q in FAMILIES[name].rate}) == len({q.text for q in FAMILIES[name].compare}) == 3
    assert {q.answers for q in FAMILIES[name].compare} == {("first", "second")}


@pytest.mark.parametrize("name", ["owl2", "qalign", "compare2score"])
def test_questions_to_a_chat_model_have_its_form(name):
    for question in (*FAMILIES[name].rate, *FAMILIES[name].compare):
        assert question.text.startswith("USER: ") and question.text.count("ASSISTANT: ") == 1


@pytest.mark.parametrize(
    "change",
    [
        {"text": "no image"},
        {"text": f"{IMAGE} {IMAGE}"},
        {"answers": LEVELS[:4]},
        {"answers": ("bad",) * 5},
        {"answers": ("bad",), "values": (1.0,)},
        {"values": (5.0, 4.0, 3.0, 2.0, 1.0)},
        {"temperature": 0.0},
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(change):
    with pytest.raises(ValueError, match="question 'r'"):
        dataclasses.replace(RATE, **change)


def test_a_comparison_has_probabilities_as_values():
    with pytest.raises(ValueError, match="probabilities"):
        dataclasses.replace(COMPARE, values=(1.0, 2.0))


@pytest.mark.parametrize(
    ("rate", "compare"), [((), (COMPARE,)), ((RATE,), ()), ((RATE, RATE), (COMPARE,)), ((COMPARE,), (RATE,))]
)
def test_a_family_with_a_missing_doubled_or_misplaced_question_is_refused(rate, compare):
    with pytest.raises(ValueError, match="family 'x'"):
        Family(name="x", fit="pad", rate=rate, compare=compare)


def test_vocabulary_holds_each_word_once_and_no_image_mark():
    assert vocabulary(Family(name="x", fit="pad", rate=(RATE,), compare=(COMPARE,))) == (
        "how", "good", "?", "bad", "poor", "fair", "excellent", "which", "a", "b",
    )  # fmt: skip


def test_every_nano_text_can_be_split_into_its_vocabulary():
    words = set(vocabulary(FAMILIES["nano"])) | {IMAGE}
    for question in (*FAMILIES["nano"].rate, *FAMILIES["nano"].compare):
        assert set(question.text.split()) | set(question.answers) <= words
