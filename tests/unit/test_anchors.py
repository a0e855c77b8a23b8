"""Scores by comparison with anchors: what the formula gives, from answers that are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import SIDE, ScriptedJudge, write_photos, write_toy_images
from scipy.optimize import minimize
from scipy.special import log_ndtr
from scipy.stats import spearmanr

from evoprompt.anchors import PUBLISHED, AnchorRater, Anchors, find_anchors
from evoprompt.cli import main
from evoprompt.errors import DataError
from evoprompt.images import fit_image, read_image
from evoprompt.judge import NANO, OwlJudge, load_judge
from evoprompt.questions import FAMILIES
from evoprompt.scoring import Scorer

FIVE = 5


@pytest.fixture(scope="module")
def toys_by_quality(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], np.ndarray]:
    folder = tmp_path_factory.mktemp("toys")
    truth = write_toy_images(folder, 25)
    order = np.argsort(truth)
    return [folder / f"toy{k:02d}.png" for k in order], truth[order]


def spread(paths: list[Path]) -> Anchors:
    return Anchors(tuple(paths[2::5]), "toys")


def test_images_are_ordered_by_their_place_among_the_anchors(toys_by_quality: tuple[list[Path], np.ndarray]) -> None:
    paths, truth = toys_by_quality
    scorer = Scorer(ScriptedJudge(), anchors=spread(paths))
    scores = scorer(paths)
    values = np.array([score.score for score in scores])
    assert values.min() == pytest.approx(1) and values.max() == pytest.approx(5)
    assert spearmanr(values, truth).statistic > 0.95
    assert all(score.probabilities is None and not score.error for score in scores)
    assert scores[0].row()["p_bad"] == ""


def test_a_score_is_the_published_formula(toys_by_quality: tuple[list[Path], np.ndarray]) -> None:
    """Against a plain solver of the published objective over the whole preference matrix."""
    paths, _ = toys_by_quality
    judge, anchors, image = ScriptedJudge(accuracy=0.8), spread(paths), paths[11]

    def seen(path: Path) -> torch.Tensor:
        return judge.encode(torch.from_numpy(fit_image(read_image(path), "squash", SIDE)).float() / 255)

    def second_is_better(first: Path, second: Path) -> float:
        return float(judge.compare(seen(first), seen(second), judge.family.compare[0]).softmax(-1)[0, 1])

    matrix = np.full((FIVE + 1, FIVE + 1), 0.5)
    for i in range(FIVE):
        for j in range(FIVE):
            if i != j:
                both = 1 - second_is_better(anchors.paths[i], anchors.paths[j])
                matrix[i, j] = (both + second_is_better(anchors.paths[j], anchors.paths[i])) / 2
        matrix[FIVE, i] = second_is_better(anchors.paths[i], image)
        matrix[i, FIVE] = 1 - matrix[FIVE, i]

    def lost(s: np.ndarray) -> float:
        return float(-(matrix * log_ndtr(s[:, None] - s[None, :])).sum() + (s**2).sum() / 2)

    s = minimize(lost, np.zeros(FIVE + 1), method="BFGS", options={"gtol": 1e-8}).x
    expected = 1 + 4 * (s[FIVE] - s.min()) / (s.max() - s.min())
    assert Scorer(judge, anchors=anchors)([image])[0].score == pytest.approx(expected, abs=1e-4)


def test_five_comparative_words_say_how_likely_the_second_image_is_better() -> None:
    nano = load_judge(NANO, None, "auto", "float32", "cpu")
    words = FAMILIES["compare2score"].compare[0]
    graded = replace(
        words, text="<|image|> <|image|> which is better ?", answers=("bad", "poor", "fair", "good", "excellent")
    )
    family = replace(FAMILIES["compare2score"], fit="tiles", rate=FAMILIES["nano"].rate, compare=(graded,))
    judge = OwlJudge(nano.model, nano.processor, "graded", "0", family)
    pixels = torch.rand(2, 1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    first, second = judge.encode(pixels[0]), judge.encode(pixels[1])
    shares = (judge.ask([first, second], graded.text, graded.answers) / 100).softmax(-1)
    expected = float(shares @ torch.tensor([0, 0.25, 0.5, 0.75, 1.0]))
    assert float(judge.compare(first, second, graded).softmax(-1)[0, 1]) == pytest.approx(expected, abs=1e-4)
    assert (words.answers, words.temperature) == (("inferior", "worse", "similar", "better", "superior"), 100)


def test_a_blind_judge_puts_everything_in_the_middle(toys_by_quality: tuple[list[Path], np.ndarray]) -> None:
    class Blind(ScriptedJudge):
        def compare(self, first, second, question):  # type: ignore[no-untyped-def]
            return torch.zeros(len(first), 2)

    paths, _ = toys_by_quality
    rater = AnchorRater(Blind(), spread(paths))
    assert rater(fit_image(read_image(paths[0]), "squash", SIDE)[None]).tolist() == [3.0]


def test_who_has_anchors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_toy_images(tmp_path / "seven", 7)
    found = find_anchors(str(tmp_path / "seven"), "owl2")
    assert found is not None and len(found.paths) == 5 and found.source == str(tmp_path / "seven")
    assert find_anchors(None, "owl2") is None
    assert find_anchors("none", "compare2score") is None
    assert find_anchors(None, "compare2score", prompted=True) is None
    asked: list[Path] = []
    monkeypatch.setattr(
        "evoprompt.anchors.find_images", lambda sources: asked.extend(sources) or sorted((tmp_path / "seven").iterdir())
    )
    usual = find_anchors(None, "compare2score")
    assert usual is not None and usual.source == PUBLISHED and [str(path) for path in asked] == [PUBLISHED]


def test_bad_anchors_are_named(tmp_path: Path) -> None:
    write_toy_images(tmp_path / "one", 1)
    with pytest.raises(DataError, match="1 image; give at least 2"):
        find_anchors(str(tmp_path / "one"), "owl2")
    with pytest.raises(DataError, match="anchors .*nowhere.*give others with --anchors, or --anchors none"):
        find_anchors(str(tmp_path / "nowhere"), "owl2")


def test_score_says_where_its_anchors_come_from(tmp_path: Path) -> None:
    write_photos(tmp_path)
    (tmp_path / "anchors").mkdir()
    for k in (1, 4, 7, 11, 14):
        (tmp_path / f"p{k:02d}.png").rename(tmp_path / "anchors" / f"p{k:02d}.png")
    images = sorted(tmp_path.glob("*.png"))
    result = CliRunner().invoke(
        main, ["score", *map(str, images), "--anchors", str(tmp_path / "anchors"), "--device", "cpu"]
    )
    assert result.exit_code == 0, result.output
    assert f"anchors  5 images of {tmp_path / 'anchors'}, compared with, not rated" in result.stderr
    rows = [line.split(",") for line in result.stdout.splitlines()[1:]]
    assert len(rows) == 11 and all(1 <= float(row[1]) <= 5 for row in rows)
