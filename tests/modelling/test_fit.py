"""Fits of lenses that lenstronomy has drawn."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from conftest import HALO, SHEAR, drawn_lens

from sublens.errors import ImageError
from sublens.modelling import fit as fit_module
from sublens.modelling import smooth_lens
from sublens.modelling.fit import Fitter, LensFit, Start, fit
from sublens.modelling.lens_image import Data
from sublens.modelling.source_grid import N_SOURCE

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
    assert 0.75 < found().chi2 < 1.1
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


def test_starts_that_end_apart_scatter() -> None:
    best = Fitter.of(Data.of(drawn_lens(), 2.4), KNOWN).run(0.0)
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
    fitter = Fitter.of(Data.of(drawn_lens(), 2.4), KNOWN)
    found = fitter.run(0.0)  # the source is inside of its grid from here on
    parameters = found.parameters + 0.005
    here = fitter.solve(parameters, found.form)
    gradient = fitter.system(here).gradient[len(here.coefficients) :]
    for number in range(smooth_lens.N_PARAMETERS):
        sides = []
        for sign in (1, -1):
            moved = parameters.copy()
            moved[number] += sign * 5e-4
            columns = fitter.solve(moved, found.form).columns.astype(np.float64)
            residual = fitter.data.values / fitter.noise - columns @ here.coefficients
            sides.append(-0.5 * (residual @ residual + fitter._distance(moved, found.form)))
        change = (sides[0] - sides[1]) / 1e-3
        assert gradient[number] == pytest.approx(change, rel=0.05, abs=0.02 * np.abs(gradient).max())


def test_coefficients_that_the_data_determine_are_fewer_than_the_grid_has() -> None:
    fitter = Fitter.of(Data.of(drawn_lens(), 2.4), KNOWN)
    solution = fitter.solve(np.array([np.log(1.25), 0.09, -0.06, 0, 0, 0.03, 0.04, 0, 0, 0, 0]), fitter.form)
    assert 10 < solution.n_effective < N_SOURCE
