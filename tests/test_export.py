import shutil
from pathlib import Path

import onnx
import pytest

from sublens import bundle, export, run
from sublens.config import RunConfig, TrainConfig
from sublens.data import Dataset
from sublens.errors import BundleError
from sublens.predict import Predictor


@pytest.fixture(scope="module")
def trained(small_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lensnet that was trained for a step or two, with a truth head."""
    folder = tmp_path_factory.mktemp("runs") / "lensnet"
    run.train_run(small_dataset, RunConfig(train=TrainConfig(epochs=1)), folder)
    return folder


def test_a_trained_network_has_a_graph_that_sees_what_torch_sees(trained: Path, small_dataset: Dataset) -> None:
    told = bundle.read_card(trained).graph
    assert told is not None
    assert (told.n, told.precision) == (len(small_dataset.selection), "float32")
    assert told.deviation < 1e-5


def test_a_graph_weighs_next_to_nothing(trained: Path) -> None:
    sizes = [(trained / name).stat().st_size for name in (bundle.GRAPH, bundle.WEIGHTS)]
    assert sizes[0] < 0.05 * sizes[1]


def test_a_graph_says_nothing_of_the_machine_it_was_made_on(trained: Path) -> None:
    assert str(Path(export.__file__).parents[2]).encode() not in (trained / bundle.GRAPH).read_bytes()


def test_a_graph_passes_the_checks_of_onnx(trained: Path) -> None:
    onnx.checker.check_model(trained / bundle.GRAPH, full_check=True)


def test_a_changed_graph_or_weights_are_noticed(trained: Path, tmp_path: Path) -> None:
    for name in (bundle.GRAPH, bundle.WEIGHTS):
        copy = tmp_path / name
        shutil.copytree(trained, copy)
        data = bytearray((copy / name).read_bytes())
        data[-1] ^= 1
        (copy / name).write_bytes(data)
        with pytest.raises(BundleError, match="is not what its card was written for"):
            Predictor.load(copy)


def test_a_graph_that_sees_something_else_is_not_left(
    trained: Path, small_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = bundle.read_card(trained)
    monkeypatch.setattr(export, "MAX_DEVIATION", -1.0)
    before = (trained / bundle.GRAPH).read_bytes()
    try:
        with pytest.raises(BundleError, match="gives other probabilities than torch, by up to"):
            export.add_graph(trained, card, small_dataset.selection)
        assert not (trained / bundle.GRAPH).exists()
    finally:
        (trained / bundle.GRAPH).write_bytes(before)
