from pathlib import Path

import numpy as np
import pytest

from sublens.config import AUTO, InputConfig, ModelConfig, RunConfig, SplitConfig, TrainConfig, load
from sublens.data.dataset import Dataset, Part, open_dataset
from sublens.models import bundle
from sublens.models.networks import NETWORKS
from sublens.training import labels_only, run
from sublens.training.labels_only import TEACHER

PLAIN = TrainConfig(epochs=1, batch_size=4, teacher=None)


def labelled(side: int = 150, n: int = 8) -> Dataset:
    """Noise with labels, and no truth."""
    images = np.random.default_rng(0).poisson(50, (n, side, side)).astype(np.uint16)
    part = Part((images,), np.arange(n), np.arange(n) % 2, np.array([f"{side}-{k}" for k in range(n)]), None)
    return Dataset("noise", ("a", "b"), part, part, part, f"{side}", None, SplitConfig())


def chosen(side: int = 150, name: str = "resnet18", **settings: object) -> RunConfig:
    return run.resolve_settings(RunConfig(model=ModelConfig(name=name), **settings), labelled(side))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NETWORKS)
def test_labels_alone_are_taught_by_lensnet(name: str) -> None:
    config = chosen(name=name)
    assert (config.train.teacher, config.input) == (TEACHER, NETWORKS[name].input)


@pytest.mark.parametrize(("side", "name"), [(64, "resnet18"), (150, "resnet10t")])
def test_where_lensnet_cannot_teach_there_is_a_high_pass(side: int, name: str) -> None:
    config = chosen(side, name)
    assert config.train.teacher is None
    assert config.input is not None
    assert config.input.highpass == labels_only.HIGHPASS


def test_what_takes_signal_to_noise_is_not_taught_by_a_network_of_counts() -> None:
    inputs = [InputConfig(crop=96, transform=transform) for transform in ("anscombe", "signal-to-noise")]
    configs = [RunConfig(model=ModelConfig(name="resnet18"), input=each) for each in inputs]
    assert [labels_only.can_be_taught(config, labelled()) for config in configs] == [True, False]


def test_an_input_of_ones_own_stays_as_it_is() -> None:
    config = chosen(input=InputConfig(crop=64))
    assert (config.train.teacher, config.input) == (None, InputConfig(crop=64))


def test_truth_needs_no_teacher(small_dataset: Dataset) -> None:
    config = run.resolve_settings(RunConfig(), small_dataset)
    assert config.train.teacher is None
    assert config.input is not None
    assert config.input.highpass is None


def test_none_goes_without() -> None:
    config = chosen(train=load(None, ["train.teacher=none"]).train)
    assert (config.train.teacher, config.input) == (None, NETWORKS["resnet18"].input)


def test_a_folder_called_lensnet_is_not_the_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(TEACHER).mkdir()
    assert chosen().train.teacher == str(bundle.shipped()[TEACHER])


@pytest.mark.parametrize("begun", [None, labels_only.HIGHPASS])
def test_a_run_goes_on_with_the_choices_that_it_began_with(begun: float | None) -> None:
    network_input = NETWORKS["resnet18"].input.model_copy(update={"highpass": begun})
    before = chosen(input=network_input, train=PLAIN)
    again = RunConfig(model=before.model, train=PLAIN.model_copy(update={"teacher": AUTO}))
    assert labels_only.as_begun(again, before, labelled(150)).train.teacher is None
    assert labels_only.as_begun(again, before, labelled(150)).input == network_input


def test_settings_of_ones_own_are_never_those_of_an_earlier_run() -> None:
    before, again = chosen(train=PLAIN), RunConfig(train=PLAIN.model_copy(update={"teacher": "runs/other"}))
    assert labels_only.as_begun(again, before, labelled(150)) == again


def test_a_complete_run_of_an_earlier_version_is_left_alone(easy_folder: Path, tmp_path: Path) -> None:
    data = open_dataset(easy_folder, SplitConfig(selection=0.25))
    run.train_run(data, RunConfig(train=PLAIN), tmp_path / "run")
    before = (tmp_path / "run" / bundle.CARD).read_bytes()
    assert run.train_run(data, RunConfig(train=TrainConfig(epochs=1, batch_size=4)), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / bundle.CARD).read_bytes() == before


def test_the_card_says_who_taught_and_that_it_knew_more(tmp_path: Path) -> None:
    lines: list[str] = []
    config = RunConfig(train=PLAIN.model_copy(update={"teacher": AUTO}))
    run.train_run(labelled(), config, tmp_path / "run", say=lines.append)
    card, teacher = bundle.read_card(tmp_path / "run"), bundle.read_card(bundle.shipped()[TEACHER])
    assert card.supervision == f"labels only, taught by lensnet@{teacher.weights_sha256[:12]}"
    assert card.track == "labels and a trained teacher"
    assert lines[0] == (
        f"lensnet: {card.supervision}, as the data set has no truth; --set train.teacher=none goes without."
    )


@pytest.mark.parametrize(
    ("side", "teacher", "words"),
    [
        (150, None, "--set train.teacher=lensnet"),
        (64, None, "--set input.crop=64 --set input.highpass=3"),
        (150, AUTO, "--set input.crop=96 --set input.highpass=3"),
        (64, AUTO, "more epochs or minutes"),
    ],
)
def test_the_remedy_is_one_that_was_not_tried(side: int, teacher: str | None, words: str) -> None:
    config = chosen(side, train=PLAIN.model_copy(update={"teacher": teacher}))
    assert labels_only.remedy(config, labelled(side)).startswith(words)
