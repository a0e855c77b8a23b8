"""The still lifes: what lies on the tables that `scene_objects` photographs."""

from __future__ import annotations

import numpy as np
from scene_noise import Array, Rng, ease, fractal, lattice, mix, ramp, sample
from scene_objects import Ball, Body, Box, Can, Colour, Paint, Plane, Studio, Surface, photograph


def plain(*colour: float) -> Paint:
    """Return a painter of one colour."""
    return lambda local: np.broadcast_to(colour, local.shape)


def wood(rng: Rng, dark: Colour, pale: Colour, scale: float, plank: float) -> Paint:
    """Return planks along x with drawn-out grain, each of its own tone, with dark joints."""
    grain = fractal(rng, (1024, 1024), 1.7, (1.0, 14.0)) + 0.7 * fractal(rng, (1024, 1024), 2.4, (1.0, 7.0))
    tones, shifts = rng.normal(0, 0.6, 64), rng.uniform(0, 1024, (2, 64))

    def paint(local: Array) -> Array:
        number = np.floor(local[:, 2] / plank).astype(int) % 64
        inside = local[:, 2] / plank % 1.0
        value = sample(grain, local[:, 2] * scale + shifts[0][number], local[:, 0] * scale + shifts[1][number])
        colour = ramp(value + tones[number], (-2.6, 2.6), (dark, pale))
        return colour * (1 - 0.8 * ease(abs(inside - 0.5), 0.488, 0.496))[:, None]

    return paint


def mottled(rng: Rng, dark: Colour, pale: Colour, slope: float = 2.0, scale: float = 120.0) -> Paint:
    """Return a painter of irregular patches, for balls (by direction) and for planes alike."""
    field = fractal(rng, (512, 512), slope)

    def paint(local: Array) -> Array:
        value = sample(field, (local[:, 1] + 0.37 * local[:, 2]) * scale, (local[:, 0] - 0.61 * local[:, 2]) * scale)
        return ramp(value, (-2.4, 2.4), (dark, pale))

    return paint


def apple(rng: Rng, skin: Colour, cheek: Colour) -> Paint:
    """Return apple skin: streaks from pole to pole, a redder cheek, pale dots, a dark hollow at the stalk."""
    streaks, dots = fractal(rng, (256, 512), 1.6, (7.0, 1.0)), lattice(rng, (512, 512), (60, 60))

    def paint(local: Array) -> Array:
        longitude = np.arctan2(local[:, 2], local[:, 0]) / (2 * np.pi)
        value = sample(streaks, (local[:, 1] + 1) * 100, longitude * 512)
        side = ease(0.45 * value + 0.9 * local[:, 0] + 0.4 * local[:, 1], -0.8, 0.7)
        colour = mix(np.broadcast_to(skin, local.shape), cheek, side)
        pale = ease(sample(dots, (local[:, 1] + 1) * 200, longitude * 512), 1.5, 1.9)
        colour = mix(colour, (0.75, 0.65, 0.35), 0.5 * pale)
        return mix(colour, (0.12, 0.10, 0.03), ease(local[:, 1], 0.955, 0.995))

    return paint


def striped(colours: list[Colour], period: float, axis: int) -> Paint:
    """Return bands of colour along one axis."""
    table = np.asarray(colours)
    return lambda local: table[np.floor(local[:, axis] / period).astype(int) % len(table)]


