"""The report: says plainly whether it helped, shows only what is there, and is one safe, self-contained file."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ScriptedJudge, write_toy_images
from PIL import Image
from pyarrow import parquet, table

from evoprompt.charts import WIDE, Line, interval_chart, line_chart
from evoprompt.config import LadderConfig, PairsConfig, PixelConfig, Recipe, TrainConfig, VoteConfig
from evoprompt.errors import RunError
from evoprompt.findings import MEASURES, worries
from evoprompt.health import Health
from evoprompt.images import scan_images
from evoprompt.lifecycle import evolve
from evoprompt.pictures import read_prompt, with_prompt
from evoprompt.prompts import PixelPrompt, PromptConfig
from evoprompt.recipe_files import load_recipe
from evoprompt.report import verdict, write_report
from evoprompt.runs import write_json

VOID = {"meta", "img", "br"}
QUICK = Recipe(
    rounds=2,
    prompt=PixelConfig(size=8, blocks=8),
    pairs=PairsConfig(per_round=56, group=8, heldout=0.33),
    vote=VoteConfig(wordings=1, views=1),
    train=TrainConfig(steps=4, lr=0.03),
    ladder=LadderConfig(images=4, kinds=2),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two rounds, measured on human scores."""
    base = tmp_path_factory.mktemp("report")
    write_toy_images(base / "toys", n=24)

    def measure(prompt: PixelPrompt, folder: Path) -> dict[str, float]:
        interval = {"value": 0.5, "low": 0.4, "high": 0.6}
        write_json(folder / "eval.json", {"labels": "x.csv", "name": "prompt", "n": 30, "srcc": interval})
        return {"srcc": 0.5}

    return evolve(QUICK, scan_images([base / "toys"]), base / "run", ScriptedJudge(), measure=measure, force=True)


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of the run with the decisions accepted, rejected."""
    shutil.copytree(made, tmp_path / "run")
    _change(tmp_path / "run", 1, accepted=True, reason="a clear gain", **{"gate/gain": 0.07, "gate/gain_low": 0.02})
    _change(tmp_path / "run", 2, accepted=False, reason="no clear gain", **{"gate/gain": 0.01, "gate/gain_low": -0.02})
    return tmp_path / "run"


def _change(run: Path, number: int, accepted: bool | None = None, reason: str | None = None, **metrics: float) -> None:
    file = run / f"rounds/{number:03d}/round.json"
    record = json.loads(file.read_text())
    record["metrics"] |= metrics
    record["accepted"] = record["accepted"] if accepted is None else accepted
    record["reason"] = reason or record["reason"]
    file.write_text(json.dumps(record))


def _record(run: Path, **changes: Any) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | changes))


def _srcc(run: Path, number: int, value: float) -> None:
    body = {"n": 30, "srcc": {"value": value, "low": value - 0.1, "high": value + 0.1}}
    write_json(run / f"rounds/{number:03d}/eval.json", body)


class _Page(HTMLParser):
    """Checks that tags are balanced and collects what matters."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.handlers: list[str] = []
        self.headings: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h2", "h3"):
            self.headings.append(data)


def _page(run: Path) -> tuple[str, _Page]:
    text = write_report(run).read_text(encoding="utf-8")
    return text, _Page(text)


# -- the verdict ------------------------------------------------------------------------------------------------------


def test_the_first_line_says_that_it_helped_and_by_which_measure(run: Path) -> None:
    assert verdict(run)[0] == (
        "it helped: 1 of 2 rounds accepted; on 8 held-out images the ratings agree with the judge's votes in 0.070 "
        "more of the pairs than at the start (at least +0.020)."
    )


def test_gains_of_accepted_rounds_add_up_and_the_weakest_bound_is_told(run: Path) -> None:
    _change(run, 2, accepted=True)
    first = verdict(run)[0]
    assert "2 of 2 rounds accepted" in first
    assert "in 0.080 more of the pairs" in first
    assert "each round at least -0.020" in first


