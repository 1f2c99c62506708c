"""Every line of the table in docs/images.md; and files damaged at random."""

import gzip
import os
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr
from astropy.io import fits
from conftest import peak_memory
from numpy.typing import ArrayLike, NDArray
from PIL import Image as Picture
from zarr.codecs import GzipCodec

from sublens.errors import ImageError
from sublens.images import arrays, formats, limits, reader
from sublens.images.listing import list_images
from sublens.images.pixels import Image
from sublens.images.reader import Reader, ReadResult
from sublens.images.resample import resample_image
from sublens.parallel import sandbox

ROOT = Path(__file__).parents[2]
MAX_GROWTH = 50e6
LIGHT = np.random.default_rng(0).normal(30, 5, (24, 24))
Make = Callable[[Path], object]
"""Makes the files of a case in a folder; others may lie beside the folder."""


def tables() -> dict[str, str]:
    """The cells of all rows of two columns in docs/images.md."""
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", (ROOT / "docs" / "images.md").read_text(), re.MULTILINE)
    return dict(rows)


def changed(value: float, share: float = 0.02) -> NDArray[np.float64]:
    pixels = LIGHT.copy()
    pixels.flat[: int(share * pixels.size)] = value
    return pixels


def npy(pixels: ArrayLike) -> Make:
    return lambda folder: np.save(folder / "a.npy", np.asarray(pixels))


def hdu(pixels: ArrayLike | None, **header: Any) -> Make:
    return lambda folder: fits.PrimaryHDU(pixels, fits.Header(header)).writeto(
        folder / "a.fits", output_verify="ignore"
    )


def both(*makes: Make) -> Make:
    return lambda folder: [make(folder) for make in makes]


def scaled(folder: Path) -> None:
    made = fits.PrimaryHDU(np.arange(576, dtype=np.int16).reshape(24, 24))
    made.header["BSCALE"], made.header["BZERO"] = 0.5, 7
    made.writeto(folder / "a.fits")


def h5(**arrays: Any) -> Make:
    def make(folder: Path) -> None:
        with h5py.File(folder / "a.h5", "w") as file:
            for name, pixels in arrays.items():
                file[name] = pixels

    return make


def store(pixels: NDArray[Any], **options: Any) -> Make:
    return lambda folder: zarr.create_array(str(folder / "a.zarr"), data=pixels, **options)


def npz(**arrays: Any) -> Make:
    return lambda folder: np.savez(folder / "a.npz", **arrays)


def picture(name: str, kind: str | None = None, mode: str = "L") -> Make:
    return lambda folder: Picture.fromarray(LIGHT.astype(np.uint8)).convert(mode).save(folder / name, kind)


def all_formats(folder: Path) -> None:
    for make in (npy(LIGHT), npz(a=np.stack([LIGHT] * 3)), hdu(LIGHT), h5(a=LIGHT)):
        make(folder)
    for name in ("a.png", "a.jpg", "a.tif"):
        picture(name)(folder)
    (folder / "b.fits.gz").write_bytes(gzip.compress((folder / "a.fits").read_bytes()))


def cut(share: float) -> Make:
    def make(folder: Path) -> None:
        all_formats(folder)
        for path in folder.iterdir():
            os.truncate(path, int(share * path.stat().st_size))

    return make


def cut_stack(folder: Path) -> None:
    with h5py.File(folder / "a.h5", "w") as file:
        made = file.create_dataset("a", data=np.stack([LIGHT] * 4), chunks=(1, 24, 24), compression="gzip")
        start = made.id.get_chunk_info(2).byte_offset
    with (folder / "a.h5").open("rb+") as file:
        file.seek(start)
        file.write(b"damaged")


def misnamed(folder: Path) -> None:
    all_formats(folder)
    (folder / "a.npy").rename(folder / "b.png")
    (folder / "a.png").rename(folder / "b.h5")
    (folder / "a.fits").rename(folder / "b.npz")
    (folder / "a.h5").rename(folder / "b.fits")
    (folder / "a.jpg").rename(folder / "c.fits.gz")
    (folder / "a.tif").rename(folder / "b.npy")
    for path in (*folder.glob("a.*"), folder / "b.fits.gz"):
        path.unlink()


