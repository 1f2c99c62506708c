import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import Mock

import numpy as np
import pytest
from conftest import changed, chunk
from hypothesis import assume, example, given
from hypothesis import strategies as st

from sublens.data import generate, store
from sublens.data.store import MANIFEST, Chunk, Origin
from sublens.errors import DataError
from sublens.sim import render
from sublens.sim.population import draw
from sublens.storage.files import sha256
from sublens.surveys.presets import preset
from sublens.surveys.survey import Survey
from sublens.surveys.truth import Truth


def write(out: Path) -> str:
    chunks = {"train": [chunk(5), chunk(3, start=5)], "test": [chunk(4, start=8)]}
    splits = {name: (lambda n_done, some=some: some[n_done:]) for name, some in chunks.items()}
    return store.write(out, ("a", "b"), Origin(source="test"), splits)


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


def test_the_truth_of_a_general_halo_is_read_back(tmp_path: Path) -> None:
    halo = {"slope": {"uniform": [1.9, 2.1]}, "m4": 0.01}
    survey = changed("common-test-1", halo=halo, camera={"n_pixels": 8, "pixel_scale": 0.5})
    generate.simulate(survey, {"train": 7}, tmp_path / "s", seed=1)
    (read,) = store.read_split(tmp_path / "s", store.read_manifest(tmp_path / "s"), "train")
    drawn = draw(survey, 1, "train", range(7))
    assert read.truth
    assert drawn.extra is not None
    np.testing.assert_equal(read.truth.extra, drawn.extra)
    np.testing.assert_equal(read.truth.take(np.array([4, 2])).extra, drawn.extra[[4, 2]])


def test_a_survey_without_settings_of_real_lenses_has_no_further_table(small_store: Path) -> None:
    assert not list(small_store.rglob("extra*"))
    (train,) = store.read_split(small_store, store.read_manifest(small_store), "train")
    assert train.truth
    assert train.truth.extra is None


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


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 2}', "null"])
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(DataError, match="damaged|format None"):
        store.read_manifest(tmp_path)


def as_format_2(path: Path) -> None:
    """Make a store what it would have been in format 2; its tables keep their new columns."""
    content = json.loads((path / MANIFEST).read_text())
    del content["seal"], content["origin"]["survey"]["halo"]["conserves"]
    content["format"] = 2
    compact = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    content["seal"] = hashlib.sha256(compact.encode()).hexdigest()
    (path / MANIFEST).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def test_the_benchmark_in_format_2_is_read(tmp_path: Path) -> None:
    generate.simulate(preset("common-test-1"), {"train": 3}, tmp_path / "s", seed=3)
    as_format_2(tmp_path / "s")
    manifest = store.read_manifest(tmp_path / "s")
    assert manifest.origin.survey == preset("common-test-1")
    assert damaged(tmp_path / "s") == {}


def test_older_images_whose_rings_tell_the_class_are_refused(tmp_path: Path) -> None:
    generate.simulate(preset("rubin"), {"train": 3}, tmp_path / "s", seed=3)
    as_format_2(tmp_path / "s")
    with pytest.raises(
        DataError, match="'rubin' of format 2, in which the size of the ring tells the class; needs format 3"
    ):
        store.read_manifest(tmp_path / "s")


def test_a_store_of_another_format_says_what_to_do(tmp_path: Path) -> None:
    write(tmp_path / "s")
    content = json.loads((tmp_path / "s" / MANIFEST).read_text())
    (tmp_path / "s" / MANIFEST).write_text(json.dumps({**content, "format": 1}))
    with pytest.raises(DataError, match="is a store of format 1; needs format 3"):
        store.read_manifest(tmp_path / "s")


def test_a_folder_that_is_no_store_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a store .no readable manifest.json"):
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
    with pytest.raises(DataError, match="holds 5 images; needs the 8 that its manifest lists"):
        store.read_split(tmp_path / "s", store.read_manifest(tmp_path / "s"), "train")


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def broken(n_done: int) -> Iterator[Chunk]:
        yield chunk(3)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.write(tmp_path / "s", ("a", "b"), Origin(source="test"), {"train": broken})
    assert list(tmp_path.iterdir()) == []


@example(1, ord("\r"))
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
    with pytest.raises(DataError, match=r"labels\.npy: is missing or changed"):
        store.read_split(tmp_path / "s", store.read_manifest(tmp_path / "s"), "train")


def test_a_changed_shard_is_refused_as_its_images_are_read(tmp_path: Path) -> None:
    write(tmp_path / "s")
    np.save(tmp_path / "s" / "train" / "images-00001.npy", chunk(3, start=6).counts)
    manifest = store.read_manifest(tmp_path / "s")
    check = store.shard_check(tmp_path / "s", manifest, "train")
    assert len(store.read_split(tmp_path / "s", manifest, "train")) == 2
    check(0)
    with pytest.raises(DataError, match=r"images-00001\.npy: is missing or changed.*sublens verify .*or make it again"):
        check(1)


