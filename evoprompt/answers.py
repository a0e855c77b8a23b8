"""What a judge may answer to a question that rates: answers drawn, and how likely they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from evoprompt.config import GrpoConfig
from evoprompt.errors import JudgeError
from evoprompt.grpo import draw_answers
from evoprompt.judge import Judge, OwlJudge
from evoprompt.questions import OTHER, Question

TURN = "ASSISTANT:"
REASON = "Give the reason in one short sentence first."


class LevelAnswers:
    """Answers of one word, the level. An answer is the place of its word among the question's answers.

    Args:
        judge: any judge, with or without a prompt.
        question: one that rates; its answers are the whole of what can be said.
    """

    def __init__(self, judge: Judge, question: Question) -> None:
        self.judge, self.question = judge, question

    def draw(self, pixels: Tensor, n: int, generators: Sequence[torch.Generator]) -> list[list[int]]:
        """Draw answers.

        Args:
            pixels: (B, 3, S, S) float32 in [0, 1].
            n: answers an image.
            generators: one an image, on the CPU, so that an image's answers do not depend on what else is asked.

        Returns:
            B x n answers, those of the first image first.
        """
        logits = self.judge.rate(self.judge.encode(pixels), self.question)
        drawn = [draw_answers(row[None], n, generator) for row, generator in zip(logits, generators, strict=True)]
        return [[int(level)] for level in torch.cat(drawn).flatten()]

    def log_probabilities(self, pixels: Tensor, image: Tensor, answers: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """How likely answers are; one look an image, however many answers it has.

        Args:
            pixels: (B, 3, S, S) float32 in [0, 1].
            image: (R,) int64, which image an answer is of.
            answers: (R, C) int64.
            mask: (R, C), 1 where there is an answer, 0 behind its end.

        Returns:
            (R, C) log-probability of each part of an answer, differentiable in the prompt, and (R, C) entropy there.
        """
        logits = self.judge.rate(self.judge.encode(pixels), self.question)[image]
        return _pick(logits[:, None], answers)


class WrittenAnswers(LevelAnswers):
    """Answers with a reason: a short sentence in the judge's own words, then the level.

    The question is the judge's own with one sentence more. What it has the assistant begin with ("The quality of the
    image is") is put between reason and level by us, so it is no part of the answer and has no probability. An answer
    is the ids of its reason and, last, the place of the level. A reason is drawn from all but special tokens and ends
    with a sentence or after ``longest`` tokens.

    Args:
        judge: an mPLUG-Owl2 whose vocabulary can say sentences.
        question: one that rates, is not open, and has the assistant begin its answer.
        longest: tokens of a reason, at most.

    Raises:
        JudgeError: when the judge or the question is not like that.
    """

    def __init__(self, judge: Judge, question: Question, longest: int) -> None:
        super().__init__(judge, question)
        head, turn, start = question.text.rpartition(TURN)
        if not isinstance(judge, OwlJudge) or not turn:
            raise JudgeError(
                f"judge {judge.id} cannot give a reason: it answers question {question.name!r} with a word and has no "
                "words for sentences. Set grpo.rationale=0, or use mPLUG-Owl2 or one of its large relatives."
            )
        if OTHER in question.answers:
            raise JudgeError(
                f"question {question.name!r} is open, so a level after a reason has no share of its own. Set "
                "grpo.rationale=0, or choose a closed judge.question."
            )
        self.longest, self.owl, processor = longest, judge.model, judge.processor
        try:
            before, after = processor.encode_text(f"{head.rstrip(' ')} {REASON} {TURN}")
            start_ids = processor.answer_ids(start.lstrip(" "))
            levels = [processor.answer_ids(word)[0] for word in question.answers]
        except ValueError as error:
            raise JudgeError(f"judge {judge.id} cannot give a reason: {error}. Set grpo.rationale=0.") from error
        tensor = partial(torch.tensor, dtype=torch.long, device=judge.device)
        places = [processor.image_token_id] * judge.model.config.num_image_tokens
        self.asked, self.start, self.levels = tensor(before + places + after), tensor(start_ids), tensor(levels)
        tokenizer, size = processor.tokenizer, judge.model.config.vocab_size
        known = tokenizer.convert_ids_to_tokens(range(min(len(tokenizer), size)))
        silent = {*tokenizer.all_special_ids, processor.image_token_id, *range(len(known), size)}
        self.forbidden = tensor([id_ for id_ in range(size) if id_ in silent])
        self.ends = tensor([id_ for id_, token in enumerate(known) if token.endswith((".", "!", "?"))])

    def draw(self, pixels: Tensor, n: int, generators: Sequence[torch.Generator]) -> list[list[int]]:
        """As in ``LevelAnswers``."""
        seen = self.judge.encode(pixels)
        reasons = self._write(seen, n, generators)
        rows = torch.arange(len(seen), device=seen.device).repeat_interleave(n)
        states = self._states(seen[rows], reasons)
        levels = torch.split(self._level_logits(states[:, -1]), n)
        drawn = [draw_answers(logits, 1, generator) for logits, generator in zip(levels, generators, strict=True)]
        return [[*reason.tolist(), int(level)] for reason, level in zip(reasons, torch.cat(drawn), strict=True)]

    def log_probabilities(self, pixels: Tensor, image: Tensor, answers: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """As in ``LevelAnswers``."""
        lengths = mask.sum(dim=1) - 1  # of the reasons
        reasons = [row[:length] for row, length in zip(answers, lengths.tolist(), strict=True)]
        states, longest = self._states(self.judge.encode(pixels)[image], reasons), int(lengths.max())
        # Reasons end at the same place, so the one of row r starts longest - length later than the longest one.
        spoken = states[:, len(self.asked) - 1 :][:, :longest]
        shift = (torch.arange(longest, device=spoken.device) + (longest - lengths)[:, None]).clamp(max=longest - 1)
        spoken = spoken.gather(1, shift[..., None].expand_as(spoken))
        of_words = _pick(self._word_logits(spoken), answers[:, :longest])
        of_levels = _pick(self._level_logits(states[:, -1])[:, None], answers.gather(1, lengths[:, None]))
        at_level = torch.arange(answers.shape[1], device=mask.device) == lengths[:, None]
        behind = mask == 0
        log_p, entropy = (
            torch.where(at_level, level, nn.functional.pad(word, (0, answers.shape[1] - longest))).masked_fill(
                behind, 0
            )
            for word, level in zip(of_words, of_levels, strict=True)
        )
        return log_p, entropy

    def _write(self, seen: Tensor, n: int, generators: Sequence[torch.Generator]) -> list[Tensor]:
        """Reasons for B images (B, T, D), B x n rows of ids."""
        out = self.owl.model(
            input_ids=self.asked.expand(len(seen), -1), mm_encoder_outputs=_images(seen), use_cache=True
        )
        memory = out.past_key_values
        memory.batch_repeat_interleave(n)
        state = out.last_hidden_state[:, -1].repeat_interleave(n, dim=0)
        written = torch.zeros(len(state), 0, dtype=torch.long, device=state.device)
        open_ = torch.ones(len(state), dtype=torch.bool, device=state.device)
        lengths = torch.full_like(open_, self.longest, dtype=torch.long)
        while bool(open_.any()) and written.shape[1] < self.longest:
            # An image that has all its reasons draws no more: its level then comes from the same place of its stream.
            word = torch.cat(
                [
                    draw_answers(logits, 1, generator)[:, 0] if bool(still.any()) else logits.new_zeros(n).long()
                    for logits, still, generator in zip(
                        torch.split(self._word_logits(state), n), torch.split(open_, n), generators, strict=True
                    )
                ]
            )
            written = torch.cat([written, word[:, None]], dim=1)
            ended = open_ & torch.isin(word, self.ends)
            lengths[ended], open_ = written.shape[1], open_ & ~ended
            state = self.owl.model(input_ids=word[:, None], past_key_values=memory).last_hidden_state[:, -1]
        return [row[:length] for row, length in zip(written, lengths.tolist(), strict=True)]

    def _states(self, seen: Tensor, reasons: Sequence[Tensor]) -> Tensor:
        """The judge's states (R, N, D) over question, reason and the start of the answer, padded on the left."""
        rows = [torch.cat([self.asked, reason, self.start]) for reason in reasons]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0, padding_side="left")
        lengths = torch.tensor([len(row) for row in rows], device=ids.device)
        mask = torch.arange(ids.shape[1], device=ids.device) >= (ids.shape[1] - lengths)[:, None]
        out = self.owl.model(input_ids=ids, attention_mask=mask.long(), mm_encoder_outputs=_images(seen))
        states: Tensor = out.last_hidden_state
        return states

    def _word_logits(self, states: Tensor) -> Tensor:
        logits: Tensor = self.owl.lm_head(states).float()
        return logits.index_fill(-1, self.forbidden, -math.inf)

    def _level_logits(self, states: Tensor) -> Tensor:
        """(R, D) -> (R, L), as ``OwlJudge.rate`` computes them."""
        weight = self.owl.lm_head.weight[self.levels].float()
        return nn.functional.linear(states.float(), weight) / self.question.temperature


def answers_of(judge: Judge, grpo: GrpoConfig) -> LevelAnswers:
    """The answers that a recipe asks for; cheap, so that a judge that cannot give them is refused before anything runs.

    Raises:
        JudgeError: when a rationale is asked of a judge that cannot write one.
    """
    question = judge.family.rate[0]
    return WrittenAnswers(judge, question, grpo.rationale) if grpo.rationale else LevelAnswers(judge, question)


def _images(seen: Tensor) -> dict[str, BaseModelOutputWithPooling]:
    """Visual tokens (B, T, D) as the model takes images that were encoded before."""
    return {"image": BaseModelOutputWithPooling(pooler_output=list(seen))}


def _pick(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of ids (R, C) under softmax(logits) (R, C, V), and the entropies (R, C) of that."""
    log_p = logits.log_softmax(dim=-1)
    return log_p.gather(-1, ids[..., None])[..., 0], torch.special.entr(log_p.detach().exp()).sum(dim=-1)
