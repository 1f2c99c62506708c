"""A survey: the distributions that scenes are drawn from, and the camera that observes them.

A survey is data: a TOML file with the sections below. Wherever a `Prior` stands, a number means
a fixed value; `{ uniform = [low, high] }` and the others of `PRIORS` mean a distribution.
Sky angles are arcsec; position angles are radians, counter-clockwise from x, of the long axis.
Knows no torch.
"""

import sys
from collections.abc import Callable, Mapping
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from sublens.config import Frozen
from sublens.errors import ConfigError, ImageError, nearest
from sublens.images import formats
from sublens.images.pixels import Image
from sublens.images.resample import SAME_SCALE
from sublens.storage.files import sha256

Floats = NDArray[np.float64]
FWHM_PER_SIGMA = 2 * np.sqrt(2 * np.log(2))
MIN_KERNEL = 3
"""Least number of the camera's pixels along a side of a point-spread function."""
MIN_FWHM = 1.5
"""Least number of points, at which light is computed, in the full width of a profile: else its width is off by 1 %."""
MAX_SUPERSAMPLING = 16
"""Most points along one side of a pixel."""
MAX_REACH = 512
"""Farthest that a point-spread function reaches from its middle, pixels: half of the largest image."""
ALMOST_ONE = 1 - 2**-53
"""Largest value of a uniform draw."""


def _normal(u: Floats, mean: float, sigma: float) -> Floats:
    from scipy.special import ndtri

    return np.asarray(mean + sigma * ndtri(np.maximum(u, 2**-54)))


def _power_law(u: Floats, slope: float, low: float, high: float) -> Floats:
    """Quantiles by way of logarithms, exact for slopes near -1 as well."""
    power, reach = slope + 1, np.log(high / low)
    share = u * reach if power == 0 else np.log1p(u * np.expm1(power * reach)) / power
    return np.asarray(low * np.exp(share))


def _poisson(u: Floats, mean: float) -> Floats:
    from scipy.special import pdtr

    reach = np.arange(int(mean + 12 * np.sqrt(mean) + 40))
    return np.searchsorted(pdtr(reach, mean), u, side="right").astype(np.float64)


class Shape(NamedTuple):
    """One kind of distribution."""

    parameters: tuple[str, ...]
    quantile: Callable[..., Floats]
    """Inverse of the cumulative distribution: (u, *parameters) -> values."""
    is_valid: Callable[..., bool]
    rule: str
    """Condition of `is_valid`, in words."""


PRIORS = {
    "fixed": Shape(("value",), lambda u, value: np.full_like(u, value), lambda value: True, ""),
    "uniform": Shape(
        ("low", "high"),
        lambda u, low, high: low + u * (high - low),
        lambda low, high: low <= high,
        "low <= high",
    ),
    "log_uniform": Shape(
        ("low", "high"),
        lambda u, low, high: _power_law(u, -1, low, high),
        lambda low, high: 0 < low <= high,
        "0 < low <= high",
    ),
    "normal": Shape(("mean", "sigma"), _normal, lambda mean, sigma: sigma >= 0, "sigma >= 0"),
    "power_law": Shape(
        ("slope", "low", "high"),
        _power_law,
        lambda slope, low, high: 0 < low <= high and abs((slope + 1) * np.log(high / low)) < 500,
        "0 < low <= high and a milder slope, as dN/dx ~ x^slope",
    ),
    "poisson": Shape(("mean",), _poisson, lambda mean: 0 < mean <= 1000, "0 < mean <= 1000"),
}


