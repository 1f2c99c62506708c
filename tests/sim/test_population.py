import numpy as np
import pytest
import torch
from conftest import changed
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, uniform

from sublens.errors import ConfigError
from sublens.lensing import mass
from sublens.lensing.cosmology import einstein_radius, isothermal_radius
from sublens.lensing.power_law import power_law_ring
from sublens.sim.mass_map import mass_map
from sublens.sim.population import CLASSES, draw, noise_seeds, share_inside_ring
from sublens.sim.render import convergence, deflection, render, simulate
from sublens.surveys.presets import names, preset
from sublens.surveys.priors import Floats
from sublens.surveys.survey import Survey
from sublens.surveys.truth import SCENE, Truth, of_format_2, smoothed

CT1 = preset("common-test-1")


@pytest.fixture(scope="module")
def truth() -> Truth:
    return draw(CT1, 3, "train", range(1500))


def of_class(truth: Truth, name: str) -> Truth:
    return truth.take(np.flatnonzero(truth.scenes["label"] == CLASSES.index(name)))


@settings(max_examples=25)
@given(st.integers(0, 2**40), st.integers(0, 60), st.integers(0, 6))
def test_any_slice_drawn_alone_is_the_same(seed: int, start: int, n: int) -> None:
    whole = draw(CT1, seed, "train", range(start + n))
    alone = draw(CT1, seed, "train", range(start, start + n))
    part = whole.take(np.arange(start, start + n))
    assert np.array_equal(part.scenes, alone.scenes)
    assert np.array_equal(part.subhaloes, alone.subhaloes)


@pytest.mark.parametrize(("seed", "split"), [(4, "train"), (3, "test")])
def test_another_seed_or_split_draws_other_scenes(truth: Truth, seed: int, split: str) -> None:
    other = draw(CT1, seed, split, range(6))  # type: ignore[arg-type]
    assert not np.isin(other.scenes["z_lens"], truth.scenes["z_lens"]).any()


def test_noise_seeds_differ_between_images_seeds_and_splits() -> None:
    seeds = [
        *noise_seeds(1, "train", range(50)),
        *noise_seeds(2, "train", range(50)),
        *noise_seeds(1, "test", range(50)),
    ]
    assert len(set(seeds)) == 150


def test_classes_are_balanced(truth: Truth) -> None:
    assert np.bincount(truth.scenes["label"]).tolist() == [500, 500, 500]


def test_the_benchmark_conserves_the_total_mass(truth: Truth) -> None:
    in_subhaloes = np.bincount(truth.owners(), truth.subhaloes["mass_msun"], minlength=len(truth))
    total = truth.scenes["halo_mass_msun"] + truth.scenes["string_mass_msun"] + in_subhaloes
    np.testing.assert_allclose(total, 1e12)


@pytest.mark.parametrize(
    ("column", "bounds"),
    [
        ("z_lens", (0.4, 0.6)),
        ("z_source", (0.8, 1.2)),
        ("gamma", (0, 0.3)),
        ("shear_angle", (0, np.radians(2 * np.pi))),
        ("source_q", (0.4, 1)),
        ("source_angle", (0, np.radians(2 * np.pi))),
    ],
)
def test_a_column_is_uniform_between_its_bounds(truth: Truth, column: str, bounds: tuple[float, float]) -> None:
    from scipy.stats import kstest

    low, high = bounds
    assert kstest(truth.scenes[column], "uniform", (low, high - low)).pvalue > 1e-3


def test_the_source_offset_is_uniform_in_radius(truth: Truth) -> None:
    from scipy.stats import kstest

    radius = np.hypot(truth.scenes["source_x"], truth.scenes["source_y"])
    assert kstest(radius, "uniform", (0, 0.5)).pvalue > 1e-3


def test_only_spheres_have_subhaloes_and_only_vortices_a_string(truth: Truth) -> None:
    assert of_class(truth, "no").scenes["n_subhaloes"].sum() == 0
    assert of_class(truth, "vort").scenes["n_subhaloes"].sum() == 0
    assert (of_class(truth, "vort").scenes["string_mass_msun"] > 0).all()
    assert (of_class(truth, "sphere").scenes["string_mass_msun"] == 0).all()


def test_the_number_of_subhaloes_is_poisson_with_mean_25(truth: Truth) -> None:
    n = of_class(truth, "sphere").scenes["n_subhaloes"]
    assert n.mean() == pytest.approx(25, abs=4 * 5 / np.sqrt(len(n)))
    assert n.var() == pytest.approx(25, rel=0.25)


