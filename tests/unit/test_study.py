"""The study asked of a judge whose knowledge is known: the numbers must be those that follow from it."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ScriptedJudge, base_picture, write_toy_images
from PIL import Image
from scipy.stats import spearmanr

from evoprompt.errors import JudgeError, RunError
from evoprompt.images import fit_image, read_image
from evoprompt.scoring import score_views
from evoprompt.stats import Interval
from evoprompt.study import Plan, plan_study, presentations, run_study
from evoprompt.study_questions import FULL_REFERENCE, NO_REFERENCE, System
from evoprompt.study_results import Found, find, row_of, stated, summary, write_study
from evoprompt.study_sets import StudySet

N = 24
ALL = {system.name: system for system in (*NO_REFERENCE, *FULL_REFERENCE)}
IDENTITY = {"judge": "scripted@0", "prompt": "none", "seed": 0}


@pytest.fixture(scope="module")
def toys_with_mos(tmp_path_factory: pytest.TempPathFactory) -> StudySet:
    """Toy images of three invented references of eight; the undisturbed picture is the reference file of all."""
    folder = tmp_path_factory.mktemp("study")
    truth = write_toy_images(folder, N)
    reference = folder / "reference.png"
    Image.fromarray((base_picture() * 255).round().astype(np.uint8)).save(reference)
    names = tuple(f"toy{k:02d}.png" for k in range(N))
    return StudySet(
        name="toys",
        names=names,
        paths=tuple(folder / name for name in names),
        sha256=names,
        mos=truth,
        groups=tuple(f"r{k % 3}" for k in range(N)),
        references=(reference,) * N,
    )


def without_references(data: StudySet) -> StudySet:
    return replace(data, groups=None, references=None)


def study(judge: ScriptedJudge, data: StudySet, out: Path, *names: str, plan: Plan | None = None) -> dict[str, Found]:
    plan = plan or plan_study(data, partners=10, fours=3, seed=0)
    systems = [ALL[name] for name in names]
    answers = run_study(judge, [plan], systems, IDENTITY, out, 16, lambda n=1, **_: None)
    return {name: find(plan, ALL[name], answers) for name in names}


NINE = tuple(system.name for system in NO_REFERENCE)


def test_a_judge_that_knows_everything_gets_everything_right(toys_with_mos: StudySet, tmp_path: Path) -> None:
    data = without_references(toys_with_mos)
    plan = plan_study(data, partners=10, fours=3, seed=0)
    found = study(ScriptedJudge(), data, tmp_path / "s", *NINE, plan=plan)
    for name, system in found.items():
        row = row_of(plan, ALL[name], system)
        assert (row.missing, row.unscored, row.images) == (0, 0, N - 5), name
        if not name.startswith("single"):
            # The scripted rating has a nuisance, its comparisons have none.
            assert row.right > 0.97 and row.swap == 1, name
            assert row.srcc.value > 0.93, name


def distances(judge: ScriptedJudge, data: StudySet) -> list[float]:
    views = [torch.from_numpy(fit_image(read_image(path), "squash", 48)).float() / 255 for path in data.paths]
    return [float(judge.encode(view)[0, 0, 0]) for view in views]


@pytest.mark.parametrize("strategy", ["standard", "context", "thought"])
def test_pairs_are_right_as_often_as_the_judge_is(toys_with_mos: StudySet, tmp_path: Path, strategy: str) -> None:
    data, judge = without_references(toys_with_mos), ScriptedJudge(accuracy=0.75)
    plan = plan_study(data, partners=10, fours=3, seed=0)
    found = study(judge, data, tmp_path / "s", f"double-{strategy}", plan=plan)[f"double-{strategy}"]
    row = row_of(plan, ALL[f"double-{strategy}"], found)
    # Which pairs it gets wrong is known from the judge itself.
    far = distances(judge, data)
    said = [(far[b] - far[a]) * judge._wrong(far[a], far[b]) for a, b in found.pairs]
    true = [data.mos[a] - data.mos[b] for a, b in found.pairs]
    assert row.pairs == len(plan.stimuli["double", False]) > 3 * (N - 5)
    assert row.right == pytest.approx(np.mean(np.sign(said) == np.sign(true)))
    assert 0.6 < row.right < 0.9 and row.srcc.value > 0.5


@pytest.mark.parametrize("strategy", ["standard", "context", "thought"])
def test_rankings_are_right_as_often_as_the_judge_is(toys_with_mos: StudySet, tmp_path: Path, strategy: str) -> None:
    data, judge = without_references(toys_with_mos), ScriptedJudge(accuracy=0.75)
    plan = plan_study(data, partners=10, fours=3, seed=0)
    found = study(judge, data, tmp_path / "s", f"multiple-{strategy}", plan=plan)[f"multiple-{strategy}"]
    far = distances(judge, data)
    right = []
    for four in plan.stimuli["multiple", False]:
        ends = sorted(far[i] for i in four)[::3]
        for a, b in combinations(four, 2):
            said = (far[b] - far[a]) * judge._wrong(*ends)
            right.append(np.sign(said) == np.sign(data.mos[a] - data.mos[b]))
    row = row_of(plan, ALL[f"multiple-{strategy}"], found)
    assert row.pairs == len(right) and row.right == pytest.approx(np.mean(right))
    assert 0.5 < row.right < 1 and row.swap == 1


@pytest.mark.parametrize("strategy", ["standard", "context", "thought"])
def test_ratings_are_the_judges_own(toys_with_mos: StudySet, tmp_path: Path, strategy: str) -> None:
    data, judge = without_references(toys_with_mos), ScriptedJudge()
    plan = plan_study(data, partners=10, seed=0)
    found = study(judge, data, tmp_path / "s", f"single-{strategy}", plan=plan)[f"single-{strategy}"]
    views = np.stack([fit_image(read_image(path), "squash", 48) for path in data.paths])
    own = score_views(judge, views)[0][plan.images]  # type: ignore[arg-type]
    np.testing.assert_allclose(found.scores[plan.images], own, atol=1e-6)
    agreement = row_of(plan, ALL[f"single-{strategy}"], found).srcc.value
    assert agreement == pytest.approx(spearmanr(own, data.mos[plan.images]).statistic)


def test_position_bias_is_removed_by_asking_both_orders(toys_with_mos: StudySet, tmp_path: Path) -> None:
    data = without_references(toys_with_mos)
    plan = plan_study(data, partners=10, fours=3, seed=0)
    # Twice as strong as its knowledge: every single answer is "first".
    found = study(ScriptedJudge(order_bias=4.0), data, tmp_path / "s", "double-standard", plan=plan)["double-standard"]
    row = row_of(plan, ALL["double-standard"], found)
    assert row.right > 0.97 and row.swap == 0


def test_a_ranking_that_is_none_is_a_counted_missing_value(toys_with_mos: StudySet, tmp_path: Path) -> None:
    data = without_references(toys_with_mos)
    judge = ScriptedJudge(silent=0.3)
    plan = plan_study(data, partners=10, fours=3, seed=0)
    system = ALL["multiple-standard"]
    answers = run_study(judge, [plan], [system], IDENTITY, tmp_path / "s", 16, lambda n=1, **_: None)
    silent = [a for a in answers if a.text == "hard to tell"]
    assert silent and all(a.missing == "not a ranking" and a.ranking is None for a in silent)
    row = row_of(plan, system, find(plan, system, answers))
    assert (row.asked, row.missing) == (len(answers), len(silent))
    assert row.right > 0.97  # what is left is as right as before
    nothing = find(plan, system, [replace(a, ranking=None, missing="not a ranking") for a in answers])
    blank = row_of(plan, system, nothing)
    assert (blank.images, blank.unscored, blank.missing) == (0, N - 5, blank.asked)
    assert np.isnan(blank.srcc.value) and "none, 100% of the answers missing, n = 0" in summary([blank])


def test_full_reference_compares_within_a_reference_and_shows_it_first(toys_with_mos: StudySet, tmp_path: Path) -> None:
    plan = plan_study(toys_with_mos, partners=10, fours=3, seed=0)
    groups = toys_with_mos.groups
    assert groups is not None
    # The first reference is the example and is asked about by no system.
    assert {groups[i] for i in plan.examples.set_aside} == {"r0"}
    assert all(groups[i] != "r0" for s in plan.stimuli["double", False] for i in s)
    for procedure in ("double", "multiple"):
        assert all(len({groups[i] for i in s}) == 1 for s in plan.stimuli[procedure, True])  # type: ignore[index]
    found = study(ScriptedJudge(), toys_with_mos, tmp_path / "s", *(f"{name}-fr" for name in NINE), plan=plan)
    for name, system in found.items():
        row = row_of(plan, ALL[name], system)
        assert (row.missing, row.images) == (0, 16), name
        assert row.references == 2
        assert np.isnan(row.srcc.low) and row.srcc.reason == "2 references have a value; at least 5 are needed"
        if not name.startswith("single"):
            assert row.right > 0.95 and row.srcc.value > 0.9, name


class Recorder(ScriptedJudge):
    """Keeps what it was shown and asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, list[float]]] = []

    def ask(self, seen, text, answers):  # type: ignore[no-untyped-def]
        self.asked.append((text, [float(image[0, 0, 0]) for image in seen]))
        return super().ask(seen, text, answers)


