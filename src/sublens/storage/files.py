"""Atomic writes: under a temporary name, flushed, then renamed, or sent where the target is on an object store."""

import errno
import fcntl
import glob
import hashlib
import json
import os
import platform
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from tokenize import TokenError
from typing import IO

from sublens.errors import DataError
from sublens.storage import object_store, scratch
from sublens.storage.object_store import Remote

NPY_ERRORS = (OSError, ValueError, EOFError, SyntaxError, TypeError, OverflowError, TokenError)
"""Exceptions that numpy raises for damaged .npy files."""
MAX_NAME_BYTES = 255
"""Longest name of a file that file systems take, bytes."""
HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
"""Sign of this machine: other machines that share a disk may not know of its locks."""
TOKEN_BYTES = 4
"""Random bytes in the name of a temporary folder."""
MARK_BYTES = 2**20
"""Length of the beginning and of the end of a file in which the mark of its kind is looked up, bytes."""


class Kind(StrEnum):
    """The kinds of folders that sublens writes, as errors call them."""

    DATASET = "a data set"
    RUN = "a run"
    BUNDLE = "a bundle to give away"
    REPORT = "a report"
    MAPS = "predicted maps"
    EXPLANATIONS = "explanations of images"
    ARRAYS = "converted arrays"


MARKERS = {
    "manifest.json": Kind.DATASET,
    "simulation.json": Kind.DATASET,
    "card.json": Kind.RUN,
    "log.jsonl": Kind.RUN,
    "report.html": Kind.REPORT,
    "maps.json": Kind.MAPS,
    "explain.json": Kind.EXPLANATIONS,
    "legacy.csv": Kind.ARRAYS,
}
"""Files of which one stands in every folder that sublens wrote, and the kind of that folder; bundles: see `kind_of`."""


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


def followed(path: Path) -> Path:
    """The place that a path leads to: what its links point to, which may be missing; a `Remote` as it is."""
    return path if isinstance(path, Remote) else Path(os.path.realpath(path))


