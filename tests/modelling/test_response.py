import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import convolve2d

from sublens.modelling import response
from sublens.modelling.lens_image import Data, LensImage

RNG = np.random.default_rng(3)
GRID = 9


def image(n: int, scale: float, psf: NDArray[np.float64]) -> LensImage:
    return LensImage(RNG.normal(size=(n, n)), np.ones((n, n)), psf, scale)


def psf(side: int) -> NDArray[np.float64]:
    """A point-spread function that is alike along no two directions."""
    x = np.arange(side) - side // 2
    return np.exp(-(x**2) / 3 - (x[:, None] - 0.3 * x) ** 2 / 2) * (1 + 0.2 * np.sign(x))


@pytest.mark.parametrize(("scale", "n_bin", "parts"), [(0.05, 2, 1), (0.1, 1, 2), (0.03, 3, 1), (0.12, 1, 3)])
@pytest.mark.parametrize("side", [5, 6])
def test_planes_are_blurred_and_binned_as_scipy_does_it(scale: float, n_bin: int, parts: int, side: int) -> None:
    data = Data.of(image(24, scale, psf(side)), radius=10 * scale)
    plane, around = RNG.normal(size=data.x.shape), side // 2
    n = len(plane) // parts
    pixels = plane.reshape(n, parts, n, parts).mean((1, 3))
    inner = slice(2 * around, n)  # without the points around the data
    blurred = convolve2d(pixels, psf(side) / psf(side).sum())[inner, inner]
    n = len(blurred) // n_bin
    binned = blurred.reshape(n, n_bin, n, n_bin).sum((1, 3))
    got = response.of_planes(plane[None], data.blur)[:, 0]
    assert got == pytest.approx(binned[tuple(data.places.T)], abs=1e-5)


def test_the_splines_of_a_place_sum_to_one() -> None:
    places = RNG.uniform(1, GRID - 2, size=(2, 40, 40))
    values, slopes = response.splines(places[0], places[1], GRID)
    assert values.along_x.sum(-1) == pytest.approx(1)
    assert slopes.along_y.sum(-1) == pytest.approx(0, abs=1e-6)
    assert (values.row >= 0).all()


def test_light_is_smooth_and_its_slope_is_that_of_the_splines() -> None:
    source = RNG.normal(size=(GRID, GRID)).astype(np.float32)
    x, y = RNG.uniform(2, GRID - 3, size=(2, 30, 30))

    def light(x: NDArray[np.float64]) -> NDArray[np.float32]:
        return response.light(response.splines(x, y, GRID)[0], source)

    values, slopes = response.splines(x, y, GRID)
    slope = response.light(values._replace(along_x=slopes.along_x), source)
    assert slope == pytest.approx((light(x + 0.01) - light(x - 0.01)) / 0.02, abs=0.04)


def test_light_falls_to_nothing_beyond_the_grid_without_a_jump() -> None:
    source = np.ones((GRID, GRID), np.float32)
    x = np.linspace(-4, GRID + 3, n := 20 * (GRID + 7) + 1)[None].repeat(n, 0)
    for places in ((x, np.full_like(x, 4.0)), (np.full_like(x, 4.0), x)):
        light = response.light(response.splines(*places, GRID)[0], source)[0]
        assert light[x[0] < -1.5].max() == light[x[0] > GRID + 0.5].max() == 0
        assert light[(x[0] > 0.5) & (x[0] < GRID - 1.5)] == pytest.approx(1)
        assert np.abs(np.diff(light)).max() < 0.05


def test_an_image_of_a_source_is_its_light_in_the_pixels() -> None:
    data = Data.of(image(32, 0.05, psf(7)), radius=0.8)
    source = RNG.normal(size=(GRID, GRID)).astype(np.float32)
    places = response.splines(3 * data.x + 4 + data.y, 4 - 3 * data.y, GRID)[0]
    columns = response.of_source(places, GRID, data.blur)
    plane = response.light(places, source)
    assert columns @ source.ravel() == pytest.approx(response.of_planes(plane[None], data.blur)[:, 0], abs=1e-4)


@pytest.mark.parametrize("side", [5, 7, 15])
def test_a_coarser_image_has_the_same_light_and_a_psf_a_little_wider(side: int) -> None:
    kernel, axis = psf(side) / psf(side).sum(), np.arange(side) - side // 2
    fine = LensImage(RNG.normal(size=(26, 25)), np.full((26, 25), 2.0), kernel, 0.05)
    coarse = fine.coarser()
    assert coarse.pixels == pytest.approx(fine.pixels[1:25, :24].reshape(12, 2, 12, 2).sum((1, 3)))
    assert (coarse.noise == 4).all()
    assert coarse.pixel_scale == 0.1
    spread, coarse_axis = coarse.psf / coarse.psf.sum(), 2 * (np.arange(len(coarse.psf)) - len(coarse.psf) // 2)
    for along in (0, 1):
        means = [float((plane.sum(along) * places).sum()) for plane, places in ((kernel, axis), (spread, coarse_axis))]
        squares = [
            float((plane.sum(along) * places**2).sum()) for plane, places in ((kernel, axis), (spread, coarse_axis))
        ]
        assert means[1] == pytest.approx(means[0], abs=0.05)
        assert squares[0] < squares[1] < squares[0] + 1.5


@pytest.mark.parametrize("shape", [(40, 40), (41, 38), (8, 5), (5, 8), (41, 41), (14, 14)])
@pytest.mark.parametrize("is_coarse", [False, True])
def test_a_point_spread_function_of_any_size_moves_no_light(shape: tuple[int, int], *, is_coarse: bool) -> None:
    y, x = (np.arange(length) - length // 2 for length in shape)
    kernel = np.exp(-(x**2 + y[:, None] ** 2) / 2)
    blank = LensImage(np.zeros((80, 80)), np.ones((80, 80)), kernel, 0.05)
    data = Data.of(blank.coarser(), 1.9, 0.1) if is_coarse else Data.of(blank, 1.9)
    light = np.exp(-((data.x - 0.3) ** 2 + (data.y + 0.2) ** 2) / 2 / 0.15**2)
    plane = np.nan_to_num(data.plane(response.of_planes(light[None], data.blur)[:, 0]))
    axis = (np.arange(data.side) - (data.side - 1) / 2) * 0.1
    centre = (plane * axis).sum() / plane.sum(), (plane * axis[:, None]).sum() / plane.sum()
    assert centre == pytest.approx((0.3, -0.2), abs=0.02)


def test_pixels_whose_noise_is_nothing_hold_no_data() -> None:
    noise = np.ones((24, 24))
    noise[12, 12] = 0
    assert len(Data.of(LensImage(np.ones((24, 24)), noise, psf(5), 0.1), 5).values) == 24**2 - 1
