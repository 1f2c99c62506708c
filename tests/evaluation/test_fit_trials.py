"""What lens models tell of classes, calibrated on simulations; the fits themselves are stand-ins here."""

import numpy as np
import pytest

from sublens.errors import ImageError
from sublens.evaluation import fit_trials
from sublens.inference import lens_fits
from sublens.inference.predictor import Predictor
from sublens.modelling.fit import LensFit
from sublens.modelling.fitter import Start
from sublens.modelling.lens_image import LensImage
from sublens.modelling.sensitivity import Sensitivity
from sublens.surveys.presets import preset


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits that gain by subhaloes what the pixels in the corner happen to be, and one in ten of which fails."""

    def fit(image: LensImage, start: Start) -> LensFit:
        rng = np.random.default_rng(abs(hash(image.pixels[:2].tobytes())) % 2**32)
        if rng.random() < 0.1:
            raise ImageError("its pixels tell nothing of a lens", need="a lens", next="Look.")
        none = np.zeros((1, 1))
        return LensFit(
            parameters=np.array([np.log(start.theta_e), *np.zeros(10)]),
            scatter=0.01,
            string_gain=float(rng.exponential(3)),
            subhalo_gain=float(rng.exponential(3)),
            sensitivity=Sensitivity(float(rng.normal(4, 1)), 0.3),
            n_effective=60.0,
            chi2=float(rng.uniform(0.3, 0.8)),
            image=none,
            model=none,
            galaxy=none,
            residual=none,
            source=none,
            source_step=0.02,
        )

    monkeypatch.setattr(lens_fits, "fit", fit)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.load("lensnet-hst")


@pytest.mark.usefixtures("stand_ins")
def test_a_calibration_has_classes_and_a_limit(predictor: Predictor) -> None:
    told = fit_trials.calibrate(predictor, preset("hst-acs"), 60, 24)
    assert 40 <= told.n < 60
    assert len(told.cutoffs) == len(told.weights) == 3
    assert told.detection
    assert told.detection.n <= 24
    assert 0 < told.detection.p_no < 1
    assert 0.3 < told.greatest_chi2 < 0.8


@pytest.mark.usefixtures("stand_ins")
def test_trials_keep_what_the_network_said(predictor: Predictor) -> None:
    _, pictures = fit_trials.classes(preset("hst-acs"), 5, 12)
    told = fit_trials.calibrate(predictor, preset("hst-acs"), 60, 24)
    plain, changed = fit_trials.run(predictor, pictures), fit_trials.run(predictor, pictures, told)
    assert [answer for answer, _ in plain] == [answer for answer, _ in changed]
    for (answer, row), (_, other) in zip(plain, changed, strict=True):
        assert row.prediction
        assert other.prediction
        assert row.prediction.probs == answer.probs
        assert (other.prediction.probs == answer.probs) == (other.fit is None or other.fit.chi2 > told.greatest_chi2)
        assert sum(other.prediction.probs.values()) == pytest.approx(1)


def test_subhaloes_lie_in_smooth_lenses() -> None:
    survey = preset("hst-acs")
    log_mass, pictures = fit_trials.one_subhalo(survey, 9, 6)
    assert len(log_mass) == len(pictures) <= 6
    assert ((log_mass >= 9) & (log_mass <= 11.5)).all()
    again, _ = fit_trials.one_subhalo(survey, 9, 6)
    assert again.tolist() == log_mass.tolist()
