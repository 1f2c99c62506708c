"""Tables of predictions: CSV, JSON lines, Parquet, FITS, ECSV or VOTable, by the end of the name.

They are written row by row, so that a million images need no more memory than one.
"""

import csv
import io
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from sublens.inference.predictor import Row
from sublens.models.bundle import Card
from sublens.models.macro import FittedLens
from sublens.storage import object_store

BLOCK = 4096
"""Number of rows that are turned into bytes at once."""
PLAN_BYTES = 2**20
"""Length of the beginning and of the end of a table in which its plan is looked up, bytes."""
BETWEEN = ","
"""Stands between the classes of a prediction set."""
MARK = b"prediction_set"
"""Name of a column that every table has, as its bytes."""
UNPRINTABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML cannot hold."""
VOTABLE_HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3">
<RESOURCE type="results">
<TABLE name="predictions">
<DESCRIPTION>Dark-matter substructure in images of strong lenses, as sublens predicts it</DESCRIPTION>
"""


class Column(NamedTuple):
    """One column of a table of predictions."""

    name: str
    kind: Literal["text", "number", "truth"]
    description: str
    ucd: str
    unit: str = ""


Cell = str | float | bool | None
Record = dict[str, Cell]


MACROMODEL = [
    Column("theta_e", "number", "Einstein radius of the lens", "phys.angSize", "arcsec"),
    Column("theta_e_sigma", "number", "Its standard deviation", "stat.error;phys.angSize", "arcsec"),
    Column("axis_ratio", "number", "Axis ratio of the lens's mass", "phys.size.axisRatio"),
    Column("axis_ratio_sigma", "number", "Its standard deviation", "stat.error"),
    Column(
        "position_angle",
        "number",
        "Angle from the image's x axis to the long axis of the mass, counter-clockwise",
        "pos.posAng",
        "deg",
    ),
    Column("position_angle_sigma", "number", "Its standard deviation", "stat.error;pos.posAng", "deg"),
]
"""Columns of what a macro head measures."""
LIMIT = Column(
    "limit_msun",
    "number",
    "Least mass of one subhalo on the arc, M200, that would have been found nine times in ten",
    "phys.mass",
    "solMass",
)
"""Column of the detection limit."""


FIT = [
    Column(
        "fit_chi2",
        "number",
        "Squared residual of the fitted smooth lens over the noise's, mean of the pixels",
        "stat.fit.chi2",
    ),
    Column(
        "string_gain",
        "number",
        "Natural logarithm of the evidence that is gained by one string beside the smooth lens",
        "stat.likelihood",
    ),
    Column(
        "subhalo_gain",
        "number",
        "Natural logarithm of the evidence that is gained by one subhalo beside the smooth lens",
        "stat.likelihood",
    ),
]
"""Columns of a lens that was fitted to the image, in the order of `FittedLens`; the Einstein radius is then of the
fit."""


NOISE = [
    Column("noise", "text", "Source of the noise: a map, estimated, or a file named by option", "meta.note"),
    Column("psf_fwhm", "number", "Full width of the point-spread function at half maximum", "instr.det.psf", "arcsec"),
    Column("n_masked", "number", "Number of masked pixels in the network's input", "meta.number"),
]
"""Columns of a network that takes signal to noise."""


def heads(card: Card, *, has_fit: bool = False) -> dict[str, bool]:
    """Arguments of `columns` and `record` that say which columns a network has beyond those of all.

    has_fit: whether lenses are fitted.
    """
    return {
        "has_fit": has_fit,
        "has_macro": card.has_macro,
        "has_noise": card.input.takes_noise,
        "has_limit": card.detection is not None,
    }


