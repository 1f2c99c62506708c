"""Folders of class folders: which are parts, which are classes and which are neither, by their names and content."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Self

from sublens.data import store
from sublens.errors import DataError
from sublens.images import formats

TRAIN, TEST = "train", "test"
PART_NAMES = {
    TRAIN: ("train", "training"),
    TEST: ("test", "testing", "eval", "evaluation", "val", "valid", "validation"),
}
"""Names of the folders of each part, in any case; the first that is there is taken."""
ANY_PART = "|".join(name for names in PART_NAMES.values() for name in names)
PREFIXED = re.compile(rf"(?P<part>{ANY_PART})[-_. ]+(?P<label>.+)", re.IGNORECASE)
"""Names of class folders that begin with a part, such as `train_lenses`."""
SUFFIXED = re.compile(rf"(?P<label>.+)[-_. ]+(?P<part>{ANY_PART})", re.IGNORECASE)
"""Names of class folders that end with a part, such as `lenses-test`."""
NO_DATA = ("__MACOSX", "__pycache__", "lost+found")
"""Folders that other programs leave; so are those whose names begin with a dot."""
MAX_NAMED = 12
"""Most names in a message."""
MAX_SEARCHED = 50
"""Most folders in which a data set is looked for where the named one is none."""


class _NoClassesError(DataError):
    """A folder that holds no two classes, where another one may be meant."""


class Listing(NamedTuple):
    """Content of a folder."""

    path: Path
    images: list[Path]
    folders: list[Path]
    hidden: list[Path]
    """Files and folders that other programs leave, and that would count as images or classes."""

    @classmethod
    def of(cls, path: Path) -> Self:
        """The content of the folder at `path`, sorted by name."""
        listing = cls(path, [], [], [])
        try:
            entries = sorted(path.iterdir())
        except OSError as err:
            what, advice = f"cannot be read ({err.strerror})", "Change its permissions, or take it out of the folder."
            raise DataError(what, need="the right to read it", next=advice, path=path) from err
        for entry in entries:
            is_hidden = entry.name.startswith(".") or entry.name in NO_DATA
            if formats.is_image(entry):
                (listing.hidden if is_hidden else listing.images).append(entry)
            elif entry.is_dir():
                (listing.hidden if is_hidden else listing.folders).append(entry)
        return listing


class Part(NamedTuple):
    """Class folders of one part."""

    path: Path
    classes: Mapping[str, Listing]
    """Class folders by the name of the class."""
    empty: list[str]
    """Folders without images, which are no classes."""
    hidden: list[Path]

    @classmethod
    def of(cls, parent: Listing) -> Self:
        """The class folders in a folder; `DataError` where the images lie one level lower."""
        listings = list(map(Listing.of, parent.folders))
        empty = [listing for listing in listings if not listing.images]
        if nested := [listing.path.name for listing in empty if _has_images_below(listing)]:
            raise _NoClassesError(
                f"holds folders without images of their own but with folders of images: {_named(nested)}",
                need="the images of each class directly in its folder",
                next="Move the images up if these are classes, else take these folders out.",
                path=parent.path,
            )
        classes = {listing.path.name: listing for listing in listings if listing.images}
        hidden = [path for listing in listings for path in listing.hidden]
        return cls(parent.path, classes, [listing.path.name for listing in empty], parent.hidden + hidden)


def _has_images_below(listing: Listing) -> bool:
    return any(Listing.of(folder).images for folder in listing.folders)


def _named(names: Iterable[str]) -> str:
    """Names in a message: the first few, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - MAX_NAMED:,} more" if len(every) > MAX_NAMED else ""
    return ", ".join(every[:MAX_NAMED]) + more


