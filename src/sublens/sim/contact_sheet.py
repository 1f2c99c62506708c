"""A contact sheet: example images of a survey, class by class."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from sublens.sim.population import CLASSES
from sublens.sim.render import render, simulate
from sublens.storage.files import whole_file
from sublens.surveys.survey import Survey
from sublens.surveys.truth import Truth, smoothed

COLUMNS = 4
"""Images of each class."""
WIDTH, HEIGHT = 8.5, 5.6
"""Size of one survey's panel, inches."""
HALF_FIELD = 3.0
"""Half of the panel's field around the lens, arcsec; less where the image is smaller."""


def write(path: Path, surveys: Sequence[Survey], seed: int = 1) -> None:
    """Draw images of each survey, classes in rows; beside each row, its last image's residual from substructure.

    The picture's format follows the ending of `path`: .png, .pdf or .svg.
    """
    across = 1 if len(surveys) == 1 else 2
    down = -(-len(surveys) // across)
    figure = Figure(figsize=(across * WIDTH, down * HEIGHT), facecolor="white", layout="constrained")
    panels = figure.subfigures(down, across, squeeze=False).ravel()
    for panel, survey in zip(panels, surveys, strict=False):
        _draw(panel, survey, seed)
    with whole_file(path) as partial:
        figure.savefig(partial, format=path.suffix[1:] or "png", dpi=110)


def _draw(panel: SubFigure, survey: Survey, seed: int) -> None:
    truth, counts = simulate(survey, seed, "train", range(COLUMNS * len(CLASSES)))
    change = (render(truth, survey) - render(smoothed(truth), survey)).numpy() / survey.camera.gain
    first = survey.description.strip().splitlines()[0]
    panel.suptitle(f"{survey.name}\n{first}", fontsize=10, parse_math=False)
    for label, row in enumerate(panel.subplots(len(CLASSES), COLUMNS + 1)):
        chosen = np.flatnonzero(truth.scenes["label"] == label)
        for axes, image in zip(row, counts[chosen], strict=False):
            light = np.sqrt(np.clip(image - np.median(image).clip(0, image.max() / 4), 0, None))
            _show(axes, light, survey, cmap="inferno", vmax=np.percentile(light, 99.8))
        reach = max(float(np.percentile(np.abs(change[chosen[-1]]), 99.8)), 1e-9)
        _show(row[-1], change[chosen[-1]], survey, cmap="RdBu_r", vmin=-reach, vmax=reach)
        _mark(row[-1], truth.take(chosen[-1:]))
        row[0].set_ylabel(CLASSES[label], fontsize=11)
        row[-1].set_xlabel("nothing" if reach < 1 else f"{reach:,.0f} counts at full colour", fontsize=8)
    row = panel.axes
    row[COLUMNS].set_title("what substructure changed", fontsize=8)


def _show(axes: Axes, image: NDArray[np.float64], survey: Survey, **style: object) -> None:
    """An image on its grid in arcsec, y upwards."""
    half = survey.field / 2
    axes.imshow(image, origin="lower", extent=(-half, half, -half, half), **style)  # type: ignore[arg-type]
    reach = min(half, HALF_FIELD)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[])


def _mark(axes: Axes, truth: Truth) -> None:
    """Circles on the subhaloes, the larger the heavier; a line on the string."""
    subhaloes = truth.subhaloes
    sizes = 60 * np.sqrt(subhaloes["mass_msun"] / 1e10)
    axes.scatter(subhaloes["x"], subhaloes["y"], sizes, facecolors="none", edgecolors="k", lw=0.7)
    scene = truth.scenes[0]
    if scene["string_mass_msun"]:
        reach = np.array([-1, 1]) * scene["string_half_length"]
        x = scene["string_x"] + reach * np.cos(scene["string_angle"])
        axes.plot(x, scene["string_y"] + reach * np.sin(scene["string_angle"]), "k", linewidth=1)
