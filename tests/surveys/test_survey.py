import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sublens.config import Frozen, checked
from sublens.errors import ConfigError
from sublens.surveys import camera, defects, light, mass, presets, psf_set, survey
from sublens.surveys.presets import preset
from sublens.surveys.priors import ALMOST_ONE, Prior
from sublens.surveys.survey import Survey

TEXT = presets.source("common-test-1").read_text()


def prior(tree: object) -> Prior:
    return Prior.model_validate(tree)


def reading(tmp_path: Path, text: str) -> Survey:
    (tmp_path / "mine.toml").write_text(text)
    return preset(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize(
    ("tree", "distribution"),
    [
        ({"uniform": [2, 5]}, stats.uniform(2, 3)),
        ({"normal": [1, 0.5]}, stats.norm(1, 0.5)),
        ({"log_uniform": [0.1, 10]}, stats.loguniform(0.1, 10)),
        ({"power_law": [-1, 0.1, 10]}, stats.loguniform(0.1, 10)),
        ({"truncated_normal": [2, 0.5, 1, 2.5]}, stats.truncnorm(-2, 1, 2, 0.5)),
        ({"power_law": [1, 0, 2]}, None),
        ({"power_law": [2, 0.001, 3]}, stats.powerlaw(3, scale=3)),
    ],
)
def test_priors_are_the_distributions_of_their_names(tree: object, distribution: object) -> None:
    if distribution is None:
        with pytest.raises(ValueError, match="0 < low <= high"):
            prior(tree)
        return
    u = np.random.default_rng(0).random(4000)
    assert stats.kstest(prior(tree).quantile(u), distribution.cdf).pvalue > 1e-3  # type: ignore[attr-defined]


@given(st.floats(0.5, 60), st.floats(0, ALMOST_ONE))
def test_the_poisson_prior_inverts_the_distribution(mean: float, u: float) -> None:
    k = int(prior({"poisson": mean}).quantile(np.array([u]))[0])
    assert stats.poisson.cdf(k, mean) >= u - 1e-12
    assert k == 0 or stats.poisson.cdf(k - 1, mean) <= u + 1e-12


def test_a_number_is_itself() -> None:
    assert prior(3).quantile(np.array([0.0, 0.7])).tolist() == [3, 3]


@pytest.mark.parametrize("tree", [3.0, {"uniform": (0.0, 1.0)}, {"poisson": 25.0}, {"power_law": (-0.9, 1.0, 2.0)}])
def test_priors_survive_a_round_trip(tree: object) -> None:
    assert prior(tree).model_dump() == tree
    assert Prior.model_validate_json(prior(tree).model_dump_json()) == prior(tree)


@pytest.mark.parametrize("name", presets.names())
def test_presets_survive_a_round_trip(name: str) -> None:
    text = preset(name).model_dump_json()
    assert Survey.model_validate(json.loads(text)).model_dump_json() == text


OLD_PRESETS = ("common-test-1", "euclid", "hst", "jwst", "model-1", "model-2", "model-3", "rubin")


def test_presets_of_earlier_versions_are_saved_as_they_were() -> None:
    text = "".join(preset(name).model_dump_json() for name in OLD_PRESETS)
    assert sha256(text.encode()).hexdigest().startswith("d5be9affdfd1c2a3")


@pytest.mark.parametrize("name", presets.names())
def test_presets_say_what_they_are(name: str) -> None:
    first, _, rest = preset(name).description.strip().partition("\n")
    assert preset(name).name == name
    assert first.endswith(".")
    assert len(rest) > 100


def test_only_the_replica_keeps_the_deeplense_distances() -> None:
    kept = [name for name in presets.names() if preset(name).cosmology.convention == "deeplense"]
    assert kept == ["common-test-1"]


def test_there_is_a_preset_for_every_survey() -> None:
    assert presets.names() == sorted((*OLD_PRESETS, "euclid-vis", "hst-acs", "hst-wfc3", "jwst-nircam"))


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("mass_msun = 1e12", "mass_msun = -1e12", "halo.mass_msun: reaches from -1e.12.*above 0"),
        ("z_source = { uniform = [0.8, 1.2] }", "z_source = 0.55", "z_source: the source may be at 0.55, in front of"),
        ("{ uniform = [0.4, 1] }", "{ unifrom = [0.4, 1] }", "no prior 'unifrom'. Did you mean uniform"),
        ("{ uniform = [0.4, 1] }", "{ uniform = [1, 0.4] }", "source.q: uniform needs low <= high"),
        ("{ uniform = [0.4, 1] }", "{ uniform = [0.4] }", r"uniform needs the numbers \[low, high\]"),
        ("{ uniform = [0.4, 1] }", "{ uniform = [0.4, nan] }", r"uniform needs the numbers \[low, high\]"),
        ("{ uniform = [0.4, 1] }", "{ uniform = [0.4, 1.5] }", "needs to stay within 0.05 and 1"),
        ("{ uniform = [0.4, 1] }", "true", "needs a number or a prior"),
        ("pixel_scale = 0.05", "pixel_scale = 0", "camera.pixel_scale: Input should be greater than 0"),
        ("background = 10", "", "camera: needs either background or sky_magnitude"),
        ("background = 10", "sky_magnitude = 22", "camera: sky_magnitude needs zero_point"),
        ("intensity = 100", "magnitude = 22", "source: magnitude needs camera.zero_point"),
        ("intensity = 100", "", "source: needs either intensity or magnitude"),
        ("fwhm = 0.205", "fwhm = 2.205", "camera.psf: is 2.2.* arcsec wide"),
        ("fwhm = 0.205", "fwhm = 0.055", "camera.psf: is 0.055.* arcsec wide on points 0.05 apart; .* = 2"),
        ("fwhm = 0.205", "fwmh = 0.205", "camera.psf.fwmh: no such setting. Did you mean fwhm"),
        ('"gaussian"', '"gaussain"', "camera.psf.*'gaussian', 'moffat', 'pixelated'"),
        ('profile = "point"', 'profile = "nfw"', "subhaloes: concentration goes with"),
        ('profile = "point"', 'profile = "tnfw"\nconcentration = 9', "subhaloes: truncation goes with"),
        ("offset = {", "x = {", "source: needs either offset, or x and y"),
        ("{ uniform = [0.4, 1] }", "{ kind = ['uniform'], values = [0, 1] }", "no prior"),
        ("mass_msun = 1e12", "mass_msun = 1" + "0" * 400, "halo.mass_msun"),
        ("[-0.9, 1e6, 1e10]", "[-90, 1e6, 1e10]", "a milder slope"),
        ("{ poisson = 25 }", "1e12", "subhaloes.number: reaches from 1e.12"),
        ("h0 = 70", "h0 = inf", "cosmology.h0: Input should be a finite number"),
        ('name = "common-test-1"', 'name = "étude"', "name: String should match"),
        ("[halo]", "[hallo]", "hallo: no such setting. Did you mean halo"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    assert TEXT.count(old) >= 1
    with pytest.raises(ConfigError, match=complaint):
        reading(tmp_path, TEXT.replace(old, new, 1))


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    text = TEXT.replace("1e12", "-1").replace("{ uniform = [0.8, 1.2] }", "0.1").replace("0.05\n", "0\n")
    text = text.replace('"gaussian", fwhm = 0.20522256694', '"pixelated", file = "no.fits"')
    text = text.replace("uniform = [0.4, 1]", "flat = [0.4, 1]") + "\nwidth = 3\n"
    with pytest.raises(ConfigError) as caught:
        reading(tmp_path, text)
    for name in ("halo.mass_msun", "cosmology.z_source", "camera.pixel_scale", "no.fits", "source.q", "vortex.width"):
        assert name in str(caught.value)
    assert caught.value.path == str(tmp_path / "mine.toml")


def test_an_unknown_preset_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean common-test-1"):
        preset("comon-test-1")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine\.toml: cannot be read"):
        preset(str(tmp_path / "mine.toml"))


def spot(side: int) -> np.ndarray:
    """Brightest in its middle."""
    return np.hanning(side + 2)[1:-1, None] * np.hanning(side + 2)[1:-1]


def with_psf(tmp_path: Path, pixels: np.ndarray) -> Survey:
    np.save(tmp_path / "psf.npy", pixels)
    return reading(tmp_path, TEXT.replace('"gaussian", fwhm = 0.20522256694', '"pixelated", file = "psf.npy"'))


def test_a_psf_file_is_found_beside_the_survey(tmp_path: Path) -> None:
    psf = with_psf(tmp_path, spot(5)).camera.psf.model_dump()
    assert psf["file"] == "psf.npy"  # without its folder
    assert len(psf["sha256"]) == 64


@pytest.mark.parametrize(
    ("pixels", "complaint"),
    [
        (spot(4), "4 x 4 pixels; needs a square of odd sides"),
        (spot(5)[1:4], "3 x 5 pixels; needs a square of odd sides"),
        (spot(151), "has 151 pixels a side; needs to fit the image's 150"),
        (-spot(5), "cannot be normalised"),
        (np.eye(5)[::-1] * np.arange(5), "not brightest in its middle"),
        (np.zeros((5, 5)), "there is nothing to see"),
        (np.full((5, 5), np.nan), "all 25 pixels are missing"),
        (np.zeros((2, 5, 5)), "holds a stack of images; needs a single image"),
    ],
)
def test_an_unusable_psf_file_is_named(tmp_path: Path, pixels: np.ndarray, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        with_psf(tmp_path, pixels)
    assert "psf.npy" in str(caught.value)


def test_a_missing_psf_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"psf\.fits: no such file"):
        reading(tmp_path, TEXT.replace('"gaussian", fwhm = 0.20522256694', '"pixelated", file = "psf.fits"'))


def test_a_manifest_is_read_where_the_file_is_not(tmp_path: Path) -> None:
    dumped = with_psf(tmp_path, spot(5)).model_dump()
    (tmp_path / "psf.npy").unlink()
    assert checked(dumped, Survey).model_dump() == dumped


def test_every_setting_of_a_survey_is_documented() -> None:
    settings = [value for module in (camera, defects, light, mass, psf_set, survey) for value in vars(module).values()]
    kinds = {kind for kind in settings if isinstance(kind, type) and issubclass(kind, Frozen)}
    assert len(kinds) > 16
    for kind in kinds:
        undocumented = {name for name, field in kind.model_fields.items() if not field.description}
        assert undocumented <= {"profile", "kind", "values"}


def test_settings_of_telescopes_survive_a_round_trip_and_are_left_out_where_off() -> None:
    tree = preset("common-test-1").model_dump()
    assert not {"pixels", "noise_correlation", "noise_error"} & tree["camera"].keys() | {"defects"} & tree.keys()
    tree["camera"] |= {"pixels": "signal-to-noise", "n_exposures": [1, 4], "sky_residual": {"normal": [0, 1]}}
    tree["camera"]["psf"] = {"profile": "moffat", "fwhm": {"uniform": [0.2, 0.3]}, "beta": 3}
    tree["defects"] = {"gaps": {"number": {"poisson": 0.1}}, "cosmic_rays": {"number": 3, "masked": 0.5}}
    text = Survey.model_validate(tree).model_dump_json()
    assert Survey.model_validate(json.loads(text)).model_dump_json() == text


@pytest.mark.parametrize(
    ("fwhm", "complaint"),
    [
        ("{ normal = [0.1, 0.05] }", "camera.psf.fwhm: reaches from -0.0.*; needs to stay above 0"),
        ("{ uniform = [0.2, 2.2] }", "camera.psf: is 2.1.* arcsec wide; needs to fit"),
        ("{ uniform = [0.05, 0.2] }", "camera.psf: is 0.05.* arcsec wide on points 0.05 apart; .* = 2"),
        ("-1", "camera.psf.fwhm: .*greater than 0"),
    ],
)
def test_drawn_widths_must_fit_the_pixels(tmp_path: Path, fwhm: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        reading(tmp_path, TEXT.replace("0.20522256694", fwhm))
