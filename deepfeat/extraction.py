"""Stage 1: run backbones over images, row by missing row, into a feature store."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from deepfeat.backbones.network import check_choice, model_digest
from deepfeat.backbones.registry import Backbone, as_backbones
from deepfeat.computation import (
    GPU_CHUNK,
    Computed,
    Job,
    LoadedBackbone,
    Opened,
    Output,
    Plan,
    Wanted,
    build_network,
    compute_chunks,
    count_cores,
    log_busy,
)
from deepfeat.datasets import as_table
from deepfeat.errors import DataWarning, ImageError, UsageError
from deepfeat.images import VIEWS, FileStamp, LoadedImage, stamp_file
from deepfeat.interruption import interruptible
from deepfeat.progress import progress_bar
from deepfeat.runtimes.selection import fills_gpu, resolve, settle_precision
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

#: Who computes: from images that are wanted to what came of them, in any order.
Compute = Callable[[Plan, Iterator[Wanted]], Generator[Computed]]


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
    client: Any = None,
    progress: bool = True,
) -> FeatureStore:
    """Compute the features that are not in the cache yet.

    A row is computed if it is missing, if it failed before, or if its file has
    changed; a file counts as changed when its path, size or modification time differ
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
    client : distributed.Client, optional
        The workers of its cluster decode the images and run the networks, and this process alone writes the store; see
        docs/scaling.md. They need deepfeat, and the images under the same paths.
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
    ClusterError
        If the connection to the cluster is lost, or images end one worker after the other.

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
    chosen = as_backbones(backbones)
    table = as_table(images)
    resolved = _resolve_precision(runtime, precision, client)
    options = _Options(batch_size, runtime, precision, resolved, shown, dtype, on_error, progress)
    left = f"what was computed is in {os.fspath(cache)}, and the same call goes on from there"
    with interruptible(left), StoreWriter(cache) as writer:
        _warn_of_other_paths(writer.store, table)
        rows = writer.add_images(table)
        paths = dict(zip(rows.tolist(), table["path"], strict=True))
        stamps = {row: stamp_file(path) for row, path in paths.items()}
        runs = [_Run(writer, backbone, options, stamps) for backbone in chosen]
        _process(runs, paths, options, _compute_here(runs) if client is None else _compute_on(client))
    store = open_features(cache)
    _report(store, [key for run in runs for key in run.keys], rows)
    return store


def _warn_of_other_paths(store: FeatureStore, table: pd.DataFrame) -> None:
    """Say which images have the id of another file that is still there, whose row they take over, or are not there."""
    known = dict(zip(store.table["image_id"], store.table["path"], strict=True))
    moved = [(i, known[i], p) for i, p in zip(table["image_id"], table["path"], strict=True) if known.get(i, p) != p]
    others = [(image, old, new) for image, old, new in moved if isinstance(old, str) and _are_two_files(old, new)]
    if others:
        image, old, new = others[0]
        msg = (
            f"{len(others)} image(s) have the id of another file that is still there (first: {image}, {old} and now "
            f"{new}), whose features are replaced where the content differs: give each its own store, or extract "
            "the folder above them"
        )
        warnings.warn(msg, DataWarning, stacklevel=3)
    lost = [(image, old, new) for image, old, new in moved if stamp_file(new) is None]
    if lost:
        image, old, new = lost[0]
        msg = (
            f"{len(lost)} image(s) have another path than before, where no file can be seen (first: {image}, {old} and "
            f"now {new}): what the store has of them stays as it is until there is one"
        )
        warnings.warn(msg, DataWarning, stacklevel=3)


def _are_two_files(one: str, other: str) -> bool:
    try:
        return not os.path.samefile(one, other)
    except (OSError, ValueError):
        return False


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
    asked_precision: str
    precision: str
    views: tuple[str, ...]
    dtype: str
    on_error: str
    progress: bool


def _resolve_precision(runtime: str, precision: str, client: Any) -> str:
    """Decide what precision="auto" means for whoever computes."""
    if client is None:
        return resolve(runtime, precision)[1]
    from deepfeat.distributed import resolve_on_worker

    return resolve_on_worker(client, runtime, precision)[1]


def _compute_here(runs: Sequence[_Run]) -> Compute:
    def compute(plan: Plan, wanted: Iterator[Wanted]) -> Generator[Computed]:
        if any(fills_gpu(job.runtime) for job in plan.jobs):
            plan = plan._replace(usual_chunk=GPU_CHUNK)
        backbones = [LoadedBackbone(run.job, run.model) for run in runs]
        yield from compute_chunks(plan, wanted, backbones, count_cores())
        log_busy(backbones)

    return compute


