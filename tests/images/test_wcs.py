"""Pixel scale and position from headers of all kinds."""

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from sublens.errors import ImageError
from sublens.images import formats, wcs
from sublens.images.pixels import Image

STEP = 0.05 / 3600
SKY = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 12.5, "CRPIX2": 12.5, "CRVAL1": 150.0, "CRVAL2": 2.0}
CD = {"CD1_1": -STEP, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": STEP}
LIGHT = np.random.default_rng(0).poisson(30, (24, 24)).astype(np.float32)


def read(folder: Path, cards: dict[str, Any]) -> Image:
    hdu = fits.PrimaryHDU(LIGHT)
    for key, value in cards.items():
        hdu.header[key] = value
    hdu.writeto(folder / "a.fits", output_verify="ignore")
    return formats.read(folder / "a.fits")


@pytest.mark.parametrize(
    ("cards", "key"),
    [
        *(({key: 0.1}, key) for key in ("PIXSCALE", "SECPIX", "PIXSCAL1", "PSCALE", "D001SCAL", "GS_SCALE")),
        ({"SECPIX": "0.1"}, "SECPIX"),
        ({"PIXSCAX": 0.1, "PIXSCAY": 0.1}, "PIXSCAX and PIXSCAY"),
        ({"PIXAR_A2": 0.01}, "PIXAR_A2"),
        ({"CUNIT1": "ARCSEC", "CDELT1": -0.1, "CDELT2": 0.1}, "CDELT1"),
        ({"CTYPE1": "X", "CUNIT1": "arcsec", "CD1_1": 0.1, "CD2_2": 0.1}, "CD1_1"),
        ({"CDELT1": -0.1 / 3600, "CDELT2": 0.1 / 3600}, "CDELT1 in degrees"),
        ({"CDELT1": -1 / 3600, "CDELT2": 1 / 3600, "PIXSCALE": 0.1}, "PIXSCALE"),
        ({**SKY, "PIXSCALE": 0.1}, "PIXSCALE"),
    ],
)
def test_the_keyword_behind_a_pixel_scale_is_named(tmp_path: Path, cards: dict[str, Any], key: str) -> None:
    image = read(tmp_path, cards)
    assert image.pixel_scale == pytest.approx(0.1)
    assert image.notes[0] == f"pixel scale 0.1 arcsec from {key}"


@pytest.mark.parametrize("cards", [{}, SKY, {"CDELT1": 1.0, "CDELT2": 1.0}, {**SKY, "CDELT1": 1.0, "CDELT2": 1.0}])
def test_a_header_without_a_scale_gives_none_and_no_position(tmp_path: Path, cards: dict[str, Any]) -> None:
    image = read(tmp_path, {**cards, "PIXSCALE": "unknown", "SECPIX": -1.0, "PSCALE": True})
    assert (image.pixel_scale, image.ra, image.dec) == (None, None, None)


@pytest.mark.parametrize("unit", ["deg", "degree", "Degrees", "DEG", "arcsec", "radian"])
def test_a_wcs_is_read_in_any_unit(tmp_path: Path, unit: str) -> None:
    factor = 3600 / wcs.ARCSEC[unit.lower()]
    cards = {"CRVAL1": 150 * factor, "CRVAL2": 2 * factor, "CDELT1": -STEP * factor, "CDELT2": STEP * factor}
    image = read(tmp_path, {**SKY, **cards, "CUNIT1": unit, "CUNIT2": unit})
    assert (image.pixel_scale, image.ra, image.dec) == pytest.approx((0.05, 150, 2))
    assert image.notes == ()


@pytest.mark.parametrize(
    ("cards", "fault"),
    [
        ({"CTYPE1": "RA---TNX", "CTYPE2": "DEC--TNX"}, "the projection TNX is not supported"),
        ({"CTYPE1": "RA---ZPX", "CTYPE2": "DEC--ZPX"}, "the projection ZPX is not supported"),
        ({"RADESYS": "GAPPT"}, "the reference frame GAPPT is not known"),
        ({"CTYPE1": "GLON---TAN", "CTYPE2": "GLAT---TAN"}, "the axes GLON---TAN and GLAT---TAN do not follow"),
        ({"CRVAL2": "unknown"}, "CRVAL2 cannot be read"),
        ({"A_ORDER": 10**6, "B_ORDER": "x", "A_2_0": 1e-6, "CTYPE2": "DEC--XXX"}, "do not follow the FITS standard"),
    ],
)
def test_a_wcs_that_cannot_be_read_costs_the_position_and_not_the_pixels(
    tmp_path: Path, cards: dict[str, Any], fault: str
) -> None:
    image = read(tmp_path, {**SKY, **CD, **cards})
    assert image.pixel_scale == pytest.approx(0.05)
    assert image.ra is None
    assert image.notes[0].startswith("position not read: ")
    assert fault in image.notes[0]


def test_lookup_tables_of_a_distortion_are_not_needed(tmp_path: Path) -> None:
    image = read(tmp_path, {**SKY, **CD, "CPDIS1": "LOOKUP", "CPERR1": 0.01})
    assert (image.ra, image.dec) == pytest.approx((150, 2))


@pytest.mark.parametrize("cards", [{**SKY, **CD, "CD2_2": 1.02 * STEP}, {"PIXSCAX": 0.1, "PIXSCAY": 0.12}])
def test_pixels_that_are_not_square_are_refused(tmp_path: Path, cards: dict[str, Any]) -> None:
    with pytest.raises(ImageError, match=r"has pixels of 0\.\d+ x 0\.\d+ arcsec by .*; needs square pixels"):
        read(tmp_path, cards)


@pytest.mark.parametrize("level", ["array", "group", "file"])
@pytest.mark.parametrize("value", [0.1, np.array([[0.0, -0.1], [0.1, 0.0]])])
def test_hdf5_attributes_give_the_pixel_scale(tmp_path: Path, level: str, value: Any) -> None:
    name = wcs.ATTRIBUTES[np.ndim(value) // 2]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        array = file.create_dataset("group/array", data=LIGHT)
        {"array": array, "group": array.parent, "file": file}[level].attrs[name] = value
    image = formats.read(tmp_path / "a.h5")
    assert image.pixel_scale == pytest.approx(0.1)
    assert image.notes == (f"pixel scale 0.1 arcsec from {name}",)


@pytest.mark.parametrize("value", ["0.1", np.zeros(9), np.nan, np.zeros((2, 2)), 1e9])
def test_other_hdf5_attributes_are_no_scale(tmp_path: Path, value: Any) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", data=LIGHT).attrs["pixel_scale"] = value
    assert formats.read(tmp_path / "a.h5").pixel_scale is None


@pytest.mark.parametrize(
    "frame",
    [
        {}, {"RADESYS": "ICRS"}, {"RADESYS": "FK5", "EQUINOX": 2000.0}, {"RADESYS": "FK5", "EQUINOX": 1975.0},
        {"RADESYS": "FK5"}, {"EQUINOX": 2000.0}, {"EQUINOX": 1950.0}, {"RADESYS": "FK4", "EQUINOX": 1950.0},
        {"CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN"},
        {"CTYPE1": "DEC--TAN", "CTYPE2": "RA---TAN", "CRVAL1": 2.0, "CRVAL2": 150.0},
        {"CRVAL1": -20.0, "CRVAL2": -89.9}, {"CROTA2": 30.0}, {"CTYPE1": "RA---SIN", "CTYPE2": "DEC--SIN"},
    ],
)  # fmt: skip
def test_the_centre_is_that_of_astropy_in_any_frame(tmp_path: Path, frame: dict[str, Any]) -> None:
    steps = {"CDELT1": -STEP, "CDELT2": STEP} if "CROTA2" in frame else CD
    cards = {**SKY, **steps, **frame}
    image = read(tmp_path, cards)
    point = WCS(fits.Header(cards)).pixel_to_world(11.5, 11.5).icrs
    assert image.ra is not None
    assert image.dec is not None
    off = (image.ra - point.ra.deg) * np.cos(point.dec.rad), image.dec - point.dec.deg
    assert np.abs(off).max() < 1e-10


def test_cards_are_those_that_astropy_reads() -> None:
    header = fits.Header([("A", 1), ("B-1", -2.5e-3), ("C_2", "it's"), ("D", True), ("E", ""), ("F", 1e300, "so")])
    header.add_history("made")
    header.add_comment("by hand")
    cards = wcs.read_cards(io.BytesIO(header.tostring().encode()))
    assert cards == {key: header[key] for key in ["A", "B-1", "C_2", "D", "E", "F"]}


@pytest.mark.parametrize(
    "card",
    ["A       = 1", "HIERARCH long key = 1", "CONTINUE  'more'", "B       = (1, 2)", "b       = 1", "B       = 1\t"],
)
def test_cards_that_leave_a_doubt_are_left_to_astropy(card: str) -> None:
    text = "".join(line.ljust(80) for line in ("A       = 1", card, "END"))
    assert wcs.read_cards(io.BytesIO(text.ljust(2880).encode())) is None
