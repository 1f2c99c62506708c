"""How much of the substructure in a survey's images no smooth lens can take over: what a classifier could see at best.

    python benchmarks/visibility.py hst-acs --lenses 300

New scenes (seed 7005, used for nothing else) are rendered with their substructure and without it, free of noise. What
tells the two apart, in the noise of the pixels, is compared with all that a fit (`sublens.modelling.fit`) leaves free:
the smooth lens, the lens galaxy's light and a source of any shape, with their priors. Prints, for either kind of
substructure, quantiles of the signal to noise that is left, and the AUC of an observer who knows what substructure to
look for in each image, and nothing else that the fit leaves free: no network can do better.
"""

import argparse

import numpy as np
from lens_fits import noise_of, psf
from numpy.typing import NDArray
from scipy import linalg
from sklearn.metrics import roc_auc_score

from sublens.modelling.fit import Fitter, Solution, Start, factor_of
from sublens.modelling.lens_image import Data, LensImage
from sublens.models import macro
from sublens.progress import visible
from sublens.sim.population import CLASSES, draw
from sublens.sim.render import render
from sublens.surveys.presets import preset
from sublens.surveys.survey import Survey
from sublens.surveys.truth import Truth, smoothed

SEED, DRAWS = 7005, 300
RADIUS = 2.4
Floats = NDArray[np.float64]


def left_over(truth: Truth, survey: Survey) -> Floats:
    """Signal to noise of the substructure of each scene: all of it, and what a fit leaves of it, [n, 2]."""
    smooth, scenes = smoothed(truth), truth.scenes
    plain, dented = (render(one, survey).double().numpy() for one in (smooth, truth))
    noise, known = noise_of(plain, truth), macro.targets(*macro.lenses(scenes))
    scale, signals = survey.camera.pixel_scale, []
    with visible("fitting", len(truth)) as advance:
        for row, scene in enumerate(scenes):
            point_spread = psf(truth, survey, row)
            data, other = (Data.of(LensImage(p[row], noise[row], point_spread, scale), RADIUS) for p in (plain, dented))
            fitter = Fitter.of(data, Start(scene["theta_e"], 0.02 * scene["theta_e"], *known[row, 1:]))
            solution = fitter.run(0.0)
            signals.append(_signals(fitter, solution, other.values - data.values))
            advance(row + 1, "")
    return np.array(signals)


def _signals(fitter: Fitter, solution: Solution, dent: Floats) -> tuple[float, float]:
    system, signal = fitter.system(solution), dent / fitter.noise
    shadow = system.columns.T.astype(np.float64) @ signal
    factor = factor_of(system.matrix, system.precisions)
    left2 = signal @ signal - shadow @ linalg.cho_solve((factor, True), shadow)
    return float(np.sqrt(signal @ signal)), float(np.sqrt(max(left2, 0)))


def best_auc(signals: Floats) -> float:
    """AUC of the likelihood ratio of substructure of known shape, of these signals to noise, against none."""
    normal = np.random.default_rng(SEED).normal(size=(2, DRAWS, len(signals))) * signals
    ratios = normal + np.array([-0.5, 0.5])[:, None, None] * signals**2
    labels = np.repeat([0, 1], ratios[0].size)
    return float(roc_auc_score(labels, ratios.ravel()))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("survey")
    parser.add_argument("--lenses", type=int, default=300)
    args = parser.parse_args()
    survey = preset(args.survey)
    truth = draw(survey, SEED, "test", range(args.lenses))
    truth = truth.take(np.flatnonzero(truth.scenes["label"] > 0))
    signals = left_over(truth, survey)
    print("| substructure | n | S/N, all of it | S/N left: 10 %, median, 90 % | above 5 | best AUC |")
    print("|---|---:|---:|---:|---:|---:|")
    for label, name in enumerate(CLASSES[1:], start=1):
        whole, left = signals[truth.scenes["label"] == label].T
        low, middle, high = np.quantile(left, [0.1, 0.5, 0.9])
        print(
            f"| {name} | {len(left)} | {np.median(whole):.1f} | {low:.1f}, {middle:.1f}, {high:.1f} | "
            f"{np.mean(left > 5):.0%} | {best_auc(left):.2f} |"
        )


if __name__ == "__main__":
    main()
