import json
import re
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml

from evoprompt.config import JudgeConfig, Recipe, TrainConfig, VoteConfig, describe_keys, keys_table
from evoprompt.errors import RecipeError
from evoprompt.questions import FAMILIES
from evoprompt.recipe_files import load_recipe, recipe_dir, shipped_recipes

ROOT = Path(__file__).parents[2]


def load(tmp_path, text, overrides=()):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, overrides)


def problems(tmp_path, text, overrides=()):
    """The lines of the one error, without its heading."""
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text, overrides)
    heading, *lines = str(caught.value).split("\n")
    assert heading == f"recipe '{tmp_path / 'mine.yaml'}' has {len(lines)} problem{'s' if len(lines) > 1 else ''}:"
    return [line.strip() for line in lines]


def test_defaults_are_those_of_the_specification():
    assert load_recipe() == Recipe()
    flat = Recipe().flat()
    assert flat["judge.id"] == "owl2-nano" and flat["judge.revision"] is None
    prompt, vote, train = Recipe().prompt, Recipe().vote, Recipe().train
    assert (prompt.kind, prompt.size, prompt.blocks, prompt.strength) == ("border", 16, 160, 0.6)
    assert (vote.mode, vote.min_confidence, train.variance) == ("exact", 0.6, "predicted-detached")


def test_values_of_the_file_are_read_and_overrides_win_over_it(tmp_path):
    text, overrides = (
        "rounds: 3\ntrain:\n  lr: 0.2\n  steps: 7\n",
        ["train.lr=0.4", "train.lr=0.5", "vote.prompted=false"],
    )
    recipe = load(tmp_path, text, overrides)
    assert (recipe.rounds, recipe.train.lr, recipe.train.steps, recipe.vote.prompted) == (3, 0.5, 7, False)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "train:\n", "{}"])
def test_a_recipe_that_says_nothing_is_the_default(tmp_path, text):
    assert load(tmp_path, text) == Recipe()


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("3.0e1", 30), ("2", 2), (".5", 0.5), ("+1.5E+2", 150), ("!!float 2", 2)]
)
def test_numbers_are_those_of_yaml_1_2(tmp_path, text, value):
    lr = load(tmp_path, f"train: {{lr: {text}}}").train.lr
    assert lr == value and type(lr) is float


@pytest.mark.parametrize(
    "text", ["1_000", "0x10", "1:30", "10.0", "1e3", "'10'", "yes", "null", "[1]", "{a: 1}", "!!int x"]
)
def test_what_is_not_a_whole_number_is_not_taken_for_one(tmp_path, text):
    (line,) = problems(tmp_path, f"train:\n  steps: {text}\n")
    assert line.startswith("line 2  train.steps: ") and line.endswith("; must be a whole number in [1, inf)")


@pytest.mark.parametrize("text", ["yes", "on", "1", "'true'", "~"])
def test_only_true_and_false_are_truth_values(tmp_path, text):
    (line,) = problems(tmp_path, f"vote: {{prompted: {text}}}")
    assert line.endswith("must be true or false")


@pytest.mark.parametrize("text", ["1234567", "12e4567", "'12e4567'", "no", "true"])
def test_a_text_key_takes_what_looks_like_a_number_as_it_stands(tmp_path, text):
    revision = load(tmp_path, f"judge: {{revision: {text}}}").judge.revision
    assert revision == text.strip("'")


def test_all_problems_are_told_at_once_with_their_lines_and_overrides(tmp_path):
    text = "vote:\n  min_confidense: 0.7\n  mode: exakt\ntrain:\n  steps: 0\n  lr: fast\nlr: 0.1\nzzz: 1\n"
    assert problems(tmp_path, text, ["seed=-1", "rounds"]) == [
        "line 2      vote.min_confidense: unknown key; did you mean 'vote.min_confidence'?",
        "line 3      vote.mode: exakt; must be exact or sampled; did you mean 'exact'?",
        "line 5      train.steps: 0; must be a whole number in [1, inf)",
        "line 6      train.lr: fast; must be a number in (0, inf)",
        "line 7      lr: unknown key; did you mean 'train.lr'?",
        "line 8      zzz: unknown key; 'evoprompt recipes nano' shows all keys",
        "-s seed=-1  seed: -1; must be a whole number in [0, inf)",
        "-s rounds   not of the form key=value, such as train.steps=100",
    ]


def test_a_key_given_twice_is_told_with_both_lines(tmp_path):
    text = "train:\n  lr: 0.1\n  steps: 5\n  lr: 0.2\nseed: 1\nseed: 2\n"
    assert problems(tmp_path, text) == [
        "line 4  train.lr: given twice, also on line 2; keep one",
        "line 6  seed: given twice, also on line 5; keep one",
    ]


