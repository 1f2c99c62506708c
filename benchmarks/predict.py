"""How fast every engine predicts images on one core, beside plain torch, and how soon the first answer comes.

    python benchmarks/predict.py lensnet resnet18 resnet18-int8 --seconds 4

Names or folders of bundles; of a folder that `sublens export` made, ONNX Runtime alone is measured. Each
cell runs in a process of its own, on one thread, from photon counts to what the network gives. "plain
torch" is the network alone, in float32, as timm hands it out: what its users run. The engines also give
the map of masses and the moments behind the OOD score. The share is that of the most
floating-point operations a second that torch reached in a float32 matrix product in the same run.
A cold start is `sublens predict` of one image, from the shell: the quickest of five.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sublens.inference.engines import EngineName
from sublens.inference.predictor import BATCH, open_engine
from sublens.models import bundle

PLAIN = "plain torch"
ENGINES: tuple[EngineName, ...] = ("torch", "onnxruntime", "openvino")
STARTS = 5
SIDE = 4096
"""Of the matrices whose product tells the peak."""
Counts = NDArray[np.uint16]


def images(n: int) -> Counts:
    """Noise; what is in an image does not matter to how long it takes."""
    return np.random.default_rng(0).poisson(30, (n, 150, 150)).astype(np.uint16)


def rate(run: Callable[[Counts], object], batch: int, seconds: float) -> float:
    """Images a second of processor time."""
    counts = images(batch)
    run(counts)
    n, start = 0, process_time()
    while process_time() - start < seconds:
        run(counts)
        n += batch
    return n / (process_time() - start)


def plain(name: str) -> tuple[Callable[[Counts], object], float]:
    """The network alone, and its floating-point operations an image."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from sublens.models import inputs, weights

    folder = bundle.locate(name)
    card = bundle.read_card(folder)
    model = weights.load(folder, card)[0].to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(inputs.counts_to_input(images(1), card.input))

    def run(counts: Counts) -> object:
        with torch.inference_mode():
            return model(inputs.counts_to_input(counts, card.input))

    return run, float(counter.get_total_flops())


def peak(seconds: float) -> float:
    """Floating-point operations a second in a float32 matrix product, on one thread."""
    import torch

    left, right = torch.rand(SIDE, SIDE), torch.rand(SIDE, SIDE)
    n, start = 0, process_time()
    while not n or process_time() - start < seconds:
        torch.mm(left, right)
        n += 1
    return n * 2.0 * SIDE**3 / (process_time() - start)


def measured(name: str, engine: str, seconds: float) -> dict[str, float]:
    """One cell: images a second one by one and in batches."""
    if engine == "peak":
        return {"peak": peak(seconds)}
    if engine == PLAIN:
        run, flops = plain(name)
        return {"one": rate(run, 1, seconds), "many": rate(run, BATCH, seconds), "flops": flops}
    folder = bundle.locate(name)
    opened = open_engine(folder, bundle.read_card(folder), engine)  # type: ignore[arg-type]
    return {"one": rate(opened, 1, seconds), "many": rate(opened, BATCH, seconds)}


def apart(name: str, engine: str, seconds: float) -> dict[str, float]:
    """The same in a process of its own, on one thread."""
    command = [sys.executable, __file__, name, "--only", engine, "--seconds", str(seconds)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, float] = json.loads(said.splitlines()[-1])
    return found


def cold_start(name: str, engine: str) -> float:
    """Seconds from the shell to the first answer."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.npy"
        np.save(path, images(1)[0].astype(float))
        command = [str(Path(sys.executable).with_name("sublens")), "predict", name, str(path), "--engine", engine]
        times = []
        for _ in range(STARTS):
            start = perf_counter()
            subprocess.run(command, capture_output=True, check=True)
            times.append(perf_counter() - start)
    return min(times)


def cells(name: str, seconds: float) -> dict[str, dict[str, Any]]:
    """What each engine reaches with that bundle."""
    folder = bundle.locate(name)
    told = bundle.read_card(folder).graph
    if told and told.is_alone:
        return {f"onnxruntime, {told.precision}": {**apart(name, "onnxruntime", seconds), "engine": "onnxruntime"}}
    return {engine: {**apart(name, engine, seconds), "engine": engine} for engine in (PLAIN, *ENGINES)}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measured(options.bundles[0], options.only, options.seconds)))
        return
    most = apart(options.bundles[0], "peak", options.seconds)["peak"]
    print(f"Peak of the core: {most / 1e9:.0f} GFLOP/s\n")
    print(f"| network | engine | images/s, one by one | images/s, by {BATCH} | over plain torch | of the peak | cold |")
    print("|---|---|---:|---:|---:|---:|---:|")
    plains: dict[str, dict[str, float]] = {}
    for name in options.bundles:
        network = bundle.read_card(bundle.locate(name)).network
        for label, cell in cells(name, options.seconds).items():
            if label == PLAIN:
                plains[network] = cell
            base = plains.get(network)
            ratio = f"{cell['many'] / base['many']:.2f}" if base else ""
            share = f"{cell['many'] * base['flops'] / most:.0%}" if base else ""
            cold = "" if label == PLAIN else f"{cold_start(name, cell['engine']):.2f} s"
            print(f"| {network} | {label} | {cell['one']:,.0f} | {cell['many']:,.0f} | {ratio} | {share} | {cold} |")


if __name__ == "__main__":
    main()
