import numpy as np
import pytest
import torch
from lenstronomy.LensModel.lens_model import LensModel

from sublens.lensing.mass import string_deflection
from sublens.modelling.perturbers import PERTURBERS, STRING, SUBHALO

AXIS = (np.arange(24) - 11.5) * 0.13
X, Y = np.meshgrid(AXIS, AXIS)
EXAMPLES = {
    "subhalo": np.array([0.9, -0.7, np.log(0.07), np.log(0.4)]),
    "string": np.array([0.1, -0.2, 0.4, 1.1, np.log(0.09)]),
}


def test_a_subhalo_is_a_truncated_isothermal_sphere() -> None:
    x, y, strength, size = *EXAMPLES["subhalo"][:2], 0.07, 0.4
    known = {"sigma0": strength / 2e-5, "Ra": 1e-5, "Rs": size, "center_x": x, "center_y": y}
    alpha = np.array(LensModel(["PJAFFE"]).alpha(X, Y, [known]))
    assert SUBHALO.deflection(EXAMPLES["subhalo"], X, Y) == pytest.approx(alpha, abs=1e-3 * strength)


def test_a_string_is_that_of_the_simulator() -> None:
    x, y, angle, half, _ = EXAMPLES["string"]
    numbers = (torch.full((1, 1, 1), value, dtype=torch.float64) for value in (x, y, angle, half, 0.3))
    known = torch.cat(string_deflection(torch.from_numpy(X)[None], torch.from_numpy(Y)[None], *numbers)).numpy()
    assert STRING.deflection(EXAMPLES["string"], X, Y) == pytest.approx(known, abs=1e-6)


@pytest.mark.parametrize("name", PERTURBERS)
def test_derivatives_are_those_of_the_deflection(name: str) -> None:
    perturber, example = PERTURBERS[name], EXAMPLES[name]
    derivatives = perturber.derivatives(example, X, Y)
    assert len(derivatives) == len(example)
    for number, planes in enumerate(derivatives):
        step = np.eye(len(example))[number] * 1e-3
        ahead, behind = (perturber.deflection(example + side * step, X, Y).astype(np.float64) for side in (1, -1))
        change = (ahead - behind) / 2e-3
        usual = float(np.quantile(np.abs(change), 0.95))  # near a string it jumps
        assert (np.abs(planes - change) < 0.05 * usual).mean() > 0.97


@pytest.mark.parametrize("name", PERTURBERS)
def test_starts_lie_within_the_prior(name: str) -> None:
    perturber = PERTURBERS[name]
    means, sigmas = perturber.prior(1.3)
    starts = perturber.starts(1.3)
    assert len(starts) >= 30
    assert np.abs((starts - means) / sigmas).max() < 4
    assert starts.tolist() == perturber.starts(1.3).tolist()


def test_a_string_takes_its_mass_from_the_halo() -> None:
    assert STRING.mass_share(EXAMPLES["string"], 1.5) == pytest.approx(0.09 / 1.5**2)
    assert SUBHALO.mass_share(EXAMPLES["subhalo"], 1.5) == 0
