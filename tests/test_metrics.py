import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from sublens import metrics
from sublens.metrics import Floats, Labels

CLASSES = ("no", "sphere", "vort")


def table(seed: int, n: int = 60, skill: float = 1.0) -> tuple[Floats, Labels]:
    """Probabilities with ties, and labels that every class occurs in."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    odds = np.exp(skill * np.eye(3)[labels] + rng.normal(size=(n, 3)).round(1))
    return odds / odds.sum(axis=1, keepdims=True), labels


def plain_auc(scores: Floats, is_positive: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> float:
    return metrics.auc(scores, is_positive)


@given(st.integers(0, 10**6))
def test_auc_is_the_share_of_pairs_in_the_right_order(seed: int) -> None:
    probs, labels = table(seed)
    positive, negative = probs[labels == 1, 1], probs[labels != 1, 1]
    pairs = (positive[:, None] > negative).mean() + (positive[:, None] == negative).mean() / 2
    assert plain_auc(probs[:, 1], labels == 1) == pytest.approx(pairs)


@given(st.integers(0, 10**6))
def test_auc_ignores_any_rising_rescaling(seed: int) -> None:
    probs, labels = table(seed)
    scores = probs[:, 2].round(3)
    assert plain_auc(np.exp(5 * scores), labels == 2) == plain_auc(scores, labels == 2)


def test_auc_of_the_reverse_is_the_rest() -> None:
    probs, labels = table(3)
    assert plain_auc(-probs[:, 0], labels == 0) == pytest.approx(1 - plain_auc(probs[:, 0], labels == 0))


def test_auc_is_unknown_where_one_class_is_absent() -> None:
    assert np.isnan(plain_auc(np.arange(4.0), np.ones(4, bool)))


@given(st.integers(0, 10**6), st.floats(0, 4))
def test_scores_agree_with_scikit_learn(seed: int, skill: float) -> None:
    probs, labels = table(seed, skill=skill)
    assert metrics.macro_auc(probs, labels) == pytest.approx(roc_auc_score(labels, probs, multi_class="ovr"))
    assert metrics.losses(probs, labels).mean() == pytest.approx(log_loss(labels, probs))


def test_a_certain_mistake_has_a_large_but_finite_loss() -> None:
    assert 20 < metrics.losses(np.array([[1.0, 0.0]]), np.array([1]))[0] < 40


def test_confusion_has_true_classes_as_rows() -> None:
    probs, labels = np.eye(3)[[0, 1, 1, 2]], np.array([0, 0, 1, 2])
    assert metrics.confusion(probs, labels).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]


def test_confusion_keeps_classes_that_are_never_seen() -> None:
    assert metrics.confusion(np.eye(3)[[0, 0]], np.array([0, 0])).shape == (3, 3)


def test_the_scores_of_a_perfect_classifier() -> None:
    labels = np.arange(30) % 3
    scores = metrics.score(np.eye(3)[labels], labels, CLASSES)
    assert scores["auc_macro"]["value"] == scores["accuracy"]["value"] == scores["accuracy"]["high"] == 1
    assert scores["loss"]["value"] == scores["loss"]["low"] == 0
    assert scores["n"] == 30


def test_the_scores_of_a_guesser_are_those_of_chance() -> None:
    probs, labels = table(0, n=3000, skill=0)
    scores = metrics.score(probs, labels, CLASSES)
    assert scores["auc_macro"]["low"] < 0.5 < scores["auc_macro"]["high"]
    assert scores["accuracy"]["low"] < 1 / 3 < scores["accuracy"]["high"]


def test_macro_auc_is_the_mean_over_classes() -> None:
    scores = metrics.score(*table(1), CLASSES)
    assert scores["auc_macro"]["value"] == pytest.approx(np.mean([scores["auc"][name]["value"] for name in CLASSES]))


def test_the_interval_of_the_accuracy_is_the_binomial_one() -> None:
    probs, labels = table(2, n=1000)
    interval = metrics.score(probs, labels, CLASSES)["accuracy"]
    expected = 2 * 1.96 * np.sqrt(interval["value"] * (1 - interval["value"]) / 1000)
    assert interval["high"] - interval["low"] == pytest.approx(expected, rel=0.1)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    truth = metrics.macro_auc(*table(10**6, n=200_001))
    intervals = [metrics.score(*table(seed, n=150), CLASSES)["auc_macro"] for seed in range(400)]
    assert 370 <= sum(interval["low"] < truth < interval["high"] for interval in intervals) <= 390


@pytest.mark.parametrize(("skill", "key"), [(12.0, "auc_macro"), (12.0, "loss"), (16.0, "auc_macro")])
def test_intervals_of_a_good_network_hold_the_truth_from_few_images_too(skill: float, key: str) -> None:
    """Macro AUC 0.9983 and 0.9999."""
    probs, labels = gaussian(0, 300_000, skill)
    truth = metrics.score(probs, labels, CLASSES)[key]["value"]
    intervals = [metrics.score(*gaussian(seed, 150, skill), CLASSES)[key] for seed in range(1, 301)]
    assert sum(interval["low"] <= truth <= interval["high"] for interval in intervals) >= 0.93 * 300


def gaussian(seed: int, n: int, skill: float) -> tuple[Floats, Labels]:
    """Probabilities of a forecast that means what it says, from log odds with normal noise."""
    labels = np.arange(n) % 3
    logits = skill * np.eye(3)[labels] + np.sqrt(skill) * np.random.default_rng(seed).normal(size=(n, 3))
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True), labels


@pytest.mark.parametrize(("n", "low"), [(30, 0.88), (300, 0.987), (30_000, 0.99987)])
def test_a_test_part_without_a_mistake_does_not_prove_perfection(n: int, low: float) -> None:
    labels = np.arange(n) % 3
    scores = metrics.score(np.eye(3)[labels], labels, CLASSES)
    assert scores["auc_macro"]["low"] == pytest.approx(low, abs=0.1 * (1 - low))
    assert scores["auc_macro"]["high"] == 1
    assert scores["accuracy"]["low"] == pytest.approx(1 / (1 + 1.96**2 / n), abs=1e-5)
    assert scores["loss"]["high"] > 0


def test_the_interval_of_the_auc_rests_on_delongs_variance() -> None:
    (probs, labels), scores = table(2, n=90), []
    for label in range(3):
        order = (probs[:, None, label] > probs[None, :, label]) + (probs[:, None, label] == probs[None, :, label]) / 2
        positive = labels == label
        right = np.where(positive, order[:, ~positive].mean(axis=1), 1 - order[:, positive].mean(axis=1))
        scores.append(right / np.where(positive, positive.sum(), (~positive).sum()))
    variance = sum(30 * np.mean(scores, axis=0)[labels == label].var(ddof=1) for label in range(3))
    ranked = metrics.Ranked.of(probs, labels)
    assert ranked.variance == pytest.approx(variance + (1 / 30 + 1 / 60) ** 2 / 3**2 / 3)


def test_an_auc_of_two_classes_has_the_same_interval_from_either() -> None:
    labels = np.random.default_rng(0).integers(0, 2, 80)
    first = np.random.default_rng(1).normal(labels).round(1)
    probs = np.stack([1 / (1 + np.exp(first)), 1 - 1 / (1 + np.exp(first))], axis=1)
    scores = metrics.score(probs, labels, ("a", "b"))
    for name in ("a", "b"):
        assert scores["auc"][name] == pytest.approx(scores["auc_macro"])


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0, 1, 2], [0, 0, 0, 1], [0, 0, 0, 0], [1]])
def test_the_fewest_images_have_an_interval(labels: Sequence[int]) -> None:
    probs = np.random.default_rng(0).dirichlet(np.ones(3), len(labels))
    scores = metrics.score(probs, np.array(labels), CLASSES)
    known = [scores["auc"][name] for name in CLASSES if scores["auc"][name]]
    for interval in (scores["loss"], scores["accuracy"], *known):
        assert 0 <= interval["low"] <= interval["value"] <= interval["high"] < np.inf


def test_a_perfect_map_is_perfect_and_a_halved_one_is_half() -> None:
    true = np.random.default_rng(0).exponential(1e9, (5, 4, 4))
    perfect, halved = (metrics.map_score(factor * true, true, 1e9) for factor in (1, 0.5))
    assert [perfect[name] for name in ("precision", "recall", "average_precision", "total_ratio")] == pytest.approx(
        [1] * 4
    )
    assert perfect["total_error"] == 0
    assert (halved["precision"], halved["average_precision"]) == pytest.approx((1, 1))
    assert halved["recall"] < 0.8
    assert halved["total_ratio"] == halved["total_error"] == pytest.approx(0.5)


def test_a_map_at_random_finds_cells_as_often_as_there_are_any() -> None:
    rng = np.random.default_rng(0)
    scored = metrics.map_score(rng.exponential(1e9, (200, 9, 9)), rng.exponential(1e9, (200, 9, 9)), 1e9)
    for name in ("precision", "recall", "average_precision"):
        assert scored[name] == pytest.approx(scored["share"], abs=0.02)


def test_a_forecast_that_means_what_it_says_has_no_calibration_error() -> None:
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1, 200_000)
    labels = (rng.random(200_000) > sure).astype(np.int64)
    assert metrics.calibration_error(np.stack([sure, 1 - sure], 1), labels) < 0.005
    exaggerated = np.stack([np.full(200_000, 0.99), np.full(200_000, 0.01)], 1)
    assert metrics.calibration_error(exaggerated, labels) == pytest.approx(0.24, abs=0.005)


def test_the_floor_is_the_calibration_error_of_a_perfectly_calibrated_network() -> None:
    rng = np.random.default_rng(0)
    probs = rng.dirichlet([0.3, 0.3, 0.3], 2_000)
    labels = ((rng.random((2_000, 1)) > probs.cumsum(1)).sum(1) for _ in range(200))
    errors = [metrics.calibration_error(probs, drawn) for drawn in labels]
    floor = metrics.calibration_floor(probs)
    assert floor["mean"] == pytest.approx(np.mean(errors), abs=4 * np.std(errors) / np.sqrt(100))
    assert floor["sd"] == pytest.approx(np.std(errors), rel=0.2)


def test_the_loss_change_is_paired() -> None:
    rng = np.random.default_rng(0)
    probs, labels = rng.dirichlet([1, 1, 1], 500), rng.integers(0, 3, 500)
    change = metrics.loss_change(probs, probs**1.01 / (probs**1.01).sum(1, keepdims=True), labels)
    assert change["high"] - change["low"] < 0.01
    after = probs**1.01 / (probs**1.01).sum(1, keepdims=True)
    assert change["value"] == pytest.approx((metrics.losses(after, labels) - metrics.losses(probs, labels)).mean())


def test_shares_leave_out_a_class_without_images() -> None:
    flags, labels = np.array([True, False, True]), np.array([0, 0, 2])
    assert metrics.shares(flags, labels, ("a", "b", "c")) == {"all": 2 / 3, "a": 0.5, "c": 1.0}


def test_coverage_is_of_all_and_of_each_class() -> None:
    sets = np.array([[True, False, False], [True, True, False], [False, False, False], [False, True, False]])
    shares = metrics.coverage(sets, np.array([0, 0, 1, 1]), ("a", "b", "c"))
    assert shares == {"all": 0.75, "a": 1.0, "b": 0.5}


def test_a_change_of_auc_is_that_of_the_same_images() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    before, after = rng.dirichlet(np.ones(3), (2, 200))
    change = metrics.auc_change(before, after, labels)
    assert change["value"] == pytest.approx(metrics.macro_auc(after, labels) - metrics.macro_auc(before, labels))
    assert change["low"] < change["value"] < change["high"]
    assert list(metrics.auc_change(before, before, labels).values()) == pytest.approx([0, 0, 0], abs=1e-6)


def test_a_change_of_auc_is_as_likely_as_its_interval_says() -> None:
    def change(seed: int, n: int) -> dict[str, float]:
        before, labels = table(seed, n, skill=2)
        noise = np.exp(np.random.default_rng(seed + 10**7).normal(size=(n, 3)))
        return metrics.auc_change(before, before * noise, labels)

    truth = change(10**6, 300_000)["value"]
    changes = [change(seed, 150) for seed in range(300)]
    assert 276 <= sum(interval["low"] < truth < interval["high"] for interval in changes) <= 295


def test_two_networks_without_a_mistake_may_still_differ() -> None:
    labels = np.arange(30) % 3
    soft = 0.9 * np.eye(3)[labels] + 0.1 / 3
    change = metrics.auc_change(np.eye(3)[labels], soft, labels)
    assert change["low"] == -change["high"] < -0.01


def test_memory_of_a_score_grows_by_less_than_half_a_kilobyte_an_image() -> None:
    peaks = []
    for n in (150_000, 300_000):
        probs, labels = table(8, n)
        tracemalloc.start()
        metrics.score(probs, labels, CLASSES)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 150_000 < 500
