import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sublens.config import TrainConfig
from sublens.models.heads import MacroHead
from sublens.models.macro import CONTAMINANT, measured, targets
from sublens.models.networks import build
from sublens.training import loop, macromodel
from sublens.training.loop import Batch

N, SIDE = 6, 32


def ring(theta_e: Tensor, q: Tensor, angle: Tensor) -> Tensor:
    """Elliptical rings of radius theta_e pixels at the middle of images [b, 1, SIDE, SIDE]."""
    x = torch.arange(SIDE) - (SIDE - 1) / 2
    cos, sin = (function(angle).view(-1, 1, 1) for function in (torch.cos, torch.sin))
    along, across = cos * x + sin * x[:, None], cos * x[:, None] - sin * x
    q = q.view(-1, 1, 1)
    radius = (q * along**2 + across**2 / q).sqrt()
    return torch.exp(-0.5 * (radius - theta_e.view(-1, 1, 1)) ** 2)[:, None]


def lenses(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of rings and the targets of a macro head."""
    rng = np.random.default_rng(seed)
    lens = [rng.uniform(low, high, n) for low, high in ((6, 12), (0.5, 0.9), (0, np.pi))]
    return ring(*(torch.from_numpy(values).float() for values in lens)), torch.from_numpy(targets(*lens)).float()


@pytest.fixture(scope="module")
def trained() -> tuple[torch.nn.Module, MacroHead]:
    """lensnet and a macro head that have learned to measure rings."""
    torch.manual_seed(0)
    model = build("lensnet", 2)
    head = MacroHead(model, 1.0)
    config = TrainConfig(lr=0.02, adamw_lr=3e-3, macro_weight=1.0)
    pairs = [lenses(16, seed) for seed in range(250)]
    batches = [Batch(images, torch.arange(16) % 2, macro=lens) for images, lens in pairs]
    optimizer = loop.make_optimizer([model, head], config)
    loop.fit(model, None, optimizer, [batches], config=config, share_done=lambda n: n / len(batches),
             on_step=lambda step: None, on_epoch=lambda epoch: None, macro=head)  # fmt: skip
    return model.eval(), head.eval()


def test_a_macro_head_measures_rings_to_two_per_cent(trained: tuple[torch.nn.Module, MacroHead]) -> None:
    images, true = lenses(200, 1_000)
    with torch.no_grad():
        trained[0](images)
        off = (trained[1]()[:, :3] - true).abs().median(0).values
    assert off[0] < 0.02
    assert off[1:].max() < 0.02


def test_mirrored_targets_are_those_of_the_mirrored_image(trained: tuple[torch.nn.Module, MacroHead]) -> None:
    images, true = lenses(40, 1_001)
    flips = torch.tensor([[False, True], [True, True], [True, False], [False, False]]).repeat(10, 1)
    with torch.no_grad():
        trained[0](loop.mirrored(images, flips))
        off = (trained[1]()[:, :3] - macromodel.mirrored(true, flips)).abs()
    assert off[:, 1:].median() < 0.03
    assert off.max() < 0.3


def test_the_loss_is_that_of_a_gaussian() -> None:
    outputs = torch.zeros(1, 7)
    outputs[:, 3:6] = math.log(2)
    loss = macromodel.macro_loss(outputs, torch.tensor([[2.0, 0, 4.0]]), torch.ones(1))
    gaussian = torch.distributions.Normal(0.0, 2.0).log_prob(torch.tensor([2.0, 0, 4.0]))  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(-gaussian.mean().item() - 0.5 * math.log(2 * math.pi))


def test_contaminants_teach_their_logit_alone() -> None:
    outputs = torch.zeros(N, 7, requires_grad=True)
    labels = torch.tensor([0, 1, CONTAMINANT, 2, CONTAMINANT, 0])
    true = torch.ones(N, 3)
    true[labels == CONTAMINANT] = torch.nan
    lens, contaminant = macromodel.losses(
        outputs, true, (labels == CONTAMINANT).float(), macromodel.lens_weights(labels)
    )
    assert lens is not None
    assert contaminant is not None
    (lens + contaminant).backward()  # type: ignore[no-untyped-call]
    assert (outputs.grad[labels == CONTAMINANT, :6] == 0).all()  # type: ignore[index]
    assert (outputs.grad[:, CONTAMINANT] < 0).tolist() == (labels == CONTAMINANT).tolist()  # type: ignore[index]


def test_labels_learn_nothing_from_contaminants() -> None:
    logits = torch.zeros(N, 3, requires_grad=True)
    labels = torch.tensor([0, 1, CONTAMINANT, 2, CONTAMINANT, 0])
    batch = Batch(torch.zeros(N, 1, 8, 8), labels, lens_weights=macromodel.lens_weights(labels))
    loop._losses((logits, None, None, None), batch)[0].backward()  # type: ignore[no-untyped-call]
    assert (logits.grad.abs().sum(1) == 0).tolist() == (labels == CONTAMINANT).tolist()  # type: ignore[union-attr]


def test_a_batch_without_lenses_has_no_label_loss() -> None:
    logits = torch.ones(N, 3, requires_grad=True)
    labels = torch.full((N,), CONTAMINANT)
    batch = Batch(torch.zeros(N, 1, 8, 8), labels, lens_weights=macromodel.lens_weights(labels))
    loss = loop._losses((logits, None, None, None), batch)[0]
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert (logits.grad == 0).all()  # type: ignore[union-attr]


def test_a_new_head_says_it_knows_nothing() -> None:
    model = build("lensnet", 2)
    head = MacroHead(model, 1.0)
    model(torch.randn(4, 1, 32, 32))
    assert measured(head().detach().double().numpy())[:, 1].min() > 0.5
