"""What the word of a network is worth, on images that nobody has seen.

    python benchmarks/trust.py lensnet resnet18 --images 10000

Calibration error and coverage of the prediction sets on fresh images of common-test-1 (seed 50), and
how well the out-of-distribution score tells five kinds of out-of-distribution images from them: a PSF twice as
wide, three times the noise, the lens galaxy's own light, a star, and DeepLense's Model II. Last, how
much the macro AUC changes in OpenVINO, which computes in bfloat16 where the processor has it.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sublens import metrics
from sublens.config import field_of_view
from sublens.data.dataset import Part
from sublens.images import resample
from sublens.images.pixels import Image
from sublens.inference import predict_dataset
from sublens.inference.predictor import Predictor
from sublens.sim.camera import above_minimum
from sublens.sim.population import CLASSES
from sublens.sim.presets import preset
from sublens.sim.render import simulate
from sublens.sim.survey import Survey

SEED = 50
N_SHIFTED = 1_000
STAR_PEAK = 400
"""Counts in the brightest pixel of the star; the median image has 801 in its own."""
Counts = NDArray[np.uint16]


def changed(**sections: dict[str, Any]) -> Survey:
    """common-test-1 with some values changed."""
    tree = preset("common-test-1").model_dump(exclude_none=True)
    return Survey.model_validate({**tree, **{name: {**tree.get(name, {}), **new} for name, new in sections.items()}})


@cache
def fresh(n: int) -> tuple[Counts, NDArray[np.int64]]:
    """In-distribution images and their labels."""
    truth, counts = simulate(preset("common-test-1"), SEED, "test", range(n))
    return counts, truth.scenes["label"].astype(np.int64)


def simulated(survey: Survey) -> Counts:
    return simulate(survey, SEED, "test", range(N_SHIFTED))[1]


def starry() -> Counts:
    """In-distribution images with a star of the width of the PSF somewhere within 45 pixels of the centre."""
    counts, rng = fresh(N_SHIFTED)[0], np.random.default_rng(SEED)
    radius, turn = rng.uniform(0, 45, N_SHIFTED), rng.uniform(0, 2 * np.pi, N_SHIFTED)
    axis, sigma = np.arange(counts.shape[1]) - (counts.shape[1] - 1) / 2, 1.743
    x, y = (axis - (radius * trig(turn))[:, None] for trig in (np.cos, np.sin))
    star = STAR_PEAK * np.exp(-0.5 * (y[:, :, None] ** 2 + x[:, None, :] ** 2) / sigma**2)
    return above_minimum((counts + rng.poisson(star)).astype(np.int32))


SHIFTS: dict[str, Callable[[], Counts]] = {
    "PSF x 2": lambda: simulated(changed(camera={"psf": {"profile": "gaussian", "fwhm": 2 * 0.20522256694}})),
    "noise x 3": lambda: simulated(changed(camera={"background": 10 / 9}, source={"intensity": 100 / 9})),
    "lens light": lambda: simulated(changed(lens_light={"intensity": 50, "n": 4, "r_eff": 1.0})),
    "star": starry,
    "Model II": lambda: simulated(preset("model-2")),
}


def scores(predictor: Predictor, counts: Counts, pixel_scale: float) -> metrics.Floats:
    """Out-of-distribution scores of images, brought to the network's frame first."""
    if not np.isclose(pixel_scale, predictor.pixel_scale or 0):
        side, shape = field_of_view(predictor.input, predictor.image_shape), predictor.image_shape
        images = [Image(one.astype(float), pixel_scale=pixel_scale) for one in counts]
        counts = np.stack([resample.resample_image(one, shape, side, predictor.pixel_scale).counts() for one in images])
    found = predict_dataset.predict_all(predictor, part(counts)).ood
    assert found is not None
    return found


def part(counts: Counts, labels: NDArray[np.int64] | None = None) -> Part:
    rows = np.arange(len(counts))
    return Part((counts,), rows, np.zeros(len(counts), np.int64) if labels is None else labels, rows.astype(str), None)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--images", type=int, default=10_000)
    options = parser.parse_args()
    shifted = {name: make() for name, make in SHIFTS.items()}
    counts, labels = fresh(options.images)
    for name in options.bundles:
        predictor = Predictor.load(name)
        assert predictor.calibration is not None
        raw = predict_dataset.predict_all(replace(predictor, calibration=None), part(counts, labels))
        table = predict_dataset.predict_all(predictor, part(counts, labels))
        sets = predictor.calibration.sets(table.probs)
        errors = [metrics.calibration_error(one.probs, labels) for one in (raw, table)]
        print(f"{name}: temperature {predictor.calibration.temperature:.3f}")
        print(f"  calibration error (15 bins) {errors[1]:.4f}, uncalibrated {errors[0]:.4f}")
        held = metrics.coverage(sets, labels, CLASSES)
        print("  coverage " + ", ".join(f"{kind} {share:.3f}" for kind, share in held.items()))
        print("  classes in a set " + ", ".join(f"{size}: {(sets.sum(1) == size).mean():.1%}" for size in range(4)))
        assert table.ood is not None
        threshold, scored = predictor.calibration.ood_threshold, table.ood
        print(f"  out of distribution: {(scored > threshold).mean():.1%} of these, and of")
        for kind, images in shifted.items():
            scale = preset("model-2" if kind == "Model II" else "common-test-1").camera.pixel_scale
            other = scores(predictor, images, scale)
            is_ood = np.arange(len(scored) + len(other)) >= len(scored)
            area = metrics.auc(np.concatenate([scored, other]), is_ood)
            print(f"    {kind:12} {(other > threshold).mean():6.1%}   AUROC {area:.4f}")
        narrow = predict_dataset.predict_all(Predictor.load(name, "openvino"), part(counts, labels)).probs
        change = metrics.auc_change(table.probs, narrow, labels)
        print("  in OpenVINO the AUC changes by {value:+.5f} [{low:+.5f}, {high:+.5f}]".format(**change))


if __name__ == "__main__":
    main()
