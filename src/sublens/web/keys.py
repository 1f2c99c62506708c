"""API keys of a service that other machines can reach; a file holds only their hashes."""

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
        file.write(begin + _hash(key).encode() + b"\n")
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
    """The hashes in a file. Raises `ConfigError` where it cannot be read or holds anything else."""
    try:
        lines = path.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError) as err:
        raise _no_keys(path, f"cannot be read ({getattr(err, 'strerror', 'no text')})") from err
    if not lines or any(len(line) != 64 or set(line) - DIGEST for line in lines):
        raise _no_keys(path, "holds no hashes of keys")
    return tuple(lines)


def fits(key: str, hashes: Sequence[str]) -> bool:
    """Whether the key is one of those hashed, in a time that does not depend on which; random keys need no salt."""
    digest = _hash(key)
    return sum(hmac.compare_digest(digest, known) for known in hashes) > 0


def _no_keys(path: Path, what: str) -> ConfigError:
    return ConfigError(
        what, need="a file of hashed keys", next=f"Make one with `sublens serve --new-key {path}`.", path=path
    )


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
