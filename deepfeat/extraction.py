"""Stage 1: run backbones over images, row by missing row, into a feature store."""

from __future__ import annotations

import importlib
import itertools
import logging
import os
import platform
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import PIL

from deepfeat import __version__
from deepfeat.backbones.network import check_choice, model_digest
from deepfeat.backbones.registry import Backbone, as_backbones
from deepfeat.datasets import as_table
from deepfeat.errors import DataWarning, ImageError, UsageError
from deepfeat.images import VIEWS, FileStamp, LoadedImage, Preparation, stamp_file, stream_images
from deepfeat.interruption import interruptible
from deepfeat.progress import progress_bar
from deepfeat.runtimes.selection import Runtime, open_runtime, resolve
from deepfeat.runtimes.startup import paused_collection
from deepfeat.store import (
    DONE,
    FAILED,
    RECORD,
    Block,
    FeatureStore,
    StoreWriter,
    block_key,
    open_features,
)
from deepfeat.store.layout import DTYPES

if TYPE_CHECKING:
    import keras

logger = logging.getLogger(__name__)

#: Images that are handed on and stored together where no batch size is given.
CHUNK = 32


def extract(
    images: Any,
    backbones: str | Backbone | Sequence[str | Backbone],
    cache: str | os.PathLike[str] = "features.h5",
    *,
    batch_size: int | str = "auto",
    runtime: str = "auto",
    precision: str = "auto",
    views: str | Sequence[str] | None = None,
    dtype: str = "float32",
    on_error: str = "record",
    progress: bool = True,
) -> FeatureStore:
    """Compute the features that are not in the cache yet.

    A row is computed if it is missing, if it failed before, or if its file has
    changed; a file counts as changed when its size or modification time differ
    from those stored and its content does too. An image whose content the
    block has seen already, under whatever name, is copied and not computed.

    Parameters
    ----------
    images : pandas.DataFrame, path, or sequence of paths
        A table (`read_folder`, `read_csv`, `read_isic`), a folder, or image files.
    backbones : str, Backbone, or a list of either
        Each image is decoded once for all of those that want the same input size.
    cache : path
        The feature store, made if it does not exist.
    batch_size : int or "auto"
        Images run through the network at once; it does not change the features
        beyond rounding. "auto" is found by measurement, and halved when memory is exhausted.
    runtime : {"auto", "keras", "openvino"}
        What runs the networks. "auto" takes a GPU that Keras sees, else OpenVINO where it is
        installed, else Keras; the log says which. It does not change the features beyond rounding.
    precision : {"auto", "float32", "bfloat16"}
        In which networks compute; it is part of a block's key, so that features of two precisions
        never mix. "auto" is float32, and bfloat16 on a GPU.
    views : str or list of str, optional
        Of `deepfeat.images.VIEWS`, for instance ["original", "hflip"]: each view of an image has
        features of its own, from one decoding; see ``views`` of `fit_svm`. The image itself if None.
    dtype : {"float32", "float16"}
        Type in which features are stored; float16 takes half the space and keeps
        three digits, see docs/results/float16.md for its effect.
    on_error : {"record", "raise"}
        Whether an image that cannot be read is recorded as failed with the
        reason, or ends the work; what is stored so far stays.
    progress : bool
        Whether to show a progress bar on standard error.

    Returns
    -------
    FeatureStore
        Opened for reading.

    Raises
    ------
    UsageError
        For an argument that is not allowed.
    DataError
        If the table is not usable.
    BackboneError
        If a network or its weights are not to be had.
    ImageError
        With ``on_error="raise"``, for the first image that cannot be read.
    StoreError
        If the cache is no feature store.

    Warns
    -----
    DataWarning
        For failed images, and for images that are equal byte for byte.

    Examples
    --------
    >>> import deepfeat
    >>> store = deepfeat.extract("photos", "EfficientNetLite0", "features.h5", progress=False)
    >>> store.features("EfficientNetLite0").shape
    (24, 1280)

    The same call again computes nothing; with more images, backbones or views it computes what is new.

    >>> store = deepfeat.extract(
    ...     "photos", "EfficientNetLite0", "features.h5", views=["original", "hflip"], progress=False
    ... )
    >>> store.blocks[["name", "dim", "done"]]
                          name   dim  done
    0        EfficientNetLite0  1280    24
    1  EfficientNetLite0@hflip  1280    24
    """
    if on_error not in ("record", "raise"):
        msg = f"on_error is {on_error!r}: use 'record' or 'raise'"
        raise UsageError(msg)
    _check_batch_size(batch_size)
    check_choice("dtype", dtype, DTYPES)
    shown = check_views(views)
    resolved = resolve(runtime, precision)[1]
    chosen = as_backbones(backbones)
    table = as_table(images)
    options = _Options(batch_size, runtime, resolved, shown, dtype, on_error, progress)
    left = f"what was computed is in {os.fspath(cache)}, and the same call goes on from there"
    with interruptible(left), StoreWriter(cache) as writer:
        rows = writer.add_images(table)
        paths = dict(zip(rows.tolist(), table["path"], strict=True))
        stamps = {row: stamp_file(path) for row, path in paths.items()}
        runs = [_Run(writer, backbone, options, stamps) for backbone in chosen]
        _process(runs, paths, options)
    store = open_features(cache)
    _report(store, [key for run in runs for key in run.keys], rows)
    return store


