"""Recipes: everything that defines a run, read strictly from YAML and overrides, each key described once, here."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from types import UnionType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from evoprompt.errors import RecipeError, counted, listed


def opt(default: Any, help: str, *, within: str = "", horizon: bool = False) -> Any:
    """Declare a key: default, one line for people, interval of a number, whether it may change in a continued run."""
    return field(default=default, metadata={"help": help, "within": within, "horizon": horizon})


FEWER_BITS = ("8bit", "4bit")
"""The values of ``judge.quantization`` that are not ``none``."""


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Who judges."""

    id: str = opt("owl2-nano", "owl2-nano (in the package), a folder, or a Hub id of an mPLUG-Owl2 checkpoint")
    revision: str | None = opt(None, "Hub revision; null is the default branch")
    family: Literal["auto", "owl2", "qalign", "compare2score", "nano"] = opt(
        "auto", "how it is asked; auto reads it from the checkpoint"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = opt("auto", "auto: bfloat16 on CUDA, float32 elsewhere")
    question: str = opt("auto", "name of the question it rates with; auto is the family's first")
    preprocess: Literal["own", "imagenet-crop"] = opt(
        "own", "own: as its family was trained; imagenet-crop: as the published pixel prompts were"
    )
    quantization: Literal["none", "8bit", "4bit"] = opt(
        "none", "its language model's weights in 8 or 4 bits (bitsandbytes, CUDA); what sees stays in 16 bits"
    )
    checkpointing: bool = opt(
        False, "keep only each layer's input for the gradient and compute the rest again: less memory", horizon=True
    )
    compile: bool = opt(False, "compile its layers (torch.compile): minutes at the start, then faster", horizon=True)


@dataclass(frozen=True, kw_only=True)
class PixelConfig:
    """Shape of the pixel prompt, before the judge's image size is known."""

    kind: Literal["border", "patch", "overlay"] = opt("border", "a frame, a square, or the whole image")
    size: int = opt(16, "px: width of the border, side of the patch; not used by overlay", within="[1, inf)")
    blocks: int = opt(160, "px: side of a block that shares one colour; 0 = every pixel is free", within="[0, inf)")
    strength: float = opt(0.6, "largest change of a pixel whose range is 0 to 1", within="(0, 1]")
    place: Literal["centre", "top-left"] = opt("centre", "where a patch sits")


@dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """Which images are compared."""

    per_round: int = opt(1000, "pairs voted on in a round, rounded up to whole groups", within="[1, inf)")
    group: int = opt(12, "images voted among each other; one group is one training batch", within="[2, inf)")
    heldout: float = opt(0.25, "share of the images that only the gate sees", within="(0, 1)")
    ladder: float = opt(0.0, "share of training groups that are degraded copies of known order", within="[0, 1]")


@dataclass(frozen=True, kw_only=True)
class VoteConfig:
    """How the judge's answers become pseudo-labels."""

    mode: Literal["exact", "sampled"] = opt("exact", "use the answers' probabilities, or draw answers from them")
    source: Literal["compare", "rate", "both"] = opt("compare", "ask which of two is better, rate each, or both")
    wordings: int = opt(2, "wordings of the question", within="[1, 16]")
    views: int = opt(2, "views of an image (flip, crops)", within="[1, 16]")
    draws: int = opt(32, "answers drawn a pair from each source of vote.source; mode sampled only", within="[1, inf)")
    min_confidence: float = opt(0.6, "share of the votes a winner needs for its pair to be used", within="[0.5, 1)")
    targets: Literal["hard", "soft"] = opt("hard", "train on the winner, or on the share of votes")
    prompted: bool = opt(True, "vote with the prompt accepted so far; false = the bare judge votes in every round")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the prompt is trained within a round."""

    objective: Literal["fidelity", "grpo"] = opt("fidelity", "loss against pseudo-labels; grpo has its own section")
    steps: int = opt(60, "optimiser steps a round", within="[1, inf)")
    lr: float = opt(0.05, "learning rate of the prompt's values before the bound", within="(0, inf)")
    optimizer: Literal["adam", "sgd"] = opt("adam", "optimiser")
    schedule: Literal["cosine", "constant"] = opt("cosine", "learning rate over the steps of a round")
    warmup: int = opt(0, "steps over which the learning rate rises", within="[0, inf)")
    grad_clip: float = opt(0.0, "largest gradient norm; 0 = no limit", within="[0, inf)")
    save_every: int = opt(20, "steps between checkpoints within a round", within="[1, inf)", horizon=True)
    variance: Literal["predicted-detached", "predicted", "fixed"] = opt(
        "predicted-detached", "spread of a rating in fidelity; predicted rewards overconfidence, fixed is 1"
    )
    gamma: float = opt(0.1, "variance of a comparison, in squared score units", within="(0, inf)")


@dataclass(frozen=True, kw_only=True)
class GrpoConfig:
    """The reward objective; used when train.objective is grpo."""

    estimator: Literal["exact", "sampled"] = opt("exact", "sum over all level answers, or draw some")
    engine: Literal["native", "trl"] = opt("native", "our own step, or TRL's GRPOTrainer (sampled only)")
    answers: int = opt(8, "answers drawn an image; estimator sampled only", within="[2, inf)")
    advantage: Literal["centred", "standardised", "leave-one-out"] = opt(
        "standardised", "reward minus its mean, that over its deviation, or minus the other drawn answers' mean"
    )
    kl: Literal["exact", "k3"] = opt("exact", "distance to the bare judge: all answers summed, or k3 of the drawn ones")
    beta: float = opt(0.05, "weight of that distance", within="[0, inf)")
    rationale: int = opt(0, "most tokens of a reason the judge writes before the level; engine trl", within="[0, 256]")


@dataclass(frozen=True, kw_only=True)
class MosConfig:
    """Human scores to train on; used by train, and by evolve --train-mos."""

    objective: Literal["mse", "soft-kl", "fidelity", "soft-kl+fidelity"] = opt("fidelity", "loss against human scores")
    range: str = opt(
        "auto", "ends of the MOS scale, such as 1..5; auto = smallest and largest MOS; several files: auto,0..100"
    )
    better: str = opt("higher", "which MOS are better, higher or lower; several files: higher,lower")
    soft: Literal["interval", "density"] = opt("interval", "how a MOS and its deviation become level probabilities")
    fidelity_weight: float = opt(1.0, "weight of fidelity in soft-kl+fidelity", within="[0, inf)")
    fraction: float = opt(0.5, "share of the training batches that hold human scores; evolve only", within="[0, 1]")
    weight: float = opt(1.0, "weight of their loss; evolve only", within="[0, inf)")


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """When a round is accepted."""

    accept: Literal["evidence", "always"] = opt(
        "evidence", "accept rounds on evidence, or every round; control runs always accept"
    )
    tolerance: float = opt(0.01, "how far ladder accuracy may clearly fall", within="[0, 1]")
    min_spread: float = opt(0.5, "least spread of the scores, as a share of the bare judge's", within="[0, 1]")
    confidence: float = opt(0.9, "confidence of the gate's one-sided bounds", within="(0.5, 1)")


@dataclass(frozen=True, kw_only=True)
class LadderConfig:
    """The degradation ladder: images made worse on purpose, whose order is therefore known."""

    images: int = opt(12, "held-out images that are degraded", within="[1, inf)")
    kinds: int = opt(6, "kinds of degradation", within="[1, inf)")
    levels: int = opt(3, "strengths of each", within="[1, 5]")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Settings that change speed and memory, not results."""

    batch_size: int = opt(16, "images the judge looks at at a time", within="[1, inf)", horizon=True)
    memory_mib: int = opt(
        1024, "MiB for the states of a forward pass without gradients; sets its rows", within="[1, inf)", horizon=True
    )
    device_cache_mib: int = opt(1024, "MiB of visual tokens kept on the GPU", within="[0, inf)", horizon=True)
    host_cache_mib: int = opt(
        2048,
        "MiB of them in host memory, once the GPU's are full; without a GPU, first",
        within="[0, inf)",
        horizon=True,
    )
    disk_cache_mib: int = opt(
        0, "MiB of them on disk after that; what fits nowhere is computed again", within="[0, inf)", horizon=True
    )
    host_images_mib: int = opt(
        1024, "MiB of fitted images kept in host memory, of each set of images", within="[0, inf)", horizon=True
    )
    disk_images_mib: int = opt(
        8192, "MiB of them on disk after that; what fits nowhere is decoded again", within="[0, inf)", horizon=True
    )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that defines a run but the images.

    Raises:
        RecipeError: if a value is not accepted, or two keys contradict each other.
    """

    rounds: int = opt(2, "rounds of voting and training", within="[1, inf)", horizon=True)
    seed: int = opt(0, "of every random choice", within="[0, inf)")
    control: Literal["none", "random-labels", "shuffled-labels"] = opt(
        "none", "a control run: pseudo-labels tossed, or dealt to other pairs; any gain is then not learning"
    )
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    prompt: PixelConfig = field(default_factory=PixelConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    vote: VoteConfig = field(default_factory=VoteConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    grpo: GrpoConfig = field(default_factory=GrpoConfig)
    mos: MosConfig = field(default_factory=MosConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    ladder: LadderConfig = field(default_factory=LadderConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        values = self.flat()
        problems = [f"{key.name}: {p}" for key in describe_keys() if (p := convert(values[key.name], key)[1])]
        problems = problems or [f"{key}: {problem}" for key, _, problem in contradictions(values)]
        if problems:
            raise RecipeError(f"the recipe has {counted(len(problems), 'problem')}: {listed(problems)}.")

    def flat(self) -> dict[str, Any]:
        """Every key under its dotted name, such as ``train.lr``."""
        values = {}
        for key in describe_keys():
            section, _, short = key.name.rpartition(".")
            # Converted, so that a whole number given for a float has the fingerprint of the float.
            values[key.name] = convert(getattr(getattr(self, section) if section else self, short), key)[0]
        return values

    def to_dict(self) -> dict[str, Any]:
        """Sections as nested plain dicts, every key present."""
        return nest(self.flat())

    def to_yaml(self) -> str:
        """The recipe with every key filled in and explained, itself a valid recipe file."""
        lines, values, last = [], self.flat(), ""
        for key in describe_keys():
            section, _, short = key.name.rpartition(".")
            lines += [f"{section}:"] if section != last else []
            last, indent = section, "  " if section else ""
            lines.append(f"{indent + short + ': ' + shown(values[key.name]):<36}# {key.help}")
        return "\n".join(lines) + "\n"

    def fingerprint(self) -> str:
        """12 hex digits over the keys that define a run; rounds and other horizon keys are left out."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:12]

    def identity(self) -> dict[str, Any]:
        """The keys that define a run under their dotted names: all but those that may change in a continued run."""
        values = self.flat()
        return {key.name: values[key.name] for key in describe_keys() if not key.horizon}

    def differences(self, other: Recipe) -> list[str]:
        """Keys whose values differ, as ``train.lr: 0.05 -> 0.1``, this recipe's value first."""
        theirs = other.flat()
        return [f"{k}: {shown(v)} -> {shown(theirs[k])}" for k, v in self.flat().items() if v != theirs[k]]


class Key(NamedTuple):
    """A key by its dotted name: declared type, default, help, interval, and whether it is a horizon key."""

    name: str
    hint: Any
    default: Any
    help: str
    within: str
    horizon: bool

    @property
    def accepted(self) -> str:
        """Accepted values in words, such as ``a number in (0, 1]``."""
        if get_origin(self.hint) is Literal:
            return " or ".join(get_args(self.hint))
        names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
        return " or ".join(names[kind] for kind in self.kinds) + (f" in {self.within}" if self.within else "")

    @property
    def kinds(self) -> tuple[Any, ...]:
        """Python types a value may have, unless it is one of several words."""
        return get_args(self.hint) if isinstance(self.hint, UnionType) else (self.hint,)


@cache
def describe_keys() -> tuple[Key, ...]:
    """Every key in the order of a recipe, top-level keys first."""
    keys = []
    for section, owner in {"": Recipe, **sections()}.items():
        hints, prefix = get_type_hints(owner), f"{section}." if section else ""
        keys += [Key(prefix + f.name, hints[f.name], f.default, **f.metadata) for f in fields(owner) if f.metadata]
    return tuple(keys)


def keys_table() -> str:
    """The keys as a Markdown table, as it stands in ``recipes/README.md``."""
    rows = [f"| `{k.name}` | {k.accepted} | `{shown(k.default)}` | {k.help} |" for k in describe_keys()]
    return "\n".join(["| key | accepted | default | what it is |", "|---|---|---|---|", *rows])


@cache
def sections() -> dict[str, Any]:
    """The sections of a recipe by name: their dataclasses."""
    return {name: hint for name, hint in get_type_hints(Recipe).items() if is_dataclass(hint)}


def contradictions(values: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Key, the key that limits it, and the problem."""
    if values["pairs.group"] > (pairs := values["pairs.per_round"]):
        yield "pairs.group", "pairs.per_round", f"{values['pairs.group']}; must not exceed pairs.per_round ({pairs})"
    if values["train.warmup"] >= (steps := values["train.steps"]):
        yield "train.warmup", "train.steps", f"{values['train.warmup']}; must be below train.steps ({steps})"
    if values["control"] != "none" and values["pairs.ladder"]:
        yield (
            "pairs.ladder",
            "control",
            f"{values['pairs.ladder']}; must be 0 in a control run, whose labels know nothing",
        )
    for part in parts(values["mos.range"]):
        try:
            scale_ends(part)
        except ValueError:
            yield "mos.range", "mos.range", f"{part}; must be auto, or two rising numbers such as 1..5"
    for part in parts(values["mos.better"]):
        if part not in ("higher", "lower"):
            yield "mos.better", "mos.better", f"{part}; must be higher or lower"
    yield from _grpo_contradictions(values)


def _grpo_contradictions(values: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Those of the section grpo."""
    if values["grpo.estimator"] == "exact":
        for key, drawn, instead in (
            ("grpo.engine", "trl", "native"),
            ("grpo.advantage", "leave-one-out", "centred"),
            ("grpo.kl", "k3", "exact"),
        ):
            if values[key] == drawn:
                problem = f"{drawn} is for drawn answers; set grpo.estimator to sampled, or this to {instead}"
                yield key, "grpo.estimator", problem
    if values["grpo.rationale"] and values["grpo.engine"] != "trl":
        problem = f"{values['grpo.rationale']}; only TRL trains on written reasons, set grpo.engine to trl or this to 0"
        yield "grpo.rationale", "grpo.engine", problem
    if values["grpo.engine"] == "trl":
        if (objective := values["train.objective"]) != "grpo":
            yield "grpo.engine", "train.objective", f"trl; needs train.objective grpo, not {objective}"
        if values["grpo.kl"] != "k3" and values["grpo.beta"] > 0:
            yield "grpo.kl", "grpo.engine", f"{values['grpo.kl']}; TRL has k3 alone, set this to k3 or grpo.beta to 0"


def scale_ends(text: str) -> tuple[float, float] | None:
    """Ends of a MOS scale written LOW..HIGH, such as ``0..100``; None for ``auto``.

    Raises:
        ValueError: if it is written otherwise, or the ends are not in rising order.
    """
    if text == "auto":
        return None
    low, high = (float(end) for end in text.split(".."))
    if not -math.inf < low < high < math.inf:
        raise ValueError
    return low, high


def parts(text: str) -> list[str]:
    """The values of a key that has one for all label files, or one for each."""
    return [part.strip() for part in text.split(",")]


def convert(value: Any, key: Key) -> tuple[Any, str]:
    """A value as its key asks for, and what is wrong with it (empty if nothing)."""
    if float in key.kinds and type(value) is int:
        value = float(value)
    if get_origin(key.hint) is Literal:
        choices = get_args(key.hint)
        near = get_close_matches(str(value), choices, n=1)
        mean = f"; did you mean {near[0]!r}?" if near else ""
        return value, "" if value in choices else f"{shown(value)}; must be {key.accepted}{mean}"
    fine = type(value) in key.kinds
    if fine and key.within:
        low, high = (float(end) for end in key.within[1:-1].split(","))
        fine = low < value < high or (value == low and "[" in key.within) or (value == high and "]" in key.within)
    return value, "" if fine else f"{shown(value)}; must be {key.accepted}"


def shown(value: Any) -> str:
    """A value in YAML; JSON is YAML, but most words need no quotes."""
    word = isinstance(value, str) and re.fullmatch(r"(?!(?i:null|true|false)$)[A-Za-z][\w./@-]*", value)
    return str(value) if word else json.dumps(value, ensure_ascii=False, default=str)


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as sections."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[key] = value
    return nested
