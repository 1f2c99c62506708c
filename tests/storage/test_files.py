import errno
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sublens.errors import DataError
from sublens.storage import files

KIND = files.Kind.DATASET


def test_a_failed_write_leaves_neither_file_nor_partial(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), files.whole_file(tmp_path / "a.txt") as partial:
        partial.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_failed_rewrite_keeps_the_old_file(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "a", b"old")
    with pytest.raises(RuntimeError), files.whole_file(tmp_path / "a") as partial:
        partial.write_bytes(b"new")
        raise RuntimeError
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_full_disk_is_explained_and_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match="No space left on device.*Free some space"),
        files.whole_folder(tmp_path / "store", kind=KIND, force=False) as partial,
    ):
        (partial / "half").write_bytes(b"1")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_kept_without_force(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "mine").write_text("precious")
    with (
        pytest.raises(DataError, match="exists already; needs a new or empty folder.*--force"),
        files.whole_folder(tmp_path / "store", kind=KIND, force=False),
    ):
        pass
    assert (tmp_path / "store" / "mine").read_text() == "precious"


def test_force_replaces_a_folder_only_once_the_new_one_is_whole(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "manifest.json").touch()
    with files.whole_folder(tmp_path / "store", kind=KIND, force=True) as partial:
        (partial / "new").touch()
        assert (tmp_path / "store" / "manifest.json").exists()
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_an_unwritable_place_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"below: could not be written \(.*needs a place with free space"):
        files.write_bytes(tmp_path / "file" / "below", b"x")


