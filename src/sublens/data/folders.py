"""Folders with a folder of images a class, as ML4SCI DeepLense has them: read and written."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sublens.data.store import Chunk, Origin, Source
from sublens.errors import DataError, ImageError
from sublens.images import formats
from sublens.parallel.mapper import HERE, Mapper
from sublens.storage import object_store
from sublens.storage.files import whole_folder
from sublens.storage.object_store import FETCHES, Remote

TRAIN, TEST = "train", "test"
FOLDER_CHUNK = 500
Progress = Callable[[int], object]
"""Called with the number of images just done."""


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
        files = {name: _labelled_files(top, classes) for name, top in tops.items()}
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
        read = mapper(_read_task, (Task(first, tuple(path for path, _ in some)) for some in lots))
        for start, counts in zip(starts, read, strict=True):
            some = listed[start : start + FOLDER_CHUNK]
            ids = np.array([path.relative_to(self.root).as_posix() for path, _ in some])
            yield Chunk(counts, np.array([label for _, label in some]), ids)
            on_progress(len(some))


class Task(NamedTuple):
    """Images that are read together."""

    first: Path
    """One that they must be as large as."""
    paths: tuple[Path, ...]


def _read_task(lot: Task) -> NDArray[np.uint16]:
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


def _labelled_files(top: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
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
