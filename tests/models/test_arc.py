"""Features of the light around the ring."""

import numpy as np
import pytest
from numpy.typing import NDArray

from sublens.images.signal_to_noise import MASKED, encode
from sublens.models.arc import MEASURED, PLAIN, MeasuredLens, features, noise_weighted

SIDE, RADIUS = 60, 15.0
Y, X = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
LENS = 40 * np.exp(-np.hypot(X, Y) / 5)


def arc(radius: float = RADIUS, peak: float = 20.0) -> NDArray[np.float64]:
    """Signal to noise of an arc over a quarter of the ring."""
    lit = np.abs(np.arctan2(Y, X)) < np.pi / 4
    return np.asarray(peak * np.exp(-0.5 * ((np.hypot(X, Y) - radius) / 1.5) ** 2) * lit)


def planes(*lights: NDArray[np.float64], mask: NDArray[np.bool_] | None = None) -> NDArray[np.uint16]:
    noise = np.random.default_rng(0).normal(size=(len(lights), SIDE, SIDE))
    return encode(np.stack(lights) + noise, np.ones((SIDE, SIDE)), mask)


def feature(name: str, *lights: NDArray[np.float64]) -> list[float]:
    return [float(value) for value in features(planes(*lights), "signal-to-noise")[:, PLAIN.index(name)]]


def test_the_radius_is_that_of_the_arc_under_the_light_of_the_lens() -> None:
    radii = np.exp(feature("ln_radius", LENS + arc(12), LENS + arc(18)))
    assert radii == pytest.approx([12, 18], abs=0.7)


def test_the_signal_to_noise_is_that_of_a_matched_filter() -> None:
    (measured,) = np.exp(feature("ln_arc_sn", LENS + arc()))
    assert measured == pytest.approx(np.sqrt((arc() ** 2).sum()), rel=0.05)


def test_light_of_a_round_lens_is_no_arc() -> None:
    bare, lit = feature("ln_arc_sn", LENS, LENS + arc())
    assert bare < lit - 2


def test_a_fainter_arc_has_fewer_clear_pixels() -> None:
    bright, faint, none = feature("ln_arc_area", arc(peak=40), arc(peak=5), arc(peak=0))
    assert bright > faint > none


def test_the_light_of_the_lens_on_the_ring_counts_by_its_median() -> None:
    dark, shining = feature("ln_light", 0 * LENS, 0 * LENS + 6)
    assert dark < 0.1
    assert shining == pytest.approx(np.log(7), abs=0.1)


def test_masked_pixels_count_by_their_share_and_add_no_light() -> None:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:, SIDE // 2 :] = True  # the whole arc
    hidden = features(planes(LENS + arc(), mask=mask), "signal-to-noise")[0]
    assert hidden[PLAIN.index("masked_share")] == pytest.approx(0.5, abs=0.01)
    assert hidden[PLAIN.index("ln_arc_sn")] < np.log(np.sqrt((arc() ** 2).sum()) / 4)


def test_an_image_all_masked_has_finite_features() -> None:
    nothing = np.full((1, SIDE, SIDE), MASKED, np.uint16)
    assert np.isfinite(features(nothing, "signal-to-noise")).all()


def test_a_measured_lens_sets_the_annulus_and_adds_its_own_features() -> None:
    lens = MeasuredLens(np.array([25.0]), np.array([0.03]), np.array([0.8]))
    row = features(planes(arc(12)), "signal-to-noise", lens)[0]
    assert dict(zip(MEASURED, row, strict=True))["ln_radius"] == pytest.approx(np.log(25))
    assert row[-2:].tolist() == [0.03, 0.8]
    assert row[PLAIN.index("ln_arc_area")] == pytest.approx(0, abs=2)  # the arc lies inside the annulus


def test_counts_are_weighted_by_the_noise_of_sky_and_photons() -> None:
    rng = np.random.default_rng(1)
    weighted = noise_weighted(rng.poisson(100 + 3 * LENS, (40, SIDE, SIDE)).astype(np.uint16), "counts")
    assert weighted.std(0).mean() == pytest.approx(1, abs=0.05)


def test_an_image_has_the_same_features_in_any_batch() -> None:
    many = planes(*(LENS + arc(10 + k) for k in range(5)))
    assert np.array_equal(features(many, "signal-to-noise")[3:4], features(many[3:4], "signal-to-noise"))
