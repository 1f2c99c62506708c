import numpy as np
import pytest

from sublens.data import telescope_images
from sublens.images import signal_to_noise
from sublens.sim.render import render, simulate
from sublens.surveys.presets import preset


def test_images_are_their_planes_of_signal_to_noise_in_electrons() -> None:
    survey = preset("hst-acs")
    truth, codes = simulate(survey, 1, "test", range(4))
    drawn = telescope_images.images(truth, codes, survey)
    assert [image.pixel_scale for image in drawn] == [0.05] * 4
    for image, plane, light in zip(drawn, codes, render(truth, survey).double().numpy(), strict=True):
        noise, mask = image.companions.noise, image.mask
        assert noise is not None
        assert mask is not None
        is_masked = plane == signal_to_noise.MASKED
        assert (mask == is_masked).all()
        ratio = plane[~is_masked] * signal_to_noise.STEP + signal_to_noise.LEAST
        assert image.pixels[~is_masked] / noise[~is_masked] == pytest.approx(ratio)
        off = (image.pixels - light)[~is_masked] / noise[~is_masked]
        assert np.median(np.abs(off)) < 1.5  # noise, not another unit
        psf = image.companions.psf
        assert psf is not None
        assert psf.shape == (15, 15)
        assert psf.sum() == pytest.approx(1, abs=0.1)
        assert psf.argmax() == 7 * 15 + 7
