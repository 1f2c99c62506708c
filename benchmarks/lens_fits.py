"""Lenses that are fitted to images, against the truth of simulated ones: Einstein radii, classes and subhaloes.

    python benchmarks/lens_fits.py lensnet-hst hst-acs --lenses 300 --subhaloes 150

New images of the survey (seed 7003, used for nothing else), with all its nuisances, are predicted by the network, then
fitted from what it measured. Prints how far either lies from the truth in the median, for how many lenses the Einstein
radius is off by more than 5 and 20 %, and the share within one standard deviation and two, by class; then the AUC of
either, the calibration error, and how often prediction sets hold the truth. With --subhaloes lenses with one subhalo of
10^9 to 10^11.5 solar masses on the arc (seed 7006) are fitted as well: the share found at the false positives that are
stated, by mass, and by the limit that their lens was given. With --share it prints instead the share of the network's
standard deviation at which 68 % of Einstein radii lie within one, from lenses of another seed (8100, those
that classes are calibrated on), which `sublens.inference.lens_fits` holds as SHARE.
"""

import argparse
from itertools import pairwise
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from sublens.evaluation import fit_trials
from sublens.evaluation.fit_trials import Trial
from sublens.inference import lens_fits
from sublens.inference.predictor import Prediction, Predictor
from sublens.metrics import calibration_error, calibration_floor, macro_auc_interval, wilson
from sublens.models import macro
from sublens.progress import visible
from sublens.sim.population import CLASSES
from sublens.surveys.presets import preset
from sublens.surveys.survey import Survey

SEED, SUBHALO_SEED = 7003, 7006
MASS_EDGES = (9.0, 9.5, 10.0, 10.5, 11.0, 11.5)
Floats = NDArray[np.float64]


def columns(trials: list[Trial]) -> tuple[Floats, Floats, Floats]:
    """The `macro.COLUMNS` of the network and of the fits, [n, 6] each; and the fits' chi2, [n]."""
    networks = [[answer.macromodel[name] for name in macro.COLUMNS] for answer, _ in trials if answer.macromodel]
    fits = [
        [row.prediction.macromodel[name] for name in macro.COLUMNS]
        for _, row in trials
        if row.prediction and row.prediction.macromodel
    ]
    return np.array(networks), np.array(fits), np.array([row.fit.chi2 if row.fit else np.nan for _, row in trials])


def answers(trials: list[Trial]) -> dict[str, list[Prediction]]:
    """What the network and the fits say of each image."""
    return {
        "network": [answer for answer, _ in trials],
        "fit": [row.prediction for _, row in trials if row.prediction],
    }


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


def einstein_radii(trials: list[Trial], true: Floats, labels: NDArray[np.int64]) -> None:
    """Print the table of Einstein radii."""
    networks, fits, _ = columns(trials)
    print("| lenses | n | theta_e off | beyond 5 %, 20 % | in 1 sigma, 2 | sigma |")
    print("|---|---:|---:|---:|---:|---:|")
    for label, name in enumerate((*CLASSES, "all")):
        chosen = labels == label if label < len(CLASSES) else np.full(len(true), True)
        for kind, values in (("network", networks), ("fit", fits)):
            print(line(f"{name}, {kind}", values[chosen], true[chosen]))


def classes(trials: list[Trial], labels: NDArray[np.int64]) -> None:
    """Print what is told of the classes."""
    print("\n| | macro AUC | no, sphere, vort | calibration error (perfect) | sets hold the truth, hold one class |")
    print("|---|---|---|---|---|")
    for kind, said in answers(trials).items():
        probs = np.array([list(each.probs.values()) for each in said])
        auc, each = macro_auc_interval(probs, labels), [roc_auc_score(labels == k, p) for k, p in enumerate(probs.T)]
        sets = [answer.prediction_set for answer in said]
        held = [
            np.mean(
                [
                    name in members
                    for members, own in zip(sets, labels, strict=True)
                    if members is not None and own == label
                ]
            )
            for label, name in enumerate(CLASSES)
        ]
        single = np.mean([len(members) == 1 for members in sets if members is not None])
        print(
            f"| {kind} | {auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}] | "
            f"{', '.join(f'{value:.3f}' for value in each)} | "
            f"{calibration_error(probs, labels):.3f} ({calibration_floor(probs)['value']:.3f}) | "
            f"{', '.join(f'{value:.0%}' for value in held)}; {single:.0%} |"
        )


