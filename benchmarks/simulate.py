"""How many images are simulated in a second of one core, beside lenstronomy and caustics?

python benchmarks/simulate.py --seconds 4. The scenes are those of common-test-1 on 150 pixels, with a
spherical and with an elliptical halo (axis ratio 0.8); each code runs in a process of its own, on one
thread, and makes the same images: the largest difference from ours is printed, without the vortex, which
is 100 points to the others and a string to us. Then ours with noise. With a GPU, --device cuda measures that.
With --presets: images with noise of every preset in a second of processor time, and the most counts in a pixel.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import cycle
from time import perf_counter, process_time

import numpy as np
import torch

from sublens.lensing.sersic import sersic_b
from sublens.observation import camera
from sublens.parallel.machine import processor
from sublens.sim.population import CLASSES, draw
from sublens.sim.render import render, simulate
from sublens.surveys.presets import names, preset
from sublens.surveys.survey import Survey
from sublens.surveys.truth import Truth

BEADS = 100
"""Points that stand for a string in the other codes."""
N_SUBHALOES = 25
BATCH = 8
"""Images at a time in caustics: the best of 1, 4, 8 and 16."""
N_SCENES = 48
"""Different scenes of a class."""


def survey(halo: str) -> Survey:
    """common-test-1 with exactly 25 subhaloes, and an elliptical halo if `halo` is "sie"."""
    tree = preset("common-test-1").model_dump(exclude_none=True)
    tree["subhaloes"]["number"] = N_SUBHALOES
    tree["halo"] |= {"q": 0.8, "angle": {"uniform": (0, 3)}} if halo == "sie" else {}
    return Survey.model_validate(tree)


def scenes(halo: str, label: int) -> Truth:
    """Some scenes of one class."""
    return draw(survey(halo), 1, "train", range(label, label + N_SCENES * len(CLASSES), len(CLASSES)))


def points(truth: Truth, row: int) -> np.ndarray:
    """Position and Einstein radius of the points that make up the substructure of a scene, [k, 3]."""
    one = truth.take(np.array([row]))
    scene = one.scenes[0]
    if not scene["string_mass_msun"]:
        return np.stack([one.subhaloes[name] for name in ("x", "y", "theta_e")], axis=1)
    along = ((np.arange(BEADS) + 0.5) / BEADS * 2 - 1) * scene["string_half_length"]
    x = scene["string_x"] + along * np.cos(scene["string_angle"])
    y = scene["string_y"] + along * np.sin(scene["string_angle"])
    return np.stack([x, y, np.full(BEADS, scene["string_theta_e"] / BEADS**0.5)], axis=1)


def ellipticity(q: float, angle: float) -> tuple[float, float]:
    """As lenstronomy has it."""
    e = (1 - q) / (1 + q)
    return e * np.cos(2 * angle), e * np.sin(2 * angle)


def lenstronomy(halo: str, truth: Truth, device: str) -> tuple[int, Callable[[int], np.ndarray]]:
    """Its image model, made once and reused. Returns images at a time, and what makes them."""
    from lenstronomy.Data.imaging_data import ImageData
    from lenstronomy.Data.psf import PSF
    from lenstronomy.ImSim.image_model import ImageModel
    from lenstronomy.LensModel.lens_model import LensModel
    from lenstronomy.LightModel.light_model import LightModel
    from lenstronomy.LightModel.Profiles.sersic import SersicElliptic

    seen = survey(halo).camera
    corner = -(seen.n_pixels - 1) / 2 * seen.pixel_scale
    frame = ImageData(
        image_data=np.zeros((seen.n_pixels, seen.n_pixels)),
        ra_at_xy_0=corner,
        dec_at_xy_0=corner,
        transform_pix2angle=np.eye(2) * seen.pixel_scale,
        background_rms=1,
        exposure_time=1,
    )
    blur = PSF(psf_type="GAUSSIAN", fwhm=seen.psf.fwhm, truncation=4, pixel_size=seen.pixel_scale)  # type: ignore[union-attr]
    lens = LensModel([halo.upper(), "SHEAR", *["POINT_MASS"] * len(points(truth, 0))])
    model = ImageModel(frame, blur, lens, LightModel(["SERSIC_ELLIPSE"]))
    n, r_eff = float(truth.scenes["source_n"][0]), float(truth.scenes["source_r_eff"][0])
    ours, theirs = float(sersic_b(np.array(n))), float(SersicElliptic().k_bn(n, r_eff)[1])

    def image(row: int) -> np.ndarray:
        s = truth.scenes[row]
        own = {"theta_E": s["halo_theta_e"]}
        if halo == "sie":
            own["e1"], own["e2"] = ellipticity(s["halo_q"], s["halo_angle"])
        gamma, angle = s["gamma"], 2 * s["shear_angle"]
        shear = {"gamma1": gamma * np.cos(angle), "gamma2": gamma * np.sin(angle)}
        dark = [dict(zip(("center_x", "center_y", "theta_E"), point, strict=True)) for point in points(truth, row)]
        e1, e2 = ellipticity(s["source_q"], s["source_angle"])
        source = {
            "amp": s["source_intensity"] * np.exp(ours - theirs) / seen.pixel_scale**2,
            "R_sersic": r_eff * (theirs / ours) ** n,
            "n_sersic": n,
            "e1": e1,
            "e2": e2,
            "center_x": s["source_x"],
            "center_y": s["source_y"],
        }
        return np.asarray(model.image([own, shear, *dark], [source]))[None]

    return 1, image


def caustics(halo: str, truth: Truth, device: str) -> tuple[int, Callable[[int], np.ndarray]]:
    """Its functions, mapped over a batch in single precision; the points in one call. No light outside the image."""
    from caustics.lenses import func
    from caustics.light.func import brightness_sersic

    seen = survey(halo).camera
    axis = camera.pixel_centres(seen.n_pixels, seen.pixel_scale).float().to(device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    row = camera.psf_kernel(seen).float().to(device)
    zero, b = torch.zeros((), device=device), float(sersic_b(np.array(1.5)))

    def one(s: dict[str, torch.Tensor], dark: torch.Tensor) -> torch.Tensor:
        if halo == "sie":
            shape = (s["halo_q"], s["halo_angle"], s["halo_theta_e"])
            ax, ay = func.reduced_deflection_angle_sie(zero, zero, *shape, x, y)
        else:
            ax, ay = func.reduced_deflection_angle_sis(zero, zero, s["halo_theta_e"], x, y)
        angle = 2 * s["shear_angle"]
        g1, g2 = s["gamma"] * torch.cos(angle), s["gamma"] * torch.sin(angle)
        for more_x, more_y in [
            func.reduced_deflection_angle_external_shear(zero, zero, g1, g2, x, y),
            *(func.reduced_deflection_angle_point(px, py, t, x, y) for px, py, t in dark),
        ]:
            ax, ay = ax + more_x, ay + more_y
        place = (s["source_x"], s["source_y"], s["source_q"], s["source_angle"])
        profile = (s["source_n"], s["source_r_eff"] / torch.sqrt(s["source_q"]), s["source_intensity"])
        return brightness_sersic(*place, *profile, x - ax, y - ay, b)  # type: ignore[no-any-return]

    many = torch.vmap(one)

    def image(start: int) -> np.ndarray:
        rows = [(start + i) % len(truth) for i in range(BATCH)]
        names = [name for name in truth.scenes.dtype.names or () if truth.scenes.dtype[name].kind == "f"]
        columns = {name: torch.tensor(truth.scenes[name][rows]).float().to(device) for name in names}
        dark = torch.tensor(np.stack([points(truth, i) for i in rows])).float().to(device)
        with torch.inference_mode():
            bright = many(columns, dark)[:, None]
            padded = torch.nn.functional.pad(bright, (len(row) // 2,) * 4, mode="replicate")
            down = torch.nn.functional.conv2d(padded, row[None, None, :, None])
            return torch.nn.functional.conv2d(down, row[None, None, None, :])[:, 0].cpu().numpy()

    return BATCH, image


def sublens(halo: str, truth: Truth, device: str) -> tuple[int, Callable[[int], np.ndarray]]:
    """Ours."""
    settings = survey(halo)
    return len(truth), lambda start: render(truth, settings, device).cpu().numpy()


def noisy(halo: str, truth: Truth, device: str) -> tuple[int, Callable[[int], np.ndarray]]:
    """Ours from the drawing of the scenes to the photon counts."""
    settings, first = survey(halo), int(truth.scenes["index"][0])
    indices = range(first, first + N_SCENES * len(CLASSES), len(CLASSES))
    return N_SCENES, lambda start: simulate(settings, 1, "train", indices, device)[1]


CODES = {"lenstronomy": lenstronomy, "caustics": caustics, "sublens": sublens, "sublens with noise": noisy}


def measure(code: str, halo: str, label: int, seconds: float, device: str) -> tuple[float, float]:
    """Images a second, the best of three stretches; and the largest difference from ours over the peak."""
    truth = scenes(halo, label)
    n, make = CODES[code](halo, truth, device)
    first = make(0)
    ours = render(truth, survey(halo)).numpy()[: len(first)]
    difference = float(np.abs(first - ours).max() / ours.max())
    rates = []
    starts = cycle(range(0, len(truth), n))
    for _ in range(3):
        begin, done = perf_counter(), 0
        while perf_counter() - begin < seconds / 3:
            make(next(starts))
            done += n
        rates.append(done / (perf_counter() - begin))
    return max(rates), difference


def in_its_own_process(code: str, halo: str, label: int, seconds: float, device: str) -> tuple[float, float]:
    """The same, measured by a fresh process on one thread."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    command = [sys.executable, __file__, "--one", code, halo, str(label), str(seconds), device]
    done = subprocess.run(command, env=os.environ | one, stdout=subprocess.PIPE, text=True, check=True)
    rate, difference = json.loads(done.stdout.splitlines()[-1])
    return rate, difference


