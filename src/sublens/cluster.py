"""The same slices on a Dask cluster: of this machine, one that runs already, or one of SLURM jobs.

Who can reach a Dask scheduler can have it run anything, so its network must be trusted.
"""

import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sublens.errors import ConfigError, DataError
from sublens.mapping import AHEAD, Mapper, in_order

if TYPE_CHECKING:
    from distributed import Client

A = TypeVar("A")
R = TypeVar("R")

CONNECT_SECONDS = 10
WORKER_SECONDS = 60
"""That the first worker may take to turn up at a scheduler that runs already; SLURM may let one wait for hours."""
SETTINGS = {
    "distributed.scheduler.allowed-failures": 100,  # workers that may be lost with a slice before it is blamed
    "distributed.nanny.pre-spawn-environ": dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"
    ),
}
"""Of Dask. By itself it has workers give memory back at once, and rendering takes twice as long."""


@contextmanager
def opened(where: str) -> Iterator[Mapper]:
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
        yield _mapper(client)


@contextmanager
def _scheduler(where: str) -> Iterator[Any]:
    """What `distributed.Client` is to connect to."""
    kind, _, rest = where.partition(":")
    if kind == "local" and (not rest or (rest.isdecimal() and int(rest) > 0)):
        from distributed import LocalCluster

        n = int(rest) if rest else None
        with LocalCluster(n_workers=n, threads_per_worker=1, dashboard_address=None, silence_logs=50) as local:
            yield local
    elif kind == "slurm" and rest:
        with _slurm(Path(rest)) as jobs:
            yield jobs
    elif kind in ("tcp", "tls"):
        yield where
    else:
        raise ConfigError(f"--cluster {where}: needs local, local:N, tcp://HOST:PORT or slurm:FILE.toml.")


@contextmanager
def _slurm(path: Path) -> Iterator[Any]:
    from dask_jobqueue import SLURMCluster

    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
        n_jobs = int(settings.pop("jobs", 1))
        cluster = SLURMCluster(**settings)
    except (OSError, ValueError, TypeError) as err:
        raise ConfigError(
            f"{path}: cannot be used ({err}); needs the settings of dask_jobqueue.SLURMCluster, such as queue, cores, "
            "memory and walltime, and jobs. Correct it."
        ) from err
    with cluster:
        cluster.scale(jobs=n_jobs)
        yield cluster


def _wait_for_workers(client: "Client", where: str) -> None:
    try:
        client.wait_for_workers(1, timeout=None if where.startswith("slurm") else WORKER_SECONDS)
    except TimeoutError as err:
        raise ConfigError(f"{where}: has no workers. Start some with `dask worker {where}`.") from err


def _check_versions(client: "Client") -> None:
    """Raise `DataError` where a worker would compute something else."""
    told = client.run(_version, on_error="return")
    for worker, theirs in told.items():
        if theirs != version("sublens"):
            found = "has no sublens" if isinstance(theirs, Exception) else f"has sublens {theirs}"
            raise DataError(f"{worker}: {found}; needs {version('sublens')}. Install that there, and start it again.")


def _version() -> str:
    from importlib.metadata import version

    return version("sublens")


def _mapper(client: "Client") -> Mapper:
    def mapped(work: Callable[[A], R], slices: Iterable[A]) -> Iterator[R]:
        n = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
        asked = (client.submit(work, one, key=_name(work, one), pure=True) for one in slices)
        yield from in_order(asked, AHEAD * n)

    return mapped


def _name(work: Callable[..., Any], one: object) -> str:
    """Of a slice, after what it holds: asked for twice, it is computed once."""
    return f"{work.__name__}-{sha256(repr(one).encode()).hexdigest()[:32]}"
