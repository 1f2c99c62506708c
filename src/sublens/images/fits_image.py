"""FITS images: the extension with the image, its companions with noise, mask and PSF, and its pixels."""

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sublens.errors import ImageError
from sublens.images import wcs
from sublens.images.arrays import plane_index
from sublens.images.limits import check_sides, damaged_file, name_errors, translate_errors, unpack
from sublens.images.pixels import Companions, RawImage
from sublens.images.signal_to_noise import MASKED_NOISE, photometry, to_sigma

FITS_MAGIC = b"SIMPLE  ="
"""First bytes of every FITS file."""
ROLES = {
    **dict.fromkeys(("ERR", "ERROR", "RMS", "SIGMA", "STD", "STDDEV", "UNCERT"), "noise"),
    **dict.fromkeys(("VAR", "VARIANCE"), "variance"),
    **dict.fromkeys(("WHT", "WGT", "WEIGHT", "WEIGHTS", "IVAR", "INVVAR"), "weight"),
    **dict.fromkeys(("MASK", "MSK", "DQ", "FLAGS", "BPM", "BADPIX"), "mask"),
    "PSF": "PSF",
    **dict.fromkeys(("CON", "CTX", "CONTEXT", "EXP", "EXPMAP", "EXPTIME", "AREA", "SEG", "SEGMAP"), "other"),
    **dict.fromkeys(("MODEL", "RESIDUAL", "RESIDUALS", "BKG", "BACKGROUND", "PREVIEW", "THUMBNAIL"), "other"),
    **dict.fromkeys(("WCSDVARR", "D2IMARR", "WCSCORR"), "other"),
}
"""Content of an extension that is no image of the sky, by a word of its name; NOISE... is noise as well."""
RANKS = ("SCI", "SCIENCE", "DATA", "IMAGE", "VIS", "FLUX", "PRIMARY")
"""Words in the names of extensions with the image of the sky, the first to be chosen first."""
NOISE_ROLES = ("noise", "variance", "weight")
"""Contents of an extension that give the noise, the first to be taken first."""
PLAIN_WORDS = frozenset(RANKS) - {"VIS"} | {"MAP"}
"""Words in the names of extensions that name no band."""
DATA, NOISE_MAP, PSF, INFO, MASKS = "data.fits", "noise_map.fits", "psf.fits", "info.json", "mask*.fits"
"""File names of an image, and beside it its noise, point-spread function, pixel scale and masks, as PyAutoLens has
them."""
MAX_MASKED = 0.5
"""Largest share of the pixels that a mask may mark as missing; beyond, it tells what to analyse."""
MAX_MARKED = 0.99
"""Largest share of the pixels that noise or weights may mark as missing; beyond, they were never filled in."""
JWST_BAD = 1
"""Bit of a pixel that should not be used, in the DQ extensions of JWST."""
RUBIN_PLANES = ("MP_BAD", "MP_SAT", "MP_CR", "MP_NO_DATA", "MP_UNMASKEDNAN")
"""Keywords with the numbers of the bits of missing pixels, in the masks of Rubin's and HSC's pipelines."""
SAMPLED_ROWS = 64
"""Rows by which a companion of an image that is read in parts is believed or not."""
LISTED = 20
"""Most extensions that an error lists."""
POGSON = 2.5 / math.log(10)
"""Magnitudes in a factor of e."""


class Extension(NamedTuple):
    """An extension of a FITS file that holds an image of any kind, by what its name says."""

    number: int
    name: str
    hdu: Any
    role: str
    """`image`, or the content of `ROLES`."""
    band: tuple[str, ...]
    """The other words of the name, as VIS in VIS_RMS."""
    rank: int
    """Index in `RANKS`, their number where the name has no such word."""

    def label(self) -> str:
        """Name for notes and errors."""
        return self.name or f"extension {self.number}"

    def most_marked(self) -> float:
        """Largest share of the pixels that it may mark as missing."""
        return MAX_MASKED if self.role == "mask" else MAX_MARKED

    def marks_too_much(self, share: float) -> str:
        """The note on an extension that marks so much that it is not used."""
        return f"{self.label()} marks {share:.0%} of the pixels, so it was not used as a mask"


