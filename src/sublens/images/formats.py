"""One image file of any format, read within limits -> images.

Limits hold while a file is read: on bytes as they are unpacked, on pixels before they are decoded. Limits
on time and memory are those of the child process in `sandbox`. Errors name the file in `read_all`, not before.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture
from PIL import ImageFile

from sublens.errors import ImageError
from sublens.images import arrays, fits_image
from sublens.images.arrays import (
    MAX_COLOURS,
    are_equal,
    different_planes,
    images_of,
    npz_array,
    opacity_mask,
    plane_index,
)
from sublens.images.limits import (
    MAX_SIDE,
    check_exists,
    check_growth,
    check_sides,
    damaged_file,
    name_errors,
    translate_errors,
)
from sublens.images.pixels import QUANTISED_PEAK, Companions, Image, RawImage, fill_field, fill_missing
from sublens.images.signal_to_noise import to_sigma

MAX_ARCHIVE_BYTES = 2**31
"""Largest size of the images that `read_archive` reads at once, unpacked."""
PACKED_FITS = (".fits.gz", ".fit.gz", ".fits.bz2", ".fit.bz2")
PICTURES = ("PNG", "JPEG")
"""Formats that Pillow reads."""
LUMA = (0.299, 0.587, 0.114)
"""Brightness of red, green and blue, after ITU-R BT.601."""
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF files, little-endian and big-endian, and of BigTIFF."""
TIFF_BITS = (8, 16, 32, 64)
"""Bits of the samples that are read."""
LZW, JPEG = 5, 7
"""TIFF's numbers of two compressions."""
TIFF_COMPRESSIONS = {
    **{1: "no compression", LZW: "LZW", JPEG: "JPEG", 8: "Deflate", 32946: "Deflate"},
    **{32773: "PackBits", 34925: "LZMA", 50000: "Zstandard"},
}
"""Compressions of TIFF files that are read, by TIFF's numbers."""
MINISWHITE, MINISBLACK, RGB, PALETTE, YCBCR = PHOTOMETRIC = (0, 1, 2, 3, 6)
"""TIFF's numbers of the meanings of samples that are read."""
OPACITY = (1, 2)
"""TIFF's numbers of the meanings of an extra sample that is the opacity."""


class ImageSelector(NamedTuple):
    """Choice of an image in a file that holds several extensions or arrays."""

    hdu: str | None = None
    """Number or name of a FITS extension; None is the one that holds the sky."""
    array: str | None = None
    """Name of an array in an .npz, HDF5 or zarr file; None is the only one."""
    plane: str | None = None
    """Number or name of a plane (band, colour) of an array, picture or FITS cube; None is for those that have one."""
    flip_y: bool = False
    """Whether the first row of the file is the top of the image; else it is the bottom."""


class CompanionFiles(NamedTuple):
    """Files with what belongs to images, where the user names them.

    Each is a file for all images, or a folder with one of the name of each image's file; None where the image's own
    file tells.
    """

    noise: str | None = None
    """Standard deviation of each pixel."""
    psf: str | None = None
    """Point-spread function."""
    mask: str | None = None
    """Pixels that are missing, by anything but 0."""


NO_FILES = CompanionFiles()
"""Companions of images whose own files tell."""


def is_image(path: Path) -> bool:
    """Whether the name is that of an image file."""
    return _suffix(path) in READERS


def is_fits(path: Path) -> bool:
    """Whether the name is that of a FITS file."""
    return READERS.get(_suffix(path)) is _read_fits


def read(path: Path) -> Image:
    """The one image of a file that holds one; raises as `read_all` does."""
    first = next(read_all(path), None)
    if not isinstance(first, Image) or first.number is not None:
        raise ImageError("holds a stack of images", need="a single image", next="Save one image a file.", path=path)
    return first


