"""The search for the smooth lens that fits an image best, among many that a descent may end in.

Fits descend (`fitter`) from starts that differ in Einstein radius and external shear, first to coarser data; in every
round those of least evidence are given up, since a fit that ends in a wrong valley shows it early on. Then the best one
begins anew from lenses drawn around it and around what is known, as long as one of them ends in a better valley.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain, product

import numpy as np
from scipy import linalg
from scipy.special import ndtri
from scipy.stats import qmc

from sublens.errors import ImageError
from sublens.modelling import smooth_lens
from sublens.modelling.fitter import Deflection, Fitter, Floats, Start
from sublens.modelling.lens_image import COARSE, FINE, Data, LensImage
from sublens.modelling.tracks import Track, by_evidence, descended, explored, radius

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
LEAST_PIXELS = 100
"""Number of pixels below which nothing is fitted."""
MOST_RESTARTS, LEAST_GAIN = 4, 5.0
"""Times that the best fit begins anew, and the gain in log evidence below which that ends, from the second time on."""
DRAWN, SPREADS = 128, (((0.05, 0.08, 0.05), (0.12, 0.07)), ((0.1, 0.15, 0.08), (0.2, 0.1)))
"""Number of lenses drawn each time; half of them around the best fit, with standard deviations of ln theta_e, the
ellipticity's components and the shear's; the others around what is known, with at least those of the last two. Near
and far by turns."""
OFF_CENTRE = 0.02
"""Standard deviation of their centres around that of the best fit, arcsec."""
SLOPE_STEP, SLOPES = 0.08, 0.45
"""Steps in which the density slope is tried, and how far from its mean they end."""
LOOK, LOOK_HALF = 9, 0.45
"""Splines along a side of the source's grid with which they are looked at, and its least half side, arcsec."""


def search(image: LensImage, start: Start, substructure: Deflection | None = None) -> list[Track]:
    """All fits, that of greatest evidence first; those that were given up are as far as they had come.

    substructure: what bends light beside the smooth lens, if that is known. Raises `ImageError` where there is none.
    """
    data, given_up = Data.of(image, radius(start.theta_e)), list[Track]()
    going = _from_starts(image, data, start, substructure) if len(data.values) >= LEAST_PIXELS else []
    for n, most, least_gain in ROUNDS:
        given_up += going[n:]
        going = by_evidence(descended(going[:n], most, least_gain))
    going = [*_restarted(image, going[0]), *going] if going else []
    tracks = by_evidence([*chain.from_iterable(map(_refined, going[:1])), *going[1:], *given_up])
    tracks = by_evidence([*_sloped(tracks[0]), *tracks]) if tracks else []
    if not tracks:
        raise ImageError(
            "its pixels tell nothing of a lens",
            need="a lens in the middle that is not masked",
            next="Look at the image, and at its noise and mask.",
        )
    return tracks


def settled(track: Track) -> Track:
    """A fit whose noise and grid are what they end with, at its own best; as far as it had come where that fails."""
    with suppress(linalg.LinAlgError):
        return _on_its_grid(track)
    fitter, solution = track
    return replace(fitter, grid=solution.grid), solution


def _on_its_grid(track: Track) -> Track:
    fitter, solution = track
    fitter = replace(fitter, grid=solution.grid)
    return fitter, fitter.descend(fitter.solve(solution.parameters, solution.form), *ROUNDS[-1][1:])


def _from_starts(image: LensImage, data: Data, start: Start, substructure: Deflection | None) -> list[Track]:
    """Fits to the data from the best starts, which are those of greatest evidence after the first steps."""
    coarse = Data.of(image.coarser() if image.pixel_scale < COARSE else image, radius(start.theta_e), 2 * FINE)
    coarse = coarse if len(coarse.values) >= LEAST_PIXELS else data  # masks may leave nothing of it
    rough, first = list[Track](), Fitter.of(coarse, start, substructure)
    for distance, shear in product(STARTS, SHEARS):
        with suppress(linalg.LinAlgError):
            rough.append((first, first.descend(first.at(distance, shear), *FIRST)))
    tracks: list[Track] = []
    for _, solution in by_evidence(rough)[: ROUNDS[0][0]]:
        fitter = Fitter.of(data, start, substructure)
        with suppress(linalg.LinAlgError):
            tracks.append((fitter, fitter.solve(solution.parameters, solution.form)))
    return tracks


def _restarted(image: LensImage, track: Track) -> list[Track]:
    """Better fits than this one, the best first, that begin at lenses drawn around it and around what is known."""
    best, better = settled(track), list[Track]()
    for number in range(MOST_RESTARTS):
        grid = best[1].grid
        look = replace(grid, size=LOOK, half=max(grid.half, LOOK_HALF))
        candidate = explored(image, best, _drawn(best, number), look)
        after = by_evidence([best, *_settled_twice(candidate)])[0] if candidate else best
        gain = after[1].log_evidence - best[1].log_evidence
        if after is not best:
            better.insert(0, after)
        best = after
        if gain < LEAST_GAIN and number + 1 >= len(SPREADS):
            break
    return better


def _settled_twice(track: Track) -> Iterator[Track]:
    with suppress(linalg.LinAlgError):
        fitter, solution = _on_its_grid(track)
        for _ in range(SETTLINGS):
            solution = fitter.descend(fitter.settled(solution), *ROUNDS[-1][1:])
        yield fitter, solution


def _sloped(track: Track) -> Iterator[Track]:
    """The fit settled once more, if that is better, then better and better ones of other density slopes."""
    best = by_evidence([track, *_settled_twice(track)])[0]
    if best is not track:
        yield best
    for step in (SLOPE_STEP, -SLOPE_STEP):
        at = best
        while abs(at[0].slope + step - smooth_lens.SLOPE) < SLOPES:
            fitter, solution = at
            trial = by_evidence(_settled_twice((replace(fitter, slope=fitter.slope + step), solution)))
            if not trial or trial[0][1].log_evidence <= solution.log_evidence:
                break
            at = trial[0]
            yield at


def _drawn(track: Track, number: int) -> Iterator[Floats]:
    """Parameters of smooth lenses around a fit and around what is known, without multipoles."""
    fitter, solution = track
    best, n = solution.parameters[: smooth_lens.SHEAR + 2], smooth_lens.SHEAR + 2
    (log_theta_e, e, shear), (least_e, wide_shear) = SPREADS[number % len(SPREADS)]
    means, sigmas = (values[:n].copy() for values in fitter.priors(solution.form))
    sigmas[smooth_lens.E1 : smooth_lens.E2 + 1] = max(least_e, fitter.start.e_sigma)
    near = np.array([log_theta_e, e, e, OFF_CENTRE, OFF_CENTRE, shear, shear])
    sigmas[smooth_lens.X :] = OFF_CENTRE, OFF_CENTRE, wide_shear, wide_shear
    means[smooth_lens.X : smooth_lens.Y + 1] = best[smooth_lens.X : smooth_lens.Y + 1]
    normal = ndtri(qmc.Sobol(n, seed=number).random(DRAWN))
    for row, z in enumerate(normal):
        drawn = best + near * z if row % 2 else means + sigmas * z
        yield np.concatenate([drawn, np.zeros(smooth_lens.N_PARAMETERS - n)])


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
