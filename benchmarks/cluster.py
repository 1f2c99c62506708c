"""What a Dask cluster of this machine costs and gains: 20,000 images simulated, 50,000 judged.

    python benchmarks/cluster.py

Each line is a whole command, start and end included, in seconds of the wall clock: alone, on processes, and
on one and two Dask workers. Every result is compared with that of the first, byte by byte.
"""

import os
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from time import perf_counter

import numpy as np

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
        judged = {way: options for way, options in simulated.items() if way != "two processes"}
        compared("predict 50,000", judged, ("predict", "lensnet", str(images)), "table-{}.csv", folder)


if __name__ == "__main__":
    main()