def _compute_on(client: Any) -> Compute:
    from deepfeat.distributed import compute_shards

    return lambda plan, wanted: compute_shards(client, plan, wanted)


def _process(runs: Sequence[_Run], paths: Mapping[int, str], options: _Options, compute: Compute) -> None:
    """Have what the runs need computed, each image decoded once for all of them, and store it as it comes.

    With on_error="raise", stop after the first chunk with a failure.
    """
    rows = sorted(set().union(*(run.rows for run in runs)))
    wanted = (
        Wanted(row, paths[row], {n: run.kept(row) for n, run in enumerate(runs) if row in run.rows}) for row in rows
    )
    plan = Plan([run.job for run in runs], [run.known for run in runs], [run.has_space for run in runs])
    names = ", ".join(run.name for run in runs)
    with (
        progress_bar(len(rows), names, "image", shown=options.progress and bool(rows)) as bar,
        contextlib.closing(compute(plan, wanted)) as results,
    ):
        for computed in results:
            stored: list[LoadedImage] = []
            for run, output, opened in zip(runs, computed.outputs, computed.opened, strict=True):
                stored += run.store(computed.images, output, opened)
            failed = next((image for image in stored if image.reason), None)
            if failed is not None and options.on_error == "raise":
                msg = f"{paths[failed.row]}: {failed.reason}"
                raise ImageError(msg)
            bar.update(len(computed.images))
    for run in runs:
        said = ", ".join(f"{count} {outcome}" for outcome, count in run.counts.items() if count)
        logger.info("%s: %s", run.name, said)


