import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sublens.config import TrainConfig
from sublens.models.networks import build
from sublens.training import loop
from sublens.training.stacked_muon import StackedMuon, orthogonal

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
    models = [stepped(kind, 1)[0] for kind in (Muon, StackedMuon)]
    for theirs, ours in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)  # bfloat16 products in another order


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


def test_a_processor_keeps_timms_own_muon() -> None:
    assert type(loop.make_optimizer([build("lensnet", 3)], TrainConfig(lr=0.1, adamw_lr=0.1))) is Muon
