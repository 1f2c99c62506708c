import numpy as np
import pytest
import torch

from sublens.sim import camera


def test_the_grid_is_centred_on_the_optical_axis() -> None:
    centres = camera.pixel_centres(150, 0.05)
    assert float(centres[0]) == pytest.approx(-74.5 * 0.05)
    assert float(centres.sum()) == pytest.approx(0, abs=1e-5)


def test_the_blur_conserves_flux_away_from_the_edges() -> None:
    blur = camera.gaussian_blur(64, 1.743)
    image = torch.zeros(64, 64, dtype=torch.float64)
    image[30, 33] = 5
    assert float((blur @ image @ blur.T).sum()) == pytest.approx(5)


def test_a_flat_sky_stays_flat_up_to_the_edges() -> None:
    blur = camera.gaussian_blur(40, 1.743)
    flat = torch.full((40, 40), 3.0, dtype=torch.float64)
    torch.testing.assert_close(blur @ flat @ blur.T, flat)


def test_the_blurred_point_is_as_wide_as_the_psf() -> None:
    blur = camera.gaussian_blur(61, 1.743)
    offsets = torch.arange(61) - 30
    assert float((blur[30] * offsets**2).sum()) ** 0.5 == pytest.approx(1.743, rel=1e-2)


def test_the_blur_agrees_with_scipy() -> None:
    from scipy.ndimage import gaussian_filter

    image = np.random.default_rng(0).random((50, 50))
    blur = camera.gaussian_blur(50, 1.743).numpy()
    np.testing.assert_allclose(
        blur @ image @ blur.T, gaussian_filter(image, 1.743, mode="nearest", radius=7), rtol=1e-12
    )


def test_counts_are_poisson() -> None:
    rates = torch.tensor([0.5, 5.0, 50.0])[:, None, None].expand(3, 200, 200).contiguous()
    counts = camera.expose(rates, 10, [1, 2, 3])
    means = rates[:, 0, 0].numpy() + 10
    error = np.sqrt(means / 40_000)
    assert (np.abs(counts.mean(axis=(1, 2)) - means) < 4 * error).all()
    np.testing.assert_allclose(counts.var(axis=(1, 2)), means, rtol=0.03)


def test_an_images_noise_depends_on_its_own_seed_alone() -> None:
    rates = torch.rand(3, 9, 9)
    together = camera.expose(rates, 10, [7, 8, 9])
    assert np.array_equal(together[1:2], camera.expose(rates[1:2], 10, [8]))


def test_seeds_must_match_images() -> None:
    with pytest.raises(ValueError, match="zip"):
        camera.expose(torch.rand(3, 4, 4), 10, [1, 2])


def test_counts_above_the_minimum_start_at_zero() -> None:
    counts = np.array([[[5, 9], [7, 5]], [[2, 2], [3, 8]]])
    assert camera.above_minimum(counts).tolist() == [[[0, 4], [2, 0]], [[0, 0], [1, 6]]]
