"""Everything that reads and writes, on an object store: a real server of this machine that speaks S3."""

from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import IO

import numpy as np
import pytest
from distributed.protocol import deserialize, serialize

from sublens import cli, workflows
from sublens.config import SplitConfig
from sublens.data import dataset, generate
from sublens.errors import DataError
from sublens.images import listing
from sublens.inference import predict_files, tables
from sublens.inference.journal import Journal
from sublens.inference.predict_files import Listing, Query
from sublens.models import bundle
from sublens.storage import files, object_store
from sublens.storage.object_store import Remote
from sublens.surveys.survey import Survey

SIZES = {"train": 70, "test": 20}


@pytest.fixture
def shelf(bucket: Remote, request: pytest.FixtureRequest) -> Remote:
    """A folder on the store that no other test uses."""
    return Remote(bucket, request.node.name)


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images, one of which cannot be read, and a zarr store of two."""
    import zarr

    made, rng = tmp_path_factory.mktemp("cutouts"), np.random.default_rng(0)
    (made / "more").mkdir()
    for number in range(10):
        np.save(made / ("more" if number > 6 else "") / f"{number}.npy", rng.poisson(20, (150, 150)).astype(np.uint16))
    (made / "3.npy").write_bytes(b"damaged")
    zarr.create_array(str(made / "two.zarr"), data=rng.poisson(20, (2, 150, 150)).astype(np.uint16))
    (made / "readme.txt").write_text("no image")
    return made


def test_a_path_on_a_store_is_a_path() -> None:
    path = object_store.parse_path("s3://bucket/folder/a.npy")
    assert isinstance(path, Remote)
    assert str(path / "b") == "s3://bucket/folder/a.npy/b"
    assert (str(path.parent), path.name, path.suffix) == ("s3://bucket/folder", "a.npy", ".npy")
    assert str(path.with_name("b.fits")) == "s3://bucket/folder/b.fits"
    assert path.relative_to(path.parent).as_posix() == "a.npy"
    assert hash(path) == hash(object_store.parse_path("s3://bucket/folder/a.npy"))
    assert deserialize(*serialize(path)) == path  # as Dask carries it
    assert type(object_store.parse_path("folder/a.npy")) is type(Path())


def test_a_store_is_listed(shelf: Remote, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"abc")
    object_store.send(tmp_path / "one", shelf / "below" / "one #1")
    file = shelf / "below" / "one #1"
    assert (file.is_file(), file.is_dir(), file.exists()) == (True, False, True)
    assert (shelf.is_file(), shelf.is_dir(), shelf.exists()) == (False, True, True)
    assert not (shelf / "none").exists()
    assert list(shelf.iterdir()) == [shelf / "below"]
    assert shelf.files() == [file]
    assert object_store.local(file).read_bytes() == b"abc"
    with pytest.raises(OverflowError, match="has more than 2 bytes"):
        object_store.fetch(file, tmp_path, 2)
    assert (object_store.local(shelf) / "below" / "one #1").read_bytes() == b"abc"
    with object_store.copied(file) as copy:
        assert copy.read_bytes() == b"abc"
    assert not copy.exists()


def test_a_folder_becomes_the_same(shelf: Remote, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name in ("a", "below/b", "plan.json"):
        (tmp_path / name).write_text(name)
    object_store.send_folder(tmp_path, shelf, "plan.json")
    assert shelf.files() == [shelf / "a", shelf / "below" / "b"]
    (tmp_path / "a").unlink()
    object_store.send_folder(tmp_path, shelf, "plan.json")
    assert shelf.files() == [shelf / "below" / "b"]


def test_a_file_that_is_stopped_on_its_way_does_not_appear(
    shelf: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "big").write_bytes(bytes(20_000_000))

    def half(file: IO[bytes], stream: IO[bytes], n: int) -> None:
        stream.write(file.read(n))
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.copyfileobj", half)
    with pytest.raises(KeyboardInterrupt):
        object_store.send(tmp_path / "big", shelf / "big")
    assert shelf.files() == []


def test_a_copy_is_made_again_where_another_file_is(shelf: Remote, tmp_path: Path) -> None:
    for text in ("one", "another"):
        (tmp_path / "file").write_text(text)
        object_store.send(tmp_path / "file", shelf / "file")
        assert object_store.local(shelf / "file").read_text() == text
    assert object_store.local(shelf / "file") == object_store.local(shelf / "file")


def test_folders_that_became_empty_are_gone(shelf: Remote, tmp_path: Path) -> None:
    for name in ("train/no/1", "test/no/1", "manifest.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    object_store.send_folder(tmp_path, shelf, "")
    (tmp_path / "test" / "no" / "1").unlink()
    object_store.send_folder(tmp_path, shelf, "")
    assert sorted(path.name for path in shelf.iterdir()) == ["manifest.json", "train"]


def test_work_is_not_begun_where_its_result_could_not_be_sent(bucket: Remote, small_survey: Survey) -> None:
    with pytest.raises(DataError, match=r"s3://nowhere/store: cannot be reached"):
        generate.simulate(small_survey, {"train": 10**9}, Remote("s3://nowhere/store"), seed=1)


def test_defaults_are_paths_too(monkeypatch: pytest.MonkeyPatch) -> None:
    targets: list[Path] = []

    def demo(out: Path, *rest: object, **more: object) -> None:
        targets.append(out)
        raise DataError("enough")

    monkeypatch.setattr(workflows, "demo", demo)
    with pytest.raises(SystemExit):
        cli.main(["demo"])
    assert targets == [Path("demo")]


def test_a_simulated_store_is_the_same(shelf: Remote, tmp_path: Path, small_survey: Survey) -> None:
    generate.simulate(small_survey, SIZES, tmp_path / "here", seed=3)  # type: ignore[arg-type]
    generate.simulate(small_survey, SIZES, shelf / "there", seed=3)  # type: ignore[arg-type]
    names = {path.relative_to(tmp_path / "here").as_posix(): path for path in (tmp_path / "here").rglob("*.*")}
    assert {path.relative_to(shelf / "there").as_posix() for path in (shelf / "there").files()} == names.keys()
    assert all(files.sha256(shelf / "there" / name) == files.sha256(path) for name, path in names.items())
    with pytest.raises(DataError, match=r"s3://.*/there: exists already"):
        generate.simulate(small_survey, SIZES, shelf / "there", seed=3)  # type: ignore[arg-type]
    generate.simulate(small_survey, {"train": 30}, shelf / "there", seed=3, force=True)
    assert not (shelf / "there" / "test" / "labels.npy").exists()


def test_a_store_that_was_half_sent_is_finished(
    shelf: Remote, small_survey: Survey, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    send, sent = object_store._put, list[Remote]()

    def stopped(source: Path, target: Remote) -> None:
        if len(sent) == 3:
            raise KeyboardInterrupt
        sent.append(target)
        send(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(object_store, "_put", stopped)
        generate.simulate(small_survey, SIZES, shelf, seed=3)  # type: ignore[arg-type]
    assert (shelf / object_store.UNFINISHED).is_file()
    assert not (shelf / "manifest.json").exists()
    for act in (
        object_store.local,
        lambda path: list(listing.list_images([path])),
        lambda path: dataset.pack(path, tmp_path / "a"),
    ):
        with pytest.raises(DataError, match="is not complete"):
            act(shelf)
    generate.simulate(small_survey, SIZES, shelf, seed=3)  # type: ignore[arg-type]
    assert not (shelf / object_store.UNFINISHED).exists()
    assert not list(tmp_path.rglob("sublens/*"))
    assert dataset.open_dataset(object_store.local(shelf), SplitConfig()).test.labels.tolist() == [
        n % 3 for n in range(20)
    ]


def send_all(folder: Path, target: Remote) -> None:
    object_store.send_folder(folder, target, "")


def records(inputs: list[Path], root: Path) -> list[dict[str, tables.Cell]]:
    """Rows of the table, with paths below the root."""
    rows = [
        tables.record(row, ("no", "sphere", "vort"), "", "") for row in predict_files.predict(Query("lensnet", inputs))
    ]
    return [{**row, "path": str(row["path"]).removeprefix(str(root))} for row in rows]


def test_images_get_the_same_predictions(shelf: Remote, cutouts: Path) -> None:
    send_all(cutouts, shelf)
    here, there = records([cutouts], cutouts), records([shelf], shelf)
    for row in (*here, *there):
        row["error"] = str(row["error"]).replace(str(shelf), str(cutouts))
    assert there == here
    assert [bool(row["error"]) for row in there].count(True) == 1
    assert len(there) == 12


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("*.npy", ["/0.npy", "/1.npy", "/2.npy", "/3.npy", "/4.npy", "/5.npy", "/6.npy"]),
        ("**/[8].npy", [""]),
        ("**/8.npy", ["/more/8.npy"]),
        ("m*/?.npy", ["/more/7.npy", "/more/8.npy", "/more/9.npy"]),
        ("m*/8.npy", ["/more/8.npy"]),
        ("2.npy", ["/2.npy"]),
        ("none.npy", ["/none.npy"]),
        ("none", [""]),
    ],
)
def test_patterns_mean_the_same(shelf: Remote, cutouts: Path, pattern: str, paths: list[str]) -> None:
    send_all(cutouts, shelf)
    rows = records([shelf / pattern], shelf)
    if paths == [""]:
        assert "Check the name" in str(rows[0]["error"])
    else:
        assert [row["path"] for row in rows] == paths


def test_a_file_that_is_not_there_is_a_row_that_says_so(shelf: Remote) -> None:
    (row,) = records([shelf / "none.npy"], shelf)
    assert row["error"] == f"{shelf / 'none.npy'}: no such file or folder; needs an address of one. Check the address."


def test_a_table_is_written_there_and_goes_on(
    shelf: Remote, cutouts: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    send_all(cutouts, shelf / "images")
    query = Query("lensnet", [shelf / "images"])
    predict_files.predict_to_table(query, tmp_path / "here.csv")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Journal, "finish", stop)
        predict_files.predict_to_table(query, shelf / "there.csv")
    assert not (shelf / "there.csv").exists()
    assert (predict_files.predict_to_table(query, shelf / "there.csv") or ())[:2] == (12, 1)
    assert not list(tmp_path.rglob("sublens/*"))
    assert object_store.local(shelf / "there.csv").read_bytes() == (tmp_path / "here.csv").read_bytes()
    with pytest.raises(DataError, match="exists already"):
        predict_files.predict_to_table(query, shelf / "there.csv")


def stop(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


def test_folders_are_packed_the_same(shelf: Remote, easy_folder: Path, tmp_path: Path) -> None:
    send_all(easy_folder, shelf / "easy")
    dataset.pack(easy_folder, tmp_path / "here")
    dataset.pack(shelf / "easy", shelf / "packed")
    assert files.sha256(shelf / "packed" / "manifest.json") == files.sha256(tmp_path / "here" / "manifest.json")


def test_a_damaged_image_is_named_by_where_it_is(shelf: Remote, easy_folder: Path) -> None:
    send_all(easy_folder, shelf)
    (easy_folder.parent / "bad").write_bytes(b"bad")
    object_store.send(easy_folder.parent / "bad", shelf / "train" / "empty" / "0.npy")
    with pytest.raises(SystemExit) as end:
        cli.main(["pack", str(shelf), "--out", str(shelf / "packed")])
    assert end.value.code == 1


def test_a_network_and_a_data_set_there_are_measured(
    shelf: Remote, small_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    send_all(small_store, shelf / "data")
    send_all(bundle.shipped()["lensnet"], shelf / "net")
    command = ["evaluate", f"{shelf}/net", f"{shelf}/data"]
    with pytest.raises(SystemExit) as end:
        cli.main(command)
    assert end.value.code == 1
    assert "Add --out FOLDER" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*command, "--out", str(tmp_path / "net")])
    assert "was trained on images of 150 x 150 pixels" in capsys.readouterr().err


def test_what_is_written_to_a_machine_is_not_written_to_a_store(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "data", "--out", "s3://bucket/run"])
    assert end.value.code == 2
    assert "s3://bucket/run must be a local path" in capsys.readouterr().err


class Forbidding(BaseHTTPRequestHandler):
    """A store that lets nobody in."""

    def do_GET(self) -> None:
        self.send_response(403)
        self.end_headers()
        self.wfile.write(b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")

    do_HEAD = do_PUT = do_POST = do_GET  # noqa: N815

    def log_message(self, *arguments: object) -> None: ...


def test_a_bucket_without_permission_is_an_error_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), Forbidding) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        object_store._open_store.cache_clear()
        for act in (object_store.local, lambda path: files.write_bytes(path, b"a")):
            with pytest.raises(DataError, match=r"s3://closed/a: cannot be reached .*needs .*your rights there"):
                act(Remote("s3://closed/a"))
        object_store._open_store.cache_clear()
        server.shutdown()


def test_a_bucket_that_is_not_there_and_an_unknown_store_are_errors_in_words(bucket: Remote, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"s3://nowhere/a.csv: cannot be reached \(AWS Error NO_SUCH_BUCKET"):
        files.write_bytes(object_store.parse_path("s3://nowhere/a.csv"), b"a")
    with pytest.raises(DataError, match="ftp9://: is a kind of store that sublens does not know; needs s3://"):
        object_store.local(object_store.parse_path("ftp9://nowhere/a.csv"))


def test_a_catalogue_and_a_mosaic_there_are_cut(shelf: Remote, tmp_path: Path) -> None:
    from astropy.io import fits

    rng = np.random.default_rng(0)
    fits.PrimaryHDU(rng.poisson(20, (400, 400)).astype(np.float32)).writeto(tmp_path / "big.fits")
    (tmp_path / "at.csv").write_text("id,x,y\na,200,200\nb,9999,200\n")
    for name in ("big.fits", "at.csv"):
        object_store.send(tmp_path / name, shelf / name)
    here = list(predict_files.predict(Query("lensnet", [tmp_path / "big.fits"], at=tmp_path / "at.csv")))
    there = list(predict_files.predict(Query("lensnet", [shelf / "big.fits"], at=shelf / "at.csv")))
    assert [row.prediction for row in there] == [row.prediction for row in here]
    assert [str(row.path) for row in there] == [f"{shelf}/big.fits"] * 2
    assert there[1].error == here[1].error.replace(str(tmp_path), str(shelf))
    with pytest.raises(DataError, match=rf"{shelf}/none.csv: no such file"):
        list(predict_files.predict(Query("lensnet", [shelf / "big.fits"], at=shelf / "none.csv")))


def test_a_listing_of_a_store_changes_with_its_files(shelf: Remote, tmp_path: Path) -> None:
    digests = set()
    for number, names in enumerate((["a.npy"], ["a.npy"], ["b.npy"], ["more/0.npy"])):
        for name in names:
            (tmp_path / "image").write_bytes(b"a" * number)
            object_store.send(tmp_path / "image", shelf / name)
        digests |= {Listing.of([shelf]).digest, Listing.of([shelf / "a.npy", shelf / "none.npy"]).digest}
    assert len(digests) == 6
    assert Listing.of([shelf]).digest in digests
