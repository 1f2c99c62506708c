"""Light beyond one lensed profile: stamps and knots of sources, components of lens galaxies, neighbours and stars.

What has no column in the truth is drawn again, when it is rendered, from the scene's `light_seed`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.random import SFC64, Generator
from numpy.typing import NDArray
from torch import Tensor

from sublens.lensing import rays
from sublens.lensing.pictures import smooth_stamp
from sublens.lensing.sersic import sersic, sersic_b, sersic_total
from sublens.surveys.camera import Camera
from sublens.surveys.extra import N_POINTS
from sublens.surveys.light import NOUGHT, Beside, ClumpySource, Knots, LensLight, Neighbours, StampSource
from sublens.surveys.priors import Floats, Prior
from sublens.surveys.survey import Survey

GALAXY = np.dtype([(name, "<f8") for name in ("x", "y", "q", "angle", "n", "r_eff", "intensity", "boxiness", "reach")])
"""Columns of a table of galaxies that are not lensed; reach: half of the side of the box that holds them, arcsec."""
FAINT = 0.01
"""Light of a neighbour that is left out, in standard deviations of a pixel's noise without light."""
KNOT_PIXEL, KNOT_REACH, DISC_EDGE = 2 / 3, 4.0, 2.5
"""Pixel of the image of knots over the smallest knot's standard deviation; standard deviations that a knot is drawn to;
and radius that knots lie within, over the effective radius."""
SCALE_LENGTH = float(1 / sersic_b(np.array(1.0)))
"""Scale length of an exponential disc over its effective radius."""
ARM_SCATTER = 0.25
"""Spread of knots about their spiral arm, radians."""
MARGIN = 2
"""Empty pixels around the image of knots."""
Rows = NDArray[np.void]
Columns = dict[str, Tensor]
"""A table by column, each [n, 1, 1] to meet planes of pixels."""
Drawn = Callable[[Prior], Floats]
"""From a prior to its draws, one a scene."""


class Glow(NamedTuple):
    """Light of one scene beyond the profile of its source."""

    galaxies: Rows
    """Galaxies that are not lensed, [k] of dtype GALAXY."""
    stamp: NDArray[np.float32]
    """Stamp of the source, or image of its knots, [h, w] of sum 1; without pixels where it has none."""


def per_second(magnitude: Floats, camera: Camera) -> Floats:
    """Electrons a second; Pogson's law."""
    return np.asarray(10 ** (-0.4 * (magnitude - (camera.zero_point or 0))))


def draw_light(scenes: Rows, more: Rows, survey: Survey, uniform: Floats) -> None:
    """Fill in the columns `extra.LIGHT` of scenes whose source and lens galaxy are drawn as one component each.

    uniform: [n, at least 17]. Intensities in `scenes` lose what goes into stamps, knots, discs and nuclei.
    """
    columns = iter(uniform.T)

    def drawn(prior: Prior) -> Floats:
        return prior.quantile(next(columns))

    more["light_seed"] = np.floor(next(columns) * 2**53)
    more["source_mirror"] = np.where(next(columns) < 0.5, -1, 1)
    choice, size, number = next(columns), next(columns), next(columns)
    if isinstance(survey.source, StampSource):
        _draw_stamps(scenes, more, survey.source, choice, size)
    elif isinstance(survey.source, ClumpySource):
        _draw_knots(scenes, more, survey.source.knots, number, size)
    if survey.lens_light:
        _draw_lens(scenes, more, survey.lens_light, drawn, survey.camera.pixel_scale)


def _draw_stamps(scenes: Rows, more: Rows, source: StampSource, choice: Floats, size: Floats) -> None:
    """Choose the stamps and their zoom, and give them the light of the scenes, which is that of a square arcsec."""
    stamps = source.stamps()
    index = (choice * len(stamps)).astype(np.int64)
    scale, flux = (np.array([getattr(stamp, name) for stamp in stamps])[index] for name in ("scale", "flux"))
    more["source_stamp"], more["source_scale"] = index, scale * source.zoom.quantile(size)
    own = flux * 10 ** (-0.4 * (source.zero_point or 0)) if source.dimming else 1
    more["stamp_intensity"] = scenes["source_intensity"] * own / more["source_scale"] ** 2
    scenes["source_intensity"] = 0


def _draw_knots(scenes: Rows, more: Rows, knots: Knots, number: Floats, size: Floats) -> None:
    """Draw the number of knots, and move their share of the light from the disc to them, where there are any."""
    more["n_knots"] = np.rint(knots.number.quantile(number))
    more["source_scale"] = KNOT_PIXEL * knots.size.low * scenes["source_r_eff"]
    share = np.where(more["n_knots"] > 0, knots.share.quantile(size), 0)
    whole = scenes["source_intensity"] * sersic_total(scenes["source_n"], scenes["source_r_eff"])
    more["stamp_intensity"] = share * whole / more["source_scale"] ** 2
    scenes["source_intensity"] *= 1 - share


