"""Folders as people unpack them: which part, which class, and what is none."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from sublens.data.layout import Layout, Listing
from sublens.errors import DataError


def parts(root: Path) -> dict[str, list[str]]:
    """Image files of each part, without those of the others."""
    layout = Layout.of(root)
    return {part: [path.relative_to(root).as_posix() for path, _ in files] for part, files in layout.files.items()}


@pytest.mark.parametrize("name", ["test", "Test", "TESTING", "eval", "evaluation", "val", "Val", "valid", "validation"])
def test_the_test_part_is_found_by_any_of_its_names_and_named(image_folder: Path, name: str) -> None:
    (image_folder / "test").rename(image_folder / name)
    assert [path.split("/")[0] for path in parts(image_folder)["test"]] == 8 * [name]
    assert f"the test part is {name}/" in Layout.of(image_folder).notes


@pytest.mark.parametrize("name", ["Train", "TRAIN", "training", "Training"])
def test_the_training_part_is_found_by_any_of_its_names(image_folder: Path, name: str) -> None:
    (image_folder / "train").rename(image_folder / name)
    assert Layout.of(image_folder).classes == ("plain", "ring")
    assert {part: len(files) for part, files in parts(image_folder).items()} == {"train": 24, "test": 8}


def test_test_comes_before_val_which_is_said(image_folder: Path) -> None:
    shutil.copytree(image_folder / "test", image_folder / "val")
    assert {path.split("/")[0] for path in parts(image_folder)["test"]} == {"test"}
    assert Layout.of(image_folder).notes == ("the test part is test/", "not used: val/")


def test_a_folder_called_eval_without_images_is_no_test_part(image_folder: Path) -> None:
    (image_folder / "eval" / "curves").mkdir(parents=True)
    assert {path.split("/")[0] for path in parts(image_folder)["test"]} == {"test"}


@pytest.mark.parametrize("form", ["{part}_{name}", "{part}-{name}", "{name}_{part}", "{name} {part}"])
def test_a_part_in_the_names_of_class_folders_is_a_part(image_folder: Path, form: str) -> None:
    for part in ("train", "test"):
        for name in ("plain", "ring"):
            (image_folder / part / name).rename(image_folder / form.format(part=part, name=name))
        (image_folder / part).rmdir()
    assert Layout.of(image_folder).classes == ("plain", "ring")
    assert {part: len(files) for part, files in parts(image_folder).items()} == {"train": 24, "test": 8}


def test_such_names_beside_others_are_refused(image_folder: Path) -> None:
    for part in ("train", "test"):
        (image_folder / part / "ring").rename(image_folder / f"{part}_ring")
    (image_folder / "train" / "plain").rename(image_folder / "plain")
    shutil.rmtree(image_folder / "train")
    shutil.rmtree(image_folder / "test")
    with pytest.raises(DataError, match="such as train_ring/, beside others: plain; needs a part in the names of all"):
        Layout.of(image_folder)


def test_a_class_called_after_a_part_is_a_class_where_no_other_part_has_it(image_folder: Path) -> None:
    (image_folder / "train" / "ring").rename(image_folder / "train" / "test_pattern")
    assert Layout.of(image_folder / "train").classes == ("plain", "test_pattern")


@pytest.mark.parametrize("junk", ["train/ring/._0.npy", "__MACOSX/ring/a.npy", "train/ring/.ipynb_checkpoints/0.npy"])
def test_what_other_programs_leave_is_skipped_and_said(image_folder: Path, junk: str) -> None:
    (image_folder / junk).parent.mkdir(parents=True, exist_ok=True)
    (image_folder / junk).write_bytes(b"x")
    layout = Layout.of(image_folder)
    assert (layout.n_images, layout.classes) == (32, ("plain", "ring"))
    skipped = next(note for note in layout.notes if note.startswith("skipped what other programs left: "))
    assert skipped.partition(": ")[2] in (junk, str(Path(junk).parent), "__MACOSX")


def test_folders_without_images_are_no_classes_and_said(image_folder: Path) -> None:
    (image_folder / "train" / "logs").mkdir()
    (image_folder / "train" / "logs" / "run.txt").write_text("x")
    assert Layout.of(image_folder).classes == ("plain", "ring")
    assert "folders without images are no classes: logs/" in Layout.of(image_folder).notes


def test_a_class_of_pictures_among_arrays_is_pointed_out(image_folder: Path) -> None:
    for name in ("plots", "third"):
        (image_folder / "train" / name).mkdir()
    (image_folder / "train" / "plots" / "loss.png").write_bytes(b"x")
    np.save(image_folder / "train" / "third" / "0.npy", np.eye(16))
    (note,) = (note for note in Layout.of(image_folder / "train").notes if "taken for a class" in note)
    assert note == "plots/ is taken for a class, but holds .png files where all others hold .npy"


@pytest.mark.parametrize("depth", [1, 2])
def test_a_folder_too_high_is_recognised(image_folder: Path, depth: int) -> None:
    home = image_folder.parent / "/".join("ab"[:depth])
    home.mkdir(parents=True)
    image_folder.rename(home / "images")
    with pytest.raises(DataError, match=rf"has no class folders with images.* Or name {home}/images, if you mean"):
        Layout.of(image_folder.parent / "a")


@pytest.mark.parametrize("low", ["train/ring", "test/plain"])
def test_a_folder_too_low_is_recognised(image_folder: Path, low: str) -> None:
    with pytest.raises(DataError, match=rf"image files lie outside of any.* Or name {image_folder}, if you mean that"):
        Layout.of(image_folder / low)


def test_the_training_part_alone_says_that_the_test_part_is_beside_it(image_folder: Path) -> None:
    assert Layout.of(image_folder / "train").notes == (f"test/ beside it is not used; name {image_folder} for both",)


def test_images_one_level_too_low_are_refused_with_what_to_do(image_folder: Path) -> None:
    for name in ("plain", "ring"):
        (image_folder / "train" / name).rename(image_folder / "batch")
        (image_folder / "train" / name).mkdir()
        (image_folder / "batch").rename(image_folder / "train" / name / "batch")
    with pytest.raises(DataError, match="but with folders of images: plain, ring; needs the images of each class dir"):
        Layout.of(image_folder / "train")


def test_the_classes_of_a_network_may_be_more_than_the_folders(image_folder: Path) -> None:
    layout = Layout.of(image_folder / "train", known=("no", "plain", "ring"))
    assert (layout.classes, {label for _, label in layout.files["train"]}) == (("no", "plain", "ring"), {1, 2})
    with pytest.raises(
        DataError, match="that the network does not know: 'plain'; needs names of its classes: no, ring"
    ):
        Layout.of(image_folder / "train", known=("no", "ring"))


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be read"):
        Listing.of(tmp_path / "file")
