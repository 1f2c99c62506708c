import json
import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from astropy.io import fits
from numpy.typing import NDArray
from PIL import Image as Picture

from sublens.errors import ImageError
from sublens.images import formats
from sublens.images import reader as reading
from sublens.images.cutouts import Cutout
from sublens.images.formats import NO_FILES, ImageSelector
from sublens.images.listing import list_images
from sublens.images.pixels import NO_COMPANIONS, Image
from sublens.images.reader import Reader, ReadResult
from sublens.parallel import sandbox


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with Reader() as reader_:
        yield reader_


def light(side: int = 24) -> NDArray[np.float64]:
    return np.random.default_rng(0).normal(30, 5, (side, side))


def only(results: Iterator[ReadResult]) -> Image | ImageError:
    (result,) = results
    return result.image


def error_of(results: Iterator[ReadResult]) -> ImageError:
    error = only(results)
    assert isinstance(error, ImageError)
    return error


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.fits", "a.fits.gz", "a.tif", "a.h5", "a.zarr"])
def test_all_formats_give_the_same_pixels(reader: Reader, tmp_path: Path, name: str) -> None:
    path, pixels = tmp_path / name, light().astype(np.float32)
    match path.suffix:
        case ".npy":
            np.save(path, pixels)
        case ".npz":
            np.savez_compressed(path, pixels)
        case ".fits" | ".gz":
            fits.PrimaryHDU(pixels).writeto(path)
        case ".tif":
            Picture.fromarray(pixels).save(path)
        case ".h5":
            with h5py.File(path, "w") as file:
                file["lens/light"] = pixels
        case _:
            zarr.create_array(str(path), data=pixels)
    image = only(reader.read([path]))
    assert isinstance(image, Image), image
    assert np.array_equal(image.pixels, pixels)


@pytest.mark.parametrize("name", ["a.npz", "a.h5", "a.zarr"])
def test_a_stack_is_many_images(reader: Reader, tmp_path: Path, name: str) -> None:
    stack = np.stack([light(), light() + 1, np.full((24, 24), 3.0), light() + 2])
    if name == "a.npz":
        np.savez(tmp_path / name, stack=stack, other=stack)
    elif name == "a.h5":
        with h5py.File(tmp_path / name, "w") as file:
            file["stack"], file["other"] = stack, stack
    else:
        group = zarr.open_group(str(tmp_path / name), mode="w")
        group.create_array("stack", data=stack)
        group.create_array("other", data=stack)
    assert error_of(reader.read([tmp_path / name])).need == "one of other, stack"
    with Reader(ImageSelector(array="stack")) as chooser:
        results = list(chooser.read([tmp_path / name]))
    assert [(result.number, isinstance(result.image, Image)) for result in results] == [
        *((0, True), (1, True), (2, False), (3, True))
    ]
    assert f"{name}, image 2: every pixel is 3" in str(results[2].image)


