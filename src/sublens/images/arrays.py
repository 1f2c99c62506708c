"""Arrays in .npy, .npz, HDF5 and zarr files -> images, one by one.

An array of three axes or more holds a stack of images or the planes (bands, colours) of one image. Which axis counts
them follows from the sides; an array that can be read in two ways is refused. Axes of length 1 do not count.
"""

import io
import math
import os
import stat
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sublens.errors import ImageError
from sublens.images import wcs
from sublens.images.limits import MAX_SIDE, MAX_UNPACKED_BYTES, check_growth, check_sides, translate_errors
from sublens.images.pixels import RawImage

BLOCK_BYTES = 2**26
"""Largest part of a stack that is read at once, where chunks hold many images."""
MAX_STACK = 10_000_000
"""Most images in one file."""
MAX_HEADER_BYTES = 2**16
"""Bytes of a .npy header of which no more are read; numpy refuses a longer one."""
MAX_DEPTH = 8
"""Levels of groups below which no array is looked for; a group may hold itself."""
MAX_COLOURS = 4
"""Most planes of a picture in colour: red, green, blue and opacity."""
MAX_ASPECT = 2
"""Largest ratio of the sides of an image, where the axes of a cube are told apart."""
COLOURS = ("red", "green", "blue", "opacity")
"""Names of the planes of a picture in colour."""
PLANE_NAMES = ("bands", "filters", "channels")
"""Attributes of an HDF5 or zarr array that name its planes."""
HDF5_FILTERS = {
    **{1: "Deflate", 2: "Shuffle", 3: "Fletcher32", 4: "SZIP", 5: "N-bit", 6: "Scale-offset", 32000: "LZF"},
    **{32001: "Blosc", 32004: "LZ4", 32008: "Bitshuffle", 32015: "Zstandard", 32026: "Blosc2"},
}
"""Filters of packed HDF5 data that are read, by their registered numbers; the last five need hdf5plugin."""


class Axes(NamedTuple):
    """Meaning of the axes of an array."""

    stack: int | None
    """Axis that counts images."""
    planes: int | None
    """Axis that counts the planes of each image."""


# --- files ------------------------------------------------------------------------------------


def read_npy(path: Path, plane: str | None) -> Iterator[RawImage]:
    """The images of a .npy file; raises `ImageError`."""
    with translate_errors("a .npy file"), path.open("rb") as file:
        array = npy_array(file, MAX_SIDE**2 * 16)
    return images_of(array, plane)


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """Shape, whether it is in Fortran's order, and dtype of the array that follows in `file`; raises as numpy does."""
    version = np.lib.format.read_magic(file)
    size = {(1, 0): 2, (2, 0): 4}[version]
    head = file.read(size)
    return _parsed_header(version, head + file.read(min(int.from_bytes(head, "little"), MAX_HEADER_BYTES)))


