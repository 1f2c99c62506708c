from math import erf, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits
from conftest import changed

from sublens.errors import ConfigError
from sublens.observation import camera
from sublens.surveys import presets
from sublens.surveys.camera import Camera, Gaussian, Moffat, widths

CT1 = changed("common-test-1").camera


def seen_through(**psf: object) -> Camera:
    return changed("common-test-1", camera={"psf": psf}).camera


def spot(side: int = 91) -> torch.Tensor:
    """One bright pixel amid darkness."""
    image = torch.zeros(1, side, side, dtype=torch.float64)
    image[0, side // 2, side // 2] = 5
    return image


@pytest.fixture(params=["gaussian", "moffat", "pixelated"])
def any_camera(request: pytest.FixtureRequest, tmp_path: Path) -> Camera:
    if request.param == "gaussian":
        return CT1
    if request.param == "moffat":
        return seen_through(profile="moffat", fwhm=0.2, beta=3.0)
    pixels = np.zeros((9, 9))
    pixels[3:7, 4:8] = np.arange(1, 17).reshape(4, 4)
    np.save(tmp_path / "psf.npy", pixels)
    return seen_through(profile="pixelated", file=str(tmp_path / "psf.npy"))


def test_the_grid_is_centred_on_the_optical_axis() -> None:
    centres = camera.pixel_centres(150, 0.05)
    assert float(centres[0]) == pytest.approx(-74.5 * 0.05)
    assert float(centres.sum()) == pytest.approx(0, abs=1e-12)


def test_the_parts_of_a_pixel_lie_around_its_centre() -> None:
    parts = camera.pixel_centres(10, 0.3, 3).reshape(10, 3)
    torch.testing.assert_close(parts.mean(dim=1), camera.pixel_centres(10, 0.3))
    torch.testing.assert_close(parts.diff(dim=1), torch.full((10, 2), 0.1, dtype=torch.float64))


def test_binning_takes_the_mean_of_a_pixels_parts() -> None:
    fine = torch.arange(16.0).reshape(1, 4, 4)
    assert camera.binned(fine, 2).tolist() == [[[2.5, 4.5], [10.5, 12.5]]]


def test_the_blur_conserves_flux_away_from_the_edges(any_camera: Camera) -> None:
    assert float(camera.blurred(spot(), camera.psf_kernel(any_camera)).sum()) == pytest.approx(5)


def test_a_flat_sky_stays_flat_up_to_the_edges(any_camera: Camera) -> None:
    flat = torch.full((2, 40, 30), 3.0, dtype=torch.float64)
    torch.testing.assert_close(camera.blurred(flat, camera.psf_kernel(any_camera)), flat)


def test_a_spot_becomes_the_psf(any_camera: Camera) -> None:
    kernel = camera.psf_kernel(any_camera)
    square = torch.outer(kernel, kernel) if kernel.ndim == 1 else kernel
    reach = len(kernel) // 2
    blurred = camera.blurred(spot(), kernel)[0, 45 - reach : 46 + reach, 45 - reach : 46 + reach]
    torch.testing.assert_close(blurred, 5 * square)


def width(kernel: torch.Tensor, parts: int) -> float:
    """Standard deviation along an axis, in parts of a pixel, without the mean over a pixel's parts."""
    row = kernel if kernel.ndim == 1 else kernel.sum(dim=0)
    offsets = torch.arange(len(row)) - (len(row) - 1) / 2
    return sqrt(float((row * offsets**2).sum()) - (parts**2 - 1) / 12)


@pytest.mark.parametrize("name", presets.names())
def test_the_gaussian_of_a_preset_is_as_wide_as_stated_to_1_percent(name: str) -> None:
    pixels = presets.preset(name).camera
    if isinstance(pixels.psf, Gaussian):
        assert isinstance(pixels.psf.fwhm, float)
        sigma = width(camera.psf_kernel(pixels), pixels.supersampling) * pixels.pixel_scale / pixels.supersampling
        assert sigma == pytest.approx(pixels.psf.fwhm / 2.3548200, rel=0.01)


@pytest.mark.parametrize("name", [name for name in presets.names() if widths(presets.preset(name).camera.psf)])
def test_the_cut_wings_of_a_preset_hold_a_ten_thousandth_of_the_light(name: str) -> None:
    pixels = presets.preset(name).camera
    parts = pixels.supersampling
    reach = (len(camera.psf_kernel(pixels)) - parts + 1) / 2 * pixels.pixel_scale / parts
    assert isinstance(pixels.psf, Gaussian | Moffat)
    assert isinstance(pixels.psf.fwhm, float)
    if isinstance(pixels.psf, Gaussian):
        lost = 1 - erf(reach / (pixels.psf.fwhm / 2.3548200) / 2**0.5) ** 2
    else:
        core = pixels.psf.fwhm / 2 / (2 ** (1 / pixels.psf.beta) - 1) ** 0.5
        lost = (1 + (reach / core) ** 2) ** (1 - pixels.psf.beta)
    assert lost <= 1e-4


def test_rubin_reaches_the_depth_of_smtn_002_in_30_seconds() -> None:
    """24.13 at 5 sigma, with its formula for the signal to noise of a point source in one exposure."""
    pixels = presets.preset("rubin").camera
    assert pixels.zero_point
    assert pixels.sky_magnitude
    signal = 30 * 10 ** (0.4 * (pixels.zero_point - 24.13))
    sky = 30 * 10 ** (0.4 * (pixels.zero_point - pixels.sky_magnitude.high)) * pixels.pixel_scale**2
    area = 2.266 * (0.80 / pixels.pixel_scale) ** 2
    assert signal / (signal + (sky + pixels.read_noise**2) * area) ** 0.5 == pytest.approx(5, rel=0.01)


def test_shallow_wings_reach_as_far_as_the_image() -> None:
    kernel = camera.psf_kernel(seen_through(profile="moffat", fwhm=0.7, beta=2.5))
    assert len(kernel) == 2 * 149 + 1  # 6e-4 of the light lies beyond
    assert len(camera.psf_kernel(seen_through(profile="moffat", fwhm=0.7, beta=1.001))) == 2 * 149 + 1


@pytest.mark.parametrize(("fwhm", "parts"), [(0.05, 4), (0.1, 3), (0.2, 2)])
def test_a_blur_on_parts_of_pixels_is_the_mean_of_a_blur_on_finer_pixels(fwhm: float, parts: int) -> None:
    psf = {"profile": "gaussian", "fwhm": fwhm}
    pixels = changed("common-test-1", camera={"psf": psf, "supersampling": parts}).camera
    finer = changed("common-test-1", camera={"psf": psf, "pixel_scale": 0.05 / parts}).camera
    light = torch.from_numpy(np.random.default_rng(0).random((2, 40 * parts, 30 * parts)))
    expected = camera.binned(camera.blurred(light, camera.psf_kernel(finer)), parts)
    torch.testing.assert_close(camera.in_pixels(light, pixels), expected)


def test_rubins_moffat_covers_as_many_pixels_as_its_fwhm_eff() -> None:
    """SMTN-002: 2.266 (0.80 / 0.2)^2 pixels in the i band."""
    pixels = presets.preset("rubin").camera
    kernel = camera.psf_kernel(pixels)
    first = len(kernel) // 2 % pixels.supersampling  # of the points in the middle of pixels
    kernel = kernel[first :: pixels.supersampling, first :: pixels.supersampling]
    assert float(kernel.sum() ** 2 / (kernel**2).sum()) == pytest.approx(2.266 * 16, rel=0.12)


def test_the_blurred_spot_is_as_wide_as_the_psf() -> None:
    row = camera.blurred(spot(), camera.psf_kernel(CT1))[0].sum(dim=0) / 5
    assert float((row * (torch.arange(91) - 45) ** 2).sum()) ** 0.5 == pytest.approx(1.743, rel=1e-2)


@pytest.mark.parametrize(("fwhm", "beta"), [(0.2, 2.0), (0.35, 4.765)])
def test_a_moffat_profile_has_half_its_peak_at_half_its_width(fwhm: float, beta: float) -> None:
    kernel = camera.psf_kernel(seen_through(profile="moffat", fwhm=fwhm, beta=beta))
    middle = len(kernel) // 2
    profile = kernel[middle, middle:] / kernel[middle, middle]
    radius = np.arange(len(profile)) * 0.05
    assert np.interp(fwhm / 2, radius, np.log(profile.numpy())) == pytest.approx(np.log(0.5), rel=0.15)


def test_the_blur_agrees_with_scipy() -> None:
    from scipy.ndimage import convolve, gaussian_filter

    image = np.random.default_rng(0).random((50, 50))
    blurred = camera.blurred(torch.from_numpy(image)[None], camera.psf_kernel(CT1))[0].numpy()
    np.testing.assert_allclose(blurred, gaussian_filter(image, 1.743, mode="nearest", radius=7), rtol=1e-8)
    kernel = torch.from_numpy(np.random.default_rng(1).random((7, 7)))
    blurred = camera.blurred(torch.from_numpy(image)[None], kernel)[0].numpy()
    np.testing.assert_allclose(blurred, convolve(image, kernel.numpy(), mode="nearest"), rtol=1e-10)


def expose(rates: torch.Tensor, seeds: list[int], *, sky: float = 10, rms: float = 0, gain: float = 1) -> np.ndarray:
    ones = np.ones(len(rates))
    return camera.expose(rates, sky * ones, rms * ones, gain, seeds)


def test_counts_are_poisson() -> None:
    rates = torch.tensor([0.5, 5.0, 50.0])[:, None, None].expand(3, 200, 200).contiguous()
    counts = expose(rates, [1, 2, 3])
    means = rates[:, 0, 0].numpy() + 10
    error = np.sqrt(means / 40_000)
    assert (np.abs(counts.mean(axis=(1, 2)) - means) < 4 * error).all()
    np.testing.assert_allclose(counts.var(axis=(1, 2)), means, rtol=0.03)


def test_read_noise_adds_its_variance_and_gain_divides() -> None:
    counts = expose(torch.full((1, 300, 300), 990.0), [1], rms=40, gain=2)
    assert counts.mean() == pytest.approx(500, rel=0.002)
    assert counts.var() == pytest.approx((1000 + 40**2) / 4 + 1 / 12, rel=0.02)


def test_an_images_noise_depends_on_its_own_seed_alone() -> None:
    rates = torch.rand(3, 9, 9)
    together = expose(rates, [7, 8, 9])
    assert np.array_equal(together[1:2], expose(rates[1:2], [8]))


def test_seeds_must_match_images() -> None:
    with pytest.raises(ValueError, match="zip"):
        expose(torch.rand(3, 4, 4), [1, 2])


def test_counts_above_the_minimum_start_at_zero() -> None:
    counts = np.array([[[5, 9], [7, 5]], [[2, 2], [3, 8]]], np.int32)
    assert camera.above_minimum(counts).tolist() == [[[0, 4], [2, 0]], [[0, 0], [1, 6]]]


def test_counts_that_do_not_fit_a_store_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"70,000 counts above its minimum; needs up to 65,535.* Raise camera\.gain"):
        camera.above_minimum(np.array([[[0, 70_000]]], np.int32))


