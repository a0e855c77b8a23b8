"""Landscapes: a lit height map seen in perspective, under a sky with clouds, with haze and still or rippled water."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scene_noise import HEIGHT, WIDTH, Array, Rng, blur, ease, fractal, lattice, mix, ramp, ridges, sample, slopes
from scipy import ndimage

MAP = 1536
ROWS, COLUMNS = 2 * HEIGHT, 2 * WIDTH
# The camera looks along +z; one map is 1.5 wide, so a map cell is about a pixel at the distance of 1.
SPAN = 1.5
FOCAL = 0.95 * COLUMNS


@dataclass(frozen=True, kw_only=True)
class Light:
    """Where the sun stands (degrees; azimuth 0 is ahead of the camera, 90 right), colours of sun, sky and haze."""

    azimuth: float
    elevation: float
    sun: tuple[float, float, float]
    shade: tuple[float, float, float]
    haze: tuple[float, float, float]
    haze_density: float
    zenith: tuple[float, float, float]
    horizon_colour: tuple[float, float, float]
    glow: float = 0.0
    clouds: float = 0.0
    cloud_colour: tuple[float, float, float] = (1.0, 1.0, 1.0)
    cloud_shade: tuple[float, float, float] = (0.5, 0.55, 0.65)

    def direction(self) -> Array:
        """Return the unit vector towards the sun as (right, up, ahead)."""
        azimuth, elevation = np.radians([self.azimuth, self.elevation])
        return np.array([np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])


def sunlit(height: Array, light: Light) -> Array:
    """Return the sun's share (MAP, MAP) on a height map: the angle of the slope times soft cast shadows."""
    cell = SPAN / MAP
    right, up, ahead = light.direction()
    normal = slopes(height, 1 / cell)
    angle = np.clip(normal[..., 0] * right + normal[..., 1] * ahead + normal[..., 2] * up, 0.0, 1.0)
    flat = np.hypot(right, ahead)
    free = np.ones_like(height)
    for reach in np.unique(np.geomspace(2, 260, 42).astype(int)):
        shift = (-round(ahead / flat * reach), -round(right / flat * reach))
        above = np.roll(height, shift, (0, 1)) - height - reach * cell * up / flat
        free = np.minimum(free, 1.0 - ease(above, 0.0, 0.25 * reach * cell * 0.3 + 0.0006))
    return np.asarray(angle * free)


def sky(rng: Rng, light: Light, horizon: float) -> Array:
    """Paint the whole canvas with sky: gradient, glow around the sun and a sheet of clouds in perspective."""
    rows, columns = np.meshgrid(np.arange(ROWS), np.arange(COLUMNS), indexing="ij")
    up = np.maximum(horizon - rows, 0.0) / FOCAL
    side = np.asarray((columns - COLUMNS / 2) / FOCAL, np.float64)
    picture = ramp(up, (0.0, 0.12, 0.5), (light.horizon_colour, mix_of(light, 0.55), light.zenith))
    sun = light.direction()
    view = np.stack([side, up, np.ones_like(up)], axis=-1)
    near = (view @ sun) / np.linalg.norm(view, axis=-1)
    if light.glow:
        glow = light.glow * (0.5 * ease(near, 0.6, 1.04) ** 3 + 1.5 * ease(near, 0.985, 1.0) ** 3)
        picture = picture + glow[..., None] * np.asarray(light.sun)
    if light.clouds:
        picture = clouded(rng, light, picture, up, side, near)
    return picture


def mix_of(light: Light, share: float) -> Array:
    """Return the colour between horizon and zenith."""
    return mix(np.asarray(light.horizon_colour), light.zenith, np.asarray(share))


def clouded(rng: Rng, light: Light, picture: Array, up: Array, side: Array, near: Array) -> Array:
    """Lay a cloud sheet over a sky: thick parts shaded, edges towards the sun bright, thinning to the horizon."""
    size = 1024
    field = fractal(rng, (size, size), 2.7) + 0.5 * fractal(rng, (size, size), 2.0)
    distance = 1.0 / (up + 0.09)
    row, column = distance * 52.0, side * distance * 60.0
    thick = sample(field, row, column, 3)
    lit = sample(blur(field, 4), row - 9.0, column + 10.0 * np.sign(light.azimuth or 1.0), 3)
    edge = 1.35 - 2.6 * light.clouds
    cover = ease(thick, edge - 0.25, edge + 0.75)
    dark = ease(0.7 * thick + 0.5 * lit, edge + 0.2, edge + 2.2)
    colour = mix(np.broadcast_to(light.cloud_colour, picture.shape), light.cloud_shade, dark)
    colour = colour + (0.6 * light.glow * ease(near, 0.6, 1.04) ** 2 * (1 - dark))[..., None] * np.asarray(light.sun)
    return mix(picture, colour, cover * ease(up, 0.0, 0.1) * 0.95)