def darken_source(scenes: Rows, more: Rows | None) -> None:
    """Leave no light of the sources; more: the scenes' rows of dtype EXTRA, if they have any."""
    scenes["source_intensity"] = 0
    if more is not None:
        more["stamp_intensity"] = more["n_knots"] = 0


def _draw_lens(scenes: Rows, more: Rows, lens: LensLight, drawn: Drawn, pixel_scale: float) -> None:
    """Draw the shape of the lens galaxy's first component, and share its light with disc and nucleus."""
    disc, nucleus = lens.disc, lens.nucleus
    q = drawn(lens.q or NOUGHT)
    more["lens_q"] = q if lens.q else scenes["halo_q"]
    more["lens_angle"] = scenes["halo_angle"] + drawn(lens.misalignment)
    for name in ("x", "y", "boxiness"):
        more[f"lens_{name}"] = drawn(getattr(lens, name))
    whole = scenes["lens_intensity"] * sersic_total(scenes["lens_n"], scenes["lens_r_eff"])
    priors = (disc.share, disc.n, disc.r_eff_ratio, disc.q, disc.twist) if disc else (NOUGHT,) * 5
    share, n, ratio, disc_q, twist = map(drawn, priors)
    if disc:
        more["disc_n"], more["disc_q"], more["disc_r_eff"] = n, disc_q, ratio * scenes["lens_r_eff"]
        more["disc_angle"] = more["lens_angle"] + twist
        more["disc_intensity"] = share * whole / sersic_total(n, more["disc_r_eff"])
    unresolved = drawn(nucleus.share if nucleus else NOUGHT)
    more["nucleus_electrons"] = unresolved * whole / pixel_scale**2
    scenes["lens_intensity"] *= 1 - share - unresolved


def glows(scenes: Rows, more: Rows | None, survey: Survey) -> list[Glow]:
    """Light of each scene beyond the profile of its source; more: their rows of dtype EXTRA, if they have any."""
    table, owners = _galaxies(scenes, more, survey)
    table, ends = table[np.argsort(owners, kind="stable")], np.cumsum(np.bincount(owners, minlength=len(scenes)))
    starts = np.concatenate([[0], ends[:-1]])
    stamps = _stamps(scenes, more, survey)
    return [Glow(table[start:end], stamp) for start, end, stamp in zip(starts, ends, stamps, strict=False)]


def _galaxies(scenes: Rows, more: Rows | None, survey: Survey) -> tuple[Rows, NDArray[np.int64]]:
    """The galaxies of all scenes that are not lensed, and the positions of their scenes."""
    tables, rows = [np.zeros(0, GALAXY)], np.arange(len(scenes))
    owners = [rows[:0]]
    if survey.lens_light:
        tables.append(_bulges(scenes, more))
        owners.append(rows)
        if survey.lens_light.disc and more is not None:
            tables.append(_discs(more))
            owners.append(rows)
    if survey.neighbours and more is not None:
        owner, galaxies = _neighbours(scenes, more, survey.neighbours, survey.camera)
        tables.append(galaxies)
        owners.append(owner)
    return np.concatenate(tables, dtype=GALAXY), np.concatenate(owners)


def _bulges(scenes: Rows, more: Rows | None) -> Rows:
    """First components of the lens galaxies."""
    table = np.zeros(len(scenes), GALAXY)
    table["reach"] = np.inf
    for name in ("n", "r_eff", "intensity"):
        table[name] = scenes[f"lens_{name}"]
    for name in ("q", "angle") if more is None else ("q", "angle", "x", "y", "boxiness"):
        table[name] = scenes[f"halo_{name}"] if more is None else more[f"lens_{name}"]
    return table


def _discs(more: Rows) -> Rows:
    """Second components of the lens galaxies."""
    table = np.zeros(len(more), GALAXY)
    table["reach"] = np.inf
    for name in ("n", "r_eff", "q", "angle", "intensity"):
        table[name] = more[f"disc_{name}"]
    table["x"], table["y"] = more["lens_x"], more["lens_y"]
    return table


