"""How far the detection limits of a network can be trusted, on new simulations of a survey.

    python benchmarks/detection_limit.py lensnet common-test-1 --lenses 6000

New lenses (seed 28112027, used for nothing else) get one subhalo on the arc each, as heavy as the limit of their
image: in bins of that limit, the share that is found, which is to be 90 %, with Wilson's 95 % intervals. Then the share
found of subhaloes of given masses at 10 % false positives, beside the 71 % of Tsang et al. (2024, arXiv:2401.16624) for
10^9 to 10^9.5 solar masses of high concentration; with --concentration, they have that one instead of the
survey's. Where the network's card has no fit, one is made first (seed 28112026), as at the end of a training.
"""

import argparse
from pathlib import Path
from time import perf_counter

from sublens.evaluation import sensitivity
from sublens.evaluation.sensitivity import FoundShare
from sublens.inference import detection_trials
from sublens.inference.predictor import Predictor
from sublens.progress import visible
from sublens.surveys.presets import preset
from sublens.surveys.priors import Prior
from sublens.surveys.survey import Survey


def line(row: FoundShare, expected: str) -> str:
    """A row of a table."""
    value, low, high = (100 * row.share[key] for key in ("value", "low", "high"))
    return f"| {row.low_msun:.2e} - {row.high_msun:.2e} | {row.n} | {value:.1f} [{low:.1f}, {high:.1f}] | {expected} |"


def with_concentration(survey: Survey, concentration: float) -> Survey:
    """The survey with subhaloes of that concentration."""
    fixed = Prior(kind="fixed", values=(concentration,))
    dark = survey.subhaloes.model_copy(update={"concentration": fixed})
    return survey.model_copy(update={"subhaloes": dark})


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("survey")
    parser.add_argument("--lenses", type=int, default=6000)
    parser.add_argument("--concentration", type=float, help="r_200 over the scale radius of subhaloes of given masses")
    args = parser.parse_args()
    predictor, survey = Predictor.load(Path(args.network)), preset(args.survey)
    start = perf_counter()
    detection = predictor.detection or detection_trials.fit(predictor, survey, bar=visible)
    if not predictor.detection:
        print(f"fitted to {detection.n} lenses in {perf_counter() - start:.0f} s: {detection.model_dump_json()}\n")
    check = sensitivity.check_limits(predictor, detection, survey, args.lenses, bar=visible)
    alarms = [100 * check.false_positives[key] for key in ("value", "low", "high")]
    print("| limit, Msun | lenses | % found [95 %] | to be |\n|---|---:|---:|---:|")
    print("\n".join(line(row, "90") for row in check.bins))
    print(f"\nFalse positives: {alarms[0]:.1f} % [{alarms[1]:.1f}, {alarms[2]:.1f}], to be 10 %.")
    print(f"Lenses without a limit: {100 * check.without_limit:.1f} %.\n")
    print("| mass, Msun | lenses | % found [95 %] | Tsang et al. |\n|---|---:|---:|---:|")
    if args.concentration:
        survey = with_concentration(survey, args.concentration)
    rows = sensitivity.completeness(predictor, detection, survey, args.lenses, bar=visible)
    print("\n".join(line(row, "71" if number == 0 else "") for number, row in enumerate(rows)))


if __name__ == "__main__":
    main()
