"""Real lenses from files: images with their noise, and planes of signal to noise in a survey's frame."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sublens.errors import ImageError
from sublens.images.formats import CompanionFiles, image_name
from sublens.images.listing import list_images
from sublens.images.pixels import Image
from sublens.images.reader import Reader
from sublens.images.resample import resample_weighed
from sublens.progress import Bar, Count, silent
from sublens.surveys.camera import Camera


def read(inputs: Iterable[Path], bar: Bar = silent) -> dict[str, Image]:
    """The images behind files, folders and patterns with their noise, by their names.

    Raises the error of the first that cannot be used.
    """
    files = list(list_images(inputs))
    images: dict[str, Image] = {}
    with bar("reading images", len(files)) as advance, Reader(companions=CompanionFiles()) as reader:
        count = Count(advance)
        for result in reader.read(files):
            name = image_name(result.path, result.number)
            if isinstance(result.image, ImageError):
                raise result.image if result.image.path else result.image.about(name)
            images[name] = result.image
            count.add(1)
    return images


def planes(images: Mapping[str, Image], camera: Camera) -> dict[str, NDArray[np.uint16]]:
    """The images as planes of signal to noise of the camera's pixels and size, [h, w].

    Raises `ImageError` where one is too small, has no noise, or is masked where arcs are.
    """
    side, codes = camera.n_pixels, {}
    for name, image in images.items():
        try:
            codes[name] = resample_weighed(image, (side, side), side, camera.pixel_scale).codes
        except ImageError as err:
            raise err.about(name) from err
    return {name: plane for name, plane in codes.items() if plane is not None}
