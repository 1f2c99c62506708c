"""Lenses that are fitted to images, against the truth of simulated ones: Einstein radii.

    python benchmarks/lens_fits.py lensnet-hst hst-acs --lenses 300

New images of the survey (seed 7003, used for nothing else), with all its nuisances, are predicted by the network, then
fitted from what it measured. Prints how far either lies from the truth in the median, for how many lenses the Einstein
radius is off by more than 5 and 20 %, and the share within one standard deviation and two, by class; then what the
evidence gains by substructure beside the smooth lens. With --share it prints instead the share of the network's
standard deviation at which 68 % lie within one, from lenses of another seed (7004), which `sublens.inference.lens_fits`
holds as SHARE.
"""

import argparse
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from sublens.data.telescope_images import images
from sublens.images.pixels import Image
from sublens.inference import lens_fits
from sublens.inference.predictor import Prediction, Predictor, Row
from sublens.models import macro
from sublens.progress import Count, visible
from sublens.sim.population import CLASSES
from sublens.sim.render import simulate
from sublens.surveys.presets import preset
from sublens.surveys.survey import Survey
from sublens.surveys.truth import Truth

SEED, SHARE_SEED, PLAIN, BATCH = 7003, 7004, 10.0, 64
Floats = NDArray[np.float64]


def measure(network: str, survey: Survey, seed: int, n: int) -> tuple[Truth, Floats, Floats, Floats]:
    """The truth; `macro.COLUMNS` of the network and of the fits, [n, 6] each; and the `FittedLens` of each, [n, 3]."""
    predictor = Predictor.load(network)
    truth, codes = simulate(survey, seed, "test", range(n))
    pictures = images(truth, codes, survey)
    networks, fits, found = [], [], []
    with visible("fitting", n) as advance, lens_fits.fitting_threads() as pool:
        count = Count(advance)
        for start in range(0, n, BATCH):
            batch = pictures[start : start + BATCH]
            answers = predictor.predict_images([predictor.framed(image, None) for image in batch])
            for answer, row in zip(answers, pool.map(_fitted, answers, batch), strict=True):
                assert answer.macromodel
                assert row.prediction
                assert row.prediction.macromodel
                networks.append([answer.macromodel[name] for name in macro.COLUMNS])
                fits.append([row.prediction.macromodel[name] for name in macro.COLUMNS])
                found.append(row.fit or (np.nan, np.nan, np.nan))
                count.add(1)
    return truth, np.array(networks), np.array(fits), np.array(found)


def _fitted(answer: Prediction, image: Image) -> Row:
    return lens_fits.fitted(Row(Path(), prediction=answer), lens_fits.cut(image, None))


def line(name: str, columns: Floats, true: Floats) -> str:
    """A row of the table."""
    theta_e, sigma = columns[:, :2].T
    off = np.abs(theta_e / true[:, 0] - 1)
    within = [np.mean(np.abs(theta_e - true[:, 0]) <= n * sigma) for n in (1, 2)]
    return (
        f"| {name} | {len(off)} | {np.median(off):.1%} | {np.mean(off > 0.05):.0%}, {np.mean(off > 0.2):.0%} | "
        f"{within[0]:.0%}, {within[1]:.0%} | {np.median(sigma / theta_e):.1%} |"
    )


def share(stated: Floats, fits: Floats, chi2: Floats, true: Floats) -> float:
    """The `lens_fits.SHARE` at which a share `macro.COVERED` of Einstein radii lies within one standard deviation.

    stated: relative standard deviations of the network, [n].
    """
    worse2 = np.fmax(1, chi2)
    scatter2 = np.maximum((fits[:, 1] / fits[:, 0]) ** 2 / worse2 - (lens_fits.SHARE * stated) ** 2, 0)
    left2 = np.maximum((fits[:, 0] / true[:, 0] - 1) ** 2 / worse2 - scatter2, 0)
    return float(np.quantile(np.sqrt(left2) / stated, macro.COVERED))


def gains(truth: Truth, gained: Floats) -> None:
    """Print what log evidence is gained by one string or one subhalo, whichever gains more."""
    print("\n| | gain: 10 %, median, 90 % | above 10 | AUC against `no` |\n|---|---:|---:|---:|")
    labels, known = truth.scenes["label"], np.isfinite(gained)
    for label, name in enumerate(CLASSES):
        own, pair = gained[known & (labels == label)], known & np.isin(labels, (0, label))
        low, middle, high = np.quantile(own, [0.1, 0.5, 0.9])
        auc = f"{roc_auc_score(labels[pair] == label, gained[pair]):.2f}" if label else ""
        print(f"| {name} | {low:.1f}, {middle:.1f}, {high:.1f} | {np.mean(own > PLAIN):.0%} | {auc} |")


def main() -> None:
    """Print the table, or the share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("survey")
    parser.add_argument("--lenses", type=int, default=300)
    parser.add_argument("--share", action="store_true")
    args = parser.parse_args()
    survey, begin = preset(args.survey), perf_counter()
    truth, networks, fits, found = measure(args.network, survey, SHARE_SEED if args.share else SEED, args.lenses)
    true, chi2 = macro.values(*macro.lenses(truth.scenes)), found[:, 0]
    print(f"{(perf_counter() - begin) / args.lenses:.2f} s a lens; chi2 {np.nanmedian(chi2):.2f} in the median")
    if args.share:
        print(f"share: {share(networks[:, 1] / networks[:, 0], fits, chi2, true):.2f}")
        return
    print("| lenses | n | theta_e off | beyond 5 %, 20 % | in 1 sigma, 2 | sigma |")
    print("|---|---:|---:|---:|---:|---:|")
    for label, name in enumerate((*CLASSES, "all")):
        chosen = truth.scenes["label"] == label if label < len(CLASSES) else np.full(len(true), True)
        for kind, columns in (("network", networks), ("fit", fits)):
            print(line(f"{name}, {kind}", columns[chosen], true[chosen]))
    gains(truth, np.fmax(found[:, 1], found[:, 2]))


if __name__ == "__main__":
    main()
