"""Catalogues of positions: which columns hold them, in which units, and their values.

A column is known by its name, in any case and with or without signs between the words, by its UCD, or as the part of
an astropy SkyCoord; where two could be meant the catalogue is refused, unless the user names one. Only the columns
that are needed are kept. Catalogues are read in the child process of `reader`, which limits time and memory.
"""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sublens.errors import ConfigError, DataError
from sublens.images import fits_image
from sublens.images.limits import damaged_file, unpack

MAX_POSITIONS = 1_000_000
"""Most positions in a catalogue."""
SKY, PIXELS, ID = ("ra", "dec"), ("x", "y"), "id"
COLUMNS = (*SKY, *PIXELS, ID)
"""What a catalogue can tell of a position."""
NEED = "ra, dec (degrees) or x, y (pixels, the first is 0)"
"""The columns that a catalogue needs."""
ANGLES = {
    **dict.fromkeys(("", "deg", "degs", "degree", "degrees", "angular degree", "angular degrees", "d:m:s", "dms"), 1.0),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours", "hourangle", "h:m:s", "hms"), 15.0),
    **dict.fromkeys(("rad", "radian", "radians"), 180 / np.pi),
    **{"arcmin": 1 / 60, "arcsec": 1 / 3600, "mas": 1 / 3.6e6},
}
"""Degrees in an angle of each unit."""
NAMES = {
    "ra": r"(?:ra|raj2000|raicrs|rightascension|alphaj2000|alphawinj2000)",
    "dec": r"(?:dec|de|dej2000|decj2000|deicrs|decicrs|declination|deltaj2000|deltawinj2000)",
    "x": "x",
    "y": "y",
}
"""Regular expressions of the names of columns, without signs and in small letters; a unit may follow an angle's."""
UNIT = r"(deg(?:rees?)?|hours?|rad(?:ians?)?)?"
ID_NAMES = ("id", "name", "sourceid", "source", "objid", "objectid", "number", "targetid")
"""Names of columns that hold names of objects; the first that a catalogue has is taken."""
UCD = re.compile(r"pos[._]eq[._](ra|dec)(;meta\.main|_main)?\b")
"""A UCD whose first word is an equatorial coordinate."""
SEXAGESIMAL = re.compile(
    r"([+-]?)(\d{1,3}) ?([:hd° ]) ?(\d{1,2}(?:\.\d*)?) ?(?:[:m'′ ] ?(\d{1,2}(?:\.\d*)?)? ?[s\"″]?)?"
)
MAX_CELL = 40
"""Most characters of a position in a cell."""
DELIMITERS = (",", ";", "\t", "|")
"""What may stand between the cells of a text; blanks, where there is none of these."""
FRAMES = ("", "icrs", "fk5", "eq_fk5", "fk5 j2000", "eq_fk5 j2000")
"""Celestial frames that differ by less than 0.1 arcsec."""


class CatalogueSelector(NamedTuple):
    """The columns and the table of a catalogue to use, where they do not follow from it."""

    columns: Mapping[str, str] = {}
    """Names of columns by what they hold: ra, dec, x, y or id."""
    table: str | None = None
    """Number or name of the table in a file with several."""


WHOLE = CatalogueSelector()
"""No choice: the columns and the table follow from the catalogue."""


class Field(NamedTuple):
    """One column of a table."""

    name: str
    unit: str = ""
    ucd: str = ""
    axis: str = ""
    """ra or dec, where the column belongs to a SkyCoord."""
    frame: str = ""
    """Celestial frame, where the file tells it."""


Cells = Sequence[str] | NDArray[Any]
"""The values of a column."""