def test_a_run_without_an_accepted_round_says_that_nothing_helped(run: Path) -> None:
    _change(run, 1, accepted=False)
    nothing = "nothing helped: no round was accepted; the bare judge is as good as anything found here."
    assert verdict(run)[0] == nothing
    _record(run, init_prompt="0123456789ab")
    assert verdict(run)[0] == nothing.replace("the bare judge", "the prompt it started from")


def test_human_scores_that_fell_take_back_the_claim(run: Path) -> None:
    _srcc(run, 0, 0.62)
    _srcc(run, 1, 0.55)
    lines = verdict(run)
    assert lines[0].startswith("it helped by the label-free gate but not by human scores: ")
    human = "human    SRCC 0.620 [0.520, 0.720] at the start, 0.550 [0.450, 0.650] now; 30 images, 95 % intervals"
    assert human in lines


def test_a_rejected_round_does_not_count_as_now(run: Path) -> None:
    _srcc(run, 0, 0.5)
    _srcc(run, 1, 0.6)
    _srcc(run, 2, 0.9)
    assert "0.600 [0.500, 0.700] now" in "\n".join(verdict(run))
    assert "0.900" not in "\n".join(verdict(run))


def test_without_human_scores_none_are_mentioned(run: Path) -> None:
    for file in run.rglob("eval.json"):
        file.unlink()
    assert not any("SRCC" in line for line in verdict(run))
    assert "Agreement with human scores" not in _page(run)[1].headings


def test_an_undefined_correlation_is_no_human_evidence(run: Path) -> None:
    (run / "rounds/000/eval.json").write_text('{"n": 30, "srcc": {"value": NaN, "low": NaN, "high": NaN}}')
    assert not any(line.startswith("human") for line in verdict(run))
    assert _page(run)[1].open == []


def test_an_interrupted_run_says_how_far_it_is_and_how_to_go_on(run: Path) -> None:
    _record(run, status="interrupted")
    shutil.rmtree(run / "rounds/002")
    first = verdict(run)[0]
    assert first.startswith("so far it helped: 1 of 1 round accepted")
    assert f"[interrupted after 1 of 2 rounds, 'evoprompt resume {run}' continues it]" in first
    shutil.rmtree(run / "rounds/001")
    assert verdict(run)[0].startswith("nothing to say yet: only the bare judge was measured [interrupted after 0 of 2")
    shutil.rmtree(run / "rounds/000")
    assert verdict(run)[0].startswith("nothing to say yet: not even the bare judge was measured")
    assert _page(run)[1].headings == ["Recipe", "Provenance"]


def test_a_failed_run_says_why(run: Path) -> None:
    _record(run, status="failed", error="the loss became nan at step 3 (lr 9).")
    first = verdict(run)[0]
    assert "[failed after 2 of 2 rounds: the loss became nan at step 3 (lr 9)]" in first


def test_a_gain_without_a_bound_is_said_so(run: Path) -> None:
    _change(run, 1, **{"gate/gain_low": None})  # type: ignore[arg-type]
    assert "(at least how much, so few images cannot tell)" in verdict(run)[0]
    write_report(run)


def test_a_run_whose_run_json_lags_behind_is_judged_by_its_rounds(run: Path) -> None:
    _record(run, accepted_round=0)
    assert verdict(run)[0].startswith("it helped: 1 of 2")


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run"):
        write_report(tmp_path)


# -- health -----------------------------------------------------------------------------------------------------------


def test_every_health_measure_is_explained_under_its_name_and_in_its_order() -> None:
    assert tuple(MEASURES) == tuple(field.name for field in fields(Health))


