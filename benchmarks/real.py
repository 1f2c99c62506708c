"""The shipped networks for common-test-1, trained on simulations, on real images of Common Test I.

    python benchmarks/real.py ../shared/data

The folder holds common_test_1/{no,sphere,vort}/*.npy and common_test_1_no_1000.npz, whose array
`counts` [n, h, w] holds photon counts of images of class `no`. Prints, for each network, how many of
the labelled images are right, and the share of real and of as many simulated `no` images called `no`.
"""

import argparse
from pathlib import Path

import numpy as np

from sublens.images.formats import read_archive
from sublens.inference.predictor import BATCH, Predictor
from sublens.models import bundle
from sublens.sim.population import CLASSES
from sublens.sim.render import simulate
from sublens.surveys.presets import preset

SEED = 5
"""Of the simulated images; the networks were trained on seeds 1 and 2."""


def share_called_no(predictor: Predictor, counts: np.ndarray) -> float:
    """Share of images [n, h, w] whose most probable class is `no`."""
    starts = range(0, len(counts), BATCH)
    labels = np.concatenate([predictor.probs(counts[start : start + BATCH]).argmax(1) for start in starts])
    return float((labels == CLASSES.index("no")).mean())


def main() -> None:
    """Print a row for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    shipped = list(bundle.shipped_for("common-test-1"))
    parser.add_argument("bundles", nargs="*", default=shipped, help="default: all for common-test-1 that are shipped")
    options = parser.parse_args()
    labelled = sorted((options.folder / "common_test_1").glob("*/*.npy"))
    real = read_archive(options.folder / "common_test_1_no_1000.npz")
    _, simulated = simulate(preset("common-test-1"), SEED, "test", range(0, len(CLASSES) * len(real), len(CLASSES)))
    print(f"| network | right of {len(labelled)} | real `no` called `no` | simulated | difference |")
    print("|---|---:|---:|---:|---:|")
    for name in options.bundles:
        predictor = Predictor.load(name)
        predictions = predictor.files(labelled)
        right = sum(one.label == path.parent.name for one, path in zip(predictions, labelled, strict=True))
        ours, theirs = share_called_no(predictor, simulated), share_called_no(predictor, real)
        print(f"| {name} | {right} | {theirs:.2%} | {ours:.2%} | {theirs - ours:+.2%} |", flush=True)


if __name__ == "__main__":
    main()
