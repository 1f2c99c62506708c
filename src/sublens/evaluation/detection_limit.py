"""Detection limits: the smallest subhalo that a network detects at a position, by bisection over its mass."""

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
"""Precision of the smallest mass, dex."""
DETECTED = 0.5
"""Mean probability of substructure from which on a mass counts as detected."""

Classifier = Callable[[NDArray[np.uint16]], NDArray[np.float64]]
"""Images [n, h, w] of `scene.observed` -> the probability that each holds substructure, [n]."""


@dataclass(frozen=True)
class Step:
    """The prediction for one mass."""

    step: int
    """Number of the step, from 1 on."""
    of: int
    """Largest number of steps."""
    mass_msun: float
    """Mass of the subhalo; 0 for the smooth lens."""
    probability: float
    """Probability of substructure, mean over the noise draws."""
    visible: bool
    """Whether the mass is detected."""


def smallest_mass(scene: Scene, x: float, y: float, classifier: Classifier) -> Iterator[Step]:
    """Search for the smallest mass at (x, y), arcsec, that the classifier detects; yields every step as it is done.

    All other substructure is taken out first, see `scene.smooth`. A mass is detected where the mean
    probability over `N_NOISE` noise draws, the same ones at each mass, is at least `DETECTED`. The first
    step is the smooth lens, the second the greatest mass, after which the search ends if that is not
    detected; the least mass detected is the answer. Detection is assumed to be monotonic in mass. Raises
    `ConfigError` where substructure is detected in the smooth lens.
    """
    base = scenes.smooth(scene)
    least, most = MASSES_MSUN[0], min(MASSES_MSUN[1], scenes.total_msun(base) / 2)
    n_steps = 2 + ceil(np.log2(log10(most / least) / RESOLUTION_DEX))

    def detect(number: int, mass_msun: float) -> Step:
        subhaloes = (Subhalo(x=x, y=y, mass_msun=mass_msun),) if mass_msun else ()
        counts = scenes.observed(base.model_copy(update={"subhaloes": subhaloes}), N_NOISE)
        probability = float(classifier(counts).mean())
        return Step(number, n_steps, mass_msun, probability, probability >= DETECTED)

    yield (step := detect(1, 0.0))
    if step.visible:
        raise ConfigError(
            f"Substructure is detected in the smooth lens already (probability {step.probability:.2f})",
            need="a lens that the network classifies as smooth",
            next="Try another noise seed, or a lens more like those of its training.",
        )
    yield (step := detect(2, most))
    if not step.visible:
        return
    low, high = log10(least), log10(most)
    for number in range(3, n_steps + 1):
        middle = (low + high) / 2
        yield (step := detect(number, 10**middle))
        low, high = (low, middle) if step.visible else (middle, high)
