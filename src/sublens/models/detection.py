"""The detection limit of one image: the mass at which one subhalo on its arc would have been found nine times in ten.

Substructure counts as found where the probability of `no` lies below a value that `FALSE_POSITIVES` of the smooth
lenses fall short of. The chance of that, for a subhalo of mass m in a lens of features x (see `sublens.models.arc`), is
FALSE_POSITIVES + (1 - FALSE_POSITIVES) / (1 + exp(-eta)), with eta linear in log10 m; its value at the mass of `PIVOT`
is quadratic in x, its slope linear. Knows no torch.
"""

import numpy as np
from numpy.typing import NDArray

from sublens.config import Frozen

Floats = NDArray[np.float64]

FALSE_POSITIVES = 0.1
"""Share of smooth lenses in which substructure counts as found, as in Tsang et al. 2024, arXiv:2401.16624."""
FOUND = 0.9
"""Chance with which a subhalo of the mass of the limit is found."""
LOG_MASSES = (7.5, 11.5)
"""log10 of the least and the greatest mass of the simulated subhaloes, solar masses."""
PIVOT = 9.5
"""log10 of a mass, solar masses, from which masses are counted."""
REACH = 3.0
"""Standard deviations beyond which a feature counts as no further from its mean: nothing is extrapolated."""
RIDGE = 1.0
"""Penalty on half the squared coefficients of standardised features, for the whole sample: as a normal prior of width
one, which matters only where there are few simulations."""
LEAST_SLOPE = 0.1
"""Slope with log10 of the mass below which there is no limit, as the chance hardly grows with mass."""


class Detection(Frozen):
    """The fitted chance that one subhalo on the arc is found by a network, part of its card."""

    p_no: float
    """Probability of `no` below which substructure counts as found."""
    log_most: float
    """log10 of the greatest solar masses that a limit may have: up to there, the heavier the more often found."""
    means: tuple[float, ...]
    """Mean of each feature over the simulated lenses."""
    spreads: tuple[float, ...]
    """Standard deviation of each."""
    levels: tuple[float, ...]
    """Coefficients of eta at the mass of `PIVOT`: of 1, each standardised feature, then their products by pairs."""
    slopes: tuple[float, ...]
    """Coefficients of the slope of eta with log10 of the mass: of 1, then of each standardised feature."""
    n: int
    """Number of simulated lenses, each with and without a subhalo."""

    def chance(self, x: Floats, log_mass: Floats) -> Floats:
        """Chance [n] that a subhalo is found in lenses of features [n, k]; log_mass: log10 of its solar masses, [n]."""
        level, slope = self._line(x)
        return np.asarray(_chance(level + slope * (log_mass - PIVOT)))

    def log_limits(self, x: Floats) -> Floats:
        """log10 of the least solar masses [n] that are found with chance `FOUND` in lenses of features [n, k].

        At least the least of `LOG_MASSES`; NaN where not even `log_most` is found so often.
        """
        level, slope = self._line(x)
        share = (FOUND - FALSE_POSITIVES) / (1 - FALSE_POSITIVES)
        needed = PIVOT + (np.log(share / (1 - share)) - level) / np.maximum(slope, LEAST_SLOPE)
        return np.where((needed <= self.log_most) & (slope >= LEAST_SLOPE), np.maximum(needed, LOG_MASSES[0]), np.nan)

    def _line(self, x: Floats) -> tuple[Floats, Floats]:
        """eta at the mass of `PIVOT` and its slope with log10 of the mass, [n]."""
        linear, quadratic = _terms(x, np.array(self.means), np.array(self.spreads))
        return quadratic @ np.array(self.levels), linear @ np.array(self.slopes)


def fit(x: Floats, log_mass: Floats, detected: NDArray[np.bool_], p_no: float, log_most: float) -> Detection:
    """Fit the chance to simulated lenses by maximum likelihood, with the penalty `RIDGE`.

    x: features of the lenses without a subhalo [n, k]. log_mass: log10 of the solar masses of the subhalo that each
    was given, [n]. detected: whether it was found, [n]. p_no, log_most: see `Detection`.
    """
    from scipy.optimize import minimize

    means, spreads = x.mean(0), x.std(0)
    spreads = np.where(spreads > 0, spreads, 1.0)  # a constant feature
    linear, quadratic = _terms(x, means, spreads)
    terms, n_levels = np.hstack([quadratic, linear * (log_mass - PIVOT)[:, None]]), quadratic.shape[1]
    penalties = np.full(terms.shape[1], RIDGE)
    penalties[[0, n_levels]] = 0

    def cost(coefficients: Floats) -> tuple[float, Floats]:
        return _cost(coefficients, terms, detected, penalties)

    start = np.eye(len(penalties))[n_levels]
    best = minimize(cost, start, jac=True, method="L-BFGS-B", options={"maxiter": 2000}).x
    return Detection(
        p_no=p_no,
        log_most=log_most,
        means=tuple(means.tolist()),
        spreads=tuple(spreads.tolist()),
        levels=tuple(best[:n_levels].tolist()),
        slopes=tuple(best[n_levels:].tolist()),
        n=len(x),
    )


def threshold(p_no: Floats) -> float:
    """The probability of `no` that `FALSE_POSITIVES` of these smooth lenses [n] fall short of."""
    return float(np.quantile(p_no, FALSE_POSITIVES))


def _terms(x: Floats, means: Floats, spreads: Floats) -> tuple[Floats, Floats]:
    """Terms linear and quadratic in the standardised features: 1 and each of them; then their products by pairs."""
    z = ((x - means) / spreads).clip(-REACH, REACH)
    first, second = np.triu_indices(z.shape[1])
    linear = np.hstack([np.ones((len(z), 1)), z])
    return linear, np.hstack([linear, z[:, first] * z[:, second]])


def _chance(eta: Floats) -> Floats:
    from scipy.special import expit

    return np.asarray(FALSE_POSITIVES + (1 - FALSE_POSITIVES) * expit(eta))


def _cost(coefficients: Floats, terms: Floats, detected: NDArray[np.bool_], penalties: Floats) -> tuple[float, Floats]:
    """Negative logarithm of the likelihood with its penalty, and its gradient; terms: those of eta, [n, p]."""
    from scipy.special import expit

    share = expit(terms @ coefficients)
    chance = FALSE_POSITIVES + (1 - FALSE_POSITIVES) * share
    missed = np.maximum((1 - FALSE_POSITIVES) * (1 - share), 1e-300)
    loss = -np.log(np.where(detected, chance, missed)).sum() + (penalties * coefficients**2).sum() / 2
    pull = np.where(detected, -(1 - FALSE_POSITIVES) * share * (1 - share) / chance, share)
    return float(loss), pull @ terms + penalties * coefficients
