import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublens.models import macro

RNG = np.random.default_rng(0)
N = 4_000
TRUE = RNG.uniform(0.5, 2, N), RNG.uniform(0.5, 0.9, N), RNG.uniform(0, np.pi, N)


def outputs(sigma: float = 0.02, stated: float = 0.02) -> np.ndarray:
    """Outputs of a head whose errors are `sigma`, and which states others."""
    means = macro.targets(*TRUE) + RNG.normal(0, sigma, (N, 3))
    return np.concatenate([means, np.full((N, 3), np.log(stated)), np.zeros((N, 1))], 1)


@given(st.floats(0.1, 5), st.floats(0.2, 0.99), st.floats(0, 2 * np.pi))
def test_what_is_learned_gives_the_lens_back(theta_e: float, q: float, angle: float) -> None:
    lens = [np.array([value]) for value in (theta_e, q, angle)]
    exact = np.concatenate([macro.targets(*lens), np.zeros((1, 4))], 1)
    np.testing.assert_allclose(macro.differences(macro.measured(exact), macro.values(*lens)), 0, atol=1e-6)


def test_an_angle_just_below_180_degrees_is_close_to_0() -> None:
    columns = np.array([[1, 0.1, 0.8, 0.1, 179.0, 5]])
    np.testing.assert_allclose(macro.differences(columns, np.array([[1, 0.8, 1.0]])), [[0, 0, -2]])


@pytest.mark.parametrize("stated", [0.005, 0.02, 0.08])
def test_scaled_sigmas_cover_whatever_the_head_states(stated: float) -> None:
    scales = macro.fit_scales(outputs(stated=stated), macro.values(*TRUE))
    score = macro.score(macro.measured(outputs(stated=stated), scales), macro.values(*TRUE))
    for name in ("theta_e", "axis_ratio", "position_angle"):
        assert score[name]["coverage"] == pytest.approx(macro.COVERED, abs=0.03)


def test_an_honest_head_needs_no_scales() -> None:
    np.testing.assert_allclose(macro.fit_scales(outputs(), macro.values(*TRUE)), 1, atol=0.1)


def test_the_position_angle_of_a_round_lens_is_unknown() -> None:
    (columns,) = macro.measured(np.array([[0, 1e-4, 0, -3, -3, -3, 0.0]]))
    assert columns[macro.COLUMNS.index("position_angle_sigma")] == macro.WIDEST_ANGLE


def test_a_scene_without_a_lens_has_finite_targets() -> None:
    assert (macro.targets(np.zeros(2), np.zeros(2), np.zeros(2)) == 0).all()
