"""Draw the lens models that `sublens predict --fit` fits: each image, its model, what is left, and the source.

    python scripts/draw_fits.py NETWORK OUT.png FILE...

Images, models and residuals are over the noise; the first two are stretched by asinh, residuals end
at 4 sigma. The title has the Einstein radius, and the published one where a header has it as THETAE.
"""

import sys
from pathlib import Path

import numpy as np
from draw_lenses import published
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sublens.evaluation import lens_images
from sublens.images.pixels import Image
from sublens.inference import lens_fits
from sublens.inference.predictor import Predictor
from sublens.modelling.fit import LensFit, fit
from sublens.modelling.smooth_lens import shape

SOFTENING, MOST = 3.0, 4.0
PANELS = "image", "arcs less the lens galaxy", "model of the arcs", "residual", "source"


def fitted(predictor: Predictor, image: Image) -> LensFit:
    """The lens model of an image."""
    (prediction,) = predictor.predict_images([predictor.framed(image, None)])
    assert prediction.macromodel
    return fit(lens_fits.lens_image(image, image.pixel_scale), lens_fits.start(prediction.macromodel))


def draw(row: list[Axes], path: Path, model: LensFit, theta_e: float | None) -> None:
    """One lens: `PANELS`."""
    noise = (model.image - model.model) / model.residual
    planes = (model.image, model.image - model.galaxy, model.model - model.galaxy)
    for axes, plane in zip(row, planes, strict=False):
        axes.imshow(np.arcsinh(plane / noise / SOFTENING), origin="lower", cmap="inferno", vmin=-0.5)
    row[2].images[0].set_clim(row[1].images[0].get_clim())
    row[3].imshow(model.residual, origin="lower", cmap="RdBu_r", vmin=-MOST, vmax=MOST)
    row[4].imshow(model.source, origin="lower", cmap="inferno")
    name = path.parent.name if path.stem == "data" else path.stem
    known = f", published {theta_e:.2f}" if theta_e else ""
    row[0].set_ylabel(f"{name}\n{shape(model.parameters)[0]:.2f}{known}\nchi2 {model.chi2:.2f}", fontsize=8)
    side = model.source_step * len(model.source)
    row[4].set_xlabel(f'{side:.1f}" a side', fontsize=7)
    for axes in row:
        axes.set(xticks=[], yticks=[])


def main() -> None:
    """Draw."""
    predictor, out, paths = Predictor.load(sys.argv[1]), Path(sys.argv[2]), list(map(Path, sys.argv[3:]))
    figure = Figure(figsize=(1.9 * len(PANELS), 1.9 * len(paths)), facecolor="white", layout="constrained")
    grid = figure.subplots(len(paths), len(PANELS), squeeze=False)
    for row, (path, image) in zip(grid, lens_images.read(paths).items(), strict=True):
        draw(list(row), Path(path), fitted(predictor, image), published(Path(path)))
    for axes, title in zip(grid[0], PANELS, strict=True):
        axes.set_title(title, fontsize=8)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
