"""A network for telescope images on new images of its survey, all nuisances included.

    python benchmarks/survey.py lensnet-hst hst-acs --images 10000

On fresh images (seed 7002, used for nothing else): the macro AUC and that of each class against the others, accuracy,
the calibration error beside that of a perfectly calibrated network, the coverage of the prediction sets and the false
alarms of the out-of-distribution flag in each class, and how far the macromodels lie from the true ones. Intervals are
of 95 %.
"""

import argparse

import numpy as np
from numpy.typing import NDArray

from sublens import metrics
from sublens.data.dataset import Part
from sublens.inference import predict_dataset
from sublens.inference.predictor import BatchPrediction, Predictor
from sublens.models import macro
from sublens.parallel.mapper import open_processes
from sublens.sim.population import CLASSES
from sublens.sim.slices import slices
from sublens.surveys.presets import preset
from sublens.surveys.truth import Truth

SEED, WORKERS = 7002, 2
Flags = NDArray[np.bool_]


def predicted(predictor: Predictor, survey: str, n: int) -> tuple[list[Truth], BatchPrediction]:
    """Scenes of new images of the survey, a slice each, and the predictions of all."""
    with open_processes(WORKERS) as mapper:
        rows = [
            (truth, predict_dataset.outputs_of_all(predictor, part(counts, truth)))
            for truth, counts, _ in slices(preset(survey), SEED, "test", n, mapper)
        ]
    return [truth for truth, _ in rows], predict_dataset.concatenate([output for _, output in rows])


def part(counts: NDArray[np.uint16], truth: Truth) -> Part:
    rows = np.arange(len(counts))
    return Part((counts,), rows, truth.scenes["label"].astype(np.int64), rows.astype(str), truth)


def by_class(flags: Flags, labels: NDArray[np.int64]) -> str:
    """The share of flags that are set and its interval, of all images and of those of each class."""
    parts = {"all": flags, **{name: flags[labels == label] for label, name in enumerate(CLASSES)}}
    shares = {name: metrics.wilson(own.mean(), len(own)) | {"value": own.mean()} for name, own in parts.items()}
    return ", ".join("{} {value:.1%} [{low:.1%}, {high:.1%}]".format(name, **own) for name, own in shares.items())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help="a run's folder, or the name of a bundle")
    parser.add_argument("survey", help="a survey's TOML file, or the name of a preset")
    parser.add_argument("--images", type=int, default=10_000)
    options = parser.parse_args()
    predictor = Predictor.load(options.network)
    assert predictor.calibration is not None
    truths, output = predicted(predictor, options.survey, options.images)
    labels, probs = np.concatenate([truth.scenes["label"] for truth in truths]).astype(np.int64), output.probs
    assert output.is_ood is not None
    assert output.macromodels is not None
    sets = predictor.calibration.sets(probs)
    print("macro AUC {value:.4f} [{low:.4f}, {high:.4f}]".format(**metrics.macro_auc_interval(probs, labels)))
    for label, name in enumerate(CLASSES):
        print(f"  {name} against the others {metrics.auc(probs[:, label], labels == label):.4f}")
    print(f"accuracy {np.mean(probs.argmax(1) == labels):.3f}")
    floor = metrics.calibration_floor(probs)
    print(f"calibration error {metrics.calibration_error(probs, labels):.4f}, floor {floor['mean']:.4f}")
    print(f"coverage of the sets: {by_class(sets[np.arange(len(labels)), labels], labels)}")
    print(f"classes in a set: {', '.join(f'{size}: {(sets.sum(1) == size).mean():.1%}' for size in range(4))}")
    print(f"flagged: {by_class(output.is_ood, labels)}")
    true = np.concatenate([macro.values(*macro.lenses(truth.scenes)) for truth in truths])
    for name, quality in macro.score(output.macromodels, true).items():
        print(
            "{}: median off {median:.3g}, 90 % within {p90:.3g}, {coverage:.1%} within one sigma".format(
                name, **quality
            )
        )


if __name__ == "__main__":
    main()
