"""Files on an object store, such as s3://bucket/name: fetched whole before they are read, sent whole once written.

`pyarrow.fs` speaks to the stores: s3, gs, and what else it knows. Where AWS_ENDPOINT_URL is set, s3 means the server
there.
"""

import errno
import hashlib
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

    stamp: tuple[int, int] | None = None
    """Size in bytes and time of the last change in ns; None unless a listing of its folder gave them."""

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


def parse_path(given: str | Path) -> Path:
    """What a user means: a file on an object store, or on this machine."""
    return Remote(given) if URL.fullmatch(str(given)) else Path(given)


def local(given: Path, bar: Bar = silent) -> Path:
    """The path itself, or a copy of what is there on a store, which this process keeps until that is another.

    Raises `DataError` where there is no such thing, or not all of it.
    """
    if not isinstance(given, Remote):
        return given
    try:
        found = _found(given)
        state = [(info.path, info.size, info.mtime_ns) for info in found]
        if given not in _copies or _copies[given][0] != state:
            if given in _copies:
                shutil.rmtree(_copies.pop(given)[1].parent)
            _copies[given] = state, _download(given, found, Path(tempfile.mkdtemp(dir=_shelf().name)), bar)
    except FileNotFoundError as err:
        raise DataError(str(err)) from err
    return _copies[given][1]


_copies: dict[Remote, tuple[list[tuple[str, int, int]], Path]] = {}


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
    files, beside = _files(target), _beside(target)
    with _explained(target):
        try:
            _put(source, beside)  # what is interrupted ends as a file all the same
            files.move(_key(beside), _key(target))
        except BaseException:
            with suppress(OSError):
                files.delete_file(_key(beside))
            raise


def try_out(target: Remote) -> None:
    """Raise `DataError` where nothing could be written."""
    beside = _beside(target)
    with _explained(target):
        _mark(beside)
        _files(target).delete_file(_key(beside))


def send_folder(source: Path, target: Remote, leave: str) -> None:
    """Make a folder on a store the same as one of this machine, but for files of the name `leave`.

    Until it is, it holds `UNFINISHED`. What lies at its top, such as a manifest, comes last.
    """
    with _explained(target):
        files = _files(target)
        _mark(target / UNFINISHED)
        found = [one for one in source.rglob("*") if one.is_file() and one.name != leave]
        paths = {f"{_key(target)}/{one.relative_to(source).as_posix()}": one for one in found}
        wanted = {*paths, _key(target / UNFINISHED)}
        for old in _infos(target, is_deep=True, has_folders=True):
            if not old.is_file and not any(key.startswith(f"{old.path}/") for key in wanted):
                files.delete_dir(old.path)
            elif old.is_file and old.path not in wanted:
                with suppress(FileNotFoundError):  # gone with its folder
                    files.delete_file(old.path)
        for key in sorted(paths, key=lambda key: (paths[key].parent == source, key)):
            _put(paths[key], Remote(target, key.removeprefix(f"{_key(target)}/")))
        files.delete_file(_key(target / UNFINISHED))


def _beside(target: Remote) -> Remote:
    """Where something lies that is to become `target`."""
    return Remote(target.with_name(target.name + UNFINISHED))


def _mark(there: Remote) -> None:
    """Write an empty file."""
    with _files(there).open_output_stream(_key(there)) as stream:
        stream.write(b"")


def _put(source: Path, target: Remote) -> None:
    with source.open("rb") as file, _files(target).open_output_stream(_key(target)) as stream:
        shutil.copyfileobj(file, stream, BLOCK)


def fetch(there: Remote, into: Path, most: float = math.inf) -> Path:
    """Copy a file, or all files of a folder, into a folder of this machine; gives the copy.

    Raises `FileNotFoundError` where there is no such thing, and `OverflowError` where it has more than `most` bytes.
    """
    found = _found(there)
    if sum(one.size for one in found) > most:
        raise OverflowError(f"{there}: has more than {most:,} bytes. Cut out what you need.")
    return _download(there, found, into)


