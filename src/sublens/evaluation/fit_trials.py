"""Lens models of simulated images, to which the classes and detection limits that they tell are fitted."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from sublens.data.telescope_images import images
from sublens.images.pixels import Image
from sublens.inference import lens_fits
from sublens.inference.predictor import BATCH, Prediction, Predictor, Row
from sublens.models import detection, fit_classes
from sublens.models.detection import Detection
from sublens.models.fit_classes import FitClasses
from sublens.observation.defects import marks
from sublens.observation.exposure import observe
from sublens.progress import Bar, Count, silent
from sublens.sim.one_subhalo import places_on_arc, with_subhalo
from sublens.sim.population import CLASSES, draw, noise_seeds
from sublens.sim.render import render, simulate
from sublens.surveys.priors import Floats
from sublens.surveys.survey import Survey
from sublens.surveys.truth import Truth

SEEDS, SUBHALO_SEED = (8100, 8200), 8300
"""Seeds of the lenses of all classes, half of them each, and of those with one subhalo, which are in no data set."""
LOG_MASSES = (9.0, 11.5)
"""Range of log10 of the solar masses of these subhaloes, M200."""

Trial = tuple[Prediction, Row]
"""The network's answer for an image, and the row with the lens that was fitted to it from there."""


def classes(survey: Survey, seed: int, n: int) -> tuple[Truth, list[Image]]:
    """n new scenes of all classes with all nuisances, and their images."""
    truth, codes = simulate(survey, seed, "test", range(n))
    return truth, images(truth, codes, survey)


def one_subhalo(
    survey: Survey, seed: int, n: int, log_masses: tuple[float, float] = LOG_MASSES
) -> tuple[Floats, list[Image]]:
    """log10 of the solar masses, evenly spread, of one subhalo on the arc of up to n new smooth lenses, and images.

    Lenses that the subhalo outweighs are left out.
    """
    indices, rng = range(0, n * len(CLASSES), len(CLASSES)), np.random.default_rng((seed, n))
    truth, log_mass = draw(survey, seed, "test", indices), rng.uniform(*log_masses, n)
    right, up = places_on_arc(truth, survey, render(truth, survey), rng)
    whole = with_subhalo(truth, survey, right, up, 10**log_mass, rng)
    rows = np.flatnonzero(whole.scenes["halo_mass_msun"] > 0)
    whole, seeds = whole.take(rows), np.array(noise_seeds(seed, "test", indices))[rows].tolist()
    codes = observe(whole, render(whole, survey), survey, marks(survey, whole.extra_or_blank()), seeds)
    return log_mass[rows], images(whole, codes, survey)


def run(
    predictor: Predictor, pictures: Sequence[Image], told: FitClasses | None = None, bar: Bar = silent
) -> list[Trial]:
    """Predict images and fit lenses to them, as many at a time as there are threads; told: see `lens_fits.fitted`."""
    trials: list[Trial] = []
    with bar("fitting", len(pictures)) as advance, lens_fits.fitting_threads() as pool:
        count = Count(advance)
        for start in range(0, len(pictures), BATCH):
            batch = pictures[start : start + BATCH]
            answers = predictor.predict_images([predictor.framed(image, None) for image in batch])
            for answer, row in zip(answers, pool.map(partial(_fitted, told), answers, batch), strict=True):
                trials.append((answer, row))
                count.add(1)
    return trials


def _fitted(told: FitClasses | None, answer: Prediction, image: Image) -> Row:
    return lens_fits.fitted(Row(Path(), prediction=answer), lens_fits.cut(image, None), told)


def calibrate(predictor: Predictor, survey: Survey, n: int, n_subhaloes: int, bar: Bar = silent) -> FitClasses:
    """Fit what lens models tell of the classes to n simulated lenses, and of one subhalo to so many."""
    predictor = replace(predictor, fit_classes=None)
    labels: list[int] = []
    trials: list[Trial] = []
    for seed in SEEDS:
        truth, pictures = classes(survey, seed, n // len(SEEDS))
        labels += truth.scenes["label"].tolist()
        trials += run(predictor, pictures, bar=bar)
    told = fit_to(np.array(labels), trials)
    log_mass, pictures = one_subhalo(survey, SUBHALO_SEED, n_subhaloes)
    return with_limit(told, np.array(labels), trials, log_mass, run(predictor, pictures, bar=bar))


def fit_to(labels: np.ndarray, trials: Sequence[Trial]) -> FitClasses:
    """The regression, from lenses of known classes [n]; those that nothing was fitted to are left out."""
    rows = [number for number, (_, row) in enumerate(trials) if row.fit]
    chosen = [trials[number] for number in rows]
    return fit_classes.fit(_features(chosen), labels[rows], np.array([row.fit.chi2 for _, row in chosen if row.fit]))


def with_limit(
    told: FitClasses, labels: np.ndarray, trials: Sequence[Trial], log_mass: Floats, subhaloes: Sequence[Trial]
) -> FitClasses:
    """The same with a detection limit.

    labels, trials: lenses of all classes, [n]. log_mass, subhaloes: those with one subhalo each, [m].
    """
    smooth = [trial for label, trial in zip(labels, trials, strict=True) if label == 0 and trial[1].fit]
    some = np.array([row.fit is not None for _, row in subhaloes])
    chosen = [trial for trial in subhaloes if trial[1].fit]
    least = detection.threshold(told.probs(_features(smooth))[:, 0])
    x = fit_classes.detection_features([row.fit for _, row in chosen if row.fit])
    found: Detection = detection.fit(
        x, log_mass[some], told.probs(_features(chosen))[:, 0] < least, least, LOG_MASSES[1]
    )
    return told.model_copy(update={"detection": found})


def _features(trials: Sequence[Trial]) -> Floats:
    probs = np.array([list(answer.probs.values()) for answer, _ in trials])
    return fit_classes.features(probs, [row.fit for _, row in trials if row.fit])
