"""Still lifes: a small ray tracer with an area light, sky light, one mirror bounce and a lens of finite aperture.

Each pixel averages a few dozen rays that vary within the pixel, the lens, the light and the sky, so edges, depth of
field and soft shadows come out together. Rays are float64 arrays of shape (N, 3); y points up, the floor is y = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scene_noise import HEIGHT, WIDTH, Array, Rng, ease, mix

NEAR = 1e-4
BAND = 16
Paint = Callable[[Array], Array]
Colour = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Surface:
    """How a body looks: colour at a point (N, 3) given in its own coordinates, strength and sharpness of its gloss."""

    paint: Paint
    gloss: float = 0.04
    mirror: float = 1.0
    sharpness: float = 60.0
    glow: float = 0.0


class Rays:
    """Half lines, with the products of their coordinates that every ball needs."""

    def __init__(self, origin: Array, ray: Array) -> None:
        """Keep origins and unit directions, both (N, 3)."""
        self.origin, self.ray = origin, ray
        self.starts, self.both, self.steps = origin * origin, origin * ray, ray * ray

    def __len__(self) -> int:
        """Return the number of rays."""
        return len(self.ray)

    def axis(self, number: int) -> tuple[Array, Array]:
        """Return one coordinate of the origins and one of the directions."""
        return self.origin[:, number], _no_zero(self.ray[:, number])


def _no_zero(values: Array) -> Array:
    return np.where(abs(values) < 1e-9, 1e-9, values)


@dataclass(frozen=True, kw_only=True)
class Ball:
    """An ellipsoid with its half axes."""

    centre: Colour
    axes: Colour
    surface: Surface

    def hit(self, rays: Rays) -> Array:
        """Return the distance along each ray, infinite where it misses."""
        weight = 1.0 / np.square(self.axes)
        shift = weight * self.centre
        # |(origin + t ray - centre) / axes| = 1, multiplied out: the coordinates enter through dot products only.
        a, b = rays.steps @ weight, rays.both @ weight - rays.ray @ shift
        c = rays.starts @ weight - rays.origin @ (2 * shift) + shift @ np.asarray(self.centre) - 1.0
        inside = b * b - a * c
        found = np.full(len(rays), np.inf)
        some = np.flatnonzero(inside > 0)
        root = np.sqrt(inside[some])
        first, last = (-b[some] - root) / a[some], (-b[some] + root) / a[some]
        best = np.where(first > NEAR, first, last)
        found[some] = np.where(best > NEAR, best, np.inf)
        return found

    def local(self, point: Array) -> Array:
        """Return points of its surface as vectors from the centre, in half axes."""
        return (point - self.centre) / self.axes

    def normal(self, local: Array) -> Array:
        """Return the outward direction at points of the surface."""
        return unit(local / self.axes)


@dataclass(frozen=True, kw_only=True)
class Can:
    """An upright cylinder that stands at ``centre`` (its bottom), closed at both ends."""

    centre: Colour
    radius: float
    height: float
    surface: Surface

    def hit(self, rays: Rays) -> Array:
        """Return the distance along each ray, infinite where it misses."""
        (x, step_x), (y, step_y), (z, step_z) = (rays.axis(number) for number in range(3))
        x, y, z = x - self.centre[0], y - self.centre[1], z - self.centre[2]
        a, b = step_x * step_x + step_z * step_z, x * step_x + z * step_z
        inside = b * b - a * (x * x + z * z - self.radius**2)
        side = (-b - np.sqrt(np.maximum(inside, 0.0))) / a
        level = y + side * step_y
        best = np.where((inside > 0) & (side > NEAR) & (level > 0) & (level < self.height), side, np.inf)
        for end in (0.0, self.height):
            lid = (end - y) / step_y
            covered = (x + lid * step_x) ** 2 + (z + lid * step_z) ** 2 < self.radius**2
            best = np.where(covered & (lid > NEAR) & (lid < best), lid, best)
        return best

    def local(self, point: Array) -> Array:
        """Return points of its surface relative to the middle of the bottom."""
        return np.asarray(point - np.asarray(self.centre))

    def normal(self, local: Array) -> Array:
        """Return the outward direction at points of the surface."""
        side = unit(local * (1.0, 0.0, 1.0))
        top = local[:, 1:2] > self.height - 10 * NEAR
        return np.asarray(np.where(top, (0.0, 1.0, 0.0), side))


@dataclass(frozen=True, kw_only=True)
class Box:
    """A box around ``centre`` with half edges ``half``, turned by ``turn`` degrees about the vertical."""

    centre: Colour
    half: Colour
    turn: float
    surface: Surface

    def _turn(self, sign: float) -> Array:
        angle = np.radians(self.turn) * sign
        cosine, sine = np.cos(angle), np.sin(angle)
        return np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]]).T

    def hit(self, rays: Rays) -> Array:
        """Return the distance along each ray, infinite where it misses."""
        turn = self._turn(-1)
        start, step = (rays.origin - self.centre) @ turn, _no_zero(rays.ray @ turn)
        enter, leave = np.full(len(rays), -np.inf), np.full(len(rays), np.inf)
        for axis, half in enumerate(self.half):
            middle, reach = -start[:, axis] / step[:, axis], half / abs(step[:, axis])
            enter, leave = np.maximum(enter, middle - reach), np.minimum(leave, middle + reach)
        return np.where((enter < leave) & (enter > NEAR), enter, np.inf)

    def local(self, point: Array) -> Array:
        """Return points of its surface relative to the centre, with its edges along the axes."""
        return (point - self.centre) @ self._turn(-1)

    def normal(self, local: Array) -> Array:
        """Return the outward direction at points of the surface."""
        share = local / self.half
        axis = abs(share).argmax(1)
        normal = np.zeros_like(local)
        normal[np.arange(len(axis)), axis] = np.sign(share[np.arange(len(axis)), axis])
        return normal @ self._turn(1)


@dataclass(frozen=True, kw_only=True)
class Plane:
    """An endless plane: the floor (axis 1) or a wall facing the camera (axis 2) at the given coordinate."""

    axis: int
    at: float
    surface: Surface

    def hit(self, rays: Rays) -> Array:
        """Return the distance along each ray, infinite where it misses."""
        start, step = rays.axis(self.axis)
        found = (self.at - start) / step
        return np.where((found > NEAR) & (found < 200.0), found, np.inf)

    def local(self, point: Array) -> Array:
        """Return the points unchanged."""
        return point

    def normal(self, local: Array) -> Array:
        """Return the direction towards the camera's side."""
        normal = np.zeros_like(local)
        normal[:, self.axis] = 1.0 if self.axis == 1 else -1.0
        return normal


