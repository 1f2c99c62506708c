import numpy as np
import torch

from sublens.config import InputConfig
from sublens.data.dataset import Dataset
from sublens.evaluation import evaluate
from sublens.inference import predict_dataset
from sublens.inference.predictor import Predictor
from sublens.models.networks import build


def untrained() -> Predictor:
    torch.manual_seed(0)
    seen = InputConfig(binning=2)
    return predict_dataset.eager(build("lensnet", 3).eval(), ("no", "sphere", "vort"), (48, 48), seen)


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


def test_the_scores_hold_what_the_report_needs(small_dataset: Dataset) -> None:
    predictor = untrained()
    scores = evaluate.score(predictor, predict_dataset.predict_all(predictor, small_dataset.test))
    assert scores["n"] == 30
    assert 0 < scores["latency_ms"]["batch_1"] < scores["latency_ms"]["batch_32"]
    assert set(scores["auc"]) == {"no", "sphere", "vort"}
