from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_run import QUICK, easy, rows, stopped_at, weights
from torch import nn

from sublens.config import InputConfig, ModelConfig, RunConfig, SplitConfig, TrainConfig
from sublens.data.dataset import Dataset, open_dataset
from sublens.errors import BundleError, ConfigError, DataError
from sublens.models import bundle, networks
from sublens.models.bundle import CardMap, CardTeacher
from sublens.training import run
from sublens.training.distillation import StudentMaps, Teacher, distill_loss
from sublens.training.loop import BatchSource

__all__ = ["easy"]


@pytest.fixture(scope="module")
def teacher(easy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lensnet trained a little on the easy folder."""
    out = tmp_path_factory.mktemp("runs") / "teacher"
    run.train_run(easy, QUICK, out)
    return out


def taught(teacher: Path | str, **settings: object) -> RunConfig:
    tree = {"epochs": 4, "batch_size": 16, "teacher": str(teacher), **settings}
    return RunConfig(model=ModelConfig(name="resnet18"), input=InputConfig(), train=TrainConfig.model_validate(tree))


def loaded(teacher: Path | str, dataset: Dataset, seen: InputConfig | None = None) -> Teacher:
    return Teacher.load(str(teacher), dataset, seen or InputConfig(), "cpu")


def test_a_pupil_learns_to_see_what_its_teacher_sees(easy: Dataset, teacher: Path, tmp_path: Path) -> None:
    run.train_run(easy, taught(teacher), tmp_path / "run")
    losses = [row["hint_loss"] for row in rows(tmp_path / "run", "step")]
    assert np.mean(losses[-3:]) < 0.7 * losses[0]


def test_the_card_says_who_taught(easy: Dataset, teacher: Path, tmp_path: Path) -> None:
    run.train_run(easy, taught(teacher, epochs=1), tmp_path / "run")
    card = bundle.read_card(tmp_path / "run")
    assert card.teacher == loaded(teacher, easy).told
    assert card.teacher.weights_sha256 == bundle.read_card(teacher).weights_sha256
    assert card.track == "labels only"


@pytest.mark.parametrize(
    ("track", "is_same_data", "expected"),
    [
        ("labels only", True, "labels only"),
        ("labels only", False, "simulator in the loop"),
        ("simulator in the loop", True, "simulator in the loop"),
    ],
)
def test_what_the_teacher_knew_counts(teacher: Path, track: Any, is_same_data: bool, expected: str) -> None:
    card = bundle.read_card(teacher)
    data = card.data.hash if is_same_data else "other"
    told = CardTeacher(network="lensnet", weights_sha256="", trained_on=data, track=track)
    assert card.model_copy(update={"teacher": told}).track == expected


def test_truth_counts_without_a_teacher_too(teacher: Path) -> None:
    mapped = {"map": CardMap(n_cells=6, cell_arcsec=0.4)}
    assert bundle.read_card(teacher).model_copy(update=mapped).track == "simulator in the loop"


def test_the_teacher_sees_the_pupils_images_mirrored_alike(easy: Dataset, teacher: Path) -> None:
    one = loaded(teacher, easy)
    config = TrainConfig(batch_size=16)
    batch = next(BatchSource(easy.train, one.card.input, config, "cpu", teacher=one).epoch(0))
    assert batch.shown is not None
    for seen, expected in zip(batch.shown, one.show(batch.images), strict=True):
        torch.testing.assert_close(seen, expected)


@pytest.mark.parametrize(
    ("network", "seen", "expected"),
    [
        ("mobilenetv3-small", InputConfig(resize=24), ["blocks.1", "blocks.3"]),
        ("resnet18", InputConfig(), ["layer1", "layer2"]),
        ("lensnet", InputConfig(binning=2), ["stage1", "stage2"]),
    ],
)
def test_cells_of_alike_size_are_compared(
    easy: Dataset, teacher: Path, network: str, seen: InputConfig, expected: list[str]
) -> None:
    model = networks.build(network, 3)
    heard: dict[str, torch.Size] = {}
    hints = StudentMaps(model, seen, loaded(teacher, easy))
    for name in expected:
        model.get_submodule(name).register_forward_hook(
            lambda module, given, told, name=name: heard.__setitem__(name, told.shape)
        )
    model(torch.zeros(2, 1, 96, 96))
    assert [(one.shape[0], one.shape[2:]) for one in hints()] == [(2, heard[name][2:]) for name in expected]
    assert [one.in_channels for one in hints.convolutions] == [heard[name][1] for name in expected]
    assert [one.out_channels for one in hints.convolutions] == [32, 64]


def test_nothing_is_lost_by_showing_the_same_in_other_units() -> None:
    shown = torch.randn(8, 3, 6, 6) * torch.tensor([1.0, 5.0, 0.3]).view(1, 3, 1, 1) + 7
    dims = (0, 2, 3)
    told = (shown - shown.mean(dims, keepdim=True)) / shown.std(dims, keepdim=True)
    assert float(distill_loss([told], [shown])) < 1e-4
    assert float(distill_loss([torch.zeros_like(told)], [shown])) == pytest.approx(1, abs=1e-3)


def test_maps_are_compared_on_the_pupils_grid() -> None:
    coarse = torch.randn(8, 3, 6, 6)
    fine = nn.functional.interpolate(coarse, (12, 12), mode="nearest")
    standard = nn.functional.batch_norm(coarse, None, None, training=True)
    assert float(distill_loss([standard], [fine])) < 0.1


def test_a_channel_with_nothing_to_show_asks_for_nothing() -> None:
    assert float(distill_loss([torch.zeros(4, 2, 3, 3)], [torch.full((4, 2, 3, 3), 5.0)])) == 0


def test_a_taught_run_resumes_to_the_same_weights(
    easy: Dataset, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = taught(teacher, epochs=2)
    run.train_run(easy, config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stopped_at(patch, 3)
        assert not run.train_run(easy, config, tmp_path / "stopped")
    assert run.train_run(easy, config, tmp_path / "stopped", resume=True)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


def test_going_on_with_another_teacher_is_refused(
    easy: Dataset, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "teacher"
    place.symlink_to(teacher)
    config = taught(place, epochs=2)
    with monkeypatch.context() as patch:
        stopped_at(patch, 3)
        run.train_run(easy, config, tmp_path / "run")
    place.unlink()
    run.train_run(easy, RunConfig(train=TrainConfig(epochs=1, seed=5)), place)
    with pytest.raises(DataError, match="was begun with another teacher, which .*teacher was then"):
        run.train_run(easy, config, tmp_path / "run", resume=True)


def test_a_teacher_that_sees_more_of_the_image_is_refused(easy: Dataset, teacher: Path) -> None:
    with pytest.raises(ConfigError, match="sees the central 16 of .* this network 12 of .* set input.crop"):
        loaded(teacher, easy, InputConfig(crop=12))


def test_a_teacher_that_learned_from_the_pupils_selection_is_refused(easy_folder: Path, teacher: Path) -> None:
    other = open_dataset(easy_folder, SplitConfig(selection=0.25, seed=3))
    with pytest.raises(ConfigError, match="learned from images that this network is not to know of"):
        loaded(teacher, other)


def test_a_teacher_of_other_data_is_welcome(easy_folder: Path, easy: Dataset, teacher: Path) -> None:
    other = replace(open_dataset(easy_folder, SplitConfig(selection=0.25, seed=3)), hash="other")
    assert loaded(teacher, other).told.trained_on == easy.hash


@pytest.mark.parametrize("info", [[], [{"module": "classifier", "reduction": 8, "num_chs": 3}]])
def test_a_teacher_without_feature_maps_is_refused(
    easy: Dataset, teacher: Path, monkeypatch: pytest.MonkeyPatch, info: list[dict[str, Any]]
) -> None:
    build = networks.LensNet.__init__

    def without(self: networks.LensNet, n_classes: int, channels: int) -> None:
        build(self, n_classes, channels)
        self.feature_info = info

    monkeypatch.setattr(networks.LensNet, "__init__", without)
    with pytest.raises(ConfigError, match="lensnet has no feature maps to imitate"):
        loaded(teacher, easy)


@pytest.mark.parametrize("info", [[], [{"module": "classifier", "reduction": 8, "num_chs": 3}]])
def test_a_pupil_without_feature_maps_is_refused(easy: Dataset, teacher: Path, info: list[dict[str, Any]]) -> None:
    model = networks.LensNet(3, 1)
    model.feature_info = info
    with pytest.raises(ConfigError, match="train.teacher: this network has no feature maps"):
        StudentMaps(model, InputConfig(), loaded(teacher, easy))


def test_a_teacher_that_is_not_there_is_named(easy: Dataset) -> None:
    with pytest.raises(BundleError, match="nowhere: no such folder"):
        loaded("nowhere", easy)