def subhaloes(predictor: Predictor, survey: Survey, smooth: list[Trial], n: int) -> None:
    """Print which shares of subhaloes are found, by mass and by the limits of their lenses."""
    limit_of = predictor.fit_classes and predictor.fit_classes.detection
    if not limit_of:
        return
    log_mass, pictures = fit_trials.one_subhalo(survey, SUBHALO_SEED, n)
    rows = [row.prediction for _, row in fit_trials.run(predictor, pictures, predictor.fit_classes, visible)]
    found = np.array([row is not None and row.probs["no"] < limit_of.p_no for row in rows])
    alarms = np.array([row.prediction.probs["no"] < limit_of.p_no for _, row in smooth if row.prediction])
    print(f"\nFalse positives: {share_text(alarms)}, to be 10 %.\n\n| subhaloes | n | found |\n|---|---:|---|")
    for low, high in pairwise(MASS_EDGES):
        chosen = (log_mass >= low) & (log_mass < high)
        print(f"| 10^{low:.1f} to 10^{high:.1f} Msun | {chosen.sum()} | {share_text(found[chosen])} |")
    limits = np.array([np.nan if row is None or row.limit_msun is None else np.log10(row.limit_msun) for row in rows])
    print(f"| in lenses without a limit | {np.isnan(limits).sum()} | {share_text(found[np.isnan(limits)])} |")
    above = log_mass - limits
    for low, high in ((-np.inf, -0.5), (-0.5, -0.15), (-0.15, 0.15), (0.15, 0.5), (0.5, np.inf)):
        chosen = (above >= low) & (above < high)
        print(f"| {low:+.2f} to {high:+.2f} dex above the limit | {chosen.sum()} | {share_text(found[chosen])} |")


def share_text(flags: NDArray[np.bool_]) -> str:
    """A share with its 95 % interval."""
    if not len(flags):
        return "-"
    value = wilson(float(flags.mean()), len(flags))
    return f"{value['value']:.0%} [{value['low']:.0%}, {value['high']:.0%}]"


def main() -> None:
    """Print the tables, or the share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("survey")
    parser.add_argument("--lenses", type=int, default=300)
    parser.add_argument("--subhaloes", type=int, default=0)
    parser.add_argument("--share", action="store_true")
    args = parser.parse_args()
    predictor, survey, begin = Predictor.load(args.network), preset(args.survey), perf_counter()
    truth, pictures = fit_trials.classes(survey, fit_trials.SEEDS[0] if args.share else SEED, args.lenses)
    trials = fit_trials.run(predictor, pictures, predictor.fit_classes, visible)
    true, labels = macro.values(*macro.lenses(truth.scenes)), truth.scenes["label"].astype(np.int64)
    networks, fits, chi2 = columns(trials)
    print(f"{(perf_counter() - begin) / args.lenses:.2f} s a lens; chi2 {np.nanmedian(chi2):.2f} in the median")
    if args.share:
        print(f"share: {share(networks[:, 1] / networks[:, 0], fits, chi2, true):.2f}")
        return
    einstein_radii(trials, true, labels)
    classes(trials, labels)
    if args.subhaloes:
        smooth = [trial for trial, label in zip(trials, labels, strict=True) if label == 0]
        subhaloes(predictor, survey, smooth, args.subhaloes)


if __name__ == "__main__":
    main()
