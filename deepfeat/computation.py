"""Images become features: decoding and networks side by side, in one process."""

from __future__ import annotations

import importlib
import itertools
import logging
import os
import platform
import sys
import threading
import time
from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import PIL

from deepfeat import __version__
from deepfeat.backbones.registry import Backbone
from deepfeat.images import LoadedImage, Preparation, load_image
from deepfeat.resizing import resizer
from deepfeat.runtimes.selection import Runtime, open_runtime
from deepfeat.runtimes.startup import paused_collection
from deepfeat.store import block_key

if TYPE_CHECKING:
    import keras

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Images that are handed on and stored together where no batch size is given: enough for any CPU, and few enough
#: to be seen working; and what a GPU is given, whose best batch may be as large.
CHUNK, GPU_CHUNK = 32, 256

#: Chunks that are decoded, or being decoded, while another one is with the networks.
_AHEAD = 2

#: Chunks that are given to the networks at a time: the next one is at hand before the last images of one are through.
_AT_NETWORKS = 2


@dataclass(frozen=True)
class Job:
    """A backbone and how it is to be run: all that a process needs to compute its features.

    Attributes
    ----------
    backbone : Backbone
    weights_digest : str
    views : tuple of str
    runtime : str
        As the user gave it.
    precision : {"float32", "bfloat16"}
    dtype : str
        In which features are stored.
    batch_size : int or "auto"
    """

    backbone: Backbone
    weights_digest: str
    views: tuple[str, ...]
    runtime: str
    precision: str
    dtype: str
    batch_size: int | str

    @property
    def specs(self) -> list[dict[str, Any]]:
        """What decides the numbers of each block, view by view and layer by layer."""
        kind = self.weights_digest, self.dtype, self.precision
        return [spec for view in self.views for spec in self.backbone.specs(*kind, view)]

    @property
    def keys(self) -> list[str]:
        """Keys of the blocks, in the order of ``specs``."""
        return [block_key(spec) for spec in self.specs]

    @property
    def preparations(self) -> list[Preparation]:
        """How pictures become the network's input, one for each view."""
        return [Preparation(self.backbone.input_shape[:2], self.backbone.resize, view) for view in self.views]


class Wanted(NamedTuple):
    """An image that some jobs ask for.

    Attributes
    ----------
    row : int
    path : str
    kept : dict of int to bytes or None
        For each job, by its number, the digest of the content that its features in this row are of.
    """

    row: int
    path: str
    kept: dict[int, bytes | None]


class Plan(NamedTuple):
    """What is to be computed, and what need not be.

    Attributes
    ----------
    jobs : list of Job
    known : sequence of collection of bytes
        For each job the digests of contents whose features are in other rows.
    has_space : list of bool
        For each job whether its blocks have space for every image; new space needs the network, for its shapes.
    usual_chunk : int
        Images that go through the networks together where no batch size is given.
    """

    jobs: list[Job]
    known: Sequence[Collection[bytes]]
    has_space: list[bool]
    usual_chunk: int = CHUNK

    @property
    def chunk_size(self) -> int:
        """Images that go through the networks together."""
        return max(self.usual_chunk if job.batch_size == "auto" else int(job.batch_size) for job in self.jobs)

    def needs_network(self, number: int, image: LoadedImage, item: Wanted) -> bool:
        """Whether a job has to compute an image: it can be read, and its content is not known."""
        if number not in item.kept or image.reason:
            return False
        return image.digest != item.kept[number] and image.digest not in self.known[number]


class Output(NamedTuple):
    """What a network made of some images: the features of each layer, of all images of one view after the other."""

    rows: list[int]
    layers: list[np.ndarray]

    @property
    def by_view(self) -> list[np.ndarray]:
        """Features of shape (n, …) of each block, view by view and layer by layer."""
        n = len(self.rows)
        return [layer[start : start + n] for start in range(0, len(self.layers[0]), n) for layer in self.layers]


class Opened(NamedTuple):
    """What is known of a network when it is ready: the shape of one row of each layer, and the versions behind it."""

    shapes: list[tuple[int, ...]]
    versions: dict[str, str]


@dataclass(frozen=True)
class Computed:
    """What came of a chunk of images.

    Attributes
    ----------
    images : list of LoadedImage
        Without their pixels.
    outputs : list of Output or None
        For each job; None if none of the images needed its network.
    opened : list of Opened or None
        For each job; None if its network was not needed.
    """

    images: list[LoadedImage]
    outputs: list[Output | None]
    opened: list[Opened | None]


