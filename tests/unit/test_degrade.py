"""Degradations: worse with every step, equal for equal generators, strict about their input."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from evoprompt.degrade import FAMILY, KINDS, LADDER_KINDS, STRENGTHS, degrade
from evoprompt.errors import DataError

Bytes = NDArray[np.uint8]


def _picture(height: int = 128, width: int = 160, seed: int = 3) -> Bytes:
    """Return coloured patches with edges and fine texture: something for every kind to destroy."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.standard_normal((height, width, 3)), (9, 9, 0), mode="wrap") * 12
    patches = np.tanh(6 * smooth) * 0.16 + 0.06 * rng.standard_normal((height, width, 1))
    light = 0.5 + 0.55 * smooth / 3 + patches + np.linspace(-0.12, 0.12, width)[None, :, None]
    return np.asarray(np.clip(light * 255, 0, 255), np.uint8)


def _error(first: Bytes, second: Bytes) -> float:
    """Return the root mean square of the difference at two scales: as it is, and blurred by two pixels."""
    gap = first.astype(float) - second.astype(float)
    coarse = ndimage.gaussian_filter(gap, (2, 2, 0))
    return float(np.sqrt((gap**2).mean()) + np.sqrt((coarse**2).mean()))


def test_there_are_at_least_twenty_kinds_in_five_families() -> None:
    assert len(KINDS) >= 20
    assert len(set(KINDS)) == len(KINDS)
    assert set(FAMILY) == set(KINDS)
    assert set(FAMILY.values()) == {"blur", "noise", "coding", "tone", "local"}
    assert min(list(FAMILY.values()).count(family) for family in FAMILY.values()) >= 3


def test_in_the_committed_table_every_step_of_every_kind_lowers_the_full_reference_quality() -> None:
    with (Path(__file__).parents[2] / "docs" / "results" / "degrade.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["condition"] == "as is"]
    assert {row["kind"] for row in rows} == set(KINDS)
    for row in rows:
        qualities = [float(row[f"quality_{strength}"]) for strength in STRENGTHS]
        assert qualities == sorted(set(qualities), reverse=True), row["kind"]
        assert float(row["rising_total"]) >= 0.96, row["kind"]


def test_ladder_kinds_are_kinds_and_span_all_families() -> None:
    assert set(LADDER_KINDS) <= set(KINDS)
    assert {FAMILY[kind] for kind in LADDER_KINDS} == set(FAMILY.values())


@pytest.mark.parametrize("kind", KINDS)
def test_error_rises_with_every_step_of_strength(kind: str) -> None:
    picture = _picture()
    errors = [_error(picture, degrade(picture, kind, strength, np.random.default_rng(5))) for strength in STRENGTHS]
    assert errors[0] > 0.2
    assert all(later > 1.03 * earlier for earlier, later in zip(errors, errors[1:], strict=False)), errors


@pytest.mark.parametrize("kind", LADDER_KINDS)
def test_ladder_kinds_are_monotone_between_whole_strengths_too(kind: str) -> None:
    picture = _picture(seed=8)
    strengths = (0.25, 0.75, 1.5, 2.5, 3.5, 4.5)
    errors = [_error(picture, degrade(picture, kind, strength, np.random.default_rng(5))) for strength in strengths]
    assert errors == sorted(errors), errors


@pytest.mark.parametrize("kind", KINDS)
def test_equal_generators_give_equal_bytes_and_the_input_is_untouched(kind: str) -> None:
    picture = _picture()
    picture.setflags(write=False)
    before = picture.tobytes()
    first = degrade(picture, kind, 2.6, np.random.default_rng(11))
    second = degrade(picture, kind, 2.6, np.random.default_rng(11))
    assert first.tobytes() == second.tobytes()
    assert picture.tobytes() == before
    assert not np.shares_memory(first, picture)


@pytest.mark.parametrize("kind", ["white_noise", "motion_blur", "block_loss", "colour_cast", "occlusion", "banding"])
def test_other_generators_give_other_bytes(kind: str) -> None:
    picture = _picture()
    first = degrade(picture, kind, 3, np.random.default_rng(1))
    second = degrade(picture, kind, 3, np.random.default_rng(2))
    assert first.tobytes() != second.tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(32, 32), (33, 61), (97, 35)])
def test_small_and_odd_sizes_keep_shape_and_type(kind: str, shape: tuple[int, int]) -> None:
    for picture in (_picture(*shape), np.zeros((*shape, 3), np.uint8), np.full((*shape, 3), 255, np.uint8)):
        for strength in (0.01, 2.5, 5):
            changed = degrade(picture, kind, strength, np.random.default_rng(0))
            assert changed.shape == picture.shape
            assert changed.dtype == np.uint8


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"saturation_loss", "oversaturation"}))
def test_grey_pictures_are_degraded_as_well(kind: str) -> None:
    picture = np.repeat(_picture()[:, :, :1], 3, axis=2)
    assert _error(picture, degrade(picture, kind, 3, np.random.default_rng(0))) > 1.0


@pytest.mark.parametrize("strength", [0, -1, 5.01, float("nan"), float("inf")])
def test_strength_outside_its_range_is_refused(strength: float) -> None:
    with pytest.raises(DataError, match="strength of jpeg is"):
        degrade(_picture(), "jpeg", strength, np.random.default_rng(0))


def test_unknown_kind_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(DataError, match=r"'jpg' - known are .*jpeg"):
        degrade(_picture(), "jpg", 1, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("picture", "found"),
    [
        (_picture().astype(np.float32), "float32"),
        (_picture()[:, :, 0], r"shape \(128, 160\)"),
        (np.zeros((64, 64, 4), np.uint8), r"shape \(64, 64, 4\)"),
        (np.zeros((64, 31, 3), np.uint8), "31 x 64"),
        ([[0]], "list"),
    ],
)
def test_wrong_arrays_are_refused(picture: Bytes, found: str) -> None:
    with pytest.raises(DataError, match=found):
        degrade(picture, "jpeg", 1, np.random.default_rng(0))
