import os
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from conftest import chunk
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sublens.config import SplitConfig
from sublens.data import dataset, folders, store
from sublens.data.dataset import Dataset, Part
from sublens.data.store import Origin
from sublens.errors import DataError
from sublens.storage.files import sha256

EVERY_PART = SplitConfig(selection=0.3)


def named(n: int) -> Part:
    """A part of n images, whose first pixel is their position."""
    counts = np.zeros((n, 2, 2), np.uint16)
    counts[:, 0, 0] = np.arange(n)
    ids = np.array([f"train/{number}" for number in range(n)])
    return Part((counts,), np.arange(n), np.arange(n) % 2, ids, None)


def test_a_folder_is_opened_with_its_own_test_part(image_folder: Path) -> None:
    opened = dataset.open_dataset(image_folder, EVERY_PART)
    assert opened.classes == ("plain", "ring")
    assert len(opened.train) + len(opened.selection) == 24
    assert len(opened.test) == 8


def test_labels_follow_the_folder_names(image_folder: Path) -> None:
    test = dataset.open_dataset(image_folder, EVERY_PART).test
    assert [name.split("/")[1] for name in test.ids] == [("plain", "ring")[label] for label in test.labels]


def test_val_is_the_test_part_where_there_is_no_test(image_folder: Path) -> None:
    (image_folder / "test").rename(image_folder / "val")
    assert all(name.startswith("val/") for name in dataset.open_dataset(image_folder, EVERY_PART).test.ids)


def test_without_a_test_folder_some_training_images_are_set_aside(image_folder: Path) -> None:
    opened = dataset.open_dataset(image_folder / "train", SplitConfig(selection=0.3, test=0.3))
    assert len(opened.train) + len(opened.selection) + len(opened.test) == 24
    assert min(map(len, (opened.train, opened.selection, opened.test))) > 0


def test_the_parts_share_no_image(small_dataset: Dataset) -> None:
    ids = [set(part.ids) for part in (small_dataset.train, small_dataset.selection, small_dataset.test)]
    assert len(set.union(*ids)) == sum(map(len, ids)) == 150


def test_the_selection_part_comes_from_the_training_images_alone(small_dataset: Dataset) -> None:
    assert all(name.startswith("train/") for name in small_dataset.selection.ids)
    assert all(name.startswith("test/") for name in small_dataset.test.ids)


@given(st.floats(0.05, 0.9), st.integers(0, 2**40), st.lists(st.integers(0, 199), min_size=1, unique=True))
def test_an_image_stays_in_its_part_whatever_the_others(share: float, seed: int, kept: list[int]) -> None:
    whole = named(200)
    _, aside = dataset.split(whole, share, seed, "selection")
    _, fewer = dataset.split(whole.take(np.array(kept)), share, seed, "selection")
    assert set(fewer.ids) == set(aside.ids) & {f"train/{number}" for number in kept}


def test_about_that_share_is_set_aside() -> None:
    _, aside = dataset.split(named(10_000), 0.2, 3, "test")
    assert 1850 < len(aside) < 2150


def test_another_seed_sets_others_aside() -> None:
    first, second = (set(dataset.split(named(200), 0.5, seed, "test")[1].ids) for seed in (0, 1))
    assert first != second


def test_another_purpose_sets_others_aside() -> None:
    first, second = (set(dataset.split(named(200), 0.5, 0, purpose)[1].ids) for purpose in ("test", "selection"))
    assert first != second


def test_taking_twice_is_taking_once() -> None:
    part = named(10).take(np.array([7, 3, 5])).take(np.array([2, 0]))
    assert part.ids.tolist() == ["train/5", "train/7"]
    assert part.counts(np.arange(2))[:, 0, 0].tolist() == [5, 7]


def test_images_are_found_in_the_right_shard(small_store: Path) -> None:
    chunks = [np.full((3, 2, 2), 0, np.uint16), np.full((2, 2, 2), 1, np.uint16)]
    part = Part(tuple(chunks), np.arange(5), np.zeros(5, np.int64), np.arange(5).astype(str), None)
    assert part.counts(np.array([4, 0, 3, 2]))[:, 0, 0].tolist() == [1, 0, 1, 0]


def test_a_damaged_shard_is_opened_but_not_read(small_store: Path, tmp_path: Path) -> None:
    shard = shutil.copytree(small_store, tmp_path / "s") / "test" / "images-00000.npy"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    opened = dataset.open_dataset(tmp_path / "s", EVERY_PART)
    assert opened.train.counts(np.arange(3)).shape == (3, 48, 48)
    for part in (opened.test, opened.test.take(np.array([2]))):
        with pytest.raises(DataError, match=r"test/images-00000\.npy: is missing or changed.*sublens verify"):
            part.counts(np.array([0]))


