"""Stamps: small images of real galaxies, read from files and cleaned of sky, noise and neighbours."""

import warnings
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveFloat, ValidationInfo, field_serializer, model_validator

from sublens.config import Frozen
from sublens.errors import ConfigError, ImageError, SublensError
from sublens.images import fits_image, formats, wcs
from sublens.images.limits import check_sides, name_errors, translate_errors, unpack
from sublens.images.pixels import Image, RawImage, fill_missing
from sublens.images.signal_to_noise import edge, robust_sigma
from sublens.surveys.image_file import digest, image_files
from sublens.surveys.priors import Floats

MAX_STAMPS = 4096
"""Most stamps of a survey."""
MAX_STAMP = 512
"""Longest side of a stamp, pixels."""
MIN_STAMP, MIN_GALAXY = 8, 9
"""Shortest side of a stamp, and least number of pixels that its galaxy covers."""
SMOOTHINGS = (4.0, 2.0, 1.0, 0.0)
"""Standard deviations of the blurs between which light is chosen by its signal to noise, pixels."""
DETECTING = 2.0
"""Standard deviation of the blur in which a galaxy ends at `FAINT`, pixels."""
FAINT = 1.5
"""Brightness at which a galaxy ends, in standard deviations of the blurred border; from twice that on all is kept."""
LEAST_PEAK = 3.5
"""Least peak of a galaxy over the brightness at which it ends; what is fainter may be noise."""
CLEAR = 4.0
"""Signal to noise at which finer light counts as much as the more blurred."""
FAINTEST = 1e-4
"""Least such standard deviation over the brightest pixel, for stamps without noise."""
MARGIN = 2
"""Empty pixels around a cleaned galaxy."""


class Stamp(NamedTuple):
    """One galaxy in the middle of its image."""

    pixels: NDArray[np.float32]
    """Share of the light in each pixel [h, w], with a margin of `MARGIN` empty ones; of sum 1."""
    scale: float
    """Arcsec a pixel."""
    flux: float
    """All of its light, in the unit of its file."""


class StampFiles(Frozen):
    """Stamps of galaxies: one file of many images, or a folder of files; without those in which none stands out."""

    file: Path | None = None
    """Path of a FITS file of many extensions, or of a stack in .npy, .npz or HDF5, relative to the survey's own file;
    alternative to `folder`."""
    folder: Path | None = None
    """Folder of image files, relative to the survey's own file; alternative to `file`."""
    scale: PositiveFloat | None = None
    """Arcsec a pixel of the stamps; unset, what their headers say."""
    sha256: str = ""
    """Hash of the files' bytes; filled in when the survey is read."""

    @model_validator(mode="after")
    def _resolved(self, info: ValidationInfo) -> Self:
        if (self.file is None) == (self.folder is None):
            raise ValueError("needs either file or folder")
        if not info.context:  # as in a manifest, which is read without the files
            return self
        path = (info.context["folder"] / self.path).resolve()
        try:
            own = _digest(path)
            _read(path, self.scale, own)
        except SublensError as err:
            raise ValueError(str(err)) from err
        return self.model_copy(update={"file" if self.file else "folder": path, "sha256": own})

    @property
    def path(self) -> Path:
        """The file or the folder."""
        return self.file or self.folder or Path()

    def stamps(self) -> tuple[Stamp, ...]:
        """The cleaned stamps in which a galaxy stands out, in the order of their files; see `clean`.

        Raises `ConfigError` where the files are not those that the survey was read with.
        """
        if self.sha256 and not (self.path.exists() and _digest(self.path) == self.sha256):
            raise ConfigError(
                "is missing, or does not hold the stamps that this survey was made with",
                need=f"the files whose sha256 begins with {self.sha256[:12]}",
                next="Put them back, or read the survey again from its TOML file.",
                path=self.path,
            )
        return _read(self.path, self.scale, self.sha256)

    @field_serializer("file", "folder")
    def _name(self, path: Path | None) -> str | None:
        return path.name if path else None


def _files(path: Path) -> list[Path]:
    """The file, or the images of a folder by name; raises `ConfigError` where there are none."""
    files = image_files(path) if path.exists() else []
    if not files:
        raise ConfigError(
            "holds no stamps" if path.is_dir() else "no such file or folder",
            need="image files of galaxies, one or many",
            next="Correct source.file or source.folder.",
            path=path,
        )
    return files[: MAX_STAMPS + 1]


def _digest(path: Path) -> str:
    """Hash of the stamps at this path; raises `ConfigError` where they cannot be read."""
    try:
        return digest(_files(path))
    except OSError as err:
        what = f"cannot be read ({err.strerror})"
        raise ConfigError(what, need="files that you may read", next="Check them.", path=path) from err


@lru_cache(maxsize=4)
def _read(path: Path, scale: float | None, sha256: str) -> tuple[Stamp, ...]:
    """The cleaned stamps of a file or folder with that hash; raises `SublensError` that names the faulty one."""
    stamps: list[Stamp] = []
    for name, image in _images(_files(path)):
        if len(stamps) == MAX_STAMPS:
            what, need = f"holds more than {MAX_STAMPS:,} stamps", f"at most {MAX_STAMPS:,}"
            raise ConfigError(what, need=need, next="Choose some of them.", path=path)
        with name_errors(name):
            stamps.extend(_stamp(image, scale))
    if not stamps:
        what, need = "no galaxy stands out in any of its images", "galaxies brighter than the noise of the border"
        raise ConfigError(what, need=need, next="Choose other stamps.", path=path)
    return tuple(stamps)