def read_all(
    path: Path, selector: ImageSelector | None = None, companions: CompanionFiles | None = None
) -> Iterator[Image | ImageError]:
    """The images in one file, one by one.

    companions: where noise, point-spread function and mask are, if they are to be read with the pixels.

    .npy, .npz, HDF5 and zarr: an image (h, w) or a stack (n, h, w); FITS, also in gzip or bzip2 or tile-compressed;
    PNG, TIFF and JPEG, of which colour is turned to grey, and each page of a TIFF is an image.
    Missing pixels have the median of the others, and `mask` says which these are.

    Raises `ImageError`, naming the file, for anything else, and for an image that holds infinity or
    has one value everywhere; yields it instead for an image of a stack. Object arrays are refused, never
    unpickled.
    """
    check_exists(path)
    _check_format(path)
    selector = selector or ImageSelector()
    with name_errors(path):
        own = None if companions is None else _own_companions(path, selector, companions)
        for raw in READERS[_suffix(path)](path, selector):
            yield _fill_missing(raw if own is None else own.added_to(raw), path)


def _check_format(path: Path) -> None:
    if not is_image(path):
        raise ImageError(
            f"{path.suffix or 'no ending'} is no format that sublens reads",
            need=f"one of {', '.join(READERS)}",
            next="Convert it to one of these.",
            path=path,
        )


def _fill_missing(raw: RawImage, path: Path) -> Image | ImageError:
    """The image, or the error of an image of a stack that cannot be used."""
    if raw.number is None:
        return fill_missing(raw, str(path))
    try:
        return fill_missing(raw, image_name(path, raw.number))
    except ImageError as err:
        return err


class _Own(NamedTuple):
    """The companions of the images in one file, and the mask that lies beside them."""

    companions: Companions
    mask: NDArray[np.bool_] | None
    notes: tuple[str, ...]

    def added_to(self, raw: RawImage) -> RawImage:
        """An image of the file, with all this."""
        mask, shape = self.mask, raw.pixels.shape[-2:]
        if mask is not None and mask.shape != shape:
            have, need = (" x ".join(map(str, sides)) for sides in (mask.shape, shape))
            advice = "Correct it, or leave it out."
            raise ImageError(f"its mask has {have} pixels", need=f"{need}, as the image has", next=advice)
        if mask is not None and raw.mask is not None:
            mask = mask | raw.mask.reshape(shape)
        notes = (*raw.notes, *self.notes)
        return raw._replace(companions=self.companions, mask=raw.mask if mask is None else mask, notes=notes)


def _own_companions(path: Path, selector: ImageSelector, files: CompanionFiles) -> _Own:
    """Noise, point-spread function and mask of a file: as the user names them, else beside it, else inside."""
    beside = fits_image.files_beside(path)
    own = fits_image.read_companions(path, selector.hdu, selector.plane) if is_fits(path) else Companions()
    notes = list[str]()
    if file := _named_file(files.noise, path) or beside.get(fits_image.NOISE_MAP):
        source = "option" if files.noise else "map"
        own = own._replace(noise=_read_companion(file, "noise"), noise_source=source)
    if file := _named_file(files.psf, path) or beside.get(fits_image.PSF):
        own = own._replace(psf=_read_companion(file, "PSF"), psf_source=file.name)
    masks = [_read_companion(file, "mask") for file in beside.values() if file.match(fits_image.MASKS)]
    kept = [mask for mask in masks if mask.mean() <= fits_image.MAX_MASKED]
    if len(kept) < len(masks):
        notes.append("a mask beside it marks most of the pixels, so it was not used")
    if file := _named_file(files.mask, path):
        kept = [_read_companion(file, "mask")]
    notes += [f"{kind}: {name} by option" for kind, name in files._asdict().items() if name]
    return _Own(own, np.logical_or.reduce(kept) if kept else None, tuple(notes))


def _named_file(name: str | None, path: Path) -> Path | None:
    """The file that an option names for the image at `path`: itself, or that of the image's name in a folder."""
    if name is None or not Path(name).is_dir() or is_image(Path(name)):
        return None if name is None else Path(name)
    return Path(name, path.name)