def columns(
    classes: Sequence[str],
    *,
    has_macro: bool = False,
    has_noise: bool = False,
    has_limit: bool = False,
    has_fit: bool = False,
) -> list[Column]:
    """The columns of a table of predictions of these classes.

    has_macro: and of the lens that a macro head measures. has_noise: and of the noise of each image. has_limit: and
    of the detection limit. has_fit: and of the lens that was fitted.
    """
    return [
        Column(
            "id", "text", "Name of the image: that of its position, or its file and place in it", "meta.id;meta.main"
        ),
        Column("path", "text", "File that it was read from", "meta.ref.url"),
        Column("label", "text", "Most probable class", "meta.code.class"),
        *(Column(f"p_{name}", "number", f"Calibrated probability of {name}", "stat.probability") for name in classes),
        Column(
            "prediction_set",
            "text",
            "Classes that together hold the truth nine times in ten, in each class",
            "meta.code.class",
        ),
        Column(
            "ood_score",
            "number",
            "Distance from the training images; about 0 for an average one",
            "stat.value",
        ),
        Column(
            "ood", "truth", "Whether it is out of distribution, so that the rest cannot be trusted", "meta.code.qual"
        ),
        *(MACROMODEL if has_macro else []),
        *(FIT if has_fit else []),
        *([LIMIT] if has_limit else []),
        *(NOISE if has_noise else []),
        Column("notes", "text", "Changes made to the image, and faults in it", "meta.note"),
        Column("error", "text", "Why the image has no prediction; empty if it has one", "meta.code.error"),
        Column("ra", "number", "Right ascension of its centre, ICRS", "pos.eq.ra;meta.main", "deg"),
        Column("dec", "number", "Declination of its centre, ICRS", "pos.eq.dec;meta.main", "deg"),
        Column("bundle", "text", "Network, and the beginning of its weights' sha256", "meta.software"),
        Column("version", "text", "Version of sublens", "meta.version"),
    ]


def record(
    row: Row,
    classes: Sequence[str],
    bundle: str,
    version: str,
    *,
    has_macro: bool = False,
    has_noise: bool = False,
    has_limit: bool = False,
    has_fit: bool = False,
) -> Record:
    """A row as a table of these `columns` has it; None where there is no value.

    Bytes of a file name that are no UTF-8 are escaped.
    """
    prediction = row.prediction
    lens = (prediction and prediction.macromodel) or {}
    cells: Record = {
        "id": row.id or (row.path.stem if row.number is None else f"{row.path.stem}#{row.number}"),
        "path": str(row.path),
        "label": prediction.label if prediction else "",
        **{f"p_{name}": prediction.probs[name] if prediction else None for name in classes},
        "prediction_set": set_text(prediction.prediction_set if prediction else None),
        "ood_score": prediction.ood if prediction else None,
        "ood": prediction.is_ood if prediction else None,
        **({column.name: lens.get(column.name) for column in MACROMODEL} if has_macro else {}),
        **(_fit_cells(row.fit) if has_fit else {}),
        **({LIMIT.name: prediction.limit_msun if prediction else None} if has_limit else {}),
        **({column.name: getattr(row, column.name) for column in NOISE} if has_noise else {}),
        "notes": "; ".join(row.notes),
        "error": row.error,
        "ra": row.ra,
        "dec": row.dec,
        "bundle": bundle,
        "version": version,
    }
    return {name: _utf8(cell) if isinstance(cell, str) else cell for name, cell in cells.items()}


def _fit_cells(lens: FittedLens | None) -> Record:
    return {column.name: value for column, value in zip(FIT, lens or (None, None, None), strict=True)}


class Totals(NamedTuple):
    """Numbers of rows of a table."""

    n_images: int = 0
    n_failed: int = 0
    """Those without a prediction."""
    n_ood: int = 0
    """Those that are out of distribution."""
    n_open: int = 0
    """Those whose prediction set holds more than one class."""

    def after(self, row: Record) -> "Totals":
        """The numbers with one row more."""
        is_open = BETWEEN in str(row["prediction_set"])
        return Totals(
            self.n_images + 1, self.n_failed + bool(row["error"]), self.n_ood + bool(row["ood"]), self.n_open + is_open
        )


