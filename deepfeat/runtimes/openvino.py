"""Run a backbone under OpenVINO, the fastest correct way on a CPU; needs Keras only for the conversion."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from deepfeat import __version__
from deepfeat.backbones import Backbone
from deepfeat.backbones.onnx import feature_network
from deepfeat.errors import BackboneError
from deepfeat.runtimes.startup import load_openvino
from deepfeat.runtimes.winograd import rewrite_convolutions

if TYPE_CHECKING:
    import keras

logger = logging.getLogger(__name__)

#: Images in one request. Small ones stay in the processor's cache, and several run side by side.
#: Two are the fastest, or as fast as any, for networks of all sizes: docs/results/network.md.
REQUEST = 2

#: Requests for each that computes at a time: one more waits ready, so that no core does while Python hands one on.
_PER_STREAM = 2

#: Largest difference from Keras, relative to the largest feature, with which a conversion passes as correct.
TOLERANCE = 1e-3

#: Version of a kept conversion, and of how it is run. Since 3, large convolutions run by Winograd's algorithm.
_CONVERSION = 3
_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


def is_installed() -> bool:
    """Whether the package openvino can be imported."""
    return importlib.util.find_spec("openvino") is not None


def has_bfloat16() -> bool:
    """Whether the processor computes in bfloat16; where it does not, OpenVINO takes float32 and does not say so."""
    ov = load_openvino()

    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class ConversionError(BackboneError):
    """OpenVINO cannot run a network, which Keras may."""


class OpenVinoRuntime:
    """From uint8 images to the features of each of a backbone's layers.

    Parameters
    ----------
    model : bytes
        A converted network, as `open_runtime` keeps it.
    weights : bytes
        Its weights.
    precision : {"float32", "bfloat16"}
        OpenVINO would choose bfloat16 by itself wherever the processor has it.
    n_threads : int, optional
        As many as there are cores if None.

    Attributes
    ----------
    shapes : list of tuple of int
        Shape of one row of each layer's features.
    """

    engine = "openvino"

    def __init__(self, model: bytes, weights: bytes, precision: str = "float32", n_threads: int | None = None) -> None:
        ov = load_openvino()

        core = ov.Core()
        network = core.read_model(model, ov.Tensor(np.frombuffer(weights, np.uint8)))
        # Where OpenVINO has nothing of the kind: on ARM it has.
        if precision == "float32" and platform.machine() in ("x86_64", "AMD64"):
            rewrite_convolutions(network)
        settings = {"INFERENCE_PRECISION_HINT": _PRECISIONS[precision], "PERFORMANCE_HINT": "THROUGHPUT"}
        settings |= {} if n_threads is None else {"INFERENCE_NUM_THREADS": str(n_threads)}
        compiled = core.compile_model(network, "CPU", settings)
        n_requests = _PER_STREAM * compiled.get_property("NUM_STREAMS")
        self._free: SimpleQueue[Any] = SimpleQueue()
        for _ in range(n_requests):
            self._free.put(compiled.create_infer_request())
        self._threads = ThreadPoolExecutor(n_requests, "deepfeat openvino")
        self.shapes = [tuple(n.get_length() for n in list(o.partial_shape)[1:]) for o in compiled.outputs]

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """Compute features; several threads may ask for theirs, and those of the first come first.

        Parameters
        ----------
        images : ndarray of shape (n, height, width, 3), uint8

        Returns
        -------
        list of ndarray of shape (n, *shape), float32
            One for each layer.
        """
        features = [np.empty((len(images), *shape), np.float32) for shape in self.shapes]
        parts = [slice(start, start + REQUEST) for start in range(0, len(images), REQUEST)]
        started = [self._threads.submit(self._infer, images[part], [f[part] for f in features]) for part in parts]
        for future in started:
            future.result()
        return features

    def _infer(self, images: np.ndarray, features: list[np.ndarray]) -> None:
        request = self._free.get()
        try:
            request.infer({0: np.ascontiguousarray(images)}, share_inputs=True, share_outputs=True)
            for index, layer in enumerate(features):
                computed = request.get_output_tensor(index).data
                # NumPy would repeat one row for all images.
                if computed.shape != layer.shape:
                    msg = f"features of shape {computed.shape} where {layer.shape} was to be"
                    raise ValueError(msg)
                layer[:] = computed
        finally:
            self._free.put(request)


def open_runtime(
    backbone: Backbone,
    weights_digest: str,
    build: Callable[[], keras.Model],
    precision: str,
    n_threads: int | None = None,
) -> OpenVinoRuntime:
    """Take the conversion that is kept for a backbone, or convert it now and keep that.

    Parameters
    ----------
    backbone : Backbone
    weights_digest : str
        From `Backbone.weights_digest`.
    build : callable
        Builds the Keras network; called only where nothing is kept.
    precision : {"float32", "bfloat16"}
    n_threads : int, optional
        As many as there are cores if None.

    Raises
    ------
    ConversionError
        If OpenVINO cannot convert the network, or computes other features than Keras; and for bfloat16, if the
        processor has none.
    BackboneError
        If Keras cannot build the network or has no such layer; or for an ONNX file that OpenVINO cannot run, or in
        which the images of a batch are not independent.
    """
    onnx = backbone.network.onnx
    if precision == "bfloat16" and not has_bfloat16():
        msg = (
            f"this processor has no bfloat16, and OpenVINO would run {backbone.name} in float32 instead: "
            "use precision='float32'" + (", or runtime='keras', which emulates bfloat16 slowly" if not onnx else "")
        )
        raise ConversionError(msg)
    file = _conversion_file(backbone, weights_digest) if backbone.network.reproducible else None
    kept = _read(file) if file is not None else None
    if kept is not None:
        return OpenVinoRuntime(*kept, precision, n_threads)
    if onnx is not None:
        converted, checked = _convert_onnx(backbone, onnx, n_threads)
    else:
        converted, checked = _convert(backbone, build(), n_threads)
    if file is not None:
        _keep(file, *converted)
    return checked if precision == "float32" else OpenVinoRuntime(*converted, precision, n_threads)


def _convert(
    backbone: Backbone, model: keras.Model, n_threads: int | None = None
) -> tuple[tuple[bytes, bytes], OpenVinoRuntime]:
    """Convert a network, and compare both on random images, which Keras computes meanwhile."""
    from deepfeat.runtimes.keras import KerasRuntime, compile_model, feature_model

    if KerasRuntime.engine != "tensorflow":
        msg = (
            f"OpenVINO cannot convert {backbone.name} while Keras is on {KerasRuntime.engine}: "
            "set KERAS_BACKEND=tensorflow, or use runtime='keras'"
        )
        raise ConversionError(msg)
    logger.info("%s: converting to OpenVINO, once", backbone.name)
    frozen = compile_model(feature_model(backbone, model))
    images = np.random.default_rng(0).integers(0, 256, (2, *backbone.input_shape), np.uint8)
    with ThreadPoolExecutor(1) as pool:
        reference = pool.submit(lambda: [np.asarray(output) for output in frozen(images)])
        try:
            converted = _serialize(_read_graph(frozen), backbone.input_shape)
            runtime = OpenVinoRuntime(*converted, n_threads=n_threads)
        # The converter raises whatever its parts do.
        except Exception as error:
            msg = f"OpenVINO cannot convert {backbone.name}: {error}"
            raise ConversionError(msg) from error
        difference = _difference(runtime(images), reference.result())
    if not difference <= TOLERANCE:
        msg = f"OpenVINO computes {backbone.name} with a difference of {difference:.2g} from Keras"
        raise ConversionError(msg)
    return converted, runtime


def _convert_onnx(
    backbone: Backbone, file: Path, n_threads: int | None = None
) -> tuple[tuple[bytes, bytes], OpenVinoRuntime]:
    """Convert a file, and compare two images of a batch with each by itself: a batch size fixed inside mixes them."""
    preprocess = backbone.network.preprocess
    images = np.random.default_rng(0).integers(0, 256, (2, *backbone.input_shape), np.uint8)
    images[1] //= 4  # else their averages would be alike
    try:
        network = feature_network(file, backbone.input_shape, preprocess, backbone.layers, backbone.pooling)
        converted = _serialize(network, backbone.input_shape)
        runtime = OpenVinoRuntime(*converted, n_threads=n_threads)
        alone = [np.concatenate(rows) for rows in zip(runtime(images[:1]), runtime(images[1:]), strict=True)]
        difference = _difference(runtime(images), alone)
    # OpenVINO has no type of its own for a graph that cannot be changed.
    except (RuntimeError, ValueError) as error:
        height, width = backbone.input_shape[:2]
        msg = (
            f"OpenVINO cannot run {file} on batches of {height} x {width} pixels "
            f"({str(error).strip().splitlines()[-1]}): export it for batches of any size, and for this input size"
        )
        raise BackboneError(msg) from error
    if not difference <= TOLERANCE:
        msg = (
            f"{file} mixes the images of a batch, whose size was fixed when it was exported: export it for batches of "
            "any size (dynamic_axes or dynamic_shapes in PyTorch)"
        )
        raise BackboneError(msg)
    return converted, runtime


def _difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """Largest difference in any layer, relative to its largest feature; NaN where there is a NaN."""
    layers = zip(ours, theirs, strict=True)
    return float(np.max([np.abs(a - b).max() / (np.abs(b).max() or 1) for a, b in layers]))


def _read_graph(frozen: Any) -> Any:
    """Convert a frozen TensorFlow function.

    From a file: OpenVINO walks a graph in memory node by node in Python, which takes ten times as long.
    """
    ov = load_openvino()

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "network.pb")
        file.write_bytes(frozen.graph.as_graph_def().SerializeToString())
        network = ov.Core().read_model(file)
    return ov.Model([network.output(tensor.name) for tensor in frozen.outputs], network.get_parameters(), "features")


def _serialize(network: Any, shape: tuple[int, ...]) -> tuple[bytes, bytes]:
    """Description and weights of a network on batches of images of a shape."""
    ov = load_openvino()

    network.reshape([-1, *shape])
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "network.xml"), Path(folder, "network.bin")
        ov.serialize(network, *files)
        return files[0].read_bytes(), files[1].read_bytes()


# Conversions are kept on disk, so that a warm start needs neither Keras nor TensorFlow


def conversions_folder() -> Path:
    """Where conversions are kept: ``DEEPFEAT_CACHE``, or deepfeat's part of the user's cache folder."""
    if named := os.environ.get("DEEPFEAT_CACHE"):
        return Path(named)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "deepfeat"


def _conversion_file(backbone: Backbone, weights_digest: str) -> Path:
    """Name a conversion by everything that decides it."""
    preprocess = backbone.network.preprocess
    facts = {
        "conversion": _CONVERSION,
        "backbone": backbone.name,
        "weights": weights_digest,
        "layers": backbone.layers,
        "pooling": backbone.pooling,
        "input_shape": backbone.input_shape,
        "preprocessing": [preprocess.channels, preprocess.mean, preprocess.std],
        "versions": {name: version(name) for name in ("keras", "openvino")} | {"deepfeat": __version__},
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    return conversions_folder() / f"{digest}.openvino"


def _read(file: Path) -> tuple[bytes, bytes] | None:
    """Read a kept conversion; None where there is none, or it is not what was written."""
    try:
        data = file.read_bytes()
    except OSError:
        return None
    digest, length, body = data[:32], int.from_bytes(data[32:40], "little"), data[40:]
    return (body[:length], body[length:]) if hashlib.sha256(data[32:]).digest() == digest else None


def _keep(file: Path, model: bytes, weights: bytes) -> None:
    """Write a conversion beside its place and move it there whole: SHA-256, length of the model, model, weights."""
    data = len(model).to_bytes(8, "little") + model + weights
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(hashlib.sha256(data).digest() + data)
        os.replace(draft, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        logger.warning("the conversion could not be kept in %s: %s", file.parent, error.strerror or error)
