"""Images become features on the workers of a Dask cluster.

Images are handed out in shards. A worker keeps the networks of the latest call, and computes a shard as a single
machine would; what it made stays there until the caller takes it, one shard at a time, and stores it. No more shards
are handed out than keep the workers busy, so that neither the caller's memory nor the workers' grows with the number of
images. When a worker dies, Dask gives its shards to others.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from deepfeat import __version__
from deepfeat.backbones.network import model_digest
from deepfeat.cluster import ask_worker, check_client, check_version, clear_failures, watch_workers
from deepfeat.computation import CHUNK, Computed, Job, LoadedBackbone, Plan, Wanted, compute_chunks
from deepfeat.errors import BackboneError, DataWarning, ImageError
from deepfeat.images import LoadedImage, read_bytes, stamp_file
from deepfeat.runtimes.selection import resolve

if TYPE_CHECKING:
    from distributed import Client

#: Seconds that a shard is to take a worker: long beside handing it out, short to be lost.
SHARD_SECONDS = 4.0

#: Images and bytes of features in a shard at the most.
SHARD, SHARD_BYTES = 4096, 2**24

#: Shards that are handed out for each thread of the workers: one at work, and one to go on with.
_PER_THREAD = 2


@dataclass(frozen=True)
class Parcel:
    """A plan on its way to the workers.

    Attributes
    ----------
    version : str
        Of deepfeat.
    jobs : tuple of bytes
        Each job on its own, since user's code in it may not load everywhere.
    names : tuple of str
        Of their backbones.
    known : list of frozenset of bytes
    has_space : list of bool
    """

    version: str
    jobs: tuple[bytes, ...]
    names: tuple[str, ...]
    known: list[frozenset[bytes]]
    has_space: list[bool]


@dataclass(frozen=True)
class Shard:
    """Images for one task; an object of its own, since Dask would look for tasks in every item of a list."""

    items: list[Wanted]


class ComputedShard(NamedTuple):
    """What a worker made of a shard, in chunks and so many seconds, what it has to say of that, and its address."""

    parts: list[Computed]
    seconds: float
    warnings: tuple[str, ...]
    worker: str


def resolve_on_worker(client: Client, runtime: str, precision: str) -> tuple[str, str]:
    """Decide what "auto" means on the first worker that answers; see `deepfeat.runtimes.selection.resolve`.

    Raises
    ------
    UsageError
        If the client is none, or for a runtime or precision that is not allowed there.
    ClusterError
        If the workers do not have deepfeat, or are lost.
    """
    check_client(client)
    with _clear_failures(client):
        return ask_worker(client, resolve, runtime, precision)


def compute_shards(client: Client, plan: Plan, wanted: Iterable[Wanted]) -> Generator[Computed]:
    """Have workers compute images, and yield what comes as it comes.

    Parameters
    ----------
    client : distributed.Client
    plan : Plan
    wanted : iterable of Wanted
        Taken as shards are handed out.

    Raises
    ------
    BackboneError
        If a worker cannot load a backbone, or would compute other features than the caller means.
    ClusterError
        If the connection is lost, or if a shard ends one worker after the other.

    Warns
    -----
    DataWarning
        For what workers warn of, and for files that they do not find, or that are others than here.
    """
    from distributed import as_completed

    shards, said = _Shards(wanted, plan.chunk_size), set[str]()
    if shards.are_none():
        return
    waiting, handed = as_completed(loop=client.loop), dict[Any, Shard]()
    try:
        with _clear_failures(client, lambda: _name_killers(handed)), watch_workers(client):
            parcel = _send(client, _pack(plan))
            while True:
                for shard in shards.take(_most_handed_out(client) - len(handed)):
                    future = client.submit(_compute_shard, parcel, shard, pure=False)
                    handed[future] = shard
                    waiting.add(future)
                if not handed:
                    return
                future = next(waiting)
                done = future.result()
                shard = handed.pop(future)
                del future  # the worker need not keep it any more
                shards.learn(done)
                parts, doubts = _check_files(done, shard)
                for warning in {*done.warnings, *doubts} - said:
                    warnings.warn(warning, DataWarning, stacklevel=2)
                    said.add(warning)
                yield from parts
    finally:
        if handed:
            with contextlib.suppress(Exception):  # the connection may be what was lost
                client.cancel(list(handed))


def _pack(plan: Plan) -> Parcel:
    import cloudpickle

    try:
        jobs = tuple(cloudpickle.dumps(_with_absolute_weights(job)) for job in plan.jobs)
    # Whatever a user's objects raise.
    except Exception as error:
        msg = f"a backbone cannot be sent to the workers: {error}"
        raise BackboneError(msg) from error
    names = tuple(job.backbone.name for job in plan.jobs)
    return Parcel(__version__, jobs, names, [frozenset(known) for known in plan.known], plan.has_space)


def _with_absolute_weights(job: Job) -> Job:
    weights = job.backbone.weights
    if weights in (None, "imagenet"):
        return job
    return replace(job, backbone=replace(job.backbone, weights=os.path.abspath(str(weights))))


def _send(client: Client, parcel: Parcel) -> Any:
    with warnings.catch_warnings():
        # A million digests are large, and sent once.
        warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
        return client.submit(_receive, parcel, pure=False)


def _most_handed_out(client: Client) -> int:
    """The workers' threads are counted again and again, since clusters grow and shrink."""
    threads: dict[str, int] = client.nthreads()
    return max(1, _PER_THREAD * sum(threads.values()))


