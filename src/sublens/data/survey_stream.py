"""A survey as data: fixed images to select and measure on, and fresh ones rendered while a network trains.

The fixed images are those that `sublens simulate` makes of the seeds `FIXED_SEEDS`: SELECTION and REFERENCE images
of the split train, TEST images of the split test. The fresh ones are images of the split train after these, of the
training's own seed; where the survey has contaminants, these take the place of a share of them. On a processor they
enter a pool, from which batches are drawn at random; on a GPU every batch is new. Either way a batch depends on the
survey, the seed, the step and the number of images in a batch alone.
"""

import itertools
import os
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sublens.data.store import Chunk
from sublens.errors import ConfigError
from sublens.models import macro
from sublens.observation.defects import Marks, marks
from sublens.observation.exposure import observe_together
from sublens.parallel import machine
from sublens.parallel.mapper import open_processes
from sublens.progress import Bar, Count, silent
from sublens.sim.mass_map import mass_map
from sublens.sim.population import CLASSES, Split, draw
from sublens.sim.render import render
from sublens.sim.slices import Task, simulated, slice_length, slices
from sublens.surveys import presets
from sublens.surveys.priors import Floats
from sublens.surveys.survey import Survey
from sublens.surveys.truth import Truth

FIXED_SEEDS: dict[Split, int] = {"train": 27_112_026, "test": 1}
"""Seeds of the fixed images: the test part of common-test-1 is the benchmark's, and the others are in no other set."""
SELECTION, REFERENCE, TEST = 3_000, 4_000, 7_500
"""Fixed images: the selection part, training images that the OOD score is fitted to, the test part."""
EPOCH = 30_000
"""Images an epoch, where train.epoch_images is unset."""
POOL, LEAST_POOL = 10_000, 2_000
"""Images in the pool at most, unless train.cache says otherwise, and at the first step."""
BATCHES_AT_ONCE = 2048
"""Images that are rendered together on a GPU, in whole batches."""
DRAWING, MOST_WORKERS = 4, 16
"""Processes that draw scenes for a GPU, 60,000 a second each, and that render on a processor at most."""
FEWER_THREADS = "If memory is short, set OMP_NUM_THREADS lower, for fewer processes; then run the command again."
MORE_MEMORY = "If memory is short, free some or ask for more; then train again with --resume."
"""Remedies where one of these processes was ended from outside."""
POOL_DRAWS, DEVICE_NOISE = 2, 3
"""Purposes of random sequences, so that no two share their numbers; 0 and 1 are the training loop's."""


def survey_at(path: Path) -> Survey | None:
    """The survey that a path names, by a TOML file or as a preset; None where it names a data set on disk."""
    if path.suffix == ".toml" or (str(path) in presets.names() and not path.exists()):
        return presets.preset(str(path))
    return None


def fixed_chunks(survey: Survey, split: Split, n: int, bar: Bar = silent) -> Iterator[Chunk]:
    """The first n fixed images of a split, with their truth."""
    with open_processes(n_workers(), FEWER_THREADS) as mapper, bar(f"simulating {survey.name}", n) as advance:
        count = Count(advance)
        for truth, counts, _ in slices(survey, FIXED_SEEDS[split], split, n, mapper):
            ids = np.array([f"{split}/{index:07d}" for index in truth.scenes["index"]])
            yield Chunk(counts, truth.scenes["label"], ids, truth)
            count.add(len(truth))


def n_workers() -> int:
    """Number of processes that draw or render: one for each thread that torch computes with."""
    return min(torch.get_num_threads(), MOST_WORKERS)


class Sample(NamedTuple):
    """Images with what is known of them."""

    counts: Tensor
    """Counts above each image's minimum, or planes of signal to noise, float32 [b, h, w]."""
    labels: Tensor
    """Positions [b] in the classes; `macro.CONTAMINANT` for images that are no lens."""
    msun: Tensor | None
    """Substructure mass in each cell of the truth head's map, float64 [b, g, g]; None where there is no head."""
    macro: Tensor | None
    """Targets of the macro head, float64 [b, 3]; None where there is no truth."""

    def take(self, rows: slice) -> "Sample":
        """These images alone."""
        return Sample(*(None if values is None else values[rows] for values in self))  # type: ignore[arg-type]

    def to(self, device: str) -> "Sample":
        """The same on a device, which is not waited for."""
        moved = (None if values is None else values.to(device, non_blocking=True) for values in self)
        return Sample(*moved)  # type: ignore[arg-type]


