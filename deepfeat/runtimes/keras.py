"""Run a backbone under Keras, on whichever backend Keras is set to."""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from deepfeat.backbones import Backbone, Preprocessing
from deepfeat.errors import BackboneError


@contextlib.contextmanager
def _quiet_start() -> Iterator[None]:
    """Hold back what TensorFlow writes to standard error while it starts, unless it fails.

    Its C++ side reports compiler flags and absent GPUs there before any log level counts.
    """
    try:
        stderr = os.dup(2)
    except OSError:  # no standard error, as under a windowed interpreter
        yield
        return
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(stderr, 2)
            sink.seek(0)
            os.write(2, sink.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


with contextlib.nullcontext() if "tensorflow" in sys.modules else _quiet_start():
    import keras
    from keras import ops

    ops.zeros(1)  # looks for devices

#: Exponent of generalised-mean pooling.
GEM_P = 3.0
_GEM_FLOOR = 1e-6


class KerasRuntime:
    """From uint8 images to the features of each of a backbone's layers.

    Parameters
    ----------
    backbone : Backbone
    model : keras.Model
        As built by ``backbone.build()``.
    batch_size : int
        Every call runs as one batch of this size, so that nothing is compiled twice.

    Attributes
    ----------
    shapes : list of tuple of int
        Shape of one row of each layer's features.
    """

    def __init__(self, backbone: Backbone, model: keras.Model, batch_size: int) -> None:
        self._model = _feature_model(backbone, model)
        self._batch_size = batch_size
        self.shapes = [tuple(int(n) for n in output.shape[1:]) for output in self._model.outputs]

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """Compute features.

        Parameters
        ----------
        images : ndarray of shape (n, height, width, 3), uint8
            At most ``batch_size`` of them.

        Returns
        -------
        list of ndarray of shape (n, *shape), float32
            One for each layer.
        """
        lacking = self._batch_size - len(images)
        batch = np.pad(images, ((0, lacking), (0, 0), (0, 0), (0, 0))) if lacking else images
        outputs = self._model.predict_on_batch(batch)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        return [np.asarray(output, np.float32)[: len(images)] for output in outputs]


def _feature_model(backbone: Backbone, model: keras.Model) -> keras.Model:
    """Preprocessing, network and pooling as one Keras model on uint8 images."""
    maps = [model.outputs[0] if name is None else _layer_output(model, name) for name in backbone.layers]
    network = keras.Model(model.inputs[0], maps)
    images = keras.Input(backbone.input_shape, dtype="uint8")
    outputs = network(_preprocess(images, backbone.network.preprocess), training=False)
    outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
    features = keras.Model(images, [_pool(output, backbone.pooling) for output in outputs])
    if keras.backend.backend() == "tensorflow":
        # XLA is slower than TensorFlow's own kernels on a CPU.
        features.jit_compile = False
    return features


def _layer_output(model: keras.Model, name: str) -> Any:
    names = [layer.name for layer in model.layers]
    if name not in names:
        near = difflib.get_close_matches(name, names, 3) or names[-3:]
        msg = f"{model.name!r} has no layer {name!r}: near are {', '.join(map(repr, near))}"
        raise BackboneError(msg)
    return model.get_layer(name).output


def _preprocess(images: Any, preprocessing: Preprocessing) -> Any:
    x = ops.cast(images, "float32")
    if preprocessing.channels == "bgr":
        x = ops.flip(x, axis=-1)
    mean, std = np.array(preprocessing.mean, np.float32), np.array(preprocessing.std, np.float32)
    return (x - mean) / std


def _pool(x: Any, pooling: str | None) -> Any:
    """Reduce every axis between the batch and the channels; vectors stay as they are."""
    axes = tuple(range(1, len(x.shape) - 1))
    poolings: dict[str | None, Callable[[], Any]] = {
        "avg": lambda: ops.mean(x, axis=axes),
        "max": lambda: ops.max(x, axis=axes),
        "gem": lambda: ops.power(ops.mean(ops.power(ops.maximum(x, _GEM_FLOOR), GEM_P), axis=axes), 1 / GEM_P),
        "flatten": lambda: ops.reshape(x, (-1, int(np.prod(x.shape[1:])))),
        None: lambda: x,
    }
    pooled = poolings[pooling]() if axes else x
    return ops.cast(pooled, "float32")
