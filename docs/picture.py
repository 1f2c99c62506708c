"""The README's picture: one simulated image of each class, and what its substructure does to it.

python docs/picture.py [INDEX] writes docs/classes.png; the index of the first of the three images is 6.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sublens.config import SimConfig
from sublens.sim.cosmology import einstein_radius
from sublens.sim.population import CLASSES, SUBHALO, Truth
from sublens.sim.presets import COMMON_TEST_1
from sublens.sim.render import render, simulate

SEED = 1
HALF_FIELD = 2.8
"""Arcsec shown on each side of the centre."""


def smooth(truth: Truth, config: SimConfig) -> Truth:
    """The same scenes with all substructure put back into the halo."""
    scenes = truth.scenes.copy()
    for name in ("n_subhaloes", "string_mass_msun", "string_theta_e"):
        scenes[name] = 0
    mass = np.full(len(scenes), config.mass_msun)
    distances = (scenes["z_lens"], scenes["z_source"])
    scenes["theta_e"] = einstein_radius(mass, *distances, convention=config.convention, h0=config.h0, om0=config.om0)
    return Truth(scenes, np.zeros(0, SUBHALO))


def show(axes: Axes, image: NDArray[np.float64], config: SimConfig, **look: object) -> None:
    """An image on its grid in arcsec, y upwards."""
    half = config.n_pixels * config.pixel_scale / 2
    axes.imshow(image, origin="lower", extent=(-half, half, -half, half), **look)  # type: ignore[arg-type]
    axes.set(xlim=(-HALF_FIELD, HALF_FIELD), ylim=(-HALF_FIELD, HALF_FIELD), xticks=[], yticks=[])


def mark(axes: Axes, truth: Truth, row: int) -> None:
    """Circles on the subhaloes, the larger the heavier; a line on the string."""
    one = truth.take(np.array([row]))
    masses = one.subhaloes["mass_msun"]
    axes.scatter(
        one.subhaloes["x"], one.subhaloes["y"], 120 * np.sqrt(masses / 1e10), facecolors="none", edgecolors="k"
    )
    scene = one.scenes[0]
    if scene["string_mass_msun"]:
        reach = np.array([-1, 1]) * scene["string_half_length"]
        x = scene["string_x"] + reach * np.cos(scene["string_angle"])
        axes.plot(x, scene["string_y"] + reach * np.sin(scene["string_angle"]), "k", linewidth=1.2)


def main() -> None:
    """Draw the three scenes from an index on."""
    config, first = COMMON_TEST_1, int(sys.argv[1]) if len(sys.argv) > 1 else 6
    truth, counts = simulate(config, SEED, "train", range(first, first + len(CLASSES)))
    dents = (render(truth, config) - render(smooth(truth, config), config)).numpy()
    figure = Figure(figsize=(9, 6.5), layout="constrained", facecolor="white")
    for row, axes in enumerate(figure.subplots(2, len(CLASSES)).T):
        show(axes[0], np.sqrt(counts[row]), config, cmap="inferno")
        show(axes[1], dents[row], config, cmap="RdBu_r", vmin=-100, vmax=100)
        mark(axes[1], truth, row)
        axes[0].set_title(CLASSES[truth.scenes["label"][row]], fontsize=15)
        axes[1].set_xlabel(f"difference up to {np.abs(dents[row]).max():.0f} counts", fontsize=11)
    for axes, words in zip(figure.axes[:: len(CLASSES)], ("image", "what substructure changes"), strict=True):
        axes.set_ylabel(words, fontsize=12)
    figure.savefig(Path(__file__).parent / "classes.png", dpi=110)


if __name__ == "__main__":
    main()
