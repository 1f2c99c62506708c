import random
import resource
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sublens.errors import ConfigError, DataError
from sublens.inference import journal as module
from sublens.inference import tables
from sublens.inference.journal import Journal
from sublens.inference.predictor import Prediction, Row
from sublens.inference.tables import Record, record

CLASSES = ("no", "sphere")
PLAN = {"inputs": "these"}
FLIPS = 200


def row(number: int) -> Record:
    prediction = Prediction("no", {"no": 0.75, "sphere": 0.25}, ("no",), 1.5, is_ood=False)
    return record(Row(Path(f"{number}.fits"), None, prediction, "", (), (number, 0)), CLASSES, "lensnet 0123", "1.0")


def add_rows(path: Path, stop: int = 6, plan: dict[str, str] = PLAN) -> tuple[int, int]:
    """Go on up to row `stop`; returns where it went on."""
    with Journal(path, plan) as journal:
        for number in range(sum(journal.resume_at), stop):
            journal.add((number, 0), row(number))
        return journal.resume_at


def table(path: Path, n: int = 6) -> bytes:
    """The table of n rows, gone on with where a journal is kept."""
    with Journal(path, PLAN) as journal:
        first, second = journal.resume_at
        for number in range(first + second, n):
            journal.add((number, 0), row(number))
        assert journal.finish(tables.columns(CLASSES))[:2] == (n, 0)
    return path.read_bytes()


def kept(path: Path) -> Path:
    """The journal beside a table."""
    return path.with_name(f".{path.name}.journal")


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """Files that grow no further, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table whose batches are of two rows."""
    monkeypatch.setattr(module, "BATCH", 2)
    return tmp_path / "a.csv"


def test_an_interrupted_table_goes_on_after_its_last_whole_batch(path: Path) -> None:
    add_rows(path, 4)
    kept(path).write_bytes(kept(path).read_bytes()[:-20])  # killed within the fourth row
    with Journal(path, PLAN) as journal:
        assert journal.resume_at == (1, 1)
    assert table(path) == table(path.with_name("whole.csv"))
    assert not kept(path).exists()


def test_one_flipped_bit_never_gives_another_table(path: Path) -> None:
    whole, rng = table(path.with_name("whole.csv")), random.Random(1)
    add_rows(path, 5)
    content = kept(path).read_bytes()
    for _ in range(FLIPS):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        kept(path).write_bytes(damaged)
        with warnings.catch_warnings(action="ignore"):
            assert table(path) == whole


def test_lines_out_of_order_or_missing_are_predicted_anew(path: Path) -> None:
    whole = table(path.with_name("whole.csv"))
    add_rows(path, 6)
    plan, *rows = kept(path).read_bytes().splitlines(keepends=True)
    for lines in ([rows[1], rows[0], *rows[2:]], rows[2:], [*rows[:2], *rows[4:]], [*rows, rows[-1]]):
        kept(path).write_bytes(plan + b"".join(lines))
        with pytest.warns(UserWarning, match="rows kept"):
            assert table(path) == whole


def test_damage_is_cut_back_to_the_last_whole_batch_with_a_word(path: Path) -> None:
    add_rows(path, 6)
    lines = kept(path).read_bytes().splitlines(keepends=True)
    kept(path).write_bytes(b"".join([*lines[:4], lines[4].replace(b"0.75", b"0.85"), *lines[5:]]))
    with pytest.warns(UserWarning, match=r"a\.csv: 2 rows kept; 4 rows after them were damaged"):
        assert add_rows(path) == (1, 1)


def test_a_damaged_plan_is_begun_anew_with_a_word(path: Path) -> None:
    add_rows(path, 4)
    kept(path).write_bytes(kept(path).read_bytes().replace(b"these", b"those", 1))
    with pytest.warns(UserWarning, match=r"damaged, or of another version of sublens; it begins anew"):
        assert add_rows(path) == (0, 0)


def test_damage_while_the_table_is_made_leaves_no_table(path: Path) -> None:
    with Journal(path, PLAN) as journal:
        for number in range(3):
            journal.add((number, 0), row(number))
        list(journal.records())  # all are on disk
        kept(path).write_bytes(kept(path).read_bytes().replace(b"0.75", b"0.85", 1))
        with pytest.raises(DataError, match="was damaged while the table was made"):
            journal.finish(tables.columns(CLASSES))
    assert not path.exists()


def test_a_journal_of_another_plan_is_begun_anew_with_a_warning(path: Path) -> None:
    add_rows(path, 4)
    with (
        pytest.warns(UserWarning, match=r"a\.csv: the images, .* changed .* begins anew"),
        Journal(path, {}) as journal,
    ):
        assert (journal.resume_at, list(journal.records())) == ((0, 0), [])


def test_a_journal_of_the_same_plan_goes_on_without_a_warning(path: Path) -> None:
    add_rows(path, 4)
    with Journal(path, PLAN) as journal:
        assert journal.resume_at == (3, 1)
        assert [cells["id"] for cells in journal.records()] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("rest", [b"", b'{"inputs": "the', b"\xff\xfe\n"])
def test_a_journal_without_a_plan_is_begun_anew(path: Path, rest: bytes) -> None:
    kept(path).write_bytes(rest)
    with warnings.catch_warnings(action="ignore"):
        add_rows(path, 1)
    assert len(kept(path).read_bytes().splitlines()) == 2


def test_two_journals_of_one_table_are_refused(path: Path) -> None:
    with Journal(path, PLAN) as journal:
        journal.add((0, 0), row(0))
        with pytest.raises(DataError, match=r"/a\.csv: another process"), Journal(path, PLAN):
            pass
        assert journal.finish(tables.columns(CLASSES))[:2] == (1, 0)


def test_a_full_disk_is_one_error_and_the_same_table_once_there_is_space(path: Path) -> None:
    add_rows(path, 4)
    with largest_file(kept(path).stat().st_size + 100):
        with pytest.raises(DataError, match=r"could not be written \(File too large\)"):
            add_rows(path, 6)
        with pytest.raises(DataError, match=r"could not be written \(File too large\)"):
            table(path)
    assert table(path) == table(path.with_name("whole.csv"))


def test_an_unknown_format_is_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.txt: .* cannot be written as \.txt; needs one of \.csv, \.jsonl"):
        Journal(path.with_suffix(".txt"), {})