def test_a_section_is_no_value_and_a_misspelled_one_is_named(tmp_path):
    assert problems(tmp_path, "train: 5\nvotes:\n  mode: exact\n") == [
        "line 1  train: is a section; give its keys, such as train.objective",
        "line 2  votes: unknown key; did you mean 'vote'?",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pairs.per_round=5", "pairs.group: 12; must not exceed pairs.per_round (5)"),
        ("pairs.group=2000", "pairs.group: 2000; must not exceed pairs.per_round (1000)"),
        ("train.warmup=60", "train.warmup: 60; must be below train.steps (60)"),
    ],
)
def test_keys_that_contradict_each_other_are_told_where_the_cause_was_given(override, message):
    with pytest.raises(RecipeError) as caught:
        load_recipe(None, [override])
    assert str(caught.value) == f"the recipe has 1 problem:\n  -s {override}  {message}"


@pytest.mark.parametrize(
    ("key", "inside", "outside"),
    [
        ("vote.min_confidence", (0.5, 0.99), (0.49, 1, float("nan"))),
        ("prompt.strength", (1e-6, 1), (0, 1.01)),
        ("pairs.heldout", (0.01, 0.99), (0, 1)),
        ("pairs.ladder", (0, 1), (-0.1, 1.1)),
        ("pairs.group", (2, 100), (1,)),
        ("gate.confidence", (0.51, 0.99), (0.5, 1)),
        ("train.gamma", (1e-9, 5), (0, float("inf"))),
        ("train.lr", (1e-9, 60), (0, -1)),
        ("ladder.levels", (1, 5), (0, 6)),
    ],
)
def test_ranges_hold_at_their_ends_for_library_callers_too(key, inside, outside):
    section, name = key.split(".")
    for value in inside:
        assert make(section, name, value).flat()[key] == value
    for value in outside:
        with pytest.raises(RecipeError, match=f"{section}.{name}: "):
            make(section, name, value)


def make(section, name, value):
    recipe = Recipe()
    return replace(recipe, **{section: replace(getattr(recipe, section), **{name: value})})


def test_library_callers_get_types_choices_and_contradictions_checked():
    for broken in ({"mode": "exakt"}, {"views": 2.0}, {"prompted": 1}, {"views": True}):
        with pytest.raises(RecipeError, match="must be"):
            Recipe(vote=VoteConfig(**broken))
    with pytest.raises(RecipeError, match="must be below train.steps"):
        Recipe(train=TrainConfig(steps=5, warmup=5))
    with pytest.raises(RecipeError, match="3 problems"):
        Recipe(rounds=0, seed=-1, judge=JudgeConfig(id=None))


def test_a_recipe_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        Recipe().rounds = 3


@pytest.mark.parametrize("text", ["train: [1\n", "a: b: c\n", "\tx: 1\n", "a: 1\n---\nb: 2\n"])
def test_text_that_is_not_yaml_is_told_with_its_line(tmp_path, text):
    with pytest.raises(RecipeError, match=r"mine\.yaml', line \d+ is not YAML: "):
        load(tmp_path, text)


@pytest.mark.parametrize("text", ["- rounds\n", "rounds\n"])
def test_a_file_without_keys_is_refused(tmp_path, text):
    with pytest.raises(RecipeError, match="holds no keys"):
        load(tmp_path, text)


def test_yaml_cannot_make_python_objects(tmp_path):
    (line,) = problems(tmp_path, "judge: {id: !!python/object/apply:os.getcwd []}")
    assert "not a single plain value" in line


def test_a_file_that_is_not_text_or_not_there_is_told_with_what_is_there(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "x.yaml")
    with pytest.raises(RecipeError, match="did you mean 'nano'"):
        load_recipe("nanno")
    with pytest.raises(RecipeError, match="one of deqa, evoquality"):
        load_recipe(tmp_path / "absent.yaml")


ODD = ["judge.id='a: b # c'", "judge.revision='null'", "train.lr=1e-7", "train.grad_clip=3", "vote.prompted=false"]


@pytest.mark.parametrize("overrides", [[], ODD])
def test_the_filled_in_recipe_is_a_recipe_again(tmp_path, overrides):
    recipe = load_recipe(None, overrides)
    assert load(tmp_path, recipe.to_yaml()) == recipe
    assert yaml.safe_load(recipe.to_yaml())["prompt"] == recipe.to_dict()["prompt"]


def test_odd_texts_survive_as_texts():
    judge = load_recipe(None, ODD).judge
    assert (judge.id, judge.revision) == ("a: b # c", "null")


def test_fingerprint_changes_with_every_identity_key_and_with_no_horizon_key():
    horizon = {"rounds", "eval.batch_size", "train.save_every", "eval.memory_mib"}
    horizon |= {"eval.device_cache_mib", "eval.host_cache_mib", "eval.disk_cache_mib"}
    horizon |= {"eval.host_images_mib", "eval.disk_images_mib"}
    horizon |= {"judge.checkpointing", "judge.compile"}
    assert {key.name for key in describe_keys() if key.horizon} == horizon
    drawn = ["train.objective=grpo", "grpo.estimator=sampled", "grpo.beta=0"]
    needs = {"grpo.engine": drawn, "grpo.kl": drawn, "grpo.rationale": [*drawn, "grpo.engine=trl"]}
    for key in describe_keys():
        needed = needs.get(key.name, [])
        usual, other = load_recipe(None, needed), load_recipe(None, [*needed, f"{key.name}={another(key)}"])
        assert (other.fingerprint() == usual.fingerprint()) == (key.name in horizon), key.name
        assert [line.split(":")[0] for line in other.differences(usual)] == [key.name]