def test_a_shard_is_hashed_once_in_a_process(small_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, hashing = dataset.open_dataset(small_store, EVERY_PART), Mock(wraps=sha256)
    monkeypatch.setattr(store, "sha256", hashing)
    for part in (opened.train, opened.selection, opened.train.few(5)):
        part.counts(np.arange(3))
    hashing.assert_called_once_with(small_store / "train" / "images-00000.npy")


def test_truth_stays_with_its_image(small_dataset: Dataset) -> None:
    truth = small_dataset.selection.truth
    assert truth is not None
    indices = [int(name.split("/")[1]) for name in small_dataset.selection.ids]
    assert truth.scenes["index"].tolist() == indices
    assert truth.scenes["label"].tolist() == small_dataset.selection.labels.tolist()


def test_a_folder_packed_into_a_store_is_the_same_data_set(image_folder: Path, tmp_path: Path) -> None:
    dataset.pack(image_folder, tmp_path / "store")
    folder, packed = (dataset.open_dataset(path, EVERY_PART) for path in (image_folder, tmp_path / "store"))
    for name in ("train", "selection", "test"):
        part, same = getattr(folder, name), getattr(packed, name)
        assert part.ids.tolist() == same.ids.tolist()
        assert np.array_equal(part.counts(np.arange(len(part))), same.counts(np.arange(len(same))))


def test_writing_a_folder_and_reading_it_keeps_every_count(small_store: Path, tmp_path: Path) -> None:
    manifest = store.read_manifest(small_store)
    chunks = store.read_split(small_store, manifest, "train")
    folders.write_folder(
        tmp_path / "f", manifest.classes, manifest.origin, {"train": lambda n_done: chunks}, force=False
    )
    opened = dataset.open_dataset(tmp_path / "f", SplitConfig(selection=0.2, test=0.2))
    original = {row.tobytes() for chunk in chunks for row in chunk.counts}
    parts = (opened.train, opened.selection, opened.test)
    assert {row.tobytes() for part in parts for row in part.counts(np.arange(len(part)))} == original


def test_a_written_folder_has_the_layout_of_the_original(small_store: Path, tmp_path: Path) -> None:
    manifest = store.read_manifest(small_store)
    read = {name: store.read_split(small_store, manifest, name) for name in ("train", "test")}
    splits = {name: (lambda n_done, chunks=chunks: chunks) for name, chunks in read.items()}
    folders.write_folder(tmp_path / "f", manifest.classes, manifest.origin, splits, force=False)
    assert len(list((tmp_path / "f" / "train" / "sphere").glob("*.npy"))) == 40
    pixels = np.load(tmp_path / "f" / "test" / "vort" / "1.npy")
    assert (pixels.shape, pixels.dtype, pixels.min(), pixels.max()) == ((1, 48, 48), np.float64, 0, 1)


def test_the_hash_of_a_folder_follows_its_pixels(image_folder: Path) -> None:
    before = dataset.open_dataset(image_folder, EVERY_PART).hash
    assert dataset.open_dataset(image_folder, EVERY_PART).hash == before
    path = image_folder / "train" / "ring" / "0.npy"
    np.save(path, np.load(path)[:, ::-1])
    assert dataset.open_dataset(image_folder, EVERY_PART).hash != before


def test_pictures_are_read_beside_arrays(image_folder: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 255, (16, 16)).astype(np.uint8)
    Image.fromarray(grey).save(image_folder / "test" / "ring" / "extra.png")
    assert "test/ring/extra.png" in dataset.open_dataset(image_folder, EVERY_PART).test.ids


def test_any_number_of_classes_is_fine(image_folder: Path) -> None:
    for split in ("train", "test"):
        (image_folder / split / "third").mkdir()
        for source in (image_folder / split / "ring").glob("*.npy"):
            np.save(image_folder / split / "third" / source.name, np.load(source)[:, ::-1])
    assert dataset.open_dataset(image_folder, EVERY_PART).classes == ("plain", "ring", "third")


@pytest.mark.parametrize("name", ["naïve", "渦", 'a "b"', "a|b", "spiral galaxy", "ü̈", "<script>"])
def test_a_class_may_have_any_printable_name(image_folder: Path, name: str) -> None:
    for split in ("train", "test"):
        (image_folder / split / "ring").rename(image_folder / split / name)
    assert name in dataset.open_dataset(image_folder, EVERY_PART).classes


@pytest.mark.parametrize("name", ["a\tb", "a\nb", "a,b", " a", "a ", "a\u202eb", "a\u2028b", "\udcff"])
def test_a_class_name_that_no_table_holds_is_refused_at_once(image_folder: Path, name: str) -> None:
    (image_folder / "train" / "ring").rename(image_folder / "train" / name)
    with pytest.raises(DataError, match="train: has a class called .*; needs names of printable") as caught:
        dataset.open_dataset(image_folder, EVERY_PART)
    assert str(caught.value).encode()
    assert str(caught.value).isprintable()


def test_such_a_name_is_refused_in_a_store_too(tmp_path: Path) -> None:
    store.write(tmp_path / "s", ("a\nb", "c"), Origin(source="t"), {"train": lambda n_done: [chunk(4)]})
    with pytest.raises(DataError, match=r"s: has a class called 'a\\nb'"):
        dataset.open_dataset(tmp_path / "s", EVERY_PART)


def test_a_file_name_that_is_no_utf_8_is_escaped(image_folder: Path) -> None:
    (image_folder / "test" / "ring" / "0.npy").rename(image_folder / "test" / "ring" / os.fsdecode(b"\xff.npy"))
    test = dataset.open_dataset(image_folder, EVERY_PART).test
    assert r"test/ring/\udcff.npy" in test.ids
    assert len(test) == 8


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        dataset.open_dataset(tmp_path / "nowhere", EVERY_PART)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no class folders with images; needs at least two class folders"):
        dataset.open_dataset(tmp_path, EVERY_PART)


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    np.save(tmp_path / "only" / "0.npy", np.eye(16))
    with pytest.raises(DataError, match="has only one class folder with images, only; needs at least two"):
        dataset.open_dataset(tmp_path, EVERY_PART)


def test_a_class_without_images_is_named(image_folder: Path) -> None:
    for path in (image_folder / "train" / "ring").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="images, plain, and folders without: ring; needs at least two"):
        dataset.open_dataset(image_folder, EVERY_PART)