def test_subhalo_masses_follow_the_mass_function(truth: Truth) -> None:
    from scipy.stats import kstest

    low, high = 1e6**0.1, 1e10**0.1
    assert kstest((truth.subhaloes["mass_msun"] ** 0.1 - low) / (high - low), "uniform").pvalue > 1e-3


def test_subhaloes_are_uniform_in_radius_out_to_two_arcsec(truth: Truth) -> None:
    from scipy.stats import kstest

    radius = np.hypot(truth.subhaloes["x"], truth.subhaloes["y"])
    assert kstest(radius, "uniform", (0, 2)).pvalue > 1e-3


def test_strings_hold_their_share_of_the_mass_and_length(truth: Truth) -> None:
    from scipy.stats import kstest

    strings = of_class(truth, "vort").scenes
    assert kstest(strings["string_mass_msun"] / 1e12, "uniform", (0.03, 0.025)).pvalue > 1e-3
    assert kstest(strings["string_half_length"], "uniform", (0.5, 1.5)).pvalue > 1e-3
    assert kstest(strings["string_x"], "norm", (0, 0.5)).pvalue > 1e-3


def test_einstein_radii_follow_the_deeplense_convention(truth: Truth) -> None:
    row = truth.scenes[:1]
    expected = einstein_radius(row["halo_mass_msun"], row["z_lens"], row["z_source"], CT1.cosmology)
    assert row["halo_theta_e"] == pytest.approx(expected)
    assert (truth.scenes["halo_theta_e"] / 0.05 > 16).all()
    assert (truth.scenes["halo_theta_e"] / 0.05 < 35).all()


def test_take_keeps_subhaloes_with_their_image(truth: Truth) -> None:
    chosen = truth.take(np.array([7, 1, 4]))
    for position, original in enumerate((7, 1, 4)):
        ours = chosen.subhaloes[chosen.owners() == position]
        assert np.array_equal(ours, truth.subhaloes[truth.owners() == original])


def test_the_mass_map_holds_all_mass_inside_the_field(truth: Truth) -> None:
    mapped = mass_map(truth, 14, 20.0).sum(axis=(1, 2))
    np.testing.assert_allclose(mapped, 1e12 - truth.scenes["halo_mass_msun"], rtol=1e-9, atol=1)


def test_the_mass_map_puts_a_subhalo_into_its_cell(truth: Truth) -> None:
    sphere = of_class(truth, "sphere").take(np.array([0]))
    single = Truth(sphere.scenes.copy(), sphere.subhaloes[:1].copy())
    single.scenes["n_subhaloes"] = 1
    single.subhaloes["x"], single.subhaloes["y"], single.subhaloes["mass_msun"] = 0.9, -1.9, 5e9
    mapped = mass_map(single, 4, 4.0)
    assert np.argwhere(mapped[0]).tolist() == [[0, 2]]
    assert mapped[0, 0, 2] == 5e9


def test_the_mass_map_leaves_out_what_lies_outside(truth: Truth) -> None:
    inner = mass_map(truth, 7, 1.0).sum()
    assert 0 < inner < mass_map(truth, 7, 2.0).sum()


def test_the_mass_map_spreads_a_string_along_its_length() -> None:
    vort = draw(CT1, 1, "train", range(2, 3))
    vort.scenes["string_x"], vort.scenes["string_y"] = 0.0, 0.0
    vort.scenes["string_angle"], vort.scenes["string_half_length"] = np.pi / 2, 1.0
    rows = mass_map(vort, 4, 4.0)[0].sum(axis=1) / vort.scenes["string_mass_msun"]
    np.testing.assert_allclose(rows, [0, 0.5, 0.5, 0])


def test_a_stepped_slice_holds_the_same_scenes(truth: Truth) -> None:
    some = draw(CT1, 3, "train", range(4, 40, 3))
    expected = truth.take(np.arange(4, 40, 3))
    assert np.array_equal(some.scenes, expected.scenes)
    assert np.array_equal(some.subhaloes, expected.subhaloes)


def test_no_scenes_are_drawn_of_an_empty_range() -> None:
    assert len(draw(CT1, 3, "train", range(0))) == 0


def test_changing_one_prior_leaves_all_else_as_it_was(truth: Truth) -> None:
    other = draw(changed("common-test-1", halo={"q": {"uniform": [0.5, 0.9]}}), 3, "train", range(60))
    same = [name for name in other.scenes.dtype.names or () if name != "halo_q"]
    assert all(np.array_equal(other.scenes[name], truth.scenes[name][:60]) for name in same)
    assert np.array_equal(other.subhaloes, truth.take(np.arange(60)).subhaloes)


