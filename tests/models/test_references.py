"""The trained networks in bundles/: whole, small, as good as their cards say, and right on real images."""

from pathlib import Path

import numpy as np
import pytest

from sublens import config, metrics
from sublens.images.formats import read_archive
from sublens.inference.predictor import BATCH, Predictor
from sublens.models import bundle, networks
from sublens.sim.population import CLASSES
from sublens.sim.render import simulate
from sublens.surveys import presets
from sublens.surveys.presets import preset

ROOT = Path(__file__).parents[2]
COMMON = sorted(bundle.shipped_for("common-test-1"))
OTHERS = sorted(bundle.shipped().keys() - COMMON)
"""Networks for other surveys."""
MOST_BYTES, MOST_BYTES_OF_OTHERS = 90e6, 3e6


def test_the_default_network_is_shipped() -> None:
    assert "lensnet" in COMMON


def test_those_for_the_benchmark_together_are_small_enough_to_clone() -> None:
    assert sum(n_bytes(bundle.locate(name)) for name in COMMON) < MOST_BYTES


@pytest.mark.parametrize("name", OTHERS)
def test_one_for_another_survey_is_small(name: str) -> None:
    assert n_bytes(bundle.locate(name)) < MOST_BYTES_OF_OTHERS


@pytest.mark.parametrize("name", OTHERS)
def test_the_card_of_one_for_another_survey_is_complete(name: str) -> None:
    card = bundle.read_card(bundle.locate(name))
    assert card.data.name in presets.names()
    camera = preset(card.data.name).camera
    assert (card.image_shape, networks.pixels_of(card.input)) == ((camera.n_pixels, camera.n_pixels), camera.pixels)
    assert None not in (card.map, card.detection, card.calibration, card.graph, card.log, card.rounding)
    assert card.has_macro
    assert all(score.auc_low < score.auc < score.auc_high for score in card.scores)
    assert card.scores[0].selection_loss == card.training.selection_loss


@pytest.mark.parametrize("name", OTHERS)
def test_one_for_another_survey_does_on_fresh_images_what_its_card_says(name: str) -> None:
    card = bundle.read_card(bundle.locate(name))
    low, high = interval(name, card.data.name, n=600)
    assert low <= card.scores[0].auc <= high


@pytest.mark.parametrize("name", COMMON)
def test_its_card_holds_published_scores_on_images_it_was_not_chosen_by(name: str) -> None:
    card = bundle.read_card(bundle.locate(name))
    assert card.network == name
    assert card.rounding is not None
    assert card.rounding < 0.002
    assert all(score.n == 7_500 and score.auc_low < score.auc < score.auc_high for score in card.scores)
    assert len({score.tested_on for score in card.scores}) == 1
    rivals = [score.selection_loss for score in card.scores if score.trained_on == card.data.hash]
    assert card.scores[0].selection_loss == min(rivals) == card.training.selection_loss


@pytest.mark.parametrize("name", COMMON)
def test_its_settings_are_those_of_its_recipe(name: str) -> None:
    settings = bundle.read_card(bundle.locate(name)).settings
    recipe = config.load(ROOT / "scripts" / "recipes" / f"{name}-simulator.toml", [f"train.seed={settings.train.seed}"])
    assert networks.resolved(recipe, (150, 150)) == settings


@pytest.mark.parametrize("name", COMMON)
def test_it_does_on_fresh_images_what_its_card_says(name: str) -> None:
    low, high = interval(name, "common-test-1", n=1_000)
    assert low <= bundle.read_card(bundle.locate(name)).scores[0].auc <= high


@pytest.mark.parametrize("name", COMMON)
def test_it_is_right_on_the_real_images(name: str, real_data: Path) -> None:
    paths = sorted((real_data / "common_test_1").glob("*/*.npy"))
    predictions = Predictor.load(name).files(paths)
    assert len(paths) == 15
    assert sum(prediction.label == path.parent.name for prediction, path in zip(predictions, paths, strict=True)) >= 14


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMON)
def test_real_smooth_lenses_are_recognised_like_simulated_ones(name: str, real_data: Path) -> None:
    real = read_archive(real_data / "common_test_1_no_1000.npz")
    _, simulated = simulate(preset("common-test-1"), 5, "test", range(0, 3 * len(real), 3))
    ours, theirs = ((probs_of(Predictor.load(name), counts).argmax(1) == 0).mean() for counts in (simulated, real))
    assert abs(ours - theirs) < 0.02 * ours


def n_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def interval(name: str, survey: str, n: int) -> tuple[float, float]:
    """The 95 % interval of the macro AUC of a network on n fresh images of a survey."""
    truth, pixels = simulate(preset(survey), 6, "test", range(n))
    probs, labels = probs_of(Predictor.load(name), pixels), truth.scenes["label"].astype(np.int64)
    auc = metrics.score(probs, labels, CLASSES)["auc_macro"]
    return auc["low"], auc["high"]


def probs_of(predictor: Predictor, counts: np.ndarray) -> metrics.Floats:
    starts = range(0, len(counts), BATCH)
    return np.concatenate([predictor.probs(counts[start : start + BATCH]) for start in starts])
