"""Scores of a classifier: arrays in, numbers out.

Conventions: probs [n, c] with rows summing to one; labels [n] in 0..c-1. A score with its interval is a
dict of `value`, `low` and `high`; benchmarks/interval_coverage.py says how often the intervals hold the truth.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
"""Probabilities or scores."""
Labels = NDArray[np.int64]
"""Classes, as positions in a list of them."""

DRAWS = 200
"""Sets of labels drawn from the probabilities, for the calibration error of a perfectly calibrated network."""
LEVEL = 0.95
"""Coverage of the intervals."""
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
"""Half the width of such an interval of a normal distribution, standard deviations."""
SMALLEST_PROB = 1e-12
"""Probabilities below this count as this in the loss, which stays finite."""


def losses(probs: Floats, labels: Labels) -> Floats:
    """Cross-entropy of each image, nats, [n]."""
    return np.asarray(-np.log(np.clip(probs[np.arange(len(labels)), labels], SMALLEST_PROB, None)))


def hits(probs: Floats, labels: Labels) -> Floats:
    """1 where the most probable class is the true one, else 0, [n]."""
    return np.asarray(probs.argmax(axis=1) == labels, dtype=np.float64)


def auc(scores: Floats, is_positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve, nan where all images or none are positive.

    The probability that a positive scores above a negative, ties counting half (Hanley & McNeil
    1982, Radiology 143, 29).
    """
    if is_positive.all() or not is_positive.any():
        return math.nan
    return 1 - float(_misplaced(scores, is_positive).sum()) / 2


def _misplaced(scores: Floats, is_positive: NDArray[np.bool_]) -> Floats:
    """Share of the other side that lies on the wrong side of each image, over the images of its own side, [n].

    Ties count half. The positives and the negatives each sum to 1 - AUC: these are one minus the
    components of DeLong et al. 1988, Biometrics 44, 837.
    """
    positive, negative = np.sort(scores[is_positive]), np.sort(scores[~is_positive])
    n_pairs = len(positive) * len(negative)
    errors = np.empty(len(scores))
    errors[is_positive] = len(negative) - _rank(negative, scores[is_positive])
    errors[~is_positive] = _rank(positive, scores[~is_positive])
    return errors / n_pairs


