"""Scores of a classifier: arrays in, numbers out.

Conventions: probs [n, c] with rows summing to one; labels [n] in 0..c-1. Every score takes
optional weights [k, n], one row a bootstrap resample, and returns [k]; the plain score is the
row of ones.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

RESAMPLES = 1000
LEVEL = 0.95
SMALLEST_PROB = 1e-12
"""Probabilities below this count as this in the loss, which stays finite."""


def losses(probs: Floats, labels: Labels) -> Floats:
    """Cross-entropy of each image, nats, [n]."""
    return np.asarray(-np.log(np.clip(probs[np.arange(len(labels)), labels], SMALLEST_PROB, None)))


def hits(probs: Floats, labels: Labels) -> Floats:
    """1 where the most probable class is the true one, else 0, [n]."""
    return np.asarray(probs.argmax(axis=1) == labels, dtype=np.float64)


def auc(scores: Floats, is_positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """Area under the ROC curve for each row of weights [k, n], [k]; nan where a row holds one class only.

    The probability that a positive scores above a negative, ties counting half (Hanley & McNeil
    1982, Radiology 143, 29).
    """
    order = np.argsort(scores, kind="stable")
    ranked, positive = scores[order], is_positive[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    ordered = weights[:, order]
    up = np.add.reduceat(ordered * positive, starts, axis=1)
    down = np.add.reduceat(ordered * ~positive, starts, axis=1)
    below = np.cumsum(down, axis=1) - down / 2
    pairs = up.sum(axis=1) * down.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray((up * below).sum(axis=1) / pairs)


def confusion(probs: Floats, labels: Labels) -> NDArray[np.int64]:
    """Number of images by true class (rows) and most probable class (columns)."""
    from sklearn.metrics import confusion_matrix

    return np.asarray(confusion_matrix(labels, probs.argmax(axis=1), labels=range(probs.shape[1])))


def macro_auc(probs: Floats, labels: Labels) -> float:
    """Mean over classes of the one-vs-rest area under the ROC curve."""
    ones = np.ones((1, len(labels)))
    return float(np.mean([auc(column, labels == label, ones)[0] for label, column in enumerate(probs.T)]))


def resamples(n: int, seed: int) -> Floats:
    """How often each of `n` images occurs in each bootstrap resample, [RESAMPLES, n]."""
    rng = np.random.default_rng(seed)
    return np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(RESAMPLES)]).astype(np.float64)


def score(probs: Floats, labels: Labels, classes: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Loss, accuracy and AUC with 95 % bootstrap intervals, and the confusion matrix.

    Returns the keys `n`, `loss`, `accuracy`, `auc_macro`, `auc` (by class) and `confusion`. The
    intervals are percentiles over resampled test images: they hold the chance of the test set,
    not of training.
    """
    weights = np.vstack([np.ones(len(labels)), resamples(len(labels), seed)])
    by_class = {name: auc(probs[:, label], labels == label, weights) for label, name in enumerate(classes)}
    return {
        "n": len(labels),
        "loss": interval(weights @ losses(probs, labels) / len(labels)),
        "accuracy": interval(weights @ hits(probs, labels) / len(labels)),
        "auc_macro": interval(np.mean(list(by_class.values()), axis=0)),
        "auc": {name: interval(values) for name, values in by_class.items()},
        "confusion": confusion(probs, labels).tolist(),
    }


def auc_change(before: Floats, after: Floats, labels: Labels, seed: int = 0) -> dict[str, float]:
    """How much greater the macro AUC of the second probabilities [n, c] is, over the same resamples of the images."""
    weights = np.vstack([np.ones(len(labels)), resamples(len(labels), seed)])
    macro = [
        np.mean([auc(column, labels == label, weights) for label, column in enumerate(probs.T)], axis=0)
        for probs in (before, after)
    ]
    return interval(macro[1] - macro[0])


def calibration_error(probs: Floats, labels: Labels, n_bins: int = 15) -> float:
    """Expected calibration error: mean gap between how sure a network is and how often it is right.

    Over bins of equal width in the greatest probability, weighted by the images in each (Guo et al.
    2017, arXiv:1706.04599, eq. 3).
    """
    sure, right = probs.max(axis=1), hits(probs, labels)
    bins = np.minimum((sure * n_bins).astype(np.int64), n_bins - 1)
    gaps = np.bincount(bins, sure - right, n_bins)
    return float(np.abs(gaps).sum() / len(labels))


def coverage(sets: NDArray[np.bool_], labels: Labels, classes: Sequence[str]) -> dict[str, float]:
    """Share of prediction sets [n, c] that hold the truth: of all images, then of each class that is there."""
    held = sets[np.arange(len(labels)), labels]
    by_class = {name: float(held[labels == label].mean()) for label, name in enumerate(classes) if label in labels}
    return {"all": float(held.mean()), **by_class}


def map_score(predicted: Floats, true: Floats, cutoff: float) -> dict[str, float]:
    """How well maps of mass [n, g, g] show where it is, and how much.

    Returns, for cells that hold more than `cutoff`: the share of all cells that do, `precision`
    and `recall` of cells predicted to, and `average_precision`, which needs no cut on the
    prediction (its chance level is the share). And for the total of each map: the median of
    predicted over true, `total_ratio`, and of |predicted - true| over true, `total_error`.
    Precision is 0 where nothing is predicted. Some cell must hold more than `cutoff`.
    """
    from sklearn.metrics import average_precision_score

    is_full, is_found = true.ravel() > cutoff, predicted.ravel() > cutoff
    n_right = int((is_full & is_found).sum())
    totals, expected = predicted.sum((1, 2)), true.sum((1, 2))
    held = expected > 0
    return {
        "share": float(is_full.mean()),
        "precision": n_right / max(1, int(is_found.sum())),
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