def _images(files: Iterable[Path]) -> Iterator[tuple[str, Image]]:
    """Each image of these files with its name for errors."""
    for file in files:
        images = _extensions(file) if formats.is_fits(file) else formats.read_all(file)
        for number, image in enumerate(images):
            if isinstance(image, ImageError):
                raise image
            yield f"{file}, image {number}", image


def _extensions(path: Path) -> Iterator[Image]:
    """The images of a FITS file but for noise maps, masks and the like."""
    with name_errors(path), translate_errors("a FITS file"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # blemishes of headers
        with unpack(path) as file, fits_image.open_hdus(file) as hdus:
            for number, hdu in enumerate(hdus):
                if hdu.is_image and hdu.header.get("NAXIS") == 2 and hdu.name.upper() not in fits_image.ROLES:
                    check_sides(hdu.shape)
                    pixels = fits_image.linear(np.array(hdu.data), hdu.header)
                    where = wcs.read_wcs(hdu.header).pixel_scale, None, None
                    yield fill_missing(RawImage(pixels, wcs=where), formats.image_name(path, number))


def _stamp(image: Image, scale: float | None) -> list[Stamp]:
    """The cleaned stamp of an image, none where no galaxy stands out; raises `ImageError` where it cannot be one."""
    sides = image.pixels.shape
    if min(sides) < MIN_STAMP or max(sides) > MAX_STAMP:
        what, need = f"has {sides[0]} x {sides[1]} pixels", f"a stamp of {MIN_STAMP} to {MAX_STAMP} a side"
        raise ImageError(what, need=need, next="Cut out the galaxy, or leave it out.")
    own = scale or image.pixel_scale
    if own is None:
        need = "the scale of its pixels, arcsec"
        raise ImageError("its header has no pixel scale", need=need, next="Set source.scale.")
    pixels = clean(image.pixels)
    flux = float(pixels.sum())
    return [Stamp((pixels / flux).astype(np.float32), own, flux)] if flux else []


def clean(pixels: Floats) -> Floats:
    """The brightest connected galaxy of a stamp [h, w], in the middle of an image with a margin, nothing below 0.

    The median of the border is subtracted as the sky. Where the blurred galaxy is fainter than twice `FAINT`, light
    fades out smoothly and is gone at `FAINT`, and what is not connected to it is gone as well; inside, faint light is
    blurred, see `_smoothed`. The stamp's own point-spread function stays in. An image of zeros where no galaxy stands
    out.
    """
    from scipy import ndimage  # slow to import

    light = pixels - np.median(_border(pixels))
    smooth = ndimage.gaussian_filter(light, DETECTING)
    least = FAINT * max(robust_sigma(_border(smooth)), FAINTEST * float(smooth.max()))
    galaxy = _brightest_part(smooth, smooth > least)
    if np.count_nonzero(galaxy) < MIN_GALAXY or smooth[galaxy].max() < LEAST_PEAK * least:
        return np.zeros_like(light)
    rise = np.clip(smooth / least - 1, 0, 1)
    return _centred((_smoothed(light) * rise**2 * (3 - 2 * rise) * galaxy).clip(0))


def _smoothed(light: Floats) -> Floats:
    """Light blurred the more the fainter it is against the noise, the spread of the border after each blur."""
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(light, SMOOTHINGS[0])
    for sigma in SMOOTHINGS[1:]:
        finer = ndimage.gaussian_filter(light, sigma) if sigma else light
        signal, noise = smooth**2, (CLEAR * robust_sigma(_border(finer))) ** 2
        smooth = smooth + signal / np.maximum(signal + noise, 1e-300) * (finer - smooth)
    return np.asarray(smooth)


def _border(pixels: Floats) -> Floats:
    """The values of the outermost tenth of an image, or of its outermost pixels."""
    width = max(1, min(pixels.shape) // 10)
    return pixels[edge(pixels.shape, width)]


def _brightest_part(light: Floats, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The connected part of a mask that holds most light; a mask without parts as it is."""
    from scipy import ndimage

    labels, n = ndimage.label(mask)
    return labels == 1 + np.argmax(ndimage.sum_labels(light, labels, np.arange(1, n + 1))) if n else mask


def _centred(light: Floats) -> Floats:
    """Light cut out around the pixel next to its centroid, so that all of it is kept, with a margin."""
    axes = []
    for axis in (0, 1):
        profile = light.sum(axis=1 - axis)
        middle = round(float(np.average(np.arange(len(profile)), weights=profile)))
        reach = int(np.abs(np.flatnonzero(profile) - middle).max()) + MARGIN
        axes.append((middle - reach, middle + reach + 1))
    pad = max(0, *(max(-low, high - side) for (low, high), side in zip(axes, light.shape, strict=True)))
    (top, bottom), (left, right) = axes
    return np.asarray(np.pad(light, pad)[top + pad : bottom + pad, left + pad : right + pad])
