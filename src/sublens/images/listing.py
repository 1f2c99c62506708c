"""The image files behind files, folders and patterns, on this machine and on object stores."""

import glob
import os
import re
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path

from sublens.errors import ImageError
from sublens.images import formats
from sublens.storage import object_store
from sublens.storage.object_store import Remote

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]
from sublens.images.reader import ReadResult


def list_images(inputs: Iterable[Path]) -> Iterator[Path | ReadResult]:
    """The files behind files, folders and patterns, sorted, in the order given.

    Of a folder, all images in and below it, but no link that leads out of it: a `ReadResult` says so.
    """
    for given in inputs:
        if isinstance(given, Remote):
            yield from _list_store(given)
        elif given.is_dir() and not formats.is_image(given):
            yield from _list_folder(given)
        elif not given.exists() and any(sign in str(given) for sign in "*?["):
            matching = sorted(glob.glob(str(given), recursive=True))  # noqa: PTH207 - a Path globs below a folder
            yield from map(Path, matching)
            if not matching:
                yield ReadResult(given, ImageError(f"{given}: no file has such a name. Check the pattern."))
        else:
            yield given


def _list_store(given: Remote) -> Iterator[Path | ReadResult]:
    """The same on an object store, where * and ? are all that a pattern has."""
    plain = list(takewhile(lambda part: not any(sign in part for sign in "*?"), given.parts))
    is_pattern = len(plain) < len(given.parts)
    if formats.is_image(given) and not is_pattern:
        yield given
        return
    top, pattern = Remote(*given.parts[: len(plain)]), re.compile(_to_regex(str(given)) if is_pattern else ".*", re.S)
    matching = [one for one in _images_on_store(top) if pattern.fullmatch(str(one))]
    yield from sorted(matching) if is_pattern else matching
    if not matching:
        yield ReadResult(given, ImageError(f"{given}: holds no {', '.join(formats.READERS)} files. Check the name."))


def _images_on_store(folder: Remote) -> list[Remote]:
    """All images in a folder and below it, in the order of `_list_folder`; a zarr store is one."""
    object_store.refuse_unfinished(folder)
    found: dict[Remote, None] = {}
    for one in folder.files():
        stores = [parent for parent in reversed(one.parents) if parent.suffix == ".zarr"]
        if stores or formats.is_image(one):
            found[stores[0] if stores else one] = None
    return sorted(found, key=lambda one: [*((1, part) for part in one.parts[:-1]), (0, one.name)])


def _to_regex(pattern: str) -> str:
    """As a regular expression: ** and a slash stand for any folders, * and ? for what is no slash."""
    signs = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(signs.get(part) or re.escape(part) for part in re.split(r"(\*\*/|\*\*|\*|\?)", pattern))


def _list_folder(folder: Path) -> Iterator[Path | ReadResult]:
    real, n_found = folder.resolve(), 0
    for top, below, names in os.walk(folder):
        stores = [name for name in below if formats.is_image(Path(name))]
        below[:] = sorted(set(below) - set(stores))
        for path in sorted(Path(top, name) for name in (*names, *stores) if formats.is_image(Path(name))):
            n_found += 1
            is_inside = path.resolve().is_relative_to(real)
            yield (
                path
                if is_inside
                else ReadResult(path, ImageError(f"{path}: a link out of {folder}. Name it by itself."))
            )
    if not n_found:
        yield ReadResult(
            folder, ImageError(f"{folder}: holds no {', '.join(formats.READERS)} files. Check the folder.")
        )
