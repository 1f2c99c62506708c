"""Damaged image files, read as a user's are: the outcomes, and their cost.

    python benchmarks/fuzz.py --files 10000

A few small images of each format are written, then damaged at random: bits flipped, numbers in binary
and in text replaced, parts cut out, put in or taken from another file. Half of them are damaged before
they are packed or summed, so that the damage gets past that. A `Reader` reads them all, with a
whole file after every batch, which must still be read.

Prints a row for each format, with the library that reads it: files that gave an image, and that gave an
`ImageError` alone; those that made the child process crash, run out of memory or hang, and those that
did so only after the files before them; exceptions of any other kind; files without an answer; files over 5 s; the
longest; the growth of this process's peak memory. Exits with 1 where there was an exception, a file over 5 s or
without an answer, 50 MB of growth, or a whole file that was not read.

The damage is drawn anew in each run, and no file is kept: a crash of a library is counted, not handed on.
"""

import argparse
import bz2
import gzip
import io
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import h5py
import hdf5plugin
import imagecodecs
import numpy as np
import tifffile
import zarr
from astropy.io import fits
from numpy.typing import NDArray
from PIL import Image as Picture
from zarr.codecs import BloscCodec

from sublens.images.formats import ImageSelector
from sublens.images.pixels import Image
from sublens.images.reader import SECONDS, Reader

BATCH = 200
SLACK_SECONDS = 0.5
"""Time that the parent takes beside the child's."""
MAX_GROWTH = 50e6
"""Largest growth of this process's peak memory while a format is read, bytes."""
MEMORY = Path("/dev/shm")
"""A folder in memory, on Linux."""
NUMBERS = (0, 1, 2, 7, 8, 127, 128, 255, 256, 4096, 32767, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63)

Pixels = NDArray[np.generic]
Content = dict[str, bytes]
"""The files of one image, by their paths below it: a single one with the path '', or those of a zarr store."""


# --- whole files ------------------------------------------------------------------------------


def light(kind: str, *shape: int) -> Pixels:
    """Photon counts as another type."""
    return np.random.default_rng(0).poisson(60, shape or (24, 24)).astype(kind)


def npy() -> Iterator[bytes]:
    for pixels in (light("f8"), light("f4", 1, 20, 24), light(">i2"), np.asfortranarray(light("u1"))):
        for version in ((1, 0), (2, 0)):
            file = io.BytesIO()
            np.lib.format.write_array(file, pixels, version, allow_pickle=False)
            yield file.getvalue()


def npy_stacks() -> Iterator[bytes]:
    yield from npy()
    for shape in ((4, 24, 24), (24, 24, 6), (1, 24, 24, 1), (3, 24, 24, 1)):
        file = io.BytesIO()
        np.save(file, light("f4", *shape))
        yield file.getvalue()


def fits_images() -> Iterator[bytes]:
    sky = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.0, "CRVAL2": 2.0, "CRPIX1": 12.5, "CRPIX2": 12.5}
    angles = {"CD1_1": -1.4e-5, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 1.4e-5}
    steps = {"CUNIT1": "arcsec", "CUNIT2": "arcsec", "CDELT1": 0.05, "CDELT2": 0.05}
    table = fits.BinTableHDU.from_columns([fits.Column("a", "D", array=np.zeros(3))])
    yield hdu_bytes(fits.PrimaryHDU(light("f4")))
    yield hdu_bytes(fits.PrimaryHDU(light("u2"), fits.Header({**sky, **angles})))
    yield hdu_bytes(fits.PrimaryHDU(), table, fits.ImageHDU(light("i2"), fits.Header(steps), "SCI"))
    companions = [fits.ImageHDU(light(kind), name=name) for name, kind in (("ERR", "f4"), ("DQ", "i2"), ("PSF", "f4"))]
    yield hdu_bytes(fits.PrimaryHDU(), fits.ImageHDU(light("f4"), fits.Header({**sky, **angles}), "SCI"), *companions)


def fits_tiles() -> Iterator[bytes]:
    for method in ("RICE_1", "GZIP_1", "GZIP_2", "HCOMPRESS_1", "PLIO_1"):
        yield hdu_bytes(fits.PrimaryHDU(), fits.CompImageHDU(light("i4"), compression_type=method))
    yield hdu_bytes(fits.PrimaryHDU(), fits.CompImageHDU(light("f4"), compression_type="RICE_1", tile_shape=(8, 8)))


def hdu_bytes(*hdus: Any) -> bytes:
    file = io.BytesIO()
    fits.HDUList(list(hdus)).writeto(file)
    return file.getvalue()


