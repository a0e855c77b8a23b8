"""Planned cost: passes are those of a run, operations those that torch counts, bytes those that autograd keeps."""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ScriptedJudge
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from evoprompt import planning
from evoprompt.config import Recipe, VoteConfig
from evoprompt.costs import Costs
from evoprompt.images import ImageSet
from evoprompt.judge import NANO, OwlJudge, load_judge, preference_logits
from evoprompt.lifecycle import evolve
from evoprompt.owl2 import Owl2Config
from evoprompt.planning import (
    Seconds,
    Texts,
    calibrate,
    clock,
    comparisons,
    dry_run,
    memory_bytes,
    operations,
    plan_run,
)
from evoprompt.questions import Question
from evoprompt.recipe_files import load_recipe
from evoprompt.small_cards import checkpoint_layers
from evoprompt.voting import pairs_of


class CountingJudge(ScriptedJudge):
    """Counts what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()

    def encode(self, pixels: Tensor) -> Tensor:
        self.asked["trained" if torch.is_grad_enabled() else "encoded"] += len(pixels)
        return super().encode(pixels)

    def rate(self, seen: Tensor, question: Question) -> Tensor:
        self.asked["rated"] += 0 if torch.is_grad_enabled() else len(seen)
        return super().rate(seen, question)

    def compare_among(self, seen: Tensor, pairs: Tensor, question: Question) -> Tensor:
        counts = pairs[:, 0].bincount()
        self.asked["firsts"] += int((counts > 1).sum())
        self.asked["shared"] += int(counts[counts > 1].sum())
        self.asked["compared"] += int((counts == 1).sum())
        return super().compare_among(seen, pairs, question)


@pytest.mark.parametrize(
    "vote", [VoteConfig(wordings=1, views=1), VoteConfig(wordings=2, views=2), VoteConfig(wordings=1, source="both")]
)
@pytest.mark.parametrize("objective", ["fidelity", "grpo"])
def test_passes_are_those_of_a_run(
    toys: ImageSet, quick: Recipe, tmp_path: Path, vote: VoteConfig, objective: str
) -> None:
    train = replace(quick.train, steps=4, objective=objective)  # type: ignore[arg-type]
    recipe = replace(quick, vote=vote, train=train)
    judge = CountingJudge()
    evolve(recipe, toys, tmp_path / "run", judge, force=True)
    planned = plan_run(recipe, len(toys), judge.family.views).whole
    for kind in ("encoded", "rated", "trained"):
        assert judge.asked[kind] == pytest.approx(getattr(planned, kind), rel=0.02), kind
    whole, shared = judge.asked["shared"] + judge.asked["compared"], judge.asked["shared"]
    assert whole == planned.shared + planned.compared
    assert shared == pytest.approx(planned.shared, rel=0.1) and judge.asked["firsts"] == pytest.approx(
        planned.firsts, rel=0.1
    )


def test_comparisons_of_a_group_begin_with_each_image_once() -> None:
    twelve = comparisons(pairs_of(np.arange(12)), 100, 1)
    assert (twelve.firsts, twelve.shared, twelve.compared) == (12, 132, 0)
    two = comparisons(pairs_of(np.arange(2)), 100, 3)
    assert (two.firsts, two.shared, two.compared) == (0, 0, 6)


@pytest.fixture(scope="module")
def nano() -> OwlJudge:
    return load_judge(NANO, None, "auto", "float32", "cpu")


def pictures(judge: OwlJudge, n: int) -> Tensor:
    return torch.rand(n, 3, judge.image_size, judge.image_size, generator=torch.Generator().manual_seed(0))


def test_operations_are_those_that_torch_counts(nano: OwlJudge) -> None:
    costs, texts = Costs(nano.model.config, 4), Texts.of(nano)

    def counted(work: object, *arguments: object, grad: bool = False) -> float:
        # torch counts attention only where it is written out.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.set_grad_enabled(grad):
            work(*arguments)  # type: ignore[operator]
        return float(counter.get_total_flops())

    nano.attach(None)
    images = pictures(nano, 12)
    with torch.no_grad():
        seen = nano.encode(images)
        rate, compare = nano.family.rate[0], nano.family.compare[0]
        preference_logits(nano, seen, torch.tensor([[0, 1]]), compare)  # reads what is read once
    assert counted(nano.encode, images) == pytest.approx(12 * costs.encode(), rel=0.03)
    assert counted(nano.rate, seen, rate) == pytest.approx(12 * costs.rate(texts.rate), rel=0.03)
    pairs = torch.from_numpy(pairs_of(np.arange(12)))
    expected = costs.compare(texts.compare, 12, 132)
    assert counted(preference_logits, nano, seen, pairs, compare) == pytest.approx(expected, rel=0.05)
    apart = torch.arange(12).view(-1, 2)
    expected = costs.compare(texts.compare, 0, 12)
    assert counted(preference_logits, nano, seen, apart, compare) == pytest.approx(expected, rel=0.05)

    def step() -> None:
        pixels = images.clone().requires_grad_()
        nano.rate(nano.encode(pixels), rate).square().sum().backward()

    assert counted(step, grad=True) == pytest.approx(12 * costs.train(texts.rate), rel=0.08)


def test_operations_of_a_whole_run_are_planned_within_a_quarter(nano: OwlJudge, toys: ImageSet, tmp_path: Path) -> None:
    keys = {"rounds": 1, "pairs.per_round": 6, "pairs.group": 4, "vote.wordings": 1, "vote.min_confidence": 0.5}
    keys |= {"train.steps": 2, "ladder.images": 2, "ladder.kinds": 2, "ladder.levels": 1, "vote.views": 1}
    recipe = load_recipe("nano", [f"{key}={value}" for key, value in keys.items()])
    toys = replace(toys, records=toys.records[:12])
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        evolve(recipe, toys, tmp_path / "run", nano, force=True)
    plan = plan_run(recipe, len(toys), nano.family.views)
    planned = operations(plan.whole, Costs(nano.model.config, 4), Texts.of(nano))
    assert planned == pytest.approx(counter.get_total_flops(), rel=0.25)


def test_operations_of_the_large_judge_are_the_known_ones() -> None:
    costs = Costs(Owl2Config(), 2)
    # One image at 448 px: tower 723.6 and abstractor 37.9 billion; the language model at 105 tokens 1365.8 billion,
    # of which the last layer, read off at one position, saves the share computed here.
    assert costs.encode() / 1e9 == pytest.approx(723.6 + 37.9, rel=0.005)
    config = Owl2Config()
    saved = 104 * (4 * config.hidden_size**2 + 6 * config.hidden_size * config.intermediate_size) / 1e9
    assert costs.rate(40) / 1e9 + saved == pytest.approx(1365.8, rel=0.005)
    assert costs.train(40) / 1e12 == pytest.approx(4.4, rel=0.03)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_bytes_kept_are_those_that_autograd_keeps(checkpointing: bool) -> None:
    judge = load_judge(NANO, None, "auto", "float32", "cpu")
    if checkpointing:
        checkpoint_layers(judge.model)
    costs, texts = Costs(judge.model.config, 4), Texts.of(judge)
    weights = {p.untyped_storage().data_ptr() for p in (*judge.model.parameters(), *judge.model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = pictures(judge, 4).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = judge.rate(judge.encode(images), judge.family.rate[0])
    assert logits.requires_grad
    found = sum(kept.values()) / 4
    if checkpointing:  # the layer that is computed again is not there yet
        found += costs.kept(texts.rate, True) - costs.kept(texts.rate, True, again=False)
    assert costs.kept(texts.rate, checkpointing) == pytest.approx(found, rel=0.25)


def test_bytes_of_the_large_judge_are_the_known_ones() -> None:
    # By arithmetic on real-size layers in bf16: 1.08 GiB an image with fused attention, 0.10 with every layer again.
    costs = Costs(Owl2Config(), 2)
    assert costs.kept(40, False) / 2**30 == pytest.approx(1.08, rel=0.25)
    assert costs.kept(40, True) / 2**30 == pytest.approx(0.10, rel=0.25)


def test_a_dry_run_says_passes_operations_memory_and_time(nano: OwlJudge, toys: ImageSet) -> None:
    recipe = load_recipe("nano", ["pairs.per_round=66", "train.steps=2", "ladder.images=2"])
    lines = list(dry_run(recipe, toys, nano, False, False))
    assert [line.split()[0] for line in lines] == ["forwards", "flops", "memory", "time"]
    plan = plan_run(recipe, len(toys), nano.family.views)
    costs, texts = Costs(nano.model.config, 4), Texts.of(nano)
    assert f"{operations(plan.whole, costs, texts) / 1e12:,.3g} TFLOP" in lines[1]
    memory = memory_bytes(recipe, plan, costs, texts, nano.image_size, nano.family.views)
    assert f"a step {memory['training'] / 2**20:,.0f}," in lines[2]


def test_a_dry_run_of_a_job_gives_the_time_of_the_process_with_most_to_do(
    nano: OwlJudge, toys: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent = Seconds(read=0.1, degraded=0.1, encoded=1, rated=0.1, grouped=0.1, compared=0.1, trained=2)
    monkeypatch.setattr(planning, "calibrate", lambda *_: spent)
    monkeypatch.setattr(planning, "world", lambda: 7)
    recipe = load_recipe("nano", ["pairs.per_round=66", "train.steps=2", "ladder.images=2"])
    alone, busiest = (plan_run(recipe, len(toys), nano.family.views, processes=n).whole for n in (1, 7))
    lines = list(dry_run(recipe, toys, nano, False, False))
    assert lines[3].startswith(f"time     {clock(spent.whole(busiest))} with 7 processes: ")
    assert f"the busiest sees {busiest.encoded:,.0f} of the views" in lines[3]
    assert f"{alone.encoded:,.0f} views seen" in lines[0]
    assert spent.whole(alone) / 7 < 0.7 * spent.whole(busiest)  # two degraded images go to two processes at most


def test_calibration_grows_with_the_work(nano: OwlJudge, toys: ImageSet) -> None:
    recipe = load_recipe("nano", ["train.steps=2"])
    spent = calibrate(recipe, toys, nano)
    assert all(value > 0 for value in vars(spent).values())
    assert spent.trained > spent.encoded > spent.rated
    one, two = (plan_run(replace(recipe, rounds=n), 1000, nano.family.views).whole for n in (1, 2))
    assert spent.whole(two) > 1.3 * spent.whole(one)


def test_times_are_said_in_their_units() -> None:
    assert [clock(s) for s in (12.3, 200, 9000, 1e6)] == ["12 s", "3.33 min", "2.5 h", "11.6 days"]


def test_the_table_of_the_documentation_is_what_the_planner_says() -> None:
    root = Path(__file__).parents[2]
    spec = importlib.util.spec_from_file_location("plan_scale", root / "scripts" / "plan_scale.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = (root / "docs" / "scale.md").read_text(encoding="utf-8")
    assert script.table() in page and script.sharing() in page