class _Run:
    """One backbone over the rows that need it.

    Attributes
    ----------
    job : Job
    model : keras.Model or None
        The network, where it had to be built for the digest of its weights.
    name : str
    keys : list of str
        Of all its blocks, view by view and layer by layer; the job has those views of which some row is wanted.
    rows : set of int
        What is to be computed or looked at again, for one block or more.
    counts : Counter
        Number of images by what happened to them.
    """

    def __init__(
        self, writer: StoreWriter, backbone: Backbone, options: _Options, stamps: dict[int, FileStamp | None]
    ) -> None:
        self._writer = writer
        self.model: keras.Model | None = None
        digest = backbone.weights_digest()
        if digest is None:
            self.model = build_network(backbone)
            digest = backbone.weights_digest() or model_digest(self.model)
        precision = settle_precision(backbone, options.asked_precision, options.precision)
        kind = options.runtime, precision, options.dtype, options.batch_size
        job = Job(backbone, digest, options.views, *kind)
        self.name, self.keys = backbone.name, job.keys
        records = {key: writer.store.records_or_missing(key) for key in self.keys}
        wanted = {key: np.zeros(len(records[key]), bool) for key in self.keys}
        for key, rows in wanted.items():
            rows[plan_rows(records[key], stamps)] = True
        views = [v for v in options.views if any(wanted[key].any() for key in replace(job, views=(v,)).keys)]
        self.job = replace(job, views=tuple(views) or options.views)
        self._blocks: list[Block] = []
        self._warned = False
        self._records = [records[key] for key in self.job.keys]
        # A block that has a row keeps it as it is, whatever another one lacks.
        self._wanted = [wanted[key] for key in self.job.keys]
        self.rows = set(np.flatnonzero(np.logical_or.reduce(self._wanted)).tolist())
        self.counts = Counter({"done before": len(stamps) - len(self.rows)})
        if self.rows and backbone.weights is None:
            logger.warning("%s has random weights (seed %d): a baseline at best", backbone.name, backbone.seed)

    @property
    def has_space(self) -> bool:
        """Whether the blocks have space for every image."""
        store = self._writer.store
        return all(store.has_block(key) and store.find(key).n_rows == store.n_images for key in self.job.keys)

    @property
    def known(self) -> Collection[bytes]:
        """Digests of contents whose features every block has, in rows that this run leaves alone."""
        return self._rows_by_digest.keys()

    def kept(self, row: int) -> bytes | None:
        """Digest of the content of which every block has features in a row."""
        known = [records[row] for records in self._records]
        digests = {record["digest"].tobytes() for record in known if record["state"] == DONE}
        return digests.pop() if len(digests) == 1 and all(r["state"] == DONE for r in known) else None

    def store(self, images: Sequence[LoadedImage], output: Output | None, opened: Opened | None) -> list[LoadedImage]:
        """Store what came of some images: features, copies of features, stamps, or reasons of failures.

        Returns
        -------
        list of LoadedImage
            Those that the run wanted, with a reason where there are no features, or none that can be stored.
        """
        unfit = {} if output is None else find_unfit(output, self.job.dtype)
        mine = [replace(i, reason=i.reason or unfit.get(i.row)) for i in images if i.row in self.rows]
        if not mine:
            return mine
        if opened is not None and not self._warned:
            self._warned = True
            _warn_of_other_versions(self._writer.store, self.job.keys, opened.versions)
        blocks = self._make_space(opened)
        computed = set(output.rows if output else [])
        fresh = [image for image in mine if image.row in computed and not image.reason]
        rest = [image for image in mine if image.row not in computed and not image.reason]
        unchanged = [image for image in rest if image.digest == self.kept(image.row)]
        seen = [image for image in rest if image.digest != self.kept(image.row)]
        failed = [image for image in mine if image.reason]
        self.counts.update({"touched but unchanged": len(unchanged), "copied": len(seen), "computed": len(fresh)})
        self.counts.update({"failed": len(failed)})
        for block, wanted in zip(blocks, self._wanted, strict=True):
            if same := _among(unchanged, wanted):
                self._writer.write_stamps(block, _rows(same), make_records(same))
            if bad := _among(failed, wanted):
                self._writer.write_records(block, _rows(bad), make_records(bad))
            if copied := _among(seen, wanted):
                self._copy(block, copied)
        if output:
            self._store_computed(blocks, fresh, output)
        return mine

    def _store_computed(self, blocks: list[Block], images: list[LoadedImage], output: Output) -> None:
        """Store what the network made of some images, in each block those that it lacks."""
        for block, features, wanted in zip(blocks, output.by_view, self._wanted, strict=True):
            if lacking := _among(images, wanted):
                rows = _rows(lacking)
                fitting = features if rows == output.rows else features[np.isin(output.rows, rows)]
                self._writer.write(block, rows, fitting, make_records(lacking))

    def _copy(self, block: Block, images: list[LoadedImage]) -> None:
        """Take over the features of images with the same content."""
        sources = [self._rows_by_digest[image.digest] for image in images if image.digest is not None]
        ids = self._writer.store.table["image_id"].to_numpy(object)[sources]
        features = self._writer.store.features(block.key, ids)
        self._writer.write(block, _rows(images), features, make_records(images))

    @cached_property
    def _rows_by_digest(self) -> dict[bytes, int]:
        """A row that every block has done, for each content; of the rows that this run leaves alone."""
        done = np.logical_and.reduce([records["state"] == DONE for records in self._records])
        done &= np.logical_and.reduce([(r["digest"] == self._records[0]["digest"]).all(axis=1) for r in self._records])
        done[list(self.rows)] = False
        return {self._records[0]["digest"][row].tobytes(): int(row) for row in np.flatnonzero(done)}

    def _make_space(self, opened: Opened | None) -> list[Block]:
        """Return the blocks with space for every image; new space has the shapes of the network that was opened."""
        if not self._blocks:
            keys = self.job.keys
            self._blocks = [self._writer.store.find(key) for key in keys] if self.has_space else self._add(opened)
        return self._blocks

    def _add(self, opened: Opened | None) -> list[Block]:
        assert opened is not None
        for spec in self.job.specs:
            _say_why_new(self._writer.store, spec)
        return [
            self._writer.add_block(spec, shape, opened.versions, self.job.backbone.trained_on)
            for spec, shape in zip(self.job.specs, itertools.cycle(opened.shapes), strict=False)
        ]


def find_unfit(output: Output, dtype: str) -> dict[int, str]:
    """Rows with features that are no numbers, or would be none in the type in which they are stored, and why."""
    unfit = {}
    for features in output.by_view:
        flat = features.reshape(len(features), -1)
        largest = np.maximum(flat.max(axis=1, initial=0), -flat.min(axis=1, initial=0))
        for number in np.flatnonzero(~(largest <= np.finfo(dtype).max)):
            unfit[output.rows[number]] = (
                f"the largest feature is {largest[number]:g}, and float16 ends at 65,504: store them as float32"
                if np.isfinite(largest[number])
                else f"the network gives {largest[number]:g} among its features"
            )
    return unfit


