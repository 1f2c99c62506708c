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


def distilled(teacher: Path | str, **settings: object) -> RunConfig:
    tree = {"epochs": 4, "batch_size": 16, "teacher": str(teacher), **settings}
    return RunConfig(model=ModelConfig(name="resnet18"), input=InputConfig(), train=TrainConfig.model_validate(tree))


def loaded(teacher: Path | str, dataset: Dataset, student_input: InputConfig | None = None) -> Teacher:
    return Teacher.load(str(teacher), dataset, student_input or InputConfig(), "cpu")


def test_a_student_learns_the_feature_maps_of_its_teacher(easy: Dataset, teacher: Path, tmp_path: Path) -> None:
    run.train_run(easy, distilled(teacher), tmp_path / "run")
    losses = [row["distill_loss"] for row in rows(tmp_path / "run", "step")]
    assert np.mean(losses[-3:]) < 0.7 * losses[0]


def test_the_card_names_the_teacher(easy: Dataset, teacher: Path, tmp_path: Path) -> None:
    run.train_run(easy, distilled(teacher, epochs=1), tmp_path / "run")
    card = bundle.read_card(tmp_path / "run")
    assert card.teacher == loaded(teacher, easy).card_entry
    assert card.teacher.weights_sha256 == bundle.read_card(teacher).weights_sha256
    assert card.track == "labels only"


@pytest.mark.parametrize(
    ("track", "is_same_data", "expected"),
    [
        ("labels only", True, "labels only"),
        ("labels only", False, "labels and a trained teacher"),
        ("simulator in the loop", True, "labels and a trained teacher"),
        ("labels and a trained teacher", True, "labels and a trained teacher"),
    ],
)
def test_the_track_of_the_teacher_counts(teacher: Path, track: Any, is_same_data: bool, expected: str) -> None:
    card = bundle.read_card(teacher)
    data = card.data.hash if is_same_data else "other"
    entry = CardTeacher(network="lensnet", weights_sha256="", trained_on=data, track=track)
    assert card.model_copy(update={"teacher": entry}).track == expected


def test_truth_counts_without_a_teacher_too(teacher: Path) -> None:
    mapped = {"map": CardMap(n_cells=6, cell_arcsec=0.4)}
    assert bundle.read_card(teacher).model_copy(update=mapped).track == "simulator in the loop"


def test_the_teacher_takes_the_students_images_mirrored_alike(easy: Dataset, teacher: Path) -> None:
    network = loaded(teacher, easy)
    config = TrainConfig(batch_size=16)
    batch = next(BatchSource(easy.train, network.card.input, config, "cpu", teacher=network).epoch(0))
    assert batch.teacher_maps is not None
    for planes, expected in zip(batch.teacher_maps, network.feature_maps(batch.images), strict=True):
        torch.testing.assert_close(planes, expected)


@pytest.mark.parametrize(
    ("network", "network_input", "expected"),
    [
        ("mobilenetv3-small", InputConfig(resize=24), ["blocks.1", "blocks.3"]),
        ("resnet18", InputConfig(), ["layer1", "layer2"]),
        ("lensnet", InputConfig(binning=2), ["stage1", "stage2"]),
    ],
)
def test_cells_of_alike_size_are_compared(
    easy: Dataset, teacher: Path, network: str, network_input: InputConfig, expected: list[str]
) -> None:
    model = networks.build(network, 3)
    shapes: dict[str, torch.Size] = {}
    student = StudentMaps(model, network_input, loaded(teacher, easy))
    for name in expected:
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: shapes.__setitem__(name, output.shape)
        )
    model(torch.zeros(2, 1, 96, 96))
    assert [(maps.shape[0], maps.shape[2:]) for maps in student()] == [(2, shapes[name][2:]) for name in expected]
    assert [layer.in_channels for layer in student.convolutions] == [shapes[name][1] for name in expected]
    assert [layer.out_channels for layer in student.convolutions] == [32, 64]


