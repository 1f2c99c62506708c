"""Calibration: temperature scaling, conformal prediction sets and the out-of-distribution (OOD) score.

Arrays in, values out. Fitted to logits and features of the selection part, which no weight was fitted to.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sublens.metrics import losses

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

COVERAGE = 0.9
"""Share of images whose set holds the truth."""
FALSE_ALARMS = 0.01
"""Share of in-distribution images that are flagged as out of distribution, where there are 99 images to fit to."""
TEMPERATURES = (0.05, 20.0)
"""Least and greatest temperature that is tried."""


@dataclass(frozen=True)
class Layer:
    """Gaussian of the moments of one feature map over the training images."""

    mean: Floats
    """[d]"""
    precision: Floats
    """Inverse of the shrunk covariance, [d, d]."""
    log_distance: tuple[float, float]
    """Mean and standard deviation of the log squared Mahalanobis distance over the training images."""

    def distance(self, moments: Floats) -> Floats:
        """Standardised log squared Mahalanobis distance of moments [n, d] from the mean, [n]."""
        off, (mean, spread) = moments - self.mean, self.log_distance
        squared = ((off @ self.precision) * off).sum(1)
        return np.asarray((np.log(np.maximum(squared, 1e-300)) - mean) / spread)


@dataclass(frozen=True)
class Calibration:
    """Calibration parameters of one network."""

    temperature: float
    """Divisor of the logits: above 1 for an overconfident network."""
    cutoff: float
    """Least probability of a class in a prediction set."""
    coverage: float = COVERAGE
    """Share of images whose set holds the truth."""
    layers: tuple[Layer, ...] = ()
    """Empty where the network has no feature maps."""
    ood_threshold: float = np.inf
    """Score above which an image is out of distribution."""
    false_alarms: float = FALSE_ALARMS
    """Share of in-distribution images above it, at most: the promise of `fit_threshold`."""
    n: int = 0
    """Number of selection images that it was fitted to; 0 where that is unknown."""

    @property
    def caution(self) -> str:
        """A note for every prediction where the threshold promises less than `FALSE_ALARMS`; else empty."""
        if not self.layers or self.false_alarms <= FALSE_ALARMS:
            return ""
        return f"out-of-distribution threshold from {self.n:,} images alone: up to {self.false_alarms:.1%} false alarms"

    def probs(self, logits: Floats) -> Floats:
        """Probabilities [n, c]."""
        return softmax(logits / self.temperature)

    def sets(self, probs: Floats) -> NDArray[np.bool_]:
        """Membership of each class in the prediction sets, [n, c]; empty where no class is probable enough."""
        return np.asarray(probs >= self.cutoff)

    def ood(self, moments: Sequence[Floats]) -> Floats:
        """Out-of-distribution score [n]: mean distance over the layers; 0 is that of an average training image.

        moments: [n, d] for each layer. Mahalanobis distances summed over feature maps are those of Lee
        et al. 2018, arXiv:1807.03888; mean, spread and maximum of each channel, and one Gaussian for all
        classes, are ours: images out of distribution differ here in noise, sharpness and single spots.
        """
        distances = [layer.distance(rows) for layer, rows in zip(self.layers, moments, strict=True)]
        return np.asarray(np.mean(distances, 0))

    def is_ood(self, scores: Floats) -> NDArray[np.bool_]:
        """Whether images of these scores [n] are out of distribution, [n]."""
        return np.asarray(scores > self.ood_threshold)


def softmax(logits: Floats) -> Floats:
    """Probabilities [n, c]."""
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def fit_temperature(logits: Floats, labels: Labels) -> float:
    """The temperature of least cross-entropy (Guo et al. 2017, arXiv:1706.04599).

    Labels are smoothed to a probability of (n + 1) / (n + c), as Platt (1999) did; without that, few
    images that are all classified correctly would drive the temperature to zero.
    """
    from scipy.optimize import minimize_scalar

    n, n_classes = logits.shape
    smoothing = (n_classes - 1) / (n + n_classes)

    def cost(log_temperature: float) -> float:
        probs = softmax(logits / np.exp(log_temperature))
        others = -np.log(np.maximum(probs, 1e-300)).mean(axis=1)
        return float(((1 - smoothing) * losses(probs, labels) + smoothing * others).mean())

    low, high = np.log(TEMPERATURES)
    return float(np.exp(minimize_scalar(cost, bounds=(low, high), method="bounded", options={"xatol": 1e-6}).x))


def fit_cutoff(probs: Floats, labels: Labels, coverage: float = COVERAGE) -> float:
    """The least probability of a class in a set, at which sets of new images hold the truth with that coverage.

    Split conformal prediction with the least ambiguous sets (Sadinle et al. 2019, arXiv:1609.00451):
    of n images, the (n + 1)(1 - coverage)-th least probability of the truth, rounded down; 0, so that
    sets hold every class, where there are too few images for a guarantee.
    """
    true = np.sort(probs[np.arange(len(labels)), labels])
    rank = int(np.floor((len(true) + 1) * (1 - coverage) + 1e-9))
    return float(true[rank - 1]) if rank >= 1 else 0.0


def fit_threshold(scores: Floats, false_alarms: float = FALSE_ALARMS) -> tuple[float, float]:
    """The OOD score that a new in-distribution image exceeds with at most the second number as probability.

    Split conformal prediction (Lei et al. 2018, arXiv:1604.04173): of the scores [n] of in-distribution images that
    nothing was fitted to, the (n + 1)(1 - false_alarms)-th, rounded up. Where that is beyond the n-th, as for 1 %
    and fewer than 99 images, it is the n-th, which a new image exceeds with a probability of 1 / (n + 1).
    """
    promise = max(false_alarms, 1 / (len(scores) + 1))
    rank = int(np.ceil((len(scores) + 1) * (1 - promise) - 1e-9))
    return float(np.sort(scores)[rank - 1]), promise


def fit_layer(moments: Floats) -> Layer:
    """The Gaussian of these moments [n, d], its covariance shrunk as by Ledoit & Wolf (2004)."""
    from sklearn.covariance import LedoitWolf

    mean, spread = moments.mean(0), moments.std(0)
    spread = np.where(spread > 0, spread, 1.0)  # a constant channel
    precision = LedoitWolf(assume_centered=True).fit((moments - mean) / spread).precision_
    layer = Layer(mean, precision / np.outer(spread, spread), (0.0, 1.0))
    distances = layer.distance(moments)
    return Layer(layer.mean, layer.precision, (float(distances.mean()), float(distances.std()) or 1.0))


def fit(
    logits: Floats, labels: Labels, moments: Sequence[Floats], training: Sequence[Floats], coverage: float = COVERAGE
) -> Calibration:
    """Calibrate on the selection part.

    logits [n, c], labels [n] and moments, [n, d] for each layer, are those of the selection part;
    training: moments of training images, which the Gaussians are fitted to.
    """
    temperature = fit_temperature(logits, labels)
    cutoff = fit_cutoff(softmax(logits / temperature), labels, coverage)
    without_threshold = Calibration(temperature, cutoff, coverage, tuple(map(fit_layer, training)), n=len(labels))
    if not without_threshold.layers:
        return without_threshold
    threshold, promise = fit_threshold(without_threshold.ood(moments))
    return replace(without_threshold, ood_threshold=threshold, false_alarms=promise)
