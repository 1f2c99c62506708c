"""What a Dask cluster of this machine costs and gains: 20,000 images simulated, 50,000 predicted.

    python benchmarks/cluster.py

Each line of the first table is a whole command, start and end included, in seconds of the wall clock: alone, on
processes, and on one and two Dask workers. Every result is compared with that of the first, byte by byte. Then come
the rates at which two workers give slices once they are warm, over that of one, and those at which the command itself
can take and write what workers send, were these infinitely fast: the most that a cluster of any size can reach.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import TypeVar

import numpy as np
from distributed.protocol import deserialize, serialize

from sublens import workflows
from sublens.data import generate
from sublens.inference import predict_files
from sublens.parallel import dask
from sublens.parallel.mapper import Mapper
from sublens.sim.slices import slices
from sublens.surveys.presets import preset

A = TypeVar("A")
R = TypeVar("R")

SIZES = ("--train", "16000", "--test", "4000")
N_JUDGED = 50_000


def timed(*arguments: str) -> float:
    """Seconds that a command takes."""
    start = perf_counter()
    subprocess.run(
        [sys.executable, "-m", "sublens.cli", *arguments],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return perf_counter() - start


def compared(name: str, ways: dict[str, tuple[str, ...]], command: tuple[str, ...], made: str, folder: Path) -> None:
    """Time every way of a command, and print a row for each; `made` is what it leaves behind, with {} for the way."""
    first = ""
    base = 0.0
    for number, (way, options) in enumerate(ways.items()):
        out = folder / made.format(number)
        seconds = timed(*command, *options, "--out", str(out))
        digest = sha256((out / "manifest.json" if out.is_dir() else out).read_bytes()).hexdigest()
        first, base = first or digest, base or seconds
        print(
            f"| {name} | {way} | {seconds:.1f} | {base / seconds:.2f} | {'yes' if digest == first else 'NO'} |",
            flush=True,
        )


class Instant(Mapper):
    """Workers that take no time: the first slice's answer comes for every slice, as it comes over a network."""

    def __call__(self, work: Callable[[A], R], wanted: Iterable[A]) -> Iterator[R]:
        coming = iter(wanted)
        first = serialize(work(next(coming)))
        self.start = perf_counter()
        yield deserialize(*first)
        for _ in coming:
            yield deserialize(*first)


@contextmanager
def instant(where: str) -> Iterator[Mapper]:
    yield INSTANT


INSTANT = Instant()


def warm_rate(where: str, n_skipped: int = 4, n: int = 28) -> float:
    """Images simulated a second, from the slice after the first few on."""
    survey = preset("common-test-1")
    with dask.open_cluster(where) as mapper:
        coming = slices(survey, 9, "train", 500 * (n_skipped + n), mapper)
        for _ in islice(coming, n_skipped):
            pass
        start = perf_counter()
        return sum(len(truth) for truth, _, _ in coming) / (perf_counter() - start)


def taken(folder: Path, images: Path) -> None:
    """Print what the command itself can take."""
    workflows.opened = predict_files.opened = instant  # type: ignore[attr-defined]
    generate.simulate(preset("common-test-1"), {"train": 20_000}, folder / "taken", seed=9, cluster="instant")
    print(f"simulate takes {20_000 / (perf_counter() - INSTANT.start):,.0f} images/s")
    predict_files.predict_to_table(predict_files.Query("lensnet", [images]), folder / "taken.csv", cluster="instant")
    print(f"predict takes {N_JUDGED / (perf_counter() - INSTANT.start):,.0f} images/s")


def main() -> None:
    print("| command | on | s | times as fast | same bytes |\n|---|---|---:|---:|---|")
    with tempfile.TemporaryDirectory() as held:
        folder = Path(held)
        simulated = {
            "one process": (),
            "two processes": ("--workers", "2"),
            "one Dask worker": ("--cluster", "local:1"),
            "two Dask workers": ("--cluster", "local:2"),
        }
        command = ("simulate", "common-test-1", *SIZES, "--seed", "9")
        compared("simulate 20,000", simulated, command, "store-{}", folder)
        images, counts = folder / "images", np.load(folder / "store-0" / "train" / "images-00000.npy")
        images.mkdir()
        for number in range(N_JUDGED):
            np.save(images / f"{number:05d}.npy", counts[number % len(counts)])
        predicted = {way: options for way, options in simulated.items() if way != "two processes"}
        compared("predict 50,000", predicted, ("predict", "lensnet", str(images)), "table-{}.csv", folder)
        os.environ["OMP_NUM_THREADS"] = "1"
        one, two = (warm_rate(f"local:{n}") for n in (1, 2))
        print(f"warm workers simulate {one:,.0f} and {two:,.0f} images/s: {two / one:.2f} times as fast")
        taken(folder, images)


if __name__ == "__main__":
    main()