def _read_companion(path: Path, role: str) -> NDArray[Any]:
    """The noise, mask or PSF, by its role, in a file of any format; raises `ImageError` that names it."""
    check_exists(path)
    _check_format(path)
    with name_errors(path):
        if is_fits(path):
            return fits_image.read_companion(path, role)
        planes = [raw.pixels for raw, _ in zip(READERS[_suffix(path)](path, ImageSelector()), range(2), strict=False)]
        if len(planes) != 1 or planes[0].ndim != 2:
            raise ImageError(f"holds no single {role}", need="one plane (h, w)", next="Save one plane a file.")
    if role == "mask":
        return np.asarray(planes[0] != 0)
    return to_sigma(planes[0], role) if role == "noise" else planes[0].astype(np.float64)


def image_name(path: Path, number: int | None) -> str:
    """Name of an image in errors: of its file, and its index in a stack."""
    return str(path) if number is None else f"{path}, image {number}"


def read_counts(path: Path) -> NDArray[np.uint16]:
    """Counts above the minimum [h, w] of a file that holds one image; raises as `read_filled` does."""
    return read_filled(path).counts()


def read_filled(path: Path) -> Image:
    """The one image of a file, its missing pixels filled; raises as `read` does, and where too many are missing."""
    with name_errors(path):
        image = read(path)
        height, width = image.pixels.shape
        return fill_field(image, (slice(0, height), slice(0, width)))


def read_archive(path: Path) -> NDArray[np.uint16]:
    """Counts above the minimum [n, h, w] of an .npz file's array `counts`; raises `ImageError`."""
    check_exists(path)
    with name_errors(path):
        counts = npz_array(path, "counts", MAX_ARCHIVE_BYTES)
        if counts.ndim != 3 or counts.dtype.kind not in "ui" or not len(counts):
            raise ImageError(
                f"`counts` is {counts.dtype} {counts.shape}",
                need="whole numbers (n, height, width)",
                next="Save the photon counts under that name.",
            )
        counts = counts.astype(np.int64) - counts.min(axis=(1, 2), keepdims=True).astype(np.int64)
        if counts.max() > QUANTISED_PEAK or not counts.any(axis=(1, 2)).all():
            raise ImageError(
                f"an image has {counts.max():,} counts above its minimum, or none",
                need=f"1 to {QUANTISED_PEAK:,}",
                next="Leave it out.",
            )
    return np.asarray(counts, dtype=np.uint16)