def test_no_two_numbers_of_a_stream_are_shared_between_images(truth: Truth) -> None:
    columns = ("z_lens", "z_source", "gamma", "source_q")
    drawn = np.concatenate([truth.scenes[name] for name in columns])
    assert len(np.unique(drawn)) == len(drawn)


def test_substructure_that_outweighs_its_halo_is_refused() -> None:
    heavy = changed("common-test-1", subhaloes={"mass_msun": 1e11})
    with pytest.raises(ConfigError, match="outweighs its halo"):
        draw(heavy, 0, "train", range(30))


@pytest.mark.parametrize("profile", ["nfw", "tnfw"])
def test_extended_subhaloes_have_the_sizes_that_lenstronomy_gives_them(profile: str) -> None:
    from astropy.cosmology import FlatLambdaCDM
    from lenstronomy.Cosmo.lens_cosmo import LensCosmo

    extended = {"profile": profile, "concentration": 12, **({"truncation": 5} if profile == "tnfw" else {})}
    truth = draw(changed("euclid", subhaloes=extended), 0, "train", range(1, 12, 3))
    for row, owner in zip(truth.subhaloes, truth.owners(), strict=True):
        scene = truth.scenes[owner]
        theirs = LensCosmo(scene["z_lens"], scene["z_source"], cosmo=FlatLambdaCDM(H0=70, Om0=0.3))
        r_s, alpha_rs = theirs.nfw_physical2angle(row["m200_msun"], 12)
        assert (row["r_s"], row["alpha_rs"]) == pytest.approx((r_s, alpha_rs), rel=1e-3)
        assert row["r_t"] == pytest.approx(5 * r_s if profile == "tnfw" else 0, rel=1e-3)


def test_magnitudes_become_electrons() -> None:
    """A source of the zero point's magnitude gives an electron a second, all pixels together."""
    camera = {"zero_point": 24.0, "exposure_s": 10, "n_exposures": 3, "n_pixels": 200}
    bare = changed("common-test-1", camera=camera, source={"intensity": None, "magnitude": 24})
    truth = draw(bare, 0, "train", range(4))
    truth.scenes["halo_theta_e"] = truth.scenes["gamma"] = truth.scenes["string_theta_e"] = 0
    truth.scenes["n_subhaloes"] = 0
    light = render(Truth(truth.scenes, truth.subhaloes[:0]), bare).sum(dim=(1, 2))
    np.testing.assert_allclose(light, 30, rtol=0.01)


def test_the_sky_is_spread_over_the_pixels() -> None:
    camera = {"background": None, "sky_magnitude": 22.5, "zero_point": 25, "exposure_s": 100, "pixel_scale": 0.2}
    truth = draw(changed("common-test-1", camera=camera), 0, "train", range(2))
    np.testing.assert_allclose(truth.scenes["background"], 10 * 100 * 0.2**2)


def test_read_noise_adds_up_over_exposures() -> None:
    camera = {"read_noise": 3, "n_exposures": 4, "background_rms": 0.5, "exposure_s": 4}
    truth = draw(changed("common-test-1", camera=camera), 0, "train", range(2))
    np.testing.assert_allclose(truth.scenes["noise_rms"], np.hypot(3 * 2, 0.5 * 16))


def test_more_subhaloes_come_on_top_of_the_same_ones() -> None:
    few, many = (
        draw(changed("common-test-1", subhaloes={"number": {"poisson": n}}), 3, "train", range(1, 90, 3))
        for n in (20, 25)
    )
    for position in range(30):
        fewer, more = (truth.take(np.array([position])).subhaloes for truth in (few, many))
        assert len(fewer) <= len(more)
        assert np.array_equal(fewer["mass_msun"], more["mass_msun"][: len(fewer)])


@pytest.mark.parametrize("indices", [range(5, 0, -1), range(-3, 2)])
def test_indices_must_ascend_from_nought(indices: range) -> None:
    with pytest.raises(ValueError, match="ascend"):
        draw(CT1, 1, "train", indices)


