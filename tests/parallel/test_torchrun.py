"""Processes that torchrun starts train one network together."""

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
from sublens.parallel.torchrun import ALONE, Ranks, joined
from sublens.training import checkpoint, recorder

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
SETTINGS = ("--set", "train.epochs=6", "--set", "train.batch_size=16", "--set", "split.selection=0.25")
SMOOTH = ("--set", "train.optimizer=adamw", "--set", "train.adamw_lr=1e-4")
"""Steps that do not depend on the last digit of a gradient much, as Muon's do, which are worked out in bfloat16."""
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def begin(*arguments: object, n: int = 2) -> subprocess.Popen[str]:
    launcher = [*TORCHRUN, "--no-python"] if n > 1 else []
    command = [*launcher, sys.executable, "-m", "sublens.cli", "train", *map(str, arguments), *SETTINGS]
    return subprocess.Popen(command, env=ONE_THREAD, stderr=subprocess.PIPE, text=True, start_new_session=True)


def trained(*arguments: object, n: int = 2) -> str:
    """Train to the end; returns what was said."""
    with begin(*arguments, n=n) as process:
        _, said = process.communicate()
    assert process.returncode == 0, said
    return said


def losses(out: Path) -> list[float]:
    rows = map(json.loads, (out / recorder.LOG).read_text().splitlines())
    return [row["loss"] for row in rows if row["kind"] == "step"]


def test_two_processes_follow_one(easy_folder: Path, tmp_path: Path) -> None:
    trained(easy_folder, "--out", tmp_path / "one", *SMOOTH, n=1)
    said = trained(easy_folder, "--out", tmp_path / "two", *SMOOTH)
    one, two = (losses(tmp_path / name) for name in ("one", "two"))
    assert np.abs(np.subtract(one, two)).max() < 1e-3
    assert one[0] == pytest.approx(two[0], rel=1e-6)
    assert said.count("training images") <= said.count("selection,") == 1  # nothing is told twice
    card = bundle.read_card(tmp_path / "two")
    assert (card.machine.processes, card.training.images) == (2, 16 * len(two))
    assert Predictor.load(tmp_path / "two").classes == ("empty", "square")


def test_processes_that_are_killed_go_on_with_the_same_weights(easy_folder: Path, tmp_path: Path) -> None:
    trained(easy_folder, "--out", tmp_path / "whole")
    with begin(easy_folder, "--out", tmp_path / "killed") as process:
        while checkpoint.last_step(tmp_path / "killed") == 0:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        subprocess.run(["pkill", "-9", "-f", str(tmp_path / "killed")], check=False)
    trained(easy_folder, "--out", tmp_path / "killed", "--resume")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    hashes = [bundle.read_card(tmp_path / name).weights_sha256 for name in ("whole", "killed")]
    assert hashes[0] == hashes[1]


NORMALISED = """
import copy, torch
from sublens.ranks import joined
with joined() as ranks:
    images = 3 * torch.randn(8, 5, 7, 7, generator=torch.Generator().manual_seed(0)) + torch.arange(5).view(1, 5, 1, 1)
    wanted = torch.randn(8, 5, 7, 7, generator=torch.Generator().manual_seed(1))
    layer = torch.nn.BatchNorm2d(5)
    torch.nn.init.uniform_(layer.weight), torch.nn.init.uniform_(layer.bias)
    for parameter in layer.parameters():
        torch.distributed.broadcast(parameter.data, 0)
    shared = copy.deepcopy(layer)
    whole, share = images.clone().requires_grad_(), images[ranks.share].clone().requires_grad_()
    (layer(whole) * wanted).sum().backward()
    with ranks.normalising():
        told = shared(share)
    (told * wanted[ranks.share]).sum().backward()
    for parameter in shared.parameters():
        torch.distributed.all_reduce(parameter.grad)
    pairs = [(share.grad, whole.grad[ranks.share]), *zip(shared.buffers(), layer.buffers())]
    for mine, theirs in pairs[:3] + [(one.grad, two.grad) for one, two in zip(shared.parameters(), layer.parameters())]:
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    with ranks.normalising():
        torch.testing.assert_close(shared.eval()(images), layer.eval()(images), rtol=1e-5, atol=1e-5)
        bare = torch.nn.functional.batch_norm(images[ranks.share], None, None, training=True)
    whole = torch.nn.functional.batch_norm(images, None, None, training=True)
    torch.testing.assert_close(bare, whole[ranks.share], rtol=1e-5, atol=1e-5)
    if not ranks.is_first:
        raise SystemExit(0)
    try:
        ranks.mean(1.0)
    except RuntimeError as err:
        assert "gloo" in str(err), err
"""


def test_batches_are_normalised_by_the_statistics_of_all(tmp_path: Path) -> None:
    (tmp_path / "normalised.py").write_text(NORMALISED)
    done = subprocess.run(
        [*TORCHRUN, str(tmp_path / "normalised.py")], env=ONE_THREAD, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


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
    with pytest.raises(ConfigError, match=r"3 processes cannot share batches of 32 .* multiple of 3"):
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
