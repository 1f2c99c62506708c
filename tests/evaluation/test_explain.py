import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import LayerGradientXActivation
from PIL import Image
from test_cli import refused, sublens
from torch import Tensor, nn

from sublens.config import InputConfig
from sublens.errors import BundleError
from sublens.evaluation import saliency
from sublens.evaluation.saliency import METHOD, Method, score
from sublens.inference.engines import Outputs
from sublens.inference.predict_dataset import eager
from sublens.inference.predictor import Predictor
from sublens.models.networks import build
from sublens.sim.population import draw
from sublens.sim.render import simulate
from sublens.surveys.presets import preset
from sublens.surveys.truth import Truth

METHODS: tuple[Method, ...] = ("hires-cam", "grad-cam", "occlusion")


class SpotDetector(nn.Module):
    """Responds to sharp light in one region; its evidence is for class 1 and against class 0."""

    feature_info = ({"module": "map", "reduction": 4, "num_chs": 1},)

    def __init__(self, side: int, row: slice, column: slice) -> None:
        super().__init__()
        self.map = nn.Sequential(nn.AvgPool2d(4), nn.Identity())
        self.after = nn.ReLU(inplace=True)
        self.mask = torch.zeros(1, 1, side, side)
        self.mask[:, :, row, column] = 1

    def forward(self, images: Tensor) -> Tensor:
        logit = self.after(self.map((images * self.mask) ** 2)).mean((1, 2, 3))
        return torch.stack([-logit, logit], 1)


def spot_predictor(config: InputConfig, shape: tuple[int, int], side: int, row: slice, column: slice) -> Predictor:
    model = SpotDetector(side, row, column).eval()
    return eager(model, ("dark", "light"), shape, config)


def speckled(shape: tuple[int, int], n: int = 2) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    """Noise as sharp as pixels, everywhere."""
    return np.random.default_rng(0).integers(0, 900, (n, *shape)).astype(np.uint16)


FIELDS = (
    (InputConfig(), 48, slice(0, 8), slice(32, 40)),
    (InputConfig(crop=32), 32, slice(0, 8), slice(24, 32)),
    (InputConfig(crop=32, binning=2), 16, slice(0, 4), slice(12, 16)),
    (InputConfig(crop=32, resize=64), 64, slice(0, 16), slice(48, 64)),
    (InputConfig(crop=32, channels=3), 32, slice(0, 8), slice(24, 32)),
)
"""Input settings of a network, the side of its input, and a corner of that."""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("field", FIELDS)
def test_saliency_peaks_where_the_evidence_is(method: Method, field: tuple[InputConfig, int, slice, slice]) -> None:
    config, side, row, column = field
    shape, middle = ((48, 48), (4, 36)) if config.crop is None else ((40, 56), (8, 40))
    maps = saliency.saliency(
        spot_predictor(config, shape, side, row, column), speckled(shape), np.array([1, 1]), method
    )
    assert maps.shape == (2, *shape)
    for image in maps:
        assert np.hypot(*(np.array(np.unravel_index(image.argmax(), shape)) + 0.5 - middle)) < 6
        assert image.min() == 0
        assert image.max() == 1


@pytest.mark.parametrize("method", METHODS)
def test_there_is_no_evidence_for_the_other_class(method: Method) -> None:
    predictor = spot_predictor(InputConfig(), (48, 48), 48, slice(0, 8), slice(32, 40))
    assert (saliency.saliency(predictor, speckled((48, 48)), np.array([0, 1]), method).max((1, 2)) == [0, 1]).all()


@pytest.mark.parametrize("method", METHODS)
def test_outside_of_the_field_of_view_saliency_is_zero(method: Method) -> None:
    torch.manual_seed(0)
    config = InputConfig(crop=32, binning=2)
    predictor = eager(build("lensnet", 3).eval(), ("no", "sphere", "vort"), (40, 56), config)
    maps = saliency.saliency(predictor, speckled((40, 56)), np.array([0, 2]), method)
    assert maps[:, 4:36, 12:44].any()
    maps[:, 4:36, 12:44] = 0
    assert not maps.any()


@pytest.mark.parametrize("method", METHODS)
def test_images_are_explained_alike_alone_and_together(method: Method) -> None:
    torch.manual_seed(0)
    model = build("mobilenetv3-small", 3).eval()
    predictor = eager(model, ("no", "sphere", "vort"), (48, 48), InputConfig())
    images, labels = speckled((48, 48), 3), np.array([0, 1, 2])
    together = saliency.saliency(predictor, images, labels, method)
    alone = saliency.saliency(predictor, images[2:], labels[2:], method)
    assert np.allclose(together[2:], alone, atol=1e-3)


