"""Gradients by several threads."""

import copy
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from sublens.config import TrainConfig
from sublens.models.heads import TruthHead
from sublens.models.macro import CONTAMINANT
from sublens.models.networks import build
from sublens.training import loop, macromodel
from sublens.training.loop import Batch
from sublens.training.replicas import Gradients, ahead, n_replicas, parts

RATED = TrainConfig(lr=0.02, adamw_lr=3e-3, truth_weight=3)


@pytest.fixture(params=[2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Several threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def batch_of(n: int) -> Batch:
    rng = torch.Generator().manual_seed(1)
    images, masses = torch.randn(n, 1, 48, 48, generator=rng), torch.randn(n, 12, 12, generator=rng)
    return Batch(images, torch.randint(0, 3, (n,), generator=rng), masses)


def without_batch_norm() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3)
    return loop._WithHeads(nn.Sequential(*layers), None, None, None)


def gradient(module: nn.Module, batch: Batch) -> tuple[list[Tensor | None], list[Tensor]]:
    """Losses of a batch, and the gradient of each weight."""
    with Gradients(module, partial(loop._backward, RATED, False), is_alone=True) as gradients:
        losses = gradients.add(batch)
    return losses, [weight.grad for weight in module.parameters() if weight.grad is not None]


def with_contaminants(batch: Batch) -> Batch:
    """The last third of the images are no lenses, so that the parts of the batch differ."""
    labels = torch.where(torch.arange(len(batch.labels)) < 2 * len(batch.labels) // 3, batch.labels, CONTAMINANT)
    return replace(batch, labels=labels, lens_weights=macromodel.lens_weights(labels))


@pytest.mark.parametrize("changed", [lambda batch: batch, with_contaminants])
def test_replicas_give_the_gradient_and_the_losses_of_the_whole_batch(
    threads: int, changed: Callable[[Batch], Batch]
) -> None:
    batch, module = changed(batch_of(50)), without_batch_norm()
    assert n_replicas(module, batch.images) == threads
    losses, planes = gradient(module, batch)
    whole = loop._backward(RATED, False, copied := copy.deepcopy(without_batch_norm()), batch, 1.0)
    torch.testing.assert_close(losses[0], whole[0])
    assert losses[1:] == [None] * 4
    torch.testing.assert_close(planes, [weight.grad for weight in copied.parameters()])


def test_parts_hold_every_image_with_its_targets_once() -> None:
    batch = replace(batch_of(50), teacher_maps=[torch.arange(50), torch.arange(50)])
    halves, shares = zip(*parts(batch, 3), strict=True)
    assert sum(shares) == pytest.approx(1)
    for name in ("images", "labels", "masses"):
        assert torch.equal(torch.cat([getattr(part, name) for part in halves]), getattr(batch, name))
    assert torch.equal(torch.cat([part.teacher_maps[1] for part in halves]), torch.arange(50))
    assert [len(part.teacher_maps) for part in halves] == [2, 2, 2]


def test_running_statistics_are_means_over_the_replicas(threads: int) -> None:
    batch, norm = batch_of(48), nn.BatchNorm2d(1)
    module = loop._WithHeads(nn.Sequential(norm, nn.Flatten(), nn.Linear(48 * 48, 3)), None, None, None)
    gradient(module, replace(batch, masses=None))
    expected = torch.stack([0.9 + 0.1 * part.images.var() for part, _ in parts(batch, threads)]).mean()
    assert norm.running_var is not None
    assert norm.running_var.item() == pytest.approx(expected.item(), rel=1e-6)


def trained(n_steps: int) -> nn.Module:
    torch.manual_seed(0)
    model = build("lensnet", 3)
    head = TruthHead(model, 0.5)
    steps: list[loop.Step] = []
    optimizer = loop.make_optimizer([model, head], RATED)
    loop.fit(
        model,
        head,
        optimizer,
        [[batch_of(48)] * n_steps],
        config=RATED,
        share_done=lambda n: n / n_steps,
        on_step=steps.append,
        on_epoch=lambda n: None,
    )
    assert steps[-1].truth_loss is not None
    assert n_steps < 9 or steps[-1].truth_loss < 0.98 * steps[0].truth_loss  # type: ignore[operator]
    return model


def test_the_same_seed_and_threads_give_the_same_weights_and_statistics(threads: int) -> None:
    first, again = (trained(3).state_dict().values() for _ in range(2))
    assert all(map(torch.equal, first, again))


def test_replicas_train_the_heads_and_leave_torchs_threads_and_no_thread_of_theirs(threads: int) -> None:
    n_running = threading.active_count()
    trained(12)
    assert torch.get_num_threads() == threads
    assert threading.active_count() == n_running


@pytest.mark.parametrize(
    ("layer", "size", "n"), [(nn.Dropout(), 48, 1), (nn.Identity(), 48, 2), (nn.Identity(), 31, 1)]
)
@pytest.mark.parametrize("threads", [2], indirect=True)
def test_small_batches_and_networks_that_draw_random_numbers_have_no_replicas(
    threads: int, layer: nn.Module, size: int, n: int
) -> None:
    before = torch.get_rng_state()
    assert n_replicas(nn.Sequential(layer), torch.zeros(size, 1, 4, 4)) == n
    assert torch.equal(torch.get_rng_state(), before)


def test_an_error_in_a_replica_surfaces(threads: int) -> None:
    batch = batch_of(48)
    with pytest.raises(IndexError, match="Target 7 is out of bounds"):
        gradient(without_batch_norm(), replace(batch, labels=batch.labels.clone().index_fill(0, torch.tensor(47), 7)))


def test_batches_are_made_ahead_in_another_thread(threads: int) -> None:
    makers: list[threading.Thread] = []

    def batches() -> Iterator[int]:
        for number in range(5):
            makers.append(threading.current_thread())
            yield number

    assert list(ahead(batches())) == [0, 1, 2, 3, 4]
    assert threading.current_thread() not in makers
    assert len(set(makers)) == 1
