"""Fast ways of asking against slow ones: shared beginnings, batches, and what they cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from owl2_tiny import pixels, tiny_model, tiny_writer
from torch import Tensor

from evoprompt.asking import SHARED_SHARE, Room
from evoprompt.errors import JudgeError
from evoprompt.judge import NANO, OwlJudge, load_judge, preference_logits
from evoprompt.prompts import PixelPrompt, PromptConfig

ANSWERS, HEAD, MIDDLE, TAIL = (torch.tensor(ids) for ids in ([5, 7], [1, 9, 4], [8, 2], [6, 3, 11]))
NOTHING = torch.empty(0, dtype=torch.long)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def judge() -> OwlJudge:
    return load_judge(NANO, None, "auto", "float32", "cpu")


@pytest.fixture(scope="module")
def seen(judge: OwlJudge) -> Tensor:
    with torch.no_grad():
        return judge.encode(torch.rand(7, 3, 160, 160, generator=torch.Generator().manual_seed(0)))


def every_order(n: int) -> Tensor:
    return torch.tensor([(a, b) for a in range(n) for b in range(n) if a != b])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize(("head", "middle"), [(HEAD, MIDDLE), (HEAD, NOTHING), (NOTHING, MIDDLE)])
def test_rows_that_go_on_from_a_passage_say_what_whole_rows_say(
    attention: str, key_heads: int, head: Tensor, middle: Tensor
) -> None:
    model = tiny_model(attention, num_key_value_heads=key_heads)
    with torch.no_grad():
        seen = model.get_visual_tokens(pixels(5))
        first, second = seen[:2], seen[[2, 3, 4, 4, 0, 2]]
        whole = model.answer_logits([head, first.repeat_interleave(3, 0), middle, second, TAIL], ANSWERS)
        beginning = model.read([head]) if len(head) else None
        begun = model.read([first, middle], beginning)
        assert begun[0][0].shape[2] == len(head) + seen.shape[1] + len(middle)
        assert begun[0][0].shape[0] == 2  # one copy of what three rows share
        torch.testing.assert_close(model.answer_logits([second, TAIL], ANSWERS, begun), whole, atol=1e-5, rtol=0)


def test_a_long_text_before_the_image_is_read_once_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = tiny_writer()
    text = "USER: rate this rate this rate this <|image|> ASSISTANT: this is"
    words = ("bad", "fair")
    with torch.no_grad():
        seen = judge.encode(pixels(4).sigmoid())
        read = _lengths_read(judge, monkeypatch)
        shared = [judge.ask([seen], text, words) for _ in range(2)]
        assert [rows for rows, _ in read] == [1, 4, 4]
        monkeypatch.setattr("evoprompt.asking.SHARED_SHARE", 2.0)
        torch.testing.assert_close(shared[0], judge.ask([seen], text, words), atol=1e-5, rtol=0)
        assert read[3] == (4, read[0][1] + read[1][1])
    assert torch.equal(*shared)


def _lengths_read(judge: OwlJudge, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and tokens of every forward pass of the language model from now on."""
    found: list[tuple[int, int]] = []
    layer = judge.model.model.layers[0]
    plain = layer.forward

    def watched(states: Tensor, *arguments: object, **options: object) -> Tensor:
        found.append((states.shape[0], states.shape[1]))
        return plain(states, *arguments, **options)

    monkeypatch.setattr(layer, "forward", watched)
    return found


@pytest.mark.parametrize(
    "pairs",
    [
        every_order(7),
        torch.tensor([[0, 1], [1, 2], [2, 3], [1, 0], [2, 1], [3, 2]]),  # neighbouring steps of a ladder
        torch.tensor([[4, 5]]),
        torch.tensor([[3, 1], [3, 1], [3, 3]]),
    ],
    ids=["group", "ladder", "one", "repeated"],
)
def test_pairs_asked_together_get_the_answers_they_get_alone(judge: OwlJudge, seen: Tensor, pairs: Tensor) -> None:
    for question in judge.family.compare:
        with torch.no_grad():
            slow = judge.compare(seen[pairs[:, 0]], seen[pairs[:, 1]], question)
            torch.testing.assert_close(judge.compare_among(seen, pairs, question), slow, atol=1e-5, rtol=0)


def test_preferences_equal_those_of_pairs_read_whole_one_at_a_time(judge: OwlJudge, seen: Tensor) -> None:
    pairs, question = torch.tensor([[0, 1], [0, 2], [5, 0]]), judge.family.compare[0]
    with torch.no_grad():
        for k, logits in enumerate(zip(*preference_logits(judge, seen, pairs, question), strict=True)):
            a, b = seen[pairs[k, :1]], seen[pairs[k, 1:]]
            ab, ba = (judge.ask(shown, question.text, question.answers)[0] for shown in ((a, b), (b, a)))
            expected = (ab[0] - ab[1], ba[1] - ba[0])
            torch.testing.assert_close(torch.stack(logits), torch.stack(expected), atol=1e-5, rtol=0)


def test_pairs_in_bfloat16_are_within_a_tenth_of_a_logit(seen: Tensor) -> None:
    coarse = load_judge(NANO, None, "auto", "bfloat16", "cpu")
    pairs, question = every_order(7), coarse.family.compare[0]
    with torch.no_grad():
        slow = coarse.compare(seen[pairs[:, 0]], seen[pairs[:, 1]], question)
        gap = (coarse.compare_among(seen, pairs, question) - slow).abs()
    assert gap.max() < 0.1 and gap.mean() < 0.02