@dataclass(frozen=True)
class Layout:
    """The image files of a folder of class folders, not yet read."""

    root: Path
    classes: tuple[str, ...]
    files: dict[str, list[tuple[Path, int]]]
    """Image path and label, in a fixed order, for each part: `TRAIN`, and `TEST` where there is one."""
    has_parts: bool
    """Whether the folders name parts; if not, all images are in `TRAIN`."""
    notes: tuple[str, ...] = ()
    """Folder of the test part, and what is left out, in words."""

    @classmethod
    def of(cls, root: Path, known: tuple[str, ...] = ()) -> Self:
        """The layout of `root`: class folders in a folder of each part (see `PART_NAMES`), or class folders alone.

        known: the classes of a network, of which class folders alone may lack some. Raises `DataError` where
        `root` is no such folder, with the one that was probably meant, or where the name of a class fits no table; see
        `store.check_class_names`.
        """
        if not root.is_dir():
            raise DataError(
                "no such folder",
                need="a store, or a folder with one folder of images a class",
                next="Correct the path.",
                path=root,
            )
        try:
            return cls._arrange(root, known)
        except _NoClassesError as err:
            nearby = list(islice(_data_sets_near(root), 3))
            advice = f" Or name {' or '.join(map(str, nearby))}, if you mean that." if nearby else ""
            raise DataError(err.what, need=err.need, next=f"{err.next}{advice}", path=err.path) from err

    @classmethod
    def _arrange(cls, root: Path, known: tuple[str, ...] = ()) -> Self:
        top = Listing.of(root)
        parts, notes = _find_parts(top)
        has_parts = parts[TRAIN].path != root or TEST in parts
        classes = tuple(sorted(parts[TRAIN].classes))
        store.check_class_names(classes, parts[TRAIN].path)
        if known and not has_parts and classes:
            _refuse_unknown(classes, known, root)
            classes = known
        elif len(classes) < 2:
            raise _too_few(parts[TRAIN], top)
        if TEST in parts:
            _refuse_other_classes(parts[TEST], classes)
        files = {
            name: [
                (path, label)
                for label, key in enumerate(classes)
                if key in part.classes
                for path in part.classes[key].images
            ]
            for name, part in parts.items()
        }
        notes += [*_odd_formats(parts[TRAIN].classes), *_omissions(root, top, parts.values())]
        return cls(root, classes, files, has_parts, tuple(notes))

    @property
    def n_images(self) -> int:
        """Number of images in all parts."""
        return sum(map(len, self.files.values()))


def _find_parts(top: Listing) -> tuple[dict[str, Part], list[str]]:
    """The class folders of each part, and notes on the choice."""
    train, test = (_part_folders(top, part) for part in PART_NAMES)
    if not train:
        whole = Part.of(top)
        by_name = _parts_in_names(whole)
        return (
            (by_name, [f"the test part is {_named(_folders(by_name[TEST]))}"])
            if by_name
            else ({TRAIN: whole}, _beside(top))
        )
    parts = {name: Part.of(folders[0]) for name, folders in ((TRAIN, train), (TEST, test)) if folders}
    notes = [f"the test part is {test[0].path.name}/"] if test else []
    used = {part.path for part in parts.values()}
    unused = [f"{path.name}/" for path in top.folders if path not in used]
    return parts, [*notes, *([f"not used: {_named(unused)}"] if unused else [])]


def _part_folders(top: Listing, part: str) -> list[Listing]:
    """The folders that are a part by their names, the best name first; a test part holds images."""
    names = PART_NAMES[part]
    listings = [Listing.of(path) for path in top.folders if path.name.lower() in names]
    listings.sort(key=lambda listing: names.index(listing.path.name.lower()))
    return [listing for listing in listings if part == TRAIN or listing.images or _has_images_below(listing)]


def _odd_formats(classes: Mapping[str, Listing]) -> Iterator[str]:
    """Notes on classes whose files have another format than those of all others, such as plots among arrays."""
    endings = {name: {path.suffix.lower() for path in listing.images} for name, listing in classes.items()}
    for name, own in endings.items():
        others = set().union(*(endings[other] for other in endings if other != name))
        if len(endings) > 2 and len(others) == 1 and not own & others:
            yield f"{name}/ is taken for a class, but holds {min(own)} files where all others hold {min(others)}"


def _beside(top: Listing) -> list[str]:
    """A note where the folder is the training part of the one above it."""
    if top.path.name.lower() not in PART_NAMES[TRAIN]:
        return []
    with suppress(OSError, DataError):
        for path in sorted(top.path.parent.iterdir()):
            if path.name.lower() in PART_NAMES[TEST] and path.is_dir():
                return [f"{path.name}/ beside it is not used; name {top.path.parent} for both"]
    return []


