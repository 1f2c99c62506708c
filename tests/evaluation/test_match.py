"""A survey measured on images that were made with known exposure, noise and light."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from numpy.typing import NDArray
from test_cli import sublens

from sublens.errors import ImageError
from sublens.evaluation import lens_fidelity, lens_images
from sublens.evaluation.match import Match, light, match
from sublens.images.pixels import Companions, Image
from sublens.sim.population import draw
from sublens.sim.render import render
from sublens.surveys import presets
from sublens.surveys.presets import preset

SKY = 0.3
"""Noise of the sky, electrons a pixel a second."""


def lenses(n: int = 6, exposure: float = 2000.0) -> dict[str, Image]:
    """Lenses of `hst` in electrons a second, with maps of their noise and no exposure in their headers."""
    electrons = render(draw(preset("hst"), 5, "train", range(0, 3 * n, 3)), preset("hst")).double().numpy()
    rates, rng = electrons / (4 * 1350), np.random.default_rng(0)
    noise = np.sqrt((rates + SKY) / exposure)
    images = [
        Image(
            rate + sigma * rng.normal(size=sigma.shape),
            pixel_scale=0.08,
            companions=Companions(sigma, "map", unit="electrons/s"),
        )
        for rate, sigma in zip(rates, noise, strict=True)
    ]
    return {f"{number}.fits": image for number, image in enumerate(images)}


def with_companions(
    images: dict[str, Image],
    exposure: float | None = None,
    zero_point: float | None = None,
    psf: NDArray[np.float64] | None = None,
) -> dict[str, Image]:
    return {
        path: replace(image, companions=image.companions._replace(exposure=exposure, zero_point=zero_point, psf=psf))
        for path, image in images.items()
    }


@pytest.fixture(scope="module")
def matched() -> Match:
    return match(lenses(), "hst", "mine")


def value(result: Match, key: str) -> object:
    return result.settings[key].value


def test_exposure_and_sky_are_told_by_the_noise(matched: Match) -> None:
    assert value(matched, "camera.exposure_s") == pytest.approx(2000, rel=0.03)
    assert value(matched, "camera.background") == pytest.approx(SKY, rel=0.1)
    assert "noise of 6 images" in matched.settings["camera.exposure_s"].source


def test_an_exposure_in_the_header_is_believed() -> None:
    result = match(with_companions(lenses(), exposure=1234.0), "hst", "mine")
    assert value(result, "camera.exposure_s") == 1234


def test_neighbours_that_share_noise_are_noticed_by_surveys_of_signal_to_noise(tmp_path: Path, matched: Match) -> None:
    base = presets.source("hst").read_text().replace("[camera]", '[camera]\npixels = "signal-to-noise"')
    (tmp_path / "sn.toml").write_text(base)
    images = {
        path: replace(image, pixels=(image.pixels + np.roll(image.pixels, 1, axis=1)) / 2)
        for path, image in lenses().items()
    }
    prior = value(match(images, str(tmp_path / "sn.toml"), "mine"), "camera.noise_correlation")
    assert isinstance(prior, dict)
    assert 0.7 < prior["uniform"][0] <= prior["uniform"][1] <= 1
    assert "camera.noise_correlation" not in matched.settings


@pytest.mark.parametrize(("section", "low", "high"), [("lens_light", 18.0, 19.5), ("source", 21.0, 23.0)])
def test_light_is_as_bright_as_that_behind_the_images(matched: Match, section: str, low: float, high: float) -> None:
    prior = value(matched, f"{section}.magnitude")
    assert isinstance(prior, dict)
    assert low - 0.8 < prior["uniform"][0] < prior["uniform"][1] < high + 0.8


def test_a_zero_point_moves_all_magnitudes(matched: Match) -> None:
    other = match(with_companions(lenses(), zero_point=27.94), "hst", "mine")
    first, second = (np.array(value(result, "source.magnitude")["uniform"]) for result in (matched, other))  # type: ignore[index]
    assert second - first == pytest.approx([2, 2], abs=0.01)
    assert value(other, "camera.zero_point") == 27.94


def test_the_survey_is_read_back_with_an_origin_on_each_line(tmp_path: Path, matched: Match) -> None:
    survey = matched.write(tmp_path / "mine.toml")
    assert (survey.name, survey.camera.n_pixels, survey.camera.pixel_scale) == ("mine", 80, 0.08)
    assert survey.halo == preset("hst").halo
    settings = [line for line in matched.text.split('"""')[2].splitlines() if "=" in line]
    assert all("  # " in line for line in settings)
    assert "h0 = 70  # from hst" in settings
    assert "a guess" in matched.settings["camera.psf"].source


