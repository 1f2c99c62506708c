"""Folders and stores -> data sets, their parts, and batches."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sublens.config import SplitConfig
from sublens.data import store
from sublens.data.store import Chunk, Origin, Source
from sublens.errors import DataError, ImageError
from sublens.images import formats
from sublens.parallel.mapper import HERE, Mapper
from sublens.sim.population import Truth
from sublens.sim.survey import Survey
from sublens.storage import object_store
from sublens.storage.files import sha256, whole_folder
from sublens.storage.object_store import FETCHES, Remote

TRAIN, TEST = "train", "test"
FOLDER_CHUNK = 500
Progress = Callable[[int], object]
"""Called with the number of images just done."""


@dataclass(frozen=True)
class Part:
    """Some images of a data set, with their labels, ids and (if simulated) truth."""

    shards: tuple[NDArray[np.uint16], ...]
    """Images [any, h, w]; all shards but the last have the same length."""
    rows: NDArray[np.int64]
    """[n], positions of this part's images in the concatenated shards."""
    labels: NDArray[np.int64]
    ids: NDArray[np.str_]
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
    """Labelled images in three parts; see `split` for how they come about."""

    name: str
    classes: tuple[str, ...]
    train: Part
    selection: Part
    test: Part
    hash: str
    """sha256 of the store's manifest, or of a folder's ids and pixels."""
    survey: Survey | None
    """The simulation's settings, where there was one."""
    split: SplitConfig
    """How it was divided."""

    @property
    def imbalance(self) -> float:
        """Training images of the largest class over those of the smallest."""
        numbers = np.bincount(self.train.labels)
        return float(numbers.max() / numbers.min())


def open(path: Path, split: SplitConfig, on_progress: Progress = lambda n: None) -> Dataset:
    """The data set at `path`, a store or a folder of class folders, divided by `split`.

    Raises `DataError` or `ImageError` where it cannot be used.
    """
    if (path / store.MANIFEST).is_file():
        return _open_store(path, split)
    layout = Layout.of(path)
    chunks = {name: list(layout.chunks(name, on_progress)) for name in layout.files}
    train, test = _part(chunks[TRAIN]), _part(chunks.get(TEST, []))
    return _divided(path.resolve().name, layout.classes, train, test, _content_hash(chunks), None, split)


def _open_store(path: Path, split: SplitConfig) -> Dataset:
    manifest = store.read_manifest(path)
    train, test = (_part(store.read_split(path, manifest, name)) for name in (TRAIN, TEST))
    name, survey = manifest.origin.source, manifest.origin.survey
    return _divided(name, manifest.classes, train, test, sha256(path / store.MANIFEST), survey, split)


def _part(chunks: Sequence[Chunk]) -> Part:
    """One part of all these chunks."""
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


def _divided(
    name: str,
    classes: tuple[str, ...],
    train: Part,
    test: Part,
    digest: str,
    survey: Survey | None,
    config: SplitConfig,
) -> Dataset:
    if len(train) == 0:
        raise DataError(f"{name}: holds no training images. Add some, or name another data set.")
    if len(test) == 0:
        train, test = split(train, config.test, config.seed, "test")
    train, selection = split(train, config.selection, config.seed, "selection")
    for part, what in ((train, "training"), (selection, "selection"), (test, "test")):
        absent = [label for number, label in enumerate(classes) if number not in part.labels]
        if absent:
            raise DataError(
                f"{name}: the {what} part ({len(part)} images) holds no image of class {', '.join(absent)}; "
                "every part needs every class. Add images, or raise split.selection or split.test."
            )
    return Dataset(name, classes, train, selection, test, digest, survey, config)


def split(part: Part, share: float, seed: int, purpose: str) -> tuple[Part, Part]:
    """The images that stay, and those set aside: about `share` of them.

    Whether an image is set aside depends on its id, the seed and the purpose alone, so that
    adding, removing or reordering others does not move it.
    """
    aside = np.array([_uniform(f"{purpose}:{seed}:{name}") < share for name in part.ids], dtype=bool)
    return part.take(np.flatnonzero(~aside)), part.take(np.flatnonzero(aside))


def _uniform(key: str) -> float:
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


