"""Data sets: opened from stores and folders, split into parts, packed."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from sublens.config import Pixels, SplitConfig
from sublens.data import store, survey_stream
from sublens.data.folders import FolderReader, listed
from sublens.data.layout import PART_NAMES, TEST, TRAIN, Layout
from sublens.data.repeats import Labelled, warn_of_repeats
from sublens.data.store import Chunk, Origin
from sublens.errors import DataError
from sublens.models.bundle import Card
from sublens.models.macro import CONTAMINANT
from sublens.parallel.dask import open_cluster
from sublens.parallel.mapper import HERE
from sublens.progress import Bar, Count, silent
from sublens.sim.population import CLASSES
from sublens.storage import files, object_store
from sublens.storage.files import sha256
from sublens.surveys.survey import Survey
from sublens.surveys.truth import Truth, joined


def _unchecked(number: int) -> None:
    """No check: for images that are in memory."""


@dataclass(frozen=True)
class Part:
    """Images of a data set with their labels, ids and, if simulated, truth."""

    shards: tuple[NDArray[np.uint16], ...]
    """Images [n, h, w] for each shard; all but the last have the same length."""
    rows: NDArray[np.int64]
    """Positions [n] of this part's images in the concatenated shards."""
    labels: NDArray[np.int64]
    """Positions [n] in the data set's classes; `macro.CONTAMINANT` for images that are no lens."""
    ids: NDArray[np.str_]
    """Names [n], unique in the data set."""
    truth: Truth | None
    check: Callable[[int], object] = _unchecked
    """Check of a shard by its number, before it is read; raises `DataError` for a damaged one."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the images, pixels."""
        return self.shards[0].shape[1:] if self.shards else (0, 0)

    def counts(self, positions: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Counts above the minimum of the images at these positions, [b, h, w]; `DataError` from a damaged shard."""
        numbers, rows = np.divmod(self.rows[positions], len(self.shards[0]))
        for number in set(numbers.tolist()):
            self.check(number)
        return np.stack([self.shards[number][row] for number, row in zip(numbers, rows, strict=True)])

    @property
    def has_contaminants(self) -> bool:
        """Whether some of the images are no lens."""
        return bool((self.labels == CONTAMINANT).any())

    def of_lenses(self) -> Self:
        """The part without the images that are no lens."""
        return self.take(np.flatnonzero(self.labels != CONTAMINANT)) if self.has_contaminants else self

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
    notes: tuple[str, ...] = ()
    """Where the test part comes from and what was left out, in words."""
    is_endless: bool = False
    """Whether a network trains on fresh images of the survey; `train` then holds a few fixed ones."""

    @property
    def pixels(self) -> Pixels:
        """Pixels of the images: counts where they were not simulated."""
        return self.survey.camera.pixels if self.survey else "counts"

    @property
    def has_contaminants(self) -> bool:
        """Whether some of the images that a network trains on are no lens."""
        is_added = self.is_endless and self.survey is not None and self.survey.contaminants is not None
        return is_added or self.train.has_contaminants

    @property
    def imbalance(self) -> float:
        """Training images of the largest class over those of the smallest."""
        numbers = np.bincount(self.train.of_lenses().labels)
        return float(numbers.max() / numbers.min())


@dataclass(frozen=True)
class _Images:
    """All images of a store or folder, before they are divided."""

    name: str
    classes: tuple[str, ...]
    train: Part
    test: Part
    hash: str
    survey: Survey | None = None
    has_parts: bool = True
    """Whether the folders name parts, or the store holds a test part."""
    notes: tuple[str, ...] = ()
    digests: Labelled = field(default_factory=dict)
    """Digests of the images of a folder; empty for a store."""


def open_dataset(path: Path, split: SplitConfig, bar: Bar = silent, *, skip_bad: bool = False) -> Dataset:
    """The data set at `path`: a store or a folder of class folders, divided by `split`, or a survey's fresh images.

    path: for a survey, its TOML file or its name; see `survey_stream.survey_at`. A folder is read with a progress
    bar; files on an object store are fetched first. skip_bad: leave out the images of a folder that cannot be used.
    Raises `DataError` where the data set, or without skip_bad an image of it, cannot be used. Warns of images that
    stand in it twice; see `repeats.warn_of_repeats`.
    """
    if survey := survey_stream.survey_at(path):
        return _endless(survey, split, bar)
    return _divide(_read(path, bar, skip_bad), split)


def _endless(survey: Survey, split: SplitConfig, bar: Bar) -> Dataset:
    """Fresh images of a survey to train on, with fixed ones for all else but the test part, which is empty."""
    n_selection, n_images = survey_stream.SELECTION, survey_stream.SELECTION + survey_stream.REFERENCE
    fixed = _part(list(survey_stream.fixed_chunks(survey, "train", n_images, bar)))
    selection, reference = (fixed.take(np.arange(*ends)) for ends in ((0, n_selection), (n_selection, n_images)))
    notes = ("every training image is new: rendered as the training goes",)
    return _of_survey(survey, (reference, selection, fixed.take(np.arange(0))), split, notes)


def _of_survey(
    survey: Survey, parts: tuple[Part, Part, Part], split: SplitConfig, notes: tuple[str, ...] = ()
) -> Dataset:
    digest = hashlib.sha256(f"{survey_stream.FIXED_SEEDS} {survey.model_dump_json()}".encode()).hexdigest()
    return Dataset(survey.name, CLASSES, *parts, digest, survey, split, notes, is_endless=True)


def open_test_part(path: Path, card: Card, bar: Bar = silent, *, skip_bad: bool = False) -> Dataset:
    """The data set at `path` for measuring the network of that card, as `open_dataset` opens it.

    The test part of a survey is rendered: images of its own, which no training draws.
    All images are the test part where the folder or store names no parts and is not the one that the network was
    trained on, by its name or content. Such a folder may lack some of the network's classes. Raises `DataError` for
    the train/ of the data that the network was trained on.
    """
    if survey := survey_stream.survey_at(path):
        test = _part(list(survey_stream.fixed_chunks(survey, "test", survey_stream.TEST, bar)))
        none = test.take(np.arange(0))
        return _of_survey(survey, (none, none, test), card.settings.split)
    images = _read(path, bar, skip_bad, card.classes)
    if images.has_parts or card.data.hash == images.hash:
        return _divide(images, card.settings.split)
    if path.name.lower() in PART_NAMES[TRAIN] and path.resolve().parent.name == card.data.name:
        what, need = f"is the training part of {card.data.name}", "images that the network was not trained on"
        raise DataError(what, need=need, next=f"Name {path.resolve().parent}, whose test part is measured.", path=path)
    if card.data.name == images.name:
        divided = _divide(images, card.settings.split)
        what = f"is called {card.data.name}, as the training data: its test part alone is measured; rename it for all"
        return replace(divided, notes=(*divided.notes, what))
    absent = [name for label, name in enumerate(images.classes) if label not in images.train.labels]
    notes = (
        *images.notes,
        "no parts are named, and neither name nor content is that of the training data, so all are the test part",
    )
    notes += (f"there are no images of {', '.join(absent)}",) if absent else ()
    warn_of_repeats(images.digests, [], images.train.ids)
    none = images.train.take(np.zeros(0, np.int64))
    return Dataset(
        images.name, images.classes, none, none, images.train, images.hash, images.survey, card.settings.split, notes
    )


def _read(path: Path, bar: Bar, skip_bad: bool, known: tuple[str, ...] = ()) -> _Images:
    """All images of a data set; known: see `Layout.of`."""
    path = object_store.local(path, bar)
    if (path / store.MANIFEST).is_file():
        return _read_store(path)
    layout = Layout.of(path, known)
    with bar(f"reading {path}", layout.n_images) as advance:
        reader = FolderReader(layout, skip_bad, Count(advance).add)
        chunks = {name: list(reader.chunks(name)) for name in layout.files}
    train, test = _part(chunks[TRAIN]), _part(chunks.get(TEST, []))
    notes = (*layout.notes, *_left_out(reader.faults))
    name, digest = path.resolve().name, _content_hash(chunks)
    return _Images(name, layout.classes, train, test, digest, None, layout.has_parts, notes, reader.images)


def _read_store(path: Path) -> _Images:
    manifest = store.read_manifest(path)
    train, test = (
        replace(_part(store.read_split(path, manifest, name)), check=store.shard_check(path, manifest, name))
        for name in (TRAIN, TEST)
    )
    origin, digest = manifest.origin, sha256(path / store.MANIFEST)
    notes = tuple(_left_out(manifest.left_out))
    return _Images(origin.source, manifest.classes, train, test, digest, origin.survey, len(test) > 0, notes)


def _part(chunks: Sequence[Chunk]) -> Part:
    """The part that all these chunks make up."""
    return Part(
        shards=tuple(chunk.counts for chunk in chunks),
        rows=np.arange(sum(len(chunk.labels) for chunk in chunks)),
        labels=np.concatenate([np.zeros(0, np.int64), *(chunk.labels for chunk in chunks)]),
        ids=np.concatenate([np.zeros(0, "<U1"), *(chunk.ids for chunk in chunks)]),
        truth=joined([chunk.truth for chunk in chunks if chunk.truth]),
    )


def _divide(images: _Images, config: SplitConfig) -> Dataset:
    train, test, notes = images.train, images.test, images.notes
    if len(train) == 0:
        raise DataError(
            "holds no training images",
            need="some of every class",
            next="Add some, or name another data set.",
            path=images.name,
        )
    if len(test) == 0:
        train, test = split(train, config.test, config.seed, "test")
        notes = (*notes, f"there is no test part, so {config.test:.0%} of the training images are set aside for it")
    train, selection = split(train, config.selection, config.seed, "selection")
    for part, kind in ((train, "training"), (selection, "selection"), (test, "test")):
        absent = [label for number, label in enumerate(images.classes) if number not in part.labels]
        if absent:
            raise DataError(
                f"the {kind} part ({len(part)} images) holds no image of class {', '.join(absent)}",
                need="every class in every part",
                next="Add images, or raise split.selection or split.test.",
                path=images.name,
            )
    warn_of_repeats(images.digests, [*train.ids, *selection.ids], test.ids)
    return Dataset(images.name, images.classes, train, selection, test, images.hash, images.survey, config, notes)


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


def pack(
    folder: Path,
    out: Path,
    *,
    cluster: str | None = None,
    skip_bad: bool = False,
    force: bool = False,
    bar: Bar = silent,
) -> tuple[str, ...]:
    """Convert a folder of class folders into a store; returns notes as those of a `Dataset`.

    cluster: see `sublens.parallel.dask.open_cluster`. skip_bad: leave out images that cannot be used, which the
    manifest lists; else raises `DataError`. Warns as `open_dataset` does.
    """
    files.refuse_overlap(out, folder)
    files.refuse_existing(out, kind=files.Kind.DATASET, force=force)
    object_store.refuse_unfinished(folder)
    layout = Layout.of(folder)
    computed = open_cluster(cluster) if cluster else nullcontext(HERE)
    with computed as mapper, bar(f"packing {folder}", layout.n_images) as advance:
        reader = FolderReader(layout, skip_bad, Count(advance, mapper.status).add, mapper)
        splits = {name: partial(reader.chunks, name) for name in layout.files}
        origin = Origin(source=folder.resolve().name)
        store.write(out, layout.classes, origin, splits, left_out=reader.faults, force=force)
    warn_of_repeats(reader.images, *(reader.ids(name) for name in (TRAIN, TEST)))
    return (*layout.notes, *_left_out(reader.faults))


def _left_out(faults: Mapping[str, str]) -> list[str]:
    """A note on images that were left out; faults by id."""
    return [f"images that cannot be used were left out, {len(faults):,} in all:{listed(faults)}"] if faults else []
