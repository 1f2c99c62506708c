"""Truth table -> images, in batches, on any device."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sublens.lensing import light, mass, pictures, rays, steep, tabulated
from sublens.lensing.compiled import Reals
from sublens.lensing.sersic import sersic
from sublens.observation import camera, defects, exposure
from sublens.observation.psf import in_own_pixels
from sublens.observation.stars import add_points
from sublens.sim.contaminant_shapes import glows
from sublens.sim.galaxies import (
    Columns,
    Glow,
    add_galaxies,
    add_rows,
    add_stamps,
    columns_of,
    lights_of,
    points_of_light,
)
from sublens.sim.halo import is_grid_here, smooth_convergence, smooth_deflection
from sublens.sim.mass_map import mass_map
from sublens.sim.population import Split, draw, noise_seeds
from sublens.surveys import extra
from sublens.surveys.camera import Camera, is_drawn
from sublens.surveys.contaminants import Contaminants
from sublens.surveys.light import PixelatedSource, StampSource
from sublens.surveys.survey import Survey
from sublens.surveys.truth import Truth

CPU_BLOCK, GPU_BLOCK = 400_000, 24_000_000
"""Number of points at which light is computed together, over one image or several. On a processor such a
plane fits its cache, and an image cannot depend on its neighbours, not even in the last bit; a
GPU is fastest with many."""
MOST_IN_BLOCK = 1024
"""Greatest number of images in a block."""
STRING_PIECES = 10_000
"""Pieces of a string whose convergence is shared out over pixels."""
ALLOCATOR_BLOCK = 31 * 2**20
"""Size of a block, bytes, whose release makes glibc keep smaller ones for reuse instead of returning them to
the system; the page faults would cost as much time as the rendering."""

STEEP = 0.03
"""Error of a part of a pixel above which light in it is steep, in standard deviations of the pixel's noise."""
FINE_PARTS = 3, 9
"""Points along one side of a part of a pixel in which light is steep; each is for errors above `STEEP` times the
square of the one before."""

BENT = 5e-4, 0.3
"""Fourth differences between pixels above which a deflection, arcsec, and light that is not lensed, standard deviations
of a pixel's noise, are not interpolated."""


