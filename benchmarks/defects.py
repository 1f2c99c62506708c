"""How many answers a single unmasked defect turns, for networks that take signal to noise.

    python benchmarks/defects.py lensnet-hst hst-acs

Of a survey's lenses without substructure (seed 8001), the first 30 that are called `no` and not flagged get one defect
each, on the brightest part of the ring or elsewhere: pixels without light, hot pixels, the track of a cosmic ray, a
satellite's trail, or a star. Strengths are in standard deviations of a pixel's noise, nothing is masked. Prints for
each defect how many images are called otherwise, and how many of these are not flagged as out of distribution.
"""

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from sublens.images.signal_to_noise import MASKED, decode, encode
from sublens.inference.predictor import Predictor
from sublens.sim.population import CLASSES
from sublens.sim.render import simulate
from sublens.surveys.presets import preset

SEED, N_IMAGES, N_TRIED = 8001, 30, 300
STAR_SIGMA = 0.9
"""Standard deviation of a star's core, pixels."""

Floats = NDArray[np.float64]
Defect = Callable[[Floats, int, int], None]
"""Changes the signal to noise [h, w] of an image whose ring is brightest at a row and a column."""


def without_light(side: int) -> Defect:
    """Square of pixels that see nothing."""

    def change(snr: Floats, row: int, column: int) -> None:
        snr[row : row + side, column : column + side] = 0

    return change


def hot(strength: float) -> Defect:
    """One bright pixel."""

    def change(snr: Floats, row: int, column: int) -> None:
        snr[row, column] += strength

    return change


def track(strength: float) -> Defect:
    """Track of a cosmic ray of six pixels."""

    def change(snr: Floats, row: int, column: int) -> None:
        for step in range(6):
            snr[(row + step // 2) % len(snr), (column + step) % len(snr)] += strength

    return change


def trail(strength: float) -> Defect:
    """Trail of a satellite across the image, past its middle."""

    def change(snr: Floats, row: int, column: int) -> None:
        columns = np.arange(len(snr))
        snr[(0.7 * columns + 0.15 * len(snr)).astype(int) % len(snr), columns] += strength

    return change


def star(peak: float, away: int) -> Defect:
    """Star whose peak has this strength, some pixels from the brightest part of the ring."""

    def change(snr: Floats, row: int, column: int) -> None:
        y, x = np.indices(snr.shape)
        squared = (y - row - away) ** 2 + (x - column) ** 2
        snr += peak * np.exp(-squared / (2 * STAR_SIGMA**2))

    return change


DEFECTS = {
    **{f"{n} x {n} pixels without light": without_light(n) for n in (1, 2, 3)},
    **{f"hot pixel of {strength}": hot(strength) for strength in (20, 60)},
    "cosmic ray of 15": track(15),
    "trail of 8": trail(8),
    **{f"star of {peak}, {away} pixels away": star(peak, away) for peak in (5, 20, 50) for away in (0, 12)},
}


def brightest(snr: Floats) -> tuple[int, int]:
    """Row and column of the brightest part of the ring: of what a blur of 6 pixels leaves outside the lens' core."""
    detail = gaussian_filter(snr, 1.5) - gaussian_filter(snr, 6)
    y, x = np.indices(snr.shape) - (len(snr) - 1) / 2
    detail[(np.hypot(x, y) < len(snr) / 14) | (np.hypot(x, y) > len(snr) / 3)] = -np.inf
    row, column = np.unravel_index(detail.argmax(), snr.shape)
    return int(row), int(column)


def with_defect(codes: NDArray[np.uint16], defect: Defect) -> NDArray[np.uint16]:
    """Planes [n, h, w] with a defect in each."""
    planes = []
    for plane in codes:
        snr = np.where(plane == MASKED, 0, decode(plane)).astype(np.float64)
        defect(snr, *brightest(snr))
        planes.append(encode(snr, np.ones_like(snr), plane == MASKED))
    return np.stack(planes)


def answers(predictor: Predictor, codes: NDArray[np.uint16]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each image is called otherwise than `no`, and whether it is flagged, [n]."""
    batch = predictor.forward(codes)
    assert batch.is_ood is not None, "the network has a calibration"
    return batch.probs.argmax(1) != CLASSES.index("no"), batch.is_ood


def main() -> None:
    """Print a row for each defect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("survey")
    options = parser.parse_args()
    predictor = Predictor.load(options.network)
    _, codes = simulate(preset(options.survey), SEED, "test", range(0, len(CLASSES) * N_TRIED, len(CLASSES)))
    otherwise, flagged = answers(predictor, codes)
    chosen = codes[~otherwise & ~flagged][:N_IMAGES]
    called = np.mean(~otherwise & ~flagged)
    print(f"{called:.0%} of {N_TRIED} are called `no` and not flagged; {len(chosen)} of them:")
    print("| defect | called otherwise | of these not flagged | flagged of all |")
    print("|---|---:|---:|---:|")
    for name, defect in DEFECTS.items():
        otherwise, flagged = answers(predictor, with_defect(chosen, defect))
        print(f"| {name} | {otherwise.sum()} | {(otherwise & ~flagged).sum()} | {flagged.sum()} |", flush=True)


if __name__ == "__main__":
    main()