def packed_bombs(folder: Path) -> None:
    """Files of under 200 kB that unpack to over 130 MB."""
    with gzip.open(folder / "a.fits.gz", "wb", 1) as file:
        file.write(fits.PrimaryHDU(np.zeros((10, 10))).header.tostring().encode())
        for _ in range(130):
            file.write(bytes(2**20))
    with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as member:
        header = {"descr": "<f8", "fortran_order": False, "shape": (6656, 50, 50)}
        np.lib.format.write_array_header_1_0(member, header)
        for _ in range(130):
            member.write(bytes(2**20))


def hollow(folder: Path) -> None:
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("a", (10**6, 24, 24), "f8")
    zarr.create_array(str(folder / "a.zarr"), shape=(10**6, 24, 24), chunks=(100, 24, 24), dtype="f8")


def picture_bombs(folder: Path) -> None:
    Picture.new("L", (13_000, 13_000)).save(folder / "a.png")
    Picture.new("L", (13_000, 13_000)).save(folder / "a.tif", compression="tiff_adobe_deflate")
    picture("b.png")(folder)  # claims more than there is: 2 ** 30 pixels
    data = bytearray((folder / "b.png").read_bytes())
    data[16:24] = (2**15).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    (folder / "b.png").write_bytes(data)


def claim(folder: Path) -> None:
    with (folder / "a.npy").open("wb") as file:
        header = {"descr": "<f8", "fortran_order": False, "shape": (10**6, 4096, 4096)}
        np.lib.format.write_array_header_1_0(file, header)


def chunk_bombs(folder: Path) -> None:
    chunk = (2**13, 2**12 + 8)
    with h5py.File(folder / "a.h5", "w") as file:
        made = file.create_dataset("a", (16, 16), "f8", maxshape=(None, None), chunks=chunk, compression="gzip")
        made.id.write_direct_chunk((0, 0), zlib.compress(bytes(8 * chunk[0] * chunk[1]), 1))
    zarr.create_array(str(folder / "a.zarr"), shape=(16, 16), chunks=chunk, dtype="f8")


def false_chunk(folder: Path) -> None:
    made = zarr.create_array(str(folder / "a.zarr"), data=LIGHT, compressors=GzipCodec())
    (chunk,) = (folder / "a.zarr" / "c").rglob("0/0")
    chunk.write_bytes(gzip.compress(bytes(2**28), 1))
    assert made.chunks == LIGHT.shape


def linked(folder: Path) -> None:
    h5(a=LIGHT)(folder.parent)
    with h5py.File(folder / "a.h5", "w") as file:
        file["a"] = h5py.ExternalLink(str(folder.parent / "a.h5"), "a")


def elsewhere(folder: Path) -> None:
    h5(a=LIGHT)(folder.parent)
    (folder.parent / "raw").write_bytes(LIGHT.tobytes())
    with h5py.File(folder / "raw.h5", "w") as file:
        file.create_dataset("a", (24, 24), "f8", external=[(str(folder.parent / "raw"), 0, LIGHT.nbytes)])
    with h5py.File(folder / "virtual.h5", "w") as file:
        layout = h5py.VirtualLayout((24, 24), "f8")
        layout[:] = h5py.VirtualSource(str(folder.parent / "a.h5"), "a", (24, 24))
        file.create_virtual_dataset("a", layout)


def linked_store(folder: Path) -> None:
    store(LIGHT)(folder)
    (folder / "a.zarr" / "c").rename(folder.parent / "c")
    (folder / "a.zarr" / "c").symlink_to(folder.parent / "c")


def link_out(folder: Path) -> None:
    npy(LIGHT)(folder.parent)
    (folder / "a.npy").symlink_to(folder.parent / "a.npy")


def subfolder(folder: Path, name: str) -> None:
    (folder / name).mkdir()


