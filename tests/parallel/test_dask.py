"""The same slices on a Dask cluster."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from sublens.config import RunConfig, SplitConfig, TrainConfig
from sublens.data import dataset, generate
from sublens.errors import BundleError, ConfigError, DataError, SublensError
from sublens.evaluation import evaluate
from sublens.inference import predict_dataset, predict_files
from sublens.inference.predict_files import Query
from sublens.models import bundle
from sublens.parallel import dask
from sublens.storage import object_store
from sublens.storage.files import sha256
from sublens.storage.object_store import Remote
from sublens.surveys.survey import Survey
from sublens.training import recorder, run

SIZES = {"train": 70, "test": 20}


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sublens.sim.slices.SLICE_PIXELS", 8 * 48**2)
    monkeypatch.setattr("sublens.inference.predictor.SLICE", 8)
    monkeypatch.setattr("sublens.inference.predict_files.SLICE", 8)
    monkeypatch.setattr("sublens.inference.journal.SLICE", 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty images, one of which cannot be read."""
    made, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(60):
        np.save(made / f"{number:02d}.npy", rng.poisson(20, (150, 150)).astype(np.uint16))
    (made / "31.npy").write_bytes(b"damaged")
    return made


def test_a_store_is_the_same(tmp_path: Path, small_survey: Survey, small_slices: None) -> None:
    generate.simulate(small_survey, SIZES, tmp_path / "alone", seed=3)  # type: ignore[arg-type]
    generate.simulate(small_survey, SIZES, tmp_path / "cluster", seed=3, cluster="local:2")  # type: ignore[arg-type]
    assert sha256(tmp_path / "cluster" / "manifest.json") == sha256(tmp_path / "alone" / "manifest.json")


