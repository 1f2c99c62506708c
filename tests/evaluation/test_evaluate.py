"""A trained network measured: in its folder or a copy, on torch or on its graph; what users then get."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from test_cli import refused, sublens

from sublens.config import InputConfig, RunConfig, SplitConfig, TrainConfig
from sublens.data.dataset import Dataset, open_dataset, open_test_part
from sublens.errors import BundleError, DataError
from sublens.evaluation import evaluate
from sublens.images.reader import Reader
from sublens.inference import onnx_export, predict_dataset
from sublens.inference.engines import OnnxRuntime
from sublens.inference.predictor import PredictionTable, Predictor
from sublens.inference.torch_engine import TorchEngine
from sublens.models import bundle
from sublens.models.networks import build
from sublens.parallel.mapper import HERE
from sublens.storage import files
from sublens.training import run
from sublens.training.recorder import PREDICTIONS, SCORES
from sublens.web.app import create_app
from sublens.web.prometheus import Metrics
from sublens.web.service import Service, load_networks

SPLIT = SplitConfig(selection=0.25)


@pytest.fixture(scope="module")
def easy(easy_folder: Path) -> Dataset:
    return open_dataset(easy_folder, SPLIT)


@pytest.fixture(scope="module")
def trained(easy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lensnet that tells the easy classes apart."""
    folder = tmp_path_factory.mktemp("runs") / "lensnet"
    run.train_run(easy, RunConfig(train=TrainConfig(epochs=4, batch_size=16), split=SPLIT), folder)
    return folder


@pytest.fixture(scope="module")
def image(easy_folder: Path) -> Path:
    return next((easy_folder / "test" / "square").glob("*.npy"))


def scores_in(folder: Path) -> dict[str, Any]:
    scores: dict[str, Any] = json.loads((folder / SCORES).read_text())
    return scores


def untrained() -> Predictor:
    torch.manual_seed(0)
    config = InputConfig(binning=2)
    return predict_dataset.eager(build("lensnet", 3).eval(), ("no", "sphere", "vort"), (48, 48), config)


def test_the_table_has_one_row_an_image_in_order(small_dataset: Dataset) -> None:
    counted: list[int] = []
    table = predict_dataset.predict_all(untrained(), small_dataset.train, counted.append)
    assert table.ids.tolist() == small_dataset.train.ids.tolist()
    assert table.probs.shape == (sum(counted), 3) == (len(small_dataset.train), 3)
    assert np.allclose(table.probs.sum(axis=1), 1)


def test_each_row_is_that_images_own(small_dataset: Dataset) -> None:
    table = predict_dataset.predict_all(untrained(), small_dataset.train)
    last = untrained().probs(small_dataset.train.counts(np.array([len(small_dataset.train) - 1])))
    assert np.allclose(table.probs[-1], last, atol=1e-6)


def test_the_scores_hold_quality_and_calibration(small_dataset: Dataset) -> None:
    predictor = untrained()
    scores = evaluate.score(predictor, predict_dataset.predict_all(predictor, small_dataset.test))
    assert scores["n"] == 30
    assert set(scores["auc"]) == {"no", "sphere", "vort"}
    assert set(scores["calibration"]) == {"ece", "ece_floor", "is_by_class"}


