"""Point-spread functions of the presets' cameras, worked out from their telescopes' apertures.

    python scripts/make_psf.py src/sublens/surveys

Writes NAME-psf.npy, float32 [n, k, k], each adding up to 1, for every camera of `TELESCOPES`. Fraunhofer diffraction:
the squared modulus of the Fourier transform of an aperture with a random wavefront error of low orders, averaged over
the filter; then one Gaussian for jitter, the detector's diffusion and drizzling, the place of the star within its
pixel, and the mean over the pixel, which a recorded point-spread function holds. Light a pixel in rings one pixel
wide, here and as published with an image: hst-acs 0.12 to 0.18, 0.056, 0.012, 0.004 against 0.198, 0.053, 0.014, 0.004
(SLACS J0037-0942); euclid-vis 0.13 to 0.18, 0.060, 0.013, 0.004 against 0.162, 0.061, 0.013, 0.003 (a lens of Euclid's
first quick release).

Sources: apertures, vanes and filters from the instruments' handbooks (ACS and WFC3: STScI; Euclid VIS: Cropper et al.
2024, arXiv:2405.13492; NIRCam: JDox).
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, shift

Floats = NDArray[np.float64]
ARCSEC = float(np.degrees(1)) * 3600
"""Arcsec in a radian."""
POINTS, PARTS, N_WAVES = 128, 5, 5
"""Points across the aperture, parts of a pixel along a side, and wavelengths across a filter."""
NUMBER, SEED = 16, 1
"""Point-spread functions of each camera, and the seed of their wavefronts."""


class Telescope(NamedTuple):
    """Aperture, filter and pixels of one camera."""

    diameter: float
    """Metres."""
    obscuration: float
    """Diameter of the central obscuration over that of the aperture."""
    vanes: tuple[float, ...]
    """Directions of the vanes that hold the secondary mirror, degrees."""
    vane_width: float
    """Width of a vane over the aperture's radius."""
    wavelengths: tuple[float, float]
    """Ends of the filter, micrometres."""
    wavefront: float
    """Root mean square of the wavefront's error, micrometres; drawn from half to one and a half of it."""
    blur: tuple[float, float]
    """Least and greatest standard deviation of jitter, diffusion and drizzling, arcsec."""
    pixel_scale: float
    """Arcsec."""
    side: int
    """Pixels along a side, odd."""
    is_hexagonal: bool = False
    """Whether the aperture's edge is a hexagon instead of a circle."""


QUARTERS = (0.0, 90.0, 180.0, 270.0)
TELESCOPES = {
    "hst-acs": Telescope(2.4, 0.33, QUARTERS, 0.022, (0.71, 0.96), 0.035, (0.02, 0.035), 0.05, 41),
    "hst-wfc3": Telescope(2.4, 0.33, QUARTERS, 0.022, (1.40, 1.70), 0.035, (0.03, 0.05), 0.08, 41),
    "euclid-vis": Telescope(1.2, 0.34, (0.0, 120.0, 240.0), 0.02, (0.55, 0.92), 0.03, (0.05, 0.07), 0.1, 41),
    "jwst-nircam": Telescope(6.5, 0.12, (90.0, 210.0, 330.0), 0.03, (1.33, 1.67), 0.06, (0.012, 0.02), 0.031, 61, True),
}


def axes() -> tuple[Floats, Floats]:
    """Positions across the aperture in units of its radius, a row and a column."""
    axis = np.asarray((np.arange(POINTS) - (POINTS - 1) / 2) / (POINTS / 2), np.float64)
    return axis[None, :], axis[:, None]


def aperture(telescope: Telescope) -> NDArray[np.bool_]:
    """Points of the aperture that light passes, [POINTS, POINTS]."""
    x, y = axes()
    r = np.hypot(x, y)
    is_open = (r <= 1) & (r >= telescope.obscuration)
    if telescope.is_hexagonal:
        sides = np.radians([0, 60, 120])
        is_open &= np.max([np.abs(x * np.cos(side) + y * np.sin(side)) for side in sides], axis=0) <= 0.9
    for angle in np.radians(telescope.vanes):
        along, across = x * np.cos(angle) + y * np.sin(angle), x * np.sin(angle) - y * np.cos(angle)
        is_open &= (along < 0) | (np.abs(across) > telescope.vane_width / 2)
    return is_open


def wavefront(is_open: NDArray[np.bool_], rng: np.random.Generator) -> Floats:
    """A sum of focus, astigmatism, coma, trefoil and spherical aberration of random amplitudes; root mean square 1."""
    x, y = axes()
    r2 = x * x + y * y
    focus, sphere = 2 * r2 - 1, 6 * r2 * r2 - 6 * r2 + 1
    shapes = [focus, x * x - y * y, 2 * x * y, (3 * r2 - 2) * x, (3 * r2 - 2) * y]
    shapes += [sphere, (x * x - 3 * y * y) * x, (3 * x * x - y * y) * y]
    total = sum(rng.normal() * shape / np.sqrt(np.mean(shape[is_open] ** 2)) for shape in shapes)
    return np.asarray(total / np.sqrt(np.mean(np.asarray(total)[is_open] ** 2)))


def psf(telescope: Telescope, rng: np.random.Generator) -> NDArray[np.float32]:
    """One point-spread function, [side, side], of sum 1."""
    is_open, n = aperture(telescope), telescope.side * PARTS
    error = wavefront(is_open, rng) * telescope.wavefront * rng.uniform(0.5, 1.5)
    angle = (np.arange(n) - (n - 1) / 2) * telescope.pixel_scale / PARTS / ARCSEC
    place = (np.arange(POINTS) - (POINTS - 1) / 2) * telescope.diameter / POINTS
    light = np.zeros((n, n))
    for wavelength in np.linspace(*telescope.wavelengths, N_WAVES):
        waves = np.exp(-2j * np.pi * np.outer(angle, place) / (wavelength * 1e-6))
        intensity = np.abs(waves @ (is_open * np.exp(2j * np.pi * error / wavelength)) @ waves.T) ** 2
        light += intensity / intensity.sum()
    light = gaussian_filter(light, rng.uniform(*telescope.blur) / telescope.pixel_scale * PARTS)
    light = shift(light, rng.uniform(-PARTS / 4, PARTS / 4, 2), order=1)
    pixels = light.reshape(telescope.side, PARTS, telescope.side, PARTS).mean((1, 3))
    return np.asarray(pixels / pixels.sum(), np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    for name, telescope in TELESCOPES.items():
        rng = np.random.default_rng(SEED)
        np.save(folder / f"{name}-psf.npy", np.stack([psf(telescope, rng) for _ in range(NUMBER)]))


if __name__ == "__main__":
    main()
