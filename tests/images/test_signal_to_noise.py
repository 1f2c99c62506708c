"""Codes of signal to noise, and the noise, sky and photometry behind them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from sublens.errors import ImageError
from sublens.images import formats
from sublens.images.formats import NO_FILES
from sublens.images.pixels import Companions, Image
from sublens.images.signal_to_noise import (
    LEAST,
    MASKED,
    MOST,
    STEP,
    border,
    decode,
    encode,
    fwhm,
    photometry,
    sky_scatter,
    weigh,
)


@given(arrays(np.float64, (3, 4), elements=st.floats(LEAST + STEP, 1290)), st.floats(1e-12, 1e12))
def test_codes_keep_signal_to_noise_to_half_a_step(snr: np.ndarray, sigma: float) -> None:
    assert decode(encode(snr * sigma, np.full(snr.shape, sigma))) == pytest.approx(snr, abs=STEP * 0.501)


def test_masked_pixels_stay_masked() -> None:
    mask = np.eye(3, dtype=bool)
    plane = encode(np.ones((2, 3, 3)), np.ones((2, 3, 3)), mask)
    assert ((plane == MASKED) == mask).all()
    assert (np.isnan(decode(plane)) == mask).all()


@pytest.mark.parametrize(("pixel", "noise"), [(np.nan, 1), (np.inf, 1), (1, 0), (1, -1), (1, np.nan)])
def test_pixels_without_a_value_or_without_noise_are_masked(pixel: float, noise: float) -> None:
    assert encode([[pixel]], [[noise]]).item() == MASKED


@pytest.mark.parametrize(("snr", "code"), [(-1e300, 1), (LEAST, 1), (1e5, MOST), (1e308, MOST), (0, 1000), (1, 1050)])
def test_extremes_are_clipped(snr: float, code: int) -> None:
    assert encode([[snr]], [[1.0]]).item() == code
    assert encode([[snr]], [[1e-5]]).item() == (code if snr == 0 or code in (1, MOST) else MOST)


def test_huge_noise_leaves_nothing_of_a_pixel() -> None:
    assert decode(encode([[1e4, -1e4]], [[1e30, np.inf]])) == pytest.approx(np.zeros((1, 2)), abs=1e-6)


# --- noise, sky and photometry ----------------------------------------------------------------


def sky(sigma: float = 2.0, level: float = 0.0, side: int = 120) -> NDArray[np.float64]:
    """White noise around a level, with a bright Gaussian in the middle."""
    axis = np.arange(side) - (side - 1) / 2
    light = 300 * np.exp(-0.5 * (axis[:, None] ** 2 + axis**2) / 12**2)
    return np.asarray(light + level + np.random.default_rng(3).normal(0, sigma, (side, side)))


def with_noise(pixels: NDArray[np.float64], noise: NDArray[np.float64] | None = None, **about: object) -> Image:
    own = Companions(noise, "" if noise is None else "map")._replace(**about)  # type: ignore[arg-type]
    return Image(pixels, companions=own)


def no_mask(side: int = 120) -> NDArray[np.bool_]:
    return np.zeros((side, side), np.bool_)


def test_the_scatter_of_the_sky_is_that_of_its_noise() -> None:
    assert sky_scatter(sky(), no_mask()) == pytest.approx(2, rel=0.1)


def test_a_gradient_of_light_is_no_scatter() -> None:
    assert sky_scatter(sky() + np.arange(120) * 0.5, no_mask()) == pytest.approx(2, rel=0.1)


def test_correlation_of_neighbours_hides_less_than_a_quarter_of_the_noise() -> None:
    white = np.random.default_rng(4).normal(0, 2, (122, 122))
    drizzled = np.mean(
        [white[y : y + 120, x : x + 120] for y in (0, 1) for x in (0, 1)], axis=0
    )  # half as wide a scatter
    assert 0.75 * 2 < sky_scatter(drizzled, no_mask()) < 1.05 * 2


def test_masked_pixels_do_not_count_in_the_scatter() -> None:
    pixels, mask = sky(), np.random.default_rng(5).random((120, 120)) < 0.1
    assert sky_scatter(np.where(mask, 1e6, pixels), mask) == pytest.approx(2, rel=0.1)


def test_the_noise_of_slacs_and_euclid_is_estimated_to_a_fifth(real_data: Path) -> None:
    paths = [*sorted((real_data / "slacs").glob("*.fits")), *(real_data / "euclid_q1").glob("*.fits")]
    for path in paths:
        (image,) = formats.read_all(path, companions=NO_FILES)
        assert isinstance(image, Image)
        assert image.noise is not None
        mask = no_mask(len(image.pixels)) if image.mask is None else image.mask
        stated = np.median(image.noise[border(mask.shape) & ~mask])
        assert sky_scatter(image.pixels, mask) == pytest.approx(stated, rel=0.2)


@pytest.mark.parametrize(("gain", "at_centre"), [(None, 2.0), (1.0, np.hypot(2, np.sqrt(300)))])
def test_estimated_noise_has_that_of_photons_where_the_gain_is_known(gain: float | None, at_centre: float) -> None:
    image = weigh(with_noise(sky(), gain=gain))
    assert image.noise is not None
    assert image.noise[50:70, 50:70].max() == pytest.approx(at_centre, rel=0.1)
    assert image.companions.noise_source == "estimated"
    assert any(note.startswith("noise estimated") for note in image.notes)


@pytest.mark.parametrize(("level", "is_taken_off"), [(0, False), (100, True), (4, False)])
def test_a_sky_far_above_its_noise_is_taken_off_and_a_note_says_so(level: float, is_taken_off: bool) -> None:
    image = weigh(with_noise(sky(level=level), np.full((120, 120), 2.0)))
    expected = 0 if is_taken_off else level
    assert np.median(image.pixels[:20]) == pytest.approx(expected, abs=0.2)
    assert any("taken off" in note for note in image.notes) == is_taken_off


def test_the_sky_of_slacs_is_not_taken_off_again(real_data: Path) -> None:
    for path in sorted((real_data / "slacs").glob("*.fits")):
        (image,) = formats.read_all(path, companions=NO_FILES)
        assert isinstance(image, Image)
        assert np.array_equal(weigh(image).pixels, image.pixels)


def test_weights_far_from_the_scatter_are_scaled_to_it() -> None:
    image = weigh(with_noise(sky(), np.full((120, 120), 0.02), noise_source="weight"))
    assert image.noise is not None
    assert np.median(image.noise) == pytest.approx(2, rel=0.1)
    assert image.notes == (
        "weights scaled to the scatter of the sky alone: the electrons behind a pixel are not known",
    )


@pytest.mark.parametrize("stated", [2.0, 0.02, None])
def test_photons_of_bright_pixels_count_whatever_the_noise_is_from(stated: float | None) -> None:
    noise = None if stated is None else np.full((120, 120), stated)
    source = {} if stated is None else {"noise_source": "weight"}
    weighed = weigh(with_noise(sky(), noise, gain=2.0, **source))
    assert weighed.noise is not None
    assert np.median(weighed.noise[57:63, 57:63]) == pytest.approx(np.sqrt(2**2 + 300 / 2), rel=0.05)
    assert any("and the electrons" in note for note in weighed.notes)


def test_photons_that_weights_know_are_not_counted_twice() -> None:
    stated = np.full((120, 120), 2.0)
    stated[57:63, 57:63] = 15.0
    weighed = weigh(with_noise(sky(), stated, gain=2.0, noise_source="weight"))
    assert weighed.noise is not None
    assert np.median(weighed.noise[57:63, 57:63]) == pytest.approx(15, rel=0.01)


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (with_noise(np.pad(sky(side=60), 30)), "has no noise, and a border without scatter"),
        (Image(sky(side=24), mask=~np.eye(24, dtype=bool)), "has no noise, and 16 good pixels at its border"),
        (with_noise(sky(), np.ones((60, 120))), "its noise has 60 x 120 pixels; needs 120 x 120"),
        (with_noise(sky(), np.full((120, 120), np.nan)), "its noise is above 0 and below 1e\\+08 in no pixel"),
        (with_noise(sky(), psf=np.ones((121, 121))), "point-spread function has 121 x 121 pixels, more than the image"),
        (with_noise(sky(), psf=np.eye(21)[:, ::-1] * np.arange(21)), "point-spread function peaks 14.1 pixels from"),
        (with_noise(sky(), psf=np.zeros((5, 5))), "its point-spread function holds no light"),
    ],
)
def test_noise_and_psf_that_do_not_fit_are_refused(image: Image, problem: str) -> None:
    with pytest.raises(ImageError, match=problem):
        weigh(image)


@pytest.mark.parametrize("sigma", [0.9, 2.0, 4.5])
def test_the_width_of_a_gaussian_psf_is_its_fwhm(sigma: float) -> None:
    axis = np.arange(31) - 15
    assert fwhm(np.exp(-0.5 * (axis[:, None] ** 2 + axis**2) / sigma**2)) == pytest.approx(2.355 * sigma, rel=0.04)


@pytest.mark.parametrize(
    ("header", "gain"),
    [
        ({"BUNIT": "ELECTRONS/S", "EXPTIME": 420.0}, 420),
        ({"BUNIT": "e-/s", "EXPTIME": 420.0}, 420),
        ({"BUNIT": "electrons", "EXPTIME": 420.0}, 1),
        ({"BUNIT": "ADU", "GAIN": 2.0}, 2),
        ({"BUNIT": "counts s-1", "CCDGAIN": 2.0, "EXPTIME": 10.0}, 20),
        ({"GAIN": 3.0}, 3),
        ({"BUNIT": "erg/s/cm2/A", "PHOTFLAM": 1e-19, "EXPTIME": 100.0}, 1e21),
        ({"BUNIT": "e-/s"}, None),
        ({"BUNIT": "MJy/sr", "EXPTIME": 100.0, "GAIN": 1.0}, None),
        ({"BUNIT": "ADU", "GAIN": -1.0}, None),
    ],
)
def test_the_gain_follows_from_unit_and_exposure(header: dict[str, object], gain: float | None) -> None:
    assert photometry({}, header).gain == (gain if gain is None else pytest.approx(gain))


def test_hubble_keywords_give_the_zero_point() -> None:
    about = photometry({"PHOTFLAM": 7.0723e-20, "PHOTPLAM": 8047.3}, {"EXPTIME": 420.0})
    assert about.zero_point == pytest.approx(25.94, abs=0.01)
    assert about.exposure == 420
    assert photometry({"MAGZERO": 24.6}).zero_point == 24.6
