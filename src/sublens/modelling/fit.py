"""The fit of a smooth lens to an image, with a source of any shape and the lens galaxy's light.

The image is linear in the source and in the galaxy's light, whose best amplitudes follow for any smooth lens (Warren &
Dye 2003, arXiv:astro-ph/0302587); the lens is found by damped Gauss-Newton steps in which these follow along. The prior
of the source's coefficients has the variance of greatest evidence (MacKay 1992, Neural Computation 4, 415; Suyu et al.
2006, arXiv:astro-ph/0601493).
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from sublens.errors import ImageError
from sublens.lensing.compiled import Reals
from sublens.modelling import galaxy_light, response, smooth_lens, source_grid
from sublens.modelling.lens_image import Data, LensImage
from sublens.modelling.source_grid import GRID, N_SOURCE, SourceGrid

Floats = NDArray[np.float64]

MODEL_ERROR = 0.02
"""Share of the lens galaxy's light that its model may be off by, which counts as noise."""
LEAST_SIGMA = 0.06
"""Least relative standard deviation of the Einstein radius that a fit starts from."""
FARTHEST = 2.5
"""Greatest distance of the fitted radius from that one, in such deviations."""
STARTS = -1.0, 0.0, 1.0
"""Distances from it at which fits start."""
STAGES = (4, 0.5), (4, 0.5), (4, 0.5), (8, 0.2)
"""Greatest number of steps between two settlings of grid and priors, and the gain below which they end."""
RADIUS, RADIUS_OVER_THETA_E = 2.4, 1.8
"""Pixels count within the first radius, arcsec, or within so many Einstein radii where that is more."""
LEAST_PIXELS = 100
"""Number of pixels below which nothing is fitted."""
JITTER = 1e-6
"""Share of its diagonal that is added to a matrix, whose sums are of single precision."""
TRIES, DAMPING, LEAST_DAMPING = 4, 1e-3, 1e-6
LONGEST_STEP, LONGEST_FORM_STEP = 0.2, 0.1
TEMPERATURE = 30.0
"""Difference of log evidence at which another solution counts 1/e as much in the scatter among starts; more where the
best fits worse than the noise."""


class Start(NamedTuple):
    """What is known of a lens before it is fitted."""

    theta_e: float
    theta_e_sigma: float
    """Arcsec."""
    e1: float = 0.0
    e2: float = 0.0
    """As in `models.macro`."""
    e_sigma: float = 0.15
    """Standard deviation of either."""


@dataclass(frozen=True)
class LensFit:
    """A smooth lens that was fitted to an image."""

    parameters: Floats
    """Parameters as in `smooth_lens`, [11]."""
    scatter: float
    """Root mean square difference of ln theta_e among the starts, by their tempered evidence. Formal standard
    deviations are not told: they are of a hundredth or less, where fits are off by several."""
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


@dataclass(frozen=True)
class Solution:
    """The best source and light for a given smooth lens, and how well they fit."""

    parameters: Floats
    form: Floats
    """Shape of the lens galaxy, [4]."""
    coefficients: Floats
    """Amplitudes of the source's splines, then of the galaxy's light, [k]."""
    columns: Reals
    """Response of the pixels to each, in their own noise, [p, k]."""
    residual: Floats
    """Data less model, in their own noise, [p]."""
    objective: float
    log_evidence: float
    n_effective: float
    """Coefficients of the source that the data determine."""
    splines: tuple[response.Splines, response.Splines]

    @property
    def chi2(self) -> float:
        """Sum of the squared residuals."""
        return float(self.residual @ self.residual)


class System(NamedTuple):
    """Normal equations of all that is fitted: coefficients, parameters of the lens, shape of the galaxy."""

    columns: Reals
    """Response of the pixels to each, in their own noise, [p, k]."""
    matrix: Floats
    precisions: Floats
    """Precisions of the priors, [k, k] like the matrix."""
    gradient: Floats


