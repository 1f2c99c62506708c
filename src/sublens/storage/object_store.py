"""Files on an object store, such as s3://bucket/name: fetched whole before they are read, sent whole once written.

`pyarrow.fs` speaks to the stores: s3, gs, and what else it knows. Where AWS_ENDPOINT_URL is set, s3 means the server
there.
"""

import atexit
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
from sublens.storage import scratch

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

URL = re.compile(r"([a-z][a-z0-9+.-]+)://(.+)", re.DOTALL)
CONNECT_SECONDS = 10
"""Longest wait for a store to answer."""
BLOCK = 2**22
"""Bytes that are copied at a time."""
FETCHES = 16
"""Files that are fetched at the same time, since most of it is waiting."""
UNFINISHED = ".unfinished"
"""Name of the file in a folder on a store for as long as not all of the folder is there."""


class Remote(type(Path())):  # type: ignore[misc]
    """A path on an object store, which can be listed; to read a file, see `local` and `copied`.

    Its methods raise `DataError` where the store does not answer.
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


def parse_path(name: str | Path) -> Path:
    """The path behind a name or address: on an object store, or on this machine."""
    return Remote(name) if URL.fullmatch(str(name)) else Path(name)


def local(path: Path, bar: Bar = silent) -> Path:
    """The path itself, or a copy of what is on a store, kept by this process until that changes.

    Raises `DataError` where there is no such file or folder, or not all of it.
    """
    if not isinstance(path, Remote):
        return path
    try:
        infos = _find(path)
        state = [(info.path, info.size, info.mtime_ns) for info in infos]
        if path not in _copies or _copies[path][0] != state:
            if path in _copies:
                shutil.rmtree(_copies.pop(path)[1].parent)
            _copies[path] = state, _download(path, infos, Path(tempfile.mkdtemp(dir=_shelf())), bar)
    except FileNotFoundError as err:
        raise DataError(
            "no such file or folder", need="an address of one", next="Check the address.", path=path
        ) from err
    return _copies[path][1]


_copies: dict[Remote, tuple[list[tuple[str, int, int]], Path]] = {}
"""State of the store and copy on this machine, by address."""


@lru_cache(maxsize=1)
def _shelf() -> Path:
    """The folder of all copies, removed when the process ends."""
    folder = scratch.make()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextmanager
def copied(path: Path) -> Iterator[Path]:
    """The path itself, or a copy for the length of a `with` block; raises as `fetch` does."""
    if not isinstance(path, Remote):
        yield path
        return
    with scratch.folder() as folder:
        yield fetch(path, folder)


def staged(target: Path) -> Path:
    """The path at which `target` is prepared on this machine: its own, or one in the user's cache."""
    if not isinstance(target, Remote):
        return target
    return cache() / hashlib.sha256(str(target).encode()).hexdigest()[:16] / str(target.name)


