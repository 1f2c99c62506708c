"""FITS images: extensions, and where an image lies on the sky."""

import gzip
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sublens.errors import ImageError
from sublens.images.arrays import plane_index
from sublens.images.limits import (
    MAX_UNPACKED_BYTES,
    check_growth,
    check_sides,
    damaged_file,
    name_errors,
    translate_errors,
)
from sublens.images.pixels import RawImage

FITS_MAGIC = b"SIMPLE  ="
"""First bytes of every FITS file."""
ARCSEC_A_DEGREE = 3600.0


def read_image(path: Path, name: str | None, plane: str | None = None) -> RawImage:
    """The image in the extension of that name or number, or the first; raises `ImageError`.

    plane: number of the plane to read, of a cube.
    """
    with translate_errors("a FITS file"), _hdus(path) as hdus:
        hdu = choose_hdu(hdus, name)
        raw = RawImage(_pixels(hdu, plane), wcs=_wcs_values(hdu.header))
    return raw


def _pixels(hdu: Any, plane: str | None) -> NDArray[np.generic]:
    """The pixels [h, w] of an extension, or those of one plane of a cube; the sides are known before they are read."""
    shape = [hdu.header[f"NAXIS{axis}"] for axis in range(hdu.header["NAXIS"], 0, -1)]
    check_sides((shape[-1], shape[-2]))
    index: list[int | slice] = [0] * len(shape[:-2]) + [slice(None)] * 2
    counting = [axis for axis, side in enumerate(shape[:-2]) if side != 1]
    if len(counting) > 1 or (counting and plane is None):
        advice = "Name one of its planes with --plane." if len(counting) == 1 else "Save one image a file."
        raise ImageError(f"has shape {tuple(shape)}, a cube", need="(height, width)", next=advice)
    if counting:
        index[counting[0]] = plane_index(plane or "0", shape[counting[0]])
        return np.array(hdu.section[tuple(index)])
    plane_index(plane or "0", 1)
    return np.array(hdu.data)[tuple(index)]


@contextmanager
def _hdus(path: Path) -> Iterator[Any]:
    """The extensions of a FITS file; warnings of astropy are errors."""
    from astropy.io import fits  # slow to import

    with warnings.catch_warnings(), unpack(path) as file:
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Invalid 'BLANK'")  # harmless, and common in surveys
        if not begins_as_fits(file):
            raise damaged_file("a FITS file")
        file.seek(0)
        with fits.open(file, memmap=False, lazy_load_hdus=True) as hdus:
            yield hdus


def begins_as_fits(file: IO[bytes]) -> bool:
    """Whether the next bytes are the first of a FITS file."""
    return file.read(len(FITS_MAGIC)) == FITS_MAGIC


def extensions(path: Path) -> list[tuple[int, str, tuple[int, ...]]]:
    """Number, name and shape of each extension of a FITS file that holds an image; raises `ImageError`."""
    with name_errors(path), translate_errors("a FITS file"), _hdus(path) as hdus:
        return [(number, str(hdu.name), tuple(hdu.shape)) for number, hdu in enumerate(hdus) if _has_image(hdu)]


def _has_image(hdu: Any) -> bool:
    return bool(hdu.is_image and hdu.header.get("NAXIS", 0) >= 2)


def unpack(path: Path) -> IO[bytes]:
    """The file's content, unpacked within the limits where it is compressed; raises `ImageError`."""
    if not path.name.lower().endswith(".gz"):
        return path.open("rb")
    whole, packed = io.BytesIO(), path.stat().st_size
    with translate_errors("a gzip file"), gzip.open(path) as file:
        while block := file.read(2**20):
            whole.write(block)
            check_growth(whole.tell(), packed)
            if whole.tell() > MAX_UNPACKED_BYTES:
                raise ImageError(
                    "unpacks to too many bytes", need=f"at most {MAX_UNPACKED_BYTES:,}", next="Unpack it first."
                )
    whole.seek(0)
    return whole


def choose_hdu(hdus: Any, name: str | None) -> Any:
    """The extension of that name or number, or the first that holds an image; raises `ImageError`."""
    if name is None:
        for hdu in hdus:
            if _has_image(hdu):
                return hdu
        raise ImageError("holds no image, only tables or headers", need="an image", next="Name a file with one in it.")
    try:
        hdu = hdus[int(name) if name.isdecimal() else name]
    except (KeyError, IndexError) as err:
        raise _no_image(f"has no extension {name}", hdus) from err
    if not _has_image(hdu):
        raise _no_image(f"extension {name} holds no image", hdus)
    return hdu


def _no_image(what: str, hdus: Any) -> ImageError:
    return ImageError(
        what, need=f"one of {_extensions(hdus)}", next="Name an extension that holds an image with --hdu."
    )


def _extensions(hdus: Any) -> str:
    return ", ".join(f"{number}: {hdu.name or 'unnamed'}" for number, hdu in enumerate(hdus))


def _wcs_values(header: Any) -> tuple[float | None, float | None, float | None]:
    """Arcsec a pixel, and right ascension and declination of the centre in degrees, where the header gives them."""
    wcs = celestial(header)
    if wcs is None:
        return pixel_scale(header, wcs), None, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        centre = wcs.pixel_to_world((header["NAXIS1"] - 1) / 2, (header["NAXIS2"] - 1) / 2).icrs
    ra, dec = float(centre.ra.deg), float(centre.dec.deg)
    is_known = np.isfinite(ra + dec)
    return pixel_scale(header, wcs), ra if is_known else None, dec if is_known else None


def celestial(header: Any) -> Any:
    """The WCS of a FITS header's first two axes, None where they do not lie on the sky."""
    if not str(header.get("CTYPE1", "")).startswith(("RA", "DEC", "GLON", "GLAT", "ELON", "ELAT")):
        return None
    from astropy.wcs import WCS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # astropy warns of what it mends in a header
        wcs = WCS(header, naxis=2)
        return wcs if wcs.has_celestial else None


def pixel_scale(header: Any, wcs: Any) -> float | None:
    """Arcsec along the side of a pixel, by the celestial `wcs` or else by axes in arcsec; None if there are none."""
    if wcs is None:
        has_scale = header.get("CUNIT1") == "arcsec" and "CDELT1" in header
        scale = abs(float(header["CDELT1"])) if has_scale else 0.0
    else:
        from astropy.wcs.utils import proj_plane_pixel_scales

        scale = float(np.sqrt(np.prod(proj_plane_pixel_scales(wcs)))) * ARCSEC_A_DEGREE
    return scale if 0 < scale < np.inf else None
