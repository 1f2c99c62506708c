import csv
import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io.votable import parse_single_table
from astropy.table import Table
from pyarrow import parquet

from sublens.errors import DataError
from sublens.evaluation import evaluate
from sublens.inference import tables
from sublens.inference.journal import Journal
from sublens.inference.predictor import Prediction, PredictionTable, Row


def table(classes: tuple[str, ...] = ("no", "a,b", '"c"')) -> PredictionTable:
    probs = np.random.default_rng(0).dirichlet(np.ones(len(classes)), 5)
    return PredictionTable(np.array([f"test/ü{n}, \n" for n in range(5)]), np.arange(5) % len(classes), probs, classes)


def test_a_table_comes_back_as_it_was(tmp_path: Path) -> None:
    evaluate.write_predictions(table(), tmp_path / "p.csv")
    back = evaluate.read_predictions(tmp_path / "p.csv")
    assert back.ids.tolist() == table().ids.tolist()
    assert back.labels.tolist() == table().labels.tolist()
    assert back.classes == table().classes
    assert np.allclose(back.probs, table().probs, rtol=1e-8)


def test_the_columns_are_named_after_the_classes(tmp_path: Path) -> None:
    evaluate.write_predictions(table(("no", "vort")), tmp_path / "p.csv")
    assert (tmp_path / "p.csv").read_text(encoding="utf-8").startswith("id,label,p_no,p_vort\n")


@pytest.mark.parametrize(
    "text", ["", "id,label,p_no\na,unknown,1\n", "id,label,p_no\na,no,much\n", "id,label,p_no\na\n"]
)
def test_a_damaged_table_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(DataError, match="is damaged"):
        evaluate.read_predictions(tmp_path / "p.csv")


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"p\.csv: cannot be read"):
        evaluate.read_predictions(tmp_path / "p.csv")


CLASSES = ("no", "sphere")
AWKWARD = 'a "quoted", µ & <b>\nsecond line\x07'


def predicted(place: int, notes: str = "") -> Row:
    is_ood = place == 1
    prediction = Prediction("no", {"no": 0.75, "sphere": 0.25}, None if is_ood else ("no",), 1.5, is_ood)
    return Row(Path(f"{place}.fits"), None, prediction, "", (notes,) if notes else (), (place, 0), 150.25, -2.5)


EMPTY_SET = Prediction("no", {"no": 0.5, "sphere": 0.5}, (), 0.25, is_ood=False)


def failed(place: int) -> Row:
    return Row(Path("many.npz"), 3, None, "many.npz, image 3: no finite pixel.", (), (place, 0))


def written(path: Path, rows: list[Row]) -> Path:
    with Journal(path, {}) as journal:
        for row in rows:
            journal.add(row.source_index, tables.record(row, CLASSES, "lensnet 0123", "1.0"))
        n_failed = sum(bool(row.error) for row in rows)
        n_ood = sum(bool(row.prediction and row.prediction.is_ood) for row in rows)
        assert journal.finish(tables.columns(CLASSES)) == (len(rows), n_failed, n_ood, 0)
    return path


def read_back(path: Path) -> list[dict[str, Any]]:
    """Cells as each format's own reader gives them; None for an empty CSV cell and for what astropy masks."""
    match path.suffix:
        case ".csv":
            with path.open(newline="", encoding="utf-8") as file:
                return [{name: cell or None for name, cell in row.items()} for row in csv.DictReader(file)]
        case ".jsonl":
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        case ".parquet":
            return list(parquet.read_table(path).to_pylist())
        case _:
            table = read_with_astropy(path)
            assert str(table["ra"].unit) == "deg"
            return [dict(zip(table.colnames, map(plain, row), strict=True)) for row in table.iterrows()]


def read_with_astropy(path: Path) -> Table:
    if path.suffix in (".vot", ".xml"):
        return parse_single_table(path).to_table(use_names_over_ids=True)
    return Table.read(path, format={".fits": "fits", ".ecsv": "ascii.ecsv"}[path.suffix])