Samples = Generator[Sample, None, None]


class Cells(NamedTuple):
    """Cells of the truth head's map."""

    n: int
    """Cells along a side."""
    field: float
    """Side of the field that they divide, arcsec."""


@dataclass(frozen=True)
class SurveyStream:
    """Fresh images of a survey in batches of one size, without end."""

    survey: Survey
    size: int
    """Images in a batch."""
    seed: int
    cells: Cells | None = None
    cache: int = POOL
    """Images in the pool at most."""
    reuse: int = 8
    """Times that an image of the pool is drawn before it leaves, on average; rendering one takes about as long as a
    step of lensnet takes for one."""
    is_matched: bool = False
    """Whether images come in sets that share their scene, one of each class, and all of a set in one batch; the size of
    a batch must be a multiple of theirs."""
    n_workers: int = field(default_factory=n_workers)
    """Processes that render for the pool, two at least; torch's threads where the stream was made."""

    def samples(self, device: str, start: int = 0) -> Samples:
        """Batches on that device, from the one of step `start` on.

        Processes that draw and render ahead end with the iterator.
        """
        return self.pooled(start) if device == "cpu" else self.rendered(start, device)

    def n_images(self, device: str, steps: int) -> int:
        """Number of different images in the batches of the first steps."""
        n_pooled = self.window(max(0, steps - 1)).stop * self._length
        return min(n_pooled, self.size * steps) if device == "cpu" else self.size * steps

    def window(self, step: int) -> range:
        """The blocks of images in the pool at a step."""
        length = self._length
        least = -(-max(min(LEAST_POOL, self.cache), self.size) // length)
        most = max(least, self.cache // length)
        stop = least + step * self.size // self.reuse // length
        return range(max(0, stop - most), stop)

    def pooled(self, start: int) -> Samples:
        """Batches drawn at random from a pool, whose blocks other processes render ahead."""
        length = self._length
        blocks: deque[_Block] = deque()
        first = end = self.window(start).start
        tasks = (_BlockTask(self._task(number, length), self.cells) for number in itertools.count(first))
        with open_processes(max(2, self.n_workers), FEWER_THREADS) as mapper:
            rendered = mapper(_rendered, tasks)
            for step in itertools.count(start):
                window = self.window(step)
                while end < window.stop:
                    blocks.append(next(rendered))
                    end += 1
                while first < window.start:
                    blocks.popleft()
                    first += 1
                rng = np.random.default_rng((self.seed, POOL_DRAWS, step))
                yield _chosen(blocks, self._positions(rng, len(window) * length), length)

    def rendered(self, start: int, device: str) -> Samples:
        """Batches of new images: scenes drawn ahead by other processes, rendered and noised on the device."""
        n_batches = max(1, BATCHES_AT_ONCE // self.size)
        first, n_done = divmod(start, n_batches)
        tasks = (_BlockTask(self._task(n, n_batches * self.size), self.cells) for n in itertools.count(first))
        with open_processes(DRAWING, MORE_MEMORY) as mapper:
            for number, scenes in enumerate(mapper(_drawn, tasks), start=first):
                block = self._on_device(scenes, number, device)
                for batch in range(n_done, n_batches):
                    yield block.take(slice(batch * self.size, (batch + 1) * self.size))
                n_done = 0

    @property
    def _set(self) -> int:
        """Images of a set that share their scene."""
        return len(CLASSES) if self.is_matched else 1

    @property
    def _length(self) -> int:
        """Images in a block of the pool: whole sets."""
        length = slice_length(self.survey)
        return length - length % self._set

    def _positions(self, rng: np.random.Generator, n: int) -> NDArray[np.int64]:
        """Images of a batch out of n in the pool, whole sets, at random.

        Each begins with another class than the one before, so that any number of processes share all classes.
        """
        sets, member = rng.choice(n // self._set, self.size // self._set, replace=False), np.arange(self._set)
        turned = (member + np.arange(len(sets))[:, None]) % self._set
        return np.asarray((sets[:, None] * self._set + turned).ravel())

    def _task(self, number: int, length: int) -> Task:
        first = -(-(SELECTION + REFERENCE) // self._set) * self._set
        indices = range(first + number * length, first + (number + 1) * length)
        return Task(self.survey, self.seed, "train", indices, False, self.survey.contaminants, self.is_matched)

    def _on_device(self, drawn: "_Scenes", number: int, device: str) -> Sample:
        truth, key = drawn.truth, np.random.SeedSequence((self.seed, DEVICE_NOISE, number))
        generator = torch.Generator(device).manual_seed(int(key.generate_state(1, np.uint64)[0] >> 1))
        images = render(truth, self.survey, device)
        counts = observe_together(truth, images, self.survey, drawn.struck, generator)
        labels, targets = (
            torch.from_numpy(values).to(device)
            for values in (truth.scenes["label"].copy(), macro.targets(*macro.lenses(truth.scenes)))
        )
        return Sample(counts, labels, None if drawn.msun is None else torch.from_numpy(drawn.msun).to(device), targets)


class _BlockTask(NamedTuple):
    task: Task
    cells: Cells | None

    def msun(self, truth: Truth) -> Floats | None:
        return mass_map(truth, *self.cells) if self.cells else None


class _Block(NamedTuple):
    counts: NDArray[np.uint16]
    labels: NDArray[np.int64]
    msun: Floats | None
    macro: Floats


def _rendered(block: _BlockTask) -> _Block:
    truth, counts, _ = simulated(block.task)
    return _Block(counts, truth.scenes["label"].copy(), block.msun(truth), macro.targets(*macro.lenses(truth.scenes)))


class _Scenes(NamedTuple):
    """Scenes that are drawn for a GPU."""

    truth: Truth
    msun: Floats | None
    struck: Marks
    """Pixels with defects."""


def _drawn(block: _BlockTask) -> _Scenes:
    survey, seed, split, indices, _, contaminants, is_matched = block.task
    truth = draw(survey, seed, split, indices, contaminants, is_matched=is_matched)
    return _Scenes(truth, block.msun(truth), marks(survey, truth.extra_or_blank()))


def _chosen(blocks: deque[_Block], positions: NDArray[np.int64], length: int) -> Sample:
    """Those images of the pool, as the processor's batch."""
    places = [divmod(int(position), length) for position in positions]
    counts = np.stack([blocks[block].counts[row] for block, row in places])
    labels = np.array([blocks[block].labels[row] for block, row in places])
    planes = [plane[row] for block, row in places if (plane := blocks[block].msun) is not None]
    msun = torch.from_numpy(np.stack(planes)) if planes else None
    targets = torch.from_numpy(np.stack([blocks[block].macro[row] for block, row in places]))
    return Sample(torch.from_numpy(counts.astype(np.float32)), torch.from_numpy(labels), msun, targets)


def check_cache(survey: Survey, cache: int) -> None:
    """Raise `ConfigError` where a pool of so many images does not fit into the machine's free memory."""
    bytes_each = 2 * survey.camera.n_pixels**2
    fitting = int(SHARE_OF_MEMORY * free_memory() // bytes_each)
    if cache > fitting:
        raise ConfigError(
            f"train.cache is {cache:,} images of {bytes_each:,} bytes",
            need=f"{fitting:,} or fewer, which fit into {SHARE_OF_MEMORY:.0%} of the memory that is free",
            next=f"Set a number with --cache, {LEAST_POOL:,} or more.",
        )


SHARE_OF_MEMORY = 0.5
"""Share of the free memory that a pool may fill."""


def free_memory() -> int:
    """Bytes of memory that this process may take; all of the machine's where the system does not tell."""
    if known := machine.memory():
        return known[1]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
