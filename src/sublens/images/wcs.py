"""Pixel scale of an image and its position on the sky, from a FITS header or the attributes of an HDF5 array."""

import io
import json
import math
import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sublens.errors import ImageError
from sublens.images.pixels import TangentPlane

ARCSEC = {
    **dict.fromkeys(("deg", "degree", "degrees"), 3600.0),
    **dict.fromkeys(("arcmin", "arcminute", "arcminutes"), 60.0),
    **dict.fromkeys(("arcsec", "arcsecs", "arcsecond", "arcseconds", "asec"), 1.0),
    **dict.fromkeys(("mas", "milliarcsec"), 1e-3),
    **dict.fromkeys(("rad", "radian", "radians"), np.degrees(1) * 3600),
}
"""Arcsec in a unit, by its name in small letters."""
UNITS = {3600.0: "deg", 60.0: "arcmin", 1.0: "arcsec", 1e-3: "mas"}
"""Names of units in the FITS standard, by arcsec; all others are radians."""
SCALE_KEYS = (
    ("PIXSCALE",),
    ("SECPIX",),
    ("SECPIX1", "SECPIX2"),
    ("PIXSCAL1", "PIXSCAL2"),
    ("PIXSCAL1",),
    ("PSCALE",),
    ("D001SCAL",),
    ("PIXSCAX", "PIXSCAY"),
    ("GS_SCALE",),
)
"""Keywords outside of the standard that hold arcsec a pixel: of both axes, or of x and y."""
AREA_KEY = "PIXAR_A2"
"""Keyword that holds the area of a pixel, square arcsec."""
ATTRIBUTES = ("pixel_scale", "transform_pix2angle")
"""Attributes of HDF5 with arcsec a pixel: a number, or a matrix from pixels to angles as lenstronomy's."""
MAX_SCALE = 1e3
"""Coarsest pixels that a header is believed to have, arcsec."""
MAX_INFO_BYTES = 2**20
"""Largest JSON file that is read."""
BARE_SCALES = (1e-3, 10.0)
"""Scales, arcsec, at which CDELT without a unit is taken as degrees."""
SQUARE = 0.01
"""Relative difference of its sides up to which a pixel is square."""
MAX_ORDER = 9
"""Highest order of the polynomials of a distortion, by the SIP convention."""
SKY_AXES = ("RA", "DEC", "GLON", "GLAT", "ELON", "ELAT")
NUMBERS = re.compile(
    r"(CRVAL|CRPIX|CDELT|CROTA)[12]|(CD|PC)[12]_[12]|PC00[12]00[12]|PV[12]_\d{1,2}|[AB]P?_(ORDER|DMAX|\d_\d)|"
    r"LONPOLE|LATPOLE|EQUINOX|EPOCH"
)
"""Keywords of a celestial WCS that hold numbers."""
DISTORTION = re.compile(r"PV|[AB]P?_")
"""Beginning of the keywords of a distortion."""
NUMBER = rb"([+-]?\d+)|([+-]?\d+(?:\.\d*)?(?:[ED][+-]?\d+)?)"
"""A whole number, or another."""
CARD = re.compile(rb"([A-Z0-9_-]{1,8}) *= +(?:'((?:[ -&(-~]|'')*)'|([TF])|" + NUMBER + rb") *(?:/[ -~]*)?")
"""A line of a header that holds a value: the keyword, and a text, truth, or number."""
COMMENTS = {b"COMMENT ", b"HISTORY ", b"        "}
"""Beginning of a line without a value."""
CARD_BYTES, MAX_CARDS = 80, 1440
"""Length of a line of a header, and most lines that are read without astropy."""
BLOCK = 2880
"""Bytes that header and pixels are padded to."""
DTYPES: dict[object, str] = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
"""Types of pixels, by BITPIX."""
PLAIN_KEYS = ("SIMPLE", "BITPIX", "NAXIS", "NAXIS1", "NAXIS2")
"""First keywords of a file that holds one image."""
SPECIAL_KEYS = {"BSCALE", "BZERO", "BLANK", "GROUPS", "PCOUNT", "GCOUNT", "EXTNAME", "EXTVER", "ZIMAGE", "XTENSION"}
"""Keywords that give pixels, or the image, another meaning."""
FIRST_FK5 = 1984.0
"""Equinox from which on coordinates without a named frame are FK5."""
Value = str | float | bool
"""Value of a keyword; whole numbers are int."""
POSITION_KEYS = ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2")
FRAMES = {"ICRS", "FK5", "FK4", "FK4-NO-E", "GALACTIC", ""}
"""Reference frames that coordinates can be turned to ICRS from."""