class FitsImage(NamedTuple):
    """The extension with the image and those that belong to it."""

    hdu: Any
    companions: tuple[Extension, ...]
    """Extensions with noise, mask or PSF of that image."""
    notes: tuple[str, ...]
    """The names of them all, where the file holds several."""
    primary: Any = MappingProxyType({})
    """Header of the first extension, which tells of all."""

    def beside(self, part: tuple[slice, ...] | None = None, index: tuple[int, ...] = ()) -> Companions:
        """Noise, point-spread function and photometry of the image, or of a part of it.

        index: that of the plane, where the image is one of a cube.
        """
        about = photometry(self.hdu.header, self.primary)
        noise = next((entry for role in NOISE_ROLES for entry in self.companions if entry.role == role), None)
        if noise is not None:
            source = "weight" if noise.role == "weight" else "map"
            values = to_sigma(self._plane(noise, part, index), noise.role)
            about = about._replace(noise=values, noise_source=source)
        psf = next((entry for entry in self.companions if entry.role == "PSF"), None)
        if psf is None:
            return about
        kernel = _pixels(psf.hdu, _index(psf.hdu, "0")).astype(np.float64)
        return about._replace(psf=kernel, psf_source=psf.label())

    def _plane(self, companion: Extension, part: tuple[slice, ...] | None, index: tuple[int, ...]) -> NDArray[Any]:
        """The pixels of a companion that belong to the image, or to a part of it; all of one of another shape."""
        leading = self._leading(companion, index)
        if leading is None or part is None:
            return _pixels(companion.hdu, _index(companion.hdu, "0") if leading is None else leading)
        return np.asarray(companion.hdu.section[(*leading, *part)])

    def missing(self, part: tuple[slice, ...] | None = None, index: tuple[int, ...] = ()) -> "Missing":
        """The pixels of the image, or of a part of it, that the companions mark as missing.

        index: that of the plane, where the image is one of a cube. Of a part all is believed; see `decided`.
        """
        mask, notes = np.zeros((1, 1), np.bool_), list[str]()
        for companion in self.companions:
            leading = self._leading(companion, index)
            if leading is None:
                continue
            rows = (*leading, *(part or (slice(None), slice(None))))
            marked = self._marked(companion, np.asarray(companion.hdu.section[rows]))
            if part is None and marked.mean() > companion.most_marked():
                notes.append(companion.marks_too_much(marked.mean()))
            else:
                mask = marked | mask
        return Missing(mask if mask.any() else None, tuple(notes))

    def decided(self) -> "FitsImage":
        """The image without companions that mark too much, by a sample of rows, before parts of it are read."""
        kept, notes = list[Extension](), list[str]()
        for companion in self.companions:
            leading = self._leading(companion, (0,) * (len(self.hdu.shape) - 2))
            share = 0.0
            if leading is not None:
                rows = np.unique(np.linspace(0, companion.hdu.shape[-2] - 1, SAMPLED_ROWS).astype(int))
                samples = [np.asarray(companion.hdu.section[(*leading, int(row))]) for row in rows]
                share = float(self._marked(companion, np.stack(samples)).mean())
            if share > companion.most_marked():
                notes.append(companion.marks_too_much(share))
            else:
                kept.append(companion)
        return self._replace(companions=tuple(kept), notes=(*self.notes, *notes))

    def _leading(self, companion: Extension, index: tuple[int, ...]) -> tuple[int, ...] | None:
        """The index of a companion's plane that belongs to the image; None where it marks no pixels of it."""
        shape, own = tuple(companion.hdu.shape), tuple(self.hdu.shape)
        if companion.role == "PSF" or shape[-2:] != own[-2:]:
            return None
        if set(shape[:-2]) <= {1}:
            return (0,) * (len(shape) - 2)
        return index if shape == own and len(index) == len(shape) - 2 else None

    def _marked(self, companion: Extension, values: NDArray[Any]) -> NDArray[np.bool_]:
        """The pixels that one companion marks."""
        if companion.role == "mask":
            return _flagged(values, companion.hdu.header, is_jwst=self.primary.get("TELESCOP") == "JWST")
        if companion.role == "weight":
            return np.asarray(~(values > 0))
        limit = MASKED_NOISE if companion.role == "noise" else MASKED_NOISE**2
        return np.asarray(~(values > 0) | (values >= limit))


