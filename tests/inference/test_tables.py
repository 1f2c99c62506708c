import csv
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.table import Table
from pyarrow import parquet

from sublens.errors import ConfigError, DataError
from sublens.evaluation import evaluate
from sublens.inference import tables
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


def judged(place: int, notes: str = "") -> Row:
    prediction = Prediction("no", {"no": 0.75, "sphere": 0.25}, ("no",), 1.5, is_ood=place % 2 == 1)
    return Row(Path(f"{place}.fits"), None, prediction, "", (notes,) if notes else (), (place, 0), 150.25, -2.5)


def failed(place: int) -> Row:
    return Row(Path("many.npz"), 3, None, AWKWARD, (), (place, 0))


def written(path: Path, rows: list[Row]) -> Path:
    with tables.Journal(path, {}) as journal:
        for row in rows:
            journal.add(row.place, tables.record(row, CLASSES, "lensnet 0123", "1.0"))
        assert journal.finish(CLASSES) == (len(rows), sum(bool(row.error) for row in rows))
    return path


def read_back(path: Path) -> list[dict[str, Any]]:
    match path.suffix:
        case ".csv":
            with path.open(newline="") as file:
                return list(csv.DictReader(file))
        case ".jsonl":
            return [json.loads(line) for line in path.read_text().splitlines()]
        case ".parquet":
            return list(parquet.read_table(path).to_pylist())
        case _:
            table = Table.read(path, format={".fits": "fits", ".ecsv": "ascii.ecsv"}.get(path.suffix, "votable"))
            assert str(table["ra"].unit) == "deg"
            if path.suffix != ".fits":
                assert table["label"].description == "Most probable class"
            return [dict(zip(table.colnames, map(str, row), strict=True)) for row in table.iterrows()]


@pytest.mark.parametrize("suffix", list(tables.WRITERS))
def test_every_format_says_the_same(tmp_path: Path, suffix: str) -> None:
    names = [column.name for column in tables.columns(CLASSES)]
    first, second = read_back(written(tmp_path / f"a{suffix}", [judged(1, AWKWARD), failed(2)]))
    assert list(first) == list(second) == names
    assert (first["id"], first["label"], first["prediction_set"], second["id"]) == ("1", "no", "no", "many#3")
    assert [float(first[name]) for name in ("p_no", "p_sphere", "ood_score", "ra", "dec")] == [
        *(0.75, 0.25, 1.5, 150.25, -2.5)
    ]
    assert str(first["ood"]).lower() == "true"
    assert str(second["p_no"]) in ("", "None", "nan", "--")
    for cell in (first["notes"], second["error"]):
        as_was = {".fits": AWKWARD.encode("ascii", "backslashreplace").decode(), ".vot": None, ".xml": None}
        expected = as_was.get(suffix, AWKWARD)
        assert cell == (expected if expected is not None else AWKWARD.replace("\x07", "?"))


@pytest.mark.parametrize("suffix", [".fits", ".parquet", ".vot"])
def test_a_table_is_written_in_blocks(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BLOCK", 3)
    rows = read_back(written(tmp_path / f"a{suffix}", [judged(number) for number in range(10)]))
    assert [row["id"] for row in rows] == [str(number) for number in range(10)]


@pytest.mark.skipif(shutil.which("stilts") is None, reason="stilts is not installed")
def test_stilts_finds_nothing_wrong_with_a_votable(tmp_path: Path) -> None:
    path = written(tmp_path / "a.vot", [judged(1, AWKWARD), failed(2)])
    said = subprocess.run(["stilts", "votlint", path], capture_output=True, text=True, check=True)
    assert (said.stdout + said.stderr).strip() == ""


def test_an_interrupted_table_goes_on_after_its_last_whole_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "BATCH", 2)
    rows, path = [judged(number) for number in range(6)], tmp_path / "a.csv"
    whole = written(tmp_path / "whole.csv", rows).read_text()
    with tables.Journal(path, {"inputs": "these"}) as journal:
        for row in rows[:4]:
            journal.add(row.place, tables.record(row, CLASSES, "lensnet 0123", "1.0"))
    partial = tmp_path / ".a.csv.journal"
    partial.write_bytes(partial.read_bytes()[:-20])  # killed within the fourth row
    with tables.Journal(path, {"inputs": "these"}) as journal:
        assert journal.place == (1, 1)
        for row in rows[2:]:
            journal.add(row.place, tables.record(row, CLASSES, "lensnet 0123", "1.0"))
        journal.finish(CLASSES)
    assert path.read_text() == whole
    assert not partial.exists()


def test_a_journal_of_something_else_is_begun_anew(tmp_path: Path) -> None:
    for inputs in ("these", "those"):
        with tables.Journal(tmp_path / "a.csv", {"inputs": inputs}) as journal:
            assert journal.place == (0, 0)
            journal.add((0, 0), tables.record(judged(0), CLASSES, "", ""))
            assert len(list(journal.records())) <= 1


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"writes tables as \.csv, \.jsonl"):
        tables.Journal(tmp_path / "a.txt", {})
