"""A Dask cluster as the caller sees it: the connection, and what goes wrong with it in one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from deepfeat.errors import ClusterError, UsageError

if TYPE_CHECKING:
    from distributed import Client


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


@contextlib.contextmanager
def clear_failures(client: Client, task: str, outlook: str) -> Iterator[None]:
    """Say in one sentence what happened to the cluster.

    Parameters
    ----------
    client : distributed.Client
    task : str
        What a worker was doing.
    outlook : str
        What stays, and how to go on.

    Raises
    ------
    ClusterError
        If a task ended one worker after the other, or the connection is lost.
    """
    from distributed import CancelledError, KilledWorker

    try:
        yield
    except KilledWorker as error:  # pragma: no cover - by `make test-cluster`
        msg = (
            f"the same {task} ended {error.allowed_failures + 1} worker(s), the last one {error.last_worker.address}, "
            f"mostly for lack of memory: see that worker's log, and give each worker more; {outlook}"
        )
        raise ClusterError(msg) from error
    except (CancelledError, AttributeError, OSError, RuntimeError) as error:
        # A client that lost its scheduler raises whatever it stumbles over.
        if client.status == "running" and not isinstance(error, CancelledError):
            raise
        msg = f"the connection to the cluster was lost, or the work was cancelled there; {outlook}"
        raise ClusterError(msg) from error
