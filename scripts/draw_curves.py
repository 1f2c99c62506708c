"""Draw docs/curves.png: how fast networks learned, from the logs of their runs.

    python scripts/draw_curves.py reference/runs/*

What is missing to an AUC of 1 on the selection part, against images seen and against processor time;
dotted, what the original of the same network had on its own test images.
"""

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from results import ORIGINALS

from sublens.models import bundle
from sublens.models.bundle import LABELS
from sublens.training.recorder import read_log

COLOURS = {"lensnet": "#1b6ca8", "resnet18": "#d1495b", "mobilenetv3-small": "#2e8b57", "efficientnet-b5": "#8a5fbf"}


def main() -> None:
    """Draw."""
    figure = Figure(figsize=(9.5, 4.2), facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for run in sorted(map(Path, sys.argv[1:])):
        card = bundle.read_card(run)
        rows = [json.loads(line) for line in read_log(run, card).splitlines()]
        rows = [row for row in rows if row["kind"] == "epoch"]
        lost = np.array([1 - row["selection_auc"] for row in rows])
        style = {"color": COLOURS[card.network], "linewidth": 1.6, "linestyle": "--" if card.track == LABELS else "-"}
        label = f"{card.network}, {card.track}"
        name = label if label not in left.get_legend_handles_labels()[1] else "_"
        left.plot([row["images"] / 1e6 for row in rows], lost, label=name, **style)
        right.plot([row["seconds"] * card.machine.threads / 60 for row in rows], lost, **style)
        if card.network in ORIGINALS:
            for axes in (left, right):
                axes.axhline(1 - ORIGINALS[card.network][0], color=COLOURS[card.network], linewidth=0.8, linestyle=":")
    left.set(xlabel="images seen, millions", ylabel="1 - macro AUC, selection part", yscale="log")
    right.set(xlabel="minutes of one core")
    left.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3, which="both", linewidth=0.5)
    figure.savefig(Path(__file__).parents[1] / "docs" / "curves.png", dpi=110)


if __name__ == "__main__":
    main()
