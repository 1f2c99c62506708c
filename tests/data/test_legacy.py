import codecs
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import peak_memory
from numpy._core.multiarray import _reconstruct, scalar
from numpy._core.numeric import _frombuffer  # type: ignore[attr-defined]
from numpy.testing._private.utils import runstring
from numpy.typing import NDArray

from sublens import cli
from sublens.data import legacy
from sublens.data.legacy import Opener
from sublens.errors import DataError, ImageError
from sublens.images import formats

AXION_MASS = 3.7e-23
HASH_BOMB = b"}" + b"K\x01" + b"2\x86" * 60 + b"K\x01s."  # {pair of a pair of a pair ...: 1}
DEEP_HASH = b"}" + b"K\x01" + b"\x85" * 10**6 + b"K\x01s."  # {((((1,),),),): 1}
HUGE_MEMO = b"K\x01r\xff\xff\xff\x7f."
HUGE_BYTES = b"\x8e" + (2**60).to_bytes(8, "little") + b"."


class Call:
    """Pickled as a call of a function, and the state that is set on its result."""

    def __init__(self, *reduced: Any) -> None:
        self._reduced = reduced

    def __reduce__(self) -> tuple[Any, ...]:
        return self._reduced


@pytest.fixture(scope="module")
def opener() -> Iterator[Opener]:
    with Opener() as opener_:
        yield opener_


def counts(side: int = 16) -> NDArray[np.int64]:
    return np.random.default_rng(0).poisson(30, (side, side))


def axion(pixels: Any = None, value: object = np.float64(AXION_MASS)) -> NDArray[np.object_]:
    """The array that DeepLenseSim saves for an axion."""
    both = np.empty(2, object)
    both[:] = [counts() if pixels is None else pixels, value]
    return both