def test_a_table_is_the_same(folder: Path, tmp_path: Path, small_slices: None) -> None:
    query = Query("lensnet", [folder])
    alone = predict_files.predict_to_table(query, tmp_path / "alone.csv")
    assert alone == predict_files.predict_to_table(query, tmp_path / "cluster.csv", cluster="local:2")
    assert (alone or ())[:2] == (60, 1)
    assert (tmp_path / "cluster.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()


def test_a_table_goes_on_where_it_was(folder: Path, small_slices: None) -> None:
    query = Query("lensnet", [folder])
    whole = list(predict_files.predict(query))
    assert list(predict_files.predict(query, start=(21, 0), cluster="local:1")) == whole[21:]


@pytest.mark.slow
def test_workers_that_are_killed_leave_no_trace(tmp_path: Path) -> None:
    """Ten workers each are killed while 20,000 images are simulated and 50,000 are classified."""
    arguments = ("common-test-1", "--train", "16000", "--test", "4000", "--seed", "9")
    command("simulate", *arguments, "--out", str(tmp_path / "alone"), "--workers", "2")
    begun = tmp_path / ".store.partial" / "train" / "images-00000.npy"
    killed_meanwhile(begun, "simulate", *arguments, "--out", str(tmp_path / "store"), "--cluster", "local:2")
    assert sha256(tmp_path / "store" / "manifest.json") == sha256(tmp_path / "alone" / "manifest.json")
    images, counts = tmp_path / "images", np.load(tmp_path / "alone" / "train" / "images-00000.npy")
    images.mkdir()
    for number in range(50_000):
        np.save(images / f"{number:05d}.npy", counts[number % len(counts)])
    command("predict", "lensnet", str(images), "--out", str(tmp_path / "alone.csv"))
    begun = tmp_path / ".t.csv.journal"
    killed_meanwhile(begun, "predict", "lensnet", str(images), "--out", str(tmp_path / "t.csv"), "--cluster", "local:2")
    assert (tmp_path / "t.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()


def command(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "sublens.cli", *arguments], check=True, capture_output=True)


def killed_meanwhile(begun: Path, *arguments: str) -> None:
    """Run a command, kill ten of its workers once it has begun to write that file, and have it end well."""
    rng, n_killed = np.random.default_rng(1), 0
    with subprocess.Popen([sys.executable, "-m", "sublens.cli", *arguments], stderr=subprocess.DEVNULL) as command:
        while command.poll() is None:
            time.sleep(rng.uniform(0.5, 1.5))
            spawned = subprocess.run(
                ["pgrep", "-P", str(command.pid), "-f", "spawn_main"], capture_output=True, text=True, check=False
            )
            pids = [int(line) for line in spawned.stdout.split()]
            if len(pids) >= 2 and n_killed < 10 and begun.is_file() and begun.stat().st_size > 1000:
                os.kill(int(rng.choice(pids)), signal.SIGKILL)
                n_killed += 1
        assert command.returncode == 0
    assert n_killed == 10


@contextmanager
def standing(tmp_path: Path, environment: dict[str, str]) -> Iterator[str]:
    """A scheduler and two workers, each in a folder of its own; gives the scheduler's address."""
    info, started = tmp_path / "scheduler.json", []
    for number, what in enumerate(["scheduler", "worker", "worker"]):
        own = tmp_path / str(number)
        own.mkdir()
        more = ["--port", "0", "--no-dashboard"] if what == "scheduler" else ["--nthreads", "1", "--no-dashboard"]
        command = [sys.executable, "-m", "dask", what, "--scheduler-file", str(info), *more]
        started.append(
            subprocess.Popen(command, cwd=own, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )
        while not info.is_file():
            time.sleep(0.1)
    try:
        yield json.loads(info.read_text())["address"]
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(30)


def test_a_cluster_that_stands_already_gives_the_same(
    folder: Path, tmp_path: Path, small_survey: Survey, small_slices: None
) -> None:
    plain = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    generate.simulate(small_survey, SIZES, tmp_path / "alone", seed=3)  # type: ignore[arg-type]
    alone = list(predict_files.predict(Query("lensnet", [folder])))
    with standing(tmp_path, plain) as address:
        generate.simulate(small_survey, SIZES, tmp_path / "cluster", seed=3, cluster=address)  # type: ignore[arg-type]
        assert list(predict_files.predict(Query("lensnet", [folder]), cluster=address)) == alone
    assert sha256(tmp_path / "cluster" / "manifest.json") == sha256(tmp_path / "alone" / "manifest.json")


def test_a_cluster_that_shares_nothing_but_a_store_gives_the_same(
    folder: Path, bucket: Remote, tmp_path: Path, small_survey: Survey, small_slices: None
) -> None:
    there = Remote(bucket, "shared")
    object_store.send_folder(folder, Remote(there, "images"), "")
    generate.simulate(small_survey, SIZES, tmp_path / "alone", seed=3)  # type: ignore[arg-type]
    alone = list(predict_files.predict(Query("lensnet", [folder])))
    plain = {name: value for name, value in os.environ.items() if name == "PATH" or name.startswith("AWS_")}
    with standing(tmp_path, {**plain, "HOME": str(tmp_path)}) as address:
        generate.simulate(small_survey, SIZES, there / "store", seed=3, cluster=address)  # type: ignore[arg-type]
        query = Query("lensnet", [there / "images"])
        totals = predict_files.predict_to_table(query, there / "table.jsonl", cluster=address)
        assert (totals or ())[:2] == (60, 1)
    assert sha256(there / "store" / "manifest.json") == sha256(tmp_path / "alone" / "manifest.json")
    rows = [json.loads(line) for line in object_store.local(there / "table.jsonl").read_text().splitlines()]
    assert [row["p_no"] for row in rows] == [one.prediction and one.prediction.probs["no"] for one in alone]


SBATCH = """#!/bin/sh
cp "$1" "$0.job.$$"
setsid sh "$0.job.$$" >"$0.log.$$" 2>&1 &
echo "Submitted batch job $!"
"""


def test_slurm_jobs_give_the_same(
    tmp_path: Path, small_survey: Survey, small_slices: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The jobs that are submitted are run, by something that takes SLURM's place."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", '#!/bin/sh\nkill -- "-$1"\n')):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    settings = tmp_path / "jobs.toml"
    settings.write_text('jobs = 2\ncores = 1\nprocesses = 1\nmemory = "2GB"\nqueue = "normal"\n')
    with pytest.raises(ConfigError, match="there is no sbatch here"), dask.open_cluster(f"slurm:{settings}"):
        pass
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    generate.simulate(small_survey, SIZES, tmp_path / "alone", seed=3)  # type: ignore[arg-type]
    generate.simulate(small_survey, SIZES, tmp_path / "slurm", seed=3, cluster=f"slurm:{settings}")  # type: ignore[arg-type]
    assert sha256(tmp_path / "slurm" / "manifest.json") == sha256(tmp_path / "alone" / "manifest.json")
    (first, *_) = commands.glob("sbatch.job.*")
    assert "#SBATCH -p normal" in first.read_text()


def test_a_folder_is_packed_the_same(easy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sublens.data.folders.FOLDER_CHUNK", 20)
    dataset.pack(easy_folder, tmp_path / "alone")
    dataset.pack(easy_folder, tmp_path / "cluster", cluster="local:2")
    assert sha256(tmp_path / "cluster" / "manifest.json") == sha256(tmp_path / "alone" / "manifest.json")


def test_a_network_is_measured_the_same(easy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sublens.inference.predict_dataset.SLICE", 16)
    monkeypatch.setattr("sublens.inference.predict_dataset.BATCH", 16)
    easy, trained = dataset.open_dataset(easy_folder, SplitConfig(selection=0.25)), tmp_path / "run"
    run.train_run(easy, RunConfig(train=TrainConfig(epochs=2, batch_size=16), split=easy.split), trained)
    for name, where in (("alone", None), ("cluster", "local:2")):
        evaluate.measure_network(trained, easy_folder, tmp_path / name, cluster=where)
    tables = [(tmp_path / name / recorder.PREDICTIONS).read_bytes() for name in ("alone", "cluster")]
    assert tables[0] == tables[1]


def test_another_network_or_data_set_on_a_worker_is_an_error(easy_folder: Path) -> None:
    lensnet = Path("lensnet")
    task = predict_dataset.Task(lensnet, "0" * 64, easy_folder, "0" * 64, threads=1, batch=8)
    with pytest.raises(BundleError, match="lensnet: is another network there"):
        predict_dataset._load_predictor_and_part(task)
    digest = bundle.read_card(bundle.locate(lensnet)).digest
    with pytest.raises(DataError, match="easy: is another data set there"):
        predict_dataset._load_predictor_and_part(task._replace(digest=digest))


def full(number: int) -> int:
    raise OSError(28, "No space left on device", "/scratch/a")


def ended(number: int) -> int:
    os._exit(1)


def list_of(work: Callable[[int], int]) -> list[int]:
    with dask.open_cluster("local:1") as mapper:
        return list(mapper(work, range(1)))


def test_a_full_disk_names_its_worker() -> None:
    with pytest.raises(DataError, match=r"^tcp://127.0.0.1:\d+: .*No space left on device.*run the command again"):
        list_of(full)


def test_work_that_ends_every_worker_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dask.SETTINGS, "distributed.scheduler.allowed-failures", 1)
    with pytest.raises(DataError, match="ended while they were at work; needs enough memory"):
        list_of(ended)


@pytest.mark.parametrize("n_lost", [1, 3])
def test_a_worker_lost_at_the_start_is_started_again(n_lost: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import distributed

    whole, left = distributed.LocalCluster, list(range(n_lost))

    def fragile(**settings: object) -> object:
        if left:
            left.pop()
            raise RuntimeError("Nanny failed to start.")
        return whole(**settings)

    monkeypatch.setattr(distributed, "LocalCluster", fragile)
    if n_lost < dask.STARTS:
        assert list_of(abs) == [0]
    else:
        with pytest.raises(DataError, match="ended as they started, 3 times"):
            list_of(abs)


def test_two_clusters_of_one_machine_do_not_meet() -> None:
    with dask.open_cluster("local:1") as mapper, dask.open_cluster("local:1") as other:
        assert list(mapper(abs, [-1])) == list(other(abs, [-1])) == [1]


def test_a_cluster_reports_its_progress() -> None:
    with dask.open_cluster("local:2") as mapper:
        assert list(mapper(abs, range(5))) == list(range(5))
        assert mapper.status() == "5 slices done, 0 under way on 2 workers"


def test_a_worker_of_another_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask, "version", lambda name: "99")
    with (
        pytest.raises(DataError, match=r"^tcp:.*\d: has sublens .*; needs 99"),
        dask.open_cluster("local:1"),
    ):
        pass


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("local:0", "is no cluster; needs local, local:N"),
        ("local:x", "is no cluster; needs local, local:N"),
        ("nowhere", "is no cluster; needs local, local:N"),
        ("slurm:", "is no cluster; needs local, local:N"),
        ("slurm:missing.toml", "missing.toml: cannot be used"),
        ("tcp://127.0.0.1:9", "tcp://127.0.0.1:9: no scheduler answers"),
    ],
)
def test_a_name_that_is_no_cluster_is_an_error_in_words(
    where: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask, "CONNECT_SECONDS", 1)
    with pytest.raises(ConfigError, match=words), dask.open_cluster(where):
        pass


def fail(number: int) -> None:
    raise DataError("holds 3 images", need="50", next="Add some.", path=f"folder {number}")


def test_an_error_of_a_worker_keeps_its_fields_and_names_the_worker() -> None:
    with pytest.raises(DataError) as caught:
        list_of(fail)  # type: ignore[arg-type]
    assert re.fullmatch(r"tcp://127.0.0.1:\d+: folder 0", str(caught.value.path))
    assert (caught.value.what, caught.value.need, caught.value.next) == ("holds 3 images", "50", "Add some.")


def test_an_error_of_the_simulator_comes_back_from_a_worker(small_survey: Survey, tmp_path: Path) -> None:
    heavy = small_survey.model_copy(
        update={"halo": small_survey.halo.model_copy(update={"mass_msun": small_survey.subhaloes.mass_msun})}
    )
    with pytest.raises(SublensError, match="outweighs its halo"):
        generate.simulate(heavy, {"train": 30}, tmp_path / "store", seed=3, cluster="local:1")
