"""Missing pixels: which are, how they are filled, and where they are too many."""

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sublens.errors import ImageError
from sublens.images.pixels import Image, RawImage, counts_above_minimum, fill_field, fill_missing
from sublens.images.resample import resample_image

SIDE = 40
WHOLE = slice(0, SIDE), slice(0, SIDE)
Y, X = np.mgrid[:SIDE, :SIDE]
ARC = 10 + 800 * np.exp(-0.5 * ((np.hypot(X + 10, Y - 20) - 30) / 2) ** 2)
"""An arc through the centre, which a PSF of 1.7 pixels could make."""
COUNTS = np.random.default_rng(2).poisson(ARC).astype(float)
Mask = NDArray[np.bool_]


def square(side: int, row: int = 20, column: int = 20) -> Mask:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[row : row + side, column : column + side] = True
    return mask


def marked(pixels: NDArray[np.generic], mask: Mask | None = None) -> Image:
    return fill_missing(RawImage(pixels, mask=mask), "x")


def missing(pixels: NDArray[np.generic]) -> Mask:
    mask = marked(pixels).mask
    return np.zeros(pixels.shape, bool) if mask is None else mask


@pytest.mark.parametrize("side", [1, 2, 3])
def test_a_small_hole_on_the_crest_of_an_arc_is_filled_within_its_noise(side: int) -> None:
    mask = square(side)
    filled = fill_field(marked(np.where(mask, np.nan, COUNTS)), WHOLE)
    assert not filled.has_hole
    assert np.array_equal(filled.pixels[~mask], COUNTS[~mask])
    assert np.abs((filled.pixels - ARC)[mask] / np.sqrt(ARC[mask])).max() < 3  # the median is 28 off


@given(st.lists(st.floats(-1, 1), min_size=6, max_size=6), st.floats(0.8, 6), st.integers(0, 10**6))
def test_a_parabola_is_filled_exactly(terms: list[float], sigma: float, seed: int) -> None:
    x, y = X / SIDE, Y / SIDE
    sky = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1) @ np.array(terms)
    mask = np.random.default_rng(seed).random((SIDE, SIDE)) < 0.05
    good = sky[~mask]
    assume(np.ptp(good) > 1e-2)
    filled = fill_field(marked(sky, mask), WHOLE, sigma)
    assert np.abs(filled.pixels - sky.clip(good.min(), good.max())).max() < 1e-3


@pytest.mark.parametrize("scale", [1.0, 1 / 821, 7.3])
def test_filled_pixels_are_whole_photons(scale: float) -> None:
    mask = np.random.default_rng(0).random((SIDE, SIDE)) < 0.05
    counts = fill_field(marked(np.where(mask, np.nan, COUNTS * scale - 3)), WHOLE).counts()
    assert np.array_equal(counts[~mask], (COUNTS - COUNTS[~mask].min())[~mask])


def test_a_missing_pixel_does_not_double_the_counts() -> None:
    pixels = np.array([[np.nan, np.nan, 1.0, 2.0], [1.0, 2.0, 8.0, 1.0]])  # between 1 and 2 is the median
    assert counts_above_minimum(marked(pixels).pixels).max() == 7


@pytest.mark.parametrize(("mask", "has_hole"), [(square(3), False), (square(4), True), (Y < 3, True), (Y < 1, False)])
def test_a_hole_wider_than_the_psf_is_marked(mask: Mask, has_hole: bool) -> None:
    assert fill_field(marked(COUNTS, mask), WHOLE).has_hole is has_hole


def test_a_hole_is_measured_on_the_scale_of_the_network() -> None:
    sky = np.random.default_rng(0).normal(30, 5, (120, 120))
    for side, scale, has_hole in (
        (3, 0.05, False),
        (7, 0.02, False),
        (1, 0.1, False),
        (5, 0.05, True),
        (14, 0.02, True),
    ):
        mask = np.zeros(sky.shape, bool)
        mask[60 : 60 + side, 60 : 60 + side] = True
        image = resample_image(Image(sky, pixel_scale=scale, mask=mask), (40, 40), 40, 0.05)
        assert image.has_hole is has_hole


def test_missing_pixels_around_the_field_of_view_change_nothing_but_are_noted() -> None:
    mask = (X < 8) | (Y > 31)
    image = resample_image(marked(np.where(mask, np.nan, COUNTS)), WHOLE_SHAPE, 20, 0.05)
    assert not image.has_hole
    assert np.array_equal(image.pixels[~mask], COUNTS[~mask])
    assert f"{mask.sum()} missing pixels, none of them in the central 1 x 1 arcsec" in image.notes


WHOLE_SHAPE = SIDE, SIDE


def test_a_note_counts_missing_pixels_and_says_where_they_are() -> None:
    mask = square(1, 20, 23) | square(2, 0, 0)
    field = "the central 1 x 1 arcsec, the nearest 0.18 arcsec from the centre"
    (*_, note) = resample_image(Image(COUNTS, pixel_scale=0.05, mask=mask), WHOLE_SHAPE, 20, 0.05).notes
    assert note == f"5 missing pixels, 1 of them in {field}; filled from their neighbours"
    (*_, note) = resample_image(Image(COUNTS, mask=square(4, 18, 18)), WHOLE_SHAPE, 20, None).notes
    assert note.startswith("16 missing pixels, 16 of them in the central 20 x 20 pixels, the nearest 0.71 pixels from")
    assert "in a hole too large to fill: out of distribution" in note


