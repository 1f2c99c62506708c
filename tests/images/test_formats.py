from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from sublens.errors import ImageError
from sublens.images import arrays, fits_image, formats
from sublens.images.pixels import QUANTISED_PEAK, check_pixels, counts_above_minimum
from sublens.images.pixels import Image as LensImage


def poisson(seed: int, side: int = 24, mean: float = 30) -> NDArray[np.int64]:
    return np.random.default_rng(seed).poisson(mean, (side, side))


@given(st.integers(0, 10**6), st.floats(0.2, 400), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_counts_are_recovered_from_any_linear_scale(seed: int, mean: float, offset: float, gain: float) -> None:
    counts = poisson(seed, mean=mean)
    counts[0, :2] = 0, 1
    expected = counts - counts.min()
    assert np.array_equal(counts_above_minimum(np.asarray(counts * gain + offset, np.float64)), expected)


def test_counts_are_recovered_from_single_precision() -> None:
    counts = poisson(1, mean=300)
    counts -= counts.min()
    scaled = (counts / counts.max()).astype(np.float32).astype(np.float64)
    assert np.array_equal(counts_above_minimum(scaled), counts)


def test_pixels_without_counts_are_scaled_to_16_bits() -> None:
    pixels = np.random.default_rng(0).random((20, 20))
    counts = counts_above_minimum(pixels)
    assert (counts.min(), counts.max()) == (0, QUANTISED_PEAK)
    np.testing.assert_allclose(counts / 65535, (pixels - pixels.min()) / np.ptp(pixels), atol=1e-5)


def test_two_grey_levels_are_two_counts() -> None:
    assert counts_above_minimum(np.array([[0.0, 7.0], [7.0, 0.0]])).tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("shape", [(24, 24), (1, 24, 24)])
def test_npy_images_of_both_shapes_are_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", poisson(0).reshape(shape) / 3)
    assert np.array_equal(formats.read(tmp_path / "a.npy").pixels, poisson(0) / 3)


@pytest.mark.parametrize(("name", "tolerance"), [("a.png", 0), ("a.jpg", 40), ("a.JPEG", 40)])
def test_pictures_are_read(tmp_path: Path, name: str, tolerance: int) -> None:
    grey = poisson(0, mean=100).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / name)
    assert np.abs(formats.read(tmp_path / name).pixels - grey).max() <= tolerance


def test_sixteen_bit_png_keeps_its_depth(tmp_path: Path) -> None:
    deep = (poisson(0) * 1000).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    assert np.array_equal(formats.read(tmp_path / "a.png").pixels, deep)


def test_object_arrays_are_refused_and_never_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    np.save(tmp_path / "a.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(ImageError, match="object array"):
        formats.read(tmp_path / "a.npy")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("size", [0, 3, 60, 127, 130, 1000])
def test_a_truncated_npy_is_named(tmp_path: Path, size: int) -> None:
    np.save(tmp_path / "cut.npy", poisson(0).astype(float))
    whole = (tmp_path / "cut.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:size])
    with pytest.raises(ImageError, match=r"cut\.npy: truncated"):
        formats.read(tmp_path / "cut.npy")


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg"])
@pytest.mark.parametrize("share", [0, 0.1, 0.6])
def test_a_truncated_picture_is_named(tmp_path: Path, name: str, share: float) -> None:
    Image.fromarray(poisson(0, side=64).astype(np.uint8)).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ImageError, match="cut.*truncated"):
        formats.read(tmp_path / name)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_pixels_are_counted(bad: float) -> None:
    pixels = poisson(0).astype(float)
    pixels[3, 4] = bad
    with pytest.raises(ImageError, match="x: 1 of 576 pixels are NaN or infinite"):
        check_pixels(pixels, "x")


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.full((9, 9), 3.0), "every pixel is 3"),
        (np.zeros((2, 9, 9)), r"shape \(2, 9, 9\)"),
        (np.zeros(9), r"shape \(9,\)"),
        (np.zeros((0, 9)), r"shape \(0, 9\)"),
        (np.zeros((9, 9), complex), "complex128"),
        (np.array([["a", "b"], ["c", "d"]]), "holds <U1"),
    ],
)
def test_unusable_images_say_why(pixels: NDArray[np.generic], reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        check_pixels(pixels, "x")


def test_huge_images_are_refused_before_they_are_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f8", "fortran_order": False, "shape": (100_000, 100_000)}
        )
        file.truncate(100_000 * 100_000 * 8 + 128)
    with pytest.raises(ImageError, match="has 100000 x 100000 pixels; needs sides of at most 4096"):
        formats.read(tmp_path / "huge.npy")


