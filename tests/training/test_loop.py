import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from sublens.config import InputConfig, TrainConfig
from sublens.data.dataset import Dataset
from sublens.models.heads import TruthHead
from sublens.models.inputs import counts_to_input
from sublens.models.networks import LensNet, build
from sublens.sim.mass_map import mass_map
from sublens.training import loop
from sublens.training.loop import Batch, BatchSource, Step

NETWORK_INPUT = InputConfig(crop=48, binning=2)
RATED = TrainConfig(lr=0.02, adamw_lr=3e-3)


def feed(dataset: Dataset, n_cells: int = 0, **settings: object) -> BatchSource:
    config = TrainConfig.model_validate({"batch_size": 16, **settings})
    return BatchSource(dataset.train, NETWORK_INPUT, config, "cpu", dataset.survey if n_cells else None, n_cells)


def learn(model: nn.Module, batches: list[Batch], head: TruthHead | None = None, **settings: object) -> list[Step]:
    """Every step of one pass over the batches."""
    steps: list[Step] = []
    config = TrainConfig.model_validate({**RATED.model_dump(), "truth_weight": 3, **settings})
    torch.manual_seed(0)
    loop.fit(
        model,
        head,
        loop.make_optimizer([model, head] if head else [model], config),
        [batches],
        config=config,
        share_done=lambda n: n / len(batches),
        on_step=steps.append,
        on_epoch=lambda n: None,
    )
    return steps


def bright_or_dark(n: int) -> list[Batch]:
    """Batches that any network can learn: the second class is brighter."""
    rng = torch.Generator().manual_seed(1)
    labels = [torch.randint(0, 2, (16,), generator=rng) for _ in range(n)]
    return [Batch(torch.randn(16, 1, 24, 24, generator=rng) + 0.7 * label.view(-1, 1, 1, 1), label) for label in labels]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_network_learns_what_can_be_learned(optimizer: str) -> None:
    torch.manual_seed(0)
    losses = [step.loss for step in learn(build("lensnet", 2), bright_or_dark(60), optimizer=optimizer)]
    assert np.mean(losses[-10:]) < 0.5 * math.log(2)


def test_the_truth_head_learns_the_map() -> None:
    torch.manual_seed(0)
    images = torch.randn(16, 1, 48, 48)
    masses = nn.functional.avg_pool2d(images, 8)[:, 0]
    model = build("lensnet", 2)
    head = TruthHead(model, 0.5)
    steps = learn(model, [Batch(images, torch.zeros(16).long(), masses.repeat(1, 2, 2))] * 40, head)
    losses = [step.truth_loss for step in steps]
    assert losses[-1] < 0.5 * losses[0]  # type: ignore[operator]


def test_training_stops_where_the_share_reaches_one() -> None:
    steps: list[Step] = []
    batches, config = bright_or_dark(4), RATED
    epochs = (iter(batches) for _ in itertools.count())
    ends: list[int] = []
    model = build("lensnet", 2)
    loop.fit(
        model,
        None,
        loop.make_optimizer([model], config),
        epochs,
        config=config,
        share_done=lambda n: n / 6,
        on_step=steps.append,
        on_epoch=ends.append,
    )
    assert [step.number for step in steps] == [1, 2, 3, 4, 5, 6]
    assert [step.epoch for step in steps] == [0, 0, 0, 0, 1, 1]
    assert ends == [0, 1]


def test_a_log_line_of_many_steps_holds_their_means_and_ends_with_the_epoch() -> None:
    every: list[Step] = []
    few: list[Step] = []
    for steps, log_every in ((every, 1), (few, 3)):
        torch.manual_seed(0)
        model = build("lensnet", 2)
        loop.fit(
            model,
            None,
            loop.make_optimizer([model], RATED),
            [bright_or_dark(7), bright_or_dark(2)],
            config=RATED,
            share_done=lambda n: n / 9,
            on_step=steps.append,
            on_epoch=lambda n: None,
            log_every=log_every,
        )
    assert [(step.number, step.epoch, step.n_images) for step in few] == [
        (3, 0, 48),
        (6, 0, 48),
        (7, 0, 16),
        (9, 1, 32),
    ]
    assert [step.loss for step in few] == pytest.approx(
        [np.mean([step.loss for step in every[slice(*ends)]]) for ends in ((0, 3), (3, 6), (6, 7), (7, 9))]
    )


def test_a_gpu_logs_at_least_fifty_lines_an_epoch(small_dataset: Dataset) -> None:
    for epoch_images, log_every in ((160, 1), (16 * 149, 2), (16 * 5000, 20)):
        source = feed(small_dataset, epoch_images=epoch_images)
        assert source.log_every == 1
        assert replace(source, device="cuda").log_every == log_every


def test_the_same_seed_gives_the_same_weights(small_dataset: Dataset) -> None:
    def weights() -> list[Tensor]:
        torch.manual_seed(0)
        model = build("lensnet", 3)
        learn(model, list(feed(small_dataset).epoch(0)))
        return list(model.parameters())

    assert all(map(torch.equal, weights(), weights()))


@given(st.floats(0, 1), st.floats(0, 0.9))
def test_the_rate_stays_between_zero_and_its_peak(done: float, warmup: float) -> None:
    assert -1e-9 <= loop.rate_at(done, warmup) <= 1 + 1e-9


def test_the_rate_rises_then_falls_to_zero() -> None:
    rates = [loop.rate_at(done, 0.1) for done in np.linspace(0, 1, 101)]
    assert np.argmax(rates) == 10
    assert (np.diff(rates[:11]) > 0).all()
    assert (np.diff(rates[10:]) < 0).all()
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_every_parameter_is_trained_once() -> None:
    model = build("mobilenetv3-small", 3)
    optimizer = loop.make_optimizer([model, TruthHead(model, 1)], RATED)
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(held) == len({id(parameter) for parameter in held}) == len(list(model.parameters())) + 2