@dataclass(frozen=True)
class View:
    """What every pixel sees: map position, depth, and whether it is ground at all."""

    row: Array
    column: Array
    depth: Array
    ground: Array


def look(height: Array, eye: float, horizon: float, nearest: float, farthest: float) -> View:
    """Find the first ground along every pixel's ray, column by column, by the running maximum of projected heights."""
    depth = np.geomspace(nearest, farthest, 1500)
    side = (np.arange(COLUMNS) - COLUMNS / 2) / FOCAL
    row = np.broadcast_to(depth[:, None] / SPAN * MAP, (len(depth), COLUMNS))
    column = (depth[:, None] * side[None, :] / SPAN + 0.5) * MAP
    seen = horizon - FOCAL * (sample(height, row, column) - eye) / depth[:, None]
    front = np.minimum.accumulate(seen, axis=0)
    place = np.empty((ROWS, COLUMNS))
    ground = np.zeros((ROWS, COLUMNS), bool)
    pixel = np.arange(ROWS, dtype=np.float64)
    steps = np.arange(len(depth), dtype=np.float64)
    for number in range(COLUMNS):
        # The running minimum falls with depth; its tiny tilt makes the inverse unique where something hides the rest.
        line = -(front[:, number] - 1e-6 * steps)
        place[:, number] = np.interp(-pixel, line, steps)
        ground[:, number] = pixel >= front[-1, number]
    found = np.interp(place, steps, depth)
    return View(found / SPAN * MAP, (found * side[None, :] / SPAN + 0.5) * MAP, found, ground.astype(np.float64))


Paint = Callable[[Array, Array, Rng], Array]


@dataclass(frozen=True, kw_only=True)
class Place:
    """A landscape: its height map, how its ground is coloured, and where the camera stands."""

    height: Array
    paint: Paint
    light: Light
    eye: float
    horizon: float
    nearest: float = 0.16
    farthest: float = 1.45
    water: float | None = None
    ripple: float = 1.0
    deep: tuple[float, float, float] = (0.02, 0.06, 0.08)


def landscape(place: Place, rng: Rng) -> Array:
    """Return the picture (2 HEIGHT, 2 WIDTH, 3) of a place in linear light."""
    light = place.light
    level = place.height if place.water is None else np.maximum(place.height, place.water)
    horizon = place.horizon * ROWS
    view = look(level, place.eye, horizon, place.nearest, place.farthest)
    colour = place.paint(place.height, slopes(place.height, MAP / SPAN)[..., 2], rng)
    lit = colour * (sunlit(level, light)[..., None] * np.asarray(light.sun) + np.asarray(light.shade))
    scene = sample(lit, view.row, view.column)
    fog = 1.0 - np.exp(-light.haze_density * np.maximum(view.depth - 0.5 * place.nearest, 0.0))
    scene = mix(scene, light.haze, fog)
    heaven = sky(rng, light, horizon)
    soft = ndimage.uniform_filter(view.ground, 2)
    scene = mix(heaven, scene, soft)
    if place.water is None:
        return scene
    wet = view.ground * (sample(place.height, view.row, view.column) < place.water)
    return mix(scene, _mirrored(place, scene, heaven, view, rng), wet)


