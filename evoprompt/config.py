"""Recipes: everything that defines a run, read strictly from YAML and overrides, each key described once, here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from itertools import chain
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import yaml

from evoprompt.errors import RecipeError, listed

_Given = tuple[str, str, yaml.Node]  # line or override, dotted name, value


def opt(default: Any, help: str, *, within: str = "", horizon: bool = False) -> Any:
    """Declare a key: default, one line for people, interval of a number, whether it may change in a continued run."""
    return field(default=default, metadata={"help": help, "within": within, "horizon": horizon})


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Who judges."""

    id: str = opt("owl2-nano", "owl2-nano (in the package), a folder, or a Hub id of an mPLUG-Owl2 checkpoint")
    revision: str | None = opt(None, "Hub revision; null is the default branch")
    family: Literal["auto", "owl2", "qalign", "compare2score", "nano"] = opt(
        "auto", "how it is asked; auto reads it from the checkpoint"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = opt("auto", "auto: bfloat16 on CUDA, float32 elsewhere")


@dataclass(frozen=True, kw_only=True)
class PixelConfig:
    """Shape of the pixel prompt, before the judge's image size is known."""

    kind: Literal["border", "patch", "overlay"] = opt("border", "a frame, a square, or the whole image")
    size: int = opt(16, "px: width of the border, side of the patch; not used by overlay", within="[1, inf)")
    blocks: int = opt(16, "px: side of a block that shares one colour; 0 = every pixel is free", within="[0, inf)")
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
    draws: int = opt(32, "answers drawn a pair; mode sampled only", within="[1, inf)")
    min_confidence: float = opt(0.6, "share of the votes a winner needs for its pair to be used", within="[0.5, 1)")
    targets: Literal["hard", "soft"] = opt("hard", "train on the winner, or on the share of votes")
    prompted: bool = opt(True, "vote with the prompt accepted so far; false = the bare judge votes in every round")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the prompt is trained within a round."""

    steps: int = opt(60, "optimiser steps a round", within="[1, inf)")
    lr: float = opt(0.05, "learning rate of the prompt's values before the bound", within="(0, inf)")
    optimizer: Literal["adam", "sgd"] = opt("adam", "optimiser")
    schedule: Literal["cosine", "constant"] = opt("cosine", "learning rate over the steps of a round")
    warmup: int = opt(0, "steps over which the learning rate rises", within="[0, inf)")
    grad_clip: float = opt(0.0, "largest gradient norm; 0 = no limit", within="[0, inf)")
    save_every: int = opt(20, "steps between checkpoints within a round", within="[1, inf)", horizon=True)
    variance: Literal["predicted-detached", "predicted", "fixed"] = opt(
        "predicted-detached", "spread of a rating in the loss; predicted rewards overconfidence, fixed is 1"
    )
    gamma: float = opt(0.1, "variance of a comparison, in squared score units", within="(0, inf)")


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """When a round is accepted."""

    tolerance: float = opt(0.01, "how far ladder accuracy may fall", within="[0, 1]")
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


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that defines a run but the images.

    Raises:
        RecipeError: if a value is not accepted, or two keys contradict each other.
    """

    rounds: int = opt(2, "rounds of voting and training", within="[1, inf)", horizon=True)
    seed: int = opt(0, "of every random choice", within="[0, inf)")
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    prompt: PixelConfig = field(default_factory=PixelConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    vote: VoteConfig = field(default_factory=VoteConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    ladder: LadderConfig = field(default_factory=LadderConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        values = self.flat()
        problems = [f"{key.name}: {p}" for key in describe_keys() if (p := _convert(values[key.name], key)[1])]
        problems = problems or [f"{key}: {problem}" for key, _, problem in _contradictions(values)]
        if problems:
            raise RecipeError(f"the recipe has {_count(problems)}: {listed(problems)}.")

    def flat(self) -> dict[str, Any]:
        """Every key under its dotted name, such as ``train.lr``."""
        values = {}
        for key in describe_keys():
            section, _, short = key.name.rpartition(".")
            # Converted, so that a whole number given for a float has the fingerprint of the float.
            values[key.name] = _convert(getattr(getattr(self, section) if section else self, short), key)[0]
        return values

    def to_dict(self) -> dict[str, Any]:
        """Sections as nested plain dicts, every key present."""
        return _nested(self.flat())

    def to_yaml(self) -> str:
        """The recipe with every key filled in and explained, itself a valid recipe file."""
        lines, values, last = [], self.flat(), ""
        for key in describe_keys():
            section, _, short = key.name.rpartition(".")
            lines += [f"{section}:"] if section != last else []
            last, indent = section, "  " if section else ""
            lines.append(f"{indent + short + ': ' + _shown(values[key.name]):<36}# {key.help}")
        return "\n".join(lines) + "\n"

    def fingerprint(self) -> str:
        """12 hex digits over the keys that define a run; rounds and other horizon keys are left out."""
        values = self.flat()
        identity = {key.name: values[key.name] for key in describe_keys() if not key.horizon}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]

    def differences(self, other: Recipe) -> list[str]:
        """Keys whose values differ, as ``train.lr: 0.05 -> 0.1``, this recipe's value first."""
        theirs = other.flat()
        return [f"{k}: {_shown(v)} -> {_shown(theirs[k])}" for k, v in self.flat().items() if v != theirs[k]]


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
    for section, owner in {"": Recipe, **_sections()}.items():
        hints, prefix = get_type_hints(owner), f"{section}." if section else ""
        keys += [Key(prefix + f.name, hints[f.name], f.default, **f.metadata) for f in fields(owner) if f.metadata]
    return tuple(keys)


def keys_table() -> str:
    """The keys as a Markdown table, as it stands in ``recipes/README.md``."""
    rows = [f"| `{k.name}` | {k.accepted} | `{_shown(k.default)}` | {k.help} |" for k in describe_keys()]
    return "\n".join(["| key | accepted | default | what it is |", "|---|---|---|---|", *rows])


def recipe_dir() -> Path:
    """Folder of the shipped recipes: inside an installed package, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    return package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"


def shipped_recipes() -> dict[str, str]:
    """Names of the shipped recipes with the first line of their header."""
    files = sorted(recipe_dir().glob("*.yaml"), key=lambda file: file.stem)
    return {f.stem: f.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for f in files}


def load_recipe(source: str | Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe strictly.

    Args:
        source: Name of a shipped recipe, path of a YAML file, or None for the defaults.
        overrides: ``key=value`` texts, value in YAML; they win over the file, a later one over an earlier one.

    Returns:
        The recipe, defaults filled in.

    Raises:
        RecipeError: with every problem of the file and the overrides, each with its line or override.
    """
    problems: list[tuple[str, str]] = []
    known = {key.name: key for key in describe_keys()}
    values = {name: key.default for name, key in known.items()}
    origin: dict[str, str] = {}
    given = () if source is None else _read_file(_locate(source), problems)
    for where, name, node in chain(given, _read_overrides(overrides, problems)):
        origin[name] = where
        if name in known:
            values[name], problem = _read_value(node, known[name])
        else:
            problem = _misplaced(name)
        if problem:
            problems.append((where, f"{name}: {problem}"))
    if not problems:  # otherwise a value that is wrong in itself would contradict others too
        found = _contradictions(values)
        problems = [(origin.get(name) or origin[limit], f"{name}: {text}") for name, limit, text in found]
    if problems:
        width = max(len(where) for where, _ in problems)
        title = "the recipe" if source is None else f"recipe {str(source)!r}"
        lines = [f"  {where:<{width}}  {text}" for where, text in problems]
        raise RecipeError("\n".join([f"{title} has {_count(problems)}:", *lines]))
    sections = _sections()
    return Recipe(**{k: sections[k](**v) if k in sections else v for k, v in _nested(values).items()})


@cache
def _sections() -> dict[str, Any]:
    return {name: hint for name, hint in get_type_hints(Recipe).items() if is_dataclass(hint)}


def _contradictions(values: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Key, the key that limits it, and the problem."""
    if values["pairs.group"] > (pairs := values["pairs.per_round"]):
        yield "pairs.group", "pairs.per_round", f"{values['pairs.group']}; must not exceed pairs.per_round ({pairs})"
    if values["train.warmup"] >= (steps := values["train.steps"]):
        yield "train.warmup", "train.steps", f"{values['train.warmup']}; must be below train.steps ({steps})"


def _convert(value: Any, key: Key) -> tuple[Any, str]:
    """A value as its key asks for, and what is wrong with it (empty if nothing)."""
    if float in key.kinds and type(value) is int:
        value = float(value)
    if get_origin(key.hint) is Literal:
        choices = get_args(key.hint)
        near = get_close_matches(str(value), choices, n=1)
        mean = f"; did you mean {near[0]!r}?" if near else ""
        return value, "" if value in choices else f"{_shown(value)}; must be {key.accepted}{mean}"
    fine = type(value) in key.kinds
    if fine and key.within:
        low, high = (float(end) for end in key.within[1:-1].split(","))
        fine = low < value < high or (value == low and "[" in key.within) or (value == high and "]" in key.within)
    return value, "" if fine else f"{_shown(value)}; must be {key.accepted}"


def _shown(value: Any) -> str:
    """A value in YAML; JSON is YAML, but most words need no quotes."""
    word = isinstance(value, str) and re.fullmatch(r"(?!(?i:null|true|false)$)[A-Za-z][\w./@-]*", value)
    return str(value) if word else json.dumps(value, ensure_ascii=False, default=str)


def _count(problems: Sequence[Any]) -> str:
    return f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[key] = value
    return nested


def _misplaced(name: str) -> str:
    """What is wrong with a key that does not exist; the nearest one by its whole name, or by its last part."""
    if name in _sections():
        return f"is a section; give its keys, such as {name}.{fields(_sections()[name])[0].name}"
    last = {key.name.rpartition(".")[2]: key.name for key in describe_keys()}
    near = get_close_matches(name, [*last.values(), *_sections()], n=1)
    near = near or [last[key] for key in get_close_matches(name.rpartition(".")[2], last, n=1)]
    return "unknown key; " + (f"did you mean {near[0]!r}?" if near else "'evoprompt recipes nano' shows all keys")


def _locate(source: str | Path) -> Path:
    shipped = shipped_recipes()
    if str(source) in shipped:
        return recipe_dir() / f"{source}.yaml"
    if not Path(source).is_file():
        near = get_close_matches(str(source), shipped, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"give a YAML file or one of {', '.join(shipped)}."
        raise RecipeError(f"recipe {str(source)!r} is neither a file nor a shipped recipe; {hint}")
    return Path(source)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2: 1e-3 is a number, ``no`` and ``on`` are text."""

    yaml_implicit_resolvers: dict[str, Any] = {}


_SCALARS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "null": (r"~|null|Null|NULL|", lambda text: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    "int": (r"[-+]?[0-9]+", int),
    "float": (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", float),
    "str": (r"(?s:.*)", str),
}
for _name, (_pattern, _) in _SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"(?:{_pattern})\\Z"), None)


def _compose(text: str, where: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise RecipeError(f"{where}{line} is not YAML: {reason}.") from error


def _read_file(path: Path, problems: list[tuple[str, str]]) -> Iterator[_Given]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {str(path)!r} cannot be read ({error}); give a UTF-8 text file.") from error
    node = _compose(text, f"recipe {str(path)!r}")
    if isinstance(node, yaml.MappingNode):
        yield from _read_mapping(node, "", problems)
    elif node is not None:
        raise RecipeError(f"recipe {str(path)!r} holds no keys; write lines such as 'rounds: 2'.")


def _read_mapping(node: yaml.Node, prefix: str, problems: list[tuple[str, str]]) -> Iterator[_Given]:
    seen: dict[str, int] = {}
    for key, value in node.value:
        line, name = key.start_mark.line + 1, f"{prefix}{key.value}"
        if name in seen:
            problems.append((f"line {line}", f"{name}: given twice, also on line {seen[name]}; keep one"))
        elif not prefix and name in _sections() and isinstance(value, yaml.MappingNode):
            yield from _read_mapping(value, f"{name}.", problems)
        elif prefix or name not in _sections() or value.value:  # a section without keys is fine
            yield f"line {line}", name, value
        seen.setdefault(name, line)


def _read_overrides(overrides: Sequence[str], problems: list[tuple[str, str]]) -> Iterator[_Given]:
    for override in overrides:
        name, sign, text = override.partition("=")
        node = _compose(text.strip() or "~", f"-s {override}")
        if sign and node is not None:
            yield f"-s {override}", name.strip(), node
        else:
            problems.append((f"-s {override}", "not of the form key=value, such as train.steps=100"))


def _read_value(node: yaml.Node, key: Key) -> tuple[Any, str]:
    tag = node.tag.rpartition(":")[2]
    if not isinstance(node, yaml.ScalarNode) or tag not in _SCALARS:
        return None, f"not a single plain value; must be {key.accepted}"
    if str in key.kinds and tag != "null":
        return node.value, ""  # a revision such as 1234567 or 12e4567 is text without quotes too
    try:
        return _convert(_SCALARS[tag][1](node.value), key)
    except ValueError:
        return None, f"{node.value}; must be {key.accepted}"
