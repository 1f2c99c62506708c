"""Lenses that are fitted to images, against the truth of simulated ones: Einstein radii.

    python benchmarks/lens_fits.py lensnet-hst hst-acs --lenses 300

New images of the survey (seed 7003, used for nothing else), with all its nuisances, are predicted by the network, then
fitted from what it measured. Prints how far either lies from the truth in the median, for how many lenses the Einstein
radius is off by more than 5 and 20 %, and the share within one standard deviation and two, by class. With --share it
prints instead the share of the network's standard deviation at which 68 % lie within one, from lenses of another seed
(7004), which `sublens.inference.lens_fits` holds as SHARE.
"""

import argparse
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from sublens.images import signal_to_noise
from sublens.images.pixels import Companions, Image
from sublens.inference import lens_fits
from sublens.inference.predictor import Prediction, Predictor, Row
from sublens.models import macro
from sublens.observation.psf import in_own_pixels
from sublens.progress import Count, visible
from sublens.sim.population import CLASSES
from sublens.sim.render import render, simulate
from sublens.surveys.presets import preset
from sublens.surveys.survey import Survey
from sublens.surveys.truth import Truth

SEED, SHARE_SEED, BATCH, PSF_SIDE = 7003, 7004, 64, 15
Floats = NDArray[np.float64]


def psf(truth: Truth, survey: Survey, row: int) -> Floats:
    """Point-spread function of a scene on the pixels of its image."""
    n, parts = survey.camera.n_pixels, survey.camera.supersampling
    light, middle = torch.zeros(1, n * parts, n * parts), n // 2
    light[0, middle * parts : (middle + 1) * parts, middle * parts : (middle + 1) * parts] = parts**-2
    around = slice(middle - PSF_SIDE // 2, middle + PSF_SIDE // 2 + 1)
    assert truth.extra is not None
    blurred = in_own_pixels(light, survey.camera, truth.extra[row : row + 1])
    return blurred[0, around, around].double().numpy()


def noise_of(noiseless: Floats, truth: Truth) -> Floats:
    """Standard deviation of the pixels of noiseless images [n, h, w] of these scenes."""
    scenes = truth.scenes
    return np.asarray(np.sqrt(noiseless + (scenes["background"] + scenes["noise_rms"] ** 2)[:, None, None]))


def images(survey: Survey, seed: int, n: int) -> tuple[Truth, list[Image]]:
    """Scenes and their images, as files of a telescope would hold them: pixels, noise, mask, point-spread function."""
    truth, codes = simulate(survey, seed, "test", range(n))
    noise = noise_of(render(truth, survey).double().numpy(), truth)
    masks = codes == signal_to_noise.MASKED
    pixels = np.where(masks, 0, (codes * signal_to_noise.STEP + signal_to_noise.LEAST) * noise)
    scale = survey.camera.pixel_scale
    return truth, [
        Image(
            pixels[row],
            pixel_scale=scale,
            mask=masks[row],
            companions=Companions(noise=noise[row], noise_source="map", psf=psf(truth, survey, row)),
        )
        for row in range(n)
    ]


def measure(network: str, survey: Survey, seed: int, n: int) -> tuple[Truth, Floats, Floats, Floats]:
    """The truth; the `macro.COLUMNS` of the network and of the fits, [n, 6] each; and the fits' chi2, [n]."""
    predictor = Predictor.load(network)
    truth, pictures = images(survey, seed, n)
    networks, fits, chi2 = [], [], []
    with visible("fitting", n) as advance, lens_fits.fitting_threads() as pool:
        count = Count(advance)
        for start in range(0, n, BATCH):
            batch = pictures[start : start + BATCH]
            answers = predictor.predict_images([predictor.framed(image, None) for image in batch])
            for answer, row in zip(answers, pool.map(_fitted, answers, batch), strict=True):
                assert answer.macromodel
                assert row.prediction
                assert row.prediction.macromodel
                networks.append([answer.macromodel[name] for name in macro.COLUMNS])
                fits.append([row.prediction.macromodel[name] for name in macro.COLUMNS])
                chi2.append(np.nan if row.fit_chi2 is None else row.fit_chi2)
                count.add(1)
    return truth, np.array(networks), np.array(fits), np.array(chi2)


def _fitted(answer: Prediction, image: Image) -> Row:
    return lens_fits.fitted(Row(Path(), prediction=answer), lens_fits.cut(image, None))


def line(name: str, columns: Floats, true: Floats) -> str:
    """A row of the table."""
    theta_e, sigma = columns[:, :2].T
    off = np.abs(theta_e / true[:, 0] - 1)
    within = [np.mean(np.abs(theta_e - true[:, 0]) <= n * sigma) for n in (1, 2)]
    return (
        f"| {name} | {len(off)} | {np.median(off):.1%} | {np.mean(off > 0.05):.0%}, {np.mean(off > 0.2):.0%} | "
        f"{within[0]:.0%}, {within[1]:.0%} | {np.median(sigma / theta_e):.1%} |"
    )


def share(stated: Floats, fits: Floats, chi2: Floats, true: Floats) -> float:
    """The `lens_fits.SHARE` at which a share `macro.COVERED` of Einstein radii lies within one standard deviation.

    stated: relative standard deviations of the network, [n].
    """
    worse2 = np.fmax(1, chi2)
    scatter2 = np.maximum((fits[:, 1] / fits[:, 0]) ** 2 / worse2 - (lens_fits.SHARE * stated) ** 2, 0)
    left2 = np.maximum((fits[:, 0] / true[:, 0] - 1) ** 2 / worse2 - scatter2, 0)
    return float(np.quantile(np.sqrt(left2) / stated, macro.COVERED))


def main() -> None:
    """Print the table, or the share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("survey")
    parser.add_argument("--lenses", type=int, default=300)
    parser.add_argument("--share", action="store_true")
    args = parser.parse_args()
    survey, begin = preset(args.survey), perf_counter()
    truth, networks, fits, chi2 = measure(args.network, survey, SHARE_SEED if args.share else SEED, args.lenses)
    true = macro.values(*macro.lenses(truth.scenes))
    print(f"{(perf_counter() - begin) / args.lenses:.2f} s a lens; chi2 {np.nanmedian(chi2):.2f} in the median")
    if args.share:
        print(f"share: {share(networks[:, 1] / networks[:, 0], fits, chi2, true):.2f}")
        return
    print("| lenses | n | theta_e off | beyond 5 %, 20 % | in 1 sigma, 2 | sigma |")
    print("|---|---:|---:|---:|---:|---:|")
    for label, name in enumerate((*CLASSES, "all")):
        chosen = truth.scenes["label"] == label if label < len(CLASSES) else np.full(len(true), True)
        for kind, columns in (("network", networks), ("fit", fits)):
            print(line(f"{name}, {kind}", columns[chosen], true[chosen]))


if __name__ == "__main__":
    main()
