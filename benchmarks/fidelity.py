"""False alarms of `sublens fidelity`: a survey against itself, and against one with a little more sky.

    python benchmarks/fidelity.py --runs 100

Smooth lenses of common-test-1 on 48 pixels of 0.15 arcsec, `--images` of each kind a run, other seeds each time.
Prints the share of runs with p < 0.05: of the network, and of the statistics taken together.
"""

import argparse

import numpy as np
import torch

from sublens.evaluation import fidelity
from sublens.sim.render import simulate
from sublens.surveys.presets import preset
from sublens.surveys.survey import Survey

LEVEL = 0.05
EPOCHS = 5
SKIES = (10.0, 11.0)
"""Sky of the survey, and of the other that it is to be told from, counts."""


def survey(background: float) -> Survey:
    """The survey with another sky."""
    camera = {"n_pixels": 48, "pixel_scale": 0.15, "background": background}
    tree = preset("common-test-1").model_dump(exclude_none=True)
    return Survey.model_validate({**tree, "camera": {**tree["camera"], **camera}})


def run(background: float, n: int, seed: int) -> tuple[float, float, float]:
    """AUC and p of the network, and the chance of the statistics."""
    kinds = ((SKIES[0], 2 * seed), (background, 2 * seed + 1))
    real, simulated = (simulate(survey(sky), number, "train", range(0, 3 * n, 3))[1] for sky, number in kinds)
    auc, p = fidelity.tell_apart(real, simulated, seed=seed, epochs=EPOCHS)
    return auc, p, fidelity.chance_of_one(real, simulated, seed=seed)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--images", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for background in SKIES:
        results = np.array([run(background, options.images, seed) for seed in range(options.runs)])
        network, statistics = 100 * (results[:, 1:] < LEVEL).mean(axis=0)
        auc = results[:, 0].mean()
        print(f"sky {background:g}: network {network:.0f} %, statistics {statistics:.0f} %, mean AUC {auc:.3f}")


if __name__ == "__main__":
    main()
