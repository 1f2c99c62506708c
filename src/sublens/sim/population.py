"""Random draws of whole scenes: the truth table.

One image is decided by (seed, split, index) alone: its class is index modulo the number of
classes, and its random numbers are a fixed stretch of a counter-based generator's sequence.
Any slice of a data set can therefore be drawn by itself, in any order, on any number of workers;
and each quantity has a position of its own in that stretch, so that changing one prior leaves all
else as it was, and more subhaloes are added to the same ones.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from numpy.random import Generator, Philox, SeedSequence
from numpy.typing import NDArray

from sublens.errors import ConfigError
from sublens.lensing import light, mass
from sublens.lensing.cosmology import einstein_radius, nfw_angles
from sublens.sim import defects, exposure, extra
from sublens.surveys.camera import Camera
from sublens.surveys.light import Light, PixelatedSource
from sublens.surveys.priors import Floats, Prior
from sublens.surveys.survey import Survey

CLASSES = ("no", "sphere", "vort")
"""Smooth halo, subhaloes and vortex; a label is a position in this tuple."""

Split = Literal["train", "test"]
Purpose = Literal["scene", "number", "subhaloes", "noise", "mass", "light", "camera", "defects", "contaminants"]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)
"""Purposes of random sequences; a new one stands at the end, so that the others keep their numbers."""

_REALS = (
    *("z_lens", "z_source", "exposure_s", "background", "noise_rms"),
    *("lens_mass_msun", "theta_e", "halo_mass_msun", "halo_theta_e", "halo_q", "halo_angle", "gamma", "shear_angle"),
    *("source_x", "source_y", "source_q", "source_angle", "source_n", "source_r_eff", "source_intensity"),
    *("lens_n", "lens_r_eff", "lens_intensity"),
    *("string_x", "string_y", "string_angle", "string_half_length", "string_mass_msun", "string_theta_e"),
)
SCENE = np.dtype([("index", "<i8"), ("label", "<i8"), *((name, "<f8") for name in _REALS), ("n_subhaloes", "<i8")])
"""Columns of the truth table, one row an image. Lengths are arcsec, angles radians, light electrons a pixel in
the whole exposure; lens light and string have intensity or mass 0 where a scene has none.

lens_mass_msun and theta_e describe the smooth lens that `smoothed` puts in the scene's place: the mass inside its
Einstein radius, and that radius. halo_mass_msun and halo_theta_e are left for the halo once substructure has its
share, see `weigh`. string_theta_e is the Einstein radius of a point of the string's mass."""

_SUBHALO_REALS = ("x", "y", "mass_msun", "m200_msun", "theta_e", "r_s", "alpha_rs", "r_t")
SUBHALO = np.dtype([(name, "<f8") for name in _SUBHALO_REALS])
"""Columns of the table of subhaloes, one row each, in the order of the images that hold them.

mass_msun is the whole mass, which for a truncated halo is what truncation leaves of m200_msun; that of an NFW halo
without truncation has no bound, and its mass_msun is m200_msun. theta_e is that of a point of mass_msun. m200_msun, r_s
and alpha_rs are 0 for a point, r_t where it is not truncated."""


@dataclass(frozen=True)
class Truth:
    """Parameters of simulated images: `scenes` [n] of dtype SCENE, `subhaloes` [any] of dtype SUBHALO.

    `extra` [n] of dtype EXTRA is there where the survey has one of the settings that it records, else None.
    """

    scenes: NDArray[np.void]
    subhaloes: NDArray[np.void]
    extra: NDArray[np.void] | None = None

    def __len__(self) -> int:
        return len(self.scenes)

    def extra_or_blank(self) -> NDArray[np.void]:
        """The rows of `extra`, or those with every setting off."""
        return extra.blank(len(self)) if self.extra is None else self.extra

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
        extra = None if self.extra is None else self.extra[positions]
        return type(self)(self.scenes[positions], self.subhaloes[rows], extra)


def joined(truths: Sequence[Truth]) -> Truth | None:
    """The rows of all these truths, of one survey, in this order; None where there are none."""
    if not truths:
        return None
    scenes, subhaloes = (np.concatenate([getattr(t, name) for t in truths]) for name in ("scenes", "subhaloes"))
    more = [truth.extra for truth in truths if truth.extra is not None]
    return Truth(scenes, subhaloes, np.concatenate(more) if more else None)


