from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import chisquare, poisson

from sublens.lensing import compiled, mass


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(seed))


def surprise(drawn: NDArray[np.int32], mean: float) -> float:
    """Chance of a chi-square as bad as that of these draws, if they are Poisson."""
    counts = np.bincount(drawn.ravel())
    expected = poisson.pmf(np.arange(len(counts)), mean) * drawn.size
    common = expected > 10
    counts_all = np.append(counts[common], drawn.size - counts[common].sum())
    expected_all = np.append(expected[common], drawn.size - expected[common].sum())
    return float(chisquare(counts_all, expected_all).pvalue)


@pytest.mark.parametrize("mean", [0.1, 1, 10, 13.1, 63.99, 64, 100, 1000, 1030.5, 4000])
def test_draws_are_poisson(mean: float) -> None:
    assert surprise(compiled.poisson(rng(), np.full(300_000, mean)), mean) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("mean", [0.1, 1, 10, 100, 1000])
def test_ten_million_draws_are_poisson(mean: float) -> None:
    assert surprise(compiled.poisson(rng(1), np.full(10_000_000, mean)), mean) > 1e-3


def test_a_slightly_wrong_mean_would_be_noticed() -> None:
    assert surprise(compiled.poisson(rng(), np.full(300_000, 10.05)), 10) < 1e-6


def test_neighbours_are_independent() -> None:
    drawn = compiled.poisson(rng(), np.full(400_000, 205.3)).astype(float)
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 5 / np.sqrt(len(drawn))


@pytest.mark.parametrize("mean", [0.003, 0.03, 0.124])
def test_a_small_mean_is_drawn_as_its_intervals_lie(mean: float) -> None:
    shares = poisson.cdf(np.arange(4), mean)
    for count, (low, high) in enumerate(zip([0, *shares], shares, strict=False)):
        assert (
            compiled._few(mean, low + 0.01 * (high - low)) == compiled._few(mean, high - 0.01 * (high - low)) == count
        )


def test_bright_and_faint_pixels_are_drawn_together() -> None:
    rates = np.array([0.0, 1e8, 0.0, 5e4, 12.0])
    drawn = compiled.poisson(rng(), rates)
    assert drawn[0] == drawn[2] == 0
    assert (np.abs(drawn - rates) < 6 * np.sqrt(rates) + 1).all()


def test_the_same_seed_draws_the_same() -> None:
    rates = np.random.default_rng(0).uniform(0, 900, (30, 30)).astype(np.float32)
    assert np.array_equal(compiled.poisson(rng(4), rates), compiled.poisson(rng(4), rates))
    assert not np.array_equal(compiled.poisson(rng(5), rates), compiled.poisson(rng(4), rates))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_points_are_those_of_the_formula(dtype: type[np.floating[Any]]) -> None:
    random = np.random.default_rng(0)
    x, y = np.linspace(-3, 3, 40, dtype=dtype), np.linspace(-3, 3, 50, dtype=dtype)
    masses = random.uniform(-2, 2, (9, 3)).astype(dtype)
    ends = np.array([4, 4, 9])
    alpha_x, alpha_y = (np.zeros((3, 50, 40), dtype) for _ in range(2))
    mass.add_points(x, y, masses, ends, alpha_x, alpha_y)
    assert not alpha_x[1].any()
    plane_x, plane_y = torch.from_numpy(x)[None, :], torch.from_numpy(y)[:, None]
    for image, own in ((0, masses[:4]), (2, masses[4:])):
        expected = [mass.point_deflection(plane_x, plane_y, *torch.from_numpy(parameters)) for parameters in own]
        for got, component in zip((alpha_x, alpha_y), zip(*expected, strict=True), strict=True):
            torch.testing.assert_close(torch.from_numpy(got[image]), sum(component), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("parts", [1, 3])
def test_blur_is_a_sum_over_neighbours(dtype: type[np.floating[Any]], parts: int) -> None:
    image = np.random.default_rng(0).random((2, 4 * parts, 5 * parts)).astype(dtype)
    weights, reach = np.random.default_rng(1).random(parts + 4).astype(dtype), 2
    wide = np.pad(image, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(wide, (len(weights), len(weights)), axis=(1, 2))
    expected = np.einsum("bhwij,i,j->bhw", windows[:, ::parts, ::parts], weights, weights)
    blurred = np.empty((2, 4, 5), dtype)
    compiled.blur(image, weights, parts, blurred)
    np.testing.assert_allclose(blurred, expected, rtol=1e-5)


def test_noise_is_added_before_the_gain_divides() -> None:
    counts = np.array([10, 11, 0], np.int32)
    compiled.add_noise(counts, np.array([0.5, -1, -2]), 2.0, 3.0)
    assert counts.tolist() == [4, 3, -1]
