"""Statistics of lenses whose light, arcs and noise are known."""

import numpy as np
import pytest

from sublens.evaluation import lens_statistics
from sublens.evaluation.lens_statistics import geometry, profile, statistics

SCALE = 0.05


def lens(*, q: float = 1.0, angle: float = 0.0, arcs: float = 0.0, m: int = 3, noise: float = 1.0) -> np.ndarray:
    """An elliptical galaxy with arcs of that order m in its ring at 1.3 arcsec, and noise, in signal to noise."""
    y, x = (np.indices((120, 120)) - 59.5) * SCALE
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    galaxy = 100 * np.exp(-np.sqrt(q * u**2 + v**2 / q) / 0.5)
    ring = arcs * np.exp(-((np.hypot(x, y) - 1.3) ** 2) / 0.02) * np.cos(m * np.arctan2(y, x))
    return np.asarray(galaxy + ring + noise * np.random.default_rng(0).normal(size=x.shape))


@pytest.mark.parametrize("angle", [0.0, 0.7, 2.0])
def test_rings_follow_the_ellipse_of_the_light(angle: float) -> None:
    image = lens(q=0.6, angle=angle, noise=0)
    rings = geometry(image, SCALE)
    assert rings.ellipticity == pytest.approx((1 - 0.6**2) / (1 + 0.6**2), abs=0.03)
    assert np.abs(image - profile(image, rings, SCALE))[rings.between(0.5, 3)].max() < 1.5


def test_rings_follow_a_lens_that_is_off_the_middle() -> None:
    image = lens(q=0.7, noise=0)
    before, after = geometry(image, SCALE), geometry(np.roll(image, 2, axis=1), SCALE)
    assert (before.offset, after.offset) == pytest.approx((0, 0.1), abs=0.005)
    assert after.ellipticity == pytest.approx(before.ellipticity, abs=0.01)


def test_arcs_are_what_is_left_without_the_profile() -> None:
    plain, bright = statistics(lens(q=0.8), SCALE), statistics(lens(q=0.8, arcs=30), SCALE)
    assert plain['arcs 1-1.5"'] == pytest.approx(1, abs=0.1)
    assert bright['arcs 1-1.5"'] > 8
    assert plain["peaks"] <= 2 < 3 <= bright["peaks"]
    assert plain["bright pixels"] < 1e-3 < 0.02 < bright["bright pixels"]


@pytest.mark.parametrize("m", [3, 4, 7])
def test_the_angular_power_is_greatest_at_the_order_of_the_arcs(m: int) -> None:
    found = statistics(lens(arcs=20, m=m), SCALE)
    power = [found[f"angular power m={order}"] for order in lens_statistics.ORDERS]
    assert int(np.argmax(power)) + 1 == m


@pytest.mark.parametrize(("sigma", "shift"), [(1.0, 0.0), (1.3, 5.0)])
def test_the_border_tells_of_sky_and_noise(sigma: float, shift: float) -> None:
    found = statistics(lens(noise=sigma) + shift, SCALE)
    assert found["border scatter"] == pytest.approx(sigma, rel=0.05)
    assert found["border level"] == pytest.approx(shift + 0.4, abs=0.2)
    assert abs(found["noise correlation"]) < 0.05


def test_neighbours_share_the_noise_of_a_resampled_image() -> None:
    noise = np.random.default_rng(1).normal(size=(120, 121))
    found = statistics(lens(noise=0) + (noise[:, 1:] + noise[:, :-1]) / np.sqrt(2), SCALE)
    assert found["noise correlation"] == pytest.approx(0.25, abs=0.06)  # 1/2 along rows, 0 along columns


def test_masked_pixels_count_as_masked_and_as_nothing_else() -> None:
    image, mask = lens(q=0.8, arcs=10), np.random.default_rng(2).random((120, 120)) < 0.1
    before, after = statistics(image, SCALE), statistics(np.where(mask, np.nan, image), SCALE)
    assert after.pop("masked share") == pytest.approx(mask.mean())
    for name in ("concentration", "half-light radius", "border scatter", "noise correlation", 'arcs 1-1.5"'):
        assert after[name] == pytest.approx(before[name], rel=0.1, abs=0.05), name


def test_a_small_field_has_the_annuli_that_it_holds() -> None:
    assert 'arcs 1.5-2"' in statistics(lens()[20:100, 20:100], SCALE)
