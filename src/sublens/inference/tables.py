"""Tables of predictions: CSV, JSON lines, Parquet, FITS, ECSV or VOTable, by the end of the name.

They are written row by row, so that a million images need no more memory than one.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self
from xml.sax.saxutils import escape

import numpy as np

from sublens.errors import ConfigError
from sublens.inference.predictor import BATCH, SLICE, Row
from sublens.storage import object_store
from sublens.storage.files import tidy, translate_errors, whole_file

BLOCK = 4096
"""Rows that are turned into bytes at once."""
UNPRINTABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML has no way to say."""
VOTABLE_HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3">
<RESOURCE type="results">
<TABLE name="predictions">
<DESCRIPTION>Dark-matter substructure in images of strong lenses, as sublens sees it</DESCRIPTION>
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


def columns(classes: Sequence[str]) -> list[Column]:
    """The columns of a table of predictions of these classes."""
    return [
        Column(
            "id", "text", "Name of the image: that of its position, or its file and place in it", "meta.id;meta.main"
        ),
        Column("path", "text", "File that it was read_predictions from", "meta.ref.url"),
        Column("label", "text", "Most probable class", "meta.code.class"),
        *(Column(f"p_{name}", "number", f"Calibrated probability of {name}", "stat.probability") for name in classes),
        Column("prediction_set", "text", "Classes that together hold the truth nine times in ten", "meta.code.class"),
        Column("ood_score", "number", "How unlike the training images it is; 0 is usual", "stat.value"),
        Column("ood", "truth", "Whether it is too unlike them for the rest to be trusted", "meta.code.qual"),
        Column("notes", "text", "What was done to the image, and what looks wrong with it", "meta.note"),
        Column("error", "text", "Why the image could not be judged; empty where it was", "meta.code.error"),
        Column("ra", "number", "Right ascension of its centre, ICRS", "pos.eq.ra;meta.main", "deg"),
        Column("dec", "number", "Declination of its centre, ICRS", "pos.eq.dec;meta.main", "deg"),
        Column("bundle", "text", "Network that judged it, and the beginning of its weights' sha256", "meta.software"),
        Column("version", "text", "Version of sublens", "meta.version"),
    ]


def record(row: Row, classes: Sequence[str], bundle: str, version: str) -> Record:
    """A row as the table has it; None where there is nothing to tell."""
    one = row.prediction
    held = one.prediction_set if one else None
    return {
        "id": row.id or (row.path.stem if row.number is None else f"{row.path.stem}#{row.number}"),
        "path": str(row.path),
        "label": one.label if one else "",
        **{f"p_{name}": one.probs[name] if one else None for name in classes},
        "prediction_set": "" if held is None else ",".join(held) or "none",
        "ood_score": one.ood if one else None,
        "ood": one.is_ood if one and one.ood is not None else None,
        "notes": "; ".join(row.notes),
        "error": row.error,
        "ra": row.ra,
        "dec": row.dec,
        "bundle": bundle,
        "version": version,
    }


