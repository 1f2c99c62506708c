"""A data set on disk: memory-mapped shards and a checksummed manifest, written once.

NAME/manifest.json            classes, shape, settings, seed, sha256 of every other file
NAME/train/images-00000.npy   uint16 [n, h, w], counts above each image's minimum
NAME/train/labels.npy         int64 [n], positions in the manifest's classes
NAME/train/ids.npy            unicode [n]
NAME/train/scenes.npy         truth, one row an image; simulated data sets only
NAME/train/subhaloes.npy      truth, one row a subhalo; simulated data sets only
NAME/test/...                 the same
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from sublens.config import Frozen, SimConfig
from sublens.errors import DataError
from sublens.files import NPY_ERRORS, sha256, whole_folder
from sublens.sim.population import Truth

FORMAT = 1
MANIFEST = "manifest.json"
TABLES = ("labels", "ids", "scenes", "subhaloes")
"""What stands beside the images; the last two where the truth is known."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive images of one split."""

    counts: NDArray[np.uint16]
    """[n, h, w], above each image's minimum."""
    labels: NDArray[np.int64]
    """[n], positions in the data set's classes."""
    ids: NDArray[np.str_]
    """[n], unique in the data set."""
    truth: Truth | None = None
    """What was simulated, where that is known."""


class Origin(Frozen):
    """Where a data set comes from."""

    source: str
    """The preset's name, or the folder's."""
    seed: int | None = None
    """The simulation's seed."""
    survey: SimConfig | None = None
    """The simulation's settings."""


class Manifest(Frozen):
    """What `manifest.json` says."""

    format: int
    sublens: str
    classes: tuple[str, ...]
    shape: tuple[int, int]
    origin: Origin
    splits: dict[str, int]
    """Number of images by split."""
    files: dict[str, str]
    """sha256 by path."""
    seal: str = ""
    """sha256 of all the above, so that a change of the manifest itself is noticed."""

    def text(self) -> str:
        """The manifest as it stands in its file."""
        rest = self.model_dump_json(exclude={"seal"})
        sealed = self.model_copy(update={"seal": hashlib.sha256(rest.encode()).hexdigest()})
        return sealed.model_dump_json(indent=1) + "\n"


def write(
    out: Path,
    classes: tuple[str, ...],
    origin: Origin,
    splits: Mapping[str, Iterable[Chunk]],
    *,
    force: bool = False,
) -> str:
    """Write a store and return its hash, the sha256 of the manifest.

    Raises `DataError` where `out` exists and `force` is false, or cannot be written.
    """
    with whole_folder(out, force=force) as partial:
        sizes, shape = {}, (0, 0)
        for name, chunks in splits.items():
            folder = partial / name
            folder.mkdir()
            sizes[name], shape = _write_split(folder, chunks, shape)
        paths = sorted(path for path in partial.rglob("*") if path.is_file())
        manifest = Manifest(
            format=FORMAT,
            sublens=version("sublens"),
            classes=classes,
            shape=shape,
            origin=origin,
            splits=sizes,
            files={path.relative_to(partial).as_posix(): sha256(path) for path in paths},
        )
        (partial / MANIFEST).write_text(manifest.text(), encoding="utf-8")
    return sha256(out / MANIFEST)


def _write_split(folder: Path, chunks: Iterable[Chunk], shape: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    labels, ids, scenes, subhaloes = [], [], [], []
    for number, chunk in enumerate(chunks):
        np.save(folder / f"images-{number:05d}.npy", chunk.counts)
        shape = (chunk.counts.shape[1], chunk.counts.shape[2])
        labels.append(chunk.labels)
        ids.append(chunk.ids)
        if chunk.truth:
            scenes.append(chunk.truth.scenes)
            subhaloes.append(chunk.truth.subhaloes)
    if not labels:
        return 0, shape
    parts_of: tuple[list[NDArray[Any]], ...] = (labels, ids, scenes, subhaloes)
    for name, parts in zip(TABLES, parts_of, strict=True):
        if parts:
            np.save(folder / f"{name}.npy", np.concatenate(parts))
    return sum(map(len, labels)), shape


def read_manifest(path: Path) -> Manifest:
    """The manifest of the store at `path`; `DataError` where there is none that we understand."""
    file = path / MANIFEST
    try:
        text = file.read_text(encoding="utf-8")
        content: dict[str, Any] = json.loads(text)
        if content.get("format") != FORMAT:
            raise DataError(
                f"{path}: a store of format {content.get('format')}; this version of sublens reads "
                f"format {FORMAT}. Install the version that wrote it, or simulate it again."
            )
        manifest = Manifest.model_validate(content)
        if manifest.text() != text:
            raise ValueError("the seal is broken")
        return manifest
    except OSError as err:
        raise DataError(
            f"{path}: not a store (no readable {MANIFEST}). Make one with `sublens simulate` or `sublens pack`."
        ) from err
    except (ValueError, AttributeError, ValidationError) as err:
        raise DataError(f"{file}: is damaged. Copy the store again, or make it again.") from err


def read_split(path: Path, manifest: Manifest, name: str) -> list[Chunk]:
    """The chunks of one split, images memory-mapped and read only when used."""
    folder = path / name
    if not manifest.splits.get(name):
        return []
    tables = [table for table in TABLES if f"{name}/{table}.npy" in manifest.files]
    for table in tables:
        if not _is_whole(folder / f"{table}.npy", manifest.files[f"{name}/{table}.npy"]):
            raise DataError(f"{folder / table}.npy: missing or changed. Run `sublens verify {path}`, or copy it again.")
    shards = [_array(file, mapped=True) for file in sorted(folder.glob("images-*.npy"))]
    if any(shard.dtype != np.uint16 or shard.shape[1:] != manifest.shape for shard in shards):
        raise DataError(f"{folder}: holds images of another kind than its manifest says. Run `sublens verify {path}`.")
    if sum(map(len, shards)) != manifest.splits[name]:
        raise DataError(
            f"{folder}: holds fewer or more than the {manifest.splits[name]} images its manifest lists. "
            f"Run `sublens verify {path}`."
        )
    labels, ids, *truths = (_array(folder / f"{table}.npy") for table in tables)
    truth = Truth(*truths) if truths else None
    chunks, start = [], 0
    for shard in shards:
        rows = np.arange(start, start + len(shard))
        chunks.append(Chunk(shard, labels[rows], ids[rows], truth.take(rows) if truth else None))
        start += len(shard)
    return chunks


def _is_whole(file: Path, expected: str) -> bool:
    return file.is_file() and sha256(file) == expected


def _array(file: Path, *, mapped: bool = False) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(file, mmap_mode="r" if mapped else None, allow_pickle=False)
    except NPY_ERRORS as err:
        raise DataError(f"{file}: missing or damaged. Copy the store again, or make it again.") from err
    return array


def damage(path: Path, manifest: Manifest) -> Iterable[tuple[str, str | None]]:
    """For each file of the store: its path, and what is wrong with it (None if nothing is)."""
    for name, expected in manifest.files.items():
        file = path / name
        if not file.is_file():
            yield name, "missing"
        else:
            yield name, None if _is_whole(file, expected) else "changed"
    present = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    for name in sorted(present - manifest.files.keys() - {MANIFEST}):
        yield name, "not in the manifest"