def test_a_class_that_only_the_test_part_has_is_named(image_folder: Path) -> None:
    shutil.copytree(image_folder / "test" / "ring", image_folder / "test" / "other")
    with pytest.raises(DataError, match="test: has class folders that the training part lacks: 'other'"):
        dataset.open_dataset(image_folder, EVERY_PART)


def test_a_class_that_the_test_part_lacks_is_named(image_folder: Path) -> None:
    for path in (image_folder / "test" / "ring").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="test: holds no images of ring"):
        dataset.open_dataset(image_folder, EVERY_PART)


def test_mixed_sizes_are_named(image_folder: Path) -> None:
    np.save(image_folder / "test" / "plain" / "0.npy", np.eye(20))
    with pytest.raises(DataError, match=r"test/plain/0\.npy: is 20 x 20 pixels but most images are 16 x 16; needs"):
        dataset.open_dataset(image_folder, EVERY_PART)


def test_a_part_without_a_class_is_refused(image_folder: Path) -> None:
    with pytest.raises(DataError, match="holds no image of class"):
        dataset.open_dataset(image_folder, SplitConfig(selection=0))


def test_missing_pixels_are_filled_and_warned_of(image_folder: Path, tmp_path: Path) -> None:
    path = image_folder / "train" / "ring" / "3.npy"
    image = np.load(path)
    image[0, 8, 8] = np.nan
    np.save(path, image)
    with pytest.warns(UserWarning, match=r"train: 1 pixels of 1 images are missing and filled from neighbours\.$"):
        dataset.open_dataset(image_folder, EVERY_PART)
    image[0, 6:10, 6:10] = np.nan
    np.save(path, image)
    with pytest.warns(UserWarning, match=r"16 pixels .* 1 have holes too .*; leave these out: train/ring/3\.npy\.$"):
        dataset.pack(image_folder, tmp_path / "store")


def test_a_bad_image_leaves_no_store_behind(image_folder: Path, tmp_path: Path) -> None:
    np.save(image_folder / "test" / "ring" / "3.npy", np.full((1, 16, 16), np.nan))
    with pytest.raises(DataError, match=r"3\.npy: all 256 pixels are missing"):
        dataset.pack(image_folder, tmp_path / "store")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def spoil(folder: Path) -> None:
    """Make three of the images unusable, each in another way."""
    (folder / "train" / "ring" / "3.npy").write_bytes(b"x")
    np.save(folder / "train" / "plain" / "0.npy", np.zeros((16, 16)))
    np.save(folder / "test" / "plain" / "1.npy", np.eye(20))


