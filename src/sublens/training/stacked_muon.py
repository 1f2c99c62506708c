"""timm's Muon with matrix products that suit the device: few and large for GPUs, of small matrices for processors."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sublens.models.timm_import import import_timm

import_timm()
from timm.optim.muon import (  # noqa: E402
    _COEFFICIENTS,
    Muon,
    _is_suitable_for_muon,
    get_lr_scale,
    resolve_ns_coefficients,
    zeropower_via_newtonschulz,
)


class StackedMuon(Muon):
    """Muon whose filters of equal rank are made orthogonal together; the same updates but for rounding.

    A GPU takes as long to begin a product as to compute one of a small network's, so timm's filter after
    filter costs it more than the network's gradient. The state is that of timm's.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters; the gradients of the filters are used up on the way."""
        for group in self.param_groups:
            if not group.get("use_fallback", False):
                self._step_filters(group)
        super().step(closure)  # type: ignore[no-untyped-call]  # which passes over parameters without a gradient

    def _step_filters(self, group: dict[str, Any]) -> None:
        held = [weight for weight in group["params"] if weight.grad is not None]
        filters = [weight for weight in held if _is_suitable_for_muon(weight)]  # the others stay timm's
        momenta = [self._momentum(weight) for weight in filters]
        torch._foreach_lerp_(momenta, [weight.grad for weight in filters], 1 - group["momentum"])
        torch._foreach_mul_(filters, 1 - group["lr"] * group["weight_decay"])
        updates = self._orthogonal([momentum.flatten(1) for momentum in momenta], group)
        for weight, update in zip(filters, updates, strict=True):
            rate = group["lr"] * get_lr_scale(update.shape, group["adjust_lr_fn"])
            weight.add_(update.reshape(weight.shape), alpha=-rate)
            weight.grad = None

    def _orthogonal(self, matrices: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        return orthogonal(matrices, group)

    def _momentum(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["use_muon"], state["momentum_buffer"] = True, torch.zeros_like(weight)
        momentum: Tensor = state["momentum_buffer"]
        return momentum


class GramMuon(StackedMuon):
    """Muon that iterates on the small products of filters with themselves; the same updates, exact to float32."""

    def _orthogonal(self, matrices: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        return [orthogonal_by_gram(matrix, group) for matrix in matrices]


def orthogonal_by_gram(matrix: Tensor, group: dict[str, Any]) -> Tensor:
    """The matrix [m, n], float32, with all singular values near 1, by m x m products, or n x n if that is less.

    Each step of Newton and Schulz multiplies the matrix X by a polynomial P of its Gram matrix G = X X^T, which
    becomes P G P. The product of all P multiplies X once, at the end. group: as in `orthogonal`.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=group["eps"])
    gram, product = wide @ wide.T, None
    coefficients = resolve_ns_coefficients(group["ns_coefficients"], _COEFFICIENTS)
    for a, b, c in (coefficients + coefficients[-1:] * group["ns_steps"])[: group["ns_steps"]]:
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal().add_(a)
        product = polynomial if product is None else polynomial @ product
        gram = polynomial @ gram @ polynomial
    update: Tensor = wide if product is None else product @ wide
    return update if update.shape == matrix.shape else update.T


def orthogonal(matrices: Sequence[Tensor], group: dict[str, Any]) -> list[Tensor]:
    """The matrices with all singular values near 1; those of equal rank are computed in one stack.

    Shorter rows are filled with zeros, which the iteration of Newton and Schulz leaves as they are. group: its
    settings, those of the optimiser.
    """
    coefficients = resolve_ns_coefficients(group["ns_coefficients"], _COEFFICIENTS)
    wide = [matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T for matrix in matrices]
    by_rank: dict[int, list[int]] = defaultdict(list)
    for number, matrix in enumerate(wide):
        by_rank[matrix.shape[0]].append(number)
    for numbers in by_rank.values():
        longest = max(wide[number].shape[1] for number in numbers)
        stack = torch.stack([F.pad(wide[number], (0, longest - wide[number].shape[1])) for number in numbers])
        planes = zeropower_via_newtonschulz(stack, group["ns_steps"], coefficients, eps=group["eps"])
        for number, plane in zip(numbers, planes, strict=True):
            wide[number] = plane[:, : wide[number].shape[1]]
    pairs = zip(matrices, wide, strict=True)
    return [plane if plane.shape == matrix.shape else plane.T for matrix, plane in pairs]
