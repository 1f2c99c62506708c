from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
import zarr
from astropy.io import fits
from numpy.typing import NDArray

from sublens.errors import ImageError
from sublens.images import arrays, formats
from sublens.images.arrays import Axes, find_axes
from sublens.images.formats import ImageSelector
from sublens.images.pixels import Image

STACK = np.random.default_rng(0).normal(30, 5, (6, 24, 24)).astype(np.float32)
PACKINGS = {
    "Blosc": hdf5plugin.Blosc(),
    "Blosc2": hdf5plugin.Blosc2(),
    "LZ4": hdf5plugin.LZ4(),
    "Zstandard": hdf5plugin.Zstd(),
    "Bitshuffle": hdf5plugin.Bitshuffle(),
}


def save(folder: Path, name: str, array: NDArray[Any], **attributes: Any) -> Path:
    path = folder / name
    match path.suffix:
        case ".npy":
            np.save(path, array)
        case ".npz":
            np.savez(path, array)
        case ".h5":
            with h5py.File(path, "w") as file:
                file.create_dataset("a", data=array).attrs.update(attributes)
        case _:
            zarr.create_array(str(path), data=array, attributes=attributes)
    return path


def read(path: Path, plane: str | None = None) -> list[Image]:
    images = list(formats.read_all(path, ImageSelector(plane=plane)))
    assert all(isinstance(image, Image) for image in images)
    return images  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((24, 30), Axes(None, None)),
        ((1, 10_000), Axes(None, None)),
        ((1, 24, 24), Axes(None, None)),
        ((24, 24, 1), Axes(None, None)),
        ((1, 24, 24, 1), Axes(None, None)),
        ((24, 1, 24), Axes(None, None)),
        ((6, 24, 24), Axes(0, None)),
        ((23, 24, 24), Axes(0, None)),
        ((500, 24, 30), Axes(0, None)),
        ((0, 24, 24), Axes(0, None)),
        ((24, 24, 6), Axes(2, None)),
        ((24, 30, 500), Axes(2, None)),
        ((24, 24, 3), Axes(None, 2)),
        ((6, 1, 24, 24), Axes(0, None)),
        ((6, 24, 24, 1), Axes(0, None)),
        ((24, 1, 24, 24), Axes(0, None)),
        ((30, 1, 24, 30), Axes(0, None)),
        ((1, 24, 24, 6), Axes(3, None)),
        ((6, 24, 24, 3), Axes(0, 3)),
        ((6, 3, 24, 24), Axes(0, 1)),
        ((1, 6, 3, 24, 24), Axes(1, 2)),
    ],
)
def test_axes_are_told_apart_by_the_sides(shape: Sequence[int], axes: Axes) -> None:
    assert find_axes(shape) == axes


@pytest.mark.parametrize("shape", [(24, 24, 24), (24, 24, 20), (20, 24, 30), (30, 24, 40, 1, 1)])
def test_axes_that_can_be_read_in_two_ways_are_refused(shape: Sequence[int]) -> None:
    with pytest.raises(ImageError, match="the first or the last axis may count the images"):
        find_axes(shape)


@pytest.mark.parametrize("shape", [(), (1, 1, 24), (2, 3, 4, 24, 24)])
def test_other_shapes_are_refused(shape: Sequence[int]) -> None:
    with pytest.raises(ImageError, match=r"needs \(height, width\) or \(n, height, width\)"):
        find_axes(shape)


@pytest.mark.parametrize(("n", "advice"), [(576, r"array\.reshape\(24, 24\)"), (577, "two dimensions")])
def test_a_flat_row_of_pixels_says_so(tmp_path: Path, n: int, advice: str) -> None:
    with pytest.raises(ImageError, match=f"a flat row of {n} numbers; .*{advice}"):
        read(save(tmp_path, "a.npy", np.arange(n)))


@pytest.mark.parametrize("shape", [(0, 24, 24), (24, 24, 0), (6, 24, 24, 0), (6, 0, 24, 24), (0, 3, 24, 24), (0, 0, 0)])
@pytest.mark.parametrize("plane", [None, "0"])
def test_an_array_of_nothing_is_an_image_error(tmp_path: Path, shape: tuple[int, ...], plane: str | None) -> None:
    with pytest.raises(ImageError, match=r"holds 0 images|has no plane 0|the array has shape|may count the images"):
        read(save(tmp_path, "a.npy", np.zeros(shape)), plane)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.h5", "a.zarr"])
@pytest.mark.parametrize("kind", ["nhw", "n1hw", "nhw1", "hwn", "hwn-fortran"])
def test_a_stack_is_the_same_in_every_order_and_format(tmp_path: Path, name: str, kind: str) -> None:
    array = {
        "nhw": STACK,
        "n1hw": STACK[:, None],
        "nhw1": STACK[..., None],
        "hwn": np.moveaxis(STACK, 0, -1).copy(),
        "hwn-fortran": np.asfortranarray(np.moveaxis(STACK, 0, -1)),
    }[kind]
    images = read(save(tmp_path, name, array))
    assert [image.number for image in images] == list(range(6))
    assert np.array_equal([image.pixels for image in images], STACK)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.h5", "a.zarr"])
@pytest.mark.parametrize("shape", [(24, 24, 1), (1, 24, 24, 1), (24, 24), (1, 1, 24, 24)])
def test_axes_of_length_1_do_not_count(tmp_path: Path, name: str, shape: Sequence[int]) -> None:
    (image,) = read(save(tmp_path, name, STACK[0].reshape(shape)))
    assert image.number is None
    assert np.array_equal(image.pixels, STACK[0])


