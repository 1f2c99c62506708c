"""API keys of a service that other machines can reach; a file holds only their hashes."""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from pathlib import Path

from sublens.errors import ConfigError
from sublens.storage.files import translate_errors

PREFIX = "sublens-"
DIGEST = set("0123456789abcdef")


def add(path: Path) -> str:
    """A new key, whose hash is appended to the file; nothing can show the key again."""
    key = PREFIX + secrets.token_urlsafe(32)
    with translate_errors(path), path.open("a", encoding="ascii") as file:
        path.chmod(0o600)
        file.write(_hash(key) + "\n")
    return key


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