Body = Ball | Can | Box | Plane


@dataclass(frozen=True, kw_only=True)
class Studio:
    """Everything in front of the camera, the light and the camera itself."""

    bodies: Sequence[Body]
    lamp: Colour
    lamp_size: float
    lamp_light: Colour
    sky_low: Colour
    sky_high: Colour
    eye: Colour
    target: Colour
    zoom: float
    aperture: float
    focus: float
    rays: int = 40

    def surrounding(self, ray: Array) -> Array:
        """Return the light that comes from outside: a gradient and, in reflections, a soft window."""
        colour = mix(np.broadcast_to(self.sky_low, ray.shape), self.sky_high, ease(ray[:, 1], -0.1, 0.9))
        toward = unit(np.asarray(self.lamp)[None, :])[0]
        window = ease(ray @ toward, 0.955, 0.975)
        return np.asarray(colour + window[:, None] * 1.6 * np.asarray(self.lamp_light) / max(self.lamp_light))


def unit(vector: Array) -> Array:
    """Return vectors (N, 3) of length 1."""
    return np.asarray(vector / np.maximum(np.sqrt(_dot(vector, vector)), 1e-12)[:, None])


def _dot(first: Array, second: Array) -> Array:
    return np.asarray(np.einsum("ij,ij->i", first, second))


def nearest(bodies: Sequence[Body], origin: Array, ray: Array) -> tuple[Array, Array]:
    """Return the distance of the first hit (infinite for none) and the number of the body that is hit."""
    best, which, rays = np.full(len(ray), np.inf), np.zeros(len(ray)), Rays(origin, ray)
    for number, body in enumerate(bodies):
        found = body.hit(rays)
        closer = np.flatnonzero(found < best)
        best[closer], which[closer] = found[closer], number
    return best, which


def _surface(studio: Studio, point: Array, which: Array) -> tuple[Array, Array, Array]:
    """Return normals, colours and (gloss, mirror, sharpness, glow) of the hit points."""
    normal, colour, finish = np.zeros_like(point), np.zeros_like(point), np.zeros((len(point), 4))
    for number, body in enumerate(studio.bodies):
        mine = which == number
        if mine.any():
            local, look = body.local(point[mine]), body.surface
            normal[mine], colour[mine] = body.normal(local), look.paint(local)
            finish[mine] = (look.gloss, look.mirror, look.sharpness, look.glow)
    return normal, colour, finish


