"""The smooth lens that fits an image best, with a source of any shape and the lens galaxy's light."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sublens.modelling import smooth_lens
from sublens.modelling.fitter import Fitter, Floats, Solution, Start
from sublens.modelling.lens_image import LensImage
from sublens.modelling.perturbed import Perturbation, strongest
from sublens.modelling.perturbers import PERTURBERS
from sublens.modelling.search import search, settled

TEMPERATURE = 30.0
"""Difference of log evidence at which another solution counts 1/e as much in the scatter; more where the best fits
worse than the noise."""


@dataclass(frozen=True)
class LensFit:
    """A smooth lens that was fitted to an image."""

    parameters: Floats
    """Parameters as in `smooth_lens`, [11]."""
    slope: float
    """Density slope."""
    scatter: float
    """Root mean square difference of ln theta_e among all solutions, by their tempered evidence. Formal
    standard deviations are not told: they are of a hundredth or less, where fits are off by several."""
    string_gain: float
    subhalo_gain: float
    """Log evidence that is gained by one string, and by one subhalo, beside the smooth lens; 0 where none can be
    fitted."""
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
    """Fit a lens to an image: the smooth one of greatest evidence, then one string and one subhalo beside it.

    Takes some ten seconds, more for large lenses. Raises `ImageError` where nothing can be fitted.
    """
    tracks = search(image, start)
    smooth, perturbations = settled(tracks[0]), dict[str, Perturbation]()
    for name, perturber in PERTURBERS.items():
        if result := strongest(image, smooth, perturber):
            perturbations[name], smooth = result
    gains = {name: each.log_evidence - smooth[1].log_evidence for name, each in perturbations.items()}
    scatter = _scatter([other for _, other in tracks], smooth[1])
    return _fitted(*smooth, scatter, gains)


def _fitted(fitter: Fitter, solution: Solution, scatter: float, gains: dict[str, float]) -> LensFit:
    """The result of a fit."""
    data, size = fitter.data, solution.grid.size
    return LensFit(
        parameters=solution.parameters,
        slope=fitter.slope,
        scatter=scatter,
        string_gain=gains.get("string", 0.0),
        subhalo_gain=gains.get("subhalo", 0.0),
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
