"""API keys of a service that other machines can reach; a file holds only their hashes, each with a checksum."""

import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from sublens.errors import ConfigError
from sublens.storage.files import translate_errors

PREFIX = "sublens-"
DIGEST = set("0123456789abcdef")
HASH, CHECKSUM = 64, 8
"""Hexadecimal digits of the hash of a key, and of its checksum in the file."""


def add(path: Path) -> str:
    """A new key, whose hash is appended to the file as a line; nothing can show the key again.

    Raises `ConfigError` where the file holds anything but hashes of keys, and `DataError` where it cannot be written.
    """
    _refuse_other_content(path)
    key = PREFIX + secrets.token_urlsafe(32)
    with translate_errors(path), path.open("a+b") as file:
        path.chmod(0o600)
        file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
        begin = b"" if file.read() in (b"", b"\n") else b"\n"
        file.write(begin + _checked(_hash(key)).encode() + b"\n")
    return key


def _refuse_other_content(path: Path) -> None:
    with translate_errors(path):
        content = path.read_bytes() if path.is_file() else b""
    try:
        if content.strip():
            read(path)
    except ConfigError as err:
        raise ConfigError(err.what, need="a new file, or one of keys", next="Name another one.", path=path) from err


def read(path: Path) -> tuple[str, ...]:
    """The hashes in a file. Raises `ConfigError` where it cannot be read, is damaged, or holds anything else.

    Files that were written before hashes had checksums are read without.
    """
    try:
        lines = path.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError) as err:
        raise _no_keys(path, f"cannot be read ({getattr(err, 'strerror', 'no text')})") from err
    hashes = [line[:HASH] for line in lines]
    if not hashes or any(len(digest) != HASH or set(digest) - DIGEST for digest in hashes):
        raise _no_keys(path, "holds no hashes of keys")
    if any(line not in (digest, _checked(digest)) for line, digest in zip(lines, hashes, strict=True)):
        raise _no_keys(path, "holds a damaged hash of a key")
    return tuple(hashes)


def fits(key: str, hashes: Sequence[str]) -> bool:
    """Whether the key is one of those hashed, in a time that does not depend on which; random keys need no salt."""
    digest = _hash(key)
    return sum(hmac.compare_digest(digest, known) for known in hashes) > 0


def _checked(digest: str) -> str:
    """A hash with its checksum after it, which detects a change of either."""
    return digest + _hash(digest)[:CHECKSUM]


def _no_keys(path: Path, what: str) -> ConfigError:
    return ConfigError(
        what, need="a file of hashed keys", next=f"Make one with `sublens serve --new-key {path}`.", path=path
    )


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