class HeaderWcs(NamedTuple):
    """The world coordinate system of a FITS header."""

    wcs: Any = None
    """astropy's WCS of the first two axes; None where they do not lie on the sky, or it cannot be read."""
    pixel_scale: float | None = None
    """Arcsec along the side of a pixel, where the header gives it."""
    fault: str = ""
    """Reason why the position on the sky cannot be read, where the header has one."""
    notes: tuple[str, ...] = ()
    """The keyword behind the pixel scale, and the fault."""

    def centre(self, shape: tuple[int, ...]) -> tuple[float | None, float | None]:
        """Right ascension and declination, degrees, of the centre of an image [..., h, w]; None where unknown."""
        if self.wcs is None:
            return None, None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ra, dec = _icrs(self.wcs, (shape[-1] - 1) / 2, (shape[-2] - 1) / 2)
        return (ra, dec) if np.isfinite(ra + dec) else (None, None)


def read_wcs(header: Any) -> HeaderWcs:
    """The WCS of a FITS header, and the pixel scale by that or by another keyword.

    Raises `ImageError` where the pixels are not square.
    """
    is_sky = text(header, "CTYPE1").startswith(SKY_AXES)
    scale, key = _scale(header, is_sky=is_sky)
    notes = (f"pixel scale {scale:g} arcsec from {key}",) if scale and not is_standard(key, is_sky=is_sky) else ()
    if not is_sky:
        return HeaderWcs(None, scale, "", notes)
    wcs, fault = _celestial(header)
    if wcs is not None and not is_standard(key, is_sky=is_sky):
        wcs, fault = None, "its WCS has no pixel scale"
    return HeaderWcs(wcs, scale, fault, (*notes, f"position not read: {fault}") if fault else notes)


def is_standard(key: str, *, is_sky: bool) -> bool:
    """Whether the keyword behind a pixel scale is that of a celestial WCS."""
    return is_sky and key in ("CD1_1", "CDELT1", "PC1_1")


def _scale(header: Any, *, is_sky: bool) -> tuple[float | None, str]:
    """Arcsec a pixel and the keyword behind it: the WCS, else another keyword, else CDELT without a unit."""
    unit = text(header, "CUNIT1").lower()
    sides, key = _matrix_sides(header)
    if sides is not None and (unit in ARCSEC or (is_sky and not unit)):
        if scale := square_scale(sides * ARCSEC[unit or "deg"], key):
            return scale, key
        sides = None
    if (named := _from_keywords(header))[0]:
        return named
    if sides is not None and not unit and BARE_SCALES[0] <= sides[0] * ARCSEC["deg"] <= BARE_SCALES[1]:
        return square_scale(sides * ARCSEC["deg"], key), f"{key} in degrees"
    return None, ""


def _from_keywords(header: Any) -> tuple[float | None, str]:
    """Arcsec a pixel and the keyword outside of the standard that holds it."""
    for keys in SCALE_KEYS:
        sides = [number(header, key) for key in keys]
        if None not in sides and (scale := square_scale(np.array(sides, np.float64), keys[0])):
            return scale, " and ".join(keys)
    area = number(header, AREA_KEY)
    if area and area > 0 and (scale := square_scale(np.sqrt([area]), AREA_KEY)):
        return scale, AREA_KEY
    return None, ""