class Prior(Frozen):
    """Distribution of one quantity, of a kind in `PRIORS`."""

    kind: str
    """Key of `PRIORS`."""
    values: tuple[float, ...]
    """Parameters of that kind."""

    @model_validator(mode="before")
    @classmethod
    def _parsed(cls, value: object) -> object:
        if isinstance(value, Prior):
            return value
        if isinstance(value, bool) or not isinstance(value, int | float | Mapping):
            raise ValueError("needs a number or a prior such as { uniform = [0, 1] }")
        tree = value if isinstance(value, Mapping) else {"fixed": value}
        if tree.keys() == {"kind", "values"}:
            tree = {str(tree["kind"]): tree["values"]}
        if len(tree) != 1:
            raise ValueError("needs one prior, such as { uniform = [0, 1] }")
        ((kind, values),) = tree.items()
        if kind not in PRIORS:
            raise ValueError(f"there is no prior {kind!r}. {nearest(str(kind), PRIORS)}")
        shape = PRIORS[kind]
        numbers = values if isinstance(values, list | tuple) else [values]
        if len(numbers) != len(shape.parameters) or not all(_is_number(number) for number in numbers):
            raise ValueError(f"{kind} needs the numbers [{', '.join(shape.parameters)}]")
        if not shape.is_valid(*numbers):
            raise ValueError(f"{kind} needs {shape.rule}")
        return {"kind": kind, "values": tuple(map(float, numbers))}

    @model_serializer
    def _plain(self) -> float | dict[str, float | tuple[float, ...]]:
        if self.kind == "fixed":
            return self.values[0]
        return {self.kind: self.values if len(self.values) > 1 else self.values[0]}

    def quantile(self, u: Floats) -> Floats:
        """Values below which shares `u` of the draws lie; draws, for uniform u in [0, 1)."""
        return PRIORS[self.kind].quantile(u, *self.values)

    @property
    def low(self) -> float:
        """Least value, -inf if there is none."""
        return -np.inf if self.kind == "normal" else float(self.quantile(np.zeros(1))[0])

    @property
    def high(self) -> float:
        """Greatest value, inf if there is none."""
        return np.inf if self.kind == "normal" else float(self.quantile(np.full(1, ALMOST_ONE))[0])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _bounded(low: float, high: float, words: str, *, strict: bool = False) -> AfterValidator:
    def check(prior: Prior) -> Prior:
        if prior.low < low or prior.high > high or (strict and prior.low == low):
            raise ValueError(f"reaches from {prior.low:g} to {prior.high:g}; needs to stay {words}")
        return prior

    return AfterValidator(check)


Positive = Annotated[Prior, _bounded(0, np.inf, "above 0", strict=True)]
NonNegative = Annotated[Prior, _bounded(0, np.inf, "at or above 0")]
AxisRatio = Annotated[Prior, _bounded(0.05, 1, "within 0.05 and 1")]
Fraction = Annotated[Prior, _bounded(0, 1, "within 0 and 1")]


class ImageFile(Frozen):
    """An image that a survey needs, named beside its TOML file."""

    file: Path
    """Path of a FITS, .npy or PNG file, relative to the survey's own file."""
    sha256: str = ""
    """Hash of the file's bytes; filled in when the survey is read."""

    @model_validator(mode="after")
    def _resolved(self, info: ValidationInfo) -> Self:
        if not info.context:  # as in a manifest, which is read without the file
            return self
        path = (info.context["folder"] / self.file).resolve()
        try:
            pixels = formats.read(path).pixels
        except ImageError as err:
            raise ValueError(str(err)) from err
        if pixels.sum() <= 0 or pixels.min() < -0.01 * pixels.max():
            raise ValueError(f"{path}: cannot be normalised, its pixels add up to {pixels.sum():g} or are negative")
        return self.model_copy(update={"file": path, "sha256": sha256(path)})

    def pixels(self) -> Floats:
        """The image, its negative noise set to zero.

        Raises `ConfigError` where the file is not the one that the survey was read with.
        """
        return self.image().pixels.clip(0)

    def image(self) -> Image:
        """The image as its file holds it; raises as `pixels` does."""
        if self.sha256 and not (self.file.is_file() and sha256(self.file) == self.sha256):
            raise ConfigError(
                "is missing, or not the file that this survey was made with",
                need=f"the file whose sha256 begins with {self.sha256[:12]}",
                next="Put it back, or read the survey again from its TOML file.",
                path=self.file,
            )
        return formats.read(self.file)

    @field_serializer("file")
    def _name(self, path: Path) -> str:
        return path.name


class Gaussian(Frozen):
    """A Gaussian point-spread function."""

    profile: Literal["gaussian"]
    fwhm: PositiveFloat
    """Full width at half maximum, arcsec."""