class Column(NamedTuple):
    """A column and its values."""

    field: Field
    cells: Cells

    def angles(self, name: str) -> NDArray[np.float64]:
        """Angles [n] in degrees, of decimals in the column's unit or of hours (ra) or degrees, minutes and seconds.

        name: ra or dec. NaN for a cell that is no angle; raises `DataError` where the column holds none.
        """
        field, by_name = self.field, _by_name(self.field, name)
        unit = (field.unit or (by_name and by_name[1]) or "").strip(" \"[]()'").lower()
        if unit not in ANGLES or (name == "dec" and ANGLES[unit] == ANGLES["h"]):
            raise DataError(f"column {field.name} is in {unit}", need="an angle", next="Convert it to degrees.")
        frame = "B1950" if "1950" in field.name else field.frame
        if frame.lower() not in FRAMES:
            raise DataError(f"column {field.name} is in {frame}", need="ICRS, or FK5 J2000", next="Convert it.")
        decimals = self.numbers(has_comma=True) * ANGLES[unit]
        angles = np.full(len(decimals), np.nan)
        if not self._is_numeric:
            for row in np.flatnonzero(np.isnan(decimals)).tolist():
                angles[row] = _sexagesimal(_text(self.cells[row]), 15.0 if name == "ra" else 1.0)
        is_sexagesimal, in_degrees = np.isfinite(angles), name == "ra" and unit != "" and ANGLES[unit] != ANGLES["h"]
        if is_sexagesimal.any() and (in_degrees or np.isfinite(decimals).any()):
            what = f"column {field.name} holds hours, minutes and seconds beside degrees"
            raise DataError(what, need="the one or the other", next="Convert it to degrees.")
        return np.where(is_sexagesimal, angles, decimals)

    def numbers(self, *, has_comma: bool = False) -> NDArray[np.float64]:
        """Numbers [n], also of texts, which may have a decimal comma; NaN for a cell that is none."""
        kind = getattr(self.cells, "dtype", np.dtype(str))
        if kind.kind not in "fiuSUO" or np.ndim(self.cells) != 1:
            raise DataError(f"column {self.field.name} holds {kind} values", need="numbers", next="Convert it.")
        if self._is_numeric:
            return np.asarray(np.ma.filled(np.ma.asarray(self.cells).astype(np.float64), np.nan))
        return np.array([_number(_text(cell), has_comma=has_comma) for cell in self.cells], np.float64)

    def texts(self) -> list[str]:
        """Values as texts [n], empty where there is none."""
        return [_text(cell) for cell in (self.cells.tolist() if isinstance(self.cells, np.ndarray) else self.cells)]

    @property
    def _is_numeric(self) -> bool:
        return isinstance(self.cells, np.ndarray) and self.cells.dtype.kind in "fiu"


class Table(NamedTuple):
    """A table whose cells are not read yet."""

    number: int
    name: str
    fields: Sequence[Field]
    read: Callable[[Sequence[int]], Sequence[Cells]]
    """The cells of the columns of these indices."""


def parse_columns(text: str) -> dict[str, str]:
    """Names of columns from `ra=NAME,dec=NAME,id=NAME`; raises `ConfigError`."""
    parts = [part.partition("=") for part in text.split(",")]
    columns = {key.strip().lower(): name.strip() for key, _, name in parts}
    both = [pair for pair in (SKY, PIXELS) if columns.keys() & set(pair)]
    if not all(columns.values()) or not columns.keys() <= set(COLUMNS) or len(columns) < len(parts) or len(both) > 1:
        raise ConfigError(
            f"{text!r} does not name columns",
            need="ra=NAME,dec=NAME or x=NAME,y=NAME, and id=NAME if there is one",
            next="For instance --columns ra=RAJ2000,dec=DEJ2000,id=Source.",
        )
    return columns


def open_tables(path: Path) -> list[Table]:
    """The tables of a catalogue; raises `DataError` where its format is unknown, else as the format's library does."""
    name = Path(path.stem) if path.suffix.lower() == ".gz" else path
    if (reader := READERS.get(name.suffix.lower())) is None:
        what = f"{path.suffix or 'no ending'} is no catalogue that sublens reads"
        raise DataError(what, need=f"one of {', '.join(READERS)}", next="Convert it to one of these.")
    return reader(path)


def choose_table(tables: Sequence[Table], selector: CatalogueSelector) -> Table:
    """The named table, or the only one that holds positions."""
    if selector.table is None and len(tables) == 1:
        return tables[0]
    chosen = [table for table in tables if selector.table in (str(table.number), table.name)]
    what = f"has {len(chosen)} tables named {selector.table}"
    if selector.table is None:
        chosen = [table for table in tables if _has_positions(table, selector.columns)]
        what = f"holds positions in {len(chosen)} of its {len(tables)} tables"
    if len(chosen) == 1:
        return chosen[0]
    names = ", ".join(f"{table.number}: {table.name or 'unnamed'}" for table in tables)
    raise DataError(what, need=f"one of {names}" if tables else NEED, next="Name a table with --table.")