class Missing(NamedTuple):
    """The missing pixels of an image."""

    mask: NDArray[np.bool_] | None
    """[h, w]; None where there are none."""
    notes: tuple[str, ...]
    """Companions that were not used, in words."""


def _flagged(flags: NDArray[np.generic], header: Any, *, is_jwst: bool) -> NDArray[np.bool_]:
    """Pixels that a mask marks as missing: by the bits that mean so where they are known, else all but zero."""
    planes = [header.get(key) for key in RUBIN_PLANES]
    bits = sum(1 << plane for plane in planes if isinstance(plane, int) and 0 <= plane < 63)
    bits = bits or (JWST_BAD if is_jwst else 0)
    if not bits:
        return np.asarray(flags != 0)
    return np.asarray(np.nan_to_num(flags.astype(np.float64)).astype(np.int64) & bits != 0)


def read_image(path: Path, name: str | None, plane: str | None = None) -> RawImage:
    """The image in the extension of that name or number, or the one that holds the sky; raises `ImageError`.

    plane: number of the plane to read, of a cube.
    """
    with translate_errors("a FITS file"), _hdus(path) as hdus:
        image = choose_image(hdus, name)
        header = image.hdu.header
        position = wcs.read_wcs(header)
        index = _index(image.hdu, plane)
        pixels, missing = linear(_pixels(image.hdu, index), header), image.missing(index=index)
        centre = position.centre(pixels.shape)
        sky = wcs.tangent_plane(position.wcs, (pixels.shape[-1] - 1) / 2, (pixels.shape[-2] - 1) / 2)
    notes = (*image.notes, *position.notes, *missing.notes)
    raw = RawImage(pixels, wcs=(position.pixel_scale, *centre), notes=notes, mask=missing.mask, plane=sky)
    return _with_files_beside(raw, path)


def read_companions(path: Path, name: str | None, plane: str | None = None) -> Companions:
    """Noise, point-spread function and photometry of the image that `read_image` reads; raises as that does."""
    with translate_errors("a FITS file"), _hdus(path) as hdus:
        image = choose_image(hdus, name)
        return image.beside(index=_index(image.hdu, plane))


def read_companion(path: Path, role: str) -> NDArray[Any]:
    """The noise [h, w], mask [h, w] or PSF [k, k], by its role, that a file holds for images of other files.

    It lies in an extension of that role, or in the only one. Raises `ImageError` where there is no such, or several.
    """
    roles = NOISE_ROLES if role == "noise" else (role,)
    with translate_errors("a FITS file"), _hdus(path) as hdus:
        images = _image_extensions(hdus)
        fitting = [entry for entry in images if entry.role in roles]
        if len(images) > 1 and not fitting:
            raise _no_image(f"holds {len(images)} extensions, none of them called {role}", images)
        entry = min(fitting or [_chosen(images)], key=lambda entry: roles.index(entry.role) if fitting else 0)
        values = _pixels(entry.hdu, _index(entry.hdu, None))
        if role == "mask":
            return _flagged(values, entry.hdu.header, is_jwst=hdus[0].header.get("TELESCOP") == "JWST")
        return to_sigma(values, entry.role) if role == "noise" else values.astype(np.float64)


def files_beside(path: Path) -> dict[str, Path]:
    """The files beside a `data.fits` that tell of it, by their names; none beside another file."""
    if path.name != DATA:
        return {}
    files = [*(path.with_name(name) for name in (NOISE_MAP, PSF, INFO)), *sorted(path.parent.glob(MASKS))]
    return {file.name: file for file in files if file.is_file() and not file.is_symlink()}


def _with_files_beside(image: RawImage, path: Path) -> RawImage:
    """The image of a `data.fits` with missing pixels and pixel scale by the files beside it, and notes on these."""
    beside = files_beside(path)
    if NOISE_MAP in beside:
        missing = _noise_beside(beside[NOISE_MAP], image.pixels.shape)
        mask = missing.mask if image.mask is None or missing.mask is None else missing.mask | image.mask
        notes = (*image.notes, *missing.notes)
        image = image._replace(mask=image.mask if mask is None else mask, notes=notes)
    if PSF in beside:
        image = image._replace(notes=(*image.notes, f"PSF: {PSF}"))
    if INFO in beside and image.wcs[0] is None and (scale := wcs.info_scale(beside[INFO])):
        note = f"pixel scale {scale:g} arcsec from {INFO}"
        image = image._replace(wcs=(scale, *image.wcs[1:]), notes=(*image.notes, note))
    return image


