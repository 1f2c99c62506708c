"""The search for the smallest mass that is detected."""

from math import log10

import numpy as np
import pytest
from numpy.typing import NDArray

from sublens.errors import ConfigError
from sublens.evaluation.detection_limit import N_NOISE, RESOLUTION_DEX, smallest_mass
from sublens.inference.predictor import Predictor
from sublens.sim import scene
from sublens.sim.scene import Scene, String

LENS = scene.drawn("common-test-1", "no", 7)


def mean_change(counts: NDArray[np.uint16]) -> NDArray[np.float64]:
    """Certain of substructure where the mean image differs from that of the smooth lens by more than 2 % anywhere."""
    smooth = scene.observed(LENS, N_NOISE).mean(0)
    return np.full(len(counts), float(np.abs(counts.mean(0) - smooth).max() > 0.02 * smooth.max()))


def test_the_mass_is_found_as_finely_as_promised() -> None:
    steps = list(smallest_mass(LENS, LENS.theta_e, 0.1, mean_change))
    detected = min(step.mass_msun for step in steps if step.visible)
    missed = max(step.mass_msun for step in steps if not step.visible)
    assert 0 < log10(detected) - log10(missed) <= RESOLUTION_DEX
    assert [step.step for step in steps] == list(range(1, steps[0].of + 1))


def test_other_substructure_does_not_count() -> None:
    string = String(x=0, y=0, angle=0, half_length=1, mass_msun=5e10)
    strung = LENS.model_copy(update={"string": string})
    assert next(smallest_mass(strung, 1, 0, mean_change)) == next(smallest_mass(LENS, 1, 0, mean_change))


def test_a_search_ends_where_not_even_the_heaviest_is_detected() -> None:
    steps = list(smallest_mass(LENS, 1, 0, lambda counts: np.zeros(len(counts))))
    assert [step.visible for step in steps] == [False, False]


def test_a_smooth_lens_in_which_substructure_is_detected_is_refused() -> None:
    with pytest.raises(ConfigError, match="in the smooth lens already"):
        list(smallest_mass(LENS, 1, 0, lambda counts: np.ones(len(counts))))


def test_a_network_detects_less_mass_on_the_arc_than_far_from_it() -> None:
    predictor = Predictor.load("lensnet")

    def limit(scene_: Scene, x: float) -> float:
        steps = smallest_mass(scene_, x, 0.1, lambda counts: 1 - predictor.probs(counts)[:, 0])
        return min((step.mass_msun for step in steps if step.visible), default=np.inf)

    assert limit(LENS, LENS.theta_e) < limit(LENS, 2.5)
