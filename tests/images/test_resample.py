import numpy as np
import pytest
from numpy.typing import NDArray

from sublens.errors import ImageError
from sublens.images.pixels import Companions, Image, TangentPlane
from sublens.images.resample import resample_image, resample_weighed
from sublens.images.signal_to_noise import MASKED, decode


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


# --- signal to noise --------------------------------------------------------------------------


def lens(side: int = 120, scale: float = 0.05, mask: NDArray[np.bool_] | None = None, **about: object) -> Image:
    """A blob of peak 40 on noise of 2, whose map is given."""
    pixels = 40 * blob(side, scale) + np.random.default_rng(1).normal(0, 2, (side, side))
    own = Companions(np.full((side, side), 2.0), "map")._replace(**about)  # type: ignore[arg-type]
    return Image(pixels, pixel_scale=scale, mask=mask, companions=own)


def snr(image: Image, side: int = 80) -> NDArray[np.float64]:
    codes = resample_weighed(image, (100, 100), side, 0.05).codes
    assert codes is not None
    return decode(codes).astype(np.float64)


def test_an_image_in_the_right_frame_is_divided_by_its_noise_and_cut() -> None:
    image = lens()
    assert snr(image) == pytest.approx((image.pixels / 2)[10:110, 10:110], abs=0.011)


def test_the_unit_of_pixels_and_noise_does_not_matter() -> None:
    image = lens()
    other = Image(image.pixels * 1e-20, pixel_scale=0.05, companions=Companions(np.full((120, 120), 2e-20), "map"))
    assert np.abs(snr(image) - snr(other)).max() < 0.021


@pytest.mark.parametrize(("side", "scale"), [(300, 0.02), (80, 0.1), (130, 0.04)])
def test_noise_is_that_of_the_resampled_pixels(side: int, scale: float) -> None:
    image = Image(np.zeros((side, side)) + lens(side, scale).pixels - 40 * blob(side, scale), pixel_scale=scale)
    framed = resample_weighed(
        Image(image.pixels, pixel_scale=scale, companions=lens(side, scale).companions), (100, 100), 80, 0.05
    )
    assert framed.codes is not None
    assert decode(framed.codes).std() == pytest.approx(1, rel=0.06)
    assert "its noise is correlated by that" in framed.notes


def test_a_finer_image_gives_a_coarser_pixel_more_signal_to_noise() -> None:
    assert snr(lens(300, 0.02))[45:55, 45:55].mean() > 1.8 * snr(lens())[45:55, 45:55].mean()


@pytest.mark.parametrize(("side", "scale"), [(120, 0.05), (80, 0.1), (300, 0.02)])
def test_masked_pixels_are_masked_and_do_not_spoil_their_neighbours(side: int, scale: float) -> None:
    image = lens(side, scale)
    mask = np.zeros((side, side), np.bool_)
    half = round(0.2 / scale)
    mask[side // 2 - half : side // 2 + half, side // 2 - half : side // 2 + half] = True
    hit = Image(np.where(mask, 1e9, image.pixels), pixel_scale=scale, mask=mask, companions=image.companions)
    plain, holed = snr(image), snr(hit)
    assert 55 <= np.isnan(holed).sum() <= 110  # 64 pixels of the frame, and their edges
    good = ~np.isnan(holed)
    assert np.abs(plain - holed)[good].max() < 3


def test_pixels_beyond_a_small_image_are_masked() -> None:
    codes = resample_weighed(lens(90), (100, 100), 80, 0.05).codes
    assert codes is not None
    assert (codes[:5] == MASKED).all()
    assert (codes[5:95, 5:95] != MASKED).all()


@pytest.mark.parametrize(
    ("rows", "problem"),
    [(slice(0, 70), "60% of the field of the network are masked"), (slice(30, 60), None)],
)
def test_a_mask_over_half_of_the_field_is_refused(rows: slice, problem: str | None) -> None:
    mask = np.zeros((120, 120), np.bool_)
    mask[rows] = True
    if problem is None:
        assert np.isnan(snr(lens(mask=mask))).mean() == pytest.approx(0.3)
        return
    with pytest.raises(ImageError, match=problem):
        snr(lens(mask=mask), side=100)


def test_a_mask_over_the_ring_of_arcs_is_refused() -> None:
    mask = blob(120, 0.05) > np.exp(-0.5 * (1.3 / 0.5) ** 2)
    with pytest.raises(ImageError, match=r"7\d% of the central 3 arcsec are masked; needs at most 50%"):
        snr(lens(mask=mask), side=100)


def test_a_network_of_signal_to_noise_gets_its_codes_as_counts() -> None:
    framed = resample_weighed(lens(), (100, 100), 80, 0.05)
    assert framed.codes is not None
    assert framed.counts() is framed.codes


@pytest.mark.parametrize("scale", [0.05, 0.1])
def test_the_width_of_the_psf_is_in_arcsec(scale: float) -> None:
    kernel = np.exp(-0.5 * ((np.arange(21)[:, None] - 10) ** 2 + (np.arange(21) - 10) ** 2) / 2.0**2)
    framed = resample_weighed(lens(150, scale, psf=kernel), (100, 100), 80, 0.05)
    assert framed.psf_fwhm == pytest.approx(2.355 * 2 * scale, rel=0.03)