def _has_positions(table: Table, named: Mapping[str, str]) -> bool:
    names = {field.name.lower() for field in table.fields}
    known = {name for name in COLUMNS if name in named or _candidates(table.fields, name)}
    return {name.lower() for name in named.values()} <= names and (set(SKY) <= known or set(PIXELS) <= known)


def choose_columns(fields: Sequence[Field], named: Mapping[str, str]) -> dict[str, int]:
    """Indices of the columns that hold positions: the named ones, or else those that are known."""
    pairs = [pair for pair in (SKY, PIXELS) if named.keys() & set(pair)] or [SKY, PIXELS]
    chosen = {}
    for name in (*(name for pair in pairs for name in pair), ID):
        indices = _named(fields, named[name]) if name in named else _candidates(fields, name)
        if len(indices) > 1:
            raise DataError(
                f"columns {' and '.join(fields[index].name for index in indices)} could both be {name}",
                need=f"one column for {name}",
                next=f"Name it with --columns, as {name}={fields[indices[0]].name}.",
            )
        if indices:
            chosen[name] = indices[0]
    if not any(set(pair) <= chosen.keys() for pair in pairs):
        raise DataError(
            f"has the columns {', '.join(field.name for field in fields) or 'none'}",
            need=NEED,
            next="Name them with --columns ra=NAME,dec=NAME, or x=NAME,y=NAME.",
        )
    return chosen


def _named(fields: Sequence[Field], name: str) -> list[int]:
    """The columns of that name, in this case or else in any."""
    indices = [index for index, field in enumerate(fields) if field.name == name]
    indices = indices or [index for index, field in enumerate(fields) if field.name.lower() == name.lower()]
    if not indices:
        known = ", ".join(field.name for field in fields)
        raise DataError(f"has no column {name}", need=f"one of {known}", next="Name it with --columns.")
    return indices


def _candidates(fields: Sequence[Field], name: str) -> list[int]:
    """The columns that could hold this; the main one alone where the UCDs of all of them say which it is."""
    if name == ID:
        plain = [_plain(field.name) for field in fields]
        first = next((known for known in ID_NAMES if known in plain), None)
        return [index for index, known in enumerate(plain) if known == first]
    indices = [index for index, field in enumerate(fields) if _holds(field, name)]
    ucds = [UCD.match(fields[index].ucd.lower()) for index in indices]
    main = [index for index, ucd in zip(indices, ucds, strict=True) if ucd and ucd[2]]
    return main if all(ucds) and len(main) == 1 else indices


def _holds(field: Field, name: str) -> bool:
    ucd = UCD.match(field.ucd.lower())
    return field.axis == name or _by_name(field, name) is not None or bool(ucd and ucd[1] == name)


def _by_name(field: Field, name: str) -> re.Match[str] | None:
    """Whether the name is one of those for `name`; its first group is the unit in it."""
    return re.fullmatch(NAMES[name] + (UNIT if name in SKY else "()"), _plain(field.name))


def _plain(name: str) -> str:
    """A name in small letters without the signs between words and units."""
    return re.sub(r"[\s_.,()\[\]]", "", name.lower())


def _number(cell: str, *, has_comma: bool) -> float:
    try:
        return float(cell[:MAX_CELL]) if "_" not in cell else float("nan")
    except ValueError:
        is_decimal = has_comma and re.fullmatch(r"[+-]?\d{1,3},\d{1,20}", cell)
        return float(cell.replace(",", ".")) if is_decimal else float("nan")


def _sexagesimal(cell: str, degrees: float) -> float:
    """Degrees of a cell as 10:00:12.3, 10 00 12.3 or 10h00m12.3s, NaN where it is none.

    degrees: those in the first number, where no letter tells.
    """
    match = SEXAGESIMAL.fullmatch(" ".join(cell[:MAX_CELL].lower().split()))
    if match is None or not cell.strip():
        return float("nan")
    sign, whole, letter, minutes, seconds = match.groups()
    if float(minutes) >= 60 or float(seconds or 0) >= 60:
        return float("nan")
    size = {"h": 15.0, "d": 1.0, "°": 1.0}.get(letter, degrees)
    return (-1 if sign == "-" else 1) * size * (int(whole) + float(minutes) / 60 + float(seconds or 0) / 3600)


