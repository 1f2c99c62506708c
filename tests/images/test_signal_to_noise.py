"""Codes of signal to noise: what they keep, what they clip, what they mask."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sublens.images.signal_to_noise import LEAST, MASKED, MOST, STEP, decode, encode


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