def test_equal_planes_are_one_image(tmp_path: Path) -> None:
    (image,) = read(save(tmp_path, "a.npy", np.repeat(STACK[0][..., None], 3, 2)))
    assert np.array_equal(image.pixels, STACK[0])
    images = read(save(tmp_path, "a.npz", np.repeat(STACK[..., None], 3, 3)))
    assert np.array_equal([image.pixels for image in images], STACK)


def test_opacity_beside_three_equal_planes_marks_missing_pixels(tmp_path: Path) -> None:
    opacity = np.ones((24, 24))
    opacity[:2] = 0
    np.save(tmp_path / "a.npy", np.dstack([STACK[0]] * 3 + [opacity]))
    (raw,) = arrays.read_npy(tmp_path / "a.npy", None)
    assert raw.mask is not None
    assert np.array_equal(raw.mask, opacity == 0)


@pytest.mark.parametrize("shape", [(24, 24, 3), (2, 3, 24, 24), (2, 24, 24, 3), (2, 5, 24, 24)])
def test_planes_that_differ_need_a_choice(tmp_path: Path, shape: Sequence[int]) -> None:
    path = save(tmp_path, "a.npy", np.random.default_rng(0).random(shape))
    with pytest.raises(ImageError, match=r"planes that differ; .*--plane, 0 to"):
        read(path)


@pytest.mark.parametrize("name", ["a.npy", "a.h5", "a.zarr"])
@pytest.mark.parametrize("is_last", [False, True])
def test_a_plane_is_chosen_by_its_number(tmp_path: Path, name: str, is_last: bool) -> None:
    path = save(tmp_path, name, np.moveaxis(STACK, 0, -1) if is_last else STACK)
    (image,) = read(path, "4")
    assert np.array_equal(image.pixels, STACK[4])


def test_a_plane_of_every_image_of_a_stack_is_chosen(tmp_path: Path) -> None:
    cube = np.stack([STACK, STACK + 100], axis=1)
    images = read(save(tmp_path, "a.npy", cube), "1")
    assert np.array_equal([image.pixels for image in images], STACK + 100)


@pytest.mark.parametrize(("name", "key"), [("a.h5", "bands"), ("a.zarr", "filters"), ("a.zarr", "channels")])
def test_a_plane_is_chosen_by_the_name_in_an_attribute(tmp_path: Path, name: str, key: str) -> None:
    path = save(tmp_path, name, STACK[:2], **{key: ["F106", "F129"]})
    (image,) = read(path, "f129")
    assert np.array_equal(image.pixels, STACK[1])


@pytest.mark.parametrize(
    ("shape", "plane", "words"),
    [
        ((6, 24, 24), "6", "has no plane 6; needs 0 to 5. "),
        ((3, 24, 24), "v", "needs 0 to 2, or one of red, green, blue"),
        ((24, 24), "1", "has no plane 1; needs an image of several planes"),
    ],
)
def test_a_plane_that_is_not_there_says_which_are(
    tmp_path: Path, shape: tuple[int, ...], plane: str, words: str
) -> None:
    with pytest.raises(ImageError, match=words):
        read(save(tmp_path, "a.npy", np.zeros(shape)), plane)


def test_a_plane_of_a_fits_cube_is_chosen(tmp_path: Path) -> None:
    fits.PrimaryHDU(STACK[:, None]).writeto(tmp_path / "a.fits")
    (image,) = read(tmp_path / "a.fits", "4")
    assert np.array_equal(image.pixels, STACK[4])
    with pytest.raises(ImageError, match="a cube; .*--plane"):
        read(tmp_path / "a.fits")


def test_axes_of_length_1_of_a_fits_image_do_not_count(tmp_path: Path) -> None:
    fits.PrimaryHDU(STACK[0][None, None]).writeto(tmp_path / "a.fits")
    assert np.array_equal(read(tmp_path / "a.fits")[0].pixels, STACK[0])


def test_an_array_in_groups_of_a_zarr_store_is_read(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "a.zarr"), name="survey/field/light", data=STACK)
    assert np.array_equal([image.pixels for image in read(tmp_path / "a.zarr")], STACK)
    zarr.create_array(str(tmp_path / "a.zarr"), name="survey/noise", data=STACK)
    with pytest.raises(ImageError, match="one of survey/field/light, survey/noise"):
        read(tmp_path / "a.zarr")


@pytest.mark.parametrize("packing", PACKINGS)
def test_packed_hdf5_is_read(tmp_path: Path, packing: str) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", data=STACK, **PACKINGS[packing])
    assert np.array_equal([image.pixels for image in read(tmp_path / "a.h5")], STACK)


def test_packed_hdf5_names_what_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", data=STACK, **hdf5plugin.Blosc())
    monkeypatch.setattr(arrays, "_is_installed", lambda code: False)
    with pytest.raises(ImageError, match="is packed with Blosc; needs hdf5plugin .*pip install hdf5plugin"):
        read(tmp_path / "a.h5")


def test_hdf5_packed_in_another_way_is_refused_by_name(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", data=STACK, **hdf5plugin.Zfp())
    with pytest.raises(ImageError, match="is packed with the HDF5 filter 32013; needs one of Deflate"):
        read(tmp_path / "a.h5")


@pytest.mark.parametrize("name", ["a.npz", "a.h5", "a.zarr"])
def test_labels_beside_the_images_are_not_taken_for_images(tmp_path: Path, name: str) -> None:
    both: dict[str, Any] = {"x": STACK, "labels": np.arange(6)}
    if name == "a.npz":
        np.savez(tmp_path / name, **both)
    elif name == "a.h5":
        with h5py.File(tmp_path / name, "w") as file:
            file.update(both)
    else:
        zarr.open_group(tmp_path / name, mode="w")
        for key, values in both.items():
            zarr.create_array(tmp_path / name, name=key, data=values)
    assert np.array_equal([image.pixels for image in read(tmp_path / name)], STACK)