def test_a_matched_set_shares_all_but_its_substructure() -> None:
    survey = preset("hst-acs")
    drawn = draw(survey, 1, "train", range(3, 63), survey.contaminants, is_matched=True)
    alone = draw(survey, 1, "train", range(3, 63, 3), survey.contaminants)
    sets = drawn.scenes.reshape(-1, 3)
    assert np.array_equal(sets["label"] < 0, np.repeat(alone.scenes["label"][:, None] < 0, 3, axis=1))
    lenses, smooth = (rows[alone.scenes["label"] >= 0] for rows in (sets, alone.scenes))
    own = {"index", "label", "n_subhaloes", "halo_mass_msun", "halo_theta_e"}
    for name in [name for name in SCENE.names or () if name not in own and not name.startswith("string")]:
        assert (lenses[name] == smooth[name][:, None]).all(), name
    assert (lenses["string_mass_msun"][:, 2] > 0).all()


def test_the_noise_of_a_matched_set_is_not_shared() -> None:
    survey = preset("hst-acs")
    (no, sphere), _ = np.split(simulate(survey, 1, "train", range(3), is_matched=True)[1].astype(float), [2])
    corners = [image[:9, :9][(no[:9, :9] > 0) & (sphere[:9, :9] > 0)] for image in (no, sphere)]
    assert abs(np.corrcoef(corners)[0, 1]) < 0.4


TNFW = {"profile": "tnfw", "concentration": 15, "truncation": 10}
NFW = {"profile": "nfw", "concentration": 15}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("euclid-vis", "hst-wfc3", "jwst-nircam")]
"""Presets like hst-acs, with other cameras."""
CONSERVE_RINGS = [*sorted({*names()} - {"common-test-1", "euclid-vis", "hst-wfc3", "jwst-nircam"}), *SLOW]
"""All but the benchmark, whose authors conserved the total mass."""


def radial_deflection(
    truth: Truth, survey: Survey, radii: Floats, n_angles: int = 120, centre: tuple[Floats, ...] = (np.zeros(1),) * 2
) -> Floats:
    """Mean over a circle of this radius about the optical axis, or about another centre, [n]."""
    angle = (torch.arange(n_angles, dtype=torch.float64) + 0.5) * 2 * torch.pi / n_angles
    cos, sin, r = torch.cos(angle), torch.sin(angle), torch.from_numpy(radii)[:, None, None]
    x_0, y_0 = (torch.from_numpy(place)[:, None, None] for place in centre)
    alpha_x, alpha_y = deflection(truth, survey, x_0 + r * cos, y_0 + r * sin)
    return np.asarray((alpha_x * cos + alpha_y * sin).mean(dim=(1, 2)))


def ring_radii(truth: Truth, survey: Survey) -> tuple[Floats, Floats]:
    """Radius at which the mean radial deflection is that radius, of each scene and of its smooth lens, arcsec.

    Rounded to 0.01, as points near the circle cost accuracy.
    """
    smooth = truth.scenes["theta_e"]
    for _ in range(2):
        smooth = radial_deflection(smoothed(truth), survey, smooth)
    rings = smooth
    for _ in range(4):
        rings = radial_deflection(truth, survey, rings)
    return rings.round(2), smooth.round(2)


@pytest.mark.parametrize("name", CONSERVE_RINGS)
def test_the_size_of_the_ring_does_not_tell_the_class(name: str) -> None:
    from sklearn.metrics import roc_auc_score

    truth = draw(preset(name), 900, "train", range(1800))
    rings, smooth = ring_radii(truth, preset(name))
    for label in (1, 2):
        pair = np.isin(truth.scenes["label"], (0, label))
        assert roc_auc_score(truth.scenes["label"][pair], rings[pair]) == pytest.approx(0.5, abs=0.05)
        same = truth.scenes["label"] == label
        assert (rings / smooth)[same].mean() == pytest.approx(1, abs=1e-3)


SMOOTH = """z_lens z_source exposure_s background noise_rms theta_e halo_q halo_angle gamma shear_angle
    source_x source_y source_q source_angle source_n source_r_eff source_intensity lens_n lens_r_eff lens_intensity"""
"""Columns of the truth table that know nothing of substructure."""
ONE_SOURCE = ("model-2", "model-3")
"""Surveys whose every source has one brightness and exposure, so that the magnification by substructure shows."""


def plain_statistics(counts: np.ndarray, has_light: bool) -> list[Floats]:
    """Sky and noise in the corners of each image, and the flux, size and peak of its light, [n] each."""
    side = counts.shape[1] // 8
    corners = np.concatenate([counts[:, :side, :side], counts[:, -side:, -side:]], axis=1).reshape(len(counts), -1)
    sky = corners.mean(axis=1)
    light, axis = counts - sky[:, None, None], np.linspace(-1, 1, counts.shape[1])
    flux = light.sum(axis=(1, 2))
    size = (light * np.hypot(axis[:, None], axis)).sum(axis=(1, 2)) / flux
    return [sky, corners.std(axis=1), *([flux, size, counts.max(axis=(1, 2))] if has_light else [])]