def table_hdu(folder: Path) -> None:
    table = fits.BinTableHDU.from_columns([fits.Column("a", "D", array=np.zeros(3))])
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(folder / "a.fits")


def tiled(folder: Path) -> None:
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(LIGHT.astype(np.int32))]).writeto(folder / "a.fits.fz")


def colours(name: str) -> Make:
    return lambda folder: Picture.fromarray((COLOURS * 3).astype(np.uint8)).save(folder / name)


def deep_png(folder: Path) -> None:
    (folder / "a.png").write_bytes(imagecodecs.png_encode(COLOURS.astype("u2")))


def tif(pixels: NDArray[Any], name: str = "a.tif", **options: Any) -> Make:
    return lambda folder: tifffile.imwrite(folder / name, pixels, **options)


def tifs(folder: Path) -> None:
    for kind in ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"):
        tif(LIGHT.astype(kind), f"{kind}.tif", byteorder=">", compression="zlib")(folder)
    for kind in ("u1", "u2", "u4", "i2", "f4"):
        tif(LIGHT.astype(kind), f"{kind}-white.tif", photometric="miniswhite")(folder)


def circle(folder: Path) -> None:
    tif(STACK, photometric="minisblack")(folder)
    with tifffile.TiffFile(folder / "a.tif") as file:
        first, end = file.pages[0].offset, file.pages.next_page_offset or 0
    with (folder / "a.tif").open("rb+") as damaged:
        damaged.seek(end)
        damaged.write(first.to_bytes(4, "little"))


def packed_hdf5(folder: Path) -> None:
    for name in ("Blosc", "Blosc2", "LZ4", "Zstd", "Bitshuffle"):
        write_packed(folder / f"{name}.h5", getattr(hdf5plugin, name)())


def write_packed(path: Path, packing: Any) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=LIGHT, **packing)


