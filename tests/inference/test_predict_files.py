import csv
import json
import os
import random
import shutil
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from conftest import peak_memory
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from sublens import cli
from sublens.config import InputConfig
from sublens.errors import ConfigError, DataError, ImageError
from sublens.images.formats import CompanionFiles, ImageSelector
from sublens.inference import predict_files, tables
from sublens.inference.engines import Outputs
from sublens.inference.journal import Journal
from sublens.inference.predict_files import Listing, Query
from sublens.inference.predictor import Predictor
from sublens.models import bundle
from sublens.models.bundle import CardMap

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


def predict(*arguments: str | Path, network: str = "lensnet") -> int:
    """Exit code of `sublens predict` with a network."""
    with pytest.raises(SystemExit) as end:
        cli.main(["predict", network, *map(str, arguments)])
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


def stop(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


def stopped(query: Query, out: Path) -> None:
    """Predict into a table, but stop after all rows, before the table is written."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("sublens.inference.journal.BATCH", 1)
        patch.setattr(Journal, "finish", stop)
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


def test_a_table_begins_anew_where_its_network_was_calibrated_again(folder: Path, tmp_path: Path) -> None:
    network = shutil.copytree(bundle.locate("lensnet"), tmp_path / "lensnet")
    query, card = Query(str(network), [folder]), bundle.read_card(network)
    stopped(query, tmp_path / "a.csv")
    assert card.calibration is not None
    calibration = card.calibration.model_copy(update={"cutoffs": (0.99, 0.5, 0.5)})
    bundle.save_card(network, card.model_copy(update={"calibration": calibration}))
    with pytest.warns(UserWarning, match="begins anew"):
        predict_files.predict_to_table(query, tmp_path / "a.csv")


def test_a_folder_that_did_not_change_goes_on(folder: Path, tmp_path: Path) -> None:
    stopped(Query("lensnet", [folder]), tmp_path / "a.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sublens.inference.journal.BATCH", 1)
        patch.setattr(Journal, "add", stop)  # no row is left to add
        totals = predict_files.predict_to_table(Query("lensnet", [folder]), tmp_path / "a.csv")
        assert totals is not None
        assert totals[:2] == (6, 0)


def test_two_commands_do_not_write_one_table(folder: Path, tmp_path: Path) -> None:
    query, out = Query("lensnet", [folder]), tmp_path / "a.csv"
    with Journal(out, {"another": "command"}), pytest.raises(DataError, match="another process"):
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


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    """Two classes of two images each, whose files have the same names."""
    for name in ("no", "vort"):
        (tmp_path / "val" / name).mkdir(parents=True)
        for number in (1, 2):
            np.save(tmp_path / "val" / name / f"{number}.npy", counts(150, number))
    return tmp_path / "val"


NESTED = ["no/1.npy", "no/2.npy", "vort/1.npy", "vort/2.npy"]
"""Their names from the folder on."""


@pytest.mark.parametrize("pattern", ["", "*/*.npy", "**/*.npy"])
def test_ids_are_paths_where_files_have_the_same_name(nested: Path, tmp_path: Path, pattern: str) -> None:
    predict_files.predict_to_table(Query("lensnet", [nested / pattern]), tmp_path / "a.csv")
    assert ids(tmp_path / "a.csv") == NESTED


def test_ids_are_paths_from_the_deepest_folder_that_holds_all(nested: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "1.npz", np.stack([counts(150, 5), counts(150, 6)]))
    inputs = [tmp_path / "1.npz", nested / "no", tmp_path / "none.npy"]
    predict_files.predict_to_table(Query("lensnet", inputs), tmp_path / "a.csv")
    assert ids(tmp_path / "a.csv") == ["1.npz#0", "1.npz#1", "val/no/1.npy", "val/no/2.npy", "none.npy"]


def test_an_id_is_no_other_images_even_in_a_stack(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", np.stack([counts(150, 5), counts(150, 6)]))
    np.save(tmp_path / "a#1.npy", counts(150, 7))
    rows = predict_files.predict(Query("lensnet", [tmp_path / "a.npz", tmp_path / "a#1.npy"]))
    assert [row.id for row in rows] == ["a.npz#0", "a.npz#1", "a#1.npy"]


def test_ids_from_several_roots_are_whole_paths(nested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(nested)
    for inputs in ([Path("no/1.npy"), nested / "vort"], [nested / "vort", Path("no/1.npy")]):
        names = [row.id for row in predict_files.predict(Query("lensnet", inputs))]
        assert sorted(names) == sorted([str(nested / "vort/1.npy"), str(nested / "vort/2.npy"), "no/1.npy"])


def test_a_stopped_table_and_a_cluster_have_the_same_ids(nested: Path, tmp_path: Path) -> None:
    stopped(Query("lensnet", [nested]), tmp_path / "a.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sublens.inference.journal.BATCH", 1)
        predict_files.predict_to_table(Query("lensnet", [nested]), tmp_path / "a.csv")
    assert ids(tmp_path / "a.csv") == NESTED
    assert [row.id for row in predict_files.predict(Query("lensnet", [nested]), cluster="local")] == NESTED


def test_names_of_a_million_files_take_little_memory() -> None:
    names = predict_files._Names()
    tracemalloc.start()
    for number in range(10_000):
        names.add(Path(f"a/{number}.npy"))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 300_000
    assert names.top() is None
    names.add(Path("b/7.fits"))
    assert names.top() == Path()


def turned(shape: tuple[int, int], scale: float, *, centre: str = "RA---TAN DEC--TAN") -> fits.Header:
    """A header of north 25 degrees off the y axis, whose reference point is no pixel's centre."""
    cos, sin = (scale / 3600 * function(np.radians(25)) for function in (np.cos, np.sin))
    header = fits.Header(dict(zip(("CTYPE1", "CTYPE2"), centre.split(), strict=True)) | {"CRVAL1": 359.999999})
    header.update(CRVAL2=-60.0, CRPIX1=shape[1] / 2 + 3.3, CRPIX2=shape[0] / 2 - 7.1)
    header.update(CD1_1=-cos, CD1_2=sin, CD2_1=sin, CD2_2=cos)
    return header


def assert_map_lies_on(path: Path, wcs: WCS, zoom: float, first: tuple[float, float]) -> None:
    """first: x and y of the first of the network's pixels in pixels of the image, zoom of them a pixel."""
    header = fits.getheader(path)
    n, side = header["NAXIS1"], 96
    for x, y in ((0, 0), (n - 1, 0), (n // 2, n // 3)):
        pixel = [at + ((cell + 0.5) * side / n - 0.5) / zoom for at, cell in zip(first, (x, y), strict=True)]
        here, there = WCS(header).pixel_to_world(x, y), wcs.pixel_to_world(*pixel)
        assert here.separation(there).arcsec < 1e-4


@pytest.mark.parametrize("centre", ["RA---TAN DEC--TAN", "GLON-TAN GLAT-TAN", "RA---SIN DEC--SIN"])
@pytest.mark.parametrize(
    ("shape", "scale", "zoom", "first"),
    [
        ((150, 150), 0.05, 1, (27, 27)),
        ((151, 160), 0.05, 1, (32, 27)),
        ((149, 131), 0.05, 1, (18, 27)),
        ((131, 120), 0.08, 1.6, (119 / 2 - 95 / 2 / 1.6, 130 / 2 - 95 / 2 / 1.6)),
    ],
)
def test_a_map_lies_where_its_image_does(
    tmp_path: Path, centre: str, shape: tuple[int, int], scale: float, zoom: float, first: tuple[float, float]
) -> None:
    header = turned(shape, scale, centre=centre)
    fits.PrimaryHDU(np.random.default_rng(0).poisson(20, shape).astype(np.float32), header).writeto(tmp_path / "a.fits")
    list(predict_files.predict(Query("lensnet", [tmp_path / "a.fits"]), maps=tmp_path / "maps"))
    assert_map_lies_on(tmp_path / "maps" / "1-a.fits", WCS(header), zoom, first)


@pytest.mark.parametrize("xy", [(300.0, 200.0), (299.6, 200.5), (70.2, 330.0)])
def test_the_map_of_a_cutout_lies_where_it_was_cut_out(tmp_path: Path, xy: tuple[float, float]) -> None:
    header = turned((400, 600), 0.05)
    pixels = np.random.default_rng(0).poisson(20, (400, 600)).astype(np.float32)
    fits.PrimaryHDU(pixels, header).writeto(tmp_path / "a.fits")
    (tmp_path / "a.csv").write_text(f"x,y\n{xy[0]},{xy[1]}\n")
    list(predict_files.predict(Query("lensnet", [tmp_path / "a.fits"], tmp_path / "a.csv"), maps=tmp_path / "maps"))
    first = [np.ceil(at - 75) + 27 for at in xy]
    assert_map_lies_on(tmp_path / "maps" / "1-a.fits", WCS(header), 1, (first[0], first[1]))


def test_a_map_of_an_image_without_a_place_is_in_arcsec(folder: Path, tmp_path: Path) -> None:
    list(predict_files.predict(Query("lensnet", [folder / "1.npy"]), maps=tmp_path / "maps"))
    assert fits.getheader(tmp_path / "maps" / "1-1.fits")["CTYPE1"] == "X"


def test_a_changed_file_beside_an_image_changes_the_digest(tmp_path: Path) -> None:
    (tmp_path / "data.fits").write_bytes(b"")
    digests = []
    for text in ('{"pixel_scale": 0.05}', '{"pixel_scale": 0.1}'):
        (tmp_path / "info.json").write_text(text)
        digests.append(Listing.of([tmp_path]).digest)
    assert digests[0] != digests[1]


def test_a_long_name_of_an_image_shortens_that_of_its_map_and_is_noted(folder: Path, tmp_path: Path) -> None:
    for letter in "xy":
        np.save(folder / f"{250 * 'a'}{letter}.npy", counts(150, 7))
    assert predict(folder, "--map", tmp_path / "maps", "--out", tmp_path / "a.jsonl") == 0
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    noted = [row["notes"].split("its map is called ")[1] for row in rows if "its map is called" in row["notes"]]
    assert len(rows) == len(list((tmp_path / "maps").glob("*.fits"))) == 8
    assert len(set(noted)) == 2
    assert all(fits.getdata(tmp_path / "maps" / name).ndim == 2 for name in noted)


# --- networks that take signal to noise -------------------------------------------------------


def even(counts: NDArray[np.uint16]) -> Outputs:
    """Outputs of a network that knows nothing."""
    return Outputs(np.zeros((len(counts), 3)), None, [])


@pytest.fixture
def telescope(monkeypatch: pytest.MonkeyPatch) -> Predictor:
    """A network for 120 pixels of 0.05 arcsec that takes signal to noise; every query is for it."""
    settings = InputConfig(transform="signal-to-noise")
    network = Predictor(even, ("no", "sphere", "vort"), (120, 120), settings, CardMap(n_cells=15, cell_arcsec=0.4))
    monkeypatch.setattr(Predictor, "load", lambda *_: network)
    return network


def lens_image(path: Path, **planes: NDArray[Any]) -> Path:
    """A FITS image of 130 x 130 pixels on noise of 2, and other extensions."""
    pixels = np.random.default_rng(6).normal(5, 2, (130, 130))
    hdus = [fits.ImageHDU(plane, name=name) for name, plane in {"SCI": pixels, **planes}.items()]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path)
    fits.setval(path, "PIXSCALE", value=0.05, ext=1)
    return path


@pytest.mark.usefixtures("telescope")
def test_a_row_says_where_its_noise_comes_from_and_how_much_is_masked(tmp_path: Path) -> None:
    err = np.full((130, 130), 2.0)
    err[60:64, 60:63] = 1e8
    inputs = [lens_image(tmp_path / "plain.fits"), lens_image(tmp_path / "map.fits", ERR=err, PSF=np.ones((3, 3)))]
    plain, with_map = predict_files.predict(Query("any", inputs))
    assert (plain.noise, plain.psf_fwhm, plain.n_masked) == ("estimated", None, 0)
    assert (with_map.noise, with_map.n_masked) == ("map", 12)
    assert with_map.psf_fwhm == pytest.approx(0.17, abs=0.01)
    assert with_map.prediction is not None
    assert not with_map.prediction.is_ood


@pytest.mark.usefixtures("telescope")
def test_options_name_noise_psf_and_mask(tmp_path: Path) -> None:
    np.save(tmp_path / "noise.npy", np.full((130, 130), 3.0))
    np.save(tmp_path / "mask.npy", np.eye(130, dtype=bool))
    named = CompanionFiles(noise=str(tmp_path / "noise.npy"), mask=str(tmp_path / "mask.npy"))
    (row,) = predict_files.predict(Query("any", [lens_image(tmp_path / "a.fits")], companions=named))
    assert (row.noise, row.n_masked) == ("option", 120)
    assert "mask: " + str(tmp_path / "mask.npy") + " by option" in row.notes


@pytest.mark.usefixtures("telescope")
@pytest.mark.parametrize(
    ("planes", "problem"),
    [
        ({"ERR": np.ones((60, 60))}, "its noise has 60 x 60 pixels; needs 130 x 130"),
        ({"ERR": np.zeros((130, 130))}, "in no pixel; needs the noise of each pixel"),
        ({"PSF": np.ones((131, 131))}, "point-spread function has 131 x 131 pixels, more than the image"),
        ({"ERR": np.where(np.arange(130) < 75, 1e8, 2) * np.ones((130, 1))}, "of the field of the network are masked"),
    ],
)
def test_noise_or_psf_that_does_not_fit_is_a_row_with_the_reason(
    tmp_path: Path, planes: dict[str, NDArray[Any]], problem: str
) -> None:
    bad, good = predict_files.predict(
        Query("any", [lens_image(tmp_path / "a.fits", **planes), lens_image(tmp_path / "b.fits")])
    )
    assert problem in bad.error
    assert "a.fits: " in bad.error
    assert bad.prediction is None
    assert good.prediction is not None


@pytest.mark.usefixtures("telescope")
def test_real_lenses_get_their_noise_from_their_maps(real_data: Path) -> None:
    rows = list(predict_files.predict(Query("any", [real_data / "slacs", real_data / "slacs0946+1006"])))
    assert [row.error for row in rows] == [""] * 27
    assert {row.noise for row in rows} == {"map"}
    assert all(row.psf_fwhm and 0.07 < row.psf_fwhm < 0.1 for row in rows)
    (euclid,) = predict_files.predict(Query("any", list((real_data / "euclid_q1").glob("*original.fits"))))
    assert (euclid.noise, euclid.error) == ("map", "")


def test_noise_by_option_is_refused_for_a_network_of_photon_counts(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--noise with a network that takes no noise; needs a network for signal"):
        next(predict_files.predict(Query("lensnet", [folder], companions=CompanionFiles(noise="noise.fits"))))


def test_noise_by_option_is_refused_beside_positions(folder: Path) -> None:
    with pytest.raises(ConfigError, match="beside a catalogue of positions; needs these in extensions"):
        Query("lensnet", [folder], at=Path("a.csv"), companions=CompanionFiles(mask="mask.fits"))


def test_the_plan_knows_the_files_that_options_name(folder: Path, tmp_path: Path) -> None:
    card, images = bundle.read_card(bundle.locate("lensnet")), Listing.of([folder])
    noise, plans = tmp_path / "noise.npy", list[dict[str, Any]]()
    for side in (3, 4):
        np.save(noise, np.ones((side, side)))
        query = Query("lensnet", [folder], companions=CompanionFiles(noise=str(noise)))
        plans.append(query.plan(card, images))
    assert plans[0] != plans[1]
    assert "companions" not in Query("lensnet", [folder]).plan(card, images)


@pytest.mark.parametrize(
    ("totals", "line"),
    [
        ((79, 0, 79), "79 images: all out of distribution for lensnet, which knows common-test-1 only"),
        ((80, 1, 79), "79 images: all out of distribution for lensnet, which knows common-test-1 only"),
        ((1, 0, 1), "1 image: out of distribution for lensnet, which knows common-test-1 only"),
        ((79, 0, 78), ""),
        ((2, 2, 0), ""),
    ],
)
def test_images_that_are_all_out_of_distribution_get_a_closing_line(totals: tuple[int, int, int], line: str) -> None:
    card = bundle.read_card(bundle.locate("lensnet"))
    assert predict_files.closing_line("bundles/lensnet", card, tables.Totals(*totals)).startswith(line)
    assert bool(line) == bool(predict_files.closing_line("lensnet", card, tables.Totals(*totals)))


@pytest.mark.parametrize("has_other", [False, True])
def test_the_closing_line_names_networks_for_telescopes_where_there_are_some(
    monkeypatch: pytest.MonkeyPatch, has_other: bool
) -> None:
    card = bundle.read_card(bundle.locate("lensnet"))
    hst = card.model_copy(update={"input": InputConfig(transform="signal-to-noise")})
    cards = {"lensnet": card, **({"lensnet-hst": hst} if has_other else {})}
    monkeypatch.setattr(bundle, "shipped", lambda: {name: Path(name) for name in cards})
    monkeypatch.setattr(bundle, "read_card", lambda folder: cards[folder.name])
    line = predict_files.closing_line("lensnet", card, tables.Totals(3, 0, 3))
    assert line.endswith("; for images of telescopes see lensnet-hst." if has_other else "knows common-test-1 only.")
    assert not predict_files.closing_line("lensnet-hst", hst, tables.Totals(3, 0, 3))


@pytest.mark.parametrize(
    ("totals", "line"),
    [
        ((30, 2, 1, 20), "No class can be told for certain: the prediction sets of 20 of 28 images hold more than one"),
        ((1, 0, 0, 1), "No class can be told for certain: the prediction set holds more than one"),
        ((30, 2, 1, 14), ""),
    ],
)
def test_images_whose_class_stays_open_get_a_closing_line(totals: tuple[int, int, int, int], line: str) -> None:
    card = bundle.read_card(bundle.locate("lensnet-hst"))
    said = predict_files.closing_line("lensnet-hst", card, tables.Totals(*totals))
    assert said.startswith(line)
    assert bool(line) == bool(said)


@pytest.mark.parametrize(("members", "n_open"), [(("no",), 0), (("no", "vort"), 1), ((), 0), (None, 0)])
def test_sets_of_more_than_one_class_are_counted(members: tuple[str, ...] | None, n_open: int) -> None:
    row: tables.Record = {"error": "", "ood": False, "prediction_set": tables.set_text(members)}
    assert tables.Totals().after(row) == (1, 0, 0, n_open)


def test_predict_says_that_real_lenses_stay_open(real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = "J0037-0942.fits", "J0044+0113.fits"
    assert predict(*(real_data / "slacs" / name for name in names), network="lensnet-hst") == 0
    assert "the prediction sets of 2 of 2 images hold more than one, whatever the label is" in capsys.readouterr().err


def test_predict_ends_with_the_closing_line(real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(real_data / "slacs" / "J0037-0942.fits", real_data / "slacs" / "J0044+0113.fits") == 0
    assert "2 images: all out of distribution for lensnet" in capsys.readouterr().err