def set_text(members: Sequence[str] | None) -> str:
    """A prediction set as text: its classes between commas, {} where it is empty, nothing where there is no set."""
    return "" if members is None else BETWEEN.join(members) or "{}"


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def is_complete(table: Path, plan: Mapping[str, Any]) -> bool:
    """Whether a table was made by the same plan; False for .csv and .jsonl, which have no place for a plan."""
    if table.suffix.lower() in PLAIN or not table.is_file():
        return False
    with suppress(OSError), object_store.local(table).open("rb") as file:
        head = file.read(PLAN_BYTES)
        file.seek(max(file.seek(0, io.SEEK_END) - PLAN_BYTES, 0))
        return plan_digest(plan).encode() in head + file.read()
    return False


def plan_digest(plan: Mapping[str, Any]) -> str:
    """Hexadecimal sha256 of a plan, which tables hold."""
    return sha256(plan_text(plan).encode()).hexdigest()


def plan_text(plan: Mapping[str, Any]) -> str:
    """A plan as JSON."""
    return json.dumps(plan, sort_keys=True)


Rows = Callable[[], Iterator[Record]]
"""A function that gives all records, each time it is called."""


class Writer(Protocol):
    """Writes a new file of one format."""

    def __call__(self, path: Path, fields: list[Column], rows: Rows, plan: str = "") -> None:
        """plan: digest of what made the rows, kept in the file unless its format is in `PLAIN`."""


def _csv(path: Path, fields: list[Column], rows: Rows, plan: str = "") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([column.name for column in fields])
        for row in rows():
            table.writerow([_plain(row[column.name]) for column in fields])


def _plain(cell: Cell) -> str:
    return "" if cell is None else str(cell).lower() if isinstance(cell, bool) else str(cell)


def _jsonl(path: Path, fields: list[Column], rows: Rows, plan: str = "") -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows())


def _parquet(path: Path, fields: list[Column], rows: Rows, plan: str = "") -> None:
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {"text": pa.string(), "number": pa.float64(), "truth": pa.bool_()}
    about = [{"description": column.description, "ucd": column.ucd, "unit": column.unit} for column in fields]
    parts = [
        pa.field(column.name, kinds[column.kind], metadata=words) for column, words in zip(fields, about, strict=True)
    ]
    schema = pa.schema(parts, metadata={"plan": plan})
    with parquet.ParquetWriter(path, schema) as file:
        for block in _blocks(rows()):
            file.write_table(pa.Table.from_pylist(block, schema=schema))


def _blocks(records: Iterator[Record]) -> Iterator[list[Record]]:
    while block := list(islice(records, BLOCK)):
        yield block


def _fits(path: Path, fields: list[Column], rows: Rows, plan: str = "") -> None:
    from astropy.io import fits

    widths, n = dict.fromkeys((column.name for column in fields), 1), 0
    for row in rows():
        n += 1
        for name, width in widths.items():
            widths[name] = max(width, len(_ascii(row[name])))
    table = _empty_hdu(fields, widths)
    table.header["NAXIS2"], table.header["PLAN"] = n, plan
    dtype = table.columns.dtype.newbyteorder(">")
    path.unlink(missing_ok=True)  # a stream is appended to what is there
    with closing(fits.StreamingHDU(path, table.header)) as file:
        for block in _blocks(rows()):
            cells = [tuple(_binary(column, row[column.name]) for column in fields) for row in block]
            file.write(np.array(cells, dtype).view(np.uint8))


