"""Defects of images: trails, cosmic rays, bad pixels and masks, drawn as lists of the pixels that they change."""

from collections.abc import Callable
from typing import NamedTuple, Self, get_args

import numpy as np
import torch
from numpy.random import Generator, Philox
from numpy.typing import NDArray
from torch import Tensor

from sublens.surveys.defects import Defect, Defects, Kind, MaskedDiscs
from sublens.surveys.priors import Floats
from sublens.surveys.survey import Survey

KINDS: tuple[Kind, ...] = get_args(Kind)
STUCK: tuple[Kind, ...] = ("dead_pixels", "gaps")
"""Kinds whose pixels do not answer to light."""
TRAIL_REACH = 1.5
"""Half of a trail's width that is drawn, full widths at half maximum."""
Indices = NDArray[np.int64]


class Marks(NamedTuple):
    """Pixels of images [n, h, w] that defects change: ascending positions in the flattened images, each once."""

    added_at: Indices
    added: Floats
    """Light that is added, standard deviations of the sky's noise."""
    stuck_at: Indices
    stuck: Floats
    """Values above the sky that take the place of light, in the same unit."""
    masked_at: Indices

    def within(self, start: int, stop: int) -> Self:
        """Those from position `start` to before `stop`, as positions in that stretch."""
        added, stuck, masked = (
            slice(*np.searchsorted(at, (start, stop))) for at in (self.added_at, self.stuck_at, self.masked_at)
        )
        return type(self)(
            self.added_at[added] - start,
            self.added[added],
            self.stuck_at[stuck] - start,
            self.stuck[stuck],
            self.masked_at[masked] - start,
        )


def draw_numbers(extra: NDArray[np.void], defects: Defects | None, uniform: Floats) -> None:
    """Fill in how many defects of each kind the scenes have, and the seeds of their shapes.

    extra: rows of dtype EXTRA [n]. uniform: numbers in [0, 1), [n, 8].
    """
    for kind, u in zip(KINDS, uniform.T, strict=False):
        if defects and (defect := defects.of_kind(kind)):
            share = extra["n_exposures"] if kind == "cosmic_rays" else 1
            extra[f"n_{kind}"] = np.rint(defect.number.quantile(u) / share)
    extra["defects_seed"] = np.floor(uniform[:, len(KINDS)] * 2**53)


def marks(survey: Survey, extra: NDArray[np.void]) -> Marks:
    """The pixels that the defects of these scenes change; extra: rows of dtype EXTRA [n]."""
    hits = [_hits(kind, survey, extra) for kind in KINDS]
    is_stuck = [np.full(len(hit.at), kind in STUCK) for kind, hit in zip(KINDS, hits, strict=True)]
    at, level, is_masked = (np.concatenate(column) for column in zip(*hits, strict=True))
    stuck = np.concatenate(is_stuck) & ~is_masked
    added = ~stuck & ~is_masked
    masked = np.zeros(len(extra) * survey.camera.n_pixels**2, bool)  # several times as fast as sorting
    masked[at[is_masked]] = True
    return Marks(*_summed(at[added], level[added]), *_first(at[stuck], level[stuck]), np.flatnonzero(masked))


class _Hits(NamedTuple):
    """Pixels that defects change, as positions in the flattened images [m]; a pixel may be there twice."""

    at: Indices
    level: Floats
    is_masked: NDArray[np.bool_]


class _Shapes(NamedTuple):
    """Sizes, positions in their images and directions of defects, each [n]."""

    size: Floats
    x: Floats
    y: Floats
    angle: Floats
    side: int
    """Pixels along a side of the image."""


class _Pixels(NamedTuple):
    """Pixels of defects, [m], some of them outside their image; the defect that each belongs to, and its share of
    that one's light."""

    owner: Indices
    column: Indices
    row: Indices
    weight: Floats


def _hits(kind: Kind, survey: Survey, extra: NDArray[np.void]) -> _Hits:
    defect, side = survey.defects and survey.defects.of_kind(kind), survey.camera.n_pixels
    if not defect or not extra[f"n_{kind}"].any():
        return _Hits(np.zeros(0, np.int64), np.zeros(0), np.zeros(0, bool))
    scene = np.repeat(np.arange(len(extra)), extra[f"n_{kind}"].astype(np.int64))
    u = _uniform(kind, extra)
    pixels = SHAPES[kind](_shapes(defect, u, side))
    inside = (pixels.column >= 0) & (pixels.column < side) & (pixels.row >= 0) & (pixels.row < side)
    owner, at = pixels.owner[inside], (pixels.row * side + pixels.column)[inside]
    level, is_masked = defect.level.quantile(u[1]), u[2] < defect.masked
    return _Hits(at + scene[owner] * side**2, level[owner] * pixels.weight[inside], is_masked[owner])


def _uniform(kind: Kind, extra: NDArray[np.void]) -> Floats:
    """Uniform numbers of all defects of a kind, [7, n], those of one scene from a sequence of its own."""
    counter = [0, 0, KINDS.index(kind), 0]
    present = extra[extra[f"n_{kind}"] > 0]
    scenes = zip(present["defects_seed"].tolist(), present[f"n_{kind}"].tolist(), strict=True)
    each = [Generator(Philox(key=int(seed), counter=counter)).random((int(n), 7)) for seed, n in scenes]
    return np.concatenate(each).T