class Journal:
    """The rows so far, one a line in a file beside the table, so that a killed command can go on.

    Its first line says what was asked for; a journal of something else is begun anew. Each row is
    kept with its place: the number of the input and that of the image in it.
    """

    def __init__(self, table: Path, plan: Mapping[str, Any]) -> None:
        if table.suffix.lower() not in WRITERS:
            raise ConfigError(
                f"{table}: sublens writes tables as {', '.join(WRITERS)}. End the name with one of these."
            )
        self._path, self._table = object_store.staged(table).with_name(f".{table.name}.journal"), table
        self._plan = json.dumps(plan, sort_keys=True)

    def __enter__(self) -> Self:
        with translate_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a+b")
        self.place, end = self._found()
        if end:
            self._file.truncate(end)
        else:
            self.begin_anew()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _found(self) -> tuple[tuple[int, int], int]:
        """Where to go on, as (input, image in it), and the bytes up to there: after whole batches.

        Images that share a batch with others can differ in the last digit.
        """
        self._file.seek(0)
        place, kept, end, n_together, last = (0, 0), 0, 0, 0, (0, 0)
        for number, line in enumerate(self._file):
            if not line.endswith(b"\n") or (number == 0 and line.decode().strip() != self._plan):
                break
            if number:
                here = _place_of(line)
                if here[0] // SLICE != last[0] // SLICE:  # which no batch spans
                    place, kept, n_together = here, end, 0
                n_together, last = n_together + 1, here
            end += len(line)
            if n_together % BATCH == 0:
                kept = end
                place = (last[0], last[1] + 1) if number else place
        return place, kept

    def begin_anew(self) -> None:
        """Forget all rows."""
        self.place = (0, 0)
        self._file.truncate(0)
        self._write(self._plan)

    def add(self, place: tuple[int, int], one: Record) -> None:
        """Keep a row."""
        self._write(json.dumps({"place": place, "record": one}))

    def _write(self, line: str) -> None:
        with translate_errors(self._path):
            self._file.write(line.encode() + b"\n")

    def records(self) -> Iterator[Record]:
        """All rows so far."""
        with translate_errors(self._path):
            self._file.flush()
        with self._path.open("rb") as file:
            next(file)
            for line in file:
                yield json.loads(line)["record"]

    def finish(self, classes: Sequence[str]) -> tuple[int, int]:
        """Write the table, whole or not at all, and remove the journal; returns how many rows it has, and failures."""
        n_failed = [bool(one["error"]) for one in self.records()]
        with whole_file(self._table) as partial:
            WRITERS[self._table.suffix.lower()](partial, columns(classes), self.records)
        self._path.unlink()
        tidy(self._table)
        return len(n_failed), sum(n_failed)


def _place_of(line: bytes) -> tuple[int, int]:
    """Where a line of the journal has its row from, without reading the rest of it."""
    first, second = line[line.index(b"[") + 1 : line.index(b"]")].split(b",")
    return int(first), int(second)


Rows = Callable[[], Iterator[Record]]
"""Gives all records, each time it is called."""


def _csv(path: Path, known: list[Column], rows: Rows) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([column.name for column in known])
        for one in rows():
            table.writerow([_plain(one[column.name]) for column in known])


def _plain(cell: Cell) -> str:
    return "" if cell is None else str(cell).lower() if isinstance(cell, bool) else str(cell)


def _jsonl(path: Path, known: list[Column], rows: Rows) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in rows())


def _parquet(path: Path, known: list[Column], rows: Rows) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {"text": pa.string(), "number": pa.float64(), "truth": pa.bool_()}
    about = [{"description": column.description, "ucd": column.ucd, "unit": column.unit} for column in known]
    fields = [
        pa.field(column.name, kinds[column.kind], metadata=told) for column, told in zip(known, about, strict=True)
    ]
    schema = pa.schema(fields)
    with parquet.ParquetWriter(path, schema) as file:
        for some in _blocks(rows()):
            file.write_table(pa.Table.from_pylist(some, schema=schema))


def _blocks(records: Iterator[Record]) -> Iterator[list[Record]]:
    while some := list(islice(records, BLOCK)):
        yield some