def _beside(kind: Beside, more: Rows, stream: int, width: int) -> tuple[NDArray[np.int64], Floats, Floats, Floats]:
    """Positions of the scenes of objects beside the lens, [k], their uniform numbers [width, k], and x and y.

    stream: number of the kind, so that kinds have random numbers of their own.
    """
    generators = [Generator(SFC64((int(seed), stream))) for seed in more["light_seed"]]
    numbers = np.rint(kind.number.quantile(np.array([rng.random() for rng in generators]))).astype(np.int64)
    each = [rng.random((n, width + 2)) for rng, n in zip(generators, numbers, strict=True)]
    uniform = np.concatenate([np.zeros((0, width + 2)), *each]).T
    distance, direction = kind.distance.quantile(uniform[0]), 2 * np.pi * uniform[1]
    owners = np.repeat(np.arange(len(more)), numbers)
    return owners, uniform[2:], distance * np.cos(direction), distance * np.sin(direction)


def _neighbours(scenes: Rows, more: Rows, kind: Neighbours, camera: Camera) -> tuple[NDArray[np.int64], Rows]:
    """Galaxies beside the lenses; the box of each ends where it is fainter than `FAINT` on its long axis."""
    owners, uniform, x, y = _beside(kind, more, stream=1, width=5)
    table, owned = np.zeros(len(owners), GALAXY), scenes[owners]
    table["x"], table["y"], table["angle"] = x, y, np.pi * uniform[4]
    for name, column in zip(("n", "r_eff", "q"), uniform[1:4], strict=True):
        table[name] = getattr(kind, name).quantile(column)
    rate = per_second(kind.magnitude.quantile(uniform[0]), camera) * camera.pixel_scale**2
    table["intensity"] = rate * owned["exposure_s"] / sersic_total(table["n"], table["r_eff"])
    faint = FAINT * np.sqrt(owned["background"] + owned["noise_rms"] ** 2)
    contrast = np.log(table["intensity"] / np.maximum(faint, 1e-9 * table["intensity"]))
    radius = (1 + contrast / sersic_b(table["n"])).clip(0) ** table["n"] * table["r_eff"]
    table["reach"] = radius / np.sqrt(table["q"])
    return owners, table


def points_of_light(scenes: Rows, more: Rows | None, survey: Survey) -> tuple[NDArray[np.int64], Floats]:
    """Positions of the scenes of nuclei and stars, [k], and their x and y, arcsec, and electrons, [k, 3]."""
    owners, points = [np.zeros(0, np.int64)], [np.zeros((0, 3))]
    if more is not None and survey.lens_light and survey.lens_light.nucleus:
        owners.append(np.arange(len(scenes)))
        points.append(np.stack([more[name] for name in ("lens_x", "lens_y", "nucleus_electrons")], axis=1))
    if more is not None and survey.stars:
        owner, uniform, x, y = _beside(survey.stars, more, stream=2, width=1)
        rate = per_second(survey.stars.magnitude.quantile(uniform[0]), survey.camera)
        owners.append(owner)
        points.append(np.stack([x, y, rate * scenes["exposure_s"][owner]], axis=1))
    if more is not None:
        owner, own = _own_points(more)
        owners.append(owner)
        points.append(own)
    return np.concatenate(owners), np.concatenate(points)


def _own_points(more: Rows) -> tuple[NDArray[np.int64], Floats]:
    """Points of light of contaminants, as `points_of_light` has them."""
    columns = ("x", "y", "electrons")
    points = np.stack([[more[f"point_{name}_{number}"] for name in columns] for number in range(N_POINTS)])
    owners, numbers = np.nonzero(points[:, 2].T)
    return owners, points[numbers, :, owners]


def _stamps(scenes: Rows, more: Rows | None, survey: Survey) -> list[NDArray[np.float32]]:
    """Stamp of the source of each scene, or image of its knots."""
    source, none = survey.source, np.zeros((0, 0), np.float32)
    if isinstance(source, StampSource) and more is not None:
        stamps = source.stamps()
        return [stamps[int(index)].pixels for index in more["source_stamp"]]
    if isinstance(source, ClumpySource) and more is not None:
        each = zip(scenes["source_q"], more["light_seed"], more["n_knots"], strict=True)
        return [_knots(source, q, int(seed), int(n)) if n else none for q, seed, n in each]
    return [none] * len(scenes)


def _knots(source: ClumpySource, q: float, seed: int, n: int) -> NDArray[np.float32]:
    """Image of n knots of a disc whose long axis lies along the rows, [h, w] of sum 1."""
    from scipy.special import gammainc, gammaincinv  # slow to import

    knots, rng = source.knots, Generator(SFC64((seed, 0)))
    uniform, scatter = rng.random((4, n)), ARM_SCATTER * rng.standard_normal(n)
    radius = SCALE_LENGTH * gammaincinv(2, uniform[0] * gammainc(2, DISC_EDGE / SCALE_LENGTH))
    angle = 2 * np.pi * uniform[1]
    if knots.arms:
        arm = 2 * np.pi / knots.arms * np.floor(knots.arms * uniform[1])
        angle = arm + np.log(radius) / np.tan(knots.pitch) + scatter
    x, y = radius * np.cos(angle) / np.sqrt(q), radius * np.sin(angle) * np.sqrt(q)
    pixel = KNOT_PIXEL * knots.size.low
    return _gaussians(x / pixel, y / pixel, knots.size.quantile(uniform[2]) / pixel, uniform[3])