class LoadedBackbone:
    """A job's backbone, made ready to run when it is first needed, by whichever thread that is.

    Parameters
    ----------
    job : Job
    model : keras.Model, optional
        Where it was built already.
    n_threads : int, optional
        Of the runtime; as many as there are cores if None.
    """

    def __init__(self, job: Job, model: keras.Model | None = None, n_threads: int | None = None) -> None:
        self.job, self._model, self._n_threads = job, model, n_threads
        self._lock = threading.Lock()
        self.spans: list[tuple[float, float]] = []

    def build(self) -> keras.Model:
        """Return the Keras network, which is built once."""
        self._model = self._model or build_network(self.job.backbone)
        return self._model

    @cached_property
    def _runtime(self) -> Runtime:
        return open_runtime(
            self.job.backbone,
            self.job.weights_digest,
            self.build,
            runtime=self.job.runtime,
            precision=self.job.precision,
            batch_size=self.job.batch_size,
            n_threads=self._n_threads,
        )

    @cached_property
    def opened(self) -> Opened:
        """Make the network ready, and describe it."""
        runtime = self._ready()
        return Opened(runtime.shapes, versions(runtime.engine))

    def __call__(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Compute the features of images of shape (n, height, width, 3), uint8; one array for each layer."""
        runtime, start = self._ready(), time.perf_counter()
        features = runtime(pixels)
        self.spans.append((start, time.perf_counter()))
        return features

    def _ready(self) -> Runtime:
        with self._lock:
            return self._runtime


def compute_chunks(
    plan: Plan, wanted: Iterable[Wanted], backbones: Sequence[LoadedBackbone], n_threads: int
) -> Generator[Computed]:
    """Decode images and run networks over them, side by side and in order.

    Parameters
    ----------
    plan : Plan
    wanted : iterable of Wanted
    backbones : sequence of LoadedBackbone
        One for each job.
    n_threads : int
        Of decoding; Pillow decodes and resizes outside Python's lock.
    """
    with (
        ThreadPoolExecutor(n_threads, "deepfeat decode") as decoding,
        ThreadPoolExecutor(_AT_NETWORKS, "deepfeat network") as network,
    ):
        waiting: deque[Future[Computed]] = deque()
        try:
            for chunk in batched(wanted, plan.chunk_size):
                loading = [decoding.submit(load_image, i.row, i.path, _preparations(plan, i)) for i in chunk]
                waiting.append(network.submit(_compute, plan, backbones, chunk, loading))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            # What is not being decoded yet would be waited for, for minutes where images are large.
            decoding.shutdown(wait=False, cancel_futures=True)


def _preparations(plan: Plan, item: Wanted) -> set[Preparation]:
    return {preparation for number in item.kept for preparation in plan.jobs[number].preparations}


def _compute(
    plan: Plan, backbones: Sequence[LoadedBackbone], chunk: Sequence[Wanted], loading: Sequence[Future[LoadedImage]]
) -> Computed:
    images = [future.result() for future in loading]
    outputs, opened = [], []
    for number, backbone in enumerate(backbones):
        pairs = zip(images, chunk, strict=True)
        fresh = [image for image, item in pairs if plan.needs_network(number, image, item)]
        outputs.append(_run(backbone, fresh) if fresh else None)
        is_needed = fresh or not (plan.has_space[number] or all(number not in item.kept for item in chunk))
        opened.append(backbone.opened if is_needed else None)
    return Computed([replace(image, pixels={}) for image in images], outputs, opened)


def _run(backbone: LoadedBackbone, images: Sequence[LoadedImage]) -> Output:
    pixels = np.stack([image.pixels[preparation] for preparation in backbone.job.preparations for image in images])
    return Output([image.row for image in images], backbone(pixels))


def log_busy(backbones: Iterable[LoadedBackbone]) -> None:
    """Log in which part of the time from the first batch to the last one networks were busy."""
    spans = sorted(span for backbone in backbones for span in backbone.spans)
    if spans:
        busy, end = 0.0, spans[0][0]
        for start, stop in spans:
            busy, end = busy + max(0.0, stop - max(start, end)), max(end, stop)
        whole = end - spans[0][0]
        logger.info("networks were busy for %.0f %% of %.1f s", 100 * busy / whole, whole)


def build_network(backbone: Backbone) -> keras.Model:
    """Build a network while nothing else slows it."""
    with paused_collection():
        return backbone.build()


def versions(engine: str) -> dict[str, str]:
    """Versions of what computes features, for the record of a block.

    Parameters
    ----------
    engine : str
        Name of the package that runs the network: "tensorflow", "jax", "torch" or "openvino".
    """
    modules = {"numpy": np, "pillow": PIL, engine: importlib.import_module(engine)}
    found = {name: str(module.__version__) for name, module in modules.items()}
    # Keras itself would start its backend.
    ours = {"python": platform.python_version(), "deepfeat": __version__, "keras": metadata.version("keras")}
    return {**ours, **found, "resizer": resizer()}


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Cut into lists of a size; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def count_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