def _empty_hdu(fields: list[Column], widths: Mapping[str, int]) -> Any:
    """A FITS table without rows, whose text columns are so many bytes wide."""
    from astropy.io import fits

    formats = {"number": "D", "truth": "L"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fits.verify.VerifyWarning)  # of names that are not letters and digits
        parts = [
            fits.Column(
                _printable(column.name), formats.get(column.kind, f"{widths[column.name]}A"), column.unit or None
            )
            for column in fields
        ]
        table = fits.BinTableHDU.from_columns(parts, nrows=0, name="PREDICTIONS")
    for number, column in enumerate(fields, start=1):
        table.header[f"TCOMM{number}"], table.header[f"TUCD{number}"] = _printable(column.description), column.ucd
    return table


def _printable(text: str) -> str:
    """Text for a FITS header, which holds printable ASCII: all else is escaped."""
    return text.encode("unicode_escape").decode()


def _ascii(cell: Cell) -> bytes:
    return str(cell).encode("ascii", "backslashreplace") if isinstance(cell, str) else b""


def _binary(column: Column, cell: Cell) -> bytes | float:
    if column.kind == "text":
        return _ascii(cell)
    if column.kind == "truth":
        return ord("F" if cell is False else "T")  # astropy reads the null of the standard as False
    return np.nan if cell is None else float(cell)


def _ecsv(path: Path, fields: list[Column], rows: Rows, plan: str = "") -> None:
    head = io.StringIO()
    _empty_table(fields, plan).write(head, format="ascii.ecsv", delimiter=",")
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(head.getvalue())
        for row in rows():
            file.write(",".join(_typed(column, row[column.name]) for column in fields) + "\n")


def _typed(column: Column, cell: Cell) -> str:
    """A cell of an ECSV table: text in quotes, an empty cell for a truth that is not known."""
    if isinstance(cell, str):
        return '"' + cell.replace('"', '""') + '"'
    if cell is None:
        return "nan" if column.kind == "number" else ""
    return str(cell)


def _empty_table(fields: list[Column], plan: str) -> Any:
    """An astropy table without rows, whose columns are described."""
    from astropy.table import Table

    kinds = {"text": "U1", "number": "f8", "truth": "bool"}
    table = Table({column.name: np.zeros(0, kinds[column.kind]) for column in fields}, meta={"plan": plan})
    for column in fields:
        table[column.name].description = column.description
        table[column.name].meta["ucd"] = column.ucd
        table[column.name].unit = column.unit or None
    return table


def _votable(path: Path, fields: list[Column], rows: Rows, plan: str = "") -> None:
    kinds = {
        "text": 'datatype="unicodeChar" arraysize="*"',
        "number": 'datatype="double"',
        "truth": 'datatype="boolean"',
    }
    with path.open("w", encoding="utf-8") as file:
        file.write(f'{VOTABLE_HEAD}<INFO name="plan" value={quoteattr(plan)}/>\n')
        for column in fields:
            unit = f' unit="{column.unit}"' if column.unit else ""
            name = quoteattr(UNPRINTABLE.sub("?", column.name))
            file.write(
                f'<FIELD name={name} {kinds[column.kind]} ucd="{column.ucd}"{unit}>'
                f"<DESCRIPTION>{_markup(column.description)}</DESCRIPTION></FIELD>\n"
            )
        file.write("<DATA><TABLEDATA>\n")
        for row in rows():
            cells = "".join(f"<TD>{_markup(row[column.name])}</TD>" for column in fields)
            file.write(f"<TR>{cells}</TR>\n")
        file.write("</TABLEDATA></DATA>\n</TABLE>\n</RESOURCE>\n</VOTABLE>\n")


def _markup(cell: Cell) -> str:
    if isinstance(cell, str):
        return escape(UNPRINTABLE.sub("?", cell))
    return "" if cell is None else ("T" if cell else "F") if isinstance(cell, bool) else repr(cell)


WRITERS: dict[str, Writer] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
    ".fits": _fits,
    ".ecsv": _ecsv,
    ".vot": _votable,
    ".xml": _votable,
}
"""How a table is written, by the end of its name."""
PLAIN = (".csv", ".jsonl")
"""Formats that hold nothing but rows."""
