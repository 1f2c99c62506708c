"""Small seeded data, made once a session."""

import os
import signal
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import settings
from threadpoolctl import threadpool_limits

from sublens.config import InputConfig, RunConfig, SplitConfig, checked
from sublens.data.dataset import Dataset, open_dataset
from sublens.data.generate import simulate
from sublens.data.store import Chunk
from sublens.modelling import fit, search
from sublens.modelling.lens_image import LensImage
from sublens.models import bundle, weights
from sublens.models.networks import build
from sublens.storage.files import sha256
from sublens.storage.object_store import Remote
from sublens.surveys.presets import preset
from sublens.surveys.survey import Survey
from sublens.training.run import train_run
from sublens.web.app import create_app
from sublens.web.guard import Guard
from sublens.web.prometheus import Metrics
from sublens.web.service import Service, load_networks

settings.register_profile("sublens", deadline=None)
settings.load_profile("sublens")

threadpool_limits(1, "blas")
torch.set_num_threads(1)  # tests share two cores with each other and with whatever else runs
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs deaf to Ctrl-C
SHARED = Path(os.environ.get("SUBLENS_SHARED", Path(__file__).parents[2] / "shared")).resolve()


HALO = {"theta_E": 1.25, "gamma": 2.05, "e1": 0.09, "e2": -0.06, "center_x": 0.0, "center_y": 0.0}
SHEAR = {"gamma1": 0.03, "gamma2": 0.04}
SUBHALO = "theta_E", "center_x", "center_y"
"""Mass of the lens that lenstronomy draws, in its own words."""


@lru_cache
def drawn_lens(
    theta_e: float = 1.25,
    source: tuple[float, float] = (0.08, 0.05),
    shear: tuple[float, float] = (SHEAR["gamma1"], SHEAR["gamma2"]),
    subhalo: tuple[float, float, float] | None = None,
) -> LensImage:
    """An image of a lens as lenstronomy draws it, with noise; the signal to noise of its arcs is up to 20 a pixel.

    subhalo: Einstein radius, x and y of an isothermal sphere, arcsec.
    """
    from lenstronomy.Data.imaging_data import ImageData
    from lenstronomy.Data.psf import PSF
    from lenstronomy.ImSim.image_model import ImageModel
    from lenstronomy.LensModel.lens_model import LensModel
    from lenstronomy.LightModel.light_model import LightModel

    n, scale, sky = 120, 0.05, 0.02
    edge, shape = -(n - 1) / 2 * scale, ("R_sersic", "n_sersic", "e1", "e2", "center_x", "center_y", "amp")
    grid = {"ra_at_xy_0": edge, "dec_at_xy_0": edge, "transform_pix2angle": np.eye(2) * scale}
    model = ImageModel(
        ImageData(np.zeros((n, n)), background_rms=sky, exposure_time=2000.0, **grid),
        PSF("GAUSSIAN", fwhm=0.1, pixel_size=scale, truncation=4),
        LensModel(["EPL", "SHEAR", *(["SIS"] if subhalo else [])]),
        LightModel(["SERSIC_ELLIPSE"]),
        LightModel(["SERSIC_ELLIPSE"]),
        kwargs_numerics={"supersampling_factor": 3},
    )
    profiles = (0.15, 1.0, 0.1, 0.1, *source, 120.0), (1.0, 4.0, 0.08, -0.05, 0.0, 0.0, 200.0)
    light = ([dict(zip(shape, values, strict=True))] for values in profiles)
    masses = [{**HALO, "theta_E": theta_e}, dict(zip(SHEAR, shear, strict=True))]
    masses += [dict(zip(SUBHALO, subhalo, strict=True))] if subhalo else []
    plane = model.image(masses, *light)
    noise = np.sqrt(sky**2 + np.maximum(plane, 0) / 2000)
    axis = np.arange(15) - 7
    kernel = np.exp(-(axis**2 + axis[:, None] ** 2) / 2 / (0.1 / scale / 2.3548) ** 2)
    return LensImage(plane + noise * np.random.default_rng(1).normal(size=(n, n)), noise, kernel, scale)


@pytest.fixture
def quick_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits of smooth lenses that begin but once, of one density slope, without a search for substructure."""
    monkeypatch.setattr(search, "MOST_RESTARTS", 0)
    monkeypatch.setattr(search, "SLOPES", 0.0)
    monkeypatch.setattr(fit, "PERTURBERS", {})


@pytest.fixture(scope="session")
def small_survey() -> Survey:
    """common-test-1 on 48 pixels of 0.15 arcsec: the same code paths, quickly."""
    return changed("common-test-1", name="small", camera={"n_pixels": 48, "pixel_scale": 0.15})


def changed(name: str, /, **changes: object) -> Survey:
    """A preset with some values changed; a section's changes are a dict, None leaves the section out."""
    tree = preset(name).model_dump(exclude_none=True)
    for key, value in changes.items():
        tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
    return Survey.model_validate({key: value for key, value in tree.items() if value is not None})


