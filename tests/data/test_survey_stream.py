from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import changed

from sublens.config import InputConfig, SplitConfig, TrainConfig
from sublens.data import generate, store, survey_stream
from sublens.data.dataset import Part, open_dataset
from sublens.data.survey_stream import Cells, Sample, SurveyStream
from sublens.errors import ConfigError
from sublens.images.signal_to_noise import LEAST, STEP
from sublens.models.macro import CONTAMINANT
from sublens.parallel.mapper import HERE, Mapper
from sublens.parallel.torchrun import Ranks
from sublens.sim.population import CLASSES, draw
from sublens.sim.render import render, simulate
from sublens.sim.slices import slice_length
from sublens.surveys.survey import Survey
from sublens.training.loop import BatchSource

CELLS = Cells(6, 7.2)


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is computed in this process; few fixed images, and a small pool."""

    @contextmanager
    def here(n: int, remedy: str) -> Iterator[Mapper]:
        yield HERE

    monkeypatch.setattr(survey_stream, "open_processes", here)
    monkeypatch.setattr(survey_stream, "BATCHES_AT_ONCE", 24)
    monkeypatch.setattr("sublens.sim.slices.SLICE_PIXELS", 20 * 48 * 48)
    for name in ("SELECTION", "REFERENCE", "TEST", "LEAST_POOL"):
        monkeypatch.setattr(survey_stream, name, 40)


def batches(stream: SurveyStream, kind: str, start: int, n: int) -> list[Sample]:
    samples = stream.pooled(start) if kind == "pooled" else stream.rendered(start, "cpu")
    with closing(samples):
        return list(islice(samples, n))


def same(ours: Sample, theirs: Sample) -> bool:
    return all(a is not None and b is not None and torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def n_different(counts: torch.Tensor) -> int:
    return len(np.unique(counts.flatten(1).numpy(), axis=0))


@pytest.mark.parametrize("kind", ["pooled", "rendered"])
def test_a_batch_depends_on_its_step_alone(small_survey: Survey, kind: str) -> None:
    stream = SurveyStream(small_survey, 8, 1, CELLS, cache=60)
    whole = batches(stream, kind, 0, 60)
    for start in (1, 3, 41):
        assert all(map(same, batches(stream, kind, start, 3), whole[start : start + 3]))


@pytest.mark.parametrize("kind", ["pooled", "rendered"])
def test_another_seed_gives_other_images(small_survey: Survey, kind: str) -> None:
    first, second = (batches(SurveyStream(small_survey, 8, seed, CELLS), kind, 0, 1)[0] for seed in (1, 2))
    assert not torch.equal(first.counts, second.counts)


@pytest.mark.parametrize("kind", ["pooled", "rendered"])
def test_labels_and_masses_are_those_of_the_images(small_survey: Survey, kind: str) -> None:
    for sample in batches(SurveyStream(small_survey, 8, 1, CELLS), kind, 0, 6):
        assert sample.msun is not None
        assert torch.equal(sample.msun.sum((1, 2)) == 0, sample.labels == CLASSES.index("no"))
        assert (sample.counts.amin((1, 2)) == 0).all()


@pytest.fixture(scope="module")
def telescope_survey() -> Survey:
    """Drawn point-spread functions, drizzled noise and defects, as signal to noise."""
    psf = {"profile": "gaussian", "fwhm": {"normal": [0.4, 0.02]}}
    camera = {"n_pixels": 48, "pixel_scale": 0.15, "psf": psf, "pixels": "signal-to-noise", "noise_correlation": 0.7}
    return changed("common-test-1", camera=camera, defects={"cosmic_rays": {"number": 9, "masked": 1}})


@pytest.mark.parametrize("kind", ["pooled", "rendered"])
def test_signal_to_noise_is_streamed_with_its_masks(telescope_survey: Survey, kind: str) -> None:
    stream = SurveyStream(telescope_survey, 24, 1, CELLS, cache=60)
    for sample, again in zip(*(batches(stream, kind, 0, 2) for _ in range(2)), strict=True):
        assert same(sample, again)
        assert ((sample.counts == 0).sum((1, 2)) > 9).all()
        sky = sample.counts[:, :8, :8][sample.counts[:, :8, :8] > 0] * STEP + LEAST
        assert sky.std().item() == pytest.approx(1 - 0.7 / 3, rel=0.15)


def test_a_store_keeps_signal_to_noise_and_the_truth_of_the_observation(
    telescope_survey: Survey, tmp_path: Path
) -> None:
    generate.simulate(telescope_survey, {"train": 8}, tmp_path / "s", seed=3)
    (chunk,) = store.read_split(tmp_path / "s", store.read_manifest(tmp_path / "s"), "train")
    truth, planes = simulate(telescope_survey, 3, "train", range(8))
    assert chunk.truth is not None
    np.testing.assert_array_equal(chunk.truth.extra, truth.extra)
    np.testing.assert_array_equal(chunk.counts, planes)


def test_every_image_rendered_for_a_gpu_is_new(small_survey: Survey) -> None:
    counts = torch.cat([batch.counts for batch in batches(SurveyStream(small_survey, 8, 1), "rendered", 0, 9)])
    assert n_different(counts) == 72


def test_images_rendered_for_a_gpu_are_the_scene_with_its_noise(small_survey: Survey) -> None:
    counts = torch.cat([batch.counts for batch in batches(SurveyStream(small_survey, 24, 1), "rendered", 0, 2)])
    truth = draw(small_survey, 1, "train", range(80, 128))
    rates = render(truth, small_survey) + torch.from_numpy(truth.scenes["background"]).float()[:, None, None]
    excess = counts - rates
    excess = excess - excess.mean((1, 2), keepdim=True)
    assert (excess.square() / rates).mean().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("reuse", [4, 8])
def test_the_pool_renews_itself_and_keeps_its_size(small_survey: Survey, reuse: int) -> None:
    stream = SurveyStream(small_survey, 8, 1, cache=100, reuse=reuse)
    windows = [stream.window(step) for step in range(200)]
    assert {len(window) for window in windows} == {2, 3, 4, 5}  # blocks of 20 images
    assert windows[-1].start > windows[0].stop
    rendered = windows[-1].stop * slice_length(small_survey) - 40
    assert rendered == pytest.approx(199 * 8 / reuse, abs=20)


@pytest.mark.parametrize("kind", ["pooled", "rendered"])
def test_batches_hold_whole_matched_sets(small_survey: Survey, kind: str) -> None:
    stream = SurveyStream(small_survey, 9, 1, CELLS, cache=60, is_matched=True)
    for sample, again in zip(*(batches(stream, kind, 0, 12) for _ in range(2)), strict=True):
        assert same(sample, again)
        assert (sample.labels.view(3, 3).sort(1).values == torch.arange(3)).all()
        assert sample.macro is not None
        assert (sample.macro.view(3, 3, 3) == sample.macro.view(3, 3, 3)[:, :1]).all()


def test_processes_that_share_matched_sets_see_all_classes(small_survey: Survey) -> None:
    (sample,) = batches(SurveyStream(small_survey, 18, 1, CELLS, cache=60, is_matched=True), "pooled", 0, 1)
    for number in range(6):
        assert set(sample.take(Ranks(number, 6).share).labels.tolist()) == {0, 1, 2}


def test_matched_sets_are_mirrored_together(small_survey: Survey) -> None:
    (chunk,) = survey_stream.fixed_chunks(small_survey, "train", 20)
    part = Part((chunk.counts,), np.arange(20), chunk.labels, chunk.ids, chunk.truth)
    source = BatchSource(part, InputConfig(), TrainConfig(batch_size=32, matched=True), "cpu", endless=small_survey)
    flips = source._flips(0).view(10, 3, 2)
    assert source.size == 30
    assert len(set(map(tuple, flips.view(30, 2).tolist()))) > 2
    assert (flips == flips[:, :1]).all()


@pytest.fixture(scope="module")
def mixed_survey() -> Survey:
    """The small survey as planes of signal to noise, of which two in five training images are no lens."""
    camera = {"n_pixels": 48, "pixel_scale": 0.15, "pixels": "signal-to-noise"}
    return changed("common-test-1", name="mixed", camera=camera, contaminants={"share": 0.4})


@pytest.mark.parametrize("kind", ["pooled", "rendered"])
def test_batches_hold_their_share_of_contaminants_without_substructure(mixed_survey: Survey, kind: str) -> None:
    samples = batches(SurveyStream(mixed_survey, 24, 1, CELLS), kind, 0, 8)
    labels = torch.cat([sample.labels for sample in samples])
    assert (labels == CONTAMINANT).float().mean().item() == pytest.approx(0.4, abs=0.12)
    assert set(labels.tolist()) == {CONTAMINANT, 0, 1, 2}
    assert all((sample.msun[sample.labels == CONTAMINANT] == 0).all() for sample in samples if sample.msun is not None)


def test_fixed_images_hold_no_contaminants(mixed_survey: Survey) -> None:
    plain = mixed_survey.model_copy(update={"contaminants": None})
    fixed, same_fixed = (next(survey_stream.fixed_chunks(survey, "train", 20)) for survey in (mixed_survey, plain))
    assert (fixed.labels >= 0).all()
    assert np.array_equal(fixed.counts, same_fixed.counts)


def test_training_on_a_survey_with_contaminants_tells_them_from_lenses(mixed_survey: Survey) -> None:
    (chunk,) = survey_stream.fixed_chunks(mixed_survey, "train", 20)
    part = Part((chunk.counts,), np.arange(20), chunk.labels, chunk.ids, chunk.truth)
    config = TrainConfig(batch_size=24, flips=False)
    source = BatchSource(part, InputConfig(), config, "cpu", endless=mixed_survey, has_macro=True)
    with closing(source.epochs()) as epochs:
        batch = next(next(epochs))
    assert batch.is_contaminant is not None
    assert 0 < batch.is_contaminant.sum() < 24
    assert torch.equal(batch.is_contaminant == 1, batch.labels == CONTAMINANT)


def test_no_fresh_image_is_a_fixed_one_of_the_same_seed(small_survey: Survey) -> None:
    fixed = np.concatenate([chunk.counts for chunk in survey_stream.fixed_chunks(small_survey, "train", 80)])
    stream = SurveyStream(small_survey, 8, survey_stream.FIXED_SEEDS["train"])
    fresh = torch.cat([batch.counts for batch in batches(stream, "pooled", 0, 9)])
    both = torch.cat([torch.from_numpy(fixed.astype(np.float32)), fresh])
    assert n_different(both) == len(fixed) + n_different(fresh)


def test_a_survey_opens_with_fixed_images_apart_from_the_fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = changed("common-test-1", name="small", camera={"n_pixels": 48, "pixel_scale": 0.15})
    monkeypatch.setattr("sublens.surveys.presets.preset", lambda name: small)
    data = open_dataset(Path("common-test-1"), SplitConfig())
    assert data.is_endless
    assert [len(part) for part in (data.train, data.selection, data.test)] == [40, 40, 0]
    assert not set(data.train.ids) & set(data.selection.ids)
    assert data.hash == open_dataset(tmp_path / "own.toml", SplitConfig(seed=1)).hash


def test_a_folder_of_a_surveys_name_is_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert survey_stream.survey_at(Path("hst")) is not None
    (tmp_path / "hst").mkdir()
    assert survey_stream.survey_at(Path("hst")) is None


def test_a_pool_larger_than_the_memory_is_refused_with_the_largest_that_fits(
    small_survey: Survey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey_stream, "free_memory", lambda: 2 * 48 * 48 * 2 * 700)
    survey_stream.check_cache(small_survey, 700)
    with pytest.raises(ConfigError, match="700 or fewer"):
        survey_stream.check_cache(small_survey, 701)


def test_fixed_training_images_are_in_no_store_of_a_small_seed(small_survey: Survey) -> None:
    (fixed,) = survey_stream.fixed_chunks(small_survey, "train", 6)
    for seed in range(4):
        assert not np.array_equal(fixed.counts, simulate(small_survey, seed, "train", range(6))[1])