@pytest.mark.parametrize("rate", [np.nan, -1.0, 2e9])
def test_rates_that_are_no_counts_are_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="a pixel expects .* needs a number from 0 to 1e.09"):
        expose(torch.full((1, 4, 4), rate), [1], sky=0)


def test_an_image_without_counts_is_refused() -> None:
    with pytest.raises(ConfigError, match="not one count"):
        camera.above_minimum(np.full((1, 3, 3), 7, np.int32))


def test_bright_images_are_divided_by_their_gain() -> None:
    counts = expose(torch.full((1, 40, 40), 9e8), [1], gain=1e5)
    assert counts.mean() == pytest.approx(9000, rel=1e-3)


def test_a_psf_file_on_finer_pixels_is_resampled_to_the_cameras(tmp_path: Path) -> None:
    for name, side, scale in (("fine", 65, 0.0125), ("own", 17, 0.05)):
        offsets = (np.arange(side) - side // 2) * scale
        psf = np.exp(-(offsets[:, None] ** 2 + offsets**2) / 2 / 0.1**2)
        header = fits.Header({"CUNIT1": "arcsec", "CDELT1": scale, "CDELT2": scale})
        fits.PrimaryHDU(psf, header).writeto(tmp_path / f"{name}.fits")
    fine, own = (seen_through(profile="pixelated", file=str(tmp_path / f"{name}.fits")) for name in ("fine", "own"))
    torch.testing.assert_close(camera.psf_kernel(fine), camera.psf_kernel(own), rtol=0, atol=2e-5)


def test_a_psf_file_on_finer_pixels_acts_on_parts_of_pixels(tmp_path: Path) -> None:
    offsets = (np.arange(65) - 32) * 0.0125
    header = fits.Header({"CUNIT1": "arcsec", "CDELT1": 0.0125, "CDELT2": 0.0125})
    square = np.exp(-(offsets[:, None] ** 2 + offsets**2) / 2 / 0.05**2)
    fits.PrimaryHDU(square, header).writeto(tmp_path / "fine.fits")
    file = {"profile": "pixelated", "file": str(tmp_path / "fine.fits")}
    pictured, gaussian = (
        changed("common-test-1", camera={"psf": psf, "supersampling": 4}).camera
        for psf in (file, {"profile": "gaussian", "fwhm": 0.05 * 2.3548200})
    )
    light = torch.from_numpy(np.random.default_rng(0).random((1, 160, 160)))
    torch.testing.assert_close(camera.in_pixels(light, pictured), camera.in_pixels(light, gaussian), rtol=0, atol=1e-4)


def test_a_psf_file_on_the_cameras_pixels_is_applied_to_whole_pixels(tmp_path: Path) -> None:
    np.save(tmp_path / "psf.npy", np.pad([[1.0]], 2))
    file = {"profile": "pixelated", "file": str(tmp_path / "psf.npy")}
    pixels = changed("common-test-1", camera={"psf": file, "supersampling": 3}).camera
    light = torch.from_numpy(np.random.default_rng(0).random((1, 60, 60)))
    torch.testing.assert_close(camera.in_pixels(light, pixels), camera.binned(light, 3))


def test_a_psf_that_changed_since_the_survey_was_read_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "psf.npy", np.pad([[1.0]], 2))
    text = presets.source("common-test-1").read_text()
    (tmp_path / "s.toml").write_text(text.replace('"gaussian", fwhm = 0.20522256694', '"pixelated", file = "psf.npy"'))
    survey = presets.preset(str(tmp_path / "s.toml"))
    np.save(tmp_path / "psf.npy", np.pad([[2.0, 1.0]], 2))
    with pytest.raises(ConfigError, match=r"psf\.npy: is missing, or not the file"):
        camera.psf_kernel(survey.camera)