def children(pid: int) -> list[int]:
    """Processes that a process has started and that have not ended."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until_gone(processes: list[int], seconds: float = 20) -> None:
    """Return once none of these processes is there, or fail."""
    end = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() for pid in processes):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="session")
def small_store(tmp_path_factory: pytest.TempPathFactory, small_survey: Survey) -> Path:
    """A simulated store of 120 training and 30 test images."""
    out = tmp_path_factory.mktemp("stores") / "small"
    simulate(small_survey, {"train": 120, "test": 30}, out, seed=5)
    return out


@pytest.fixture(scope="session")
def small_dataset(small_store: Path) -> Dataset:
    """The small store, opened."""
    return open_dataset(small_store, SplitConfig(selection=0.2))


@pytest.fixture
def real_data() -> Path:
    """The folder of real images; the test is skipped where there is none."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}")
    return folder


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """An ML4SCI-style folder: two classes, 12 training and 4 test images each, 16 x 16."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 12), ("test", 4)):
        for name in ("plain", "ring"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(n):
                counts = rng.poisson(10, (1, 16, 16)).astype(float)
                np.save(folder / f"{number}.npy", (counts - counts.min()) / (counts.max() - counts.min()))
    return tmp_path / "images"


@pytest.fixture(scope="session")
def easy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that are easy to tell apart: with a bright square in the middle, and without."""
    rng, root = np.random.default_rng(1), tmp_path_factory.mktemp("folders") / "easy"
    for split, n in (("train", 64), ("test", 20)):
        for name, light in (("empty", 0), ("square", 12)):
            (root / split / name).mkdir(parents=True)
            for number in range(n):
                mean = np.full((1, 16, 16), 10.0)
                mean[:, 5:11, 5:11] += light
                counts = rng.poisson(mean).astype(float)
                np.save(root / split / name / f"{number}.npy", (counts - counts.min()) / (counts.max() - counts.min()))
    return root


@pytest.fixture(scope="session")
def bucket() -> Iterator[Remote]:
    """A bucket of an S3 server on this machine."""
    from moto.server import ThreadedMotoServer
    from pyarrow.fs import S3FileSystem

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    given = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        S3FileSystem(endpoint_override=given["AWS_ENDPOINT_URL"], allow_bucket_creation=True).create_dir("lenses")
        yield Remote("s3://lenses")
    server.stop()


QUICK = {"train": {"epochs": 1, "batch_size": 16}}


@pytest.fixture(scope="session")
def planes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A small data set of signal to noise."""
    camera = {"n_pixels": 48, "pixel_scale": 0.15, "pixels": "signal-to-noise"}
    out = tmp_path_factory.mktemp("stores") / "planes"
    simulate(changed("common-test-1", name="planes", camera=camera), {"train": 120, "test": 30}, out, seed=5)
    return open_dataset(out, SplitConfig(selection=0.4))


@pytest.fixture(scope="session")
def weigher(planes: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained network of signal to noise, with 48 pixels of 0.15 arcsec."""
    out = tmp_path_factory.mktemp("runs") / "weigher"
    train_run(planes, checked(QUICK, RunConfig), out)
    return out


@pytest.fixture(scope="session")
def weighing_client(weigher: Path) -> Iterator[TestClient]:
    """The service with lensnet and a network of signal to noise."""
    metrics = Metrics()
    with TestClient(create_app(Service(load_networks(["lensnet", str(weigher)], metrics), metrics))) as opened_:
        yield opened_


def peak_memory(process: int | str = "self") -> int:
    """Peak resident bytes of a process, this one if none is named; 0 where it has ended."""
    status = Path(f"/proc/{process}/status").read_text()
    return sum(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def chunk(n: int, start: int = 0, side: int = 8) -> Chunk:
    """A chunk of random images with ids that continue from `start`."""
    rng = np.random.default_rng(start)
    ids = np.array([f"train/{number:04d}" for number in range(start, start + n)])
    return Chunk(rng.integers(0, 900, (n, side, side)).astype(np.uint16), np.arange(start, start + n) % 2, ids)


SELECTED = {"selection_loss": 0.5, "selection_accuracy": 0.8, "selection_auc": 0.9}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A bundle of an untrained lensnet."""
    torch.manual_seed(3)
    weights.save(tmp_path / "run", build("lensnet", 3))
    write_card(tmp_path / "run")
    return tmp_path / "run"


def write_card(folder: Path, classes: tuple[str, ...] = ("no", "sphere", "vort"), network: str = "lensnet") -> None:
    fields: dict[str, Any] = {
        "network": network,
        "classes": classes,
        "image_shape": (48, 48),
        "input": InputConfig(binning=2),
        "settings": RunConfig(),
        "data": {"name": "toy", "hash": "0", "train": 8, "selection": 1, "test": 1},
        "training": {"steps": 1, "images": 8, "seconds": 1.0, "best_epoch": 0, "interrupted": False} | SELECTED,
        "versions": {},
        "machine": {"processor": "a processor", "threads": 1, "device": "cpu"},
        "weights_sha256": sha256(folder / bundle.WEIGHTS),
    }
    bundle.save_card(folder, bundle.Card(**fields))


@pytest.fixture(scope="session")
def client() -> Iterator[TestClient]:
    """The service with lensnet and mobilenetv3-small, behind its guard, without a socket."""
    metrics = Metrics()
    service = Service(load_networks(["lensnet", "mobilenetv3-small"], metrics), metrics)
    guard = Guard(create_app(service), metrics, log=lambda entry: None)
    with TestClient(guard, base_url="http://localhost", raise_server_exceptions=False) as opened_:
        yield opened_
