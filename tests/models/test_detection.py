"""The chance that a subhalo is found, and the limit that follows from it."""

import numpy as np
import pytest
from scipy.special import expit

from sublens.models import detection
from sublens.models.arc import PLAIN
from sublens.models.detection import FALSE_POSITIVES, FOUND, LOG_MASSES, Detection, Floats

STEEPNESS = 5.0
"""Slope of eta with log10 of the mass."""


def lenses(n: int, seed: int) -> Floats:
    """Features of simulated lenses; nothing is masked."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, (n, len(PLAIN))) * [0.2, 0.5, 0.6, 0.4, 0] + [3.3, 4, 5, 1, 0]


def middle(x: Floats) -> Floats:
    """log10 of the mass at which eta is 0."""
    return np.asarray(9.5 - 0.8 * (x[:, 1] - 4) + 0.3 * (x[:, 0] - 3.3))


def chance(x: Floats, log_mass: Floats) -> Floats:
    return np.asarray(FALSE_POSITIVES + (1 - FALSE_POSITIVES) * expit(STEEPNESS * (log_mass - middle(x))))


@pytest.fixture(scope="module")
def fitted() -> Detection:
    rng, x = np.random.default_rng(1), lenses(3000, 0)
    log_mass = rng.uniform(*LOG_MASSES, len(x))
    return detection.fit(x, log_mass, rng.random(len(x)) < chance(x, log_mass), p_no=0.3, log_most=LOG_MASSES[1])


def test_a_known_law_is_recovered(fitted: Detection) -> None:
    x = lenses(500, 2)
    log_mass = np.linspace(8, 11, len(x))
    assert np.abs(fitted.chance(x, log_mass) - chance(x, log_mass)).mean() < 0.02


def test_in_bins_of_the_limit_nine_in_ten_are_found_at_it(fitted: Detection) -> None:
    x = lenses(5000, 3)
    limits = fitted.log_limits(x)
    assert np.isnan(limits).mean() < 0.01
    for rows in np.array_split(np.argsort(limits)[: np.isfinite(limits).sum()], 5):
        assert chance(x[rows], limits[rows]).mean() == pytest.approx(FOUND, abs=0.04)


def test_a_limit_is_the_mass_of_that_chance(fitted: Detection) -> None:
    x = lenses(50, 4)
    assert fitted.chance(x, fitted.log_limits(x)) == pytest.approx(np.full(50, FOUND))


@pytest.mark.parametrize(("level", "limit"), [(-100.0, np.nan), (100.0, LOG_MASSES[0])])
def test_a_limit_lies_within_the_simulated_masses_or_there_is_none(
    fitted: Detection, level: float, limit: float
) -> None:
    shifted = fitted.model_copy(update={"levels": (level, *fitted.levels[1:])})
    assert np.array_equal(shifted.log_limits(lenses(5, 5)), np.full(5, limit), equal_nan=True)


def test_there_is_no_limit_where_the_chance_does_not_grow_with_mass(fitted: Detection) -> None:
    falling = fitted.model_copy(update={"slopes": (-1.0, *(0.0 for _ in PLAIN))})
    assert np.isnan(falling.log_limits(lenses(5, 6))).all()


def test_features_beyond_those_of_the_simulations_count_as_the_farthest(fitted: Detection) -> None:
    far, farther = (np.array(fitted.means) + k * np.array(fitted.spreads) for k in (detection.REACH, 50))
    assert fitted.log_limits(far[None]) == pytest.approx(fitted.log_limits(farther[None]))


def test_a_tenth_of_the_smooth_lenses_falls_short_of_the_threshold() -> None:
    p_no = np.random.default_rng(7).random(1000)
    assert (p_no < detection.threshold(p_no)).mean() == FALSE_POSITIVES


def test_few_simulations_that_the_mass_divides_still_have_a_finite_fit() -> None:
    x, log_mass = lenses(40, 8), np.linspace(8, 11, 40)
    divided = detection.fit(x, log_mass, log_mass > 9.5, p_no=0.3, log_most=LOG_MASSES[1])
    assert np.isfinite(divided.log_limits(x)).any()
