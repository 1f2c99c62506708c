from pathlib import Path

import numpy as np
import pytest
import torch

from sublens.config import InputConfig
from sublens.errors import ImageError
from sublens.images import formats, pixels
from sublens.inference.predict_dataset import eager
from sublens.inference.predictor import Predictor
from sublens.models.networks import build


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
