"""Simulated lenses with and without one subhalo on the arc, to which the detection limit of a network is fitted."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from sublens.data.dataset import Dataset
from sublens.errors import ConfigError
from sublens.inference.predictor import BatchPrediction, Predictor
from sublens.models import detection
from sublens.models.detection import LOG_MASSES, Detection
from sublens.observation.defects import marks
from sublens.observation.exposure import observe
from sublens.progress import Bar, Count, silent
from sublens.sim.one_subhalo import places_on_arc, with_subhalo
from sublens.sim.population import CLASSES, draw, noise_seeds
from sublens.sim.render import render
from sublens.surveys.priors import Floats
from sublens.surveys.survey import Survey

PAIRS = 4_000
"""Lenses that a limit is fitted to, each simulated with and without a subhalo."""
PILOT = 0.25
"""Share of these whose subhaloes have any mass; those of the others lie around a first limit, where most is learned."""
AROUND = (-0.8, 0.6)
"""Range of these masses below and above the first limit, dex; the law of the fit needs to hold there alone."""
STEP, LEVEL = 0.25, 0.03
"""Width of the bins of mass in which the shares found are compared, dex, and how much less than the peak counts as
equal."""
SLICE = 200
"""Lenses that are simulated together."""
SEED = 28_112_026
"""Seed of these lenses, which are in no data set."""

MassChoice = Callable[[Floats, Generator], Floats]
"""From the features of smooth lenses [n, k] to log10 of the solar masses of the subhaloes that they get, [n]; NaN for
none."""


class Trials(NamedTuple):
    """Lenses and a network's answers for them."""

    x: Floats
    """Features of the lenses without a subhalo, [n, k]."""
    log_mass: Floats
    """log10 of the solar masses of the subhaloes, M200 of extended ones, [n]; NaN where there is none."""
    p_no_smooth: Floats
    """Probability of `no` without the subhalo, [n]."""
    p_no: Floats
    """Probability of `no` with it, [n]; NaN where there is none."""


def any_mass(x: Floats, rng: Generator) -> Floats:
    """Masses evenly spread in their logarithm over `LOG_MASSES`."""
    return rng.uniform(*LOG_MASSES, len(x))


def fit_where_known(predictor: Predictor, dataset: Dataset, bar: Bar = silent) -> Detection | None:
    """`fit` for the survey that a data set was simulated by.

    None for counts and for images of unknown origin; and, with a warning, where a file that the survey needs is gone.
    """
    if dataset.survey is None or dataset.pixels == "counts" or dataset.classes != CLASSES:
        return None
    try:
        return fit(predictor, dataset.survey, PAIRS, bar)
    except ConfigError as err:
        warnings.warn(f"The network gets no detection limits: {err}", stacklevel=2)
        return None


def fit(predictor: Predictor, survey: Survey, n: int = PAIRS, bar: Bar = silent) -> Detection:
    """The chance that a network finds one subhalo on the arc of a lens of this survey, from n simulated lenses.

    It is fitted to masses near a first limit. Masses beyond the peak of the share found are left out: a network that
    learned from lighter subhaloes may find heavier ones less often again.
    """
    pilot = run(predictor, survey, range(round(PILOT * n)), bar=bar)
    log_most = _peak(pilot)
    first = _fit(pilot, np.isfinite(pilot.log_mass), log_most)
    choose_masses = partial(_masses_around, first)
    rest = run(predictor, survey, range(len(pilot.x), n), choose_masses=choose_masses, bar=bar)
    trials = _joined([pilot, rest])
    off = trials.log_mass - _limits(first, trials.x)
    return _fit(trials, (off >= AROUND[0]) & (off <= AROUND[1]), log_most)


