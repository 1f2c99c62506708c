import numpy as np
import pytest

from sublens.evaluation import calibration_scores
from sublens.evaluation.calibration_scores import CalibrationScores
from sublens.inference.predictor import PredictionTable
from sublens.models.calibration import Calibration, softmax

CLASSES = ("no", "sphere", "vort")


def predictions(fitted: Calibration, n: int = 3_000) -> PredictionTable:
    """Predictions by perfectly calibrated logits, whose score is that of a normal distribution."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (n, 3))
    labels = (rng.random((n, 1)) > softmax(logits).cumsum(1)).sum(1)
    return PredictionTable(np.arange(n).astype(str), labels, fitted.probs(logits), CLASSES, ood=rng.normal(size=n))


def scores(temperature: float = 1.0) -> CalibrationScores:
    """Scores of a calibration with that temperature."""
    fitted = Calibration(temperature, (0.2, 0.2, 0.2), ood_threshold=2.0)
    return calibration_scores.score(fitted, predictions(fitted))


def test_a_perfectly_calibrated_network_shows_the_floor() -> None:
    perfect = scores()
    assert perfect.ece is not None
    assert perfect.ece_floor is not None
    assert abs(perfect.ece - perfect.ece_floor.mean) < 3 * perfect.ece_floor.sd
    assert f"; a perfectly calibrated network would show {perfect.ece_floor.mean:.4f} +- " in text(perfect)


@pytest.mark.parametrize(
    ("temperature", "verdict"), [(1.01, "whether it helps cannot be told"), (2.0, "it harms"), (0.5, "it harms")]
)
def test_a_temperature_is_said_to_help_only_where_the_images_say_so(temperature: float, verdict: str) -> None:
    change = scores(temperature).loss_change
    assert change is not None
    assert (change.low > 0) == (verdict == "it harms")
    assert f"temperature {temperature:.3f} changes the loss by {change.value:+.5f} " in text(scores(temperature))
    assert f"]: {verdict}" in text(scores(temperature))


def test_a_temperature_that_undoes_overconfidence_helps() -> None:
    fitted = Calibration(2.0, (0.2, 0.2, 0.2))
    table = predictions(Calibration(1.0, (0.2, 0.2, 0.2)))
    assert "]: it helps" in text(calibration_scores.score(fitted, table))


def test_promises_are_said_to_hold_for_each_class_where_they_do() -> None:
    assert "prediction sets that promise 90% of each class hold the truth of: all " in text(scores())
    assert "of in-distribution images of each class at most 1.0% should be" in text(scores())
    former = scores().model_copy(update={"is_by_class": False})
    assert "each class" not in text(former)


def test_false_alarms_are_listed_by_class() -> None:
    by_class = scores().ood_by_class
    assert by_class is not None
    assert tuple(by_class) == ("all", *CLASSES)
    assert f"flagged as out of distribution: all {by_class['all']:.1%}, no {by_class['no']:.1%}" in text(scores())


def test_scores_of_earlier_versions_are_put_into_words() -> None:
    former = CalibrationScores.model_validate({"ece": 0.0123, "promised_coverage": 0.9, "coverage": {"all": 0.9}})
    lines = list(calibration_scores.sentences(former))
    assert lines == ["calibration error 0.0123", "prediction sets that promise 90% hold the truth of: all 90.0%"]
    assert not list(calibration_scores.sentences(CalibrationScores()))


def text(scores: CalibrationScores) -> str:
    return "\n".join(calibration_scores.sentences(scores))
