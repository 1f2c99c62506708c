"""Write the intervals of the macro AUC into the cards of the networks for common-test-1 in bundles/.

    python scripts/intervals.py

They come from the standard errors below, on test images of which a third are of each class. Those of the shipped
weights are of the same test images, predicted again on 2026-11-27. The weights of the other rows are not kept: theirs
are the widths of the bootstrap intervals that the cards had before, over 3.92.
"""

from sublens import metrics
from sublens.models import bundle
from sublens.models.bundle import LABELS, SIMULATOR, CardScores

STANDARD_ERRORS = {
    ("efficientnet-b5", SIMULATOR, 0): 3.602e-4,
    ("lensnet", SIMULATOR, 0): 1.981e-4,
    ("mobilenetv3-small", SIMULATOR, 1): 4.253e-4,
    ("resnet18", SIMULATOR, 0): 2.791e-4,
}
"""Standard error of the macro AUC by network, track and seed: of the shipped weights, after DeLong."""
BOOTSTRAP_ERRORS = {
    ("lensnet", SIMULATOR, 1): 2.082e-4,
    ("lensnet", SIMULATOR, 2): 2.251e-4,
    ("lensnet", LABELS, 0): 3.909e-4,
    ("mobilenetv3-small", SIMULATOR, 0): 5.098e-4,
    ("mobilenetv3-small", SIMULATOR, 2): 1.039e-3,
    ("mobilenetv3-small", LABELS, 0): 4.172e-4,
    ("resnet18", LABELS, 0): 7.122e-4,
}
"""That of the others, from the bootstrap."""


def renewed(network: str, score: CardScores) -> CardScores:
    """The scores with the interval that `sublens evaluate` would give them."""
    error = {**STANDARD_ERRORS, **BOOTSTRAP_ERRORS}[network, score.track, score.seed]
    largest_share = 1.5 / score.n  # on the wrong side of all others: 1 / n for its own class, 0.5 / n for another
    interval = metrics.auc_interval(score.auc, error**2 + largest_share**2 / 3, largest_share)
    return score.model_copy(update={"auc_low": interval["low"], "auc_high": interval["high"]})


def main() -> None:
    """Rewrite the cards."""
    for folder in bundle.shipped_for("common-test-1").values():
        card = bundle.read_card(folder)
        scores = tuple(renewed(card.network, score) for score in card.scores)
        bundle.save_card(folder, card.model_copy(update={"scores": scores}))


if __name__ == "__main__":
    main()
