"""Preprocessing recorded from the reference, pixel for pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evoprompt.owl2 import Owl2ImageProcessor
from evoprompt.owl2.processing import pad_to_square

FOLDER = Path(__file__).parent / "preproc"
EXPECTED = np.load(FOLDER / "preproc.npz", allow_pickle=False)
NAMES = {"pad": "pad", "squash": "squash", "crop": "centercrop"}


def processor(aspect: str, side: int) -> Owl2ImageProcessor:
    return Owl2ImageProcessor(aspect=aspect, size={"shortest_edge": side}, crop_size={"height": side, "width": side})


@pytest.mark.parametrize("side", [56, 448])
@pytest.mark.parametrize("aspect", NAMES)
def test_8_bit_pixels_equal_the_reference(aspect: str, side: int) -> None:
    image = Image.open(FOLDER / "input_123x77.png")
    pixels = processor(aspect, side)(image, do_rescale=False, do_normalize=False, return_tensors="np").pixel_values[0]
    assert np.array_equal(pixels, EXPECTED[f"{NAMES[aspect]}_{side}_u8"])


@pytest.mark.parametrize("aspect", NAMES)
def test_normalised_pixels_equal_the_reference(aspect: str) -> None:
    image = Image.open(FOLDER / "input_123x77.png")
    pixels = processor(aspect, 56)(image, return_tensors="np").pixel_values[0]
    assert np.abs(pixels - EXPECTED[f"{NAMES[aspect]}_56"]).max() < 1e-6


def test_tall_images_are_padded_as_wide_ones() -> None:
    image = np.asarray(Image.open(FOLDER / "input_123x77.png")).transpose(2, 0, 1)
    mean = tuple(processor("pad", 56).image_mean)
    assert np.array_equal(pad_to_square(image.transpose(0, 2, 1), mean), pad_to_square(image, mean).transpose(0, 2, 1))


def test_grey_image_is_padded_in_the_colour_of_the_mean() -> None:
    grey = Image.new("L", (56, 28), 200)
    pixels = processor("pad", 56)(grey, do_rescale=False, do_normalize=False, return_tensors="np").pixel_values[0]
    assert pixels[:, 0, 0].tolist() == [122, 116, 104] and pixels[:, 28, 28].tolist() == [200, 200, 200]


def test_unknown_aspect_is_refused() -> None:
    with pytest.raises(ValueError, match="aspect 'stretch' is not known; use one of pad, squash, crop"):
        processor("stretch", 56)(Image.new("RGB", (9, 9)))