@lru_cache(maxsize=64)
def _parsed_header(version: tuple[int, int], header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """The parts of a header, with its length before it."""
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shape, is_fortran, dtype = read(io.BytesIO(header))
    return shape, is_fortran, dtype


def npy_array(file: IO[bytes], max_bytes: int) -> NDArray[np.generic]:
    """The array that follows in `file`, in the .npy format; its size is known before it is read."""
    shape, is_fortran, dtype = npy_header(file)
    if dtype.hasobject:
        raise ImageError(
            "a pickled object array, which could run code when opened, so it was not",
            need="plain numbers",
            next="Convert it with `sublens import-legacy`, or save it again as a plain float array.",
        )
    if len(shape) == 2:
        check_sides(shape)
    n_bytes = math.prod(shape, start=dtype.itemsize)
    if n_bytes > max_bytes:
        raise ImageError(f"unpacks to {n_bytes:,} bytes", need=f"at most {max_bytes:,}", next="Split it.")
    data = file.read(max(n_bytes, 0))
    return np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")


def read_npz(path: Path, name: str | None, plane: str | None) -> Iterator[RawImage]:
    """The images of an .npz file's array of that name, or of the only one; raises `ImageError`."""
    return images_of(npz_array(path, name, MAX_UNPACKED_BYTES), plane)


def npz_array(path: Path, name: str | None, max_bytes: int) -> NDArray[np.generic]:
    """An array of an .npz file: the named one, or the only one."""
    with translate_errors("an .npz file"), zipfile.ZipFile(path) as archive:
        names = [entry.removesuffix(".npy") for entry in archive.namelist() if entry.endswith(".npy")]
        member = archive.getinfo(f"{_choose_array(names, name, partial(_npz_axes, archive))}.npy")
        check_growth(member.file_size, member.compress_size)
        with archive.open(member) as file:
            return npy_array(file, max_bytes)


def _npz_axes(archive: zipfile.ZipFile, name: str) -> int:
    """The number of axes of an array."""
    with archive.open(f"{name}.npy") as file:
        return len(npy_header(file)[0])


def _choose_array(names: list[str], name: str | None, n_axes: Callable[[str], int]) -> str:
    """The named array, the only one, or the only one with the axes of an image."""
    if name is None and len(names) > 1:
        images = [image for image in names if n_axes(image) >= 2]
        name = images[0] if len(images) == 1 else None
    if name is None and len(names) == 1:
        return names[0]
    if name not in names:
        raise ImageError(
            f"has no array {name!r}" if name else "holds several arrays, or none",
            need=f"one of {', '.join(sorted(names)[:20])}" if names else "an array of numbers",
            next="Name it with --array." if names else "Check the file.",
        )
    return name


def read_hdf5(path: Path, name: str | None, plane: str | None) -> Iterator[RawImage]:
    """The images of an HDF5 file's array of that name, or of the only one; raises `ImageError`."""
    import h5py

    with translate_errors("an HDF5 file"), h5py.File(path, "r") as file:
        dataset = file[_choose_array(_hdf5_datasets(file), name, lambda name: file[name].ndim)]
        if dataset.external or dataset.is_virtual:
            raise _external_data()
        _check_filters(dataset)
        check_growth(dataset.nbytes, dataset.id.get_storage_size())
        scale, notes = _hdf5_scale(dataset)
        for raw in images_of(dataset, plane, dataset.attrs):
            yield raw._replace(wcs=(scale, None, None), notes=(*raw.notes, *notes))


def _hdf5_scale(dataset: Any) -> tuple[float | None, tuple[str, ...]]:
    """Pixel scale by the attributes of an HDF5 array, its group or its file, and a note on its origin."""
    for node in (dataset, dataset.parent, dataset.file):
        plain = {}
        for name in wcs.ATTRIBUTES:
            if name in node.attrs:
                entry = node.attrs.get_id(name)
                if entry.dtype.kind in "fiu" and math.prod(entry.shape) <= 4:
                    plain[name] = node.attrs[name]
        if (scale := wcs.attribute_scale(plain))[0]:
            return scale
    return None, ()


def _check_filters(dataset: Any) -> None:
    """Raise `ImageError` where what unpacks an HDF5 array is not installed, or not trusted."""
    filters = dataset.id.get_create_plist()
    for code in [filters.get_filter(index)[0] for index in range(filters.get_nfilters())]:
        if code not in HDF5_FILTERS:
            known = ", ".join(HDF5_FILTERS.values())
            raise ImageError(
                f"is packed with the HDF5 filter {code}", need=f"one of {known}", next="Pack it with gzip."
            )
        if not _is_installed(code):
            raise ImageError(
                f"is packed with {HDF5_FILTERS[code]}",
                need="hdf5plugin to unpack it",
                next="Install that with `pip install hdf5plugin`, or pack the file with gzip.",
            )


def _is_installed(code: int) -> bool:
    """Whether h5py unpacks with the filter of that number, if need be with those of hdf5plugin, which is large."""
    import h5py

    if not h5py.h5z.filter_avail(code):
        with suppress(ImportError):
            import hdf5plugin  # noqa: F401 - importing it hands its filters to h5py
    return bool(h5py.h5z.filter_avail(code))


def _external_data() -> ImageError:
    return ImageError(
        "its data lie in other files, which are not opened", need="all data in one file", next="Copy them into one."
    )


def _hdf5_datasets(group: Any, prefix: str = "") -> list[str]:
    """Names of the arrays that lie in the file itself: no link is followed."""
    import h5py

    names = []
    for name in group:
        if isinstance(group.get(name, getlink=True), h5py.HardLink):
            kind = group.get(name, getclass=True)
            if kind is h5py.Dataset:
                names.append(prefix + name)
            elif kind is h5py.Group and prefix.count("/") < MAX_DEPTH:
                names += _hdf5_datasets(group[name], f"{prefix}{name}/")
    return names


def read_zarr(path: Path, name: str | None, plane: str | None) -> Iterator[RawImage]:
    """The images of a zarr store's array of that name, or of the only one; raises `ImageError`."""
    import zarr

    with translate_errors("a zarr store"):
        n_packed = _store_bytes(path)
        top = zarr.open(str(path), mode="r", use_consolidated=False)  # or its index could name another store
        arrays = {"": top} if isinstance(top, zarr.Array) else _zarr_arrays(top)
        array = arrays[_choose_array(list(arrays), name, lambda name: arrays[name].ndim)]
        check_growth(array.nbytes, n_packed)
        yield from images_of(array, plane, array.attrs)


def _zarr_arrays(group: Any) -> dict[str, Any]:
    """The arrays in a group and in the groups below it, by their paths."""
    import zarr

    members = group.members(max_depth=MAX_DEPTH, use_consolidated_for_children=False)
    return {name: member for name, member in members if isinstance(member, zarr.Array)}


def _store_bytes(store: Path) -> int:
    """Bytes of all files in a zarr store, none of which may be a link."""
    n_bytes = 0
    for folder, below, names in os.walk(store):
        for name in (*below, *names):
            status = Path(folder, name).lstat()
            if stat.S_ISLNK(status.st_mode):
                raise _external_data()
            n_bytes += status.st_size
    return n_bytes


# --- axes -------------------------------------------------------------------------------------


def images_of(array: Any, plane: str | None = None, attributes: Mapping[str, Any] | None = None) -> Iterator[RawImage]:
    """The images of an array that can be sliced: one, or those of a stack.

    plane: number or name of the plane to read, of an array (planes, height, width) or of each image of a stack.
    attributes: those of an HDF5 or zarr array, which may name the planes. Raises `ImageError` where it is not clear
    what an image is, and for images of several planes, none of which is named, unless all are equal.
    """
    if array.dtype.kind not in "fiub":
        raise ImageError(f"holds {array.dtype} values", need="real numbers", next="Save them as float or integer.")
    chunk = getattr(array, "chunks", None) or (1,) * len(array.shape)  # of HDF5 and zarr: unpacked at once
    if math.prod(chunk) * array.dtype.itemsize > MAX_UNPACKED_BYTES:
        raise ImageError(
            f"has chunks of {chunk} pixels, too large to unpack",
            need=f"chunks of at most {MAX_UNPACKED_BYTES:,} bytes",
            next="Write it in smaller chunks.",
        )
    axes = find_axes(array.shape, has_plane=plane is not None)
    counted = {axes.stack, axes.planes}
    check_sides(tuple(side for axis, side in enumerate(array.shape) if axis not in counted and side != 1))
    index = [0 if side == 1 and len(array.shape) > 2 else slice(None) for side in array.shape]
    if axes.planes is None:
        if plane is not None:
            plane_index(plane, 1)
    elif plane is not None:
        index[axes.planes] = plane_index(plane, array.shape[axes.planes], _names(attributes or {}))
        axes = Axes(axes.stack, None)
    return _read_images(array, index, axes, 1 if axes.stack is None else chunk[axes.stack])


def find_axes(shape: Sequence[int], *, has_plane: bool = False) -> Axes:
    """The meaning of each axis of an array; raises `ImageError` where there are two, or none.

    has_plane: whether the user names a plane, so that three axes are planes and not images.
    """
    if len(shape) == 2:
        return Axes(None, None)
    long = [axis for axis, side in enumerate(shape) if side != 1]
    if len(long) < 2 or len(long) > 4 or (len(long) == 4 and 0 in shape):
        raise _shape_error(shape)
    if len(long) == 2:
        return Axes(None, None)
    counting = long[_counting_axis([shape[axis] for axis in long[-3:]], shape) + len(long) - 3]
    if len(long) == 4:
        return Axes(long[0], counting)
    is_planes = has_plane or (counting == long[-1] and 0 < shape[counting] <= MAX_COLOURS)
    return Axes(None, counting) if is_planes else Axes(counting, None)


def _counting_axis(cube: Sequence[int], shape: Sequence[int]) -> int:
    """0 or 2: the axis of a cube that counts images, while the other two are the sides of one."""
    is_image = [_is_image(cube[1:]), _is_image(cube[:2])]
    is_square = [cube[1] == cube[2], cube[0] == cube[1]]
    if is_image == [True, False] or is_square == [True, False] or (len(shape) == 4 and shape[1] == 1):
        return 0
    if is_image == [False, True]:
        return 2
    if len(shape) == 4 and shape[3] == 1:
        return 0
    raise ImageError(
        f"has shape {tuple(shape)}, of which the first or the last axis may count the images",
        need="(n, height, width) that cannot be taken for (height, width, n)",
        next="Save it as (n, 1, height, width).",
    )


def _is_image(sides: Sequence[int]) -> bool:
    """Whether these can be the sides of an image of a lens."""
    return min(sides) > MAX_COLOURS and max(sides) <= MAX_ASPECT * min(sides)


def _shape_error(shape: Sequence[int]) -> ImageError:
    if len(shape) == 1:
        side = math.isqrt(shape[0])
        advice = f"Save it as array.reshape({side}, {side})." if side**2 == shape[0] else "Save it in two dimensions."
        return ImageError(f"is a flat row of {shape[0]:,} numbers", need="(height, width)", next=advice)
    return ImageError(
        f"the array has shape {tuple(shape)}",
        need="(height, width) or (n, height, width)",
        next="Save images of one band.",
    )


def plane_index(plane: str, n_planes: int, names: Sequence[str] = ()) -> int:
    """The index of the plane of that number or name; raises `ImageError` where there is none."""
    known = names or (COLOURS if n_planes in (3, 4) else ())
    if plane.isdecimal() and int(plane) < n_planes:
        return int(plane)
    if plane.lower() in known[:n_planes]:
        return known.index(plane.lower())
    named = f", or one of {', '.join(known[:n_planes])}" if known else ""
    known_planes = f"0 to {n_planes - 1}{named}" if n_planes > 1 else "an image of several planes"
    raise ImageError(f"has no plane {plane}", need=known_planes, next="Name another with --plane, or none.")


def _names(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the planes in lower case, where an attribute lists them."""
    for key in PLANE_NAMES:
        if key in attributes:
            names = np.ravel(attributes[key]).tolist()
            return tuple((name.decode() if isinstance(name, bytes) else str(name)).lower() for name in names)
    return ()


def _read_images(array: Any, index: list[Any], axes: Axes, n_together: int) -> Iterator[RawImage]:
    """The images of an array, read with `index`, which drops axes of length 1 and chooses a plane.

    n_together: images that a chunk holds.
    """
    n_bytes = math.prod(
        (side for axis, side in enumerate(array.shape) if axis != axes.stack and index[axis] == slice(None)),
        start=array.dtype.itemsize,
    )
    if n_bytes > MAX_UNPACKED_BYTES:
        limit = f"at most {MAX_UNPACKED_BYTES:,}"
        raise ImageError(f"an image has {n_bytes:,} bytes", need=limit, next="Name one of its planes with --plane.")
    planes = None if axes.planes is None else _position(index, axes.planes)
    if axes.stack is None:
        yield _image(np.asarray(array[tuple(index)]), planes)
        return
    n_images, stack = array.shape[axes.stack], _position(index, axes.stack)
    if not 0 < n_images <= MAX_STACK:
        raise ImageError(f"holds {n_images:,} images", need=f"1 to {MAX_STACK:,}", next="Split it, or leave it out.")
    step = max(1, min(n_together, BLOCK_BYTES // max(n_bytes, 1)))
    for start in range(0, n_images, step):
        index[axes.stack] = slice(start, start + step)
        block = np.moveaxis(np.asarray(array[tuple(index)]), stack, 0)
        for number, pixels in enumerate(block, start):
            yield _image(pixels, None if planes is None else planes - 1, number)


def _position(index: Sequence[Any], axis: int) -> int:
    """The place of an axis among those that reading with `index` leaves."""
    return sum(isinstance(part, slice) for part in index[:axis])


def _image(pixels: NDArray[np.generic], planes_axis: int | None, number: int | None = None) -> RawImage:
    """One image; several planes must be equal, but for the opacity after three colours."""
    if planes_axis is None:
        return RawImage(pixels, number)
    planes = np.moveaxis(pixels, planes_axis, 0)
    n_colours = 3 if len(planes) == MAX_COLOURS else len(planes)
    if not are_equal(planes[:n_colours]):
        raise different_planes(len(planes))
    return RawImage(planes[0], number, mask=opacity_mask(planes[n_colours]) if n_colours < len(planes) else None)


def different_planes(n_planes: int) -> ImageError:
    """The error of an image of several planes, where the user names none."""
    what, advice = f"has {n_planes} planes that differ", f"Name one with --plane, 0 to {n_planes - 1}."
    return ImageError(what, need="an image of one plane", next=advice)


def are_equal(planes: NDArray[np.generic]) -> bool:
    """Whether all planes [n, h, w] hold the same."""
    return all(np.array_equal(planes[0], plane, equal_nan=plane.dtype.kind == "f") for plane in planes[1:])


def opacity_mask(opacity: NDArray[np.generic]) -> NDArray[np.bool_] | None:
    """Pixels that are transparent, and hence missing; None where none is, or all are."""
    mask = opacity == 0
    return mask if mask.any() and not mask.all() else None