def render(truth: Truth, survey: Survey, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    """Noiseless images of the scenes, electrons a pixel without background, [n, h, w]."""
    return _in_blocks(_images, truth, survey, device, dtype)


def convergence(truth: Truth, survey: Survey, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    """Convergence of each scene, [n, h, w].

    Values at pixel centres; but point masses and strings, whose convergence is zero or infinite, are
    spread over the pixels that hold them.
    """
    return _in_blocks(_convergence, truth, survey, device, dtype)


def simulate(
    survey: Survey,
    seed: int,
    split: Split,
    indices: range,
    device: str = "cpu",
    contaminants: Contaminants | None = None,
    *,
    is_matched: bool = False,
) -> tuple[Truth, NDArray[np.uint16]]:
    """Scenes and their noisy images, [n, h, w]: counts above the minimum, or planes of signal to noise.

    contaminants: what takes the place of a share of the lenses, none by default; is_matched: whether sets of images
    share their scene; see `population.draw`.
    """
    truth = draw(survey, seed, split, indices, contaminants, is_matched=is_matched)
    seeds = noise_seeds(seed, split, indices)
    side, struck = survey.camera.n_pixels, defects.marks(survey, truth.extra_or_blank())
    counts = np.empty((len(truth), side, side), np.uint16)
    for rows in _blocks(len(truth), survey, device):  # noise follows while the image is still in the cache
        block, place = truth.take(rows), slice(rows[0], rows[-1] + 1)
        here = struck.within(place.start * side**2, place.stop * side**2)
        counts[place] = exposure.observe(block, render(block, survey, device), survey, here, seeds[place])
    return truth, counts


Maps = dict[str, NDArray[np.float32]]
"""Planes [n, h, w] by name."""


def maps(truth: Truth, survey: Survey) -> Maps:
    """The `convergence` and the `noiseless` image of each scene, [n, h, w]."""
    kappa = convergence(truth, survey, dtype=torch.float64).float()  # in double: it cancels near an NFW radius
    return {"convergence": kappa.numpy(), "noiseless": render(truth, survey).numpy()}


def _blocks(n: int, survey: Survey, device: str) -> list[NDArray[np.int64]]:
    n_points = (survey.camera.n_pixels * survey.camera.supersampling) ** 2
    size = int(np.clip((CPU_BLOCK if device == "cpu" else GPU_BLOCK) // n_points, 1, MOST_IN_BLOCK))
    return [np.arange(start, min(start + size, n)) for start in range(0, n, size)]


def _in_blocks(
    compute: Callable[[Truth, Survey, str, torch.dtype], Tensor],
    truth: Truth,
    survey: Survey,
    device: str,
    dtype: torch.dtype,
) -> Tensor:
    np.empty(ALLOCATOR_BLOCK, np.uint8)
    side, blocks = survey.camera.n_pixels, _blocks(len(truth), survey, device)
    with torch.inference_mode():
        if len(blocks) == 1:
            return compute(truth, survey, device, dtype)
        images = torch.empty(len(truth), side, side, dtype=dtype, device=device)
        for rows in blocks:
            images[rows[0] : rows[-1] + 1] = compute(truth.take(rows), survey, device, dtype)
    return images


def _grid(survey: Survey, supersampling: int, device: str, dtype: torch.dtype) -> mass.Field:
    """Positions as a row x [1, 1, w] and a column y [1, h, 1], arcsec."""
    pixels = survey.camera
    axis = camera.pixel_centres(pixels.n_pixels, pixels.pixel_scale, supersampling).to(device, dtype)
    return axis[None, None, :], axis[None, :, None]


def _images(truth: Truth, survey: Survey, device: str, dtype: torch.dtype) -> Tensor:
    pixels, glow = survey.camera, glows(truth, survey)
    if device == "cpu" and dtype == torch.float32 and _is_compiled(survey):
        light = _compiled_light(truth, survey, glow)
    else:
        x, y = _grid(survey, pixels.supersampling, device, dtype)
        light = _light(truth, survey, x, y, glow)
        if pixels.supersampling > 1:
            _refine(light, truth, survey, x, y, glow)
    return _with_points(_in_pixels(light, truth, pixels), truth, survey)


def _with_points(images: Tensor, truth: Truth, survey: Survey) -> Tensor:
    """Blurred images with nuclei and stars added."""
    owners, points = points_of_light(truth.scenes, truth.extra, survey)
    if not len(points):
        return images
    planes = images.cpu().numpy()
    add_points(planes, owners, points, survey.camera, truth.extra_or_blank())
    return torch.from_numpy(planes).to(images)


def _in_pixels(light: Tensor, truth: Truth, pixels: Camera) -> Tensor:
    if is_drawn(pixels.psf):
        return in_own_pixels(light, pixels, truth.extra_or_blank())
    return camera.in_pixels(light, pixels)


def _is_compiled(survey: Survey) -> bool:
    """Whether light of this survey is computed by compiled loops on a processor.

    Not that of spheres at pixel centres, nor that of extended subhaloes in surveys without settings of real lenses:
    their images stay as they were, to the last bit.
    """
    is_as_before = survey.halo.q.low == 1 and survey.camera.supersampling == 1
    if isinstance(survey.source, PixelatedSource):
        return False
    return extra.is_kept(survey) or (survey.subhaloes.profile == "point" and not is_as_before)


def _compiled_light(truth: Truth, survey: Survey, glow: Sequence[Glow]) -> Tensor:
    """Light as `_light` and `_refine` have it, in single precision on the processor, [n, h, w]."""
    scenes, parts = truth.scenes, survey.camera.supersampling
    axis = _axis(survey.camera.n_pixels, survey.camera.pixel_scale, parts)
    planes = np.empty((len(truth), len(axis), len(axis)), np.float32)
    sky = (scenes["background"] + scenes["noise_rms"] ** 2).astype(np.float32)
    lines, lights = rays.rays_of(scenes, truth.extra), lights_of(glow)
    for row, parameters in enumerate(zip(lines, _masses(truth, survey), lights, strict=True)):
        traced, fields = (axis, *parameters), NO_FIELDS
        if parts > 1 and extra.is_kept(survey):
            fields = _fields(sky[row], survey, traced)
            light.shine_between(*fields, tabulated.weights_between(parts), *traced, planes[row])
        else:
            light.shine(*traced, planes[row])
        if parts > 1:
            _refine_compiled(planes[row], sky[row], survey, traced, fields)
    return torch.from_numpy(planes)


Fields = tuple[Reals, NDArray[np.bool_]]
"""What `light.sample` makes of a scene at pixel centres and two more beyond each edge, [3, n + 4, n + 4], and pixels in
which it is not interpolated, [n, n]."""
NO_FIELDS: Fields = np.zeros((3, 0, 0), np.float32), np.zeros((0, 0), np.bool_)


def _fields(sky: np.float32, survey: Survey, traced: rays.Rays) -> Fields:
    n, (_, scene, masses, glow) = survey.camera.n_pixels, traced
    fields, rough = np.empty((3, n + 4, n + 4), np.float32), np.empty((n, n), np.bool_)
    light.sample(_axis(n + 4, survey.camera.pixel_scale, 1), scene, masses, glow, fields)
    steep.mark_rough(fields, sky, np.array(BENT, np.float32), rough)
    return fields, rough


@lru_cache(maxsize=64)
def _axis(n: int, scale: float, parts: int) -> Reals:
    """`camera.pixel_centres` as compiled loops take them."""
    return np.asarray(camera.pixel_centres(n, scale, parts).float().numpy())


def _masses(truth: Truth, survey: Survey) -> Iterator[rays.Masses]:
    """The masses of each scene for compiled loops, but for its string."""
    subhaloes, none = truth.subhaloes, truth.subhaloes[:0]
    points, large = (subhaloes, none) if survey.subhaloes.profile == "point" else (none, subhaloes)
    strength = large["alpha_rs"] / ((1 - np.log(2)) * large["r_s"])
    reach = tabulated.reach(large)
    tables = (
        np.stack([points[name] for name in PARAMETERS["point"]], axis=1).astype(np.float32),
        np.stack([large["x"], large["y"], large["theta_e"], large["r_s"] ** -2, strength, reach], axis=1).astype(
            np.float32
        ),
        tabulated.masses_inside(large, survey.subhaloes),
    )
    ends = np.cumsum(truth.scenes["n_subhaloes"])
    for row, end in enumerate(ends):
        rows = slice(end - truth.scenes["n_subhaloes"][row], end)
        own_points, own_large, inside = (np.ascontiguousarray(table[rows]) for table in tables)
        yield own_points, _series(truth, survey, row), own_large, inside


def _series(truth: Truth, survey: Survey, row: int) -> Reals:
    """The series of a scene's halo, [0, 0] where it is an isothermal ellipsoid."""
    if truth.extra is None or not survey.halo.is_general:
        return np.zeros((0, 0), np.float32)
    return tabulated.power_law_series(truth.scenes["halo_q"][row], truth.extra["slope"][row])


def _refine_compiled(plane: Reals, sky: np.float32, survey: Survey, traced: rays.Rays, fields: Fields) -> None:
    """`_refine` for the light of one scene, [h, w]. sky: the variance of a pixel's noise without light."""
    parts, limits, (smooth, rough) = survey.camera.supersampling, np.array(_limits(), np.float32), fields
    levels = np.zeros(plane.shape, np.uint8)
    if np.isfinite(limits).all():
        axis, _, masses, _ = traced
        steep.mark_points(masses[0], axis, len(limits), levels)
    steep.mark_steep(plane, sky, np.float32(24 * parts**2), limits, levels)
    for level, n in enumerate(FINE_PARTS, start=1):
        finer = _axis(1, survey.camera.pixel_scale / parts, n), *traced, plane
        weights, places = tabulated.weights_between(parts * n).reshape(parts, n, 5), np.flatnonzero(levels == level)
        row, column = np.divmod(places, len(plane))
        is_exact = rough[row // parts, column // parts] if rough.size else np.ones(len(places), np.bool_)
        light.refine(places[is_exact], *finer, NO_FIELDS[0], weights)
        light.refine(places[~is_exact], *finer, smooth, weights)


def _limits() -> list[float]:
    """Errors above which each of the `FINE_PARTS` is for."""
    return [STEEP * n**2 for n in (1, *FINE_PARTS[:-1])]


def _light(truth: Truth, survey: Survey, x: Tensor, y: Tensor, glow: Sequence[Glow]) -> Tensor:
    """Light at the positions x, y of each scene, [n, h, w], electrons a pixel, before any blur."""
    scene = _scene(truth, x)
    alpha_x, alpha_y = _deflection(truth, scene, survey, x, y)
    beta = (x - scene["source_x"]) - alpha_x, (y - scene["source_y"]) - alpha_y
    image = _source(scene, survey, *beta)
    if truth.extra is not None:
        add_stamps(image, *beta, rays.stamps_of(truth.scenes, truth.extra), glow)
    add_galaxies(image, x, y, survey, [own.galaxies for own in glow])
    return image


def _refine(light: Tensor, truth: Truth, survey: Survey, x: Tensor, y: Tensor, glow: Sequence[Glow]) -> None:
    """Set the light in parts of pixels where it is steep to the mean over finer points.

    Scene by scene: no image may depend on its neighbours.
    """
    errors, limits = _errors(light, truth, survey), _limits()
    for scene in range(len(truth)):
        alone = truth.take(np.array([scene]))
        for n, low, high in zip(FINE_PARTS, limits, (*limits[1:], np.inf), strict=True):
            within = camera.pixel_centres(1, survey.camera.pixel_scale / survey.camera.supersampling, n).to(x)
            steep = (errors[scene] > low) & (errors[scene] <= high)
            for parts in torch.split(steep.nonzero(), CPU_BLOCK // n**2):
                row, column = parts.unbind(1)
                fine_x = x[0, 0, column, None] + within.repeat(n)
                fine_y = y[0, row, 0, None] + within.repeat_interleave(n)
                light[scene, row, column] = _light(alone, survey, fine_x[None], fine_y[None], glow[scene : scene + 1])[
                    0
                ].mean(dim=1)


def _errors(light: Tensor, truth: Truth, survey: Survey) -> Tensor:
    """By how much the mean over a part of a pixel may differ from the light in its middle, [n, h, w].

    In standard deviations of the pixel's noise. To the lowest order the difference is 1/24 of the second differences;
    the largest of a part and its neighbours counts.
    """
    scenes, n_parts = truth.scenes, survey.camera.supersampling**2
    sky = torch.from_numpy(scenes["background"] + scenes["noise_rms"] ** 2).to(light)[:, None, None]
    wide = F.pad(light[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    down = (wide[:, 2:, 1:-1] + wide[:, :-2, 1:-1] - 2 * light).abs_()
    across = (wide[:, 1:-1, 2:] + wide[:, 1:-1, :-2] - 2 * light).abs_()
    error = (down + across) / (24 * n_parts * (light + sky).sqrt())
    if survey.subhaloes.profile == "point":  # its own image of the source may lie between points
        error[_parts_of_subhaloes(truth, survey)] = np.inf
    error = F.pad(error, (1, 1, 1, 1))
    error = torch.maximum(torch.maximum(error[:, :-2], error[:, 2:]), error[:, 1:-1])
    return torch.maximum(torch.maximum(error[:, :, :-2], error[:, :, 2:]), error[:, :, 1:-1])


def _parts_of_subhaloes(truth: Truth, survey: Survey) -> tuple[NDArray[np.int64], ...]:
    """Scene, row and column of the part of a pixel that holds each subhalo within the image."""
    n = survey.camera.n_pixels * survey.camera.supersampling
    row, column = (np.floor((truth.subhaloes[axis] / survey.field + 0.5) * n).astype(np.int64) for axis in "yx")
    inside = (row >= 0) & (row < n) & (column >= 0) & (column < n)
    return truth.owners()[inside], row[inside], column[inside]


def deflection(truth: Truth, survey: Survey, x: Tensor, y: Tensor) -> mass.Field:
    """Total reduced deflection of each scene, arcsec, as two planes [n, h, w].

    x, y: image-plane positions that broadcast to [n, h, w]; their device and precision are used.
    """
    return _deflection(truth, _scene(truth, x), survey, x, y)


def _deflection(truth: Truth, scene: Columns, survey: Survey, x: Tensor, y: Tensor) -> mass.Field:
    alpha_x, alpha_y = smooth_deflection(scene, survey, x, y)
    strung = torch.from_numpy(np.flatnonzero(truth.scenes["string_mass_msun"] > 0)).to(x.device)
    if len(strung):
        parameters = (scene[f"string_{name}"][strung] for name in ("x", "y", "angle", "half_length", "theta_e"))
        _add(mass.string_deflection(_of(x, strung), _of(y, strung), *parameters), (alpha_x, alpha_y), strung)
    if len(truth.subhaloes):
        _add_subhaloes(truth, survey, x, y, (alpha_x, alpha_y))
    return alpha_x, alpha_y


def _of(plane: Tensor, rows: Tensor) -> Tensor:
    """The positions of these scenes, where each scene has positions of its own."""
    return plane[rows] if plane.ndim == 3 and len(plane) > 1 else plane


def _add(deflections: mass.Field, total: mass.Field, rows: Tensor) -> None:
    """Add deflections to the total of those scenes."""
    for component, sums in zip(deflections, total, strict=True):
        add_rows(component, sums, rows)


def _add_subhaloes(truth: Truth, survey: Survey, x: Tensor, y: Tensor, total: mass.Field) -> None:
    """Add the deflections mass by mass: a block [b, n, h, w] would not fit the processor's cache."""
    if survey.subhaloes.profile == "point" and is_grid_here(x, y):
        axes, planes = (x.numpy().ravel(), y.numpy().ravel()), (total[0].numpy(), total[1].numpy())
        masses = np.stack([truth.subhaloes[name] for name in PARAMETERS["point"]], axis=1).astype(axes[0].dtype)
        mass.add_points(*axes, masses, np.cumsum(truth.scenes["n_subhaloes"]), *planes)
        return
    is_grid = x.shape[-2] == 1 and y.shape[-1] == 1
    if survey.subhaloes.profile == "point" and x.dtype == torch.float32 and is_grid and _has_kernel(x.device.type):
        from sublens.lensing import points

        masses = np.stack([truth.subhaloes[name] for name in PARAMETERS["point"]], axis=1).astype(np.float32)
        points.add_points(x, y, masses, np.cumsum(truth.scenes["n_subhaloes"]), *total)
        return
    deflect = DEFLECTIONS[survey.subhaloes.profile]
    for rows, subhalo in _subhaloes(truth, survey, x):
        _add(deflect(_of(x, rows), _of(y, rows), *subhalo), total, rows)


def _has_kernel(device: str) -> bool:
    """Whether this device has the kernel of `sublens.lensing.points`, which comes with torch for NVIDIA's GPUs."""
    if device != "cuda" or find_spec("triton") is None:
        return False
    from sublens.lensing import points

    return points.works(device)


def _convergence(truth: Truth, survey: Survey, device: str, dtype: torch.dtype) -> Tensor:
    x, y = _grid(survey, 1, device, dtype)
    scene = _scene(truth, x)
    kappa = smooth_convergence(scene, survey, x, y)
    thin = truth  # masses whose convergence is zero or infinite
    if survey.subhaloes.profile != "point":
        thin = Truth(truth.scenes.copy(), truth.subhaloes[:0], truth.extra)
        thin.scenes["n_subhaloes"] = 0
        converge = mass.nfw_convergence if survey.subhaloes.profile == "nfw" else mass.tnfw_convergence
        for rows, subhalo in _subhaloes(truth, survey, x):
            kappa.index_add_(0, rows, converge(x, y, *subhalo))
    msun = mass_map(thin, survey.camera.n_pixels, survey.field, STRING_PIECES)
    theta_e2 = msun * (truth.scenes["theta_e"] ** 2 / truth.scenes["lens_mass_msun"])[:, None, None]
    return kappa + torch.from_numpy(np.pi * theta_e2 / survey.camera.pixel_scale**2).to(x)


def _source(scene: Columns, survey: Survey, x: Tensor, y: Tensor) -> Tensor:
    shared = {name: scene[f"source_{name}"] for name in ("angle", "intensity")}
    if isinstance(survey.source, StampSource):
        return torch.zeros_like(x)
    if isinstance(survey.source, PixelatedSource):
        return pictures.pixelated(x, y, pictures.picture(survey.source), scale=survey.source.scale, **shared)
    return sersic(x, y, **shared, **{name: scene[f"source_{name}"] for name in ("q", "n", "r_eff")})


def _scene(truth: Truth, like: Tensor) -> Columns:
    """The real columns of scenes, and those of their further table."""
    return columns_of(truth.scenes, like) | ({} if truth.extra is None else columns_of(truth.extra, like))


DEFLECTIONS: dict[str, Callable[..., mass.Field]] = {
    "point": mass.point_deflection,
    "nfw": mass.nfw_deflection,
    "tnfw": mass.tnfw_deflection,
}
"""Deflection of a subhalo, by profile."""
PARAMETERS = {
    "point": ("x", "y", "theta_e"),
    "nfw": ("x", "y", "alpha_rs", "r_s"),
    "tnfw": ("x", "y", "alpha_rs", "r_s", "r_t"),
}
"""Columns of a subhalo that its deflection and its convergence take, by profile."""


def _subhaloes(truth: Truth, survey: Survey, like: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The first subhalo of each scene that has one, then the second and so on.

    Yields the scenes' positions [k], and parameters, each [k, 1, 1].
    """
    counts, owners = truth.scenes["n_subhaloes"], truth.owners()
    ordinal = np.arange(len(owners)) - (np.cumsum(counts) - counts)[owners]
    columns = columns_of(truth.subhaloes, like)
    for number in range(counts.max()):
        chosen = np.flatnonzero(ordinal == number)
        parameters = torch.stack([columns[name][chosen] for name in PARAMETERS[survey.subhaloes.profile]])
        yield torch.from_numpy(owners[chosen]).to(like.device), parameters
