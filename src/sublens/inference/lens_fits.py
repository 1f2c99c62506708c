"""Rows whose lenses are fitted to their images, from what the network has measured of them.

A network tells the Einstein radius of a lens from all the lenses that it has seen; a fit (`modelling.fit`) tells that
of this one, with the source that its image asks for, in some ten seconds. Axis ratio and position angle stay the
network's, which are nearer to the truth: in a fit the external shear stands in for them.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from threadpoolctl import threadpool_limits

from sublens.errors import ImageError
from sublens.images import signal_to_noise
from sublens.images.pixels import Image
from sublens.images.reader import ReadResult
from sublens.inference.predictor import Row
from sublens.modelling import smooth_lens
from sublens.modelling.fit import fit
from sublens.modelling.fitter import Start
from sublens.modelling.lens_image import LensImage
from sublens.models import macro
from sublens.models.macro import FittedLens
from sublens.parallel.mapper import in_order
from sublens.parallel.threads import n_threads

FIELD = 16.0
"""Greatest side of what is kept of an image, arcsec."""
POOR = 1.5
"""Mean squared residual above which a note calls a fit poor."""
SHARE = 0.44
"""Standard deviation of a fitted Einstein radius over that which the network states, where all starts end alike and the
fit is as good as the noise: with it 68 % of simulated lenses lie within one (`benchmarks/lens_fits.py --share`)."""


def rows(
    predict: Callable[[Iterable[ReadResult]], Iterator[Row]], results: Iterable[ReadResult], pixel_scale: float | None
) -> Iterator[Row]:
    """The rows that `predict` makes of images that were read, one each and in order, with their lenses fitted.

    pixel_scale: as in `Predictor.rows`. As many lenses are fitted at a time as there are threads; until the rows are
    used up, matrices of the whole process are multiplied with one each.
    """
    images, n = deque[LensImage | ImageError](), n_threads()

    def kept() -> Iterator[ReadResult]:
        for result in results:
            images.append(cut(result.image, pixel_scale))
            yield result

    with fitting_threads() as pool:
        fits = (pool.submit(fitted, row, images.popleft()) for row in predict(kept()))
        yield from in_order(fits, lambda: 2 * n)


@contextmanager
def fitting_threads() -> Iterator[ThreadPoolExecutor]:
    """Threads that fit lenses; meanwhile the whole process multiplies matrices, too small for several, with one."""
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(n_threads()) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


def cut(image: Image | ImageError, pixel_scale: float | None) -> LensImage | ImageError:
    """The middle of an image that was read, as it is fitted, or the reason why it cannot be.

    pixel_scale: arcsec, where the user knows better than the files.
    """
    try:
        if isinstance(image, ImageError):
            return image
        return lens_image(image, pixel_scale or image.pixel_scale).cut(FIELD)
    except ImageError as err:
        return err


def fitted(row: Row, image: LensImage | ImageError) -> Row:
    """The row with the lens that was fitted to its image, or with a note that says why there is none."""
    prediction = row.prediction
    if not prediction or not prediction.macromodel:
        return row
    try:
        if isinstance(image, ImageError):
            raise image
        lens_fit = fit(image, start(prediction.macromodel))
    except ImageError as err:
        return replace(row, notes=(*row.notes, f"no lens fitted: {err.what}"))
    notes = (*row.notes, f"the lens model fits poorly: chi2 {lens_fit.chi2:.2f}") if lens_fit.chi2 > POOR else row.notes
    theta_e, _, _ = smooth_lens.shape(lens_fit.parameters)
    result = FittedLens(lens_fit.chi2, lens_fit.string_gain, lens_fit.subhalo_gain)
    known = prediction.macromodel["theta_e_sigma"] / prediction.macromodel["theta_e"]
    worse = max(1.0, np.sqrt(lens_fit.chi2))
    theta_e_sigma = theta_e * float(np.hypot(SHARE * known, lens_fit.scatter) * worse)
    macromodel = {**prediction.macromodel, "theta_e": theta_e, "theta_e_sigma": theta_e_sigma}
    return replace(row, notes=notes, fit=result, prediction=replace(prediction, macromodel=macromodel))


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
    _, e1, e2 = macro.targets(*(np.array([value]) for value in (macromodel["theta_e"], q, angle)))[0]
    along = 2 * macromodel["axis_ratio_sigma"] / (1 + q) ** 2
    across = 2 * np.hypot(e1, e2) * np.radians(macromodel["position_angle_sigma"])
    return Start(
        theta_e=macromodel["theta_e"],
        theta_e_sigma=macromodel["theta_e_sigma"],
        e1=float(e1),
        e2=float(e2),
        e_sigma=float(np.hypot(along, across) / np.sqrt(2)),
    )