@pytest.mark.parametrize("name", CONSERVE_RINGS)
def test_no_smooth_parameter_or_plain_statistic_tells_the_class(name: str) -> None:
    """Cross-validated boosted trees stay within 3 standard deviations of chance."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import cross_val_score

    truth, counts = simulate(preset(name), 901, "train", range(450))
    statistics = plain_statistics(counts, has_light=name not in ONE_SOURCE)
    columns = [*(truth.scenes[column] for column in SMOOTH.split()), ring_radii(truth, preset(name))[0], *statistics]
    trees = HistGradientBoostingClassifier(max_depth=3, max_iter=30)
    auc = cross_val_score(trees, np.column_stack(columns), truth.scenes["label"] > 0, cv=4, scoring="roc_auc").mean()
    assert auc == pytest.approx(0.5, abs=3 * np.sqrt(451 / (12 * 150 * 300)))


@pytest.mark.parametrize("profile", [{}, NFW, TNFW])
def test_the_share_inside_the_ring_is_that_of_the_deflection(profile: dict[str, object]) -> None:
    """By Gauss's theorem; the points of this survey keep away from the circle."""
    survey = changed("euclid", subhaloes={"radius": {"uniform": [0.2, 0.7]}, **profile}, halo={"mass_msun": 8e11})
    truth = draw(survey, 1, "train", range(30))
    ring = mass.sie_ring(truth.scenes["theta_e"], truth.scenes["halo_q"])
    halo = truth.scenes["halo_theta_e"] * (ring / truth.scenes["theta_e"])
    share = (radial_deflection(truth, survey, ring, 4096) - halo) / ring
    np.testing.assert_allclose(share_inside_ring(truth), share, rtol=3e-3, atol=1e-5)


def test_extended_subhaloes_near_the_ring_keep_its_size() -> None:
    survey = changed("hst", subhaloes={"radius": {"uniform": [0.5, 2.5]}, **TNFW})
    rings, smooth = ring_radii(draw(survey, 1, "train", range(1, 300, 3)), survey)
    assert (rings / smooth).mean() == pytest.approx(1, abs=5e-4)


@pytest.mark.parametrize("profile", [{}, TNFW])
def test_a_halo_of_any_slope_keeps_its_ring_with_substructure(profile: dict[str, object]) -> None:
    """By Gauss's theorem about its own centre; the subhaloes keep away from the circle, as points cost accuracy."""
    offset = {axis: {"uniform": (-0.1, 0.1)} for axis in "xy"}
    halo = {"slope": {"uniform": (1.7, 2.3)}, "m3": 0.02, "m4": 0.02, "mass_msun": 8e11, **offset}
    survey = changed("hst", subhaloes={"radius": {"uniform": [0.2, 0.7]}, **profile}, halo=halo)
    truth = draw(survey, 1, "train", range(30))
    assert truth.extra is not None
    ring = power_law_ring(truth.scenes["theta_e"], truth.scenes["halo_q"], truth.extra["slope"])
    centre = truth.extra["halo_x"], truth.extra["halo_y"]
    np.testing.assert_allclose(radial_deflection(truth, survey, ring, 4096, centre), ring, rtol=1e-3)


@pytest.mark.parametrize("size", ["theta_e", "sigma_v"])
def test_a_halo_may_be_as_large_as_its_radius_or_its_velocities_ask_for(size: str) -> None:
    values = {"theta_e": (0.7, 1.6), "sigma_v": (180, 320)}[size]
    survey = changed("hst", halo={"mass_msun": None, size: {"uniform": values}})
    scenes = draw(survey, 1, "train", range(900)).scenes
    radii = scenes["theta_e"]
    if size == "sigma_v":
        unit = isothermal_radius(np.ones(900), scenes["z_lens"], scenes["z_source"], survey.cosmology)
        radii = np.sqrt(radii / unit)
    assert kstest(radii, uniform(values[0], values[1] - values[0]).cdf).pvalue > 1e-3