def _matrix_sides(header: Any) -> tuple[NDArray[np.float64] | None, str]:
    """Sides of a pixel along x and y in the header's unit, and the keyword behind them; None without one."""
    cd, old, pc = (_matrix(header, form) for form in ("CD{}_{}", "PC00{}00{}", "PC{}_{}"))
    if cd is not None:
        return np.hypot(*cd), "CD1_1"
    rotation = pc if pc is not None else old
    steps = [number(header, f"CDELT{axis}") for axis in (1, 2)]
    if steps[0] is None and rotation is None:
        return None, ""
    key = "PC1_1" if steps[0] is None else "CDELT1"
    deltas = np.array([1.0 if steps[0] is None else steps[0], steps[1] or steps[0] or 1.0])
    return np.hypot(*(deltas[:, None] * (np.eye(2) if rotation is None else rotation))), key


def _matrix(header: Any, form: str) -> NDArray[np.float64] | None:
    """The matrix of keywords i_j, None where the header has none; a missing element is that of PC's default."""
    elements = {(i, j): number(header, form.format(i, j)) for i in (1, 2) for j in (1, 2)}
    if all(element is None for element in elements.values()):
        return None
    is_cd = form.startswith("CD")
    values = [element if element is not None else float(i == j and not is_cd) for (i, j), element in elements.items()]
    return np.array(values).reshape(2, 2)


def square_scale(sides: NDArray[np.float64], key: str) -> float | None:
    """The side of a pixel, arcsec, of its sides along x and y; None where it cannot be that of an image.

    Raises `ImageError` where the pixels are not square.
    """
    scale = float(np.sqrt(sides[0] * sides[-1]))
    if not (np.isfinite(sides).all() and sides.min() > 0 and scale <= MAX_SCALE):
        return None
    if abs(sides[0] / sides[-1] - 1) > SQUARE:
        raise ImageError(
            f"has pixels of {sides[0]:g} x {sides[-1]:g} arcsec by {key}",
            need="square pixels",
            next="Drizzle or resample it to square pixels, or correct the header.",
        )
    return scale


def _celestial(header: Any) -> tuple[Any, str]:
    """The WCS of a header whose first axes lie on the sky, or None and the reason why it cannot be read."""
    plain, fault = _plain_header(header), _fault(header)
    if fault:
        return None, fault
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # astropy warns of what it mends in a header
            wcs = _open_wcs(plain)
            if wcs.has_celestial:
                _icrs(wcs, 0, 0)  # an unknown frame shows here
                return wcs, ""
    except MemoryError:
        raise
    except Exception:  # astropy raises of every kind for damaged headers
        pass
    return None, f"the axes {text(plain, 'CTYPE1')} and {text(plain, 'CTYPE2')} do not follow the FITS standard"


def _open_wcs(plain: Mapping[str, Value]) -> Any:
    """astropy's WCS of a plain header; without a distortion it is read by wcslib alone, which is quick."""
    from astropy.io import fits  # slow to import
    from astropy.wcs import WCS, Wcsprm

    if any(DISTORTION.match(key) for key in plain) or "-SIP" in f"{plain.get('CTYPE1')}{plain.get('CTYPE2')}":
        return WCS(fits.Header(plain), naxis=2)
    wcs = WCS(naxis=2, fix=False)
    wcs.wcs = Wcsprm("".join(f"{key:8}= {_card_value(value):70}" for key, value in plain.items()).encode(), relax=True)
    wcs.wcs = wcs.wcs.sub(2)
    wcs.fix()
    wcs.wcs.set()
    return wcs


def _card_value(value: Value) -> str:
    """A value as a header has it."""
    return "'{}'".format(value.replace("'", "''")) if isinstance(value, str) else repr(value).upper()


