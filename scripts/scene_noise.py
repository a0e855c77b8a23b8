"""Fractal noise, colour ramps and the camera's last steps, shared by the painters of the example scenes.

Scenes are float64 arrays (H, W, 3) of linear light, about 0..1, painted at twice the final size; `develop` turns them
into bytes. Everything is drawn from the generator it is given, so equal seeds give equal bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

Array = NDArray[np.float64]
Rng = np.random.Generator

WIDTH, HEIGHT = 512, 384


def fractal(rng: Rng, shape: tuple[int, int], slope: float = 2.0, stretch: tuple[float, float] = (1.0, 1.0)) -> Array:
    """Return periodic noise of mean 0 and deviation 1 whose power falls with frequency to the power ``slope``.

    ``stretch`` lengthens its structures along rows and columns: (1, 8) is drawn out horizontally.
    """
    rows = fft.fftfreq(shape[0])[:, None] * shape[0] * stretch[0]
    columns = fft.rfftfreq(shape[1])[None, :] * shape[1] * stretch[1]
    radius = np.hypot(rows, columns)
    radius[0, 0] = 1.0
    waves = fft.rfft2(rng.standard_normal(shape)) * radius ** (-slope / 2)
    waves[0, 0] = 0.0
    field = fft.irfft2(waves, shape)
    return np.asarray(field / field.std())


def lattice(rng: Rng, shape: tuple[int, int], cells: tuple[int, int]) -> Array:
    """Return periodic smooth noise with ``cells`` independent values along each side, about -2..2."""
    grid = rng.standard_normal(cells)
    where = np.meshgrid(*(np.arange(n) * c / n for n, c in zip(shape, cells, strict=True)), indexing="ij")
    return np.asarray(ndimage.map_coordinates(grid, where, order=3, mode="grid-wrap"))


def ridges(rng: Rng, size: int, first: int, octaves: int, gain: float = 0.5, sharpness: float = 1.6) -> Array:
    """Return a periodic mountain range in 0..1: octaves of ridged noise, each weighted by the height so far."""
    total, weight, scale = np.zeros((size, size)), np.ones((size, size)), 1.0
    for octave in range(octaves):
        ridge = np.clip(1.0 - abs(lattice(rng, (size, size), (first << octave,) * 2)), 0.0, 1.0) ** sharpness
        total += scale * ridge * weight
        weight = np.clip(1.6 * ridge * weight + 0.1, 0.0, 1.0)
        scale *= gain
    return np.asarray((total - total.min()) / (total.max() - total.min()))


def sample(field: Array, rows: Array, columns: Array, order: int = 1) -> Array:
    """Read a periodic field (H, W) or (H, W, C) at fractional positions."""
    if field.ndim == 3:
        return np.stack([sample(plane, rows, columns, order) for plane in np.moveaxis(field, 2, 0)], axis=-1)
    return np.asarray(ndimage.map_coordinates(field, [rows, columns], order=order, mode="grid-wrap"))


def ramp(values: Array, stops: Sequence[float] | Array, colours: Sequence[Sequence[float] | Array]) -> Array:
    """Return colours (..., 3) interpolated between ``colours`` placed at ``stops``."""
    table = np.asarray(colours, np.float64)
    return np.stack([np.interp(values, stops, table[:, channel]) for channel in range(3)], axis=-1)


def ease(values: Array, start: float | Array, end: float | Array) -> Array:
    """Return 0 below ``start``, 1 above ``end`` and a smooth passage between (start may exceed end)."""
    t = np.clip((values - start) / (end - start), 0.0, 1.0)
    return np.asarray(t * t * (3.0 - 2.0 * t))


def mix(first: Array, second: Array | Sequence[float], share: Array) -> Array:
    """Blend colours (..., 3) by a share (...)."""
    return np.asarray(first + (np.asarray(second) - first) * np.asarray(share)[..., None])


def blur(image: Array, sigma: float) -> Array:
    """Blur rows and columns, not channels."""
    return np.asarray(ndimage.gaussian_filter(image, (sigma, sigma, 0)[: image.ndim], mode="nearest", truncate=3.0))


def slopes(height: Array, gain: float) -> Array:
    """Return unit normals (H, W, 3) as (right, down, up) of a periodic relief, steeper for a larger ``gain``."""
    right = (np.roll(height, -1, 1) - np.roll(height, 1, 1)) * 0.5 * gain
    down = (np.roll(height, -1, 0) - np.roll(height, 1, 0)) * 0.5 * gain
    normal = np.stack([-right, -down, np.ones_like(height)], axis=-1)
    return np.asarray(normal / np.linalg.norm(normal, axis=-1, keepdims=True))


def develop(
    light: Array, rng: Rng, exposure: float = 1.0, contrast: float = 0.6, grain: float = 0.006, vignette: float = 0.25
) -> NDArray[np.uint8]:
    """Take the picture: halve, darken the corners, expose, roll off the highlights, add mild sensor noise, encode.

    Returns:
        uint8 array of shape (HEIGHT, WIDTH, 3).
    """
    if light.shape[0] == 2 * HEIGHT:
        light = light.reshape(HEIGHT, 2, WIDTH, 2, 3).mean(axis=(1, 3))
    rows, columns = np.meshgrid(np.linspace(-1, 1, HEIGHT), np.linspace(-1, 1, WIDTH), indexing="ij")
    light = np.maximum(light, 0.0) * exposure * (1.0 - vignette * (rows**2 + columns**2) / 2)[..., None]
    # Shot noise grows with the root of the light; a little of it is coarser than a pixel, as after demosaicing.
    noise = rng.standard_normal(light.shape)
    noise = 0.7 * noise + 0.9 * blur(noise, 0.8)
    light = np.maximum(light + grain * np.sqrt(light + 0.02) * noise, 0.0)
    # Linear up to the shoulder, then approaching white.
    light = np.where(light < 0.6, light, 0.6 + 0.4 * (1.0 - np.exp(-(light - 0.6) / 0.4)))
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055)
    # A camera's tone curve: deeper shadows, steeper middle.
    encoded = np.clip(encoded, 0.0, 1.0)
    encoded = encoded + contrast * (encoded * encoded * (3.0 - 2.0 * encoded) - encoded)
    return np.asarray(np.clip(encoded * 255.0 + 0.5, 0, 255), np.uint8)
