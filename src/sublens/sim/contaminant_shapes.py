"""Light of contaminants: galaxies, discs with spiral arms, rings and tidal tails.

What has no column in the truth is drawn again, when it is rendered, from the scene's `contaminant_seed`. Images of
discs, rings and tails have the scene's place of the source, and its angle.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.random import SFC64, Generator
from numpy.typing import NDArray

from sublens.lensing.sersic import sersic_total
from sublens.sim import galaxies
from sublens.sim.contaminants import STAMP_PIXEL
from sublens.sim.galaxies import GALAXY, MARGIN, SCALE_LENGTH, Glow, Rows
from sublens.surveys.contaminants import KINDS, Kind
from sublens.surveys.priors import Floats
from sublens.surveys.survey import Survey
from sublens.surveys.truth import Truth

STAMP_REACH = 4.0
"""Half of the side of the image of a disc, ring or tail, in sizes of the contaminant."""
AXIS = np.arange(-STAMP_REACH + STAMP_PIXEL / 2, STAMP_REACH, STAMP_PIXEL)
"""Middles of its pixels."""
TAIL = 40
"""Gaussians that make up a tidal tail."""
NONE = np.zeros((0, 0), np.float32)
"""An image without pixels."""
Reals = NDArray[np.float32]


class Frame(NamedTuple):
    """Place, sizes and light of a contaminant, and the generator of all else about it."""

    rng: Generator
    x: float
    y: float
    size: float
    """Half-light radius, or radius of the ring, arcsec."""
    separation: float
    """Distance between its galaxies, arcsec."""
    light: float
    """Electrons a pixel times square arcsec of its galaxies, without the image of a disc, ring or tail."""


def glows(truth: Truth, survey: Survey) -> list[Glow]:
    """Light of each scene beyond the profile of its source, contaminants included."""
    plain = galaxies.glows(truth.scenes, truth.extra, survey)
    if truth.extra is None or not truth.extra["contaminant"].any():
        return plain
    area, rows = survey.camera.pixel_scale**2, zip(plain, truth.scenes, truth.extra, strict=True)
    return [_glow(own, scene, more, area) if more["contaminant"] else own for own, scene, more in rows]


def _glow(plain: Glow, scene: np.void, more: np.void, area: float) -> Glow:
    """Light of a contaminant. plain: that of its scene. area: of a pixel, square arcsec."""
    kind = KINDS[int(more["contaminant"]) - 1]
    if kind == "quasars":
        return plain
    if kind == "fields":
        return Glow(plain.galaxies[:0], NONE)
    rng = Generator(SFC64((int(more["contaminant_seed"]), 0)))
    size, separation, electrons = (more[f"contaminant_{name}"] for name in ("size", "separation", "electrons"))
    frame = Frame(rng, scene["source_x"], scene["source_y"], size, separation, electrons * area)
    own, stamp = SHAPES[kind](frame)
    lit = (table[table["intensity"] > 0] for table in (plain.galaxies, own))
    return Glow(np.concatenate(list(lit), dtype=GALAXY), stamp)


Range = tuple[float, float]
"""Least and greatest value of a uniform draw."""


def _profiles(frame: Frame, shares: Floats, n: Range, r_eff: Range, q: Range) -> Rows:
    """Galaxies at the frame's middle that share its light; r_eff: in sizes of the contaminant."""
    rng, k = frame.rng, len(shares)
    table = np.zeros(k, GALAXY)
    table["x"], table["y"], table["reach"] = frame.x, frame.y, np.inf
    table["n"], table["q"], table["angle"] = rng.uniform(*n, k), rng.uniform(*q, k), rng.uniform(0, np.pi, k)
    table["r_eff"] = frame.size * rng.uniform(*r_eff, k)
    table["intensity"] = shares * frame.light / sersic_total(table["n"], table["r_eff"])
    return table


def _elliptical(frame: Frame) -> tuple[Rows, Reals]:
    return _profiles(frame, np.ones(1), (2.5, 6), (1, 1), (0.5, 1)), NONE


def _pair(frame: Frame) -> tuple[Rows, Reals]:
    """Two ellipticals, the fainter of which has a tenth of the other's light or more."""
    ratio = 10 ** -frame.rng.random()
    table = _profiles(frame, np.array([1, ratio]) / (1 + ratio), (2.5, 6), (0.5, 1.2), (0.5, 1))
    angle, halves = frame.rng.uniform(0, 2 * np.pi), np.array([-0.5, 0.5]) * frame.separation
    table["x"] += halves * np.cos(angle)
    table["y"] += halves * np.sin(angle)
    return table, NONE


