"""Searches as users run them, with all restarts: for the smooth lens, its slope, and substructure beside it."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from conftest import HALO, SHEAR, drawn_lens
from scipy import linalg

from sublens.modelling import search as search_module
from sublens.modelling import smooth_lens, tracks
from sublens.modelling.fitter import Fitter, Start
from sublens.modelling.lens_image import Data
from sublens.modelling.perturbed import strongest
from sublens.modelling.perturbers import LOG_SIZE, SUBHALO
from sublens.modelling.search import search, settled
from sublens.modelling.sensitivity import around_ring, at_places
from sublens.modelling.tracks import Track

KNOWN = Start(1.25 * 1.06, 0.1, 0.05, 0.0)
PLACE = 0.9, -0.85
"""Of a subhalo on the ring, arcsec."""


@lru_cache
def smooth() -> Track:
    """The descent from the true lens without substructure."""
    fitter = Fitter.of(Data.of(drawn_lens(), tracks.radius(1.25)), KNOWN)
    truth = np.zeros(smooth_lens.N_PARAMETERS)
    truth[:3] = np.log(1.25), HALO["e1"], HALO["e2"]
    truth[5:7] = SHEAR["gamma1"], SHEAR["gamma2"]
    solution = fitter.solve(truth, fitter.form)
    for _ in range(3):
        solution = fitter.descend(fitter.settled(solution), 8, 0.2)
    return settled((fitter, solution))


def test_a_search_ends_as_well_as_a_descent_from_the_truth() -> None:
    best = search(drawn_lens(), Start(1.15, 0.1, -0.05, 0.1))[0]
    assert best[1].log_evidence > smooth()[1].log_evidence - 3
    assert best[1].parameters[1:3] == pytest.approx([HALO["e1"], HALO["e2"]], abs=0.04)


@pytest.mark.parametrize("best_slope", [1.73, 2.05, 2.21])
def test_slopes_are_tried_as_long_as_the_evidence_grows(best_slope: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def settled_at(track: Track) -> list[Track]:
        fitter, solution = track
        return [(fitter, replace(solution, log_evidence=-((fitter.slope - best_slope) ** 2)))]

    monkeypatch.setattr(search_module, "_settled_twice", settled_at)
    begun = settled_at(smooth())[0]
    assert [*search_module._sloped(begun), begun][0 if best_slope == 2.05 else -2][0].slope == pytest.approx(best_slope)


def test_a_subhalo_is_found_where_it_is() -> None:
    image = drawn_lens(subhalo=(0.08, *PLACE))
    perturbation, beside = strongest(image, settled(search(image, KNOWN)[0]), SUBHALO) or pytest.fail("none")
    assert perturbation.parameters[:2] == pytest.approx(PLACE, abs=0.15)
    assert perturbation.log_evidence - beside[1].log_evidence > 20


def test_nothing_is_found_where_there_is_nothing() -> None:
    perturbation, beside = strongest(drawn_lens(), smooth(), SUBHALO) or pytest.fail("none")
    assert perturbation.log_evidence - beside[1].log_evidence < 5


def test_sensitivity_is_what_a_weak_subhalo_adds_to_the_objective() -> None:
    fitter, solution = smooth()
    strength, place = 0.01, np.array(PLACE)
    subhalo = np.array([*place, np.log(strength), LOG_SIZE[0]])
    beside = replace(fitter, substructure=SUBHALO.deflection(subhalo, fitter.data.x, fitter.data.y))
    dent = (beside.solve(solution.parameters, solution.form).columns - solution.columns) @ solution.coefficients
    dented = replace(fitter.data, values=fitter.data.values + dent * fitter.noise)
    without, with_it = (
        each.descend(each.solve(solution.parameters, solution.form), 20, 1e-4).objective
        for each in (replace(fitter, data=dented), replace(beside, data=dented))
    )
    expected = (strength * np.exp(at_places(smooth(), *place[:, None]))) ** 2
    assert expected > 0.5
    assert without - with_it == pytest.approx(expected, rel=0.35)


def test_sensitivity_falls_with_noise() -> None:
    fitter, solution = smooth()
    louder = replace(fitter, noise=2 * fitter.noise)
    fallen = around_ring((louder, louder.solve(solution.parameters, solution.form)))
    assert around_ring(smooth()).mean - fallen.mean == pytest.approx(np.log(2), abs=0.3)


def test_fits_that_fail_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise linalg.LinAlgError

    monkeypatch.setattr(Fitter, "solve", fails)
    fitter, solution = smooth()
    assert tracks.explored(drawn_lens(), (fitter, solution), [solution.parameters], solution.grid) is None
    assert strongest(drawn_lens(), smooth(), SUBHALO) is None
    assert list(search_module._restarted(drawn_lens(), smooth())) == []
