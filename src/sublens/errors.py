"""Every exception that sublens raises on purpose.

SublensError
├── ConfigError   a setting, a preset or a network name that cannot be used
├── DataError     a folder, store, run or catalogue that cannot be read or written
├── BundleError   a trained model on disk that is damaged or does not fit
└── ImageError    one image that cannot be used

An error holds what we got, what we need and what to do next, each by itself; `str` joins them.
"""

import copy
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Self


class SublensError(Exception):
    """Base of all errors meant for the user's eyes.

    what: what we got, without a full stop. need: what we need instead, as it follows "needs".
    next: what to do, in sentences. path: the file, folder or image that it is about.
    """

    def __init__(
        self,
        what: str,
        *,
        need: str = "",
        next: str = "",  # noqa: A002
        path: str | Path | None = None,
    ) -> None:
        """See the class."""
        super().__init__(what)
        self.what, self.need, self.next = what, need, next
        self.path = None if path is None else str(path)

    def __str__(self) -> str:
        subject = f"{self.path}: " if self.path else ""
        need = f"; needs {self.need}" if self.need else ""
        problem = f"{subject}{self.what}{need}"
        return f"{problem}{'' if problem.endswith(('.', '?', '!')) else '.'} {self.next}".rstrip()

    def about(self, path: str | Path) -> Self:
        """The same error about a file of that name."""
        other = copy.copy(self)
        other.path = str(path)
        return other


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