def _rows(images: Sequence[LoadedImage]) -> list[int]:
    return [image.row for image in images]


def _among(images: Sequence[LoadedImage], wanted: np.ndarray) -> list[LoadedImage]:
    return [image for image in images if wanted[image.row]]


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


def _say_why_new(store: FeatureStore, spec: dict[str, Any]) -> None:
    """Say how a new block differs from the blocks that its backbone has already."""
    for block in store.structure.blocks:
        if block.spec["backbone"] == spec["backbone"] and not store.has_block(block_key(spec)):
            other = [name for name in spec if spec[name] != block.spec.get(name)]
            logger.info("%s: a new block, since %s is another than in %s", block.name, ", ".join(other), block.key[:8])


def _warn_of_other_versions(store: FeatureStore, keys: Sequence[str], now: Mapping[str, str]) -> None:
    """Say which blocks will have new rows that are made by other versions than their old ones."""
    for block in (store.find(key) for key in keys if store.has_block(key)):
        old = block.versions.items()
        changed = [f"{name} {version} (now {now[name]})" for name, version in old if now.get(name, version) != version]
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


def _report(store: FeatureStore, keys: Sequence[str], rows: np.ndarray) -> None:
    """Warn of what is to be known of the images of a call, and of others of the store."""
    first, has_features = store.records(keys[0]), np.zeros(store.n_images, bool)
    for number, key in enumerate(keys):
        records = store.records(key) if number else first
        _warn_of_failures(store, key, records, rows)
        has_features |= records["state"] == DONE
    _warn_of_twins(store, first, rows)
    _warn_of_the_rest(store, has_features, rows)


def _warn_of_failures(store: FeatureStore, key: str, records: np.ndarray, rows: np.ndarray) -> None:
    failed = rows[records["state"][rows] == FAILED]
    if len(failed):
        ids, said = store.table["image_id"].to_numpy(object), records["reason"]
        reasons = [f"{ids[row]!r}: {said[row].decode('utf-8', 'replace')}" for row in failed[:3]]
        msg = (
            f"{len(failed)} of {len(rows)} images failed for {store.find(key).name} "
            f"({'; '.join(reasons)}{'; …' if len(failed) > 3 else ''}): see store.failures"
        )
        warnings.warn(msg, DataWarning, stacklevel=4)


def _warn_of_twins(store: FeatureStore, records: np.ndarray, rows: np.ndarray) -> None:
    """Say which images are equal byte for byte to others of the store."""
    done = np.flatnonzero(records["state"] == DONE)
    contents = pd.Series([digest.tobytes() for digest in records["digest"][done]], done, dtype=object)
    repeated = contents[contents.duplicated(keep=False)]
    repeated = repeated[repeated.isin(repeated[repeated.index.isin(rows)])]
    if len(repeated):
        twins = repeated.groupby(repeated, sort=False).groups
        first = store.table["image_id"].to_numpy(object)[next(iter(twins.values()))]
        msg = f"{len(twins)} set(s) of images are equal byte for byte (first: {', '.join(map(repr, first))})"
        warnings.warn(msg, DataWarning, stacklevel=4)


def _warn_of_the_rest(store: FeatureStore, has_features: np.ndarray, rows: np.ndarray) -> None:
    """Say which images with features are not given any more though their folder is, and gone: the store keeps them."""
    others, given = has_features.copy(), store.table["path"].to_numpy(object)[rows]
    others[rows] = False
    rest = [(i, p) for i, p in store.table.loc[others, ["image_id", "path"]].itertuples(index=False) if p]
    if not rest:
        return
    logger.info("%s has %d image(s) besides those given, which fits take, too", store.path, len(rest))
    folder = _common_folder(given)
    gone = [image for image, path in rest if path.startswith(folder) and not os.path.lexists(path)]
    if gone and any(map(os.path.lexists, given)):
        msg = (
            f"{len(gone)} image(s) of {store.path} are not given any more, and their files are gone (first: {gone[0]}):"
            " their features stay, and fits take them, but for those that fit_svm's labels= gives None"
        )
        warnings.warn(msg, DataWarning, stacklevel=4)


def _common_folder(paths: Iterable[str]) -> str:
    """The folder in which all files are, with its separator; nothing where there is none, as on two drives."""
    try:
        return os.path.join(os.path.commonpath(set(map(os.path.dirname, paths))), "")
    except ValueError:
        return ""
