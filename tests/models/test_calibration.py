from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapie.classification import SplitConformalClassifier
from scipy import stats
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from sublens import metrics
from sublens.models import calibration
from sublens.models.calibration import Floats, Labels


class FromLogits(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier whose inputs are its logits."""

    def fit(self, x: Floats, y: Labels) -> "FromLogits":
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, x: Floats) -> Floats:
        return x

    def predict_proba(self, x: Floats) -> Floats:
        return calibration.softmax(x)

    def predict(self, x: Floats) -> Labels:
        return np.asarray(x.argmax(1))


def draw(n: int, seed: int = 0, overconfidence: float = 1.0, n_classes: int = 3) -> tuple[Floats, Labels]:
    """Logits, too large by a factor, and labels drawn with the probabilities that they mean."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, n_classes))
    probs = calibration.softmax(logits)
    labels = (rng.random((n, 1)) > probs.cumsum(1)).sum(1)
    return overconfidence * logits, labels


@pytest.mark.parametrize("overconfidence", [0.4, 1.0, 3.0])
def test_the_temperature_is_found(overconfidence: float) -> None:
    logits, labels = draw(20_000, overconfidence=overconfidence)
    assert calibration.fit_temperature(logits, labels) == pytest.approx(overconfidence, rel=0.03)


def test_the_temperature_is_that_of_scikit_learn() -> None:
    logits, labels = draw(5_000, 1, 2.5)
    theirs = CalibratedClassifierCV(FrozenEstimator(FromLogits().fit(logits, labels)), method="temperature")
    theirs.fit(logits, labels)
    ours = calibration.softmax(logits / calibration.fit_temperature(logits, labels))
    assert np.abs(ours - theirs.predict_proba(logits)).max() < 2e-3  # which does not smooth the labels


def test_few_images_all_correct_do_not_make_certain() -> None:
    logits, labels = 6 * np.eye(3)[np.arange(12) % 3], np.arange(12) % 3
    probs = calibration.softmax(logits / calibration.fit_temperature(logits, labels))
    assert 0.7 < probs.max(axis=1).min() < 0.95


@settings(max_examples=30)
@given(st.integers(1, 400), st.integers(0, 1000), st.sampled_from([0.5, 0.8, 0.9, 0.95]))
def test_the_cutoff_is_the_rank_that_the_theorem_asks_for(n: int, seed: int, coverage: float) -> None:
    probs, labels = calibration.softmax(draw(n, seed)[0]), draw(n, seed)[1]
    cutoff = calibration.fit_cutoff(probs, labels, coverage)
    held = (probs[np.arange(n), labels] >= cutoff).sum()
    assert held >= min(n, np.ceil((n + 1) * coverage - 1e-9))
    assert held - 1 < (n + 1) * coverage or cutoff == 0


def test_the_sets_are_those_of_mapie() -> None:
    logits, labels = draw(3_000, 2)
    fresh, _ = draw(500, 3)
    theirs = SplitConformalClassifier(FromLogits().fit(logits, labels), confidence_level=0.9, conformity_score="lac")
    theirs.conformalize(logits, labels)
    cutoff = calibration.fit_cutoff(calibration.softmax(logits), labels)
    ours = calibration.Calibration(1.0, cutoff).sets(calibration.softmax(fresh))
    assert np.array_equal(ours, theirs.predict_set(fresh)[1][:, :, 0])


def test_sets_hold_the_truth_with_their_coverage() -> None:
    held = []
    for seed in range(200):
        probs, labels = calibration.softmax(draw(100, seed)[0]), draw(100, seed)[1]
        fresh, truth = calibration.softmax(draw(500, 1000 + seed)[0]), draw(500, 1000 + seed)[1]
        sets = calibration.Calibration(1.0, calibration.fit_cutoff(probs, labels)).sets(fresh)
        held.append(metrics.coverage(sets, truth, ("a", "b", "c"))["all"])
    assert np.mean(held) == pytest.approx(0.9 + 0.5 / 101, abs=0.01)


def test_what_is_unlike_the_training_images_is_far() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(0, 1, (20, 20))
    train, selection, fresh = (rng.normal(0, 1, (n, 20)) @ mixing for n in (4000, 2000, 2000))
    logits, labels = draw(2000)
    fitted = calibration.fit(logits, labels, [selection, selection[:, :4]], [train, train[:, :4]])
    assert (fitted.ood([fresh, fresh[:, :4]]) > fitted.ood_threshold).mean() == pytest.approx(0.01, abs=0.006)
    moved = fresh + 10 * mixing[0]  # ten sigma in a direction of its own
    near, far = (fitted.ood([moments, moments[:, :4]]) for moments in (fresh, moved))
    assert np.mean(far[:, None] > near) > 0.95


def test_a_constant_channel_does_no_harm() -> None:
    moments = np.random.default_rng(0).normal(0, 1, (50, 5))
    moments[:, 2] = 0
    layer = calibration.fit_layer(moments)
    assert np.isfinite(layer.distance(moments)).all()
    moments[0, 2] = 10
    assert layer.distance(moments)[0] > layer.distance(moments[1:]).max()


def test_without_feature_maps_nothing_is_ood() -> None:
    logits, labels = draw(100)
    fitted = calibration.fit(logits, labels, [], [])
    assert fitted.layers == ()
    assert fitted.ood_threshold == np.inf


@pytest.mark.parametrize(
    ("n", "promise", "expected"), [(20, 1 / 21, 1 / 21), (50, 1 / 51, 1 / 51), (200, 0.01, 2 / 201)]
)
def test_the_threshold_flags_as_many_images_as_it_promises(n: int, promise: float, expected: float) -> None:
    """Over 20,000 selection parts of n images, whose thresholds vary."""
    rng = np.random.default_rng(n)
    fitted = [calibration.fit_threshold(rng.normal(size=n)) for _ in range(20_000)]
    assert {share for _, share in fitted} == {promise}
    rates = stats.norm.sf([threshold for threshold, _ in fitted])
    assert rates.mean() == pytest.approx(expected, rel=0.03)
    assert expected <= promise


@pytest.mark.parametrize("n", [20, 50, 200])
def test_a_calibration_keeps_its_promise_on_new_images(n: int) -> None:
    rng, flagged = np.random.default_rng(n), []
    logits, labels = draw(n)
    training = [rng.normal(size=(300, 6))]
    for _ in range(200):
        fitted = calibration.fit(logits, labels, [rng.normal(size=(n, 6))], training)
        flagged.append(fitted.is_ood(fitted.ood([rng.normal(size=(500, 6))])).mean())
    assert fitted.n == n
    assert np.mean(flagged) < fitted.false_alarms + 3 * np.std(flagged) / np.sqrt(200)


def test_the_threshold_of_99_images_is_the_largest_score() -> None:
    assert calibration.fit_threshold(np.arange(99.0)) == (98.0, 0.01)
    assert calibration.fit_threshold(np.arange(199.0)) == (197.0, 0.01)


def test_a_threshold_of_few_images_promises_less_in_words() -> None:
    logits, labels = draw(30)
    moments = [np.random.default_rng(0).normal(size=(30, 6))]
    few = calibration.fit(logits, labels, moments, moments)
    assert few.caution == "out-of-distribution threshold from 30 images alone: up to 3.2% false alarms"
    assert replace(few, false_alarms=0.01).caution == ""