FINE = {
    "ladder_vote_accuracy": 0.8, "ladder_rate_accuracy": 0.8, "ladder_compare_accuracy": 0.8, "ladder_steps": 100,
    "vote_share": 0.8, "swap_consistency": 0.9, "position_bias": 0.1, "triad_consistency": 0.9, "kept_fraction": 0.8,
    "agree_compare": 0.7, "agree_rate": 0.9, "score_mean": 3.0, "score_std": 0.5, "ends_fraction": 0.1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ladder_vote_accuracy", 0.55), ("ladder_rate_accuracy", 0.55), ("ladder_compare_accuracy", 0.4),
        ("ladder_steps", 40), ("vote_share", 0.54), ("swap_consistency", 0.69), ("position_bias", -2.9),
        ("triad_consistency", 0.3), ("kept_fraction", 0.1), ("agree_compare", 0.5), ("agree_rate", 0.5),
        ("score_mean", 1.2), ("score_std", 0.2), ("ends_fraction", 0.3),
    ],
)  # fmt: skip
def test_each_measure_worries_in_its_own_range_and_alone(name: str, value: float) -> None:
    assert worries(FINE, FINE) == []
    assert worries({**FINE, name: value}, FINE) == [name]


def test_worries_are_told_in_the_verdict_and_marked_in_the_page(run: Path) -> None:
    assert not any(line.startswith("worry") and "swap" in line for line in verdict(run))
    _change(run, 1, **{"health/swap_consistency": 0.61})
    assert any(line.startswith("worry") and "swap_consistency 0.61 (below 0.7)" in line for line in verdict(run))
    assert '<span class="worry">0.610 (worry)</span>' in _page(run)[0]


def test_too_few_steps_are_said_to_be_too_few(run: Path) -> None:
    names = ("ladder_vote_accuracy", "ladder_rate_accuracy", "ladder_compare_accuracy")
    _change(run, 1, **{f"health/{name}": 1.0 for name in names}, **{"health/ladder_steps": 2})
    worry = next(line for line in verdict(run) if line.startswith("worry"))
    assert "ladder_vote_accuracy 1 (too few steps to tell)" in worry and "coin" not in worry
    _change(run, 1, **{"health/ladder_vote_accuracy": 0.5, "health/ladder_steps": 40})
    worry = next(line for line in verdict(run) if line.startswith("worry"))
    assert "ladder_vote_accuracy 0.5 (not clearly better than a coin" in worry


def test_a_measure_that_could_not_be_taken_is_left_empty(run: Path) -> None:
    for number in (0, 1, 2):
        _change(run, number, **{"health/position_bias": float("nan"), "health/swap_consistency": float("nan")})
    text, page = _page(run)
    assert page.open == []
    assert not re.search(r">[^<]*\bnan\b[^<]*<", text)
    assert "same winner in both orders" not in "\n".join(verdict(run))


# -- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_is_well_formed_and_needs_nothing_from_outside(run: Path) -> None:
    text, page = _page(run)
    assert page.open == []
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert not page.handlers
    assert "url(" not in text and "@import" not in text and "http" not in text
    assert len(page.sources) > 15
    for source in page.sources:
        data = base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True)
        assert Image.open(io.BytesIO(data)).format == "PNG"


def test_all_sections_of_a_whole_run_are_there_in_the_order_of_the_questions(run: Path) -> None:
    found = _page(run)[1].headings
    wanted = [
        "Round by round", "Ratings agree with votes", "Ladder accuracy", "Score spread", "Agreement with human scores",
        "The prompt", "Held-out images as the judge sees them", "Candidates of all rounds", "Votes of round 2",
        "How clear the votes are", "Clearest pairs", "Closest pairs", "Health", "Training", "Loss", "Recipe",
        "Time and memory", "Provenance", "Use it",
    ]  # fmt: skip
    assert found == wanted