def _peak(trials: Trials) -> float:
    """log10 of the solar masses up to which no fewer are found the heavier they are: the end of the last high bin."""
    p_no, edges = detection.threshold(trials.p_no_smooth), np.arange(*LOG_MASSES, STEP) + STEP
    place = np.searchsorted(edges, trials.log_mass)
    detected = np.bincount(place, trials.p_no < p_no, minlength=len(edges))
    share = detected / np.maximum(np.bincount(place, np.isfinite(trials.p_no), minlength=len(edges)), 1)
    return float(edges[np.flatnonzero(share >= share.max() - LEVEL)[-1]])


def _masses_around(first: Detection, x: Floats, rng: Generator) -> Floats:
    return (_limits(first, x) + rng.uniform(*AROUND, len(x))).clip(LOG_MASSES[0], first.log_most)


def _limits(fitted: Detection, x: Floats) -> Floats:
    """log10 of the limits, solar masses, [n]; the greatest mass in place of none."""
    return np.nan_to_num(fitted.log_limits(x), nan=fitted.log_most)


def _fit(trials: Trials, rows: NDArray[np.bool_], log_most: float) -> Detection:
    """The chance, from these rows of the trials."""
    p_no, rows = (
        detection.threshold(trials.p_no_smooth),
        rows & np.isfinite(trials.p_no) & (trials.log_mass <= log_most),
    )
    return detection.fit(trials.x[rows], trials.log_mass[rows], trials.p_no[rows] < p_no, p_no, log_most)


def run(
    predictor: Predictor,
    survey: Survey,
    numbers: range,
    seed: int = SEED,
    choose_masses: MassChoice = any_mass,
    bar: Bar = silent,
) -> Trials:
    """Simulate smooth lenses, then the same ones with a subhalo on the arc and other noise, and predict them all.

    numbers: which lenses of the seed, one after the other.
    """
    with bar(f"detection limit of {survey.name}", len(numbers)) as advance:
        count, slices = Count(advance), []
        for start in range(0, len(numbers), SLICE):
            slices.append(_run_slice(predictor, survey, seed, numbers[start : start + SLICE], choose_masses))
            count.add(len(slices[-1].x))
    return _joined(slices)


def _joined(parts: Sequence[Trials]) -> Trials:
    return Trials(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _run_slice(predictor: Predictor, survey: Survey, seed: int, numbers: range, choose_masses: MassChoice) -> Trials:
    rng, indices = np.random.default_rng((seed, numbers.start)), _indices(numbers, "no")
    truth = draw(survey, seed, "test", indices)
    images = render(truth, survey)
    struck = marks(survey, truth.extra_or_blank())
    planes = observe(truth, images, survey, struck, noise_seeds(seed, "test", indices))
    smooth = predictor.forward(planes)
    x = predictor.ring_features(planes, smooth.macromodels)
    log_mass, p_no = choose_masses(x, rng), np.full(len(truth), np.nan)
    right, up = places_on_arc(truth, survey, images, rng)
    rows = np.flatnonzero(np.isfinite(log_mass))
    whole = with_subhalo(truth.take(rows), survey, right[rows], up[rows], 10 ** log_mass[rows], rng)
    light = whole.scenes["halo_mass_msun"] > 0
    if light.any():
        rows, some = rows[light], whole.take(np.flatnonzero(light))
        seeds = np.array(noise_seeds(seed, "test", _indices(numbers, "sphere")))[rows].tolist()
        with_one = predictor.forward(
            observe(some, render(some, survey), survey, marks(survey, some.extra_or_blank()), seeds)
        )
        p_no[rows] = _p_no(with_one)
    return Trials(x, log_mass, _p_no(smooth), p_no)


def _indices(numbers: range, name: str) -> range:
    """Indices of the images of a class, given their numbers among those of that class."""
    label, step = CLASSES.index(name), len(CLASSES)
    return range(numbers.start * step + label, numbers.stop * step + label, step)


def _p_no(output: BatchPrediction) -> Floats:
    """Probability of `no` for each image, [n]."""
    return output.probs[:, output.classes.index("no")]