def test_a_child_that_hangs_is_replaced(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", light())
    with Reader(seconds=0.5) as reader:
        os.mkfifo(tmp_path / "b.npy")
        results = list(reader.read([tmp_path / "b.npy", tmp_path / "a.npy"]))
    assert "b.npy: took too long to read; needs a file that is read in seconds. Leave" in str(results[0].image)
    assert isinstance(results[1].image, Image)


def test_a_child_that_dies_is_replaced_and_nothing_is_lost(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", np.stack([light(256)] * 20))  # of which a child can be 16 ahead
    with Reader() as reader:
        places = []
        for result in reader.read([tmp_path / "a.npz"] * 3):
            assert isinstance(result.image, Image)
            if result.source_index in ((0, 0), (1, 12)):
                os.kill(reader._lanes[0].child()._process.pid, signal.SIGKILL)
            places.append(result.source_index)
    assert places == [(file, number) for file in range(3) for number in range(20)]


def test_many_children_keep_the_order_and_lose_nothing_when_one_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PATIENCE", -1.0)  # the next child starts at once
    paths = [tmp_path / f"{number}.npy" for number in range(300)]
    for number, path in enumerate(paths):
        np.save(path, light(64) + number)
    with Reader(n_children=3) as reader:
        for number, result in enumerate(reader.read(paths)):
            if number in (20, 150):
                os.kill(reader._lanes[number % len(reader._lanes)].child()._process.pid, signal.SIGKILL)
            assert isinstance(result.image, Image)
            assert result.source_index == (number, 0)
            assert np.array_equal(result.image.pixels, light(64) + number)
        assert len(reader._lanes) == 3


def test_an_image_larger_than_the_shared_memory_is_read(reader: Reader, tmp_path: Path) -> None:
    large = np.random.default_rng(0).random((1100, 1100))
    assert large.nbytes > sandbox.REGION_BYTES
    np.save(tmp_path / "a.npy", large)
    image = only(reader.read([tmp_path / "a.npy"]))
    assert isinstance(image, Image)
    assert np.array_equal(image.pixels, large)


def test_long_names_do_not_block_the_pipe_to_a_child(reader: Reader, tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["n" * 200] * 15)
    folder.mkdir(parents=True)
    np.save(folder / "a.npy", light(512))
    results = list(reader.read([folder / "a.npy"] * 60))
    assert all(isinstance(result.image, Image) for result in results)


def test_without_shared_memory_pixels_come_through_the_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_region_fd", lambda: None)
    np.save(tmp_path / "a.npy", light())
    with Reader() as reader:
        image = only(reader.read([tmp_path / "a.npy"]))
    assert isinstance(image, Image)
    assert np.array_equal(image.pixels, light())


def test_a_file_that_ends_every_child_costs_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", light())
    monkeypatch.setattr("sys.executable", "false")
    with Reader() as reader:
        results = list(reader.read([tmp_path / "a.npy"] * 2))
    assert [result.source_index for result in results] == [(0, 0), (1, 0)]
    assert all(
        "reading it fails; needs an intact file that is read in 2 GiB" in str(result.image) for result in results
    )


def test_nothing_in_a_zarr_store_is_unpickled(reader: Reader, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    about = {"zarr_format": 2, "shape": [4, 4], "chunks": [4, 4], "fill_value": 0, "order": "C"}
    for kind in ("<f8", "|O"):
        for codecs in (
            {"compressor": {"id": "pickle"}, "filters": None},
            {"compressor": None, "filters": [{"id": "pickle"}]},
        ):
            store = tmp_path / "a.zarr"
            store.mkdir(exist_ok=True)
            (store / ".zarray").write_text(json.dumps({**about, **codecs, "dtype": kind}))
            (store / "0.0").write_bytes(pickle.dumps(Bomb()))
            with pytest.raises(ImageError, match="truncated, or not a zarr store"):
                formats.read(store)
    assert not (tmp_path / "exploded").exists()


def test_nothing_is_imported_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", light())
    (tmp_path / "json.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    with Reader() as reader:
        assert isinstance(only(reader.read([Path("a.npy")])), Image)
    assert not Path("ran").exists()


def test_half_read_answers_are_not_taken_for_others(tmp_path: Path) -> None:
    np.savez(tmp_path / "many.npz", np.stack([light()] * 5))
    np.save(tmp_path / "a.npy", light() + 1)
    with Reader() as reader:
        first = reader.read([tmp_path / "many.npz"])
        next(first)
        first.close()  # type: ignore[attr-defined]
        image = only(reader.read([tmp_path / "a.npy"]))
    assert isinstance(image, Image)
    assert np.array_equal(image.pixels, light() + 1)


def test_a_folder_is_all_its_images_but_no_link_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "in" / "b").mkdir(parents=True)
    for name in ("out.npy", "in/z.npy", "in/b/a.npy", "in/readme.txt"):
        np.save(tmp_path / name, light())
        (tmp_path / f"{name}.npy").rename(tmp_path / name) if name.endswith("txt") else None
    (tmp_path / "in" / "link.npy").symlink_to(tmp_path / "out.npy")
    link, z, a = list_images([tmp_path / "in"])
    assert (z, a) == (tmp_path / "in/z.npy", tmp_path / "in/b/a.npy")
    assert isinstance(link, ReadResult)
    assert "a link out of" in str(link.image)


def test_patterns_are_expanded(tmp_path: Path) -> None:
    for name in ("1.npy", "2.npy"):
        np.save(tmp_path / name, light())
    assert list(list_images([tmp_path / "*.npy"])) == [tmp_path / "1.npy", tmp_path / "2.npy"]
    (none,) = list_images([tmp_path / "*.fits"])
    assert isinstance(none, ReadResult)


def test_missing_pixels_are_known_to_the_parent(reader: Reader, tmp_path: Path) -> None:
    pixels = light()
    pixels[0, :3] = np.nan
    fits.PrimaryHDU(pixels).writeto(tmp_path / "a.fits")
    image = only(reader.read([tmp_path / "a.fits"]))
    assert isinstance(image, Image)
    assert image.mask is not None
    assert np.array_equal(image.mask, np.isnan(pixels))
    assert image.pixels[0, 0] == np.nanmedian(pixels)
    pixels[:] = np.nan
    np.save(tmp_path / "b.npy", pixels)
    assert "all 576 pixels are missing" in error_of(reader.read([tmp_path / "b.npy"])).what


def test_the_position_on_the_sky_is_read(reader: Reader, tmp_path: Path) -> None:
    hdu = fits.PrimaryHDU(light())
    hdu.header.update(
        CTYPE1="RA---TAN", CTYPE2="DEC--TAN", CRVAL1=150.0, CRVAL2=2.0, CRPIX1=12.5, CRPIX2=12.5,
        CD1_1=-0.05 / 3600, CD1_2=0.0, CD2_1=0.0, CD2_2=0.05 / 3600,
    )  # fmt: skip
    hdu.writeto(tmp_path / "a.fits")
    image = only(reader.read([tmp_path / "a.fits"]))
    assert isinstance(image, Image)
    assert image.pixel_scale == pytest.approx(0.05, rel=1e-6)
    assert image.ra == pytest.approx(150.0)
    assert image.dec == pytest.approx(2.0)


def test_a_named_extension_is_read(tmp_path: Path) -> None:
    planes = [fits.ImageHDU(light() + number, name=name) for number, name in enumerate(("SCI", "ERR"))]
    fits.HDUList([fits.PrimaryHDU(), *planes]).writeto(tmp_path / "a.fits")
    for hdu, shift in (("ERR", 1), ("2", 1), (None, 0)):
        (image,) = formats.read_all(tmp_path / "a.fits", ImageSelector(hdu=hdu))
        assert isinstance(image, Image)
        assert np.array_equal(image.pixels, light() + shift)
    with pytest.raises(ImageError, match="has no extension MASK; needs one of 1: SCI, 2: ERR"):
        list(formats.read_all(tmp_path / "a.fits", ImageSelector(hdu="MASK")))


def test_scaled_and_big_endian_integers_are_read(tmp_path: Path) -> None:
    counts = np.arange(576).reshape(24, 24)
    np.save(tmp_path / "a.npy", counts.astype(">i2"))
    hdu = fits.PrimaryHDU(counts.astype(np.uint16))  # BZERO = 32768
    hdu.writeto(tmp_path / "b.fits")
    scaled = fits.PrimaryHDU(counts.astype(np.int16))
    scaled.header["BSCALE"], scaled.header["BZERO"] = 0.5, 7
    scaled.writeto(tmp_path / "c.fits")
    read = [formats.read(tmp_path / name).pixels for name in ("a.npy", "b.fits", "c.fits")]
    assert all(np.array_equal(pixels - pixels[0, 0], (pixels[0, 1] - pixels[0, 0]) * counts) for pixels in read)


def test_a_tile_compressed_image_is_read(tmp_path: Path) -> None:
    counts = np.arange(576, dtype=np.int32).reshape(24, 24)
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(counts)]).writeto(tmp_path / "a.fits.fz")
    assert np.array_equal(formats.read(tmp_path / "a.fits.fz").pixels, counts)


@pytest.mark.parametrize("flip_y", [False, True])
def test_noise_psf_mask_and_photometry_come_through_the_child(tmp_path: Path, flip_y: bool) -> None:
    err, psf = light() / 10, light(9)
    err[4, 5] = 1e8
    planes = {"SCI": light(), "ERR": err, "PSF": psf}
    hdus = [fits.ImageHDU(plane, name=name) for name, plane in planes.items()]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(tmp_path / "a.fits")
    fits.setval(tmp_path / "a.fits", "BUNIT", value="electrons", ext=1)
    with Reader(ImageSelector(flip_y=flip_y), NO_FILES) as reader:
        image = only(reader.read([tmp_path / "a.fits"]))
    assert isinstance(image, Image)
    assert image.noise is not None
    assert image.psf is not None
    assert image.mask is not None
    rows = slice(None, None, -1 if flip_y else 1)
    assert np.array_equal(image.noise, np.where(err < 1e8, err, np.nan)[rows], equal_nan=True)
    assert np.array_equal(image.psf, psf[rows])
    assert np.array_equal(image.mask, (err == 1e8)[rows])
    assert (image.companions.noise_source, image.companions.gain, image.companions.unit) == ("map", 1, "electrons")


def test_without_companions_the_child_sends_pixels_and_mask_alone(tmp_path: Path, reader: Reader) -> None:
    hdus = [fits.ImageHDU(light(), name=name) for name in ("SCI", "ERR", "PSF")]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(tmp_path / "a.fits")
    image = only(reader.read([tmp_path / "a.fits"]))
    assert isinstance(image, Image)
    assert image.companions == NO_COMPANIONS


def test_a_cutout_has_the_noise_around_its_position_and_none_off_the_image(tmp_path: Path) -> None:
    noise = np.arange(1.0, 40 * 40 + 1).reshape(40, 40)
    hdus = [fits.ImageHDU(light(40), name="SCI"), fits.ImageHDU(noise, name="ERR")]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(tmp_path / "big.fits")
    request = Cutout(tmp_path / "big.fits", 0, (9, 11), (20, 20))
    with Reader(companions=NO_FILES) as reader:
        image = only(reader.read([request]))
    assert isinstance(image, Image)
    assert image.noise is not None
    assert np.isnan(image.noise[:, 0]).all()
    assert np.array_equal(image.noise[:, 1:], noise[1:21, :19])
