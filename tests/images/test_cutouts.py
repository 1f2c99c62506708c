import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import MaskedColumn, Table
from astropy.wcs import WCS
from numpy.typing import NDArray

from sublens import cli
from sublens.errors import ConfigError, DataError, ImageError
from sublens.images import catalogue, cutouts, formats, limits, resample
from sublens.images.cutouts import Cutout
from sublens.images.formats import ImageSelector
from sublens.images.pixels import Image
from sublens.images.reader import Reader, ReadResult, locate_positions
from sublens.inference import predict_files, predictor, tables
from sublens.inference.journal import Journal
from sublens.inference.predict_files import Query
from sublens.sim.render import simulate
from sublens.surveys.presets import preset

SIZE = (24, 24)
XY = ((31.5, 51.5), (250.5, 100.5), (60.5, 150.5))
"""Centres of cutouts that lie within the sky."""


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with Reader() as reader_:
        yield reader_


def sky(height: int = 200, width: int = 300) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(30, 5, (height, width)).astype(np.float32)


def header(shape: tuple[int, int], scale: float = 0.05) -> fits.Header:
    """North up, the middle at ra 150, dec 2."""
    words = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.0, "CRVAL2": 2.0})
    words.update(CD1_1=-scale / 3600, CD1_2=0.0, CD2_1=0.0, CD2_2=scale / 3600)
    words.update(CRPIX1=(shape[1] + 1) / 2, CRPIX2=(shape[0] + 1) / 2)
    return words


def save(path: Path, pixels: np.ndarray, *, has_sky: bool = True, scale: float = 0.05) -> Path:
    where = header(pixels.shape, scale) if has_sky else None
    if path.suffix == ".fz":
        fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(pixels, where)]).writeto(path)
    else:
        fits.PrimaryHDU(pixels, where).writeto(path)
    return path


def listed(path: Path, *rows: object, head: str = "x,y") -> Path:
    """A catalogue of lines."""
    path.write_text("\n".join([head, *map(str, rows)]) + "\n")
    return path


def positions(path: Path, xy: tuple[tuple[float, float], ...] = XY, **more: list[str]) -> Path:
    """A CSV catalogue of pixels."""
    Table({"x": [x for x, _ in xy], "y": [y for _, y in xy], **more}).write(path, format="ascii.csv", overwrite=True)
    return path


def on_sky(path: Path, shape: tuple[int, int], xy: tuple[tuple[float, float], ...] = XY, **more: list[str]) -> Path:
    """A catalogue of the same as right ascension and declination."""
    ra, dec = WCS(header(shape)).all_pix2world(*np.transpose(xy), 0)
    forms = {".csv": "ascii.csv", ".ecsv": "ascii.ecsv", ".fits": "fits", ".vot": "votable"}
    Table({"RA": ra, "Dec": dec, **more}).write(path, format=forms[path.suffix])
    return path


def results_at(reader: Reader, path: Path, at: Path, size: tuple[int, int] = SIZE) -> list[ReadResult]:
    return list(reader.read(locate_positions(path, at, ImageSelector()).cuts(path, size)))


def pixels_of(results: list[ReadResult]) -> list[NDArray[np.float64]]:
    assert all(isinstance(result.image, Image) for result in results), [result.image for result in results]
    return [result.image.pixels for result in results if isinstance(result.image, Image)]


def around(pixels: np.ndarray, xy: tuple[float, float], size: tuple[int, int] = SIZE) -> np.ndarray:
    """The cutout by hand, of an even size around the corner of four pixels."""
    (x, y), (height, width) = xy, size
    row, column = round(y + 0.5) - height // 2, round(x + 0.5) - width // 2
    return pixels[row : row + height, column : column + width]