def _shapes(defect: Defect, u: Floats, side: int) -> _Shapes:
    size, x, y, angle = defect.size.quantile(u[0]), u[3] * side, u[4] * side, u[5] * 2 * np.pi
    if isinstance(defect, MaskedDiscs):
        distance = defect.distance.quantile(u[6])
        x, y = side / 2 + distance * np.cos(angle), side / 2 + distance * np.sin(angle)
    return _Shapes(size, x, y, angle, side)


def _tracks(shapes: _Shapes) -> _Pixels:
    """Straight tracks, two pixels wide, without holes."""
    owner, number = _counted(np.rint(shapes.size).clip(1))
    step, beside = np.divmod(number, 2)
    x, y = np.cos(shapes.angle), np.sin(shapes.angle)
    is_flat, length = np.abs(x) > np.abs(y), np.maximum(np.abs(x), np.abs(y))
    column = shapes.x[owner] + step * (x / length)[owner]
    row = shapes.y[owner] + step * (y / length)[owner]
    across, up = np.where(is_flat[owner], 0, beside), np.where(is_flat[owner], beside, 0)
    return _Pixels(owner, _whole(column) + across, _whole(row) + up, np.ones(len(owner)))


def _squares(shapes: _Shapes) -> _Pixels:
    sides = np.rint(shapes.size).clip(1).astype(np.int64)
    owner, number = _counted(sides**2)
    down, across = np.divmod(number, sides[owner])
    return _Pixels(owner, _whole(shapes.x)[owner] + across, _whole(shapes.y)[owner] + down, np.ones(len(owner)))


def _bands(shapes: _Shapes) -> _Pixels:
    """Columns, or rows where the angle is above pi."""
    widths = np.rint(shapes.size).clip(1).astype(np.int64)
    owner, number = _counted(widths * shapes.side)
    row, across = np.divmod(number, widths[owner])
    column = _whole(shapes.x)[owner] + across
    is_row = shapes.angle[owner] > np.pi
    return _Pixels(owner, np.where(is_row, row, column), np.where(is_row, column, row), np.ones(len(owner)))


def _trails(shapes: _Shapes) -> _Pixels:
    x, y = _offsets(shapes)
    distance = np.abs(x * np.sin(shapes.angle)[:, None, None] - y * np.cos(shapes.angle)[:, None, None])
    widths = distance / shapes.size[:, None, None]
    owner, row, column = np.nonzero(widths < TRAIL_REACH)
    return _Pixels(owner, column, row, np.exp2(-4 * widths[owner, row, column] ** 2))


def _discs(shapes: _Shapes) -> _Pixels:
    squares = _squares(
        shapes._replace(x=shapes.x - shapes.size / 2, y=shapes.y - shapes.size / 2, size=shapes.size + 2)
    )
    x, y = squares.column + 0.5 - shapes.x[squares.owner], squares.row + 0.5 - shapes.y[squares.owner]
    inside = x**2 + y**2 < (shapes.size / 2)[squares.owner] ** 2
    return _Pixels(squares.owner[inside], squares.column[inside], squares.row[inside], squares.weight[inside])


SHAPES: dict[Kind, Callable[[_Shapes], _Pixels]] = {
    "trails": _trails,
    "cosmic_rays": _tracks,
    "hot_pixels": _squares,
    "dead_pixels": _squares,
    "columns": _bands,
    "gaps": _bands,
    "masked_discs": _discs,
}
"""Pixels of the defects of each kind."""


def _counted(lengths: NDArray[np.number]) -> tuple[Indices, Indices]:
    """The owner of each of as many pixels as all have together, and the pixel's number among its owner's."""
    counts = lengths.astype(np.int64)
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)


def _whole(position: Floats) -> Indices:
    return np.floor(position).astype(np.int64)


def _offsets(shapes: _Shapes) -> tuple[Floats, Floats]:
    """Positions of the centres of all pixels from each defect, as [n, 1, w] and [n, h, 1]."""
    centres = np.arange(shapes.side) + 0.5
    return centres[None, None, :] - shapes.x[:, None, None], centres[None, :, None] - shapes.y[:, None, None]


def _summed(at: Indices, level: Floats) -> tuple[Indices, Floats]:
    unique, inverse = np.unique(at, return_inverse=True)
    return unique, np.bincount(inverse, level, minlength=len(unique)).astype(np.float64)


def _first(at: Indices, level: Floats) -> tuple[Indices, Floats]:
    unique, first = np.unique(at, return_index=True)
    return unique, level[first]


def strike(pixels: Tensor, struck: Marks, unit: Tensor, zero: Tensor) -> None:
    """Add light to the pixels [n, h, w] and set those that are stuck, in place; masks are left out.

    unit: standard deviation of the sky's noise, and zero: value of the sky, of each image, [n], as the pixels have it.
    """
    flat, size = pixels.view(-1), pixels[0].numel()
    added_at, stuck_at = (torch.from_numpy(at).to(pixels.device) for at in (struck.added_at, struck.stuck_at))
    added, stuck = (torch.from_numpy(level).to(pixels) for level in (struck.added, struck.stuck))
    flat[added_at] += added * unit[added_at // size]
    flat[stuck_at] = zero[stuck_at // size] + stuck * unit[stuck_at // size]
