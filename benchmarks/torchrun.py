"""How far two processes under torchrun come from the loss curve of one, beside what a second thread does to it.

    python benchmarks/torchrun.py

Three epochs of lensnet on 2,700 simulated images, batches of 32, in float32 (a crop of 64 pixels is too small for
bfloat16): one process on one thread, one on two threads, and two on one thread each; with AdamW and with Muon, whose
steps are worked out in bfloat16.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

SETTINGS = ("train.epochs=3", "train.batch_size=32", "input.crop=64", "input.binning=2")
OPTIMIZERS = {"Muon": (), "AdamW": ("train.optimizer=adamw", "train.adamw_lr=1e-4")}
TWO = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python")
WAYS = {"one thread": ((), "1"), "two threads": ((), "2"), "two processes": (TWO, "1")}


def sublens(launcher: tuple[str, ...], n_threads: str, *arguments: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": n_threads}
    command = [*launcher, sys.executable, "-m", "sublens.cli", *arguments]
    subprocess.run(command, check=True, capture_output=True, env=environment)


def curve(run: Path) -> tuple[list[float], float]:
    """The loss of each step, and the images a second."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["kind"] == "step"]
    return [row["loss"] for row in steps], steps[-1]["images_per_s"]


def main() -> None:
    print("| optimiser | trained by | steps | images/s | largest difference of the loss |\n|---|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as held:
        data = Path(held, "data")
        sublens((), "1", "simulate", "common-test-1", "--train", "3000", "--test", "600", "--out", str(data))
        for optimizer, more in OPTIMIZERS.items():
            whole: list[float] = []
            for way, (launcher, n_threads) in WAYS.items():
                run = Path(held, f"{optimizer}-{way}")
                chosen = [word for value in (*SETTINGS, *more) for word in ("--set", value)]
                sublens(launcher, n_threads, "train", str(data), "--model", "lensnet", "--out", str(run), *chosen)
                losses, rate = curve(run)
                whole = whole or losses
                off = np.abs(np.subtract(losses, whole)).max()
                print(f"| {optimizer} | {way} | {len(losses)} | {rate:,.0f} | {off:.4f} |", flush=True)


if __name__ == "__main__":
    main()
