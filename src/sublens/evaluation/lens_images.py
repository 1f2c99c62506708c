"""Real lenses from files, as images and as planes of signal to noise in a survey's frame."""

from collections.abc import Iterable
from pathlib import Path

from sublens.errors import ImageError
from sublens.images.formats import image_name
from sublens.images.listing import list_images
from sublens.images.pixels import Image
from sublens.images.reader import Reader
from sublens.progress import Bar, Count, silent


def read(inputs: Iterable[Path], bar: Bar = silent) -> dict[str, Image]:
    """The images behind files, folders and patterns, by their names; raises the first's error that cannot be used."""
    files = list(list_images(inputs))
    images: dict[str, Image] = {}
    with bar("reading images", len(files)) as advance, Reader() as reader:
        count = Count(advance)
        for result in reader.read(files):
            if isinstance(result.image, ImageError):
                raise result.image if result.image.path else result.image.about(result.path)
            images[image_name(result.path, result.number)] = result.image
            count.add(1)
    return images
