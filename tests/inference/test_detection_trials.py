"""Simulated lenses with and without a subhalo, and limits fitted to a network's answers for them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from conftest import changed
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from sublens.config import InputConfig
from sublens.data.dataset import Dataset
from sublens.evaluation import sensitivity
from sublens.inference import detection_trials
from sublens.inference.engines import Outputs
from sublens.inference.predict_dataset import eager
from sublens.inference.predictor import Predictor
from sublens.models.arc import PLAIN
from sublens.models.detection import FALSE_POSITIVES, Detection
from sublens.models.networks import build
from sublens.observation.defects import Marks
from sublens.observation.exposure import observe
from sublens.sim.population import CLASSES
from sublens.surveys.survey import Survey
from sublens.surveys.truth import Truth

MIDDLE, STEEPNESS = 9.4, 6.0
"""log10 of the mass that the network below finds every other time, and how steeply it finds more."""


def marked(truth: Truth, images: Tensor, survey: Survey, hits: Marks, seeds: Sequence[int]) -> NDArray[np.uint16]:
    """Images in whose first pixel log10 of the subhalo's mass is noted, in thousandths."""
    counts = observe(truth, images, survey, hits, seeds)
    masses = np.bincount(truth.owners(), truth.subhaloes["mass_msun"], minlength=len(truth))
    counts[:, 0, 0] = np.rint(1000 * np.log10(np.maximum(masses, 1)))
    return counts


class Lawful:
    """An engine that finds a subhalo by chance, which grows with the mass in the first pixel up to `log_most`."""

    log_most = np.inf

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def __call__(self, counts: NDArray[np.uint16]) -> Outputs:
        log_mass = counts[:, 0, 0] / 1000
        chance = np.where(log_mass < self.log_most, expit(STEEPNESS * (log_mass - MIDDLE)), 0)
        is_clear = self._rng.random(len(counts)) < chance
        p_no = np.where(is_clear, 1e-6, self._rng.random(len(counts)))
        return Outputs(np.log(np.stack([p_no, (1 - p_no) / 2, (1 - p_no) / 2], 1)), None, [])


@pytest.fixture
def predictor(monkeypatch: pytest.MonkeyPatch) -> Predictor:
    monkeypatch.setattr(detection_trials, "observe", marked)
    return Predictor(Lawful(), CLASSES, (48, 48), InputConfig())


@pytest.fixture
def fitted(predictor: Predictor, small_survey: Survey) -> Detection:
    return detection_trials.fit(predictor, small_survey, 800)


def test_networks_of_simulated_signal_to_noise_alone_get_a_fit(
    predictor: Predictor, small_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detection_trials, "fit", lambda *arguments: arguments)
    assert small_dataset.survey
    camera = small_dataset.survey.camera.model_copy(update={"pixels": "signal-to-noise"})
    survey = small_dataset.survey.model_copy(update={"camera": camera})
    fits = [
        detection_trials.fit_where_known(predictor, dataset)
        for dataset in (small_dataset, replace(small_dataset, survey=None), replace(small_dataset, survey=survey))
    ]
    assert [fit is None for fit in fits] == [True, True, False]


def test_the_threshold_is_passed_by_a_tenth_of_the_smooth_lenses(fitted: Detection) -> None:
    assert fitted.p_no == pytest.approx(FALSE_POSITIVES, abs=0.03)


def test_limits_of_a_known_law_are_recovered(predictor: Predictor, fitted: Detection, small_survey: Survey) -> None:
    x = detection_trials.run(predictor, small_survey, range(900, 1000)).x
    assert np.median(fitted.log_limits(x)) == pytest.approx(MIDDLE + np.log(8) / STEEPNESS, abs=0.1)


def test_nine_in_ten_are_found_at_the_limit(predictor: Predictor, fitted: Detection, small_survey: Survey) -> None:
    check = sensitivity.check_limits(predictor, fitted, small_survey, 600)
    shares = [row.share["value"] for row in check.bins]
    assert np.mean(shares) == pytest.approx(0.9, abs=0.04)
    assert sum(row.n for row in check.bins) > 590
    assert check.false_positives["value"] == pytest.approx(FALSE_POSITIVES, abs=0.05)
    assert check.without_limit < 0.01


def test_masses_that_the_network_finds_less_often_again_are_left_out(
    predictor: Predictor, small_survey: Survey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lawful, "log_most", 10.7)
    fitted = detection_trials.fit(predictor, small_survey, 800)
    x = detection_trials.run(predictor, small_survey, range(900, 1000)).x
    assert 10 <= fitted.log_most <= 10.75
    assert np.nanmedian(fitted.log_limits(x)) == pytest.approx(MIDDLE + np.log(8) / STEEPNESS, abs=0.1)


def test_a_network_that_finds_nothing_has_no_limits(
    predictor: Predictor, small_survey: Survey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lawful, "log_most", 0)
    fitted = detection_trials.fit(predictor, small_survey, 400)
    x = detection_trials.run(predictor, small_survey, range(900, 1000)).x
    assert np.isnan(fitted.log_limits(x)).mean() > 0.9


def test_heavier_subhaloes_are_found_more_often(predictor: Predictor, fitted: Detection, small_survey: Survey) -> None:
    shares = [row.share["value"] for row in sensitivity.completeness(predictor, fitted, small_survey, 300)]
    assert len(shares) == 3
    assert shares == sorted(shares)


def test_a_lens_without_a_limit_gets_no_subhalo(predictor: Predictor, small_survey: Survey) -> None:
    trials = detection_trials.run(
        predictor, small_survey, range(6), choose_masses=lambda x, rng: np.where(np.arange(len(x)) < 4, np.nan, 9.0)
    )
    assert np.isnan(trials.p_no).tolist() == [True] * 4 + [False] * 2


def test_a_subhalo_heavier_than_its_halo_is_left_out(predictor: Predictor, small_survey: Survey) -> None:
    trials = detection_trials.run(predictor, small_survey, range(3), choose_masses=lambda x, rng: np.full(3, 12.5))
    assert np.isnan(trials.p_no).all()


def test_every_lens_is_a_smooth_one_of_its_own(predictor: Predictor, small_survey: Survey) -> None:
    whole = detection_trials.run(predictor, small_survey, range(4)).x
    later = detection_trials.run(predictor, small_survey, range(2, 4)).x
    assert np.array_equal(whole[2:], later)
    assert len(np.unique(whole[:, 0])) == 4


def test_lenses_are_simulated_as_the_survey_has_them_in_signal_to_noise() -> None:
    survey = changed("euclid", camera={"n_pixels": 48, "supersampling": 2, "pixels": "signal-to-noise"})
    config = InputConfig(transform="signal-to-noise")
    network = eager(build("lensnet", 3, config.n_channels).eval(), CLASSES, (48, 48), config)
    trials = detection_trials.run(network, survey, range(3))
    arc_sn = np.exp(trials.x[:, PLAIN.index("ln_arc_sn")])
    assert (arc_sn > 50).all()
    assert np.isfinite(trials.p_no).all()
