"""Print the README's table of results, from the cards of the networks for common-test-1 in bundles/.

    python scripts/results.py

The intervals are the cards', which `scripts/intervals.py` has computed anew.
"""

import statistics
from collections.abc import Iterator

from sublens.models import bundle
from sublens.models.bundle import Card, CardScores
from sublens.models.networks import NETWORKS

ORIGINALS = {"efficientnet-b5": (0.9931, 0.9588), "resnet18": (0.9871, 0.9363), "mobilenetv3-small": (0.9741, 0.8867)}
"""Macro AUC and accuracy of the published originals, on their own images."""


def rows(card: Card) -> Iterator[str]:
    """A row for each track of a network: its best run by selection loss (of one, what is shipped), and the spread."""
    for track in dict.fromkeys(score.track for score in card.scores):
        scores = [score for score in card.scores if score.track == track]
        best = min(scores, key=lambda score: score.selection_loss)
        shipped = f"{best.auc:.4f} [{best.auc_low:.4f}, {best.auc_high:.4f}]"
        original = ORIGINALS.get(card.network)
        theirs = f"{original[0]:.4f}, {original[1]:.1%}" if original else ""
        cells = (card.network, track, f"{best.images / 1e6:.2f} M", shipped, _spread(scores), f"{best.accuracy:.1%}")
        yield "| " + " | ".join((*cells, f"{best.loss:.3f}", theirs)) + " |"


def _spread(scores: list[CardScores]) -> str:
    """Mean and standard deviation over seeds."""
    aucs = [score.auc for score in scores]
    return f"{statistics.mean(aucs):.4f} ± {statistics.stdev(aucs):.4f} ({len(aucs)})" if len(aucs) > 1 else "1 seed"


def main() -> None:
    """Print the table."""
    print("| network | learned from | images seen | macro ROC AUC [95 %] | over seeds | accuracy | loss | original |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    folders = bundle.shipped_for("common-test-1")
    for name in sorted(folders, key=list(NETWORKS).index):
        for row in rows(bundle.read_card(folders[name])):
            print(row)


if __name__ == "__main__":
    main()
