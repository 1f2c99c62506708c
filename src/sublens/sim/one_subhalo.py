"""One subhalo on the arc of each smooth lens."""

from dataclasses import replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from sublens.sim import population, substructure
from sublens.sim.galaxies import darken_source
from sublens.sim.render import render
from sublens.surveys.priors import Floats
from sublens.surveys.survey import Survey
from sublens.surveys.truth import SUBHALO, Truth

ANGLES = 90
"""Directions from the lens among which that of the subhalo is drawn."""


def places_on_arc(truth: Truth, survey: Survey, images: Tensor, rng: Generator) -> tuple[Floats, Floats]:
    """A place on the arc of each scene, x and y, arcsec, [n] each.

    It lies on the critical curve of the isothermal ellipsoid without shear, in a direction drawn by the brightness of
    the lensed source there; in any direction where it is dark. images: the noiseless images of the scenes, [n, h, w].
    """
    x, y = _ring(truth.scenes, 2 * np.pi * (np.arange(ANGLES) + rng.random((len(truth), 1))) / ANGLES)
    camera, rows = survey.camera, np.arange(len(truth))
    column, row = (np.rint(p / camera.pixel_scale + (camera.n_pixels - 1) / 2).astype(np.int64) for p in (x, y))
    inside = (np.minimum(column, row) >= 0) & (np.maximum(column, row) < camera.n_pixels)
    last = camera.n_pixels - 1
    light = _source_light(truth, survey, images)[rows[:, None], row.clip(0, last), column.clip(0, last)]
    weights = np.where(inside, light, 0).clip(0) + 1e-12  # for a ring that is dark
    summed = np.cumsum(weights, axis=1)
    chosen = (summed < rng.random((len(truth), 1)) * summed[:, -1:]).sum(1)
    return x[rows, chosen], y[rows, chosen]


def _ring(scenes: NDArray[np.void], angle: Floats) -> tuple[Floats, Floats]:
    """Positions on the critical curve of each isothermal ellipsoid, arcsec, for eccentric angles [n, k]."""
    q, turn = scenes["halo_q"][:, None], scenes["halo_angle"][:, None]
    long, short = (
        scenes["theta_e"][:, None] * axis for axis in (np.cos(angle) / np.sqrt(q), np.sin(angle) * np.sqrt(q))
    )
    return long * np.cos(turn) - short * np.sin(turn), long * np.sin(turn) + short * np.cos(turn)


def _source_light(truth: Truth, survey: Survey, images: Tensor) -> NDArray[np.float32]:
    """The light of the lensed source alone, [n, h, w]: what the images lose without it."""
    scenes, more = truth.scenes.copy(), None if truth.extra is None else truth.extra.copy()
    darken_source(scenes, more)
    light: NDArray[np.float32] = (images - render(replace(truth, scenes=scenes, extra=more), survey)).numpy()
    return light


def with_subhalo(truth: Truth, survey: Survey, x: Floats, y: Floats, msun: Floats, rng: Generator) -> Truth:
    """The same scenes with one more subhalo each, at (x, y), arcsec, of the survey's profile; the ring stays.

    msun: solar masses, M200 where the profile is extended. rng: for concentrations and truncations. What is left of
    a halo is 0 or less where the subhalo outweighs it, see `population.weigh`.
    """
    subhaloes = np.zeros(len(truth), SUBHALO)
    subhaloes["x"], subhaloes["y"], subhaloes["mass_msun"] = x, y, msun
    substructure.extend(subhaloes, iter(rng.random((2, len(truth)))), truth.scenes, survey)
    scenes, ends = truth.scenes.copy(), np.cumsum(truth.scenes["n_subhaloes"])
    scenes["n_subhaloes"] += 1
    whole = replace(truth, scenes=scenes, subhaloes=np.insert(truth.subhaloes, ends, subhaloes))
    population.weigh(whole, survey)
    return whole