class _Shards:
    """Images cut into shards: small ones at first.

    Paths become absolute, since workers have working folders of their own.
    """

    def __init__(self, wanted: Iterable[Wanted], chunk_size: int) -> None:
        self._wanted: Iterator[Wanted] = iter(wanted)
        self._chunk_size, self._size = chunk_size, min(CHUNK, SHARD)

    def are_none(self) -> bool:
        """Whether there is nothing to hand out."""
        first = list(itertools.islice(self._wanted, 1))
        self._wanted = itertools.chain(first, self._wanted)
        return not first

    def take(self, count: int) -> Iterator[Shard]:
        """Yield up to so many shards."""
        for _ in range(count):
            items = itertools.islice(self._wanted, self._size)
            shard = Shard([item._replace(path=os.path.abspath(item.path)) for item in items])
            if not shard.items:
                return
            yield shard

    def learn(self, done: ComputedShard) -> None:
        """Choose the size by the time and the bytes of features that an image takes, in whole batches."""
        outputs = [output for part in done.parts for output in part.outputs if output]
        n_bytes = sum(layer.nbytes for output in outputs for layer in output.layers)
        if n_bytes:
            n_images = sum(len(part.images) for part in done.parts)
            # A shard of images that need no network takes no time; those after it may need one.
            by_time = min(2 * self._size, int(SHARD_SECONDS * n_images / done.seconds))
            most = min(SHARD, max(by_time, self._chunk_size), SHARD_BYTES * n_images // n_bytes)
            self._size = max(1, most - most % self._chunk_size or most)


def _clear_failures(
    client: Client, task: str | Callable[[], str] = "shard of images"
) -> contextlib.AbstractContextManager[None]:
    return clear_failures(client, task, "what is stored stays, and the same call goes on")


def _name_killers(handed: Mapping[Any, Shard]) -> str:
    """Name the shards that ended workers: Dask blames each one that was on these workers, at work or waiting."""
    from distributed import KilledWorker

    ended = [
        shard
        for future, shard in handed.items()
        if future.status == "error" and isinstance(future.exception(), KilledWorker)
    ]
    spans = [f"{shard.items[0].path} to {shard.items[-1].path}" for shard in ended]
    return f"shard of images ({', or '.join(spans)})"


_NEEDED = "they need the images under the same paths, on a file system that all machines share (see store.failures)"
_UNSEEN = f"workers do not find files that are here: {_NEEDED}"
_OTHERS = f"workers find other files than are here: {_NEEDED}"


def _check_files(done: ComputedShard, shard: Shard) -> tuple[list[Computed], set[str]]:
    """Hold the files that a worker saw against those here, which are meant, and say what to warn of."""
    paths = {item.row: item.path for item in shard.items}
    parts, doubts = list[Computed](), set[str]()
    for part in done.parts:
        checked = [_check_file(image, paths[image.row], done.worker) for image in part.images]
        parts.append(replace(part, images=[image for image, _ in checked]))
        doubts.update(doubt for _, doubt in checked if doubt)
    return parts, doubts


def _check_file(image: LoadedImage, path: str, worker: str) -> tuple[LoadedImage, str | None]:
    """Make a failure of an image that a worker did not find, or whose file is another one here; stamps become ours.

    Where this process sees no file, that of the worker is the one that is meant.
    """
    here = stamp_file(path)
    if image.stamp is None:
        named = replace(image, reason=f"{image.reason} on {worker}") if image.reason else image
        return named, _UNSEEN if image.reason and here else None
    if here is None or here == image.stamp:
        return image, None
    if here.size != image.stamp.size:
        reason = f"another file ({image.stamp.size} bytes, here {here.size}) on {worker}"
    else:
        # Copies on the workers' own disks are welcome; they are read here once, since our stamp is stored then.
        digest = _digest(path)
        if digest is None or image.digest is None:
            return image, None
        if digest == image.digest:
            return replace(image, stamp=here), None
        reason = f"other contents than here on {worker}"
    return replace(image, stamp=None, digest=None, reason=reason), _OTHERS


def _digest(path: str) -> bytes | None:
    try:
        return hashlib.sha256(read_bytes(path)).digest()
    except ImageError:
        return None


# What follows runs on the workers


def _receive(parcel: Parcel) -> Parcel:
    """Keep a plan on one worker, from which each other one fetches it once; if it is lost, Dask calls this again."""
    return parcel


def _compute_shard(parcel: Parcel, shard: Shard) -> ComputedShard:
    """Compute a shard; threads of a worker do so side by side and share the networks."""
    from distributed import get_worker

    worker = get_worker()
    backbones, said = _open(parcel, worker.state.nthreads, worker.address)
    plan = Plan([backbone.job for backbone in backbones], parcel.known, parcel.has_space)
    started = time.perf_counter()
    parts = list(compute_chunks(plan, shard.items, backbones, n_threads=1))
    return ComputedShard(parts, time.perf_counter() - started, said, worker.address)


_lock = threading.Lock()

#: The networks of the latest plan in this process, by their jobs, and what was warned of when they were opened.
_opened: dict[bytes, tuple[LoadedBackbone, tuple[str, ...]]] = {}


def _open(parcel: Parcel, n_threads: int, address: str) -> tuple[list[LoadedBackbone], tuple[str, ...]]:
    """Return the networks of a plan, each opened once in a process, and what was warned of."""
    check_version(parcel.version, address)
    with _lock:
        for job in set(_opened) - set(parcel.jobs):
            del _opened[job]  # pragma: no cover - on workers
        for job, name in zip(parcel.jobs, parcel.names, strict=True):
            if job not in _opened:
                _opened[job] = _load(job, name, n_threads, address)
        found = [_opened[job] for job in parcel.jobs]
    return [backbone for backbone, _ in found], tuple(text for _, said in found for text in said)


def _load(job: bytes, name: str, n_threads: int, address: str) -> tuple[LoadedBackbone, tuple[str, ...]]:
    if "tensorflow" not in sys.modules:  # pragma: no cover - on workers; TensorFlow reads this once
        os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(n_threads))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DataWarning)
        backbone = LoadedBackbone(_unpickle(job, name, address), n_threads=n_threads)
        _check_keys(backbone, address)
        _ = backbone.opened
    for other in caught:
        if not issubclass(other.category, DataWarning):  # pragma: no cover - on workers
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    return backbone, tuple(str(w.message) for w in caught if issubclass(w.category, DataWarning))


