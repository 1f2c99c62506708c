"""The grid of a fitted source, and the prior of its coefficients."""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sublens.lensing.compiled import Reals
from sublens.modelling import response

Floats = NDArray[np.float64]

GRID = 17
"""Splines along a side of a grid whose source is not known yet."""
LEAST_HALF, GREATEST_HALF, OVER_THETA_E = 0.08, 0.6, 0.45
"""Least and greatest half of the side that holds light, arcsec, and that of large lenses over their Einstein radius."""
EXTENT = 3.0
"""Half of the grid's side over the source's root mean square radius along an axis, before another is tried."""
FAINTEST = 0.15
"""Coefficients below this share of the greatest do not count in that radius."""
LEAST_VARIANCE = 1e-9
"""Variance of the coefficients below which the prior of a source without light does not fall, in units of the data."""
LENGTH, OWN = 1.0, 1e-3
"""Standard deviation of the Gaussian by which coefficients are alike before a fit, in steps of the grid, and the share
of their variance that is each one's own."""


@dataclass(frozen=True)
class SourceGrid:
    """A square grid of splines in the plane of the source."""

    variance: float
    """Variance of the coefficients before a fit, in units of the data."""
    centre: tuple[float, float]
    half: float
    greatest: float
    """Greatest half of the side, arcsec."""
    size: int = GRID
    """Splines along a side."""
    extent: float = EXTENT
    """Half of the side over the source's root mean square radius along an axis."""

    @classmethod
    def around(cls, theta_e: float) -> "SourceGrid":
        """The grid for the source of a lens of that Einstein radius, arcsec, of which nothing else is known."""
        half = max(GREATEST_HALF, OVER_THETA_E * theta_e)
        return cls(variance=1.0, centre=(0.0, 0.0), half=half, greatest=half)

    @property
    def n_splines(self) -> int:
        """Number of splines."""
        return self.size**2

    @property
    def step(self) -> float:
        """Distance of splines, arcsec; light falls to nothing beyond the first and the last."""
        return 2 * self.half / (self.size - 1)

    @property
    def precision(self) -> Floats:
        """Inverse covariance of the coefficients before a fit, [n_splines, n_splines]."""
        return _unit_prior(self.size)[0] / self.variance

    @property
    def log_det(self) -> float:
        """Logarithm of the determinant of `precision`."""
        return _unit_prior(self.size)[1] - self.n_splines * float(np.log(self.variance))

    def trace(self, lower: Floats) -> float:
        """Trace of a symmetric matrix times `precision`; lower: its lower triangle."""
        whole = np.tril(lower) + np.tril(lower, -1).T
        return float((whole * self.precision).sum())

    def places(self, x: Reals, y: Reals) -> tuple[Reals, Reals]:
        """Places x, y, arcsec, in steps of the grid."""
        middle = (self.size - 1) / 2
        return (x - self.centre[0]) / self.step + middle, (y - self.centre[1]) / self.step + middle

    def gradient(self, splines: tuple[response.Splines, response.Splines], coefficients: Floats) -> tuple[Reals, Reals]:
        """Gradient of a source at points, light an arcsec along x and along y; splines: values and slopes there."""
        values, slopes = splines
        source = coefficients.reshape(self.size, self.size).astype(np.float32)
        along_x = response.light(values._replace(along_x=slopes.along_x), source) / self.step
        along_y = response.light(values._replace(along_y=slopes.along_y), source) / self.step
        return along_x, along_y


def settled(grid: SourceGrid, coefficients: Floats, n_effective: float) -> SourceGrid:
    """The grid around a source that was found, with the prior variance of greatest evidence.

    n_effective: number of coefficients that the data determine.
    """
    source = coefficients.reshape(grid.size, grid.size)
    bright = np.where(source > FAINTEST * source.max(), source, 0).clip(np.finfo(np.float64).tiny)
    axis = (np.arange(grid.size) - (grid.size - 1) / 2) * grid.step
    x, y = (float((bright * along).sum() / bright.sum()) for along in (axis, axis[:, None]))
    spread = np.sqrt((bright * ((axis - x) ** 2 + (axis[:, None] - y) ** 2)).sum() / bright.sum() / 2)
    weighed = float(coefficients @ _unit_prior(grid.size)[0] @ coefficients)
    return replace(
        grid,
        variance=max(weighed / max(n_effective, 1.0), LEAST_VARIANCE),
        centre=(grid.centre[0] + x, grid.centre[1] + y),
        half=float(np.clip(grid.extent * spread, LEAST_HALF, grid.greatest)),
    )


@lru_cache(maxsize=4)
def _unit_prior(size: int) -> tuple[Floats, float]:
    """Inverse covariance of coefficients of unit variance on a grid of that size, and its determinant's logarithm."""
    axis = np.arange(size)
    along = np.exp(-0.5 * ((axis - axis[:, None]) / LENGTH) ** 2)
    covariance: Floats = np.kron(along, along) + OWN * np.eye(size**2)
    return np.asarray(np.linalg.inv(covariance)), -float(np.linalg.slogdet(covariance)[1])