STACK = np.stack([LIGHT, LIGHT + 1])
COLOURS = np.dstack([LIGHT, LIGHT * 1.5, LIGHT + 9])
CUBE = np.stack([LIGHT] * 24)
CASES: dict[str, Make] = {
    "NaN in up to 10 % of the pixels": both(npy(changed(np.nan)), hdu(changed(np.nan))),
    "NaN in more": npy(changed(np.nan, 0.2)),
    "NaN everywhere": both(npy(changed(np.nan, 1)), hdu(changed(np.nan, 1))),
    "-99, -999 or -32768 along an edge, or in 8 pixels": both(npy(changed(-999)), hdu(changed(-99))),
    "1e30 along an edge, or in 8 pixels": both(npy(changed(1e30)), hdu(changed(1e30).astype("f4"))),
    "infinity": both(npy(changed(np.inf)), hdu(changed(-np.inf))),
    "zero everywhere": both(npy(np.zeros((24, 24))), hdu(np.zeros((24, 24)))),
    "another constant": npy(np.full((24, 24), 7)),
    "negative pixels": both(npy(-LIGHT), hdu(-LIGHT)),
    "pixels up to 1e38": both(npy(changed(1e38, 0.01).astype("f4")), hdu(changed(-1e38, 0.01).astype("f4"))),
    "pixels of ±1e308": npy(np.where(LIGHT > 30, 1e308, -1e308)),
    "big-endian numbers": both(npy(LIGHT.astype(">f8")), h5(a=LIGHT.astype(">i2"))),
    "integers with BZERO and BSCALE": scaled,
    "floats with the keyword BLANK": hdu(LIGHT.astype("f4"), BLANK=-32768),
    "complex numbers": both(npy(LIGHT * 1j), npz(a=LIGHT * 1j)),
    "pickled objects": npy(np.array([{}, []], dtype=object)),
    "1 x 1 pixels": both(npy([[1.0]]), hdu([[1.0]]), npz(a=[[1.0]])),
    "1 x 10,000 pixels": both(npy(np.arange(1e4)[None]), hdu(np.arange(1e4)[None]), h5(a=np.arange(1e4)[None])),
    "a flat row of pixels": both(npy(LIGHT.ravel()), npz(a=LIGHT.ravel())),
    "axes of length 1": both(npy(LIGHT[..., None]), npz(a=LIGHT[None, ..., None]), h5(a=LIGHT[None])),
    "red, green and blue in the last axis, equal": npy(np.dstack([LIGHT] * 3)),
    "red, green and blue in the last axis, of which none is named": both(npy(COLOURS), npz(a=np.stack([COLOURS] * 5))),
    "planes in a FITS file, of which none is named": hdu(np.stack([LIGHT] * 3)),
    "a cube of equal sides": both(npy(CUBE), npz(a=CUBE), h5(a=CUBE), store(CUBE)),
    "a 4-d cube in a FITS file": hdu(LIGHT.reshape(2, 2, 12, 12)),
    "five axes": npy(CUBE.reshape(2, 3, 4, 24, 24)),
    "a stack in a `.npy`, `.npz`, HDF5 or zarr": both(npy(STACK), npz(a=STACK), h5(a=STACK), store(STACK[:, None])),
    "a picture in colour": both(*(colours(name) for name in ("a.png", "a.jpg", "a.tif"))),
    "colour of 16 bits": both(deep_png, tif(COLOURS.astype("u2"), photometric="rgb")),
    "a TIFF of integers or floats of 8 to 64 bits, big-endian or with white as zero": tifs,
    "a TIFF of several pages": tif(STACK, photometric="minisblack"),
    "a TIFF whose pages go in a circle": circle,
    "a TIFF compressed with JPEG 2000": tif(LIGHT.astype("u1"), compression="jpeg2000"),
    "a TIFF for print": tif(np.dstack([LIGHT] * 4).astype("u1"), photometric="separated"),
    "HDF5 packed with Blosc, Blosc2, LZ4, Zstandard or Bitshuffle": packed_hdf5,
    "HDF5 packed with another filter": lambda folder: write_packed(folder / "a.h5", hdf5plugin.Zfp()),
    "an array in groups of HDF5 or zarr": both(h5(**{"lens/light": LIGHT}), store(LIGHT, name="lens/light")),
    "a stack of none": both(npz(a=STACK[:0]), h5(a=STACK[:0])),
    "several arrays": both(npz(a=LIGHT, b=LIGHT), h5(a=LIGHT, b=LIGHT)),
    "a table and no image": table_hdu,
    "a tile-compressed image": tiled,
    "nothing at all": cut(0),
    "half of the file; of a stack in an `.npz` nothing is saved": cut(0.5),
    "a stack in HDF5, cut off": cut_stack,
    "another format than its ending says": misnamed,
    "another kind of picture than its ending says": picture("a.png", "JPEG"),
    "a folder with the name of an image": both(
        *(partial(subfolder, name=f"a.{kind}") for kind in ("npy", "fits", "png"))
    ),
    "a `.fits.gz` or `.npz` that unpacks to a thousand times its size": packed_bombs,
    "HDF5 or zarr of which next to nothing is there": hollow,
    "a picture of 13,000 x 13,000 in 200 kB": picture_bombs,
    "a `.npy` whose header claims 268 MB and more": claim,
    "HDF5 or zarr in chunks of over 268 MB": chunk_bombs,
    "a zarr chunk that unpacks to more than it should": false_chunk,
    "HDF5 with a link to another file": linked,
    "HDF5 with its data, or parts of it, in another file": elsewhere,
    "zarr with a link in it": linked_store,
    "a link that leads out of the folder": link_out,
}


@pytest.fixture(scope="module")
def child() -> Iterator[Reader]:
    with Reader() as reader_:
        yield reader_


@contextmanager
def little_growth() -> Iterator[None]:
    """Fail where the peak memory of this process grows by too much, where the system reports it: on Linux."""
    if not Path("/proc/self/status").exists():
        yield
        return
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
    before = peak_memory()
    yield
    assert peak_memory() - before < MAX_GROWTH


