"""Which runtime computes a backbone here, and in which precision."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from deepfeat.backbones import Backbone
from deepfeat.backbones.network import check_choice
from deepfeat.errors import BackboneError, DataWarning, UsageError
from deepfeat.runtimes import openvino
from deepfeat.runtimes.startup import paused_collection

if TYPE_CHECKING:
    import keras

logger = logging.getLogger(__name__)

RUNTIMES = ("auto", "keras", "openvino")
PRECISIONS = ("auto", "float32", "bfloat16")

#: Files by which the drivers of NVIDIA's GPUs are known, so that Keras need not be asked elsewhere.
_GPU_FILES = ("/dev/nvidiactl", "/dev/dxg")


class Runtime(Protocol):
    """A backbone made ready to run: uint8 images to the float32 features of each layer."""

    shapes: list[tuple[int, ...]]
    engine: str

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """Compute the features of images of shape (n, height, width, 3), one array for each layer."""


def resolve(runtime: str, precision: str) -> tuple[str, str]:
    """Decide what "auto" means on this machine.

    A GPU that Keras sees is taken, in mixed bfloat16; without one, OpenVINO where it
    is installed, and Keras elsewhere, both in float32. Whoever sets Keras to another backend
    than TensorFlow, from which OpenVINO cannot convert, has chosen Keras.

    Raises
    ------
    UsageError
        For an unknown name, or a runtime that is not installed.
    """
    check_choice("runtime", runtime, RUNTIMES)
    check_choice("precision", precision, PRECISIONS)
    if runtime == "openvino" and not openvino.is_installed():
        raise UsageError("runtime='openvino' needs the package openvino: run `pip install 'deepfeat[openvino]'`")
    gpu = fills_gpu(runtime)
    if runtime == "auto":
        converts = openvino.is_installed() and _keras_backend() == "tensorflow"
        runtime = "openvino" if converts and not gpu else "keras"
    if precision == "auto":
        precision = "bfloat16" if gpu else "float32"
    return runtime, precision


def settle_precision(backbone: Backbone, asked: str, resolved: str) -> str:
    """Precision of one backbone: an ONNX file runs on the CPU, and "auto" is float32 there, whatever Keras has."""
    return "float32" if asked == "auto" and backbone.network.onnx is not None else resolved


def fills_gpu(runtime: str) -> bool:
    """Whether networks run on a GPU, which wants larger batches than a CPU."""
    return runtime != "openvino" and _has_gpu()


@paused_collection()
def open_runtime(
    backbone: Backbone,
    weights_digest: str,
    build: Callable[[], keras.Model],
    *,
    runtime: str,
    precision: str,
    batch_size: int | str,
    n_threads: int | None = None,
) -> Runtime:
    """Make a backbone ready to run.

    Parameters
    ----------
    backbone : Backbone
    weights_digest : str
    build : callable
        Builds the Keras network, where it is needed.
    runtime, precision : str
        As the user gave them, see `resolve`.
    batch_size : int or "auto"
        Of Keras; OpenVINO has its own.
    n_threads : int, optional
        Of OpenVINO; as many as there are cores if None.

    Raises
    ------
    UsageError
        With ``runtime="keras"`` for an ONNX file.
    BackboneError
        With ``runtime="openvino"`` or an ONNX file, if OpenVINO cannot run the network; or if the file of the network
        is no longer that of the digest.

    Warns
    -----
    DataWarning
        With ``runtime="auto"``, if OpenVINO cannot run the network and Keras does.
    """

    def build_checked() -> keras.Model:
        model = build()
        _check_unchanged(backbone, weights_digest)
        return model

    taken, kind = resolve(runtime, precision)
    if backbone.network.onnx is not None:
        if runtime == "keras":
            msg = f"{backbone.name} is an ONNX file, which only OpenVINO runs: use runtime='auto' or 'openvino'"
            raise UsageError(msg)
        taken = runtime = "openvino"
    if taken == "openvino":
        try:
            opened: Runtime = openvino.open_runtime(backbone, weights_digest, build_checked, kind, n_threads)
        except openvino.ConversionError as error:
            if runtime == "openvino":
                raise
            warnings.warn(f"{error}: Keras runs it instead", DataWarning, stacklevel=2)
        else:
            if backbone.network.onnx is not None:
                _check_unchanged(backbone, weights_digest)
            logger.info("%s: OpenVINO, %s", backbone.name, kind)
            return opened
    from deepfeat.runtimes.keras import KerasRuntime

    logger.info("%s: Keras, %s", backbone.name, kind)
    return KerasRuntime(backbone, build_checked(), batch_size, kind)


def _check_unchanged(backbone: Backbone, weights_digest: str) -> None:
    """Refuse a network whose file was replaced after its digest was taken."""
    if weights_digest.startswith("sha256:") and backbone.weights_digest() != weights_digest:
        msg = f"the file of {backbone.name} changed meanwhile: try again when nothing writes to it"
        raise BackboneError(msg)


def _keras_backend() -> str:
    """Keras' backend as its environment says, without importing it."""
    return os.environ.get("KERAS_BACKEND", "tensorflow")


def has_gpu_driver() -> bool:
    """Whether the machine has the driver of a GPU, for which Keras need not be asked."""
    return any(Path(name).exists() for name in _GPU_FILES)


def _has_gpu() -> bool:
    if not has_gpu_driver():
        return False
    from deepfeat.runtimes.keras import count_gpus

    return count_gpus() > 0
