"""Searches as users run them, with all restarts: for the smooth lens, its slope, and substructure beside it."""

from dataclasses import replace
from functools import lru_cache, partial

import numpy as np
import pytest
from conftest import HALO, SHEAR, drawn_lens
from scipy import linalg

from sublens.modelling import fit as fit_module
from sublens.modelling import search as search_module
from sublens.modelling import smooth_lens, tracks
from sublens.modelling.fitter import Fitter, Start
from sublens.modelling.lens_image import Data, LensImage
from sublens.modelling.perturbed import Perturbation, strongest
from sublens.modelling.perturbers import STRING, SUBHALO, Perturber
from sublens.modelling.search import search, settled
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
    assert tracks.by_evidence([begun, *search_module._sloped(begun)])[0][0].slope == pytest.approx(best_slope)


def test_a_subhalo_is_found_where_it_is() -> None:
    image = drawn_lens(subhalo=(0.08, *PLACE))
    perturbation, beside = strongest(image, settled(search(image, KNOWN)[0]), SUBHALO) or pytest.fail("none")
    assert perturbation.parameters[:2] == pytest.approx(PLACE, abs=0.15)
    assert perturbation.log_evidence - beside[1].log_evidence > 20


def test_nothing_is_found_where_there_is_nothing() -> None:
    perturbation, beside = strongest(drawn_lens(), smooth(), SUBHALO) or pytest.fail("none")
    assert perturbation.log_evidence - beside[1].log_evidence < 5


def test_each_gain_is_that_of_its_perturber(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = smooth()
    gains = {id(STRING): 7.0, id(SUBHALO): 3.0}

    def found(image: LensImage, track: Track, perturber: Perturber) -> tuple[Perturbation, Track]:
        return Perturbation(begun[1].log_evidence + gains[id(perturber)], np.zeros(4)), begun

    monkeypatch.setattr(fit_module, "search", lambda image, start: [begun])
    monkeypatch.setattr(fit_module, "settled", lambda track: track)
    monkeypatch.setattr(fit_module, "strongest", found)
    result = fit_module.fit(drawn_lens(), KNOWN)
    assert (result.string_gain, result.subhalo_gain) == pytest.approx((7.0, 3.0))
    monkeypatch.setattr(fit_module, "strongest", lambda image, track, perturber: None)
    result = fit_module.fit(drawn_lens(), KNOWN)
    assert (result.string_gain, result.subhalo_gain) == (0, 0)


def test_a_known_substructure_is_kept_where_the_fit_begins_anew() -> None:
    image, strength = drawn_lens(subhalo=(0.08, *PLACE)), np.array([*PLACE, np.log(0.08), np.log(50.0)])
    begun = search(image, KNOWN, partial(SUBHALO.deflection, strength))[0]
    without = strongest(image, settled(begun), STRING)
    assert begun[1].log_evidence > smooth()[1].log_evidence - 100
    assert without is None or without[0].log_evidence < begun[1].log_evidence + 10


def test_fits_that_fail_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise linalg.LinAlgError

    fitter, solution = smooth()
    monkeypatch.setattr(Fitter, "solve", fails)
    assert tracks.explored(drawn_lens(), (fitter, solution), [solution.parameters], solution.grid) is None
    assert strongest(drawn_lens(), smooth(), SUBHALO) is None
    assert search_module._restarted(drawn_lens(), smooth()) == []