def test_changed_maps_are_refused(tmp_path: Path, small_survey: Survey) -> None:
    generate.simulate(small_survey, {"train": 4}, tmp_path / "s", seed=1, save_maps=True)
    shard = tmp_path / "s" / "train" / "convergence-00000.npy"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"convergence-00000\.npy: is missing or changed"):
        store.read_map(tmp_path / "s", store.read_manifest(tmp_path / "s"), "train", "convergence")


def interrupted(n_done_before: int, chunks: list[Chunk], n_more: int) -> Iterator[Chunk]:
    """The chunks from one on; breaks off after some more."""
    yield from chunks[n_done_before : n_done_before + n_more]
    if n_done_before + n_more < len(chunks):
        raise KeyboardInterrupt


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_an_interrupted_store_is_continued_to_the_same_hash(breaks: list[int]) -> None:
    chunks = [chunk(2, start=2 * number) for number in range(5)]
    with TemporaryDirectory() as folder:
        whole = store.write(Path(folder) / "w", ("a", "b"), Origin(source="t"), {"train": lambda n: chunks[n:]})
        for n_more in [*breaks, len(chunks)]:
            out = Path(folder) / "s"
            if out.exists():
                break
            source = partial(interrupted, chunks=chunks, n_more=n_more)
            with suppress(KeyboardInterrupt):
                store.write(out, ("a", "b"), Origin(source="t"), {"train": source}, plan="these")
        assert sha256(out / MANIFEST) == whole
        assert damaged(out) == {}
        assert sorted(path.name for path in Path(folder).iterdir()) == ["s", "w"]


def test_shards_that_are_done_are_not_made_again(tmp_path: Path) -> None:
    chunks, starts = [chunk(2), chunk(2, start=2), chunk(2, start=4)], []

    def source(n_done: int, n_more: int) -> Iterator[Chunk]:
        starts.append(n_done)
        return interrupted(n_done, chunks, n_more)

    for n_more in (2, 1):
        with suppress(KeyboardInterrupt):
            splits = {"train": partial(source, n_more=n_more)}
            store.write(tmp_path / "s", ("a", "b"), Origin(source="t"), splits, plan="these")
    assert starts == [0, 2]


@pytest.mark.parametrize("name", ["train/images-00001.npy", "train-pieces/labels-00001.npy", "train-pieces/00001.json"])
def test_a_shard_that_was_damaged_before_the_store_was_complete_is_made_again(tmp_path: Path, name: str) -> None:
    chunks = [chunk(2, start=2 * number) for number in range(4)]
    source = Mock(side_effect=lambda n_done: interrupted(n_done, chunks, 3 if n_done == 0 else 4))

    def attempt() -> str:
        return store.write(tmp_path / "s", ("a", "b"), Origin(source="t"), {"train": source}, plan="these")

    with pytest.raises(KeyboardInterrupt):
        attempt()
    file = tmp_path / ".s.partial" / name
    file.write_bytes(file.read_bytes()[:-3] + b"7\n}")
    whole = store.write(tmp_path / "w", ("a", "b"), Origin(source="t"), {"train": lambda n_done: chunks})
    assert attempt() == whole
    source.assert_called_with(1)


def test_another_plan_starts_from_nothing_if_forced(tmp_path: Path) -> None:
    chunks = [chunk(2), chunk(2, start=2)]
    with pytest.raises(KeyboardInterrupt):
        splits = {"train": partial(interrupted, chunks=chunks, n_more=1)}
        store.write(tmp_path / "s", ("a", "b"), Origin(source="t"), splits, plan="these")
    others = [chunk(3, start=9)]
    store.write(
        tmp_path / "s", ("a", "b"), Origin(source="t"), {"train": lambda n: others[n:]}, plan="others", force=True
    )
    (read,) = store.read_split(tmp_path / "s", store.read_manifest(tmp_path / "s"), "train")
    assert np.array_equal(read.counts, others[0].counts)


def test_maps_are_read_back(tmp_path: Path, small_survey: Survey) -> None:
    generate.simulate(small_survey, {"train": 9}, tmp_path / "s", seed=2, save_maps=True)
    manifest = store.read_manifest(tmp_path / "s")
    (chunk,) = store.read_split(tmp_path / "s", manifest, "train")
    assert chunk.truth is not None
    (kappa,) = store.read_map(tmp_path / "s", manifest, "train", "convergence")
    (noiseless,) = store.read_map(tmp_path / "s", manifest, "train", "noiseless")
    assert np.allclose(kappa, render.convergence(chunk.truth, small_survey), rtol=1e-5)
    assert np.array_equal(noiseless, render.render(chunk.truth, small_survey))
    with pytest.raises(DataError, match="holds no depth maps"):
        store.read_map(tmp_path / "s", manifest, "train", "depth")