SCENE_WIDTH = 32
"""Uniform numbers set aside for one scene."""
MASS_WIDTH = 16
"""Uniform numbers set aside for the columns `extra.MASS` of one scene."""
CAMERA_WIDTH, DEFECTS_WIDTH = 16, 8
"""Uniform numbers set aside for the observation and for the defects of one scene."""
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
    more = extra.blank(len(scenes)) if extra.is_kept(survey) else None
    if more is not None:
        exposure.draw_columns(more, survey.camera, _uniform(seed, split, "camera", indices, CAMERA_WIDTH))
        defects.draw_numbers(more, survey.defects, _uniform(seed, split, "defects", indices, DEFECTS_WIDTH))
    _draw_light(scenes, survey, drawn, survey.camera.n_exposures if more is None else more["n_exposures"])
    if more is not None:
        _draw_mass(more, survey, _uniform(seed, split, "mass", indices, MASS_WIDTH))
    truth = Truth(scenes, _draw_subhaloes(scenes, survey, seed, split, indices), more)
    weigh(truth, survey)
    _refuse_outweighed(scenes, survey)
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
    scenes["lens_mass_msun"] = drawn(survey.halo.mass_msun)
    scenes["halo_q"] = drawn(survey.halo.q)
    scenes["halo_angle"] = drawn(survey.halo.angle)
    scenes["gamma"] = drawn(survey.shear.gamma)
    scenes["shear_angle"] = drawn(survey.shear.angle)


def _draw_mass(more: NDArray[np.void], survey: Survey, uniform: Floats) -> None:
    """Draw what a general halo has beside the columns of SCENE; uniform: [n, MASS_WIDTH]."""
    for name, column in zip(extra.MASS, uniform.T, strict=False):
        more[name] = getattr(survey.halo, name.removeprefix("halo_")).quantile(column)


def _draw_light(scenes: NDArray[np.void], survey: Survey, drawn: Drawn, n_exposures: Any) -> None:
    """Draw exposures, sky and light. n_exposures: number of exposures that are added up, of all scenes or each, [n]."""
    camera, source, lens = survey.camera, survey.source, survey.lens_light
    exposure = scenes["exposure_s"] = drawn(camera.exposure_s) * n_exposures
    sky = drawn(camera.background or camera.sky_magnitude or NOTHING)
    rate = sky if camera.background else _per_second(sky, camera) * camera.pixel_scale**2
    scenes["background"] = rate * exposure
    scenes["noise_rms"] = np.hypot(camera.background_rms * exposure, camera.read_noise * n_exposures**0.5)

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
    scenes["string_mass_msun"] = np.where(is_strung, drawn(survey.vortex.mass_fraction) * scenes["lens_mass_msun"], 0)


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
    owner = np.repeat(np.arange(len(scenes)), scenes["n_subhaloes"])
    extend(subhaloes, columns, scenes[owner], survey)
    return subhaloes


def extend(subhaloes: NDArray[np.void], columns: Iterator[Floats], scenes: NDArray[np.void], survey: Survey) -> None:
    """Give subhaloes of M200 `mass_msun` the size and the whole mass of the survey's profile; points stay as they are.

    columns: shares below which their concentrations lie, then their truncations. scenes: of each subhalo.
    """
    dark = survey.subhaloes
    if not dark.concentration:
        return
    m200_msun = subhaloes["mass_msun"].copy()
    subhaloes["m200_msun"] = m200_msun
    concentration = dark.concentration.quantile(next(columns))
    redshifts = scenes["z_lens"], scenes["z_source"]
    subhaloes["r_s"], subhaloes["alpha_rs"] = nfw_angles(m200_msun, concentration, *redshifts, survey.cosmology)
    if dark.truncation:
        tau = dark.truncation.quantile(next(columns))
        subhaloes["r_t"] = tau * subhaloes["r_s"]
        subhaloes["mass_msun"] = m200_msun * mass.tnfw_share(tau, concentration)


def weigh(truth: Truth, survey: Survey) -> None:
    """Leave for the halo what substructure does not hold of `lens_mass_msun`, and fill in every Einstein radius.

    Where the survey conserves the ring, the mean convergence inside its circle stays 1: the mass of an isothermal
    halo inside a radius grows with that radius, so both its mass inside theta_e and its own Einstein radius lose
    the share that substructure holds inside the circle. Where it conserves the total mass, the halo loses all
    substructure, wherever it lies, and its own Einstein radius is that of the mass left. What is left is 0 or
    less where substructure outweighs the halo.
    """
    scenes, subhaloes, owners = truth.scenes, truth.subhaloes, truth.owners()
    unit = einstein_radius(np.ones(len(scenes)), scenes["z_lens"], scenes["z_source"], survey.cosmology)
    scenes["theta_e"] = unit * np.sqrt(scenes["lens_mass_msun"])
    scenes["string_theta_e"] = unit * np.sqrt(scenes["string_mass_msun"])
    subhaloes["theta_e"] = unit[owners] * np.sqrt(subhaloes["mass_msun"])
    if survey.halo.conserves == "ring":
        share = 1 - share_inside_ring(truth)
        scenes["halo_mass_msun"] = scenes["lens_mass_msun"] * share
        scenes["halo_theta_e"] = scenes["theta_e"] * share
    else:
        substructure = np.bincount(owners, subhaloes["mass_msun"], minlength=len(scenes))
        scenes["halo_mass_msun"] = scenes["lens_mass_msun"] - (scenes["string_mass_msun"] + substructure)
        scenes["halo_theta_e"] = unit * np.sqrt(np.maximum(scenes["halo_mass_msun"], 0))