def _icrs(wcs: Any, x: float, y: float) -> tuple[float, float]:
    """Right ascension and declination, degrees, of a pixel counted from 0; raises where the frame is not known."""
    axes = wcs.wcs.lng, wcs.wcs.lat
    names, equinox = [str(wcs.wcs.ctype[axis])[:4] for axis in axes], float(wcs.wcs.equinox)
    turn = _turn_to_icrs((names[0], names[1]), str(wcs.wcs.radesys), equinox if math.isfinite(equinox) else None)
    if turn is None:
        point = wcs.pixel_to_world(x, y).icrs
        return float(point.ra.deg), float(point.dec.deg)
    lng, lat = np.radians(wcs.all_pix2world([(x, y)], 0)[0][list(axes)])
    east, north, up = turn @ (np.cos(lat) * np.cos(lng), np.cos(lat) * np.sin(lng), np.sin(lat))
    return float(np.degrees(np.arctan2(north, east))) % 360, float(np.degrees(np.arctan2(up, np.hypot(east, north))))


@lru_cache(maxsize=64)
def _turn_to_icrs(names: tuple[str, str], radesys: str, equinox: float | None) -> NDArray[np.float64] | None:
    """The rotation [3, 3] to ICRS from a frame that is turned against it; None for any other frame."""
    from astropy.coordinates import FK5, ICRS, CartesianRepresentation, Galactic
    from astropy.time import Time

    is_equatorial = names == ("RA--", "DEC-")
    if is_equatorial and (radesys == "ICRS" or (not radesys and equinox is None)):
        return np.eye(3)
    if is_equatorial and equinox is not None and (radesys == "FK5" or (not radesys and equinox >= FIRST_FK5)):
        frame = FK5(CartesianRepresentation(np.eye(3)), equinox=Time(equinox, format="jyear"))
    elif names == ("GLON", "GLAT") and not radesys:
        frame = Galactic(CartesianRepresentation(np.eye(3)))
    else:
        return None
    return np.asarray(frame.transform_to(ICRS()).cartesian.xyz.value)


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


def _fault(header: Any) -> str:
    """A known reason why a position cannot be read; empty without one."""
    projection = text(header, "CTYPE1")[5:8]
    if projection in ("TNX", "ZPX"):
        return f"the projection {projection} is not supported"
    frame = text(header, "RADESYS") or text(header, "RADECSYS")
    if frame.upper() not in FRAMES:
        return f"the reference frame {frame} is not known"
    missing = [key for key in POSITION_KEYS if number(header, key) is None]
    return f"{', '.join(missing)} cannot be read" if missing else ""


def _plain_header(header: Any) -> dict[str, Value]:
    """The keywords of a celestial WCS alone, so that no blemish elsewhere keeps it from being read.

    Left out are the tables of a distortion (CPDIS, D2IM), which shift a position by less than a pixel.
    """
    plain: dict[str, Value] = {}
    for key in header:
        if not NUMBERS.fullmatch(key) or (value := number(header, key)) is None:
            continue
        if not key.endswith("_ORDER"):
            plain[key] = value
        elif 0 <= value <= MAX_ORDER:
            plain[key] = round(value)
    for key in ("CTYPE1", "CTYPE2", "RADESYS", "RADECSYS"):
        if words := text(header, key):
            plain[key] = words
    for key in ("CUNIT1", "CUNIT2"):
        if (unit := text(header, key).lower()) in ARCSEC:
            plain[key] = UNITS.get(ARCSEC[unit], "rad")
    return plain


def read_cards(file: IO[bytes]) -> dict[str, Value] | None:
    """The first header of a FITS file, each line of which follows the standard and has its own keyword.

    The file is left after the header. None where there is no such header; astropy knows what to make of it.
    """
    header: dict[str, Value] = {}
    file.seek(0)
    for number_read in range(1, MAX_CARDS + 1):
        card = file.read(CARD_BYTES)
        if card.rstrip() == b"END":
            rest = file.read(-number_read % 36 * CARD_BYTES)
            return header if not rest.strip(b" ") and len(rest) == -number_read % 36 * CARD_BYTES else None
        if card[:8] in COMMENTS and card.isascii():
            continue
        match = CARD.fullmatch(card)
        if not match or card[8:10] != b"= " or (key := match[1].decode()) in header:
            return None
        header[key] = _value(match)
    return None


