"""How many images a second are trained on, on one core, on all, and by two trainings beside each other?

python benchmarks/train.py lensnet --seconds 6. Steps as `sublens train` takes them, on images of common-test-1 with
the truth head: batches, gradient and optimiser, without evaluation and log. Each cell runs in a process of its own.
The two beside each other have all cores each; their rates are added.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from sublens.config import ModelConfig, RunConfig, SplitConfig
from sublens.data.dataset import open_dataset
from sublens.data.generate import simulate
from sublens.parallel.machine import processor
from sublens.parallel.threads import n_threads
from sublens.parallel.torchrun import ALONE
from sublens.surveys.presets import preset
from sublens.training import loop, run

WARM_UP = 4
"""Steps that are not timed."""
N_IMAGES = 1000
START_SECONDS = 15
"""Time that processes have to import and to warm up before all begin to count."""


def rate(network: str, data: Path, seconds: float, start: float) -> tuple[float, float]:
    """Images in a second, and in a second of processor time, counted from a time of the clock on."""
    dataset = open_dataset(data, SplitConfig())
    config = run.resolve_settings(RunConfig(model=ModelConfig(name=network)), dataset)
    state = run.build_state(dataset, config, ALONE)
    clocks: list[tuple[float, float]] = []

    def share_done(step: int) -> float:
        if step == WARM_UP:
            time.sleep(max(0.0, start - time.time()))
        clocks.append((time.perf_counter(), time.process_time()))
        return float(step > WARM_UP and clocks[-1][0] - clocks[WARM_UP][0] >= seconds)

    loop.fit(
        state.model,
        state.head,
        state.optimizer,
        state.batches.epochs(),
        config=config.train,
        share_done=share_done,
        on_step=lambda step: None,
        on_epoch=lambda epoch: None,
        has_bf16=state.has_bf16,
    )
    n_images = (len(clocks) - 1 - WARM_UP) * state.batches.size
    (begin, spent_before), (end, spent) = clocks[WARM_UP], clocks[-1]
    return n_images / (end - begin), n_images / (spent - spent_before)


def rates(network: str, data: Path, seconds: float, threads: int, n: int = 1) -> tuple[float, float]:
    """The rates of n trainings beside each other, the first added and the second averaged."""
    start = str(time.time() + START_SECONDS if n > 1 else 0)
    command = [sys.executable, __file__, network, "--one", str(data), str(seconds), start]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    children = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(n)]
    cells = [json.loads(child.communicate()[0]) for child in children]
    return sum(cell[0] for cell in cells), sum(cell[1] for cell in cells) / n


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--seconds", type=float, default=6, help="for each cell")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        data, seconds, start = args.one
        print(json.dumps(rate(args.networks[0], Path(data), float(seconds), float(start))))
        return
    cores = n_threads()
    print(f"{processor()}, torch {version('torch')}, images a second (and in a second of processor time)")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        simulate(preset("common-test-1"), {"train": N_IMAGES, "test": 30}, data, seed=3, workers=cores)
        for network in args.networks:
            cells = {"one core": (1, 1), f"{cores} cores": (cores, 1), f"two on {cores} cores each": (cores, 2)}
            for name, (threads, n) in cells.items():
                whole, of_processor = rates(network, data, args.seconds, threads, n)
                print(f"{network:20}{name:24}{whole:8,.0f} ({of_processor:,.0f})", flush=True)


if __name__ == "__main__":
    main()
