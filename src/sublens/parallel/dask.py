"""The same slices on a Dask cluster: of this machine, one that runs already, or one of SLURM jobs.

Who can reach a Dask scheduler can have it run anything, so its network must be trusted.
"""

import shutil
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from sublens.errors import ConfigError, DataError, SublensError
from sublens.parallel.mapper import AHEAD, ONE_THREAD, Mapper, in_order

if TYPE_CHECKING:
    from distributed import Client, Future

A = TypeVar("A")
R = TypeVar("R")

CONNECT_SECONDS = 10
WORKER_SECONDS = 60
"""That the first worker may take to turn up at a scheduler that runs already; SLURM may let one wait for hours."""
STARTS = 3
SETTINGS = {
    "distributed.scheduler.allowed-failures": 100,  # workers that may be lost with a slice before it is blamed
    "distributed.nanny.pre-spawn-environ": ONE_THREAD,
}
"""Of Dask. By itself it has workers give memory back at once, and rendering takes twice as long."""
EXPORT = f'export DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON="{dict(MALLOC_TRIM_THRESHOLD_=None, **ONE_THREAD)}"'
"""The same for workers that others start."""


@contextmanager
def open_cluster(where: str) -> Iterator[Mapper]:
    """A cluster, as long as a `with` block lasts.

    where: `local` or `local:N`, N processes of this machine; `tcp://HOST:PORT`, a scheduler that runs; or
    `slurm:FILE.toml`, whose keys are those of `dask_jobqueue.SLURMCluster`, and `jobs`, how many to ask for.
    Raises `ConfigError` where there is no such thing, `DataError` where a worker has no sublens, or
    another version of it.
    """
    try:
        import distributed
    except ImportError as err:
        raise ConfigError("--cluster needs Dask. Run `pip install 'sublens[cluster]'`.") from err
    import dask

    with ExitStack() as stack:
        stack.enter_context(dask.config.set(SETTINGS))
        address = stack.enter_context(_scheduler(where))
        try:
            client = stack.enter_context(distributed.Client(address, timeout=CONNECT_SECONDS))
        except (OSError, ValueError) as err:
            raise ConfigError(
                f"No scheduler answers at {where}. Start one with `dask scheduler`, or check the address."
            ) from err
        _wait_for_workers(client, where)
        _check_versions(client)
        with _translate_errors(where):
            yield _OnCluster(client)


@contextmanager
def _translate_errors(where: str) -> Iterator[None]:
    """Turn what a cluster ends with into a `DataError`."""
    from distributed import CancelledError, KilledWorker
    from distributed.comm import CommClosedError

    try:
        yield
    except ModuleNotFoundError as err:
        raise DataError(f"{where}: a worker has no sublens. Install it wherever workers run.") from err
    except KilledWorker as err:
        raise DataError(
            f"{where}: {err.last_worker.address} and others ended while they were at work; is memory short there? "
            "See to it, then run the command again: it goes on where it was."
        ) from err
    except (CancelledError, CommClosedError) as err:
        raise DataError(
            f"{where}: the scheduler is gone. Start it again, then run the command again: it goes on where it was."
        ) from err


@contextmanager
def _scheduler(where: str) -> Iterator[Any]:
    """What `distributed.Client` is to connect to."""
    kind, _, rest = where.partition(":")
    if kind == "local" and (not rest or (rest.isdecimal() and int(rest) > 0)):
        with _local(int(rest) if rest else None) as local:
            yield local
    elif kind == "slurm" and rest:
        with _slurm(Path(rest)) as jobs:
            yield jobs
    elif kind in ("tcp", "tls"):
        yield where
    else:
        raise ConfigError(f"--cluster {where}: needs local, local:N, tcp://HOST:PORT or slurm:FILE.toml.")


def _local(n: int | None) -> Any:
    """A cluster of this machine; begun anew where one of its workers is lost before it has started."""
    from distributed import LocalCluster

    for _ in range(STARTS):
        try:
            return LocalCluster(n_workers=n, threads_per_worker=1, dashboard_address=None, silence_logs=50)
        except RuntimeError as err:
            lost = err
    raise DataError(
        f"Workers of this machine ended as they were started, {STARTS} times; is memory short? Use fewer."
    ) from lost


