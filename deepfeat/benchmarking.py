"""What a backbone costs and what it is worth, measured on the user's own images and machine."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from deepfeat.backbones.network import model_digest
from deepfeat.backbones.onnx import count_onnx
from deepfeat.backbones.registry import Backbone, as_backbones
from deepfeat.computation import build_network, count_cores
from deepfeat.datasets import as_table
from deepfeat.errors import DataError, DataWarning, UsageError
from deepfeat.extraction import extract
from deepfeat.images import Preparation, stream_images
from deepfeat.interruption import interruptible
from deepfeat.runtimes.selection import Runtime, open_runtime, resolve, settle_precision
from deepfeat.splits import check_seed, merge_groups
from deepfeat.store import DONE, FeatureStore
from deepfeat.svm import fit_svm

if TYPE_CHECKING:
    import keras

logger = logging.getLogger(__name__)

#: Seconds that each speed is measured for, at the least.
_SECONDS = 1.0

#: Edge of the square matrices whose product measures the machine's peak, and how often it is taken.
_PRODUCT_EDGE, _PRODUCTS = 2048, 5

_PROBE_GRID = {"C": [1e-3]}
_PROBE_FOLDS = 5


@interruptible("nothing was kept, and the same call begins again")
def benchmark(
    images: Any,
    backbones: str | Backbone | Sequence[str | Backbone],
    *,
    n_images: int = 512,
    runtime: str = "auto",
    precision: str = "auto",
    batch_size: int | str = "auto",
    seed: int = 0,
) -> pd.DataFrame:
    """Measure backbones, one's own included, on some of the images.

    Parameters
    ----------
    images : pandas.DataFrame, path, or sequence of paths
        As for `extract`; with labels, features are also scored.
    backbones : str, Backbone, or a list of either
    n_images : int
        Drawn from ``images``; all where there are fewer.
    runtime, precision, batch_size
        As for `extract`.
    seed : int
        Of the draw and of the folds.

    Returns
    -------
    pandas.DataFrame
        Indexed by backbone. ``parameters`` and ``macs`` (multiply-accumulates for one image, of
        convolutions and dense layers); ``dim``, width of the embedding; images per second of
        ``decode`` alone, ``network`` alone and ``both`` together, from files to the store;
        ``peak_memory``, bytes that both together took beyond what the process had (NaN where the
        system does not tell); ``bytes_per_image`` in the store; ``peak_fraction``, twice the MACs by
        the network's speed, over the machine's measured float32 matrix products (above 1 where OpenVINO
        multiplies less often than the definition, as in VGG16); and with labels
        ``score``, ``low`` and ``high``: balanced accuracy of a linear SVM with C = 0.001 in
        five folds, and its 95 % interval [1]_. NaN, with the reason in the log, where that cannot be
        had: above all where a backbone was fine-tuned on some of these images.

    Raises
    ------
    UsageError
        For an argument that is not allowed.
    DataError
        If none of the images can be read.

    References
    ----------
    .. [1] Nadeau and Bengio (2003), Inference for the generalization error, Machine Learning 52,
       section 3: the variance over folds times (1/k + n_test/n_train), with Student's t.

    Examples
    --------
    >>> import deepfeat
    >>> mine = deepfeat.load_backbone("mine.keras", preprocess="tf")
    >>> table = deepfeat.benchmark("photos", mine, n_images=20)
    >>> int(table.loc["mine", "parameters"]), int(table.loc["mine", "dim"])
    (1392, 16)
    >>> bool(table.loc["mine", "both"] > 0)
    True
    """
    if not isinstance(n_images, int | np.integer) or isinstance(n_images, bool) or n_images < 1:
        msg = f"n_images is {n_images!r}: use a number of images"
        raise UsageError(msg)
    check_seed(seed)
    chosen = as_backbones(backbones)
    resolved = resolve(runtime, precision)[1]
    table = as_table(images)
    if len(table) > n_images:
        table = table.sample(int(n_images), random_state=seed).sort_index().reset_index(drop=True)
    peak = measure_peak()
    options = {"runtime": runtime, "batch_size": batch_size}
    rows = [
        _measure(b, table, peak, {**options, "precision": settle_precision(b, precision, resolved)}, seed)
        for b in chosen
    ]
    return pd.DataFrame(rows).set_index("backbone")


def _measure(
    backbone: Backbone, table: pd.DataFrame, peak: float, options: dict[str, Any], seed: int
) -> dict[str, Any]:
    parameters, macs, opened = _open(backbone, options)
    network = _network_rate(opened, backbone)
    with tempfile.TemporaryDirectory() as folder, _Memory() as memory, warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        started = time.perf_counter()
        store = extract(table, backbone, Path(folder, "features.h5"), progress=False, **options)
        seconds = time.perf_counter() - started
        block = store.structure.blocks[0]
        is_read = store.records(block.key)["state"] == DONE
        _check_read(store, is_read)
        score, low, high = _probe(store, table, seed)
    return {
        "backbone": backbone.name,
        "parameters": parameters,
        "macs": macs,
        "dim": block.dim,
        "decode": _decode_rate(backbone, table[is_read]),
        "network": network,
        "both": is_read.sum() / seconds,
        "peak_memory": memory.peak,
        "bytes_per_image": block.dim * block.dtype.itemsize + block.segments[0].records.dtype.itemsize,
        "peak_fraction": 2 * macs * network / peak,
        "score": score,
        "low": low,
        "high": high,
    }


def _check_read(store: FeatureStore, is_read: np.ndarray) -> None:
    """Say how many images could not be read, and refuse to measure none."""
    failures = store.failures
    if failures.empty:
        return
    first = failures.iloc[0]
    if not is_read.any():
        msg = f"none of the {len(is_read)} images drawn can be read (first: {first['image_id']}: {first['reason']})"
        raise DataError(msg)
    said = f"{(~is_read).sum()} of {len(is_read)} images drawn cannot be read and do not count"
    logger.warning("%s (first: %s: %s)", said, first["image_id"], first["reason"])


def _open(backbone: Backbone, options: dict[str, Any]) -> tuple[int, int, Runtime]:
    """Number of parameters, multiply-accumulates of one image, and what runs the backbone."""
    if backbone.network.onnx is not None:
        counts = count_onnx(backbone.network.onnx, backbone.input_shape[:2])
        return *counts, open_runtime(backbone, backbone.weights_digest() or "", backbone.build, **options)
    # Before the network is built, so that a file that changes meanwhile is noticed.
    digest = backbone.weights_digest()
    model = build_network(backbone)
    digest = digest or backbone.weights_digest() or model_digest(model)
    return int(model.count_params()), count_macs(model), open_runtime(backbone, digest, lambda: model, **options)


def count_macs(model: keras.Model) -> int:
    """Multiply-accumulates of one image: each kernel's values times the positions of its layer's output."""
    count = 0
    for layer in model.layers:
        if hasattr(layer, "layers"):
            count += count_macs(layer)
            continue
        kernels = sum(int(np.prod(weight.shape)) for weight in layer.weights if len(weight.shape) > 1)
        count += kernels * int(np.prod([n or 1 for n in layer.output.shape[1:-1]])) if kernels else 0
    return count


def measure_peak() -> float:
    """Floating-point operations per second of the best of several float32 matrix products in NumPy."""
    a = np.random.default_rng(0).standard_normal((_PRODUCT_EDGE, _PRODUCT_EDGE), np.float32)
    a @ a
    seconds = []
    for _ in range(_PRODUCTS):
        started = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - started)
    return 2 * _PRODUCT_EDGE**3 / min(seconds)


def _network_rate(runtime: Runtime, backbone: Backbone) -> float:
    images = np.random.default_rng(0).integers(0, 256, (32, *backbone.input_shape), np.uint8)
    return _rate(lambda: len(runtime(images)[0]))


def _decode_rate(backbone: Backbone, table: pd.DataFrame) -> float:
    prepared = [Preparation(backbone.input_shape[:2], backbone.resize)]
    wanted = [(row, path, prepared) for row, path in enumerate(table["path"])]
    workers = count_cores()
    return _rate(lambda: sum(1 for _ in stream_images(wanted, workers=workers, ahead=64 + workers)), warm=False)


def _rate(work: Callable[[], int], *, warm: bool = True) -> float:
    """Things done per second, after a first time that does not count."""
    if warm:
        work()
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < _SECONDS or not done:
        done += work()
    return done / (time.perf_counter() - started)


def _probe(store: FeatureStore, table: pd.DataFrame, seed: int) -> tuple[float, float, float]:
    """Balanced accuracy over folds with its interval; NaN, and a line in the log, where labels do not allow it."""
    undefined = (float("nan"),) * 3
    if table["label"].isna().all():
        return undefined
    sets = pd.DataFrame({"label": table["label"], "set": merge_groups(table["group"].tolist())})
    counts = sets.groupby("label")["set"].nunique()
    small = dict.fromkeys(counts.index[counts < _PROBE_FOLDS])
    blocks = [block.key for block in store.structure.blocks]
    options: dict[str, Any] = {"cv": _PROBE_FOLDS, "seed": seed, "param_grid": _PROBE_GRID, "test": None}
    try:
        result = fit_svm(store, backbones=blocks, labels=small or None, **options)
    except DataError as error:
        logger.warning("no score: %s", error)
        return undefined
    if small:
        logger.warning("the score leaves out %s: too few images drawn", ", ".join(map(str, small)))
    folds = result.cv_results.loc[0, [f"fold{k}" for k in range(_PROBE_FOLDS)]].to_numpy(float)
    deviation = folds.std(ddof=1) * np.sqrt(1 / _PROBE_FOLDS + 1 / (_PROBE_FOLDS - 1))
    reach = stats.t.ppf(0.975, _PROBE_FOLDS - 1) * deviation
    return folds.mean(), max(0.0, folds.mean() - reach), min(1.0, folds.mean() + reach)


class _Memory:
    """Watches how much memory the process takes beyond what it has at the beginning."""

    def __enter__(self) -> _Memory:
        self._begin = self._most = _resident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self._most = max(self._most, _resident())

    @property
    def peak(self) -> float:
        return self._most - self._begin


def _resident() -> float:
    """Bytes of memory in which the process lies; NaN where the system has no file that says so."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:  # pragma: no cover - not on Linux
        return float("nan")
    return float(pages * os.sysconf("SC_PAGE_SIZE"))
