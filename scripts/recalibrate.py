"""Calibrates trained networks again, on fresh images of common-test-1, and renews their cards.

    python scripts/recalibrate.py lensnet mobilenetv3-small resnet18 efficientnet-b5

Weights, graph and the Gaussians of the out-of-distribution score stay; so does the temperature where the images
cannot tell it from the best one. Seed 7001 is used for nothing else; `benchmarks/trust.py` measures on seed 7002.
"""

import argparse
from dataclasses import replace

import numpy as np

from sublens.data.dataset import Part
from sublens.inference import predict_dataset
from sublens.inference.predictor import BatchPrediction, Predictor
from sublens.models import bundle, calibration
from sublens.sim.render import simulate
from sublens.surveys.presets import preset

SEED, IMAGES, SLICE = 7001, 30_000, 2_000


def fresh(start: int) -> Part:
    """Images of one slice, with their labels."""
    truth, counts = simulate(preset("common-test-1"), SEED, "train", range(start, start + SLICE))
    rows = np.arange(len(counts))
    return Part((counts,), rows, truth.scenes["label"].astype(np.int64), rows.astype(str), None)


def recalibrate(name: str, outputs: list[BatchPrediction], labels: list[np.ndarray]) -> None:
    """Fit the calibration of a network to its raw outputs for images of these labels, and write it."""
    folder = bundle.locate(name)
    card = bundle.read_card(folder)
    before = bundle.load_calibration(folder, card)
    assert before is not None
    logits = np.concatenate([output.logits for output in outputs])
    moments = [np.concatenate(layer) for layer in zip(*(output.moments for output in outputs), strict=True)]
    after = calibration.refit(before, logits, np.concatenate(labels), moments)
    entry = bundle.save_calibration(folder, after, after.n)
    bundle.save_card(folder, card.model_copy(update={"calibration": entry}))
    print(f"{name}: temperature {before.temperature:.4f} -> {after.temperature:.4f}, on {after.n:,} images")
    print(f"  cutoffs {after.cutoffs}, OOD threshold {after.ood_threshold:.4f}, offsets {after.ood_offsets}")


def main() -> None:
    """Predict the fresh images with each network, and renew its card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+")
    names = parser.parse_args().bundles
    others = [name for name in names if bundle.read_card(bundle.locate(name)).input.takes_noise]
    if others:
        parser.error(f"{', '.join(others)} take signal to noise; needs networks of counts, which common-test-1 has")
    predictors = {name: replace(Predictor.load(name), calibration=None) for name in names}
    outputs: dict[str, list[BatchPrediction]] = {name: [] for name in names}
    labels = []
    for start in range(0, IMAGES, SLICE):
        part = fresh(start)
        labels.append(part.labels)
        for name, predictor in predictors.items():
            outputs[name].append(predict_dataset.outputs_of_all(predictor, part))
    for name in names:
        recalibrate(name, outputs[name], labels)


if __name__ == "__main__":
    main()
