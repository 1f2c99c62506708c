"""Random draws of whole scenes: the truth table.

One image is decided by (seed, split, index) alone: its class is index modulo the number of
classes, and its random numbers are a fixed stretch of a counter-based generator's sequence.
Any slice of a data set can therefore be drawn by itself, in any order, on any number of workers;
and each quantity has a position of its own in that stretch, so that changing one prior leaves all
else as it was, and more subhaloes are added to the same ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.random import Generator, Philox, SeedSequence
from numpy.typing import NDArray

from sublens.errors import ConfigError
from sublens.sim import light
from sublens.sim.cosmology import einstein_radius, nfw_angles
from sublens.sim.survey import Camera, Floats, Light, PixelatedSource, Prior, Survey

CLASSES = ("no", "sphere", "vort")
"""Smooth halo, subhaloes and vortex; a label is a position in this tuple."""

Split = Literal["train", "test"]
Purpose = Literal["scene", "number", "subhaloes", "noise"]
PURPOSES: tuple[Purpose, ...] = ("scene", "number", "subhaloes", "noise")

_REALS = (
    *("z_lens", "z_source", "exposure_s", "background", "noise_rms"),
    *("halo_mass_msun", "theta_e", "halo_q", "halo_angle", "gamma", "shear_angle"),
    *("source_x", "source_y", "source_q", "source_angle", "source_n", "source_r_eff", "source_intensity"),
    *("lens_n", "lens_r_eff", "lens_intensity"),
    *("string_x", "string_y", "string_angle", "string_half_length", "string_mass_msun", "string_theta_e"),
)
SCENE = np.dtype([("index", "<i8"), ("label", "<i8"), *((name, "<f8") for name in _REALS), ("n_subhaloes", "<i8")])
"""Columns of the truth table, one row an image. Lengths are arcsec, angles radians, light electrons a pixel in
the whole exposure; lens light and string have intensity or mass 0 where a scene has none."""

SUBHALO = np.dtype([(name, "<f8") for name in ("x", "y", "mass_msun", "theta_e", "r_s", "alpha_rs", "r_t")])
"""Columns of the table of subhaloes, one row each, in the order of the images that hold them. theta_e is that of
a point of the same mass; r_s and alpha_rs are 0 for a point, r_t where it is not truncated."""


@dataclass(frozen=True)
class Truth:
    """Parameters of simulated images: `scenes` [n] of dtype SCENE, `subhaloes` [any] of dtype SUBHALO."""

    scenes: NDArray[np.void]
    subhaloes: NDArray[np.void]

    def __len__(self) -> int:
        return len(self.scenes)

    def owners(self) -> NDArray[np.int64]:
        """Position in `scenes` of each subhalo's image, [any]."""
        return np.repeat(np.arange(len(self)), self.scenes["n_subhaloes"])

    def take(self, positions: NDArray[np.int64]) -> Self:
        """The rows at these positions, in this order, with their subhaloes."""
        counts = self.scenes["n_subhaloes"]
        starts = np.cumsum(counts) - counts
        chosen = counts[positions]
        within = np.arange(chosen.sum()) - np.repeat(np.cumsum(chosen) - chosen, chosen)
        rows = np.repeat(starts[positions], chosen) + within
        return type(self)(self.scenes[positions], self.subhaloes[rows])


SCENE_WIDTH = 32
"""Uniform numbers set aside for one scene."""
SUBHALO_WIDTH = 5
"""Uniform numbers set aside for one subhalo."""
MOST_NUMBERS = 2**16
"""Uniform numbers set aside for the subhaloes of one image."""


def _stream(seed: int, split: Split, purpose: Purpose, index: int, width: int) -> Generator:
    """Generator of uniform numbers that starts at image `index`; width: numbers an image, a multiple of 4."""
    key = SeedSequence((seed, ("train", "test").index(split), PURPOSES.index(purpose)))
    counter = index * width // 4  # four numbers a count
    return Generator(Philox(key=key.generate_state(2, np.uint64), counter=counter))


def _uniform(seed: int, split: Split, purpose: Purpose, indices: range, width: int) -> Floats:
    """Uniform numbers in [0, 1), `width` an image, [n, width]."""
    if not indices:
        return np.zeros((0, width))
    n = indices[-1] - indices[0] + 1
    return _stream(seed, split, purpose, indices[0], width).random((n, width))[:: indices.step]


def noise_seeds(seed: int, split: Split, indices: range) -> list[int]:
    """Seeds of the noise, one an image."""
    return [int(number) for number in _uniform(seed, split, "noise", indices, 4)[:, 0] * 2**53]


