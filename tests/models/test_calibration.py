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


def uneven(n: int, seed: int) -> tuple[Floats, Labels]:
    """Probabilities that favour the first class, and labels drawn with them."""
    rng = np.random.default_rng(seed)
    probs = calibration.softmax(rng.normal([3, 1, 0], 2, (n, 3)))
    return probs, (rng.random((n, 1)) > probs.cumsum(1)).sum(1)


def spread_by_class(n: int, seed: int) -> tuple[Floats, Floats, Labels]:
    """In-distribution scores that spread by class, with probabilities of which 4 % favour another class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    favoured = np.where(rng.random(n) < 0.04, rng.integers(0, 3, n), labels)
    probs = calibration.softmax(3 * np.eye(3)[favoured] + rng.normal(0, 0.5, (n, 3)))
    return rng.normal(0.5 * labels, 1 + 0.2 * labels), probs, labels


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


def test_a_temperature_is_told_from_the_right_one_as_often_as_chance_has_it() -> None:
    draws = [draw(1_000, seed) for seed in range(200)]
    p = [calibration.temperature_p(1.0, calibration.fit_temperature(*each), *each) for each in draws]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.04)
    assert calibration.temperature_p(1.3, calibration.fit_temperature(*draws[0]), *draws[0]) < 0.001


def test_probabilities_can_be_taken_back_to_a_temperature_of_one() -> None:
    logits, _ = draw(100)
    fitted = calibration.Calibration(1.7, (0.5,))
    assert fitted.without_temperature(fitted.probs(logits)) == pytest.approx(calibration.softmax(logits))


@pytest.mark.parametrize(("overconfidence", "is_kept"), [(1.0, True), (2.0, False)])
def test_a_calibration_on_other_images_keeps_a_temperature_that_fits(overconfidence: float, is_kept: bool) -> None:
    logits, labels = draw(5_000, 7, overconfidence)
    fitted = calibration.refit(calibration.Calibration(1.01, (0.5,), 0.8), logits, labels, [])
    assert (fitted.temperature == 1.01) == is_kept
    assert fitted.cutoffs == calibration.fit_cutoffs(fitted.probs(logits), labels, 0.8)
    assert fitted.n == 5_000


def test_few_images_all_correct_do_not_make_certain() -> None:
    logits, labels = 6 * np.eye(3)[np.arange(12) % 3], np.arange(12) % 3
    probs = calibration.softmax(logits / calibration.fit_temperature(logits, labels))
    assert 0.7 < probs.max(axis=1).min() < 0.95


@settings(max_examples=30)
@given(st.integers(0, 400), st.integers(0, 1000), st.sampled_from([0.5, 0.8, 0.9, 0.95]))
def test_the_cutoff_is_the_rank_that_the_theorem_asks_for(n: int, seed: int, coverage: float) -> None:
    true = np.random.default_rng(seed).random(n)
    cutoff = calibration.fit_cutoff(true, coverage)
    held = (true >= cutoff).sum()
    assert held >= min(n, np.ceil((n + 1) * coverage - 1e-9))
    assert held - 1 < (n + 1) * coverage or cutoff == 0


@pytest.mark.filterwarnings("ignore:.*less labels than your training dataset")
@pytest.mark.parametrize("label", [0, 1, 2])
def test_a_class_is_in_the_sets_that_mapie_makes_of_its_images(label: int) -> None:
    logits, labels = draw(3_000, 2)
    fresh, _ = draw(500, 3)
    theirs = SplitConformalClassifier(FromLogits().fit(logits, labels), confidence_level=0.9, conformity_score="lac")
    theirs.conformalize(logits[labels == label], labels[labels == label])
    cutoffs = calibration.fit_cutoffs(calibration.softmax(logits), labels)
    ours = calibration.Calibration(1.0, cutoffs).sets(calibration.softmax(fresh))
    assert np.array_equal(ours[:, label], theirs.predict_set(fresh)[1][:, label, 0])


def test_sets_hold_the_truth_with_their_coverage_in_each_class() -> None:
    held = []
    for seed in range(200):
        probs, labels = uneven(600, seed)
        fresh, truth = uneven(500, 1000 + seed)
        sets = calibration.Calibration(1.0, calibration.fit_cutoffs(probs, labels)).sets(fresh)
        held.append(list(metrics.coverage(sets, truth, ("a", "b", "c")).values()))
    assert np.all((np.mean(held, axis=0) > 0.895) & (np.mean(held, axis=0) < 0.915))


def test_a_class_of_fewer_than_nine_images_is_in_every_set() -> None:
    probs, labels = uneven(500, 0)
    kept = (labels != 2) | (np.cumsum(labels == 2) <= 8)
    cutoffs = calibration.fit_cutoffs(probs[kept], labels[kept])
    assert [cutoff > 0 for cutoff in cutoffs] == [True, True, False]


def test_what_is_unlike_the_training_images_is_far() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(0, 1, (20, 20))
    train, selection, fresh = (rng.normal(0, 1, (n, 20)) @ mixing for n in (4000, 2000, 2000))
    logits, labels = draw(2000)
    fitted = calibration.fit(logits, labels, [selection, selection[:, :4]], [train, train[:, :4]])
    probs = fitted.probs(logits)
    assert (fitted.ood([fresh, fresh[:, :4]], probs) > fitted.ood_threshold).mean() == pytest.approx(0.01, abs=0.006)
    moved = fresh + 10 * mixing[0]  # ten sigma in a direction of its own
    near, far = (fitted.ood([moments, moments[:, :4]], probs) for moments in (fresh, moved))
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


@pytest.mark.parametrize("n", [20, 60, 300])
def test_a_calibration_keeps_its_promise_on_new_images_of_each_class(n: int) -> None:
    """Where the moments of one class spread more than those of the others."""
    rng, flagged = np.random.default_rng(n), []
    logits, labels = 4 * np.eye(3)[np.arange(n) % 3], np.arange(n) % 3
    training = [rng.normal(size=(300, 6))]
    for _ in range(200):
        moments = rng.normal(size=(n, 6)) * (1 + 0.3 * labels)[:, None]
        fitted = calibration.fit(logits, labels, [moments], training)
        fresh = np.stack([rng.normal(size=(500, 6)) * (1 + 0.3 * label) for label in range(3)])
        certain = np.repeat(np.eye(3)[:, None], 500, axis=1)
        flagged.append([fitted.is_ood(fitted.ood([fresh[k]], certain[k])).mean() for k in range(3)])
    assert fitted.false_alarms == max(0.01, 1 / (n // 3 + 1))
    assert np.all(np.mean(flagged, 0) < fitted.false_alarms + 3 * np.std(flagged, 0) / np.sqrt(200))


def test_false_alarms_are_one_percent_of_each_class() -> None:
    offsets, threshold, promise = calibration.fit_offsets(*spread_by_class(60_000, 0))
    scores, probs, labels = spread_by_class(60_000, 1)
    is_ood = scores - probs @ np.array(offsets) > threshold
    assert promise == 0.01
    assert [is_ood[labels == label].mean() for label in range(3)] == pytest.approx([0.01] * 3, abs=0.0025)
    single = calibration.fit_threshold(scores)[0]
    assert (scores > single)[labels == 2].mean() > 0.02


@pytest.mark.parametrize("case", ["few images", "probabilities at chance"])
def test_the_class_that_needs_most_sets_the_threshold_where_classes_cannot_be_told(case: str) -> None:
    scores, probs, labels = spread_by_class(2_000 if case == "few images" else 9_000, 0)
    probs = probs if case == "few images" else np.full_like(probs, 1 / 3)
    offsets, threshold, promise = calibration.fit_offsets(scores, probs, labels)
    assert (offsets, promise) == ((), 0.01)
    assert threshold == calibration.fit_threshold(scores[labels == 2])[0]


def test_a_class_without_images_is_promised_nothing() -> None:
    scores, probs, labels = spread_by_class(600, 0)
    kept = labels != 1
    assert calibration.fit_offsets(scores[kept], probs[kept], labels[kept])[2] == 1


def test_the_threshold_of_99_images_is_the_largest_score() -> None:
    assert calibration.fit_threshold(np.arange(99.0)) == (98.0, 0.01)
    assert calibration.fit_threshold(np.arange(199.0)) == (197.0, 0.01)


def test_a_threshold_of_few_images_promises_less_in_words() -> None:
    logits, labels = draw(30)
    moments = [np.random.default_rng(0).normal(size=(30, 6))]
    few = calibration.fit(logits, labels, moments, moments)
    assert few.caution == "out-of-distribution threshold from 30 images alone: up to 12.5% false alarms in a class"
    assert replace(few, false_alarms=0.01).caution == ""