def _folders(part: Part) -> list[str]:
    return [f"{listing.path.name}/" for listing in part.classes.values()]


def _parts_in_names(whole: Part) -> dict[str, Part] | None:
    """The parts of folders such as train_lenses and test_lenses; None where no class stands in both parts."""
    split: dict[str, dict[str, Listing]] = {}
    for name, listing in whole.classes.items():
        match = PREFIXED.fullmatch(name) or SUFFIXED.fullmatch(name)
        split.setdefault(match["part"].lower() if match else "", {})[match["label"] if match else name] = listing
    chosen = {part: next((name for name in names if name in split), "") for part, names in PART_NAMES.items()}
    if not all(chosen.values()) or not split[chosen[TRAIN]].keys() & split[chosen[TEST]].keys():
        return None
    if "" in split:
        example = min(split[chosen[TRAIN]].values()).path.name
        raise DataError(
            f"has folders of parts, such as {example}/, beside others: {_named(split[''])}",
            need="a part in the names of all class folders, or of none",
            next="Put the class folders of each part into train/ and test/.",
            path=whole.path,
        )
    return {part: whole._replace(classes=split[name]) for part, name in chosen.items()}


def _refuse_unknown(classes: Iterable[str], known: tuple[str, ...], root: Path) -> None:
    if unknown := [name for name in classes if name not in known]:
        raise DataError(
            f"has class folders that the network does not know: {_named(map(repr, unknown))}",
            need=f"names of its classes: {', '.join(known)}",
            next="Rename or remove these folders.",
            path=root,
        )


def _refuse_other_classes(test: Part, classes: tuple[str, ...]) -> None:
    if unknown := [name for name in test.classes if name not in classes]:
        raise DataError(
            f"has class folders that the training part lacks: {_named(map(repr, unknown))}",
            need=f"the same classes in all parts: {', '.join(classes)}",
            next="Remove or rename them, or add them to the training part.",
            path=test.path,
        )
    if absent := [name for name in classes if name not in test.classes]:
        raise DataError(
            f"holds no images of {_named(absent)}",
            need=f"files of every class that end in {', '.join(formats.READERS)}",
            next="Add some, or remove the class from all parts.",
            path=test.path,
        )


def _too_few(part: Part, top: Listing) -> _NoClassesError:
    number = (
        f"only one class folder with images, {min(part.classes)}" if part.classes else "no class folders with images"
    )
    without = f", and folders without: {_named(part.empty)}" if part.empty else ""
    images = Listing.of(part.path).images or top.images
    beside = f"; {len(images):,} image files lie outside of any" if images else ""
    return _NoClassesError(
        f"has {number}{without}{beside}",
        need="at least two class folders",
        next="Put the images of each class into a folder of its own.",
        path=part.path,
    )


def _omissions(root: Path, top: Listing, parts: Iterable[Part]) -> Iterator[str]:
    """Notes on folders without images, and on files and folders that other programs left."""
    listed = list(parts)
    if empty := [f"{name}/" for part in listed for name in part.empty]:
        yield f"folders without images are no classes: {_named(dict.fromkeys(empty))}"
    hidden = dict.fromkeys([*top.hidden, *(path for part in listed for path in part.hidden)])
    if hidden:
        yield f"skipped what other programs left: {_named(path.relative_to(root).as_posix() for path in hidden)}"


def _data_sets_near(root: Path) -> Iterator[Path]:
    """Data sets one or two levels above and below a folder that is none."""
    top, anchored = Listing.of(root), root if root.parent.name else root.absolute()
    is_in_part = anchored.parent.name.lower() in sum(PART_NAMES.values(), ())
    above = [anchored.parent.parent if is_in_part else anchored.parent] if top.images else []
    offered = [path for path in (*above, *top.folders[:MAX_SEARCHED]) if _is_data_set(path)]
    yield from offered
    for parent in (folder for folder in top.folders[:MAX_SEARCHED] if folder not in offered):
        with suppress(DataError):  # of a folder that cannot be read
            yield from filter(_is_data_set, Listing.of(parent).folders)


def _is_data_set(path: Path) -> bool:
    if (path / store.MANIFEST).is_file():
        return True
    try:
        return bool(Layout._arrange(path).classes)
    except (DataError, OSError):
        return False