def test_what_pairs_share_is_read_once(judge: OwlJudge, seen: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    question, n, tokens = judge.family.compare[0], len(seen), seen.shape[1]
    head, middle, tail = judge._ask(question).chunks
    judge.compare_among(seen, every_order(n), question)  # reads the head
    read = _lengths_read(judge, monkeypatch)
    judge.compare_among(seen, every_order(n), question)
    assert read == [(n, tokens + len(middle)), (n * (n - 1), tokens + len(tail))]


def test_graded_words_are_shared_like_others(judge: OwlJudge, seen: Tensor) -> None:
    words = ("bad", "poor", "fair", "good", "excellent")
    graded = replace(judge.family.compare[0], name="graded", answers=words, values=(0.0, 0.25, 0.5, 0.75, 1.0))
    pairs = every_order(4)
    with torch.no_grad():
        slow = judge.compare(seen[pairs[:, 0]], seen[pairs[:, 1]], graded)
    torch.testing.assert_close(judge.compare_among(seen, pairs, graded), slow, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rows", [1, 3, 20])
def test_answers_do_not_depend_on_the_batch_size(judge: OwlJudge, seen: Tensor, rows: int) -> None:
    small, question = OwlJudge(judge.model, judge.processor, "small", "0", judge.family), judge.family.compare[0]
    small.asker.room.bytes = rows * small.asker.text_bytes(23)
    with torch.no_grad():
        for ask in (
            lambda who: who.compare_among(seen, every_order(7), question),
            lambda who: who.compare(seen, seen.flip(0), question),
            lambda who: who.rate(seen, judge.family.rate[0]),
        ):
            torch.testing.assert_close(ask(small), ask(judge), atol=1e-5, rtol=0)


def test_encoded_images_do_not_depend_on_the_batch_size(judge: OwlJudge) -> None:
    images = torch.rand(5, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    small = OwlJudge(judge.model, judge.processor, "small", "0", judge.family)
    small.asker.room.bytes = 2 * small.image_bytes()
    with torch.no_grad():
        torch.testing.assert_close(small.encode(images), judge.encode(images), atol=1e-5, rtol=0)


def test_states_stay_within_the_memory_given(judge: OwlJudge, seen: Tensor) -> None:
    mib = 4
    small = OwlJudge(judge.model, judge.processor, "small", "0", judge.family, memory_mib=mib)
    pairs, question = every_order(7).repeat(4, 1), judge.family.compare[0]
    small.compare_among(seen, pairs, question)
    images = torch.rand(12, 3, 160, 160)
    for work in (lambda: small.compare_among(seen, pairs, question), lambda: small.encode(images)):
        with torch.profiler.profile(profile_memory=True) as profile, torch.no_grad():
            work()
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        events.sort(key=lambda e: e.start_ns())
        assert max(np.cumsum([e.nbytes() for e in events])) < mib << 20


def test_a_batch_that_does_not_fit_is_halved_once_and_for_all() -> None:
    room, tried = Room(1, torch.device("meta")), []

    def forward(rows: slice) -> Tensor:
        tried.append(rows.stop - rows.start)
        if tried[-1] > 10:
            raise torch.OutOfMemoryError
        return torch.arange(rows.start, rows.stop)

    for _ in range(2):
        assert torch.equal(room.in_batches("pairs", 40, (1 << 20) // 32, forward), torch.arange(40))
    assert tried == [32, 16, 8, 8, 8, 8, 8] + [8] * 5
    assert room.rows("other", (1 << 20) // 32) == 32


def test_no_room_for_a_single_row_is_said() -> None:
    def forward(rows: slice) -> Tensor:
        raise torch.OutOfMemoryError

    with pytest.raises(JudgeError, match=r"not enough memory for one row \(pairs, about 3 MiB\)"):
        Room(8, CPU).in_batches("pairs", 2, 3 << 20, forward)


def test_with_gradients_all_rows_are_one_batch_and_equal_to_the_fast_way(judge: OwlJudge) -> None:
    images = torch.rand(3, 3, 160, 160, requires_grad=True)
    logits = judge.rate(judge.encode(images), judge.family.rate[0])
    logits.sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    with torch.no_grad():
        torch.testing.assert_close(judge.rate(judge.encode(images), judge.family.rate[0]), logits, atol=1e-5, rtol=0)


def test_the_hash_of_the_prompt_follows_its_values(judge: OwlJudge) -> None:
    prompt = PixelPrompt(PromptConfig(image_size=160, size=16, blocks=16))
    assert judge.prompt_sha == "none"
    judge.attach(prompt)
    before = judge.prompt_sha
    with torch.no_grad():
        prompt.theta[0, 0] = 0.5
    assert len({"none", before, judge.prompt_sha}) == 3
    judge.attach(None)
    assert judge.prompt_sha == "none"


def test_short_beginnings_are_read_with_every_row(
    judge: OwlJudge, seen: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = _lengths_read(judge, monkeypatch)
    with torch.no_grad():
        judge.rate(seen, judge.family.rate[0])
    (rows, length), *more = read
    assert rows == len(seen) and not more and 1 / length < SHARED_SHARE