def test_names_and_reasons_cannot_inject_markup(run: Path) -> None:
    evil = '" onerror="alert(1)" <img src=x>&\'.png'
    rows = parquet.read_table(run / "images.parquet").to_pydict()
    rows["name"] = [evil] * len(rows["name"])
    parquet.write_table(table(rows), run / "images.parquet")
    for file in run.rglob("pseudo_labels.csv"):
        lines = list(csv.DictReader(file.open(newline="")))
        with file.open("w", newline="") as out:
            writer = csv.DictWriter(out, lines[0].keys())
            writer.writeheader()
            writer.writerows({**line, "image_a": evil, "image_b": evil} for line in lines)
    _change(run, 1, reason="<script>alert(2)</script>")
    _record(run, command=evil, judge={"id": evil, "revision": evil, "family": "owl2"})
    text, page = _page(run.rename(run.parent / "a<b>&c"))
    assert page.open == [] and not page.handlers and "script" not in page.tags and "b" in page.tags
    assert "&lt;img src=x&gt;&amp;" in text and "a&lt;b&gt;&amp;c" in text
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(path.read_bytes() + b"x")])
def test_images_that_are_gone_or_changed_are_said_not_shown(
    run: Path, tmp_path: Path, spoil: Callable[[Path], Any]
) -> None:
    rows = parquet.read_table(run / "images.parquet").to_pydict()
    copies = [tmp_path / f"{k}.png" for k in range(len(rows["path"]))]
    for old, new in zip(rows["path"], copies, strict=True):
        shutil.copy(old, new)
    rows["path"] = [str(path) for path in copies]
    parquet.write_table(table(rows), run / "images.parquet")
    before = len(_page(run)[1].sources)
    for path in copies:
        spoil(path)
    text, page = _page(run)
    assert "Images with and without the prompt are not shown: files of this run's images are gone or changed." in text
    assert "Pairs are not shown: files of this run's images are gone or changed." in text
    assert len(page.sources) == before - 6 - 12


def test_degraded_images_in_a_pair_are_named_not_shown_as_if_they_were_whole(run: Path) -> None:
    file = run / "rounds/002/pseudo_labels.csv"
    head, *_ = file.read_text().splitlines()
    file.write_text(f"{head}\n0,0,9999,toy00.png,toy01.png#blur:3,0.9,1.0,1.0,2,True\n")
    text, _ = _page(run)
    assert "<span>toy01.png#blur:3</span>" in text
    assert "0.90 for toy00.png" in text


def test_sections_without_data_are_left_out(run: Path) -> None:
    for pattern in ("steps.jsonl", "pseudo_labels.csv", "eval.json"):
        for file in run.rglob(pattern):
            file.unlink()
    headings = _page(run)[1].headings
    gone = {"Training", "Loss", "How clear the votes are", "Clearest pairs", "Agreement with human scores"}
    assert not gone & set(headings)
    assert {"Round by round", "The prompt", "Health"} <= set(headings)


def test_a_run_in_which_nothing_was_accepted_shows_candidates_and_says_the_prompt_is_zero(run: Path) -> None:
    _change(run, 1, accepted=False)
    text, page = _page(run)
    assert "The accepted prompt is all zeros, which is exactly the bare judge." in text
    assert "Candidates of all rounds" in page.headings
    assert text.count(">rejected</span>") == 4  # two rows, two pictures


def test_recipe_differences_are_those_to_the_defaults(run: Path) -> None:
    text = _page(run)[0]
    assert "<td><code>train.steps</code></td><td>60</td><td>4</td>" in text
    assert "<code>train.gamma</code>" not in text


@pytest.mark.parametrize(
    ("changes", "objectives", "given", "axis", "learnt"),
    [
        ({}, {}, "24 unlabelled images, judge", ">fidelity loss, 0 to 1<", "the pseudo-labels of the round (fidelity)"),
        ({}, {"train.objective": "grpo"}, "24 unlabelled images, judge", ">grpo loss<", "of the round (grpo)"),
        (
            {"kind": "train", "train_mos": "MOS of 24 images (ab)"}, {"mos.objective": "mse"},
            "24 images with human scores, judge", ">mse loss<", "On human scores (mse)",
        ),
        (
            {"train_mos": "MOS of 9 images (ab)"}, {}, "24 unlabelled images and MOS of 9 images (ab)", ">loss<",
            "the pseudo-labels of the round (fidelity) or human scores (fidelity)",
        ),
    ],
)  # fmt: skip
def test_the_page_says_what_was_trained_on_and_by_which_loss(
    run: Path, changes: dict[str, str], objectives: dict[str, str], given: str, axis: str, learnt: str
) -> None:
    _record(run, **changes)
    recipe = load_recipe(run / "recipe.yaml", [f"{key}={value}" for key, value in objectives.items()])
    (run / "recipe.yaml").write_text(recipe.to_yaml())
    text, _ = _page(run)
    assert given in text and axis in text and learnt in text
    assert ("The gate goes by human scores instead" in text) == (changes.get("kind") == "train")


