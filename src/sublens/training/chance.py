"""Chance: whether a training has learned anything yet.

Networks stay at chance for a while before they learn anything, and a training that ends there is worth nothing.
"""

from collections import deque

import numpy as np
from numpy.typing import NDArray

from sublens import metrics

LEAST_IMAGES = 2_000
"""Images whose mean loss can be compared with that of a guess, to a few thousandths."""
FIRST_IMAGES = 20_000
"""Images after which a training is checked, or at its half if that comes first; and again whenever they double."""
GUESS_SHARE = 0.98
"""Loss, as a share of that of a guess, above which nothing is learned."""
LEAST_AUC = 0.6
"""Lower end of the AUC's interval from which on something is learned, whatever the loss."""


def guess_loss(labels: NDArray[np.int64]) -> float:
    """Cross-entropy of a guess by the classes' shares, nats; the logarithm of their number where all are equal."""
    shares = np.bincount(labels) / len(labels)
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())


class ChanceWatch:
    """Losses of a training beside that of a guess, and the times to look at them.

    The selection part decides, as a small training part is soon learned by heart; where it was not predicted for
    long, the training's own loss does.
    """

    def __init__(self, labels: NDArray[np.int64]) -> None:
        """labels: those of the training part."""
        self.guess = guess_loss(labels)
        self._losses: deque[tuple[float, int]] = deque()
        self._selection: tuple[int, str] | None = None
        self._next_check, self._is_past_half = FIRST_IMAGES, False

    def add(self, loss: float, n_images: int) -> None:
        """Add the mean loss of a step."""
        self._losses.append((loss, n_images))
        while self._n_recent - self._losses[0][1] >= LEAST_IMAGES:
            self._losses.popleft()

    def evaluate(self, images: int, probs: NDArray[np.float64], labels: NDArray[np.int64]) -> None:
        """Note how the selection part is predicted, [n, c], after so many training images."""
        loss, auc = float(metrics.losses(probs, labels).mean()), metrics.macro_auc_interval(probs, labels)
        is_at_chance = loss > GUESS_SHARE * self.guess and auc["low"] < LEAST_AUC
        words = f"selection loss {loss:.3f}, that of a guess {self.guess:.3f}; AUC {auc['value']:.3f}"
        self._selection = images, words if is_at_chance else ""

    def is_check(self, images: int, share_done: float) -> bool:
        """Whether it is time to look for evidence, after so many images; True once at each such time."""
        is_half, is_later = share_done >= 0.5 and not self._is_past_half, images >= self._next_check
        self._is_past_half |= is_half
        if is_later:
            self._next_check = 2 * images
        return is_half or is_later

    def evidence(self, images: int) -> str:
        """Losses that show no learning after so many images, in words; empty where something is learned or unknown."""
        if images < LEAST_IMAGES:
            return ""
        if self._selection and images - self._selection[0] < FIRST_IMAGES:
            return self._selection[1]
        is_at_chance = self._n_recent >= LEAST_IMAGES and self._loss > GUESS_SHARE * self.guess
        return f"training loss {self._loss:.3f}, that of a guess {self.guess:.3f}" if is_at_chance else ""

    @property
    def _loss(self) -> float:
        return sum(loss * n for loss, n in self._losses) / self._n_recent

    @property
    def _n_recent(self) -> int:
        return sum(n for _, n in self._losses)
