import csv
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from astropy.io import fits
from conftest import peak_memory
from fastapi.testclient import TestClient

from sublens import cli
from sublens.errors import ConfigError, DataError, ImageError
from sublens.images.formats import ImageSelector
from sublens.inference import predict_files, tables
from sublens.inference.predict_files import Listing, Query
from sublens.inference.predictor import Predictor

N_STACKED, REPEATS, KILLS = 2_000, 100, 5


def counts(side: int, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(seed).poisson(20, (side, side)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images of 150 x 150 pixels."""
    (tmp_path / "images").mkdir()
    for number in range(6):
        np.save(tmp_path / "images" / f"{number}.npy", counts(150, number))
    return tmp_path / "images"


@pytest.fixture
def survey(tmp_path: Path) -> list[Path]:
    """Images as surveys leave them: 0.08 arcsec a pixel, another size, and a stack."""
    header = fits.Header({"CDELT1": 0.08, "CDELT2": 0.08, "CUNIT1": "arcsec", "CUNIT2": "arcsec"})
    fits.PrimaryHDU(counts(150, 1), header).writeto(tmp_path / "coarse.fits")
    fits.PrimaryHDU(counts(110, 2), header).writeto(tmp_path / "small.fits")
    np.save(tmp_path / "plain.npy", counts(150, 3))
    np.save(tmp_path / "large.npy", counts(201, 4))
    np.savez(tmp_path / "stack.npz", np.stack([counts(150, 5), counts(150, 6)]))
    return [tmp_path / name for name in ("coarse.fits", "small.fits", "plain.npy", "large.npy", "stack.npz")]


def predict(*arguments: str | Path) -> int:
    """Exit code of `sublens predict lensnet`."""
    with pytest.raises(SystemExit) as end:
        cli.main(["predict", "lensnet", *map(str, arguments)])
    return int(end.value.code or 0)


def test_command_library_and_service_give_the_same_numbers(
    survey: list[Path], tmp_path: Path, client: TestClient
) -> None:
    assert predict(*survey, "--out", tmp_path / "a.jsonl") == 0
    command = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    library = Predictor.load("lensnet").files(survey)
    service = [answer for path in survey for answer in served(client, path)]
    assert len(command) == len(library) == len(service) == 6
    for row, prediction, answer in zip(command, library, service, strict=True):
        probs = {name.removeprefix("p_"): row[name] for name in row if name.startswith("p_")}
        assert prediction.probs == pytest.approx(probs, abs=1e-6)
        assert answer["probs"] == pytest.approx(probs, abs=1e-6)
        assert prediction.ood == pytest.approx(row["ood_score"], abs=1e-4)
        assert answer["ood_score"] == pytest.approx(row["ood_score"], abs=1e-4)
        assert (prediction.label, prediction.is_ood) == (row["label"], row["ood"]) == (answer["label"], answer["ood"])
        assert tables.set_text(prediction.prediction_set) == row["prediction_set"]


def served(client: TestClient, path: Path) -> list[dict[str, Any]]:
    answer = client.post("/v1/predict", params={"name": path.name, "network": "lensnet"}, content=path.read_bytes())
    return [image["predictions"][0] for image in answer.json()["images"]]


def test_files_may_be_a_folder_or_a_pattern(folder: Path) -> None:
    predictor = Predictor.load("lensnet")
    assert (
        predictor.files([folder])
        == predictor.files([str(folder / "*.npy")])
        == predictor.files(sorted(folder.iterdir()))
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [("none.npy", "no such file"), ("torn.npy", "truncated"), ("tiny.npy", "is 20 x 20 pixels; needs 96 x 96")],
)
def test_files_raise_for_the_first_that_cannot_be_used(folder: Path, name: str, words: str) -> None:
    (folder / "torn.npy").write_bytes(b"nothing")
    np.save(folder / "tiny.npy", counts(20, 0))
    with pytest.raises(ImageError, match=rf"{name}: .*{words}"):
        Predictor.load("lensnet").files([folder / "1.npy", folder / name, folder / "missing.npy"])


def stop(*arguments: object) -> None:
    raise KeyboardInterrupt


def stopped(query: Query, out: Path) -> None:
    """Predict into a table, but stop after all rows, before the table is written."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tables, "BATCH", 1)
        patch.setattr(tables.Journal, "finish", stop)
        predict_files.predict_to_table(query, out)


def ids(table: Path) -> list[str]:
    with table.open(newline="") as file:
        return [row["id"] for row in csv.DictReader(file)]


def add(folder: Path) -> None:
    np.save(folder / "0b.npy", counts(150, 9))


def remove(folder: Path) -> None:
    (folder / "2.npy").unlink()


def replace(folder: Path) -> None:
    np.save(folder / "2.npy", counts(150, 9))
    os.utime(folder / "2.npy", ns=(0, 10**9))


@pytest.mark.parametrize("change", [add, remove, replace])
def test_a_folder_that_changed_is_predicted_anew(folder: Path, tmp_path: Path, change: Any) -> None:
    query = Query("lensnet", [folder])
    stopped(query, tmp_path / "a.csv")
    change(folder)
    with pytest.warns(UserWarning, match="begins anew"):
        predict_files.predict_to_table(query, tmp_path / "a.csv")
    predict_files.predict_to_table(query, tmp_path / "fresh.csv")
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "fresh.csv").read_text()
    assert ids(tmp_path / "a.csv") == sorted(path.stem for path in folder.iterdir())


def test_a_folder_that_did_not_change_goes_on(folder: Path, tmp_path: Path) -> None:
    stopped(Query("lensnet", [folder]), tmp_path / "a.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "BATCH", 1)
        patch.setattr(tables.Journal, "add", stop)  # no row is left to add
        assert predict_files.predict_to_table(Query("lensnet", [folder]), tmp_path / "a.csv") == (6, 0)


def test_two_commands_do_not_write_one_table(folder: Path, tmp_path: Path) -> None:
    query, out = Query("lensnet", [folder]), tmp_path / "a.csv"
    with tables.Journal(out, {"another": "command"}), pytest.raises(DataError, match="another process"):
        predict_files.predict_to_table(query, out)
    assert not out.exists()


@pytest.mark.parametrize("suffix", [suffix for suffix in tables.WRITERS if suffix not in tables.PLAIN])
def test_a_finished_table_is_complete_already(
    folder: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"a{suffix}"
    assert predict(folder, "--out", out) == 0
    before = out.stat()
    assert predict(folder, "--out", out) == 0
    assert "complete already" in capsys.readouterr().err
    assert os.path.samestat(before, out.stat())
    add(folder)
    assert predict(folder, "--out", out) == 1


@pytest.mark.parametrize("suffix", tables.PLAIN)
def test_a_finished_table_without_a_plan_is_not_replaced(folder: Path, tmp_path: Path, suffix: str) -> None:
    assert predict(folder, "--out", tmp_path / f"a{suffix}") == 0
    assert predict(folder, "--out", tmp_path / f"a{suffix}") == 1
    assert predict(folder, "--out", tmp_path / f"a{suffix}", "--force") == 0


def test_a_folder_alone_is_predicted_with_lensnet(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["predict", str(folder)])
    assert end.value.code == 0
    header, *rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == [str(folder / f"{number}.npy") for number in range(6)]
    assert {row[header.index("ood")] for row in rows} <= {"ood", "in-distribution"}


def test_a_listing_gives_its_files_in_order(folder: Path) -> None:
    listing = Listing.of([folder, folder / "none.npy"])
    assert list(listing) == [*sorted(folder.iterdir()), folder / "none.npy"]
    assert len(listing) == 7


def test_a_changed_chunk_changes_the_digest_of_a_zarr_store(tmp_path: Path) -> None:
    chunk = tmp_path / "a.zarr" / "c" / "0"
    chunk.parent.mkdir(parents=True)
    digests = []
    for text in ("a", "bb"):
        chunk.write_text(text)
        digests.append(Listing.of([tmp_path / "a.zarr"]).digest)
    assert digests[0] != digests[1]


def start(stack: Path, repeats: int, out: Path) -> subprocess.Popen[bytes]:
    """`sublens predict` of a stack, repeated, as a user starts it."""
    command = [sys.executable, "-m", "sublens.cli", "predict", "lensnet", *[str(stack)] * repeats, "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(process: subprocess.Popen[bytes]) -> int:
    """Wait for it to succeed; returns its peak memory, bytes, read every tenth of a second."""
    most = 0
    while process.poll() is None:
        most = max(most, peak_memory(process.pid))
        time.sleep(0.1)
    assert process.returncode == 0
    return most


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from /proc")
def test_two_hundred_thousand_images_need_no_more_memory_and_survive_kills(tmp_path: Path) -> None:
    stack, rng = tmp_path / "stack.h5", random.Random(1)
    with h5py.File(stack, "w") as file:
        images = np.random.default_rng(0).poisson(20, (N_STACKED, 150, 150)).astype(np.uint16)
        file.create_dataset("images", data=images, chunks=(1, 150, 150))
    few = finish(start(stack, 1, tmp_path / "few.csv"))
    begun = time.monotonic()
    many = finish(start(stack, REPEATS, tmp_path / "whole.csv"))
    seconds = time.monotonic() - begun
    assert many < few + 30e6
    for _ in range(KILLS):
        process = start(stack, REPEATS, tmp_path / "killed.csv")
        time.sleep(rng.uniform(0.03, 0.25) * seconds)
        process.kill()
        process.wait()
        assert not (tmp_path / "killed.csv").exists()
    finish(start(stack, REPEATS, tmp_path / "killed.csv"))
    whole = (tmp_path / "whole.csv").read_bytes()
    assert whole.count(b"\n") == 1 + N_STACKED * REPEATS
    assert (tmp_path / "killed.csv").read_bytes() == whole
    print(f"{N_STACKED * REPEATS:,} images in {seconds:.0f} s; {few / 1e6:.0f} MB for few, {many / 1e6:.0f} MB for all")


def test_one_plane_of_a_cube_is_predicted_as_that_image_alone(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "cube.npy", np.stack([counts(150, number) for number in range(3)]))
    assert predict(tmp_path / "cube.npy", "--plane", "1", "--out", tmp_path / "plane.csv") == 0
    assert predict(folder / "1.npy", "--out", tmp_path / "alone.csv") == 0
    texts = [(tmp_path / name).read_text().splitlines() for name in ("plane.csv", "alone.csv")]
    (plane,), (alone,) = (list(csv.DictReader(lines)) for lines in texts)
    assert plane["p_sphere"] == alone["p_sphere"] != ""


def test_a_plane_does_not_go_with_positions(tmp_path: Path) -> None:
    query = Query("lensnet", [tmp_path / "a.fits"], at=tmp_path / "a.csv", selector=ImageSelector(plane="1"))
    with pytest.raises(ConfigError, match="plane 1 out of a cube; needs an image of one plane with --at"):
        next(predict_files.predict(query))