@pytest.mark.parametrize("name", ["a.csv", "a.ecsv", "a.fits", "a.vot"])
def test_every_catalogue_leads_to_the_same_cutouts(reader: Reader, tmp_path: Path, name: str) -> None:
    big, pixels = save(tmp_path / "big.fits", sky()), sky()
    results = results_at(reader, big, on_sky(tmp_path / name, pixels.shape, Name=["007", "J1000+02", "c d"]))
    assert [result.id for result in results] == ["007", "J1000+02", "c d"]
    assert all(np.array_equal(cutout, around(pixels, xy)) for cutout, xy in zip(pixels_of(results), XY, strict=True))
    assert [(result.number, result.source_index) for result in results] == [(0, (0, 0)), (1, (1, 0)), (2, (2, 0))]


def test_pixels_and_sky_are_one_position(reader: Reader, tmp_path: Path) -> None:
    big = save(tmp_path / "big.fits", sky())
    by_sky = results_at(reader, big, on_sky(tmp_path / "sky.csv", (200, 300)))
    by_pixels = results_at(reader, big, positions(tmp_path / "pixels.csv"))
    for result, other in zip(by_sky, by_pixels, strict=True):
        assert isinstance(result.image, Image)
        assert isinstance(other.image, Image)
        assert np.array_equal(result.image.pixels, other.image.pixels)
        assert result.image.pixel_scale == pytest.approx(0.05, rel=1e-6)
        assert (
            (result.ra, result.dec)
            == (result.image.ra, result.image.dec)
            == pytest.approx((other.ra, other.dec), abs=1e-9)
        )


@pytest.mark.parametrize("kind", ["f4", "f8", "i2", "u2", "scaled", "blank"])
def test_all_kinds_of_numbers_are_read(reader: Reader, tmp_path: Path, kind: str) -> None:
    expected = sky().astype(kind if kind in ("f4", "f8") else "i2").astype(float)
    hdu = fits.PrimaryHDU(expected.astype("i2" if kind in ("scaled", "blank") else kind))
    if kind == "scaled":
        hdu.header["BSCALE"], hdu.header["BZERO"] = 0.5, 7
        expected = expected * 0.5 + 7
    if kind == "blank":
        hdu.header["BLANK"], hdu.data[51, 31] = -1, -1
        expected[51, 31] = np.median(np.delete(around(expected, XY[0]).ravel(), 11 * 24 + 11))
    hdu.writeto(tmp_path / "big.fits")
    read = pixels_of(results_at(reader, tmp_path / "big.fits", positions(tmp_path / "a.csv")))
    assert all(np.array_equal(cutout, around(expected, xy)) for cutout, xy in zip(read, XY, strict=True))


@pytest.mark.parametrize("name", ["big.fits.fz", "big.fits.gz"])
@pytest.mark.parametrize("kind", ["f4", "i2"])
def test_compressed_images_are_cut(reader: Reader, tmp_path: Path, name: str, kind: str) -> None:
    big = save(tmp_path / name, sky().astype(kind))
    expected = fits.getdata(big)
    assert np.abs(expected - sky().astype(kind)).max() < 1
    read = pixels_of(results_at(reader, big, on_sky(tmp_path / "a.csv", (200, 300))))
    assert all(np.array_equal(cutout, around(expected, xy)) for cutout, xy in zip(read, XY, strict=True))


