from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits
from scipy.ndimage import gaussian_filter

from sublens.config import InputConfig
from sublens.errors import ImageError
from sublens.images import formats, pixels
from sublens.images.reader import Reader
from sublens.inference.predict_dataset import eager
from sublens.inference.predictor import Predictor
from sublens.models.arc import MEASURED, PLAIN
from sublens.models.bundle import CardMap
from sublens.models.calibration import Calibration
from sublens.models.detection import Detection
from sublens.models.networks import build
from sublens.sim import scene


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    """An untrained lensnet for images of 24 x 20 pixels."""
    torch.manual_seed(0)
    config = InputConfig(crop=20, binning=2)
    return eager(build("lensnet", 3).eval(), ("no", "sphere", "vort"), (24, 20), config)


def images_of(n: int = 3) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.random.default_rng(0).poisson(30, (n, 24, 20))


def test_probabilities_sum_to_one_and_name_the_label(predictor: Predictor) -> None:
    for prediction in predictor(list(images_of())):
        assert sum(prediction.probs.values()) == pytest.approx(1)
        assert prediction.probs[prediction.label] == max(prediction.probs.values())


def test_the_scale_an_image_was_saved_in_does_not_matter(predictor: Predictor) -> None:
    image = images_of(1)[0]
    scaled = (image - image.min()) / (image.max() - image.min())
    assert predictor([image]) == predictor([scaled]) == predictor([scaled[None].astype(np.float32) * 7 - 3])


def test_many_images_are_predicted_like_one_alone(predictor: Predictor) -> None:
    together = predictor(list(images_of(70)))
    for image, prediction in zip(images_of(70)[60:], together[60:], strict=True):
        assert predictor([image])[0].probs == pytest.approx(prediction.probs, abs=1e-6)


def test_files_are_predicted_like_arrays(predictor: Predictor, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", images_of(1).astype(float))
    assert predictor.files([tmp_path / "a.npy"]) == predictor([images_of(1)[0]])


def test_nothing_gives_nothing(predictor: Predictor) -> None:
    assert predictor([]) == []


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.full((24, 20), np.nan), "image 1: all 480 pixels are missing"),
        (np.ones((24, 20)), "image 1: every pixel is 1"),
        (np.eye(20), "image 1: is 20 x 20 pixels; needs 24 x 20 pixels, as in the network's training images"),
        (np.zeros((3, 24, 20)), r"image 1: has shape \(3, 24, 20\)"),
        (np.full((24, 20), "a"), "image 1: holds <U1 values"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(predictor: Predictor, bad: object, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        predictor([images_of(1)[0], bad])  # type: ignore[list-item]


def test_masked_pixels_and_nan_are_filled_alike(predictor: Predictor) -> None:
    image = images_of(1)[0].astype(float)
    image[10, 11] = np.nan
    masked = np.ma.masked_less(np.where(np.isnan(image), -999, image), -900)
    assert predictor([masked]) == predictor([masked[None]]) == predictor([image])
    assert predictor([masked])[0].is_ood is None
    assert masked.data[10, 11] == -999


def test_an_image_with_a_hole_is_out_of_distribution_and_the_others_are_not(predictor: Predictor) -> None:
    images = images_of().astype(float)
    images[1, 10:14, 8:12] = np.nan
    calibration = Calibration(temperature=1, cutoffs=(0,))
    for network in (predictor, replace(predictor, calibration=calibration)):
        whole, hole, last = network(list(images))
        assert (hole.is_ood, hole.prediction_set) == (True, None)
        assert whole.probs == pytest.approx(network([images[0]])[0].probs, abs=1e-6)
        assert whole.is_ood is last.is_ood is None
    assert whole.prediction_set == predictor.classes


def test_files_with_holes_are_flagged_and_noted(predictor: Predictor, tmp_path: Path) -> None:
    images = images_of().astype(float)
    images[1, 10:14, 8:12], images[2, 4:12, 6:14] = np.nan, np.nan
    np.savez(tmp_path / "a.npz", images)
    with Reader() as reader:
        whole, hole, lost = predictor.rows(reader.read([tmp_path / "a.npz"]))
    flags = [row.prediction.is_ood for row in (whole, hole) if row.prediction]
    assert flags == [prediction.is_ood for prediction in predictor(images[:2])] == [None, True]
    assert "16 missing pixels, 16 of them in the central 20 x 20 pixels" in hole.notes[-1]
    assert "a.npz#2: 64 of the 400 pixels around its centre are missing" in lost.error


def test_a_few_missing_pixels_on_the_arcs_make_no_substructure() -> None:
    images = scene.observed(scene.drawn("common-test-1", "no", 4), 6).astype(float)
    whole = Predictor.load("lensnet")(images)
    for image in images:
        row, column = np.unravel_index(gaussian_filter(image, 2).argmax(), image.shape)
        image[row - 1 : row + 1, column - 1 : column + 1] = np.nan
    assert [prediction.label for prediction in Predictor.load("lensnet")(images)] == [row.label for row in whole]
    assert [row.label for row in whole] == ["no"] * 6


def test_the_real_images_go_through_with_their_counts_recovered_exactly(real_data: Path) -> None:
    torch.manual_seed(0)
    config = InputConfig(crop=112, binning=2)
    predictor = eager(build("lensnet", 3).eval(), ("no", "sphere", "vort"), (150, 150), config)
    paths = sorted((real_data / "common_test_1").glob("*/*.npy"))
    assert len(predictor.files(paths)) == len(paths) == 15
    for path in paths:
        original = formats.read(path).pixels
        counts = pixels.counts_above_minimum(original)
        assert np.array_equal(counts / counts.max(), original)
        assert 600 < counts.max() < 1050


def test_a_row_without_a_prediction_says_what_was_read(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).poisson(20, (150, 150)).astype(np.float32)
    noise = np.where(np.arange(150) % 5 == 0, 1e8, 1.0) * np.ones((150, 1))
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(counts, name="SCI"), fits.ImageHDU(noise, name="ERR")]
    fits.HDUList(hdus).writeto(tmp_path / "a.fits")
    with Reader() as reader:
        (row,) = Predictor.load("lensnet").rows(reader.read([tmp_path / "a.fits"]))
    assert "needs at most 10%" in row.error
    assert row.notes[0] == "image: SCI, noise: ERR"


def test_a_row_without_a_prediction_keeps_its_position(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).poisson(20, (150, 150)).astype(np.float32)
    pixels[40:110, 40:110] = np.nan
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 10.0, "CRVAL2": 5.0})
    header.update(CRPIX1=75.5, CRPIX2=75.5, CDELT1=-0.05 / 3600, CDELT2=0.05 / 3600)
    fits.PrimaryHDU(pixels, header).writeto(tmp_path / "a.fits")
    with Reader() as reader:
        (row,) = Predictor.load("lensnet").rows(reader.read([tmp_path / "a.fits"]))
    assert row.error
    assert (row.ra, row.dec) == pytest.approx((10.0, 5.0))


