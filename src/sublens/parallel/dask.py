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
"""Longest wait for a scheduler to answer."""
WORKER_SECONDS = 60
"""Longest wait for the first worker of a scheduler that runs already; SLURM may let one wait for hours."""
STARTS = 3
"""Attempts to start the workers of this machine."""
SETTINGS = {
    "distributed.scheduler.allowed-failures": 100,  # workers that may be lost with a slice before it is blamed
    "distributed.nanny.pre-spawn-environ": ONE_THREAD,
}
"""Settings of Dask, which by itself has workers give memory back at once: rendering takes twice as long then."""
EXPORT = f'export DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON="{dict(MALLOC_TRIM_THRESHOLD_=None, **ONE_THREAD)}"'
"""Line of a job script that has the same effect on workers that SLURM starts."""
WHERE = "local, local:N, tcp://HOST:PORT or slurm:FILE.toml"
"""Values of `--cluster`."""
AGAIN = "then run the command again: it goes on where it was."
"""End of the advice where work that is done is kept."""


@contextmanager
def open_cluster(where: str) -> Iterator[Mapper]:
    """A mapper on a cluster, for the length of a `with` block.

    where: `local` or `local:N`, N processes of this machine; `tcp://HOST:PORT`, a scheduler that runs; or
    `slurm:FILE.toml`, whose keys are those of `dask_jobqueue.SLURMCluster`, and `jobs`, their number.
    Raises `ConfigError` where there is no such thing, `DataError` where a worker has no sublens, or
    another version of it.
    """
    try:
        import distributed
    except ImportError as err:
        raise ConfigError(
            "Dask is not installed", need="it for --cluster", next="Run `pip install 'sublens[cluster]'`."
        ) from err
    import dask

    with ExitStack() as stack:
        stack.enter_context(dask.config.set(SETTINGS))
        address = stack.enter_context(_scheduler(where))
        try:
            client = stack.enter_context(distributed.Client(address, timeout=CONNECT_SECONDS))
        except (OSError, ValueError) as err:
            raise ConfigError(
                "no scheduler answers",
                need="the address of one that runs",
                next="Start one with `dask scheduler`, or check the address.",
                path=where,
            ) from err
        _wait_for_workers(client, where)
        _check_versions(client)
        with _translate_errors(where):
            yield _OnCluster(client)


@contextmanager
def _translate_errors(where: str) -> Iterator[None]:
    """Turn the errors of a cluster that cannot go on into a `DataError`."""
    from distributed import CancelledError, KilledWorker
    from distributed.comm import CommClosedError

    try:
        yield
    except ModuleNotFoundError as err:
        raise DataError(
            "a worker has no sublens", need=f"sublens {version('sublens')}", next="Install it there.", path=where
        ) from err
    except KilledWorker as err:
        raise DataError(
            f"{err.last_worker.address} and others ended while they were at work",
            need="enough memory for a slice on each worker",
            next=f"Give them more, {AGAIN}",
            path=where,
        ) from err
    except (CancelledError, CommClosedError) as err:
        raise DataError(
            "the scheduler is gone", need="it until the end", next=f"Start it again, {AGAIN}", path=where
        ) from err


@contextmanager
def _scheduler(where: str) -> Iterator[Any]:
    """The cluster or address that `distributed.Client` connects to."""
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
        raise ConfigError(
            "is no cluster", need=WHERE, next="Give one of these to --cluster.", path=f"--cluster {where}"
        )


def _local(n: int | None) -> Any:
    """A cluster of this machine; begun anew where one of its workers is lost before it has started."""
    from distributed import LocalCluster

    for _ in range(STARTS):
        try:
            return LocalCluster(
                n_workers=n,
                threads_per_worker=1,
                dashboard_address="127.0.0.1:0",  # None would be port 8787 on every interface
                scheduler_kwargs={"dashboard": False},
                silence_logs=50,
            )
        except RuntimeError as err:
            lost = err
    raise DataError(
        f"workers of this machine ended as they started, {STARTS} times",
        need="memory for all of them",
        next="Use fewer.",
        path=f"local:{n}" if n else "local",
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
            f"cannot be used ({err})",
            need="jobs and the settings of dask_jobqueue.SLURMCluster, such as queue, cores, memory and walltime",
            next="Correct it.",
            path=path,
        ) from err
    if not shutil.which("sbatch"):
        raise ConfigError(
            "there is no sbatch here",
            need="SLURM's commands",
            next="Run the command where jobs are submitted from.",
            path=f"slurm:{path}",
        )
    with cluster:
        cluster.scale(jobs=n_jobs)
        yield cluster


def _wait_for_workers(client: "Client", where: str) -> None:
    try:
        client.wait_for_workers(1, timeout=None if where.startswith("slurm") else WORKER_SECONDS)
    except TimeoutError as err:
        raise ConfigError(
            "has no workers", need="at least one", next=f"Start some with `dask worker {where}`.", path=where
        ) from err


def _check_versions(client: "Client") -> None:
    """Raise `DataError` where a worker has another version; workers that come later check their own."""
    ours = version("sublens")
    for worker, theirs in client.run(_version, on_error="return").items():
        if isinstance(theirs, ImportError):
            raise _wrong_version(worker, "has no sublens", ours)
        if isinstance(theirs, str) and theirs != ours:  # else it was lost meanwhile
            raise _wrong_version(worker, f"has sublens {theirs}", ours)


def _version() -> str:
    from importlib.metadata import version

    return version("sublens")


def _wrong_version(worker: str, what: str, ours: str) -> DataError:
    return DataError(what, need=ours, next="Install that there, and start it again.", path=worker)


class _OnCluster(Mapper):
    def __init__(self, client: "Client") -> None:
        self._client, self._n_workers, self._n_submitted, self._n_done = client, 1, 0, 0

    def __call__(self, work: Callable[[A], R], slices: Iterable[A]) -> Iterator[R]:
        for result in in_order(self._submit(work, slices), lambda: AHEAD * self._n_workers):
            self._n_done += 1
            yield result

    def status(self) -> str:
        n_pending = self._n_submitted - self._n_done
        return f"{self._n_done} slices done, {n_pending} under way on {self._n_workers} workers"

    def _submit(self, work: Callable[[A], R], slices: Iterable[A]) -> Iterator["Future"]:
        ours = version("sublens")
        for task in slices:
            self._n_submitted += 1
            self._n_workers = max(1, len(self._client.scheduler_info(n_workers=-1)["workers"]))  # they come and go
            yield self._client.submit(_run_on_worker, work, task, ours, key=_task_key(work, task), pure=True)


TASK_LOCK = Lock()
"""One slice at a time in a worker that has several threads, which share what it has loaded."""


def _run_on_worker(work: Callable[[A], R], task: A, ours: str) -> R:
    """The result of a slice; errors name the worker as well."""
    from distributed import get_worker

    address = get_worker().address
    if _version() != ours:
        raise _wrong_version(address, f"has sublens {_version()}", ours)
    try:
        with TASK_LOCK:
            return work(task)
    except SublensError as err:
        raise err.about(f"{address}: {err.path}" if err.path else address) from err
    except OSError as err:
        raise DataError(str(err), need="a disk that can be used", next=f"Mend it there, {AGAIN}", path=address) from err


def _task_key(work: Callable[..., Any], task: object) -> str:
    """Name of a slice after its content, so that the same one is computed once."""
    return f"{work.__name__}-{sha256(repr(task).encode()).hexdigest()[:32]}"
