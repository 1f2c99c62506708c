"""How far the calibration of a network can be trusted, on images that nothing was fitted to.

    python benchmarks/trust.py lensnet resnet18 --images 30000

On fresh images of common-test-1 (seed 7002): the calibration error beside that of a perfectly calibrated network, what
the temperature does to the loss, and the coverage of the prediction sets and the false alarms of the
out-of-distribution (OOD) flag in each class, with Wilson's 95 % intervals. Then how well the OOD score tells five kinds
of images out of distribution from these: a PSF twice as wide, three times the noise, the lens galaxy's own light, a
star, and DeepLense's Model II (seed 50). With --openvino, how much the macro AUC changes in OpenVINO, which computes in
bfloat16 where the processor has it.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sublens import metrics
from sublens.config import field_of_view
from sublens.data.dataset import Part
from sublens.images import resample
from sublens.images.pixels import Image
from sublens.inference import predict_dataset
from sublens.inference.predictor import BatchPrediction, Predictor
from sublens.models.calibration import Calibration, softmax
from sublens.observation.camera import above_minimum
from sublens.sim.population import CLASSES
from sublens.sim.render import simulate
from sublens.surveys.presets import preset
from sublens.surveys.survey import Survey

SEED, SHIFTED_SEED = 7002, 50
N_SHIFTED = 1_000
STAR_PEAK = 400
"""Counts in the brightest pixel of the star; the median image has 801 in its own."""
Counts = NDArray[np.uint16]


def changed(**sections: dict[str, Any]) -> Survey:
    """common-test-1 with some values changed."""
    tree = preset("common-test-1").model_dump(exclude_none=True)
    return Survey.model_validate({**tree, **{name: {**tree.get(name, {}), **new} for name, new in sections.items()}})


@cache
def fresh(n: int, seed: int = SEED) -> tuple[Counts, NDArray[np.int64]]:
    """In-distribution images and their labels."""
    truth, counts = simulate(preset("common-test-1"), seed, "test", range(n))
    return counts, truth.scenes["label"].astype(np.int64)


def simulated(survey: Survey) -> Counts:
    return simulate(survey, SHIFTED_SEED, "test", range(N_SHIFTED))[1]


def starry() -> Counts:
    """In-distribution images with a star of the width of the PSF somewhere within 45 pixels of the centre."""
    counts, rng = fresh(N_SHIFTED, SHIFTED_SEED)[0], np.random.default_rng(SHIFTED_SEED)
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


def outputs(predictor: Predictor, counts: Counts, pixel_scale: float) -> BatchPrediction:
    """The network's raw outputs for images, brought to its frame first."""
    if not np.isclose(pixel_scale, predictor.pixel_scale or 0):
        side, shape = field_of_view(predictor.input, predictor.image_shape), predictor.image_shape
        images = [Image(pixels.astype(float), pixel_scale=pixel_scale) for pixels in counts]
        frames = [resample.resample_image(image, shape, side, predictor.pixel_scale) for image in images]
        counts = np.stack([frame.counts() for frame in frames])
    return predict_dataset.outputs_of_all(replace(predictor, calibration=None), part(counts))


def scale_of(shift: str) -> float:
    return preset("model-2" if shift == "Model II" else "common-test-1").camera.pixel_scale


def part(counts: Counts, labels: NDArray[np.int64] | None = None) -> Part:
    rows = np.arange(len(counts))
    return Part((counts,), rows, np.zeros(len(counts), np.int64) if labels is None else labels, rows.astype(str), None)


def wilson(flags: NDArray[np.bool_]) -> str:
    """The share of flags that are set, and its 95 % interval, in per cent."""
    interval = stats.binomtest(int(flags.sum()), len(flags)).proportion_ci(method="wilson")
    return f"{flags.mean():.2%} [{interval.low:.2%}, {interval.high:.2%}]"


def by_class(flags: NDArray[np.bool_], labels: NDArray[np.int64]) -> str:
    """`wilson` of all images, then of those of each class."""
    parts = {"all": flags, **{name: flags[labels == label] for label, name in enumerate(CLASSES)}}
    return ", ".join(f"{name} {wilson(part)}" for name, part in parts.items())


def describe(
    calibration: Calibration, output: BatchPrediction, labels: NDArray[np.int64], shifted: dict[str, BatchPrediction]
) -> Iterator[str]:
    """Lines on a calibration, from raw outputs for images in distribution and for each kind of other images."""
    probs, plain = calibration.probs(output.logits), softmax(output.logits)
    floor, change = metrics.calibration_floor(probs), metrics.loss_change(plain, probs, labels)
    yield f"calibration error {metrics.calibration_error(probs, labels):.4f}, uncalibrated " + (
        f"{metrics.calibration_error(plain, labels):.4f}, floor {floor['mean']:.4f} +- {floor['sd']:.4f}"
    )
    yield f"temperature {calibration.temperature:.3f} changes the loss by " + (
        "{value:+.5f} [{low:+.5f}, {high:+.5f}]".format(**change)
    )
    sets = calibration.sets(probs)
    yield f"coverage: {by_class(sets[np.arange(len(labels)), labels], labels)}"
    yield "classes in a set " + ", ".join(f"{size}: {(sets.sum(1) == size).mean():.1%}" for size in range(4))
    scores = calibration.ood(output.moments, probs)
    yield f"out of distribution: {by_class(calibration.is_ood(scores), labels)}; and of"
    for kind, other in shifted.items():
        others = calibration.ood(other.moments, calibration.probs(other.logits))
        is_other = np.arange(len(scores) + len(others)) >= len(scores)
        area = metrics.auc(np.concatenate([scores, others]), is_other)
        yield f"  {kind:12} {calibration.is_ood(others).mean():6.1%}   AUROC {area:.4f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--images", type=int, default=30_000)
    parser.add_argument("--openvino", action="store_true")
    options = parser.parse_args()
    shifted = {kind: make() for kind, make in SHIFTS.items()}
    counts, labels = fresh(options.images)
    for name in options.bundles:
        predictor = Predictor.load(name)
        assert predictor.calibration is not None
        others = {kind: outputs(predictor, images, scale_of(kind)) for kind, images in shifted.items()}
        output = outputs(predictor, counts, scale_of(""))
        print(f"{name}:", *describe(predictor.calibration, output, labels, others), sep="\n  ")
        if options.openvino:
            probs = predictor.calibration.probs(output.logits)
            narrow = predict_dataset.predict_all(Predictor.load(name, "openvino"), part(counts, labels)).probs
            change = metrics.auc_change(probs, narrow, labels)
            print("  in OpenVINO the AUC changes by {value:+.5f} [{low:+.5f}, {high:+.5f}]".format(**change))


if __name__ == "__main__":
    main()
