"""Behaviour of the model that no recorded number shows: gradients, cost, dtypes, checkpointing, prompts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from owl2_tiny import QUERIES, SIDE, ids, pixels, save_checkpoint, tiny_config, tiny_model
from torch import Tensor, nn

from evoprompt.owl2 import Owl2Config, Owl2ForConditionalGeneration, load_owl2
from evoprompt.owl2.modeling import Owl2MultiwayLinear

BEFORE, BETWEEN, AFTER = torch.tensor([1, 5, 6]), torch.tensor([9]), torch.tensor([7, 8])
ANSWERS = torch.tensor([30, 4, 17])


def positions(model: Owl2ForConditionalGeneration) -> Counter[tuple[str, int]]:
    """Counts, from now on, how many positions each way of the k and v projections, and the last MLP, computes."""
    counts: Counter[tuple[str, int]] = Counter()

    def count(key: tuple[str, int]) -> object:
        return lambda _module, args, _output: counts.update({key: args[0].shape[:-1].numel()})

    for module in model.modules():
        if isinstance(module, Owl2MultiwayLinear):
            for way, linear in enumerate(module.multiway):
                linear.register_forward_hook(count(("way", way)))
    model.model.layers[-1].mlp.register_forward_hook(count(("last mlp", 0)))
    model.lm_head.register_forward_hook(count(("head", 0)))
    return counts


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_answer_logits_are_the_last_logits_of_forward(attention: str) -> None:
    model, images = tiny_model(attention), pixels(4)
    seen = model.get_visual_tokens(images)
    segments = [BEFORE, seen[:2], BETWEEN, seen[2:], AFTER]
    row = ids(model, *BEFORE.tolist(), "image", *BETWEEN.tolist(), "image", *AFTER.tolist())
    whole = model(input_ids=row.expand(2, -1), pixel_values=images[[0, 2, 1, 3]]).logits[:, -1, ANSWERS]
    torch.testing.assert_close(model.answer_logits(segments, ANSWERS), whole, atol=1e-5, rtol=0)
    assert whole.std() > 0.1


def test_text_alone_can_be_answered() -> None:
    model = tiny_model()
    logits = model.answer_logits([BEFORE, AFTER], ANSWERS)
    whole = model(input_ids=torch.cat([BEFORE, AFTER])[None]).logits[:, -1, ANSWERS]
    torch.testing.assert_close(logits, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "segments",
    [
        [],
        [pixels(1)[0]],
        [BEFORE, torch.zeros(1, 4, 24)],
        [BEFORE, torch.zeros(0, dtype=torch.long)],
        [BEFORE[None, None, None]],
    ],
)
def test_segments_that_do_not_end_with_text_are_refused(segments: list[Tensor]) -> None:
    with pytest.raises(ValueError, match="end with ids"):
        tiny_model().answer_logits(segments, ANSWERS)


@pytest.mark.parametrize("rows_alike", [True, False])
def test_every_position_passes_one_way_only(rows_alike: bool) -> None:
    model = tiny_model()
    row = ids(model, 1, 5, "image", 6, 7)
    other = row if rows_alike else ids(model, 1, "image", 5, 6, 7)
    counts = positions(model)
    model(input_ids=torch.cat([row, other]), pixel_values=pixels(2), logits_to_keep=1)
    calls = 2 * len(model.model.layers)  # keys and values
    assert counts[("way", 1)] == calls * 2 * (QUERIES + 1)
    assert counts[("way", 0)] == calls * 2 * 4
    assert counts[("head", 0)] == 2


def test_rows_that_differ_give_what_each_gives_alone() -> None:
    model, images = tiny_model(), pixels(3)
    rows = [ids(model, 1, 5, "image", 6, 7, 8), ids(model, 1, "image", 5, 6, 7, 8)]
    together = model(input_ids=torch.cat(rows), pixel_values=images[:2]).logits
    for index, row in enumerate(rows):
        alone = model(input_ids=row, pixel_values=images[index : index + 1]).logits
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-5, rtol=0)


def test_an_answer_costs_the_last_position_of_the_last_layer_and_no_head() -> None:
    model = tiny_model()
    seen = model.get_visual_tokens(pixels(5))
    counts = positions(model)
    model.answer_logits([BEFORE, seen, AFTER], ANSWERS)
    assert counts[("last mlp", 0)] == 5
    assert counts[("head", 0)] == 0
    assert counts[("way", 1)] == 2 * len(model.model.layers) * 5 * (QUERIES + 1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_pixels_get_a_gradient_and_frozen_weights_none(attention: str) -> None:
    model, images = tiny_model(attention), pixels(2).requires_grad_()
    model.answer_logits([BEFORE, model.get_visual_tokens(images), AFTER], ANSWERS).pow(2).sum().backward()
    assert images.grad is not None and (images.grad.flatten(1).abs().amax(1) > 1e-4).all()
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())


def test_pixel_gradient_is_the_slope() -> None:
    model, images = tiny_model("eager").double(), pixels(1).double()
    direction = pixels(1, seed=1).double()

    def value(x: Tensor) -> Tensor:
        return model.model.last_state([BEFORE, model.get_visual_tokens(x), AFTER]).sum()

    images.requires_grad_()
    (gradient,) = torch.autograd.grad(value(images), images)
    with torch.no_grad():
        slope = (value(images + 1e-4 * direction) - value(images - 1e-4 * direction)) / 2e-4
    # The norms compute in float32 whatever the model's dtype, which bounds how exact a difference can be.
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-2, atol=1e-2)


def test_every_weight_trains_through_the_answers() -> None:
    torch.manual_seed(0)
    model = Owl2ForConditionalGeneration(tiny_config()).train()
    seen = model.get_visual_tokens(pixels(4))
    model.answer_logits([BEFORE, seen[:2], BETWEEN, seen[2:], AFTER], torch.arange(48)).logsumexp(1).sum().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    # Nothing but text follows in the last layer's second norm, so its image weight is the only one not asked.
    assert without <= {"model.layers.2.post_attention_layernorm.multiway.1.weight"}
    assert not any(buffer.requires_grad for buffer in model.buffers())


def test_new_model_starts_from_spread_weights_and_computed_tables() -> None:
    torch.manual_seed(0)
    model = Owl2ForConditionalGeneration(tiny_config())
    for name in ("vision_model.embeddings.cls_token", "vision_model.embeddings.position_embedding"):
        assert 0.005 < model.model.get_parameter(name).std() < 0.05
    assert 0.005 < model.model.visual_abstractor.query_embeds.std() < 0.05
    tables = [buffer for name, buffer in model.named_buffers() if name.endswith("pos_embed")]
    assert len(tables) == 4 and all(0.9 < table.abs().max() <= 1 for table in tables)


def test_eager_attention_equals_sdpa_under_padding_and_gradients() -> None:
    results = []
    for attention in ("sdpa", "eager"):
        model, images = tiny_model(attention), pixels(2).requires_grad_()
        row = ids(model, 1, 5, "image", 6, 7, 8)
        padded = torch.cat([torch.zeros_like(row[:, :2]), row[:, 2:]], dim=1)
        mask = torch.ones(2, row.shape[1], dtype=torch.long)
        mask[1, :2] = 0
        logits = model(input_ids=torch.cat([row, padded]), pixel_values=images, attention_mask=mask).logits[:, -1]
        (gradient,) = torch.autograd.grad(logits.pow(2).sum(), images)
        results.append((logits, gradient))
    torch.testing.assert_close(results[0], results[1], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_can_be_changed_after_loading(monkeypatch: pytest.MonkeyPatch, attention: str) -> None:
    model = tiny_model("eager" if attention == "sdpa" else "sdpa")
    model.set_attn_implementation(attention)
    calls: Counter[str] = Counter()
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *args, **options: (calls.update(["fused"]), fused(*args, **options))[1],
    )
    model.answer_logits([BEFORE, model.get_visual_tokens(pixels(1)), AFTER], ANSWERS)
    assert calls["fused"] == (7 if attention == "sdpa" else 0)  # 2 layers of the tower, 2 of the abstractor, 3


def test_small_prompt_survives_bfloat16(tmp_path: Path) -> None:
    save_checkpoint(tmp_path)
    exact, _ = load_owl2(str(tmp_path))
    coarse, _ = load_owl2(str(tmp_path), dtype=torch.bfloat16)
    dtypes = {name: parameter.dtype for name, parameter in coarse.named_parameters()}
    name = "model.vision_model.embeddings.patch_embed.weight"
    assert dtypes.pop(name) == torch.float32 and set(dtypes.values()) == {torch.bfloat16}
    images, prompt = pixels(1), 0.004 * pixels(1, seed=1).sign()  # a quarter of a grey level, normalised
    effects = []
    for model in (exact, coarse):
        patches: list[Tensor] = []
        handle = model.model.vision_model.embeddings.patch_embed.register_forward_hook(
            lambda _module, _args, output, patches=patches: patches.append(output)
        )
        model.get_visual_tokens(images)
        model.get_visual_tokens(images + prompt)
        handle.remove()
        effects.append((patches[1] - patches[0]).float())
    # The weight itself was stored in float32; what is left is the rounding of float32 sums.
    assert (effects[0] - effects[1]).norm() / effects[0].norm() < 1e-3
    rounded = (images + prompt).bfloat16().float() - images.bfloat16().float()
    assert (rounded - prompt).norm() / prompt.norm() > 0.2, "the test would not notice a 16-bit convolution"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bfloat16_answers_are_near_and_in_float32(tmp_path: Path, attention: str) -> None:
    save_checkpoint(tmp_path)
    exact, _ = load_owl2(str(tmp_path))
    coarse, _ = load_owl2(str(tmp_path), dtype=torch.bfloat16)
    coarse.set_attn_implementation(attention)
    a, b = (m.answer_logits([BEFORE, m.get_visual_tokens(pixels(2)), AFTER], ANSWERS) for m in (exact, coarse))
    assert b.dtype == torch.float32
    assert (a - b).abs().max() < 0.1 * a.std()
    assert not torch.equal(b, b.bfloat16().float())


class ShiftPixels:
    """What a pixel prompt does, as a pre-hook of the tower; takes both ways of passing pixels."""

    def __call__(self, _module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> object:
        if args:
            return (args[0] + 0.5, *args[1:]), kwargs
        return args, kwargs | {"pixel_values": kwargs["pixel_values"] + 0.5}


def test_generate_and_forward_and_answers_see_a_prompt_at_the_tower() -> None:
    model, images = tiny_model(), pixels(2)
    row = ids(model, *BEFORE.tolist(), "image", *AFTER.tolist()).expand(2, -1)
    bare = model(input_ids=row, pixel_values=images).logits[:, -1]
    handle = model.model.vision_model.register_forward_pre_hook(ShiftPixels(), with_kwargs=True)
    forward = model(input_ids=row, pixel_values=images).logits[:, -1]
    options = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    generated = model.generate(input_ids=row, pixel_values=images, **options)
    answered = model.answer_logits([BEFORE, model.get_visual_tokens(images), AFTER], torch.arange(48))
    handle.remove()
    torch.testing.assert_close(generated.logits[0], forward, atol=1e-5, rtol=0)
    torch.testing.assert_close(answered, forward, atol=1e-5, rtol=0)
    assert (forward - bare).abs().max() > 0.05
    assert model.get_encoder("image") is model.model.vision_model  # where TRL and others look for the tower


def test_generate_returns_several_answers_for_images_of_several_rows() -> None:
    model, images = tiny_model(), pixels(3)
    rows = torch.cat([ids(model, 1, "image", 5, "image", 6), ids(model, 1, 7, 8, 9, 9, 5, "image", 6)])
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": 47}
    single = model.generate(input_ids=rows, pixel_values=images, **options)
    beams = model.generate(input_ids=rows, pixel_values=images, num_beams=2, num_return_sequences=2, **options)
    alone = model.generate(input_ids=rows[1:], pixel_values=images[2:], num_beams=2, num_return_sequences=2, **options)
    assert beams.shape == (4, single.shape[1])
    assert torch.equal(beams[2:], alone)


def test_frames_of_a_video_fill_one_run_of_image_tokens() -> None:
    model, images = tiny_model(), pixels(4)
    row = ids(model, 1, "image", "image", 6)
    five = model(input_ids=row.expand(2, -1), pixel_values=images.view(2, 2, 3, SIDE, SIDE)).logits
    listed = model(input_ids=row.expand(2, -1), pixel_values=[images[:2], images[2:]]).logits
    four = model(input_ids=row.expand(2, -1), pixel_values=images).logits
    assert torch.equal(five, four) and torch.equal(listed, four)


@pytest.mark.parametrize("count", [1, 3])
def test_too_few_or_too_many_images_are_refused(count: int) -> None:
    model = tiny_model()
    with pytest.raises(
        ValueError, match=rf"hold 8 image tokens \(id 48\) but the images make {4 * count}; every image needs 4"
    ):
        model(input_ids=ids(model, 1, "image", "image", 6), pixel_values=pixels(count))


def test_image_token_without_image_is_refused() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="the images make 0"):
        model(input_ids=ids(model, 1, "image", 6))


def test_image_of_another_size_is_refused_instead_of_cut() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 3, 33, 33\); the tower takes \(images, 3, 32, 32\)"):
        tiny_model().get_visual_tokens(torch.zeros(1, 3, SIDE + 1, SIDE + 1))


def test_embeddings_are_taken_as_text_and_not_beside_ids() -> None:
    model, row = tiny_model(), torch.tensor([[1, 5, 6, 7]])
    embeds = model.get_input_embeddings()(row)
    torch.testing.assert_close(model(inputs_embeds=embeds).logits, model(input_ids=row).logits)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model(inputs_embeds=embeds, input_ids=row)
    with pytest.raises(ValueError, match="pixel_values need input_ids"):
        model(inputs_embeds=embeds, pixel_values=pixels(1))


@pytest.mark.parametrize("answers", [True, False], ids=["answer_logits", "forward"])
def test_checkpointing_recomputes_every_layer_and_keeps_the_gradient(answers: bool) -> None:
    def gradient(model: Owl2ForConditionalGeneration) -> Tensor:
        images = pixels(2).requires_grad_()
        if answers:
            logits = model.answer_logits([BEFORE, model.get_visual_tokens(images), AFTER], ANSWERS)
        else:
            row = ids(model, *BEFORE.tolist(), "image", *AFTER.tolist()).expand(2, -1)
            logits = model(input_ids=row, pixel_values=images, use_cache=False).logits[:, -1]
        return torch.autograd.grad(logits.pow(2).sum(), images)[0]

    model = tiny_model()
    expected = gradient(model)
    model.activation_checkpointing_enable()
    model.train()
    runs: Counter[str] = Counter()
    for name, module in model.named_modules():
        if type(module).__name__ in model._no_split_modules:
            first = getattr(module, "self_attn", None) or module.crossattention.attention
            first.register_forward_pre_hook(lambda *_args, name=name: runs.update([name]))
    torch.testing.assert_close(gradient(model), expected, atol=1e-6, rtol=1e-5)
    assert len(runs) == 2 + 2 + 3 and set(runs.values()) == {2}


def test_config_refuses_parts_that_do_not_fit() -> None:
    vision = {"hidden_size": 16, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    abstractor = {"hidden_size": 16, "encoder_hidden_size": 16, "num_attention_heads": 2, "grid_size": 4}
    assert Owl2Config(vision_config=vision, abstractor_config=abstractor)
    for part, field, value, message in (
        (vision, "image_size", 40, "grid_size 4 must equal image_size // patch_size = 5"),
        (vision, "hidden_size", 32, "encoder_hidden_size 16 must equal vision hidden_size 32"),
        (vision, "num_attention_heads", 3, "not a multiple of its 3 heads"),
        (vision, "use_post_layernorm", False, "mPLUG-Owl2.1 is not supported"),
        (abstractor, "hidden_size", 8, "hidden_size 8 must equal encoder_hidden_size 16"),
        (abstractor, "num_attention_heads", 3, "not a multiple of 4 and 3 heads"),
    ):
        changed = part | {field: value}
        with pytest.raises(Exception, match=message):
            Owl2Config(
                vision_config=changed if part is vision else vision,
                abstractor_config=changed if part is abstractor else abstractor,
            )


def test_image_token_defaults_to_the_first_id_no_text_has() -> None:
    assert tiny_config().image_token_id == 48
    assert tiny_config(image_token_index=7).image_token_id == 7
