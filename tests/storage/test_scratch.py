"""Temporary folders, and machines that have none."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from sublens.errors import DataError
from sublens.images.reader import Reader
from sublens.storage import files, scratch
from sublens.storage.scratch import ScratchError


@pytest.fixture
def no_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/missing")


def limited(*command: str, home: Path) -> "subprocess.CompletedProcess[str]":
    """Run a command with that home and, where we are root, without root's right to open what it may not."""
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    if drop and not shutil.which("setpriv"):
        pytest.skip("root, and no setpriv")
    environment = {**os.environ, "HOME": str(home)}
    return subprocess.run([*drop, sys.executable, *command], env=environment, capture_output=True, text=True)


def test_a_fits_image_is_predicted_in_the_home_of_another_user(tmp_path: Path) -> None:
    fits.writeto(tmp_path / "image.fits", np.random.default_rng(0).poisson(20, (150, 150)).astype(np.float32))
    (tmp_path / "home").mkdir(mode=0)
    result = limited("-m", "sublens.cli", "predict", "lensnet", str(tmp_path / "image.fits"), home=tmp_path / "home")
    assert (result.returncode, "Permission" in result.stdout + result.stderr) == (0, False)
    assert "image.fits\t" in result.stdout


def test_a_home_of_ones_own_stays(tmp_path: Path) -> None:
    result = limited("-c", "import os, sublens; print(os.environ['HOME'])", home=tmp_path)
    assert result.stdout.strip() == str(tmp_path)


def test_sublens_is_imported_without_any_temporary_folder() -> None:
    none = "import tempfile; tempfile._candidate_tempdir_list = lambda: ['/missing']"
    assert limited("-c", f"{none}; import sublens; tempfile.gettempdir()", home=Path.home()).stderr == ""


def test_no_temporary_folder_is_an_error_that_names_tmpdir(no_temporary_folder: None) -> None:
    with pytest.raises(ScratchError, match="TMPDIR"):
        scratch.check()


def test_a_full_temporary_folder_is_an_error_that_names_it() -> None:
    with pytest.raises(ScratchError, match=f"{tempfile.gettempdir()} is full"), scratch.filled():
        raise OSError(errno.ENOSPC, "No space left on device")


def test_an_image_of_this_machine_is_read_without_a_temporary_folder(tmp_path: Path, no_temporary_folder: None) -> None:
    np.save(tmp_path / "image.npy", np.arange(400.0).reshape(20, 20))
    with Reader() as reader:
        (result,) = reader.read([tmp_path / "image.npy"])
    assert not isinstance(result.image, Exception)


def test_an_output_is_not_blamed_for_a_lack_of_temporary_folders(tmp_path: Path, no_temporary_folder: None) -> None:
    with pytest.raises(ScratchError), files.translate_errors(tmp_path / "out"):
        tempfile.mkdtemp()
    with pytest.raises(DataError, match="out: could not be written"), files.translate_errors(tmp_path / "out"):
        (tmp_path / "out").read_bytes()
