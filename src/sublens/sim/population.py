"""Random draws of whole scenes: the truth table.

One image is decided by (seed, split, index) alone: its class is index modulo the number of
classes, and its random numbers come from a generator keyed by those three. Any slice of a
data set can therefore be drawn by itself, in any order, on any number of workers.
"""

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.random import Generator, SeedSequence
from numpy.typing import NDArray

from sublens.config import SimConfig
from sublens.sim.cosmology import einstein_radius

CLASSES = ("no", "sphere", "vort")
"""Smooth halo, subhaloes, vortex. A label is a position in this tuple."""

Split = Literal["train", "test"]

SCENE = np.dtype(
    [
        ("index", "<i8"),
        ("label", "<i8"),
        ("z_lens", "<f8"),
        ("z_source", "<f8"),
        ("halo_mass_msun", "<f8"),
        ("theta_e", "<f8"),
        ("gamma", "<f8"),
        ("shear_angle", "<f8"),
        ("source_x", "<f8"),
        ("source_y", "<f8"),
        ("source_q", "<f8"),
        ("source_angle", "<f8"),
        ("string_x", "<f8"),
        ("string_y", "<f8"),
        ("string_angle", "<f8"),
        ("string_half_length", "<f8"),
        ("string_mass_msun", "<f8"),
        ("string_theta_e", "<f8"),
        ("n_subhaloes", "<i8"),
    ]
)
"""One row an image. Lengths are arcsec, angles radians; the string's mass is 0 where it has none."""

SUBHALO = np.dtype([("x", "<f8"), ("y", "<f8"), ("mass_msun", "<f8"), ("theta_e", "<f8")])
"""One row a subhalo, in the order of the images that hold them."""


@dataclass(frozen=True)
class Truth:
    """What was simulated: `scenes` [n] of dtype SCENE, `subhaloes` [any] of dtype SUBHALO."""

    scenes: NDArray[np.void]
    subhaloes: NDArray[np.void]

    def __len__(self) -> int:
        return len(self.scenes)

    def owners(self) -> NDArray[np.int64]:
        """For each subhalo, the position of its image in `scenes`."""
        return np.repeat(np.arange(len(self)), self.scenes["n_subhaloes"])

    def take(self, positions: NDArray[np.int64]) -> Self:
        """The rows at these positions, in this order, with their subhaloes."""
        counts = self.scenes["n_subhaloes"]
        starts = np.cumsum(counts) - counts
        chosen = counts[positions]
        within = np.arange(chosen.sum()) - np.repeat(np.cumsum(chosen) - chosen, chosen)
        rows = np.repeat(starts[positions], chosen) + within
        return type(self)(self.scenes[positions], self.subhaloes[rows])


def keyed_seed(seed: int, split: Split, index: int, purpose: Literal["scene", "noise"]) -> SeedSequence:
    """The random state of one purpose of one image."""
    return SeedSequence((seed, ("train", "test").index(split), index, ("scene", "noise").index(purpose)))


def noise_seeds(seed: int, split: Split, indices: range) -> list[int]:
    """One 63-bit seed of photon noise an image."""
    states = (keyed_seed(seed, split, index, "noise").generate_state(1, np.uint64) for index in indices)
    return [int(state[0] >> np.uint64(1)) for state in states]


def draw(config: SimConfig, seed: int, split: Split, indices: range) -> Truth:
    """The scenes of these images."""
    scenes = np.zeros(len(indices), SCENE)
    subhaloes = []
    for row, index in zip(scenes, indices, strict=True):
        rng = np.random.default_rng(keyed_seed(seed, split, index, "scene"))
        row["index"], row["label"] = index, index % len(CLASSES)
        _draw_lens_and_source(row, rng, config)
        if CLASSES[row["label"]] == "vort":
            _draw_string(row, rng, config)
        own = _draw_subhaloes(rng, config) if CLASSES[row["label"]] == "sphere" else np.zeros(0, SUBHALO)
        row["n_subhaloes"] = len(own)
        subhaloes.append(own)
    truth = Truth(scenes, np.concatenate([np.zeros(0, SUBHALO), *subhaloes]))
    _weigh(truth, config)
    return truth


def _draw_lens_and_source(row: np.void, rng: Generator, config: SimConfig) -> None:
    row["z_lens"] = rng.uniform(*config.z_lens)
    row["z_source"] = rng.uniform(*config.z_source)
    row["gamma"] = rng.uniform(*config.shear)
    row["shear_angle"] = rng.uniform(*config.position_angle)
    row["source_q"] = rng.uniform(*config.axis_ratio)
    row["source_angle"] = rng.uniform(*config.position_angle)
    offset, direction = rng.uniform(*config.source_offset), rng.uniform(0, 2 * np.pi)
    row["source_x"], row["source_y"] = offset * np.cos(direction), offset * np.sin(direction)