def fruit_table(rng: Rng) -> Array:
    """Photograph fruit and a bowl-like cup on a wooden table by a window, with shallow depth of field."""
    red, green = apple(rng, (0.50, 0.30, 0.06), (0.42, 0.03, 0.02)), apple(rng, (0.30, 0.36, 0.05), (0.42, 0.30, 0.06))
    peel = mottled(rng, (0.72, 0.22, 0.015), (0.85, 0.36, 0.03), 0.4, 260.0)
    lemon = mottled(rng, (0.75, 0.52, 0.03), (0.86, 0.66, 0.08), 0.6, 200.0)
    grape = mottled(rng, (0.05, 0.012, 0.04), (0.16, 0.04, 0.10), 2.0, 60.0)
    waxed = {"gloss": 0.06, "sharpness": 45.0}
    bodies: list[Body] = [
        Plane(
            axis=1,
            at=0.0,
            surface=Surface(
                paint=wood(rng, (0.10, 0.045, 0.018), (0.38, 0.20, 0.09), 210, 0.62), gloss=0.03, sharpness=18
            ),
        ),
        Plane(axis=2, at=5.5, surface=Surface(paint=mottled(rng, (0.20, 0.23, 0.24), (0.30, 0.33, 0.33), 3.0, 40))),
        Ball(centre=(-0.55, 0.42, 0.1), axes=(0.45, 0.42, 0.45), surface=Surface(paint=red, **waxed)),
        Ball(centre=(0.32, 0.40, 0.55), axes=(0.43, 0.40, 0.43), surface=Surface(paint=green, **waxed)),
        Ball(
            centre=(0.55, 0.36, -0.45), axes=(0.37, 0.36, 0.37), surface=Surface(paint=peel, gloss=0.04, sharpness=25)
        ),
        Ball(centre=(-0.2, 0.26, -0.75), axes=(0.38, 0.26, 0.27), surface=Surface(paint=lemon, gloss=0.04)),
        Can(
            centre=(-1.25, 0.0, 1.1),
            radius=0.42,
            height=0.95,
            surface=Surface(paint=striped([(0.75, 0.72, 0.66)] * 5 + [(0.08, 0.14, 0.30)], 0.13, 1), gloss=0.05),
        ),
        Can(
            centre=(1.5, 0.0, 1.9), radius=0.33, height=1.5, surface=Surface(paint=plain(0.03, 0.10, 0.05), gloss=0.08)
        ),
        Can(centre=(-0.53, 0.80, 0.1), radius=0.018, height=0.16, surface=Surface(paint=plain(0.06, 0.04, 0.02))),
    ]
    for number in range(16):
        spot = rng.uniform(-0.32, 0.32, 2)
        layer = 0.12 + 0.17 * (number // 9)
        bodies.append(
            Ball(
                centre=(1.25 + 0.7 * spot[0], layer, -0.05 + 0.8 * spot[1]),
                axes=(0.13, 0.13, 0.13),
                surface=Surface(paint=grape, gloss=0.06, sharpness=70),
            )
        )
    studio = Studio(
        bodies=bodies,
        lamp=(-4.2, 4.2, -1.6),
        lamp_size=0.7,
        lamp_light=(2.3, 2.1, 1.75),
        sky_low=(0.10, 0.09, 0.08),
        sky_high=(0.36, 0.40, 0.46),
        eye=(0.3, 1.75, -4.4),
        target=(0.1, 0.42, 0.1),
        zoom=1.35,
        aperture=0.075,
        focus=4.45,
    )
    return photograph(studio, rng)


def marbles(rng: Rng) -> Array:
    """Photograph glossy balls of many sizes on dark tiles."""
    palette: list[tuple[Colour, Colour]] = [
        ((0.02, 0.10, 0.40), (0.10, 0.45, 0.75)),
        ((0.45, 0.02, 0.03), (0.80, 0.25, 0.05)),
        ((0.02, 0.22, 0.08), (0.35, 0.55, 0.10)),
        ((0.60, 0.58, 0.52), (0.85, 0.84, 0.80)),
        ((0.20, 0.02, 0.25), (0.65, 0.20, 0.45)),
        ((0.55, 0.30, 0.02), (0.85, 0.65, 0.15)),
    ]
    speckle = fractal(rng, (512, 512), 1.4)

    def tiles(local: Array) -> Array:
        base = ramp(
            sample(speckle, local[:, 2] * 90, local[:, 0] * 90), (-2.5, 2.5), ((0.03, 0.035, 0.04), (0.13, 0.13, 0.13))
        )
        joint = np.maximum(abs(local[:, 0] / 0.9 % 1 - 0.5), abs(local[:, 2] / 0.9 % 1 - 0.5))
        return mix(base, (0.34, 0.33, 0.31), ease(joint, 0.485, 0.49))

    bodies: list[Body] = [Plane(axis=1, at=0.0, surface=Surface(paint=tiles, gloss=0.07, sharpness=90))]
    placed: list[tuple[float, float, float]] = []
    while len(placed) < 26:
        radius = float(np.clip(0.13 / rng.random() ** 0.45, 0.13, 0.55))
        x, z = rng.uniform(-2.4, 2.4), rng.uniform(-1.6, 4.2)
        if all(np.hypot(x - a, z - b) > 1.02 * (radius + c) for a, b, c in placed):
            placed.append((x, z, radius))
            dark, pale = palette[len(placed) % len(palette)]
            look = Surface(paint=mottled(rng, dark, pale, 3.2, 70), gloss=0.07, sharpness=220)
            bodies.append(Ball(centre=(x, radius, z), axes=(radius, radius, radius), surface=look))
    studio = Studio(
        bodies=bodies,
        lamp=(3.4, 5.2, -1.0),
        lamp_size=0.9,
        lamp_light=(2.0, 1.95, 1.85),
        sky_low=(0.16, 0.15, 0.14),
        sky_high=(0.42, 0.46, 0.52),
        eye=(-0.4, 1.9, -4.6),
        target=(0.0, 0.15, 0.6),
        zoom=1.25,
        aperture=0.05,
        focus=4.6,
    )
    return photograph(studio, rng)


def toy_blocks(rng: Rng) -> Array:
    """Photograph painted building blocks on a carpet-like mat in warm afternoon light."""
    bodies: list[Body] = [
        Plane(
            axis=1,
            at=0.0,
            surface=Surface(paint=mottled(rng, (0.30, 0.27, 0.23), (0.56, 0.52, 0.46), 0.7, 95), gloss=0, mirror=0),
        ),
        Plane(
            axis=2,
            at=4.6,
            surface=Surface(paint=striped([(0.36, 0.44, 0.42), (0.42, 0.50, 0.47)], 0.55, 0), gloss=0.01),
        ),
    ]
    colours: list[Colour] = [
        (0.55, 0.05, 0.04),
        (0.05, 0.16, 0.45),
        (0.70, 0.48, 0.05),
        (0.06, 0.30, 0.10),
        (0.52, 0.34, 0.18),
    ]
    places = [
        (-1.1, 0.3, 0.2, 14),
        (-0.38, 0.3, 0.35, -8),
        (-0.75, 0.9, 0.28, 24),
        (0.85, 0.3, -0.3, 38),
        (1.5, 0.3, 0.8, -20),
        (0.35, 0.3, 1.5, 5),
        (1.05, 0.3, 1.7, -12),
        (0.72, 0.9, 1.6, 16),
        (-1.9, 0.3, 1.4, 33),
        (-0.1, 0.18, -1.0, 55),
    ]
    for number, (x, y, z, turn) in enumerate(places):
        scratch = [tuple(np.array(colours[number % 5]) * f) for f in (0.82, 1.12)]
        half = (0.3, 0.3, 0.3) if y != 0.18 else (0.45, 0.18, 0.18)
        paint = mottled(rng, scratch[0], scratch[1], 1.8, 150)
        bodies.append(
            Box(centre=(x, y, z), half=half, turn=turn, surface=Surface(paint=paint, gloss=0.03, sharpness=30))
        )
    bodies.append(
        Ball(
            centre=(0.1, 0.36, 0.1),
            axes=(0.36, 0.36, 0.36),
            surface=Surface(paint=striped([(0.70, 0.68, 0.62), (0.62, 0.10, 0.08)], 0.5, 1), gloss=0.05),
        )
    )
    bodies.append(
        Can(centre=(-1.75, 0.0, -0.5), radius=0.28, height=0.75, surface=Surface(paint=plain(0.62, 0.42, 0.24)))
    )
    studio = Studio(
        bodies=bodies,
        lamp=(4.6, 4.0, -3.2),
        lamp_size=0.35,
        lamp_light=(2.6, 2.15, 1.5),
        sky_low=(0.14, 0.13, 0.12),
        sky_high=(0.32, 0.36, 0.44),
        eye=(-0.7, 1.9, -4.3),
        target=(0.0, 0.4, 0.3),
        zoom=1.15,
        aperture=0.03,
        focus=4.4,
    )
    return photograph(studio, rng)


def night_lights(rng: Rng) -> Array:
    """Photograph cups on a bar by night, in front of lamps far out of focus."""
    bodies: list[Body] = [
        Plane(
            axis=1,
            at=0.0,
            surface=Surface(
                paint=wood(rng, (0.05, 0.025, 0.012), (0.20, 0.10, 0.05), 210, 0.9), gloss=0.06, sharpness=30
            ),
        ),
        Can(
            centre=(-0.45, 0.0, 0.0),
            radius=0.42,
            height=0.85,
            surface=Surface(paint=plain(0.62, 0.58, 0.52), gloss=0.06),
        ),
        Can(
            centre=(-0.45, 0.80, 0.0),
            radius=0.36,
            height=0.0501,
            surface=Surface(paint=plain(0.07, 0.03, 0.012), gloss=0.05),
        ),
        Can(
            centre=(-0.45, 0.0, 0.0),
            radius=0.75,
            height=0.05,
            surface=Surface(paint=plain(0.60, 0.57, 0.52), gloss=0.06),
        ),
        Can(
            centre=(0.85, 0.0, 0.55),
            radius=0.28,
            height=1.25,
            surface=Surface(paint=plain(0.10, 0.04, 0.02), gloss=0.08),
        ),
        Ball(
            centre=(0.45, 0.14, -0.75),
            axes=(0.24, 0.14, 0.16),
            surface=Surface(paint=mottled(rng, (0.25, 0.12, 0.05), (0.50, 0.28, 0.13), 1.2, 200)),
        ),
        Plane(axis=2, at=16.0, surface=Surface(paint=mottled(rng, (0.006, 0.009, 0.018), (0.03, 0.03, 0.04), 2.6, 9))),
    ]
    warm: list[Colour] = [(1.0, 0.62, 0.25), (1.0, 0.85, 0.55), (0.95, 0.30, 0.18), (0.45, 0.65, 1.0), (0.4, 0.9, 0.6)]
    for _ in range(34):
        x, y, z = rng.uniform(-6, 6), rng.uniform(1.3, 5.4), rng.uniform(9, 15)
        colour = warm[int(rng.choice(5, p=(0.35, 0.3, 0.12, 0.13, 0.1)))]
        bodies.append(
            Ball(
                centre=(x, y, z),
                axes=(0.2, 0.2, 0.2),
                surface=Surface(paint=plain(*colour), gloss=0, mirror=0, glow=2.0),
            )
        )
    studio = Studio(
        bodies=bodies,
        lamp=(-2.2, 3.2, -1.8),
        lamp_size=0.5,
        lamp_light=(1.35, 1.0, 0.62),
        sky_low=(0.03, 0.028, 0.03),
        sky_high=(0.06, 0.065, 0.085),
        eye=(0.25, 1.35, -4.2),
        target=(0.1, 0.75, 0.0),
        zoom=1.3,
        aperture=0.14,
        focus=4.2,
        rays=64,
    )
    return photograph(studio, rng)


def garden_wall(rng: Rng) -> Array:
    """Photograph clay pots and gourds on paving in front of a whitewashed brick wall in hard sun."""
    field = fractal(rng, (512, 512), 1.6)
    tones = rng.normal(0, 1, (64, 64))

    def bricks(local: Array) -> Array:
        row = np.floor(local[:, 1] / 0.24).astype(int)
        along = local[:, 0] / 0.62 + 0.5 * (row % 2)
        tone = tones[row % 64, np.floor(along).astype(int) % 64]
        rough = sample(field, local[:, 1] * 160, local[:, 0] * 160)
        colour = ramp(tone + 0.7 * rough, (-3, 3), ((0.36, 0.28, 0.22), (0.78, 0.70, 0.60)))
        joint = np.minimum((0.5 - abs(along % 1 - 0.5)) * 0.62, (0.5 - abs(local[:, 1] / 0.24 % 1 - 0.5)) * 0.24)
        colour = mix(colour, (0.30, 0.25, 0.21), ease(joint + 0.004 * rough, 0.018, 0.008))
        return mix(colour, (0.30, 0.31, 0.22), 0.5 * ease(local[:, 1] + 0.12 * rough, 0.45, 0.0))

    clay, pale = (
        mottled(rng, (0.30, 0.10, 0.05), (0.50, 0.22, 0.12), 1.8, 110),
        mottled(rng, (0.5, 0.36, 0.2), (0.62, 0.5, 0.32), 2, 90),
    )
    bodies: list[Body] = [
        Plane(
            axis=1,
            at=0.0,
            surface=Surface(paint=mottled(rng, (0.22, 0.20, 0.17), (0.48, 0.44, 0.38), 1.3, 80), gloss=0, mirror=0),
        ),
        Plane(axis=2, at=1.5, surface=Surface(paint=bricks, gloss=0, mirror=0)),
        Ball(centre=(-1.9, 0.72, 0.65), axes=(0.62, 0.70, 0.62), surface=Surface(paint=clay, gloss=0.01, sharpness=12)),
        Can(centre=(-1.9, 1.25, 0.65), radius=0.36, height=0.22, surface=Surface(paint=clay, gloss=0.01)),
        Can(centre=(0.1, 0.0, 0.75), radius=0.45, height=0.62, surface=Surface(paint=clay, gloss=0.01)),
        Can(centre=(0.1, 0.62, 0.75), radius=0.52, height=0.16, surface=Surface(paint=clay, gloss=0.01)),
        Ball(
            centre=(1.2, 0.30, 0.1),
            axes=(0.48, 0.31, 0.40),
            surface=Surface(
                paint=mottled(rng, (0.55, 0.22, 0.03), (0.72, 0.36, 0.06), 2.6, 80), gloss=0.03, sharpness=25
            ),
        ),
        Ball(centre=(1.95, 0.24, 0.55), axes=(0.26, 0.24, 0.26), surface=Surface(paint=pale, gloss=0.03)),
        Box(
            centre=(2.1, 0.4, 1.15),
            half=(0.42, 0.4, 0.3),
            turn=8,
            surface=Surface(paint=wood(rng, (0.14, 0.10, 0.07), (0.36, 0.28, 0.20), 180, 0.2), gloss=0.01),
        ),
        Ball(centre=(-0.75, 0.16, -0.2), axes=(0.17, 0.16, 0.17), surface=Surface(paint=pale, gloss=0.03)),
    ]
    bodies.append(
        Can(centre=(0.1, 0.7, 0.75), radius=0.028, height=0.35, surface=Surface(paint=plain(0.10, 0.06, 0.03)))
    )
    bush = Surface(paint=mottled(rng, (0.012, 0.035, 0.008), (0.07, 0.13, 0.03), 1.0, 110), gloss=0, mirror=0)
    bodies.append(Ball(centre=(0.1, 1.12, 0.75), axes=(0.34, 0.22, 0.3), surface=bush))
    for _ in range(90):
        toward = rng.standard_normal(3) + (0.0, 0.3, -0.5)
        spot = toward / np.linalg.norm(toward) * (0.38, 0.27, 0.33) * rng.uniform(0.85, 1.2) + (0.1, 1.12, 0.75)
        x, y, z = (float(value) for value in spot)
        size = rng.uniform(0.06, 0.12)
        leaf = mottled(rng, (0.03, 0.09, 0.015), (0.16, 0.26, 0.05), 2.0, 60)
        bodies.append(
            Ball(centre=(x, y, z), axes=(size, 0.45 * size, 0.8 * size), surface=Surface(paint=leaf, gloss=0.02))
        )
    studio = Studio(
        bodies=bodies,
        lamp=(-6.5, 8.0, -7.0),
        lamp_size=0.25,
        lamp_light=(2.2, 1.95, 1.6),
        sky_low=(0.20, 0.19, 0.18),
        sky_high=(0.34, 0.44, 0.60),
        eye=(0.2, 1.35, -5.2),
        target=(0.05, 0.75, 0.6),
        zoom=1.25,
        aperture=0.012,
        focus=5.6,
        rays=24,
    )
    return photograph(studio, rng)
