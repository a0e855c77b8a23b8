"""Small cards: bf16 keeps small prompts, the prompt alone gets a gradient, layers computed twice, fewer bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from owl2_tiny import SIDE, pixels, tiny_model, tiny_writer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.quantizers.quantizers_utils import should_convert_module

import evoprompt
from evoprompt.config import Recipe
from evoprompt.errors import JudgeError
from evoprompt.judge import NANO, OwlJudge, load_judge
from evoprompt.owl2 import Owl2ForConditionalGeneration, load_owl2
from evoprompt.prompts import PixelPrompt, PromptConfig
from evoprompt.questions import FAMILIES
from evoprompt.small_cards import checkpoint_layers, compile_layers, layers_of, quantization_config
from evoprompt.training import PromptedRating

FOLDER = Path(evoprompt.__file__).parent / "nano"
IDS, ANSWERS = (torch.tensor([1, 3]), torch.tensor([4, 5, 6])), torch.tensor([5, 6, 7])


def asked(model: Owl2ForConditionalGeneration, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of an answer, and their gradient in the pixels."""
    images = images.clone().requires_grad_()
    logits = model.answer_logits([IDS[0], model.get_visual_tokens(images), IDS[1]], ANSWERS)
    (gradient,) = torch.autograd.grad(logits.square().sum(), images)
    return logits.detach(), gradient


def saved_bytes(model: Owl2ForConditionalGeneration, images: Tensor) -> int:
    """What a forward pass keeps for the gradient; what lies in the weights is not counted."""
    weights = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        tokens = model.get_visual_tokens(images.clone().requires_grad_())
        logits = model.answer_logits([IDS[0], tokens, IDS[1]], ANSWERS)  # alive, so that no storage is used again
    assert logits.requires_grad
    return sum(kept.values())


def training_step(judge: OwlJudge) -> tuple[PixelPrompt, Tensor]:
    """The prompt and the loss of one step on three images."""
    prompt = PixelPrompt(PromptConfig(image_size=judge.image_size, size=4, strength=0.5))
    model = PromptedRating(judge, prompt, Recipe())
    images = torch.rand(3, 3, judge.image_size, judge.image_size, generator=torch.Generator().manual_seed(1))
    pairs, targets = torch.tensor([[0, 1], [1, 2]]), torch.tensor([1.0, 0.0])
    rows = torch.arange(3)
    first = torch.tensor(0)
    return prompt, model(images, rows, rows * 0, torch.tensor(3), pairs, targets, first, first)["loss"]


def test_gradients_are_computed_for_the_prompt_and_for_nothing_else() -> None:
    judge = tiny_writer()
    with FlopCounterMode(display=False) as forward:
        prompt, loss = training_step(judge)
    leaves, nodes = [], [loss.grad_fn]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        assert node is not None
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        new = [parent for parent, _ in node.next_functions if parent is not None and parent not in seen]
        seen.update(new)
        nodes += new
    assert len(leaves) == 1 and leaves[0] is prompt.theta
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    # A linear layer costs as much backward to its input as forward; with its weights it would be twice that. What the
    # bare images cost before the prompt comes in (nothing here) and attention's own products are the rest.
    linear = {key: count for key, count in forward.get_flop_counts()["Global"].items() if "mm" in str(key)}
    back = {key: count for key, count in backward.get_flop_counts()["Global"].items() if "mm" in str(key)}
    assert sum(back.values()) <= 1.05 * sum(linear.values())
    assert all(p.grad is None for p in judge.model.parameters())


