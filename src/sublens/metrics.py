"""Scores of a classifier: arrays in, numbers out.

Conventions: probs [n, c] with rows summing to one; labels [n] in 0..c-1. Weights [k, n] are how often
each image counts, one row a bootstrap resample; the plain score is that of a row of ones.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
"""Probabilities, scores or weights."""
Labels = NDArray[np.int64]
"""Classes, as positions in a list of them."""

Statistic = Callable[[Floats], Floats]
"""A score as a function of weights [k, n] -> [k]."""

DRAWS = 200
"""Sets of labels drawn from the probabilities, for the calibration error of a perfectly calibrated network."""
RESAMPLES = 1000
"""Bootstrap resamples behind each interval."""
LEVEL = 0.95
"""Coverage of the intervals."""
SMALLEST_PROB = 1e-12
"""Probabilities below this count as this in the loss, which stays finite."""
CELLS = 2**17
"""Weights held at a time, 1 MB of them: as fast as the processor's cache, however many images there are."""


def losses(probs: Floats, labels: Labels) -> Floats:
    """Cross-entropy of each image, nats, [n]."""
    return np.asarray(-np.log(np.clip(probs[np.arange(len(labels)), labels], SMALLEST_PROB, None)))


def hits(probs: Floats, labels: Labels) -> Floats:
    """1 where the most probable class is the true one, else 0, [n]."""
    return np.asarray(probs.argmax(axis=1) == labels, dtype=np.float64)


def auc(scores: Floats, is_positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """Area under the ROC curve for each row of weights [k, n], [k]; nan where a row holds one class only."""
    return weighted_auc(scores, is_positive)(weights)


def weighted_auc(scores: Floats, is_positive: NDArray[np.bool_]) -> Statistic:
    """`auc` as a function of the weights; the scores are sorted once.

    The probability that a positive scores above a negative, ties counting half (Hanley & McNeil
    1982, Radiology 143, 29).
    """
    order = np.argsort(scores, kind="stable")
    ranked, positive = scores[order], is_positive[order].astype(np.float64)
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])

    def area(weights: Floats) -> Floats:
        ordered = weights[:, order]
        up = np.add.reduceat(ordered * positive, starts, axis=1)
        down = np.add.reduceat(ordered, starts, axis=1) - up
        right = _dot(up, np.cumsum(down, axis=1)) - _dot(up, down) / 2
        with np.errstate(invalid="ignore"):
            return np.asarray(right / (up.sum(axis=1) * down.sum(axis=1)))

    return area


def _dot(rows: Floats, others: Floats) -> Floats:
    """Row by row, [k]."""
    return np.asarray(np.einsum("kn,kn->k", rows, others))


def confusion(probs: Floats, labels: Labels) -> NDArray[np.int64]:
    """Number of images by true class (rows) and most probable class (columns)."""
    from sklearn.metrics import confusion_matrix

    return np.asarray(confusion_matrix(labels, probs.argmax(axis=1), labels=range(probs.shape[1])))


def macro_auc(probs: Floats, labels: Labels) -> float:
    """Mean over classes of the one-vs-rest area under the ROC curve."""
    ones = np.ones((1, len(labels)))
    return float(np.mean([area(ones)[0] for area in _class_aucs(probs, labels)]))


def bootstrap(statistics: Sequence[Statistic], n: int, seed: int) -> Floats:
    """Each statistic of `n` images, then of every bootstrap resample of them, [s, 1 + RESAMPLES]."""
    return np.hstack([[statistic(weights) for statistic in statistics] for weights in _weights(n, seed)])


def _weights(n: int, seed: int) -> Iterator[Floats]:
    """How often each of `n` images occurs: once, then in each resample; at most `CELLS` or one row at a time."""
    yield np.ones((1, n))
    rng, height = np.random.default_rng(seed), max(1, CELLS // n)
    for start in range(0, RESAMPLES, height):
        rows = range(start, min(start + height, RESAMPLES))
        yield np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in rows]).astype(np.float64)


def _mean(values: Floats, weights: Floats) -> Floats:
    return np.asarray(weights @ values / len(values))


def score(probs: Floats, labels: Labels, classes: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Loss, accuracy and AUC with 95 % bootstrap intervals, and the confusion matrix.

    Returns the keys `n`, `loss`, `accuracy`, `auc_macro`, `auc` (by class) and `confusion`. The AUC of a class
    is None where all images or none are of it, and the macro AUC is the mean of the others. The
    intervals are percentiles over resampled test images: they reflect the sampling of the test
    set only, not the variance of training.
    """
    means = [partial(_mean, values) for values in (losses(probs, labels), hits(probs, labels))]
    areas = dict(zip(classes, _class_aucs(probs, labels), strict=True))
    known = [name for label, name in enumerate(classes) if 0 < (labels == label).sum() < len(labels)]
    loss, accuracy, *aucs = bootstrap([*means, *map(areas.__getitem__, known)], len(labels), seed)
    by_class = dict(zip(known, map(interval, aucs), strict=True))
    return {
        "n": len(labels),
        "loss": interval(loss),
        "accuracy": interval(accuracy),
        "auc_macro": interval(np.mean(aucs, axis=0)) if aucs else None,
        "auc": {name: by_class.get(name) for name in classes},
        "confusion": confusion(probs, labels).tolist(),
    }


def _class_aucs(probs: Floats, labels: Labels) -> list[Statistic]:
    """The one-vs-rest area under the ROC curve of each class."""
    return [weighted_auc(column, labels == label) for label, column in enumerate(probs.T)]


def auc_change(before: Floats, after: Floats, labels: Labels, seed: int = 0) -> dict[str, float]:
    """How much greater the macro AUC of the second probabilities [n, c] is, over the same resamples of the images."""
    aucs = bootstrap([*_class_aucs(before, labels), *_class_aucs(after, labels)], len(labels), seed)
    first, second = aucs.reshape(2, -1, aucs.shape[1]).mean(axis=1)
    return interval(second - first)


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


def loss_change(before: Floats, after: Floats, labels: Labels, seed: int = 0) -> dict[str, float]:
    """How much greater the loss of the second probabilities [n, c] is, with an interval over the same images."""
    change = losses(after, labels) - losses(before, labels)
    return interval(bootstrap([partial(_mean, change)], len(labels), seed)[0])


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


def interval(values: Floats) -> dict[str, float]:
    """The plain score, first of the values, and the percentile interval of the others."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(values[1:], (tail, 100 - tail))
    return {"value": float(values[0]), "low": float(low), "high": float(high)}
