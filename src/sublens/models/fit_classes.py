"""Classes from lens models: what their evidence gains by substructure, beside the network's probabilities.

A multinomial logistic regression on a handful of features, fitted to lens models of simulated lenses. Knows no torch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sublens.config import Frozen
from sublens.models.calibration import COVERAGE, softmax
from sublens.models.detection import REACH, Detection

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

RIDGE = 1.0
"""Penalty on half the squared coefficients of standardised features, for the whole sample."""
SOFTENING = 3.0
"""Gain in log evidence at which its feature turns from linear to logarithmic."""
FOLDS = 10
"""Parts of the sample; each has probabilities of a regression on the others."""


class Evidence(NamedTuple):
    """What a lens model tells of substructure in one image."""

    chi2: float
    """Mean squared residual of the smooth lens, in units of the noise."""
    string_gain: float
    subhalo_gain: float
    """Log evidence that is gained by one string, and by one subhalo, beside the smooth lens."""
    n_effective: float
    """Coefficients of the source that the data determine."""
    sensitivity: float
    sensitivity_spread: float
    """As in `modelling.sensitivity`: ln of the signal to noise of a subhalo of unit strength around the ring."""


class FitClasses(Frozen):
    """The fitted regression, part of the card of a network for images of telescopes."""

    means: tuple[float, ...]
    """Mean of each feature over the simulated lenses, [k]."""
    spreads: tuple[float, ...]
    """Standard deviation of each."""
    weights: tuple[tuple[float, ...], ...]
    """For each class the coefficients of 1, then of each standardised feature, [c, 1 + k]."""
    cutoffs: tuple[float, ...]
    """Least probability of each class in a prediction set."""
    greatest_chi2: float
    """Mean squared residual that one in a hundred of the simulated lenses exceeds; beyond it nothing is said."""
    n: int
    """Number of simulated lenses."""
    detection: Detection | None = None
    """Chance that one subhalo is found: that the probability of `no` falls below a value."""

    def probs(self, x: Floats) -> Floats:
        """Probabilities [n, c] from features [n, k]."""
        return softmax(_terms(x, np.array(self.means), np.array(self.spreads)) @ np.array(self.weights).T)


def features(probs: Floats, evidence: Sequence[Evidence]) -> Floats:
    """Features of lenses for `FitClasses`, [n, k]; probs: the network's, [n, c]."""
    log = np.log(probs.clip(1e-6))
    columns = np.array(evidence, dtype=np.float64).T
    chi2, string, subhalo, n_effective, sensitivity, _ = columns
    gains = [np.arcsinh(gain / SOFTENING) for gain in (string, subhalo)]
    return np.stack([*(log[:, 1:] - log[:, :1]).T, *gains, np.log(chi2), np.log1p(n_effective), sensitivity], axis=1)


def detection_features(evidence: Sequence[Evidence]) -> Floats:
    """Features of lenses for the detection limit, [n, 2]."""
    return np.array([[each.sensitivity, each.sensitivity_spread] for each in evidence])


def fit(x: Floats, labels: Labels, chi2: Floats) -> FitClasses:
    """Fit the regression to features [n, k] of lenses of known classes [n], and cutoffs to what it says of new ones."""
    means, spreads, weights = _fit(x, labels)
    chosen = np.arange(len(x)) % FOLDS
    probs = np.empty((len(x), len(weights)))
    for fold in range(FOLDS):
        own = chosen == fold
        m, s, w = _fit(x[~own], labels[~own])
        probs[own] = softmax(_terms(x[own], m, s) @ w.T)
    return FitClasses(
        means=tuple(means.tolist()),
        spreads=tuple(spreads.tolist()),
        weights=tuple(map(tuple, weights.tolist())),
        cutoffs=tuple(_cutoff(probs[labels == label, label]) for label in range(len(weights))),
        greatest_chi2=float(np.quantile(chi2, 0.99)),
        n=len(x),
    )


def _cutoff(probs: Floats) -> float:
    """The probability that a share `COVERAGE` of new images of a class reach (Vovk et al. 2005)."""
    rank = int(np.floor((1 - COVERAGE) * (len(probs) + 1)))
    return float(np.sort(probs)[rank - 1]) if rank else 0.0


def _fit(x: Floats, labels: Labels) -> tuple[Floats, Floats, Floats]:
    """Means, spreads and weights."""
    from scipy.optimize import minimize

    means, spreads = x.mean(0), x.std(0)
    spreads = np.where(spreads > 0, spreads, 1.0)
    terms, one_hot = _terms(x, means, spreads), np.eye(labels.max() + 1)[labels]

    def cost(flat: Floats) -> tuple[float, Floats]:
        weights = flat.reshape(one_hot.shape[1], -1)
        probs, penalised = softmax(terms @ weights.T), weights * (np.arange(weights.shape[1]) > 0)
        loss = -np.log((probs * one_hot).sum(1).clip(1e-300)).sum() + RIDGE * (penalised**2).sum() / 2
        return float(loss), ((probs - one_hot).T @ terms + RIDGE * penalised).ravel()

    best = minimize(cost, np.zeros(one_hot.shape[1] * terms.shape[1]), jac=True, method="L-BFGS-B").x
    return means, spreads, best.reshape(one_hot.shape[1], -1)


def _terms(x: Floats, means: Floats, spreads: Floats) -> Floats:
    z = ((x - means) / spreads).clip(-REACH, REACH)
    return np.hstack([np.ones((len(z), 1)), z])