def _draw_string(row: np.void, rng: Generator, config: SimConfig) -> None:
    row["string_x"], row["string_y"] = rng.normal(0, config.string_centre_sigma, 2)
    row["string_angle"] = rng.uniform(0, 2 * np.pi)
    row["string_half_length"] = rng.uniform(*config.string_half_length)
    row["string_mass_msun"] = rng.uniform(*config.string_mass_fraction) * config.mass_msun


def _draw_subhaloes(rng: Generator, config: SimConfig) -> NDArray[np.void]:
    subhaloes = np.zeros(rng.poisson(config.subhalo_mean_number), SUBHALO)
    radius = rng.uniform(*config.subhalo_radius, len(subhaloes))
    angle = rng.uniform(0, 2 * np.pi, len(subhaloes))
    subhaloes["x"], subhaloes["y"] = radius * np.cos(angle), radius * np.sin(angle)
    subhaloes["mass_msun"] = _power_law(rng, config.subhalo_slope, config.subhalo_mass_msun, len(subhaloes))
    return subhaloes


def _power_law(rng: Generator, slope: float, bounds: tuple[float, float], n: int) -> NDArray[np.float64]:
    """Draws from dN/dm ~ m^slope between the bounds, by inverting the cumulative distribution."""
    power = slope + 1
    low, high = bounds[0] ** power, bounds[1] ** power
    return np.asarray((low + rng.random(n) * (high - low)) ** (1 / power))


def _weigh(truth: Truth, config: SimConfig) -> None:
    """Fill in the halo's mass, total less substructure, and every Einstein radius."""
    scenes, subhaloes, owners = truth.scenes, truth.subhaloes, truth.owners()
    in_subhaloes = np.bincount(owners, subhaloes["mass_msun"], minlength=len(scenes))
    scenes["halo_mass_msun"] = config.mass_msun - scenes["string_mass_msun"] - in_subhaloes
    unit = einstein_radius(
        np.ones(len(scenes)),
        scenes["z_lens"],
        scenes["z_source"],
        convention=config.convention,
        h0=config.h0,
        om0=config.om0,
    )
    scenes["theta_e"] = unit * np.sqrt(scenes["halo_mass_msun"])
    scenes["string_theta_e"] = unit * np.sqrt(scenes["string_mass_msun"])
    subhaloes["theta_e"] = unit[owners] * np.sqrt(subhaloes["mass_msun"])


STRING_SAMPLES = 64
"""Pieces that a string is cut into to share its mass out over cells."""


def mass_map(truth: Truth, n_cells: int, field: float) -> NDArray[np.float64]:
    """Substructure mass in each cell, Msun, [n, n_cells, n_cells] with rows along y.

    field: side of the square around the optical axis that the cells divide, arcsec. Mass outside
    is left out.
    """
    scenes = truth.scenes[truth.scenes["string_mass_msun"] > 0]
    along = (np.arange(STRING_SAMPLES) + 0.5) / STRING_SAMPLES * 2 - 1
    offset = scenes["string_half_length"][:, None] * along
    x = np.concatenate(
        [truth.subhaloes["x"], (scenes["string_x"][:, None] + offset * np.cos(scenes["string_angle"])[:, None]).ravel()]
    )
    y = np.concatenate(
        [truth.subhaloes["y"], (scenes["string_y"][:, None] + offset * np.sin(scenes["string_angle"])[:, None]).ravel()]
    )
    mass = np.concatenate(
        [truth.subhaloes["mass_msun"], np.repeat(scenes["string_mass_msun"] / STRING_SAMPLES, STRING_SAMPLES)]
    )
    strung = np.flatnonzero(truth.scenes["string_mass_msun"] > 0)
    owner = np.concatenate([truth.owners(), np.repeat(strung, STRING_SAMPLES)])
    column, row = (np.floor((p / field + 0.5) * n_cells).astype(np.int64) for p in (x, y))
    inside = (column >= 0) & (column < n_cells) & (row >= 0) & (row < n_cells)
    flat = (owner * n_cells + row) * n_cells + column
    total = np.bincount(flat[inside], mass[inside], minlength=len(truth) * n_cells**2)
    return np.asarray(total.reshape(len(truth), n_cells, n_cells), dtype=np.float64)
