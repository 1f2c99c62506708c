"""Folders of class folders, as ML4SCI DeepLense has them: read and written."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sublens.data import store
from sublens.data.store import Chunk, Origin, Source
from sublens.errors import DataError, ImageError
from sublens.images import formats
from sublens.images.pixels import Image
from sublens.parallel.mapper import HERE, Mapper
from sublens.storage import object_store
from sublens.storage.files import whole_folder
from sublens.storage.object_store import FETCHES, Remote

TRAIN, TEST = "train", "test"
FOLDER_CHUNK = 500
"""Images that are read together."""
MAX_NAMES = 10
"""Most images that a warning names."""
Progress = Callable[[int], object]
"""Callback with the number of images just read."""


@dataclass(frozen=True)
class Layout:
    """The image files of a folder of class folders, not yet read."""

    root: Path
    classes: tuple[str, ...]
    files: dict[str, list[tuple[Path, int]]]
    """Image path and label, in a fixed order, for each split."""

    @classmethod
    def of(cls, root: Path) -> Self:
        """The layout of `root`: class folders in train/ (and test/ or val/), or class folders alone.

        Where there is a test/, a val/ beside it is ignored. Raises `DataError` where it is no such folder, or
        the name of a class fits no table; see `store.check_class_names`.
        """
        if not root.is_dir():
            raise DataError(
                "no such folder",
                need="a store, or a folder with one folder of images a class",
                next="Correct the path.",
                path=root,
            )
        tops = {TRAIN: root / "train"} if (root / "train").is_dir() else {TRAIN: root}
        if tops[TRAIN] != root:
            held_out = [root / name for name in (TEST, "val") if (root / name).is_dir()]
            tops |= {TEST: held_out[0]} if held_out else {}
        classes = tuple(folder.name for folder in _folders(tops[TRAIN]))
        store.check_class_names(classes, tops[TRAIN])
        if len(classes) < 2:
            raise DataError(
                f"has {len(classes)} class folders{': ' + classes[0] if classes else ''}",
                need="at least two",
                next="Put the images of each class into a folder of its own.",
                path=tops[TRAIN],
            )
        files = {name: _labelled_files(top, classes) for name, top in tops.items()}
        return cls(root, classes, files)

    @property
    def n_images(self) -> int:
        """Number of images in all splits."""
        return sum(map(len, self.files.values()))

    def chunks(self, name: str, on_progress: Progress, n_done: int = 0, mapper: Mapper = HERE) -> Iterator[Chunk]:
        """The images of one split, `FOLDER_CHUNK` at a time; all must have one size.

        n_done: chunks to leave out at the start. mapper: processes that read them.
        """
        listed, first = self.files[name], self.files[TRAIN][0][0]
        starts = range(n_done * FOLDER_CHUNK, len(listed), FOLDER_CHUNK)
        parts = [listed[start : start + FOLDER_CHUNK] for start in starts]
        read = mapper(_read_task, (Task(first, tuple(path for path, _ in part)) for part in parts))
        missing = Missing()
        for part, result in zip(parts, read, strict=True):
            ids = np.array([_image_id(path.relative_to(self.root)) for path, _ in part])
            yield Chunk(result.counts, np.array([label for _, label in part]), ids)
            missing.add(ids, result)
            on_progress(len(part))
        missing.warn(self.root / name if TEST in self.files else self.root)


def _image_id(path: Path) -> str:
    """The path as text that is valid UTF-8; other bytes of a file name become escapes such as \\udcff."""
    return path.as_posix().encode(errors="backslashreplace").decode()


class Task(NamedTuple):
    """Image files of one size, read together."""

    first: Path
    """An image file of that size."""
    paths: tuple[Path, ...]


class TaskResult(NamedTuple):
    """Images of one size."""

    counts: NDArray[np.uint16]
    """Counts above the minimum [n, h, w]."""
    n_missing: NDArray[np.int64]
    """Missing pixels of each image, [n]."""
    has_hole: NDArray[np.bool_]
    """Images with missing pixels that their neighbours cannot fill, [n]."""


@dataclass
class Missing:
    """The missing pixels of a part of a data set."""

    n_images: int = 0
    """Images with missing pixels."""
    n_pixels: int = 0
    holes: list[str] = field(default_factory=list)
    """Ids of images with missing pixels that their neighbours cannot fill."""

    def add(self, ids: NDArray[np.str_], result: TaskResult) -> None:
        """Count the missing pixels of images with these ids [n]."""
        self.n_images += int((result.n_missing > 0).sum())
        self.n_pixels += int(result.n_missing.sum())
        self.holes += ids[result.has_hole].tolist()

    def warn(self, folder: Path) -> None:
        """Warn of missing pixels, if there are any."""
        if self.n_images:
            are_filled = f"{self.n_pixels:,} pixels of {self.n_images:,} images are missing and filled from neighbours"
            names = ", ".join(self.holes[:MAX_NAMES]) + (" ..." if len(self.holes) > MAX_NAMES else "")
            holes = f"{len(self.holes):,} have holes too large to fill well; leave these out: {names}"
            warnings.warn(f"{folder}: {are_filled}{f'; {holes}' if self.holes else ''}.", stacklevel=3)


def _read_task(task: Task) -> TaskResult:
    height, width = _read_image(task.first).pixels.shape
    counts = np.empty((len(task.paths), height, width), np.uint16)
    n_missing, has_hole = np.zeros(len(counts), np.int64), np.zeros(len(counts), bool)
    with ThreadPoolExecutor(FETCHES if isinstance(task.first, Remote) else 1) as pool:
        for number, (path, image) in enumerate(zip(task.paths, pool.map(_read_image, task.paths), strict=True)):
            if image.pixels.shape != (height, width):
                have, need = (f"{h} x {w}" for h, w in (image.pixels.shape, (height, width)))
                raise ImageError(
                    f"is {have} pixels but {task.first} is {need}",
                    need="one size throughout a data set",
                    next="Crop or resample the images first.",
                    path=path,
                )
            counts[number], has_hole[number] = image.counts(), image.has_hole
            n_missing[number] = 0 if image.mask is None else image.mask.sum()
    return TaskResult(counts, n_missing, has_hole)


def _read_image(path: Path) -> Image:
    with object_store.copied(path) as copy:
        try:
            return formats.read_filled(copy)
        except ImageError as err:
            raise err.about(path) from err


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def _labelled_files(top: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    unknown = [folder.name for folder in _folders(top) if folder.name not in classes]
    if unknown:
        raise DataError(
            f"has class folders that the training part lacks: {', '.join(unknown)}",
            need="the same classes in all parts",
            next="Remove or rename them, or add them to the training part.",
            path=top,
        )
    listed = []
    for label, name in enumerate(classes):
        folder = top / name
        paths = sorted(path for path in folder.iterdir() if formats.is_image(path)) if folder.is_dir() else []
        if not paths:
            raise DataError(
                "holds no images",
                need=f"files that end in {', '.join(formats.READERS)}",
                next="Add some, or remove the class from all parts.",
                path=folder,
            )
        listed += [(path, label) for path in paths]
    return listed


def write_folder(
    out: Path, classes: tuple[str, ...], origin: Origin, splits: Mapping[str, Source], *, force: bool
) -> None:
    """Write the ML4SCI layout: SPLIT/CLASS/NUMBER.npy, float64 (1, h, w), min-max scaled.

    The simulation's settings go into simulation.json beside the splits.
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
