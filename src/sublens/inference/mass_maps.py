"""Predicted maps of substructure mass as FITS files, one an image."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sublens.data.fits_folder import centred
from sublens.images.pixels import TangentPlane
from sublens.storage.files import Kind, whole_folder

if TYPE_CHECKING:
    from astropy.io.fits import Header

Draw = Callable[[str, NDArray[np.float64], TangentPlane | None], None]
"""Function that writes a map under a name."""
MAPS = "maps.json"
"""File that marks a folder of maps as written by sublens."""


@contextmanager
def maps(folder: Path, cell_arcsec: float, *, force: bool) -> Iterator[Draw]:
    """Open a new folder for maps of substructure mass; yields a function that writes one.

    It takes a file name, the map [g, g], Msun a cell with rows along y, and where it lies on the sky; without that its
    coordinates are arcsec from the centre.
    """
    from astropy.io import fits

    with whole_folder(folder, kind=Kind.MAPS, force=force) as partial:
        (partial / MAPS).write_text(json.dumps({"cell_arcsec": cell_arcsec}) + "\n", encoding="utf-8")

        def draw(name: str, masses: NDArray[np.float64], plane: TangentPlane | None) -> None:
            header = _on_sky(len(masses), plane) if plane else centred(len(masses), cell_arcsec)
            header["BUNIT"] = ("solMass", "substructure, as a network predicts it")
            fits.PrimaryHDU(masses.astype(np.float32), header).writeto(partial / name)

        yield draw


def _on_sky(n_cells: int, plane: TangentPlane) -> "Header":
    """Coordinates on the sky of a map [n_cells, n_cells]."""
    from astropy.io import fits

    header = fits.Header()
    for axis in (0, 1):
        header[f"CTYPE{axis + 1}"], header[f"CUNIT{axis + 1}"] = plane.axes[axis], "deg"
        header[f"CRPIX{axis + 1}"] = (n_cells + 1) / 2 + plane.offset[axis]
        header[f"CRVAL{axis + 1}"] = plane.crval[axis]
        header[f"CD{axis + 1}_1"], header[f"CD{axis + 1}_2"] = plane.cd[2 * axis : 2 * axis + 2]
    header.update({"RADESYS": plane.radesys} if plane.radesys else {})
    header.update({"EQUINOX": plane.equinox} if plane.equinox else {})
    return header