def draw(survey: Survey, seed: int, split: Split, indices: range) -> Truth:
    """The scenes of these images, whose indices must ascend from 0 or above.

    Raises `ConfigError` where substructure outweighs its halo.
    """
    if indices.step < 1 or indices.start < 0:
        raise ValueError(f"{indices}: needs indices that ascend from 0 or above")
    scenes = np.zeros(len(indices), SCENE)
    scenes["index"] = indices
    scenes["label"] = scenes["index"] % len(CLASSES)
    columns = iter(_uniform(seed, split, "scene", indices, SCENE_WIDTH).T)

    def drawn(prior: Prior) -> Floats:
        return prior.quantile(next(columns))

    _draw_lens(scenes, survey, drawn)
    _draw_string(scenes, survey, drawn)
    _draw_light(scenes, survey, drawn)
    truth = Truth(scenes, _draw_subhaloes(scenes, survey, seed, split, indices))
    _weigh(truth, survey)
    return truth


NOTHING = Prior(kind="fixed", values=(0.0,))
"""Prior that takes a random number for a quantity that the survey lacks, so that the others keep theirs."""
UNIT = Prior(kind="uniform", values=(0.0, 1.0))
"""Prior of a uniform number in [0, 1)."""
Drawn = Callable[[Prior], Floats]
"""From a prior to its draws, one a scene."""


def _draw_lens(scenes: NDArray[np.void], survey: Survey, drawn: Drawn) -> None:
    scenes["z_lens"] = drawn(survey.cosmology.z_lens)
    scenes["z_source"] = drawn(survey.cosmology.z_source)
    scenes["halo_mass_msun"] = drawn(survey.halo.mass_msun)
    scenes["halo_q"] = drawn(survey.halo.q)
    scenes["halo_angle"] = drawn(survey.halo.angle)
    scenes["gamma"] = drawn(survey.shear.gamma)
    scenes["shear_angle"] = drawn(survey.shear.angle)


def _draw_light(scenes: NDArray[np.void], survey: Survey, drawn: Drawn) -> None:
    camera, source, lens = survey.camera, survey.source, survey.lens_light
    exposure = scenes["exposure_s"] = drawn(camera.exposure_s) * camera.n_exposures
    sky = drawn(camera.background or camera.sky_magnitude or NOTHING)
    rate = sky if camera.background else _per_second(sky, camera) * camera.pixel_scale**2
    scenes["background"] = rate * exposure
    scenes["noise_rms"] = np.hypot(camera.background_rms * exposure, camera.read_noise * camera.n_exposures**0.5)

    scenes["source_angle"] = drawn(source.angle)
    if source.offset:
        radius, direction = drawn(source.offset), 2 * np.pi * drawn(UNIT)
        scenes["source_x"], scenes["source_y"] = radius * np.cos(direction), radius * np.sin(direction)
    else:
        scenes["source_x"], scenes["source_y"] = drawn(source.x or NOTHING), drawn(source.y or NOTHING)
    brightness = drawn(source.intensity or source.magnitude or NOTHING)
    if isinstance(source, PixelatedSource):
        for _ in ("q", "n", "r_eff"):  # their random numbers stay unused
            drawn(NOTHING)
        total = np.full(len(scenes), float(light.picture(source).sum()) * source.scale**2)
    else:
        for name in ("q", "n", "r_eff"):
            scenes[f"source_{name}"] = drawn(getattr(source, name))
        total = light.sersic_total(scenes["source_n"], scenes["source_r_eff"])
    scenes["source_intensity"] = _intensity(source, brightness, total, camera) * exposure

    if lens:
        scenes["lens_n"], scenes["lens_r_eff"] = drawn(lens.n), drawn(lens.r_eff)
        total = light.sersic_total(scenes["lens_n"], scenes["lens_r_eff"])
        brightness = drawn(lens.intensity or lens.magnitude or NOTHING)
        scenes["lens_intensity"] = _intensity(lens, brightness, total, camera) * exposure


def _intensity(component: Light, brightness: Floats, total: Floats, camera: Camera) -> Floats:
    """Electrons a pixel a second at the effective radius. total: all light over that, arcsec^2."""
    return brightness if component.intensity else _per_second(brightness, camera) * camera.pixel_scale**2 / total


def _per_second(magnitude: Floats, camera: Camera) -> Floats:
    """Electrons a second; Pogson's law."""
    return np.asarray(10 ** (-0.4 * (magnitude - (camera.zero_point or 0))))


def _draw_string(scenes: NDArray[np.void], survey: Survey, drawn: Drawn) -> None:
    """Draw the strings of the rows of class `vort`."""
    is_strung = scenes["label"] == CLASSES.index("vort")
    for name in ("x", "y", "half_length", "angle"):
        scenes[f"string_{name}"] = np.where(is_strung, drawn(getattr(survey.vortex, name)), 0)
    scenes["string_mass_msun"] = np.where(is_strung, drawn(survey.vortex.mass_fraction) * scenes["halo_mass_msun"], 0)


