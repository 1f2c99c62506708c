import numpy as np
import pytest
import torch
from torch import Tensor

from sublens.config import InputConfig, ModelConfig, RunConfig
from sublens.errors import ConfigError
from sublens.images.signal_to_noise import encode
from sublens.models import networks
from sublens.models.inputs import counts_to_input

SIDE = 40


def planes(snr: np.ndarray, mask: np.ndarray | None = None, **settings: object) -> Tensor:
    """Network input of images [b, h, w] of that signal to noise."""
    config = InputConfig.model_validate({"transform": "signal-to-noise", **settings})
    return counts_to_input(encode(snr, np.ones_like(snr), mask), config)


def noise(n: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, SIDE, SIDE))


def galaxy() -> np.ndarray:
    x = np.arange(SIDE) - (SIDE - 1) / 2
    return np.asarray(200 * np.exp(-np.hypot(x, x[:, None]) / 4)[None])


@pytest.mark.parametrize("binning", [1, 2, 4])
def test_detail_of_empty_sky_has_the_width_of_the_noise(binning: int) -> None:
    detail = planes(noise(20), planes=["detail"], binning=binning, stretch=20, highpass=40)
    assert detail.std() == pytest.approx(1, abs=0.05)


def test_the_image_is_the_stretched_signal_to_noise() -> None:
    snr = np.linspace(-5, 500, SIDE**2).reshape(1, SIDE, SIDE)
    np.testing.assert_allclose(planes(snr)[:, 0], np.arcsinh(snr / 3), atol=4e-3)


def test_masked_pixels_are_filled_by_their_neighbours_and_have_no_detail() -> None:
    mask = np.zeros((1, SIDE, SIDE), bool)
    mask[0, 10:13, 20:24] = True
    image, detail, masked = planes(np.where(mask, 1e4, 60.0), mask)[0]
    torch.testing.assert_close(image, torch.full_like(image, np.arcsinh(20)), atol=1e-3, rtol=0)
    assert detail.abs().max() < 1e-3
    np.testing.assert_array_equal(masked, mask[0])


def test_a_binned_pixel_is_the_mean_of_those_with_a_value() -> None:
    mask = np.zeros((1, SIDE, SIDE), bool)
    mask[0, ::2, ::2] = True
    image, _, masked = planes(np.where(mask, 1e4, 6.0), mask, binning=2)[0]
    torch.testing.assert_close(image, torch.full_like(image, np.arcsinh(4)), atol=1e-3, rtol=0)
    assert (masked == 0.25).all()


def test_an_image_without_values_is_all_sky() -> None:
    image, detail, masked = planes(noise(), np.ones((1, SIDE, SIDE), bool), binning=2)[0]
    assert not image.any()
    assert not detail.any()
    assert (masked == 1).all()


def test_planes_do_not_depend_on_the_other_images() -> None:
    snr, mask = 10 + noise(5), noise(5, seed=1) > 2
    alone = torch.cat([planes(snr[k : k + 1], mask[k : k + 1]) for k in range(5)])
    assert torch.equal(planes(snr, mask), alone)


@pytest.mark.parametrize("axes", [(1,), (2,), (1, 2)])
def test_a_mirrored_image_has_mirrored_planes(axes: tuple[int, ...]) -> None:
    snr, mask = galaxy() + noise(), noise(seed=1) > 2
    mirrored = planes(np.flip(snr, axes).copy(), np.flip(mask, axes).copy(), binning=2)
    straight = planes(snr, mask, binning=2).flip([axis + 1 for axis in axes])
    torch.testing.assert_close(mirrored, straight, atol=1e-4, rtol=0)  # of an S/N of up to 200


def test_an_arc_keeps_its_contrast_on_the_light_of_a_galaxy() -> None:
    arc = np.zeros((1, SIDE, SIDE))
    arc[0, 8:11, 16:24] = 3
    dark, bright = (
        planes(light + arc, planes=["detail"]) - planes(light, planes=["detail"]) for light in (0 * arc, galaxy())
    )
    assert bright[0, 0, 9, 20] > 0.5 * dark[0, 0, 9, 20] > 0.5


@pytest.mark.parametrize(
    "settings",
    [
        {"planes": ["image"]},
        {"transform": "signal-to-noise", "planes": []},
        {"transform": "signal-to-noise", "planes": ["mask", "mask"]},
        {"transform": "signal-to-noise", "channels": 3},
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="need"):
        InputConfig.model_validate(settings)


def test_a_transform_for_other_pixels_is_refused() -> None:
    with pytest.raises(ConfigError, match="transform"):
        networks.resolved(RunConfig(input=InputConfig()), (120, 120), "signal-to-noise")


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_networks_take_signal_to_noise_where_the_pixels_are(name: str) -> None:
    network_input = networks.resolved(RunConfig(model=ModelConfig(name=name)), (130, 130), "signal-to-noise").input
    assert network_input is not None
    assert (network_input.transform, network_input.n_channels, network_input.crop) == ("signal-to-noise", 3, 120)


def test_old_settings_are_written_as_before() -> None:
    assert list(InputConfig().model_dump()) == ["crop", "binning", "resize", "channels", "transform", "highpass"]
