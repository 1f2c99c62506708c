"""Processes that torchrun starts train one network together."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from sublens.errors import ConfigError
from sublens.inference.predictor import Predictor
from sublens.models import bundle
from sublens.models.heads import FeatureMaps
from sublens.models.networks import build
from sublens.models.timm_import import import_timm
from sublens.parallel.torchrun import ALONE, Ranks, joined, synchronise_batch_norm
from sublens.training import checkpoint, recorder

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
SETTINGS = ("--set", "train.epochs=6", "--set", "train.batch_size=16", "--set", "split.selection=0.25")
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def begin(*arguments: object, n: int = 2) -> subprocess.Popen[str]:
    launcher = [*TORCHRUN, "--no-python"] if n > 1 else []
    command = [*launcher, sys.executable, "-m", "sublens.cli", "train", *map(str, arguments), *SETTINGS]
    return subprocess.Popen(command, env=ONE_THREAD, stderr=subprocess.PIPE, text=True, start_new_session=True)


def train(*arguments: object, n: int = 2) -> str:
    """Train to the end; returns what was printed."""
    with begin(*arguments, n=n) as process:
        _, printed = process.communicate()
    assert process.returncode == 0, printed
    return printed


def losses(out: Path) -> list[float]:
    rows = map(json.loads, (out / recorder.LOG).read_text().splitlines())
    return [row["loss"] for row in rows if row["kind"] == "step"]


def test_two_processes_learn_what_one_learns(easy_folder: Path, tmp_path: Path) -> None:
    train(easy_folder, "--out", tmp_path / "one", n=1)
    printed = train(easy_folder, "--out", tmp_path / "two")
    one, two = (bundle.read_card(tmp_path / name) for name in ("one", "two"))
    assert min(one.training.selection_auc, two.training.selection_auc) > 0.95
    assert (one.machine.processes, two.machine.processes) == (1, 2)
    assert one.training.images == two.training.images == 16 * len(losses(tmp_path / "two"))
    assert printed.count("training images") <= printed.count("selection,") == 1  # nothing is printed twice
    assert Predictor.load(tmp_path / "two").classes == ("empty", "square")


def test_processes_that_are_killed_go_on_with_the_same_weights(easy_folder: Path, tmp_path: Path) -> None:
    train(easy_folder, "--out", tmp_path / "whole")
    with begin(easy_folder, "--out", tmp_path / "killed") as process:
        while checkpoint.last_step(tmp_path / "killed") == 0:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        subprocess.run(["pkill", "-9", "-f", str(tmp_path / "killed")], check=False)
    train(easy_folder, "--out", tmp_path / "killed", "--resume")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    hashes = [bundle.read_card(tmp_path / name).weights_sha256 for name in ("whole", "killed")]
    assert hashes[0] == hashes[1]


SHARED_STEP = """
import torch
from torch import nn
from sublens.parallel.torchrun import joined

torch.manual_seed(0)
images, model = torch.randn(8, 3), nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
model(images).square().mean().backward()
expected = [parameter.grad.clone() for parameter in model.parameters()]
with joined() as ranks:
    model.zero_grad()
    whole = ranks.together(model)
    whole(images[ranks.share]).square().mean().backward()
    for parameter, gradient in zip(model.parameters(), expected):
        torch.testing.assert_close(parameter.grad, gradient)
    norm = nn.BatchNorm1d(3)
    whole = ranks.together(norm)
    for start in (0, images[::2].mean(0)):  # each step begins with the buffers of the first process
        whole(images[ranks.share]).sum().backward()
        expected = 0.9 * 0.1 * start + 0.1 * images[ranks.share].mean(0)
        torch.testing.assert_close(norm.running_mean, expected)
    del whole
    if ranks.is_first:
        try:
            ranks.mean(1.0)
        except RuntimeError as err:
            assert "gloo" in str(err), err
"""


def test_gradients_are_those_of_the_whole_batch_and_statistics_those_of_the_share(tmp_path: Path) -> None:
    (tmp_path / "step.py").write_text(SHARED_STEP)
    command = [*TORCHRUN, str(tmp_path / "step.py")]
    ended = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_batch_norm_is_synchronised_with_its_activation_and_weights() -> None:
    import_timm()
    from timm.layers import BatchNormAct2d  # type: ignore[attr-defined]

    model = torch.nn.Sequential(torch.nn.BatchNorm2d(2), BatchNormAct2d(2)).eval()
    converted = synchronise_batch_norm(copy.deepcopy(model))
    assert all(isinstance(layer, torch.nn.SyncBatchNorm) for layer in converted)  # type: ignore[attr-defined]
    images = torch.randn(1, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(converted(images), model(images))
    assert converted(images).min() == 0
    assert list(converted.state_dict()) == list(model.state_dict())


def test_one_process_alone_is_left_as_it_is() -> None:
    model = torch.nn.Linear(2, 2)
    with joined() as ranks:
        assert ranks is ALONE
        assert ranks.together(model) is model
        assert (ranks.mean(3.0), ranks.first(2.0), ranks.any(True), ranks.any(False)) == (3.0, 2.0, True, False)


def test_shares_make_up_the_batch() -> None:
    batch = np.arange(12)
    shares = [batch[Ranks(number, 3).share] for number in range(3)]
    assert sorted(np.concatenate(shares)) == list(batch)
    assert {len(share) for share in shares} == {4}


def test_a_batch_that_has_no_equal_shares_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"3 processes cannot share batches of 32 .* multiple of 3.*batch_size=30"):
        Ranks(0, 3).check(32)


def test_each_process_has_random_numbers_of_its_own_at_each_step() -> None:
    def drawn(number: int, step: int) -> float:
        torch.manual_seed(0)
        Ranks(number, 3).begin_step(5, step)
        return torch.rand(1).item()

    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert drawn(0, 1) == drawn(0, 2)  # it keeps the sequence that it has
        assert len({drawn(number, step) for number in (1, 2) for step in (1, 2)}) == 4
        assert drawn(1, 7) == drawn(1, 7)


def test_feature_maps_are_still_read_when_batch_norm_is_synchronised() -> None:
    model = build("mobilenetv3-small", 3)
    maps = FeatureMaps(model, model.feature_info)  # type: ignore[arg-type]
    model.eval()(torch.zeros(1, 1, 64, 64))
    synchronise_batch_norm(model)
    model.eval()(torch.zeros(2, 1, 64, 64))
    assert {len(feature_map) for feature_map in maps()} == {2}
