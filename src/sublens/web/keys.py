"""Keys of those who may use a service that others can reach. Only their hashes are kept."""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from pathlib import Path

from sublens.errors import ConfigError
from sublens.storage.files import translate_errors

PREFIX = "sublens-"


def add(path: Path) -> str:
    """A new key, whose hash is added to the file; the key itself is shown this once."""
    key = PREFIX + secrets.token_urlsafe(32)
    with translate_errors(path), path.open("a", encoding="ascii") as file:
        path.chmod(0o600)
        file.write(_hash(key) + "\n")
    return key


def read(path: Path) -> tuple[str, ...]:
    """The hashes in a file. Raises `ConfigError` where there is none, or something else."""
    try:
        lines = path.read_text(encoding="ascii").split()
    except (OSError, ValueError) as err:
        raise ConfigError(f"{path}: no file of keys. Make one with `sublens serve --new-key {path}`.") from err
    if not lines or any(len(line) != 64 or set(line) - set("0123456789abcdef") for line in lines):
        raise ConfigError(f"{path}: holds no hashes of keys. Make one with `sublens serve --new-key {path}`.")
    return tuple(lines)


def fits(key: str, hashes: Sequence[str]) -> bool:
    """Whether the key is one of them; takes as long whichever it is. Keys are random, so that no salt is needed."""
    digest = _hash(key)
    return sum(hmac.compare_digest(digest, one) for one in hashes) > 0


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
