"""Data sets: opened from stores and folders, split into parts, packed."""

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from sublens.config import SplitConfig
from sublens.data import store
from sublens.data.folders import TEST, TRAIN, Layout
from sublens.data.store import Chunk, Origin
from sublens.errors import DataError
from sublens.parallel.dask import open_cluster
from sublens.parallel.mapper import HERE
from sublens.progress import Bar, Count, silent
from sublens.sim.population import Truth
from sublens.sim.survey import Survey
from sublens.storage import files, object_store
from sublens.storage.files import sha256


@dataclass(frozen=True)
class Part:
    """Images of a data set with their labels, ids and, if simulated, truth."""

    shards: tuple[NDArray[np.uint16], ...]
    """Images [n, h, w] for each shard; all but the last have the same length."""
    rows: NDArray[np.int64]
    """Positions [n] of this part's images in the concatenated shards."""
    labels: NDArray[np.int64]
    """Positions [n] in the data set's classes."""
    ids: NDArray[np.str_]
    """Names [n], unique in the data set."""
    truth: Truth | None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the images, pixels."""
        return self.shards[0].shape[1:] if self.shards else (0, 0)

    def counts(self, positions: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Counts above the minimum of the images at these positions, [b, h, w]."""
        length = len(self.shards[0])
        return np.stack([self.shards[row // length][row % length] for row in self.rows[positions]])

    def few(self, n: int) -> Self:
        """The part that holds only `n` images, or all if there are fewer, spread evenly over it."""
        return self.take(np.linspace(0, len(self) - 1, min(n, len(self))).round().astype(np.int64))

    def take(self, positions: NDArray[np.int64]) -> Self:
        """The part that holds only these images, in this order."""
        return replace(
            self,
            rows=self.rows[positions],
            labels=self.labels[positions],
            ids=self.ids[positions],
            truth=self.truth.take(positions) if self.truth else None,
        )


@dataclass(frozen=True)
class Dataset:
    """Labelled images in three parts, divided by `split`."""

    name: str
    classes: tuple[str, ...]
    train: Part
    selection: Part
    test: Part
    hash: str
    """sha256 of the store's manifest, or of a folder's ids and pixels."""
    survey: Survey | None
    """Settings of the simulation; None for other images."""
    split: SplitConfig
    """Settings of the division."""

    @property
    def imbalance(self) -> float:
        """Training images of the largest class over those of the smallest."""
        numbers = np.bincount(self.train.labels)
        return float(numbers.max() / numbers.min())


def open_dataset(path: Path, split: SplitConfig, bar: Bar = silent) -> Dataset:
    """The data set at `path`, a store or a folder of class folders, divided by `split`.

    A folder is read with a progress bar; files on an object store are fetched first. Raises
    `DataError` or `ImageError` where it cannot be used.
    """
    path = object_store.local(path, bar)
    if (path / store.MANIFEST).is_file():
        return _open_store(path, split)
    layout = Layout.of(path)
    with bar(f"reading {path}", layout.n_images) as advance:
        count = Count(advance)
        chunks = {name: list(layout.chunks(name, count.add)) for name in layout.files}
    train, test = _part(chunks[TRAIN]), _part(chunks.get(TEST, []))
    return _split_dataset(path.resolve().name, layout.classes, train, test, _content_hash(chunks), None, split)


def _open_store(path: Path, split: SplitConfig) -> Dataset:
    manifest = store.read_manifest(path)
    train, test = (_part(store.read_split(path, manifest, name)) for name in (TRAIN, TEST))
    name, survey = manifest.origin.source, manifest.origin.survey
    return _split_dataset(name, manifest.classes, train, test, sha256(path / store.MANIFEST), survey, split)


def _part(chunks: Sequence[Chunk]) -> Part:
    """The part that all these chunks make up."""
    truths = [chunk.truth for chunk in chunks if chunk.truth]
    return Part(
        shards=tuple(chunk.counts for chunk in chunks),
        rows=np.arange(sum(len(chunk.labels) for chunk in chunks)),
        labels=np.concatenate([np.zeros(0, np.int64), *(chunk.labels for chunk in chunks)]),
        ids=np.concatenate([np.zeros(0, "<U1"), *(chunk.ids for chunk in chunks)]),
        truth=Truth(np.concatenate([t.scenes for t in truths]), np.concatenate([t.subhaloes for t in truths]))
        if truths
        else None,
    )


def _split_dataset(
    name: str,
    classes: tuple[str, ...],
    train: Part,
    test: Part,
    digest: str,
    survey: Survey | None,
    config: SplitConfig,
) -> Dataset:
    if len(train) == 0:
        raise DataError(
            "holds no training images",
            need="some of every class",
            next="Add some, or name another data set.",
            path=name,
        )
    if len(test) == 0:
        train, test = split(train, config.test, config.seed, "test")
    train, selection = split(train, config.selection, config.seed, "selection")
    for part, kind in ((train, "training"), (selection, "selection"), (test, "test")):
        absent = [label for number, label in enumerate(classes) if number not in part.labels]
        if absent:
            raise DataError(
                f"the {kind} part ({len(part)} images) holds no image of class {', '.join(absent)}",
                need="every class in every part",
                next="Add images, or raise split.selection or split.test.",
                path=name,
            )
    return Dataset(name, classes, train, selection, test, digest, survey, config)


def split(part: Part, share: float, seed: int, purpose: str) -> tuple[Part, Part]:
    """The images that stay, and those set aside, about `share` of them.

    Whether an image is set aside depends on its id, the seed and the purpose alone, so that
    adding, removing or reordering others does not move it.
    """
    aside = np.array([_uniform(f"{purpose}:{seed}:{name}") < share for name in part.ids], dtype=bool)
    return part.take(np.flatnonzero(~aside)), part.take(np.flatnonzero(aside))


def _uniform(key: str) -> float:
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _content_hash(chunks: dict[str, list[Chunk]]) -> str:
    digest = hashlib.sha256()
    for chunk in (chunk for name in sorted(chunks) for chunk in chunks[name]):
        digest.update("\n".join(chunk.ids).encode())
        digest.update(np.ascontiguousarray(chunk.counts).tobytes())
    return digest.hexdigest()


def pack(folder: Path, out: Path, *, cluster: str | None = None, force: bool = False, bar: Bar = silent) -> None:
    """Convert a folder of class folders into a store; cluster: see `sublens.parallel.dask.open_cluster`."""
    files.refuse_overlap(out, folder)
    files.refuse_existing(out, force=force)
    object_store.refuse_unfinished(folder)
    layout = Layout.of(folder)
    computed = open_cluster(cluster) if cluster else nullcontext(HERE)
    with computed as mapper, bar(f"packing {folder}", layout.n_images) as advance:
        count = Count(advance, mapper.status)
        splits = {name: partial(layout.chunks, name, count.add, mapper=mapper) for name in layout.files}
        store.write(out, layout.classes, Origin(source=folder.resolve().name), splits, force=force)
