"""Calibration: temperature scaling, conformal prediction sets and the out-of-distribution (OOD) score.

Arrays in, values out. Fitted to logits and features of the selection part, which no weight was fitted to. Sets and
threshold keep their promise for the images of each class, so that it holds for any mixture of the classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sublens.metrics import losses
from sublens.models.macro import Scales

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

COVERAGE = 0.9
"""Share of the images of each class whose set holds the truth."""
FALSE_ALARMS = 0.01
"""Share of the in-distribution images of each class that are flagged as out of distribution, where there are 99 of
each to fit to."""
ENOUGH = 1_000
"""Images of each class from which the OOD scores of the classes are brought to one threshold."""
ROUNDS, TOLERANCE = 30, 1e-6
"""Rounds within which the thresholds of the classes must settle, and the change of a settled one."""
TEMPERATURES = (0.05, 20.0)
"""Least and greatest temperature that is tried."""
SIGNIFICANCE = 0.05
"""Chance below which a temperature counts as told from another."""


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
    cutoffs: tuple[float, ...]
    """Least probability of each class in a prediction set; a single one for all in networks of sublens up to 0.2."""
    coverage: float = COVERAGE
    """Share of the images of each class whose set holds the truth; with a single cutoff, of all images."""
    layers: tuple[Layer, ...] = ()
    """Empty where the network has no feature maps."""
    ood_threshold: float = np.inf
    """Score above which an image is out of distribution."""
    false_alarms: float = FALSE_ALARMS
    """Share of the in-distribution images of each class above it, at most; with a single cutoff, of all images."""
    n: int = 0
    """Number of selection images that it was fitted to; 0 where that is unknown."""
    ood_offsets: tuple[float, ...] = ()
    """Part of the score that belongs to each class, see `fit_offsets`; empty where none is taken off."""
    macro_scales: Scales | None = None
    """Factors of the standard deviations of the macromodel, see `macro.measured`; None without a macro head."""
    contaminant_score: tuple[float, float] | None = None
    """Offset and factor of the contaminants' logit in the OOD score, see `fit_contaminant_score`; None without it."""

    @property
    def is_by_class(self) -> bool:
        """Whether coverage and false alarms are promised for each class, not only over all images."""
        return len(self.cutoffs) > 1

    @property
    def caution(self) -> str:
        """A note for every prediction where the threshold promises less than `FALSE_ALARMS`; else empty."""
        if not self.layers or self.false_alarms <= FALSE_ALARMS:
            return ""
        scope = " in a class" if self.is_by_class else ""
        share = f"{self.false_alarms:.1%} false alarms{scope}"
        return f"out-of-distribution threshold from {self.n:,} images alone: up to {share}"

    def probs(self, logits: Floats) -> Floats:
        """Probabilities [n, c]."""
        return softmax(logits / self.temperature)

    def sets(self, probs: Floats) -> NDArray[np.bool_]:
        """Membership of each class in the prediction sets, [n, c]; empty where no class is probable enough."""
        return np.asarray(probs >= np.array(self.cutoffs))

    def without_temperature(self, probs: Floats) -> Floats:
        """Probabilities [n, c] of the same logits at a temperature of 1."""
        return softmax(self.temperature * np.log(np.maximum(probs, 1e-300)))

    def ood(self, moments: Sequence[Floats], probs: Floats, contaminant_logits: Floats | None = None) -> Floats:
        """Out-of-distribution score [n]: mean distance over the layers, without the part that belongs to the class.

        About 0 for an average training image; where the network knows contaminants, their logit [n] counts where it is
        the greater of both. moments: [n, d] for each layer; probs: [n, c]. Mahalanobis distances
        summed over feature maps are those of Lee et al. 2018, arXiv:1807.03888; mean, spread and maximum of each
        channel, and one Gaussian for all classes, are ours: images out of distribution differ here in noise, sharpness
        and single spots.
        """
        scores = combined(mean_distance(self.layers, moments), contaminant_logits, self.contaminant_score)
        return scores - probs @ np.array(self.ood_offsets) if self.ood_offsets else scores

    def is_ood(self, scores: Floats) -> NDArray[np.bool_]:
        """Whether images of these scores [n] are out of distribution, [n]."""
        return np.asarray(scores > self.ood_threshold)


def mean_distance(layers: Sequence[Layer], moments: Sequence[Floats]) -> Floats:
    """Mean over the layers of the distance of moments, [n, d] for each, [n]."""
    distances = [layer.distance(rows) for layer, rows in zip(layers, moments, strict=True)]
    return np.asarray(np.mean(distances, 0))


def combined(
    distances: Floats, contaminant_logits: Floats | None, contaminant_score: tuple[float, float] | None
) -> Floats:
    """The greater of the mean distance and the contaminants' logit, brought to the distance's scale, [n]."""
    if contaminant_logits is None or contaminant_score is None:
        return distances
    offset, factor = contaminant_score
    return np.maximum(distances, offset + factor * contaminant_logits)


def fit_contaminant_score(distances: Floats, logits: Floats) -> tuple[float, float]:
    """Offset and factor that give the logits of lenses the median of their distances [n], and the same threshold.

    The threshold is that of half of `FALSE_ALARMS`, since either of the two may raise one.
    """
    (middle, limit), (low, high) = (
        (float(np.median(scores)), fit_threshold(scores, FALSE_ALARMS / 2)[0]) for scores in (distances, logits)
    )
    factor = (limit - middle) / max(high - low, 1e-9)
    return middle - factor * low, factor


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


