"""Close views made of many overlapping things: leaves, pebbles, a meadow, folded cloth, old painted boards.

Leaves and pebbles are dead-leaves pictures (Matheron 1968): things of power-law sizes laid over one another, which is
where the statistics of natural images come from; here each thing is shaded, textured and casts a shadow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from scene_noise import HEIGHT, WIDTH, Array, Rng, blur, ease, fractal, lattice, mix, ramp, sample, slopes
from scipy import ndimage

ROWS, COLUMNS = 2 * HEIGHT, 2 * WIDTH


def _window(row: float, column: float, reach: float) -> tuple[slice, slice] | None:
    """Return the part of the canvas within ``reach`` of a place, None when nothing of it is left."""
    top, bottom = max(0, int(row - reach)), min(ROWS, int(row + reach) + 2)
    left, right = max(0, int(column - reach)), min(COLUMNS, int(column + reach) + 2)
    return (slice(top, bottom), slice(left, right)) if bottom - top > 2 and right - left > 2 else None


def _turned(part: tuple[slice, slice], row: float, column: float, angle: float) -> tuple[Array, Array]:
    """Return coordinates along and across a thing at ``row``, ``column`` that points to ``angle``."""
    rows, columns = np.mgrid[part].astype(np.float64)
    rows, columns = rows - row, columns - column
    return columns * np.cos(angle) + rows * np.sin(angle), rows * np.cos(angle) - columns * np.sin(angle)


def _lay(canvas: Array, part: tuple[slice, slice], colour: Array, mask: Array, drop: float, shade: float) -> None:
    """Put a thing on the canvas over its own soft shadow, which falls to the lower right."""
    shadow = blur(ndimage.shift(mask, (round(drop), round(0.7 * drop)), order=0), 0.6 * drop)
    under = canvas[part] * (1.0 - shade * shadow)[..., None]
    canvas[part] = mix(under, colour, mask)


def _leaf(canvas: Array, rng: Rng, length: float, light: float, palette: Sequence[Sequence[float]]) -> None:
    row, column, angle = rng.uniform(-40, ROWS + 40), rng.uniform(-40, COLUMNS + 40), rng.normal(1.1, 0.9)
    width, bend = length * rng.uniform(0.34, 0.5), rng.normal(0, 0.12)
    tone, tilt = rng.uniform(0, 1), rng.normal(0, 0.25)
    part = _window(row, column, 0.75 * length + 14)
    if part is None:
        return
    along, across = _turned(part, row, column, angle)
    u = along / length + 0.5
    across = across - bend * length * ((2 * u - 1) ** 2 - 1)
    inside = np.clip(u, 0, 1)
    edge = 0.5 * width * np.sin(np.pi * inside**0.75) ** 0.85 * (1 + 0.04 * np.sin(inside * 60))
    mask = np.clip(edge - abs(across) + 0.5, 0, 1) * ((u > 0) & (u < 1))
    v = across / np.maximum(0.5 * width, 1.0)
    veins = (u * 11 - 3.2 * abs(v) ** 0.8) % 1.0
    rib = np.maximum(
        np.exp(-((across / 1.8) ** 2)), 0.55 * np.exp(-((np.minimum(veins, 1 - veins) * length / 16) ** 2))
    )
    bulge = 0.16 * np.sin(2 * np.pi * veins) * (1 - np.exp(-abs(v) * 4))
    colour = ramp(np.full(u.shape, tone) + 0.08 * v, np.linspace(0, 1, len(palette)), palette)
    shading = light * (0.85 + tilt + 0.38 * np.sign(v) * np.tanh(3 * abs(v)) * np.sin(angle - 0.6) + bulge)
    colour = mix(colour, colour * 1.5 + 0.02, rib) * np.maximum(shading, 0.12)[..., None]
    sheen = np.exp(-(((v - 0.35) / 0.25) ** 2) - ((u - 0.45) / 0.3) ** 2) * max(0.0, tilt + 0.25)
    colour = colour + 0.30 * light * sheen[..., None] * np.array([0.8, 0.95, 1.0])
    _lay(canvas, part, colour, mask, 0.06 * length + 2, 0.6)


def leaves(rng: Rng) -> Array:
    """Paint dense green foliage, dark and out of focus in its depth."""
    canvas = np.zeros((ROWS, COLUMNS, 3)) + (0.006, 0.012, 0.005)
    palette = ((0.05, 0.13, 0.02), (0.10, 0.24, 0.03), (0.20, 0.34, 0.05), (0.36, 0.42, 0.07))
    for count, length, light, defocus in (
        (150, 150, 0.12, 5.0),
        (150, 160, 0.3, 2.4),
        (170, 165, 0.6, 0.9),
        (80, 190, 1.0, 0),
    ):
        for _ in range(count):
            _leaf(canvas, rng, length * rng.uniform(0.55, 1.25), light * rng.uniform(0.75, 1.2), palette)
        canvas = blur(canvas, defocus) if defocus else canvas
    sun = ease(blur(rng.standard_normal((ROWS, COLUMNS)), 60) * 150, -0.8, 1.4)
    return canvas * (0.75 + 1.5 * sun)[..., None] * (1.05, 1.0, 0.85)


def autumn_floor(rng: Rng) -> Array:
    """Paint fallen leaves of many colours lying on dark soil in soft light."""
    soil = fractal(rng, (1024, 1024), 1.5)[:ROWS, :COLUMNS]
    canvas = ramp(soil, (-2.5, 2.5), ((0.012, 0.008, 0.005), (0.10, 0.065, 0.04)))
    palette = (
        (0.16, 0.05, 0.02),
        (0.42, 0.07, 0.02),
        (0.60, 0.22, 0.03),
        (0.66, 0.42, 0.07),
        (0.36, 0.30, 0.07),
        (0.30, 0.17, 0.08),
    )
    for number in range(560):
        size = float(np.clip(58 * rng.random() ** -0.42, 58, 210))
        _leaf(canvas, rng, size, rng.uniform(0.45, 0.8) + 0.35 * number / 560, palette)
    return canvas * (1.05, 1.0, 0.95)


def pebbles(rng: Rng) -> Array:
    """Paint beach pebbles of power-law sizes, wet and dark towards the lower left."""
    canvas = np.zeros((ROWS, COLUMNS, 3)) + (0.02, 0.018, 0.016)
    kinds = np.array(
        [
            (0.30, 0.30, 0.31),
            (0.16, 0.17, 0.19),
            (0.42, 0.34, 0.25),
            (0.66, 0.63, 0.58),
            (0.33, 0.20, 0.16),
            (0.24, 0.27, 0.25),
        ]
    )
    grain, band = fractal(rng, (1024, 1024), 1.2), fractal(rng, (1024, 1024), 2.6)
    wet_side = lattice(rng, (ROWS, COLUMNS), (4, 4)) * 0.12
    for _ in range(1900):
        radius = float(np.clip(11 * rng.random() ** -0.55, 11, 105))
        row, column, angle = rng.uniform(-30, ROWS + 30), rng.uniform(-30, COLUMNS + 30), rng.uniform(0, np.pi)
        part = _window(row, column, 1.35 * radius + 10)
        if part is None:
            continue
        _pebble(canvas, part, rng, (row, column, angle, radius), kinds, grain, band, wet_side)
    return canvas


def _pebble(
    canvas: Array,
    part: tuple[slice, slice],
    rng: Rng,
    place: tuple[float, float, float, float],
    kinds: Array,
    grain: Array,
    band: Array,
    wet_side: Array,
) -> None:
    row, column, angle, radius = place
    along, across = _turned(part, row, column, angle)
    x, y = along / radius, across / (radius * rng.uniform(0.62, 0.95))
    turn = np.arctan2(y, x)
    wobble = 1 + 0.06 * np.sin(2 * turn + rng.uniform(0, 6)) + 0.05 * np.sin(3 * turn + rng.uniform(0, 6))
    far = (abs(x) ** 2.3 + abs(y) ** 2.3) ** (1 / 2.3) / wobble
    mask = np.clip((1 - far) * radius * 0.6 + 0.5, 0, 1)
    dome = np.sqrt(np.maximum(1 - np.minimum(far, 1) ** 2.6, 0.0))
    steep = np.minimum(far, 1) ** 1.8 / (0.35 + dome)
    normal = np.stack([np.cos(turn + angle) * steep, np.sin(turn + angle) * steep, np.ones_like(steep)], axis=-1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    shift = rng.uniform(0, 1024, 2)
    speck = sample(grain, shift[0] + across * 1.3, shift[1] + along * 1.3)
    veins = sample(band, shift[1] + across * (4 if rng.random() < 0.4 else 1), shift[0] + along)
    base = kinds[rng.choice(6, p=(0.3, 0.2, 0.18, 0.1, 0.1, 0.12))] * rng.uniform(0.7, 1.2)
    colour = base * np.clip(1 + 0.13 * speck + 0.16 * veins, 0.2, 2.0)[..., None]
    colour = mix(colour, (0.62, 0.60, 0.56), ease(abs(veins - 0.4), 0.09, 0.03) * float(rng.random() < 0.3) * 0.8)
    rows, columns = np.mgrid[part]
    wet = float(ease(np.array(row / ROWS - column / COLUMNS + wet_side[rows[0, 0], columns[0, 0]]), -0.05, 0.05))
    colour = colour ** (1 + 0.45 * wet)
    sun = np.array([-0.52, -0.48, 0.70])
    lit = 1.35 * np.clip(normal @ sun, 0, 1)[..., None] * (1.0, 0.94, 0.84) + (0.20, 0.22, 0.26)
    half = np.array([-0.28, -0.26, 0.92])
    gloss = (0.05 + 0.75 * wet) * np.clip(normal @ half, 0, 1) ** (20 + 120 * wet)
    ring = 1 - 0.45 * ease(far, 0.7, 1.0)
    _lay(canvas, part, colour * lit * ring[..., None] + gloss[..., None], mask, 0.16 * radius + 3, 0.72)


def cloth(rng: Rng) -> Array:
    """Paint a checked woollen cloth in soft folds under raking light."""
    size = 1024
    warp = 60 * lattice(rng, (size, size), (3, 3))
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float64)
    lean = (0.55 * rows + columns + warp + 0.5 * np.roll(warp, 300, 0)) / 150
    crease = np.exp(-1.6 * abs(np.sin(np.pi * lean / 2))) * (0.7 + 0.45 * lattice(rng, (size, size), (3, 3)))
    height = blur(75 * crease + 24 * lattice(rng, (size, size), (4, 4)), 7)
    bent_rows = rows + 0.55 * (np.roll(height, -6, 0) - np.roll(height, 6, 0)) + 0.12 * height
    bent_columns = columns + 0.55 * (np.roll(height, -6, 1) - np.roll(height, 6, 1)) - 0.20 * height
    thread = 5.0
    over = (np.floor(bent_rows / thread) + np.floor(bent_columns / thread)) % 4 < 2
    colours = np.array([(0.33, 0.04, 0.035), (0.025, 0.05, 0.10), (0.03, 0.10, 0.05), (0.55, 0.45, 0.18)])
    sett = np.array([0] * 26 + [1] * 10 + [2] * 14 + [3] * 2 + [2] * 14 + [1] * 10)
    weft = colours[sett[np.floor(bent_rows / thread).astype(int) % len(sett)]]
    yarn = colours[sett[np.floor(bent_columns / thread).astype(int) % len(sett)]]
    colour = np.where(over[..., None], weft, yarn)
    inside = np.where(over, bent_rows, bent_columns) / thread % 1.0
    colour = (
        colour
        * (0.55 + 0.6 * np.sin(np.pi * inside))[..., None]
        * (1 + 0.16 * fractal(rng, (size, size), 0.4))[..., None]
    )
    normal = slopes(height, 0.85)
    sun = np.array([-0.62, -0.42, 0.66])
    hollow = ease(height - blur(height, 45), -22, 8)
    lit = 1.9 * np.clip(normal @ sun, 0, 1)[..., None] * (1.0, 0.92, 0.80) + 0.30 * np.array([0.85, 0.95, 1.1])
    return np.asarray((colour * lit * (0.35 + 0.65 * hollow)[..., None])[100 : 100 + ROWS, :COLUMNS])


def old_boards(rng: Rng) -> Array:
    """Paint weathered boards with peeling paint, nails and the shadow of a tree."""
    shape = (1024, 1024)
    rows, columns = np.mgrid[0:1024, 0:1024].astype(np.float64)
    board = np.floor(columns / 146).astype(int)
    inside = columns / 146 % 1.0
    grain_shift = rng.uniform(0, 1024, (2, 8))
    grain = fractal(rng, shape, 1.7, (16.0, 1.0)) + 0.5 * fractal(rng, shape, 1.2, (6.0, 1.0))
    value = sample(grain, rows + grain_shift[0][board], columns * 1.1 + grain_shift[1][board])
    bare = ramp(value, (-2.6, 2.6), ((0.09, 0.075, 0.06), (0.40, 0.36, 0.31)))
    wear = 0.8 * fractal(rng, shape, 2.2, (3.0, 1.0)) + 0.55 * value + rng.normal(0, 0.35, 8)[board]
    painted = ease(wear, 0.55, 0.30)
    tone = rng.normal(0, 0.05, 8)[board] + 0.03 * fractal(rng, shape, 1.8)
    paint = np.array([0.055, 0.24, 0.27]) * (1 + 2.2 * tone + 0.05 * value)[..., None]
    colour = mix(bare, paint, painted)
    relief = 1.2 * blur(painted, 0.8) + 0.18 * value
    normal = slopes(relief, 0.9)
    gap = ease(abs(inside - 0.5), 0.482, 0.492)
    nail = np.zeros(shape)
    for number in range(7):
        for row in (150, 690):
            spot = np.hypot(
                rows - row - 8 * rng.standard_normal(), columns - 146 * (number + 0.5) - 40 * rng.choice((-1, 1))
            )
            nail = np.maximum(nail, ease(spot, 7.5, 5.5))
            colour = mix(
                colour,
                (0.16, 0.06, 0.025),
                0.5 * np.exp(-(((columns - 146 * (number + 0.5)) / 70) ** 4)) * ease(spot, 26, 4),
            )
    colour = mix(colour, (0.06, 0.05, 0.05), nail) * (1 - 0.93 * gap)[..., None]
    twigs = fractal(rng, shape, 2.3) + 0.6 * fractal(rng, shape, 1.6)
    sun = 0.16 + 0.84 * ease(blur(twigs, 3.0), -0.5, 0.35)
    lit = 1.7 * (np.clip(normal @ np.array([-0.55, -0.45, 0.70]), 0, 1) * sun)[..., None] * (1.05, 0.95, 0.78)
    lit = lit + (0.24, 0.28, 0.35)
    return np.asarray((colour * lit)[128 : 128 + ROWS, :COLUMNS])


class Layer:
    """A transparent sheet of drawn shapes with one defocus, laid over the picture when it is complete."""

    def __init__(self) -> None:
        """Start empty."""
        self.image = Image.new("RGB", (COLUMNS, ROWS))
        self.mask = Image.new("L", (COLUMNS, ROWS))
        self.brushes = ImageDraw.Draw(self.image), ImageDraw.Draw(self.mask)

    def polygon(self, points: Array, colour: Array) -> None:
        """Fill a polygon given as (N, 2) columns and rows."""
        corners = [(float(x), float(y)) for x, y in points]
        # Square-root coded light: eight bits of linear light would band in the shadows.
        self.brushes[0].polygon(corners, fill=tuple(int(255 * np.sqrt(np.clip(c, 0, 1))) for c in colour))
        self.brushes[1].polygon(corners, fill=255)

    def over(self, canvas: Array, defocus: float) -> Array:
        """Return the canvas with this layer blurred and laid over it."""
        mask = np.asarray(self.mask, np.float64) / 255.0
        light = (np.asarray(self.image, np.float64) / 255.0) ** 2
        return canvas * (1 - blur(mask, defocus))[..., None] + blur(light * mask[..., None], defocus)


def _blade(layer: Layer, rng: Rng, foot: tuple[float, float], size: float, light: float) -> None:
    """Draw one grass blade: a bent, tapering strip, dark at its foot and bright at its tip."""
    t = np.linspace(0, 1, 7)
    lean, bend = rng.normal(0, 0.22), rng.normal(0, 0.35)
    x = foot[0] + size * (lean * t + bend * t**2.2)
    y = foot[1] - size * t * (1 - 0.18 * abs(bend) * t)
    width = 0.018 * size * (1 - t**1.6) + 0.4
    green = np.array([0.10, 0.22, 0.025]) * rng.uniform(0.6, 1.3) + np.array([0.16, 0.12, 0.0]) * rng.random() ** 3
    for k in range(6):
        corners = [
            (x[k] - width[k], y[k]),
            (x[k] + width[k], y[k]),
            (x[k + 1] + width[k + 1], y[k + 1]),
            (x[k + 1] - width[k + 1], y[k + 1]),
        ]
        layer.polygon(np.array(corners), green * light * (0.25 + 1.1 * t[k]))


def _flower(layer: Layer, rng: Rng, head: tuple[float, float], size: float, light: float, foot: float) -> None:
    """Draw a stalk and a daisy or a cornflower-blue or red flower seen somewhat from the side."""
    kind = int(rng.choice(3, p=(0.5, 0.3, 0.2)))
    petal = np.array([(0.85, 0.84, 0.78), (0.62, 0.05, 0.03), (0.13, 0.17, 0.62)][kind])
    sway = rng.normal(0, 0.1) * (foot - head[1])
    stalk = np.array(
        [(head[0] - 1.5, head[1]), (head[0] + 1.5, head[1]), (head[0] + sway + 2, foot), (head[0] + sway - 2, foot)]
    )
    layer.polygon(stalk, np.array([0.08, 0.15, 0.03]) * light)
    flat, count = rng.uniform(0.45, 0.9), (15, 6, 11)[kind]
    wide = (0.13, 0.42, 0.2)[kind]
    ring = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    for number in rng.permutation(count):
        angle = 2 * np.pi * number / count + rng.normal(0, 0.08)
        along, across = 0.58 + 0.44 * np.cos(ring), wide * np.sin(ring)
        x = np.cos(angle) * along - np.sin(angle) * across
        y = flat * (np.sin(angle) * along + np.cos(angle) * across)
        shade = light * (0.78 + 0.30 * np.cos(angle + 2.2)) * rng.uniform(0.85, 1.1)
        layer.polygon(np.stack([head[0] + size * x, head[1] + size * y], 1), petal * shade)
    middle = np.array([(0.75, 0.42, 0.03), (0.02, 0.015, 0.02), (0.08, 0.06, 0.25)][kind])
    for radius, gain in ((0.27, 0.75), (0.18, 1.1)):
        centre = np.stack(
            [head[0] + size * radius * np.cos(ring), head[1] + size * radius * (flat * np.sin(ring) - 0.2)], 1
        )
        layer.polygon(centre, middle * light * gain)


def meadow(rng: Rng) -> Array:
    """Paint flowers in tall grass, sharp in the middle distance only."""
    rows = np.linspace(0, 1, ROWS)[:, None] * np.ones((1, COLUMNS))
    canvas = ramp(
        rows,
        (0, 0.22, 0.34, 0.6, 1),
        ((0.50, 0.60, 0.72), (0.62, 0.62, 0.55), (0.16, 0.22, 0.07), (0.13, 0.20, 0.04), (0.04, 0.07, 0.015)),
    )
    trees = ease(rows + 0.09 * blur(rng.standard_normal((ROWS, COLUMNS)), 26) * 40, 0.20, 0.30) * ease(rows, 0.42, 0.30)
    canvas = blur(mix(canvas, (0.05, 0.085, 0.03), 0.85 * trees), 9)
    # Horizon to camera: foot line, size of the grass, number of blades and flowers, light, defocus.
    layers = (
        (0.42, 90, 900, 60, 0.9, 9.0),
        (0.52, 130, 800, 45, 0.95, 5.0),
        (0.64, 190, 700, 26, 1.0, 2.2),
        (0.84, 300, 620, 17, 1.1, 0.5),
        (1.02, 400, 420, 7, 1.05, 0.5),
        (1.2, 430, 70, 2, 0.7, 9.0),
    )
    for foot, size, blades, flowers, light, defocus in layers:
        layer = Layer()
        for _ in range(blades):
            place = (rng.uniform(-60, COLUMNS + 60), (foot + rng.normal(0, 0.03)) * ROWS + 20)
            _blade(layer, rng, place, size * rng.uniform(0.5, 1.1), light)
        for _ in range(flowers):
            base = foot * ROWS + 20
            head = (rng.uniform(0, COLUMNS), base - size * rng.uniform(0.7, 1.25))
            _flower(layer, rng, head, 0.12 * size * rng.uniform(0.7, 1.15), light, base)
        canvas = layer.over(canvas, defocus)
    return canvas * (1.45, 1.35, 1.2)