def test_every_mark_of_a_text_gets_its_image_the_example_and_the_references_first(
    toys_with_mos: StudySet, tmp_path: Path
) -> None:
    judge = Recorder()
    plan = plan_study(toys_with_mos, partners=2, fours=1, seed=0)
    study(judge, toys_with_mos, tmp_path / "s", "double-context-fr", "single-thought", plan=plan)
    texts = {text.count("<|image|>"): shown for text, shown in judge.asked}
    reference, better, worse, again, *_ = texts[6]
    assert reference == again == pytest.approx(0, abs=0.01)
    assert 0.01 < better < worse
    thought = [text for text, shown in judge.asked if len(shown) == 1][-1]
    assert "ASSISTANT: Description: distance 0." in thought and thought.endswith("\nThe quality of the image is")


def test_an_interrupted_study_goes_on_where_it_stopped(toys_with_mos: StudySet, tmp_path: Path) -> None:
    data, names = without_references(toys_with_mos), ("double-standard", "multiple-thought")
    whole = study(ScriptedJudge(), data, tmp_path / "whole", *names)

    class Stopped(Exception):
        pass

    def stop(n: int = 1, **_: float) -> None:
        raise Stopped

    plan = plan_study(data, partners=10, fours=3, seed=0)
    systems = [ALL[name] for name in names]
    with pytest.raises(Stopped):
        run_study(ScriptedJudge(), [plan], systems, IDENTITY, tmp_path / "part", 16, stop)
    file = tmp_path / "part" / "answers.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == 16
    file.write_text("".join(lines[:9]) + lines[9][:20])  # a kill in the middle of a line
    asked: list[int] = []
    answers = run_study(
        ScriptedJudge(), [plan], systems, IDENTITY, tmp_path / "part", 16, lambda n=1, **_: asked.append(n)
    )
    assert len(answers) == sum(asked) == sum(len(presentations(plan, s, 1)) for s in systems)
    for name in names:
        np.testing.assert_array_equal(find(plan, ALL[name], answers).scores, whole[name].scores)
    keys = [json.loads(line)["stimulus"] for line in file.read_text().splitlines()]
    assert len(keys) == len(answers)


