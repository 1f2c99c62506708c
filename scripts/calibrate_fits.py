"""Calibrates what lens models tell of the classes, and of one subhalo, for a network of telescope images.

    python scripts/calibrate_fits.py lensnet-hst --survey hst-acs

Lenses are fitted to fresh images of the network's survey, some fifteen seconds each on one core, and the network's card
is renewed: `sublens predict --fit` then tells classes, prediction sets and detection limits from lens models.
`benchmarks/lens_fits.py` measures on other seeds.
"""

import argparse

from sublens.evaluation import fit_trials
from sublens.inference.predictor import Predictor
from sublens.models import bundle
from sublens.progress import visible
from sublens.surveys.presets import preset


def main() -> None:
    """Fit, and renew the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("--survey", required=True, help="preset of the images, or a TOML file")
    parser.add_argument("--lenses", type=int, default=240)
    parser.add_argument("--subhaloes", type=int, default=100, help="lenses with one subhalo")
    options = parser.parse_args()
    folder = bundle.locate(options.network)
    predictor, survey = Predictor.load(options.network), preset(options.survey)
    found = fit_trials.calibrate(predictor, survey, options.lenses, options.subhaloes, visible)
    bundle.save_card(folder, bundle.read_card(folder).model_copy(update={"fit_classes": found}))
    print(found.model_dump_json(indent=1))


if __name__ == "__main__":
    main()