def test_sha256_of_nothing_is_the_published_one(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert files.sha256(tmp_path / "empty").startswith("e3b0c44298fc1c14")


def test_force_replaces_only_what_sublens_wrote(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").touch()
    with pytest.raises(DataError, match="not written by sublens"):
        files.refuse_existing(tmp_path / "photos", kind=KIND, force=True)


def test_a_linked_folder_is_replaced_where_the_link_leads(tmp_path: Path) -> None:
    (tmp_path / "disk" / "real").mkdir(parents=True)
    (tmp_path / "disk" / "real" / "manifest.json").touch()
    (tmp_path / "link").symlink_to("disk/real")
    with files.whole_folder(tmp_path / "link", kind=KIND, force=True) as partial:
        (partial / "new").touch()
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real"]
    assert [path.name for path in (tmp_path / "disk" / "real").iterdir()] == ["new"]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_linked_file_is_replaced_where_the_link_leads(tmp_path: Path, is_there: bool) -> None:
    (tmp_path / "disk").mkdir()
    if is_there:
        (tmp_path / "disk" / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("disk/real")
    files.write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "real").read_bytes() == b"new"
    assert {path.name for path in tmp_path.rglob("*")} == {"disk", "link", "real"}


def test_what_a_killed_writer_left_is_removed_by_the_next_but_not_what_another_holds(tmp_path: Path) -> None:
    killed = [sys.executable, "-c", KILLED, str(tmp_path / "a [1].csv")]
    assert subprocess.run(killed).returncode == 9
    assert len(list(tmp_path.iterdir())) == 1
    with files.whole_file(tmp_path / "a [1].csv") as first:
        first.write_bytes(b"first")
        files.write_bytes(tmp_path / "a [1].csv", b"second")
        assert len(list(tmp_path.iterdir())) == 2
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"first"]


def test_what_another_machine_may_hold_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a")]).returncode == 9
    monkeypatch.setattr(files, "HOST", "other1")
    files.write_bytes(tmp_path / "a", b"x")
    assert len(list(tmp_path.iterdir())) == 2


KILLED = """
import os, sys, pathlib
from sublens.storage.files import whole_file
with whole_file(pathlib.Path(sys.argv[1])) as partial:
    partial.write_bytes(b"half")
    os._exit(9)
"""


@pytest.mark.parametrize("letter", ["a", "\u00e9", "\udcff"])
@pytest.mark.parametrize("write", [files.write_bytes, lambda path, data: folder_with(path, data)])
def test_the_longest_name_that_a_disk_takes_can_be_written(tmp_path: Path, letter: str, write: Any) -> None:
    path = tmp_path / (letter * (files.MAX_NAME_BYTES // len(os.fsencode(letter))))
    for data in (b"1", b"2"):
        write(path, data)
    assert list(tmp_path.iterdir()) == [path]


def folder_with(path: Path, data: bytes) -> None:
    with files.whole_folder(path, kind=KIND, force=True) as partial:
        (partial / "manifest.json").write_bytes(data)


@pytest.mark.parametrize("letter", ["a", "\u00e9"])
def test_a_long_name_is_shortened_to_one_of_its_own(letter: str) -> None:
    first, second = (files.fitting_name(300 * letter + last, ".fits") for last in "xy")
    assert first != second
    assert first == files.fitting_name(300 * letter + "x", ".fits")
    assert {first[:90], second[:90]} == {90 * letter}
    assert 253 <= len(first.encode()) <= 255
    assert first.endswith(".fits")
    assert files.fitting_name("a", ".fits") == "a.fits"


def test_what_finished_meanwhile_is_not_replaced_without_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = files.lock_folder

    def finish(folder: Path) -> Any:
        monkeypatch.setattr(files, "lock_folder", lock)
        folder_with(tmp_path / "a", b"other")
        return lock(folder)

    monkeypatch.setattr(files, "lock_folder", finish)
    with pytest.raises(DataError, match="exists already"), files.whole_folder(tmp_path / "a", kind=KIND, force=False):
        pass
    assert (tmp_path / "a" / "manifest.json").read_bytes() == b"other"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("content", "words"), [(b"mine", "was not written by this command"), (None, "is no plain file")]
)
def test_force_replaces_no_other_file(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is None:
        os.mkfifo(tmp_path / "a")
    else:
        (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match=words):
        files.refuse_existing_file(tmp_path / "a", mark=b"mark", force=True)


@pytest.mark.parametrize("content", [b"", b"mark", b"mark" + bytes(2**22), bytes(2**22) + b"mark"])
def test_force_replaces_a_file_that_bears_its_mark_at_either_end(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    files.refuse_existing_file(tmp_path / "a", mark=b"mark", force=True)


@pytest.mark.parametrize(("out", "source"), [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("x/../a", "a")])
def test_a_result_may_not_overlap_what_it_is_made_from(tmp_path: Path, out: str, source: str) -> None:
    with pytest.raises(DataError, match="overlaps"):
        files.refuse_overlap(tmp_path / out, tmp_path / source)


def test_neighbours_do_not_overlap(tmp_path: Path) -> None:
    files.refuse_overlap(tmp_path / "ab", tmp_path / "a")


def test_two_processes_cannot_write_one_folder(tmp_path: Path) -> None:
    with files.whole_folder(tmp_path / "out", kind=KIND, force=False, plan="one") as partial:
        (partial / "work").touch()
        with (
            pytest.raises(DataError, match="another process is writing"),
            files.whole_folder(tmp_path / "out", kind=KIND, force=True, plan="one"),
        ):
            pass
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["work"]


def interrupted(out: Path, plan: str, *, force: bool = False) -> list[str]:
    """Names in the folder as a block begins that breaks off after some work."""
    with suppress(KeyboardInterrupt), files.whole_folder(out, kind=KIND, force=force, plan=plan) as partial:
        names = sorted(path.name for path in partial.iterdir() if path.name != files.PLAN)
        (partial / plan).touch()
        raise KeyboardInterrupt
    return names


def test_kept_work_is_found_again_by_the_same_plan_alone(tmp_path: Path) -> None:
    assert interrupted(tmp_path / "out", "one") == []
    assert interrupted(tmp_path / "out", "one") == ["one"]
    with pytest.raises(DataError, match="unfinished work of another command"):
        interrupted(tmp_path / "out", "two")
    assert interrupted(tmp_path / "out", "two", force=True) == []


def test_a_failure_before_any_work_leaves_nothing(tmp_path: Path) -> None:
    with suppress(KeyboardInterrupt), files.whole_folder(tmp_path / "out", kind=KIND, force=False, plan="one"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_kill_between_the_renames_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with files.whole_folder(out, kind=KIND, force=False, plan="one") as partial:
        (partial / "manifest.json").write_text("old")
    rename = Path.replace

    def killed(path: Path, target: Path) -> Path:
        if target == out:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", killed)
    with suppress(KeyboardInterrupt), files.whole_folder(out, kind=KIND, force=True, plan="two") as partial:
        (partial / "manifest.json").write_text("new")
    monkeypatch.setattr(Path, "replace", rename)
    with files.whole_folder(out, kind=KIND, force=True, plan="two") as partial:
        assert (partial / "manifest.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["manifest.json"]


def test_what_is_no_folder_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("pipe", "link"):
        with pytest.raises(DataError, match="exists and is not a folder; needs a folder"):
            files.refuse_existing(tmp_path / name, kind=KIND, force=True)


HOLD_LOCK = """
import sys, pathlib
from sublens.storage.files import lock_file
with lock_file(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_lock_on_a_file_ends_with_the_process_that_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "journal"
    command = [sys.executable, "-c", HOLD_LOCK, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(DataError, match="journal: another process is writing there"), files.lock_file(path):
            pass
        process.kill()
    with files.lock_file(path) as file:
        file.write(b"row")
    assert path.read_bytes() == b"row"


def test_a_lock_on_a_file_ends_with_the_block(tmp_path: Path) -> None:
    for row in (b"1", b"2"):
        with files.lock_file(tmp_path / "a") as file:
            file.write(row)
            with pytest.raises(DataError, match="another process"), files.lock_file(tmp_path / "a"):
                pass
    assert (tmp_path / "a").read_bytes() == b"12"


@pytest.mark.parametrize("is_new", [False, True])
def test_a_file_removed_before_it_was_locked_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_new: bool
) -> None:
    def finish(handle: int, operation: int) -> None:  # what another process does between our open and our lock
        (tmp_path / "a").rename(tmp_path / "finished")
        if is_new:
            (tmp_path / "a").touch()

    monkeypatch.setattr("fcntl.flock", finish)
    with pytest.raises(DataError, match="another process"), files.lock_file(tmp_path / "a"):
        pass


def test_force_replaces_no_run_that_holds_another(tmp_path: Path) -> None:
    for folder in (tmp_path / "runs", tmp_path / "runs" / "other"):
        folder.mkdir()
        (folder / "log.jsonl").write_text("")
    with pytest.raises(DataError, match="holds a run, so --force does not put a run in its place"):
        files.refuse_existing(tmp_path / "runs", kind=files.Kind.RUN, force=True)


def test_force_replaces_no_run_that_another_process_holds(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").write_text("")
    with (
        files.lock_folder(tmp_path / "run"),
        pytest.raises(DataError, match="another process is writing there"),
        files.whole_folder(tmp_path / "run", kind=files.Kind.RUN, force=True) as partial,
    ):
        (partial / "card.json").write_text("{}")
    assert (tmp_path / "run" / "log.jsonl").is_file()


def test_what_a_link_leads_to_is_emptied_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "card.json").touch()
    (tmp_path / "link").symlink_to("real")
    files.discard(tmp_path / "link")
    assert (list((tmp_path / "real").iterdir()), (tmp_path / "link").is_symlink()) == ([], True)
