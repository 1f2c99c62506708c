"""A first survey from a user's own images: pixels, point-spread function, exposure, noise and brightness."""

import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sublens.config import read_toml
from sublens.errors import ImageError
from sublens.evaluation.lens_statistics import RADII, border, geometry, half_light, profile, statistics
from sublens.images.pixels import Image
from sublens.images.resample import SAME_SCALE
from sublens.images.signal_to_noise import RATE, fwhm, weigh
from sublens.sim import render
from sublens.sim.population import CLASSES, draw
from sublens.storage.files import write_bytes
from sublens.surveys import presets
from sublens.surveys.camera import FWHM_PER_SIGMA, MIN_FWHM
from sublens.surveys.survey import Survey

Floats = NDArray[np.float64]
MARK = "# Written by sublens match"
"""Start of every file that is written."""
MIN_SIDE, MAX_SIDE = 16, 1024
"""Least and most pixels along a side of an image."""
MIN_CORRELATION = 0.5
"""Least correlation of pixel and variance from which the electrons of a unit are measured."""
SAME_EXPOSURE = 1.05
"""Ratio of the longest exposure to the shortest up to which they count as the same."""
N_SIMULATED = 60
"""Simulated lenses on which the measurements are repeated, to tell light from its measurement."""
SPREAD = 0.5
"""Magnitudes to either side, and share of a radius, where fewer than `FEW` images tell of a range."""
FEW = 5
"""Images that tell of a range."""
POGSON = 2.5


class Value(NamedTuple):
    """A setting with its origin."""

    value: Any
    """Number, prior or table as TOML has it; None leaves the setting out."""
    source: str
    """Origin, in words."""


Settings = dict[str, Value]
"""Settings by section.key."""


class Match(NamedTuple):
    """A survey as TOML, and what it was measured from."""

    text: str
    """The TOML file."""
    psfs: Floats | None
    """The images' point-spread functions [n, k, k], which the text names; None where it names none."""
    psf_name: str
    """Name of their file, beside the TOML file."""
    settings: Settings
    """What was measured or guessed."""
    base: str
    """Name of the survey that all else is from."""

    def lines(self) -> list[str]:
        """The settings in words, one a line, for a user to read."""
        known = {key: value for key, value in self.settings.items() if value.value is not None}
        width = max(map(len, known))
        lines = [f"{key:{width}}  {_literal(value.value)}  {value.source}" for key, value in known.items()]
        return [*lines, f"All else is as in {self.base}: redshifts, masses, shear, shapes and sizes of sources."]

    def write(self, path: Path) -> Survey:
        """Write the TOML file, and the point-spread functions beside it, and read the survey back."""
        if self.psfs is not None:
            buffer = io.BytesIO()
            np.save(buffer, np.squeeze(self.psfs.astype(np.float32)))
            write_bytes(path.with_name(self.psf_name), buffer.getvalue())
        write_bytes(path, self.text.encode())
        return presets.preset(str(path))


class Light(NamedTuple):
    """Light of a lens, measured in the same way in real and in simulated images."""

    lens: float
    """Flux of the profile within half the field."""
    half_light_radius: float
    """Radius within which half of that lies, arcsec."""
    arcs: float
    """Flux without the profile within the annuli of `RADII`."""


class Measured(NamedTuple):
    """One image in the camera's units."""

    exposure_s: Value
    background: float
    """Variance of the noise without light, electrons a pixel a second."""
    zero_point: float
    """Magnitude of one electron a second; NaN where the image does not give it."""
    light: Light
    """Electrons a second."""
    peak_fwhm: float
    """Width of the brightest peak, arcsec."""
    drop: float
    """Side of the drops that the noise is drizzled from, over that of the pixels, as `sim.exposure.drizzled` has it."""


def match(images: Mapping[str, Image], base: str, name: str, pixel_scale: float | None = None) -> Match:
    """A survey of that name after images, by their names, and for all else after another survey.

    base: a preset's name or path. pixel_scale: arcsec, where the user knows better than the files. Raises
    `ImageError` where the images differ in scale, are too small or too large, or have no noise.
    """
    scale = _common_scale(images, pixel_scale)
    weighed = {path: _weighed(image, path) for path, image in images.items()}
    source, survey = presets.source(base), presets.preset(base)
    tree = _located(read_toml(source), source.parent)
    frames = [_measured(image, scale, survey) for image in weighed.values()]
    psfs, file = _psfs(weighed), f"{name}-psf.npy"
    width = _guessed_fwhm(frames, scale, survey) if psfs is None else fwhm(np.median(psfs, axis=0)) * scale
    settings = {**_pixels(weighed, scale), "camera.psf": _psf(psfs, len(images), width, file), **_noise(frames, survey)}
    settings |= _brightness(frames, _calibrating(survey, settings, width))
    return Match(_toml(tree, settings, survey.name, name, len(images)), psfs, file, settings, survey.name)