def _text(cell: Any) -> str:
    if cell is None or cell is np.ma.masked:
        return ""
    text = cell.decode(errors="replace") if isinstance(cell, bytes) else str(cell)
    return text.replace("\0", "").strip()


def _open_text(path: Path) -> Iterator[str]:
    """The lines of a text in UTF-8 or, where it begins so, UTF-16."""
    file = unpack(path)
    with file:
        start = file.read(2)
        file.seek(0)
        encoding = "utf-16" if start in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        yield from io.TextIOWrapper(file, encoding, errors="replace", newline="")


def _is_comment(line: str) -> bool:
    """Whether a line is a comment, or empty."""
    return line.lstrip()[:1] in "#"  # which holds the empty text


def _rows(path: Path, delimiter: str) -> Iterator[list[str]]:
    """The rows of a text that hold any cell, without comments."""
    lines = (line for line in _open_text(path) if not _is_comment(line))
    if delimiter == " ":
        lines = (line.strip() + "\n" for line in lines)
    rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    return (row for row in rows if row and row != [""])


def _text_table(path: Path) -> list[Table]:
    """The one table of a text: CSV, other separators, or ECSV, whose header tells units.

    The names stand in the first line, or in the comment before it; units may follow in lines of their own.
    """
    comments = [line.rstrip() for line in takewhile(_is_comment, _open_text(path))]
    if comments and comments[0].startswith("# %ECSV"):
        fields, delimiter = _described(line[2:] for line in comments[1:])
        return [Table(1, "", fields, _text_reader(path, delimiter, 1, len(fields)))]
    first = next((line for line in _open_text(path) if not _is_comment(line)), "")
    head, n_skipped = first, 1
    comment = next((line.strip("# ") for line in reversed(comments) if line.strip("# ")), "")
    if comment and any(map(_is_number, _split(first))) and len(_split(comment)) == len(_split(first)):
        head, n_skipped = comment, 0
    delimiter = _delimiter(head)
    names = [name.strip(" #") for name in _split(head)]
    units = [""] * len(names)
    for row in islice(_rows(path, delimiter), n_skipped, n_skipped + 3):
        if not _is_unit_row(row):
            break
        n_skipped += 1
        units = [cell.strip(" -") or unit for cell, unit in zip([*row, *units[len(row) :]], units, strict=False)]
    fields = [Field(name, unit) for name, unit in zip(names, units, strict=True)]
    return [Table(1, "", fields, _text_reader(path, delimiter, n_skipped, len(fields)))]


def _text_reader(path: Path, delimiter: str, n_skipped: int, n: int) -> Callable[[Sequence[int]], Sequence[Cells]]:
    """The function that reads columns of a text whose rows have n cells."""

    def read(indices: Sequence[int]) -> Sequence[Cells]:
        columns: list[list[str]] = [[] for _ in indices]
        rows = islice(_rows(path, delimiter), n_skipped, n_skipped + MAX_POSITIONS + 1)
        for number, row in enumerate(rows, start=1):
            if any(row[n:]) or (delimiter == " " and len(row) != n):
                raise DataError(
                    f"row {number} has {len(row)} cells", need=f"{n}, as its header", next="Correct or quote them."
                )
            for cells, index in zip(columns, indices, strict=True):
                cells.append(row[index] if index < len(row) else "")
        return columns

    return read


def _delimiter(line: str) -> str:
    """What separates the cells of a line."""
    counts = {sign: len(next(csv.reader([line], delimiter=sign), [])) for sign in DELIMITERS}
    best = max(counts, key=lambda sign: counts[sign])
    return best if counts[best] > 1 else " "


def _split(line: str) -> list[str]:
    return next(csv.reader([line.strip(" \r\n")], delimiter=_delimiter(line), skipinitialspace=True), [])


def _is_number(cell: str) -> bool:
    return bool(np.isfinite(_number(cell, has_comma=True)) or np.isfinite(_sexagesimal(cell, 1.0)))