def plain(cell: Any) -> Any:
    return None if cell is np.ma.masked else cell.item() if isinstance(cell, np.generic) else cell


FLAGS = {"True": True, "False": False, "true": True, "false": False}
NAMES = [column.name for column in tables.columns(CLASSES)]
NUMBERS = [column.name for column in tables.columns(CLASSES) if column.kind == "number"]


def normal(row: dict[str, Any]) -> dict[str, Any]:
    """One convention for what formats write differently: texts, numbers and flags; None for nothing."""
    numbers = {name: None if (cell := row[name]) is None or np.isnan(float(cell)) else float(cell) for name in NUMBERS}
    texts = {name: row[name] or None for name in NAMES if name not in NUMBERS and name != "ood"}
    return {**texts, **numbers, "ood": FLAGS.get(row["ood"], row["ood"])}


@pytest.mark.parametrize("suffix", list(tables.WRITERS))
def test_every_format_has_the_same_cells_failures_included(tmp_path: Path, suffix: str) -> None:
    rows = [predicted(1), predicted(2, "a note"), replace(predicted(3), prediction=EMPTY_SET), failed(4)]
    records = [tables.record(row, CLASSES, "lensnet 0123", "1.0") for row in rows]
    table = read_back(written(tmp_path / f"a{suffix}", rows))
    assert list(table[0]) == NAMES
    assert [row["prediction_set"] for row in records] == ["", "no", "{}", ""]
    assert [row["ood"] for row in records] == [True, False, False, None]
    if suffix == ".fits":
        records[3]["ood"] = True  # a FITS logical has no null that astropy keeps apart from False
    assert [normal(row) for row in table] == [normal(row) for row in records]


@pytest.mark.parametrize("suffix", [".fits", ".ecsv", ".vot"])
def test_images_without_a_prediction_are_not_in_distribution(tmp_path: Path, suffix: str) -> None:
    table = read_with_astropy(written(tmp_path / f"a{suffix}", [predicted(1), predicted(2), failed(3)]))
    is_ood = table["ood"] if suffix == ".fits" else table["ood"].filled(True)
    assert list(table[~is_ood]["id"]) == ["2"]


@pytest.mark.parametrize("suffix", list(tables.WRITERS))
def test_awkward_text_comes_back(tmp_path: Path, suffix: str) -> None:
    row = read_back(written(tmp_path / f"a{suffix}", [predicted(1, AWKWARD)]))[0]
    fits_text = AWKWARD.encode("ascii", "backslashreplace").decode()
    texts = {".fits": fits_text, ".vot": AWKWARD.replace("\x07", "?"), ".xml": AWKWARD.replace("\x07", "?")}
    assert row["notes"] == texts.get(suffix, AWKWARD)


@pytest.mark.parametrize("suffix", list(tables.WRITERS))
def test_any_class_name_comes_back(tmp_path: Path, suffix: str) -> None:
    classes = ("süß", '"c" & <d>', "a,b", "линза")
    row = Row(Path("1.fits"), None, Prediction(classes[0], dict.fromkeys(classes, 0.25), classes[1:2]))
    path = tmp_path / f"a{suffix}"
    with Journal(path, {}) as journal:
        journal.add((0, 0), tables.record(row, classes, "lensnet 0123", "1.0"))
        journal.finish(tables.columns(classes))
    (cells,) = read_back(path)
    names = [f"p_{name}" for name in classes]
    assert [float(cells[ascii_in_fits(suffix, name)]) for name in names] == [0.25] * 4
    assert cells["label"] == ascii_in_fits(suffix, "süß")
    assert cells["prediction_set"] == classes[1]