@dataclass
class Fitter:
    """A fit in progress."""

    data: Data
    start: Start
    form: Floats
    """Shape of the galaxy that the fit starts from."""
    noise: Floats
    """Noise of the pixels, that of the model included, [p]."""
    grid: SourceGrid
    amplitudes: Floats | None = None
    """Amplitudes of the Gaussians of the galaxy's light, once there are harmonics."""

    @classmethod
    def of(cls, data: Data, start: Start) -> "Fitter":
        """A fit that has not begun."""
        start = start._replace(theta_e_sigma=max(start.theta_e_sigma, LEAST_SIGMA * start.theta_e))
        return cls(data, start, np.array([*data.centre, 0.02, 0.0]), data.noise, SourceGrid.around(start.theta_e))

    def run(self, distance: float) -> Solution:
        """The solution from a start so many standard deviations from the Einstein radius that is known."""
        parameters = np.zeros(smooth_lens.N_PARAMETERS)
        log_theta_e = np.log(self.start.theta_e) + distance * self.start.theta_e_sigma / self.start.theta_e
        parameters[: smooth_lens.SHEAR] = log_theta_e, self.start.e1, self.start.e2, *self.data.centre
        solution = self._descend(self.solve(parameters, self.form), *STAGES[0])
        for most, least_gain in STAGES[1:]:
            self._settle(solution)
            solution = self._descend(self.solve(solution.parameters, solution.form), most, least_gain)
        return solution

    def solve(self, parameters: Floats, form: Floats) -> Solution:
        """The best source and light for a smooth lens and a shape of the galaxy."""
        data, values = self.data, self.data.values / self.noise
        alpha = smooth_lens.deflection(parameters, data.x, data.y)
        splines = response.splines(*self.grid.places(data.x - alpha[0], data.y - alpha[1]), GRID)
        planes = galaxy_light.planes(form, data.x, data.y, has_harmonics=self.amplitudes is not None)
        parts = response.of_source(splines[0], GRID, data.blur), response.of_planes(planes, data.blur)
        columns = np.concatenate(parts, axis=1)
        columns /= self.noise[:, None].astype(np.float32)
        prior = self._prior_of_light()
        factor = factor_of(_squares(columns), prior)
        coefficients = linalg.cho_solve((factor, True), _products(columns, values), check_finite=False)
        residual = values - columns @ coefficients.astype(np.float32)
        objective = float(residual @ residual + coefficients @ prior @ coefficients) + self._distance(parameters, form)
        harmonics = np.diagonal(prior)[N_SOURCE + len(galaxy_light.SIGMAS) :]
        log_det = 2 * np.log(np.diagonal(factor)).sum() - self.grid.log_det - np.log(harmonics).sum()
        return Solution(
            parameters=parameters,
            form=form,
            coefficients=coefficients,
            columns=columns,
            residual=residual,
            objective=objective,
            log_evidence=float(-0.5 * (objective + log_det) - np.log(self.noise).sum()),
            n_effective=N_SOURCE - self.grid.trace(linalg.lapack.dpotri(factor, lower=1)[0][:N_SOURCE, :N_SOURCE]),
            splines=splines,
        )

    def system(self, solution: Solution) -> System:
        """The normal equations around a solution."""
        data, light = self.data, solution.coefficients[N_SOURCE:]
        along_x, along_y = self.grid.gradient(solution.splines, solution.coefficients[:N_SOURCE])
        bent = _on_finer(smooth_lens.derivatives(solution.parameters, *map(_at_every_other, (data.x, data.y))))
        moved = galaxy_light.derivatives(solution.form, light, data.x, data.y)
        planes = np.concatenate([-(along_x * bent[:, 0] + along_y * bent[:, 1]), moved])
        more = response.of_planes(planes, data.blur) / self.noise[:, None].astype(np.float32)
        columns = np.concatenate([solution.columns, more], axis=1)
        means, sigmas = self._prior_of_lens(solution.form)
        own = np.concatenate([sigmas, galaxy_light.SHAPE_SIGMAS]) ** -2
        precisions = linalg.block_diag(self._prior_of_light(), np.diag(own))
        offsets = np.concatenate([solution.coefficients, solution.parameters - means, np.zeros(galaxy_light.N_SHAPE)])
        gradient = _products(columns, solution.residual) - precisions @ offsets
        return System(columns, _squares(columns), precisions, gradient)

    def fitted(self, solution: Solution, scatter: float) -> LensFit:
        """The result of the fit."""
        data = self.data
        return LensFit(
            parameters=solution.parameters,
            scatter=scatter,
            chi2=solution.chi2 / len(data.values),
            image=data.plane(data.values * data.unit),
            model=data.plane((data.values - solution.residual * self.noise) * data.unit),
            galaxy=data.plane(self._galaxy(solution) * data.unit),
            residual=data.plane(solution.residual),
            source=solution.coefficients[:N_SOURCE].reshape(GRID, GRID) * data.unit,
            source_step=self.grid.step,
        )

    def _galaxy(self, solution: Solution) -> Floats:
        """The lens galaxy's light in the pixels, [p]."""
        return solution.columns[:, N_SOURCE:] @ solution.coefficients[N_SOURCE:].astype(np.float32) * self.noise

    def _prior_of_light(self) -> Floats:
        return np.asarray(linalg.block_diag(self.grid.precision, np.diag(galaxy_light.precisions(self.amplitudes))))

    def _prior_of_lens(self, form: Floats) -> tuple[Floats, Floats]:
        """Means and standard deviations of the parameters of the smooth lens."""
        means, sigmas = np.zeros(smooth_lens.N_PARAMETERS), smooth_lens.SIGMAS.copy()
        means[smooth_lens.LOG_THETA_E] = np.log(self.start.theta_e)
        sigmas[smooth_lens.LOG_THETA_E] = self.start.theta_e_sigma / self.start.theta_e
        ellipticity = slice(smooth_lens.E1, smooth_lens.E2 + 1)
        means[ellipticity], sigmas[ellipticity] = (self.start.e1, self.start.e2), self.start.e_sigma
        means[smooth_lens.X : smooth_lens.Y + 1] = form[:2]
        return means, sigmas

    def _distance(self, parameters: Floats, form: Floats) -> float:
        means, sigmas = self._prior_of_lens(form)
        return float((((parameters - means) / sigmas) ** 2).sum())

    def _descend(self, solution: Solution, most: int, least_gain: float) -> Solution:
        """Damped Gauss-Newton steps, until one gains less than `least_gain`."""
        damping = DAMPING
        for _ in range(most):
            system, n = self.system(solution), len(solution.coefficients)
            for _ in range(TRIES):
                trial = self.solve(*self._moved(solution, _step(system, n, damping)))
                if trial.objective < solution.objective:
                    break
                damping = max(10 * damping, 1e-2)
            else:
                return solution
            gain, solution, damping = solution.objective - trial.objective, trial, max(damping / 5, LEAST_DAMPING)
            if gain < least_gain:
                break
        return solution

    def _moved(self, solution: Solution, step: Floats) -> tuple[Floats, Floats]:
        """Parameters and shape after a step; the Einstein radius stays near the one that is known."""
        n = smooth_lens.N_PARAMETERS
        parameters = solution.parameters + step[:n].clip(-LONGEST_STEP, LONGEST_STEP)
        means, sigmas = (values[smooth_lens.LOG_THETA_E] for values in self._prior_of_lens(solution.form))
        reach = means - FARTHEST * sigmas, means + FARTHEST * sigmas
        parameters[smooth_lens.LOG_THETA_E] = parameters[smooth_lens.LOG_THETA_E].clip(*reach)
        return parameters, solution.form + step[n:].clip(-LONGEST_FORM_STEP, LONGEST_FORM_STEP)

    def _settle(self, solution: Solution) -> None:
        """Fit the source's grid, the noise and the priors of source and harmonics to a solution."""
        light = self._galaxy(solution)
        self.grid = source_grid.settled(self.grid, solution.coefficients[:N_SOURCE], solution.n_effective)
        self.noise = np.hypot(self.data.noise, MODEL_ERROR * light)
        self.amplitudes = solution.coefficients[N_SOURCE : N_SOURCE + len(galaxy_light.SIGMAS)]


