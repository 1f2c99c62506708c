"""Calibrates trained networks again, on fresh images of their survey, and renews their cards.

    python scripts/recalibrate.py lensnet mobilenetv3-small resnet18 efficientnet-b5
    python scripts/recalibrate.py lensnet-hst --survey hst-acs

Weights, graph and the Gaussians of the out-of-distribution score stay; so does the temperature where the images
cannot tell it from the best one. The detection limit is fitted anew, where there is one. Seed 7001 is used for nothing
else; `benchmarks/trust.py` and `benchmarks/survey.py` measure on seed 7002.
"""

import argparse
from dataclasses import replace

import numpy as np

from sublens.data.dataset import Part
from sublens.inference import detection_trials, predict_dataset
from sublens.inference.predictor import BatchPrediction, Predictor
from sublens.models import bundle, calibration, macro
from sublens.parallel.mapper import open_processes
from sublens.progress import visible
from sublens.sim.slices import slices
from sublens.surveys.presets import preset
from sublens.surveys.survey import Survey
from sublens.surveys.truth import Truth

SEED, IMAGES, WORKERS = 7001, 30_000, 2


def recalibrate(name: str, survey: Survey, output: BatchPrediction, truths: list[Truth]) -> None:
    """Fit the calibration of a network to its raw outputs for images of these scenes, and write it."""
    folder = bundle.locate(name)
    card = bundle.read_card(folder)
    before = bundle.load_calibration(folder, card)
    assert before is not None
    labels = np.concatenate([truth.scenes["label"] for truth in truths]).astype(np.int64)
    lens = output.macro
    contaminants = None if before.contaminant_score is None or lens is None else lens[:, macro.CONTAMINANT]
    after = calibration.refit(before, output.logits, labels, output.moments, contaminants)
    if lens is not None:
        true = np.concatenate([macro.values(*macro.lenses(truth.scenes)) for truth in truths])
        after = replace(after, macro_scales=macro.fit_scales(lens, true))
    entry = bundle.save_calibration(folder, after, after.n)
    bundle.save_card(folder, card.model_copy(update={"calibration": entry}))
    print(f"{name}: temperature {before.temperature:.4f} -> {after.temperature:.4f}, on {after.n:,} images")
    print(f"  cutoffs {after.cutoffs}, OOD threshold {after.ood_threshold:.4f}, offsets {after.ood_offsets}")
    print(f"  factors of the macromodel {before.macro_scales} -> {after.macro_scales}")
    if card.detection:
        detection = detection_trials.fit(Predictor.load(name), survey, bar=visible)
        bundle.save_card(folder, bundle.read_card(folder).model_copy(update={"detection": detection}))


def main() -> None:
    """Predict the fresh images with each network, and renew its card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--survey", default="common-test-1", help="preset of the images")
    parser.add_argument("--images", type=int, default=IMAGES)
    options = parser.parse_args()
    names, survey = options.bundles, preset(options.survey)
    others = [name for name in names if bundle.read_card(bundle.locate(name)).data.name != survey.name]
    if others:
        parser.error(f"{', '.join(others)} know another survey than {survey.name}; name theirs with --survey")
    predictors = {name: replace(Predictor.load(name), calibration=None) for name in names}
    outputs: dict[str, list[BatchPrediction]] = {name: [] for name in names}
    truths = []
    with open_processes(WORKERS) as mapper:
        for truth, counts, _ in slices(survey, SEED, "train", options.images, mapper):
            truths.append(truth)
            rows = np.arange(len(counts))
            part = Part((counts,), rows, truth.scenes["label"].astype(np.int64), rows.astype(str), None)
            for name, predictor in predictors.items():
                outputs[name].append(predict_dataset.outputs_of_all(predictor, part))
    for name in names:
        recalibrate(name, survey, predict_dataset.concatenate(outputs[name]), truths)


if __name__ == "__main__":
    main()
