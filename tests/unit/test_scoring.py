"""Scores: the same whatever the batch, missing where an image is broken, refused where the input is not an image."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import ScriptedJudge
from PIL import Image

from evoprompt import scoring
from evoprompt.errors import DataError
from evoprompt.prompts import Origin, PixelPrompt, PromptConfig
from evoprompt.questions import FAMILIES
from evoprompt.scoring import Scorer, columns, judge_for, load_prompt


def test_a_score_does_not_depend_on_the_batch(toy_folder: Path) -> None:
    paths = sorted(toy_folder.glob("*.png"))[:10]
    scorer = Scorer(ScriptedJudge())
    alone = [scorer([path])[0].score for path in paths]
    together = [score.score for score in scorer(paths, batch_size=7)]
    assert together == pytest.approx(alone, abs=1e-5)


def test_a_broken_file_gets_an_error_and_its_neighbours_their_scores(toy_folder: Path) -> None:
    (toy_folder / "toy03.png").write_bytes(b"")
    paths = sorted(toy_folder.glob("*.png"))[:6]
    scores = Scorer(ScriptedJudge())(paths, batch_size=4)
    assert [s.score is None for s in scores] == [False, False, False, True, False, False]
    assert "toy03.png" in scores[3].error
    row = scores[3].row()
    assert tuple(row) == columns(FAMILIES["nano"].rate[0]) and row["score"] == "" and row["p_bad"] == ""


def test_a_truncated_picture_gets_an_error_and_its_neighbours_their_scores(toy_folder: Path) -> None:
    torn = toy_folder / "toy03.png"
    torn.write_bytes(torn.read_bytes()[:2000])
    scores = Scorer(ScriptedJudge())([Image.open(toy_folder / f"toy0{k}.png") for k in (2, 3, 4)])
    assert [s.score is None for s in scores] == [False, True, False]
    assert "toy03.png cannot be read" in scores[1].error and "truncated" in scores[1].error


def test_paths_pictures_and_tensors_of_one_image_score_alike(toy_folder: Path) -> None:
    path = toy_folder / "toy00.png"
    picture = Image.open(path)
    tensor = torch.tensor(list(picture.tobytes())).view(48, 48, 3).permute(2, 0, 1).float() / 255
    scores = [s.score for s in Scorer(ScriptedJudge())([path, str(path), picture, tensor])]
    assert len(set(scores)) == 1


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "dtype torch.uint8 is not an image"),
        (torch.zeros(1, 8, 8), "shape .* is not an image"),
        (torch.full((3, 8, 8), 255.0), "between 255 and 255; they must be RGB in"),
    ],
)
def test_other_tensors_are_refused_with_what_was_seen(tensor: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Scorer(ScriptedJudge())([tensor])


def test_probabilities_belong_to_the_score(toy_folder: Path) -> None:
    for score in Scorer(ScriptedJudge())(sorted(toy_folder.glob("*.png"))[:5]):
        assert score.probabilities is not None
        assert sum(score.probabilities) == pytest.approx(1)
        assert score.score == pytest.approx(sum((k + 1) * p for k, p in enumerate(score.probabilities)))


def trained(**origin: str) -> PixelPrompt:
    """A prompt of the scripted judge."""
    return PixelPrompt(PromptConfig(image_size=48, size=8), Origin(judge="scripted", revision="0", **origin))


@pytest.mark.parametrize(
    ("bits", "dtype", "loaded"),
    [
        (None, "auto", ("auto", "none")),
        (None, "4bit", ("auto", "4bit")),
        ("none", "bfloat16", ("bfloat16", "none")),
        ("8bit", "auto", ("auto", "8bit")),
        ("8bit", "4bit", ("auto", "4bit")),
        ("8bit", "float32", ("float32", "none")),
    ],
)
def test_a_judge_has_the_bits_a_prompt_was_trained_with_unless_others_are_asked_for(
    bits: str | None, dtype: str, loaded: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def load(name, revision, family, dtype, device, question, preprocess, quantization):  # type: ignore[no-untyped-def]
        found.append((dtype, quantization))
        return ScriptedJudge()

    monkeypatch.setattr(scoring, "load_judge", load)
    judge_for([None, trained(quantization=bits)] if bits else [None], "scripted", "cpu", dtype)
    assert found == [loaded]


def test_prompts_of_different_bits_are_measured_one_way() -> None:
    prompts = [trained(quantization=bits) for bits in ("none", "4bit")]
    with pytest.raises(DataError, match="different bits .4bit and none.*with --dtype"):
        judge_for(prompts, None, "cpu", "auto")


def test_a_prompt_is_found_in_a_run_in_a_round_and_by_itself(tmp_path: Path) -> None:
    prompt = trained()
    prompt.save(tmp_path / "run" / "prompt")
    (tmp_path / "run" / "run.json").write_text("{}")
    for folder in (tmp_path / "run", tmp_path / "run" / "prompt"):
        loaded = load_prompt(folder)
        assert loaded is not None and loaded.sha() == prompt.sha()
    assert load_prompt("none") is None
    with pytest.raises(DataError, match="does not exist"):
        load_prompt(tmp_path / "absent")
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "run.json").write_text("{}")
    with pytest.raises(DataError, match="has no prompt yet"):
        load_prompt(tmp_path / "young")


def test_the_prompt_in_the_package_belongs_to_the_judge_in_the_package() -> None:
    prompt = load_prompt("owl2-nano")
    assert prompt is not None
    assert (prompt.origin.labels, prompt.origin.control) == ("none", "none")
    judge = judge_for([prompt], None, "cpu", "auto")
    assert (judge.id, judge.revision) == (prompt.origin.judge, prompt.origin.revision)
