import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sublens import workflows
from sublens.config import ModelConfig, RunConfig, SplitConfig, TrainConfig
from sublens.data import dataset, generate, store
from sublens.data.dataset import Dataset
from sublens.errors import BundleError, ConfigError, DataError
from sublens.evaluation import evaluate
from sublens.inference.predictor import Predictor
from sublens.models import bundle
from sublens.progress import Advance
from sublens.sim.population import Split
from sublens.storage.files import sha256
from sublens.surveys.survey import Survey
from sublens.training import recorder, run

CONFIGS = [RunConfig(model=ModelConfig(name=name), train=TrainConfig(epochs=1)) for name in ("lensnet", "resnet10t")]


@pytest.fixture
def easy(easy_folder: Path) -> Dataset:
    return dataset.open_dataset(easy_folder, SplitConfig(selection=0.25))


def modified(out: Path) -> dict[str, float]:
    return {folder.name: (folder / bundle.WEIGHTS).stat().st_mtime_ns for folder in (out / "runs").iterdir()}


def test_the_manifest_hash_does_not_depend_on_the_workers(tmp_path: Path, small_survey: Survey) -> None:
    for workers in (1, 2):
        generate.simulate(small_survey, {"train": 70, "test": 20}, tmp_path / str(workers), seed=3, workers=workers)
    assert sha256(tmp_path / "1" / store.MANIFEST) == sha256(tmp_path / "2" / store.MANIFEST)


def test_another_seed_gives_other_images(tmp_path: Path, small_survey: Survey) -> None:
    for seed in (1, 2):
        generate.simulate(small_survey, {"train": 6}, tmp_path / str(seed), seed=seed)
    first, second = (store.read_manifest(tmp_path / str(seed)).files["train/images-00000.npy"] for seed in (1, 2))
    assert first != second


def test_a_larger_data_set_begins_with_the_smaller_one(tmp_path: Path, small_survey: Survey) -> None:
    for n in (6, 12):
        generate.simulate(small_survey, {"train": n}, tmp_path / str(n), seed=1)
    few, many = (store.read_split(tmp_path / n, store.read_manifest(tmp_path / n), "train")[0] for n in ("6", "12"))
    assert (many.counts[:6] == few.counts).all()


def test_folder_and_store_hold_the_same_simulation(tmp_path: Path, small_survey: Survey, small_store: Path) -> None:
    generate.simulate(small_survey, {"train": 120, "test": 30}, tmp_path / "f", seed=5, form="folder")
    folder, packed = (dataset.open_dataset(path, SplitConfig(selection=0.2)) for path in (tmp_path / "f", small_store))
    assert folder.classes == packed.classes
    images = [{row.tobytes() for row in data.test.counts(range_of(data.test))} for data in (folder, packed)]
    assert images[0] == images[1]


def range_of(part: dataset.Part) -> Any:
    return part.rows - part.rows[0]


def test_the_whole_job_leaves_runs_and_a_report(easy: Dataset, tmp_path: Path) -> None:
    html = workflows.run_all(easy, CONFIGS, tmp_path / "out")
    assert html.is_file()
    for name in ("lensnet", "resnet10t"):
        assert json.loads((tmp_path / "out" / "runs" / name / recorder.SCORES).read_text())["n"] == 40
        assert name in html.read_text()


def test_a_second_call_trains_nothing_again(easy: Dataset, tmp_path: Path) -> None:
    workflows.run_all(easy, CONFIGS[:1], tmp_path)
    before = modified(tmp_path)
    workflows.run_all(easy, CONFIGS, tmp_path)
    assert modified(tmp_path).items() > before.items()


def test_force_trains_everything_again(easy: Dataset, tmp_path: Path) -> None:
    workflows.run_all(easy, CONFIGS[:1], tmp_path)
    before = modified(tmp_path)
    workflows.run_all(easy, CONFIGS[:1], tmp_path, force=True)
    assert modified(tmp_path) != before


def test_an_interrupted_network_is_trained_again(easy: Dataset, tmp_path: Path) -> None:
    workflows.run_all(easy, CONFIGS[:1], tmp_path)
    card = bundle.read_card(tmp_path / "runs" / "lensnet")
    stopped = card.model_copy(update={"training": card.training.model_copy(update={"interrupted": True})})
    bundle.save_card(tmp_path / "runs" / "lensnet", stopped)
    workflows.run_all(easy, CONFIGS[:1], tmp_path)
    assert not bundle.read_card(tmp_path / "runs" / "lensnet").training.interrupted