def test_no_position_is_lost_whatever_is_wrong_with_it(reader: Reader, tmp_path: Path) -> None:
    big, pixels = tmp_path / "big.fits", sky()
    pixels[60:90, 60:90], pixels[100:130, 60:90], pixels[150:180, 60:90] = np.nan, np.inf, 3
    at = listed(
        tmp_path / "a.csv",
        *("-40,50,off", "299,50,edge", "nan,50,nan", "50,,none", "x,50,text", "50", "1e300,1,far", "inf,1,inf"),
        *("75,75,NaN", "75,115,infinity", "75,165,constant", "250,100,good"),
        head="x,y,id",
    )
    results = results_at(reader, save(big, pixels), at)
    assert [result.id for result in results] == [
        *("off", "edge", "nan", "none", "text", "", "far", "inf", "NaN", "infinity", "constant", "good")
    ]
    assert [result.number for result in results] == list(range(12))
    reasons = [str(result.image) for result in results]
    assert "position 0: lies at x -40.0, y 50.0; needs a position on the 300 x 200 pixels of the image" in reasons[0]
    assert "46% of the 24 x 24 pixels around it are off the image; needs at most 10%" in reasons[1]
    assert all("is no number" in reasons[index] for index in (2, 3, 4, 5, 7))
    assert "on the 300 x 200" in reasons[6]
    assert "all 576 pixels are missing" in reasons[8]
    assert "576 of 576 pixels are infinite" in reasons[9]
    assert "every pixel is 3" in reasons[10]
    assert isinstance(results[11].image, Image)
    assert results[0].ra == pytest.approx(150 + 189.5 * 0.05 / 3600 / np.cos(np.radians(2)), abs=1e-5)


def test_points_that_the_projection_does_not_reach_are_rows(reader: Reader, tmp_path: Path) -> None:
    big = save(tmp_path / "big.fits", sky())
    at = listed(tmp_path / "a.csv", "330,-2", "150,92", "150,-91", "151,2", "60,0", "-210,2", head="ra,dec")
    results = results_at(reader, big, at)
    assert [str(result.image).split(": ")[1].split()[0] for result in results[:5]] == ["is", "is", "is", "lies", "lies"]
    assert [(result.ra, result.dec) for result in results[:2]] == [(330, -2), (150, 92)]
    assert isinstance(results[5].image, Image)


def test_a_little_over_the_edge_is_filled_and_noted(reader: Reader, tmp_path: Path) -> None:
    pixels = sky()
    (result,) = results_at(reader, save(tmp_path / "big.fits", pixels), listed(tmp_path / "a.csv", "100.5,9.5"))
    assert isinstance(result.image, Image)
    assert result.image.notes == ["8.3% of the pixels were off the image"]
    assert result.image.mask is not None
    assert np.flatnonzero(result.image.mask.all(axis=1)).tolist() == [0, 1]
    assert result.image.mask.sum() == 2 * 24
    assert np.array_equal(result.image.pixels[2:], pixels[:22, 89:113])


def test_an_image_too_large_for_one_lens_is_cut(reader: Reader, tmp_path: Path) -> None:
    pixels = np.zeros((6000, 6000), np.uint8)
    pixels[5900:, 5900:] = np.random.default_rng(1).integers(0, 255, (100, 100))
    big = save(tmp_path / "big.fits", pixels)
    with pytest.raises(ImageError, match="6000 x 6000 pixels; needs sides of at most 4096"):
        formats.read(big)
    (read,) = pixels_of(results_at(reader, big, on_sky(tmp_path / "a.csv", (6000, 6000), ((5949.5, 5949.5),))))
    assert np.array_equal(read, pixels[5938:5962, 5938:5962])


def test_no_more_is_read_than_a_cutout_needs(reader: Reader, tmp_path: Path) -> None:
    words = fits.PrimaryHDU(np.zeros((2, 2), np.float32)).header
    words["NAXIS1"] = words["NAXIS2"] = 40_000  # 6.4 GB, of which the disk holds what was written
    with (tmp_path / "big.fits").open("wb") as file:
        file.write(words.tostring().encode())
        start = file.tell()
        for row in range(24):
            file.seek(start + 4 * (40_000 * (20_000 + row) + 30_000))
            file.write(sky()[row, :24].astype(">f4").tobytes())
        file.truncate(start + 4 * 40_000**2)
    at = listed(tmp_path / "a.csv", "30011.5,20011.5")
    (read,) = pixels_of(results_at(reader, tmp_path / "big.fits", at))
    assert np.array_equal(read, sky()[:24, :24])