@pytest.mark.parametrize("name", ["a.gif", "a.gz", "a"])
def test_other_formats_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ImageError, match="is no format that sublens reads; needs one of .npy"):
        formats.read(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.npy: no such file"):
        formats.read(tmp_path / "none.npy")


def test_counts_of_all_real_images_are_recovered_exactly(real_data: Path) -> None:
    paths = sorted((real_data / "common_test_1").glob("*/*.npy"))
    assert len(paths) == 15
    for path in paths:
        pixels = formats.read(path).pixels
        counts = counts_above_minimum(pixels)
        assert 653 <= counts.max() <= 998
        assert np.array_equal(counts / counts.max(), pixels)


def test_an_eight_bit_picture_is_not_taken_for_photons(tmp_path: Path) -> None:
    grey = (poisson(3) * 4).clip(0, 255).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert formats.read_counts(tmp_path / "a.png").max() == QUANTISED_PEAK


@given(st.integers(8, 127), st.integers(0, 255))
def test_a_damaged_header_is_an_image_error_or_still_an_image(offset: int, byte: int) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.npy"
        np.save(path, poisson(0).astype(float))
        data = bytearray(path.read_bytes())
        data[offset] = byte
        path.write_bytes(data)
        with suppress(ImageError):
            assert formats.read(path).pixels.ndim == 2


def write_fits(path: Path, *arrays: np.ndarray) -> Path:
    hdus = [fits.PrimaryHDU(), *(fits.ImageHDU(array) for array in arrays)]
    fits.HDUList(hdus).writeto(path)
    return path


def test_the_first_image_of_a_fits_file_is_read(tmp_path: Path) -> None:
    pixels = np.arange(12, dtype=">f8").reshape(3, 4)
    assert np.array_equal(formats.read(write_fits(tmp_path / "a.fits", pixels, pixels + 1)).pixels, pixels)


def test_a_real_hubble_image_is_read(real_data: Path) -> None:
    paths = sorted((real_data / "slacs0946+1006").glob("*.fits"))
    assert paths
    assert all(formats.read(path).pixels.shape[0] > 10 for path in paths if "mask" not in path.name)


def test_a_fits_file_without_an_image_says_so(tmp_path: Path) -> None:
    table = fits.BinTableHDU.from_columns([fits.Column("a", "D", array=np.zeros(3))])
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(tmp_path / "a.fits")
    with pytest.raises(ImageError, match=r"a\.fits: holds no image"):
        formats.read(tmp_path / "a.fits")


@pytest.mark.parametrize("keep", [0, 5, 100, 2880, 6000])
def test_a_truncated_fits_file_is_named(tmp_path: Path, keep: int) -> None:
    path = write_fits(tmp_path / "a.fits", np.random.default_rng(0).random((60, 60)))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ImageError, match=r"a\.fits"):
        formats.read(path)


def test_a_huge_fits_image_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="2 x 5000"):
        formats.read(write_fits(tmp_path / "a.fits", np.zeros((5000, 2), np.uint8)))


def test_a_packed_file_may_not_unpack_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fits(tmp_path / "a.fits.gz", np.random.default_rng(0).random((60, 60)))
    monkeypatch.setattr(fits_image, "MAX_UNPACKED_BYTES", 10_000)
    with pytest.raises(ImageError, match="unpacks to too many bytes; needs at most 10,000"):
        formats.read(tmp_path / "a.fits.gz")


def test_a_pixel_scale_of_nothing_is_unknown(tmp_path: Path) -> None:
    header = fits.Header({"CUNIT1": "arcsec", "CDELT1": 0.0})
    fits.PrimaryHDU(poisson(0), header).writeto(tmp_path / "a.fits")
    assert formats.read(tmp_path / "a.fits").pixel_scale is None


def test_a_stack_is_the_same_however_it_is_cut_into_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = np.random.default_rng(0).random((23, 8, 8))
    monkeypatch.setattr(arrays, "BLOCK_BYTES", 5 * 8 * 8 * 8)
    for chunk in (1, 4, 23):
        with h5py.File(tmp_path / f"{chunk}.h5", "w") as file:
            file.create_dataset("a", data=stack, chunks=(chunk, 8, 8))
        images = [image for image in formats.read_all(tmp_path / f"{chunk}.h5") if isinstance(image, LensImage)]
        assert [image.number for image in images] == list(range(23))
        assert np.array_equal([image.pixels for image in images], stack)


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", counts=np.zeros((10, 100, 100), np.uint16))
    monkeypatch.setattr(formats, "MAX_ARCHIVE_BYTES", 10_000)
    with pytest.raises(ImageError, match=r"unpacks to 200,\d+ bytes"):
        formats.read_archive(tmp_path / "a.npz")