def _rank(ordered: Floats, scores: Floats) -> Floats:
    """Number of the ordered values below each score, those equal to it counting half."""
    return (np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")) / 2


def confusion(probs: Floats, labels: Labels) -> NDArray[np.int64]:
    """Number of images by true class (rows) and most probable class (columns)."""
    n = probs.shape[1]
    return np.bincount(n * labels + probs.argmax(axis=1), minlength=n * n).reshape(n, n)


def macro_auc(probs: Floats, labels: Labels) -> float:
    """Mean over classes of the one-vs-rest area under the ROC curve."""
    return float(np.mean([auc(column, labels == label) for label, column in enumerate(probs.T)]))


def macro_auc_interval(probs: Floats, labels: Labels) -> dict[str, float]:
    """Mean one-vs-rest area under the ROC curve over classes, with a 95 % interval: value, low and high."""
    return _auc_interval(Ranked.of(probs, labels))


def score(probs: Floats, labels: Labels, classes: Sequence[str]) -> dict[str, Any]:
    """Loss, accuracy and AUC with 95 % intervals, and the confusion matrix.

    Returns the keys `n`, `loss`, `accuracy`, `auc_macro`, `auc` (by class) and `confusion`. The AUC of a class
    is None where all images or none are of it, and the macro AUC is the mean of the others. The
    intervals reflect the sampling of the test images only, not the variance of training.
    """
    ranked = Ranked.of(probs, labels)
    by_class = {column: _auc_interval(ranked.only(column)) for column in ranked.columns}
    return {
        "n": len(labels),
        "loss": _loss_interval(losses(probs, labels), len(classes)),
        "accuracy": wilson(float(hits(probs, labels).mean()), len(labels)),
        "auc_macro": _auc_interval(ranked) if by_class else None,
        "auc": {name: by_class.get(label) for label, name in enumerate(classes)},
        "confusion": confusion(probs, labels).tolist(),
    }


def auc_change(before: Floats, after: Floats, labels: Labels) -> dict[str, float]:
    """How much greater the macro AUC of the second probabilities [n, c] of the same images is, with its 95 % interval.

    From the covariance of the two (DeLong et al. 1988), with the variance of each as in `Ranked.variance`.
    """
    first, second = Ranked.of(before, labels), Ranked.of(after, labels)
    spreads = np.sqrt([first.variance, second.variance])
    variance = (spreads**2).sum() - 2 * first.correlation(second) * spreads.prod()
    value, half = first.error - second.error, Z * math.sqrt(max(variance, 0))
    return {"value": value, "low": value - half, "high": value + half}


@dataclass(frozen=True)
class Ranked:
    """One-vs-rest rankings of the same images by one or more classes."""

    labels: Labels
    """True classes, [n]."""
    columns: list[int]
    """The classes ranked by: those that some images are of, and some are not."""
    misplaced: Floats
    """`_misplaced` of each image in each of these rankings, [n, k]."""

    @classmethod
    def of(cls, probs: Floats, labels: Labels) -> Self:
        """Every ranking that probabilities [n, c] allow."""
        columns = [label for label in range(probs.shape[1]) if 0 < (labels == label).sum() < len(labels)]
        errors = [_misplaced(probs[:, label], labels == label) for label in columns]
        return cls(labels, columns, np.stack(errors, axis=1) if columns else np.empty((len(labels), 0)))

    def only(self, label: int) -> Self:
        """The ranking by one class alone."""
        column = self.columns.index(label)
        return replace(self, columns=[label], misplaced=self.misplaced[:, column : column + 1])

    @property
    def error(self) -> float:
        """1 - AUC, mean over the rankings."""
        return float(self.misplaced.mean(axis=1).sum() / 2)

    @property
    def largest_share(self) -> float:
        """How much of the error one image can be: on the wrong side of all others by its own class and by one other."""
        counts = np.bincount(self.labels)
        present, columns = np.flatnonzero(counts)[:, None], np.array(self.columns)
        shares = np.where(present == columns, 1 / counts[columns], 1 / (len(self.labels) - counts[columns]))
        return float(np.sort(shares, axis=1)[:, -2:].sum(axis=1).max() / len(columns))

    @property
    def variance(self) -> float:
        """DeLong's variance of the error, for images drawn class by class, and that of one image more.

        That one may lie anywhere among the others with equal probability: it stands for the rare misplaced images that
        these may lack, without which there would be no variance at an AUC of 1.
        """
        return self._covariance(self) + self.largest_share**2 / 3

    def correlation(self, other: Self) -> float:
        """Correlation of the errors of two rankings of the same images; 0 where either has no variance."""
        scale = math.sqrt(self._covariance(self) * other._covariance(other))
        return self._covariance(other) / scale if scale else 0.0

    def _covariance(self, other: Self) -> float:
        """Covariance of the errors over images drawn class by class."""
        pairs = np.stack([self.misplaced.mean(axis=1), other.misplaced.mean(axis=1)])
        classes = np.flatnonzero(np.bincount(self.labels))
        return math.fsum(_summed_covariance(pairs[:, self.labels == label]) for label in classes)


def _summed_covariance(pairs: Floats) -> float:
    """Covariance of the sums of independent pairs [2, m]; 0 for a single one."""
    first, second = pairs - pairs.mean(axis=1, keepdims=True)
    m = len(first)
    return float(first @ second) * m / max(m - 1, 1)


def _auc_interval(ranked: Ranked) -> dict[str, float]:
    return auc_interval(1 - ranked.error, ranked.variance, ranked.largest_share)


def auc_interval(auc: float, variance: float, largest_share: float) -> dict[str, float]:
    """AUC with Wilson's 95 % interval, for as many independent images as would give it the same variance.

    variance, largest_share: those of `Ranked`. After Korn & Graubard 1998, Survey Methodology 24, 193, who do so for
    shares; the error that gives the number of images has half of one image more, as the variance has.
    """
    error = (1 - auc + largest_share / 2) / (1 + largest_share)
    return wilson(auc, error * (1 - error) / variance)


def wilson(share: float, n: float) -> dict[str, float]:
    """A share of n independent images with Wilson's 95 % interval (1927, J. Am. Stat. Assoc. 22, 209)."""
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return {"value": share, "low": max(min(share, centre - half), 0.0), "high": min(max(share, centre + half), 1.0)}


def _loss_interval(values: Floats, n_classes: int) -> dict[str, float]:
    """Mean loss with a 95 % interval that is symmetric in its logarithm.

    Its upper end is that of these images and one more, as bad as the worst of them and at least as bad as a
    guess: a few mistakes are most of the loss of a good network, and a small test part may lack them.
    """
    n, mean = len(values), float(values.mean())
    error = float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    extra = max(float(values.max()), math.log(n_classes)) / n
    low = mean * math.exp(-Z * error / mean) if mean else 0.0
    high = (mean + extra) * math.exp(Z * math.hypot(error, extra) / (mean + extra))
    return {"value": mean, "low": low, "high": high}


def calibration_error(probs: Floats, labels: Labels, n_bins: int = 15) -> float:
    """Expected calibration error: mean gap between confidence and accuracy.

    Over bins of equal width in the greatest probability, weighted by the images in each (Guo et al.
    2017, arXiv:1706.04599, eq. 3).
    """
    return _mean_gap(probs.max(axis=1), hits(probs, labels), n_bins)


def calibration_floor(probs: Floats, seed: int = 0, n_bins: int = 15) -> dict[str, float]:
    """Calibration error of a perfectly calibrated network that gives these probabilities: `mean` and spread `sd`.

    It is above zero because the accuracy in a bin scatters about the confidence. Over `DRAWS` sets of labels that are
    drawn from the probabilities themselves.
    """
    confidence, rng = probs.max(axis=1), np.random.default_rng(seed)
    draws = (rng.random(len(confidence)) < confidence for _ in range(DRAWS))
    errors = [_mean_gap(confidence, drawn.astype(np.float64), n_bins) for drawn in draws]
    return {"mean": float(np.mean(errors)), "sd": float(np.std(errors))}


def _mean_gap(confidence: Floats, is_hit: Floats, n_bins: int) -> float:
    bins = np.minimum((confidence * n_bins).astype(np.int64), n_bins - 1)
    return float(np.abs(np.bincount(bins, confidence - is_hit, n_bins)).sum() / len(confidence))


def loss_change(before: Floats, after: Floats, labels: Labels) -> dict[str, float]:
    """How much greater the loss of the second probabilities [n, c] is, with the normal interval of its paired mean."""
    change = losses(after, labels) - losses(before, labels)
    value, half = float(change.mean()), Z * float(change.std(ddof=1)) / len(change) ** 0.5
    return {"value": value, "low": value - half, "high": value + half}


def coverage(sets: NDArray[np.bool_], labels: Labels, classes: Sequence[str]) -> dict[str, float]:
    """Share of prediction sets [n, c] that hold the truth: over all images, then over those of each class present."""
    return shares(sets[np.arange(len(labels)), labels], labels, classes)


def shares(flags: NDArray[np.bool_], labels: Labels, classes: Sequence[str]) -> dict[str, float]:
    """Share of flagged images [n]: `all`, then of those of each class present."""
    by_class = {name: float(flags[labels == label].mean()) for label, name in enumerate(classes) if label in labels}
    return {"all": float(flags.mean()), **by_class}


def map_score(predicted: Floats, true: Floats, cutoff: float) -> dict[str, float]:
    """How well predicted maps of mass [n, g, g] show where it is, and how much.

    Returns, for cells that hold more than `cutoff`: the share of all cells that do, `precision`
    and `recall` of cells predicted to, and `average_precision`, which needs no cut on the
    prediction (its chance level is the share). And for the total of each map: the median of
    predicted over true, `total_ratio`, and of |predicted - true| over true, `total_error`.
    Precision is 0 where nothing is predicted. Some cell must hold more than `cutoff`.
    """
    from sklearn.metrics import average_precision_score

    is_full, is_predicted = true.ravel() > cutoff, predicted.ravel() > cutoff
    n_right = int((is_full & is_predicted).sum())
    totals, expected = predicted.sum((1, 2)), true.sum((1, 2))
    held = expected > 0
    return {
        "share": float(is_full.mean()),
        "precision": n_right / max(1, int(is_predicted.sum())),
        "recall": n_right / max(1, int(is_full.sum())),
        "average_precision": float(average_precision_score(is_full, predicted.ravel())),
        "total_ratio": float(np.median(totals[held] / expected[held])),
        "total_error": float(np.median(np.abs(totals[held] / expected[held] - 1))),
    }
