"""JSON objects that hold their own sha256, which detects a change of any value in them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sublens.storage.files import write_bytes

SEAL = "sha256"
"""Key of the hash of all other entries."""


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object with its hash as the last entry; whatever hash it holds already is replaced."""
    rest = _without_seal(content)
    write_bytes(path, (json.dumps({**rest, SEAL: _digest(rest)}, indent=1) + "\n").encode())


def unsealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a JSON object without its hash; `ValueError` where it has none, or its content another."""
    rest = _without_seal(content)
    if content.get(SEAL) != _digest(rest):
        raise ValueError(f"its {SEAL} is not that of its content")
    return rest


def _without_seal(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != SEAL}


def _digest(content: Mapping[str, Any]) -> str:
    """The sha256 of the values, whatever the order of the keys and the blanks between them."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
