"""FITS images: extensions, and where an image lies on the sky."""

import gzip
import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from sublens.errors import ImageError
from sublens.images.limits import (
    MAX_SIDE,
    MAX_UNPACKED_BYTES,
    check_growth,
    check_sides,
    cube_error,
    damaged_file,
    name_errors,
    translate_errors,
)
from sublens.images.pixels import RawImage, TangentPlane

FITS_MAGIC = b"SIMPLE  ="
"""First bytes of every FITS file."""
ARCSEC_A_DEGREE = 3600.0


def read_image(path: Path, name: str | None) -> RawImage:
    """The image in the extension of that name or number, or the first; raises `ImageError`."""
    with translate_errors("a FITS file"), _hdus(path) as hdus:
        hdu = choose_hdu(hdus, name)
        sides = [hdu.header[f"NAXIS{axis + 1}"] for axis in range(hdu.header["NAXIS"])]
        check_sides(tuple(sides[:2]))
        if math.prod(sides) > MAX_SIDE**2:  # known before it is read
            raise cube_error(sides[::-1])
        wcs = celestial(hdu.header)
        plane = tangent_plane(wcs, (sides[0] - 1) / 2, (sides[1] - 1) / 2)
        raw = RawImage(np.array(hdu.data), wcs=_wcs_values(hdu.header, wcs), plane=plane)
    return raw


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


def _wcs_values(header: Any, wcs: Any) -> tuple[float | None, float | None, float | None]:
    """Arcsec a pixel, and right ascension and declination of the centre in degrees, where the header gives them."""
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


def tangent_plane(wcs: Any, x: float, y: float) -> TangentPlane | None:
    """The plane that touches the sky at a pixel, counted from 0, whatever the projection; None where there is none."""
    if wcs is None:
        return None
    around = np.array([(x, y), (x - 0.5, y), (x + 0.5, y), (x, y - 0.5), (x, y + 0.5)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sky = wcs.all_pix2world(around, 0)[:, [wcs.wcs.lng, wcs.wcs.lat]]
    (east, north), steps = sky[0], np.stack([sky[2] - sky[1], sky[4] - sky[3]], axis=1)
    steps[0] = ((steps[0] + 180) % 360 - 180) * np.cos(np.radians(north))
    if not np.isfinite(steps).all():
        return None
    names = [str(wcs.wcs.ctype[axis]).partition("-")[0].ljust(5, "-") + "TAN" for axis in (wcs.wcs.lng, wcs.wcs.lat)]
    equinox = float(wcs.wcs.equinox)
    return TangentPlane(
        (names[0], names[1]),
        (float(east), float(north)),
        steps.ravel().tolist(),
        str(wcs.wcs.radesys),
        equinox if np.isfinite(equinox) else None,
    )


def pixel_scale(header: Any, wcs: Any) -> float | None:
    """Arcsec along the side of a pixel, by the celestial `wcs` or else by axes in arcsec; None if there are none."""
    if wcs is None:
        has_scale = header.get("CUNIT1") == "arcsec" and "CDELT1" in header
        scale = abs(float(header["CDELT1"])) if has_scale else 0.0
    else:
        from astropy.wcs.utils import proj_plane_pixel_scales

        scale = float(np.sqrt(np.prod(proj_plane_pixel_scales(wcs)))) * ARCSEC_A_DEGREE
    return scale if 0 < scale < np.inf else None