def _check_batch_size(batch_size: int | str) -> None:
    if batch_size == "auto":
        return
    if not isinstance(batch_size, int | np.integer) or isinstance(batch_size, bool) or batch_size < 1:
        msg = f"batch_size is {batch_size!r}: use 'auto' or a number of images"
        raise UsageError(msg)


def check_views(views: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names of views without repetition; the image itself if None."""
    named = ["original"] if views is None else [views] if isinstance(views, str) else list(views)
    if not named:
        raise UsageError("the list of views is empty")
    for view in named:
        check_choice("views", view, VIEWS)
    return tuple(dict.fromkeys(named))


def plan_rows(records: np.ndarray, stamps: dict[int, FileStamp | None]) -> list[int]:
    """Rows whose features are missing, failed, or of a file that may have changed since.

    A file that cannot be seen any more keeps the features that were computed from it.
    """
    rows = np.fromiter(stamps, int, len(stamps))
    seen = np.array([(-1, -1) if s is None else (s.size, s.mtime_ns) for s in stamps.values()], np.int64)
    known = records[rows]
    changed = (known["size"] != seen[:, 0]) | (known["mtime_ns"] != seen[:, 1])
    wanted: list[int] = rows[(known["state"] != DONE) | (changed & (seen[:, 0] >= 0))].tolist()
    return wanted


@dataclass(frozen=True)
class _Options:
    batch_size: int | str
    runtime: str
    precision: str
    views: tuple[str, ...]
    dtype: str
    on_error: str
    progress: bool


def _process(runs: Sequence[_Run], paths: Mapping[int, str], options: _Options) -> None:
    """Decode the images that any run needs, once, and let the networks compute beside decoding and storing.

    With on_error="raise", stop after the first chunk with a failure.
    """
    rows = sorted(set().union(*(run.rows for run in runs)))
    wanted = ((row, paths[row], {p for run in runs if row in run.rows for p in run.preparations}) for row in rows)
    size = CHUNK if options.batch_size == "auto" else int(options.batch_size)
    workers = count_cores()
    loaded = stream_images(wanted, workers=workers, ahead=2 * size + workers)
    names = ", ".join(run.name for run in runs)
    with (
        progress_bar(len(rows), names, "image", shown=options.progress and bool(rows)) as bar,
        ThreadPoolExecutor(1, "deepfeat network") as network,
    ):
        computing: list[Callable[[], None]] = []
        for chunk in _batches(loaded, size):
            begun = [run.begin([image for image in chunk if image.row in run.rows], network) for run in runs]
            _finish(computing)
            computing = begun
            failed = next((image for image in chunk if image.reason), None)
            if failed is not None and options.on_error == "raise":
                _finish(computing)
                msg = f"{paths[failed.row]}: {failed.reason}"
                raise ImageError(msg)
            bar.update(len(chunk))
        _finish(computing)
    for run in runs:
        said = ", ".join(f"{count} {outcome}" for outcome, count in run.counts.items() if count)
        logger.info("%s: %s", run.name, said)
    spans = [span for run in runs for span in run.spans]
    if spans:
        busy, whole = sum(stop - start for start, stop in spans), max(spans)[1] - min(spans)[0]
        logger.info("networks were busy for %.0f %% of %.1f s", 100 * busy / whole, whole)


def _finish(computing: Sequence[Callable[[], None]]) -> None:
    for store in computing:
        store()


class _Run:
    """One backbone over the rows that need it; the network is built when the first image asks for it.

    Attributes
    ----------
    name : str
    keys : list of str
        Of its blocks, view by view and layer by layer.
    rows : set of int
        What is to be computed or looked at again.
    preparations : list of Preparation
        One for each view.
    counts : Counter
        Number of images by what happened to them.
    spans : list of tuple of float
        When the network began and ended each chunk, in seconds.
    """

    def __init__(
        self, writer: StoreWriter, backbone: Backbone, options: _Options, stamps: dict[int, FileStamp | None]
    ) -> None:
        self._writer, self._backbone, self._options = writer, backbone, options
        self._model: keras.Model | None = None
        digest = backbone.weights_digest()
        if digest is None:
            self._model = build_network(backbone)
            digest = backbone.weights_digest() or model_digest(self._model)
        self._weights_digest = digest
        self._specs = [s for v in options.views for s in backbone.specs(digest, options.dtype, options.precision, v)]
        self.name = backbone.name
        self.keys = [block_key(spec) for spec in self._specs]
        self.preparations = [Preparation(backbone.input_shape[:2], backbone.resize, view) for view in options.views]
        self._records = [writer.store.records_or_missing(key) for key in self.keys]
        self.rows = {row for records in self._records for row in plan_rows(records, stamps)}
        self.counts = Counter({"done before": len(stamps) - len(self.rows)})
        self.spans: list[tuple[float, float]] = []
        if self.rows and backbone.weights is None:
            logger.warning("%s has random weights (seed %d): a baseline at best", backbone.name, backbone.seed)

    def begin(self, images: list[LoadedImage], network: Executor) -> Callable[[], None]:
        """Store what needs no network, and have the rest computed.

        Returns
        -------
        callable
            It waits for the features and stores them.
        """
        good = [image for image in images if not image.reason]
        unchanged = [image for image in good if self._is_unchanged(image)]
        changed = [image for image in good if not self._is_unchanged(image)]
        seen = [image for image in changed if self._digest(image) in self._rows_by_digest]
        fresh = [image for image in changed if self._digest(image) not in self._rows_by_digest]
        self.counts.update({"touched but unchanged": len(unchanged), "copied": len(seen), "computed": len(fresh)})
        if unchanged:
            self._write_stamps(unchanged)
        if seen:
            self._copy(seen)
        self._store_failed([image for image in images if image.reason])
        if not fresh:
            return lambda: None
        pixels = np.stack([image.pixels[preparation] for preparation in self.preparations for image in fresh])
        blocks, computed = self._blocks, network.submit(self._compute, self._runtime, pixels)
        rows, records = [image.row for image in fresh], make_records(fresh)
        return lambda: self._store_computed(blocks, rows, records, computed.result())

    def _compute(self, runtime: Runtime, pixels: np.ndarray) -> list[np.ndarray]:
        start = time.perf_counter()
        features = runtime(pixels)
        self.spans.append((start, time.perf_counter()))
        return features

    def _store_computed(
        self, blocks: list[Block], rows: list[int], records: np.ndarray, layers: list[np.ndarray]
    ) -> None:
        """Store what the network made of all views of some images, one view after the other."""
        by_view = [
            layer[start : start + len(rows)] for start in range(0, len(layers[0]), len(rows)) for layer in layers
        ]
        for block, features in zip(blocks, by_view, strict=True):
            self._writer.write(block, rows, features, records)

    def _store_failed(self, images: list[LoadedImage]) -> None:
        if images:
            self.counts["failed"] += len(images)
            rows = [image.row for image in images]
            for block in self._blocks:
                self._writer.write_records(block, rows, make_records(images))

    def _copy(self, images: list[LoadedImage]) -> None:
        """Take over the features of images with the same content."""
        rows = [image.row for image in images]
        sources = [self._rows_by_digest[self._digest(image)] for image in images]
        ids = self._writer.store.table["image_id"].to_numpy(object)[sources]
        for block in self._blocks:
            self._writer.write(block, rows, self._writer.store.features(block.key, ids), make_records(images))

    @staticmethod
    def _digest(image: LoadedImage) -> bytes:
        assert image.digest is not None
        return image.digest

    @cached_property
    def _rows_by_digest(self) -> dict[bytes, int]:
        """A row that every block has done, for each content; of the rows that this run leaves alone."""
        done = np.logical_and.reduce([records["state"] == DONE for records in self._records])
        done &= np.logical_and.reduce([(r["digest"] == self._records[0]["digest"]).all(axis=1) for r in self._records])
        done[list(self.rows)] = False
        return {self._records[0]["digest"][row].tobytes(): int(row) for row in np.flatnonzero(done)}

    def _is_unchanged(self, image: LoadedImage) -> bool:
        """Whether every block has the features of just this content already."""
        assert image.digest is not None
        digest = np.frombuffer(image.digest, np.uint8)
        known = [records[image.row] for records in self._records]
        return all(record["state"] == DONE and (record["digest"] == digest).all() for record in known)

    def _write_stamps(self, images: list[LoadedImage]) -> None:
        """Note the new file stamp of images with the content that was seen before."""
        for block in self._blocks:
            self._writer.write_stamps(block, [image.row for image in images], make_records(images))

    @cached_property
    def _runtime(self) -> Runtime:
        return open_runtime(
            self._backbone,
            self._weights_digest,
            lambda: self._model or build_network(self._backbone),
            runtime=self._options.runtime,
            precision=self._options.precision,
            batch_size=self._options.batch_size,
        )

    @cached_property
    def _blocks(self) -> list[Block]:
        """The blocks with space for every image; only new space needs the network, for its shapes."""
        store = self._writer.store
        blocks = [store.find(key) for key in self.keys if store.has_block(key)]
        if len(blocks) == len(self._specs) and all(block.n_rows == store.n_images for block in blocks):
            return blocks
        for block in blocks:
            _warn_of_other_versions(block, self._runtime.engine)
        for spec in self._specs:
            _say_why_new(store, spec)
        shapes, made_with = itertools.cycle(self._runtime.shapes), versions(self._runtime.engine)
        return [
            self._writer.add_block(spec, shape, made_with, self._backbone.trained_on)
            for spec, shape in zip(self._specs, shapes, strict=False)
        ]


def make_records(images: Sequence[LoadedImage]) -> np.ndarray:
    """Describe loaded images as rows of a store: done with a digest, or failed with a reason."""
    records = np.zeros(len(images), RECORD)
    for record, image in zip(records, images, strict=True):
        record["state"] = FAILED if image.reason else DONE
        record["reason"] = _clip(image.reason or "")
        if image.stamp is not None:
            record["size"], record["mtime_ns"] = image.stamp.size, image.stamp.mtime_ns
        if image.digest is not None:
            record["digest"] = np.frombuffer(image.digest, np.uint8)
    return records


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
    return {"python": platform.python_version(), "deepfeat": __version__, "keras": metadata.version("keras"), **found}


def _say_why_new(store: FeatureStore, spec: dict[str, Any]) -> None:
    """Say how a new block differs from the blocks that its backbone has already."""
    for block in store.structure.blocks:
        if block.spec["backbone"] == spec["backbone"] and not store.has_block(block_key(spec)):
            other = [name for name in spec if spec[name] != block.spec.get(name)]
            logger.info("%s: a new block, since %s is another than in %s", block.name, ", ".join(other), block.key[:8])


def _warn_of_other_versions(block: Block, engine: str) -> None:
    """Say that a block's new rows will be made by other versions than its old ones."""
    now = versions(engine)
    changed = [f"{name} {old} (now {now[name]})" for name, old in block.versions.items() if now.get(name, old) != old]
    if changed:
        msg = (
            f"the rows of {block.name} so far were computed with {', '.join(changed)}: "
            "`deepfeat store verify --sample 32` tells whether that makes a difference"
        )
        warnings.warn(msg, DataWarning, stacklevel=3)


def _clip(reason: str) -> bytes:
    """Cut a reason to the bytes that a record holds, not inside a character."""
    size = RECORD["reason"].itemsize
    return reason.encode("utf-8", "replace")[:size].decode("utf-8", "ignore").encode()


def _batches(images: Iterable[LoadedImage], size: int) -> Iterator[list[LoadedImage]]:
    iterator = iter(images)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def count_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _report(store: FeatureStore, keys: Sequence[str], rows: np.ndarray) -> None:
    """Warn of failed images and of files that are equal byte for byte."""
    ids = store.table["image_id"].to_numpy(object)[rows]
    for key in keys:
        records = store.records(key)[rows]
        failed = np.flatnonzero(records["state"] == FAILED)
        if len(failed):
            reasons = [f"{ids[i]!r}: {records['reason'][i].decode('utf-8', 'replace')}" for i in failed[:3]]
            msg = (
                f"{len(failed)} of {len(rows)} images failed for {store.find(key).name} "
                f"({'; '.join(reasons)}{'; …' if len(failed) > 3 else ''}): see store.failures"
            )
            warnings.warn(msg, DataWarning, stacklevel=3)
    records = store.records(keys[0])[rows]
    done = records["state"] == DONE
    contents = pd.Series(
        [digest.tobytes() for digest in records["digest"][done]], index=pd.Index(ids[done], dtype=object), dtype=object
    )
    repeated = contents[contents.duplicated(keep=False)]
    if len(repeated):
        twins = repeated.groupby(repeated, sort=False).groups
        first = next(iter(twins.values()))
        msg = f"{len(twins)} set(s) of images are equal byte for byte (first: {', '.join(map(repr, first))})"
        warnings.warn(msg, DataWarning, stacklevel=3)