def _refuse_outweighed(scenes: NDArray[np.void], survey: Survey) -> None:
    if (scenes["halo_mass_msun"] <= 0).any():
        raise ConfigError(
            f"the substructure of image {scenes['index'][scenes['halo_mass_msun'] <= 0][0]} outweighs its halo",
            need="a heavier halo or lighter substructure",
            next="Raise halo.mass_msun, or lower subhaloes.number or their mass_msun.",
            path=survey.name,
        )


def share_inside_ring(truth: Truth) -> Floats:
    """Share of the mass inside the ring of each scene that substructure holds, [n].

    The ring is the circle around the optical axis in which the mean convergence of the smooth lens is 1.
    """
    scenes, subhaloes, owners = truth.scenes, truth.subhaloes, truth.owners()
    ring = mass.sie_ring(scenes["theta_e"], scenes["halo_q"])
    inside = scenes["string_theta_e"] ** 2 * _string_share(scenes, ring)
    inside += np.bincount(owners, _inside(subhaloes, ring[owners]), minlength=len(scenes))
    return np.asarray(inside / ring**2)


def _string_share(scenes: NDArray[np.void], radius: Floats) -> Floats:
    """Share of each string's length within a circle of this radius around the origin, [n]."""
    x, y, half = scenes["string_x"], scenes["string_y"], scenes["string_half_length"]
    along = x * np.cos(scenes["string_angle"]) + y * np.sin(scenes["string_angle"])
    chord = np.sqrt(np.maximum(radius**2 - (x * x + y * y - along**2), 0))  # half of the line's chord
    within = np.minimum(half, chord - along) - np.maximum(-half, -chord - along)
    return np.asarray(np.divide(within.clip(0), 2 * half, out=np.zeros_like(half), where=half > 0))


def _inside(subhaloes: NDArray[np.void], radius: Floats) -> Floats:
    """Mass of each subhalo within a circle of this radius around the origin, [n], as theta_e squared."""
    distance = np.hypot(subhaloes["x"], subhaloes["y"])
    inside = np.where(distance < radius, subhaloes["theta_e"] ** 2, 0)
    if (large := np.flatnonzero(subhaloes["r_s"])).size:
        far, edge = distance[large, None], radius[large, None]
        r, theta_e2 = _annuli(subhaloes[large], (distance + radius)[large])
        cosine = (r**2 + far**2 - edge**2) / np.maximum(2 * r * far, 1e-30)  # of half the arc inside
        inside[large] = (theta_e2 * np.arccos(cosine.clip(-1, 1)) / np.pi).sum(axis=1)
    return inside


ANNULI, ANGLES = 48, 16
"""Annuli that an extended subhalo is cut into, and pieces of each of them."""


def _annuli(subhaloes: NDArray[np.void], reach: Floats) -> tuple[Floats, Floats]:
    """Radius of each annulus of extended subhaloes, and its mass as theta_e squared, [n, ANNULI], out to `reach`."""
    edges = reach[:, None] * np.geomspace(0.01, 1, ANNULI + 1)
    inside = edges * _halo_deflection(subhaloes, edges)
    inside[:, 0] = 0
    return np.sqrt(edges[:, 1:] * edges[:, :-1]), np.diff(inside, axis=1)


def _halo_deflection(subhaloes: NDArray[np.void], radii: Floats) -> Floats:
    """Deflection of each extended subhalo at these distances from its centre, [n, k]."""
    r = torch.from_numpy(radii)
    alpha_rs, r_s, r_t = (torch.from_numpy(subhaloes[name][:, None].copy()) for name in ("alpha_rs", "r_s", "r_t"))
    place, nought = (r, torch.zeros_like(r)), torch.zeros(())
    if r_t.any():
        return mass.tnfw_deflection(*place, nought, nought, alpha_rs, r_s, r_t)[0].numpy()
    return mass.nfw_deflection(*place, nought, nought, alpha_rs, r_s)[0].numpy()


