import numpy as np
import pytest
from numpy.typing import NDArray

from sublens.models import fit_classes
from sublens.models.fit_classes import Evidence, FitClasses

Floats = NDArray[np.float64]
NONE = Evidence(chi2=0.6, string_gain=0.0, subhalo_gain=0.0, n_effective=60.0, sensitivity=4.0, sensitivity_spread=0.3)


def sample(n: int, seed: int) -> tuple[Floats, NDArray[np.int64], Floats]:
    """Features of lenses whose class shows in the gains of its substructure, the classes, and chi2."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    gains = rng.exponential(2.0, (n, 2))
    gains[labels == 1, 1] += rng.exponential(12, (labels == 1).sum())
    gains[labels == 2, 0] += rng.exponential(12, (labels == 2).sum())
    rows = [
        NONE._replace(string_gain=a, subhalo_gain=b, chi2=c)
        for (a, b), c in zip(gains, rng.uniform(0.4, 1.2, n), strict=True)
    ]
    probs = rng.dirichlet(np.full(3, 30.0), n)
    return fit_classes.features(probs, rows), labels, np.array([row.chi2 for row in rows])


@pytest.fixture(scope="module")
def told() -> FitClasses:
    return fit_classes.fit(*sample(600, 1))


def test_gains_tell_the_class(told: FitClasses) -> None:
    even = np.full((3, 3), 1 / 3)
    rows = [NONE, NONE._replace(subhalo_gain=40.0), NONE._replace(string_gain=40.0)]
    probs = told.probs(fit_classes.features(even, rows))
    assert probs.argmax(1).tolist() == [0, 1, 2]
    assert probs.sum(1) == pytest.approx(1)


def test_probabilities_of_new_lenses_are_calibrated(told: FitClasses) -> None:
    x, labels, _ = sample(6000, 2)
    probs = told.probs(x)
    for label in range(3):
        for low in np.arange(0, 1, 0.2):
            chosen = (probs[:, label] >= low) & (probs[:, label] < low + 0.2)
            if chosen.sum() > 300:
                assert probs[chosen, label].mean() == pytest.approx((labels[chosen] == label).mean(), abs=0.08)


def test_sets_hold_nine_in_ten_of_each_class(told: FitClasses) -> None:
    x, labels, _ = sample(6000, 3)
    held = told.probs(x) >= np.array(told.cutoffs)
    for label in range(3):
        assert held[labels == label, label].mean() == pytest.approx(0.9, abs=0.04)


def test_the_network_counts_where_fits_say_nothing(told: FitClasses) -> None:
    rng = np.random.default_rng(4)
    labels = np.arange(900) % 3
    probs = np.full((900, 3), 0.2) + 0.4 * np.eye(3)[labels]
    x = fit_classes.features(probs, [NONE._replace(chi2=c) for c in rng.uniform(0.5, 0.7, 900)])
    assert (fit_classes.fit(x, labels, np.ones(900)).probs(x).argmax(1) == labels).all()


def test_what_no_simulated_lens_gains_is_not_extrapolated(told: FitClasses) -> None:
    even = np.full((2, 3), 1 / 3)
    far, farther = told.probs(fit_classes.features(even, [NONE._replace(string_gain=g) for g in (1e5, 1e7)]))
    assert far == pytest.approx(farther)


def test_a_card_keeps_it(told: FitClasses) -> None:
    assert FitClasses.model_validate_json(told.model_dump_json()) == told
    assert 1.1 < told.greatest_chi2 < 1.2
    assert told.n == 600