@dataclass(frozen=True)
class Layout:
    """A folder of class folders, as it stands: the files of each split, not yet read."""

    root: Path
    classes: tuple[str, ...]
    files: dict[str, list[tuple[Path, int]]]
    """By split: image path and label, in a fixed order."""

    @classmethod
    def of(cls, root: Path) -> Self:
        """Look at `root`: either train/ (and test/ or val/) with a folder a class, or just those.

        Where there is a test/, a val/ beside it is left alone.
        """
        if not root.is_dir():
            raise DataError(f"{root}: no such folder. Name a store, or a folder with one folder of images a class.")
        tops = {TRAIN: root / "train"} if (root / "train").is_dir() else {TRAIN: root}
        if tops[TRAIN] != root:
            held_out = [root / name for name in (TEST, "val") if (root / name).is_dir()]
            tops |= {TEST: held_out[0]} if held_out else {}
        classes = tuple(folder.name for folder in _folders(tops[TRAIN]))
        if len(classes) < 2:
            raise DataError(
                f"{tops[TRAIN]}: has {len(classes)} class folders{': ' + classes[0] if classes else ''}; "
                "needs at least two. Put the images of each class into a folder of its own."
            )
        files = {name: _labelled(top, classes) for name, top in tops.items()}
        return cls(root, classes, files)

    @property
    def n_images(self) -> int:
        """Number of images in all splits."""
        return sum(map(len, self.files.values()))

    def chunks(self, name: str, on_progress: Progress, n_done: int = 0, mapper: Mapper = HERE) -> Iterator[Chunk]:
        """Read one split, `FOLDER_CHUNK` images at a time. All images must have one size.

        n_done: chunks to leave out at the start. mapper: where they are read.
        """
        listed, first = self.files[name], self.files[TRAIN][0][0]
        starts = range(n_done * FOLDER_CHUNK, len(listed), FOLDER_CHUNK)
        lots = (listed[start : start + FOLDER_CHUNK] for start in starts)
        read = mapper(_read, (_Lot(first, tuple(path for path, _ in some)) for some in lots))
        for start, counts in zip(starts, read, strict=True):
            some = listed[start : start + FOLDER_CHUNK]
            ids = np.array([path.relative_to(self.root).as_posix() for path, _ in some])
            yield Chunk(counts, np.array([label for _, label in some]), ids)
            on_progress(len(some))


class _Lot(NamedTuple):
    """Images that are read together."""

    first: Path
    """One that they must be as large as."""
    paths: tuple[Path, ...]


def _read(lot: _Lot) -> NDArray[np.uint16]:
    """Their counts above the minimum, [n, h, w]."""
    first = _read_counts(lot.first)
    counts = np.empty((len(lot.paths), *first.shape), np.uint16)
    with ThreadPoolExecutor(FETCHES if isinstance(lot.first, Remote) else 1) as pool:
        for number, (path, one) in enumerate(zip(lot.paths, pool.map(_read_counts, lot.paths), strict=True)):
            if one.shape != first.shape:
                raise ImageError(
                    f"{path}: is {one.shape[0]} x {one.shape[1]} pixels but {lot.first} is "
                    f"{first.shape[0]} x {first.shape[1]}; a data set needs one size. Crop or "
                    "resample the images first."
                )
            counts[number] = one
    return counts


def _read_counts(path: Path) -> NDArray[np.uint16]:
    with object_store.copied(path) as copy:
        try:
            return formats.read_counts(copy)
        except ImageError as err:
            raise ImageError(str(err).replace(str(copy), str(path))) from err


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def _labelled(top: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    unknown = [folder.name for folder in _folders(top) if folder.name not in classes]
    if unknown:
        raise DataError(
            f"{top}: has class folders that the training part lacks: {', '.join(unknown)}. The classes must agree."
        )
    listed = []
    for label, name in enumerate(classes):
        folder = top / name
        found = sorted(path for path in folder.iterdir() if formats.is_image(path)) if folder.is_dir() else []
        if not found:
            raise DataError(
                f"{top / name}: holds no {', '.join(formats.READERS)} images. Add some, or remove the folder."
            )
        listed += [(path, label) for path in found]
    return listed


def _content_hash(chunks: dict[str, list[Chunk]]) -> str:
    digest = hashlib.sha256()
    for chunk in (chunk for name in sorted(chunks) for chunk in chunks[name]):
        digest.update("\n".join(chunk.ids).encode())
        digest.update(np.ascontiguousarray(chunk.counts).tobytes())
    return digest.hexdigest()


def write_folder(
    out: Path, classes: tuple[str, ...], origin: Origin, splits: Mapping[str, Source], *, force: bool
) -> None:
    """Write the ML4SCI layout: SPLIT/CLASS/NUMBER.npy, float64 (1, h, w), min-max scaled.

    simulation.json beside the splits says where they come from.
    """
    with whole_folder(out, force=force) as folder:
        origin.write_beside(folder)
        for name, source in splits.items():
            written = [0] * len(classes)
            for label in classes:
                (folder / name / label).mkdir(parents=True)
            for chunk in source(0):
                for counts, label in zip(chunk.counts, chunk.labels, strict=True):
                    written[label] += 1
                    np.save(folder / name / classes[label] / f"{written[label]}.npy", counts[None] / counts.max())