def shade(studio: Studio, origin: Array, ray: Array, rng: Rng, bounce: bool = True) -> Array:
    """Return the light (N, 3) that arrives along the rays."""
    light = studio.surrounding(ray)
    distance, which = nearest(studio.bodies, origin, ray)
    hit = np.isfinite(distance)
    if not hit.any():
        return light
    ray, which = ray[hit], which[hit]
    point = origin[hit] + distance[hit][:, None] * ray
    normal, colour, finish = _surface(studio, point, which)
    point = point + 2 * NEAR * normal
    lamp = np.asarray(studio.lamp) + studio.lamp_size * rng.uniform(-1, 1, point.shape)
    to_lamp = lamp - point
    reach = np.sqrt(_dot(to_lamp, to_lamp))
    to_lamp /= reach[:, None]
    free = nearest(studio.bodies, point, to_lamp)[0] > reach
    strength = free * (np.linalg.norm(studio.lamp) / reach) ** 2
    lit = np.clip(_dot(normal, to_lamp), 0, 1) * strength
    shine = np.clip(_dot(normal, unit(to_lamp - ray)), 0, 1) ** finish[:, 2] * strength
    seen = colour * (lit[:, None] * studio.lamp_light + _ambient(studio, point, normal, rng))
    seen = seen + (finish[:, 0] * shine)[:, None] * 3.0 * np.asarray(studio.lamp_light) + finish[:, 3:] * colour
    if bounce:
        seen = _polished(studio, seen, point, ray, normal, finish, rng)
    light[hit] = seen
    return light


def _ambient(studio: Studio, point: Array, normal: Array, rng: Rng) -> Array:
    """Return sky light by one random direction per point; where a body is in the way, a part of that body's colour."""
    ray = unit(normal + unit(rng.standard_normal(normal.shape)) * 0.999)
    distance, which = nearest(studio.bodies, point, ray)
    light = mix(np.broadcast_to(studio.sky_low, ray.shape), studio.sky_high, ease(ray[:, 1], -0.1, 0.9))
    hit = np.isfinite(distance)
    if hit.any():
        where = point[hit] + distance[hit][:, None] * ray[hit]
        light[hit] = _surface(studio, where, which[hit])[1] * (0.35 * np.asarray(studio.sky_high))
    return light


def _polished(studio: Studio, seen: Array, point: Array, ray: Array, normal: Array, finish: Array, rng: Rng) -> Array:
    """Add what a polished surface mirrors, more at grazing angles (Schlick 1994)."""
    facing = np.clip(-_dot(ray, normal), 0, 1)
    share = finish[:, 1] * (finish[:, 0] + (1 - finish[:, 0]) * (1 - facing) ** 5)
    polished = share > 0.004
    if polished.any():
        rough = 0.5 / finish[polished, 2:3]
        bent = ray[polished] + 2 * facing[polished][:, None] * normal[polished]
        bent = unit(bent + rough * rng.standard_normal(bent.shape))
        mirrored = shade(studio, point[polished], bent, rng, bounce=False)
        seen[polished] = mix(seen[polished], mirrored, share[polished])
    return seen


def photograph(studio: Studio, rng: Rng) -> Array:
    """Return the picture (HEIGHT, WIDTH, 3) in linear light."""
    ahead = unit(np.asarray(studio.target)[None] - studio.eye)[0]
    right = unit(np.cross((0.0, 1.0, 0.0), ahead)[None])[0]
    up = np.cross(ahead, right)
    picture = np.empty((HEIGHT, WIDTH, 3))
    # In bands, so that a band's arrays stay in the processor's cache.
    for top in range(0, HEIGHT, BAND):
        rows, columns = (axis.ravel() for axis in np.mgrid[top : top + BAND, 0:WIDTH].astype(np.float64))
        total = np.zeros((len(rows), 3))
        shift = rng.random((2, len(rows)))
        for number in range(studio.rays):
            x = (columns + rng.random(len(rows)) - WIDTH / 2) / (WIDTH * studio.zoom)
            y = (HEIGHT / 2 - rows - rng.random(len(rows))) / (WIDTH * studio.zoom)
            ray = ahead + x[:, None] * right + y[:, None] * up
            # Points that fill the lens evenly (Roberts' R2 sequence), shifted at random from pixel to pixel.
            turn, share = (shift + number * np.array([[0.7548776662466927], [0.5698402909980532]])) % 1.0
            angle, radius = 2 * np.pi * turn, studio.aperture * np.sqrt(share)
            lens = (radius * np.cos(angle))[:, None] * right + (radius * np.sin(angle))[:, None] * up
            light = shade(studio, np.asarray(studio.eye) + lens, unit(ray * studio.focus - lens), rng)
            # A cap on single rays keeps rare bright ones from standing out as white dots.
            total += np.minimum(light, 6.0)
        picture[top : top + BAND] = (total / studio.rays).reshape(-1, WIDTH, 3)
    return picture
