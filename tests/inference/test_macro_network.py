"""A network of signal to noise from its training to its tables."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK

from sublens.config import InputConfig, RunConfig, checked
from sublens.data.dataset import Dataset
from sublens.errors import ConfigError, DataError
from sublens.evaluation import evaluate
from sublens.inference import predict_dataset, tables
from sublens.inference.predictor import Prediction, Predictor, Row
from sublens.models import bundle, macro
from sublens.training import run
from sublens.training.distillation import Teacher


def test_a_network_of_signal_to_noise_has_a_macro_head(weigher: Path) -> None:
    card = bundle.read_card(weigher)
    assert card.has_macro
    assert card.input == InputConfig(transform="signal-to-noise", crop=48, binning=2)
    assert card.calibration is not None
    assert card.calibration.macro_scales is not None
    assert card.calibration.contaminant_score is None


def test_a_network_without_the_profile_of_the_lens_has_a_graph(planes: Dataset, tmp_path: Path) -> None:
    network_input = {"transform": "signal-to-noise", "binning": 2, "planes": ["detail"]}
    run.train_run(planes, checked({**QUICK, "input": network_input}, RunConfig), tmp_path / "run")
    assert bundle.read_card(tmp_path / "run").graph


def test_the_log_has_the_loss_of_the_macro_head(weigher: Path) -> None:
    steps = [json.loads(line) for line in (weigher / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(step["macro_loss"]) for step in steps if step["kind"] == "step")


def test_the_best_epoch_has_the_least_loss_of_labels_and_macromodel_together(planes: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run.train_run(planes, checked({"train": {"epochs": 4, "batch_size": 16, "macro_weight": 3}}, RunConfig), out)
    card, rows = bundle.read_card(out), map(json.loads, (out / "log.jsonl").read_text().splitlines())
    epochs = [row for row in rows if row["kind"] == "epoch"]
    losses = [row["selection_loss"] + 3 * row["selection_macro_loss"] for row in epochs]
    assert card.training.best_epoch == np.argmin(losses)
    assert [row["is_best"] for row in epochs] == [loss == min(losses[: n + 1]) for n, loss in enumerate(losses)]
    assert card.training.selection_macro_loss == epochs[card.training.best_epoch]["selection_macro_loss"]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_all_engines_measure_the_same_lens(weigher: Path, planes: Dataset, engine: str) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    outputs = [
        predict_dataset.outputs_of_all(Predictor.load(weigher, name), planes.test)  # type: ignore[arg-type]
        for name in ("torch", engine)
    ]
    np.testing.assert_allclose(outputs[0].macro, outputs[1].macro, atol=0.02 if engine == "openvino" else 1e-4)  # type: ignore[arg-type]


def test_the_scores_hold_those_of_the_macromodel(weigher: Path, planes: Dataset) -> None:
    scores = evaluate.measure_run(weigher, planes)["macromodel"]
    assert set(scores) == {"theta_e", "axis_ratio", "position_angle"}
    assert all(0 <= score["coverage"] <= 1 for score in scores.values())


def test_a_prediction_holds_the_lens(weigher: Path, planes: Dataset) -> None:
    output = Predictor.load(weigher).forward(planes.test.counts(np.arange(3)))
    prediction = output.prediction(1)
    assert prediction.macromodel is not None
    assert tuple(prediction.macromodel) == macro.COLUMNS
    assert output.take(slice(1, 2)).prediction(0) == prediction


def test_a_table_has_the_columns_of_the_lens_where_there_is_a_head(tmp_path: Path) -> None:
    lens = dict(zip(macro.COLUMNS, [1.1, 0.1, 0.8, 0.05, 30, 4], strict=True))
    rows = [Row(Path("a.fits"), prediction=Prediction("no", {"no": 1.0}, macromodel=lens)), Row(Path("b"), error="x")]
    records = [tables.record(row, ["no"], "", "", has_macro=True) for row in rows]
    tables.WRITERS[".csv"](tmp_path / "t.csv", tables.columns(["no"], has_macro=True), lambda: iter(records))
    with (tmp_path / "t.csv").open() as file:
        first, second = csv.DictReader(file)
    assert {name: float(first[name]) for name in macro.COLUMNS} == lens
    assert {second[name] for name in macro.COLUMNS} == {""}


def test_a_table_without_a_head_has_the_columns_of_before() -> None:
    names = {column.name for column in tables.columns(["no"])}
    assert names == set(tables.record(Row(Path("a"), error="x"), ["no"], "", ""))
    assert not names & set(macro.COLUMNS)


def test_other_pixels_are_refused(weigher: Path, small_dataset: Dataset, planes: Dataset) -> None:
    with pytest.raises(DataError, match="signal-to-noise"):
        evaluate.measure_run(weigher, small_dataset, force=True)
    with pytest.raises(ConfigError, match="signal-to-noise"):
        Teacher.load(str(weigher), small_dataset, InputConfig(), "cpu")


def test_contaminants_are_left_out_of_calibration_but_for_their_logit(weigher: Path, planes: Dataset) -> None:
    labels = planes.train.labels.copy()
    labels[:5] = macro.CONTAMINANT
    mixed, predictor = replace(planes.train, labels=labels), Predictor.load(weigher, "torch")
    fitted = predict_dataset.calibrate(predictor, mixed, planes.selection, knows_contaminants=True)
    assert fitted.contaminant_score is not None
    scores = replace(predictor, calibration=fitted).forward(planes.selection.counts(np.arange(len(planes.selection))))
    assert scores.is_ood is not None
    assert scores.is_ood.sum() <= 3
