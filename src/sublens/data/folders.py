"""Folders of class folders, as ML4SCI DeepLense has them: read and written."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sublens.data import store
from sublens.data.store import Chunk, Origin, Source
from sublens.errors import DataError, ImageError
from sublens.images import formats
from sublens.parallel.mapper import HERE, Mapper
from sublens.storage import object_store
from sublens.storage.files import whole_folder
from sublens.storage.object_store import FETCHES, Remote

TRAIN, TEST = "train", "test"
FOLDER_CHUNK = 500
"""Images that are read together."""
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
        for part, counts in zip(parts, read, strict=True):
            ids = np.array([_image_id(path.relative_to(self.root)) for path, _ in part])
            yield Chunk(counts, np.array([label for _, label in part]), ids)
            on_progress(len(part))


def _image_id(path: Path) -> str:
    """The path as text that is valid UTF-8; other bytes of a file name become escapes such as \\udcff."""
    return path.as_posix().encode(errors="backslashreplace").decode()


class Task(NamedTuple):
    """Image files of one size, read together."""

    first: Path
    """An image file of that size."""
    paths: tuple[Path, ...]


def _read_task(task: Task) -> NDArray[np.uint16]:
    """Counts above the minimum of the images, [n, h, w]."""
    height, width = _read_counts(task.first).shape
    counts = np.empty((len(task.paths), height, width), np.uint16)
    with ThreadPoolExecutor(FETCHES if isinstance(task.first, Remote) else 1) as pool:
        for number, (path, image) in enumerate(zip(task.paths, pool.map(_read_counts, task.paths), strict=True)):
            if image.shape != (height, width):
                raise ImageError(
                    f"is {image.shape[0]} x {image.shape[1]} pixels but {task.first} is {height} x {width}",
                    need="one size throughout a data set",
                    next="Crop or resample the images first.",
                    path=path,
                )
            counts[number] = image
    return counts


def _read_counts(path: Path) -> NDArray[np.uint16]:
    with object_store.copied(path) as copy:
        try:
            return formats.read_counts(copy)
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