@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
def test_latency_is_that_of_the_engine_that_users_get(
    trained: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    card, timed = bundle.read_card(trained), set()

    def latency_ms(predictor: Predictor, size: int) -> float:
        timed.add(type(predictor.engine))
        return 1.0

    if engine == "torch":  # a network that has no graph
        card = card.model_copy(update={"graph": None})
        monkeypatch.setattr(bundle, "read_card", lambda folder: card)
    monkeypatch.setattr(evaluate, "latency_ms", latency_ms)
    assert evaluate.measure_cost(trained, card).engine == engine
    assert timed == {OnnxRuntime if engine == "onnxruntime" else TorchEngine}


def test_parameters_are_those_of_the_network(trained: Path) -> None:
    cost = evaluate.measure_cost(trained, bundle.read_card(trained))
    assert cost.parameters == sum(parameter.numel() for parameter in build("lensnet", 2).parameters())
    assert 0 < cost.latency_ms["batch_1"] < cost.latency_ms["batch_32"]


# --- copies -----------------------------------------------------------------------------------


def test_a_measured_copy_predicts_and_serves_with_its_graph(
    trained: Path, easy_folder: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    assert sublens("evaluate", trained, easy_folder, "--out", copy) == 0
    assert sublens("predict", copy, image, "--engine", "onnxruntime") == 0
    assert "square" in capsys.readouterr().out
    service = Service(load_networks([str(copy)], Metrics()), Metrics())
    with TestClient(create_app(service), base_url="http://localhost") as client:
        answer = client.post("/v1/predict", params={"name": "a.npy"}, content=image.read_bytes()).json()
    (expected,) = Predictor.load(trained)([np.load(image)])
    assert answer["images"][0]["predictions"][0]["probs"] == pytest.approx(expected.probs, abs=1e-6)


def test_a_copy_of_a_damaged_network_is_refused(trained: Path, tmp_path: Path) -> None:
    source = evaluate.copy_or_own_folder(trained, tmp_path / "source")
    (source / bundle.GRAPH).unlink()
    with pytest.raises(BundleError, match=r"has no graph\.onnx"):
        evaluate.copy_or_own_folder(source, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


# --- stories ----------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--int8", "--mirrors"])
def test_an_exported_network_is_measured_as_it_computes(
    trained: Path,
    easy: Dataset,
    easy_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
) -> None:
    monkeypatch.setattr(onnx_export, "MAX_AUC_CHANGE", 1.0)  # of two dozen images the AUC is coarse
    exported, plain = tmp_path / "exported", tmp_path / "plain"
    assert sublens("export", trained, easy_folder, "--out", exported, option) == 0
    assert sublens("evaluate", exported, easy_folder) == 0
    assert "flagged as out of distribution: all " in capsys.readouterr().out
    probs = Predictor.load(exported).probs(easy.test.counts(np.arange(len(easy.test))))
    assert np.allclose(evaluate.read_predictions(exported / PREDICTIONS).probs, probs, atol=1e-6)
    assert scores_in(exported)["engine"] == "onnxruntime"
    assert scores_in(exported)["weights_bytes"] == (exported / bundle.GRAPH).stat().st_size
    assert sublens("evaluate", trained, easy_folder, "--out", plain) == 0
    assert sublens("compare", plain, exported, "--out", tmp_path / "report") == 0


def test_a_copy_of_an_exported_network_is_measured_on_workers(
    trained: Path, easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx_export.export(trained, easy, tmp_path / "exported")
    copy = evaluate.copy_or_own_folder(tmp_path / "exported", tmp_path / "copy")
    card = bundle.read_card(copy)
    task = predict_dataset.Task(copy, card.digest, Path("easy"), easy.hash, threads=1, batch=64)
    monkeypatch.setattr(predict_dataset, "open_test_part", lambda path, card, **options: easy)
    spread = HERE, task._replace(engine=evaluate.reference_engine(card))
    assert evaluate.measure_run(copy, easy, spread=spread)["n"] == len(easy.test)


def test_a_run_is_measured_again_only_with_force(
    trained: Path, easy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_ = evaluate.copy_or_own_folder(trained, tmp_path / "run")
    assert sublens("evaluate", run_, easy_folder) == 0
    assert "is measured already (scores.json); needs --force" in refused(capsys, "evaluate", run_, easy_folder)
    assert sublens("evaluate", run_, easy_folder, "--force") == 0


def test_a_run_is_measured_by_one_process_at_a_time(trained: Path, easy: Dataset, tmp_path: Path) -> None:
    run_ = evaluate.copy_or_own_folder(trained, tmp_path / "run")
    with files.lock_folder(run_), pytest.raises(DataError, match="run: another process is writing there"):
        evaluate.measure_run(run_, easy)
    assert evaluate.measure_run(run_, easy)["n"] == len(easy.test)


def test_measuring_makes_no_folder_where_there_is_no_run(easy: Dataset, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a trained model"):
        evaluate.measure_run(tmp_path / "none", easy)
    assert list(tmp_path.iterdir()) == []


def own_images(easy_folder: Path, out: Path, *classes: str) -> Path:
    """A folder of class folders alone, with images that the network was not trained on."""
    for name in classes:
        shutil.copytree(easy_folder / "test" / name, out / name)
    return out


def test_a_copy_that_could_not_be_measured_is_not_in_the_way(
    trained: Path, easy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "write_predictions", fill_up)
        assert sublens("evaluate", trained, easy_folder, "--out", tmp_path / "run") == 1
    assert list(tmp_path.iterdir()) == []
    assert sublens("evaluate", trained, easy_folder, "--out", tmp_path / "run") == 0


def fill_up(predictions: PredictionTable, path: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", path)


def test_all_images_of_class_folders_alone_are_measured(
    trained: Path, easy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = own_images(easy_folder, tmp_path / "own", "empty", "square")
    assert sublens("evaluate", trained, own, "--out", tmp_path / "run") == 0
    assert scores_in(tmp_path / "run")["n"] == 40
    assert "Note: no parts are named, and neither name nor content is that of the training" in capsys.readouterr().err


def test_classes_without_images_are_said_and_left_out_of_the_scores(
    trained: Path, easy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, run_ = own_images(easy_folder, tmp_path / "own", "square"), tmp_path / "run"
    assert sublens("evaluate", trained, own, "--out", run_) == 0
    scores, printed = scores_in(run_), capsys.readouterr()
    assert (scores["n"], scores["auc_macro"], scores["auc"]) == (20, None, {"empty": None, "square": None})
    assert scores["confusion"][0] == [0, 0]
    assert "Note: there are no images of empty" in printed.err
    assert "accuracy" in printed.out
    assert "auc" not in printed.out
    for command in ("compare", "publish"):
        arguments = [run_] if command == "compare" else [easy_folder, run_]
        assert "was measured on images of some classes only" in refused(
            capsys, command, *arguments, "--out", tmp_path / "out"
        )


def test_folders_of_other_classes_than_the_networks_are_refused(
    trained: Path, easy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = own_images(easy_folder, tmp_path / "own", "empty", "square")
    (own / "square").rename(own / "cube")
    message = refused(capsys, "evaluate", trained, own, "--out", tmp_path / "run")
    assert "that the network does not know: 'cube'; needs names of its classes: empty, square" in message


def test_class_folders_that_the_network_was_trained_on_stay_divided(easy_folder: Path, tmp_path: Path) -> None:
    whole = shutil.copytree(easy_folder / "train", tmp_path / "whole")
    divided = open_dataset(whole, SPLIT)
    run.train_run(divided, RunConfig(train=TrainConfig(epochs=1, batch_size=16), split=SPLIT), tmp_path / "run")
    card = bundle.read_card(tmp_path / "run")
    assert open_test_part(whole, card).test.ids.tolist() == divided.test.ids.tolist()
    (whole / "square" / "0.npy").unlink()  # the folder has changed since, but not its name
    assert set(open_test_part(whole, card).test.ids) <= set(divided.test.ids)
    assert len(open_test_part(whole.rename(tmp_path / "other"), card).test) == 127


def test_unusable_images_are_left_out_of_a_measurement_on_request(
    trained: Path, easy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = own_images(easy_folder, tmp_path / "own", "empty", "square")
    (own / "empty" / "7.npy").write_bytes(b"x")
    message = refused(capsys, "evaluate", trained, own, "--out", tmp_path / "run")
    assert "leave them out with --skip-bad:\n  empty/7.npy: truncated" in message
    assert sublens("evaluate", trained, own, "--out", tmp_path / "run", "--skip-bad") == 0
    assert scores_in(tmp_path / "run")["n"] == 39
    assert "Note: images that cannot be used were left out, 1 in all:\n  empty/7.npy" in capsys.readouterr().err


def test_a_card_and_rows_say_how_often_in_distribution_images_are_flagged(trained: Path, image: Path) -> None:
    entry = bundle.read_card(trained).calibration
    assert entry is not None
    assert entry.n < 99
    assert 1 / (entry.n + 1) < entry.false_alarms <= 0.5
    with Reader() as reader:
        (row,) = Predictor.load(trained).rows(reader.read([image]))
    assert row.notes[-1].startswith(f"out-of-distribution threshold from {entry.n} images alone: up to ")


def test_shipped_networks_promise_one_percent_and_say_nothing() -> None:
    for folder in bundle.shipped().values():
        calibration = Predictor.load(folder).calibration
        assert calibration is not None
        assert (calibration.false_alarms, calibration.caution) == (0.01, "")


def test_a_data_set_of_other_classes_or_sizes_is_refused(
    trained: Path, small_dataset: Dataset, easy: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="trained on the classes empty, square; needs no, sphere, vort, which small"):
        evaluate.measure_run(trained, small_dataset)
    card = bundle.read_card(trained).model_copy(update={"image_shape": (32, 32)})
    folder = evaluate.copy_or_own_folder(trained, tmp_path / "run")
    bundle.save_card(folder, card)
    with pytest.raises(DataError, match="images of 32 x 32 pixels; needs 16 x 16, which easy has"):
        evaluate.measure_run(folder, easy)


def test_damaged_predictions_say_how_to_make_them_again(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read \(No such file"):
        evaluate.read_predictions(tmp_path / PREDICTIONS)
    (tmp_path / PREDICTIONS).write_text("id,label,p_no\n1,sphere,1\n")
    with pytest.raises(DataError, match="is damaged; needs .*sublens evaluate .* DATASET --force"):
        evaluate.read_predictions(tmp_path / PREDICTIONS)


def test_the_training_part_alone_is_refused(easy_folder: Path, tmp_path: Path) -> None:
    settings = RunConfig(train=TrainConfig(epochs=1, batch_size=32), split=SplitConfig(selection=0.25))
    run.train_run(open_dataset(easy_folder, settings.split), settings, tmp_path / "run")
    with pytest.raises(DataError, match="is the training part of easy; needs images that the network was not"):
        evaluate.measure_network(tmp_path / "run", easy_folder / "train")
