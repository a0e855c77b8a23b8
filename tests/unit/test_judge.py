"""The judge: frozen, differentiable in pixels, without position bias in both orders, bare under a zero prompt."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from evoprompt.errors import JudgeError
from evoprompt.judge import NANO, OwlJudge, load_judge, preference_logits, resolve_device
from evoprompt.prompts import PixelPrompt, PromptConfig
from evoprompt.questions import FAMILIES, Question


@pytest.fixture(scope="module")
def judge() -> OwlJudge:
    return load_judge(NANO, None, "auto", "float32", "cpu")


@pytest.fixture(autouse=True)
def _bare(judge: OwlJudge) -> None:
    judge.attach(None)


def _images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 160, 160, generator=torch.Generator().manual_seed(seed)).round(decimals=2)


def _prompt(fill: float = 0.0, **config: object) -> PixelPrompt:
    prompt = PixelPrompt(PromptConfig(**{"image_size": 160, "size": 16, "blocks": 16, "strength": 0.6, **config}))  # type: ignore[arg-type]
    with torch.no_grad():
        prompt.theta.fill_(fill)
    return prompt


@pytest.mark.parametrize("kind", ["border", "patch", "overlay"])
def test_a_zero_prompt_is_the_bare_judge_bit_for_bit(judge: OwlJudge, kind: str) -> None:
    # Values 0 and 1 are where the clamp could move a bit.
    images = torch.cat([_images(2), torch.zeros(1, 3, 160, 160), torch.ones(1, 3, 160, 160)])
    bare = judge.rate(judge.encode(images), judge.family.rate[0])
    judge.attach(_prompt(kind=kind))
    assert torch.equal(judge.rate(judge.encode(images), judge.family.rate[0]), bare)


def test_the_prompt_in_the_tower_equals_the_prompt_on_the_pixels(judge: OwlJudge) -> None:
    images, prompt = _images(3), _prompt(0.4)
    painted = judge.encode(prompt(images))
    judge.attach(prompt)
    assert torch.allclose(judge.encode(images), painted, atol=1e-4)
    judge.attach(None)
    assert not torch.allclose(judge.encode(images), painted, atol=1e-2)


def test_answers_are_float32_and_of_the_stated_shape(judge: OwlJudge) -> None:
    seen = judge.encode(_images(3))
    assert judge.rate(seen, judge.family.rate[0]).shape == (3, 5)
    assert judge.compare(seen, seen.flip(0), judge.family.compare[0]).shape == (3, 2)
    coarse = load_judge(NANO, None, "auto", "bfloat16", "cpu")
    assert coarse.rate(coarse.encode(_images(1)), coarse.family.rate[0]).dtype == torch.float32


def test_a_rating_does_not_depend_on_the_batch(judge: OwlJudge) -> None:
    images, question = _images(5), judge.family.rate[0]
    together = judge.rate(judge.encode(images), question)
    alone = torch.cat([judge.rate(judge.encode(image[None]), question) for image in images])
    assert torch.allclose(together, alone, atol=1e-4)


def test_swapping_a_pair_negates_its_preference(judge: OwlJudge) -> None:
    seen, pairs = judge.encode(_images(8)), torch.arange(8).view(2, 4).T
    for question in judge.family.compare:
        forth = torch.stack(preference_logits(judge, seen, pairs, question)).mean(0)
        back = torch.stack(preference_logits(judge, seen, pairs.flip(1), question)).mean(0)
        assert torch.allclose(forth, -back, atol=1e-4)


def test_gradients_reach_pixels_and_prompt_but_no_parameter_of_the_judge(judge: OwlJudge) -> None:
    before = {name: p.clone() for name, p in judge.model.named_parameters()}
    prompt, images = _prompt(0.1), _images(2).requires_grad_()
    judge.attach(prompt)
    judge.rate(judge.encode(images), judge.family.rate[0])[:, 4].sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert prompt.theta.grad is not None and prompt.theta.grad.abs().sum() > 0
    assert all(not p.requires_grad and p.grad is None for p in judge.model.parameters())
    assert all(torch.equal(p, before[name]) for name, p in judge.model.named_parameters())


def test_a_prompt_for_another_image_size_is_refused(judge: OwlJudge) -> None:
    with pytest.raises(JudgeError, match="made for 96 px images, judge owl2-nano sees 160 px"):
        judge.attach(_prompt(image_size=96))


def test_graded_comparison_words_become_odds_of_first_and_second(judge: OwlJudge) -> None:
    words = ("bad", "poor", "fair", "good", "excellent")
    question = Question(
        name="graded",
        task="compare",
        text="<|image|> <|image|> which is better ?",
        answers=words,
        values=(0.0, 0.25, 0.5, 0.75, 1.0),
    )
    a, b = judge.encode(_images(2)), judge.encode(_images(2, seed=1))
    logits = judge.compare(a, b, question)
    asked = judge._ask(question)
    words_p = judge.model.answer_logits(
        [asked.chunks[0], a, asked.chunks[1], b, asked.chunks[2]], asked.answers
    ).softmax(-1)
    second = words_p @ torch.tensor(question.values)
    assert torch.allclose(logits.softmax(-1)[:, 1], second, atol=1e-4)


def test_an_answer_of_several_tokens_is_refused_at_the_start(judge: OwlJudge) -> None:
    odd = Question(name="odd", task="rate", text="<|image|> rate :", answers=("bad", "good enough"), values=(1.0, 5.0))
    family = replace(FAMILIES["nano"], rate=(odd,))
    with pytest.raises(JudgeError, match="'odd': answer 'good enough'"):
        OwlJudge(judge.model, judge.processor, "x", "0", family)


def test_every_answer_is_one_token_that_reads_as_the_answer(judge: OwlJudge) -> None:
    words = {word for question in (*judge.family.rate, *judge.family.compare) for word in question.answers}
    ids = {word: judge.processor.answer_ids(word) for word in words}
    assert all(len(one) == 1 and judge.processor.tokenizer.decode(one).strip() == word for word, one in ids.items())
    assert len({one[0] for one in ids.values()}) == len(words) == 7


def test_a_judge_that_is_not_there_is_named_with_what_to_do() -> None:
    with pytest.raises(JudgeError, match="judge 'no/such-judge' cannot be loaded"):
        load_judge("no/such-judge", None, "auto", "float32", "cpu")
    with pytest.raises(JudgeError, match="device 'abacus' cannot be used"):
        resolve_device("abacus")
