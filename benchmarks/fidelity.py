"""Are simulated `no` images distributed like the real ones? Two-sample Kolmogorov-Smirnov tests.

python benchmarks/fidelity.py REAL.npz --n 3000 --seed 1, with arrays `counts` (n, h, w) above each
image's minimum. Prints one row a statistic: real and simulated mean and scatter, KS distance and p.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from sublens.sim.presets import COMMON_TEST_1
from sublens.sim.render import simulate

CORNER = 8
"""Side of the squares in the four corners, pixels, where there is sky alone."""


def statistics(counts: NDArray[np.uint16]) -> dict[str, NDArray[np.float64]]:
    """Summary statistics of images [n, h, w], each [n]."""
    images = counts.astype(np.float64)
    peak = images.max(axis=(1, 2))
    pixels = images / peak[:, None, None]
    corners = np.stack(
        [images[:, y, x] for y in (slice(CORNER), slice(-CORNER, None)) for x in (slice(CORNER), slice(-CORNER, None))]
    )
    centre = (images.shape[-1] - 1) / 2
    flux = np.clip(images - np.median(corners, axis=(0, 2, 3))[:, None, None], 0, None)
    axis = np.arange(images.shape[-1]) - centre
    total = flux.sum(axis=(1, 2))
    bright = pixels > 0.2
    radius = np.hypot(axis[:, None], axis)
    return {
        "pixel mean": pixels.mean(axis=(1, 2)),
        "pixel standard deviation": pixels.std(axis=(1, 2)),
        "peak N": peak,
        "corner counts": corners.mean(axis=(0, 2, 3)),
        "corner variance": corners.var(axis=(0, 2, 3)),
        "flux centroid x": (flux.sum(axis=1) * axis).sum(axis=1) / total,
        "flux centroid y": (flux.sum(axis=2) * axis).sum(axis=1) / total,
        "bright area": bright.mean(axis=(1, 2)),
        "radius of bright pixels": (bright * radius).sum(axis=(1, 2)) / bright.sum(axis=(1, 2)),
        "width in x": np.sqrt((flux.sum(axis=1) * axis**2).sum(axis=1) / total),
        "width in y": np.sqrt((flux.sum(axis=2) * axis**2).sum(axis=1) / total),
        "pixel-to-pixel roughness": np.abs(np.diff(images, axis=2)).mean(axis=(1, 2)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("real", type=Path)
    parser.add_argument("--n", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with np.load(args.real) as archive:
        real = statistics(archive["counts"])
    truth, counts = simulate(COMMON_TEST_1, args.seed, "train", range(3 * args.n))
    replica = statistics(counts[truth.scenes["label"] == 0])
    print(f"{'statistic':26} {'real':>18} {'simulated':>18} {'KS':>6} {'p':>6}")
    for name, values in real.items():
        test = ks_2samp(values, replica[name])
        ours = replica[name]
        print(
            f"{name:26} {values.mean():9.4f} ±{values.std():7.4f} {ours.mean():9.4f} "
            f"±{ours.std():7.4f} {test.statistic:6.3f} {test.pvalue:6.3f}"
        )


if __name__ == "__main__":
    main()
