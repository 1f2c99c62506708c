import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sublens.config import TrainConfig
from sublens.models.networks import build, to_device
from sublens.training import checkpoint, loop
from sublens.training.checkpoint import Checkpoint


def made(optimizer: str = "muon") -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = to_device(build("lensnet", 3), "cpu")
    return model, loop.make_optimizer(
        [model], TrainConfig.model_validate({"optimizer": optimizer, "lr": 0.02, "adamw_lr": 3e-3})
    )


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    loss = model(torch.randn(4, 1, 48, 48)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_restored_training_goes_on_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    model, descent = made(optimizer)
    step(model, descent)
    checkpoint.save(tmp_path, checkpoint.captured(1, {"model": model}, descent, {"seconds": 2.5}))
    step(model, descent)
    expected, noise = [parameter.clone() for parameter in model.parameters()], torch.rand(3)

    other, fresh = made(optimizer)
    torch.manual_seed(9)
    last, damaged = checkpoint.latest(tmp_path)
    assert last is not None
    assert (last.step, last.facts["seconds"], damaged) == (1, 2.5, [])
    checkpoint.restore(last, {"model": other}, fresh)
    step(other, fresh)
    assert all(map(torch.equal, other.parameters(), expected))
    assert torch.equal(torch.rand(3), noise)


def save_small(folder: Path, number: int) -> None:
    checkpoint.save(folder, Checkpoint(number, {"model/w": torch.full((5,), float(number))}, {"n": number}))


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for number in (1, 9, 10, 11):
        save_small(tmp_path, number)
    steps = [int(path.name.split("-")[0]) for path in sorted((tmp_path / checkpoint.FOLDER).iterdir())]
    assert steps == [10, 11]


@settings(max_examples=60)
@given(share=st.floats(0, 1, exclude_max=True), is_cut=st.booleans())
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_used(
    tmp_path_factory: pytest.TempPathFactory, share: float, is_cut: bool
) -> None:
    folder = tmp_path_factory.mktemp("run")
    for number in (1, 2):
        save_small(folder, number)
    path = sorted((folder / checkpoint.FOLDER).iterdir())[-1]
    data = bytearray(path.read_bytes())
    at = int(share * len(data))
    if is_cut:
        data = data[:at]
    else:
        data[at] ^= 1
    path.write_bytes(data)
    last, damaged = checkpoint.latest(folder)
    assert last is not None
    assert (last.step, last.facts, damaged) == (1, {"n": 1}, [path])


@pytest.mark.slow
def test_every_cut_and_every_flipped_byte_of_a_real_checkpoint_is_noticed(tmp_path: Path) -> None:
    """200 places to cut it at, 1,000 to flip a byte."""
    model, descent = made()
    for number in (1, 2):
        step(model, descent)
        checkpoint.save(tmp_path, checkpoint.captured(number, {"model": model}, descent, {"seconds": 2.5}))
    path = sorted((tmp_path / checkpoint.FOLDER).iterdir())[-1]
    data, rng = path.read_bytes(), random.Random(0)
    for number in range(1200):
        damaged, at = bytearray(data), rng.randrange(len(data))
        if number < 200:
            del damaged[at:]
        else:
            damaged[at] ^= rng.randrange(1, 256)
        path.write_bytes(damaged)
        last, wrong = checkpoint.latest(tmp_path)
        assert last is not None
        assert (last.step, wrong) == (1, [path])


def test_a_run_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) == (None, [])
