from pathlib import Path

import numpy as np
import pytest

from sublens import catalog
from sublens.errors import DataError
from sublens.evaluate import Predictions


def table(classes: tuple[str, ...] = ("no", "a,b", '"c"')) -> Predictions:
    probs = np.random.default_rng(0).dirichlet(np.ones(len(classes)), 5)
    return Predictions(np.array([f"test/ü{n}, \n" for n in range(5)]), np.arange(5) % len(classes), probs, classes)


def test_a_table_comes_back_as_it_was(tmp_path: Path) -> None:
    catalog.write(table(), tmp_path / "p.csv")
    back = catalog.read(tmp_path / "p.csv")
    assert back.ids.tolist() == table().ids.tolist()
    assert back.labels.tolist() == table().labels.tolist()
    assert back.classes == table().classes
    assert np.allclose(back.probs, table().probs, rtol=1e-8)


def test_the_columns_are_named_after_the_classes(tmp_path: Path) -> None:
    catalog.write(table(("no", "vort")), tmp_path / "p.csv")
    assert (tmp_path / "p.csv").read_text(encoding="utf-8").startswith("id,label,p_no,p_vort\n")


@pytest.mark.parametrize(
    "text", ["", "id,label,p_no\na,unknown,1\n", "id,label,p_no\na,no,much\n", "id,label,p_no\na\n"]
)
def test_a_damaged_table_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(DataError, match="is damaged"):
        catalog.read(tmp_path / "p.csv")


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"p\.csv: cannot be read"):
        catalog.read(tmp_path / "p.csv")
