"""A data set on disk: memory-mapped shards and a checksummed manifest, written once.

NAME/manifest.json            classes, shape, settings, seed, sha256 of every other file
NAME/train/images-00000.npy   uint16 [n, h, w], counts above each image's minimum
NAME/train/labels.npy         int64 [n], positions in the manifest's classes
NAME/train/ids.npy            unicode [n]
NAME/train/scenes.npy         truth, one row an image; simulated data sets only
NAME/train/subhaloes.npy      truth, one row a subhalo; simulated data sets only
NAME/train/extra.npy          truth, one row an image; surveys with settings of real lenses only
NAME/train/convergence-00000.npy, noiseless-00000.npy   float32 [n, h, w]; where maps were saved
NAME/test/...                 the same

While a store is written its tables lie in pieces, one a shard, in .NAME.partial/, beside the hashes of
each shard; an interrupted store is continued after its last whole shard.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sublens.config import Frozen
from sublens.errors import DataError
from sublens.storage.files import NPY_ERRORS, PLAN, Kind, remove, sha256, whole_folder
from sublens.storage.object_store import local
from sublens.storage.seal import unsealed, write_sealed
from sublens.surveys.survey import Survey
from sublens.surveys.truth import Truth, of_format_2

FORMAT = 3
"""Format of a store. Those of format 2 have other tables of truth, see `truth.of_format_2`, and surveys that
conserve the total mass; they are read where they hold packed images or the survey `BENCHMARK`."""
BENCHMARK = "common-test-1"
"""Survey that conserves the total mass in every format."""
MANIFEST = "manifest.json"
PARTIAL = ".partial"
"""Name of a file that is being written."""
COPY_AGAIN = "Copy the store again, or make it again."
"""Advice for a damaged store."""
TABLES = ("labels", "ids", "scenes", "subhaloes", "extra")
"""Tables beside the images; from the third on of simulated data sets only, and the last of some surveys only."""


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
        digests: dict[str, str] = {}
        for name, source in splits.items():
            digests |= _write_split(partial, name, source)
        sizes = {name: _n_images(partial / name) for name in splits}
        shapes = [_array(shard, mapped=True).shape[1:] for shard in sorted(partial.glob("*/images-*.npy"))[:1]]
        manifest = Manifest(
            format=FORMAT,
            sublens=ours,
            classes=classes,
            shape=shapes[0] if shapes else (0, 0),
            origin=origin,
            splits=sizes,
            files=dict(sorted(digests.items())),
            left_out=dict(left_out or {}),
        )
        (partial / MANIFEST).write_text(manifest.text(), encoding="utf-8")
        for split in splits:
            remove(partial / f"{split}-pieces")
    return hashlib.sha256(manifest.text().encode()).hexdigest()


def _write_split(root: Path, split: str, source: Source) -> dict[str, str]:
    """Write the shards that are not yet whole, and their joined tables; returns the sha256 of each file by path."""
    folder, pieces = root / split, root / f"{split}-pieces"
    folder.mkdir(exist_ok=True)
    pieces.mkdir(exist_ok=True)
    records = list(_whole_shards(root, pieces))
    for number, chunk in enumerate(source(len(records)), start=len(records)):
        records.append(_write_shard(root, split, number, chunk))
        write_sealed(pieces / f"{number:05d}.json", records[-1])  # last, as the sign that the shard is whole
    digests = {name: digest for record in records for name, digest in record.items()}
    for table in TABLES:
        parts = [_array(root / name) for name in digests if name.startswith(f"{pieces.name}/{table}-")]
        if parts:
            digests[f"{split}/{table}.npy"] = _save(folder / f"{table}.npy", np.concatenate(parts))
    remove(folder / PARTIAL)
    return {name: digest for name, digest in digests.items() if name.startswith(f"{split}/")}


def _whole_shards(root: Path, pieces: Path) -> Iterator[dict[str, str]]:
    """The hashes of the shards of an interrupted store, up to the first that is missing or has changed."""
    for number in count():
        try:
            record = unsealed(json.loads((pieces / f"{number:05d}.json").read_bytes()))
        except (OSError, ValueError, AttributeError, RecursionError):
            return
        if not all(_is_whole(root / name, digest) for name, digest in record.items()):
            return
        yield record


def _write_shard(root: Path, split: str, number: int, chunk: Chunk) -> dict[str, str]:
    """Write the planes of a shard, and its tables in pieces; returns the sha256 of each file by path."""
    truth = vars(chunk.truth) if chunk.truth else {}
    tables = {"labels": chunk.labels, "ids": chunk.ids, **truth}
    planes: dict[str, NDArray[Any]] = {"images": chunk.counts, **chunk.maps}
    arrays = {f"{split}-pieces/{name}-{number:05d}.npy": rows for name, rows in tables.items() if rows is not None}
    arrays |= {f"{split}/{name}-{number:05d}.npy": plane for name, plane in planes.items()}
    return {name: _save(root / name, array) for name, array in arrays.items()}


def _save(path: Path, array: NDArray[Any]) -> str:
    """Write an array, whole or not at all, so that an interrupted store holds only whole files; returns its sha256."""
    content = io.BytesIO()
    np.save(content, array)
    partial = path.with_name(PARTIAL)
    with partial.open("wb") as file:
        file.write(content.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return hashlib.sha256(content.getbuffer()).hexdigest()


def _n_images(folder: Path) -> int:
    labels = folder / f"{TABLES[0]}.npy"
    return len(_array(labels)) if labels.is_file() else 0


def read_map(path: Path, manifest: Manifest, split: str, name: str) -> list[NDArray[np.float32]]:
    """A map saved beside the images, shard by shard, each [n, h, w] and memory-mapped.

    name: `convergence` or `noiseless`. Raises `DataError` where the store has none, or one has changed.
    """
    files = [file for file in manifest.files if file.startswith(f"{split}/{name}-")]
    if not files:
        raise DataError(
            f"holds no {name} maps", need="a store with maps", next="Simulate it with --save-maps.", path=path
        )
    for file in files:
        _check_file(path, manifest, file)
    return [_array(path / file, mapped=True) for file in sorted(files)]


def read_manifest(path: Path) -> Manifest:
    """The manifest of the store at `path`; `DataError` where there is none, or none that this version reads."""
    file = path / MANIFEST
    try:
        text = local(file).read_bytes().decode()  # read_text would turn each carriage return into a line feed
        content: dict[str, Any] = json.loads(text)
        if content.get("format") == 2:
            _admit_format_2(content, path)
        elif content.get("format") != FORMAT:
            raise DataError(
                f"is a store of format {content.get('format')}",
                need=f"format {FORMAT}, which this version of sublens reads",
                next="Install the version that wrote it, or simulate it again.",
                path=path,
            )
        manifest = Manifest.model_validate(content)
        if _seal(text) != manifest.seal:
            raise ValueError("the seal is broken")
    except OSError as err:
        raise DataError(
            f"not a store (no readable {MANIFEST})",
            need="a store's folder",
            next="Make one with `sublens simulate` or `sublens pack`.",
            path=path,
        ) from err
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as err:  # ValidationError is a ValueError
        raise DataError("is damaged", need="the manifest as it was written", next=COPY_AGAIN, path=file) from err
    check_class_names(manifest.classes, path)
    return manifest


def _seal(text: str) -> str:
    """The seal that belongs to a manifest's text: sha256 of its compact form without the seal, in any format."""
    lines = text.removesuffix("\n").split("\n")
    compact = "".join(KEY.sub(r"\1", line.lstrip(" ")) for line in lines[:-2])  # the last are the seal and a brace
    return hashlib.sha256((compact.removesuffix(",") + "}").encode()).hexdigest()


