"""Run a backbone under Keras, on whichever backend Keras is set to."""

from __future__ import annotations

import difflib
import logging
import os
import threading
import time
from collections.abc import Callable, Container
from typing import Any

import numpy as np

from deepfeat.backbones import Backbone, Preprocessing
from deepfeat.backbones.network import GEM_FLOOR, GEM_P
from deepfeat.errors import BackboneError
from deepfeat.runtimes.startup import start_keras

start_keras()

# Other modules take Keras from here, so that it starts the quiet way.
import keras as keras  # noqa: E402
from keras import ops as ops  # noqa: E402

logger = logging.getLogger(__name__)

#: Batch sizes that "auto" tries, from the first on, as long as each is faster than the last by `_GAIN`.
BATCH_SIZES = (8, 16, 32, 64, 128, 256)
_GAIN = 1.05

#: Part of the free memory that the outputs of all layers may take together.
_MEMORY_SHARE = 0.25

#: As TensorFlow and JAX name them.
_GPU_NAMES = ("gpu", "cuda", "rocm")


class KerasRuntime:
    """From uint8 images to the features of each of a backbone's layers.

    Parameters
    ----------
    backbone : Backbone
    model : keras.Model
        As built by ``backbone.build()``.
    batch_size : int or "auto"
        Images in one batch, to which the last is filled up, so that nothing is compiled twice. "auto"
        measures on the first images, and keeps the last size that was faster than the one before by a
        twentieth. After an out-of-memory error the size is halved.
    precision : {"float32", "bfloat16"}
        With bfloat16, layers compute in it and keep their weights in float32.

    Attributes
    ----------
    shapes : list of tuple of int
        Shape of one row of each layer's features.
    batch_size : int
        As it is now.

    Raises
    ------
    BackboneError
        On a call, if even one image does not fit into memory.
    """

    engine = keras.backend.backend()

    def __init__(
        self, backbone: Backbone, model: keras.Model, batch_size: int | str = "auto", precision: str = "float32"
    ) -> None:
        features = feature_model(backbone, as_mixed(model) if precision == "bfloat16" else model)
        self._forward = compile_model(features)
        self._name = backbone.name
        self.shapes = [tuple(int(n) for n in output.shape[1:]) for output in features.outputs]
        limit = _largest_batch(model)
        self._untried = [size for size in BATCH_SIZES if size <= limit][1:] if batch_size == "auto" else []
        self.batch_size = int(batch_size) if batch_size != "auto" else BATCH_SIZES[0]
        self._best: tuple[float, int] | None = None
        self._timed: list[float] = []
        self._lock = threading.Lock()

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """Compute features, for one thread at a time.

        Parameters
        ----------
        images : ndarray of shape (n, height, width, 3), uint8

        Returns
        -------
        list of ndarray of shape (n, *shape), float32
            One for each layer.
        """
        with self._lock:
            return self._compute(images)

    def _compute(self, images: np.ndarray) -> list[np.ndarray]:
        self._settle(len(images))
        parts, start = [], 0
        while start < len(images):
            batch = images[start : start + self.batch_size]
            started = time.perf_counter()
            try:
                parts.append(self._run(batch))
            except Exception as error:
                if not _is_out_of_memory(error):
                    raise
                self._halve(error)
                continue
            start += len(batch)
            self._tune(len(batch), time.perf_counter() - started)
        return [np.concatenate(layer) for layer in zip(*parts, strict=True)]

    def _run(self, images: np.ndarray) -> list[np.ndarray]:
        lacking = self.batch_size - len(images)
        batch = np.pad(images, ((0, lacking), (0, 0), (0, 0), (0, 0))) if lacking else images
        return [np.asarray(output, np.float32)[: len(images)] for output in self._forward(batch)]

    def _halve(self, error: Exception) -> None:
        if self.batch_size == 1:
            msg = f"{self._name} does not fit into memory, not even with one image at a time"
            raise BackboneError(msg) from error
        self.batch_size, self._untried = self.batch_size // 2, []
        logger.warning("%s: out of memory, going on with batches of %d", self._name, self.batch_size)

    def _settle(self, count: int) -> None:
        """Go back to the best size where the next one is larger than what comes: batches are filled up with nothing."""
        if self._best is not None and count < self.batch_size and self._best[1] < self.batch_size:
            self.batch_size, self._untried = self._best[1], []

    def _tune(self, count: int, seconds: float) -> None:
        """Note the time of a full batch, and go on to the next size after two beyond the first, which compiles."""
        if not self._untried or count < self.batch_size:
            return
        self._timed.append(seconds / count)
        if len(self._timed) < 3:
            return
        measured = min(self._timed[1:]), self.batch_size
        self._timed = []
        if self._best is None or measured[0] * _GAIN < self._best[0]:
            self._best, self.batch_size = measured, self._untried.pop(0)
        else:
            self.batch_size, self._untried = self._best[1], []
            logger.info("%s: batches of %d", self._name, self.batch_size)


def count_gpus() -> int:
    """Number of GPUs that Keras sees."""
    # Keras lists no devices for PyTorch, which `make test-backends` runs.
    if keras.backend.backend() == "torch":  # pragma: no cover
        import torch

        return int(torch.cuda.device_count())
    return sum(device.split(":")[0] in _GPU_NAMES for device in keras.distribution.list_devices())


def _is_out_of_memory(error: Exception) -> bool:
    """Whether a backend said that memory was exhausted; each has a type of its own for that."""
    named = {"ResourceExhaustedError", "OutOfMemoryError", "MemoryError"}
    return type(error).__name__ in named or "RESOURCE_EXHAUSTED" in str(error)