def _mirrored(place: Place, scene: Array, heaven: Array, view: View, rng: Rng) -> Array:
    """Return the water's look: the picture mirrored at the horizon, shaken by ripples that grow towards the camera."""
    horizon = place.horizon * ROWS
    rows, columns = np.meshgrid(np.arange(ROWS), np.arange(COLUMNS), indexing="ij")
    below = np.maximum(rows - horizon, 0.5)
    waves = fractal(rng, (1024, 1024), 1.9, (1.0, 0.55))
    far = 2600.0 / below
    shake = sample(waves, far * 9.0, (columns - COLUMNS / 2) * far * 0.018)
    shake *= place.ripple * np.minimum(below * 0.11, 14.0)
    target = np.clip(horizon - below + shake, 0, horizon - 1)
    mirrored = np.stack(
        [
            ndimage.map_coordinates(plane, [target, columns + 0.3 * shake], order=1, mode="nearest")
            for plane in np.moveaxis(scene, 2, 0)
        ],
        axis=-1,
    )
    steep = below / FOCAL
    share = 0.25 + 0.72 * np.exp(-2.6 * steep)
    return mix(np.broadcast_to(place.deep, mirrored.shape), mirrored * 0.92, share)


def _rock(height: Array, rng: Rng, dark: tuple[float, ...], pale: tuple[float, ...]) -> Array:
    """Return rock (MAP, MAP, 3): mottled, with tilted layers following the height."""
    mottle = fractal(rng, height.shape, 1.6)
    layers = np.sin(height * 420 + 1.5 * fractal(rng, height.shape, 3.0))
    return ramp(mottle + 0.5 * layers, (-2.5, 2.5), (dark, pale))


def alpine(snow_line: float, tree_line: float) -> Paint:
    """Return a painter of grass and forest low, rock on steep slopes and snow high up where it can lie."""

    def paint(height: Array, upright: Array, rng: Rng) -> Array:
        rough = fractal(rng, height.shape, 2.0)
        colour = _rock(height, rng, (0.10, 0.09, 0.085), (0.30, 0.28, 0.26))
        grass = ramp(rough, (-2, 2), ((0.05, 0.075, 0.02), (0.14, 0.15, 0.045)))
        colour = mix(colour, grass, ease(upright, 0.62, 0.8) * ease(height + 0.02 * rough, tree_line + 0.07, tree_line))
        trees = ramp(fractal(rng, height.shape, 0.6), (-2, 2), ((0.01, 0.022, 0.01), (0.04, 0.07, 0.022)))
        woods = ease(height + 0.03 * rough, tree_line + 0.01, tree_line - 0.02) * ease(upright, 0.5, 0.62)
        colour = mix(colour, trees, woods * ease(rough, -1.0, 0.0))
        snow = ease(height + 0.03 * rough, snow_line, snow_line + 0.06) * ease(upright, 0.42, 0.62)
        return mix(colour, (0.86, 0.88, 0.92), snow)

    return paint


def _axes() -> tuple[Array, Array]:
    """Return distance ahead (MAP, 1) and offset to the right (1, MAP) of the map's cells."""
    return np.arange(MAP)[:, None] / MAP * SPAN, (np.arange(MAP)[None, :] / MAP - 0.5) * SPAN


def mountain_lake(rng: Rng) -> Array:
    """Paint snow mountains behind a still lake on a clear morning."""
    ahead, right = _axes()
    shore = 0.62 + 0.07 * lattice(rng, (MAP, MAP), (5, 5)) - 0.25 * ease(abs(right), 0.2, 0.5)
    rise = ease(ahead, shore - 0.04, shore + 0.5)
    height = (
        (0.04 + 0.27 * rise) * ridges(rng, MAP, 5, 8, 0.52, 1.2) + 0.12 * rise - 0.04 * ease(ahead, shore, shore - 0.1)
    )
    light = Light(
        azimuth=-118,
        elevation=33,
        sun=(1.75, 1.5, 1.2),
        shade=(0.10, 0.14, 0.22),
        haze=(0.50, 0.60, 0.74),
        haze_density=0.22,
        zenith=(0.07, 0.18, 0.46),
        horizon_colour=(0.55, 0.66, 0.80),
        clouds=0.42,
        cloud_colour=(0.95, 0.92, 0.90),
        cloud_shade=(0.50, 0.54, 0.62),
    )
    place = Place(
        height=height, paint=alpine(0.135, 0.085), light=light, eye=0.055, horizon=0.56, water=0.02, ripple=0.5
    )
    return landscape(place, rng)


