"""Released pixel prompts: read without running anything, put where they belong, scored as the original scored."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import write_photos
from PIL import Image

from evoprompt.cli import main
from evoprompt.errors import DataError, JudgeError
from evoprompt.judge import NANO, load_judge
from evoprompt.prompts import PixelPrompt, PromptConfig
from evoprompt.published import read_published
from evoprompt.scoring import Scorer

S = 160
GENERATOR = torch.Generator().manual_seed(5)


def _tensors(kind: str, size: int) -> dict[str, torch.Tensor]:
    def draw(height: int, width: int) -> torch.Tensor:
        return torch.randn(1, 3, height, width, generator=GENERATOR)

    if kind == "border":
        sides = {name: draw(S - 2 * size, size) for name in ("pad_left", "pad_right")}
        return {**{name: draw(size, S) for name in ("pad_up", "pad_down")}, **sides}
    return {"patch": draw(size, size)} if kind == "patch" else {"prompt": draw(S, S)}


def _straightforward(kind: str, size: int, values: dict[str, torch.Tensor], place: str = "centre") -> torch.Tensor:
    """What is added to an image of ones, written down from the description: (1, 3, S, S)."""
    bounded = {name: torch.tanh(x) for name, x in values.items()}
    if kind == "border":
        middle = torch.cat(
            [bounded["pad_left"], torch.zeros(1, 3, S - 2 * size, S - 2 * size), bounded["pad_right"]], 3
        )
        return torch.cat([bounded["pad_up"], middle, bounded["pad_down"]], 2)
    if kind == "overlay":
        return bounded["prompt"]
    before = (S - size) // 2 if place == "centre" else 0
    after = S - size - before
    return torch.nn.functional.pad(bounded["patch"], (before, after, before, after))


def _save(values: object, path: Path) -> Path:
    torch.save(values, path)
    return path


@pytest.mark.parametrize(
    ("kind", "size", "place"),
    [("border", 30, "centre"), ("patch", 30, "centre"), ("patch", 31, "top-left"), ("overlay", 30, "centre")],
)
def test_values_land_where_they_were_trained(kind: str, size: int, place: str, tmp_path: Path) -> None:
    values = _tensors(kind, size)
    config = PromptConfig(kind=kind, image_size=S, size=size, place=place, preprocess="imagenet-crop")
    prompt = read_published(_save(values, tmp_path / "visual_prompt.pth"), config, NANO, "nano", "rate")
    assert torch.equal(prompt.delta().detach()[None], _straightforward(kind, size, values, place))
    prompt.save(tmp_path / "prompt")
    assert torch.equal(PixelPrompt.load(tmp_path / "prompt").theta, prompt.theta)


def test_the_published_border_is_imported_as_it_comes(tmp_path: Path) -> None:
    long, short = torch.ones(1, 3, 30, 448), torch.ones(1, 3, 388, 30)
    values = {"pad_up": long, "pad_down": long, "pad_left": short, "pad_right": short}
    file = _save(values, tmp_path / "visual_prompt.pth")
    command = ["prompt", "import", str(file), "--kind", "border", "--size", "30", "-o", str(tmp_path / "p")]
    assert "150,480 values" in CliRunner().invoke(main, command).stderr
    origin = PixelPrompt.load(tmp_path / "p").origin
    assert (origin.judge, origin.question) == ("MAGAer13/mplug-owl2-llama2-7b", "good-fine")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder)
    return folder


def _import(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor], str]:
    values = _tensors("border", 12)
    file = _save(values, tmp_path / "visual_prompt.pth")
    arguments = ["prompt", "import", str(file), "--kind", "border", "--size", "12", "--image-size", str(S)]
    arguments += ["--judge", NANO, "--family", "nano", "--question", "good-excellent", "-o", str(tmp_path / "p")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return tmp_path / "p", values, result.stderr


def test_scores_are_those_of_the_original_pipeline_computed_step_by_step(photos: Path, tmp_path: Path) -> None:
    folder, values, said = _import(tmp_path)
    assert "the images it was trained on are not known" in said
    paths = sorted(photos.glob("*.png"))[:3]
    scores = [score.score for score in Scorer.load(folder, device="cpu")(paths)]

    judge = load_judge(NANO, None, "nano", "float32", "cpu")  # the bare model, used for its weights and words alone
    mean, std = (torch.tensor(c).view(1, 3, 1, 1) for c in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    ids = [judge.processor.answer_ids(word)[0] for word in ("bad", "poor", "good", "excellent")]
    before, after = (torch.tensor(ids) for ids in judge.processor.encode_text("<|image|> rate the quality :"))
    for path, score in zip(paths, scores, strict=True):
        image = Image.open(path).convert("RGB")
        scale = S / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = round((image.width - S) / 2), round((image.height - S) / 2)
        pixels = torch.from_numpy(np.array(image.crop((left, top, left + S, top + S)))).permute(2, 0, 1)[None] / 255
        prompted = (pixels + _straightforward("border", 12, values)).clamp(0, 1)
        with torch.no_grad():
            seen = judge.model.get_visual_tokens((prompted - mean) / std)
            z = judge.model.answer_logits([before, seen, after], torch.arange(judge.model.config.vocab_size))[0]
        good, poor = (sum(z[i].double().exp() for i in part) for part in (ids[2:], ids[:2]))
        assert score == pytest.approx(float(1 + 4 * good / (good + poor)), abs=1e-4)


def test_the_folder_says_what_it_is_and_how_it_is_to_be_used(tmp_path: Path) -> None:
    folder, _, _ = _import(tmp_path)
    shown = CliRunner().invoke(main, ["prompt", "show", str(folder)]).stdout
    for fact in ("border", "imagenet-crop", "good-excellent", "MOS, as published (visual_prompt.pth"):
        assert fact in shown
    assert CliRunner().invoke(main, ["prompt", "import", "x", "--kind", "border", "-o", str(folder)]).exit_code == 2


def test_how_many_images_an_imported_prompt_has_seen_is_not_known(photos: Path, tmp_path: Path) -> None:
    folder, _, _ = _import(tmp_path)
    arguments = ["evaluate", str(folder), "--eval-mos", str(photos / "labels.csv"), "--device", "cpu"]
    result = CliRunner().invoke(main, [*arguments, "--n-boot", "100", "-o", str(tmp_path / "out"), "--json"])
    assert result.exit_code == 0, result.output
    body = json.loads(result.stdout)
    assert [row["seen"] for row in body["rows"]] == [0, None] and body["question"] == "good-excellent, imagenet-crop"
    assert f"warning  not all that {folder} was trained on is known, so this may be no test." in result.stderr
    again = CliRunner().invoke(main, ["evaluate", str(tmp_path / "out" / "scores.csv"), "--n-boot", "100", "--json"])
    assert json.loads(again.stdout)["rows"] == body["rows"]


def test_a_judge_that_prepares_images_otherwise_refuses_the_prompt(tmp_path: Path) -> None:
    folder, _, _ = _import(tmp_path)
    with pytest.raises(JudgeError, match="judge.preprocess=imagenet-crop"):
        load_judge(NANO, None, "auto", "float32", "cpu").attach(PixelPrompt.load(folder))


@pytest.mark.parametrize("name", ["SGD_mplug2_exp_31_kadid_fullOverlay_mul", "own-multiplicative"])
def test_a_multiplied_prompt_is_refused_and_others_are_said_to_be_added(name: str, tmp_path: Path) -> None:
    (tmp_path / name / "checkpoint-9").mkdir(parents=True)
    file = _save(_tensors("overlay", 30), tmp_path / name / "checkpoint-9" / "visual_prompt.pth")
    arguments = ["--kind", "overlay", "--image-size", str(S), "-o", str(tmp_path / "p")]
    result = CliRunner().invoke(main, ["prompt", "import", str(file), *arguments])
    assert result.exit_code == 2 and not (tmp_path / "p").exists()
    assert f"is of experiment {name}, by its name a prompt that images are multiplied by" in result.stderr
    file = file.rename(tmp_path / "visual_prompt.pth")
    result = CliRunner().invoke(main, ["prompt", "import", str(file), *arguments])
    assert result.exit_code == 0 and "taken as added to the image" in result.stderr
    # Where an added prompt is zero the image stays as it is; times zero it would be black.
    prompt, grey = PixelPrompt(PixelPrompt.load(tmp_path / "p").config), torch.full((1, 3, S, S), 0.5)
    assert torch.equal(prompt(grey), grey)


class _Harm:
    def __reduce__(self):  # type: ignore[no-untyped-def]
        return (open, ("harm", "w"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pad_up": torch.zeros(1, 3, 12, S)}, "pad_down is missing; pad_left is missing; pad_right is missing"),
        ({**_tensors("border", 10)}, "not (1, 3, 12, 160)"),
        ({**_tensors("border", 12), "more": torch.zeros(1)}, "more is not expected"),
        ({**_tensors("border", 12), "pad_up": torch.full((1, 3, 12, S), torch.nan)}, "not finite"),
        ([1, 2], "something else than tensors by name"),
        ({"pad_up": _Harm()}, "is not a file of plain tensors"),
    ],
)
def test_files_that_do_not_fit_or_could_run_something_are_refused(
    values: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = PromptConfig(kind="border", image_size=S, size=12, preprocess="imagenet-crop")
    with pytest.raises(DataError, match="visual_prompt.pth") as caught:
        read_published(_save(values, tmp_path / "visual_prompt.pth"), config, NANO, "nano", "rate")
    assert message in str(caught.value)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("content", "known"),
    [
        (b"", "(0 bytes)"),
        (b"hello", "(5 bytes; it begins with 'hello')"),
        (np.random.default_rng(0).bytes(400), "(400 bytes)"),
        (b"\x80\x02}q\x00(X\x05\x00\x00\x00patc", "(15 bytes)"),
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "begins with '<!DOCTYPE html><html><bo')"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "begins with 'version https://git-lfs.')"),
    ],
)
def test_a_broken_file_gets_one_sentence_and_no_advice_to_run_it(content: bytes, known: str, tmp_path: Path) -> None:
    file = tmp_path / "visual_prompt.pth"
    file.write_bytes(content)
    result = CliRunner().invoke(main, ["prompt", "import", str(file), "--kind", "border", "-o", str(tmp_path / "p")])
    assert result.exit_code == 2 and "Traceback" not in result.output, result.output
    assert known in result.stderr and "weights_only" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and not (tmp_path / "p").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_an_old_pickle_is_refused_without_being_opened(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"patch": np.zeros(3)}))
    with pytest.raises(DataError, match="is not a file of plain tensors"):
        read_published(tmp_path / "x.pth", PromptConfig(image_size=S, size=12), NANO, "nano", "rate")
    with pytest.raises(DataError, match="cannot be read"):
        read_published(tmp_path / "absent.pth", PromptConfig(image_size=S, size=12), NANO, "nano", "rate")