def _gaussians(x: Floats, y: Floats, sigma: Floats, uniform: Floats) -> NDArray[np.float32]:
    """Image of round Gaussians, in pixels from its middle, with a margin of empty pixels, of sum 1.

    Their light is distributed as L^-2 between 1 and 10, by uniform numbers.
    """
    axes = (np.arange(-reach, reach + 1) for reach in (_reach(y, sigma), _reach(x, sigma)))
    offsets = [(axis - place[:, None]) / sigma[:, None] for axis, place in zip(axes, (y, x), strict=True)]
    down, across = (np.exp(-0.5 * (offset**2).astype(np.float32)) for offset in offsets)
    weights = (1 / ((1 - 0.9 * uniform) * sigma**2)).astype(np.float32)
    image = (weights[:, None] * down).T @ across
    framed = np.zeros(np.add(image.shape, 2 * MARGIN), np.float32)
    framed[MARGIN:-MARGIN, MARGIN:-MARGIN] = image / image.sum(dtype=np.float64)
    return framed


def _reach(place: Floats, sigma: Floats) -> int:
    """Pixels from the middle that hold all these Gaussians."""
    return int(np.ceil((np.abs(place) + KNOT_REACH * sigma).max()))


def lights_of(glows: Sequence[Glow]) -> list[rays.Lights]:
    """Light of each scene as compiled loops take it."""
    whole = np.concatenate([own.galaxies for own in glows], dtype=GALAXY)
    profiles = rays.profiles(**{name: whole[name] for name in whole.dtype.names or ()}).astype(np.float32)
    ends = np.cumsum([len(own.galaxies) for own in glows])
    return [(table, own.stamp) for table, own in zip(np.split(profiles, ends[:-1]), glows, strict=True)]


def add_stamps(image: Tensor, x: Tensor, y: Tensor, terms: Floats, glow: Sequence[Glow]) -> None:
    """Add the light of stamps to that of their scenes, at positions in the source plane, [n, h, w]."""
    for row, (own, (ux, uy, vx, vy, electrons)) in enumerate(zip(glow, terms.tolist(), strict=True)):
        if own.stamp.size:
            u, v = ux * x[row] + uy * y[row], vx * x[row] + vy * y[row]
            image[row] += electrons * smooth_stamp(u, v, torch.from_numpy(own.stamp))


def add_galaxies(image: Tensor, x: Tensor, y: Tensor, survey: Survey, galaxies: Sequence[NDArray[np.void]]) -> None:
    """Add the light of galaxies that are not lensed: the first of each scene that has one, then the second and so on.

    A scene's light depends on its own galaxies alone.
    """
    is_boxy = bool(survey.lens_light and survey.lens_light.boxiness != NOUGHT)
    for number in range(max(map(len, galaxies), default=0)):
        rows = [row for row, own in enumerate(galaxies) if len(own) > number]
        columns = columns_of(np.stack([galaxies[row][number] for row in rows]), x)
        dx, dy, reach = x - columns.pop("x"), y - columns.pop("y"), columns.pop("reach")
        boxiness = columns.pop("boxiness")
        own_light = sersic(dx, dy, **columns, boxiness=boxiness if is_boxy else None)
        if survey.neighbours:
            own_light = own_light * ((dx.abs() <= reach) & (dy.abs() <= reach))
        add_rows(own_light, image, torch.tensor(rows, device=x.device))


def add_rows(planes: Tensor, sums: Tensor, rows: Tensor) -> None:
    """Add planes to those of these rows."""
    if sums.device.type != "cpu":
        sums.index_add_(0, rows, planes)
        return
    for row, plane in zip(rows.tolist(), planes, strict=True):  # index_add_ takes five times as long here
        sums[row].add_(plane)


def columns_of(table: NDArray[np.void], like: Tensor) -> Columns:
    """The real columns of a truth table, each [n, 1, 1]."""
    names = [name for name in table.dtype.names or () if table.dtype[name].kind == "f"]
    values = np.stack([table[name] for name in names])
    return dict(zip(names, torch.from_numpy(values).to(like)[:, :, None, None].unbind(), strict=True))
