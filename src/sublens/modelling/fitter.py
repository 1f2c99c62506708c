"""The descent to the smooth lens that fits an image best, from one start.

The image is linear in the source and in the galaxy's light, whose best amplitudes follow for any smooth lens (Warren &
Dye 2003, arXiv:astro-ph/0302587); the lens is found by damped Gauss-Newton steps in which these follow along. The prior
of the source's coefficients has the variance of greatest evidence (MacKay 1992, Neural Computation 4, 415; Suyu et al.
2006, arXiv:astro-ph/0601493).
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from sublens.images.signal_to_noise import MAD
from sublens.lensing.compiled import Reals
from sublens.modelling import galaxy_light, response, smooth_lens, source_grid
from sublens.modelling.lens_image import Data
from sublens.modelling.perturbers import Perturber
from sublens.modelling.source_grid import SourceGrid

Floats = NDArray[np.float64]
Deflection = Callable[[Floats, Floats], Reals]
"""Deflection at places x, y [n, n], arcsec, [2, n, n]."""

N_SMOOTH = smooth_lens.N_PARAMETERS
MODEL_ERROR = 0.02
"""Share of the lens galaxy's light that its model may be off by, which counts as noise."""
LEAST_SIGMA = 0.06
"""Least relative standard deviation of the Einstein radius that a fit starts from."""
FARTHEST = 2.5
"""Greatest distance of the fitted radius from that one, in such deviations."""
OUTLYING, ABOVE_NEIGHBOURS = 5.0, 3.0
"""Residual of a defect that nothing masks, in standard deviations of all residuals and over the median of the nine
pixels around it."""
MASKING = 1e3
"""Factor of the noise of such a pixel."""
JITTER = 1e-6
"""Share of its diagonal that is added to a matrix, whose sums are of single precision."""
TRIES, DAMPING, LEAST_DAMPING = 4, 1e-3, 1e-6
LONGEST_STEP, LONGEST_FORM_STEP = 0.2, 0.1


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
    factor: Floats
    """Cholesky factor of the normal equations of the coefficients, lower, [k, k]."""
    objective: float
    log_evidence: float
    grid: SourceGrid
    splines: tuple[response.Splines, response.Splines]

    @property
    def source(self) -> Floats:
        """Coefficients of the source's splines, [g * g]."""
        return self.coefficients[: self.grid.n_splines]

    @property
    def light(self) -> Floats:
        """Amplitudes of the galaxy's light, [k - g * g]."""
        return self.coefficients[self.grid.n_splines :]

    @property
    def n_effective(self) -> float:
        """Coefficients of the source that the data determine."""
        n = self.grid.n_splines
        return n - self.grid.trace(linalg.lapack.dpotri(self.factor, lower=1)[0][:n, :n])

    @property
    def arcs(self) -> Floats:
        """Light of the lensed source in the pixels, in their own noise, [p]."""
        return np.asarray(self.columns[:, : self.grid.n_splines] @ self.source.astype(np.float32), np.float64)

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
    substructure: Reals | float = 0.0
    """Deflection at the points beside that of the smooth lens, arcsec, [2, n, n]."""
    amplitudes: Floats | None = None
    """Amplitudes of the Gaussians of the galaxy's light, once there are harmonics."""
    perturber: Perturber | None = None
    """What is fitted beside the smooth lens; its parameters follow those of that."""
    slope: float = smooth_lens.SLOPE
    """Density slope. The evidence alone tells it: descents at the source's present prior go to shallow ones."""

    @classmethod
    def of(cls, data: Data, start: Start, substructure: Deflection | None = None) -> "Fitter":
        """A fit that has not begun."""
        start = start._replace(theta_e_sigma=max(start.theta_e_sigma, LEAST_SIGMA * start.theta_e))
        form, grid = np.array([*data.centre, 0.02, 0.0]), SourceGrid.around(start.theta_e)
        return cls(data, start, form, data.noise, grid, substructure(data.x, data.y) if substructure else 0.0)

    def at(self, distance: float, shear: tuple[float, float]) -> Solution:
        """The solution of a lens so many standard deviations from the Einstein radius that is known."""
        parameters = np.zeros(N_SMOOTH)
        log_theta_e = np.log(self.start.theta_e) + distance * self.start.theta_e_sigma / self.start.theta_e
        parameters[: smooth_lens.SHEAR] = log_theta_e, self.start.e1, self.start.e2, *self.data.centre
        parameters[smooth_lens.SHEAR : smooth_lens.SHEAR + 2] = shear
        return self.solve(parameters, self.form)

    def solve(self, parameters: Floats, form: Floats) -> Solution:
        """The best source and light for a smooth lens and a shape of the galaxy."""
        data, values = self.data, self.data.values / self.noise
        alpha = smooth_lens.deflection(parameters[:N_SMOOTH], self.slope, data.x, data.y) + self.substructure
        if self.perturber:
            alpha += self.perturber.deflection(parameters[N_SMOOTH:], data.x, data.y)
        splines = response.splines(*self.grid.places(data.x - alpha[0], data.y - alpha[1]), self.grid.size)
        planes = galaxy_light.planes(form, data.x, data.y, has_harmonics=self.amplitudes is not None)
        parts = response.of_source(splines[0], self.grid.size, data.blur), response.of_planes(planes, data.blur)
        columns = np.concatenate(parts, axis=1)
        columns /= self.noise[:, None].astype(np.float32)
        prior = self._prior_of_light()
        factor = factor_of(_squares(columns), prior)
        coefficients = linalg.cho_solve((factor, True), _products(columns, values), check_finite=False)
        residual = values - columns @ coefficients.astype(np.float32)
        objective = float(residual @ residual + coefficients @ prior @ coefficients) + self._distance(parameters, form)
        harmonics = np.diagonal(prior)[self.grid.n_splines + len(galaxy_light.SIGMAS) :]
        log_det = 2 * np.log(np.diagonal(factor)).sum() - self.grid.log_det - np.log(harmonics).sum()
        return Solution(
            parameters=parameters,
            form=form,
            coefficients=coefficients,
            columns=columns,
            residual=residual,
            factor=factor,
            objective=objective,
            log_evidence=float(-0.5 * (objective + log_det) - np.log(self.noise).sum()),
            grid=self.grid,
            splines=splines,
        )

    def system(self, solution: Solution) -> System:
        """The normal equations around a solution."""
        data = self.data
        along_x, along_y = self.grid.gradient(solution.splines, solution.source)
        smooth, own = np.split(solution.parameters, [N_SMOOTH])
        bent = _on_finer(smooth_lens.derivatives(smooth, self.slope, *map(_at_every_other, (data.x, data.y))))
        if self.perturber:
            bent = np.concatenate([bent, self.perturber.derivatives(own, data.x, data.y)])
        moved = galaxy_light.derivatives(solution.form, solution.light, data.x, data.y)
        planes = np.concatenate([-(along_x * bent[:, 0] + along_y * bent[:, 1]), moved])
        more = response.of_planes(planes, data.blur) / self.noise[:, None].astype(np.float32)
        columns = np.concatenate([solution.columns, more], axis=1)
        means, sigmas = self.priors(solution.form)
        sigmas = np.concatenate([sigmas, galaxy_light.SHAPE_SIGMAS])
        precisions = linalg.block_diag(self._prior_of_light(), np.diag(sigmas**-2))
        offsets = np.concatenate([solution.coefficients, solution.parameters - means, np.zeros(galaxy_light.N_SHAPE)])
        gradient = _products(columns, solution.residual) - precisions @ offsets
        return System(columns, _squares(columns), precisions, gradient)

    def galaxy(self, solution: Solution) -> Floats:
        """The lens galaxy's light in the pixels, [p]."""
        return solution.columns[:, solution.grid.n_splines :] @ solution.light.astype(np.float32) * self.noise

    def priors(self, form: Floats) -> tuple[Floats, Floats]:
        """Means and standard deviations of the parameters of the smooth lens, then of the perturber."""
        means, sigmas = np.zeros(N_SMOOTH), smooth_lens.SIGMAS.copy()
        means[smooth_lens.LOG_THETA_E] = np.log(self.start.theta_e)
        sigmas[smooth_lens.LOG_THETA_E] = self.start.theta_e_sigma / self.start.theta_e
        ellipticity = slice(smooth_lens.E1, smooth_lens.E2 + 1)
        means[ellipticity], sigmas[ellipticity] = (self.start.e1, self.start.e2), self.start.e_sigma
        means[smooth_lens.X : smooth_lens.Y + 1] = form[:2]
        if not self.perturber:
            return means, sigmas
        own, own_sigmas = self.perturber.prior(self.start.theta_e)
        own[:2] += form[:2]
        return np.concatenate([means, own]), np.concatenate([sigmas, own_sigmas])

    def _prior_of_light(self) -> Floats:
        return np.asarray(linalg.block_diag(self.grid.precision, np.diag(galaxy_light.precisions(self.amplitudes))))

    def _distance(self, parameters: Floats, form: Floats) -> float:
        means, sigmas = self.priors(form)
        off = (self.slope - smooth_lens.SLOPE) / smooth_lens.SLOPE_SIGMA
        return float((((parameters - means) / sigmas) ** 2).sum() + off**2)

    def descend(self, solution: Solution, most: int, least_gain: float) -> Solution:
        """Damped Gauss-Newton steps, until one gains less than `least_gain`."""
        damping = DAMPING
        for _ in range(most):
            system, n = self.system(solution), len(solution.coefficients)
            for _ in range(TRIES):
                with suppress(linalg.LinAlgError):
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
        n = len(solution.parameters)
        parameters = solution.parameters + step[:n].clip(-LONGEST_STEP, LONGEST_STEP)
        means, sigmas = (values[smooth_lens.LOG_THETA_E] for values in self.priors(solution.form))
        reach = means - FARTHEST * sigmas, means + FARTHEST * sigmas
        parameters[smooth_lens.LOG_THETA_E] = parameters[smooth_lens.LOG_THETA_E].clip(*reach)
        return parameters, solution.form + step[n:].clip(-LONGEST_FORM_STEP, LONGEST_FORM_STEP)

    def settled(self, solution: Solution) -> Solution:
        """The solution of the same lens once the noise and the priors of source and harmonics are fitted to it.

        The source's grid moves along where the evidence does not suffer. From the second time on, pixels that stand out
        of those around them, by more than the arcs' own light, count no more.
        """
        noise, was_settled = np.hypot(self.data.noise, MODEL_ERROR * self.galaxy(solution)), self.amplitudes is not None
        if was_settled:
            residual = self.data.plane(solution.residual * self.noise / noise)
            is_outlier = _outliers(residual)[tuple(self.data.places.T)] & (np.abs(solution.residual) > solution.arcs)
            noise = np.where(is_outlier, MASKING * noise, noise)
        self.noise, self.amplitudes = noise, solution.light[: len(galaxy_light.SIGMAS)]
        self.grid = moved = source_grid.settled(solution.grid, solution.source, solution.n_effective)
        settled = self.solve(solution.parameters, solution.form)
        if not was_settled or settled.log_evidence >= solution.log_evidence:
            return settled
        self.grid = replace(solution.grid, variance=moved.variance)
        with suppress(linalg.LinAlgError):
            stayed = self.solve(solution.parameters, solution.form)
            if stayed.log_evidence > settled.log_evidence:
                return stayed
        self.grid = moved
        return settled


def _outliers(residual: Floats) -> NDArray[np.bool_]:
    """Pixels of a residual [s, s], NaN where there are no data, that stand out of all others and of those around."""
    size, beyond = np.abs(residual), np.pad(np.abs(residual), 1, constant_values=np.nan)
    n, is_data = len(size), np.isfinite(size)
    around = np.stack([beyond[i : i + n, j : j + n][is_data] for i in range(3) for j in range(3)])
    least = np.maximum(OUTLYING * MAD * np.median(size[is_data]), ABOVE_NEIGHBOURS * np.nanmedian(around, 0))
    outliers = np.zeros_like(is_data)
    outliers[is_data] = size[is_data] > least
    return outliers


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
