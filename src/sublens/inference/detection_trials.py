"""Simulated lenses with and without one subhalo on the arc, to which the detection limit of a network is fitted."""

from collections.abc import Callable, Sequence
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

PAIRS = 4_000
"""Lenses that a limit is fitted to, each simulated with and without a subhalo."""
PILOT = 0.25
"""Share of these whose subhaloes have any mass; those of the others lie around a first limit, where most is learned."""
AROUND = (-0.8, 0.6)
"""Range of these masses below and above the first limit, dex."""
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
    n_pilot = max(int(PILOT * n), 1)
    pilot = run(predictor, survey, range(n_pilot), bar=bar)
    first, (least, most) = _fit(pilot, survey), np.log10(MASSES_MSUN)

    def around_limit(x: Floats, rng: Generator) -> Floats:
        limits = np.nan_to_num(first.log_limits(x), nan=most)
        return (limits + rng.uniform(*AROUND, len(x))).clip(least, most)

    rest = run(predictor, survey, range(n_pilot, n), choose_masses=around_limit, bar=bar)
    return _fit(_joined([pilot, rest]), survey)


def _fit(trials: Trials, survey: Survey) -> Detection:
    p_no, rows = detection.threshold(trials.p_no_smooth), np.isfinite(trials.p_no)
    found = trials.p_no[rows] < p_no
    return detection.fit(trials.x[rows], trials.log_mass[rows], found, p_no=p_no, pixels=pixels_of(survey))


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
    planes = observe(truth, images, survey, noise_seeds(seed, "test", indices))
    x = features(planes, pixels_of(survey))
    log_mass, p_no = choose_masses(x, rng), np.full(len(truth), np.nan)
    places = places_on_arc(truth, survey, images, rng)
    rows = np.flatnonzero(np.isfinite(log_mass))
    whole = with_subhalo(truth.take(rows), survey, *(place[rows] for place in places), 10 ** log_mass[rows], rng)
    light = whole.scenes["halo_mass_msun"] > 0
    if light.any():
        rows, some = rows[light], whole.take(np.flatnonzero(light))
        seeds = np.array(noise_seeds(seed, "test", _indices(numbers, "sphere")))[rows].tolist()
        p_no[rows] = _p_no(predictor, observe(some, render(some, survey), survey, seeds))
    return Trials(x, log_mass, _p_no(predictor, planes), p_no)


def _indices(numbers: range, name: str) -> range:
    """Indices of the images of a class, given their numbers among those of that class."""
    label, step = CLASSES.index(name), len(CLASSES)
    return range(numbers.start * step + label, numbers.stop * step + label, step)


def _p_no(predictor: Predictor, planes: NDArray[np.uint16]) -> Floats:
    """Probability of `no` for images [n, h, w], [n]."""
    return predictor.probs(planes)[:, predictor.classes.index("no")]


def pixels_of(survey: Survey) -> PixelKind:
    """Content of the planes of this survey's images."""
    return "counts"
