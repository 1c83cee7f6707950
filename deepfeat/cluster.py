"""A Dask cluster as the caller sees it: the connection, and what goes wrong with it in one sentence."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from deepfeat import __version__
from deepfeat.errors import ClusterError, UsageError

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds between two looks for workers.
_LOOK = 5.0

_ALONE = "the cluster has no workers: waiting for one"


def connect(address: str) -> Client:
    """Connect to the scheduler of a cluster.

    Raises
    ------
    UsageError
        If the package distributed is not installed.
    ClusterError
        If no scheduler answers.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise UsageError("a cluster needs the package distributed: run `pip install 'deepfeat[dask]'`") from error
    try:
        return Client(address)
    except (OSError, ValueError) as error:
        msg = f"no Dask scheduler answers at {address!r}: {error}"
        raise ClusterError(msg) from error


def check_client(client: Any) -> None:
    """Refuse what is not a client of the kind that waits for results."""
    if not (hasattr(client, "submit") and hasattr(client, "nthreads")) or getattr(client, "asynchronous", False):
        msg = f"client is {client!r}: pass a distributed.Client that is not asynchronous"
        raise UsageError(msg)


def check_version(version: str, address: str) -> None:
    """Refuse on a worker what a caller with another deepfeat asks for.

    Parameters
    ----------
    version : str
        Of the caller.
    address : str
        Of the worker.

    Raises
    ------
    ClusterError
        If the versions differ.
    """
    if version != __version__:
        msg = f"worker {address} has deepfeat {__version__} and the caller {version}: install one version everywhere"
        raise ClusterError(msg)


def ask_worker(client: Client, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function of deepfeat's on the first worker that answers; log where there is none yet.

    Raises
    ------
    ClusterError
        If the worker does not have deepfeat.
    """
    if not client.nthreads():
        logger.warning(_ALONE)
    try:
        # A task and no `wait_for_workers`: clusters that adapt start workers where there are tasks.
        answer: T = client.submit(function, *arguments, pure=False).result()
    except ImportError as error:
        msg = f"the workers cannot import deepfeat ({error}): install deepfeat {__version__} there"
        raise ClusterError(msg) from error
    return answer


@contextlib.contextmanager
def watch_workers(client: Client) -> Iterator[None]:
    """Log, while workers are waited for, where all of them have been gone for a while; the wait goes on.

    Parameters
    ----------
    client : distributed.Client
    """
    is_over = threading.Event()
    # A thread, since results are waited for in several places: what is done is done again if its worker goes.
    threading.Thread(target=_look_for_workers, args=(client, is_over), name="deepfeat workers", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def _look_for_workers(client: Client, is_over: threading.Event) -> None:
    times_alone = 0
    with contextlib.suppress(Exception):  # a lost connection is told by whoever waits
        while not is_over.wait(_LOOK):
            times_alone = 0 if client.nthreads() else times_alone + 1
            # Not the first time: a worker that died starts anew within seconds.
            if times_alone == 2:
                logger.warning(_ALONE)


@contextlib.contextmanager
def clear_failures(
    client: Client, task: str | Callable[[], str], outlook: str, cancelled: str | None = None
) -> Iterator[None]:
    """Say in one sentence what happened to the cluster.

    Parameters
    ----------
    client : distributed.Client
    task : str or callable
        What a worker was doing, or a function that tells when it is asked.
    outlook : str
        What stays, and how to go on.
    cancelled : str, optional
        What it means that work was cancelled although the connection stands, and what to do.

    Raises
    ------
    ClusterError
        If a task ended one worker after the other, the work was cancelled, or the connection is lost.
    """
    from distributed import CancelledError, KilledWorker

    try:
        yield
    except KilledWorker as error:  # pragma: no cover - by `make test-cluster`
        what = task if isinstance(task, str) else task()
        msg = (
            f"the same {what} ended {error.allowed_failures + 1} worker(s), the last one {error.last_worker.address}, "
            f"mostly for lack of memory: see that worker's log, and give each worker more; {outlook}"
        )
        raise ClusterError(msg) from error
    except (CancelledError, AttributeError, OSError, RuntimeError) as error:
        # A client that lost its scheduler raises whatever it stumbles over.
        if client.status == "running" and not isinstance(error, CancelledError):
            raise
        is_lost = cancelled is None or client.status != "running"
        lost = "the connection to the cluster was lost, or the work was cancelled there"
        msg = f"{lost if is_lost else cancelled}; {outlook}"
        raise ClusterError(msg) from error