def filled(result: ReadResult) -> ReadResult:
    """The result for a network that uses the whole image."""
    if not isinstance(result.image, Image):
        return result
    shape = result.image.pixels.shape
    try:
        return result._replace(image=resample_image(result.image, shape, min(shape), None))
    except ImageError as err:
        return result._replace(image=err)


def row(result: ReadResult) -> str:
    return f"read {' '.join(result.image.notes)}" if isinstance(result.image, Image) else str(result.image)


@pytest.mark.parametrize("case", CASES)
def test_an_untrusted_file_gives_the_row_of_the_table(child: Reader, tmp_path: Path, case: str) -> None:
    expected, folder = tables()[case], tmp_path / "in"
    folder.mkdir()
    CASES[case](folder)
    with little_growth():
        results = list(map(filled, child.read(list_images([folder]))))
    assert {result.path for result in results} == set(folder.iterdir())
    quoted = re.search("`(.+)`", expected)
    last = results[-1:] if "up to there" in expected else results
    assert all((quoted[1] if quoted else "read") in row(result) for result in last), list(map(row, results))
    is_read = {isinstance(result.image, Image) for result in results}
    assert is_read == {False} if quoted and not expected.startswith("read") else True in is_read


@pytest.mark.parametrize("case", CASES)
def test_errors_of_the_child_keep_their_parts(child: Reader, tmp_path: Path, case: str) -> None:
    (tmp_path / "in").mkdir()
    CASES[case](tmp_path / "in")
    for result in child.read(list_images([tmp_path / "in"])):
        if isinstance(result.image, ImageError):
            assert str(result.image.path).startswith(str(result.path))
            assert str(result.path) not in result.image.what + result.image.need + result.image.next
            assert result.image.need
            assert result.image.next


def test_the_table_holds_all_limits_and_cases() -> None:
    cells = tables()
    expected = {
        "pixels along a side": limits.MAX_SIDE,
        "images in a file": arrays.MAX_STACK,
        "bytes of a `.npy`": 16 * limits.MAX_SIDE**2,
        "bytes that an `.npz` array or a `.fits.gz` may unpack to, and a chunk of HDF5 or zarr": (
            limits.MAX_UNPACKED_BYTES
        ),
        f"times that compressed data may grow, beyond the first {limits.FREE_BYTES:,} bytes": limits.MAX_RATIO,
        "seconds for an image": reader.SECONDS,
        "bytes of memory of the process that reads": sandbox.MEMORY_BYTES,
    }
    assert {name: cells[name] for name in expected} == {name: f"{limit:,.0f}" for name, limit in expected.items()}
    endings = {ending for row in cells for ending in re.findall(r"`(\.[a-z0-9.]+)`", row.split("bytes")[0])}
    assert set(formats.READERS) <= endings
    text = (ROOT / "docs" / "images.md").read_text().split("## Files and their rows")[1]
    assert set(re.findall(r"^\| (.+?) \|", text, re.MULTILINE)) - {"the file holds"} == set(CASES)


def test_extreme_values_and_other_dtypes_are_kept(child: Reader, tmp_path: Path) -> None:
    arrays = [-LIGHT, changed(1e38, 0.01).astype("f4"), LIGHT.astype(">f8"), LIGHT.astype(">i2"), LIGHT > 30]
    paths = [tmp_path / f"{number}.npy" for number in range(len(arrays))]
    for path, pixels in zip(paths, arrays, strict=True):
        np.save(path, pixels)
    for result, pixels in zip(child.read(paths), arrays, strict=True):
        assert isinstance(result.image, Image)
        assert np.array_equal(result.image.pixels, pixels)


def test_files_damaged_at_random_are_images_or_image_errors() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "fuzz.py"), "--files", "60"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(ended.stdout.splitlines()) == 2 + 16


def test_one_bad_image_in_a_thousand_gives_999_rows_and_one_error(child: Reader, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.npy" for number in range(1000)]
    for path in paths:
        np.save(path, LIGHT)
    paths[617].write_bytes(b"nothing")
    results = list(child.read(paths))
    assert [result.path for result in results] == paths
    assert [result.path for result in results if not isinstance(result.image, Image)] == [paths[617]]