def test_a_report_is_written_without_torch(run: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from evoprompt.report import verdict, write_report\n"
        "write_report(Path(sys.argv[1])); verdict(Path(sys.argv[1]))\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'wandb'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(run)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (done.stdout, done.stderr) == ("[]\n", "")
    assert (run / "report.html").is_file()


# -- the prompt and the charts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        PromptConfig(kind="border", image_size=48, size=8, blocks=16, strength=0.6),
        PromptConfig(kind="border", image_size=50, size=7, blocks=0, strength=1.0),
        PromptConfig(kind="patch", image_size=49, size=12, blocks=5, strength=0.3),
        PromptConfig(kind="patch", image_size=48, size=9, blocks=0, place="top-left"),
        PromptConfig(kind="overlay", image_size=40, blocks=7, strength=0.1),
    ],
)
def test_the_prompt_shown_is_the_prompt_the_judge_gets(config: PromptConfig, tmp_path: Path) -> None:
    prompt = PixelPrompt(config)
    with torch.no_grad():
        prompt.theta.normal_(0, 1, generator=torch.Generator().manual_seed(0))
    prompt.save(tmp_path)
    shown = read_prompt(tmp_path)
    assert np.allclose(np.moveaxis(shown.delta, -1, 0), prompt.delta().detach().numpy(), atol=1e-6)
    assert shown.sha == prompt.sha()
    side = config.image_size
    view = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    with torch.no_grad():
        seen = prompt(torch.from_numpy(view).permute(2, 0, 1)[None].float() / 255)[0].permute(1, 2, 0).numpy()
    assert np.abs(with_prompt(view, shown) / 255 - seen).max() <= 0.5 / 255 + 1e-6


def _heights(svg: str) -> list[float]:
    points = re.search(r'<polyline points="([^"]*)"', svg)
    assert points
    return [float(point.split(",")[1]) for point in points[1].split()]


def test_the_line_goes_on_at_the_last_accepted_value() -> None:
    line = Line("x", [0, 1, 2, 3], [0.5, 0.7, 0.1, 0.8], rejected=[False, False, True, False])
    svg = line_chart([line], "r", "v", span=0.1)
    heights = _heights(svg)
    assert heights[1] == heights[2] and heights[0] > heights[1] > heights[3]
    assert svg.count("<circle") == 3 and svg.count('class="line cross c0"') == 1


def test_values_that_are_not_numbers_are_not_drawn() -> None:
    svg = line_chart([Line("x", [0, 1, 2], [0.5, float("nan"), 0.7])], "r", "v", span=0.1)
    assert "nan" not in svg and len(_heights(svg)) == 2 and svg.count("<circle") == 2


def test_noise_is_not_blown_up_to_the_height_of_the_chart() -> None:
    heights = _heights(line_chart([Line("x", [0, 1], [0.500, 0.501])], "r", "v", span=0.1))
    assert 0 < heights[0] - heights[1] < 3


def test_long_names_of_rows_stay_inside_the_drawing() -> None:
    names = ["bare judge", "runs/2026-01/photographs-of-the-harbour (CONTROL)", "x" * 500 + "/the-end"]
    svg = interval_chart(names, [("SRCC", [(0.5, 0.4, 0.6)] * 3)], "SRCC")
    shown = re.findall(r'<text x="([\d.]+)" y="[\d.]+" class="tick end">([^<]*)<', svg)
    assert [text for _, text in shown][:2] == names[:2] and re.fullmatch("…x+/the-end", shown[2][1])
    widest = 6.6  # px a letter of 11 px takes in a wide font
    assert all(float(right) - widest * len(text) > 0 for right, text in shown)
    places = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', svg)]
    assert len(places) == 3 and all(float(shown[0][0]) < x < WIDE for x in places)