def smoothed(truth: Truth) -> Truth:
    """The smooth lenses with the same rings, or with the same total masses where the survey conserves those."""
    scenes = truth.scenes.copy()
    for name in ("mass_msun", "theta_e"):
        scenes[f"halo_{name}"] = scenes["lens_mass_msun" if name == "mass_msun" else name]
    for name in ("n_subhaloes", "string_mass_msun", "string_theta_e"):
        scenes[name] = 0
    return Truth(scenes, truth.subhaloes[:0], truth.extra)


def of_format_2(scenes: NDArray[np.void], subhaloes: NDArray[np.void]) -> Truth:
    """The truth in tables of stores of format 2: of point masses, theta_e the halo's own, and total mass conserved."""
    truth = Truth(np.zeros(len(scenes), SCENE), np.zeros(len(subhaloes), SUBHALO))
    for table, old in ((truth.scenes, scenes), (truth.subhaloes, subhaloes)):
        for name in old.dtype.names or ():
            table[name] = old[name]
    whole = truth.scenes
    substructure = np.bincount(truth.owners(), subhaloes["mass_msun"], minlength=len(scenes))
    whole["lens_mass_msun"] = scenes["halo_mass_msun"] + (scenes["string_mass_msun"] + substructure)
    whole["halo_theta_e"] = scenes["theta_e"]
    whole["theta_e"] = scenes["theta_e"] * np.sqrt(whole["lens_mass_msun"] / whole["halo_mass_msun"])
    return truth


STRING_SAMPLES = 64
"""Pieces of a string whose mass is shared out over cells."""


def mass_map(truth: Truth, n_cells: int, field: float, samples: int = STRING_SAMPLES) -> Floats:
    """Substructure mass in each cell, Msun, [n, n_cells, n_cells] with rows along y.

    field: side of the square around the optical axis that the cells divide, arcsec. Mass outside
    is left out. Strings and extended subhaloes are cut into pieces, each added to the cell of its middle;
    samples: pieces of a string.
    """
    parts = (_points(truth), _halo_pieces(truth, field), _string_pieces(truth, samples))
    x, y, msun, owner = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    column, row = (np.floor((p / field + 0.5) * n_cells).astype(np.int64) for p in (x, y))
    inside = (column >= 0) & (column < n_cells) & (row >= 0) & (row < n_cells)
    flat = (owner * n_cells + row) * n_cells + column
    total = np.bincount(flat[inside], msun[inside], minlength=len(truth) * n_cells**2)
    return np.asarray(total.reshape(len(truth), n_cells, n_cells), dtype=np.float64)


Pieces = tuple[Floats, Floats, Floats, NDArray[np.int64]]
"""Positions x and y of pieces of mass, arcsec, their masses, Msun, and the positions of their scenes, each [k]."""


def _points(truth: Truth) -> Pieces:
    is_point = truth.subhaloes["r_s"] == 0
    points = truth.subhaloes[is_point]
    return points["x"], points["y"], points["mass_msun"], truth.owners()[is_point]


def _halo_pieces(truth: Truth, field: float) -> Pieces:
    """Extended subhaloes as far as the field's corners: `ANGLES` pieces of each of their annuli."""
    is_halo = truth.subhaloes["r_s"] > 0
    halos = truth.subhaloes[is_halo]
    r, theta_e2 = _annuli(halos, np.hypot(halos["x"], halos["y"]) + field / np.sqrt(2))
    msun = theta_e2 * (halos["mass_msun"] / halos["theta_e"] ** 2)[:, None] / ANGLES
    angle = GOLDEN * np.arange(ANNULI)[:, None] + 2 * np.pi / ANGLES * np.arange(ANGLES)
    x = halos["x"][:, None, None] + r[:, :, None] * np.cos(angle)
    y = halos["y"][:, None, None] + r[:, :, None] * np.sin(angle)
    owner = np.repeat(truth.owners()[is_halo], ANNULI * ANGLES)
    return x.ravel(), y.ravel(), np.repeat(msun, ANGLES), owner


GOLDEN = np.pi * (3 - np.sqrt(5))
"""Golden angle, by which the pieces of an annulus are turned against those of the one inside it."""


def _string_pieces(truth: Truth, samples: int) -> Pieces:
    strung = np.flatnonzero(truth.scenes["string_mass_msun"] > 0)
    scenes = truth.scenes[strung]
    offset = scenes["string_half_length"][:, None] * ((np.arange(samples) + 0.5) / samples * 2 - 1)
    x = scenes["string_x"][:, None] + offset * np.cos(scenes["string_angle"])[:, None]
    y = scenes["string_y"][:, None] + offset * np.sin(scenes["string_angle"])[:, None]
    return x.ravel(), y.ravel(), np.repeat(scenes["string_mass_msun"] / samples, samples), np.repeat(strung, samples)
