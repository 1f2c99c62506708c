"""Rows whose lenses are fitted to their images, from what the network has measured of them.

A network tells the Einstein radius of a lens from all the lenses that it has seen; a fit (`modelling.fit`) tells that
of this one, with the source that its image asks for. It takes a second or two.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from sublens.errors import ImageError
from sublens.images import signal_to_noise
from sublens.images.pixels import Image
from sublens.images.reader import ReadResult
from sublens.inference.predictor import Row
from sublens.modelling import smooth_lens
from sublens.modelling.fit import LensFit, Start, fit
from sublens.modelling.lens_image import LensImage
from sublens.models import macro
from sublens.parallel.mapper import in_order
from sublens.parallel.threads import n_threads

COLUMNS = ("shear", "shear_angle", "fit_chi2")
"""What a row has of a fit beside its macromodel: the shear, its angle, degrees, and the squared residual in units of
the noise, on average over the pixels."""
POOR = 1.5
"""Mean squared residual above which a note calls a fit poor."""
FLOOR = 0.02
"""Relative standard deviation of an Einstein radius that no fit goes below: by how much models of different kinds
differ."""
SCALES = (1.0, 1.0, 1.0)
"""Factors of the standard deviations of Einstein radius, axis ratio and position angle."""


def rows(
    predict: Callable[[Iterable[ReadResult]], Iterator[Row]], results: Iterable[ReadResult], pixel_scale: float | None
) -> Iterator[Row]:
    """The rows that `predict` makes of images that were read, one each and in order, with their lenses fitted.

    pixel_scale: as in `Predictor.rows`. As many lenses are fitted at a time as there are threads.
    """
    images, n = deque[Image | ImageError](), n_threads()

    def kept() -> Iterator[ReadResult]:
        for result in results:
            images.append(result.image)
            yield result

    with ThreadPoolExecutor(n) as pool:
        try:
            fits = (pool.submit(fitted, row, images.popleft(), pixel_scale) for row in predict(kept()))
            yield from in_order(fits, lambda: 2 * n)
        finally:
            pool.shutdown(cancel_futures=True)


def fitted(row: Row, image: Image | ImageError, pixel_scale: float | None) -> Row:
    """The row with the lens that was fitted to its image, or with a note that says why there is none."""
    prediction = row.prediction
    if isinstance(image, ImageError) or not prediction or not prediction.macromodel:
        return row
    try:
        lens_fit = fit(lens_image(image, pixel_scale or image.pixel_scale), start(prediction.macromodel))
    except (ImageError, ValueError, np.linalg.LinAlgError) as err:
        why = err.what if isinstance(err, ImageError) else "its pixels tell nothing of a lens"
        return replace(row, notes=(*row.notes, f"no lens fitted: {why}"))
    notes = (*row.notes, f"the lens model fits poorly: chi2 {lens_fit.chi2:.2f}") if lens_fit.chi2 > POOR else row.notes
    columns = macro.measured(outputs(lens_fit)[None], SCALES)[0]
    macromodel = dict(zip(macro.COLUMNS, map(float, columns), strict=True))
    return replace(row, notes=notes, fit=measured(lens_fit), prediction=replace(prediction, macromodel=macromodel))


def lens_image(image: Image, pixel_scale: float | None) -> LensImage:
    """What is fitted of an image; raises `ImageError` where it has no point-spread function, pixel scale or noise."""
    if image.psf is None or pixel_scale is None:
        lacks = "pixel scale" if image.psf is not None else "point-spread function"
        option = "--pixel-scale" if image.psf is not None else "--psf"
        raise ImageError(f"it has no {lacks}", need="one", next=f"Name it with {option}.")
    weighed = signal_to_noise.weigh(image)
    assert weighed.noise is not None
    assert weighed.mask is not None
    return LensImage(weighed.pixels, np.where(weighed.mask, np.inf, weighed.noise), image.psf, pixel_scale)


def start(macromodel: dict[str, float]) -> Start:
    """The start of a fit, from what a network has measured."""
    q, angle = macromodel["axis_ratio"], np.radians(macromodel["position_angle"])
    e = (1 - q) / (1 + q)
    along = 2 * macromodel["axis_ratio_sigma"] / (1 + q) ** 2
    across = 2 * e * np.radians(macromodel["position_angle_sigma"])
    return Start(
        theta_e=macromodel["theta_e"],
        theta_e_sigma=macromodel["theta_e_sigma"],
        e1=float(e * np.cos(2 * angle)),
        e2=float(e * np.sin(2 * angle)),
        e_sigma=float(np.hypot(along, across) / np.sqrt(2)),
    )


def outputs(lens_fit: LensFit) -> smooth_lens.Floats:
    """A fit as a macro head gives it, [7]; see `models.macro`."""
    sigmas = lens_fit.sigmas[: smooth_lens.X] * max(1.0, np.sqrt(lens_fit.chi2))
    sigmas[smooth_lens.LOG_THETA_E] = np.hypot(sigmas[smooth_lens.LOG_THETA_E], FLOOR)
    return np.concatenate([lens_fit.parameters[: smooth_lens.X], np.log(sigmas), [0.0]])


def measured(lens_fit: LensFit) -> dict[str, float]:
    """The `COLUMNS` of a fit."""
    gamma_1, gamma_2 = lens_fit.parameters[smooth_lens.SHEAR : smooth_lens.SHEAR + 2]
    values = np.hypot(gamma_1, gamma_2), np.degrees(np.arctan2(gamma_2, gamma_1)) / 2 % 180, lens_fit.chi2
    return dict(zip(COLUMNS, map(float, values), strict=True))
