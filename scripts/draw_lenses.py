"""Draw a sheet of real lenses with what a network predicts of each.

    python scripts/draw_lenses.py TABLE OUT.png [FOLDER]

TABLE: a .csv that `sublens predict --out` wrote of the FITS files in FOLDER, by default the 26 SLACS lenses of
`$SUBLENS_SHARED/data/slacs`. Each picture is the image over its noise, stretched by asinh; its frame is red where
it is out of distribution. Below it stand the class and its probability and, where the table and the header have
them, the Einstein radius and the published one.
"""

import csv
import os
import sys
from pathlib import Path

import numpy as np
from astropy.io import fits
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sublens.evaluation import lens_images
from sublens.images.pixels import Image
from sublens.images.signal_to_noise import weigh

COLUMNS = 7
FIELD = 6.0
"""Side of a picture, arcsec."""
SOFTENING = 3.0
"""Signal to noise at which the stretch turns from linear to logarithmic."""


def middle(image: Image) -> np.ndarray:
    """The middle of an image in signal to noise, masked pixels NaN."""
    weighed = weigh(image)
    assert weighed.mask is not None
    assert weighed.noise is not None
    half = round(FIELD / 2 / (image.pixel_scale or 1))
    y, x = (side // 2 for side in image.pixels.shape)
    part = slice(max(y - half, 0), y + half), slice(max(x - half, 0), x + half)
    return np.asarray((np.where(weighed.mask, np.nan, weighed.pixels) / weighed.noise)[part])


def published(path: Path) -> float | None:
    """The Einstein radius in a header, arcsec."""
    with fits.open(path) as hdus:
        return next((float(hdu.header["THETAE"]) for hdu in hdus if "THETAE" in hdu.header), None)


def caption(row: dict[str, str], theta_e: float | None) -> str:
    """Class with its probability, and Einstein radii, in words."""
    if not row["label"]:
        return row["error"].removeprefix(f"{row['path']}: ")[:40]
    words = f"{row['label']} {float(row['p_' + row['label']]):.2f}"
    if row.get("theta_e"):
        words += f'\n{float(row["theta_e"]):.2f} ± {float(row["theta_e_sigma"]):.2f}"'
        words += f', published {theta_e:.2f}"' if theta_e else ""
    return words


def draw(axes: Axes, path: Path, image: Image, row: dict[str, str]) -> None:
    """One lens."""
    axes.imshow(np.arcsinh(middle(image) / SOFTENING), origin="lower", cmap="inferno")
    axes.set_title(path.stem, fontsize=8)
    axes.set_xlabel(caption(row, published(path)), fontsize=7)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color="red" if row["ood"].lower() == "true" else "black", linewidth=1.5)


def main() -> None:
    """Draw."""
    table, out = map(Path, sys.argv[1:3])
    shared = Path(os.environ.get("SUBLENS_SHARED", Path(__file__).parents[2] / "shared"))
    folder = Path(sys.argv[2]) if len(sys.argv) > 3 else shared / "data" / "slacs"
    with table.open(newline="") as file:
        rows = [(folder / Path(row["path"]).name, row) for row in csv.DictReader(file)]
    n_rows = -(-len(rows) // COLUMNS)
    figure = Figure(figsize=(1.6 * COLUMNS, 2.1 * n_rows), facecolor="white", layout="constrained")
    grid = figure.subplots(n_rows, COLUMNS, squeeze=False).ravel()
    images = lens_images.read(path for path, _ in rows)
    for axes, (path, row), image in zip(grid, rows, images.values(), strict=False):
        draw(axes, path, image, row)
    for axes in grid[len(rows) :]:
        axes.set_axis_off()
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    main()