class Moffat(Frozen):
    """A Moffat point-spread function, (1 + r^2 / a^2)^-beta."""

    profile: Literal["moffat"]
    fwhm: PositiveFloat
    """Full width at half maximum, arcsec."""
    beta: Annotated[float, Field(gt=1)]
    """Steepness of the wings."""


class PixelatedPsf(ImageFile):
    """A point-spread function as an image with odd sides and a central peak, on the camera's own pixels or a scale
    that its file gives."""

    profile: Literal["pixelated"]

    def is_finer(self, pixel_scale: float) -> bool:
        """Whether its pixels are finer than those of `pixel_scale`, arcsec; raises as `pixels` does."""
        scale = self.image().pixel_scale
        return scale is not None and scale * (1 + SAME_SCALE) < pixel_scale

    def kernel(self, pixel_scale: float, most: int = MAX_REACH) -> Floats:
        """The image [k, k] of odd k on pixels of `pixel_scale`, arcsec, interpolated at their centres.

        most: pixels to either side of the middle that are kept. Raises as `pixels` does.
        """
        image = self.image()
        pixels, zoom = image.pixels.clip(0), (image.pixel_scale or pixel_scale) / pixel_scale
        if abs(zoom - 1) <= SAME_SCALE:
            return pixels
        from scipy import ndimage  # slow to import

        middle = len(pixels) // 2
        reach = min(int(middle * zoom + 1e-6), most)
        centres = middle + np.arange(-reach, reach + 1) / zoom
        grid = np.meshgrid(centres, centres, indexing="ij")
        return np.asarray(ndimage.map_coordinates(pixels, grid, mode="nearest").clip(0))

    def check(self, n_pixels: int | None, pixel_scale: float | None) -> None:
        """Raise `ValueError` where it does not fit an image of `n_pixels` of `pixel_scale`, arcsec, a side."""
        pixels, name = self.pixels(), self.file.name
        height, width = pixels.shape
        peak = np.unravel_index(pixels.argmax(), pixels.shape)
        if height != width or height % 2 == 0:
            raise ValueError(f"{name} has {height} x {width} pixels; needs a square of odd sides")
        size = len(self.kernel(pixel_scale)) if pixel_scale else height
        if n_pixels and size > n_pixels:
            raise ValueError(f"{name} has {size} pixels a side; needs to fit the image's {n_pixels}")
        if size < MIN_KERNEL:
            raise ValueError(f"{name} covers one of the camera's pixels; needs to cover {MIN_KERNEL} a side")
        if np.abs(np.subtract(peak, height // 2)).max() > 1:
            raise ValueError(f"{name} is not brightest in its middle; cut it out around its peak")


Psf = Annotated[Gaussian | Moffat | PixelatedPsf, Field(discriminator="profile")]


class Cosmology(Frozen):
    """Redshifts of lens and source, and the distances between them."""

    convention: Literal["angular-diameter", "deeplense"] = "angular-diameter"
    """Convention by which distances enter the Einstein radius; see `sublens.sim.cosmology`."""
    h0: PositiveFloat = 70
    """Hubble constant, km/s/Mpc."""
    om0: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Matter density of the flat LCDM universe."""
    z_lens: Positive
    """Lens redshift."""
    z_source: Positive
    """Source redshift, always above the lens's."""

    @field_validator("z_source")
    @classmethod
    def _behind(cls, z_source: Prior, info: ValidationInfo) -> Prior:
        z_lens = info.data.get("z_lens")
        if z_lens and z_source.low <= z_lens.high:
            raise ValueError(
                f"the source may be at {z_source.low:g}, in front of a lens at up to {z_lens.high:g}; "
                "needs to be behind it"
            )
        return z_source


class Camera(Frozen):
    """Pixels, point-spread function and noise. Light is measured in electrons, and saved in counts."""

    n_pixels: Annotated[int, Field(ge=8, le=1024)]
    """Pixels along one side of the image."""
    pixel_scale: PositiveFloat
    """Arcsec a pixel."""
    supersampling: Annotated[int, Field(ge=1, le=MAX_SUPERSAMPLING)] = 1
    """Points along one side of a pixel at which light is computed, blurred and then averaged; from 2 on, more points
    where light is steep. At 1 a pixel holds the light at its centre."""
    psf: Psf
    """Point-spread function, without the pixel's own blur; but a picture on the camera's pixels is taken to hold it,
    and is applied to whole pixels."""
    exposure_s: Positive = Prior(kind="fixed", values=(1.0,))
    """Length of one exposure, s."""
    n_exposures: PositiveInt = 1
    """Number of exposures that are added up."""
    zero_point: float | None = None
    """Magnitude of one electron a second."""
    background: NonNegative | None = None
    """Sky, electrons a pixel a second; alternative to `sky_magnitude`."""
    sky_magnitude: Prior | None = None
    """Sky, magnitudes a square arcsec; alternative to `background`."""
    background_rms: NonNegativeFloat = 0
    """Gaussian noise that grows with the exposure, electrons a pixel a second."""
    read_noise: NonNegativeFloat = 0
    """Gaussian noise of one read-out, electrons a pixel."""
    gain: PositiveFloat = 1
    """Electrons a count."""

    @field_validator("psf")
    @classmethod
    def _fits(cls, psf: Psf, info: ValidationInfo) -> Psf:
        n_pixels, scale = info.data.get("n_pixels"), info.data.get("pixel_scale")
        if isinstance(psf, PixelatedPsf):
            if info.context:
                psf.check(n_pixels, scale)
        elif n_pixels and scale and psf.fwhm > n_pixels * scale / 4:
            raise ValueError(
                f"is {psf.fwhm:g} arcsec wide; needs to fit the image's {n_pixels * scale:g} four times over"
            )
        elif info.context and scale and psf.fwhm < MIN_FWHM * scale / info.data.get("supersampling", 1):
            least = ceil(MIN_FWHM * scale / psf.fwhm)
            remedy = f"Set camera.supersampling = {least}" if least <= MAX_SUPERSAMPLING else "Choose smaller pixels"
            raise ValueError(
                f"is {psf.fwhm:g} arcsec wide on points {scale / info.data.get('supersampling', 1):g} apart; needs "
                f"{MIN_FWHM} of them. {remedy}"
            )
        return psf

    @model_validator(mode="after")
    def _one_sky(self) -> Self:
        if (self.background is None) == (self.sky_magnitude is None):
            raise ValueError("needs either background or sky_magnitude")
        if self.sky_magnitude and self.zero_point is None:
            raise ValueError("sky_magnitude needs zero_point")
        return self


class Halo(Frozen):
    """The lens galaxy's mass: a singular isothermal ellipsoid at the origin; a sphere where q is 1."""

    mass_msun: Positive
    """Mass of halo and substructure together inside the Einstein radius, solar masses."""
    conserves: Literal["ring", "total-mass"] = "ring"
    """Quantity that is the same with and without substructure. `ring`: the radius in which the mean convergence is 1;
    the halo lacks what substructure holds inside it. `total-mass`: the halo lacks all substructure, wherever it lies,
    and the size of the ring tells the class."""
    q: AxisRatio = Prior(kind="fixed", values=(1.0,))
    """Axis ratio of the convergence."""
    angle: Prior = Prior(kind="uniform", values=(0.0, float(np.pi)))
    """Position angle."""


class Shear(Frozen):
    """External shear about the origin."""

    gamma: Fraction
    """Strength."""
    angle: Prior
    """Position angle: images are drawn out along it."""


class Light(Frozen):
    """Brightness of a light component."""

    intensity: Positive | None = None
    """Electrons a pixel a second at the effective radius, or at the peak of a pixelated source; alternative to
    `magnitude`."""
    magnitude: Prior | None = None
    """Total magnitude, unlensed; alternative to `intensity`."""

    @model_validator(mode="after")
    def _one_brightness(self) -> Self:
        if (self.intensity is None) == (self.magnitude is None):
            raise ValueError("needs either intensity or magnitude")
        return self


class Placed(Light):
    """Brightness and position of a source: within a circle around the origin, or x and y independently."""

    angle: Prior
    """Position angle."""
    offset: NonNegative | None = None
    """Distance from the origin, in a uniform direction, arcsec; alternative to `x` and `y`."""
    x: Prior | None = None
    """Position of the centre along x, arcsec."""
    y: Prior | None = None
    """Position of the centre along y, arcsec."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.offset is None) == (self.x is None) or (self.x is None) != (self.y is None):
            raise ValueError("needs either offset, or x and y")
        return self


class SersicSource(Placed):
    """An elliptical Sersic source."""

    profile: Literal["sersic"] = "sersic"
    n: Annotated[Prior, _bounded(0.3, 10, "within 0.3 and 10")]
    """Sersic index."""
    r_eff: Positive
    """Effective radius, arcsec."""
    q: AxisRatio = Prior(kind="fixed", values=(1.0,))
    """Axis ratio."""


class PixelatedSource(Placed, ImageFile):
    """A picture of a real galaxy, without its sky, as the source."""

    profile: Literal["pixelated"]
    scale: PositiveFloat
    """Arcsec a pixel of the picture, in the source plane."""


class LensLight(Light):
    """The lens galaxy's own light: a Sersic profile at the origin with the halo's q and angle."""

    n: Annotated[Prior, _bounded(0.3, 10, "within 0.3 and 10")]
    """Sersic index."""
    r_eff: Positive
    """Effective radius, arcsec."""


class Subhaloes(Frozen):
    """The dark substructure of a `sphere` image."""

    profile: Literal["point", "nfw", "tnfw"] = "point"
    """Point masses, NFW haloes, or NFW haloes truncated as (1 + r^2 / r_t^2)^-1."""
    number: Annotated[Prior, _bounded(0, 1500, "within 0 and 1500")]
    """Number of subhaloes; rounded to a whole number."""
    mass_msun: Positive
    """Mass of one, solar masses; M200 at the lens redshift, before truncation, for the NFW kinds."""
    radius: NonNegative
    """Distance from the origin, in a uniform direction, arcsec."""
    concentration: Positive | None = None
    """r_200 over the scale radius; NFW kinds only."""
    truncation: Positive | None = None
    """Truncation radius over the scale radius; `tnfw` only."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.profile != "point") != (self.concentration is not None):
            raise ValueError("concentration goes with the profiles nfw and tnfw, and they with it")
        if (self.profile == "tnfw") != (self.truncation is not None):
            raise ValueError("truncation goes with the profile tnfw, and it with truncation")
        return self


class Vortex(Frozen):
    """The straight uniform string of a `vort` image."""

    mass_fraction: Fraction
    """Mass over the halo's `mass_msun`."""
    x: Prior
    """Position of the middle along x, arcsec."""
    y: Prior
    """Position of the middle along y, arcsec."""
    half_length: Positive
    """Half of its length, arcsec."""
    angle: Prior = Prior(kind="uniform", values=(0.0, float(2 * np.pi)))
    """Position angle."""


class Survey(Frozen):
    """A survey: the distributions of its lenses and sources, and its camera."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    """Name of the survey and of its data sets: letters, digits, dots, dashes and underscores."""
    description: Annotated[str, Field(pattern=r"\S")]
    """Purpose in a sentence; below it, corrections and the sources of its numbers."""
    cosmology: Cosmology
    """Redshifts of lens and source, and the distances between them."""
    camera: Camera
    """Pixels, point-spread function and noise."""
    halo: Halo
    """Mass of the lens galaxy."""
    shear: Shear
    """Shear from the mass around the lens."""
    source: Annotated[SersicSource | PixelatedSource, Field(discriminator="profile")]
    """Lensed galaxy."""
    lens_light: LensLight | None = None
    """Light of the lens galaxy; dark if left out."""
    subhaloes: Subhaloes
    """Substructure of the class `sphere`."""
    vortex: Vortex
    """Substructure of the class `vort`."""

    @field_validator("source", mode="before")
    @classmethod
    def _sersic_by_default(cls, value: Any) -> Any:
        return {"profile": "sersic", **value} if isinstance(value, Mapping) else value

    @field_validator("source", "lens_light")
    @classmethod
    def _has_zero_point(cls, light: Light | None, info: ValidationInfo) -> Light | None:
        camera = info.data.get("camera")
        if light and light.magnitude and camera and camera.zero_point is None:
            raise ValueError("magnitude needs camera.zero_point")
        return light

    @property
    def field(self) -> float:
        """Side of the image, arcsec."""
        return self.camera.n_pixels * self.camera.pixel_scale