def _noise_beside(path: Path, shape: tuple[int, ...]) -> Missing:
    """The missing pixels by a file of noise, and a note on it."""
    try:
        with translate_errors("a FITS file"), _hdus(path) as hdus:
            if tuple(hdus[0].shape) != shape:
                return Missing(None, (f"{path.name} has another shape, so it was not used",))
            image = FitsImage(hdus[0], (Extension(0, path.name, hdus[0], "noise", (), 0),), ())
            missing = image.missing()
    except ImageError:
        return Missing(None, (f"{path.name} cannot be read, so it was not used",))
    return missing._replace(notes=(f"noise: {path.name}", *missing.notes))


def linear(pixels: NDArray[Any], header: Any) -> NDArray[Any]:
    """Pixels on a linear scale: those of Pan-STARRS are compressed by asinh."""
    if not is_asinh(header):
        return pixels
    return np.asarray(
        float(header["BOFFSET"]) + 2 * float(header["BSOFTEN"]) * np.sinh(pixels.astype(np.float64) / POGSON)
    )


def is_asinh(header: Any) -> bool:
    """Whether the pixels are compressed by asinh, as those of Pan-STARRS."""
    offset, softening = wcs.number(header, "BOFFSET"), wcs.number(header, "BSOFTEN")
    return offset is not None and softening is not None and softening > 0


def _index(hdu: Any, plane: str | None) -> tuple[int, ...]:
    """The index of a plane of an extension, () of an image of two axes.

    Raises `ImageError` where it has none, or more pixels than are read.
    """
    shape = [hdu.header[f"NAXIS{axis}"] for axis in range(hdu.header["NAXIS"], 0, -1)]
    check_sides((shape[-1], shape[-2]))
    index = [0] * len(shape[:-2])
    counting = [axis for axis, side in enumerate(shape[:-2]) if side != 1]
    if len(counting) > 1 or (counting and plane is None):
        advice = "Name one of its planes with --plane." if len(counting) == 1 else "Save one image a file."
        raise ImageError(f"has shape {tuple(shape)}, a cube", need="(height, width)", next=advice)
    if counting:
        index[counting[0]] = plane_index(plane or "0", shape[counting[0]])
    else:
        plane_index(plane or "0", 1)
    return tuple(index)


def _pixels(hdu: Any, index: tuple[int, ...]) -> NDArray[np.generic]:
    """The pixels [h, w] of one plane of an extension."""
    if math.prod(hdu.shape[:-2]) > 1:
        return np.array(hdu.section[(*index, slice(None), slice(None))])
    return np.asarray(np.array(hdu.data)[index])


@contextmanager
def _hdus(path: Path) -> Iterator[Any]:
    """The extensions of a FITS file."""
    with warnings.catch_warnings(), unpack(path) as file:
        warnings.simplefilter("ignore")  # blemishes of headers; pixels that are cut off are errors all the same
        if plain := wcs.plain_hdu(file):
            yield [plain]
            return
        with open_hdus(file) as hdus:
            yield hdus


def begins_as_fits(file: IO[bytes]) -> bool:
    """Whether a file begins as FITS files do; it is left at its start."""
    file.seek(0)
    magic = file.read(len(FITS_MAGIC))
    file.seek(0)
    return magic == FITS_MAGIC


def open_hdus(file: IO[bytes]) -> Any:
    """astropy's list of the extensions of an unpacked FITS file; raises `ImageError` where it is none."""
    from astropy.io import fits  # slow to import

    if not begins_as_fits(file):
        raise damaged_file("a FITS file")
    # uint: BLANK is lost where BZERO stands for unsigned integers; ignore_missing_simple: T in another column
    return fits.open(file, memmap=False, lazy_load_hdus=True, uint=False, ignore_missing_simple=True)