KEY = re.compile(r'^("(?:[^"\\]|\\.)*":) ')
"""Key at the start of a line of JSON."""


def _admit_format_2(content: dict[str, Any], path: Path) -> None:
    """Set what an older survey conserves; `DataError` for images in which the size of the ring tells the class."""
    survey = content["origin"]["survey"]
    if survey and survey["name"] != BENCHMARK:
        raise DataError(
            f"holds images of {survey['name']!r} of format 2, in which the size of the ring tells the class",
            need=f"format {FORMAT}, in which substructure leaves the ring its size",
            next="Simulate it again with the same command, and train its networks again. A copy of common-test-1 "
            'needs `conserves = "total-mass"` under [halo] to give the same images.',
            path=path,
        )
    if survey:
        survey["halo"]["conserves"] = "total-mass"


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
    """The chunks of one split, images memory-mapped and read only when used, after their `shard_check`."""
    if not manifest.splits.get(name):
        return []
    labels, ids, *truths = _read_tables(path, manifest, name)
    truth = (Truth if manifest.format == FORMAT else of_format_2)(*truths) if truths else None
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
        _check_file(path, manifest, name)
    return [_array(path / name) for name in names]


def shard_check(path: Path, manifest: Manifest, split: str) -> Callable[[int], None]:
    """The check of a split's shards against their hashes, by number; it reads each shard the first time only.

    Raises `DataError` for a shard that is missing or has changed, at every call.
    """

    @cache
    def check(number: int) -> None:
        _check_file(path, manifest, f"{split}/images-{number:05d}.npy")

    return check


def _check_file(path: Path, manifest: Manifest, name: str) -> None:
    if not _is_whole(path / name, manifest.files.get(name, "")):
        raise DataError(
            "is missing or changed",
            need="the file that the manifest lists",
            next=f"List all such files with `sublens verify {path}`, then copy the store again, or make it again.",
            path=path / name,
        )


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
