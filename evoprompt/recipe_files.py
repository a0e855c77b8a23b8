"""Recipe files and overrides, read strictly: every problem at once, each with its line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from evoprompt.config import Key, Recipe, contradictions, convert, describe_keys, nest, sections
from evoprompt.errors import RecipeError, counted

_Given = tuple[str, str, yaml.Node]  # line or override, dotted name, value


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
        found = contradictions(values)
        problems = [(origin.get(name) or origin[limit], f"{name}: {text}") for name, limit, text in found]
    if problems:
        width = max(len(where) for where, _ in problems)
        title = "the recipe" if source is None else f"recipe {str(source)!r}"
        lines = [f"  {where:<{width}}  {text}" for where, text in problems]
        raise RecipeError("\n".join([f"{title} has {counted(len(problems), 'problem')}:", *lines]))
    parts = sections()
    return Recipe(**{k: parts[k](**v) if k in parts else v for k, v in nest(values).items()})


def _misplaced(name: str) -> str:
    """What is wrong with a key that does not exist; the nearest one by its whole name, or by its last part."""
    if name in sections():
        return f"is a section; give its keys, such as {name}.{fields(sections()[name])[0].name}"
    last = {key.name.rpartition(".")[2]: key.name for key in describe_keys()}
    near = get_close_matches(name, [*last.values(), *sections()], n=1)
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
        elif not prefix and name in sections() and isinstance(value, yaml.MappingNode):
            yield from _read_mapping(value, f"{name}.", problems)
        elif prefix or name not in sections() or value.value:  # a section without keys is fine
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
        return convert(_SCALARS[tag][1](node.value), key)
    except ValueError:
        return None, f"{node.value}; must be {key.accepted}"
