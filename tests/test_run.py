import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sublens import bundle, catalog, metrics, run
from sublens.config import ModelConfig, RunConfig, SplitConfig, TrainConfig
from sublens.data import Dataset
from sublens.data import open as open_dataset
from sublens.errors import ConfigError, DataError
from sublens.predict import Predictor
from sublens.train import Batch, Feed

QUICK = RunConfig(train=TrainConfig(epochs=8, batch_size=16))


@pytest.fixture(scope="module")
def easy(easy_folder: Path) -> Dataset:
    return open_dataset(easy_folder, SplitConfig(selection=0.25))


@pytest.fixture(scope="module")
def done(easy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lensnet trained and measured on the easy folder."""
    out = tmp_path_factory.mktemp("runs") / "lensnet"
    assert run.train_run(easy, QUICK, out)
    run.measure_run(out, easy)
    return out


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / run.LOG).read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def scores_of(folder: Path) -> dict[str, Any]:
    scores: dict[str, Any] = json.loads((folder / run.SCORES).read_text())
    return scores


def test_training_learns_and_the_test_part_shows_it(done: Path) -> None:
    assert scores_of(done)["auc_macro"]["value"] > 0.95
    assert scores_of(done)["accuracy"]["value"] > 0.85


def test_the_log_has_a_row_a_step_and_an_epoch(done: Path, easy: Dataset) -> None:
    steps, epochs = rows(done, "step"), rows(done, "epoch")
    per_epoch = len(easy.train) // 16
    assert [row["step"] for row in steps] == list(range(1, 8 * per_epoch + 1))
    assert [row["epoch"] for row in epochs] == list(range(8))
    assert steps[-1]["images"] == 16 * len(steps)
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_the_best_epoch_of_the_selection_part_is_kept(done: Path, easy: Dataset) -> None:
    best = min(row["selection_loss"] for row in rows(done, "epoch"))
    kept = Predictor.load(done)
    probs = kept.probs(easy.selection.counts(np.arange(len(easy.selection))))
    assert metrics.losses(probs, easy.selection.labels).mean() == pytest.approx(best, rel=1e-4)
    assert bundle.read_card(done).training.selection_loss == best


def test_the_card_says_what_the_run_was(done: Path, easy: Dataset) -> None:
    card = bundle.read_card(done)
    assert (card.classes, card.image_shape, card.data.hash) == (("empty", "square"), (16, 16), easy.hash)
    assert card.settings == run.settled(QUICK, easy)
    assert (card.data.train, card.data.test) == (len(easy.train), 40)
    assert not card.training.interrupted


def test_the_scores_are_those_of_the_prediction_table(done: Path) -> None:
    table = catalog.read(done / run.PREDICTIONS)
    again = metrics.score(table.probs, table.labels, table.classes)
    assert again["confusion"] == scores_of(done)["confusion"]
    assert again["auc_macro"] == pytest.approx(scores_of(done)["auc_macro"])


def test_the_gallery_holds_examples_of_each_class(done: Path) -> None:
    with np.load(done / run.GALLERY) as gallery:
        assert gallery["counts"].shape[1:] == (16, 16)
        assert (np.bincount(gallery["labels"]) >= run.EXAMPLES).all()
        assert gallery["ids"][0].startswith("test/")


def test_the_same_seed_gives_the_same_weights(done: Path, easy: Dataset, tmp_path: Path) -> None:
    run.train_run(easy, QUICK, tmp_path / "again")
    assert bundle.read_card(tmp_path / "again").weights_sha256 == bundle.read_card(done).weights_sha256


def test_training_leaves_the_global_random_state_alone(easy: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    run.train_run(easy, RunConfig(train=TrainConfig(epochs=1)), tmp_path / "run")
    assert torch.rand(1) == expected


def test_ctrl_c_leaves_a_usable_run(easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Feed.epoch

    def stopped(self: Feed, epoch: int) -> Iterator[Batch]:
        for number, batch in enumerate(whole(self, epoch)):
            if epoch == 1 and number == 2:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(Feed, "epoch", stopped)
    assert not run.train_run(easy, QUICK, tmp_path / "run")
    card = bundle.read_card(tmp_path / "run")
    assert card.training.interrupted
    assert card.training.best_epoch == 0
    assert run.measure_run(tmp_path / "run", easy)["n"] == 40


def test_ctrl_c_before_the_first_epoch_ends_leaves_a_usable_run(
    easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(self: Feed, epoch: int) -> Iterator[Batch]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(Feed, "epoch", stopped)
    assert not run.train_run(easy, QUICK, tmp_path / "run")
    assert Predictor.load(tmp_path / "run").classes == ("empty", "square")


def test_a_loss_that_explodes_is_explained_and_keeps_the_best(
    easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Feed.epoch

    def poisoned(self: Feed, epoch: int) -> Iterator[Batch]:
        for batch in whole(self, epoch):
            yield Batch(batch.images * (np.nan if epoch == 1 else 1), batch.labels)

    monkeypatch.setattr(Feed, "epoch", poisoned)
    with pytest.raises(DataError, match=r"loss became nan in epoch 1. Lower train.lr"):
        run.train_run(easy, QUICK, tmp_path / "run")
    assert Predictor.load(tmp_path / "run").classes == ("empty", "square")


def test_a_run_that_diverges_at_once_leaves_nothing(easy: Dataset, tmp_path: Path) -> None:
    wild = RunConfig(train=TrainConfig(optimizer="adamw", adamw_lr=1e30, epochs=1))
    with pytest.raises(DataError, match="loss became nan in epoch 0"):
        run.train_run(easy, wild, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_the_card_records_the_split_that_was_used(easy_folder: Path, tmp_path: Path) -> None:
    split = SplitConfig(seed=5, selection=0.25)
    run.train_run(open_dataset(easy_folder, split), RunConfig(train=TrainConfig(epochs=1)), tmp_path / "run")
    assert bundle.read_card(tmp_path / "run").settings.split == split


def test_a_measured_run_is_not_measured_again_without_force(done: Path, easy: Dataset) -> None:
    with pytest.raises(DataError, match="is measured already"):
        run.measure_run(done, easy)


def test_scores_of_other_data_do_not_count_as_measured(done: Path, easy: Dataset, small_dataset: Dataset) -> None:
    assert run.is_measured(done, easy)
    assert not run.is_measured(done, small_dataset)


def test_a_budget_of_minutes_ends_the_training(easy: Dataset, tmp_path: Path) -> None:
    config = RunConfig(train=TrainConfig(minutes=0.02, batch_size=16))
    assert run.train_run(easy, config, tmp_path / "run")
    assert 1 <= bundle.read_card(tmp_path / "run").training.seconds < 6


def test_truth_is_learned_where_there_is_some(small_dataset: Dataset, tmp_path: Path) -> None:
    run.train_run(small_dataset, RunConfig(train=TrainConfig(epochs=2, batch_size=32)), tmp_path / "run")
    assert all(row["truth_loss"] > 0 for row in rows(tmp_path / "run", "step"))
    assert not any("convolution" in name for name in bundle.load(tmp_path / "run")[0].state_dict())


def test_an_existing_run_is_kept_without_force(done: Path, easy: Dataset) -> None:
    before = (done / bundle.WEIGHTS).read_bytes()
    with pytest.raises(DataError, match="exists already"):
        run.train_run(easy, QUICK, done)
    assert (done / bundle.WEIGHTS).read_bytes() == before


def test_an_unknown_network_leaves_nothing_behind(easy: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean"):
        run.train_run(easy, RunConfig(model=ModelConfig(name="lensnets")), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_with_other_classes_is_refused(done: Path, small_dataset: Dataset) -> None:
    with pytest.raises(DataError, match="was trained on the classes empty, square"):
        run.measure_run(done, small_dataset, force=True)
