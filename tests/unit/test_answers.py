"""Answers drawn from a judge: their likelihood is that of a plain forward pass, and no other image changes them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from conftest import SIDE, ScriptedJudge
from owl2_tiny import tiny_writer

from evoprompt.answers import REASON, LevelAnswers, WrittenAnswers, answers_of
from evoprompt.config import GrpoConfig
from evoprompt.errors import JudgeError
from evoprompt.judge import NANO, OwlJudge, load_judge
from evoprompt.questions import OTHER, Question


@pytest.fixture(scope="module")
def writer() -> OwlJudge:
    return tiny_writer()


def images(n: int, side: int = 32) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def generators(n: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + k) for k in range(n)]


def padded(answers: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [torch.tensor(answer) for answer in answers]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return ids, (torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]).long()


def test_levels_are_drawn_as_often_as_they_are_likely() -> None:
    judge = ScriptedJudge()
    answers = LevelAnswers(judge, judge.family.rate[0])
    pixels = images(2, SIDE)
    drawn = answers.draw(pixels, 4000, generators(2))
    log_p, entropy = answers.log_probabilities(
        pixels, torch.tensor([0] * 5 + [1] * 5), torch.arange(5).repeat(2)[:, None], torch.ones(10, 1)
    )
    for image in range(2):
        count = Counter(level for (level,) in drawn[image * 4000 : (image + 1) * 4000])
        shares = torch.tensor([count[level] / 4000 for level in range(5)])
        torch.testing.assert_close(shares, log_p[image * 5 : image * 5 + 5, 0].exp(), rtol=0, atol=0.03)
        p = log_p[image * 5 : image * 5 + 5, 0].exp()
        torch.testing.assert_close(entropy[image * 5, 0], -(p * p.log()).sum())


@pytest.mark.parametrize("written", [False, True])
def test_an_image_gets_the_same_answers_in_any_company(writer: OwlJudge, written: bool) -> None:
    grpo = GrpoConfig(engine="trl", rationale=5 * written)
    answers, pixels = answers_of(writer, grpo), images(3)
    together = answers.draw(pixels, 4, generators(3))
    alone = [answers.draw(pixels[k : k + 1], 4, generators(1, k)) for k in range(3)]
    assert together == [answer for part in alone for answer in part]
    assert len({tuple(answer) for answer in together}) > 3


def test_a_reason_is_of_words_and_ends_with_a_sentence_or_at_the_limit(writer: OwlJudge) -> None:
    answers = WrittenAnswers(writer, writer.family.rate[0], 5)
    drawn = answers.draw(images(6), 8, generators(6))
    tokens = [writer.processor.tokenizer.convert_ids_to_tokens(answer[:-1]) for answer in drawn]
    stops = [[token.endswith(".") for token in reason] for reason in tokens]
    assert all(1 <= len(reason) <= 5 and not any(stop[:-1]) for reason, stop in zip(tokens, stops, strict=True))
    assert all(stop[-1] or len(stop) == 5 for stop in stops)
    assert {len(reason) for reason in tokens} >= {1, 5}  # both happen
    assert not {"<unk>", "<s>", "</s>", "<|image|>"} & {token for reason in tokens for token in reason}
    assert {answer[-1] for answer in drawn} <= set(range(5))


def test_a_written_answer_is_as_likely_as_in_one_plain_forward_pass(writer: OwlJudge) -> None:
    question = writer.family.rate[0]
    answers, pixels = WrittenAnswers(writer, question, 5), images(2)
    drawn = answers.draw(pixels, 3, generators(2))
    assert len({len(answer) for answer in drawn}) > 1  # so that something is padded
    ids, mask = padded(drawn)
    image = torch.arange(2).repeat_interleave(3)
    log_p, entropy = answers.log_probabilities(pixels, image, ids, mask)
    tokenizer, seen = writer.processor.tokenizer, writer.encode(pixels)
    start = question.text.rpartition("ASSISTANT:")[2]
    forbidden = [tokenizer.convert_tokens_to_ids(token) for token in ("<unk>", "<s>", "</s>", "<|image|>")]
    for row, answer in enumerate(drawn):
        *reason, level = answer
        asked = question.text.replace(start, "").replace(" ASSISTANT:", f" {REASON} ASSISTANT:")
        chunks = [torch.tensor(chunk) for chunk in writer.processor.encode_text(asked)]
        for place, word in enumerate(reason):
            segments = [chunks[0], seen[image[row]][None], torch.cat([chunks[1], torch.tensor(reason[:place]).long()])]
            logits = writer.model.answer_logits(segments, torch.arange(len(tokenizer)))[0]
            logits[forbidden] = -torch.inf
            assert log_p[row, place] == pytest.approx(float(logits.log_softmax(0)[word]), abs=1e-4)
        text = torch.cat([chunks[1], torch.tensor(reason), torch.tensor(writer.processor.answer_ids(start.strip()))])
        words = torch.tensor([writer.processor.answer_ids(word)[0] for word in question.answers])
        logits = writer.model.answer_logits([chunks[0], seen[image[row]][None], text], words)[0]
        assert log_p[row, len(reason)] == pytest.approx(float(logits.log_softmax(0)[level]), abs=1e-4)
    assert not log_p[mask == 0].any() and not entropy[mask == 0].any()
    assert log_p.isfinite().all() and (entropy >= 0).all()


def test_a_reason_is_asked_of_no_judge_that_cannot_write_one(writer: OwlJudge) -> None:
    grpo = GrpoConfig(engine="trl", rationale=20)
    with pytest.raises(
        JudgeError, match="owl2-nano cannot give a reason: .* no words for sentences. Set grpo.rationale=0"
    ):
        answers_of(load_judge(NANO, None, "auto", "float32", "cpu"), grpo)
    with pytest.raises(JudgeError, match="scripted cannot give a reason"):
        answers_of(ScriptedJudge(), grpo)
    question = writer.family.rate[0]
    odd = replace(question, text=question.text.replace("rate", "judge"))
    with pytest.raises(JudgeError, match="cannot give a reason: .*vocabulary lacks.*Set grpo.rationale=0"):
        WrittenAnswers(writer, odd, 20)
    open_ = Question(
        name="open", task="rate", text=question.text, answers=("bad", OTHER, "good"), values=(1.0, 3.0, 5.0)
    )
    with pytest.raises(JudgeError, match="'open' is open, .*choose a closed judge.question"):
        WrittenAnswers(writer, open_, 20)
