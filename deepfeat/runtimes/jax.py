"""A Keras model on all devices that JAX sees: each computes its share of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np


def share(model: keras.Model) -> Callable[[np.ndarray], list[Any]]:  # pragma: no cover - by `make test-backends`
    """Make a function from a batch to the outputs, which compiles once for each size of a batch.

    Where there are several devices, each gets a copy of the weights and, of a batch filled
    up to a multiple of their number, an equal part.
    """
    devices = keras.distribution.list_devices()
    if len(devices) == 1:
        return lambda images: keras.tree.flatten(model.predict_on_batch(images))
    parallel = keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
    with parallel.scope():
        copy = keras.models.clone_model(model)
        copy.set_weights(model.get_weights())

    def forward(images: np.ndarray) -> list[Any]:
        lacking = -len(images) % len(devices)
        batch = np.pad(images, ((0, lacking), (0, 0), (0, 0), (0, 0)))
        shared = keras.distribution.distribute_tensor(batch, parallel.get_data_layout(batch.shape))
        outputs = keras.tree.flatten(copy.predict_on_batch(shared))
        return [output[: len(images)] for output in outputs]

    return forward
