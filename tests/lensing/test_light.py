from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sublens.lensing import light

FUNCTIONS: list[tuple[Callable[..., Any], Callable[..., Any], list[tuple[float, float]]]] = [
    (light._log, np.log, [(1e-6, 1e-3), (0.5, 2), (1, 1e6)]),
    (light._exp, np.exp, [(-80, -10), (-1, 1), (0, 80)]),
    (light._atan2, np.arctan2, [(-1, 1), (-1e-6, 1e-6), (-1e3, 1e3)]),
]


def arguments(function: Callable[..., Any], low: float, high: float) -> np.ndarray:
    n_arguments = function.py_func.__code__.co_argcount  # type: ignore[attr-defined]
    return np.random.default_rng(0).uniform(low, high, (200, n_arguments)).astype(np.float32)


@pytest.mark.parametrize(("function", "numpys", "ranges"), FUNCTIONS)
def test_functions_of_single_precision_are_those_of_numpy(
    function: Callable[..., Any], numpys: Callable[..., Any], ranges: list[tuple[float, float]]
) -> None:
    for limits in ranges:
        for values in arguments(function, *limits):
            assert function(*values) == pytest.approx(numpys(*values.astype(float)), rel=6e-7, abs=3e-7)


@pytest.mark.parametrize(("function", "numpys", "ranges"), FUNCTIONS)
def test_compiled_functions_round_as_written(
    function: Callable[..., Any], numpys: Callable[..., Any], ranges: list[tuple[float, float]]
) -> None:
    """To the last bit. With products and sums in one instruction, it depended on what the compiler had inlined."""
    as_written = function.py_func  # type: ignore[attr-defined]
    for limits in ranges:
        for values in arguments(function, *limits):
            assert function(*values) == as_written(*values)


def test_light_without_number_stays_so() -> None:
    """So that a camera can refuse it."""
    bright = np.zeros(2, np.float32)
    profile = np.array([1, 0, 0, 1, 0.5, 1.7, np.nan, 0, 0, 0, np.inf], np.float32)
    light._sersic(np.ones(2, np.float32), np.ones(2, np.float32), profile, bright)
    assert np.isnan(bright).all()
