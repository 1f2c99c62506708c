"""Deflection of many point masses on a GPU: one kernel, whose sums never leave the registers.

Mass by mass, planes of all images are read and written for each; that is forty times the memory traffic.
"""

import warnings
from functools import cache

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from sublens.lensing.mass import TINY

PIXELS = 512
"""Pixels of one image that a program of the kernel computes."""


@triton.jit  # type: ignore[untyped-decorator]
def _add(axis_x, axis_y, masses, starts, alpha_x, alpha_y, width, n_pixels, tiny, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    image = tl.program_id(0)
    pixel = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    is_inside = pixel < n_pixels
    x = tl.load(axis_x + pixel % width, is_inside, 0.0)
    y = tl.load(axis_y + pixel // width, is_inside, 0.0)
    place = image * n_pixels + pixel
    sum_x = tl.load(alpha_x + place, is_inside, 0.0)
    sum_y = tl.load(alpha_y + place, is_inside, 0.0)
    for i in range(tl.load(starts + image), tl.load(starts + image + 1)):
        dx = x - tl.load(masses + 3 * i)
        dy = y - tl.load(masses + 3 * i + 1)
        theta_e = tl.load(masses + 3 * i + 2)
        weight = theta_e * theta_e / (dx * dx + (dy * dy + tiny))
        sum_x += weight * dx
        sum_y += weight * dy
    tl.store(alpha_x + place, sum_x, is_inside)
    tl.store(alpha_y + place, sum_y, is_inside)


def add_points(
    axis_x: Tensor,
    axis_y: Tensor,
    masses: NDArray[np.float32],
    ends: NDArray[np.int64],
    alpha_x: Tensor,
    alpha_y: Tensor,
) -> None:
    """Add the deflection of point masses to alpha_x and alpha_y, [b, h, w], as `mass.add_points` does.

    All tensors are float32 and contiguous, on one device.
    """
    assert alpha_x.is_contiguous(), "the kernel counts pixels row by row"
    assert alpha_y.is_contiguous(), "the kernel counts pixels row by row"
    b, height, width = alpha_x.shape
    known = torch.from_numpy(masses).to(alpha_x.device)
    starts = torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32)).to(alpha_x.device)
    programs = b, triton.cdiv(height * width, PIXELS)
    _add[programs](axis_x, axis_y, known, starts, alpha_x, alpha_y, width, height * width, float(TINY), SIZE=PIXELS)


@cache
def works(device: str) -> bool:
    """Whether the kernel can be built here: Triton needs a C compiler; warns where it cannot."""
    try:
        axis, plane = torch.zeros(1, device=device), torch.zeros(1, 1, 1, device=device)
        add_points(axis, axis, np.zeros((1, 3), np.float32), np.ones(1, np.int64), plane, plane.clone())
    except Exception as err:  # Triton, the compiler and the driver raise types of their own
        warnings.warn(f"Rendering is slower than it could be: Triton cannot compile here ({err}).", stacklevel=2)
        return False
    return True
