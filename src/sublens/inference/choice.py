"""The network for images for which none is named, by their pixel scale and noise."""

from collections.abc import Iterable
from contextlib import suppress
from math import log

from sublens.errors import SublensError
from sublens.images import listing, reader
from sublens.images.pixels import Image
from sublens.images.reader import ReadRequest
from sublens.inference.frames import Frame
from sublens.inference.predict_files import Query
from sublens.models import bundle

MAX_DIFFERENCE = 1 / 3
"""Largest relative difference of a network's pixel scale from that of the images."""
CUTOUT = 128, 128
"""Height and width of the cutout of a big image by which a network is chosen, pixels."""


def choose(query: Query) -> tuple[str, float] | None:
    """The network of signal to noise that fits a query's images, and their pixel scale, arcsec.

    The first image that can be read decides: it must be of a telescope, and the network's pixel scale the nearest to
    its own, within `MAX_DIFFERENCE`. None where no network that comes with sublens fits.
    """
    scales = _scales()
    image = _first_image(query) if scales else None
    scale = image and (query.pixel_scale or image.pixel_scale)
    if not image or not scale or not is_of_telescope(image):
        return None
    fitting = {name: own for name, own in scales.items() if abs(own / scale - 1) <= MAX_DIFFERENCE}
    return (min(fitting, key=lambda name: abs(log(fitting[name] / scale))), scale) if fitting else None


def is_of_telescope(image: Image) -> bool:
    """Whether an image has what no count of simulated photons has: noise, a unit, an exposure, or sky below 0."""
    known = image.companions
    has_photometry = bool(known.unit or known.exposure or known.zero_point)
    return image.noise is not None or has_photometry or bool(image.pixels.min() < 0)


def _scales() -> dict[str, float]:
    """Arcsec a pixel of the networks of signal to noise that come with sublens, by name."""
    scales = dict[str, float]()
    for name, folder in bundle.shipped().items():
        card = bundle.read_card(folder)
        scale = Frame.of(card.image_shape, card.input, card.map).pixel_scale
        if card.input.takes_noise and scale:
            scales[name] = scale
    return scales


def _first_image(query: Query) -> Image | None:
    """The first image that can be read, or None; what is wrong with the others is said when they are predicted."""
    with suppress(SublensError), reader.Reader(query.selector, query.companions) as own:
        images = (result.image for result in own.read(_requests(query)))
        return next((image for image in images if isinstance(image, Image)), None)
    return None


def _requests(query: Query) -> Iterable[ReadRequest]:
    if query.at is None:
        return listing.list_images(query.inputs)
    positions = reader.locate_positions(query.inputs[0], query.at, query.selector, query.columns)
    return positions.cuts(query.inputs[0], CUTOUT)