def test_the_loss_ignores_the_units_of_the_teachers_channels() -> None:
    maps = torch.randn(8, 3, 6, 6) * torch.tensor([1.0, 5.0, 0.3]).view(1, 3, 1, 1) + 7
    dims = (0, 2, 3)
    standard = (maps - maps.mean(dims, keepdim=True)) / maps.std(dims, keepdim=True)
    assert float(distill_loss([standard], [maps])) < 1e-4
    assert float(distill_loss([torch.zeros_like(standard)], [maps])) == pytest.approx(1, abs=1e-3)


def test_maps_are_compared_on_the_students_grid() -> None:
    coarse = torch.randn(8, 3, 6, 6)
    fine = nn.functional.interpolate(coarse, (12, 12), mode="nearest")
    standard = nn.functional.batch_norm(coarse, None, None, training=True)
    assert float(distill_loss([standard], [fine])) < 0.1


def test_a_constant_channel_adds_no_loss() -> None:
    assert float(distill_loss([torch.zeros(4, 2, 3, 3)], [torch.full((4, 2, 3, 3), 5.0)])) == 0


def test_a_distilled_run_resumes_to_the_same_weights(
    easy: Dataset, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = distilled(teacher, epochs=2)
    run.train_run(easy, config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stopped_at(patch, 3)
        assert not run.train_run(easy, config, tmp_path / "stopped")
    assert run.train_run(easy, config, tmp_path / "stopped", resume=True)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


def test_going_on_with_another_teacher_is_refused(
    easy: Dataset, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "teacher"
    link.symlink_to(teacher)
    config = distilled(link, epochs=2)
    with monkeypatch.context() as patch:
        stopped_at(patch, 3)
        run.train_run(easy, config, tmp_path / "run")
    link.unlink()
    run.train_run(easy, RunConfig(train=TrainConfig(epochs=1, seed=5)), link)
    with pytest.raises(DataError, match="was begun with another teacher, which .*teacher was then"):
        run.train_run(easy, config, tmp_path / "run", resume=True)


def test_a_teacher_with_a_wider_field_of_view_is_refused(easy: Dataset, teacher: Path) -> None:
    with pytest.raises(ConfigError, match="takes the central 16 of .* this network 12 of .* Set input.crop"):
        loaded(teacher, easy, InputConfig(crop=12))


def test_a_teacher_that_learned_from_the_students_selection_is_refused(easy_folder: Path, teacher: Path) -> None:
    other = open_dataset(easy_folder, SplitConfig(selection=0.25, seed=3))
    with pytest.raises(ConfigError, match="learned from images that are not in this network's training part"):
        loaded(teacher, other)


def test_a_teacher_of_other_data_is_accepted(easy_folder: Path, easy: Dataset, teacher: Path) -> None:
    other = replace(open_dataset(easy_folder, SplitConfig(selection=0.25, seed=3)), hash="other")
    assert loaded(teacher, other).card_entry.trained_on == easy.hash


@pytest.mark.parametrize("info", [[], [{"module": "classifier", "reduction": 8, "num_chs": 3}]])
def test_a_teacher_without_feature_maps_is_refused(
    easy: Dataset, teacher: Path, monkeypatch: pytest.MonkeyPatch, info: list[dict[str, Any]]
) -> None:
    build = networks.LensNet.__init__

    def without(self: networks.LensNet, n_classes: int, channels: int) -> None:
        build(self, n_classes, channels)
        self.feature_info = info

    monkeypatch.setattr(networks.LensNet, "__init__", without)
    with pytest.raises(ConfigError, match="lensnet has no feature maps; needs a teacher"):
        loaded(teacher, easy)


@pytest.mark.parametrize("info", [[], [{"module": "classifier", "reduction": 8, "num_chs": 3}]])
def test_a_student_without_feature_maps_is_refused(easy: Dataset, teacher: Path, info: list[dict[str, Any]]) -> None:
    model = networks.LensNet(3, 1)
    model.feature_info = info
    with pytest.raises(ConfigError, match="train.teacher: this network has no feature maps"):
        StudentMaps(model, InputConfig(), loaded(teacher, easy))


def test_a_teacher_that_is_not_there_is_named(easy: Dataset) -> None:
    with pytest.raises(BundleError, match="nowhere: no such folder"):
        loaded("nowhere", easy)