def write(path: Path, pickled: bytes) -> Path:
    """A .npy file that claims to hold an object array, pickled so."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": (2,)})
    path.write_bytes(header.getvalue() + pickled)
    return path


def refused(opener: Opener, path: Path, pickled: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        opener.open(write(path, pickled))
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_image_and_number_come_back_from_every_protocol(opener: Opener, tmp_path: Path, protocol: int) -> None:
    array, value = opener.open(write(tmp_path / "a.npy", pickle.dumps(axion(), protocol)))
    assert np.array_equal(array, counts())
    assert array.dtype == np.float64
    assert value == AXION_MASS


@pytest.mark.parametrize("protocol", [2, 3])
def test_what_numpy_1_wrote_is_read(opener: Opener, tmp_path: Path, protocol: int) -> None:
    older = pickle.dumps(axion(), protocol).replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core" in older
    assert np.array_equal(opener.open(write(tmp_path / "a.npy", older)).array, counts())


@pytest.mark.parametrize("dtype", ["f2", "<f4", ">f4", ">f8", "u1", "i4", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_pixels_of_every_kind_become_floats(opener: Opener, tmp_path: Path, dtype: str, order: Any) -> None:
    pixels = np.asarray(counts(), dtype, order=order)
    np.save(tmp_path / "a.npy", axion(pixels[None], 5), allow_pickle=True)
    array, value = opener.open(tmp_path / "a.npy")
    assert array.dtype.kind == "f"
    assert value == 5
    assert np.array_equal(array, pixels)


@pytest.mark.parametrize("dtype", ["f4", ">f8", "u2", "?"])
@pytest.mark.parametrize("shape", [(16, 16), (1, 16, 16), (4, 8, 8), (0, 3)])
def test_plain_arrays_stay_as_they_are(opener: Opener, tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    plain = np.resize(counts(), shape).astype(dtype)
    np.save(tmp_path / "a.npy", plain)
    array, value = opener.open(tmp_path / "a.npy")
    assert np.array_equal(array, plain)
    assert (array.dtype, value) == (plain.dtype, None)


def objects(*items: object) -> NDArray[np.object_]:
    array = np.empty(len(items), object)
    array[:] = items
    return array


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("saved", "value"),
    [
        (counts().astype(object), None),
        (np.asfortranarray(counts() / 7).astype(object) * 7, None),
        (objects(*counts()), None),
        (objects(*counts(), np.array([AXION_MASS])), AXION_MASS),
        (np.array({"image": counts(), "mass": AXION_MASS}, object), AXION_MASS),
        (np.array({"mass": np.float64(AXION_MASS), "image": counts()}, object), AXION_MASS),
    ],
)
def test_numbers_that_were_saved_as_objects_come_back(
    opener: Opener, tmp_path: Path, saved: NDArray[np.object_], value: float | None, protocol: int
) -> None:
    array, number = opener.open(write(tmp_path / "a.npy", pickle.dumps(saved, protocol)))
    assert np.allclose(np.asarray(array, np.float64), counts(), rtol=1e-15)
    assert (array.dtype.kind in "fi", number) == (True, value)


def test_images_that_were_saved_as_objects_are_a_stack(opener: Opener, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", objects(counts(), counts() + 1, counts() + 2), allow_pickle=True)
    assert np.array_equal(opener.open(tmp_path / "a.npy").array, np.stack([counts(), counts() + 1, counts() + 2]))


@pytest.mark.parametrize("name", ["system", "eval", "exec", "nested", "runstring", "load", "touch"])
def test_what_would_run_elsewhere_is_refused_and_does_not_run(opener: Opener, tmp_path: Path, name: str) -> None:
    ran, path = tmp_path / "ran", tmp_path / "a.npy"
    np.save(tmp_path / "inner.npy", np.array([Call(Path.touch, (ran,))] * 2, object), allow_pickle=True)
    code = f"__import__('pathlib').Path({str(ran)!r}).touch()"
    attack = {
        "system": Call(os.system, (f"touch {ran}",)),
        "eval": Call(eval, (code,)),
        "exec": axion(value=Call(exec, (code,))),
        "nested": axion(pixels=axion(value=Call(exec, (code,)))),
        "runstring": Call(runstring, (code, {})),
        "load": Call(np.load, (str(tmp_path / "inner.npy"), None, True)),
        "touch": Call(Path.touch, (ran,)),
    }[name]
    pickled = pickle.dumps(attack)
    pickle.loads(pickled)
    assert ran.exists()
    ran.unlink()
    assert "could run code" in refused(opener, path, pickled)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("pickled", "name"),
    [
        (b"cos\nsystem\n.", "'os.system'"),
        (b"(S'true'\nios\nsystem\n.", "'os.system'"),
        (b"cnumpy\ntesting.measure\n.", "'numpy.testing.measure'"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0ftesting.measure\x93.", "'numpy.testing.measure'"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.", "'numpy.dtype.__init__'"),
        (b"cnumpy._core.multiarray\nfromfile\n.", "'numpy._core.multiarray.fromfile'"),
        (b"c_codecs\nlookup\n.", "'_codecs.lookup'"),
        (b"cbuiltins\ngetattr\n.", "'builtins.getattr'"),
        (b"csublens.data.legacy\n_Array\n.", "'sublens.data.legacy._Array'"),
        (b"ca\nb\x1b[31m" + b"c" * 200 + b"\n.", r"'a.b\x1b[31mccc"),
    ],
)
def test_a_name_that_no_number_needs_is_in_the_error(opener: Opener, tmp_path: Path, pickled: bytes, name: str) -> None:
    error = refused(opener, tmp_path / "a.npy", pickled)
    assert name in error
    assert "c" * 100 not in error


FORGED = {
    "a dtype of fields": Call(np.dtype, ([("a", "O")],)),
    "a dtype of bytes": Call(np.dtype, ("V8", False, True)),
    "two dtypes": Call(np.dtype, ("O8,f8", False, True)),
    "a dtype whose state is short": Call(np.dtype, ("f8", False, True), (3, "<", None)),
    "a dtype with fields in its state": Call(
        np.dtype, ("f8", False, True), (3, "<", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 16)
    ),
    "a dtype in an unknown order": Call(np.dtype, ("f8", False, True), (3, "|O,", None, None, None, -1, -1, 0)),
    "a huge array to begin with": Call(_reconstruct, (np.ndarray, (10**12,), b"b")),
    "an array of another class": Call(_reconstruct, (np.dtype, (0,), b"b")),
    "an array that is called": Call(np.ndarray, ((10**12,),)),
    "an object from an address": Call(scalar, (np.dtype("O"), b"\x01" * 8)),
    "a number of too few bytes": Call(scalar, (np.dtype("f8"), b"\x01" * 7)),
    "a number of many bytes": Call(scalar, (np.dtype("f8"), b"\x01" * 800)),
    "a number without bytes": Call(scalar, (np.dtype("f8"),)),
    "another encoding": Call(codecs.encode, ("abc", "rot13")),
    "an order of axes": Call(_frombuffer, (bytes(2048), np.dtype("f8"), (16, 16), "K", (1, 0))),
    "objects from addresses": Call(_frombuffer, (b"\x01" * 2048, np.dtype("O"), (16, 16), "C")),
    "a huge buffer": Call(_frombuffer, (bytes(2048), np.dtype("f8"), (10**9, 10**9), "C")),
    "objects as numbers": Call(
        _reconstruct, (np.ndarray, (0,), b"b"), (1, (16, 16), np.dtype("O"), False, b"\x01" * 2048)
    ),
    "numbers as objects": Call(_reconstruct, (np.ndarray, (0,), b"b"), (1, (2,), np.dtype("f8"), False, [1.0, 2.0])),
    "a huge shape": Call(
        _reconstruct, (np.ndarray, (0,), b"b"), (1, (10**6, 10**6), np.dtype("f8"), False, bytes(2048))
    ),
    "a negative shape": Call(
        _reconstruct, (np.ndarray, (0,), b"b"), (1, (-16, -16), np.dtype("f8"), False, bytes(2048))
    ),
    "many objects of few": Call(_reconstruct, (np.ndarray, (0,), b"b"), (1, (10**9,), np.dtype("O"), False, [1.0])),
    "an array whose attributes are set": Call(_reconstruct, (np.ndarray, (0,), b"b"), {"content": 3}),
}


@pytest.mark.parametrize("name", FORGED)
def test_arguments_for_numpy_are_checked(opener: Opener, tmp_path: Path, name: str) -> None:
    before = peak_memory()
    error = refused(opener, tmp_path / "a.npy", pickle.dumps(axion(pixels=FORGED[name])))
    assert "truncated, or not an array of numbers" in error
    assert peak_memory() - before < 20e6


@pytest.mark.parametrize(
    "state", [b"}X\x05\x00\x00\x00_makeK\x01s", b"N}X\x05\x00\x00\x00_makeK\x01s\x86", b"}X\x04\x00\x00\x00nameK\x01s"]
)
def test_a_file_changes_nothing_for_the_next(opener: Opener, tmp_path: Path, state: bytes) -> None:
    for name in (b"numpy\ndtype", b"numpy\nndarray", b"numpy._core.multiarray\n_reconstruct"):
        refused(opener, tmp_path / "a.npy", b"c" + name + b"\n" + state + b"b.")
    assert opener.open(write(tmp_path / "b.npy", pickle.dumps(axion()))).value == AXION_MASS


@pytest.mark.parametrize("pickled", [HASH_BOMB, DEEP_HASH, HUGE_MEMO, HUGE_BYTES])
def test_a_bomb_costs_one_error_and_little_memory(tmp_path: Path, pickled: bytes) -> None:
    good, before = write(tmp_path / "b.npy", pickle.dumps(axion())), peak_memory()
    with Opener(seconds=2) as opener:
        refused(opener, tmp_path / "a.npy", pickled)
        assert peak_memory() - before < 50e6
        assert np.array_equal(opener.open(good).array, counts())


def test_damaged_files_are_errors_or_still_numbers(opener: Opener, tmp_path: Path) -> None:
    rng, path, n_refused = np.random.default_rng(0), tmp_path / "a.npy", 0
    for turn in range(400):
        data = bytearray(write(path, pickle.dumps(axion(counts(3)), turn % 6)).read_bytes())
        for offset in rng.integers(8 if turn % 3 else 128, len(data), 1 + turn % 4):
            data[offset] = rng.integers(256)
        path.write_bytes(data[: rng.integers(len(data))] if turn % 5 == 0 else data)
        try:
            array = opener.open(path).array
        except ImageError:
            n_refused += 1
        else:
            assert array.dtype.kind in "fiub"
    assert 100 < n_refused < 400


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        (axion(pixels=np.zeros((2, 9, 9))), r"shape \(2, 9, 9\)"),
        (axion(pixels=np.zeros(9)), r"shape \(9,\)"),
        (axion(pixels=np.zeros((2, 5000))), "2 to 4096 pixels"),
        (axion(value="3"), "not one image and one number"),
        (axion(pixels=Call(_reconstruct, (np.ndarray, (0,), b"b"))), "not one image and one number"),
        (axion(pixels=3.0), "not one image and one number"),
        (np.array([[None, 1], [2, 3]]), "nor numbers of one shape"),
        (axion(pixels=counts(), value=counts(8)), "nor numbers of one shape"),
        (np.array({"image": counts(), "path": "a"}), "nor numbers of one shape"),
        (np.zeros((9, 9), complex), "complex128"),
        (np.zeros(3, [("a", "f8")]), "real numbers"),
        (np.array(["a"]), "real numbers"),
    ],
)
def test_files_that_hold_something_else_say_so(opener: Opener, tmp_path: Path, saved: NDArray[Any], words: str) -> None:
    np.save(tmp_path / "a.npy", saved, allow_pickle=True)
    with pytest.raises(ImageError, match=words):
        opener.open(tmp_path / "a.npy")


@pytest.mark.parametrize(("name", "words"), [("a.png", "not a .npy file"), ("b.npy", "no such file")])
def test_files_that_are_not_there_say_so(opener: Opener, tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        opener.open(tmp_path / name)


def test_a_large_file_is_refused_unread(opener: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legacy, "MAX_FILE_BYTES", 100)
    with pytest.raises(ImageError, match="has 2,460 bytes; needs at most 100"):
        opener.open(write(tmp_path / "a.npy", pickle.dumps(axion())))


@pytest.mark.parametrize(
    "deed", ["open('ran', 'w')", "open('/dev/null')", "os.pipe()", "socket.socket()", "os.listdir('.')"]
)
def test_the_child_can_open_nothing(tmp_path: Path, deed: str) -> None:
    before = f"import os, socket; from sublens.data import legacy; from sublens.images import reader; {deed}"
    before += "; os.path.exists('ran') and os.remove('ran')"
    script = f"{before}; reader.confine(legacy.LIMITS); print('shut', flush=True); {deed}"
    ended = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert ended.stdout == "shut\n"
    assert "Too many open files" in ended.stderr
    assert not (tmp_path / "ran").exists()


def test_the_child_can_start_no_process(tmp_path: Path) -> None:
    script = (
        "import os; from sublens.data import legacy; from sublens.images import reader; "
        "reader.confine(legacy.LIMITS); os.system('touch ran')"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, check=True)
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder of two splits and classes, as it is downloaded, with a damaged file in it."""
    for split in ("train", "test"):
        for name in ("axion", "no_sub"):
            (tmp_path / "model" / split / name).mkdir(parents=True)
            for number in range(2):
                saved = axion(counts() + number, AXION_MASS + number) if name == "axion" else counts() + number
                np.save(tmp_path / "model" / split / name / f"{number}.npy", saved, allow_pickle=True)
    (tmp_path / "model" / "test" / "axion" / "1.npy").write_bytes(b"nothing")
    return tmp_path / "model"