@pytest.mark.parametrize(("binning", "stage"), [(2, "stage2"), (4, "stem")])
def test_the_feature_map_is_the_one_with_cells_of_eight_pixels(
    binning: int, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers: list[nn.Module] = []

    def record(model: nn.Module, layer: nn.Module) -> LayerGradientXActivation:
        layers.append(layer)
        return LayerGradientXActivation(model, layer)

    monkeypatch.setattr(saliency, "LayerGradientXActivation", record)
    model = build("lensnet", 3).eval()
    predictor = eager(model, ("a", "b", "c"), (48, 48), InputConfig(binning=binning))
    saliency.saliency(predictor, speckled((48, 48)), np.array([0, 1]))
    assert layers == [model.get_submodule(stage)]


def test_a_network_without_feature_maps_can_only_be_occluded() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 2)).eval()
    predictor = eager(model, ("a", "b"), (16, 16), InputConfig())
    with pytest.raises(BundleError, match="no feature map; needs one for grad-cam. Use the method occlusion"):
        saliency.saliency(predictor, speckled((16, 16)), np.array([0, 1]), "grad-cam")
    assert saliency.saliency(predictor, speckled((16, 16)), np.array([0, 1]), "occlusion").any()


def test_other_engines_have_no_gradients() -> None:
    def engine(counts: np.ndarray[tuple[int, ...], np.dtype[np.uint16]]) -> Outputs:
        return Outputs(np.zeros((len(counts), 2)), None, [])

    with pytest.raises(BundleError, match="engine='torch'"):
        saliency.saliency(Predictor(engine, ("a", "b"), (16, 16), InputConfig()), speckled((16, 16)), np.array([0, 1]))


def test_a_peak_is_in_arcsec_from_the_centre() -> None:
    maps = np.zeros((2, 5, 9))
    maps[0, 0, 8] = maps[1, 2, 4] = 1
    assert saliency.peaks(maps, 0.5).tolist() == [[2, -1], [0, 0]]


# --- the score --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def truth() -> Truth:
    return draw(preset("common-test-1"), 9, "test", range(600))


def kind(truth: Truth, label: int) -> Truth:
    return truth.take(np.flatnonzero(truth.scenes["label"] == label))


def heaviest(truth: Truth) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    each = [truth.take(np.array([row])).subhaloes for row in range(len(truth))]
    tops = [subhaloes[subhaloes["mass_msun"].argmax()] for subhaloes in each]
    return np.array([[top["x"], top["y"]] for top in tops])