def test_an_image_whose_field_of_view_is_mostly_missing_is_refused() -> None:
    image = Image(COUNTS, mask=square(7, 17, 17))  # 3 % of the image, 12 % of its field of view
    with pytest.raises(ImageError, match="49 of the 400 pixels around its centre are missing; needs at most 10%"):
        resample_image(image, WHOLE_SHAPE, 20, None)


@pytest.mark.parametrize(("value", "dtype"), [(-99, "f4"), (-999, "f8"), (-32768, "i2"), (1e30, "f4"), (-1e32, "f8")])
def test_values_that_mean_missing_are_known(value: float, dtype: str) -> None:
    for holders in (X == 0, np.random.default_rng(1).permutation(SIDE**2).reshape(SIDE, SIDE) < 8):
        mask = missing(np.where(holders, value, COUNTS).astype(dtype))
        assert np.array_equal(mask, holders)
    assert not missing(np.where(square(2), value, COUNTS).astype(dtype)).any()  # as few may be by chance


def test_two_such_values_are_known() -> None:
    pixels = np.where(X == 0, -99, np.where(Y == 0, -999, COUNTS))
    assert np.array_equal(missing(pixels), (X == 0) | (Y == 0))


NOISE = np.random.default_rng(4).normal(0, 30, (SIDE, SIDE))


@pytest.mark.parametrize(
    "pixels",
    [
        pytest.param(np.where(X < 10, 0, COUNTS), id="zero padding"),
        pytest.param(np.where(X < 10, 0, COUNTS + 1e6), id="zero padding below a bright sky"),
        pytest.param(COUNTS.clip(None, 200), id="saturated"),
        pytest.param((COUNTS * 90).clip(0, 65535).astype(np.uint16), id="saturated camera"),
        pytest.param(NOISE.clip(-30, None) * 3.3, id="clipped at -99"),
        pytest.param(np.round(NOISE) - 99, id="sky around -99"),
        pytest.param(np.where(square(10), 1000, X % 3), id="map of four levels"),
        pytest.param(square(10), id="truth values"),
    ],
)
def test_padded_saturated_and_clipped_images_miss_nothing(pixels: NDArray[np.generic]) -> None:
    assert not missing(pixels).any()


def test_pixels_under_a_mask_of_the_file_are_missing_whatever_they_hold() -> None:
    for value in (np.nan, np.inf, -1e300, 3.0):
        image = marked(np.where(square(2), value, COUNTS)[None], square(2)[None])
        assert image.mask is not None
        assert np.array_equal(image.mask, square(2))
        assert COUNTS.min() <= image.pixels[square(2)].min() <= image.pixels[square(2)].max() <= COUNTS.max()


def levels_by_sorting(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Counts above the minimum, by the sorted values of all pixels."""
    scaled = (pixels - pixels.min()) / (pixels.max() - pixels.min())
    gaps = np.diff(np.unique(scaled))
    step = gaps[gaps > 0.5 / 20000].min(initial=1.0)
    for n_levels in (round(divisor / step) for divisor in (1, 2, 3)):
        counts = scaled * n_levels
        if counts.max() <= 20000 and np.abs(counts - counts.round()).max() < 1e-3:
            return np.asarray(np.rint(counts))
    return np.asarray(np.rint(scaled * 65535))


@given(
    st.integers(0, 10**6), st.sampled_from([2, 40, 500, 19_999, 20_001, 40_000, 10**7]), st.sampled_from("dfe"),
    st.sampled_from([0.0, 1e-9, 1e-6, 1e-4]), st.integers(1, 3),
)  # fmt: skip
def test_counts_are_those_that_sorting_gives(seed: int, peak: int, kind: str, noise: float, step: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, peak, (30, 30)) ** rng.choice([1.0, 0.5]) // 1 * step
    pixels = (counts / counts.max() + rng.normal(0, noise, counts.shape)).astype(kind).astype(np.float64)
    assume(pixels.min() < pixels.max())
    assert np.array_equal(counts_above_minimum(pixels), levels_by_sorting(pixels))


def test_counts_of_real_images_are_those_that_sorting_gives(real_data: Path) -> None:
    with fits.open(real_data / "slacs0946+1006" / "data.fits") as hdus:
        sky = hdus[0].data.astype(np.float64)
    with np.load(real_data / "common_test_1_no_1000.npz") as archive:
        images = [sky, *(counts / counts.max() for counts in archive["counts"][:20])]
    for image in images:
        assert np.array_equal(counts_above_minimum(image), levels_by_sorting(image))


def test_a_hole_in_a_blank_field_is_filled_without_a_warning() -> None:
    pixels = np.where(square(2), np.nan, 7.0)
    pixels[0, 0] = 8
    filled = fill_field(marked(pixels), (slice(5, 35), slice(5, 35)))
    assert (filled.pixels[5:35, 5:35] == 7).all()