def _largest_batch(model: keras.Model) -> int:
    """Number of images whose layers' outputs take no more than a part of the memory that is free."""
    values = 0
    for layer in model.layers:
        for tensor in keras.tree.flatten(layer.output):
            values += int(np.prod([n for n in tensor.shape[1:] if n is not None]))
    return max(1, int(_MEMORY_SHARE * _free_memory() / (4 * max(values, 1))))


def _free_memory() -> float:
    """Bytes of memory that can be had; without a limit where the system does not tell."""
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):  # pragma: no cover - not on Linux
        return float("inf")


def as_mixed(model: keras.Model, kept: Container[str] = ()) -> keras.Model:
    """Copy a model so that its layers compute in bfloat16, those inside networks and layers too.

    Layers named in ``kept`` stay as they are.
    """

    def mixed(layer: Any) -> Any:
        # Operations have no type of their own.
        changed = isinstance(layer, keras.layers.Layer) and layer.name not in kept
        return type(layer).from_config({**layer.get_config(), **({"dtype": "mixed_bfloat16"} if changed else {})})

    copy = keras.models.clone_model(model, clone_function=mixed, recursive=True)
    # A layer of one's own may make others without handing its type on.
    for layer in copy._flatten_layers():
        if layer.name not in kept:
            layer.dtype_policy = "mixed_bfloat16"
    copy.set_weights(model.get_weights())
    return copy


def feature_model(backbone: Backbone, model: keras.Model) -> keras.Model:
    """Preprocessing, network and pooling as one Keras model on uint8 images."""
    maps = [layer_output(model, name) for name in backbone.layers]
    network = keras.Model(model.inputs[0], maps)
    images = keras.Input(backbone.input_shape, dtype="uint8")
    outputs = network(preprocess(images, backbone.network.preprocess), training=False)
    outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
    return keras.Model(images, [pool(output, backbone.pooling) for output in outputs])


def compile_model(features: keras.Model) -> Callable[[np.ndarray], list[Any]]:
    """Make a function from a batch to the outputs; it compiles once, or under JAX once for each size of a batch."""
    if keras.backend.backend() == "tensorflow":
        from deepfeat.runtimes.tensorflow import freeze

        frozen: Callable[[np.ndarray], list[Any]] = freeze(features)
        return frozen
    # What follows is run by `make test-backends`.
    if keras.backend.backend() == "jax":  # pragma: no cover
        from deepfeat.runtimes.jax import share

        return share(features)
    return lambda images: keras.tree.flatten(features.predict_on_batch(images))  # pragma: no cover


def named_layers(model: keras.Model) -> dict[str, Any]:
    """Layers whose outputs can be features: not the input, nor a network inside, which knows its own graph's alone."""

    def is_part(layer: Any) -> bool:
        is_network = isinstance(layer, keras.Model) and hasattr(layer, "outputs")
        return not (is_network or isinstance(layer, keras.layers.InputLayer))

    return {layer.name: layer for layer in model.layers if is_part(layer)}


def layer_output(model: keras.Model, name: str | None) -> Any:
    """Find the output of a named layer, or say which names are near; that of the model, its first one, if None."""
    if name is None:
        # A Sequential has none before it is called.
        if isinstance(getattr(model, "output", None), dict) and len(model.outputs) > 1:
            msg = f"{model.name!r} has outputs {', '.join(map(repr, model.output))}: name the layer that gives features"
            raise BackboneError(msg)
        return model.outputs[0]
    layers = named_layers(model)
    if name not in layers:
        is_there = any(layer.name == name for layer in model.layers)
        problem = f"layer {name!r} of {model.name!r} is its input or a network inside it, which give no features"
        near = difflib.get_close_matches(name, layers, 3) or list(layers)[-3:]
        hint = f"near are {', '.join(map(repr, near))}" if near else "leave out layer, for the output of the network"
        msg = f"{problem if is_there else f'{model.name!r} has no layer {name!r}'}: {hint}"
        raise BackboneError(msg)
    return layers[name].output


def averaged_layer(model: keras.Model, name: str | None) -> str | None:
    """Name the layer whose maps a network averages itself, to its output or to a named layer's; None if it does not."""
    tensor = layer_output(model, name)
    while len(tensor.shape) == 2:
        operation = tensor._keras_history.operation
        if type(operation).__name__ not in ("Cast", "Mean", "GlobalAveragePooling2D"):
            return None
        tensor = operation.input
    name = tensor._keras_history.operation.name
    return name if len(tensor.shape) == 4 and name in named_layers(model) else None


def preprocess(images: Any, preprocessing: Preprocessing) -> Any:
    """Turn uint8 RGB images into what a network wants to see."""
    x = ops.cast(images, "float32")
    if preprocessing.channels == "bgr":
        x = ops.flip(x, axis=-1)
    mean, std = np.array(preprocessing.mean, np.float32), np.array(preprocessing.std, np.float32)
    return (x - mean) / std


def pool(x: Any, pooling: str | None) -> Any:
    """Reduce every axis between the batch and the channels; vectors stay as they are."""
    axes = tuple(range(1, len(x.shape) - 1))
    poolings: dict[str | None, Callable[[], Any]] = {
        "avg": lambda: ops.mean(x, axis=axes),
        "max": lambda: ops.max(x, axis=axes),
        "gem": lambda: ops.power(ops.mean(ops.power(ops.maximum(x, GEM_FLOOR), GEM_P), axis=axes), 1 / GEM_P),
        "flatten": lambda: ops.reshape(x, (-1, int(np.prod(x.shape[1:])))),
        None: lambda: x,
    }
    pooled = poolings[pooling]() if axes else x
    return ops.cast(pooled, "float32")