def _unpickle(job: bytes, name: str, address: str) -> Job:
    import cloudpickle

    try:
        loaded: Job = cloudpickle.loads(job)
    # Loading runs the import of a user's modules.
    except Exception as error:  # pragma: no cover - on workers
        msg = (
            f"worker {address} cannot load {name}: {error}. Install the module that it comes from on the workers, or "
            "send it along with cloudpickle.register_pickle_by_value(module)"
        )
        raise BackboneError(msg) from error
    return loaded


def _check_keys(backbone: LoadedBackbone, address: str) -> None:
    """Refuse a network with other weights, or other ways to its features, than the caller's."""
    job = backbone.job
    try:
        digest = job.backbone.weights_digest() or model_digest(backbone.build())
    except OSError as error:  # pragma: no cover - on workers
        msg = (
            f"worker {address} cannot read the weights of {job.backbone.name} ({error}): it needs the file under the "
            "same path, on a file system that all machines share"
        )
        raise BackboneError(msg) from error
    if replace(job, weights_digest=digest).keys != job.keys:  # pragma: no cover - on workers
        msg = (
            f"worker {address} would compute other features of {job.backbone.name}: its weights are {digest[:23]}…, "
            f"here they are {job.weights_digest[:23]}…; give it the same file, and code that draws weights a seed"
        )
        raise BackboneError(msg)
