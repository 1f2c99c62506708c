"""Folders of class folders, as ML4SCI DeepLense has them: read and written."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sublens.data.layout import Layout
from sublens.data.repeats import digest
from sublens.data.store import Chunk, Origin, Source
from sublens.errors import DataError, ImageError
from sublens.images import formats
from sublens.parallel.mapper import HERE, Mapper
from sublens.storage import object_store
from sublens.storage.files import Kind, whole_folder
from sublens.storage.object_store import FETCHES, Remote

FOLDER_CHUNK = 500
"""Images that are read together."""
SAMPLE = 9
"""Training images of which most decide the size of all."""
MAX_FAULTS = 100
"""Most unusable images that are listed."""
SKIP_BAD = "--skip-bad"
"""Option that leaves out what cannot be used."""
MAX_NAMES = 10
"""Most images that a warning names."""
Progress = Callable[[int], object]
"""Callback with the number of images just read."""


class ReadCounts(NamedTuple):
    """The counts of one image, and what was missing."""

    counts: NDArray[np.uint16]
    """Counts above the minimum, [h, w]."""
    n_missing: int
    """Missing pixels."""
    has_hole: bool
    """Whether some of these cannot be filled from their neighbours."""


@dataclass
class Missing:
    """The missing pixels of a part of a data set."""

    n_images: int = 0
    """Images with missing pixels."""
    n_pixels: int = 0
    holes: list[str] = field(default_factory=list)
    """Ids of images with missing pixels that their neighbours cannot fill."""

    def add(self, name: str, image: ReadCounts) -> None:
        """Count the missing pixels of the image with this id."""
        self.n_images += image.n_missing > 0
        self.n_pixels += image.n_missing
        self.holes += [name] if image.has_hole else []

    def warn(self, folder: Path) -> None:
        """Warn of missing pixels, if there are any."""
        if self.n_images:
            are_filled = f"{self.n_pixels:,} pixels of {self.n_images:,} images are missing and filled from neighbours"
            names = ", ".join(self.holes[:MAX_NAMES]) + (" ..." if len(self.holes) > MAX_NAMES else "")
            holes = f"{len(self.holes):,} have holes too large to fill well; leave these out: {names}"
            warnings.warn(f"{folder}: {are_filled}{f'; {holes}' if self.holes else ''}.", stacklevel=3)


@dataclass(frozen=True)
class FolderReader:
    """Reads the images of a folder of class folders, and notes those that cannot be used."""

    layout: Layout
    skip_bad: bool = False
    """Whether unusable images are left out; if not, they are refused, all at once, after the last part."""
    on_progress: Progress = lambda n: None
    mapper: Mapper = HERE
    """Processes that read."""
    faults: dict[str, str] = field(default_factory=dict)
    """Faults of the images that cannot be used, by id; complete once all parts are read."""
    images: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    """Label and digest of the others, by id; complete then too."""

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Height and width of most of a few images, which all must have; `DataError` where none of them can be read."""
        paths = [path for path, _ in next(iter(self.layout.files.values()))]
        chosen = [paths[row] for row in np.unique(np.linspace(0, len(paths) - 1, SAMPLE).round().astype(int))]
        images = dict(zip(map(self._id, chosen), _read_task(tuple(chosen)), strict=True))
        faults = {name: str(err.about("")) for name, err in images.items() if isinstance(err, ImageError)}
        if len(faults) == len(images):
            raise self._unusable(faults, len(images))
        shapes = Counter(image.counts.shape for image in images.values() if not isinstance(image, ImageError))
        return shapes.most_common(1)[0][0]

    def chunks(self, part: str, n_done: int = 0) -> Iterator[Chunk]:
        """The usable images of one part, `FOLDER_CHUNK` at a time.

        n_done: chunks to leave out at the start. Raises `DataError` at the end of the last part where some image
        of any part cannot be used and none may be left out.
        """
        missing = Missing()
        usable = islice(self._usable(part, missing), n_done * FOLDER_CHUNK, None)
        while rows := list(islice(usable, FOLDER_CHUNK)):
            ids, labels, images = zip(*rows, strict=True)
            yield Chunk(np.stack(images), np.array(labels), np.array(ids))
        missing.warn(self.layout.root / part if len(self.layout.files) > 1 else self.layout.root)
        if self.faults and not self.skip_bad and part == list(self.layout.files)[-1]:
            raise self._unusable(self.faults, self.layout.n_images)

    def _usable(self, part: str, missing: Missing) -> Iterator[tuple[str, int, NDArray[np.uint16]]]:
        """Id, label and counts of each usable image of a part."""
        files = self.layout.files[part]
        slices = [files[start : start + FOLDER_CHUNK] for start in range(0, len(files), FOLDER_CHUNK)]
        read = self.mapper(_read_task, (tuple(path for path, _ in rows) for rows in slices))
        for rows, images in zip(slices, read, strict=True):
            for (path, label), image in zip(rows, images, strict=True):
                name, checked = self._id(path), self._of_one_size(image)
                if isinstance(checked, ImageError):
                    self.faults[name] = str(checked.about(""))
                else:
                    missing.add(name, checked)
                    self.images[name] = label, digest(checked.counts)
                    yield name, label, checked.counts
            self.on_progress(len(rows))

    def _of_one_size(self, image: ReadCounts | ImageError) -> ReadCounts | ImageError:
        if isinstance(image, ImageError) or image.counts.shape == self.shape:
            return image
        size, most = (" x ".join(map(str, shape)) for shape in (image.counts.shape, self.shape))
        return ImageError(
            f"is {size} pixels but most images are {most}",
            need="one size throughout a data set",
            next="Crop or resample the images first.",
        )

    def ids(self, part: str) -> list[str]:
        """Ids of all images of a part, usable or not."""
        return [self._id(path) for path, _ in self.layout.files.get(part, [])]

    def _id(self, path: Path) -> str:
        """The path in the folder as text that is valid UTF-8; other bytes of a name become escapes such as \\udcff."""
        return path.relative_to(self.layout.root).as_posix().encode(errors="backslashreplace").decode()

    def _unusable(self, faults: Mapping[str, str], n: int) -> DataError:
        option = f", or leave them out with {SKIP_BAD}" if len(faults) < n else ""
        return DataError(
            f"{len(faults):,} of {n:,} images cannot be used",
            need="images that can be read, all of one size",
            next=f"Mend or remove them{option}:{listed(faults)}",
            path=self.layout.root,
        )


