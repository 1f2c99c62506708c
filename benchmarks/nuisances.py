"""What each nuisance of a survey costs a network, added alone to the images of another survey.

    python benchmarks/nuisances.py runs/first scripts/hst-acs-bright.toml hst-acs --images 1500

Settings of the second survey take the place of the first one's, one group at a time, then all. Prints for each the
macro AUC and that of each class against the others (seed 91, split test), the median relative error of the Einstein
radius, and the share of images that are flagged as out of distribution.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from sublens.config import checked, read_toml
from sublens.inference.predictor import Predictor
from sublens.sim.population import CLASSES
from sublens.sim.render import simulate
from sublens.surveys.presets import source
from sublens.surveys.survey import Survey

SEED = 91
GROUPS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "brightness of sources": (("source", "magnitude"),),
    "substructure": (("subhaloes",), ("vortex",)),
    "number of exposures": (("camera", "n_exposures"),),
    "brightness of lens light": (("lens_light", "magnitude"),),
    "knots": (("source", "knots"),),
    "mass of the lens": (("halo",),),
    "neighbours and stars": (("neighbours",), ("stars",)),
    "defects and masks": (("defects",),),
}
"""Settings that are changed together, by what they are."""

Tree = dict[str, Any]


def settings(name: str) -> Tree:
    """The settings of a survey without contaminants, its point-spread functions named by their whole path."""
    path = source(name)
    tree = {key: value for key, value in read_toml(path).items() if key != "contaminants"}
    if "file" in tree["camera"]["psf"]:
        tree["camera"]["psf"]["file"] = str((path.parent / tree["camera"]["psf"]["file"]).resolve())
    return tree


def changed(tree: Tree, other: Tree, places: tuple[tuple[str, ...], ...]) -> Tree:
    """A survey's settings with some of another's."""
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in tree.items()}
    for section, *names in places:
        if not names:
            result[section] = other[section]
        for name in names:
            result[section][name] = other[section][name]
    return result


def line(name: str, tree: Tree, predictor: Predictor, n: int) -> str:
    """A row of the table."""
    survey = checked(tree, Survey, {"folder": Path.cwd()})
    truth, images = simulate(survey, SEED, "test", range(n))
    batch, labels = predictor.forward(images), truth.scenes["label"]
    aucs = [roc_auc_score(labels == label, batch.probs[:, label]) for label in range(len(CLASSES))]
    theta_e = "" if batch.macromodels is None else f"{_error(batch.macromodels[:, 0], truth.scenes['theta_e']):.1%}"
    flagged = "" if batch.is_ood is None else f"{np.mean(batch.is_ood):.0%}"
    each = " | ".join(f"{auc:.3f}" for auc in aucs)
    return f"| {name} | {np.mean(aucs):.3f} | {each} | {theta_e} | {flagged} |"


def _error(measured: np.ndarray, true: np.ndarray) -> float:
    return float(np.median(np.abs(measured / true - 1)))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("first", help="name or TOML file of the survey that is changed")
    parser.add_argument("second", help="name or TOML file of the survey that the changes are from")
    parser.add_argument("--images", type=int, default=1500)
    options = parser.parse_args()
    predictor, first, second = Predictor.load(options.network), settings(options.first), settings(options.second)
    print(f"| changed | macro AUC | {' | '.join(CLASSES)} | theta_e | flagged |")
    print("|---|---:|" + "---:|" * len(CLASSES) + "---:|---:|")
    print(line("nothing", first, predictor, options.images), flush=True)
    for name, places in GROUPS.items():
        print(line(name, changed(first, second, places), predictor, options.images), flush=True)
    print(line("everything", second, predictor, options.images))


if __name__ == "__main__":
    main()
