import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from sublens.config import InputConfig, ModelConfig, RunConfig, TrainConfig, input_side
from sublens.errors import ConfigError
from sublens.images.pixels import QUANTISED_PEAK
from sublens.models import inputs, networks
from sublens.models.heads import TruthHead
from sublens.models.inputs import DETAIL_GAIN, NOMINAL_PEAK, SKY, counts_to_input
from sublens.models.networks import build
from sublens.models.timm_import import import_timm


def counts(
    seed: int = 0, side: int = 24, n: int = 3, mean: float = 50
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    return np.random.default_rng(seed).poisson(mean, (n, side, side)).astype(np.uint16)


@pytest.mark.parametrize("name", networks.NETWORKS)
@pytest.mark.parametrize(("n_classes", "channels"), [(3, 1), (2, 3)])
def test_each_network_turns_images_into_logits(name: str, n_classes: int, channels: int) -> None:
    model = build(name, n_classes, channels).eval()
    with torch.inference_mode():
        assert model(torch.zeros(2, channels, 56, 56)).shape == (2, n_classes)


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_the_table_has_the_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = build(name, 3)
    assert networks.NETWORKS[name].n_parameters == sum(parameter.numel() for parameter in model.parameters())


def test_our_own_network_is_small() -> None:
    assert networks.NETWORKS["lensnet"].n_parameters < 500_000


@pytest.mark.parametrize(
    ("network_input", "expected"),
    [
        (InputConfig(), "whole image"),
        (InputConfig(crop=96, binning=2), "central 96 x 96 pixels, binned 2 x 2"),
        (
            InputConfig(crop=96, highpass=3, resize=144),
            "central 96 x 96 pixels, high-pass of 3 pixels, resampled to 144 x 144",
        ),
        (InputConfig(transform="minmax", channels=3), "whole image, scaled to [0, 1], 3 equal channels"),
    ],
)
def test_an_input_is_described_in_words(network_input: InputConfig, expected: str) -> None:
    assert networks.describe_input(network_input) == expected


@pytest.mark.parametrize("pattern", ["resnet18", "*resnet18", "RESNET18*"])
def test_the_names_of_timm_are_listed_by_pattern(pattern: str) -> None:
    names = networks.timm_names(pattern)
    assert names == sorted(names)
    assert "resnet18" in names
    assert all("resnet18" in name for name in names)


def test_any_timm_name_works() -> None:
    assert build("resnet10t", 4)(torch.zeros(2, 1, 64, 64)).shape == (2, 4)


def test_an_unknown_network_offers_the_nearest_five() -> None:
    with pytest.raises(
        ConfigError, match="no network called 'resnet81'; needs one of .* Did you mean resnet18, "
    ) as caught:
        build("resnet81", 3)
    assert len(set(caught.value.next.split("?")[0].split(", "))) == 5
    assert len(str(caught.value)) < 300


def test_a_name_like_no_other_offers_the_list() -> None:
    with pytest.raises(ConfigError, match="timm's. `sublens networks --all PATTERN` lists"):
        build("qqq", 3)


def test_weights_that_cannot_be_fetched_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(import_timm(), "create_model", refuse)
    with pytest.raises(
        ConfigError,
        match="could not be fetched .OSError: no route to host.*; needs a connection.*leave out model.pretrained",
    ):
        build("resnet18", 3, pretrained=True)


def test_our_own_network_has_no_foreign_weights() -> None:
    with pytest.raises(ConfigError, match="lensnet has no ImageNet weights"):
        build("lensnet", 3, pretrained=True)


def test_the_whole_image_is_the_default_input() -> None:
    assert counts_to_input(counts(), InputConfig()).shape == (3, 1, 24, 24)


def test_minmax_is_the_pixel_of_the_original_files() -> None:
    image = counts()
    expected = image / image.max(axis=(1, 2), keepdims=True)
    assert np.allclose(counts_to_input(image, InputConfig(transform="minmax"))[:, 0], expected, rtol=1e-6)


@given(st.floats(5, 500), st.sampled_from([1, 2]))
def test_the_anscombe_input_has_the_same_noise_everywhere(mean: float, binning: int) -> None:
    prepared = counts_to_input(counts(side=200, mean=mean), InputConfig(binning=binning))
    assert float(prepared.std()) * 10 * binning == pytest.approx(1, abs=0.06)


def test_empty_sky_is_zero_to_the_anscombe_input() -> None:
    sky = np.full((1, 8, 8), round(SKY), np.uint16)
    assert float(counts_to_input(sky, InputConfig()).abs().max()) < 0.02


def test_an_image_of_unknown_counts_is_scaled_to_the_nominal_peak() -> None:
    image = counts(mean=200)
    image = (image * (NOMINAL_PEAK / image.max(axis=(1, 2), keepdims=True))).round().astype(np.uint16)
    scaled = (image / image.max(axis=(1, 2), keepdims=True) * QUANTISED_PEAK).round().astype(np.uint16)
    assert torch.allclose(counts_to_input(scaled, InputConfig()), counts_to_input(image, InputConfig()), atol=0.02)


def test_the_crop_is_central() -> None:
    image = counts()
    assert torch.equal(
        counts_to_input(image, InputConfig(crop=10)), counts_to_input(image, InputConfig())[:, :, 7:17, 7:17]
    )


def test_binning_adds_counts() -> None:
    image = np.full((1, 4, 4), 25, np.uint16)
    expected = (2 * np.sqrt(100.375) - 2 * np.sqrt(4 * SKY + 0.375)) / 20
    assert np.unique(counts_to_input(image, InputConfig(binning=2))).tolist() == pytest.approx([expected], rel=1e-5)


def test_resizing_gives_that_side() -> None:
    assert counts_to_input(counts(), InputConfig(resize=32)).shape == (3, 1, 32, 32)


def test_three_channels_are_the_same_image() -> None:
    prepared = counts_to_input(counts(), InputConfig(channels=3))
    assert torch.equal(prepared[:, 0], prepared[:, 2])


@given(st.integers(0, 1000))
def test_preparing_one_by_one_or_together_is_the_same(seed: int) -> None:
    images, config = counts(seed), InputConfig(crop=20, binning=2)
    apart = torch.cat([counts_to_input(image[None], config) for image in images])
    assert torch.equal(counts_to_input(images, config), apart)


def test_a_crop_beyond_the_image_is_refused() -> None:
    with pytest.raises(ConfigError, match="input.crop is 30 pixels but the images are 24 x 24"):
        counts_to_input(counts(), InputConfig(crop=30))


@pytest.mark.parametrize("binning", [1, 2])
def test_a_high_pass_subtracts_the_blurred_image(binning: int) -> None:
    image = counts(side=96)
    plain = counts_to_input(image, InputConfig(binning=binning)).numpy()[:, 0].astype(np.float64)
    prepared = counts_to_input(image, InputConfig(binning=binning, highpass=3)).numpy()[:, 0]
    sigma = 3 / binning
    left = DETAIL_GAIN * (plain - ndimage.gaussian_filter(plain, (0, sigma, sigma), truncate=8))
    inside = slice(24 // binning, -24 // binning)
    np.testing.assert_allclose(prepared[:, inside, inside], left[:, inside, inside], atol=1e-4)


def test_a_high_pass_leaves_nothing_of_an_even_image() -> None:
    even = np.full((1, 24, 24), 50, np.uint16)
    even[0, 0, 0] = 0
    prepared = counts_to_input(even, InputConfig(crop=20, highpass=3))
    assert float(prepared.abs().max()) < 1e-4


def test_a_binning_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="binning 5 does not divide the side of 24"):
        counts_to_input(counts(), InputConfig(binning=5))


def test_small_images_shrink_the_default_crop() -> None:
    network_input = networks.resolved(RunConfig(), (49, 49)).input
    assert network_input is not None
    assert input_side(network_input, (49, 49)) == 24


def test_a_network_fills_in_its_own_settings() -> None:
    own = networks.resolved(RunConfig(model=ModelConfig(name="resnet18")), (150, 150))
    row = networks.NETWORKS["resnet18"]
    assert (own.input, own.train.truth_weight, own.train.batch_size) == (row.input, 10, 32)
    assert (own.train.lr, own.train.adamw_lr) == (row.lr, row.adamw_lr)


def test_settings_of_the_user_stay() -> None:
    train = TrainConfig(truth_weight=0, batch_size=7, lr=1, adamw_lr=0.1)
    whole = RunConfig(input=InputConfig(resize=224), train=train)
    assert networks.resolved(whole, (150, 150)) == whole


@pytest.mark.parametrize(
    ("rates", "expected"), [({"lr": 0.5}, 0.5), ({"adamw_lr": 0.5}, 0.5), ({}, 3e-3), ({"lr": 1, "adamw_lr": 1}, 1)]
)
def test_adamw_alone_has_one_rate(rates: dict[str, float], expected: float) -> None:
    config = RunConfig(train=TrainConfig.model_validate({"optimizer": "adamw", **rates}))
    resolved = networks.resolved(config, (150, 150))
    assert (resolved.train.lr, resolved.train.adamw_lr) == (expected, expected)
    assert networks.resolved(resolved, (150, 150)) == resolved


def test_two_rates_for_adamw_alone_are_refused() -> None:
    config = RunConfig(train=TrainConfig(optimizer="adamw", lr=0.1, adamw_lr=0.2))
    with pytest.raises(ConfigError, match="train.lr is 0.1 and train.adamw_lr 0.2; needs one rate"):
        networks.resolved(config, (150, 150))


def test_a_wide_network_starts_at_even_odds() -> None:
    assert (build("efficientnet-b5", 3)(torch.randn(2, 1, 48, 48)) == 0).all()


@pytest.mark.parametrize(
    ("name", "side", "zoom"), [("lensnet", 56, 0.5), ("resnet18", 56, 0.5), ("mobilenetv3-small", 112, 1)]
)
def test_the_truth_head_maps_cells_of_eight_pixels(name: str, side: int, zoom: float) -> None:
    model = build(name, 3)
    head = TruthHead(model, zoom)
    model(torch.zeros(2, 1, side, side))
    assert head().shape == (2, 14, 14)


def test_the_truth_head_teaches_the_early_layers() -> None:
    model = networks.LensNet(3, 1)
    head = TruthHead(model, 0.5)
    model(torch.randn(2, 1, 56, 56))
    head().sum().backward()
    assert next(model.stem.parameters()).grad is not None
    assert model.classifier.weight.grad is None


def test_small_maps_are_never_trained_in_bfloat16() -> None:
    assert not networks.has_bf16_gain("resnet18", "cpu", 32)
    assert not networks.has_bf16_gain("mobilenetv3-small", "cpu", 112)


@pytest.mark.parametrize(("side", "size"), [(24, 36), (24, 7), (24, 24), (150, 224), (2, 5)])
def test_resampling_is_that_of_torch(side: int, size: int) -> None:
    images = torch.rand(2, 1, side, side, dtype=torch.float64)
    theirs = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
    rows = torch.from_numpy(inputs.resample_weights(side, size))
    assert torch.allclose(rows @ images @ rows.T, theirs, atol=1e-12)
