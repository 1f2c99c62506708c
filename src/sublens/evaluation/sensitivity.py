"""The detection limits of a network held against new simulations, and the share of subhaloes found by mass."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sublens import metrics
from sublens.inference import detection_trials
from sublens.inference.predictor import Predictor
from sublens.models.detection import Detection
from sublens.progress import Bar, silent
from sublens.surveys.priors import Floats
from sublens.surveys.survey import Survey

SEED = 28_112_027
"""Seed of the new lenses, to which nothing is fitted."""
LIMIT_BINS = 5
"""Bins of the detection limit, of as many lenses each."""
MASS_BINS = (1e9, 10**9.5, 1e10, 10**10.5)
"""Edges of the bins of mass, solar masses: those of Tsang et al. 2024, arXiv:2401.16624, and two beyond."""


class FoundShare(NamedTuple):
    """Share of the subhaloes of one bin that are found."""

    low_msun: float
    high_msun: float
    """Edges of the bin."""
    n: int
    """Subhaloes in it."""
    share: dict[str, float]
    """The share as `value`, with `low` and `high`, its 95 % interval; NaN in an empty bin."""


class LimitCheck(NamedTuple):
    """What becomes of subhaloes whose masses are the limits of their lenses."""

    bins: list[FoundShare]
    """By limit; the share is `detection.FOUND` where limits are right."""
    false_positives: dict[str, float]
    """Share of smooth lenses in which substructure counts as found, with its interval."""
    without_limit: float
    """Share of lenses that have no limit, as not even the greatest mass would be found."""


def check_limits(
    predictor: Predictor, detection: Detection, survey: Survey, n: int, seed: int = SEED, bar: Bar = silent
) -> LimitCheck:
    """Give each of n new lenses a subhalo as heavy as its limit, and count those that are found."""
    trials = detection_trials.run(predictor, survey, range(n), seed, lambda x, rng: detection.log_limits(x), bar)
    has_subhalo = np.isfinite(trials.p_no)
    masses, detected = trials.log_mass[has_subhalo], trials.p_no[has_subhalo] < detection.p_no
    edges = np.quantile(masses, np.linspace(0, 1, LIMIT_BINS + 1)) if masses.size else np.zeros(0)
    alarms = float((trials.p_no_smooth < detection.p_no).mean())
    without = float(np.isnan(trials.log_mass).mean())
    return LimitCheck(_shares(masses, detected, edges), metrics.wilson(alarms, n), without)


def completeness(
    predictor: Predictor, detection: Detection, survey: Survey, n: int, seed: int = SEED, bar: Bar = silent
) -> list[FoundShare]:
    """Share of subhaloes found in `MASS_BINS`, for n new lenses with one on the arc each, evenly drawn in log mass."""
    least, most = np.log10(MASS_BINS)[[0, -1]]
    trials = detection_trials.run(
        predictor, survey, range(n), seed, lambda x, rng: rng.uniform(least, most, len(x)), bar
    )
    has_subhalo = np.isfinite(trials.p_no)
    detected = trials.p_no[has_subhalo] < detection.p_no
    return _shares(trials.log_mass[has_subhalo], detected, np.log10(MASS_BINS))


def _shares(log_masses: Floats, detected: NDArray[np.bool_], edges: Floats) -> list[FoundShare]:
    """The share found between each two edges, log10 of solar masses; the last edge belongs to its bin."""
    place = np.searchsorted(edges, log_masses, side="right").clip(1, max(len(edges) - 1, 1))
    rows = []
    for number, (low, high) in enumerate(pairwise(edges), start=1):
        inside = detected[place == number]
        share = metrics.wilson(float(inside.mean()), inside.size) if inside.size else dict.fromkeys(KEYS, np.nan)
        rows.append(FoundShare(float(10**low), float(10**high), inside.size, share))
    return rows


KEYS = ("value", "low", "high")
"""Keys of a share and its interval."""
