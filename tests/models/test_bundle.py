from pathlib import Path

import pytest

from sublens.errors import BundleError
from sublens.models import bundle


@pytest.fixture
def shelf(saved: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shelf of trained networks that holds one, called run."""
    monkeypatch.setattr(bundle, "BUNDLE_FOLDERS", (saved.parent / "nothing here", saved.parent))
    return saved.parent


def test_a_trained_network_that_comes_with_sublens_is_found_by_name(shelf: Path) -> None:
    assert bundle.shipped() == {"run": shelf / "run"}
    assert bundle.locate("run") == shelf / "run"
    assert bundle.is_bundle("run")
    assert not bundle.is_bundle("walk")


def test_a_folder_comes_before_a_name(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "run").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert bundle.locate("run") == Path("run")


def test_an_unknown_name_is_answered_with_the_nearest(shelf: Path) -> None:
    with pytest.raises(BundleError, match="ran: no such folder, and no trained network.*Did you mean run?"):
        bundle.locate("ran")
