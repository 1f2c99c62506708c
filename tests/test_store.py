import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from conftest import chunk
from hypothesis import assume, given
from hypothesis import strategies as st

from sublens import store
from sublens.errors import DataError
from sublens.files import sha256
from sublens.sim.population import Truth
from sublens.store import MANIFEST, Chunk, Origin


def write(out: Path) -> str:
    return store.write(
        out, ("a", "b"), Origin(source="test"), {"train": [chunk(5), chunk(3, start=5)], "test": [chunk(4, start=8)]}
    )


def damaged(path: Path) -> dict[str, str]:
    return {name: problem for name, problem in store.damage(path, store.read_manifest(path)) if problem}


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    write(tmp_path / "s")
    manifest = store.read_manifest(tmp_path / "s")
    chunks = store.read_split(tmp_path / "s", manifest, "train")
    assert (manifest.classes, manifest.shape, manifest.splits) == (("a", "b"), (8, 8), {"train": 8, "test": 4})
    for ours, written in zip(chunks, [chunk(5), chunk(3, start=5)], strict=True):
        assert np.array_equal(ours.counts, written.counts)
        assert np.array_equal(ours.labels, written.labels)
        assert np.array_equal(ours.ids, written.ids)


def test_truth_is_read_back_image_by_image(small_store: Path) -> None:
    manifest = store.read_manifest(small_store)
    (train,) = store.read_split(small_store, manifest, "train")
    assert isinstance(train.truth, Truth)
    assert np.array_equal(train.truth.scenes["label"], train.labels)
    assert len(train.truth.subhaloes) == train.truth.scenes["n_subhaloes"].sum()


def test_images_are_memory_mapped(tmp_path: Path) -> None:
    write(tmp_path / "s")
    first, *_ = store.read_split(tmp_path / "s", store.read_manifest(tmp_path / "s"), "train")
    assert isinstance(first.counts, np.memmap)


def test_the_hash_is_of_the_manifest_and_repeats(tmp_path: Path) -> None:
    assert write(tmp_path / "s") == write(tmp_path / "t") == sha256(tmp_path / "s" / MANIFEST)


def test_an_image_takes_two_bytes_a_pixel(small_store: Path) -> None:
    assert (small_store / "test" / "images-00000.npy").stat().st_size == 30 * 48 * 48 * 2 + 128


@pytest.mark.parametrize(
    "name", ["train/images-00001.npy", "train/labels.npy", "train/ids.npy", "test/images-00000.npy"]
)
def test_any_changed_byte_is_found(tmp_path: Path, name: str) -> None:
    write(tmp_path / "s")
    assert damaged(tmp_path / "s") == {}
    data = bytearray((tmp_path / "s" / name).read_bytes())
    data[-1] ^= 1
    (tmp_path / "s" / name).write_bytes(data)
    assert damaged(tmp_path / "s") == {name: "changed"}


def test_missing_and_foreign_files_are_found(tmp_path: Path) -> None:
    write(tmp_path / "s")
    (tmp_path / "s" / "train" / "ids.npy").rename(tmp_path / "s" / "extra.npy")
    assert damaged(tmp_path / "s") == {"train/ids.npy": "missing", "extra.npy": "not in the manifest"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', "null"])
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(DataError, match="damaged|format None"):
        store.read_manifest(tmp_path)


def test_a_store_of_another_format_says_what_to_do(tmp_path: Path) -> None:
    write(tmp_path / "s")
    content = json.loads((tmp_path / "s" / MANIFEST).read_text())
    (tmp_path / "s" / MANIFEST).write_text(json.dumps({**content, "format": 2}))
    with pytest.raises(DataError, match="format 2; this version of sublens reads format 1"):
        store.read_manifest(tmp_path / "s")


def test_a_folder_that_is_no_store_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a store"):
        store.read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["labels.npy", "images-00000.npy"])
def test_a_truncated_array_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path / "s")
    file = tmp_path / "s" / "train" / name
    file.write_bytes(file.read_bytes()[:140])
    with pytest.raises(DataError, match=name):
        store.read_split(tmp_path / "s", store.read_manifest(tmp_path / "s"), "train")


def test_a_missing_shard_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "s")
    (tmp_path / "s" / "train" / "images-00001.npy").unlink()
    with pytest.raises(DataError, match="fewer or more than the 8 images"):
        store.read_split(tmp_path / "s", store.read_manifest(tmp_path / "s"), "train")


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[Chunk]:
        yield chunk(3)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.write(tmp_path / "s", ("a", "b"), Origin(source="test"), {"train": broken()})
    assert list(tmp_path.iterdir()) == []


@given(st.integers(0, 10**6), st.integers(0, 255))
def test_any_changed_byte_of_the_manifest_is_found(small_store: Path, place: int, byte: int) -> None:
    data = bytearray((small_store / MANIFEST).read_bytes())
    place %= len(data)
    assume(data[place] != byte)
    data[place] = byte
    with TemporaryDirectory() as folder:
        (Path(folder) / MANIFEST).write_bytes(data)
        with pytest.raises(DataError):
            store.read_manifest(Path(folder))


def test_a_changed_label_is_refused_before_it_is_used(tmp_path: Path) -> None:
    write(tmp_path / "s")
    np.save(tmp_path / "s" / "train" / "labels.npy", np.full(8, 7))
    with pytest.raises(DataError, match=r"labels\.npy: missing or changed"):
        store.read_split(tmp_path / "s", store.read_manifest(tmp_path / "s"), "train")
