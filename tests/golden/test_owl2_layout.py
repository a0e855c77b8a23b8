"""The released files: names and shapes of the 7B model, both layouts of weights, the released config.json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from evoprompt.owl2 import Owl2Config, Owl2ForConditionalGeneration

HERE = Path(__file__).parent
FOLDER = HERE / "owl2_a"


def listed() -> list[tuple[str, tuple[int, ...], str]]:
    lines = (HERE / "mplug_owl2_params_7b.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")][1:]
    return [(name, tuple(map(int, shape.split("x"))), kind) for name, shape, kind in rows]


def shards() -> dict[str, Tensor]:
    """The tensors of the released layout, read without transformers."""
    weights: dict[str, Tensor] = {}
    for path in sorted(FOLDER.glob("*.bin")):
        weights |= torch.load(path, weights_only=True)
    return weights


def tables(model: Owl2ForConditionalGeneration) -> dict[str, Tensor]:
    return {name: value for name, value in model.named_buffers() if name.endswith("pos_embed")}


def reference_table(queries: int, grid: int, width: int) -> tuple[Tensor, Tensor]:
    """Position tables straight from their definition, number by number."""

    def row(position: int, channels: int) -> list[float]:
        angles = [
            torch.tensor(position / 10000 ** (i / (channels // 2)), dtype=torch.float64) for i in range(channels // 2)
        ]
        return [float(a.sin()) for a in angles] + [float(a.cos()) for a in angles]

    patches = [row(p % grid, width // 2) + row(p // grid, width // 2) for p in range(grid * grid)]
    return torch.tensor([row(p, width) for p in range(queries)]), torch.tensor([[0.0] * width, *patches])


def test_7b_model_has_exactly_the_released_names_and_shapes() -> None:
    with torch.device("meta"):
        model = Owl2ForConditionalGeneration(Owl2Config(**json.loads((HERE / "mplug_owl2_config_7b.json").read_text())))
    parameters = {name: tuple(value.shape) for name, value in model.named_parameters()}
    assert parameters == {name: shape for name, shape, kind in listed() if kind == "param"}
    assert len(parameters) == 850
    buffers = {name: tuple(value.shape) for name, value in tables(model).items()}
    assert buffers == {name: shape for name, shape, kind in listed() if kind == "buffer(sincos)"}
    assert set(model.state_dict()) == set(parameters) | set(buffers)
    assert len(buffers) == 12
    assert sum(value.numel() for value in model.parameters()) == 8_197_859_328


def test_default_config_is_the_released_one() -> None:
    released = Owl2Config(**json.loads((HERE / "mplug_owl2_config_7b.json").read_text()))
    default = Owl2Config()
    for part in (lambda c: c, lambda c: c.vision_config, lambda c: c.abstractor_config):
        fields = set(type(part(default)).__dataclass_fields__) - {"architectures", "transformers_version"}
        fields -= {"vision_config", "abstractor_config"}
        assert {f: getattr(part(default), f) for f in fields} == {f: getattr(part(released), f) for f in fields}


def test_base_layout_loads_whole_and_its_missing_tables_are_computed() -> None:
    stored = shards()
    frequencies = {name for name in stored if name.endswith("inv_freq")}
    assert len(frequencies) == 3 and not any("pos_embed" in name for name in stored)
    model, info = Owl2ForConditionalGeneration.from_pretrained(FOLDER, output_loading_info=True)
    assert not any(info.values()), info
    state = model.state_dict()
    assert set(state) == (set(stored) - frequencies) | set(tables(model))
    for name in set(stored) - frequencies:
        assert torch.equal(state[name], stored[name]), name
    vision, abstractor = model.config.vision_config, model.config.abstractor_config
    queries, patches = reference_table(
        abstractor.num_learnable_queries, vision.image_size // vision.patch_size, abstractor.hidden_size
    )
    for name, table in tables(model).items():
        torch.testing.assert_close(table, queries if ".q_pos" in name else patches, atol=1e-6, rtol=0)
    rotary = model.model.rotary_emb.inv_freq
    torch.testing.assert_close(rotary, stored["model.layers.0.self_attn.rotary_emb.inv_freq"], atol=1e-7, rtol=1e-6)


def test_fine_tune_layout_loads_the_stored_tables(tmp_path: Path) -> None:
    model = Owl2ForConditionalGeneration.from_pretrained(FOLDER)
    for table in tables(model).values():
        table.copy_(table.to(torch.bfloat16))  # fine-tunes were saved from 16-bit training
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file() and not list(tmp_path.glob("*.bin"))
    again, info = Owl2ForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    computed = Owl2ForConditionalGeneration.from_pretrained(FOLDER)
    name = next(name for name in tables(again) if ".k_pos" in name)
    assert not torch.equal(tables(again)[name], tables(computed)[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tables_are_computed_whatever_the_dtype(dtype: torch.dtype) -> None:
    exact = tables(Owl2ForConditionalGeneration.from_pretrained(FOLDER))
    for name, table in tables(Owl2ForConditionalGeneration.from_pretrained(FOLDER, dtype=dtype)).items():
        torch.testing.assert_close(table.float(), exact[name], atol=4e-3, rtol=0)


def test_saved_model_gives_the_same_logits(tmp_path: Path) -> None:
    model = Owl2ForConditionalGeneration.from_pretrained(FOLDER).eval()
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    segments = [torch.tensor([1, 5]), torch.tensor([7])]
    answers = torch.arange(9)
    with torch.no_grad():
        first, second = (
            m.answer_logits([segments[0], m.get_visual_tokens(pixels), segments[1]], answers) for m in (model, again)
        )
    assert torch.equal(first, second)


def test_released_config_loads_without_remote_code_and_survives_saving(tmp_path: Path) -> None:
    released = json.loads((HERE / "mplug_owl2_config_7b.json").read_text())
    extra = {
        "auto_map": {
            "AutoConfig": "configuration_mplug_owl2.MPLUGOwl2Config",
            "AutoModelForCausalLM": "modeling.Nothing",
        },
        "image_aspect_ratio": "pad",
        "image_grid_pinpoints": None,
        "freeze_vision_model": False,
        "tune_visual_abstractor": True,
        "level_prefix": [450, 11029, 310, 278, 1967, 338],
        "softkl_loss": True,
        "torch_dtype": "float16",
    }
    (tmp_path / "config.json").write_text(json.dumps(released | extra))
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is Owl2Config
    assert (config.image_aspect_ratio, config.level_prefix) == ("pad", extra["level_prefix"])
    config.save_pretrained(tmp_path / "again")
    again = AutoConfig.from_pretrained(tmp_path / "again")
    name, loaded = (json.loads(c.to_json_string()) for c in (config, again))
    assert name == loaded
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert written["visual_config"]["visual_model"]["hidden_size"] == 1024
    assert "vision_config" not in written and "abstractor_config" not in written


@pytest.mark.parametrize(
    ("part", "fields"),
    [
        ("visual_model", ("use_cls_token", "use_post_layernorm")),
        ("visual_abstractor", ("use_cls_token", "add_v2t_pos_emb")),
    ],
)
def test_fields_that_old_releases_lack_take_the_released_values(part: str, fields: tuple[str, ...]) -> None:
    released = json.loads((HERE / "mplug_owl2_config_7b.json").read_text())
    whole = Owl2Config(**released).visual_config
    for field in fields:
        released["visual_config"][part].pop(field, None)
    assert Owl2Config(**released).visual_config == whole


def test_weights_load_though_the_config_names_remote_code(tmp_path: Path) -> None:
    for path in FOLDER.iterdir():
        if not path.name.startswith("cases"):
            shutil.copyfile(path, tmp_path / path.name)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "nowhere.Config", "AutoModel": "nowhere.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path)) is Owl2ForConditionalGeneration
    assert type(AutoModel.from_pretrained(tmp_path)).__name__ == "Owl2Model"
