"""How often the 95 % intervals of a score hold the truth.

    python benchmarks/interval_coverage.py --repeats 2000

Simulated classifiers of three classes, at three macro AUCs: points in a plane around the centre of their class, `no`
and `sphere` closer to each other than to `vort`, and the probabilities that normal noise would give. `normal`: the
noise is so. `heavy`: it has Student's t distribution of 3 degrees of freedom. `unseen`: some of the `sphere` are
points of `no`, as lenses are whose subhaloes are too small to show. The change of the AUC is that to a second network,
which sees the same points through more noise. For each: the share of test parts whose interval holds the truth, and
those where the truth lies below and above it, in per cent.
"""

import argparse
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from sublens import metrics
from sublens.metrics import Floats, Labels

CENTRES = np.array([(0, 0), (1, 0), (0.5, 1.2)])
"""Positions of the classes `no`, `sphere` and `vort`, in units of the separation."""
MORE_NOISE = 0.45
"""Standard deviation of what is added for the second network."""
UNSEEN_SEPARATION = 7.0
"""Separation of the classes where some `sphere` are points of `no`."""
N_TRUTH = 1_000_000
"""Images that the truth is taken from."""
SCORES = ("auc", "change", "accuracy", "loss")


class Kind(NamedTuple):
    """A simulated classifier."""

    noise: str
    """normal, heavy or unseen."""
    separation: float
    """Separation of the classes `no` and `sphere`, in standard deviations of normal noise."""
    unseen: float = 0.0
    """Share of the `sphere` that are points of `no`."""


KINDS = (
    *(Kind("normal", separation) for separation in (1.767, 3.76, 4.91)),
    *(Kind("heavy", separation) for separation in (2.544, 9.57, 30.0)),
    *(Kind("unseen", UNSEEN_SEPARATION, unseen) for unseen in (0.501, 0.0113, 0.00048)),
)
"""Macro AUCs of 0.91, 0.998 and 0.9999 for each kind of noise."""


def draw(kind: Kind, n: int, rng: np.random.Generator) -> tuple[Floats, Floats, Labels]:
    """Probabilities of two networks for the same n images, a third of each class, and the classes."""
    labels = np.arange(n) % 3
    is_unseen = (labels == 1) & (rng.random(n) < kind.unseen)
    noise = rng.standard_t(3, (n, 2)) if kind.noise == "heavy" else rng.normal(size=(n, 2))
    points = kind.separation * CENTRES[np.where(is_unseen, 0, labels)] + noise
    blurred = points + MORE_NOISE * rng.normal(size=(n, 2))
    return probabilities(points, kind), probabilities(blurred, kind), labels


def probabilities(points: Floats, kind: Kind) -> Floats:
    """Probabilities [n, 3] of points [n, 2], were their noise normal and of unit variance."""
    logits = -((points[:, None] - kind.separation * CENTRES) ** 2).sum(axis=2) / 2
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))


def intervals(kind: Kind, n: int, rng: np.random.Generator) -> dict[str, dict[str, float]]:
    """Intervals of the first network's scores, and of the change of the AUC to the second network."""
    first, second, labels = draw(kind, n, rng)
    scores = metrics.score(first, labels, ("no", "sphere", "vort"))
    change = metrics.auc_change(first, second, labels)
    return {"auc": scores["auc_macro"], "change": change, "accuracy": scores["accuracy"], "loss": scores["loss"]}


def cells(kind: Kind, n: int, repeats: int, truth: dict[str, Any]) -> Iterator[str]:
    """Coverage of each score's intervals, the shares missed, and how the lower end of the AUC's lies."""
    rng = np.random.default_rng([n, KINDS.index(kind)])
    drawn = [intervals(kind, n, rng) for _ in range(repeats)]
    for name in SCORES:
        low, high = (np.array([scores[name][end] for scores in drawn]) for end in ("low", "high"))
        value = truth[name]["value"]
        below, above = 100 * np.mean(value < low), 100 * np.mean(value > high)
        yield f"{100 - below - above:.1f} ({below:.1f}, {above:.1f})"
    yield f"{100 * np.mean([scores['auc']['value'] == 1 for scores in drawn]):.0f} %"
    yield f"{np.median([scores['auc']['low'] for scores in drawn]):.5f}"


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2_000)
    parser.add_argument("--images", type=int, nargs="+", default=(150, 300, 1_500, 7_500))
    parser.add_argument("--noise", nargs="+", default=("normal", "heavy", "unseen"))
    options = parser.parse_args()
    kinds = [kind for kind in KINDS if kind.noise in options.noise]
    print("| noise | macro AUC | images | AUC | its change | accuracy | loss | AUC 1 | median lower end |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    truths = {kind: intervals(kind, N_TRUTH, np.random.default_rng(0)) for kind in kinds}
    for kind, n in product(kinds, options.images):
        auc = truths[kind]["auc"]["value"]
        row = (kind.noise, f"{auc:.5f}", f"{n:,}", *cells(kind, n, options.repeats, truths[kind]))
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