def test_the_columns_of_a_general_halo_follow_their_priors() -> None:
    halo = {"slope": {"uniform": (1.9, 2.1)}, "x": {"uniform": (-0.1, 0)}, "m4": {"uniform": (0, 0.02)}}
    more = draw(changed("hst", halo=halo), 1, "train", range(900)).extra
    assert more is not None
    turn = (0, 2 * np.pi)
    bounds = {"slope": (1.9, 2.1), "halo_x": (-0.1, 0), "m4": (0, 0.02), "m3_angle": turn, "m4_angle": turn}
    for name, (low, high) in bounds.items():
        assert kstest(more[name], uniform(low, high - low).cdf).pvalue > 1e-3
    assert not more["halo_y"].any()
    assert not more["m3"].any()


def test_a_general_halo_leaves_the_other_columns_as_they_were(truth: Truth) -> None:
    general = draw(changed("common-test-1", halo={"slope": 2.1, "m3": 0.01}), 3, "train", range(30))
    assert np.array_equal(general.scenes["source_x"], truth.scenes["source_x"][:30])
    assert np.array_equal(general.subhaloes["x"], truth.take(np.arange(30)).subhaloes["x"])


def test_the_mass_of_a_truncated_halo_is_what_it_holds_far_out() -> None:
    rows = draw(changed("hst", subhaloes=TNFW), 0, "train", range(1, 12, 3)).subhaloes
    far, nought = (torch.tensor(number, dtype=torch.float64) for number in (1e5, 0))
    alpha_rs, r_s, r_t = (torch.from_numpy(rows[name].copy()) for name in ("alpha_rs", "r_s", "r_t"))
    held = mass.tnfw_deflection(far * r_s, nought, nought, nought, alpha_rs, r_s, r_t)[0] * far * r_s
    np.testing.assert_allclose(held, rows["theta_e"] ** 2, rtol=1e-3)
    np.testing.assert_allclose(rows["mass_msun"] / rows["m200_msun"], 0.846, atol=1e-3)


@pytest.mark.parametrize("profile", [NFW, TNFW])
def test_the_mass_map_of_extended_subhaloes_holds_what_their_convergence_holds(profile: dict[str, object]) -> None:
    fine = {"n_pixels": 700, "pixel_scale": 0.01}
    survey = changed("hst", camera=fine, subhaloes={"mass_msun": 1e10, "number": 20, **profile})
    truth = draw(survey, 2, "train", range(1, 10, 3))
    smooth = Truth(truth.scenes.copy(), truth.subhaloes[:0])
    smooth.scenes["n_subhaloes"] = 0
    change = convergence(truth, survey, dtype=torch.float64) - convergence(smooth, survey, dtype=torch.float64)
    msun = (
        change.sum(dim=(1, 2)).numpy()
        * 0.01**2
        / np.pi
        * (truth.scenes["lens_mass_msun"] / truth.scenes["theta_e"] ** 2)
    )
    mapped = mass_map(truth, 14, 7.0)
    np.testing.assert_allclose(mapped.sum(axis=(1, 2)), msun, rtol=0.01)
    assert (mapped.max(axis=(1, 2)) < 5e10).all()


def test_a_strings_share_inside_the_ring_is_that_of_its_pieces(truth: Truth) -> None:
    vort = of_class(truth, "vort")
    along = ((np.arange(4000) + 0.5) / 2000 - 1) * vort.scenes["string_half_length"][:, None]
    x = vort.scenes["string_x"][:, None] + along * np.cos(vort.scenes["string_angle"])[:, None]
    y = vort.scenes["string_y"][:, None] + along * np.sin(vort.scenes["string_angle"])[:, None]
    within = (np.hypot(x, y) < vort.scenes["theta_e"][:, None]).mean(axis=1)
    expected = within * (vort.scenes["string_theta_e"] / vort.scenes["theta_e"]) ** 2
    np.testing.assert_allclose(share_inside_ring(vort), expected, rtol=1e-3, atol=2e-5)


def test_tables_of_format_2_become_the_truth_that_is_drawn_now(truth: Truth) -> None:
    scenes, subhaloes = truth.scenes.copy(), truth.subhaloes.copy()
    scenes["theta_e"] = scenes["halo_theta_e"]
    old = of_format_2(
        scenes[[name for name in scenes.dtype.names or () if name not in ("lens_mass_msun", "halo_theta_e")]],
        subhaloes[[name for name in subhaloes.dtype.names or () if name != "m200_msun"]],
    )
    assert np.array_equal(old.subhaloes, truth.subhaloes)
    for name in scenes.dtype.names or ():
        np.testing.assert_allclose(old.scenes[name], truth.scenes[name], rtol=1e-12)