def fitting_name(name: str, ending: str = "") -> str:
    """The name and its ending, in `MAX_NAME_BYTES` at most: a hash of the name stands for the end of a long one."""
    room = MAX_NAME_BYTES - len(os.fsencode(ending))
    if len(os.fsencode(name)) > room:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
        while len(os.fsencode(f"{name}~{digest}")) > room:
            name = name[:-1]
        name = f"{name}~{digest}"
    return name + ending


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield the path of a file to write; rename it to `path`, or to what that links to, if the block succeeds.

    Of several processes that write one file at the same time, the last to end leaves its own, whole.
    """
    home = object_store.staged(followed(path))
    try:
        with translate_errors(path), _scratch_beside(home) as folder:
            partial = folder / "partial"
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            if isinstance(path, Remote):
                object_store.send(partial, path)
            else:
                partial.replace(home)
    finally:
        tidy(path)


@contextmanager
def _scratch_beside(home: Path) -> Iterator[Path]:
    """A new folder beside a file for the length of a `with` block; those that killed processes left are removed."""
    _remove_leftovers(home)
    with ExitStack() as stack:
        folder = _lock_new_folder(home, stack)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _lock_new_folder(home: Path, stack: ExitStack) -> Path:
    """A new folder beside a file, locked until the stack is closed."""
    while True:
        folder = home.with_name(_scratch_name(home, secrets.token_hex(TOKEN_BYTES)))
        with suppress(DataError):  # another process locked it first, to remove it
            stack.enter_context(lock_folder(folder))
            return folder


def _scratch_name(home: Path, token: str) -> str:
    return fitting_name(f".{home.name}", f".{HOST}-{token}.partial")


def _remove_leftovers(home: Path) -> None:
    """Remove the folders that `_scratch_beside` made on this machine and no process holds."""
    some, token = glob.escape(_scratch_name(home, TOKEN_BYTES * "00")), TOKEN_BYTES * "[0-9a-f][0-9a-f]"
    for folder in home.parent.glob(f"{some.removesuffix(TOKEN_BYTES * '00' + '.partial')}{token}.partial"):
        with suppress(DataError, OSError), lock_folder(folder):
            shutil.rmtree(folder)


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
def whole_folder(path: Path, *, kind: Kind, force: bool, plan: str = "") -> Iterator[Path]:
    """Yield a temporary folder beside `path`, or beside what that links to; rename it into place if the block succeeds.

    kind: what will be written, and all that `force` may replace. plan: a text that decides what will be written. If the
    block fails, the temporary folder is removed unless there is a plan; then its content is kept, and yielded again to
    the next block with the same plan. Raises `DataError` where `path` exists, or holds the kept work of another plan,
    and `force` is false, and where another process is writing there. An existing folder is replaced only once the new
    one is complete. The temporary folder of a `Remote` lies in the user's cache.
    """
    refuse_existing(path, kind=kind, force=force)
    if isinstance(path, Remote):
        object_store.try_out(path)  # before hours of work
    partial = partial_folder(path)
    with translate_errors(path), lock_folder(partial):
        try:
            refuse_existing(path, kind=kind, force=force)  # by now another process may have finished there
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
                _put_in_place(partial, followed(path))
        finally:
            if partial.is_dir() and not (_plan_of(partial) and _holds_work(partial)):
                shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(partial: Path, path: Path) -> None:
    retired = path.with_name(fitting_name(f".{path.name}", ".retired"))
    if path.exists():
        with lock_folder(path):  # or a run would be replaced that another process trains or measures
            remove(retired)
            path.replace(retired)
    partial.replace(path)  # with its plan: were we killed before this line, it could be done again
    (path / PLAN).unlink()
    remove(retired)


def discard(folder: Path) -> None:
    """Remove a folder; where a link leads to it, only what it holds."""
    for leftover in folder.iterdir() if folder.is_symlink() else [folder]:
        remove(leftover)


PLAN = "plan.json"
"""Name of the file that holds the plan in a temporary folder that can be continued."""


def partial_folder(path: Path) -> Path:
    """The temporary folder that `whole_folder` renames to `path`."""
    home = object_store.staged(followed(path)).absolute()
    return home.with_name(fitting_name(f".{home.name}", ".partial"))


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Make a folder if need be, and lock it against other processes.

    The lock ends with the block or with the process. Raises `DataError` where another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError as err:  # another process removed it meanwhile
        raise _is_held(folder) from err
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
        raise _is_held(path)


def _is_held(path: Path) -> DataError:
    return DataError(
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


def refuse_existing(path: Path, *, kind: Kind, force: bool) -> None:
    """Raise `DataError` where `path` is taken and may not be replaced, or its name is too long.

    Without `force` only an empty folder may be replaced; with it, a folder of that kind as well.
    """
    _refuse_long_name(path)
    if _is_there(path) and not path.is_dir():
        raise DataError("exists and is not a folder", need="a folder", next="Choose another place.", path=path)
    if Path.cwd().is_relative_to(followed(path)):
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
    _refuse_other_kind(path, kind)


def _refuse_other_kind(path: Path, kind: Kind) -> None:
    """Raise `DataError` where sublens did not write a folder, or anything in it is of another kind."""
    if not any((path / name).is_file() for name in MARKERS):
        raise DataError(
            "was not written by sublens, so --force does not replace it",
            need="a new or empty folder",
            next="Choose another place.",
            path=path,
        )
    others = sorted(_others(path, kind))
    if others:
        raise DataError(
            f"holds {' and '.join(others)}, so --force does not put {kind} in its place",
            need=f"a new or empty folder, or {kind} to replace",
            next="Choose another place, or remove that folder yourself.",
            path=path,
        )


def _others(path: Path, kind: Kind) -> set[Kind]:
    """Kinds but `kind` of a folder and all folders in it, and of networks and data sets that lie deeper than it."""
    paths: Iterable[Path] = path.files() if isinstance(path, Remote) else path.rglob("*")
    pairs = [(file.parent, kind_of(file.parent, MARKERS[file.name])) for file in paths if file.name in MARKERS]
    nested = set() if isinstance(path, Remote) else {held for folder, held in pairs if folder != path}
    return ({held for _, held in pairs} - {kind}) | (nested & {Kind.RUN, Kind.BUNDLE, Kind.DATASET})


def kind_of(folder: Path, kind: Kind = Kind.RUN) -> Kind:
    """The kind of a folder whose marker says `kind`: of a network's folder its card tells whether it is a bundle.

    A bundle was rounded to be published, or exported as a graph that is alone.
    """
    if kind is not Kind.RUN:
        return kind
    try:
        card = json.loads(object_store.local(folder / "card.json").read_bytes())
        is_bundle = card.get("rounding") is not None or (card.get("graph") or {}).get("is_alone")
    except (OSError, ValueError, AttributeError, RecursionError, DataError):  # not whole, as runs in training are
        return Kind.RUN
    return Kind.BUNDLE if is_bundle else Kind.RUN


def refuse_existing_file(path: Path, *, mark: bytes, force: bool) -> None:
    """Raise `DataError` where a file may not be written at `path`, or its name is too long.

    With `force` a file may be replaced if it is empty or holds `mark` near its beginning or end, as all of its kind do.
    """
    _refuse_long_name(path)
    if path.exists() and not path.is_file():
        what = "is a folder" if path.is_dir() else "is no plain file"
        raise DataError(what, need="a file", next="Name a file.", path=path)
    if _is_there(path) and not force:
        raise DataError(
            "exists already", need="a new name", next="Choose another name, or add --force to replace it.", path=path
        )
    ends = _ends(path) if path.is_file() else b""
    if ends and mark not in ends:
        raise DataError(
            "was not written by this command, so --force does not replace it",
            need="a new name, or a file of the same kind",
            next="Choose another name, or remove that file yourself.",
            path=path,
        )


def _ends(path: Path) -> bytes:
    """The beginning and the end of a file, `MARK_BYTES` each."""
    with translate_errors(path), object_store.local(path).open("rb") as file:
        head = file.read(MARK_BYTES)
        file.seek(max(file.seek(0, os.SEEK_END) - MARK_BYTES, 0))
        return head + file.read()


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _refuse_long_name(path: Path) -> None:
    """Raise `DataError` where a file system would not take the name."""
    parts = [part for part in path.parts if len(os.fsencode(part)) > MAX_NAME_BYTES]
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        try:
            if not (parts or isinstance(path, Remote)):
                path.lstat()
        except OSError as err:
            if err.errno != errno.ENAMETOOLONG:
                raise
            parts = [str(path)]
    if parts:
        raise DataError(
            f"a name of {len(os.fsencode(parts[0])):,} bytes is too long",
            need=f"names of {MAX_NAME_BYTES} bytes at most",
            next="Choose a shorter one.",
            path=path,
        )


def refuse_overlap(out: Path, *sources: Path) -> None:
    """Raise `DataError` where writing `out` could damage one of the `sources` it is made from, links followed."""
    _refuse_long_name(out)
    target = Path(os.path.realpath(out))
    for source in sources:
        origin = Path(os.path.realpath(source))
        if target.is_relative_to(origin) or origin.is_relative_to(target):
            raise DataError(
                f"overlaps {source}, which is read",
                need="a place apart from it",
                next="Choose a place outside it.",
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
