"""Measured runs -> a bundle to give away, from the command line to its use."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_cli import refused, sublens

from sublens.config import ModelConfig, RunConfig, SplitConfig, TrainConfig
from sublens.data.dataset import Dataset, open_dataset
from sublens.errors import DataError
from sublens.evaluation import evaluate, publish
from sublens.inference.predictor import Predictor
from sublens.models import bundle
from sublens.training import run
from sublens.training.recorder import SCORES

SPLIT = SplitConfig(selection=0.25)


@pytest.fixture(scope="module")
def easy(easy_folder: Path) -> Dataset:
    return open_dataset(easy_folder, SPLIT)


@pytest.fixture(scope="module")
def measured(easy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lensnet trained and measured on the easy classes."""
    folder = tmp_path_factory.mktemp("runs") / "lensnet"
    run.train_run(easy, RunConfig(train=TrainConfig(epochs=2, batch_size=16), split=SPLIT), folder)
    evaluate.measure_run(folder, easy)
    return folder


def test_a_published_bundle_is_measured_and_predicts_with_every_engine(
    measured: Path, easy: Dataset, easy_folder: Path, tmp_path: Path
) -> None:
    published, copy = tmp_path / "published", tmp_path / "copy"
    assert sublens("publish", easy_folder, measured, "--out", published) == 0
    assert sublens("evaluate", published, easy_folder, "--out", copy) == 0
    assert json.loads((copy / SCORES).read_text())["engine"] == "onnxruntime"
    counts = easy.test.counts(np.arange(5))
    probs = [Predictor.load(copy, engine).probs(counts) for engine in ("onnxruntime", "openvino", "torch")]
    assert np.allclose(probs[0], probs[2], atol=1e-5)
    assert np.allclose(probs[1], probs[2], atol=0.02)  # OpenVINO may compute in bfloat16
    assert (
        bundle.read_card(published).scores[0].auc == json.loads((measured / SCORES).read_text())["auc_macro"]["value"]
    )


@pytest.mark.parametrize("name", ["distill_loss", "hint_loss"])
def test_a_thinned_log_holds_mean_losses_under_their_former_name_as_well(name: str) -> None:
    steps = [{"kind": "step", "step": i, "loss": i, "truth_loss": None, name: 2 * i} for i in range(150)]
    rows = [*steps, {"kind": "epoch", "epoch": 0}]
    first, second, epoch = map(json.loads, publish._thinned([json.dumps(row).encode() for row in rows]))
    assert (first["loss"], first[name], first["step"]) == (49.5, 99, 99)
    assert (second["loss"], second[name], second["truth_loss"]) == (124.5, 249, None)
    assert epoch == rows[-1]


def test_networks_of_two_kinds_are_not_published_together(measured: Path, easy: Dataset, tmp_path: Path) -> None:
    other = tmp_path / "resnet"
    run.train_run(easy, RunConfig(model=ModelConfig(name="resnet10t"), train=TrainConfig(epochs=1)), other)
    with pytest.raises(DataError, match="is a resnet10t of empty, square; needs a lensnet of empty, square, as"):
        publish.publish([measured, other], easy, tmp_path / "published")
    assert not (tmp_path / "published").exists()


def test_scores_of_other_weights_are_not_published(
    measured: Path, easy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stale = shutil.copytree(measured, tmp_path / "stale")
    bundle.save_card(stale, bundle.read_card(stale).model_copy(update={"weights_sha256": "0" * 64}))
    message = refused(capsys, "publish", easy_folder, stale, "--out", tmp_path / "published")
    assert "card.json: is missing, or has changed since the run was measured" in message
    assert f"sublens evaluate {stale} DATASET --force" in message
