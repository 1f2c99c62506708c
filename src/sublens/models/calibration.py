"""What the word of a trained network is worth: temperature, prediction sets, and how strange an image is.

Arrays in, values out. Logits and features of images that no weight was fitted to make probabilities
honest, sets that hold the truth as often as they say, and a threshold that few familiar images pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sublens.metrics import losses

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

COVERAGE = 0.9
"""Share of images whose set holds the truth."""
FALSE_ALARMS = 0.01
"""Share of familiar images that are called strange."""
TEMPERATURES = (0.05, 20.0)


@dataclass(frozen=True)
class Layer:
    """The moments of one feature map over the training images: a Gaussian, and its usual distances."""

    mean: Floats
    """[d]"""
    precision: Floats
    """Inverse of the shrunk covariance, [d, d]."""
    usual: tuple[float, float]
    """Mean and standard deviation of the logarithm of the squared distance."""

    def distance(self, moments: Floats) -> Floats:
        """How far [n, d] are from the mean: log squared Mahalanobis distance, in its standard deviations, [n]."""
        off = moments - self.mean
        squared = ((off @ self.precision) * off).sum(1)
        return np.asarray((np.log(np.maximum(squared, 1e-300)) - self.usual[0]) / self.usual[1])


@dataclass(frozen=True)
class Calibration:
    """What was learned from images that no weight was fitted to."""

    temperature: float
    """Logits are divided by it: above 1 where the network was too sure."""
    cutoff: float
    """Least probability of a class in a prediction set."""
    coverage: float = COVERAGE
    """Share of images whose set holds the truth."""
    layers: tuple[Layer, ...] = ()
    """Empty where the network has no feature maps to look at."""
    ood_threshold: float = np.inf
    """Score above which an image is called strange."""
    false_alarms: float = FALSE_ALARMS
    """Share of familiar images above it."""

    def probs(self, logits: Floats) -> Floats:
        """Probabilities [n, c]."""
        return softmax(logits / self.temperature)

    def sets(self, probs: Floats) -> NDArray[np.bool_]:
        """Which classes are in each prediction set, [n, c]; a set is empty where no class is probable enough."""
        return np.asarray(probs >= self.cutoff)

    def ood(self, moments: Sequence[Floats]) -> Floats:
        """How unlike the training images each is, [n]: mean distance over the layers; 0 is usual.

        Mahalanobis distances in several feature maps, added up, are those of Lee et al. 2018,
        arXiv:1807.03888; mean, spread and maximum of each channel, and one Gaussian for all classes,
        are ours: what is strange here shows in noise, sharpness and single spots.
        """
        return np.asarray(np.mean([layer.distance(one) for layer, one in zip(self.layers, moments, strict=True)], 0))


def softmax(logits: Floats) -> Floats:
    """Probabilities [n, c]."""
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def fit_temperature(logits: Floats, labels: Labels) -> float:
    """The temperature of least cross-entropy (Guo et al. 2017, arXiv:1706.04599).

    Labels are taken for right with a probability of (n + 1) / (n + c), as Platt (1999) did, or few
    images that are all told rightly would ask for certainty.
    """
    from scipy.optimize import minimize_scalar

    n, n_classes = logits.shape
    doubt = (n_classes - 1) / (n + n_classes)

    def cost(log_temperature: float) -> float:
        probs = softmax(logits / np.exp(log_temperature))
        others = -np.log(np.maximum(probs, 1e-300)).mean(axis=1)
        return float(((1 - doubt) * losses(probs, labels) + doubt * others).mean())

    low, high = np.log(TEMPERATURES)
    return float(np.exp(minimize_scalar(cost, bounds=(low, high), method="bounded", options={"xatol": 1e-6}).x))


def fit_cutoff(probs: Floats, labels: Labels, coverage: float = COVERAGE) -> float:
    """The least probability of a class in a set, so that sets of new images hold the truth often enough.

    Split conformal prediction with the least ambiguous sets (Sadinle et al. 2019, arXiv:1609.00451):
    of n images, the (n + 1)(1 - coverage)-th least probability of the truth, rounded down; 0, so that
    sets hold every class, where there are too few images for a promise.
    """
    true = np.sort(probs[np.arange(len(labels)), labels])
    rank = int(np.floor((len(true) + 1) * (1 - coverage) + 1e-9))
    return float(true[rank - 1]) if rank >= 1 else 0.0


def fit_layer(moments: Floats) -> Layer:
    """The Gaussian of these moments [n, d], its covariance shrunk as Ledoit & Wolf (2004) say."""
    from sklearn.covariance import LedoitWolf

    mean, spread = moments.mean(0), moments.std(0)
    spread = np.where(spread > 0, spread, 1.0)  # of a channel that is always silent
    precision = LedoitWolf(assume_centered=True).fit((moments - mean) / spread).precision_
    layer = Layer(mean, precision / np.outer(spread, spread), (0.0, 1.0))
    distances = layer.distance(moments)
    return Layer(layer.mean, layer.precision, (float(distances.mean()), float(distances.std()) or 1.0))


def fit(
    logits: Floats, labels: Labels, moments: Sequence[Floats], familiar: Sequence[Floats], coverage: float = COVERAGE
) -> Calibration:
    """Calibrate on the selection part.

    logits [n, c], labels [n] and moments, [n, d] for each layer, are those of the selection part;
    familiar: moments of training images, which the Gaussians are fitted to.
    """
    temperature = fit_temperature(logits, labels)
    cutoff = fit_cutoff(softmax(logits / temperature), labels, coverage)
    calm = Calibration(temperature, cutoff, coverage, tuple(map(fit_layer, familiar)))
    if not calm.layers:
        return calm
    threshold = float(np.quantile(calm.ood(moments), 1 - FALSE_ALARMS))
    return Calibration(temperature, cutoff, coverage, calm.layers, threshold)