def sublens(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["import-legacy", *map(str, arguments)])
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def test_a_folder_is_converted_as_it_is(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sublens(model, "--out", tmp_path / "out") == 0
    before, after = ({str(path.relative_to(top)) for path in top.rglob("*.npy")} for top in (model, tmp_path / "out"))
    assert before - after == {"test/axion/1.npy"}
    assert all(np.array_equal(formats.read(tmp_path / "out" / name).pixels, counts() + int(name[-5])) for name in after)
    rows = (tmp_path / "out" / "legacy.csv").read_text().splitlines()
    assert sorted(rows) == [
        "path,value",
        "test/axion/0.npy,3.7e-23",
        "train/axion/0.npy,3.7e-23",
        "train/axion/1.npy,1.0",
    ]
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path / 'out'}\n"
    assert sum("test/axion/1.npy: truncated" in line for line in printed.err.splitlines()) == 1
    assert "1 of 8 files" in printed.err


def test_nothing_is_overwritten_without_force(model: Path, tmp_path: Path) -> None:
    assert sublens(model, "--out", tmp_path / "out") == 0
    (tmp_path / "out" / "train" / "axion" / "0.npy").write_bytes(b"")
    assert sublens(model, "--out", tmp_path / "out") == 1
    assert (tmp_path / "out" / "train" / "axion" / "0.npy").read_bytes() == b""
    assert sublens(model, "--out", tmp_path / "out", "--force") == 0
    assert np.array_equal(np.load(tmp_path / "out" / "train" / "axion" / "0.npy"), counts())