@pytest.mark.parametrize("name", ["big.fits", "big.fits.fz"])
@pytest.mark.parametrize("side", [0, 1_000_000])
def test_a_header_that_claims_too_much_is_refused_quickly(tmp_path: Path, name: str, side: int) -> None:
    big = save(tmp_path / name, sky())
    axes = rb"(ZNAXIS[12] =) +[23]00" if big.suffix == ".fz" else rb"(NAXIS[12]  =) +[23]00"
    data, n_changed = re.subn(axes, rb"\1 " + str(side).encode().rjust(20), big.read_bytes())
    assert n_changed == 2
    big.write_bytes(data)
    before = time.monotonic()
    with pytest.raises(DataError, match=r"big\.fits.*truncated, or not a FITS file"):
        locate_positions(big, positions(tmp_path / "a.csv"), ImageSelector())
    assert time.monotonic() - before < 30


def test_a_tile_too_large_to_unpack_costs_a_row(
    reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = save(tmp_path / "big.fits.fz", sky())
    monkeypatch.setattr(cutouts, "MAX_UNPACKED_BYTES", 25 * 300 * 8 - 1)
    with cutouts.Mosaic(big, None) as mosaic:
        assert mosaic.cut(0, XY[0], (23, 24)).pixels.shape == (23, 24)
        with pytest.raises(ImageError, match=r"has tiles of \(1, 300\) pixels"):
            mosaic.cut(0, XY[0], SIZE)


def test_a_large_packed_image_is_to_be_unpacked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = save(tmp_path / "big.fits.gz", sky())
    monkeypatch.setattr(limits, "MAX_UNPACKED_BYTES", 100_000)
    with pytest.raises(
        ImageError, match="big.fits.gz: unpacks to too many bytes; needs at most 100,000. Unpack it first"
    ):
        cutouts.Mosaic(big, None)


def test_a_packed_file_in_disguise_is_unpacked_within_the_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = save(tmp_path / "big.fits.gz", sky()).rename(tmp_path / "big.fits")
    assert len(locate_positions(big, positions(tmp_path / "a.csv"), ImageSelector()).xy)
    monkeypatch.setattr(limits, "MAX_UNPACKED_BYTES", 100_000)
    with pytest.raises(ImageError, match="big.fits: unpacks to too many bytes"):
        cutouts.Mosaic(big, None)


def test_what_cannot_be_cut_says_why(tmp_path: Path) -> None:
    at = positions(tmp_path / "a.csv")
    np.save(tmp_path / "a.npy", sky())
    fits.PrimaryHDU(np.zeros((3, 20, 20))).writeto(tmp_path / "cube.fits")
    for name, reason in (("a.npy", "is no FITS image"), ("none.fits", "no such file"), ("cube.fits", "a cube")):
        with pytest.raises(DataError, match=reason):
            locate_positions(tmp_path / name, at, ImageSelector())
    with pytest.raises(DataError, match="has no extension SCI"):
        locate_positions(save(tmp_path / "big.fits", sky()), at, ImageSelector(hdu="SCI"))


def test_a_catalogue_without_positions_says_what_it_has_and_needs(tmp_path: Path) -> None:
    big, bare = save(tmp_path / "big.fits", sky()), save(tmp_path / "bare.fits", sky(), has_sky=False)
    for head, row, path, reason in (
        (
            "ra,mag",
            "1,2",
            big,
            r"has the columns ra, mag; needs ra, dec \(degrees\) or x, y \(pixels, the first is 0\)",
        ),
        ("x,y", "", big, "holds no positions"),
        ("ra,dec", "150,2", bare, "bare.fits: does not tell where it lies on the sky; .* Give x, y"),
    ):
        with pytest.raises(DataError, match=reason):
            locate_positions(path, listed(tmp_path / "a.csv", row, head=head), ImageSelector())
    for name, reason in (
        ("none.csv", "no such file"),
        ("big.doc", "is no catalogue that sublens reads; needs one of .csv"),
    ):
        (tmp_path / "big.doc").touch()
        with pytest.raises(DataError, match=reason):
            locate_positions(big, tmp_path / name, ImageSelector())


def test_pixels_serve_where_the_image_knows_no_sky(reader: Reader, tmp_path: Path) -> None:
    bare = save(tmp_path / "bare.fits", sky(), has_sky=False)
    at = listed(tmp_path / "a.csv", "150,2,31.5,51.5", head="ra,dec,x,y")
    (result,) = results_at(reader, bare, at)
    assert isinstance(result.image, Image)
    assert np.array_equal(result.image.pixels, around(sky(), XY[0]))
    assert result.image.pixel_scale is None


@pytest.mark.parametrize("name", ["a.ecsv", "a.fits", "a.vot"])
def test_units_and_gaps_of_a_table_are_used(reader: Reader, tmp_path: Path, name: str) -> None:
    big, path = save(tmp_path / "big.fits", sky()), tmp_path / name
    ra = MaskedColumn([150.0, 150.0, 150.0], mask=[False, True, False], unit="deg")
    table = Table({"id": [4, 5, 6], "ra": ra, "dec": np.radians([2.0, 2.0, 2.0])})
    table["dec"].unit = "rad"
    table.write(path, format={".ecsv": "ascii.ecsv", ".fits": "fits", ".vot": "votable"}[path.suffix])
    results = results_at(reader, big, path)
    assert [(result.id, isinstance(result.image, Image)) for result in results] == [
        ("4", True),
        ("5", False),
        ("6", True),
    ]
    table["dec"].unit = "kg"
    table.write(path, format={".ecsv": "ascii.ecsv", ".fits": "fits", ".vot": "votable"}[path.suffix], overwrite=True)
    with pytest.raises(DataError, match="column dec is in kg"):
        locate_positions(big, path, ImageSelector())


@pytest.mark.parametrize(("name", "content"), [("a.fits", b"SIMPLE"), ("a.vot", b"<a>"), ("a.ecsv", b"\xff\x00")])
def test_a_damaged_catalogue_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        locate_positions(save(tmp_path / "big.fits", sky()), tmp_path / name, ImageSelector())


def test_a_catalogue_may_not_grow_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big, at = save(tmp_path / "big.fits", sky()), positions(tmp_path / "a.csv")
    monkeypatch.setattr(catalogue, "MAX_POSITIONS", 2)
    with pytest.raises(DataError, match="holds too many positions; needs at most 2. Split it"):
        cutouts.locate_in_mosaic(big, None, at)
    monkeypatch.setattr(cutouts, "MAX_CATALOGUE_BYTES", 20)
    with pytest.raises(DataError, match="needs at most 20"):
        cutouts.locate_in_mosaic(big, None, at)


def test_a_catalogue_whose_data_lie_elsewhere_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(np.array([(150.0, 2.0)], ">f8,>f8").tobytes())
    (tmp_path / "a.vot").write_text(
        '<VOTABLE version="1.3" xmlns="http://www.ivoa.net/xml/VOTable/v1.3"><RESOURCE><TABLE>'
        '<FIELD name="ra" datatype="double"/><FIELD name="dec" datatype="double"/>'
        f'<DATA><BINARY><STREAM href="file://{secret}"/></BINARY></DATA></TABLE></RESOURCE></VOTABLE>'
    )
    with pytest.raises(DataError, match=r"a\.vot"):
        locate_positions(save(tmp_path / "big.fits", sky()), tmp_path / "a.vot", ImageSelector())
    (table,) = catalogue.open_tables(tmp_path / "a.vot")  # outside the child, they are
    assert np.asarray(table.read([0])).tolist() == [[150.0]]


def test_a_child_that_dies_costs_one_position(tmp_path: Path) -> None:
    big = save(tmp_path / "big.fits", sky())
    cuts = list(locate_positions(big, positions(tmp_path / "a.csv"), ImageSelector()).cuts(big, SIZE))
    with Reader() as reader:
        cuts[1] = Cutout(big, 1, XY[1], (40_000, 40_000), "greedy", 150.0, 2.0)
        results = list(reader.read(cuts))
    assert [isinstance(result.image, Image) for result in results] == [True, False, True]
    assert "more memory" in str(results[1].image)
    assert (results[1].id, results[1].ra, results[1].number) == ("greedy", 150.0, 1)


@pytest.mark.parametrize("scale", [0.01, 0.03, 0.049, 0.0501, 0.07, 0.2, 3.0])
@pytest.mark.parametrize("shape", [(150, 150), (151, 60)])
def test_what_is_needed_fills_the_frame(scale: float, shape: tuple[int, int]) -> None:
    size = resample.cutout_size(shape, 0.05, scale)
    image = Image(np.random.default_rng(0).normal(0, 1, size), pixel_scale=scale)
    framed = resample.resample_image(image, shape, min(shape), 0.05)
    assert framed.pixels.shape == shape
    assert min(size) * scale < 1.2 * min(shape) * 0.05 + 6 * scale
    assert resample.cutout_size(shape, None, scale) == resample.cutout_size(shape, 0.05, None) == shape
    with pytest.raises(ImageError, match="Check the pixel scale"):
        resample.cutout_size(shape, 0.05, 1e-4)


LENSES = ((95.5, 135.5), (424.5, 274.5), (220.5, 99.5))
"""Where three simulated lenses of 150 pixels lie in the field."""


@pytest.fixture(scope="module")
def lenses() -> NDArray[np.float64]:
    _, counts = simulate(preset("common-test-1"), 9, "test", range(3))
    return counts.astype(np.float64)


@pytest.fixture
def field(tmp_path: Path, lenses: NDArray[np.float64]) -> Path:
    """A sky of 10 counts with the three lenses in it."""
    pixels = np.random.default_rng(2).poisson(10, (400, 600)).astype(np.float32)
    for (x, y), counts in zip(LENSES, lenses, strict=True):
        around(pixels, (x, y), (150, 150))[:] = counts
    return save(tmp_path / "field.fits", pixels)


def table_rows(inputs: list[Path], out: Path, **options: Path) -> list[dict[str, Any]]:
    predict_files.predict_to_table(Query("lensnet", inputs, **options), out)  # type: ignore[arg-type]
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_a_lens_is_predicted_as_if_cut_out_before(field: Path, lenses: NDArray[np.float64], tmp_path: Path) -> None:
    names = [f"lens {number}" for number in range(3)]
    for number, counts in enumerate(lenses):
        np.save(tmp_path / f"{number}.npy", counts)
    apart = table_rows([tmp_path / f"{number}.npy" for number in range(3)], tmp_path / "apart.jsonl")
    for at in (
        on_sky(tmp_path / "sky.csv", (400, 600), LENSES, id=names),
        positions(tmp_path / "pixels.csv", LENSES, id=names),
    ):
        rows = table_rows([field], tmp_path / f"{at.stem}.jsonl", at=at)
        assert [row["id"] for row in rows] == names
        assert [row["label"] for row in rows] == ["no", "sphere", "vort"]
        assert {(row["path"], row["notes"], row["error"]) for row in rows} == {(str(field), "", "")}
        known = ("p_no", "p_sphere", "p_vort", "ood_score", "prediction_set")
        assert [[row[name] for name in known] for row in rows] == [[row[name] for name in known] for row in apart]
        ra, dec = WCS(header((400, 600))).all_pix2world(*np.transpose(LENSES), 0)
        assert np.allclose([(row["ra"], row["dec"]) for row in rows], np.transpose([ra, dec]), rtol=0, atol=1e-8)


def test_missing_pixels_of_a_field_are_filled_or_flagged(field: Path, tmp_path: Path) -> None:
    pixels = fits.getdata(field)
    for (x, y), half in zip(LENSES, (0, 1, 2), strict=True):
        around(pixels, (x - 30, y), (2 * half, 2 * half))[:] = np.nan
    rows = table_rows(
        [save(tmp_path / "a.fits", pixels)], tmp_path / "a.jsonl", at=positions(tmp_path / "a.csv", LENSES)
    )
    assert [(row["label"], row["ood"]) for row in rows] == [("no", False), ("sphere", False), ("vort", True)]
    assert [row["prediction_set"] for row in rows] == ["no", "sphere", ""]
    assert rows[0]["notes"] == ""
    assert "4 missing pixels, 4 of them in the central 4.8 x 4.8 arcsec, the nearest 1.5 arcsec" in str(
        rows[1]["notes"]
    )
    assert "16 missing pixels" in str(rows[2]["notes"])


def test_a_field_of_another_scale_is_resampled(field: Path, tmp_path: Path) -> None:
    pixels, size = np.kron(fits.getdata(field), np.ones((2, 2))), resample.cutout_size((150, 150), 0.05, 0.025)
    save(tmp_path / "fine.fits", pixels, scale=0.025)
    centres = tuple((2 * x + 0.5, 2 * y + 0.5) for x, y in LENSES)
    apart = [save(tmp_path / f"{xy}.fits", around(pixels, xy, size), scale=0.025) for xy in centres]
    expected = table_rows(apart, tmp_path / "apart.jsonl")
    rows = table_rows([tmp_path / "fine.fits"], tmp_path / "a.jsonl", at=positions(tmp_path / "a.csv", centres))
    assert [row["p_vort"] for row in rows] == [row["p_vort"] for row in expected]
    assert {str(row["notes"]) for row in rows} == {
        "resampled from 0.025 to 0.05 arcsec a pixel; cut to 150 x 150 pixels"
    }


def test_an_unknown_scale_is_noted_or_set_by_the_user(field: Path, tmp_path: Path) -> None:
    at, bare = positions(tmp_path / "a.csv", LENSES), save(tmp_path / "bare.fits", fits.getdata(field), has_sky=False)
    (first, *_) = predict_files.predict(Query("lensnet", [bare], at=at))
    assert (first.notes, first.ra) == (("pixel scale not in the file; taken as 0.05 arcsec",), None)
    (first, *_) = predict_files.predict(Query("lensnet", [bare], at=at, pixel_scale=0.1))
    assert first.notes[0] == "resampled from 0.1 to 0.05 arcsec a pixel"


def test_a_stopped_catalogue_goes_on_where_it_was(field: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sublens.inference.journal.BATCH", 4)
    monkeypatch.setattr(predictor, "BATCH", 4)
    at = positions(tmp_path / "a.csv", (*LENSES, (-9.0, 9.0), *LENSES, *LENSES), name=list("abcdefghij"))
    whole = table_rows([field], tmp_path / "whole.jsonl", at=at)
    assert [bool(row["error"]) for row in whole] == [number == 3 for number in range(10)]
    add, added = Journal.add, []

    def killed(self: Journal, index: tuple[int, int], row: tables.Record) -> None:
        if index == (6, 0) and index not in added:
            added.append(index)
            raise KeyboardInterrupt
        added.append(index)
        add(self, index, row)

    monkeypatch.setattr(Journal, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        table_rows([field], tmp_path / "a.jsonl", at=at)
    assert table_rows([field], tmp_path / "a.jsonl", at=at) == whole
    assert added == [(n, 0) for n in (*range(7), *range(4, 10))]


def test_another_catalogue_is_begun_anew(field: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sublens.inference.journal.BATCH", 1)
    at = positions(tmp_path / "a.csv", LENSES)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Journal, "finish", killed)
        table_rows([field], tmp_path / "a.jsonl", at=at)
    with pytest.warns(UserWarning, match="begins anew"):
        rows = table_rows([field], tmp_path / "a.jsonl", at=positions(at, LENSES[::-1]))
    assert [row["label"] for row in rows] == ["vort", "sphere", "no"]


def test_the_command_takes_one_image_and_a_catalogue(
    field: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = positions(tmp_path / "a.csv", (*LENSES, (-9.0, 9.0)))
    with pytest.raises(SystemExit) as end:
        cli.main(["predict", str(field), "--at", str(at)])
    assert end.value.code == 0
    printed = capsys.readouterr()
    rows = [line.split("\t") for line in printed.out.splitlines()[1:]]
    assert [Path(row[0]).name for row in rows] == [f"field.fits#{number}" for number in range(4)]
    assert [row[1] for row in rows] == ["no", "sphere", "vort", ""]
    assert "1 of 4 images could not be used" in printed.err
    with pytest.raises(ConfigError, match="one image only"):
        list(predict_files.predict(Query("lensnet", [field, field], at=at)))


def test_a_wcs_that_cannot_be_read_is_told_and_pixels_are_used_without_it(tmp_path: Path) -> None:
    header = fits.Header({"CTYPE1": "RA---TNX", "CTYPE2": "DEC--TNX", "CDELT1": -1e-5, "CDELT2": 1e-5})
    fits.PrimaryHDU(sky(), header).writeto(tmp_path / "a.fits")
    (tmp_path / "sky.csv").write_text("ra,dec\n150,2\n")
    with pytest.raises(DataError, match=r"a\.fits: its position on the sky cannot be read: the projection TNX"):
        locate_positions(tmp_path / "a.fits", tmp_path / "sky.csv", ImageSelector())
    (tmp_path / "xy.csv").write_text("x,y\n100,100\n")
    assert locate_positions(tmp_path / "a.fits", tmp_path / "xy.csv", ImageSelector()).pixel_scale == pytest.approx(
        0.036
    )


def test_companions_mark_missing_pixels_of_a_cutout(tmp_path: Path) -> None:
    flags = np.zeros(sky().shape, np.int16)
    flags[50, 60] = 1
    hdus = [fits.ImageHDU(sky(), name="SCI"), fits.ImageHDU(flags, name="DQ")]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(tmp_path / "a.fits")
    with cutouts.Mosaic(tmp_path / "a.fits", None) as mosaic:
        _, missing, _, _ = mosaic._pixels_around((60, 50), (21, 21))
        assert mosaic.cut(0, (60, 50), (21, 21)).notes[0] == "image: SCI, mask: DQ"
    assert missing.mask is not None
    assert np.argwhere(missing.mask).tolist() == [[10, 10]]


def test_the_command_takes_named_columns_and_a_table(
    field: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Table({"Source": ["a", "b", "c"], "X_c": [x for x, _ in LENSES], "Y_c": [y for _, y in LENSES]})
    hdus = [fits.BinTableHDU(table, name=name) for name in ("LENSES", "STARS")]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(tmp_path / "a.fits")
    options = ["--at", str(tmp_path / "a.fits"), "--columns", "x=X_c,y=Y_c", "--table", "LENSES"]
    with pytest.raises(SystemExit):
        cli.main(["predict", str(field), *options])
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[1] for row in rows] == ["no", "sphere", "vort"]
    assert {row[8] for row in rows} == {"x from X_c, y from Y_c, id from Source of table 1 LENSES"}


def test_a_mask_is_believed_where_it_covers_a_cutout_and_empty_noise_is_not(tmp_path: Path) -> None:
    flags, noise = np.zeros(sky().shape, np.int16), np.zeros(sky().shape)
    flags[40:62, 50:72] = 1
    for name, companion in (("DQ", flags), ("ERR", noise)):
        hdus = [fits.ImageHDU(sky(), name="SCI"), fits.ImageHDU(companion, name=name)]
        fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(tmp_path / f"{name}.fits")
    with cutouts.Mosaic(tmp_path / "DQ.fits", None) as mosaic, pytest.raises(ImageError, match="are missing"):
        mosaic.cut(0, (60, 50), (21, 21))
    with cutouts.Mosaic(tmp_path / "ERR.fits", None) as mosaic:
        image = mosaic.cut(0, (60, 50), (21, 21))
    assert image.mask is None
    assert "ERR marks 100% of the pixels, so it was not used as a mask" in image.notes
