from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sublens.config import RunConfig, SplitConfig, TrainConfig
from sublens.data.dataset import open_dataset
from sublens.models import bundle
from sublens.training import duration, run
from sublens.training.duration import Stopwatch


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (80, "80 s"), (1_500, "25 min"), (7_800, "2 h 10 min"), (7_190, "2 h 0 min")],
)
def test_a_duration_in_words(seconds: float, words: str) -> None:
    assert duration.rounded(seconds) == words


@pytest.mark.skipif(torch.cuda.is_available(), reason="cores are named where there is no GPU")
def test_the_cores_are_named() -> None:
    assert duration.in_words(60) == "about 60 s on 1 core"


def test_a_slow_first_step_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock: Iterator[float] = iter([0, 50, 52, 54, 56])
    monkeypatch.setattr(duration, "monotonic", lambda: next(clock))
    watch = Stopwatch()
    while watch.share_done(0) < 1:
        pass
    assert watch.step == 2


def test_the_time_left_is_that_of_the_steps_and_of_predicting(
    easy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duration, "measure_step", lambda state, config: 2.0)
    data = open_dataset(easy_folder, SplitConfig(selection=0.25))
    config = run.resolve_settings(RunConfig(train=TrainConfig(epochs=10, batch_size=16)), data)
    steps = 10 * (len(data.train) // 16) - 7
    predicted = (10 * len(data.selection) + len(data.test)) / 16
    assert run.seconds_left(data, config, 7) == pytest.approx(2 * (steps + predicted / 3))


def test_measuring_leaves_the_training_as_it_would_be(easy_folder: Path, tmp_path: Path) -> None:
    data = open_dataset(easy_folder, SplitConfig(selection=0.25))
    config, lines = RunConfig(train=TrainConfig(epochs=1, batch_size=16)), list[str]()
    run.train_run(data, config, tmp_path / "timed", say=lines.append)
    run.train_run(data, config, tmp_path / "plain")
    timed, plain = (bundle.read_card(tmp_path / name).weights_sha256 for name in ("timed", "plain"))
    assert timed == plain
    assert lines[0].startswith("lensnet: labels only, high-pass of 3 pixels, as the data set has no truth")
    assert lines[1].startswith("Training takes about")