def _fits(path: Path, known: list[Column], rows: Rows) -> None:
    from astropy.io import fits

    widths, n = dict.fromkeys((column.name for column in known), 1), 0
    for one in rows():
        n += 1
        for name, width in widths.items():
            widths[name] = max(width, len(_ascii(one[name])))
    formats = {"text": "A{}", "number": "D", "truth": "L"}
    kinds = {"text": "S{}", "number": ">f8", "truth": "S1"}
    dtype = np.dtype([(column.name, kinds[column.kind].format(widths[column.name])) for column in known])
    header = fits.Header([("XTENSION", "BINTABLE"), ("BITPIX", 8), ("NAXIS", 2)])
    header.update(NAXIS1=dtype.itemsize, NAXIS2=n, PCOUNT=0, GCOUNT=1, TFIELDS=len(known), EXTNAME="PREDICTIONS")
    for number, column in enumerate(known, start=1):
        header[f"TTYPE{number}"] = column.name
        width = widths[column.name] if column.kind == "text" else 1
        header[f"TFORM{number}"] = f"{width}{formats[column.kind][0]}"
        header[f"TCOMM{number}"], header[f"TUCD{number}"] = column.description, column.ucd
        if column.unit:
            header[f"TUNIT{number}"] = column.unit
    with path.open("wb") as file:
        file.write(fits.PrimaryHDU().header.tostring().encode("ascii"))
        file.write(header.tostring().encode("ascii"))
        for some in _blocks(rows()):
            cells = [tuple(_binary(column, one[column.name]) for column in known) for one in some]
            file.write(np.array(cells, dtype).tobytes())
        file.write(bytes(-n * dtype.itemsize % 2880))


def _ascii(cell: Cell) -> bytes:
    return str(cell).encode("ascii", "backslashreplace") if isinstance(cell, str) else b""


def _binary(column: Column, cell: Cell) -> bytes | float:
    if column.kind == "text":
        return _ascii(cell)
    if column.kind == "truth":
        return b"T" if cell else b"F"  # astropy warns of anything else
    return np.nan if cell is None else float(cell)


def _ecsv(path: Path, known: list[Column], rows: Rows) -> None:
    head = io.StringIO()
    _empty(known).write(head, format="ascii.ecsv", delimiter=",")
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(head.getvalue())
        table = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        for one in rows():
            table.writerow([_typed(column, one[column.name]) for column in known])


def _typed(column: Column, cell: Cell) -> Cell:
    if cell is None:
        return np.nan if column.kind == "number" else False
    return cell


def _empty(known: list[Column]) -> Any:
    """An astropy table without rows, whose columns are described."""
    from astropy.table import Table

    kinds = {"text": "U1", "number": "f8", "truth": "bool"}
    table = Table({column.name: np.zeros(0, kinds[column.kind]) for column in known})
    for column in known:
        table[column.name].description = column.description
        table[column.name].meta["ucd"] = column.ucd
        table[column.name].unit = column.unit or None
    return table


def _votable(path: Path, known: list[Column], rows: Rows) -> None:
    kinds = {
        "text": 'datatype="unicodeChar" arraysize="*"',
        "number": 'datatype="double"',
        "truth": 'datatype="boolean"',
    }
    with path.open("w", encoding="utf-8") as file:
        file.write(VOTABLE_HEAD)
        for column in known:
            unit = f' unit="{column.unit}"' if column.unit else ""
            file.write(
                f'<FIELD name="{escape(column.name)}" {kinds[column.kind]} ucd="{column.ucd}"{unit}>'
                f"<DESCRIPTION>{escape(column.description)}</DESCRIPTION></FIELD>\n"
            )
        file.write("<DATA><TABLEDATA>\n")
        for one in rows():
            cells = "".join(f"<TD>{_markup(one[column.name])}</TD>" for column in known)
            file.write(f"<TR>{cells}</TR>\n")
        file.write("</TABLEDATA></DATA>\n</TABLE>\n</RESOURCE>\n</VOTABLE>\n")


def _markup(cell: Cell) -> str:
    if isinstance(cell, str):
        return escape(UNPRINTABLE.sub("?", cell))
    return "" if cell is None else ("T" if cell else "F") if isinstance(cell, bool) else repr(cell)


WRITERS: dict[str, Callable[[Path, list[Column], Rows], None]] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
    ".fits": _fits,
    ".ecsv": _ecsv,
    ".vot": _votable,
    ".xml": _votable,
}
"""How a table is written, by the end of its name."""
