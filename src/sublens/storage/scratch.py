"""Temporary folders of this machine."""

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sublens.errors import SublensError

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a write that finds no space."""


class ScratchError(SublensError):
    """No temporary folder can be written, or it is full."""


@contextmanager
def folder() -> Iterator[Path]:
    """A temporary folder for the length of a `with` block; raises `ScratchError` where none can be made."""
    path = make()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def make() -> Path:
    """A new temporary folder, which stays; raises `ScratchError` where none can be made."""
    try:
        return Path(tempfile.mkdtemp(prefix="sublens-"))
    except OSError as err:
        raise ScratchError(
            "no temporary folder can be written",
            need="one with some space",
            next="Name one in TMPDIR; in a container, mount an empty volume at /tmp.",
        ) from err


@contextmanager
def filled() -> Iterator[None]:
    """Turn the lack of space in a temporary folder, to which the block writes, into a `ScratchError`."""
    try:
        yield
    except OSError as err:
        if err.errno not in FULL:
            raise
        raise ScratchError(
            f"the temporary folder {tempfile.gettempdir()} is full",
            need="some space in it",
            next="Free some, or name another folder in TMPDIR.",
        ) from err


@contextmanager
def blamed() -> Iterator[None]:
    """Turn the errors of libraries that find no temporary folder into a `ScratchError`."""
    try:
        yield
    except OSError:
        _check_folder()
        raise


def check_unless(path: Path, err: OSError) -> None:
    """Raise `ScratchError` where there is no temporary folder, and the error names no file beside `path` or in it."""
    place = Path(str(path)).absolute().parent
    if not (isinstance(err.filename, str) and Path(err.filename).absolute().is_relative_to(place)):
        _check_folder()


def _check_folder() -> None:
    with folder():
        pass


def check() -> None:
    """Raise `ScratchError` where no temporary folder can be written, or it is full."""
    with folder() as path, filled():
        (path / "check").write_bytes(bytes(4096))