def ascii_in_fits(suffix: str, text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode() if suffix == ".fits" else text


@pytest.mark.parametrize("suffix", list(tables.WRITERS))
def test_a_file_name_that_is_no_utf8_is_escaped(tmp_path: Path, suffix: str) -> None:
    row = replace(predicted(1), path=Path(os.fsdecode(b"lens\xff.fits")), error="lens\udcff.fits: no such file.")
    (cells,) = read_back(written(tmp_path / f"a{suffix}", [row]))
    names = (cells["id"], cells["path"], cells["error"])
    assert names == (r"lens\udcff", r"lens\udcff.fits", r"lens\udcff.fits: no such file.")


@pytest.mark.parametrize("suffix", [".fits", ".parquet", ".vot"])
def test_a_table_is_written_in_blocks(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BLOCK", 3)
    rows = read_back(written(tmp_path / f"a{suffix}", [predicted(number) for number in range(10)]))
    assert [row["id"] for row in rows] == [str(number) for number in range(10)]


@pytest.mark.skipif(shutil.which("stilts") is None, reason="stilts is not installed")
def test_stilts_finds_nothing_wrong_with_a_votable(tmp_path: Path) -> None:
    path = written(tmp_path / "a.vot", [predicted(1, AWKWARD), failed(2)])
    output = subprocess.run(["stilts", "votlint", path], capture_output=True, text=True, check=True)
    assert (output.stdout + output.stderr).strip() == ""


@pytest.mark.parametrize("suffix", list(tables.WRITERS))
def test_a_table_is_complete_for_its_own_plan_alone(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"a{suffix}", [predicted(1)])
    assert tables.is_complete(path, {}) == (suffix not in tables.PLAIN)
    assert not tables.is_complete(path, {"inputs": "others"})
    assert not tables.is_complete(tmp_path / f"b{suffix}", {})


def test_a_fits_table_replaces_what_a_killed_command_left(tmp_path: Path) -> None:
    (tmp_path / ".a.fits.partial").write_bytes(b"half a table")
    assert len(read_back(written(tmp_path / "a.fits", [predicted(1), predicted(2)]))) == 2


@pytest.mark.parametrize("suffix", list(tables.WRITERS))
def test_a_table_may_have_no_rows(tmp_path: Path, suffix: str) -> None:
    assert read_back(written(tmp_path / f"a{suffix}", [])) == []


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "fits", "ecsv", "vot"])
def test_detection_limits_have_a_column_where_the_network_gives_them(tmp_path: Path, form: str) -> None:
    limits = [replace(predicted(0), prediction=replace(EMPTY_SET, limit_msun=2.5e9)), predicted(1), failed(2)]
    with Journal(tmp_path / f"p.{form}", {}) as journal:
        for row in limits:
            journal.add(row.source_index, tables.record(row, CLASSES, "lensnet 0123", "1.0", has_limit=True))
        journal.finish(tables.columns(CLASSES, has_limit=True))
    text = (tmp_path / f"p.{form}").read_bytes()
    assert b"limit_msun" in text
    assert (b"2500000000.0" in text) == (form in ("csv", "jsonl", "ecsv", "vot"))


def test_networks_without_a_fit_have_no_column_of_limits() -> None:
    assert tables.LIMIT not in tables.columns(CLASSES)
    assert tables.LIMIT.name not in tables.record(predicted(0), CLASSES, "lensnet 0123", "1.0")


def test_a_network_that_takes_noise_has_columns_on_it(tmp_path: Path) -> None:
    row = replace(predicted(0), noise="estimated", psf_fwhm=0.125, n_masked=7)
    for path in (tmp_path / "a.csv", tmp_path / "a.parquet"):
        with Journal(path, {}) as journal:
            journal.add((0, 0), tables.record(row, CLASSES, "lensnet-hst 0123", "1.0", has_noise=True))
            journal.finish(tables.columns(CLASSES, has_noise=True))
    assert parquet.read_table(tmp_path / "a.parquet").to_pylist()[0]["psf_fwhm"] == 0.125
    (line,) = csv.DictReader((tmp_path / "a.csv").read_text(encoding="utf-8").splitlines())
    assert [line[name] for name in ("noise", "psf_fwhm", "n_masked")] == ["estimated", "0.125", "7"]