def cache() -> Path:
    """Folder of the user's cache in which outputs for an object store are prepared."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sublens"


def send(source: Path, target: Remote) -> None:
    """Copy a file to a store, where it appears whole or not at all."""
    files, beside = _file_system(target), _beside(target)
    with _translate_errors(target):
        try:
            _put(source, beside)  # an interrupted copy ends as a file all the same
            files.move(_key(beside), _key(target))
        except BaseException:
            with suppress(OSError):
                files.delete_file(_key(beside))
            raise


def try_out(target: Remote) -> None:
    """Raise `DataError` where nothing could be written."""
    beside = _beside(target)
    with _translate_errors(target):
        _mark(beside)
        _file_system(target).delete_file(_key(beside))


def send_folder(source: Path, target: Remote, leave: str) -> None:
    """Make a folder on a store the same as one of this machine, but for files of the name `leave`.

    Until it is, it holds `UNFINISHED`. The files at its top, such as a manifest, come last.
    """
    with _translate_errors(target):
        _mark(target / UNFINISHED)
        sources = [path for path in source.rglob("*") if path.is_file() and path.name != leave]
        paths = {f"{_key(target)}/{path.relative_to(source).as_posix()}": path for path in sources}
        _remove_all_but({*paths, _key(target / UNFINISHED)}, target)
        for key in sorted(paths, key=lambda key: (paths[key].parent == source, key)):
            _put(paths[key], Remote(target, key.removeprefix(f"{_key(target)}/")))
        _file_system(target).delete_file(_key(target / UNFINISHED))


def _remove_all_but(keys: set[str], folder: Remote) -> None:
    store = _file_system(folder)
    for info in _infos(folder, is_deep=True, has_folders=True):
        if not info.is_file and not any(key.startswith(f"{info.path}/") for key in keys):
            store.delete_dir(info.path)
        elif info.is_file and info.path not in keys:
            with suppress(FileNotFoundError):  # gone with its folder
                store.delete_file(info.path)


def _beside(target: Remote) -> Remote:
    """The temporary name of a file that will be `target`."""
    return Remote(target.with_name(target.name + UNFINISHED))


def _mark(path: Remote) -> None:
    """Write an empty file."""
    with _file_system(path).open_output_stream(_key(path)) as stream:
        stream.write(b"")


def _put(source: Path, target: Remote) -> None:
    with source.open("rb") as file, _file_system(target).open_output_stream(_key(target)) as stream:
        shutil.copyfileobj(file, stream, BLOCK)


def fetch(path: Remote, folder: Path, max_bytes: float = math.inf) -> Path:
    """The copy of a file, or of all files of a folder, made in a folder of this machine.

    Raises `FileNotFoundError` where there is no such file or folder, `OverflowError` where it has more
    than `max_bytes` bytes, and `DataError` where not all of it is there or the store does not answer.
    """
    infos = _find(path)
    if sum(info.size for info in infos) > max_bytes:
        raise OverflowError(f"{path} has more than {max_bytes:,} bytes")
    return _download(path, infos, folder)


def _download(path: Remote, infos: list["FileInfo"], folder: Path, bar: Bar = silent) -> Path:
    copy: Path = folder / path.name
    with _translate_errors(path), bar(f"fetching {path}", len(infos)) as advance:
        for number, info in enumerate(infos, start=1):
            target = copy / info.path.removeprefix(_key(path)).lstrip("/")
            if ".." in target.parts:
                raise DataError(
                    f"holds {info.path}", need="names that a file here can have", next="Rename it.", path=path
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            with _file_system(path).open_input_stream(info.path) as stream, target.open("wb") as file:
                shutil.copyfileobj(stream, file, BLOCK)
            advance(number, "files")
    return copy


def refuse_unfinished(path: Path) -> None:
    """Raise `DataError` for a folder on a store that was not sent to its end."""
    if isinstance(path, Remote) and (path / UNFINISHED).is_file():
        raise DataError(
            "is not complete: it is being sent, or was interrupted",
            need="all of its files",
            next="Run the command that makes it again.",
            path=path,
        )


def _find(path: Remote) -> list["FileInfo"]:
    """The file, or all files of the folder; raises `FileNotFoundError` where there is neither."""
    info = _info(path)
    if info.is_file:
        return [info]
    refuse_unfinished(path)
    infos = _infos(path, is_deep=True)
    if not infos:
        raise FileNotFoundError(errno.ENOENT, "no such file or folder", str(path))
    return infos


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
    """All files below a folder, and the folders too with `has_folders`; or the files and folders in it."""
    from pyarrow.fs import FileSelector

    with _translate_errors(folder):
        selector = FileSelector(_key(folder), recursive=is_deep, allow_not_found=True)
        infos = _file_system(folder).get_file_info(selector)
        return [info for info in infos if info.is_file or has_folders or not is_deep]


def _info(path: Remote) -> "FileInfo":
    with _translate_errors(path):
        return _file_system(path).get_file_info(_key(path))


def _kind(path: Remote) -> str:
    return str(_info(path).type.name)


def _split(path: Remote) -> tuple[str, str]:
    """The scheme, and the rest of the address."""
    parts = URL.fullmatch(str(path))
    assert parts
    return parts[1], parts[2]


def _key(path: Remote) -> str:
    return _split(path)[1]


def _file_system(path: Remote) -> "FileSystem":
    scheme, key = _split(path)
    return _open_store(scheme, key.split("/")[0])


@lru_cache
def _open_store(scheme: str, bucket: str) -> "FileSystem":
    from pyarrow import ArrowInvalid
    from pyarrow.fs import FileSystem, GcsFileSystem, S3FileSystem

    if scheme == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        options: dict[str, Any] = {"endpoint_override": endpoint, "region": region, "connect_timeout": CONNECT_SECONDS}
        return S3FileSystem(**{name: value for name, value in options.items() if value})
    if scheme in ("gs", "gcs"):
        return GcsFileSystem(retry_time_limit=timedelta(seconds=CONNECT_SECONDS))
    try:
        return FileSystem.from_uri(f"{scheme}://{bucket}")[0]
    except ArrowInvalid as err:
        raise DataError(
            "is a kind of store that sublens does not know",
            need="s3:// or gs://, or a path of this machine",
            next="Copy the files to one of these.",
            path=f"{scheme}://",
        ) from err


@contextmanager
def _translate_errors(path: Remote) -> Iterator[None]:
    """Turn the errors of a store into a `DataError`, all but `FileNotFoundError`."""
    try:
        yield
    except FileNotFoundError as err:
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path)) from err
    except OSError as err:
        if err.filename or err.errno == errno.ENOSPC:
            raise DataError(
                f"cannot be copied ({err})",
                need="space for a copy on this machine",
                next=f"Free some in {tempfile.gettempdir()}, or set TMPDIR.",
                path=path,
            ) from err
        raise DataError(
            f"cannot be reached ({_reason(err)})",
            need="a store that answers, and your rights there",
            next="Check the address, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or your profile, and "
            "AWS_ENDPOINT_URL, then run the command again.",
            path=path,
        ) from err


def _reason(err: OSError) -> str:
    """The answer of a store in short."""
    text = str(err)
    answer = text[text.index("AWS Error") :] if "AWS Error" in text else text
    return re.sub(r"\s*\(Request ID[^)]*\)", "", answer).rstrip(". ")[:300]
