"""Fits of lenses that lenstronomy has drawn."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from conftest import HALO, SHEAR, SUBHALO, drawn_lens
from lenstronomy.LensModel.lens_model import LensModel
from numpy.typing import NDArray
from scipy import linalg

from sublens.errors import ImageError
from sublens.modelling import fit as fit_module
from sublens.modelling import fitter as fitter_module
from sublens.modelling import smooth_lens
from sublens.modelling.fit import LensFit, fit
from sublens.modelling.fitter import Fitter, Solution, Start
from sublens.modelling.lens_image import Data
from sublens.modelling.search import search

pytestmark = pytest.mark.usefixtures("quick_fits")

N = 120
KNOWN = Start(1.25 * 1.06, 0.1, 0.05, 0.0)


@lru_cache
def found() -> LensFit:
    return fit(drawn_lens(), KNOWN)


def test_the_einstein_radius_is_found_to_one_per_cent() -> None:
    theta_e, _, _ = smooth_lens.shape(found().parameters)
    assert theta_e == pytest.approx(1.25, rel=0.01)


def test_ellipticity_and_shear_are_found() -> None:
    parameters = found().parameters
    assert parameters[1:3] == pytest.approx([HALO["e1"], HALO["e2"]], abs=0.03)
    assert parameters[5:7] == pytest.approx([SHEAR["gamma1"], SHEAR["gamma2"]], abs=0.025)


def test_the_model_leaves_the_noise_alone() -> None:
    residual = found().residual[np.isfinite(found().residual)]
    assert found().chi2 == pytest.approx((residual**2).mean(), rel=1e-5)
    noise = (found().image - found().model) / found().residual  # that of the model included
    own2 = noise**2 - (0.02 * found().galaxy) ** 2
    assert 0.84 < found().chi2 / np.nanmean(own2 / noise**2) < 1.05  # some 150 of 1,660 numbers are fitted
    assert abs(residual.mean()) < 0.1


def test_image_model_and_galaxy_are_in_the_unit_of_the_image() -> None:
    result, is_data = found(), np.isfinite(found().image)
    n = result.image.shape[0]
    middle = slice((N - 2 * n) // 2, (N + 2 * n) // 2)
    binned = drawn_lens().pixels[middle, middle].reshape(n, 2, n, 2).sum((1, 3))
    assert result.image[is_data] == pytest.approx(binned[is_data])
    assert (result.galaxy[is_data] > 0).mean() > 0.9
    light = np.nansum(result.model - result.galaxy)
    assert 0 < light < np.nansum(result.galaxy)


def test_the_same_image_gives_the_same_fit() -> None:
    assert fit(drawn_lens(), KNOWN).parameters.tolist() == found().parameters.tolist()


def test_masked_pixels_do_not_matter() -> None:
    spoilt, noise = drawn_lens().pixels.copy(), drawn_lens().noise.copy()
    spoilt[30:34, 40:44], noise[30:34, 40:44] = 1e5, np.inf
    again = fit(replace(drawn_lens(), pixels=spoilt, noise=noise), KNOWN)
    assert smooth_lens.shape(again.parameters)[0] == pytest.approx(1.25, rel=0.012)
    assert np.isnan(again.image).sum() > np.isnan(found().image).sum()


@pytest.mark.parametrize("unit", [1e-20, 1e8])
def test_the_unit_of_the_pixels_does_not_matter(unit: float) -> None:
    other = fit(replace(drawn_lens(), pixels=unit * drawn_lens().pixels, noise=unit * drawn_lens().noise), KNOWN)
    assert other.parameters == pytest.approx(found().parameters, abs=1e-3)
    assert other.chi2 == pytest.approx(found().chi2, rel=1e-3)
    for plane in ("image", "model", "galaxy"):
        assert getattr(other, plane) / unit == pytest.approx(getattr(found(), plane), abs=0.02, nan_ok=True)


def test_an_image_that_is_masked_all_over_is_refused() -> None:
    with pytest.raises(ImageError, match="tell nothing of a lens"):
        fit(replace(drawn_lens(), noise=np.full((N, N), np.inf)), KNOWN)


@pytest.mark.parametrize("side", [2, 4])
def test_an_image_of_a_few_pixels_is_refused(side: int) -> None:
    few = np.zeros((side, side))
    with pytest.raises(ImageError, match="tell nothing of a lens"):
        fit(replace(drawn_lens(), pixels=few, noise=few + 1), KNOWN)


def test_a_point_spread_function_below_nothing_is_refused() -> None:
    with pytest.raises(ImageError, match="less light than nothing"):
        fit(replace(drawn_lens(), psf=drawn_lens().psf - 0.1), KNOWN)


def test_an_image_little_larger_than_the_ring_is_enough() -> None:
    small = drawn_lens().cut(3.5)
    assert small.pixels.shape == (70, 70)
    assert smooth_lens.shape(fit(small, KNOWN).parameters)[0] == pytest.approx(1.25, rel=0.01)


def test_a_large_double_is_found() -> None:
    double = drawn_lens(theta_e=2.0, source=(0.7, 0.3))
    assert smooth_lens.shape(fit(double, Start(2.1, 0.15)).parameters)[0] == pytest.approx(2.0, rel=0.025)


def descended() -> tuple[Fitter, Solution]:
    fitter = Fitter.of(Data.of(drawn_lens(), 2.4), KNOWN)
    return fitter, fitter.descend(fitter.settled(fitter.descend(fitter.at(0.0, (0.03, 0.04)), 4, 0.5)), 4, 0.5)


def test_starts_that_end_apart_scatter() -> None:
    _, best = descended()
    other = replace(best, parameters=best.parameters + np.eye(11)[0] * 0.3)
    assert fit_module._scatter([best, best], best) == 0
    assert fit_module._scatter([best, other], best) == pytest.approx(0.3 / np.sqrt(2))
    unlikely = replace(other, log_evidence=best.log_evidence - 300)
    assert fit_module._scatter([best, unlikely], best) < 0.01
    poor = replace(best, residual=best.residual * 10)
    assert fit_module._scatter([poor, unlikely], poor) > 0.1


def test_the_radius_stays_near_what_is_known() -> None:
    far = fit(drawn_lens(), Start(0.7, 0.05, 0.0, 0.0))
    assert abs(np.log(smooth_lens.shape(far.parameters)[0] / 0.7)) <= 2.5 * 0.05 / 0.7 + 1e-6


def test_steps_follow_the_gradient_of_the_objective() -> None:
    fitter, solution = descended()  # the source is inside of its grid from here on
    parameters = solution.parameters + 0.005
    here = fitter.solve(parameters, solution.form)
    gradient = fitter.system(here).gradient[len(here.coefficients) :]
    for number in range(smooth_lens.N_PARAMETERS):
        sides = []
        for sign in (1, -1):
            moved = parameters.copy()
            moved[number] += sign * 5e-4
            columns = fitter.solve(moved, solution.form).columns.astype(np.float64)
            residual = fitter.data.values / fitter.noise - columns @ here.coefficients
            sides.append(-0.5 * (residual @ residual + fitter._distance(moved, solution.form)))
        change = (sides[0] - sides[1]) / 1e-3
        assert gradient[number] == pytest.approx(change, rel=0.05, abs=0.02 * np.abs(gradient).max())


def test_coefficients_that_the_data_determine_are_fewer_than_the_grid_has() -> None:
    fitter = Fitter.of(Data.of(drawn_lens(), 2.4), KNOWN)
    solution = fitter.solve(np.array([np.log(1.25), 0.09, -0.06, 0, 0, 0.03, 0.04, 0, 0, 0, 0]), fitter.form)
    assert 10 < solution.n_effective < solution.grid.n_splines


def test_the_fit_of_greatest_evidence_comes_first() -> None:
    evidence = [solution.log_evidence for _, solution in search(drawn_lens(), KNOWN)]
    assert len(set(evidence)) == len(evidence)
    assert 4 + 3 <= len(evidence) <= 4 + 3 + 1  # from the starts, with other grids of the source, settled once more
    assert evidence == sorted(evidence, reverse=True)
    assert evidence[0] > evidence[-1]


def test_a_wrong_shear_does_not_mislead() -> None:
    strong = drawn_lens(theta_e=1.5, source=(0.04, 0.02), shear=(0.0, 0.11))
    parameters = fit(strong, Start(1.5, 0.03)).parameters
    assert smooth_lens.shape(parameters)[0] == pytest.approx(1.5, rel=0.01)
    assert parameters[5:7] == pytest.approx([0.0, 0.11], abs=0.03)


def test_a_hot_pixel_that_nothing_masks_counts_no_more() -> None:
    struck = drawn_lens().pixels.copy()
    struck[78, 63] += 60 * drawn_lens().noise[78, 63]
    again = fit(replace(drawn_lens(), pixels=struck), KNOWN)
    assert smooth_lens.shape(again.parameters)[0] == pytest.approx(1.25, rel=0.01)
    assert again.chi2 < 1.1
    assert np.isfinite(again.residual).sum() == np.isfinite(found().residual).sum()


def test_substructure_that_is_known_is_part_of_the_lens() -> None:
    subhalo = 0.06, -0.35, -1.2
    dented, only = drawn_lens(subhalo=subhalo), LensModel(["SIS"])

    def deflection(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float32]:
        return np.stack(only.alpha(x, y, [dict(zip(SUBHALO, subhalo, strict=True))])).astype(np.float32)

    gains = [
        search(image, KNOWN, deflection)[0][1].log_evidence - search(image, KNOWN)[0][1].log_evidence
        for image in (drawn_lens(), dented)
    ]
    assert gains[0] < -20
    assert gains[1] > 20


def test_starts_differ_where_masks_leave_nothing_of_coarser_data() -> None:
    noise = drawn_lens().noise.copy()
    noise[::2, ::2] = np.inf
    image = replace(drawn_lens(), noise=noise, pixel_scale=0.09).cut(4.0)
    assert not len(Data.of(image.coarser(), 2.0, 0.1).values)
    tracks = search(image, Start(1.25 * 0.09 / 0.05, 0.2))
    assert len({round(solution.log_evidence, 3) for _, solution in tracks}) > 1


def test_a_step_that_cannot_be_taken_ends_no_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    fitter, solution = descended()

    def fail(*_: object) -> None:
        raise linalg.LinAlgError

    monkeypatch.setattr(fitter_module, "_step", fail)
    assert fitter.descend(solution, 4, 0.1) is solution
