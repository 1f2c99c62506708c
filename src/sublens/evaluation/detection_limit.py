"""The smallest subhalo that a network sees at a place: a bisection over its mass."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil, log10

import numpy as np
from numpy.typing import NDArray

from sublens.errors import ConfigError
from sublens.sim import scene as scenes
from sublens.sim.scene import MASSES_MSUN, Scene, Subhalo

N_NOISE = 16
"""Noise draws at each mass."""
RESOLUTION_DEX = 0.02
"""How finely the mass is found."""
DETECTED = 0.5
"""Mean probability of substructure from which on it is seen."""

Classifier = Callable[[NDArray[np.uint16]], NDArray[np.float64]]
"""Images [n, h, w] as counts above their minimum -> the probability that each holds substructure, [n]."""


@dataclass(frozen=True)
class Step:
    """What the network said of one mass."""

    step: int
    """From 1 on."""
    of: int
    """Steps at most."""
    mass_msun: float
    """0 for the smooth lens."""
    probability: float
    """Of substructure, mean over the noise draws."""
    visible: bool


def smallest_mass(scene: Scene, x: float, y: float, judge: Classifier) -> Iterator[Step]:
    """Look for the smallest mass at (x, y), arcsec, that the judge sees; every step as it is done.

    All other substructure is put back into the halo first. A mass is visible where the mean
    probability over `N_NOISE` noise draws, the same ones at each mass, is at least `DETECTED`. The first
    step is the smooth lens, the second the greatest mass, after which the search ends if that cannot be
    seen; the last visible mass is the answer. It is taken for granted that what shows a mass shows all
    greater ones. Raises `ConfigError` where the smooth lens already seems to hold substructure.
    """
    base = scenes.smooth(scene)
    least, most = MASSES_MSUN[0], min(MASSES_MSUN[1], scenes.total_msun(base) / 2)
    n_steps = 2 + ceil(np.log2(log10(most / least) / RESOLUTION_DEX))

    def tried(number: int, mass_msun: float) -> Step:
        clump = (Subhalo(x=x, y=y, mass_msun=mass_msun),) if mass_msun else ()
        counts = scenes.observed(base.model_copy(update={"subhaloes": clump}), N_NOISE)
        probability = float(judge(counts).mean())
        return Step(number, n_steps, mass_msun, probability, probability >= DETECTED)

    yield (step := tried(1, 0.0))
    if step.visible:
        raise ConfigError(
            f"The network sees substructure in the smooth lens already (probability {step.probability:.2f}); needs "
            "a lens that it takes for smooth. Try another noise seed, or a lens more like those it has learned from."
        )
    yield (step := tried(2, most))
    if not step.visible:
        return
    low, high = log10(least), log10(most)
    for number in range(3, n_steps + 1):
        middle = (low + high) / 2
        yield (step := tried(number, 10**middle))
        low, high = (low, middle) if step.visible else (middle, high)