def another(key):
    """A value other than the default that the key accepts."""
    if key.name in (texts := {"mos.range": "0..100", "mos.better": "lower"}):
        return texts[key.name]
    if key.default is None or type(key.default) is str:
        return next((choice for choice in get_args(key.hint) if choice not in (key.default, str)), "other")
    if type(key.default) is bool:
        return str(not key.default).lower()
    return key.default + 1 if type(key.default) is int else key.default / 2 + 0.2


def test_fingerprint_is_the_same_for_a_whole_number_and_its_float():
    whole, real = Recipe(train=TrainConfig(grad_clip=1)), Recipe(train=TrainConfig(grad_clip=1.0))
    assert whole.fingerprint() == real.fingerprint() and whole.differences(real) == []
    assert len(whole.fingerprint()) == 12 and int(whole.fingerprint(), 16) >= 0


def test_differences_say_both_values():
    assert load_recipe(None, ["train.lr=0.1", "judge.revision=abc"]).differences(Recipe()) == [
        "judge.revision: abc -> null",
        "train.lr: 0.1 -> 0.05",
    ]


def test_the_plain_dict_is_json_and_holds_every_key():
    nested = json.loads(json.dumps(Recipe().to_dict()))
    assert nested["train"]["lr"] == 0.05 and nested["rounds"] == 2
    assert sum(len(v) if isinstance(v, dict) else 1 for v in nested.values()) == len(describe_keys())


def test_judge_families_are_auto_and_those_of_the_questions():
    assert get_args(get_type_hints(JudgeConfig)["family"]) == ("auto", *FAMILIES)


def test_every_key_is_explained_and_its_default_is_accepted():
    for key in describe_keys():
        assert key.help and "\n" not in key.help
    assert len({key.name for key in describe_keys()}) == len(describe_keys())


def test_shipped_recipes_all_load_and_say_what_they_are():
    assert len(shipped_recipes()) == 14
    for name, line in shipped_recipes().items():
        assert load_recipe(name) == load_recipe(recipe_dir() / f"{name}.yaml")
        assert len(line) > 20 and line.endswith(".")
        use = re.search(rf"#   evoprompt (.*) -r {name}\b", (recipe_dir() / f"{name}.yaml").read_text())
        sources = {"evolve": "--unlabeled photos/", "train": "--train-mos labels.csv"}
        assert use and f" {sources[use[1].split()[0]]}" in use[1]


def test_shipped_recipes_differ_from_the_defaults_as_their_names_say():
    assert load_recipe("nano") == Recipe()
    assert load_recipe("nano-ladder").differences(Recipe()) == ["pairs.ladder: 0.5 -> 0.0"]
    assert load_recipe("label-free").judge.id == "MAGAer13/mplug-owl2-llama2-7b"
    for name in ("sampled-votes", "evoquality"):
        vote = load_recipe(name).vote
        assert (vote.mode, vote.draws, vote.min_confidence, vote.targets) == ("sampled", 32, 0.5, "hard")


def test_recipes_of_published_methods_hold_what_was_published():
    evoquality, vp, deqa = (load_recipe(name) for name in ("evoquality", "supervised-vp", "deqa"))
    assert (evoquality.train.objective, evoquality.rounds, evoquality.gate.accept) == ("grpo", 2, "always")
    grpo = evoquality.grpo
    assert (grpo.estimator, grpo.answers, grpo.kl, grpo.beta) == ("sampled", 32, "k3", 0.05)
    assert grpo.advantage == "standardised"
    prompt, train = vp.prompt, vp.train
    assert (prompt.kind, prompt.size, prompt.blocks, prompt.strength) == ("border", 30, 0, 1.0)
    assert (train.optimizer, train.lr, train.schedule, train.grad_clip) == ("sgd", 60, "constant", 1)
    assert (vp.judge.question, vp.judge.preprocess, vp.mos.objective) == ("good-fine", "imagenet-crop", "mse")
    assert (deqa.mos.objective, deqa.mos.soft, deqa.mos.fidelity_weight) == ("soft-kl+fidelity", "density", 10)
    assert deqa.train.variance == "fixed"


def test_a_control_run_may_not_be_told_the_known_order_of_the_ladder():
    with pytest.raises(RecipeError, match="pairs.ladder: 0.5; must be 0 in a control run"):
        load_recipe("nano-ladder", ["control=random-labels"])


def test_recipes_of_an_installed_package_lie_inside_it(tmp_path, monkeypatch):
    monkeypatch.setattr("evoprompt.recipe_files.__file__", str(tmp_path / "evoprompt" / "config.py"))
    assert recipe_dir() == tmp_path / "recipes"
    (tmp_path / "evoprompt" / "recipes").mkdir(parents=True)
    assert recipe_dir() == tmp_path / "evoprompt" / "recipes"


def test_the_readme_of_the_recipes_has_a_row_for_each_and_the_table_of_keys():
    text = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    assert keys_table() in text
    for name in shipped_recipes():
        assert f"| [{name}]({name}.yaml) |" in text