@contextmanager
def _slurm(path: Path) -> Iterator[Any]:
    from dask_jobqueue import SLURMCluster

    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
        settings.setdefault("processes", settings.get("cores", 1))
        n_jobs = int(settings.pop("jobs", 1))
        prologue = [EXPORT, *settings.pop("job_script_prologue", ())]
        cluster = SLURMCluster(
            **{"scheduler_options": {"dashboard_address": ":0"}, "job_script_prologue": prologue, **settings}
        )
    except (OSError, ValueError, TypeError) as err:
        raise ConfigError(
            f"{path}: cannot be used ({err}); needs the settings of dask_jobqueue.SLURMCluster, such as queue, cores, "
            "memory and walltime, and jobs. Correct it."
        ) from err
    if not shutil.which("sbatch"):
        raise ConfigError(f"slurm:{path}: there is no sbatch here. Run the command where jobs are submitted from.")
    with cluster:
        cluster.scale(jobs=n_jobs)
        yield cluster


def _wait_for_workers(client: "Client", where: str) -> None:
    try:
        client.wait_for_workers(1, timeout=None if where.startswith("slurm") else WORKER_SECONDS)
    except TimeoutError as err:
        raise ConfigError(f"{where}: has no workers. Start some with `dask worker {where}`.") from err


def _check_versions(client: "Client") -> None:
    """Raise `DataError` where a worker would compute something else; those that come later see to it themselves."""
    ours = version("sublens")
    for worker, theirs in client.run(_version, on_error="return").items():
        if isinstance(theirs, ImportError):
            raise _wrong_version(worker, "has no sublens", ours)
        if isinstance(theirs, str) and theirs != ours:  # else it was lost meanwhile
            raise _wrong_version(worker, f"has sublens {theirs}", ours)


def _version() -> str:
    from importlib.metadata import version

    return version("sublens")


def _wrong_version(worker: str, found: str, ours: str) -> DataError:
    return DataError(f"{worker}: {found}; needs {ours}. Install that there, and start it again.")


class _OnCluster(Mapper):
    def __init__(self, client: "Client") -> None:
        self._client, self._n_workers, self._n_asked, self._n_done = client, 1, 0, 0

    def __call__(self, work: Callable[[A], R], slices: Iterable[A]) -> Iterator[R]:
        for answer in in_order(self._asked(work, slices), lambda: AHEAD * self._n_workers):
            self._n_done += 1
            yield answer

    def told(self) -> str:
        return f"{self._n_done} slices done, {self._n_asked - self._n_done} under way on {self._n_workers} workers"

    def _asked(self, work: Callable[[A], R], slices: Iterable[A]) -> Iterator["Future"]:
        ours = version("sublens")
        for one in slices:
            self._n_asked += 1
            self._n_workers = max(1, len(self._client.scheduler_info(n_workers=-1)["workers"]))  # they come and go
            yield self._client.submit(_run_on_worker, work, one, ours, key=_task_key(work, one), pure=True)


TASK_LOCK = Lock()
"""Slices of a worker that has several threads: they share what it has loaded."""


def _run_on_worker(work: Callable[[A], R], one: A, ours: str) -> R:
    """On a worker, whose name is told with whatever goes wrong."""
    from distributed import get_worker

    if _version() != ours:
        raise _wrong_version(get_worker().address, f"has sublens {_version()}", ours)
    try:
        with TASK_LOCK:
            return work(one)
    except SublensError as err:
        raise type(err)(f"{get_worker().address}: {err}") from err
    except OSError as err:
        raise DataError(
            f"{get_worker().address}: {err}. See to it there, then run the command again: it goes on where it was."
        ) from err


def _task_key(work: Callable[..., Any], one: object) -> str:
    """Of a slice, after what it holds: asked for twice, it is computed once."""
    return f"{work.__name__}-{sha256(repr(one).encode()).hexdigest()[:32]}"
