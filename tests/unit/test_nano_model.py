"""The model that scripts/train_nano.py trains: it may look at a part of the patches only."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_keeping_all_patches_changes_nothing_and_dropped_ones_are_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    torch.manual_seed(0)
    nano_model = importlib.import_module("nano_model")
    model, images = nano_model.Nano(), torch.rand(2, 3, 160, 160)

    def seen(pixels: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
        with torch.no_grad():
            return model.tokens(model.states(pixels, keep), keep)  # type: ignore[no-any-return]

    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (nano_model.MEAN, nano_model.STD))
    everything = seen(images, None)
    with torch.no_grad():
        assert torch.equal(everything, model.owl.get_visual_tokens((images - mean) / std))
    torch.testing.assert_close(seen(images, torch.arange(100)), everything, atol=1e-6, rtol=0)
    keep = torch.tensor([0, 5, 16])
    part = seen(images, keep)
    assert part.shape == everything.shape and not torch.allclose(part, everything, atol=1e-5)
    changed = images.clone()
    changed[:, :, 144:] = 0  # the last row of patches
    assert torch.equal(seen(changed, keep), part)
    changed[:, :, :16, :16] = 0  # patch 0
    assert not torch.allclose(seen(changed, keep), part, atol=1e-5)
    torch.testing.assert_close(seen(images, keep.flip(0)), part, atol=1e-5, rtol=0)  # positions travel with patches
