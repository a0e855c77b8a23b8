"""Imports within the package follow the ranks of docs/architecture.md; what must start fast imports nothing heavy."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "evoprompt"
RANKS = {
    0: ("errors", "owl2", "charts", "naming", "spreadsheets", "ahead"),
    1: (
        "config",
        "questions",
        "stats",
        "dependent",
        "distributions",
        "result_tables",
        "thurstone",
        "soft_labels",
        "tables",
        "prompts",
        "containers",
        "catalogue",
        "splits",
        "asking",
        "processes",
        "small_cards",
        "costs",
    ),
    2: (
        "logistic",
        "continual",
        "recipe_files",
        "published",
        "images",
        "readers",
        "degrade",
        "judge",
        "grpo",
        "runs",
        "tracking",
        "study_questions",
        "token_cache",
    ),
    3: ("answers", "ladder", "labels", "objectives", "findings", "pictures", "steps", "stimuli", "anchors"),
    4: ("data_check", "score_files", "trl_engine", "voting", "scoring", "study_sets"),
    5: ("training", "evaluation", "health", "mos", "batches", "study"),
    6: ("comparison", "evolution", "report", "doctor", "study_results"),
    7: ("lifecycle", "measuring"),
    8: ("session", "planning"),
    9: ("options",),
    10: (
        "run_commands",
        "prompt_commands",
        "score_commands",
        "compare_commands",
        "data_commands",
        "tool_commands",
        "study_commands",
    ),
    11: ("cli",),
    12: ("__main__",),
}
RANK = {name: rank for rank, names in RANKS.items() for name in names}
LIGHT = (
    *("__init__", "errors", "config", "recipe_files", "stats", "soft_labels", "questions", "tables", "runs"),
    *("findings", "report", "doctor"),
    *("dependent", "distributions", "logistic", "result_tables", "score_files", "evaluation", "comparison"),
    *("continual", "measuring", "compare_commands"),
    *("options", "run_commands", "prompt_commands", "score_commands", "tool_commands", "study_commands", "cli"),
)
HEAVY = {"torch", "transformers", "trl", "datasets", "wandb", "accelerate"}
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def imports(nodes: Iterator[ast.AST] | list[ast.stmt]) -> set[str]:
    """Dotted names of the modules that these nodes import; ``from evoprompt import x`` counts as ``evoprompt.x``."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            found |= {f"{base}.{alias.name}" for alias in node.names} if base == "evoprompt" else {base}
    return found


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def at_module_level(path: Path) -> set[str]:
    """What is imported when the module is; ``if TYPE_CHECKING`` is not entered."""
    return imports(parsed(path).body)


def test_every_module_has_a_rank_and_every_rank_a_module():
    assert set(MODULES) | {"owl2"} == set(RANK)


def test_the_page_on_the_architecture_has_the_same_ranks():
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", page, flags=re.MULTILINE)
    told = {int(rank): sorted(re.findall(r"`(\w+)/?`", modules)) for rank, modules in rows}
    assert told == {rank: sorted(names) for rank, names in RANKS.items()}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_smaller_ranks(name):
    found = imports(ast.walk(parsed(PACKAGE / f"{name}.py")))
    inside = {dotted.split(".")[1] for dotted in found if dotted.startswith("evoprompt.")}
    higher = {other for other in inside & set(RANK) if RANK[other] >= RANK[name]}
    assert not higher, f"{name} (rank {RANK[name]}) imports {higher}"
    assert inside <= set(RANK) | {"__version__"}


def test_the_model_imports_nothing_of_the_rest():
    for path in (PACKAGE / "owl2").rglob("*.py"):
        ours = {name for name in imports(ast.walk(parsed(path))) if name.startswith("evoprompt")}
        assert all(name.startswith("evoprompt.owl2") for name in ours), f"{path.name}: {ours}"


@pytest.mark.parametrize("name", MODULES)
def test_imports_are_absolute(name):
    assert not [dotted for dotted in imports(ast.walk(parsed(PACKAGE / f"{name}.py"))) if dotted.startswith(".")]


@pytest.mark.parametrize("name", LIGHT)
def test_a_light_module_imports_nothing_heavy_at_module_level(name):
    assert not {dotted.split(".")[0] for dotted in at_module_level(PACKAGE / f"{name}.py")} & HEAVY


def test_importing_the_light_modules_loads_nothing_heavy_by_the_way():
    names = ["evoprompt", *(f"evoprompt.{name}" for name in LIGHT if name != "__init__")]
    code = f"import {', '.join(names)}, sys; print(*sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_trl_and_wandb_are_imported_only_on_demand():
    for name in MODULES:
        assert not {dotted.split(".")[0] for dotted in at_module_level(PACKAGE / f"{name}.py")} & {"trl", "wandb"}