def dunes(rng: Rng) -> Array:
    """Paint desert dunes under a low warm sun."""
    ahead, right = _axes()
    bend = 0.55 * lattice(rng, (MAP, MAP), (3, 3)) + 0.2 * lattice(rng, (MAP, MAP), (7, 7))
    phase = (2.2 * right + 6.5 * ahead) / SPAN + bend
    saw = phase - np.floor(phase)
    crest = np.where(saw < 0.72, ease(saw, 0.0, 0.9) / ease(np.array(0.72), 0.0, 0.9), (1 - saw) / 0.28)
    tall = 0.75 + 0.35 * lattice(rng, (MAP, MAP), (5, 5))
    height = 0.085 * blur(crest * tall, 1.2) + 0.04 * lattice(rng, (MAP, MAP), (3, 3)) * ease(ahead, 0.4, 1.2)
    ripples = np.sin(2 * np.pi * (ahead * 260 / SPAN + 26 * right) + 2.2 * lattice(rng, (MAP, MAP), (24, 24)))
    height = height + 0.00022 * ripples
    light = Light(
        azimuth=-84,
        elevation=13,
        sun=(3.0, 2.0, 1.1),
        shade=(0.13, 0.15, 0.24),
        haze=(0.72, 0.58, 0.48),
        haze_density=0.35,
        zenith=(0.13, 0.25, 0.50),
        horizon_colour=(0.80, 0.66, 0.54),
        glow=0.12,
        clouds=0.16,
        cloud_colour=(1.0, 0.88, 0.76),
        cloud_shade=(0.70, 0.62, 0.62),
    )

    def paint(height: Array, upright: Array, rng: Rng) -> Array:
        speckle = fractal(rng, height.shape, 0.5)
        return ramp(speckle + fractal(rng, height.shape, 2.6), (-3, 3), ((0.45, 0.27, 0.13), (0.60, 0.41, 0.22)))

    place = Place(height=height, paint=paint, light=light, eye=0.20, horizon=0.36, nearest=0.2)
    return landscape(place, rng)


def green_hills(rng: Rng) -> Array:
    """Paint rolling farmland with hedges and woods under fair-weather clouds."""
    ahead, right = _axes()
    height = 0.035 * fractal(rng, (MAP, MAP), 3.6) * (0.5 + ease(ahead, 0.2, 1.0)) + 0.10 * ease(ahead, 0.5, 1.5)
    warp = 0.12 * lattice(rng, (MAP, MAP), (6, 6))
    cells_across, cells_ahead = (right + warp) * 9, (ahead + np.roll(warp, 500, 0)) * 11
    edge = np.minimum(abs(cells_across % 1 - 0.5), abs(cells_ahead % 1 - 0.5))
    hedge = ease(edge, 0.035, 0.015) * ease(fractal(rng, (MAP, MAP), 1.4), -1.0, 0.2)
    woods = ease(lattice(rng, (MAP, MAP), (9, 9)) + 0.4 * fractal(rng, (MAP, MAP), 2.0), 0.9, 1.05)
    green = np.maximum(hedge, woods)
    crowns = np.clip(fractal(rng, (MAP, MAP), 0.8) * 0.5 + 1.0, 0.2, 2.2)
    crowns = blur(crowns, 1.0)
    field = (np.floor(cells_across) * 7.13 + np.floor(cells_ahead) * 3.71) % 1.0
    light = Light(
        azimuth=62,
        elevation=34,
        sun=(1.45, 1.32, 1.08),
        shade=(0.17, 0.21, 0.27),
        haze=(0.56, 0.66, 0.78),
        haze_density=0.42,
        zenith=(0.09, 0.23, 0.55),
        horizon_colour=(0.58, 0.70, 0.84),
        clouds=0.56,
        cloud_colour=(1.05, 1.03, 1.0),
        cloud_shade=(0.42, 0.46, 0.54),
    )

    def paint(height: Array, upright: Array, rng: Rng) -> Array:
        stops = (0.0, 0.3, 0.5, 0.7, 0.85, 1.0)
        crops = (
            (0.09, 0.14, 0.03),
            (0.13, 0.20, 0.05),
            (0.20, 0.22, 0.06),
            (0.36, 0.30, 0.10),
            (0.07, 0.12, 0.03),
            (0.22, 0.15, 0.08),
        )
        furrows = 0.04 * np.sin(2 * np.pi * (cells_across * 9 + cells_ahead * 5 * np.round(field)))
        base = ramp(field, stops, crops) * (1 + furrows + 0.10 * fractal(rng, height.shape, 1.2))[..., None]
        leaves = ramp(fractal(rng, height.shape, 0.9), (-2, 2), ((0.012, 0.03, 0.008), (0.06, 0.085, 0.02)))
        return mix(base, leaves, np.clip(green, 0, 1))

    place = Place(height=height + 0.007 * green * crowns, paint=paint, light=light, eye=0.15, horizon=0.42, nearest=0.2)
    return landscape(place, rng)