@pytest.mark.parametrize("act", [dataset.open_dataset, dataset.pack])
def test_all_unusable_images_are_listed_at_once(image_folder: Path, tmp_path: Path, act: Callable[..., object]) -> None:
    spoil(image_folder)
    with pytest.raises(DataError, match="3 of 32 images cannot be used") as caught:
        act(image_folder, EVERY_PART if act is dataset.open_dataset else tmp_path / "store")
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == [
        "train/plain/0.npy",
        "train/ring/3.npy",
        "test/plain/1.npy",
    ]
    assert not (tmp_path / "store").exists()


def test_an_odd_first_image_is_the_one_that_is_named(image_folder: Path) -> None:
    np.save(image_folder / "train" / "plain" / "0.npy", np.eye(20))
    with pytest.raises(DataError, match=r"1 of 32 images.*\n  train/plain/0\.npy: is 20 x 20 pixels but most"):
        dataset.open_dataset(image_folder, EVERY_PART)


def test_unusable_images_are_left_out_on_request_and_said(image_folder: Path) -> None:
    spoil(image_folder)
    opened = dataset.open_dataset(image_folder, EVERY_PART, skip_bad=True)
    assert (len(opened.train) + len(opened.selection), len(opened.test)) == (22, 7)
    assert (
        "images that cannot be used were left out, 3 in all:\n  train/plain/0.npy: every pixel is 0" in opened.notes[-1]
    )


def test_where_no_image_can_be_used_none_is_left_out(image_folder: Path) -> None:
    for path in image_folder.rglob("*.npy"):
        path.write_bytes(b"x")
    for skip_bad in (False, True):
        with pytest.raises(DataError, match=r"cannot be used|holds no training images") as caught:
            dataset.open_dataset(image_folder, EVERY_PART, skip_bad=skip_bad)
        assert "--skip-bad" not in str(caught.value)


def test_a_store_lists_the_images_that_were_left_out(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sublens.data.folders.FOLDER_CHUNK", 5)
    spoil(image_folder)
    notes = dataset.pack(image_folder, tmp_path / "store", skip_bad=True)
    left_out = store.read_manifest(tmp_path / "store").left_out
    assert list(left_out) == ["train/plain/0.npy", "train/ring/3.npy", "test/plain/1.npy"]
    folder = dataset.open_dataset(image_folder, EVERY_PART, skip_bad=True)
    packed = dataset.open_dataset(tmp_path / "store", EVERY_PART)
    assert packed.notes[-1] == notes[-1] == folder.notes[-1]
    for name in ("train", "selection", "test"):
        part, same = getattr(folder, name), getattr(packed, name)
        assert part.ids.tolist() == same.ids.tolist()
        assert np.array_equal(part.counts(np.arange(len(part))), same.counts(np.arange(len(same))))


def test_a_store_that_leaves_nothing_out_is_written_as_before(image_folder: Path, tmp_path: Path) -> None:
    dataset.pack(image_folder, tmp_path / "store")
    assert "left_out" not in (tmp_path / "store" / "manifest.json").read_text()


def test_a_test_part_that_is_set_aside_is_said(image_folder: Path) -> None:
    opened = dataset.open_dataset(image_folder / "train", SplitConfig(selection=0.3, test=0.3))
    assert "there is no test part, so 30% of the training images are set aside for it" in opened.notes


@pytest.mark.parametrize("act", [dataset.open_dataset, dataset.pack])
def test_test_images_that_are_training_images_draw_a_warning(
    image_folder: Path, tmp_path: Path, act: Callable[..., object]
) -> None:
    for number in (0, 1):
        shutil.copy(image_folder / "train" / "ring" / f"{number}.npy", image_folder / "test" / "ring")
    with pytest.warns(UserWarning, match="^2 of 8 test images are training images too, such as test/ring/0.npy and tr"):
        act(image_folder, EVERY_PART if act is dataset.open_dataset else tmp_path / "store")


def test_equal_images_of_which_one_is_set_aside_draw_a_warning(image_folder: Path) -> None:
    for number in range(12):
        shutil.copy(
            image_folder / "train" / "ring" / f"{number}.npy", image_folder / "train" / "ring" / f"{number}b.npy"
        )
    with pytest.warns(UserWarning, match="test images are training images too"):
        dataset.open_dataset(image_folder / "train", SplitConfig(selection=0.3, test=0.3))


def test_equal_images_under_two_labels_draw_a_warning(image_folder: Path) -> None:
    shutil.copy(image_folder / "train" / "ring" / "0.npy", image_folder / "train" / "plain" / "0b.npy")
    with pytest.warns(
        UserWarning, match=r"^equal images stand under two labels, 1 in all, such as train/plain/0b\.npy and train/ring"
    ):
        dataset.open_dataset(image_folder, EVERY_PART)
