"""Simulated images as FITS files, one an image, with their truth.

SPLIT/CLASS/0000012.fits   SCI        counts above the minimum, the truth in its header
                           KAPPA      convergence, NOISELES the noiseless image; where maps were saved
                           SUBHALO    a table of the subhaloes, in arcsec and solar masses
simulation.json            survey and seed
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sublens.data.store import Chunk, Origin, Source
from sublens.storage.files import Kind, whole_folder
from sublens.surveys.extra import CONTAMINANTS
from sublens.surveys.survey import Survey

if TYPE_CHECKING:
    from astropy.io.fits import HDUList, Header


EXTENSIONS = {"convergence": "KAPPA", "noiseless": "NOISELES"}
"""Name of the extension for each map."""


def write(
    out: Path, classes: tuple[str, ...], origin: Origin, splits: Mapping[str, Source], *, force: bool = False
) -> None:
    """Write every image of every split; raises as `whole_folder` does."""
    assert origin.survey is not None, "only simulations are written as FITS"
    with whole_folder(out, kind=Kind.DATASET, force=force) as folder:
        origin.write_beside(folder)
        for split, source in splits.items():
            for name in classes:
                (folder / split / name).mkdir(parents=True)
            for chunk in source(0):
                for row, (label, image_id) in enumerate(zip(chunk.labels, chunk.ids, strict=True)):
                    name = str(image_id).rsplit("/", 1)[-1]
                    hdus = _hdus(chunk, row, classes[label], origin.survey)
                    hdus.writeto(folder / split / classes[label] / f"{name}.fits")


def _hdus(chunk: Chunk, row: int, label: str, survey: Survey) -> "HDUList":
    from astropy.io import fits  # slow to import

    assert chunk.truth is not None, "only simulations are written as FITS"
    truth = chunk.truth.take(np.array([row]))
    header = _pixels(survey)
    header["CLASS"] = (label, "what the lens holds")
    header["SURVEY"] = (survey.name, "preset it was simulated with")
    header["GAIN"] = (survey.camera.gain, "electrons a count")
    for table in (truth.scenes, *(() if truth.extra is None else (truth.extra,))):
        for column in (name for name in table.dtype.names or () if name not in CONTAMINANTS):
            header[f"HIERARCH SUBLENS {column}"] = table[column][0].item()
    planes = [fits.ImageHDU(plane[row], _pixels(survey), EXTENSIONS[name]) for name, plane in chunk.maps.items()]
    subhaloes = fits.BinTableHDU(truth.subhaloes, name="SUBHALO")
    return fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(chunk.counts[row], header, "SCI"), *planes, subhaloes])


def _pixels(survey: Survey) -> "Header":
    return centred(survey.camera.n_pixels, survey.camera.pixel_scale)


def centred(n_pixels: int, pixel_scale: float) -> "Header":
    """Linear coordinates in arcsec, 0 at the lens."""
    from astropy.io import fits

    header = fits.Header()
    for axis, name in ((1, "X"), (2, "Y")):
        header[f"CTYPE{axis}"], header[f"CUNIT{axis}"] = name, "arcsec"
        header[f"CRPIX{axis}"], header[f"CRVAL{axis}"] = (n_pixels + 1) / 2, 0.0
        header[f"CDELT{axis}"] = (pixel_scale, "arcsec a pixel")
    return header
