"""Readouts as a choice of the question: what is asked, what the score is, and that every path asks the chosen one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ScriptedJudge
from torch import Tensor

from evoprompt.config import Recipe
from evoprompt.errors import DataError, JudgeError, RecipeError
from evoprompt.images import ImageSet
from evoprompt.judge import NANO, OwlJudge, load_judge
from evoprompt.lifecycle import evolve
from evoprompt.prompts import PixelPrompt
from evoprompt.questions import FAMILIES, LEVELS, OTHER, Question, choose
from evoprompt.scoring import Scorer, columns, fits, level_probabilities

PIXELS = torch.rand(3, 3, 160, 160, generator=torch.Generator().manual_seed(2))


def _nano(question: str) -> OwlJudge:
    return load_judge(NANO, None, "auto", "float32", "cpu", question)


def _everything(judge: OwlJudge) -> tuple[Tensor, dict[str, int]]:
    """Probabilities of the whole vocabulary after the nano's rating text, (3, V), and the places of the levels."""
    before, after = (torch.tensor(ids) for ids in judge.processor.encode_text("<|image|> rate the quality :"))
    with torch.no_grad():
        segments = [before, judge.encode(PIXELS), after]
        logits = judge.model.answer_logits(segments, torch.arange(judge.model.config.vocab_size))
    return logits.double().softmax(-1), {word: judge.processor.answer_ids(word)[0] for word in LEVELS}


def _score(judge: OwlJudge) -> Tensor:
    question = judge.family.rate[0]
    with torch.no_grad():
        logits = judge.rate(judge.encode(PIXELS), question)
    assert logits.shape == (3, len(question.answers)) and logits.dtype == torch.float32
    return level_probabilities(logits[:, None]).double() @ torch.tensor(question.values, dtype=torch.float64)


def test_four_closed_words_score_1_plus_4_times_the_share_of_the_good_ones() -> None:
    judge = _nano("good-excellent")
    p, word = _everything(judge)
    good, poor = p[:, [word["good"], word["excellent"]]].sum(1), p[:, [word["poor"], word["bad"]]].sum(1)
    assert torch.allclose(_score(judge), 1 + 4 * good / (good + poor), atol=1e-5)


def test_four_open_words_score_3_plus_twice_their_balance_over_the_whole_vocabulary() -> None:
    judge = _nano("good-excellent-open")
    p, word = _everything(judge)
    good, poor = p[:, [word["good"], word["excellent"]]].sum(1), p[:, [word["poor"], word["bad"]]].sum(1)
    assert torch.allclose(_score(judge), 3 + 2 * (good - poor), atol=1e-5)


def test_open_levels_count_whatever_else_is_said_as_the_middle() -> None:
    judge = _nano("rate-open")
    p, word = _everything(judge)
    levels = torch.stack([p[:, word[level]] for level in LEVELS], dim=1)
    expected = levels @ torch.arange(1.0, 6.0, dtype=torch.float64) + 3 * (1 - levels.sum(1))
    assert torch.allclose(_score(judge), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["owl2", "qalign", "compare2score"])
def test_the_published_question_has_no_answer_prefix_and_its_four_words(name: str) -> None:
    question = choose(FAMILIES[name], "good-fine").rate[0]
    assert question.text == "USER: <|image|>Rate the technical quality of the image. ASSISTANT:"
    assert question.answers == ("bad", "poor", "fine", "good") and question.values == (1, 1, 5, 5)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_readout_stays_on_1_to_5_and_can_be_chosen(family) -> None:  # type: ignore[no-untyped-def]
    for question in family.readouts:
        chosen = choose(family, question.name)
        assert chosen.rate == (question,) and question not in chosen.readouts
        assert (question.values[0], question.values[-1]) == (1, 5)
        assert question.values[question.answers.index(OTHER)] == 3 if OTHER in question.answers else True
    other = family.rate[-1]
    assert choose(family, other.name).rate[0] == other and set(choose(family, other.name).rate) == set(family.rate)
    assert choose(family) == family


def test_an_unknown_question_is_told_with_those_there_are() -> None:
    message = "judge.question 'good-fine' is none of rate, look, clean, good-excellent, .* family nano can rate with"
    with pytest.raises(JudgeError, match=message):
        _nano("good-fine")


def test_an_answer_of_several_tokens_is_refused_when_the_judge_is_loaded() -> None:
    judge = _nano("auto")
    odd = Question(
        name="odd", task="rate", text="<|image|> rate the quality :", answers=("bad", "fine"), values=(1.0, 5.0)
    )
    with pytest.raises(JudgeError, match="question 'odd': answer 'fine' is not in the vocabulary for judge x"):
        OwlJudge(judge.model, judge.processor, "x", "0", replace(judge.family, rate=(odd,)))


class _Noting(ScriptedJudge):
    """Remembers which rating questions were put to it."""

    def __init__(self, question: str) -> None:
        super().__init__()
        self.family = choose(FAMILIES["owl2"], question)
        self.asked: set[str] = set()

    def rate(self, seen: Tensor, question: Question) -> Tensor:
        self.asked.add(question.name)
        return super().rate(seen, question)[:, [0, 1, 3, 4] if len(question.answers) == 4 else slice(None)]


@pytest.mark.parametrize("question", ["technical", "good-fine"])
def test_votes_training_gate_and_scores_all_ask_the_chosen_question(
    toys: ImageSet, quick: Recipe, tmp_path: Path, question: str
) -> None:
    judge = _Noting(question)
    vote = replace(quick.vote, source="both")
    run = evolve(replace(quick, rounds=1, vote=vote), toys, tmp_path / "run", judge, force=True)
    prompt = PixelPrompt.load(run / "prompt")
    Scorer(judge, prompt)([toys.records[0].path])
    assert judge.asked == {question} and prompt.origin.question == question


def test_more_wordings_than_a_readout_has_are_refused(toys: ImageSet, quick: Recipe, tmp_path: Path) -> None:
    vote = replace(quick.vote, source="rate", wordings=2)
    with pytest.raises(RecipeError, match="have 1; set -s vote.wordings=1"):
        evolve(replace(quick, vote=vote), toys, tmp_path / "run", _Noting("good-fine"))


def test_a_prompt_evolved_for_another_question_is_refused_with_what_to_set(
    toys: ImageSet, quick: Recipe, tmp_path: Path
) -> None:
    run = evolve(replace(quick, rounds=1), toys, tmp_path / "run", _Noting("technical"), force=True)
    with pytest.raises(DataError, match="evolved for question technical .* Set -s judge.question=technical"):
        fits(PixelPrompt.load(run / "prompt"), ScriptedJudge())


def test_a_file_of_scores_names_its_answers() -> None:
    closed, opened = (choose(FAMILIES["nano"], name).rate[0] for name in ("good-excellent", "good-excellent-open"))
    assert columns(closed) == ("image", "score", "p_bad", "p_poor", "p_good", "p_excellent", "error")
    assert columns(opened) == ("image", "score", "p_bad", "p_poor", "p_other", "p_good", "p_excellent", "error")