@pytest.mark.parametrize("autocast", [False, True])
def test_a_small_prompt_is_not_lost_in_bfloat16(autocast: bool) -> None:
    judge = load_judge(NANO, None, "auto", "float32" if autocast else "bfloat16", "cpu")
    embed = judge.model.model.vision_model.embeddings.patch_embed
    assert embed.weight.dtype == torch.float32
    outputs: list[Tensor] = []
    embed.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    prompt = PixelPrompt(PromptConfig(image_size=judge.image_size, size=16, strength=0.002))
    prompt.theta.data += torch.randn(prompt.theta.shape, generator=torch.Generator().manual_seed(0))
    image = torch.rand(1, 3, judge.image_size, judge.image_size, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.no_grad():
        for attached in (None, prompt):
            judge.attach(attached)
            judge.encode(image)
    bare, prompted = outputs
    assert prompted.dtype == torch.float32
    std = torch.tensor(judge.processor.image_processor.image_std).view(1, 3, 1, 1)
    inside = (image + prompt.delta()).clamp(0, 1) - image
    expected = nn.functional.conv2d(inside / std, embed.weight.float(), stride=embed.stride)
    change = (prompted - bare - expected).norm() / expected.norm()
    rounded = nn.functional.conv2d(
        ((image + inside) / std).bfloat16() - (image / std).bfloat16(), embed.weight.bfloat16(), stride=embed.stride
    )
    assert change < 0.01 < (rounded.float() - expected).norm() / expected.norm()


def test_a_judge_in_bfloat16_rates_like_one_in_float32() -> None:
    image = torch.rand(4, 3, 160, 160, generator=torch.Generator().manual_seed(3))
    scores = []
    for dtype in ("float32", "bfloat16"):
        judge = load_judge(NANO, None, "auto", dtype, "cpu")
        question = judge.family.rate[0]
        with torch.no_grad():
            levels = judge.rate(judge.encode(image), question).softmax(-1)
        scores.append(levels @ torch.tensor(question.values))
    assert (scores[0] - scores[1]).abs().max() < 0.1


def test_layers_computed_twice_keep_less_and_give_the_same_gradient() -> None:
    plain, twice = tiny_model(), tiny_model()
    checkpoint_layers(twice)
    assert not twice.training
    for found, expected in zip(asked(twice, pixels(2)), asked(plain, pixels(2)), strict=True):
        assert torch.equal(found, expected) and expected.any()
    assert saved_bytes(twice, pixels(2)) < 0.5 * saved_bytes(plain, pixels(2))


def test_layers_computed_twice_leave_writing_and_looking_alone() -> None:
    judge, again = tiny_writer(), tiny_writer()
    checkpoint_layers(again.model)
    with torch.no_grad():
        seen = judge.encode(torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)))
    text = judge.family.rate[0].text
    assert again.tell([seen], text, 6) == judge.tell([seen], text, 6)


def test_the_layers_are_those_of_tower_abstractor_and_language_model() -> None:
    kinds = [type(layer).__name__ for layer in layers_of(tiny_model())]
    assert kinds.count("Owl2VisionLayer") == 2 and kinds.count("Owl2AbstractorLayer") == 2
    assert kinds.count("Owl2DecoderLayer") == 3 and len(kinds) == 7


def test_a_recipe_key_switches_it_on(tmp_path: Path) -> None:
    judge = load_judge(NANO, None, "auto", "float32", "cpu", checkpointing=True)
    plain = load_judge(NANO, None, "auto", "float32", "cpu")
    gradients = []
    for one in (judge, plain):
        prompt, loss = training_step(one)
        loss.backward()
        assert prompt.theta.grad is not None
        gradients.append(prompt.theta.grad)
    assert torch.equal(*gradients) and gradients[0].any()
    assert "forward" in vars(layers_of(judge.model)[0]) and "forward" not in vars(layers_of(plain.model)[0])


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    yield
    torch.compiler.reset()


def test_compiled_layers_compute_the_same(fresh_compiler: None) -> None:
    model = tiny_model()
    compile_layers(model, backend="eager")  # traced as for any backend, and run as it was traced
    for found, expected in zip(asked(model, pixels(2)), asked(tiny_model(), pixels(2)), strict=True):
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 3


def test_equal_layers_share_a_graph_for_each_kind_of_pass(fresh_compiler: None) -> None:
    judge, plain = tiny_writer(layers=10), tiny_writer(layers=10)
    made, ran, calls = 0, 0, 0

    def counting(graph: torch.fx.GraphModule, _examples: object) -> Callable[..., object]:
        nonlocal made
        made += 1

        def run(*arguments: object) -> object:
            nonlocal ran
            ran += 1
            return graph.forward(*arguments)

        return run

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    language = judge.model.model.layers  # where graphs could differ by layer; tower and abstractor take as long again
    compile_layers(language, backend=counting)  # type: ignore[arg-type]
    for layer in language:
        layer.register_forward_pre_hook(count)
    images = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3))

    def vote(one: OwlJudge) -> Tensor:
        with torch.no_grad():
            seen = one.encode(images)
            rated = one.rate(seen, one.family.rate[0])
        return torch.cat([one.compare_among(seen, pairs, one.family.compare[0]).flatten(), rated.flatten()])

    known = []
    for work in (vote, vote, lambda one: training_step(one)[1], vote):
        torch.testing.assert_close(work(judge), work(plain), rtol=1e-4, atol=1e-4)
        known.append(made)
    assert ran == calls > 10 * 10  # all of them compiled
    assert known[0] == known[1] and known[2] == known[3] <= 12  # not one for each of 10 layers; torch would stop at 8