def extensions(path: Path) -> list[tuple[int, str, tuple[int, ...]]]:
    """Number, name and shape of each extension of a FITS file that holds an image; raises `ImageError`."""
    with name_errors(path), translate_errors("a FITS file"), _hdus(path) as hdus:
        return [(entry.number, entry.name, tuple(entry.hdu.shape)) for entry in _image_extensions(hdus)]


def choose_image(hdus: Any, name: str | None) -> FitsImage:
    """The extension of that name or number, or the one that holds the sky; raises `ImageError`."""
    images = _image_extensions(hdus)
    chosen = _chosen(images) if name is None else _named(images, hdus, name)
    others = [entry for entry in images if entry.role == "image" and entry is not chosen]
    bands = (chosen.band,) if others else (chosen.band, ())
    companions = tuple(entry for entry in images if _belongs(entry, chosen, bands))
    names = [f"{entry.role}: {entry.label()}" for entry in companions]
    notes = (", ".join([f"image: {chosen.label()}", *names]),) if len(images) > 1 else ()
    if is_asinh(chosen.hdu.header):
        notes = (*notes, "the asinh scale of BSOFTEN was undone")
    return FitsImage(chosen.hdu, companions, notes, hdus[0].header)


def _belongs(entry: Extension, chosen: Extension, bands: Sequence[tuple[str, ...]]) -> bool:
    """Whether an extension is a companion of the chosen one."""
    if entry is chosen or chosen.role != "image" or entry.role in ("image", "other") or entry.band not in bands:
        return False
    return bool(entry.role == "PSF" or entry.hdu.ver == chosen.hdu.ver)


def _image_extensions(hdus: Any) -> list[Extension]:
    return [_extension(number, hdu) for number, hdu in enumerate(hdus) if _has_image(hdu)]


def _has_image(hdu: Any) -> bool:
    return bool(hdu.is_image and hdu.header.get("NAXIS", 0) >= 2)


def _extension(number: int, hdu: Any) -> Extension:
    name = wcs.printable(str(hdu.name).strip())
    words = [word for word in re.split(r"[^A-Z0-9]+", name.upper()) if word]
    roles = ["noise" if word.startswith("NOISE") else ROLES.get(word, "") for word in words]
    role = next(filter(None, roles), "image")
    is_known = [bool(known) or word in PLAIN_WORDS for word, known in zip(words, roles, strict=True)]
    band = tuple(word for word, known in zip(words, is_known, strict=True) if not known)
    rank = min((RANKS.index(word) for word in words if word in RANKS), default=len(RANKS))
    return Extension(number, name, hdu, role, band, rank)


def _chosen(images: Sequence[Extension]) -> Extension:
    """The extension that holds the sky; raises `ImageError` where there is none, or several may."""
    if not images:
        raise ImageError("holds no image, only tables or headers", need="an image", next="Name a file with one in it.")
    candidates = [entry for entry in images if entry.role == "image"] or list(images)
    best = min(entry.rank for entry in candidates)
    candidates = [entry for entry in candidates if entry.rank == best]
    if len(candidates) > 1:
        raise _no_image(f"holds {len(candidates)} extensions that may be the image", candidates)
    return candidates[0]


def _named(images: Sequence[Extension], hdus: Any, name: str) -> Extension:
    """The extension of that name or number; raises `ImageError`."""
    if name.isdecimal():
        matches = [entry for entry in images if entry.number == int(name)]
        exists = int(name) < len(hdus)
    else:
        matches = [entry for entry in images if entry.name.upper() == name.strip().upper()]
        exists = any(str(hdu.name).upper() == name.strip().upper() for hdu in hdus)
    if not matches:
        raise _no_image(f"extension {name} holds no image" if exists else f"has no extension {name}", images)
    if len(matches) > 1:
        raise _no_image(f"has {len(matches)} extensions called {name}", matches)
    return matches[0]


def _no_image(what: str, images: Sequence[Extension]) -> ImageError:
    names = [f"{entry.number}: {entry.name or 'unnamed'}" for entry in images[:LISTED]]
    if len(images) > LISTED:
        names.append("...")
    return ImageError(
        what,
        need=f"one of {', '.join(names)}" if names else "an extension that holds an image",
        next="Name an extension that holds an image with --hdu.",
    )
