"""A network for telescope images on real lenses whose macromodels are published.

    python benchmarks/real_lenses.py lensnet-hst ../shared/data [--fit]

The folder holds slacs/*.fits, images of SLACS with SCI, ERR and PSF whose headers have the published Einstein radius
and axis ratio (THETAE, QSIE), and slacs0946+1006/data.fits, the lens with the best known subhalo. Prints a row for each
lens; then the share that is flagged as out of distribution, how far the Einstein radii and axis ratios lie from the
published ones and how many of these lie within one sigma, and where J0946+1006 stands by its probability of
substructure. With --fit the Einstein radii are those of lenses fitted to the images. Nothing of these images was used
to train or calibrate a network.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from astropy.io import fits

from sublens.inference.predict_files import Query, predict
from sublens.inference.predictor import Row
from sublens.metrics import wilson

LENS_0946 = 1.38
"""Einstein radius of J0946+1006, arcsec (Auger et al. 2009, arXiv:0911.2471)."""


class Lens(NamedTuple):
    """A real lens: its prediction, and what is published of it."""

    name: str
    row: Row
    theta_e: float
    q: float | None


def published(path: Path) -> tuple[float, float | None]:
    """Einstein radius, arcsec, and axis ratio of a lens in its header."""
    if "0946+1006" in str(path):
        return LENS_0946, None
    with fits.open(path) as hdus:
        header = hdus["SCI"].header
        return float(header["THETAE"]), float(header["QSIE"])


def lenses(network: str, folder: Path, *, has_fit: bool) -> list[Lens]:
    """All lenses of the folder, in alphabetical order; J0946+1006 comes last. has_fit: whether they are fitted."""
    paths = [*sorted((folder / "slacs").glob("*.fits")), folder / "slacs0946+1006" / "data.fits"]
    names = [*(path.stem for path in paths[:-1]), "J0946+1006"]
    rows = predict(Query(network, paths, has_fit=has_fit))
    return [Lens(name, row, *published(path)) for name, path, row in zip(names, paths, rows, strict=True)]


def line(lens: Lens) -> str:
    """A row of the table of lenses."""
    answer, model = lens.row.prediction, lens.row.prediction and lens.row.prediction.macromodel
    if not answer or not model:
        return f"| {lens.name} | {lens.row.error} |  |  |  |  |  |  |"
    probs = ", ".join(f"{name} {p:.2f}" for name, p in answer.probs.items())
    limit = "" if answer.limit_msun is None else f"{answer.limit_msun:.1e}"
    theta_e = f"{model['theta_e']:.2f} ± {model['theta_e_sigma']:.2f} | {lens.theta_e:.2f}"
    flag = "yes" if answer.is_ood else "no"
    gains = f"{lens.row.fit.string_gain:.1f}, {lens.row.fit.subhalo_gain:.1f}" if lens.row.fit else ""
    row = (lens.name, probs, f"{flag} ({answer.ood:.1f})", theta_e, f"{model['axis_ratio']:.2f}", limit, gains)
    return f"| {' | '.join(row)} |"


def summary(chosen: Sequence[Lens]) -> None:
    """Print what holds for all lenses with a prediction."""
    answers = [lens.row.prediction for lens in chosen if lens.row.prediction]
    n_flagged = sum(bool(answer.is_ood) for answer in answers)
    share = wilson(n_flagged / len(answers), len(answers))
    print(f"\nflagged: {n_flagged} of {len(answers)} [{share['low']:.0%}, {share['high']:.0%}]")
    print(f"without prediction: {len(chosen) - len(answers)}")
    for name, true in (("theta_e", "theta_e"), ("axis_ratio", "q")):
        pairs = [
            (answer.macromodel[name], answer.macromodel[f"{name}_sigma"], getattr(lens, true))
            for lens in chosen
            if (answer := lens.row.prediction) and answer.macromodel and getattr(lens, true)
        ]
        value, sigma, known = np.array(pairs).T
        off = np.abs(value - known)
        relative = off / known
        print(
            f"{name}: median difference {np.median(relative):.1%}, "
            f"beyond 20 %: {(relative > 0.2).sum()} of {len(off)}, within one sigma {np.mean(off < sigma):.0%}, "
            f"within two {np.mean(off < 2 * sigma):.0%}"
        )
    substructure = [1 - answer.probs["no"] for answer in answers]
    print(f"J0946+1006: 1 - p_no = {substructure[-1]:.2f}, {place_of_last(substructure)}")
    if all(lens.row.fit for lens in chosen):
        gained = [max(lens.row.fit[1:]) for lens in chosen if lens.row.fit]
        print(f"J0946+1006: log evidence gained by substructure {gained[-1]:.1f}, {place_of_last(gained)}")


def place_of_last(values: Sequence[float]) -> str:
    """How many of the values are greater than the last."""
    return f"place {sum(value > values[-1] for value in values) + 1} of {len(values)}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fit", action="store_true")
    options = parser.parse_args()
    chosen = lenses(options.network, options.folder, has_fit=options.fit)
    print("| lens | probabilities | flagged (score) | theta_e | published | q | limit, Msun | gain: string, subhalo |")
    print("|---|---|---|---:|---:|---:|---:|---:|")
    for lens in chosen:
        print(line(lens))
    summary(chosen)


if __name__ == "__main__":
    main()
