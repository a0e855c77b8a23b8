"""Numbers that the reference (X-PLUG/mPLUG-Owl, mPLUG-Owl2 @0f3068f, transformers 4.31) computed for a tiny checkpoint.

The reference takes -200 for an image; this port takes as many image tokens as an image makes, placed by the processor.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from evoprompt.owl2 import Owl2ForConditionalGeneration

FOLDER = Path(__file__).parent / "owl2_a"
CASES = load_file(FOLDER / "cases.safetensors")
GRAD_TOKEN = json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))["grad_token_id"]
STATES, GRADIENTS = 1e-4, 1e-5
WHOLE = (
    "one_image",
    "two_images",
    "image_first_and_last",
    "text_only",
    "two_frames_one_placeholder",
    "batch_equal_length",
)


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest) -> Owl2ForConditionalGeneration:
    loaded = Owl2ForConditionalGeneration.from_pretrained(FOLDER, attn_implementation=request.param)
    return loaded.eval().requires_grad_(False)


def close(name: str, ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    assert ours.shape == theirs.shape, name
    error = (ours - theirs).abs().max().item() if ours.numel() else 0.0
    assert error <= tolerance, f"{name}: off by {error:.1e}"


def expanded(rows: Tensor, ids: Tensor, tokens: int, image: int, padded: int) -> Tensor:
    """Values (B, N) that go with ids: repeated `tokens` times (as `image`) at every -200, rows filled with `padded`."""
    lines = [
        [value for t, v in zip(line, row, strict=True) for value in ([image] * tokens if t == -200 else [v])]
        for line, row in zip(ids.tolist(), rows.tolist(), strict=True)
    ]
    longest = max(map(len, lines))
    return torch.tensor([line + [padded] * (longest - len(line)) for line in lines])


def inputs(model: Owl2ForConditionalGeneration, case: str) -> dict[str, Tensor]:
    """Inputs of a case, placeholders expanded."""
    given = {key.split("in.")[1]: value for key, value in CASES.items() if key.startswith(f"{case}/in.")}
    ids, pixels = given["input_ids"], given.get("pixel_values")
    tokens = model.config.num_image_tokens * (pixels.shape[1] if pixels is not None and pixels.ndim == 5 else 1)
    result = {"input_ids": expanded(ids, ids, tokens, model.config.image_token_id, 0)}
    if pixels is not None:
        result["pixel_values"] = pixels.clone().requires_grad_()
    if "attention_mask" in given:
        result["attention_mask"] = expanded(given["attention_mask"], ids, tokens, 1, 0)
    if "labels" in given:
        result["labels"] = expanded(given["labels"], ids, tokens, -100, -100)
    return result


@contextmanager
def recorded(model: Owl2ForConditionalGeneration) -> Iterator[dict[str, Tensor]]:
    """What tower and abstractor compute inside, under the reference's names."""
    seen: dict[str, Tensor] = {}
    tower, abstractor = model.model.vision_model, model.model.visual_abstractor
    places = {"vit.hidden.0": tower.embeddings, "vit.last_hidden_state": tower.post_layernorm}
    places |= {f"vit.hidden.{i + 1}": layer for i, layer in enumerate(tower.encoder.layers)}
    places |= {f"abstractor.layer.{i}": layer for i, layer in enumerate(abstractor.encoder.layers)}
    places["abstractor.last_hidden_state"] = abstractor

    def keep(name: str) -> Callable[..., None]:
        return lambda _module, _args, output: seen.__setitem__(name, output)

    handles = [module.register_forward_hook(keep(name)) for name, module in places.items()]
    yield seen
    for handle in handles:
        handle.remove()


def compare(
    model: Owl2ForConditionalGeneration, case: str, given: dict[str, Tensor], rows: list[int] | None = None
) -> None:
    """Hidden states, logits, loss and pixel gradients of a case; `rows` = images of the reference that were given."""
    expected = {key.split("/", 1)[1]: value for key, value in CASES.items() if key.startswith(f"{case}/")}
    with recorded(model) as seen:
        out = model(**given, output_hidden_states=True)
    for name, state in seen.items():
        close(name, state, expected[name] if rows is None else expected[name][rows], STATES)
    mask = given.get("attention_mask", torch.ones_like(given["input_ids"])).bool()
    assert torch.equal(given["input_ids"] == model.config.image_token_id, expected["modality_indicators"].bool())
    for index, state in enumerate(out.hidden_states):
        close(f"llama.hidden.{index}", state[mask], expected[f"llama.hidden.{index}"][mask], STATES)
    close("logits", out.logits[mask], expected["logits"][mask], STATES)
    if "loss" in expected:
        close("loss", out.loss[None], expected["loss"], STATES)
    if "pixel_values" not in given:
        return
    batch = torch.arange(mask.shape[0])
    goals = {
        "grad_mean": out.logits[..., GRAD_TOKEN][mask].mean(),
        "grad_last": out.logits[batch, expected["last_index"], GRAD_TOKEN].mean(),
    }
    for name, goal in goals.items():
        (gradient,) = torch.autograd.grad(goal, given["pixel_values"], retain_graph=True)
        assert gradient.abs().max() > 1e-3, "a gradient of zero would be easy to match"
        close(name, gradient, expected[name] if rows is None else expected[name][rows], GRADIENTS)


