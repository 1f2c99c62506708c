"""API keys and the file that holds their hashes."""

import hashlib
from contextlib import suppress
from pathlib import Path

import pytest

from sublens.errors import ConfigError, DataError
from sublens.web import keys


def test_a_file_holds_the_hash_of_a_key_its_checksum_and_nothing_else(tmp_path: Path) -> None:
    digest = hashlib.sha256(keys.add(tmp_path / "keys").encode()).hexdigest()
    checksum = hashlib.sha256(digest.encode()).hexdigest()[:8]
    assert (tmp_path / "keys").read_text() == f"{digest}{checksum}\n"
    assert (tmp_path / "keys").stat().st_mode & 0o077 == 0


def test_every_key_of_a_file_opens_and_no_other_does(tmp_path: Path) -> None:
    first, second = (keys.add(tmp_path / "keys") for _ in range(2))
    hashes = keys.read(tmp_path / "keys")
    assert [keys.fits(key, hashes) for key in (first, second, first[:-1], "", hashes[0])] == [True, True] + [False] * 3


def test_no_flipped_bit_of_a_file_gives_another_key(tmp_path: Path) -> None:
    keys.add(tmp_path / "keys")
    content, hashes = (tmp_path / "keys").read_bytes(), keys.read(tmp_path / "keys")
    for place in range(8 * len(content)):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        (tmp_path / "keys").write_bytes(changed)
        with suppress(ConfigError):
            assert keys.read(tmp_path / "keys") == hashes


def test_a_file_from_before_checksums_is_read(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(64 * "a" + "\n")
    assert keys.read(tmp_path / "keys") == (64 * "a",)


def test_no_key_fits_an_empty_list() -> None:
    assert not keys.fits("sublens-anything", ())


def test_keys_differ_and_cannot_be_guessed(tmp_path: Path) -> None:
    made = {keys.add(tmp_path / "keys") for _ in range(20)}
    assert len(made) == 20
    assert {key.startswith(keys.PREFIX) and len(key) > 40 for key in made} == {True}


def test_a_revoked_key_opens_nothing(tmp_path: Path) -> None:
    revoked, kept = (keys.add(tmp_path / "keys") for _ in range(2))
    lines = (tmp_path / "keys").read_text().splitlines()
    (tmp_path / "keys").write_text(lines[1])
    assert [keys.fits(key, keys.read(tmp_path / "keys")) for key in (revoked, kept)] == [False, True]


def test_a_key_that_is_no_utf_8_is_wrong_and_no_failure(tmp_path: Path) -> None:
    keys.add(tmp_path / "keys")
    assert not keys.fits("sublens-\udcff", keys.read(tmp_path / "keys"))


def test_a_file_that_was_readable_by_others_is_closed(tmp_path: Path) -> None:
    (tmp_path / "keys").touch(mode=0o644)
    keys.add(tmp_path / "keys")
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "No such file"), (b"", "no hashes"), (b"not a hash\n", "no hashes"), (b"\xff\xfe", "no text")],
)
def test_a_file_without_hashes_is_refused_with_its_remedy(content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as refusal:
        keys.read(path)
    assert (refusal.value.path, refusal.value.need) == (str(path), "a file of hashed keys")
    assert f"--new-key {path}" in refusal.value.next


def test_a_key_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing"):
        keys.add(tmp_path / "missing" / "keys")


def test_a_key_has_a_line_of_its_own(tmp_path: Path) -> None:
    first = keys.add(tmp_path / "keys")
    (tmp_path / "keys").write_text((tmp_path / "keys").read_text().rstrip())  # as an editor leaves it
    second = keys.add(tmp_path / "keys")
    hashes = keys.read(tmp_path / "keys")
    assert [keys.fits(key, hashes) for key in (first, second)] == [True, True]


def test_a_key_is_not_added_to_another_file(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ConfigError, match="holds no hashes of keys; needs a new file, or one of keys"):
        keys.add(tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "mine"
