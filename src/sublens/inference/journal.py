"""The rows of an unfinished table in a file beside it, so that a killed command can go on.

.NAME.journal holds the plan, which decides every row, then one row a line. Each line begins with a checksum of itself
and of all lines before it, so that nothing from the first damaged line on is believed.
"""

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from sublens.errors import ConfigError, DataError
from sublens.inference.predictor import BATCH, SLICE
from sublens.inference.tables import WRITERS, Column, Record, Totals, plan_digest, plan_text
from sublens.storage import object_store
from sublens.storage.files import fitting_name, lock_file, tidy, translate_errors, whole_file

CHECKSUM_BYTES = 8
"""Length of the checksum of a line; the file holds it as twice as many hexadecimal digits."""


class _Line(NamedTuple):
    """A line whose checksum is right."""

    checksum: bytes
    """Checksum of the text and of all lines before it, in hexadecimal digits."""
    text: bytes

    def __bytes__(self) -> bytes:
        return b"%s %s\n" % self


def _line(before: bytes, text: bytes) -> _Line:
    """The line of a text that follows the line of checksum `before`."""
    return _Line(blake2b(before + text, digest_size=CHECKSUM_BYTES).hexdigest().encode(), text)


def _verified(lines: Iterable[bytes]) -> Iterator[_Line]:
    """The lines before the first damaged one."""
    checksum = b""
    for content in lines:
        line = _line(checksum, content[2 * CHECKSUM_BYTES + 1 : -1])
        if bytes(line) != content:
            return
        checksum = line.checksum
        yield line


class _Mark(NamedTuple):
    """The end of a line in a journal."""

    n_bytes: int
    checksum: bytes
    n_rows: int = 0
    source_index: tuple[int, int] = (0, 0)
    """Input, and image in it, of the next row."""

    def after(self, line: _Line, source_index: tuple[int, int]) -> "_Mark":
        """The end of the next line, a row of that source index."""
        first, second = source_index
        return _Mark(self.n_bytes + len(bytes(line)), line.checksum, self.n_rows + 1, (first, second + 1))


class Journal:
    """The rows so far, each with its source index: the number of the input and that of the image in it.

    A journal of another plan is begun anew, and a damaged one is cut back to its last whole batch, with a warning.
    Raises `DataError` where another process writes the same table.
    """

    def __init__(self, table: Path, plan: Mapping[str, Any]) -> None:
        if table.suffix.lower() not in WRITERS:
            raise ConfigError(
                f"a table cannot be written as {table.suffix or 'a file without an extension'}",
                need=f"one of {', '.join(WRITERS)}",
                next="End the name with one of these.",
                path=table,
            )
        self._path = object_store.staged(table).with_name(fitting_name(f".{table.name}", ".journal"))
        self._table = table
        self._plan, self._digest = plan_text(plan).encode(), plan_digest(plan)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            try:
                self._file = stack.enter_context(lock_file(self._path))
            except DataError as err:
                raise err.about(self._table) from err
            with translate_errors(self._path):
                self._resume()
            self._lock = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with translate_errors(self._path):
                self._lock.close()  # which writes what is buffered
        except DataError:
            if err is None:
                raise

    def _resume(self) -> None:
        """Cut the file back to its last whole batch, or begin anew."""
        self._file.seek(0)
        lines = _verified(self._file)
        plan = next(lines, None)
        if plan is None or plan.text != self._plan:
            self._warn_of_other_plan(plan)
            self.begin_anew()
            return
        batch, last = _ends(plan, lines)
        self._warn_of_damage(batch, last)
        self._file.truncate(batch.n_bytes)
        self.resume_at, self._checksum = batch.source_index, batch.checksum

    def _warn_of_other_plan(self, plan: _Line | None) -> None:
        self._file.seek(0)
        if self._file.readline().endswith(b"\n"):  # else it was stopped before it began
            why = (
                "the images, the network or the settings changed since it was stopped"
                if plan
                else "what is kept of it is damaged, or of another version of sublens"
            )
            warnings.warn(f"{self._table}: {why}; it begins anew.", stacklevel=4)

    def _warn_of_damage(self, batch: _Mark, last: _Mark) -> None:
        """Warn where whole lines follow the last good one; a killed command leaves but a part of one."""
        self._file.seek(last.n_bytes)
        n_damaged = sum(line.endswith(b"\n") for line in self._file)
        if n_damaged:
            n_lost = last.n_rows - batch.n_rows + n_damaged
            warnings.warn(
                f"{self._table}: {batch.n_rows:,} rows kept; {n_lost:,} rows after them were damaged, or follow "
                "damage, and are predicted anew.",
                stacklevel=4,
            )

    def begin_anew(self) -> None:
        """Drop all rows."""
        self.resume_at, self._checksum = (0, 0), b""
        with translate_errors(self._path):
            self._file.truncate(0)
        self._write(self._plan)

    def add(self, source_index: tuple[int, int], row: Record) -> None:
        """Keep a row."""
        self._write(json.dumps({"source_index": source_index, "record": row}).encode())

    def _write(self, text: bytes) -> None:
        line = _line(self._checksum, text)
        with translate_errors(self._path):
            self._file.write(bytes(line))
        self._checksum = line.checksum

    def records(self) -> Iterator[Record]:
        """All rows so far; `DataError` where they are not those that were written."""
        with translate_errors(self._path):
            self._file.flush()
            self._file.seek(0)
        checksum = b""
        for number, line in enumerate(_verified(self._file)):
            checksum = line.checksum
            if number:
                yield json.loads(line.text)["record"]
        if checksum != self._checksum:
            raise DataError(
                "was damaged while the table was made",
                need="the rows as they were written",
                next="Run the command again; it goes on after the last whole batch.",
                path=self._path,
            )

    def finish(self, fields: list[Column]) -> Totals:
        """Write the table of these columns, whole or not at all, and remove the journal."""
        totals = Totals()
        for row in self.records():
            totals = totals.after(row)
        with whole_file(self._table) as partial:
            WRITERS[self._table.suffix.lower()](partial, fields, self.records, self._digest)
        with translate_errors(self._path):
            self._path.unlink()
        tidy(self._table)
        return totals


def _ends(plan: _Line, rows: Iterable[_Line]) -> tuple[_Mark, _Mark]:
    """The ends of the last whole batch and of the last row.

    Images that share a batch with others can differ in the last digit.
    """
    batch = last = _Mark(len(bytes(plan)), plan.checksum)
    n_together = 0
    for row in rows:
        index = _source_index(row.text)
        if index[0] // SLICE != last.source_index[0] // SLICE:  # which no batch spans
            batch, n_together = last._replace(source_index=index), 0
        last, n_together = last.after(row, index), n_together + 1
        if n_together % BATCH == 0:
            batch = last
    return batch, last


def _source_index(text: bytes) -> tuple[int, int]:
    """The source index of a row, without reading the rest of it."""
    first, second = text[text.index(b"[") + 1 : text.index(b"]")].split(b",")
    return int(first), int(second)