@pytest.mark.parametrize("case", WHOLE)
def test_states_logits_and_pixel_gradients_equal_the_reference(model: Owl2ForConditionalGeneration, case: str) -> None:
    compare(model, case, inputs(model, case))


def test_right_padded_batch_and_its_loss_equal_the_reference(model: Owl2ForConditionalGeneration) -> None:
    given = inputs(model, "batch_right_padded")
    assert torch.equal(given["attention_mask"], CASES["batch_right_padded/spliced_attention_mask"])
    assert torch.equal(given["labels"], CASES["batch_right_padded/spliced_labels"])
    compare(model, "batch_right_padded", given)


def test_row_without_image_equals_the_reference_once_its_unused_image_is_left_out(
    model: Owl2ForConditionalGeneration,
) -> None:
    """In the reference a row without placeholder still takes an image from the batch and throws it away. Here images go
    to the placeholders in order, so the second image is left out of the input; then rows, loss and gradients agree.
    """
    given = inputs(model, "batch_right_padded_with_text_only")
    given["pixel_values"] = given["pixel_values"].detach()[[0, 2]].requires_grad_()
    compare(model, "batch_right_padded_with_text_only", given, rows=[0, 2])


def test_text_equals_the_reference_that_was_given_an_unused_image(model: Owl2ForConditionalGeneration) -> None:
    """The reference encodes and ignores an image that no placeholder asks for (its gradient is zero). Here that is an
    error, so the text is compared without the image, and the image's states by encoding it alone.
    """
    case = "text_only_with_unused_image"
    given = inputs(model, case)
    with pytest.raises(ValueError, match="hold 0 image tokens"):
        model(**given)
    with recorded(model) as seen:
        model.get_image_features(given.pop("pixel_values"))
    for name, state in seen.items():
        close(name, state, CASES[f"{case}/{name}"], STATES)
    out = model(**given)
    close("logits", out.logits, CASES[f"{case}/logits"], STATES)
    assert not CASES[f"{case}/grad_mean"].any()


def test_left_padded_rows_equal_the_reference_run_on_each_alone(model: Owl2ForConditionalGeneration) -> None:
    case = "batch_left_padded"  # the reference misplaces the mask here; `ideal` is what it computes without padding
    given = inputs(model, case)
    logits = model(**given).logits
    for row in range(3):
        attended = given["attention_mask"][row].bool()
        close(f"row {row}", logits[row][attended], CASES[f"{case}/ideal.{row}.logits"][0], STATES)


def test_cached_decoding_equals_the_reference(model: Owl2ForConditionalGeneration) -> None:
    given = inputs(model, "one_image")
    out = model(**given, use_cache=True)
    close("prefill", out.logits, CASES["kv_decode/prefill.logits"], STATES)
    for index, layer in enumerate(out.past_key_values.layers):
        close(f"key {index}", layer.keys, CASES[f"kv_decode/prefill.key.{index}"], STATES)
        close(f"value {index}", layer.values, CASES[f"kv_decode/prefill.value.{index}"], STATES)
    for step, token in enumerate(CASES["kv_decode/forced_tokens"][0]):
        out = model(input_ids=token.view(1, 1), past_key_values=out.past_key_values, use_cache=True)
        close(f"step {step}", out.logits[:, 0], CASES["kv_decode/step_logits"][:, step], STATES)


def test_greedy_generation_equals_the_reference(model: Owl2ForConditionalGeneration) -> None:
    given = {key: value.detach() for key, value in inputs(model, "one_image").items()}
    for cache in (True, False):
        tokens = model.generate(**given, max_new_tokens=8, do_sample=False, use_cache=cache)
        assert torch.equal(tokens[:, given["input_ids"].shape[1] :], CASES["kv_decode/greedy_tokens"])


def test_answer_logits_equal_the_last_position_of_the_reference(model: Owl2ForConditionalGeneration) -> None:
    for case in ("one_image", "two_images", "batch_equal_length"):
        ids, pixels = CASES[f"{case}/in.input_ids"][0], CASES[f"{case}/in.pixel_values"]
        places = (ids == -200).nonzero()[:, 0].tolist()
        tokens = model.get_visual_tokens(pixels)
        images = [tokens] if len(places) == 1 else list(tokens[:, None])
        segments, start = [], 0
        for place, image in zip(places, images, strict=True):
            segments += [ids[start:place], image]
            start = place + 1
        logits = model.answer_logits([*segments, ids[start:]], torch.arange(5, 105))
        close(case, logits, CASES[f"{case}/logits"][:, -1, 5:105], STATES)