def picture_bytes(kind: str, pixels: Pixels, mode: str | None = None, **options: Any) -> bytes:
    file, picture = io.BytesIO(), Picture.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(file, kind, **options)
    return file.getvalue()


def png8() -> Iterator[bytes]:
    for mode in ("L", "RGB", "RGBA", "P", "1"):
        yield picture_bytes("PNG", light("u1"), mode, bits=4 if mode == "P" else 8)


def png16() -> Iterator[bytes]:
    yield picture_bytes("PNG", light("u2"))
    yield picture_bytes("PNG", light("u2", 40, 16), dpi=(72, 72), optimize=True)


def png48() -> Iterator[bytes]:
    for n_planes in (2, 3, 4):
        yield bytes(imagecodecs.png_encode(light("u2", 24, 24, n_planes)))


def tif(kind: str) -> Iterator[bytes]:
    for packing in ("none", "lzw", "zlib", "packbits", "zstd", "lzma"):
        yield tif_bytes(light(kind), compression=packing)
    yield tif_bytes(light(kind, 3, 24, 24), photometric="minisblack")
    yield tif_bytes(light(kind), compression="zlib", predictor=True, byteorder=">", rowsperstrip=7)
    yield tif_bytes(light(kind, 24, 24, 3), photometric="rgb", tile=(16, 16), bigtiff=True)
    yield tif_bytes(light(kind), photometric="miniswhite")
    if kind == "u1":
        yield tif_bytes(light(kind), compression="jpeg")
        yield picture_bytes("TIFF", light(kind), "P")