def fit_cutoffs(probs: Floats, labels: Labels, coverage: float = COVERAGE) -> tuple[float, ...]:
    """The least probability of each class in a set, at which sets hold the truth with that coverage in each class.

    Label-conditional split conformal prediction (Vovk 2013, arXiv:1209.2673) with the least ambiguous sets (Sadinle
    et al. 2019, arXiv:1609.00451): a class has a cutoff of its own, from the images [n, c] that are of it.
    """
    columns = enumerate(probs.T)
    return tuple(fit_cutoff(column[labels == label], coverage) for label, column in columns)


def fit_cutoff(true: Floats, coverage: float = COVERAGE) -> float:
    """The probability that the truth of a new image reaches with at least that coverage.

    true: probabilities of the truth [n]. It is the (n + 1)(1 - coverage)-th least of them, rounded down; 0, which any
    image reaches, where there are too few for a guarantee.
    """
    rank = int(np.floor((len(true) + 1) * (1 - coverage) + 1e-9))
    return float(np.sort(true)[rank - 1]) if rank >= 1 else 0.0


def fit_threshold(scores: Floats, false_alarms: float = FALSE_ALARMS) -> tuple[float, float]:
    """The score that a new image of the same kind exceeds with at most the second number as probability.

    Split conformal prediction (Lei et al. 2018, arXiv:1604.04173): of the scores [n] of images that
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


def fit_offsets(scores: Floats, probs: Floats, labels: Labels) -> tuple[tuple[float, ...], float, float]:
    """Offsets of the classes, threshold and promise, so that no class has more false alarms than promised.

    Scores [n] of in-distribution images spread differently by class. With `ENOUGH` images of each, a score loses the
    offsets of the classes, weighted by its probabilities [n, c], such that the images of each class exceed one
    threshold equally often. Otherwise, or where the probabilities say too little of the class, there are no offsets
    and the threshold is the greatest that a class needs by itself.
    """
    sizes = np.bincount(labels, minlength=probs.shape[1])
    promise = max(FALSE_ALARMS, 1 / (sizes.min() + 1))
    limits = _class_limits(scores, probs, labels) if sizes.min() >= ENOUGH else None
    if limits is not None:
        return tuple(map(float, limits - limits.mean())), float(limits.mean()), promise
    return (), max(fit_threshold(scores[labels == label])[0] for label in np.flatnonzero(sizes)), promise


def _class_limits(scores: Floats, probs: Floats, labels: Labels) -> Floats | None:
    """Thresholds [c] whose mean, weighted by the probabilities, is exceeded by `FALSE_ALARMS` of each class.

    None where they do not settle.
    """
    limits = np.zeros(probs.shape[1])
    for _ in range(ROUNDS):
        above = scores - probs @ limits
        changes = np.array([fit_threshold(above[labels == label])[0] for label in range(len(limits))])
        limits += changes
        if np.abs(changes).max() < TOLERANCE:
            return limits
    return None


def fit(
    logits: Floats,
    labels: Labels,
    moments: Sequence[Floats],
    training: Sequence[Floats],
    coverage: float = COVERAGE,
    contaminant_logits: Floats | None = None,
) -> Calibration:
    """Calibrate on the selection part.

    logits [n, c], labels [n] and moments, [n, d] for each layer, are those of the selection part;
    training: moments of training images, which the Gaussians are fitted to. contaminant_logits: [n], where the network
    learned from contaminants.
    """
    layers = tuple(map(fit_layer, training))
    temperature = fit_temperature(logits, labels)
    return _fit_promises(temperature, layers, logits, labels, moments, coverage, contaminant_logits)


def refit(
    calibration: Calibration,
    logits: Floats,
    labels: Labels,
    moments: Sequence[Floats],
    contaminant_logits: Floats | None = None,
) -> Calibration:
    """Calibrate again on other images, with the same Gaussians and no factors of the macromodel's deviations.

    The temperature stays where the images cannot tell it from the best one; arguments as in `fit`.
    """
    best, temperature = fit_temperature(logits, labels), calibration.temperature
    if temperature_p(temperature, best, logits, labels) < SIGNIFICANCE:
        temperature = best
    layers, coverage = calibration.layers, calibration.coverage
    return _fit_promises(temperature, layers, logits, labels, moments, coverage, contaminant_logits)


def temperature_p(temperature: float, best: float, logits: Floats, labels: Labels) -> float:
    """Chance of a likelihood ratio as large as that of the best temperature, were `temperature` the right one.

    By the theorem of Wilks (1938): twice the logarithm of the ratio has a chi-squared distribution.
    """
    from scipy.stats import chi2

    gain = losses(softmax(logits / temperature), labels) - losses(softmax(logits / best), labels)
    return float(chi2.sf(2 * gain.sum(), 1))


def _fit_promises(
    temperature: float,
    layers: tuple[Layer, ...],
    logits: Floats,
    labels: Labels,
    moments: Sequence[Floats],
    coverage: float,
    contaminant_logits: Floats | None = None,
) -> Calibration:
    """Cutoffs of the sets, and offsets and threshold of the OOD score, for a temperature and Gaussians."""
    probs = softmax(logits / temperature)
    without_ood = Calibration(temperature, fit_cutoffs(probs, labels, coverage), coverage, layers, n=len(labels))
    if not layers:
        return without_ood
    scores, contaminant_score = mean_distance(layers, moments), None
    if contaminant_logits is not None:
        contaminant_score = fit_contaminant_score(scores, contaminant_logits)
        scores = combined(scores, contaminant_logits, contaminant_score)
    offsets, threshold, promise = fit_offsets(scores, probs, labels)
    return replace(
        without_ood,
        ood_offsets=offsets,
        ood_threshold=threshold,
        false_alarms=promise,
        contaminant_score=contaminant_score,
    )
