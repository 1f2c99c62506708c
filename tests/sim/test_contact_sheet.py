import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sublens.sim import contact_sheet
from sublens.surveys.presets import preset


@pytest.mark.parametrize(("names", "across", "down"), [(["model-2"], 1, 1), (["model-2", "rubin", "euclid"], 2, 2)])
def test_surveys_stand_side_by_side(tmp_path: Path, names: list[str], across: int, down: int) -> None:
    contact_sheet.write(tmp_path / "sheet.png", [preset(name) for name in names])
    with Image.open(tmp_path / "sheet.png") as picture:
        expected = across * contact_sheet.WIDTH / (down * contact_sheet.HEIGHT)
        assert picture.size[0] / picture.size[1] == pytest.approx(expected, rel=0.02)
        assert np.asarray(picture.convert("L")).std() > 30
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


@pytest.mark.parametrize("ending", ["pdf", "svg"])
def test_a_sheet_can_be_a_drawing(tmp_path: Path, ending: str) -> None:
    contact_sheet.write(tmp_path / f"sheet.{ending}", [preset("rubin")])
    assert (tmp_path / f"sheet.{ending}").read_bytes()[:5] in (b"%PDF-", b"<?xml")


@pytest.mark.parametrize(
    ("backend", "used"),
    [
        ("module://matplotlib_inline.backend_inline", "agg"),  # Jupyter's, inherited where it is not installed
        ("module://matplotlib.backends.backend_svg", "module://matplotlib.backends.backend_svg"),
    ],
)
def test_pictures_are_drawn_whatever_backend_a_notebook_left_in_the_environment(
    tmp_path: Path, backend: str, used: str
) -> None:
    script = (
        "import os, sublens.evaluation.explain, sublens.report.page; from sublens import cli;"
        "print(os.environ['MPLBACKEND'], flush=True); cli.main(['presets', 'rubin', '--show', 'sheet.png'])"
    )
    environment = {**os.environ, "MPLBACKEND": backend}
    printed = subprocess.check_output([sys.executable, "-c", script], env=environment, cwd=tmp_path, text=True)
    assert printed.split() == [used, "sheet.png"]
    assert (tmp_path / "sheet.png").stat().st_size > 1000