def _value(card: re.Match[bytes]) -> Value:
    """The value of a line of a header."""
    _, words, truth, whole, real = card.groups()
    if words is not None:
        return str(words.decode().replace("''", "'").rstrip())
    if truth:
        return bool(truth == b"T")
    return int(whole) if whole else float(real.replace(b"D", b"E"))


def number(header: Any, key: str) -> float | None:
    """The finite number of a keyword, None where it is missing or holds something else."""
    with suppress(Exception):  # astropy raises of every kind for damaged cards
        if key not in header:
            return None
        value = header[key]
        if not isinstance(value, bool):
            parsed = float(value)
            return parsed if math.isfinite(parsed) else None
    return None


def text(header: Any, key: str) -> str:
    """The text of a keyword, printable; empty where it is missing or holds something else."""
    with suppress(Exception):  # astropy raises of every kind for damaged cards
        if isinstance(value := header[key], str):
            return printable(value.strip())
    return ""


def printable(text: str) -> str:
    """Text of a file, with ? for what could not be shown."""
    return "".join(character if character.isprintable() else "?" for character in text)


def attribute_scale(attributes: Mapping[str, Any]) -> tuple[float | None, tuple[str, ...]]:
    """Arcsec a pixel by the attributes of an HDF5 array, and the note that names the one behind it.

    Raises `ImageError` where the pixels are not square.
    """
    for name in ATTRIBUTES:
        if name in attributes:
            values = np.asarray(attributes[name], np.float64)
            if values.size == 1 or values.shape == (2, 2):
                sides = np.hypot(*values) if values.shape == (2, 2) else np.abs(values.ravel())
                if scale := square_scale(sides, name):
                    return scale, (f"pixel scale {scale:g} arcsec from {name}",)
    return None, ()


def info_scale(path: Path) -> float | None:
    """Arcsec a pixel by the key `pixel_scale` of a JSON file; None without one."""
    try:
        with path.open("rb") as file:
            scale = json.loads(file.read(MAX_INFO_BYTES)).get("pixel_scale")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    is_number = isinstance(scale, int | float) and not isinstance(scale, bool)
    return float(scale) if is_number and 0 < scale < MAX_SCALE else None


@dataclass(frozen=True)
class PlainHdu:
    """The image of a FITS file that holds nothing else, with the attributes of astropy's."""

    header: dict[str, Value]
    dtype: str
    shape: tuple[int, int]
    file: IO[bytes]
    start: int
    """Bytes of the file before the first pixel."""
    name: ClassVar = "PRIMARY"
    ver: ClassVar = 1
    is_image: ClassVar = True

    @property
    def data(self) -> NDArray[np.generic]:
        """The pixels [h, w]."""
        n_bytes = math.prod(self.shape, start=np.dtype(self.dtype).itemsize)
        self.file.seek(self.start)
        return np.frombuffer(self.file.read(n_bytes), self.dtype).reshape(self.shape)

    section = data


def plain_hdu(file: IO[bytes]) -> PlainHdu | None:
    """The image of a FITS file that leaves no doubt; None for any other file, which is astropy's."""
    header = read_cards(file) or {}
    start, end = file.tell(), file.seek(0, io.SEEK_END)
    dtype, shape = DTYPES.get(header.get("BITPIX"), ""), (header.get("NAXIS2"), header.get("NAXIS1"))
    if tuple(header)[:5] == PLAIN_KEYS and header["SIMPLE"] is True and header["NAXIS"] == 2 and dtype:
        height, width = (side if type(side) is int else 0 for side in shape)
        n_bytes = height * width * np.dtype(dtype).itemsize
        if min(height, width) > 0 and end - start == -(-n_bytes // BLOCK) * BLOCK and not SPECIAL_KEYS & header.keys():
            return PlainHdu(header, dtype, (height, width), file, start)
    return None