def _draw_subhaloes(
    scenes: NDArray[np.void], survey: Survey, seed: int, split: Split, indices: range
) -> NDArray[np.void]:
    """The subhaloes of the rows of class `sphere`; `n_subhaloes` is filled in."""
    dark = survey.subhaloes
    numbers = dark.number.quantile(_uniform(seed, split, "number", indices, 4)[:, 0])
    scenes["n_subhaloes"] = np.where(scenes["label"] == CLASSES.index("sphere"), np.rint(numbers), 0)
    holders = scenes[scenes["n_subhaloes"] > 0]
    each = [
        _stream(seed, split, "subhaloes", int(row["index"]), MOST_NUMBERS).random((row["n_subhaloes"], SUBHALO_WIDTH))
        for row in holders
    ]
    columns = iter(np.concatenate([np.zeros((0, SUBHALO_WIDTH)), *each]).T)
    subhaloes = np.zeros(int(scenes["n_subhaloes"].sum()), SUBHALO)
    radius, direction = dark.radius.quantile(next(columns)), 2 * np.pi * next(columns)
    subhaloes["x"], subhaloes["y"] = radius * np.cos(direction), radius * np.sin(direction)
    subhaloes["mass_msun"] = dark.mass_msun.quantile(next(columns))
    if dark.concentration:
        owner = np.repeat(np.arange(len(scenes)), scenes["n_subhaloes"])
        concentration = dark.concentration.quantile(next(columns))
        redshifts = scenes["z_lens"][owner], scenes["z_source"][owner]
        subhaloes["r_s"], subhaloes["alpha_rs"] = nfw_angles(
            subhaloes["mass_msun"], concentration, *redshifts, survey.cosmology
        )
    if dark.truncation:
        subhaloes["r_t"] = dark.truncation.quantile(next(columns)) * subhaloes["r_s"]
    return subhaloes


def _weigh(truth: Truth, survey: Survey) -> None:
    """Take the substructure's mass out of the halo's, and fill in every Einstein radius."""
    scenes, subhaloes, owners = truth.scenes, truth.subhaloes, truth.owners()
    scenes["halo_mass_msun"] -= scenes["string_mass_msun"] + np.bincount(
        owners, subhaloes["mass_msun"], minlength=len(scenes)
    )
    if (scenes["halo_mass_msun"] <= 0).any():
        raise ConfigError(
            f"the substructure of image {scenes['index'][scenes['halo_mass_msun'] <= 0][0]} outweighs its halo",
            need="a heavier halo or lighter substructure",
            next="Raise halo.mass_msun, or lower subhaloes.number or their mass_msun.",
            path=survey.name,
        )
    unit = einstein_radius(np.ones(len(scenes)), scenes["z_lens"], scenes["z_source"], survey.cosmology)
    scenes["theta_e"] = unit * np.sqrt(scenes["halo_mass_msun"])
    scenes["string_theta_e"] = unit * np.sqrt(scenes["string_mass_msun"])
    subhaloes["theta_e"] = unit[owners] * np.sqrt(subhaloes["mass_msun"])


def smoothed(truth: Truth) -> Truth:
    """The same scenes with all substructure put back into the halo."""
    scenes = truth.scenes.copy()
    total = scenes["halo_mass_msun"] + scenes["string_mass_msun"]
    total += np.bincount(truth.owners(), truth.subhaloes["mass_msun"], minlength=len(truth))
    scenes["theta_e"] *= np.sqrt(total / scenes["halo_mass_msun"])
    scenes["halo_mass_msun"] = total
    for name in ("n_subhaloes", "string_mass_msun", "string_theta_e"):
        scenes[name] = 0
    return Truth(scenes, truth.subhaloes[:0])


STRING_SAMPLES = 64
"""Pieces of a string whose mass is shared out over cells."""


def mass_map(truth: Truth, n_cells: int, field: float, samples: int = STRING_SAMPLES) -> Floats:
    """Substructure mass in each cell, Msun, [n, n_cells, n_cells] with rows along y.

    field: side of the square around the optical axis that the cells divide, arcsec. Mass outside
    is left out. samples: pieces of a string, each added to the cell of its middle.
    """
    strung = np.flatnonzero(truth.scenes["string_mass_msun"] > 0)
    scenes = truth.scenes[strung]
    offset = scenes["string_half_length"][:, None] * ((np.arange(samples) + 0.5) / samples * 2 - 1)
    string_x = scenes["string_x"][:, None] + offset * np.cos(scenes["string_angle"])[:, None]
    string_y = scenes["string_y"][:, None] + offset * np.sin(scenes["string_angle"])[:, None]
    x = np.concatenate([truth.subhaloes["x"], string_x.ravel()])
    y = np.concatenate([truth.subhaloes["y"], string_y.ravel()])
    mass = np.concatenate([truth.subhaloes["mass_msun"], np.repeat(scenes["string_mass_msun"] / samples, samples)])
    owner = np.concatenate([truth.owners(), np.repeat(strung, samples)])
    column, row = (np.floor((p / field + 0.5) * n_cells).astype(np.int64) for p in (x, y))
    inside = (column >= 0) & (column < n_cells) & (row >= 0) & (row < n_cells)
    flat = (owner * n_cells + row) * n_cells + column
    total = np.bincount(flat[inside], mass[inside], minlength=len(truth) * n_cells**2)
    return np.asarray(total.reshape(len(truth), n_cells, n_cells), dtype=np.float64)
