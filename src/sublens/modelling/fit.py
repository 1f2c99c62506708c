"""The smooth lens that fits an image best, with a source of any shape and the lens galaxy's light.

Fits descend (`fitter`) from starts that differ in Einstein radius and external shear, first to coarser data; in every
round those of least evidence are given up, since a fit that ends in a wrong valley shows it early on.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, product

import numpy as np
from scipy import linalg

from sublens.errors import ImageError
from sublens.modelling import smooth_lens
from sublens.modelling.fitter import Deflection, Fitter, Floats, Solution, Start
from sublens.modelling.lens_image import COARSE, FINE, Data, LensImage

STARTS = -1.0, 0.0, 1.0
"""Distances from the Einstein radius that is known at which fits start, in standard deviations."""
SHEARS = (0.06, 0.0), (-0.06, 0.0), (0.0, 0.06), (0.0, -0.06)
"""External shears from which they start."""
FIRST = 3, 0.5
"""Greatest number of steps on coarser data, and the gain of one below which they end."""
ROUNDS = (4, 4, 0.5), (2, 4, 0.5), (2, 8, 0.2)
"""Number of fits that go on, and their steps, in the rounds that follow."""
GRIDS = (17, 4.5), (25, 3.0), (25, 4.5)
"""Splines along a side and extents of the other grids of the source that the best fit is tried on."""
SETTLINGS, REFINING = 2, (6, 0.2)
"""Number of settlings on each, and the steps after each."""
RADIUS, RADIUS_OVER_THETA_E = 2.4, 1.8
"""Pixels count within the first radius, arcsec, or within so many Einstein radii where that is more."""
LEAST_PIXELS = 100
"""Number of pixels below which nothing is fitted."""
TEMPERATURE = 30.0
"""Difference of log evidence at which another solution counts 1/e as much in the scatter; more where the best fits
worse than the noise."""

Track = tuple[Fitter, Solution]
"""A fit and how far it has come."""


@dataclass(frozen=True)
class LensFit:
    """A smooth lens that was fitted to an image."""

    parameters: Floats
    """Parameters as in `smooth_lens`, [11]."""
    scatter: float
    """Root mean square difference of ln theta_e among all solutions, by their tempered evidence. Formal
    standard deviations are not told: they are of a hundredth or less, where fits are off by several."""
    chi2: float
    """Sum of the squared residuals, over the number of pixels."""
    image: Floats
    model: Floats
    galaxy: Floats
    """What was fitted, the model of it, and the lens galaxy's part in that, [s, s], NaN where there are no data."""
    residual: Floats
    """Image less model, in standard deviations of the noise, that of the model included, [s, s]."""
    source: Floats
    """Light of the source on its grid, [g, g]."""
    source_step: float
    """Side of a cell of that grid, arcsec."""


def fit(image: LensImage, start: Start) -> LensFit:
    """Fit a smooth lens to an image, from several starts around what is known; the one of greatest evidence is kept.

    Takes a few seconds, more for large lenses. Raises `ImageError` where nothing can be fitted.
    """
    tracks = search(image, start)
    fitter, solution = tracks[0]
    return _fitted(fitter, solution, _scatter([other for _, other in tracks], solution))


def search(image: LensImage, start: Start, substructure: Deflection | None = None) -> list[Track]:
    """All fits, that of greatest evidence first; those that were given up are as far as they had come.

    substructure: what bends light beside the smooth lens, if that is known. Raises `ImageError` where there is none.
    """
    radius = max(RADIUS, RADIUS_OVER_THETA_E * start.theta_e)
    data, given_up = Data.of(image, radius), list[Track]()
    going = _from_starts(image, data, start, radius, substructure) if len(data.values) >= LEAST_PIXELS else []
    for n, most, least_gain in ROUNDS:
        given_up += going[n:]
        going = _by_evidence(_descended(going[:n], most, least_gain))
    tracks = _by_evidence([*chain.from_iterable(map(_refined, going[:1])), *going[1:], *given_up])
    if not tracks:
        raise ImageError(
            "its pixels tell nothing of a lens",
            need="a lens in the middle that is not masked",
            next="Look at the image, and at its noise and mask.",
        )
    return tracks


def _from_starts(
    image: LensImage, data: Data, start: Start, radius: float, substructure: Deflection | None
) -> list[Track]:
    """Fits to the data from the best starts, which are those of greatest evidence after the first steps."""
    coarser = Data.of(image.coarser() if image.pixel_scale < COARSE else image, radius, 2 * FINE)
    coarser = coarser if len(coarser.values) >= LEAST_PIXELS else data  # masks may leave nothing of it
    rough, first = list[Track](), Fitter.of(coarser, start, substructure)
    for distance, shear in product(STARTS, SHEARS):
        with suppress(linalg.LinAlgError):
            rough.append((first, first.descend(first.at(distance, shear), *FIRST)))
    tracks: list[Track] = []
    for _, solution in _by_evidence(rough)[: ROUNDS[0][0]]:
        fitter = Fitter.of(data, start, substructure)
        with suppress(linalg.LinAlgError):
            tracks.append((fitter, fitter.solve(solution.parameters, solution.form)))
    return tracks


def _descended(tracks: Iterable[Track], most: int, least_gain: float) -> Iterator[Track]:
    for fitter, solution in tracks:
        with suppress(linalg.LinAlgError):
            yield fitter, fitter.descend(fitter.settled(solution), most, least_gain)


def _refined(track: Track) -> Iterator[Track]:
    """The fit, and those that go on from it with the source on other grids."""
    yield track
    for size, extent in GRIDS:
        fitter, solution = track
        fitter = replace(fitter, grid=replace(solution.grid, size=size, extent=extent))
        with suppress(linalg.LinAlgError):
            solution = fitter.solve(solution.parameters, solution.form)
            for _ in range(SETTLINGS):
                solution = fitter.descend(fitter.settled(solution), *REFINING)
            yield fitter, solution


def _by_evidence(tracks: Iterable[Track]) -> list[Track]:
    """The fits whose evidence is a number, the greatest first."""
    usable = [track for track in tracks if np.isfinite(track[1].log_evidence)]
    return sorted(usable, key=lambda track: -track[1].log_evidence)


def _fitted(fitter: Fitter, solution: Solution, scatter: float) -> LensFit:
    """The result of a fit."""
    data, size = fitter.data, solution.grid.size
    return LensFit(
        parameters=solution.parameters,
        scatter=scatter,
        chi2=solution.chi2 / len(data.values),
        image=data.plane(data.values * data.unit),
        model=data.plane((data.values - solution.residual * fitter.noise) * data.unit),
        galaxy=data.plane(fitter.galaxy(solution) * data.unit),
        residual=data.plane(solution.residual),
        source=solution.source.reshape(size, size) * data.unit,
        source_step=solution.grid.step,
    )


def _scatter(solutions: Sequence[Solution], best: Solution) -> float:
    """Root mean square difference of ln theta_e of solutions from that of the best, by their tempered evidence."""
    temperature = TEMPERATURE * max(1.0, best.chi2 / len(best.residual))
    weights = np.exp([(other.log_evidence - best.log_evidence) / temperature for other in solutions])
    log_theta_e = np.array([other.parameters[smooth_lens.LOG_THETA_E] for other in solutions])
    off2 = (log_theta_e - best.parameters[smooth_lens.LOG_THETA_E]) ** 2
    return float(np.sqrt(weights @ off2 / weights.sum()))