def survey_name(path: Path) -> str:
    """The name of a survey in a file of that path."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", path.stem)


def _weighed(image: Image, path: str) -> Image:
    """The image less its sky, with its noise; raises `ImageError`, about that path."""
    side = min(image.pixels.shape)
    if not MIN_SIDE <= side <= MAX_SIDE:
        raise ImageError(
            f"has {side} pixels along its shorter side",
            need=f"{MIN_SIDE} to {MAX_SIDE}",
            next="Cut the lens out with some sky around it.",
            path=path,
        )
    try:
        return weigh(image)
    except ImageError as err:
        raise err.about(path) from err


def _common_scale(images: Mapping[str, Image], pixel_scale: float | None) -> float:
    """The pixel scale of all images, arcsec."""
    if pixel_scale:
        return pixel_scale
    scales = {path: image.pixel_scale for path, image in images.items()}
    for path, scale in scales.items():
        if scale is None:
            raise ImageError("has no pixel scale", need="arcsec a pixel", next="Give it with --pixel-scale.", path=path)
    values = {path: scale for path, scale in scales.items() if scale}
    least, most = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    if values[most] / values[least] > 1 + SAME_SCALE:
        raise ImageError(
            f"has pixels of {values[most]:g} arcsec, but {least} of {values[least]:g}",
            need="images of one pixel scale",
            next="Match one camera at a time.",
            path=most,
        )
    return float(np.median(list(values.values())))


def _pixels(images: Mapping[str, Image], scale: float) -> Settings:
    side = min(min(image.pixels.shape) for image in images.values())
    origin = f"measured on {_count(len(images))}"
    return {
        "camera.n_pixels": Value(side, f"{origin}: the shortest side"),
        "camera.pixel_scale": Value(_rounded(scale, 5), origin),
    }


# --- point-spread function --------------------------------------------------------------------


def _psfs(images: Mapping[str, Image]) -> Floats | None:
    """The point-spread functions of the images, normalised, [n, k, k]; None where none has a usable one.

    Usable are those of the shape that most have, a square of odd sides with its peak in the middle.
    """
    psfs = [image.psf for image in images.values() if image.psf is not None and _is_centred(image.psf)]
    if not psfs:
        return None
    ((shape, _),) = Counter(psf.shape for psf in psfs).most_common(1)
    stack = np.stack([psf for psf in psfs if psf.shape == shape]).clip(0)
    return np.asarray(stack / stack.sum(axis=(1, 2), keepdims=True))


def _is_centred(psf: Floats) -> bool:
    """Whether a survey takes it: its sides are odd and alike, and its peak lies within a pixel of the middle."""
    height, width = psf.shape
    peak = np.unravel_index(psf.argmax(), psf.shape)
    return height == width and height % 2 == 1 and bool(np.abs(np.subtract(peak, height // 2)).max() <= 1)


def _psf(psfs: Floats | None, n: int, width: float, file: str) -> Value:
    """The point-spread functions of n images; without any, a Gaussian whose width is a guess."""
    if psfs is None:
        source = f"a guess: the narrowest peak of {_count(n)}; replace it"
        return Value({"profile": "gaussian", "fwhm": _rounded(width)}, source)
    profile = "pixelated-set" if len(psfs) > 1 else "pixelated"
    return Value({"profile": profile, "file": file}, f"those of {_count(len(psfs))}")


def _guessed_fwhm(frames: Sequence[Measured], scale: float, base: Survey) -> float:
    """Width of the narrowest peak, arcsec, as wide as the survey's points allow at least."""
    return max(min(frame.peak_fwhm for frame in frames), MIN_FWHM * scale / base.camera.supersampling)


def _peak_fwhm(image: Floats, scale: float) -> float:
    """Width of a Gaussian that falls as steeply as the brightest pixel's neighbours do, arcsec; inf at an edge."""
    y, x = np.unravel_index(np.nanargmax(image), image.shape)
    around = [image[row, column] for row, column in ((y - 1, x), (y, x - 1), (y, (x + 1) % image.shape[1]))]
    fall = np.log(image[y, x] / np.mean(around)) if np.mean(around) > 0 else np.nan
    return float(FWHM_PER_SIGMA * scale / np.sqrt(2 * fall)) if fall > 0 else np.inf


# --- exposure and noise -----------------------------------------------------------------------


