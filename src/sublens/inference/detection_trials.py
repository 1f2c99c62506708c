"""Simulated lenses with and without one subhalo on the arc, to which the detection limit of a network is fitted."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from sublens.inference.predictor import Predictor
from sublens.models import detection
from sublens.models.arc import PixelKind, features
from sublens.models.detection import MASSES_MSUN, Detection
from sublens.progress import Bar, Count, silent
from sublens.sim.one_subhalo import places_on_arc, with_subhalo
from sublens.sim.population import CLASSES, draw, noise_seeds
from sublens.sim.render import observe, render
from sublens.surveys.priors import Floats
from sublens.surveys.survey import Survey

PAIRS = 3_000
"""Lenses that a limit is fitted to, each simulated with and without a subhalo."""
SLICE = 200
"""Lenses that are simulated together."""
SEED = 28_112_026
"""Seed of these lenses, which are in no data set."""
NO = CLASSES.index("no")

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
    """Masses evenly spread in their logarithm over `MASSES_MSUN`."""
    return rng.uniform(*np.log10(MASSES_MSUN), len(x))


def fit(predictor: Predictor, survey: Survey, n: int = PAIRS, bar: Bar = silent) -> Detection:
    """The chance that a network finds one subhalo on the arc of a lens of this survey, from n simulated lenses."""
    trials = run(predictor, survey, n, bar=bar)
    p_no, has_subhalo = detection.threshold(trials.p_no_smooth), np.isfinite(trials.p_no)
    found = trials.p_no[has_subhalo] < p_no
    return detection.fit(
        trials.x[has_subhalo], trials.log_mass[has_subhalo], found, p_no=p_no, pixels=pixels_of(survey)
    )


def run(
    predictor: Predictor,
    survey: Survey,
    n: int,
    seed: int = SEED,
    choose_masses: MassChoice = any_mass,
    bar: Bar = silent,
) -> Trials:
    """Simulate n smooth lenses, then the same ones with a subhalo on the arc and other noise, and predict them all."""
    with bar(f"detection limit of {survey.name}", n) as advance:
        count, slices = Count(advance), []
        for numbers in (range(start, min(start + SLICE, n)) for start in range(0, n, SLICE)):
            slices.append(_run_slice(predictor, survey, seed, numbers, choose_masses))
            count.add(len(numbers))
    return Trials(*(np.concatenate(columns) for columns in zip(*slices, strict=True)))


def _run_slice(predictor: Predictor, survey: Survey, seed: int, numbers: range, choose_masses: MassChoice) -> Trials:
    rng, step = np.random.default_rng((seed, numbers.start)), len(CLASSES)
    smooth = range(numbers.start * step + CLASSES.index("no"), numbers.stop * step, step)
    truth = draw(survey, seed, "test", smooth)
    images = render(truth, survey)
    x, y = places_on_arc(truth, survey, images, rng)
    planes = observe(truth, images, survey, noise_seeds(seed, "test", smooth))
    lens_features = features(planes, pixels_of(survey))
    log_mass, p_no = choose_masses(lens_features, rng), np.full(len(truth), np.nan)
    whole = with_subhalo(truth, survey, x, y, np.nan_to_num(10**log_mass), rng)
    rows = np.flatnonzero(np.isfinite(log_mass) & (whole.scenes["halo_mass_msun"] > 0))
    if rows.size:
        some, seeds = (
            whole.take(rows),
            np.array(noise_seeds(seed, "test", range(smooth.start + 1, smooth.stop + 1, step)))[rows],
        )
        p_no[rows] = _p_no(predictor, observe(some, render(some, survey), survey, seeds.tolist()))
    return Trials(lens_features, log_mass, _p_no(predictor, planes), p_no)


def _p_no(predictor: Predictor, planes: NDArray[np.uint16]) -> Floats:
    """Probability of `no` for images [n, h, w], [n]."""
    return predictor.probs(planes)[:, predictor.classes.index("no")]


def pixels_of(survey: Survey) -> PixelKind:
    """Content of the planes of this survey's images."""
    return "counts"