def _suffix(path: Path) -> str:
    """The end of the name, which decides the format: .npy, .fits.gz ..."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    return "".join(suffixes) if suffixes[-1:] in ([".gz"], [".bz2"]) else "".join(suffixes[-1:])


# --- pictures ---------------------------------------------------------------------------------


def _read_picture(path: Path, plane: str | None) -> Iterator[RawImage]:
    with translate_errors("a picture"), path.open("rb") as file:
        is_tiff = file.read(4) in TIFF_MAGIC
    if is_tiff:
        yield from _read_tiff(path, plane)
        return
    with translate_errors("a PNG, TIFF or JPEG picture"), _picture(path) as picture:
        check_sides(picture.size[::-1])
        planes, has_opacity = _deep_planes(path) if _is_deep(picture) else _planes(picture)
    yield _from_planes(planes, plane, has_opacity=has_opacity, is_colour=len(planes) >= 3)


def _picture(path: Path) -> ImageFile.ImageFile:
    try:
        return Picture.open(path, formats=PICTURES)
    except Picture.DecompressionBombError as err:
        raise ImageError("has too many pixels", need=f"sides of at most {MAX_SIDE}", next="Cut out the lens.") from err


def _is_deep(picture: ImageFile.ImageFile) -> bool:
    """Whether it is in colour of 16 bits, or grey of 16 bits with opacity, of which Pillow drops eight bits."""
    return picture.mode.startswith("RGB") and any(";16" in str(tile.args) for tile in picture.tile)


def _deep_planes(path: Path) -> tuple[NDArray[np.generic], bool]:
    """The planes [n, h, w] of a PNG picture of 16 bits, and whether the last is the opacity."""
    import imagecodecs  # slow to import

    planes = np.moveaxis(np.atleast_3d(imagecodecs.png_decode(path.read_bytes())), -1, 0)
    return planes, len(planes) in (2, 4)


def _planes(picture: Picture.Image) -> tuple[NDArray[np.generic], bool]:
    """The planes [n, h, w] of a picture, and whether the last is the opacity."""
    if picture.mode == "PA" or ("transparency" in picture.info and picture.mode in ("P", "L", "RGB")):
        picture = picture.convert("LA" if picture.mode == "L" else "RGBA")
    elif picture.mode not in ("1", "L", "LA", "F", "RGB", "RGBA") and not picture.mode.startswith("I"):
        picture = picture.convert("RGB")
    return np.moveaxis(np.atleast_3d(np.asarray(picture)), -1, 0), picture.mode in ("LA", "RGBA")


def _from_planes(
    planes: NDArray[np.generic], plane: str | None, number: int | None = None, *, has_opacity: bool, is_colour: bool
) -> RawImage:
    """The image of that plane of a picture, or of all, turned to grey; transparent pixels are missing."""
    if plane is not None:
        return RawImage(planes[plane_index(plane, len(planes))], number, is_picture=True)
    colours = planes[:-1] if has_opacity else planes
    mask = opacity_mask(planes[-1]) if has_opacity else None
    if are_equal(colours):
        return RawImage(colours[0], number, is_picture=True, mask=mask)
    if not is_colour or len(colours) != 3:
        raise different_planes(len(planes))
    return RawImage(_grey(colours), number, is_picture=True, notes=("colours turned to grey",), mask=mask)


def _grey(colours: NDArray[np.generic]) -> NDArray[np.generic]:
    """The brightness of red, green and blue [3, h, w], in single bytes where they are."""
    grey = sum(weight * plane.astype(np.float64) for weight, plane in zip(LUMA, colours, strict=True))
    return np.rint(grey).astype(colours.dtype) if colours.dtype.itemsize == 1 else np.asarray(grey)


def _read_tiff(path: Path, plane: str | None) -> Iterator[RawImage]:
    import tifffile  # slow to import

    n_bytes = path.stat().st_size
    plain: dict[str, Any] = {f"is_{kind}": False for kind in ("lsm", "scanimage", "ndpi")}  # which count pages anew
    with translate_errors("a TIFF file"), path.open("rb") as file, tifffile.TiffFile(file, **plain) as tif:
        pages = _tiff_pages(tif)
        if len(pages) == 1:
            yield _tiff_image(pages[0], n_bytes, plane)
        elif min(pages[0].shaped[2:4]) <= MAX_COLOURS:  # an array (h, w, n) that was written as h pages
            check_growth(len(pages) * pages[0].nbytes, n_bytes)
            array = np.concatenate([_tiff_planes(page, n_bytes) for page in pages])
            yield from (raw._replace(is_picture=True) for raw in images_of(array, plane))
        elif plane is not None and all(page.samplesperpixel == 1 for page in pages):
            yield _tiff_image(pages[plane_index(plane, len(pages))], n_bytes, None)
        else:
            yield from (_tiff_image(page, n_bytes, plane, number) for number, page in enumerate(pages))
        if _next_offset(tif):
            raise damaged_file("a TIFF file")


def _tiff_pages(tif: Any) -> list[Any]:
    """The pages of a TIFF file but for masks and smaller copies; raises `ImageError` where they go in a circle."""
    pages, offsets = [], set()
    for page in tif.pages:
        if page.offset in offsets:
            raise damaged_file("a TIFF file")
        offsets.add(page.offset)
        if not page.is_reduced and not page.is_mask:
            pages.append(page)
    if not pages:
        raise ImageError("holds no image", need="a page with one", next="Leave this file out.")
    return pages


def _next_offset(tif: Any) -> int:
    """Where the page after the last lies that could be read; 0 where there is none."""
    tif.filehandle.seek(tif.pages.next_page_offset)
    return int.from_bytes(tif.filehandle.read(tif.tiff.offsetsize), "little")  # of any order, as it must be 0


def _tiff_image(page: Any, n_bytes: int, plane: str | None, number: int | None = None) -> RawImage:
    planes, extra = _tiff_planes(page, n_bytes), tuple(page.extrasamples)
    is_colour = page.photometric in (RGB, PALETTE, YCBCR)
    has_opacity = len(extra) == 1 and (is_colour or extra[0] in OPACITY)
    return _from_planes(planes, plane, number, has_opacity=has_opacity, is_colour=is_colour)


def _tiff_planes(page: Any, n_bytes: int) -> NDArray[np.generic]:
    """The planes [n, h, w] of a page of a TIFF file of that size, bright where the light is."""
    _check_tiff(page, n_bytes)
    samples = _tiff_samples(page)
    planes = np.concatenate(np.moveaxis(samples[:, 0], -1, 1)).astype(samples.dtype.newbyteorder("="))
    if page.photometric == MINISWHITE:
        brightest = {"u": 2**page.bitspersample - 1, "i": -1, "f": 0}[planes.dtype.kind]
        planes[0] = brightest - planes[0]
    elif page.photometric == PALETTE:
        planes = (page.colormap[:, planes[0]] // 256).astype(np.uint8)
    return planes


def _tiff_samples(page: Any) -> NDArray[np.generic]:
    """The samples of a page [separate planes, 1, h, w, planes together]."""
    if page.compression != LZW:
        return np.asarray(page.asarray(squeeze=False, maxworkers=1))
    import imagecodecs  # slow to import

    page.parent.filehandle.seek(0)
    whole = page.parent.filehandle.read()
    samples = imagecodecs.tiff_decode(whole, index=page.index)  # by libtiff: tifffile's LZW may crash on damage
    if samples.dtype != page.dtype.newbyteorder("="):
        raise damaged_file("a TIFF file")
    return samples.reshape(page.shaped)


def _check_tiff(page: Any, n_bytes: int) -> None:
    """Raise `ImageError` for a page that is no image of ours, or that the file does not hold whole."""
    check_sides(page.shaped[2:4])
    if page.dtype is None or page.dtype.kind not in "fiu" or page.bitspersample not in TIFF_BITS:
        what = f"holds {page.bitspersample}-bit samples, {page.dtype or 'of an unknown kind'}"
        raise ImageError(what, need="real numbers", next="Save it with samples of 8, 16, 32 or 64 bits.")
    if page.compression not in TIFF_COMPRESSIONS:
        what = f"is compressed with {_name(page.compression)}"
        raise ImageError(what, need=", ".join(TIFF_COMPRESSIONS.values()), next="Save it without compression.")
    if page.photometric not in PHOTOMETRIC or (page.photometric == YCBCR and page.compression != JPEG):
        what = f"holds colours as {_name(page.photometric)}"
        raise ImageError(what, need="grey, RGB or a palette", next="Save it in grey.")
    check_growth(page.nbytes, n_bytes)
    ends = [start + size for start, size in zip(page.dataoffsets, page.databytecounts, strict=True)]
    is_whole = len(ends) == math.prod(page.chunked) and min(page.databytecounts) > 0 and max(ends) <= n_bytes
    if page.shaped[1] != 1 or not is_whole:  # else tifffile would leave the missing part blank
        raise damaged_file("a TIFF file")


def _name(code: Any) -> str:
    """The name of a code in a TIFF file, or its number."""
    return str(getattr(code, "name", code))


def _read_fits(path: Path, selector: ImageSelector) -> Iterator[RawImage]:
    yield fits_image.read_image(path, selector.hdu, selector.plane)


READERS: dict[str, Callable[[Path, ImageSelector], Iterator[RawImage]]] = {
    ".npy": lambda path, selector: arrays.read_npy(path, selector.plane),
    ".npz": lambda path, selector: arrays.read_npz(path, selector.array, selector.plane),
    **dict.fromkeys((".fits", ".fit", ".fts", ".fz", *PACKED_FITS), _read_fits),
    **dict.fromkeys(
        (".png", ".jpg", ".jpeg", ".tif", ".tiff"), lambda path, selector: _read_picture(path, selector.plane)
    ),
    **dict.fromkeys((".h5", ".hdf5"), lambda path, selector: arrays.read_hdf5(path, selector.array, selector.plane)),
    ".zarr": lambda path, selector: arrays.read_zarr(path, selector.array, selector.plane),
}
"""Function that reads a file, by the end of its name."""