def _measured(image: Image, scale: float, base: Survey) -> Measured:
    """One image, its sky taken off and its noise known, in electrons."""
    assert image.noise is not None
    pixels = np.where(image.mask, np.nan, image.pixels) if image.mask is not None else image.pixels
    variance = image.noise**2
    electrons, floor = _electrons(pixels, variance)
    exposure = _exposure(image, electrons, base)
    electrons = electrons or image.companions.gain or exposure.value
    rate, zero_point = electrons / exposure.value, image.companions.zero_point
    return Measured(
        exposure,
        floor * electrons**2 / exposure.value,
        np.nan if zero_point is None else zero_point + POGSON * np.log10(rate),
        light(pixels * rate, scale),
        _peak_fwhm(pixels, scale),
        _drop(statistics(pixels / image.noise, scale)["noise correlation"]),
    )


def _drop(correlation: float) -> float:
    """Side of the drops whose noise correlates so between neighbours: correlation = side / (6 - 2 side)."""
    return float(np.clip(6 * correlation / (1 + 2 * max(correlation, 0)), 0, 1))


def _electrons(pixels: Floats, variance: Floats) -> tuple[float | None, float]:
    """Electrons in a unit of the pixels, as the noise of bright ones shows them, and the variance without light.

    Photon noise adds pixel / electrons to the variance; None where the variance does not grow so.
    """
    good = np.isfinite(pixels) & np.isfinite(variance)
    pixels, variance = pixels[good], variance[good]
    low, high = pixels <= np.quantile(pixels, 0.3), pixels >= np.quantile(pixels, 0.98)
    step, rise = (np.median(values[high]) - np.median(values[low]) for values in (pixels, variance))
    floor = float(np.median(variance[low]))
    if rise <= 0 or step <= 0 or np.corrcoef(pixels, variance)[0, 1] < MIN_CORRELATION:
        return None, floor
    return float(step / rise), max(floor - float(np.median(pixels[low])) * rise / step, floor / 2)


def _exposure(image: Image, electrons: float | None, base: Survey) -> Value:
    """The length of all exposures of an image together, s."""
    companions = image.companions
    if companions.exposure:
        return Value(companions.exposure, "from the headers of")
    if electrons and RATE.search(companions.unit.strip().lower()):
        return Value(electrons, "from the noise of")
    camera = base.camera
    n_exposures = float(np.median(camera.n_exposures))
    return Value(camera.exposure_s.median * n_exposures, f"a guess after {base.name} for")


def _noise(frames: Sequence[Measured], base: Survey) -> Settings:
    exposures = [frame.exposure_s.value for frame in frames]
    origins = " and ".join(sorted({frame.exposure_s.source for frame in frames}))
    n = _count(len(frames))
    settings = {
        "camera.exposure_s": Value(_span(exposures), f"{origins} {n}"),
        "camera.n_exposures": Value(1, "exposures are counted together"),
        "camera.background": Value(
            _span([frame.background for frame in frames]),
            f"measured on {n}: noise without light, read-out included",
        ),
        "camera.sky_magnitude": Value(None, "background is in its place"),
        "camera.background_rms": Value(None, "within background"),
        "camera.read_noise": Value(0, "within background"),
    }
    if base.camera.pixels == "signal-to-noise":
        drops = {"uniform": [_rounded(end([frame.drop for frame in frames]), 2) for end in (min, max)]}
        settings["camera.noise_correlation"] = Value(drops, f"measured on the borders of {n}")
    return settings


# --- brightness -------------------------------------------------------------------------------


def light(image: Floats, scale: float) -> Light:
    """The light of a lens in an image [h, w] of any unit, NaN where masked; what its border has is taken off."""
    image = image - np.nanmedian(image[border(image.shape)])
    rings = geometry(image, scale)
    smooth = profile(image, rings, scale)
    reach = min(image.shape) * scale / 2
    inside = rings.radius < reach
    total, half = half_light(smooth[inside], rings.radius[inside])
    arcs = np.nan_to_num(image - smooth)[rings.between(RADII[0], min(RADII[-1], reach))].sum()
    return Light(total, half, float(arcs))


