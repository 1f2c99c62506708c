"""What the images of a survey hold of the substructure in them, once a lens model may take over what it can.

    python benchmarks/visibility.py hst-acs --lenses 180

New scenes (seed 7005, used for nothing else) are drawn with their substructure and without it, with the same noise.
Lenses are fitted to both (`sublens.modelling.search`), and once more with the true deflection of that substructure
beside the smooth lens; what log evidence is gained is what an observer has who knows which substructure to look for,
and nothing else. Prints quantiles of the gain, how often it is above 5 with substructure and without, and the AUC.
"""

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from sublens.data.telescope_images import noise_of, psf
from sublens.inference.lens_fits import fitting_threads
from sublens.modelling.fitter import Start
from sublens.modelling.lens_image import LensImage
from sublens.modelling.search import search
from sublens.models import macro
from sublens.progress import Count, visible
from sublens.sim.population import CLASSES, draw
from sublens.sim.render import deflection, render
from sublens.surveys.presets import preset
from sublens.surveys.survey import Survey
from sublens.surveys.truth import Truth, smoothed

SEED, PLAIN = 7005, 5.0
Floats = NDArray[np.float64]


def bend(truth: Truth, survey: Survey, x: Floats, y: Floats) -> NDArray[np.float32]:
    """Deflection of the substructure of one scene beside the smooth lens of the same ring, [2, n, n]."""
    places = [torch.from_numpy(plane)[None] for plane in (x, y)]
    whole, smooth = (torch.cat(deflection(scene, survey, *places)) for scene in (truth, smoothed(truth)))
    return (whole - smooth).float().numpy()


def gains(truth: Truth, survey: Survey, row: int) -> tuple[float, float]:
    """Log evidence gained by the true substructure, in the image without it and in that with it."""
    scene = truth.take(np.array([row]))
    known, normal = macro.targets(*macro.lenses(scene.scenes))[0], np.random.default_rng((SEED, row)).normal
    theta_e = float(scene.scenes["theta_e"][0])
    start, point_spread = Start(theta_e, 0.03 * theta_e, float(known[1]), float(known[2])), psf(scene, survey, 0)
    results = []
    for drawn in (smoothed(scene), scene):
        light = render(drawn, survey).double().numpy()
        noise = noise_of(light, scene)[0]
        image = LensImage(light[0] + noise * normal(size=noise.shape), noise, point_spread, survey.camera.pixel_scale)
        without, with_it = (search(image, start, what)[0][1] for what in (None, partial(bend, scene, survey)))
        results.append(with_it.log_evidence - without.log_evidence)
    return results[0], results[1]


def all_gains(truth: Truth, survey: Survey) -> Floats:
    """`gains` of each scene, [n, 2]."""
    each: Callable[[int], tuple[float, float]] = partial(gains, truth, survey)
    with visible("fitting", len(truth)) as advance, fitting_threads() as pool:
        count, pairs = Count(advance), []
        for pair in pool.map(each, range(len(truth))):
            pairs.append(pair)
            count.add(1)
    return np.array(pairs)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("survey")
    parser.add_argument("--lenses", type=int, default=180)
    args = parser.parse_args()
    survey = preset(args.survey)
    truth = draw(survey, SEED, "test", range(args.lenses))
    truth = truth.take(np.flatnonzero(truth.scenes["label"] > 0))
    gained = all_gains(truth, survey)
    print("| substructure | n | gain: 25 %, median, 75 % | above 5 | above 5 without it | AUC |")
    print("|---|---:|---:|---:|---:|---:|")
    for label, name in enumerate(CLASSES[1:], start=1):
        without, with_it = gained[truth.scenes["label"] == label].T
        low, middle, high = np.quantile(with_it, [0.25, 0.5, 0.75])
        auc = roc_auc_score(np.repeat([0, 1], len(without)), np.concatenate([without, with_it]))
        print(
            f"| {name} | {len(without)} | {low:.1f}, {middle:.1f}, {high:.1f} | {np.mean(with_it > PLAIN):.0%} | "
            f"{np.mean(without > PLAIN):.0%} | {auc:.2f} |"
        )


if __name__ == "__main__":
    main()
