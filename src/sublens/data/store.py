"""A data set on disk: memory-mapped shards and a checksummed manifest, written once.

NAME/manifest.json            classes, shape, settings, seed, sha256 of every other file
NAME/train/images-00000.npy   uint16 [n, h, w], counts above each image's minimum
NAME/train/labels.npy         int64 [n], positions in the manifest's classes
NAME/train/ids.npy            unicode [n]
NAME/train/scenes.npy         truth, one row an image; simulated data sets only
NAME/train/subhaloes.npy      truth, one row a subhalo; simulated data sets only
NAME/train/convergence-00000.npy, noiseless-00000.npy   float32 [n, h, w]; where maps were saved
NAME/test/...                 the same

While a store is written its tables lie in pieces, one a shard, in .NAME.partial/; an interrupted
store is continued from its last whole shard.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sublens.config import Frozen
from sublens.errors import DataError
from sublens.sim.population import Truth
from sublens.sim.survey import Survey
from sublens.storage.files import NPY_ERRORS, PLAN, Kind, remove, sha256, whole_folder
from sublens.storage.object_store import local

FORMAT = 2
"""Format of a store."""
MANIFEST = "manifest.json"
PARTIAL = ".partial"
"""Name of a file that is being written."""
COPY_AGAIN = "Copy the store again, or make it again."
"""Advice for a damaged store."""
TABLES = ("labels", "ids", "scenes", "subhaloes")
"""Tables beside the images; the last two of simulated data sets only."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive images of one split."""

    counts: NDArray[np.uint16]
    """Counts above each image's minimum, [n, h, w]."""
    labels: NDArray[np.int64]
    """Positions [n] in the data set's classes."""
    ids: NDArray[np.str_]
    """Names [n], unique in the data set."""
    truth: Truth | None = None
    """Truth of simulated images; None for others."""
    maps: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Further planes [n, h, w] by name, such as the convergence."""


Source = Callable[[int], Iterable[Chunk]]
"""Function from a number of chunks to leave out to the other chunks of one split, the same in every call."""


class Origin(Frozen):
    """Origin of a data set."""

    source: str
    """Name of the preset, or of the folder."""
    seed: int | None = None
    """Seed of the simulation."""
    survey: Survey | None = None
    """Settings of the simulation."""

    def write_beside(self, folder: Path) -> None:
        """Write simulation.json into a folder of images that has no manifest."""
        (folder / "simulation.json").write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


class Manifest(Frozen):
    """Content of `manifest.json`."""

    format: int
    sublens: str
    classes: tuple[str, ...]
    shape: tuple[int, int]
    origin: Origin
    splits: dict[str, int]
    """Number of images by split."""
    files: dict[str, str]
    """sha256 by path."""
    left_out: dict[str, str] = Field(default_factory=dict)
    """Faults of the images of the packed folder that could not be used, by id; written only where there are some."""
    seal: str = ""
    """sha256 of all the above, which detects a change of the manifest itself."""

    def text(self) -> str:
        """The content of its file, sealed."""
        absent = set() if self.left_out else {"left_out"}
        rest = self.model_dump_json(exclude={"seal", *absent})
        sealed = self.model_copy(update={"seal": hashlib.sha256(rest.encode()).hexdigest()})
        return sealed.model_dump_json(indent=1, exclude=absent) + "\n"


def write(
    out: Path,
    classes: tuple[str, ...],
    origin: Origin,
    splits: Mapping[str, Source],
    *,
    plan: str = "",
    left_out: Mapping[str, str] | None = None,
    force: bool = False,
) -> str:
    """Write a store and return its hash, the sha256 of the manifest.

    plan: all else that decides the content, beside classes and origin; with one, an interrupted
    store is continued. Raises `DataError` where `out` exists and `force` is false, or
    cannot be written. left_out: faults of images that the sources leave out, by id, complete once they are read.
    """
    ours = version("sublens")
    decided = json.dumps([FORMAT, ours, classes, origin.model_dump(mode="json"), plan]) if plan else ""
    with whole_folder(out, kind=Kind.DATASET, force=force, plan=decided) as partial:
        for name, source in splits.items():
            _write_split(partial / name, partial / f"{name}-pieces", source)
        sizes = {name: _n_images(partial / name) for name in splits}
        shapes = [_array(shard, mapped=True).shape[1:] for shard in sorted(partial.glob("*/images-*.npy"))[:1]]
        paths = sorted(partial.glob("*/*.npy"))
        manifest = Manifest(
            format=FORMAT,
            sublens=ours,
            classes=classes,
            shape=shapes[0] if shapes else (0, 0),
            origin=origin,
            splits=sizes,
            files={path.relative_to(partial).as_posix(): sha256(path) for path in paths},
            left_out=dict(left_out or {}),
        )
        (partial / MANIFEST).write_text(manifest.text(), encoding="utf-8")
        digest = sha256(partial / MANIFEST)
    return digest


def _write_split(folder: Path, pieces: Path, source: Source) -> None:
    """Write the shards that are still missing, then join their tables."""
    folder.mkdir(exist_ok=True)
    n_done = len(list(folder.glob("images-*.npy")))
    for number, chunk in enumerate(source(n_done), start=n_done):
        pieces.mkdir(exist_ok=True)
        _write_shard(folder, pieces, number, chunk)
    if not (folder / f"{TABLES[0]}.npy").is_file():
        for table in reversed(TABLES):  # the first comes last, as the sign that all are there
            parts = [_array(piece) for piece in sorted(pieces.glob(f"{table}-*.npy"))]
            if parts:
                _save(folder / f"{table}.npy", np.concatenate(parts))
    remove(pieces)
    remove(folder / PARTIAL)


def _write_shard(folder: Path, pieces: Path, number: int, chunk: Chunk) -> None:
    truth = {"scenes": chunk.truth.scenes, "subhaloes": chunk.truth.subhaloes} if chunk.truth else {}
    for table, rows in {"labels": chunk.labels, "ids": chunk.ids, **truth}.items():
        _save(pieces / f"{table}-{number:05d}.npy", rows)
    for name, planes in chunk.maps.items():
        _save(folder / f"{name}-{number:05d}.npy", planes)
    _save(folder / f"images-{number:05d}.npy", chunk.counts)  # last, as the sign that the shard is whole


def _save(path: Path, array: NDArray[Any]) -> None:
    """Write an array, whole or not at all, so that an interrupted store holds only whole files."""
    partial = path.with_name(PARTIAL)
    with partial.open("wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _n_images(folder: Path) -> int:
    labels = folder / f"{TABLES[0]}.npy"
    return len(_array(labels)) if labels.is_file() else 0


def read_map(path: Path, manifest: Manifest, split: str, name: str) -> list[NDArray[np.float32]]:
    """A map saved beside the images, shard by shard, each [n, h, w] and memory-mapped.

    name: `convergence` or `noiseless`. Raises `DataError` where the store has none.
    """
    files = [file for file in manifest.files if file.startswith(f"{split}/{name}-")]
    if not files:
        raise DataError(
            f"holds no {name} maps", need="a store with maps", next="Simulate it with --save-maps.", path=path
        )
    return [_array(path / file, mapped=True) for file in sorted(files)]


def read_manifest(path: Path) -> Manifest:
    """The manifest of the store at `path`; `DataError` where there is none, or none that this version reads."""
    file = path / MANIFEST
    try:
        text = local(file).read_text(encoding="utf-8")
        content: dict[str, Any] = json.loads(text)
        if content.get("format") != FORMAT:
            raise DataError(
                f"is a store of format {content.get('format')}",
                need=f"format {FORMAT}, which this version of sublens reads",
                next="Install the version that wrote it, or simulate it again.",
                path=path,
            )
        manifest = Manifest.model_validate(content)
        if manifest.text() != text:
            raise ValueError("the seal is broken")
    except OSError as err:
        raise DataError(
            f"not a store (no readable {MANIFEST})",
            need="a store's folder",
            next="Make one with `sublens simulate` or `sublens pack`.",
            path=path,
        ) from err
    except (ValueError, AttributeError, RecursionError) as err:  # ValidationError is a ValueError
        raise DataError("is damaged", need="the manifest as it was written", next=COPY_AGAIN, path=file) from err
    check_class_names(manifest.classes, path)
    return manifest


def check_class_names(names: Iterable[str], path: Path) -> None:
    """Raise `DataError` for a class name that some prediction table cannot hold.

    Letters of any script are allowed; control characters and bytes that are no UTF-8 are not, nor commas,
    which separate the names of a prediction set, nor blanks at either end, which FITS drops.
    """
    wrong = [name for name in names if not name.isprintable() or "," in name or name != name.strip()]
    if wrong:
        raise DataError(
            f"has a class called {wrong[0]!r}",
            need="names of printable characters without commas, and without blanks at either end",
            next="Rename the class folder and, for a store, pack it again.",
            path=path,
        )


def read_split(path: Path, manifest: Manifest, name: str) -> list[Chunk]:
    """The chunks of one split, images memory-mapped and read only when used."""
    if not manifest.splits.get(name):
        return []
    labels, ids, *truths = _read_tables(path, manifest, name)
    truth = Truth(*truths) if truths else None
    shards = [_array(file, mapped=True) for file in sorted((path / name).glob("images-*.npy"))]
    _refuse_other_images(path, manifest, name, shards)
    chunks, start = [], 0
    for shard in shards:
        rows = np.arange(start, start + len(shard))
        chunks.append(Chunk(shard, labels[rows], ids[rows], truth.take(rows) if truth else None))
        start += len(shard)
    return chunks


def _read_tables(path: Path, manifest: Manifest, split: str) -> list[NDArray[Any]]:
    names = [f"{split}/{table}.npy" for table in TABLES if f"{split}/{table}.npy" in manifest.files]
    for name in names:
        if not _is_whole(path / name, manifest.files[name]):
            raise DataError(
                "is missing or changed",
                need="the file that the manifest lists",
                next=f"Run `sublens verify {path}`, or copy the store again.",
                path=path / name,
            )
    return [_array(path / name) for name in names]


def _refuse_other_images(path: Path, manifest: Manifest, split: str, shards: Sequence[NDArray[Any]]) -> None:
    shape, n_images, advice = manifest.shape, sum(map(len, shards)), f"Run `sublens verify {path}`."
    if any(shard.dtype != np.uint16 or shard.shape[1:] != shape for shard in shards):
        raise DataError(
            "holds images of another type or shape than its manifest lists",
            need=f"uint16 images of {shape[0]} x {shape[1]} pixels",
            next=advice,
            path=path / split,
        )
    if n_images != manifest.splits[split]:
        raise DataError(
            f"holds {n_images} images",
            need=f"the {manifest.splits[split]} that its manifest lists",
            next=advice,
            path=path / split,
        )


def _is_whole(file: Path, expected: str) -> bool:
    return file.is_file() and sha256(file) == expected


def _array(file: Path, *, mapped: bool = False) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(file, mmap_mode="r" if mapped else None, allow_pickle=False)
    except NPY_ERRORS as err:
        raise DataError("is missing or damaged", need="a whole .npy file", next=COPY_AGAIN, path=file) from err
    return array


def damage(path: Path, manifest: Manifest) -> Iterable[tuple[str, str | None]]:
    """Path and fault of each file of the store; None for a file without fault."""
    for name, expected in manifest.files.items():
        file = path / name
        if not file.is_file():
            yield name, "missing"
        else:
            yield name, None if _is_whole(file, expected) else "changed"
    present = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    for name in sorted(present - manifest.files.keys() - {MANIFEST, PLAN}):
        yield name, "not in the manifest"
