"""Whether saliency peaks where the substructure is, on images that nobody has seen.

    python benchmarks/explain.py lensnet mobilenetv3-small --images 300

For each method, and for the truth head's own map where there is one: the share of fresh images of
common-test-1 (seed 61; the methods were chosen on seed 60) whose saliency for the true class peaks on
the substructure, with its 95 % interval, beside the share if each image had the peak of another one of
its class, and if peaks lay anywhere in the field. As many images are taken of each class.
"""

import argparse
from time import perf_counter
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from sublens.config import field_of_view
from sublens.evaluation import saliency
from sublens.inference.engines import MASS_UNIT_MSUN
from sublens.inference.predictor import BATCH, Predictor
from sublens.metrics import Floats
from sublens.sim.population import CLASSES
from sublens.sim.render import simulate
from sublens.surveys.presets import preset
from sublens.surveys.truth import Truth

SEED = 61
TRUTH_HEAD = "truth head"
ROW = "{:18} {:10} {:7} {:>6} {:>5} {:>22} {:>7} {:>8} {:>9}"


def peaks(predictor: Predictor, method: str, counts: NDArray[np.uint16], label: int, pixel_scale: float) -> Floats:
    """Where the maps of these images peak, [n, 2], arcsec."""
    if method == TRUTH_HEAD:
        logs = np.log1p(predictor.masses(counts) / MASS_UNIT_MSUN)
        maps = saliency.enlarged(logs, predictor.input, predictor.image_shape)
    else:
        maps = saliency.saliency(predictor, counts, np.full(len(counts), label), method)  # type: ignore[arg-type]
    return saliency.peaks(maps, pixel_scale)


def measure(predictor: Predictor, name: str, method: str, truth: Truth, counts: NDArray[np.uint16]) -> None:
    """Print the rows of one method."""
    scale = preset("common-test-1").camera.pixel_scale
    field = scale * field_of_view(predictor.input, predictor.image_shape)
    for label in range(1, len(CLASSES)):
        rows = np.flatnonzero(truth.scenes["label"] == label)
        start = perf_counter()
        parts = [rows[first : first + BATCH] for first in range(0, len(rows), BATCH)]
        at = np.concatenate([peaks(predictor, method, counts[part], label, scale) for part in parts])
        seconds = (perf_counter() - start) / len(rows)
        kinds = [("> 1e9", saliency.LEAST_MSUN), ("any", 0.0)] if CLASSES[label] == "sphere" else [("string", 0.0)]
        for kind, least in kinds:
            told = saliency.score(at, truth.take(rows), field, least_msun=least)
            share = f"{told['share']:.3f} [{told['low']:.3f}, {told['high']:.3f}]"
            chance, uniform = f"{told['chance']:.3f}", f"{told['uniform']:.3f}"
            row = (name, method, CLASSES[label], kind, told["n"], share, chance, uniform, f"{seconds:.3f}")
            print(ROW.format(*row), flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--images", type=int, default=300, help="of each class")
    parser.add_argument("--methods", nargs="+", default=[TRUTH_HEAD, *get_args(saliency.Method)])
    options = parser.parse_args()
    truth, counts = simulate(preset("common-test-1"), SEED, "test", range(options.images * len(CLASSES)))
    print(ROW.format("network", "map", "class", "Msun", "n", "peak on it [95 %]", "chance", "anywhere", "s/image"))
    for name in options.bundles:
        predictor = Predictor.load(name, "torch")
        for method in options.methods if predictor.map else [one for one in options.methods if one != TRUTH_HEAD]:
            measure(predictor, name, method, truth, counts)


if __name__ == "__main__":
    main()