def test_nothing_is_left_where_no_file_could_be_converted(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sublens(model / "test" / "axion" / "1.npy", model / "none.npy", "--out", tmp_path / "out") == 1
    assert "none of 2 files" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def converted(inputs: list[Path], out: Path) -> tuple[set[str], list[str]]:
    """The new files, and the errors."""
    errors = list[str]()
    legacy.convert(inputs, out, on_error=lambda err: errors.append(str(err)))
    return {str(path.relative_to(out)) for path in out.rglob("*.npy")}, errors


def test_several_folders_keep_their_names(model: Path, tmp_path: Path) -> None:
    inputs = [model / "train" / "axion", model / "train" / "no_sub", model / "test" / "no_sub" / "*.npy"]
    names, errors = converted(inputs, tmp_path / "out")
    assert names == {"axion/0.npy", "axion/1.npy", "no_sub/0.npy", "no_sub/1.npy", "0.npy", "1.npy"}
    assert errors == []


def test_of_two_files_with_one_name_the_first_is_kept(model: Path, tmp_path: Path) -> None:
    names, errors = converted(
        [model / "train" / "axion" / "1.npy", model / "test" / "no_sub" / "1.npy"], tmp_path / "out"
    )
    assert names == {"1.npy"}
    assert len(errors) == 1
    assert "1.npy: two files have this name" in errors[0]
    assert np.load(tmp_path / "out" / "1.npy").dtype == np.float64


def test_files_of_other_kinds_are_errors_and_links_out_are_not_followed(model: Path, tmp_path: Path) -> None:
    (model / "train" / "axion" / "a.png").touch()
    (model / "train" / "axion" / "b.npy").symlink_to(model / "test" / "axion" / "0.npy")
    names, errors = converted([model / "train" / "axion"], tmp_path / "out")
    assert names == {"0.npy", "1.npy"}
    assert len(errors) == 2
    assert "a.png: is not a .npy file" in errors[0]
    assert "a link out of" in errors[1]


@pytest.mark.parametrize("target", [lambda model: model / "out", lambda model: model.parent])
def test_the_result_does_not_overlap_its_source(model: Path, target: Callable[[Path], Path]) -> None:
    with pytest.raises(DataError, match="overlaps"):
        converted([model], target(model))
    assert (model / "train" / "axion" / "0.npy").is_file()


def test_what_is_refused_elsewhere_names_the_command(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", axion(), allow_pickle=True)
    with pytest.raises(ImageError, match="sublens import-legacy"):
        formats.read(tmp_path / "a.npy")
