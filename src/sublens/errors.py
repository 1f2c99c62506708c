"""Every exception that sublens raises on purpose.

SublensError
├── ConfigError   a setting, a preset or a network name that cannot be used
├── DataError     a folder, store, run or catalogue that cannot be read or written
├── BundleError   a trained model on disk that is damaged or does not fit
└── ImageError    one image that cannot be used

A message says what we got, what we need and what to do next.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class SublensError(Exception):
    """Base of all errors meant for the user's eyes."""


class ConfigError(SublensError):
    """A setting, preset or network name cannot be used."""


class DataError(SublensError):
    """A folder, store, run or catalogue cannot be read or written."""


class BundleError(SublensError):
    """A trained model on disk is damaged or does not fit its card."""


class ImageError(SublensError):
    """One image cannot be used."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that offers the known name closest to `name`, or all of them."""
    options = list(known)
    match = get_close_matches(name, options, n=1, cutoff=0.5)
    return f"Did you mean {match[0]}?" if match else f"Known: {', '.join(options)}."