@pytest.mark.slow
def test_layers_compiled_by_the_usual_backend_compute_the_same(fresh_compiler: None) -> None:
    tower, expected = tiny_model().model.vision_model, tiny_model().model.vision_model
    compile_layers(tower)  # one kind of layer, because every kind takes the C++ compiler a quarter of a minute
    images = pixels(2).requires_grad_()
    results = [model(images).last_hidden_state for model in (tower, expected)]
    assert torch.allclose(*results, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(states.square().sum(), images)[0] for states in results]
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["8bit", "4bit"])
def test_fewer_bits_without_a_gpu_are_refused_with_what_to_do(kind: str) -> None:
    with pytest.raises(
        JudgeError, match=f"judge.quantization {kind} needs a CUDA device, this is cpu.*quantization=none"
    ):
        load_judge(NANO, None, "auto", "auto", "cpu", quantization=kind)  # type: ignore[arg-type]


def test_fewer_bits_without_bitsandbytes_are_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from evoprompt import small_cards

    monkeypatch.setattr(small_cards.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(JudgeError, match="needs bitsandbytes .pip install bitsandbytes.; or use whole"):
        small_cards.quantized("4bit", torch.bfloat16, torch.device("cuda"))


@pytest.mark.parametrize("kind", ["8bit", "4bit"])
def test_what_sees_keeps_its_bits(kind: str) -> None:
    config = quantization_config(kind, torch.bfloat16)  # type: ignore[arg-type]
    linear = [name for name, module in tiny_model().named_modules() if isinstance(module, nn.Linear)]
    fewer = {name for name in linear if should_convert_module(name, config.llm_int8_skip_modules)}
    assert fewer == {name for name in linear if name.startswith("model.layers.")}
    assert len(fewer) == 3 * 9  # q, o, two ways of k and v, three of the MLP


class _Rounded(nn.Module):
    """A linear map of whole numbers and a scale a row, whose ``weight`` is nothing to compute with."""

    def __init__(self, whole: nn.Linear) -> None:
        super().__init__()
        scale = whole.weight.abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("weight", (whole.weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", whole.bias)

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.linear(states, self.weight.to(states.dtype) * self.scale, self.bias)


def test_gradients_reach_the_prompt_through_weights_that_are_whole_numbers() -> None:
    rounded, plain = tiny_model(), tiny_model()
    for name, module in list(rounded.named_modules()):
        if isinstance(module, nn.Linear) and name.startswith("model.layers."):
            parent, _, last = name.rpartition(".")
            setattr(rounded.get_submodule(parent), last, _Rounded(module))
    (found, gradient), (expected, wanted) = asked(rounded, pixels(2)), asked(plain, pixels(2))
    assert torch.allclose(found, expected, rtol=0, atol=0.2 * float(expected.abs().max()))
    assert torch.nn.functional.cosine_similarity(gradient.flatten(), wanted.flatten(), dim=0) > 0.95


@pytest.mark.parametrize("kind", ["8bit", "4bit"])
def test_gradients_reach_the_prompt_through_bitsandbytes(kind: str) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    gradients = []
    for config in (None, quantization_config(kind, torch.bfloat16)):  # type: ignore[arg-type]
        dtype = torch.float32 if config is None else torch.bfloat16
        model, processor = load_owl2(str(FOLDER), dtype=dtype, device="cpu", quantization=config)
        judge = OwlJudge(model, processor, NANO, "0", FAMILIES["nano"])
        prompt, loss = training_step(judge)
        loss.backward()
        assert prompt.theta.grad is not None
        gradients.append(prompt.theta.grad.flatten())
    layer = {"8bit": bitsandbytes.nn.Linear8bitLt, "4bit": bitsandbytes.nn.Linear4bit}[kind]
    assert isinstance(judge.model.model.layers[0].mlp.up_proj, layer) and judge.precision == f"bfloat16, {kind}"
    assert type(judge.model.model.vision_model.encoder.layers[0].mlp.fc1) is nn.Linear
    assert judge.model.model.vision_model.embeddings.patch_embed.weight.dtype == torch.float32
    assert all(p.grad is None for p in judge.model.parameters())
    assert nn.functional.cosine_similarity(*gradients, dim=0) > 0.98