def _is_unit_row(row: Iterable[str]) -> bool:
    """Whether a row holds units, or dashes, in place of values."""
    cells = [cell.strip(" \"[]()'").lower() for cell in row]
    return not any(map(_is_number, cells)) and any(
        (cell in ANGLES and len(cell) > 1) or (cell and not set(cell) - set("-")) or cell in ("pix", "pixel", "h")
        for cell in cells
    )


def _described(header: Iterable[str]) -> tuple[list[Field], str]:
    """Columns and delimiter by a YAML header of astropy's; those of a SkyCoord stay the numbers that they are."""
    from astropy.table import meta  # slow to import

    words, axes = meta.get_header_from_yaml(header), dict[str, tuple[str, str]]()
    for parts in words.get("meta", {}).get("__serialized_columns__", {}).values():
        if parts["__class__"].endswith(".SkyCoord"):
            frame = f"{parts['frame']} {parts.get('equinox', '')}".strip().removesuffix(".000")
            axes |= {parts[axis]["value"]["name"]: (axis, frame) for axis in SKY if axis in parts}
    fields = []
    for column in words["datatype"]:
        axis, frame = axes.get(column["name"], ("", ""))
        ucd = str(column.get("meta", {}).get("ucd", ""))
        fields.append(Field(column["name"], str(column.get("unit", "")), ucd, axis, frame))
    return fields, words.get("delimiter", " ")


def _fits_tables(path: Path) -> list[Table]:
    from astropy.io import fits

    with unpack(path) as file:
        if not fits_image.begins_as_fits(file):
            raise damaged_file("a FITS table")
        hdus = fits.open(io.BytesIO(file.read()), memmap=False, lazy_load_hdus=True)
    kinds = fits.BinTableHDU | fits.TableHDU
    return [_fits_table(number, hdu) for number, hdu in enumerate(hdus) if isinstance(hdu, kinds)]


def _fits_table(number: int, hdu: Any) -> Table:
    header = hdu.header
    comments = "\n".join(header["COMMENT"]) if "COMMENT" in header else ""
    words = comments.partition("--BEGIN-ASTROPY-SERIALIZED-COLUMNS--\n")[2].partition("--END-")[0]
    parts = _described(words.replace("\\\n", "").splitlines())[0] if words else []
    axes, frame = {field.name: field for field in parts}, str(header.get("RADESYS", ""))
    fields = []
    for index, column in enumerate(hdu.columns, start=1):
        known = axes.get(column.name, Field(column.name, frame=frame))
        fields.append(known._replace(unit=column.unit or "", ucd=str(header.get(f"TUCD{index}", ""))))

    def read(indices: Sequence[int]) -> Sequence[Cells]:
        columns, nulls = map(hdu.data.field, indices), (hdu.columns[index].null for index in indices)
        pairs = zip(columns, nulls, strict=True)
        return [np.ma.masked_equal(cells, null) if isinstance(null, int) else cells for cells, null in pairs]

    return Table(number, hdu.name, fields, read)


def _votables(path: Path) -> list[Table]:
    from astropy.io.votable import parse

    file = parse(str(path))
    systems = {system.ID: system for system in file.iter_coosys()}
    return [_votable(number, table, systems) for number, table in enumerate(file.iter_tables(), start=1)]


def _votable(number: int, table: Any, systems: Mapping[str, Any]) -> Table:
    fields = []
    for column in table.fields:
        system = systems.get(column.ref)
        frame = f"{system.system} {system.equinox or ''}".strip() if system else ""
        fields.append(Field(column.name or column.ID, str(column.unit or ""), column.ucd or "", "", frame))
    names = table.array.dtype.names or ()
    return Table(number, table.name or "", fields, lambda indices: [table.array[names[index]] for index in indices])


def _any_table(path: Path) -> list[Table]:
    with unpack(path) as file:
        is_fits = fits_image.begins_as_fits(file)
    return _fits_tables(path) if is_fits else _text_table(path)


READERS: dict[str, Callable[[Path], list[Table]]] = {
    **dict.fromkeys((".csv", ".tsv", ".txt", ".dat", ".ecsv"), _text_table),
    **dict.fromkeys((".fits", ".fit", ".fts"), _fits_tables),
    **dict.fromkeys((".vot", ".xml", ".votable"), _votables),
    ".cat": _any_table,
}
"""Function that opens the tables of a catalogue, by the end of its name, or the end before .gz."""
