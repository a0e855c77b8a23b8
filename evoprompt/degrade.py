"""Degradations with a known order: the ladder's rulers and the makers of synthetic training groups.

Twenty-eight kinds in five families cover the ground of the 25 types of KADID-10k (Lin, Hosu and Saupe, QoMEX 2019),
with our own operations and settings. Every kind takes a strength in (0, 5]: 1 is meant to be just visible, 5 very bad,
and every whole step is clearly worse than the one before (measured in ``docs/results/degrade.md``). One generator state
draws the same directions, places and noise at every strength: with equal seeds the degradations of an image are nested.

Operations see float32 pixels of shape (H, W, 3) in [0, 1]; their caller clips and rounds once, at the end.
"""

import io
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft, ndimage, signal

from evoprompt.errors import DataError

Pixels = NDArray[np.float32]
Rng = np.random.Generator

STRENGTHS: tuple[int, ...] = (1, 2, 3, 4, 5)
MIN_SIDE = 32

# ITU-R BT.601 luma weights: the luma of JPEG and of most consumer coding.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def _luma(pixels: Pixels) -> Pixels:
    return (pixels @ _LUMA)[..., None]


def _to_image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(_to_bytes(pixels))


def _to_bytes(pixels: Pixels) -> NDArray[np.uint8]:
    levels: NDArray[np.uint8] = np.clip(pixels * 255.0 + 0.5, 0.0, 255.0).astype(np.uint8)
    return levels