def on_string(truth: Truth, share: float, beyond: float = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    scenes = truth.scenes
    off = share * scenes["string_half_length"] + beyond
    x, y = scenes["string_x"] + off * np.cos(scenes["string_angle"]), scenes["string_y"]
    return np.stack([x, y + off * np.sin(scenes["string_angle"])], axis=1)


Place = Callable[[Truth], np.ndarray[tuple[int, ...], np.dtype[np.float64]]]


@pytest.mark.parametrize(
    ("label", "place"),
    [(1, heaviest), (2, lambda truth: on_string(truth, -1)), (2, lambda truth: on_string(truth, 0.4))],
)
def test_peaks_on_the_truth_score_one(truth: Truth, label: int, place: Place) -> None:
    scores = score(place(kind(truth, label)), kind(truth, label), 4.8)
    assert scores["share"] == scores["high"] == 1
    assert 0.97 < scores["low"] < 1
    assert scores["uniform"] < scores["chance"] < 0.3


def test_peaks_beside_the_string_score_nothing(truth: Truth) -> None:
    scenes = kind(truth, 2)
    aside = 0.21 * np.stack([-np.sin(scenes.scenes["string_angle"]), np.cos(scenes.scenes["string_angle"])], axis=1)
    assert score(on_string(scenes, 0.5) + aside, scenes, 4.8)["share"] == 0
    assert score(on_string(scenes, 0.5) + 0.9 * aside, scenes, 4.8)["share"] == 1
    assert score(on_string(scenes, 1, 0.21), scenes, 4.8)["share"] == 0
    assert score(on_string(scenes, 1, 0.19), scenes, 4.8)["share"] == 1


@pytest.mark.parametrize("label", [1, 2])
def test_peaks_anywhere_score_what_chance_says(truth: Truth, label: int) -> None:
    scenes = kind(truth, label)
    scores = score(np.random.default_rng(0).uniform(-2.4, 2.4, (len(scenes), 2)), scenes, 4.8)
    assert scores["low"] < scores["chance"] < scores["high"]
    assert scores["chance"] == pytest.approx(scores["uniform"], rel=0.2)


@pytest.mark.parametrize("label", [1, 2])
def test_peaks_of_other_images_score_what_chance_says(truth: Truth, label: int) -> None:
    scenes = kind(truth, label)
    right = heaviest(scenes) if label == 1 else on_string(scenes, 0.3)
    scores = score(np.roll(right, 1, axis=0), scenes, 4.8)
    assert scores["low"] < scores["chance"] < scores["high"]
    assert scores["chance"] == pytest.approx(score(right, scenes, 4.8)["chance"], rel=0.1)
    assert scores["chance"] > scores["uniform"]


def test_light_subhaloes_count_where_least_msun_is_zero(truth: Truth) -> None:
    scenes = kind(truth, 1)
    at = np.random.default_rng(1).uniform(-1.5, 1.5, (len(scenes), 2))
    heavy, any_ = (score(at, scenes, 4.8, least_msun=least) for least in (1e9, 0))
    assert any_["share"] > heavy["share"] > score(at, scenes, 4.8, radius=0.1)["share"]


def test_scenes_that_hold_nothing_are_left_out(truth: Truth) -> None:
    few = truth.take(np.arange(90))
    assert score(np.zeros((90, 2)), few, 4.8)["n"] == 60


# --- the command ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three simulated images, and a file that is none."""
    folder = tmp_path_factory.mktemp("cutouts")
    for label, counts in enumerate(simulate(preset("common-test-1"), 9, "test", range(3))[1]):
        np.save(folder / f"{label}.npy", counts / counts.max())
    (folder / "broken.npy").write_bytes(b"no image")
    return folder


@pytest.mark.parametrize("more", [(), ("--method", "grad-cam", "--class", "vort")])
def test_explain_writes_a_picture_an_image_and_names_what_failed(
    more: tuple[str, ...], cutouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sublens("explain", "lensnet", cutouts, "--out", tmp_path / "out", *more) == 0
    printed = capsys.readouterr()
    assert "broken.npy: truncated" in printed.err
    assert "1 of 4 images could not be explained" in printed.err
    header, *lines = [line.split("\t") for line in printed.out.splitlines()]
    assert [line[header.index("picture")] for line in lines] == ["1-0.png", "2-1.png", "3-2.png"]
    assert {line[header.index("unit")] for line in lines} == {"arcsec"}
    if more:
        assert {line[header.index("class")] for line in lines} == {"vort"}
    for name in ("1-0.png", "2-1.png", "3-2.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.width > 2 * picture.height  # three panels, since lensnet draws maps
    about = json.loads((tmp_path / "out" / "explain.json").read_text())
    assert about["method"] == (more[1] if more else METHOD)
    assert sorted(image["path"].rsplit("/", 1)[-1] for image in about["images"] if "error" in image) == ["broken.npy"]


def test_explain_replaces_its_own_pictures_only_with_force(
    cutouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("explain", cutouts / "1.npy", "--out", tmp_path / "out")
    assert sublens(*arguments) == 0
    assert "--force" in refused(capsys, *arguments)
    assert sublens(*arguments, "--force") == 0
    (tmp_path / "out" / "explain.json").unlink()
    assert "written by sublens" in refused(capsys, *arguments, "--force")


def test_the_picture_of_an_image_with_a_long_name_has_a_shorter_one(
    cutouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(cutouts / "1.npy", tmp_path / f"{251 * 'a'}.npy")
    assert sublens("explain", tmp_path / f"{251 * 'a'}.npy", "--out", tmp_path / "out") == 0
    (image,) = json.loads((tmp_path / "out" / "explain.json").read_text())["images"]
    assert (tmp_path / "out" / image["picture"]).is_file()
    assert image["picture"].startswith(f"1-{200 * 'a'}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("lensnet", "CUTOUTS/1.npy", "--class", "vortex"),
            "lensnet has no class 'vortex'; needs one of no, sphere, vort. Did you mean vort?",
        ),
        (("lensnet", "CUTOUTS/broken.npy"), "None of 1 images could be explained"),
        (("lensnet", "nowhere.npy"), "nowhere.npy: no such file"),
    ],
)
def test_a_mistake_is_explained_and_leaves_nothing(
    arguments: tuple[str, ...], words: str, cutouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = [argument.replace("CUTOUTS", str(cutouts)) for argument in arguments]
    assert words in refused(capsys, "explain", *inputs, "--out", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
