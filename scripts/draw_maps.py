"""Draw docs/maps.png: images, the substructure that is in them, and where a network sees it.

    python scripts/draw_maps.py [BUNDLE]

The images are the first of a test part that nothing else uses (seed 7); none is chosen.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from sublens.inference.engines import MASS_UNIT_MSUN
from sublens.inference.predictor import Predictor
from sublens.sim.mass_map import mass_map
from sublens.sim.render import simulate
from sublens.surveys.presets import preset

N_IMAGES = 9
BRIGHTEST = 3e10
"""Mass of a cell at full colour, Msun."""


def main() -> None:
    """Draw."""
    predictor = Predictor.load(sys.argv[1] if len(sys.argv) > 1 else "lensnet")
    assert predictor.map is not None
    survey = preset("common-test-1")
    truth, counts = simulate(survey, 7, "test", range(N_IMAGES))
    half = predictor.map.n_cells * predictor.map.cell_arcsec / 2
    true, seen = mass_map(truth, predictor.map.n_cells, 2 * half), predictor.masses(counts)
    probs = predictor.probs(counts)
    figure = Figure(figsize=(1.45 * N_IMAGES, 5.0), facecolor="white", layout="constrained")
    grid = figure.subplots(3, N_IMAGES)
    reach = survey.field / 2
    for column, label in enumerate(truth.scenes["label"]):
        light = np.sqrt(np.clip(counts[column].astype(float) - np.median(counts[column]), 0, None))
        grid[0, column].imshow(light, origin="lower", cmap="inferno", extent=(-reach, reach, -reach, reach))
        name = predictor.classes[label]
        grid[0, column].set_title(f"{name}: p = {probs[column, label]:.2f}", fontsize=10)
        for row, masses in ((1, true), (2, seen)):
            shade = np.log1p(masses[column] / MASS_UNIT_MSUN)
            full = np.log1p(BRIGHTEST / MASS_UNIT_MSUN)
            grid[row, column].imshow(
                shade, origin="lower", cmap="viridis", vmin=0, vmax=full, extent=(-half, half, -half, half)
            )
    for axes in grid.ravel():
        axes.set(xlim=(-half, half), ylim=(-half, half), xticks=[], yticks=[])
    for row, words in enumerate(("image", "true mass", "as seen")):
        grid[row, 0].set_ylabel(words, fontsize=10)
    figure.savefig(Path(__file__).parents[1] / "docs" / "maps.png", dpi=80)


if __name__ == "__main__":
    main()
