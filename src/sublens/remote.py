"""Files on an object store, such as s3://bucket/name: fetched whole before they are read, sent whole once written.

`pyarrow.fs` speaks to the stores: s3, gs, and what else it knows. Where AWS_ENDPOINT_URL is set, s3 means the server
there.
"""

import hashlib
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sublens.errors import DataError
from sublens.progress import Bar, silent

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

URL = re.compile(r"([a-z][a-z0-9+.-]+)://(.+)", re.DOTALL)
CONNECT_SECONDS = 10
BLOCK = 2**22
FETCHES = 16
"""Files that are fetched at the same time, since most of it is waiting."""
UNFINISHED = ".unfinished"
"""Stands in a folder on a store as long as not all of it is there."""


class Remote(type(Path())):  # type: ignore[misc]
    """A path on an object store, which can be asked what is there; to read a file, see `local` and `copied`.

    Raises `DataError` where the store does not answer.
    """

    def __str__(self) -> str:
        return re.sub(r"^([a-z][a-z0-9+.-]+):/+", r"\1://", super().__str__())

    def is_file(self) -> bool:
        return _kind(self) == "File"

    def is_dir(self) -> bool:
        """Whether the names of files begin with this one and a slash."""
        return _kind(self) == "Directory"

    def exists(self) -> bool:
        return _kind(self) != "NotFound"

    def iterdir(self) -> Iterator["Remote"]:
        return iter(_listed(self, is_deep=False))

    def files(self) -> list["Remote"]:
        """All files in it and below it, sorted; none where there is no such folder."""
        return _listed(self, is_deep=True)


AnyPath = TypeVar("AnyPath", bound=Path)


def place(text: str) -> Path:
    """What a user means: a file on an object store, or on this machine."""
    return Remote(text) if URL.fullmatch(text) else Path(text)


def here(text: str) -> Path:
    """The same, where a store will not do; raises `ValueError`."""
    if URL.fullmatch(text):
        raise ValueError(f"{text}: needs a place on this machine.")
    return Path(text)


def local(given: Path, bar: Bar = silent) -> Path:
    """The path itself, or a copy of what is there on a store, made once and kept as long as this process lasts.

    Raises `DataError` where there is no such thing.
    """
    if not isinstance(given, Remote):
        return given
    if given not in _copies:
        try:
            _copies[given] = fetch(given, Path(tempfile.mkdtemp(dir=_shelf().name)), bar=bar)
        except FileNotFoundError as err:
            raise DataError(str(err)) from err
    return _copies[given]


_copies: dict[Remote, Path] = {}


