import numpy as np
import pytest
from numpy.typing import NDArray

from sublens.errors import ImageError
from sublens.images.pixels import Image, TangentPlane
from sublens.images.resample import resample_image


def blob(side: int, scale: float, centre: tuple[float, float] = (0.0, 0.0)) -> NDArray[np.float64]:
    """A round Gaussian of 0.5 arcsec at so many arcsec from the centre of the image."""
    axis = (np.arange(side) - (side - 1) / 2) * scale
    return np.asarray(np.exp(-0.5 * ((axis[:, None] - centre[1]) ** 2 + (axis - centre[0]) ** 2) / 0.5**2))


@pytest.mark.parametrize(("side", "scale"), [(400, 0.02), (150, 0.1), (151, 0.06), (90, 0.09)])
def test_a_resampled_sky_is_the_same_sky(side: int, scale: float) -> None:
    image = resample_image(Image(blob(side, scale, (0.7, -0.4)), pixel_scale=scale), (100, 100), 80, 0.05)
    assert image.pixels.shape == (100, 100)
    assert np.abs(image.pixels - blob(100, 0.05, (0.7, -0.4))).max() < 5e-3
    assert f"resampled from {scale:g} to 0.05 arcsec a pixel" in image.notes


def test_an_image_for_a_coarser_grid_is_smoothed_first() -> None:
    noise = np.random.default_rng(0).normal(0, 1, (600, 600))
    image = resample_image(Image(noise, pixel_scale=0.01), (100, 100), 80, 0.05)
    assert image.pixels.std() < 0.35  # the mean of 25 pixels has 0.2, one of them 1


def test_an_image_in_the_right_frame_is_left_alone() -> None:
    pixels = np.random.default_rng(0).poisson(10, (60, 60)).astype(float)
    image = resample_image(Image(pixels, pixel_scale=0.0501), (60, 60), 50, 0.05)
    assert np.array_equal(image.pixels, pixels)
    assert image.notes == ()


@pytest.mark.parametrize(("side", "corner"), [(61, (0, 0)), (64, (2, 2))])
def test_a_larger_image_is_cut_to_its_middle(side: int, corner: tuple[int, int]) -> None:
    pixels = np.arange(side**2, dtype=float).reshape(side, side)
    image = resample_image(Image(pixels, pixel_scale=1), (60, 60), 50, 1)
    assert np.array_equal(image.pixels, pixels[corner[0] : corner[0] + 60, corner[1] : corner[1] + 60])
    assert image.notes == ("cut to 60 x 60 pixels",)


def test_a_header_may_claim_any_scale_at_no_cost() -> None:
    assert resample_image(Image(blob(61, 1), pixel_scale=1e4), (60, 60), 50, 1).pixels.shape == (60, 60)
    for scale, problem in (
        (1e-12, "is 61 x 61 pixels of 1e-12 arcsec; needs 51,000,000,000,000 x"),
        (1e300, "nothing to see"),
    ):
        with pytest.raises(ImageError, match=problem):
            resample_image(Image(blob(61, 1), pixel_scale=scale), (60, 60), 50, 1)


def test_an_image_with_an_empty_middle_is_refused() -> None:
    pixels = np.zeros((200, 200))
    pixels[0] = 1
    with pytest.raises(ImageError, match="every pixel around its centre is 0"):
        resample_image(Image(pixels, pixel_scale=1), (60, 60), 50, 1)


def test_only_pixels_outside_the_network_input_are_filled() -> None:
    pixels = np.arange(52.0 * 52).reshape(52, 52)
    image = resample_image(Image(pixels, pixel_scale=1), (60, 60), 50, 1)
    assert np.array_equal(image.pixels[4:56, 4:56], pixels)
    assert (image.pixels[0] == np.median(pixels) - 0.5).all()  # half a photon would double all counts
    with pytest.raises(ImageError, match="is 49 x 52 pixels of 1 arcsec; needs 50 x 50 of them around the lens"):
        resample_image(Image(pixels[:49], pixel_scale=1), (60, 60), 50, 1)


@pytest.mark.parametrize(("scale", "side"), [(0.03, 142), (0.03, 141), (0.1, 41), (0.1, 30), (0.05, 79)])
def test_an_image_that_is_too_small_is_told_in_its_own_pixels(scale: float, side: int) -> None:
    with pytest.raises(ImageError, match=f"is {side - 20} x {side} pixels of {scale:g} arcsec; needs") as caught:
        resample_image(Image(blob(side, scale)[20:], pixel_scale=scale), (100, 100), 80, 0.05)
    needed = int(caught.value.need.split()[0])
    assert resample_image(Image(blob(needed, scale), pixel_scale=scale), (100, 100), 80, 0.05).pixels.shape == (
        100,
        100,
    )
    assert needed * scale == pytest.approx(80 * 0.05, abs=2 * scale)


def test_an_unknown_scale_is_noted() -> None:
    image = Image(blob(60, 0.1))
    assert resample_image(image, (60, 60), 50, 0.1).notes == ("pixel scale not in the file; taken as 0.1 arcsec",)
    assert resample_image(image, (60, 60), 50, None).notes == ("pixel scale not in the file",)
    assert resample_image(image, (60, 60), 50, 0.1, image_scale=0.1).notes == ()


def test_doubtful_values_are_noted() -> None:
    pixels = blob(60, 0.1)
    bright = Image(pixels.clip(None, 0.9), pixel_scale=0.1)
    assert resample_image(bright, (60, 60), 50, 0.1).notes == (f"{(pixels >= 0.9).sum()} pixels look saturated",)
    blank = np.where(np.arange(60) < 6, 0.0, pixels)
    assert resample_image(Image(blank, pixel_scale=0.1), (60, 60), 50, 0.1).notes == (
        "10% of the pixels look clipped or blank",
    )


def test_a_simulated_image_has_no_notes() -> None:
    counts = np.random.default_rng(3).poisson(10 + 300 * blob(150, 0.05))
    assert resample_image(Image(counts.astype(float), pixel_scale=0.05), (150, 150), 96, 0.05).notes == ()


def test_a_network_without_a_scale_leaves_an_image_of_a_known_one_as_it_is() -> None:
    image = resample_image(Image(blob(60, 0.1), pixel_scale=0.1), (60, 60), 50, None)
    assert image.notes == ("not resampled: the network's pixel scale is not known",)


def test_a_scale_that_the_user_knows_better_holds_for_maps_too() -> None:
    plane = TangentPlane(("RA---TAN", "DEC--TAN"), (10.0, 5.0), [-0.05 / 3600, 0, 0, 0.05 / 3600], "ICRS", None)
    image = resample_image(Image(blob(60, 0.1), pixel_scale=0.05, plane=plane), (100, 100), 80, 0.05, image_scale=0.1)
    assert image.plane is not None
    assert image.plane.cd[3] * 3600 == pytest.approx(0.05)
