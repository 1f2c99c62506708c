"""How many images are simulated in a second of one core?

python benchmarks/simulate.py --n 600. Noiseless images of each class, then the noise alone, then
a whole data set through the store. Prints images a second: the best of several passes.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from sublens.job import simulate as simulate_store
from sublens.run import processor
from sublens.sim import camera
from sublens.sim.population import CLASSES, draw, noise_seeds
from sublens.sim.presets import COMMON_TEST_1
from sublens.sim.render import render

PASSES = 5


def rate(n: int, work: Callable[[], object], passes: int = PASSES) -> float:
    """Images a second in the best of some passes over `n` images."""
    seconds = []
    for _ in range(passes):
        start = perf_counter()
        work()
        seconds.append(perf_counter() - start)
    return n / min(seconds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=600, help="images of each class")
    n = parser.parse_args().n
    torch.set_num_threads(1)
    indices = range(len(CLASSES) * n)
    truth = draw(COMMON_TEST_1, 1, "train", indices)
    print(f"{processor()}, one thread, images a second")
    for label, name in enumerate(CLASSES):
        some = truth.take(np.flatnonzero(truth.scenes["label"] == label))
        print(f"  {name:8} noiseless {rate(n, lambda some=some: render(some, COMMON_TEST_1)):8,.0f}")  # type: ignore[misc]
    rates, seeds = render(truth, COMMON_TEST_1)[:n], noise_seeds(1, "train", range(n))
    print(f"  noise              {rate(n, lambda: camera.expose(rates, COMMON_TEST_1.background, seeds)):8,.0f}")
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "store"
            work = lambda out=out, workers=workers: simulate_store(  # noqa: E731
                COMMON_TEST_1, {"train": len(indices)}, out, seed=1, workers=workers
            )
            print(f"  a store, {workers} workers {rate(len(indices), work, passes=1):8,.0f}")


if __name__ == "__main__":
    main()