@lru_cache(maxsize=1)
def _shelf() -> "tempfile.TemporaryDirectory[str]":
    """Removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="sublens-")


@contextmanager
def copied(given: Path) -> Iterator[Path]:
    """The path itself, or a copy that lasts as long as a `with` block; raises `FileNotFoundError`, and as `local`."""
    if not isinstance(given, Remote):
        yield given
        return
    with scratch() as folder:
        yield fetch(given, folder)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder of this machine that lasts as long as a `with` block."""
    folder = Path(tempfile.mkdtemp(prefix="sublens-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def staged(target: Path) -> Path:
    """Where on this machine that is prepared which will be at `target`: there, or in the user's cache."""
    if not isinstance(target, Remote):
        return target
    cache, name = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"), str(target.name)
    return cache / "sublens" / hashlib.sha256(str(target).encode()).hexdigest()[:16] / name


def send(source: Path, target: Remote) -> None:
    """Copy a file to a store, where it appears whole or not at all."""
    with _explained(target), source.open("rb") as file, _files(target).open_output_stream(_key(target)) as stream:
        shutil.copyfileobj(file, stream, BLOCK)


def send_folder(source: Path, target: Remote, leave: str) -> None:
    """Make a folder on a store the same as one of this machine, but for files of the name `leave`."""
    with _explained(target):
        files = _files(target)
        with files.open_output_stream(_key(target / UNFINISHED)) as stream:
            stream.write(b"")
        found = [one for one in sorted(source.rglob("*")) if one.is_file() and one.name != leave]
        paths = {one.relative_to(source).as_posix(): one for one in found}
        for old in target.files():
            if _key(old).removeprefix(f"{_key(target)}/") not in {*paths, UNFINISHED}:
                files.delete_file(_key(old))
        for name, one in paths.items():
            send(one, target / name)
        files.delete_file(_key(target / UNFINISHED))


def fetch(there: Remote, into: Path, most: float = math.inf, bar: Bar = silent) -> Path:
    """Copy a file, or all files of a folder, into a folder of this machine; gives the copy.

    Raises `FileNotFoundError` where there is no such thing, and `OverflowError` where it has more than `most` bytes.
    """
    info = _info(there)
    found = [info] if info.is_file else _infos(there, is_deep=True)
    if not found:
        raise FileNotFoundError(f"{there}: no such file or folder. Check the address.")
    if sum(one.size for one in found) > most:
        raise OverflowError(f"{there}: has more than {most:,} bytes. Cut out what you need.")
    copy: Path = into / there.name
    with _explained(there), bar(f"fetching {there}", len(found)) as advance:
        for number, one in enumerate(found, start=1):
            target = copy / one.path.removeprefix(_key(there)).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            with _files(there).open_input_stream(one.path) as stream, target.open("wb") as file:
                shutil.copyfileobj(stream, file, BLOCK)
            advance(number, "files")
    return copy


def _listed(folder: Remote, *, is_deep: bool) -> list[Remote]:
    return sorted(folder / info.path.removeprefix(_key(folder)).lstrip("/") for info in _infos(folder, is_deep=is_deep))


def _infos(folder: Remote, *, is_deep: bool) -> list["FileInfo"]:
    """Of all files below a folder, or of the files and folders in it."""
    from pyarrow.fs import FileSelector

    with _explained(folder):
        wanted = FileSelector(_key(folder), recursive=is_deep, allow_not_found=True)
        return [info for info in _files(folder).get_file_info(wanted) if info.is_file or not is_deep]


def _info(there: Remote) -> "FileInfo":
    with _explained(there):
        return _files(there).get_file_info(_key(there))


def _kind(there: Remote) -> str:
    return str(_info(there).type.name)


def _key(there: Remote) -> str:
    found = URL.fullmatch(str(there))
    assert found
    return found[2]


def _files(there: Remote) -> "FileSystem":
    found = URL.fullmatch(str(there))
    assert found
    return _opened(found[1], found[2].split("/")[0])


@lru_cache
def _opened(scheme: str, bucket: str) -> "FileSystem":
    from pyarrow import ArrowInvalid
    from pyarrow.fs import FileSystem, S3FileSystem

    if scheme == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        given: dict[str, Any] = {"endpoint_override": endpoint, "region": region, "connect_timeout": CONNECT_SECONDS}
        return S3FileSystem(**{name: value for name, value in given.items() if value})
    try:
        return FileSystem.from_uri(f"{scheme}://{bucket}")[0]
    except ArrowInvalid as err:
        raise DataError(f"{scheme}://: sublens knows no such kind of place. Use s3:// or gs://, or a file.") from err


@contextmanager
def _explained(there: Remote) -> Iterator[None]:
    """Turn what a store answers into a `DataError`, but that there is no such file."""
    try:
        yield
    except FileNotFoundError as err:
        raise FileNotFoundError(f"{there}: no such file. Check the address.") from err
    except OSError as err:
        raise DataError(
            f"{there}: cannot be reached ({_reason(err)}). Check the address, your rights there (AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY or a profile) and AWS_ENDPOINT_URL, then run the command again."
        ) from err


def _reason(err: OSError) -> str:
    """What a store said, in short."""
    text = str(err)
    said = text[text.index("AWS Error") :] if "AWS Error" in text else text
    return re.sub(r"\s*\(Request ID[^)]*\)", "", said).rstrip(". ")[:300]