def tif_bytes(pixels: Pixels, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def jpg() -> Iterator[bytes]:
    for mode in ("L", "RGB", "CMYK"):
        yield picture_bytes("JPEG", light("u1"), mode)
        yield picture_bytes("JPEG", light("u1"), mode, progressive=True, dpi=(72, 72))


def hdf5() -> Iterator[bytes]:
    for version in ("earliest", "latest"):
        for name, pixels, options in (
            ("light", light("f4"), {}),
            ("light", light("f8", 4, 24, 24), {"chunks": (2, 12, 24), "compression": "gzip"}),
            ("light", light("i2"), {"compression": "lzf", "shuffle": True, "fletcher32": True}),
            ("lens/light", light("u1", 4, 24, 24), {"maxshape": (None, 24, 24)}),
        ):
            written = io.BytesIO()
            with h5py.File(written, "w", libver=version) as file:
                file.create_dataset(name, data=pixels, **options)
            yield written.getvalue()


def hdf5_packed() -> Iterator[bytes]:
    blosc = (hdf5plugin.Blosc(cname=name) for name in ("blosclz", "lz4", "lz4hc", "zlib", "zstd"))
    for packing in (*blosc, hdf5plugin.Blosc2(), hdf5plugin.LZ4(), hdf5plugin.Zstd(), hdf5plugin.Bitshuffle()):
        written = io.BytesIO()
        with h5py.File(written, "w") as file:
            file.create_dataset("light", data=light("f4", 4, 24, 24), chunks=(2, 24, 24), **packing)
        yield written.getvalue()


def stores() -> Iterator[Content]:
    makes: tuple[tuple[Literal[2, 3], Pixels, dict[str, Any]], ...] = (
        (3, light("f4"), {"chunks": (12, 24)}),
        (3, light("i2", 4, 24, 24), {"chunks": (2, 24, 24), "compressors": None}),
        (3, light("u1"), {"chunks": (6, 6), "shards": (12, 24)}),
        (3, light("f8"), {"compressors": BloscCodec()}),
        (2, light("f4"), {}),
        (2, light("f4"), {"compressors": None}),
    )
    for version, pixels, options in makes:
        with tempfile.TemporaryDirectory() as folder:
            for name in (None, "light", "lens/light"):
                path = Path(folder, f"{name}".replace("/", "-"))
                if name:
                    zarr.open_group(path, mode="w", zarr_format=version)
                zarr.create_array(path, name=name, data=pixels, zarr_format=version, **options)
                files = sorted(file for file in path.rglob("*") if file.is_file())
                yield {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


# --- damage -----------------------------------------------------------------------------------


def offset(data: bytes, rng: random.Random) -> int:
    """A random offset in `data`, more often near its beginning."""
    return rng.randrange(min(len(data), rng.choice((64, 512, len(data)))) + 1)


def span(data: bytes, rng: random.Random) -> slice:
    start = offset(data, rng)
    return slice(start, start + rng.choice((1, 4, 16, 100, 1000)))


def flip(data: bytes, other: bytes, rng: random.Random) -> bytes:
    flipped = bytearray(data + b"\0")
    for _ in range(rng.choice((1, 1, 2, 8))):
        flipped[offset(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(flipped[: len(data)])


def renumber(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Another number in binary."""
    kind = rng.choice("BHIQ")
    n_bytes, start = struct.calcsize(kind), offset(data, rng)
    number = rng.choice((rng.choice(NUMBERS), rng.getrandbits(64))) % 2 ** (8 * n_bytes)
    return data[:start] + struct.pack(rng.choice("<>") + kind, number) + data[start + n_bytes :]


def reword(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Another number, or word, in text; half of the time of the same length."""
    words = list(re.finditer(rng.choice((rb"[0-9]+", rb"[0-9]+", rb"[A-Za-z_]+")), data[:6000]))
    if not words:
        return data
    old = rng.choice(words)
    new = rng.choice((str(rng.choice(NUMBERS)).encode(), b"-1", b"1e308", b"null", b"''", rng.choice(words)[0]))
    if rng.random() < 0.5:
        new = new[: len(old[0])].rjust(len(old[0]))
    return data[: old.start()] + new + data[old.end() :]


def truncate(data: bytes, other: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def cut_out(data: bytes, other: bytes, rng: random.Random) -> bytes:
    out = span(data, rng)
    return data[: out.start] + data[out.stop :]


def put_in(data: bytes, other: bytes, rng: random.Random) -> bytes:
    start = offset(data, rng)
    new = rng.choice((rng.randbytes(rng.choice((1, 4, 100))), bytes(rng.choice((1, 8, 3000))), data[span(data, rng)]))
    return data[:start] + new + data[start:]


def paste(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """A part of another file in place of a part, or of the rest."""
    start, new = offset(data, rng), other[span(other, rng)]
    return data[:start] + rng.choice((new + data[start + len(new) :], other[offset(other, rng) :]))


DAMAGES = (flip, flip, renumber, renumber, reword, reword, truncate, cut_out, put_in, paste)


def damaged(data: bytes, other: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = rng.choice(DAMAGES)(data, other, rng)
    return data


# --- formats ----------------------------------------------------------------------------------


def unchanged(data: bytes) -> bytes:
    return data


def zipped(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[len(data) % 2]) as archive:
        archive.writestr(zipfile.ZipInfo("light.npy"), data)
    return file.getvalue()


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def summed(data: bytes) -> bytes:
    """A PNG picture whose chunks have the right checksums, as far as they can be told apart."""
    fixed, start = bytearray(data), 8
    while start + 12 <= len(fixed):
        end = start + 8 + int.from_bytes(fixed[start : start + 4], "big")
        if end + 4 > len(fixed):
            break
        fixed[end : end + 4] = zlib.crc32(fixed[start + 4 : end]).to_bytes(4, "big")
        start = end + 4
    return bytes(fixed)


class Format(NamedTuple):
    """Files of one kind."""

    suffix: str
    library: str
    """The library that reads them."""
    samples: Callable[[], Iterable[bytes | Content]]
    pack: Callable[[bytes], bytes] = unchanged
    """The last step of making a file; damage done before it is not noticed by checksums."""


FORMATS = {
    "npy": Format(".npy", "numpy", npy_stacks),
    "npz": Format(".npz", "numpy", npy_stacks, zipped),
    "fits": Format(".fits", "astropy", fits_images),
    "fits.gz": Format(".fits.gz", "astropy", fits_images, gzipped),
    "fits.bz2": Format(".fits.bz2", "astropy", fits_images, bz2.compress),
    "fz": Format(".fits.fz", "astropy with CFITSIO", fits_tiles),
    "png8": Format(".png", "Pillow", png8, summed),
    "png16": Format(".png", "Pillow", png16, summed),
    "png48": Format(".png", "imagecodecs with libpng", png48, summed),
    "tif8": Format(".tif", "tifffile with imagecodecs and libtiff", lambda: tif("u1")),
    "tif16": Format(".tif", "tifffile with imagecodecs and libtiff", lambda: tif("u2")),
    "tif32": Format(".tif", "tifffile with imagecodecs and libtiff", lambda: tif("f4")),
    "jpg": Format(".jpg", "Pillow with libjpeg", jpg),
    "h5": Format(".h5", "h5py", hdf5),
    "h5 packed": Format(".h5", "h5py with hdf5plugin", hdf5_packed),
    "zarr": Format(".zarr", "zarr with numcodecs", stores),
}


def contents(form: Format) -> list[Content]:
    return [sample if isinstance(sample, dict) else {"": sample} for sample in form.samples()]


def mutant(samples: Sequence[Content], pack: Callable[[bytes], bytes], rng: random.Random) -> Content:
    """One of the samples, one file of which is damaged."""
    sample, other = rng.choice(samples), rng.choice(samples)
    name = rng.choice(sorted(sample))
    data, foreign = sample[name], rng.choice(sorted(other.items()))[1]
    is_inside = rng.random() < 0.5
    data = pack(damaged(data, foreign, rng)) if is_inside else damaged(pack(data), pack(foreign), rng)
    return {**sample, name: data}


def write(path: Path, content: Content) -> Path:
    for name, data in content.items():
        file = path / name if name else path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return path


# --- reading ----------------------------------------------------------------------------------


class Outcomes(NamedTuple):
    """Outcomes of files, by their paths."""

    kinds: dict[Path, str]
    """`image`, `error`, `silent` for no answer, or as `failure` gives it."""
    seconds: dict[Path, float]


def read(reader: Reader, paths: Sequence[Path]) -> Outcomes:
    """Read all files."""
    kinds, seconds = dict.fromkeys(paths, "silent"), dict.fromkeys(paths, 0.0)
    clock = time.monotonic()
    for result in reader.read(paths):
        clock, before = time.monotonic(), clock
        seconds[result.path] += clock - before
        if isinstance(result.image, Image):
            kinds[result.path] = "image"
        elif "reading it fails" in result.image.what:
            kinds[result.path] = failure(result.path)
        elif "took too long" in result.image.what:
            kinds[result.path] = "hang"
        elif kinds[result.path] == "silent":
            kinds[result.path] = "error"
    return Outcomes(kinds, seconds)


def failure(path: Path) -> str:
    """How a child ends that reads the file alone: `crash`, `memory`, `hang`, or `not alone` if it does not end."""
    request = json.dumps({"path": os.fsencode(path).hex(), "selector": ImageSelector()}).encode() + b"\n"
    command = [sys.executable, "-m", "sublens.images.reader"]
    try:
        child = subprocess.run(command, input=request, capture_output=True, timeout=10 * SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return "hang"
    if child.returncode:
        return "memory" if child.returncode > 0 and b"MemoryError" in child.stderr else "crash"
    return "not alone"


def peak_bytes() -> int:
    """Peak memory of this process since `forget_peak`; 0 where that is not known."""
    with suppress(OSError):
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    return 0


def forget_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


class Tally(NamedTuple):
    """Outcomes of the files of one format."""

    counts: Counter[str]
    longest: float
    """Longest time for a file, s."""
    growth: float
    """Growth of the peak memory, bytes."""

    @property
    def is_good(self) -> bool:
        """Whether nothing happened that must not."""
        bad = ("exception", "silent", "slow", "whole file lost")
        return not any(self.counts[kind] for kind in bad) and self.growth < MAX_GROWTH


def tally(name: str, reader: Reader, n_files: int, folder: Path) -> Tally:
    """Make, read and count the mutants of one format."""
    form, counts, longest, rng = FORMATS[name], Counter[str](), 0.0, random.Random()
    samples = contents(form)
    whole = {part: form.pack(data) for part, data in samples[0].items()}
    forget_peak()
    before = peak_bytes()
    for start in range(0, n_files, BATCH):
        paths = [
            write(folder / name / f"{number}{form.suffix}", mutant(samples, form.pack, rng))
            for number in range(start, min(start + BATCH, n_files))
        ]
        intact = write(folder / name / f"whole{form.suffix}", whole)
        try:
            kinds, seconds = read(reader, [*paths, intact])
        except Exception:  # counted; it must not happen
            counts["exception"] += 1
        else:
            counts["whole file lost"] += kinds.pop(intact) != "image"
            counts.update(kinds.values())
            counts["slow"] += sum(seconds[path] > SECONDS + SLACK_SECONDS for path in paths)
            longest = max(longest, *seconds.values())
        shutil.rmtree(folder / name)
    return Tally(counts, longest, peak_bytes() - before)


COLUMNS = (
    *("image", "error", "crash", "memory", "hang", "not alone"),
    *("exception", "silent", "slow", "whole file lost"),
)


def main() -> None:
    """Read all formats and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000, help="of each format")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    options = parser.parse_args()
    print("| format | library | " + " | ".join(COLUMNS) + " | longest, s | growth, MB |")
    print("|---|---" + "|---:" * (len(COLUMNS) + 2) + "|", flush=True)
    is_good = True
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as scratch, Reader() as reader:
        for name in options.formats:
            row = tally(name, reader, options.files, Path(scratch))
            cells = " | ".join(f"{row.counts[kind]:,}" for kind in COLUMNS)
            start = f"| {name} | {FORMATS[name].library} | {cells} |"
            print(f"{start} {row.longest:.1f} | {row.growth / 1e6:.1f} |", flush=True)
            is_good &= row.is_good
    sys.exit(not is_good)


if __name__ == "__main__":
    main()
