"""How well the calibration of a network holds on a test part: scores, and sentences about them."""

from collections.abc import Iterator
from typing import Any

from sublens import metrics
from sublens.config import Frozen
from sublens.inference.predictor import PredictionTable
from sublens.models.calibration import Calibration


class Floor(Frozen):
    """Calibration error of a perfectly calibrated network with the same probabilities."""

    mean: float
    sd: float
    """Standard deviation over sets of labels drawn from the probabilities."""


class Change(Frozen):
    """A difference and its 95 % interval."""

    value: float
    low: float
    high: float


class CalibrationScores(Frozen, extra="ignore"):
    """The part `calibration` of `scores.json`; None where the network has no such thing, or the file is older."""

    ece: float | None = None
    """Expected calibration error."""
    ece_floor: Floor | None = None
    """The same of a perfectly calibrated network, which is above zero too."""
    temperature: float | None = None
    """Divisor of the logits."""
    loss_change: Change | None = None
    """Change of the cross-entropy by the temperature, nats."""
    promised_coverage: float | None = None
    """Share of the images, of each class if `is_by_class`, whose set should hold the truth."""
    coverage: dict[str, float] | None = None
    """Share of the images whose set holds it: `all`, then by class."""
    set_sizes: tuple[float, ...] | None = None
    """Share of the sets that hold 0, 1, ... classes."""
    ood: float | None = None
    """Share of the images that are flagged as out of distribution."""
    ood_by_class: dict[str, float] | None = None
    """The same share: `all`, then by class."""
    promised_false_alarms: float | None = None
    """Share of in-distribution images, of each class if `is_by_class`, that should be flagged at most."""
    is_by_class: bool = False
    """Whether coverage and false alarms are promised for each class."""


def score(calibration: Calibration | None, predictions: PredictionTable) -> CalibrationScores:
    """The scores of a network with that calibration; those of its probabilities alone where it has none."""
    probs, labels = predictions.probs, predictions.labels
    scores: dict[str, Any] = {
        "ece": metrics.calibration_error(probs, labels),
        "ece_floor": metrics.calibration_floor(probs),
    }
    if calibration:
        scores |= _temperature(calibration, predictions) | _sets(calibration, predictions)
        scores |= _ood(calibration, predictions) | {"is_by_class": calibration.is_by_class}
    return CalibrationScores.model_validate(scores)


def _temperature(calibration: Calibration, predictions: PredictionTable) -> dict[str, Any]:
    before = calibration.without_temperature(predictions.probs)
    change = metrics.loss_change(before, predictions.probs, predictions.labels)
    return {"temperature": calibration.temperature, "loss_change": change}


def _sets(calibration: Calibration, predictions: PredictionTable) -> dict[str, Any]:
    sets, n_classes = calibration.sets(predictions.probs), len(predictions.classes)
    return {
        "promised_coverage": calibration.coverage,
        "coverage": metrics.coverage(sets, predictions.labels, predictions.classes),
        "set_sizes": [float((sets.sum(axis=1) == size).mean()) for size in range(n_classes + 1)],
    }


def _ood(calibration: Calibration, predictions: PredictionTable) -> dict[str, Any]:
    if predictions.ood is None:
        return {}
    is_ood = calibration.is_ood(predictions.ood)
    return {
        "ood": float(is_ood.mean()),
        "ood_by_class": metrics.shares(is_ood, predictions.labels, predictions.classes),
        "promised_false_alarms": calibration.false_alarms,
    }


def sentences(scores: CalibrationScores) -> Iterator[str]:
    """The scores in words, each kind that is there in a line of its own."""
    if scores.ece is not None:
        yield f"calibration error {scores.ece:.4f}{_floor(scores.ece_floor)}"
    if scores.temperature is not None and scores.loss_change is not None:
        yield _benefit(scores.temperature, scores.loss_change)
    of = " of each class" if scores.is_by_class else ""
    if scores.coverage is not None and scores.promised_coverage is not None:
        promise = f"prediction sets that promise {scores.promised_coverage:.0%}{of}"
        yield f"{promise} hold the truth of: {_listed(scores.coverage)}"
    if scores.ood_by_class is not None and scores.promised_false_alarms is not None:
        flagged = f"flagged as out of distribution: {_listed(scores.ood_by_class)}"
        yield f"{flagged}; of in-distribution images{of} at most {scores.promised_false_alarms:.1%} should be"


def _floor(floor: Floor | None) -> str:
    return f"; a perfectly calibrated network would show {floor.mean:.4f} +- {floor.sd:.4f}" if floor else ""


def _benefit(temperature: float, change: Change) -> str:
    """Whether the temperature lowers the loss."""
    interval = f"{change.value:+.5f} [{change.low:+.5f}, {change.high:+.5f}]"
    verdict = "it helps" if change.high < 0 else "it harms" if change.low > 0 else "whether it helps cannot be told"
    return f"temperature {temperature:.3f} changes the loss by {interval}: {verdict}"


def _listed(by_class: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in by_class.items())
