"""The search for one perturber beside the smooth lens of a fit: the one that the evidence grows most by."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from scipy import linalg

from sublens.modelling import smooth_lens
from sublens.modelling.fitter import N_SMOOTH, Floats
from sublens.modelling.lens_image import LensImage
from sublens.modelling.perturbers import Perturber
from sublens.modelling.source_grid import GRID
from sublens.modelling.tracks import LAST, Track, by_evidence, explored

MOST_SHARE = 0.5
"""Greatest share of the mass within the ring that a smooth lens gives up for a perturber to begin with."""


@dataclass(frozen=True)
class Perturbation:
    """The perturber that an image asks for most."""

    log_evidence: float
    """Evidence of the fit with it, at its best parameters."""
    parameters: Floats
    """Parameters as in `perturbers`, [k]."""


def strongest(image: LensImage, track: Track, perturber: Perturber) -> tuple[Perturbation, Track] | None:
    """The perturber that the evidence of a settled fit grows most by, and the smooth fit that it is compared with.

    That one has gone on without the perturber, since with it a fit may leave a wrong valley. None where none can be
    fitted.
    """
    fitter, solution = track
    look = replace(solution.grid, size=min(solution.grid.size, GRID))
    perturbed = explored(image, track, _beside(track, perturber), look, perturber)
    if not perturbed:
        return None
    best = perturbed[1]
    smooth = track
    with suppress(linalg.LinAlgError):
        without = fitter.solve(best.parameters[:N_SMOOTH], best.form)
        smooth = by_evidence([track, (fitter, fitter.descend(without, *LAST[1:]))])[0]
    return Perturbation(best.log_evidence, best.parameters[N_SMOOTH:]), smooth


def _beside(track: Track, perturber: Perturber) -> Iterator[Floats]:
    """Each start of the perturber beside the smooth lens, which gives up the mass that it takes over."""
    fitter, solution = track
    theta_e, _, _ = smooth_lens.shape(solution.parameters)
    for own in perturber.starts(theta_e):
        smooth = solution.parameters.copy()
        share = min(perturber.mass_share(own, theta_e), MOST_SHARE)
        smooth[smooth_lens.LOG_THETA_E] += np.log1p(-share) / (fitter.slope - 1)
        own[:2] += smooth[smooth_lens.X : smooth_lens.Y + 1]
        yield np.concatenate([smooth, own])