def island_sunset(rng: Rng) -> Array:
    """Paint dark islands in a choppy sea against the setting sun."""
    ahead, right = _axes()
    bulk = lattice(rng, (MAP, MAP), (6, 6)) - 0.3 + 1.3 * ease(right, 0.02, 0.5) * ease(ahead, 0.45, 0.8)
    rock = ridges(rng, MAP, 6, 7, 0.5)
    height = 0.13 * ease(bulk, 0.35, 1.6) * (0.35 + rock) * ease(ahead, 0.38, 0.55) - 0.02 * ease(bulk, 0.6, 0.2)
    light = Light(
        azimuth=-9,
        elevation=5.5,
        sun=(2.4, 1.15, 0.42),
        shade=(0.17, 0.14, 0.19),
        haze=(0.80, 0.42, 0.24),
        haze_density=0.42,
        zenith=(0.10, 0.13, 0.30),
        horizon_colour=(0.95, 0.46, 0.20),
        glow=0.7,
        clouds=0.50,
        cloud_colour=(0.85, 0.42, 0.28),
        cloud_shade=(0.20, 0.15, 0.22),
    )
    place = Place(
        height=height,
        paint=alpine(2.0, 0.03),
        light=light,
        eye=0.045,
        horizon=0.52,
        nearest=0.1,
        water=0.004,
        ripple=2.6,
        deep=(0.03, 0.05, 0.09),
    )
    return landscape(place, rng)


def red_mesas(rng: Rng) -> Array:
    """Paint terraced red rock above a dry plain with scattered shrubs."""
    ahead, right = _axes()
    bulk = 0.9 * lattice(rng, (MAP, MAP), (5, 5)) + 0.28 * fractal(rng, (MAP, MAP), 3.0)
    bulk += 0.9 * ease(ahead, 0.6, 1.2) - 1.6 * ease(ahead, 0.62, 0.3)
    cliff = 0.45 * ease(bulk, 0.35, 0.45) + 0.35 * ease(bulk, 0.72, 0.80) + 0.25 * ease(bulk, 1.15, 1.22)
    height = 0.16 * (cliff + 0.16 * ease(bulk, -0.3, 1.4)) + 0.0035 * fractal(rng, (MAP, MAP), 3.2)
    spots = lattice(rng, (MAP, MAP), (260, 260)) + 0.8 * lattice(rng, (MAP, MAP), (12, 12))
    shrubs = ease(spots, 1.35, 1.75) * ease(bulk, 0.34, 0.28)
    light = Light(
        azimuth=128,
        elevation=27,
        sun=(2.0, 1.6, 1.15),
        shade=(0.15, 0.18, 0.26),
        haze=(0.58, 0.60, 0.68),
        haze_density=0.28,
        zenith=(0.08, 0.20, 0.50),
        horizon_colour=(0.60, 0.68, 0.78),
        clouds=0.33,
    )

    def paint(height: Array, upright: Array, rng: Rng) -> Array:
        strata = np.sin(height * 900 + 0.6 * fractal(rng, height.shape, 2.4)) + 0.6 * np.sin(height * 330 + 1.0)
        rock = ramp(strata, (-1.6, 0.2, 1.6), ((0.24, 0.085, 0.045), (0.42, 0.17, 0.085), (0.58, 0.33, 0.20)))
        sand = ramp(fractal(rng, height.shape, 1.5), (-2.5, 2.5), ((0.30, 0.16, 0.09), (0.46, 0.29, 0.17)))
        ground = mix(rock, sand, ease(upright, 0.72, 0.9))
        return mix(ground, (0.07, 0.085, 0.04), shrubs * 0.9)

    place = Place(height=height + 0.0022 * shrubs, paint=paint, light=light, eye=0.075, horizon=0.47, nearest=0.16)
    return landscape(place, rng)
