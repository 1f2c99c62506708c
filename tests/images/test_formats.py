from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import imagecodecs
import numpy as np
import pytest
import tifffile
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from sublens.errors import ImageError
from sublens.images import arrays, formats, limits
from sublens.images.formats import ImageSelector
from sublens.images.pixels import QUANTISED_PEAK, RawImage, counts_above_minimum, fill_missing
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


@pytest.mark.parametrize("bad", [np.inf, -np.inf])
def test_infinite_pixels_are_counted(bad: float) -> None:
    pixels = poisson(0).astype(float)
    pixels[3, 4] = bad
    with pytest.raises(ImageError, match="x: 1 of 576 pixels are infinite"):
        fill_missing(RawImage(pixels), "x")


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
        fill_missing(RawImage(pixels), "x")


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


def test_the_only_image_of_a_fits_file_is_read(tmp_path: Path) -> None:
    pixels = np.arange(12, dtype=">f8").reshape(3, 4)
    assert np.array_equal(formats.read(write_fits(tmp_path / "a.fits", pixels)).pixels, pixels)


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
    monkeypatch.setattr(limits, "MAX_UNPACKED_BYTES", 10_000)
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


COUNTS = poisson(0, mean=40)
TIFFS: dict[str, tuple[NDArray[np.generic], dict[str, Any]]] = {
    **{kind: (COUNTS.astype(kind), {}) for kind in ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")},
    **{packing: (COUNTS.astype("u2"), {"compression": packing}) for packing in ("lzw", "zlib", "packbits", "zstd")},
    "above 2 ** 31": ((COUNTS * 4_900_000 * 10).astype("u4"), {}),
    "negative": ((COUNTS - 40).astype("i2"), {}),
    "big-endian": (COUNTS.astype(">u2"), {"byteorder": ">", "compression": "zlib", "predictor": True}),
    "big-endian floats": (COUNTS.astype(">f4"), {"byteorder": ">", "compression": "zlib", "predictor": 3}),
    "tiles": (COUNTS.astype("u2"), {"tile": (16, 16)}),
    "BigTIFF": (COUNTS.astype("u2"), {"bigtiff": True}),
    "ImageJ": (COUNTS.astype("f4"), {"imagej": True}),
    "LZW, big-endian": (COUNTS.astype(">f8"), {"byteorder": ">", "compression": "lzw", "rowsperstrip": 5}),
    "LZW, tiles": (COUNTS.astype("i2"), {"compression": "lzw", "predictor": True, "tile": (16, 16)}),
    "one pixel row a strip": (COUNTS.astype("f8"), {"rowsperstrip": 1, "compression": "lzma"}),
}


@pytest.mark.parametrize("kind", TIFFS)
def test_a_tiff_keeps_its_values(tmp_path: Path, kind: str) -> None:
    pixels, options = TIFFS[kind]
    tifffile.imwrite(tmp_path / "a.tif", pixels, **options)
    image = formats.read(tmp_path / "a.tif")
    assert np.array_equal(image.pixels, pixels)
    assert image.is_coarse == (pixels.dtype.itemsize == 1)


@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "f4"])
def test_white_as_zero_is_turned_round(tmp_path: Path, kind: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", (100 - COUNTS).astype(kind), photometric="miniswhite")
    pixels = formats.read(tmp_path / "a.tif").pixels
    assert np.array_equal(pixels - pixels.min(), COUNTS - COUNTS.min())


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
@pytest.mark.parametrize("n_planes", [2, 3, 4])
def test_colour_of_16_bits_keeps_its_depth(tmp_path: Path, name: str, n_planes: int) -> None:
    deep = (COUNTS * 700).astype("u2")
    n_colours = n_planes - (n_planes in (2, 4))
    planes = np.dstack([deep] * n_colours + [np.full_like(deep, 65535)] * (n_planes - n_colours))
    if name == "a.png":
        (tmp_path / name).write_bytes(imagecodecs.png_encode(planes))
    else:
        extra = ["unassalpha"] * (n_planes - n_colours)
        tifffile.imwrite(
            tmp_path / name, planes, photometric="rgb" if n_colours == 3 else "minisblack", extrasamples=extra
        )
    assert np.array_equal(formats.read(tmp_path / name).pixels, deep)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("kind", ["u2", "f4"])
def test_colours_are_turned_to_grey_and_a_note_says_so(tmp_path: Path, kind: str, planar: str) -> None:
    colours = np.stack([COUNTS * 10, COUNTS * 20, COUNTS * 30]).astype(kind)
    data = colours if planar == "separate" else np.moveaxis(colours, 0, -1)
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="rgb", planarconfig=planar)
    image = formats.read(tmp_path / "a.tif")
    np.testing.assert_allclose(image.pixels, COUNTS * (0.299 * 10 + 0.587 * 20 + 0.114 * 30), rtol=1e-6)
    assert image.notes == ("colours turned to grey",)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize(("plane", "index"), [("1", 1), ("green", 1), ("Blue", 2)])