def listed(faults: Mapping[str, str]) -> str:
    """Indented lines of the ids, the first of many, with each fault."""
    by_fault: dict[str, list[str]] = {}
    for name, fault in islice(faults.items(), MAX_FAULTS):
        by_fault.setdefault(fault, []).append(name)
    lines = [f"{', '.join(names)}: {fault}" for fault, names in by_fault.items()]
    lines += [f"and {len(faults) - MAX_FAULTS:,} more"] if len(faults) > MAX_FAULTS else []
    return "".join(f"\n  {line}" for line in lines)


def _read_task(paths: tuple[Path, ...]) -> list[ReadCounts | ImageError]:
    """The counts of each image, or the error in their place."""
    with ThreadPoolExecutor(FETCHES if isinstance(paths[0], Remote) else 1) as pool:
        return list(pool.map(_read_image, paths))


def _read_image(path: Path) -> ReadCounts | ImageError:
    with object_store.copied(path) as copy:
        try:
            image = formats.read_filled(copy)
            n_missing = 0 if image.mask is None else int(image.mask.sum())
            return ReadCounts(image.counts(), n_missing, bool(image.has_hole))
        except ImageError as err:
            return err


def write_folder(
    out: Path, classes: tuple[str, ...], origin: Origin, splits: Mapping[str, Source], *, force: bool
) -> None:
    """Write the ML4SCI layout: SPLIT/CLASS/NUMBER.npy, float64 (1, h, w), min-max scaled.

    The simulation's settings go into simulation.json beside the splits.
    """
    with whole_folder(out, kind=Kind.DATASET, force=force) as folder:
        origin.write_beside(folder)
        for name, source in splits.items():
            written = [0] * len(classes)
            for label in classes:
                (folder / name / label).mkdir(parents=True)
            for chunk in source(0):
                for counts, label in zip(chunk.counts, chunk.labels, strict=True):
                    written[label] += 1
                    np.save(folder / name / classes[label] / f"{written[label]}.npy", counts[None] / counts.max())