@pytest.mark.parametrize(("rms", "gain"), [(0.0, 1.0), (3.0, 1.0), (3.0, 2.5)])
def test_noise_drawn_together_has_the_mean_and_variance_of_its_kind(rms: float, gain: float) -> None:
    images = torch.full((400, 5, 5), 30.0)
    images[:, 0, 0] = 90
    n, generator = np.ones(400), torch.Generator().manual_seed(0)
    counts = camera.expose_together(images, 10 * n, rms * n, gain, generator).double()
    assert (counts == counts.round()).all()
    contrast = counts[:, 0, 0] - counts[:, 1:, 1:].mean((1, 2))
    assert contrast.mean().item() == pytest.approx(60 / gain, rel=0.05)
    variance = (100 + rms**2) / gain**2 + (40 + rms**2) / gain**2 / 16
    assert contrast.var().item() == pytest.approx(variance, rel=0.2)


@pytest.mark.parametrize("parts", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_means_over_parts_are_those_of_torch_to_the_last_bit(parts: int, dtype: torch.dtype) -> None:
    light = torch.from_numpy(np.random.default_rng(0).exponential(size=(2, 5 * parts, 5 * parts))).to(dtype)
    assert torch.equal(camera.binned(light, parts), torch.nn.functional.avg_pool2d(light, parts))