def test_point_spread_functions_of_the_images_lie_beside_the_survey(tmp_path: Path) -> None:
    y, x = np.indices((15, 15)) - 7
    psf = np.exp(-(x**2 + y**2) / 4)
    match(with_companions(lenses(), psf=psf), "hst", "mine").write(tmp_path / "mine.toml")
    assert tomllib.loads((tmp_path / "mine.toml").read_text())["camera"]["psf"] == {
        "profile": "pixelated-set",
        "file": "mine-psf.npy",
    }
    assert np.load(tmp_path / "mine-psf.npy").sum(axis=(1, 2)) == pytest.approx(np.ones(6))


def test_images_of_two_scales_are_refused() -> None:
    images = lenses(2)
    images["1.fits"] = replace(images["1.fits"], pixel_scale=0.1)
    with pytest.raises(
        ImageError, match="1.fits: has pixels of 0.1 arcsec, but 0.fits of 0.08; needs images of one pixel scale"
    ):
        match(images, "hst", "mine")


def test_images_without_scale_or_noise_are_refused() -> None:
    (image,) = lenses(1).values()
    with pytest.raises(ImageError, match=r"0.fits: has no pixel scale.*--pixel-scale"):
        match({"0.fits": replace(image, pixel_scale=None)}, "hst", "mine")
    flat = np.zeros((80, 80))
    flat[40, 40] = 1
    with pytest.raises(ImageError, match="0.fits: has no noise"):
        match({"0.fits": replace(image, pixels=flat, companions=Companions())}, "hst", "mine")


def test_light_of_a_masked_image_is_that_of_the_whole() -> None:
    image = next(iter(lenses(1).values())).pixels
    mask = np.random.default_rng(1).random(image.shape) < 0.1
    assert np.array(light(np.where(mask, np.nan, image), 0.08)) == pytest.approx(np.array(light(image, 0.08)), rel=0.15)


def test_the_command_writes_a_survey_that_fidelity_compares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for path, image in lenses().items():
        header = fits.Header({"BUNIT": "electrons/s", "PIXSCALE": 0.08})
        hdus = [fits.ImageHDU(image.pixels, header, "SCI"), fits.ImageHDU(image.noise, name="ERR")]
        fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(tmp_path / path)
    assert sublens("match", str(tmp_path / "*.fits"), "--base", "hst", "--out", tmp_path / "mine.toml") == 0
    assert "camera.exposure_s" in capsys.readouterr().out
    text = (tmp_path / "mine.toml").read_text()
    (tmp_path / "sn.toml").write_text(text.replace("[camera]", '[camera]\npixels = "signal-to-noise"'))
    monkeypatch.setattr(lens_fidelity, "COPIES", 2)
    assert sublens("fidelity", tmp_path / "sn.toml", str(tmp_path / "*.fits"), "--out", tmp_path / "mine.json") == 0
    assert "Networks tell 6 real lenses from simulated ones with AUC" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "mine.json").read_text())["statistics"]) > 15


def test_real_lenses_have_the_exposures_of_their_programmes(real_data: Path) -> None:
    result = match(lens_images.read([real_data / "slacs"]), "hst", "slacs")
    prior = value(result, "camera.exposure_s")
    assert isinstance(prior, dict)
    assert prior["log_uniform"] == pytest.approx([420, 2080], rel=0.05)
    assert result.psfs is not None
    assert result.psfs.shape == (26, 15, 15)
