"""Numbers, places and sizes of subhaloes, from shares below which they lie."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sublens.errors import ConfigError
from sublens.lensing import mass, power_law
from sublens.lensing.cosmology import mean_concentration, nfw_angles
from sublens.surveys.mass import MassConcentration, Subhaloes
from sublens.surveys.priors import PRIORS, Floats, Prior
from sublens.surveys.survey import Survey
from sublens.surveys.truth import SUBHALO

MOST = 12_000
"""Greatest mean number of subhaloes in an image."""
SAMPLES = 2**16
"""Subhaloes that the mean mass of one is computed from."""


def numbers(scenes: NDArray[np.void], more: NDArray[np.void] | None, survey: Survey, shares: Floats) -> Floats:
    """Number of subhaloes of each scene, if it holds some, whole numbers [n]. shares: [n, 2 or more]."""
    dark = survey.subhaloes
    if dark.number:
        return np.rint(dark.number.quantile(shares[:, 0]))
    means = _mean_numbers(scenes, more, survey, shares[:, 1])
    if (means > MOST).any():
        raise ConfigError(
            f"subhaloes.fraction asks for {means.max():.0f} subhaloes in an image",
            need=f"a mean of at most {MOST}",
            next="Lower subhaloes.fraction, or raise the least of subhaloes.mass_msun.",
            path=survey.name,
        )
    counts = [PRIORS["poisson"].quantile(row[:1], mean)[0] for row, mean in zip(shares, means, strict=True)]
    return np.array(counts, np.float64)


def _mean_numbers(scenes: NDArray[np.void], more: NDArray[np.void] | None, survey: Survey, shares: Floats) -> Floats:
    """Mean number of subhaloes that hold the drawn fraction of the mass inside each ring, [n]."""
    dark = survey.subhaloes
    assert dark.fraction, "a survey has a number or a fraction"
    slope = np.full(len(scenes), 2.0) if more is None else more["slope"]
    ring = power_law.power_law_ring(scenes["theta_e"], scenes["halo_q"], slope)
    inside = np.searchsorted(_distances(dark, _middles(SAMPLES)), ring) / SAMPLES
    if not inside.all():
        raise ConfigError(
            "no subhalo of subhaloes.radius lies inside the ring",
            need="some inside, where subhaloes.fraction counts them",
            next="Lower the least of subhaloes.radius, or set subhaloes.number.",
            path=survey.name,
        )
    return np.asarray(dark.fraction.quantile(shares) * scenes["lens_mass_msun"] / (inside * _mean_msun(survey)))


@lru_cache(maxsize=16)
def _mean_msun(survey: Survey) -> float:
    """Mean of the whole mass of a subhalo at the median redshift, solar masses."""
    rows, lens = np.zeros(SAMPLES, SUBHALO), np.zeros(1, [("z_lens", "<f8"), ("z_source", "<f8")])
    for name in lens.dtype.names or ():
        lens[name] = getattr(survey.cosmology, name).median
    rows["mass_msun"] = survey.subhaloes.mass_msun.quantile(_middles(SAMPLES))
    steps = np.arange(SAMPLES)[:, None] * np.sqrt([2.0, 3.0])  # evenly spread over concentration and truncation
    extend(rows, iter((steps % 1).T), lens, survey)
    return float(rows["mass_msun"].mean())


def _middles(n: int) -> Floats:
    return (np.arange(n) + 0.5) / n


def positions(
    scenes: NDArray[np.void], more: NDArray[np.void] | None, dark: Subhaloes, columns: Iterator[Floats]
) -> tuple[Floats, Floats]:
    """Positions x and y of subhaloes, arcsec; scenes, more: of each. columns: shares of distance and direction."""
    distance, direction = _distances(dark, next(columns)), 2 * np.pi * next(columns)
    if dark.placement == "ring":
        along, q = direction - scenes["halo_angle"], scenes["halo_q"]
        distance = distance * scenes["theta_e"] / np.sqrt(q * np.cos(along) ** 2 + np.sin(along) ** 2 / q)
    x, y = distance * np.cos(direction), distance * np.sin(direction)
    return (x, y) if more is None else (x + more["halo_x"], y + more["halo_y"])


def _distances(dark: Subhaloes, shares: Floats) -> Floats:
    """Distances from the halo's centre, arcsec, or Einstein radii where the ring is the place."""
    if dark.placement != "area":
        return dark.radius.quantile(shares)
    low, high = dark.radius.values
    return np.sqrt(low**2 + shares * (high**2 - low**2))


def extend(subhaloes: NDArray[np.void], columns: Iterator[Floats], scenes: NDArray[np.void], survey: Survey) -> None:
    """Give subhaloes of M200 `mass_msun` the size and the whole mass of the survey's profile; points stay as they are.

    columns: shares below which their concentrations lie, then their truncations. scenes: of each subhalo.
    """
    dark = survey.subhaloes
    if not dark.concentration:
        return
    m200_msun = subhaloes["mass_msun"].copy()
    subhaloes["m200_msun"] = m200_msun
    concentration = _concentration(dark.concentration, m200_msun, scenes["z_lens"], survey, next(columns))
    redshifts = scenes["z_lens"], scenes["z_source"]
    subhaloes["r_s"], subhaloes["alpha_rs"] = nfw_angles(m200_msun, concentration, *redshifts, survey.cosmology)
    if dark.truncation:
        tau = dark.truncation.quantile(next(columns))
        subhaloes["r_t"] = tau * subhaloes["r_s"]
        subhaloes["mass_msun"] = m200_msun * mass.tnfw_share(tau, concentration)


def _concentration(
    concentration: Prior | MassConcentration, m200_msun: Floats, z_lens: Floats, survey: Survey, shares: Floats
) -> Floats:
    """r_200 over the scale radius of subhaloes."""
    if isinstance(concentration, Prior):
        return concentration.quantile(shares)
    mean = mean_concentration(concentration.relation, m200_msun, z_lens, survey.cosmology.h0)
    scatter = PRIORS["normal"].quantile(shares, 0.0, concentration.scatter_dex)
    return np.asarray(mean * 10**scatter)