def test_the_classifier_is_left_to_adamw() -> None:
    model = LensNet(3, 1)
    filters, rest = loop.make_optimizer([model], RATED).param_groups
    assert id(model.classifier.weight) in map(id, rest["params"])
    assert id(next(model.stem.parameters())) in map(id, filters["params"])
    assert (filters["lr"], rest["lr"]) == (RATED.lr, RATED.adamw_lr)


def test_set_rate_scales_every_group() -> None:
    optimizer = loop.make_optimizer([build("lensnet", 3)], TrainConfig(lr=0.1, adamw_lr=0.01))
    loop.set_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.005]


def test_an_epoch_visits_each_image_once(small_dataset: Dataset) -> None:
    source = feed(small_dataset, batch_size=1, flips=False)
    images = torch.cat([batch.images for batch in source.epoch(0)])
    assert len(images) == len(small_dataset.train)
    assert len({image.numpy().tobytes() for image in images}) == len(images)


def test_each_epoch_has_an_order_of_its_own(small_dataset: Dataset) -> None:
    first, again, second = (torch.cat([batch.labels for batch in feed(small_dataset).epoch(n)]) for n in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_epochs_of_any_length_cut_the_same_passes(small_dataset: Dataset) -> None:
    whole = [batch.labels.tolist() for epoch in itertools.islice(feed(small_dataset).epochs(), 3) for batch in epoch]
    source = feed(small_dataset, epoch_images=33)
    assert len(source) == 3
    cut = [batch.labels.tolist() for epoch in itertools.islice(source.epochs(), 4) for batch in epoch]
    assert cut == whole[:12]


def test_an_epoch_goes_on_where_it_was_left(small_dataset: Dataset) -> None:
    source = feed(small_dataset)
    whole = list(source.epoch(1))
    rest = list(itertools.islice(source.epochs(1, 2), 2))
    for expected, batch in zip(whole[2:], rest[0], strict=True):
        assert torch.equal(expected.images, batch.images)
    assert torch.equal(next(rest[1]).images, next(source.epoch(2)).images)


def test_a_data_set_smaller_than_a_batch_is_one_batch(small_dataset: Dataset) -> None:
    source = feed(small_dataset, batch_size=1000)
    assert [len(batch.labels) for batch in source.epoch(0)] == [len(small_dataset.train)]
    assert len(source) == 1


def test_flips_show_every_mirror_image(small_dataset: Dataset) -> None:
    source = feed(small_dataset, batch_size=len(small_dataset.train))
    images = next(source.epoch(0)).images
    plain = next(feed(small_dataset, batch_size=len(small_dataset.train), flips=False).epoch(0)).images
    kinds = [images.flip(axes) for axes in ((), (-1,), (-2,), (-1, -2))]
    which = torch.stack([(kind == plain).flatten(1).all(1) for kind in kinds])
    assert which.sum(0).tolist() == [1] * len(plain)
    assert (which.sum(1) > len(plain) / 8).all()


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=5))
def test_mirroring_twice_is_the_identity(flips: list[tuple[bool, bool]]) -> None:
    planes, mask = torch.randn(len(flips), 2, 5, 4), torch.tensor(flips)
    assert torch.equal(loop.mirrored(loop.mirrored(planes, mask), mask), planes)


def test_the_truth_map_is_mirrored_with_its_image(small_dataset: Dataset) -> None:
    size = len(small_dataset.train)
    plain, flipped = (
        next(feed(small_dataset, n_cells=6, batch_size=size, flips=flips).epoch(0)) for flips in (False, True)
    )
    assert plain.masses is not None
    assert flipped.masses is not None
    for before, after, mass, mirrored in zip(plain.images, flipped.images, plain.masses, flipped.masses, strict=True):
        axes = next(axes for axes in ((), (-1,), (-2,), (-1, -2)) if torch.equal(before.flip(axes), after))
        assert torch.equal(mass.flip(axes), mirrored)


def plain(dataset: Dataset) -> NDArray[np.float32]:
    """All training images as network input, in their stored order."""
    part = dataset.train
    return np.asarray(counts_to_input(part.counts(np.arange(len(part))), NETWORK_INPUT).numpy())


def test_batches_carry_the_log_mass_of_their_images(small_dataset: Dataset) -> None:
    size = len(small_dataset.train)
    batch = next(feed(small_dataset, n_cells=6, batch_size=size, flips=False).epoch(0))
    order = [
        list(map(np.ndarray.tobytes, plain(small_dataset))).index(image.numpy().tobytes()) for image in batch.images
    ]
    truth = small_dataset.train.take(np.array(order)).truth
    assert truth is not None
    assert batch.masses is not None
    expected = np.log1p(mass_map(truth, 6, 48 * 0.15) / 1e9)
    assert np.allclose(batch.masses, expected, rtol=1e-5)
    assert (batch.masses.sum((1, 2)) > 0).tolist() == (batch.labels > 0).tolist()


def test_there_is_no_truth_head_without_truth_or_weight(small_dataset: Dataset) -> None:
    model = build("lensnet", 3)
    assert loop.truth_head(model, NETWORK_INPUT, small_dataset, TrainConfig(truth_weight=3))[1] == 6
    assert loop.truth_head(model, NETWORK_INPUT, small_dataset, TrainConfig(truth_weight=0)) == (None, 0)


def test_depthwise_filters_are_left_to_adamw() -> None:
    model = build("mobilenetv3-small", 3)
    filters = loop.make_optimizer([model], RATED).param_groups[0]["params"]
    assert not any(parameter.shape[1] == 1 for parameter in filters[1:])
    assert len(filters) > 20
