"""The image files behind files, folders and patterns, on this machine and on object stores."""

import glob
import os
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from itertools import takewhile
from pathlib import Path

from sublens.errors import ImageError
from sublens.images import formats
from sublens.images.fits_image import DATA, MASKS, NOISE_MAP, PSF
from sublens.images.reader import ReadResult
from sublens.storage import object_store
from sublens.storage.object_store import Remote


def list_images(inputs: Iterable[Path]) -> Iterator[Path | ReadResult]:
    """The files behind files, folders and patterns, sorted, in the order of the inputs.

    A folder stands for all images in and below it, but no link that leads out of it: a `ReadResult` with
    an error takes its place, as it does for an input without images.
    """
    for path in inputs:
        if isinstance(path, Remote):
            yield from _list_store(path)
        elif path.is_dir() and not formats.is_image(path):
            yield from _list_folder(path)
        elif not path.exists() and any(sign in str(path) for sign in "*?["):
            matching = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - a Path globs below a folder
            yield from map(Path, matching)
            if not matching:
                error = ImageError("matches no file", need="a pattern that does", next="Check the pattern.", path=path)
                yield ReadResult(path, error)
        else:
            yield path


def named(inputs: Iterable[Path]) -> Iterator[Path]:
    """The files and folders that inputs name: for a pattern, each file that it matches."""
    for path in inputs:
        is_pattern = any(sign in str(path) for sign in "*?[")
        if is_pattern and (isinstance(path, Remote) or not path.exists()):
            yield from (entry for entry in list_images([path]) if isinstance(entry, Path))
        else:
            yield path


def _list_store(path: Remote) -> Iterator[Path | ReadResult]:
    """The files behind an input on an object store, where a pattern knows *, ? and ** alone."""
    plain = list(takewhile(lambda part: not any(sign in part for sign in "*?"), path.parts))
    is_pattern = len(plain) < len(path.parts)
    if formats.is_image(path) and not is_pattern:
        yield path
        return
    top, pattern = Remote(*path.parts[: len(plain)]), re.compile(_to_regex(str(path)) if is_pattern else ".*", re.S)
    matching = [image for image in _images_on_store(top) if pattern.fullmatch(str(image))]
    yield from sorted(matching) if is_pattern else matching
    if not matching:
        yield _no_images(path)


def _no_images(path: Path) -> ReadResult:
    endings = ", ".join(formats.READERS)
    return ReadResult(path, ImageError("holds no images", need=f"{endings} files", next="Check the name.", path=path))


def _images_on_store(folder: Remote) -> list[Remote]:
    """All images in a folder and below it, in the order of `_list_folder`; a zarr store is one."""
    object_store.refuse_unfinished(folder)
    images: dict[Remote, None] = {}
    for path in folder.files():
        stores = [parent for parent in reversed(path.parents) if parent.suffix == ".zarr"]
        if stores or formats.is_image(path):
            images[stores[0] if stores else path] = None
    return sorted(images, key=lambda path: [*((1, part) for part in path.parts[:-1]), (0, path.name)])


def _to_regex(pattern: str) -> str:
    """The regular expression of a pattern: ** with a slash is any folders, * and ? match all but a slash."""
    signs = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(signs.get(part) or re.escape(part) for part in re.split(r"(\*\*/|\*\*|\*|\?)", pattern))


def _list_folder(folder: Path) -> Iterator[Path | ReadResult]:
    real, n_images = folder.resolve(), 0
    for top, below, names in os.walk(folder):
        stores = [name for name in below if formats.is_image(Path(name))]
        below[:] = sorted(set(below) - set(stores))
        if DATA in names:  # which these lie beside
            names = [name for name in names if name not in (NOISE_MAP, PSF) and not fnmatch(name, MASKS)]
        for path in sorted(Path(top, name) for name in (*names, *stores) if formats.is_image(Path(name))):
            n_images += 1
            yield path if path.resolve().is_relative_to(real) else _link_out(path, folder)
    if not n_images:
        yield _no_images(folder)


def _link_out(path: Path, folder: Path) -> ReadResult:
    what = f"a link out of {folder}"
    return ReadResult(path, ImageError(what, need="a file in the folder", next="Name it by itself.", path=path))
