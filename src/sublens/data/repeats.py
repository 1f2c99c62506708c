"""Images that stand in a data set twice, where that spoils a measurement or a label."""

import hashlib
import warnings
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

Labelled = Mapping[str, tuple[int, bytes]]
"""Label and digest of the counts of each image, by id."""


def digest(counts: NDArray[np.uint16]) -> bytes:
    """The same 16 bytes for the same counts [h, w] alone."""
    return hashlib.blake2b(np.ascontiguousarray(counts).tobytes(), digest_size=16).digest()


def warn_of_repeats(images: Labelled, train: Iterable[str], test: Iterable[str]) -> None:
    """Warn of test images that are training images too, and of equal images under two labels.

    train, test: ids of these parts; those without a digest are ignored. Images are equal where their counts are.
    """
    by_digest = {images[name][1]: name for name in train if name in images}
    tested = [name for name in test if name in images]
    shared = [(name, by_digest[images[name][1]]) for name in tested if images[name][1] in by_digest]
    if shared:
        warnings.warn(
            f"{len(shared):,} of {len(tested):,} test images are training images too, such as "
            f"{' and '.join(shared[0])}: scores will be too good.",
            stacklevel=2,
        )
    labelled: dict[bytes, dict[int, str]] = {}
    for name, (label, key) in images.items():
        labelled.setdefault(key, {}).setdefault(label, name)
    if twice := [names for names in labelled.values() if len(names) > 1]:
        warnings.warn(
            f"equal images stand under two labels, {len(twice):,} in all, such as {' and '.join(twice[0].values())}: "
            "not all of these can be right.",
            stacklevel=2,
        )