def _brightness(frames: Sequence[Measured], survey: Survey) -> Settings:
    """Magnitudes of lens and source, and the lens' radius, whose light measures as that of the images does.

    survey: the other survey, as `_calibrating` has it.
    """
    if survey.camera.zero_point is None:
        return {}
    measured = np.array([frame.light for frame in frames])
    simulated = np.array([light(image, survey.camera.pixel_scale) for image in _simulated(survey)])
    zero_points = np.array([frame.zero_point for frame in frames])
    known, zero_points = np.isfinite(zero_points), np.nan_to_num(zero_points, nan=survey.camera.zero_point)
    n, brightness = _count(len(frames)), Settings()
    if known.any():
        value = _rounded(float(np.median(zero_points[known])), 5)
        brightness["camera.zero_point"] = Value(value, f"measured on {_count(int(known.sum()))}")
    parts = {
        "lens_light": (survey.lens_light, 0, "light of the lens"),
        "source": (survey.source, 2, "light of the arcs"),
    }
    for section, (component, column, words) in parts.items():
        if component is None or component.magnitude is None:
            continue
        offset = component.magnitude.median - np.nanmedian(_magnitudes(simulated[:, column], survey.camera.zero_point))
        magnitudes = _magnitudes(measured[:, column], zero_points) + offset
        brightness[f"{section}.magnitude"] = Value(_range(magnitudes), f"from the {words} on {n}")
    if survey.lens_light:
        factor = survey.lens_light.r_eff.median / np.median(simulated[:, 1])
        radii = _range(np.log(measured[:, 1] * factor))
        radii = {"log_uniform": [_rounded(float(np.exp(end))) for end in radii["uniform"]]}
        brightness["lens_light.r_eff"] = Value(radii, f"from the light of the lens on {n}")
    return brightness


def _magnitudes(fluxes: Floats, zero_points: Floats | float) -> Floats:
    """Magnitudes of fluxes; NaN for those that are not above 0."""
    return np.asarray(zero_points - POGSON * np.log10(np.where(fluxes > 0, fluxes, np.nan)))


def _calibrating(base: Survey, settings: Settings, fwhm_arcsec: float) -> Survey:
    """The base survey with the images' pixels and blur, in electrons a second."""
    tree = base.model_dump(exclude_none=True)
    camera = {key: settings[f"camera.{key}"].value for key in ("n_pixels", "pixel_scale")}
    camera |= {"psf": {"profile": "gaussian", "fwhm": fwhm_arcsec}, "exposure_s": 1, "n_exposures": 1}
    return Survey.model_validate({**tree, "camera": {**tree["camera"], **camera}})


def _simulated(survey: Survey) -> Floats:
    """Noiseless images of the class `no`, electrons a second, [n, h, w]."""
    truth = draw(survey, 0, "train", range(0, len(CLASSES) * N_SIMULATED, len(CLASSES)))
    return render.render(truth, survey).double().numpy()


# --- the file ---------------------------------------------------------------------------------


def _range(values: Sequence[float] | Floats) -> dict[str, list[float]]:
    """A uniform prior over the middle nine tenths of the values, or wider than all where they are few."""
    array = np.asarray(values, np.float64)
    array = array[np.isfinite(array)]
    low, high = np.quantile(array, (0.05, 0.95)) if len(array) >= FEW else (array.min() - SPREAD, array.max() + SPREAD)
    return {"uniform": [_rounded(float(low)), _rounded(float(high))]}


def _span(values: Sequence[float]) -> float | dict[str, list[float]]:
    """A prior from the least to the greatest value, even in the logarithm; their median where they are alike."""
    low, high = min(values), max(values)
    if high <= SAME_EXPOSURE * low:
        return _rounded(float(np.median(values)))
    return {"log_uniform": [_rounded(low), _rounded(high)]}


def _rounded(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")


def _count(n: int) -> str:
    return f"{n} image{'s' if n > 1 else ''}"


def _toml(tree: Mapping[str, Any], settings: Settings, base: str, name: str, n: int) -> str:
    """The survey's file: what the base has, with the settings in place, and the origin of each value."""
    description = (
        f"Measured on {_count(n)}; all else is from {base}, whose description follows.\n\n{tree['description']}"
    )
    text = description.replace("\\", "\\\\").replace('"', '\\"')
    lines = [MARK, "", f"name = {_literal(name)}", f'description = """\n{text.strip()}\n"""']
    for section, content in tree.items():
        if isinstance(content, dict):
            values = {key: Value(value, f"from {base}") for key, value in content.items()}
            values |= {key.partition(".")[2]: new for key, new in settings.items() if key.startswith(f"{section}.")}
            lines += [
                "",
                f"[{section}]",
                *(_line(key, value) for key, value in values.items() if value.value is not None),
            ]
        elif section not in ("name", "description"):
            lines.insert(4, _line(section, Value(content, f"from {base}")))
    return "\n".join(lines) + "\n"


def _line(key: str, value: Value) -> str:
    return f"{key} = {_literal(value.value)}  # {value.source}"


def _literal(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_literal(part)}' for key, part in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _located(tree: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A survey's tree with files and folders by their full paths, for a file in another folder."""
    return {
        key: _located(value, folder)
        if isinstance(value, dict)
        else str((folder / value).resolve())
        if key in ("file", "folder")
        else value
        for key, value in tree.items()
    }
