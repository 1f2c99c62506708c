from pathlib import Path

import pytest
from pydantic import ValidationError

from sublens.config import RunConfig, TrainConfig, load
from sublens.errors import ConfigError


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    return path


def test_without_a_file_the_defaults_hold() -> None:
    assert load(None) == RunConfig()


def test_a_file_sets_and_an_override_wins(tmp_path: Path) -> None:
    path = toml(tmp_path, "[train]\nepochs = 3\nlr = 0.1\n")
    train = load(path, ["train.lr=0.5"]).train
    assert (train.epochs, train.lr) == (3, 0.5)


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("train.flips=false", "train", "flips", False),
        ("train.minutes=2.5", "train", "minutes", 2.5),
        ("model.name=resnet18", "model", "name", "resnet18"),
        ("model.name='resnet18'", "model", "name", "resnet18"),
        ("input.crop=64", "input", "crop", 64),
        ("split.seed=4", "split", "seed", 4),
    ],
)
def test_an_override_reaches_its_field(override: str, section: str, key: str, value: object) -> None:
    assert getattr(getattr(load(None, [override]), section), key) == value


@pytest.mark.parametrize("override", ["train.epoch=3", "train.Lr=1", "model.nam=x", "inputs.crop=1", "input.binnin=2"])
def test_an_unknown_key_offers_the_nearest(override: str) -> None:
    with pytest.raises(ConfigError, match=r"no such setting\. Did you mean (epochs|lr|name|input|binning)\?"):
        load(None, [override])


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, ["train.epochs=-1", "train.lrr=1", "split.test=2"])
    assert caught.value.what == "3 settings cannot be used"
    assert all(part in caught.value.next for part in ("train.epochs", "train.lrr", "split.test"))


@pytest.mark.parametrize("override", ["train.lr", "=3", "train.lr.x=3"])
def test_a_malformed_override_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=f"--set {override}.*; needs "):
        load(None, ["train.lr=1", override])


def test_a_missing_or_malformed_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match=r"settings\.toml.*not valid TOML"):
        load(toml(tmp_path, "[train\n"))


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError):
        TrainConfig().lr = 1.0


def test_settings_survive_a_round_trip_through_json() -> None:
    config = load(None, ["train.minutes=3", "input.crop=32"])
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_every_setting_is_documented() -> None:
    for kind in (RunConfig, TrainConfig):
        undocumented = [name for name, field in kind.model_fields.items() if not field.description]
        assert undocumented in ([], ["model", "split", "train"])