def limited(predictor: Predictor, level: float) -> Predictor:
    """A predictor whose limit is the same for all images, less the greater its level."""
    n = len(PLAIN)
    levels = (level, *[0.0] * (n + n * (n + 1) // 2))
    slopes, means, spreads = (5.0, *[0.0] * n), (0.0,) * n, (1.0,) * n
    return replace(
        predictor,
        detection=Detection(p_no=0.5, log_most=11, means=means, spreads=spreads, levels=levels, slopes=slopes, n=9),
    )


def test_every_image_has_a_detection_limit_where_the_network_has_a_fit(predictor: Predictor) -> None:
    limits = [prediction.limit_msun for prediction in limited(predictor, 0)(list(images_of()))]
    assert limits == pytest.approx([10 ** (9.5 + np.log(8) / 5)] * 3)
    assert [prediction.limit_msun for prediction in predictor(list(images_of()))] == [None] * 3


def test_there_is_no_limit_where_no_mass_would_be_found_or_the_image_is_out_of_distribution(
    predictor: Predictor,
) -> None:
    image = images_of(1)[0].astype(float)
    assert limited(predictor, -100)([image])[0].limit_msun is None
    image[8:14, 8:14] = np.nan  # a hole, which is out of distribution
    (prediction,) = limited(predictor, 0)([image])
    assert (prediction.is_ood, prediction.limit_msun) == (True, None)


def test_a_measured_lens_sets_the_radius_and_adds_features(predictor: Predictor) -> None:
    mapped = replace(predictor, map=CardMap(n_cells=5, cell_arcsec=0.4))  # 0.1 arcsec a pixel
    macromodels = np.array([[0.7, 0.035, 0.8, 0.02, 30.0, 2.0]])
    x = mapped.ring_features(images_of(1).astype(np.uint16), macromodels)
    assert dict(zip(MEASURED, x[0], strict=True)) == pytest.approx(
        dict(zip(PLAIN, x[0], strict=False)) | {"ln_radius": np.log(7), "theta_e_sigma": 0.05, "axis_ratio": 0.8}
    )