def _download(there: Remote, found: list["FileInfo"], into: Path, bar: Bar = silent) -> Path:
    """Copy what was found there."""
    copy: Path = into / there.name
    with _explained(there), bar(f"fetching {there}", len(found)) as advance:
        for number, one in enumerate(found, start=1):
            target = copy / one.path.removeprefix(_key(there)).lstrip("/")
            if ".." in target.parts:
                raise DataError(f"{there}: holds {one.path}, which is no name for a file here. Rename it.")
            target.parent.mkdir(parents=True, exist_ok=True)
            with _files(there).open_input_stream(one.path) as stream, target.open("wb") as file:
                shutil.copyfileobj(stream, file, BLOCK)
            advance(number, "files")
    return copy


def refuse_unfinished(there: Path) -> None:
    """Raise `DataError` for a folder on a store that was not sent to its end."""
    if isinstance(there, Remote) and (there / UNFINISHED).is_file():
        raise DataError(
            f"{there}: is not complete; it is being sent, or was interrupted. Run the command that makes it again."
        )


def _found(there: Remote) -> list["FileInfo"]:
    """Of a file, or of all files of a folder; raises `FileNotFoundError` where there is neither."""
    info = _info(there)
    if info.is_file:
        return [info]
    refuse_unfinished(there)
    found = _infos(there, is_deep=True)
    if not found:
        raise FileNotFoundError(f"{there}: no such file or folder. Check the address.")
    return found


def _listed(folder: Remote, *, is_deep: bool) -> list[Remote]:
    return sorted(_stamped(folder, info) for info in _infos(folder, is_deep=is_deep))


def _stamped(folder: Remote, info: "FileInfo") -> Remote:
    path: Remote = folder / info.path.removeprefix(_key(folder)).lstrip("/")
    path.stamp = (info.size, info.mtime_ns) if info.is_file else None
    return path


def stamps(path: Remote) -> list[tuple[str, int, int]]:
    """Name, bytes and time of the last change, ns, of a file or of each file in a folder; empty where there is none."""
    if path.stamp:
        return [(str(path), *path.stamp)]
    info = _info(path)
    infos = [info] if info.is_file else _infos(path, is_deep=True)
    return [(info.path, info.size, info.mtime_ns) for info in infos]


def _infos(folder: Remote, *, is_deep: bool, has_folders: bool = False) -> list["FileInfo"]:
    """Of all files below a folder, and of folders too if they are wanted; or of the files and folders in it."""
    from pyarrow.fs import FileSelector

    with _explained(folder):
        wanted = FileSelector(_key(folder), recursive=is_deep, allow_not_found=True)
        found = _files(folder).get_file_info(wanted)
        return [info for info in found if info.is_file or has_folders or not is_deep]


def _info(there: Remote) -> "FileInfo":
    with _explained(there):
        return _files(there).get_file_info(_key(there))


def _kind(there: Remote) -> str:
    return str(_info(there).type.name)


def _split(there: Remote) -> tuple[str, str]:
    """Its scheme, and what comes after."""
    found = URL.fullmatch(str(there))
    assert found
    return found[1], found[2]


def _key(there: Remote) -> str:
    return _split(there)[1]


def _files(there: Remote) -> "FileSystem":
    scheme, key = _split(there)
    return _opened(scheme, key.split("/")[0])


@lru_cache
def _opened(scheme: str, bucket: str) -> "FileSystem":
    from pyarrow import ArrowInvalid
    from pyarrow.fs import FileSystem, GcsFileSystem, S3FileSystem

    if scheme == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        given: dict[str, Any] = {"endpoint_override": endpoint, "region": region, "connect_timeout": CONNECT_SECONDS}
        return S3FileSystem(**{name: value for name, value in given.items() if value})
    if scheme in ("gs", "gcs"):
        return GcsFileSystem(retry_time_limit=timedelta(seconds=CONNECT_SECONDS))
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
        if err.filename or err.errno == errno.ENOSPC:
            raise DataError(
                f"{there}: cannot be copied ({err}). Free some space in {tempfile.gettempdir()}, or set TMPDIR."
            ) from err
        raise DataError(
            f"{there}: cannot be reached ({_reason(err)}). Check the address, your rights there (AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY or a profile) and AWS_ENDPOINT_URL, then run the command again."
        ) from err


def _reason(err: OSError) -> str:
    """What a store said, in short."""
    text = str(err)
    said = text[text.index("AWS Error") :] if "AWS Error" in text else text
    return re.sub(r"\s*\(Request ID[^)]*\)", "", said).rstrip(". ")[:300]
