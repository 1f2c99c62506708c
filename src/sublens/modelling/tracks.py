"""Fits in progress, many at a time: those of greatest evidence go on."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace

import numpy as np
from scipy import linalg

from sublens.modelling.fitter import Fitter, Floats, Solution
from sublens.modelling.lens_image import COARSE, FINE, Data, LensImage
from sublens.modelling.perturbers import Perturber
from sublens.modelling.source_grid import GRID, SourceGrid

RADIUS, RADIUS_OVER_THETA_E = 2.4, 1.8
"""Pixels count within the first radius, arcsec, or within so many Einstein radii where that is more."""
FIRST, LAST = (12, 3, 0.3), (3, 10, 0.2)
"""How many go on from the first look, and from the steps after it; these steps, and the gain below which they end."""
LEAST_HALF = 0.3
"""Least half side of the source's grid in these steps, arcsec, in which another lens' source has room."""

Track = tuple[Fitter, Solution]
"""A fit and how far it has come."""


def radius(theta_e: float) -> float:
    """Radius within which the pixels around a lens of that Einstein radius count, arcsec."""
    return max(RADIUS, RADIUS_OVER_THETA_E * theta_e)


def by_evidence(tracks: Iterable[Track]) -> list[Track]:
    """The fits whose evidence is a number, the greatest first."""
    usable = [track for track in tracks if np.isfinite(track[1].log_evidence)]
    return sorted(usable, key=lambda track: -track[1].log_evidence)


def descended(tracks: Iterable[Track], most: int, least_gain: float) -> Iterator[Track]:
    """Each fit some steps on, from its settled noise and priors; those that fail are left out."""
    for fitter, solution in tracks:
        with suppress(linalg.LinAlgError):
            yield fitter, fitter.descend(fitter.settled(solution), most, least_gain)


def coarser(image: LensImage, fitter: Fitter) -> Fitter:
    """The fit on coarser points, where the image has such, with the same noise."""
    data = fitter.data
    if image.pixel_scale >= COARSE or np.ndim(fitter.substructure):  # which is known at the points of the fit alone
        return fitter
    coarse = Data.of(image.coarser(), radius(fitter.start.theta_e), 2 * FINE)
    if not np.array_equal(coarse.places, data.places):
        return fitter
    values = coarse.values * (coarse.unit / data.unit)
    return replace(fitter, data=replace(coarse, values=values, noise=data.noise, unit=data.unit))


def explored(
    image: LensImage, track: Track, candidates: Iterable[Floats], look: SourceGrid, perturber: Perturber | None = None
) -> Track | None:
    """The best fit that begins at one of many candidates, with the noise and priors of a fit; None if none can.

    All candidates are looked at on coarser points, with the source on the grid `look`; the best few descend there, and
    the best of these on the points of the fit itself. candidates: parameters of the smooth lens, then of the perturber.
    """
    fitter, solution = track
    rough = replace(coarser(image, fitter), perturber=perturber)
    grid = replace(solution.grid, size=min(solution.grid.size, GRID), half=max(solution.grid.half, LEAST_HALF))
    looked = _solved((replace(rough, grid=look), each, solution.form) for each in candidates)
    begun = _begun(replace(rough, grid=grid), by_evidence(looked)[: FIRST[0]])
    few = by_evidence((each, each.descend(start, *FIRST[1:])) for each, start in begun)[: LAST[0]]
    begun = _begun(replace(fitter, perturber=perturber), few)
    return next(iter(by_evidence((each, each.descend(start, *LAST[1:])) for each, start in begun)), None)


def _begun(fitter: Fitter, tracks: Iterable[Track]) -> Iterator[Track]:
    """The lenses of these fits, solved by another fitter."""
    return _solved((fitter, solution.parameters, solution.form) for _, solution in tracks)


def _solved(starts: Iterable[tuple[Fitter, Floats, Floats]]) -> Iterator[Track]:
    for fitter, parameters, form in starts:
        with suppress(linalg.LinAlgError):
            yield fitter, fitter.solve(parameters, form)