def fit(image: LensImage, start: Start) -> LensFit:
    """Fit a smooth lens to an image, from several starts around what is known; the one of greatest evidence is kept.

    Takes a few seconds, more for large lenses. Raises `ImageError` where nothing can be fitted.
    """
    data, runs = Data.of(image, max(RADIUS, RADIUS_OVER_THETA_E * start.theta_e)), list[tuple[Fitter, Solution]]()
    for distance in STARTS if len(data.values) >= LEAST_PIXELS else ():
        fitter = Fitter.of(data, start)
        with suppress(linalg.LinAlgError):
            runs.append((fitter, fitter.run(distance)))
    runs = [run for run in runs if np.isfinite(run[1].log_evidence)]
    if not runs:
        raise ImageError(
            "its pixels tell nothing of a lens",
            need="a lens in the middle that is not masked",
            next="Look at the image, and at its noise and mask.",
        )
    fitter, best = max(runs, key=lambda run: run[1].log_evidence)
    return fitter.fitted(best, _scatter([run for _, run in runs], best))


def _scatter(runs: Sequence[Solution], best: Solution) -> float:
    """Root mean square difference of ln theta_e of solutions from that of the best, by their tempered evidence."""
    temperature = TEMPERATURE * max(1.0, best.chi2 / len(best.residual))
    weights = np.exp([(run.log_evidence - best.log_evidence) / temperature for run in runs])
    log_theta_e = np.array([run.parameters[smooth_lens.LOG_THETA_E] for run in runs])
    off2 = (log_theta_e - best.parameters[smooth_lens.LOG_THETA_E]) ** 2
    return float(np.sqrt(weights @ off2 / weights.sum()))


def _step(system: System, first: int, damping: float) -> Floats:
    """The damped step of all from `first` on, the coefficients before it following along."""
    damped, own = system.matrix.copy(), np.arange(first, len(system.matrix))
    damped[own, own] += damping * (system.matrix[own, own] + system.precisions[own, own])
    factor = factor_of(damped, system.precisions)
    return np.asarray(linalg.cho_solve((factor, True), system.gradient, check_finite=False)[first:])


def factor_of(matrix: Floats, precisions: Floats) -> Floats:
    """Cholesky factor, lower, of a matrix and the precisions of a prior."""
    whole, diagonal = matrix + precisions, np.arange(len(matrix))
    whole[diagonal, diagonal] += JITTER * matrix[diagonal, diagonal]
    return np.asarray(linalg.cholesky(whole, lower=True, overwrite_a=True, check_finite=False))


def _squares(columns: Reals) -> Floats:
    return (columns.T @ columns).astype(np.float64)


def _products(columns: Reals, values: Floats) -> Floats:
    return (columns.T @ values.astype(np.float32)).astype(np.float64)


def _at_every_other(plane: Floats) -> Floats:
    """Means over squares of 2 x 2 points."""
    n = len(plane) // 2
    return np.asarray(plane.reshape(n, 2, n, 2).mean((1, 3)))


def _on_finer(planes: Reals) -> Reals:
    return planes.repeat(2, axis=-2).repeat(2, axis=-1)