def _merger(frame: Frame) -> tuple[Rows, Reals]:
    """Two or three galaxies about one another, and tidal tails."""
    rng, k = frame.rng, int(frame.rng.integers(2, 4))
    table = _profiles(frame, rng.dirichlet(np.full(k, 3.0)), (0.8, 4), (0.3, 1), (0.35, 1))
    angle, distance = rng.uniform(0, 2 * np.pi, k - 1), frame.separation * rng.uniform(0.5, 1, k - 1)
    table["x"][1:] += distance * np.cos(angle)
    table["y"][1:] += distance * np.sin(angle)
    tails = [_tail(rng) for _ in range(rng.integers(1, 4))]
    return table, _stamp(_spots(*np.concatenate(tails, axis=1)))


def _tail(rng: Generator) -> Floats:
    """x, y, standard deviation and light of the Gaussians of a bent tail that widens and fades outwards, [4, TAIL]."""
    along = np.linspace(0.3, rng.uniform(1.5, 3.2), TAIL)
    angle = rng.uniform(0, 2 * np.pi) + rng.uniform(-0.9, 0.9) * along
    width = rng.uniform(0.08, 0.25) * (0.5 + along / 2)
    return np.stack([along * np.cos(angle), along * np.sin(angle), width, np.exp(-along / rng.uniform(0.5, 1.5))])


def _spiral(frame: Frame) -> tuple[Rows, Reals]:
    """A bulge, and an inclined disc with arms and knots."""
    rng = frame.rng
    bulge, q = _profiles(frame, np.ones(1), (1, 4), (0.1, 0.35), (0.6, 1)), rng.uniform(0.2, 1)
    x, y = AXIS, AXIS[:, None] / q
    radius = np.hypot(x, y)
    arms, turn = int(rng.integers(2, 5)), np.log(radius) / np.tan(rng.uniform(0.15, 0.6))
    crest = np.exp(rng.uniform(1, 4) * (np.cos(arms * (np.arctan2(y, x) - turn)) - 1))
    contrast = rng.uniform(0.3, 1)
    disc = np.exp(-radius / SCALE_LENGTH) * (1 - contrast + contrast * crest)
    knots = rng.exponential(SCALE_LENGTH, (k := int(rng.poisson(15)))) + 0.2
    angle = np.log(knots) / np.tan(0.3) + 2 * np.pi / arms * rng.integers(arms, size=k) + 0.3 * rng.standard_normal(k)
    return bulge, _stamp(disc + _knots(rng, disc, knots * np.cos(angle), knots * np.sin(angle) * q))


def _ring(frame: Frame) -> tuple[Rows, Reals]:
    """A bulge, and an inclined ring around it that is brighter on one side and has knots."""
    rng = frame.rng
    bulge, q = _profiles(frame, np.ones(1), (2, 5), (0.15, 0.6), (0.6, 1)), rng.uniform(0.5, 1)
    x, y = AXIS, AXIS[:, None] / q
    angle, width = np.arctan2(y, x), rng.uniform(0.06, 0.3)
    side = 1 + rng.uniform(0, 0.9) * np.cos(angle - rng.uniform(0, 2 * np.pi))
    ring = np.exp(-0.5 * ((np.hypot(x, y) - 1) / width) ** 2) * side
    place = rng.uniform(0, 2 * np.pi, int(rng.poisson(6)))
    return bulge, _stamp(ring + _knots(rng, ring, np.cos(place), np.sin(place) * q))


def _knots(rng: Generator, image: Floats, x: Floats, y: Floats) -> Floats:
    """Knots at x and y, with up to half as much light as an image that they are added to."""
    sigma, weight = rng.uniform(2, 4, len(x)) * STAMP_PIXEL, rng.exponential(size=len(x))
    share = rng.uniform(0, 0.5) * image.sum() / max(weight.sum(), 1e-9)
    return _spots(x, y, sigma, weight * share)


def _spots(x: Floats, y: Floats, sigma: Floats, light: Floats) -> Floats:
    """Image of round Gaussians on `AXIS`, each of so much light in all pixels."""
    down, across = (np.exp(-0.5 * ((AXIS - place[:, None]) / sigma[:, None]) ** 2) for place in (y, x))
    peak = light * STAMP_PIXEL**2 / (2 * np.pi * sigma**2)
    return np.asarray((peak[:, None] * down).T @ across)


def _stamp(image: Floats) -> Reals:
    """An image with a margin of empty pixels, of sum 1."""
    return np.pad(image / image.sum(), MARGIN).astype(np.float32)


SHAPES: dict[Kind, Callable[[Frame], tuple[Rows, Reals]]] = {
    "ellipticals": _elliptical,
    "spirals": _spiral,
    "mergers": _merger,
    "rings": _ring,
    "pairs": _pair,
}
"""Galaxies of a contaminant of each kind, and the image of its disc, ring or tails."""
