"""Predicted maps of substructure mass as FITS files, one an image."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sublens.data.fits_folder import centred
from sublens.storage.files import whole_folder

MAPS = "maps.json"
"""File that marks a folder of maps as written by sublens."""


@contextmanager
def maps(folder: Path, cell_arcsec: float, *, force: bool) -> Iterator[Callable[[str, NDArray[np.float64]], None]]:
    """Open a new folder for maps of substructure mass; yields a function that writes one.

    It takes a name and the map [g, g], Msun a cell with rows along y, and leaves NAME.fits.
    """
    from astropy.io import fits

    with whole_folder(folder, force=force) as partial:
        (partial / MAPS).write_text(json.dumps({"cell_arcsec": cell_arcsec}) + "\n", encoding="utf-8")

        def draw(name: str, masses: NDArray[np.float64]) -> None:
            header = centred(len(masses), cell_arcsec)
            header["BUNIT"] = ("solMass", "substructure, as a network predicts it")
            fits.PrimaryHDU(masses.astype(np.float32), header).writeto(partial / f"{name}.fits")

        yield draw