def _to_pixels(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB"), np.float32) / 255.0


def _normal(rng: Rng, shape: tuple[int, ...]) -> Pixels:
    return rng.standard_normal(shape, dtype=np.float32)


# --- blur ---


def _smooth(pixels: Pixels, sigma: float) -> Pixels:
    smooth: Pixels = ndimage.gaussian_filter(pixels, (sigma, sigma, 0), mode="reflect", truncate=3.0)
    return smooth


def _gaussian_blur(pixels: Pixels, sigma: float, rng: Rng) -> Pixels:
    return _smooth(pixels, sigma)


def _convolve(pixels: Pixels, kernel: NDArray[np.float64]) -> Pixels:
    """Filter with a square kernel of odd side, mirrored at the edges, through the FFT (cheap for wide kernels)."""
    margin = kernel.shape[0] // 2
    padded = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    weights = (kernel / kernel.sum()).astype(np.float32)[..., None]
    filtered: Pixels = signal.fftconvolve(padded, weights, mode="valid", axes=(0, 1)).astype(np.float32)
    return filtered


def _grid(reach: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    margin = math.ceil(reach)
    rows, columns = np.mgrid[-margin : margin + 1, -margin : margin + 1].astype(np.float64)
    return rows, columns


def _lens_blur(pixels: Pixels, radius: float, rng: Rng) -> Pixels:
    rows, columns = _grid(radius)
    return _convolve(pixels, np.clip(radius + 0.5 - np.hypot(rows, columns), 0.0, 1.0))


def _motion_blur(pixels: Pixels, length: float, rng: Rng) -> Pixels:
    angle = rng.uniform(0.0, math.pi)
    rows, columns = _grid(length / 2)
    along = columns * math.cos(angle) + rows * math.sin(angle)
    across = rows * math.cos(angle) - columns * math.sin(angle)
    return _convolve(pixels, np.clip((length + 1) / 2 - abs(along), 0.0, 1.0) * np.clip(1.0 - abs(across), 0.0, 1.0))


def _shrink(image: Image.Image, factor: float) -> Image.Image:
    size = (max(2, round(image.width / factor)), max(2, round(image.height / factor)))
    return image.resize(size, Image.Resampling.BOX)


def _low_resolution(pixels: Pixels, factor: float, rng: Rng) -> Pixels:
    image = _to_image(pixels)
    return _to_pixels(_shrink(image, factor).resize(image.size, Image.Resampling.BICUBIC))


# --- noise ---


def _white_noise(pixels: Pixels, deviation: float, rng: Rng) -> Pixels:
    return pixels + deviation * _normal(rng, pixels.shape)


def _chroma_noise(pixels: Pixels, deviation: float, rng: Rng) -> Pixels:
    noise = _normal(rng, pixels.shape)
    return pixels + deviation * (noise - _luma(noise))


def _coarse_noise(pixels: Pixels, deviation: float, rng: Rng) -> Pixels:
    """Blotches of about three pixels, strongest in the shadows: a small sensor at high gain, already processed."""
    noise = _smooth(_normal(rng, pixels.shape), 1.1)
    noise /= max(float(noise.std()), 1e-6)
    return pixels + deviation * noise * (1.3 - 0.6 * _luma(pixels))


def _impulse_noise(pixels: Pixels, share: float, rng: Rng) -> Pixels:
    draws = rng.random(pixels.shape[:2], dtype=np.float32)
    noisy = pixels.copy()
    noisy[draws < share / 2] = 0.0
    noisy[draws > 1.0 - share / 2] = 1.0
    return noisy


def _speckle_noise(pixels: Pixels, deviation: float, rng: Rng) -> Pixels:
    return pixels * (1.0 + deviation * _normal(rng, pixels.shape))


def _denoise_smear(pixels: Pixels, limit: float, rng: Rng) -> Pixels:
    """Noise, then a self-guided filter (He, Sun and Tang, ECCV 2010) that wipes out contrast below ``limit``."""
    noisy = pixels + 0.25 * limit * _normal(rng, pixels.shape)

    def mean(plane: Pixels) -> Pixels:
        average: Pixels = ndimage.uniform_filter(plane, (9, 9, 0), mode="reflect")
        return average

    guide = _luma(noisy)
    centre, colour = mean(guide), mean(noisy)
    variance: Pixels = np.maximum(mean(guide * guide) - centre * centre, 0.0)
    slope = (mean(guide * noisy) - centre * colour) / (variance + limit * limit)
    smeared: Pixels = mean(slope) * guide + mean(colour - slope * centre)
    return smeared


# --- coding ---


def _coded(pixels: Pixels, coder: str, **settings: object) -> Pixels:
    buffer = io.BytesIO()
    _to_image(pixels).save(buffer, coder, **settings)
    with Image.open(buffer) as image:
        return _to_pixels(image)


def _jpeg(pixels: Pixels, quality: float, rng: Rng) -> Pixels:
    return _coded(pixels, "JPEG", quality=round(quality))


def _jpeg2000(pixels: Pixels, decibel: float, rng: Rng) -> Pixels:
    # A target in dB, not a rate: a rate hardly touches a smooth image and cannot be met for a tiny one.
    return _coded(pixels, "JPEG2000", quality_mode="dB", quality_layers=[decibel], irreversible=True)


def _webp(pixels: Pixels, quality: float, rng: Rng) -> Pixels:
    return _coded(pixels, "WEBP", quality=round(quality), method=0)


def _block_quantise(pixels: Pixels, step: float, rng: Rng) -> Pixels:
    """One uniform quantiser for all cosine coefficients of 16 x 16 blocks: a coder without perceptual weighting."""
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((0, -height % 16), (0, -width % 16), (0, 0)), mode="edge")
    blocks = padded.reshape(padded.shape[0] // 16, 16, padded.shape[1] // 16, 16, 3)
    waves = fft.dctn(blocks, axes=(1, 3), norm="ortho")
    # Towards zero, as coders do: a plain round() would keep flat areas dithered.
    waves = np.trunc(waves / step + np.sign(waves) * 0.4) * step
    blocks = fft.idctn(waves, axes=(1, 3), norm="ortho")
    decoded: Pixels = blocks.reshape(padded.shape)[:height, :width]
    return decoded


# --- tone and colour ---


def _darken(pixels: Pixels, gain: float, rng: Rng) -> Pixels:
    return pixels * gain


def _brighten(pixels: Pixels, gain: float, rng: Rng) -> Pixels:
    return pixels * gain


def _contrast_loss(pixels: Pixels, kept: float, rng: Rng) -> Pixels:
    middle = float(pixels.mean(dtype=np.float64))
    return middle + (pixels - middle) * kept


def _saturation(pixels: Pixels, factor: float, rng: Rng) -> Pixels:
    grey = _luma(pixels)
    return grey + (pixels - grey) * factor


def _colour_cast(pixels: Pixels, amount: float, rng: Rng) -> Pixels:
    """Set a wrong white balance: unequal channel gains, with a little of the same tint in the blacks."""
    angle = rng.uniform(0.0, 2 * math.pi)
    tint = np.cos(angle + np.arange(3) * 2 * math.pi / 3).astype(np.float32)
    gains: Pixels = np.exp(amount * tint)
    return pixels * gains + 0.1 * amount * tint


def _colour_quantise(pixels: Pixels, colours: float, rng: Rng) -> Pixels:
    palette = _to_image(pixels).quantize(round(colours), Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    return _to_pixels(palette)


def _haze(pixels: Pixels, depth: float, rng: Rng) -> Pixels:
    """Airlight behind which the scene fades (Koschmieder's law), thicker towards the top, where scenes are far away."""
    distance = np.linspace(1.25, 0.75, pixels.shape[0], dtype=np.float32)[:, None, None]
    passed: Pixels = np.exp(-depth * distance)
    return pixels * passed + np.array([0.80, 0.82, 0.85], np.float32) * (1.0 - passed)


# --- spatial and local ---


def _pixelate(pixels: Pixels, factor: float, rng: Rng) -> Pixels:
    image = _to_image(pixels)
    return _to_pixels(_shrink(image, factor).resize(image.size, Image.Resampling.NEAREST))


def _jitter(pixels: Pixels, reach: float, rng: Rng) -> Pixels:
    height, width = pixels.shape[:2]
    moves = np.rint(reach * _normal(rng, (2, height, width))).astype(np.intp)
    rows = np.clip(np.arange(height)[:, None] + moves[0], 0, height - 1)
    columns = np.clip(np.arange(width)[None, :] + moves[1], 0, width - 1)
    moved: Pixels = pixels[rows, columns]
    return moved


def _block_loss(pixels: Pixels, share: float, rng: Rng) -> Pixels:
    """Blocks that never arrived: half are filled with flat grey, half with the last column received before them."""
    height, width = pixels.shape[:2]
    side = min(16, min(height, width) // 8)
    across = math.ceil(width / side)
    order = rng.permutation(math.ceil(height / side) * across)
    concealed = pixels.copy()
    for place, slot in enumerate(order[: math.ceil(share * len(order))]):
        top, left = slot // across * side, slot % across * side
        if place % 2 == 0 or left == 0:
            concealed[top : top + side, left : left + side] = 0.5
        else:
            concealed[top : top + side, left : left + side] = pixels[top : top + side, left - 1 : left]
    return concealed


def _oversharpen(pixels: Pixels, gain: float, rng: Rng) -> Pixels:
    return pixels + gain * (pixels - _smooth(pixels, 1.5))


def _banding(pixels: Pixels, deviation: float, rng: Rng) -> Pixels:
    """Rows or columns read out with drifting offsets: mostly grey stripes, slightly coloured, a few pixels wide."""
    vertical = int(rng.integers(2))
    length = pixels.shape[vertical]
    offsets: Pixels = ndimage.gaussian_filter1d(
        _normal(rng, (length, 1)) + 0.4 * _normal(rng, (length, 3)), 0.8, axis=0
    )
    offsets /= max(float(offsets.std()), 1e-6)
    return pixels + deviation * np.expand_dims(offsets, 1 - vertical)


def _occlusion(pixels: Pixels, share: float, rng: Rng) -> Pixels:
    """Flat patches of random colour; at most one in each cell of an 8 x 8 grid, so more patches always hide more."""
    height, width = pixels.shape[:2]
    order = rng.permutation(64)
    colours = rng.random((64, 3), dtype=np.float32)
    starts = rng.random((64, 2))
    hidden = pixels.copy()
    for slot in order[: math.ceil(share * 64)]:
        top = int((slot // 8 + 0.25 * starts[slot, 0]) * height / 8)
        left = int((slot % 8 + 0.25 * starts[slot, 1]) * width / 8)
        hidden[top : top + (3 * height) // 32, left : left + (3 * width) // 32] = colours[slot]
    return hidden


class _Kind(NamedTuple):
    family: str
    apply: Callable[[Pixels, float, Rng], Pixels]
    # The operation's own setting at strengths 0 (practically no change) to 5; between them it is interpolated.
    settings: tuple[float, float, float, float, float, float]


_KINDS: dict[str, _Kind] = {
    "gaussian_blur": _Kind("blur", _gaussian_blur, (0.2, 0.7, 1.2, 1.9, 2.9, 4.3)),
    "lens_blur": _Kind("blur", _lens_blur, (0.4, 1.2, 2.0, 3.0, 4.4, 6.3)),
    "motion_blur": _Kind("blur", _motion_blur, (1.0, 3.5, 6.0, 9.5, 14.0, 20.0)),
    "low_resolution": _Kind("blur", _low_resolution, (1.05, 1.6, 2.2, 3.1, 4.4, 6.4)),
    "white_noise": _Kind("noise", _white_noise, (0.0, 0.025, 0.05, 0.085, 0.135, 0.21)),
    "chroma_noise": _Kind("noise", _chroma_noise, (0.0, 0.045, 0.09, 0.15, 0.24, 0.38)),
    "coarse_noise": _Kind("noise", _coarse_noise, (0.0, 0.018, 0.036, 0.062, 0.1, 0.15)),
    "impulse_noise": _Kind("noise", _impulse_noise, (0.0, 0.005, 0.015, 0.035, 0.08, 0.17)),
    "speckle_noise": _Kind("noise", _speckle_noise, (0.0, 0.06, 0.12, 0.21, 0.35, 0.56)),
    "denoise_smear": _Kind("noise", _denoise_smear, (0.005, 0.035, 0.065, 0.11, 0.19, 0.34)),
    "jpeg": _Kind("coding", _jpeg, (92.0, 45.0, 25.0, 15.0, 9.0, 5.0)),
    "jpeg2000": _Kind("coding", _jpeg2000, (44.0, 35.0, 32.0, 29.0, 26.0, 23.5)),
    "webp": _Kind("coding", _webp, (90.0, 38.0, 20.0, 9.0, 3.0, 0.0)),
    "block_quantise": _Kind("coding", _block_quantise, (0.02, 0.15, 0.28, 0.5, 0.9, 1.6)),
    "darken": _Kind("tone", _darken, (1.0, 0.8, 0.63, 0.48, 0.35, 0.24)),
    "brighten": _Kind("tone", _brighten, (1.0, 1.25, 1.55, 1.95, 2.5, 3.3)),
    "contrast_loss": _Kind("tone", _contrast_loss, (1.0, 0.75, 0.56, 0.4, 0.27, 0.16)),
    "saturation_loss": _Kind("tone", _saturation, (1.0, 0.72, 0.5, 0.3, 0.14, 0.0)),
    "oversaturation": _Kind("tone", _saturation, (1.0, 1.4, 1.9, 2.6, 3.7, 5.5)),
    "colour_cast": _Kind("tone", _colour_cast, (0.0, 0.07, 0.14, 0.23, 0.35, 0.52)),
    "colour_quantise": _Kind("tone", _colour_quantise, (256.0, 32.0, 16.0, 9.0, 5.0, 3.0)),
    "haze": _Kind("tone", _haze, (0.0, 0.18, 0.38, 0.64, 1.0, 1.5)),
    "pixelate": _Kind("local", _pixelate, (1.2, 2.0, 3.0, 4.5, 7.0, 11.0)),
    "jitter": _Kind("local", _jitter, (0.2, 0.6, 1.1, 1.8, 2.9, 4.6)),
    "block_loss": _Kind("local", _block_loss, (0.0, 0.02, 0.05, 0.1, 0.19, 0.33)),
    "oversharpen": _Kind("local", _oversharpen, (0.0, 0.8, 1.7, 3.0, 5.2, 9.0)),
    "banding": _Kind("local", _banding, (0.0, 0.015, 0.03, 0.055, 0.095, 0.16)),
    "occlusion": _Kind("local", _occlusion, (0.0, 0.03, 0.08, 0.15, 0.26, 0.42)),
}

KINDS: tuple[str, ...] = tuple(_KINDS)
FAMILY: dict[str, str] = {name: kind.family for name, kind in _KINDS.items()}

# Kinds of which a viewer would always agree that more is worse, and whose steps all measured worse on photos as they
# are (docs/results/degrade.md). Tone kinds of which some may please (brighter, calmer, more vivid) are out.
LADDER_KINDS: tuple[str, ...] = (
    "gaussian_blur",
    "lens_blur",
    "motion_blur",
    "low_resolution",
    "white_noise",
    "chroma_noise",
    "coarse_noise",
    "impulse_noise",
    "speckle_noise",
    "denoise_smear",
    "jpeg",
    "webp",
    "block_quantise",
    "colour_quantise",
    "haze",
    "pixelate",
    "jitter",
    "block_loss",
    "oversharpen",
    "banding",
)


def degrade(image: NDArray[np.uint8], kind: str, strength: float, rng: Rng) -> NDArray[np.uint8]:
    """Return a copy of ``image`` with one degradation.

    Args:
        image: uint8 array of shape (H, W, 3), H and W at least 32, RGB in 0..255. It is not changed.
        kind: one of ``KINDS``.
        strength: above 0 and at most 5; need not be whole.
        rng: source of all randomness; equal state and arguments give equal bytes.

    Returns:
        uint8 array of shape (H, W, 3), RGB in 0..255.

    Raises:
        DataError: if the array, the kind or the strength is not as described above.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = f"{image.dtype} of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise DataError(f"the image to degrade is {found} - a uint8 array (H, W, 3) is needed - convert it first")
    if min(image.shape[:2]) < MIN_SIDE:
        raise DataError(
            f"the image to degrade is {image.shape[1]} x {image.shape[0]} pixels - at least {MIN_SIDE} x {MIN_SIDE} "
            "are needed - leave it out or enlarge it"
        )
    if kind not in _KINDS:
        raise DataError(f"there is no degradation {kind!r} - known are {', '.join(KINDS)} - use one of these names")
    if not 0.0 < strength <= STRENGTHS[-1]:
        raise DataError(
            f"the strength of {kind} is {strength} - above 0 and at most {STRENGTHS[-1]} is accepted - use 1 for just "
            "visible up to 5 for very bad"
        )
    setting = float(np.interp(strength, (0, *STRENGTHS), _KINDS[kind].settings))
    pixels = image.astype(np.float32) / 255.0
    return _to_bytes(_KINDS[kind].apply(pixels, setting, rng))