def test_another_study_in_the_folder_is_refused_with_the_difference(toys_with_mos: StudySet, tmp_path: Path) -> None:
    data = without_references(toys_with_mos)
    study(ScriptedJudge(), data, tmp_path / "s", "single-standard")
    plan = plan_study(data, 10, 0)
    with pytest.raises(RunError, match=r"differs in seed \(then 0, now 1\)"):
        run_study(ScriptedJudge(), [plan], [], {**IDENTITY, "seed": 1}, tmp_path / "s", 8, lambda n=1, **_: None)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(RunError, match="is not empty and holds no study"):
        run_study(ScriptedJudge(), [plan], [], IDENTITY, tmp_path / "other", 8, lambda n=1, **_: None)


def test_systems_that_a_judge_cannot_be_asked_are_named_before_anything_is_written(
    toys_with_mos: StudySet, tmp_path: Path
) -> None:
    class Mute(ScriptedJudge):
        def tell(self, seen, text, limit):  # type: ignore[no-untyped-def]
            raise JudgeError(f"question {text[:5]!r} cannot be put to it.")

    plan = plan_study(without_references(toys_with_mos), 6, 0)
    with pytest.raises(JudgeError, match="cannot be asked multiple-standard .*multiple-context .*multiple-thought"):
        run_study(Mute(), [plan], list(NO_REFERENCE), IDENTITY, tmp_path / "s", 8, lambda n=1, **_: None)
    assert not (tmp_path / "s").exists()


def test_the_files_of_a_study(toys_with_mos: StudySet, tmp_path: Path) -> None:
    data = without_references(toys_with_mos)
    plan = plan_study(data, 10, 0)
    systems = [ALL["single-standard"], ALL["multiple-standard"]]
    out = tmp_path / "s"
    answers = run_study(ScriptedJudge(silent=0.2), [plan], systems, IDENTITY, out, 16, lambda n=1, **_: None)
    found = {(s.name, "toys"): find(plan, s, answers) for s in systems}
    rows = [row_of(plan, s, found[s.name, "toys"]) for s in systems]
    sets = {"toys": {"labels": "t.csv", "n": N, "split": "test (its own); LEAKY: 2 of 3", "direction": "negated"}}
    write_study(out, IDENTITY, sets, [plan], answers, rows, found)
    body = json.loads((out / "study.json").read_text())
    assert [row["system"] for row in body["rows"]] == ["single-standard", "multiple-standard"]
    assert body["rows"][0]["right"] is None and body["judge"] == "scripted@0"
    given = list(read(out / "answers.csv"))
    assert len(given) == len(answers)
    assert sum(row["missing"] != "" for row in given) == rows[1].missing > 0
    scores = list(read(out / "scores.csv"))
    assert len(scores) == N - 5
    column = [float(row["single-standard"]) for row in scores]
    again = spearmanr(column, [float(row["mos"]) for row in scores]).statistic
    assert rows[0].srcc.value == pytest.approx(again, abs=1e-6)
    page = (out / "study.html").read_text()
    assert page.count("<svg") == 1 and page.count('class="dot') == 2 and "single-standard" in page
    table = (out / "table.md").read_text()
    assert "| single-standard | " in table
    for text in (table, page):
        assert (
            "toys: t.csv, 24 images; split: test (its own); LEAKY: 2 of 3; MOS: negated. Judge: scripted@0, prompt"
            in text
        )
    assert body["protocol"] == sets
    few = replace(rows[0], srcc=Interval(0.5, math.nan, math.nan, "too few"))
    assert "| single-standard | 0.500 |" in stated(IDENTITY, sets, [few])
    assert "- toys, single-standard: too few" in stated(IDENTITY, sets, [few])


def read(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def test_a_system_has_one_name() -> None:
    assert System("double", "thought", True).name == "double-thought-fr"
    assert len(ALL) == 18