def test_other_settings_are_not_mixed_into_a_finished_job(easy: Dataset, tmp_path: Path) -> None:
    workflows.run_all(easy, CONFIGS[:1], tmp_path)
    other = [CONFIGS[0].model_copy(update={"train": TrainConfig(epochs=2)})]
    with pytest.raises(DataError, match=r"(?s)holds a run with other settings.*train.epochs: 1 before, 2 now.*--force"):
        workflows.run_all(easy, other, tmp_path)


def test_a_network_that_comes_with_sublens_is_measured_in_a_copy(
    easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.train_run(easy, CONFIGS[0], tmp_path / "shelf" / "ours")
    monkeypatch.setattr(bundle, "BUNDLE_FOLDERS", (tmp_path / "shelf",))
    with pytest.raises(ConfigError, match="ours: comes with sublens; needs a folder to write to. Add --out"):
        evaluate.copy_or_own_folder(Path("ours"), None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="comes with sublens"):
        evaluate.copy_or_own_folder(Path("shelf/ours"), None)
    with pytest.raises(BundleError, match="not a trained model"):
        evaluate.copy_or_own_folder(tmp_path, tmp_path.parent / "copy")
    copy = evaluate.copy_or_own_folder(Path("ours"), tmp_path / "copy")
    assert evaluate.measure_run(copy, easy)["n"] == 40
    assert not (tmp_path / "shelf" / "ours" / recorder.SCORES).exists()


def test_the_demo_copies_networks_whole_and_once(
    easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.train_run(easy, CONFIGS[0], tmp_path / "shelf" / "ours")
    monkeypatch.setattr(bundle, "BUNDLE_FOLDERS", (tmp_path / "shelf",))
    (copy,) = workflows.copy_shipped(easy.name, tmp_path / "runs")
    expected = Predictor.load("ours").probs(easy.test.counts(np.arange(3)))
    (copy / bundle.GRAPH).unlink()  # as a copy of an earlier version lacks it
    workflows.copy_shipped(easy.name, tmp_path / "runs")
    assert (Predictor.load(copy, "onnxruntime").probs(easy.test.counts(np.arange(3))) == expected).all()
    before = {path: path.stat().st_mtime_ns for path in copy.iterdir()}
    assert workflows.copy_shipped(easy.name, tmp_path / "runs") == [copy]
    assert workflows.copy_shipped("hst-acs", tmp_path / "others") == []
    assert {path: path.stat().st_mtime_ns for path in copy.iterdir()} == before


@pytest.mark.slow
def test_a_hurried_demo_compares_what_is_shipped_with_what_it_trained(tmp_path: Path) -> None:
    html = workflows.demo(tmp_path / "demo", 0.4, workers=len(os.sched_getaffinity(0)))
    text = html.read_text()
    assert all(name in text for name in [*bundle.shipped_for("common-test-1"), "lensnet-live"])


@pytest.mark.parametrize("form", ["folder", "fits", "store"])
def test_force_replaces_what_was_simulated(tmp_path: Path, small_survey: Survey, form: generate.Form) -> None:
    for seed in (1, 2):
        generate.simulate(small_survey, {"train": 3}, tmp_path / "s", seed=seed, form=form, force=True)
    manifest = json.loads((tmp_path / "s" / ("manifest.json" if form == "store" else "simulation.json")).read_text())
    assert manifest.get("origin", manifest)["seed"] == 2


def test_a_continued_simulation_counts_what_was_done(
    tmp_path: Path, small_survey: Survey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sublens.sim.slices.SLICE_PIXELS", 4 * 48**2)
    done: list[float] = []

    @contextmanager
    def bar(title: str, total: float) -> Iterator[Advance]:
        def advance(so_far: float, words: str) -> None:
            done.append(so_far)
            if len(done) == 5:
                raise KeyboardInterrupt

        yield advance

    sizes: dict[Split, int] = {"train": 8, "test": 12}
    with suppress(KeyboardInterrupt):
        generate.simulate(small_survey, sizes, tmp_path / "s", seed=1, bar=bar)
    assert done == [0, 4, 8, 8, 12]
    generate.simulate(small_survey, sizes, tmp_path / "s", seed=1, bar=bar)
    assert done[5:] == [8, 12, 16, 20]


def test_networks_are_not_compared_on_a_survey(small_dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="small is a survey; needs a data set with a test part"):
        workflows.run_all(replace(small_dataset, is_endless=True), CONFIGS, tmp_path / "out")
    assert not (tmp_path / "out").exists()
