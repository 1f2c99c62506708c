import errno
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import children, wait_until_gone

from sublens import metrics
from sublens.config import InputConfig, ModelConfig, RunConfig, SplitConfig, TrainConfig, checked
from sublens.data import survey_stream
from sublens.data.dataset import Dataset, open_dataset
from sublens.errors import BundleError, ConfigError, DataError
from sublens.evaluation import evaluate
from sublens.evaluation.publish import publish
from sublens.inference import detection_trials
from sublens.inference.predictor import Predictor
from sublens.models import bundle, networks
from sublens.models.bundle import CardMap
from sublens.models.detection import Detection
from sublens.models.weights import load as load_weights
from sublens.models.weights import save as save_weights
from sublens.parallel.mapper import HERE
from sublens.parallel.torchrun import ALONE
from sublens.progress import Bar
from sublens.storage.files import lock_folder, sha256
from sublens.surveys.survey import Survey
from sublens.training import checkpoint, loop, recorder, run
from sublens.training.loop import Batch, BatchSource

QUICK = RunConfig(train=TrainConfig(epochs=8, batch_size=16))


@pytest.fixture(scope="module")
def easy(easy_folder: Path) -> Dataset:
    return open_dataset(easy_folder, SplitConfig(selection=0.25))


@pytest.fixture(scope="module")
def done(easy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lensnet trained and measured on the easy folder."""
    out = tmp_path_factory.mktemp("runs") / "lensnet"
    assert run.train_run(easy, QUICK, out)
    evaluate.measure_run(out, easy)
    return out


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / recorder.LOG).read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def scores_of(folder: Path) -> dict[str, Any]:
    scores: dict[str, Any] = json.loads((folder / recorder.SCORES).read_text())
    return scores


def test_training_learns_and_the_test_part_shows_it(done: Path) -> None:
    assert scores_of(done)["auc_macro"]["value"] > 0.95
    assert scores_of(done)["accuracy"]["value"] > 0.85


def test_a_training_ends_with_a_fit_of_the_detection_limit(
    easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = Detection(p_no=0.3, log_most=11, means=(), spreads=(), levels=(1,), slopes=(2,), n=9)
    are_calibrated = []

    def fitted(predictor: Predictor, dataset: Dataset, bar: Bar) -> Detection:
        are_calibrated.append(predictor.calibration is not None)
        return fit

    monkeypatch.setattr(detection_trials, "fit_where_known", fitted)
    run.train_run(easy, RunConfig(train=TrainConfig(epochs=1)), tmp_path / "run")
    assert bundle.read_card(tmp_path / "run").detection == fit
    assert are_calibrated == [True]


def test_the_log_has_a_row_a_step_and_an_epoch(done: Path, easy: Dataset) -> None:
    steps, epochs = rows(done, "step"), rows(done, "epoch")
    per_epoch = len(easy.train) // 16
    assert [row["step"] for row in steps] == list(range(1, 8 * per_epoch + 1))
    assert [row["epoch"] for row in epochs] == list(range(8))
    assert steps[-1]["images"] == 16 * len(steps)
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_the_best_epoch_of_the_selection_part_is_kept(done: Path, easy: Dataset) -> None:
    best = min(row["selection_loss"] for row in rows(done, "epoch"))
    kept = replace(Predictor.load(done), calibration=None)
    probs = kept.probs(easy.selection.counts(np.arange(len(easy.selection))))
    assert metrics.losses(probs, easy.selection.labels).mean() == pytest.approx(best, rel=1e-4)
    assert bundle.read_card(done).training.selection_loss == best


def test_the_card_says_what_the_run_was(done: Path, easy: Dataset) -> None:
    card = bundle.read_card(done)
    assert (card.classes, card.image_shape, card.data.hash) == (("empty", "square"), (16, 16), easy.hash)
    assert card.settings == run.resolve_settings(QUICK, easy)
    assert (card.data.train, card.data.test) == (len(easy.train), 40)
    assert not card.training.interrupted


def test_the_scores_are_those_of_the_prediction_table(done: Path) -> None:
    table = evaluate.read_predictions(done / recorder.PREDICTIONS)
    again = metrics.score(table.probs, table.labels, table.classes)
    assert again["confusion"] == scores_of(done)["confusion"]
    assert again["auc_macro"] == pytest.approx(scores_of(done)["auc_macro"])


def test_the_gallery_holds_examples_of_each_class(done: Path) -> None:
    with np.load(done / recorder.GALLERY) as gallery:
        assert gallery["counts"].shape[1:] == (16, 16)
        assert (np.bincount(gallery["labels"]) >= evaluate.EXAMPLES).all()
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
    whole = BatchSource.epoch

    def stopped(self: BatchSource, epoch: int, n_done: int = 0) -> Iterator[Batch]:
        for number, batch in enumerate(whole(self, epoch, n_done)):
            if epoch == 1 and number == 2:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(BatchSource, "epoch", stopped)
    assert not run.train_run(easy, QUICK, tmp_path / "run")
    card = bundle.read_card(tmp_path / "run")
    assert card.training.interrupted
    assert card.training.best_epoch == 0
    assert evaluate.measure_run(tmp_path / "run", easy)["n"] == 40


def test_ctrl_c_before_the_first_epoch_ends_leaves_a_usable_run(
    easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(self: BatchSource, epoch: int, n_done: int = 0) -> Iterator[Batch]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(BatchSource, "epoch", stopped)
    assert not run.train_run(easy, QUICK, tmp_path / "run")
    assert Predictor.load(tmp_path / "run").classes == ("empty", "square")


def test_a_loss_that_explodes_is_explained_and_keeps_the_best(
    easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = BatchSource.epoch

    def poisoned(self: BatchSource, epoch: int, n_done: int = 0) -> Iterator[Batch]:
        for batch in whole(self, epoch, n_done):
            yield Batch(batch.images * (np.nan if epoch == 1 else 1), batch.labels)

    monkeypatch.setattr(BatchSource, "epoch", poisoned)
    with pytest.raises(
        DataError, match=r"loss became nan in step \d+ \(batch 1 of epoch 1\); needs a finite loss.*Lower train.lr"
    ):
        run.train_run(easy, QUICK, tmp_path / "run")
    assert Predictor.load(tmp_path / "run").classes == ("empty", "square")


def test_a_run_that_diverges_at_once_leaves_nothing(easy: Dataset, tmp_path: Path) -> None:
    wild = RunConfig(train=TrainConfig(optimizer="adamw", adamw_lr=1e30, epochs=1))
    with pytest.raises(DataError, match=r"loss became nan in (step|epoch)"):
        run.train_run(easy, wild, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_linked_folder_is_kept_where_training_leaves_nothing(easy: Dataset, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "run").symlink_to("real")
    with pytest.raises(DataError, match="loss became nan"):
        run.train_run(easy, RunConfig(train=TrainConfig(optimizer="adamw", adamw_lr=1e30, epochs=1)), tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
    assert (tmp_path / "run").is_symlink()


def test_a_teacher_is_not_replaced_by_its_student(easy: Dataset, done: Path) -> None:
    config = QUICK.model_copy(update={"train": QUICK.train.model_copy(update={"teacher": str(done)})})
    with pytest.raises(DataError, match="overlaps"):
        run.train_run(easy, config, done, force=True)
    assert (done / bundle.WEIGHTS).is_file()


def starting_from(folder: Path, **model: object) -> RunConfig:
    settings = QUICK.model_dump(exclude_none=True)
    return checked({**settings, "model": {"name": "lensnet", "start": str(folder), **model}}, RunConfig)


def test_a_training_starts_from_the_weights_of_another(easy: Dataset, done: Path, tmp_path: Path) -> None:
    state = run.build_state(easy, run.resolved_for(tmp_path / "run", starting_from(done), easy, resume=False), ALONE)
    trained = load_weights(done, bundle.read_card(done))[0].state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in state.model.state_dict().items())
    assert state.start
    assert state.start.weights_sha256 == bundle.read_card(done).weights_sha256
    assert f"started from lensnet@{state.start.weights_sha256[:12]}" in state.supervision


def test_a_training_starts_from_no_other_kind_of_network(easy: Dataset, done: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="its network is lensnet, and this one's resnet18"):
        run.train_run(easy, starting_from(done, name="resnet18"), tmp_path / "run")


def test_a_training_starts_from_a_network_of_another_camera(easy: Dataset, done: Path, tmp_path: Path) -> None:
    config = starting_from(done).model_copy(update={"input": InputConfig(crop=12)})
    state = run.build_state(easy, run.resolved_for(tmp_path / "run", config, easy, resume=False), ALONE)
    trained = load_weights(done, bundle.read_card(done))[0].state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in state.model.state_dict().items())


def test_a_training_starts_from_no_network_of_other_pixels(easy: Dataset, done: Path, tmp_path: Path) -> None:
    config = starting_from(done).model_copy(update={"input": InputConfig(transform="minmax")})
    with pytest.raises(ConfigError, match="its input is anscombe of 1, and this one's minmax of 1"):
        run.train_run(easy, config, tmp_path / "run")


@pytest.mark.parametrize("setting", [{"cache": 3000}, {"matched": True}])
def test_settings_of_fresh_images_are_refused_for_a_data_set(
    easy: Dataset, setting: dict[str, Any], tmp_path: Path
) -> None:
    config = RunConfig(train=TrainConfig.model_validate({"epochs": 1, **setting}))
    with pytest.raises(ConfigError, match=f"train.{next(iter(setting))} is set, and every image"):
        run.train_run(easy, config, tmp_path / "run")


def test_the_card_records_the_split_that_was_used(easy_folder: Path, tmp_path: Path) -> None:
    split = SplitConfig(seed=5, selection=0.25)
    run.train_run(open_dataset(easy_folder, split), RunConfig(train=TrainConfig(epochs=1)), tmp_path / "run")
    assert bundle.read_card(tmp_path / "run").settings.split == split


def test_a_measured_run_is_not_measured_again_without_force(done: Path, easy: Dataset) -> None:
    with pytest.raises(DataError, match="is measured already"):
        evaluate.measure_run(done, easy)


def test_scores_of_other_data_do_not_count_as_measured(done: Path, easy: Dataset, small_dataset: Dataset) -> None:
    assert evaluate.is_measured(done, easy)
    assert not evaluate.is_measured(done, small_dataset)


def test_a_budget_of_minutes_ends_the_training(easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(recorder, "monotonic", lambda: next(clock) / 100)  # 10 ms a glance
    config = RunConfig(train=TrainConfig(minutes=0.02, epochs=1, batch_size=16))
    assert run.train_run(easy, config, tmp_path / "run")
    assert rows(tmp_path / "run", "step")[-1]["seconds"] == pytest.approx(1.2, abs=0.1)
    assert len(rows(tmp_path / "run", "epoch")) > 1  # the budget of time replaces that of epochs


def test_truth_is_learned_where_there_is_some(small_dataset: Dataset, tmp_path: Path) -> None:
    run.train_run(small_dataset, RunConfig(train=TrainConfig(epochs=2, batch_size=32)), tmp_path / "run")
    assert all(row["truth_loss"] > 0 for row in rows(tmp_path / "run", "step"))
    card = bundle.read_card(tmp_path / "run")
    model, head, _ = load_weights(tmp_path / "run", card)
    assert head is not None
    assert card.map == CardMap(n_cells=6, cell_arcsec=48 * 0.15 / 6)
    assert not any("convolution" in name for name in model.state_dict())


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
        evaluate.measure_run(done, small_dataset, force=True)


def stopped_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ask for an end after that step, as Ctrl-C does."""
    whole = recorder.TrainingRecorder.on_step

    def on_step(self: Any, done: loop.Step) -> None:
        if done.number == step:
            signal.raise_signal(signal.SIGINT)
        whole(self, done)

    monkeypatch.setattr(recorder.TrainingRecorder, "on_step", on_step)


@pytest.mark.parametrize("step", [1, 5, 6, 7, 23])
def test_a_resumed_run_ends_like_one_that_was_never_stopped(
    done: Path, easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    with monkeypatch.context() as patch:
        stopped_at(patch, step)
        assert not run.train_run(easy, QUICK, tmp_path / "run")
    assert run.train_run(easy, QUICK, tmp_path / "run", resume=True)
    assert bundle.read_card(tmp_path / "run").weights_sha256 == bundle.read_card(done).weights_sha256
    kept = ("kind", "step", "epoch", "loss", "train_loss", "selection_loss")
    resumed, whole = (
        [{k: row.get(k) for k in kept} for row in rows(folder, "step") + rows(folder, "epoch")]
        for folder in (tmp_path / "run", done)
    )
    assert resumed == whole
    assert not (tmp_path / "run" / checkpoint.FOLDER).exists()


@pytest.fixture
def fresh(small_survey: Survey, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """The small survey's fresh images, rendered in this process."""
    for name in ("SELECTION", "REFERENCE", "TEST", "LEAST_POOL"):
        monkeypatch.setattr(survey_stream, name, 60)
    monkeypatch.setattr("sublens.sim.slices.SLICE_PIXELS", 20 * 48 * 48)
    monkeypatch.setattr(survey_stream, "open_processes", lambda n, remedy: nullcontext(HERE))
    monkeypatch.setattr("sublens.surveys.presets.preset", lambda name: small_survey)
    return open_dataset(Path("own.toml"), SplitConfig())


LIVE = RunConfig(train=TrainConfig(epochs=2, epoch_images=320, batch_size=32))


def test_a_run_on_fresh_images_resumes_to_the_same_weights(
    fresh: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run.train_run(fresh, LIVE, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stopped_at(patch, 13)
        assert not run.train_run(fresh, LIVE, tmp_path / "halves")
    assert run.train_run(fresh, LIVE, tmp_path / "halves", resume=True)
    whole, halves = (bundle.read_card(tmp_path / name) for name in ("whole", "halves"))
    assert whole.weights_sha256 == halves.weights_sha256
    assert (whole.data.train, whole.data.test, whole.training.images) == (120, 0, 640)


GROUP = """
import sys
from sublens import cli
from sublens.data import survey_stream
from sublens.surveys import presets
from sublens.surveys.survey import Survey
from sublens.training.loop import BatchSource
survey_stream.SELECTION = survey_stream.REFERENCE = survey_stream.TEST = 60
survey_stream.BATCHES_AT_ONCE, survey_stream.DRAWING, BatchSource.log_every = 8, 2, 50
survey_stream.SurveyStream.samples = lambda stream, device, start=0: stream.rendered(start, "cpu")  # as on a GPU
survey = Survey.model_validate_json(sys.argv[1])
presets.preset = lambda name: survey
settings = ("train.epochs=2", "train.epoch_images=800", "train.batch_size=8")
cli.main(["train", "own.toml", "--out", *sys.argv[2:], *(word for each in settings for word in ("--set", each))])
"""


@pytest.mark.slow
def test_sigterm_to_the_whole_group_ends_a_training_on_fresh_images_as_ctrl_c_does(
    small_survey: Survey, tmp_path: Path
) -> None:
    command, out = [sys.executable, "-c", GROUP, small_survey.model_dump_json(exclude_none=True)], tmp_path / "run"
    with subprocess.Popen([*command, out], stderr=subprocess.PIPE, text=True, start_new_session=True) as job:
        while not (out / recorder.LOG).is_file() or len(rows(out, "step")) < 3:  # two in the first epoch of 100 steps
            assert job.poll() is None, job.communicate()
            time.sleep(0.01)
        workers = children(job.pid)
        os.killpg(job.pid, signal.SIGTERM)
        _, errors = job.communicate(timeout=60)
    assert job.returncode == 130, errors
    assert len(workers) >= 2
    wait_until_gone(workers)
    card, last = bundle.read_card(out), checkpoint.last_step(out)
    assert card.training.interrupted
    assert card.weights_sha256 == sha256(out / bundle.WEIGHTS)
    assert 150 < last < 200, "the step at which the signal came, not the next that is logged"
    assert subprocess.run([*command, out, "--resume"], capture_output=True).returncode == 0
    assert not bundle.read_card(out).training.interrupted


def test_a_run_on_fresh_images_is_measured_on_the_surveys_test_part(fresh: Dataset, tmp_path: Path) -> None:
    run.train_run(fresh, LIVE, tmp_path / "run")
    _, test, scores = evaluate.measure_network(tmp_path / "run", Path("own.toml"))
    assert (len(test.test), scores["n"], test.hash) == (60, 60, fresh.hash)
    assert all(name.startswith("test/") for name in test.test.ids)


def test_a_pool_is_for_surveys_alone(easy: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a survey to train from"):
        run.train_run(easy, RunConfig(train=TrainConfig(cache=100)), tmp_path / "run")


def test_a_processor_of_which_torch_knows_nothing_trains_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not networks.has_bf16_gain("lensnet", "cpu", 48)


def test_a_network_with_random_layers_resumes_to_the_same_weights(
    small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "build", lambda name, n, c, **options: Noisy(n))
    config = RunConfig(train=TrainConfig(epochs=2, batch_size=32))
    run.train_run(small_dataset, config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stopped_at(patch, 2)
        run.train_run(small_dataset, config, tmp_path / "halves")
    run.train_run(small_dataset, config, tmp_path / "halves", resume=True)
    hashes = [bundle.read_card(tmp_path / name).weights_sha256 for name in ("whole", "halves")]
    assert hashes[0] == hashes[1]


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads of torch instead of one."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def test_a_run_on_two_threads_resumes_to_the_same_weights(
    two_threads: None, small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(train=TrainConfig(epochs=2, batch_size=32))
    run.train_run(small_dataset, config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stopped_at(patch, 2)
        assert not run.train_run(small_dataset, config, tmp_path / "halves")
    run.train_run(small_dataset, config, tmp_path / "halves", resume=True)
    hashes = [bundle.read_card(tmp_path / name).weights_sha256 for name in ("whole", "halves")]
    assert hashes[0] == hashes[1]


class Noisy(networks.LensNet):
    """A lensnet that forgets at random while it learns."""

    def __init__(self, n_classes: int) -> None:
        super().__init__(n_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.nn.functional.dropout(x, 0.5, self.training))


@pytest.mark.parametrize("name", ["lr", "adamw_lr"])
def test_the_rate_of_adamw_alone_has_either_name(easy: Dataset, name: str) -> None:
    config = RunConfig(train=TrainConfig.model_validate({"optimizer": "adamw", name: 1e-9}))
    state = run.build_state(easy, run.resolve_settings(config, easy), ALONE)
    assert {group["peak_lr"] for group in state.optimizer.param_groups} == {1e-9}


def test_two_rates_of_adamw_give_two_losses(easy: Dataset, tmp_path: Path) -> None:
    for rate in (1e-9, 1e-2):
        train = TrainConfig(optimizer="adamw", lr=rate, epochs=1, batch_size=16)
        run.train_run(easy, RunConfig(train=train), tmp_path / f"{rate}")
    slow, fast = (rows(tmp_path / f"{rate}", "step") for rate in (1e-9, 1e-2))
    assert slow[0]["loss"] == fast[0]["loss"]
    assert slow[-1]["loss"] != fast[-1]["loss"]


def test_resuming_with_other_settings_lists_what_differs(easy: Dataset, stopped: Path) -> None:
    other = RunConfig(train=TrainConfig(epochs=9, batch_size=16, lr=0.01))
    with pytest.raises(DataError, match=r"train.epochs: 8 before, 9 now; train.lr: 0.02 before, 0.01 now"):
        run.train_run(easy, other, stopped, resume=True)


def test_resuming_on_other_data_is_refused(easy: Dataset, stopped: Path) -> None:
    with pytest.raises(DataError, match="holds a run on other data"):
        run.train_run(replace(easy, hash="0"), QUICK, stopped, resume=True)


def test_resuming_where_nothing_was_begun_begins(easy: Dataset, tmp_path: Path) -> None:
    config = RunConfig(train=TrainConfig(epochs=1))
    assert run.train_run(easy, config, tmp_path / "run", resume=True)
    before = (tmp_path / "run" / bundle.CARD).stat().st_mtime_ns
    assert run.train_run(easy, config, tmp_path / "run", resume=True)  # complete: nothing to do
    assert (tmp_path / "run" / bundle.CARD).stat().st_mtime_ns == before


def test_a_run_whose_checkpoints_are_all_damaged_says_so(easy: Dataset, stopped: Path) -> None:
    for path in (stopped / checkpoint.FOLDER).iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="holds 2 checkpoints, all damaged"):
        run.train_run(easy, QUICK, stopped, resume=True)


def test_a_lack_of_memory_is_answered_with_a_batch_that_fits(
    easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = networks.LensNet.forward

    def hungry(self: networks.LensNet, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 5:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        return whole(self, x)

    monkeypatch.setattr(networks.LensNet, "forward", hungry)
    monkeypatch.setattr(networks, "check_input_size", lambda *arguments: None)
    with pytest.raises(
        DataError, match=r"batches of 16 images; needs batches of 4 or fewer. Begin again with --set train.batch_size=4"
    ):
        run.train_run(easy, QUICK, tmp_path / "run")


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from sublens.data import dataset
from sublens.training import checkpoint, run
from sublens.config import RunConfig, SplitConfig, TrainConfig
torch.set_num_threads(1)
run.CHECKPOINT_SECONDS = 0.1
if len(sys.argv) > 3:  # to end in the middle of the eighth checkpoint that is written
    share, write, written = float(sys.argv[3]), checkpoint.write_bytes, []
    def half(path, data):
        written.append(path)
        if len(written) == 8:
            path.with_name(f".{path.name}.partial").write_bytes(data[:round(share * len(data))])
            if share == 1:
                write(path, data)
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, data)
    checkpoint.write_bytes = half
easy = dataset.open_dataset(Path(sys.argv[1]), SplitConfig(selection=0.25))
config = RunConfig(train=TrainConfig(epochs=300, batch_size=16))
run.train_run(easy, config, Path(sys.argv[2]), resume=True)
"""


@pytest.mark.slow
def test_a_run_killed_at_twenty_points_ends_with_the_same_weights(easy_folder: Path, tmp_path: Path) -> None:
    """Fifteen random ones, and five in the middle of a checkpoint: none of it, parts, or all of it written."""

    def begin(out: str, *more: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", KILLED, easy_folder, tmp_path / out, *more])

    assert begin("whole").wait() == 0
    rng, log = random.Random(0), tmp_path / "killed" / recorder.LOG
    for number in range(20):
        child = begin("killed", *([str(number // 4 / 4)] if number % 4 == 3 else []))
        n_lines = log.read_bytes().count(b"\n") if log.is_file() else 0
        goal = n_lines + rng.randint(10, 100)
        while child.poll() is None and (n_lines < goal or number % 4 == 3):
            n_lines = log.read_bytes().count(b"\n") if log.is_file() else 0
        child.kill()
        assert child.wait() == -signal.SIGKILL
    assert begin("killed").wait() == 0
    hashes = [bundle.read_card(tmp_path / name).weights_sha256 for name in ("whole", "killed")]
    assert hashes[0] == hashes[1]
    steps = [row["step"] for row in rows(tmp_path / "killed", "step")]
    assert steps == [row["step"] for row in rows(tmp_path / "whole", "step")]


def test_the_best_of_several_runs_is_published_with_the_scores_of_all(
    done: Path, easy: Dataset, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    run.train_run(easy, RunConfig(train=TrainConfig(epochs=2, batch_size=16, seed=1)), other)
    evaluate.measure_run(other, easy)
    out = publish([other, done], easy, tmp_path / "bundle")
    card = bundle.read_card(out)
    assert card.scores[0].auc == scores_of(done)["auc_macro"]["value"]
    assert card.scores[1].auc == scores_of(other)["auc_macro"]["value"]
    assert (out / bundle.WEIGHTS).stat().st_size < 0.6 * (done / bundle.WEIGHTS).stat().st_size
    assert card.rounding is not None
    assert 0 < card.rounding < 0.01
    assert [row["epoch"] for row in rows(out, "epoch")] == list(range(8))
    counts = easy.test.counts(np.arange(len(easy.test)))
    assert np.abs(Predictor.load(out).probs(counts) - Predictor.load(done).probs(counts)).max() < 0.01


def test_a_published_bundle_takes_in_the_scores_of_more_runs(done: Path, easy: Dataset, tmp_path: Path) -> None:
    first, other = publish([done], easy, tmp_path / "bundle"), tmp_path / "other"
    before, log = bundle.read_card(first), (first / recorder.LOG).read_bytes()
    run.train_run(easy, RunConfig(train=TrainConfig(epochs=2, batch_size=16, seed=1)), other)
    evaluate.measure_run(other, easy)
    with pytest.raises(DataError, match="overlaps"):
        publish([first, other], easy, first, force=True)
    out = publish([first, other], easy, tmp_path / "again")
    after = bundle.read_card(out)
    assert after.scores[:1] == before.scores
    assert after.scores[1].auc == scores_of(other)["auc_macro"]["value"]
    assert (after.weights_sha256, after.rounding) == (before.weights_sha256, before.rounding)
    assert (out / recorder.LOG).read_bytes() == log


def test_a_run_that_is_not_measured_is_not_published(easy: Dataset, tmp_path: Path) -> None:
    run.train_run(easy, RunConfig(train=TrainConfig(epochs=1)), tmp_path / "run")
    with pytest.raises(DataError, match="is trained but not measured"):
        publish([tmp_path / "run"], easy, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.fixture
def stopped(easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run of `done`, stopped in its fifth epoch."""
    with monkeypatch.context() as patch:
        stopped_at(patch, 26)
        assert not run.train_run(easy, QUICK, tmp_path / "stopped")
    return tmp_path / "stopped"


def weights(folder: Path) -> str:
    return bundle.read_card(folder).weights_sha256


def test_a_second_ctrl_c_loses_no_checkpoint(
    easy: Dataset, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def impatient(self: Any, epoch: int) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stopped_at(patch, 2)
        patch.setattr(recorder.TrainingRecorder, "evaluate", impatient)
        run.train_run(easy, QUICK, tmp_path / "run")
    assert checkpoint.last_step(tmp_path / "run") == 2
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(run, "build_state", broken)  # an error while it is taken up again
        run.train_run(easy, QUICK, tmp_path / "run", resume=True)
    assert run.train_run(easy, QUICK, tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(done)


def broken(*arguments: object) -> None:
    raise RuntimeError("broken")


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_what_a_disk_refuses_costs_no_checkpoint(
    easy: Dataset, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Ten times each, at ten places in the writing of a checkpoint."""
    rng, out = random.Random(number), tmp_path / "run"
    for _ in range(10):
        with monkeypatch.context() as patch:
            patch.setattr(recorder, "CHECKPOINT_SECONDS", 0.0)
            fail_while_saving(patch, OSError(number, os.strerror(number)), rng)
            with pytest.raises(DataError, match=os.strerror(number)):
                run.train_run(easy, QUICK, out, resume=True)
        last, damaged = checkpoint.latest(out)
        assert last
        assert not damaged
    assert run.train_run(easy, QUICK, out, resume=True)
    assert weights(out) == weights(done)


def fail_while_saving(patch: pytest.MonkeyPatch, error: OSError, rng: random.Random) -> None:
    """Have the third checkpoint from now on fail: before it is written, in the middle, at its end, or when renamed."""
    save, saved, stage = checkpoint.save, list[int](), rng.randrange(4)
    write = Path.write_bytes

    def torn(self: Path, data: bytes) -> int:
        write(self, data[: stage * len(data) // 2])
        raise error

    def refused(*arguments: object) -> None:
        raise error

    def failing(out: Path, state: checkpoint.Checkpoint) -> None:
        saved.append(state.step)
        with pytest.MonkeyPatch.context() as inner:
            if len(saved) == 3 and stage < 3:
                inner.setattr(Path, "write_bytes", torn)
            elif len(saved) == 3:
                inner.setattr(Path, "replace", refused)
            save(out, state)

    patch.setattr(checkpoint, "save", failing)


def test_sigusr1_asks_for_a_checkpoint_and_training_goes_on(
    easy: Dataset, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, kept, keep = recorder.TrainingRecorder.on_step, list[int](), recorder.TrainingRecorder.keep

    def on_step(self: Any, step: loop.Step) -> None:
        if step.number == 9:
            signal.raise_signal(signal.SIGUSR1)
        whole(self, step)

    def noted(self: Any, epoch: int) -> None:
        kept.append(self.steps)
        keep(self, epoch)

    monkeypatch.setattr(recorder.TrainingRecorder, "on_step", on_step)
    monkeypatch.setattr(recorder.TrainingRecorder, "keep", noted)
    assert run.train_run(easy, QUICK, tmp_path / "run")
    assert kept.count(9) == 1
    assert 10 not in kept
    assert weights(tmp_path / "run") == weights(done)


def test_a_signal_that_comes_twice_at_once_is_one(
    easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = recorder.TrainingRecorder.on_step

    def on_step(self: Any, step: loop.Step) -> None:
        if step.number == 9:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
                signal.raise_signal(number)
        whole(self, step)

    monkeypatch.setattr(recorder.TrainingRecorder, "on_step", on_step)
    assert not run.train_run(easy, QUICK, tmp_path / "run")
    assert checkpoint.last_step(tmp_path / "run") == 9


def test_scores_of_an_unfinished_run_do_not_outlive_it(easy: Dataset, stopped: Path) -> None:
    evaluate.measure_run(stopped, easy)
    assert evaluate.is_measured(stopped, easy)
    run.train_run(easy, QUICK, stopped, resume=True)
    assert not evaluate.is_measured(stopped, easy)
    assert not (stopped / recorder.SCORES).exists()


def test_scores_of_other_weights_do_not_count(easy: Dataset, stopped: Path) -> None:
    evaluate.measure_run(stopped, easy)
    scores = (stopped / recorder.SCORES).read_bytes()
    run.train_run(easy, QUICK, stopped, resume=True)
    (stopped / recorder.SCORES).write_bytes(scores)
    assert not evaluate.is_measured(stopped, easy)
    with pytest.raises(DataError, match=r"card\.json: is missing, or has changed since the run was measured"):
        publish([stopped], easy, stopped.parent / "bundle")


def test_a_best_epoch_after_the_checkpoint_is_evaluated_again(easy: Dataset, done: Path, stopped: Path) -> None:
    card = bundle.read_card(stopped)  # as if a later, better epoch had been saved before a kill
    later = card.training.model_copy(update={"selection_loss": 0.0, "best_epoch": card.training.best_epoch + 1})
    digest = save_weights(stopped, networks.build("lensnet", 2))
    bundle.save_card(stopped, card.model_copy(update={"training": later, "weights_sha256": digest}))
    run.train_run(easy, QUICK, stopped, resume=True)
    assert weights(stopped) == weights(done)
    assert bundle.read_card(stopped).training.selection_loss == bundle.read_card(done).training.selection_loss


def flip(path: Path, at: float) -> None:
    """Flip one bit of a file, at this share of its length."""
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 1
    path.write_bytes(data)


def test_damaged_best_weights_are_not_gone_on_with(easy: Dataset, stopped: Path) -> None:
    flip(stopped / bundle.WEIGHTS, 0.9)
    with pytest.raises(
        DataError, match=r"weights\.safetensors: is missing or damaged; needs the best weights.*--force"
    ):
        run.train_run(easy, QUICK, stopped, resume=True)
    assert checkpoint.last_step(stopped) == 26


def test_a_lost_card_does_not_lose_the_best_weights(easy: Dataset, done: Path, stopped: Path) -> None:
    (stopped / bundle.CARD).unlink()
    assert run.train_run(easy, QUICK, stopped, resume=True)
    assert weights(stopped) == weights(done)


def test_best_weights_that_are_damaged_while_training_get_no_fresh_hash(
    easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = recorder.TrainingRecorder.close

    def damaging(self: recorder.TrainingRecorder) -> None:
        flip(self.out / bundle.WEIGHTS, 0.9)
        close(self)

    monkeypatch.setattr(recorder.TrainingRecorder, "close", damaging)
    with pytest.raises(BundleError, match="is not what its card was written for"):
        run.train_run(easy, QUICK, tmp_path / "run")


@pytest.mark.parametrize("spoil", [lambda log: flip(log, 0.1), lambda log: log.write_bytes(log.read_bytes()[:99])])
def test_a_log_that_was_cut_or_changed_is_not_gone_on_with(
    easy: Dataset, stopped: Path, spoil: Callable[[Path], object]
) -> None:
    spoil(stopped / recorder.LOG)
    with pytest.raises(DataError, match=r"log\.jsonl was cut or changed before them.*Copy them back, or begin again"):
        run.train_run(easy, QUICK, stopped, resume=True)


def test_a_log_that_was_cut_after_a_checkpoint_is_replayed_from_there(easy: Dataset, done: Path, stopped: Path) -> None:
    log = stopped / recorder.LOG
    log.write_bytes(log.read_bytes()[:-9])
    with pytest.warns(UserWarning, match=r"log\.jsonl was cut or changed before it; the checkpoint before it is used"):
        assert run.train_run(easy, QUICK, stopped, resume=True)
    assert weights(stopped) == weights(done)
    assert [row["loss"] for row in rows(stopped, "step")] == [row["loss"] for row in rows(done, "step")]
    assert len(recorder.read_log(stopped, bundle.read_card(stopped))) == log.stat().st_size


def test_the_card_of_a_complete_run_covers_its_whole_log(done: Path, tmp_path: Path) -> None:
    card = bundle.read_card(done)
    assert recorder.read_log(done, card) == (done / recorder.LOG).read_bytes()
    shutil.copyfile(done / recorder.LOG, tmp_path / recorder.LOG)
    flip(tmp_path / recorder.LOG, 0.5)
    with pytest.raises(DataError, match=r"log\.jsonl: is missing or damaged; needs the log that the training left"):
        recorder.read_log(tmp_path, card)


def test_a_run_killed_before_its_first_checkpoint_begins_again(easy: Dataset, done: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / recorder.LOG).write_text("")
    assert run.train_run(easy, QUICK, tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(done)


def test_a_complete_run_is_left_alone_whatever_checkpoints_it_has(easy: Dataset, stopped: Path, tmp_path: Path) -> None:
    left = {path.name: path.read_bytes() for path in (stopped / checkpoint.FOLDER).iterdir()}
    run.train_run(easy, QUICK, stopped, resume=True)
    evaluate.measure_run(stopped, easy)
    (stopped / checkpoint.FOLDER).mkdir()
    for name, data in left.items():
        (stopped / checkpoint.FOLDER / name).write_bytes(data[:-1])
    assert run.train_run(easy, QUICK, stopped, resume=True)
    assert evaluate.is_measured(stopped, easy)
    assert not (stopped / checkpoint.FOLDER).exists()


def test_the_checkpoint_before_a_damaged_one_leads_to_the_same_weights(
    easy: Dataset, done: Path, stopped: Path
) -> None:
    last = sorted((stopped / checkpoint.FOLDER).iterdir())[-1]
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="is damaged, or .*; the checkpoint before it is used"):
        assert run.train_run(easy, QUICK, stopped, resume=True)
    assert weights(stopped) == weights(done)
    assert [row["step"] for row in rows(stopped, "step")] == [row["step"] for row in rows(done, "step")]


def test_a_checkpoint_of_another_version_is_refused_and_kept(
    easy: Dataset, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wider(networks.LensNet):
        def __init__(self, n_classes: int, channels: int) -> None:
            super().__init__(n_classes, channels)
            self.more = torch.nn.Linear(2, 2)

    monkeypatch.setattr(networks, "LensNet", Wider)
    with pytest.raises(DataError, match="written by another version of sublens"):
        run.train_run(easy, QUICK, stopped, resume=True)
    assert checkpoint.last_step(stopped) == 26


def test_resuming_with_other_threads_warns(easy: Dataset, stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    with pytest.warns(UserWarning, match="was begun with 1 threads.*its weights may differ"):
        run.train_run(easy, QUICK, stopped, resume=True)


def test_epochs_of_any_length_are_resumed(easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig(train=TrainConfig(epochs=3, epoch_images=150, batch_size=16))
    run.train_run(easy, config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stopped_at(patch, 13)
        run.train_run(easy, config, tmp_path / "halves")
    run.train_run(easy, config, tmp_path / "halves", resume=True)
    assert weights(tmp_path / "halves") == weights(tmp_path / "whole")


def test_signals_find_their_handlers_again(easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def own(number: int, frame: object) -> None: ...

    stopped_at(monkeypatch, 3)
    before = signal.signal(signal.SIGINT, own)
    try:
        assert not run.train_run(easy, QUICK, tmp_path / "run")
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)


def test_two_trainings_cannot_share_a_folder(easy: Dataset, tmp_path: Path) -> None:
    with lock_folder(tmp_path / "run"), pytest.raises(DataError, match="another process is writing there"):
        (tmp_path / "run" / recorder.LOG).touch()  # as of one that was begun a moment ago
        files_before = sorted((tmp_path / "run").iterdir())
        run.train_run(easy, QUICK, tmp_path / "run", resume=True)
    assert sorted((tmp_path / "run").iterdir()) == files_before


def test_an_unfinished_run_is_not_published(easy: Dataset, stopped: Path, tmp_path: Path) -> None:
    evaluate.measure_run(stopped, easy)
    with pytest.raises(DataError, match="is not complete"):
        publish([stopped], easy, tmp_path / "bundle")
