import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sublens.config import TrainConfig
from sublens.models.networks import build
from sublens.training import loop
from sublens.training.stacked_muon import GramMuon, StackedMuon, orthogonal, orthogonal_by_gram

Muon: Any = StackedMuon.__base__


def stepped(kind: Any, steps: int) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = build("lensnet", 3)
    groups = loop.make_optimizer([model], TrainConfig(lr=0.02, adamw_lr=3e-3)).param_groups
    ours = kind([dict(group) for group in groups])
    for _ in range(steps):
        F.cross_entropy(model(torch.randn(8, 1, 48, 48)), torch.randint(0, 3, (8,))).backward()  # type: ignore[no-untyped-call]
        ours.step()
        ours.zero_grad()
    return model, ours


def test_a_step_is_that_of_timms_muon() -> None:
    models = [stepped(kind, 1)[0] for kind in (Muon, StackedMuon, GramMuon)]
    for theirs, *ours in zip(*(model.parameters() for model in models), strict=True):
        for weight in ours:
            torch.testing.assert_close(weight, theirs, rtol=0, atol=3e-4)  # bfloat16 products in another order


def test_a_checkpoint_of_either_muon_goes_on_with_the_other() -> None:
    theirs, ours = (stepped(kind, 2)[1] for kind in (Muon, StackedMuon))
    assert {n: set(state) for n, state in theirs.state_dict()["state"].items()} == {
        n: set(state) for n, state in ours.state_dict()["state"].items()
    }
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))


@pytest.mark.parametrize("shapes", [[(8, 40), (8, 8), (30, 8)], [(16, 16)], [(4, 5), (5, 4), (9, 50)]])
def test_stacked_matrices_of_any_shape_become_orthogonal(shapes: list[tuple[int, int]]) -> None:
    torch.manual_seed(0)
    group = {"ns_coefficients": "quintic", "ns_steps": 5, "eps": 1e-7}
    matrices = [torch.randn(shape) for shape in shapes]
    for before, after in zip(matrices, orthogonal(matrices, group), strict=True):
        assert after.shape == before.shape
        values = torch.linalg.svdvals(after.float())
        assert values.min() > 0.3
        assert values.max() < 1.5


@pytest.mark.parametrize("shape", [(32, 25), (8, 40), (40, 8), (16, 16), (128, 1152)])
def test_gram_matrices_give_the_iteration_of_newton_and_schulz(shape: tuple[int, int]) -> None:
    from timm.optim.muon import _COEFFICIENTS, resolve_ns_coefficients, zeropower_via_newtonschulz

    torch.manual_seed(0)
    group = {"ns_coefficients": "quintic", "ns_steps": 5, "eps": 1e-7}
    matrix = torch.randn(shape) @ torch.diag(torch.logspace(0, -6, shape[1]))
    coefficients = resolve_ns_coefficients("quintic", _COEFFICIENTS)
    exact = zeropower_via_newtonschulz(matrix.double(), 5, coefficients, eps=1e-7, dtype=torch.float64)
    ours = orthogonal_by_gram(matrix, group)
    assert (ours - exact).norm() < 1e-3 * exact.norm()  # in bfloat16 6e-3


def test_gram_matrices_leave_zero_and_rank_one_finite() -> None:
    group = {"ns_coefficients": "quintic", "ns_steps": 5, "eps": 1e-7}
    assert orthogonal_by_gram(torch.zeros(4, 9), group).abs().max() == 0
    values = torch.linalg.svdvals(orthogonal_by_gram(torch.ones(4, 9), group))
    assert values[0] == pytest.approx(1, abs=0.3)
    assert values[1:].max() < 1e-3


def test_a_processor_has_muon_by_gram_matrices() -> None:
    assert type(loop.make_optimizer([build("lensnet", 3)], TrainConfig(lr=0.1, adamw_lr=0.1))) is GramMuon
