"""Catalogues in the forms that people have."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import QTable, Table

from sublens.errors import ConfigError, DataError
from sublens.images.catalogue import CatalogueSelector, parse_columns
from sublens.images.cutouts import Positions, locate_in_mosaic
from sublens.inference.predict_files import Query

RA, DEC, IDS = (150.001, 149.999), (2.001, -0.5), ["J1", "J2"]
"""Two positions and their names; the second needs its sign."""
HMS, DMS = ("10:00:00.24", "09:59:59.76"), ("+02:00:03.6", "-00:30:00.0")
"""The same in hours and degrees, minutes and seconds."""


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.0, "CRVAL2": 2.0})
    words.update(CD1_1=-1e-3, CD1_2=0.0, CD2_1=0.0, CD2_2=1e-3, CRPIX1=15.0, CRPIX2=15.0)
    path = tmp_path_factory.mktemp("big") / "big.fits"
    fits.PrimaryHDU(np.eye(30), words).writeto(path)
    return path


def located(big: Path, path: Path, **options: Any) -> Positions:
    return locate_in_mosaic(big, None, path, CatalogueSelector(**options))


def assert_right(known: Positions, ids: list[str] | None = None) -> None:
    assert np.allclose(known.sky, np.transpose([RA, DEC]), rtol=0, atol=2e-7)
    assert known.ids.tolist() == (IDS if ids is None else ids)


def text(path: Path, head: str, separator: str = ",", ra: Any = RA, dec: Any = DEC) -> Path:
    rows = [separator.join(map(str, row)) for row in zip(IDS, ra, dec, strict=True)]
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


@pytest.mark.parametrize(
    "head",
    [
        *("id,ra,dec", "ID,RA,DEC", "Name,RAJ2000,DEJ2000", "name,_RAJ2000,_DEJ2000", "Source,RA_ICRS,DE_ICRS"),
        *("NUMBER,ALPHA_J2000,DELTA_J2000", "objid,ra_deg,dec_deg", "TARGETID,ra [deg],dec [deg]"),
        *("source_id,right_ascension,declination", "SOURCE_ID,RAdeg,DEdeg", "# by me\n# on a day\nid,ra,dec"),
        *("#id,ra,dec", "# by me\n# id,ra,dec", "id,ra,dec\n,deg,deg\n--,---,---", '"id","ra","dec"'),
    ],
)
def test_positions_are_found_by_the_names_of_the_columns(big: Path, tmp_path: Path, head: str) -> None:
    assert_right(located(big, text(tmp_path / "a.csv", head)))


@pytest.mark.parametrize("separator", [";", "\t", "|", " ", "   ", ", "])
def test_cells_may_be_separated_by_other_signs(big: Path, tmp_path: Path, separator: str) -> None:
    assert_right(located(big, text(tmp_path / "a.txt", separator.join(("id", "ra", "dec")), separator)))


@pytest.mark.parametrize(
    ("ra", "dec"),
    [
        (HMS, DMS),
        ([cell.replace(":", " ") for cell in HMS], [cell.replace(":", " ") for cell in DMS]),
        (("10h00m00.24s", "9h59m59.76s"), ("2d00m03.6s", "-0d30m00s")),
        ([str(angle).replace(".", ",") for angle in RA], [str(angle).replace(".", ",") for angle in DEC]),
    ],
)
def test_angles_may_be_sexagesimal_or_have_a_decimal_comma(big: Path, tmp_path: Path, ra: Any, dec: Any) -> None:
    assert_right(located(big, text(tmp_path / "a.csv", "id;ra;dec", ";", ra, dec)))
    table = Table({"id": IDS, "RAJ2000": list(ra), "DEJ2000": list(dec)})
    table.write(tmp_path / "a.fits")
    assert_right(located(big, tmp_path / "a.fits"))
    table.write(tmp_path / "a.vot", format="votable")
    assert_right(located(big, tmp_path / "a.vot"))


@pytest.mark.parametrize(
    "unit", ["degrees", "Degree", "DEG", "Angular Degree", "h", "hours", "HOURS", "hourangle", "rad"]
)
def test_units_are_understood_however_they_are_spelt(big: Path, tmp_path: Path, unit: str) -> None:
    ra = np.radians(RA) if unit == "rad" else np.array(RA) / (15 if unit[0] in "hH" else 1)
    hdu = fits.BinTableHDU(Table({"id": IDS, "ra": ra, "dec": DEC}))
    hdu.header["TUNIT2"] = unit
    hdu.writeto(tmp_path / "a.fits")
    assert_right(located(big, tmp_path / "a.fits"))
    assert_right(located(big, text(tmp_path / "a.csv", f"id,ra,dec\n,{unit},deg", ra=ra)))


def test_hours_may_stand_in_the_name(big: Path, tmp_path: Path) -> None:
    assert_right(located(big, text(tmp_path / "a.csv", "id,ra_hours,dec", ra=[angle / 15 for angle in RA])))


@pytest.mark.parametrize("name", ["a.ecsv", "a.fits"])
@pytest.mark.parametrize("frame", ["icrs", "fk5"])
def test_a_sky_coord_is_its_two_columns(big: Path, tmp_path: Path, name: str, frame: str) -> None:
    QTable({"id": IDS, "pos": SkyCoord([*RA], [*DEC], unit="deg", frame=frame)}).write(tmp_path / name)
    known = located(big, tmp_path / name)
    assert_right(known)
    assert known.note == "ra from pos.ra, dec from pos.dec, id from id"


@pytest.mark.parametrize("name", ["a.ecsv", "a.fits"])
def test_another_celestial_frame_is_refused(big: Path, tmp_path: Path, name: str) -> None:
    QTable({"pos": SkyCoord([*RA], [*DEC], unit="deg", frame="fk5", equinox="J1975")}).write(tmp_path / name)
    with pytest.raises(DataError, match=r"column pos\.ra is in fk5 J1975; needs ICRS"):
        located(big, tmp_path / name)
    with pytest.raises(DataError, match="column RAB1950 is in B1950"):
        located(big, text(tmp_path / "a.csv", "id,RAB1950,DEB1950"), columns={"ra": "RAB1950", "dec": "DEB1950"})


def votable(path: Path, *ucds: str) -> Path:
    """Columns c0, c1 ... of these UCDs, which hold ra, dec, ra, dec ... of the first position."""
    fields = "".join(f'<FIELD name="c{n}" datatype="double" ucd="{ucd}"/>' for n, ucd in enumerate(ucds))
    cells = "".join(f"<TD>{(RA[0], DEC[0])[n % 2] + n // 2}</TD>" for n in range(len(ucds)))
    path.write_text(
        '<VOTABLE version="1.3" xmlns="http://www.ivoa.net/xml/VOTable/v1.3"><RESOURCE><TABLE>'
        f"{fields}<DATA><TABLEDATA><TR>{cells}</TR></TABLEDATA></DATA></TABLE></RESOURCE></VOTABLE>"
    )
    return path


@pytest.mark.parametrize(
    "ucds",
    [
        ("pos.eq.ra", "pos.eq.dec"),
        ("POS_EQ_RA_MAIN", "POS_EQ_DEC_MAIN"),
        ("pos.eq.ra;meta.main", "pos.eq.dec;meta.main", "pos.eq.ra", "pos.eq.dec"),
        ("pos.eq.ra", "pos.eq.dec", "stat.error;pos.eq.ra", "stat.error;pos.eq.dec"),
    ],
)
def test_positions_are_found_by_ucd(big: Path, tmp_path: Path, ucds: tuple[str, ...]) -> None:
    assert np.allclose(located(big, votable(tmp_path / "a.vot", *ucds)).sky, [[RA[0], DEC[0]]])


@pytest.mark.parametrize("names", [("RA", "Ra"), ("ra", "RAJ2000"), ("ALPHA_J2000", "ALPHAWIN_J2000")])
@pytest.mark.parametrize("name", ["a.csv", "a.ecsv", "a.fits", "a.vot"])
def test_two_columns_that_could_be_meant_are_refused_until_one_is_named(
    big: Path, tmp_path: Path, names: tuple[str, str], name: str
) -> None:
    form = {".csv": "ascii.csv", ".vot": "votable"}.get(name[1:])
    Table({"id": IDS, names[0]: RA, names[1]: (0.0, 1.0), "dec": DEC}).write(tmp_path / name, format=form)
    with pytest.raises(DataError, match=f"columns {names[0]} and {names[1]} could both be ra; needs one column for ra"):
        located(big, tmp_path / name)
    assert_right(located(big, tmp_path / name, columns={"ra": names[0]}))


def test_two_columns_of_one_ucd_are_refused(big: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="columns c0 and c2 could both be ra"):
        located(big, votable(tmp_path / "a.vot", "pos.eq.ra", "pos.eq.dec", "pos.eq.ra", "pos.eq.dec"))


def test_named_columns_are_taken(big: Path, tmp_path: Path) -> None:
    path = text(tmp_path / "a.csv", "who,a,d")
    known = located(big, path, columns=parse_columns("ra=a, dec=d,id=who"))
    assert_right(known)
    assert known.note == "ra from a, dec from d, id from who"
    with pytest.raises(DataError, match="has no column b; needs one of who, a, d"):
        located(big, path, columns={"ra": "b", "dec": "d"})


@pytest.mark.parametrize("words", ["", "ra", "ra=", "ra=a,ra=b", "z=a", "ra=a,x=b"])
def test_what_names_no_columns_is_refused(words: str) -> None:
    with pytest.raises(ConfigError, match="does not name columns; needs ra=NAME,dec=NAME"):
        parse_columns(words)


def test_columns_without_a_catalogue_are_refused() -> None:
    with pytest.raises(ConfigError, match="Name it with --at"):
        Query("lensnet", [Path("a.fits")], columns=CatalogueSelector(table="1"))


def several(path: Path, *tables: Table) -> Path:
    """A file of an empty image, a table of another kind, and these tables."""
    other = fits.BinTableHDU(Table({"Field Header Card": ["SIMPLE  = T"]}), name="LDAC_IMHEAD")
    hdus = [fits.BinTableHDU(table, name=f"T{number}") for number, table in enumerate(tables)]
    fits.HDUList([fits.PrimaryHDU(), other, *hdus]).writeto(path)
    return path


@pytest.mark.parametrize("name", ["a.fits", "a.cat"])
def test_the_table_that_holds_positions_is_found_among_others(big: Path, tmp_path: Path, name: str) -> None:
    known = located(big, several(tmp_path / name, Table({"NUMBER": [7, 8], "ALPHA_J2000": RA, "DELTA_J2000": DEC})))
    assert_right(known, ["7", "8"])
    assert known.note == "ra from ALPHA_J2000, dec from DELTA_J2000, id from NUMBER of table 2 T0"


@pytest.mark.parametrize("table", ["3", "T1"])
def test_a_table_is_chosen_by_number_or_name(big: Path, tmp_path: Path, table: str) -> None:
    right, other = Table({"id": IDS, "ra": RA, "dec": DEC}), Table({"id": IDS, "ra": DEC, "dec": DEC})
    path = several(tmp_path / "a.fits", other, right)
    with pytest.raises(DataError, match="positions in 2 of its 3 tables; needs one of 1: LDAC_IMHEAD, 2: T0, 3: T1"):
        located(big, path)
    assert_right(located(big, path, table=table))
    with pytest.raises(DataError, match="has 0 tables named T9"):
        located(big, path, table="T9")


def test_long_numbers_stay_exact_as_ids(big: Path, tmp_path: Path) -> None:
    ids = [4295806720000000001, 4295806720000000002]
    table = Table({"source_id": ids, "ra": RA, "dec": DEC})
    for name, form in (("a.csv", "ascii.csv"), ("a.fits", "fits"), ("a.vot", "votable"), ("a.ecsv", "ascii.ecsv")):
        table.write(tmp_path / name, format=form)
        assert_right(located(big, tmp_path / name), list(map(str, ids)))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_texts_of_other_programs_are_read(big: Path, tmp_path: Path, encoding: str, end: str) -> None:
    words = text(tmp_path / "a.csv", "id,ra,dec").read_text().replace("\n", end)
    (tmp_path / "a.csv").write_bytes(words.encode(encoding))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(words.encode(encoding)))
    assert_right(located(big, tmp_path / "a.csv"))
    assert_right(located(big, tmp_path / "a.csv.gz"))


@pytest.mark.parametrize(
    ("head", "row", "words"),
    [
        ("id,ra,dec", "J1,150,001,2,001", "row 1 has 5 cells; needs 3, as its header"),
        ("id ra dec", "J1 10 00 00.24 02 00 03.6", "row 1 has 7 cells; needs 3"),
        ("id,ra,dec", "J1,150.001,2\nJ2,10:00:00,2", "hours, minutes and seconds beside degrees"),
        ("id,ra_deg,dec", "J1,10:00:00,2", "hours, minutes and seconds beside degrees"),
        ("id,ra,dec_hours", "J1,150,2", "column dec_hours is in hours; needs an angle"),
        ("id,l,b", "J1,150,2", "has the columns id, l, b; needs ra, dec"),
    ],
)
def test_a_catalogue_that_could_be_misread_is_refused(
    big: Path, tmp_path: Path, head: str, row: str, words: str
) -> None:
    (tmp_path / "a.csv").write_text(f"{head}\n{row}\n")
    with pytest.raises(DataError, match=words):
        located(big, tmp_path / "a.csv")


@pytest.mark.parametrize("cell", ["10:61:00", "10:00:60", "150d", "1_50", "25:00:00", "ten", " " * 100_000, ":" * 9])
def test_a_cell_that_is_no_angle_is_no_position(big: Path, tmp_path: Path, cell: str) -> None:
    (tmp_path / "a.csv").write_text(f"id,ra,dec\nJ1,{cell},2\nJ2,10:00:00,2\n")
    known = located(big, tmp_path / "a.csv")
    assert np.isnan(known.xy[0]).all()
    assert known.xy[1] == pytest.approx([14, 14], abs=1e-3)
