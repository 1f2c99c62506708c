"""Atomic writes: under a temporary name, flushed, then renamed, or sent where the target is on an object store."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tokenize import TokenError
from typing import IO

from sublens.errors import DataError
from sublens.storage import object_store, scratch
from sublens.storage.object_store import Remote

NPY_ERRORS = (OSError, ValueError, EOFError, SyntaxError, TypeError, OverflowError, TokenError)
"""Exceptions that numpy raises for damaged .npy files."""
OUTPUT_NAMES = (
    "manifest.json",
    "simulation.json",
    "card.json",
    "log.jsonl",
    "report.html",
    "legacy.csv",
    "explain.json",
    "maps.json",
)
"""Names of which one stands in every folder that sublens wrote, so that --force may replace it."""


@contextmanager
def translate_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write `path` into a `DataError`, or into a `ScratchError`."""
    try:
        yield
    except OSError as err:
        scratch.check_unless(path, err)
        reason = err.strerror or f"is the disk full? {err}"  # numpy does not say why it wrote too little
        raise DataError(
            f"could not be written ({reason})",
            need="a place with free space and the right to write there",
            next="Free some space or choose another place, then run the command again.",
            path=path,
        ) from err


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it into place if the block succeeds."""
    home = object_store.staged(path)
    partial = home.with_name(f".{home.name}.partial")
    try:
        with translate_errors(path):
            partial.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            if isinstance(path, Remote):
                object_store.send(partial, path)
            else:
                partial.replace(path)
    finally:
        with suppress(OSError):  # gone already, or never made
            partial.unlink()
        tidy(path)


def tidy(path: Path) -> None:
    """Remove the folder of the cache in which a file for an object store was made, if it is empty."""
    if isinstance(path, Remote):
        with suppress(OSError):
            object_store.staged(path).parent.rmdir()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file or none."""
    with whole_file(path) as partial:
        partial.write_bytes(data)


@contextmanager
def whole_folder(path: Path, *, force: bool, plan: str = "") -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it into place if the block succeeds.

    plan: a text that decides what will be written. If the block fails, the temporary folder is removed
    unless there is a plan; then its content is kept, and yielded again to the next block with the same
    plan. Raises `DataError` where `path` exists, or holds the kept work of another plan, and
    `force` is false, and where another process is writing there. An existing folder is
    replaced only once the new one is complete. The temporary folder of a `Remote` lies in the
    user's cache.
    """
    refuse_existing(path, force=force)
    if isinstance(path, Remote):
        object_store.try_out(path)  # before hours of work
    partial = partial_folder(path)
    with translate_errors(path), lock_folder(partial):
        try:
            kept = _plan_of(partial)
            if kept and kept != plan and not force:
                raise DataError(
                    "holds the unfinished work of another command",
                    need="a place of its own",
                    next="Run that command again to finish it, add --force to discard it, or choose another place.",
                    path=partial,
                )
            if not kept or kept != plan:
                for leftover in partial.iterdir():
                    remove(leftover)
                (partial / PLAN).write_text(plan, encoding="utf-8")
            yield partial
            if isinstance(path, Remote):
                object_store.send_folder(partial, path, PLAN)
                remove(partial)
                tidy(path)
            else:
                _put_in_place(partial, path.absolute())
        finally:
            if partial.is_dir() and not (_plan_of(partial) and _holds_work(partial)):
                shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(partial: Path, path: Path) -> None:
    retired = path.with_name(f".{path.name}.retired")
    if path.exists():
        remove(retired)
        path.replace(retired)
    partial.replace(path)  # with its plan: were we killed before this line, it could be done again
    (path / PLAN).unlink()
    remove(retired)


PLAN = "plan.json"
"""Name of the file that holds the plan in a temporary folder that can be continued."""


def partial_folder(path: Path) -> Path:
    """The temporary folder that `whole_folder` renames to `path`."""
    home = object_store.staged(path).absolute()
    return home.with_name(f".{home.name}.partial")


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Make a folder if need be, and lock it against other processes.

    The lock ends with the block or with the process. Raises `DataError` where another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, folder)
        yield
    finally:
        os.close(handle)


@contextmanager
def lock_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to read and to append, made if need be, and lock it against other processes.

    The block may remove or rename the file. The lock ends with the block or with the process. Raises
    `DataError` where another process holds it, or the file cannot be written.
    """
    with translate_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    with file:
        with translate_errors(path):
            _lock(file.fileno(), path)
        yield file


def _lock(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_held = not os.path.samestat(os.fstat(handle), path.stat())  # by a process that moved it since we opened it
    except (BlockingIOError, FileNotFoundError):
        is_held = True
    if is_held:
        raise DataError(
            "another process is writing there",
            need="a place of its own",
            next="Wait for the other command, or choose another place.",
            path=path,
        )


def _plan_of(partial: Path) -> str:
    try:
        return (partial / PLAN).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _holds_work(partial: Path) -> bool:
    return any(path.is_file() and path.name != PLAN for path in partial.rglob("*"))


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise `DataError` where `path` is taken and may not be replaced.

    Without `force` only an empty folder may be replaced; with it, a folder that sublens wrote as well.
    """
    if _is_there(path) and not path.is_dir():
        raise DataError("exists and is not a folder", need="a folder", next="Choose another place.", path=path)
    if Path.cwd().is_relative_to(path.resolve()):
        raise DataError(
            "is or holds the working folder", need="a folder of its own", next="Choose another one.", path=path
        )
    if not path.is_dir() or not any(path.iterdir()) or (path / object_store.UNFINISHED).is_file():
        return
    if not force:
        raise DataError(
            "exists already",
            need="a new or empty folder",
            next="Choose another place, or add --force to replace it.",
            path=path,
        )
    if not any((path / name).is_file() for name in OUTPUT_NAMES):
        raise DataError(
            "was not written by sublens, so --force does not replace it",
            need="a new or empty folder",
            next="Choose another place.",
            path=path,
        )


def refuse_existing_file(path: Path, *, force: bool) -> None:
    """Raise `DataError` where `path` is a folder, or exists and `force` is false."""
    if path.is_dir():
        raise DataError("is a folder", need="a file", next="Name a file.", path=path)
    if _is_there(path) and not force:
        raise DataError(
            "exists already", need="a new name", next="Choose another name, or add --force to replace it.", path=path
        )


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def refuse_overlap(out: Path, source: Path) -> None:
    """Raise `DataError` where writing `out` could damage the `source` it is made from."""
    target, origin = out.resolve(), source.resolve()
    if target.is_relative_to(origin) or origin.is_relative_to(target):
        raise DataError(
            f"overlaps {source}, which is read",
            need="a place apart from it",
            next="Choose a folder outside it.",
            path=out,
        )


def remove(path: Path) -> None:
    """Remove a file, link or folder and all that it holds; nothing is done where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with object_store.local(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
