"""How much of what is no lens of a survey's kind a network flags as out of distribution.

    python benchmarks/contaminants.py runs/hst-acs hst-acs --images 1000

On images of each kind of contaminant (seed 7003) with the survey's camera, noise, neighbours and defects: the share
that is flagged, with Wilson's 95 % interval, and the AUROC of the out-of-distribution score against the survey's
lenses. Once with the parameters that training draws from by default, and once from priors that reach beyond them. A
column says which kinds the survey's training holds. Then the share flagged of as many of the survey's lenses.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sublens import metrics
from sublens.inference.predictor import BATCH, Predictor
from sublens.sim.population import CLASSES
from sublens.sim.render import simulate
from sublens.surveys.contaminants import KINDS, Contaminants
from sublens.surveys.presets import preset
from sublens.surveys.priors import Prior
from sublens.surveys.survey import Survey

SEED = 7003
SLICE = 250
"""Images that are simulated together."""
BEYOND = {
    "brightness": Prior(kind="log_uniform", values=(0.03, 3.0)),
    "size": Prior(kind="uniform", values=(0.2, 2.5)),
    "separation": Prior(kind="uniform", values=(0.1, 2.5)),
    "quasar": Prior(kind="log_uniform", values=(1.0, 300.0)),
}
"""Priors of contaminants that are wider than those of a training."""


class Scores:
    """Out-of-distribution scores and flags of simulated images, and their labels."""

    def __init__(self, predictor: Predictor, survey: Survey, n: int, contaminants: Contaminants | None) -> None:
        parts, labels = [], []
        for start in range(0, n, SLICE):
            indices = range(start, min(start + SLICE, n))
            truth, planes = simulate(survey, SEED, "test", indices, contaminants=contaminants)
            parts += [predictor.forward(planes[i : i + BATCH]) for i in range(0, len(planes), BATCH)]
            labels.append(truth.scenes["label"])
        self.labels = np.concatenate(labels)
        self.scores = np.concatenate([part.ood for part in parts if part.ood is not None])
        self.flags = np.concatenate([part.is_ood for part in parts if part.is_ood is not None])


def wilson(flags: NDArray[np.bool_]) -> str:
    """The share of flags that are set, and its 95 % interval, in per cent."""
    interval = stats.binomtest(int(flags.sum()), len(flags)).proportion_ci(method="wilson")
    return f"{flags.mean():.1%} [{interval.low:.1%}, {interval.high:.1%}]"


def cells(others: Scores, lenses: Scores) -> str:
    """The share flagged, and the AUROC of the score against that of lenses."""
    scores = np.concatenate([lenses.scores, others.scores])
    return f"{wilson(others.flags)} | {metrics.auc(scores, np.arange(len(scores)) >= len(lenses.scores)):.4f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help="a run's folder, or the name of a bundle")
    parser.add_argument("survey", help="a survey's TOML file, or the name of a preset")
    parser.add_argument("--images", type=int, default=1_000)
    options = parser.parse_args()
    predictor, survey = Predictor.load(str(Path(options.network))), preset(options.survey)
    trained = survey.contaminants.kinds if survey.contaminants else ()
    lenses = Scores(predictor, survey, options.images, None)
    print("| kind | in training | flagged | AUROC | flagged beyond | AUROC |")
    print("|---|---|---:|---:|---:|---:|")
    for kind in KINDS:
        near = Contaminants.alone(kind)
        sets = (near, near.model_copy(update=BEYOND))
        rows = [cells(Scores(predictor, survey, options.images, own), lenses) for own in sets]
        print(f"| {kind} | {'yes' if kind in trained else 'no'} | {' | '.join(rows)} |", flush=True)
    parts = {"all": lenses.flags, **{name: lenses.flags[lenses.labels == n] for n, name in enumerate(CLASSES)}}
    print("lenses flagged:", ", ".join(f"{name} {wilson(flags)}" for name, flags in parts.items()))


if __name__ == "__main__":
    main()