def print_presets(seconds: float) -> None:
    """Measure every preset, noise included."""
    for name in names():
        settings, spent, n_images, most = preset(name), 0.0, 0, 0
        simulate(settings, 1, "train", range(N_SCENES))
        while spent < seconds:
            begin = process_time()
            _, counts = simulate(settings, 1, "train", range(n_images, n_images + N_SCENES))
            spent, n_images, most = spent + process_time() - begin, n_images + N_SCENES, max(most, int(counts.max()))
        print(f"{name:15} {n_images / spent:7,.0f} images a second, {most:6,} counts at most")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6, help="for each code and class")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--presets", action="store_true", help="every preset, ours alone")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.one:
        code, halo, label, seconds, device = args.one
        print(json.dumps(measure(code, halo, int(label), float(seconds), device)))
        return
    if args.presets:
        print_presets(args.seconds)
        return
    what = processor() if args.device == "cpu" else torch.cuda.get_device_name()
    print(f"{what}, torch {torch.__version__}, one thread, images a second (and ours over theirs)")
    for halo in ("sis", "sie"):
        print(f"\n{halo.upper() + ' + shear':22}" + "".join(f"{name:>22}" for name in CLASSES))
        rates = {
            code: [in_its_own_process(code, halo, label, args.seconds, args.device) for label in range(len(CLASSES))]
            for code in CODES
        }
        for code, row in rates.items():
            cells = [
                f"{rate:10,.0f} ({rates['sublens'][label][0] / rate:5.1f}x)" for label, (rate, _) in enumerate(row)
            ]
            differs = max(difference for _, difference in row[:2])
            mean = 3 / sum(1 / rate for rate, _ in row)
            print(
                f"{code:22}"
                + "".join(f"{cell:>22}" for cell in cells)
                + f"  mean {mean:,.0f}"
                + ("" if code.startswith("sublens") else f", off by {differs:.0e}")
            )


if __name__ == "__main__":
    main()
