"""Priors: the distributions that a survey's quantities are drawn from."""

import sys
from collections.abc import Callable, Mapping
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    model_serializer,
    model_validator,
)

from sublens.config import Frozen
from sublens.errors import nearest

Floats = NDArray[np.float64]
ALMOST_ONE = 1 - 2**-53
"""Largest value of a uniform draw."""


def _normal(u: Floats, mean: float, sigma: float) -> Floats:
    from scipy.special import ndtri

    return np.asarray(mean + sigma * ndtri(np.maximum(u, 2**-54)))


def _truncated_normal(u: Floats, mean: float, sigma: float, low: float, high: float) -> Floats:
    from scipy.special import ndtr, ndtri

    first, last = (ndtr((bound - mean) / sigma) for bound in (low, high))
    return np.asarray(np.clip(mean + sigma * ndtri(first + u * (last - first)), low, high))


def _power_law(u: Floats, slope: float, low: float, high: float) -> Floats:
    """Quantiles by way of logarithms, exact for slopes near -1 as well."""
    power, reach = slope + 1, np.log(high / low)
    share = u * reach if power == 0 else np.log1p(u * np.expm1(power * reach)) / power
    return np.asarray(low * np.exp(share))


def _poisson(u: Floats, mean: float) -> Floats:
    from scipy.special import pdtr

    reach = np.arange(int(mean + 12 * np.sqrt(mean) + 40))
    return np.searchsorted(pdtr(reach, mean), u, side="right").astype(np.float64)


class Shape(NamedTuple):
    """One kind of distribution."""

    parameters: tuple[str, ...]
    quantile: Callable[..., Floats]
    """Inverse of the cumulative distribution: (u, *parameters) -> values."""
    is_valid: Callable[..., bool]
    rule: str
    """Condition of `is_valid`, in words."""


PRIORS = {
    "fixed": Shape(("value",), lambda u, value: np.full_like(u, value), lambda value: True, ""),
    "uniform": Shape(
        ("low", "high"),
        lambda u, low, high: low + u * (high - low),
        lambda low, high: low <= high,
        "low <= high",
    ),
    "log_uniform": Shape(
        ("low", "high"),
        lambda u, low, high: _power_law(u, -1, low, high),
        lambda low, high: 0 < low <= high,
        "0 < low <= high",
    ),
    "normal": Shape(("mean", "sigma"), _normal, lambda mean, sigma: sigma >= 0, "sigma >= 0"),
    "truncated_normal": Shape(
        ("mean", "sigma", "low", "high"),
        _truncated_normal,
        lambda mean, sigma, low, high: sigma > 0 and low < high and abs(np.clip(mean, low, high) - mean) < 5 * sigma,
        "sigma > 0, low < high, and a mean within 5 sigma of them",
    ),
    "power_law": Shape(
        ("slope", "low", "high"),
        _power_law,
        lambda slope, low, high: 0 < low <= high and abs((slope + 1) * np.log(high / low)) < 500,
        "0 < low <= high and a milder slope, as dN/dx ~ x^slope",
    ),
    "poisson": Shape(("mean",), _poisson, lambda mean: 0 < mean <= 1000, "0 < mean <= 1000"),
}


class Prior(Frozen):
    """Distribution of one quantity, of a kind in `PRIORS`."""

    kind: str
    """Key of `PRIORS`."""
    values: tuple[float, ...]
    """Parameters of that kind."""

    @model_validator(mode="before")
    @classmethod
    def _parsed(cls, value: object) -> object:
        if isinstance(value, Prior):
            return value
        if isinstance(value, bool) or not isinstance(value, int | float | Mapping):
            raise ValueError("needs a number or a prior such as { uniform = [0, 1] }")
        tree = value if isinstance(value, Mapping) else {"fixed": value}
        if tree.keys() == {"kind", "values"}:
            tree = {str(tree["kind"]): tree["values"]}
        if len(tree) != 1:
            raise ValueError("needs one prior, such as { uniform = [0, 1] }")
        ((kind, values),) = tree.items()
        if kind not in PRIORS:
            raise ValueError(f"there is no prior {kind!r}. {nearest(str(kind), PRIORS)}")
        shape = PRIORS[kind]
        numbers = values if isinstance(values, list | tuple) else [values]
        if len(numbers) != len(shape.parameters) or not all(_is_number(number) for number in numbers):
            raise ValueError(f"{kind} needs the numbers [{', '.join(shape.parameters)}]")
        if not shape.is_valid(*numbers):
            raise ValueError(f"{kind} needs {shape.rule}")
        return {"kind": kind, "values": tuple(map(float, numbers))}

    @model_serializer
    def _plain(self) -> float | dict[str, float | tuple[float, ...]]:
        if self.kind == "fixed":
            return self.values[0]
        return {self.kind: self.values if len(self.values) > 1 else self.values[0]}

    def quantile(self, u: Floats) -> Floats:
        """Values below which shares `u` of the draws lie; draws, for uniform u in [0, 1)."""
        return PRIORS[self.kind].quantile(u, *self.values)

    @property
    def median(self) -> float:
        """Value below which half of the draws lie."""
        return float(self.quantile(np.array([0.5]))[0])

    @property
    def low(self) -> float:
        """Least value, -inf if there is none."""
        return -np.inf if self.kind == "normal" else float(self.quantile(np.zeros(1))[0])

    @property
    def high(self) -> float:
        """Greatest value, inf if there is none."""
        return np.inf if self.kind == "normal" else float(self.quantile(np.full(1, ALMOST_ONE))[0])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def bounded(low: float, high: float, words: str, *, strict: bool = False) -> AfterValidator:
    def check(prior: Prior) -> Prior:
        if prior.low < low or prior.high > high or (strict and prior.low == low):
            raise ValueError(f"reaches from {prior.low:g} to {prior.high:g}; needs to stay {words}")
        return prior

    return AfterValidator(check)


TAIL = 1e-4
"""Share of the draws, at either end, that a `Clipped` prior sets to the value there: a normal one beyond 3.7 sigma."""


def clipped_quantile(prior: Prior, u: Floats) -> Floats:
    """Values below which shares `u` of the draws lie, with the tails cut; draws, for uniform u in [0, 1)."""
    return prior.quantile(np.clip(u, TAIL, 1 - TAIL))


def _clipped_above_zero(prior: Prior) -> Prior:
    low, high = clipped_quantile(prior, np.array([0.0, 1.0]))
    if low <= 0:
        raise ValueError(f"reaches from {low:g} to {high:g}; needs to stay above 0")
    return prior


ClippedPositive = Annotated[Prior, AfterValidator(_clipped_above_zero)]
"""Prior of a positive quantity, which may be normal: its draws are those of `clipped_quantile`."""
Positive = Annotated[Prior, bounded(0, np.inf, "above 0", strict=True)]
NonNegative = Annotated[Prior, bounded(0, np.inf, "at or above 0")]
AxisRatio = Annotated[Prior, bounded(0.05, 1, "within 0.05 and 1")]
Fraction = Annotated[Prior, bounded(0, 1, "within 0 and 1")]