def test_a_colour_is_chosen(tmp_path: Path, name: str, plane: str, index: int) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (24, 24, 3)).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / name)
    (image,) = formats.read_all(tmp_path / name, ImageSelector(plane=plane))
    assert isinstance(image, LensImage)
    assert np.array_equal(image.pixels, colours[..., index])


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_transparent_pixels_of_a_picture_are_missing(tmp_path: Path, name: str) -> None:
    opacity = np.full((24, 24), 255, np.uint8)
    opacity[5:9, 3] = 0
    Image.fromarray(np.dstack([COUNTS.astype(np.uint8)] * 3 + [opacity])).save(tmp_path / name)
    (raw,) = formats.READERS[Path(name).suffix](tmp_path / name, ImageSelector())
    assert raw.mask is not None
    assert np.array_equal(raw.mask, opacity == 0)


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    picture = Image.fromarray(COUNTS.astype(np.uint8)).convert("P")
    picture.putpalette([255 - level // 3 for level in range(768)])
    for name in ("a.tif", "a.png"):
        picture.save(tmp_path / name)
        assert np.array_equal(formats.read(tmp_path / name).pixels, 255 - COUNTS)


def test_each_page_of_a_tiff_is_an_image(tmp_path: Path) -> None:
    pages = np.stack([COUNTS, COUNTS + 1, COUNTS + 2]).astype("u2")
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="minisblack")
    images = [image for image in formats.read_all(tmp_path / "a.tif") if isinstance(image, LensImage)]
    assert [image.number for image in images] == [0, 1, 2]
    assert np.array_equal([image.pixels for image in images], pages)
    (image,) = formats.read_all(tmp_path / "a.tif", ImageSelector(plane="2"))
    assert isinstance(image, LensImage)
    assert np.array_equal(image.pixels, pages[2])


def test_smaller_copies_in_a_tiff_are_no_images(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(COUNTS.astype("u2"))
        file.write(COUNTS[::2, ::2].astype("u2"), subfiletype=1)
    assert np.array_equal(formats.read(tmp_path / "a.tif").pixels, COUNTS)


def test_rows_that_were_written_as_pages_are_one_image(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.dstack([COUNTS] * 3).astype("f4"), photometric="minisblack")
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert len(tif.pages) == 24
    assert np.array_equal(formats.read(tmp_path / "a.tif").pixels, COUNTS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"compression": "jpeg2000"}, "is compressed with JPEG2000; needs no compression, LZW"),
        ({"photometric": "cfa"}, "holds colours as CFA; needs grey, RGB or a palette"),
        ({"kind": "?"}, "holds 1-bit samples, bool; needs real numbers"),
        ({"kind": "c8"}, "holds 64-bit samples, complex64; needs real numbers"),
    ],
)
def test_a_tiff_that_is_not_read_is_refused_by_name(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    pixels = COUNTS.astype(options.pop("kind", "u1"))
    tifffile.imwrite(tmp_path / "a.tif", pixels, **options)
    with pytest.raises(ImageError, match=words):
        formats.read(tmp_path / "a.tif")


@pytest.mark.parametrize("packing", [None, "zlib", "lzw"])
@pytest.mark.parametrize("share", [0.2, 0.6, 0.99])
def test_a_truncated_tiff_is_named(tmp_path: Path, packing: str | None, share: float) -> None:
    tifffile.imwrite(tmp_path / "a.tif", COUNTS.astype("u2"), compression=packing, rowsperstrip=4)
    whole = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ImageError, match="truncated, or not a TIFF file"):
        formats.read(tmp_path / "a.tif")


@pytest.mark.parametrize("tag", ["StripByteCounts", "StripOffsets"])
def test_a_tiff_with_missing_strips_is_not_filled_with_zeros(tmp_path: Path, tag: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, COUNTS.astype("u2"), compression="zlib", rowsperstrip=4)
    with tifffile.TiffFile(path, mode="r+") as tif:
        entry = tif.pages.first.tags[tag]
        entry.overwrite([*entry.value[:-1], 0 if tag == "StripByteCounts" else 10**6])
    with pytest.raises(ImageError, match="truncated, or not a TIFF file"):
        formats.read(path)


def test_pages_in_a_circle_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.stack([COUNTS] * 2).astype("u2"), photometric="minisblack")
    with tifffile.TiffFile(path) as tif:
        first, end = tif.pages.first.offset, tif.pages.next_page_offset or 0
    data = bytearray(path.read_bytes())
    data[end : end + 4] = first.to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(ImageError, match="truncated, or not a TIFF file"):
        list(formats.read_all(path))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.npy"])
def test_a_folder_that_is_named_as_an_image_is_an_image_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ImageError, match="cannot be read"):
        formats.read(tmp_path / name)


def test_sentinels_of_a_tiff_of_floats_are_missing(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).poisson(20, (40, 40)).astype(np.float32)
    pixels[:, 0] = -999
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    image = formats.read(tmp_path / "a.tif")
    assert image.mask is not None
    assert image.mask.sum() == 40
